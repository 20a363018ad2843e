//! Codes come back from every instruction set's bytes, which are the same; bytes
//! from anywhere are refused or give back themselves.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use lowbit_kernels::packing::{Code, pack, packed_len, unpack};
use lowbit_kernels::{Ctl, Isa};

#[derive(Arbitrary, Debug)]
struct Case {
    nbits: u8,
    rows: u8,
    n: u16,
    threads: u8,
    fill: Vec<u8>,
}

fn round_trips<C: Code + Default + PartialEq + std::fmt::Debug>(case: &Case, nbits: u32, code: impl Fn(u16) -> C) {
    let (rows, n) = (case.rows as usize % 9, case.n as usize % 3000);
    let ctl = Ctl::new(case.threads as usize % 4);
    let given = |i: usize| case.fill.get(i % case.fill.len().max(1)).copied().unwrap_or(0);
    let row = packed_len(n, nbits).unwrap();
    let mask = u16::MAX >> (16 - nbits);
    let codes: Vec<C> =
        (0..rows * n).map(|i| code(u16::from_le_bytes([given(2 * i), given(2 * i + 1)]) & mask)).collect();
    let bytes: Vec<u8> = (0..rows * row).map(given).collect();

    let (mut first, mut first_read) = (None, None);
    for &isa in Isa::available() {
        let mut packed = vec![0; rows * row];
        pack(&codes, rows, n, nbits, &mut packed, isa, &ctl).unwrap();
        let mut back = vec![C::default(); rows * n];
        unpack(&packed, rows, n, nbits, &mut back, isa, &ctl).unwrap();
        assert_eq!(back, codes, "{nbits} bits on {}", isa.name());
        assert_eq!(*first.get_or_insert_with(|| packed.clone()), packed, "{nbits} bits on {}", isa.name());

        let read = unpack(&bytes, rows, n, nbits, &mut back, isa, &ctl);
        if read.is_ok() {
            pack(&back, rows, n, nbits, &mut packed, isa, &ctl).unwrap();
            assert_eq!(packed, bytes, "{nbits} bits on {}", isa.name());
        }
        assert_eq!(*first_read.get_or_insert_with(|| read.clone()), read, "{nbits} bits on {}", isa.name());

        // Any code may come: those that are too large are named, none is written beyond `out`.
        let wild: Vec<C> = (0..rows * n).map(|i| code(u16::from_le_bytes([given(i), given(i + 1)]))).collect();
        let _ = pack(&wild, rows, n, nbits, &mut packed, isa, &ctl);
    }
}

fuzz_target!(|case: Case| {
    match u32::from(case.nbits % 16) + 1 {
        nbits @ ..=8 => round_trips::<u8>(&case, nbits, |x| x as u8),
        nbits => round_trips::<u16>(&case, nbits, |x| x),
    }
});
