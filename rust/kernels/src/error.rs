//! The one error type of the crate.

/// What a kernel can refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An argument's value or a slice's length does not fit the others.
    #[error("{0}")]
    Value(String),
    /// The instruction set was asked for by name and this CPU lacks it.
    #[error("isa: this CPU cannot run '{0}'; it has {1}")]
    Isa(String, String),
    /// A buffer of this many bytes could not be reserved.
    #[error("out of memory: {0} bytes could not be reserved")]
    Memory(usize),
    /// The caller asked the call to stop (see [`crate::Ctl`]).
    #[error("interrupted")]
    Interrupted,
}

/// The crate's result.
pub type Result<T> = core::result::Result<T, Error>;

/// `Err(Error::Value)` with a formatted message: argument, got, expected.
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::Error::Value(format!($($arg)*))) };
}
pub(crate) use bail;

/// The product of sizes that came from a caller, or an error naming them.
pub(crate) fn checked_product(what: &str, factors: &[usize]) -> Result<usize> {
    factors
        .iter()
        .try_fold(1usize, |p, &f| p.checked_mul(f))
        .filter(|&p| p <= isize::MAX as usize)
        .ok_or_else(|| Error::Value(format!("{what}: the size {factors:?} overflows")))
}

/// A vector of `n` zeros, or [`Error::Memory`] where an ordinary `vec!` aborts.
pub(crate) fn try_zeroed<T: Clone + Default>(n: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| Error::Memory(n.saturating_mul(size_of::<T>())))?;
    v.resize(n, T::default());
    Ok(v)
}
