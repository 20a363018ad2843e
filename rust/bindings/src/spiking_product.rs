//! Products of spikes with weights. `lowbit.spike_product` hands over C-contiguous arrays of the
//! right dtypes; lengths are checked again by the kernel.

use lowbit_kernels::spiking::{self, SpikeConv2d, SpikeForm, SpikeWeight, Spikes, Start, Sums};
use numpy::{PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::call::{self, Threads, read, run, to_py, write};

/// Additions that one elementary operation handles, roughly, and inputs of which one spikes.
const ADDITIONS_PER_OP: usize = 64;

/// Codes of so many bits; 32 for float32.
pub fn form(nbits: u32) -> SpikeForm {
    if nbits == 32 { SpikeForm::Floats } else { SpikeForm::Codes(nbits) }
}

/// Input's H, W, C; kernel; stride; padding.
pub type Sizes = ([usize; 3], [usize; 2], [usize; 2], [[usize; 2]; 2]);

pub fn conv_of((input, kernel, stride, padding): Sizes) -> SpikeConv2d {
    SpikeConv2d { input, kernel, stride, padding }
}

/// Where sums start and go.
enum Ends<'py> {
    Codes(Option<PyReadonlyArrayDyn<'py, i32>>, PyReadwriteArrayDyn<'py, i32>),
    Floats(Option<PyReadonlyArrayDyn<'py, f32>>, PyReadwriteArrayDyn<'py, f32>),
}

impl<'py> Ends<'py> {
    fn new(nbits: u32, bias: Option<&Bound<'py, PyAny>>, out: &Bound<'py, PyAny>) -> PyResult<Self> {
        Ok(match form(nbits) {
            SpikeForm::Codes(_) => Ends::Codes(bias.map(|b| read("bias", b)).transpose()?, write("out", out)?),
            SpikeForm::Floats => Ends::Floats(bias.map(|b| read("bias", b)).transpose()?, write("out", out)?),
        })
    }

    fn get(&mut self) -> PyResult<(Start<'_>, Sums<'_>)> {
        Ok(match self {
            Ends::Codes(bias, out) => {
                let start = bias.as_ref().map(PyReadonlyArrayDyn::as_slice).transpose()?;
                (start.map_or(Start::Zero, Start::I32), Sums::I32(out.as_slice_mut()?))
            }
            Ends::Floats(bias, out) => {
                let start = bias.as_ref().map(PyReadonlyArrayDyn::as_slice).transpose()?;
                (start.map_or(Start::Zero, Start::F32), Sums::F32(out.as_slice_mut()?))
            }
        })
    }
}

fn spikes_of<'a>(kind: &str, bytes: &'a [u8]) -> PyResult<Spikes<'a>> {
    match kind {
        "packed" => Ok(Spikes::Packed(bytes)),
        "spikes" => Ok(Spikes::Bytes(bytes)),
        "counts" => Ok(Spikes::Counts(bytes)),
        _ => Err(PyValueError::new_err(format!("kind: expected packed, spikes or counts, got {kind}"))),
    }
}

#[pyfunction]
fn spike_weight_len(k: usize, n: usize, nbits: u32) -> PyResult<usize> {
    spiking::spike_weight_len(k, n, form(nbits)).map_err(to_py)
}

#[pyfunction]
fn tile_spike_weight(w: &Bound<'_, PyAny>, k: usize, n: usize, nbits: u32, out: &Bound<'_, PyAny>) -> PyResult<()> {
    let (py, mut out) = (w.py(), write::<u8>("out", out)?);
    let out = out.as_slice_mut()?;
    let work = out.len().saturating_mul(4);
    match form(nbits) {
        SpikeForm::Codes(nbits) => {
            let w = read::<i8>("w", w)?;
            let w = w.as_slice()?;
            run(py, work, Threads::default(), |ctl| spiking::tile_spike_codes(w, k, n, nbits, out, ctl))
        }
        SpikeForm::Floats => {
            let w = read::<f32>("w", w)?;
            let w = w.as_slice()?;
            run(py, work, Threads::default(), |ctl| spiking::tile_spike_floats(w, k, n, out, ctl))
        }
    }
}

#[pyfunction]
fn untile_spike_weight(
    tiled: &Bound<'_, PyAny>,
    k: usize,
    n: usize,
    nbits: u32,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (py, tiled) = (tiled.py(), read::<u8>("tiled", tiled)?);
    let weight = SpikeWeight::from_bytes(tiled.as_slice()?, k, n, form(nbits)).map_err(to_py)?;
    let work = weight.bytes().len().saturating_mul(4);
    if weight.form() == SpikeForm::Floats {
        let mut out = write::<f32>("out", out)?;
        let out = out.as_slice_mut()?;
        return run(py, work, Threads::default(), |ctl| spiking::untile_spike_floats(&weight, out, ctl));
    }
    let mut out = write::<i8>("out", out)?;
    let out = out.as_slice_mut()?;
    run(py, work, Threads::default(), |ctl| spiking::untile_spike_codes(&weight, out, ctl))
}

/// `kind`: "packed", "spikes" or "counts".
#[pyfunction]
fn spike_matmul(
    spikes: &Bound<'_, PyAny>,
    kind: &str,
    m: usize,
    tiled: &Bound<'_, PyAny>,
    k: usize,
    n: usize,
    nbits: u32,
    bias: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, py) = (call::isa(isa)?, spikes.py());
    let (spikes, tiled) = (read::<u8>("spikes", spikes)?, read::<u8>("weight", tiled)?);
    let weight = SpikeWeight::from_bytes(tiled.as_slice()?, k, n, form(nbits)).map_err(to_py)?;
    let mut ends = Ends::new(nbits, bias, out)?;
    let ((start, out), spikes) = (ends.get()?, spikes_of(kind, spikes.as_slice()?)?);
    let work = m.saturating_mul(k).saturating_mul(n) / ADDITIONS_PER_OP;
    run(py, work, Threads::default(), |ctl| spiking::spike_matmul(spikes, m, &weight, start, out, isa, ctl))
}

/// Height and width of the output.
#[pyfunction]
fn spike_conv2d_size(sizes: Sizes) -> PyResult<[usize; 2]> {
    conv_of(sizes).output().map_err(to_py)
}

/// `kind`: "spikes" or "counts".
#[pyfunction]
fn spike_conv2d(
    spikes: &Bound<'_, PyAny>,
    kind: &str,
    images: usize,
    sizes: Sizes,
    tiled: &Bound<'_, PyAny>,
    n: usize,
    nbits: u32,
    bias: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
    isa: Option<&str>,
) -> PyResult<()> {
    let (isa, py) = (call::isa(isa)?, spikes.py());
    let (spikes, tiled) = (read::<u8>("spikes", spikes)?, read::<u8>("weight", tiled)?);
    let conv = conv_of(sizes);
    let k = [conv.kernel[1], conv.input[2]].iter().try_fold(conv.kernel[0], |k, &size| k.checked_mul(size));
    let k = k.ok_or_else(|| PyValueError::new_err("weight: its size overflows"))?;
    let weight = SpikeWeight::from_bytes(tiled.as_slice()?, k, n, form(nbits)).map_err(to_py)?;
    let mut ends = Ends::new(nbits, bias, out)?;
    let ((start, out), spikes) = (ends.get()?, spikes_of(kind, spikes.as_slice()?)?);
    let [height, width] = conv.output().map_err(to_py)?;
    let sizes = [images, height, width, n];
    let work = sizes.iter().fold(k, |work, &size| work.saturating_mul(size)) / ADDITIONS_PER_OP;
    run(py, work, Threads::default(), |ctl| spiking::spike_conv2d(spikes, images, &conv, &weight, start, out, isa, ctl))
}

/// Pairs of an input that is not 0 and a place of the output that it reaches.
#[pyfunction]
fn spike_conv2d_pairs(spikes: &Bound<'_, PyAny>, images: usize, sizes: Sizes) -> PyResult<u64> {
    let (py, spikes) = (spikes.py(), read::<u8>("spikes", spikes)?);
    let spikes = spikes.as_slice()?;
    run(py, spikes.len() / 8, Threads::default(), |ctl| conv_of(sizes).pairs(spikes, images, ctl))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(spike_weight_len, m)?)?;
    m.add_function(wrap_pyfunction!(tile_spike_weight, m)?)?;
    m.add_function(wrap_pyfunction!(untile_spike_weight, m)?)?;
    m.add_function(wrap_pyfunction!(spike_matmul, m)?)?;
    m.add_function(wrap_pyfunction!(spike_conv2d_size, m)?)?;
    m.add_function(wrap_pyfunction!(spike_conv2d, m)?)?;
    m.add_function(wrap_pyfunction!(spike_conv2d_pairs, m)?)
}
