//! Problems made small: coarse bins that give the fee, and finer ones that
//! show where no boundary of the best path can be.

use super::path::{self, Moments, Pass, Points, Reversed, Weighted};
use super::search::{self, Found, Free, Partition, Problem, chord, cube, join, segments};
use crate::{Ctl, Result};

/// Points of the first grid.
const COARSE: usize = 4096;
/// Pieces into which the coarse path's segments are cut for the second.
const PIECES: usize = 64;
/// The share of the points beyond which pruning does not pay.
const KEPT: f64 = 0.6;
/// How often a path through the grid is walked: forward and back, and again where a fee gave another count.
const WALKS: f64 = 2.2;
/// What the grid takes, for each point, in steps of a path.
const MADE: f64 = 0.3;
/// How often a path through all points is walked where there is no grid, on average.
const TRIES: f64 = 1.25;
/// Of the points that are left, the share is this times the root of the slack in fees: measured, of normal numbers, 1.9
/// for 16 levels, 3.3 for 255.
const LEFT: f64 = 2.5;

/// What bins tell of the best path.
pub(super) struct Estimate {
    /// A fee for which it probably has as many segments as are wanted.
    pub fee: f64,
    /// About where they end.
    pub ends: Vec<u32>,
    /// Means and weights of points one after the other, cut at equal counts and at equal distances.
    bins: Vec<[f64; 2]>,
}

/// What bins of about `each` points tell of the best path of `k` segments.
pub(super) fn estimate<P: Points>(
    p: P,
    k: usize,
    each: usize,
    reach: f64,
    pass: &mut Pass,
    ctl: &Ctl,
) -> Result<Estimate> {
    let n = p.len();
    let (ends, bins) = bins(p, &coarse(p, COARSE.min(n / each).max(256 / each * k)));
    // The squares of the best levels for a smooth density: (∫ density^⅓)³ / 12 k².
    let root: f64 = bins.windows(2).map(|b| cube_root(b[0][1] * (b[1][0] - b[0][0]) * (b[1][0] - b[0][0]))).sum();
    let fee = cube(root) / 6.0 / cube(k as f64);
    let found = centre(&bins, k, fee, 1e-3, reach, pass, ctl)?;
    let fine = |found: &Found, ends: &[u32]| found.partition.ends.iter().map(|&e| ends[e as usize - 1]).collect();
    let path: Vec<u32> = fine(&found, &ends);
    if n < 16 * PIECES * k || bins.len() >= PIECES * k {
        return Ok(Estimate { fee: found.fee, ends: path, bins });
    }
    let cuts: Vec<u32> = segments(&path)
        .flat_map(|(i, j)| (1..=PIECES).map(move |piece| (i + (j - i) * piece / PIECES) as u32))
        .collect();
    let (ends, pieces) = self::bins(p, &cuts);
    let found = centre(&pieces, k, found.fee, 1e-6, reach, pass, ctl)?;
    Ok(Estimate { fee: found.fee, ends: fine(&found, &ends), bins })
}

/// ∛x to some digits, by operations that are the same on every platform; 0 for 0.
fn cube_root(x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    // A third of the exponent, then Newton's steps.
    let mut y = f64::from_bits(x.to_bits() / 3 + (1023 << 52) / 3 * 2);
    for _ in 0..3 {
        y -= (y - x / (y * y)) / 3.0;
    }
    y
}

/// A path of `k` segments through bins, within `gap` of the best, and a fee in the middle of those
/// for which it is that.
fn centre(bins: &[[f64; 2]], k: usize, fee: f64, gap: f64, reach: f64, pass: &mut Pass, ctl: &Ctl) -> Result<Found> {
    let mut problem = Free { points: Weighted(bins), reach, pass };
    let mut found = search::search(&mut problem, k, fee, || Ok(None), gap, ctl)?;
    let wide = 1.0 / cube((1.0 - 1.5 / k as f64).max(0.1));
    let (mut low, mut high, mut step) = (found.fee / wide, found.fee * wide, wide);
    for _ in 0..4 {
        let fewer = problem.solve(found.fee * step, ctl)?;
        let more = problem.solve(found.fee / step, ctl)?;
        if fewer.count() < k {
            high = high.min(chord(&fewer, &found.partition));
        }
        if more.count() > k {
            low = low.max(chord(&found.partition, &more));
        }
        if fewer.count() + 1 == k && more.count() == k + 1 && low < high {
            // Nothing is between.
            found.fee = low.sqrt() * high.sqrt();
            return Ok(found);
        }
        if high <= low * wide {
            break;
        }
        step = step.sqrt();
    }
    for _ in 0..6 {
        if low >= high {
            break;
        }
        let middle = low.sqrt() * high.sqrt();
        match problem.solve(middle, ctl)?.count() {
            count if count < k => high = middle,
            count if count > k => low = middle,
            _ => {
                found.fee = middle;
                break;
            }
        }
    }
    Ok(found)
}

/// About `count` ends, half of them at equal numbers of points, half at equal distances.
fn coarse<P: Points>(p: P, count: usize) -> Vec<u32> {
    let (n, half) = (p.len(), count.div_ceil(2).max(1));
    let (first, width) = (p.x(0), p.x(n - 1) - p.x(0));
    let mut ends: Vec<u32> = (1..=half).map(|i| (n * i / half) as u32).collect();
    let mut low = 0;
    for i in 1..half {
        let x = first + width * (i as f64 / half as f64);
        let (mut high, mut step) = (n, 1);
        while low + step < n && p.x(low + step) <= x {
            (low, step) = (low + step, 2 * step);
        }
        high = high.min(low + step);
        while high - low > 1 {
            let mid = low + (high - low) / 2;
            if p.x(mid) <= x { low = mid } else { high = mid }
        }
        ends.push(high as u32);
    }
    ends.sort_unstable();
    ends
}

/// Mean and weight of the points before each of the `cuts`, and the cuts without repetitions.
fn bins<P: Points>(p: P, cuts: &[u32]) -> (Vec<u32>, Vec<[f64; 2]>) {
    let (mut ends, mut bins) = (Vec::with_capacity(cuts.len()), Vec::with_capacity(cuts.len()));
    for (i, j) in segments(cuts).filter(|(i, j)| i < j) {
        let origin = p.x(i);
        // Side by side: an addition has to wait for the one before.
        let (mut weights, mut sums) = ([0.0; 4], [0.0; 4]);
        path::lanes(i, j, |lane, t| {
            weights[lane] += p.w(t);
            sums[lane] += p.w(t) * (p.x(t) - origin);
        });
        let weight = (weights[0] + weights[1]) + (weights[2] + weights[3]);
        let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        ends.push(j as u32);
        bins.push([origin + sum / weight, weight]);
    }
    (ends, bins)
}

/// Bins of about equal weight times width.
struct Grid {
    ends: Vec<u32>,
    bins: Vec<[f64; 2]>,
    /// The most that weight × width, and weight × width², come to in a bin.
    most: f64,
    most_squared: f64,
    /// The distances between neighbours, those aside that no segment can cross.
    reachable: f64,
}

impl Grid {
    /// Of about `count` bins; `root` is their sum of roots of weight × width. A segment over a distance of `gap` costs
    /// too much.
    fn new<P: Points>(p: P, count: usize, root: f64, gap: f64, ctl: &Ctl) -> Result<Grid> {
        let n = p.len();
        let limit = (root / count as f64) * (root / count as f64);
        let mut grid = Grid { ends: Vec::new(), bins: Vec::new(), most: 0.0, most_squared: 0.0, reachable: 0.0 };
        grid.ends.reserve(2 * count);
        grid.bins.reserve(2 * count);
        let (mut origin, mut weight, mut sum, mut last) = (p.x(0), 0.0, 0.0, p.x(0));
        for t in 0..n {
            let (x, w) = (p.x(t), p.w(t));
            if (weight + w) * (x - origin) > limit && weight > 0.0 {
                grid.push(t, origin, last, weight, sum);
                (origin, weight, sum) = (x, 0.0, 0.0);
            }
            weight += w;
            sum += w * (x - origin);
            if x - last <= gap {
                grid.reachable += x - last;
            }
            last = x;
            if t % (1 << 20) == 0 {
                ctl.check()?;
            }
        }
        grid.push(n, origin, last, weight, sum);
        Ok(grid)
    }

    fn push(&mut self, end: usize, first: f64, last: f64, weight: f64, sum: f64) {
        self.ends.push(end as u32);
        self.bins.push([first + sum / weight, weight]);
        self.most = self.most.max(weight * (last - first));
        self.most_squared = self.most_squared.max(weight * (last - first) * (last - first));
    }
}

/// Sorted points, cut freely, where a boundary can be: the best path for a fee is found among
/// the points of few bins.
///
/// Let a best path's boundaries move to an edge of their bins while the segments keep their
/// levels. A boundary between the levels m and m′ then costs at most 2 (m′ − m) r more, where
/// r = ∑ w |x − mean| / 2 over the bin is at most weight × width / 4; and the distances between levels
/// sum to at most those between the points, those aside that no segment crosses. So a path
/// along the grid costs at most `slack` more than the best one, and goes through an edge of
/// every bin that holds a boundary of that one. (A bin that holds two loses one: that saves a fee,
/// which is to be at least four times what it costs, [`Grid::most_squared`].)
pub(super) struct Pruned<'a, P> {
    points: P,
    reach: f64,
    grid: Grid,
    most_fee: f64,
    k: usize,
    /// Along the grid, from both ends, and through the points that are left.
    forward: &'a mut Pass,
    backward: &'a mut Pass,
    left: &'a mut Pass,
}

impl<'a, P: Points> Pruned<'a, P> {
    /// For fees about the estimate's, that of `k` segments; `None` where this does not pay. `reach` is
    /// [`super::path::reach`] of the points, the lightest of which weighs `least`.
    pub fn new(
        points: P,
        k: usize,
        estimate: &Estimate,
        reach: f64,
        least: f64,
        passes: &'a mut [Pass; 3],
        ctl: &Ctl,
    ) -> Result<Option<Self>> {
        let (n, fee) = (points.len() as f64, estimate.fee);
        let most_fee = 1.5 * fee;
        let gap = (2.0 * reach * most_fee / least).sqrt();
        let widths = estimate.bins.windows(2).map(|b| (b[0][1], b[1][0] - b[0][0])).filter(|&(_, width)| width <= gap);
        let (mut root, mut reachable) = (0.0, 0.0);
        for (weight, width) in widths {
            root += (weight * width).sqrt();
            reachable += width;
        }
        // The slack is root² reachable / 2 count², and a boundary moved by d costs about d²: so what is left falls as
        // 1 / count, and the sum of both is least where they are equal.
        let left = LEFT * n * root * (reachable / (2.0 * fee)).sqrt();
        let count = (left / WALKS).sqrt();
        let pays = 2.0 * WALKS * count + MADE * n < TRIES * n && count >= 8.0 * k as f64; // not if it is NaN
        if !pays {
            return Ok(None);
        }
        let grid = Grid::new(points, count as usize, root, gap, ctl)?;
        let bins = grid.bins.len();
        if bins < 4 * k || bins > points.len() / 3 {
            return Ok(None);
        }
        let [forward, backward, left] = passes;
        forward.fee = f64::NAN; // that of other points
        Ok(Some(Pruned { points, reach, grid, most_fee, k, forward, backward, left }))
    }

    /// The fee for which the grid's best path has `k` segments.
    pub fn fee(&mut self, fee: f64, ctl: &Ctl) -> Result<f64> {
        let mut grid = Free { points: Weighted(&self.grid.bins), reach: self.reach, pass: self.forward };
        Ok(search::search(&mut grid, self.k, fee, || Ok(None), 1e-2, ctl)?.fee)
    }

    /// The path for a fee, where few enough points are left to pay.
    pub fn pruned(&mut self, fee: f64, ctl: &Ctl) -> Result<Option<Vec<u32>>> {
        let (grid, edges) = (&self.grid, self.grid.bins.len());
        if fee < 4.0 * grid.most_squared || fee > self.most_fee {
            return Ok(None);
        }
        if self.forward.fee != fee {
            self.forward.run(Weighted(&grid.bins), fee, self.reach, ctl)?;
        }
        self.backward.run(Reversed(Weighted(&grid.bins)), fee, self.reach, ctl)?;
        let slack = grid.reachable * grid.most / 2.0 + 1e-9 * fee * self.k as f64;
        let bound = self.forward.cost[edges] + slack;
        let near = |edge: usize| self.forward.cost[edge] + self.backward.cost[edges - edge] <= bound;
        let many = (KEPT * self.points.len() as f64) as usize;
        let Some((ends, points)) = kept(self.points, grid, near, many) else { return Ok(None) };
        self.left.run(Weighted(&points), fee, self.reach, ctl)?;
        Ok(Some(self.left.ends(points.len()).iter().map(|&e| ends[e as usize - 1]).collect()))
    }
}

impl<P: Points> Problem for Pruned<'_, P> {
    fn most(&self) -> usize {
        self.points.len()
    }

    fn solve(&mut self, fee: f64, ctl: &Ctl) -> Result<Partition> {
        match self.pruned(fee, ctl)? {
            Some(ends) => Ok(Partition::new(self.points, ends)),
            None => Free { points: self.points, reach: self.reach, pass: self.left }.solve(fee, ctl),
        }
    }

    fn between(&self, few: &Partition, many: &Partition, k: usize) -> Partition {
        Partition::new(self.points, join(&few.ends, &many.ends, k))
    }
}

/// The points of the bins at whose edges a best path may be, each run of others as one point;
/// `None` where there are more than `most`.
fn kept<P: Points>(p: P, grid: &Grid, near: impl Fn(usize) -> bool, most: usize) -> Option<(Vec<u32>, Vec<[f64; 2]>)> {
    let size = |(b, (i, j)): (usize, (usize, usize))| if near(b) || near(b + 1) { j - i } else { 1 };
    let count = segments(&grid.ends).enumerate().map(size).sum();
    if count > most + grid.bins.len() {
        return None;
    }
    let (mut ends, mut points) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut run = Moments::default();
    let mut left = near(0);
    for (b, (i, j)) in segments(&grid.ends).enumerate() {
        let right = near(b + 1);
        if left || right {
            if run.weight > 0.0 {
                ends.push(i as u32);
                points.push([run.mean, run.weight]);
                run = Moments::default();
            }
            for t in i..j {
                ends.push(t as u32 + 1);
                points.push([p.x(t), p.w(t)]);
            }
        } else {
            run = run.with(grid.bins[b][0], grid.bins[b][1]);
        }
        left = right;
    }
    if run.weight > 0.0 {
        ends.push(p.len() as u32);
        points.push([run.mean, run.weight]);
    }
    Some((ends, points))
}
