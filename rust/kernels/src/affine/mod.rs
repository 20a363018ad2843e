//! Affine quantization: real numbers to codes and back.
//!
//! `x ~ (code - zero_point) * scale`. Rounding is the same everywhere:
//! `inv_scale = 1 / scale` correctly rounded, `code = clamp(rint(x *
//! inv_scale), qmin - zp, qmax - zp) + zp`, half to even, the clamp in floating
//! point, so that no conversion overflows. A scale is never below 2^-126.
//!
//! | function | in | out |
//! |---|---|---|
//! | [`choose_qparams`] | f32, f64, f16, bf16 | f32 scale and i32 zero point of each group |
//! | [`quantize`] | f32, f64, f16, bf16, scales | u8 codes |
//! | [`dequantize`] | u8 codes, scales | f32, f64, f16, bf16 |
//! | [`expand`] | the same, scales | u8 codes of each of the terms of a series |
//! | [`quantize_groups`] | rows of f32 | codes of 2 to 6 bits, u8 multipliers and zero points of groups, f32 scales |
//! | [`round_with_feedback`] | rows of f32, f32 coefficients and tables of levels | u8 codes |
//! | [`quantize_rows`] | rows of the same | u8 codes, f32 scale, u8 zero point, i32 sums |
//!
//! float64 is multiplied in float64; float16 and bfloat16 as float32. Every
//! result is the same bits on every instruction set and thread count: each
//! operation on floats is one IEEE operation, extremes know no order, and sums
//! of squares have a fixed one.

mod choose;
mod digits;
mod feedback;
mod groups;
mod hadamard;
mod layout;
mod scalar;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

pub(crate) use choose::all_finite;
pub use choose::{Method, choose_qparams};
pub use digits::{Digits, expand};
pub use feedback::{Tables, round_with_feedback};
pub(crate) use groups::most_of;
pub use groups::{GroupedRows, quantize_groups};
pub(crate) use hadamard::rotate;
pub use layout::Layout;

use crate::error::{bail, try_zeroed};
use crate::lanes::{on_isa, prefetch};
use crate::par::Parts;
use crate::{Ctl, Error, Isa, Result};

/// Real numbers as a kernel takes them.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// float32
    F32(&'a [f32]),
    /// bfloat16, as its bits
    Bf16(&'a [u16]),
    /// float16, as its bits
    F16(&'a [u16]),
    /// float64
    F64(&'a [f64]),
}

impl<'a> Floats<'a> {
    /// Elements in all.
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(x) => x.len(),
            Floats::Bf16(x) | Floats::F16(x) => x.len(),
            Floats::F64(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of a range.
    pub(crate) fn part(&self, range: std::ops::Range<usize>) -> Floats<'a> {
        match self {
            Floats::F32(x) => Floats::F32(&x[range]),
            Floats::Bf16(x) => Floats::Bf16(&x[range]),
            Floats::F16(x) => Floats::F16(&x[range]),
            Floats::F64(x) => Floats::F64(&x[range]),
        }
    }

    /// Asks for them before they are needed.
    pub(crate) fn prefetch(&self) {
        match self {
            Floats::F32(x) => prefetch(x),
            Floats::Bf16(x) | Floats::F16(x) => prefetch(x),
            Floats::F64(x) => prefetch(x),
        }
    }

    /// One element, exactly.
    fn at(&self, i: usize) -> f64 {
        match self {
            Floats::F32(x) => x[i].into(),
            Floats::Bf16(x) => half::bf16::from_bits(x[i]).into(),
            Floats::F16(x) => half::f16::from_bits(x[i]).into(),
            Floats::F64(x) => x[i],
        }
    }
}

/// Room for real numbers; the variants are those of [`Floats`].
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// float32
    F32(&'a mut [f32]),
    /// bfloat16, as its bits
    Bf16(&'a mut [u16]),
    /// float16, as its bits
    F16(&'a mut [u16]),
    /// float64
    F64(&'a mut [f64]),
}

impl<'a> FloatsMut<'a> {
    /// Elements in all.
    pub fn len(&self) -> usize {
        match self {
            FloatsMut::F32(x) => x.len(),
            FloatsMut::Bf16(x) | FloatsMut::F16(x) => x.len(),
            FloatsMut::F64(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In pieces of `n`, the last one shorter.
    fn pieces(self, n: usize) -> Vec<FloatsMut<'a>> {
        match self {
            FloatsMut::F32(x) => x.chunks_mut(n).map(FloatsMut::F32).collect(),
            FloatsMut::Bf16(x) => x.chunks_mut(n).map(FloatsMut::Bf16).collect(),
            FloatsMut::F16(x) => x.chunks_mut(n).map(FloatsMut::F16).collect(),
            FloatsMut::F64(x) => x.chunks_mut(n).map(FloatsMut::F64).collect(),
        }
    }

    /// The elements of a range.
    fn part(&mut self, range: std::ops::Range<usize>) -> FloatsMut<'_> {
        match self {
            FloatsMut::F32(x) => FloatsMut::F32(&mut x[range]),
            FloatsMut::Bf16(x) => FloatsMut::Bf16(&mut x[range]),
            FloatsMut::F16(x) => FloatsMut::F16(&mut x[range]),
            FloatsMut::F64(x) => FloatsMut::F64(&mut x[range]),
        }
    }
}

/// The codes that a scale is chosen for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels {
    symmetric: bool,
    qmin: u8,
    qmax: u8,
    /// The zero point of zeros.
    middle: u8,
    /// What the greatest magnitude, or half the range, is divided by.
    steps: f32,
}

impl Levels {
    /// Codes of 2 to 8 bits. Symmetric: the zero point is in the middle, and
    /// the codes reach as far above it as below, unless `full_range` adds the
    /// one more below; the scale is then the greatest magnitude over half of
    /// 2^nbits - 1. Otherwise the codes span the range of the values and zero.
    ///
    /// # Errors
    /// [`Error::Value`] for other widths.
    pub fn new(nbits: u32, symmetric: bool, full_range: bool) -> Result<Levels> {
        if !(2..=8).contains(&nbits) {
            bail!("nbits: expected 2 to 8, got {nbits}");
        }
        let middle = 1u8 << (nbits - 1);
        let qmax = u8::MAX >> (8 - nbits);
        Ok(if !symmetric {
            Levels { symmetric, qmin: 0, qmax, middle: 0, steps: f32::from(qmax) / 2.0 }
        } else if full_range {
            Levels { symmetric, qmin: 0, qmax, middle, steps: f32::from(qmax) / 2.0 }
        } else {
            Levels { symmetric, qmin: 1, qmax, middle, steps: f32::from(middle - 1) }
        })
    }

    /// Eight bits over the range of the values and zero.
    pub(crate) const RANGE: Levels = Levels { symmetric: false, qmin: 0, qmax: 255, middle: 0, steps: 127.5 };
    /// Eight bits, symmetric.
    pub(crate) const SYMMETRIC: Levels = Levels { symmetric: true, qmin: 1, qmax: 255, middle: 128, steps: 127.0 };

    /// The least code.
    pub fn qmin(&self) -> u8 {
        self.qmin
    }

    /// The greatest code.
    pub fn qmax(&self) -> u8 {
        self.qmax
    }

    #[inline(always)]
    fn bounds(&self) -> (f32, f32) {
        (self.qmin.into(), self.qmax.into())
    }
}

/// A candidate's step, and the codes' reach in steps from zero.
#[derive(Clone, Copy, Debug, Default)]
struct Clip {
    scale: f32,
    inv_scale: f32,
    least: f32,
    most: f32,
    /// Whether a product of codes and scale may overflow.
    huge: bool,
}

/// How a row became codes: `x ~ (code - zero_point) * scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowScale {
    /// The step; NaN where the row held NaN or an infinity.
    pub scale: f32,
    /// The code of zero.
    pub zero_point: u8,
}

on_isa! {
    /// Quantizes one row to u8 on the calling thread: the step that a product
    /// with rows of activations does first. `out` has as many elements as `x`; levels are not `full_range`.
    pub(crate) fn quantize_row(x: Floats, levels: &Levels, out: &mut [u8]) -> RowScale = scalar::quantize_row;
    fn extremes(x: &[f32]) -> Option<(f32, f32)> = scalar::extremes;
    fn extremes_bf16(x: &[u16]) -> Option<(f32, f32)> = scalar::extremes_bf16;
    fn extremes_f64(x: &[f64]) -> Option<(f64, f64)> = scalar::extremes_f64;
    fn encode(x: Floats, inv_scale: &[f32], zero_point: &[f32], bounds: (f32, f32), out: &mut [u8]) -> bool = scalar::encode;
    fn decode(codes: &[u8], scale: &[f32], zero_point: &[f32], out: FloatsMut) -> u8 = scalar::decode;
    fn squares(x: &[f32], weight: Option<&[f32]>, clip: &Clip, bound: f64) -> f64 = scalar::squares;
    fn squares_f64(x: &[f64], weight: Option<&[f32]>, clip: &Clip, bound: f64) -> f64 = scalar::squares_f64;
}

/// Elements of a task: enough work to be worth handing out.
const TASK: usize = 1 << 16;

/// Quantizes values with given scales and zero points; `layout` says which of
/// them each value has.
///
/// # Errors
/// [`Error::Value`] where lengths do not fit, a scale is not finite or below
/// 2^-126, a zero point lies outside `qmin..=qmax`, or a value is NaN or
/// infinite, what `codes` then holds is undefined; [`Error::Memory`];
/// [`Error::Interrupted`].
pub fn quantize(
    x: Floats,
    layout: &Layout,
    (qmin, qmax): (u8, u8),
    scale: &[f32],
    zero_point: &[i32],
    codes: &mut [u8],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    layout.check("x", x.len())?;
    layout.check("codes", codes.len())?;
    let (mut inv_scale, zero_point) = table(layout, scale, zero_point, qmin, qmax)?;
    inv_scale.iter_mut().for_each(|s| *s = 1.0 / *s);
    let finite = AtomicBool::new(true);
    let parts = Parts::new(codes.chunks_mut(TASK));
    ctl.for_each(parts.len(), &|_, task| {
        let mut each = layout::Each::new(layout, task * TASK, &inv_scale, &zero_point);
        for (i, codes) in parts.take(task).chunks_mut(scalar::BLOCK).enumerate() {
            let first = task * TASK + i * scalar::BLOCK;
            let (inv_scale, zero_point) = each.next(codes.len());
            let x = x.part(first..first + codes.len());
            if !encode(x, inv_scale, zero_point, (qmin.into(), qmax.into()), codes, isa) {
                finite.store(false, Relaxed);
            }
        }
    })?;
    if finite.into_inner() { Ok(()) } else { Err(not_finite("x", x, isa)) }
}

/// `(code - zero_point) * scale` of each code, in float32, or in float64 for
/// float64; then rounded to the type of `out` and never beyond its greatest
/// finite number.
///
/// # Errors
/// [`Error::Value`] where lengths do not fit, a scale is not finite or below
/// 2^-126, a zero point or a code lies outside `0..=qmax`, what `out` then
/// holds is undefined; [`Error::Memory`]; [`Error::Interrupted`].
pub fn dequantize(
    codes: &[u8],
    layout: &Layout,
    qmax: u8,
    scale: &[f32],
    zero_point: &[i32],
    out: FloatsMut,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    layout.check("codes", codes.len())?;
    layout.check("out", out.len())?;
    let (scale, zero_point) = table(layout, scale, zero_point, 0, qmax)?;
    let greatest = AtomicU8::new(0);
    let parts = Parts::new(out.pieces(TASK));
    ctl.for_each(parts.len(), &|_, task| {
        let mut out = parts.take(task);
        let mut each = layout::Each::new(layout, task * TASK, &scale, &zero_point);
        let codes = &codes[task * TASK..task * TASK + out.len()];
        for (i, codes) in codes.chunks(scalar::BLOCK).enumerate() {
            let (scale, zero_point) = each.next(codes.len());
            let first = i * scalar::BLOCK;
            let most = decode(codes, scale, zero_point, out.part(first..first + codes.len()), isa);
            greatest.fetch_max(most, Relaxed);
        }
    })?;
    if greatest.into_inner() > qmax {
        let at = codes.iter().position(|&c| c > qmax).unwrap_or_default();
        bail!("codes: expected codes of at most {qmax}, got {} at flat index {at}", codes[at]);
    }
    Ok(())
}

/// Private copies of scales and zero points, checked.
fn table(layout: &Layout, scale: &[f32], zero_point: &[i32], qmin: u8, qmax: u8) -> Result<(Vec<f32>, Vec<f32>)> {
    let n = layout.groups();
    if qmin >= qmax {
        bail!("qmin, qmax: expected qmin below qmax, got {qmin} and {qmax}");
    }
    if scale.len() != n || zero_point.len() != n {
        bail!("qparams: expected {n} scales and zero points, got {} and {}", scale.len(), zero_point.len());
    }
    let (mut scales, mut zeros) = (try_zeroed(n)?, try_zeroed(n)?);
    scales.copy_from_slice(scale);
    if let Some(at) = scales.iter().position(|s| !(scalar::MIN_SCALE..f32::INFINITY).contains(s)) {
        bail!("qparams.scale: expected finite scales of at least 2**-126, got {:e} at flat index {at}", scales[at]);
    }
    for (at, (zero, &zp)) in zeros.iter_mut().zip(zero_point).enumerate() {
        if !(i32::from(qmin)..=i32::from(qmax)).contains(&zp) {
            bail!("qparams.zero_point: expected {qmin} to {qmax}, got {zp} at flat index {at}");
        }
        *zero = zp as f32;
    }
    Ok((scales, zeros))
}

/// The complaint about values of which some are not finite.
#[cold]
fn not_finite(name: &str, x: Floats, isa: Isa) -> Error {
    let (mut nan, mut above, mut below, mut first) = (0usize, 0usize, 0usize, None);
    for at in (0..x.len()).step_by(scalar::BLOCK) {
        let end = x.len().min(at + scalar::BLOCK);
        if choose::all_finite(x.part(at..end), isa) {
            continue;
        }
        for i in at..end {
            let value = x.at(i);
            if !value.is_finite() {
                first = first.or(Some((i, value)));
                nan += usize::from(value.is_nan());
                above += usize::from(value == f64::INFINITY);
                below += usize::from(value == f64::NEG_INFINITY);
            }
        }
    }
    let (at, kind) = first.map_or((0, ""), |(i, v)| {
        (
            i,
            if v.is_nan() {
                "NaN"
            } else if v > 0.0 {
                "+Inf"
            } else {
                "-Inf"
            },
        )
    });
    Error::Value(format!(
        "{name}: expected finite values, got {} that are not ({nan} NaN, {above} +Inf, {below} -Inf), \
         the first {kind} at flat index {at}",
        nan + above + below
    ))
}

/// Quantizes rows of `k` values to codes of `levels`, each with its own scale and zero point,
/// and sums the codes of every group of `group_size` (`k` for one sum a row).
///
/// A symmetric row of 8 bits has zero point 128 and scale amax / 127; otherwise the scale
/// is the range, widened to hold 0, over 255. A row of one repeated value is
/// exact: the value is the scale. NaN or an infinity makes the row's scale NaN.
///
/// # Errors
/// [`crate::Error::Value`] where the lengths do not fit, `k` or `group_size` is
/// 0; [`crate::Error::Interrupted`].
pub fn quantize_rows(
    x: Floats,
    k: usize,
    levels: &Levels,
    group_size: usize,
    codes: &mut [u8],
    rows: &mut [RowScale],
    group_sums: &mut [i32],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    if k == 0 || group_size == 0 {
        bail!("k and group_size: expected at least 1, got {k} and {group_size}");
    }
    if group_size.min(k) > i32::MAX as usize / 255 {
        bail!("group_size: sums of {} codes exceed int32; expected at most {}", group_size.min(k), i32::MAX / 255);
    }
    let m = rows.len();
    let groups = k.div_ceil(group_size);
    if m.checked_mul(k) != Some(x.len()) || codes.len() != x.len() || m.checked_mul(groups) != Some(group_sums.len()) {
        bail!(
            "quantize_rows: {m} rows of {k} in groups of {group_size} do not fit {} values, {} codes, {} sums",
            x.len(),
            codes.len(),
            group_sums.len()
        );
    }
    let block = TASK.div_ceil(k);
    let parts: Vec<_> =
        codes.chunks_mut(block * k).zip(rows.chunks_mut(block)).zip(group_sums.chunks_mut(block * groups)).collect();
    let parts = Parts::new(parts);
    ctl.for_each(parts.len(), &|_, task| {
        let ((codes, rows), sums) = parts.take(task);
        for (i, row) in rows.iter_mut().enumerate() {
            let codes = &mut codes[i * k..(i + 1) * k];
            let first = (task * block + i) * k;
            *row = quantize_row(x.part(first..first + k), levels, codes, isa);
            for (sum, group) in sums[i * groups..(i + 1) * groups].iter_mut().zip(codes.chunks(group_size)) {
                // At most 255 * the checked group length; checked additions would not be vectors.
                *sum = group.iter().fold(0i32, |sum, &c| sum.wrapping_add(c.into()));
            }
        }
    })
}
