//! Weights in groups times rows that are not rounded to 8 bits a row: floats as they
//! are, and codes with a scale for every [`SUPER`] of them.
//!
//! What a code stands for is value · multiplier, the value its number less the zero point,
//! or its entry of a table. Values are multiplied with rows by fused multiply-adds over at
//! most 64 of the depth within a group, and each such sum is added, times the multiplier.

use std::ops::Range;

use super::groups::{GroupPanel, Grouped, SUPER, places};
use super::tables::{Codebook, Tables};
use super::tiled::PANEL;
use crate::affine::RowScale;
use crate::lanes::{Lanes, on_isa, prefetch_line};

/// The longest depth that is summed, and unpacked, at a time: 16 KiB of floats.
const SPAN: usize = 64;
/// Rows of a tile: with two vectors of columns, 12 sums.
const MR: usize = 6;
/// Groups from one to that whose tables are asked for meanwhile.
const SOON: usize = 4;
/// Floats of scratch for a span.
pub(super) const SCRATCH: usize = SPAN * PANEL;
/// Rows of a block: enough to repay unpacking, several times over.
pub(super) const ROWS: usize = 192;

on_isa! {
    /// `out[r][j] = Σ_k x[r][k] · value[k][j] · multiplier`, rows as [`interleave`] has them.
    pub(super) fn float_sums(x: &[f32], panel: &GroupPanel, scratch: &mut [f32], out: &mut [[f32; PANEL]]) = sums;
    /// Of each column the sum of `multiplier · (code - zero point)` over one superstep.
    pub(super) fn span_column_sums(panel: &GroupPanel, depth: Range<usize>, scratch: &mut [f32], out: &mut [i32; PANEL])
        = column_sums;
    /// `totals += (sums - zero point · column sums) · scale`.
    pub(super) fn add_span(sums: &[i32], col_sum: &[i32; PANEL], row: RowScale, totals: &mut [f32]) = add;
}

/// Floats of scratch: a span's, and what a panel's tables of bfloat16 are.
pub(super) fn scratch_len(weight: &Grouped) -> usize {
    let tables = match (weight.codebook(), weight.groups().tables()) {
        (Some(Codebook::Bf16(_)), Some(Tables::Tensor)) => 1,
        (Some(Codebook::Bf16(_)), _) => PANEL,
        _ => 0,
    };
    SCRATCH + (tables << weight.groups().nbits())
}

/// Rows of `k` as tiles read them: those of six, then of two, then of one row, each `[k][rows]`.
pub(super) fn interleave(x: &[f32], k: usize, to: &mut [f32]) {
    let sixes = x.len() / (MR * k) * (MR * k);
    let twos = sixes + (x.len() - sixes) / (2 * k) * (2 * k);
    for (x, to) in x[..sixes].chunks_exact(MR * k).zip(to[..sixes].chunks_exact_mut(MR * k)) {
        interleaved::<MR>(x, k, to);
    }
    for (x, to) in x[sixes..twos].chunks_exact(2 * k).zip(to[sixes..twos].chunks_exact_mut(2 * k)) {
        interleaved::<2>(x, k, to);
    }
    to[twos..x.len()].copy_from_slice(&x[twos..]);
}

fn interleaved<const R: usize>(x: &[f32], k: usize, to: &mut [f32]) {
    let mut rows = x.chunks_exact(k);
    let rows: [&[f32]; R] = [(); R].map(|()| rows.next().unwrap_or_default());
    for (i, to) in to.as_chunks_mut::<R>().0.iter_mut().enumerate() {
        *to = rows.map(|row| row[i]);
    }
}

/// Cuts a depth into spans, at multiples of [`SPAN`] and where groups end.
#[inline(always)]
fn spans(depth: Range<usize>, group_size: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = depth.start;
    std::iter::from_fn(move || {
        let end = (at / SPAN + 1) * SPAN;
        let end = end.min((at / group_size + 1) * group_size).min(depth.end);
        (at < end).then(|| std::mem::replace(&mut at, end)..end)
    })
}

#[inline(always)]
fn sums<L: Lanes>(l: L, x: &[f32], panel: &GroupPanel, scratch: &mut [f32], out: &mut [[f32; PANEL]]) {
    out.iter_mut().for_each(|out| out.fill(0.0));
    let (scratch, tables) = scratch.split_at_mut(SCRATCH);
    if let [out] = out {
        return one(l, x, panel, tables, out);
    }
    let (k, group_size) = (panel.k, panel.groups.group_size());
    let (sixes, rest) = out.as_chunks_mut::<MR>();
    let (twos, ones) = rest.as_chunks_mut::<2>();
    let (x_sixes, x_rest) = x.split_at(MR * k * sixes.len());
    let (x_twos, x_ones) = x_rest.split_at(2 * k * twos.len());
    for span in spans(0..k, group_size) {
        let w = &mut scratch[..span.len() * PANEL];
        unpack(l, panel, span.clone(), tables, w);
        let multipliers = multipliers(panel, span.start / group_size);
        for (at, w) in (0..panel.width).step_by(2 * L::N).zip(w.chunks_exact(2 * L::N * span.len())) {
            let strip = Strip { w, at, multipliers: &multipliers };
            for (out, x) in sixes.iter_mut().zip(x_sixes.chunks_exact(MR * k)) {
                tile::<L, MR>(l, &x[MR * span.start..MR * span.end], strip, out);
            }
            for (out, x) in twos.iter_mut().zip(x_twos.chunks_exact(2 * k)) {
                tile::<L, 2>(l, &x[2 * span.start..2 * span.end], strip, out);
            }
            for (out, x) in ones.as_chunks_mut::<1>().0.iter_mut().zip(x_ones.chunks_exact(k)) {
                tile::<L, 1>(l, &x[span.clone()], strip, out);
            }
        }
    }
}

/// A group's multipliers, of all of the panel's columns.
#[inline(always)]
pub(super) fn multipliers(panel: &GroupPanel, group: usize) -> [f32; PANEL] {
    let mut floats = [0.0; PANEL];
    let from = &panel.multipliers[group * panel.width..][..panel.width];
    let less = if panel.codebook.is_some() { 128.0 } else { 0.0 };
    floats.iter_mut().zip(from).for_each(|(to, &m)| *to = f32::from(m) - less);
    floats
}

/// Two vectors of columns over a span.
#[derive(Clone, Copy)]
struct Strip<'a> {
    /// `[k][2 N]`
    w: &'a [f32],
    /// The first column.
    at: usize,
    multipliers: &'a [f32; PANEL],
}

/// `R` rows times a strip, added to `out`.
#[inline(always)]
fn tile<L: Lanes, const R: usize>(l: L, x: &[f32], strip: Strip, out: &mut [[f32; PANEL]; R]) {
    let mut sums = [[l.splat(0.0); 2]; R];
    let (x, step) = (x.as_chunks::<R>().0, 2 * L::N);
    // Four at a time, so that counting costs less.
    let (fours, rest) = x.as_chunks::<4>();
    for (x, w) in fours.iter().zip(strip.w.chunks_exact(4 * step)) {
        term(l, &x[0], &w[..step], &mut sums);
        term(l, &x[1], &w[step..2 * step], &mut sums);
        term(l, &x[2], &w[2 * step..3 * step], &mut sums);
        term(l, &x[3], &w[3 * step..], &mut sums);
    }
    for (x, w) in rest.iter().zip(strip.w[4 * step * fours.len()..].chunks_exact(step)) {
        term(l, x, w, &mut sums);
    }
    let halves = [strip.at..strip.at + L::N, strip.at + L::N..strip.at + 2 * L::N];
    let by = halves.clone().map(|half| l.load(&strip.multipliers[half]));
    for (out, sums) in out.iter_mut().zip(sums) {
        for half in 0..2 {
            let out = &mut out[halves[half].clone()];
            l.store(l.mul_add(sums[half], by[half], l.load(out)), out);
        }
    }
}

/// `sums += x · w`, of two vectors of columns.
#[inline(always)]
fn term<L: Lanes, const R: usize>(l: L, x: &[f32; R], w: &[f32], sums: &mut [[L::F; 2]; R]) {
    let w = [l.load(&w[..L::N]), l.load(&w[L::N..])];
    for r in 0..R {
        let x = l.splat(x[r]);
        sums[r] = [l.mul_add(x, w[0], sums[r][0]), l.mul_add(x, w[1], sums[r][1])];
    }
}

/// A call with the [`Values`] of a panel's group, from a depth on.
macro_rules! with_values {
    ($l:ident, $panel:ident, $depth:expr, $tables:ident, |$values:ident| $call:expr) => {{
        let nbits = $panel.groups.nbits();
        macro_rules! call {
            ($of:expr) => {{
                let $values = &$of;
                $call
            }};
        }
        match ($panel.codebook, sole_table($panel)) {
            (_, Some(table)) => call!(Picked { table: $l.table(&table[..1 << nbits]) }),
            (Some(codebook), None) => {
                let tables = Entries::new($panel, $depth, codebook, $tables);
                match nbits {
                    2 => call!(LookedUp::<2>(tables)),
                    3 => call!(LookedUp::<3>(tables)),
                    4 => call!(LookedUp::<4>(tables)),
                    _ => call!(LookedUp::<8>(tables)),
                }
            }
            (None, None) => call!(Numbers::new($panel, $depth / $panel.groups.group_size())),
        }
    }};
}

/// The one table of codes of up to 4 bits, if they have only one.
#[inline(always)]
fn sole_table(panel: &GroupPanel) -> Option<[f32; 16]> {
    let len = 1 << panel.groups.nbits();
    let codebook = panel.codebook.filter(|codebook| codebook.len() == len && len <= 16)?;
    let mut table = [0.0; 16];
    codebook.read(0, &mut table[..len]);
    Some(table)
}

/// One row times a panel, with nothing written in between.
#[inline(always)]
fn one<L: Lanes>(l: L, x: &[f32], panel: &GroupPanel, tables: &mut [f32], out: &mut [f32; PANEL]) {
    let group_size = panel.groups.group_size();
    for span in spans(0..panel.k, group_size) {
        let group = span.start / group_size;
        let by = multipliers(panel, group);
        let mut sums = [0.0; PANEL];
        match sole_table(panel) {
            Some(table) if panel.groups.nbits() == 4 => {
                add_from_registers(l, x, panel, span, &l.table(&table), &mut sums);
            }
            _ => {
                with_values!(l, panel, span.start, tables, |values| add_products(l, x, panel, span, values, &mut sums))
            }
        }
        let sums = sums.chunks_exact(L::N).zip(by.chunks_exact(L::N));
        for ((sums, by), out) in sums.zip(out.chunks_exact_mut(L::N)) {
            l.store(l.mul_add(l.load(sums), l.load(by), l.load(out)), out);
        }
    }
}

/// Eight of a row from `first` on. Past the depth, 0 adds nothing.
#[inline(always)]
fn eight_of(x: &[f32], first: usize) -> [f32; 8] {
    let mut eight = [0.0; 8];
    let x = &x[first..x.len().min(first + 8)];
    eight[..x.len()].copy_from_slice(x);
    eight
}

/// Adds a row times a span to `sums`.
#[inline(always)]
fn add_products<L: Lanes>(
    l: L,
    x: &[f32],
    panel: &GroupPanel,
    span: Range<usize>,
    values: &impl Values<L>,
    sums: &mut [f32; PANEL],
) {
    for first in span.clone().step_by(8) {
        let x = eight_of(&x[..span.end], first);
        let (low, high) = (quads(panel, first / 4), quads(panel, first / 4 + 1));
        let (low, high): (&[u8], &[u8]) = (bytemuck::cast_slice(&low), bytemuck::cast_slice(&high));
        for at in (0..panel.width).step_by(L::N) {
            let codes = [&low[4 * at..4 * (at + L::N)], &high[4 * at..4 * (at + L::N)]];
            let values = values.eight(l, at, codes);
            let sum = &mut sums[at..at + L::N];
            let mut total = l.load(sum);
            for (value, x) in values.into_iter().zip(x) {
                total = l.mul_add(l.splat(x), value, total);
            }
            l.store(total, sum);
        }
    }
}

/// [`add_products`] of codes of 4 bits with one table, which stay as they are.
#[inline(always)]
fn add_from_registers<L: Lanes>(
    l: L,
    x: &[f32],
    panel: &GroupPanel,
    span: Range<usize>,
    table: &L::T,
    sums: &mut [f32; PANEL],
) {
    let row = 4 * panel.width;
    let codes = &panel.codes[row * (span.start / 8)..];
    let (fours, rest) = sums[..panel.width].split_at_mut(panel.width / (4 * L::N) * (4 * L::N));
    for (i, sums) in fours.chunks_exact_mut(4 * L::N).enumerate() {
        strip_from_registers::<L, 4>(l, x, codes, row, &span, table, 4 * i * L::N, sums);
    }
    let at = fours.len();
    for (i, sums) in rest.chunks_exact_mut(L::N).enumerate() {
        strip_from_registers::<L, 1>(l, x, codes, row, &span, table, at + i * L::N, sums);
    }
}

/// [`add_from_registers`] for `V` vectors of columns from `at` on.
#[inline(always)]
fn strip_from_registers<L: Lanes, const V: usize>(
    l: L,
    x: &[f32],
    codes: &[u8],
    row: usize,
    span: &Range<usize>,
    table: &L::T,
    at: usize,
    sums: &mut [f32],
) {
    let mut totals = [l.splat(0.0); V];
    for (first, bytes) in span.clone().step_by(8).zip(codes.chunks_exact(row)) {
        let x = eight_of(&x[..span.end], first);
        let bytes = &bytes[4 * at..4 * (at + V * L::N)];
        for v in 0..V {
            totals[v] = l.add_eight(table, &bytes[4 * v * L::N..4 * (v + 1) * L::N], &x, totals[v]);
        }
    }
    for v in 0..V {
        l.store(totals[v], &mut sums[v * L::N..(v + 1) * L::N]);
    }
}

/// The values that codes of a span stand for, less multipliers, `[strip][k][2 N]`; past the
/// panel, anything.
#[inline(always)]
fn unpack<L: Lanes>(l: L, panel: &GroupPanel, depth: Range<usize>, tables: &mut [f32], to: &mut [f32]) {
    with_values!(l, panel, depth.start, tables, |values| unpacked(l, panel, depth, to, values));
}

/// What codes stand for. Not closures: those would be compiled without the instruction set.
trait Values<L: Lanes> {
    /// Of N columns from `at` on, for each of eight codes: of the first four of all, a dword's
    /// bytes, and of the others.
    fn eight(&self, l: L, at: usize, codes: [&[u8]; 2]) -> [L::F; 8];
}

/// Numbers, less zero points.
struct Numbers {
    zeros: [f32; PANEL],
}

impl Numbers {
    #[inline(always)]
    fn new(panel: &GroupPanel, group: usize) -> Self {
        let mut zeros = [0.0; PANEL];
        panel.zeros_of(group, &mut zeros);
        Numbers { zeros }
    }
}

impl<L: Lanes> Values<L> for Numbers {
    #[inline(always)]
    fn eight(&self, l: L, at: usize, codes: [&[u8]; 2]) -> [L::F; 8] {
        let zeros = l.load(&self.zeros[at..at + L::N]);
        let mut values = [zeros; 8];
        for (i, value) in values.iter_mut().enumerate() {
            *value = l.sub(l.byte_of(codes[i / 4], 8 * (i as u32 % 4)), zeros);
        }
        values
    }
}

/// Entries of one table of all columns.
struct Picked<T> {
    table: T,
}

impl<L: Lanes> Values<L> for Picked<L::T> {
    #[inline(always)]
    fn eight(&self, l: L, _: usize, codes: [&[u8]; 2]) -> [L::F; 8] {
        let mut values = [l.splat(0.0); 8];
        for (i, value) in values.iter_mut().enumerate() {
            *value = l.pick(self.table, codes[i / 4], 8 * (i as u32 % 4));
        }
        values
    }
}

/// Where columns have their tables.
struct Entries<'a> {
    all: &'a [f32],
    tables: [u32; PANEL],
}

impl<'a> Entries<'a> {
    #[inline(always)]
    fn new(panel: &GroupPanel, depth: usize, codebook: Codebook<'a>, scratch: &'a mut [f32]) -> Self {
        let (mut tables, group) = ([0; PANEL], depth / panel.groups.group_size());
        let (soon, own) = (group + SOON, panel.groups.tables() == Some(Tables::Group));
        if own && soon < panel.groups.count(panel.k) {
            // A column's tables follow each other, but the columns' are far apart: no CPU sees them coming.
            panel.tables_of(soon, &mut tables);
            for &table in &tables[..panel.width] {
                match codebook {
                    Codebook::F32(all) => prefetch_line(all.as_ptr().wrapping_add(table as usize).cast()),
                    Codebook::Bf16(all) => prefetch_line(all.as_ptr().wrapping_add(table as usize).cast()),
                    Codebook::Int8(_) => (),
                }
            }
        }
        panel.tables_of(group, &mut tables);
        if let Codebook::F32(all) = codebook {
            return Entries { all, tables };
        }
        let size = 1 << panel.groups.nbits();
        // They are there from the first span, or a group's, on.
        let is_new = depth == 0 || own && depth.is_multiple_of(panel.groups.group_size());
        for (j, (table, to)) in tables[..panel.width].iter_mut().zip(scratch.chunks_exact_mut(size)).enumerate() {
            if is_new {
                codebook.read(*table as usize, to);
            }
            *table = (j * size) as u32;
        }
        if panel.groups.tables() == Some(Tables::Tensor) {
            tables.fill(0);
        }
        Entries { all: scratch, tables }
    }
}

/// Entries of tables of codes of so many bits.
struct LookedUp<'a, const NBITS: u32>(Entries<'a>);

impl<L: Lanes, const NBITS: u32> Values<L> for LookedUp<'_, NBITS> {
    #[inline(always)]
    fn eight(&self, l: L, at: usize, codes: [&[u8]; 2]) -> [L::F; 8] {
        l.look_up::<NBITS>(self.0.all, &self.0.tables[at..at + L::N], codes)
    }
}

/// [`unpack`], given what codes stand for.
#[inline(always)]
fn unpacked<L: Lanes>(l: L, panel: &GroupPanel, depth: Range<usize>, to: &mut [f32], values: &impl Values<L>) {
    let (width, len) = (panel.width, depth.len());
    // Spans begin at multiples of eight, as groups do.
    for first in depth.clone().step_by(8) {
        let (low, high) = (quads(panel, first / 4), quads(panel, first / 4 + 1));
        let (low, high): (&[u8], &[u8]) = (bytemuck::cast_slice(&low), bytemuck::cast_slice(&high));
        let from = first - depth.start;
        let count = (len - from).min(8);
        for at in (0..width).step_by(L::N) {
            let codes = [&low[4 * at..4 * (at + L::N)], &high[4 * at..4 * (at + L::N)]];
            let values = values.eight(l, at, codes);
            let strip = &mut to[at / (2 * L::N) * 2 * L::N * len..][..2 * L::N * len];
            let rows = strip[from * 2 * L::N..].chunks_exact_mut(2 * L::N).take(count);
            for (value, row) in values.into_iter().zip(rows) {
                l.store(value, &mut row[at % (2 * L::N)..][..L::N]);
            }
        }
    }
}

/// Four codes of each column, a dword's bytes.
#[inline(always)]
pub(super) fn quads(panel: &GroupPanel, step: usize) -> [u32; PANEL] {
    let (nbits, width) = (panel.groups.nbits(), panel.width);
    let mut quads = [0u32; PANEL];
    let codes = &panel.codes[4 * step / SUPER * 4 * width * nbits as usize..];
    for place in places(nbits, step % (SUPER / 4)) {
        let mask = u32::from(place.mask) * 0x0101_0101;
        let bytes = codes[place.vector * 4 * width..][..4 * width].as_chunks::<4>().0;
        for (quad, bytes) in quads.iter_mut().zip(bytes) {
            *quad |= (u32::from_le_bytes(*bytes) >> place.shift & mask) << place.up;
        }
    }
    quads
}

#[inline(always)]
fn column_sums<L: Lanes>(l: L, panel: &GroupPanel, depth: Range<usize>, scratch: &mut [f32], out: &mut [i32; PANEL]) {
    out.fill(0);
    for span in spans(depth, panel.groups.group_size()) {
        let w = &mut scratch[..span.len() * PANEL];
        unpack(l, panel, span.clone(), &mut [], w);
        let multipliers = multipliers(panel, span.start / panel.groups.group_size());
        // Below 32 · 255 · 255 < 2^24: floats hold them.
        for (strip, w) in (0..panel.width).step_by(2 * L::N).zip(w.chunks_exact(2 * L::N * span.len())) {
            for at in (0..2 * L::N).step_by(L::N) {
                let mut sum = l.splat(0.0);
                for w in w.chunks_exact(2 * L::N) {
                    sum = l.add(sum, l.load(&w[at..at + L::N]));
                }
                let (mut sums, at) = ([0.0; 16], strip + at..strip + at + L::N);
                l.store(l.mul(sum, l.load(&multipliers[at.clone()])), &mut sums[..L::N]);
                out[at].iter_mut().zip(sums).for_each(|(out, sum)| *out += sum as i32);
            }
        }
    }
}

#[inline(always)]
fn add<L: Lanes>(l: L, sums: &[i32], col_sum: &[i32; PANEL], row: RowScale, totals: &mut [f32]) {
    let scale = l.splat(row.scale);
    for at in (0..PANEL).step_by(L::N) {
        let at = at..at + L::N;
        let part = l.mul(l.centred(&sums[at.clone()], &col_sum[at.clone()], row.zero_point.into()), scale);
        let total = &mut totals[at];
        l.store(l.add(l.load(total), part), total);
    }
}
