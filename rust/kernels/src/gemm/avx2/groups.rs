//! AVX2: weights in groups, which `scalar::groups` defines.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{AHEAD, DEPTH, Form, LINE, MR, NR, Part};
use crate::gemm::GroupBlock;
use crate::gemm::groups::{GroupPanel, Groups, SUPER};

/// Depth of the columns that are unpacked at a time: DEPTH quads of a column.
const CHUNK: usize = 4 * DEPTH;
/// Quads whose products sum in 16 bits, u8 times codes of four bits less 8: 8 · 2 ·
/// 255 · 8 < 2^15.
const SEGMENT: usize = SUPER / 4;

/// The same for codes of any width: half as many for each bit above four.
fn quads_of_segment(groups: Groups) -> usize {
    match groups.nbits() {
        5 => SEGMENT / 2,
        6 => SEGMENT / 4,
        _ => SEGMENT,
    }
}

/// Segments of a chunk, at most: a chunk's ends may cut one each.
const SEGMENTS: usize = CHUNK / 8 + 2;

/// Fewer rows than this do not repay unpacking columns to memory.
const FEW_IN_GROUPS: usize = 4;
/// Quads of a superstep that few rows sum together where groups end within it: of 6
/// bits, 4 · 63 · 128 < 2^15.
const PIECE: usize = 2;
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

/// Cuts a depth into segments of at most [`quads_of_segment`], each within a group and
/// about as long as the others of it.
#[inline]
fn segments(depth: Range<usize>, groups: Groups) -> impl Iterator<Item = Range<usize>> {
    let (group_size, most) = (groups.group_size(), 4 * quads_of_segment(groups));
    let most = 4 * (group_size / 4).div_ceil(group_size.div_ceil(most));
    let mut at = depth.start;
    std::iter::from_fn(move || {
        let group = at / group_size * group_size;
        let end = (group + ((at - group) / most + 1) * most).min(group + group_size).min(depth.end);
        (at < end).then(|| std::mem::replace(&mut at, end)..end)
    })
}

/// Dwords of scratch of [`groups`]: rows in bytes, their sums over spans, and of the
/// columns the codes, multipliers, and what the zero points come to.
pub(in crate::gemm) fn groups_scratch_len(rows: usize, k: usize, pass: usize, group_size: usize) -> usize {
    let pairs = pairs_of(pass, group_size);
    let row = k.next_multiple_of(SUPER) / 4 + k.div_ceil(pass) * pairs;
    let many = row * rows + NR * (DEPTH + SEGMENTS + pairs) + LINE;
    many.max(rows.min(FEW_IN_GROUPS) * k.div_ceil(SUPER) * (SEGMENT + SEGMENT / PIECE))
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
/// A code less half its range is a signed byte; up to four bits, 32 of a column's
/// products with u8 sum in 16 bits. These are multiplied with the group's multiplier as
/// they are summed in 32 bits. The zero points' part is a product of its own, of the
/// rows' sums over groups. Codes of 8 bits are two such bytes: two planes.
///
/// # Safety
/// The CPU has AVX2; `scratch` holds [`groups_scratch_len`] dwords, and `made` tells
/// whether the rows are in it; `out` has as many rows as `block`, each of at least
/// `col + block.panel.width` columns; the depth is one pass.
#[target_feature(enable = "avx2")]
pub(in crate::gemm) unsafe fn groups(
    block: &GroupBlock,
    scratch: &mut [i32],
    made: &mut bool,
    out: &mut [&mut [i32]],
    col: usize,
) {
    let (k, pass) = (block.panel.k, block.panel.pass);
    let (groups, whole) = (block.panel.groups, block.depth == (0..k));
    if out.len() < FEW_IN_GROUPS && whole {
        let (steps, piece) = (k.div_ceil(SUPER), piece_of(groups));
        let (bytes, rest) = scratch.split_at_mut(steps * SEGMENT * out.len());
        let sums = &mut rest[..steps * SEGMENT / piece * out.len()];
        if !std::mem::replace(made, true) {
            rows_for_few(block, piece, bytes, sums);
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

/// Quads of a superstep that few rows sum together: all of it where the sums fit 16 bits
/// and no group ends within.
fn piece_of(groups: Groups) -> usize {
    match groups.nbits() {
        _ if !groups.group_size().is_multiple_of(SUPER) => PIECE,
        5 => 2 * PIECE, // 8 · 31 · 128 < 2^15
        6 => PIECE,
        _ => SEGMENT, // 16 · 15 · 128 < 2^15; 8 bits are two planes of 4
    }
}

/// The block's rows as `[row][K]` of i8, 128 less; and of each piece, as two i16, minus
/// the sums of those that `vpmaddubsw` adds to a dword's low and high half.
fn rows_for_few(block: &GroupBlock, piece: usize, bytes: &mut [i32], sums: &mut [i32]) {
    let (steps, pieces) = (block.panel.k.div_ceil(SUPER), SEGMENT / piece);
    let bytes: &mut [i8] = bytemuck::cast_slice_mut(bytes);
    let rows = block.a.chunks_exact(block.panel.k).zip(bytes.chunks_exact_mut(steps * SUPER));
    for ((a, row), sums) in rows.zip(sums.chunks_exact_mut(steps * pieces)) {
        row[a.len()..].fill(0);
        row.iter_mut().zip(a).for_each(|(to, a)| *to = (a ^ 0x80) as i8);
        for (sums, piece) in sums.iter_mut().zip(row.chunks_exact(4 * piece)) {
            let mut halves = [0i16; 2];
            piece.iter().enumerate().for_each(|(i, &a)| halves[i / 2 % 2] -= i16::from(a));
            *sums = bytemuck::cast(halves);
        }
    }
}

/// [`groups`] of a few rows: the panel's bytes are unpacked in registers, in order. With
/// rows 128 less, the products of a piece's codes as they are sum in 16 bits. What is
/// missing is 128 times the columns' sums.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn few_in_groups<const R: usize>(panel: &GroupPanel, bytes: &[i32], sums: &[i32], mut out: [&mut [i32]; R]) {
    let out = &mut out;
    match (panel.groups.nbits(), piece_of(panel.groups)) {
        (2, SEGMENT) => few_of::<R, 2, SEGMENT>(panel, bytes, sums, out),
        (3, SEGMENT) => few_of::<R, 3, SEGMENT>(panel, bytes, sums, out),
        (4, SEGMENT) => few_of::<R, 4, SEGMENT>(panel, bytes, sums, out),
        (8, SEGMENT) => few_of::<R, 8, SEGMENT>(panel, bytes, sums, out),
        (5, PIECE) => few_of::<R, 5, PIECE>(panel, bytes, sums, out),
        (5, _) => few_of::<R, 5, 4>(panel, bytes, sums, out),
        (2, _) => few_of::<R, 2, PIECE>(panel, bytes, sums, out),
        (3, _) => few_of::<R, 3, PIECE>(panel, bytes, sums, out),
        (4, _) => few_of::<R, 4, PIECE>(panel, bytes, sums, out),
        (6, _) => few_of::<R, 6, PIECE>(panel, bytes, sums, out),
        _ => few_of::<R, 8, PIECE>(panel, bytes, sums, out),
    }
}

#[target_feature(enable = "avx2")]
fn few_of<const R: usize, const NBITS: usize, const P: usize>(
    panel: &GroupPanel,
    bytes: &[i32],
    sums: &[i32],
    out: &mut [&mut [i32]; R],
) {
    let (groups, width, steps) = (panel.groups, panel.width, panel.k.div_ceil(SUPER));
    for out in out.iter_mut() {
        for (out, sum) in out.iter_mut().zip(panel.col_sum) {
            *out = i32::from_le_bytes(*sum).wrapping_mul(128);
        }
    }
    let (row, pieces) = (4 * width, SEGMENT / P);
    let codes = panel.codes.chunks_exact(row * NBITS);
    let (last, zeros) = (groups.count(panel.k) - 1, width * NBITS / 8);
    assert!(bytes.len() == R * steps * SEGMENT && sums.len() == R * steps * pieces && codes.len() == steps);
    assert!(out.iter().all(|out| out.len() >= width) && width.is_multiple_of(8));
    assert!(panel.multipliers.len() >= (last + 1) * width);
    // The codes follow: eight bytes can be read from the last column's on.
    assert!(groups.symmetric() || panel.zeros.len() >= (last + 1) * zeros + 8);
    let (spread, middle) = (Spread::new(NBITS), _mm256_set1_epi16(groups.middle().into()));
    for (step, codes) in codes.enumerate() {
        // Pointers, so that nothing else is in the loop.
        let mut ahead = codes.as_ptr().wrapping_add(AHEAD);
        let mut codes = codes.as_ptr();
        // The last superstep may have quads behind the last group, of rows of 0.
        let group: [usize; SEGMENT] =
            std::array::from_fn(|p| ((step * SUPER + 4 * P * p) / groups.group_size()).min(last));
        let a: [*const i32; R] = std::array::from_fn(|r| bytes.as_ptr().wrapping_add((r * steps + step) * SEGMENT));
        let sums: [*const i32; R] = std::array::from_fn(|r| sums.as_ptr().wrapping_add((r * steps + step) * pieces));
        for v in 0..width / 8 {
            // SAFETY: the asserts: a row has 8 dwords and a sum of each piece for each step,
            // a group's multipliers and zero points 8 for each vector of columns, each
            // output too, codes as `quads_of` wants them; a prefetch is harmless.
            unsafe {
                // The superstep's lines, spread over its columns.
                for _ in 0..NBITS.div_ceil(2) {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    ahead = ahead.wrapping_add(64);
                }
                let mut totals: [__m256i; R] =
                    std::array::from_fn(|r| _mm256_loadu_si256(out[r].as_ptr().wrapping_add(8 * v).cast()));
                for plane in 0..if NBITS == 8 { 2 } else { 1 } {
                    let quads = quads_of::<NBITS>(codes.wrapping_add(4 * plane * row), row);
                    for p in 0..pieces {
                        let by = panel.multipliers.as_ptr().wrapping_add(group[p] * width + 8 * v);
                        let mut by = twice(by.cast::<i64>().read_unaligned());
                        let mut points = middle;
                        if !groups.symmetric() {
                            let at = panel.zeros.as_ptr().wrapping_add(group[p] * zeros + v * NBITS);
                            points = spread.apart(at.cast::<i64>().read_unaligned());
                        }
                        if NBITS == 8 {
                            points = half_of(points, plane);
                            by = if plane == 1 { _mm256_slli_epi16(by, 4) } else { by };
                        }
                        for r in 0..R {
                            let sum = _mm256_set1_epi32(sums[r].wrapping_add(p).read());
                            let mut sum = _mm256_mullo_epi16(points, sum);
                            for i in P * p..P * (p + 1) {
                                let a = _mm256_set1_epi32(a[r].wrapping_add(i).read());
                                sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(quads[i], a));
                            }
                            totals[r] = _mm256_add_epi32(totals[r], _mm256_madd_epi16(sum, by));
                        }
                    }
                }
                for r in 0..R {
                    _mm256_storeu_si256(out[r].as_mut_ptr().wrapping_add(8 * v).cast(), totals[r]);
                }
            }
            codes = codes.wrapping_add(32);
        }
    }
}

/// Eight bytes, each as both halves of a dword.
#[inline]
#[target_feature(enable = "avx2")]
fn twice(eight: i64) -> __m256i {
    let order = _mm256_setr_epi8(
        0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1,
    );
    _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), order)
}

/// The lowest four bits of 16-bit values, or those above.
#[inline]
#[target_feature(enable = "avx2")]
fn half_of(x: __m256i, plane: usize) -> __m256i {
    if plane == 1 { _mm256_srli_epi16(x, 4) } else { _mm256_and_si256(x, _mm256_set1_epi16(15)) }
}

/// What takes eight packed codes apart, each into both halves of a dword. No `pdep`:
/// before Zen 3 it takes a cycle or more for each bit.
struct Spread {
    bytes: __m256i,
    up: __m256i,
    down: __m128i,
}

impl Spread {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(nbits: usize) -> Spread {
        let (mut bytes, mut up) = ([0u8; 32], [0i16; 16]);
        for half in 0..16 {
            // The two bytes that hold the code, and what brings it to their highest bits.
            let at = half / 2 * nbits;
            bytes[2 * half] = (at / 8) as u8;
            bytes[2 * half + 1] = (at / 8 + 1) as u8;
            up[half] = 1 << (16 - nbits - at % 8);
        }
        // SAFETY: both are 32 bytes.
        let [bytes, up] =
            unsafe { [_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(up.as_ptr().cast())] };
        Spread { bytes, up, down: _mm_cvtsi32_si128(16 - nbits as i32) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn apart(&self, eight: i64) -> __m256i {
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), self.bytes);
        _mm256_srl_epi16(_mm256_mullo_epi16(bytes, self.up), self.down)
    }
}

/// The eight quads of a superstep of eight columns, whose first row of bytes is at the
/// start of `codes` and the others `row` apart; of 8 bits those of one plane.
///
/// # Safety
/// 32 bytes can be read from each of the `NBITS` rows, or of 8 from four.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn quads_of<const NBITS: usize>(codes: *const u8, row: usize) -> [__m256i; SEGMENT] {
    // SAFETY: the caller's promise.
    let load = |i: usize| unsafe { _mm256_loadu_si256(codes.wrapping_add(i * row).cast()) };
    let mut quads = [_mm256_setzero_si256(); SEGMENT];
    if NBITS >= 4 {
        let fifteen = _mm256_set1_epi8(15);
        for (i, two) in quads.chunks_exact_mut(2).enumerate() {
            let bytes = load(i);
            two[0] = _mm256_and_si256(bytes, fifteen);
            two[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), fifteen);
        }
    } else {
        let three = _mm256_set1_epi8(3);
        for (i, four) in quads.chunks_exact_mut(4).enumerate() {
            let bytes = load(i);
            four[0] = _mm256_and_si256(bytes, three);
            four[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 2), three);
            four[2] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), three);
            four[3] = _mm256_and_si256(_mm256_srli_epi16(bytes, 6), three);
        }
    }
    // The bits above, from where they are to where they belong.
    match NBITS {
        3 | 5 => {
            let (bytes, mask) = (load(NBITS - 1), _mm256_set1_epi8(1 << (NBITS - 1)));
            for (i, quad) in quads.iter_mut().enumerate() {
                *quad = _mm256_or_si256(*quad, _mm256_and_si256(moved(bytes, NBITS as i32 - 1 - i as i32), mask));
            }
        }
        6 => {
            let (bytes, mask) = ([load(4), load(5)], _mm256_set1_epi8(0x30));
            for (i, quad) in quads.iter_mut().enumerate() {
                let bits = moved(bytes[i / 4], 4 - 2 * (i as i32 % 4));
                *quad = _mm256_or_si256(*quad, _mm256_and_si256(bits, mask));
            }
        }
        _ => (),
    }
    quads
}

/// 16-bit values shifted by `up` bits, or down.
#[inline]
#[target_feature(enable = "avx2")]
fn moved(x: __m256i, up: i32) -> __m256i {
    let by = _mm_cvtsi32_si128(up.abs());
    if up > 0 { _mm256_sll_epi16(x, by) } else { _mm256_srl_epi16(x, by) }
}

/// `V` vectors of columns from `first` on.
///
/// # Safety
/// Each row of `out` has the panel's columns from `col` on.
#[target_feature(enable = "avx2")]
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
    let (multipliers, zeros) = rest.split_at_mut(NR * SEGMENTS);
    let planes = if groups.nbits() == 8 { 2 } else { 1 };
    if groups.symmetric() && planes == 1 {
        out.iter_mut().for_each(|out| out[col + first..col + first + 8 * V].fill(0));
    } else {
        // Zero points of 8 bits would not fit 16 bits with their multipliers.
        for plane in 0..planes {
            zero_points::<V>(panel, block.depth.clone(), first, plane, zeros);
            let part = Part {
                form: Form::Words,
                a: &sums[block.depth.start / panel.pass * pairs..],
                stride: sums.len() / m,
                columns: &zeros[..8 * V * pairs],
                dwords: pairs,
                start: (plane == 0).then_some(&[0; NR][..8 * V]),
                col: col + first,
            };
            // SAFETY: the caller's promise.
            unsafe { part.all::<V>(out) };
        }
    }
    for from in block.depth.clone().step_by(CHUNK) {
        let depth = from..block.depth.end.min(from + CHUNK);
        let columns = &mut columns[..8 * V * depth.len().next_multiple_of(SUPER) / 4];
        // The last quad of the depth may be padded, with rows of 0.
        let (mut quads, mut count) = ([0; SEGMENTS], 0);
        for (quads, segment) in quads.iter_mut().zip(segments(depth.clone(), groups)) {
            *quads = segment.len().div_ceil(4) as u8;
            count += 1;
        }
        for plane in 0..planes {
            group_codes::<V>(panel, depth.clone(), first, plane, columns);
            group_multipliers::<V>(panel, depth.clone(), first, plane, multipliers);
            let part = GroupPart {
                a: &bytes[depth.start / 4..],
                stride: bytes.len() / m,
                columns,
                multipliers,
                quads: &quads[..count],
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

/// What is taken from a plane's codes before they are multiplied: half their range.
fn offset(nbits: u32) -> u8 {
    if nbits == 8 { 8 } else { 1 << (nbits - 1) }
}

/// Eight columns' multipliers in a group, each as both halves of a dword; 16 times as
/// large for the plane above four bits.
#[inline]
#[target_feature(enable = "avx2")]
fn multipliers_of(panel: &GroupPanel, group: usize, first: usize, plane: usize) -> __m256i {
    let by = twice(i64::from_le_bytes(
        panel.multipliers[group * panel.width + first..].first_chunk().copied().unwrap_or_default(),
    ));
    if plane == 1 { _mm256_slli_epi16(by, 4) } else { by }
}

/// The multipliers of a chunk, `[segment][column][2]`.
#[target_feature(enable = "avx2")]
fn group_multipliers<const V: usize>(
    panel: &GroupPanel,
    depth: Range<usize>,
    first: usize,
    plane: usize,
    to: &mut [i32],
) {
    let group_size = panel.groups.group_size();
    for (segment, to) in segments(depth, panel.groups).zip(to.chunks_exact_mut(8 * V)) {
        for (v, to) in to.chunks_exact_mut(8).enumerate() {
            let by = multipliers_of(panel, segment.start / group_size, first + 8 * v, plane);
            // SAFETY: the chunk is 8 dwords.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), by) };
        }
    }
}

/// `multiplier · (offset - zero point)` of a pass's spans and a plane, `[span /
/// 2][column][2]`.
#[target_feature(enable = "avx2")]
fn zero_points<const V: usize>(panel: &GroupPanel, depth: Range<usize>, first: usize, plane: usize, to: &mut [i32]) {
    let (groups, nbits) = (panel.groups, panel.groups.nbits() as usize);
    let offset = _mm256_set1_epi16(offset(groups.nbits()).into());
    let spread = Spread::new(nbits);
    to.fill(0);
    for (i, span) in cut(depth, SPAN, groups.group_size()).enumerate() {
        let group = span.start / groups.group_size();
        for (v, to) in to[8 * V * (i / 2)..][..8 * V].chunks_exact_mut(8).enumerate() {
            let at = group * panel.width + first + 8 * v;
            let mut zero = _mm256_set1_epi16(groups.middle().into());
            if !groups.symmetric() {
                // The codes follow: there are eight bytes.
                let eight = panel.zeros[at * nbits / 8..].first_chunk().copied().unwrap_or_default();
                zero = spread.apart(i64::from_le_bytes(eight));
            }
            if nbits == 8 {
                zero = half_of(zero, plane);
            }
            // Within 16 bits: 255 · 63, or 16 · 255 · 8.
            let part = multipliers_of(panel, group, first + 8 * v, plane);
            let part = _mm256_mullo_epi16(part, _mm256_sub_epi16(offset, zero));
            // SAFETY: the chunk is 8 dwords.
            unsafe {
                let before = _mm256_loadu_si256(to.as_ptr().cast());
                let both = if i % 2 == 0 {
                    _mm256_blend_epi16(before, part, 0b0101_0101)
                } else {
                    _mm256_blend_epi16(before, part, 0b1010_1010)
                };
                _mm256_storeu_si256(to.as_mut_ptr().cast(), both);
            }
        }
    }
}

/// Unpacks one plane of a chunk's codes less [`offset`], `[quad][column][4]`.
#[target_feature(enable = "avx2")]
fn group_codes<const V: usize>(panel: &GroupPanel, depth: Range<usize>, first: usize, plane: usize, to: &mut [i32]) {
    let (nbits, row) = (panel.groups.nbits(), 4 * panel.width);
    let less = _mm256_set1_epi8(offset(nbits) as i8);
    let supersteps = depth.start / SUPER..depth.end.div_ceil(SUPER);
    let size = row * nbits as usize;
    let codes = panel.codes[supersteps.start * size..supersteps.end * size].chunks_exact(size);
    assert!(first + 8 * V <= panel.width && to.len() == 8 * V * SEGMENT * supersteps.len());
    for (codes, to) in codes.zip(to.chunks_exact_mut(8 * V * SEGMENT)) {
        for (step, to) in to.chunks_exact_mut(8 * V).enumerate() {
            // Bits of this plane: four, or two, and those above them.
            let four = |vector| Some((vector + step / 2, 4 * (step % 2), 15, 0));
            let two = |vector, up| Some((vector + step / 4, 2 * (step % 4), 3, up));
            let one = |vector, up| Some((vector, step, 1, up));
            let places = match nbits {
                8 => [four(4 * plane), None],
                6 => [four(0), two(4, 4)],
                5 => [four(0), one(4, 4)],
                4 => [four(0), None],
                3 => [two(0, 0), one(2, 2)],
                _ => [two(0, 0), None],
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
    /// Of each segment.
    quads: &'a [u8],
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
        let last = first + R * out.len() - 1;
        let quads: usize = self.quads.iter().map(|&quads| usize::from(quads)).sum();
        assert!(self.a.len() >= last * self.stride + quads && self.columns.len() >= 8 * V * quads);
        assert!(self.multipliers.len() >= 8 * V * self.quads.len() && !self.quads.contains(&0));
        let whole = self.quads.iter().all(|&quads| usize::from(quads) == SEGMENT);
        for (i, out) in out.iter_mut().enumerate() {
            let a = self.a.as_ptr().wrapping_add((first + R * i) * self.stride);
            let rows: [*const i32; R] = std::array::from_fn(|r| a.wrapping_add(r * self.stride));
            let out: [*mut __m256i; R] = std::array::from_fn(|r| out[r].as_mut_ptr().wrapping_add(self.col).cast());
            let (w, by) = (self.columns.as_ptr().cast(), self.multipliers.as_ptr().cast());
            // SAFETY: by the asserts and the caller's promise, each row has the segments'
            // dwords, each output V vectors; columns and multipliers V a dword or segment.
            unsafe {
                match (V, rows[..].try_into(), out[..].try_into()) {
                    (4, Ok(rows), Ok(out)) if whole => three_by_four_groups(rows, w, by, quads, out),
                    (4, Ok(rows), Ok(out)) => three_by_four_segments(rows, w, by, self.quads, quads, out),
                    _ => self.tile::<R, V>(rows, w, by, out),
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
        for &quads in self.quads {
            let mut sums = [[_mm256_setzero_si256(); V]; R];
            for _ in 0..quads {
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

/// A row's quad, in ymm13, times a vector of columns.
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
/// Four column vectors of one quad times three rows, `$i` quads on: ymm12 and ymm15 hold
/// two of the vectors.
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
/// A segment's sums times its multipliers, to the outputs.
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
    () => {
        concat!(
            flush!("0", "ymm0", "ymm4", "ymm8"),
            flush!("1", "ymm1", "ymm5", "ymm9"),
            flush!("2", "ymm2", "ymm6", "ymm10"),
            flush!("3", "ymm3", "ymm7", "ymm11"),
            "add {by}, 128\n",
        )
    };
}

/// The loop of the full tile over segments of 8 quads, in assembly as
/// `three_by_four` is.
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
            flush!(),
            "add {w}, 1024",
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

/// The same over segments of any length.
///
/// # Safety
/// As there; `segments` are of at least one quad, and `quads` together.
#[target_feature(enable = "avx2")]
unsafe fn three_by_four_segments(
    rows: [*const i32; 3],
    w: *const __m256i,
    by: *const __m256i,
    segments: &[u8],
    quads: usize,
    out: [*mut __m256i; 3],
) {
    let ends = rows.map(|row| row.wrapping_add(quads));
    // SAFETY: the caller's promises; what is written is declared.
    unsafe {
        std::arch::asm!(
            "2:",
            "movzx {left:e}, byte ptr [{segment}]",
            "inc {segment}",
            quad!(first, "0"),
            "add {w}, 128",
            "add {at}, 4",
            "dec {left:e}",
            "jz 4f",
            "3:",
            quad!(more, "0"),
            "add {w}, 128",
            "add {at}, 4",
            "dec {left:e}",
            "jnz 3b",
            "4:",
            flush!(),
            "test {at}, {at}",
            "jnz 2b",
            a0 = in(reg) ends[0],
            a1 = in(reg) ends[1],
            a2 = in(reg) ends[2],
            o0 = in(reg) out[0],
            o1 = in(reg) out[1],
            o2 = in(reg) out[2],
            w = inout(reg) w => _,
            by = inout(reg) by => _,
            segment = inout(reg) segments.as_ptr() => _,
            left = out(reg) _,
            at = inout(reg) (4 * quads).wrapping_neg() => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
}
