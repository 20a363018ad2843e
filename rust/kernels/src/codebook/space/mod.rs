//! Codebooks of codewords with any number of dimensions: k-means, the nearest
//! codewords, look-up.
//!
//! `scalar.rs` defines which codeword is nearest, in float64; `tree.rs` rules
//! out in float32 what cannot be, by boxes or by scans of all (`scan.rs`, first in
//! integers where a CPU is faster by them, `rough.rs`), so that the definition is asked
//! about one codeword or two. `bounds.rs` remembers from one
//! iteration of k-means to the next what was ruled out. Hence every result is the
//! same bytes on every instruction set and any number of threads.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod bounds;
mod eight;
mod lloyd;
mod rough;
mod scalar;
mod scan;
mod sixteen;
#[cfg(test)]
mod tests;
mod tree;

use std::sync::{Mutex, PoisonError};

pub use lloyd::{Fit, Init, Options, kmeans};
pub use scalar::Real;

use crate::error::{Result, bail, checked_product, try_zeroed};
use crate::par::Parts;
use crate::{Ctl, Isa};
use tree::{Frame, Scratch, Search, Tree};

/// Elementary operations of a task: some milliseconds at the worst.
const TASK: usize = 1 << 22;

/// The `top` nearest of `k` codewords to each of `n` points, nearest first, ties
/// to the lower index, and their squared distances.
///
/// `x` is (n, d), `codebook` (k, d), `codes` and `distances` (n, top).
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, a value is not finite, or a
/// distance exceeds float32; [`crate::Error::Memory`]; [`crate::Error::Interrupted`].
pub fn assign<T: Real>(
    x: &[T],
    codebook: &[T],
    d: usize,
    top: usize,
    codes: &mut [u32],
    distances: &mut [f32],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let (n, k) = (points("x", x, d)?, points("codebook", codebook, d)?);
    check_codebook(k)?;
    if top == 0 || top > k {
        bail!("top: expected 1 to {k}, the size of the codebook, got {top}");
    }
    if n.checked_mul(top) != Some(codes.len()) || codes.len() != distances.len() {
        bail!("assign: {n} points times {top} do not fit {} codes, {} distances", codes.len(), distances.len());
    }
    finite("codebook", codebook, ctl)?;
    finite("x", x, ctl)?;
    let frame = Frame::of(codebook, d, ctl)?;
    let tree = Tree::new(codebook, d, &frame)?.with_rough(isa)?;
    let block = block(k, d);
    let slots = Slots::new(ctl, block.min(n), d, k, top)?;
    let parts = Parts::new(codes.chunks_mut(block * top).zip(distances.chunks_mut(block * top)));
    let far = std::sync::atomic::AtomicBool::new(false);
    ctl.for_each(parts.len(), &|slot, task| {
        let (codes, distances) = parts.take(task);
        let n = codes.len() / top;
        let x = &x[task * block * d..][..n * d];
        slots.with(slot, |slot| {
            let found = slot.search(&tree, &frame, codebook, x, None, true, isa);
            for ((code, distance), &(far_off, index)) in codes.iter_mut().zip(distances).zip(found.iter()) {
                (*code, *distance) = (index, far_off as f32);
                if !distance.is_finite() {
                    far.store(true, std::sync::atomic::Ordering::Relaxed);
                }
            }
        });
    })?;
    if far.into_inner() {
        bail!("x: squared distances from the codebook exceed float32; scale both down");
    }
    Ok(())
}

/// The codewords of codes: `out[i] = codebook[codes[i]]`, each `width` elements long.
///
/// Each code is read once, so one that another thread changes meanwhile is still
/// either looked up or refused.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, or a code is not below the size of
/// the codebook, what `out` then holds is undefined; [`crate::Error::Interrupted`].
pub fn lookup<C: Copy + Into<u64> + Sync, T: Copy + Send + Sync>(
    codes: &[C],
    codebook: &[T],
    width: usize,
    out: &mut [T],
    ctl: &Ctl,
) -> Result<()> {
    if width == 0 || codebook.len() % width != 0 || codes.len().checked_mul(width) != Some(out.len()) {
        bail!(
            "lookup: {} codes of width {width} do not fit {} elements of codebook, {} of out",
            codes.len(),
            codebook.len(),
            out.len()
        );
    }
    let k = (codebook.len() / width) as u64;
    let block = (TASK / 4).div_ceil(width);
    let parts = Parts::new(out.chunks_mut(block * width));
    let wrong = Mutex::new(None::<(usize, u64)>);
    ctl.for_each(parts.len(), &|_, task| {
        let out = parts.take(task);
        let first = task * block;
        for (i, (out, &code)) in out.chunks_exact_mut(width).zip(&codes[first..]).enumerate() {
            let code: u64 = code.into();
            if code >= k {
                let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
                if wrong.is_none_or(|(at, _)| first + i < at) {
                    *wrong = Some((first + i, code));
                }
                return;
            }
            out.copy_from_slice(&codebook[code as usize * width..][..width]);
        }
    })?;
    if let Some((at, code)) = wrong.into_inner().unwrap_or_else(PoisonError::into_inner) {
        bail!("codes: expected codes below {k}, the size of the codebook, got {code} at flat index {at}");
    }
    Ok(())
}

/// Points in `x`, which has `d` values of each.
fn points<T>(name: &str, x: &[T], d: usize) -> Result<usize> {
    if d == 0 || x.len() % d != 0 {
        bail!("{name}: {} values are not points of {d} dimensions", x.len());
    }
    Ok(x.len() / d)
}

fn check_codebook(k: usize) -> Result<()> {
    if k == 0 || k > u32::MAX as usize {
        bail!("codebook: expected 1 to {} codewords, got {k}", u32::MAX);
    }
    Ok(())
}

/// Points of a task.
fn block(k: usize, d: usize) -> usize {
    (TASK / (k * d / 8 + 8 * d + 256)).clamp(16, 4096) / 4 * 4
}

fn finite<T: Real>(name: &str, x: &[T], ctl: &Ctl) -> Result<()> {
    // A sum of zeros is NaN with anything else in it; in eight chains it is fast.
    let mut fine = true;
    for part in x.chunks(1 << 16) {
        ctl.check()?;
        let mut sums = [0.0f64; 8];
        let mut eights = part.chunks_exact(8);
        for eight in &mut eights {
            for (sum, x) in sums.iter_mut().zip(eight) {
                *sum += x.wide() * 0.0;
            }
        }
        fine &= sums.iter().sum::<f64>() == 0.0 && eights.remainder().iter().all(|x| x.wide().is_finite());
    }
    if fine {
        return Ok(());
    }
    let (mut nan, mut above, mut below, mut first) = (0usize, 0usize, 0usize, None);
    for (i, x) in x.iter().map(|x| x.wide()).enumerate() {
        if !x.is_finite() {
            nan += usize::from(x.is_nan());
            above += usize::from(x == f64::INFINITY);
            below += usize::from(x == f64::NEG_INFINITY);
            first.get_or_insert((
                i,
                if x.is_nan() {
                    "NaN"
                } else if x > 0.0 {
                    "+Inf"
                } else {
                    "-Inf"
                },
            ));
        }
    }
    let (at, kind) = first.unwrap_or_default();
    bail!(
        "{name}: expected finite values, got {} that are not ({nan} NaN, {above} +Inf, {below} -Inf), \
         the first {kind} at flat index {at}",
        nan + above + below
    );
}

/// One thread's memory.
struct Slot {
    placed: Vec<f32>,
    squares: Vec<f32>,
    found: Vec<(f64, u32)>,
    scratch: Scratch,
}

impl Slot {
    fn search<T: Real>(
        &mut self,
        tree: &Tree,
        frame: &Frame,
        codebook: &[T],
        x: &[T],
        guesses: Option<&[u32]>,
        distances: bool,
        isa: Isa,
    ) -> &[(f64, u32)] {
        let d = tree.d();
        let n = x.len() / d;
        let top = self.found.len() / self.squares.len();
        for ((x, placed), square) in x.chunks_exact(d).zip(self.placed.chunks_exact_mut(d)).zip(&mut self.squares) {
            *square = frame.place(x, placed);
        }
        let found = &mut self.found[..n * top];
        let (placed, squares) = (&self.placed[..n * d], &self.squares[..n]);
        tree::search(
            tree,
            &mut Search { codebook, x, placed, squares, guesses, distances, found },
            &mut self.scratch,
            isa,
        );
        found
    }
}

/// The memory of each thread.
struct Slots(Vec<Mutex<Slot>>);

impl Slots {
    fn new(ctl: &Ctl, block: usize, d: usize, k: usize, top: usize) -> Result<Slots> {
        let block = block.max(1);
        let slot = || {
            Ok(Mutex::new(Slot {
                placed: try_zeroed(checked_product("x", &[block, d])?)?,
                squares: try_zeroed(block)?,
                found: try_zeroed(checked_product("top", &[block, top])?)?,
                scratch: Scratch::new(k, d, top)?,
            }))
        };
        Ok(Slots((0..ctl.threads()).map(|_| slot()).collect::<Result<_>>()?))
    }

    fn with(&self, slot: usize, f: impl FnOnce(&mut Slot)) {
        f(&mut self.0[slot].lock().unwrap_or_else(PoisonError::into_inner));
    }
}
