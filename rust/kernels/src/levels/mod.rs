//! Levels for numbers: by formula with a search of the clip, by Lloyd's iteration, or the optimum.
//!
//! | function | in | out |
//! |---|---|---|
//! | [`fit`], [`fit_rows`] | f32 or f64 numbers, f64 weights | f64 levels, their error, the clip |
//! | [`of_density`] | a density of mean 0 and variance 1 | the same, exact |
//! | [`encode`], [`decode`] | numbers and levels, codes and levels | codes, numbers |
//!
//! A method asks of what it is for, a [`Source`], no more than moments between two boundaries:
//! sorted numbers ([`numbers`]) and densities ([`density`]) run the same searches ([`search`]). It is scalar
//! arithmetic in float64 in a fixed order with the transcendental functions of `libm`,
//! which is Rust too: the same bytes everywhere, on any number of threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod codes;
mod density;
mod numbers;
mod search;
mod shapes;
#[cfg(test)]
mod tests;

use std::sync::Mutex;

pub use codes::{Number, decode, encode};
pub use density::{Density, of_density};
use numbers::{Numbers, Scratch};

use crate::codebook::{self, MOST, Value, levels_1d, power, times_power};
use crate::error::bail;
use crate::par::Parts;
use crate::{Ctl, Isa, Result};

/// How levels are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Least squares, exactly.
    Optimal,
    /// Lloyd's iteration from the best of the methods below.
    LloydMax,
    /// Even steps, the clip searched.
    Uniform,
    /// The compander of the Laplace distribution, the clip searched.
    Laplace,
    /// The compander of the normal distribution, the clip searched.
    Gauss,
    /// As many numbers to each level.
    Quantile,
    /// Powers of two, the greatest searched.
    Pot,
    /// Sums of powers of two, the greatest searched.
    Apot,
}

impl Method {
    const NAMES: [(&'static str, Method); 8] = [
        ("optimal", Method::Optimal),
        ("lloyd_max", Method::LloydMax),
        ("uniform", Method::Uniform),
        ("laplace", Method::Laplace),
        ("gauss", Method::Gauss),
        ("quantile", Method::Quantile),
        ("pot", Method::Pot),
        ("apot", Method::Apot),
    ];

    /// The one of this name.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there is none.
    pub fn named(name: &str) -> Result<Method> {
        match Method::NAMES.iter().find(|(n, _)| *n == name) {
            Some(&(_, method)) => Ok(method),
            None => bail!("method: expected one of {}, got '{name}'", Method::NAMES.map(|(n, _)| n).join(", ")),
        }
    }
}

/// What [`fit`] is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Levels: 1 to 65,536.
    pub n_levels: usize,
    /// By which method.
    pub method: Method,
    /// One level is exactly 0.
    pub pin_zero: bool,
}

/// Levels, ascending, and how far from theirs the numbers are.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// As many as were asked for. What fewer distinct numbers leave over repeats the greatest.
    pub levels: Vec<f64>,
    /// The weighted mean of squared distances to the nearest level.
    pub mse: f64,
    /// The clip that was searched; NaN where there is none.
    pub clip: f64,
    /// Distinct values among numbers of positive weight.
    pub n_distinct: usize,
}

/// What levels are for: numbers with weights, or a density.
trait Source {
    /// A place among the numbers.
    type Cut: Copy;
    /// Before all of them, and after.
    fn ends(&self) -> [Self::Cut; 2];
    /// After those that are at most `t`.
    fn cut(&self, t: f64) -> Self::Cut;
    /// The weight between two places, and the first and second moment about `y` of what is there.
    fn sums(&self, from: Self::Cut, to: Self::Cut, y: f64) -> [f64; 3];
    /// The least number with a share of at least `p` of the weight up to it.
    fn quantile(&self, p: f64) -> f64;
    /// The greatest distance from `centre`.
    fn reach(&self, centre: f64) -> f64;
    /// Whether to go on.
    fn check(&self) -> Result<()>;

    fn mean(&self) -> f64 {
        let [from, to] = self.ends();
        let middle = self.quantile(0.5);
        let [weight, first, _] = self.sums(from, to, middle);
        middle + first / weight
    }
    /// The mean distance from `centre`: the Laplace distribution's b.
    fn mean_distance(&self, centre: f64) -> f64 {
        let ([from, to], cut) = (self.ends(), self.cut(centre));
        let (below, above) = (self.sums(from, cut, centre), self.sums(cut, to, centre));
        (above[1] - below[1]) / (above[0] + below[0])
    }
    /// The root of the mean square of distances from `centre`: the normal distribution's σ.
    fn deviation(&self, centre: f64) -> f64 {
        let [from, to] = self.ends();
        let [weight, _, squares] = self.sums(from, to, centre);
        (squares / weight).sqrt()
    }
}

/// The most levels that codes can name.
pub const MOST_LEVELS: usize = 1 << 16;

/// Levels for the numbers `x`.
///
/// # Errors
/// [`crate::Error::Value`] where `x` is empty or too long, lengths differ, `x` is not finite, a weight is
/// negative or not finite, all are zero, the method does not make so many levels, or squares exceed float64;
/// [`crate::Error::Interrupted`].
pub fn fit<T: Value>(x: &[T], weights: Option<&[f64]>, options: Options, isa: Isa, ctl: &Ctl) -> Result<Fit> {
    check(x.len(), weights.map(<[f64]>::len), options)?;
    fit_with(x, weights, options, &mut Scratch::default(), isa, ctl)
}

fn fit_with<T: Value>(
    x: &[T],
    weights: Option<&[f64]>,
    options: Options,
    scratch: &mut Scratch<T>,
    isa: Isa,
    ctl: &Ctl,
) -> Result<Fit> {
    let Options { n_levels, method, pin_zero } = options;
    if method == Method::Optimal {
        let options = codebook::Options { k: n_levels, pin_zero, method: codebook::Method::Exact };
        let found = levels_1d(x, weights, options, isa, ctl)?;
        let codebook::Fit { levels, inertia, n_distinct } = found;
        // The sum of weights may exceed float64 where their products with small squares do not.
        let shift = -weights.map_or(0, |w| power(w.iter().copied()));
        let weight = weights.map_or(x.len() as f64, |w| w.iter().map(|&w| times_power(w, shift)).sum());
        return Ok(Fit { levels, mse: times_power(inertia, shift) / weight, clip: f64::NAN, n_distinct });
    }
    Numbers::sorted(x, weights, n_levels, scratch, ctl)?.fit(options)
}

/// [`fit`] of each of `rows` rows by itself; `weights` are those of one row, shared, or of all.
///
/// # Errors
/// As [`fit`].
pub fn fit_rows<T: Value>(
    x: &[T],
    rows: usize,
    weights: Option<&[f64]>,
    options: Options,
    isa: Isa,
    ctl: &Ctl,
) -> Result<Vec<Fit>> {
    if rows == 0 || x.len() % rows != 0 {
        bail!("x: {} numbers are no {rows} rows of one length", x.len());
    }
    let n = x.len() / rows;
    if weights.is_some_and(|w| w.len() != n && w.len() != x.len()) {
        bail!("sample_weight: expected {n} or {rows} × {n} weights, got {}", weights.map_or(0, <[f64]>::len));
    }
    check(n, None, options)?;
    let of = |row: usize| weights.map(|w| if w.len() == n { w } else { &w[row * n..][..n] });
    if n > LONG {
        // Long rows one by one, each of which asks whether to go on.
        return x.chunks_exact(n).enumerate().map(|(row, x)| fit(x, of(row), options, isa, ctl)).collect();
    }
    let scratch: Vec<Mutex<Scratch<T>>> = (0..ctl.threads()).map(|_| Mutex::default()).collect();
    let mut fits: Vec<Option<Result<Fit>>> = (0..rows).map(|_| None).collect();
    let parts = Parts::new(x.chunks_exact(n).zip(&mut fits));
    ctl.for_each(rows, &|slot, row| {
        let (x, out) = parts.take(row);
        let mut scratch = scratch[slot].lock().unwrap_or_else(|e| e.into_inner());
        *out = Some(fit_with(x, of(row), options, &mut scratch, isa, &Ctl::new(1)));
    })?;
    fits.into_iter().map(|fit| fit.expect("every row ran")).collect()
}

/// Numbers in a row from which on it has the threads, or the question whether to go on, for itself.
const LONG: usize = 1 << 16;

fn check(n: usize, weights: Option<usize>, options: Options) -> Result<()> {
    if n == 0 || n > MOST {
        bail!("x: expected 1 to {MOST} numbers, got {n}");
    }
    if weights.is_some_and(|w| w != n) {
        bail!("sample_weight: expected {n} weights, got {}", weights.unwrap_or(0));
    }
    check_levels(options.method, options.n_levels)
}

fn check_levels(method: Method, n: usize) -> Result<()> {
    if n == 0 || n > MOST_LEVELS {
        bail!("n_levels: expected 1 to {MOST_LEVELS}, got {n}");
    }
    match method {
        Method::Pot if !shapes::pot_makes(n) => bail!("n_levels: expected 1 to 256 for method 'pot', got {n}"),
        Method::Apot if shapes::apot_bits(n).is_none() => {
            bail!("n_levels: expected 2**b or 2**b - 1, b of 2 to 8, for method 'apot', got {n}")
        }
        _ => Ok(()),
    }
}
