//! Plain neurons, sixteen lanes at a time: what [`super::x86`] needs of AVX-512.

use std::arch::x86_64::*;

use super::rows::{HALVE, KEEP_AND_DRIVE, Levels, NO_LEAK, Out, SHIFTED, Spiked, Steps};
use super::scalar::{MOST, Voltage};
use super::x86::{self, Firing, Shifts, Vector, vectors};
use crate::lanes::{Avx512, intrinsics};

/// [`x86::fused`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
pub(super) fn fused<V: Voltage, S: Spiked, const LEAK: u8, const RESET: u8, const EACH: bool>(
    x: Steps<'_, V>,
    v: &mut [V],
    levels: &Levels<V>,
    out: Out<'_, '_, S::E>,
) {
    // SAFETY: the features of this function are those that the token stands for.
    let l = unsafe { Avx512::new() };
    x86::fused::<Avx512, V, S, LEAK, RESET, EACH>(l, x, v, levels, out);
}

/// The masks of four vectors as one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn joined(a: __mmask16, b: __mmask16, c: __mmask16, d: __mmask16) -> __mmask64 {
    let (low, high) = (_mm512_kunpackw(b.into(), a.into()), _mm512_kunpackw(d.into(), c.into()));
    _mm512_kunpackd(high.into(), low.into())
}

impl Firing for Avx512 {
    const N: usize = 16;
    const HOLDS: bool = true;
    type Fired = __mmask16;

    #[inline(always)]
    unsafe fn bits(self, a: __mmask16, b: __mmask16, c: __mmask16, d: __mmask16, out: *mut u8) {
        // SAFETY: the token proves AVX-512; the caller's promise.
        unsafe { out.cast::<u64>().write_unaligned(joined(a, b, c, d).to_le()) };
    }
    #[inline(always)]
    unsafe fn bytes(self, a: __mmask16, b: __mmask16, c: __mmask16, d: __mmask16, out: *mut u8, past: bool) {
        let out = out.cast::<__m512i>();
        // SAFETY: the token proves AVX-512; the caller's promise, and what goes past the caches is aligned.
        unsafe {
            if past && out.is_aligned() {
                _mm512_stream_si512(out, _mm512_maskz_set1_epi8(joined(a, b, c, d), 1));
            } else {
                // One by one: to join masks takes the port that comparisons need.
                let out = out.cast::<__m128i>();
                for (i, fired) in [a, b, c, d].into_iter().enumerate() {
                    _mm_storeu_si128(out.add(i), _mm_maskz_set1_epi8(fired, 1));
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn floats(self, a: __mmask16, b: __mmask16, c: __mmask16, d: __mmask16, out: *mut f32) {
        for (i, fired) in [a, b, c, d].into_iter().enumerate() {
            // SAFETY: the token proves AVX-512; the caller's promise.
            unsafe { _mm512_storeu_ps(out.add(16 * i), _mm512_maskz_mov_ps(fired, _mm512_set1_ps(1.0))) };
        }
    }
    #[inline(always)]
    fn some_bits(self, fired: __mmask16, len: usize, out: &mut [u8]) {
        let bits = (fired & first(len)).to_le_bytes();
        out.iter_mut().zip(bits).for_each(|(out, bits)| *out = bits);
    }
    intrinsics! {
        settle() { _mm_sfence() }
        some_bytes(fired: __mmask16, out: &mut [u8]) {
            assert!(out.len() <= 16);
            _mm_mask_storeu_epi8(out.as_mut_ptr().cast(), first(out.len()), _mm_maskz_set1_epi8(fired, 1));
        }
        some_floats(fired: __mmask16, out: &mut [f32]) {
            f32::store_some(Avx512::new(), _mm512_maskz_mov_ps(fired, _mm512_set1_ps(1.0)), out);
        }
    }
}

/// Ones for the first `n` lanes of up to 16.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as u16
}

impl Vector<Avx512> for f32 {
    type V = __m512;
    const EIGHT: bool = true;

    #[inline(always)]
    unsafe fn load(_: Avx512, x: *const f32) -> __m512 {
        // SAFETY: the token proves the instruction set; the caller's promise.
        unsafe { _mm512_loadu_ps(x) }
    }
    #[inline(always)]
    unsafe fn store(_: Avx512, x: __m512, out: *mut f32) {
        // SAFETY: the token proves the instruction set; the caller's promise.
        unsafe { _mm512_storeu_ps(out, x) };
    }
    #[inline(always)]
    fn charge<const LEAK: u8>(
        l: Avx512,
        v: __m512,
        x: __m512,
        beta: __m512,
        drive: __m512,
        _: Shifts,
        _: bool,
    ) -> __m512 {
        x86::charge::<Avx512, LEAK>(l, v, x, beta, drive)
    }
    vectors! { Avx512:
        load_some(x: &[f32]) -> __m512 {
            assert!(x.len() <= 16);
            if x.len() == 16 { _mm512_loadu_ps(x.as_ptr()) } else { _mm512_maskz_loadu_ps(first(x.len()), x.as_ptr()) }
        }
        store_some(x: __m512, out: &mut [f32]) {
            assert!(out.len() <= 16);
            if out.len() == 16 {
                _mm512_storeu_ps(out.as_mut_ptr(), x);
            } else {
                _mm512_mask_storeu_ps(out.as_mut_ptr(), first(out.len()), x);
            }
        }
        splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fires(h: __m512, fire: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(h, fire) }
        select(fired: __mmask16, to: __m512, h: __m512) -> __m512 { _mm512_mask_mov_ps(h, fired, to) }
        reduced(fired: __mmask16, threshold: __m512, h: __m512) -> __m512 {
            _mm512_mask_sub_ps(h, fired, h, threshold)
        }
    }
}

impl Vector<Avx512> for i32 {
    type V = __m512i;
    const EIGHT: bool = true;

    #[inline(always)]
    unsafe fn load(_: Avx512, x: *const i32) -> __m512i {
        // SAFETY: the token proves the instruction set; the caller's promise.
        unsafe { _mm512_loadu_si512(x.cast()) }
    }
    #[inline(always)]
    unsafe fn store(_: Avx512, x: __m512i, out: *mut i32) {
        // SAFETY: the token proves the instruction set; the caller's promise.
        unsafe { _mm512_storeu_si512(out.cast(), x) };
    }
    #[inline(always)]
    fn charge<const LEAK: u8>(
        _: Avx512,
        v: __m512i,
        x: __m512i,
        beta: __m512i,
        drive: __m512i,
        shifts: Shifts,
        held: bool,
    ) -> __m512i {
        // SAFETY: the token proves the instruction set.
        unsafe {
            let x = if LEAK & SHIFTED == 0 { x } else { _mm512_sll_epi32(x, _mm_cvtsi32_si128(shifts.input as i32)) };
            let x = if LEAK & !SHIFTED == KEEP_AND_DRIVE { _mm512_add_epi32(x, drive) } else { x };
            let kept = match LEAK & !SHIFTED {
                NO_LEAK => v,
                HALVE => {
                    let half = _mm512_set1_epi32(1 << shifts.kept >> 1);
                    _mm512_srav_epi32(_mm512_add_epi32(v, half), _mm512_set1_epi32(shifts.kept as i32))
                }
                _ => {
                    let product = _mm512_mullo_epi32(v, beta);
                    _mm512_srai_epi32::<8>(_mm512_add_epi32(product, _mm512_set1_epi32(128)))
                }
            };
            let h = _mm512_max_epi32(_mm512_add_epi32(kept, x), _mm512_set1_epi32(-MOST));
            if held { _mm512_min_epi32(h, _mm512_set1_epi32(MOST)) } else { h }
        }
    }
    vectors! { Avx512:
        load_some(x: &[i32]) -> __m512i {
            assert!(x.len() <= 16);
            if x.len() == 16 { _mm512_loadu_si512(x.as_ptr().cast()) } else { _mm512_maskz_loadu_epi32(first(x.len()), x.as_ptr()) }
        }
        store_some(x: __m512i, out: &mut [i32]) {
            assert!(out.len() <= 16);
            if out.len() == 16 {
                _mm512_storeu_si512(out.as_mut_ptr().cast(), x);
            } else {
                _mm512_mask_storeu_epi32(out.as_mut_ptr(), first(out.len()), x);
            }
        }
        splat(x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fires(h: __m512i, fire: __m512i) -> __mmask16 { _mm512_cmpge_epi32_mask(h, fire) }
        select(fired: __mmask16, to: __m512i, h: __m512i) -> __m512i { _mm512_mask_mov_epi32(h, fired, to) }
        reduced(fired: __mmask16, threshold: __m512i, h: __m512i) -> __m512i {
            _mm512_mask_sub_epi32(h, fired, h, threshold)
        }
    }
}
