//! Rows of weights added with AVX2.
//!
//! A sum of bytes is kept as two of 16 bits: `all`, of pairs of bytes as they come, modulo 2^16,
//! and `odd`, of the odd bytes alone; the even bytes' is `all - 2^8 odd`. That is a load, two
//! additions and a shift for 32 codes, where widening each takes half as much again. Codes of
//! 4 and 2 bits add up as bytes first, 17 or 85 of them.

use std::arch::x86_64::*;

use super::lists::WORD;
use super::weight::{PANEL, Panel, SpikeForm};
use crate::Isa;

/// Where a row's bytes come from.
trait Row {
    /// Bytes of a row.
    const BYTES: usize;
    /// The greatest code.
    const MOST: usize;
    /// # Safety
    /// The CPU has AVX2; `Self::BYTES` bytes can be read at `from`.
    unsafe fn load<const V: usize>(from: *const u8) -> [__m256i; V];
}

/// W vectors of bytes that hold codes of so many bits.
struct Bytes<const W: usize, const NBITS: u32>;

impl<const W: usize, const NBITS: u32> Row for Bytes<W, NBITS> {
    const BYTES: usize = 32 * W;
    const MOST: usize = (1 << NBITS) - 1;

    #[inline(always)]
    unsafe fn load<const V: usize>(from: *const u8) -> [__m256i; V] {
        const { assert!(V == W) };
        // SAFETY: the caller's promise, for 32 V bytes.
        unsafe { std::array::from_fn(|v| _mm256_loadu_si256(from.add(32 * v).cast())) }
    }
}

/// Two vectors of codes of 4 bits in one.
struct Fours;

impl Row for Fours {
    const BYTES: usize = 32;
    const MOST: usize = 15;

    #[inline(always)]
    unsafe fn load<const V: usize>(from: *const u8) -> [__m256i; V] {
        const { assert!(V == 2) };
        // SAFETY: the caller's promise.
        unsafe {
            let (x, mask) = (_mm256_loadu_si256(from.cast()), _mm256_set1_epi8(15));
            let mut out = [_mm256_and_si256(x, mask); V];
            out[V - 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(x), mask);
            out
        }
    }
}

/// Two vectors of codes of 2 bits in half of one.
struct Twos;

impl Row for Twos {
    const BYTES: usize = 16;
    const MOST: usize = 3;

    #[inline(always)]
    unsafe fn load<const V: usize>(from: *const u8) -> [__m256i; V] {
        const { assert!(V == 2) };
        // SAFETY: the caller's promise.
        unsafe {
            let x = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
            let mask = _mm256_set1_epi8(3);
            let shifts = _mm256_setr_epi64x(0, 0, 2, 2);
            let x = _mm256_srlv_epi64(x, shifts);
            let mut out = [_mm256_and_si256(x, mask); V];
            out[V - 1] = _mm256_and_si256(_mm256_srli_epi64::<4>(x), mask);
            out
        }
    }
}

/// As [`super::scalar::codes`]. `out` has room for the panel's width. `far`: the panel is in no cache.
///
/// # Safety
/// The CPU has AVX2; the list's numbers are rows of the panel.
pub(super) unsafe fn codes(
    panel: &Panel,
    list: &[u32],
    shift: u32,
    minus: bool,
    from: &[i32; PANEL],
    out: &mut [i32; PANEL],
    far: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (panel.form, panel.width) {
            (SpikeForm::Codes(8), PANEL) if far => sums::<Bytes<2, 8>, 2, true>(panel, list, shift, minus, from, out),
            (SpikeForm::Codes(8), 32) => sums::<Bytes<1, 8>, 1, false>(panel, list, shift, minus, from, out),
            (SpikeForm::Codes(8), _) => sums::<Bytes<2, 8>, 2, false>(panel, list, shift, minus, from, out),
            (SpikeForm::Codes(4), _) if panel.row_bytes == PANEL => {
                sums::<Bytes<2, 4>, 2, false>(panel, list, shift, minus, from, out)
            }
            (SpikeForm::Codes(4), _) => sums::<Fours, 2, false>(panel, list, shift, minus, from, out),
            (SpikeForm::Codes(2), _) if panel.row_bytes == PANEL => {
                sums::<Bytes<2, 2>, 2, false>(panel, list, shift, minus, from, out)
            }
            (SpikeForm::Codes(2), _) => sums::<Twos, 2, false>(panel, list, shift, minus, from, out),
            (SpikeForm::Codes(_) | SpikeForm::Floats, _) => unreachable!("checked when the weight was made"),
        }
    }
}

/// # Safety
/// As [`codes`]; the panel's rows are of `R`, V vectors of codes.
#[target_feature(enable = "avx2")]
unsafe fn sums<R: Row, const V: usize, const FAR: bool>(
    panel: &Panel,
    list: &[u32],
    shift: u32,
    minus: bool,
    from: &[i32; PANEL],
    out: &mut [i32; PANEL],
) {
    assert!(V * 32 <= PANEL && panel.row_bytes == R::BYTES);
    let offset = R::MOST.div_ceil(2) as i32;
    let (count, sign) = (_mm_cvtsi32_si128(shift as i32), _mm256_set1_epi32(if minus { -1 } else { 0 }));
    // So many codes fit a sum in 16 bits, and in 8.
    let (most, few) = (usize::from(u16::MAX) / R::MOST, usize::from(u8::MAX) / R::MOST);
    let mut from = from.as_ptr();
    let mut rest = list;
    loop {
        let (part, after) = rest.split_at(rest.len().min(most));
        let (mut all, mut odd) = ([_mm256_setzero_si256(); V], [_mm256_setzero_si256(); V]);
        if few == 1 {
            let (twos, last) = part.as_chunks::<2>();
            for (i, &[k, l]) in twos.iter().enumerate() {
                if FAR {
                    ahead::<R>(panel, twos, i + AHEAD);
                }
                // SAFETY: the list's numbers are rows of the panel.
                let (x, y) = unsafe { (row::<R, V>(panel, k), row::<R, V>(panel, l)) };
                add(&mut all, &mut odd, x);
                add(&mut all, &mut odd, y);
            }
            for &k in last {
                // SAFETY: as above.
                add(&mut all, &mut odd, unsafe { row::<R, V>(panel, k) });
            }
        } else {
            for few in part.chunks(few) {
                let mut bytes = [_mm256_setzero_si256(); V];
                let (twos, last) = few.as_chunks::<2>();
                for &[k, l] in twos {
                    // SAFETY: the list's numbers are rows of the panel.
                    let (x, y) = unsafe { (row::<R, V>(panel, k), row::<R, V>(panel, l)) };
                    for v in 0..V {
                        bytes[v] = _mm256_add_epi8(_mm256_add_epi8(bytes[v], x[v]), y[v]);
                    }
                }
                for &k in last {
                    // SAFETY: as above.
                    let x = unsafe { row::<R, V>(panel, k) };
                    for v in 0..V {
                        bytes[v] = _mm256_add_epi8(bytes[v], x[v]);
                    }
                }
                add(&mut all, &mut odd, bytes);
            }
        }
        let constant = _mm256_set1_epi32(-offset * part.len() as i32);
        let low = _mm256_set1_epi32(0xffff);
        for v in 0..V {
            let even = _mm256_sub_epi16(all[v], _mm256_slli_epi16::<8>(odd[v]));
            let eights = [
                _mm256_and_si256(even, low),
                _mm256_and_si256(odd[v], low),
                _mm256_srli_epi32::<16>(even),
                _mm256_srli_epi32::<16>(odd[v]),
            ];
            for (i, eight) in eights.into_iter().enumerate() {
                let sum = _mm256_sll_epi32(_mm256_add_epi32(eight, constant), count);
                let sum = _mm256_sub_epi32(_mm256_xor_si256(sum, sign), sign);
                let at = 32 * v + 8 * i;
                // SAFETY: 32 V is at most PANEL, the length of both arrays.
                unsafe {
                    let start = _mm256_loadu_si256(from.add(at).cast());
                    _mm256_storeu_si256(out.as_mut_ptr().add(at).cast(), _mm256_add_epi32(start, sum));
                }
            }
        }
        if after.is_empty() {
            return;
        }
        (rest, from) = (after, out.as_ptr());
    }
}

/// Pairs of rows that are asked for before they are added.
const AHEAD: usize = 16;

/// Asks for the rows of pair `i`; past the last for those of the next panel, which is as large.
#[inline(always)]
fn ahead<R: Row>(panel: &Panel, twos: &[[u32; 2]], i: usize) {
    let next = panel.rows.len() + 4 * panel.width;
    let (i, from) = if i < twos.len() { (i, 0) } else { ((i - twos.len()).min(twos.len() - 1), next) };
    for k in twos[i] {
        let at = panel.rows.as_ptr().wrapping_add(from + k as usize * R::BYTES);
        // SAFETY: a hint, which reads nothing wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// # Safety
/// The CPU has AVX2; the panel has a row `k`, of `R`.
#[inline(always)]
unsafe fn row<R: Row, const V: usize>(panel: &Panel, k: u32) -> [__m256i; V] {
    // SAFETY: the caller's promise.
    unsafe { R::load::<V>(panel.rows.as_ptr().add(k as usize * R::BYTES)) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn add<const V: usize>(all: &mut [__m256i; V], odd: &mut [__m256i; V], x: [__m256i; V]) {
    for v in 0..V {
        all[v] = _mm256_add_epi16(all[v], x[v]);
        odd[v] = _mm256_add_epi16(odd[v], _mm256_srli_epi16::<8>(x[v]));
    }
}

/// Rows of codes of 4 or 2 bits as bytes.
pub(super) fn unpack(isa: Isa, panel: &Panel, out: &mut [u8]) {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe {
        match panel.form {
            SpikeForm::Codes(4) => unpack_rows::<Fours>(panel, out),
            SpikeForm::Codes(2) => unpack_rows::<Twos>(panel, out),
            _ => unreachable!("others are not packed"),
        }
    }
}

#[target_feature(enable = "avx2")]
fn unpack_rows<R: Row>(panel: &Panel, out: &mut [u8]) {
    assert!(panel.row_bytes == R::BYTES);
    for (row, out) in panel.rows.chunks_exact(R::BYTES).zip(out.as_chunks_mut::<PANEL>().0) {
        // SAFETY: the row is R::BYTES, the array two vectors.
        unsafe {
            let x = R::load::<2>(row.as_ptr());
            _mm256_storeu_si256(out.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), x[1]);
        }
    }
}

/// As [`super::scalar::floats`]. `out` has room for the panel's width.
///
/// # Safety
/// The CPU has AVX2; the list's numbers are rows of the panel.
pub(super) unsafe fn floats(panel: &Panel, list: &[u32], counts: &[u8], start: &[f32; PANEL], out: &mut [f32; PANEL]) {
    macro_rules! by_width {
        ($($v:literal)*) => {
            match panel.width / 8 {
                // SAFETY: the caller's promise.
                $($v => unsafe {
                    if counts.is_empty() {
                        float_sums::<$v, false>(panel, list, counts, start, out)
                    } else {
                        float_sums::<$v, true>(panel, list, counts, start, out)
                    }
                })*
                _ => unreachable!("8 to 64 columns"),
            }
        };
    }
    by_width!(1 2 3 4 5 6 7 8);
}

/// # Safety
/// As [`floats`]; the panel has 8 V columns.
#[target_feature(enable = "avx2")]
unsafe fn float_sums<const V: usize, const COUNTS: bool>(
    panel: &Panel,
    list: &[u32],
    counts: &[u8],
    start: &[f32; PANEL],
    out: &mut [f32; PANEL],
) {
    assert!(8 * V == panel.width && panel.width <= PANEL && (!COUNTS || counts.len() == list.len()));
    let mut sums = [_mm256_setzero_ps(); V];
    for (v, sum) in sums.iter_mut().enumerate() {
        // SAFETY: 8 V is at most PANEL.
        *sum = unsafe { _mm256_loadu_ps(start.as_ptr().add(8 * v)) };
    }
    for (i, &k) in list.iter().enumerate() {
        let count = _mm256_set1_ps(if COUNTS { f32::from(counts[i]) } else { 1.0 });
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the list's numbers are rows of the panel, 32 V bytes each.
            let w = unsafe { _mm256_loadu_ps(panel.rows.as_ptr().add((k as usize * V + v) * 32).cast()) };
            *sum = _mm256_add_ps(*sum, if COUNTS { _mm256_mul_ps(count, w) } else { w });
        }
    }
    for (v, sum) in sums.iter().enumerate() {
        // SAFETY: 8 V is at most PANEL.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * v), *sum) };
    }
}

/// As `bits_of` of `lists.rs`.
pub(super) fn bits_of(isa: Isa, bytes: &[[u8; WORD]], out: &mut [u64]) -> bool {
    #[target_feature(enable = "avx2")]
    fn run(bytes: &[[u8; WORD]], out: &mut [u64]) -> bool {
        let mut seen = _mm256_setzero_si256();
        let mask = |x| u64::from(_mm256_movemask_epi8(_mm256_slli_epi16::<7>(x)) as u32);
        for (bytes, out) in bytes.iter().zip(out) {
            // SAFETY: the array is 64 bytes.
            let (x, y) = unsafe {
                (_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes.as_ptr().add(32).cast()))
            };
            seen = _mm256_or_si256(seen, _mm256_or_si256(x, y));
            *out = mask(x) | mask(y) << 32;
        }
        _mm256_testz_si256(seen, _mm256_set1_epi8(-2)) == 1
    }
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { run(bytes, out) }
}

/// As [`super::lists::count_in`], with `popcnt`.
pub(super) fn count_in(isa: Isa, words: &[u64]) -> usize {
    #[target_feature(enable = "popcnt")]
    fn run(words: &[u64]) -> usize {
        super::lists::count_in(words)
    }
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it, and `popcnt`.
    unsafe { run(words) }
}

/// As [`super::lists::numbers_of`], with `tzcnt`, `blsr` and `popcnt`; true.
pub(super) fn numbers_of(isa: Isa, words: &[u64], out: &mut [u32]) -> bool {
    #[target_feature(enable = "bmi1,popcnt")]
    fn run(words: &[u64], out: &mut [u32]) {
        super::lists::numbers_of(words, out);
    }
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it, BMI1 and `popcnt`.
    unsafe { run(words, out) };
    true
}

/// The columns of one panel: `start` and the pairs of codes at a list's numbers times its values,
/// at most `chunk` of which a sum of 16 bits holds.
pub(super) fn pairs(isa: Isa, codes: &[i8], list: &[u32], chunk: usize, start: &[i32], out: &mut [i32]) {
    assert!(isa.has_avx2());
    let mut tile = [0; PANEL];
    let whole = out.len() == start.len();
    let to = if whole { &mut *out } else { &mut tile[..start.len()] };
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe {
        match start.len() {
            64 => pairs_of::<4>(codes, list, chunk, start, to),
            48 => pairs_of::<3>(codes, list, chunk, start, to),
            32 => pairs_of::<2>(codes, list, chunk, start, to),
            _ => pairs_of::<1>(codes, list, chunk, start, to),
        }
    }
    if !whole {
        out.copy_from_slice(&tile[..out.len()]);
    }
}

#[target_feature(enable = "avx2")]
fn pairs_of<const W: usize>(codes: &[i8], list: &[u32], chunk: usize, start: &[i32], out: &mut [i32]) {
    let (rows, _) = codes.as_chunks::<32>();
    assert!(start.len() == 16 * W && out.len() == 16 * W && rows.len().is_multiple_of(W));
    let count = rows.len() / W;
    let mut from = start.as_ptr();
    let mut rest = list;
    loop {
        let (part, after) = rest.split_at(rest.len().min(chunk));
        let mut sums = [_mm256_setzero_si256(); W];
        for &entry in part {
            let (pair, x) = ((entry >> 16) as usize, _mm256_set1_epi16(entry as i16));
            assert!(pair < count);
            for (v, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `pair` is less than the number of rows of W vectors.
                let codes = unsafe { _mm256_loadu_si256(rows.as_ptr().add(pair * W + v).cast()) };
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(x, codes));
            }
        }
        for (v, sum) in sums.iter().enumerate() {
            let eights = [
                _mm256_cvtepi16_epi32(_mm256_castsi256_si128(*sum)),
                _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(*sum)),
            ];
            for (i, eight) in eights.into_iter().enumerate() {
                let at = 16 * v + 8 * i;
                // SAFETY: both arrays have 16 W elements.
                unsafe {
                    let before = _mm256_loadu_si256(from.add(at).cast());
                    _mm256_storeu_si256(out.as_mut_ptr().add(at).cast(), _mm256_add_epi32(before, eight));
                }
            }
        }
        if after.is_empty() {
            return;
        }
        (rest, from) = (after, out.as_ptr());
    }
}

/// The pairs of the first `inside` of 64 bytes, an even number, that are not all 0, as `list_pairs` of `pairs.rs`.
#[inline]
pub(super) fn list_pairs(
    isa: Isa,
    bytes: &[u8; 64],
    inside: usize,
    first: u32,
    list: &mut [u32],
    at: usize,
    some: u64,
) -> (usize, u64) {
    #[target_feature(enable = "avx2,bmi1,popcnt")]
    fn run(bytes: &[u8; 64], inside: usize, first: u32, list: &mut [u32], at: usize) -> (usize, u32) {
        // SAFETY: the array is 64 bytes.
        let (x, y) =
            unsafe { (_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes.as_ptr().add(32).cast())) };
        let zero = _mm256_setzero_si256();
        let mask = |x: __m256i| u64::from(_mm256_movemask_epi8(_mm256_cmpeq_epi8(x, zero)) as u32);
        let own = u64::MAX >> (64 - inside);
        let some = !(mask(x) | mask(y) << 32) & own;
        // Packing goes by halves: the middle ones change places.
        let pairs = _mm256_packs_epi16(_mm256_cmpeq_epi16(x, zero), _mm256_cmpeq_epi16(y, zero));
        let mut left = !_mm256_movemask_epi8(_mm256_permute4x64_epi64::<0xd8>(pairs)) as u32;
        left &= u32::MAX >> (32 - inside / 2);
        let end = at + left.count_ones() as usize;
        for slot in &mut list[at..end] {
            let pair = left.trailing_zeros();
            let i = 2 * pair as usize % 64;
            *slot = (first + pair) << 16 | u32::from(u16::from_le_bytes([bytes[i], bytes[i + 1]]));
            left &= left - 1;
        }
        (end, some.count_ones())
    }
    assert!(isa.has_avx2() && (2..=64).contains(&inside) && inside % 2 == 0);
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it, BMI1 and `popcnt`.
    let (end, more) = unsafe { run(bytes, inside, first, list, at) };
    (end, some + u64::from(more))
}
