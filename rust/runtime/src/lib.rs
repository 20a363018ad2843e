//! Integer networks: a graph that is data only, a plan made from it for one
//! instruction set, and the executor of plans.
//!
//! [`Graph`] is what files hold: tensors, constants, operations. It is checked
//! when it is read. [`Network`] is made from it and from the constants' bytes:
//! weights in the order that the instruction set reads, a place for every
//! tensor in one block of memory, steps in the order they run. It is never
//! saved. Networks of spiking neurons are in [`spiking`].
//!
//! ```
//! use lowbit_kernels::{Ctl, Isa};
//! use lowbit_runtime::{Graph, Network};
//!
//! let graph = Graph::from_json(r#"{
//!     "version": 1, "inputs": ["x"], "outputs": ["y"],
//!     "tensors": [
//!         {"name": "x", "shape": [2], "dtype": "int8", "scale": 0.5, "zero_point": 0},
//!         {"name": "y", "shape": [1], "dtype": "int8", "scale": 1.0, "zero_point": 0}],
//!     "constants": [
//!         {"name": "w", "shape": [1, 2], "dtype": "int8", "scale": [0.5], "zero_point": 0, "nbits": 8}],
//!     "operations": [
//!         {"op": "fully_connected", "input": "x", "weight": "w", "bias": null, "output": "y",
//!          "qmin": null, "qmax": null, "requantize": "float32"}]
//! }"#)?;
//! let network = Network::new(&graph, &[&[3, 4]], Isa::best())?;
//! let mut y = [0];
//! network.run(1, &[&[10, 20]], &mut [&mut y], &Ctl::new(1))?;
//! assert_eq!(y, [28]); // (3 · 10 + 4 · 20) / 4 is 27.5, and rounds to even
//! # Ok::<(), lowbit_kernels::Error>(())
//! ```

mod check;
mod graph;
mod memory;
mod network;
mod plan;
pub mod spiking;

pub use graph::{Bounds, Constant, Dtype, Graph, Operation, State, Tensor};
pub use network::{Network, Stream, Timed};

use lowbit_kernels::{Error, Result};

/// `Err(Error::Value)` with a formatted message.
macro_rules! bail {
    ($($arg:tt)*) => { return Err(lowbit_kernels::Error::Value(format!($($arg)*))) };
}
use bail;

/// An error of a kernel with the operation that it came from before it.
fn within<T>(what: impl Fn() -> String, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Value(text) => Error::Value(format!("{}: {text}", what())),
        other => other,
    })
}
