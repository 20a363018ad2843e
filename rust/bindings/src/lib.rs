//! `lowbit._core`: one file per kernel family, each function the same four
//! steps: convert, detach from the interpreter, one call, map the error.
#![allow(missing_docs)] // the public face is python/lowbit; signatures are in _core.pyi

mod affine;
mod call;
mod codebook;
mod conv;
mod gemm;
mod integer;
mod levels;
mod packing;
mod spiking;
mod spiking_network;
mod spiking_product;
mod system;

use numpy::{PyArray1, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

/// Fills what is found once in a process: numpy's tables, the instruction
/// sets, the thread count. Here because importing has one thread: were it left
/// to the first call, a fork meanwhile would leave the child waiting for a
/// thread that it does not have.
fn find_once(py: Python<'_>) {
    let array = PyArray1::<u8>::zeros(py, 1, false);
    array.readwrite();
    array.readonly();
    array.dtype();
    lowbit_kernels::prepare_for_forks();
    lowbit_kernels::threading();
    // A wrong LOWBIT_ISA is told by the calls, where a user can catch it.
    let _ = system::default_isa();
}

#[pymodule(gil_used = false)]
fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    find_once(m.py());
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("InternalError", m.py().get_type::<call::InternalError>())?;
    affine::register(m)?;
    packing::register(m)?;
    gemm::register(m)?;
    codebook::register(m)?;
    levels::register(m)?;
    conv::register(m)?;
    spiking_product::register(m)?;
    integer::register(m)?;
    spiking::register(m)?;
    spiking_network::register(m)?;
    system::register(m)
}
