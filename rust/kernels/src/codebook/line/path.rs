//! The best path from one end of sorted points to the other, where each segment
//! costs the squares about its mean and a fee.
//!
//! With the fee λ for a segment, `F(j) = min over i < j of F(i) + c(i, j) + λ` is
//! the least cost of the points before j. It is a concave least-weight
//! subsequence: of two candidates i the later one, once it is better, stays so.
//! A queue of candidates with the positions from which each is the best gives
//! every F(j) in amortised constant time.
//!
//! Numbers stay small: sums are taken about a local origin over a window of
//! points whose squares about it are at most [`WINDOW`] fees, and a segment of a
//! best path costs no more than [`reach`]. So an error of a cost is some 1e-12
//! fees, whatever the distance of outliers or the common offset.

use super::ahead::{self, AHEAD, Ahead};
use crate::error::try_zeroed;
use crate::lanes::on_isa;
use crate::{Ctl, Isa, Result};

/// Sorted values with positive weights.
pub(super) trait Points: Copy + Sync {
    fn len(&self) -> usize;
    fn x(&self, i: usize) -> f64;
    fn w(&self, i: usize) -> f64;
}

/// Sorted values as they are.
#[derive(Clone, Copy)]
pub(super) struct Plain<'a, T>(pub &'a [T]);

impl<T: super::Value> Points for Plain<'_, T> {
    fn len(&self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn x(&self, i: usize) -> f64 {
        self.0[i].to_f64()
    }
    #[inline(always)]
    fn w(&self, _: usize) -> f64 {
        1.0
    }
}

/// Sorted values, each with its weight.
#[derive(Clone, Copy)]
pub(super) struct Weighted<'a>(pub &'a [[f64; 2]]);

impl Points for Weighted<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn x(&self, i: usize) -> f64 {
        self.0[i][0]
    }
    #[inline(always)]
    fn w(&self, i: usize) -> f64 {
        self.0[i][1]
    }
}

/// Points from the other end.
#[derive(Clone, Copy)]
pub(super) struct Reversed<P>(pub P);

impl<P: Points> Points for Reversed<P> {
    fn len(&self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn x(&self, i: usize) -> f64 {
        -self.0.x(self.0.len() - 1 - i)
    }
    #[inline(always)]
    fn w(&self, i: usize) -> f64 {
        self.0.w(self.0.len() - 1 - i)
    }
}

/// Weight, mean and squares about it of some points.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    pub weight: f64,
    pub mean: f64,
    pub squares: f64,
}

impl Moments {
    /// Of the points before `j` from `i` on, in two passes about the first.
    pub fn of<P: Points>(p: P, i: usize, j: usize) -> Moments {
        // Four sums side by side, in an order that nothing changes.
        let origin = p.x(i);
        let (mut weights, mut sums) = ([0.0; 4], [0.0; 4]);
        lanes(i, j, |lane, t| {
            weights[lane] += p.w(t);
            sums[lane] += p.w(t) * (p.x(t) - origin);
        });
        let sum = |v: [f64; 4]| (v[0] + v[1]) + (v[2] + v[3]);
        let weight = sum(weights);
        let shift = sum(sums) / weight;
        let mut squares = [0.0; 4];
        lanes(i, j, |lane, t| {
            let d = (p.x(t) - origin) - shift;
            squares[lane] += p.w(t) * (d * d);
        });
        Moments { weight, mean: origin + shift, squares: sum(squares) }
    }

    /// These and one point more (Welford's update).
    #[inline(always)]
    pub fn with(self, x: f64, w: f64) -> Moments {
        let (d, weight) = (x - self.mean, self.weight + w);
        let share = w / weight;
        Moments { weight, mean: self.mean + d * share, squares: self.squares + self.weight * share * (d * d) }
    }
}

/// Positions between two questions whether to go on.
const CHUNK: usize = 1 << 16;

/// Calls `f(lane, t)` for t from `i` to `j`, four lanes in turn.
#[inline(always)]
pub(super) fn lanes(i: usize, j: usize, mut f: impl FnMut(usize, usize)) {
    let whole = i + (j - i) / 4 * 4;
    for t in (i..whole).step_by(4) {
        for lane in 0..4 {
            f(lane, t + lane);
        }
    }
    for t in whole..j {
        f(t - whole, t);
    }
}

/// Squares about a window's origin, in fees, at which it ends.
const WINDOW: f64 = 16384.0;

/// What a cost of [`Pass::run`] may err by, in fees: rounding errors of sums of [`WINDOW`] fees.
pub(super) const ERROR: f64 = 16.0 * WINDOW * f64::EPSILON;

/// The most that a segment of a best path costs, in fees, where the points weigh
/// `weight` together and the lightest `least`.
///
/// Cutting the upper m points off a segment of mean 0 would save at least A² / W,
/// A their sum and W their weight, so A ≤ √(λW) and the lowest of them is at most
/// √(λ/W); their squares sum to at most λ ∑ w/W ≤ λ (1 + ln(W/w)). As much below.
pub(super) fn reach(weight: f64, least: f64) -> f64 {
    // ln x is at most that of the power of two above.
    let exponent = ((weight / least).to_bits() >> 52) as f64 - 1022.0;
    2.0001 * (1.0 + exponent * std::f64::consts::LN_2)
}

/// A best path's memory, used again from pass to pass.
pub(super) struct Pass {
    isa: Isa,
    /// That of the last path that was finished, or NaN.
    pub fee: f64,
    /// The least cost of the points before each position; the fee of every segment is in it.
    /// Inside [`Pass::run`], where the window is, potentials: the squares before less this.
    pub cost: Vec<f64>,
    /// Where the last segment of that path begins.
    start: Vec<u32>,
    /// Of the window: weights and sums about the origin of its first points.
    weights: Vec<f64>,
    sums: Vec<f64>,
    /// Candidates and the positions from which each is the best, both in the window.
    queue: Vec<[u32; 2]>,
}

impl Pass {
    pub fn new(isa: Isa) -> Pass {
        let (cost, start, weights, sums, queue) = Default::default();
        Pass { isa, fee: f64::NAN, cost, start, weights, sums, queue }
    }

    /// Finds the best path through `p` for the fee `fee`; `reach` is [`reach`] of the points.
    pub fn run<P: Points>(&mut self, p: P, fee: f64, reach: f64, ctl: &Ctl) -> Result<()> {
        let n = p.len();
        self.fee = f64::NAN;
        for v in [&mut self.cost, &mut self.weights, &mut self.sums] {
            grow(v, n + 1)?;
        }
        grow(&mut self.start, n + 1)?;
        self.cost[0] = 0.0;
        let (mut known, mut oldest) = (0, 0);
        while known < n {
            // A candidate from which the next point is out of reach is done with.
            let near = p.x(known);
            let mut segment = Moments { weight: p.w(known), mean: 0.0, squares: 0.0 };
            let mut first = known;
            while first > oldest {
                let longer = segment.with(p.x(first - 1) - near, p.w(first - 1));
                if longer.squares > reach * fee {
                    break;
                }
                (segment, first) = (longer, first - 1);
            }
            known = self.window(p, fee, first, known, near + segment.mean, ctl)?;
            oldest = self.start[known] as usize;
        }
        self.fee = fee;
        Ok(())
    }

    /// Extends the costs beyond `known` to the end of a window that begins at `first`, and says where that is.
    fn window<P: Points>(
        &mut self,
        p: P,
        fee: f64,
        first: usize,
        known: usize,
        origin: f64,
        ctl: &Ctl,
    ) -> Result<usize> {
        let (w, s) = (&mut self.weights[..], &mut self.sums[..]);
        let (mut weight, mut sum, mut squares) = (0.0, 0.0, 0.0);
        let base = self.cost[first];
        let mut end = first;
        (w[0], s[0]) = (0.0, 0.0);
        while end < p.len() {
            if end <= known {
                self.cost[end] = squares - (self.cost[end] - base);
            }
            let d = p.x(end) - origin;
            squares += p.w(end) * (d * d);
            if squares > WINDOW * fee && end > known {
                break;
            }
            weight += p.w(end);
            sum += p.w(end) * d;
            end += 1;
            (w[end - first], s[end - first]) = (weight, sum);
        }
        let size = end - first + 1;
        let mut best = Candidates {
            weights: &w[..size],
            sums: &s[..size],
            potential: &mut self.cost[first..=end],
            queue: &mut self.queue,
        };
        let starts = Starts { first, start: &mut self.start[first..=end] };
        sweep(&mut best, fee, known - first, starts, ctl, self.isa)?;
        let mut squares = 0.0;
        for t in first..end {
            let d = p.x(t) - origin;
            self.cost[t] = base + (squares - self.cost[t]);
            squares += p.w(t) * (d * d);
        }
        self.cost[end] = base + (squares - self.cost[end]);
        Ok(end)
    }

    /// Where the segments of the best path through the first `n` points end, ascending.
    pub fn ends(&self, n: usize) -> Vec<u32> {
        let mut ends = Vec::new();
        let mut at = n as u32;
        while at > 0 {
            ends.push(at);
            at = self.start[at as usize];
        }
        ends.reverse();
        ends
    }
}

/// At least `n` elements.
fn grow<T: Clone + Default>(v: &mut Vec<T>, n: usize) -> Result<()> {
    if v.len() < n {
        *v = Vec::new(); // given back first
        *v = try_zeroed(n)?;
    }
    Ok(())
}

/// The candidates of a window. A position's potential is what it offers to the
/// positions after it: the squares before it less its cost.
struct Candidates<'a> {
    weights: &'a [f64],
    sums: &'a [f64],
    potential: &'a mut [f64],
    queue: &'a mut Vec<[u32; 2]>,
}

on_isa! {
    /// Potentials and starts of the positions after `known`. Those up to it are given.
    fn sweep(best: &mut Candidates, fee: f64, known: usize, starts: Starts, ctl: &Ctl) -> Result<()> = sweep_in;
}

#[inline(always)]
fn sweep_in(v: impl Ahead, best: &mut Candidates, fee: f64, known: usize, starts: Starts, ctl: &Ctl) -> Result<()> {
    best.sweep(v, fee, known, starts, ctl)
}

/// Where segments begin, from the one that ends at the window's first position on.
struct Starts<'a> {
    first: usize,
    start: &'a mut [u32],
}

impl Candidates<'_> {
    /// Potentials and starts of the positions after `known`. Those up to it are given.
    #[inline(always)]
    fn sweep(&mut self, v: impl Ahead, fee: f64, known: usize, starts: Starts, ctl: &Ctl) -> Result<()> {
        let Starts { first, start } = starts;
        let end = self.weights.len() - 1;
        self.queue.clear();
        self.queue.push([0, known as u32 + 1]);
        let mut head = 0;
        for i in 1..=known {
            self.insert(v, i, known + 1, head);
        }
        for j in known + 1..=end {
            while head + 1 < self.queue.len() && self.queue[head + 1][1] as usize <= j {
                head += 1;
            }
            let i = self.queue[head][0] as usize;
            let (s, w) = (self.sums[j] - self.sums[i], self.weights[j] - self.weights[i]);
            self.potential[j] = self.potential[i] + s * s / w - fee;
            start[j] = (first + i) as u32;
            if j < end {
                self.insert(v, j, j + 1, head);
            }
            if j % CHUNK == 0 {
                ctl.check()?;
            }
        }
        ctl.check()
    }

    /// Puts candidate `j` behind those it does not beat; it serves positions from `from` on.
    #[inline(always)]
    fn insert(&mut self, v: impl Ahead, j: usize, from: usize, head: usize) {
        let end = self.weights.len() - 1;
        loop {
            let &[i, since] = self.queue.last().expect("the queue has its head");
            let p = from.max(since as usize);
            if self.beats(j, i as usize, p) {
                self.queue.pop();
                if self.queue.len() <= head {
                    self.queue.push([j as u32, p as u32]);
                    return;
                }
                continue;
            }
            if let Some(p) = self.first_beaten(v, j, i as usize, p, end) {
                self.queue.push([j as u32, p as u32]);
            }
            return;
        }
    }

    /// The first position after `p` where `j` beats `i`: look at some, then gallop, then bisect.
    #[inline(always)]
    fn first_beaten(&self, v: impl Ahead, j: usize, i: usize, p: usize, end: usize) -> Option<usize> {
        let (mut low, mut step) = (p, 1);
        if let (Some(s), Some(w)) = (self.sums[p + 1..].first_chunk(), self.weights[p + 1..].first_chunk()) {
            let (gain, i, j) = self.pair(j, i);
            let first = v.first_beaten(gain, i, j, s, w);
            if first < AHEAD {
                return Some(p + 1 + first);
            }
            (low, step) = (p + AHEAD, AHEAD);
        }
        let mut high = loop {
            let q = low + step;
            if q >= end {
                if low >= end || !self.beats(j, i, end) {
                    return None;
                }
                break end;
            }
            if self.beats(j, i, q) {
                break q;
            }
            (low, step) = (q, step * 2);
        };
        while high - low > 1 {
            let q = low + (high - low) / 2;
            if self.beats(j, i, q) { high = q } else { low = q }
        }
        Some(high)
    }

    /// What `j` offers more than `i`, and the sums and weights before each of both.
    #[inline(always)]
    fn pair(&self, j: usize, i: usize) -> (f64, [f64; 2], [f64; 2]) {
        let at = |i: usize| [self.sums[i], self.weights[i]];
        (self.potential[j] - self.potential[i], at(i), at(j))
    }

    #[inline(always)]
    fn beats(&self, j: usize, i: usize, p: usize) -> bool {
        let (gain, i, j) = self.pair(j, i);
        ahead::beats(gain, i, j, self.sums[p], self.weights[p])
    }
}
