//! Scores in integers: points and codewords rounded to 16 bits, which a CPU that multiplies pairs of them adds up
//! in half the time of floats.
//!
//! # How far a score can be off
//!
//! With x' and c' as in `tree.rs`, C the length of the longest codeword and g = `GRID / C`, a coordinate times g is
//! off by at most 0.51 (a half, and float32's own), and so a score by at most `0.51 sqrt(d) (X + C) / g`, and
//! `(d + 2) / g²` for products of two errors and what `|c|²/2` is off; what float32 rounds besides is within 1e-5 C².
//! [`Rough::least`] takes all of it off. The sums of some of a score's terms are at most `|c|²/2 + |x| |c|`, which
//! fits where a point is at most `REACH` times as long as C. Other points are left to floats.

use super::tree::Tree;
use crate::Isa;
use crate::error::{Result, try_zeroed};

/// Vectors of points, and points of a scan.
const VECTORS: usize = 3;
pub(super) const POINTS: usize = 16 * VECTORS;
/// The longest codeword: `REACH GRID` fits 16 bits, `GRID² (1/2 + REACH)` 32.
const GRID: f32 = 23_000.0;
const REACH: f32 = 1.4;

/// Two coordinates of each point of a scan: the first in the low half.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Pair(pub(super) [[i32; 16]; VECTORS]);

/// The tile that has each point's least score, and the least score of the tiles that do not.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Found {
    pub(super) tiles: [[i32; 16]; VECTORS],
    pub(super) others: [[i32; 16]; VECTORS],
}

/// A tree's codewords, rounded.
pub(super) struct Rough {
    isa: Isa,
    d: usize,
    /// Units of 1, a score's unit, X² of the points that it is for.
    grid: f32,
    unit: f32,
    reach: f32,
    longest: f32,
    /// What a score can be off: so many lengths, and more.
    off: f32,
    more: f32,
    /// `|c|²/2`, the largest integer where a slot is empty.
    halves: Vec<[i32; 8]>,
    /// -c', tile by tile, in a tile two dimensions at a time.
    pairs: Vec<[i32; 8]>,
}

impl Rough {
    /// None where the bounds do not hold, or nothing has a length.
    pub(super) fn of(tree: &Tree, isa: Isa) -> Result<Option<Rough>> {
        let d = tree.d();
        let longest = tree.longest();
        let grid = GRID / longest;
        if !tree.sound() || longest <= 1e-10 {
            return Ok(None);
        }
        let mut halves = try_zeroed::<[i32; 8]>(tree.tile_count())?;
        let mut pairs = try_zeroed::<[i32; 8]>(tree.tile_count() * d.div_ceil(2))?;
        for (tile, (halves, pairs)) in halves.iter_mut().zip(pairs.chunks_exact_mut(d.div_ceil(2))).enumerate() {
            let (exact, rows) = tree.tile(tile);
            for lane in 0..8 {
                let half = exact[lane];
                halves[lane] = if half.is_finite() { (half * grid * grid).round_ties_even() as i32 } else { i32::MAX };
                for (pair, rows) in pairs.iter_mut().zip(rows.chunks(2)) {
                    pair[lane] = packed(rows[0][lane] * grid, rows.get(1).map_or(0.0, |row| row[lane] * grid));
                }
            }
        }
        let (unit, reach) = (1.0 / (grid * grid), (REACH * longest) * (REACH * longest));
        let off = 0.52 * (d as f32).sqrt() / grid;
        let more = (d + 2) as f32 * unit + 1e-5 * longest * longest;
        Ok(Some(Rough { isa, d, grid, unit, reach, longest, off, more, halves, pairs }))
    }

    /// Rounds points, one after the other. What those become that are not [covered](Self::covers) is of no use.
    #[inline(always)]
    pub(super) fn place<const D: usize>(&self, placed: &[f32], to: &mut [Pair]) {
        let d = if D > 0 { D } else { self.d };
        let to = &mut to[..d.div_ceil(2)];
        for (i, x) in placed.chunks_exact(d).enumerate() {
            for (pair, x) in to.iter_mut().zip(x.chunks(2)) {
                pair.0[i / 16][i % 16] = packed(x[0] * self.grid, x.get(1).map_or(0.0, |x| x * self.grid));
            }
        }
    }

    /// Whether a point of this X² is near enough.
    #[inline(always)]
    pub(super) fn covers(&self, square: f32) -> bool {
        square <= self.reach
    }

    /// Scans all tiles, on AVX-512.
    pub(super) fn scan(&self, points: &[Pair], found: &mut Found) {
        #[cfg(target_arch = "x86_64")]
        super::avx512::scan(self.isa, points, &self.halves, &self.pairs, found);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{:?} scans {} pairs in integers for {} points", self.isa, points.len(), found.tiles.len());
    }

    /// Another tile's least score, less what it can be off, of a point of this X².
    #[inline(always)]
    pub(super) fn least(&self, score: i32, square: f32) -> f32 {
        score as f32 * self.unit - (self.off * (square.sqrt() + self.longest) + self.more)
    }
}

/// Two numbers, rounded to 16 bits: those that remain below a large number are the integer's.
#[inline(always)]
pub(super) fn packed(low: f32, high: f32) -> i32 {
    const LARGE: f32 = 1.5 * (1 << 23) as f32;
    ((low + LARGE).to_bits() & 0xffff | (high + LARGE).to_bits() << 16) as i32
}

#[cfg(test)]
mod tests {
    use super::super::tree::Frame;
    use super::*;
    use crate::Ctl;

    fn noise(n: usize, mut seed: u64, spread: f64) -> Vec<f64> {
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        (0..n).map(|_| (0..4).map(|_| next()).sum::<f64>() * spread).collect()
    }

    /// What is found is what integers added up one by one say, and no score is off by more than it may be.
    #[test]
    fn scans_are_by_their_definition() {
        let (isa, mut scans) = (Isa::best(), 0);
        for (d, k) in [(1, 5), (2, 16), (3, 100), (4, 9), (7, 70), (8, 333), (16, 64), (33, 40)] {
            let (codebook, x) = (noise(k * d, 3 + d as u64, 2.0), noise(POINTS * d, 5, 2.2));
            let frame = Frame::of(&codebook, d, &Ctl::new(1)).unwrap();
            let tree = Tree::new(&codebook, d, &frame).unwrap();
            let rough = Rough::of(&tree, isa).unwrap().unwrap();
            let (mut placed, mut pairs) = (vec![0.0; POINTS * d], vec![Pair::default(); d.div_ceil(2)]);
            let points = placed.chunks_exact_mut(d).zip(x.chunks_exact(d));
            let squares: Vec<f32> = points.map(|(placed, x)| frame.place(x, placed)).collect();
            rough.place::<0>(&placed, &mut pairs);
            let mut found = Found::default();
            if isa.has_avx512() {
                rough.scan(&pairs, &mut found);
                scans += 1;
            }
            for (i, &square) in squares.iter().enumerate() {
                if !rough.covers(square) {
                    continue;
                }
                let mut scores = Vec::new();
                for tile in 0..tree.tile_count() {
                    let (halves, rows) = tree.tile(tile);
                    let mut low = i32::MAX;
                    for lane in 0..8 {
                        let codeword = rough.pairs[tile * pairs.len()..].iter().zip(&pairs);
                        let products = codeword.map(|(c, x)| {
                            let (c, x) = (c[lane], x.0[i / 16][i % 16]);
                            i32::from(c as i16) * i32::from(x as i16) + (c >> 16) * (x >> 16)
                        });
                        low = low.min(products.fold(rough.halves[tile][lane], |sum, product| sum + product));
                    }
                    let exact = (0..8).map(|lane| {
                        let x = rows.iter().zip(&placed[i * d..]);
                        x.fold(f64::from(halves[lane]), |sum, (row, x)| sum + f64::from(row[lane]) * f64::from(*x))
                    });
                    let exact = exact.fold(f64::INFINITY, f64::min);
                    assert!(f64::from(rough.least(low, square)) <= exact, "{d} {k}: {low} of {exact}");
                    assert!(exact - f64::from(rough.least(low, square)) < 0.01, "{d} {k}: {low} of {exact}");
                    scores.push(low);
                }
                if !isa.has_avx512() {
                    continue;
                }
                let tile = found.tiles.as_flattened()[i] as usize;
                assert_eq!(scores[tile], *scores.iter().min().unwrap(), "{d} {k}");
                scores.remove(tile);
                let others = scores.into_iter().min().unwrap_or(i32::MAX);
                assert_eq!(found.others.as_flattened()[i], others, "{d} {k}");
            }
        }
        println!("codebook: scans in integers compared on AVX-512: {scans}");
    }
}
