//! A matrix times a vector: `vpmaddubsw` of absolute values and of weights with
//! the elements' signs. Two products are at most 2 · 128 · 127 < 2^15.

use std::arch::x86_64::*;

use super::super::vector::{PANEL, Vector, columns};
use super::super::{Conv2d, Out};
use super::finish::finish;
use super::{BLOCK, ROW};

/// A convolution of one window.
pub(in super::super) fn run(conv: &Conv2d, vector: &Vector, x: &[u8], mut out: Out, scratch: &mut [i16]) {
    assert!(conv.isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { avx2(conv, vector, x, &mut out, bytemuck::cast_slice_mut(scratch)) };

    #[target_feature(enable = "avx2")]
    fn avx2(conv: &Conv2d, vector: &Vector, x: &[u8], out: &mut Out, scratch: &mut [u8]) {
        let (depth, filters) = (vector.depth, vector.filters);
        let (signs, rest) = scratch.split_at_mut(depth);
        let absolutes = &mut rest[..depth];
        split(x, if conv.input.signed { 0 } else { 0x80 }, signs, absolutes);
        let mut sums = [0; BLOCK * ROW];
        for first in (0..filters).step_by(sums.len()) {
            let count = (filters - first).min(sums.len());
            for (panel, sums) in sums[..count.next_multiple_of(PANEL)].chunks_exact_mut(PANEL).enumerate() {
                let filter = first + panel * PANEL;
                let weights = vector.weights.at(filter * depth, columns(filters - filter) * depth);
                let bias = &conv.finish.bias[filter..];
                match columns(filters - filter) {
                    32 => products::<4>(signs, absolutes, weights, bias, sums),
                    16 => products::<2>(signs, absolutes, weights, bias, sums),
                    _ => products::<1>(signs, absolutes, weights, bias, sums),
                }
            }
            finish(&conv.finish, filters, &sums, 1, 0, first, count, out);
        }
    }
}

/// The codes as int8, and their absolute values; 0 behind them.
#[target_feature(enable = "avx2")]
#[inline]
fn split(x: &[u8], flip: u8, signs: &mut [u8], absolutes: &mut [u8]) {
    for ((&x, sign), absolute) in x.iter().zip(&mut *signs).zip(&mut *absolutes) {
        *sign = x ^ flip;
        *absolute = (*sign as i8).unsigned_abs();
    }
    signs[x.len()..].fill(0);
    absolutes[x.len()..].fill(0);
}

/// The sums of V vectors of filters, from `bias` on.
#[target_feature(enable = "avx2")]
#[inline]
fn products<const V: usize>(signs: &[u8], absolutes: &[u8], weights: &[i8], bias: &[i32], sums: &mut [i32]) {
    let (bias, sums) = (&bias[..8 * V], &mut sums[..8 * V]);
    let (signs, absolutes) = (signs.as_chunks::<4>().0, absolutes.as_chunks::<4>().0);
    assert!(weights.len() == 32 * V * signs.len() && absolutes.len() == signs.len());
    let ones = _mm256_set1_epi16(1);
    // SAFETY: V vectors of eight of `bias` and `sums`; V of weights for each four elements.
    unsafe {
        let mut acc = [_mm256_setzero_si256(); V];
        for v in 0..V {
            acc[v] = _mm256_loadu_si256(bias.as_ptr().add(8 * v).cast());
        }
        let mut at = weights.as_ptr().cast::<__m256i>();
        for (sign, absolute) in signs.iter().zip(absolutes) {
            let sign = _mm256_set1_epi32(i32::from_le_bytes(*sign));
            let absolute = _mm256_set1_epi32(i32::from_le_bytes(*absolute));
            for v in 0..V {
                let signed = _mm256_sign_epi8(_mm256_loadu_si256(at.add(v)), sign);
                let fours = _mm256_madd_epi16(_mm256_maddubs_epi16(absolute, signed), ones);
                acc[v] = _mm256_add_epi32(acc[v], fours);
            }
            at = at.add(V);
        }
        for v in 0..V {
            _mm256_storeu_si256(sums.as_mut_ptr().add(8 * v).cast(), acc[v]);
        }
    }
}
