//! NEON: weights in groups, which `scalar::groups` defines.
//!
//! Codes and rows are both unsigned bytes, so their products sum in 32 bits as they are.
//! A group's sum less its zero point times the row's sum is multiplied by the group's
//! multiplier.

use std::arch::aarch64::*;
use std::ops::Range;

use super::{Dot, Products, Widening};
use crate::Isa;
use crate::gemm::GroupBlock;
use crate::gemm::groups::{GroupPanel, SUPER};
use crate::gemm::tiled::PANEL;

/// Depth of a panel that is unpacked at a time, at most: 16 KiB, a part of the nearest
/// cache.
const CHUNK: usize = 256;
/// Fewer rows than this do not repay unpacking to memory.
const FEW: usize = 4;
/// Quads of a superstep.
const QUADS: usize = SUPER / 4;

/// What is unpacked at a time: all of a depth of one pass, or a part that divides it.
fn chunk_of(pass: usize) -> usize {
    pass.min(CHUNK)
}

/// The number of the span that a depth is in; a span ends where a group or a chunk does.
fn span(at: usize, pass: usize, group_size: usize) -> usize {
    at / chunk_of(pass) + at / group_size
}

/// Spans of a chunk, at most.
fn spans_of_chunk(group_size: usize) -> usize {
    (CHUNK / group_size + 2).min(CHUNK / 8)
}

/// Cuts a chunk into spans.
#[inline(always)]
fn cut(chunk: Range<usize>, group_size: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = chunk.start;
    std::iter::from_fn(move || {
        let end = ((at / group_size + 1) * group_size).min(chunk.end);
        (at < end).then(|| std::mem::replace(&mut at, end)..end)
    })
}

/// Dwords of scratch of [`groups`]: rows in bytes, their sums over spans or supersteps;
/// for many rows a chunk's codes, and its spans' multipliers without and with zero points.
pub(in crate::gemm) fn groups_scratch_len(rows: usize, k: usize, pass: usize, group_size: usize) -> usize {
    let row = k.next_multiple_of(SUPER) / 4;
    let few = rows.min(FEW - 1) * (row + row / QUADS);
    let many = rows * (row + span(k, pass, group_size) + 1) + PANEL * (CHUNK / 4 + 2 * spans_of_chunk(group_size));
    few.max(many)
}

/// The block's rows to a multiple of a superstep, and their sums over spans or supersteps.
fn prepare_rows(block: &GroupBlock, few: bool, bytes: &mut [u8], sums: &mut [i32], count: usize) {
    let (k, pass, group_size) = (block.panel.k, block.panel.pass, block.panel.groups.group_size());
    let step = if few { SUPER } else { chunk_of(pass) };
    sums.fill(0);
    let rows = block.a.chunks_exact(k).zip(bytes.chunks_exact_mut(k.next_multiple_of(SUPER)));
    for ((a, row), sums) in rows.zip(sums.chunks_exact_mut(count)) {
        row[..k].copy_from_slice(a);
        row[k..].fill(0);
        let sum = |range: Range<usize>| a[range].iter().map(|&a| i32::from(a)).sum();
        for from in (0..k).step_by(step) {
            let depth = from..k.min(from + step);
            if few {
                sums[from / SUPER] = sum(depth);
                continue;
            }
            for part in cut(depth, group_size) {
                let at = span(part.start, pass, group_size);
                sums[at] = sum(part);
            }
        }
    }
}

/// Rows as [`prepare_rows`] made them.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// `[row][K]`, padded to a multiple of a superstep.
    bytes: &'a [u8],
    stride: usize,
    /// `[row][count]`
    sums: &'a [i32],
    count: usize,
}

/// `scalar::groups`, into the first columns of each row.
///
/// # Safety
/// `isa` is at least NEON.
///
/// # Panics
/// Unless `block.a` is as many rows as `out`, each of which has the panel's columns, and
/// `scratch` holds [`groups_scratch_len`] dwords; `made` tells whether the rows are in it.
pub(in crate::gemm) unsafe fn groups(
    isa: Isa,
    block: &GroupBlock,
    scratch: &mut [i32],
    made: &mut bool,
    out: &mut [&mut [i32]],
) {
    #[target_feature(enable = "neon,dotprod")]
    fn dot(panel: &GroupPanel, depth: Range<usize>, rows: Rows, scratch: &mut [i32], out: &mut [&mut [i32]]) {
        // SAFETY: the features of this function.
        unsafe { all(Dot::new(), panel, depth, rows, scratch, out) }
    }
    #[target_feature(enable = "neon")]
    fn widening(panel: &GroupPanel, depth: Range<usize>, rows: Rows, scratch: &mut [i32], out: &mut [&mut [i32]]) {
        // SAFETY: the features of this function.
        unsafe { all(Widening::new(), panel, depth, rows, scratch, out) }
    }
    let (panel, group_size) = (block.panel, block.panel.groups.group_size());
    let few = is_few(out.len(), group_size);
    let row = panel.k.next_multiple_of(SUPER);
    let count = if few { row / SUPER } else { span(panel.k, panel.pass, group_size) + 1 };
    let (bytes, rest) = scratch.split_at_mut(row / 4 * out.len());
    let (sums, rest) = rest.split_at_mut(count * out.len());
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(bytes);
    if !std::mem::replace(made, true) {
        prepare_rows(block, few, bytes, sums, count);
    }
    let chunk = chunk_of(panel.pass);
    assert!(panel.pass == panel.k || panel.pass.is_multiple_of(chunk) && chunk.is_multiple_of(SUPER));
    assert!(block.depth.start.is_multiple_of(panel.pass) && block.depth.end <= panel.k);
    let rows = Rows { bytes, stride: row, sums, count };
    // SAFETY: an Isa exists only where the CPU has it.
    unsafe {
        if isa.has_neondot() {
            dot(panel, block.depth.clone(), rows, rest, out);
        } else {
            widening(panel, block.depth.clone(), rows, rest, out);
        }
    }
}

/// Whether so many rows' codes are unpacked in registers.
fn is_few(rows: usize, group_size: usize) -> bool {
    rows < FEW && group_size.is_multiple_of(SUPER)
}

/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn all<P: Products>(
    p: P,
    panel: &GroupPanel,
    depth: Range<usize>,
    rows: Rows,
    scratch: &mut [i32],
    out: &mut [&mut [i32]],
) {
    out.iter_mut().for_each(|out| out[..panel.width].fill(0));
    // SAFETY: the caller's promise.
    unsafe {
        if is_few(out.len(), panel.groups.group_size()) {
            match panel.groups.nbits() {
                2 => few::<P, 2>(p, panel, depth, rows, out),
                3 => few::<P, 3>(p, panel, depth, rows, out),
                4 => few::<P, 4>(p, panel, depth, rows, out),
                5 => few::<P, 5>(p, panel, depth, rows, out),
                6 => few::<P, 6>(p, panel, depth, rows, out),
                _ => few::<P, 8>(p, panel, depth, rows, out),
            }
        } else {
            many(p, panel, depth, rows, scratch, out);
        }
    }
}

// ------------------------------------------------------------------ few rows

/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn few<P: Products, const NBITS: usize>(
    p: P,
    panel: &GroupPanel,
    depth: Range<usize>,
    rows: Rows,
    out: &mut [&mut [i32]],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match out {
            [a, b, c] => few_rows::<P, 3, NBITS>(p, panel, depth, rows, [a, b, c]),
            [a, b] => few_rows::<P, 2, NBITS>(p, panel, depth, rows, [a, b]),
            [a] => few_rows::<P, 1, NBITS>(p, panel, depth, rows, [a]),
            _ => (),
        }
    }
}

/// The panel's bytes are unpacked in registers, in order, a superstep at a time.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn few_rows<P: Products, const R: usize, const NBITS: usize>(
    p: P,
    panel: &GroupPanel,
    depth: Range<usize>,
    rows: Rows,
    out: [&mut &mut [i32]; R],
) {
    let (width, stride) = (panel.width, rows.stride);
    let per_group = panel.groups.group_size() / SUPER;
    for step in depth.start / SUPER..depth.end.div_ceil(SUPER) {
        let codes = &panel.codes[step * 4 * width * NBITS..][..4 * width * NBITS];
        // SAFETY: a row of `bytes` has SUPER for each step, `quads` is told of 16 bytes in
        // each row of `codes`, and of `out` each chunk is 4.
        unsafe {
            let mut a = [[vdupq_n_u8(0); 2]; R];
            let mut minus = [vdupq_n_s32(0); R];
            for r in 0..R {
                let row = &rows.bytes[r * stride + step * SUPER..][..SUPER];
                a[r] = [vld1q_u8(row.as_ptr()), vld1q_u8(row[16..].as_ptr())];
                minus[r] = vdupq_n_s32(-rows.sums[r * rows.count + step]);
            }
            for at in (0..width).step_by(8) {
                let by = multipliers(panel, step / per_group, at);
                let zero = zero_points::<NBITS>(panel, step / per_group, at);
                for half in 0..2 {
                    let at = at + 4 * half;
                    let quads = quads::<NBITS>(&codes[4 * at..], 4 * width);
                    for r in 0..R {
                        let mut sum = p.start(vmulq_s32(zero[half], minus[r]));
                        for i in 0..2 {
                            sum = p.unsigned::<0>(sum, quads[4 * i], a[r][i]);
                            sum = p.unsigned::<1>(sum, quads[4 * i + 1], a[r][i]);
                            sum = p.unsigned::<2>(sum, quads[4 * i + 2], a[r][i]);
                            sum = p.unsigned::<3>(sum, quads[4 * i + 3], a[r][i]);
                        }
                        let to = &mut out[r][at..at + 4];
                        let sum = vmlaq_s32(vld1q_s32(to.as_ptr()), p.total(sum), by[half]);
                        vst1q_s32(to.as_mut_ptr(), sum);
                    }
                }
            }
        }
    }
}

/// The multipliers of eight columns in a group.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn multipliers(panel: &GroupPanel, group: usize, at: usize) -> [int32x4_t; 2] {
    let eight = &panel.multipliers[group * panel.width + at..][..8];
    // SAFETY: 8 bytes; the caller's promise.
    unsafe { dwords(vmovl_u8(vld1_u8(eight.as_ptr()))) }
}

/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn dwords(x: uint16x8_t) -> [int32x4_t; 2] {
    // SAFETY: the caller's promise.
    unsafe { [vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(x))), vreinterpretq_s32_u32(vmovl_high_u16(x))] }
}

/// The zero points of eight columns in a group.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn zero_points<const NBITS: usize>(panel: &GroupPanel, group: usize, at: usize) -> [int32x4_t; 2] {
    if panel.groups.symmetric() {
        // SAFETY: the caller's promise.
        return [unsafe { vdupq_n_s32(panel.groups.middle().into()) }; 2];
    }
    // The codes follow: there are eight bytes.
    let eight = &panel.zeros[(group * panel.width + at) * NBITS / 8..][..8];
    let (bytes, right) = const { places_of_zeros(NBITS) };
    // SAFETY: 8 bytes, and arrays of 16.
    unsafe {
        let eight = vld1_u8(eight.as_ptr());
        let two = vqtbl1q_u8(vcombine_u8(eight, eight), vld1q_u8(bytes.as_ptr()));
        let zero = vshlq_u16(vreinterpretq_u16_u8(two), vld1q_s16(right.as_ptr()));
        dwords(vandq_u16(zero, vdupq_n_u16(panel.groups.qmax().into())))
    }
}

/// Of eight zero points the two bytes that each begins in, and minus the bit.
const fn places_of_zeros(nbits: usize) -> ([u8; 16], [i16; 8]) {
    let (mut bytes, mut right, mut i) = ([0; 16], [0; 8], 0);
    while i < 8 {
        bytes[2 * i] = (i * nbits / 8) as u8;
        bytes[2 * i + 1] = bytes[2 * i] + 1;
        right[i] = -((i * nbits % 8) as i16);
        i += 1;
    }
    (bytes, right)
}

/// The eight quads of a superstep of four columns, whose first row of bytes is at the
/// start of `codes` and the others `row` apart.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn quads<const NBITS: usize>(codes: &[u8], row: usize) -> [uint8x16_t; QUADS] {
    assert!(codes.len() >= (NBITS - 1) * row + 16);
    // SAFETY: the assert: 16 bytes in each of the NBITS rows.
    unsafe {
        let load = |i: usize| vld1q_u8(codes.as_ptr().wrapping_add(i * row));
        let mut quads = [vdupq_n_u8(0); QUADS];
        let (mut at, mut up) = (0, 0);
        let planes: &[usize] = match NBITS {
            8 => &[4, 4],
            6 => &[4, 2],
            5 => &[4, 1],
            4 => &[4],
            3 => &[2, 1],
            _ => &[2],
        };
        for &bits in planes {
            let (each, mask) = (QUADS / bits, vdupq_n_u8(((1 << bits) - 1) << up));
            for i in 0..bits {
                let bytes = load(at + i);
                for place in 0..QUADS / bits {
                    let bits = vshlq_u8(bytes, vdupq_n_s8(up as i8 - (place * bits) as i8));
                    let quad = &mut quads[i * each + place];
                    *quad = vorrq_u8(*quad, vandq_u8(bits, mask));
                }
            }
            at += bits;
            up += bits;
        }
        quads
    }
}

// ------------------------------------------------------------------ many rows

/// A chunk of a panel, unpacked.
struct Chunk<'a> {
    depth: Range<usize>,
    pass: usize,
    group_size: usize,
    width: usize,
    /// `[quad][column][4]`
    codes: &'a [u8],
    /// `[span][column]`: multipliers, and multipliers times zero points.
    by: &'a [i32],
    less: &'a [i32],
}

/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn many<P: Products>(
    p: P,
    panel: &GroupPanel,
    depth: Range<usize>,
    rows: Rows,
    scratch: &mut [i32],
    out: &mut [&mut [i32]],
) {
    let group_size = panel.groups.group_size();
    let (codes, rest) = scratch.split_at_mut(PANEL * CHUNK / 4);
    let codes: &mut [u8] = bytemuck::cast_slice_mut(codes);
    let (by, less) = rest.split_at_mut(PANEL * spans_of_chunk(group_size));
    let most = chunk_of(panel.pass);
    for from in depth.clone().step_by(most) {
        let depth = from..depth.end.min(from + most);
        // SAFETY: the caller's promise.
        unsafe {
            match panel.groups.nbits() {
                2 => unpack::<2>(panel, depth.clone(), codes, by, less),
                3 => unpack::<3>(panel, depth.clone(), codes, by, less),
                4 => unpack::<4>(panel, depth.clone(), codes, by, less),
                5 => unpack::<5>(panel, depth.clone(), codes, by, less),
                6 => unpack::<6>(panel, depth.clone(), codes, by, less),
                _ => unpack::<8>(panel, depth.clone(), codes, by, less),
            }
            let chunk = Chunk { depth, pass: panel.pass, group_size, width: panel.width, codes, by, less };
            for at in (0..panel.width).step_by(16) {
                for (i, out) in out.chunks_mut(P::ROWS).enumerate() {
                    let first = i * P::ROWS;
                    match out {
                        [a, b, c, d] => tile::<P, 4>(p, &chunk, rows, first, at, [a, b, c, d]),
                        [a, b, c] => tile::<P, 3>(p, &chunk, rows, first, at, [a, b, c]),
                        [a, b] => tile::<P, 2>(p, &chunk, rows, first, at, [a, b]),
                        [a] => tile::<P, 1>(p, &chunk, rows, first, at, [a]),
                        _ => (),
                    }
                }
            }
        }
    }
}

/// Fills a [`Chunk`].
///
/// # Safety
/// The CPU has NEON.
#[target_feature(enable = "neon")]
unsafe fn unpack<const NBITS: usize>(
    panel: &GroupPanel,
    depth: Range<usize>,
    to: &mut [u8],
    by: &mut [i32],
    less: &mut [i32],
) {
    let (row, group_size) = (4 * panel.width, panel.groups.group_size());
    for (i, step) in (depth.start / SUPER..depth.end.div_ceil(SUPER)).enumerate() {
        let codes = &panel.codes[step * row * NBITS..][..row * NBITS];
        for at in (0..row).step_by(16) {
            // SAFETY: the caller's promise; each slice is 16 bytes.
            unsafe {
                for (quad, codes) in quads::<NBITS>(&codes[at..], row).into_iter().enumerate() {
                    vst1q_u8(to[(i * QUADS + quad) * row + at..][..16].as_mut_ptr(), codes);
                }
            }
        }
    }
    let lines = by.chunks_exact_mut(panel.width).zip(less.chunks_exact_mut(panel.width));
    for (span, (by, less)) in cut(depth, group_size).zip(lines) {
        for at in (0..panel.width).step_by(8) {
            // SAFETY: the caller's promise; each slice is 4 integers.
            unsafe {
                let multiplier = multipliers(panel, span.start / group_size, at);
                let zero = zero_points::<NBITS>(panel, span.start / group_size, at);
                for half in 0..2 {
                    let at = at + 4 * half;
                    vst1q_s32(by[at..at + 4].as_mut_ptr(), multiplier[half]);
                    vst1q_s32(less[at..at + 4].as_mut_ptr(), vmulq_s32(multiplier[half], zero[half]));
                }
            }
        }
    }
}

/// `R` rows from `first` times a chunk's 16 columns from `at`, added to `out`.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn tile<P: Products, const R: usize>(
    p: P,
    chunk: &Chunk,
    rows: Rows,
    first: usize,
    at: usize,
    out: [&mut &mut [i32]; R],
) {
    let row = 4 * chunk.width;
    let stride = rows.stride;
    let bytes = &rows.bytes[first * stride..(first + R) * stride];
    let sums = &rows.sums[first * rows.count..(first + R) * rows.count];
    let out = out.map(|out| &mut out[at..at + 16]);
    assert!(chunk.depth.end.next_multiple_of(4) <= stride && at + 16 <= chunk.width);
    assert!(chunk.codes.len() >= chunk.depth.len().div_ceil(4) * row);
    let mut w = chunk.codes.as_ptr().wrapping_add(4 * at);
    let mut a = bytes.as_ptr().wrapping_add(chunk.depth.start);
    for (i, part) in cut(chunk.depth.clone(), chunk.group_size).enumerate() {
        let line = i * chunk.width + at..i * chunk.width + at + 16;
        let (by, less) = (&chunk.by[line.clone()], &chunk.less[line]);
        let span = span(part.start, chunk.pass, chunk.group_size);
        // SAFETY: the asserts: a row of codes and four bytes of each row for each quad of the
        // depth; of integers there are 16.
        unsafe {
            let mut products = [[p.start(vdupq_n_s32(0)); 4]; R];
            for _ in 0..part.len().div_ceil(4) {
                let mut four = [vdupq_n_u8(0); R];
                for r in 0..R {
                    four[r] = vreinterpretq_u8_u32(vld1q_dup_u32(a.wrapping_add(r * stride).cast()));
                }
                for v in 0..4 {
                    let w = vld1q_u8(w.wrapping_add(16 * v));
                    for r in 0..R {
                        products[r][v] = p.unsigned::<0>(products[r][v], w, four[r]);
                    }
                }
                a = a.wrapping_add(4);
                w = w.wrapping_add(row);
            }
            for v in 0..4 {
                let (by, less) = (vld1q_s32(by[4 * v..].as_ptr()), vld1q_s32(less[4 * v..].as_ptr()));
                for r in 0..R {
                    let to = out[r][4 * v..].as_mut_ptr();
                    let sum = vmlaq_s32(vld1q_s32(to), p.total(products[r][v]), by);
                    vst1q_s32(to, vmlsq_n_s32(sum, less, sums[r * rows.count + span]));
                }
            }
        }
    }
}
