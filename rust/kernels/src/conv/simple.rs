//! What happens to codes one by one.

use super::Kind;
use super::finish::AddCodes;
use crate::error::bail;
use crate::{Isa, Result};

/// Adds codes.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) where the lengths differ.
pub fn add(a: &[u8], b: &[u8], how: &AddCodes, out: &mut [u8], isa: Isa) -> Result<()> {
    how.check()?;
    if a.len() != b.len() || a.len() != out.len() {
        bail!("a, b, out: expected one length, got {}, {} and {}", a.len(), b.len(), out.len());
    }
    #[cfg(target_arch = "x86_64")]
    let (a, b, out) = if isa.has_avx2() {
        let done = super::avx2::add(isa, a, b, how, out);
        (&a[done..], &b[done..], &mut out[done..])
    } else {
        (a, b, out)
    };
    let code = |x: u8| if how.signed { i32::from(x as i8) } else { i32::from(x) };
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = how.of(code(a), code(b)) as u8;
    }
    Ok(())
}

/// The product of two tensors of codes, as XNNPACK has it:
/// `rint(clamp(f32((a - a_zero_point) * (b - b_zero_point)) * multiplier)) + zero_point`.
#[derive(Debug, Clone, Copy)]
pub struct Multiply {
    /// The first tensor's codes, and the second's.
    pub kinds: [Kind; 2],
    /// The product of their scales over the output's.
    pub multiplier: f32,
    /// The code of 0.
    pub zero_point: i32,
    /// The least code.
    pub qmin: i32,
    /// The largest code.
    pub qmax: i32,
}

/// Multiplies codes. `b` may be shorter, and is then repeated.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) where the lengths do not fit.
pub fn multiply(a: &[u8], b: &[u8], how: &Multiply, out: &mut [u8], isa: Isa) -> Result<()> {
    if a.len() != out.len() || b.is_empty() || !a.len().is_multiple_of(b.len()) {
        bail!("a, b, out: expected one length, b's a divisor, got {}, {} and {}", a.len(), b.len(), out.len());
    }
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        super::avx2::multiply(isa, a, b, how, out);
        return Ok(());
    }
    multiply_all(a, b, how, out);
    Ok(())
}

#[inline(always)]
pub(super) fn multiply_all(a: &[u8], b: &[u8], how: &Multiply, out: &mut [u8]) {
    let Multiply { kinds: [of_a, of_b], multiplier, zero_point, qmin, qmax } = *how;
    let (low, high) = ((qmin - zero_point) as f32, (qmax - zero_point) as f32);
    for (a, out) in a.chunks(b.len()).zip(out.chunks_mut(b.len())) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            let product = (of_a.value(a) * of_b.value(b)) as f32 * multiplier;
            *out = (product.clamp(low, high).round_ties_even() as i32).wrapping_add(zero_point) as u8;
        }
    }
}

/// `table[x]` for uint8, `table[x + 128]` for int8.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) where the lengths differ.
pub fn look_up(x: &[u8], table: &[u8; 256], signed: bool, out: &mut [u8]) -> Result<()> {
    if x.len() != out.len() {
        bail!("out: expected {} codes, got {}", x.len(), out.len());
    }
    let flip = if signed { 0x80 } else { 0 };
    out.iter_mut().zip(x).for_each(|(out, &x)| *out = table[usize::from(x ^ flip)]);
    Ok(())
}

/// `clamp(rint(x * inv_scale) + zero_point)`, `inv_scale = 1 / scale` in float32.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) where the lengths differ, or a number is not finite.
pub fn quantize(x: &[f32], scale: f32, kind: Kind, out: &mut [u8], isa: Isa) -> Result<()> {
    if x.len() != out.len() {
        bail!("out: expected {} codes, got {}", x.len(), out.len());
    }
    #[cfg(target_arch = "x86_64")]
    let finite = if isa.has_avx2() {
        super::avx2::quantize(isa, x, scale, kind, out)
    } else {
        quantize_all(x, scale, kind, out)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let finite = quantize_all(x, scale, kind, out);
    if !finite {
        let at = x.iter().position(|x| !x.is_finite()).unwrap_or(0);
        bail!("x: expected finite numbers, got {} at flat index {at} of a sample", x[at]);
    }
    Ok(())
}

/// Whether all numbers were finite.
#[inline(always)]
pub(super) fn quantize_all(x: &[f32], scale: f32, kind: Kind, out: &mut [u8]) -> bool {
    let (low, high) = kind.range();
    let (low, high) = ((low - kind.zero_point) as f32, (high - kind.zero_point) as f32);
    let (inv_scale, zero_point) = (1.0 / scale, kind.zero_point);
    // Bits of the largest magnitude.
    let mut largest = 0;
    for (out, &x) in out.iter_mut().zip(x) {
        // A sum of 1.5 * 2^23 has the nearest integer, of two the even one, in its lowest bits.
        let code = ((x * inv_scale).max(low).min(high) + 12_582_912.0).to_bits() as i32;
        *out = code.wrapping_add(zero_point) as u8;
        largest = largest.max(x.abs().to_bits());
    }
    largest < f32::INFINITY.to_bits()
}

/// `f32(code - zero_point) * scale`.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) where the lengths differ.
pub fn dequantize(x: &[u8], scale: f32, kind: Kind, out: &mut [f32]) -> Result<()> {
    if x.len() != out.len() {
        bail!("out: expected {} numbers, got {}", x.len(), out.len());
    }
    out.iter_mut().zip(x).for_each(|(out, &x)| *out = kind.value(x) as f32 * scale);
    Ok(())
}

/// Softmax of rows of codes, as LiteRT has it: the exponentials from a table, summed in order in
/// float32, and each over the sum rounded half up to 256ths.
#[derive(Debug, Clone)]
pub struct Softmax {
    /// `e^(-i * scale)`.
    table: [f32; 256],
    kind: Kind,
    out: Kind,
}

impl Softmax {
    /// Of codes of this scale and kind, to codes of 1/256.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where the scale is no positive number.
    pub fn new(scale: f32, kind: Kind, out: Kind) -> Result<Softmax> {
        if !(scale > 0.0 && scale.is_finite()) {
            bail!("scale: expected a positive number, got {scale}");
        }
        let table = std::array::from_fn(|i| libm::exp(f64::from(-scale * i as f32)) as f32);
        Ok(Softmax { table, kind, out })
    }

    /// One row.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where the lengths differ.
    pub fn run(&self, x: &[u8], out: &mut [u8]) -> Result<()> {
        if x.len() != out.len() {
            bail!("out: expected {} codes, got {}", x.len(), out.len());
        }
        let most = x.iter().map(|&x| self.kind.code(x)).max().unwrap_or(0);
        let exponential = |x: u8| self.table[(most - self.kind.code(x)) as usize & 0xff];
        let sum = x.iter().fold(0f32, |sum, &x| sum + exponential(x));
        let inverse = 1.0 / (sum / 256.0);
        let (low, high) = self.out.range();
        for (out, &x) in out.iter_mut().zip(x) {
            let code = (exponential(x) * inverse + 0.5).floor() as i32;
            *out = (code + low).min(high) as u8;
        }
        Ok(())
    }
}
