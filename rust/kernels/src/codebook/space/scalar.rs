//! The definition: which codeword is nearest, and how far it is.
//!
//! Everything else in this folder finds the same codewords sooner: in float32,
//! with errors that it bounds, it rules out those that cannot be nearest, and
//! asks here about the rest. So codes and distances are the same bytes on every
//! instruction set, for any number of threads and whatever was ruled out.

/// An element of points and codewords: float32 or float64.
pub trait Real: Copy + PartialEq + Default + Send + Sync + 'static {
    /// The value, exactly.
    fn wide(self) -> f64;
    /// Rounded to nearest.
    fn narrow(x: f64) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn narrow(x: f64) -> f32 {
        x as f32
    }
}

impl Real for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn narrow(x: f64) -> f64 {
        x
    }
}

/// The squared distance: differences, squares and their sum from the first
/// dimension to the last, each rounded once to float64.
#[inline(always)]
pub(super) fn distance<T: Real>(x: &[T], c: &[T]) -> f64 {
    x.iter().zip(c).fold(0.0, |sum, (&x, &c)| {
        let off = x.wide() - c.wide();
        sum + off * off
    })
}

/// Distances and indices of those codewords of `among` that are nearest to
/// `x`, nearest first, ties to the lower index: as many as `found` holds.
pub(super) fn nearest<T: Real>(x: &[T], codebook: &[T], among: impl Iterator<Item = u32>, found: &mut [(f64, u32)]) {
    let d = x.len();
    found.fill((f64::INFINITY, u32::MAX));
    for code in among {
        let new = (distance(x, &codebook[code as usize * d..][..d]), code);
        let mut at = found.len();
        while at > 0 && new < found[at - 1] {
            at -= 1;
        }
        if at < found.len() {
            found[at..].rotate_right(1);
            found[at] = new;
        }
    }
}
