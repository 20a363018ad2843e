//! Lloyd's iterations keep for each point how near the codewords of each tile
//! can be, so that an iteration scans the tiles that may hold the nearest one
//! and passes over the others (Elkan 2003 with groups: Ding et al. 2015).
//!
//! With the errors of `tree.rs`, a tile whose least computed score is s has no
//! codeword nearer than `L = √(X² + 2 s - 2.5 κ (X² + |s|))`. When codewords
//! move, by at most Δ in this tile, `L - Δ` holds; so that a pass need not write
//! it, `L + D` is kept, where D is the sum of the tile's Δ until then, and the sum
//! until now taken off. The nearest codeword is at most `√(2 T + X²)` away, so a
//! tile with a larger bound is out, whatever its scores. Each step is rounded so
//! that it errs towards scanning.

use super::eight::Eight;
use super::scalar::{self, Real};
use super::tree::{Frame, Query, Scratch, Tree};
use crate::error::{Result, try_zeroed};
use crate::par::Parts;
use crate::{Ctl, Isa};

/// Tiles that bounds are kept for: with more, boxes around tiles are faster, and smaller.
const MOST: usize = 64;
/// Points whose masks are made before the first of them is followed.
const BATCH: usize = 64;
/// What makes up for some roundings.
const DOWN: f32 = 1.0 - 4.0 * f32::EPSILON;
const UP: f32 = 1.0 + 4.0 * f32::EPSILON;

/// The points of a k-means, and their bounds.
pub(super) struct Bounds {
    /// The codeword in each slot of the trees.
    order: Vec<u32>,
    /// Eights of tiles.
    eights: usize,
    placed: Vec<f32>,
    squares: Vec<f32>,
    /// L + D of each point and tile.
    lower: Vec<[f32; 8]>,
    /// D: how far the codewords of each tile have moved in all; none before the first pass.
    drift: Option<Vec<[f32; 8]>>,
}

impl Bounds {
    /// For `x`, which starts from `codebook`; `None` where bounds do not pay.
    pub(super) fn new<T: Real>(x: &[T], codebook: &[T], d: usize, frame: &Frame, ctl: &Ctl) -> Result<Option<Bounds>> {
        let (n, tiles) = (x.len() / d, (codebook.len() / d).div_ceil(8));
        let tree = Tree::new(codebook, d, frame)?;
        let eights = tiles.div_ceil(8);
        let Some(size) = n.checked_mul(eights).filter(|_| tiles <= MOST && tree.sound()) else { return Ok(None) };
        // Who has no memory for them goes on without.
        let Ok(lower) = try_zeroed(size) else { return Ok(None) };
        let (mut placed, mut squares) = (try_zeroed(x.len())?, try_zeroed(n)?);
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
        Ok(Some(Bounds { order: tree.order().to_vec(), eights, placed, squares, lower, drift: None }))
    }

    /// Codewords in the tiles that the bounds speak of.
    pub(super) fn tree<T: Real>(&self, codebook: &[T], d: usize, frame: &Frame) -> Result<Tree> {
        Tree::ordered(codebook, d, frame, Some(&self.order))
    }

    /// Takes note that codewords have moved.
    pub(super) fn moved<T: Real>(&mut self, old: &[T], new: &[T], d: usize, frame: &Frame) -> Result<()> {
        let mut step: Vec<[f32; 8]> = try_zeroed(self.eights)?;
        for (slot, &code) in self.order.iter().enumerate() {
            let at = code as usize * d;
            let far = (frame.apart(&old[at..][..d], &new[at..][..d]) as f32 + 1e-30) * UP;
            let most = &mut step[slot / 64][slot / 8 % 8];
            *most = most.max(far);
        }
        if let Some(drift) = &self.drift {
            for (step, sum) in step.as_flattened_mut().iter_mut().zip(drift.as_flattened()) {
                *step = (*step + sum) * UP;
            }
        }
        self.drift = Some(step);
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
        let (d, eights) = (tree.d(), self.eights);
        let moved = std::sync::atomic::AtomicBool::new(self.drift.is_none());
        let tasks = Parts::new(new.chunks_mut(block).zip(self.lower.chunks_mut(block * eights)));
        let (placed, squares, drift) = (&self.placed[..], &self.squares[..], self.drift.as_deref());
        ctl.for_each(tasks.len(), &|slot, task| {
            let (new, lower) = tasks.take(task);
            let (first, n) = (task * block, new.len());
            let mut a = Pass {
                codebook,
                x: &x[first * d..][..n * d],
                placed: &placed[first * d..][..n * d],
                squares: &squares[first..][..n],
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

/// A task of a pass.
struct Pass<'a, T> {
    codebook: &'a [T],
    x: &'a [T],
    placed: &'a [f32],
    squares: &'a [f32],
    drift: Option<&'a [[f32; 8]]>,
    lower: &'a mut [[f32; 8]],
    old: &'a [u32],
    new: &'a mut [u32],
}

fn pass<T: Real>(tree: &Tree, a: &mut Pass<T>, s: &mut Scratch, isa: Isa) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,bmi1,bmi2")]
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
        let n = a.new.len();
        match a.drift {
            None => {
                for first in (0..n).step_by(4) {
                    self.first_four::<V, T, D>(v, a, first, (n - first).min(4), s);
                }
            }
            Some(drift) => {
                for first in (0..n).step_by(BATCH) {
                    self.batch::<V, T, D>(v, a, drift, first, (n - first).min(BATCH), s);
                }
            }
        }
    }

    /// L of the least score of a tile.
    #[inline(always)]
    fn bound(&self, square: f32, score: f32) -> f32 {
        let off = self.kappa * (square + score.abs()) + self.tiny;
        (square + 2.0 * score - 2.5 * off).max(0.0).sqrt() * DOWN
    }

    /// Scans all tiles for up to four points.
    #[inline(always)]
    fn first_four<V: Eight, T: Real, const D: usize>(
        &self,
        v: V,
        a: &mut Pass<T>,
        first: usize,
        count: usize,
        s: &mut Scratch,
    ) {
        let d = if D > 0 { D } else { self.d() };
        let tiles = self.tile_count();
        let eights = a.lower.len() / a.new.len();
        let at = |p: usize| first + p.min(count - 1);
        let x: [&[f32]; 4] = std::array::from_fn(|p| &a.placed[at(p) * d..][..d]);
        let infinite = v.splat(f32::INFINITY);
        for eight in 0..eights {
            let mut all = [[infinite; 8]; 4];
            for pair in 0..4 {
                let tile = 8 * eight + 2 * pair;
                if tile >= tiles {
                    break;
                }
                // The last tile twice where it is alone.
                let acc = self.two_by_four::<V, D>(v, x, tile, (tile + 1).min(tiles - 1));
                for p in 0..4 {
                    all[p][2 * pair] = acc[p][0];
                    if tile + 1 < tiles {
                        all[p][2 * pair + 1] = acc[p][1];
                    }
                }
            }
            for p in 0..count {
                v.store(v.leasts(all[p]), &mut a.lower[(first + p) * eights + eight]);
            }
        }
        let zero = v.splat(0.0);
        for p in 0..count {
            let i = first + p;
            let square = a.squares[i];
            let lower = &mut a.lower[i * eights..][..eights];
            let mut q = Query::new(x[p], square);
            let mut low = infinite;
            for lower in &*lower {
                low = v.min(v.load(lower), low);
            }
            q.found(self, v.least(low));
            s.kept.clear();
            for (eight, lower) in lower.iter_mut().enumerate() {
                let scores = v.load(lower);
                let mut mask = v.le(scores, v.splat(q.limit));
                while mask != 0 {
                    let tile = 8 * eight + mask.trailing_zeros() as usize;
                    mask &= mask - 1;
                    self.scan::<V, D>(v, &mut q, tile, s);
                }
                // As `bound`.
                let size = v.max(scores, v.sub(zero, scores));
                let off =
                    v.mul_add(v.splat(-2.5 * self.kappa), size, v.splat(-2.5 * (self.kappa * square + self.tiny)));
                let inside = v.mul_add(v.splat(2.0), scores, v.splat(square));
                let bound = v.sqrt(v.max(v.mul_add(v.splat(1.0), off, inside), zero));
                v.store(v.mul_add(bound, v.splat(DOWN), zero), lower);
            }
            // Of slots that are empty the scores are infinite, and their bounds NaN.
            for tile in tiles..8 * eights {
                lower[tile / 8][tile % 8] = f32::INFINITY;
            }
            a.new[i] = self.decide(a, i, q.limit, s);
        }
    }

    /// Compares the bounds of some points, then scans the tiles that may hold the nearest codewords.
    #[inline(always)]
    fn batch<V: Eight, T: Real, const D: usize>(
        &self,
        v: V,
        a: &mut Pass<T>,
        drift: &[[f32; 8]],
        first: usize,
        count: usize,
        s: &mut Scratch,
    ) {
        let d = if D > 0 { D } else { self.d() };
        let eights = drift.len();
        // No branches here, so that the processor overlaps the points.
        let mut marks = [(0.0f32, 0u32, 0u64); BATCH];
        for (p, mark) in marks[..count].iter_mut().enumerate() {
            let i = first + p;
            let x = &a.placed[i * d..][..d];
            let mut q = Query::new(x, a.squares[i]);
            let own = self.tile_of(a.old[i]);
            let scores = self.scores::<V, D>(v, x, own);
            let least = v.least(scores);
            q.found(self, least);
            let near = v.le(scores, v.splat(q.limit));
            let reach = v.splat(q.reach.max(0.0).sqrt() * UP);
            let lower = &mut a.lower[i * eights..][..eights];
            let mut mask = 0;
            for (e, (lower, drift)) in lower.iter().zip(drift).enumerate() {
                mask |= u64::from(v.le(v.sub(v.load(lower), v.load(drift)), reach)) << (8 * e);
            }
            lower[own / 8][own % 8] = (self.bound(q.square, least) + drift[own / 8][own % 8]) * DOWN;
            // Two that may be nearest: the top bit, which no slot needs.
            let slot = 8 * own as u32 + near.trailing_zeros().min(7);
            *mark = (least, slot | u32::from(near & near.wrapping_sub(1) != 0) << 31, mask & !(1 << own));
        }
        for (p, &(least, slot, mut mask)) in marks[..count].iter().enumerate() {
            let i = first + p;
            if mask == 0 && slot >> 31 == 0 {
                a.new[i] = self.code_of(slot);
                continue;
            }
            let x = &a.placed[i * d..][..d];
            let square = a.squares[i];
            let mut q = Query::new(x, square);
            q.found(self, least);
            s.kept.clear();
            if slot >> 31 == 0 {
                s.kept.push((least, slot));
            } else {
                let own = (slot & !(1 << 31)) as usize / 8;
                self.keep(v, &mut q, self.scores::<V, D>(v, x, own), own, s);
            }
            while mask != 0 {
                let tile = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let scores = self.scores::<V, D>(v, x, tile);
                let least = v.least(scores);
                a.lower[i * eights + tile / 8][tile % 8] =
                    (self.bound(square, least) + drift[tile / 8][tile % 8]) * DOWN;
                if least <= q.limit {
                    self.keep(v, &mut q, scores, tile, s);
                }
            }
            a.new[i] = self.decide(a, i, q.limit, s);
        }
    }

    /// The nearest of those kept.
    #[inline(always)]
    fn decide<T: Real>(&self, a: &Pass<T>, i: usize, limit: f32, s: &mut Scratch) -> u32 {
        if s.kept.len() > 1 {
            s.kept.retain(|&(score, _)| score <= limit);
        }
        if let [(_, slot)] = s.kept[..] {
            return self.code_of(slot);
        }
        let d = self.d();
        let mut found = [(0.0, 0)];
        let among = s.kept.iter().map(|&(_, slot)| self.code_of(slot));
        scalar::nearest(&a.x[i * d..][..d], a.codebook, among, &mut found);
        found[0].1
    }
}
