//! From int32 sums to a layer's outputs, over any vector of floats.
//!
//! `y = f32(acc - zero_point · col_sum) · (row scale · column scale) + bias`,
//! then the activation, then the residual: each step one float32 operation, so
//! the result is the same bits on every instruction set.
//!
//! Error of the activations against their exact values, beyond the rounding of
//! `y`: 5e-7 · max(1, |y|).

use super::tiled::PANEL;
use crate::affine::{Floats, RowScale};
use crate::lanes::{Element, Lanes, Scalar, prefetch};

/// The function applied to each output of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    /// y
    #[default]
    Identity,
    /// max(0, y)
    Relu,
    /// y · Φ(y), with the normal distribution's function
    Gelu,
    /// y / (1 + e^(-2u)), u = √(2/π) (y + 0.044715 y³): GELU by tanh
    GeluTanh,
    /// y / (1 + e^(-y))
    Silu,
}

/// What turns the sums of some rows and one panel into outputs.
pub(super) struct Finish<'a, T> {
    /// The panel's columns, with padding and without.
    pub width: usize,
    pub cols: usize,
    /// Whether the sums are centred and rounded already: float32, by their bits.
    pub rounded: bool,
    /// Zero where the panel is narrower.
    pub col_sum: [i32; PANEL],
    pub scale: [f32; PANEL],
    pub bias: Option<[f32; PANEL]>,
    pub activation: Activation,
    /// From the first row's first column of this panel, and from row to row.
    pub residual: Option<(&'a [T], usize)>,
}

/// Finishes rows: `sums` holds PANEL sums for each of `rows`; `out[r]` gets
/// `cols` outputs from column `col`.
#[inline(always)]
pub(super) fn finish<L: Lanes, T: Element>(
    l: L,
    f: &Finish<T>,
    sums: &[i32],
    rows: &[RowScale],
    out: &mut [&mut [T]],
    col: usize,
) {
    match f.activation {
        Activation::Identity => each(l, f, sums, rows, out, col, Identity),
        Activation::Relu => each(l, f, sums, rows, out, col, Relu),
        Activation::Gelu => each(l, f, sums, rows, out, col, Gelu),
        Activation::GeluTanh => each(l, f, sums, rows, out, col, GeluTanh),
        Activation::Silu => each(l, f, sums, rows, out, col, Silu),
    }
}

/// Rows ahead of the one that is written.
const AHEAD: usize = 8;

#[inline(always)]
fn each<L: Lanes, T: Element>(
    l: L,
    f: &Finish<T>,
    sums: &[i32],
    rows: &[RowScale],
    out: &mut [&mut [T]],
    col: usize,
    function: impl Function,
) {
    let zeros = [0.0; PANEL];
    let bias = f.bias.as_ref();
    for (r, (sums, row)) in sums.chunks_exact(PANEL).zip(rows).enumerate() {
        // Rows lie far apart: a store alone would wait for its line.
        if let Some(next) = out.get(r + AHEAD) {
            prefetch(&next[col..col + f.cols]);
        }
        let out = &mut out[r][col..col + f.cols];
        let residual = f.residual.map(|(values, stride)| &values[r * stride..r * stride + f.cols]);
        let (row_scale, zero_point) = (l.splat(row.scale), i32::from(row.zero_point));
        for j in (0..f.width).step_by(L::N) {
            let at = j..j + L::N;
            let scale = l.mul(row_scale, l.load(&f.scale[at.clone()]));
            let centred = if f.rounded {
                l.load(&bytemuck::cast_slice(sums)[at.clone()])
            } else {
                l.centred(&sums[at.clone()], &f.col_sum[at.clone()], zero_point)
            };
            let mut y = l.mul(centred, scale);
            if bias.is_some() {
                y = l.add(y, l.load(&bias.unwrap_or(&zeros)[at.clone()]));
            }
            y = function.of(l, y);
            if at.end <= f.cols {
                if let Some(residual) = residual {
                    y = l.add(y, T::load(l, &residual[at.clone()]));
                }
                T::store(l, y, &mut out[at]);
            } else if at.start < f.cols {
                let (mut part, left) = ([T::default(); PANEL], f.cols - at.start);
                if let Some(residual) = residual {
                    part[..left].copy_from_slice(&residual[at.start..]);
                    y = l.add(y, T::load(l, &part[..L::N]));
                }
                T::store(l, y, &mut part[..L::N]);
                out[at.start..].copy_from_slice(&part[..left]);
            }
        }
    }
}

/// out = x · by, elementwise, of float32 or bfloat16; x where there is no `by`.
#[inline(always)]
pub(super) fn multiply<L: Lanes>(l: L, x: Floats, by: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && (by.len() == out.len() || by.is_empty()));
    match x {
        Floats::F32(x) => products(l, x, by, out),
        Floats::Bf16(x) => products(l, x, by, out),
        Floats::F16(_) | Floats::F64(_) => unreachable!("layers take float32 and bfloat16"),
    }
}

#[inline(always)]
fn products<L: Lanes, T: Element>(l: L, x: &[T], by: &[f32], out: &mut [f32]) {
    if by.is_empty() {
        return out.iter_mut().zip(x).for_each(|(out, x)| *out = T::load(Scalar, std::slice::from_ref(x)));
    }
    let whole = x.len() / L::N * L::N;
    for ((x, by), out) in x.chunks_exact(L::N).zip(by.chunks_exact(L::N)).zip(out.chunks_exact_mut(L::N)) {
        l.store(l.mul(T::load(l, x), l.load(by)), out);
    }
    for ((x, by), out) in x[whole..].iter().zip(&by[whole..]).zip(&mut out[whole..]) {
        *out = T::load(Scalar, std::slice::from_ref(x)) * by;
    }
}

/// What follows the last sum of a row: layer normalization over its outputs,
/// `(y - mean) / √(variance + eps) · gamma + beta`.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// N float32.
    pub gamma: &'a [f32],
    /// N float32.
    pub beta: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// Normalizes one row. Mean and variance are sums of 16 partial sums, element i
/// in partial sum i % 16, added pairwise: the same bits for every vector width.
#[inline(always)]
pub(super) fn normalize<L: Lanes, T: Element>(l: L, x: &[f32], norm: &Norm, out: &mut [T]) {
    let n = x.len() as f32;
    let mean = sum::<L, false>(l, x, 0.0) / n;
    let variance = sum::<L, true>(l, x, mean) / n;
    let rstd = 1.0 / (variance + norm.eps).sqrt();
    let whole = x.len() / L::N * L::N;
    for i in (0..whole).step_by(L::N) {
        let at = i..i + L::N;
        scaled(l, &x[at.clone()], mean, rstd, &norm.gamma[at.clone()], &norm.beta[at.clone()], &mut out[at]);
    }
    if whole < x.len() {
        let left = x.len() - whole;
        let mut part = [T::default(); 16];
        let (x, gamma, beta) = (pad(&x[whole..]), pad(&norm.gamma[whole..]), pad(&norm.beta[whole..]));
        scaled(l, &x[..L::N], mean, rstd, &gamma[..L::N], &beta[..L::N], &mut part[..L::N]);
        out[whole..].copy_from_slice(&part[..left]);
    }
}

#[inline(always)]
fn scaled<L: Lanes, T: Element>(l: L, x: &[f32], mean: f32, rstd: f32, gamma: &[f32], beta: &[f32], out: &mut [T]) {
    let y = l.mul(l.sub(l.load(x), l.splat(mean)), l.splat(rstd));
    T::store(l, l.add(l.mul(y, l.load(gamma)), l.load(beta)), out);
}

#[inline(always)]
fn pad(x: &[f32]) -> [f32; 16] {
    let mut padded = [0.0; 16];
    padded[..x.len()].copy_from_slice(x);
    padded
}

/// Σ (x - centre), squared or not, in the order that [`normalize`] states.
#[inline(always)]
fn sum<L: Lanes, const SQUARED: bool>(l: L, x: &[f32], centre: f32) -> f32 {
    let mut parts = [l.splat(0.0); 16]; // 16 / L::N of them are used
    let centres = l.splat(centre);
    let (blocks, rest) = x.as_chunks::<16>();
    for x in blocks {
        for (part, x) in parts.iter_mut().zip(x.chunks_exact(L::N)) {
            let d = l.sub(l.load(x), centres);
            *part = l.add(*part, if SQUARED { l.mul(d, d) } else { d });
        }
    }
    let mut sums = [0.0; 16];
    for (sums, part) in sums.chunks_exact_mut(L::N).zip(parts) {
        l.store(part, sums);
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        let d = x - centre;
        *sum += if SQUARED { d * d } else { d };
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0]
}

/// An [`Activation`] as a type, so that each has a loop of its own.
trait Function: Copy {
    fn of<L: Lanes>(self, l: L, y: L::F) -> L::F;
}

macro_rules! functions {
    ($($name:ident => |$l:ident, $y:ident| $body:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn of<L: Lanes>(self, $l: L, $y: L::F) -> L::F { $body }
        }
    )*};
}

functions! {
    Identity => |_l, y| y;
    Relu => |l, y| l.max(l.splat(0.0), y);
    Gelu => |l, y| gelu(l, y);
    GeluTanh => |l, y| gelu_tanh(l, y);
    Silu => |l, y| logistic(l, y, y);
}

/// x · Φ(x) = x/2 · (1 + erf(x/√2)), with erf(x/√2) = x · P(x²) / Q(x²) fitted
/// here to 2e-8 over |x| ≤ 5.6, past which it is ±1 to float32.
#[inline(always)]
fn gelu<L: Lanes>(l: L, x: L::F) -> L::F {
    const EDGE: f32 = 5.6;
    let above = l.max(l.splat(-EDGE), x); // x where it is NaN
    let near = l.min(l.splat(EDGE), above);
    let u = l.mul(near, near);
    let p =
        polynomial(l, u, [0.797_884_46, 0.068_750_54, 0.009_414_38, 3.476_786_4e-4, 1.271_240_9e-5, 4.428_902_8e-8]);
    let q = polynomial(l, u, [1.0, 0.252_831_73, 0.028_939_56, 1.912_916_4e-3, 7.509_69e-5, 1.180_163_6e-6]);
    let erf = l.div(l.mul(near, p), q);
    l.mul(l.mul(above, l.splat(0.5)), l.add(l.splat(1.0), erf))
}

/// c[0] + c[1] x + c[2] x² + …
#[inline(always)]
fn polynomial<L: Lanes, const D: usize>(l: L, x: L::F, c: [f32; D]) -> L::F {
    let mut p = l.splat(c[D - 1]);
    for i in (0..D - 1).rev() {
        p = l.add(l.mul(p, x), l.splat(c[i]));
    }
    p
}

#[inline(always)]
fn gelu_tanh<L: Lanes>(l: L, x: L::F) -> L::F {
    let cube = l.mul(l.mul(x, x), x);
    let u = l.mul(l.add(x, l.mul(cube, l.splat(0.044_715))), l.splat(1.595_769_1)); // 2 √(2/π)
    logistic(l, x, u)
}

/// x / (1 + e^(-s))
#[inline(always)]
fn logistic<L: Lanes>(l: L, x: L::F, s: L::F) -> L::F {
    // e^88 is finite, and x / e^88 is 0 to within the budget.
    let minus_s = l.min(l.splat(88.0), l.sub(l.splat(0.0), s));
    l.div(x, l.add(l.splat(1.0), l.exp(minus_s)))
}
