//! Convolutions of any sizes, weights and roundings are refused or have the same results on every
//! instruction set, in exactly the scratch memory that they ask for.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use lowbit_kernels::Isa;
use lowbit_kernels::conv::{AddCodes, Conv2d, Finish, Kind, Out, Requantize, Rule, Shape, To, Weight};

/// Products, and elements of scratch memory, that do not keep the fuzzer waiting.
const PRODUCTS: usize = 1 << 20;
const SCRATCH: usize = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Axis {
    size: u8,
    kernel: u8,
    stride: u8,
    dilation: u8,
    padding: [u8; 2],
    /// Steps between taps of 2 to this power instead.
    far: Option<u8>,
}

#[derive(Arbitrary, Debug)]
enum Ends {
    Sums,
    Floats(f32),
    Float32(f32),
    FixedPoint(i32, i8),
    PowerOfTwo(i8),
}

#[derive(Arbitrary, Debug)]
struct Case {
    axes: [Axis; 2],
    depth: u8,
    per_group: u8,
    groups: u8,
    depthwise: bool,
    /// A size that becomes any number at all.
    wild: Option<(u8, usize)>,
    kinds: [(bool, i16); 2],
    bias: i32,
    ends: Ends,
    zero_point: i16,
    bounds: [i16; 2],
    add: Option<([f32; 3], [i8; 3], bool)>,
    /// Elements that are there beyond, or short of, what the shape takes: weights, biases, scales.
    off: [i8; 3],
    /// Weights within ±63.
    halved: bool,
    fill: Vec<u8>,
}

impl Case {
    fn shape(&self) -> Shape {
        let axis = |i: usize| {
            let axis = &self.axes[i];
            let (size, kernel) = (usize::from(axis.size) % 20, usize::from(axis.kernel) % 6);
            let near = 1 + usize::from(axis.dilation) % 3;
            let dilation = axis.far.map_or(near, |power| 1 << (power % 40));
            let mut padding = axis.padding.map(|p| usize::from(p) % 6);
            // Most kernels lie within the padded image.
            let reach = kernel.saturating_sub(1).saturating_mul(dilation);
            padding[1] += if axis.padding[1] < 240 { reach.saturating_sub(size + padding[0]) } else { 0 };
            (size, kernel, usize::from(axis.stride) % 4, dilation, padding)
        };
        let (rows, columns) = (axis(0), axis(1));
        let (depth, per_group) = (usize::from(self.depth) % 70, usize::from(self.per_group) % 70);
        let groups = if depth < 20 { 1 + usize::from(self.groups) % 4 } else { 1 };
        let (depth, per_group, groups) = if self.depthwise { (1, 1, 1 + depth) } else { (depth, per_group, groups) };
        let mut shape = Shape {
            input: [rows.0, columns.0, groups * depth],
            filters: groups * per_group,
            kernel: [rows.1, columns.1],
            stride: [rows.2, columns.2],
            dilation: [rows.3, columns.3],
            padding: [rows.4, columns.4],
            groups,
        };
        if let Some((which, value)) = self.wild {
            let [top, left] = &mut shape.padding;
            let all = shape.input.iter_mut().chain([&mut shape.filters, &mut shape.groups]);
            let all = all.chain(&mut shape.kernel).chain(&mut shape.stride).chain(&mut shape.dilation);
            let mut all: Vec<_> = all.chain(top).chain(left).collect();
            let which = usize::from(which) % all.len();
            *all[which] = value;
        }
        shape
    }

    fn to(&self, filters: usize) -> To {
        let off = self.off[2];
        let add = self.add.and_then(|(scales, zero_points, signed)| {
            let bounds = (self.bounds[0].into(), self.bounds[1].into());
            AddCodes::new(scales, zero_points.map(i32::from), bounds, signed).ok()
        });
        let floats = |multiplier: f32| self.one_each(filters, off, |i| multiplier * (1.0 + f32::from(i)));
        let rule = match self.ends {
            Ends::Sums => return To::Sums,
            Ends::Floats(multiplier) => return To::Floats(floats(multiplier)),
            Ends::Float32(multiplier) => Rule::Float32(floats(multiplier)),
            Ends::FixedPoint(multiplier, shift) => {
                let each = |i| (multiplier ^ i32::from(i) << 20, i32::from(shift) - i32::from(i));
                Rule::FixedPoint(self.one_each(filters, off, each))
            }
            Ends::PowerOfTwo(shift) => {
                Rule::PowerOfTwo(self.one_each(filters, off, |i| i32::from(shift) - i32::from(i)))
            }
        };
        let [qmin, qmax] = self.bounds.map(i32::from);
        To::Codes(Requantize { rule, zero_point: self.zero_point.into(), qmin, qmax, add })
    }

    /// One for each filter, and some more or fewer; for no more filters than there can be weights.
    fn one_each<T>(&self, filters: usize, off: i8, of: impl Fn(u8) -> T) -> Vec<T> {
        let count = filters.min(PRODUCTS).saturating_add_signed(off.into());
        (0..count).map(|filter| of((filter % 7) as u8)).collect()
    }

    /// `len` bytes that differ, from the given ones.
    fn bytes(&self, len: usize) -> Vec<u8> {
        let all = self.fill.iter().copied().cycle().chain(std::iter::repeat(0x80)).take(len);
        all.enumerate().map(|(i, byte)| byte.wrapping_add((i * i / 7) as u8)).collect()
    }
}

/// Elements and products, where they do not keep the fuzzer waiting.
fn sizes(shape: &Shape) -> Option<[usize; 3]> {
    let fits = |factors: &[usize]| factors.iter().try_fold(1usize, |n, &f| n.checked_mul(f)).filter(|&n| n <= PRODUCTS);
    let depth = shape.input[2].checked_div(shape.groups)?;
    let weights = fits(&[shape.filters, shape.kernel[0], shape.kernel[1], depth])?;
    let outputs = fits(&shape.output().unwrap_or([1; 3]))?;
    fits(&[outputs, shape.kernel[0], shape.kernel[1], depth])?;
    Some([fits(&shape.input)?, weights, outputs])
}

fuzz_target!(|case: Case| {
    let shape = case.shape();
    let _ = shape.products();
    let [input, weight] = case.kinds.map(|(signed, zero_point)| Kind { signed, zero_point: zero_point.into() });
    let Some([inputs, weights, outputs]) = sizes(&shape) else {
        let finish = Finish { bias: Vec::new(), to: To::Sums };
        assert!(Conv2d::new(shape, Weight { codes: &[], kind: weight }, input, finish, Isa::best()).is_err());
        return;
    };
    let mut codes = case.bytes(weights.saturating_add_signed(case.off[0].into()));
    if case.halved {
        codes.iter_mut().for_each(|code| *code = (*code as i8 / 2) as u8);
    }
    let bias = case.one_each(shape.filters, case.off[1], |i| case.bias ^ i32::from(i));
    let (x, other) = (case.bytes(inputs), case.bytes(outputs));
    let mut first = None;
    for &isa in Isa::available() {
        let finish = Finish { bias: bias.clone(), to: case.to(shape.filters) };
        let conv = Conv2d::new(shape.clone(), Weight { codes: &codes, kind: weight }, input, finish, isa);
        let Ok(conv) = conv else {
            assert!(first.get_or_insert(None).is_none(), "refused on {} alone: {conv:?}", isa.name());
            continue;
        };
        if conv.scratch_len() > SCRATCH {
            return;
        }
        let mut scratch = vec![0x5555; conv.scratch_len()];
        let (mut codes, mut words) = (vec![0; outputs], vec![0; outputs]);
        let out = match case.to(shape.filters) {
            To::Sums => Out::Sums(&mut words),
            To::Floats(_) => Out::Floats(bits_mut(&mut words)),
            To::Codes(requantize) => Out::Codes(&mut codes, requantize.add.is_some().then_some(&other)),
        };
        conv.run(&x, out, &mut scratch).unwrap();
        let got = Some((codes, words));
        assert!(*first.get_or_insert_with(|| got.clone()) == got, "{} {shape:?}", isa.name());
    }
});

/// Floats whose bits are compared: a sum times a finite number is no NaN.
fn bits_mut(words: &mut [i32]) -> &mut [f32] {
    // SAFETY: of one size and alignment, and any bits are a float.
    unsafe { &mut *(words as *mut [i32] as *mut [f32]) }
}
