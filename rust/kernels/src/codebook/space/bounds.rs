//! Lloyd's iterations keep for each point how near the codewords of each tile
//! can be, so that an iteration scans the tiles that may hold the nearest one
//! and passes over the others (Elkan 2003 with groups: Ding et al. 2015).
//!
//! # What is computed, and how far it can be off
//!
//! Points and codewords are rounded to 16 bits, `g = GRID / R` units of 1 for the longest point's R: a mean of points is
//! longer by what float64 rounds alone, and [`Bounds::tree`] says where that is too much. A point and a codeword each move by at most `0.51 √d` units (a half, and float32's own), so that
//! distances are off by at most `E = 1.02 √d`. Between what is rounded they are exact: `t = ⌈|x|²/2⌉ + s` is a whole
//! number of at least 0, where s is the score `⌊|c|²/2⌋ - x·c`, and the squared distance is within 1 of `2 t`. So
//! a codeword is at least `√(2 t) - 0.5 - E` away and at most `√(2 t) + 1 + E`, and one at most D away is nearer than
//! all whose `2 t` is above `(D + E)² + 1`.
//!
//! Of each point one codeword is known, its own: that of the pass before. The lower bound of each tile speaks of its
//! other codewords. When codewords move, by at most Δ in this tile, `L - Δ` holds; so that a pass need not write
//! it, `L + D` is kept, where D is the sum of the tile's Δ until then, and the sum until now taken off. A tile whose
//! bound is beyond the own codeword is out. Distances here are whole numbers of a unit, up to 65,535 for all that
//! are as far; each step is rounded so that it errs towards scanning.
//!
//! A pass takes a block of points tile by tile: it lists the points that the tile may matter to, and scans it for
//! sixteen of the list at a time. So no branch depends on a single point, but where a codeword other than the own one
//! may be nearest: `settle` looks for it in float32.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::eight::Eight;
use super::rough::packed;
use super::scalar::{self, Real};
use super::sixteen::{BLOCK, Quad, Sixteen};
use super::tree::{Frame, Query, Scratch, Tree};
use crate::error::{Result, try_zeroed};
use crate::par::Parts;
use crate::{Ctl, Isa, lanes};

/// Tiles of eight that bounds are kept for: with more, boxes around tiles are faster, and smaller.
const MOST: usize = 256;
/// Bytes that bounds, and points beside them, may take.
const ROOM: usize = 1 << 30;
/// The longest point: its coordinates fit 16 bits, half the square of twice as much 32, and what is longer by [`LONGER`].
const GRID: f32 = 32_000.0;
const LONGER: f32 = 1.01;
/// The distance that bounds tell apart, in those of points from their codewords.
const RANGE: f32 = 16.0;
/// How often E is in a distance of points from their codewords where integers tell enough apart.
const FINE: f32 = 8.0;
/// More than any score, as that of an empty slot; `|x|²/2` more fits 32 bits.
const EMPTY: i32 = 1_600_000_000;
/// What makes up for some roundings.
const DOWN: f32 = 1.0 - 4.0 * f32::EPSILON;
const UP: f32 = 1.0 + 4.0 * f32::EPSILON;

/// The points of a k-means, and their bounds.
pub(super) struct Bounds {
    isa: Isa,
    d: usize,
    /// The codeword in each slot of the trees.
    order: Vec<u32>,
    /// Codewords of a tile here.
    width: usize,
    tiles: usize,
    /// Units of 1, in coordinates and in distances.
    grid: f32,
    unit: f32,
    /// The longest point or codeword.
    longest: f32,
    /// Points of whole blocks, as float32, and rounded, of a block quad by quad; `⌈|x|²/2⌉` of those.
    placed: Vec<f32>,
    quads: Vec<Quad>,
    squares: Vec<i32>,
    /// The slot of each point's own codeword.
    own: Vec<u16>,
    /// L + D of each block, tile and place.
    lower: Vec<u16>,
    /// D: how far the codewords of each tile have moved in all; none before the first pass.
    drift: Option<Vec<u16>>,
    /// The codewords, rounded, quad by quad and slot by slot; `⌊|c|²/2⌋` of those.
    codewords: Vec<Quad>,
    rows: Vec<i32>,
    halves: Vec<i32>,
}

impl Bounds {
    /// For `x`, which starts from `codebook`; `None` where bounds do not pay.
    pub(super) fn new<T: Real>(
        x: &[T],
        codebook: &[T],
        d: usize,
        frame: &Frame,
        isa: Isa,
        ctl: &Ctl,
    ) -> Result<Option<Bounds>> {
        let n = x.len() / d;
        let width = width(isa);
        let tiles = (codebook.len() / d).div_ceil(width);
        let tree = Tree::new(codebook, d, frame)?;
        let (blocks, quads) = (n.div_ceil(BLOCK), d.div_ceil(8));
        let padded = blocks * BLOCK;
        let bytes = size_of::<u16>() * (tiles + 1) + size_of::<f32>() * (d + 1) + size_of::<Quad>() * quads;
        let room = padded.checked_mul(bytes).is_some_and(|bytes| bytes <= ROOM);
        if tree.tile_count() > MOST || !room || !tree.sound() {
            return Ok(None);
        }
        // Who has no memory for them goes on without.
        let (Ok(lower), Ok(own), Ok(mut placed), Ok(mut points), Ok(mut squares)) = (
            try_zeroed(padded * tiles),
            try_zeroed(padded),
            try_zeroed(padded * d),
            try_zeroed::<Quad>(padded * quads),
            try_zeroed(padded),
        ) else {
            return Ok(None);
        };
        let mut most = vec![tree.longest() * tree.longest(); blocks];
        let parts = Parts::new(placed.chunks_mut(BLOCK * d).zip(&mut most).zip(x.chunks(BLOCK * d)));
        ctl.for_each(parts.len(), &|_, task| {
            let ((placed, most), x) = parts.take(task);
            for (x, placed) in x.chunks_exact(d).zip(placed.chunks_exact_mut(d)) {
                *most = most.max(frame.place(x, placed));
            }
        })?;
        let most = most.into_iter().fold(0.0, f32::max);
        let typical = typical(x, codebook, d, frame);
        let longest = most.sqrt() * UP;
        let grid = GRID / longest;
        // Where points are nearer than integers tell apart, floats do.
        if !tree.covers(most) || longest <= 1e-10 || typical * grid < FINE * off(d) {
            return Ok(None);
        }
        let parts = points.chunks_mut(BLOCK * quads).zip(squares.chunks_mut(BLOCK));
        let parts = Parts::new(parts.zip(placed.chunks(BLOCK * d)));
        ctl.for_each(parts.len(), &|_, task| {
            let ((to, squares), placed) = parts.take(task);
            for (place, (x, square)) in placed.chunks_exact(d).zip(squares).enumerate() {
                for (quad, x) in x.chunks(8).enumerate() {
                    to[quad * BLOCK + place] = rounded(x, grid);
                    *square += product(to[quad * BLOCK + place], to[quad * BLOCK + place]);
                }
                *square = (*square + 1) / 2;
            }
        })?;
        let unit = f32::from(u16::MAX) / (RANGE * typical);
        let slots = tiles * width;
        Ok(Some(Bounds {
            isa,
            d,
            order: tree.order().to_vec(),
            width,
            tiles,
            grid,
            unit,
            longest,
            placed,
            quads: points,
            squares,
            own,
            lower,
            drift: None,
            codewords: try_zeroed(slots * quads)?,
            rows: try_zeroed(slots * d.div_ceil(2))?,
            halves: try_zeroed(slots)?,
        }))
    }

    /// Takes note that codewords have moved.
    pub(super) fn moved<T: Real>(&mut self, old: &[T], new: &[T], d: usize, frame: &Frame) -> Result<()> {
        let mut step: Vec<f32> = try_zeroed(self.tiles)?;
        for (slot, &code) in self.order.iter().enumerate() {
            let at = code as usize * d;
            let far = (frame.apart(&old[at..][..d], &new[at..][..d]) as f32 + 1e-30) * UP;
            let most = &mut step[slot / self.width];
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

    /// Codewords in the tiles that the bounds speak of; `None` where integers do not hold them.
    pub(super) fn tree<T: Real>(&self, codebook: &[T], frame: &Frame) -> Result<Option<Tree>> {
        let tree = Tree::ordered(codebook, self.d, frame, Some(&self.order))?;
        let holds = tree.sound() && tree.longest() <= LONGER * self.longest;
        Ok(holds.then_some(tree))
    }

    /// The nearest codeword of each point, in a tree of [`Bounds::tree`]. `codes` are those of the pass before, unless `rewrite`.
    pub(super) fn pass<T: Real>(
        &mut self,
        tree: &Tree,
        x: &[T],
        codebook: &[T],
        codes: &mut [u32],
        rewrite: bool,
        slots: &super::Slots,
        ctl: &Ctl,
    ) -> Result<Passed> {
        let d = self.d;
        self.take(tree);
        let no_drift = vec![0; self.tiles];
        let all = All {
            tree,
            d,
            tiles: self.tiles,
            first: self.drift.is_none(),
            drift: self.drift.as_deref().unwrap_or(&no_drift),
            scale: self.unit / self.grid,
            off: off(d),
            codewords: &self.codewords,
            rows: &self.rows,
            halves: &self.halves,
        };
        let (isa, rewrite) = (self.isa, rewrite || self.drift.is_none());
        let (moved, doubts) = (AtomicBool::new(false), AtomicUsize::new(0));
        let quads = d.div_ceil(8);
        // Blocks of a task.
        let some = (super::block(codebook.len() / d, d) / BLOCK).max(1);
        let of_blocks = self.lower.chunks_mut(some * BLOCK * self.tiles).zip(self.own.chunks_mut(some * BLOCK));
        let tasks = Parts::new(codes.chunks_mut(some * BLOCK).zip(of_blocks));
        let (placed, squares, points) = (&self.placed[..], &self.squares[..], &self.quads[..]);
        ctl.for_each(tasks.len(), &|slot, task| {
            let (codes, (lower, own)) = tasks.take(task);
            slots.with(slot, |slot| {
                for (i, codes) in codes.chunks_mut(BLOCK).enumerate() {
                    let first = (task * some + i) * BLOCK;
                    let mut block = Block {
                        placed: &placed[first * d..][..BLOCK * d],
                        squares: &squares[first..][..BLOCK],
                        points: &points[first * quads..][..BLOCK * quads],
                        codes,
                        own: &mut own[i * BLOCK..][..BLOCK],
                        lower: &mut lower[i * BLOCK * all.tiles..][..BLOCK * all.tiles],
                        moved: false,
                        doubts: 0,
                        ask: &mut |place, among| {
                            let at = first + place;
                            let mut found = [(0.0, 0)];
                            let codes = among.iter().map(|&(_, slot)| tree.code_of(slot));
                            scalar::nearest(&x[at * d..][..d], codebook, codes, &mut found);
                            tree.slot_of(found[0].1)
                        },
                    };
                    pass(&all, &mut block, &mut slot.scratch, isa);
                    if rewrite {
                        for (code, &own) in block.codes.iter_mut().zip(block.own.iter()) {
                            let new = tree.code_of(own.into());
                            block.moved |= new != *code;
                            *code = new;
                        }
                    }
                    moved.fetch_or(block.moved, Relaxed);
                    doubts.fetch_add(block.doubts, Relaxed);
                }
            });
        })?;
        Ok(Passed { moved: moved.into_inner(), unclear: doubts.into_inner() > x.len() / d / 4 })
    }

    /// Rounds the codewords.
    fn take(&mut self, tree: &Tree) {
        let (d, pairs, slots) = (self.d, self.d.div_ceil(2), self.halves.len());
        self.halves.fill(EMPTY);
        let mut c = vec![0.0; d];
        for slot in 0..self.order.len() {
            for (c, row) in c.iter_mut().zip(tree.tile(slot / 8).1) {
                *c = row[slot % 8];
            }
            let mut square = 0;
            for (i, c) in c.chunks(8).enumerate() {
                let quad = rounded(c, self.grid);
                square += product(quad, quad);
                self.codewords[i * slots + slot] = quad;
                let row = &mut self.rows[slot * pairs..][..pairs][4 * i..];
                row.iter_mut().zip(quad).for_each(|(row, quad)| *row = quad);
            }
            self.halves[slot] = square / 2;
        }
    }
}

/// What a pass was like.
pub(super) struct Passed {
    /// Whether a point has another codeword than before.
    pub(super) moved: bool,
    /// Whether integers were too coarse for many of the points: time to go on without bounds.
    pub(super) unclear: bool,
}

/// E: what distances are off.
fn off(d: usize) -> f32 {
    1.02 * (d as f32).sqrt()
}

/// The sum of the products of coordinates.
fn product(a: Quad, b: Quad) -> i32 {
    let low = |x: i32| i32::from(x as i16);
    a.into_iter().zip(b).fold(0, |sum, (a, b)| sum + low(a) * low(b) + (a >> 16) * (b >> 16))
}

/// Up to eight coordinates.
fn rounded(x: &[f32], grid: f32) -> Quad {
    let mut quad = [0; 4];
    for (quad, x) in quad.iter_mut().zip(x.chunks(2)) {
        *quad = packed(x[0] * grid, x.get(1).map_or(0.0, |x| x * grid));
    }
    quad
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

/// What all blocks of a pass share.
struct All<'a> {
    tree: &'a Tree,
    d: usize,
    tiles: usize,
    /// Whether there are no bounds yet.
    first: bool,
    drift: &'a [u16],
    /// What bounds count for each unit of coordinates.
    scale: f32,
    off: f32,
    codewords: &'a [Quad],
    rows: &'a [i32],
    halves: &'a [i32],
}

/// Points of a block.
struct Block<'a> {
    placed: &'a [f32],
    squares: &'a [i32],
    points: &'a [Quad],
    codes: &'a mut [u32],
    own: &'a mut [u16],
    lower: &'a mut [u16],
    moved: bool,
    /// Points that were looked at in float32 and kept their codewords.
    doubts: usize,
    /// Which slot of some has the nearest codeword to the point at a place.
    ask: &'a mut dyn FnMut(usize, &[(f32, u32)]) -> u32,
}

fn width(isa: Isa) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() {
        return lanes::Avx512::TILE;
    } else if isa.has_avx2() {
        return lanes::Avx2::TILE;
    }
    let _ = isa;
    lanes::Scalar::TILE
}

fn pass(all: &All, block: &mut Block, s: &mut Scratch, isa: Isa) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
        fn avx2(all: &All, block: &mut Block, s: &mut Scratch) {
            // SAFETY: the features of this function are those that the token stands for.
            all.pass(unsafe { lanes::Avx2::new() }, block, s);
        }
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn avx512(all: &All, block: &mut Block, s: &mut Scratch) {
            // SAFETY: the features of this function are those that the token stands for.
            all.pass(unsafe { lanes::Avx512::new() }, block, s);
        }
        if isa.has_avx512() {
            // SAFETY: an Isa exists only where the CPU has it.
            return unsafe { avx512(all, block, s) };
        } else if isa.has_avx2() {
            // SAFETY: an Isa exists only where the CPU has it.
            return unsafe { avx2(all, block, s) };
        }
    }
    let _ = isa;
    // A CPU without AVX2 is seldom met: one form of all dimensions does there.
    if cfg!(target_arch = "x86_64") {
        all.pass_in::<_, 0>(lanes::Scalar, block, s);
    } else {
        all.pass(lanes::Scalar, block, s);
    }
}

/// Points of a block, as scans know them.
struct Known {
    /// The highest score that is not ruled out, the slot of the own codeword, `|x|²/2`.
    quads: [Quad; BLOCK],
    /// How far the own codeword can be.
    reach: [u16; BLOCK],
    /// Bit t % 64: tile t may hold a nearer codeword, or one as near.
    tiles: [u64; BLOCK],
}

const NUMBERS: [i32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Sixteen places, one after the other.
fn run(first: usize) -> [u16; 16] {
    std::array::from_fn(|i| (first + i) as u16)
}

impl All<'_> {
    #[inline(always)]
    fn pass<W: Sixteen>(&self, w: W, b: &mut Block, s: &mut Scratch) {
        match self.d.div_ceil(2) {
            1 => self.pass_in::<W, 1>(w, b, s),
            2 => self.pass_in::<W, 2>(w, b, s),
            4 => self.pass_in::<W, 4>(w, b, s),
            8 => self.pass_in::<W, 8>(w, b, s),
            _ => self.pass_in::<W, 0>(w, b, s),
        }
    }

    #[inline(always)]
    fn pass_in<W: Sixteen, const PAIRS: usize>(&self, w: W, b: &mut Block, s: &mut Scratch) {
        let count = b.codes.len().next_multiple_of(32);
        if self.first {
            self.scan_all::<W, PAIRS>(w, b, count, s);
        }
        let mut known = Known { quads: [[0; 4]; BLOCK], reach: [0; BLOCK], tiles: [0; BLOCK] };
        self.know::<W, PAIRS>(w, b, count, &mut known, s);
        let near = self.scan_near::<W, PAIRS>(w, b, count, &mut known, s);
        for (word, mut near) in near.into_iter().enumerate() {
            while near != 0 {
                let place = 64 * word + near.trailing_zeros() as usize;
                near &= near - 1;
                if place < b.codes.len() {
                    self.settle(w.eight(), b, place, &known, s);
                }
            }
        }
    }

    /// The bounds of codewords with scores, given `|x|²/2`.
    #[inline(always)]
    fn bounds<W: Sixteen>(&self, w: W, squares: W::I, scores: W::I) -> W::I {
        w.root(w.add(squares, scores), -0.5 - self.off, self.scale * DOWN)
    }

    /// Points at some places, pair by pair.
    #[inline(always)]
    fn turn<'s, W: Sixteen, const PAIRS: usize>(
        &self,
        w: W,
        points: &[Quad],
        at: &[u16; 16],
        to: &'s mut [[i32; 16]],
    ) -> &'s [[i32; 16]] {
        let to = &mut to[..if PAIRS > 0 { PAIRS } else { self.d.div_ceil(2) }];
        for (points, to) in points.chunks_exact(BLOCK).zip(to.chunks_mut(4)) {
            let quad = w.gather(points, at);
            for (to, pair) in to.iter_mut().zip(quad) {
                w.store(pair, to);
            }
        }
        to
    }

    /// The codewords of a tile, four by four: `|c|²/2`, and the pairs of each.
    #[inline(always)]
    fn tile<W: Sixteen, const PAIRS: usize>(&self, tile: usize) -> impl Iterator<Item = (&[i32; 4], &[i32])> {
        let pairs = if PAIRS > 0 { PAIRS } else { self.d.div_ceil(2) };
        let rows = self.rows[tile * W::TILE * pairs..][..W::TILE * pairs].chunks_exact(4 * pairs);
        self.halves[tile * W::TILE..][..W::TILE].as_chunks().0.iter().zip(rows)
    }

    /// Scans all tiles of points without bounds: their nearest codewords become their own, as integers see it.
    #[inline(always)]
    fn scan_all<W: Sixteen, const PAIRS: usize>(&self, w: W, b: &mut Block, count: usize, s: &mut Scratch) {
        for first in (0..count).step_by(16) {
            let points = self.turn::<W, PAIRS>(w, b.points, &run(first), &mut s.turned);
            let squares = w.load(b.squares[first..].first_chunk().unwrap_or(&[0; 16]));
            let (mut best, mut own) = (w.splat(i32::MAX), w.splat(0));
            for tile in 0..self.tiles {
                let mut least = w.splat(i32::MAX);
                for (four, (halves, codewords)) in self.tile::<W, PAIRS>(tile).enumerate() {
                    let scores = w.scores(halves, points, codewords);
                    for i in 0..4 {
                        let slot = w.splat((tile * W::TILE + 4 * four + i) as i32);
                        own = w.where_less(scores[i], best, slot, own);
                        best = w.min(best, scores[i]);
                        least = w.min(least, scores[i]);
                    }
                }
                let bound = self.bounds(w, squares, least);
                b.lower[tile * BLOCK + first..][..16].copy_from_slice(&w.narrow(bound, 0));
            }
            b.own[first..][..16].copy_from_slice(&w.narrow(own, 0));
        }
    }

    /// The scores of the own codewords, and what they rule out.
    #[inline(always)]
    fn know<W: Sixteen, const PAIRS: usize>(&self, w: W, b: &Block, count: usize, known: &mut Known, s: &mut Scratch) {
        let slots = self.halves.len();
        for first in (0..count).step_by(16) {
            let (mut own, mut lanes, mut half) = ([0; 16], [0; 16], [0; 16]);
            for i in 0..16 {
                own[i] = b.own[first + i];
                lanes[i] = i32::from(b.own[first + i]);
                half[i] = self.halves[own[i] as usize];
            }
            let points = self.turn::<W, PAIRS>(w, b.points, &run(first), &mut s.turned);
            let mut score = w.load(&half);
            for (codewords, x) in self.codewords.chunks_exact(slots).zip(points.chunks(4)) {
                let c = w.gather(codewords, &own);
                for j in 0..x.len() {
                    score = w.dot(score, w.load(&x[j]), c[j]);
                }
            }
            let squares = w.load(b.squares[first..].first_chunk().unwrap_or(&[0; 16]));
            let own = w.add(squares, score);
            let reach = w.root(own, self.off + 1.0, self.scale * UP);
            known.reach[first..][..16].copy_from_slice(&w.narrow(reach, 1));
            let limit = w.half_square(own, 2.0 * self.off + 1.0);
            let elements = [w.sub(limit, squares), w.load(&lanes), squares, w.splat(0)];
            if let Some(quads) = known.quads[first..].first_chunk_mut() {
                w.quads(elements, quads);
            }
        }
    }

    /// Scans each tile for the points in reach. A bit of each place where another codeword may be nearest.
    #[inline(always)]
    fn scan_near<W: Sixteen, const PAIRS: usize>(
        &self,
        w: W,
        b: &mut Block,
        count: usize,
        known: &mut Known,
        s: &mut Scratch,
    ) -> [u64; BLOCK / 64] {
        let mut near = [0; BLOCK / 64];
        let mut list = [0; BLOCK + 16];
        for (tile, &drift) in self.drift.iter().enumerate() {
            let len = w.list(&b.lower[tile * BLOCK..][..count], drift, &known.reach[..count], &mut list);
            if len == 0 {
                continue;
            }
            // Whole sixteens: the last one again and again.
            let last = list[len - 1];
            list[len..len + 16].fill(last);
            let lower = &mut b.lower.as_chunks_mut::<BLOCK>().0[tile];
            for at in &list.as_chunks::<16>().0[..len.div_ceil(16)] {
                let points = self.turn::<W, PAIRS>(w, b.points, at, &mut s.turned);
                let [limit, own, squares, _] = w.gather(&known.quads, at);
                // Its place in this tile, if it is there.
                let own = w.add(own, w.splat(-((tile * W::TILE) as i32)));
                let mut least = w.splat(i32::MAX);
                for (four, (halves, codewords)) in self.tile::<W, PAIRS>(tile).enumerate() {
                    let scores = w.scores(halves, points, codewords);
                    for i in 0..4 {
                        least = w.min_unless(least, scores[i], own, w.splat(NUMBERS[4 * four + i]));
                    }
                }
                w.scatter(self.bounds(w, squares, least), drift, at, lower);
                let mut within = w.le(least, limit);
                while within != 0 {
                    let place = at[within.trailing_zeros() as usize % 16] as usize;
                    within &= within - 1;
                    near[place / 64] |= 1 << (place % 64);
                    known.tiles[place] |= 1 << (tile % 64);
                    lanes::prefetch_line(b.placed[place * self.d..].as_ptr().cast());
                }
            }
        }
        near
    }

    /// Finds the nearest codeword of a point among those in reach.
    #[inline(always)]
    fn settle<V: Eight>(&self, v: V, b: &mut Block, place: usize, known: &Known, s: &mut Scratch) {
        let own = u32::from(b.own[place]);
        let x = &b.placed[place * self.d..][..self.d];
        let mut q = Query::new(x, x.iter().fold(0.0, |sum, x| sum + x * x));
        s.kept.clear();
        let first = own as usize / 8;
        self.tree.scan::<V, 0>(v, &mut q, first, s);
        let eights = self.halves.len() / self.tiles / 8;
        let mut tiles = known.tiles[place];
        while tiles != 0 {
            for tile in (tiles.trailing_zeros() as usize..self.tiles).step_by(64) {
                for eight in tile * eights..((tile + 1) * eights).min(self.tree.tile_count()) {
                    if eight != first {
                        self.tree.scan::<V, 0>(v, &mut q, eight, s);
                    }
                }
            }
            tiles &= tiles - 1;
        }
        s.kept.retain(|&(score, _)| score <= q.limit);
        let new = match s.kept[..] {
            [(_, slot)] => slot,
            _ => (b.ask)(place, &s.kept),
        };
        if new == own {
            b.doubts += 1;
        } else {
            // The bound of the old one's tile has to speak of it now.
            let tile = own as usize * self.tiles / self.halves.len();
            let below = self.below(b, place, own).saturating_add(self.drift[tile]);
            let lower = &mut b.lower[tile * BLOCK + place];
            *lower = (*lower).min(below);
            b.own[place] = new as u16;
            // The code may be that of a codeword that was filled since.
            let code = self.tree.code_of(new);
            b.moved |= b.codes[place] != code;
            b.codes[place] = code;
        }
    }

    /// How near the codeword in a slot can be to a point.
    fn below(&self, b: &Block, place: usize, slot: u32) -> u16 {
        let mut half = b.squares[place] + self.halves[slot as usize];
        let slots = self.halves.len();
        for (points, codewords) in b.points.chunks_exact(BLOCK).zip(self.codewords.chunks_exact(slots)) {
            half += product(points[place], codewords[slot as usize]);
        }
        (((2.0 * half as f32).sqrt() - 0.5 - self.off) * (self.scale * DOWN)) as u16
    }
}
