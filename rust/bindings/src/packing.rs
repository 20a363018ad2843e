//! n-bit packing. `lowbit.packing` hands over C-contiguous arrays of the right
//! dtypes; lengths are checked again by the kernel.

use lowbit_kernels::packing::{self, Code};
use numpy::{
    BorrowError, Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::call::{self, Threads};

type Array<'py, T> = Bound<'py, PyArrayDyn<T>>;

/// Codes that one elementary operation handles, roughly: what `call::SMALL`
/// counts is slower work.
const CODES_PER_OP: usize = 4;

fn pack<T: Code + Element>(codes: &Array<'_, T>, nbits: u32, out: &Array<'_, u8>, isa: Option<&str>) -> PyResult<()> {
    let (isa, py) = (call::isa(isa)?, codes.py());
    let (rows, n) = rows("codes", codes.shape())?;
    let (codes, mut out) = (borrow("codes", codes)?, borrow_mut(out)?);
    let (codes, out) = (codes.as_slice()?, out.as_slice_mut()?);
    call::run(py, codes.len() / CODES_PER_OP, Threads::default(), |ctl| {
        packing::pack(codes, rows, n, nbits, out, isa, ctl)
    })
}

fn unpack<T: Code + Element>(
    packed: &Array<'_, u8>,
    nbits: u32,
    out: &Array<'_, T>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, py) = (call::isa(isa)?, packed.py());
    let (rows, n) = rows("out", out.shape())?;
    let (packed, mut out) = (borrow("packed", packed)?, borrow_mut(out)?);
    let (packed, out) = (packed.as_slice()?, out.as_slice_mut()?);
    call::run(py, out.len() / CODES_PER_OP, Threads::default(), |ctl| {
        packing::unpack(packed, rows, n, nbits, out, isa, ctl)
    })
}

/// Rows, and the elements of each.
fn rows(name: &str, shape: &[usize]) -> PyResult<(usize, usize)> {
    match shape.split_last() {
        Some((&n, outer)) => Ok((outer.iter().product(), n)),
        None => Err(PyValueError::new_err(format!("{name}: expected at least 1-D, got 0-D"))),
    }
}

fn borrow<'py, T: Element>(name: &str, array: &Array<'py, T>) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    contiguous(name, array.is_c_contiguous())?;
    array.try_readonly().map_err(|_| busy(name))
}

fn borrow_mut<'py, T: Element>(out: &Array<'py, T>) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    contiguous("out", out.is_c_contiguous())?;
    out.try_readwrite().map_err(|error| match error {
        BorrowError::NotWriteable => PyValueError::new_err("out: expected a writeable array, got a read-only one"),
        _ => busy("out"),
    })
}

fn contiguous(name: &str, is: bool) -> PyResult<()> {
    if is { Ok(()) } else { Err(PyValueError::new_err(format!("{name}: expected a C-contiguous array"))) }
}

fn busy(name: &str) -> PyErr {
    PyValueError::new_err(format!(
        "{name}: expected memory of its own, got an array that this or another call writes to"
    ))
}

#[pyfunction]
fn pack_u8(codes: &Array<'_, u8>, nbits: u32, out: &Array<'_, u8>, isa: Option<&str>) -> PyResult<()> {
    pack(codes, nbits, out, isa)
}

#[pyfunction]
fn pack_u16(codes: &Array<'_, u16>, nbits: u32, out: &Array<'_, u8>, isa: Option<&str>) -> PyResult<()> {
    pack(codes, nbits, out, isa)
}

#[pyfunction]
fn unpack_u8(packed: &Array<'_, u8>, nbits: u32, out: &Array<'_, u8>, isa: Option<&str>) -> PyResult<()> {
    unpack(packed, nbits, out, isa)
}

#[pyfunction]
fn unpack_u16(packed: &Array<'_, u8>, nbits: u32, out: &Array<'_, u16>, isa: Option<&str>) -> PyResult<()> {
    unpack(packed, nbits, out, isa)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(pack_u8, m)?)?;
    m.add_function(wrap_pyfunction!(pack_u16, m)?)?;
    m.add_function(wrap_pyfunction!(unpack_u8, m)?)?;
    m.add_function(wrap_pyfunction!(unpack_u16, m)?)
}
