//! Sums to codes, 16 filters at a time.

use std::arch::x86_64::*;

use super::super::finish::{AddCodes, Finish, Requantize, Rule};
use super::super::{Out, To};
use super::ROW;

/// Finishes a tile's sums: `count` filters from `filter` on, of `rows` pixels from `pixel` on.
#[target_feature(enable = "avx2")]
#[inline]
pub(in super::super) fn finish(
    how: &Finish,
    filters: usize,
    sums: &[i32],
    rows: usize,
    pixel: usize,
    filter: usize,
    count: usize,
    out: &mut Out,
) {
    let first = pixel * filters + filter;
    let end = first + (rows - 1) * filters + count;
    match (&how.to, out) {
        (To::Codes(requantize), Out::Codes(codes, other)) => {
            assert!(rows * ROW <= sums.len() && (rows == 1 || count <= ROW) && end <= codes.len());
            assert!(count <= sums.len() && other.is_none_or(|other| end <= other.len()));
            let tile = Tile { sums, rows, first, filters, filter, count, other: *other, requantize };
            match &requantize.rule {
                Rule::Float32(multiplier) => codes_of::<Float32>(&tile, multiplier, codes),
                Rule::FixedPoint(all) => codes_of::<FixedPoint>(&tile, all, codes),
                Rule::PowerOfTwo(shift) => codes_of::<PowerOfTwo>(&tile, shift, codes),
            }
        }
        (To::Floats(multiplier), Out::Floats(floats)) => {
            for row in 0..rows {
                let all = sums[row * ROW..].iter().zip(&multiplier[filter..]);
                for (to, (&sum, m)) in floats[first + row * filters..][..count].iter_mut().zip(all) {
                    *to = sum as f32 * m;
                }
            }
        }
        (_, Out::Sums(to)) => {
            for row in 0..rows {
                to[first + row * filters..][..count].copy_from_slice(&sums[row * ROW..][..count]);
            }
        }
        _ => {}
    }
}

/// Sums that become codes.
struct Tile<'a> {
    sums: &'a [i32],
    rows: usize,
    /// Where the first pixel's first code is; `filters` from pixel to pixel.
    first: usize,
    filters: usize,
    filter: usize,
    count: usize,
    other: Option<&'a [u8]>,
    requantize: &'a Requantize,
}

/// Sixteen filters at a time: what belongs to a filter is loaded once for all rows.
#[target_feature(enable = "avx2")]
fn codes_of<R: Round>(tile: &Tile, rule: &[R::Of], codes: &mut [u8]) {
    let Requantize { zero_point, qmin, qmax, ref add, .. } = *tile.requantize;
    let high = _mm256_set1_epi32(qmax - zero_point);
    let (zero_point, low) = (_mm256_set1_epi16(zero_point as i16), _mm256_set1_epi16(qmin as i16));
    for column in (0..tile.count).step_by(16) {
        let count = (tile.count - column).min(16);
        let filter = tile.filter + column;
        // What is one for each filter is padded by more than a panel.
        let round: [R; 2] = [0, 8].map(|half| R::new(rule[filter + half..].first_chunk::<8>().unwrap_or(&R::NONE)));
        let first = tile.first + column;
        let mut sums = tile.sums[column..].as_ptr();
        let mut to = codes[first..].as_mut_ptr();
        let mut other = tile.other.map_or(std::ptr::null(), |other| other[first..].as_ptr());
        for _ in 0..tile.rows {
            // SAFETY: sixteen of a row's sums.
            let (s0, s1) = unsafe { (_mm256_loadu_si256(sums.cast()), _mm256_loadu_si256(sums.add(8).cast())) };
            // A number far below all codes becomes the least word, and then the least code.
            let words = _mm256_packs_epi32(round[0].of(s0, high), round[1].of(s1, high));
            let mut words = _mm256_max_epi16(_mm256_adds_epi16(words, zero_point), low);
            if let (Some(add), false) = (add, other.is_null()) {
                let mut copy = [0; 16];
                // SAFETY: `count` codes, which are 16 or are copied: `finish` has checked that the last
                // row's are there.
                let others = unsafe {
                    if count == 16 {
                        &*other.cast()
                    } else {
                        copy[..count].copy_from_slice(std::slice::from_raw_parts(other, count));
                        &copy
                    }
                };
                let [b0, b1] = halves(others, add.signed);
                // Eight of a vector that `packs` made of two.
                let ordered = _mm256_permute4x64_epi64(words, 0b11_01_10_00);
                let a0 = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(ordered));
                let a1 = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(ordered, 1));
                words = _mm256_packs_epi32(added(add, a0, b0), added(add, a1, b1));
            }
            let bytes = narrowed(words);
            // SAFETY: `count` codes: all of the vector's, half of them, or what is copied; `finish` has
            // checked that the last row's lie within. Pointers to no further row are not read.
            unsafe {
                match count {
                    16 => _mm_storeu_si128(to.cast(), bytes),
                    8 => _mm_storel_epi64(to.cast(), bytes),
                    _ => {
                        let mut copy = [0u8; 16];
                        _mm_storeu_si128(copy.as_mut_ptr().cast(), bytes);
                        for (i, code) in copy.into_iter().enumerate().take(count) {
                            *to.add(i) = code;
                        }
                    }
                }
                sums = sums.wrapping_add(ROW);
                to = to.wrapping_add(tile.filters);
                other = if other.is_null() { other } else { other.wrapping_add(tile.filters) };
            }
        }
    }
}

/// A rounding rule for eight filters: the integer of each sum, at most `high`.
trait Round: Copy {
    type Of: Copy;
    const NONE: [Self::Of; 8];
    fn new(of: &[Self::Of; 8]) -> Self;
    fn of(self, sums: __m256i, high: __m256i) -> __m256i;
}

#[derive(Clone, Copy)]
struct Float32(__m256);

impl Round for Float32 {
    type Of = f32;
    const NONE: [f32; 8] = [0.0; 8];

    #[inline(always)]
    fn new(multiplier: &[f32; 8]) -> Self {
        // SAFETY: eight numbers; its callers have AVX2.
        Float32(unsafe { _mm256_loadu_ps(multiplier.as_ptr()) })
    }

    #[inline(always)]
    fn of(self, sums: __m256i, high: __m256i) -> __m256i {
        // SAFETY: its callers have AVX2.
        unsafe {
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), self.0);
            // A number too small converts to the least integer; one too large would too.
            _mm256_cvtps_epi32(_mm256_min_ps(scaled, _mm256_cvtepi32_ps(high)))
        }
    }
}

#[derive(Clone, Copy)]
struct FixedPoint {
    multiplier: __m256i,
    shift: __m256i,
}

impl Round for FixedPoint {
    type Of = (i32, i32);
    const NONE: [(i32, i32); 8] = [(0, 0); 8];

    #[inline(always)]
    fn new(of: &[(i32, i32); 8]) -> Self {
        let (multiplier, shift) = (of.map(|of| of.0), of.map(|of| of.1));
        // SAFETY: eight numbers each; its callers have AVX2.
        unsafe {
            let load = |of: &[i32; 8]| _mm256_loadu_si256(of.as_ptr().cast());
            FixedPoint { multiplier: load(&multiplier), shift: load(&shift) }
        }
    }

    #[inline(always)]
    fn of(self, sums: __m256i, high: __m256i) -> __m256i {
        // SAFETY: its callers have AVX2.
        unsafe { _mm256_min_epi32(fixed_point(sums, self.multiplier, self.shift), high) }
    }
}

#[derive(Clone, Copy)]
struct PowerOfTwo(__m256i);

impl Round for PowerOfTwo {
    type Of = i32;
    const NONE: [i32; 8] = [0; 8];

    #[inline(always)]
    fn new(shift: &[i32; 8]) -> Self {
        // SAFETY: eight numbers; its callers have AVX2.
        PowerOfTwo(unsafe { _mm256_loadu_si256(shift.as_ptr().cast()) })
    }

    #[inline(always)]
    fn of(self, sums: __m256i, high: __m256i) -> __m256i {
        // SAFETY: its callers have AVX2.
        unsafe { _mm256_min_epi32(power_of_two(sums, self.0), high) }
    }
}

/// See [`Rule::FixedPoint`].
#[target_feature(enable = "avx2")]
#[inline]
fn fixed_point(sums: __m256i, multiplier: __m256i, shift: __m256i) -> __m256i {
    let zero = _mm256_setzero_si256();
    let left = _mm256_max_epi32(shift, zero);
    let right = _mm256_max_epi32(_mm256_sub_epi32(zero, shift), zero);
    let sums = shifted(sums, left);
    let half = _mm256_set1_epi64x(1 << 30);
    // Bits 31 to 62 of the products, of even and of odd lanes.
    let even = _mm256_srli_epi64(_mm256_add_epi64(_mm256_mul_epi32(sums, multiplier), half), 31);
    let odd = _mm256_mul_epi32(_mm256_srli_epi64(sums, 32), _mm256_srli_epi64(multiplier, 32));
    let odd = _mm256_slli_epi64(_mm256_add_epi64(odd, half), 1);
    let high = _mm256_blend_epi32(even, odd, 0b1010_1010);
    let ones = _mm256_set1_epi32(1);
    let mask = _mm256_sub_epi32(_mm256_sllv_epi32(ones, right), ones);
    let below = _mm256_srli_epi32(high, 31);
    let threshold = _mm256_add_epi32(_mm256_srli_epi32(mask, 1), below);
    let up = _mm256_cmpgt_epi32(_mm256_and_si256(high, mask), threshold);
    _mm256_sub_epi32(_mm256_srav_epi32(high, right), up)
}

/// See [`Rule::PowerOfTwo`].
#[target_feature(enable = "avx2")]
#[inline]
fn power_of_two(sums: __m256i, shift: __m256i) -> __m256i {
    let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi32(1));
    let right = _mm256_sub_epi32(zero, shift);
    // One more bit than is kept, and that one rounds.
    let kept = _mm256_srav_epi32(sums, _mm256_sub_epi32(right, ones));
    let down = _mm256_add_epi32(_mm256_srai_epi32(kept, 1), _mm256_and_si256(kept, ones));
    _mm256_blendv_epi8(shifted(sums, shift), down, _mm256_cmpgt_epi32(right, zero))
}

/// Shifted left, saturated.
#[target_feature(enable = "avx2")]
#[inline]
fn shifted(sums: __m256i, left: __m256i) -> __m256i {
    let up = _mm256_sllv_epi32(sums, left);
    let back = _mm256_cmpeq_epi32(_mm256_srav_epi32(up, left), sums);
    let far = _mm256_xor_si256(_mm256_srai_epi32(sums, 31), _mm256_set1_epi32(i32::MAX));
    _mm256_blendv_epi8(far, up, back)
}

/// [`AddCodes::of`].
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn added(add: &AddCodes, a: __m256i, b: __m256i) -> __m256i {
    let a = _mm256_mullo_epi32(a, _mm256_set1_epi32(add.a_multiplier));
    let b = _mm256_mullo_epi32(b, _mm256_set1_epi32(add.b_multiplier));
    let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_set1_epi32(add.bias));
    let code = _mm256_sra_epi32(sum, _mm_cvtsi32_si128(add.shift as i32));
    let code = _mm256_add_epi32(code, _mm256_set1_epi32(add.zero_point));
    _mm256_max_epi32(_mm256_min_epi32(code, _mm256_set1_epi32(add.qmax)), _mm256_set1_epi32(add.qmin))
}

/// Sixteen codes, as 32-bit lanes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn halves(bytes: &[u8; 16], signed: bool) -> [__m256i; 2] {
    // SAFETY: 16 bytes.
    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let upper = _mm_srli_si128(bytes, 8);
    if signed {
        [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(upper)]
    } else {
        [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(upper)]
    }
}

/// Sixteen codes as bytes, of words in the order that `packs` of two vectors leaves.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn narrowed(words: __m256i) -> __m128i {
    let ordered = _mm256_permute4x64_epi64(_mm256_and_si256(words, _mm256_set1_epi16(0xff)), 0b11_01_10_00);
    _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1))
}
