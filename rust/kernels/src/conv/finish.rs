//! From int32 sums to codes: the exact definitions, which FORMATS.md lists.

use super::Out;
use crate::Result;
use crate::error::bail;

/// Values behind the last filter's that vectors may read.
pub(super) const BEHIND: usize = 64;

/// What becomes of a convolution's sums.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// What a sum starts from: one for each filter.
    pub bias: Vec<i32>,
    /// What it becomes.
    pub to: To,
}

/// What a sum becomes.
#[derive(Debug, Clone, PartialEq)]
pub enum To {
    /// Itself.
    Sums,
    /// `f32(sum) * multiplier`, one multiplier for each filter.
    Floats(Vec<f32>),
    /// A code.
    Codes(Requantize),
}

/// From a sum to a code.
#[derive(Debug, Clone, PartialEq)]
pub struct Requantize {
    /// How it is scaled and rounded.
    pub rule: Rule,
    /// The code of 0.
    pub zero_point: i32,
    /// The least code.
    pub qmin: i32,
    /// The largest code.
    pub qmax: i32,
    /// Another tensor's codes, added to the code.
    pub add: Option<AddCodes>,
}

/// How a sum is scaled and rounded: something for each filter.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// `rint(clamp(f32(sum) * multiplier))`, half to even, the clamp before the rounding.
    Float32(Vec<f32>),
    /// LiteRT's plain kernels: `sum << left`, saturated, times a multiplier of 31 fractional bits, rounded half
    /// up; then divided by `2^right`, rounded half away from 0. Multiplier and shift (left if positive).
    FixedPoint(Vec<(i32, i32)>),
    /// `floor(sum * 2^shift + 0.5)`.
    PowerOfTwo(Vec<i32>),
}

/// The addition of two codes with scales of their own, as XNNPACK has it:
/// `(a * a_multiplier + b * b_multiplier + bias) >> shift`, plus a zero point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddCodes {
    /// For the code that a sum became.
    pub a_multiplier: i32,
    /// For the other tensor's.
    pub b_multiplier: i32,
    /// Half of the divisor, less what both zero points contribute.
    pub bias: i32,
    /// The divisor's exponent.
    pub shift: u32,
    /// The code of 0.
    pub zero_point: i32,
    /// The least code.
    pub qmin: i32,
    /// The largest code.
    pub qmax: i32,
    /// Whether codes are int8.
    pub signed: bool,
}

impl AddCodes {
    /// With the scales and zero points of a and b and of their sum, and its least and largest code.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where a scale is beyond 2^10 times another.
    pub fn new(scales: [f32; 3], zero_points: [i32; 3], bounds: (i32, i32), signed: bool) -> Result<AddCodes> {
        let ratios = [scales[0] / scales[2], scales[1] / scales[2]];
        let largest = ratios[0].max(ratios[1]);
        if !ratios.iter().all(|r| (2f32.powi(-10)..2f32.powi(8)).contains(r)) {
            bail!("add: expected input scales of 2^-10 to 2^8 times the output's, got {ratios:?}");
        }
        // The larger multiplier has 21 bits.
        let shift = (20 - exponent(largest)) as u32;
        let [a_multiplier, b_multiplier] =
            ratios.map(|r| (f64::from(r) * f64::from(1u32 << shift)).round_ties_even() as i32);
        let bias = (1 << (shift - 1)) - a_multiplier * zero_points[0] - b_multiplier * zero_points[1];
        let ((qmin, qmax), zero_point) = (bounds, zero_points[2]);
        Ok(AddCodes { a_multiplier, b_multiplier, bias, shift, zero_point, qmin, qmax, signed })
    }

    /// Of two codes.
    #[inline(always)]
    pub(super) fn of(&self, a: i32, b: i32) -> i32 {
        let sum = a.wrapping_mul(self.a_multiplier).wrapping_add(b.wrapping_mul(self.b_multiplier));
        let code = (sum.wrapping_add(self.bias) >> self.shift) + self.zero_point;
        code.clamp(self.qmin, self.qmax)
    }

    pub(super) fn check(&self) -> Result<()> {
        let most = 1 << 21;
        let fits = |m: i32| (0..=most).contains(&m);
        if !fits(self.a_multiplier) || !fits(self.b_multiplier) || !(1..31).contains(&self.shift) {
            bail!("add: expected multipliers of at most 2^21 and a shift of 1 to 30, got {self:?}");
        }
        Ok(())
    }
}

/// Of a normal float: x = m 2^e, 1 <= m < 2.
fn exponent(x: f32) -> i32 {
    (x.to_bits() >> 23) as i32 - 127
}

impl Requantize {
    /// The code of 0, the least and the largest of the codes in the end: the addition's where there is one.
    pub(super) fn last(&self) -> (i32, i32, i32) {
        self.add.map_or((self.zero_point, self.qmin, self.qmax), |add| (add.zero_point, add.qmin, add.qmax))
    }

    /// The code of a sum, and what it is added to.
    #[inline(always)]
    pub(super) fn code(&self, sum: i32, filter: usize, other: Option<u8>) -> u8 {
        let (low, high) = (self.qmin - self.zero_point, self.qmax - self.zero_point);
        let rounded = match &self.rule {
            Rule::Float32(multiplier) => {
                (sum as f32 * multiplier[filter]).clamp(low as f32, high as f32).round_ties_even() as i32
            }
            Rule::FixedPoint(all) => {
                let (multiplier, shift) = all[filter];
                fixed_point(sum, multiplier, shift).clamp(low, high)
            }
            Rule::PowerOfTwo(shift) => power_of_two(sum, shift[filter]).clamp(low, high),
        };
        let code = rounded + self.zero_point;
        match (&self.add, other) {
            (Some(add), Some(other)) => {
                add.of(code, if add.signed { i32::from(other as i8) } else { i32::from(other) }) as u8
            }
            _ => code as u8,
        }
    }
}

/// See [`Rule::FixedPoint`].
fn fixed_point(sum: i32, multiplier: i32, shift: i32) -> i32 {
    let (left, right) = (shift.max(0), (-shift).max(0));
    let scaled = (i64::from(sum) << left).clamp(i64::from(i32::MIN), i64::from(i32::MAX));
    let product = scaled * i64::from(multiplier);
    let high = ((product + (1 << 30)) >> 31) as i32;
    let (mask, below) = ((1i64 << right) - 1, i64::from(high < 0));
    (high >> right) + i32::from((i64::from(high) & mask) > (mask >> 1) + below)
}

/// See [`Rule::PowerOfTwo`].
fn power_of_two(sum: i32, shift: i32) -> i32 {
    let sum = i64::from(sum);
    let scaled = if shift >= 0 { sum << shift } else { ((sum >> (-shift - 1)) + 1) >> 1 };
    scaled.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

impl Finish {
    pub(super) fn check(&self, filters: usize, taps: usize) -> Result<()> {
        let one_each = |what: &str, len: usize| {
            if len != filters {
                bail!("{what}: expected one for each of {filters} filters, got {len}");
            }
            Ok(())
        };
        one_each("bias", self.bias.len())?;
        let most = i32::MAX - 255 * 255 * taps as i32;
        if let Some(bias) = self.bias.iter().find(|&&b| b.unsigned_abs() > most as u32) {
            bail!("bias: expected at most {most} for sums of {taps} products, got {bias}");
        }
        let finite = |multiplier: &[f32]| {
            one_each("multiplier", multiplier.len())?;
            match multiplier.iter().find(|m| !m.is_finite()) {
                Some(m) => bail!("multiplier: expected finite numbers, got {m}"),
                None => Ok(()),
            }
        };
        let requantize = match &self.to {
            To::Sums => return Ok(()),
            To::Floats(multiplier) => return finite(multiplier),
            To::Codes(requantize) => requantize,
        };
        let Requantize { rule, zero_point, qmin, qmax, add } = requantize;
        let (low, high) = if *qmin < 0 || *qmax < 128 { (-128, 127) } else { (0, 255) };
        let (low, high) = if *qmax <= 127 && *qmin >= 0 { (-128, 255) } else { (low, high) };
        let inside = |q: i32| (low..=high).contains(&q);
        if qmin > qmax || !inside(*qmin) || !inside(*qmax) || !inside(*zero_point) {
            bail!("qmin, qmax: expected codes of one byte, got {qmin} to {qmax} with the zero point {zero_point}");
        }
        match rule {
            Rule::Float32(multiplier) => finite(multiplier)?,
            Rule::FixedPoint(all) => {
                one_each("multiplier", all.len())?;
                if let Some(bad) = all.iter().find(|(m, shift)| *m < 0 || !(-31..=30).contains(shift)) {
                    bail!("multiplier: expected at least 0 and a shift of -31 to 30, got {bad:?}");
                }
            }
            Rule::PowerOfTwo(shift) => {
                one_each("shift", shift.len())?;
                if let Some(bad) = shift.iter().find(|shift| !(-31..=31).contains(*shift)) {
                    bail!("shift: expected -31 to 31, got {bad}");
                }
            }
        }
        add.as_ref().map_or(Ok(()), AddCodes::check)
    }

    /// Whether codes are sums times floats of less than 1.
    pub(super) fn is_below_one(&self) -> bool {
        match &self.to {
            To::Codes(Requantize { rule: Rule::Float32(multiplier), .. }) => multiplier.iter().all(|m| m.abs() < 1.0),
            _ => false,
        }
    }

    /// Repeats what is one for each filter for `fold` pixels, with zeros behind it: vectors read so far.
    pub(super) fn pad(&mut self, fold: usize) {
        fn padded<T: Copy>(of: &mut Vec<T>, fold: usize, zero: T) {
            *of = of.repeat(fold);
            of.resize(of.len() + BEHIND, zero);
        }
        padded(&mut self.bias, fold, 0);
        match &mut self.to {
            To::Sums => {}
            To::Floats(multiplier) => padded(multiplier, fold, 0.0),
            To::Codes(Requantize { rule: Rule::Float32(multiplier), .. }) => padded(multiplier, fold, 0.0),
            To::Codes(Requantize { rule: Rule::FixedPoint(all), .. }) => padded(all, fold, (0, 0)),
            To::Codes(Requantize { rule: Rule::PowerOfTwo(shift), .. }) => padded(shift, fold, 0),
        }
    }

    /// Whether the outputs are of the kind that the sums become.
    pub(super) fn check_out(&self, out: &Out) -> Result<()> {
        match (&self.to, out) {
            (To::Sums, Out::Sums(_)) | (To::Floats(_), Out::Floats(_)) => Ok(()),
            (To::Codes(requantize), Out::Codes(codes, other)) => match (requantize.add, other) {
                (None, None) => Ok(()),
                (Some(_), Some(other)) if other.len() == codes.len() => Ok(()),
                _ => bail!("other: expected {} codes if they are to be added, else none", codes.len()),
            },
            _ => bail!("out: expected what the sums become ({:?})", std::mem::discriminant(&self.to)),
        }
    }

    /// Finishes the sum of one filter, to where `at` is.
    #[inline(always)]
    pub(super) fn one(&self, sum: i32, filter: usize, at: usize, out: &mut Out) {
        match (&self.to, out) {
            (To::Codes(requantize), Out::Codes(codes, other)) => {
                codes[at] = requantize.code(sum, filter, other.as_ref().map(|other| other[at]));
            }
            (To::Floats(multiplier), Out::Floats(floats)) => floats[at] = sum as f32 * multiplier[filter],
            (_, Out::Sums(sums)) => sums[at] = sum,
            _ => {}
        }
    }
}
