//! The definition on Avx512's vectors.

use super::{Floats, RowScale, scalar};
use crate::lanes::Avx512;

/// # Safety
/// The CPU has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn quantize_row(x: Floats, symmetric: bool, out: &mut [u8]) -> RowScale {
    // SAFETY: the features of this function are those that the token stands for.
    scalar::quantize_row(unsafe { Avx512::new() }, x, symmetric, out)
}
