//! Weights in groups, which `scalar::groups` defines, on CPUs with `vpdpbusd`: written
//! once for both widths of vector.
//!
//! Rows are signed bytes, a - 128, and codes bytes as they are. With q - o, where
//! o = 2^(nbits - 1) - 1, the products of 512 / 2^nbits of a column sum to -2^15..2^15:
//! sums that start from -o times the row's fit 16 bits, and one `vpdpwssd` multiplies
//! them with the group's multiplier and adds. (They need o, and not one more: -128 · -8
//! · 32 is 2^15 itself.) Codes of five and six bits would do so every 16 and 8 and are
//! summed as far as a group goes, to 128, and multiplied in 32 bits, two instructions.
//!
//! What is missing is multiplier · (o - z) · the row's sum, one `vpdpwssd` for two
//! segments, and 128 times the column's sum.

use std::ops::Range;

use super::GroupBlock;
use super::groups::{GroupPanel, Groups, SUPER};
use super::tiled::PANEL;

/// Depth of the columns that are unpacked at a time, to stay in L1.
const CHUNK: usize = 512;
/// Quads of a superstep.
const QUADS: usize = SUPER / 4;
/// Rows that do not repay unpacking columns to memory, at most.
const FEW: usize = 4;
/// Dwords of a cache line.
const LINE: usize = 16;
/// As in avx512.rs.
const AHEAD: usize = 4096;

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
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn and(self, a: Self::V, b: Self::V) -> Self::V;
    fn or(self, a: Self::V, b: Self::V) -> Self::V;
    /// Dwords to the right, zeros from the left.
    fn right(self, a: Self::V, by: u32) -> Self::V;
    fn left(self, a: Self::V, by: u32) -> Self::V;
    /// `codes[index]` of each byte whose index is below 128, 0 of others; then each dword
    /// to the right by that of `by`.
    fn pick(self, codes: &[u8; 16], index: Self::V, by: Self::V) -> Self::V;
    /// Adds to each dword the four products of unsigned with signed bytes.
    fn dot_bytes(self, sum: Self::V, unsigned: Self::V, signed: Self::V) -> Self::V;
    /// Adds to each dword the two products of signed words.
    fn dot_words(self, sum: Self::V, a: Self::V, b: Self::V) -> Self::V;
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
                    // SAFETY: the token proves the instruction set.
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

/// A token of 8 dwords: AVX2's intrinsics and two more.
#[cfg(target_arch = "x86_64")]
macro_rules! vnni_256 {
    ($(#[$meta:meta])* $token:ident, $needs:literal, $features:literal, $dpbusd:ident, $dpwssd:ident) => {
        crate::gemm::vnni::vnni! {
            $(#[$meta])* $token, $needs, $features, __m256i, 8, 3,
            {
                fn splat(x: i32) { _mm256_set1_epi32(x) }
                fn add(a: __m256i, b: __m256i) { _mm256_add_epi32(a, b) }
                fn sub(a: __m256i, b: __m256i) { _mm256_sub_epi32(a, b) }
                fn mul(a: __m256i, b: __m256i) { _mm256_mullo_epi32(a, b) }
                fn and(a: __m256i, b: __m256i) { _mm256_and_si256(a, b) }
                fn or(a: __m256i, b: __m256i) { _mm256_or_si256(a, b) }
                fn right(a: __m256i, by: u32) { _mm256_srl_epi32(a, _mm_cvtsi32_si128(by as i32)) }
                fn left(a: __m256i, by: u32) { _mm256_sll_epi32(a, _mm_cvtsi32_si128(by as i32)) }
                fn pick(codes: &[u8; 16], index: __m256i, by: __m256i) {
                    let codes = _mm256_broadcastsi128_si256(_mm_loadu_si128(codes.as_ptr().cast()));
                    _mm256_srlv_epi32(_mm256_shuffle_epi8(codes, index), by)
                }
                fn dot_bytes(sum: __m256i, unsigned: __m256i, signed: __m256i) { $dpbusd(sum, unsigned, signed) }
                fn dot_words(sum: __m256i, a: __m256i, b: __m256i) { $dpwssd(sum, a, b) }
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

/// What is taken from a code.
fn offset(nbits: u32) -> i32 {
    (1 << (nbits - 1)) - 1
}

/// Whether sums are multiplied in 32 bits.
fn is_wide(nbits: u32) -> bool {
    nbits > 4
}

/// Depth of sums before they are multiplied, at most.
fn segment(nbits: u32) -> usize {
    if is_wide(nbits) { 128 } else { 512 >> nbits }
}

/// Whether groups are whole supersteps.
fn is_even(groups: Groups) -> bool {
    groups.group_size().is_multiple_of(SUPER)
}

/// Depth of sums before they are multiplied.
fn most(few: bool, groups: Groups) -> usize {
    if few { SUPER } else { segment(groups.nbits()) }
}

/// Cuts a depth where multiples of `most` and where groups end.
#[inline]
fn cut(depth: Range<usize>, most: usize, group_size: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = depth.start;
    std::iter::from_fn(move || {
        let end = ((at / most + 1) * most).min((at / group_size + 1) * group_size).min(depth.end);
        (at < end).then(|| std::mem::replace(&mut at, end)..end)
    })
}

/// Segments of a chunk, at most; even.
fn slots(groups: Groups, most: usize) -> usize {
    let group_size = groups.group_size();
    let slots = if most.is_multiple_of(group_size) || group_size.is_multiple_of(most) {
        CHUNK / group_size.min(most)
    } else {
        CHUNK / most + CHUNK / group_size + 1
    };
    slots.next_multiple_of(2)
}

/// Whether these rows go through [`Few`].
fn is_few(rows: usize, whole: bool, groups: Groups) -> bool {
    rows <= FEW && whole && is_even(groups)
}

/// Dwords of scratch of [`groups`] with up to `rows` rows: what [`Prepared`] has, and of two
/// vectors of columns the codes, multipliers, and what the zero points come to.
pub(super) fn groups_scratch_len(rows: usize, k: usize, groups: Groups) -> usize {
    let prepared = |rows: usize, few: bool| {
        let all = k.div_ceil(CHUNK) * slots(groups, most(few, groups));
        rows * (k.next_multiple_of(SUPER) / 4 + 2 * all) + 2 * all
    };
    let columns = 2 * LINE * (CHUNK / 4 + 2 * slots(groups, most(false, groups)));
    (prepared(rows, false) + LINE + columns).max(prepared(rows.min(FEW), true))
}

/// The block's rows, and their sums over segments, of which each chunk has `slots`.
struct Prepared<'a> {
    few: bool,
    rows: usize,
    slots: usize,
    /// `[row][K]`, 128 less, padded to a superstep with 0.
    bytes: &'a mut [i32],
    /// `[slot][row]`: minus [`offset`] times the row's sum.
    starts: &'a mut [i32],
    /// `[slot / 2][row][2]`: the row's sums, in 16 bits; for [`Few`] `[slot][row]`.
    sums: &'a mut [i32],
    /// `[slot]`: the depth of the segment, 0 where there is none.
    depths: &'a mut [i32],
    /// `[slot]`: its group.
    groups: &'a mut [i32],
}

impl<'a> Prepared<'a> {
    /// Divides scratch, of which the rest is for columns.
    fn new(panel: &GroupPanel, rows: usize, few: bool, scratch: &'a mut [i32]) -> (Self, &'a mut [i32]) {
        let slots = slots(panel.groups, most(few, panel.groups));
        let all = panel.k.div_ceil(CHUNK) * slots;
        let (bytes, rest) = scratch.split_at_mut(rows * panel.k.next_multiple_of(SUPER) / 4);
        let (starts, rest) = rest.split_at_mut(rows * all);
        let (sums, rest) = rest.split_at_mut(rows * all);
        let (depths, rest) = rest.split_at_mut(all);
        let (groups, rest) = rest.split_at_mut(all);
        (Prepared { few, rows, slots, bytes, starts, sums, depths, groups }, rest)
    }
}

/// Fills [`Prepared`].
struct Prepare<'a, 'b> {
    a: &'a [u8],
    panel: &'a GroupPanel<'a>,
    to: &'a mut Prepared<'b>,
}

impl Job for Prepare<'_, '_> {
    #[inline(always)]
    fn run<W: Vnni>(self, _: W) {
        let Prepare { a, panel, to } = self;
        let (k, m, most) = (panel.k, to.rows, most(to.few, panel.groups));
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(to.bytes);
        for (a, row) in a.chunks_exact(k).zip(bytes.chunks_exact_mut(k.next_multiple_of(SUPER))) {
            row.iter_mut().zip(a).for_each(|(to, a)| *to = a ^ 0x80);
            row[k..].fill(0);
        }
        to.sums.fill(0);
        to.depths.fill(0);
        for chunk in 0..k.div_ceil(CHUNK) {
            let depth = chunk * CHUNK..k.min((chunk + 1) * CHUNK);
            for (i, segment) in cut(depth, most, panel.groups.group_size()).enumerate() {
                let slot = chunk * to.slots + i;
                to.depths[slot] = segment.len() as i32;
                to.groups[slot] = (segment.start / panel.groups.group_size()) as i32;
                for (r, a) in a.chunks_exact(k).enumerate() {
                    let sum = sum_of(&a[segment.clone()]) - 128 * segment.len() as i32;
                    to.starts[slot * m + r] = -offset(panel.groups.nbits()) * sum;
                    let (at, up) = if to.few { (slot, 0) } else { (slot / 2, 16 * (slot % 2)) };
                    to.sums[at * m + r] |= (sum & 0xffff) << up;
                }
            }
        }
    }
}

/// The sum of up to 128 bytes.
#[inline(always)]
fn sum_of(a: &[u8]) -> i32 {
    const LOW: u64 = 0x00ff_00ff_00ff_00ff;
    let (eights, rest) = a.as_chunks();
    let words = eights.iter().fold(0u64, |sum, eight| {
        let x = u64::from_le_bytes(*eight);
        sum.wrapping_add((x & LOW) + (x >> 8 & LOW))
    });
    let whole = words.wrapping_mul(0x0001_0001_0001_0001) >> 48;
    rest.iter().fold(whole as i32, |sum, &a| sum + i32::from(a))
}

/// `scalar::groups`.
///
/// `scratch` holds [`groups_scratch_len`] dwords, and `made` tells whether the rows are in
/// it; `out` has as many rows as `block`, each of at least `col + block.panel.width`
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
    let (groups, whole) = (panel.groups, depth == (0..panel.k));
    let few = is_few(m, whole, groups);
    let (mut rows, rest) = Prepared::new(panel, m, few, scratch);
    if !std::mem::replace(made, true) {
        w.run(Prepare { a: block.a, panel, to: &mut rows });
    }
    if few {
        return match out {
            [a, b, c, d] => few_rows(w, panel, &rows, [a, b, c, d].map(|out| &mut out[col..])),
            [a, b, c] => few_rows(w, panel, &rows, [a, b, c].map(|out| &mut out[col..])),
            [a, b] => few_rows(w, panel, &rows, [a, b].map(|out| &mut out[col..])),
            [a] => few_rows(w, panel, &rows, [&mut a[col..]]),
            _ => (),
        };
    }
    assert!(depth.start.is_multiple_of(panel.pass) && depth.len() <= panel.pass && depth.end <= panel.k);
    assert!(depth.start.is_multiple_of(CHUNK) && (depth.end == panel.k || depth.end.is_multiple_of(CHUNK)));
    let skip = rest.as_ptr().align_offset(4 * LINE).min(LINE);
    let (columns, rest) = rest[skip..].split_at_mut(2 * W::N * CHUNK / 4);
    let (multipliers, zeros) = rest.split_at_mut(2 * W::N * rows.slots);
    for first in (0..panel.width).step_by(2 * W::N) {
        let width = (2 * W::N).min(panel.width - first);
        for out in out.iter_mut() {
            for (out, sum) in out[col + first..][..width].iter_mut().zip(&panel.col_sum[first..]) {
                *out = if whole { i32::from_le_bytes(*sum).wrapping_mul(128) } else { 0 };
            }
        }
        for from in depth.clone().step_by(CHUNK) {
            let depth = from..depth.end.min(from + CHUNK);
            let slots = from / CHUNK * rows.slots..(from / CHUNK + 1) * rows.slots;
            let columns = &mut columns[..width * depth.len().next_multiple_of(SUPER) / 4];
            unpack(w, panel, depth.clone(), first, columns);
            let (depths, groups) = (&rows.depths[slots.clone()], &rows.groups[slots.clone()]);
            let depths = &depths[..depths.iter().position(|&depth| depth == 0).unwrap_or(depths.len())];
            w.run(Factors { panel, depths, groups, first, width, multipliers, zeros });
            if !whole {
                let mut sums = [0; PANEL];
                w.run(ColumnSums { panel, depths, groups, first, columns, multipliers, sums: &mut sums[..width] });
                for out in out.iter_mut() {
                    let out = out[col + first..][..width].iter_mut();
                    out.zip(&sums).for_each(|(out, sum)| *out = out.wrapping_add(sum.wrapping_mul(128)));
                }
            }
            let part = Part {
                bytes: &rows.bytes[from / 4..],
                stride: panel.k.next_multiple_of(SUPER) / 4,
                rows: m,
                starts: &rows.starts[slots.start * m..slots.end * m],
                sums: &rows.sums[slots.start / 2 * m..slots.end / 2 * m],
                columns,
                width,
                multipliers,
                zeros,
                depths,
                wide: is_wide(panel.groups.nbits()),
                even: is_even(panel.groups),
            };
            for (i, out) in out.chunks_mut(W::ROWS).enumerate() {
                let (first_row, col) = (i * W::ROWS, col + first);
                match out.len() {
                    1 => part.tile::<W, 1>(w, first_row, out, col),
                    2 => part.tile::<W, 2>(w, first_row, out, col),
                    3 => part.tile::<W, 3>(w, first_row, out, col),
                    4 => part.tile::<W, 4>(w, first_row, out, col),
                    5 => part.tile::<W, 5>(w, first_row, out, col),
                    _ => part.tile::<W, 6>(w, first_row, out, col),
                }
            }
        }
    }
}

/// Unpacks a chunk's codes, `[quad][column][4]`.
fn unpack<W: Vnni>(w: W, panel: &GroupPanel, depth: Range<usize>, first: usize, to: &mut [i32]) {
    match panel.groups.nbits() {
        2 => w.run(Unpack::<2> { panel, depth, first, to }),
        3 => w.run(Unpack::<3> { panel, depth, first, to }),
        4 => w.run(Unpack::<4> { panel, depth, first, to }),
        5 => w.run(Unpack::<5> { panel, depth, first, to }),
        6 => w.run(Unpack::<6> { panel, depth, first, to }),
        nbits => unreachable!("codes of {nbits} bits"),
    }
}

struct Unpack<'a, const NBITS: usize> {
    panel: &'a GroupPanel<'a>,
    depth: Range<usize>,
    first: usize,
    to: &'a mut [i32],
}

impl<const NBITS: usize> Job for Unpack<'_, NBITS> {
    #[inline(always)]
    fn run<W: Vnni>(self, w: W) {
        let row = 4 * self.panel.width;
        let supersteps = self.depth.start / SUPER..self.depth.end.div_ceil(SUPER);
        let codes = self.panel.codes[supersteps.start * row * NBITS..].chunks_exact(row * NBITS);
        let width = self.to.len() / (QUADS * supersteps.len());
        assert!(self.first + width <= self.panel.width && width.is_multiple_of(W::N));
        for (codes, to) in codes.zip(self.to.chunks_exact_mut(QUADS * width)) {
            for v in 0..width / W::N {
                // SAFETY: by the assert, each row of `codes` has these columns, and `to` has
                // room for them in each quad.
                unsafe {
                    let codes = codes.as_ptr().add(4 * (self.first + v * W::N));
                    for (i, quad) in quads_of::<W, NBITS>(w, codes, row).into_iter().enumerate() {
                        w.store(to.as_mut_ptr().add(i * width + v * W::N), quad);
                    }
                }
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
unsafe fn quads_of<W: Vnni, const NBITS: usize>(w: W, codes: *const u8, row: usize) -> [W::V; QUADS] {
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

/// N columns' multipliers in a group, from `first` on.
#[inline(always)]
fn multipliers_of<W: Vnni>(w: W, panel: &GroupPanel, group: usize, first: usize) -> W::V {
    let bytes = &panel.multipliers[group * panel.width + first..][..W::N];
    // SAFETY: N bytes.
    unsafe { w.widen(bytes.as_ptr()) }
}

/// Their zero points.
#[inline(always)]
fn points_of<W: Vnni>(w: W, panel: &GroupPanel, group: usize, first: usize) -> W::V {
    if panel.groups.symmetric() {
        return w.splat(panel.groups.middle().into());
    }
    let nbits = panel.groups.nbits();
    // The codes follow: there are sixteen bytes.
    let bytes = panel.zeros[(group * panel.width + first) * nbits as usize / 8..].first_chunk().unwrap_or(&[0; 16]);
    Spread::new(w, nbits).of(w, bytes)
}

/// How packed zero points of N columns become dwords.
struct Spread<W: Vnni> {
    index: W::V,
    shift: W::V,
    mask: W::V,
}

impl<W: Vnni> Spread<W> {
    #[inline(always)]
    fn new(w: W, nbits: u32) -> Self {
        const EACH: [i32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        // SAFETY: N is at most 16.
        let bit = w.mul(unsafe { w.load(EACH.as_ptr()) }, w.splat(nbits as i32));
        let byte = w.right(bit, 3);
        // The byte in which a column's bits begin, and the next.
        let index = w.or(w.or(byte, w.left(w.add(byte, w.splat(1)), 8)), w.splat(0x8080_0000u32 as i32));
        Spread { index, shift: w.and(bit, w.splat(7)), mask: w.splat((1 << nbits) - 1) }
    }

    #[inline(always)]
    fn of(&self, w: W, bytes: &[u8; 16]) -> W::V {
        w.and(w.pick(bytes, self.index, self.shift), self.mask)
    }
}

/// A chunk's multipliers, `[slot][column]`, and `multiplier · (offset - zero point)`,
/// `[slot / 2][column][2]`.
struct Factors<'a> {
    panel: &'a GroupPanel<'a>,
    depths: &'a [i32],
    groups: &'a [i32],
    first: usize,
    width: usize,
    multipliers: &'a mut [i32],
    zeros: &'a mut [i32],
}

impl Job for Factors<'_> {
    #[inline(always)]
    fn run<W: Vnni>(self, w: W) {
        let offset = w.splat(offset(self.panel.groups.nbits()));
        let slots = self.depths.len();
        let multipliers = &mut self.multipliers[..slots * self.width];
        let zeros = &mut self.zeros[..slots.div_ceil(2) * self.width];
        for (slot, &group) in self.groups[..slots].iter().enumerate() {
            for v in (0..self.width).step_by(W::N) {
                let by = multipliers_of(w, self.panel, group as usize, self.first + v);
                let points = points_of(w, self.panel, group as usize, self.first + v);
                let part = w.mul(by, w.sub(offset, points));
                let to = &mut multipliers[slot * self.width + v..][..W::N];
                let zeros = &mut zeros[slot / 2 * self.width + v..][..W::N];
                // SAFETY: both are N dwords.
                unsafe {
                    w.store(to.as_mut_ptr(), by);
                    let both = if slot % 2 == 0 {
                        w.and(part, w.splat(0xffff))
                    } else {
                        w.or(w.load(zeros.as_ptr()), w.left(part, 16))
                    };
                    w.store(zeros.as_mut_ptr(), both);
                }
            }
        }
    }
}

/// Of each column of a chunk, the sum of `multiplier · (code - zero point)`.
struct ColumnSums<'a> {
    panel: &'a GroupPanel<'a>,
    depths: &'a [i32],
    groups: &'a [i32],
    first: usize,
    columns: &'a [i32],
    multipliers: &'a [i32],
    sums: &'a mut [i32],
}

impl Job for ColumnSums<'_> {
    #[inline(always)]
    fn run<W: Vnni>(self, w: W) {
        let (width, ones) = (self.sums.len(), w.splat(0x0101_0101));
        for (v, sums) in self.sums.chunks_exact_mut(W::N).enumerate() {
            let mut quads = self.columns.chunks_exact(width).map(|quad| &quad[v * W::N..][..W::N]);
            let mut total = w.splat(0);
            for (slot, &depth) in self.depths.iter().enumerate() {
                let mut sum = w.splat(0);
                // A chunk's last quad may be padded, with codes of 0.
                for quad in quads.by_ref().take((depth as usize).div_ceil(4)) {
                    // SAFETY: N dwords.
                    sum = w.dot_bytes(sum, unsafe { w.load(quad.as_ptr()) }, ones);
                }
                let points = points_of(w, self.panel, self.groups[slot] as usize, self.first + v * W::N);
                let by = &self.multipliers[slot * width + v * W::N..][..W::N];
                // SAFETY: N dwords.
                let by = unsafe { w.load(by.as_ptr()) };
                total = w.add(total, w.mul(by, w.sub(sum, w.mul(points, w.splat(depth)))));
            }
            // SAFETY: the chunk is N dwords.
            unsafe { w.store(sums.as_mut_ptr(), total) };
        }
    }
}

/// A chunk of one or two vectors of columns, and the rows for it.
struct Part<'a> {
    /// Rows in bytes, from the chunk's first on, and from row to row.
    bytes: &'a [i32],
    stride: usize,
    rows: usize,
    starts: &'a [i32],
    sums: &'a [i32],
    columns: &'a [i32],
    width: usize,
    multipliers: &'a [i32],
    zeros: &'a [i32],
    depths: &'a [i32],
    wide: bool,
    even: bool,
}

impl Part<'_> {
    /// Adds the products of `R` rows from `first` on to what is in `out` from `col` on.
    #[inline]
    fn tile<W: Vnni, const R: usize>(&self, w: W, first: usize, out: &mut [&mut [i32]], col: usize) {
        let mut out = out.iter_mut().map(|out| out[col..][..self.width].as_mut_ptr());
        let out: [*mut i32; R] = std::array::from_fn(|_| out.next().expect("R rows"));
        let quads: usize = self.depths.iter().map(|&depth| (depth as usize).div_ceil(4)).sum();
        let slots = self.depths.len();
        assert!(R <= W::ROWS && first + R <= self.rows && self.width.is_multiple_of(W::N));
        assert!(self.bytes.len() >= (first + R - 1) * self.stride + quads);
        assert!(self.columns.len() >= quads.next_multiple_of(QUADS) * self.width);
        assert!(self.multipliers.len() >= slots * self.width && self.zeros.len() >= slots.div_ceil(2) * self.width);
        assert!(self.starts.len() >= slots * self.rows && self.sums.len() >= slots.div_ceil(2) * self.rows);
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
        match (self.even, self.wide) {
            (true, false) => w.run(Tile::<R, V, QUADS, false> { part, first, out }),
            (true, true) => w.run(Tile::<R, V, QUADS, true> { part, first, out }),
            (false, false) => w.run(Tile::<R, V, 2, false> { part, first, out }),
            (false, true) => w.run(Tile::<R, V, 2, true> { part, first, out }),
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
        let rows: [*const i32; R] =
            std::array::from_fn(|r| part.bytes.as_ptr().wrapping_add((self.first + r) * part.stride));
        let mut starts = part.starts.as_ptr().wrapping_add(self.first);
        let mut sums = part.sums.as_ptr().wrapping_add(self.first);
        let (mut columns, mut by) = (part.columns.as_ptr(), part.multipliers.as_ptr());
        let mut zeros = part.zeros.as_ptr();
        let mut at = 0usize;
        // SAFETY: each of `out` has V vectors, and `Part::tile` has checked that there are, for
        // each slot or two, the rows' dwords and V vectors, and as many quads as the segments
        // have steps; a last one that is no whole step is padded to a superstep.
        unsafe {
            let mut totals = [[w.splat(0); V]; R];
            for r in 0..R {
                for v in 0..V {
                    totals[r][v] = w.load(out[r].wrapping_add(v * W::N));
                }
            }
            for _ in 0..part.depths.len().div_ceil(2) {
                let by: [W::V; V] = std::array::from_fn(|v| w.load(zeros.wrapping_add(v * W::N)));
                for r in 0..R {
                    let sum = w.splat(sums.wrapping_add(r).read());
                    for v in 0..V {
                        totals[r][v] = w.dot_words(totals[r][v], by[v], sum);
                    }
                }
                zeros = zeros.wrapping_add(V * W::N);
                sums = sums.wrapping_add(part.rows);
            }
            for &depth in part.depths {
                let mut products = [[w.splat(0); V]; R];
                for r in 0..R {
                    products[r] = [w.splat(starts.wrapping_add(r).read()); V];
                }
                for _ in 0..(depth as u32).wrapping_add(4 * Q as u32 - 1) / (4 * Q as u32) {
                    for q in 0..Q {
                        let codes: [W::V; V] =
                            std::array::from_fn(|v| w.load(columns.wrapping_add((q * V + v) * W::N)));
                        for r in 0..R {
                            let a = w.splat(rows[r].wrapping_add(at).wrapping_add(q).read());
                            for v in 0..V {
                                products[r][v] = w.dot_bytes(products[r][v], codes[v], a);
                            }
                        }
                    }
                    at = at.wrapping_add(Q);
                    columns = columns.wrapping_add(Q * V * W::N);
                }
                for v in 0..V {
                    let by = w.load(by.wrapping_add(v * W::N));
                    for r in 0..R {
                        totals[r][v] = multiply::<W, WIDE>(w, totals[r][v], products[r][v], by);
                    }
                }
                starts = starts.wrapping_add(part.rows);
                by = by.wrapping_add(V * W::N);
            }
            for r in 0..R {
                for v in 0..V {
                    w.store(out[r].wrapping_add(v * W::N), totals[r][v]);
                }
            }
        }
    }
}

/// `total + sum · by`, where `by` is a byte, and `sum` fits 16 bits unless `WIDE`.
#[inline(always)]
fn multiply<W: Vnni, const WIDE: bool>(w: W, total: W::V, sum: W::V, by: W::V) -> W::V {
    if WIDE { w.add(total, w.mul(sum, by)) } else { w.dot_words(total, sum, by) }
}

fn few_rows<W: Vnni, const R: usize>(w: W, panel: &GroupPanel, rows: &Prepared, out: [&mut [i32]; R]) {
    match panel.groups.nbits() {
        2 => w.run(Few::<R, 2, false> { panel, rows, out }),
        3 => w.run(Few::<R, 3, false> { panel, rows, out }),
        4 => w.run(Few::<R, 4, false> { panel, rows, out }),
        5 => w.run(Few::<R, 5, true> { panel, rows, out }),
        6 => w.run(Few::<R, 6, true> { panel, rows, out }),
        nbits => unreachable!("codes of {nbits} bits"),
    }
}

/// A few rows times a panel, whose bytes are unpacked in registers, in order.
struct Few<'a, const R: usize, const NBITS: usize, const WIDE: bool> {
    panel: &'a GroupPanel<'a>,
    rows: &'a Prepared<'a>,
    out: [&'a mut [i32]; R],
}

impl<const R: usize, const NBITS: usize, const WIDE: bool> Job for Few<'_, R, NBITS, WIDE> {
    #[inline(always)]
    fn run<W: Vnni>(self, w: W) {
        let (panel, rows) = (self.panel, self.rows);
        let out = self.out.map(|out| {
            let out = &mut out[..panel.width];
            out.iter_mut().zip(panel.col_sum).for_each(|(o, sum)| *o = i32::from_le_bytes(*sum).wrapping_mul(128));
            out.as_mut_ptr()
        });
        let (row, steps) = (4 * panel.width, panel.k.div_ceil(SUPER));
        let (symmetric, middle) = (panel.groups.symmetric(), w.splat(panel.groups.middle().into()));
        let (spread, offset) = (Spread::new(w, NBITS as u32), w.splat(offset(NBITS as u32)));
        let zeros = panel.width * NBITS / 8;
        let groups = &rows.groups[..steps];
        assert!(rows.bytes.len() == R * steps * QUADS && rows.starts.len() >= R * steps);
        assert!(rows.sums.len() >= R * steps && panel.width.is_multiple_of(W::N));
        // The codes follow: sixteen bytes can be read from any column's on.
        assert!(symmetric || panel.zeros.len() >= panel.groups.count(panel.k) * zeros + 16);
        for (step, (codes, &group)) in panel.codes.chunks_exact(row * NBITS).zip(groups).enumerate() {
            let group = group as usize;
            let by = panel.multipliers[group * panel.width..][..panel.width].as_ptr();
            // Pointers, so that nothing else is in the loop.
            let zeros = panel.zeros.as_ptr().wrapping_add(group * zeros);
            let a: [*const i32; R] =
                std::array::from_fn(|r| rows.bytes.as_ptr().wrapping_add((r * steps + step) * QUADS));
            let starts = rows.starts.as_ptr().wrapping_add(step * R);
            let sums = rows.sums.as_ptr().wrapping_add(step * R);
            let codes = codes.as_ptr();
            for v in (0..panel.width).step_by(W::N) {
                // SAFETY: by the asserts, each of the NBITS rows of `codes` has 4 bytes for each of
                // the panel's columns, each output a sum, `by` a byte, and `zeros` its bits and what
                // follows; rows have 8 dwords for each step, and a start and a sum.
                unsafe {
                    // The superstep's lines, spread over its columns.
                    for line in 0..(NBITS * W::N).div_ceil(16) {
                        let line = v.wrapping_mul(NBITS * 4).wrapping_add(64 * line);
                        prefetch(codes.wrapping_add(line.wrapping_add(AHEAD)));
                    }
                    let by = w.widen(by.wrapping_add(v));
                    let zeros = zeros.wrapping_add(v.wrapping_mul(NBITS) / 8).cast();
                    let points = if symmetric { middle } else { spread.of(w, &*zeros) };
                    let part = w.and(w.mul(by, w.sub(offset, points)), w.splat(0xffff));
                    let mut products: [W::V; R] = std::array::from_fn(|r| w.splat(starts.wrapping_add(r).read()));
                    let quads = quads_of::<W, NBITS>(w, codes.wrapping_add(v.wrapping_mul(4)), row);
                    for (i, quad) in quads.into_iter().enumerate() {
                        for r in 0..R {
                            let a = w.splat(a[r].wrapping_add(i).read());
                            products[r] = w.dot_bytes(products[r], quad, a);
                        }
                    }
                    for r in 0..R {
                        let out = out[r].wrapping_add(v);
                        let total = w.dot_words(w.load(out), part, w.splat(sums.wrapping_add(r).read()));
                        w.store(out, multiply::<W, WIDE>(w, total, products[r], by));
                    }
                }
            }
        }
    }
}

/// Asks for a line of memory; any address is harmless.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has it.
    unsafe {
        use std::arch::x86_64::*;
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    let _ = at;
}
