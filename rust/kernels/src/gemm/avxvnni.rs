//! AVX-VNNI, the 256-bit `vpdpbusd` of client CPUs: 6 rows × 16 columns in 12
//! accumulators, four times for a panel of 64.

use std::arch::x86_64::*;

use super::Block;
use super::vnni::vnni_256;

/// Rows of a tile.
const MR: usize = 6;
/// As in avx512.rs.
const AHEAD: usize = 4096;

/// # Safety
/// The CPU has AVX2 and AVX-VNNI; `out` has as many rows as `block`, each of at
/// least `col + block.panel.width` columns.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn panel(block: &Block, out: &mut [&mut [i32]], col: usize) {
    if let [out] = out {
        let out = &mut out[col..col + block.panel.width];
        return match block.panel.width / 16 {
            4 => row::<8>(block, out),
            3 => row::<6>(block, out),
            2 => row::<4>(block, out),
            _ => row::<2>(block, out),
        };
    }
    for part in 0..block.panel.width / 16 {
        for (i, out) in out.chunks_mut(MR).enumerate() {
            // SAFETY: the caller's promises, for the rows from i * MR.
            unsafe {
                match out.len() {
                    6 => tile::<6>(block, i * MR, part, out, col),
                    5 => tile::<5>(block, i * MR, part, out, col),
                    4 => tile::<4>(block, i * MR, part, out, col),
                    3 => tile::<3>(block, i * MR, part, out, col),
                    2 => tile::<2>(block, i * MR, part, out, col),
                    _ => tile::<1>(block, i * MR, part, out, col),
                }
            }
        }
    }
}

/// One row times all of a panel, whose bytes are then read in order: `NV`
/// vectors of 8 columns.
#[target_feature(enable = "avx2,avxvnni")]
fn row<const NV: usize>(block: &Block, out: &mut [i32]) {
    let flip = _mm256_set1_epi8(block.flip as i8);
    let mut acc = [_mm256_setzero_si256(); NV];
    for (from, acc) in block.start.chunks_exact(8).zip(&mut acc) {
        // SAFETY: the chunk holds 8 sums.
        *acc = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
    }
    let (fours, rest) = block.a.as_chunks::<4>();
    let tail = [block.last_four(0)];
    let fours = fours.iter().chain(if rest.is_empty() { &[] } else { &tail[..] });
    for (four, w) in fours.zip(block.panel.codes.chunks_exact(32 * NV)) {
        let a = _mm256_xor_si256(_mm256_set1_epi32(i32::from_le_bytes(*four)), flip);
        for (v, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `w` is NV vectors; a prefetch of any address is harmless.
            unsafe {
                let w = w.as_ptr().add(32 * v);
                if v % 2 == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
                }
                *acc = _mm256_dpbusd_avx_epi32(*acc, a, _mm256_loadu_si256(w.cast()));
            }
        }
    }
    for (out, acc) in out.chunks_exact_mut(8).zip(acc) {
        // SAFETY: the chunk holds 8 sums.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), acc) };
    }
}

/// `R` rows from `first` times the `part`-th 16 columns of the panel.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn tile<const R: usize>(block: &Block, first: usize, part: usize, out: &mut [&mut [i32]], col: usize) {
    let (k, stride) = (block.k, 4 * block.panel.width);
    let a = &block.a[first * k..(first + R) * k];
    let rows: [*const u8; R] = std::array::from_fn(|r| a[r * k..].as_ptr());
    let mut w = block.panel.codes[64 * part..].as_ptr();
    let flip = _mm256_set1_epi8(block.flip as i8);
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    for v in 0..2 {
        // SAFETY: start has 64 sums, and part < 4.
        let start = unsafe { _mm256_loadu_si256(block.start.as_ptr().add(16 * part + 8 * v).cast()) };
        for row in &mut acc {
            row[v] = start;
        }
    }
    // Pointers and not indices: nothing but loads and products in the loop.
    let mut step = |rows: &[*const u8; R], at: usize, w: *const u8| {
        // SAFETY: `w` is one of the panel's ceil(K / 4) steps, of which 64 bytes are
        // these columns'; a prefetch of any address is harmless.
        let w = unsafe {
            if R <= 2 {
                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
            }
            [_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(32).cast())]
        };
        for r in 0..R {
            // SAFETY: four bytes can be read from `at` on in each row.
            let a = unsafe { _mm256_set1_epi32(rows[r].add(at).cast::<i32>().read_unaligned()) };
            let a = _mm256_xor_si256(a, flip);
            for v in 0..2 {
                acc[r][v] = _mm256_dpbusd_avx_epi32(acc[r][v], a, w[v]);
            }
        }
    };
    for at in (0..k / 4 * 4).step_by(4) {
        step(&rows, at, w);
        // Past the last step of the last columns this is beyond the panel, and not read.
        w = w.wrapping_add(stride);
    }
    if k % 4 != 0 {
        let tails: [[u8; 4]; R] = std::array::from_fn(|r| block.last_four(first + r));
        step(&std::array::from_fn(|r| tails[r].as_ptr()), 0, w);
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        let out = &mut out[col + 16 * part..col + 16 * part + 16];
        for (out, acc) in out.chunks_exact_mut(8).zip(acc) {
            // SAFETY: the chunk holds 8 sums.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), acc) };
        }
    }
}

vnni_256! {
    /// Vectors of 8 dwords, for weights in groups.
    Narrow, "The CPU has AVX2 and AVX-VNNI.", "avx2,avxvnni", _mm256_dpbusd_avx_epi32
}
