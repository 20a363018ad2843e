//! Codebooks: few values, or few points, that stand for many.
//!
//! | function | in | out |
//! |---|---|---|
//! | [`kmeans_1d`], [`kmeans_1d_rows`] | f32 or f64 numbers, f64 weights | f64 levels, u8, u16 or u32 codes |
//! | [`levels_1d`] | the same | f64 levels |
//! | [`Steps::encode`] | f32 or f64 numbers, f64 levels | u8, u16 or u32 codes |
//! | [`space::kmeans`] | f32 or f64 points, f64 weights | codewords of the points' type, u32 codes |
//! | [`space::assign`] | points, codewords | u32 codes, f32 squared distances |
//! | [`space::lookup`] | codes, codewords | points |

mod line;
pub mod space;

pub use line::{
    Code, Fit, MOST, Method, Options, Steps, Value, count_below, kmeans_1d, kmeans_1d_rows, levels_1d, midpoint, power,
    sorted, sorted_weighted, times_power,
};
