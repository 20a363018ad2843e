//! Codes of 1 to 16 bits to dense bytes and back.
//!
//! A row of n codes takes ceil(n·nbits / 8) bytes: code i fills the bits
//! i·nbits .. (i + 1)·nbits, counted from the lowest bit of the first byte; the
//! bits after the last code are zero. Rows start on a byte. Codes of 1 to 8
//! bits are held in `u8`, those of 9 to 16 bits in `u16`.
//!
//! ```
//! use lowbit_kernels::{Ctl, Isa, packing};
//!
//! let mut packed = [0u8; 3];
//! packing::pack(&[1u8, 2, 3, 4, 5, 6, 7, 0], 1, 8, 3, &mut packed, Isa::best(), &Ctl::new(1))?;
//! assert_eq!(packed, [0b11_010_001, 0b0_101_100_0, 0b000_111_11]);
//!
//! let mut codes = [0u8; 8];
//! packing::unpack(&packed, 1, 8, 3, &mut codes, Isa::best(), &Ctl::new(1))?;
//! assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 0]);
//! # Ok::<(), lowbit_kernels::Error>(())
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::error::{bail, checked_product};
use crate::{Ctl, Error, Isa, Result};
use sealed::Path;

/// Codes in one task. A multiple of 8, so that tasks begin on whole bytes; small
/// enough that a task takes microseconds and Ctrl-C never waits.
const TASK: usize = 1 << 16;

/// Results of this many bytes are written past the caches where a path can:
/// as fast or up to a third faster than through them, measured at 16 MiB.
const STREAM: usize = 4 << 20;

/// An unsigned integer that holds one code: `u8` or `u16`.
pub trait Code: Copy + Send + Sync + sealed::Code {
    /// The widths that it holds.
    const NBITS: RangeInclusive<u32>;
}

impl Code for u8 {
    const NBITS: RangeInclusive<u32> = 1..=8;
}

impl Code for u16 {
    const NBITS: RangeInclusive<u32> = 9..=16;
}

/// Bytes that a row of `n` codes of `nbits` bits takes.
///
/// # Errors
/// [`Error::Value`] where the number overflows.
pub fn packed_len(n: usize, nbits: u32) -> Result<usize> {
    let rest = (n % 8 * nbits as usize).div_ceil(8);
    checked_product("n", &[n / 8, nbits as usize])?
        .checked_add(rest)
        .ok_or_else(|| Error::Value(format!("n: {n} codes of {nbits} bits overflow")))
}

/// Packs `rows` rows of `n` codes each into `out`, whose length is
/// `rows * packed_len(n, nbits)`.
///
/// # Errors
/// [`Error::Value`] where a length does not fit, `nbits` is not in
/// [`Code::NBITS`], or a code is not below 2^nbits: it names the first such
/// code, and `out` then holds nothing of use. [`Error::Interrupted`] where
/// `ctl` stops the call.
pub fn pack<C: Code>(
    codes: &[C],
    rows: usize,
    n: usize,
    nbits: u32,
    out: &mut [u8],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let bytes = check::<C>(rows, n, nbits, ("codes", codes.len()), ("out", out.len()))?;
    let first_bad = AtomicUsize::new(usize::MAX);
    let shape = Shape::of(rows, n, nbits, bytes);
    let path = Path { isa, stream: size_of_val(out) >= STREAM };
    let sides = (Side { row: shape.n, task: TASK }, Side { row: shape.bytes, task: TASK / 8 * nbits as usize });
    split(&shape, codes, out, sides, ctl, |at, codes, out| {
        let row_starts = (at..).step_by(shape.n);
        for ((at, codes), out) in row_starts.zip(codes.chunks(shape.n)).zip(out.chunks_mut(shape.bytes)) {
            if C::pack_row(codes, nbits, out, path).bits() >> nbits != 0 {
                let within = codes.iter().position(|code| code.bits() >> nbits != 0);
                first_bad.fetch_min(at + within.unwrap_or(0), Relaxed);
            }
        }
    })?;
    match first_bad.into_inner() {
        usize::MAX => Ok(()),
        at => bail!(
            "codes: expected values below 2^{nbits} = {}, got {} at flat index {at}",
            1 << nbits,
            codes[at].bits()
        ),
    }
}

/// Unpacks `rows` rows of `n` codes each from `packed`, whose length is
/// `rows * packed_len(n, nbits)`, into `out`.
///
/// # Errors
/// [`Error::Value`] where a length does not fit, `nbits` is not in
/// [`Code::NBITS`], or a bit after the last code of a row is set: it names the
/// first such row. [`Error::Interrupted`] where `ctl` stops the call.
pub fn unpack<C: Code>(
    packed: &[u8],
    rows: usize,
    n: usize,
    nbits: u32,
    out: &mut [C],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let bytes = check::<C>(rows, n, nbits, ("out", out.len()), ("packed", packed.len()))?;
    let first_bad = AtomicUsize::new(usize::MAX);
    let shape = Shape::of(rows, n, nbits, bytes);
    let path = Path { isa, stream: size_of_val(out) >= STREAM };
    let sides = (Side { row: shape.bytes, task: TASK / 8 * nbits as usize }, Side { row: shape.n, task: TASK });
    split(&shape, packed, out, sides, ctl, |at, packed, out| {
        let row_starts = (at..).step_by(shape.bytes);
        for ((at, packed), out) in row_starts.zip(packed.chunks(shape.bytes)).zip(out.chunks_mut(shape.n)) {
            C::unpack_row(packed, nbits, out, path);
            let used = out.len() % 8 * nbits as usize % 8;
            if used != 0 && packed.last().is_some_and(|last| last >> used != 0) {
                first_bad.fetch_min(at / shape.bytes, Relaxed);
            }
        }
    })?;
    match first_bad.into_inner() {
        usize::MAX => Ok(()),
        row => bail!("packed: expected zeros after the last code of each row, got a set bit at the end of row {row}"),
    }
}

/// The bytes of a row, where all lengths fit together.
fn check<C: Code>(rows: usize, n: usize, nbits: u32, codes: (&str, usize), packed: (&str, usize)) -> Result<usize> {
    if !C::NBITS.contains(&nbits) {
        bail!(
            "nbits: expected {} to {} for codes of {} bytes, got {nbits}",
            C::NBITS.start(),
            C::NBITS.end(),
            size_of::<C>()
        );
    }
    let bytes = packed_len(n, nbits)?;
    for ((name, len), each) in [(codes, n), (packed, bytes)] {
        if len != checked_product(name, &[rows, each])? {
            bail!("{name}: expected {rows} rows of {each}, got {len} in all");
        }
    }
    Ok(bytes)
}

/// The rows to work on. Rows that fill their bytes are one long row.
struct Shape {
    rows: usize,
    /// Codes of a row, at least 1.
    n: usize,
    /// Bytes of a row, at least 1.
    bytes: usize,
}

impl Shape {
    fn of(rows: usize, n: usize, nbits: u32, bytes: usize) -> Shape {
        let full = (n % 8 * nbits as usize).is_multiple_of(8);
        let (rows, n, bytes) = if full { (1, rows * n, rows * bytes) } else { (rows, n, bytes) };
        Shape { rows, n: n.max(1), bytes: bytes.max(1) }
    }
}

/// How one of the two buffers is cut: elements of a row and of a task.
struct Side {
    row: usize,
    task: usize,
}

/// Runs `body(index of the first element of `from`, from, to)` for parts of
/// about `TASK` codes: groups of whole rows, or parts of one row.
fn split<A: Sync, B: Send, F: Fn(usize, &[A], &mut [B]) + Sync>(
    shape: &Shape,
    from: &[A],
    to: &mut [B],
    (a, b): (Side, Side),
    ctl: &Ctl,
    body: F,
) -> Result<()> {
    let rows = (TASK / shape.n).max(1); // of a group
    let whole = shape.n <= TASK;
    if whole && shape.rows <= rows {
        body(0, from, to);
        return Ok(());
    }
    // Each task locks its own part: that costs nothing and needs no `unsafe`.
    type Part<'a, A, B> = (usize, &'a [A], Mutex<&'a mut [B]>);
    let count =
        if whole { shape.rows.div_ceil(rows) } else { checked_product("rows", &[shape.rows, shape.n.div_ceil(TASK)])? };
    let mut parts: Vec<Part<A, B>> = Vec::new();
    parts.try_reserve_exact(count).map_err(|_| Error::Memory(count.saturating_mul(size_of::<Part<A, B>>())))?;
    for (i, (from, to)) in from.chunks(rows * a.row).zip(to.chunks_mut(rows * b.row)).enumerate() {
        let at = i * rows * a.row;
        if whole {
            parts.push((at, from, Mutex::new(to)));
        } else {
            let cuts = from.chunks(a.task).zip(to.chunks_mut(b.task)).enumerate();
            parts.extend(cuts.map(|(k, (from, to))| (at + k * a.task, from, Mutex::new(to))));
        }
    }
    ctl.for_each(parts.len(), &|_, task| {
        let (at, from, to) = &parts[task];
        body(*at, from, &mut to.lock().unwrap_or_else(PoisonError::into_inner));
    })
}

mod sealed {
    use crate::Isa;

    /// How a row is to be done.
    #[derive(Clone, Copy)]
    pub struct Path {
        pub isa: Isa,
        /// Write past the caches.
        pub stream: bool,
    }

    /// One row at a time.
    pub trait Code: Sized {
        fn bits(self) -> u32;
        /// Returns the OR of the codes.
        fn pack_row(codes: &[Self], nbits: u32, out: &mut [u8], path: Path) -> Self;
        fn unpack_row(packed: &[u8], nbits: u32, out: &mut [Self], path: Path);
    }
}

/// `match` that turns `nbits` into the constant `W` of `$call`.
macro_rules! with_width {
    ($nbits:expr, [$($w:literal)*], $call:expr) => {
        match $nbits {
            $($w => { const W: usize = $w; $call })*
            _ => unreachable!("checked against Code::NBITS"),
        }
    };
}

impl sealed::Code for u8 {
    fn bits(self) -> u32 {
        self.into()
    }

    fn pack_row(codes: &[u8], nbits: u32, out: &mut [u8], path: Path) -> u8 {
        if nbits == 8 {
            u8::unpack_row(codes, nbits, out, path); // both are a copy
            return 0;
        }
        #[cfg(target_arch = "x86_64")]
        if path.isa.has_avx512vbmi() {
            return with_width!(nbits, [1 2 3 4 5 6 7], avx512::pack::<W>(path.isa, codes, out));
        } else if path.isa.has_avx2() {
            return with_width!(nbits, [1 2 3 4 5 6 7], avx2::pack::<W>(path.isa, codes, out));
        }
        with_width!(nbits, [1 2 3 4 5 6 7], scalar::pack::<u8, W>(codes, out))
    }

    fn unpack_row(packed: &[u8], nbits: u32, out: &mut [u8], path: Path) {
        if nbits == 8 && !path.stream {
            return out.copy_from_slice(packed);
        }
        #[cfg(target_arch = "x86_64")]
        if path.isa.has_avx512vbmi() {
            return with_width!(nbits, [1 2 3 4 5 6 7 8], avx512::unpack::<W>(path.isa, packed, out, path.stream));
        } else if path.isa.has_avx2() {
            return with_width!(nbits, [1 2 3 4 5 6 7 8], avx2::unpack::<W>(path.isa, packed, out, path.stream));
        }
        with_width!(nbits, [1 2 3 4 5 6 7 8], scalar::unpack::<u8, W>(packed, out))
    }
}

impl sealed::Code for u16 {
    fn bits(self) -> u32 {
        self.into()
    }

    fn pack_row(codes: &[u16], nbits: u32, out: &mut [u8], _: Path) -> u16 {
        with_width!(nbits, [9 10 11 12 13 14 15 16], scalar::pack::<u16, W>(codes, out))
    }

    fn unpack_row(packed: &[u8], nbits: u32, out: &mut [u16], _: Path) {
        with_width!(nbits, [9 10 11 12 13 14 15 16], scalar::unpack::<u16, W>(packed, out))
    }
}
