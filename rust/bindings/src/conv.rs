//! Convolutions of codes. `lowbit.conv` hands over C-contiguous arrays of the
//! right dtypes; sizes are checked again by the kernel.

use lowbit_kernels::Isa;
use lowbit_kernels::affine::Levels;
use lowbit_kernels::conv::{Conv2d, Feedback, Finish, Kind, Shape, To, Weight};
use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::affine::of_rows;
use crate::call::{self, Threads, read, run, write};

/// Codes of either sign.
enum Codes<'py> {
    I8(PyReadonlyArrayDyn<'py, i8>),
    U8(PyReadonlyArrayDyn<'py, u8>),
}

impl<'py> Codes<'py> {
    fn of(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        read(name, array).map(Codes::I8).or_else(|_| read(name, array).map(Codes::U8))
    }

    fn bytes(&self) -> PyResult<&[u8]> {
        Ok(match self {
            Codes::I8(array) => bytemuck::cast_slice(array.as_slice()?),
            Codes::U8(array) => array.as_slice()?,
        })
    }

    fn kind(&self, zero_point: i32) -> Kind {
        Kind { signed: matches!(self, Codes::I8(_)), zero_point }
    }

    fn shape(&self) -> PyResult<[usize; 4]> {
        let shape = match self {
            Codes::I8(array) => array.shape(),
            Codes::U8(array) => array.shape(),
        };
        shape.try_into().map_err(|_| PyValueError::new_err(format!("expected four axes, got {shape:?}")))
    }
}

/// Stride, dilation, padding, groups.
type Steps = ([usize; 2], [usize; 2], [[usize; 2]; 2], usize);

fn shape_of(x: [usize; 4], weight: [usize; 4], (stride, dilation, padding, groups): Steps) -> Shape {
    let ([_, rows, columns, channels], [filters, height, width, _]) = (x, weight);
    Shape { input: [rows, columns, channels], filters, kernel: [height, width], stride, dilation, padding, groups }
}

/// Height and width of the output.
#[pyfunction]
fn conv2d_size(x: [usize; 4], weight: [usize; 4], steps: Steps) -> PyResult<[usize; 2]> {
    let [height, width, _] = shape_of(x, weight, steps).output().map_err(call::to_py)?;
    Ok([height, width])
}

#[pyfunction]
fn conv2d(
    x: &Bound<'_, PyAny>,
    weight: &Bound<'_, PyAny>,
    bias: &Bound<'_, PyAny>,
    steps: Steps,
    zero_points: [i32; 2],
    out: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, py) = (call::isa(isa)?, x.py());
    let (x, weight) = (Codes::of("x", x)?, Codes::of("weight", weight)?);
    let (bias, mut out) = (read::<i32>("bias", bias)?, write::<i32>("out", out)?);
    let shape = shape_of(x.shape()?, weight.shape()?, steps);
    let n = x.shape()?[0];
    let (input, weight) =
        (x.kind(zero_points[0]), Weight { codes: weight.bytes()?, kind: weight.kind(zero_points[1]) });
    let finish = Finish { bias: bias.as_slice()?.to_vec(), to: To::Sums };
    let (x, out) = (x.bytes()?, out.as_slice_mut()?);
    let products = shape.products().map_err(call::to_py)?;
    run(py, products.saturating_mul(n), Threads::default(), |ctl| {
        Conv2d::new(shape, weight, input, finish, isa)?.sums(n, x, out, ctl)
    })
}

/// What errors of images' codes are carried by: float32 (C, rows, columns, C).
fn feedback_of(coefficients: &Bound<'_, PyAny>, image: [usize; 3]) -> PyResult<Feedback> {
    let coefficients = read::<f32>("feedback", coefficients)?;
    let shape = coefficients.shape();
    let &[channels, rows, columns, from] = shape else {
        return Err(PyValueError::new_err(format!("feedback: expected four axes, got {shape:?}")));
    };
    if channels != from || channels != image[2] {
        let expected = image[2];
        let message = format!("feedback: expected ({expected}, rows, columns, {expected}), got {shape:?}");
        return Err(PyValueError::new_err(message));
    }
    Feedback::new(coefficients.as_slice()?, [rows, columns], image).map_err(call::to_py)
}

/// `x` float32 (N, H, W, C); `codes` of its shape; `scale`, `zero_point` (N,).
#[pyfunction]
fn quantize_images(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    nbits: u32,
    feedback: &Bound<'_, PyAny>,
    codes: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    zero_point: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, levels) = (call::isa(isa)?, Levels::new(nbits, false, false).map_err(call::to_py)?);
    let (x, mut codes) = (read::<f32>("x", x)?, write::<u8>("codes", codes)?);
    let (mut scale, mut zero_point) = (write::<f32>("scale", scale)?, write::<u8>("zero_point", zero_point)?);
    let &[_, height, width, channels] = x.shape() else {
        return Err(PyValueError::new_err(format!("x: expected four axes, got {:?}", x.shape())));
    };
    let feedback = feedback_of(feedback, [height, width, channels])?;
    let (x, codes) = (x.as_slice()?, codes.as_slice_mut()?);
    let (scale, zero_point) = (scale.as_slice_mut()?, zero_point.as_slice_mut()?);
    let work = x.len().saturating_mul(feedback.products());
    of_rows(scale, zero_point, |rows| {
        run(py, work, Threads::default(), |ctl| feedback.round(x, &levels, codes, rows, isa, ctl))
    })
}

/// A convolution of floats, for images of one size: `lowbit.torch` keeps it with the codes.
#[pyclass(frozen, module = "lowbit._core")]
struct RoundedConv2d {
    conv: Conv2d,
    feedback: Option<Feedback>,
    isa: Isa,
    /// Products of an image.
    products: usize,
}

#[pymethods]
impl RoundedConv2d {
    /// `weight` is int8; `image` is (H, W, C); `feedback` is as `quantize_images` takes it, or None.
    #[new]
    fn new(
        py: Python<'_>,
        weight: &Bound<'_, PyAny>,
        image: [usize; 3],
        steps: Steps,
        feedback: Option<&Bound<'_, PyAny>>,
        isa: Option<&str>,
    ) -> PyResult<Self> {
        let feedback = feedback.map(|coefficients| feedback_of(coefficients, image)).transpose()?;
        let (isa, weight) = (call::isa(isa)?, Codes::of("weight", weight)?);
        let [rows, columns, channels] = image;
        let shape = shape_of([1, rows, columns, channels], weight.shape()?, steps);
        let products = shape.products().map_err(call::to_py)?;
        let finish = Finish { bias: vec![0; shape.filters], to: To::Sums };
        let input = Kind { signed: false, zero_point: 0 };
        let weight = Weight { codes: weight.bytes()?, kind: weight.kind(0) };
        let conv = run(py, weight.codes.len(), Threads::default(), |_| Conv2d::new(shape, weight, input, finish, isa))?;
        Ok(RoundedConv2d { conv, feedback, isa, products })
    }

    /// `x` float32 (N, H, W, C), rounded to `nbits`; `out` float32 (N, OH, OW, O).
    fn run(
        &self,
        x: &Bound<'_, PyAny>,
        nbits: u32,
        scale: &Bound<'_, PyAny>,
        bias: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        threads: usize,
        openmp: bool,
    ) -> PyResult<()> {
        let levels = Levels::new(nbits, false, false).map_err(call::to_py)?;
        let (py, x, mut out) = (x.py(), read::<f32>("x", x)?, write::<f32>("out", out)?);
        let (scale, bias) = (read::<f32>("scale", scale)?, read::<f32>("bias", bias)?);
        // A slice is had of other orders too.
        if !x.is_c_contiguous() || !out.is_c_contiguous() {
            return Err(PyValueError::new_err("x, out: expected C-contiguous arrays"));
        }
        let n = x.shape().first().copied().unwrap_or(0);
        let (x, ends, out) = (x.as_slice()?, [scale.as_slice()?, bias.as_slice()?], out.as_slice_mut()?);
        let threads = Threads { threads: (threads > 0).then_some(threads), openmp };
        run(py, self.products.saturating_mul(n), threads, |ctl| {
            self.conv.rounded(n, x, &levels, self.feedback.as_ref(), ends, out, self.isa, ctl)
        })
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(conv2d_size, m)?)?;
    m.add_function(wrap_pyfunction!(conv2d, m)?)?;
    m.add_function(wrap_pyfunction!(quantize_images, m)?)?;
    m.add_class::<RoundedConv2d>()
}
