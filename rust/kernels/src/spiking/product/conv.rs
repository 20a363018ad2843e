//! Convolutions of spikes: each output place's inputs are listed, and are a row of a product; few are scattered.

use std::ops::Range;

use super::lists::{Kind, Lists};
use super::scatter::{Scattered, fits, is_few};
use super::weight::{SpikeForm, SpikeWeight};
use super::{Source, Spikes, Start, Sums, bits_in, check_ends, first_above_1, multiply, neither};
use crate::error::{bail, checked_product};
use crate::{Ctl, Error, Isa, Result};

/// The sizes of a convolution of images of H rows, W columns, C channels, channels last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpikeConv2d {
    /// H, W, C
    pub input: [usize; 3],
    /// KH, KW
    pub kernel: [usize; 2],
    /// Along H and W.
    pub stride: [usize; 2],
    /// Before and after H, before and after W.
    pub padding: [[usize; 2]; 2],
}

impl SpikeConv2d {
    /// Height and width of the output.
    ///
    /// # Errors
    /// [`Error::Value`] for a size or a stride of 0, sizes that overflow, or a kernel larger than
    /// the padded image.
    pub fn output(&self) -> Result<[usize; 2]> {
        let mut out = [0; 2];
        for axis in 0..2 {
            let (size, kernel, stride) = (self.input[axis], self.kernel[axis], self.stride[axis]);
            if kernel == 0 || stride == 0 {
                bail!("kernel, stride: expected at least 1, got {kernel} and {stride}");
            }
            let [before, after] = self.padding[axis];
            let padded = size.checked_add(before).and_then(|x| x.checked_add(after));
            let Some(padded) = padded.filter(|&x| x <= i32::MAX as usize) else {
                bail!("padding: {size} with {before} before and {after} after is more than {}", i32::MAX);
            };
            if kernel > padded {
                bail!("weight: a kernel of {kernel} does not fit into {padded}, padding included");
            }
            out[axis] = (padded - kernel) / stride + 1;
        }
        Ok(out)
    }

    /// Inputs of an output.
    fn depth(&self) -> Result<usize> {
        checked_product("weight", &[self.kernel[0], self.kernel[1], self.input[2]])
    }

    /// How many pairs there are of an input that is not 0 and a place of the output that it
    /// reaches: times the outputs of a place, the additions of a convolution.
    ///
    /// # Errors
    /// As [`Self::output`]; [`Error::Value`] for another length; [`Error::Memory`]; [`Error::Interrupted`].
    pub fn pairs(&self, bytes: &[u8], images: usize, ctl: &Ctl) -> Result<u64> {
        let ([rows, columns], [h, w, c]) = (self.reach()?, self.input);
        if bytes.len() != checked_product("spikes", &[images, h, w, c])? {
            bail!("spikes: expected {images} images {h} by {w} by {c}, got {} bytes", bytes.len());
        }
        let mut pairs = 0;
        for (i, row) in bytes.chunks_exact((w * c).max(1)).enumerate() {
            let places = row.chunks_exact(c).zip(&columns);
            let of = |place: &[u8]| place.iter().filter(|&&x| x != 0).count() as u64;
            pairs += rows[i % h] * places.map(|(place, reached)| of(place) * reached).sum::<u64>();
            ctl.check()?;
        }
        Ok(pairs)
    }

    /// For each row and each column of the image, how many of the output's it reaches.
    fn reach(&self) -> Result<[Vec<u64>; 2]> {
        let out = self.output()?;
        let mut both = [Vec::new(), Vec::new()];
        for (axis, reached) in both.iter_mut().enumerate() {
            *reached = crate::error::try_zeroed(self.input[axis])?;
            for o in 0..out[axis] {
                let first = o * self.stride[axis];
                let before = self.padding[axis][0];
                let inside = first.max(before)..(first + self.kernel[axis]).min(before + self.input[axis]);
                inside.for_each(|i| reached[i - before] += 1);
            }
        }
        Ok(both)
    }
}

/// Convolves images of spikes or counts, bytes (N, H, W, C), with a weight whose rows are in the
/// order (KH, KW, C), from `start` on, into `out`, (N, OH, OW, O). Padding has no spikes.
///
/// # Errors
/// As [`super::spike_matmul`], and [`SpikeConv2d::output`]; [`Error::Value`] for packed spikes.
pub fn spike_conv2d<B: AsRef<[u8]> + Sync>(
    spikes: Spikes,
    images: usize,
    conv: &SpikeConv2d,
    weight: &SpikeWeight<B>,
    start: Start,
    out: Sums,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let (bytes, counts) = match spikes {
        Spikes::Packed(_) => bail!("spikes: expected bytes, got packed bits"),
        Spikes::Bytes(bytes) => (bytes, false),
        Spikes::Counts(bytes) => (bytes, true),
    };
    let output = conv.output()?;
    let [h, w, c] = conv.input;
    if bytes.len() != checked_product("spikes", &[images, h, w, c])? {
        bail!("spikes: expected {images} images {h} by {w} by {c}, got {} bytes", bytes.len());
    }
    // All of them, those that no output reads too.
    let seen = bits_in(bytes);
    if !counts && seen > 1 {
        let at = first_above_1(bytes);
        return Err(neither(bytes[at], at));
    }
    if conv.depth()? != weight.k() {
        bail!("weight: expected {} inputs of an output, got {}", conv.depth()?, weight.k());
    }
    if checked_product("spikes", &[w, c])? > u32::MAX as usize {
        bail!("spikes: a row of {w} by {c} is too long");
    }
    let m = checked_product("out", &[images, output[0], output[1]])?;
    checked_product("out", &[m, weight.n()])?;
    let most = if seen > 1 { u8::MAX } else { 1 };
    let few = |spikes| is_few(spikes, m, conv, isa);
    let out = match (out, start, weight.form()) {
        (Sums::I32(out), Start::Zero | Start::I32(_), SpikeForm::Codes(_)) => {
            let start = if let Start::I32(start) = start { Some(start) } else { None };
            if fits(most, m, weight, start) && few(bytes) {
                check_ends(m, weight.n(), start, out)?;
                if out.is_empty() {
                    return Ok(());
                }
                return Scattered::new(conv, output, weight, start)?.run(bytes, most, out, isa, ctl).map(drop);
            }
            Sums::I32(out)
        }
        (Sums::F32(out), Start::Zero | Start::F32(_), SpikeForm::Floats) => {
            let start = if let Start::F32(start) = start { Some(start) } else { None };
            if fits(most, m, weight, start) && few(bytes) {
                check_ends(m, weight.n(), start, out)?;
                if out.is_empty() {
                    return Ok(());
                }
                return Scattered::new(conv, output, weight, start)?.run(bytes, most, out, isa, ctl).map(drop);
            }
            Sums::F32(out)
        }
        (out, _, _) => out,
    };
    let places = Places { bytes, counts, conv, output, k: weight.k() };
    multiply(&places, m, output[1], weight, start, out, isa, ctl)
}

pub(super) struct Places<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) counts: bool,
    pub(super) conv: &'a SpikeConv2d,
    pub(super) output: [usize; 2],
    pub(super) k: usize,
}

/// What spiked in one row of an image.
#[derive(Default)]
pub(super) struct InputRow {
    /// Which row of all images' it is, plus 1.
    tag: usize,
    inputs: Lists,
    /// What did not, once a window asked for it.
    zeros: Vec<u32>,
    has_zeros: bool,
    /// Where the inputs of each column begin, and the end.
    starts: Vec<u32>,
}

impl InputRow {
    fn fill(&mut self, bytes: &[u8], channels: usize, kind: Kind, isa: Isa) -> Result<bool> {
        self.inputs.clear();
        if !self.inputs.append(isa, bytes, kind)? {
            return Ok(false);
        }
        self.has_zeros = false;
        self.starts.clear();
        let columns = bytes.len() / channels.max(1);
        self.starts.try_reserve(columns + 1).map_err(|_| Error::Memory(4 * columns))?;
        let mut next = 0;
        for column in 0..columns {
            self.starts.push(next);
            let end = ((column + 1) * channels) as u32;
            while self.inputs.indices.get(next as usize).is_some_and(|&i| i < end) {
                next += 1;
            }
        }
        self.starts.push(next);
        Ok(true)
    }
}

impl Source for Places<'_> {
    /// The last KH rows of the image, by number modulo KH.
    type Memory = Vec<InputRow>;

    fn push(
        &self,
        place: usize,
        kind: Kind,
        isa: Isa,
        lists: &mut Lists,
        memory: &mut Self::Memory,
    ) -> Result<std::result::Result<u64, usize>> {
        let ([h, w, c], [kh, kw]) = (self.conv.input, self.conv.kernel);
        let [oh, ow] = self.output;
        let (line, x) = (place / ow, place % ow);
        let (image, y) = (line / oh, line % oh);
        let (top, left) = (y * self.conv.stride[0], x * self.conv.stride[1]); // in the padded image
        let [pad_top, pad_left] = self.conv.padding.map(|[before, _]| before);
        let slots = kh.min(h.max(1));
        if memory.len() != slots {
            memory.resize_with(slots, InputRow::default);
        }
        let rows = top.max(pad_top)..(top + kh).min(pad_top + h);
        let columns = left.saturating_sub(pad_left).min(w)..(left + kw).saturating_sub(pad_left).min(w);
        let mut spikes = 0;
        for row in rows.clone() {
            let number = image * h + row - pad_top;
            let input = &mut memory[(row - pad_top) % slots];
            if input.tag != number + 1 {
                input.tag = 0;
                let from = number * w * c;
                let bytes = &self.bytes[from..][..w * c];
                if !input.fill(bytes, c, kind, isa)? {
                    return Ok(Err(from + first_above_1(bytes)));
                }
                input.tag = number + 1;
            }
            spikes += (input.starts[columns.end] - input.starts[columns.start]) as usize;
        }
        let at = lists.indices.len();
        let minus = kind == Kind::Spikes && 2 * spikes > self.k;
        let wide = kw * c;
        // Which inputs of a row of the window, from `start` on, lie in the image.
        let inside = |start: usize| {
            let first = start + ((columns.start + pad_left).saturating_sub(left) * c).min(wide);
            first..first + columns.len() * c
        };
        for row in top..top + kh {
            let start = (row - top) * wide;
            if !rows.contains(&row) {
                if minus {
                    lists.append_range(start..start + wide)?;
                }
                continue;
            }
            let input = &mut memory[(row - pad_top) % slots];
            let shift = start as i64 + (pad_left as i64 - left as i64) * c as i64;
            let [from, to] = [columns.start, columns.end].map(|column| input.starts[column] as usize);
            if minus {
                if !input.has_zeros {
                    input.inputs.zeros(isa, w * c, &mut input.zeros)?;
                    input.has_zeros = true;
                }
                // As many zeros lie before a column as inputs that are none.
                let zeros = &input.zeros[columns.start * c - from..columns.end * c - to];
                lists.append_range(start..inside(start).start)?;
                lists.append_shifted(zeros, &[], shift)?;
                lists.append_range(inside(start).end..start + wide)?;
            } else {
                let counts = input.inputs.counts.get(from..to).unwrap_or_default();
                lists.append_shifted(&input.inputs.indices[from..to], counts, shift)?;
            }
        }
        if minus {
            lists.push(at, true)?;
            return Ok(Ok(spikes as u64));
        }
        lists.finish(at, kind).map(Ok)
    }

    fn counts(&self) -> bool {
        self.counts
    }

    fn inputs(&self) -> (&[u8], usize) {
        (self.bytes, self.bytes.len())
    }

    fn bytes<'a>(&'a self, places: Range<usize>, buffer: &'a mut [u8], _: Isa) -> Option<&'a [u8]> {
        let ([h, w, c], [_, kw]) = (self.conv.input, self.conv.kernel);
        let [oh, ow] = self.output;
        let [pad_top, pad_left] = self.conv.padding.map(|[before, _]| before);
        let wide = kw * c;
        for (place, window) in places.zip(buffer.chunks_exact_mut(self.k)) {
            let (line, x) = (place / ow, place % ow);
            let (image, y) = (line / oh, line % oh);
            let (top, left) = (y * self.conv.stride[0], x * self.conv.stride[1]); // in the padded image
            // Of the window's columns, those in the image.
            let from = left.max(pad_left).min(left + kw);
            let to = (left + kw).min(pad_left + w).max(from);
            for (row, window) in (top..).zip(window.chunks_exact_mut(wide)) {
                let Some(y) = row.checked_sub(pad_top).filter(|&y| y < h) else {
                    window.fill(0);
                    continue;
                };
                let (before, rest) = window.split_at_mut((from - left) * c);
                let (inside, after) = rest.split_at_mut((to - from) * c);
                before.fill(0);
                after.fill(0);
                if !inside.is_empty() {
                    let at = ((image * h + y) * w + from - pad_left) * c;
                    inside.copy_from_slice(&self.bytes[at..][..inside.len()]);
                }
            }
        }
        Some(buffer)
    }

    fn is_made(&self) -> bool {
        true
    }

    fn wrong(&self, at: usize) -> Error {
        neither(self.bytes[at], at)
    }
}
