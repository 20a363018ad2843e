//! Levels. `lowbit.levels` hands over C-contiguous float32 or float64 numbers, float64 levels and
//! the arrays to fill; lengths are checked again by the kernel.

use lowbit_kernels::codebook::Code;
use lowbit_kernels::levels::{self, Density, Fit, Method, Number, Options};
use numpy::{Element, PyArrayDyn};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::call::{Threads, isa, read, run, to_py, write};

/// What a number, or a level, costs a fit, in simple operations, roughly.
const COST: usize = 64;

/// Error, clip and distinct values of a row.
type Told = (f64, f64, usize);

fn fit<T: Number + Element>(
    x: &Bound<'_, PyAny>,
    rows: usize,
    sample_weight: Option<&Bound<'_, PyAny>>,
    options: Options,
) -> PyResult<Vec<Fit>> {
    let py = x.py();
    let weights = sample_weight.map(|w| read::<f64>("sample_weight", w)).transpose()?;
    let weights = weights.as_ref().map(|w| w.as_slice()).transpose()?;
    let x = read::<T>("x", x)?;
    let x = x.as_slice()?;
    let work = x.len().saturating_add(rows.saturating_mul(options.n_levels)).saturating_mul(COST);
    let isa = isa(None)?;
    run(py, work, Threads::default(), |ctl| {
        if rows == 1 {
            Ok(vec![levels::fit(x, weights, options, isa, ctl)?])
        } else {
            levels::fit_rows(x, rows, weights, options, isa, ctl)
        }
    })
}

/// Writes each row's levels, float64.
#[pyfunction]
fn fit_levels(
    x: &Bound<'_, PyAny>,
    rows: usize,
    sample_weight: Option<&Bound<'_, PyAny>>,
    n_levels: usize,
    method: &str,
    pin_zero: bool,
    levels: &Bound<'_, PyAny>,
) -> PyResult<Vec<Told>> {
    let options = Options { n_levels, method: Method::named(method).map_err(to_py)?, pin_zero };
    let mut out = write::<f64>("levels", levels)?;
    let wide = x.cast::<PyArrayDyn<f64>>().is_ok();
    let fits = if wide { fit::<f64> } else { fit::<f32> }(x, rows, sample_weight, options)?;
    for (out, fit) in out.as_slice_mut()?.chunks_mut(n_levels).zip(&fits) {
        out.copy_from_slice(&fit.levels);
    }
    Ok(fits.into_iter().map(|fit| (fit.mse, fit.clip, fit.n_distinct)).collect())
}

#[pyfunction]
fn density_levels(
    py: Python<'_>,
    density: &str,
    n_levels: usize,
    method: &str,
    clip: &str,
    levels: &Bound<'_, PyAny>,
) -> PyResult<(f64, f64)> {
    let density = match density {
        "gauss" => Density::Gauss,
        "laplace" => Density::Laplace,
        _ => return Err(PyValueError::new_err(format!("density: expected 'gauss' or 'laplace', got '{density}'"))),
    };
    let model = match clip {
        "search" => false,
        "model" => true,
        _ => return Err(PyValueError::new_err(format!("clip: expected 'search' or 'model', got '{clip}'"))),
    };
    let method = Method::named(method).map_err(to_py)?;
    let mut out = write::<f64>("levels", levels)?;
    let work = n_levels.saturating_mul(1 << 12);
    let fit = run(py, work, Threads::default(), |ctl| levels::of_density(density, n_levels, method, model, ctl))?;
    out.as_slice_mut()?.copy_from_slice(&fit.levels);
    Ok((fit.mse, fit.clip))
}

fn encode_as<T: Number + Element, C: Code + Element + Into<usize>>(
    x: &Bound<'_, PyAny>,
    rows: usize,
    levels: &[f64],
    codes: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, py) = (self::isa(isa)?, x.py());
    let (x, mut codes) = (read::<T>("x", x)?, write::<C>("codes", codes)?);
    let (x, codes) = (x.as_slice()?, codes.as_slice_mut()?);
    run(py, x.len(), Threads::default(), |ctl| levels::encode(x, rows, levels, codes, isa, ctl))
}

#[pyfunction]
fn encode(
    x: &Bound<'_, PyAny>,
    rows: usize,
    levels: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let levels = read::<f64>("levels", levels)?;
    let wide = x.cast::<PyArrayDyn<f64>>().is_ok();
    let encode = match (wide, codes.cast::<PyArrayDyn<u8>>().is_ok()) {
        (false, true) => encode_as::<f32, u8>,
        (false, false) => encode_as::<f32, u16>,
        (true, true) => encode_as::<f64, u8>,
        (true, false) => encode_as::<f64, u16>,
    };
    encode(x, rows, levels.as_slice()?, codes, isa)
}

fn decode_as<C: Code + Element + Into<usize>, T: Element + Copy>(
    codes: &Bound<'_, PyAny>,
    rows: usize,
    levels: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let py = codes.py();
    let (codes, levels, mut out) = (read::<C>("codes", codes)?, read::<T>("levels", levels)?, write::<T>("out", out)?);
    let (codes, levels, out) = (codes.as_slice()?, levels.as_slice()?, out.as_slice_mut()?);
    run(py, codes.len(), Threads::default(), |ctl| levels::decode(codes, rows, levels, out, ctl))
}

/// Bits are copied: `levels` and `out` are views as unsigned integers.
#[pyfunction]
fn decode(codes: &Bound<'_, PyAny>, rows: usize, levels: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>) -> PyResult<()> {
    let narrow = codes.cast::<PyArrayDyn<u8>>().is_ok();
    let decode = match narrow {
        true if levels.cast::<PyArrayDyn<u32>>().is_ok() => decode_as::<u8, u32>,
        true if levels.cast::<PyArrayDyn<u64>>().is_ok() => decode_as::<u8, u64>,
        false if levels.cast::<PyArrayDyn<u32>>().is_ok() => decode_as::<u16, u32>,
        false if levels.cast::<PyArrayDyn<u64>>().is_ok() => decode_as::<u16, u64>,
        _ => return Err(PyTypeError::new_err("levels: expected a view as uint32 or uint64")),
    };
    decode(codes, rows, levels, out)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(fit_levels, m)?)?;
    m.add_function(wrap_pyfunction!(density_levels, m)?)?;
    m.add_function(wrap_pyfunction!(encode, m)?)?;
    m.add_function(wrap_pyfunction!(decode, m)?)
}
