//! Sums to codes, the 16 filters of a vector at a time.

use std::arch::x86_64::*;

use super::super::finish::{Finish, Requantize, Rule};
use super::super::{Conv2d, Out, To, avx2};
use super::{LANES, ROW};

/// Finishes rows of sums: `count` filters from `filter` on, of `rows` pixels from `pixel` on.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
pub(super) fn finish(
    how: &Finish,
    filters: usize,
    sums: &[i32],
    rows: usize,
    pixel: usize,
    filter: usize,
    count: usize,
    out: &mut Out,
) {
    let (To::Codes(requantize), Out::Codes(codes, other)) = (&how.to, &mut *out) else {
        return avx2::finish(how, filters, sums, rows, pixel, filter, count, out);
    };
    let first = pixel * filters + filter;
    let end = first + (rows - 1) * filters + count;
    assert!(rows * ROW <= sums.len() && (1..=LANES).contains(&count));
    assert!(end <= codes.len() && other.is_none_or(|other| end <= other.len()));
    let added = Added::of(how).zip(*other);
    let tile = Tile { sums, rows, first, filters, count, added, requantize };
    // What is one for each filter is padded by more than a vector.
    match &requantize.rule {
        Rule::Float32(multiplier) => codes_of::<Float32>(&tile, &multiplier[filter..], codes),
        Rule::FixedPoint(all) => codes_of::<FixedPoint>(&tile, &all[filter..], codes),
        Rule::PowerOfTwo(shift) => codes_of::<PowerOfTwo>(&tile, &shift[filter..], codes),
    }
}

/// The common rule, `f32(sum) * multiplier`, where no product is beyond int32.
pub(super) struct Common {
    zero_point: __m512i,
    low: __m512i,
    high: __m512i,
    flip: __m512i,
    /// Whether there are bytes that are no codes, and whether codes are raised.
    clamps: bool,
    raised: bool,
}

impl Common {
    /// With the filters' multipliers; None where another rule holds or one of them is 1 or more.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn of(conv: &Conv2d) -> Option<(Common, &[f32])> {
        let To::Codes(requantize) = &conv.finish.to else { return None };
        let Rule::Float32(multiplier) = &requantize.rule else { return None };
        let (zero_point, qmin, qmax) = requantize.last();
        // Codes below 0 are raised to bytes from 0 on, and brought back by a flip of their highest bit.
        let raise = if qmin < 0 { 128 } else { 0 };
        let byte = |code: i32| _mm512_set1_epi8((code + raise) as i8);
        let common = Common {
            zero_point: _mm512_set1_epi16((zero_point + raise) as i16),
            low: byte(qmin),
            high: byte(qmax),
            flip: _mm512_set1_epi8(raise as u8 as i8),
            clamps: (qmin + raise, qmax + raise) != (0, 255),
            raised: raise != 0,
        };
        conv.below_one.then_some((common, &multiplier[..]))
    }

    /// The codes of four vectors of sums: four of each vector in turn.
    ///
    /// # Safety
    /// AVX-512.
    #[inline(always)]
    pub(super) unsafe fn codes(&self, sums: [__m512i; 4], multiplier: [__m512; 4]) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { self.bytes(rounded(sums, multiplier)) }
    }

    /// The same, each added to another code.
    ///
    /// # Safety
    /// AVX-512.
    #[inline(always)]
    pub(super) unsafe fn codes_added(
        &self,
        sums: [__m512i; 4],
        multiplier: [__m512; 4],
        added: &Added,
        others: [__m128i; 4],
    ) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let mut four = rounded(sums, multiplier);
            for v in 0..4 {
                four[v] = added.to(four[v], others[v]);
            }
            self.bytes(four)
        }
    }

    /// # Safety
    /// AVX-512.
    #[inline(always)]
    unsafe fn bytes(&self, four: [__m512i; 4]) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            // Each step stops at the ends of its range, and so at those of the codes in the end.
            let ab = _mm512_adds_epi16(_mm512_packs_epi32(four[0], four[1]), self.zero_point);
            let cd = _mm512_adds_epi16(_mm512_packs_epi32(four[2], four[3]), self.zero_point);
            let bytes = _mm512_packus_epi16(ab, cd);
            // Branches that are as their layer has them take no vector's place.
            let bytes = if self.clamps { _mm512_min_epu8(_mm512_max_epu8(bytes, self.low), self.high) } else { bytes };
            if self.raised { _mm512_xor_si512(bytes, self.flip) } else { bytes }
        }
    }
}

/// Sums times their multipliers, as integers.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn rounded(sums: [__m512i; 4], multiplier: [__m512; 4]) -> [__m512i; 4] {
    let mut four = sums;
    // SAFETY: the caller's promise.
    unsafe {
        for v in 0..4 {
            four[v] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[v]), multiplier[v]));
        }
    }
    four
}

/// `AddCodes::of` a rounded sum and another code, both without the zero points of their sums.
pub(super) struct Added {
    low: __m512i,
    high: __m512i,
    multipliers: [__m512i; 2],
    bias: __m512i,
    shift: __m128i,
    signed: bool,
}

impl Added {
    /// None where nothing is added.
    #[target_feature(enable = "avx512f")]
    pub(super) fn of(how: &Finish) -> Option<Added> {
        let To::Codes(Requantize { zero_point, qmin, qmax, add: Some(add), .. }) = how.to else { return None };
        Some(Added {
            low: _mm512_set1_epi32(qmin - zero_point),
            high: _mm512_set1_epi32(qmax - zero_point),
            multipliers: [_mm512_set1_epi32(add.a_multiplier), _mm512_set1_epi32(add.b_multiplier)],
            bias: _mm512_set1_epi32(add.bias.wrapping_add(zero_point.wrapping_mul(add.a_multiplier))),
            shift: _mm_cvtsi32_si128(add.shift as i32),
            signed: add.signed,
        })
    }

    /// # Safety
    /// AVX-512.
    #[inline(always)]
    unsafe fn to(&self, rounded: __m512i, other: __m128i) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let a = _mm512_min_epi32(_mm512_max_epi32(rounded, self.low), self.high);
            let b = if self.signed { _mm512_cvtepi8_epi32(other) } else { _mm512_cvtepu8_epi32(other) };
            let a = _mm512_add_epi32(_mm512_mullo_epi32(a, self.multipliers[0]), self.bias);
            let sum = _mm512_add_epi32(a, _mm512_mullo_epi32(b, self.multipliers[1]));
            _mm512_sra_epi32(sum, self.shift)
        }
    }
}

/// Sums that become codes.
struct Tile<'a> {
    sums: &'a [i32],
    rows: usize,
    /// Where the first pixel's first code is; `filters` from pixel to pixel.
    first: usize,
    filters: usize,
    count: usize,
    /// What is added, and to which codes.
    added: Option<(Added, &'a [u8])>,
    requantize: &'a Requantize,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn codes_of<R: Round>(tile: &Tile, rule: &[R::Of], codes: &mut [u8]) {
    let Requantize { zero_point, qmax, .. } = *tile.requantize;
    let most = _mm512_set1_epi32(qmax - zero_point);
    let (zero_point, qmin, qmax) = tile.requantize.last();
    let (low, high) = (_mm512_set1_epi32(qmin - zero_point), _mm512_set1_epi32(qmax - zero_point));
    let zero_point = _mm512_set1_epi32(zero_point);
    let round = R::new(rule.first_chunk().expect("padded rules"));
    let there = u16::MAX >> (LANES - tile.count);
    let mut sums = tile.sums.as_ptr();
    let mut to = codes[tile.first..].as_mut_ptr();
    let mut other = tile.added.as_ref().map_or(std::ptr::null(), |(_, other)| other[tile.first..].as_ptr());
    for _ in 0..tile.rows {
        // SAFETY: a row of sums; of the codes and what is added to them those that are there: `finish` has
        // checked that the last row's lie within. Pointers to no further row are not followed.
        unsafe {
            let mut code = round.of(_mm512_loadu_si512(sums.cast()), most);
            if let Some((added, _)) = &tile.added {
                code = added.to(code, _mm_maskz_loadu_epi8(there, other.cast()));
                other = other.wrapping_add(tile.filters);
            }
            let code = _mm512_add_epi32(_mm512_max_epi32(_mm512_min_epi32(code, high), low), zero_point);
            let bytes = _mm512_cvtepi32_epi8(code);
            if there == u16::MAX {
                _mm_storeu_si128(to.cast(), bytes);
            } else {
                _mm_mask_storeu_epi8(to.cast(), there, bytes);
            }
        }
        sums = sums.wrapping_add(ROW);
        to = to.wrapping_add(tile.filters);
    }
}

/// A rounding rule for 16 filters: the integer of each sum, at most `high`.
trait Round: Copy {
    type Of: Copy;
    fn new(of: &[Self::Of; LANES]) -> Self;
    fn of(self, sums: __m512i, high: __m512i) -> __m512i;
}

#[derive(Clone, Copy)]
struct Float32(__m512);

impl Round for Float32 {
    type Of = f32;
    #[inline(always)]
    fn new(multiplier: &[f32; LANES]) -> Self {
        // SAFETY: 16 numbers; `codes_of`, the only caller, enables AVX-512.
        Float32(unsafe { _mm512_loadu_ps(multiplier.as_ptr()) })
    }

    #[inline(always)]
    fn of(self, sums: __m512i, high: __m512i) -> __m512i {
        // SAFETY: `codes_of`, the only caller, enables AVX-512.
        unsafe {
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), self.0);
            // A number too small converts to the least integer; one too large would too.
            _mm512_cvtps_epi32(_mm512_min_ps(scaled, _mm512_cvtepi32_ps(high)))
        }
    }
}

/// See [`Rule::FixedPoint`].
#[derive(Clone, Copy)]
struct FixedPoint {
    /// Of even filters, and of odd ones in their place.
    multiplier: [__m512i; 2],
    left: __m512i,
    right: __m512i,
    /// Whether any sum is shifted left, which is seldom.
    any_left: bool,
}

impl Round for FixedPoint {
    type Of = (i32, i32);
    #[inline(always)]
    fn new(of: &[(i32, i32); LANES]) -> Self {
        let (multiplier, shift) = (of.map(|of| of.0), of.map(|of| of.1));
        // SAFETY: 16 numbers each; `codes_of`, the only caller, enables AVX-512.
        unsafe {
            let even = _mm512_loadu_si512(multiplier.as_ptr().cast());
            let shift = _mm512_loadu_si512(shift.as_ptr().cast());
            let zero = _mm512_setzero_si512();
            FixedPoint {
                multiplier: [even, _mm512_srli_epi64(even, 32)],
                left: _mm512_max_epi32(shift, zero),
                right: _mm512_max_epi32(_mm512_sub_epi32(zero, shift), zero),
                any_left: _mm512_cmpgt_epi32_mask(shift, zero) != 0,
            }
        }
    }

    #[inline(always)]
    fn of(self, sums: __m512i, high: __m512i) -> __m512i {
        // SAFETY: `codes_of`, the only caller, enables AVX-512.
        unsafe {
            let sums = if self.any_left { shifted(sums, self.left) } else { sums };
            let half = _mm512_set1_epi64(1 << 30);
            // Bits 31 to 62 of the products, of even and of odd lanes.
            let even = _mm512_mul_epi32(sums, self.multiplier[0]);
            let even = _mm512_srli_epi64(_mm512_add_epi64(even, half), 31);
            let odd = _mm512_mul_epi32(_mm512_srli_epi64(sums, 32), self.multiplier[1]);
            let odd = _mm512_slli_epi64(_mm512_add_epi64(odd, half), 1);
            let product = _mm512_mask_blend_epi32(0xaaaa, even, odd);
            let one = _mm512_set1_epi32(1);
            let mask = _mm512_sub_epi32(_mm512_sllv_epi32(one, self.right), one);
            let below = _mm512_srli_epi32(product, 31);
            let threshold = _mm512_add_epi32(_mm512_srli_epi32(mask, 1), below);
            let up = _mm512_cmpgt_epi32_mask(_mm512_and_si512(product, mask), threshold);
            let down = _mm512_srav_epi32(product, self.right);
            _mm512_min_epi32(_mm512_mask_add_epi32(down, up, down, one), high)
        }
    }
}

/// See [`Rule::PowerOfTwo`].
#[derive(Clone, Copy)]
struct PowerOfTwo(__m512i);

impl Round for PowerOfTwo {
    type Of = i32;
    #[inline(always)]
    fn new(shift: &[i32; LANES]) -> Self {
        // SAFETY: 16 numbers; `codes_of`, the only caller, enables AVX-512.
        PowerOfTwo(unsafe { _mm512_loadu_si512(shift.as_ptr().cast()) })
    }

    #[inline(always)]
    fn of(self, sums: __m512i, high: __m512i) -> __m512i {
        // SAFETY: `codes_of`, the only caller, enables AVX-512.
        unsafe {
            let (zero, one) = (_mm512_setzero_si512(), _mm512_set1_epi32(1));
            let right = _mm512_sub_epi32(zero, self.0);
            // One more bit than is kept, and that one rounds.
            let kept = _mm512_srav_epi32(sums, _mm512_sub_epi32(right, one));
            let down = _mm512_add_epi32(_mm512_srai_epi32(kept, 1), _mm512_and_si512(kept, one));
            let is_right = _mm512_cmpgt_epi32_mask(right, zero);
            _mm512_min_epi32(_mm512_mask_blend_epi32(is_right, shifted(sums, self.0), down), high)
        }
    }
}

/// Shifted left, saturated.
#[target_feature(enable = "avx512f")]
#[inline]
fn shifted(sums: __m512i, left: __m512i) -> __m512i {
    let up = _mm512_sllv_epi32(sums, left);
    let back = _mm512_cmpeq_epi32_mask(_mm512_srav_epi32(up, left), sums);
    let far = _mm512_xor_si512(_mm512_srai_epi32(sums, 31), _mm512_set1_epi32(i32::MAX));
    _mm512_mask_blend_epi32(back, far, up)
}
