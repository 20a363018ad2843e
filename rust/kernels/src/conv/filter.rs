//! Weights in the order that an instruction set reads them.

use super::band::Band;
use super::depthwise::Depthwise;
use super::quads::Quads;
use super::vector::Vector;
use super::winograd::Winograd;
use super::{Kind, Shape, Weight};
use crate::Isa;
use crate::error::{Result, try_zeroed};

/// Bytes of a cache line: vectors that lie across two cost two loads.
const LINE: usize = 64;
/// 16-bit elements that a band should take: with a panel of weights it then fits L1.
const BAND: usize = 10 << 10;

/// Weights without their zero point.
#[derive(Debug)]
pub(super) enum Filter {
    /// As they came, for the definition.
    Plain(Vec<i16>),
    /// In panels of filters.
    Tiled(Tiled),
    /// In vectors of channels.
    Depthwise(Depthwise<i16>),
    /// The same as bytes.
    DepthwiseQuads(Depthwise<i8>),
    /// For the one window that there is.
    Vector(Vector),
    /// Transformed.
    Winograd(Winograd),
    /// In panels of filters, as bytes.
    Quads(Quads),
}

/// Panels of 16 filters: for each pair of
/// elements that a window has, two weights of each filter.
#[derive(Debug)]
pub(super) struct Tiled {
    pub band: Band,
    pub panels: Vec<Panel>,
    pub weights: Aligned<i16>,
}

/// Some filters of one group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel {
    /// The first of its filters, and how many there are.
    pub filter: usize,
    pub count: usize,
    /// Vectors that they take: of eight, or of sixteen for [`Quads`].
    pub vectors: usize,
    /// Where its weights begin, in elements.
    pub at: usize,
    /// Where its group's channels begin in a pixel.
    pub channel: usize,
}

/// Weights that begin on a cache line.
#[derive(Debug)]
pub(super) struct Aligned<T> {
    all: Vec<T>,
    skip: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// So many zeros.
    pub(super) fn new(len: usize) -> Result<Aligned<T>> {
        let all = try_zeroed::<T>(len + LINE / size_of::<T>())?;
        let skip = all.as_ptr().align_offset(LINE).min(LINE / size_of::<T>());
        Ok(Aligned { all, skip })
    }

    pub(super) fn set(&mut self, at: usize, value: T) {
        self.all[self.skip + at] = value;
    }

    pub(super) fn at(&self, at: usize, len: usize) -> &[T] {
        &self.all[self.skip + at..][..len]
    }

    /// Bytes that they take.
    pub(super) fn size(&self) -> usize {
        size_of_val(&self.all[..])
    }
}

impl Filter {
    pub(super) fn new(shape: &Shape, out: [usize; 3], weight: Weight, input: Kind, isa: Isa) -> Result<Filter> {
        let value = |at: usize| weight.kind.value(weight.codes[at]) as i16;
        if isa == Isa::Scalar {
            let mut plain = try_zeroed(weight.codes.len())?;
            plain.iter_mut().enumerate().for_each(|(at, to)| *to = value(at));
            return Ok(Filter::Plain(plain));
        }
        if shape.is_depthwise() {
            // Fewer channels leave half of a vector of bytes empty, or more.
            if isa.has_avx512()
                && shape.filters > 8
                && let Some(depthwise) = Depthwise::new(shape, out, weight, 1)?
            {
                return Ok(Filter::DepthwiseQuads(depthwise));
            }
            let depthwise = Depthwise::new(shape, out, weight, shape.fold(out))?;
            return Ok(Filter::Depthwise(depthwise.expect("16 bits hold all weights")));
        }
        if isa.has_avx512()
            && let Some(quads) = Quads::new(shape, out, weight, input)?
        {
            return Ok(Filter::Quads(quads));
        }
        if let Some(vector) = Vector::new(shape, out, weight)? {
            return Ok(Filter::Vector(vector));
        }
        if let Some(winograd) = Winograd::new(shape, out, weight)? {
            return Ok(Filter::Winograd(winograd));
        }
        let band = Band::new(shape, out, 2, BAND)?;
        let depth = shape.depth();
        let (panels, len) = panels(shape, band.steps, 16, 8, 16);
        let mut weights = Aligned::new(len)?;
        for panel in &panels {
            let mut to = panel.at;
            // A run of an odd number of elements ends in a pair whose second weight is 0.
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
        Ok(Filter::Tiled(Tiled { band, panels, weights }))
    }

    /// Elements of scratch memory.
    pub(super) fn scratch_len(&self) -> usize {
        match self {
            Filter::Plain(_) => 0,
            Filter::Tiled(tiled) => tiled.band.len(),
            Filter::Depthwise(depthwise) => depthwise.len(),
            Filter::DepthwiseQuads(depthwise) => depthwise.len().div_ceil(2),
            Filter::Vector(vector) => vector.len(),
            Filter::Winograd(winograd) => winograd.scratch_len(),
            Filter::Quads(quads) => quads.scratch_len(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Filter::Plain(plain) => size_of_val(&plain[..]),
            Filter::Tiled(tiled) => tiled.weights.size() + size_of_val(&tiled.panels[..]) + tiled.band.bytes(),
            Filter::Depthwise(depthwise) => depthwise.bytes(),
            Filter::DepthwiseQuads(depthwise) => depthwise.bytes(),
            Filter::Vector(vector) => vector.weights.size(),
            Filter::Winograd(winograd) => winograd.bytes(),
            Filter::Quads(quads) => quads.bytes(),
        }
    }
}

/// Panels of at most so many filters, in vectors of `lanes`, and the elements of all: a vector of weights
/// has `elements`, and there are `steps` of them.
pub(super) fn panels(shape: &Shape, steps: usize, most: usize, lanes: usize, elements: usize) -> (Vec<Panel>, usize) {
    let (per_group, depth) = (shape.filters / shape.groups, shape.depth());
    let mut panels = Vec::new();
    let mut len = 0;
    for group in 0..shape.groups {
        for first in (0..per_group).step_by(most) {
            let count = (per_group - first).min(most);
            let (vectors, filter) = (count.div_ceil(lanes), group * per_group + first);
            panels.push(Panel { filter, count, vectors, at: len, channel: group * depth });
            len += steps * vectors * elements;
        }
    }
    (panels, len)
}

impl Shape {
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}
