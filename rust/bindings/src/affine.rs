//! Affine quantization. `lowbit.affine` hands over C-contiguous arrays and the
//! name of their real type, float16 and bfloat16 as uint16; lengths are checked
//! again by the kernel.

use lowbit_kernels::affine::{self, Digits, Floats, FloatsMut, Layout, Levels, Method, RowScale, Tables};
use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::call::{Threads, isa, run, to_py};

/// (outer, channels, inner, group size)
type Shape = (usize, usize, usize, usize);

fn layout((outer, channels, inner, group): Shape) -> PyResult<Layout> {
    if outer == 1 { Layout::groups_of(group, channels, inner) } else { Layout::axis(outer, channels, inner) }
        .map_err(to_py)
}

fn read<'py, T: Element>(name: &str, array: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    array.cast::<PyArrayDyn<T>>()?.try_readonly().map_err(|e| PyValueError::new_err(format!("{name}: {e}")))
}

fn write<'py, T: Element>(name: &str, array: &Bound<'py, PyAny>) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    array.cast::<PyArrayDyn<T>>()?.try_readwrite().map_err(|e| PyValueError::new_err(format!("{name}: {e}")))
}

fn unknown(dtype: &str) -> PyErr {
    PyTypeError::new_err(format!("dtype: expected float32, float64, float16 or bfloat16, got {dtype}"))
}

/// Borrowed values of any real type.
enum Read<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    F64(PyReadonlyArrayDyn<'py, f64>),
    F16(PyReadonlyArrayDyn<'py, u16>),
    Bf16(PyReadonlyArrayDyn<'py, u16>),
}

impl<'py> Read<'py> {
    fn new(x: &Bound<'py, PyAny>, dtype: &str) -> PyResult<Self> {
        Ok(match dtype {
            "float32" => Read::F32(read("x", x)?),
            "float64" => Read::F64(read("x", x)?),
            "float16" => Read::F16(read("x", x)?),
            "bfloat16" => Read::Bf16(read("x", x)?),
            _ => return Err(unknown(dtype)),
        })
    }

    fn get(&self) -> PyResult<Floats<'_>> {
        Ok(match self {
            Read::F32(x) => Floats::F32(x.as_slice()?),
            Read::F64(x) => Floats::F64(x.as_slice()?),
            Read::F16(x) => Floats::F16(x.as_slice()?),
            Read::Bf16(x) => Floats::Bf16(x.as_slice()?),
        })
    }
}

/// Writes scales and zero points; returns how many groups had no weight.
#[pyfunction]
fn choose_qparams(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    dtype: &str,
    shape: Shape,
    levels: (u32, bool, bool),
    method: &str,
    percentile: f64,
    sample_weight: Option<&Bound<'_, PyAny>>,
    scale: &Bound<'_, PyAny>,
    zero_point: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<usize> {
    let isa = self::isa(isa)?;
    let (layout, levels) = (layout(shape)?, Levels::new(levels.0, levels.1, levels.2).map_err(to_py)?);
    // Roughly what a value costs, in simple operations.
    let (method, cost) = match method {
        "absmax" => (Method::AbsMax, 1),
        "percentile" => (Method::Percentile(percentile), 16),
        "mse" => (Method::Mse, 64),
        _ => {
            let text = format!("method: expected 'absmax', 'percentile' or 'mse', got '{method}'");
            return Err(PyValueError::new_err(text));
        }
    };
    let weight = sample_weight.map(|w| read::<f32>("sample_weight", w)).transpose()?;
    let weight = weight.as_ref().map(|w| w.as_slice()).transpose()?;
    let (x, mut scale, mut zero_point) =
        (Read::new(x, dtype)?, write::<f32>("scale", scale)?, write::<i32>("zero_point", zero_point)?);
    let (x, scale, zero_point) = (x.get()?, scale.as_slice_mut()?, zero_point.as_slice_mut()?);
    run(py, x.len().saturating_mul(cost), Threads::default(), |ctl| {
        affine::choose_qparams(x, &layout, &levels, method, weight, scale, zero_point, isa, ctl)
    })
}

/// `bounds` is (qmin, qmax).
#[pyfunction]
fn quantize(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    dtype: &str,
    shape: Shape,
    bounds: (u8, u8),
    scale: &Bound<'_, PyAny>,
    zero_point: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, layout) = (self::isa(isa)?, layout(shape)?);
    let (x, scale, zero_point) =
        (Read::new(x, dtype)?, read::<f32>("scale", scale)?, read::<i32>("zero_point", zero_point)?);
    let mut codes = write::<u8>("out", codes)?;
    let (x, scale, zero_point, codes) = (x.get()?, scale.as_slice()?, zero_point.as_slice()?, codes.as_slice_mut()?);
    run(py, x.len(), Threads::default(), |ctl| affine::quantize(x, &layout, bounds, scale, zero_point, codes, isa, ctl))
}

/// `dtype` is that of `out`.
#[pyfunction]
fn dequantize(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    shape: Shape,
    qmax: u8,
    scale: &Bound<'_, PyAny>,
    zero_point: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    dtype: &str,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, layout) = (self::isa(isa)?, layout(shape)?);
    let codes = read::<u8>("codes", codes)?;
    let (scale, zero_point) = (read::<f32>("scale", scale)?, read::<i32>("zero_point", zero_point)?);
    let (codes, scale, zero_point) = (codes.as_slice()?, scale.as_slice()?, zero_point.as_slice()?);
    let call = |out: FloatsMut| {
        run(py, codes.len(), Threads::default(), |ctl| {
            affine::dequantize(codes, &layout, qmax, scale, zero_point, out, isa, ctl)
        })
    };
    match dtype {
        "float32" => call(FloatsMut::F32(write("out", out)?.as_slice_mut()?)),
        "float64" => call(FloatsMut::F64(write("out", out)?.as_slice_mut()?)),
        "float16" => call(FloatsMut::F16(write("out", out)?.as_slice_mut()?)),
        "bfloat16" => call(FloatsMut::Bf16(write("out", out)?.as_slice_mut()?)),
        _ => Err(unknown(dtype)),
    }
}

/// `codes` is (terms, *x.shape); `digits` is (bits, terms).
#[pyfunction]
fn expand(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    dtype: &str,
    shape: Shape,
    digits: (u32, u32),
    scale: &Bound<'_, PyAny>,
    zero_point: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, layout) = (self::isa(isa)?, layout(shape)?);
    let digits = Digits::new(digits.0, digits.1).map_err(to_py)?;
    let (x, scale, zero_point) =
        (Read::new(x, dtype)?, read::<f32>("scale", scale)?, read::<u32>("zero_point", zero_point)?);
    let mut codes = write::<u8>("codes", codes)?;
    let (x, scale, zero_point, codes) = (x.get()?, scale.as_slice()?, zero_point.as_slice()?, codes.as_slice_mut()?);
    run(py, codes.len(), Threads::default(), |ctl| {
        affine::expand(x, &layout, digits, scale, zero_point, codes, isa, ctl)
    })
}

/// Rows of `k` values; `levels` are bits and whether they are symmetric, and the sums of codes are of
/// `group_size` each.
#[pyfunction]
fn quantize_rows(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    dtype: &str,
    k: usize,
    levels: (u32, bool),
    group_size: usize,
    codes: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    zero_point: &Bound<'_, PyAny>,
    group_sums: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, levels) = (self::isa(isa)?, Levels::new(levels.0, levels.1, false).map_err(to_py)?);
    let (x, mut codes) = (Read::new(x, dtype)?, write::<u8>("codes", codes)?);
    let (mut scale, mut zero_point) = (write::<f32>("scale", scale)?, write::<u8>("zero_point", zero_point)?);
    let mut sums = write::<i32>("group_sums", group_sums)?;
    let (x, codes, sums) = (x.get()?, codes.as_slice_mut()?, sums.as_slice_mut()?);
    let (scale, zero_point) = (scale.as_slice_mut()?, zero_point.as_slice_mut()?);
    of_rows(scale, zero_point, |rows| {
        run(py, x.len().saturating_mul(2), Threads::default(), |ctl| {
            affine::quantize_rows(x, k, &levels, group_size, codes, rows, sums, isa, ctl)
        })
    })
}

/// Scales and zero points of rows, which a kernel finds together.
pub fn of_rows(
    scale: &mut [f32],
    zero_point: &mut [u8],
    find: impl FnOnce(&mut [RowScale]) -> PyResult<()>,
) -> PyResult<()> {
    let mut rows = vec![RowScale::default(); scale.len()];
    find(&mut rows)?;
    for ((row, scale), zero_point) in rows.iter().zip(scale).zip(zero_point) {
        (*scale, *zero_point) = (row.scale, row.zero_point);
    }
    Ok(())
}

/// Codes of levels, each error carried on. `tables`: (groups, levels of each).
#[pyfunction]
fn round_with_feedback(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    k: usize,
    coefficients: &Bound<'_, PyAny>,
    levels: &Bound<'_, PyAny>,
    tables: (usize, usize),
    group: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    fresh: bool,
    isa: Option<&str>,
) -> PyResult<()> {
    let isa = self::isa(isa)?;
    let (w, coefficients) = (read::<f32>("w", w)?, read::<f32>("coefficients", coefficients)?);
    let (levels, group) = (read::<f32>("levels", levels)?, read::<u32>("group", group)?);
    let mut codes = write::<u8>("codes", codes)?;
    let (w, coefficients, codes) = (w.as_slice()?, coefficients.as_slice()?, codes.as_slice_mut()?);
    let tables = Tables { levels: levels.as_slice()?, group: group.as_slice()?, groups: tables.0, size: tables.1 };
    run(py, w.len().saturating_mul(k), Threads::default(), |ctl| {
        affine::round_with_feedback(w, k, coefficients, tables, codes, fresh, isa, ctl)
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(choose_qparams, m)?)?;
    m.add_function(wrap_pyfunction!(quantize, m)?)?;
    m.add_function(wrap_pyfunction!(dequantize, m)?)?;
    m.add_function(wrap_pyfunction!(expand, m)?)?;
    m.add_function(wrap_pyfunction!(quantize_rows, m)?)?;
    m.add_function(wrap_pyfunction!(round_with_feedback, m)?)
}
