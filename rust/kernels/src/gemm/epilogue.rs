//! From int32 sums to a layer's outputs, over any vector of floats.
//!
//! `y = f32(acc - zero_point · col_sum) · (row scale · column scale) + bias`,
//! then the activation, then the residual: each step one float32 operation, so
//! the result is the same bits on every instruction set.
//!
//! Error of the activations against their exact values, beyond the rounding of
//! `y`: 5e-7 · max(1, |y|).

use super::tiled::PANEL;
use crate::affine::RowScale;
use crate::lanes::{Element, Lanes};

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
    for (r, ((sums, row), out)) in sums.chunks_exact(PANEL).zip(rows).zip(out).enumerate() {
        let out = &mut out[col..col + f.cols];
        let residual = f.residual.map(|(values, stride)| &values[r * stride..r * stride + f.cols]);
        let (row_scale, zero_point) = (l.splat(row.scale), i32::from(row.zero_point));
        for j in (0..f.width).step_by(L::N) {
            let at = j..j + L::N;
            let scale = l.mul(row_scale, l.load(&f.scale[at.clone()]));
            let mut y = l.mul(l.centred(&sums[at.clone()], &f.col_sum[at.clone()], zero_point), scale);
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

/// x · Φ(x) = x/2 · (1 + erf(x/√2)), erf by formula 7.1.26 of Abramowitz and
/// Stegun (error 1.5e-7).
#[inline(always)]
fn gelu<L: Lanes>(l: L, x: L::F) -> L::F {
    let one = l.splat(1.0);
    let z = l.mul(l.abs(x), l.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = l.div(one, l.add(one, l.mul(z, l.splat(0.327_591_1))));
    let mut p = l.splat(1.061_405_4);
    for c in [-1.453_152_1, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        p = l.add(l.mul(p, t), l.splat(c));
    }
    // Past 13 the exponential is 0 to float32.
    let minus_z2 = l.sub(l.splat(0.0), l.mul(z, z));
    let tail = l.mul(l.mul(p, t), l.exp(minus_z2));
    let erf = l.copysign(l.sub(one, tail), x);
    l.mul(l.mul(x, l.splat(0.5)), l.add(one, erf))
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
