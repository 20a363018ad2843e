//! Rows of an image between their borders, widened to 16 bits or as bytes, and
//! where in them the windows lie.

use super::{Kind, Shape};
use crate::Result;
use crate::error::{bail, try_zeroed};

/// Fewer pixels than this do not repay reading the weights.
const PIXELS: usize = 24;
/// Elements behind a band that products may read; their weights are 0.
const BEHIND: usize = 16;

/// The geometry of bands, the same for each but the last, which may be shorter.
#[derive(Debug)]
pub(super) struct Band {
    /// Output rows of a band.
    pub rows: usize,
    /// Elements before the first row: what of the image is in a row begins on a cache line.
    lead: usize,
    /// Elements from a row of the band to the next, and from a pixel to the next.
    pub pitch: usize,
    pub channels: usize,
    /// Where each output pixel's window begins.
    pub starts: Vec<u32>,
    /// Where in a window each piece begins, and how many elements it has: a
    /// kernel row, or a tap where taps do not lie side by side.
    pub runs: Vec<(usize, usize)>,
    /// Elements that a window reaches over, in whole steps, and how often some are multiplied together.
    pub reach: usize,
    pub steps: usize,
    /// As in [`Shape`], but a 1×1 kernel's band has only the pixels it sees.
    stride: [usize; 2],
    pick: [usize; 2],
    input_rows: usize,
}

impl Band {
    /// Of as many rows as fit `most` elements; products take so many of a run's elements together.
    pub(super) fn new(shape: &Shape, out: [usize; 3], together: usize, most: usize) -> Result<Band> {
        let one = Band::of_rows(shape, out, 1, together)?;
        Band::of_rows(shape, out, one.fitting(out, most), together)
    }

    /// Of so many output rows.
    pub(super) fn of_rows(shape: &Shape, out: [usize; 3], rows: usize, together: usize) -> Result<Band> {
        let (kernel, padding) = (shape.kernel, shape.padding);
        let single = kernel == [1, 1] && padding == [[0; 2]; 2];
        let (stride, pick) = if single { ([1, 1], shape.stride) } else { (shape.stride, [1, 1]) };
        let reach = (kernel[1] - 1) * shape.dilation[1] + 1;
        let pitch = ((out[1] - 1) * stride[1] + reach) * shape.input[2];
        // Elements of a cache line, which rows worth it are a number of.
        let line = 16 * together;
        let lead = (padding[1][0] * shape.input[2]).wrapping_neg() % line;
        let (pitch, lead) = if pitch < 4 * line { (pitch, 0) } else { (pitch.next_multiple_of(line), lead) };
        Ok(Band { lead, ..Band::of_pitch(shape, out, rows, together, pitch, stride, pick)? })
    }

    /// The image's rows themselves: nothing pads them, and runs are whole steps.
    pub(super) fn in_image(shape: &Shape, out: [usize; 3], together: usize, most: usize) -> Result<Band> {
        let of =
            |rows| Band::of_pitch(shape, out, rows, together, shape.input[1] * shape.input[2], shape.stride, [1, 1]);
        of(of(1)?.fitting(out, most))
    }

    /// How many output rows a band of at most so many elements has.
    fn fitting(&self, out: [usize; 3], most: usize) -> usize {
        let size = |rows: usize| (self.input_rows + (rows - 1) * self.stride[0]) * self.pitch;
        let fitting = (1..=out[0]).take_while(|&rows| size(rows) <= most).last().unwrap_or(1);
        // Starts are 32-bit: those of one row are, by `Shape::output`.
        let most = ((u32::MAX as usize / self.pitch).saturating_sub(1) / self.stride[0]).max(1);
        let rows = fitting.max(PIXELS.div_ceil(out[1])).min(out[0]).min(most);
        out[0].div_ceil(out[0].div_ceil(rows))
    }

    fn of_pitch(
        shape: &Shape,
        out: [usize; 3],
        rows: usize,
        together: usize,
        pitch: usize,
        stride: [usize; 2],
        pick: [usize; 2],
    ) -> Result<Band> {
        let Shape { input: [_, _, channels], kernel: [kh, kw], dilation, .. } = *shape;
        let height = |rows: usize| (rows - 1) * stride[0] + (kh - 1) * dilation[0] + 1;
        // They ascend then.
        if u32::try_from((rows - 1) * stride[0] * pitch + (out[1] - 1) * stride[1] * channels).is_err() {
            bail!("input: expected rows of fewer than 2^32 codes at a time, got {shape:?}");
        }
        let mut starts = try_zeroed(rows * out[1])?;
        for (pixel, start) in starts.iter_mut().enumerate() {
            let (row, column) = (pixel / out[1], pixel % out[1]);
            *start = (row * stride[0] * pitch + column * stride[1] * channels) as u32;
        }
        let mut runs = Vec::new();
        let depth = shape.depth();
        let side_by_side = depth == channels && dilation[1] == 1;
        for row in (0..kh).map(|i| i * dilation[0] * pitch) {
            if side_by_side {
                runs.push((row, kw * depth));
            } else {
                runs.extend((0..kw).map(|j| (row + j * dilation[1] * channels, depth)));
            }
        }
        let reach = runs.iter().map(|&(at, len)| at + len.next_multiple_of(together)).max().unwrap_or(0);
        let steps = runs.iter().map(|&(_, len)| len.div_ceil(together)).sum();
        Ok(Band { rows, lead: 0, pitch, channels, starts, runs, reach, steps, stride, pick, input_rows: height(rows) })
    }

    /// Elements of scratch memory.
    pub(super) fn len(&self) -> usize {
        self.lead + self.input_rows * self.pitch + BEHIND
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.starts[..])
    }

    /// Where in the image what output rows from `first` on see begins, if the band is of its rows.
    pub(super) fn offset(&self, first: usize) -> usize {
        first * self.stride[0] * self.pitch
    }

    /// Brings what output rows from `first` on see, and gives what windows then begin in. `bring` writes elements
    /// of codes, and borders are of the one that stands for 0.
    #[inline(always)]
    pub(super) fn fill<'a, T: Copy>(
        &self,
        shape: &Shape,
        first: usize,
        rows: usize,
        x: &[u8],
        scratch: &'a mut [T],
        zero: T,
        bring: impl Fn(&[u8], &mut [T]),
    ) -> &'a [T] {
        let Shape { input: [_, width, channels], padding, .. } = *shape;
        let pixels = self.pitch / self.channels;
        let last = self.input_rows - (self.rows - rows) * self.stride[0];
        let left = padding[1][0].min(pixels);
        let inside = width.div_ceil(self.pick[1]).min(pixels - left) * self.channels;
        let before = left * self.channels;
        let scratch = &mut scratch[self.lead..];
        let (border, rest) = scratch[..last * self.pitch].split_at_mut(before);
        clear(border, zero);
        // Where the next row is in the image; above it, this wraps.
        let row = width * channels;
        let mut from = (first * self.stride[0] * self.pick[0]).wrapping_sub(padding[0][0]).wrapping_mul(row);
        // What is behind a row and before the next lies side by side.
        for to in rest.chunks_mut(self.pitch) {
            let (to, border) = to.split_at_mut(inside);
            clear(border, zero);
            match x.get(from..from.wrapping_add(row)) {
                None => clear(to, zero),
                Some(x) if self.pick[1] == 1 => bring(&x[..inside], to),
                Some(x) => {
                    for (x, to) in x.chunks(self.pick[1] * channels).zip(to.chunks_exact_mut(channels)) {
                        bring(&x[..channels], to);
                    }
                }
            }
            from = from.wrapping_add(self.pick[0] * row);
        }
        scratch
    }
}

/// Fills short pieces, which a call would take longer for.
#[inline(always)]
fn clear<T: Copy>(to: &mut [T], zero: T) {
    let (to16, to) = to.as_chunks_mut::<16>();
    to16.iter_mut().for_each(|to| *to = [zero; 16]);
    to.iter_mut().for_each(|to| *to = zero);
}

/// Widens codes, without their zero point.
#[inline(always)]
pub(super) fn widen(kind: Kind, x: &[u8], to: &mut [i16]) {
    let zero = kind.zero_point as i16;
    if kind.signed {
        to.iter_mut().zip(x).for_each(|(to, &x)| *to = i16::from(x as i8) - zero);
    } else {
        to.iter_mut().zip(x).for_each(|(to, &x)| *to = i16::from(x) - zero);
    }
}
