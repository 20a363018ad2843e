//! Depthwise convolutions: a vector is 16 channels of a pixel, or of pixels
//! side by side where there are fewer channels; of bytes it is 64 channels, or 32
//! or 16 of two or four pixels far apart.
//!
//! A band holds *entries*: a vector beside those that the next taps down see (or the next taps right, where
//! the kernel has one row), two of 16-bit elements or four of bytes, so that one instruction multiplies them
//! all. Entries are made once and read by every window that sees them. Where windows are one row apart and an
//! entry has a tap to spare, two rows of them see the same entries, each with weights of its own *phase*: an
//! entry's rows then begin at every other one. Entries hold codes with their zero point (as bytes, signed ones
//! raised by 128), the code of 0 where there is no image; what the zero point adds to all sums is in the bias.

use super::filter::Aligned;
use super::quads::VECTOR;
use super::{Shape, Weight};
use crate::Result;

/// How entries are laid out for the instructions that multiply them.
pub(super) trait Element: Copy + Default {
    /// Channels of a vector.
    const LANES: usize;
    /// Taps of an entry.
    const TAPS: usize;
    /// Elements of an entry.
    const ENTRY: usize = Self::LANES * Self::TAPS;
    /// Output vectors of a row that are few: two rows of them share no entries.
    const FEW: usize;
    /// Whether entries of kernels three taps wide are used as they are made, and no band is.
    const DIRECT: bool;
    /// Bytes that a band should take: rows that two bands share are made twice.
    const BAND: usize;
    /// Where in an entry the weight of a lane and a tap is.
    fn place(lane: usize, tap: usize) -> usize;
    /// Segments of an output's row that a vector sees a pixel of, where it has so many channels left.
    fn segments(channels: usize) -> usize;
    /// A weight without its zero point, None if it does not fit.
    fn fit(value: i32) -> Option<Self>;
}

/// For `vpmaddwd`. Channels 0 to 3 and 8 to 11 come first, as `vpunpcklwd` and `vpunpckhwd` bring two
/// vectors together.
impl Element for i16 {
    const LANES: usize = 16;
    const TAPS: usize = 2;
    const FEW: usize = 8;
    const DIRECT: bool = false;
    const BAND: usize = 48 << 10;

    fn place(lane: usize, tap: usize) -> usize {
        let (half, within) = (lane / 4 % 2, lane / 8 * 4 + lane % 4);
        half * 16 + 2 * within + tap
    }

    fn segments(_: usize) -> usize {
        1
    }

    fn fit(value: i32) -> Option<i16> {
        i16::try_from(value).ok()
    }
}

/// For `vpdpbusd`. Four channels of each 16 come first, then the next four, as unpacking brings four vectors
/// together.
impl Element for i8 {
    const LANES: usize = 64;
    const TAPS: usize = 4;
    const FEW: usize = 0;
    const DIRECT: bool = true;
    const BAND: usize = 16 << 10;

    fn place(lane: usize, tap: usize) -> usize {
        lane % 16 / 4 * VECTOR + (lane / 16 * 4 + lane % 4) * 4 + tap
    }

    /// Pieces of 64 channels, of 32 or of 16.
    fn segments(channels: usize) -> usize {
        match channels {
            0..=16 => 4,
            17..=32 => 2,
            _ => 1,
        }
    }

    fn fit(value: i32) -> Option<i8> {
        i8::try_from(value).ok()
    }
}

/// Geometry and weights.
#[derive(Debug)]
pub(super) struct Depthwise<W> {
    /// Pixels side by side in a vector.
    pub fold: usize,
    /// Output rows of a band, and vectors of an output row, of the first channels.
    pub rows: usize,
    pub width: usize,
    /// Output rows that see the same entries.
    pub phases: usize,
    /// Whether entries are used as they are made: with the taps of [`direct_tap`], in no band.
    pub direct: bool,
    /// Elements of a row that stands for those around the image, where entries are used as they are made.
    border: usize,
    /// Rows between the entries of a band's rows, and entries of a row.
    pub step: usize,
    pub columns: usize,
    /// Rows and columns from an entry's vector to its next.
    pub apart: [usize; 2],
    /// Taps side by side, entries from one to the next, and from one output vector's to the next's.
    pub kernel_width: usize,
    pub tap_step: usize,
    pub entry_step: usize,
    /// Rows of the image, and elements, from an output row to the next that sees other entries.
    between: usize,
    row_step: usize,
    /// Rows of the image from the first of a window to the last that an entry begins at.
    reach: usize,
    /// Where in a window each entry's taps are, ascending.
    pub taps: Vec<usize>,
    /// For each vector of channels, each phase and each tap, the weights of an entry.
    weights: Aligned<W>,
}

impl<W: Element> Depthwise<W> {
    /// None where a weight does not fit without its zero point.
    pub(super) fn new(shape: &Shape, out: [usize; 3], weight: Weight, fold: usize) -> Result<Option<Depthwise<W>>> {
        let Shape { input: [_, image_width, channels], kernel: [kh, kw], stride, dilation, padding, .. } = *shape;
        let lanes = fold * channels;
        let width = (out[1] / fold).div_ceil(W::segments(lanes));
        // A kernel of one row has its taps together along the row.
        let along = kh == 1;
        let (tap_rows, kernel_width) = if along { (1, kw.div_ceil(W::TAPS)) } else { (kh.div_ceil(W::TAPS), kw) };
        let small = (2..=3).contains(&kh) && kw == 3 && dilation[1] == 1 && stride[1] <= 2;
        let direct = W::DIRECT && small;
        let shared = !direct && !along && stride[0] == 1 && dilation[0] == 1 && width >= W::FEW && out[0] > 1;
        let phases = if shared && (kh + 1).div_ceil(W::TAPS) == tap_rows { 2 } else { 1 };
        let tap_step = if along { W::TAPS * dilation[1] } else { dilation[1] };
        let (between, reach) = (phases * stride[0], (tap_rows - 1) * W::TAPS * dilation[0]);
        let step = if tap_rows == 1 { between } else { gcd(between, W::TAPS * dilation[0]) };
        let columns = (width - 1) * fold * stride[1] + (kernel_width - 1) * tap_step + 1;
        let pitch = columns * W::ENTRY;
        // Only the rows that are read take place.
        let at = |row: usize, column: usize| row / step * pitch + column * W::ENTRY;
        let all_taps = (0..tap_rows).flat_map(|row| (0..kernel_width).map(move |column| (row, column)));
        let taps: Vec<_> = all_taps.clone().map(|(i, j)| at(W::TAPS * i * dilation[0], j * tap_step)).collect();
        let mut weights = Aligned::new(lanes.div_ceil(W::LANES) * phases * taps.len() * W::ENTRY)?;
        for phase in 0..phases {
            for (tap, (i, j)) in all_taps.clone().enumerate() {
                for (lane, side) in (0..lanes).flat_map(|lane| (0..W::TAPS).map(move |side| (lane, side))) {
                    let [row, column] = match (along, direct) {
                        (true, _) => [0, W::TAPS * j + side],
                        (_, true) => direct_tap(stride[1], j, side),
                        _ => [W::TAPS * i + side, j],
                    };
                    let Some(row) = row.checked_sub(phase).filter(|&row| row < kh && column < kw) else { continue };
                    let value = weight.kind.value(weight.codes[(lane % channels * kh + row) * kw + column]);
                    let Some(value) = W::fit(value) else { return Ok(None) };
                    let (vector, first) = (lane / W::LANES, lane / W::LANES * W::LANES);
                    let entry = ((vector * phases + phase) * taps.len() + tap) * W::ENTRY;
                    let segments = W::segments(lanes - first);
                    for segment in 0..segments {
                        let lane = segment * (W::LANES / segments) + lane - first;
                        weights.set(entry + W::place(lane, side), value);
                    }
                }
            }
        }
        let mut made = Depthwise {
            fold,
            rows: phases,
            width,
            phases,
            direct,
            border: if kh == 3 && padding[0] == [0; 2] { 0 } else { image_width * channels },
            step,
            columns,
            apart: if along { [0, dilation[1]] } else { [dilation[0], 0] },
            kernel_width,
            tap_step,
            entry_step: fold * stride[1],
            between,
            row_step: at(between, 0),
            reach,
            taps,
            weights,
        };
        let size = |rows: usize| made.entry_rows(rows) * pitch * size_of::<W>();
        let rows = (1..=out[0]).take_while(|&rows| size(rows) <= W::BAND).last().unwrap_or(1);
        made.rows = out[0].div_ceil(out[0].div_ceil(rows)).next_multiple_of(phases);
        Ok(Some(made))
    }

    /// Rows of entries that so many output rows see.
    pub(super) fn entry_rows(&self, rows: usize) -> usize {
        ((rows - 1) / self.phases * self.between + self.reach) / self.step + 1
    }

    /// Where an output vector's window begins, in elements; `row` is one of the band's.
    pub(super) fn start(&self, row: usize, column: usize) -> usize {
        row / self.phases * self.row_step + column * self.entry_step * W::ENTRY
    }

    /// The weights of the vector of channels that begins at `lane`, for an output row of the band.
    pub(super) fn weights(&self, lane: usize, row: usize) -> &[W] {
        let len = self.taps.len() * W::ENTRY;
        self.weights.at((lane / W::LANES * self.phases + row % self.phases) * len, len)
    }

    /// Elements of scratch memory: a band's, or a border's.
    pub(super) fn len(&self) -> usize {
        if self.direct { self.border } else { self.entry_rows(self.rows) * self.columns * W::ENTRY }
    }

    pub(super) fn bytes(&self) -> usize {
        self.weights.size() + size_of_val(&self.taps[..])
    }
}

/// Where entries are used as they are made: one is a column of a window. Where windows are two columns apart, one
/// is two columns of two rows, so that neighbours share it, and the third is of the third row.
fn direct_tap(step: usize, entry: usize, side: usize) -> [usize; 2] {
    match (step, entry) {
        (1, _) => [side, entry],
        (_, 2) => [2, side],
        _ => [side / 2, 2 * entry + side % 2],
    }
}

impl Shape {
    /// One filter for each channel.
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.input[2] && self.filters == self.groups
    }

    /// Pixels that a vector of 16 lanes holds: as many as whole pixels fill it, where the windows of such
    /// neighbours are neighbours too.
    pub(super) fn fold(&self, out: [usize; 3]) -> usize {
        let fold = 16 / self.input[2].min(16);
        let fills = fold * self.input[2] == 16;
        if fills && self.stride[1] == 1 && out[1].is_multiple_of(fold) { fold } else { 1 }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
