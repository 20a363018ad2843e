//! The definition, over any vector of floats: with [`crate::lanes::Scalar`] it
//! is plain Rust.

use std::ops::{Div, Mul, Neg, Sub};

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::{Clip, Floats, FloatsMut, Levels, RowScale};
use crate::lanes::{Element, Lanes};

/// The least scale: the least normal float32, so that 1 / scale is finite.
pub(super) const MIN_SCALE: f32 = f32::MIN_POSITIVE;

/// The most elements that [`encode`] and [`decode`] take at once.
pub(super) const BLOCK: usize = 1024;

/// Partial sums of squares, element i in sum i mod 16.
const SUMS: usize = 16;

/// What ranges are computed in: float64 for float64 input, else float32.
pub(super) trait Real:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + Neg<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    fn of(x: f32) -> Self;
    /// To the nearest float32.
    fn narrow(self) -> f32;
    /// To the nearest integer, half to even.
    fn rint(self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn narrow(self) -> f32 {
        self
    }
    #[inline(always)]
    fn rint(self) -> f32 {
        self.round_ties_even()
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(x: f32) -> f64 {
        f64::from(x)
    }
    #[inline(always)]
    fn narrow(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    fn rint(self) -> f64 {
        self.round_ties_even()
    }
}

/// Scale and zero point of values that all equal `value`: exactly one step
/// from zero.
#[inline(always)]
pub(super) fn constant<R: Real>(value: R, levels: &Levels) -> (f32, u8) {
    let zero = R::of(0.0);
    if value == zero {
        return (1.0, levels.middle);
    }
    let below = u8::from(value < zero && !levels.symmetric);
    let magnitude = if value < zero { -value } else { value };
    (magnitude.narrow().max(MIN_SCALE), levels.middle + below)
}

/// Scale and zero point of a range; infinite if float32 cannot hold the scale.
#[inline(always)]
pub(super) fn range<R: Real>(low: R, high: R, levels: &Levels) -> (f32, u8) {
    let zero = R::of(0.0);
    if levels.symmetric {
        let amax = if high > -low { high } else { -low };
        return ((amax / R::of(levels.steps)).narrow().max(MIN_SCALE), levels.middle);
    }
    let low = if low < zero { low } else { zero };
    let high = if high > zero { high } else { zero };
    // Halves, since high - low may overflow.
    let scale = ((R::of(0.5) * high - R::of(0.5) * low) / R::of(levels.steps)).narrow().max(MIN_SCALE);
    let zero_point = (-low * R::of(1.0 / scale)).rint().narrow().clamp(0.0, f32::from(levels.qmax));
    (scale, zero_point as u8)
}

/// Scale and zero point of values of which the least and the greatest are
/// `low` and `high`.
#[inline(always)]
pub(super) fn fit<R: Real>(low: R, high: R, levels: &Levels) -> (f32, u8) {
    if low == high { constant(low, levels) } else { range(low, high, levels) }
}

/// The least and the greatest of at least one value; None where one of them is
/// NaN or infinite.
#[inline(always)]
pub(super) fn extremes<L: Lanes>(l: L, x: &[f32]) -> Option<(f32, f32)> {
    let (whole, tail) = steps(l, x);
    Seen::of(l, whole, &tail[..4 * L::N]).range(l)
}

/// [`extremes`] of bfloat16.
#[inline(always)]
pub(super) fn extremes_bf16<L: Lanes>(l: L, x: &[u16]) -> Option<(f32, f32)> {
    let (whole, tail) = steps(l, x);
    Seen::of(l, whole, &tail[..4 * L::N]).range(l)
}

/// [`extremes`] of float64.
#[inline(always)]
pub(super) fn extremes_f64<L: Lanes>(_: L, x: &[f64]) -> Option<(f64, f64)> {
    let (mut low, mut high, mut bad) = ([f64::INFINITY; 8], [f64::NEG_INFINITY; 8], [0.0; 8]);
    let (whole, rest) = x.split_at(x.len() / 8 * 8);
    let mut tail = [x.last().copied().unwrap_or_default(); 8];
    tail[..rest.len()].copy_from_slice(rest);
    for x in whole.chunks_exact(8).chain([&tail[..]]) {
        for i in 0..8 {
            low[i] = if x[i] < low[i] { x[i] } else { low[i] };
            high[i] = if x[i] > high[i] { x[i] } else { high[i] };
            bad[i] += x[i] * 0.0;
        }
    }
    let low = low.into_iter().fold(f64::INFINITY, |m, x| if x < m { x } else { m });
    let high = high.into_iter().fold(f64::NEG_INFINITY, |m, x| if x > m { x } else { m });
    bad.iter().all(|b| *b == 0.0).then_some((low, high))
}

/// Codes of at most [`BLOCK`] values, each with its own step and zero point.
/// Returns whether all of them are finite; if not, the codes mean nothing.
#[inline(always)]
pub(super) fn encode<L: Lanes>(
    l: L,
    x: Floats,
    inv_scale: &[f32],
    zero_point: &[f32],
    bounds: (f32, f32),
    out: &mut [u8],
) -> bool {
    match x {
        Floats::F32(x) => encode_lanes(l, x, inv_scale, zero_point, bounds, out),
        Floats::Bf16(x) => encode_lanes(l, x, inv_scale, zero_point, bounds, out),
        Floats::F16(x) => {
            let mut wide = [0.0; BLOCK];
            let wide = &mut wide[..x.len()];
            x.reinterpret_cast::<f16>().convert_to_f32_slice(wide);
            encode_lanes(l, &*wide, inv_scale, zero_point, bounds, out)
        }
        Floats::F64(x) => {
            for (((x, inv), zp), out) in x.iter().zip(inv_scale).zip(zero_point).zip(out) {
                let (zp, steps) = (f64::from(*zp), (x * f64::from(*inv)).rint());
                let (least, most) = (f64::from(bounds.0) - zp, f64::from(bounds.1) - zp);
                let steps = if steps > least { steps } else { least };
                // The integer's bits are the lowest of its sum with 2^52.
                *out = ((if steps < most { steps } else { most }) + zp + 2f64.powi(52)).to_bits() as u8;
            }
            let mut bad = [0.0; 8];
            let (whole, rest) = x.split_at(x.len() / 8 * 8);
            for x in whole.chunks_exact(8) {
                bad.iter_mut().zip(x).for_each(|(bad, x)| *bad += x * 0.0);
            }
            rest.iter().for_each(|x| bad[0] += x * 0.0);
            bad.iter().all(|b| *b == 0.0)
        }
    }
}

#[inline(always)]
fn encode_lanes<L: Lanes, T: Element>(
    l: L,
    x: &[T],
    inv_scale: &[f32],
    zero_point: &[f32],
    bounds: (f32, f32),
    out: &mut [u8],
) -> bool {
    let bounds = (l.splat(bounds.0), l.splat(bounds.1));
    let mut bad = [l.splat(0.0); 4];
    let n = 4 * L::N;
    let whole = x.len() / n * n;
    for at in (0..whole).step_by(n) {
        let part = at..at + n;
        let (inv_scale, zero_point) = (&inv_scale[part.clone()], &zero_point[part.clone()]);
        encode_step(l, &x[part.clone()], inv_scale, zero_point, bounds, &mut out[part], &mut bad);
    }
    if whole < x.len() {
        let rest = x.len() - whole;
        let (mut xs, mut invs, mut zps, mut codes) = ([T::default(); 64], [0.0; 64], [0.0; 64], [0; 64]);
        xs[..rest].copy_from_slice(&x[whole..]);
        invs[..rest].copy_from_slice(&inv_scale[whole..x.len()]);
        zps[..rest].copy_from_slice(&zero_point[whole..x.len()]);
        encode_step(l, &xs[..n], &invs[..n], &zps[..n], bounds, &mut codes[..n], &mut bad);
        out[whole..].copy_from_slice(&codes[..rest]);
    }
    let mut sums = [0.0; 16];
    let bad = l.add(l.add(bad[0], bad[1]), l.add(bad[2], bad[3]));
    l.store(bad, &mut sums[..L::N]);
    sums.iter().all(|b| *b == 0.0)
}

// A function, for a closure would not be compiled for the vectors' features.
#[inline(always)]
fn encode_step<L: Lanes, T: Element>(
    l: L,
    x: &[T],
    inv_scale: &[f32],
    zero_point: &[f32],
    (qmin, qmax): (L::F, L::F),
    out: &mut [u8],
    bad: &mut [L::F; 4],
) {
    let mut codes = [l.splat(0.0); 4];
    for i in 0..4 {
        let at = i * L::N..(i + 1) * L::N;
        let x = T::load(l, &x[at.clone()]);
        let (inv, zp) = (l.load(&inv_scale[at.clone()]), l.load(&zero_point[at]));
        let steps = l.rint(l.mul(x, inv));
        codes[i] = l.add(l.min(l.max(steps, l.sub(qmin, zp)), l.sub(qmax, zp)), zp);
        bad[i] = l.add(bad[i], l.mul(x, l.splat(0.0)));
    }
    l.store_u8(codes, out);
}

/// The values of at most [`BLOCK`] codes, each with its own step and zero
/// point, none beyond the greatest finite number of the output's type. Returns
/// the greatest code.
#[inline(always)]
pub(super) fn decode<L: Lanes>(l: L, codes: &[u8], scale: &[f32], zero_point: &[f32], out: FloatsMut) -> u8 {
    match out {
        FloatsMut::F32(out) => decode_lanes(l, codes, scale, zero_point, f32::MAX, out),
        FloatsMut::Bf16(out) => decode_lanes(l, codes, scale, zero_point, half::bf16::MAX.to_f32(), out),
        FloatsMut::F16(out) => {
            let mut wide = [0.0; BLOCK];
            let wide = &mut wide[..codes.len()];
            decode_lanes(l, codes, scale, zero_point, f16::MAX.to_f32(), wide);
            out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(wide);
        }
        FloatsMut::F64(out) => {
            for (((code, scale), zp), out) in codes.iter().zip(scale).zip(zero_point).zip(out) {
                *out = f64::from(f32::from(*code) - *zp) * f64::from(*scale);
            }
        }
    }
    codes.iter().fold(0, |m, &c| m.max(c))
}

#[inline(always)]
fn decode_lanes<L: Lanes, T: Element>(
    l: L,
    codes: &[u8],
    scale: &[f32],
    zero_point: &[f32],
    limit: f32,
    out: &mut [T],
) {
    let limits = (l.splat(-limit), l.splat(limit));
    let n = L::N;
    let whole = codes.len() / n * n;
    for at in (0..whole).step_by(n) {
        let part = at..at + n;
        let (scale, zero_point) = (&scale[part.clone()], &zero_point[part.clone()]);
        decode_step(l, &codes[part.clone()], scale, zero_point, limits, &mut out[part]);
    }
    if whole < codes.len() {
        let rest = codes.len() - whole;
        let (mut cs, mut scales, mut zps, mut values) = ([0; 16], [0.0; 16], [0.0; 16], [T::default(); 16]);
        cs[..rest].copy_from_slice(&codes[whole..]);
        scales[..rest].copy_from_slice(&scale[whole..codes.len()]);
        zps[..rest].copy_from_slice(&zero_point[whole..codes.len()]);
        decode_step(l, &cs[..n], &scales[..n], &zps[..n], limits, &mut values[..n]);
        out[whole..].copy_from_slice(&values[..rest]);
    }
}

#[inline(always)]
fn decode_step<L: Lanes, T: Element>(
    l: L,
    codes: &[u8],
    scale: &[f32],
    zero_point: &[f32],
    (least, most): (L::F, L::F),
    out: &mut [T],
) {
    let steps = l.sub(l.load_u8(codes), l.load(zero_point));
    T::store(l, l.min(l.max(l.mul(steps, l.load(scale)), least), most), out);
}

/// The sum of squared differences between values and what their codes stand
/// for, weighted if there are weights: in float64, element i in sum i mod 16,
/// the 16 sums added in halves. Once it exceeds `bound`, any part of it that
/// does so may be returned instead.
#[inline(always)]
pub(super) fn squares<L: Lanes>(l: L, x: &[f32], weight: Option<&[f32]>, clip: &Clip, bound: f64) -> f64 {
    // No product of codes and scale overflows if the values are well below the
    // greatest float.
    match (weight, clip.huge) {
        (None, false) => squares_of::<L, false, false>(l, x, x, clip, bound),
        (None, true) => squares_of::<L, false, true>(l, x, x, clip, bound),
        (Some(w), false) => squares_of::<L, true, false>(l, x, w, clip, bound),
        (Some(w), true) => squares_of::<L, true, true>(l, x, w, clip, bound),
    }
}

#[inline(always)]
fn squares_of<L: Lanes, const WEIGHTED: bool, const HUGE: bool>(
    l: L,
    x: &[f32],
    weight: &[f32],
    clip: &Clip,
    bound: f64,
) -> f64 {
    let c = Splat {
        inv_scale: l.splat(clip.inv_scale),
        scale: l.splat(clip.scale),
        least: l.splat(clip.least),
        most: l.splat(clip.most),
    };
    let mut sums = [l.no_squares(); SUMS];
    for (x, w) in x.chunks(512).zip(weight.chunks(512)) {
        let (xs, ws) = (x.chunks_exact(SUMS), w.chunks_exact(SUMS));
        let (x_rest, w_rest) = (xs.remainder(), ws.remainder());
        for (x, w) in xs.zip(ws) {
            squares_step::<L, WEIGHTED, HUGE>(l, &mut sums, x, w, &c);
        }
        if !x_rest.is_empty() {
            // Zeros have no error.
            let (mut xs, mut ws) = ([0.0; SUMS], [0.0; SUMS]);
            xs[..x_rest.len()].copy_from_slice(x_rest);
            ws[..w_rest.len()].copy_from_slice(w_rest);
            squares_step::<L, WEIGHTED, HUGE>(l, &mut sums, &xs, &ws, &c);
        }
        if total(l, &sums) > bound {
            break;
        }
    }
    total(l, &sums)
}

/// A [`Clip`] in every lane.
struct Splat<L: Lanes> {
    inv_scale: L::F,
    scale: L::F,
    least: L::F,
    most: L::F,
}

#[inline(always)]
fn squares_step<L: Lanes, const WEIGHTED: bool, const HUGE: bool>(
    l: L,
    sums: &mut [L::D; SUMS],
    x: &[f32],
    w: &[f32],
    c: &Splat<L>,
) {
    for (i, sum) in sums.iter_mut().enumerate().take(SUMS / L::N) {
        let at = i * L::N..(i + 1) * L::N;
        let x = l.load(&x[at.clone()]);
        let steps = l.min(l.max(l.rint(l.mul(x, c.inv_scale)), c.least), c.most);
        let mut value = l.mul(steps, c.scale);
        if HUGE {
            value = l.min(l.max(value, l.splat(-f32::MAX)), l.splat(f32::MAX));
        }
        let off = l.sub(x, value);
        *sum = if WEIGHTED { l.add_square_weighted(*sum, off, l.load(&w[at])) } else { l.add_square(*sum, off) };
    }
}

#[inline(always)]
fn total<L: Lanes>(l: L, sums: &[L::D; SUMS]) -> f64 {
    let mut lanes = [0.0; SUMS];
    for i in 0..SUMS / L::N {
        l.store_squares(sums[i], &mut lanes[i * L::N..(i + 1) * L::N]);
    }
    halves(lanes)
}

/// [`squares`] of float64.
#[inline(always)]
pub(super) fn squares_f64<L: Lanes>(_: L, x: &[f64], weight: Option<&[f32]>, clip: &Clip, bound: f64) -> f64 {
    let (inv_scale, scale) = (f64::from(clip.inv_scale), f64::from(clip.scale));
    let (least, most) = (f64::from(clip.least), f64::from(clip.most));
    let mut sums = [0.0; SUMS];
    for (n, x) in x.chunks(SUMS).enumerate() {
        for (i, (&x, sum)) in x.iter().zip(&mut sums).enumerate() {
            let steps = (x * inv_scale).rint();
            let steps = if steps > least { steps } else { least };
            let off = x - (if steps < most { steps } else { most }) * scale;
            *sum += weight.map_or(off * off, |w| f64::from(w[n * SUMS + i]) * (off * off));
        }
        if n % 32 == 31 && halves(sums) > bound {
            break;
        }
    }
    halves(sums)
}

#[inline(always)]
fn halves(mut sums: [f64; SUMS]) -> f64 {
    let mut n = SUMS;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            sums[i] += sums[i + n];
        }
    }
    sums[0]
}

#[inline(always)]
pub(super) fn quantize_row<L: Lanes>(l: L, x: Floats, levels: &Levels, out: &mut [u8]) -> RowScale {
    match x {
        Floats::F32(x) => row(l, x, levels, out),
        Floats::Bf16(x) => row(l, x, levels, out),
        Floats::F16(bits) => {
            let mut wide = [0.0; BLOCK];
            let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
            for bits in bits.chunks(BLOCK) {
                let wide = &mut wide[..bits.len()];
                bits.reinterpret_cast::<f16>().convert_to_f32_slice(wide);
                let Some(seen) = extremes(l, wide) else { return not_finite(out) };
                (low, high) = (low.min(seen.0), high.max(seen.1));
            }
            blocks(l, x, fit(low, high, levels), levels, out)
        }
        Floats::F64(wide) => match extremes_f64(l, wide) {
            // A scale beyond float32 is no scale.
            Some((low, high)) if fit(low, high, levels).0 < f32::INFINITY => {
                blocks(l, x, fit(low, high, levels), levels, out)
            }
            _ => not_finite(out),
        },
    }
}

fn not_finite(out: &mut [u8]) -> RowScale {
    out.fill(0);
    RowScale { scale: f32::NAN, zero_point: 0 }
}

/// A row's codes block by block.
#[inline(always)]
fn blocks<L: Lanes>(l: L, x: Floats, (scale, zero_point): (f32, u8), levels: &Levels, out: &mut [u8]) -> RowScale {
    let (inv_scale, zp) = ([1.0 / scale; BLOCK], [f32::from(zero_point); BLOCK]);
    for (i, out) in out.chunks_mut(BLOCK).enumerate() {
        let x = x.part(i * BLOCK..i * BLOCK + out.len());
        encode(l, x, &inv_scale[..out.len()], &zp[..out.len()], levels.bounds(), out);
    }
    RowScale { scale, zero_point }
}

/// `x` as whole steps of 4N values and its last values, repeated to a whole
/// step so that they change no extreme.
#[inline(always)]
fn steps<L: Lanes, T: Element>(_: L, x: &[T]) -> (&[T], [T; 64]) {
    let step = 4 * L::N;
    let (whole, rest) = x.split_at(x.len() / step * step);
    let mut tail = [T::default(); 64];
    tail.fill(x.last().copied().unwrap_or_default());
    tail[..rest.len()].copy_from_slice(rest);
    (whole, tail)
}

#[inline(always)]
fn row<L: Lanes, T: Element>(l: L, x: &[T], levels: &Levels, out: &mut [u8]) -> RowScale {
    let step = 4 * L::N;
    let (whole, tail) = steps(l, x);
    let tail = &tail[..step];
    let Some((low, high)) = Seen::of(l, whole, tail).range(l) else { return not_finite(out) };

    let (scale, zero_point) = fit(low, high, levels);
    let code = Code::new(l, scale, zero_point, levels.bounds());
    let (out, out_rest) = out.split_at_mut(whole.len());
    let mut last = [0; 64];
    if levels.bounds() == (0.0, 255.0) {
        for (x, out) in whole.chunks_exact(step).zip(out.chunks_exact_mut(step)) {
            l.store_codes(code.steps(l, x), zero_point, out);
        }
        l.store_codes(code.steps(l, tail), zero_point, &mut last[..step]);
    } else {
        for (x, out) in whole.chunks_exact(step).zip(out.chunks_exact_mut(step)) {
            code.step(l, x, out);
        }
        code.step(l, tail, &mut last[..step]);
    }
    out_rest.copy_from_slice(&last[..out_rest.len()]);
    RowScale { scale, zero_point }
}

/// The extremes of a row, and whether all of it is finite.
struct Seen<L: Lanes> {
    low: [L::F; 2],
    high: [L::F; 2],
    /// Sums: NaN where a value is. Infinities are extremes.
    bad: [L::F; 2],
}

impl<L: Lanes> Seen<L> {
    #[inline(always)]
    fn new(l: L) -> Self {
        Seen { low: [l.splat(f32::INFINITY); 2], high: [l.splat(f32::NEG_INFINITY); 2], bad: [l.splat(0.0); 2] }
    }

    #[inline(always)]
    fn of<T: Element>(l: L, whole: &[T], tail: &[T]) -> Self {
        let mut seen = Seen::new(l);
        for x in whole.chunks_exact(4 * L::N) {
            seen.step(l, x);
        }
        seen.step(l, tail);
        seen
    }

    #[inline(always)]
    fn step<T: Element>(&mut self, l: L, x: &[T]) {
        for i in 0..4 {
            let v = T::load(l, &x[i * L::N..(i + 1) * L::N]);
            self.low[i % 2] = l.min(v, self.low[i % 2]);
            self.high[i % 2] = l.max(v, self.high[i % 2]);
            self.bad[i % 2] = l.add(self.bad[i % 2], v);
        }
    }

    #[inline(always)]
    fn range(self, l: L) -> Option<(f32, f32)> {
        let mut bad = [[0.0; 16]; 2];
        for (bad, sums) in bad.iter_mut().zip(self.bad) {
            l.store(sums, &mut bad[..L::N]);
        }
        let low = -l.reduce_max(l.sub(l.splat(-0.0), l.min(self.low[0], self.low[1])));
        let high = l.reduce_max(l.max(self.high[0], self.high[1]));
        let finite = low > f32::NEG_INFINITY && high < f32::INFINITY;
        (finite && !bad.as_flattened().iter().any(|b| b.is_nan())).then_some((low, high))
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
    fn new(l: L, scale: f32, zero_point: u8, (qmin, qmax): (f32, f32)) -> Self {
        let zp = f32::from(zero_point);
        Code {
            inv_scale: l.splat(1.0 / scale),
            zero_point: l.splat(zp),
            least: l.splat(qmin - zp),
            most: l.splat(qmax - zp),
        }
    }

    /// 4N values in steps of the scale: within ±256, for the scale is of the row's extremes.
    #[inline(always)]
    fn steps<T: Element>(&self, l: L, x: &[T]) -> [L::F; 4] {
        let mut steps = [l.splat(0.0); 4];
        for (i, steps) in steps.iter_mut().enumerate() {
            *steps = l.mul(T::load(l, &x[i * L::N..(i + 1) * L::N]), self.inv_scale);
        }
        steps
    }

    #[inline(always)]
    fn step<T: Element>(&self, l: L, x: &[T], out: &mut [u8]) {
        let mut codes = self.steps(l, x);
        for code in &mut codes {
            *code = l.add(l.min(l.max(l.rint(*code), self.least), self.most), self.zero_point);
        }
        l.store_u8(codes, out);
    }
}
