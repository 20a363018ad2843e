//! Bytes that are mostly 0.

use crate::lanes::{Lanes, on_isa};

/// Runs a block for the place and the value of each byte that is not 0, in order. A macro, since a
/// closure would not be compiled for the instruction set of the function that it is in.
macro_rules! for_spiking {
    ($lanes:expr, $bytes:expr, |$at:ident, $count:ident| $body:block) => {
        let bytes: &[u8] = $bytes;
        let (blocks, rest) = bytes.as_chunks::<64>();
        let mut last = [0; 64];
        last[..rest.len()].copy_from_slice(rest);
        for b in 0..blocks.len() + usize::from(!rest.is_empty()) {
            let block = if b < blocks.len() { &blocks[b] } else { &last };
            let mut some = $lanes.some_of(block);
            while some != 0 {
                let i = some.trailing_zeros() as usize;
                let ($at, $count) = (64 * b + i, block[i % 64]);
                $body
                some &= some - 1;
            }
        }
    };
}

/// As [`for_spiking`], for fewer bytes than it looks at together, without their values.
macro_rules! for_few {
    ($bytes:expr, |$at:ident| $body:block) => {
        let bytes: &[u8] = $bytes;
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for i in 0..words.len() + usize::from(!rest.is_empty()) {
            let mut word = u64::from_le_bytes(if i < words.len() { words[i] } else { last });
            while word != 0 {
                let shift = word.trailing_zeros() & !7;
                let $at = 8 * i + shift as usize / 8;
                $body
                word &= !(0xff << shift);
            }
        }
    };
}

pub(super) use {for_few, for_spiking};

on_isa! {
    /// How many bytes are not 0.
    ///
    /// ```
    /// use lowbit_kernels::{Isa, spiking::count_spikes};
    /// assert_eq!(count_spikes(&[1, 0, 3], Isa::best()), 2);
    /// ```
    pub fn count_spikes(bytes: &[u8]) -> usize = count_in;

    /// The greatest byte, 0 of none.
    ///
    /// ```
    /// use lowbit_kernels::{Isa, spiking::greatest_count};
    /// assert_eq!(greatest_count(&[1, 0, 3], Isa::best()), 3);
    /// ```
    pub fn greatest_count(bytes: &[u8]) -> u8 = greatest_in;
}

#[inline(always)]
fn count_in<L: Lanes>(_: L, bytes: &[u8]) -> usize {
    const LANES: usize = 64;
    let mut total = 0;
    // A lane counts to 255.
    for part in bytes.chunks(LANES * 255) {
        let mut lanes = [0u8; LANES];
        let (blocks, rest) = part.as_chunks::<LANES>();
        for block in blocks {
            for i in 0..LANES {
                lanes[i] = lanes[i].wrapping_add(u8::from(block[i] != 0));
            }
        }
        total += lanes.iter().map(|&x| usize::from(x)).sum::<usize>();
        total += rest.iter().filter(|&&x| x != 0).count();
    }
    total
}

#[inline(always)]
fn greatest_in<L: Lanes>(_: L, bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |most, &x| most.max(x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn any_number_of_bytes_is_counted() {
        for len in [0, 1, 63, 64, 65, 200, 64 * 255, 64 * 255 + 1, 40_000] {
            let bytes: Vec<u8> = (0..len).map(|i| if i % 7 < 2 { 0 } else { (i % 251) as u8 }).collect();
            let some = bytes.iter().filter(|&&x| x != 0).count();
            let most = bytes.iter().copied().max().unwrap_or(0);
            let mut seen = vec![];
            for_spiking!(crate::lanes::Scalar, &bytes, |at, count| {
                seen.push((at, count));
            });
            assert!(seen.iter().copied().eq(bytes.iter().copied().enumerate().filter(|&(_, x)| x != 0)));
            let mut few = vec![];
            for_few!(&bytes, |at| {
                few.push(at);
            });
            assert!(few.into_iter().eq(seen.iter().map(|&(at, _)| at)));
            for &isa in Isa::available() {
                assert_eq!(
                    (count_spikes(&bytes, isa), greatest_count(&bytes, isa)),
                    (some, most),
                    "{} {len}",
                    isa.name()
                );
                assert_eq!(count_spikes(&vec![9; len], isa), len);
            }
        }
    }
}
