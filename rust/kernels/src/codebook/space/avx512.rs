//! Scans of all tiles in integers.

use std::arch::asm;
use std::arch::x86_64::*;

use super::rough::{Found, Pair};
use crate::Isa;

/// [`Found`] of points, given `|c|²/2` of the codewords of each tile, and their pairs of coordinates.
pub(super) fn scan(isa: Isa, points: &[Pair], halves: &[[i32; 8]], pairs: &[[i32; 8]], found: &mut Found) {
    assert!(isa.has_avx512() && pairs.len() == halves.len() * points.len());
    // SAFETY: an `Isa` that has AVX-512 exists only where the CPU has it; the lengths fit.
    unsafe {
        match points.len() {
            1 => tiles::<1>(points, halves, pairs, found),
            2 => tiles::<2>(points, halves, pairs, found),
            4 => tiles::<4>(points, halves, pairs, found),
            8 => tiles::<8>(points, halves, pairs, found),
            _ => tiles::<0>(points, halves, pairs, found),
        }
    }
}

/// With PAIRS pairs of coordinates; 0 where they are not known.
///
/// # Safety
/// There are as many pairs of each tile as of the points.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tiles<const PAIRS: usize>(points: &[Pair], halves: &[[i32; 8]], pairs: &[[i32; 8]], found: &mut Found) {
    let count = if PAIRS > 0 { PAIRS } else { points.len() };
    let most = _mm512_set1_epi32(i32::MAX);
    let (mut scores, mut others, mut tiles) = ([most; 3], [most; 3], [_mm512_setzero_si512(); 3]);
    // SAFETY: the caller's promise.
    unsafe {
        for (tile, halves) in halves.iter().enumerate() {
            let pairs = pairs.as_ptr().add(tile * count);
            let mut low = [most; 3];
            // Compilers make two instructions of this one.
            macro_rules! dot {
                ($sum:expr, $a:expr, $b:expr) => {
                    asm!(
                        "vpdpwssd {sum}, {a}, {b}",
                        sum = inout(zmm_reg) $sum,
                        a = in(zmm_reg) $a,
                        b = in(zmm_reg) $b,
                        options(pure, nomem, nostack, preserves_flags),
                    )
                };
            }
            // Four codewords at a time: as many sums as hide how long a product takes.
            macro_rules! codewords {
                ($a:literal $b:literal $c:literal $d:literal) => {
                    let mut sums = [
                        [_mm512_set1_epi32(halves[$a]); 3],
                        [_mm512_set1_epi32(halves[$b]); 3],
                        [_mm512_set1_epi32(halves[$c]); 3],
                        [_mm512_set1_epi32(halves[$d]); 3],
                    ];
                    for j in 0..count {
                        let pair = &*pairs.add(j);
                        let codewords = [
                            _mm512_set1_epi32(pair[$a]),
                            _mm512_set1_epi32(pair[$b]),
                            _mm512_set1_epi32(pair[$c]),
                            _mm512_set1_epi32(pair[$d]),
                        ];
                        let point = points.as_ptr().add(j).cast::<__m512i>();
                        for p in 0..3 {
                            let point = _mm512_load_si512(point.add(p));
                            for c in 0..4 {
                                dot!(sums[c][p], point, codewords[c]);
                            }
                        }
                    }
                    for p in 0..3 {
                        let two = _mm512_min_epi32(sums[0][p], sums[1][p]);
                        low[p] =
                            _mm512_min_epi32(low[p], _mm512_min_epi32(two, _mm512_min_epi32(sums[2][p], sums[3][p])));
                    }
                };
            }
            codewords!(0 1 2 3);
            codewords!(4 5 6 7);
            let at = _mm512_set1_epi32(tile as i32);
            for p in 0..3 {
                let less = _mm512_cmplt_epi32_mask(low[p], scores[p]);
                others[p] = _mm512_min_epi32(others[p], _mm512_max_epi32(low[p], scores[p]));
                scores[p] = _mm512_min_epi32(low[p], scores[p]);
                tiles[p] = _mm512_mask_mov_epi32(tiles[p], less, at);
            }
        }
        for p in 0..3 {
            _mm512_store_si512(found.tiles[p].as_mut_ptr().cast(), tiles[p]);
            _mm512_store_si512(found.others[p].as_mut_ptr().cast(), others[p]);
        }
    }
}
