//! Winograd's tiles: transformed 16 channels at a time, multiplied as any other
//! window is, point by point, and transformed back 8 filters at a time.

use std::arch::x86_64::*;

use super::super::winograd::{MOST, POINTS, Winograd};
use super::super::{Conv2d, Out};
use super::finish::finish;
use super::{MR, ROW, run_of_tile, store_tile, widen};

/// Sums of a block's tiles at each point.
type Points = [i32; POINTS * MOST * ROW];
/// Sums of a block's outputs.
type Sums = [i32; 4 * MOST * ROW];

/// A convolution of 3×3.
pub(in super::super) fn run(conv: &Conv2d, winograd: &Winograd, x: &[u8], mut out: Out, scratch: &mut [i16]) {
    assert!(conv.isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { avx2(conv, winograd, x, &mut out, scratch) };

    #[target_feature(enable = "avx2")]
    fn avx2(conv: &Conv2d, winograd: &Winograd, x: &[u8], out: &mut Out, scratch: &mut [i16]) {
        let mut points: Points = [0; _];
        let mut sums: Sums = [0; _];
        let (tiles, band) = scratch.split_at_mut(winograd.len());
        let [all_rows, all_columns] = winograd.tiles;
        for row in (0..all_rows).step_by(winograd.block[0]) {
            let rows = winograd.block[0].min(all_rows - row);
            let band = winograd.band.fill(&conv.shape, 2 * row, 2 * rows, x, band, 0, |x, to| widen(conv.input, x, to));
            for column in (0..all_columns).step_by(winograd.block[1]) {
                let columns = winograd.block[1].min(all_columns - column);
                let block = Block { winograd, row, column, rows, columns, channels: conv.shape.input[2] };
                block.transform(band, tiles);
                block.multiply(conv, tiles, &mut points, &mut sums, out);
            }
        }
    }
}

/// Some rows and columns of tiles.
struct Block<'a> {
    winograd: &'a Winograd,
    row: usize,
    column: usize,
    rows: usize,
    columns: usize,
    channels: usize,
}

impl Block<'_> {
    /// `Bᵀ d B` of each tile, point after point.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn transform(&self, band: &[i16], tiles: &mut [i16]) {
        let Winograd { pitch, band: of_band, .. } = self.winograd;
        let (row_step, step) = (of_band.pitch, of_band.channels);
        // From a point of a tile to the next point of the same tile.
        let point = self.winograd.point();
        // The last tile's last row and pixel, and vectors of its channels.
        let last = (2 * self.rows + 1) * row_step + (2 * (self.column + self.columns) + 1) * step;
        assert!(last + self.channels.next_multiple_of(16) <= band.len() && POINTS * point <= tiles.len());
        let columns = [0, step, 2 * step, 3 * step];
        for tile in 0..self.rows * self.columns {
            let (row, column) = (tile / self.columns, self.column + tile % self.columns);
            let (from, to) = (2 * row * row_step + 2 * column * step, tile * pitch);
            for channel in (0..self.channels).step_by(16) {
                // SAFETY: the assertion above: all tiles' rows and pixels are in the band, and each has
                // its place for all of its channels. Pointers that step further are not followed.
                unsafe {
                    let mut row = band.as_ptr().add(from + channel);
                    let mut d = [[_mm256_setzero_si256(); 4]; 4];
                    for i in 0..4 {
                        for j in 0..4 {
                            d[i][j] = _mm256_loadu_si256(row.add(columns[j]).cast());
                        }
                        row = row.wrapping_add(row_step);
                    }
                    let mut down = [[_mm256_setzero_si256(); 4]; 4];
                    for j in 0..4 {
                        let column = fourth([d[0][j], d[1][j], d[2][j], d[3][j]]);
                        for i in 0..4 {
                            down[i][j] = column[i];
                        }
                    }
                    let mut to = tiles.as_mut_ptr().add(to + channel);
                    for i in 0..4 {
                        for across in fourth(down[i]) {
                            _mm256_storeu_si256(to.cast(), across);
                            to = to.wrapping_add(point);
                        }
                    }
                }
            }
        }
    }

    /// Each panel's outputs.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn multiply(&self, conv: &Conv2d, tiles: &[i16], points: &mut Points, sums: &mut Sums, out: &mut Out) {
        let Winograd { pitch, panels, weights, .. } = self.winograd;
        let [height, width, filters] = conv.out;
        let (point, count) = (self.winograd.point(), self.rows * self.columns);
        // Of odd sizes, the last tiles' second row and column are outside.
        let outs = [(2 * self.rows).min(height - 2 * self.row), (2 * self.columns).min(width - 2 * self.column)];
        let pairs = self.channels.div_ceil(2);
        assert!(2 * pairs <= *pitch && count * pitch <= point && POINTS * point <= tiles.len());
        assert!(count <= MOST && outs[0] * outs[1] <= 4 * MOST);
        // What lies behind the last tile is that tile again, and not looked at.
        let starts: [[usize; MR]; MOST / MR] =
            std::array::from_fn(|tile| std::array::from_fn(|i| (tile * MR + i).min(count - 1) * pitch));
        for panel in panels {
            let weights = weights.at(panel.at, POINTS * pairs * 32);
            let bias = &conv.finish.bias[panel.filter..][..ROW];
            // SAFETY: each tile's elements at each point are in `tiles`, so many weights are, and a row for
            // each tile at each point, to a multiple of six. Pointers that step further are not followed.
            unsafe {
                let (mut tiles, mut weights) = (tiles.as_ptr(), weights.as_ptr());
                let mut to = points.as_mut_ptr();
                for _ in 0..POINTS {
                    let mut next = weights;
                    let mut rows = to;
                    for starts in &starts[..count.div_ceil(MR)] {
                        let base = starts.map(|start| tiles.wrapping_add(start));
                        let mut acc = [[_mm256_setzero_si256(); 2]; MR];
                        next = run_of_tile(&mut acc, &base, 0, pairs, weights);
                        store_tile(&acc, rows);
                        rows = rows.wrapping_add(MR * ROW);
                    }
                    weights = next;
                    (tiles, to) = (tiles.wrapping_add(point), to.wrapping_add(MOST * ROW));
                }
            }
            let each = (0..self.rows).flat_map(|row| (0..self.columns).map(move |column| (2 * row, 2 * column)));
            for (tile, (row, column)) in each.enumerate() {
                let below = (row + 1 < outs[0]).then_some(outs[1] * ROW);
                let right = (column + 1 < outs[1]).then_some(ROW);
                // SAFETY: `points` has 16 sums of each tile at each point, `bias` 16 numbers, and `sums` a
                // row for each of the outputs that there are.
                unsafe {
                    let to = sums.as_mut_ptr().add((row * outs[1] + column) * ROW);
                    for at in [0, 8] {
                        let four = back(points.as_ptr().add(tile * ROW + at), bias.as_ptr().add(at));
                        let to = to.add(at);
                        _mm256_storeu_si256(to.cast(), four[0]);
                        if let Some(right) = right {
                            _mm256_storeu_si256(to.add(right).cast(), four[1]);
                        }
                        if let Some(below) = below {
                            _mm256_storeu_si256(to.add(below).cast(), four[2]);
                        }
                        if let (Some(right), Some(below)) = (right, below) {
                            _mm256_storeu_si256(to.add(right + below).cast(), four[3]);
                        }
                    }
                }
            }
            // Rows of the image, together if the block has all of each.
            let (rows, columns) = if outs[1] == width { (1, outs[0] * width) } else { (outs[0], outs[1]) };
            for (i, sums) in sums.chunks(columns * ROW).take(rows).enumerate() {
                let pixel = (2 * self.row + i) * width + 2 * self.column;
                finish(&conv.finish, filters, sums, columns, pixel, panel.filter, panel.count, out);
            }
        }
    }
}

/// `Bᵀ d` of four vectors.
#[target_feature(enable = "avx2")]
#[inline]
fn fourth([d0, d1, d2, d3]: [__m256i; 4]) -> [__m256i; 4] {
    [_mm256_sub_epi16(d0, d2), _mm256_add_epi16(d1, d2), _mm256_sub_epi16(d2, d1), _mm256_sub_epi16(d1, d3)]
}

/// `Aᵀ m A` of a tile and eight filters, a fourth of it, from `bias` on.
///
/// # Safety
/// There are eight sums at each point, and eight numbers of the bias.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn back(points: *const i32, bias: *const i32) -> [__m256i; 4] {
    // SAFETY: the caller's promises.
    let (bias, m) = unsafe {
        let mut m = [_mm256_setzero_si256(); POINTS];
        for point in 0..POINTS {
            m[point] = _mm256_loadu_si256(points.add(point * MOST * ROW).cast());
        }
        (_mm256_loadu_si256(bias.cast()), m)
    };
    let mut down = [[bias; 4]; 2];
    for j in 0..4 {
        let (m0, m1, m2, m3) = (m[j], m[4 + j], m[8 + j], m[12 + j]);
        down[0][j] = _mm256_add_epi32(m0, _mm256_add_epi32(m1, m2));
        down[1][j] = _mm256_sub_epi32(m1, _mm256_add_epi32(m2, m3));
    }
    let mut out = [bias; 4];
    for i in 0..2 {
        let [t0, t1, t2, t3] = down[i];
        let (left, right) =
            (_mm256_add_epi32(t0, _mm256_add_epi32(t1, t2)), _mm256_sub_epi32(t1, _mm256_add_epi32(t2, t3)));
        out[2 * i] = _mm256_add_epi32(_mm256_srai_epi32(left, 2), bias);
        out[2 * i + 1] = _mm256_add_epi32(_mm256_srai_epi32(right, 2), bias);
    }
    out
}
