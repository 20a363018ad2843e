//! AVX2: weights in groups, which `scalar::groups` defines.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{AHEAD, DEPTH, LINE, MR, NR, Part};
use crate::gemm::GroupBlock;
use crate::gemm::groups::{GroupPanel, SUPER};

/// Depth of the columns that are unpacked at a time: DEPTH quads of a column.
const CHUNK: usize = 4 * DEPTH;
/// Quads whose products sum in 16 bits, u8 times codes of four bits less 8: 8 · 2 ·
/// 255 · 8 < 2^15.
const SEGMENT: usize = SUPER / 4;

/// Fewer rows than this do not repay unpacking columns to memory.
const FEW_IN_GROUPS: usize = 4;
/// Depth whose rows' sums fit 16 bits: 128 · 255 < 2^15.
const SPAN: usize = 128;

/// Cuts a depth where multiples of `most` and where groups end.
#[inline]
fn cut(depth: Range<usize>, most: usize, group_size: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = depth.start;
    std::iter::from_fn(move || {
        let end = (at / most + 1) * most;
        let end = end.min((at / group_size + 1) * group_size).min(depth.end);
        (at < end).then(|| std::mem::replace(&mut at, end)..end)
    })
}

/// Dwords of a pass's pairs of spans, a multiple of 4 (as [`Part`] wants it).
fn pairs_of(pass: usize, group_size: usize) -> usize {
    let spans = if SPAN.is_multiple_of(group_size) || group_size.is_multiple_of(SPAN) {
        pass.div_ceil(group_size.min(SPAN))
    } else {
        pass.div_ceil(SPAN) + pass.div_ceil(group_size)
    };
    spans.div_ceil(2).next_multiple_of(4)
}

/// Segments of a chunk, at most.
fn segments_of_chunk(group_size: usize) -> usize {
    CHUNK / if group_size.is_multiple_of(SUPER) { SUPER } else { 8 }
}

/// Dwords of scratch of [`groups`]: rows in bytes, their sums over spans, and of the
/// columns the codes, multipliers, and what the zero points come to.
pub(in crate::gemm) fn groups_scratch_len(rows: usize, k: usize, pass: usize, group_size: usize) -> usize {
    let pairs = pairs_of(pass, group_size);
    let row = k.next_multiple_of(SUPER) / 4 + k.div_ceil(pass) * pairs;
    let many = row * rows + NR * (DEPTH + segments_of_chunk(group_size) + pairs) + LINE;
    many.max(rows.min(FEW_IN_GROUPS) * k.div_ceil(SUPER) * (SEGMENT + 1))
}

/// The block's rows to a multiple of a superstep, and their sums over spans as 16-bit
/// values, each pass's padded to [`pairs_of`].
fn rows_for_groups(block: &GroupBlock, bytes: &mut [i32], sums: &mut [i32]) {
    let (k, pass, group_size) = (block.panel.k, block.panel.pass, block.panel.groups.group_size());
    let (padded, pairs) = (k.next_multiple_of(SUPER), pairs_of(pass, group_size));
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(bytes);
    let sums: &mut [i16] = bytemuck::cast_slice_mut(sums);
    sums.fill(0);
    let rows = block.a.chunks_exact(k).zip(bytes.chunks_exact_mut(padded));
    for ((a, row), sums) in rows.zip(sums.chunks_exact_mut(2 * pairs * k.div_ceil(pass))) {
        row[..k].copy_from_slice(a);
        row[k..].fill(0);
        for (i, sums) in sums.chunks_exact_mut(2 * pairs).enumerate() {
            let depth = i * pass..k.min((i + 1) * pass);
            for (sum, span) in sums.iter_mut().zip(cut(depth, SPAN, group_size)) {
                *sum = a[span].iter().fold(0u16, |sum, &a| sum.wrapping_add(a.into())) as i16;
            }
        }
    }
}

/// `scalar::groups`.
///
/// A code less half its range is a signed byte of at most four bits, so that 32 of
/// a column's products with u8 sum in 16 bits. These are multiplied with the group's
/// multiplier as they are summed in 32 bits. The zero points' part is a product of
/// its own, of the rows' sums over groups. Codes above four bits are two such bytes.
///
/// # Safety
/// The CPU has AVX2; `scratch` holds [`groups_scratch_len`] dwords, and `made` tells
/// whether the rows are in it; `out` has as many rows as `block`, each of at least
/// `col + block.panel.width` columns; the depth is one pass.
#[target_feature(enable = "avx2,bmi2")]
pub(in crate::gemm) unsafe fn groups(
    block: &GroupBlock,
    scratch: &mut [i32],
    made: &mut bool,
    out: &mut [&mut [i32]],
    col: usize,
) {
    let (k, pass) = (block.panel.k, block.panel.pass);
    let (groups, whole) = (block.panel.groups, block.depth == (0..k));
    if out.len() < FEW_IN_GROUPS && whole && groups.nbits() <= 4 && groups.group_size().is_multiple_of(SUPER) {
        let steps = k.div_ceil(SUPER);
        let (bytes, rest) = scratch.split_at_mut(steps * SEGMENT * out.len());
        let sums = &mut rest[..steps * out.len()];
        if !std::mem::replace(made, true) {
            rows_for_few(block, bytes, sums);
        }
        return match out {
            [a, b, c] => few_in_groups(block.panel, bytes, sums, [a, b, c].map(|out| &mut out[col..])),
            [a, b] => few_in_groups(block.panel, bytes, sums, [a, b].map(|out| &mut out[col..])),
            [a] => few_in_groups(block.panel, bytes, sums, [&mut a[col..]]),
            _ => (),
        };
    }
    let pairs = pairs_of(pass, groups.group_size());
    let (bytes, rest) = scratch.split_at_mut(k.next_multiple_of(SUPER) / 4 * out.len());
    let (sums, rest) = rest.split_at_mut(k.div_ceil(pass) * pairs * out.len());
    if !std::mem::replace(made, true) {
        rows_for_groups(block, bytes, sums);
    }
    let skip = rest.as_ptr().align_offset(4 * LINE).min(LINE);
    assert!(block.depth.start.is_multiple_of(pass) && block.depth.len() <= pass && block.depth.end <= k);
    for first in (0..block.panel.width).step_by(NR) {
        // SAFETY: the caller's promises.
        unsafe {
            if block.panel.width - first < NR {
                some_groups::<2>(block, bytes, sums, &mut rest[skip..], first, out, col);
            } else {
                some_groups::<4>(block, bytes, sums, &mut rest[skip..], first, out, col);
            }
        }
    }
}

/// The block's rows as `[row][K]` of i8, 128 less; and of each superstep, as two i16,
/// minus the sums of those that `vpmaddubsw` adds to a dword's low and high half.
fn rows_for_few(block: &GroupBlock, bytes: &mut [i32], sums: &mut [i32]) {
    let steps = block.panel.k.div_ceil(SUPER);
    let bytes: &mut [i8] = bytemuck::cast_slice_mut(bytes);
    let rows = block.a.chunks_exact(block.panel.k).zip(bytes.chunks_exact_mut(steps * SUPER));
    for ((a, row), sums) in rows.zip(sums.chunks_exact_mut(steps)) {
        row[a.len()..].fill(0);
        row.iter_mut().zip(a).for_each(|(to, a)| *to = (a ^ 0x80) as i8);
        for (sums, step) in sums.iter_mut().zip(row.chunks_exact(SUPER)) {
            let mut halves = [0i16; 2];
            step.iter().enumerate().for_each(|(i, &a)| halves[i / 2 % 2] -= i16::from(a));
            *sums = bytemuck::cast(halves);
        }
    }
}

/// [`groups`] of a few rows: the panel's bytes are unpacked in registers, in order. With
/// rows 128 less, codes of up to four bits as they are give sums of 32 in 16 bits: 8 · 2
/// · 15 · 128 < 2^15. What is missing is 128 times the columns' sums.
#[inline(never)]
#[target_feature(enable = "avx2,bmi2")]
fn few_in_groups<const R: usize>(panel: &GroupPanel, bytes: &[i32], sums: &[i32], mut out: [&mut [i32]; R]) {
    match panel.groups.nbits() {
        2 => few_of::<R, 2>(panel, bytes, sums, &mut out),
        3 => few_of::<R, 3>(panel, bytes, sums, &mut out),
        _ => few_of::<R, 4>(panel, bytes, sums, &mut out),
    }
}

#[target_feature(enable = "avx2,bmi2")]
fn few_of<const R: usize, const NBITS: usize>(
    panel: &GroupPanel,
    bytes: &[i32],
    sums: &[i32],
    out: &mut [&mut [i32]; R],
) {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let (groups, width, steps) = (panel.groups, panel.width, panel.k.div_ceil(SUPER));
    for out in out.iter_mut() {
        for (out, sum) in out.iter_mut().zip(panel.col_sum) {
            *out = i32::from_le_bytes(*sum).wrapping_mul(128);
        }
    }
    let row = 4 * width;
    let codes = panel.codes.chunks_exact(row * NBITS);
    let (per_group, zeros) = (groups.group_size() / SUPER, width * NBITS / 8);
    assert!(bytes.len() == R * steps * SEGMENT && sums.len() == R * steps && codes.len() == steps);
    assert!(out.iter().all(|out| out.len() >= width) && width.is_multiple_of(8));
    // The codes follow: eight bytes can be read from the last column's on.
    assert!(groups.symmetric() || panel.zeros.len() >= groups.count(panel.k) * zeros + 8);
    // Eight bytes to the low bytes of eight dwords' halves.
    let twice = _mm256_setr_epi8(
        0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1,
    );
    for (step, codes) in codes.enumerate() {
        let group = step / per_group;
        // Pointers, so that nothing else is in the loop.
        let mut ahead = codes.as_ptr().wrapping_add(AHEAD);
        let mut codes = codes.as_ptr();
        let mut zero = panel.zeros.as_ptr().wrapping_add(group * zeros);
        let a: [*const i32; R] = std::array::from_fn(|r| bytes.as_ptr().wrapping_add((r * steps + step) * SEGMENT));
        let sums: [__m256i; R] = std::array::from_fn(|r| _mm256_set1_epi32(sums[r * steps + step]));
        let mut out: [*mut __m256i; R] = std::array::from_fn(|r| out[r].as_mut_ptr().cast());
        for by in panel.multipliers[group * width..][..width].as_chunks().0 {
            // SAFETY: the asserts: a row has 8 dwords for each step, each output 8 for each
            // vector of columns, codes as `quads_of` wants them; a prefetch is harmless.
            unsafe {
                // The superstep's lines, spread over its columns.
                for _ in 0..NBITS.div_ceil(2) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    ahead = ahead.wrapping_add(64);
                }
                let quads = quads_of::<NBITS>(codes, row);
                let by = _mm256_shuffle_epi8(_mm256_set1_epi64x(i64::from_le_bytes(*by)), twice);
                let points = if groups.symmetric() {
                    _mm256_set1_epi16(groups.middle().into())
                } else {
                    let points = _pdep_u64(zero.cast::<u64>().read_unaligned(), u64::from(groups.qmax()) * EACH);
                    _mm256_shuffle_epi8(_mm256_set1_epi64x(points as i64), twice)
                };
                for r in 0..R {
                    let mut sum = _mm256_mullo_epi16(points, sums[r]);
                    for (i, quad) in quads.iter().enumerate() {
                        let a = _mm256_set1_epi32(a[r].wrapping_add(i).read());
                        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(*quad, a));
                    }
                    let sum = _mm256_add_epi32(_mm256_loadu_si256(out[r]), _mm256_madd_epi16(sum, by));
                    _mm256_storeu_si256(out[r], sum);
                    out[r] = out[r].wrapping_add(1);
                }
            }
            codes = codes.wrapping_add(32);
            zero = zero.wrapping_add(NBITS);
        }
    }
}

/// The eight quads of a superstep of eight columns, whose first row of bytes is at the
/// start of `codes` and the others `row` apart.
///
/// # Safety
/// 32 bytes can be read from each of the `NBITS` rows.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn quads_of<const NBITS: usize>(codes: *const u8, row: usize) -> [__m256i; SEGMENT] {
    // SAFETY: the caller's promise.
    let load = |i: usize| unsafe { _mm256_loadu_si256(codes.wrapping_add(i * row).cast()) };
    let (fifteen, three) = (_mm256_set1_epi8(15), _mm256_set1_epi8(3));
    let mut quads = [_mm256_setzero_si256(); SEGMENT];
    if NBITS == 4 {
        for (i, two) in quads.chunks_exact_mut(2).enumerate() {
            let bytes = load(i);
            two[0] = _mm256_and_si256(bytes, fifteen);
            two[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), fifteen);
        }
        return quads;
    }
    for (i, four) in quads.chunks_exact_mut(4).enumerate() {
        let bytes = load(i);
        four[0] = _mm256_and_si256(bytes, three);
        four[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 2), three);
        four[2] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), three);
        four[3] = _mm256_and_si256(_mm256_srli_epi16(bytes, 6), three);
    }
    if NBITS == 3 {
        let (bytes, four) = (load(2), _mm256_set1_epi8(4));
        let third = |bits| _mm256_and_si256(bits, four);
        quads[0] = _mm256_or_si256(quads[0], third(_mm256_slli_epi16(bytes, 2)));
        quads[1] = _mm256_or_si256(quads[1], third(_mm256_slli_epi16(bytes, 1)));
        quads[2] = _mm256_or_si256(quads[2], third(bytes));
        quads[3] = _mm256_or_si256(quads[3], third(_mm256_srli_epi16(bytes, 1)));
        quads[4] = _mm256_or_si256(quads[4], third(_mm256_srli_epi16(bytes, 2)));
        quads[5] = _mm256_or_si256(quads[5], third(_mm256_srli_epi16(bytes, 3)));
        quads[6] = _mm256_or_si256(quads[6], third(_mm256_srli_epi16(bytes, 4)));
        quads[7] = _mm256_or_si256(quads[7], third(_mm256_srli_epi16(bytes, 5)));
    }
    quads
}

/// `V` vectors of columns from `first` on.
///
/// # Safety
/// Each row of `out` has the panel's columns from `col` on.
#[target_feature(enable = "avx2,bmi2")]
unsafe fn some_groups<const V: usize>(
    block: &GroupBlock,
    bytes: &[i32],
    sums: &[i32],
    scratch: &mut [i32],
    first: usize,
    out: &mut [&mut [i32]],
    col: usize,
) {
    let (panel, m) = (block.panel, out.len());
    let (groups, pairs) = (panel.groups, pairs_of(panel.pass, panel.groups.group_size()));
    let (columns, rest) = scratch.split_at_mut(NR * DEPTH);
    let (multipliers, zeros) = rest.split_at_mut(NR * segments_of_chunk(groups.group_size()));
    if groups.symmetric() && groups.middle() == offset(groups.nbits()) {
        out.iter_mut().for_each(|out| out[col + first..col + first + 8 * V].fill(0));
    } else {
        zero_points::<V>(panel, block.depth.clone(), first, zeros);
        let part = Part {
            bytes: false,
            a: &sums[block.depth.start / panel.pass * pairs..],
            stride: sums.len() / m,
            columns: &zeros[..8 * V * pairs],
            dwords: pairs,
            start: Some(&[0; NR][..8 * V]),
            col: col + first,
        };
        // SAFETY: the caller's promise.
        unsafe { part.all::<V>(out) };
    }
    for from in block.depth.clone().step_by(CHUNK) {
        let depth = from..block.depth.end.min(from + CHUNK);
        let columns = &mut columns[..8 * V * depth.len().next_multiple_of(SUPER) / 4];
        for plane in 0..if groups.nbits() > 4 { 2 } else { 1 } {
            group_codes::<V>(panel, depth.clone(), first, plane, columns);
            group_multipliers::<V>(panel, depth.clone(), first, plane, multipliers);
            let part = GroupPart {
                a: &bytes[depth.start / 4..],
                stride: bytes.len() / m,
                columns,
                multipliers,
                depth: depth.clone(),
                group_size: groups.group_size(),
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
    }
}

/// What is taken from codes before they are multiplied: of four bits and fewer half
/// their range, of more 8 from their lowest four.
fn offset(nbits: u32) -> u8 {
    1 << (nbits.min(4) - 1)
}

/// Eight columns' multipliers in a group, as dwords.
#[inline]
#[target_feature(enable = "avx2")]
fn multipliers_of(panel: &GroupPanel, group: usize, first: usize) -> __m256i {
    let eight = &panel.multipliers[group * panel.width + first..][..8];
    // SAFETY: 8 bytes.
    unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(eight.as_ptr().cast())) }
}

/// The multipliers of a chunk, each twice, `[segment][column][2]`; 16 times as large for
/// the plane above four bits.
#[target_feature(enable = "avx2")]
fn group_multipliers<const V: usize>(
    panel: &GroupPanel,
    depth: Range<usize>,
    first: usize,
    plane: usize,
    to: &mut [i32],
) {
    let up = _mm_cvtsi32_si128(if plane == 1 { 4 } else { 0 });
    let group_size = panel.groups.group_size();
    for (segment, to) in cut(depth, SUPER, group_size).zip(to.chunks_exact_mut(8 * V)) {
        for (v, to) in to.chunks_exact_mut(8).enumerate() {
            let by = _mm256_sll_epi32(multipliers_of(panel, segment.start / group_size, first + 8 * v), up);
            // SAFETY: the chunk is 8 dwords.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_or_si256(by, _mm256_slli_epi32(by, 16))) };
        }
    }
}

/// `multiplier · (offset - zero point)` of a pass's spans, `[span / 2][column][2]`.
#[target_feature(enable = "avx2,bmi2")]
fn zero_points<const V: usize>(panel: &GroupPanel, depth: Range<usize>, first: usize, to: &mut [i32]) {
    let (groups, nbits) = (panel.groups, panel.groups.nbits() as usize);
    let each = 0x0101_0101_0101_0101;
    let offset = _mm256_set1_epi32(offset(groups.nbits()).into());
    to.fill(0);
    for (i, span) in cut(depth, SPAN, groups.group_size()).enumerate() {
        let group = span.start / groups.group_size();
        for (v, to) in to[8 * V * (i / 2)..][..8 * V].chunks_exact_mut(8).enumerate() {
            let at = group * panel.width + first + 8 * v;
            let zero = if groups.symmetric() {
                u64::from(groups.middle()) * each
            } else {
                // The codes follow: there are eight bytes.
                let bytes = panel.zeros[at * nbits / 8..].first_chunk().map_or(0, |&b| u64::from_le_bytes(b));
                _pdep_u64(bytes, u64::from(groups.qmax()) * each)
            };
            let zero = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(zero as i64));
            // Both within 16 bits, the product too: 255 · 63.
            let part = _mm256_mullo_epi16(multipliers_of(panel, group, first + 8 * v), _mm256_sub_epi32(offset, zero));
            let part = if i % 2 == 0 {
                _mm256_and_si256(part, _mm256_set1_epi32(0xffff))
            } else {
                _mm256_slli_epi32(part, 16)
            };
            // SAFETY: the chunk is 8 dwords.
            unsafe {
                let both = _mm256_or_si256(part, _mm256_loadu_si256(to.as_ptr().cast()));
                _mm256_storeu_si256(to.as_mut_ptr().cast(), both);
            }
        }
    }
}

/// Unpacks one plane of a chunk's codes, `[quad][column][4]`: the lowest four bits less
/// [`offset`], or what is above them.
#[target_feature(enable = "avx2")]
fn group_codes<const V: usize>(panel: &GroupPanel, depth: Range<usize>, first: usize, plane: usize, to: &mut [i32]) {
    let (nbits, row) = (panel.groups.nbits(), 4 * panel.width);
    let less = _mm256_set1_epi8(if plane == 0 { offset(nbits) as i8 } else { 0 });
    let supersteps = depth.start / SUPER..depth.end.div_ceil(SUPER);
    let size = row * nbits as usize;
    let codes = panel.codes[supersteps.start * size..supersteps.end * size].chunks_exact(size);
    assert!(first + 8 * V <= panel.width && to.len() == 8 * V * SEGMENT * supersteps.len());
    for (codes, to) in codes.zip(to.chunks_exact_mut(8 * V * SEGMENT)) {
        for (step, to) in to.chunks_exact_mut(8 * V).enumerate() {
            // Bits of this plane: four, or two and one.
            let places = match (nbits, plane) {
                (4.., 0) => [Some((step / 2, 4 * (step % 2), 15, 0)), None],
                (3, _) => [Some((step / 4, 2 * (step % 4), 3, 0)), Some((2, step, 1, 2))],
                (2, _) => [Some((step / 4, 2 * (step % 4), 3, 0)), None],
                (5, _) => [Some((4, step, 1, 0)), None],
                _ => [Some((4 + step / 4, 2 * (step % 4), 3, 0)), None],
            };
            let mut sum = [_mm256_setzero_si256(); V];
            for (vector, shift, mask, up) in places.into_iter().flatten() {
                let from = &codes[vector * row + 4 * first..][..32 * V];
                let (shift, up) = (_mm_cvtsi32_si128(shift as i32), _mm_cvtsi32_si128(up));
                for (sum, from) in sum.iter_mut().zip(from.chunks_exact(32)) {
                    // SAFETY: the chunk is 32 bytes.
                    let bits = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
                    let bits = _mm256_and_si256(_mm256_srl_epi16(bits, shift), _mm256_set1_epi8(mask));
                    *sum = _mm256_or_si256(*sum, _mm256_sll_epi16(bits, up));
                }
            }
            for (sum, to) in sum.into_iter().zip(to.chunks_exact_mut(8)) {
                // SAFETY: the chunk is 8 dwords.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_sub_epi8(sum, less)) };
            }
        }
    }
}

/// One plane of a chunk of some columns, and the rows for it.
struct GroupPart<'a> {
    /// From the chunk's first on, and from row to row.
    a: &'a [i32],
    stride: usize,
    columns: &'a [i32],
    multipliers: &'a [i32],
    depth: Range<usize>,
    group_size: usize,
    /// Where the columns begin in a row of `out`, whose sums go on.
    col: usize,
}

impl GroupPart<'_> {
    /// As [`Part::tiles`].
    ///
    /// # Safety
    /// Each row of `out` has these columns.
    #[target_feature(enable = "avx2")]
    unsafe fn tiles<const R: usize, const V: usize>(&self, first: usize, out: &mut [[&mut [i32]; R]]) {
        if out.is_empty() {
            return;
        }
        let (last, quads) = (first + R * out.len() - 1, self.columns.len() / (8 * V));
        assert!(self.a.len() >= last * self.stride + quads && quads >= self.depth.len().div_ceil(4));
        let whole = self.group_size.is_multiple_of(SUPER);
        let segments_here =
            if whole { quads / SEGMENT } else { cut(self.depth.clone(), SUPER, self.group_size).count() };
        assert!(quads.is_multiple_of(SEGMENT) && quads > 0 && self.multipliers.len() >= 8 * V * segments_here);
        for (i, out) in out.iter_mut().enumerate() {
            let a = self.a.as_ptr().wrapping_add((first + R * i) * self.stride);
            let rows: [*const i32; R] = std::array::from_fn(|r| a.wrapping_add(r * self.stride));
            let out: [*mut __m256i; R] = std::array::from_fn(|r| out[r].as_mut_ptr().wrapping_add(self.col).cast());
            let (w, by) = (self.columns.as_ptr().cast(), self.multipliers.as_ptr().cast());
            // SAFETY: by the asserts and the caller's promise, each row has `quads`
            // dwords, each output V vectors; columns and multipliers V a dword or segment.
            unsafe {
                if let (true, 4, Ok(rows), Ok(out)) = (whole, V, rows[..].try_into(), out[..].try_into()) {
                    three_by_four_groups(rows, w, by, quads, out);
                } else {
                    self.tile::<R, V>(rows, w, by, out);
                }
            }
        }
    }

    /// # Safety
    /// As [`GroupPart::tiles`] says.
    #[target_feature(enable = "avx2")]
    unsafe fn tile<const R: usize, const V: usize>(
        &self,
        rows: [*const i32; R],
        mut w: *const __m256i,
        mut by: *const __m256i,
        out: [*mut __m256i; R],
    ) {
        let mut at = 0;
        for segment in cut(self.depth.clone(), SUPER, self.group_size) {
            let mut sums = [[_mm256_setzero_si256(); V]; R];
            // The last quad of the depth may be padded, with rows of 0.
            for _ in 0..segment.len().div_ceil(4) {
                for r in 0..R {
                    // SAFETY: the caller's promise.
                    let a = unsafe { _mm256_set1_epi32(rows[r].wrapping_add(at).read()) };
                    for v in 0..V {
                        // SAFETY: the caller's promise.
                        let w = unsafe { _mm256_loadu_si256(w.wrapping_add(v)) };
                        sums[r][v] = _mm256_add_epi16(sums[r][v], _mm256_maddubs_epi16(a, w));
                    }
                }
                at += 1;
                w = w.wrapping_add(V);
            }
            for v in 0..V {
                // SAFETY: the caller's promise.
                unsafe {
                    let by = _mm256_loadu_si256(by.wrapping_add(v));
                    for r in 0..R {
                        let out = out[r].wrapping_add(v);
                        let sum = _mm256_add_epi32(_mm256_loadu_si256(out), _mm256_madd_epi16(sums[r][v], by));
                        _mm256_storeu_si256(out, sum);
                    }
                }
            }
            by = by.wrapping_add(V);
        }
    }
}

/// The loop of the full tile over segments of 8 quads, in assembly as
/// `three_by_four` is: ymm12 and ymm15 hold two of four column vectors.
///
/// # Safety
/// The CPU has AVX2; `quads` is a multiple of 8 and not 0; each row has as many, `w` 4
/// vectors for each, `by` 4 for each segment, and each of `out` 4.
#[target_feature(enable = "avx2")]
unsafe fn three_by_four_groups(
    rows: [*const i32; 3],
    w: *const __m256i,
    by: *const __m256i,
    quads: usize,
    out: [*mut __m256i; 3],
) {
    #[rustfmt::skip]
    macro_rules! product {
        (first, $w:expr, $sum:literal) => {
            concat!("vpmaddubsw ", $sum, ", ymm13, ", $w, "\n")
        };
        (more, $w:expr, $sum:literal) => {
            concat!("vpmaddubsw ymm14, ymm13, ", $w, "\n", "vpaddw ", $sum, ", ", $sum, ", ymm14\n")
        };
    }
    #[rustfmt::skip]
    macro_rules! row {
        ($kind:ident, $row:literal, $i:literal, $c0:literal, $c1:literal, $c2:literal, $c3:literal) => {
            concat!(
                "vpbroadcastd ymm13, [{", $row, "} + {at} + 4*", $i, "]\n",
                product!($kind, "ymm12", $c0),
                product!($kind, "ymm15", $c1),
                product!($kind, concat!("[{w} + 128*", $i, " + 64]"), $c2),
                product!($kind, concat!("[{w} + 128*", $i, " + 96]"), $c3),
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! quad {
        ($kind:ident, $i:literal) => {
            concat!(
                "vmovdqu ymm12, [{w} + 128*", $i, "]\n",
                "vmovdqu ymm15, [{w} + 128*", $i, " + 32]\n",
                row!($kind, "a0", $i, "ymm0", "ymm1", "ymm2", "ymm3"),
                row!($kind, "a1", $i, "ymm4", "ymm5", "ymm6", "ymm7"),
                row!($kind, "a2", $i, "ymm8", "ymm9", "ymm10", "ymm11"),
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! flush {
        ($v:literal, $c0:literal, $c1:literal, $c2:literal) => {
            concat!(
                "vmovdqu ymm15, [{by} + 32*", $v, "]\n",
                "vpmaddwd ", $c0, ", ", $c0, ", ymm15\n",
                "vpmaddwd ", $c1, ", ", $c1, ", ymm15\n",
                "vpmaddwd ", $c2, ", ", $c2, ", ymm15\n",
                "vpaddd ", $c0, ", ", $c0, ", [{o0} + 32*", $v, "]\n",
                "vpaddd ", $c1, ", ", $c1, ", [{o1} + 32*", $v, "]\n",
                "vpaddd ", $c2, ", ", $c2, ", [{o2} + 32*", $v, "]\n",
                "vmovdqu [{o0} + 32*", $v, "], ", $c0, "\n",
                "vmovdqu [{o1} + 32*", $v, "], ", $c1, "\n",
                "vmovdqu [{o2} + 32*", $v, "], ", $c2, "\n",
            )
        };
    }
    let ends = rows.map(|row| row.wrapping_add(quads));
    // SAFETY: the caller's promises; what is written is declared.
    unsafe {
        std::arch::asm!(
            "2:",
            quad!(first, "0"),
            quad!(more, "1"),
            quad!(more, "2"),
            quad!(more, "3"),
            quad!(more, "4"),
            quad!(more, "5"),
            quad!(more, "6"),
            quad!(more, "7"),
            flush!("0", "ymm0", "ymm4", "ymm8"),
            flush!("1", "ymm1", "ymm5", "ymm9"),
            flush!("2", "ymm2", "ymm6", "ymm10"),
            flush!("3", "ymm3", "ymm7", "ymm11"),
            "add {w}, 1024",
            "add {by}, 128",
            "add {at}, 32",
            "jnz 2b",
            a0 = in(reg) ends[0],
            a1 = in(reg) ends[1],
            a2 = in(reg) ends[2],
            o0 = in(reg) out[0],
            o1 = in(reg) out[1],
            o2 = in(reg) out[2],
            w = inout(reg) w => _,
            by = inout(reg) by => _,
            at = inout(reg) (4 * quads).wrapping_neg() => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
}
