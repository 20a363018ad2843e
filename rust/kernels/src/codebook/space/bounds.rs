//! Lloyd's iterations keep for each point how near the codewords of each tile
//! can be, so that an iteration scans the tiles that may hold the nearest one
//! and passes over the others (Elkan 2003 with groups: Ding et al. 2015).
//!
//! With the errors of `tree.rs`, a tile whose least computed score is s has no
//! codeword nearer than `L = √(X² + 2 s - 2.5 κ (X² + |s|))`. When codewords
//! move, by at most Δ in this tile, `L - Δ` holds; so that a pass need not write
//! it, `L + D` is kept, where D is the sum of the tile's Δ until then, and the sum
//! until now taken off. The nearest codeword is at most `√(2 T + X²)` away, so a
//! tile with a larger bound is out, whatever its scores. Distances here are whole
//! numbers of a unit, up to 65,535 for all that are as far; each step is rounded so
//! that it errs towards scanning.
//!
//! A pass takes a block of points tile by tile: it lists the points that the tile
//! may matter to, eight comparisons at a time, and scans it for eight of the list
//! at a time. So no branch depends on a single point, until each is decided.

use super::eight::Eight;
use super::scalar::{self, Real};
use super::scan::{Least, POINTS, VECTORS, turn};
use super::tree::{Frame, Query, Scratch, Tree};
use crate::error::{Result, checked_product, try_zeroed};
use crate::par::Parts;
use crate::{Ctl, Isa};

/// Tiles that bounds are kept for, which a byte numbers: with more, boxes around tiles are faster, and smaller.
const MOST: usize = 256;
/// Bytes that bounds may take.
const ROOM: usize = 1 << 29;
/// Points of a block: whole scans.
const BLOCK: usize = 10 * POINTS;
/// Places of a block, so that each byte is one; lists are filled up with the last ones.
const PLACES: usize = 256;
const SIXTEENS: usize = PLACES / 16;
/// The distance that bounds tell apart, in those of points from their codewords.
const RANGE: f32 = 16.0;
/// What makes up for some roundings.
const DOWN: f32 = 1.0 - 4.0 * f32::EPSILON;
const UP: f32 = 1.0 + 4.0 * f32::EPSILON;

/// The points of a k-means, and their bounds.
pub(super) struct Bounds {
    /// The codeword in each slot of the trees.
    order: Vec<u32>,
    tiles: usize,
    /// Of whole blocks, and a few points of zeros.
    placed: Vec<f32>,
    squares: Vec<f32>,
    /// Units of a distance.
    unit: f32,
    /// L + D of each block, tile and place.
    lower: Vec<[u16; 16]>,
    /// D: how far the codewords of each tile have moved in all; none before the first pass.
    drift: Option<Vec<u16>>,
}

impl Bounds {
    /// For `x`, which starts from `codebook`; `None` where bounds do not pay.
    pub(super) fn new<T: Real>(x: &[T], codebook: &[T], d: usize, frame: &Frame, ctl: &Ctl) -> Result<Option<Bounds>> {
        let (n, tiles) = (x.len() / d, (codebook.len() / d).div_ceil(8));
        let tree = Tree::new(codebook, d, frame)?;
        let size = n.div_ceil(BLOCK).checked_mul(tiles * SIXTEENS);
        let size = size.filter(|size| tiles <= MOST && *size <= ROOM / size_of::<[u16; 16]>() && tree.sound());
        let Some(size) = size else { return Ok(None) };
        // Who has no memory for them goes on without.
        let Ok(lower) = try_zeroed(size) else { return Ok(None) };
        let padded = n.next_multiple_of(BLOCK) + PLACES - BLOCK;
        let (mut placed, mut squares) = (try_zeroed(checked_product("x", &[padded, d])?)?, try_zeroed(padded)?);
        let block = (1 << 16) / d.min(1 << 12);
        let parts = Parts::new(placed.chunks_mut(block * d).zip(squares.chunks_mut(block)).zip(x.chunks(block * d)));
        ctl.for_each(parts.len(), &|_, task| {
            let ((placed, squares), x) = parts.take(task);
            for ((x, placed), square) in x.chunks_exact(d).zip(placed.chunks_exact_mut(d)).zip(squares) {
                *square = frame.place(x, placed);
            }
        })?;
        if squares.iter().any(|&square| !tree.covers(square)) {
            return Ok(None);
        }
        let unit = (f32::from(u16::MAX) / (RANGE * typical(x, codebook, d, frame))).min(1e30);
        Ok(Some(Bounds { order: tree.order().to_vec(), tiles, placed, squares, unit, lower, drift: None }))
    }

    /// Codewords in the tiles that the bounds speak of.
    pub(super) fn tree<T: Real>(&self, codebook: &[T], d: usize, frame: &Frame) -> Result<Tree> {
        Tree::ordered(codebook, d, frame, Some(&self.order))
    }

    /// Takes note that codewords have moved.
    pub(super) fn moved<T: Real>(&mut self, old: &[T], new: &[T], d: usize, frame: &Frame) -> Result<()> {
        let mut step: Vec<f32> = try_zeroed(self.tiles)?;
        for (slot, &code) in self.order.iter().enumerate() {
            let at = code as usize * d;
            let far = (frame.apart(&old[at..][..d], &new[at..][..d]) as f32 + 1e-30) * UP;
            let most = &mut step[slot / 8];
            *most = most.max(far);
        }
        let mut drift = match self.drift.take() {
            Some(drift) => drift,
            None => try_zeroed(self.tiles)?,
        };
        for (drift, step) in drift.iter_mut().zip(step) {
            *drift = drift.saturating_add((step * self.unit).ceil() as u16);
        }
        self.drift = Some(drift);
        Ok(())
    }

    /// The nearest codeword of each point, from those of the pass before. Whether `old` and `new` differ.
    pub(super) fn pass<T: Real>(
        &mut self,
        tree: &Tree,
        x: &[T],
        codebook: &[T],
        old: &[u32],
        new: &mut [u32],
        slots: &super::Slots,
        block: usize,
        isa: Isa,
        ctl: &Ctl,
    ) -> Result<bool> {
        let (d, blocks) = (tree.d(), block.div_ceil(BLOCK));
        let moved = std::sync::atomic::AtomicBool::new(self.drift.is_none());
        let lower = self.lower.chunks_mut(blocks * self.tiles * SIXTEENS);
        let tasks = Parts::new(new.chunks_mut(blocks * BLOCK).zip(lower));
        let (placed, squares, drift) = (&self.placed[..], &self.squares[..], self.drift.as_deref());
        let unit = self.unit;
        ctl.for_each(tasks.len(), &|slot, task| {
            let (new, lower) = tasks.take(task);
            let (first, n) = (task * blocks * BLOCK, new.len());
            let mut a = Pass {
                codebook,
                x: &x[first * d..][..n * d],
                placed: &placed[first * d..][..(n.next_multiple_of(BLOCK) + PLACES - BLOCK) * d],
                squares: &squares[first..][..n.next_multiple_of(BLOCK)],
                unit,
                drift,
                lower,
                old: &old[first..][..n],
                new,
            };
            slots.with(slot, |slot| pass(tree, &mut a, &mut slot.scratch, isa));
            if a.old != a.new {
                moved.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        })?;
        Ok(moved.into_inner())
    }
}

/// The median distance, as placed, of some points from their codewords.
fn typical<T: Real>(x: &[T], codebook: &[T], d: usize, frame: &Frame) -> f32 {
    let points = x.chunks_exact(d);
    let some = (super::TASK / codebook.len()).clamp(1, 32);
    let step = points.len().div_ceil(some);
    let mut found = [(0.0, 0)];
    let far = points.step_by(step).map(|x| {
        scalar::nearest(x, codebook, 0..(codebook.len() / d) as u32, &mut found);
        frame.apart(x, &codebook[found[0].1 as usize * d..][..d]) as f32
    });
    let mut far: Vec<f32> = far.collect();
    let middle = far.len() / 2;
    *far.select_nth_unstable_by(middle, f32::total_cmp).1
}

/// A task of a pass.
struct Pass<'a, T> {
    codebook: &'a [T],
    x: &'a [T],
    placed: &'a [f32],
    squares: &'a [f32],
    unit: f32,
    drift: Option<&'a [u16]>,
    lower: &'a mut [[u16; 16]],
    old: &'a [u32],
    new: &'a mut [u32],
}

/// What is known of the points of a block.
struct Block {
    /// The least score so far, and its T.
    best: [f32; PLACES],
    limit: [f32; PLACES],
    /// That of the tiles which do not have it.
    other: [f32; PLACES],
    /// The tile that has it.
    tile: [u8; PLACES],
    /// The lanes of that tile within the limit; 0 if not known.
    near: [u8; PLACES],
}

impl Block {
    const NEW: Block = Block {
        best: [0.0; PLACES],
        limit: [f32::NEG_INFINITY; PLACES],
        other: [f32::INFINITY; PLACES],
        tile: [0; PLACES],
        near: [0; PLACES],
    };
}

fn pass<T: Real>(tree: &Tree, a: &mut Pass<T>, s: &mut Scratch, isa: Isa) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
        fn avx2<T: Real>(tree: &Tree, a: &mut Pass<T>, s: &mut Scratch) {
            // SAFETY: the features of this function are those that the token stands for.
            tree.pass_any(unsafe { super::eight::Avx2::new() }, a, s);
        }
        if isa.has_avx2() {
            // SAFETY: an Isa exists only where the CPU has it.
            return unsafe { avx2(tree, a, s) };
        }
    }
    let _ = isa;
    tree.pass_any(super::eight::Portable, a, s);
}

/// Numbers of the bits of a byte, the lowest first.
const BITS: [[u8; 8]; 256] = {
    let mut bits = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut len) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                bits[byte][len] = bit;
                len += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    bits
};

/// The first places of a block's eights, in each byte.
const FIRSTS: [u64; BLOCK / 8] = {
    let mut firsts = [0; BLOCK / 8];
    let mut e = 0;
    while e < firsts.len() {
        firsts[e] = 8 * e as u64 * 0x0101_0101_0101_0101;
        e += 1;
    }
    firsts
};

impl Tree {
    #[inline(always)]
    fn pass_any<V: Eight, T: Real>(&self, v: V, a: &mut Pass<T>, s: &mut Scratch) {
        match self.d() {
            2 => self.pass_in::<V, T, 2>(v, a, s),
            4 => self.pass_in::<V, T, 4>(v, a, s),
            8 => self.pass_in::<V, T, 8>(v, a, s),
            16 => self.pass_in::<V, T, 16>(v, a, s),
            _ => self.pass_in::<V, T, 0>(v, a, s),
        }
    }

    #[inline(always)]
    fn pass_in<V: Eight, T: Real, const D: usize>(&self, v: V, a: &mut Pass<T>, s: &mut Scratch) {
        for first in (0..a.new.len()).step_by(BLOCK) {
            match a.drift {
                None => self.first_block::<V, T, D>(v, a, first, s),
                Some(drift) => self.next_block::<V, T, D>(v, a, drift, first, s),
            }
        }
    }

    /// T of some points, as [`Tree::limit`].
    #[inline(always)]
    fn limits<V: Eight>(&self, v: V, squares: V::F, scores: V::F) -> V::F {
        v.add(scores, self.offs(v, squares, scores))
    }

    #[inline(always)]
    fn offs<V: Eight>(&self, v: V, squares: V::F, scores: V::F) -> V::F {
        let size = v.max(scores, v.sub(v.splat(0.0), scores));
        v.add(v.mul(v.splat(self.kappa), v.add(squares, size)), v.splat(self.tiny))
    }

    /// L of the least scores of tiles.
    #[inline(always)]
    fn bounds<V: Eight>(&self, v: V, squares: V::F, scores: V::F) -> V::F {
        let off = v.mul(v.splat(2.5), self.offs(v, squares, scores));
        let inside = v.sub(v.add(squares, v.add(scores, scores)), off);
        v.mul(v.sqrt(v.max(inside, v.splat(0.0))), v.splat(DOWN))
    }

    /// Scans all tiles for a block.
    #[inline(always)]
    fn first_block<V: Eight, T: Real, const D: usize>(&self, v: V, a: &mut Pass<T>, first: usize, s: &mut Scratch) {
        let d = if D > 0 { D } else { self.d() };
        let mut b = Block::NEW;
        let lower = &mut a.lower[first / BLOCK * self.tile_count() * SIXTEENS..][..self.tile_count() * SIXTEENS];
        for at in (0..BLOCK).step_by(POINTS) {
            turn::<D>(&a.placed[(first + at) * d..][..POINTS * d], d, &mut s.points);
            let squares = a.squares[first + at..][..POINTS].as_chunks::<8>().0;
            let mut least = Least::none();
            for tile in 0..self.tile_count() {
                let (halves, rows) = self.tile(tile);
                let lows = v.take_tile(&s.points, tile, halves, rows, &mut least);
                let lower = lower[tile * SIXTEENS..][..SIXTEENS].as_flattened_mut();
                for p in 0..VECTORS {
                    let bounds = self.bounds(v, v.load(&squares[p]), v.load(&lows.0[p]));
                    v.fixed(v.mul(bounds, v.splat(a.unit)), 0, &mut lower[at + 8 * p..][..8]);
                }
            }
            for p in 0..VECTORS {
                let limit = self.limits(v, v.load(&squares[p]), v.load(&least.scores.0[p]));
                v.store(limit, &mut b.limit.as_chunks_mut().0[at / 8 + p]);
            }
            for p in 0..POINTS {
                let (best, other, tile) = least.of(p);
                (b.best[at + p], b.other[at + p], b.tile[at + p]) = (best, other, tile as u8);
            }
        }
        self.decide::<V, T, D>(v, a, &b, first, s);
    }

    /// Scans for each point the tile of its codeword, whose bound is left as it is, then those
    /// that may hold a nearer one.
    #[inline(always)]
    fn next_block<V: Eight, T: Real, const D: usize>(
        &self,
        v: V,
        a: &mut Pass<T>,
        drift: &[u16],
        first: usize,
        s: &mut Scratch,
    ) {
        let d = if D > 0 { D } else { self.d() };
        let count = BLOCK.min(a.new.len() - first);
        let lower = &mut a.lower[first / BLOCK * self.tile_count() * SIXTEENS..][..self.tile_count() * SIXTEENS];
        let placed = &a.placed[first * d..][..PLACES * d];
        let mut squares = [0.0; PLACES];
        squares[..BLOCK].copy_from_slice(&a.squares[first..][..BLOCK]);
        let mut b = Block::NEW;
        for (tile, &code) in b.tile.iter_mut().zip(&a.old[first..][..count]) {
            *tile = self.tile_of(code) as u8;
        }
        let own = b.tile;
        let owns = own.map(u16::from);
        let mut reach = [0; PLACES];
        for e in 0..BLOCK / 8 {
            let mut scores = [v.splat(0.0); 8];
            for p in 0..8 {
                let at = 8 * e + p;
                scores[p] = self.scores::<V, D>(v, &placed[at * d..][..d], usize::from(own[at]));
            }
            let (least, square) = (v.leasts(scores), v.load(&squares.as_chunks().0[e]));
            let limit = self.limits(v, square, least);
            let far = v.sqrt(v.max(v.add(v.add(limit, limit), square), v.splat(0.0)));
            v.store(limit, &mut b.limit.as_chunks_mut().0[e]);
            v.store(least, &mut b.best.as_chunks_mut().0[e]);
            v.fixed(v.mul(v.mul(far, v.splat(UP)), v.splat(a.unit)), 1, &mut reach[8 * e..8 * (e + 1)]);
            for p in 0..8 {
                b.near[8 * e + p] = v.le(scores[p], v.splat(b.limit[8 * e + p])) as u8;
            }
        }
        let mut list = [0; PLACES + 8];
        let mut whole = [0xffff; BLOCK / 16];
        for (e, whole) in whole.iter_mut().enumerate() {
            *whole >>= 16 - count.saturating_sub(16 * e).min(16);
        }
        for (tile, &drift) in drift.iter().enumerate() {
            let lower = &mut lower[tile * SIXTEENS..][..SIXTEENS];
            let mut len = 0;
            let points = lower[..BLOCK / 16].iter().zip(reach.as_chunks().0).zip(owns.as_chunks().0);
            for (e, ((lower, reach), own)) in points.enumerate() {
                let mask = v.within(lower, drift, reach, own, tile as u16) & whole[e];
                for (half, mask) in [mask & 255, mask >> 8].into_iter().enumerate() {
                    // Appends without a branch. What is masked is below 256 anyway: nothing is checked.
                    let eight = u64::from_le_bytes(BITS[mask as usize & 255]).wrapping_add(FIRSTS[2 * e + half]);
                    list[len & 255..(len & 255) + 8].copy_from_slice(&eight.to_le_bytes());
                    len = len.wrapping_add(mask.count_ones() as usize);
                }
            }
            list[len..len + 8].fill(BLOCK as u8);
            let lower = lower.as_flattened_mut();
            let (halves, rows) = self.tile(tile);
            let rows = &rows[..d];
            for at in &list.as_chunks::<8>().0[..len.div_ceil(8)] {
                let (mut square, mut limit) = ([0.0; 8], [0.0; 8]);
                let mut scores = [v.load(halves); 8];
                for half in 0..2 {
                    let mut x = [&placed[..d]; 4];
                    for p in 0..4 {
                        let at = usize::from(at[4 * half + p]);
                        x[p] = &placed[at * d..][..d];
                        (square[4 * half + p], limit[4 * half + p]) = (squares[at], b.limit[at]);
                    }
                    for j in 0..d {
                        let row = v.load(&rows[j]);
                        for p in 0..4 {
                            scores[4 * half + p] = v.mul_add(v.splat(x[p][j]), row, scores[4 * half + p]);
                        }
                    }
                }
                let least = v.leasts(scores);
                let bound = self.bounds(v, v.load(&square), least);
                let mut new = [0; 8];
                v.fixed(v.mul(bound, v.splat(a.unit)), drift, &mut new);
                for p in 0..8 {
                    lower[usize::from(at[p])] = new[p];
                }
                let mut near = v.le(least, v.load(&limit));
                if near != 0 {
                    let mut lows = [0.0; 8];
                    v.store(least, &mut lows);
                    while near != 0 {
                        let p = near.trailing_zeros() as usize % 8;
                        near &= near - 1;
                        let (low, at) = (lows[p], usize::from(at[p]));
                        let best = b.best[at];
                        b.other[at] = b.other[at].min(low.max(best));
                        if low < best {
                            (b.best[at], b.tile[at], b.near[at]) = (low, tile as u8, 0);
                            b.limit[at] = self.limit(squares[at], low);
                        }
                    }
                }
            }
        }
        self.decide::<V, T, D>(v, a, &b, first, s);
    }

    /// The nearest codewords of a block's points.
    #[inline(always)]
    fn decide<V: Eight, T: Real, const D: usize>(
        &self,
        v: V,
        a: &mut Pass<T>,
        b: &Block,
        first: usize,
        s: &mut Scratch,
    ) {
        let d = if D > 0 { D } else { self.d() };
        let count = BLOCK.min(a.new.len() - first);
        for p in 0..count {
            let (x, tile) = (&a.placed[(first + p) * d..][..d], usize::from(b.tile[p]));
            let limit = b.limit[p];
            let mut near = u32::from(b.near[p]);
            if near == 0 {
                near = v.le(self.scores::<V, D>(v, x, tile), v.splat(limit));
            }
            if near.is_power_of_two() && b.other[p] > limit {
                a.new[first + p] = self.code_of(8 * tile as u32 + near.trailing_zeros());
            } else {
                self.settle::<V, T, D>(v, a, b.best[p], first, p, s);
            }
        }
    }

    /// Asks the definition about the codewords within the bounds.
    #[inline(always)]
    fn settle<V: Eight, T: Real, const D: usize>(
        &self,
        v: V,
        a: &mut Pass<T>,
        best: f32,
        first: usize,
        p: usize,
        s: &mut Scratch,
    ) {
        let (d, i) = (self.d(), first + p);
        let mut q = Query::new(&a.placed[i * d..][..d], a.squares[i]);
        q.found(self, best);
        let reach = ((q.reach.max(0.0).sqrt() * UP * a.unit) as u16).saturating_add(1);
        let lower = &a.lower[first / BLOCK * self.tile_count() * SIXTEENS..][..self.tile_count() * SIXTEENS];
        s.kept.clear();
        for (tile, lower) in lower.chunks_exact(SIXTEENS).enumerate() {
            if lower[p / 16][p % 16].saturating_sub(a.drift.map_or(0, |drift| drift[tile])) <= reach {
                self.scan::<V, D>(v, &mut q, tile, s);
            }
        }
        s.kept.retain(|&(score, _)| score <= q.limit);
        let mut found = [(0.0, 0)];
        let among = s.kept.iter().map(|&(_, slot)| self.code_of(slot));
        scalar::nearest(&a.x[i * d..][..d], a.codebook, among, &mut found);
        a.new[i] = found[0].1;
    }
}
