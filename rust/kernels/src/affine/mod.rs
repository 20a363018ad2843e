//! Affine quantization: real numbers to codes and back.
//!
//! `x ~ (code - zero_point) * scale`. Rounding is the same everywhere:
//! `inv_scale = 1 / scale` correctly rounded, `code = clamp(rint(x *
//! inv_scale), qmin - zp, qmax - zp) + zp`, half to even, the clamp in floating
//! point, so that no conversion overflows. A scale is never below 2^-126.
//!
//! | function | in | out | source |
//! |---|---|---|---|
//! | [`quantize_rows`] | f32 or bf16 rows | u8 codes, f32 scale, u8 zero point, i32 sums | dynamic quantization per row |

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use crate::error::bail;
use crate::{Ctl, Isa, Result};

/// Rows of floats as a kernel takes them.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// float32
    F32(&'a [f32]),
    /// bfloat16, as its bits
    Bf16(&'a [u16]),
}

impl<'a> Floats<'a> {
    /// Elements in all.
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(x) => x.len(),
            Floats::Bf16(x) => x.len(),
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
        }
    }
}

/// How a row became codes: `x ~ (code - zero_point) * scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowScale {
    /// The step; NaN where the row held NaN or an infinity.
    pub scale: f32,
    /// The code of zero.
    pub zero_point: u8,
}

/// Quantizes one row to u8 on the calling thread: the step that a product
/// with rows of activations does first. `out` has as many elements as `x`.
#[inline]
pub(crate) fn quantize_row(x: Floats, symmetric: bool, out: &mut [u8], isa: Isa) -> RowScale {
    assert_eq!(x.len(), out.len());
    #[cfg(target_arch = "x86_64")]
    {
        if isa.has_avx512() {
            // SAFETY: an Isa exists only where the CPU has it.
            return unsafe { avx512::quantize_row(x, symmetric, out) };
        }
        if isa.has_avx2() {
            // SAFETY: an Isa exists only where the CPU has it.
            return unsafe { avx2::quantize_row(x, symmetric, out) };
        }
    }
    let _ = isa;
    scalar::quantize_row(crate::lanes::Scalar, x, symmetric, out)
}

/// Quantizes rows of `k` values to u8, each with its own scale and zero point,
/// and sums the codes of every group of `group_size` (`k` for one sum a row).
///
/// A symmetric row has zero point 128 and scale amax / 127; otherwise the scale
/// is the range, widened to hold 0, over 255. A row of one repeated value is
/// exact: the value is the scale. NaN or an infinity makes the row's scale NaN.
///
/// # Errors
/// [`crate::Error::Value`] where the lengths do not fit, `k` or `group_size` is
/// 0; [`crate::Error::Interrupted`].
pub fn quantize_rows(
    x: Floats,
    k: usize,
    symmetric: bool,
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
    // Rows of one task: enough work to be worth handing out.
    let block = (1usize << 16).div_ceil(k);
    let parts: Vec<_> =
        codes.chunks_mut(block * k).zip(rows.chunks_mut(block)).zip(group_sums.chunks_mut(block * groups)).collect();
    let parts = crate::par::Parts::new(parts);
    ctl.for_each(parts.len(), &|_, task| {
        let ((codes, rows), sums) = parts.take(task);
        for (i, row) in rows.iter_mut().enumerate() {
            let codes = &mut codes[i * k..(i + 1) * k];
            let first = (task * block + i) * k;
            *row = quantize_row(x.part(first..first + k), symmetric, codes, isa);
            for (sum, group) in sums[i * groups..(i + 1) * groups].iter_mut().zip(codes.chunks(group_size)) {
                *sum = group.iter().map(|&c| i32::from(c)).sum();
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn definition(x: &[f32], symmetric: bool) -> (Vec<u8>, RowScale) {
        let mut codes = vec![0; x.len()];
        let row = quantize_row(Floats::F32(x), symmetric, &mut codes, Isa::Scalar);
        (codes, row)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn every_isa_equals_the_definition(
            x in prop::collection::vec(prop_oneof![
                8 => -3f32..3f32, 1 => any::<f32>(), 1 => Just(0.0), 1 => Just(f32::MIN_POSITIVE / 4.0)
            ], 1..300),
            symmetric: bool,
        ) {
            let (codes, row) = definition(&x, symmetric);
            for &isa in Isa::available() {
                let mut got = vec![0; x.len()];
                let r = quantize_row(Floats::F32(&x), symmetric, &mut got, isa);
                prop_assert_eq!(r.scale.to_bits(), row.scale.to_bits(), "{}", isa.name());
                prop_assert_eq!(r.zero_point, row.zero_point);
                if row.scale.is_finite() {
                    prop_assert_eq!(&got, &codes, "{}", isa.name());
                }
            }
        }
    }

    #[test]
    fn worked_examples() {
        assert_eq!(definition(&[0.0, 0.0], false), (vec![0, 0], RowScale { scale: 1.0, zero_point: 0 }));
        assert_eq!(definition(&[2.5, 2.5], false), (vec![1, 1], RowScale { scale: 2.5, zero_point: 0 }));
        assert_eq!(definition(&[-2.5], false), (vec![0], RowScale { scale: 2.5, zero_point: 1 }));
        assert_eq!(definition(&[0.0, 255.0, 0.5, 1.5], false).0, [0, 255, 0, 2]); // ties to even
        assert_eq!(definition(&[f32::MAX, f32::MIN], false).0, [255, 0]);
        assert_eq!(definition(&[-127.0, 63.5], true).0, [1, 192]); // 63.5 ties to 64
        assert!(definition(&[1.0, f32::NAN], false).1.scale.is_nan());
        assert!(definition(&[f32::NEG_INFINITY, 0.0], true).1.scale.is_nan());
    }
}
