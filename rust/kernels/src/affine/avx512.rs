//! The definition on Avx512's vectors.

use super::{Clip, Floats, FloatsMut, RowScale, scalar};
use crate::lanes::Avx512;

/// The definition's functions of the same names, compiled for these vectors.
macro_rules! instantiate {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {$(
        /// # Safety
        /// The CPU has AVX-512 F, BW, DQ and VL.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        pub(super) unsafe fn $name($($arg: $ty),*) -> $ret {
            // SAFETY: the features of this function are those that the token stands for.
            scalar::$name(unsafe { Avx512::new() }, $($arg),*)
        }
    )*};
}

instantiate! {
    quantize_row(x: Floats, symmetric: bool, out: &mut [u8]) -> RowScale;
    extremes(x: &[f32]) -> Option<(f32, f32)>;
    extremes_bf16(x: &[u16]) -> Option<(f32, f32)>;
    extremes_f64(x: &[f64]) -> Option<(f64, f64)>;
    encode(x: Floats, inv_scale: &[f32], zero_point: &[f32], bounds: (f32, f32), out: &mut [u8]) -> bool;
    decode(codes: &[u8], scale: &[f32], zero_point: &[f32], out: FloatsMut) -> u8;
    squares(x: &[f32], weight: Option<&[f32]>, clip: &Clip, bound: f64) -> f64;
    squares_f64(x: &[f64], weight: Option<&[f32]>, clip: &Clip, bound: f64) -> f64;
}
