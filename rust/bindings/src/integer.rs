//! Integer networks. `lowbit.integer` hands over the graph as JSON and
//! C-contiguous arrays; everything about them is checked by the runtime.

use lowbit_runtime::{Dtype, Graph, Tensor};
use numpy::{Element, IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::call::{self, Threads};

/// Products that one elementary operation stands for: what `call::SMALL` counts is slower work.
const PRODUCTS_PER_OP: usize = 16;

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
        let bytes = match self {
            Array::I8(array) => array.as_slice().map(bytemuck::cast_slice),
            Array::U8(array) => array.as_slice(),
            Array::I32(array) => array.as_slice().map(bytemuck::cast_slice),
            Array::F32(array) => array.as_slice().map(bytemuck::cast_slice),
        };
        bytes.map_err(|_| PyValueError::new_err(format!("{name}: expected a C-contiguous array")))
    }
}

/// A network planned for one instruction set.
#[pyclass(frozen, module = "lowbit._core")]
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

    /// The outputs of a batch: arrays of shape (n, *shape).
    #[pyo3(signature = (inputs, threads=None))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        inputs: Vec<Bound<'py, PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let tensors = self.network.inputs();
        if inputs.len() != tensors.len() {
            let expected = tensors.len();
            return Err(PyTypeError::new_err(format!("expected {expected} inputs, got {}", inputs.len())));
        }
        let pairs = tensors.iter().zip(&inputs);
        let arrays: Vec<Array> = pairs.map(|(t, array)| Array::of(&t.name, array, t.dtype)).collect::<PyResult<_>>()?;
        let n = arrays.first().and_then(|array| array.shape().first().copied()).unwrap_or(0);
        for (tensor, array) in tensors.iter().zip(&arrays) {
            if array.shape().split_first() != Some((&n, &tensor.shape[..])) {
                let (name, shape, got) = (&tensor.name, &tensor.shape, array.shape());
                return Err(PyValueError::new_err(format!("{name}: expected the shape (n, *{shape:?}), got {got:?}")));
            }
        }
        let named = tensors.iter().zip(&arrays);
        let bytes: Vec<&[u8]> = named.map(|(t, array)| array.bytes(&t.name)).collect::<PyResult<_>>()?;
        let mut outputs = self.network.outputs().map(|tensor| Output::new(tensor, n)).collect::<PyResult<Vec<_>>>()?;
        let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Output::bytes).collect();
        let work = n.saturating_mul(self.products / PRODUCTS_PER_OP);
        let threads = Threads { threads, openmp: false };
        call::run(py, work, threads, |ctl| self.network.run(n, &bytes, &mut slices, ctl))?;
        self.network.outputs().zip(outputs).map(|(tensor, output)| output.into_array(py, tensor, n)).collect()
    }

    /// For each step: kind, output, products, and the least nanoseconds of one sample.
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

/// An output before it is an array.
enum Output {
    I8(Vec<i8>),
    U8(Vec<u8>),
    I32(Vec<i32>),
    F32(Vec<f32>),
}

impl Output {
    fn new(tensor: &Tensor, n: usize) -> PyResult<Self> {
        fn zeroed<T: Clone + Default>(n: Option<usize>) -> PyResult<Vec<T>> {
            let out_of_memory = |size: usize| call::to_py(lowbit_kernels::Error::Memory(size));
            let n = n.ok_or_else(|| out_of_memory(usize::MAX))?;
            let mut all = Vec::new();
            all.try_reserve_exact(n).map_err(|_| out_of_memory(n.saturating_mul(size_of::<T>())))?;
            all.resize(n, T::default());
            Ok(all)
        }
        let len = tensor.len().checked_mul(n);
        Ok(match tensor.dtype {
            Dtype::Int8 => Output::I8(zeroed(len)?),
            Dtype::Uint8 => Output::U8(zeroed(len)?),
            Dtype::Int32 => Output::I32(zeroed(len)?),
            Dtype::Float32 => Output::F32(zeroed(len)?),
        })
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Output::I8(all) => bytemuck::cast_slice_mut(all),
            Output::U8(all) => all,
            Output::I32(all) => bytemuck::cast_slice_mut(all),
            Output::F32(all) => bytemuck::cast_slice_mut(all),
        }
    }

    fn into_array<'py>(self, py: Python<'py>, tensor: &Tensor, n: usize) -> PyResult<Bound<'py, PyAny>> {
        fn shaped<'py, T: Element>(py: Python<'py>, all: Vec<T>, shape: Vec<usize>) -> PyResult<Bound<'py, PyAny>> {
            let array: Bound<'py, PyArrayDyn<T>> = all.into_pyarray(py).reshape(shape)?;
            Ok(array.into_any())
        }
        let shape: Vec<usize> = std::iter::once(n).chain(tensor.shape.iter().copied()).collect();
        match self {
            Output::I8(all) => shaped(py, all, shape),
            Output::U8(all) => shaped(py, all, shape),
            Output::I32(all) => shaped(py, all, shape),
            Output::F32(all) => shaped(py, all, shape),
        }
    }
}

/// Whether a graph fits together.
#[pyfunction]
fn check_graph(graph: &str) -> PyResult<()> {
    Graph::from_json(graph).map(|_| ()).map_err(call::to_py)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Network>()?;
    m.add_function(wrap_pyfunction!(check_graph, m)?)
}
