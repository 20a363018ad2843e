//! Weights in groups times rows that are not rounded to 8 bits a row: floats as they
//! are, and codes with a scale for every [`SUPER`] of them.

use std::ops::Range;

use super::groups::{GroupPanel, SUPER, places};
use super::tiled::PANEL;
use crate::affine::RowScale;
use crate::lanes::{Lanes, on_isa};

/// Depth of the columns that are unpacked at a time: 16 KiB of floats.
const DEPTH: usize = 64;
/// Rows of a tile: with two vectors of columns, 12 sums.
const MR: usize = 6;
/// Floats of scratch.
pub(super) const SCRATCH: usize = DEPTH * PANEL;

on_isa! {
    /// `out[r][j] = Σ_k x[r][k] · multiplier · (code[k][j] - zero point)`: sums over 64 of
    /// the depth, each term by a fused multiply-add, are added in order.
    pub(super) fn float_sums(x: &[f32], panel: &GroupPanel, scratch: &mut [f32], out: &mut [&mut [f32]]) = sums;
    /// Of each column the sum of `multiplier · (code - zero point)` over one superstep.
    pub(super) fn span_column_sums(panel: &GroupPanel, depth: Range<usize>, scratch: &mut [f32], out: &mut [i32; PANEL])
        = column_sums;
    /// `totals += (sums - zero point · column sums) · scale`.
    pub(super) fn add_span(sums: &[i32], col_sum: &[i32; PANEL], row: RowScale, totals: &mut [f32]) = add;
}

#[inline(always)]
fn sums<L: Lanes>(l: L, x: &[f32], panel: &GroupPanel, scratch: &mut [f32], out: &mut [&mut [f32]]) {
    out.iter_mut().for_each(|out| out.fill(0.0));
    for from in (0..panel.k).step_by(DEPTH) {
        let depth = from..panel.k.min(from + DEPTH);
        let w = &mut scratch[..depth.len() * PANEL];
        unpack(l, panel, depth.clone(), w);
        let (sixes, rest) = out.as_chunks_mut::<MR>();
        let (twos, ones) = rest.as_chunks_mut::<2>();
        let two = MR * sixes.len();
        let one = two + 2 * twos.len();
        sixes.iter_mut().enumerate().for_each(|(i, out)| tile(l, x, panel, depth.clone(), MR * i, w, out));
        twos.iter_mut().enumerate().for_each(|(i, out)| tile(l, x, panel, depth.clone(), two + 2 * i, w, out));
        for (i, out) in ones.as_chunks_mut::<1>().0.iter_mut().enumerate() {
            tile(l, x, panel, depth.clone(), one + i, w, out);
        }
    }
}

/// `R` rows from `first` on times some of the depth, added to `out`.
#[inline(always)]
fn tile<L: Lanes, const R: usize>(
    l: L,
    x: &[f32],
    panel: &GroupPanel,
    depth: Range<usize>,
    first: usize,
    w: &[f32],
    out: &mut [&mut [f32]; R],
) {
    let mut x = x[first * panel.k..(first + R) * panel.k].chunks_exact(panel.k);
    let x: [&[f32]; R] = [(); R].map(|()| &x.next().unwrap_or_default()[depth.clone()]);
    for at in (0..panel.width).step_by(2 * L::N) {
        let halves = [at..at + L::N, at + L::N..at + 2 * L::N];
        let mut sums = [[l.splat(0.0); 2]; R];
        for (k, w) in w.chunks_exact(PANEL).enumerate() {
            let w = [l.load(&w[halves[0].clone()]), l.load(&w[halves[1].clone()])];
            for r in 0..R {
                let x = l.splat(x[r][k]);
                sums[r] = [l.mul_add(x, w[0], sums[r][0]), l.mul_add(x, w[1], sums[r][1])];
            }
        }
        for r in 0..R {
            for half in 0..2 {
                let out = &mut out[r][halves[half].clone()];
                l.store(l.add(l.load(out), sums[r][half]), out);
            }
        }
    }
}

/// The integers that codes stand for, as floats, which hold them: `[k][PANEL]`, zeros past
/// the panel.
#[inline(always)]
fn unpack<L: Lanes>(l: L, panel: &GroupPanel, depth: Range<usize>, to: &mut [f32]) {
    let (groups, width) = (panel.groups, panel.width);
    let (mut multipliers, mut zeros, mut group) = ([0f32; PANEL], [0f32; PANEL], usize::MAX);
    for step in depth.start / 4..depth.end.div_ceil(4) {
        // The four codes of a column are a dword's bytes.
        let mut quads = [0u32; PANEL];
        let codes = &panel.codes[4 * step / SUPER * 4 * width * groups.nbits() as usize..];
        for place in places(groups.nbits(), step % (SUPER / 4)) {
            let mask = u32::from(place.mask) * 0x0101_0101;
            let bytes = codes[place.vector * 4 * width..][..4 * width].as_chunks::<4>().0;
            for (quad, bytes) in quads.iter_mut().zip(bytes) {
                *quad |= (u32::from_le_bytes(*bytes) >> place.shift & mask) << place.up;
            }
        }
        if 4 * step / groups.group_size() != group {
            group = 4 * step / groups.group_size();
            panel.zeros_of(group, &mut zeros);
            for (to, &m) in multipliers.iter_mut().zip(&panel.multipliers[group * width..][..width]) {
                *to = m.into();
            }
        }
        let to = to[(4 * step - depth.start) * PANEL..].chunks_exact_mut(PANEL);
        for (i, to) in to.take(4).enumerate() {
            for at in (0..PANEL).step_by(L::N) {
                let at = at..at + L::N;
                let centred = l.sub(l.byte_of(&quads[at.clone()], i as u32), l.load(&zeros[at.clone()]));
                l.store(l.mul(centred, l.load(&multipliers[at.clone()])), &mut to[at]);
            }
        }
    }
}

#[inline(always)]
fn column_sums<L: Lanes>(l: L, panel: &GroupPanel, depth: Range<usize>, scratch: &mut [f32], out: &mut [i32; PANEL]) {
    let w = &mut scratch[..depth.len() * PANEL];
    unpack(l, panel, depth, w);
    // Below 32 · 255 · 255 < 2^24: floats hold them.
    for at in (0..PANEL).step_by(L::N) {
        let mut sum = l.splat(0.0);
        for w in w.chunks_exact(PANEL) {
            sum = l.add(sum, l.load(&w[at..at + L::N]));
        }
        let mut sums = [0.0; 16];
        l.store(sum, &mut sums[..L::N]);
        out[at..at + L::N].iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as i32);
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
