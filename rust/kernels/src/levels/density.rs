//! Densities of mean 0 and variance 1, with their moments in closed form.

use super::search::{best_start, cells, error, fit, means, search};
use super::shapes::{expand, normal, shapes, upper_mass, upper_quantile};
use super::{Fit, Method, Source, check_levels};
use crate::codebook::midpoint;
use crate::error::bail;
use crate::{Ctl, Result};

/// A density of mean 0 and variance 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Density {
    /// The normal distribution's.
    Gauss,
    /// The Laplace distribution's, b = 1 / √2.
    Laplace,
}

/// The most levels of a density: with more, cells are lost in the rounding of their bounds.
pub const MOST_OF_DENSITY: usize = 4096;

const B: f64 = std::f64::consts::FRAC_1_SQRT_2;

/// Exact levels for a density. `model`: the clip is where the method's own model of the noise has its least, in
/// the place of the error itself.
///
/// # Errors
/// [`crate::Error::Value`] where the method does not make so many levels, or has no such model;
/// [`crate::Error::Interrupted`].
pub fn of_density(density: Density, n: usize, method: Method, model: bool, ctl: &Ctl) -> Result<Fit> {
    check_levels(method, n)?;
    if n > MOST_OF_DENSITY {
        bail!("n_levels: expected 1 to {MOST_OF_DENSITY} for a density, got {n}");
    }
    let source = Exact { density, ctl };
    match method {
        _ if model => source.by_model(n, method),
        Method::Optimal => bail!("method: 'optimal' is for numbers; of a density 'lloyd_max' is the optimum"),
        Method::LloydMax => source.lloyd_max(n),
        _ => fit(&source, n, method, false),
    }
}

struct Exact<'a> {
    density: Density,
    ctl: &'a Ctl<'a>,
}

/// What is farther from 0 than a boundary, on its side: mass, first and second moment of distances from 0.
#[derive(Clone, Copy)]
struct Cut {
    above: bool,
    outside: [f64; 3],
}

impl Exact<'_> {
    fn outside(&self, t: f64) -> [f64; 3] {
        match self.density {
            Density::Gauss => {
                let (mass, at) = (upper_mass(t), normal(t));
                [mass, at, mass + t * at]
            }
            Density::Laplace => {
                let mass = 0.5 * libm::exp(-t / B);
                [mass, mass * (t + B), mass * (t * t + 2.0 * B * t + 2.0 * B * B)]
            }
        }
    }

    fn height(&self, t: f64) -> f64 {
        match self.density {
            Density::Gauss => normal(t),
            Density::Laplace => 0.5 / B * libm::exp(-t.abs() / B),
        }
    }

    fn by_model(&self, n: usize, method: Method) -> Result<Fit> {
        let own = [(Density::Gauss, Method::Gauss), (Density::Laplace, Method::Laplace)];
        if method != Method::Uniform && !own.contains(&(self.density, method)) {
            bail!("clip: 'model' is for method 'uniform' and for the density's own");
        }
        let steps = n as f64;
        let inside = |a: f64| match method {
            Method::Uniform => a * a / (3.0 * steps * steps),
            Method::Laplace => {
                let rest = -libm::expm1(-a / (3.0 * B));
                9.0 * B * B * (rest * rest * rest) / (steps * steps)
            }
            _ => {
                let mass = libm::erf(a / 6.0f64.sqrt());
                3.0f64.sqrt() * std::f64::consts::PI * (mass * mass * mass) / (2.0 * steps * steps)
            }
        };
        let (clip, _) = search(0.01, 40.0, |a| {
            let [mass, first, second] = self.outside(a);
            Ok(2.0 * (second - 2.0 * a * first + a * a * mass) + inside(a))
        })?;
        let scale = if method == Method::Laplace { B } else { 1.0 };
        let mut levels = vec![0.0; n];
        expand(method, scale, clip, &shapes(method, n, false)[0], 0.0, &mut levels);
        Ok(Fit { mse: error(self, &levels), levels, clip, n_distinct: 0 })
    }

    /// The one set of levels that are the means of their cells: log-concave densities have no other
    /// (Fleischer, 1964). Newton's steps, and Lloyd's where one of these gains nothing.
    fn lloyd_max(&self, n: usize) -> Result<Fit> {
        let mut levels = best_start(self, n, false)?.levels;
        let mut still = 0;
        for _ in 0..500 {
            self.ctl.check()?;
            let (step, most) = self.newton(&levels);
            let moved: Vec<f64> = levels.iter().zip(&step).map(|(l, d)| l + d).collect();
            let fits = moved.is_sorted_by(|a, b| a < b) && error(self, &moved) <= error(self, &levels) * (1.0 + 1e-12);
            levels = if fits { moved } else { means(self, &levels, None) };
            still = if fits && most < 1e-13 { still + 1 } else { 0 };
            if still == 2 {
                break;
            }
        }
        // The density is even, and so are they.
        let levels: Vec<f64> = (0..n).map(|i| (levels[i] - levels[n - 1 - i]) / 2.0).collect();
        Ok(Fit { mse: error(self, &levels), levels, clip: f64::NAN, n_distinct: 0 })
    }

    /// The step towards levels that are their cells' means, and its greatest part: a system of three diagonals.
    fn newton(&self, levels: &[f64]) -> (Vec<f64>, f64) {
        let n = levels.len();
        let bounds: Vec<f64> = levels.windows(2).map(|l| midpoint(l[0], l[1])).collect();
        // A level's mean moves with its bounds, and these half as much as the levels beside them.
        let (mut upper, mut step) = (vec![0.0; n], vec![0.0; n]);
        cells(self, levels, |i, [mass, first, _]| {
            let mean = levels[i] + first / mass;
            let part = |t: f64| 0.5 * self.height(t) * (t - mean).abs() / mass;
            let left = if i > 0 { part(bounds[i - 1]) } else { 0.0 };
            let right = if i + 1 < n { part(bounds[i]) } else { 0.0 };
            let (before, done) = if i > 0 { (upper[i - 1], step[i - 1]) } else { (0.0, 0.0) };
            let pivot = 1.0 - left - right + left * before;
            upper[i] = -right / pivot;
            step[i] = (first / mass + left * done) / pivot;
        });
        for i in (0..n.saturating_sub(1)).rev() {
            step[i] -= upper[i] * step[i + 1];
        }
        let most = step.iter().fold(0.0f64, |most, d| most.max(d.abs()));
        (step, most)
    }
}

impl Source for Exact<'_> {
    type Cut = Cut;

    fn ends(&self) -> [Cut; 2] {
        [false, true].map(|above| Cut { above, outside: [0.0; 3] })
    }

    fn cut(&self, t: f64) -> Cut {
        Cut { above: t >= 0.0, outside: self.outside(t.abs()) }
    }

    fn sums(&self, from: Cut, to: Cut, y: f64) -> [f64; 3] {
        let (a, b) = (from.outside, to.outside);
        let [mass, first, second] = match (from.above, to.above) {
            (true, _) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]],
            (false, false) => [b[0] - a[0], a[1] - b[1], b[2] - a[2]],
            (false, true) => [1.0 - a[0] - b[0], a[1] - b[1], 1.0 - a[2] - b[2]],
        };
        [mass, first - y * mass, second - 2.0 * y * first + y * y * mass]
    }

    fn quantile(&self, p: f64) -> f64 {
        let q = if p < 0.5 { p } else { 1.0 - p };
        let distance = match self.density {
            _ if q == 0.5 => 0.0,
            Density::Gauss => upper_quantile(q),
            Density::Laplace => -B * libm::log(2.0 * q),
        };
        if p < 0.5 { -distance } else { distance }
    }

    fn reach(&self, _: f64) -> f64 {
        // Where a double has none of the mass left.
        match self.density {
            Density::Gauss => 12.0,
            Density::Laplace => 40.0 * B,
        }
    }

    fn check(&self) -> Result<()> {
        self.ctl.check()
    }
}
