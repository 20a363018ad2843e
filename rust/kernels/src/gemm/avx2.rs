//! AVX2: `vpmaddwd` on 16-bit halves, exact for u8 × i8, where `vpmaddubsw`
//! would saturate.
//!
//! The four codes of a column lie in one dword. Its bytes 0 and 2 become one
//! vector of 16-bit values and its bytes 1 and 3 another, so that a dword lane
//! stays one column. The rows are widened the same way once a block, and 32
//! columns of the panel, 256 deep, once for all rows of a block: they stay in
//! L1. A few rows take the panel's bytes as they come, since then bytes are
//! what costs.
//!
//! What bounds the tile is not its products but the instructions a cycle, most
//! of all where two threads share a core: 3 rows by 32 columns, with three of
//! four column vectors as memory operands, is 28 for 12 products.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Block;

/// Rows of a tile.
const MR: usize = 3;
/// Columns of a tile.
const NR: usize = 32;
/// Steps of 4 in the depth of the columns that are widened at a time: 16 KiB.
const STEPS: usize = 64;
/// Elements of a cache line: a vector that lies across two costs two loads.
const LINE: usize = 32;
/// Rows of a tile that reads bytes: with 16 columns, 8 accumulators.
const FEW_MR: usize = 4;
/// Fewer rows than this do not repay widening the panel.
const FEW: usize = 8;
/// As in avx512.rs.
const AHEAD: usize = 4096;

/// Elements of a widened row: an even number of steps of 4, the last ones 0.
fn padded(k: usize) -> usize {
    k.next_multiple_of(8)
}

/// Elements that `wide` holds: a block's rows, and columns of a panel.
pub(super) fn scratch_len(rows: usize, k: usize) -> usize {
    rows * padded(k) + if rows >= FEW { NR * 4 * STEPS + LINE } else { 0 }
}

/// Widens the block's rows to `[row][K / 4][a0, a2, a1, a3]`, with `flip`.
///
/// # Safety
/// The CPU has AVX2; `wide` holds [`scratch_len`] elements.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn widen_rows(a: &[u8], k: usize, flip: u8, wide: &mut [i16]) {
    let padded = padded(k);
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
        for (step, wide) in wide[done..].chunks_exact_mut(4).enumerate() {
            let at = |i: usize| a.get(done + 4 * step + i).map_or(0, |&a| i16::from(a ^ flip));
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
    let stride = padded(block.k);
    let (rows, columns) = wide.split_at_mut(out.len() * stride);
    if let [out] = out {
        let out = &mut out[col..col + block.panel.width];
        return match block.panel.width / 16 {
            4 => row::<8>(block, rows, out),
            3 => row::<6>(block, rows, out),
            2 => row::<4>(block, rows, out),
            _ => row::<2>(block, rows, out),
        };
    }
    if out.len() < FEW {
        for part in 0..block.panel.width / 16 {
            for (i, out) in out.chunks_mut(FEW_MR).enumerate() {
                let a = &rows[i * FEW_MR * stride..][..out.len() * stride];
                match out.len() {
                    4 => few::<4>(block, a, part, out, col),
                    3 => few::<3>(block, a, part, out, col),
                    2 => few::<2>(block, a, part, out, col),
                    _ => few::<1>(block, a, part, out, col),
                }
            }
        }
        return;
    }
    let skip = columns.as_ptr().align_offset(2 * LINE).min(LINE);
    let columns = &mut columns[skip..];
    for first in (0..block.panel.width).step_by(NR) {
        for from in (0..stride / 4).step_by(STEPS) {
            let depth = from..(stride / 4).min(from + STEPS);
            if block.panel.width - first < NR {
                // SAFETY: the caller's promises.
                unsafe { some_columns::<2>(block, rows, columns, depth, first, out, col) };
            } else {
                // SAFETY: the caller's promises.
                unsafe { some_columns::<4>(block, rows, columns, depth, first, out, col) };
            }
        }
    }
}

/// `V` vectors of columns from `first` on, some steps of the depth: widened, and
/// multiplied by each row.
///
/// # Safety
/// Each row of `out` has the panel's columns from `col` on.
#[target_feature(enable = "avx2")]
unsafe fn some_columns<const V: usize>(
    block: &Block,
    rows: &[i16],
    columns: &mut [i16],
    depth: Range<usize>,
    first: usize,
    out: &mut [&mut [i32]],
    col: usize,
) {
    let columns = &mut columns[..depth.len() * 32 * V];
    widen_columns::<V>(block, depth.clone(), first, columns);
    let part = Part {
        a: &rows[4 * depth.start..],
        stride: padded(block.k),
        columns,
        steps: depth.len(),
        start: (depth.start == 0).then_some(&block.start[first..first + 8 * V]),
        col: col + first,
    };
    let (threes, rest) = out.as_chunks_mut::<MR>();
    let (twos, one) = rest.as_chunks_mut::<2>();
    // SAFETY: the caller's promise.
    unsafe {
        part.tiles::<3, V>(0, threes);
        part.tiles::<2, V>(MR * threes.len(), twos);
        part.tiles::<1, V>(MR * threes.len() + 2 * twos.len(), one.as_chunks_mut().0);
    }
}

/// Widens columns to `[step][even, odd][column][2]`.
#[target_feature(enable = "avx2")]
fn widen_columns<const V: usize>(block: &Block, depth: Range<usize>, first: usize, words: &mut [i16]) {
    // The last step may be padding: rows are 0 there, and words may be what they were.
    let (stride, depth) = (4 * block.panel.width, depth.start..depth.end.min(block.k.div_ceil(4)));
    let codes = &block.panel.codes[depth.start * stride..depth.end * stride];
    assert!(4 * first + 32 * V <= stride && words.len() >= 32 * V * depth.len());
    let (mut w, mut to) = (codes.as_ptr().wrapping_add(4 * first), words.as_mut_ptr().cast::<__m256i>());
    for _ in depth {
        for v in 0..V {
            // SAFETY: each step has `stride` bytes, of which 32 V from `first` on are read,
            // and 2 V vectors of words.
            unsafe {
                let [low, high] = split(w.add(32 * v));
                _mm256_storeu_si256(to.add(v), low);
                _mm256_storeu_si256(to.add(V + v), high);
            }
        }
        (w, to) = (w.wrapping_add(stride), to.wrapping_add(2 * V));
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

/// One widened row times all of a panel, whose bytes are then read in order:
/// `NV` vectors of 8 columns.
#[target_feature(enable = "avx2")]
fn row<const NV: usize>(block: &Block, a: &[i16], out: &mut [i32]) {
    let mut acc = [_mm256_setzero_si256(); NV];
    for (from, acc) in block.start.chunks_exact(8).zip(&mut acc) {
        // SAFETY: the chunk holds 8 sums.
        *acc = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
    }
    for (a, w) in a.chunks_exact(4).zip(block.panel.codes.chunks_exact(32 * NV)) {
        // SAFETY: `a` is 4 elements and `w` NV vectors; a prefetch of any address is harmless.
        unsafe {
            let pair = a.as_ptr().cast::<i32>();
            let even = _mm256_set1_epi32(pair.read_unaligned());
            let odd = _mm256_set1_epi32(pair.add(1).read_unaligned());
            for (v, acc) in acc.iter_mut().enumerate() {
                let w = w.as_ptr().add(32 * v);
                if v % 2 == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
                }
                let [low, high] = split(w);
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(even, low));
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(odd, high));
            }
        }
    }
    for (out, acc) in out.chunks_exact_mut(8).zip(acc) {
        // SAFETY: the chunk holds 8 sums.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), acc) };
    }
}

/// Some steps of the depth of some columns, and the rows for them.
struct Part<'a> {
    /// Widened rows: from the first of the steps on, and from row to row.
    a: &'a [i16],
    stride: usize,
    /// Widened columns of these steps.
    columns: &'a [i16],
    steps: usize,
    /// What the sums start from; None: from those of the steps before, in `out`.
    start: Option<&'a [i32]>,
    /// Where the columns begin in a row of `out`.
    col: usize,
}

impl Part<'_> {
    /// Rows from `first` on, `R` at a time, times `V` vectors of columns.
    ///
    /// # Safety
    /// Each row of `out` has these columns.
    #[target_feature(enable = "avx2")]
    unsafe fn tiles<const R: usize, const V: usize>(&self, first: usize, out: &mut [[&mut [i32]; R]]) {
        let Some(last) = (first + R * out.len()).checked_sub(1) else { return };
        assert!(self.a.len() >= last * self.stride + 4 * self.steps && self.columns.len() == 32 * V * self.steps);
        assert!(self.steps > 0 && self.steps % 2 == 0 && self.start.is_none_or(|start| start.len() == 8 * V));
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the asserts and the caller's promise.
            unsafe { self.tile::<R, V>(self.a.as_ptr().add((first + R * i) * self.stride), out) };
        }
    }

    /// `R` rows, the first one at `a`, times `V` vectors of columns.
    ///
    /// # Safety
    /// As [`Part::tiles`], with what it asserts.
    #[target_feature(enable = "avx2")]
    unsafe fn tile<const R: usize, const V: usize>(&self, a: *const i16, out: &mut [&mut [i32]; R]) {
        // Pointers and not indices: nothing but loads and products in the loop.
        let rows: [*const i16; R] = std::array::from_fn(|r| a.wrapping_add(r * self.stride));
        let out: [*mut __m256i; R] = std::array::from_fn(|r| out[r].as_mut_ptr().wrapping_add(self.col).cast());
        let mut acc = [[_mm256_setzero_si256(); V]; R];
        for r in 0..R {
            let from = self.start.map_or(out[r].cast_const(), |start| start.as_ptr().cast());
            for v in 0..V {
                // SAFETY: `start` and each row of `out` have V vectors.
                acc[r][v] = unsafe { _mm256_loadu_si256(from.add(v)) };
            }
        }
        let w = self.columns.as_ptr().cast::<__m256i>();
        // SAFETY: `columns` holds 2 V vectors for each step, an even number, and a row 4 elements.
        unsafe {
            if let (Ok(rows), Ok(acc)) = (<[_; 3]>::try_from(&rows[..]), acc.as_flattened_mut().try_into()) {
                three_by_four(rows, w, self.steps, acc);
            } else {
                for half in 0..2 * self.steps {
                    for r in 0..R {
                        let pair = _mm256_set1_epi32(rows[r].add(2 * half).cast::<i32>().read_unaligned());
                        for v in 0..V {
                            let w = _mm256_loadu_si256(w.add(V * half + v));
                            acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pair, w));
                        }
                    }
                }
            }
        }
        for (out, acc) in out.iter().zip(acc) {
            for (v, acc) in acc.into_iter().enumerate() {
                // SAFETY: each row of `out` has V vectors.
                unsafe { _mm256_storeu_si256(out.add(v), acc) };
            }
        }
    }
}

/// The loop of the full tile, in assembly: compilers hold more vectors in registers
/// than there are, and spill sums.
///
/// # Safety
/// The CPU has AVX2; `steps` is even and not 0; each row has 4 elements, and `w`
/// 8 vectors, for each of them.
#[target_feature(enable = "avx2")]
unsafe fn three_by_four(rows: [*const i16; 3], w: *const __m256i, steps: usize, acc: &mut [__m256i; 12]) {
    /// A row times the four vectors of a half step, the first of them in ymm12.
    #[rustfmt::skip]
    macro_rules! row {
        ($row:literal, $half:literal, $c0:literal, $c1:literal, $c2:literal, $c3:literal) => {
            concat!(
                "vpbroadcastd ymm13, [{", $row, "} + 4*", $half, "]\n",
                "vpmaddwd ymm14, ymm13, ymm12\n",
                "vpmaddwd ymm15, ymm13, [{w} + 128*", $half, " + 32]\n",
                "vpaddd ", $c0, ", ", $c0, ", ymm14\n",
                "vpaddd ", $c1, ", ", $c1, ", ymm15\n",
                "vpmaddwd ymm14, ymm13, [{w} + 128*", $half, " + 64]\n",
                "vpmaddwd ymm15, ymm13, [{w} + 128*", $half, " + 96]\n",
                "vpaddd ", $c2, ", ", $c2, ", ymm14\n",
                "vpaddd ", $c3, ", ", $c3, ", ymm15\n",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! half {
        ($half:literal) => {
            concat!(
                "vmovdqu ymm12, [{w} + 128*", $half, "]\n",
                row!("a0", $half, "ymm0", "ymm1", "ymm2", "ymm3"),
                row!("a1", $half, "ymm4", "ymm5", "ymm6", "ymm7"),
                row!("a2", $half, "ymm8", "ymm9", "ymm10", "ymm11"),
            )
        };
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11] = acc;
    // SAFETY: the caller's promises; what is written is declared.
    unsafe {
        std::arch::asm!(
            "2:",
            half!("0"),
            half!("1"),
            half!("2"),
            half!("3"),
            "add {a0}, 16",
            "add {a1}, 16",
            "add {a2}, 16",
            "add {w}, 512",
            "sub {pairs}, 1",
            "jnz 2b",
            a0 = inout(reg) rows[0] => _,
            a1 = inout(reg) rows[1] => _,
            a2 = inout(reg) rows[2] => _,
            w = inout(reg) w => _,
            pairs = inout(reg) steps / 2 => _,
            inout("ymm0") *s0, inout("ymm1") *s1, inout("ymm2") *s2, inout("ymm3") *s3,
            inout("ymm4") *s4, inout("ymm5") *s5, inout("ymm6") *s6, inout("ymm7") *s7,
            inout("ymm8") *s8, inout("ymm9") *s9, inout("ymm10") *s10, inout("ymm11") *s11,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack, readonly),
        );
    }
}

/// `R` widened rows times the `part`-th 16 columns of the panel, as bytes.
#[target_feature(enable = "avx2")]
fn few<const R: usize>(block: &Block, a: &[i16], part: usize, out: &mut [&mut [i32]], col: usize) {
    let (steps, stride) = (block.k.div_ceil(4), 4 * block.panel.width);
    let bytes = &block.panel.codes[64 * part..];
    let row = padded(block.k);
    assert!(a.len() == R * row && (steps == 0 || bytes.len() >= (steps - 1) * stride + 64));
    let rows: [*const i16; R] = std::array::from_fn(|r| a[r * row..].as_ptr());
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    for v in 0..2 {
        // SAFETY: start has 64 sums, and part < 4.
        let start = unsafe { _mm256_loadu_si256(block.start.as_ptr().add(16 * part + 8 * v).cast()) };
        for row in &mut acc {
            row[v] = start;
        }
    }
    let mut w = bytes.as_ptr();
    for step in 0..steps {
        // SAFETY: `bytes` holds 64 bytes at each of the steps; a prefetch of any
        // address is harmless.
        let columns = unsafe {
            _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
            [split(w), split(w.add(32))]
        };
        for half in 0..2 {
            for r in 0..R {
                // SAFETY: a row holds 4 elements for each step.
                let pair =
                    unsafe { _mm256_set1_epi32(rows[r].add(4 * step + 2 * half).cast::<i32>().read_unaligned()) };
                for v in 0..2 {
                    acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pair, columns[v][half]));
                }
            }
        }
        w = w.wrapping_add(stride);
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        let out = &mut out[col + 16 * part..col + 16 * part + 16];
        for (out, acc) in out.chunks_exact_mut(8).zip(acc) {
            // SAFETY: the chunk holds 8 sums.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), acc) };
        }
    }
}
