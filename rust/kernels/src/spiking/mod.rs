//! Spiking neurons, layers of them, step by step, and the spikes they fire; products of spikes
//! with weights ([`spike_matmul`], [`spike_conv2d`]).
//!
//! A layer is [`Neurons`]: how the potential leaks, when it fires, what a spike
//! does to it. [`simulate`] takes it through `steps` rows of inputs, time
//! outermost, and keeps the state in the caller's arrays, so that a stream can
//! be cut anywhere with the same result. Potentials are float32, or integers
//! (see [`Voltage`]); [`scalar`] has the arithmetic, operation by operation,
//! and every instruction set gives its bits.
//!
//! ```
//! use lowbit_kernels::spiking::{Each, Leak, Neurons, Reset, SpikesOut, State, simulate};
//! use lowbit_kernels::{Ctl, Isa};
//!
//! // v = v / 2 + x, fires from 1 on, then starts from 0: two neurons, three steps.
//! let leak = Leak::Keep { beta: Each::All(0.5), drive: Each::All(0.0) };
//! let neurons = Neurons::new(leak, Each::All(1.0), Reset::Hard(Each::All(0.0)));
//! let mut v = [0.0, 0.0];
//! let mut spikes = [0u8; 6];
//! simulate(
//!     &[0.5, 1.0, 0.8, 0.1, 0.1, 0.1],
//!     &neurons,
//!     &mut State::new(&mut v),
//!     None,
//!     SpikesOut::Bytes(&mut spikes),
//!     None,
//!     Isa::best(),
//!     &Ctl::new(1),
//! )?;
//! assert_eq!(spikes, [0, 1, 1, 0, 0, 0]);
//! assert_eq!(v, [0.1, 0.15]);
//! # Ok::<(), lowbit_kernels::Error>(())
//! ```

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pool;
mod product;
mod rows;
mod scalar;
#[cfg(test)]
mod tests;
pub mod training;
mod words;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::error::{bail, checked_product};
use crate::{Ctl, Isa, Parts, Result};
pub use attention::{SpikeAttention, spike_attention};
pub use pool::{PoolKind, spike_pool2d};
pub use product::{
    MAX_SPIKE_K, SpikeConv2d, SpikeForm, SpikeProduct, SpikeWeight, Spikes, Start, Sums, spike_conv2d, spike_matmul,
    spike_weight_len, tile_spike_codes, tile_spike_floats, untile_spike_codes, untile_spike_floats,
};
pub use scalar::Voltage;
pub use words::{count_spikes, greatest_count};

/// Neurons that are taken through all steps together, where they have more than a potential or each has parameters of
/// its own: those, and one row of inputs, stay in the first-level cache.
const BLOCK: usize = 1024;

/// Neurons in one task: a whole number of blocks. Of plain neurons the more, the longer the rows that are read at
/// once, as long as all threads have tasks, potentials stay in the second-level cache and Ctrl-C need not wait.
fn task(neurons: usize, steps: usize, threads: usize) -> usize {
    let most = ((1 << 28) / steps / BLOCK).clamp(8, 64);
    (neurons / (4 * threads) / BLOCK).clamp(8, most) * BLOCK
}

/// A parameter: one value for all neurons, or neuron j's at j modulo the length.
#[derive(Debug, Clone, Copy)]
pub enum Each<'a, V> {
    /// The same for all.
    All(V),
    /// One for each channel; its length divides the number of neurons.
    Channel(&'a [V]),
}

/// What becomes of the potential before it is compared: from v and the input x, h.
#[derive(Debug, Clone, Copy)]
pub enum Leak<'a, V> {
    /// h = v + x: integrate and fire.
    None,
    /// h = (beta v + drive) + x. Integers take beta in 256ths, rounded half up, and x + drive first.
    Keep {
        /// What is kept of v; 1 - 1/tau.
        beta: Each<'a, V>,
        /// A constant input: what pulls v to a rest level, or a bias.
        drive: Each<'a, V>,
    },
    /// h = v + (x - (v - rest)) rate: the input leaks as v does. Floats alone.
    Toward {
        /// 1/tau.
        rate: Each<'a, V>,
        /// The level that v decays to.
        rest: Each<'a, V>,
    },
}

/// What a spike does to the potential.
#[derive(Debug, Clone, Copy)]
pub enum Reset<'a, V> {
    /// It becomes this.
    Hard(Each<'a, V>),
    /// The threshold is subtracted.
    Soft,
    /// Nothing.
    None,
    /// At the next step, after the leak, the threshold is subtracted. Floats alone.
    SoftLater,
    /// At the next step the potential becomes this whatever comes in. Floats alone.
    HardLater(Each<'a, V>),
}

/// A synaptic current between input and potential: i = alpha i + gain x, and the
/// potential takes i for its input.
#[derive(Debug, Clone, Copy)]
pub struct Current<'a> {
    /// What is kept of i.
    pub alpha: Each<'a, f32>,
    /// What an input adds to it.
    pub gain: Each<'a, f32>,
}

/// A threshold that rises with each spike: a = rho a, fires from threshold + a
/// on, a += jump with a spike.
#[derive(Debug, Clone, Copy)]
pub struct Adaptation<'a> {
    /// What is kept of a.
    pub rho: Each<'a, f32>,
    /// What a spike adds to it.
    pub jump: Each<'a, f32>,
}

/// A layer of neurons.
#[derive(Debug, Clone, Copy)]
pub struct Neurons<'a, V> {
    /// Before the comparison.
    pub leak: Leak<'a, V>,
    /// Fires where h is at least this ([`Neurons::strict`]: more than this).
    pub threshold: Each<'a, V>,
    /// After a spike.
    pub reset: Reset<'a, V>,
    /// Equality does not fire.
    pub strict: bool,
    /// Steps after a spike in which v is held and nothing fires.
    pub refractory: u16,
    /// Floats alone.
    pub current: Option<Current<'a>>,
    /// Floats alone.
    pub adaptation: Option<Adaptation<'a>>,
    /// Bits of integer potentials below the unit of inputs, which are shifted left by so many.
    pub fraction: u32,
}

impl<'a, V> Neurons<'a, V> {
    /// Fires at equality, without refractory steps, current or adaptation.
    pub fn new(leak: Leak<'a, V>, threshold: Each<'a, V>, reset: Reset<'a, V>) -> Self {
        Neurons { leak, threshold, reset, strict: false, refractory: 0, current: None, adaptation: None, fraction: 0 }
    }

    /// Neither adaptation, refractory steps nor a reset that waits.
    fn has_potential_alone(&self) -> bool {
        let later = matches!(self.reset, Reset::SoftLater | Reset::HardLater(_));
        !later && self.refractory == 0 && self.adaptation.is_none()
    }

    /// Whether a parameter is one for each channel.
    fn differ(&self) -> bool {
        self.channels().into_iter().flatten().next().is_some()
    }

    /// Whether so many neurons are whole rounds of channels.
    fn repeat_in(&self, neurons: usize) -> bool {
        self.channels().into_iter().flatten().all(|channels| channels > 0 && neurons.is_multiple_of(channels))
    }

    /// Of each parameter that is one for each channel, how many there are.
    fn channels(&self) -> [Option<usize>; 8] {
        let [a, b] = match &self.leak {
            Leak::None => [None; 2],
            Leak::Keep { beta: a, drive: b } | Leak::Toward { rate: a, rest: b } => [a.len(), b.len()],
        };
        let to = if let Reset::Hard(to) | Reset::HardLater(to) = &self.reset { to.len() } else { None };
        let [alpha, gain] = self.current.map_or([None; 2], |c| [c.alpha.len(), c.gain.len()]);
        let [rho, jump] = self.adaptation.map_or([None; 2], |a| [a.rho.len(), a.jump.len()]);
        [a, b, to, alpha, gain, rho, jump, self.threshold.len()]
    }

    /// As [`Neurons::has_potential_alone`], and no current.
    fn is_plain(&self) -> bool {
        self.has_potential_alone() && self.current.is_none()
    }
}

/// What a layer remembers: one element for each neuron. Empty where the neurons
/// have no such thing.
#[derive(Debug)]
pub struct State<'a, V> {
    /// The potential; an integer is within ±(2^23 - 1), or what becomes of it is not told.
    pub v: &'a mut [V],
    /// The synaptic current.
    pub i: &'a mut [f32],
    /// What the threshold has risen by.
    pub a: &'a mut [f32],
    /// Refractory steps left.
    pub left: &'a mut [u16],
}

impl<'a, V> State<'a, V> {
    /// Of neurons that have a potential and no more.
    pub fn new(v: &'a mut [V]) -> Self {
        State { v, i: &mut [], a: &mut [], left: &mut [] }
    }

    fn split_at(self, at: usize) -> (Self, Self) {
        fn cut<T>(x: &mut [T], at: usize) -> (&mut [T], &mut [T]) {
            let at = at.min(x.len());
            x.split_at_mut(at)
        }
        let ((v, v2), (i, i2)) = (cut(self.v, at), cut(self.i, at));
        let ((a, a2), (left, left2)) = (cut(self.a, at), cut(self.left, at));
        (State { v, i, a, left }, State { v: v2, i: i2, a: a2, left: left2 })
    }
}

/// Where spikes go, steps outermost.
#[derive(Debug)]
pub enum SpikesOut<'a> {
    /// A byte of 0 or 1 for each neuron and step.
    Bytes(&'a mut [u8]),
    /// Bits: rows of `row` neurons, each beginning on a byte, as [`crate::packing`] has them.
    Bits {
        /// The bytes.
        out: &'a mut [u8],
        /// Neurons in a row; divides their number.
        row: usize,
    },
}

/// Takes neurons through the steps of `x`, whose length is steps × neurons, the
/// neurons being those of `state`; writes each step's spikes, and to `trace`
/// the potentials after each step. With `start` potentials begin there, whatever `state` holds.
///
/// # Errors
/// [`crate::Error::Value`] where a length does not fit, or integers are asked for what
/// floats alone have. [`crate::Error::Interrupted`] where `ctl` stops the call; the
/// state then is of no use.
pub fn simulate<V: Voltage>(
    x: &[V],
    neurons: &Neurons<'_, V>,
    state: &mut State<'_, V>,
    start: Option<Each<'_, V>>,
    spikes: SpikesOut<'_>,
    trace: Option<&mut [V]>,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let n = state.v.len();
    let steps = check(x, neurons, state, &spikes, trace.as_deref())?;
    if let Some(start) = &start {
        fits(n, "start", start.len())?;
        are_potentials("start", start)?;
    }
    if n == 0 {
        return Ok(());
    }
    if steps == 0 {
        if let Some(start) = &start {
            rows::take(start, 0, state.v);
        }
        return Ok(());
    }
    // Bits of rows that are whole bytes are those of one long row.
    let (out, row, pack) = match spikes {
        SpikesOut::Bytes(out) => (out, n, false),
        SpikesOut::Bits { out, row } => (out, if row % 8 == 0 { n } else { row }, true),
    };
    let bytes =
        |neurons: usize| if pack { neurons / row * row.div_ceil(8) + (neurons % row).div_ceil(8) } else { neurons };
    let task = if neurons.is_plain() { task(n, steps, ctl.threads()) } else { 8 * BLOCK };
    let task = if row < n { row * task.div_ceil(row) } else { task };

    let mut outs: Vec<Vec<&mut [u8]>> = (0..n.div_ceil(task)).map(|_| Vec::with_capacity(steps)).collect();
    let (of_step, of_task) = (bytes(n), bytes(task));
    for step in out.chunks_exact_mut(of_step) {
        step.chunks_mut(of_task).zip(&mut outs).for_each(|(part, outs)| outs.push(part));
    }
    let mut traces: Vec<Vec<&mut [V]>> = outs.iter().map(|_| Vec::new()).collect();
    for step in trace.into_iter().flat_map(|trace| trace.chunks_exact_mut(n)) {
        step.chunks_mut(task).zip(&mut traces).for_each(|(part, traces)| traces.push(part));
    }
    let mut rest = State { v: &mut *state.v, i: &mut *state.i, a: &mut *state.a, left: &mut *state.left };
    let parts = Parts::new(outs.into_iter().zip(traces).map(|(outs, traces)| {
        let (part, after) = std::mem::replace(&mut rest, State::new(&mut [])).split_at(task);
        rest = after;
        rows::Part { state: part, spikes: outs, trace: traces }
    }));
    ctl.for_each(parts.len(), &|_, index| {
        let rows = rows::Rows { x, n, first: index * task, row, pack, start };
        rows::run(&rows, neurons, parts.take(index), isa);
    })
}

/// That everything fits; the number of steps.
fn check<V: Voltage>(
    x: &[V],
    neurons: &Neurons<'_, V>,
    state: &State<'_, V>,
    spikes: &SpikesOut<'_>,
    trace: Option<&[V]>,
) -> Result<usize> {
    let n = state.v.len();
    if n == 0 && !x.is_empty() || n != 0 && !x.len().is_multiple_of(n) {
        bail!("x: expected steps of {n} neurons, got {} inputs", x.len());
    }
    let steps = x.len().checked_div(n).unwrap_or(0);
    check_levels(neurons, n)?;
    if !V::FLOAT && (!neurons.is_plain() || matches!(neurons.leak, Leak::Toward { .. })) {
        bail!("neurons: integers have neither currents, adaptation, refractory steps, later resets nor leaking inputs");
    }
    if neurons.fraction > if V::FLOAT { 0 } else { 22 } {
        bail!("fraction: expected 0 to 22 for integers, 0 for floats, got {}", neurons.fraction);
    }
    for (name, len, has) in [
        ("i", state.i.len(), neurons.current.is_some()),
        ("a", state.a.len(), neurons.adaptation.is_some()),
        ("left", state.left.len(), neurons.refractory > 0),
    ] {
        let want = if has { n } else { 0 };
        if len != want {
            bail!("{name}: expected {want} elements, got {len}");
        }
    }
    let (got, want) = match spikes {
        SpikesOut::Bytes(out) => (out.len(), checked_product("spikes", &[steps, n])?),
        SpikesOut::Bits { row, .. } if *row == 0 || n % row != 0 => {
            bail!("row: expected a length that divides {n} neurons, got {row}")
        }
        SpikesOut::Bits { out, row } => (out.len(), checked_product("spikes", &[steps, n / row, row.div_ceil(8)])?),
    };
    if got != want {
        bail!("spikes: expected {want} bytes, got {got}");
    }
    match trace {
        Some(trace) if trace.len() != x.len() => bail!("trace: expected {} elements, got {}", x.len(), trace.len()),
        _ => Ok(steps),
    }
}

/// That each parameter is one number, or one for each channel.
fn check_levels<V: Voltage>(neurons: &Neurons<'_, V>, n: usize) -> Result<()> {
    let fits = |name: &str, each: Option<usize>| fits(n, name, each);
    fits("threshold", neurons.threshold.len())?;
    if !V::FLOAT && matches!(neurons.reset, Reset::Soft) {
        // Less a negative number potentials would leave their bounds.
        if let Some(x) = neurons.threshold.all().iter().find(|&&x| x < V::default()) {
            bail!("threshold: expected integers of at least 0 where it is subtracted, got {x:?}");
        }
    }
    match neurons.leak {
        Leak::None => {}
        Leak::Keep { beta, drive } => fits("beta", beta.len()).and(fits("drive", drive.len()))?,
        Leak::Toward { rate, rest } => fits("rate", rate.len()).and(fits("rest", rest.len()))?,
    }
    if let Reset::Hard(to) | Reset::HardLater(to) = neurons.reset {
        fits("reset", to.len())?;
        are_potentials("reset", &to)?;
    }
    if let Some(Current { alpha, gain }) = neurons.current {
        fits("alpha", alpha.len()).and(fits("gain", gain.len()))?;
    }
    if let Some(Adaptation { rho, jump }) = neurons.adaptation {
        fits("rho", rho.len()).and(fits("jump", jump.len()))?;
    }
    Ok(())
}

/// That integers are within the bounds of potentials.
fn are_potentials<V: Voltage>(name: &str, each: &Each<'_, V>) -> Result<()> {
    match each.all().iter().find(|x| !x.is_potential()) {
        Some(x) => bail!("{name}: expected integers within ±(2^23 - 1), got {x:?}"),
        None => Ok(()),
    }
}

/// That a parameter is one number, or its channels divide the neurons.
fn fits(n: usize, name: &str, each: Option<usize>) -> Result<()> {
    match each {
        Some(len) if len == 0 || n % len != 0 => {
            bail!("{name}: expected a length that divides {n} neurons, got {len}")
        }
        _ => Ok(()),
    }
}

impl<V> Each<'_, V> {
    /// All that there are.
    fn all(&self) -> &[V] {
        match self {
            Each::All(x) => std::slice::from_ref(x),
            Each::Channel(x) => x,
        }
    }

    /// Of channels; `None` where one value is for all.
    fn len(&self) -> Option<usize> {
        match self {
            Each::All(_) => None,
            Each::Channel(x) => Some(x.len()),
        }
    }
}
