//! Numbers to the codes of their nearest levels, and back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::MOST_LEVELS;
use crate::codebook::{Code, Steps, Value, count_below};
use crate::error::bail;
use crate::par::Parts;
use crate::{Ctl, Isa, Result};

/// An element type that is encoded.
pub trait Number: Value {
    /// Writes how many of the steps, at most 255, are below each number; whether all numbers are finite.
    #[doc(hidden)]
    fn count(x: &[Self], steps: &[Self], codes: &mut [u8], isa: Isa) -> bool;
}

impl Number for f32 {
    #[inline]
    fn count(x: &[f32], steps: &[f32], codes: &mut [u8], isa: Isa) -> bool {
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx2() {
            return super::avx2::count(isa, x, steps, codes);
        }
        let _ = isa;
        count(x, steps, codes)
    }
}

impl Number for f64 {
    #[inline]
    fn count(x: &[f64], steps: &[f64], codes: &mut [u8], _: Isa) -> bool {
        count(x, steps, codes)
    }
}

/// The definition of [`Number::count`].
pub(super) fn count<T: Value>(x: &[T], steps: &[T], codes: &mut [u8]) -> bool {
    count_below(steps, x, codes, Isa::Scalar);
    finite(x)
}

/// Whether all are, without a way out before the end, which would keep it from vectors.
fn finite<T: Value>(x: &[T]) -> bool {
    let mut wrong = 0u32;
    for x in x {
        wrong |= u32::from(!x.to_f64().is_finite());
    }
    wrong == 0
}

/// Numbers in one task.
const TASK: usize = 1 << 16;

/// Numbers whose finiteness is asked while they are in the first cache.
const BLOCK: usize = 1 << 11;

/// Up to this many steps counting those below beats a search.
const COUNTED: usize = 31;

/// One set of levels, as they were given, to encode with.
struct Table<T> {
    steps: Steps<T>,
    /// What stands for the codes of the distinct levels in ascending order, where these are not the levels given.
    given: Option<Vec<u16>>,
}

impl<T: Number> Table<T> {
    fn new(levels: &[f64], n: usize) -> Self {
        if levels.windows(2).all(|l| l[0] < l[1]) {
            return Table { steps: Steps::new(levels, n), given: None };
        }
        let mut order: Vec<u16> = (0..levels.len()).map(|i| i as u16).collect();
        let value = |i: u16| levels[i as usize];
        order.sort_by(|&a, &b| value(a).partial_cmp(&value(b)).expect("levels are finite")); // stable
        order.dedup_by(|later, first| value(*later) == value(*first));
        let distinct: Vec<f64> = order.iter().map(|&i| value(i)).collect();
        Table { steps: Steps::new(&distinct, n), given: Some(order) }
    }

    /// Whether all numbers are finite; if not, codes are anything.
    fn encode<C: Code + Into<usize>>(&self, x: &[T], codes: &mut [C], isa: Isa) -> bool {
        let mut good = true;
        for (x, codes) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)) {
            if self.steps.steps().len() <= COUNTED {
                let mut counts = [0; BLOCK];
                let counts = &mut counts[..x.len()];
                good &= T::count(x, self.steps.steps(), counts, isa);
                for (code, &count) in codes.iter_mut().zip(counts.iter()) {
                    *code = C::new(usize::from(count));
                }
            } else {
                good &= finite(x);
                self.steps.encode(x, codes, isa);
            }
            if let Some(given) = &self.given {
                for code in codes {
                    *code = C::new(usize::from(given[(*code).into()]));
                }
            }
        }
        good
    }
}

/// The index of each number's nearest level, of two that are as near the lower one's, of equal levels the first.
/// `rows`: each row of `x` has its own levels, in any order, one row of `levels`.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, levels are none or more than `C` names, or a number or
/// a level is not finite; [`crate::Error::Interrupted`].
pub fn encode<T: Number, C: Code + Into<usize>>(
    x: &[T],
    rows: usize,
    levels: &[f64],
    codes: &mut [C],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let k = levels_of_rows(x.len(), rows, levels.len(), codes.len())?;
    if k > C::LEVELS {
        bail!("levels: expected 1 to {} of codes of this type, got {k}", C::LEVELS);
    }
    finite_or_told("levels", levels)?;
    let good = AtomicBool::new(true);
    let n = x.len() / rows;
    let tell = |whether: bool| {
        if !whether {
            good.store(false, Relaxed);
        }
    };
    if rows == 1 {
        let table = Table::new(levels, n);
        let parts = Parts::new(x.chunks(TASK).zip(codes.chunks_mut(TASK)));
        ctl.for_each(parts.len(), &|_, task| {
            let (x, codes) = parts.take(task);
            tell(table.encode(x, codes, isa));
        })?;
    } else if n > 0 {
        let parts = Parts::new(x.chunks_exact(n).zip(codes.chunks_exact_mut(n)).zip(levels.chunks_exact(k)));
        ctl.for_each(rows, &|_, task| {
            let ((x, codes), levels) = parts.take(task);
            tell(Table::new(levels, n).encode(x, codes, isa));
        })?;
    }
    if good.into_inner() { Ok(()) } else { finite_or_told("x", x) }
}

/// The levels that codes stand for; `rows` as for [`encode`].
///
/// Each code is read once, so one that another thread changes meanwhile is still either looked up or refused.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, or a code is not below the number of levels, what `out` then
/// holds is undefined; [`crate::Error::Interrupted`].
pub fn decode<C: Code + Into<usize>, T: Copy + Send + Sync>(
    codes: &[C],
    rows: usize,
    levels: &[T],
    out: &mut [T],
    ctl: &Ctl,
) -> Result<()> {
    let k = levels_of_rows(codes.len(), rows, levels.len(), out.len())?;
    let n = codes.len() / rows;
    let wrong = Mutex::new(None::<(usize, usize)>);
    let task = if rows == 1 { TASK } else { n.max(1) };
    let parts = Parts::new(out.chunks_mut(task));
    ctl.for_each(parts.len(), &|_, part| {
        let levels = if rows == 1 { levels } else { &levels[part * k..][..k] };
        for (i, (out, &code)) in parts.take(part).iter_mut().zip(&codes[part * task..]).enumerate() {
            let code: usize = code.into();
            let Some(&level) = levels.get(code) else {
                let mut wrong = wrong.lock().unwrap_or_else(|e| e.into_inner());
                let at = part * task + i;
                if wrong.is_none_or(|(before, _)| at < before) {
                    *wrong = Some((at, code));
                }
                return;
            };
            *out = level;
        }
    })?;
    if let Some((at, code)) = wrong.into_inner().unwrap_or_else(|e| e.into_inner()) {
        bail!("codes: expected codes below {k}, the number of levels, got {code} at flat index {at}");
    }
    Ok(())
}

/// Levels of a row.
fn levels_of_rows(n: usize, rows: usize, levels: usize, out: usize) -> Result<usize> {
    if rows == 0 || n % rows != 0 || levels % rows != 0 || out != n {
        bail!("levels: {n} numbers and {levels} levels are no {rows} rows, or not as many as {out} outputs");
    }
    let k = levels / rows;
    if k == 0 || k > MOST_LEVELS {
        bail!("levels: expected 1 to {MOST_LEVELS}, got {k}");
    }
    Ok(k)
}

fn finite_or_told<T: Value>(name: &str, x: &[T]) -> Result<()> {
    let mut wrong = x.iter().map(|x| x.to_f64()).enumerate().filter(|(_, x)| !x.is_finite());
    if let Some((i, x)) = wrong.next() {
        bail!("{name}: expected finite values, got {x} at flat index {i}; {} in all", 1 + wrong.count());
    }
    Ok(())
}
