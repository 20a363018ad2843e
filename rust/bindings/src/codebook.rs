//! Codebooks. `lowbit.codebook` hands over C-contiguous float32 or float64 rows and
//! the arrays to fill; lengths are checked again by the kernel.

use lowbit_kernels::codebook::{self, Code, Fit, Method, Options, Value};
use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::call::{Threads, isa, run};

fn read<'py, T: Element>(name: &str, array: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    array.cast::<PyArrayDyn<T>>()?.try_readonly().map_err(|e| PyValueError::new_err(format!("{name}: {e}")))
}

fn write<'py, T: Element>(name: &str, array: &Bound<'py, PyAny>) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    array.cast::<PyArrayDyn<T>>()?.try_readwrite().map_err(|e| PyValueError::new_err(format!("{name}: {e}")))
}

/// What a number costs, in simple operations, roughly.
const COST: usize = 64;

fn fit<T: Value + Element, C: Code + Element>(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    rows: usize,
    sample_weight: Option<&Bound<'_, PyAny>>,
    options: Options,
    codes: &Bound<'_, PyAny>,
) -> PyResult<Vec<Fit>> {
    let weights = sample_weight.map(|w| read::<f64>("sample_weight", w)).transpose()?;
    let weights = weights.as_ref().map(|w| w.as_slice()).transpose()?;
    let (x, mut codes) = (read::<T>("x", x)?, write::<C>("codes", codes)?);
    let (x, codes) = (x.as_slice()?, codes.as_slice_mut()?);
    run(py, x.len().saturating_mul(COST), Threads::default(), |ctl| {
        if rows == 1 {
            Ok(vec![codebook::kmeans_1d(x, weights, options, codes, ctl)?])
        } else {
            codebook::kmeans_1d_rows(x, rows, weights, options, codes, ctl)
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
    self::isa(isa)?; // the same arithmetic on each
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
    let fits = fit(py, x, rows, sample_weight, options, codes)?;
    for (out, fit) in levels.as_slice_mut()?.chunks_mut(k).zip(&fits) {
        out.copy_from_slice(&fit.levels);
    }
    Ok(fits.into_iter().map(|fit| (fit.inertia, fit.n_distinct)).collect())
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(kmeans_1d, m)?)
}
