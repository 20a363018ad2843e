//! From a graph to steps: layers made ready, additions fused into the layers
//! before them, a place for every tensor that is not written for the caller.

use std::ops::Range;

use lowbit_kernels::conv::{
    AddCodes, Conv2d, Finish, Kind, Means, Multiply, Requantize, Rule, Softmax, To, Weight, Window,
};
use lowbit_kernels::{Isa, Result};

use crate::check::{Names, conv_shape};
use crate::graph::{Dtype, Graph, Operation, Tensor};
use crate::memory::{Life, places};
use crate::{bail, within};

/// Where a step reads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// What the caller gave.
    Input(usize),
    /// The block of memory.
    Memory(Range<usize>),
    /// Nowhere: the step that makes an output has written it where the caller wants it.
    Written,
}

/// One step of a plan.
#[derive(Debug)]
pub(crate) struct Step {
    pub kind: &'static str,
    /// The tensor that it writes.
    pub output: String,
    pub work: Work,
    pub a: Source,
    pub b: Option<Source>,
    pub out: Range<usize>,
    /// The output that it writes where the caller wants it.
    pub to: Option<usize>,
    pub scratch: Range<usize>,
    /// Products of one sample.
    pub products: usize,
}

/// What a step does.
#[derive(Debug)]
pub(crate) enum Work {
    /// The output's dtype; and codes to add.
    Layer(Box<Conv2d>, Dtype),
    Add(AddCodes),
    Multiply(Multiply),
    /// One part of a concatenation.
    Place(Place),
    AveragePool(Window, Means),
    MaxPool(Window, Kind, (i32, i32)),
    /// Of rows of so many codes.
    Softmax(Box<Softmax>, usize),
    Table(Box<[u8; 256]>, bool),
    Pad(Pad),
    Slice(Slice),
    Quantize(f32, Kind),
    Dequantize(f32, Kind),
}

/// Rows of some bytes, each put `skip` bytes into a row of the output.
#[derive(Debug)]
pub(crate) struct Place {
    pub row: usize,
    pub out_row: usize,
    pub skip: usize,
}

/// Sizes in bytes along the last axis.
#[derive(Debug)]
pub(crate) struct Pad {
    pub zero: u8,
    pub input: Vec<usize>,
    pub output: Vec<usize>,
    pub before: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct Slice {
    /// Bytes of an element of the last axis: of the axes behind it too, which are kept whole.
    pub element: usize,
    pub input: Vec<usize>,
    pub output: Vec<usize>,
    pub begin: Vec<usize>,
    pub step: Vec<usize>,
}

/// Steps in order, and what they need.
#[derive(Debug)]
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<(Tensor, Source)>,
    /// What lives from one sample to the next: it is read as further inputs, and comes from here.
    pub states: Vec<(Tensor, Source)>,
    /// Bytes of the block, and of all weights.
    pub memory: usize,
    pub weights: usize,
}

/// A step before its places are known. Values are indices of tensors, views resolved.
struct Draft {
    operation: usize,
    work: Work,
    a: usize,
    b: Option<usize>,
    out: usize,
    scratch: usize,
    products: usize,
}

impl Plan {
    pub(crate) fn new(graph: &Graph, constants: &[&[u8]], isa: Isa) -> Result<Plan> {
        let names = graph.names();
        check_bytes(graph, constants)?;
        let uses = uses(graph, &names)?;
        // A reshaped tensor is the tensor that it shows.
        let mut shown: Vec<usize> = (0..graph.tensors.len()).collect();
        let mut drafts: Vec<Draft> = Vec::new();
        for (at, operation) in graph.operations.iter().enumerate() {
            let what = || format!("operation {at} ({})", operation.kind());
            let inputs = operation.inputs();
            let a = shown[names.index(inputs[0])?];
            let b = inputs.get(1).map(|name| names.index(name)).transpose()?.map(|b| shown[b]);
            let out = names.index(operation.output())?;
            if let Operation::Reshape { .. } = operation {
                shown[out] = a;
                continue;
            }
            if let Operation::Add { .. } = operation
                && fuse(graph, &names, operation, (a, b, out), &uses, &mut drafts, constants, isa)?
            {
                continue;
            }
            if let Operation::Concatenate { parts, axis, .. } = operation {
                for (part, work) in parts.iter().zip(places_of(&names, parts, *axis, &graph.tensors[out])?) {
                    drafts.push(Draft::new(at, work, shown[names.index(part)?], None, out));
                }
                continue;
            }
            let work = within(what, work(&names, operation, constants, None, isa))?;
            drafts.push(Draft::new(at, work, a, b, out));
        }
        finish(graph, &names, drafts, &shown)
    }
}

impl Draft {
    fn new(operation: usize, work: Work, a: usize, b: Option<usize>, out: usize) -> Draft {
        let (scratch, products) = match &work {
            Work::Layer(conv, _) => (2 * conv.scratch_len(), conv.products()),
            _ => (0, 0),
        };
        Draft { operation, work, a, b, out, scratch, products }
    }
}

/// Where each part of a concatenation goes.
fn places_of(names: &Names, parts: &[String], axis: usize, out: &Tensor) -> Result<Vec<Work>> {
    let inner = out.shape[axis + 1..].iter().product::<usize>() * out.dtype.size();
    let mut skip = 0;
    let mut works = Vec::with_capacity(parts.len());
    for part in parts {
        let row = names.tensor(part)?.shape[axis] * inner;
        works.push(Work::Place(Place { row, out_row: out.shape[axis] * inner, skip }));
        skip += row;
    }
    Ok(works)
}

/// Whether the constants' bytes are as many as the graph says.
fn check_bytes(graph: &Graph, constants: &[&[u8]]) -> Result<()> {
    if constants.len() != graph.constants.len() {
        bail!("constants: expected {}, got {}", graph.constants.len(), constants.len());
    }
    for (constant, bytes) in graph.constants.iter().zip(constants) {
        let expected = constant.shape.iter().product::<usize>() * constant.dtype.size();
        if bytes.len() != expected {
            bail!("{}: expected {expected} bytes, got {}", constant.name, bytes.len());
        }
    }
    Ok(())
}

/// How often each tensor is read, under its own name or reshaped, outputs of the graph among the reads.
fn uses(graph: &Graph, names: &Names) -> Result<Vec<usize>> {
    let mut shown: Vec<usize> = (0..graph.tensors.len()).collect();
    let mut uses = vec![0; graph.tensors.len()];
    for operation in &graph.operations {
        let inputs = operation.inputs();
        if let Operation::Reshape { .. } = operation {
            shown[names.index(operation.output())?] = shown[names.index(inputs[0])?];
            continue;
        }
        for name in inputs {
            uses[shown[names.index(name)?]] += 1;
        }
    }
    for name in graph.outputs.iter().chain(graph.states.iter().map(|state| &state.write)) {
        uses[shown[names.index(name)?]] += 1;
    }
    Ok(uses)
}

/// Lets a layer that wrote one of an addition's inputs add the other, if nothing else reads what it writes. It
/// then runs when the other is there.
fn fuse(
    graph: &Graph,
    names: &Names,
    operation: &Operation,
    (a, b, out): (usize, Option<usize>, usize),
    uses: &[usize],
    drafts: &mut Vec<Draft>,
    constants: &[&[u8]],
    isa: Isa,
) -> Result<bool> {
    let Some(b) = b else { return Ok(false) };
    let writer = |value: usize| drafts.iter().rposition(|draft| draft.out == value);
    let layer = |own: usize, other: usize| {
        let at = writer(own).filter(|_| own != other && uses[own] == 1)?;
        let fits = matches!(&drafts[at].work, Work::Layer(_, dtype) if dtype.is_code()) && drafts[at].b.is_none();
        fits.then_some((at, own, other))
    };
    let Some((at, own, other)) = layer(a, b).max(layer(b, a)) else { return Ok(false) };
    let waits = writer(other).is_some_and(|writer| writer > at);
    let written = &graph.operations[drafts[at].operation];
    let Operation::Add { bounds, output, .. } = operation else { return Ok(false) };
    let (own, other_tensor, output) = (&graph.tensors[own], &graph.tensors[other], names.tensor(output)?);
    let add = add_codes(own, other_tensor, output, output.bounds(bounds))?;
    let work = work(names, written, constants, Some(add), isa)?;
    let draft = Draft::new(drafts[at].operation, work, drafts[at].a, Some(other), out);
    if waits {
        drafts.remove(at);
        drafts.push(draft);
    } else {
        drafts[at] = draft;
    }
    Ok(true)
}

/// How two tensors' codes are added; scales are there in a checked graph.
fn add_codes(a: &Tensor, b: &Tensor, out: &Tensor, bounds: (i32, i32)) -> Result<AddCodes> {
    let scales = [a, b, out].map(|tensor| tensor.scale.unwrap_or(1.0));
    AddCodes::new(scales, [a, b, out].map(|tensor| tensor.zero_point), bounds, b.dtype == Dtype::Int8)
}

fn work(names: &Names, operation: &Operation, constants: &[&[u8]], add: Option<AddCodes>, isa: Isa) -> Result<Work> {
    let out = names.tensor(operation.output())?;
    let input = names.tensor(operation.inputs()[0])?;
    Ok(match operation {
        Operation::Conv2d { weight, bias, requantize, bounds, .. }
        | Operation::FullyConnected { weight, bias, requantize, bounds, .. } => {
            let shape = conv_shape(names, operation)?;
            let (index, weight) = names.constant(weight)?;
            let kind = Kind { signed: weight.dtype == Dtype::Int8, zero_point: weight.zero_point };
            let codes = Weight { codes: constants[index], kind };
            let bias = match bias {
                None => vec![0; shape.filters],
                Some(bias) => i32s(constants[names.constant(bias)?.0]),
            };
            let scales = weight.scale.as_deref().unwrap_or(&[1.0]);
            let scale = |filter: usize| scales[if scales.len() == 1 { 0 } else { filter }];
            let input_scale = input.scale.unwrap_or(1.0);
            let to = match (out.dtype, out.scale) {
                (Dtype::Int32, _) => To::Sums,
                (Dtype::Float32, _) => To::Floats((0..shape.filters).map(|f| input_scale * scale(f)).collect()),
                (_, out_scale) => {
                    let all: Vec<_> = (0..shape.filters).map(scale).collect();
                    let rule = rule(requantize, input_scale, &all, out_scale.unwrap_or(1.0))?;
                    let (qmin, qmax) = out.bounds(bounds);
                    To::Codes(Requantize { rule, zero_point: out.zero_point, qmin, qmax, add })
                }
            };
            let conv = Conv2d::new(shape, codes, input.kind(), Finish { bias, to }, isa)?;
            Work::Layer(Box::new(conv), out.dtype)
        }
        Operation::Add { a, b, bounds, .. } => {
            let (a, b) = (names.tensor(a)?, names.tensor(b)?);
            Work::Add(add_codes(a, b, out, out.bounds(bounds))?)
        }
        Operation::Multiply { a, b, bounds, .. } => {
            let (a, b) = (names.tensor(a)?, names.tensor(b)?);
            let [of_a, of_b, of_out] = [a, b, out].map(|tensor| tensor.scale.unwrap_or(1.0));
            let ((qmin, qmax), kinds) = (out.bounds(bounds), [a.kind(), b.kind()]);
            let multiplier = of_a * of_b / of_out;
            Work::Multiply(Multiply { kinds, multiplier, zero_point: out.zero_point, qmin, qmax })
        }
        Operation::AveragePool2d { kernel, stride, padding, bounds, .. } => {
            let window = Window { input: input.image()?, kernel: *kernel, stride: *stride, padding: *padding };
            let (of_input, of_out) = (input.scale.unwrap_or(1.0), out.scale.unwrap_or(1.0));
            let same = of_input == of_out && input.zero_point == out.zero_point;
            let rescale = (!same).then_some((of_input / of_out, out.zero_point));
            Work::AveragePool(window, Means { kind: input.kind(), bounds: out.bounds(bounds), rescale })
        }
        Operation::MaxPool2d { kernel, stride, padding, bounds, .. } => {
            let window = Window { input: input.image()?, kernel: *kernel, stride: *stride, padding: *padding };
            Work::MaxPool(window, input.kind(), out.bounds(bounds))
        }
        Operation::Softmax { .. } => {
            let softmax = Softmax::new(input.scale.unwrap_or(1.0), input.kind(), out.kind())?;
            Work::Softmax(Box::new(softmax), input.shape.last().copied().unwrap_or(1))
        }
        Operation::Table { table, .. } => match <&[u8; 256]>::try_from(constants[names.constant(table)?.0]) {
            Ok(table) => Work::Table(Box::new(*table), input.dtype == Dtype::Int8),
            Err(_) => bail!("table: expected 256 codes"),
        },
        Operation::Pad { padding, .. } => {
            let zero = if input.dtype.is_code() { input.zero_point as u8 } else { 0 };
            let element = input.dtype.size();
            let mut before: Vec<_> = padding.iter().map(|p| p[0]).collect();
            match before.last_mut() {
                Some(last) => *last *= element,
                None => before.push(0), // one number, a row of one element
            }
            Work::Pad(Pad { zero, input: in_bytes(input), output: in_bytes(out), before })
        }
        Operation::Slice { begin, step, .. } => {
            let (mut shape, mut out, mut begin, mut step) =
                (input.shape.clone(), out.shape.clone(), begin.clone(), step.clone());
            // Axes that are kept whole are elements of the axis before them.
            let mut element = input.dtype.size();
            while shape.len() > 1 && shape.last() == out.last() && step.last() == Some(&1) {
                element *= shape.pop().unwrap_or(1);
                for axes in [&mut out, &mut begin, &mut step] {
                    axes.pop();
                }
            }
            Work::Slice(Slice { element, input: shape, output: out, begin, step })
        }
        Operation::Quantize { .. } => Work::Quantize(out.scale.unwrap_or(1.0), out.kind()),
        Operation::Dequantize { .. } => Work::Dequantize(input.scale.unwrap_or(1.0), input.kind()),
        Operation::Reshape { .. } | Operation::Concatenate { .. } => bail!("no work of its own"),
    })
}

/// The shape with its last axis in bytes.
fn in_bytes(tensor: &Tensor) -> Vec<usize> {
    let mut shape = tensor.shape.clone();
    match shape.last_mut() {
        Some(last) => *last *= tensor.dtype.size(),
        None => shape.push(tensor.dtype.size()),
    }
    shape
}

/// What numpy stores: little-endian on every platform that it supports here.
fn i32s(bytes: &[u8]) -> Vec<i32> {
    bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The rounding rule of this name, for each filter's scale.
fn rule(name: &str, input: f32, weight: &[f32], output: f32) -> Result<Rule> {
    let real = |w: f32| f64::from(input) * f64::from(w) / f64::from(output);
    Ok(match name {
        "fixed_point" => Rule::FixedPoint(weight.iter().map(|&w| fixed_point(real(w))).collect()),
        "power_of_two" => Rule::PowerOfTwo(weight.iter().map(|&w| exponent(real(w))).collect::<Result<_>>()?),
        _ => Rule::Float32(weight.iter().map(|&w| input * w / output).collect()),
    })
}

/// A positive number as `multiplier / 2^31 * 2^shift`, the multiplier in 2^30..2^31.
fn fixed_point(real: f64) -> (i32, i32) {
    let exponent = ((real.to_bits() >> 52) & 0x7ff) as i32 - 1022;
    let fraction = real / 2f64.powi(exponent);
    let multiplier = (fraction * f64::from(1u32 << 31)).round() as i64;
    let (multiplier, shift) = if multiplier == 1 << 31 { (1 << 30, exponent + 1) } else { (multiplier, exponent) };
    if shift < -31 { (0, 0) } else { (multiplier as i32, shift.min(30)) }
}

fn exponent(real: f64) -> Result<i32> {
    let exponent = ((real.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    if 2f64.powi(exponent) != real || !(-31..=31).contains(&exponent) {
        bail!("requantize: expected input · weight / output scales of 2^-31 to 2^31 for \"power_of_two\", got {real}");
    }
    Ok(exponent)
}

/// Gives everything its place.
fn finish(graph: &Graph, names: &Names, drafts: Vec<Draft>, shown: &[usize]) -> Result<Plan> {
    let index = |name: &String| names.index(name);
    let read = graph.inputs.iter().chain(graph.states.iter().map(|state| &state.read));
    let inputs = read.map(index).collect::<Result<Vec<_>>>()?;
    let outputs = graph.outputs.iter().map(index).collect::<Result<Vec<_>>>()?;
    let states = graph.states.iter().map(|state| index(&state.write)).collect::<Result<Vec<_>>>()?;
    // What each tensor is: its life, then its scratch memory's for each step.
    let mut lives: Vec<_> = graph.tensors.iter().map(|_| Life { bytes: 0, first: 0, last: 0 }).collect();
    for (at, draft) in drafts.iter().enumerate() {
        let tensor = &graph.tensors[draft.out];
        // Parts of a concatenation are written one after the other.
        let first = if lives[draft.out].bytes == 0 { at } else { lives[draft.out].first };
        lives[draft.out] = Life { bytes: tensor.len() * tensor.dtype.size(), first, last: at };
        for value in [Some(draft.a), draft.b].into_iter().flatten() {
            lives[value].last = at;
        }
    }
    // Codes that one step writes and nothing reads go straight to the caller.
    let is_read = |value: usize| drafts.iter().any(|draft| draft.a == value || draft.b == Some(value));
    let written = |value: usize| drafts.iter().filter(|draft| draft.out == value).count();
    let times_kept = |value: usize| outputs.iter().chain(&states).filter(|&&output| shown[output] == value).count();
    let direct: Vec<_> = outputs
        .iter()
        .map(|&output| shown[output])
        .map(|value| {
            let alone = written(value) == 1 && !is_read(value) && times_kept(value) == 1;
            (alone && graph.tensors[value].dtype.is_code()).then_some(value)
        })
        .collect();
    for &output in outputs.iter().chain(&states) {
        lives[shown[output]].last = drafts.len();
    }
    for &value in direct.iter().flatten() {
        lives[value].bytes = 0;
    }
    lives.extend(drafts.iter().enumerate().map(|(at, d)| Life { bytes: d.scratch, first: at, last: at }));
    let (places, memory) = places(&lives);
    let source = |value: usize| match inputs.iter().position(|&input| input == value) {
        Some(input) => Source::Input(input),
        None if direct.contains(&Some(value)) => Source::Written,
        None => Source::Memory(places[value].clone()),
    };
    let kept = |kept: &[usize]| kept.iter().map(|&at| (graph.tensors[at].clone(), source(shown[at]))).collect();
    let (outputs, states) = (kept(&outputs), kept(&states));
    let scratch = graph.tensors.len();
    let mut weights = 0;
    let mut steps = Vec::with_capacity(drafts.len());
    for (at, draft) in drafts.into_iter().enumerate() {
        if let Work::Layer(conv, _) = &draft.work {
            weights += conv.bytes();
        }
        steps.push(Step {
            kind: graph.operations[draft.operation].kind(),
            output: graph.tensors[draft.out].name.clone(),
            a: source(draft.a),
            b: draft.b.map(source),
            out: places[draft.out].clone(),
            to: direct.iter().position(|&value| value == Some(draft.out)),
            scratch: places[scratch + at].clone(),
            work: draft.work,
            products: draft.products,
        });
    }
    let inputs = inputs[..graph.inputs.len()].iter().map(|&input| graph.tensors[input].clone()).collect();
    Ok(Plan { steps, inputs, outputs, states, memory, weights })
}
