use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::prelude::*;

use super::*;

/// Widths of both element types.
const WIDTHS: RangeInclusive<u32> = 1..=16;

/// Codes that use every bit, the same on every run.
fn codes(count: usize, nbits: u32, seed: u64) -> Vec<u16> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u16 & (u16::MAX >> (16 - nbits))
    };
    (0..count).map(next).collect()
}

/// FORMATS.md, word for word: a row is an integer in little-endian bytes, here
/// bit by bit.
fn by_the_book(codes: &[u16], n: usize, nbits: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for row in codes.chunks(n.max(1)) {
        let start = bytes.len();
        bytes.resize(start + (n * nbits as usize).div_ceil(8), 0);
        for j in 0..n * nbits as usize {
            let bit = row[j / nbits as usize] >> (j % nbits as usize) & 1;
            bytes[start + j / 8] |= (bit as u8) << (j % 8);
        }
    }
    bytes
}

const CANARY: u8 = 0xa5;

/// Packs and unpacks on `isa`, at `offset` bytes or elements into the buffers;
/// asserts the bytes, the round trip, and that nothing around them was written.
fn check_case<C: Code + PartialEq + Debug + From<u8>>(
    codes: &[C],
    packed: &[u8],
    (rows, n, nbits): (usize, usize, u32),
    offset: usize,
    isa: Isa,
    threads: usize,
) {
    let ctl = Ctl::new(threads);
    let case = || format!("{} rows={rows} n={n} nbits={nbits} offset={offset} threads={threads}", isa.name());
    let shifted: Vec<C> = vec![C::from(0); offset].into_iter().chain(codes.iter().copied()).collect();
    let mut bytes = vec![CANARY; offset + packed.len() + 64];
    let end = offset + packed.len();
    pack(&shifted[offset..], rows, n, nbits, &mut bytes[offset..end], isa, &ctl).unwrap();
    assert!(bytes[offset..end] == *packed, "pack {}", case());
    assert!(bytes[..offset].iter().chain(&bytes[end..]).all(|&b| b == CANARY), "pack wrote outside, {}", case());

    let mut out = vec![C::from(CANARY); offset + codes.len() + 64];
    let to = offset + codes.len();
    let tight = bytes[..end].to_vec(); // no room after it, for the sanitizers
    unpack(&tight[offset..], rows, n, nbits, &mut out[offset..to], isa, &ctl).unwrap();
    assert!(out[offset..to] == *codes, "unpack {}", case());
    assert!(out[..offset].iter().chain(&out[to..]).all(|&c| c == C::from(CANARY)), "unpack wrote outside, {}", case());
}

/// [`check_case`] with the element type that `nbits` asks for.
fn check_any(codes: &[u16], packed: &[u8], shape: (usize, usize, u32), offset: usize, isa: Isa, threads: usize) {
    if shape.2 <= 8 {
        let narrow: Vec<u8> = codes.iter().map(|&c| c as u8).collect();
        check_case(&narrow, packed, shape, offset, isa, threads);
    } else {
        check_case(codes, packed, shape, offset, isa, threads);
    }
}

/// Counts cases by instruction set, and prints them: a path that ran none would
/// otherwise pass unseen.
struct Ran(&'static str, BTreeMap<&'static str, usize>);

impl Ran {
    fn new(test: &'static str) -> Ran {
        Ran(test, BTreeMap::new())
    }

    fn on(&mut self, isa: Isa) {
        *self.1.entry(isa.name()).or_default() += 1;
    }
}

impl Drop for Ran {
    fn drop(&mut self) {
        println!("packing {}: cases by instruction set {:?}", self.0, self.1);
        let all = Isa::available().iter().all(|isa| self.1.get(isa.name()).is_some_and(|&n| n > 0));
        assert!(all || std::thread::panicking());
    }
}

#[test]
fn the_examples_of_formats_md() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../FORMATS.md")).unwrap();
    let section = text.split("\n## ").find(|s| s.starts_with("Packed codes")).unwrap();
    let mut ran = Ran::new("examples");
    for line in section.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let &[_, nbits, rows, bytes, _] = &cells[..] else { continue };
        let Ok(nbits) = nbits.parse::<u32>() else { continue };
        let rows: Vec<Vec<u16>> =
            rows.split('/').map(|r| r.split_whitespace().map(|c| c.parse().unwrap()).collect()).collect();
        let hex = |b: &str| u8::from_str_radix(b, 16).unwrap();
        let bytes: Vec<u8> = bytes.split(['/', ' ']).filter(|b| !b.is_empty()).map(hex).collect();
        for &isa in Isa::available() {
            check_any(&rows.concat(), &bytes, (rows.len(), rows[0].len(), nbits), 0, isa, 1);
            ran.on(isa);
        }
    }
    assert!(ran.1.values().all(|&n| n >= 16));
}

#[test]
fn every_small_size() {
    let mut ran = Ran::new("small sizes");
    for nbits in WIDTHS {
        for n in 0..=200 {
            for rows in [0, 1, 3] {
                let codes = codes(rows * n, nbits, n as u64);
                let packed = by_the_book(&codes, n, nbits);
                for &isa in Isa::available() {
                    check_any(&codes, &packed, (rows, n, nbits), 0, isa, 1);
                    ran.on(isa);
                }
            }
        }
    }
}

#[test]
fn every_alignment() {
    let mut ran = Ran::new("alignments");
    for nbits in WIDTHS {
        for n in [1024, 1100, 2051] {
            let codes = codes(n, nbits, 7);
            let packed = by_the_book(&codes, n, nbits);
            for offset in 0..=65 {
                for &isa in Isa::available() {
                    check_any(&codes, &packed, (1, n, nbits), offset, isa, 1);
                    ran.on(isa);
                }
            }
        }
    }
}

#[test]
fn tasks_and_threads() {
    let mut ran = Ran::new("tasks and threads");
    // One row that is cut, rows that are cut with padding, groups of rows, and
    // rows that make one long row.
    for (rows, n) in
        [(1, TASK), (1, TASK + 1), (1, 3 * TASK + 77), (3, TASK + 5), (2, TASK - 1), (30_000, 7), (50_000, 8)]
    {
        for nbits in WIDTHS {
            let codes = codes(rows * n, nbits, 3);
            let packed = by_the_book(&codes, n, nbits);
            for &isa in Isa::available() {
                for threads in [1, 2, 7] {
                    check_any(&codes, &packed, (rows, n, nbits), 0, isa, threads);
                    ran.on(isa);
                }
            }
        }
    }
}

#[test]
fn past_the_caches() {
    let mut ran = Ran::new("past the caches");
    let n = STREAM + 1003;
    for nbits in 1..=8 {
        let codes = codes(n, nbits, 11);
        let packed = by_the_book(&codes, n, nbits);
        for &isa in Isa::available() {
            for offset in [0, 3, 8] {
                check_any(&codes, &packed, (1, n, nbits), offset, isa, 2);
                ran.on(isa);
            }
        }
    }
}

#[test]
fn the_first_wide_code_is_named() {
    let mut ran = Ran::new("wide codes");
    for nbits in [1, 2, 3, 4, 5, 6, 7, 9, 12, 15] {
        for (rows, n) in [(1, 1), (1, 64), (1, 130), (5, 13), (1, 1100), (2, TASK + 5)] {
            let last = rows * n - 1;
            for at in [0, last / 3, last / 2, last] {
                for bad in [1u16 << nbits, if nbits < 8 { 0xff } else { 0xffff }] {
                    let mut codes = codes(rows * n, nbits, 5);
                    codes[at] = bad;
                    codes[last] = codes[last].max(bad); // a later one as well
                    let want = format!(
                        "codes: expected values below 2^{nbits} = {}, got {bad} at flat index {at}",
                        1u32 << nbits
                    );
                    let narrow: Vec<u8> = codes.iter().map(|&c| c as u8).collect();
                    let mut out = vec![0; rows * packed_len(n, nbits).unwrap()];
                    for &isa in Isa::available() {
                        let got = if nbits <= 8 {
                            pack(&narrow, rows, n, nbits, &mut out, isa, &Ctl::new(2))
                        } else {
                            pack(&codes, rows, n, nbits, &mut out, isa, &Ctl::new(2))
                        };
                        assert_eq!(got, Err(Error::Value(want.clone())), "{}", isa.name());
                        ran.on(isa);
                    }
                }
            }
        }
    }
}

#[test]
fn set_padding_is_refused() {
    let mut ran = Ran::new("padding");
    for nbits in WIDTHS {
        for (rows, n) in [(1, 1), (4, 3), (3, 131), (9000, 9)] {
            let used = n * nbits as usize % 8;
            let each = packed_len(n, nbits).unwrap();
            for bit in used..8 {
                if used == 0 {
                    continue;
                }
                let row = rows - 1 - (bit % rows).min(1);
                let mut packed = by_the_book(&codes(rows * n, nbits, 1), n, nbits);
                packed[(row + 1) * each - 1] |= 1 << bit;
                for &isa in Isa::available() {
                    let got = if nbits <= 8 {
                        unpack(&packed, rows, n, nbits, &mut vec![0u8; rows * n], isa, &Ctl::new(2))
                    } else {
                        unpack(&packed, rows, n, nbits, &mut vec![0u16; rows * n], isa, &Ctl::new(2))
                    };
                    let end = format!("at the end of row {row}");
                    assert!(matches!(&got, Err(Error::Value(m)) if m.ends_with(&end)), "{got:?}");
                    ran.on(isa);
                }
            }
        }
    }
}

#[test]
fn lengths_and_widths_are_checked() {
    let ctl = Ctl::new(1);
    let says = |r: Result<()>, what: &str| assert!(matches!(&r, Err(Error::Value(m)) if m.starts_with(what)), "{r:?}");
    says(pack(&[0u8; 7], 1, 8, 4, &mut [0; 4], Isa::best(), &ctl), "codes:");
    says(pack(&[0u8; 8], 1, 8, 4, &mut [0; 5], Isa::best(), &ctl), "out:");
    says(unpack(&[0; 3], 1, 8, 4, &mut [0u8; 8], Isa::best(), &ctl), "packed:");
    says(unpack(&[0; 4], 1, 8, 4, &mut [0u8; 9], Isa::best(), &ctl), "out:");
    for nbits in [0, 9, 17, u32::MAX] {
        says(pack(&[0u8; 8], 1, 8, nbits, &mut [0; 8], Isa::best(), &ctl), "nbits:");
    }
    says(pack(&[0u16; 8], 1, 8, 8, &mut [0; 8], Isa::best(), &ctl), "nbits:");
    says(pack::<u8>(&[], usize::MAX, usize::MAX, 8, &mut [], Isa::best(), &ctl), "n:");
    says(pack::<u8>(&[], usize::MAX, 1 << 40, 8, &mut [], Isa::best(), &ctl), "codes:");
    assert_eq!(pack::<u8>(&[], usize::MAX, 0, 8, &mut [], Isa::best(), &ctl), Ok(()));
    assert_eq!(pack::<u8>(&[], 0, usize::MAX / 4, 3, &mut [], Isa::best(), &ctl), Ok(()));
}

#[test]
fn a_stop_ends_the_call() {
    let stop = || true;
    let (codes, mut out) = (vec![0u8; 4 * TASK], vec![0; 2 * TASK]);
    for threads in [1, 2] {
        let ctl = Ctl::with(threads, false, &stop);
        assert_eq!(pack(&codes, 1, codes.len(), 4, &mut out, Isa::best(), &ctl), Err(Error::Interrupted));
    }
}

proptest! {
    #[test]
    fn any_shape(rows in 0usize..40, n in 0usize..700, nbits in WIDTHS, offset in 0usize..70, threads in 1usize..8, seed: u64) {
        let codes = codes(rows * n, nbits, seed);
        let packed = by_the_book(&codes, n, nbits);
        for &isa in Isa::available() {
            check_any(&codes, &packed, (rows, n, nbits), offset, isa, threads);
        }
    }
}
