//! Scales, multipliers and codes of a weight whose tables are given.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::groups::Groups;
use super::tables::{Codebook, MOST, fold, fours};
use crate::affine::GroupedRows;
use crate::error::{bail, checked_product, try_zeroed};
use crate::lanes::{Lanes, on_isa};
use crate::par::Parts;
use crate::{Ctl, Isa, Result};

/// Sizes of multipliers that are tried, from that for which a group's largest value is its
/// table's largest entry times 17/16 down to half; then those next to the best.
const TRIED: usize = 10;
/// Sums that elements go to in turn.
const SUMS: usize = 16;
/// Of integers, what a row's root mean square is at most: then four of them that are summed
/// in 16 bits hardly ever are too large.
const RMS: f32 = 18.0;
/// By how much the largest integer stays below 127: it leaves something for those that are
/// summed with it.
const HEADROOM: f32 = 1.3;
/// The smallest scale: smaller ones have no reciprocal.
const MIN_SCALE: f32 = f32::MIN_POSITIVE;

/// Chooses for each group of `w` (n, `k`), its tables given, the multiplier, of either sign,
/// for which the squared error is least, each input's counted as `importance` says, as far
/// as a search finds it; and each weight's nearest entry. A row's scale is the least for
/// which no multiplier is past 127 and, of integers, none past 98, and their root mean square
/// not past 18. Zero points are not looked at.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, a weight is not finite, a table is not
/// ascending; [`crate::Error::Memory`]; [`crate::Error::Interrupted`].
pub fn fit_groups(
    w: &[f32],
    k: usize,
    groups: Groups,
    codebook: Codebook,
    importance: Option<&[f32]>,
    out: &mut GroupedRows,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let n = out.scale.len();
    out.check(n, k, groups.group_size())?;
    groups.check_codebook(Some(codebook), k, n)?;
    if k == 0 || w.len() != checked_product("w", &[n, k])? {
        bail!("w: expected {n} rows of {k} (at least 1), got {} values", w.len());
    }
    if let Some(importance) = importance
        && (importance.len() != k || !importance.iter().all(|w| (0.0..f32::INFINITY).contains(w)))
    {
        bail!("importance: expected {k} finite values of at least 0");
    }
    let size = 1 << groups.nbits();
    let mut entries = [0.0; 256];
    let ascending = (0..codebook.len() / size).all(|table| {
        let entries = &mut entries[..size];
        codebook.read(table * size, entries);
        entries.is_sorted() && entries.iter().all(|entry| entry.is_finite())
    });
    if !ascending {
        bail!("codebook: expected finite entries, ascending in each table");
    }
    let (bad, count) = (AtomicUsize::new(usize::MAX), groups.count(k));
    let mut scratch = Vec::new();
    for _ in 0..ctl.threads().min(n) {
        scratch.push(Mutex::new((try_zeroed::<f32>(count)?, try_zeroed::<f32>(k)?)));
    }
    let parts = Parts::new(
        (out.codes.chunks_mut(k).zip(out.multipliers.chunks_mut(count))).zip(out.scale.iter_mut().zip(w.chunks(k))),
    );
    ctl.for_each(parts.len(), &|slot, row| {
        let ((codes, multipliers), (scale, w)) = parts.take(row);
        let job = Job { groups, codebook, importance, row, count };
        let (steps, scaled) = &mut *scratch[slot].lock().unwrap_or_else(PoisonError::into_inner);
        if !fit_row(&job, w, (steps, scaled), multipliers, scale, codes, isa) {
            bad.fetch_min(row, Relaxed);
        }
    })?;
    match bad.into_inner() {
        usize::MAX => Ok(()),
        row => bail!("w: row {row} holds NaN, an infinity, or what is too large to scale"),
    }
}

struct Job<'a> {
    groups: Groups,
    codebook: Codebook<'a>,
    importance: Option<&'a [f32]>,
    row: usize,
    /// Groups of a row.
    count: usize,
}

/// What a group's codes stand for, in units of the row's scale.
struct Levels {
    values: [f32; 256],
    size: usize,
}

impl Job<'_> {
    /// The largest size of a group's entries, of whose products with a multiplier a scale is
    /// of so many.
    fn largest(&self, group: usize) -> f32 {
        let at = self.groups.table_of(self.row, group, self.count);
        let size = 1 << self.groups.nbits();
        let mut entries = [0.0; 256];
        self.codebook.read(at, &mut entries[..size]);
        let largest = entries[..size].iter().fold(0.0, |most: f32, entry| most.max(entry.abs()));
        if matches!(self.codebook, Codebook::Int8(_)) { largest / 128.0 } else { largest }
    }

    #[inline(always)]
    fn levels(&self, group: usize, multiplier: i8, to: &mut Levels) {
        let at = self.groups.table_of(self.row, group, self.count);
        match self.codebook {
            Codebook::Int8(entries) => {
                for (to, &entry) in to.values[..to.size].iter_mut().zip(&entries[at..]) {
                    *to = fold(entry, multiplier).into();
                }
            }
            Codebook::F32(_) | Codebook::Bf16(_) => {
                let values = &mut to.values[..to.size];
                self.codebook.read(at, values);
                values.iter_mut().for_each(|value| *value *= f32::from(multiplier));
            }
        }
    }
}

on_isa! {
    /// Whether all went well.
    fn fit_row(
        job: &Job,
        w: &[f32],
        scratch: (&mut [f32], &mut [f32]),
        multipliers: &mut [u8],
        scale: &mut f32,
        codes: &mut [u8],
    ) -> bool = row;
}

/// The plain loops vectorize; every element's sum is the same on any instruction set.
/// `steps`, of each group, and `scaled` are room.
#[inline(always)]
fn row<L: Lanes>(
    _: L,
    job: &Job,
    w: &[f32],
    (steps, scaled): (&mut [f32], &mut [f32]),
    multipliers: &mut [u8],
    scale: &mut f32,
    codes: &mut [u8],
) -> bool {
    let group_size = job.groups.group_size();
    // The step with which each group's largest entry is its largest weight.
    let (mut widest, mut finite) = (0f32, true);
    for (group, (step, w)) in steps.iter_mut().zip(w.chunks(group_size)).enumerate() {
        let mut most = 0f32;
        for w in w {
            most = most.max(w.abs());
            finite &= w.is_finite();
        }
        let largest = job.largest(group);
        *step = if largest > 0.0 { most / 256.0 / largest } else { 0.0 }; // over 256, lest it overflows
        widest = widest.max(*step);
    }
    // The greatest multiplier that is tried is 127.
    *scale = widest * (17.0 / 16.0 * 256.0 / 127.0);
    if let Codebook::Int8(_) = job.codebook {
        *scale *= HEADROOM;
        // As parts of the largest, so that no square overflows.
        let most = w.iter().fold(0f32, |most, w| most.max(w.abs())).max(MIN_SCALE);
        let squares = w.iter().fold(0f64, |sum, w| sum + f64::from(w / most) * f64::from(w / most));
        *scale = scale.max(most * ((squares / w.len() as f64).sqrt() as f32 / RMS));
    }
    *scale = if widest == 0.0 { 1.0 } else { scale.max(MIN_SCALE) };
    if !finite || !scale.is_finite() {
        return false;
    }
    for (to, w) in scaled.iter_mut().zip(w) {
        *to = w / *scale;
    }
    let mut levels = Levels { values: [0.0; 256], size: 1 << job.groups.nbits() };
    for (group, (w, codes)) in scaled.chunks(group_size).zip(codes.chunks_mut(group_size)).enumerate() {
        let importance = job.importance.map(|all| &all[group * group_size..][..w.len()]);
        let best = search(job, group, w, importance, steps[group] / *scale * 256.0, &mut levels);
        multipliers[group] = best as u8 ^ 0x80;
        job.levels(group, best, &mut levels);
        encode(w, &levels.values[..levels.size], best < 0, codes);
    }
    true
}

/// The multiplier of least error that is found: for either sign the best of some sizes, then
/// of those next to it, nearer and nearer.
#[inline(always)]
fn search(job: &Job, group: usize, w: &[f32], importance: Option<&[f32]>, step: f32, levels: &mut Levels) -> i8 {
    let (mut best, mut least) = (0, f32::INFINITY);
    if step == 0.0 {
        return best;
    }
    for sign in [1, -1] {
        let (mut own, mut lowest, mut last) = (0, f32::INFINITY, 0);
        for i in 0..TRIED {
            let size = (step * (17 - i) as f32 / 16.0).round_ties_even().clamp(1.0, 127.0) as i8;
            if size != last {
                job.levels(group, sign * size, levels);
                let error = error(w, importance, &levels.values[..levels.size]);
                if error < lowest {
                    (own, lowest) = (sign * size, error);
                }
            }
            last = size;
        }
        let mut near = (step / 16.0) as i16 / 2;
        while near > 0 {
            let at = i16::from(own);
            for multiplier in [at - near, at + near] {
                if (1..=127).contains(&multiplier.abs()) {
                    job.levels(group, multiplier as i8, levels);
                    let error = error(w, importance, &levels.values[..levels.size]);
                    if error < lowest {
                        (own, lowest) = (multiplier as i8, error);
                    }
                }
            }
            near /= 2;
        }
        if lowest < least {
            (best, least) = (own, lowest);
        }
    }
    best
}

/// Σ importance · (distance to the nearest level)²: element i goes to partial sum i % 16.
#[inline(always)]
fn error(w: &[f32], importance: Option<&[f32]>, levels: &[f32]) -> f32 {
    let mut sums = [0f32; SUMS];
    for (i, w) in w.chunks(SUMS).enumerate() {
        let mut padded = [levels[0]; SUMS];
        padded[..w.len()].copy_from_slice(w);
        let mut nearest = [f32::INFINITY; SUMS];
        for &level in levels {
            for (nearest, &w) in nearest.iter_mut().zip(&padded) {
                let off = (w - level).abs();
                *nearest = if off < *nearest { off } else { *nearest };
            }
        }
        let mut counts = [1f32; SUMS];
        if let Some(importance) = importance {
            counts[..w.len()].copy_from_slice(&importance[SUMS * i..][..w.len()]);
        }
        for ((sum, &off), &count) in sums.iter_mut().zip(&nearest).zip(&counts) {
            *sum += off * off * count;
        }
    }
    let mut half = SUMS / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Each weight's nearest level, of two that are as near the lower; levels ascend, or descend.
#[inline(always)]
fn encode(w: &[f32], levels: &[f32], descend: bool, codes: &mut [u8]) {
    codes.fill(0);
    for pair in levels.windows(2) {
        let middle = pair[0] + (pair[1] - pair[0]) * 0.5;
        for (code, &w) in codes.iter_mut().zip(w) {
            *code += u8::from(if descend { w <= middle } else { w > middle });
        }
    }
}

/// Moves codes of rows of `k` to entries nearer to 0 until integers can be summed four at a
/// time in 16 bits ([`super::tables::products_that_fit`]), where they can: each time the code
/// whose integer changes least. How many were moved.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit or a code is out of range.
pub fn settle(k: usize, groups: Groups, entries: &[i8], out: &mut GroupedRows, ctl: &Ctl) -> Result<usize> {
    let n = out.scale.len();
    out.check(n, k, groups.group_size())?;
    groups.check_codebook(Some(Codebook::Int8(entries)), k, n)?;
    let size = 1 << groups.nbits();
    if out.codes.iter().any(|&code| usize::from(code) >= size) {
        bail!("codes: expected less than {size}");
    }
    let (count, moved) = (groups.count(k), AtomicUsize::new(0));
    let parts = Parts::new(out.codes.chunks_mut(k.max(1)).zip(out.multipliers.chunks(count.max(1))));
    ctl.for_each(parts.len(), &|_, row| {
        let (codes, multipliers) = parts.take(row);
        for (i, codes) in codes.chunks_mut(8).enumerate() {
            let group = 8 * i / groups.group_size();
            let table = &entries[groups.table_of(row, group, count)..][..size];
            let value = |code: u8| fold(table[usize::from(code)], (multipliers[group] ^ 0x80) as i8);
            loop {
                let mut eight = [0; 8];
                eight.iter_mut().zip(codes.iter()).for_each(|(to, &code)| *to = value(code));
                let Some((part, sign)) = past(&fours(&eight)) else { break };
                let of = (0..codes.len()).filter(|i| i / 2 % 2 == part && usize::from(eight[*i] < 0) == sign);
                // To the next smaller size of the same sign.
                let moves = of.filter_map(|i| {
                    let next = (0..size as u8).filter(|&code| {
                        let to = value(code);
                        to.unsigned_abs() < eight[i].unsigned_abs() && (to == 0 || (to < 0) == (eight[i] < 0))
                    });
                    let code = next.max_by_key(|&code| value(code).unsigned_abs())?;
                    Some((eight[i].abs_diff(value(code)), i, code))
                });
                let Some((_, i, code)) = moves.min() else { break };
                codes[i] = code;
                moved.fetch_add(1, Relaxed);
            }
        }
    })?;
    Ok(moved.into_inner())
}

/// Which of the sums of [`fours`] is too large.
fn past(sums: &[[u32; 2]; 2]) -> Option<(usize, usize)> {
    (0..4).map(|i| (i / 2, i % 2)).find(|&(part, sign)| sums[part][sign] > MOST)
}
