//! Whether a graph fits together: what plans rely on.

use std::collections::HashMap;

use lowbit_kernels::Result;
use lowbit_kernels::conv::{Kind, Shape, Window};

use crate::graph::{Bounds, Constant, Dtype, Graph, Operation, Tensor};
use crate::{bail, within};

/// A tensor has at most so many elements.
const ELEMENTS: usize = 1 << 31;
/// And so many axes.
pub(crate) const AXES: usize = 8;

/// Tensors and constants by name.
pub(crate) struct Names<'a> {
    tensors: HashMap<&'a str, (usize, &'a Tensor)>,
    constants: HashMap<&'a str, (usize, &'a Constant)>,
}

impl<'a> Names<'a> {
    pub(crate) fn tensor(&self, name: &str) -> Result<&'a Tensor> {
        Ok(self.entry(name)?.1)
    }

    /// Where in the graph's list a tensor is.
    pub(crate) fn index(&self, name: &str) -> Result<usize> {
        Ok(self.entry(name)?.0)
    }

    fn entry(&self, name: &str) -> Result<(usize, &'a Tensor)> {
        match self.tensors.get(name) {
            Some(&found) => Ok(found),
            None => bail!("expected the name of a tensor, got {name:?}"),
        }
    }

    pub(crate) fn constant(&self, name: &str) -> Result<(usize, &'a Constant)> {
        match self.constants.get(name) {
            Some(&found) => Ok(found),
            None => bail!("expected the name of a constant, got {name:?}"),
        }
    }
}

impl Tensor {
    /// Elements of one sample.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements: never so in a checked graph.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn kind(&self) -> Kind {
        Kind { signed: self.dtype == Dtype::Int8, zero_point: self.zero_point }
    }

    pub(crate) fn bounds(&self, bounds: &Bounds) -> (i32, i32) {
        let (low, high) = self.kind().range();
        (bounds.qmin.unwrap_or(low), bounds.qmax.unwrap_or(high))
    }

    /// Height, width and channels of an image.
    pub(crate) fn image(&self) -> Result<[usize; 3]> {
        match self.shape[..] {
            [height, width, channels] => Ok([height, width, channels]),
            _ => bail!("{}: expected a shape (height, width, channels), got {:?}", self.name, self.shape),
        }
    }

    fn codes(&self) -> Result<f32> {
        match (self.dtype.is_code(), self.scale) {
            (true, Some(scale)) => Ok(scale),
            _ => bail!("{}: expected int8 or uint8 codes, got {}", self.name, self.dtype.name()),
        }
    }
}

impl Graph {
    pub(crate) fn names(&self) -> Names<'_> {
        let tensors = self.tensors.iter().enumerate().map(|(i, t)| (&t.name[..], (i, t))).collect();
        let constants = self.constants.iter().enumerate().map(|(i, c)| (&c.name[..], (i, c))).collect();
        Names { tensors, constants }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let names = self.names();
        if names.tensors.len() != self.tensors.len() || names.constants.len() != self.constants.len() {
            bail!("tensors, constants: expected names that differ");
        }
        for tensor in &self.tensors {
            check_tensor(tensor)?;
        }
        for constant in &self.constants {
            check_constant(constant)?;
        }
        // Whether each tensor has been written.
        let mut written = vec![false; self.tensors.len()];
        for name in &self.inputs {
            let index = within(|| "inputs".into(), names.index(name))?;
            if std::mem::replace(&mut written[index], true) {
                bail!("inputs: expected names that differ, got {name:?} twice");
            }
        }
        for state in &self.states {
            let (read, write) = (names.index(&state.read), names.index(&state.write));
            let [read, write] = [within(|| "states".into(), read)?, within(|| "states".into(), write)?];
            if std::mem::replace(&mut written[read], true) {
                bail!("states: expected tensors that nothing else writes, got {:?}", state.read);
            }
            let (read, write) = (&self.tensors[read], &self.tensors[write]);
            within(|| "states".into(), expect_shape(write, &read.shape))?;
            within(|| "states".into(), expect_same_codes(write, read))?;
        }
        for (step, operation) in self.operations.iter().enumerate() {
            let what = || format!("operation {step} ({})", operation.kind());
            within(what, self.check_order(&names, operation, &mut written))?;
            within(what, check_operation(&names, operation))?;
        }
        for (what, name) in
            self.outputs.iter().map(|name| ("outputs", name)).chain(self.states.iter().map(|s| ("states", &s.write)))
        {
            if !written[within(|| what.into(), names.index(name))?] {
                bail!("{what}: expected tensors that an operation writes, got {name:?}");
            }
        }
        if self.inputs.is_empty() || self.outputs.is_empty() {
            bail!("inputs, outputs: expected at least one of each");
        }
        Ok(())
    }

    fn check_order(&self, names: &Names, operation: &Operation, written: &mut [bool]) -> Result<()> {
        for name in operation.inputs() {
            if !written[names.index(name)?] {
                bail!("expected inputs that an earlier operation writes, got {name:?}");
            }
        }
        if std::mem::replace(&mut written[names.index(operation.output())?], true) {
            bail!("expected an output that nothing else writes, got {:?}", operation.output());
        }
        Ok(())
    }
}

/// The product of a shape's sizes, none of them 0.
fn elements(what: &str, shape: &[usize]) -> Result<usize> {
    let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    match count {
        Some(count @ 1..=ELEMENTS) if shape.len() <= AXES => Ok(count),
        _ => bail!("{what}: expected a shape of 1 to 2^31 elements and at most {AXES} axes, got {shape:?}"),
    }
}

fn check_scale(what: &str, scale: f32) -> Result<()> {
    // Beyond these, quotients of three scales leave float32.
    if !(1e-12..=1e12).contains(&scale) {
        bail!("{what}: expected a scale of 1e-12 to 1e12, got {scale}");
    }
    Ok(())
}

fn check_zero_point(what: &str, dtype: Dtype, zero_point: i32) -> Result<()> {
    let (low, high) = match dtype {
        Dtype::Int8 => (-128, 127),
        Dtype::Uint8 => (0, 255),
        Dtype::Int32 | Dtype::Float32 => (0, 0),
    };
    if !(low..=high).contains(&zero_point) {
        bail!("{what}: expected a zero point of {low} to {high} for {}, got {zero_point}", dtype.name());
    }
    Ok(())
}

fn check_tensor(tensor: &Tensor) -> Result<()> {
    let name = &tensor.name;
    elements(name, &tensor.shape)?;
    check_zero_point(name, tensor.dtype, tensor.zero_point)?;
    match (tensor.dtype.is_code(), tensor.scale) {
        (true, Some(scale)) => check_scale(name, scale),
        (false, None) => Ok(()),
        (true, None) => bail!("{name}: expected a scale for {} codes, got none", tensor.dtype.name()),
        (false, Some(_)) => bail!("{name}: expected no scale for {}", tensor.dtype.name()),
    }
}

fn check_constant(constant: &Constant) -> Result<()> {
    let name = &constant.name;
    elements(name, &constant.shape)?;
    check_zero_point(name, constant.dtype, constant.zero_point)?;
    let widths = if constant.dtype.is_code() { 1..=8 } else { 8..=8 };
    if !widths.contains(&constant.nbits) {
        bail!("{name}: expected {widths:?} bits for {}, got {}", constant.dtype.name(), constant.nbits);
    }
    let Some(scale) = &constant.scale else { return Ok(()) };
    let rows = constant.shape.first().copied().unwrap_or(1);
    if scale.len() != 1 && scale.len() != rows {
        bail!("{name}: expected 1 or {rows} scales, got {}", scale.len());
    }
    scale.iter().try_for_each(|&scale| check_scale(name, scale))
}

fn check_operation(names: &Names, operation: &Operation) -> Result<()> {
    let output = names.tensor(operation.output())?;
    match operation {
        Operation::Conv2d { input, weight, bias, requantize, bounds, .. } => {
            let input = names.tensor(input)?;
            let shape = conv_shape(names, operation)?;
            expect_shape(output, &shape.output()?)?;
            check_products(names, input, weight, bias.as_deref(), output, requantize, bounds)
        }
        Operation::FullyConnected { input, weight, bias, requantize, bounds, .. } => {
            let input = names.tensor(input)?;
            let shape = conv_shape(names, operation)?;
            expect_shape(output, &[shape.filters])?;
            check_products(names, input, weight, bias.as_deref(), output, requantize, bounds)
        }
        Operation::Add { a, b, requantize, bounds, .. } => {
            for input in [a, b] {
                let input = names.tensor(input)?;
                input.codes()?;
                expect_shape(output, &input.shape)?;
                expect_dtype(input, output.dtype)?;
            }
            if requantize != "shift20" {
                bail!("requantize: expected \"shift20\", got {requantize:?}");
            }
            check_bounds(output, bounds)
        }
        Operation::Multiply { a, b, requantize, bounds, .. } => {
            let (a, b) = (names.tensor(a)?, names.tensor(b)?);
            let scales = [a.codes()?, b.codes()?, output.codes()?];
            check_scale("the product of both scales over the output's", scales[0] * scales[1] / scales[2])?;
            expect_shape(output, &a.shape)?;
            let channels = a.shape.last().copied().unwrap_or(1);
            if b.shape != a.shape && (b.len() != channels || b.shape.last() != Some(&channels)) {
                bail!("{}: expected the shape {:?}, or {channels} channels, got {:?}", b.name, a.shape, b.shape);
            }
            if requantize != "float32" {
                bail!("requantize: expected \"float32\", got {requantize:?}");
            }
            check_bounds(output, bounds)
        }
        Operation::Concatenate { parts, axis, .. } => {
            if parts.is_empty() || *axis >= output.shape.len() {
                bail!("parts, axis: expected at least one, along an axis of {:?}, got {axis}", output.shape);
            }
            let mut along = 0usize;
            for part in parts {
                let part = names.tensor(part)?;
                expect_same_codes(part, output)?;
                let mut expected = output.shape.clone();
                expected[*axis] = part.shape.get(*axis).copied().unwrap_or(0);
                along = along.saturating_add(expected[*axis]);
                expect_shape(part, &expected)?;
            }
            if along != output.shape[*axis] {
                bail!("{}: expected {along} along axis {axis}, got {:?}", output.name, output.shape);
            }
            Ok(())
        }
        Operation::AveragePool2d { input, kernel, stride, padding, bounds, .. } => {
            let input = names.tensor(input)?;
            let window = Window { input: input.image()?, kernel: *kernel, stride: *stride, padding: *padding };
            expect_shape(output, &window.output()?)?;
            expect_dtype(input, output.dtype)?;
            check_scale("the input's scale over the output's", input.codes()? / output.codes()?)?;
            check_bounds(output, bounds)
        }
        Operation::MaxPool2d { input, kernel, stride, padding, bounds, .. } => {
            let input = names.tensor(input)?;
            let window = Window { input: input.image()?, kernel: *kernel, stride: *stride, padding: *padding };
            expect_shape(output, &window.output()?)?;
            expect_same_codes(input, output)?;
            check_bounds(output, bounds)
        }
        Operation::Softmax { input, .. } => {
            let input = names.tensor(input)?;
            input.codes()?;
            expect_dtype(output, input.dtype)?;
            expect_shape(output, &input.shape)?;
            if input.shape.is_empty() {
                bail!("{}: expected at least one axis, got none", input.name);
            }
            let least = output.kind().range().0;
            if output.codes()? != 1.0 / 256.0 || output.zero_point != least {
                bail!("{}: expected the scale 1/256 and the zero point {least}", output.name);
            }
            Ok(())
        }
        Operation::Table { input, table, .. } => {
            let input = names.tensor(input)?;
            input.codes()?;
            output.codes()?;
            expect_shape(output, &input.shape)?;
            let (_, table) = names.constant(table)?;
            if table.shape != [256] || table.dtype != output.dtype {
                let (dtype, got) = (output.dtype.name(), table.dtype.name());
                bail!("table: expected 256 codes of {dtype}, got {:?} of {got}", table.shape);
            }
            Ok(())
        }
        Operation::Reshape { input, .. } => {
            let input = names.tensor(input)?;
            if input.len() != output.len() || input.dtype != output.dtype {
                bail!("expected as many elements of one dtype, got {:?} and {:?}", input.shape, output.shape);
            }
            expect_same_codes(input, output)
        }
        Operation::Pad { input, padding, .. } => {
            let input = names.tensor(input)?;
            expect_same_codes(input, output)?;
            if padding.len() != input.shape.len() {
                bail!("padding: expected one pair for each of {} axes, got {}", input.shape.len(), padding.len());
            }
            let padded = input.shape.iter().zip(padding).map(|(&size, p)| size.checked_add(p[0])?.checked_add(p[1]));
            match padded.collect::<Option<Vec<_>>>() {
                Some(padded) => expect_shape(output, &padded),
                None => bail!("padding: expected sizes that fit, got {padding:?}"),
            }
        }
        Operation::Slice { input, begin, step, .. } => {
            let input = names.tensor(input)?;
            expect_same_codes(input, output)?;
            let axes = input.shape.len();
            if begin.len() != axes || step.len() != axes || output.shape.len() != axes || step.contains(&0) {
                bail!("begin, step: expected one for each of {axes} axes, steps of at least 1");
            }
            for axis in 0..axes {
                let last = (output.shape[axis] - 1).checked_mul(step[axis]).and_then(|at| at.checked_add(begin[axis]));
                if last.is_none_or(|last| last >= input.shape[axis]) {
                    bail!("expected an output within the input, got {:?} of {:?}", output.shape, input.shape);
                }
            }
            Ok(())
        }
        Operation::Quantize { input, .. } => {
            let input = names.tensor(input)?;
            expect_dtype(input, Dtype::Float32)?;
            output.codes()?;
            expect_shape(output, &input.shape)
        }
        Operation::Dequantize { input, .. } => {
            let input = names.tensor(input)?;
            input.codes()?;
            expect_dtype(output, Dtype::Float32)?;
            expect_shape(output, &input.shape)
        }
    }
}

/// The convolution that a layer is: a linear layer is one of a single pixel.
pub(crate) fn conv_shape(names: &Names, operation: &Operation) -> Result<Shape> {
    match operation {
        Operation::Conv2d { input, weight, stride, padding, dilation, groups, .. } => {
            let (input, (_, weight)) = (names.tensor(input)?.image()?, names.constant(weight)?);
            let [filters, rows, columns, depth] = weight.shape[..] else {
                bail!("weight: expected a shape (filters, rows, columns, channels), got {:?}", weight.shape);
            };
            if *groups == 0 || input[2] / groups != depth {
                bail!("weight: expected {} channels in {groups} groups, got {:?}", input[2], weight.shape);
            }
            let (stride, padding, dilation, groups) = (*stride, *padding, *dilation, *groups);
            Ok(Shape { input, filters, kernel: [rows, columns], stride, dilation, padding, groups })
        }
        Operation::FullyConnected { input, weight, .. } => {
            let (input, (_, weight)) = (names.tensor(input)?, names.constant(weight)?);
            match weight.shape[..] {
                [filters, depth] if depth == input.len() => Ok(Shape {
                    input: [1, 1, depth],
                    filters,
                    kernel: [1, 1],
                    stride: [1, 1],
                    dilation: [1, 1],
                    padding: [[0; 2]; 2],
                    groups: 1,
                }),
                _ => bail!("weight: expected a shape (filters, {}), got {:?}", input.len(), weight.shape),
            }
        }
        _ => bail!("expected a layer"),
    }
}

fn check_products(
    names: &Names,
    input: &Tensor,
    weight: &str,
    bias: Option<&str>,
    output: &Tensor,
    requantize: &str,
    bounds: &Bounds,
) -> Result<()> {
    input.codes()?;
    let (_, weight) = names.constant(weight)?;
    if !weight.dtype.is_code() || weight.scale.is_none() {
        bail!("{}: expected codes with a scale, got {}", weight.name, weight.dtype.name());
    }
    if let Some(bias) = bias {
        let (_, bias) = names.constant(bias)?;
        if bias.shape != weight.shape[..1] || bias.dtype != Dtype::Int32 {
            let (filters, got) = (weight.shape[0], bias.dtype.name());
            bail!("{}: expected {filters} of int32, got {:?} of {got}", bias.name, bias.shape);
        }
    }
    if !["float32", "fixed_point", "power_of_two"].contains(&requantize) {
        bail!("requantize: expected \"float32\", \"fixed_point\" or \"power_of_two\", got {requantize:?}");
    }
    if output.dtype.is_code() { check_bounds(output, bounds) } else { Ok(()) }
}

fn check_bounds(output: &Tensor, bounds: &Bounds) -> Result<()> {
    let ((low, high), (qmin, qmax)) = (output.kind().range(), output.bounds(bounds));
    if low > qmin || qmin > qmax || qmax > high {
        bail!("qmin, qmax: expected codes of {} in order, got {qmin} and {qmax}", output.dtype.name());
    }
    Ok(())
}

fn expect_shape(tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape != shape {
        bail!("{}: expected the shape {shape:?}, got {:?}", tensor.name, tensor.shape);
    }
    Ok(())
}

fn expect_dtype(tensor: &Tensor, dtype: Dtype) -> Result<()> {
    if tensor.dtype != dtype {
        bail!("{}: expected {}, got {}", tensor.name, dtype.name(), tensor.dtype.name());
    }
    Ok(())
}

/// What moves codes and changes none: one dtype, scale and zero point.
fn expect_same_codes(input: &Tensor, output: &Tensor) -> Result<()> {
    if (input.dtype, input.scale, input.zero_point) != (output.dtype, output.scale, output.zero_point) {
        bail!("expected one dtype, scale and zero point for {:?} and {:?}", input.name, output.name);
    }
    Ok(())
}
