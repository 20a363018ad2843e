//! Bytes that are mostly 0, eight at a time.

/// Runs a block for the place and the value of each byte that is not 0, in order. A macro, since a
/// closure would not be compiled for the instruction set of the function that it is in.
macro_rules! for_spiking {
    ($bytes:expr, |$at:ident, $count:ident| $body:block) => {
        let bytes: &[u8] = $bytes;
        let (blocks, rest) = bytes.as_chunks::<64>();
        let mut last = [0; 64];
        last[..rest.len()].copy_from_slice(rest);
        for b in 0..blocks.len() + 1 {
            let block = if b < blocks.len() { &blocks[b] } else { &last };
            let (words, _) = block.as_chunks::<8>();
            let word = |i: usize| u64::from_le_bytes(words[i]);
            // Most are silent.
            if (0..8).fold(0, |seen, i| seen | word(i)) == 0 {
                continue;
            }
            for i in 0..8 {
                let mut word = word(i);
                while word != 0 {
                    let shift = word.trailing_zeros() & !7;
                    let $at = 64 * b + 8 * i + shift as usize / 8;
                    let $count = (word >> shift) as u8;
                    $body
                    word &= !(0xff << shift);
                }
            }
        }
    };
}

/// As [`for_spiking`], for few bytes.
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

/// How many bytes are not 0.
///
/// ```
/// assert_eq!(lowbit_kernels::spiking::count_spikes(&[1, 0, 3]), 2);
/// ```
pub fn count_spikes(bytes: &[u8]) -> usize {
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
