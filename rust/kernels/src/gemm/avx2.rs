//! AVX2: `vpmaddwd` on 16-bit halves, exact for u8 × i8, where `vpmaddubsw`
//! would saturate.
//!
//! The four codes of a column lie in one dword. Its bytes 0 and 2 become one
//! vector of 16-bit values and its bytes 1 and 3 another, so that a dword lane
//! stays one column. The rows are widened the same way once a block, and 16
//! columns of the panel once for all rows of a block; a few rows take the
//! panel's bytes as they come, since then bytes are what costs.

use std::arch::x86_64::*;

use super::Block;
use super::epilogue::{self, Finish, Norm};
use crate::affine::{Floats, RowScale};
use crate::lanes::{Avx2, Element};

/// Rows of a tile: with 16 columns, 8 accumulators.
const MR: usize = 4;
/// Fewer rows than this do not repay widening the panel.
const FEW: usize = 8;
/// As in avx512.rs.
const AHEAD: usize = 4096;

/// Elements that `widened` holds for a block of `rows`, and what follows them:
/// 16 columns of a panel.
pub(super) fn scratch_len(rows: usize, k: usize) -> usize {
    let k = k.next_multiple_of(4);
    (rows + if rows >= FEW { 16 } else { 0 }) * k
}

/// Widens the block's rows to `[row][K / 4][a0, a2, a1, a3]`, with `flip`.
///
/// # Safety
/// The CPU has AVX2; `wide` holds [`scratch_len`] elements.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn widen_rows(a: &[u8], k: usize, flip: u8, wide: &mut [i16]) {
    let padded = k.next_multiple_of(4);
    let (flips, low) = (_mm256_set1_epi8(flip as i8), _mm256_set1_epi16(0xff));
    for (a, wide) in a.chunks_exact(k).zip(wide.chunks_exact_mut(padded)) {
        let mut rest = wide.chunks_exact_mut(32);
        let mut bytes = a.chunks_exact(32);
        for (wide, a) in rest.by_ref().zip(bytes.by_ref()) {
            // SAFETY: `a` is 32 bytes and `wide` 32 elements.
            unsafe {
                let a = _mm256_xor_si256(_mm256_loadu_si256(a.as_ptr().cast()), flips);
                let (even, odd) = (_mm256_and_si256(a, low), _mm256_srli_epi16(a, 8));
                let (first, second) = (_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd));
                let at = wide.as_mut_ptr().cast::<__m256i>();
                _mm256_storeu_si256(at, _mm256_permute2x128_si256(first, second, 0x20));
                _mm256_storeu_si256(at.add(1), _mm256_permute2x128_si256(first, second, 0x31));
            }
        }
        let done = a.len() / 32 * 32;
        for (wide, a) in wide[done..].chunks_exact_mut(4).zip(a[done..].chunks(4)) {
            let at = |i: usize| a.get(i).map_or(0, |&a| i16::from(a ^ flip));
            wide.copy_from_slice(&[at(0), at(2), at(1), at(3)]);
        }
    }
}

/// # Safety
/// The CPU has AVX2; `wide` holds [`scratch_len`] elements, the rows' part
/// from [`widen_rows`]; `out` has as many rows as `block`, each of at least
/// `col + block.panel.width` columns.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn panel(block: &Block, wide: &mut [i16], out: &mut [&mut [i32]], col: usize) {
    let steps = block.k.div_ceil(4);
    let (rows, columns) = wide.split_at_mut(out.len() * 4 * steps);
    for part in 0..block.panel.width / 16 {
        let few = out.len() < FEW;
        if !few {
            widen_columns(block, part, columns);
        }
        for (i, out) in out.chunks_mut(MR).enumerate() {
            let a = &rows[i * MR * 4 * steps..][..out.len() * 4 * steps];
            let weights = if few {
                Weights::Bytes(&block.panel.codes[64 * part..], 4 * block.panel.width)
            } else {
                Weights::Words(columns)
            };
            match out.len() {
                4 => tile::<4>(block, a, weights, part, out, col),
                3 => tile::<3>(block, a, weights, part, out, col),
                2 => tile::<2>(block, a, weights, part, out, col),
                _ => tile::<1>(block, a, weights, part, out, col),
            }
        }
    }
}

/// 16 columns, for every 4 rows of B: 64 bytes every so many, or widened to
/// `[even, odd][16][2]`.
#[derive(Clone, Copy)]
enum Weights<'a> {
    Bytes(&'a [u8], usize),
    Words(&'a [i16]),
}

#[target_feature(enable = "avx2")]
fn widen_columns(block: &Block, part: usize, words: &mut [i16]) {
    let stride = 4 * block.panel.width;
    for (bytes, words) in block.panel.codes.chunks_exact(stride).zip(words.chunks_exact_mut(64)) {
        let bytes = &bytes[64 * part..64 * part + 64];
        // SAFETY: 64 bytes are read and 64 elements written.
        unsafe {
            let (first, second) = (split(bytes.as_ptr()), split(bytes.as_ptr().add(32)));
            let at = words.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(at, first[0]);
            _mm256_storeu_si256(at.add(1), second[0]);
            _mm256_storeu_si256(at.add(2), first[1]);
            _mm256_storeu_si256(at.add(3), second[1]);
        }
    }
}

/// Eight columns' bytes 0 and 2, and 1 and 3, sign-extended.
///
/// # Safety
/// 32 bytes can be read from `bytes`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn split(bytes: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    let w = unsafe { _mm256_loadu_si256(bytes.cast()) };
    [_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)]
}

/// `R` widened rows times the `part`-th 16 columns of the panel.
#[target_feature(enable = "avx2")]
fn tile<const R: usize>(block: &Block, a: &[i16], weights: Weights, part: usize, out: &mut [&mut [i32]], col: usize) {
    let steps = block.k.div_ceil(4);
    assert!(a.len() == R * 4 * steps);
    let rows: [*const i16; R] = std::array::from_fn(|r| a[r * 4 * steps..].as_ptr());
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    for v in 0..2 {
        // SAFETY: start has 64 sums, and part < 4.
        let start = unsafe { _mm256_loadu_si256(block.start.as_ptr().add(16 * part + 8 * v).cast()) };
        for row in &mut acc {
            row[v] = start;
        }
    }
    // Pointers and not indices: nothing but loads and products in the loop.
    let mut half = |at: usize, w: [__m256i; 2]| {
        for r in 0..R {
            // SAFETY: a row is 4 * steps elements, and `at` is even and below that.
            let pair = unsafe { _mm256_set1_epi32(rows[r].add(at).cast::<i32>().read_unaligned()) };
            for v in 0..2 {
                acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pair, w[v]));
            }
        }
    };
    match weights {
        Weights::Words(words) => {
            assert!(words.len() >= 64 * steps);
            let mut w = words.as_ptr().cast::<__m256i>();
            for at in (0..4 * steps).step_by(2) {
                // SAFETY: `words` holds two vectors for each pair of the rows.
                unsafe {
                    half(at, [_mm256_loadu_si256(w), _mm256_loadu_si256(w.add(1))]);
                    w = w.add(2);
                }
            }
        }
        Weights::Bytes(bytes, stride) => {
            assert!(bytes.len() >= (steps.max(1) - 1) * stride + 64 || steps == 0);
            let mut w = bytes.as_ptr();
            for at in (0..4 * steps).step_by(4) {
                // SAFETY: `bytes` holds 64 bytes at each of the steps; a prefetch of any
                // address is harmless.
                let (low, high) = unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
                    (split(w), split(w.add(32)))
                };
                half(at, [low[0], high[0]]);
                half(at + 2, [low[1], high[1]]);
                w = w.wrapping_add(stride);
            }
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        let out = &mut out[col + 16 * part..col + 16 * part + 16];
        for (out, acc) in out.chunks_exact_mut(8).zip(acc) {
            // SAFETY: the chunk holds 8 sums.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), acc) };
        }
    }
}

/// The epilogue on this file's vectors.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
pub(super) unsafe fn finish<T: Element>(
    f: &Finish<T>,
    sums: &[i32],
    rows: &[RowScale],
    out: &mut [&mut [T]],
    col: usize,
) {
    // SAFETY: the features of this function are those that the token stands for.
    epilogue::finish(unsafe { Avx2::new() }, f, sums, rows, out, col);
}

/// Layer normalization on this file's vectors.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
pub(super) unsafe fn normalize<T: Element>(x: &[f32], norm: &Norm, out: &mut [T]) {
    // SAFETY: the features of this function are those that the token stands for.
    epilogue::normalize(unsafe { Avx2::new() }, x, norm, out);
}

/// An elementwise product on this file's vectors.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
pub(super) unsafe fn multiply(x: Floats, by: &[f32], out: &mut [f32]) {
    // SAFETY: the features of this function are those that the token stands for.
    epilogue::multiply(unsafe { Avx2::new() }, x, by, out);
}
