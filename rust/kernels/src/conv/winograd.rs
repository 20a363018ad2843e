//! Winograd's F(2×2, 3×3) in integers: 16 products where 36 are.
//!
//! A kernel g of 3×3 and an image's tile d of 4×4 give 2×2 outputs
//! `Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`. G has halves; with 2G in its place all is whole,
//! and the outputs are four times what they should be, exactly. Image tiles become
//! sums of four values of ±255 and kernels sums of at most nine of ±255, so both
//! are 16-bit, and their products are summed in 32 bits. Sums that overflow wrap,
//! and wrap back: the result is right if four times the output fits.
//!
//! Source: S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and
//! S. Gray, Fast Algorithms for Convolutional Neural Networks, 2015.

use super::band::Band;
use super::filter::{Aligned, Panel, panels};
use super::{Shape, Weight};
use crate::Result;

/// Numbers of a transformed tile.
pub(super) const POINTS: usize = 16;
/// Tiles of a block, at most and at least: whole tiles of products.
pub(super) const MOST: usize = 24;
const LEAST: usize = 18;
/// Channels that repay the transforms.
const LEAST_CHANNELS: usize = 16;
/// Bytes that a block's transformed tiles should take.
const BYTES: usize = 24 << 10;

/// Geometry and transformed weights.
#[derive(Debug)]
pub(super) struct Winograd {
    pub band: Band,
    /// Rows and columns of tiles.
    pub tiles: [usize; 2],
    /// Rows and columns of tiles of a block.
    pub block: [usize; 2],
    /// Elements from a transformed tile to the next.
    pub pitch: usize,
    pub panels: Vec<Panel>,
    /// For each panel and point as [`Tiled`](super::filter::Tiled)'s.
    pub weights: Aligned<i16>,
}

impl Winograd {
    /// None where windows are not 3×3, side by side, and worth it.
    pub(super) fn new(shape: &Shape, out: [usize; 3], weight: Weight) -> Result<Option<Winograd>> {
        let Shape { input: [_, _, channels], filters, .. } = *shape;
        let plain = shape.kernel == [3, 3] && shape.stride == [1, 1] && shape.dilation == [1, 1] && shape.groups == 1;
        let tiles = [out[0].div_ceil(2), out[1].div_ceil(2)];
        // Borders of odd sizes are computed and thrown away.
        let wasted = 4 * tiles[0] * tiles[1] * 2 > 3 * out[0] * out[1];
        if !plain || channels < LEAST_CHANNELS || filters < 16 || wasted {
            return Ok(None);
        }
        let largest = weight.codes.iter().map(|&code| weight.kind.value(code).unsigned_abs()).max().unwrap_or(0);
        if 4 * 9 * 255 * u64::from(largest) * channels as u64 >= 1 << 31 {
            return Ok(None);
        }
        let pitch = channels.next_multiple_of(16);
        let most = (BYTES / (POINTS * pitch * size_of::<i16>())).clamp(LEAST, MOST);
        let block = if tiles[1] <= most { [(most / tiles[1]).min(tiles[0]), tiles[1]] } else { [1, most] };
        let even = [2 * tiles[0], 2 * tiles[1], filters];
        // A band's starts are 32-bit.
        if 2 * (block[0] + 1) * shape.padded(1) * channels > u32::MAX as usize {
            return Ok(None);
        }
        let band = Band::of_rows(shape, even, 2 * block[0], 2)?;
        // Panels of 16 filters all: those that there are not have weights of 0.
        let pairs = channels.div_ceil(2);
        let (mut panels, _) = panels(shape, 0, 16, 8, 16);
        for (at, panel) in panels.iter_mut().enumerate() {
            (panel.vectors, panel.at) = (2, at * POINTS * pairs * 32);
        }
        let len = panels.len() * POINTS * pairs * 32;
        let mut weights = Aligned::new(len)?;
        for panel in &panels {
            for (column, codes) in
                weight.codes.chunks_exact(9 * channels).skip(panel.filter).take(panel.count).enumerate()
            {
                for channel in 0..channels {
                    let kernel = std::array::from_fn(|tap| weight.kind.value(codes[tap * channels + channel]));
                    for (point, value) in transformed(kernel).into_iter().enumerate() {
                        let at = panel.at + ((point * pairs + channel / 2) * 16 + column) * 2 + channel % 2;
                        weights.set(at, value as i16);
                    }
                }
            }
        }
        Ok(Some(Winograd { band, tiles, block, pitch, panels, weights }))
    }

    /// Elements from a point of a block's transformed tiles to the next point.
    pub(super) fn point(&self) -> usize {
        self.block[0] * self.block[1] * self.pitch
    }

    /// Elements of a block's transformed tiles.
    pub(super) fn len(&self) -> usize {
        POINTS * self.point()
    }

    /// Elements of scratch memory: the tiles, then the band.
    pub(super) fn scratch_len(&self) -> usize {
        self.len() + self.band.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.weights.size() + size_of_val(&self.panels[..]) + self.band.bytes()
    }
}

/// `2G g (2G)ᵀ`, row after row.
fn transformed(g: [i32; 9]) -> [i32; POINTS] {
    let four = |[a, b, c]: [i32; 3]| [2 * a, a + b + c, a - b + c, 2 * c];
    let columns: [[i32; 4]; 3] = std::array::from_fn(|j| four([g[j], g[3 + j], g[6 + j]]));
    let rows: [[i32; 4]; 4] = std::array::from_fn(|i| four([columns[0][i], columns[1][i], columns[2][i]]));
    std::array::from_fn(|at| rows[at / 4][at % 4])
}
