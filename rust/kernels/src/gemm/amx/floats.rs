//! Rows of floats times weights whose rows or groups have tables, by tiles of bfloat16.
//!
//! A float32 is three bfloat16 exactly: 24 bits are three times eight. So where a table's entries are
//! bfloat16, three products of tiles have every term in full. They are summed in float32 over 64 of
//! the depth at most within a group, and each such sum is added, times the multiplier.
//!
//! Tiles take what is below 2^-126 for 0. So a row is brought to 2^64 at most, and a table that has
//! entries below 2^-96 or from 2^32 on is left to `float_sums`: what a product loses is below 2^-190 of
//! the row's greatest, or below what a float can be.
//!
//! The weight is a tile's rows and the inputs are its columns: all codes of a vector have one table
//! then, which is a register to the look-up. One table of all codes is that without tiles too, and one
//! row of inputs is quicker so: such weights are left alone, since a row's result must not depend on how
//! many others there are.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::avx512::Wide;
use super::super::floats::multipliers;
use super::super::groups::{GroupPanel, Groups, SUPER};
use super::super::tables::{Codebook, Tables};
use super::super::tiled::PANEL;
use super::super::vnni::quads_of;
use super::{BLOCK, COLUMNS, LINE, ROW, ROWS, Tiles, ask};
use crate::Isa;
use crate::lanes::prefetch_line;

/// Bytes of a tile.
const TILE: usize = ROWS * ROW;
/// Depth whose codes are taken apart at a time: two tiles.
const SPAN: usize = 64;
/// Bytes of 32 outputs over such a depth: both tiles of 16, and of 16 more.
const STEP: usize = 4 * TILE;
/// bfloat16 that a float consists of.
const PARTS: usize = 3;
/// Groups from one to that whose tables are asked for meanwhile.
const SOON: usize = 4;
/// Rows of a block, and bytes of their parts, at most, if those are 32 rows' or more: they stay in L2 beside a panel.
const MOST: (usize, usize) = (128, 3 << 19);
/// What a row's greatest is brought to: 2^64, and less where that is beyond a float's scale.
const TOP: u32 = 64;
/// The bits of 2^-96, and those that numbers from there to 2^32 do not have, counted from it.
const LEAST: i32 = (127 - 96) << 23;
const BEYOND: i32 = 0xc000_0000_u32 as i32;

/// Whether a weight of so many inputs, floats, is for tiles: groups that tiles of 32 of depth share, whose codes of up
/// to four bits look up tables of their own.
pub(in super::super) fn takes(groups: Groups, k: usize) -> bool {
    let size = groups.group_size();
    matches!(groups.tables(), Some(Tables::Row | Tables::Group))
        && groups.nbits() <= 4
        && (size.is_multiple_of(SUPER) || size >= k)
}

/// How a block's inputs lie.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    k: usize,
    /// Groups are whole spans: a span's first tile has its even codes, its second one the odd ones. Else its first
    /// 32, and the others, each with a sum of its own.
    joined: bool,
}

impl Shape {
    /// Rows that fit a tile, side by side.
    fn is_few(self) -> bool {
        self.rows <= COLUMNS
    }

    /// Rows, with what pads them.
    fn columns(self) -> usize {
        if self.is_few() { self.rows.next_power_of_two() } else { self.rows.next_multiple_of(BLOCK) }
    }

    fn spans(self) -> usize {
        self.k.div_ceil(SPAN)
    }

    /// Dwords of a span's parts, of all rows or of 32.
    fn span_len(self) -> usize {
        PARTS * SPAN / 2 * if self.is_few() { self.columns() } else { BLOCK }
    }

    /// Dwords of all parts, the last row of a tile read past its end; and of sums.
    fn lens(self) -> (usize, usize) {
        let parts = self.spans() * self.span_len() * if self.is_few() { 1 } else { self.columns() / BLOCK };
        ((parts + LINE).next_multiple_of(LINE), if self.is_few() { 0 } else { PANEL * self.columns() })
    }
}

/// Rows of a block.
pub(in super::super) fn rows(k: usize) -> usize {
    (MOST.1 / (2 * PARTS * k.max(1)) / BLOCK * BLOCK).clamp(BLOCK, MOST.0)
}

/// Dwords of scratch.
pub(in super::super) fn scratch_len(rows: usize, k: usize) -> usize {
    let (parts, sums) = Shape { rows, k, joined: true }.lens();
    LINE + rows.next_multiple_of(LINE) + parts + sums
}

/// Parts of the rows, made once a block.
struct Inputs<'a> {
    shape: Shape,
    /// A power of two for each row, which its sums are multiplied with.
    scales: &'a [f32],
    parts: &'a [u32],
}

impl<'a> Inputs<'a> {
    /// Of rows of floats, in [`scratch_len`] dwords: made here if they are not. And the dwords behind them.
    fn new(x: &[f32], shape: Shape, scratch: &'a mut [i32], made: &mut bool) -> (Self, &'a mut [i32]) {
        let skip = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
        let (scales, rest) = scratch[skip..].split_at_mut(shape.rows.next_multiple_of(LINE));
        let (parts, rest) = rest.split_at_mut(shape.lens().0);
        let scales: &mut [f32] = bytemuck::cast_slice_mut(scales);
        let parts: &mut [u32] = bytemuck::cast_slice_mut(parts);
        if !std::mem::replace(made, true) {
            parts.fill(0);
            for (r, (x, scale)) in x.chunks_exact(shape.k).zip(&mut *scales).enumerate() {
                // SAFETY: whoever has tiles has AVX-512.
                *scale = unsafe { split(x, r, shape, parts) };
            }
        }
        (Inputs { shape, scales, parts }, rest)
    }
}

/// Writes a row's parts; the power of two that it was divided by, so that the greatest is 2^[`TOP`] or a little
/// more. Of a row with an infinity or NaN nothing is written: its results are NaN.
#[target_feature(enable = "avx512f")]
fn split(x: &[f32], r: usize, shape: Shape, parts: &mut [u32]) -> f32 {
    let greatest = x.iter().fold(0, |greatest, x| (x.to_bits() & 0x7fff_ffff).max(greatest)) >> 23;
    if greatest == 255 {
        return 1.0;
    }
    let scale = f32::from_bits(greatest.saturating_sub(TOP).max(1) << 23);
    let by = 1.0 / scale;
    // Where the row's first pair of a span is; dwords from pair to pair and from part to part.
    let (first, next, part) = if shape.is_few() {
        (r, shape.columns(), ROWS * shape.columns())
    } else {
        let first = r / BLOCK * shape.spans() * shape.span_len() + r % BLOCK / COLUMNS * (TILE / 4) + r % COLUMNS;
        (first, COLUMNS, 2 * TILE / 4)
    };
    for (span, x) in x.chunks(SPAN).enumerate() {
        let mut all = [0.0; SPAN];
        all[..x.len()].copy_from_slice(x);
        let mut bits = [[0u32; SPAN]; PARTS];
        for i in 0..SPAN {
            let x = all[i] * by;
            let first = x.to_bits() & 0xffff_0000;
            let rest = x - f32::from_bits(first);
            let second = rest.to_bits() & 0xffff_0000;
            let third = (rest - f32::from_bits(second)).to_bits();
            (bits[0][i], bits[1][i], bits[2][i]) = (first >> 16, second >> 16, third >> 16);
        }
        let to = &mut parts[first + span * shape.span_len()..];
        for (i, bits) in bits.iter().enumerate() {
            let (low, high) = (i * part, (PARTS + i) * part);
            for (q, four) in bits.as_chunks::<4>().0.iter().enumerate() {
                if shape.joined {
                    to[low + q * next] = four[0] | four[2] << 16;
                    to[high + q * next] = four[1] | four[3] << 16;
                } else {
                    let at = (if q < 8 { low } else { high }) + q % 8 * 2 * next;
                    to[at] = four[0] | four[1] << 16;
                    to[at + next] = four[2] | four[3] << 16;
                }
            }
        }
    }
    scale
}

/// `float_sums` of a weight that [`takes`] says is for tiles, but for the order in which terms are added: false if an
/// entry is none that products keep in full, and then sums are anything.
///
/// `scratch` holds [`scratch_len`] dwords, and `made` tells whether the rows, of `panel.k` floats, are in it.
#[inline(never)]
pub(in super::super) fn sums(
    w: Wide,
    x: &[f32],
    panel: &GroupPanel,
    scratch: &mut [i32],
    made: &mut bool,
    out: &mut [[f32; PANEL]],
    isa: Isa,
) -> bool {
    let Some(Codebook::Floats(all)) = panel.codebook else { return false };
    assert!(x.len() == out.len() * panel.k && panel.width.is_multiple_of(COLUMNS) && takes(panel.groups, panel.k));
    let size = panel.groups.group_size();
    let shape = Shape { rows: out.len(), k: panel.k, joined: size.is_multiple_of(SPAN) || size >= panel.k };
    let (inputs, rest) = Inputs::new(x, shape, scratch, made);
    // SAFETY: this thread has no other tiles: nothing that holds them calls this.
    let mut tiles = unsafe { Tiles::new(isa) };
    // SAFETY: the token proves the instruction set.
    unsafe {
        match (panel.groups.nbits(), shape.joined) {
            (2, true) => Entries::<2, true>::new(w, panel, all).sums(&mut tiles, &inputs, rest, out),
            (2, false) => Entries::<2, false>::new(w, panel, all).sums(&mut tiles, &inputs, rest, out),
            (3, true) => Entries::<3, true>::new(w, panel, all).sums(&mut tiles, &inputs, rest, out),
            (3, false) => Entries::<3, false>::new(w, panel, all).sums(&mut tiles, &inputs, rest, out),
            (4, true) => Entries::<4, true>::new(w, panel, all).sums(&mut tiles, &inputs, rest, out),
            (4, false) => Entries::<4, false>::new(w, panel, all).sums(&mut tiles, &inputs, rest, out),
            (nbits, _) => unreachable!("tables of codes of {nbits} bits"),
        }
    }
}

/// A panel's codes, to be written as what they stand for. `JOINED`: as [`Shape`] has it.
struct Entries<'a, const NBITS: usize, const JOINED: bool> {
    w: Wide,
    panel: &'a GroupPanel<'a>,
    /// Tables of all columns, where each column's first one is, and from one group's to the next.
    all: &'a [f32],
    tables: [u32; PANEL],
    stride: usize,
    /// Of all entries met: the bits that a bfloat16 does not have, and of those out of their range [`BEYOND`]'s.
    met: __m512i,
}

/// Of 32 outputs two tiles each.
#[repr(align(64))]
struct Slot([u8; STEP]);

/// Sums of 32 outputs with 32 columns, or 16.
#[repr(align(64))]
struct Block([f32; BLOCK * BLOCK]);

impl<'a, const NBITS: usize, const JOINED: bool> Entries<'a, NBITS, JOINED> {
    /// Sums over a span of each output and input.
    const SUMS: usize = if JOINED { 1 } else { 2 };

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn new(w: Wide, panel: &'a GroupPanel, all: &'a [f32]) -> Self {
        assert!(panel.groups.nbits() == NBITS as u32);
        let stride = usize::from(panel.groups.tables() == Some(Tables::Group)) << NBITS;
        let mut tables = [0; PANEL];
        panel.tables_of(0, &mut tables);
        let last = stride * (panel.groups.count(panel.k) - 1) + (1 << NBITS);
        assert!(tables.iter().all(|&at| at as usize + last <= all.len()));
        Entries { w, panel, all, tables, stride, met: _mm512_setzero_si512() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn sums(mut self, tiles: &mut Tiles, inputs: &Inputs, sums: &mut [i32], out: &mut [[f32; PANEL]]) -> bool {
        if inputs.shape.is_few() {
            self.few(tiles, inputs, out);
        } else {
            self.many(tiles, inputs, sums, out);
        }
        self.is_exact()
    }

    /// Whether all entries met are kept in full.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn is_exact(&self) -> bool {
        _mm512_test_epi32_mask(self.met, _mm512_set1_epi32(BEYOND | 0xffff)) == 0
    }

    /// The group of a depth; of what pads it, the last.
    fn group_of(&self, depth: usize) -> usize {
        depth.min(self.panel.k - 1) / self.panel.groups.group_size()
    }

    /// A table, 0 behind its entries.
    ///
    /// # Safety
    /// It is there.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn table(&self, at: usize) -> __m512i {
        let from = self.all.as_ptr().wrapping_add(at);
        // SAFETY: the caller's promise.
        unsafe {
            match NBITS {
                4 => _mm512_loadu_si512(from.cast()),
                _ => _mm512_maskz_loadu_epi32(u16::MAX >> (16 - (1 << NBITS)), from.cast()),
            }
        }
    }

    /// Writes 16 outputs from `column` on over 64 of depth from `depth` on as two tiles; between them, other tiles'
    /// products are begun.
    ///
    /// # Safety
    /// There is room for them; and what the work says.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn write(&mut self, depth: usize, column: usize, to: *mut u8, work: Option<(&mut Tiles, Work)>) {
        let panel = self.panel;
        let row = 4 * panel.width;
        let codes = self.codes(depth);
        let both = codes.len() == 2 * row * NBITS;
        assert!(column + COLUMNS <= panel.width && (both || codes.len() == row * NBITS));
        let groups = [depth, depth + SUPER].map(|depth| self.group_of(depth) * self.stride);
        let tables: &[u32; COLUMNS] = self.tables[column..].first_chunk().expect("16 columns");
        let (mut met, (mut tiles, work)) = (self.met, work.unzip());
        let mut quads = [_mm512_setzero_si512(); 16];
        // SAFETY: of NBITS rows of codes, or of twice as many, 16 columns are read.
        unsafe {
            let at = codes.as_ptr().add(4 * column);
            quads[..8].copy_from_slice(&quads_of::<Wide, NBITS>(self.w, at, row));
            if both {
                quads[8..].copy_from_slice(&quads_of::<Wide, NBITS>(self.w, at.add(row * NBITS), row));
            }
        }
        let mut to: *mut __m512i = to.cast();
        for (j, (codes, &at)) in transposed(quads).into_iter().zip(tables).enumerate() {
            if let (Some(tiles), Some(work)) = (&mut tiles, &work)
                && j % 5 == 0
                && j < 5 * PARTS
            {
                // SAFETY: the caller's promise.
                unsafe { tiles.add_part(work, j / 5) };
            }
            // The upper half of an entry is a bfloat16.
            let twice = _mm512_or_si512(_mm512_add_epi8(codes, codes), _mm512_set1_epi8(1));
            let at = at as usize;
            if self.stride > 0 {
                let soon = self.all.as_ptr().wrapping_add(at + groups[0] + SOON * self.stride);
                prefetch_line(soon.cast());
                if !JOINED {
                    prefetch_line(soon.wrapping_add(self.stride).cast());
                }
            }
            // SAFETY: `new` has seen that all groups' tables are there.
            let first = unsafe { self.table(at + groups[0]) };
            meet(first, &mut met);
            let found = if JOINED {
                let (even, odd) = (_mm512_and_si512(twice, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(twice));
                [_mm512_permutexvar_epi16(even, first), _mm512_permutexvar_epi16(odd, first)]
            } else {
                // SAFETY: as above.
                let second = unsafe { self.table(at + groups[1]) };
                meet(second, &mut met);
                let (low, high) = (_mm512_castsi512_si256(twice), _mm512_extracti64x4_epi64::<1>(twice));
                let (low, high) = (_mm512_cvtepu8_epi16(low), _mm512_cvtepu8_epi16(high));
                [_mm512_permutexvar_epi16(low, first), _mm512_permutexvar_epi16(high, second)]
            };
            // SAFETY: the caller's promise: a row of each tile.
            unsafe {
                _mm512_storeu_si512(to, found[0]);
                _mm512_storeu_si512(to.byte_add(TILE), found[1]);
            }
            to = to.wrapping_add(1);
        }
        self.met = met;
    }

    /// The codes of a span of all columns.
    fn codes(&self, depth: usize) -> &'a [u8] {
        let len = 4 * self.panel.width * NBITS;
        let from = &self.panel.codes[depth / SUPER * len..];
        &from[..from.len().min(2 * len)]
    }

    /// Rows that fit a tile: while one span is written, products of the one before are made, and then the sums of the
    /// one before that are added.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn few(&mut self, tiles: &mut Tiles, inputs: &Inputs, out: &mut [[f32; PANEL]]) {
        const PAIRS: usize = PANEL / BLOCK;
        let (shape, width) = (inputs.shape, self.panel.width);
        let (stride, pairs) = (4 * shape.columns(), width.div_ceil(BLOCK));
        let mut slots = [const { [const { Slot([0; STEP]) }; PAIRS] }; 2];
        let mut sums = [const { [const { Block([0.0; BLOCK * BLOCK]) }; PAIRS] }; 2];
        // Of each 16 outputs those of a row.
        let mut totals = [[[0.0; COLUMNS]; COLUMNS]; PANEL / COLUMNS];
        for turn in 0..shape.spans() + 2 {
            let [this, other] = slots.get_disjoint_mut([turn % 2, (turn + 1) % 2]).expect("two");
            if turn < shape.spans() {
                ask(self.codes(turn * SPAN));
            }
            for item in 0..2 * pairs {
                let (half, pair) = (item / pairs, item % pairs);
                let mut work = None;
                if turn > 0 && turn <= shape.spans() {
                    if pair == 0 && (half == 0 || !JOINED) {
                        tiles.zero();
                    }
                    let parts = &inputs.parts[(turn - 1) * shape.span_len()..][..shape.span_len() + LINE];
                    let parts = &parts[half * shape.span_len() / 2..];
                    let outputs = other[pair].0[half * TILE..].as_ptr();
                    work = Some(Work { outputs, parts: parts.as_ptr(), stride, pair });
                }
                let column = item * COLUMNS;
                if turn < shape.spans() && column < width {
                    let to = this[item / 2].0[item % 2 * 2 * TILE..].as_mut_ptr();
                    let work = work.take().map(|work| (&mut *tiles, work));
                    // SAFETY: a slot holds twice two tiles; of each tile of a span's parts 16 rows can be read, the last
                    // past its end, and of a slot two tiles that are 2 KB apart.
                    unsafe { self.write(turn * SPAN, column, to, work) };
                }
                if let Some(work) = work {
                    // SAFETY: as above.
                    (0..PARTS).for_each(|part| unsafe { tiles.add_part(&work, part) });
                }
                if turn > 0 && turn <= shape.spans() && (half == 1 || !JOINED) {
                    let to = sums[(turn + 1) % 2][pair].0[half % Self::SUMS * BLOCK * COLUMNS..].as_mut_ptr();
                    // SAFETY: room for two tiles.
                    unsafe { tiles.store_pair(pair, to) };
                }
            }
            if turn == 0 && !self.is_exact() {
                return;
            }
            if turn > 1 {
                for half in 0..Self::SUMS {
                    let group = self.group_of((turn - 2) * SPAN + half * SUPER);
                    let by = multipliers(self.panel, group);
                    for (column, by) in (0..width).step_by(COLUMNS).zip(by.as_chunks().0) {
                        let sums = sums[turn % 2][column / BLOCK].0.as_chunks::<COLUMNS>().0;
                        let sums = sums[half * BLOCK + column % BLOCK..].first_chunk().expect("a tile");
                        add_outputs(&mut totals[column / COLUMNS], sums, by, shape.rows);
                    }
                }
            }
        }
        for (r, (out, scale)) in out.iter_mut().zip(inputs.scales).enumerate() {
            for (out, totals) in out.chunks_exact_mut(COLUMNS).zip(&totals) {
                out.iter_mut().zip(totals[r]).for_each(|(out, total)| *out = total * scale);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn many(&mut self, tiles: &mut Tiles, inputs: &Inputs, totals: &mut [i32], out: &mut [[f32; PANEL]]) {
        let (shape, columns) = (inputs.shape, inputs.shape.columns());
        let totals: &mut [f32] = &mut bytemuck::cast_slice_mut(totals)[..shape.lens().1];
        totals.fill(0.0);
        let mut slots = [const { Slot([0; STEP]) }; PANEL / BLOCK];
        let mut sums = Block([0.0; BLOCK * BLOCK]);
        for span in 0..shape.spans() {
            ask(self.codes(span * SPAN));
            for column in (0..self.panel.width).step_by(COLUMNS) {
                let to = slots[column / BLOCK].0[column % BLOCK / COLUMNS * STEP / 2..].as_mut_ptr();
                // SAFETY: a slot holds twice two tiles.
                unsafe { self.write(span * SPAN, column, to, None) };
            }
            if span == 0 && !self.is_exact() {
                return;
            }
            for half in 0..Self::SUMS {
                let group = self.group_of(span * SPAN + half * SUPER);
                let by = multipliers(self.panel, group);
                for (block, parts) in inputs.parts.chunks_exact(shape.spans() * shape.span_len()).enumerate() {
                    let parts = &parts[span * shape.span_len()..][..shape.span_len()];
                    for (slot, first) in slots.iter().zip((0..self.panel.width).step_by(BLOCK)) {
                        let Block(sums) = &mut sums;
                        // SAFETY: a span's parts of 32 rows.
                        unsafe { multiply(tiles, slot, parts.as_ptr(), JOINED, half, sums) };
                        let totals = totals[first * columns + block * BLOCK..].chunks_mut(columns);
                        for ((totals, sums), by) in
                            totals.zip(sums.as_chunks::<BLOCK>().0).zip(&by[first..first + BLOCK])
                        {
                            add_times(totals.first_chunk_mut::<BLOCK>().expect("a block"), sums, *by);
                        }
                    }
                }
            }
        }
        self.finish(inputs, totals, out);
    }

    /// The sums as rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn finish(&self, inputs: &Inputs, totals: &[f32], out: &mut [[f32; PANEL]]) {
        let columns = inputs.shape.columns();
        for first in (0..self.panel.width).step_by(COLUMNS) {
            for (at, out) in out.chunks_mut(LINE).enumerate() {
                let mut vectors = [_mm512_setzero_si512(); 16];
                for (j, vector) in vectors.iter_mut().enumerate() {
                    let totals = &totals[(first + j) * columns + at * LINE..][..LINE];
                    // SAFETY: 16 floats.
                    *vector = unsafe { _mm512_loadu_si512(totals.as_ptr().cast()) };
                }
                let vectors = transposed(vectors);
                for ((out, scale), vector) in out.iter_mut().zip(&inputs.scales[at * LINE..]).zip(vectors) {
                    let to = &mut out[first..first + LINE];
                    let row = _mm512_mul_ps(_mm512_castsi512_ps(vector), _mm512_set1_ps(*scale));
                    // SAFETY: 16 floats.
                    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), row) };
                }
            }
        }
    }
}

/// Adds sums of 16 outputs with rows, times the outputs' multipliers, to the rows' totals.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn add_outputs(
    totals: &mut [[f32; COLUMNS]; COLUMNS],
    sums: &[[f32; COLUMNS]; COLUMNS],
    by: &[f32; COLUMNS],
    rows: usize,
) {
    const FEW: usize = 4;
    // SAFETY: 16 floats each; of 16 rows of as many the same column.
    unsafe {
        let by = _mm512_loadu_ps(by.as_ptr());
        let mut add = |row: usize, sums: __m512| {
            let total: *mut f32 = totals[row].as_mut_ptr();
            _mm512_storeu_ps(total, _mm512_fmadd_ps(sums, by, _mm512_loadu_ps(total)));
        };
        if rows <= FEW {
            let from: *const f32 = sums.as_ptr().cast();
            let places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let places = _mm512_slli_epi32::<4>(places);
            (0..rows).for_each(|row| add(row, _mm512_i32gather_ps::<4>(places, from.add(row))));
        } else {
            let columns = transposed(sums.map(|sums| _mm512_loadu_si512(sums.as_ptr().cast())));
            (0..rows).for_each(|row| add(row, _mm512_castsi512_ps(columns[row])));
        }
    }
}

/// `totals += sums · by`
#[target_feature(enable = "avx512f")]
#[inline]
fn add_times<const N: usize>(totals: &mut [f32; N], sums: &[f32; N], by: f32) {
    totals.iter_mut().zip(sums).for_each(|(total, sum)| *total = sum.mul_add(by, *total));
}

/// Notes what a table's entries have that products do not keep.
#[target_feature(enable = "avx512f")]
#[inline]
fn meet(entries: __m512i, met: &mut __m512i) {
    let bits = _mm512_and_si512(entries, _mm512_set1_epi32(i32::MAX));
    let some = _mm512_test_epi32_mask(bits, bits);
    // The lower half stays what it is.
    *met = _mm512_mask_or_epi32(*met, some, *met, _mm512_sub_epi32(bits, _mm512_set1_epi32(LEAST)));
}

/// 16 vectors of 16 dwords, the other way round.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(mut x: [__m512i; 16]) -> [__m512i; 16] {
    for i in (0..16).step_by(2) {
        (x[i], x[i + 1]) = (_mm512_unpacklo_epi32(x[i], x[i + 1]), _mm512_unpackhi_epi32(x[i], x[i + 1]));
    }
    for i in (0..16).step_by(4) {
        for i in [i, i + 1] {
            (x[i], x[i + 2]) = (_mm512_unpacklo_epi64(x[i], x[i + 2]), _mm512_unpackhi_epi64(x[i], x[i + 2]));
        }
        // Columns 0 and 2 of each lane are in the first two, 1 and 3 in the others.
        x[i..i + 4].swap(1, 2);
    }
    // Vector 4 v + c has, in lane l, column 4 l + c of rows 4 v to 4 v + 3.
    let mut y = x;
    for c in 0..4 {
        let [a, b, d, e] = [x[c], x[4 + c], x[8 + c], x[12 + c]];
        let (low, high) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (more_low, more_high) = (_mm512_shuffle_i32x4::<0x88>(d, e), _mm512_shuffle_i32x4::<0xdd>(d, e));
        y[c] = _mm512_shuffle_i32x4::<0x88>(low, more_low);
        y[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, more_low);
        y[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, more_high);
        y[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, more_high);
    }
    y
}

/// Products of 32 outputs, two tiles 2 KB apart, with three tiles of parts, for tiles 0 and 1 or 2 and 3.
struct Work {
    outputs: *const u8,
    parts: *const u32,
    /// Bytes from row to row of the parts.
    stride: usize,
    pair: usize,
}

impl Tiles {
    /// Adds products with one of the parts; the first one comes first, and leaves the outputs in tiles 4 and 5 for the
    /// others.
    ///
    /// # Safety
    /// Its tiles can be read.
    #[inline]
    unsafe fn add_part(&mut self, work: &Work, part: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if part == 0 {
                asm!(
                    "tileloadd tmm4, [{w} + {row}]",
                    "tileloadd tmm5, [{w} + {row} + 2048]",
                    w = in(reg) work.outputs,
                    row = in(reg) ROW,
                    options(nostack, readonly, preserves_flags),
                );
            }
            macro_rules! add {
                ($first:literal, $second:literal) => {
                    asm!(
                        "tileloadd tmm6, [{x} + {stride}]",
                        concat!("tdpbf16ps ", $first, ", tmm4, tmm6"),
                        concat!("tdpbf16ps ", $second, ", tmm5, tmm6"),
                        x = in(reg) work.parts.byte_add(part * ROWS * work.stride),
                        stride = in(reg) work.stride,
                        out("tmm6") _,
                        options(nostack, readonly, preserves_flags),
                    )
                };
            }
            if work.pair == 0 { add!("tmm0", "tmm1") } else { add!("tmm2", "tmm3") }
        }
    }

    /// Puts out tiles 0 and 1 or 2 and 3, one after the other.
    ///
    /// # Safety
    /// They can be written.
    unsafe fn store_pair(&mut self, pair: usize, to: *mut f32) {
        macro_rules! store {
            ($first:literal, $second:literal) => {
                asm!(
                    concat!("tilestored [{to} + {row}], ", $first),
                    concat!("tilestored [{to} + {row} + 1024], ", $second),
                    to = in(reg) to,
                    row = in(reg) ROW,
                    options(nostack, preserves_flags),
                )
            };
        }
        // SAFETY: the caller's promise.
        unsafe { if pair == 0 { store!("tmm0", "tmm1") } else { store!("tmm2", "tmm3") } }
    }
}

/// Sums of 32 outputs with 32 columns over a span, or over a half of it.
///
/// # Safety
/// From `parts` on, a span's can be read.
unsafe fn multiply(
    _: &Tiles,
    outputs: &Slot,
    parts: *const u32,
    joined: bool,
    half: usize,
    to: &mut [f32; BLOCK * BLOCK],
) {
    let (outputs, parts) = (&outputs.0[half * TILE..], parts.wrapping_add(half * 2 * PARTS * TILE / 4));
    // SAFETY: the caller's promise; twice two tiles of outputs, and room for four of sums.
    unsafe {
        with_tiles!(
            [nostack]
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{w} + {row}]",
            "tileloadd tmm6, [{x} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{x} + {row} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{w} + {row} + 2048]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{x} + {row} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{x} + {row} + 3072]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{x} + {row} + 4096]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{x} + {row} + 5120]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {w}, 1024",
            "add {x}, 6144",
            "dec {n:e}",
            "jnz 2b",
            "tilestored [{to} + {stride}], tmm0",
            "tilestored [{to} + {stride} + 64], tmm1",
            "tilestored [{to} + {stride} + 2048], tmm2",
            "tilestored [{to} + {stride} + 2112], tmm3",
            w = inout(reg) outputs.as_ptr() => _,
            x = inout(reg) parts => _,
            to = in(reg) to.as_mut_ptr(),
            row = in(reg) ROW,
            stride = in(reg) 4 * BLOCK,
            n = inout(reg) if joined { 2 } else { 1 } => _,
        );
    }
}
