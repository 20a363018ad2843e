//! The definition: one neuron, one step.

use super::{Leak, Neurons, Reset};

/// What vectors of it there are.
#[cfg(target_arch = "x86_64")]
pub trait Lane: super::x86::Vector<crate::lanes::Avx2> + super::x86::Vector<crate::lanes::Avx512> {}
#[cfg(not(target_arch = "x86_64"))]
pub trait Lane {}
impl Lane for f32 {}
impl Lane for i32 {}

/// The number that a potential is: each operation is one of IEEE float32, or of
/// integers that stay within ±(2^23 - 1).
///
/// There sums saturate, and float32 holds every potential and sum exactly, so
/// that a network can be trained in floats on the arithmetic of its integers.
/// Inputs beyond 2^30 either way, once shifted, wrap.
pub trait Voltage: Lane + Copy + Default + PartialOrd + Send + Sync + std::fmt::Debug + 'static {
    /// Whether it is float32.
    const FLOAT: bool;
    /// `beta * self`, beta of integers being in 256ths and the product rounded half up.
    fn kept(self, beta: Self) -> Self;
    /// Where this beta of integers is 256 / 2^n, n of 0 to 8: n.
    fn halvings(self) -> Option<u32>;
    /// An input in the potential's units: `fraction` bits further left.
    fn shifted(self, fraction: u32) -> Self;
    /// The sum of two inputs.
    fn plus(self, other: Self) -> Self;
    /// The potential with an input added.
    fn charged(self, x: Self) -> Self;
    /// The difference.
    fn less(self, other: Self) -> Self;
    /// What h has to be at least to fire at this threshold, or above it if `strict`.
    fn fire(self, strict: bool) -> Self;
    /// Whether there are potentials of at least this.
    fn is_reached(self) -> bool;
    /// Whether it is a potential.
    fn is_potential(self) -> bool;
    /// A drive that adds nothing where it is 0, not even to the sign of a 0.
    fn drive(self) -> Self;
    /// As float32, which floats are already; what floats alone have is not asked of integers.
    fn float(self) -> f32;
    /// Back from it.
    fn from_float(x: f32) -> Self;
    /// Floats as potentials: as they are, or in `room`, which is as long.
    fn of_floats<'a>(x: &'a [f32], room: &'a mut [Self]) -> &'a [Self];
}

impl Voltage for f32 {
    const FLOAT: bool = true;
    #[inline(always)]
    fn kept(self, beta: f32) -> f32 {
        beta * self
    }
    #[inline(always)]
    fn halvings(self) -> Option<u32> {
        None
    }
    #[inline(always)]
    fn shifted(self, _: u32) -> f32 {
        self
    }
    #[inline(always)]
    fn plus(self, other: f32) -> f32 {
        self + other
    }
    #[inline(always)]
    fn charged(self, x: f32) -> f32 {
        self + x
    }
    #[inline(always)]
    fn less(self, other: f32) -> f32 {
        self - other
    }
    #[inline(always)]
    fn fire(self, strict: bool) -> f32 {
        match strict {
            false => self,
            true if self == f32::INFINITY => f32::NAN,
            true => self.next_up(),
        }
    }
    #[inline(always)]
    fn is_reached(self) -> bool {
        true
    }
    #[inline(always)]
    fn is_potential(self) -> bool {
        true
    }
    #[inline(always)]
    fn drive(self) -> f32 {
        if self == 0.0 { -0.0 } else { self }
    }
    #[inline(always)]
    fn float(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_float(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn of_floats<'a>(x: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        x
    }
}

/// The greatest integer potential.
pub(super) const MOST: i32 = (1 << 23) - 1;

impl Voltage for i32 {
    const FLOAT: bool = false;
    #[inline(always)]
    fn kept(self, beta: i32) -> i32 {
        self.wrapping_mul(beta).wrapping_add(128) >> 8
    }
    #[inline(always)]
    fn halvings(self) -> Option<u32> {
        (self.count_ones() == 1).then(|| 8u32.checked_sub(self.trailing_zeros())).flatten()
    }
    #[inline(always)]
    fn shifted(self, fraction: u32) -> i32 {
        self << fraction
    }
    #[inline(always)]
    fn plus(self, other: i32) -> i32 {
        self.wrapping_add(other)
    }
    #[inline(always)]
    fn charged(self, x: i32) -> i32 {
        self.wrapping_add(x).clamp(-MOST, MOST)
    }
    #[inline(always)]
    fn less(self, other: i32) -> i32 {
        self.wrapping_sub(other)
    }
    #[inline(always)]
    fn fire(self, strict: bool) -> i32 {
        // No potential is less than the least.
        if strict { self.saturating_add(1).max(-MOST) } else { self.max(-MOST) }
    }
    #[inline(always)]
    fn is_reached(self) -> bool {
        self <= MOST
    }
    #[inline(always)]
    fn is_potential(self) -> bool {
        (-MOST..=MOST).contains(&self)
    }
    #[inline(always)]
    fn drive(self) -> i32 {
        self
    }
    fn float(self) -> f32 {
        self as f32
    }
    fn from_float(x: f32) -> i32 {
        x as i32
    }
    #[inline(always)]
    fn of_floats<'a>(x: &'a [f32], room: &'a mut [i32]) -> &'a [i32] {
        for (room, &x) in room.iter_mut().zip(x) {
            *room = x as i32;
        }
        room
    }
}

/// One neuron's state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct One<V> {
    pub v: V,
    pub i: f32,
    pub a: f32,
    pub left: u16,
}

/// Takes neuron `j` one step on with the input `x`; whether it fires.
pub(super) fn step<V: Voltage>(neurons: &Neurons<'_, V>, j: usize, one: &mut One<V>, x: V) -> bool {
    let mut input = x.shifted(neurons.fraction);
    if let Some(current) = neurons.current {
        one.i = current.alpha.at(j) * one.i + current.gain.at(j) * x.float();
        input = V::from_float(one.i);
    }
    let threshold = neurons.threshold.at(j);
    let fires = |h: V, level: V| if neurons.strict { h > level } else { h >= level };

    let before = one.v;
    let mut h = match neurons.leak {
        Leak::None => before.charged(input),
        Leak::Keep { beta, drive } if V::FLOAT => before.kept(beta.at(j)).plus(drive.at(j).drive()).charged(input),
        Leak::Keep { beta, drive } => before.kept(beta.at(j)).charged(input.plus(drive.at(j))),
        Leak::Toward { rate, rest } => {
            let (v, rate, rest) = (before.float(), rate.at(j).float(), rest.at(j).float());
            V::from_float(v + (input.float() - (v - rest)) * rate)
        }
    };
    match neurons.reset {
        Reset::SoftLater if fires(before, threshold) => h = h.less(threshold),
        Reset::HardLater(to) if fires(before, threshold) => h = to.at(j),
        _ => {}
    }

    let mut level = threshold;
    if let Some(adaptation) = neurons.adaptation {
        one.a *= adaptation.rho.at(j);
        level = V::from_float(threshold.float() + one.a);
    }
    if one.left > 0 {
        one.left -= 1;
        return false;
    }
    let fired = fires(h, level);
    one.v = match neurons.reset {
        Reset::Hard(to) if fired => to.at(j),
        Reset::Soft if fired => h.less(level),
        _ => h,
    };
    if fired {
        one.left = neurons.refractory;
        if let Some(adaptation) = neurons.adaptation {
            one.a += adaptation.jump.at(j);
        }
    }
    fired
}

impl<V: Copy> super::Each<'_, V> {
    /// Of neuron j.
    #[inline(always)]
    pub(super) fn at(&self, j: usize) -> V {
        match *self {
            super::Each::All(x) => x,
            super::Each::Channel(x) => x[j % x.len()],
        }
    }
}
