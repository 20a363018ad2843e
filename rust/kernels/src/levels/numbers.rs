//! Sorted numbers, of which blocks keep their moments: the error of a set of levels takes a
//! search for each boundary, the rest of a block beside it and one step for each block.
//!
//! Prefix sums would do without blocks; but their differences lose what an offset or an outlier has in
//! excess of a cell, and a block's moments are about its own mean.

use super::{Fit, Method, Options, Source, search};
use crate::codebook::{Value, power, sorted, sorted_weighted, times_power};
use crate::error::bail;
use crate::{Ctl, Error, Result};

/// Memory used again from row to row.
pub(super) struct Scratch<T: Value> {
    keys: [Vec<T::Key>; 2],
    values: Vec<T>,
}

impl<T: Value> Default for Scratch<T> {
    fn default() -> Self {
        Scratch { keys: Default::default(), values: Vec::new() }
    }
}

/// Ascending numbers times a power of two.
pub(super) struct Numbers<'a> {
    x: Vec<f64>,
    /// None: 1 each.
    weights: Option<Vec<f64>>,
    /// The numbers are those of the caller times 2^-shift.
    shift: i32,
    /// Weight, mean and squares about it of `block` numbers each.
    blocks: Vec<[f64; 3]>,
    block: usize,
    ctl: &'a Ctl<'a>,
}

impl<'a> Numbers<'a> {
    pub fn sorted<T: Value>(
        x: &[T],
        weights: Option<&[f64]>,
        n_levels: usize,
        scratch: &mut Scratch<T>,
        ctl: &'a Ctl<'a>,
    ) -> Result<Self> {
        let mut numbers = match weights {
            Some(weights) => {
                let points = sorted_weighted(x, weights, ctl)?;
                let (x, weights) = points.into_iter().map(|[x, w]| (x, w)).unzip();
                Numbers { x, weights: Some(weights), shift: 0, blocks: Vec::new(), block: 0, ctl }
            }
            None => {
                sorted(x, &mut scratch.keys, &mut scratch.values, ctl)?;
                let mut x = Vec::new();
                x.try_reserve_exact(scratch.values.len()).map_err(|_| Error::Memory(8 * scratch.values.len()))?;
                x.extend(scratch.values.iter().map(|x| x.to_f64()));
                if x.len() > super::LONG {
                    scratch.values = Vec::new();
                }
                Numbers { x, weights: None, shift: 0, blocks: Vec::new(), block: 0, ctl }
            }
        };
        let x = &mut numbers.x;
        if T::WIDE {
            numbers.shift = power([x[0], x[x.len() - 1]].into_iter());
            if numbers.shift != 0 {
                x.iter_mut().for_each(|x| *x = times_power(*x, -numbers.shift));
            }
        }
        // As much to do for the blocks as for the rests of blocks beside boundaries.
        numbers.block = ((2 * x.len() / n_levels) as f64).sqrt() as usize;
        numbers.block = numbers.block.next_power_of_two().clamp(16, 1024);
        let starts = (0..=x.len() - x.len() % numbers.block).step_by(numbers.block);
        let ends = starts.clone().skip(1);
        numbers.blocks = starts.zip(ends).map(|(i, j)| numbers.moments(i, j)).collect();
        Ok(numbers)
    }

    /// By any method but the optimum, which has its own home.
    pub fn fit(&self, options: Options) -> Result<Fit> {
        let Options { n_levels, method, pin_zero } = options;
        let n_distinct = 1 + self.x.windows(2).filter(|x| x[0] != x[1]).count();
        let few = n_distinct == 1 || matches!(method, Method::LloydMax | Method::Quantile);
        let mut fit = match self.distinct(n_distinct, n_levels, pin_zero) {
            Some(levels) if few => Fit { levels, mse: 0.0, clip: f64::NAN, n_distinct },
            _ => search::fit(self, n_levels, method, pin_zero)?,
        };
        fit.n_distinct = n_distinct;
        for level in &mut fit.levels {
            *level = times_power(*level, self.shift);
        }
        fit.clip = times_power(fit.clip, self.shift);
        fit.mse = times_power(fit.mse, 2 * self.shift);
        if !fit.mse.is_finite() {
            bail!("x: the mean of squared distances to {n_levels} levels is more than float64 holds");
        }
        Ok(fit)
    }

    /// The distinct numbers, and 0 where it is asked for, where they are no more than the levels; the greatest
    /// again for the rest.
    fn distinct(&self, n_distinct: usize, n_levels: usize, pin_zero: bool) -> Option<Vec<f64>> {
        if n_distinct > n_levels {
            return None;
        }
        let mut levels = self.x.clone();
        levels.dedup();
        if pin_zero && !levels.contains(&0.0) {
            levels.insert(levels.partition_point(|&x| x < 0.0), 0.0);
        }
        let greatest = levels[levels.len() - 1];
        (levels.len() <= n_levels).then(|| {
            levels.resize(n_levels, greatest);
            levels
        })
    }

    fn weight(&self, i: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |w| w[i])
    }

    /// Weight, mean and squares about it.
    fn moments(&self, i: usize, j: usize) -> [f64; 3] {
        let [weight, first, _] = self.scan(i, j, self.x[i]);
        let mean = self.x[i] + first / weight;
        let [_, rest, squares] = self.scan(i, j, mean);
        let shift = rest / weight; // what rounding left
        [weight, mean + shift, squares - shift * rest]
    }

    /// [`Source::sums`] number by number, four sums side by side.
    fn scan(&self, i: usize, j: usize, y: f64) -> [f64; 3] {
        let mut sums = [[0.0; 4]; 3];
        let whole = i + (j - i) / 4 * 4;
        match &self.weights {
            None => {
                for x in self.x[i..whole].as_chunks::<4>().0 {
                    for lane in 0..4 {
                        let d = x[lane] - y;
                        sums[1][lane] += d;
                        sums[2][lane] += d * d;
                    }
                }
                sums[0][0] = (whole - i) as f64;
            }
            Some(w) => {
                for (x, w) in self.x[i..whole].as_chunks::<4>().0.iter().zip(w[i..whole].as_chunks::<4>().0) {
                    for lane in 0..4 {
                        let d = x[lane] - y;
                        sums[0][lane] += w[lane];
                        sums[1][lane] += w[lane] * d;
                        sums[2][lane] += w[lane] * (d * d);
                    }
                }
            }
        }
        for t in whole..j {
            let (d, w) = (self.x[t] - y, self.weight(t));
            let lane = t - whole;
            sums[0][lane] += w;
            sums[1][lane] += w * d;
            sums[2][lane] += w * (d * d);
        }
        sums.map(|s| (s[0] + s[1]) + (s[2] + s[3]))
    }
}

impl Source for Numbers<'_> {
    type Cut = usize;

    fn ends(&self) -> [usize; 2] {
        [0, self.x.len()]
    }

    fn cut(&self, t: f64) -> usize {
        self.x.partition_point(|&x| x <= t)
    }

    fn sums(&self, from: usize, to: usize, y: f64) -> [f64; 3] {
        let (first, last) = (from.div_ceil(self.block), to / self.block);
        if first >= last {
            return self.scan(from, to, y);
        }
        let [before, after] = [self.scan(from, first * self.block, y), self.scan(last * self.block, to, y)];
        let mut sums = [0, 1, 2].map(|i| before[i] + after[i]);
        for &[weight, mean, squares] in &self.blocks[first..last] {
            let d = mean - y;
            sums[0] += weight;
            sums[1] += weight * d;
            sums[2] += squares + weight * (d * d);
        }
        sums
    }

    fn quantile(&self, p: f64) -> f64 {
        let last = self.x.len() - 1;
        let Some(weights) = &self.weights else {
            let rank = (p * self.x.len() as f64).ceil() as usize;
            return self.x[rank.saturating_sub(1).min(last)];
        };
        let target = p * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        for (&x, w) in self.x.iter().zip(weights) {
            sum += w;
            if sum >= target {
                return x;
            }
        }
        self.x[last]
    }

    fn reach(&self, centre: f64) -> f64 {
        (self.x[self.x.len() - 1] - centre).max(centre - self.x[0])
    }

    fn check(&self) -> Result<()> {
        self.ctl.check()
    }
}
