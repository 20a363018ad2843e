//! Weights in groups, which `scalar::groups` defines, on CPUs with `vpdpbusd`: written
//! once for both widths of vector.
//!
//! A chunk of a panel is unpacked to signed bytes, code - zero point, and multiplied with
//! rows of unsigned ones. A group's sum is multiplied in 32 bits and added: `vpmulld` and
//! `vpaddd` find room beside `vpdpbusd`, where `vpdpwssd` takes its place. Codes of 8 bits
//! less their zero points would not fit a byte: they are unpacked less 128, and a group's
//! sums start from (128 - zero point) · the row's sum.
//!
//! A few rows do not repay unpacking. For them codes are unsigned as they are and rows
//! signed, a - 128: sums start from minus zero point · the row's sum, and 128 times the
//! column's sum is added.

use std::ops::Range;

use super::GroupBlock;
use super::groups::{GroupPanel, Groups, SUPER};
use super::tiled::PANEL;
use crate::lanes::prefetch_line;

/// Depth of a panel's columns that are unpacked at a time, at most: two vectors of them stay in L1.
const CHUNK: usize = 512;
/// Rows with which all of the panel's columns should stay there, at most.
const SOME: usize = 32;
/// Quads of a superstep.
const QUADS: usize = SUPER / 4;
/// Rows that do not repay unpacking columns to memory, at most.
const FEW: usize = 4;
/// Dwords of a cache line.
const LINE: usize = 16;
/// Bytes ahead of the read position that a product of few rows asks for.
const AHEAD: usize = 8192;

/// Vectors of dwords with `vpdpbusd`. A value is a token: holding one proves that the CPU
/// has the instruction set, because the only way to make one is an `unsafe` call.
pub(super) trait Vnni: Copy {
    /// Dwords of a vector.
    const N: usize;
    /// Rows of a tile: with two vectors of columns, 4 · ROWS sums, and not more registers
    /// than there are.
    const ROWS: usize;
    type V: Copy;

    /// Runs what is written over these vectors, compiled for the instruction set.
    fn run<J: Job>(self, job: J);

    fn splat(self, x: i32) -> Self::V;
    /// # Safety
    /// N dwords can be read.
    unsafe fn load(self, from: *const i32) -> Self::V;
    /// # Safety
    /// N dwords can be written.
    unsafe fn store(self, to: *mut i32, x: Self::V);
    /// N bytes as dwords.
    ///
    /// # Safety
    /// N bytes can be read.
    unsafe fn widen(self, from: *const u8) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub_bytes(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn and(self, a: Self::V, b: Self::V) -> Self::V;
    fn or(self, a: Self::V, b: Self::V) -> Self::V;
    /// Dwords to the right, zeros from the left.
    fn right(self, a: Self::V, by: u32) -> Self::V;
    fn left(self, a: Self::V, by: u32) -> Self::V;
    /// Dwords to the right, signs from the left.
    fn right_signed(self, a: Self::V, by: u32) -> Self::V;
    /// `codes[index]` of each byte whose index is below 128, 0 of others; then each dword
    /// to the right by that of `by`.
    fn pick(self, codes: &[u8; 16], index: Self::V, by: Self::V) -> Self::V;
    /// Adds to each dword the four products of unsigned with signed bytes.
    fn dot_bytes(self, sum: Self::V, unsigned: Self::V, signed: Self::V) -> Self::V;
}

/// What is written once over [`Vnni`]; `#[inline(always)]` in [`Vnni::run`].
pub(super) trait Job {
    fn run<W: Vnni>(self, w: W);
}

/// A token, from the intrinsics of its instruction set: those that are safe for the token's
/// owner, then those that are not.
#[cfg(target_arch = "x86_64")]
macro_rules! vnni {
    (
        $(#[$meta:meta])* $token:ident, $needs:literal, $features:literal, $v:ty, $n:literal, $rows:literal,
        { $(fn $name:ident($($arg:ident: $ty:ty),*) $body:block)* }
        { $(fn $unsafe:ident($($uarg:ident: $uty:ty),*) $(-> $uret:ty)? $ubody:block)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub(super) struct $token(());

        $(#[$meta])*
        impl $token {
            /// # Safety
            #[doc = $needs]
            #[inline(always)]
            pub(super) unsafe fn new() -> Self {
                $token(())
            }
        }

        $(#[$meta])*
        impl crate::gemm::vnni::Vnni for $token {
            const N: usize = $n;
            const ROWS: usize = $rows;
            type V = $v;

            #[inline(always)]
            fn run<J: crate::gemm::vnni::Job>(self, job: J) {
                #[inline(never)]
                #[target_feature(enable = $features)]
                fn root<J: crate::gemm::vnni::Job>(w: $token, job: J) {
                    job.run(w);
                }
                // SAFETY: the token proves the instruction set.
                unsafe { root(self, job) }
            }
            $(
                #[inline(always)]
                fn $name(self, $($arg: $ty),*) -> $v {
                    // SAFETY: the token proves the instruction set; `pick` loads all of its 16 codes.
                    unsafe { $body }
                }
            )*
            $(
                #[inline(always)]
                unsafe fn $unsafe(self, $($uarg: $uty),*) $(-> $uret)? {
                    // SAFETY: the token proves the instruction set; the caller's promise.
                    unsafe { $ubody }
                }
            )*
        }
    };
}

/// A token of 8 dwords: AVX2's intrinsics and one more.
#[cfg(target_arch = "x86_64")]
macro_rules! vnni_256 {
    ($(#[$meta:meta])* $token:ident, $needs:literal, $features:literal, $dpbusd:ident) => {
        crate::gemm::vnni::vnni! {
            $(#[$meta])* $token, $needs, $features, __m256i, 8, 3,
            {
                fn splat(x: i32) { _mm256_set1_epi32(x) }
                fn add(a: __m256i, b: __m256i) { _mm256_add_epi32(a, b) }
                fn sub(a: __m256i, b: __m256i) { _mm256_sub_epi32(a, b) }
                fn sub_bytes(a: __m256i, b: __m256i) { _mm256_sub_epi8(a, b) }
                fn mul(a: __m256i, b: __m256i) { _mm256_mullo_epi32(a, b) }
                fn and(a: __m256i, b: __m256i) { _mm256_and_si256(a, b) }
                fn or(a: __m256i, b: __m256i) { _mm256_or_si256(a, b) }
                fn right(a: __m256i, by: u32) { _mm256_srl_epi32(a, _mm_cvtsi32_si128(by as i32)) }
                fn left(a: __m256i, by: u32) { _mm256_sll_epi32(a, _mm_cvtsi32_si128(by as i32)) }
                fn right_signed(a: __m256i, by: u32) { _mm256_sra_epi32(a, _mm_cvtsi32_si128(by as i32)) }
                fn pick(codes: &[u8; 16], index: __m256i, by: __m256i) {
                    let codes = _mm256_broadcastsi128_si256(_mm_loadu_si128(codes.as_ptr().cast()));
                    _mm256_srlv_epi32(_mm256_shuffle_epi8(codes, index), by)
                }
                fn dot_bytes(sum: __m256i, unsigned: __m256i, signed: __m256i) { $dpbusd(sum, unsigned, signed) }
            }
            {
                fn load(from: *const i32) -> __m256i { _mm256_loadu_si256(from.cast()) }
                fn store(to: *mut i32, x: __m256i) { _mm256_storeu_si256(to.cast(), x) }
                fn widen(from: *const u8) -> __m256i { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use {vnni, vnni_256};

/// The bytes of a dword, all alike.
fn each_byte(byte: u8) -> i32 {
    i32::from_ne_bytes([byte; 4])
}

/// Whether groups are whole supersteps.
fn is_even(groups: Groups) -> bool {
    groups.group_size().is_multiple_of(SUPER)
}

/// Whether codes less their zero points do not fit a byte.
fn is_wide(groups: Groups) -> bool {
    groups.nbits() == 8 && !groups.symmetric()
}

/// Whether these rows go through [`Few`].
fn is_few(rows: usize, whole: bool, groups: Groups) -> bool {
    rows <= FEW && whole && is_even(groups)
}

/// Cuts a depth where groups end.
#[inline]
fn segments(depth: Range<usize>, group_size: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = depth.start;
    std::iter::from_fn(move || {
        let end = ((at / group_size + 1) * group_size).min(depth.end);
        (at < end).then(|| std::mem::replace(&mut at, end)..end)
    })
}

/// Depth that is unpacked at a time for so many rows; passes are whole chunks.
fn chunk_of(rows: usize, pass: usize) -> usize {
    let most = if rows <= SOME { CHUNK / 2 } else { CHUNK };
    most.min(pass.next_multiple_of(SUPER))
}

/// Segments of a chunk, at most.
fn slots(groups: Groups, chunk: usize) -> usize {
    chunk.div_ceil(groups.group_size()) + 1
}

/// Dwords of scratch of [`groups`] with up to `rows` rows and passes of this depth: rows that have to be copied, their
/// sums, and of a panel's chunk the columns, what is missing from them, and the segments' quads.
pub(super) fn groups_scratch_len(rows: usize, (k, pass): (usize, usize), groups: Groups) -> usize {
    let row = k.next_multiple_of(SUPER) / 4;
    let copied = if k.is_multiple_of(SUPER) { 0 } else { rows * row };
    let columns = LINE + PANEL * CHUNK / 4;
    let sums = |rows: usize| {
        let (chunk, wide) = (chunk_of(rows, pass), is_wide(groups));
        slots(groups, chunk) * (1 + if wide { k.div_ceil(chunk) * rows + PANEL } else { 0 })
    };
    let many = copied + columns + sums(rows).max(sums(rows.min(SOME)));
    many.max(rows.min(FEW) * (row + k.div_ceil(SUPER)))
}

/// The sum of up to 2^22 bytes.
#[inline(always)]
fn sum_of(a: &[u8]) -> i32 {
    const LOW: u64 = 0x00ff_00ff_00ff_00ff;
    let (mut sum, (eights, rest)) = (0, a.as_chunks::<8>());
    for eights in eights.chunks(16) {
        let words = eights.iter().fold(0u64, |sum, eight| {
            let x = u64::from_le_bytes(*eight);
            sum.wrapping_add((x & LOW) + (x >> 8 & LOW))
        });
        sum += (words.wrapping_mul(0x0001_0001_0001_0001) >> 48) as i32;
    }
    rest.iter().fold(sum, |sum, &a| sum + i32::from(a))
}

/// Rows for [`Few`]: 128 less, padded to a superstep with 0, and minus their sums over supersteps.
struct Prepare<'a> {
    a: &'a [u8],
    k: usize,
    bytes: &'a mut [i32],
    sums: &'a mut [i32],
}

impl Job for Prepare<'_> {
    #[inline(always)]
    fn run<W: Vnni>(self, _: W) {
        let steps = self.k.div_ceil(SUPER);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(self.bytes);
        let rows = self.a.chunks_exact(self.k).zip(bytes.chunks_exact_mut(SUPER * steps));
        for ((a, row), sums) in rows.zip(self.sums.chunks_exact_mut(steps)) {
            row.iter_mut().zip(a).for_each(|(to, a)| *to = a ^ 0x80);
            row[self.k..].fill(0);
            for (sum, a) in sums.iter_mut().zip(a.chunks(SUPER)) {
                *sum = 128 * a.len() as i32 - sum_of(a);
            }
        }
    }
}

/// `scalar::groups`.
///
/// `scratch` holds [`groups_scratch_len`] dwords, and `made` tells whether the
/// rows' forms are in it; `out` has as many rows as `block`, each of at least `col + block.panel.width`
/// columns; the depth is one pass.
pub(super) fn groups<W: Vnni>(
    w: W,
    block: &GroupBlock,
    scratch: &mut [i32],
    made: &mut bool,
    out: &mut [&mut [i32]],
    col: usize,
) {
    let (panel, m, depth) = (block.panel, out.len(), block.depth.clone());
    let (groups, k) = (panel.groups, panel.k);
    let made = std::mem::replace(made, true);
    if is_few(m, depth == (0..k), groups) {
        let steps = k.div_ceil(SUPER);
        let (bytes, rest) = scratch.split_at_mut(m * steps * QUADS);
        let sums = &mut rest[..m * steps];
        if !made {
            w.run(Prepare { a: block.a, k, bytes, sums });
        }
        let rows = (&*bytes, &*sums);
        return match out {
            [a, b, c, d] => few_rows(w, panel, rows, [a, b, c, d].map(|out| &mut out[col..])),
            [a, b, c] => few_rows(w, panel, rows, [a, b, c].map(|out| &mut out[col..])),
            [a, b] => few_rows(w, panel, rows, [a, b].map(|out| &mut out[col..])),
            [a] => few_rows(w, panel, rows, [&mut a[col..]]),
            _ => (),
        };
    }
    let (padded, chunk, wide) = (k.next_multiple_of(SUPER), chunk_of(m, panel.pass), is_wide(groups));
    assert!(depth.start.is_multiple_of(chunk) && depth.end <= k);
    assert!(depth.end == k || depth.end.is_multiple_of(chunk));
    let slots = slots(groups, chunk);
    let (copied, rest) = scratch.split_at_mut(if padded == k { 0 } else { m * padded / 4 });
    let (sums, rest) = rest.split_at_mut(if wide { k.div_ceil(chunk) * slots * m } else { 0 });
    if !made {
        let copied: &mut [u8] = bytemuck::cast_slice_mut(copied);
        for (a, row) in block.a.chunks_exact(k).zip(copied.chunks_exact_mut(padded)) {
            row[..k].copy_from_slice(a);
            row[k..].fill(0);
        }
        for (from, sums) in (0..k).step_by(chunk).zip(sums.chunks_exact_mut(slots * m)) {
            let depth = from..k.min(from + chunk);
            for (segment, sums) in segments(depth, groups.group_size()).zip(sums.chunks_exact_mut(m)) {
                for (sum, a) in sums.iter_mut().zip(block.a.chunks_exact(k)) {
                    *sum = sum_of(&a[segment.clone()]);
                }
            }
        }
    }
    let rows: &[u8] = if padded == k { block.a } else { bytemuck::cast_slice(copied) };
    let (quads, rest) = rest.split_at_mut(slots);
    let (points, rest) = rest.split_at_mut(if wide { slots * PANEL } else { 0 });
    let skip = rest.as_ptr().align_offset(4 * LINE).min(LINE);
    let columns = &mut rest[skip..];
    for from in depth.clone().step_by(chunk) {
        let depth = from..depth.end.min(from + chunk);
        let step = if is_even(groups) { SUPER } else { 8 };
        let (mut count, mut all) = (0, 0);
        for (quads, segment) in quads.iter_mut().zip(segments(depth.clone(), groups.group_size())) {
            *quads = (segment.len().next_multiple_of(step) / 4) as i32;
            count += 1;
            all += *quads as usize;
        }
        let columns = &mut columns[..panel.width * depth.len().next_multiple_of(SUPER) / 4];
        unpack(w, panel, depth.clone(), columns, points);
        for first in (0..panel.width).step_by(2 * W::N) {
            let width = (2 * W::N).min(panel.width - first);
            let group = from / groups.group_size();
            // Past this panel's lies what is read of the next.
            let next = (from + chunk) / SUPER * (4 * panel.width * groups.nbits() as usize);
            let part = Part {
                bytes: &rows[from..],
                stride: padded,
                rows: m,
                columns: &columns[first * (columns.len() / panel.width)..][..width * (columns.len() / panel.width)],
                first,
                width,
                panel: panel.width,
                quads: &quads[..count],
                all,
                multipliers: &panel.multipliers[group * panel.width + first..],
                next: panel.width,
                depth: chunk,
                ahead: panel.codes.as_ptr().wrapping_add(next),
                points: if wide { &points[first * slots..] } else { &[] },
                sums: if wide { &sums[from / chunk * slots * m..] } else { &[] },
                fresh: from == block.depth.start,
                soon: if from + chunk >= k { block.soon } else { &[] },
                even: is_even(groups),
            };
            for (i, out) in out.chunks_mut(W::ROWS).enumerate() {
                let (first_row, col) = (i * W::ROWS, col + first);
                match out.len() {
                    1 => part.tile::<W, 1>(w, first_row, out, col),
                    2 => part.tile::<W, 2>(w, first_row, out, col),
                    3 => part.tile::<W, 3>(w, first_row, out, col),
                    _ => part.tile::<W, 4>(w, first_row, out, col),
                }
            }
        }
    }
}

/// Unpacks a chunk of a panel, for two vectors of columns after the other `[quad][column][4]`.
fn unpack<W: Vnni>(w: W, panel: &GroupPanel, depth: Range<usize>, to: &mut [i32], points: &mut [i32]) {
    match panel.groups.nbits() {
        2 => w.run(Unpack::<2> { panel, depth, to, points }),
        3 => w.run(Unpack::<3> { panel, depth, to, points }),
        4 => w.run(Unpack::<4> { panel, depth, to, points }),
        5 => w.run(Unpack::<5> { panel, depth, to, points }),
        6 => w.run(Unpack::<6> { panel, depth, to, points }),
        8 => w.run(Unpack::<8> { panel, depth, to, points }),
        nbits => unreachable!("codes of {nbits} bits"),
    }
}

struct Unpack<'a, const NBITS: usize> {
    panel: &'a GroupPanel<'a>,
    depth: Range<usize>,
    to: &'a mut [i32],
    /// Where codes are wide, `[pair of vectors][slot][column]`: 128 - zero point.
    points: &'a mut [i32],
}

impl<const NBITS: usize> Job for Unpack<'_, NBITS> {
    #[inline(always)]
    fn run<W: Vnni>(self, w: W) {
        let Unpack { panel, depth, to, points } = self;
        let (groups, row) = (panel.groups, 4 * panel.width);
        let (group_size, last) = (groups.group_size(), groups.count(panel.k) - 1);
        let supersteps = depth.start / SUPER..depth.end.div_ceil(SUPER);
        let codes = panel.codes[supersteps.start * row * NBITS..supersteps.end * row * NBITS].chunks_exact(row * NBITS);
        let quads = QUADS * supersteps.len();
        assert!(to.len() == panel.width * quads && panel.width.is_multiple_of(W::N));
        for (step, codes) in codes.enumerate() {
            let first = depth.start + step * SUPER;
            // Beyond K there are codes, and rows of 0.
            let mut at = [first / group_size; QUADS];
            if !is_even(groups) {
                at = std::array::from_fn(|i| ((first + 4 * i) / group_size).min(last));
            }
            for column in (0..panel.width).step_by(W::N) {
                let pair = column / (2 * W::N) * (2 * W::N);
                let width = (2 * W::N).min(panel.width - pair);
                // SAFETY: by the assert, each row of `codes` has N columns from this one on, and
                // `to` has room for them in each quad.
                unsafe {
                    let to = to.as_mut_ptr().add(pair * quads + step * QUADS * width + column - pair);
                    let codes = quads_of::<W, NBITS>(w, codes.as_ptr().add(4 * column), row);
                    let mut less = w.splat(each_byte(groups.middle()));
                    for (i, quad) in codes.into_iter().enumerate() {
                        if NBITS != 8 && !groups.symmetric() && (i == 0 || at[i] != at[i - 1]) {
                            less = w.mul(points_of(w, panel, at[i], column), w.splat(each_byte(1)));
                        }
                        w.store(to.add(i * width), w.sub_bytes(quad, less));
                    }
                }
            }
        }
        let slots = points.len() / PANEL;
        for (slot, segment) in segments(depth, group_size).enumerate().take(slots) {
            for column in (0..panel.width).step_by(W::N) {
                let pair = column / (2 * W::N) * (2 * W::N);
                let width = (2 * W::N).min(panel.width - pair);
                let points = &mut points[pair * slots + slot * width + column - pair..][..W::N];
                let zeros = points_of(w, panel, segment.start / group_size, column);
                // SAFETY: N dwords.
                unsafe { w.store(points.as_mut_ptr(), w.sub(w.splat(128), zeros)) };
            }
        }
    }
}

/// The eight quads of a superstep of N columns, whose first row of bytes is at `codes` and
/// the others `row` apart.
///
/// # Safety
/// 4 · N bytes can be read from each of the `NBITS` rows.
#[inline(always)]
pub(super) unsafe fn quads_of<W: Vnni, const NBITS: usize>(w: W, codes: *const u8, row: usize) -> [W::V; QUADS] {
    let mut quads = [w.splat(0); QUADS];
    // SAFETY: the caller's promise.
    unsafe {
        if NBITS & 4 != 0 {
            plane::<W, 4, 0>(w, codes, row, &mut quads);
        }
        match NBITS {
            2 => plane::<W, 2, 0>(w, codes, row, &mut quads),
            3 => {
                plane::<W, 2, 0>(w, codes, row, &mut quads);
                plane::<W, 1, 2>(w, codes, row, &mut quads);
            }
            5 => plane::<W, 1, 4>(w, codes, row, &mut quads),
            6 => plane::<W, 2, 4>(w, codes, row, &mut quads),
            8 => {
                plane::<W, 4, 0>(w, codes, row, &mut quads);
                plane::<W, 4, 4>(w, codes, row, &mut quads);
            }
            _ => (),
        }
    }
    quads
}

/// Adds what the plane of `BITS` bits, the bits from `UP` on and the rows from `UP` on, has of
/// the quads.
///
/// # Safety
/// As [`quads_of`] says.
#[inline(always)]
unsafe fn plane<W: Vnni, const BITS: usize, const UP: usize>(
    w: W,
    codes: *const u8,
    row: usize,
    quads: &mut [W::V; QUADS],
) {
    let mask = w.splat(i32::from_ne_bytes([((1 << BITS) - 1) << UP; 4]));
    for i in 0..QUADS {
        // SAFETY: the caller's promise.
        let bytes = unsafe { w.load(codes.wrapping_add((UP + i * BITS / 8).wrapping_mul(row)).cast()) };
        let shift = i * BITS % 8;
        let bytes = match shift {
            _ if shift > UP => w.right(bytes, (shift - UP) as u32),
            _ if shift < UP => w.left(bytes, (UP - shift) as u32),
            _ => bytes,
        };
        let bits = w.and(bytes, mask);
        quads[i] = if UP == 0 { bits } else { w.or(quads[i], bits) };
    }
}

/// N columns' zero points in a group.
#[inline(always)]
fn points_of<W: Vnni>(w: W, panel: &GroupPanel, group: usize, first: usize) -> W::V {
    if panel.groups.symmetric() {
        return w.splat(panel.groups.middle().into());
    }
    let nbits = panel.groups.nbits();
    // The codes follow: there are sixteen bytes.
    let bytes = panel.zeros[(group * panel.width + first) * nbits as usize / 8..].first_chunk().expect("the codes");
    Spread::new(w, nbits).of(w, bytes)
}

/// How packed zero points of N columns become dwords.
pub(super) struct Spread<W: Vnni> {
    index: W::V,
    shift: W::V,
    mask: W::V,
}

impl<W: Vnni> Spread<W> {
    #[inline(always)]
    pub(super) fn new(w: W, nbits: u32) -> Self {
        const EACH: [i32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        // SAFETY: N is at most 16.
        let bit = w.mul(unsafe { w.load(EACH.as_ptr()) }, w.splat(nbits as i32));
        let byte = w.right(bit, 3);
        // The byte in which a column's bits begin, and the next.
        let index = w.or(w.or(byte, w.left(w.add(byte, w.splat(1)), 8)), w.splat(0x8080_0000u32 as i32));
        Spread { index, shift: w.and(bit, w.splat(7)), mask: w.splat((1 << nbits) - 1) }
    }

    #[inline(always)]
    pub(super) fn of(&self, w: W, bytes: &[u8; 16]) -> W::V {
        w.and(w.pick(bytes, self.index, self.shift), self.mask)
    }
}

/// A chunk of one or two vectors of columns, and the rows for it.
struct Part<'a> {
    /// Rows from the chunk's first depth on, and from row to row.
    bytes: &'a [u8],
    stride: usize,
    rows: usize,
    columns: &'a [i32],
    /// Where they are in the panel, how many, and of how many.
    first: usize,
    width: usize,
    panel: usize,
    /// Of each segment, in whole steps, and of all.
    quads: &'a [i32],
    all: usize,
    /// Of the first segment's group, and from group to group.
    multipliers: &'a [u8],
    next: usize,
    /// Codes that are unpacked after these, of a chunk of this depth.
    depth: usize,
    ahead: *const u8,
    /// `[segment][column]` and `[segment][row]`, whose products sums start from; or none.
    points: &'a [i32],
    sums: &'a [i32],
    /// Whether these are the first that are summed.
    fresh: bool,
    /// Where the rows' results go after these.
    soon: &'a [*const u8],
    even: bool,
}

impl Part<'_> {
    /// Adds the products of `R` rows from `first` on to what is in `out` from `col` on, or puts
    /// them there.
    #[inline]
    fn tile<W: Vnni, const R: usize>(&self, w: W, first: usize, out: &mut [&mut [i32]], col: usize) {
        let mut out = out.iter_mut().map(|out| out[col..][..self.width].as_mut_ptr());
        let out: [*mut i32; R] = std::array::from_fn(|_| out.next().expect("R rows"));
        let (quads, segments) = (self.all, self.quads.len());
        debug_assert_eq!(quads, self.quads.iter().map(|&quads| quads as usize).sum());
        assert!(R <= W::ROWS && first + R <= self.rows && self.width.is_multiple_of(W::N));
        assert!(self.bytes.len() >= (first + R - 1) * self.stride + 4 * quads);
        assert!(self.columns.len() >= quads * self.width);
        assert!(self.multipliers.len() >= (segments - 1) * self.next + self.width);
        if !self.points.is_empty() {
            assert!(self.points.len() >= segments * self.width && self.sums.len() >= segments * self.rows);
        }
        // Of a panel's columns, which are a multiple of 16, 8 are never left.
        if W::N == 16 && self.width == W::N {
            self.form::<W, R, 1>(w, first, out);
        } else {
            self.form::<W, R, 2>(w, first, out);
        }
    }

    #[inline]
    fn form<W: Vnni, const R: usize, const V: usize>(&self, w: W, first: usize, out: [*mut i32; R]) {
        let part = self;
        assert!(self.width == V * W::N);
        match (self.even, self.points.is_empty()) {
            (true, true) => w.run(Tile::<R, V, QUADS, false> { part, first, out }),
            (true, false) => w.run(Tile::<R, V, QUADS, true> { part, first, out }),
            (false, true) => w.run(Tile::<R, V, 2, false> { part, first, out }),
            (false, false) => w.run(Tile::<R, V, 2, true> { part, first, out }),
        }
    }
}

/// `R` rows times `V` vectors of columns, whose segments are whole steps of `Q` quads.
///
/// Made by [`Part::tile`], which has checked all lengths.
struct Tile<'a, const R: usize, const V: usize, const Q: usize, const WIDE: bool> {
    part: &'a Part<'a>,
    first: usize,
    out: [*mut i32; R],
}

impl<const R: usize, const V: usize, const Q: usize, const WIDE: bool> Job for Tile<'_, R, V, Q, WIDE> {
    #[inline(always)]
    fn run<W: Vnni>(self, w: W) {
        let (part, out) = (self.part, self.out);
        // Pointers and not indices: nothing but loads and products in the loop.
        let mut rows: [*const u8; R] =
            std::array::from_fn(|r| part.bytes.as_ptr().wrapping_add((self.first + r) * part.stride));
        let (mut columns, mut by) = (part.columns.as_ptr(), part.multipliers.as_ptr());
        let mut points = part.points.as_ptr();
        let mut sums = part.sums.as_ptr().wrapping_add(self.first);
        // Memory has the time of all tiles to bring what is unpacked next: each asks for some of it.
        let tile = part.first / (2 * W::N) + part.panel.div_ceil(2 * W::N) * (self.first / W::ROWS);
        let mut ahead = part.ahead.wrapping_add(tile * (128 * part.depth / SUPER));
        for soon in part.soon.iter().skip(self.first).take(R) {
            for line in (0..4 * V * W::N).step_by(64) {
                prefetch_line(soon.wrapping_add(4 * part.first + line));
            }
        }
        // SAFETY: each of `out` has V vectors; `Part::tile` has checked, by `all`, which `groups` made
        // of whole steps, that there are, for each segment, V vectors of multipliers, and of points and the rows' sums if `WIDE`, and as
        // many quads of rows and columns as it has steps.
        unsafe {
            let mut totals = [[w.splat(0); V]; R];
            if !part.fresh {
                for r in 0..R {
                    for v in 0..V {
                        totals[r][v] = w.load(out[r].wrapping_add(v * W::N));
                    }
                }
            }
            for &quads in part.quads {
                let mut products = [[w.splat(0); V]; R];
                if WIDE {
                    let points: [W::V; V] = std::array::from_fn(|v| w.load(points.wrapping_add(v * W::N)));
                    for r in 0..R {
                        let sum = w.splat(sums.wrapping_add(r).read());
                        for v in 0..V {
                            products[r][v] = w.mul(points[v], sum);
                        }
                    }
                }
                for _ in 0..quads as u32 / Q as u32 {
                    for q in 0..Q {
                        let codes: [W::V; V] =
                            std::array::from_fn(|v| w.load(columns.wrapping_add((q * V + v) * W::N)));
                        for r in 0..R {
                            let a = w.splat(rows[r].wrapping_add(4 * q).cast::<i32>().read_unaligned());
                            for v in 0..V {
                                products[r][v] = w.dot_bytes(products[r][v], a, codes[v]);
                            }
                        }
                    }
                    if Q == QUADS {
                        prefetch_line(ahead);
                        prefetch_line(ahead.wrapping_add(64));
                        ahead = ahead.wrapping_add(128);
                    }
                    rows = rows.map(|row| row.wrapping_add(4 * Q));
                    columns = columns.wrapping_add(Q * V * W::N);
                }
                for v in 0..V {
                    let by = w.widen(by.wrapping_add(v * W::N));
                    for r in 0..R {
                        totals[r][v] = w.add(totals[r][v], w.mul(products[r][v], by));
                    }
                }
                by = by.wrapping_add(part.next);
                points = points.wrapping_add(V * W::N);
                sums = sums.wrapping_add(part.rows);
            }
            for r in 0..R {
                for v in 0..V {
                    w.store(out[r].wrapping_add(v * W::N), totals[r][v]);
                }
            }
        }
    }
}

/// Rows, and minus their sums, as [`Prepare`] makes them.
type Signed<'a> = (&'a [i32], &'a [i32]);

fn few_rows<W: Vnni, const R: usize>(w: W, panel: &GroupPanel, rows: Signed, out: [&mut [i32]; R]) {
    if panel.width == PANEL { few::<W, R, true>(w, panel, rows, out) } else { few::<W, R, false>(w, panel, rows, out) }
}

fn few<W: Vnni, const R: usize, const FULL: bool>(w: W, panel: &GroupPanel, rows: Signed, out: [&mut [i32]; R]) {
    match panel.groups.nbits() {
        2 => w.run(Few::<R, 2, 4, FULL> { panel, rows, out }),
        3 => w.run(Few::<R, 3, 1, FULL> { panel, rows, out }),
        4 => w.run(Few::<R, 4, 2, FULL> { panel, rows, out }),
        5 => w.run(Few::<R, 5, 1, FULL> { panel, rows, out }),
        6 => w.run(Few::<R, 6, 1, FULL> { panel, rows, out }),
        8 => w.run(Few::<R, 8, 1, FULL> { panel, rows, out }),
        nbits => unreachable!("codes of {nbits} bits"),
    }
}

/// A few rows times a panel, whose bytes are read in order. Of bytes that hold `EACH` codes
/// each is multiplied where it lies, and its products are shifted. `FULL`: the panel has all columns,
/// and what lies where is known beforehand.
struct Few<'a, const R: usize, const NBITS: usize, const EACH: usize, const FULL: bool> {
    panel: &'a GroupPanel<'a>,
    rows: Signed<'a>,
    out: [&'a mut [i32]; R],
}

impl<const R: usize, const NBITS: usize, const EACH: usize, const FULL: bool> Job for Few<'_, R, NBITS, EACH, FULL> {
    #[inline(always)]
    fn run<W: Vnni>(self, w: W) {
        let (panel, (bytes, sums)) = (self.panel, self.rows);
        let width = if FULL { PANEL } else { panel.width };
        assert!(width == panel.width && width.is_multiple_of(W::N));
        let out = self.out.map(|out| {
            let out = &mut out[..width];
            out.iter_mut().zip(panel.col_sum).for_each(|(o, sum)| *o = i32::from_le_bytes(*sum).wrapping_mul(128));
            out.as_mut_ptr()
        });
        let (row, steps, count) = (4 * width, panel.k.div_ceil(SUPER), panel.groups.count(panel.k));
        let points = panel.groups.symmetric().then(|| w.splat(panel.groups.middle().into()));
        let spread = Spread::new(w, NBITS as u32);
        let zeros = width * NBITS / 8;
        let supersteps = panel.groups.group_size() / SUPER;
        assert!(bytes.len() == R * steps * QUADS && sums.len() == R * steps);
        assert!(panel.codes.len() == steps * row * NBITS && panel.multipliers.len() >= count * width);
        // The codes follow: sixteen bytes can be read from any column's on.
        assert!(panel.groups.symmetric() || panel.zeros.len() >= count * zeros + 16);
        let (mut group, mut left) = (0, supersteps);
        for (step, codes) in panel.codes.chunks_exact(row * NBITS).enumerate() {
            if left == 0 {
                (group, left) = (group + 1, supersteps);
            }
            left -= 1;
            // Pointers, so that nothing else is in the loop.
            let at = Step {
                codes: codes.as_ptr(),
                row,
                by: panel.multipliers.as_ptr().wrapping_add(group * width),
                zeros: panel.zeros.as_ptr().wrapping_add(group * zeros),
                a: std::array::from_fn(|r| bytes.as_ptr().wrapping_add((r * steps + step) * QUADS)),
                sums: std::array::from_fn(|r| w.splat(sums[r * steps + step])),
                out,
            };
            // SAFETY: by the asserts, each of the NBITS rows of `codes` has 4 bytes for each of the
            // panel's columns, each output a sum, `by` a byte, and `zeros` its bits and what follows;
            // rows have 8 dwords for each step.
            unsafe {
                if FULL {
                    for v in (0..PANEL).step_by(4 * W::N) {
                        at.add::<NBITS, EACH>(w, v, &spread, points);
                        at.add::<NBITS, EACH>(w, v.wrapping_add(W::N), &spread, points);
                        at.add::<NBITS, EACH>(w, v.wrapping_add(2 * W::N), &spread, points);
                        at.add::<NBITS, EACH>(w, v.wrapping_add(3 * W::N), &spread, points);
                    }
                } else {
                    for v in (0..width).step_by(W::N) {
                        at.add::<NBITS, EACH>(w, v, &spread, points);
                    }
                }
            }
        }
    }
}

/// One superstep of a panel and a few rows.
struct Step<W: Vnni, const R: usize> {
    codes: *const u8,
    /// From a row of codes' bytes to the next.
    row: usize,
    by: *const u8,
    zeros: *const u8,
    a: [*const i32; R],
    sums: [W::V; R],
    out: [*mut i32; R],
}

impl<W: Vnni, const R: usize> Step<W, R> {
    /// Adds the products of N columns from `v` on, whose zero points are `points` or what `zeros` says.
    ///
    /// # Safety
    /// There are so many in the panel; each of the NBITS rows of `codes` has 4 bytes for each, each output
    /// a sum, `by` a byte, and `zeros` its bits, and 16 bytes from there on; rows have 8 dwords.
    #[inline(always)]
    unsafe fn add<const NBITS: usize, const EACH: usize>(
        &self,
        w: W,
        v: usize,
        spread: &Spread<W>,
        points: Option<W::V>,
    ) {
        // SAFETY: the caller's promises.
        unsafe {
            // The superstep's lines, spread over its columns.
            for line in 0..(NBITS * W::N).div_ceil(16) {
                let line = v.wrapping_mul(NBITS * 4).wrapping_add(64 * line);
                prefetch_line(self.codes.wrapping_add(line.wrapping_add(AHEAD)));
            }
            let zeros = self.zeros.wrapping_add(v.wrapping_mul(NBITS) / 8).cast();
            let points = points.unwrap_or_else(|| spread.of(w, &*zeros));
            let mut products = [[w.splat(0); EACH]; R];
            for r in 0..R {
                products[r][0] = w.mul(points, self.sums[r]);
            }
            let from = self.codes.wrapping_add(v.wrapping_mul(4));
            if EACH == 1 {
                for (i, quad) in quads_of::<W, NBITS>(w, from, self.row).into_iter().enumerate() {
                    for r in 0..R {
                        let a = w.splat(self.a[r].wrapping_add(i).read());
                        products[r][0] = w.dot_bytes(products[r][0], quad, a);
                    }
                }
            } else {
                for i in 0..NBITS {
                    let bytes = w.load(from.wrapping_add(i.wrapping_mul(self.row)).cast());
                    for each in 0..EACH {
                        let mask = (u8::MAX >> (8 - NBITS)) << (NBITS * each);
                        let codes = w.and(bytes, w.splat(each_byte(mask)));
                        for r in 0..R {
                            let a = w.splat(self.a[r].wrapping_add(EACH * i + each).read());
                            products[r][each] = w.dot_bytes(products[r][each], codes, a);
                        }
                    }
                }
            }
            let by = w.widen(self.by.wrapping_add(v));
            for r in 0..R {
                let mut sum = products[r][EACH - 1];
                for each in (0..EACH - 1).rev() {
                    sum = w.add(w.right_signed(sum, NBITS as u32), products[r][each]);
                }
                let out = self.out[r].wrapping_add(v);
                w.store(out, w.add(w.load(out), w.mul(sum, by)));
            }
        }
    }
}
