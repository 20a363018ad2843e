//! Weights whose codes stand for entries of tables.
//!
//! With inputs of 8 bits, what a code stands for is an int8 again ([`fold`]): so a panel is
//! brought into the form of an int8 one, in the cache, and the kernels of int8 multiply it.
//! A table of 16 entries is a register to the look-up of bytes.

use super::groups::{GroupPanel, Grouped, SUPER};
use super::tiled::PANEL;
use crate::Isa;

/// Which codes share a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// All of a weight; or of many weights.
    Tensor,
    /// An output row's.
    Row,
    /// A group's of an output row.
    Group,
}

/// Tables one after the other, each of 2^nbits entries: int8 for inputs of 8 bits, else
/// floats, which are used as they are.
#[derive(Clone, Copy, Debug)]
pub enum Codebook<'a> {
    /// For inputs that are rounded to 8 bits.
    Int8(&'a [i8]),
    /// For inputs as they are.
    F32(&'a [f32]),
    /// The same, bfloat16.
    Bf16(&'a [u16]),
}

impl Codebook<'_> {
    /// Entries.
    pub(crate) fn len(&self) -> usize {
        match self {
            Codebook::Int8(entries) => entries.len(),
            Codebook::F32(entries) => entries.len(),
            Codebook::Bf16(entries) => entries.len(),
        }
    }

    /// An entry.
    #[inline(always)]
    pub(crate) fn entry(&self, at: usize) -> f32 {
        match self {
            Codebook::Int8(entries) => entries[at].into(),
            Codebook::F32(entries) => entries[at],
            Codebook::Bf16(entries) => widened(entries[at]),
        }
    }

    /// Writes entries from `at` on.
    #[inline(always)]
    pub(crate) fn read(&self, at: usize, to: &mut [f32]) {
        let at = at..at + to.len();
        match self {
            Codebook::Int8(entries) => to.iter_mut().zip(&entries[at]).for_each(|(to, &entry)| *to = entry.into()),
            Codebook::F32(entries) => to.copy_from_slice(&entries[at]),
            Codebook::Bf16(entries) => to.iter_mut().zip(&entries[at]).for_each(|(to, &entry)| *to = widened(entry)),
        }
    }
}

/// A bfloat16.
#[inline(always)]
fn widened(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The integer, -127 to 127, that an entry stands for in a group: entry · multiplier / 128, to
/// the nearest, halves up.
#[inline(always)]
pub(crate) fn fold(entry: i8, multiplier: i8) -> i8 {
    ((i32::from(entry) * i32::from(multiplier) + 64) >> 7).min(127) as i8
}

/// How many products of a column of integers with u8 are sure to fit a sum in 16 bits, for
/// 255 · 128 < 2^15: 4 where of eight integers numbers 0, 1, 4 and 5, and the others, have
/// positive ones that sum to 128 at most, and negative ones too; 2 where 0 and 1 have, 2 and
/// 3, and so on; else 1.
pub(crate) fn products_that_fit(column: &[i8]) -> u8 {
    let all = |size, most: fn(&[i8]) -> u32| column.chunks(size).all(|part| most(part) <= MOST);
    if all(8, |eight| fours(eight).into_iter().flatten().max().unwrap_or_default()) {
        4
    } else if all(2, |two| two.iter().map(|&w| i32::from(w)).sum::<i32>().unsigned_abs()) {
        2
    } else {
        1
    }
}

/// What integers whose products are summed in 16 bits may sum to.
pub(crate) const MOST: u32 = 128;

/// Of eight integers, of both fours, the sums of the positive and of the negative ones.
pub(crate) fn fours(eight: &[i8]) -> [[u32; 2]; 2] {
    let mut sums = [[0; 2]; 2];
    for (i, &w) in eight.iter().enumerate() {
        sums[i / 2 % 2][usize::from(w < 0)] += u32::from(w.unsigned_abs());
    }
    sums
}

/// A panel's integers as the codes of an int8 panel, `[K / 4][width][4]`.
pub(super) fn expand(panel: &GroupPanel, entries: &[i8], to: &mut [u8], isa: Isa) {
    assert!(to.len() == panel.k.div_ceil(4) * 4 * panel.width);
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: the Isa is this CPU's.
        return unsafe { super::avx2::expand(panel, entries, to) };
    }
    let _ = isa;
    expand_scalar(panel, entries, to);
}

/// A few rows of `panel.k` codes times a panel: what the product with [`expand`]'s panel is.
/// `scratch` has [`room`], and [`has_few`] says that this is to be called.
pub(super) fn few(panel: &GroupPanel, entries: &[i8], a: &[u8], scratch: &mut [u8], out: &mut [&mut [i32]], isa: Isa) {
    let padded = panel.k.next_multiple_of(SUPER);
    let rows = &mut scratch[..padded * out.len()];
    for (row, a) in rows.chunks_exact_mut(padded).zip(a.chunks_exact(panel.k)) {
        row[..a.len()].copy_from_slice(a);
        row[a.len()..].fill(0);
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the Isa is this CPU's, and has AVX2 by `has_few`.
    unsafe {
        super::avx2::few_with_tables(panel, entries, rows, out);
    }
    let _ = (entries, isa);
}

/// The definition of [`expand`].
pub(super) fn expand_scalar(panel: &GroupPanel, entries: &[i8], to: &mut [u8]) {
    let group_size = panel.groups.group_size();
    for (step, to) in to.chunks_exact_mut(4 * panel.width).enumerate() {
        let group = 4 * step / group_size;
        for (j, to) in to.chunks_exact_mut(4).enumerate() {
            let (at, multiplier) = (panel.table(group, j), panel.signed(group, j));
            for (to, code) in to.iter_mut().zip(panel.quad(step, j)) {
                *to = fold(entries[at + usize::from(code)], multiplier) as u8;
            }
        }
    }
}

/// Bytes of room for a panel's integers, or for the few rows that need none.
pub(super) fn room(isa: Isa, rows: usize, weight: &Grouped) -> usize {
    let columns = if has_few(isa, rows, weight) { rows } else { PANEL };
    weight.k().next_multiple_of(SUPER) * columns
}

/// Whether [`few`] takes so many rows.
pub(super) fn has_few(isa: Isa, rows: usize, weight: &Grouped) -> bool {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        return rows < super::avx2::FEW_WITH_TABLES && weight.fits() >= 2 && weight.groups().nbits() <= 4;
    }
    let _ = (isa, rows, weight);
    false
}
