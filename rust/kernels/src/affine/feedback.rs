//! Rounding to given levels, the error of each code carried into the codes still to
//! come: GPTQ and coordinate descent are this with different coefficients.

use crate::error::{bail, checked_product, try_zeroed};
use crate::lanes::{Lanes, on_isa};
use crate::par::Parts;
use crate::{Ctl, Isa, Result};

/// Rows that a task takes through all columns together.
const ROWS: usize = 32;
/// Columns that share a pass over the errors before them.
const COLUMNS: usize = 4;

/// The levels of a weight (rows, k): its columns are in groups, and each row has for
/// each group a table of its own.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// (rows, groups, size), each table ascending
    pub levels: &'a [f32],
    /// (k,): the group of each column
    pub group: &'a [u32],
    /// Tables of a row.
    pub groups: usize,
    /// Levels of a table, 1 to 256.
    pub size: usize,
}

/// Rounds each weight of `w` (rows, `k`), in the order of its columns, to the level
/// nearest to `w + Σ error · coefficient`, of two as near to the lower, and writes its
/// number to `codes`. `coefficients` (`k`, `k`): row j holds what of each column's
/// error, weight less level, is carried into column j; its own is not looked at.
///
/// `fresh`: only columns before j have errors, for the others have no codes yet.
/// Else `codes` are those of a call before, and every other column has an error.
///
/// The order of the sum: columns outside of j's four, ascending; then the others of
/// the four.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, a group or a code is out of
/// range; [`crate::Error::Memory`]; [`crate::Error::Interrupted`].
pub fn round_with_feedback(
    w: &[f32],
    k: usize,
    coefficients: &[f32],
    tables: Tables,
    codes: &mut [u8],
    fresh: bool,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    if k == 0 || !w.len().is_multiple_of(k) || codes.len() != w.len() {
        bail!("w, codes: expected rows of {k} (at least 1), got {} and {}", w.len(), codes.len());
    }
    let rows = w.len() / k;
    let squares = checked_product("coefficients", &[k, k])?;
    let all = checked_product("levels", &[rows, tables.groups, tables.size])?;
    if coefficients.len() != squares || tables.levels.len() != all || tables.group.len() != k {
        let got = (coefficients.len(), tables.levels.len(), tables.group.len());
        bail!("coefficients, levels, group: expected {:?} elements, got {got:?}", (squares, all, k));
    }
    if !(1..=256).contains(&tables.size) || tables.group.iter().any(|&group| group as usize >= tables.groups) {
        bail!("levels: expected 1 to 256 and groups below {}, got {}", tables.groups, tables.size);
    }
    if !fresh && codes.iter().any(|&code| usize::from(code) >= tables.size) {
        bail!("codes: expected codes below {}", tables.size);
    }
    let job = Job { k, coefficients, tables, fresh };
    let mut scratch = Vec::new();
    for _ in 0..ctl.threads().min(rows.div_ceil(ROWS)) {
        scratch.push(std::sync::Mutex::new(try_zeroed::<f32>(k * ROWS)?));
    }
    let parts = Parts::new(codes.chunks_mut(ROWS * k).zip(w.chunks(ROWS * k)));
    ctl.for_each(parts.len(), &|slot, task| {
        let (codes, w) = parts.take(task);
        let mut errors = scratch[slot].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        round_block(&job, task * ROWS, w, codes, &mut errors, isa);
    })
}

struct Job<'a> {
    k: usize,
    coefficients: &'a [f32],
    tables: Tables<'a>,
    fresh: bool,
}

impl Job<'_> {
    /// The table of a row and column.
    fn table(&self, row: usize, column: usize) -> &[f32] {
        let at = row * self.tables.groups + self.tables.group[column] as usize;
        &self.tables.levels[at * self.tables.size..][..self.tables.size]
    }
}

on_isa! {
    fn round_block(job: &Job, first: usize, w: &[f32], codes: &mut [u8], errors: &mut [f32]) = block;
}

/// Up to [`ROWS`] rows, `first` and on. `errors` (k, ROWS).
#[inline(always)]
fn block<L: Lanes>(l: L, job: &Job, first: usize, w: &[f32], codes: &mut [u8], errors: &mut [f32]) {
    let (k, rows) = (job.k, w.len() / job.k);
    errors.fill(0.0);
    if !job.fresh {
        for r in 0..rows {
            for j in 0..k {
                errors[j * ROWS + r] = w[r * k + j] - job.table(first + r, j)[usize::from(codes[r * k + j])];
            }
        }
    }
    let mut sums = [[0f32; ROWS]; COLUMNS];
    for start in (0..k).step_by(COLUMNS) {
        let count = COLUMNS.min(k - start);
        // A last block of fewer columns computes its last one again.
        let rows_of = [0, 1, 2, 3].map(|j| &job.coefficients[(start + j.min(count - 1)) * k..][..k]);
        for r in 0..rows {
            for j in 0..count {
                sums[j][r] = w[r * k + start + j];
            }
        }
        let behind = if job.fresh { k..k } else { start + count..k };
        for lane in (0..ROWS).step_by(2 * L::N) {
            let mut acc =
                [0, 1, 2, 3].map(|j: usize| [0, L::N].map(|half| l.load(&sums[j][lane + half..lane + half + L::N])));
            for i in (0..start).chain(behind.clone()) {
                let at = i * ROWS + lane;
                let e = [l.load(&errors[at..at + L::N]), l.load(&errors[at + L::N..at + 2 * L::N])];
                for j in 0..COLUMNS {
                    let by = l.splat(rows_of[j][i]);
                    acc[j] = [l.add(acc[j][0], l.mul(e[0], by)), l.add(acc[j][1], l.mul(e[1], by))];
                }
            }
            for j in 0..COLUMNS {
                l.store(acc[j][0], &mut sums[j][lane..lane + L::N]);
                l.store(acc[j][1], &mut sums[j][lane + L::N..lane + 2 * L::N]);
            }
        }
        for j in 0..count {
            let known = if job.fresh { j } else { count };
            for r in 0..rows {
                let mut sum = sums[j][r];
                for i in (0..known).filter(|&i| i != j) {
                    sum += errors[(start + i) * ROWS + r] * rows_of[j][start + i];
                }
                let levels = job.table(first + r, start + j);
                let code = nearest(levels, sum);
                codes[r * k + start + j] = code as u8;
                errors[(start + j) * ROWS + r] = w[r * k + start + j] - levels[code];
            }
        }
    }
}

/// Of ascending levels the nearest; of two as near the lower.
#[inline(always)]
fn nearest(levels: &[f32], x: f32) -> usize {
    let above = levels.partition_point(|&level| level < x);
    if above == 0 {
        return 0;
    }
    if above == levels.len() || x - levels[above - 1] <= levels[above] - x { above - 1 } else { above }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sum after the other, as the definition says.
    fn definition(w: &[f32], k: usize, by: &[f32], tables: &Tables, codes: &mut [u8], fresh: bool) {
        for (row, (w, codes)) in w.chunks(k).zip(codes.chunks_mut(k)).enumerate() {
            let table = |j: usize| {
                &tables.levels[(row * tables.groups + tables.group[j] as usize) * tables.size..][..tables.size]
            };
            for j in 0..k {
                let four = j / 4 * 4..k.min(j / 4 * 4 + 4);
                let outside = (0..four.start).chain(four.end..k);
                let mut sum = w[j];
                for i in outside.chain(four).filter(|&i| i != j && (i < j || !fresh)) {
                    sum += (w[i] - table(i)[usize::from(codes[i])]) * by[j * k + i];
                }
                let far = |&code: &usize| (table(j)[code] - sum).abs();
                let best = (0..tables.size).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap();
                codes[j] = best as u8;
            }
        }
    }

    #[test]
    fn every_instruction_set_rounds_as_the_definition() {
        for &isa in Isa::available() {
            let mut cases = 0;
            let mut state = 7u32;
            let mut random = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            for (rows, k, size) in [(1, 1usize, 1), (3, 5, 2), (33, 17, 4), (64, 40, 16), (31, 70, 7), (100, 24, 256)] {
                let groups = k.div_ceil(8);
                let group: Vec<u32> = (0..k).map(|j| ((j * 5) % k / 8) as u32).collect();
                let w: Vec<f32> = (0..rows * k).map(|_| random()).collect();
                let by: Vec<f32> = (0..k * k).map(|_| random() / 4.0).collect();
                let mut levels: Vec<f32> = (0..rows * groups * size).map(|_| random()).collect();
                levels.chunks_mut(size).for_each(|table| table.sort_by(f32::total_cmp));
                let tables = Tables { levels: &levels, group: &group, groups, size };
                let (mut ours, mut want) = (vec![0; rows * k], vec![0; rows * k]);
                for fresh in [true, false, false] {
                    for threads in [1, 2, 7] {
                        let mut again = ours.clone();
                        round_with_feedback(&w, k, &by, tables, &mut again, fresh, isa, &Ctl::new(threads)).unwrap();
                        if threads == 7 {
                            ours = again;
                        }
                    }
                    definition(&w, k, &by, &tables, &mut want, fresh);
                    assert_eq!(ours, want, "{isa:?} {rows} {k} {size}");
                    cases += 1;
                }
            }
            println!("{cases} cases of feedback on {isa:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let tables = Tables { levels: &[0.0, 1.0], group: &[0], groups: 1, size: 2 };
        let isa = Isa::best();
        let run = |w: &[f32], k, by: &[f32], tables, codes: &mut [u8], fresh| {
            round_with_feedback(w, k, by, tables, codes, fresh, isa, &Ctl::new(1)).is_err()
        };
        assert!(!run(&[f32::NAN], 1, &[0.0], tables, &mut [0], true));
        assert!(run(&[0.5], 0, &[0.0], tables, &mut [0], true));
        assert!(run(&[0.5], 1, &[], tables, &mut [0], true));
        assert!(run(&[0.5], 1, &[0.0], tables, &mut [2], false));
        assert!(run(&[0.5], 1, &[0.0], Tables { group: &[1], ..tables }, &mut [0], true));
        assert!(run(&[0.5], 1, &[0.0], Tables { size: 0, ..tables }, &mut [0], true));
        assert!(run(&[0.5], usize::MAX, &[0.0], tables, &mut [0], true));
    }
}
