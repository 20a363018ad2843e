//! Codebooks. `lowbit.codebook` hands over C-contiguous float32 or float64 rows and
//! the arrays to fill; lengths are checked again by the kernel.

use lowbit_kernels::Isa;
use lowbit_kernels::codebook::{self, Code, Fit, Method, Options, Value, space};
use numpy::{Element, PyArray1, PyArrayDyn};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::call::{Threads, isa, read, run, write};

/// What a number costs, in simple operations, roughly.
const COST: usize = 64;

fn fit<T: Value + Element, C: Code + Element>(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    rows: usize,
    sample_weight: Option<&Bound<'_, PyAny>>,
    options: Options,
    codes: &Bound<'_, PyAny>,
    isa: Isa,
) -> PyResult<Vec<Fit>> {
    let weights = sample_weight.map(|w| read::<f64>("sample_weight", w)).transpose()?;
    let weights = weights.as_ref().map(|w| w.as_slice()).transpose()?;
    let (x, mut codes) = (read::<T>("x", x)?, write::<C>("codes", codes)?);
    let (x, codes) = (x.as_slice()?, codes.as_slice_mut()?);
    run(py, x.len().saturating_mul(COST), Threads::default(), |ctl| {
        if rows == 1 {
            Ok(vec![codebook::kmeans_1d(x, weights, options, codes, isa, ctl)?])
        } else {
            codebook::kmeans_1d_rows(x, rows, weights, options, codes, isa, ctl)
        }
    })
}

/// Writes the codes and each row's levels, float64; returns each row's inertia and number of distinct values.
#[pyfunction]
fn kmeans_1d(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    rows: usize,
    sample_weight: Option<&Bound<'_, PyAny>>,
    k: usize,
    pin_zero: bool,
    method: &str,
    codes: &Bound<'_, PyAny>,
    levels: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<Vec<(f64, usize)>> {
    let isa = self::isa(isa)?;
    let method = match method {
        "exact" => Method::Exact,
        "lloyd" => Method::Lloyd,
        _ => return Err(PyValueError::new_err(format!("method: expected 'exact' or 'lloyd', got '{method}'"))),
    };
    let options = Options { k, pin_zero, method };
    let mut levels = write::<f64>("levels", levels)?;
    let wide = x.cast::<PyArrayDyn<f64>>().is_ok();
    let fit = match (wide, codes) {
        (false, c) if c.cast::<PyArrayDyn<u8>>().is_ok() => fit::<f32, u8>,
        (false, c) if c.cast::<PyArrayDyn<u16>>().is_ok() => fit::<f32, u16>,
        (false, c) if c.cast::<PyArrayDyn<u32>>().is_ok() => fit::<f32, u32>,
        (true, c) if c.cast::<PyArrayDyn<u8>>().is_ok() => fit::<f64, u8>,
        (true, c) if c.cast::<PyArrayDyn<u16>>().is_ok() => fit::<f64, u16>,
        (true, c) if c.cast::<PyArrayDyn<u32>>().is_ok() => fit::<f64, u32>,
        _ => return Err(PyTypeError::new_err("codes: expected uint8, uint16 or uint32")),
    };
    let fits = fit(py, x, rows, sample_weight, options, codes, isa)?;
    for (out, fit) in levels.as_slice_mut()?.chunks_mut(k).zip(&fits) {
        out.copy_from_slice(&fit.levels);
    }
    Ok(fits.into_iter().map(|fit| (fit.inertia, fit.n_distinct)).collect())
}

type Array<'py, T> = Bound<'py, PyArrayDyn<T>>;

/// Codebook (k * d), codes (n), inertia, iterations, different points.
type Found<'py, T> = (Bound<'py, PyArray1<T>>, Bound<'py, PyArray1<u32>>, f64, usize, usize);

fn assign<T: space::Real + Element>(
    x: &Array<'_, T>,
    codebook: &Array<'_, T>,
    d: usize,
    top: usize,
    codes: &Array<'_, u32>,
    distances: &Array<'_, f32>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, py) = (self::isa(isa)?, x.py());
    let (x, codebook) = (read::<T>("x", x)?, read::<T>("codebook", codebook)?);
    let (mut codes, mut distances) = (write::<u32>("codes", codes)?, write::<f32>("distances", distances)?);
    let (x, codebook) = (x.as_slice()?, codebook.as_slice()?);
    let (codes, distances) = (codes.as_slice_mut()?, distances.as_slice_mut()?);
    let work = x.len().saturating_mul(codebook.len() / d.max(1)) / 8;
    run(py, work, Threads::default(), |ctl| space::assign(x, codebook, d, top, codes, distances, isa, ctl))
}

fn kmeans_in<'py, T: space::Real + Element>(
    x: &Array<'py, T>,
    d: usize,
    k: usize,
    init: (&str, Option<&Array<'py, T>>),
    (n_init, max_iter, tol, seed): (usize, usize, f64, u64),
    weight: Option<&Array<'py, f64>>,
    isa: Option<&str>,
) -> PyResult<Found<'py, T>> {
    let (isa, py) = (self::isa(isa)?, x.py());
    let x = read::<T>("x", x)?;
    let start = init.1.map(|a| read::<T>("init", a)).transpose()?;
    let weight = weight.map(|w| read::<f64>("sample_weight", w)).transpose()?;
    let x = x.as_slice()?;
    let init = match &start {
        Some(start) => space::Init::Given(start.as_slice()?),
        None if init.0 == "random" => space::Init::Random,
        None => space::Init::PlusPlus,
    };
    let weight = weight.as_ref().map(|w| w.as_slice()).transpose()?;
    let options = space::Options { k, init, n_init, max_iter, tol, weight, seed };
    let work = x.len().saturating_mul(k).saturating_mul(max_iter);
    let fit: space::Fit<T> = run(py, work, Threads::default(), |ctl| space::kmeans(x, d, &options, isa, ctl))?;
    let (codebook, codes) = (PyArray1::from_vec(py, fit.codebook), PyArray1::from_vec(py, fit.codes));
    Ok((codebook, codes, fit.inertia, fit.n_iter, fit.n_distinct))
}

#[pyfunction]
fn assign_f32(
    x: &Array<'_, f32>,
    codebook: &Array<'_, f32>,
    d: usize,
    top: usize,
    codes: &Array<'_, u32>,
    distances: &Array<'_, f32>,
    isa: Option<&str>,
) -> PyResult<()> {
    assign(x, codebook, d, top, codes, distances, isa)
}

#[pyfunction]
fn assign_f64(
    x: &Array<'_, f64>,
    codebook: &Array<'_, f64>,
    d: usize,
    top: usize,
    codes: &Array<'_, u32>,
    distances: &Array<'_, f32>,
    isa: Option<&str>,
) -> PyResult<()> {
    assign(x, codebook, d, top, codes, distances, isa)
}

#[pyfunction]
fn kmeans_f32<'py>(
    x: &Array<'py, f32>,
    d: usize,
    k: usize,
    init: &str,
    start: Option<&Array<'py, f32>>,
    options: (usize, usize, f64, u64),
    weight: Option<&Array<'py, f64>>,
    isa: Option<&str>,
) -> PyResult<Found<'py, f32>> {
    kmeans_in(x, d, k, (init, start), options, weight, isa)
}

#[pyfunction]
fn kmeans_f64<'py>(
    x: &Array<'py, f64>,
    d: usize,
    k: usize,
    init: &str,
    start: Option<&Array<'py, f64>>,
    options: (usize, usize, f64, u64),
    weight: Option<&Array<'py, f64>>,
    isa: Option<&str>,
) -> PyResult<Found<'py, f64>> {
    kmeans_in(x, d, k, (init, start), options, weight, isa)
}

/// Bytes of a codeword are copied: `codebook` and `out` are uint8 views.
fn lookup<C: Element + Copy + Into<u64> + Sync>(
    codes: &Array<'_, C>,
    codebook: &Array<'_, u8>,
    width: usize,
    out: &Array<'_, u8>,
) -> PyResult<()> {
    let py = codes.py();
    let (codes, codebook, mut out) =
        (read::<C>("codes", codes)?, read::<u8>("codebook", codebook)?, write::<u8>("out", out)?);
    let (codes, codebook, out) = (codes.as_slice()?, codebook.as_slice()?, out.as_slice_mut()?);
    run(py, codes.len() * 4, Threads::default(), |ctl| space::lookup(codes, codebook, width, out, ctl))
}

#[pyfunction]
fn lookup_u8(codes: &Array<'_, u8>, codebook: &Array<'_, u8>, width: usize, out: &Array<'_, u8>) -> PyResult<()> {
    lookup(codes, codebook, width, out)
}

#[pyfunction]
fn lookup_u16(codes: &Array<'_, u16>, codebook: &Array<'_, u8>, width: usize, out: &Array<'_, u8>) -> PyResult<()> {
    lookup(codes, codebook, width, out)
}

#[pyfunction]
fn lookup_u32(codes: &Array<'_, u32>, codebook: &Array<'_, u8>, width: usize, out: &Array<'_, u8>) -> PyResult<()> {
    lookup(codes, codebook, width, out)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(kmeans_1d, m)?)?;
    m.add_function(wrap_pyfunction!(assign_f32, m)?)?;
    m.add_function(wrap_pyfunction!(assign_f64, m)?)?;
    m.add_function(wrap_pyfunction!(kmeans_f32, m)?)?;
    m.add_function(wrap_pyfunction!(kmeans_f64, m)?)?;
    m.add_function(wrap_pyfunction!(lookup_u8, m)?)?;
    m.add_function(wrap_pyfunction!(lookup_u16, m)?)?;
    m.add_function(wrap_pyfunction!(lookup_u32, m)?)
}
