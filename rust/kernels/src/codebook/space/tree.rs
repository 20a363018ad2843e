//! Codewords in tiles of eight, and boxes around tiles, around eight tiles, and
//! so on: the float32 side, which rules out what cannot be nearest.
//!
//! # What is computed, and how far it can be off
//!
//! Points and codewords are taken about a common centre and scaled by a power
//! of two (so that no square of a codeword over- or underflows), in float64, and
//! rounded to float32: x' and c'. A codeword's score is `|c|²/2 - x·c`, half the
//! squared distance less half of `|x|²`. With u = 2^-24, X = |x| and C = |c|,
//! the roundings of x', c', `|c|²/2` and of a chain of d products and d
//! additions put a score off by at most `κ (X² + C²)`, κ = 2.2 u (d + 4).
//!
//! Let b have the least score s. Codeword w can be nearest only if its exact
//! score is at most b's, so if its computed one is at most
//! `s + κ (2 X² + C_b² + C_w²)`; and `C² ≤ 2 X² + 2 |x-c|² = 4 X² + 4 s_c` bounds
//! both, so `T = s + 11 κ (X² + |s|)` does, the float64 roundings of the
//! definition included. For the same reasons a box with w in it has a computed
//! distance from x' of at most `2 T + X²`. What scores above T, and every box
//! beyond, is ruled out; the rest is asked of the definition.

use super::eight::Eight;
use super::rough::{self, Found, Pair, Rough};
use super::scalar::{self, Real};
use super::scan::{POINTS, Points, scan, turn_one};
use crate::Ctl;
use crate::error::{Result, try_zeroed};

/// More dimensions make the bound on errors useless.
const MAX_D: usize = 1 << 14;
/// Points that take more to come to magnitudes of 1 have squares that underflow
/// in float64, and the definition rounds by more than the bounds allow for.
const LEAST: f64 = f64::from_bits((1023 + 400) << 52);
/// What a scan of a single tile and a box test cost, in tiles of a scan of all, which
/// [`POINTS`] share and where nothing depends on what came before.
const SCAN_COST: usize = 10;
const TEST_COST: usize = 14;
/// What else a point of a scan of all tiles costs.
const FINISH_COST: usize = 10;
/// Points of a search that show whether boxes rule enough out.
const PROBE: usize = 16;

/// Where points and codewords are taken from: `(x - centre) * scale`.
pub(super) struct Frame {
    centre: Vec<f64>,
    scale: f64,
}

impl Frame {
    /// About the mean of `points`, to magnitudes of at most about 1.
    pub(super) fn of<T: Real>(points: &[T], d: usize, ctl: &Ctl) -> Result<Frame> {
        let mut centre: Vec<f64> = try_zeroed(d)?;
        let n = (points.len() / d) as f64;
        for points in points.chunks(d << 12) {
            for point in points.chunks_exact(d) {
                for (c, x) in centre.iter_mut().zip(point) {
                    *c += x.wide() / n;
                }
            }
            ctl.check()?;
        }
        let mut most = 0.0f64;
        for points in points.chunks(d << 12) {
            for point in points.chunks_exact(d) {
                for (c, x) in centre.iter().zip(point) {
                    most = most.max((x.wide() - c).abs());
                }
            }
            ctl.check()?;
        }
        let scale = if most > 0.0 { (-most.log2().ceil()).clamp(-1000.0, 1000.0).exp2() } else { 1.0 };
        Ok(Frame { centre, scale })
    }

    /// How far two codewords are from each other, as placed.
    pub(super) fn apart<T: Real>(&self, a: &[T], b: &[T]) -> f64 {
        let off = a.iter().zip(b).map(|(a, b)| (a.wide() - b.wide()) * self.scale);
        off.fold(0.0, |sum, off| sum + off * off).sqrt()
    }

    /// x' of one point, and X².
    #[inline(always)]
    pub(super) fn place<T: Real>(&self, x: &[T], out: &mut [f32]) -> f32 {
        let mut square = 0.0;
        for ((o, x), c) in out.iter_mut().zip(x).zip(&self.centre) {
            *o = ((x.wide() - c) * self.scale) as f32;
            square += *o * *o;
        }
        square
    }
}

/// Codewords, ordered so that neighbours share a tile.
pub(super) struct Tree {
    d: usize,
    k: usize,
    /// The codeword in each slot: slot 8 t + i is lane i of tile t.
    order: Vec<u32>,
    /// The slot of each codeword.
    slot: Vec<u32>,
    /// -c', tile by tile, in a tile dimension by dimension.
    tiles: Vec<[f32; 8]>,
    /// `|c|²/2`, infinite where a slot is empty.
    halves: Vec<[f32; 8]>,
    /// For each node of a level, dimension by dimension, the low and the high
    /// sides of its eight children's boxes. Level 0's children are tiles.
    levels: Vec<Vec<[[f32; 8]; 2]>>,
    pub(super) kappa: f32,
    pub(super) tiny: f32,
    /// Whether the bounds hold for these codewords.
    sound: bool,
    /// For scans of all tiles, where they are faster.
    rough: Option<Rough>,
}

/// What a search writes to; one for each thread.
pub(super) struct Scratch {
    /// Scores and slots of what was not ruled out when it was seen.
    pub(super) kept: Vec<(f32, u32)>,
    /// The least scores so far, ascending, when more than one is asked for.
    best: Vec<f32>,
    /// Points of a scan of all tiles.
    pub(super) points: Vec<Points>,
    scanned: usize,
    tested: usize,
    /// Points of a scan in integers, and those that are left to one in floats.
    pairs: Vec<Pair>,
    /// Points of a scan for bounds, pair by pair.
    pub(super) turned: Vec<[i32; 16]>,
    left: [u32; POINTS + rough::POINTS],
    left_count: usize,
}

impl Scratch {
    /// For searches in a codebook of `k` in `d` dimensions, of the `top` nearest.
    pub(super) fn new(k: usize, d: usize, top: usize) -> Result<Scratch> {
        let mut kept: Vec<(f32, u32)> = try_zeroed(k.next_multiple_of(8))?;
        kept.clear();
        let (points, pairs) = (try_zeroed(d)?, try_zeroed(d.div_ceil(2))?);
        let (turned, best, left) = (try_zeroed(d.div_ceil(2))?, try_zeroed(top)?, [0; _]);
        Ok(Scratch { kept, best, points, scanned: 0, tested: 0, pairs, turned, left, left_count: 0 })
    }

    /// Leaves a point to a scan in floats.
    #[inline(always)]
    fn leave(&mut self, i: usize) {
        self.left[self.left_count] = i as u32;
        self.left_count += 1;
    }
}

/// One point: its coordinates, the bound so far.
pub(super) struct Query<'a> {
    x: &'a [f32],
    pub(super) square: f32,
    /// The least score.
    best: f32,
    /// T.
    pub(super) limit: f32,
    /// 2 T + X².
    pub(super) reach: f32,
}

impl<'a> Query<'a> {
    #[inline(always)]
    pub(super) fn new(x: &'a [f32], square: f32) -> Self {
        Query { x, square, best: f32::INFINITY, limit: f32::INFINITY, reach: f32::INFINITY }
    }

    #[inline(always)]
    pub(super) fn found(&mut self, tree: &Tree, score: f32) {
        self.best = score;
        self.limit = tree.limit(self.square, score);
        self.reach = 2.0 * self.limit + self.square;
    }
}

impl Tree {
    pub(super) fn new<T: Real>(codebook: &[T], d: usize, frame: &Frame) -> Result<Tree> {
        Tree::ordered(codebook, d, frame, None)
    }

    /// With the slots that another tree has, of as many codewords.
    pub(super) fn ordered<T: Real>(codebook: &[T], d: usize, frame: &Frame, order: Option<&[u32]>) -> Result<Tree> {
        let k = codebook.len() / d;
        let tiles = k.div_ceil(8);
        let mut placed: Vec<f32> = try_zeroed(k * d)?;
        let mut half: Vec<f32> = try_zeroed(k)?;
        for ((p, c), h) in placed.chunks_exact_mut(d).zip(codebook.chunks_exact(d)).zip(&mut half) {
            frame.place(c, p);
            let exact = c.iter().zip(&frame.centre).map(|(c, m)| (c.wide() - m) * frame.scale);
            *h = (exact.fold(0.0, |sum, c| sum + c * c) / 2.0) as f32;
        }
        let sound = d <= MAX_D && frame.scale <= LEAST && half.iter().all(|&half| half < 1e30);
        let order = match order {
            Some(order) => order.to_vec(),
            None => {
                let mut order: Vec<u32> = (0..k as u32).collect();
                sort_into_tiles(&mut order, &placed, d);
                order
            }
        };
        let mut tree = Tree {
            d,
            k,
            slot: try_zeroed(k)?,
            tiles: try_zeroed(tiles * d)?,
            halves: try_zeroed(tiles)?,
            levels: Vec::new(),
            order,
            kappa: (11.0 * 2.2 * (d + 4) as f64 / f64::from(1 << 24)) as f32,
            tiny: (d + 1) as f32 * 1e-36,
            sound,
            rough: None,
        };
        tree.halves.fill([f32::INFINITY; 8]);
        let empty = [[f32::INFINITY; 8], [f32::NEG_INFINITY; 8]];
        let mut boxes = Vec::new();
        boxes.resize(tiles.div_ceil(8) * d, empty);
        for (slot, &code) in tree.order.iter().enumerate() {
            let (tile, lane) = (slot / 8, slot % 8);
            tree.slot[code as usize] = slot as u32;
            tree.halves[tile][lane] = half[code as usize];
            for j in 0..d {
                let c = placed[code as usize * d + j];
                tree.tiles[tile * d + j][lane] = -c;
                let [low, high] = &mut boxes[tile / 8 * d + j];
                low[tile % 8] = low[tile % 8].min(c);
                high[tile % 8] = high[tile % 8].max(c);
            }
        }
        tree.levels.push(boxes);
        while tree.levels[tree.levels.len() - 1].len() > d {
            let below = &tree.levels[tree.levels.len() - 1];
            let nodes = below.len() / d;
            let mut boxes = Vec::new();
            boxes.resize(nodes.div_ceil(8) * d, empty);
            for node in 0..nodes {
                for j in 0..d {
                    let [low, high] = &below[node * d + j];
                    let [l, h] = &mut boxes[node / 8 * d + j];
                    l[node % 8] = low.iter().copied().fold(f32::INFINITY, f32::min);
                    h[node % 8] = high.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                }
            }
            tree.levels.push(boxes);
        }
        Ok(tree)
    }

    /// The same, scanned in integers where `isa` is faster by them.
    pub(super) fn with_rough(mut self, isa: crate::Isa) -> Result<Tree> {
        if isa.has_avx512() {
            self.rough = Rough::of(&self, isa)?;
        }
        Ok(self)
    }

    /// T of a point of this X², from its least score.
    #[inline(always)]
    pub(super) fn limit(&self, square: f32, score: f32) -> f32 {
        score + (self.kappa * (square + score.abs()) + self.tiny)
    }

    pub(super) fn d(&self) -> usize {
        self.d
    }

    pub(super) fn sound(&self) -> bool {
        self.sound
    }

    /// The length of the longest codeword.
    pub(super) fn longest(&self) -> f32 {
        let halves = self.halves.as_flattened().iter().filter(|half| half.is_finite());
        halves.fold(0.0, |most, &half| most.max((2.0 * half).sqrt()))
    }

    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }

    pub(super) fn tile_count(&self) -> usize {
        self.halves.len()
    }

    /// `|c|²/2` of a tile's codewords, and -c', dimension by dimension.
    #[inline(always)]
    pub(super) fn tile(&self, tile: usize) -> (&[f32; 8], &[[f32; 8]]) {
        (&self.halves[tile], &self.tiles[tile * self.d..][..self.d])
    }

    #[inline(always)]
    pub(super) fn slot_of(&self, code: u32) -> u32 {
        self.slot[code as usize]
    }

    #[inline(always)]
    pub(super) fn code_of(&self, slot: u32) -> u32 {
        self.order[slot as usize]
    }

    /// Whether the bounds hold for a point of this X².
    pub(super) fn covers(&self, square: f32) -> bool {
        self.sound && square < 1e30
    }

    #[inline(always)]
    pub(super) fn scores<V: Eight, const D: usize>(&self, v: V, x: &[f32], tile: usize) -> V::F {
        let d = if D > 0 { D } else { self.d };
        let (x, rows) = (&x[..d], &self.tiles[tile * d..][..d]);
        let mut acc = v.load(&self.halves[tile]);
        for j in 0..d {
            acc = v.mul_add(v.splat(x[j]), v.load(&rows[j]), acc);
        }
        acc
    }

    /// Squared distances of a point from the boxes of a node's children.
    #[inline(always)]
    fn boxes<V: Eight, const D: usize>(&self, v: V, x: &[f32], level: usize, node: usize) -> V::F {
        let d = if D > 0 { D } else { self.d };
        let (x, sides) = (&x[..d], &self.levels[level][node * d..][..d]);
        let zero = v.splat(0.0);
        let mut acc = zero;
        for j in 0..d {
            let x = v.splat(x[j]);
            let off = v.max(v.sub(v.load(&sides[j][0]), x), v.sub(x, v.load(&sides[j][1])));
            let off = v.max(off, zero);
            acc = v.mul_add(off, off, acc);
        }
        acc
    }

    /// Children of a node of a level.
    #[inline(always)]
    fn children(&self, level: usize, node: usize) -> u32 {
        let all = if level == 0 { self.halves.len() } else { self.levels[level - 1].len() / self.d };
        (all - 8 * node).min(8) as u32
    }

    /// Scans one tile.
    #[inline(always)]
    pub(super) fn scan<V: Eight, const D: usize>(&self, v: V, q: &mut Query, tile: usize, s: &mut Scratch) {
        s.scanned += 1;
        let scores = self.scores::<V, D>(v, q.x, tile);
        if v.le(scores, v.splat(q.limit)) != 0 {
            self.keep(v, q, scores, tile, s);
        }
    }

    #[inline(always)]
    pub(super) fn keep<V: Eight>(&self, v: V, q: &mut Query, scores: V::F, tile: usize, s: &mut Scratch) {
        if s.best.len() == 1 {
            let least = v.least(scores);
            if least < q.best {
                q.found(self, least);
            }
        }
        let mut mask = v.le(scores, v.splat(q.limit));
        let mut lanes = [0.0; 8];
        v.store(scores, &mut lanes);
        while mask != 0 {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            let slot = 8 * tile + lane;
            if slot >= self.k {
                continue;
            }
            s.kept.push((lanes[lane], slot as u32));
            if s.best.len() > 1 {
                let mut at = s.best.len();
                while at > 0 && lanes[lane] < s.best[at - 1] {
                    at -= 1;
                }
                if at < s.best.len() {
                    s.best[at..].rotate_right(1);
                    s.best[at] = lanes[lane];
                    let last = s.best[s.best.len() - 1];
                    if last < f32::INFINITY {
                        q.found(self, last);
                    }
                }
            }
        }
    }

    /// Goes down into the boxes that are in reach, from a tile that may be near.
    #[inline(always)]
    fn descend<V: Eight, const D: usize>(&self, v: V, q: &mut Query, guess: Option<u32>, s: &mut Scratch) {
        let top = self.levels.len() - 1;
        let first = match guess {
            Some(code) => self.slot[code as usize] as usize / 8,
            None => {
                let mut node = 0;
                // Loops, here and below: closures would be compiled without the instruction set.
                for level in (0..=top).rev() {
                    s.tested += 1;
                    let all = self.boxes::<V, D>(v, q.x, level, node);
                    let mask = v.le(all, v.splat(v.least(all))) & ((1 << self.children(level, node)) - 1);
                    node = 8 * node + mask.trailing_zeros().min(7) as usize;
                }
                node
            }
        };
        self.scan::<V, D>(v, q, first, s);
        let mut above = [(0usize, 0u32); 24];
        let (mut level, mut node) = (top, 0);
        let mut mask = self.in_reach::<V, D>(v, q, level, node, s);
        loop {
            while mask == 0 {
                if level == top {
                    return;
                }
                level += 1;
                (node, mask) = above[level];
            }
            let child = 8 * node + mask.trailing_zeros() as usize;
            mask &= mask - 1;
            if level > 0 {
                above[level] = (node, mask);
                level -= 1;
                node = child;
                mask = self.in_reach::<V, D>(v, q, level, node, s);
            } else if child != first {
                self.scan::<V, D>(v, q, child, s);
            }
        }
    }

    #[inline(always)]
    fn in_reach<V: Eight, const D: usize>(&self, v: V, q: &Query, level: usize, node: usize, s: &mut Scratch) -> u32 {
        s.tested += 1;
        let all = self.boxes::<V, D>(v, q.x, level, node);
        v.le(all, v.splat(q.reach)) & ((1 << self.children(level, node)) - 1)
    }

    /// For each point, its nearest codewords to `found`: see [`search`].
    #[inline(always)]
    fn search_in<V: Eight, T: Real, const D: usize>(&self, v: V, a: &mut Search<T>, s: &mut Scratch) {
        let top = s.best.len();
        let n = a.squares.len();
        let d = self.d;
        (s.scanned, s.tested) = (0, 0);
        let mut i = 0;
        loop {
            if s.left_count >= POINTS || i == n {
                if s.left_count == 0 {
                    break;
                }
                self.scan_all::<V, T, D>(v, a, s);
                continue;
            }
            if !self.covers(a.squares[i]) {
                self.ask_all(a, i);
                i += 1;
                continue;
            }
            let seen = i.clamp(1, PROBE);
            // Tiles of a scan in integers cost half.
            let all = if self.rough.is_some() { self.halves.len() / 2 } else { self.halves.len() };
            let pays = SCAN_COST * s.scanned + TEST_COST * s.tested < (all + FINISH_COST) * seen;
            if i < PROBE || pays || top > 1 {
                let mut q = Query::new(&a.placed[i * d..][..d], a.squares[i]);
                s.best.fill(f32::INFINITY);
                let before = (s.scanned, s.tested);
                self.descend::<V, D>(v, &mut q, a.guesses.map(|g| g[i]), s);
                if i >= PROBE {
                    (s.scanned, s.tested) = before;
                }
                let limit = q.limit;
                self.ask(a, i, limit, s);
                i += 1;
            } else if let Some(rough) = &self.rough {
                let end = n.min(i + rough::POINTS);
                self.scan_rough::<V, T, D>(v, a, rough, i..end, s);
                i = end;
            } else {
                s.leave(i);
                i += 1;
            }
        }
    }

    /// Scans all tiles for some points in integers: what these do not tell is left to floats.
    #[inline(always)]
    fn scan_rough<V: Eight, T: Real, const D: usize>(
        &self,
        v: V,
        a: &mut Search<T>,
        rough: &Rough,
        points: std::ops::Range<usize>,
        s: &mut Scratch,
    ) {
        let d = if D > 0 { D } else { self.d };
        rough.place::<D>(&a.placed[points.start * d..points.end * d], &mut s.pairs);
        let mut found = Found::default();
        rough.scan(&s.pairs, &mut found);
        for (at, i) in points.enumerate() {
            if rough.covers(a.squares[i]) {
                let tile = found.tiles.as_flattened()[at] as usize;
                let mut q = Query::new(&a.placed[i * d..][..d], a.squares[i]);
                let scores = self.scores::<V, D>(v, q.x, tile);
                q.found(self, v.least(scores));
                if rough.least(found.others.as_flattened()[at], q.square) > q.limit {
                    self.within::<V, T>(v, a, i, &mut q, scores, tile, s);
                    continue;
                }
            }
            s.leave(i);
        }
    }

    /// Scans all tiles for points that were left.
    #[inline(always)]
    fn scan_all<V: Eight, T: Real, const D: usize>(&self, v: V, a: &mut Search<T>, s: &mut Scratch) {
        let d = if D > 0 { D } else { self.d };
        let (left, count) = (s.left, s.left_count.min(POINTS));
        s.left_count -= count;
        let left = &left[s.left_count..][..count];
        for (at, &i) in left.iter().enumerate() {
            turn_one::<D>(&a.placed[i as usize * d..][..d], at, &mut s.points);
        }
        let least = scan(v, self, &s.points);
        for (at, &i) in left.iter().enumerate() {
            let i = i as usize;
            if !self.covers(a.squares[i]) {
                self.ask_all(a, i);
                continue;
            }
            let (score, other, tile) = least.of(at);
            let mut q = Query::new(&a.placed[i * d..][..d], a.squares[i]);
            q.found(self, score);
            let scores = self.scores::<V, D>(v, q.x, tile);
            if other > q.limit && v.le(scores, v.splat(q.limit)) != 0 {
                self.within::<V, T>(v, a, i, &mut q, scores, tile, s);
            } else {
                let before = (s.scanned, s.tested);
                self.descend::<V, D>(v, &mut q, Some(self.order[8 * tile]), s);
                (s.scanned, s.tested) = before;
                let limit = q.limit;
                self.ask(a, i, limit, s);
            }
        }
    }

    /// The nearest of a tile's codewords, where no others can be.
    #[inline(always)]
    fn within<V: Eight, T: Real>(
        &self,
        v: V,
        a: &mut Search<T>,
        i: usize,
        q: &mut Query,
        scores: V::F,
        tile: usize,
        s: &mut Scratch,
    ) {
        let near = v.le(scores, v.splat(q.limit));
        if near.is_power_of_two() {
            let code = self.order[8 * tile + near.trailing_zeros() as usize];
            let (x, c) = (&a.x[i * self.d..][..self.d], &a.codebook[code as usize * self.d..][..self.d]);
            a.found[i] = (if a.distances { scalar::distance(x, c) } else { 0.0 }, code);
        } else {
            self.keep(v, q, scores, tile, s);
            let limit = q.limit;
            self.ask(a, i, limit, s);
        }
    }

    /// Asks the definition about what was kept of a point.
    #[inline(always)]
    fn ask<T: Real>(&self, a: &mut Search<T>, i: usize, limit: f32, s: &mut Scratch) {
        let (d, top) = (self.d, s.best.len());
        s.kept.retain(|&(score, _)| score <= limit);
        let found = &mut a.found[i * top..][..top];
        if let ([(_, slot)], true) = (&s.kept[..], top == 1 && !a.distances) {
            found[0] = (0.0, self.order[*slot as usize]);
        } else {
            let among = s.kept.iter().map(|&(_, slot)| self.order[slot as usize]);
            scalar::nearest(&a.x[i * d..][..d], a.codebook, among, found);
        }
        s.kept.clear();
    }

    /// Asks the definition about all codewords.
    fn ask_all<T: Real>(&self, a: &mut Search<T>, i: usize) {
        let (d, top) = (self.d, a.found.len() / a.squares.len());
        scalar::nearest(&a.x[i * d..][..d], a.codebook, 0..self.k as u32, &mut a.found[i * top..][..top]);
    }

    #[inline(always)]
    fn search_any<V: Eight, T: Real>(&self, v: V, a: &mut Search<T>, s: &mut Scratch) {
        match self.d {
            2 => self.search_in::<V, T, 2>(v, a, s),
            4 => self.search_in::<V, T, 4>(v, a, s),
            8 => self.search_in::<V, T, 8>(v, a, s),
            16 => self.search_in::<V, T, 16>(v, a, s),
            _ => self.search_in::<V, T, 0>(v, a, s),
        }
    }
}

/// Points and where their nearest codewords go.
pub(super) struct Search<'a, T> {
    pub(super) codebook: &'a [T],
    pub(super) x: &'a [T],
    /// x' and X² of each point.
    pub(super) placed: &'a [f32],
    pub(super) squares: &'a [f32],
    /// A codeword near each point, if known.
    pub(super) guesses: Option<&'a [u32]>,
    /// Whether distances are wanted; else they are 0 where the code was clear without.
    pub(super) distances: bool,
    /// As many as asked for of each point, nearest first.
    pub(super) found: &'a mut [(f64, u32)],
}

/// The nearest codewords of some points.
pub(super) fn search<T: Real>(tree: &Tree, a: &mut Search<T>, s: &mut Scratch, isa: crate::Isa) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
        fn avx2<T: Real>(tree: &Tree, a: &mut Search<T>, s: &mut Scratch) {
            // SAFETY: the features of this function are those that the token stands for.
            tree.search_any(unsafe { crate::lanes::Avx2::new() }, a, s);
        }
        if isa.has_avx2() {
            // SAFETY: an Isa exists only where the CPU has it.
            return unsafe { avx2(tree, a, s) };
        }
    }
    let _ = isa;
    // A CPU without AVX2 is seldom met: one form of all dimensions does there.
    if cfg!(target_arch = "x86_64") {
        tree.search_in::<_, T, 0>(crate::lanes::Scalar, a, s);
    } else {
        tree.search_any(crate::lanes::Scalar, a, s);
    }
}

/// Orders codewords so that each tile, each eight tiles and so on are near each
/// other: halves along the widest axis, at a border of whole nodes.
fn sort_into_tiles(order: &mut [u32], placed: &[f32], d: usize) {
    let tiles = order.len().div_ceil(8);
    if tiles <= 1 {
        return;
    }
    let mut chunk = 1;
    while 8 * chunk < tiles {
        chunk *= 8;
    }
    let left = tiles.div_ceil(chunk) / 2 * chunk * 8;
    let n = order.len() as f64;
    let (mut widest, mut axis) = (-1.0, 0);
    for j in 0..d {
        let at = |&code: &u32| f64::from(placed[code as usize * d + j]);
        let mean = order.iter().map(at).sum::<f64>() / n;
        let spread = order.iter().map(at).fold(0.0, |sum, x| sum + (x - mean) * (x - mean));
        if spread > widest {
            (widest, axis) = (spread, j);
        }
    }
    let key = |code: u32| placed[code as usize * d + axis];
    order.select_nth_unstable_by(left, |&a, &b| key(a).total_cmp(&key(b)).then(a.cmp(&b)));
    let (low, high) = order.split_at_mut(left);
    sort_into_tiles(low, placed, d);
    sort_into_tiles(high, placed, d);
}
