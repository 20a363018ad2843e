//! 32 numbers at a time with AVX2: every step is compared with all of them, and those below are counted.

use std::arch::x86_64::*;

use super::codes;
use crate::Isa;

/// Numbers in a block.
const BLOCK: usize = 32;

/// As `codes::count` for at most 255 steps.
pub(super) fn count(isa: Isa, x: &[f32], steps: &[f32], codes: &mut [u8]) -> bool {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { blocks(x, steps, codes) }
}

#[target_feature(enable = "avx2")]
fn blocks(x: &[f32], steps: &[f32], codes: &mut [u8]) -> bool {
    let (xs, rest) = x.as_chunks::<BLOCK>();
    let (outs, out) = codes.as_chunks_mut::<BLOCK>();
    let (plus, infinite) = (_mm256_set1_epi32(0x7fff_ffff), _mm256_set1_epi32(0x7f80_0000 - 1));
    let mut wrong = _mm256_setzero_si256();
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (x, out) in xs.iter().zip(outs) {
        let x = load(x);
        let mut below = [_mm256_setzero_si256(); 4];
        for &step in steps {
            let step = _mm256_set1_ps(step);
            for i in 0..4 {
                let less = _mm256_cmp_ps::<_CMP_LT_OQ>(step, x[i]);
                below[i] = _mm256_sub_epi32(below[i], _mm256_castps_si256(less));
            }
        }
        for x in x {
            let magnitude = _mm256_and_si256(_mm256_castps_si256(x), plus);
            wrong = _mm256_or_si256(wrong, _mm256_cmpgt_epi32(magnitude, infinite));
        }
        let words = (_mm256_packus_epi32(below[0], below[1]), _mm256_packus_epi32(below[2], below[3]));
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words.0, words.1), order);
        store(bytes, out);
    }
    let good = _mm256_testz_si256(wrong, wrong) == 1;
    codes::count(rest, steps, out) && good
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[f32; BLOCK]) -> [__m256; 4] {
    // SAFETY: the array has 32 elements, of which each load reads eight.
    [0, 8, 16, 24].map(|i| unsafe { _mm256_loadu_ps(x.as_ptr().add(i)) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(bytes: __m256i, out: &mut [u8; BLOCK]) {
    // SAFETY: the array has the 32 bytes that are stored.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) }
}
