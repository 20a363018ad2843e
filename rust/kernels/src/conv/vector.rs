//! A convolution of one window that sees the whole image: a matrix times a
//! vector, where reading the weights is what costs.

use super::filter::Aligned;
use super::{Kind, Shape, Weight};
use crate::Result;

/// Filters of a panel, at most: four vectors of eight.
pub(super) const PANEL: usize = 32;

/// Weights of so many filters at a time: for each four elements of the image, four bytes of each filter.
#[derive(Debug)]
pub(super) struct Vector {
    /// Elements of the image, to a multiple of 4.
    pub depth: usize,
    pub filters: usize,
    pub weights: Aligned<i8>,
}

impl Vector {
    /// None where a window does not see the whole image, or a weight is beyond ±127: `vpsignb` cannot
    /// negate -128.
    pub(super) fn new(shape: &Shape, out: [usize; 3], weight: Weight) -> Result<Option<Vector>> {
        let whole = shape.kernel == [shape.input[0], shape.input[1]] && shape.dilation == [1, 1];
        let depth = shape.input.iter().product::<usize>();
        let small = || weight.codes.iter().all(|&code| (-127..=127).contains(&weight.kind.value(code)));
        if !whole || out[..2] != [1, 1] || shape.padding != [[0; 2]; 2] || shape.groups != 1 || !small() {
            return Ok(None);
        }
        let (padded, filters) = (depth.next_multiple_of(4), shape.filters);
        let mut weights = Aligned::new(filters.next_multiple_of(PANEL) * padded)?;
        for (filter, codes) in weight.codes.chunks_exact(depth).enumerate() {
            let first = filter / PANEL * PANEL;
            let columns = columns(filters - first);
            for (k, &code) in codes.iter().enumerate() {
                let at = first * padded + (k / 4 * columns + filter - first) * 4 + k % 4;
                weights.set(at, weight.kind.value(code) as i8);
            }
        }
        Ok(Some(Vector { depth: padded, filters, weights }))
    }

    /// Elements of scratch memory: the image's codes as int8, and their absolute values.
    pub(super) fn len(&self) -> usize {
        self.depth
    }

    /// What the zero point adds to a filter's sum, with codes as int8.
    pub(super) fn zero_point(input: Kind) -> i32 {
        if input.signed { input.zero_point } else { input.zero_point - 128 }
    }
}

/// Columns that a panel of so many filters has: one, two or four vectors.
pub(super) fn columns(filters: usize) -> usize {
    8 * filters.min(PANEL).div_ceil(8).next_power_of_two()
}
