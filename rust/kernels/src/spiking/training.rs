//! What training asks of neurons: spikes as floats, and gradients back through
//! all steps, with a smooth slope in place of the step function's.
//!
//! Integers are held in floats here, and computed as integers: what is trained is
//! then what runs.
//!
//! The backward pass takes a block of neurons through its steps again, which
//! costs less than reading stored potentials from memory.

use super::rows::{self, Floats, HARD, KEEP, Levels, NO_LEAK, Out, SOFT, STEPS, Steps, TOWARD, TOWARD_ZERO};
use super::{BLOCK, Each, Leak, Neurons, Voltage, check_levels};
use crate::error::{bail, try_zeroed};
use crate::lanes::{Lanes, on_isa};
use crate::{Ctl, Isa, Parts, Result};

/// The slope that a spike is given by its distance u = h - threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Surrogate {
    /// α/2 / (1 + (π/2 α u)²): the arctangent's.
    Arctan(f32),
    /// α σ(αu) (1 - σ(αu)): the logistic function's.
    Sigmoid(f32),
    /// max(0, α - α² |u|).
    Triangle(f32),
    /// 1 / (1 + α |u|)².
    FastSigmoid(f32),
}

/// What the backward pass reads.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    /// The inputs, steps × neurons.
    pub x: &'a [f32],
    /// The potentials before the first step.
    pub v: &'a [f32],
    /// The slope of a spike.
    pub surrogate: Surrogate,
    /// What the distance from the threshold is multiplied by before the slope is read, and the
    /// slope after it: one over the size of a potential's unit.
    pub sharpness: Each<'a, f32>,
    /// No gradient goes through the reset: a spike is a constant there.
    pub detach_reset: bool,
}

/// The gradients that come in: of every spike, and of the last potentials.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// Steps × neurons.
    pub spikes: &'a [f32],
    /// Of each neuron.
    pub v: &'a [f32],
}

/// The gradients that go out.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Of the inputs, steps × neurons.
    pub x: &'a mut [f32],
    /// Of the potentials before the first step.
    pub v: &'a mut [f32],
    /// Of each neuron's own beta or rate, summed over its steps; empty where nobody asks.
    pub leak: &'a mut [f32],
}

/// Neurons in a task.
const TASK: usize = 8 * BLOCK;

/// [`super::simulate`] with spikes as floats, 0 or 1: of neurons that have a potential and no more.
///
/// # Errors
/// As of [`super::simulate`].
pub fn forward<V: Voltage>(
    x: &[f32],
    neurons: &Neurons<'_, V>,
    v: &mut [f32],
    spikes: &mut [f32],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let n = v.len();
    let steps = check(x, neurons, n)?;
    if spikes.len() != x.len() {
        bail!("spikes: expected {} elements, got {}", x.len(), spikes.len());
    }
    if steps == 0 {
        return Ok(());
    }
    let outs = by_task(spikes, n);
    let parts = Parts::new(v.chunks_mut(TASK).zip(outs));
    ctl.for_each(parts.len(), &|_, index| {
        let (v, mut outs) = parts.take(index);
        fire(x, n, index * TASK, neurons, v, &mut outs, isa, isa);
    })
}

/// The gradients of [`forward`]. `exact` is what went forward; `neurons` the same in floats.
///
/// # Errors
/// [`crate::Error::Value`] where a length does not fit, [`crate::Error::Memory`],
/// [`crate::Error::Interrupted`].
pub fn backward<V: Voltage>(
    exact: &Neurons<'_, V>,
    neurons: &Neurons<'_, f32>,
    forward: &Forward<'_>,
    incoming: &Incoming<'_>,
    outgoing: Outgoing<'_>,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let n = forward.v.len();
    let steps = check(forward.x, exact, n)?;
    check(forward.x, neurons, n)?;
    if let Each::Channel(x) = forward.sharpness
        && (x.is_empty() || !n.is_multiple_of(x.len()))
    {
        bail!("sharpness: expected a length that divides {n} neurons, got {}", x.len());
    }
    for (name, got, want) in [
        ("incoming spikes", incoming.spikes.len(), forward.x.len()),
        ("incoming v", incoming.v.len(), n),
        ("outgoing x", outgoing.x.len(), forward.x.len()),
        ("outgoing v", outgoing.v.len(), n),
        ("outgoing leak", outgoing.leak.len(), if outgoing.leak.is_empty() { 0 } else { n }),
    ] {
        if got != want {
            bail!("{name}: expected {want} elements, got {got}");
        }
    }
    if n == 0 {
        return Ok(());
    }
    outgoing.v.copy_from_slice(incoming.v);
    outgoing.leak.fill(0.0);
    if steps == 0 {
        return Ok(());
    }
    // Potentials and slopes of all steps lie in the first-level cache, where it holds them.
    let block = (BLOCK * 4 / steps).clamp(64, BLOCK);
    let scratch: Vec<Vec<f32>> = (0..ctl.threads()).map(|_| try_zeroed(2 * steps * block)).collect::<Result<_>>()?;
    let scratch: Vec<_> = scratch.into_iter().map(std::sync::Mutex::new).collect();
    let mut leaks: Vec<&mut [f32]> = outgoing.leak.chunks_mut(TASK).collect();
    leaks.resize_with(n.div_ceil(TASK), || &mut []);
    let parts = Parts::new(by_task(outgoing.x, n).into_iter().zip(outgoing.v.chunks_mut(TASK)).zip(leaks));
    ctl.for_each(parts.len(), &|slot, index| {
        let ((x, v), leak) = parts.take(index);
        let part = Part { n, first: index * TASK, block, x, v, leak };
        let mut scratch = scratch[slot].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        back(exact, neurons, forward, incoming.spikes, part, &mut scratch, isa);
    })
}

/// Each task's part of every step.
fn by_task(rows: &mut [f32], n: usize) -> Vec<Vec<&mut [f32]>> {
    let mut outs: Vec<Vec<&mut [f32]>> = (0..n.div_ceil(TASK)).map(|_| Vec::new()).collect();
    for step in rows.chunks_exact_mut(n) {
        step.chunks_mut(TASK).zip(&mut outs).for_each(|(part, outs)| outs.push(part));
    }
    outs
}

/// That the neurons can be trained and fit; the number of steps.
fn check<V: Voltage>(x: &[f32], neurons: &Neurons<'_, V>, n: usize) -> Result<usize> {
    if !V::FLOAT && matches!(neurons.leak, Leak::Toward { .. }) {
        bail!("neurons: integers have no leaking inputs");
    }
    if !neurons.is_plain() || neurons.fraction != 0 {
        bail!("neurons: expected ones that have a potential and no more, and no fraction");
    }
    check_levels(neurons, n)?;
    if n == 0 && !x.is_empty() || n != 0 && !x.len().is_multiple_of(n) {
        bail!("x: expected steps of {n} neurons, got {} inputs", x.len());
    }
    Ok(x.len().checked_div(n).unwrap_or(0))
}

/// One task of the backward pass.
struct Part<'a> {
    n: usize,
    first: usize,
    block: usize,
    x: Vec<&'a mut [f32]>,
    v: &'a mut [f32],
    leak: &'a mut [f32],
}

on_isa! {
    fn fire<V: Voltage>(
        x: &[f32], n: usize, first: usize, neurons: &Neurons<'_, V>, v: &mut [f32], outs: &mut [&mut [f32]], set: Isa,
    ) = fire_in;
    fn back<V: Voltage>(
        exact: &Neurons<'_, V>, neurons: &Neurons<'_, f32>, forward: &Forward<'_>, spikes: &[f32], part: Part<'_>,
        scratch: &mut [f32],
    ) = back_in;
}

/// Floats as potentials.
#[inline(always)]
fn from_floats<V: Voltage>(x: &[f32], out: &mut [V]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = V::from_float(x);
    }
}

#[inline(always)]
fn fire_in<L: Lanes, V: Voltage>(
    _: L,
    x: &[f32],
    n: usize,
    first: usize,
    neurons: &Neurons<'_, V>,
    v: &mut [f32],
    outs: &mut [&mut [f32]],
    isa: Isa,
) {
    let mut levels = Levels::new(neurons);
    let (mut rooms, mut potentials) = ([V::default(); STEPS * BLOCK], [V::default(); BLOCK]);
    // Integers are made of a few steps at a time.
    let at_once = if V::FLOAT { outs.len() } else { STEPS };
    for (block, v) in v.chunks_mut(BLOCK).enumerate() {
        let (at, len) = (block * BLOCK, v.len());
        levels.fill(neurons, first + at, len);
        let potentials = &mut potentials[..len];
        from_floats(v, potentials);
        for (t, outs) in (0..).step_by(at_once).zip(outs.chunks_mut(at_once)) {
            let steps = outs.len();
            let inputs = if V::FLOAT {
                Steps { x: V::of_floats(&x[t * n + first + at..], &mut []), stride: n, steps }
            } else {
                for (i, room) in rooms.chunks_mut(BLOCK).take(steps).enumerate() {
                    V::of_floats(&x[(t + i) * n + first + at..][..len], &mut room[..len]);
                }
                Steps { x: &rooms, stride: BLOCK, steps }
            };
            let out = Out { rows: outs, from: at, past: false };
            rows::plain::<V, Floats>(inputs, potentials, &levels, out, isa);
        }
        for (v, potential) in v.iter_mut().zip(potentials) {
            *v = potential.float();
        }
    }
}

#[inline(always)]
fn back_in<L: Lanes, V: Voltage>(
    l: L,
    exact: &Neurons<'_, V>,
    neurons: &Neurons<'_, f32>,
    forward: &Forward<'_>,
    spikes: &[f32],
    mut part: Part<'_>,
    scratch: &mut [f32],
) {
    let steps = part.x.len();
    let (mut levels, mut exact_levels) = (Levels::for_each(neurons), Levels::for_each(exact));
    let mut sharpness = [0.0; BLOCK];
    rows::take(&forward.sharpness, 0, &mut sharpness);
    let (h, slope) = scratch.split_at_mut(steps * part.block);
    let (mut room, mut potentials, mut charged) = ([V::default(); BLOCK], [V::default(); BLOCK], [V::default(); BLOCK]);
    let mut at = 0;
    while at < part.v.len() {
        let len = part.block.min(part.v.len() - at);
        let first = part.first + at;
        // Every loop below reads one value for each neuron.
        levels.fill(neurons, first, len);
        exact_levels.fill(exact, first, len);
        if let Each::Channel(_) = forward.sharpness {
            rows::take(&forward.sharpness, first, &mut sharpness[..len]);
        }
        from_floats(&forward.v[first..first + len], &mut potentials[..len]);
        for t in 0..steps {
            let from = t * part.n + first;
            let inputs = V::of_floats(&forward.x[from..from + len], &mut room[..len]);
            rows::charge_plain(inputs, &mut potentials[..len], &exact_levels, &mut charged[..len]);
            let h = &mut h[t * len..][..len];
            for (h, charged) in h.iter_mut().zip(&charged) {
                *h = charged.float();
            }
            slopes(l, forward.surrogate, h, &levels, &sharpness[..len], &mut slope[t * len..][..len]);
        }
        let grad_v = &mut part.v[at..at + len];
        let leak = part.leak.get_mut(at..at + len).unwrap_or_default();
        for t in (0..steps).rev() {
            let from = t * part.n + first;
            let step = Step {
                x: &forward.x[from..from + len],
                // The potential before this step is what the one before left.
                before: if t == 0 { &forward.v[first..first + len] } else { &h[(t - 1) * len..][..len] },
                is_first: t == 0,
                h: &h[t * len..][..len],
                slope: &slope[t * len..][..len],
                grad_spike: &spikes[from..from + len],
                detach: forward.detach_reset,
            };
            step.back(&levels, &mut part.x[t][at..at + len], grad_v, leak);
        }
        at += len;
    }
}

/// The slopes at h.
#[inline(always)]
fn slopes<L: Lanes>(l: L, surrogate: Surrogate, h: &[f32], levels: &Levels<f32>, sharpness: &[f32], out: &mut [f32]) {
    let n = h.len();
    let (threshold, sharpness, out) = (&levels.threshold[..n], &sharpness[..n], &mut out[..n]);
    for j in 0..n {
        out[j] = (h[j] - threshold[j]) * sharpness[j];
    }
    match surrogate {
        Surrogate::Arctan(alpha) => {
            let inner = std::f32::consts::FRAC_PI_2 * alpha;
            for u in out.iter_mut() {
                let z = *u * inner;
                *u = (alpha / 2.0) / (1.0 + z * z);
            }
        }
        Surrogate::Triangle(alpha) => {
            for u in out.iter_mut() {
                let slope = alpha - alpha * alpha * u.abs();
                *u = if slope > 0.0 { slope } else { 0.0 };
            }
        }
        Surrogate::FastSigmoid(alpha) => {
            for u in out.iter_mut() {
                let z = 1.0 + alpha * u.abs();
                *u = 1.0 / (z * z);
            }
        }
        Surrogate::Sigmoid(alpha) => {
            // σ(1 - σ) = e / (1 + e)² with e = exp(-|αu|), which never overflows.
            let mut lanes = [0.0; 16];
            for part in out.chunks_mut(L::N) {
                let lanes = &mut lanes[..L::N];
                for (lane, u) in lanes.iter_mut().zip(&*part) {
                    *lane = -(alpha * u).abs();
                }
                let e = l.exp(l.load(lanes));
                l.store(e, lanes);
                part.copy_from_slice(&lanes[..part.len()]);
            }
            for e in out.iter_mut() {
                *e = alpha * *e / ((1.0 + *e) * (1.0 + *e));
            }
        }
    }
    for j in 0..n {
        out[j] *= sharpness[j];
    }
}

/// One step of a block, from its end to its beginning.
struct Step<'a> {
    x: &'a [f32],
    before: &'a [f32],
    is_first: bool,
    h: &'a [f32],
    slope: &'a [f32],
    grad_spike: &'a [f32],
    detach: bool,
}

impl Step<'_> {
    /// `grad_v` comes as the gradient of v after this step and leaves as that of v before it.
    #[inline(always)]
    fn back(&self, levels: &Levels<f32>, grad_x: &mut [f32], grad_v: &mut [f32], leak: &mut [f32]) {
        macro_rules! by_reset {
            ($leak:ident) => {
                match (levels.reset, self.detach) {
                    (HARD, true) => self.case::<$leak, 0>(levels, grad_x, grad_v, leak),
                    (HARD, false) => self.case::<$leak, 1>(levels, grad_x, grad_v, leak),
                    (SOFT, false) => self.case::<$leak, 2>(levels, grad_x, grad_v, leak),
                    _ => self.case::<$leak, 3>(levels, grad_x, grad_v, leak),
                }
            };
        }
        match levels.leak {
            NO_LEAK => by_reset!(NO_LEAK),
            TOWARD | TOWARD_ZERO => by_reset!(TOWARD),
            _ => by_reset!(KEEP),
        }
    }

    #[inline(always)]
    fn case<const LEAK: u8, const RESET: u8>(
        &self,
        levels: &Levels<f32>,
        grad_x: &mut [f32],
        grad_v: &mut [f32],
        leak: &mut [f32],
    ) {
        let n = self.h.len();
        assert!(n <= BLOCK);
        let (h, slope, grad_spike) = (&self.h[..n], &self.slope[..n], &self.grad_spike[..n]);
        let (grad_x, grad_v) = (&mut grad_x[..n], &mut grad_v[..n]);
        let (fire, to, threshold) = (&levels.fire[..n], &levels.to[..n], &levels.threshold[..n]);
        let (beta, drive) = (&levels.beta[..n], &levels.drive[..n]);
        // What h gets of the gradients; then what it hands on.
        for j in 0..n {
            let silent = f32::from(h[j] < fire[j]);
            let through = match RESET {
                0 => silent,
                1 => silent + (to[j] - h[j]) * slope[j],
                2 => 1.0 - threshold[j] * slope[j],
                _ => 1.0,
            };
            grad_v[j] = grad_spike[j] * slope[j] + grad_v[j] * through;
        }
        if !leak.is_empty() {
            let (x, before, leak) = (&self.x[..n], &self.before[..n], &mut leak[..n]);
            for j in 0..n {
                let v = if self.is_first { before[j] } else { levels.after(before[j], j) };
                leak[j] += grad_v[j] * if LEAK == TOWARD { x[j] - (v - drive[j]) } else { v };
            }
        }
        for j in 0..n {
            let (keeps, takes) = match LEAK {
                NO_LEAK => (1.0, 1.0),
                TOWARD => (1.0 - beta[j], beta[j]),
                _ => (beta[j], 1.0),
            };
            grad_x[j] = grad_v[j] * takes;
            grad_v[j] *= keeps;
        }
    }
}

impl Levels<f32> {
    /// The potential that h leaves.
    #[inline(always)]
    fn after(&self, h: f32, j: usize) -> f32 {
        let fired = h >= self.fire[j];
        match self.reset {
            HARD if fired => self.to[j],
            SOFT if fired => h - self.threshold[j],
            _ => h,
        }
    }
}
