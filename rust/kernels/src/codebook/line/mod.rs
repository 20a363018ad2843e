//! Codebooks of numbers: k-means in one dimension, solved exactly.
//!
//! Sorted numbers are cut into k segments, each with its mean as its level, so that the
//! squares about the levels are least. The search is for a fee on each segment for which the
//! best path from the first number to the last has just k ([`search`]); a path
//! for a given fee takes a few steps a number ([`path`]), whatever k. Where numbers are many
//! for each level, bins tell the fee first, and where boundaries cannot be ([`prune`]).
//!
//! It is arithmetic in float64 in a fixed order: the same bytes on every
//! instruction set, on any number of threads.

mod ahead;
mod path;
mod prune;
mod search;
mod sort;
#[cfg(test)]
mod tests;

use std::sync::Mutex;

use path::{Moments, Pass, Plain, Points, Reversed, Weighted};
use prune::Pruned;
use search::{Free, Partition, Problem, segments};
pub use sort::Value;

use crate::error::{bail, try_zeroed};
use crate::lanes::{Lanes, on_isa};
use crate::par::Parts;
use crate::{Ctl, Error, Isa, Result};

/// How [`kmeans_1d`] finds its levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The optimum.
    Exact,
    /// Lloyd's iteration from the optimum of bins: a local optimum, in the time of a sort.
    Lloyd,
}

/// What [`kmeans_1d`] is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Levels.
    pub k: usize,
    /// One level is exactly 0.
    pub pin_zero: bool,
    /// The optimum, or less.
    pub method: Method,
}

/// Levels, ascending, and how far the numbers are from theirs.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// `k` levels. Where the numbers have fewer distinct values, those, and the greatest again for
    /// the rest.
    pub levels: Vec<f64>,
    /// The weighted sum of squared distances to the levels.
    pub inertia: f64,
    /// Distinct values among numbers of positive weight.
    pub n_distinct: usize,
}

/// An unsigned integer that holds codes.
pub trait Code: Copy + Send + Sync {
    /// The most levels that it can name.
    const LEVELS: usize;
    #[doc(hidden)]
    fn new(code: usize) -> Self;
}

macro_rules! codes {
    ($($t:ty)*) => {$(
        impl Code for $t {
            const LEVELS: usize = 1 << <$t>::BITS;
            #[inline(always)]
            fn new(code: usize) -> $t {
                code as $t
            }
        }
    )*};
}
codes!(u8 u16 u32);

/// The most numbers in one call: positions are 32 bits wide.
pub const MOST: usize = u32::MAX as usize - 1;

/// From this many numbers for each level on, bins tell the fee.
const ESTIMATE: usize = 96;

/// Numbers whose codes are found in one task.
const TASK: usize = 1 << 16;

/// The levels that are nearest to the numbers `x`, in squares, and in `codes` each number's level: the
/// nearest one, the lower of two that are as near.
///
/// # Errors
/// [`Error::Value`] where `x` is empty or longer than [`MOST`], lengths differ, `x` is not finite, a weight is
/// negative or not finite, all are zero, or `k` is 0 or more than codes can name.
pub fn kmeans_1d<T: Value, C: Code>(
    x: &[T],
    weights: Option<&[f64]>,
    options: Options,
    codes: &mut [C],
    isa: Isa,
    ctl: &Ctl,
) -> Result<Fit> {
    check(x.len(), weights.map(<[f64]>::len), codes.len(), options.k, C::LEVELS)?;
    let mut scratch = Scratch::new(isa);
    let fit = fit(x, weights, options, &mut scratch, ctl)?;
    let steps = Steps::new(&fit.levels, x.len());
    let parts = Parts::new(x.chunks(TASK).zip(codes.chunks_mut(TASK)));
    ctl.for_each(parts.len(), &|_, task| {
        let (x, codes) = parts.take(task);
        steps.encode(x, codes, isa);
    })?;
    Ok(fit)
}

/// [`kmeans_1d`] of each of `rows` rows by itself; `weights` are those of one row, shared, or of all.
///
/// # Errors
/// As [`kmeans_1d`].
pub fn kmeans_1d_rows<T: Value, C: Code>(
    x: &[T],
    rows: usize,
    weights: Option<&[f64]>,
    options: Options,
    codes: &mut [C],
    isa: Isa,
    ctl: &Ctl,
) -> Result<Vec<Fit>> {
    if rows == 0 || x.len() % rows != 0 {
        bail!("x: {} numbers are no {rows} rows of one length", x.len());
    }
    let n = x.len() / rows;
    let given = weights.map(|w| if w.len() == n { n } else { w.len() / rows });
    if weights.is_some_and(|w| w.len() != n && w.len() != x.len()) {
        bail!("sample_weight: expected {n} or {rows} × {n} weights, got {}", weights.map_or(0, <[f64]>::len));
    }
    check(n, given, codes.len() / rows, options.k, C::LEVELS)?;
    let of = |row: usize| weights.map(|w| if w.len() == n { w } else { &w[row * n..][..n] });
    if n > TASK {
        // Long rows one by one, each of which asks whether to go on.
        let rows = x.chunks_exact(n).zip(codes.chunks_exact_mut(n)).enumerate();
        return rows.map(|(row, (x, codes))| kmeans_1d(x, of(row), options, codes, isa, ctl)).collect();
    }
    let scratch: Vec<Mutex<Scratch<T>>> = (0..ctl.threads()).map(|_| Mutex::new(Scratch::new(isa))).collect();
    let fits: Vec<Mutex<Option<Result<Fit>>>> = (0..rows).map(|_| Mutex::new(None)).collect();
    let parts = Parts::new(x.chunks_exact(n).zip(codes.chunks_exact_mut(n)));
    ctl.for_each(rows, &|slot, row| {
        let (x, codes) = parts.take(row);
        let mut scratch = scratch[slot].lock().unwrap_or_else(|e| e.into_inner());
        let fit = fit(x, of(row), options, &mut scratch, &Ctl::new(1));
        if let Ok(fit) = &fit {
            Steps::new(&fit.levels, n).encode(x, codes, isa);
        }
        *fits[row].lock().unwrap_or_else(|e| e.into_inner()) = Some(fit);
    })?;
    fits.into_iter().map(|fit| fit.into_inner().unwrap_or_else(|e| e.into_inner()).expect("every row ran")).collect()
}

/// The levels of [`kmeans_1d`] without codes.
///
/// # Errors
/// As [`kmeans_1d`].
pub fn levels_1d<T: Value>(x: &[T], weights: Option<&[f64]>, options: Options, isa: Isa, ctl: &Ctl) -> Result<Fit> {
    check(x.len(), weights.map(<[f64]>::len), x.len(), options.k, <u32 as Code>::LEVELS)?;
    fit(x, weights, options, &mut Scratch::new(isa), ctl)
}

fn check(n: usize, weights: Option<usize>, codes: usize, k: usize, most: usize) -> Result<()> {
    if n == 0 || n > MOST {
        bail!("x: expected 1 to {MOST} numbers, got {n}");
    }
    if weights.is_some_and(|w| w != n) {
        bail!("sample_weight: expected {n} weights, got {}", weights.unwrap_or(0));
    }
    if codes != n {
        bail!("codes: expected {n}, got {codes}");
    }
    if k == 0 || k > most {
        bail!("k: expected 1 to {most}, got {k}");
    }
    Ok(())
}

/// Memory used again from row to row; that of long sorts is given back.
struct Scratch<T: Value> {
    keys: [Vec<T::Key>; 2],
    tagged: [Vec<T::Tagged>; 2],
    values: Vec<T>,
    points: Vec<[f64; 2]>,
    passes: [Pass; 3],
}

impl<T: Value> Scratch<T> {
    fn new(isa: Isa) -> Self {
        Scratch {
            keys: Default::default(),
            tagged: Default::default(),
            values: Vec::new(),
            points: Vec::new(),
            passes: [(); 3].map(|()| Pass::new(isa)),
        }
    }
}

fn fit<T: Value>(
    x: &[T],
    weights: Option<&[f64]>,
    options: Options,
    scratch: &mut Scratch<T>,
    ctl: &Ctl,
) -> Result<Fit> {
    // Squares of float64 numbers may overflow or vanish: then all is done with them times a power of two.
    let shift = if T::WIDE { power(x.iter().map(|x| x.to_f64())) } else { 0 };
    let weight_shift = weights.map_or(0, |w| power(w.iter().copied()));
    let least = match weights {
        Some(weights) => {
            sorted_with_weights(x, weights, -weight_shift, scratch, ctl)?;
            scratch.points.iter().map(|p| p[1]).fold(f64::INFINITY, f64::min)
        }
        None => {
            sorted(x, &mut scratch.keys, &mut scratch.values, ctl)?;
            let values = &scratch.values;
            let distinct = 1 + values.windows(2).filter(|v| v[0] != v[1]).count();
            if distinct > values.len() / 2 && options.k < distinct && shift == 0 {
                let passes = &mut scratch.passes;
                return levels(Plain(values), distinct, values.len() as f64, 1.0, options, passes, ctl);
            }
            scratch.points.clear();
            scratch.points.try_reserve(distinct).map_err(|_| Error::Memory(16 * distinct))?;
            scratch.points.extend(values.chunk_by(|a, b| a == b).map(|run| [run[0].to_f64(), run.len() as f64]));
            1.0
        }
    };
    for point in &mut scratch.points {
        point[0] = times_power(point[0], -shift);
    }
    let points = &scratch.points;
    let total: f64 = points.iter().map(|p| p[1]).sum();
    // Some may have become the same.
    let distinct = 1 + points.windows(2).filter(|p| p[0][0] != p[1][0]).count();
    let mut fit = levels(Weighted(points), distinct, total, least, options, &mut scratch.passes, ctl)?;
    for level in &mut fit.levels {
        *level = times_power(*level, shift);
    }
    fit.inertia = times_power(times_power(fit.inertia, weight_shift), 2 * shift);
    if !fit.inertia.is_finite() {
        bail!("x: the squared distances to {} levels sum to more than float64 holds", options.k);
    }
    Ok(fit)
}

/// The power of two that brings the greatest magnitude to about 1, where it is so far from that that
/// squares are in danger; else 0.
pub fn power(x: impl Iterator<Item = f64>) -> i32 {
    let most = x.fold(0.0f64, |most, x| most.max(x.abs()));
    let exponent = (most.to_bits() >> 52) as i32 - 1023;
    if most == 0.0 || !most.is_finite() || exponent.abs() < 400 { 0 } else { exponent }
}

/// `x` times 2 to the `shift`.
pub fn times_power(x: f64, shift: i32) -> f64 {
    let half = |shift: i32| 2.0f64.powi(shift);
    if shift == 0 { x } else { x * half(shift / 2) * half(shift - shift / 2) }
}

/// The distinct values of positive weight, ascending, each with the sum of its weights.
///
/// # Errors
/// [`Error::Value`] where lengths differ, a number or a weight is not finite, a weight is negative or all are zero.
pub fn sorted_weighted<T: Value>(x: &[T], weights: &[f64], ctl: &Ctl) -> Result<Vec<[f64; 2]>> {
    check(x.len(), Some(weights.len()), x.len(), 1, 1)?;
    let mut scratch = Scratch::new(Isa::Scalar);
    sorted_with_weights(x, weights, -power(weights.iter().copied()), &mut scratch, ctl)?;
    Ok(scratch.points)
}

/// `x` in ascending order, -0 as 0.
///
/// # Errors
/// [`Error::Value`] where a number is not finite.
pub fn sorted<T: Value>(x: &[T], keys: &mut [Vec<T::Key>; 2], values: &mut Vec<T>, ctl: &Ctl) -> Result<()> {
    let [keys, other] = keys;
    reserve(keys, x.len())?;
    keys.extend(x.iter().map(|x| x.key()));
    sort::sort(keys, other, ctl)?;
    reserve(values, x.len())?;
    values.extend(keys.iter().map(|&key| T::from_key(key)));
    // What is not finite is at the ends now.
    if [values.first(), values.last()].iter().flatten().any(|x| !x.to_f64().is_finite()) {
        all_finite("x", x.iter().map(|x| x.to_f64()))?;
    }
    if x.len() > TASK {
        (*keys, *other) = (Vec::new(), Vec::new());
    }
    Ok(())
}

/// Distinct values of positive weight, ascending, with their weights, in `scratch.points`.
fn sorted_with_weights<T: Value>(
    x: &[T],
    weights: &[f64],
    shift: i32,
    scratch: &mut Scratch<T>,
    ctl: &Ctl,
) -> Result<()> {
    all_finite("x", x.iter().map(|x| x.to_f64()))?;
    all_finite("sample_weight", weights.iter().copied())?;
    if let Some(i) = weights.iter().position(|&w| w < 0.0) {
        bail!("sample_weight: expected no negative weight, got {} at index {i}", weights[i]);
    }
    if weights.iter().all(|&w| w == 0.0) {
        bail!("sample_weight: expected a positive weight, got zeros alone");
    }
    let [keys, other] = &mut scratch.tagged;
    reserve(keys, x.len())?;
    keys.extend(x.iter().enumerate().filter(|&(i, _)| weights[i] > 0.0).map(|(i, x)| x.tagged(i as u32)));
    sort::sort(keys, other, ctl)?;
    let points = &mut scratch.points;
    reserve(points, keys.len())?;
    for &key in keys.iter() {
        let (x, i) = T::untagged(key);
        let (x, w) = (x.to_f64(), times_power(weights[i as usize], shift));
        match points.last_mut() {
            Some(last) if last[0] == x => last[1] += w,
            _ => points.push([x, w]),
        }
    }
    if x.len() > TASK {
        (*keys, *other) = (Vec::new(), Vec::new());
    }
    Ok(())
}

/// Room for `n` elements in an empty vector.
fn reserve<T>(v: &mut Vec<T>, n: usize) -> Result<()> {
    v.clear();
    v.try_reserve_exact(n).map_err(|_| Error::Memory(n.saturating_mul(size_of::<T>())))
}

fn all_finite(name: &str, x: impl Iterator<Item = f64> + Clone) -> Result<()> {
    let wrong = x.clone().filter(|x| !x.is_finite()).count();
    if wrong > 0 {
        let (i, x) = x.enumerate().find(|(_, x)| !x.is_finite()).unwrap_or((0, f64::NAN));
        bail!("{name}: expected finite values, got {x} at index {i}; {wrong} in all");
    }
    Ok(())
}

/// The levels of sorted points of so many values.
fn levels<P: Points>(
    p: P,
    distinct: usize,
    total: f64,
    least: f64,
    options: Options,
    passes: &mut [Pass; 3],
    ctl: &Ctl,
) -> Result<Fit> {
    let Options { k, pin_zero, method } = options;
    let reach = path::reach(total, least);
    let zero = if pin_zero { (0..p.len()).find(|&i| p.x(i) >= 0.0).unwrap_or(p.len()) } else { p.len() };
    let has_zero = zero < p.len() && p.x(zero) == 0.0;
    if k >= distinct + usize::from(pin_zero && !has_zero) {
        let mut levels: Vec<f64> = (0..p.len()).map(|i| p.x(i)).collect();
        levels.dedup();
        if pin_zero && !has_zero {
            levels.insert(levels.partition_point(|&x| x < 0.0), 0.0);
        }
        levels.resize(k, levels[levels.len() - 1]);
        return Ok(Fit { levels, inertia: 0.0, n_distinct: distinct });
    }
    if pin_zero {
        return pinned::levels(p, zero, k, reach, distinct, &mut passes[0], ctl);
    }
    let mut partition =
        if k == 1 { Partition::new(p, vec![p.len() as u32]) } else { best(p, k, method, [reach, least], passes, ctl)? };
    settle(p, &mut partition, if method == Method::Lloyd { LLOYD } else { POLISH }, ctl)?;
    Ok(Fit { levels: partition.levels(), inertia: partition.squares, n_distinct: distinct })
}

fn best<P: Points>(
    p: P,
    k: usize,
    method: Method,
    [reach, least]: [f64; 2],
    passes: &mut [Pass; 3],
    ctl: &Ctl,
) -> Result<Partition> {
    if p.len() < ESTIMATE * k {
        let fee = 2.0 * Moments::of(p, 0, p.len()).squares / search::cube(k as f64);
        let mut problem = Free { points: p, reach, pass: &mut passes[0] };
        return Ok(search::search(&mut problem, k, fee, || Ok(None), search::EXACT, ctl)?.partition);
    }
    // A fee may be coarser than what Lloyd's iteration starts from, and more so where a grid will mend it. `Pruned`
    // decides that; of a normal density it takes 45 k^(3/2) numbers and more.
    let has_grid = (p.len() as f64) > 45.0 * (k as f64) * (k as f64).sqrt();
    let each = match method {
        Method::Lloyd => 16,
        Method::Exact if has_grid => 56,
        Method::Exact => 24,
    };
    let estimate = prune::estimate(p, k, each, reach, &mut passes[0], ctl)?;
    if method == Method::Lloyd {
        return Ok(Partition::new(p, estimate.ends));
    }
    let near = || {
        let mut near = Partition::new(p, estimate.ends.clone());
        settle(p, &mut near, LLOYD, ctl)?;
        Ok(Some(near).filter(|near| near.count() == k))
    };
    if let Some(mut problem) = Pruned::new(p, k, &estimate, reach, least, passes, ctl)? {
        let fee = problem.fee(estimate.fee, ctl)?;
        return Ok(search::search(&mut problem, k, fee, near, search::EXACT, ctl)?.partition);
    }
    let mut problem = Free { points: p, reach, pass: &mut passes[0] };
    Ok(search::search(&mut problem, k, estimate.fee, near, search::EXACT, ctl)?.partition)
}

/// The most iterations of [`Method::Lloyd`].
const LLOYD: usize = 300;

/// Iterations that put right what rounding put wrong at an optimum.
const POLISH: usize = 10;

/// Lloyd's iteration, at most `most` times: after it every point is with the nearest level, the
/// lower of two that are as near.
fn settle<P: Points>(p: P, partition: &mut Partition, most: usize, ctl: &Ctl) -> Result<()> {
    let Partition { ends, moments, .. } = partition;
    // Weight and sum about the first level, which points that change sides change.
    let origins: Vec<f64> = moments.iter().map(|m| m.mean).collect();
    let mut sums: Vec<[f64; 2]> = moments.iter().map(|m| [m.weight, 0.0]).collect();
    let mut moved = vec![false; ends.len()];
    for _ in 0..most {
        let mut any = false;
        let levels: Vec<f64> = sums.iter().zip(&origins).map(|(&[w, s], origin)| origin + s / w).collect();
        for s in 0..ends.len() - 1 {
            let middle = midpoint(levels[s], levels[s + 1]);
            let (first, last) = (if s == 0 { 0 } else { ends[s - 1] as usize }, ends[s + 1] as usize);
            let before = ends[s] as usize;
            let mut end = before;
            let mut change = |t: usize, sign: f64| {
                for (segment, sign) in [(s, sign), (s + 1, -sign)] {
                    let w = sign * p.w(t);
                    sums[segment][0] += w;
                    sums[segment][1] += w * (p.x(t) - origins[segment]);
                }
            };
            while end - 1 > first && p.x(end - 1) > middle {
                end -= 1;
                change(end, -1.0);
            }
            while end + 1 < last && p.x(end) <= middle {
                change(end, 1.0);
                end += 1;
            }
            if end != before {
                ends[s] = end as u32;
                (any, moved[s], moved[s + 1]) = (true, true, true);
            }
        }
        if !any {
            break;
        }
        ctl.check()?;
    }
    for (s, (i, j)) in segments(ends).enumerate() {
        if moved[s] {
            moments[s] = Moments::of(p, i, j);
        }
    }
    partition.squares = moments.iter().map(|m| m.squares).sum();
    Ok(())
}

/// Halfway between two levels, without overflow, and below the greater one.
pub fn midpoint(a: f64, b: f64) -> f64 {
    let middle = a / 2.0 + b / 2.0;
    if middle < b { middle } else { a }
}

/// Numbers that are counted side by side.
const SIDE: usize = 64;

/// How many of the steps are below each number.
#[inline]
pub fn count_below<T: Value, C: Code>(steps: &[T], x: &[T], codes: &mut [C], isa: Isa) {
    for (x, codes) in x.chunks(SIDE).zip(codes.chunks_mut(SIDE)) {
        let mut below = [0; SIDE];
        add_steps(steps, x, &mut below, isa);
        for (code, below) in codes.iter_mut().zip(below) {
            *code = C::new(below as usize);
        }
    }
}

on_isa! {
    /// Adds to each count how many of the steps are below its number: step by step over all of them, which compilers
    /// make vectors of.
    fn add_steps<T: Value>(steps: &[T], x: &[T], below: &mut [u32; SIDE]) = add_steps_in;
}

#[inline(always)]
fn add_steps_in<T: Value>(_: impl Lanes, steps: &[T], x: &[T], below: &mut [u32; SIDE]) {
    for &step in steps {
        for (&x, below) in x.iter().zip(&mut *below) {
            *below = below.wrapping_add(u32::from(step < x)); // a check for overflow would be no vector's
        }
    }
}

/// Where codes step up: number x has the code that counts the steps below it.
pub struct Steps<T> {
    steps: Vec<T>,
    /// For many numbers: the least code of those whose key begins with each 16 bits.
    by_prefix: Vec<u32>,
}

/// From this many numbers on a table of prefixes pays.
const PREFIXES: usize = 1 << 15;

/// Up to this many steps counting those below beats a search.
const COUNTED: usize = 40;

impl<T: Value> Steps<T> {
    /// Of ascending levels, at least one, of which only the greatest may repeat, for `n` numbers.
    pub fn new(levels: &[f64], n: usize) -> Self {
        // Levels that repeat the greatest one are no number's.
        let levels = &levels[..1 + levels.windows(2).take_while(|l| l[0] < l[1]).count()];
        let steps: Vec<T> = levels.windows(2).map(|l| T::at_most(midpoint(l[0], l[1]))).collect();
        let mut by_prefix = Vec::new();
        if n >= PREFIXES {
            by_prefix.resize(1 << 16, 0);
            let mut prefix = 0;
            for (code, step) in steps.iter().enumerate() {
                // Numbers whose prefix is greater are above this step.
                let next = step.prefix() + 1;
                by_prefix[prefix..next.max(prefix)].fill(code as u32);
                prefix = next.max(prefix);
            }
            by_prefix[prefix..].fill(steps.len() as u32);
        }
        Steps { steps, by_prefix }
    }

    /// The greatest number that each step leaves below, ascending.
    pub fn steps(&self) -> &[T] {
        &self.steps
    }

    /// The code of each number.
    pub fn encode<C: Code>(&self, x: &[T], codes: &mut [C], isa: Isa) {
        if !self.by_prefix.is_empty() {
            for (&x, code) in x.iter().zip(codes) {
                *code = C::new(self.look_up(x));
            }
        } else if self.steps.len() <= COUNTED {
            count_below(&self.steps, x, codes, isa);
        } else {
            for (&x, code) in x.iter().zip(codes) {
                *code = C::new(self.steps.partition_point(|&step| step < x));
            }
        }
    }

    #[inline(always)]
    fn look_up(&self, x: T) -> usize {
        let mut code = self.by_prefix[x.prefix()] as usize;
        while code < self.steps.len() && self.steps[code] < x {
            code += 1;
        }
        code
    }
}

mod pinned {
    //! One level at zero: the points below it and those above are cut by themselves, for one
    //! fee, and the level at zero takes what is left between.

    use super::*;

    /// One side of zero, its points from the far end to zero.
    struct Side<P> {
        points: P,
        /// The squares about zero of the points from each position on.
        rest: Vec<f64>,
    }

    impl<P: Points> Side<P> {
        fn new(points: P) -> Result<Self> {
            let n = points.len();
            let mut rest = try_zeroed(n + 1)?;
            for i in (0..n).rev() {
                rest[i] = rest[i + 1] + points.w(i) * (points.x(i) * points.x(i));
            }
            Ok(Side { points, rest })
        }

        /// Ends of the best segments for a fee; what follows the last one is with zero.
        fn solve(&self, fee: f64, reach: f64, pass: &mut Pass, ctl: &Ctl) -> Result<Vec<u32>> {
            pass.run(self.points, fee, reach, ctl)?;
            let n = self.points.len();
            let total = |i: usize| pass.cost[i] + self.rest[i];
            let end = (0..=n).fold(0, |best, i| if total(i) < total(best) { i } else { best });
            Ok(pass.ends(end))
        }

        fn moments(&self, ends: &[u32]) -> Vec<Moments> {
            segments(ends).map(|(i, j)| Moments::of(self.points, i, j)).collect()
        }

        fn at_zero(&self, ends: &[u32]) -> f64 {
            self.rest[ends.last().map_or(0, |&e| e as usize)]
        }
    }

    /// Some of the sorted points.
    #[derive(Clone, Copy)]
    struct Part<P> {
        points: P,
        first: usize,
        len: usize,
    }

    impl<P: Points> Points for Part<P> {
        fn len(&self) -> usize {
            self.len
        }
        #[inline(always)]
        fn x(&self, i: usize) -> f64 {
            self.points.x(self.first + i)
        }
        #[inline(always)]
        fn w(&self, i: usize) -> f64 {
            self.points.w(self.first + i)
        }
    }

    /// Both sides. A partition's ends are those below zero, then the level at zero as [`ZERO`],
    /// then those above.
    struct Sides<'a, P> {
        below: Side<Part<P>>,
        above: Side<Reversed<Part<P>>>,
        reach: f64,
        pass: &'a mut Pass,
    }

    const ZERO: u32 = u32::MAX;

    impl<P: Points> Sides<'_, P> {
        fn partition(&self, below: &[u32], above: &[u32]) -> Partition {
            let squares = self.below.at_zero(below) + self.above.at_zero(above);
            let zero = Moments { weight: 0.0, mean: 0.0, squares };
            let mirrored = self.above.moments(above).into_iter().rev().map(|m| Moments { mean: -m.mean, ..m });
            let moments = self.below.moments(below).into_iter().chain([zero]).chain(mirrored).collect();
            Partition::of([below, &[ZERO], above].concat(), moments)
        }

        fn parts(partition: &Partition) -> (&[u32], &[u32]) {
            let zero = partition.ends.iter().position(|&e| e == ZERO).expect("zero has a level");
            (&partition.ends[..zero], &partition.ends[zero + 1..])
        }

        /// Between two lists of ends on one side, with `k` segments: the rest at zero is a segment more.
        fn between(few: &[u32], many: &[u32], k: usize, n: usize) -> Vec<u32> {
            let with_rest = |ends: &[u32]| [ends, &[n as u32]].concat();
            let mut ends = search::join(&with_rest(few), &with_rest(many), k + 1);
            ends.pop();
            ends
        }
    }

    impl<P: Points> Problem for Sides<'_, P> {
        fn most(&self) -> usize {
            self.below.points.len() + self.above.points.len() + 1
        }

        fn solve(&mut self, fee: f64, ctl: &Ctl) -> Result<Partition> {
            let below = self.below.solve(fee, self.reach, self.pass, ctl)?;
            let above = self.above.solve(fee, self.reach, self.pass, ctl)?;
            Ok(self.partition(&below, &above))
        }

        fn between(&self, few: &Partition, many: &Partition, k: usize) -> Partition {
            let ((few_below, few_above), (many_below, many_above)) = (Self::parts(few), Self::parts(many));
            // As many more below as there can be, the rest above.
            let below = many_below.len().min(k - 1 - few_above.len()).max(few_below.len());
            let below = Self::between(few_below, many_below, below, self.below.points.len());
            let above = Self::between(few_above, many_above, k - 1 - below.len(), self.above.points.len());
            self.partition(&below, &above)
        }
    }

    pub(super) fn levels<P: Points>(
        p: P,
        zero: usize,
        k: usize,
        reach: f64,
        distinct: usize,
        pass: &mut Pass,
        ctl: &Ctl,
    ) -> Result<Fit> {
        let n = p.len();
        let positive = (zero..n).find(|&i| p.x(i) > 0.0).unwrap_or(n);
        let below = Side::new(Part { points: p, first: 0, len: zero })?;
        let above = Side::new(Reversed(Part { points: p, first: positive, len: n - positive }))?;
        let squares = below.rest[0] + above.rest[0];
        let mut sides = Sides { below, above, reach, pass };
        let fee = 2.0 * squares / search::cube(k as f64);
        let partition = if k == 1 {
            sides.partition(&[], &[])
        } else {
            search::search(&mut sides, k, fee, || Ok(None), search::EXACT, ctl)?.partition
        };
        Ok(Fit { levels: partition.levels(), inertia: partition.squares, n_distinct: distinct })
    }
}
