//! Weights for `vpdpbusd`, which multiplies four bytes of a window, unsigned,
//! with four of each filter, signed.
//!
//! A band holds codes as bytes; signed codes are raised by 128. What the zero
//! point, so raised, adds to a filter's sum is taken off its bias, and borders are
//! of the zero point's byte. An image of unsigned codes that needs no border, and
//! whose runs are whole fours, is its own band: windows are read where they lie. So
//! is a single window of signed codes, which are raised as they are read.

use super::band::Band;
use super::filter::{Aligned, Panel, panels};
use super::{Kind, Shape, Weight};
use crate::Result;

/// Filters of a vector, and of a panel, at most.
pub(super) const LANES: usize = 16;
const MOST: usize = 4 * LANES;
/// Of one pixel, where panels are then full: registers have room.
const MOST_OF_ONE: usize = 8 * LANES;
/// Bytes of the weights for one vector and four elements of a window.
pub(super) const VECTOR: usize = 4 * LANES;
/// Bytes that a band should take where the weights stay in L2, and where they do not: each band
/// reads all of them.
const BAND: usize = 16 << 10;
const LARGE_BAND: usize = 256 << 10;
/// Weights that stay in L2 beside a band.
const L2: usize = 640 << 10;

/// Panels of up to 64 filters: for each four elements of a window's runs, four weights of each filter.
#[derive(Debug)]
pub(super) struct Quads {
    pub band: Band,
    /// Whether the band is the image itself.
    pub in_image: bool,
    pub panels: Vec<Panel>,
    pub weights: Aligned<i8>,
}

impl Quads {
    /// None where a weight does not fit a byte without its zero point.
    pub(super) fn new(shape: &Shape, out: [usize; 3], weight: Weight, input: Kind) -> Result<Option<Quads>> {
        let value = |at: usize| i8::try_from(weight.kind.value(weight.codes[at]));
        if (0..weight.codes.len()).any(|at| value(at).is_err()) {
            return Ok(None);
        }
        let depth = shape.depth();
        let most = if weight.codes.len() <= L2 { BAND } else { LARGE_BAND };
        let run = if shape.dilation[1] == 1 && shape.groups == 1 { shape.kernel[1] * depth } else { depth };
        // One pixel's codes are read once for each panel: to flip them there costs less than to copy them.
        let read = !input.signed || out[..2] == [1, 1];
        let in_image = read && shape.padding == [[0; 2]; 2] && run % 4 == 0;
        let band = if in_image { Band::in_image(shape, out, 4, most) } else { Band::new(shape, out, 4, most) }?;
        let full = (shape.filters / shape.groups).is_multiple_of(MOST_OF_ONE);
        let most = if out[..2] == [1, 1] && full { MOST_OF_ONE } else { MOST };
        let (panels, len) = panels(shape, band.steps, most, LANES, VECTOR);
        let mut weights = Aligned::new(len)?;
        let taps = weight.codes.len() / shape.filters;
        for panel in &panels {
            let (mut to, mut from) = (panel.at, 0);
            // Runs are in the order of the taps; behind a run's last element weights are 0.
            for &(_, run) in &band.runs {
                for at in (from..from + run).step_by(4) {
                    let end = (at + 4).min(from + run);
                    for column in 0..panel.count {
                        for element in at..end {
                            let value = value((panel.filter + column) * taps + element).unwrap_or(0);
                            weights.set(to + 4 * column + element - at, value);
                        }
                    }
                    to += panel.vectors * VECTOR;
                }
                from += run;
            }
        }
        Ok(Some(Quads { band, in_image, panels, weights }))
    }

    /// Whether there is one window, the image itself.
    pub(super) fn is_vector(&self) -> bool {
        self.in_image && self.band.starts.len() == 1
    }

    /// Elements of scratch memory, two bytes each.
    pub(super) fn scratch_len(&self) -> usize {
        if self.in_image { 0 } else { self.band.len().div_ceil(2) }
    }

    pub(super) fn bytes(&self) -> usize {
        self.weights.size() + size_of_val(&self.panels[..]) + self.band.bytes()
    }

    /// What is done to the bits of a code.
    pub(super) fn flip(input: Kind) -> u8 {
        if input.signed { 0x80 } else { 0 }
    }

    /// The byte of 0.
    pub(super) fn zero_point(input: Kind) -> i32 {
        i32::from(input.zero_point as u8 ^ Quads::flip(input))
    }
}
