//! Rows of neurons at once: [`scalar::step`], with the loops turned inside out so
//! that the compiler makes vectors of them. No operation is contracted, so the
//! bits are the definition's.

use std::hint::select_unpredictable as select;

use super::scalar::{self, One, Voltage};
use super::{BLOCK, Each, Leak, Neurons, Reset, State};
use crate::Isa;
use crate::lanes::{Lanes, on_isa, prefetch};

/// Steps that plain neurons take together: as many rows of inputs are read side by side as memory
/// gives the most from, and potentials stay in registers meanwhile.
pub(super) const STEPS: usize = 4;
/// Neurons with the same parameters that go through all steps together: rows of inputs are then long enough
/// for the CPU to fetch them ahead, and potentials still in the first-level cache.
const SPAN: usize = 4 * BLOCK;

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

/// A block of neurons after the other, each through all steps.
#[inline(always)]
fn blocks<L: Lanes, V: Voltage>(_: L, rows: &Rows<'_, V>, neurons: &Neurons<'_, V>, mut part: Part<'_, V>, isa: Isa) {
    let total = part.state.v.len();
    let mut levels = Levels::new(neurons);
    let (alone, flows) = (neurons.has_potential_alone(), neurons.current.is_some());
    let mut currents = vec![V::default(); if flows { BLOCK } else { 0 }];
    let mut bytes = vec![0u8; if alone { 0 } else { BLOCK }];
    let mut scratch = Scratch::new(if alone { 0 } else { BLOCK });
    let most = if alone && !flows && !levels.each { SPAN } else { BLOCK };
    // Currents and traces go step by step.
    let side_by_side = if alone && !flows && part.trace.is_empty() { STEPS } else { 1 };
    let (mut at, mut byte) = (0, 0);
    while at < total {
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
        for (first, spikes) in (0..).step_by(side_by_side).zip(part.spikes.chunks_mut(side_by_side)) {
            let count = spikes.len();
            let mut x = [&[][..]; STEPS];
            for (x, t) in x[..count].iter_mut().zip(first..) {
                *x = &rows.x[from(t)..][..len];
            }
            let mut outs: [&mut [u8]; STEPS] = Default::default();
            for (out, spikes) in outs.iter_mut().zip(spikes) {
                *out = &mut spikes[byte..byte + out_len];
            }
            if !alone || flows {
                // The next row lies far from this one.
                prefetch(rows.x.get(from(first + 1)..from(first + 1) + len).unwrap_or_default());
            }
            if flows {
                flow(x[0], &levels, memory.i, &mut currents);
                x[0] = &currents[..len];
            }
            let outs = &mut outs[..count];
            match (alone, rows.pack) {
                (true, false) => plain::<V, Bytes>(&x[..count], memory.v, &levels, outs, isa),
                (true, true) => plain::<V, Bits>(&x[..count], memory.v, &levels, outs, isa),
                (false, false) => staged(x[0], neurons, &mut memory, &levels, &mut scratch, outs[0]),
                (false, true) => {
                    staged(x[0], neurons, &mut memory, &levels, &mut scratch, &mut bytes[..len]);
                    pack_bits(&bytes[..len], outs[0]);
                }
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
/// Of integers, beside one of the first three: inputs are shifted.
pub(super) const SHIFTED: u8 = 8;

pub(super) const NO_RESET: u8 = 0;
pub(super) const SOFT: u8 = 1;
pub(super) const HARD: u8 = 2;
const SOFT_LATER: u8 = 3;
const HARD_LATER: u8 = 4;

impl<V: Voltage> Levels<V> {
    pub fn new(neurons: &Neurons<'_, V>) -> Self {
        let zero = V::default();
        // A drive of 0 changes no sum but the sign of 0, which nothing shows.
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
        for values in [&mut levels.beta, &mut levels.drive, &mut levels.fire, &mut levels.threshold, &mut levels.to] {
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
            *fire = if neurons.strict { threshold.above() } else { *threshold };
        }
        match &neurons.leak {
            Leak::None => {}
            Leak::Keep { beta: a, drive: b } | Leak::Toward { rate: a, rest: b } => {
                take(a, first, &mut self.beta[..len]);
                take(b, first, &mut self.drive[..len]);
            }
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
            let mut from = first % x.len();
            let mut out = out;
            while !out.is_empty() {
                let (head, tail) = out.split_at_mut(out.len().min(x.len() - from));
                head.copy_from_slice(&x[from..from + head.len()]);
                (out, from) = (tail, 0);
            }
        }
    }
}

/// How spikes lie in memory.
pub(super) trait Spiked {
    /// What memory is made of.
    type E: Copy + Default;
    /// Elements of this many neurons.
    fn elements(n: usize) -> usize;
    /// Neuron j's; they come in ascending order.
    fn put(out: &mut [Self::E], j: usize, fired: bool);
    /// Writes those of 32 neurons.
    ///
    /// # Safety
    /// The CPU has AVX2; `elements(32)` elements from `out` on are writable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn write(fired: [std::arch::x86_64::__m256i; 4], out: *mut Self::E);
}

/// A byte of 0 or 1 for each neuron.
pub(super) enum Bytes {}
/// Eight neurons to a byte, the first in the lowest bit; those after the last are 0.
pub(super) enum Bits {}
/// A float of 0 or 1 for each neuron.
pub(super) enum Floats {}

macro_rules! spiked {
    ($name:ident, $e:ty, $write:ident, $elements:expr, $put:expr) => {
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
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn write(fired: [std::arch::x86_64::__m256i; 4], out: *mut $e) {
                // SAFETY: the caller's promise.
                unsafe { super::avx2::$write(fired, out) }
            }
        }
    };
}
spiked!(Bytes, u8, write_bytes, |n| n, |out: &mut [u8], j: usize, fired| out[j] = u8::from(fired));
spiked!(Floats, f32, write_floats, |n| n, |out: &mut [f32], j: usize, fired| out[j] = f32::from(fired));
spiked!(Bits, u8, write_bits, |n: usize| n.div_ceil(8), |out: &mut [u8], j: usize, fired| {
    let before = if j % 8 == 0 { 0 } else { out[j / 8] };
    out[j / 8] = before | u8::from(fired) << (j % 8);
});

/// Some steps of neurons that have a potential and nothing else.
#[inline(always)]
pub(super) fn plain<V: Voltage, S: Spiked>(
    x: &[&[V]],
    v: &mut [V],
    levels: &Levels<V>,
    spikes: &mut [&mut [S::E]],
    isa: Isa,
) {
    macro_rules! by_reset {
        ($leak:ident, $each:literal) => {
            match levels.reset {
                HARD => steps::<V, S, $leak, HARD, $each>(x, v, levels, spikes, isa),
                SOFT => steps::<V, S, $leak, SOFT, $each>(x, v, levels, spikes, isa),
                _ => steps::<V, S, $leak, NO_RESET, $each>(x, v, levels, spikes, isa),
            }
        };
    }
    const NO_LEAK_SHIFTED: u8 = NO_LEAK | SHIFTED;
    const KEEP_SHIFTED: u8 = KEEP | SHIFTED;
    const DRIVE_SHIFTED: u8 = KEEP_AND_DRIVE | SHIFTED;
    macro_rules! by_leak {
        ($each:literal) => {
            if V::FLOAT {
                match levels.leak {
                    NO_LEAK => by_reset!(NO_LEAK, $each),
                    KEEP => by_reset!(KEEP, $each),
                    KEEP_AND_DRIVE => by_reset!(KEEP_AND_DRIVE, $each),
                    TOWARD_ZERO => by_reset!(TOWARD_ZERO, $each),
                    _ => by_reset!(TOWARD, $each),
                }
            } else {
                match (levels.leak, levels.fraction > 0) {
                    (NO_LEAK, false) => by_reset!(NO_LEAK, $each),
                    (KEEP, false) => by_reset!(KEEP, $each),
                    (_, false) => by_reset!(KEEP_AND_DRIVE, $each),
                    (NO_LEAK, true) => by_reset!(NO_LEAK_SHIFTED, $each),
                    (KEEP, true) => by_reset!(KEEP_SHIFTED, $each),
                    (_, true) => by_reset!(DRIVE_SHIFTED, $each),
                }
            }
        };
    }
    if levels.each { by_leak!(true) } else { by_leak!(false) }
}

/// All of a step in one loop, each case of it with a loop of its own.
#[inline(always)]
fn steps<V: Voltage, S: Spiked, const LEAK: u8, const RESET: u8, const EACH: bool>(
    x: &[&[V]],
    v: &mut [V],
    levels: &Levels<V>,
    spikes: &mut [&mut [S::E]],
    isa: Isa,
) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: an Isa exists only where the CPU has it.
        return unsafe { super::avx2::fused::<V, S, LEAK, RESET, EACH>(x, v, levels, spikes) };
    }
    let _ = isa;
    let at = |levels: &[V], j: usize| if EACH { levels[j] } else { levels[0] };
    for (x, spikes) in x.iter().zip(spikes) {
        let n = x.len();
        let v = &mut v[..n];
        for j in 0..n {
            let h = charge::<V, LEAK>(v[j], x[j].shifted(levels.fraction), at(&levels.beta, j), at(&levels.drive, j));
            let fired = h >= at(&levels.fire, j);
            v[j] = match RESET {
                HARD if fired => at(&levels.to, j),
                SOFT if fired => h.less(at(&levels.threshold, j)),
                _ => h,
            };
            S::put(spikes, j, fired);
        }
    }
}

/// The potential before the comparison.
#[inline(always)]
fn charge<V: Voltage, const LEAK: u8>(v: V, x: V, beta: V, drive: V) -> V {
    match LEAK & !SHIFTED {
        NO_LEAK => v.charged(x),
        KEEP => v.kept(beta).charged(x),
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
