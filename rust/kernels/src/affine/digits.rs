//! Codes of many bits, cut into digits of few: the terms of a series.
//!
//! A value's code is `v = clamp(rint(x / scale) + zero_point, 0, 2^(bits · terms) - 1)`, as of any
//! affine quantizer. Its bits, cut into `terms` fields, are the terms' codes, the most significant
//! first. A field is a digit plus `2^(bits - 1)`, so that the digits are signed and balanced about
//! a zero point of half of ones: `2^(bits - 1) · (1 + 2^bits + 2^(2 bits) + …)`. Each digit comes
//! straight from the code, none from the residual that the digits before it leave.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::layout::Layout;
use super::scalar::{BLOCK, MIN_SCALE};
use super::{Floats, TASK, not_finite};
use crate::error::bail;
use crate::lanes::{Lanes, on_isa};
use crate::par::Parts;
use crate::{Ctl, Isa, Result};

/// Terms of a series, and their bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits {
    pub(super) bits: u32,
    pub(super) terms: u32,
}

impl Digits {
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) for digits of other than 1 to 8 bits, no terms, or more than 32 bits.
    pub fn new(bits: u32, terms: u32) -> Result<Digits> {
        match bits.checked_mul(terms) {
            Some(1..=32) if bits <= 8 => Ok(Digits { bits, terms }),
            _ => bail!("bits, terms: expected 1 to 8 bits, and at most 32 in all terms, got {bits} and {terms}"),
        }
    }

    /// The greatest code.
    pub fn most(self) -> u32 {
        u32::MAX >> (32 - self.bits * self.terms)
    }
}

on_isa! {
    fn encode(x: Floats, scale: f64, zero_point: f64, most: f64, out: &mut [u32]) -> bool = encode_block;
    fn field(codes: &[u32], shift: u32, mask: u32, out: &mut [u8]) = field_of;
}

/// The terms' codes of values, `planes[term][value]`; `layout` says which scale and zero point each
/// value has. In float64, rounded once by the division and once to an integer, half to even.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) where lengths do not fit, a scale is not finite or below 2^-126, a
/// zero point is beyond the greatest code, or a value is NaN or infinite, what `planes` then holds is
/// undefined; [`Error::Interrupted`](crate::Error::Interrupted).
pub fn expand(
    x: Floats,
    layout: &Layout,
    digits: Digits,
    scale: &[f32],
    zero_point: &[u32],
    planes: &mut [u8],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    layout.check("x", x.len())?;
    let (n, terms) = (x.len(), digits.terms as usize);
    if n.checked_mul(terms) != Some(planes.len()) {
        bail!("codes: expected {terms} terms of {n} values, got {}", planes.len());
    }
    if scale.len() != layout.groups() || zero_point.len() != layout.groups() {
        let groups = layout.groups();
        bail!("scale, zero_point: expected {groups} of each, got {} and {}", scale.len(), zero_point.len());
    }
    if let Some(at) = scale.iter().position(|s| !(MIN_SCALE..f32::INFINITY).contains(s)) {
        bail!("scale: expected finite scales of at least 2**-126, got {:e} at flat index {at}", scale[at]);
    }
    if let Some(at) = zero_point.iter().position(|&zero| zero > digits.most()) {
        bail!("zero_point: expected at most {}, got {} at flat index {at}", digits.most(), zero_point[at]);
    }
    let finite = AtomicBool::new(true);
    let mut tasks: Vec<Vec<&mut [u8]>> = Vec::new();
    tasks.resize_with(n.div_ceil(TASK), Vec::new);
    for plane in planes.chunks_mut(n) {
        tasks.iter_mut().zip(plane.chunks_mut(TASK)).for_each(|(task, part)| task.push(part));
    }
    let parts = Parts::new(tasks);
    ctl.for_each(parts.len(), &|_, task| {
        let mut planes = parts.take(task);
        let mut codes = [0; BLOCK];
        let end = n.min((task + 1) * TASK);
        for from in (task * TASK..end).step_by(BLOCK) {
            let to = end.min(from + BLOCK);
            let codes = &mut codes[..to - from];
            for (group, part) in layout.runs(from..to) {
                let (scale, zero) = (f64::from(scale[group]), f64::from(zero_point[group]));
                let codes = &mut codes[part.start - from..part.end - from];
                if !encode(x.part(part), scale, zero, digits.most().into(), codes, isa) {
                    finite.store(false, Relaxed);
                }
            }
            let (mask, at) = (u32::MAX >> (32 - digits.bits), from - task * TASK);
            for (term, plane) in planes.iter_mut().rev().enumerate() {
                field(codes, digits.bits * term as u32, mask, &mut plane[at..][..codes.len()], isa);
            }
        }
    })?;
    if finite.into_inner() { Ok(()) } else { Err(not_finite("x", x, isa)) }
}

/// Codes of values of one scale; whether all values are finite.
#[inline(always)]
fn encode_block<L: Lanes>(_: L, x: Floats, scale: f64, zero_point: f64, most: f64, out: &mut [u32]) -> bool {
    let mut bad = 0.0;
    let mut each = |x: f64, out: &mut u32| {
        bad += x * 0.0;
        let code = (x / scale).round_ties_even() + zero_point;
        let code = if code > 0.0 { code } else { 0.0 };
        // The integer's bits are the lowest of its sum with 2^52.
        *out = ((if code < most { code } else { most }) + 2f64.powi(52)).to_bits() as u32;
    };
    match x {
        Floats::F32(x) => x.iter().zip(out).for_each(|(&x, out)| each(x.into(), out)),
        Floats::F64(x) => x.iter().zip(out).for_each(|(&x, out)| each(x, out)),
        Floats::Bf16(x) => x.iter().zip(out).for_each(|(&x, out)| each(half::bf16::from_bits(x).into(), out)),
        Floats::F16(x) => x.iter().zip(out).for_each(|(&x, out)| each(half::f16::from_bits(x).into(), out)),
    }
    bad == 0.0
}

#[inline(always)]
fn field_of<L: Lanes>(_: L, codes: &[u32], shift: u32, mask: u32, out: &mut [u8]) {
    codes.iter().zip(out).for_each(|(&code, out)| *out = (code >> shift & mask) as u8);
}
