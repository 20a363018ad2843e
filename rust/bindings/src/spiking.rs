//! Spiking neurons. `lowbit.spiking` hands over C-contiguous arrays of the right
//! dtypes; lengths are checked again by the kernel.

use lowbit_kernels::spiking::training::{self, Forward, Incoming, Outgoing, Surrogate};
use lowbit_kernels::spiking::{self, Adaptation, Current, Each, Leak, Neurons, Reset, SpikesOut, State, Voltage};
use numpy::{Element, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::call::{self, Threads, read, write};

/// The parameters of neurons, by name; those with one value are for all neurons.
pub struct Levels<'py, V: Element> {
    leak: String,
    reset: String,
    strict: bool,
    refractory: u16,
    fraction: u32,
    levels: [Option<PyReadonlyArrayDyn<'py, V>>; 4],
    floats: [Option<PyReadonlyArrayDyn<'py, f32>>; 4],
    start: Option<PyReadonlyArrayDyn<'py, V>>,
}

impl<'py, V: Element + Voltage> Levels<'py, V> {
    pub fn new(neuron: &Bound<'py, PyDict>) -> PyResult<Self> {
        let py = neuron.py();
        // Names are made once.
        macro_rules! array {
            ($name:literal) => {
                neuron.get_item(intern!(py, $name))?.map(|x| read($name, &x)).transpose()?
            };
        }
        macro_rules! item {
            ($name:literal) => {
                neuron
                    .get_item(intern!(py, $name))?
                    .ok_or_else(|| PyValueError::new_err(concat!("neuron: expected '", $name, "'")))?
                    .extract()?
            };
        }
        Ok(Levels {
            leak: item!("leak"),
            reset: item!("reset"),
            strict: item!("strict"),
            refractory: item!("refractory"),
            fraction: item!("fraction"),
            levels: [array!("beta"), array!("drive"), array!("threshold"), array!("to")],
            floats: [array!("alpha"), array!("gain"), array!("rho"), array!("jump")],
            start: array!("start"),
        })
    }

    /// Where potentials begin.
    pub fn start(&self) -> PyResult<Each<'_, V>> {
        each("start", self.start.as_ref())
    }

    pub fn neurons(&self) -> PyResult<Neurons<'_, V>> {
        let level = |i: usize| each(["beta", "drive", "threshold", "to"][i], self.levels[i].as_ref());
        let float = |i: usize| each(["alpha", "gain", "rho", "jump"][i], self.floats[i].as_ref());
        let has = |i: usize| self.floats[i].is_some();
        let leak = match self.leak.as_str() {
            "none" => Leak::None,
            "keep" => Leak::Keep { beta: level(0)?, drive: level(1)? },
            "toward" => Leak::Toward { rate: level(0)?, rest: level(1)? },
            other => return Err(PyValueError::new_err(format!("leak: got '{other}'"))),
        };
        let reset = match self.reset.as_str() {
            "none" => Reset::None,
            "soft" => Reset::Soft,
            "hard" => Reset::Hard(level(3)?),
            "soft later" => Reset::SoftLater,
            "hard later" => Reset::HardLater(level(3)?),
            other => return Err(PyValueError::new_err(format!("reset: got '{other}'"))),
        };
        Ok(Neurons {
            leak,
            threshold: level(2)?,
            reset,
            strict: self.strict,
            refractory: self.refractory,
            fraction: self.fraction,
            current: if has(0) { Some(Current { alpha: float(0)?, gain: float(1)? }) } else { None },
            adaptation: if has(2) { Some(Adaptation { rho: float(2)?, jump: float(3)? }) } else { None },
        })
    }
}

fn each<'a, T: Element + Copy>(name: &str, array: Option<&'a PyReadonlyArrayDyn<'_, T>>) -> PyResult<Each<'a, T>> {
    let values = array.ok_or_else(|| PyValueError::new_err(format!("neuron: expected '{name}'")))?.as_slice()?;
    Ok(if let [one] = values { Each::All(*one) } else { Each::Channel(values) })
}

/// An array of the state; none where the neurons have no such thing.
fn part<'py, T: Element>(
    name: &str,
    array: Option<&Bound<'py, PyAny>>,
) -> PyResult<Option<PyReadwriteArrayDyn<'py, T>>> {
    array.map(|x| write(name, x)).transpose()
}

fn slice<'a, T: Element>(array: &'a mut Option<PyReadwriteArrayDyn<'_, T>>) -> PyResult<&'a mut [T]> {
    Ok(match array {
        Some(array) => array.as_slice_mut()?,
        None => &mut [],
    })
}

/// v, i, a and the refractory steps left.
type Parts<'py> = (Bound<'py, PyAny>, Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>);

#[allow(clippy::too_many_arguments)]
fn run<V: Element + Voltage>(
    x: &Bound<'_, PyAny>,
    neuron: &Bound<'_, PyDict>,
    state: &Parts<'_>,
    fresh: bool,
    spikes: &Bound<'_, PyAny>,
    row: Option<usize>,
    trace: Option<&Bound<'_, PyAny>>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, py) = (call::isa(isa)?, x.py());
    let x = read::<V>("x_seq", x)?;
    let levels = Levels::<V>::new(neuron)?;
    let neurons = levels.neurons()?;
    let start = fresh.then(|| levels.start()).transpose()?;
    let mut v = write::<V>("v", &state.0)?;
    let mut i = part::<f32>("i", state.1.as_ref())?;
    let mut a = part::<f32>("a", state.2.as_ref())?;
    let mut left = part::<u16>("left", state.3.as_ref())?;
    let mut spikes = write::<u8>("out", spikes)?;
    let mut trace = part::<V>("v_seq", trace)?;
    let x = x.as_slice()?;
    let mut state = State { v: v.as_slice_mut()?, i: slice(&mut i)?, a: slice(&mut a)?, left: slice(&mut left)? };
    let out = spikes.as_slice_mut()?;
    let spikes = match row {
        Some(row) => SpikesOut::Bits { out, row },
        None => SpikesOut::Bytes(out),
    };
    let trace = trace.as_mut().map(|trace| trace.as_slice_mut()).transpose()?;
    call::run(py, x.len(), Threads::default(), |ctl| {
        spiking::simulate(x, &neurons, &mut state, start, spikes, trace, isa, ctl)
    })
}

/// Of integers where `exact`, else of floats. `fresh`: potentials begin where the neurons start, not where the state is.
#[pyfunction]
#[pyo3(signature = (x, neuron, exact, state, fresh, spikes, row, trace, isa))]
#[allow(clippy::too_many_arguments)]
fn simulate(
    x: &Bound<'_, PyAny>,
    neuron: &Bound<'_, PyDict>,
    exact: bool,
    state: Parts<'_>,
    fresh: bool,
    spikes: &Bound<'_, PyAny>,
    row: Option<usize>,
    trace: Option<&Bound<'_, PyAny>>,
    isa: Option<&str>,
) -> PyResult<()> {
    let run = if exact { run::<i32> } else { run::<f32> };
    run(x, neuron, &state, fresh, spikes, row, trace, isa)
}

/// Spikes as floats; `v` becomes what the last step leaves. Of integers where `exact`.
#[pyfunction]
#[pyo3(signature = (x, neuron, exact, v, spikes, threads, openmp, isa))]
#[allow(clippy::too_many_arguments)]
fn spiking_forward(
    x: &Bound<'_, PyAny>,
    neuron: &Bound<'_, PyDict>,
    exact: bool,
    v: &Bound<'_, PyAny>,
    spikes: &Bound<'_, PyAny>,
    threads: Option<usize>,
    openmp: bool,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, py) = (call::isa(isa)?, x.py());
    let x = read::<f32>("x_seq", x)?;
    let (mut v, mut spikes) = (write::<f32>("v", v)?, write::<f32>("spikes", spikes)?);
    let (x, v, spikes) = (x.as_slice()?, v.as_slice_mut()?, spikes.as_slice_mut()?);
    let threads = Threads { threads, openmp };
    if exact {
        let levels = Levels::<i32>::new(neuron)?;
        let neurons = levels.neurons()?;
        return call::run(py, x.len(), threads, |ctl| training::forward(x, &neurons, v, spikes, isa, ctl));
    }
    let levels = Levels::<f32>::new(neuron)?;
    let neurons = levels.neurons()?;
    call::run(py, x.len(), threads, |ctl| training::forward(x, &neurons, v, spikes, isa, ctl))
}

/// Gradients of the inputs, of the first potentials and, if asked, of each neuron's beta or rate.
/// `exact`: the integers that went forward.
#[pyfunction]
#[pyo3(signature = (inputs, neuron, exact, surrogate, detach_reset, incoming, outgoing, threads, openmp, isa))]
#[allow(clippy::too_many_arguments)]
fn spiking_backward(
    inputs: (Bound<'_, PyAny>, Bound<'_, PyAny>),
    neuron: &Bound<'_, PyDict>,
    exact: Option<&Bound<'_, PyDict>>,
    surrogate: (String, f32, Bound<'_, PyAny>),
    detach_reset: bool,
    incoming: (Bound<'_, PyAny>, Bound<'_, PyAny>),
    outgoing: (Bound<'_, PyAny>, Bound<'_, PyAny>, Option<Bound<'_, PyAny>>),
    threads: Option<usize>,
    openmp: bool,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, py) = (call::isa(isa)?, inputs.0.py());
    let (x, v) = (read::<f32>("x_seq", &inputs.0)?, read::<f32>("v", &inputs.1)?);
    let levels = Levels::<f32>::new(neuron)?;
    let neurons = levels.neurons()?;
    let sharpness = Some(read::<f32>("sharpness", &surrogate.2)?);
    let surrogate = match (surrogate.0.as_str(), surrogate.1) {
        ("arctan", alpha) => Surrogate::Arctan(alpha),
        ("sigmoid", alpha) => Surrogate::Sigmoid(alpha),
        ("triangle", alpha) => Surrogate::Triangle(alpha),
        ("fast sigmoid", alpha) => Surrogate::FastSigmoid(alpha),
        (other, _) => return Err(PyValueError::new_err(format!("surrogate: got '{other}'"))),
    };
    let (grad_spikes, grad_v) = (read::<f32>("grad_spikes", &incoming.0)?, read::<f32>("grad_v", &incoming.1)?);
    let (mut out_x, mut out_v) = (write::<f32>("out_x", &outgoing.0)?, write::<f32>("out_v", &outgoing.1)?);
    let mut leak = part::<f32>("out_leak", outgoing.2.as_ref())?;
    let sharpness = each("sharpness", sharpness.as_ref())?;
    let forward = Forward { x: x.as_slice()?, v: v.as_slice()?, surrogate, sharpness, detach_reset };
    let incoming = Incoming { spikes: grad_spikes.as_slice()?, v: grad_v.as_slice()? };
    let outgoing = Outgoing { x: out_x.as_slice_mut()?, v: out_v.as_slice_mut()?, leak: slice(&mut leak)? };
    let (work, threads) = (4 * forward.x.len(), Threads { threads, openmp });
    if let Some(exact) = exact {
        let levels = Levels::<i32>::new(exact)?;
        let exact = levels.neurons()?;
        return call::run(py, work, threads, |ctl| {
            training::backward(&exact, &neurons, &forward, &incoming, outgoing, isa, ctl)
        });
    }
    call::run(py, work, threads, |ctl| training::backward(&neurons, &neurons, &forward, &incoming, outgoing, isa, ctl))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(simulate, m)?)?;
    m.add_function(wrap_pyfunction!(spiking_forward, m)?)?;
    m.add_function(wrap_pyfunction!(spiking_backward, m)?)
}
