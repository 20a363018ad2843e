//! Rows of weights added with AVX-512, several panels side by side.
//!
//! Sums are kept as [`super::avx2`] keeps them, 64 columns to a vector. A list is gone through once for some panels,
//! whose rows come from the second-level cache: what a loop costs to begin and to end is shared.

use std::arch::x86_64::*;

use super::weight::{PANEL, Panel, SpikeForm};
use crate::Isa;

/// Codes of 8 bits whose sum fits 16.
const MOST: usize = u16::MAX as usize / u8::MAX as usize;

/// Panels of which sums stay in registers.
pub(super) const MANY: usize = 4;
/// Inputs up to which the second-level cache has room for so many.
pub(super) const MANY_INPUTS: usize = 1 << 11;

/// As [`super::scalar::codes`], of each of P panels of 64 columns of codes of 8 bits.
///
/// # Safety
/// The list's numbers are rows of the panels.
pub(super) unsafe fn codes<const P: usize>(
    isa: Isa,
    panels: &[Panel; P],
    list: &[u32],
    shift: u32,
    minus: bool,
    from: &[[i32; PANEL]; P],
    out: &mut [[i32; PANEL]; P],
) {
    assert!(isa.has_avx512() && panels.iter().all(|panel| panel.row_bytes == PANEL));
    let rows = panels.each_ref().map(|panel| panel.rows.as_ptr().cast());
    let (part, rest) = list.split_at(list.len().min(MOST));
    // SAFETY: an `Isa` that has AVX-512 exists only where the CPU has it; the caller's promise.
    unsafe {
        let sums = if minus { sums::<P, true> } else { sums::<P, false> };
        sums(rows, part, shift, from, out);
        for part in rest.chunks(MOST) {
            sums(rows, part, shift, &out.clone(), out);
        }
    }
}

/// # Safety
/// The CPU has AVX-512; the list's numbers, at most [`MOST`], are those of rows.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn sums<const P: usize, const MINUS: bool>(
    rows: [*const [u8; PANEL]; P],
    list: &[u32],
    shift: u32,
    from: &[[i32; PANEL]; P],
    out: &mut [[i32; PANEL]; P],
) {
    // SAFETY: the caller's promise.
    let (all, odd) = unsafe { added(rows, list) };
    for p in 0..P {
        let offset = 128 * list.len() as i32;
        // SAFETY: both have 64 elements.
        unsafe { spread::<MINUS>(all[p], odd[p], shift, offset, from[p].as_ptr(), out[p].as_mut_ptr()) };
    }
}

/// Writes a panel's codes as `[ceil(K / 4)][width][4]`, signed, 0 behind K. Its rows have a byte for each column.
pub(super) fn tile(isa: Isa, panel: &Panel, to: &mut [u8]) {
    /// Vectors of 16 columns, four codes each, of four rows: or of the 32 columns of four rows, and of the next four.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn quads(rows: [__m512i; 4], half: __m512i) -> [__m512i; 4] {
        let [a, b, c, d] = rows.map(|row| _mm512_sub_epi8(row, half));
        let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
        let (low2, high2) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
        // By `place`, vector v has in dword j of lane l column 32 (l / 2) + 8 j + 4 (l % 2) + v.
        let v = [
            _mm512_unpacklo_epi16(low, low2),
            _mm512_unpackhi_epi16(low, low2),
            _mm512_unpacklo_epi16(high, high2),
            _mm512_unpackhi_epi16(high, high2),
        ];
        let (a, b) = (_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
        let (c, d) = (_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
        let j = [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ];
        [
            _mm512_shuffle_i64x2::<0x44>(j[0], j[1]),
            _mm512_shuffle_i64x2::<0x44>(j[2], j[3]),
            _mm512_shuffle_i64x2::<0xee>(j[0], j[1]),
            _mm512_shuffle_i64x2::<0xee>(j[2], j[3]),
        ]
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn run(rows: &[u8], width: usize, none: u8, to: &mut [u8]) {
        let half = _mm512_set1_epi8(none as i8);
        // Rows that become 256 bytes, and where those of the upper half of each are.
        let (step, upper) = if width == PANEL { (4, 32) } else { (8, 4 * width) };
        let write = |rows: &[u8], to: &mut [u8; 4 * PANEL]| {
            let rows = std::array::from_fn(|i| {
                let (low, high) = (&rows[i * width..][..32], &rows[i * width + upper..][..32]);
                // SAFETY: 32 bytes each.
                unsafe {
                    let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.as_ptr().cast()));
                    _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(high.as_ptr().cast()))
                }
            });
            for (to, quad) in to.as_chunks_mut::<64>().0.iter_mut().zip(quads(rows, half)) {
                // SAFETY: 64 bytes.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), quad) };
            }
        };
        let (all, rest) = to.as_chunks_mut();
        let mut rows = rows.chunks_exact(step * width);
        for (rows, to) in (&mut rows).zip(&mut *all) {
            write(rows, to);
        }
        let left = rows.remainder();
        if !left.is_empty() {
            let (mut last, mut quads) = ([none; 4 * PANEL], [0; 4 * PANEL]);
            last[..left.len()].copy_from_slice(left);
            write(&last, &mut quads);
            let to = if rest.is_empty() { all.last_mut().expect("the last rows").as_mut_slice() } else { rest };
            to.copy_from_slice(&quads[..to.len()]);
        }
    }

    let (SpikeForm::Codes(nbits), width) = (panel.form, panel.row_bytes) else { unreachable!("floats are no codes") };
    let rows = panel.rows.len() / width;
    assert!(isa.has_avx512() && (width == 32 || width == PANEL) && to.len() == rows.div_ceil(4) * 4 * width);
    // SAFETY: an `Isa` that has AVX-512 exists only where the CPU has it.
    unsafe { run(panel.rows, width, 1 << (nbits - 1), to) };
}

/// Inputs from which on eights of them are added bit by bit.
const EIGHTS: usize = 24;

/// Sums of the listed rows: of the columns as 16-bit words, and of the odd bytes alone.
///
/// Eight rows at a time are added as eight bits are counted, in each bit of the columns, by full adders (Harley and
/// Seal's; here of bytes): 14 operations, and 3 for what they carry into the sums, instead of 24.
///
/// # Safety
/// The list's numbers, at most [`MOST`], are those of rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn added<const P: usize>(rows: [*const [u8; PANEL]; P], list: &[u32]) -> ([__m512i; P], [__m512i; P]) {
    let zero = [_mm512_setzero_si512(); P];
    let (mut all, mut odd) = (zero, zero);
    let (eights, rest) = if list.len() < EIGHTS { (&[][..], list) } else { list.as_chunks::<8>() };
    // SAFETY: the caller's promise.
    unsafe {
        if !eights.is_empty() {
            let (mut ones, mut twos, mut fours) = (zero, zero, zero);
            for list in eights {
                for p in 0..P {
                    macro_rules! full_add {
                        ($sum:expr, $a:expr, $b:expr) => {{
                            let (sum, a, b) = ($sum, $a, $b);
                            $sum = _mm512_ternarylogic_epi32::<0x96>(sum, a, b);
                            _mm512_ternarylogic_epi32::<0xe8>(sum, a, b)
                        }};
                    }
                    macro_rules! row {
                        ($i:literal) => {
                            _mm512_loadu_si512(rows[p].add(list[$i] as usize).cast())
                        };
                    }
                    let two = full_add!(ones[p], row!(0), row!(1));
                    let other = full_add!(ones[p], row!(2), row!(3));
                    let four = full_add!(twos[p], two, other);
                    let two = full_add!(ones[p], row!(4), row!(5));
                    let other = full_add!(ones[p], row!(6), row!(7));
                    let other = full_add!(twos[p], two, other);
                    let eight = full_add!(fours[p], four, other);
                    all[p] = _mm512_add_epi16(all[p], eight);
                    odd[p] = _mm512_add_epi16(odd[p], _mm512_srli_epi16::<8>(eight));
                }
            }
            for p in 0..P {
                for bits in [fours[p], twos[p], ones[p]] {
                    all[p] = _mm512_add_epi16(_mm512_add_epi16(all[p], all[p]), bits);
                    odd[p] = _mm512_add_epi16(_mm512_add_epi16(odd[p], odd[p]), _mm512_srli_epi16::<8>(bits));
                }
            }
        }
        for &k in rest {
            for p in 0..P {
                let x = _mm512_loadu_si512(rows[p].add(k as usize).cast());
                all[p] = _mm512_add_epi16(all[p], x);
                odd[p] = _mm512_add_epi16(odd[p], _mm512_srli_epi16::<8>(x));
            }
        }
    }
    (all, odd)
}

/// `from` plus or minus sums of 64 columns, 2^shift times each, from which `offset` is taken before.
///
/// # Safety
/// 64 elements from `from` on are readable, from `out` on writable; they may be the same.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn spread<const MINUS: bool>(
    all: __m512i,
    odd: __m512i,
    shift: u32,
    offset: i32,
    from: *const i32,
    out: *mut i32,
) {
    let (count, low) = (_mm_cvtsi32_si128(shift as i32), _mm512_set1_epi32(0xffff));
    let offset = _mm512_set1_epi32(offset << shift);
    let even = _mm512_sub_epi16(all, _mm512_slli_epi16::<8>(odd));
    let mut sums = [
        _mm512_and_si512(even, low),
        _mm512_and_si512(odd, low),
        _mm512_srli_epi32::<16>(even),
        _mm512_srli_epi32::<16>(odd),
    ];
    if shift > 0 {
        sums = sums.map(|sum| _mm512_sll_epi32(sum, count));
    }
    // A panel's columns are in the order of vectors of 256 bits: see `place`.
    let sums = [
        _mm512_shuffle_i64x2::<0x44>(sums[0], sums[1]),
        _mm512_shuffle_i64x2::<0x44>(sums[2], sums[3]),
        _mm512_shuffle_i64x2::<0xee>(sums[0], sums[1]),
        _mm512_shuffle_i64x2::<0xee>(sums[2], sums[3]),
    ];
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let before = _mm512_loadu_si512(from.add(16 * i).cast());
            let after = if MINUS {
                _mm512_sub_epi32(_mm512_add_epi32(before, offset), sum)
            } else {
                _mm512_add_epi32(_mm512_sub_epi32(before, offset), sum)
            };
            _mm512_storeu_si512(out.add(16 * i).cast(), after);
        }
    }
}

/// Rows of inputs that are taken together where they are dense: an input that several have is added once for them.
pub(super) const TOGETHER: usize = 3;
/// Words of 64 inputs of a block: all of these may have fired.
const WORDS: usize = MOST / 64;
/// Which of the rows have an input, if any.
const KINDS: usize = (1 << TOGETHER) - 1;
/// The inputs of some rows, block by block, by which of the rows have them.
#[derive(Default)]
pub(super) struct Shared {
    inputs: Vec<u32>,
    /// Where those of a block end, each kind's.
    ends: Vec<[usize; KINDS]>,
}

impl Shared {
    /// Those of rows of so many bits; false where there is no memory.
    pub(super) fn list(&mut self, isa: Isa, k: usize, rows: [&[u64]; TOGETHER]) -> bool {
        #[target_feature(enable = "avx512f,popcnt")]
        fn run(shared: &mut Shared, rows: [&[u64]; TOGETHER]) {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let (words, mut end) = (rows[0].len(), 0);
            // Twice as many inputs where no row has more of them than a sum of 16 bits holds codes.
            let many = |row: &&[u64]| row.chunks(2 * WORDS).any(|words| super::lists::count_in(words) > MOST);
            let block = if rows.iter().any(many) { WORDS } else { 2 * WORDS };
            for first in (0..words).step_by(block) {
                let mut ends = [0; KINDS];
                for (kind, ends) in (1..).zip(&mut ends) {
                    for w in first..words.min(first + block) {
                        let of = |row: usize| if kind >> row & 1 == 1 { rows[row][w] } else { !rows[row][w] };
                        let word = of(0) & of(1) & of(2);
                        for part in 0..4 {
                            let (mask, base) = ((word >> (16 * part)) as u16, 64 * w + 16 * part);
                            let inputs = _mm512_add_epi32(lanes, _mm512_set1_epi32(base as i32));
                            let Some(to) = shared.inputs[end..].first_chunk_mut::<16>() else { unreachable!("room") };
                            // SAFETY: sixteen are written, which `to` has.
                            unsafe {
                                _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(mask, inputs));
                            }
                            end += mask.count_ones() as usize;
                        }
                    }
                    *ends = end;
                }
                shared.ends.push(ends);
            }
        }
        let (inputs, words) = (k + 16, k.div_ceil(64));
        // None past the last.
        let whole = |row: &&[u64]| k % 64 == 0 || row.last().is_some_and(|last| last >> (k % 64) == 0);
        assert!(isa.has_avx512() && rows.iter().all(|row| row.len() == words) && rows.iter().all(whole));
        self.ends.clear();
        self.inputs.clear();
        if self.inputs.try_reserve(inputs).is_err() || self.ends.try_reserve(words.div_ceil(WORDS)).is_err() {
            return false;
        }
        self.inputs.resize(inputs, 0);
        // SAFETY: an `Isa` that has AVX-512 exists only where the CPU has it, and `popcnt`.
        unsafe { run(self, rows) };
        true
    }

    /// Blocks of inputs.
    pub(super) fn blocks(&self) -> usize {
        self.ends.len()
    }

    /// As [`codes`], of all the rows, one block of their inputs and one panel; what a block before it left is in `out`.
    pub(super) fn add(
        &self,
        isa: Isa,
        panel: &Panel,
        block: usize,
        minus: [bool; TOGETHER],
        from: [&[i32; PANEL]; TOGETHER],
        out: [&mut [i32; PANEL]; TOGETHER],
    ) {
        /// # Safety
        /// Inputs, at most [`MOST`] of a row, are rows of the panel; 64 elements are readable from each `from` on, and
        /// writable from `out` on.
        #[target_feature(enable = "avx512f,avx512bw")]
        unsafe fn run(
            rows: &[[u8; PANEL]],
            inputs: [&[u32]; KINDS],
            minus: [bool; TOGETHER],
            from: [*const i32; TOGETHER],
            out: [*mut i32; TOGETHER],
        ) {
            let zero = _mm512_setzero_si512();
            let (mut all, mut odd, mut count) = ([zero; TOGETHER], [zero; TOGETHER], [0; TOGETHER]);
            // Written out: sums in an array that a loop goes through would lie in memory.
            macro_rules! add {
                ($kind:literal: $($row:literal)*) => {{
                    let inputs = inputs[$kind - 1];
                    // SAFETY: the caller's promise; of a kind are no more than of a row.
                    let ([some], [some_odd]) = unsafe { added([rows.as_ptr()], inputs) };
                    $(
                        count[$row] += inputs.len();
                        all[$row] = _mm512_add_epi16(all[$row], some);
                        odd[$row] = _mm512_add_epi16(odd[$row], some_odd);
                    )*
                }};
            }
            add!(1: 0);
            add!(2: 1);
            add!(3: 0 1);
            add!(4: 2);
            add!(5: 0 2);
            add!(6: 1 2);
            add!(7: 0 1 2);
            macro_rules! finish {
                ($($row:literal)*) => {$(
                    // SAFETY: the caller's promise.
                    unsafe {
                        let offset = 128 * count[$row] as i32;
                        if minus[$row] {
                            spread::<true>(all[$row], odd[$row], 0, offset, from[$row], out[$row]);
                        } else {
                            spread::<false>(all[$row], odd[$row], 0, offset, from[$row], out[$row]);
                        }
                    }
                )*};
            }
            finish!(0 1 2);
        }
        let rows = panel.rows.as_chunks().0;
        assert!(isa.has_avx512() && panel.row_bytes == PANEL && rows.len() + 16 == self.inputs.len());
        let mut begin = if block == 0 { 0 } else { self.ends[block - 1][KINDS - 1] };
        let inputs = self.ends[block].map(|end| &self.inputs[std::mem::replace(&mut begin, end)..end]);
        let out = out.map(|out| out.as_mut_ptr());
        let from = if block == 0 { from.map(|from| from.as_ptr()) } else { out.map(|out| out.cast_const()) };
        // SAFETY: an `Isa` that has AVX-512 exists only where the CPU has it. Inputs are below K, of which a panel has as
        // many rows; `list` saw to it that a block has no more of one row; the arrays have 64 elements.
        unsafe { run(rows, inputs, minus, from, out) }
    }
}
