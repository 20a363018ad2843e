//! Scales and zero points from data: the greatest magnitude, a percentile, or
//! the least squared error.
//!
//! A group of up to [`TASK`] values is one unit of work; a longer one is cut
//! into chunks of that length, whose extremes, counts and sums of squares are
//! then put together in order, so that the thread count changes nothing.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::scalar::{self, Real};
use super::{Clip, Floats, Layout, Levels, TASK, not_finite};
use crate::error::{bail, try_zeroed};
use crate::par::Parts;
use crate::{Ctl, Error, Isa, Result};

/// How the range that the codes are to span follows from a group's values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// All of it.
    AbsMax,
    /// Symmetric: the least magnitude such that this percentage of all
    /// magnitudes is at most that. Otherwise half of what is left out is at
    /// either end. A range of nothing but zeros gives way to all of it.
    Percentile(f64),
    /// The whole range or one scaled down about zero, whichever has the least
    /// sum of squared errors: of the ratios 1, 15/16, … 9/16 and their halves
    /// down to 9/512, floats with three bits of mantissa, the best; then the
    /// seven on either side of it with six bits. Of equals, the wider.
    Mse,
}

/// Coarse ratios of [`Method::Mse`]: eight in each of six octaves.
const COARSE: usize = 48;

/// Fine ratios between two coarse ones.
const FINE: u32 = 8;

/// The ratio that is `step` fine steps below 1.
fn ratio(step: u32) -> f32 {
    f32::from_bits(1f32.to_bits() - (step << 17))
}

/// Scales and zero points for the groups of `layout`. `sample_weight` has one
/// weight for each value, or none; a group of weight 0 counts as unweighted,
/// and the number of these is returned. [`Method::AbsMax`] takes none.
///
/// All zeros give scale 1 and codes of zero; one repeated value is its own
/// scale, and exact, unless it is below 2^-126.
///
/// # Errors
/// [`Error::Value`] where lengths do not fit, a value is NaN or infinite, a
/// weight is NaN, infinite or negative, all weights are 0, a percentile is not
/// above 0 and at most 100, or a scale exceeds float32; [`Error::Memory`];
/// [`Error::Interrupted`].
pub fn choose_qparams(
    x: Floats,
    layout: &Layout,
    levels: &Levels,
    method: Method,
    sample_weight: Option<&[f32]>,
    scale: &mut [f32],
    zero_point: &mut [i32],
    isa: Isa,
    ctl: &Ctl,
) -> Result<usize> {
    layout.check("x", x.len())?;
    if scale.len() != layout.groups() || zero_point.len() != layout.groups() {
        bail!("scale, zero_point: expected {} each, got {} and {}", layout.groups(), scale.len(), zero_point.len());
    }
    if let Method::Percentile(p) = method
        && !(p > 0.0 && p <= 100.0)
    {
        bail!("percentile: expected above 0 and at most 100, got {p}");
    }
    if let Some(weight) = sample_weight {
        layout.check("sample_weight", weight.len())?;
        if method == Method::AbsMax {
            bail!("sample_weight: method 'absmax' takes none; use 'mse' or 'percentile'");
        }
    }
    let job = Job { x, weight: sample_weight, layout, levels, method, isa };
    match x {
        Floats::F64(_) => job.run::<f64>(scale, zero_point, ctl),
        _ => job.run::<f32>(scale, zero_point, ctl),
    }
}

/// A real type with the kernels that take it.
trait Values: Real + 'static {
    /// The values themselves, where they are of this type.
    fn borrow(x: Floats<'_>) -> Option<&[Self]>;
    /// The values as this type, exactly.
    fn widen(x: Floats, out: &mut [Self]);
    fn extremes(x: Floats, isa: Isa) -> Option<(Self, Self)>;
    fn squares(x: &[Self], weight: Option<&[f32]>, clip: &Clip, bound: f64, isa: Isa) -> f64;
    fn as_floats(x: &[Self]) -> Floats<'_>;
    /// Whether a product of codes and a scale for this range may overflow.
    fn huge(amax: Self) -> bool;
    /// Ascending as the values are.
    fn key(self) -> u64;
    fn of_key(key: u64) -> Self;
    /// 16-bit digits of a key.
    const DIGITS: u32;
}

impl Values for f32 {
    fn borrow(x: Floats<'_>) -> Option<&[f32]> {
        if let Floats::F32(x) = x { Some(x) } else { None }
    }
    fn widen(x: Floats, out: &mut [f32]) {
        match x {
            Floats::F32(x) => out.copy_from_slice(x),
            Floats::Bf16(x) => x.reinterpret_cast::<half::bf16>().convert_to_f32_slice(out),
            Floats::F16(x) => x.reinterpret_cast::<half::f16>().convert_to_f32_slice(out),
            Floats::F64(x) => out.iter_mut().zip(x).for_each(|(o, x)| *o = *x as f32),
        }
    }
    fn extremes(x: Floats, isa: Isa) -> Option<(f32, f32)> {
        match x {
            Floats::F32(x) => super::extremes(x, isa),
            Floats::Bf16(x) => super::extremes_bf16(x, isa),
            _ => {
                let mut wide = [0.0; scalar::BLOCK];
                let mut seen = (f32::INFINITY, f32::NEG_INFINITY);
                for at in (0..x.len()).step_by(wide.len()) {
                    let part = x.part(at..x.len().min(at + wide.len()));
                    let wide = &mut wide[..part.len()];
                    Self::widen(part, wide);
                    seen = wider(seen, super::extremes(wide, isa)?);
                }
                Some(seen)
            }
        }
    }
    fn squares(x: &[f32], weight: Option<&[f32]>, clip: &Clip, bound: f64, isa: Isa) -> f64 {
        super::squares(x, weight, clip, bound, isa)
    }
    fn as_floats(x: &[f32]) -> Floats<'_> {
        Floats::F32(x)
    }
    fn huge(amax: f32) -> bool {
        amax > f32::MAX / 4.0
    }
    fn key(self) -> u64 {
        let bits = self.to_bits();
        u64::from(if bits >> 31 == 1 { !bits } else { bits | 1 << 31 })
    }
    fn of_key(key: u64) -> f32 {
        let bits = key as u32;
        f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
    }
    const DIGITS: u32 = 2;
}

impl Values for f64 {
    fn borrow(x: Floats<'_>) -> Option<&[f64]> {
        if let Floats::F64(x) = x { Some(x) } else { None }
    }
    fn widen(x: Floats, out: &mut [f64]) {
        (0..x.len()).zip(out).for_each(|(i, out)| *out = x.at(i));
    }
    fn extremes(x: Floats, isa: Isa) -> Option<(f64, f64)> {
        if let Floats::F64(x) = x { super::extremes_f64(x, isa) } else { None }
    }
    fn squares(x: &[f64], weight: Option<&[f32]>, clip: &Clip, bound: f64, isa: Isa) -> f64 {
        super::squares_f64(x, weight, clip, bound, isa)
    }
    fn as_floats(x: &[f64]) -> Floats<'_> {
        Floats::F64(x)
    }
    fn huge(_: f64) -> bool {
        false // the scale is float32
    }
    fn key(self) -> u64 {
        let bits = self.to_bits();
        if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
    }
    fn of_key(key: u64) -> f64 {
        f64::from_bits(if key >> 63 == 1 { key & !(1 << 63) } else { !key })
    }
    const DIGITS: u32 = 4;
}

/// Whether no value is NaN or infinite.
pub(crate) fn all_finite(x: Floats, isa: Isa) -> bool {
    match x {
        Floats::F64(_) => f64::extremes(x, isa).is_some(),
        _ => f32::extremes(x, isa).is_some(),
    }
}

fn wider<R: Real>(a: (R, R), b: (R, R)) -> (R, R) {
    (if b.0 < a.0 { b.0 } else { a.0 }, if b.1 > a.1 { b.1 } else { a.1 })
}

/// The first of neighbouring candidates with the least error, as (step, error).
struct Best(u32, f64);

impl Best {
    fn offer(&mut self, step: u32, error: f64) {
        if error < self.1 || (error == self.1 && step < self.0) {
            *self = Best(step, error);
        }
    }
}

impl Default for Best {
    fn default() -> Self {
        Best(0, f64::INFINITY)
    }
}

struct Job<'a> {
    x: Floats<'a>,
    weight: Option<&'a [f32]>,
    layout: &'a Layout,
    levels: &'a Levels,
    method: Method,
    isa: Isa,
}

/// A thread's memory for the values and weights of a unit.
struct Scratch<R> {
    x: Vec<R>,
    weight: Vec<f32>,
    sort: Vec<(R, f32)>,
    /// Those of all groups of a task, where they lie strided.
    tile: Tile<R>,
    weight_tile: Tile<f32>,
}

/// Neighbouring channels' values, turned into rows: reading one channel alone
/// would take a cache line, and often a page, for each value.
#[derive(Default)]
struct Tile<R>(Vec<R>);

/// What a row of a tile is longer by, so that rows do not share cache sets.
const PAD: usize = 16;

impl<R: Values> Tile<R> {
    fn with_room(layout: &Layout, per: usize) -> Result<Self> {
        let room = layout.strided().map_or(0, |_| per * (layout.longest() + PAD));
        Ok(Tile(try_zeroed(room)?))
    }

    /// Takes `count` channels, where the layout is strided.
    fn fill(&mut self, x: Floats, layout: &Layout, first: usize, count: usize) {
        let Some((outer, channels, inner)) = layout.strided() else { return };
        let pitch = outer * inner + PAD;
        let mut wide = [R::default(); scalar::BLOCK];
        for o in 0..outer {
            let start = (o * channels + first) * inner;
            if inner > 1 {
                for i in 0..count {
                    let at = i * pitch + o * inner;
                    let from = start + i * inner;
                    R::widen(x.part(from..from + inner), &mut self.0[at..at + inner]);
                }
                continue;
            }
            for i in (0..count).step_by(wide.len()) {
                let n = wide.len().min(count - i);
                let part = x.part(start + i..start + i + n);
                let values = R::borrow(part).unwrap_or_else(|| {
                    R::widen(part, &mut wide[..n]);
                    &wide[..n]
                });
                for (k, &value) in values.iter().enumerate() {
                    self.0[(i + k) * pitch + o] = value;
                }
            }
        }
    }

    /// The `i`th channel's values.
    fn row(&self, layout: &Layout, i: usize) -> Option<&[R]> {
        let (n, pitch) = (layout.longest(), layout.longest() + PAD);
        layout.strided().map(|_| &self.0[i * pitch..i * pitch + n])
    }
}

/// What went wrong, or is to be told, in any task.
struct Findings {
    x_finite: AtomicBool,
    weight_fine: AtomicBool,
    unweighted: AtomicUsize,
}

impl Findings {
    fn extremes<R>(&self, seen: Option<(R, R)>) -> Option<(R, R)> {
        if seen.is_none() {
            self.x_finite.store(false, Relaxed);
        }
        seen
    }

    /// Whether any weight is above 0, from the extremes of weights.
    fn weighted(&self, seen: Option<(f32, f32)>) -> Option<bool> {
        let seen = seen.filter(|(low, _)| *low >= 0.0);
        if seen.is_none() {
            self.weight_fine.store(false, Relaxed);
        }
        seen.map(|(_, high)| high > 0.0)
    }
}

impl Job<'_> {
    fn run<R: Values>(&self, scale: &mut [f32], zero_point: &mut [i32], ctl: &Ctl) -> Result<usize> {
        let found = Findings {
            x_finite: AtomicBool::new(true),
            weight_fine: AtomicBool::new(true),
            unweighted: AtomicUsize::new(0),
        };
        if self.layout.longest() <= TASK {
            self.short::<R>(scale, zero_point, &found, ctl)?;
        } else {
            self.long::<R>(scale, zero_point, &found, ctl)?;
        }
        if let Some(group) = scale.iter().position(|s| *s == f32::INFINITY) {
            bail!("x: the scale of group {group} exceeds float32: the values are too large");
        }
        let unweighted = found.unweighted.into_inner();
        if unweighted == self.layout.groups() {
            bail!("sample_weight: expected a weight above 0, got zeros alone");
        }
        Ok(unweighted)
    }

    /// Groups that are a unit each.
    fn short<R: Values>(&self, scale: &mut [f32], zero_point: &mut [i32], found: &Findings, ctl: &Ctl) -> Result<()> {
        let per = TASK / self.layout.longest();
        let scratch = self.scratch::<R>(ctl, per)?;
        let parts = Parts::new(scale.chunks_mut(per).zip(zero_point.chunks_mut(per)));
        ctl.for_each(parts.len(), &|slot, task| {
            let scratch = &mut *scratch[slot].lock().unwrap_or_else(PoisonError::into_inner);
            let (scale, zero_point) = parts.take(task);
            scratch.tile.fill(self.x, self.layout, task * per, scale.len());
            if let Some(weight) = self.weight {
                scratch.weight_tile.fill(Floats::F32(weight), self.layout, task * per, scale.len());
            }
            for (i, (scale, zero_point)) in scale.iter_mut().zip(zero_point).enumerate() {
                if let Some((s, z)) = self.group::<R>(task * per, i, scratch, found) {
                    (*scale, *zero_point) = (s, z.into());
                }
            }
        })?;
        self.complain(found)
    }

    /// Scale and zero point of one short group, the `i`th of a task.
    fn group<R: Values>(
        &self,
        first: usize,
        i: usize,
        scratch: &mut Scratch<R>,
        found: &Findings,
    ) -> Option<(f32, u8)> {
        let (layout, group) = (self.layout, first + i);
        let all = 0..layout.len(group);
        let Scratch { x, weight, sort, tile, weight_tile } = scratch;
        let tiled = tile.row(layout, i);
        let seen = match (tiled, layout.span(group, &all)) {
            (None, Some(span)) => R::extremes(self.x.part(span), self.isa),
            (None, None) => R::extremes(R::as_floats(fetch(self.x, layout, group, all.clone(), x)), self.isa),
            (Some(x), _) => R::extremes(R::as_floats(x), self.isa),
        };
        let (low, high) = found.extremes(seen)?;
        let weight = match self.weight {
            None => None,
            Some(w) => {
                let values = match weight_tile.row(layout, i) {
                    Some(values) => values,
                    None => view(Floats::F32(w), layout, group, all.clone(), weight),
                };
                let weighted = found.weighted(super::extremes(values, self.isa))?;
                found.unweighted.fetch_add(usize::from(!weighted), Relaxed);
                weighted.then_some(values)
            }
        };
        if low == high {
            return Some(scalar::constant(low, self.levels));
        }
        let whole = scalar::range(low, high, self.levels);
        Some(match self.method {
            Method::AbsMax => whole,
            Method::Percentile(p) => {
                let x = match tiled {
                    Some(values) => {
                        let x = &mut x[..values.len()];
                        x.copy_from_slice(values);
                        x
                    }
                    None => fetch(self.x, layout, group, all, x),
                };
                let clip = match weight {
                    None => by_count(x, p, self.levels.symmetric),
                    Some(weight) => {
                        sort.clear();
                        sort.extend(x.iter().copied().zip(weight.iter().copied()));
                        by_weight(sort, p, self.levels.symmetric)
                    }
                };
                self.clipped(clip, (low, high))
            }
            Method::Mse if whole.0 == f32::INFINITY => whole,
            Method::Mse => {
                let x = tiled.unwrap_or_else(|| view(self.x, layout, group, all, x));
                let mut best = Best::default();
                let offer = |best: &mut Best, step: u32| {
                    let error = R::squares(x, weight, &self.clip(low, high, step), best.1, self.isa);
                    best.offer(step, error);
                };
                (0..COARSE as u32).for_each(|i| offer(&mut best, i * FINE));
                fine(best.0).for_each(|step| offer(&mut best, step));
                self.scaled(low, high, best.0)
            }
        })
    }

    /// Groups that are several units each.
    fn long<R: Values>(&self, scale: &mut [f32], zero_point: &mut [i32], found: &Findings, ctl: &Ctl) -> Result<()> {
        let groups = scale.len();
        let units = self.layout.longest().div_ceil(TASK);
        let scratch = self.scratch::<R>(ctl, 0)?;
        let part = |group: usize, unit: usize| {
            let len = self.layout.len(group);
            (unit * TASK).min(len)..((unit + 1) * TASK).min(len)
        };

        // Extremes, and whether any weight is above 0.
        let mut seen = try_zeroed::<(R, R, bool)>(groups * units)?;
        let parts = Parts::new(seen.iter_mut());
        ctl.for_each(groups * units, &|slot, task| {
            let scratch = &mut *scratch[slot].lock().unwrap_or_else(PoisonError::into_inner);
            let (group, seen) = (task / units, parts.take(task));
            let part = part(group, task % units);
            if part.is_empty() {
                return;
            }
            let extremes = match self.layout.span(group, &part) {
                Some(span) => R::extremes(self.x.part(span), self.isa),
                None => {
                    let x = fetch(self.x, self.layout, group, part.clone(), &mut scratch.x);
                    R::extremes(R::as_floats(x), self.isa)
                }
            };
            let weighted = self.weight.map_or(Some(false), |weight| {
                let weight = view(Floats::F32(weight), self.layout, group, part, &mut scratch.weight);
                found.weighted(super::extremes(weight, self.isa))
            });
            if let (Some((low, high)), Some(weighted)) = (found.extremes(extremes), weighted) {
                *seen = (low, high, weighted);
            }
        })?;
        drop(parts);
        self.complain(found)?;
        let ranges: Vec<(R, R, bool)> = (0..groups)
            .map(|group| {
                // A last group may be shorter and have units without values.
                let units = seen[group * units..].iter().take(self.layout.len(group).div_ceil(TASK));
                units
                    .copied()
                    .reduce(|a, b| {
                        let (low, high) = wider((a.0, a.1), (b.0, b.1));
                        (low, high, a.2 || b.2)
                    })
                    .unwrap_or_default()
            })
            .collect();
        if self.weight.is_some() {
            found.unweighted.store(ranges.iter().filter(|r| !r.2).count(), Relaxed);
        }
        for ((&(low, high, _), scale), zero_point) in ranges.iter().zip(&mut *scale).zip(&mut *zero_point) {
            let (s, z) = scalar::fit(low, high, self.levels);
            (*scale, *zero_point) = (s, z.into());
        }

        let open = |group: usize| ranges[group].0 < ranges[group].1;
        match self.method {
            Method::AbsMax => {}
            Method::Percentile(p) => {
                for group in (0..groups).filter(|&g| open(g)) {
                    let (low, high, weighted) = ranges[group];
                    let clip = if weighted {
                        let mut sort = try_zeroed::<(R, f32)>(self.layout.len(group))?;
                        self.pairs(group, &mut sort);
                        by_weight(&mut sort, p, self.levels.symmetric)
                    } else {
                        let digits = |above: bool, rank: usize| {
                            self.select::<R>(group, above, rank, &scratch, units, &part, ctl)
                        };
                        let n = self.layout.len(group);
                        if self.levels.symmetric {
                            let amax = digits(true, rank(n, p))?;
                            (-amax, amax)
                        } else {
                            let high = rank(n, (100.0 + p) / 2.0);
                            (digits(false, n + 1 - high)?, digits(false, high)?)
                        }
                    };
                    let (s, z) = self.clipped(clip, (low, high));
                    (scale[group], zero_point[group]) = (s, z.into());
                }
            }
            Method::Mse => {
                if scale.contains(&f32::INFINITY) {
                    return Ok(()); // the caller complains
                }
                let mut best: Vec<Best> = (0..groups).map(|_| Best::default()).collect();
                for coarse in [true, false] {
                    let steps: Vec<Vec<u32>> =
                        best.iter()
                            .map(|b| {
                                if coarse {
                                    (0..COARSE as u32).map(|i| i * FINE).collect()
                                } else {
                                    fine(b.0).collect()
                                }
                            })
                            .collect();
                    let mut sums = try_zeroed::<f64>(groups * units * COARSE)?;
                    let parts = Parts::new(sums.chunks_mut(COARSE));
                    ctl.for_each(groups * units, &|slot, task| {
                        let (group, sums) = (task / units, parts.take(task));
                        let part = part(group, task % units);
                        if !open(group) || part.is_empty() {
                            return;
                        }
                        let scratch = &mut *scratch[slot].lock().unwrap_or_else(PoisonError::into_inner);
                        let Scratch { x, weight, .. } = scratch;
                        let (low, high, weighted) = ranges[group];
                        let x = view(self.x, self.layout, group, part.clone(), x);
                        let weight = match self.weight {
                            Some(w) if weighted => Some(view(Floats::F32(w), self.layout, group, part, weight)),
                            _ => None,
                        };
                        for (&step, sum) in steps[group].iter().zip(sums) {
                            *sum = R::squares(x, weight, &self.clip(low, high, step), f64::INFINITY, self.isa);
                        }
                    })?;
                    drop(parts);
                    for (group, (steps, best)) in steps.iter().zip(&mut best).enumerate() {
                        for (i, &step) in steps.iter().enumerate() {
                            best.offer(step, (0..units).map(|u| sums[(group * units + u) * COARSE + i]).sum());
                        }
                    }
                }
                for group in (0..groups).filter(|&g| open(g)) {
                    let (low, high, _) = ranges[group];
                    let (s, z) = self.scaled(low, high, best[group].0);
                    (scale[group], zero_point[group]) = (s, z.into());
                }
            }
        }
        Ok(())
    }

    /// For each thread, for tasks of `per` short groups, or for long ones if 0.
    fn scratch<R: Values>(&self, ctl: &Ctl, per: usize) -> Result<Vec<Mutex<Scratch<R>>>> {
        let n = self.layout.longest().min(TASK);
        let weights = if self.weight.is_some() { n } else { 0 };
        let pairs = if per > 0 && matches!(self.method, Method::Percentile(_)) { weights } else { 0 };
        (0..ctl.threads())
            .map(|_| {
                let mut sort = Vec::new();
                sort.try_reserve_exact(pairs).map_err(|_| Error::Memory(pairs * size_of::<(R, f32)>()))?;
                Ok(Mutex::new(Scratch {
                    x: try_zeroed(n)?,
                    weight: try_zeroed(weights)?,
                    sort,
                    tile: Tile::with_room(self.layout, per)?,
                    weight_tile: Tile::with_room(self.layout, if weights > 0 { per } else { 0 })?,
                }))
            })
            .collect()
    }

    fn complain(&self, found: &Findings) -> Result<()> {
        if !found.x_finite.load(Relaxed) {
            return Err(not_finite("x", self.x, self.isa));
        }
        let Some(weight) = self.weight.filter(|_| !found.weight_fine.load(Relaxed)) else { return Ok(()) };
        let wrong = |w: &f32| !(0.0..f32::INFINITY).contains(w);
        let at = weight.iter().position(wrong).unwrap_or_default();
        let count = weight.iter().filter(|w| wrong(w)).count();
        bail!(
            "sample_weight: expected finite weights of at least 0, got {count} that are not, the first {} at flat index {at}",
            weight[at]
        )
    }

    /// The candidate that many fine steps below the whole range.
    fn clip<R: Values>(&self, low: R, high: R, step: u32) -> Clip {
        let (scale, zero_point) = self.scaled(low, high, step);
        let (zp, (qmin, qmax)) = (f32::from(zero_point), self.levels.bounds());
        let huge = R::huge(if high > -low { high } else { -low });
        Clip { scale, inv_scale: 1.0 / scale, least: qmin - zp, most: qmax - zp, huge }
    }

    fn scaled<R: Values>(&self, low: R, high: R, step: u32) -> (f32, u8) {
        let ratio = R::of(ratio(step));
        scalar::range(low * ratio, high * ratio, self.levels)
    }

    /// The range that a percentile left, or all of it where that is zeros.
    fn clipped<R: Values>(&self, clip: (R, R), all: (R, R)) -> (f32, u8) {
        let zero = R::of(0.0);
        let (low, high) = if clip.0 == zero && clip.1 == zero { all } else { clip };
        scalar::range(low, high, self.levels)
    }

    /// A long group's values and weights.
    fn pairs<R: Values>(&self, group: usize, out: &mut [(R, f32)]) {
        let mut wide = [R::default(); scalar::BLOCK];
        let n = out.len();
        for (i, out) in out.chunks_mut(wide.len()).enumerate() {
            let part = i * wide.len()..n.min((i + 1) * wide.len());
            let mut at = 0;
            for piece in self.layout.pieces(group, part) {
                let wide = &mut wide[..piece.len()];
                R::widen(self.x.part(piece.clone()), wide);
                for (k, &x) in wide.iter().enumerate() {
                    out[at + k] = (x, self.weight.map_or(1.0, |w| w[piece.start + k]));
                }
                at += piece.len();
            }
        }
    }

    /// The `rank`th least (from 1) of a long group's values, or of their
    /// magnitudes: counts of one 16-bit digit of their keys after the other.
    fn select<R: Values>(
        &self,
        group: usize,
        magnitudes: bool,
        rank: usize,
        scratch: &[Mutex<Scratch<R>>],
        units: usize,
        part: &(dyn Fn(usize, usize) -> Range<usize> + Sync),
        ctl: &Ctl,
    ) -> Result<R> {
        let (mut prefix, mut rank) = (0u64, rank);
        for digit in (0..R::DIGITS).rev() {
            let shift = digit * 16;
            let mut counts = Vec::new();
            for _ in 0..ctl.threads().min(units) {
                counts.push(Mutex::new(try_zeroed::<usize>(1 << 16)?));
            }
            ctl.for_each(units, &|slot, unit| {
                let scratch = &mut *scratch[slot].lock().unwrap_or_else(PoisonError::into_inner);
                let mut counts = counts[slot].lock().unwrap_or_else(PoisonError::into_inner);
                for &x in view(self.x, self.layout, group, part(group, unit), &mut scratch.x) {
                    let key = if magnitudes && x < R::of(0.0) { -x } else { x }.key();
                    if (key ^ prefix).checked_shr(shift + 16).is_none_or(|high| high == 0) {
                        counts[(key >> shift) as usize & 0xffff] += 1;
                    }
                }
            })?;
            let mut counts = counts.into_iter().map(|c| c.into_inner().unwrap_or_else(PoisonError::into_inner));
            let mut total = counts.next().unwrap_or_default();
            for other in counts {
                total.iter_mut().zip(other).for_each(|(t, c)| *t += c);
            }
            let mut found = total.len() - 1;
            for (value, &count) in total.iter().enumerate() {
                if rank <= count {
                    found = value;
                    break;
                }
                rank -= count;
            }
            prefix |= (found as u64) << shift;
        }
        Ok(R::of_key(prefix))
    }
}

/// The fine steps on either side of a coarse one.
fn fine(best: u32) -> impl Iterator<Item = u32> {
    let low = best.saturating_sub(FINE - 1).max(1);
    (low..best + FINE).filter(move |&step| step != best)
}

/// How many values are at most the `p`th percentile of `n`.
fn rank(n: usize, p: f64) -> usize {
    ((n as f64 * p / 100.0).ceil() as usize).clamp(1, n)
}

fn order<R: Real>(a: &R, b: &R) -> Ordering {
    a.partial_cmp(b).unwrap_or(Ordering::Equal)
}

/// The range that the `p`th percentile leaves.
fn by_count<R: Real>(x: &mut [R], p: f64, symmetric: bool) -> (R, R) {
    let n = x.len();
    if symmetric {
        x.iter_mut().for_each(|x| *x = if *x < R::of(0.0) { -*x } else { *x });
        let amax = *x.select_nth_unstable_by(rank(n, p) - 1, order).1;
        return (-amax, amax);
    }
    let high = rank(n, (100.0 + p) / 2.0);
    let low = *x.select_nth_unstable_by(n - high, order).1;
    (low, *x.select_nth_unstable_by(high - 1, order).1)
}

/// [`by_count`] with weights for counts.
fn by_weight<R: Real>(x: &mut [(R, f32)], p: f64, symmetric: bool) -> (R, R) {
    if symmetric {
        x.iter_mut().for_each(|x| x.0 = if x.0 < R::of(0.0) { -x.0 } else { x.0 });
        let amax = least_above(x, p);
        return (-amax, amax);
    }
    let p = (100.0 + p) / 2.0;
    let high = least_above(&mut x.to_vec(), p);
    x.iter_mut().for_each(|x| x.0 = -x.0);
    (-least_above(x, p), high)
}

/// The least value such that `p` percent of all weight is on values up to it,
/// summed in ascending order, equals in theirs.
fn least_above<R: Real>(x: &mut [(R, f32)], p: f64) -> R {
    x.sort_by(|a, b| order(&a.0, &b.0));
    let total: f64 = x.iter().map(|x| f64::from(x.1)).sum();
    let target = total * p / 100.0;
    let mut sum = 0.0;
    for &(value, weight) in &*x {
        sum += f64::from(weight);
        if sum >= target {
            return value;
        }
    }
    x.last().map_or(R::of(0.0), |x| x.0)
}

/// The values of a part of a group in order, copied and widened.
fn fetch<'a, R: Values>(
    x: Floats,
    layout: &Layout,
    group: usize,
    part: Range<usize>,
    scratch: &'a mut [R],
) -> &'a mut [R] {
    let scratch = &mut scratch[..part.len()];
    if let (Some((first, stride)), Some(x)) = (layout.stride(group), R::borrow(x)) {
        let x = &x[first + part.start * stride..];
        scratch.iter_mut().zip(x.iter().step_by(stride)).for_each(|(to, x)| *to = *x);
        return scratch;
    }
    let mut at = 0;
    for piece in layout.pieces(group, part) {
        let to = at..at + piece.len();
        at = to.end;
        R::widen(x.part(piece), &mut scratch[to]);
    }
    scratch
}

/// As [`fetch`], copied only if need be.
fn view<'a, R: Values>(
    x: Floats<'a>,
    layout: &Layout,
    group: usize,
    part: Range<usize>,
    scratch: &'a mut [R],
) -> &'a [R] {
    if let (Some(x), Some(span)) = (R::borrow(x), layout.span(group, &part)) {
        return &x[span];
    }
    fetch(x, layout, group, part, scratch)
}
