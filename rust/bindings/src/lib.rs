//! `lowbit._core`: one file per kernel family, each function the same four
//! steps: convert, detach from the interpreter, one call, map the error.
#![allow(missing_docs)] // the public face is python/lowbit; signatures are in _core.pyi

mod affine;
mod call;
mod gemm;
mod packing;
mod system;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("InternalError", m.py().get_type::<call::InternalError>())?;
    affine::register(m)?;
    packing::register(m)?;
    gemm::register(m)?;
    system::register(m)
}
