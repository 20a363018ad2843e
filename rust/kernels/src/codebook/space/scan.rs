//! All tiles for many points at a time: lanes are points, and codewords are
//! broadcast, so that nothing is compared across lanes.

use super::eight::Eight;
use super::tree::Tree;

/// Vectors of points: with four codewords, 12 sums, as many as registers hold.
pub(super) const VECTORS: usize = 3;
/// Points of a scan.
pub(super) const POINTS: usize = 8 * VECTORS;

/// A number of each point of a scan.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
pub(super) struct Points(pub(super) [[f32; 8]; VECTORS]);

/// What a scan finds.
#[derive(Clone, Copy)]
pub(super) struct Least {
    /// The least score of each point.
    pub(super) scores: Points,
    /// That of the tiles which do not have it.
    pub(super) others: Points,
    /// The tile that has it, as bits.
    pub(super) tiles: Points,
}

impl Least {
    /// Of no tiles.
    pub(super) fn none() -> Least {
        let infinite = Points([[f32::INFINITY; 8]; VECTORS]);
        Least { scores: infinite, others: infinite, tiles: Points::default() }
    }

    /// Least score, that of other tiles, tile.
    #[inline(always)]
    pub(super) fn of(&self, point: usize) -> (f32, f32, usize) {
        let (vector, lane) = (point / 8, point % 8);
        (self.scores.0[vector][lane], self.others.0[vector][lane], self.tiles.0[vector][lane].to_bits() as usize)
    }
}

/// A point, which becomes the one at `i`: a scan takes them dimension by dimension.
#[inline(always)]
pub(super) fn turn_one<const D: usize>(point: &[f32], i: usize, to: &mut [Points]) {
    let d = if D > 0 { D } else { point.len() };
    for (to, &x) in to[..d].iter_mut().zip(&point[..d]) {
        to.0[i / 8][i % 8] = x;
    }
}

/// The least scores of points that [`turn_one`] wrote.
#[inline(always)]
pub(super) fn scan<V: Eight>(v: V, tree: &Tree, points: &[Points]) -> Least {
    let mut least = Least::none();
    for tile in 0..tree.tile_count() {
        let (halves, rows) = tree.tile(tile);
        v.take_tile(points, tile, halves, rows, &mut least);
    }
    least
}
