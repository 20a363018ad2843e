//! The definition on Avx2's vectors.

use super::{Floats, RowScale, scalar};
use crate::lanes::Avx2;

/// # Safety
/// The CPU has AVX2, FMA, BMI1 and BMI2.
#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
pub(super) unsafe fn quantize_row(x: Floats, symmetric: bool, out: &mut [u8]) -> RowScale {
    // SAFETY: the features of this function are those that the token stands for.
    scalar::quantize_row(unsafe { Avx2::new() }, x, symmetric, out)
}
