//! Kernels for low-bit neural networks: choose the levels, pack the codes, run
//! the integers.
//!
//! Plain Rust over slices; this crate knows neither Python nor numpy. Each
//! family is a module:
//!
//! | family | what it does |
//! |---|---|
//! | [`affine`] | scales, zero points, quantize, dequantize; dynamic rows |
//! | [`packing`] | codes of 1 to 16 bits to dense bytes and back |
//! | [`gemm`] | integer matrix products, linear layers with fused epilogues |
//! | [`codebook`] | k-means |
//! | [`levels`] | levels by formula and by search; numbers to codes and back |
//! | [`conv`] | integer convolutions, pooling, and what else a network does to codes |
//! | [`spiking`] | spiking neurons, products of spikes with weights |
//!
//! In a family, `scalar.rs` is the definition and the files named after an
//! instruction set equal it, bit for bit. Every function takes an [`Isa`], so
//! that a test can run each path that this CPU has, and a [`Ctl`], through
//! which a caller limits threads and stops a long call.
//!
//! ```
//! use lowbit_kernels::{Ctl, Isa, gemm};
//!
//! // C = A B with A 2×3 (u8) and B 3×1 (i8).
//! let tiled = gemm::Tiled::from_kn(&[1, -2, 3], 3, 1)?;
//! let mut c = [0i32; 2];
//! gemm::matmul_i32(gemm::Lhs::U8(&[1, 2, 3, 4, 5, 6]), 2, &tiled, &mut c, Isa::best(), &Ctl::new(1))?;
//! assert_eq!(c, [6, 12]);
//! # Ok::<(), lowbit_kernels::Error>(())
//! ```

pub mod affine;
pub mod codebook;
pub mod conv;
mod error;
pub mod gemm;
mod isa;
mod lanes;
pub mod levels;
pub mod packing;
mod par;
pub mod spiking;

pub use error::{Error, Result};
pub use isa::Isa;
pub use par::{
    Ctl, Parts, adopt_openmp, default_threads, prepare_for_forks, set_default_threads, threading, threads_were_refused,
};
