//! Bytes from anywhere, and graphs that mostly fit together, are refused or run without a panic, with
//! the same bits on every instruction set and number of threads.
#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use lowbit_kernels::{Ctl, Isa};
use lowbit_runtime::{Dtype, Graph, Network};
use serde_json::{Value, json};

/// Elements, products and bytes that do not keep the fuzzer waiting.
const ELEMENTS: usize = 1 << 18;
const PRODUCTS: usize = 1 << 21;
const MEMORY: usize = 4 << 20;
/// No operation makes a tensor beyond this.
const LARGEST: usize = 1 << 13;

#[derive(Clone, PartialEq)]
struct Tensor {
    shape: Vec<usize>,
    dtype: &'static str,
    scale: Option<f32>,
    zero_point: i32,
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The same but for its shape.
    fn of(&self, shape: &[usize]) -> Tensor {
        Tensor { shape: shape.to_vec(), ..self.clone() }
    }
}

/// Makes a graph: each step takes tensors that are there and adds one.
struct Maker<'a> {
    u: Unstructured<'a>,
    tensors: Vec<Tensor>,
    constants: Vec<Value>,
    operations: Vec<Value>,
    /// Whether all of it fits together.
    fits: bool,
}

impl Maker<'_> {
    fn size(&mut self, low: usize, high: usize) -> usize {
        self.u.int_in_range(low..=high).unwrap_or(low)
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.size(0, of.len() - 1)].clone()
    }

    fn rarely(&mut self) -> bool {
        self.size(0, 31) == 31
    }

    /// A tensor with a scale and zero point of its own.
    fn tensor(&mut self, shape: &[usize], dtype: &'static str) -> Tensor {
        let (scale, zero_point) = match dtype {
            "int8" => (Some(self.scale()), self.size(0, 255) as i32 - 128),
            "uint8" => (Some(self.scale()), self.size(0, 255) as i32),
            _ => (None, 0),
        };
        Tensor { shape: shape.to_vec(), dtype, scale, zero_point: if self.size(0, 1) == 0 { 0 } else { zero_point } }
    }

    fn scale(&mut self) -> f32 {
        self.pick(&[0.5, 0.25, 1.0, 0.125, 0.017, 0.3, 1.9, 2.0])
    }

    /// Some tensor that `fits`, if there is any: often the last, so that networks grow deep.
    fn find(&mut self, fits: impl Fn(&Tensor) -> bool) -> Option<usize> {
        let found: Vec<_> = (0..self.tensors.len()).filter(|&i| fits(&self.tensors[i])).collect();
        let last = *found.last()?;
        Some(if self.size(0, 1) == 0 { last } else { self.pick(&found) })
    }

    fn constant(&mut self, shape: &[usize], dtype: &str, scales: usize) -> String {
        let scale: Vec<_> = (0..scales).map(|_| self.scale()).collect();
        let zero_point = if dtype == "int32" || self.size(0, 1) == 0 { 0 } else { self.size(0, 127) };
        let name = format!("c{}", self.constants.len());
        self.constants.push(json!({
            "name": name, "shape": shape, "dtype": dtype, "zero_point": zero_point, "nbits": 8,
            "scale": if scales == 0 { Value::Null } else { json!(scale) },
        }));
        name
    }

    /// The least and the largest code, now and then.
    fn bounds(&mut self, dtype: &str) -> [Value; 2] {
        let least = if dtype == "uint8" { 0 } else { -128 };
        let (low, high) = (self.size(0, 255), self.size(0, 255));
        match self.size(0, 2) {
            0 if least == -128 || dtype == "uint8" => {
                [json!(low.min(high) as i32 + least), json!(low.max(high) as i32 + least)]
            }
            _ => [Value::Null, Value::Null],
        }
    }

    /// One operation, which writes `output`.
    fn then(&mut self, op: &str, output: Tensor, mut fields: Value) {
        fields["op"] = json!(op);
        fields["output"] = json!(format!("t{}", self.tensors.len()));
        if matches!(op, "conv2d" | "fully_connected" | "add" | "multiply" | "average_pool2d" | "max_pool2d") {
            let [qmin, qmax] = self.bounds(output.dtype);
            (fields["qmin"], fields["qmax"]) = (qmin, qmax);
        }
        self.operations.push(fields);
        self.tensors.push(output);
    }

    /// Kernel, step between windows, step between taps, padding before and after, windows.
    fn axis(&mut self, n: usize, kernel: usize, pool: bool) -> [usize; 6] {
        // Steps into nowhere: sizes that no memory holds, but numbers do.
        let far = |maker: &mut Self, most: usize| {
            maker.fits = false;
            1 << maker.size(2, most)
        };
        let dilation = if pool {
            1
        } else if self.rarely() {
            far(self, 30)
        } else {
            self.pick(&[1, 1, 1, 2, 3])
        };
        let stride = if self.rarely() { far(self, 63) } else { self.pick(&[1, 1, 2, 3]) };
        let reach = (kernel - 1) * dilation + 1;
        let mut before = self.size(0, kernel - 1);
        if !pool && self.rarely() {
            before += far(self, 30);
        }
        let after = self.size(0, kernel - 1).max(reach.saturating_sub(n + before));
        let stride = stride.max((n + before + after - reach) / 32 + 1);
        [kernel, stride, dilation, before, after, (n + before + after - reach) / stride + 1]
    }

    fn conv(&mut self) {
        let Some(x) = self.find(|t| t.scale.is_some() && t.shape.len() == 3) else { return };
        let input = self.tensors[x].clone();
        let [height, width, channels] = input.shape[..] else { return };
        let groups = self.pick(&[1, 1, 1, channels, if channels % 2 == 0 { 2 } else { 1 }]);
        let (same, square) = (self.size(0, 1) == 1, self.size(0, 2) == 2);
        let per_group = match groups {
            _ if same => channels / groups,
            1 => self.size(1, 40),
            _ => self.size(1, 3),
        };
        let filters = groups * per_group;
        let [rows, columns] = match (same, square) {
            (true, true) => [height, width].map(|n| [3, 1, 1, 1, 1, n]),
            (true, false) => [height, width].map(|n| [1, 1, 1, 0, 0, n]),
            _ => [height, width].map(|n| {
                let kernel = if self.size(0, 7) == 7 { n } else { self.size(1, 4) };
                self.axis(n, kernel, false)
            }),
        };
        let shape = [rows[5], columns[5], filters];
        if shape.iter().product::<usize>() > LARGEST {
            return;
        }
        let dtype = if same { input.dtype } else { self.pick(&["int8", "uint8", "int32", "float32"]) };
        let of = self.pick(&["int8", "uint8"]);
        let scales = self.pick(&[1, filters]);
        let weight = self.constant(&[filters, rows[0], columns[0], channels / groups], of, scales);
        let bias = if self.size(0, 1) == 0 { Value::Null } else { json!(self.constant(&[filters], "int32", 0)) };
        let output = self.tensor(&shape, dtype);
        let requantize = self.pick(&["float32", "fixed_point", "power_of_two"]);
        self.then(
            "conv2d",
            output,
            json!({
                "input": format!("t{x}"), "weight": weight, "bias": bias, "requantize": requantize, "groups": groups,
                "stride": [rows[1], columns[1]], "dilation": [rows[2], columns[2]],
                "padding": [[rows[3], rows[4]], [columns[3], columns[4]]],
            }),
        );
    }

    fn linear(&mut self) {
        let Some(x) = self.find(|t| t.scale.is_some() && t.len() <= 2048) else { return };
        let (filters, of) = (self.size(1, 70), self.pick(&["int8", "uint8"]));
        let scales = self.pick(&[1, filters]);
        let weight = self.constant(&[filters, self.tensors[x].len()], of, scales);
        let bias = if self.size(0, 1) == 0 { Value::Null } else { json!(self.constant(&[filters], "int32", 0)) };
        let dtype = self.pick(&["int8", "uint8", "int32", "float32"]);
        let output = self.tensor(&[filters], dtype);
        let requantize = self.pick(&["float32", "fixed_point", "power_of_two"]);
        let fields = json!({"input": format!("t{x}"), "weight": weight, "bias": bias, "requantize": requantize});
        self.then("fully_connected", output, fields);
    }

    /// An addition or a multiplication.
    fn both(&mut self, multiply: bool) {
        let Some(x) = self.find(|t| t.scale.is_some()) else { return };
        let a = self.tensors[x].clone();
        let channels = a.shape.last().copied().unwrap_or(1);
        let fits = |b: &Tensor| match multiply {
            true => {
                b.scale.is_some() && (b.shape == a.shape || b.len() == channels && b.shape.last() == Some(&channels))
            }
            false => b.dtype == a.dtype && b.shape == a.shape,
        };
        let others: Vec<_> = (0..self.tensors.len()).filter(|&i| i != x && fits(&self.tensors[i])).collect();
        let y = if others.is_empty() || self.size(0, 3) == 0 { x } else { self.pick(&others) };
        let dtype = if multiply { self.pick(&["int8", "uint8"]) } else { a.dtype };
        let output = self.tensor(&a.shape, dtype);
        let (mut first, mut second) = (x, y);
        if !multiply && self.size(0, 1) == 1 {
            (first, second) = (y, x);
        }
        let requantize = if multiply { "float32" } else { "shift20" };
        let fields = json!({"a": format!("t{first}"), "b": format!("t{second}"), "requantize": requantize});
        self.then(if multiply { "multiply" } else { "add" }, output, fields);
    }

    fn concatenate(&mut self) {
        let Some(x) = self.find(|t| !t.shape.is_empty()) else { return };
        let first = self.tensors[x].clone();
        let axis = self.size(0, first.shape.len() - 1);
        let (mut parts, mut along) = (vec![format!("t{x}")], first.shape[axis]);
        for _ in 0..self.size(0, 3) {
            let alike = |t: &Tensor| {
                let mut shape = first.shape.clone();
                shape[axis] = t.shape.get(axis).copied().unwrap_or(0);
                *t == first.of(&shape)
            };
            let Some(part) = self.find(alike) else { return };
            parts.push(format!("t{part}"));
            along += self.tensors[part].shape[axis];
        }
        let mut shape = first.shape.clone();
        shape[axis] = along;
        if first.of(&shape).len() <= LARGEST {
            self.then("concatenate", first.of(&shape), json!({"parts": parts, "axis": axis}));
        }
    }

    fn pool(&mut self, op: &str) {
        let Some(x) = self.find(|t| t.scale.is_some() && t.shape.len() == 3) else { return };
        let input = self.tensors[x].clone();
        let whole = self.size(0, 3) == 3;
        let [rows, columns] = [input.shape[0], input.shape[1]].map(|n| {
            let kernel = if whole { n } else { self.size(1, 5) };
            if whole { [n, 1, 1, 0, 0, 1] } else { self.axis(n, kernel, true) }
        });
        let shape = [rows[5], columns[5], input.shape[2]];
        let own = op == "average_pool2d" && self.size(0, 1) == 1;
        let output = if own { self.tensor(&shape, input.dtype) } else { input.of(&shape) };
        self.then(
            op,
            output,
            json!({
                "input": format!("t{x}"), "kernel": [rows[0], columns[0]], "stride": [rows[1], columns[1]],
                "padding": [[rows[3], rows[4]], [columns[3], columns[4]]],
            }),
        );
    }

    /// What moves codes.
    fn moved(&mut self, op: &str) {
        let Some(x) = self.find(|_| true) else { return };
        let input = self.tensors[x].clone();
        let (mut shape, name) = (input.shape.clone(), format!("t{x}"));
        match op {
            "reshape" => {
                match self.size(0, 2) {
                    0 => shape = vec![input.len()],
                    1 => shape.reverse(),
                    _ => {}
                }
                self.then(op, input.of(&shape), json!({"input": name}));
            }
            "pad" => {
                let padding: Vec<_> = shape.iter().map(|_| [self.size(0, 2), self.size(0, 2)]).collect();
                shape.iter_mut().zip(&padding).for_each(|(n, p)| *n += p[0] + p[1]);
                if input.of(&shape).len() <= LARGEST {
                    self.then(op, input.of(&shape), json!({"input": name, "padding": padding}));
                }
            }
            _ => {
                let begin: Vec<_> = shape.iter().map(|n| self.size(0, n - 1)).collect();
                let step: Vec<_> = shape.iter().map(|_| self.size(1, 3)).collect();
                for (n, (begin, step)) in shape.iter_mut().zip(begin.iter().zip(&step)) {
                    *n = (*n - begin).div_ceil(*step);
                }
                self.then(op, input.of(&shape), json!({"input": name, "begin": begin, "step": step}));
            }
        }
    }

    /// What happens to codes one by one.
    fn simple(&mut self, op: &str) {
        let found = self.find(|t| match op {
            "quantize" => t.dtype == "float32",
            "softmax" => t.scale.is_some() && !t.shape.is_empty(),
            _ => t.scale.is_some(),
        });
        let Some(x) = found else { return };
        let (input, mut fields) = (self.tensors[x].clone(), json!({"input": format!("t{x}")}));
        let dtype = self.pick(&["int8", "uint8"]);
        let output = match op {
            "softmax" => {
                let least = if input.dtype == "int8" { -128 } else { 0 };
                Tensor { scale: Some(1.0 / 256.0), zero_point: least, ..input }
            }
            "dequantize" => self.tensor(&input.shape, "float32"),
            "table" => {
                let output = if self.size(0, 1) == 0 { input } else { self.tensor(&input.shape, dtype) };
                fields["table"] = json!(self.constant(&[256], output.dtype, 0));
                output
            }
            _ => self.tensor(&input.shape, dtype),
        };
        self.then(op, output, fields);
    }

    fn graph(&mut self) -> Value {
        let inputs = self.size(1, 2);
        for i in 0..inputs {
            // An image, most often, and whatever else.
            let image = i == 0 && self.size(0, 7) > 0;
            let axes = if image { 3 } else { self.pick(&[3, 3, 1, 0, 4]) };
            let dtype =
                if image { self.pick(&["int8", "uint8"]) } else { self.pick(&["int8", "uint8", "float32", "int32"]) };
            let shape: Vec<_> = (0..axes).map(|axis| self.size(1, if axis == 2 { 40 } else { 9 })).collect();
            let input = self.tensor(&shape, dtype);
            self.tensors.push(input);
        }
        let states = self.size(0, 5).saturating_sub(3);
        for _ in 0..states {
            // What an operation may write, or what nothing else does.
            let x = self.size(0, inputs - 1);
            let (shape, dtype) = (self.tensors[x].shape.clone(), self.pick(&["int8", "uint8", "float32"]));
            let state = if self.size(0, 1) == 0 { self.tensor(&shape, dtype) } else { self.tensors[x].clone() };
            self.tensors.push(state);
        }
        for _ in 0..self.size(1, 14) {
            match self.size(0, 17) {
                0..=3 => self.conv(),
                4 => self.linear(),
                5..=7 => self.both(false),
                8 => self.both(true),
                9 => self.concatenate(),
                10 => self.pool("average_pool2d"),
                11 => self.pool("max_pool2d"),
                12..=13 => self.moved("reshape"),
                14 => self.moved("pad"),
                15 => self.moved("slice"),
                _ => {
                    let op = self.pick(&["quantize", "dequantize", "table", "softmax"]);
                    self.simple(op);
                }
            }
        }
        let mut outputs = vec![format!("t{}", self.tensors.len() - 1)];
        for _ in 0..self.size(0, 2) {
            outputs.push(format!("t{}", self.size(0, self.tensors.len() - 1)));
        }
        let kept = |i: usize| {
            let state = self.tensors[i].clone();
            let written = self.find(|t| *t == state).unwrap_or(i);
            json!({"read": format!("t{i}"), "write": format!("t{written}")})
        };
        let states: Value = (inputs..inputs + states).map(kept).collect();
        let tensors = self.tensors.iter().enumerate().map(|(i, t)| {
            json!({"name": format!("t{i}"), "shape": t.shape, "dtype": t.dtype, "scale": t.scale, "zero_point": t.zero_point})
        });
        json!({
            "version": 1, "tensors": tensors.collect::<Value>(), "constants": self.constants, "outputs": outputs,
            "operations": self.operations, "states": states, "inputs": (0..inputs).map(|i| format!("t{i}")).collect::<Value>(),
        })
    }

    /// Something of the graph becomes something else.
    fn twist(&mut self, at: &mut Value) {
        let last = match at {
            Value::Array(all) => all.len(),
            Value::Object(all) => all.len(),
            _ => 0,
        };
        if last > 0 && !self.rarely() {
            let which = self.size(0, last - 1);
            return match at {
                Value::Array(all) => self.twist(&mut all[which]),
                Value::Object(all) => self.twist(all.values_mut().nth(which).unwrap()),
                _ => {}
            };
        }
        let others = [
            json!(0),
            json!(1),
            json!(2),
            json!(3),
            json!(-1),
            json!(127),
            json!(-128),
            json!(255),
            json!(1 << 20),
            json!(i32::MAX),
            json!(i32::MIN),
            json!(u32::MAX),
            json!(1u64 << 31),
            json!(i64::MAX),
            json!(u64::MAX),
            json!(0.5),
            json!(1e-12),
            json!(1e12),
            json!(1e-45),
            json!(1e300),
            json!(null),
            json!([]),
            json!([1, 1]),
            json!("t0"),
            json!("t1"),
            json!("t2"),
            json!("c0"),
            json!("int8"),
            json!("uint8"),
            json!("int32"),
            json!("float32"),
            json!("fixed_point"),
            json!("power_of_two"),
        ];
        *at = self.pick(&others);
    }
}

/// `len` bytes that follow from a seed.
fn bytes(len: usize, seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    (0..len).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u8
    })
}

/// Elements of a dtype: numbers that are finite, and sums that fit.
fn data(len: usize, dtype: Dtype, seed: u64, halved: bool) -> Vec<u8> {
    let all = bytes(len, seed);
    match dtype {
        Dtype::Float32 => all.flat_map(|byte| ((f32::from(byte) - 120.0) * 0.1).to_le_bytes()).collect(),
        Dtype::Int32 => all.flat_map(|byte| (i32::from(byte as i8) << 12).to_le_bytes()).collect(),
        _ if halved => all.map(|byte| (byte as i8 / 2) as u8).collect(),
        _ => all.collect(),
    }
}

/// Runs some samples on every instruction set. `sure` if nothing is wrong with the graph.
fn run(graph: &Graph, seed: u64, off: isize, sure: bool) {
    let constants = graph.constants.iter().map(|c| c.shape.iter().product());
    if graph.tensors.iter().map(|t| t.len()).chain(constants).sum::<usize>() > ELEMENTS {
        return;
    }
    const SAMPLES: usize = 3;
    let mut constants: Vec<Vec<u8>> = (graph.constants.iter().zip(seed..))
        .map(|(c, seed)| data(c.shape.iter().product(), c.dtype, seed, seed % 2 == 0))
        .collect();
    if let Some(last) = constants.last_mut() {
        last.resize(last.len().saturating_add_signed(off), 1);
    }
    let wrong = off != 0 && !constants.is_empty();
    let constants: Vec<&[u8]> = constants.iter().map(|c| &c[..]).collect();
    let (mut planned, mut first) = (None, None);
    for &isa in Isa::available() {
        let network = Network::new(graph, &constants, isa);
        assert!(network.is_err() || !wrong, "a constant of another size is refused");
        assert_eq!(*planned.get_or_insert(network.is_ok()), network.is_ok(), "{}: {network:?}", isa.name());
        let Ok(network) = network else { continue };
        if network.memory().0 > MEMORY || network.products() > PRODUCTS {
            return;
        }
        let inputs: Vec<_> = network.inputs().iter().map(|t| data(SAMPLES * t.len(), t.dtype, seed, false)).collect();
        let inputs: Vec<&[u8]> = inputs.iter().map(|x| &x[..]).collect();
        for threads in [1, 2] {
            let mut own: Vec<_> = network.outputs().map(|t| vec![0x55; SAMPLES * t.len() * t.dtype.size()]).collect();
            let mut outputs: Vec<_> = own.iter_mut().map(|y| &mut y[..]).collect();
            let ctl = Ctl::new(threads);
            let result = match &graph.states[..] {
                [] => network.run(SAMPLES, &inputs, &mut outputs, &ctl),
                _ => network
                    .stream()
                    .and_then(|mut stream| network.advance(&mut stream, SAMPLES, &inputs, &mut outputs, &ctl)),
            };
            assert!(result.is_ok() || !sure, "{}: {result:?}", isa.name());
            let got = result.is_ok().then_some(own);
            assert!(*first.get_or_insert_with(|| got.clone()) == got, "{} on {threads} threads", isa.name());
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&way, rest)) = data.split_first() else { return };
    if way == 0 {
        if let Ok(graph) = Graph::from_json(&String::from_utf8_lossy(rest)) {
            run(&graph, 1, 0, false);
        }
        return;
    }
    // Short inputs make large graphs too: what they lack follows from what they have.
    let seed = rest.iter().fold(0, |seed: u64, &byte| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let rest: Vec<u8> = rest.iter().copied().chain(bytes(1500, seed)).collect();
    let (tensors, constants, operations) = (Vec::new(), Vec::new(), Vec::new());
    let mut maker = Maker { u: Unstructured::new(&rest), tensors, constants, operations, fits: true };
    let off = if maker.rarely() { 1 } else { 0 };
    let mut made = maker.graph();
    // Most graphs are as they were made, or have one thing wrong.
    for _ in 0..maker.size(0, 5).saturating_sub(3) {
        maker.twist(&mut made);
        maker.fits = false;
    }
    let mut text = made.to_string().into_bytes();
    if maker.rarely() {
        let at = maker.size(0, text.len() - 1);
        text[at] = maker.u.arbitrary().unwrap_or(b' ');
        maker.fits = false;
    }
    match Graph::from_json(&String::from_utf8_lossy(&text)) {
        Ok(graph) => run(&graph, seed, off, maker.fits),
        Err(error) => assert!(!maker.fits, "{error}\n{made}"),
    }
});
