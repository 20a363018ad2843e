//! Rows of floats times weights whose rows or groups have tables, by tiles of bfloat16.
//!
//! A float32 is three bfloat16 exactly: 24 bits are three times eight. So where a table's entries are
//! bfloat16, three products of tiles have every term in full. They are summed in float32 over 64 of
//! the depth at most within a group, and each such sum is added, times the multiplier.
//!
//! Tiles take what is below 2^-126 for 0. So a row is brought to 2^64 at most, and a panel whose tables
//! have entries below 2^-96 or from 2^32 on is left to `float_sums`: what a product loses is below 2^-190
//! of the row's greatest, or below what a float can be.
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
use super::{AHEAD, BLOCK, COLUMNS, LINE, ROW, ROWS, Tiles};
use crate::Isa;
use crate::lanes::prefetch_line;

/// Bytes of a tile.
const TILE: usize = ROWS * ROW;
/// Depth whose codes are taken apart at a time: two tiles.
const SPAN: usize = 64;
/// Bytes of 32 outputs over such a depth: both tiles of 16, and of 16 more. Where rows are few, of 16 outputs over this
/// and over the last such depth.
const STEP: usize = 4 * TILE;
/// bfloat16 that a float consists of.
const PARTS: usize = 3;
/// Groups from one to that whose tables are asked for meanwhile.
const SOON: usize = 8;
/// Rows of a block, and bytes of their parts, at most, if those are 32 rows' or more: they stay in L2 beside a panel.
const MOST: (usize, usize) = (128, 3 << 19);
/// What a row's greatest is brought to: 2^64, and less where that is beyond a float's scale.
const TOP: u32 = 64;
/// Twice the bits of 2^-96 and of 2^32 as bfloat16.
const LEAST: i16 = (127 - 96) << 8;
const BEYOND: i16 = ((127 + 32) << 8) as u16 as i16;

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

    /// Dwords of all parts, and of sums.
    fn lens(self) -> (usize, usize) {
        let parts = self.spans() * self.span_len() * if self.is_few() { 1 } else { self.columns() / BLOCK };
        (parts, if self.is_few() { 0 } else { PANEL * self.columns() })
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

/// Where a whole span's `q`-th four codes, two in each tile, have their dword in a tile's row: as [`Entries::write_with`]
/// meets those of 4 bits.
fn place_of(q: usize) -> usize {
    q / 8 * 8 + q % 2 * 4 + q % 8 / 2
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
                    let at = place_of(q) * next;
                    to[low + at] = four[0] | four[2] << 16;
                    to[high + at] = four[1] | four[3] << 16;
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
    let Some(codebook) = panel.codebook else { return false };
    assert!(x.len() == out.len() * panel.k && panel.width.is_multiple_of(COLUMNS) && takes(panel.groups, panel.k));
    let size = panel.groups.group_size();
    let shape = Shape { rows: out.len(), k: panel.k, joined: size.is_multiple_of(SPAN) || size >= panel.k };
    let (inputs, rest) = Inputs::new(x, shape, scratch, made);
    // SAFETY: this thread has no other tiles: nothing that holds them calls this.
    let mut tiles = unsafe { Tiles::new(isa, if shape.is_few() { shape.columns() } else { COLUMNS }) };
    // SAFETY: the token proves the instruction set.
    unsafe {
        match (panel.groups.nbits(), shape.joined) {
            (2, true) => Entries::<2, true>::new(w, panel, codebook).sums(&mut tiles, &inputs, rest, out),
            (2, false) => Entries::<2, false>::new(w, panel, codebook).sums(&mut tiles, &inputs, rest, out),
            (3, true) => Entries::<3, true>::new(w, panel, codebook).sums(&mut tiles, &inputs, rest, out),
            (3, false) => Entries::<3, false>::new(w, panel, codebook).sums(&mut tiles, &inputs, rest, out),
            (4, true) => Entries::<4, true>::new(w, panel, codebook).sums(&mut tiles, &inputs, rest, out),
            (4, false) => Entries::<4, false>::new(w, panel, codebook).sums(&mut tiles, &inputs, rest, out),
            (nbits, _) => unreachable!("tables of codes of {nbits} bits"),
        }
    }
}

/// A panel's codes, to be written as what they stand for. `JOINED`: as [`Shape`] has it.
struct Entries<'a, const NBITS: usize, const JOINED: bool> {
    w: Wide,
    panel: &'a GroupPanel<'a>,
    /// Tables of all columns, where each column's first one is, and from one group's to the next.
    codebook: Codebook<'a>,
    tables: [[u32; COLUMNS]; PANEL / COLUMNS],
    stride: usize,
    /// The second one of each two tables of bfloat16 that a line has, of each column.
    seconds: Seconds,
    met: Met,
}

#[repr(align(32))]
struct Seconds([[u16; 16]; PANEL]);

/// What entries of tables are that were met.
#[derive(Clone, Copy)]
struct Met {
    /// Of words, twice the least size but 0, less 1, and twice the greatest.
    least: __m512i,
    most: __m512i,
    /// Of dwords, the bits that they have.
    bits: __m512i,
}

impl Met {
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn add(&mut self, words: __m512i) {
        let twice = _mm512_add_epi16(words, words);
        self.most = _mm512_max_epu16(self.most, twice);
        self.least = _mm512_min_epu16(self.least, _mm512_sub_epi16(twice, _mm512_set1_epi16(1)));
        // SAFETY: it does nothing; but this is not put off, for which all tables would have to be kept.
        unsafe {
            asm!("/* {} {} */", inout(zmm_reg) self.most, inout(zmm_reg) self.least, options(nomem, nostack, preserves_flags))
        };
    }

    /// Whether they are kept in full.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn is_exact(&self) -> bool {
        _mm512_cmplt_epu16_mask(self.least, _mm512_set1_epi16(LEAST - 1)) == 0
            && _mm512_cmpge_epu16_mask(self.most, _mm512_set1_epi16(BEYOND)) == 0
            && _mm512_test_epi32_mask(self.bits, _mm512_set1_epi32(0xffff)) == 0
    }
}

/// A span's codes of all columns, bytes from one row of them to the next, and whether there are two supersteps of them.
/// And how far behind those of the first group are the tables of both, whether they are new, which words of them are to be
/// met then, whether they are in [`Seconds`], and how far behind are others that are needed soon.
struct Span {
    codes: *const u8,
    row: usize,
    both: bool,
    groups: [usize; 2],
    is_new: bool,
    words: u32,
    is_second: bool,
    soon: usize,
}

/// Of 32 outputs two tiles each, as [`STEP`] has it.
#[repr(align(64))]
struct Slot([u8; STEP]);

/// Sums of 32 outputs with 32 columns, or of twice as many with 16 at most.
#[repr(align(64))]
struct Block([f32; BLOCK * BLOCK]);

impl<'a, const NBITS: usize, const JOINED: bool> Entries<'a, NBITS, JOINED> {
    /// Sums over a span of each output and input.
    const SUMS: usize = if JOINED { 1 } else { 2 };
    /// Whether tables of bfloat16 are read by twos, as lines have them: columns' are often in the same sets of a cache,
    /// which does not keep a line until the second is needed.
    const BY_TWOS: bool = NBITS == 4 && JOINED;

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn new(w: Wide, panel: &'a GroupPanel, codebook: Codebook<'a>) -> Self {
        assert!(panel.groups.nbits() == NBITS as u32);
        let stride = usize::from(panel.groups.tables() == Some(Tables::Group)) << NBITS;
        let mut tables = [0; PANEL];
        panel.tables_of(0, &mut tables);
        let last = stride * (panel.groups.count(panel.k) - 1) + (1 << NBITS);
        assert!(tables.iter().all(|&at| at as usize + last <= codebook.len()));
        assert!(panel.width.is_multiple_of(COLUMNS) && panel.width <= PANEL);
        let tables = bytemuck::cast(tables);
        let (zero, ones) = (_mm512_setzero_si512(), _mm512_set1_epi8(-1));
        Entries {
            w,
            panel,
            codebook,
            tables,
            stride,
            seconds: Seconds([[0; 16]; PANEL]),
            met: Met { least: ones, most: zero, bits: zero },
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn sums(mut self, tiles: &mut Tiles, inputs: &Inputs, rest: &mut [i32], out: &mut [[f32; PANEL]]) -> bool {
        if inputs.shape.is_few() {
            self.few(tiles, inputs, out);
        } else {
            self.many(tiles, inputs, rest, out);
        }
        self.met.is_exact()
    }

    /// The group of a depth; of what pads it, the last.
    fn group_of(&self, depth: usize) -> usize {
        depth.min(self.panel.k - 1) / self.panel.groups.group_size()
    }

    #[inline]
    fn span(&self, span: usize) -> Span {
        let row = 4 * self.panel.width;
        let codes = &self.panel.codes[span * SPAN / SUPER * row * NBITS..];
        assert!(codes.len() >= row * NBITS);
        let groups = if self.stride == 0 {
            [0; 2]
        } else if JOINED {
            [self.group_of(span * SPAN); 2]
        } else {
            [0, SUPER].map(|i| self.group_of(span * SPAN + i))
        };
        let mut words = u32::MAX >> (32 - (1 << NBITS));
        // Those of rows are met once; those of groups where they are 32 bytes by twos.
        let (mut is_new, mut is_second) = (self.stride > 0 || span == 0, false);
        if Self::BY_TWOS
            && self.stride > 0
            && let Codebook::Bf16(_) = self.codebook
        {
            is_second = !groups[0].is_multiple_of(2);
            is_new = !is_second;
            if groups[0] + 1 < self.panel.groups.count(self.panel.k) {
                words = u32::MAX;
            }
        }
        Span {
            codes: codes.as_ptr(),
            row,
            both: codes.len() >= 2 * row * NBITS,
            groups: groups.map(|group| group * self.stride),
            is_new,
            words,
            is_second,
            soon: SOON * self.stride,
        }
    }

    /// Writes a set of 16 outputs over a span as two tiles, and asks for codes and tables that come later;
    /// `between` is called before each of them.
    ///
    /// # Safety
    /// The span is the panel's, and there is room for the tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn write(&mut self, span: &Span, set: usize, to: *mut u8, between: impl FnMut(usize)) {
        let Entries { w, tables, seconds, .. } = self;
        let (w, tables, seconds) = (*w, &tables[set], &mut seconds.0[set * COLUMNS..][..COLUMNS]);
        let (mut met, mask) = (self.met, u16::MAX >> (16 - (1 << NBITS)));
        match self.codebook {
            Codebook::F32(all) => {
                // The upper halves of 16 entries, twice.
                let steps = _mm512_set_epi32(7, 6, 5, 4, 3, 2, 1, 0, 7, 6, 5, 4, 3, 2, 1, 0);
                let steps = _mm512_mullo_epi32(steps, _mm512_set1_epi32(0x0004_0004));
                let upper = _mm512_add_epi32(steps, _mm512_set1_epi32(0x0003_0001));
                let table = |_: usize, at: usize| {
                    let from = all.as_ptr().wrapping_add(at);
                    // SAFETY: `new` has seen that all groups' tables are there.
                    let dwords = unsafe { _mm512_maskz_loadu_epi32(mask, from.cast()) };
                    let words = _mm512_permutexvar_epi16(upper, dwords);
                    if span.is_new {
                        prefetch_line(from.wrapping_add(span.soon).cast());
                        met.bits = _mm512_or_si512(met.bits, dwords);
                        met.add(words);
                    }
                    words
                };
                // SAFETY: the caller's promises.
                unsafe { Self::write_with(w, tables, span, set, to.cast(), table, between) };
            }
            Codebook::Bf16(all) => {
                let table = |j: usize, at: usize| {
                    let from = all.as_ptr().wrapping_add(at);
                    // SAFETY: as above; a second one is 16 words.
                    unsafe {
                        if Self::BY_TWOS && span.is_second {
                            return _mm512_broadcast_i64x4(_mm256_loadu_si256(seconds[j].as_ptr().cast()));
                        }
                        if span.is_new {
                            // Not into the nearest cache.
                            _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(span.soon).cast());
                            let words = _mm512_maskz_loadu_epi16(span.words, from.cast());
                            met.add(words);
                            if Self::BY_TWOS {
                                let second = _mm512_extracti64x4_epi64::<1>(words);
                                _mm256_storeu_si256(seconds[j].as_mut_ptr().cast(), second);
                            }
                        }
                        _mm512_broadcast_i64x4(match NBITS {
                            4 => _mm256_loadu_si256(from.cast()),
                            _ => _mm512_castsi512_si256(_mm512_maskz_loadu_epi16(mask.into(), from.cast())),
                        })
                    }
                };
                // SAFETY: the caller's promises.
                unsafe { Self::write_with(w, tables, span, set, to.cast(), table, between) };
            }
            Codebook::Int8(_) => unreachable!("integers for floats"),
        }
        self.met = met;
    }

    /// [`Self::write`], given how a table's words are had, twice.
    ///
    /// # Safety
    /// As there.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    unsafe fn write_with(
        w: Wide,
        tables: &[u32; COLUMNS],
        span: &Span,
        set: usize,
        to: *mut __m512i,
        mut table: impl FnMut(usize, usize) -> __m512i,
        mut between: impl FnMut(usize),
    ) {
        let (groups, row) = (span.groups, span.row);
        let codes = span.codes.wrapping_add(set * 4 * COLUMNS);
        let line = |i: usize| codes.wrapping_add(i.wrapping_mul(row));
        // A row of each tile, given the words that hold its codes and the tables.
        let put = |j: usize, words: [__m512i; 2], tables: [__m512i; 2]| {
            let to = to.wrapping_add(j);
            // Bits of an index above the fifth are not read, and the fifth does not matter: entries are there twice.
            // SAFETY: the caller's promise.
            unsafe {
                _mm512_storeu_si512(to, _mm512_permutexvar_epi16(words[0], tables[0]));
                _mm512_storeu_si512(to.wrapping_byte_add(TILE), _mm512_permutexvar_epi16(words[1], tables[1]));
            }
        };
        if NBITS == 4 && JOINED {
            // Looked up as they lie, four to a word.
            let mut halves = [[_mm512_setzero_si512(); 4]; 2];
            for (half, words) in halves.iter_mut().enumerate().take(1 + usize::from(span.both)) {
                for (i, words) in words.iter_mut().enumerate() {
                    // SAFETY: of each row of codes 16 columns are read.
                    *words = unsafe { _mm512_loadu_si512(line(4 * half + i).cast()) };
                }
                *words = transposed_in_lanes(*words);
            }
            // Words of the second lane of each half are shifted by 4; for the second tile all by 8 more.
            let four = 0x0004_0004_0004_0004;
            let first = _mm512_set_epi64(four, four, 0, 0, four, four, 0, 0);
            let second = _mm512_add_epi16(first, _mm512_set1_epi16(8));
            macro_rules! columns {
                ($lane:literal, $lanes:literal) => {
                    for c in 0..4 {
                        let j = 4 * $lane + c;
                        between(j);
                        if j % 2 == 0 {
                            prefetch_line(line(j / 2).wrapping_add(AHEAD));
                        }
                        let table = table(j, groups[0].wrapping_add(tables[j] as usize));
                        let words = _mm512_shuffle_i32x4::<$lanes>(halves[0][c], halves[1][c]);
                        put(j, [first, second].map(|by| _mm512_srlv_epi16(words, by)), [table; 2]);
                    }
                };
            }
            columns!(0, 0x00);
            columns!(1, 0x55);
            columns!(2, 0xaa);
            columns!(3, 0xff);
            return;
        }
        let mut quads = [_mm512_setzero_si512(); 16];
        // SAFETY: of NBITS rows of codes, or of twice as many, 16 columns are read.
        unsafe {
            quads[..8].copy_from_slice(&quads_of::<Wide, NBITS>(w, codes, row));
            if span.both {
                quads[8..].copy_from_slice(&quads_of::<Wide, NBITS>(w, line(NBITS), row));
            }
        }
        if JOINED {
            let all = quads;
            (0..16).for_each(|q| quads[place_of(q)] = all[q]);
        }
        for (j, codes) in transposed(quads).into_iter().enumerate() {
            between(j);
            if j < 2 * NBITS {
                prefetch_line(line(j).wrapping_add(AHEAD));
            }
            let at = groups.map(|group| group.wrapping_add(tables[j] as usize));
            if JOINED {
                let words = [_mm512_and_si512(codes, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(codes)];
                put(j, words, [table(j, at[0]); 2]);
            } else {
                let (low, high) = (_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes));
                put(j, [_mm512_cvtepu8_epi16(low), _mm512_cvtepu8_epi16(high)], [table(j, at[0]), table(j, at[1])]);
            }
        }
    }

    /// Rows that fit a tile, 32 outputs at a time: while one span is written, products of the one before are made, and
    /// then the sums of the one before that are added.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn few(&mut self, tiles: &mut Tiles, inputs: &Inputs, out: &mut [[f32; PANEL]]) {
        let (shape, width) = (inputs.shape, self.panel.width);
        let (spans, len, columns) = (shape.spans(), shape.span_len(), shape.columns());
        // Of each 16 outputs this span's and the last one's, in halves of a page: a load from where a store is under way,
        // but for all bits above the last 12, waits for it.
        let mut slots = [const { Slot([0; STEP]) }; 2];
        let mut sums = [const { Block([0.0; BLOCK * BLOCK]) }; 2];
        let slots: *mut u8 = slots.as_mut_ptr().cast();
        let sets = width / COLUMNS;
        for first in (0..sets).step_by(2) {
            let mut totals = [[[0.0; COLUMNS]; COLUMNS]; 2];
            let mut done: Option<Done> = None;
            for turn in 0..spans + 2 {
                let [this, other] = [turn % 2, (turn + 1) % 2];
                let span = if turn < spans { Some(self.span(turn)) } else { None };
                let parts = turn.checked_sub(1).filter(|&last| last < spans);
                let parts = parts.map(|last| inputs.parts[last * len..][..len].as_ptr());
                for half in 0..2 {
                    let work = parts.map(|parts| Work {
                        outputs: slots.wrapping_add(other * (STEP / 2) + half * TILE),
                        parts: parts.wrapping_add(half * (len / 2)),
                        stride: 4 * columns,
                        begins: half == 0 || !JOINED,
                        pair: if JOINED { other } else { half },
                    });
                    let (set, to) = (first + half, slots.wrapping_add(half * STEP + this * (STEP / 2)));
                    // SAFETY: a half of a slot holds two tiles; of slots two tiles are read, and a span's parts.
                    unsafe {
                        match (span.as_ref().filter(|_| set < sets), &work) {
                            (Some(span), Some(work)) => self.write(span, set, to, |j| tiles.step(work, j)),
                            (Some(span), None) => self.write(span, set, to, |_| ()),
                            (None, Some(work)) => (0..COLUMNS).for_each(|j| tiles.step(work, j)),
                            (None, None) => (),
                        }
                        if let Some(done) = done.take() {
                            // After the next work has begun, which would wait for them.
                            tiles.put_out(&done, if columns == 1 { 4 } else { ROW });
                        }
                    }
                    if let Some(Work { pair, .. }) = work
                        && (half == 1 || !JOINED)
                    {
                        let to = sums[other].0[half % Self::SUMS * BLOCK * COLUMNS..].as_mut_ptr();
                        done = Some(Done { pair, to });
                    }
                }
                if turn == 0 && !self.met.is_exact() {
                    return;
                }
                let Some(added) = turn.checked_sub(2) else { continue };
                for half in 0..Self::SUMS {
                    let group = self.group_of(added * SPAN + half * SUPER);
                    let by = self.panel.multipliers[group * width + first * COLUMNS..].as_chunks::<COLUMNS>().0;
                    let sums = sums[added % 2].0[half * BLOCK * COLUMNS..].as_chunks().0;
                    for ((totals, sums), by) in totals.iter_mut().zip(sums).zip(by) {
                        // SAFETY: 16 multipliers.
                        let by = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(by.as_ptr().cast()) });
                        let by = _mm512_cvtepi32_ps(_mm512_sub_epi32(by, _mm512_set1_epi32(128)));
                        add_outputs(totals, sums, by, shape.rows);
                    }
                }
            }
            for (totals, set) in totals.iter().zip(first..sets) {
                for ((out, totals), scale) in out.iter_mut().zip(totals).zip(inputs.scales) {
                    out[set * COLUMNS..][..COLUMNS]
                        .iter_mut()
                        .zip(totals)
                        .for_each(|(out, total)| *out = total * scale);
                }
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
            let codes = self.span(span);
            for column in (0..self.panel.width).step_by(COLUMNS) {
                let to = slots[column / BLOCK].0[column % BLOCK / COLUMNS * STEP / 2..].as_mut_ptr();
                // SAFETY: a slot holds twice two tiles.
                unsafe { self.write(&codes, column / COLUMNS, to, |_| ()) };
            }
            if span == 0 && !self.met.is_exact() {
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
fn add_outputs(totals: &mut [[f32; COLUMNS]; COLUMNS], sums: &[f32; TILE / 4], by: __m512, rows: usize) {
    const FEW: usize = 4;
    // SAFETY: 16 floats each; of 16 rows of as many the same column.
    unsafe {
        let mut add = |row: usize, sums: __m512| {
            let total: *mut f32 = totals[row].as_mut_ptr();
            _mm512_storeu_ps(total, _mm512_fmadd_ps(sums, by, _mm512_loadu_ps(total)));
        };
        if rows == 1 {
            add(0, _mm512_loadu_ps(sums.as_ptr()));
        } else if rows <= FEW {
            let from = sums.as_ptr();
            let places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let places = _mm512_slli_epi32::<4>(places);
            (0..rows).for_each(|row| add(row, _mm512_i32gather_ps::<4>(places, from.add(row))));
        } else {
            let mut columns = [_mm512_setzero_si512(); 16];
            for (columns, sums) in columns.iter_mut().zip(sums.as_chunks::<COLUMNS>().0) {
                *columns = _mm512_loadu_si512(sums.as_ptr().cast());
            }
            let columns = transposed(columns);
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

/// Four by four dwords, the other way round, in each lane by itself.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed_in_lanes([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab2, cd2),
        _mm512_unpackhi_epi64(ab2, cd2),
    ]
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

/// Products of 32 outputs, two tiles 4 KB apart, with three tiles of parts.
struct Work {
    outputs: *const u8,
    parts: *const u32,
    /// Bytes from row to row of the parts.
    stride: usize,
    /// Whether sums begin with it.
    begins: bool,
    /// Whether those are in tiles 0 and 1 or in 2 and 3.
    pair: usize,
}

/// Sums in a pair of tiles, and where they go.
struct Done {
    pair: usize,
    to: *mut f32,
}

/// Runs an instruction with the first or second tile of a pair.
macro_rules! with_sums {
    ($pair:expr, $second:literal, [$($option:ident),*] $before:literal, $after:literal, $($operand:tt)*) => {
        match ($pair, $second) {
            (0, false) => asm!(concat!($before, "tmm0", $after), $($operand)* options($($option),*)),
            (0, true) => asm!(concat!($before, "tmm1", $after), $($operand)* options($($option),*)),
            (_, false) => asm!(concat!($before, "tmm2", $after), $($operand)* options($($option),*)),
            (_, true) => asm!(concat!($before, "tmm3", $after), $($operand)* options($($option),*)),
        }
    };
}

impl Tiles {
    /// Of 16 steps one, to be taken in turn: all products of a work are made, some time apart.
    ///
    /// # Safety
    /// Its tiles can be read.
    #[inline(always)]
    unsafe fn step(&mut self, work: &Work, step: usize) {
        macro_rules! load {
            ($tile:literal, $from:expr, $stride:expr) => {
                asm!(
                    concat!("tileloadd ", $tile, ", [{from} + {stride}]"),
                    from = in(reg) $from,
                    stride = in(reg) $stride,
                    options(nostack, readonly, preserves_flags),
                )
            };
        }
        let parts = |part: usize| work.parts.wrapping_byte_add((part * ROWS).wrapping_mul(work.stride));
        // SAFETY: the caller's promise.
        unsafe {
            match step {
                0 => {
                    if work.begins {
                        with_sums!(work.pair, false, [nostack, nomem, preserves_flags] "tilezero ", "",);
                        with_sums!(work.pair, true, [nostack, nomem, preserves_flags] "tilezero ", "",);
                    }
                    load!("tmm4", work.outputs, ROW);
                    load!("tmm6", parts(0), work.stride);
                }
                2 => load!("tmm5", work.outputs.wrapping_add(STEP), ROW),
                5 => load!("tmm7", parts(1), work.stride),
                10 => load!("tmm6", parts(2), work.stride),
                _ => (),
            }
            match step {
                1 | 11 => with_sums!(work.pair, false, [nostack, nomem, preserves_flags] "tdpbf16ps ", ", tmm4, tmm6",),
                6 => with_sums!(work.pair, false, [nostack, nomem, preserves_flags] "tdpbf16ps ", ", tmm4, tmm7",),
                3 | 14 => with_sums!(work.pair, true, [nostack, nomem, preserves_flags] "tdpbf16ps ", ", tmm5, tmm6",),
                9 => with_sums!(work.pair, true, [nostack, nomem, preserves_flags] "tdpbf16ps ", ", tmm5, tmm7",),
                _ => (),
            }
        }
    }

    /// Puts out sums, the second tile 1 KB behind the first, `stride` bytes from row to row.
    ///
    /// # Safety
    /// They can be written.
    #[inline(always)]
    unsafe fn put_out(&mut self, done: &Done, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            with_sums!(
                done.pair, false,
                [nostack, preserves_flags]
                "tilestored [{to} + {stride}], ",
                "",
                to = in(reg) done.to,
                stride = in(reg) stride,
            );
            with_sums!(
                done.pair, true,
                [nostack, preserves_flags]
                "tilestored [{to} + {stride} + 1024], ",
                "",
                to = in(reg) done.to,
                stride = in(reg) stride,
            );
        }
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
