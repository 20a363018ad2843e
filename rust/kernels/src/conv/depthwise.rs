//! Depthwise convolutions: a vector is 16 channels of a pixel, or of pixels
//! side by side where there are fewer channels.
//!
//! A band holds pairs of vectors: an *entry* is a vector beside the one that the
//! next tap down sees (or the next tap right, where the kernel has one row), 32
//! elements, so that one instruction multiplies two taps. Entries are made once
//! and read by every window that sees them. They hold codes as they are, the code of 0 where there is no image;
//! what the zero point adds to all sums is in the bias.

use super::filter::Aligned;
use super::{Shape, Weight};
use crate::Result;

/// Channels of a vector, and elements of an entry.
pub(super) const LANES: usize = 16;
pub(super) const ENTRY: usize = 2 * LANES;
/// Bytes that a band should take: rows that two bands share are made twice.
const BYTES: usize = 48 << 10;

/// Geometry and weights.
#[derive(Debug)]
pub(super) struct Depthwise {
    /// Pixels side by side in a vector.
    pub fold: usize,
    /// Output rows of a band, and vectors of an output row.
    pub rows: usize,
    pub width: usize,
    /// Rows of a band of which each `step`th is read, and entries of a row.
    pub height: usize,
    pub step: usize,
    pub columns: usize,
    /// Rows and columns from an entry's first vector to its second.
    pub pair: [usize; 2],
    /// Taps side by side, entries from one to the next, and from one output vector's to the next's.
    pub kernel_width: usize,
    pub tap_step: usize,
    pub entry_step: usize,
    /// Elements from an output row's first window to the next row's.
    row_step: usize,
    /// Where in a window each pair of taps is, ascending.
    pub taps: Vec<usize>,
    /// For each 16 channels and each pair of taps, two weights of each channel: channels 0 to 3 and 8
    /// to 11 come first, as `vpunpcklwd` and `vpunpckhwd` bring them together.
    pub weights: Aligned<i16>,
}

impl Depthwise {
    pub(super) fn new(shape: &Shape, out: [usize; 3], weight: Weight) -> Result<Depthwise> {
        let Shape { input: [_, _, channels], kernel: [kh, kw], stride, dilation, .. } = *shape;
        let fold = shape.fold(out);
        // A kernel of one row has its taps paired along the row.
        let along = kh == 1;
        let (tap_rows, kernel_width) = if along { (1, kw.div_ceil(2)) } else { (kh.div_ceil(2), kw) };
        let tap_step = if along { 2 * dilation[1] } else { dilation[1] };
        let columns = (out[1] - 1) * stride[1] + (kernel_width - 1) * tap_step + 1;
        let pitch = columns * ENTRY;
        let height = |rows: usize| (rows - 1) * stride[0] + 2 * (tap_rows - 1) * dilation[0] + 1;
        let step = if tap_rows == 1 { stride[0] } else { gcd(stride[0], 2 * dilation[0]) };
        let size = |rows: usize| height(rows).div_ceil(step) * pitch * size_of::<i16>();
        let rows = (1..=out[0]).take_while(|&rows| size(rows) <= BYTES).last().unwrap_or(1);
        let rows = out[0].div_ceil(out[0].div_ceil(rows));
        let width = out[1] / fold;
        // Only the rows that are read take place.
        let at = |row: usize, column: usize| row / step * pitch + column * ENTRY;
        let all_taps = (0..tap_rows).flat_map(|row| (0..kernel_width).map(move |column| (row, column)));
        let taps: Vec<_> = all_taps.clone().map(|(i, j)| at(2 * i * dilation[0], j * tap_step)).collect();
        let mut weights = Aligned::new((fold * channels).div_ceil(LANES) * taps.len() * ENTRY)?;
        for (tap, (i, j)) in all_taps.enumerate() {
            for (lane, side) in (0..fold * channels).flat_map(|lane| [(lane, 0), (lane, 1)]) {
                let (row, column) = if along { (0, 2 * j + side) } else { (2 * i + side, j) };
                if row >= kh || column >= kw {
                    continue;
                }
                let value = weight.kind.value(weight.codes[(lane % channels * kh + row) * kw + column]) as i16;
                let (half, within) = (lane % 16 / 4 % 2, lane % 16 / 8 * 4 + lane % 4);
                weights.set((lane / LANES * taps.len() + tap) * ENTRY + half * LANES + 2 * within + side, value);
            }
        }
        Ok(Depthwise {
            fold,
            rows,
            width,
            height: height(rows),
            step,
            columns,
            pair: if along { [0, dilation[1]] } else { [dilation[0], 0] },
            kernel_width,
            tap_step,
            entry_step: fold * stride[1],
            row_step: at(stride[0], 0),
            taps,
            weights,
        })
    }

    /// Where an output vector's window begins, in elements.
    pub(super) fn start(&self, row: usize, column: usize) -> usize {
        row * self.row_step + column * self.entry_step * ENTRY
    }

    /// Elements of scratch memory.
    pub(super) fn len(&self) -> usize {
        self.height.div_ceil(self.step) * self.columns * ENTRY
    }

    pub(super) fn bytes(&self) -> usize {
        self.weights.size() + size_of_val(&self.taps[..])
    }
}

impl Shape {
    /// One filter for each channel.
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.input[2] && self.filters == self.groups
    }

    /// Pixels that a vector holds: as many as whole pixels fill it, where the windows of such
    /// neighbours are neighbours too.
    fn fold(&self, out: [usize; 3]) -> usize {
        let fold = LANES / self.input[2].min(LANES);
        let fills = fold * self.input[2] == LANES;
        if fills && self.stride[1] == 1 && out[1].is_multiple_of(fold) { fold } else { 1 }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
