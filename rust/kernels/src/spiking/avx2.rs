//! Plain neurons, eight lanes at a time: what [`super::x86`] needs of AVX2.

use std::arch::x86_64::*;

use super::rows::{HALVE, KEEP_AND_DRIVE, Levels, NO_LEAK, Out, SHIFTED, Spiked, Steps};
use super::scalar::{MOST, Voltage};
use super::x86::{self, Firing, Shifts, Vector, vectors};
use crate::lanes::{Avx2, intrinsics};

/// [`x86::fused`].
#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
#[inline(never)]
pub(super) fn fused<V: Voltage, S: Spiked, const LEAK: u8, const RESET: u8, const EACH: bool>(
    x: Steps<'_, V>,
    v: &mut [V],
    levels: &Levels<V>,
    out: Out<'_, '_, S::E>,
) {
    // SAFETY: the features of this function are those that the token stands for.
    let l = unsafe { Avx2::new() };
    x86::fused::<Avx2, V, S, LEAK, RESET, EACH>(l, x, v, levels, out);
}

/// 32 lanes of ones or zeros as bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes_of(a: __m256, b: __m256, c: __m256, d: __m256) -> __m256i {
    let low = _mm256_packs_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b));
    let high = _mm256_packs_epi32(_mm256_castps_si256(c), _mm256_castps_si256(d));
    // Packing goes by halves: fours of lanes 0 4 8 12 16 20 24 28 stand as 0 8 16 24 4 12 20 28.
    _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

impl Firing for Avx2 {
    const N: usize = 8;
    const HOLDS: bool = false;
    /// Lanes of ones or zeros.
    type Fired = __m256;

    #[inline(always)]
    unsafe fn bits(self, a: __m256, b: __m256, c: __m256, d: __m256, out: *mut u8) {
        // SAFETY: the token proves AVX2; the caller's promise.
        unsafe {
            let bits = _mm256_movemask_epi8(bytes_of(a, b, c, d)) as u32;
            out.cast::<u32>().write_unaligned(bits.to_le());
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, a: __m256, b: __m256, c: __m256, d: __m256, out: *mut u8, _past: bool) {
        // SAFETY: the token proves AVX2; the caller's promise.
        unsafe { _mm256_storeu_si256(out.cast(), _mm256_and_si256(bytes_of(a, b, c, d), _mm256_set1_epi8(1))) };
    }
    #[inline(always)]
    unsafe fn floats(self, a: __m256, b: __m256, c: __m256, d: __m256, out: *mut f32) {
        for (i, fired) in [a, b, c, d].into_iter().enumerate() {
            // SAFETY: the token proves AVX2; the caller's promise.
            unsafe { _mm256_storeu_ps(out.add(8 * i), _mm256_and_ps(fired, _mm256_set1_ps(1.0))) };
        }
    }
    fn settle(self) {}
    intrinsics! {
        some_bits(fired: __m256, len: usize, out: &mut [u8]) {
            out[0] = _mm256_movemask_ps(fired) as u8 & ((1u32 << len) - 1) as u8;
        }
        some_bytes(fired: __m256, out: &mut [u8]) {
            let bytes = _mm256_and_si256(bytes_of(fired, fired, fired, fired), _mm256_set1_epi8(1));
            let mut eight = [0; 8];
            let to = if out.len() == 8 { out.as_mut_ptr() } else { eight.as_mut_ptr() };
            _mm_storel_epi64(to.cast(), _mm256_castsi256_si128(bytes));
            if out.len() < 8 {
                out.iter_mut().zip(eight).for_each(|(out, byte)| *out = byte);
            }
        }
        some_floats(fired: __m256, out: &mut [f32]) {
            f32::store_some(Avx2::new(), _mm256_and_ps(fired, _mm256_set1_ps(1.0)), out);
        }
    }
}

/// Ones in the first `n` lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn first(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

impl Vector<Avx2> for f32 {
    type V = __m256;
    const EIGHT: bool = true;

    #[inline(always)]
    unsafe fn load(_: Avx2, x: *const f32) -> __m256 {
        // SAFETY: the token proves the instruction set; the caller's promise.
        unsafe { _mm256_loadu_ps(x) }
    }
    #[inline(always)]
    unsafe fn store(_: Avx2, x: __m256, out: *mut f32) {
        // SAFETY: the token proves the instruction set; the caller's promise.
        unsafe { _mm256_storeu_ps(out, x) };
    }
    #[inline(always)]
    fn charge<const LEAK: u8>(
        l: Avx2,
        v: __m256,
        x: __m256,
        beta: __m256,
        drive: __m256,
        _: Shifts,
        _: bool,
    ) -> __m256 {
        x86::charge::<Avx2, LEAK>(l, v, x, beta, drive)
    }
    vectors! { Avx2:
        load_some(x: &[f32]) -> __m256 {
            assert!(x.len() <= 8);
            if x.len() == 8 { _mm256_loadu_ps(x.as_ptr()) } else { _mm256_maskload_ps(x.as_ptr(), first(x.len())) }
        }
        store_some(x: __m256, out: &mut [f32]) {
            assert!(out.len() <= 8);
            if out.len() == 8 {
                _mm256_storeu_ps(out.as_mut_ptr(), x);
            } else {
                _mm256_maskstore_ps(out.as_mut_ptr(), first(out.len()), x);
            }
        }
        splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fires(h: __m256, fire: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_GE_OQ>(h, fire) }
        select(fired: __m256, to: __m256, h: __m256) -> __m256 { _mm256_blendv_ps(h, to, fired) }
        reduced(fired: __m256, threshold: __m256, h: __m256) -> __m256 {
            _mm256_sub_ps(h, _mm256_and_ps(fired, threshold))
        }
    }
}

impl Vector<Avx2> for i32 {
    type V = __m256i;
    const EIGHT: bool = false;

    #[inline(always)]
    unsafe fn load(_: Avx2, x: *const i32) -> __m256i {
        // SAFETY: the token proves the instruction set; the caller's promise.
        unsafe { _mm256_loadu_si256(x.cast()) }
    }
    #[inline(always)]
    unsafe fn store(_: Avx2, x: __m256i, out: *mut i32) {
        // SAFETY: the token proves the instruction set; the caller's promise.
        unsafe { _mm256_storeu_si256(out.cast(), x) };
    }
    #[inline(always)]
    fn charge<const LEAK: u8>(
        _: Avx2,
        v: __m256i,
        x: __m256i,
        beta: __m256i,
        drive: __m256i,
        shifts: Shifts,
        held: bool,
    ) -> __m256i {
        // SAFETY: the token proves the instruction set.
        unsafe {
            let x = if LEAK & SHIFTED == 0 { x } else { _mm256_sll_epi32(x, _mm_cvtsi32_si128(shifts.input as i32)) };
            let x = if LEAK & !SHIFTED == KEEP_AND_DRIVE { _mm256_add_epi32(x, drive) } else { x };
            let kept = match LEAK & !SHIFTED {
                NO_LEAK => v,
                HALVE => {
                    let half = _mm256_set1_epi32(1 << shifts.kept >> 1);
                    _mm256_srav_epi32(_mm256_add_epi32(v, half), _mm256_set1_epi32(shifts.kept as i32))
                }
                _ => {
                    let product = _mm256_mullo_epi32(v, beta);
                    _mm256_srai_epi32::<8>(_mm256_add_epi32(product, _mm256_set1_epi32(128)))
                }
            };
            let h = _mm256_max_epi32(_mm256_add_epi32(kept, x), _mm256_set1_epi32(-MOST));
            if held { _mm256_min_epi32(h, _mm256_set1_epi32(MOST)) } else { h }
        }
    }
    vectors! { Avx2:
        load_some(x: &[i32]) -> __m256i {
            assert!(x.len() <= 8);
            if x.len() == 8 { _mm256_loadu_si256(x.as_ptr().cast()) } else { _mm256_maskload_epi32(x.as_ptr(), first(x.len())) }
        }
        store_some(x: __m256i, out: &mut [i32]) {
            assert!(out.len() <= 8);
            if out.len() == 8 {
                _mm256_storeu_si256(out.as_mut_ptr().cast(), x);
            } else {
                _mm256_maskstore_epi32(out.as_mut_ptr(), first(out.len()), x);
            }
        }
        splat(x: i32) -> __m256i { _mm256_set1_epi32(x) }
        fires(h: __m256i, fire: __m256i) -> __m256 {
            // h ≥ fire, as there is h > fire alone.
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(h, _mm256_sub_epi32(fire, _mm256_set1_epi32(1))))
        }
        select(fired: __m256, to: __m256i, h: __m256i) -> __m256i {
            _mm256_blendv_epi8(h, to, _mm256_castps_si256(fired))
        }
        reduced(fired: __m256, threshold: __m256i, h: __m256i) -> __m256i {
            _mm256_sub_epi32(h, _mm256_and_si256(_mm256_castps_si256(fired), threshold))
        }
    }
}
