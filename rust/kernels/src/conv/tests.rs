use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::affine::{Floats, Levels, RowScale, quantize_rows};
use crate::error::Error;

/// The same bytes on every run.
fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u8
    };
    (0..count).map(next).collect()
}

fn cases() -> u32 {
    std::env::var("LOWBIT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

/// A convolution's sums by the book: every tap of every window, without a word of the kernels' code.
fn by_the_book(shape: &Shape, x: &[u8], input: Kind, w: &[u8], weight: Kind, bias: &[i32]) -> Vec<i32> {
    let [oh, ow, filters] = shape.output().unwrap();
    let [h, width, channels] = shape.input.map(|n| n as isize);
    let depth = channels / shape.groups as isize;
    let mut sums = Vec::new();
    for (oy, ox, f) in
        (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))).flat_map(|(y, x)| (0..filters).map(move |f| (y, x, f)))
    {
        let group = (f / (filters / shape.groups)) as isize;
        let mut sum = i64::from(bias[f]);
        for (i, j) in (0..shape.kernel[0]).flat_map(|i| (0..shape.kernel[1]).map(move |j| (i, j))) {
            let y = (oy * shape.stride[0] + i * shape.dilation[0]) as isize - shape.padding[0][0] as isize;
            let x0 = (ox * shape.stride[1] + j * shape.dilation[1]) as isize - shape.padding[1][0] as isize;
            if y < 0 || y >= h || x0 < 0 || x0 >= width {
                continue;
            }
            for c in 0..depth {
                let a = input.value(x[((y * width + x0) * channels + group * depth + c) as usize]);
                let at = ((f * shape.kernel[0] + i) * shape.kernel[1] + j) as isize * depth + c;
                sum += i64::from(a) * i64::from(weight.value(w[at as usize]));
            }
        }
        sums.push(i32::try_from(sum).unwrap());
    }
    sums
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (-128..=127i32).prop_map(|zero_point| Kind { signed: true, zero_point }),
        (0..=255i32).prop_map(|zero_point| Kind { signed: false, zero_point }),
        Just(Kind { signed: true, zero_point: 0 }),
        Just(Kind { signed: true, zero_point: -128 }),
    ]
}

/// Of weights: often such that they fit a byte without their zero point.
fn weights() -> impl Strategy<Value = Kind> {
    prop_oneof![kinds(), Just(Kind { signed: true, zero_point: 0 }), Just(Kind { signed: false, zero_point: 128 }),]
}

prop_compose! {
    fn shapes()(
        depthwise in prop::bool::weighted(0.3),
        groups in prop_oneof![4 => Just(1usize), 1 => 2..4usize],
        depth in prop_oneof![3 => 1..9usize, 1 => 9..40usize],
        channels in 1..70usize,
        per_group in prop_oneof![3 => 1..20usize, 1 => 20..70usize, 1 => (1..5usize).prop_map(|n| 16 * n)],
        kernel in prop::array::uniform2(1..6usize),
        stride in prop::array::uniform2(1..4usize),
        dilation in prop::array::uniform2(prop_oneof![3 => Just(1usize), 1 => 2..4usize]),
        padding in prop::array::uniform2(prop::array::uniform2(0..4usize)),
        more in prop::array::uniform2(0..15usize),
        padded in prop::bool::ANY,
        square in prop::bool::weighted(0.25),
        wide in prop::bool::weighted(0.3),
        alone in prop::bool::weighted(0.15),
    ) -> Shape {
        if alone {
            // One window, the image itself, and filters of several panels: some, or full ones.
            let input = [kernel[0], kernel[1], if padded { depth } else { 4 * depth }];
            let filters = if wide { 128 * (1 + channels % 3) } else { 4 * per_group + channels };
            return Shape { kernel, ..plain(input, filters, 1) };
        }
        // Several vectors of channels, of which the last is full or not.
        let channels = if depthwise && wide { channels + 60 } else { channels };
        let (groups, depth, per_group) = if depthwise { (channels, 1, 1) } else { (groups, depth, per_group) };
        let padding = if padded { padding } else { [[0; 2]; 2] };
        // Windows of 3×3, side by side, of enough channels to be transformed, or depthwise ones.
        let (kernel, dilation) = if square { ([3; 2], [1; 2]) } else { (kernel, dilation) };
        let stride = if square && !depthwise { [1; 2] } else { stride };
        let (groups, depth, per_group) =
            if square && !depthwise { (1, depth + channels / 2, per_group + 7) } else { (groups, depth, per_group) };
        let size = |axis: usize| {
            let reach = (kernel[axis] - 1) * dilation[axis] + 1;
            reach.saturating_sub(padding[axis].iter().sum()).max(1) + more[axis]
        };
        Shape {
            input: [size(0), size(1), groups * depth], filters: groups * per_group,
            kernel, stride, dilation, padding, groups,
        }
    }
}

fn rules(filters: usize, seed: u64) -> Vec<Rule> {
    let noise = bytes(filters, seed);
    let scale = |n: u8| 0.3 / f32::from(n).mul_add(40.0, 80.0);
    vec![
        Rule::Float32(noise.iter().map(|&n| scale(n)).collect()),
        Rule::FixedPoint(noise.iter().map(|&n| ((1 << 30) + (i32::from(n) << 21), i32::from(n % 32) - 24)).collect()),
        Rule::PowerOfTwo(noise.iter().map(|&n| i32::from(n % 32) - 24).collect()),
        // Products beyond int32.
        Rule::Float32(noise.iter().map(|&n| (f32::from(n) - 100.0) / 16.0).collect()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Sums, floats and codes, with and without an addition, on every instruction set.
    #[test]
    fn convolutions_equal_the_definition(
        shape in shapes(), input in kinds(), weight in weights(), seed in any::<u64>(), which in 0..4usize,
        bounds in prop::sample::select(vec![(-3, -128, 101), (5, 0, 255), (-128, -128, 127), (20, 20, 90)]),
    ) {
        let [oh, ow, filters] = shape.output().unwrap();
        let count = oh * ow * filters;
        let x = bytes(shape.input.iter().product(), seed);
        let w = bytes(filters * shape.kernel[0] * shape.kernel[1] * shape.depth(), seed ^ 1);
        let other = bytes(count, seed ^ 2);
        let bias: Vec<i32> = bytes(filters, seed ^ 3).iter().map(|&b| (i32::from(b) - 128) * 30).collect();
        let sums = by_the_book(&shape, &x, input, &w, weight, &bias);
        let rule = rules(filters, seed)[which].clone();
        let add = if bounds.1 < 0 {
            AddCodes::new([0.25, 0.75, 0.5], [3, -5, 7], (-128, 120), true)
        } else {
            AddCodes::new([0.75, 0.25, 0.5], [130, 200, 90], (40, 255), false)
        }
        .unwrap();
        for &isa in Isa::available() {
            let made = |to: To| {
                let finish = Finish { bias: bias.clone(), to };
                Conv2d::new(shape.clone(), Weight { codes: &w, kind: weight }, input, finish, isa).unwrap()
            };
            let name = isa.name();
            let conv = made(To::Sums);
            // Exactly what was asked for: the sanitizers see a read beyond it.
            let mut scratch = vec![0x5555i16; conv.scratch_len()];
            let mut out = vec![0; count];
            conv.run(&x, Out::Sums(&mut out), &mut scratch).unwrap();
            prop_assert!(out == sums, "{} sums {:?}", name, shape);

            let multiplier: Vec<f32> = bytes(filters, seed).iter().map(|&b| f32::from(b) * 0.001).collect();
            let mut floats = vec![0.0; count];
            made(To::Floats(multiplier.clone())).run(&x, Out::Floats(&mut floats), &mut scratch).unwrap();
            let expected: Vec<f32> = sums.iter().enumerate().map(|(i, &s)| s as f32 * multiplier[i % filters]).collect();
            prop_assert!(floats == expected, "{} floats {:?}", name, shape);

            for add in [None, Some(add)] {
                let (zero_point, qmin, qmax) = bounds;
                let requantize = Requantize { rule: rule.clone(), zero_point, qmin, qmax, add };
                let mut codes = vec![0; count];
                let others = add.map(|_| &other[..]);
                made(To::Codes(requantize.clone())).run(&x, Out::Codes(&mut codes, others), &mut scratch).unwrap();
                let expected: Vec<u8> = sums.iter().enumerate()
                    .map(|(i, &s)| requantize.code(s, i % filters, others.map(|o| o[i]))).collect();
                prop_assert!(codes == expected, "{} codes {:?} {:?}", name, shape, requantize);
            }
        }
    }

    /// The rounding rules at the ends of what sums can be, where a convolution seldom gets.
    #[test]
    fn rules_hold_for_any_sum(
        sums in prop::collection::vec(any::<i32>(), 1..100), seed in any::<u64>(), which in 0..4usize, signed in any::<bool>(),
    ) {
        let filters = sums.len();
        let rule = rules(filters, seed)[which].clone();
        let (zero_point, qmin, qmax) = if signed { (-101, -128, 127) } else { (5, 0, 255) };
        let requantize = Requantize { rule, zero_point, qmin, qmax, add: None };
        let half = i32::MAX / 2;
        let bias: Vec<i32> = sums.iter().map(|&s| s.clamp(-half, half)).collect();
        let shape = Shape {
            input: [1, 1, 1], filters, kernel: [1, 1], stride: [1, 1], dilation: [1, 1], padding: [[0; 2]; 2], groups: 1,
        };
        let kind = Kind { signed: true, zero_point: 0 };
        for &isa in Isa::available() {
            let finish = Finish { bias: bias.clone(), to: To::Codes(requantize.clone()) };
            let weight = Weight { codes: &vec![0; filters], kind };
            let conv = Conv2d::new(shape.clone(), weight, kind, finish, isa).unwrap();
            let (mut scratch, mut codes) = (vec![0; conv.scratch_len()], vec![0; filters]);
            conv.run(&[1], Out::Codes(&mut codes, None), &mut scratch).unwrap();
            let expected: Vec<u8> = bias.iter().enumerate().map(|(i, &s)| requantize.code(s, i, None)).collect();
            prop_assert_eq!(codes, expected, "{}", isa.name());
        }
    }

    #[test]
    fn pools_equal_their_definition(
        input in (1..20usize, 1..20usize, 1..80usize), kernel in prop::array::uniform2(1..6usize),
        stride in prop::array::uniform2(1..4usize), pad in prop::array::uniform2(prop::array::uniform2(0..5usize)),
        kind in kinds(), seed in any::<u64>(),
    ) {
        let input = [input.0, input.1, input.2];
        let kernel = [kernel[0].min(input[0]), kernel[1].min(input[1])];
        let padding = [0, 1].map(|axis| pad[axis].map(|p| p.min(kernel[axis] - 1)));
        let window = Window { input, kernel, stride, padding };
        let size = window.output().unwrap();
        let x = bytes(input.iter().product(), seed);
        let bounds = if kind.signed { (-100, 90) } else { (3, 250) };
        let (mut means, mut maxima, mut rescaled) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..size.iter().product() {
            let (y, column, c) = (at / size[2] / size[1], at / size[2] % size[1], at % size[2]);
            let mut seen = Vec::new();
            for (i, j) in (0..kernel[0]).flat_map(|i| (0..kernel[1]).map(move |j| (i, j))) {
                let row = (y * stride[0] + i) as isize - padding[0][0] as isize;
                let col = (column * stride[1] + j) as isize - padding[1][0] as isize;
                if (0..input[0] as isize).contains(&row) && (0..input[1] as isize).contains(&col) {
                    seen.push(kind.code(x[(row as usize * input[1] + col as usize) * input[2] + c]));
                }
            }
            let mean = f64::from(seen.iter().sum::<i32>()) / seen.len() as f64;
            means.push((mean.round() as i32).clamp(bounds.0, bounds.1) as u8);
            let sum = seen.iter().map(|code| code - kind.zero_point).sum::<i32>();
            let mean = sum as f32 * (0.7 / seen.len() as f32);
            rescaled.push((mean.round_ties_even() as i32 + 4).clamp(bounds.0, bounds.1) as u8);
            maxima.push((*seen.iter().max().unwrap()).clamp(bounds.0, bounds.1) as u8);
        }
        for &isa in Isa::available() {
            let mut out = vec![0; means.len()];
            average_pool(&x, &window, &Means { kind, bounds, rescale: None }, &mut out, isa).unwrap();
            prop_assert!(out == means, "{} means {:?}", isa.name(), window);
            average_pool(&x, &window, &Means { kind, bounds, rescale: Some((0.7, 4)) }, &mut out, isa).unwrap();
            prop_assert!(out == rescaled, "{} rescaled means {:?}", isa.name(), window);
            max_pool(&x, &window, kind, bounds, &mut out, isa).unwrap();
            prop_assert!(out == maxima, "{} maxima {:?}", isa.name(), window);
        }
    }

    #[test]
    fn additions_and_quantizing_equal_their_definition(
        count in 0..100usize, kind in kinds(), other in kinds(), seed in any::<u64>(), scales in prop::array::uniform3(0.01f32..1.0),
    ) {
        let (a, b) = (bytes(count, seed), bytes(count, seed ^ 1));
        let codes = AddCodes::new(scales, [kind.zero_point, other.zero_point, 3], (-128, 127), kind.signed).unwrap();
        let expected: Vec<u8> = a.iter().zip(&b).map(|(&a, &b)| codes.of(kind.code(a), kind.code(b)) as u8).collect();
        let multiplier = scales[0] * scales[1] / scales[2];
        let product = Multiply { kinds: [kind, other], multiplier, zero_point: 3, qmin: -100, qmax: 127 };
        let products: Vec<u8> = a.iter().zip(&b).map(|(&a, &b)| {
            let product = (kind.value(a) * other.value(b)) as f32 * multiplier;
            (product.round_ties_even() as i32).saturating_add(3).clamp(-100, 127) as u8
        }).collect();
        let floats: Vec<f32> = a.iter().zip(&b).map(|(&a, &b)| (f32::from(a) - 128.0) * (f32::from(b) - 100.0) * 0.01).collect();
        let floats: Vec<f32> = floats.into_iter().chain([3e38, -3e38]).collect();
        let mut scalar = vec![0; floats.len()];
        quantize(&floats, scales[0], kind, &mut scalar, Isa::Scalar).unwrap();
        for &isa in Isa::available() {
            let mut out = vec![0; count];
            add(&a, &b, &codes, &mut out, isa).unwrap();
            prop_assert_eq!(&out, &expected, "{}", isa.name());
            if count > 0 {
                multiply(&a, &b, &product, &mut out, isa).unwrap();
                prop_assert_eq!(&out, &products, "{}", isa.name());
            }
            let mut out = vec![0; floats.len()];
            quantize(&floats, scales[0], kind, &mut out, isa).unwrap();
            prop_assert_eq!(&out, &scalar, "{}", isa.name());
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut floats = floats.clone();
                floats[count / 2] = bad;
                let refused = quantize(&floats, scales[0], kind, &mut out, isa);
                prop_assert!(matches!(refused, Err(Error::Value(text)) if text.contains("finite")));
            }
        }
    }
}

#[test]
fn every_instruction_set_ran() {
    // The tests above loop over these; a path that is not among them ran no case.
    let ran: BTreeMap<_, _> = Isa::available().iter().map(|isa| (isa.name(), cases())).collect();
    println!("conv: cases of each property by instruction set: {ran:?}");
}

fn plain(input: [usize; 3], filters: usize, kernel: usize) -> Shape {
    Shape { input, filters, kernel: [kernel; 2], stride: [1; 2], dilation: [1; 2], padding: [[0; 2]; 2], groups: 1 }
}

/// Images and weights of many bands or blocks of rows, also where a band is of the image itself.
#[test]
fn many_bands_are_the_book() {
    let shapes = [
        plain([40, 40, 32], 20, 3),
        Shape { stride: [2, 3], ..plain([60, 50, 16], 70, 1) },
        Shape { padding: [[1; 2]; 2], ..plain([40, 30, 32], 33, 3) },
        plain([11, 11, 512], 150, 3),
        Shape { stride: [2; 2], padding: [[0, 1]; 2], groups: 100, ..plain([60, 60, 100], 100, 3) },
        // Rows that no block has more than one of.
        Shape { padding: [[1; 2]; 2], groups: 96, ..plain([4, 2800, 96], 96, 3) },
    ];
    for (shape, signed) in shapes.iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let (x, input) = (bytes(shape.input.iter().product(), 1), Kind { signed, zero_point: 3 });
        let codes = bytes(shape.filters * shape.kernel[0] * shape.kernel[1] * shape.depth(), 2);
        let (kind, bias) = (Kind { signed: true, zero_point: 0 }, vec![7; shape.filters]);
        let expected = by_the_book(shape, &x, input, &codes, kind, &bias);
        let rule = Rule::Float32(vec![0.003; shape.filters]);
        let requantize = Requantize { rule, zero_point: 7, qmin: 0, qmax: 255, add: None };
        let each = expected.iter().enumerate();
        let expected_codes: Vec<u8> = each.map(|(i, &s)| requantize.code(s, i % shape.filters, None)).collect();
        let rounded = Finish { bias: bias.clone(), to: To::Codes(requantize) };
        for &isa in &Isa::available()[1..] {
            let finish = Finish { bias: bias.clone(), to: To::Sums };
            let conv = Conv2d::new(shape.clone(), Weight { codes: &codes, kind }, input, finish, isa).unwrap();
            let mut sums = vec![0; expected.len()];
            conv.sums(1, &x, &mut sums, &Ctl::new(1)).unwrap();
            assert!(sums == expected, "{shape:?}, {input:?}, {}", isa.name());
            let conv = Conv2d::new(shape.clone(), Weight { codes: &codes, kind }, input, rounded.clone(), isa).unwrap();
            let (mut scratch, mut got) = (vec![0; conv.scratch_len()], vec![0; expected.len()]);
            conv.run(&x, Out::Codes(&mut got, None), &mut scratch).unwrap();
            assert!(got == expected_codes, "{shape:?}, {input:?}, {}", isa.name());
        }
    }
}

/// Depthwise rows of many tiles and blocks, of channels that fill a vector and that do not.
#[test]
fn wide_depthwise_rows_are_the_book() {
    let forms =
        [([3, 3], 1), ([3, 3], 2), ([2, 3], 1), ([2, 3], 2), ([5, 5], 1), ([5, 5], 2), ([1, 5], 1), ([4, 1], 1)];
    for (i, width) in [1, 3, 5, 24, 29, 47, 53, 97].into_iter().enumerate() {
        for (j, channels) in [9, 16, 17, 32, 33, 64, 65, 100, 144].into_iter().enumerate() {
            let (kernel, stride) = forms[(i + j) % forms.len()];
            let input = [6, width, channels];
            let padding = [[1, 2], [kernel[1] / 2, kernel[1] / 2]];
            let shape = Shape { groups: channels, kernel, stride: [stride; 2], padding, ..plain(input, channels, 1) };
            let (x, w) = (bytes(input.iter().product(), 1), bytes(channels * kernel[0] * kernel[1], 2));
            let kind = Kind { signed: i % 2 == 0, zero_point: 3 };
            let (weight, bias) = (Kind { signed: true, zero_point: 0 }, vec![7; channels]);
            let sums = by_the_book(&shape, &x, kind, &w, weight, &bias);
            let other = bytes(sums.len(), 4);
            let add = AddCodes::new([0.25, 0.75, 0.5], [3, -5, 7], (-128, 120), true).unwrap();
            for (rule, add) in rules(channels, 5).into_iter().flat_map(|rule| [(rule.clone(), None), (rule, Some(add))])
            {
                let requantize = Requantize { rule, zero_point: -3, qmin: -128, qmax: 101, add };
                let others = add.map(|_| &other[..]);
                let each = sums.iter().enumerate();
                let expected: Vec<u8> =
                    each.map(|(i, &s)| requantize.code(s, i % channels, others.map(|o| o[i]))).collect();
                for &isa in Isa::available() {
                    let finish = Finish { bias: bias.clone(), to: To::Codes(requantize.clone()) };
                    let weight = Weight { codes: &w, kind: weight };
                    let conv = Conv2d::new(shape.clone(), weight, kind, finish, isa).unwrap();
                    let (mut scratch, mut codes) = (vec![0; conv.scratch_len()], vec![0; sums.len()]);
                    conv.run(&x, Out::Codes(&mut codes, others), &mut scratch).unwrap();
                    assert!(codes == expected, "{shape:?}, {requantize:?}, {}", isa.name());
                }
            }
        }
    }
}

#[test]
fn bytes_hold_the_largest_products() {
    let shapes = [
        Shape { padding: [[1; 2]; 2], groups: 70, ..plain([5, 6, 70], 70, 3) },
        Shape { padding: [[1; 2]; 2], ..plain([5, 6, 100], 70, 3) },
        Shape { stride: [2, 1], padding: [[0, 1], [1, 0]], ..plain([7, 6, 3], 20, 2) },
        Shape { dilation: [1, 2], groups: 2, ..plain([4, 9, 10], 34, 2) },
        plain([5, 9, 40], 33, 1),
        Shape { stride: [2, 3], ..plain([5, 9, 64], 5, 1) },
        plain([1, 1, 2048], 130, 1),
    ];
    let inputs = [(255, false, 0), (0, false, 255), (0, false, 0), (0x7f, true, -128), (0x80, true, 127)];
    for (shape, (byte, signed, zero_point)) in shapes.iter().flat_map(|shape| inputs.map(|input| (shape, input))) {
        let (x, input) = (vec![byte; shape.input.iter().product()], Kind { signed, zero_point });
        let count = shape.filters * shape.kernel[0] * shape.kernel[1] * shape.depth();
        let bias: Vec<i32> = (0..shape.filters as i32).collect();
        for (code, signed, zero_point) in [(0x80, true, 0), (0x7f, true, 0), (0, false, 128), (255, false, 127)] {
            let (codes, kind) = (vec![code; count], Kind { signed, zero_point });
            let expected = by_the_book(shape, &x, input, &codes, kind, &bias);
            for &isa in Isa::available() {
                let finish = Finish { bias: bias.clone(), to: To::Sums };
                let conv = Conv2d::new(shape.clone(), Weight { codes: &codes, kind }, input, finish, isa).unwrap();
                // Weights of 128 do not fit.
                let fits = isa.has_avx512() && zero_point != 127;
                let of_bytes = matches!(*conv.filter, Filter::Quads(_) | Filter::DepthwiseQuads(_));
                assert_eq!(of_bytes, fits, "{shape:?}, {}", isa.name());
                let mut sums = vec![0; expected.len()];
                conv.sums(1, &x, &mut sums, &Ctl::new(1)).unwrap();
                assert_eq!(sums, expected, "{shape:?}, {input:?}, {kind:?}, {}", isa.name());
            }
        }
    }
}

#[test]
fn rounded_images_are_codes_times_scales() {
    let kind = Kind { signed: false, zero_point: 0 };
    // Tiled, Winograd, depthwise of one pixel and of several in a vector, a single window.
    let shapes = [
        (plain([5, 6, 3], 4, 3), 0),
        (plain([9, 8, 16], 16, 3), 0),
        (plain([7, 6, 16], 16, 3), 1),
        (plain([7, 8, 4], 4, 3), 1),
        (plain([1, 1, 40], 10, 1), 0),
    ];
    for (i, (shape, depthwise)) in shapes.into_iter().enumerate() {
        let groups = if depthwise == 1 { shape.filters } else { 1 };
        let padding = if shape.kernel == [1, 1] { [[0; 2]; 2] } else { [[1, 1], [0, 1]] };
        let shape = Shape { groups, padding, ..shape };
        let (image, taps) = (shape.input.iter().product::<usize>(), shape.kernel[0] * shape.kernel[1] * shape.depth());
        let w: Vec<u8> = bytes(shape.filters * taps, i as u64).iter().map(|&b| (b as i8).max(-127) as u8).collect();
        // One image of both signs, one without negatives, one with an infinity.
        let mut x: Vec<f32> = bytes(3 * image, 7).iter().map(|&b| f32::from(b as i8) / 37.0).collect();
        x[image..].iter_mut().for_each(|x| *x = x.abs());
        x[2 * image] = f32::INFINITY;
        let scale: Vec<f32> = (0..shape.filters).map(|f| 0.01 + f as f32 / 300.0).collect();
        let bias: Vec<f32> = (0..shape.filters).map(|f| f as f32 - 1.5).collect();
        let weight = Weight { codes: &w, kind: Kind { signed: true, zero_point: 0 } };
        for nbits in [2, 6, 8] {
            let levels = Levels::new(nbits, false, false).unwrap();
            let mut expected: Vec<f32> = Vec::new();
            for x in x.chunks(image).take(2) {
                let (mut codes, mut row, mut sum) = (vec![0; image], [RowScale::default()], [0]);
                quantize_rows(
                    Floats::F32(x),
                    image,
                    &levels,
                    image,
                    &mut codes,
                    &mut row,
                    &mut sum,
                    Isa::Scalar,
                    &Ctl::new(1),
                )
                .unwrap();
                let input = Kind { signed: false, zero_point: row[0].zero_point.into() };
                let sums = by_the_book(&shape, &codes, input, &w, weight.kind, &vec![0; shape.filters]);
                let each = sums.iter().enumerate();
                expected.extend(each.map(|(at, &sum)| {
                    sum as f32 * (row[0].scale * scale[at % shape.filters]) + bias[at % shape.filters]
                }));
            }
            let count = expected.len() / 2;
            expected.resize(3 * count, f32::NAN);
            for &isa in Isa::available() {
                let finish = Finish { bias: vec![0; shape.filters], to: To::Sums };
                let conv = Conv2d::new(shape.clone(), weight, kind, finish, isa).unwrap();
                for threads in [1, 2, 7] {
                    let mut got = vec![0.0; 3 * count];
                    conv.rounded(3, &x, &levels, None, [&scale, &bias], &mut got, isa, &Ctl::new(threads)).unwrap();
                    let bits = |all: &[f32]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&got), bits(&expected), "shape {i}, {nbits} bits, {}", isa.name());
                }
            }
        }
    }
}

/// Codes with feedback by the book: each error looked up where it is, none outside of the image.
fn fed_back(
    x: &[f32],
    [h, w, c]: [usize; 3],
    coefficients: &[f32],
    [rows, columns]: [usize; 2],
    row: RowScale,
    most: f32,
) -> Vec<u8> {
    let (above, beside) = (rows as isize - 1, columns as isize / 2);
    let (mut errors, mut codes) = (vec![0f32; h * w * c], Vec::new());
    let zero_point = f32::from(row.zero_point);
    for (y, x0, channel) in
        (0..h).flat_map(|y| (0..w).map(move |x| (y, x))).flat_map(|(y, x)| (0..c).map(move |c| (y, x, c)))
    {
        let at = (y * w + x0) * c + channel;
        let mut sum = 0f32;
        for (i, j, from) in
            (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))).flat_map(|(i, j)| (0..c).map(move |c| (i, j, c)))
        {
            let (dy, dx) = (i as isize - above, j as isize - beside);
            if (dy, dx, from as isize - channel as isize) >= (0, 0, 0) {
                continue;
            }
            let (row, column) = (y as isize + dy, x0 as isize + dx);
            if row >= 0 && (0..w as isize).contains(&column) {
                let coefficient = coefficients[((channel * rows + i) * columns + j) * c + from];
                sum += coefficient * errors[(row as usize * w + column as usize) * c + from];
            }
        }
        let value = x[at] * (1.0 / row.scale);
        let steps = (value - sum).round_ties_even().clamp(-zero_point, most - zero_point);
        errors[at] = steps - value;
        codes.push((steps + zero_point) as u8);
    }
    codes
}

fn unit(count: usize, seed: u64) -> Vec<f32> {
    bytes(count, seed).iter().map(|&b| f32::from(b as i8) / 100.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn feedback_is_by_the_book(
        image in (1..6usize, prop_oneof![1..40usize, 60..140usize], 1..5usize), reach in (0..4usize, 0..4usize), nbits in 2..=8u32, seed: u64,
    ) {
        let (image, window) = ([image.0, image.1, image.2], [reach.0 + 1, 2 * reach.1 + 1]);
        let size = image.iter().product::<usize>();
        let coefficients = unit(image[2] * window[0] * window[1] * image[2], seed);
        let mut x = unit(3 * size, seed ^ 1);
        x[size..2 * size].iter_mut().for_each(|x| *x = x.abs() * 30.0);
        x[2 * size] = f32::NAN;
        let levels = Levels::new(nbits, false, false).unwrap();
        let feedback = Feedback::new(&coefficients, window, image).unwrap();
        for &isa in Isa::available() {
            for threads in [1, 3] {
                let (mut codes, mut rows) = (vec![1; 3 * size], vec![RowScale::default(); 3]);
                feedback.round(&x, &levels, &mut codes, &mut rows, isa, &Ctl::new(threads)).unwrap();
                for i in 0..2 {
                    let (these, mut plain) = (i * size..(i + 1) * size, vec![0; size]);
                    let (mut row, mut sum) = ([RowScale::default()], [0]);
                    let values = Floats::F32(&x[these.clone()]);
                    quantize_rows(values, size, &levels, size, &mut plain, &mut row, &mut sum, isa, &Ctl::new(1)).unwrap();
                    prop_assert_eq!((rows[i].scale, rows[i].zero_point), (row[0].scale, row[0].zero_point));
                    let most = (1 << nbits) as f32 - 1.0;
                    let expected = fed_back(&x[these.clone()], image, &coefficients, window, rows[i], most);
                    prop_assert_eq!(&codes[these], &expected[..], "image {}, {}", i, isa.name());
                }
                prop_assert!(rows[2].scale.is_nan() && codes[2 * size..].iter().all(|&code| code == 0));
            }
        }
    }
}

#[test]
fn convolutions_round_with_feedback() {
    // A column of pixels is taken as a row by the products, and must not be by the feedback.
    for image in [[5, 6, 3], [7, 1, 2]] {
        let shape = Shape { padding: [[1; 2]; 2], ..plain(image, 4, 3) };
        let (size, taps) = (image.iter().product::<usize>(), 9 * image[2]);
        let (kind, w) = (Kind { signed: false, zero_point: 0 }, bytes(4 * taps, 3));
        let weight = Weight { codes: &w, kind: Kind { signed: true, zero_point: 0 } };
        let (x, coefficients) = (unit(2 * size, 5), unit(image[2] * 3 * 5 * image[2], 6));
        let levels = Levels::new(6, false, false).unwrap();
        let feedback = Feedback::new(&coefficients, [3, 5], image).unwrap();
        let (mut codes, mut rows) = (vec![0; 2 * size], vec![RowScale::default(); 2]);
        feedback.round(&x, &levels, &mut codes, &mut rows, Isa::Scalar, &Ctl::new(1)).unwrap();
        let mut expected = Vec::new();
        for (codes, row) in codes.chunks(size).zip(&rows) {
            let input = Kind { signed: false, zero_point: row.zero_point.into() };
            let sums = by_the_book(&shape, codes, input, &w, weight.kind, &[0; 4]);
            expected.extend(sums.iter().map(|&sum| sum as f32 * row.scale));
        }
        for &isa in Isa::available() {
            let finish = Finish { bias: vec![0; 4], to: To::Sums };
            let conv = Conv2d::new(shape.clone(), weight, kind, finish, isa).unwrap();
            let (mut got, ends) = (vec![0.0; expected.len()], [&[1.0; 4][..], &[0.0; 4]]);
            conv.rounded(2, &x, &levels, Some(&feedback), ends, &mut got, isa, &Ctl::new(2)).unwrap();
            assert_eq!(got, expected, "{}", isa.name());
        }
    }
}

#[test]
fn feedback_that_does_not_fit_is_refused() {
    let refused = |coefficients: &[f32], window, image| {
        let error = Feedback::new(coefficients, window, image).unwrap_err();
        assert!(matches!(error, Error::Value(_)), "{error:?}");
    };
    refused(&[0.0; 2], [1, 2], [4, 4, 1]);
    refused(&[0.0; 5], [1, 3], [4, 4, 1]);
    refused(&[], [0, 3], [4, 4, 1]);
    refused(&[0.0; 3], [1, 3], [0, 4, 1]);
    refused(&[0.0, f32::NAN, 0.0], [1, 3], [4, 4, 1]);
    refused(&[0.0, 1e9, 0.0], [1, 3], [4, 4, 1]);
    refused(&[0.0; 3], [usize::MAX, 3], [4, 4, 1]);
    let feedback = Feedback::new(&[0.0; 3], [1, 3], [4, 4, 1]).unwrap();
    let levels = Levels::new(8, false, false).unwrap();
    let mut rows = [RowScale::default()];
    assert!(feedback.round(&[0.0; 15], &levels, &mut [0; 15], &mut rows, Isa::best(), &Ctl::new(1)).is_err());
}

#[test]
fn steps_that_nothing_takes_change_nothing() {
    let kind = Kind { signed: true, zero_point: 3 };
    let (x, w) = (bytes(2 * 5 * 16, 1), bytes(16 * 3 * 16, 2));
    for groups in [1, 16] {
        let w = &w[..16 * 3 * 16 / groups];
        let run = |stride: usize, dilation: usize, isa: Isa| {
            let shape = Shape { input: [2, 5, 16], filters: 16, groups, kernel: [1, 3], ..plain([1; 3], 1, 1) };
            let shape = Shape { stride: [stride, 1], dilation: [dilation, 1], padding: [[0, 1], [0, 0]], ..shape };
            let finish = Finish { bias: vec![0; 16], to: To::Sums };
            let conv = Conv2d::new(shape, Weight { codes: w, kind }, kind, finish, isa).unwrap();
            let mut sums = vec![0; conv.out.iter().product()];
            conv.sums(1, &x, &mut sums, &Ctl::new(1)).unwrap();
            sums
        };
        for &isa in Isa::available() {
            // One row of windows, one of taps: no step is too far.
            assert_eq!(run(1 << 62, usize::MAX, isa), run(1, 1, isa)[..3 * 16], "{groups} groups on {}", isa.name());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let kind = Kind { signed: true, zero_point: 0 };
    let sums = |filters: usize| Finish { bias: vec![0; filters], to: To::Sums };
    let made = |shape: Shape, codes: &[u8], finish| {
        Conv2d::new(shape, Weight { codes, kind }, kind, finish, Isa::best()).map(|_| ())
    };
    let refused = |result: Result<()>, word: &str| match result {
        Err(Error::Value(text)) => assert!(text.contains(word), "{text}"),
        other => panic!("{other:?}"),
    };
    refused(made(plain([2, 2, 1], 1, 3), &[0; 9], sums(1)), "padding");
    refused(made(plain([4, 4, 1], 1, 3), &[0; 8], sums(1)), "weight");
    refused(made(plain([4, 4, 1], 1, 3), &[0; 9], sums(2)), "bias");
    refused(made(plain([4, 4, 0], 1, 3), &[], sums(1)), "channel");
    refused(made(plain([4, 0, 1], 1, 3), &[0; 9], sums(1)), "at least 1");
    refused(made(Shape { groups: 2, ..plain([4, 4, 3], 2, 1) }, &[0; 6], sums(2)), "groups");
    refused(made(plain([usize::MAX / 2, 4, 3], 2, 1), &[0; 6], sums(2)), "padding");
    refused(made(plain([1 << 31, 1 << 31, 1 << 31], 2, 1), &[0; 6], sums(2)), "overflows");
    refused(made(plain([1, 1, 40_000], 1, 1), &[0; 40_000], sums(1)), "products");
    let huge = Finish { bias: vec![i32::MAX], to: To::Sums };
    refused(made(plain([1, 1, 1], 1, 1), &[1], huge), "bias");
    let nan = Finish { bias: vec![0], to: To::Floats(vec![f32::NAN]) };
    refused(made(plain([1, 1, 1], 1, 1), &[1], nan), "finite");
    let conv =
        Conv2d::new(plain([4, 4, 2], 3, 3), Weight { codes: &[1; 54], kind }, kind, sums(3), Isa::best()).unwrap();
    let mut scratch = vec![0; conv.scratch_len()];
    refused(conv.run(&[0; 31], Out::Sums(&mut [0; 12]), &mut scratch), "x");
    refused(conv.run(&[0; 32], Out::Sums(&mut [0; 11]), &mut scratch), "out");
    refused(conv.run(&[0; 32], Out::Floats(&mut [0.0; 12]), &mut scratch), "out");
    if let Some(short) = conv.scratch_len().checked_sub(1) {
        refused(conv.run(&[0; 32], Out::Sums(&mut [0; 12]), &mut scratch[..short]), "scratch");
    }
}
