//! Products with tiled bytes from anywhere end without a panic; with those that
//! `from_kn` made, every instruction set has the sums of the definition.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use lowbit_kernels::gemm::{Lhs, Tiled, matmul_i32, tiled_len};
use lowbit_kernels::{Ctl, Isa};

#[derive(Arbitrary, Debug)]
struct Case {
    m: u8,
    k: u16,
    n: u8,
    signed: bool,
    threads: u8,
    /// Bytes that are there beyond, or short of, what the shape takes.
    off: i8,
    fill: Vec<u8>,
}

/// `len` bytes, the given ones again and again.
fn bytes(fill: &[u8], len: usize) -> Vec<u8> {
    fill.iter().copied().cycle().chain(std::iter::repeat(0x80)).take(len).collect()
}

fuzz_target!(|case: Case| {
    let (m, k, n) = (case.m as usize % 30, case.k as usize % 160, case.n as usize % 150);
    let ctl = Ctl::new(case.threads as usize % 4);
    let a = bytes(&case.fill, m * k);
    let a_signed: Vec<i8> = a.iter().map(|&x| x as i8).collect();
    let lhs = || if case.signed { Lhs::I8(&a_signed) } else { Lhs::U8(&a) };

    let len = tiled_len(k, n).unwrap();
    let hostile = Tiled::from_bytes(bytes(&case.fill, len.saturating_add_signed(case.off.into())), k, n);
    assert_eq!(hostile.is_ok(), case.off == 0 || len.saturating_add_signed(case.off.into()) == len);
    if let Ok(hostile) = hostile {
        for &isa in Isa::available() {
            matmul_i32(lhs(), m, &hostile, &mut vec![0; m * n], isa, &ctl).unwrap();
        }
        let mut codes = vec![0; n * k];
        hostile.untile_nk(&mut codes).unwrap();
    }

    let b: Vec<i8> = bytes(&case.fill, k * n + 1)[1..].iter().map(|&x| x as i8).collect();
    let tiled = Tiled::from_kn(&b, k, n).unwrap();
    let at = |i: usize| if case.signed { i32::from(a_signed[i]) } else { i32::from(a[i]) };
    let expected: Vec<i32> =
        (0..m * n).map(|i| (0..k).map(|j| at(i / n * k + j) * i32::from(b[j * n + i % n])).sum()).collect();
    for &isa in Isa::available() {
        let mut c = vec![0; m * n];
        matmul_i32(lhs(), m, &tiled, &mut c, isa, &ctl).unwrap();
        assert_eq!(c, expected, "{m} {k} {n} on {}", isa.name());
    }
});
