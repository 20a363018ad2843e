//! AVX2: sums of two products in 16 bits where they fit, else of 32 bits.
//!
//! `vpmaddubsw` multiplies bytes, u8 × i8, and adds two products in 16 bits,
//! saturating. They fit whatever the rows hold where two codes of a column that
//! lie side by side sum to -128..=128: 255 · 128 < 2^15. The codes of a trained
//! layer nearly all do. So the rest, the excess, is taken from the panel's codes,
//! multiplied apart, and added to the sums; that is a few steps a column. Where
//! it would be many, as with random codes, `vpmaddwd` multiplies 16-bit values.
//!
//! The four codes of a column lie in one dword, so a dword lane is a column. To
//! 16 bits, its bytes 0 and 2 become one vector and its bytes 1 and 3 another. The
//! rows are brought into the form that a panel needs once a block, and 32 columns,
//! 16 KiB of them, once for all rows of a block: they stay in L1. A few rows take
//! the panel's bytes as they come, since then bytes are what costs.
//!
//! What bounds the tile is the instructions a cycle, most of all where two threads
//! share a core: 3 rows by 32 columns, with three of four column vectors as memory
//! operands, is 40 for 12 products of 32 in bytes, and 28 for 12 of 16 in words.

mod groups;
mod tables;

use std::arch::x86_64::*;
use std::ops::Range;

pub(super) use groups::{groups, groups_scratch_len};
pub(super) use tables::{FEW as FEW_WITH_TABLES, expand, few as few_with_tables};

use super::tiled::Panel;
use super::{Block, Fits};

/// Rows of a tile.
const MR: usize = 3;
/// Columns of a tile.
const NR: usize = 32;
/// Depth of the columns that are copied at a time, in dwords of a column: 16 KiB.
const DEPTH: usize = 128;
/// Dwords of a cache line: a vector that lies across two costs two loads.
const LINE: usize = 16;
/// Rows of a tile that reads the panel: with 16 columns, 8 accumulators.
const FEW_MR: usize = 4;
/// Fewer rows than this do not repay copying columns.
const FEW: usize = 8;
/// As in avx512.rs.
const AHEAD: usize = 4096;
/// Fewer rows than this do not repay looking for what does not fit 16 bits.
pub(super) const BYTES: usize = 128;
/// Rows by which the excess is multiplied at a time: one accumulator for eight.
const EXCESS_ROWS: usize = 96;

/// Elements of a row in scratch: a multiple of 16, the last ones 0.
fn padded(k: usize) -> usize {
    k.next_multiple_of(16)
}

/// Dwords of scratch: a block's rows in words; where there are enough of them,
/// also in bytes, their odd bytes by step, and columns of a panel.
pub(super) fn scratch_len(rows: usize, k: usize) -> usize {
    let step = padded(k) / 4;
    let more = step * (rows + rows.next_multiple_of(8)) + NR * DEPTH + LINE;
    2 * step * rows + if rows >= FEW { more } else { 0 }
}

/// Which forms of a block's rows are in scratch.
#[derive(Default)]
pub(super) struct Made {
    words: bool,
    bytes: bool,
}

/// What of 32 columns does not fit sums of two products in 16 bits.
pub(crate) struct Excess {
    /// What is left of codes: dwords of `[step][column]`, in this order.
    left: Vec<Left>,
    /// What was taken from them: first that of the first column.
    taken: Vec<Taken>,
    /// Where each column's end.
    ends: [usize; NR],
    /// Steps of 4 codes in the depth.
    steps: usize,
}

#[derive(Clone, Copy)]
struct Left {
    at: usize,
    codes: i32,
}

#[derive(Clone, Copy, Default)]
struct Taken {
    /// Less than [`Excess::steps`].
    step: usize,
    /// From codes 1 and 3, as two i16.
    by: i32,
}

impl Excess {
    /// That of half a panel; None where it is better to multiply words.
    #[target_feature(enable = "avx2")]
    pub(super) fn of(panel: &Panel, half: usize) -> Option<Excess> {
        let width = panel.width.checked_sub(NR * half)?.min(NR);
        let steps = panel.codes.len() / (4 * panel.width);
        if width == 0 || steps < 8 {
            return None;
        }
        let mut left = Vec::with_capacity(width * steps / 8);
        let mut excess = Vec::with_capacity(width * steps / 8);
        let mut ends = [0; NR];
        for (step, codes) in panel.codes.chunks_exact(4 * panel.width).enumerate() {
            let codes = &codes[4 * NR * half..][..4 * width];
            let mut over = [0i32; NR];
            let mut some = 0u32;
            for (v, codes) in codes.chunks_exact(32).enumerate() {
                // SAFETY: the chunk is 32 bytes, as are eight of `over`.
                unsafe {
                    let sums = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256(codes.as_ptr().cast()));
                    let fits = _mm256_min_epi16(sums, _mm256_set1_epi16(128));
                    let fits = _mm256_max_epi16(fits, _mm256_set1_epi16(-128));
                    let by = _mm256_sub_epi16(sums, fits);
                    _mm256_storeu_si256(over[8 * v..8 * v + 8].as_mut_ptr().cast(), by);
                    let none = _mm256_cmpeq_epi32(by, _mm256_setzero_si256());
                    some |= (!_mm256_movemask_ps(_mm256_castsi256_ps(none)) as u32 & 0xff) << (8 * v);
                }
            }
            while some != 0 {
                let column = some.trailing_zeros() as usize;
                some &= some - 1;
                let by = over[column];
                let [low, _, high, _] = by.to_le_bytes();
                let [a, b, c, d] = [0, 1, 2, 3].map(|i| codes[4 * column + i]);
                let codes = i32::from_le_bytes([a, b.wrapping_sub(low), c, d.wrapping_sub(high)]);
                left.push(Left { at: step * width + column, codes });
                excess.push((column, Taken { step, by }));
                ends[column] += 1;
            }
            // One step of a column in eight, or fewer; known early where there are many.
            if excess.len() > width * (step + 8) / 8 {
                return None;
            }
        }
        let mut end = 0;
        for count in &mut ends {
            (*count, end) = (end, end + *count);
        }
        let mut taken = vec![Taken::default(); end];
        for (column, one) in excess {
            taken[ends[column]] = one;
            ends[column] += 1;
        }
        Some(Excess { left, taken, ends, steps })
    }

    fn column(&self, j: usize) -> &[Taken] {
        &self.taken[j.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[j]]
    }
}

/// Widens the block's rows to `[row][K / 4][a0, a2, a1, a3]`, with `flip`.
#[target_feature(enable = "avx2")]
fn rows_as_words(a: &[u8], k: usize, flip: u8, words: &mut [i32]) {
    let padded = padded(k);
    let words: &mut [i16] = bytemuck::cast_slice_mut(words);
    let (flips, low) = (_mm256_set1_epi8(flip as i8), _mm256_set1_epi16(0xff));
    for (a, words) in a.chunks_exact(k).zip(words.chunks_exact_mut(padded)) {
        let mut rest = words.chunks_exact_mut(32);
        let mut bytes = a.chunks_exact(32);
        for (words, a) in rest.by_ref().zip(bytes.by_ref()) {
            // SAFETY: `a` is 32 bytes and `words` 32 elements.
            unsafe {
                let a = _mm256_xor_si256(_mm256_loadu_si256(a.as_ptr().cast()), flips);
                let (even, odd) = (_mm256_and_si256(a, low), _mm256_srli_epi16(a, 8));
                let (first, second) = (_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd));
                let at = words.as_mut_ptr().cast::<__m256i>();
                _mm256_storeu_si256(at, _mm256_permute2x128_si256(first, second, 0x20));
                _mm256_storeu_si256(at.add(1), _mm256_permute2x128_si256(first, second, 0x31));
            }
        }
        let done = a.len() / 32 * 32;
        for (step, words) in words[done..].chunks_exact_mut(4).enumerate() {
            let at = |i: usize| a.get(done + 4 * step + i).map_or(0, |&a| i16::from(a ^ flip));
            words.copy_from_slice(&[at(0), at(2), at(1), at(3)]);
        }
    }
}

/// The block's rows, with `flip`, as `[row][K]`; and their codes 1 and 3 of every
/// four as words, `[K / 4][row][2]`, rows to a multiple of 8. K is at least 32.
#[target_feature(enable = "avx2")]
fn rows_as_bytes(a: &[u8], k: usize, flip: u8, bytes: &mut [i32], odd: &mut [i32]) {
    let steps = padded(k) / 4;
    for (a, row) in a.chunks_exact(k).zip(bytes.chunks_exact_mut(steps)) {
        let row: &mut [u8] = bytemuck::cast_slice_mut(row);
        row[k..].fill(0);
        row.iter_mut().zip(a).for_each(|(to, a)| *to = a ^ flip);
    }
    let stride = odd.len() / steps;
    for (group, rows) in bytes.chunks(8 * steps).enumerate() {
        for step in (0..steps).step_by(8).map(|step| step.min(steps - 8)) {
            let mut dwords = [_mm256_setzero_si256(); 8];
            for (to, row) in dwords.iter_mut().zip(rows.chunks_exact(steps)) {
                // SAFETY: the slice is 8 dwords.
                let four = unsafe { _mm256_loadu_si256(row[step..step + 8].as_ptr().cast()) };
                *to = _mm256_and_si256(_mm256_srli_epi16(four, 8), _mm256_set1_epi16(0xff));
            }
            for (i, dwords) in transposed(dwords).into_iter().enumerate() {
                let to = &mut odd[(step + i) * stride + 8 * group..][..8];
                // SAFETY: `to` is 8 elements.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), dwords) };
            }
        }
    }
}

/// Eight by eight dwords, transposed.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(rows: [__m256i; 8]) -> [__m256i; 8] {
    let mut fours = [_mm256_setzero_si256(); 8];
    for half in 0..2 {
        let [a, b, c, d] = std::array::from_fn(|i| rows[4 * half + i]);
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab2, cd2) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        fours[4 * half] = _mm256_unpacklo_epi64(ab, cd);
        fours[4 * half + 1] = _mm256_unpackhi_epi64(ab, cd);
        fours[4 * half + 2] = _mm256_unpacklo_epi64(ab2, cd2);
        fours[4 * half + 3] = _mm256_unpackhi_epi64(ab2, cd2);
    }
    let mut columns = fours;
    for i in 0..4 {
        columns[i] = _mm256_permute2x128_si256(fours[i], fours[4 + i], 0x20);
        columns[4 + i] = _mm256_permute2x128_si256(fours[i], fours[4 + i], 0x31);
    }
    columns
}

/// # Safety
/// The CPU has AVX2; `scratch` holds [`scratch_len`] dwords, and `made` tells what is
/// in it; `out` has as many rows as `block`, each of at least `col +
/// block.panel.width` columns.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn panel(block: &Block, scratch: &mut [i32], made: &mut Made, out: &mut [&mut [i32]], col: usize) {
    let steps = padded(block.k) / 4;
    let (words, rest) = scratch.split_at_mut(2 * steps * out.len());
    if out.len() < FEW {
        if !std::mem::replace(&mut made.words, true) {
            rows_as_words(block.a, block.k, block.flip, words);
        }
        return few_rows(block, bytemuck::cast_slice(words), out, col);
    }
    let (bytes, rest) = rest.split_at_mut(steps * out.len());
    let (odd, rest) = rest.split_at_mut(steps * out.len().next_multiple_of(8));
    let skip = rest.as_ptr().align_offset(4 * LINE).min(LINE);
    let columns = &mut rest[skip..];
    for first in (0..block.panel.width).step_by(NR) {
        let excess = block.excess.get(first / NR).and_then(Option::as_ref);
        let form = match block.fits {
            Fits::Fours if steps >= 8 => Form::Fours,
            Fits::Pairs if steps >= 8 => Form::Bytes,
            _ if excess.is_some() => Form::Bytes,
            _ => Form::Words,
        };
        let rows = if form != Form::Words {
            if !std::mem::replace(&mut made.bytes, true) {
                rows_as_bytes(block.a, block.k, block.flip, bytes, odd);
            }
            &*bytes
        } else {
            if !std::mem::replace(&mut made.words, true) {
                rows_as_words(block.a, block.k, block.flip, words);
            }
            &*words
        };
        for from in (0..rows.len() / out.len()).step_by(DEPTH) {
            let depth = from..(rows.len() / out.len()).min(from + DEPTH);
            // SAFETY: the caller's promises.
            unsafe {
                if block.panel.width - first < NR {
                    some_columns::<2>(block, form, rows, columns, excess, depth, first, out, col);
                } else {
                    some_columns::<4>(block, form, rows, columns, excess, depth, first, out, col);
                }
            }
        }
        if let Some(excess) = excess {
            for eight in (0..NR.min(block.panel.width - first)).step_by(8) {
                add_excess(excess, odd, eight, out, col + first + eight);
            }
        }
    }
}

/// `V` vectors of columns from `first` on, some of the depth: copied, as bytes without
/// the excess or as words, and multiplied by each row in the same form.
///
/// # Safety
/// Each row of `out` has the panel's columns from `col` on.
#[target_feature(enable = "avx2")]
unsafe fn some_columns<const V: usize>(
    block: &Block,
    form: Form,
    rows: &[i32],
    columns: &mut [i32],
    excess: Option<&Excess>,
    depth: Range<usize>,
    first: usize,
    out: &mut [&mut [i32]],
    col: usize,
) {
    let columns = &mut columns[..depth.len() * 8 * V];
    match form {
        Form::Words => columns_as_words::<V>(block, depth.start / 2..depth.end / 2, first, columns),
        _ => columns_as_bytes::<V>(block, excess, depth.clone(), first, columns),
    }
    let part = Part {
        form,
        a: &rows[depth.start..],
        stride: rows.len() / out.len(),
        columns,
        dwords: depth.len(),
        start: (depth.start == 0).then_some(&block.start[first..first + 8 * V]),
        col: col + first,
    };
    // SAFETY: the caller's promise.
    unsafe { part.all::<V>(out) };
}

/// Copies columns to `[step][column][4]`, without the excess.
#[target_feature(enable = "avx2")]
fn columns_as_bytes<const V: usize>(
    block: &Block,
    excess: Option<&Excess>,
    depth: Range<usize>,
    first: usize,
    bytes: &mut [i32],
) {
    // The last steps may be padding: rows are 0 there, and bytes may be what they were.
    let (stride, steps) = (4 * block.panel.width, depth.start..depth.end.min(block.k.div_ceil(4)));
    let to = bytemuck::cast_slice_mut::<_, u8>(bytes).chunks_exact_mut(32 * V);
    let codes = block.panel.codes[steps.start * stride..steps.end * stride].chunks_exact(stride);
    for (to, codes) in to.zip(codes) {
        to.copy_from_slice(&codes[4 * first..][..32 * V]);
    }
    let Some(excess) = excess else { return };
    let depth = 8 * V * depth.start..8 * V * depth.end;
    let [from, to] = [depth.start, depth.end].map(|end| excess.left.partition_point(|left| left.at < end));
    for left in &excess.left[from..to] {
        bytes[left.at - depth.start] = left.codes;
    }
}

/// Widens columns to `[step][even, odd][column][2]`.
#[target_feature(enable = "avx2")]
fn columns_as_words<const V: usize>(block: &Block, depth: Range<usize>, first: usize, words: &mut [i32]) {
    // As for bytes.
    let (stride, depth) = (4 * block.panel.width, depth.start..depth.end.min(block.k.div_ceil(4)));
    let codes = &block.panel.codes[depth.start * stride..depth.end * stride];
    assert!(4 * first + 32 * V <= stride && words.len() >= 16 * V * depth.len());
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

/// Adds to eight columns of `out` what was taken from their codes, times the rows.
#[target_feature(enable = "avx2")]
fn add_excess(excess: &Excess, odd: &[i32], first: usize, out: &mut [&mut [i32]], col: usize) {
    let columns: [&[Taken]; 8] = std::array::from_fn(|j| excess.column(first + j));
    if columns.iter().all(|column| column.is_empty()) {
        return;
    }
    let stride = out.len().next_multiple_of(8);
    assert!(odd.len() >= excess.steps * stride);
    let mut sums = [[_mm256_setzero_si256(); EXCESS_ROWS / 8]; 8];
    for (block, out) in out.chunks_mut(EXCESS_ROWS).enumerate() {
        let groups = out.len().div_ceil(8);
        for (sums, column) in sums.iter_mut().zip(columns) {
            let odd = &odd[EXCESS_ROWS * block..];
            // SAFETY: `odd` has 8 rows of each group at every step.
            unsafe {
                if let Ok(all) = (&mut sums[..groups]).try_into() {
                    excess_of_column::<12>(column, odd, stride, all);
                } else {
                    let (sixes, ones) = sums[..groups].as_chunks_mut();
                    for (i, six) in sixes.iter_mut().enumerate() {
                        excess_of_column::<6>(column, &odd[48 * i..], stride, six);
                    }
                    for (i, one) in ones.as_chunks_mut().0.iter_mut().enumerate() {
                        excess_of_column::<1>(column, &odd[48 * sixes.len() + 8 * i..], stride, one);
                    }
                }
            }
        }
        for (group, out) in out.chunks_mut(8).enumerate() {
            let rows = transposed(std::array::from_fn(|j| sums[j][group]));
            for (out, more) in out.iter_mut().zip(rows) {
                let out = &mut out[col..col + 8];
                // SAFETY: `out` is 8 sums.
                unsafe {
                    let sums = _mm256_loadu_si256(out.as_ptr().cast());
                    _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_add_epi32(sums, more));
                }
            }
        }
    }
}

/// What was taken from a column times 8 `G` rows.
///
/// # Safety
/// `odd` has these rows, `stride` from step to step, at each step of `column`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn excess_of_column<const G: usize>(column: &[Taken], odd: &[i32], stride: usize, out: &mut [__m256i; G]) {
    let mut sums = [_mm256_setzero_si256(); G];
    for taken in column {
        let by = _mm256_set1_epi32(taken.by);
        let odd = odd.as_ptr().wrapping_add(taken.step.wrapping_mul(stride)).cast::<__m256i>();
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let rows = unsafe { _mm256_loadu_si256(odd.add(i)) };
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(rows, by));
        }
    }
    *out = sums;
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

/// Fewer than [`FEW`] rows times a panel.
#[target_feature(enable = "avx2")]
fn few_rows(block: &Block, rows: &[i16], out: &mut [&mut [i32]], col: usize) {
    if let [out] = out {
        let out = &mut out[col..col + block.panel.width];
        return match block.panel.width / 16 {
            4 => row::<8>(block, rows, out),
            3 => row::<6>(block, rows, out),
            2 => row::<4>(block, rows, out),
            _ => row::<2>(block, rows, out),
        };
    }
    for part in 0..block.panel.width / 16 {
        for (out, a) in out.chunks_mut(FEW_MR).zip(rows.chunks(FEW_MR * padded(block.k))) {
            match out.len() {
                4 => few::<4>(block, a, part, out, col),
                3 => few::<3>(block, a, part, out, col),
                2 => few::<2>(block, a, part, out, col),
                _ => few::<1>(block, a, part, out, col),
            }
        }
    }
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

/// What a dword of the columns is, and of the rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Two values of 16 bits.
    Words,
    /// Four bytes; two products fit 16 bits.
    Bytes,
    /// The same where four products do, of this dword and the next.
    Fours,
}

/// Some of the depth of some columns, and the rows for it.
struct Part<'a> {
    form: Form,
    /// From the first of the depth on, and from row to row.
    a: &'a [i32],
    stride: usize,
    /// The columns: a vector for each eight and each dword of a row.
    columns: &'a [i32],
    dwords: usize,
    /// What the sums start from; None: from those of the depth before, in `out`.
    start: Option<&'a [i32]>,
    /// Where the columns begin in a row of `out`.
    col: usize,
}

impl Part<'_> {
    /// All rows times `V` vectors of columns.
    ///
    /// # Safety
    /// Each row of `out` has these columns.
    #[target_feature(enable = "avx2")]
    unsafe fn all<const V: usize>(&self, out: &mut [&mut [i32]]) {
        if self.form == Form::Fours {
            // SAFETY: the caller's promise.
            return unsafe { self.in_twos::<V>(out) };
        }
        let (threes, rest) = out.as_chunks_mut::<MR>();
        let (twos, one) = rest.as_chunks_mut::<2>();
        // SAFETY: the caller's promise.
        unsafe {
            self.tiles::<3, V>(0, threes);
            self.tiles::<2, V>(MR * threes.len(), twos);
            self.tiles::<1, V>(MR * threes.len() + 2 * twos.len(), one.as_chunks_mut().0);
        }
    }

    /// Rows from `first` on, `R` at a time, times `V` vectors of columns.
    ///
    /// # Safety
    /// Each row of `out` has these columns.
    #[target_feature(enable = "avx2")]
    unsafe fn tiles<const R: usize, const V: usize>(&self, first: usize, out: &mut [[&mut [i32]; R]]) {
        if out.is_empty() {
            return;
        }
        let last = first + R * out.len() - 1;
        assert!(self.a.len() >= last * self.stride + self.dwords && self.columns.len() == 8 * V * self.dwords);
        assert!(self.dwords > 0 && self.dwords % 4 == 0 && self.start.is_none_or(|start| start.len() == 8 * V));
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the asserts and the caller's promise.
            unsafe { self.tile::<R, V>(self.a.as_ptr().add((first + R * i) * self.stride), out) };
        }
    }

    /// All rows times `V` vectors of columns, two at a time.
    ///
    /// # Safety
    /// As [`Part::all`].
    #[target_feature(enable = "avx2")]
    unsafe fn in_twos<const V: usize>(&self, out: &mut [&mut [i32]]) {
        let (twos, one) = out.as_chunks_mut::<2>();
        // SAFETY: the caller's promise.
        unsafe {
            self.tiles::<2, V>(0, twos);
            self.tiles::<1, V>(2 * twos.len(), one.as_chunks_mut().0);
        }
    }

    /// `R` rows, the first one at `a`, times `V` vectors of columns.
    ///
    /// # Safety
    /// As [`Part::tiles`], with what it asserts.
    #[target_feature(enable = "avx2")]
    unsafe fn tile<const R: usize, const V: usize>(&self, a: *const i32, out: &mut [&mut [i32]; R]) {
        // Pointers and not indices: nothing but loads and products in the loop.
        let rows: [*const i32; R] = std::array::from_fn(|r| a.wrapping_add(r * self.stride));
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
        // SAFETY: `columns` holds V vectors for each dword, a multiple of 4, of each row.
        unsafe {
            if let (Ok(rows), Ok(acc)) = (<[_; 3]>::try_from(&rows[..]), acc.as_flattened_mut().try_into()) {
                if self.form == Form::Bytes {
                    three_by_four_bytes(rows, w, self.dwords, acc);
                } else {
                    three_by_four_words(rows, w, self.dwords, acc);
                }
            } else if let (Form::Fours, Ok(rows), Ok(acc)) =
                (self.form, <[_; 2]>::try_from(&rows[..]), acc.as_flattened_mut().try_into())
            {
                two_by_four_fours(rows, w, self.dwords, acc);
            } else {
                for i in 0..self.dwords {
                    for r in 0..R {
                        let a = _mm256_set1_epi32(*rows[r].add(i));
                        for v in 0..V {
                            let w = _mm256_loadu_si256(w.add(V * i + v));
                            let products = if self.form == Form::Words {
                                _mm256_madd_epi16(a, w)
                            } else {
                                _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), _mm256_set1_epi16(1))
                            };
                            acc[r][v] = _mm256_add_epi32(acc[r][v], products);
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

/// Defines the loop of the full tile in assembly: compilers hold more vectors in
/// registers than there are, and spill sums. ymm12 holds ones of 16 bits, ymm15 the
/// first of four vectors; the others are memory operands.
macro_rules! three_by_four {
    ($name:ident, $times:ident) => {
        /// # Safety
        /// The CPU has AVX2; `dwords` is a multiple of 4 and not 0; each row has as
        /// many, and `w` 4 vectors for each.
        #[target_feature(enable = "avx2")]
        unsafe fn $name(rows: [*const i32; 3], w: *const __m256i, dwords: usize, acc: &mut [__m256i; 12]) {
            #[rustfmt::skip]
            macro_rules! row {
                ($row:literal, $i:literal, $c0:literal, $c1:literal, $c2:literal, $c3:literal) => {
                    concat!(
                        "vpbroadcastd ymm13, [{", $row, "} + {at} + 4*", $i, "]\n",
                        $times!("ymm15", $c0),
                        $times!(concat!("[{w} + 128*", $i, " + 32]"), $c1),
                        $times!(concat!("[{w} + 128*", $i, " + 64]"), $c2),
                        $times!(concat!("[{w} + 128*", $i, " + 96]"), $c3),
                    )
                };
            }
            #[rustfmt::skip]
            macro_rules! dword {
                ($i:literal) => {
                    concat!(
                        "vmovdqu ymm15, [{w} + 128*", $i, "]\n",
                        row!("a0", $i, "ymm0", "ymm1", "ymm2", "ymm3"),
                        row!("a1", $i, "ymm4", "ymm5", "ymm6", "ymm7"),
                        row!("a2", $i, "ymm8", "ymm9", "ymm10", "ymm11"),
                    )
                };
            }
            let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11] = acc;
            let ends = rows.map(|row| row.wrapping_add(dwords));
            // SAFETY: the caller's promises; what is written is declared.
            unsafe {
                std::arch::asm!(
                    "vpcmpeqw ymm12, ymm12, ymm12",
                    "vpsrlw ymm12, ymm12, 15",
                    "2:",
                    dword!("0"),
                    dword!("1"),
                    dword!("2"),
                    dword!("3"),
                    "add {w}, 512",
                    "add {at}, 16",
                    "jnz 2b",
                    a0 = in(reg) ends[0],
                    a1 = in(reg) ends[1],
                    a2 = in(reg) ends[2],
                    w = inout(reg) w => _,
                    at = inout(reg) (4 * dwords).wrapping_neg() => _,
                    inout("ymm0") *s0, inout("ymm1") *s1, inout("ymm2") *s2, inout("ymm3") *s3,
                    inout("ymm4") *s4, inout("ymm5") *s5, inout("ymm6") *s6, inout("ymm7") *s7,
                    inout("ymm8") *s8, inout("ymm9") *s9, inout("ymm10") *s10, inout("ymm11") *s11,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack, readonly),
                );
            }
        }
    };
}

/// A row's words, in ymm13, times a vector of them.
macro_rules! times_words {
    ($w:expr, $sum:literal) => {
        concat!("vpmaddwd ymm14, ymm13, ", $w, "\n", "vpaddd ", $sum, ", ", $sum, ", ymm14\n")
    };
}

/// A row's bytes, in ymm13, times a vector of them.
#[rustfmt::skip]
macro_rules! times_bytes {
    ($w:expr, $sum:literal) => {
        concat!(
            "vpmaddubsw ymm14, ymm13, ", $w, "\n",
            "vpmaddwd ymm14, ymm14, ymm12\n",
            "vpaddd ", $sum, ", ", $sum, ", ymm14\n",
        )
    };
}

three_by_four!(three_by_four_words, times_words);
three_by_four!(three_by_four_bytes, times_bytes);

/// Of two rows a dword and the next, in ymm8 and ymm9 and in ymm10 and ymm11, times two
/// vectors of columns, `$w` of two dwords on.
#[rustfmt::skip]
macro_rules! times_fours {
    ($w:expr, $next:expr, $c0:literal, $c1:literal) => {
        concat!(
            "vpmaddubsw ymm13, ymm8, ", $w, "\n",
            "vpmaddubsw ymm14, ymm9, ", $next, "\n",
            "vpaddw ymm13, ymm13, ymm14\n",
            "vpmaddubsw ymm14, ymm10, ", $w, "\n",
            "vpmaddubsw ymm15, ymm11, ", $next, "\n",
            "vpaddw ymm14, ymm14, ymm15\n",
            "vpmaddwd ymm13, ymm13, ymm12\n",
            "vpaddd ", $c0, ", ", $c0, ", ymm13\n",
            "vpmaddwd ymm14, ymm14, ymm12\n",
            "vpaddd ", $c1, ", ", $c1, ", ymm14\n",
        )
    };
}
#[rustfmt::skip]
macro_rules! two_dwords {
    ($a:literal, $w:literal) => {
        concat!(
            "vpbroadcastd ymm8, [{a0} + {at} + ", $a, "]\n",
            "vpbroadcastd ymm9, [{a0} + {at} + ", $a, " + 4]\n",
            "vpbroadcastd ymm10, [{a1} + {at} + ", $a, "]\n",
            "vpbroadcastd ymm11, [{a1} + {at} + ", $a, " + 4]\n",
            times_fours!(concat!("[{w} + ", $w, "]"), concat!("[{w} + ", $w, " + 128]"), "ymm0", "ymm4"),
            times_fours!(concat!("[{w} + ", $w, " + 32]"), concat!("[{w} + ", $w, " + 160]"), "ymm1", "ymm5"),
            times_fours!(concat!("[{w} + ", $w, " + 64]"), concat!("[{w} + ", $w, " + 192]"), "ymm2", "ymm6"),
            times_fours!(concat!("[{w} + ", $w, " + 96]"), concat!("[{w} + ", $w, " + 224]"), "ymm3", "ymm7"),
        )
    };
}

/// As `three_by_four_bytes`, of two rows: four products are summed in 16 bits.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2")]
unsafe fn two_by_four_fours(rows: [*const i32; 2], w: *const __m256i, dwords: usize, acc: &mut [__m256i; 8]) {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = acc;
    let ends = rows.map(|row| row.wrapping_add(dwords));
    // SAFETY: the caller's promises; what is written is declared.
    unsafe {
        std::arch::asm!(
            "vpcmpeqw ymm12, ymm12, ymm12",
            "vpsrlw ymm12, ymm12, 15",
            "2:",
            two_dwords!("0", "0"),
            two_dwords!("8", "256"),
            "add {w}, 512",
            "add {at}, 16",
            "jnz 2b",
            a0 = in(reg) ends[0],
            a1 = in(reg) ends[1],
            w = inout(reg) w => _,
            at = inout(reg) (4 * dwords).wrapping_neg() => _,
            inout("ymm0") *s0, inout("ymm1") *s1, inout("ymm2") *s2, inout("ymm3") *s3,
            inout("ymm4") *s4, inout("ymm5") *s5, inout("ymm6") *s6, inout("ymm7") *s7,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
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
