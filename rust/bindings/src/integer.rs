//! Integer networks. `lowbit.integer` hands over the graph as JSON and
//! C-contiguous arrays; everything about them is checked by the runtime.

use std::sync::{Mutex, PoisonError};

use bytemuck::{NoUninit, Pod};
use lowbit_kernels::{Ctl, Result as KernelResult};
use lowbit_runtime::{Dtype, Graph, Tensor};
use numpy::ndarray::{Dimension, IxDyn};
use numpy::{
    Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::call::{self, Threads};

/// Elements of an output that numpy allocates in a call from Python, where failing is an exception.
const LARGE: usize = 1 << 24;

/// Elements of an input that are copied sooner than it is asked who else borrows the array.
const SOON_COPIED: usize = 1 << 12;

/// Elements of an output that are cleared sooner than `numpy.empty` is called.
const SOON_CLEARED: usize = 1 << 15;

/// Products that one elementary operation stands for: what `call::SMALL` counts is slower work.
const PRODUCTS_PER_OP: usize = 16;

impl Network {
    /// Calls `run` with what the arrays hold.
    fn with(
        &self,
        py: Python<'_>,
        inputs: &[Bound<'_, PyAny>],
        outputs: &[Bound<'_, PyAny>],
        threads: Option<usize>,
        run: impl FnOnce(usize, &[&[u8]], &mut [&mut [u8]], &Ctl) -> KernelResult<()> + Send,
    ) -> PyResult<()> {
        let tensors = self.network.inputs();
        counted("inputs", tensors.len(), inputs.len())?;
        counted("outputs", self.network.outputs().count(), outputs.len())?;
        let pairs = tensors.iter().zip(inputs);
        let arrays: Vec<Array> = pairs.map(|(t, array)| Array::of(&t.name, array, t.dtype)).collect::<PyResult<_>>()?;
        let n = arrays.first().and_then(|array| array.shape().first().copied()).unwrap_or(0);
        let named = tensors.iter().zip(&arrays);
        named.clone().try_for_each(|(tensor, array)| fits(tensor, n, array.shape()))?;
        let bytes: Vec<&[u8]> = named.map(|(t, array)| array.bytes(&t.name)).collect::<PyResult<_>>()?;
        let pairs = self.network.outputs().zip(outputs);
        let mut written: Vec<Output> = pairs.map(|(t, array)| Output::of(t, n, array)).collect::<PyResult<_>>()?;
        let mut slices: Vec<&mut [u8]> = written.iter_mut().map(Output::bytes).collect::<PyResult<_>>()?;
        let work = n.saturating_mul(self.products / PRODUCTS_PER_OP);
        let threads = Threads { threads, openmp: false };
        call::run(py, work, threads, |ctl| run(n, &bytes, &mut slices, ctl))
    }

    /// The output of a network of one input and one output, of an array that is ready to be read; None for all else.
    fn call<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyTuple>,
        threads: Option<usize>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let ([input], Some(output), 1) = (self.network.inputs(), self.network.outputs().next(), inputs.len()) else {
            return Ok(None);
        };
        if self.network.outputs().count() != 1 {
            return Ok(None);
        }
        let x = inputs.get_item(0)?;
        match (input.dtype, output.dtype) {
            (Dtype::Int8, Dtype::Int8) => self.single::<i8, i8>(py, &x, input, output, threads),
            (Dtype::Uint8, Dtype::Uint8) => self.single::<u8, u8>(py, &x, input, output, threads),
            (Dtype::Float32, Dtype::Float32) => self.single::<f32, f32>(py, &x, input, output, threads),
            _ => Ok(None),
        }
    }

    fn single<'py, T: Element + NoUninit, U: Element + Pod>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        input: &Tensor,
        output: &Tensor,
        threads: Option<usize>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Ok(x) = x.cast_exact::<PyArrayDyn<T>>() else { return Ok(None) };
        let Some((&n, shape)) = x.shape().split_first() else { return Ok(None) };
        if shape != &input.shape[..] || !x.is_c_contiguous() {
            return Ok(None);
        }
        if output.len().checked_mul(n).is_none_or(|len| len > LARGE) {
            return Ok(None);
        }
        let mut dims = IxDyn::zeros(1 + output.shape.len());
        dims[0] = n;
        dims.slice_mut()[1..].copy_from_slice(&output.shape);
        let y = if dims.size() <= SOON_CLEARED {
            PyArrayDyn::<U>::zeros(py, dims, false)
        } else {
            static EMPTY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let shape = PyTuple::new(py, dims.slice())?;
            let y = EMPTY.import(py, "numpy", "empty")?.call1((shape, U::get_dtype(py)))?;
            y.cast_into::<PyArrayDyn<U>>()?
        };
        let (copied, borrowed);
        let x = if x.len() <= SOON_COPIED {
            copied = x.to_vec()?;
            &copied[..]
        } else {
            let Ok(readonly) = x.try_readonly() else { return Ok(None) };
            borrowed = readonly;
            borrowed.as_slice()?
        };
        {
            let mut y = y.readwrite();
            let (x, y): (&[u8], &mut [u8]) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y.as_slice_mut()?));
            let work = n.saturating_mul(self.products / PRODUCTS_PER_OP);
            let threads = Threads { threads, openmp: false };
            call::run(py, work, threads, |ctl| self.network.run(n, &[x], &mut [y], ctl))?;
        }
        Ok(Some(y.into_any()))
    }
}

/// What lives between the samples of a stream.
#[pyclass(frozen, module = "lowbit._core")]
struct Stream {
    network: Py<Network>,
    stream: Mutex<lowbit_runtime::Stream>,
}

#[pymethods]
impl Stream {
    /// Runs the next samples: arrays of shape (n, *shape), of which `outputs` are written.
    fn run(&self, py: Python<'_>, inputs: Vec<Bound<'_, PyAny>>, outputs: Vec<Bound<'_, PyAny>>) -> PyResult<()> {
        let network = self.network.get();
        network.with(py, &inputs, &outputs, Some(1), |n, x, y, ctl| {
            let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
            network.network.advance(&mut stream, n, x, y, ctl)
        })
    }
}

/// An array that is read.
enum Array<'py> {
    I8(PyReadonlyArrayDyn<'py, i8>),
    U8(PyReadonlyArrayDyn<'py, u8>),
    I32(PyReadonlyArrayDyn<'py, i32>),
    F32(PyReadonlyArrayDyn<'py, f32>),
}

impl<'py> Array<'py> {
    fn of(name: &str, array: &Bound<'py, PyAny>, dtype: Dtype) -> PyResult<Self> {
        let read = match dtype {
            Dtype::Int8 => call::read(name, array).map(Array::I8),
            Dtype::Uint8 => call::read(name, array).map(Array::U8),
            Dtype::Int32 => call::read(name, array).map(Array::I32),
            Dtype::Float32 => call::read(name, array).map(Array::F32),
        };
        read.map_err(|_| PyTypeError::new_err(format!("{name}: expected an array of {}", dtype.name())))
    }

    fn shape(&self) -> &[usize] {
        match self {
            Array::I8(array) => array.shape(),
            Array::U8(array) => array.shape(),
            Array::I32(array) => array.shape(),
            Array::F32(array) => array.shape(),
        }
    }

    fn bytes(&self, name: &str) -> PyResult<&[u8]> {
        // A slice is had of other orders too.
        let (in_order, bytes) = match self {
            Array::I8(array) => (array.is_c_contiguous(), array.as_slice().map(bytemuck::cast_slice)),
            Array::U8(array) => (array.is_c_contiguous(), array.as_slice()),
            Array::I32(array) => (array.is_c_contiguous(), array.as_slice().map(bytemuck::cast_slice)),
            Array::F32(array) => (array.is_c_contiguous(), array.as_slice().map(bytemuck::cast_slice)),
        };
        match bytes {
            Ok(bytes) if in_order => Ok(bytes),
            _ => Err(PyValueError::new_err(format!("{name}: expected a C-contiguous array"))),
        }
    }
}

/// A network planned for one instruction set; `lowbit.integer.Network` is made of it.
#[pyclass(frozen, subclass, module = "lowbit._core")]
struct Network {
    network: lowbit_runtime::Network,
    products: usize,
}

#[pymethods]
impl Network {
    #[new]
    #[pyo3(signature = (graph, constants, isa=None))]
    fn new(py: Python<'_>, graph: &str, constants: Vec<Bound<'_, PyAny>>, isa: Option<&str>) -> PyResult<Self> {
        let isa = call::isa(isa)?;
        let graph = Graph::from_json(graph).map_err(call::to_py)?;
        if constants.len() != graph.constants.len() {
            let (expected, got) = (graph.constants.len(), constants.len());
            return Err(PyValueError::new_err(format!("constants: expected {expected}, got {got}")));
        }
        let pairs = graph.constants.iter().zip(&constants);
        let arrays: Vec<Array> = pairs.map(|(c, array)| Array::of(&c.name, array, c.dtype)).collect::<PyResult<_>>()?;
        let named = graph.constants.iter().zip(&arrays);
        let bytes: Vec<&[u8]> = named.map(|(c, array)| array.bytes(&c.name)).collect::<PyResult<_>>()?;
        let work = bytes.iter().map(|b| b.len()).sum();
        let network = call::run(py, work, Threads::default(), |_| lowbit_runtime::Network::new(&graph, &bytes, isa))?;
        let products = network.products();
        Ok(Network { network, products })
    }

    /// Runs a batch. Small networks take microseconds, and so would this in Python: what takes more than one
    /// C-contiguous array of the right dtype and shape, and gives more, is left to `_run_any`.
    #[pyo3(signature = (*inputs, threads=None))]
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        inputs: &Bound<'py, PyTuple>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match slf.get().call(slf.py(), inputs, threads)? {
            Some(output) => Ok(output),
            None => slf.call_method1("_run_any", (inputs, threads)),
        }
    }

    /// Runs a batch: arrays of shape (n, *shape), of which `outputs` are written.
    #[pyo3(name = "_run", signature = (inputs, outputs, threads=None))]
    fn run(
        &self,
        py: Python<'_>,
        inputs: Vec<Bound<'_, PyAny>>,
        outputs: Vec<Bound<'_, PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        self.with(py, &inputs, &outputs, threads, |n, x, y, ctl| self.network.run(n, x, y, ctl))
    }

    /// A stream: its states are 0.
    #[pyo3(name = "_stream")]
    fn stream(slf: &Bound<'_, Self>) -> PyResult<Stream> {
        let stream = slf.get().network.stream().map_err(call::to_py)?;
        Ok(Stream { network: slf.clone().unbind(), stream: Mutex::new(stream) })
    }

    /// For each step: kind, output, products, and the least nanoseconds of one sample.
    #[pyo3(name = "_profile")]
    fn profile(
        &self,
        py: Python<'_>,
        inputs: Vec<Bound<'_, PyAny>>,
        rounds: usize,
    ) -> PyResult<Vec<(&'static str, String, usize, u64)>> {
        let tensors = self.network.inputs();
        let pairs = tensors.iter().zip(&inputs);
        let arrays: Vec<Array> = pairs.map(|(t, array)| Array::of(&t.name, array, t.dtype)).collect::<PyResult<_>>()?;
        let named = tensors.iter().zip(&arrays);
        let bytes: Vec<&[u8]> = named.map(|(t, array)| array.bytes(&t.name)).collect::<PyResult<_>>()?;
        let work = rounds.saturating_mul(self.products);
        let timed = call::run(py, work, Threads::default(), |_| self.network.profile(&bytes, rounds))?;
        Ok(timed.into_iter().map(|t| (t.kind, t.output, t.products, t.time.as_nanos() as u64)).collect())
    }

    /// Bytes of tensors and scratch memory for each thread, and of weights.
    #[getter]
    fn memory(&self) -> (usize, usize) {
        self.network.memory()
    }

    #[getter]
    fn isa(&self) -> &'static str {
        self.network.isa().name()
    }
}

/// An array that is written.
enum Output<'py> {
    I8(PyReadwriteArrayDyn<'py, i8>),
    U8(PyReadwriteArrayDyn<'py, u8>),
    I32(PyReadwriteArrayDyn<'py, i32>),
    F32(PyReadwriteArrayDyn<'py, f32>),
}

impl<'py> Output<'py> {
    fn of(tensor: &Tensor, n: usize, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let name = &tensor.name;
        let (output, shape) = match tensor.dtype {
            Dtype::Int8 => call::write(name, array).map(|a| (Output::I8(a), array))?,
            Dtype::Uint8 => call::write(name, array).map(|a| (Output::U8(a), array))?,
            Dtype::Int32 => call::write(name, array).map(|a| (Output::I32(a), array))?,
            Dtype::Float32 => call::write(name, array).map(|a| (Output::F32(a), array))?,
        };
        fits(tensor, n, shape.cast::<PyUntypedArray>()?.shape())?;
        Ok(output)
    }

    fn bytes(&mut self) -> PyResult<&mut [u8]> {
        let (in_order, bytes) = match self {
            Output::I8(array) => (array.is_c_contiguous(), array.as_slice_mut().map(bytemuck::cast_slice_mut)),
            Output::U8(array) => (array.is_c_contiguous(), array.as_slice_mut()),
            Output::I32(array) => (array.is_c_contiguous(), array.as_slice_mut().map(bytemuck::cast_slice_mut)),
            Output::F32(array) => (array.is_c_contiguous(), array.as_slice_mut().map(bytemuck::cast_slice_mut)),
        };
        match bytes {
            Ok(bytes) if in_order => Ok(bytes),
            _ => Err(PyValueError::new_err("outputs: expected C-contiguous arrays")),
        }
    }
}

fn counted(what: &str, expected: usize, got: usize) -> PyResult<()> {
    if expected == got { Ok(()) } else { Err(PyTypeError::new_err(format!("{what}: expected {expected}, got {got}"))) }
}

/// Whether an array holds n samples of a tensor.
fn fits(tensor: &Tensor, n: usize, shape: &[usize]) -> PyResult<()> {
    if shape.split_first() == Some((&n, &tensor.shape[..])) {
        return Ok(());
    }
    let tuple = |sizes: &mut dyn Iterator<Item = String>| sizes.collect::<Vec<_>>().join(", ");
    let expected = tuple(&mut std::iter::once("n".into()).chain(tensor.shape.iter().map(usize::to_string)));
    let got = tuple(&mut shape.iter().map(usize::to_string));
    let last = if tensor.shape.len() == 3 { ", channels last" } else { "" };
    let name = &tensor.name;
    Err(PyValueError::new_err(format!("{name}: expected the shape ({expected}){last}, got ({got})")))
}

/// Whether a graph fits together.
#[pyfunction]
fn check_graph(graph: &str) -> PyResult<()> {
    Graph::from_json(graph).map(|_| ()).map_err(call::to_py)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Network>()?;
    m.add_class::<Stream>()?;
    m.add_function(wrap_pyfunction!(check_graph, m)?)
}
