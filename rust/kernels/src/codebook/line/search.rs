//! The fee at which the best path has k segments, and that path: an optimum, by duality.
//!
//! A path of k segments that is best for some fee is the best of all with k
//! segments, for any other would be a better path for that fee. With growing
//! fees the best path has fewer segments. Where no fee gives k, two best
//! paths for the same fee, one with fewer and one with more, can be joined to one
//! with k ([`join`]).

use super::path::{self, Moments, Pass, Points};
use crate::error::bail;
use crate::{Ctl, Result};

/// Sorted points cut into segments.
#[derive(Clone, Debug)]
pub(super) struct Partition {
    /// Where each segment ends, ascending; the last one at the number of points.
    pub ends: Vec<u32>,
    /// Each segment's own.
    pub moments: Vec<Moments>,
    /// The weighted squares about the segments' levels.
    pub squares: f64,
}

impl Partition {
    pub fn new<P: Points>(p: P, ends: Vec<u32>) -> Partition {
        let moments = segments(&ends).map(|(i, j)| Moments::of(p, i, j)).collect();
        Partition::of(ends, moments)
    }

    pub fn of(ends: Vec<u32>, moments: Vec<Moments>) -> Partition {
        let squares = moments.iter().map(|m| m.squares).sum();
        Partition { ends, moments, squares }
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    pub fn levels(&self) -> Vec<f64> {
        self.moments.iter().map(|m| m.mean).collect()
    }
}

/// Begin and end of each segment.
pub(super) fn segments(ends: &[u32]) -> impl Iterator<Item = (usize, usize)> + '_ {
    ends.iter().scan(0, |begin, &end| Some((std::mem::replace(begin, end as usize), end as usize)))
}

/// What is cut: all points freely, or with one level at zero.
pub(super) trait Problem {
    /// Points that can be ends of segments.
    fn most(&self) -> usize;
    /// A best partition for this fee for each segment.
    fn solve(&mut self, fee: f64, ctl: &Ctl) -> Result<Partition>;
    /// Of two partitions that are best for one fee, a partition with `k` segments, between theirs.
    fn between(&self, few: &Partition, many: &Partition, k: usize) -> Partition;
}

/// Sorted points, cut freely.
pub(super) struct Free<'a, P> {
    pub points: P,
    pub reach: f64,
    pub pass: &'a mut Pass,
}

impl<P: Points> Problem for Free<'_, P> {
    fn most(&self) -> usize {
        self.points.len()
    }

    fn solve(&mut self, fee: f64, ctl: &Ctl) -> Result<Partition> {
        self.pass.run(self.points, fee, self.reach, ctl)?;
        Ok(Partition::new(self.points, self.pass.ends(self.points.len())))
    }

    fn between(&self, few: &Partition, many: &Partition, k: usize) -> Partition {
        Partition::new(self.points, join(&few.ends, &many.ends, k))
    }
}

/// A path of `k` segments from one of fewer and one of more.
///
/// Where a segment of the path of more lies within one of the other, the paths may
/// change places: by the concave Monge property both joined paths together cost
/// no more than both given ones. There is a place at which the path of more is ahead by
/// just as many segments as are wanted.
pub(super) fn join(few: &[u32], many: &[u32], k: usize) -> Vec<u32> {
    let ahead = k - few.len();
    if ahead == 0 {
        return few.to_vec();
    }
    let v = (0..few.len()).find(|&v| many[v + ahead] <= few[v]).expect("both end at the same point");
    [&many[..v + ahead], &few[v..]].concat()
}

/// A partition, and a fee for which it is best.
pub(super) struct Found {
    pub partition: Partition,
    pub fee: f64,
}

impl Found {
    /// What any partition into `k` segments costs at least: with the fees it would be better than the best.
    fn bound(&self, k: usize) -> f64 {
        self.partition.squares + self.fee * (self.partition.count() as f64 - k as f64)
    }
}

/// How far from the optimum a partition may be, relative to its squares.
pub(super) const EXACT: f64 = 1e-11;

/// How far rounding errors may take it.
const ROUNDING: f64 = 5e-10;

/// The best partition into `k` segments, within `gap` of its squares; `fee` is a guess. Where that leads to a segment
/// more or less, `near` is asked for a partition near the best.
pub(super) fn search(
    problem: &mut impl Problem,
    k: usize,
    fee: f64,
    near: impl Fn() -> Result<Option<Partition>>,
    gap: f64,
    ctl: &Ctl,
) -> Result<Found> {
    let (guess, mut fee) = (fee, fee);
    let (mut few, mut many): (Option<Found>, Option<Found>) = (None, None);
    for step in 1.. {
        let partition = problem.solve(fee, ctl)?;
        let count = partition.count();
        let found = Found { partition, fee };
        let known = [&few, &many].into_iter().flatten().any(|f| f.partition.count() == count);
        let last = known && step > LAST;
        if count == k && (gap > EXACT || last || exact(&found, k)) {
            return Ok(found);
        }
        let mut beside = None;
        if step == 1 && count.abs_diff(k) == 1 {
            // What one segment saves from there is a little beyond the last fee for that count.
            beside = near()?
                .map(|near| if count < k { chord(&found.partition, &near) } else { chord(&near, &found.partition) });
            beside = beside.filter(|&beside| beside > 0.0 && (count < k) == (beside < fee));
        }
        if count <= k {
            few = Some(found)
        } else {
            many = Some(found)
        }
        if let (Some(few), Some(many)) = (&few, &many) {
            let joined = problem.between(&few.partition, &many.partition, k);
            let bound = few.bound(k).max(many.bound(k));
            let meets = few.partition.count() < k && joined.squares - bound <= gap * joined.squares;
            if meets || last {
                return Ok(Found { partition: joined, fee: chord(&few.partition, &many.partition) });
            }
        }
        fee = beside.unwrap_or_else(|| next(fee, count, [few.as_ref(), many.as_ref()], problem.most(), k, known, step));
        if fee.is_nan() || fee <= 0.0 {
            // Nothing leads to k: bins that are too few, or squares that vanish.
            match few.or(many) {
                Some(found) if gap > EXACT => return Ok(Found { fee: guess, ..found }),
                _ => bail!("x: squared distances times weights vanish in float64: multiply either by a power of two"),
            }
        }
    }
    unreachable!("a chord meets a new count or is the last")
}

/// Steps after which every one is along the chord between the nearest counts: it meets a new
/// count, or there is none between.
const LAST: usize = 12;

/// Whether rounding errors of a path for this fee are small beside its squares.
///
/// They are not where the fee is far above what a segment costs, as between distant clusters; a
/// smaller fee gives the same count then. Errors of many segments are of both signs.
pub(super) fn exact(found: &Found, k: usize) -> bool {
    path::ERROR * found.fee * k.min(16) as f64 <= ROUNDING * found.partition.squares
}

/// What one segment more saves, from one partition to another.
pub(super) fn chord(few: &Partition, many: &Partition) -> f64 {
    (few.squares - many.squares) / (many.count() - few.count()) as f64
}

/// x³, by multiplications alone: results are the same on every platform.
pub(super) fn cube(x: f64) -> f64 {
    x * x * x
}

/// The fee to try next: where the density is smooth squares fall as 1/k², so fees as 1/k³; where that
/// leads to a count again, along the chord between the nearest counts.
fn next(fee: f64, count: usize, near: [Option<&Found>; 2], most: usize, k: usize, known: bool, step: usize) -> f64 {
    let [few, many] = near;
    let (low, high) = (many.map_or(0.0, |f| f.fee), few.map_or(f64::INFINITY, |f| f.fee));
    // Further where the last step met no new count.
    let falls = cube(count as f64 / k as f64);
    let falls = if known { falls * cube(falls) } else { falls };
    let smooth = if count == k { fee / 64.0 } else { fee * falls };
    let within = |fee: f64| fee > low && fee < high;
    let mut neighbours = false;
    let (straight, between) = match (few, many) {
        (Some(few), Some(many)) => {
            let (few, many) = (&few.partition, &many.partition);
            let share = (many.count() - k) as f64 / (many.count() - few.count()) as f64;
            // The chord is the middle of the fees for k then.
            neighbours = many.count() - few.count() == 2 && few.count() < k;
            (chord(few, many), low + (high - low) * share)
        }
        (Some(few), None) if step >= LAST => (few.partition.squares / (most - few.partition.count()) as f64, f64::NAN),
        _ => (f64::NAN, f64::NAN),
    };
    if within(straight) && (known || neighbours || step >= LAST || (step > 6 && step % 2 == 0)) {
        straight
    } else if within(smooth) && step < LAST {
        smooth
    } else if within(between) {
        between
    } else if low > 0.0 && high.is_finite() {
        low.sqrt() * high.sqrt()
    } else if high.is_finite() {
        high / 64.0
    } else {
        low * 64.0
    }
}
