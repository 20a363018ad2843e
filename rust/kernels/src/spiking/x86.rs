//! Steps of plain neurons in vectors: [`super::rows::plain`], written once over what [`super::avx2`] and
//! [`super::avx512`] have.

use super::BLOCK;
use super::rows::{
    Bits, Bytes, Floats, HARD, KEEP, KEEP_AND_DRIVE, Levels, NO_LEAK, Out, STEPS, Spiked, Steps, TOWARD_ZERO,
};
use super::scalar::Voltage;
use crate::lanes::Lanes;

/// As [`STEPS`] where spikes go past the caches: whose lines do not take the place of inputs.
const STEPS_PAST: usize = 8;

/// An instruction set's token, which proves that the CPU has it, and what it does with lanes that fired. Where there
/// are four vectors of those, they come one by one: what takes an array of masks takes it from memory.
pub trait Firing: Copy {
    /// Lanes of a vector.
    const N: usize;
    /// Its registers hold the parameters of four vectors of neurons that differ.
    const HOLDS: bool;
    /// Which lanes of a vector fired.
    type Fired: Copy;
    /// A bit for each lane of four vectors.
    ///
    /// # Safety
    /// `out` is writable for them.
    unsafe fn bits(self, a: Self::Fired, b: Self::Fired, c: Self::Fired, d: Self::Fired, out: *mut u8);
    /// A byte of 0 or 1 for each; if `past`, past the caches where that can be, and [`Firing::settle`] comes after.
    ///
    /// # Safety
    /// `out` is writable for them.
    unsafe fn bytes(self, a: Self::Fired, b: Self::Fired, c: Self::Fired, d: Self::Fired, out: *mut u8, past: bool);
    /// A float of 0 or 1 for each.
    ///
    /// # Safety
    /// `out` is writable for them.
    unsafe fn floats(self, a: Self::Fired, b: Self::Fired, c: Self::Fired, d: Self::Fired, out: *mut f32);
    /// What went past the caches is there for other threads.
    fn settle(self);
    /// A bit for each of the first lanes of one vector.
    fn some_bits(self, fired: Self::Fired, len: usize, out: &mut [u8]);
    /// A byte for each, as many as there are.
    fn some_bytes(self, fired: Self::Fired, out: &mut [u8]);
    /// A float for each.
    fn some_floats(self, fired: Self::Fired, out: &mut [f32]);
}

/// Which lanes of four vectors fired.
pub(super) struct Four<L: Firing>(L::Fired, L::Fired, L::Fired, L::Fired);

/// How vectors' spikes are written to memory that is made of `E`.
pub(super) trait Written<E> {
    /// Those of four vectors; `past` as of [`Firing::bytes`].
    ///
    /// # Safety
    /// As many elements from `out` on are writable.
    unsafe fn write<L: Firing>(l: L, fired: Four<L>, out: *mut E, past: bool);
    /// Those of the first `len` lanes of one.
    fn write_some<L: Firing>(l: L, fired: L::Fired, len: usize, out: &mut [E]);
}

/// One form of spikes.
macro_rules! written {
    ($name:ty, $e:ty, $write:expr, $write_some:expr) => {
        impl Written<$e> for $name {
            #[inline(always)]
            unsafe fn write<L: Firing>(l: L, fired: Four<L>, out: *mut $e, past: bool) {
                // SAFETY: the caller's promise.
                unsafe { $write(l, fired, out, past) }
            }
            #[inline(always)]
            fn write_some<L: Firing>(l: L, fired: L::Fired, len: usize, out: &mut [$e]) {
                $write_some(l, fired, len, out);
            }
        }
    };
}
written!(
    Bytes,
    u8,
    |l: L, Four(a, b, c, d): Four<L>, out, past| l.bytes(a, b, c, d, out, past),
    |l: L, fired, _, out| l.some_bytes(fired, out)
);
written!(Floats, f32, |l: L, Four(a, b, c, d): Four<L>, out, _| l.floats(a, b, c, d, out), |l: L, fired, _, out| l
    .some_floats(fired, out));
written!(Bits, u8, |l: L, Four(a, b, c, d): Four<L>, out, _| l.bits(a, b, c, d, out), |l: L, fired, len, out| l
    .some_bits(fired, len, out));

/// Potentials as vectors of the instruction set whose token is `L`.
pub trait Vector<L: Firing>: Copy {
    /// `L::N` of them.
    type V: Copy;
    /// Eight vectors go through a step together, where registers hold them, with parameters that all neurons have;
    /// else four.
    const EIGHT: bool;
    /// # Safety
    /// `L::N` elements from `x` on are readable.
    unsafe fn load(l: L, x: *const Self) -> Self::V;
    /// # Safety
    /// `L::N` elements from `out` on are writable.
    unsafe fn store(l: L, x: Self::V, out: *mut Self);
    /// Up to `L::N` elements, and zeros behind them.
    fn load_some(l: L, x: &[Self]) -> Self::V;
    /// As many as `out` has, up to `L::N`.
    fn store_some(l: L, x: Self::V, out: &mut [Self]);
    /// The same in every lane.
    fn splat(l: L, x: Self) -> Self::V;
    /// The potential before the comparison. Integers are shifted by `shifts` where the leak says so, and `held` to the
    /// greatest potential or not.
    fn charge<const LEAK: u8>(
        l: L,
        v: Self::V,
        x: Self::V,
        beta: Self::V,
        drive: Self::V,
        shifts: Shifts,
        held: bool,
    ) -> Self::V;
    /// Where h is at least `fire`.
    fn fires(l: L, h: Self::V, fire: Self::V) -> L::Fired;
    /// `to` where fired, else h.
    fn select(l: L, fired: L::Fired, to: Self::V, h: Self::V) -> Self::V;
    /// h less the threshold where fired.
    fn reduced(l: L, fired: L::Fired, threshold: Self::V, h: Self::V) -> Self::V;
}

/// The float potential before the comparison.
#[inline(always)]
pub(super) fn charge<L: Lanes, const LEAK: u8>(l: L, v: L::F, x: L::F, beta: L::F, drive: L::F) -> L::F {
    match LEAK {
        NO_LEAK => l.add(v, x),
        KEEP => l.add(l.mul(beta, v), x),
        KEEP_AND_DRIVE => l.add(l.add(l.mul(beta, v), drive), x),
        TOWARD_ZERO => l.add(v, l.mul(l.sub(x, v), beta)),
        _ => l.add(v, l.mul(l.sub(x, l.sub(v, drive)), beta)),
    }
}

/// A vector of potentials.
type Of<V, L> = <V as Vector<L>>::V;

/// Methods of [`Vector`] whose bodies are intrinsics of the token's instruction set.
macro_rules! vectors {
    ($token:ty: $($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name(_: $token, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the token proves the instruction set; what is read or written lies in a slice that has as many.
            unsafe { $body }
        }
    )*};
}
pub(super) use vectors;

/// [`super::rows::plain`].
#[inline(always)]
pub(super) fn fused<L: Firing, V: Voltage + Vector<L>, S: Spiked, const LEAK: u8, const RESET: u8, const EACH: bool>(
    l: L,
    x: Steps<'_, V>,
    v: &mut [V],
    levels: &Levels<V>,
    out: Out<'_, '_, S::E>,
) {
    let Out { rows, from, past } = out;
    let together = if past { STEPS_PAST } else { STEPS };
    let params = Params::new::<EACH>(l, levels);
    let len = v.len();
    let (four, eight) = (4 * L::N, 8 * L::N);
    for first in (0..x.steps).step_by(together) {
        let count = together.min(x.steps - first);
        let mut steps = [Step { x: std::ptr::null(), out: std::ptr::null_mut() }; STEPS_PAST];
        for (t, step) in (first..).zip(&mut steps[..count]) {
            step.x = x.x[t * x.stride..][..len].as_ptr();
            step.out = rows[t][S::elements(from)..][..S::elements(len)].as_mut_ptr();
        }
        let mut at = 0;
        while len - at >= four {
            let by_eight = <V as Vector<L>>::EIGHT && !EACH && len - at >= eight;
            let group = if by_eight { eight } else { four };
            let v = v[at..at + group].as_mut_ptr();
            // SAFETY: `group` elements from `at` on lie within v and each step's inputs, and S::elements(group) from
            // there on within its spikes; parameters have a whole block if EACH, of which a group's are a part.
            unsafe {
                if by_eight {
                    groups::<L, V, S, LEAK, RESET, EACH, true>(l, &steps[..count], at, v, &params, past);
                } else {
                    groups::<L, V, S, LEAK, RESET, EACH, false>(l, &steps[..count], at, v, &params, past);
                }
            }
            at += group;
        }
        for at in (at..len).step_by(L::N) {
            let v = &mut v[at..len.min(at + L::N)];
            // SAFETY: parameters have a whole block if EACH.
            let levels = unsafe { params.levels::<EACH>(l, at % BLOCK) };
            let mut potential = V::load_some(l, v);
            for (t, row) in (first..).zip(&mut rows[first..first + count]) {
                let x = V::load_some(l, &x.x[t * x.stride + at..][..v.len()]);
                let fired = step::<L, V, LEAK, RESET, EACH>(l, &mut potential, x, levels, params.shifts);
                let from = S::elements(from + at);
                S::write_some(l, fired, v.len(), &mut row[from..from + S::elements(v.len())]);
            }
            V::store_some(l, potential, v);
        }
    }
    if past {
        l.settle();
    }
}

/// Where a step's inputs and spikes begin.
struct Step<V, E> {
    x: *const V,
    out: *mut E,
}
impl<V, E> Clone for Step<V, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<V, E> Copy for Step<V, E> {}

/// The parameters where no store can change them, as far as the compiler knows.
struct Params<L: Firing, V: Vector<L>> {
    /// What all neurons have.
    all: [V::V; 5],
    /// Where each neuron's are.
    each: [*const V; 5],
    shifts: Shifts,
}

/// How far integers are shifted: inputs to the left, and to the right the potentials that are halved.
#[derive(Clone, Copy)]
pub struct Shifts {
    pub input: u32,
    pub kept: u32,
}

/// Their places.
const BETA: usize = 0;
const DRIVE: usize = 1;
const FIRE: usize = 2;
const THRESHOLD: usize = 3;
const TO: usize = 4;

impl<L: Firing, V: Voltage + Vector<L>> Params<L, V> {
    #[inline(always)]
    fn new<const EACH: bool>(l: L, levels: &Levels<V>) -> Self {
        const { assert!(BLOCK.is_multiple_of(8 * L::N)) };
        let lists = [&levels.beta, &levels.drive, &levels.fire, &levels.lowered, &levels.to];
        assert!(lists.iter().all(|x| x.len() >= if EACH { BLOCK } else { 1 }));
        // No closure: the intrinsics would not be inlined in it.
        let [beta, drive, fire, threshold, to] = lists.each_ref().map(|x| x[0]);
        let all = [V::splat(l, beta), V::splat(l, drive), V::splat(l, fire), V::splat(l, threshold), V::splat(l, to)];
        let shifts = Shifts { input: levels.fraction, kept: beta.halvings().unwrap_or(0) };
        Params { all, each: lists.map(|x| x.as_ptr()), shifts }
    }

    /// Those of the neurons from `at` on.
    ///
    /// # Safety
    /// If EACH, `L::N` parameters from `at` on are readable.
    #[inline(always)]
    unsafe fn levels<const EACH: bool>(&self, l: L, at: usize) -> [Of<V, L>; 5] {
        // SAFETY: the caller's promise.
        if EACH { self.each.map(|x| unsafe { V::load(l, x.add(at)) }) } else { self.all }
    }
}

/// One step of a vector of neurons: who fires.
#[inline(always)]
fn step<L: Firing, V: Voltage + Vector<L>, const LEAK: u8, const RESET: u8, const EACH: bool>(
    l: L,
    v: &mut Of<V, L>,
    x: Of<V, L>,
    levels: [Of<V, L>; 5],
    shifts: Shifts,
) -> L::Fired {
    // A hard reset of one threshold is compiled for one that is reached (see `plain`): what is beyond the greatest
    // potential fires, and is replaced.
    let held = RESET != HARD || EACH;
    let h = V::charge::<LEAK>(l, *v, x, levels[BETA], levels[DRIVE], shifts, held);
    let fired = V::fires(l, h, levels[FIRE]);
    *v = if RESET == HARD { V::select(l, fired, levels[TO], h) } else { V::reduced(l, fired, levels[THRESHOLD], h) };
    fired
}

/// Some steps of four or eight vectors of neurons, whose inputs and spikes are those from `from` on.
///
/// # Safety
/// As many elements from `v` and from `from` on of each step's `x` are readable, those of `v` writable, and
/// S::elements of as many writable in its spikes from there on; and, if EACH, so many parameters from `from` on,
/// modulo [`BLOCK`].
#[inline(always)]
unsafe fn groups<
    L: Firing,
    V: Voltage + Vector<L>,
    S: Spiked,
    const LEAK: u8,
    const RESET: u8,
    const EACH: bool,
    const EIGHT: bool,
>(
    l: L,
    steps: &[Step<V, S::E>],
    from: usize,
    v: *mut V,
    params: &Params<L, V>,
    past: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        // Written out: potentials in an array would go through memory. Where there are but four vectors, the others
        // are never used.
        let vector = |i: usize| V::load(l, v.add(if EIGHT { i } else { i % 4 } * L::N));
        let (mut v0, mut v1, mut v2, mut v3) = (vector(0), vector(1), vector(2), vector(3));
        let (mut v4, mut v5, mut v6, mut v7) = (vector(4), vector(5), vector(6), vector(7));
        let at = |i: usize| (from + i * L::N) % BLOCK;
        // Where registers hold them, once for all steps.
        let held = if L::HOLDS { [0, 1, 2, 3].map(|i| params.levels::<EACH>(l, at(i))) } else { [params.all; 4] };
        for one in steps {
            let (x, out) = (one.x.add(from), one.out.add(S::elements(from)));
            macro_rules! fires {
                ($v:ident, $i:literal) => {{
                    let levels = if L::HOLDS { held[$i % 4] } else { params.levels::<EACH>(l, at($i)) };
                    step::<L, V, LEAK, RESET, EACH>(l, &mut $v, V::load(l, x.add($i * L::N)), levels, params.shifts)
                }};
            }
            S::write(l, Four(fires!(v0, 0), fires!(v1, 1), fires!(v2, 2), fires!(v3, 3)), out, past);
            if EIGHT {
                let out = out.add(S::elements(4 * L::N));
                S::write(l, Four(fires!(v4, 4), fires!(v5, 5), fires!(v6, 6), fires!(v7, 7)), out, past);
            }
        }
        for (i, potential) in [v0, v1, v2, v3].into_iter().enumerate() {
            V::store(l, potential, v.add(i * L::N));
        }
        if EIGHT {
            for (i, potential) in [v4, v5, v6, v7].into_iter().enumerate() {
                V::store(l, potential, v.add((4 + i) * L::N));
            }
        }
    }
}
