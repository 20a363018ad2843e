//! Scales and zero points as a weight below eight bits stores them: of each row one
//! float32, of each group an 8-bit multiplier of it and a zero point.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::scalar::MIN_SCALE;
use super::{Clip, TASK, extremes, rotate, squares};
use crate::error::{bail, checked_product};
use crate::par::Parts;
use crate::{Ctl, Isa, Result};

/// Multipliers that are tried, from that of the whole range down: m - i · m / 32; of 8
/// bits, whose codes a shorter range would not help, the first of them.
const TRIED: u32 = 16;

/// The greatest multiplier: of 8 bits less, so that the sums of deep layers fit int32.
pub(crate) fn most_of(nbits: u32) -> u8 {
    if nbits == 8 { 63 } else { 255 }
}

/// Rows of weights in groups: `x ~ (code - zero) · (multiplier · scale)`.
#[derive(Debug)]
pub struct GroupedRows<'a> {
    /// (rows, k), below 2^nbits
    pub codes: &'a mut [u8],
    /// (rows, groups)
    pub multipliers: &'a mut [u8],
    /// (rows, groups), below 2^nbits
    pub zeros: &'a mut [u8],
    /// (rows,)
    pub scale: &'a mut [f32],
}

impl GroupedRows<'_> {
    /// # Errors
    /// [`crate::Error::Value`] where these are not rows of `k` in groups of `group_size`.
    pub(crate) fn check(&self, rows: usize, k: usize, group_size: usize) -> Result<()> {
        let groups = checked_product("multipliers", &[rows, k.div_ceil(group_size)])?;
        let got = [self.codes.len(), self.multipliers.len(), self.zeros.len(), self.scale.len()];
        let expected = [checked_product("codes", &[rows, k])?, groups, groups, rows];
        if got != expected {
            bail!("codes, multipliers, zeros, scale: expected {expected:?} elements, got {got:?}");
        }
        Ok(())
    }
}

/// Quantizes rows of `k` weights to `nbits`, 2 to 6 or 8. A row's scale is the step of its
/// widest group over 255, or 63 for 8 bits; of each group, if it is searched, the multiplier and the zero
/// point are tried together, as they are stored, and those with the least squared error
/// are taken; else those that reach all of its range.
/// `dividers`: what each of the `k` is first divided by, or none; `rotation`: of how many
/// each block is then rotated, or 0;
/// `importance`: what its squared error counts, or none.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, a weight is not
/// finite; [`crate::Error::Interrupted`].
pub fn quantize_groups(
    x: &[f32],
    k: usize,
    (nbits, group_size, symmetric, searched): (u32, usize, bool, bool),
    dividers: &[f32],
    rotation: usize,
    importance: Option<&[f32]>,
    out: &mut GroupedRows,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    if !matches!(nbits, 2..=6 | 8) || k == 0 || group_size == 0 {
        bail!("nbits, k, group_size: expected 2 to 6 or 8 and at least 1, got {nbits}, {k}, {group_size}");
    }
    let (rows, groups) = (out.scale.len(), k.div_ceil(group_size));
    out.check(rows, k, group_size)?;
    if x.len() != out.codes.len() {
        bail!("x: expected {rows} rows of {k}, got {} values", x.len());
    }
    if !dividers.is_empty() && dividers.len() != k {
        bail!("dividers: expected {k} or none, got {}", dividers.len());
    }
    if rotation > 0 && !(rotation.is_power_of_two() && k.is_multiple_of(rotation)) {
        bail!("rotation: expected a power of two that divides {k}, or 0, got {rotation}");
    }
    if let Some(importance) = importance
        && (importance.len() != k || !importance.iter().all(|w| (0.0..f32::INFINITY).contains(w)))
    {
        bail!("importance: expected {k} finite values of at least 0");
    }
    let (qmax, middle) = (((1u32 << nbits) - 1) as f32, (1u32 << (nbits - 1)) as f32);
    let job = Job { qmax, middle, most: most_of(nbits).into(), symmetric, searched, isa };
    let bad = AtomicUsize::new(usize::MAX);
    let block = TASK.div_ceil(k);
    let parts = Parts::new(
        (out.codes.chunks_mut(block * k).zip(out.scale.chunks_mut(block)))
            .zip(out.multipliers.chunks_mut(block * groups).zip(out.zeros.chunks_mut(block * groups))),
    );
    ctl.for_each(parts.len(), &|_, task| {
        let ((codes, scale), (multipliers, zeros)) = parts.take(task);
        let mut divided = Vec::new();
        for (i, scale) in scale.iter_mut().enumerate() {
            let row = task * block + i;
            let mut x = &x[row * k..(row + 1) * k];
            if !dividers.is_empty() || rotation > 0 {
                divided.clear();
                divided.extend_from_slice(x);
                divided.iter_mut().zip(dividers).for_each(|(x, by)| *x /= by);
                if rotation > 0 {
                    rotate(&mut divided, rotation, isa);
                }
                x = &divided;
            }
            let at = i * groups..(i + 1) * groups;
            let parts = (&mut multipliers[at.clone()], &mut zeros[at], &mut codes[i * k..(i + 1) * k]);
            match job.row(x, group_size, importance, parts) {
                Some(chosen) => *scale = chosen,
                None => _ = bad.fetch_min(row, Relaxed),
            }
        }
    })?;
    match bad.into_inner() {
        usize::MAX => Ok(()),
        row => bail!(
            "weight: row {row} holds NaN, an infinity, or values that overflow where they are equalized or rotated"
        ),
    }
}

struct Job {
    qmax: f32,
    /// A symmetric zero point.
    middle: f32,
    /// The greatest multiplier.
    most: f32,
    symmetric: bool,
    searched: bool,
    isa: Isa,
}

impl Job {
    /// The row's scale; None where it has none.
    fn row(
        &self,
        x: &[f32],
        group_size: usize,
        importance: Option<&[f32]>,
        (multipliers, zeros, codes): (&mut [u8], &mut [u8], &mut [u8]),
    ) -> Option<f32> {
        let mut widest = 0f32;
        for x in x.chunks(group_size) {
            widest = widest.max(self.step(range(x, self.isa)?));
        }
        let scale = (widest / self.most).max(MIN_SCALE);
        for (g, ((x, codes), (multiplier, zero))) in
            (x.chunks(group_size).zip(codes.chunks_mut(group_size))).zip(multipliers.iter_mut().zip(zeros)).enumerate()
        {
            let importance = importance.map(|w| &w[g * group_size..][..x.len()]);
            let (m, z) = self.group(x, importance, scale);
            (*multiplier, *zero) = (m, z);
            let (inv_scale, zero) = (1.0 / (f32::from(m).max(1.0) * scale), f32::from(z));
            for (code, x) in codes.iter_mut().zip(x) {
                *code = ((x * inv_scale).round_ties_even().clamp(-zero, self.qmax - zero) + zero) as u8;
            }
        }
        Some(scale)
    }

    /// The step with which the codes reach all of a range.
    fn step(&self, (low, high): (f32, f32)) -> f32 {
        if self.symmetric { high.max(-low) / (self.middle - 1.0) } else { high / self.qmax - low / self.qmax }
    }

    /// The multiplier and the zero point of the least error; of equals the first that
    /// was tried. Those with which a value overflows have no finite error.
    fn group(&self, x: &[f32], importance: Option<&[f32]>, scale: f32) -> (u8, u8) {
        let (low, high) = range(x, self.isa).unwrap_or_default();
        if low == 0.0 && high == 0.0 {
            return (0, self.middle as u8);
        }
        let mut best = (f64::INFINITY, 0, self.middle);
        let try_all = |m: u32, zeros: (f32, f32), best: &mut (f64, u32, f32)| {
            let (step, mut z) = (m as f32 * scale, zeros.0);
            while z <= zeros.1 {
                let clip = Clip { scale: step, inv_scale: 1.0 / step, least: -z, most: self.qmax - z, huge: false };
                let error = squares(x, importance, &clip, best.0, self.isa);
                if error < best.0 {
                    *best = (error, m, z);
                }
                z += 1.0;
            }
        };
        // From the range's own multiplier down to about half of it, with each zero point
        // from where all of one end is reached to where all of the other is.
        let whole = (self.step((low, high)) / scale).ceil().clamp(1.0, self.most) as u32;
        if !self.searched {
            let below = (-low / (whole as f32 * scale)).round_ties_even().min(self.qmax);
            return (whole as u8, if self.symmetric { self.middle } else { below } as u8);
        }
        for i in 0..if self.qmax == 255.0 { 1 } else { TRIED } {
            let m = whole - i * whole / (2 * TRIED);
            let step = m as f32 * scale;
            let below = (-low / step).round_ties_even().min(self.qmax);
            let above = (self.qmax - (high / step).round_ties_even()).max(0.0);
            let zeros = if self.symmetric { (self.middle, self.middle) } else { (below.min(above), below.max(above)) };
            try_all(m, zeros, &mut best);
        }
        // Then all multipliers between those, with the zero points beside the best one.
        let (_, m, z) = best;
        let apart = whole / (2 * TRIED);
        for m in m.saturating_sub(apart).max(1)..=(m + apart).min(self.most as u32) {
            let zeros = if self.symmetric { (z, z) } else { ((z - 1.0).max(0.0), (z + 1.0).min(self.qmax)) };
            try_all(m, zeros, &mut best);
        }
        (best.1 as u8, best.2 as u8)
    }
}

/// The least and the greatest value, and zero; None where one is not finite.
fn range(x: &[f32], isa: Isa) -> Option<(f32, f32)> {
    extremes(x, isa).map(|(low, high)| (low.min(0.0), high.max(0.0)))
}
