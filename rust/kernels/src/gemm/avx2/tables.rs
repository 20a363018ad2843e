//! AVX2: the look-up of panels with tables, which `tables::expand_scalar` defines.

use std::arch::x86_64::*;

use super::groups::quads_of;
use crate::gemm::floats::quads;
use crate::gemm::groups::{GroupPanel, SUPER};
use crate::gemm::tables::Tables;
use crate::gemm::tiled::PANEL;

/// Depth that shares a table, at least: a look-up takes 16 of a column.
const PIECE: usize = 16;

/// `tables::expand`, of codes of 2, 3 or 4 bits.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(in crate::gemm) unsafe fn expand(panel: &GroupPanel, entries: &[i8], to: &mut [u8]) {
    match panel.groups.nbits() {
        2 => expand_of::<2>(panel, entries, to),
        3 => expand_of::<3>(panel, entries, to),
        4 => expand_of::<4>(panel, entries, to),
        _ => expand_bytes(panel, entries, to),
    }
}

/// [`expand`] of codes of 8 bits, whose tables no register holds: entries are loaded one by one,
/// and multiplied 32 at a time.
#[target_feature(enable = "avx2")]
fn expand_bytes(panel: &GroupPanel, entries: &[i8], to: &mut [u8]) {
    let (width, group_size) = (panel.width, panel.groups.group_size());
    assert!(width.is_multiple_of(8) && width <= PANEL);
    let (mut tables, mut words, mut group) = ([entries; PANEL], [[0i16; 4]; PANEL], usize::MAX);
    for (step, to) in to.chunks_exact_mut(4 * width).enumerate() {
        if group != 4 * step / group_size {
            group = 4 * step / group_size;
            for j in 0..width {
                tables[j] = &entries[panel.table(group, j)..][..256];
                words[j] = [i16::from(panel.signed(group, j)); 4];
            }
        }
        let quads = quads(panel, step);
        let mut raw = [[0i8; 4]; PANEL];
        for ((raw, table), quad) in raw.iter_mut().zip(&tables).zip(quads) {
            *raw = quad.to_le_bytes().map(|code| table[usize::from(code)]);
        }
        let words = words.as_flattened().chunks_exact(32);
        let raw = raw.as_flattened().chunks_exact(32);
        for ((to, raw), words) in to.chunks_exact_mut(32).zip(raw).zip(words) {
            // SAFETY: 32 bytes, and as many words.
            unsafe {
                let raw = _mm256_loadu_si256(raw.as_ptr().cast());
                let folded = [_mm256_castsi256_si128(raw), _mm256_extracti128_si256::<1>(raw)];
                let mut halves = [_mm256_setzero_si256(); 2];
                for (i, half) in halves.iter_mut().enumerate() {
                    let entries = _mm256_slli_epi16::<8>(_mm256_cvtepi8_epi16(folded[i]));
                    // As in `Folded::of`.
                    *half = _mm256_mulhrs_epi16(entries, _mm256_loadu_si256(words[16 * i..].as_ptr().cast()));
                }
                let packed = _mm256_packs_epi16(halves[0], halves[1]);
                _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn expand_of<const NBITS: usize>(panel: &GroupPanel, entries: &[i8], to: &mut [u8]) {
    let (width, row, group_size) = (panel.width, 4 * panel.width, panel.groups.group_size());
    let last = panel.groups.count(panel.k) - 1;
    assert!(width.is_multiple_of(8) && width <= PANEL && to.len() == panel.k.div_ceil(4) * row);
    let mut folded = Folded::new::<NBITS>(panel, entries);
    let supersteps = panel.codes.chunks_exact(NBITS * row).zip(to.chunks_mut(SUPER / 4 * row));
    let mut rest = [0; SUPER * PANEL];
    for (step, (codes, to)) in supersteps.enumerate() {
        // The last superstep may be deeper than the panel, and than its last group.
        let whole = to.len() == SUPER / 4 * row;
        let all = if whole { &mut *to } else { &mut rest[..SUPER / 4 * row] };
        for half in 0..2 {
            let group = ((step * SUPER + half * PIECE) / group_size).min(last);
            folded.look_at::<NBITS>(group);
            for v in 0..width / 8 {
                // SAFETY: each of the NBITS rows of codes has 32 bytes from these columns on, and
                // so has each of the eight of `all`.
                unsafe {
                    let quads = half_of::<NBITS>(codes.as_ptr().wrapping_add(32 * v), row, half);
                    let columns = transposed(quads);
                    let columns = [0, 1, 2, 3].map(|j| _mm256_shuffle_epi8(folded.tables[v][j].0, columns[j]));
                    let at = all.as_mut_ptr().wrapping_add(4 * half * row + 32 * v);
                    for (i, quad) in transposed(columns).into_iter().enumerate() {
                        _mm256_storeu_si256(at.wrapping_add(i * row).cast(), quad);
                    }
                }
            }
        }
        if !whole {
            let len = to.len();
            to.copy_from_slice(&rest[..len]);
        }
    }
}

/// Fewer rows than this do not repay writing a panel's integers to memory.
pub(in crate::gemm) const FEW: usize = 4;

/// A few rows of 8-bit codes, `[row][K]` padded with zeros to whole supersteps, times a panel
/// whose integers fit pairs: `scalar::panel` of what [`expand`] makes of it.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(in crate::gemm) unsafe fn few(panel: &GroupPanel, entries: &[i8], a: &[u8], out: &mut [&mut [i32]]) {
    match (panel.groups.nbits(), out) {
        (2, [a0]) => few_of::<2, 1>(panel, entries, a, [a0]),
        (2, [a0, a1]) => few_of::<2, 2>(panel, entries, a, [a0, a1]),
        (2, [a0, a1, a2]) => few_of::<2, 3>(panel, entries, a, [a0, a1, a2]),
        (3, [a0]) => few_of::<3, 1>(panel, entries, a, [a0]),
        (3, [a0, a1]) => few_of::<3, 2>(panel, entries, a, [a0, a1]),
        (3, [a0, a1, a2]) => few_of::<3, 3>(panel, entries, a, [a0, a1, a2]),
        (_, [a0]) => few_of::<4, 1>(panel, entries, a, [a0]),
        (_, [a0, a1]) => few_of::<4, 2>(panel, entries, a, [a0, a1]),
        (_, [a0, a1, a2]) => few_of::<4, 3>(panel, entries, a, [a0, a1, a2]),
        _ => (),
    }
}

#[target_feature(enable = "avx2")]
fn few_of<const NBITS: usize, const R: usize>(panel: &GroupPanel, entries: &[i8], a: &[u8], mut out: [&mut [i32]; R]) {
    let (width, row, group_size) = (panel.width, 4 * panel.width, panel.groups.group_size());
    let (steps, last) = (panel.k.div_ceil(SUPER), panel.groups.count(panel.k) - 1);
    assert!(a.len() == R * steps * SUPER && panel.codes.len() == steps * NBITS * row && width.is_multiple_of(8));
    let ones = _mm256_set1_epi16(1);
    let folded = Folded::new::<NBITS>(panel, entries);
    for v in 0..width / 8 {
        let (mut tables, mut group) = ([Vector::default(); 4], usize::MAX);
        // Of two columns, j and 4 + j, four sums each.
        let mut sums = [[_mm256_setzero_si256(); 4]; R];
        for (step, codes) in panel.codes.chunks_exact(NBITS * row).enumerate() {
            for half in 0..2 {
                let k = step * SUPER + half * PIECE;
                let of = (k / group_size).min(last);
                if of != group {
                    group = of;
                    tables = folded.of::<NBITS>(group, v);
                }
                // SAFETY: each of the NBITS rows of codes has 32 bytes from these columns on; each
                // row of `a` has 16 from k on; a prefetch of any address is harmless.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(codes.as_ptr().wrapping_add(32 * v + 4096).cast());
                    let columns = transposed(half_of::<NBITS>(codes.as_ptr().wrapping_add(32 * v), row, half));
                    let columns = [0, 1, 2, 3].map(|j| _mm256_shuffle_epi8(tables[j].0, columns[j]));
                    for r in 0..R {
                        let sixteen = _mm_loadu_si128(a.as_ptr().wrapping_add(r * steps * SUPER + k).cast());
                        let sixteen = _mm256_broadcastsi128_si256(sixteen);
                        for j in 0..4 {
                            let pairs = _mm256_maddubs_epi16(sixteen, columns[j]);
                            sums[r][j] = _mm256_add_epi32(sums[r][j], _mm256_madd_epi16(pairs, ones));
                        }
                    }
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            let [a, b, c, d] = transposed(sums);
            let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
            // SAFETY: the slice is 8 sums.
            unsafe { _mm256_storeu_si256(out[8 * v..8 * v + 8].as_mut_ptr().cast(), sum) };
        }
    }
}

/// The four quads of a half of a superstep, as [`quads_of`] has all of them.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half_of<const NBITS: usize>(codes: *const u8, row: usize, half: usize) -> [__m256i; 4] {
    if NBITS == 4 {
        let fifteen = _mm256_set1_epi8(15);
        // SAFETY: the caller's promise.
        let [a, b] = [0, 1].map(|i| unsafe { _mm256_loadu_si256(codes.wrapping_add((2 * half + i) * row).cast()) });
        let high = |bytes| _mm256_and_si256(_mm256_srli_epi16(bytes, 4), fifteen);
        return [_mm256_and_si256(a, fifteen), high(a), _mm256_and_si256(b, fifteen), high(b)];
    }
    // SAFETY: the caller's promise.
    let quads = unsafe { quads_of::<NBITS>(codes, row) };
    [0, 1, 2, 3].map(|i| quads[4 * half + i])
}

/// The tables of a panel's columns in a group, times their multipliers.
struct Folded<'a> {
    panel: &'a GroupPanel<'a>,
    entries: &'a [i8],
    /// The table that all share, as words.
    one: Option<Vector>,
    group: Option<usize>,
    tables: [[Vector; 4]; PANEL / 8],
}

/// Zeros by default.
#[derive(Clone, Copy)]
struct Vector(__m256i);

impl Default for Vector {
    fn default() -> Self {
        Vector(bytemuck::cast([0u8; 32]))
    }
}

impl<'a> Folded<'a> {
    #[target_feature(enable = "avx2")]
    fn new<const NBITS: usize>(panel: &'a GroupPanel, entries: &'a [i8]) -> Self {
        let one = panel.groups.tables() == Some(Tables::Tensor);
        let one = if one { Some(Vector(widened::<NBITS>(entries))) } else { None };
        Folded { panel, entries, one, group: None, tables: Default::default() }
    }

    /// Makes those of a group, if they are not there.
    #[target_feature(enable = "avx2")]
    fn look_at<const NBITS: usize>(&mut self, group: usize) {
        if self.group.replace(group) != Some(group) {
            for v in 0..self.panel.width / 8 {
                self.tables[v] = self.of::<NBITS>(group, v);
            }
        }
    }

    /// Those of the `v`-th eight columns: of columns j and 4 + j, in the lanes of one vector.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn of<const NBITS: usize>(&self, group: usize, v: usize) -> [Vector; 4] {
        let panel = self.panel;
        let multipliers = &panel.multipliers[group * panel.width + 8 * v..][..8];
        let mut words = [_mm256_setzero_si256(); 8];
        for (j, words) in words.iter_mut().enumerate() {
            let entries = match self.one {
                Some(Vector(one)) => one,
                None => widened::<NBITS>(&self.entries[panel.table(group, 8 * v + j)..]),
            };
            // Rounds (256 · entry) · multiplier over 2^15, halves up: `tables::fold`.
            *words = _mm256_mulhrs_epi16(entries, _mm256_set1_epi16((multipliers[j] ^ 0x80) as i8 as i16));
        }
        let mut tables = [Vector::default(); 4];
        for (j, table) in tables.iter_mut().enumerate() {
            // The lanes hold the first eight of both, and the others.
            let both = _mm256_packs_epi16(words[j], words[4 + j]);
            table.0 = _mm256_permute4x64_epi64(both, 0b11_01_10_00);
        }
        tables
    }
}

/// The first table's entries as the upper bytes of words.
#[inline]
#[target_feature(enable = "avx2")]
fn widened<const NBITS: usize>(entries: &[i8]) -> __m256i {
    let mut sixteen = [0; 16];
    sixteen[..1 << NBITS].copy_from_slice(&entries[..1 << NBITS]);
    // SAFETY: it is 16 bytes.
    let entries = unsafe { _mm_loadu_si128(sixteen.as_ptr().cast()) };
    _mm256_slli_epi16(_mm256_cvtepi8_epi16(entries), 8)
}

/// Four by four dwords, transposed, in each lane by itself.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab2, cd2) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab2, cd2),
        _mm256_unpackhi_epi64(ab2, cd2),
    ]
}
