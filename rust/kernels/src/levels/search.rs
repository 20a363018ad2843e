//! The search of the clip and Lloyd's iteration, over the true error.

use super::shapes::{expand, shapes};
use super::{Fit, Method, Source};
use crate::Result;
use crate::codebook::midpoint;

/// Calls `f(i, sums)` with the weight of each level's cell and its moments about the level. A number halfway
/// between two levels is the lower one's.
pub(super) fn cells<S: Source>(source: &S, levels: &[f64], mut f: impl FnMut(usize, [f64; 3])) {
    let [mut from, end] = source.ends();
    for i in 0..levels.len() {
        let to = if i + 1 < levels.len() { source.cut(midpoint(levels[i], levels[i + 1])) } else { end };
        f(i, source.sums(from, to, levels[i]));
        from = to;
    }
}

/// The mean of squared distances to the nearest level.
pub(super) fn error<S: Source>(source: &S, levels: &[f64]) -> f64 {
    let (mut weight, mut squares) = (0.0, 0.0);
    cells(source, levels, |_, sums| {
        weight += sums[0];
        squares += sums[2];
    });
    squares / weight
}

/// The levels of any method but the optimum, of which only numbers have one.
pub(super) fn fit<S: Source>(source: &S, n: usize, method: Method, pin_zero: bool) -> Result<Fit> {
    match method {
        Method::Quantile => {
            let mut levels: Vec<f64> = (0..n).map(|i| source.quantile((2 * i + 1) as f64 / (2 * n) as f64)).collect();
            if pin_zero {
                let mut nearest = 0;
                for i in 1..n {
                    if levels[i].abs() < levels[nearest].abs() {
                        nearest = i;
                    }
                }
                levels[nearest] = 0.0;
            }
            Ok(found(error(source, &levels), levels, f64::NAN))
        }
        Method::LloydMax => {
            let start = best_start(source, n, pin_zero)?;
            lloyd(source, start, pin_zero)
        }
        _ => {
            let about_zero = pin_zero || matches!(method, Method::Pot | Method::Apot);
            let centre = match method {
                _ if about_zero => 0.0,
                Method::Laplace => source.quantile(0.5),
                _ => source.mean(),
            };
            let fits = shapes(method, n, pin_zero).into_iter().map(|shape| best_clip(source, method, &shape, centre));
            least(fits.collect::<Result<Vec<_>>>()?)
        }
    }
}

/// The best that is no iteration.
pub(super) fn best_start<S: Source>(source: &S, n: usize, pin_zero: bool) -> Result<Fit> {
    let made = |&method: &Method| super::check_levels(method, n).is_ok();
    let methods = [Method::Uniform, Method::Laplace, Method::Gauss, Method::Quantile, Method::Pot, Method::Apot];
    let fits = methods.into_iter().filter(made).map(|method| fit(source, n, method, pin_zero));
    least(fits.collect::<Result<Vec<_>>>()?)
}

fn found(mse: f64, levels: Vec<f64>, clip: f64) -> Fit {
    Fit { levels, mse, clip, n_distinct: 0 }
}

/// The first of the fits of least error.
fn least(fits: Vec<Fit>) -> Result<Fit> {
    Ok(fits.into_iter().reduce(|best, fit| if fit.mse < best.mse { fit } else { best }).expect("there is one"))
}

fn best_clip<S: Source>(source: &S, method: Method, shape: &[f64], centre: f64) -> Result<Fit> {
    let mut levels = vec![centre; shape.len()];
    let most = shape.iter().fold(0.0f64, |most, v| most.max(v.abs()));
    let distance = source.mean_distance(centre);
    if most == 0.0 || distance == 0.0 {
        return Ok(found(error(source, &levels), levels, f64::NAN));
    }
    let (scale, high) = match method {
        // Beyond, the companders' levels do not move any more.
        Method::Laplace => (distance, 40.0 * distance),
        Method::Gauss => (source.deviation(centre), 12.0 * source.deviation(centre)),
        _ => (1.0, source.reach(centre) / most),
    };
    let (clip, mse) = search(0.5 * distance, high, |clip| {
        expand(method, scale, clip, shape, centre, &mut levels);
        source.check()?;
        Ok(error(source, &levels))
    })?;
    expand(method, scale, clip, shape, centre, &mut levels);
    Ok(found(mse, levels, clip))
}

/// Clips that are tried in proportion, and golden sections after them.
const TRIED: usize = 24;

/// The least error and its clip: of [`TRIED`] clips from `low` to `high` in proportion, then by golden sections
/// between the neighbours of the best.
pub(super) fn search(low: f64, high: f64, mut error: impl FnMut(f64) -> Result<f64>) -> Result<(f64, f64)> {
    let ratio = libm::exp(libm::log(high / low) / (TRIED - 1) as f64);
    let mut clips = [low; TRIED];
    for i in 1..TRIED {
        clips[i] = clips[i - 1] * ratio;
    }
    clips[TRIED - 1] = high;
    let (mut at, mut best) = (0, [f64::INFINITY, low]);
    for (i, &clip) in clips.iter().enumerate() {
        let error = error(clip)?;
        if error < best[0] {
            (at, best) = (i, [error, clip]);
        }
    }
    let (mut a, mut b) = (clips[at.saturating_sub(1)], clips[(at + 1).min(TRIED - 1)]);
    let golden = (5.0f64.sqrt() - 1.0) / 2.0;
    let mut left = b - golden * (b - a);
    let mut right = a + golden * (b - a);
    let (mut at_left, mut at_right) = (error(left)?, error(right)?);
    for _ in 0..TRIED {
        if at_left <= at_right {
            (b, right, at_right) = (right, left, at_left);
            left = b - golden * (b - a);
            at_left = error(left)?;
        } else {
            (a, left, at_left) = (left, right, at_right);
            right = a + golden * (b - a);
            at_right = error(right)?;
        }
    }
    for candidate in [[at_left, left], [at_right, right]] {
        if candidate[0] < best[0] {
            best = candidate;
        }
    }
    Ok((best[1], best[0]))
}

/// The most iterations of Lloyd's.
const LLOYD: usize = 500;

/// Every level to the mean of its cell, until that gains less than 1e-9 of the error.
fn lloyd<S: Source>(source: &S, start: Fit, pin_zero: bool) -> Result<Fit> {
    let Fit { mut levels, mut mse, .. } = start;
    let zero = if pin_zero { levels.iter().position(|&l| l == 0.0) } else { None };
    for _ in 0..LLOYD {
        source.check()?;
        let moved = means(source, &levels, zero);
        let error = error(source, &moved);
        if error >= mse {
            break;
        }
        let gained = mse - error;
        (levels, mse) = (moved, error);
        if gained <= 1e-9 * error {
            break;
        }
    }
    Ok(found(mse, levels, f64::NAN))
}

/// The mean of each cell but the `fixed` one; the level itself where there is nothing.
pub(super) fn means<S: Source>(source: &S, levels: &[f64], fixed: Option<usize>) -> Vec<f64> {
    let mut means = levels.to_vec();
    cells(source, levels, |i, [weight, first, _]| {
        if weight > 0.0 && Some(i) != fixed {
            means[i] = levels[i] + first / weight;
        }
    });
    means
}
