//! Rows of neurons at once: [`scalar::step`], with the loops turned inside out so
//! that the compiler makes vectors of them. No operation is contracted, so the
//! bits are the definition's.

use std::hint::select_unpredictable as select;

use super::scalar::{self, One, Voltage};
#[cfg(target_arch = "x86_64")]
use super::x86::Written;
use super::{BLOCK, Each, Leak, Neurons, Reset, State};
use crate::Isa;
use crate::lanes::{Lanes, on_isa, prefetch};

/// Steps that plain neurons take together: as many rows of inputs are read side by side as memory
/// gives the most from, and potentials stay in registers meanwhile.
pub(super) const STEPS: usize = 4;
/// Spikes, a byte each, from which on they are written past the caches: more than those keep for whoever reads them.
pub(super) const PAST: usize = 4 << 20;

/// What all tasks read.
pub(super) struct Rows<'a, V> {
    pub x: &'a [V],
    /// Neurons of the layer.
    pub n: usize,
    /// The first of this task.
    pub first: usize,
    /// Neurons in a row of bits.
    pub row: usize,
    /// Spikes as bits.
    pub pack: bool,
    /// Where potentials begin; else where the state says.
    pub start: Option<Each<'a, V>>,
}

/// What one task writes: its neurons' part of the state, and of each step's spikes and trace.
pub(super) struct Part<'a, V> {
    pub state: State<'a, V>,
    pub spikes: Vec<&'a mut [u8]>,
    pub trace: Vec<&'a mut [V]>,
}

/// Takes a task's neurons through all steps.
pub(super) fn run<V: Voltage>(rows: &Rows<'_, V>, neurons: &Neurons<'_, V>, part: Part<'_, V>, isa: Isa) {
    if isa == Isa::Scalar {
        by_definition(rows, neurons, part);
    } else {
        in_blocks(rows, neurons, part, isa, isa);
    }
}

on_isa! {
    fn in_blocks<V: Voltage>(rows: &Rows<'_, V>, neurons: &Neurons<'_, V>, part: Part<'_, V>, set: Isa) = blocks;
}

/// One neuron after the other.
fn by_definition<V: Voltage>(rows: &Rows<'_, V>, neurons: &Neurons<'_, V>, mut part: Part<'_, V>) {
    let or_zero = |x: &[f32], j: usize| x.get(j).copied().unwrap_or(0.0);
    let row_bytes = rows.row.div_ceil(8);
    if let Some(start) = &rows.start {
        take(start, rows.first, part.state.v);
    }
    for j in 0..part.state.v.len() {
        let state = &mut part.state;
        let left = state.left.get(j).copied().unwrap_or(0);
        let mut one = One { v: state.v[j], i: or_zero(state.i, j), a: or_zero(state.a, j), left };
        for (t, spikes) in part.spikes.iter_mut().enumerate() {
            let fired = scalar::step(neurons, rows.first + j, &mut one, rows.x[t * rows.n + rows.first + j]);
            if rows.pack {
                let (row, bit) = (j / rows.row, j % rows.row);
                let byte = &mut spikes[row * row_bytes + bit / 8];
                *byte = if bit % 8 == 0 { 0 } else { *byte } | u8::from(fired) << (bit % 8);
            } else {
                spikes[j] = u8::from(fired);
            }
            if let Some(trace) = part.trace.get_mut(t) {
                trace[j] = one.v;
            }
        }
        state.v[j] = one.v;
        if let Some(i) = state.i.get_mut(j) {
            *i = one.i;
        }
        if let Some(a) = state.a.get_mut(j) {
            *a = one.a;
        }
        if let Some(left) = state.left.get_mut(j) {
            *left = one.left;
        }
    }
}

/// A task's neurons through all steps, a block of them after the other where they are not plain.
#[inline(always)]
fn blocks<L: Lanes, V: Voltage>(_: L, rows: &Rows<'_, V>, neurons: &Neurons<'_, V>, mut part: Part<'_, V>, isa: Isa) {
    let total = part.state.v.len();
    let mut levels = Levels::new(neurons);
    let (alone, flows) = (neurons.has_potential_alone(), neurons.current.is_some());
    let mut currents = vec![V::default(); if flows { BLOCK } else { 0 }];
    let mut bytes = vec![0u8; if alone { 0 } else { BLOCK }];
    let mut scratch = Scratch::new(if alone { 0 } else { BLOCK });
    // Of plain neurons the rows of inputs are as long as the task, since memory then gives the most; their potentials
    // stay in the second-level cache.
    let (plainly, traced) = (alone && !flows, !part.trace.is_empty());
    let long = plainly && (!levels.each || levels.repeats && rows.first.is_multiple_of(BLOCK) && rows.row == rows.n);
    let past = long && !traced && !levels.each && !rows.pack && rows.n.is_multiple_of(64) && isa.has_avx512();
    let past = past && part.spikes.len() * rows.n >= PAST;
    // Where spikes go past the caches, all rows of them reach a line together.
    let lead = if past { part.spikes[0].as_ptr().align_offset(64) } else { 0 };
    let (mut at, mut byte) = (0, 0);
    while at < total {
        let most = if !long {
            BLOCK
        } else if at < lead {
            lead
        } else {
            total
        };
        let len = most.min(total - at).min(rows.row - at % rows.row);
        let out_len = if rows.pack { len.div_ceil(8) } else { len };
        levels.fill(neurons, rows.first + at, len);
        let state = &mut part.state;
        let mut memory = Rest {
            v: &mut state.v[at..at + len],
            i: state.i.get_mut(at..at + len).unwrap_or_default(),
            a: state.a.get_mut(at..at + len).unwrap_or_default(),
            left: state.left.get_mut(at..at + len).unwrap_or_default(),
        };
        if let Some(start) = &rows.start {
            take(start, rows.first + at, memory.v);
        }
        let from = |t: usize| t * rows.n + rows.first + at;
        // All steps at once; currents and traces go step by step.
        let at_once = if plainly && !traced { part.spikes.len() } else { 1 };
        for (first, spikes) in (0..).step_by(at_once).zip(part.spikes.chunks_mut(at_once)) {
            let mut x = Steps { x: &rows.x[from(first)..], stride: rows.n, steps: spikes.len() };
            if !plainly {
                // The next row lies far from this one.
                prefetch(rows.x.get(from(first + 1)..from(first + 1) + len).unwrap_or_default());
            }
            if flows {
                flow(&x.x[..len], &levels, memory.i, &mut currents);
                x.x = &currents[..len];
            }
            if alone {
                if rows.pack {
                    let out = Out { rows: spikes, from: 8 * byte, past };
                    plain::<V, Bits>(x, memory.v, &levels, out, isa);
                } else {
                    plain::<V, Bytes>(x, memory.v, &levels, Out { rows: spikes, from: at, past }, isa);
                }
            } else if rows.pack {
                staged(&x.x[..len], neurons, &mut memory, &levels, &mut scratch, &mut bytes[..len]);
                pack_bits(&bytes[..len], &mut spikes[0][byte..byte + out_len]);
            } else {
                staged(&x.x[..len], neurons, &mut memory, &levels, &mut scratch, &mut spikes[0][at..at + len]);
            }
            if let Some(trace) = part.trace.get_mut(first) {
                trace[at..at + len].copy_from_slice(memory.v);
            }
        }
        (at, byte) = (at + len, byte + out_len);
    }
}

/// The synaptic currents of a step, which are the potentials' inputs.
#[inline(always)]
fn flow<V: Voltage>(x: &[V], levels: &Levels<V>, i: &mut [f32], currents: &mut [V]) {
    let n = x.len();
    let (i, currents) = (&mut i[..n], &mut currents[..n]);
    let (alpha, gain) = (&levels.alpha[..n], &levels.gain[..n]);
    for j in 0..n {
        i[j] = alpha[j] * i[j] + gain[j] * x[j].float();
        currents[j] = V::from_float(i[j]);
    }
}

/// The parameters of a block: one of each where all neurons have them and the loops are those of
/// [`steps`], else one for each neuron.
pub(super) struct Levels<V> {
    /// Whether they differ from neuron to neuron; else the first stands for all.
    each: bool,
    /// Whether their channels repeat within each block of neurons.
    repeats: bool,
    pub leak: u8,
    pub fraction: u32,
    pub reset: u8,
    pub beta: Vec<V>,
    pub drive: Vec<V>,
    /// The least h that fires.
    pub fire: Vec<V>,
    pub threshold: Vec<V>,
    /// What a spike takes off the potential: the threshold, or nothing.
    pub lowered: Vec<V>,
    pub to: Vec<V>,
    alpha: Vec<f32>,
    gain: Vec<f32>,
    rho: Vec<f32>,
    jump: Vec<f32>,
    filled: bool,
}

pub(super) const NO_LEAK: u8 = 0;
pub(super) const KEEP: u8 = 1;
pub(super) const KEEP_AND_DRIVE: u8 = 2;
pub(super) const TOWARD: u8 = 3;
pub(super) const TOWARD_ZERO: u8 = 4;
/// Of integers: potentials are kept by halving them, or whole.
pub(super) const HALVE: u8 = 5;
/// Of integers, beside another: inputs are shifted.
pub(super) const SHIFTED: u8 = 8;

pub(super) const NO_RESET: u8 = 0;
pub(super) const SOFT: u8 = 1;
pub(super) const HARD: u8 = 2;
const SOFT_LATER: u8 = 3;
const HARD_LATER: u8 = 4;

impl<V: Voltage> Levels<V> {
    pub fn new(neurons: &Neurons<'_, V>) -> Self {
        let zero = V::default();
        let no_drive = |drive: &Each<'_, V>| matches!(drive, Each::All(x) if *x == zero);
        let leak = match &neurons.leak {
            Leak::None => NO_LEAK,
            Leak::Keep { drive, .. } if no_drive(drive) => KEEP,
            Leak::Keep { .. } => KEEP_AND_DRIVE,
            Leak::Toward { rest: Each::All(rest), .. } if rest.float().to_bits() == 0 => TOWARD_ZERO,
            Leak::Toward { .. } => TOWARD,
        };
        let reset = match neurons.reset {
            Reset::None => NO_RESET,
            Reset::Soft => SOFT,
            Reset::Hard(_) => HARD,
            Reset::SoftLater => SOFT_LATER,
            Reset::HardLater(_) => HARD_LATER,
        };
        let each = neurons.differ();
        let len = if each || !neurons.is_plain() { BLOCK } else { 1 };
        let (current, adapts) = (neurons.current.is_some(), neurons.adaptation.is_some());
        let values = || vec![zero; len];
        let floats = |has: bool| vec![0.0; if has { len } else { 0 }];
        Levels {
            each,
            repeats: neurons.repeat_in(BLOCK),
            leak,
            fraction: neurons.fraction,
            reset,
            beta: values(),
            drive: values(),
            fire: values(),
            threshold: values(),
            lowered: values(),
            to: values(),
            alpha: floats(current),
            gain: floats(current),
            rho: floats(adapts),
            jump: floats(adapts),
            filled: false,
        }
    }

    /// With room for one of each parameter for each neuron, whatever they are.
    pub fn for_each(neurons: &Neurons<'_, V>) -> Self {
        let mut levels = Levels::new(neurons);
        let Levels { beta, drive, fire, threshold, lowered, to, .. } = &mut levels;
        for values in [beta, drive, fire, threshold, lowered, to] {
            values.resize(BLOCK, V::default());
        }
        levels
    }

    /// The parameters of `len` neurons from `first` on.
    pub fn fill(&mut self, neurons: &Neurons<'_, V>, first: usize, len: usize) {
        if self.each {
            // Channels that a block is made of are the same in all that begin with the first.
            let same = self.repeats && first.is_multiple_of(BLOCK);
            if !(same && self.filled) {
                self.read(neurons, first, if same { BLOCK } else { len });
                self.filled = same;
            }
        } else if !self.filled {
            self.read(neurons, 0, self.fire.len());
            self.filled = true;
        }
    }

    fn read(&mut self, neurons: &Neurons<'_, V>, first: usize, len: usize) {
        take(&neurons.threshold, first, &mut self.threshold[..len]);
        for (fire, threshold) in self.fire[..len].iter_mut().zip(&self.threshold) {
            *fire = threshold.fire(neurons.strict);
        }
        if let Reset::Soft = neurons.reset {
            self.lowered[..len].copy_from_slice(&self.threshold[..len]);
        }
        match &neurons.leak {
            Leak::None => {}
            Leak::Keep { beta: a, drive: b } | Leak::Toward { rate: a, rest: b } => {
                take(a, first, &mut self.beta[..len]);
                take(b, first, &mut self.drive[..len]);
            }
        }
        if let Leak::Keep { .. } = neurons.leak {
            self.drive[..len].iter_mut().for_each(|drive| *drive = drive.drive());
        }
        if let Reset::Hard(to) | Reset::HardLater(to) = &neurons.reset {
            take(to, first, &mut self.to[..len]);
        }
        if let Some(current) = &neurons.current {
            take(&current.alpha, first, &mut self.alpha[..len]);
            take(&current.gain, first, &mut self.gain[..len]);
        }
        if let Some(adaptation) = &neurons.adaptation {
            take(&adaptation.rho, first, &mut self.rho[..len]);
            take(&adaptation.jump, first, &mut self.jump[..len]);
        }
    }
}

/// A parameter's values from neuron `first` on.
pub(super) fn take<V: Copy>(each: &Each<'_, V>, first: usize, out: &mut [V]) {
    match *each {
        Each::All(x) => out.fill(x),
        Each::Channel(x) => {
            let (before, after) = x.split_at(first % x.len());
            let mut done = 0;
            for part in [after, before] {
                let (from, len) = (done, part.len().min(out.len() - done));
                out[from..from + len].copy_from_slice(&part[..len]);
                done += len;
            }
            // Twice as many each time: channels may be few.
            while done < out.len() {
                let len = done.min(out.len() - done);
                out.copy_within(..len, done);
                done += len;
            }
        }
    }
}

/// Inputs of some steps: those of step t begin at t times the stride.
#[derive(Clone, Copy)]
pub(super) struct Steps<'a, V> {
    pub x: &'a [V],
    pub stride: usize,
    pub steps: usize,
}

impl<'a, V> Steps<'a, V> {
    /// Each step's inputs, and what lies behind them.
    fn rows(self) -> impl Iterator<Item = &'a [V]> {
        self.x.chunks(self.stride).take(self.steps)
    }
}

/// How spikes lie in memory.
pub(super) trait Spiked: Written<Self::E> {
    /// What memory is made of.
    type E: Copy + Default;
    /// Elements of this many neurons.
    fn elements(n: usize) -> usize;
    /// Neuron j's; they come in ascending order.
    fn put(out: &mut [Self::E], j: usize, fired: bool);
}

/// A byte of 0 or 1 for each neuron.
pub(super) enum Bytes {}
/// Eight neurons to a byte, the first in the lowest bit; those after the last are 0.
pub(super) enum Bits {}
/// A float of 0 or 1 for each neuron.
pub(super) enum Floats {}

macro_rules! spiked {
    ($name:ident, $e:ty, $elements:expr, $put:expr) => {
        impl Spiked for $name {
            type E = $e;
            #[inline(always)]
            fn elements(n: usize) -> usize {
                $elements(n)
            }
            #[inline(always)]
            fn put(out: &mut [$e], j: usize, fired: bool) {
                $put(out, j, fired);
            }
        }
    };
}
spiked!(Bytes, u8, |n| n, |out: &mut [u8], j: usize, fired| out[j] = u8::from(fired));
spiked!(Floats, f32, |n| n, |out: &mut [f32], j: usize, fired| out[j] = f32::from(fired));
spiked!(Bits, u8, |n: usize| n.div_ceil(8), |out: &mut [u8], j: usize, fired| {
    let before = if j % 8 == 0 { 0 } else { out[j / 8] };
    out[j / 8] = before | u8::from(fired) << (j % 8);
});

/// Nothing more is asked of them.
#[cfg(not(target_arch = "x86_64"))]
pub(super) trait Written<E> {}
#[cfg(not(target_arch = "x86_64"))]
impl<S, E> Written<E> for S {}

/// Where the spikes of some steps go: of each a row, in which the first neuron's are at `from`.
pub(super) struct Out<'o, 'a, E> {
    pub rows: &'o mut [&'a mut [E]],
    /// In neurons; of bits the first of a byte.
    pub from: usize,
    /// Bytes that are so many that they are written past the caches.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub past: bool,
}

/// Some steps of neurons that have a potential and nothing else; parameters that differ repeat after [`BLOCK`].
#[inline(always)]
pub(super) fn plain<V: Voltage, S: Spiked>(
    x: Steps<'_, V>,
    v: &mut [V],
    levels: &Levels<V>,
    out: Out<'_, '_, S::E>,
    isa: Isa,
) {
    // These are compiled many times: so what lowers a potential by nothing stands for no reset, and where parameters
    // differ a drive of 0 for none and inputs shifted by 0 for such that are not. A hard reset of one threshold is
    // compiled for one that is reached; beyond it there are no spikes, and no reset.
    let reset = if levels.each || levels.fire[0].is_reached() { levels.reset } else { SOFT };
    let halves = levels.beta[0].halvings().is_some();
    macro_rules! by_reset {
        ($leak:expr, $each:literal) => {
            match reset {
                HARD => steps::<V, S, { $leak }, HARD, $each>(x, v, levels, out, isa),
                _ => steps::<V, S, { $leak }, SOFT, $each>(x, v, levels, out, isa),
            }
        };
    }
    match (levels.each, V::FLOAT, levels.leak, levels.fraction) {
        (true, true, NO_LEAK, _) => by_reset!(NO_LEAK, true),
        (true, true, KEEP | KEEP_AND_DRIVE, _) => by_reset!(KEEP_AND_DRIVE, true),
        (true, true, TOWARD_ZERO, _) => by_reset!(TOWARD_ZERO, true),
        (true, true, ..) => by_reset!(TOWARD, true),
        (true, false, NO_LEAK, _) => by_reset!(NO_LEAK | SHIFTED, true),
        (true, false, ..) => by_reset!(KEEP_AND_DRIVE | SHIFTED, true),
        (false, false, KEEP, 0) if halves => by_reset!(HALVE, false),
        (false, false, KEEP, _) if halves => by_reset!(HALVE | SHIFTED, false),
        (false, _, NO_LEAK, 0) => by_reset!(NO_LEAK, false),
        (false, _, KEEP, 0) => by_reset!(KEEP, false),
        (false, _, KEEP_AND_DRIVE, 0) => by_reset!(KEEP_AND_DRIVE, false),
        (false, true, TOWARD_ZERO, _) => by_reset!(TOWARD_ZERO, false),
        (false, true, ..) => by_reset!(TOWARD, false),
        (false, false, NO_LEAK, _) => by_reset!(NO_LEAK | SHIFTED, false),
        (false, false, KEEP, _) => by_reset!(KEEP | SHIFTED, false),
        (false, false, ..) => by_reset!(KEEP_AND_DRIVE | SHIFTED, false),
    }
}

/// All of a step in one loop, each case of it with a loop of its own.
#[inline(always)]
fn steps<V: Voltage, S: Spiked, const LEAK: u8, const RESET: u8, const EACH: bool>(
    x: Steps<'_, V>,
    v: &mut [V],
    levels: &Levels<V>,
    out: Out<'_, '_, S::E>,
    isa: Isa,
) {
    // There is no such case, and none is compiled.
    if V::FLOAT && LEAK >= HALVE || !V::FLOAT && matches!(LEAK, TOWARD | TOWARD_ZERO) {
        unreachable!("leak {LEAK}");
    }
    #[cfg(target_arch = "x86_64")]
    {
        if isa.has_avx512() {
            // SAFETY: an Isa exists only where the CPU has it.
            return unsafe { super::avx512::fused::<V, S, LEAK, RESET, EACH>(x, v, levels, out) };
        }
        if isa.has_avx2() {
            // SAFETY: an Isa exists only where the CPU has it.
            return unsafe { super::avx2::fused::<V, S, LEAK, RESET, EACH>(x, v, levels, out) };
        }
    }
    let _ = isa;
    portable::<V, S, LEAK, RESET, EACH>(x, v, levels, out);
}

/// The same by loops of which the compiler makes what vectors it can.
#[inline(never)]
fn portable<V: Voltage, S: Spiked, const LEAK: u8, const RESET: u8, const EACH: bool>(
    x: Steps<'_, V>,
    v: &mut [V],
    levels: &Levels<V>,
    out: Out<'_, '_, S::E>,
) {
    let at = |levels: &[V], j: usize| if EACH { levels[j] } else { levels[0] };
    for (start, v) in (0..).step_by(BLOCK).zip(v.chunks_mut(BLOCK)) {
        let n = v.len();
        for (x, row) in x.rows().zip(out.rows.iter_mut()) {
            let (x, spikes) = (&x[start..start + n], &mut row[S::elements(out.from + start)..][..S::elements(n)]);
            for j in 0..n {
                let (x, beta, drive) = (x[j].shifted(levels.fraction), at(&levels.beta, j), at(&levels.drive, j));
                let h = charge::<V, LEAK>(v[j], x, beta, drive);
                let fired = h >= at(&levels.fire, j);
                v[j] = match RESET {
                    HARD if fired => at(&levels.to, j),
                    SOFT if fired => h.less(at(&levels.lowered, j)),
                    _ => h,
                };
                S::put(spikes, j, fired);
            }
        }
    }
}

/// The potential before the comparison.
#[inline(always)]
fn charge<V: Voltage, const LEAK: u8>(v: V, x: V, beta: V, drive: V) -> V {
    match LEAK & !SHIFTED {
        NO_LEAK => v.charged(x),
        KEEP | HALVE => v.kept(beta).charged(x),
        KEEP_AND_DRIVE if V::FLOAT => v.kept(beta).plus(drive).charged(x),
        KEEP_AND_DRIVE => v.kept(beta).charged(x.plus(drive)),
        TOWARD_ZERO => V::from_float(v.float() + (x.float() - v.float()) * beta.float()),
        _ => V::from_float(v.float() + (x.float() - (v.float() - drive.float())) * beta.float()),
    }
}

/// The state of a block whose neurons have more than a potential.
struct Rest<'a, V> {
    v: &'a mut [V],
    i: &'a mut [f32],
    a: &'a mut [f32],
    left: &'a mut [u16],
}

/// What a step of such neurons passes from one loop to the next.
struct Scratch<V> {
    h: Vec<V>,
    level: Vec<V>,
}

impl<V: Voltage> Scratch<V> {
    fn new(n: usize) -> Self {
        Scratch { h: vec![V::default(); n], level: vec![V::default(); n] }
    }
}

/// One step of any neurons: a loop for each thing that they may have.
#[inline(always)]
fn staged<V: Voltage>(
    x: &[V],
    neurons: &Neurons<'_, V>,
    part: &mut Rest<'_, V>,
    levels: &Levels<V>,
    scratch: &mut Scratch<V>,
    spikes: &mut [u8],
) {
    let n = x.len();
    let (v, spikes) = (&mut part.v[..n], &mut spikes[..n]);
    let (h, level) = (&mut scratch.h[..n], &mut scratch.level[..n]);
    let (threshold, to) = (&levels.threshold[..n], &levels.to[..n]);
    let fires = |h: V, level: V| if neurons.strict { h > level } else { h >= level };

    match levels.leak {
        NO_LEAK => charge_all::<V, NO_LEAK>(v, x, levels, h),
        KEEP => charge_all::<V, KEEP>(v, x, levels, h),
        KEEP_AND_DRIVE => charge_all::<V, KEEP_AND_DRIVE>(v, x, levels, h),
        TOWARD_ZERO => charge_all::<V, TOWARD_ZERO>(v, x, levels, h),
        _ => charge_all::<V, TOWARD>(v, x, levels, h),
    }
    match levels.reset {
        SOFT_LATER => {
            for j in 0..n {
                h[j] = select(fires(v[j], threshold[j]), h[j].less(threshold[j]), h[j]);
            }
        }
        HARD_LATER => {
            for j in 0..n {
                h[j] = select(fires(v[j], threshold[j]), to[j], h[j]);
            }
        }
        _ => {}
    }
    level.copy_from_slice(threshold);
    if neurons.adaptation.is_some() {
        let (a, rho) = (&mut part.a[..n], &levels.rho[..n]);
        for j in 0..n {
            a[j] *= rho[j];
            level[j] = V::from_float(threshold[j].float() + a[j]);
        }
    }
    for j in 0..n {
        spikes[j] = u8::from(fires(h[j], level[j]));
    }
    if neurons.refractory > 0 {
        let left = &mut part.left[..n];
        for j in 0..n {
            let waits = left[j] > 0;
            spikes[j] &= u8::from(!waits);
            // What is held is not reset below, for it does not fire.
            h[j] = select(waits, v[j], h[j]);
            left[j] = if spikes[j] != 0 { neurons.refractory } else { left[j].saturating_sub(1) };
        }
    }
    match levels.reset {
        HARD => {
            for j in 0..n {
                v[j] = select(spikes[j] != 0, to[j], h[j]);
            }
        }
        SOFT => {
            for j in 0..n {
                v[j] = select(spikes[j] != 0, h[j].less(level[j]), h[j]);
            }
        }
        _ => v.copy_from_slice(h),
    }
    if neurons.adaptation.is_some() {
        let (a, jump) = (&mut part.a[..n], &levels.jump[..n]);
        for j in 0..n {
            a[j] = select(spikes[j] != 0, a[j] + jump[j], a[j]);
        }
    }
}

/// The potentials of such neurons before the comparison; `v` becomes those after it.
#[inline(always)]
pub(super) fn charge_plain<V: Voltage>(x: &[V], v: &mut [V], levels: &Levels<V>, h: &mut [V]) {
    match levels.leak {
        NO_LEAK => charge_all::<V, NO_LEAK>(v, x, levels, h),
        KEEP => charge_all::<V, KEEP>(v, x, levels, h),
        KEEP_AND_DRIVE => charge_all::<V, KEEP_AND_DRIVE>(v, x, levels, h),
        TOWARD_ZERO => charge_all::<V, TOWARD_ZERO>(v, x, levels, h),
        _ => charge_all::<V, TOWARD>(v, x, levels, h),
    }
    let n = x.len();
    let (v, h, fire) = (&mut v[..n], &h[..n], &levels.fire[..n]);
    let (to, threshold) = (&levels.to[..n], &levels.threshold[..n]);
    match levels.reset {
        HARD => {
            for j in 0..n {
                v[j] = select(h[j] >= fire[j], to[j], h[j]);
            }
        }
        SOFT => {
            for j in 0..n {
                v[j] = select(h[j] >= fire[j], h[j].less(threshold[j]), h[j]);
            }
        }
        _ => v.copy_from_slice(h),
    }
}

#[inline(always)]
fn charge_all<V: Voltage, const LEAK: u8>(v: &[V], input: &[V], levels: &Levels<V>, h: &mut [V]) {
    let n = input.len();
    let (v, h, beta, drive) = (&v[..n], &mut h[..n], &levels.beta[..n], &levels.drive[..n]);
    for j in 0..n {
        h[j] = charge::<V, LEAK>(v[j], input[j].shifted(levels.fraction), beta[j], drive[j]);
    }
}

/// Bytes of 0 or 1 to bits, the first in the lowest.
#[inline(always)]
fn pack_bits(bytes: &[u8], out: &mut [u8]) {
    let (eights, rest) = bytes.as_chunks::<8>();
    for (bytes, out) in eights.iter().zip(out.iter_mut()) {
        // Byte k's bit goes to bit 56 + k, and nothing carries.
        *out = (u64::from_le_bytes(*bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
    if let (Some(last), false) = (out.last_mut(), rest.is_empty()) {
        *last = rest.iter().rev().fold(0, |bits, byte| bits << 1 | byte);
    }
}
