//! Weights in the order that an instruction set reads them.

use super::band::Band;
use super::{Shape, Weight};
use crate::Isa;
use crate::error::{Result, try_zeroed};

/// Bytes of a cache line: vectors that lie across two cost two loads.
const LINE: usize = 64;

/// Weights without their zero point.
#[derive(Debug)]
pub(super) enum Filter {
    /// As they came, for the definition.
    Plain(Vec<i16>),
    /// In panels of filters.
    Tiled(Tiled),
    /// In blocks of channels.
    Depthwise(Depthwise),
}

/// Panels of 16 filters (32 where there is one pixel): for each pair of
/// elements that a window has, two weights of each filter.
#[derive(Debug)]
pub(super) struct Tiled {
    pub panels: Vec<Panel>,
    pub weights: Aligned,
}

/// Some filters of one group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel {
    /// The first of its filters, and how many there are.
    pub filter: usize,
    pub count: usize,
    /// Vectors of eight that they take.
    pub vectors: usize,
    /// Where its weights begin, in elements.
    pub at: usize,
    /// Where its group's channels begin in a pixel.
    pub channel: usize,
}

/// Blocks of 16 channels: for each pair of taps, two weights of each channel, as `vpunpcklwd` and
/// `vpunpckhwd` bring the channels together.
#[derive(Debug)]
pub(super) struct Depthwise {
    /// Where in a window each tap is, an even number of them.
    pub taps: Vec<usize>,
    pub weights: Aligned,
}

/// Words or bytes that begin on a cache line.
#[derive(Debug)]
pub(super) enum Aligned {
    Words(Vec<i16>, usize),
    /// For one pixel, where reading weights is what costs.
    Bytes(Vec<i8>, usize),
}

impl Aligned {
    fn words(len: usize) -> Result<Aligned> {
        let words = try_zeroed::<i16>(len + LINE / 2)?;
        let skip = words.as_ptr().align_offset(LINE).min(LINE / 2);
        Ok(Aligned::Words(words, skip))
    }

    fn bytes(len: usize) -> Result<Aligned> {
        let bytes = try_zeroed::<i8>(len + LINE)?;
        let skip = bytes.as_ptr().align_offset(LINE).min(LINE);
        Ok(Aligned::Bytes(bytes, skip))
    }

    fn set(&mut self, at: usize, value: i16) {
        match self {
            Aligned::Words(words, skip) => words[*skip + at] = value,
            Aligned::Bytes(bytes, skip) => bytes[*skip + at] = value as i8,
        }
    }

    fn size(&self) -> usize {
        match self {
            Aligned::Words(words, _) => size_of_val(&words[..]),
            Aligned::Bytes(bytes, _) => bytes.len(),
        }
    }
}

impl Filter {
    pub(super) fn new(shape: &Shape, weight: Weight, band: &Band, isa: Isa) -> Result<Filter> {
        let value = |at: usize| weight.kind.value(weight.codes[at]) as i16;
        if isa == Isa::Scalar {
            let mut plain = try_zeroed(weight.codes.len())?;
            plain.iter_mut().enumerate().for_each(|(at, to)| *to = value(at));
            return Ok(Filter::Plain(plain));
        }
        if shape.is_depthwise() {
            return Filter::depthwise(shape, band, value);
        }
        let single = band.starts.len() == 1 && (0..weight.codes.len()).all(|at| i8::try_from(value(at)).is_ok());
        let (widest, per_group, depth) = (if single { 4 } else { 2 }, shape.filters / shape.groups, shape.depth());
        // A run of an odd number of elements ends in a pair whose second weight is 0.
        let mut panels = Vec::new();
        let mut len = 0;
        for group in 0..shape.groups {
            for first in (0..per_group).step_by(8 * widest) {
                let count = (per_group - first).min(8 * widest);
                // One, two or four vectors.
                let vectors = count.div_ceil(8).next_power_of_two();
                let filter = group * per_group + first;
                panels.push(Panel { filter, count, vectors, at: len, channel: group * depth });
                len += band.pairs * vectors * 16;
            }
        }
        let mut weights = if single { Aligned::bytes(len)? } else { Aligned::words(len)? };
        for panel in &panels {
            let mut to = panel.at;
            // Runs are in the order of the taps, so their weights lie one after the other.
            let mut from = 0;
            for &(_, run) in &band.runs {
                for pair in 0..run.div_ceil(2) {
                    for (column, side) in (0..panel.count).flat_map(|c| [(c, 0), (c, 1)]) {
                        if 2 * pair + side < run {
                            let filter = (panel.filter + column) * shape.taps() * depth;
                            weights.set(to + 2 * column + side, value(filter + from + 2 * pair + side));
                        }
                    }
                    to += panel.vectors * 16;
                }
                from += run;
            }
        }
        Ok(Filter::Tiled(Tiled { panels, weights }))
    }

    fn depthwise(shape: &Shape, band: &Band, value: impl Fn(usize) -> i16) -> Result<Filter> {
        let (count, channels) = (shape.taps(), shape.input[2]);
        let mut taps = Vec::new();
        for (i, j) in (0..shape.kernel[0]).flat_map(|i| (0..shape.kernel[1]).map(move |j| (i, j))) {
            taps.push(i * shape.dilation[0] * band.pitch + j * shape.dilation[1] * band.channels);
        }
        if count % 2 == 1 {
            taps.push(taps[count - 1]); // its weights are 0
        }
        let block = 16 * taps.len();
        let mut weights = Aligned::words(channels.div_ceil(16) * block)?;
        for (channel, tap) in (0..channels).flat_map(|c| (0..count).map(move |t| (c, t))) {
            // Channels 0 to 3 and 8 to 11 of a block come first.
            let (half, lane) = (channel % 16 / 4 % 2, channel % 16 / 8 * 4 + channel % 4);
            let at = channel / 16 * block + tap / 2 * 32 + half * 16 + 2 * lane + tap % 2;
            weights.set(at, value(channel * count + tap));
        }
        Ok(Filter::Depthwise(Depthwise { taps, weights }))
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Filter::Plain(plain) => size_of_val(&plain[..]),
            Filter::Tiled(tiled) => tiled.weights.size() + size_of_val(&tiled.panels[..]),
            Filter::Depthwise(depthwise) => depthwise.weights.size() + size_of_val(&depthwise.taps[..]),
        }
    }
}

impl Shape {
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}
