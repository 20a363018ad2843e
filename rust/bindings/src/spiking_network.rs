//! Spiking networks. `lowbit.snn` hands over nodes one after the other, then pieces of runs as
//! C-contiguous arrays; everything about them is checked by the runtime.

use std::sync::{Mutex, PoisonError};

use lowbit_kernels::spiking::{PoolKind, SpikeProduct, SpikeWeight, Start, Voltage};
use lowbit_runtime::spiking::{
    AnyCells, AnyPart, Cells, Data, Events, Input, Kind, Output, Part, Piece, Seen, Step, Wanted,
};
use numpy::{Element, IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::call::{self, Threads, read, to_py, write};
use crate::spiking::Levels;
use crate::spiking_product::{Sizes, conv_of, form};

/// Nodes without cycles, each of which reads the input, 0, or what earlier ones give.
#[pyclass(module = "lowbit._core")]
struct SpikingNetwork {
    network: lowbit_runtime::spiking::SpikingNetwork,
    /// Elements of all values of a step.
    elements: usize,
}

fn kind_of(kind: &str) -> PyResult<Kind> {
    match kind {
        "spikes" => Ok(Kind::Spikes),
        "counts" => Ok(Kind::Counts),
        "sums" => Ok(Kind::Sums),
        "numbers" => Ok(Kind::Numbers),
        _ => Err(PyValueError::new_err(format!("kind: got {kind}"))),
    }
}

fn cells_of<V: Element + Voltage>(neuron: &Bound<'_, PyDict>) -> PyResult<Cells<V>> {
    let levels = Levels::<V>::new(neuron)?;
    Ok(Cells::new(&levels.neurons()?, levels.start()?))
}

#[pymethods]
impl SpikingNetwork {
    #[new]
    fn new(kind: &str, len: usize) -> PyResult<Self> {
        let network = lowbit_runtime::spiking::SpikingNetwork::new(kind_of(kind)?, len).map_err(to_py)?;
        Ok(SpikingNetwork { network, elements: len })
    }

    /// `conv`: of a convolution, its sizes.
    fn product(
        &mut self,
        label: &str,
        source: usize,
        tiled: &Bound<'_, PyAny>,
        k: usize,
        n: usize,
        nbits: u32,
        bias: Option<&Bound<'_, PyAny>>,
        conv: Option<Sizes>,
    ) -> PyResult<usize> {
        let tiled = read::<u8>("weight", tiled)?;
        let weight = SpikeWeight::from_bytes(tiled.as_slice()?.to_vec(), k, n, form(nbits)).map_err(to_py)?;
        let conv = conv.map(conv_of);
        let product = match bias {
            None => SpikeProduct::new(weight, conv, Start::Zero),
            Some(bias) if nbits == 32 => {
                SpikeProduct::new(weight, conv, Start::F32(read::<f32>("bias", bias)?.as_slice()?))
            }
            Some(bias) => SpikeProduct::new(weight, conv, Start::I32(read::<i32>("bias", bias)?.as_slice()?)),
        };
        self.push(label, Step::Product(Box::new(product.map_err(to_py)?)), &[source])
    }

    /// Of integers where `exact`.
    fn neurons(
        &mut self,
        label: &str,
        source: usize,
        neuron: &Bound<'_, PyDict>,
        exact: bool,
        readout: bool,
    ) -> PyResult<usize> {
        let cells = if exact { AnyCells::I32(cells_of(neuron)?) } else { AnyCells::F32(cells_of(neuron)?) };
        self.push(label, Step::Neurons { cells, readout }, &[source])
    }

    /// Sums, or the largest.
    fn pool(&mut self, label: &str, source: usize, sizes: Sizes, sums: bool) -> PyResult<usize> {
        let kind = if sums { PoolKind::Sum } else { PoolKind::Max };
        self.push(label, Step::Pool { windows: conv_of(sizes), kind }, &[source])
    }

    fn channels_first(&mut self, label: &str, source: usize, sizes: [usize; 3]) -> PyResult<usize> {
        self.push(label, Step::ChannelsFirst(sizes), &[source])
    }

    fn add(&mut self, label: &str, sources: Vec<usize>) -> PyResult<usize> {
        self.push(label, Step::Add, &sources)
    }

    /// `sources`: query, key, value.
    fn attention(&mut self, label: &str, sources: Vec<usize>, width: usize, heads: usize) -> PyResult<usize> {
        self.push(label, Step::Attention { width, heads }, &sources)
    }

    /// Over the middle of three axes.
    fn total(&mut self, label: &str, source: usize, sizes: [usize; 3]) -> PyResult<usize> {
        self.push(label, Step::Total(sizes), &[source])
    }

    /// What so many streams remember before the first step.
    fn memory(&self, streams: usize) -> PyResult<SpikingMemory> {
        Ok(SpikingMemory(Mutex::new(self.network.memory(streams).map_err(to_py)?)))
    }

    /// Some steps of some streams, from the start and forgotten where there is no memory: what `wanted` names goes into arrays of all of them, from step
    /// `first[0]` of stream `first[1]` on. `events`: keys and counts of all streams, and steps. Spikes of each layer of neurons and stream, operations of
    /// each layer with a weight.
    fn run<'py>(
        &self,
        py: Python<'py>,
        frames: Option<&Bound<'_, PyAny>>,
        still: bool,
        events: Option<(Bound<'_, PyAny>, Bound<'_, PyAny>, usize)>,
        sizes: [usize; 2],
        memory: Option<&SpikingMemory>,
        wanted: Vec<(usize, Bound<'_, PyAny>)>,
        first: [usize; 2],
        streams: usize,
        isa: Option<&str>,
    ) -> PyResult<[Bound<'py, PyArray1<u64>>; 2]> {
        let isa = call::isa(isa)?;
        let [steps, own] = sizes;
        let frames = frames.map(|frames| array_of("x", frames)).transpose()?;
        let events = events.as_ref().map(|(keys, counts, steps)| {
            PyResult::Ok((read::<i64>("keys", keys)?, read::<u8>("counts", counts)?, *steps))
        });
        let events = events.transpose()?;
        let input = match (&frames, &events) {
            (Some(frames), None) if still => Seen::Still(elements(frames)?),
            (Some(frames), None) => Seen::Frames(elements(frames)?),
            (None, Some((keys, counts, steps))) => {
                Seen::Events(Events { keys: keys.as_slice()?, counts: counts.as_slice()?, steps: *steps, first })
            }
            _ => return Err(PyValueError::new_err("x: expected frames or events")),
        };
        let mut arrays = wanted.iter().map(|(_, out)| written_of("out", out)).collect::<PyResult<Vec<_>>>()?;
        let outs = arrays
            .iter_mut()
            .zip(&wanted)
            .map(|(array, (value, _))| Ok(Wanted { value: *value, out: elements_mut(array)?, first, streams }));
        let mut outs = outs.collect::<PyResult<Vec<_>>>()?;
        let piece = Piece { input, steps, streams: own };
        let work = self.elements.saturating_mul(steps).saturating_mul(own);
        let counted = call::run(py, work, Threads::default(), |ctl| {
            let mut memory = memory.map(|memory| memory.0.lock().unwrap_or_else(PoisonError::into_inner));
            self.network.run(&piece, memory.as_mut().map(|memory| &mut memory[..]), &mut outs, isa, ctl)
        })?;
        Ok([counted.spikes, counted.operations].map(|counts| counts.into_pyarray(py)))
    }
}

impl SpikingNetwork {
    fn push(&mut self, label: &str, step: Step, reads: &[usize]) -> PyResult<usize> {
        let value = self.network.push(label, step, reads).map_err(to_py)?;
        self.elements = self.elements.saturating_add(self.network.value(value).map_or(0, |(_, len)| len));
        Ok(value)
    }
}

/// What layers of neurons remember.
#[pyclass(frozen, module = "lowbit._core")]
struct SpikingMemory(Mutex<Vec<AnyPart>>);

/// v, i, a and the refractory steps left, or none.
type Arrays<'py> = [Option<Bound<'py, PyAny>>; 4];

#[pymethods]
impl SpikingMemory {
    /// Copies of a layer's arrays, each of one axis.
    fn get<'py>(&self, py: Python<'py>, layer: usize) -> PyResult<Arrays<'py>> {
        fn array<'py, T: Element + Copy>(py: Python<'py>, x: &[T], has: bool) -> Option<Bound<'py, PyAny>> {
            has.then(|| x.to_vec().into_pyarray(py).into_any())
        }
        fn all<'py, V: Element + Copy>(py: Python<'py>, part: &Part<V>) -> Arrays<'py> {
            [
                array(py, &part.v, true),
                array(py, &part.i, !part.i.is_empty()),
                array(py, &part.a, !part.a.is_empty()),
                array(py, &part.left, !part.left.is_empty()),
            ]
        }
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match parts.get(layer) {
            Some(AnyPart::F32(part)) => Ok(all(py, part)),
            Some(AnyPart::I32(part)) => Ok(all(py, part)),
            None => Err(PyValueError::new_err(format!("layer: expected less than {}, got {layer}", parts.len()))),
        }
    }

    /// A layer remembers these instead.
    fn set(&self, layer: usize, arrays: Arrays<'_>) -> PyResult<()> {
        fn copy<T: Element + Copy>(name: &str, to: &mut [T], from: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
            let Some(from) = from else {
                return if to.is_empty() {
                    Ok(())
                } else {
                    Err(PyValueError::new_err(format!("{name}: expected values")))
                };
            };
            let from = from.cast::<PyArray1<T>>()?.try_readonly()?;
            let from = from.as_slice()?;
            if from.len() != to.len() {
                let text = format!("{name}: expected {} values, got {}", to.len(), from.len());
                return Err(PyValueError::new_err(text));
            }
            to.copy_from_slice(from);
            Ok(())
        }
        fn all<V: Element + Copy>(part: &mut Part<V>, [v, i, a, left]: Arrays<'_>) -> PyResult<()> {
            copy("v", &mut part.v, v.as_ref())?;
            copy("i", &mut part.i, i.as_ref())?;
            copy("a", &mut part.a, a.as_ref())?;
            copy("left", &mut part.left, left.as_ref())
        }
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let layers = parts.len();
        match parts.get_mut(layer) {
            Some(AnyPart::F32(part)) => all(part, arrays),
            Some(AnyPart::I32(part)) => all(part, arrays),
            None => Err(PyValueError::new_err(format!("layer: expected less than {layers}, got {layer}"))),
        }
    }
}

type Array<'py> = Data<PyReadonlyArrayDyn<'py, u8>, PyReadonlyArrayDyn<'py, i32>, PyReadonlyArrayDyn<'py, f32>>;
type Written<'py> = Data<PyReadwriteArrayDyn<'py, u8>, PyReadwriteArrayDyn<'py, i32>, PyReadwriteArrayDyn<'py, f32>>;

/// What an array is, by its dtype.
fn dtype(name: &str, array: &Bound<'_, PyAny>) -> PyResult<Data<(), (), ()>> {
    if array.cast::<PyArrayDyn<u8>>().is_ok() {
        return Ok(Data::Bytes(()));
    }
    if array.cast::<PyArrayDyn<i32>>().is_ok() {
        return Ok(Data::I32(()));
    }
    if array.cast::<PyArrayDyn<f32>>().is_ok() {
        return Ok(Data::F32(()));
    }
    Err(PyTypeError::new_err(format!("{name}: expected an array of uint8, int32 or float32")))
}

fn array_of<'py>(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Array<'py>> {
    Ok(match dtype(name, array)? {
        Data::Bytes(()) => Data::Bytes(read(name, array)?),
        Data::I32(()) => Data::I32(read(name, array)?),
        Data::F32(()) => Data::F32(read(name, array)?),
    })
}

fn written_of<'py>(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Written<'py>> {
    Ok(match dtype(name, array)? {
        Data::Bytes(()) => Data::Bytes(write(name, array)?),
        Data::I32(()) => Data::I32(write(name, array)?),
        Data::F32(()) => Data::F32(write(name, array)?),
    })
}

fn elements<'a>(array: &'a Array<'_>) -> PyResult<Input<'a>> {
    Ok(match array {
        Data::Bytes(x) => Data::Bytes(x.as_slice()?),
        Data::I32(x) => Data::I32(x.as_slice()?),
        Data::F32(x) => Data::F32(x.as_slice()?),
    })
}

fn elements_mut<'a>(array: &'a mut Written<'_>) -> PyResult<Output<'a>> {
    Ok(match array {
        Data::Bytes(x) => Data::Bytes(x.as_slice_mut()?),
        Data::I32(x) => Data::I32(x.as_slice_mut()?),
        Data::F32(x) => Data::F32(x.as_slice_mut()?),
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<SpikingNetwork>()?;
    m.add_class::<SpikingMemory>()
}
