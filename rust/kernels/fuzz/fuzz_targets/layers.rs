//! A layer whose weight in groups is bytes from anywhere behind a plausible header ends
//! without a panic, with the same bits on every instruction set and number of threads.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use lowbit_kernels::affine::Floats;
use lowbit_kernels::gemm::{Activation, After, Groups, Input, Layer, Output, Weight, groups_weight_len, linear};
use lowbit_kernels::{Ctl, Isa};

#[derive(Arbitrary, Debug)]
struct Case {
    m: u8,
    k: u16,
    n: u8,
    nbits: u8,
    group_size: u16,
    symmetric: u8,
    reach: u32,
    rotation: u8,
    inputs: u8,
    equalized: bool,
    x: Vec<f32>,
    fill: Vec<u8>,
}

fuzz_target!(|case: Case| {
    let (m, k, n) = (case.m as usize % 12, 1 + case.k as usize % 200, case.n as usize % 150);
    let (nbits, group_size) = (u32::from(case.nbits % 10), 8 * (u32::from(case.group_size) % 40));
    let Ok(groups) = Groups::new(nbits, group_size as usize, case.symmetric == 1) else { return };
    let len = groups_weight_len(k, n, groups, case.equalized).unwrap();
    let mut bytes: Vec<u8> = case.fill.iter().copied().cycle().chain(std::iter::repeat(0x5a)).take(len).collect();
    let rotation = if case.rotation == 0 { 0 } else { 1 << (case.rotation % 14) };
    let words = [nbits, group_size, case.symmetric.into(), case.reach, rotation, u32::from(case.inputs % 4)];
    bytes[..8].copy_from_slice(b"lowbit g");
    for (i, word) in words.into_iter().enumerate() {
        bytes[8 + 4 * i..12 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    let Ok(weight) = Weight::from_bytes(&bytes, k, n, None) else { return };
    let x: Vec<f32> = case.x.iter().copied().cycle().chain(std::iter::repeat(0.5)).take(m * k).collect();
    let layer = Layer { weight: &weight, bias: None, activation: Activation::Relu };
    let mut expected: Option<Vec<u32>> = None;
    for &isa in Isa::available() {
        for threads in [1, 3] {
            let mut y = vec![0f32; m * n];
            let (input, output) = (Input::Floats(Floats::F32(&x)), Output::F32(&mut y));
            linear(input, m, &layer, After::default(), output, isa, &Ctl::new(threads)).unwrap();
            // A NaN's bits differ.
            let bits: Vec<u32> = y.iter().map(|y| if y.is_nan() { u32::MAX } else { y.to_bits() }).collect();
            assert_eq!(*expected.get_or_insert(bits.clone()), bits, "{m} {k} {n} on {}", isa.name());
        }
    }
});
