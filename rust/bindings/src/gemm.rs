//! Products and layers.

use lowbit_kernels::affine::{Floats, GroupedRows, RowScale};
use lowbit_kernels::gemm::{
    self, Activation, After, Codebook, Codes, Groups, Input, Inputs, Layer, Lhs, Norm, Output, Tables, Tiled, Weight,
};
use numpy::{PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::call::{Threads, isa, run, to_py};

/// Bits, group size, whether symmetric, size of the blocks that are rotated or 0, how
/// inputs are taken, which codes share a table if there are any.
type Form = (u32, usize, bool, usize, Option<String>, Option<String>);

fn borrowed(name: &str, error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(format!("{name}: {error}"))
}

/// A contiguous array's elements, read.
struct Read<'py, T: numpy::Element>(PyReadonlyArrayDyn<'py, T>);

impl<'py, T: numpy::Element> Read<'py, T> {
    fn new(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = array.cast::<PyArrayDyn<T>>()?;
        array.try_readonly().map(Read).map_err(|e| borrowed(name, e))
    }

    fn slice(&self) -> PyResult<&[T]> {
        self.0.as_slice().map_err(|_| PyValueError::new_err("expected a C-contiguous array"))
    }
}

/// A contiguous array's elements, written.
struct Write<'py, T: numpy::Element>(PyReadwriteArrayDyn<'py, T>);

impl<'py, T: numpy::Element> Write<'py, T> {
    fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = array.cast::<PyArrayDyn<T>>()?;
        array.try_readwrite().map(Write).map_err(|e| borrowed("out", e))
    }

    fn slice(&mut self) -> PyResult<&mut [T]> {
        self.0.as_slice_mut().map_err(|_| PyValueError::new_err("out: expected a C-contiguous array"))
    }
}

/// float32, or bfloat16 seen as uint16.
enum ReadFloats<'py> {
    F32(Read<'py, f32>),
    Bf16(Read<'py, u16>),
}

impl<'py> ReadFloats<'py> {
    fn new(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        if array.cast::<PyArrayDyn<f32>>().is_ok() {
            return Ok(ReadFloats::F32(Read::new(name, array)?));
        }
        Ok(ReadFloats::Bf16(Read::new(name, array)?))
    }

    fn get(&self) -> PyResult<Floats<'_>> {
        Ok(match self {
            ReadFloats::F32(x) => Floats::F32(x.slice()?),
            ReadFloats::Bf16(x) => Floats::Bf16(x.slice()?),
        })
    }
}

/// The entries of tables, int8, float32 or bfloat16.
enum ReadCodebook<'py> {
    Int8(Read<'py, i8>),
    Floats(ReadFloats<'py>),
}

impl<'py> ReadCodebook<'py> {
    fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        if array.cast::<PyArrayDyn<i8>>().is_ok() {
            return Ok(ReadCodebook::Int8(Read::new("codebook", array)?));
        }
        Ok(ReadCodebook::Floats(ReadFloats::new("codebook", array)?))
    }

    fn get(&self) -> PyResult<Codebook<'_>> {
        Ok(match self {
            ReadCodebook::Int8(entries) => Codebook::Int8(entries.slice()?),
            ReadCodebook::Floats(ReadFloats::F32(entries)) => Codebook::F32(entries.slice()?),
            ReadCodebook::Floats(ReadFloats::Bf16(entries)) => Codebook::Bf16(entries.slice()?),
        })
    }
}

/// A layer's weight: its bytes, and the tables that they look up or None.
struct ReadWeight<'py> {
    tiled: Read<'py, u8>,
    codebook: Option<ReadCodebook<'py>>,
}

/// What Python hands over for it.
type PyWeight<'py> = (Bound<'py, PyAny>, Option<Bound<'py, PyAny>>);

impl<'py> ReadWeight<'py> {
    fn new(name: &str, (tiled, codebook): &PyWeight<'py>) -> PyResult<Self> {
        let codebook = codebook.as_ref().map(ReadCodebook::new).transpose()?;
        Ok(ReadWeight { tiled: Read::new(name, tiled)?, codebook })
    }

    fn get(&self, k: usize, n: usize) -> PyResult<Weight<'_>> {
        let codebook = self.codebook.as_ref().map(ReadCodebook::get).transpose()?;
        Weight::from_bytes(self.tiled.slice()?, k, n, codebook).map_err(to_py)
    }
}

enum WriteFloats<'py> {
    F32(Write<'py, f32>),
    Bf16(Write<'py, u16>),
}

impl<'py> WriteFloats<'py> {
    fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        if array.cast::<PyArrayDyn<f32>>().is_ok() {
            return Ok(WriteFloats::F32(Write::new(array)?));
        }
        Ok(WriteFloats::Bf16(Write::new(array)?))
    }

    fn get(&mut self) -> PyResult<Output<'_>> {
        Ok(match self {
            WriteFloats::F32(out) => Output::F32(out.slice()?),
            WriteFloats::Bf16(out) => Output::Bf16(out.slice()?),
        })
    }
}

/// Layer normalization's gamma, beta and epsilon.
type PyNorm<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, f32);

/// What follows a layer's last sum.
struct ReadAfter<'py> {
    residual: Option<ReadFloats<'py>>,
    norm: Option<(Read<'py, f32>, Read<'py, f32>, f32)>,
}

impl<'py> ReadAfter<'py> {
    fn new(residual: Option<&Bound<'py, PyAny>>, norm: Option<PyNorm<'py>>) -> PyResult<Self> {
        let residual = residual.map(|r| ReadFloats::new("residual", r)).transpose()?;
        let norm = match norm {
            Some((gamma, beta, eps)) => Some((Read::new("norm", &gamma)?, Read::new("norm", &beta)?, eps)),
            None => None,
        };
        Ok(ReadAfter { residual, norm })
    }

    fn get(&self) -> PyResult<After<'_>> {
        let norm = match &self.norm {
            Some((gamma, beta, eps)) => Some(Norm { gamma: gamma.slice()?, beta: beta.slice()?, eps: *eps }),
            None => None,
        };
        Ok(After { residual: self.residual.as_ref().map(ReadFloats::get).transpose()?, norm })
    }
}

fn activation(name: &str) -> PyResult<Activation> {
    Ok(match name {
        "" => Activation::Identity,
        "relu" => Activation::Relu,
        "gelu" => Activation::Gelu,
        "gelu_tanh" => Activation::GeluTanh,
        "silu" => Activation::Silu,
        _ => {
            return Err(PyValueError::new_err(format!(
                "activation: expected None, 'relu', 'gelu', 'gelu_tanh' or 'silu', got '{name}'"
            )));
        }
    })
}

fn threads(threads: usize, openmp: bool) -> Threads {
    Threads { threads: (threads > 0).then_some(threads), openmp }
}

#[pyfunction]
fn tiled_len(k: usize, n: usize) -> PyResult<usize> {
    gemm::tiled_len(k, n).map_err(to_py)
}

/// Tiles codes (K, N) into `out` with a scale for each column, all 1 for None.
#[pyfunction]
fn tile_matrix(
    py: Python<'_>,
    b: &Bound<'_, PyAny>,
    k: usize,
    n: usize,
    scale: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (b, mut out) = (Read::<i8>::new("b", b)?, Write::<u8>::new(out)?);
    let scale = scale.map(|scale| Read::<f32>::new("scale", scale)).transpose()?;
    let scale = scale.as_ref().map(Read::slice).transpose()?;
    let (b, out) = (b.slice()?, out.slice()?);
    run(py, b.len() * 4, Threads::default(), |ctl| gemm::tile(b, k, n, n, 1, scale, out, ctl))
}

#[pyfunction]
fn weight_len(k: usize, n: usize, equalized: bool) -> PyResult<usize> {
    gemm::weight_len(k, n, equalized).map_err(to_py)
}

/// Quantizes a weight (N, K) and tiles it into `out`.
#[pyfunction]
fn quantize_weight(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    n: usize,
    k: usize,
    equalized: bool,
    out: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let isa = self::isa(isa)?;
    let (w, mut out) = (Read::<f32>::new("w", w)?, Write::<u8>::new(out)?);
    let (w, out) = (w.slice()?, out.slice()?);
    run(py, w.len() * 8, Threads::default(), |ctl| gemm::quantize_weight(w, n, k, equalized, out, isa, ctl))
}

fn groups((nbits, group_size, symmetric, rotation, inputs, tables): Form) -> PyResult<Groups> {
    let inputs = match inputs.as_deref() {
        Some("int8") => Inputs::Rows,
        Some("int8_group") => Inputs::Spans,
        None => Inputs::Floats,
        Some(other) => return Err(PyValueError::new_err(format!("activation: unknown {other:?}"))),
    };
    let tables = match tables.as_deref() {
        Some("tensor") => Some(Tables::Tensor),
        Some("channel") => Some(Tables::Row),
        Some("group") => Some(Tables::Group),
        None => None,
        Some(other) => return Err(PyValueError::new_err(format!("granularity: unknown {other:?}"))),
    };
    let groups = Groups::new(nbits, group_size, symmetric).and_then(|groups| groups.rotated(rotation));
    groups.and_then(|groups| groups.with(inputs).with_tables(tables)).map_err(to_py)
}

#[pyfunction]
fn groups_len(k: usize, n: usize, form: Form, equalized: bool) -> PyResult<usize> {
    gemm::groups_weight_len(k, n, groups(form)?, equalized).map_err(to_py)
}

/// Quantizes a weight (N, K) to groups and tiles it into `out`. `importance`: of each
/// input, or, with an equalizer, of each as it is quantized.
#[pyfunction]
#[pyo3(signature = (w, n, k, form, equalized, searched, importance, equalizer, out, isa))]
fn quantize_weight_groups(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    n: usize,
    k: usize,
    form: Form,
    equalized: bool,
    searched: bool,
    importance: Option<&Bound<'_, PyAny>>,
    equalizer: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let isa = self::isa(isa)?;
    let groups = groups(form)?;
    let importance = importance.map(|w| Read::<f32>::new("importance", w)).transpose()?;
    let importance = importance.as_ref().map(Read::slice).transpose()?;
    let equalizer = equalizer.map(|e| Read::<f32>::new("equalizer", e)).transpose()?;
    let equalizer = equalizer.as_ref().map(Read::slice).transpose()?;
    let (w, mut out) = (Read::<f32>::new("w", w)?, Write::<u8>::new(out)?);
    let (w, out) = (w.slice()?, out.slice()?);
    run(py, w.len().saturating_mul(256), Threads::default(), |ctl| {
        let how = (equalized, searched);
        gemm::quantize_weight_groups(w, n, k, groups, how, importance, equalizer, out, isa, ctl)
    })
}

/// What each input of a weight (N, K) is multiplied with before it is quantized, into `out`.
#[pyfunction]
#[pyo3(signature = (w, n, k, form, equalized, squares, out))]
fn groups_equalizer(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    n: usize,
    k: usize,
    form: Form,
    equalized: bool,
    squares: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let groups = groups(form)?;
    let squares = squares.map(|s| Read::<f64>::new("squares", s)).transpose()?;
    let squares = squares.as_ref().map(Read::slice).transpose()?;
    let (w, mut out) = (Read::<f32>::new("w", w)?, Write::<f32>::new(out)?);
    let (w, out) = (w.slice()?, out.slice()?);
    if out.len() != k {
        return Err(PyValueError::new_err(format!("out: expected {k} values, got {}", out.len())));
    }
    run(py, w.len(), Threads::default(), |ctl| {
        out.copy_from_slice(&gemm::groups_equalizer(w, n, k, groups, equalized, squares, ctl)?);
        Ok(())
    })
}

/// Codes (N, K), multipliers and zero points (N, groups), scales (N).
type PyParts<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// A weight in groups, taken apart.
struct WriteParts<'py>(Write<'py, u8>, Write<'py, u8>, Write<'py, u8>, Write<'py, f32>);

impl<'py> WriteParts<'py> {
    fn new((codes, multipliers, zeros, scale): &PyParts<'py>) -> PyResult<Self> {
        Ok(WriteParts(Write::new(codes)?, Write::new(multipliers)?, Write::new(zeros)?, Write::new(scale)?))
    }

    fn get(&mut self) -> PyResult<GroupedRows<'_>> {
        Ok(GroupedRows {
            codes: self.0.slice()?,
            multipliers: self.1.slice()?,
            zeros: self.2.slice()?,
            scale: self.3.slice()?,
        })
    }
}

/// Of a weight in groups: codes (N, K), multipliers and zero points (N, groups), scales (N).
#[pyfunction]
fn untile_groups(py: Python<'_>, weight: PyWeight<'_>, k: usize, n: usize, parts: PyParts<'_>) -> PyResult<()> {
    let weight = ReadWeight::new("weight", &weight)?;
    let weight = weight.get(k, n)?;
    let Codes::Groups(grouped) = weight.codes() else {
        return Err(PyValueError::new_err("weight: expected groups, got int8"));
    };
    let mut parts = WriteParts::new(&parts)?;
    let parts = parts.get()?;
    run(py, n.saturating_mul(k).saturating_mul(16), Threads::default(), |_| grouped.untile(parts))
}

/// The inverse of [`untile_groups`], without an equalizer.
#[pyfunction]
#[pyo3(signature = (parts, n, k, form, codebook, out))]
fn tile_groups(
    py: Python<'_>,
    parts: PyParts<'_>,
    n: usize,
    k: usize,
    form: Form,
    codebook: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let groups = groups(form)?;
    let codebook = codebook.map(ReadCodebook::new).transpose()?;
    let codebook = codebook.as_ref().map(ReadCodebook::get).transpose()?;
    let mut parts = WriteParts::new(&parts)?;
    let parts = parts.get()?;
    let mut out = Write::<u8>::new(out)?;
    let out = out.slice()?;
    run(py, n.saturating_mul(k).saturating_mul(16), Threads::default(), |ctl| {
        gemm::tile_groups(&parts, groups, codebook, n, k, out, ctl)
    })
}

/// Of a weight (N, K) and its tables: codes (N, K), multipliers (N, groups), scales (N). As
/// [`tile_groups`], with zero points that are not looked at.
#[pyfunction]
#[pyo3(signature = (w, n, k, form, codebook, importance, parts, isa))]
fn fit_groups(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    n: usize,
    k: usize,
    form: Form,
    codebook: &Bound<'_, PyAny>,
    importance: Option<&Bound<'_, PyAny>>,
    parts: PyParts<'_>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, groups, w) = (self::isa(isa)?, groups(form)?, Read::<f32>::new("w", w)?);
    let codebook = ReadCodebook::new(codebook)?;
    let (w, codebook) = (w.slice()?, codebook.get()?);
    let importance = importance.map(|w| Read::<f32>::new("importance", w)).transpose()?;
    let importance = importance.as_ref().map(Read::slice).transpose()?;
    let mut parts = WriteParts::new(&parts)?;
    let mut parts = parts.get()?;
    run(py, n.saturating_mul(k).saturating_mul(512), Threads::default(), |ctl| {
        gemm::fit_groups(w, k, groups, codebook, importance, &mut parts, isa, ctl)
    })
}

/// Moves codes until four products fit 16 bits; how many were moved.
#[pyfunction]
fn settle_groups(
    py: Python<'_>,
    parts: PyParts<'_>,
    n: usize,
    k: usize,
    form: Form,
    codebook: &Bound<'_, PyAny>,
) -> PyResult<usize> {
    let (groups, codebook) = (groups(form)?, Read::<i8>::new("codebook", codebook)?);
    let codebook = codebook.slice()?;
    let mut parts = WriteParts::new(&parts)?;
    let mut parts = parts.get()?;
    run(py, n.saturating_mul(k).saturating_mul(8), Threads::default(), |ctl| {
        gemm::settle(k, groups, codebook, &mut parts, ctl)
    })
}

/// A weight's scales (N) and codes (N, K).
#[pyfunction]
fn untile(
    py: Python<'_>,
    weight: &Bound<'_, PyAny>,
    k: usize,
    n: usize,
    codes: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (weight, mut codes, mut scale) =
        (Read::<u8>::new("weight", weight)?, Write::<i8>::new(codes)?, Write::<f32>::new(scale)?);
    let weight = Weight::from_bytes(weight.slice()?, k, n, None).map_err(to_py)?;
    let (codes, scale) = (codes.slice()?, scale.slice()?);
    let Codes::Int8(tiled) = weight.codes() else {
        return Err(PyValueError::new_err("weight: expected int8, got groups"));
    };
    run(py, codes.len() * 4, Threads::default(), |_| {
        scale.copy_from_slice(&tiled.scales());
        tiled.untile_nk(codes)
    })
}

/// Rows `indices` of a weight (N, K), or all of them, as floats (len, K).
#[pyfunction]
#[pyo3(signature = (indices, weight, k, n, out))]
fn lookup(
    py: Python<'_>,
    indices: Option<&Bound<'_, PyAny>>,
    weight: PyWeight<'_>,
    k: usize,
    n: usize,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (weight, mut out) = (ReadWeight::new("weight", &weight)?, Write::<f32>::new(out)?);
    let weight = weight.get(k, n)?;
    let out = out.slice()?;
    // A private copy: another thread may change the array during the call.
    let indices = match indices {
        Some(indices) => Read::<i64>::new("indices", indices)?.slice()?.to_vec(),
        None => (0..n as i64).collect(),
    };
    run(py, out.len() * 4, Threads::default(), |_| gemm::lookup(indices.into_iter(), &weight, out))
}

/// Rows `indices` of codes (N, K) times their scales, as floats (len, K).
#[pyfunction]
fn lookup_rows(
    py: Python<'_>,
    indices: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let indices = Read::<i64>::new("indices", indices)?.slice()?.to_vec();
    let (codes, scale, mut out) =
        (Read::<u8>::new("codes", codes)?, Read::<f32>::new("scale", scale)?, Write::<f32>::new(out)?);
    let (codes, scale, out) = (codes.slice()?, scale.slice()?, out.slice()?);
    run(py, out.len(), Threads::default(), |_| gemm::lookup_rows(&indices, codes, scale, out))
}

/// C = A B; `out` is int32 or int64.
#[pyfunction]
fn matmul(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    m: usize,
    tiled: &Bound<'_, PyAny>,
    k: usize,
    n: usize,
    out: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let isa = self::isa(isa)?;
    let tiled = Read::<u8>::new("b", tiled)?;
    let tiled = Tiled::from_bytes(tiled.slice()?, k, n).map_err(to_py)?;
    let work = m.saturating_mul(k).saturating_mul(n) / 8;
    let (unsigned, signed);
    let lhs = if a.cast::<PyArrayDyn<u8>>().is_ok() {
        unsigned = Read::<u8>::new("a", a)?;
        Lhs::U8(unsigned.slice()?)
    } else {
        signed = Read::<i8>::new("a", a)?;
        Lhs::I8(signed.slice()?)
    };
    if out.cast::<PyArrayDyn<i32>>().is_ok() {
        let mut out = Write::<i32>::new(out)?;
        let out = out.slice()?;
        return run(py, work, Threads::default(), |ctl| gemm::matmul_i32(lhs, m, &tiled, out, isa, ctl));
    }
    let mut out = Write::<i64>::new(out)?;
    let out = out.slice()?;
    run(py, work, Threads::default(), |ctl| gemm::matmul_i64(lhs, m, &tiled, out, isa, ctl))
}

/// y = activation(x Wᵀ + bias) + residual. `x` is floats, or (codes, scale,
/// zero point); `out` likewise.
#[pyfunction]
#[pyo3(signature = (x, m, weight, k, n, bias, act, residual, norm, out, count, openmp, isa))]
fn linear(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    m: usize,
    weight: PyWeight<'_>,
    k: usize,
    n: usize,
    bias: Option<&Bound<'_, PyAny>>,
    act: &str,
    residual: Option<&Bound<'_, PyAny>>,
    norm: Option<PyNorm<'_>>,
    out: &Bound<'_, PyAny>,
    count: usize,
    openmp: bool,
    isa: Option<&str>,
) -> PyResult<()> {
    let isa = self::isa(isa)?;
    let weight = ReadWeight::new("weight", &weight)?;
    let weight = weight.get(k, n)?;
    let bias = bias.map(|b| Read::<f32>::new("bias", b)).transpose()?;
    let layer =
        Layer { weight: &weight, bias: bias.as_ref().map(Read::slice).transpose()?, activation: activation(act)? };
    let after = ReadAfter::new(residual, norm)?;
    let after = after.get()?;
    let work = m.saturating_mul(k).saturating_mul(n) / 8;

    let (floats, codes, rows);
    let input = if let Ok((c, s, z)) = x.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>, Bound<'_, PyAny>)>() {
        codes = Read::<u8>::new("x", &c)?;
        let (scale, zero_point) = (Read::<f32>::new("x", &s)?, Read::<u8>::new("x", &z)?);
        rows = row_scales(scale.slice()?, zero_point.slice()?)?;
        Input::Codes(codes.slice()?, &rows)
    } else {
        floats = ReadFloats::new("x", x)?;
        Input::Floats(floats.get()?)
    };
    if let Ok((c, s, z)) = out.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>, Bound<'_, PyAny>)>() {
        let (mut codes, mut scale, mut zero_point) =
            (Write::<u8>::new(&c)?, Write::<f32>::new(&s)?, Write::<u8>::new(&z)?);
        let mut rows = vec![RowScale::default(); m];
        let output = codes.slice()?;
        run(py, work, threads(count, openmp), |ctl| {
            gemm::linear(input, m, &layer, after, Output::Codes(output, &mut rows), isa, ctl)
        })?;
        for ((row, s), z) in rows.iter().zip(scale.slice()?).zip(zero_point.slice()?) {
            (*s, *z) = (row.scale, row.zero_point);
        }
        return Ok(());
    }
    let mut out = WriteFloats::new(out)?;
    let out = out.get()?;
    run(py, work, threads(count, openmp), |ctl| gemm::linear(input, m, &layer, after, out, isa, ctl))
}

fn row_scales(scale: &[f32], zero_point: &[u8]) -> PyResult<Vec<RowScale>> {
    if scale.len() != zero_point.len() {
        return Err(PyTypeError::new_err("x: scale and zero_point differ in length"));
    }
    Ok(scale.iter().zip(zero_point).map(|(&scale, &zero_point)| RowScale { scale, zero_point }).collect())
}

/// y = down(activation(up(x))) + residual.
#[pyfunction]
#[pyo3(signature = (x, m, k, up, up_bias, inner, act, down, down_bias, n, residual, norm, out, count, openmp, isa))]
fn mlp(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    m: usize,
    k: usize,
    up: PyWeight<'_>,
    up_bias: Option<&Bound<'_, PyAny>>,
    inner: usize,
    act: &str,
    down: PyWeight<'_>,
    down_bias: Option<&Bound<'_, PyAny>>,
    n: usize,
    residual: Option<&Bound<'_, PyAny>>,
    norm: Option<PyNorm<'_>>,
    out: &Bound<'_, PyAny>,
    count: usize,
    openmp: bool,
    isa: Option<&str>,
) -> PyResult<()> {
    let isa = self::isa(isa)?;
    let x = ReadFloats::new("x", x)?;
    let x = x.get()?;
    let (up, down) = (ReadWeight::new("up", &up)?, ReadWeight::new("down", &down)?);
    let (up, down) = (up.get(k, inner)?, down.get(inner, n)?);
    let up_bias = up_bias.map(|b| Read::<f32>::new("up_bias", b)).transpose()?;
    let down_bias = down_bias.map(|b| Read::<f32>::new("down_bias", b)).transpose()?;
    let up = Layer { weight: &up, bias: up_bias.as_ref().map(Read::slice).transpose()?, activation: activation(act)? };
    let down = Layer {
        weight: &down,
        bias: down_bias.as_ref().map(Read::slice).transpose()?,
        activation: Activation::Identity,
    };
    let after = ReadAfter::new(residual, norm)?;
    let after = after.get()?;
    let mut out = WriteFloats::new(out)?;
    let out = out.get()?;
    let work = m.saturating_mul(k.saturating_add(n)).saturating_mul(inner) / 8;
    run(py, work, threads(count, openmp), |ctl| gemm::mlp(x, m, &up, &down, after, out, isa, ctl))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(tiled_len, m)?)?;
    m.add_function(wrap_pyfunction!(weight_len, m)?)?;
    m.add_function(wrap_pyfunction!(tile_matrix, m)?)?;
    m.add_function(wrap_pyfunction!(quantize_weight, m)?)?;
    m.add_function(wrap_pyfunction!(untile, m)?)?;
    m.add_function(wrap_pyfunction!(groups_len, m)?)?;
    m.add_function(wrap_pyfunction!(groups_equalizer, m)?)?;
    m.add_function(wrap_pyfunction!(quantize_weight_groups, m)?)?;
    m.add_function(wrap_pyfunction!(tile_groups, m)?)?;
    m.add_function(wrap_pyfunction!(untile_groups, m)?)?;
    m.add_function(wrap_pyfunction!(fit_groups, m)?)?;
    m.add_function(wrap_pyfunction!(settle_groups, m)?)?;
    m.add_function(wrap_pyfunction!(lookup, m)?)?;
    m.add_function(wrap_pyfunction!(lookup_rows, m)?)?;
    m.add_function(wrap_pyfunction!(matmul, m)?)?;
    m.add_function(wrap_pyfunction!(linear, m)?)?;
    m.add_function(wrap_pyfunction!(mlp, m)?)
}
