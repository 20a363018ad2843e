//! Threads and instruction sets of the process.

use std::ffi::CString;
use std::sync::OnceLock;

use lowbit_kernels::{Isa, adopt_openmp, default_threads, set_default_threads, threading};
use pyo3::prelude::*;

use crate::call::{Threads, run, to_py};

/// `LOWBIT_ISA` where it is set, else the best that this CPU has.
pub fn default_isa() -> PyResult<Isa> {
    static DEFAULT: OnceLock<Isa> = OnceLock::new();
    if let Some(&isa) = DEFAULT.get() {
        return Ok(isa);
    }
    let isa = match std::env::var("LOWBIT_ISA") {
        Ok(name) if !name.is_empty() => Isa::named(&name).map_err(to_py)?,
        _ => Isa::best(),
    };
    Ok(*DEFAULT.get_or_init(|| isa))
}

#[pyfunction]
fn isa() -> PyResult<&'static str> {
    Ok(default_isa()?.name())
}

#[pyfunction]
fn available_isas() -> Vec<&'static str> {
    Isa::available().iter().map(|isa| isa.name()).collect()
}

#[pyfunction]
fn set_num_threads(n: u32) {
    set_default_threads(n);
}

#[pyfunction]
fn get_num_threads() -> usize {
    default_threads()
}

#[pyfunction]
fn thread_complaints() -> Vec<String> {
    threading().1.clone()
}

#[pyfunction]
fn use_openmp(path: CString) -> bool {
    adopt_openmp(&path)
}

/// Panics as a kernel might, `work` elementary operations long: the tests see
/// what reaches Python.
#[pyfunction]
fn _panic(py: Python<'_>, text: &str, work: usize) -> PyResult<()> {
    run(py, work, Threads::default(), |_| panic!("{text}"))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(isa, m)?)?;
    m.add_function(wrap_pyfunction!(available_isas, m)?)?;
    m.add_function(wrap_pyfunction!(set_num_threads, m)?)?;
    m.add_function(wrap_pyfunction!(get_num_threads, m)?)?;
    m.add_function(wrap_pyfunction!(thread_complaints, m)?)?;
    m.add_function(wrap_pyfunction!(use_openmp, m)?)?;
    m.add_function(wrap_pyfunction!(_panic, m)?)
}
