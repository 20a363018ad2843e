//! AVX-512 VNNI: 6 rows × 64 columns in 24 accumulators, over the whole K.
//!
//! Rows are read where they lie: no packing of A. A panel of B streams from L2
//! through each tile, 21 bytes a cycle on a core with two `vpdpbusd` a cycle.

use std::arch::x86_64::*;

use super::Block;
use super::vnni::vnni;
#[cfg(test)]
use super::vnni::vnni_256;
use crate::lanes::prefetch_line;

/// Rows of a tile.
const MR: usize = 6;
/// Bytes ahead of the read position that a product of few rows, bound by
/// memory, asks for.
const AHEAD: usize = 4096;

/// # Safety
/// The CPU has AVX-512 F, BW and VNNI; `out` has as many rows as `block`, each
/// of at least `col + block.panel.width` columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn panel(block: &Block, out: &mut [&mut [i32]], col: usize) {
    for (i, out) in out.chunks_mut(MR).enumerate() {
        // SAFETY: the caller's promises, for the rows from i * MR.
        unsafe {
            match (block.panel.width / 16, block.flip != 0) {
                (4, false) => rows::<4, false>(block, i * MR, out, col),
                (4, true) => rows::<4, true>(block, i * MR, out, col),
                (3, false) => rows::<3, false>(block, i * MR, out, col),
                (3, true) => rows::<3, true>(block, i * MR, out, col),
                (2, false) => rows::<2, false>(block, i * MR, out, col),
                (2, true) => rows::<2, true>(block, i * MR, out, col),
                (_, false) => rows::<1, false>(block, i * MR, out, col),
                (_, true) => rows::<1, true>(block, i * MR, out, col),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn rows<const NV: usize, const FLIP: bool>(block: &Block, first: usize, out: &mut [&mut [i32]], col: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        match out.len() {
            6 => tile::<6, NV, FLIP>(block, first, out, col),
            5 => tile::<5, NV, FLIP>(block, first, out, col),
            4 => tile::<4, NV, FLIP>(block, first, out, col),
            3 => tile::<3, NV, FLIP>(block, first, out, col),
            2 => tile::<2, NV, FLIP>(block, first, out, col),
            _ => tile::<1, NV, FLIP>(block, first, out, col),
        }
    }
}

/// `R` rows from `first` times a panel of `16 * NV` columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const R: usize, const NV: usize, const FLIP: bool>(
    block: &Block,
    first: usize,
    out: &mut [&mut [i32]],
    col: usize,
) {
    let k = block.k;
    let a = &block.a[first * k..(first + R) * k];
    let rows: [*const u8; R] = std::array::from_fn(|r| a[r * k..].as_ptr());
    let mut w = block.panel.codes.as_ptr();
    let flip = _mm512_set1_epi8(block.flip as i8);
    let mut acc = [[_mm512_setzero_si512(); NV]; R];
    for v in 0..NV {
        // SAFETY: start has 64 sums, and NV ≤ 4.
        let start = unsafe { _mm512_loadu_si512(block.start.as_ptr().add(16 * v).cast()) };
        for row in &mut acc {
            row[v] = start;
        }
    }
    // Lines of the output arrive while the sums are made, and stay in L1 beside the panel:
    // one is asked for at each step.
    let out = &mut out[..R];
    let lines: [*const u8; 8] = std::array::from_fn(|r| out[r % R].as_ptr().wrapping_add(col).cast());
    // Pointers and not indices: nothing but loads and products in the loop.
    let mut step = |rows: &[*const u8; R], at: usize, w: *const u8| {
        if R > 2 {
            prefetch_line(lines[at / 4 % 8].wrapping_add(at / 32 % NV * 64));
        }
        let mut wide = [flip; NV];
        for (v, wide) in wide.iter_mut().enumerate() {
            // SAFETY: `w` is one of the panel's ceil(K / 4) steps of NV vectors; a
            // prefetch of any address is harmless.
            unsafe {
                let w = w.add(64 * v);
                *wide = _mm512_loadu_si512(w.cast());
                if R <= 2 {
                    _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
                }
            }
        }
        for r in 0..R {
            // SAFETY: four bytes can be read from `at` on in each row.
            let a = unsafe { _mm512_set1_epi32(rows[r].add(at).cast::<i32>().read_unaligned()) };
            // It costs a slot that a product could have.
            let a = if FLIP { _mm512_xor_si512(a, flip) } else { a };
            for v in 0..NV {
                acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], a, wide[v]);
            }
        }
    };
    for at in (0..k / 4 * 4).step_by(4) {
        step(&rows, at, w);
        // SAFETY: the panel has ceil(K / 4) steps of NV vectors.
        w = unsafe { w.add(64 * NV) };
    }
    if k % 4 != 0 {
        let tails: [[u8; 4]; R] = std::array::from_fn(|r| block.last_four(first + r));
        step(&std::array::from_fn(|r| tails[r].as_ptr()), 0, w);
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        let out = &mut out[col..col + 16 * NV];
        for (out, acc) in out.chunks_exact_mut(16).zip(acc) {
            // SAFETY: the chunk holds 16 sums.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), acc) };
        }
    }
}

vnni! {
    /// Vectors of 16 dwords, for weights in groups.
    Wide, "The CPU has AVX-512 F, BW and VNNI.", "avx512f,avx512bw,avx512vnni", __m512i, 16, 4,
    {
        fn splat(x: i32) { _mm512_set1_epi32(x) }
        fn add(a: __m512i, b: __m512i) { _mm512_add_epi32(a, b) }
        fn sub(a: __m512i, b: __m512i) { _mm512_sub_epi32(a, b) }
        fn sub_bytes(a: __m512i, b: __m512i) { _mm512_sub_epi8(a, b) }
        fn mul(a: __m512i, b: __m512i) { _mm512_mullo_epi32(a, b) }
        fn and(a: __m512i, b: __m512i) { _mm512_and_si512(a, b) }
        fn or(a: __m512i, b: __m512i) { _mm512_or_si512(a, b) }
        fn right(a: __m512i, by: u32) { _mm512_srl_epi32(a, _mm_cvtsi32_si128(by as i32)) }
        fn left(a: __m512i, by: u32) { _mm512_sll_epi32(a, _mm_cvtsi32_si128(by as i32)) }
        fn right_signed(a: __m512i, by: u32) { _mm512_sra_epi32(a, _mm_cvtsi32_si128(by as i32)) }
        fn pick(codes: &[u8; 16], index: __m512i, by: __m512i) {
            let codes = _mm512_broadcast_i32x4(_mm_loadu_si128(codes.as_ptr().cast()));
            _mm512_srlv_epi32(_mm512_shuffle_epi8(codes, index), by)
        }
        fn dot_bytes(sum: __m512i, unsigned: __m512i, signed: __m512i) { _mm512_dpbusd_epi32(sum, unsigned, signed) }
    }
    {
        fn load(from: *const i32) -> __m512i { _mm512_loadu_si512(from.cast()) }
        fn store(to: *mut i32, x: __m512i) { _mm512_storeu_si512(to.cast(), x) }
        fn widen(from: *const u8) -> __m512i { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
}

#[cfg(test)]
vnni_256! {
    /// Vectors of 8 dwords, by AVX-512's forms of AVX-VNNI's instructions: so that the 256-bit
    /// kernel is tested where they are.
    Half, "The CPU has AVX2 and AVX-512 F, VL and VNNI.", "avx2,avx512f,avx512vl,avx512vnni",
    _mm256_dpbusd_epi32
}
