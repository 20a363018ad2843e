//! Codebooks: few values that stand for many.
//!
//! | function | in | out |
//! |---|---|---|
//! | [`kmeans_1d`], [`kmeans_1d_rows`] | f32 or f64 numbers, f64 weights | f64 levels, u8, u16 or u32 codes |

mod line;

pub use line::{Code, Fit, MOST, Method, Options, Value, kmeans_1d, kmeans_1d_rows, sorted};
