//! The definition, over any vector of floats: with [`crate::lanes::Scalar`] it
//! is plain Rust.

use super::{Floats, RowScale};
use crate::lanes::{Element, Lanes};

/// The least scale: the least normal float32, so that 1 / scale is finite.
const MIN_SCALE: f32 = f32::MIN_POSITIVE;

#[inline(always)]
pub(super) fn quantize_row<L: Lanes>(l: L, x: Floats, symmetric: bool, out: &mut [u8]) -> RowScale {
    match x {
        Floats::F32(x) => row(l, x, symmetric, out),
        Floats::Bf16(x) => row(l, x, symmetric, out),
    }
}

#[inline(always)]
fn row<L: Lanes, T: Element>(l: L, x: &[T], symmetric: bool, out: &mut [u8]) -> RowScale {
    let step = 4 * L::N;
    let (whole, rest) = x.split_at(x.len() / step * step);
    // The last values, repeated to a whole step so that they change no extreme.
    let mut tail = [T::default(); 64];
    tail.fill(x.last().copied().unwrap_or_default());
    tail[..rest.len()].copy_from_slice(rest);
    let tail = &tail[..step];

    let mut seen = Seen::new(l);
    for x in whole.chunks_exact(step) {
        seen.step(l, x);
    }
    seen.step(l, tail);
    let Some((low, high)) = seen.range(l) else {
        out.fill(0);
        return RowScale { scale: f32::NAN, zero_point: 0 };
    };

    let (scale, zero_point) = range(low, high, symmetric);
    let code = Code::new(l, scale, zero_point, symmetric);
    let (out, out_rest) = out.split_at_mut(whole.len());
    for (x, out) in whole.chunks_exact(step).zip(out.chunks_exact_mut(step)) {
        code.step(l, x, out);
    }
    let mut last = [0; 64];
    code.step(l, tail, &mut last[..step]);
    out_rest.copy_from_slice(&last[..rest.len()]);
    RowScale { scale, zero_point }
}

/// The extremes of a row, and whether all of it is finite.
struct Seen<L: Lanes> {
    low: [L::F; 2],
    high: [L::F; 2],
    /// A sum of x * 0: 0 for every finite x and NaN for the rest.
    bad: L::F,
}

impl<L: Lanes> Seen<L> {
    #[inline(always)]
    fn new(l: L) -> Self {
        Seen { low: [l.splat(f32::INFINITY); 2], high: [l.splat(f32::NEG_INFINITY); 2], bad: l.splat(0.0) }
    }

    #[inline(always)]
    fn step<T: Element>(&mut self, l: L, x: &[T]) {
        for i in 0..4 {
            let v = T::load(l, &x[i * L::N..(i + 1) * L::N]);
            self.low[i % 2] = l.min(v, self.low[i % 2]);
            self.high[i % 2] = l.max(v, self.high[i % 2]);
            self.bad = l.add(self.bad, l.mul(v, l.splat(0.0)));
        }
    }

    #[inline(always)]
    fn range(self, l: L) -> Option<(f32, f32)> {
        let mut bad = [0.0; 16];
        l.store(self.bad, &mut bad[..L::N]);
        let low = -l.reduce_max(l.sub(l.splat(-0.0), l.min(self.low[0], self.low[1])));
        let high = l.reduce_max(l.max(self.high[0], self.high[1]));
        bad[..L::N].iter().all(|b| !b.is_nan()).then_some((low, high))
    }
}

/// What turns values into codes.
struct Code<L: Lanes> {
    inv_scale: L::F,
    zero_point: L::F,
    least: L::F,
    most: L::F,
}

impl<L: Lanes> Code<L> {
    #[inline(always)]
    fn new(l: L, scale: f32, zero_point: u8, symmetric: bool) -> Self {
        let zp = f32::from(zero_point);
        let qmin = f32::from(u8::from(symmetric));
        Code {
            inv_scale: l.splat(1.0 / scale),
            zero_point: l.splat(zp),
            least: l.splat(qmin - zp),
            most: l.splat(255.0 - zp),
        }
    }

    #[inline(always)]
    fn step<T: Element>(&self, l: L, x: &[T], out: &mut [u8]) {
        let mut codes = [l.splat(0.0); 4];
        for (i, code) in codes.iter_mut().enumerate() {
            let x = T::load(l, &x[i * L::N..(i + 1) * L::N]);
            let steps = l.rint(l.mul(x, self.inv_scale));
            *code = l.add(l.min(l.max(steps, self.least), self.most), self.zero_point);
        }
        l.store_u8(codes, out);
    }
}

/// Scale and zero point of a row whose values lie in `low..=high`, for codes
/// 0..=255, or 1..=255 about 128 if symmetric.
fn range(low: f32, high: f32, symmetric: bool) -> (f32, u8) {
    if symmetric {
        let amax = high.max(-low);
        let scale = if low == high { amax } else { amax / 127.0 };
        return if amax > 0.0 { (scale.max(MIN_SCALE), 128) } else { (1.0, 128) };
    }
    if low == high {
        // One value: exactly one step from zero.
        return if low == 0.0 { (1.0, 0) } else { (low.abs().max(MIN_SCALE), u8::from(low < 0.0)) };
    }
    let (low, high) = (low.min(0.0), high.max(0.0));
    // Halves, since high - low may overflow; 127.5 is half of 255.
    let scale = ((0.5 * high - 0.5 * low) / 127.5).max(MIN_SCALE);
    let zero_point = (-low * (1.0 / scale)).round_ties_even().clamp(0.0, 255.0);
    (scale, zero_point as u8)
}
