//! Steps of plain neurons, eight lanes at a time: [`super::rows::plain`] for AVX2.

use std::arch::x86_64::*;

use super::BLOCK;
use super::rows::{Bytes, HARD, KEEP, KEEP_AND_DRIVE, Levels, NO_LEAK, SHIFTED, SOFT, Spiked, TOWARD_ZERO};
use super::scalar::{MOST, Voltage};

/// Neurons that are taken together: four vectors, whose spikes are 32 bytes or bits.
const GROUP: usize = 32;

/// The vectors of a potential.
pub trait Vector: Copy {
    /// Eight of them.
    type V: Copy;
    /// # Safety
    /// The CPU has AVX2; eight elements from `x` on are readable.
    unsafe fn load(x: *const Self) -> Self::V;
    /// # Safety
    /// The CPU has AVX2; eight elements from `out` on are writable.
    unsafe fn store(x: Self::V, out: *mut Self);
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn splat(x: Self) -> Self::V;
    /// The potential before the comparison.
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn charge<const LEAK: u8>(v: Self::V, x: Self::V, beta: Self::V, drive: Self::V) -> Self::V;
    /// Inputs in the potential's units.
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn shifted(x: Self::V, fraction: __m128i) -> Self::V;
    /// Lanes of ones where h is at least `fire`.
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn fires(h: Self::V, fire: Self::V) -> __m256i;
    /// `to` in lanes of ones, else h.
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn select(fired: __m256i, to: Self::V, h: Self::V) -> Self::V;
    /// h less the threshold in lanes of ones.
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn reduced(fired: __m256i, threshold: Self::V, h: Self::V) -> Self::V;
}

/// Implements methods whose bodies are intrinsics.
macro_rules! intrinsics {
    ($($name:ident$(<const $leak:ident: u8>)?($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {$(
        #[inline(always)]
        unsafe fn $name$(<const $leak: u8>)?($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller's promise.
            unsafe { $body }
        }
    )*};
}

impl Vector for f32 {
    type V = __m256;
    #[inline(always)]
    unsafe fn shifted(x: __m256, _: __m128i) -> __m256 {
        x
    }
    intrinsics! {
        load(x: *const f32) -> __m256 { _mm256_loadu_ps(x) }
        store(x: __m256, out: *mut f32) { _mm256_storeu_ps(out, x) }
        splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        charge<const LEAK: u8>(v: __m256, x: __m256, beta: __m256, drive: __m256) -> __m256 {
            match LEAK {
                NO_LEAK => _mm256_add_ps(v, x),
                KEEP => _mm256_add_ps(_mm256_mul_ps(beta, v), x),
                KEEP_AND_DRIVE => _mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(beta, v), drive), x),
                TOWARD_ZERO => _mm256_add_ps(v, _mm256_mul_ps(_mm256_sub_ps(x, v), beta)),
                _ => _mm256_add_ps(v, _mm256_mul_ps(_mm256_sub_ps(x, _mm256_sub_ps(v, drive)), beta)),
            }
        }
        fires(h: __m256, fire: __m256) -> __m256i { _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GE_OQ>(h, fire)) }
        select(fired: __m256i, to: __m256, h: __m256) -> __m256 {
            _mm256_blendv_ps(h, to, _mm256_castsi256_ps(fired))
        }
        reduced(fired: __m256i, threshold: __m256, h: __m256) -> __m256 {
            _mm256_sub_ps(h, _mm256_and_ps(_mm256_castsi256_ps(fired), threshold))
        }
    }
}

impl Vector for i32 {
    type V = __m256i;
    intrinsics! {
        load(x: *const i32) -> __m256i { _mm256_loadu_si256(x.cast()) }
        store(x: __m256i, out: *mut i32) { _mm256_storeu_si256(out.cast(), x) }
        splat(x: i32) -> __m256i { _mm256_set1_epi32(x) }
        charge<const LEAK: u8>(v: __m256i, x: __m256i, beta: __m256i, drive: __m256i) -> __m256i {
            let x = if LEAK & !SHIFTED == KEEP_AND_DRIVE { _mm256_add_epi32(x, drive) } else { x };
            let kept = if LEAK & !SHIFTED == NO_LEAK {
                v
            } else {
                let product = _mm256_mullo_epi32(v, beta);
                _mm256_srai_epi32::<8>(_mm256_add_epi32(product, _mm256_set1_epi32(128)))
            };
            let h = _mm256_min_epi32(_mm256_add_epi32(kept, x), _mm256_set1_epi32(MOST));
            _mm256_max_epi32(h, _mm256_set1_epi32(-MOST))
        }
        shifted(x: __m256i, fraction: __m128i) -> __m256i { _mm256_sll_epi32(x, fraction) }
        fires(h: __m256i, fire: __m256i) -> __m256i {
            // h ≥ fire, as there is h > fire alone.
            _mm256_cmpgt_epi32(h, _mm256_sub_epi32(fire, _mm256_set1_epi32(1)))
        }
        select(fired: __m256i, to: __m256i, h: __m256i) -> __m256i { _mm256_blendv_epi8(h, to, fired) }
        reduced(fired: __m256i, threshold: __m256i, h: __m256i) -> __m256i {
            _mm256_sub_epi32(h, _mm256_and_si256(fired, threshold))
        }
    }
}

/// Some steps of a block.
#[target_feature(enable = "avx2")]
pub(super) fn fused<V: Voltage, S: Spiked, const LEAK: u8, const RESET: u8, const EACH: bool>(
    x: &[&[V]],
    v: &mut [V],
    levels: &Levels<V>,
    spikes: &mut [&mut [S::E]],
) {
    let n = v.len();
    assert!(!EACH || n <= BLOCK);
    assert!(x.len() == spikes.len());
    for (x, spikes) in x.iter().zip(&*spikes) {
        assert!(x.len() == n && spikes.len() == S::elements(n));
    }
    // One value is read of each, or those of as many whole groups as hold the neurons.
    let read = [&levels.beta, &levels.drive, &levels.fire, &levels.threshold, &levels.to];
    assert!(read.iter().all(|x| x.len() >= if EACH { BLOCK } else { 1 }));
    const { assert!(BLOCK.is_multiple_of(GROUP)) };
    let params = Params::new(levels);
    let whole = n / GROUP * GROUP;
    for at in (0..whole).step_by(GROUP) {
        // SAFETY: the CPU has AVX2; 32 elements from `at` on lie within v and each x, S::elements(32) from there on
        // within each of spikes, and what is read of `levels` has BLOCK.
        unsafe { group::<V, S, LEAK, RESET, EACH>(x, v.as_mut_ptr().add(at), &params, at, at, spikes) };
    }
    if whole < n {
        // The rest in room of its own.
        let rest = n - whole;
        let (mut inputs, mut potentials) = ([V::default(); GROUP], [V::default(); GROUP]);
        potentials[..rest].copy_from_slice(&v[whole..]);
        for (x, spikes) in x.iter().zip(spikes) {
            inputs[..rest].copy_from_slice(&x[whole..]);
            let fired = one_group::<V, LEAK, RESET, EACH>(&inputs, &mut potentials, &params, whole);
            let spikes = &mut spikes[S::elements(whole)..];
            fired[..rest].iter().enumerate().for_each(|(j, &fired)| S::put(spikes, j, fired == 1));
        }
        v[whole..].copy_from_slice(&potentials[..rest]);
    }
}

/// One step of 32 neurons, once for all forms of spikes: it is compiled for many cases. If EACH, their parameters
/// are those from `at` on, a group's in a block.
#[target_feature(enable = "avx2")]
#[inline(never)]
fn one_group<V: Voltage, const LEAK: u8, const RESET: u8, const EACH: bool>(
    x: &[V; GROUP],
    v: &mut [V; GROUP],
    params: &Params<V>,
    at: usize,
) -> [u8; GROUP] {
    assert!(!EACH || at <= BLOCK - GROUP);
    let mut fired = [0; GROUP];
    // SAFETY: the CPU has AVX2; there are 32 elements of each, and BLOCK of what `fused` has made `params` of if EACH.
    unsafe {
        let (x, fired) = ([&x[..]], &mut [&mut fired[..]]);
        group::<V, Bytes, LEAK, RESET, EACH>(&x, v.as_mut_ptr(), params, at, 0, fired);
    }
    fired
}

/// The parameters where no store can change them, as far as the compiler knows.
struct Params<V: Voltage> {
    /// What all neurons have.
    all: [V::V; 5],
    /// Where each neuron's are.
    each: [*const V; 5],
    fraction: __m128i,
}

/// Their places.
const BETA: usize = 0;
const DRIVE: usize = 1;
const FIRE: usize = 2;
const THRESHOLD: usize = 3;
const TO: usize = 4;

impl<V: Voltage> Params<V> {
    #[target_feature(enable = "avx2")]
    fn new(levels: &Levels<V>) -> Self {
        let lists = [&levels.beta, &levels.drive, &levels.fire, &levels.threshold, &levels.to];
        Params {
            // SAFETY: the CPU has AVX2.
            all: lists.map(|x| unsafe { V::splat(x[0]) }),
            each: lists.map(|x| x.as_ptr()),
            fraction: _mm_cvtsi32_si128(levels.fraction as i32),
        }
    }
}

/// Some steps of 32 neurons whose inputs and spikes are those from `from` on.
///
/// # Safety
/// The CPU has AVX2; 32 elements from `v` and from `from` on of each `x` are readable, and writable S::elements(32)
/// from there on of each of `spikes`, which are as many; and, if EACH, those from `at` on of each parameter.
#[inline(always)]
unsafe fn group<V: Voltage, S: Spiked, const LEAK: u8, const RESET: u8, const EACH: bool>(
    x: &[&[V]],
    v: *mut V,
    params: &Params<V>,
    at: usize,
    from: usize,
    spikes: &mut [&mut [S::E]],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut v0, mut v1, mut v2, mut v3) = (V::load(v), V::load(v.add(8)), V::load(v.add(16)), V::load(v.add(24)));
        for (x, spikes) in x.iter().zip(spikes) {
            let x = x.as_ptr().add(from);
            // Written out: potentials in an array would go through memory.
            macro_rules! eight {
                ($v:ident, $i:literal) => {{
                    macro_rules! level {
                        ($k:expr) => {
                            if EACH { V::load(params.each[$k].add(at + 8 * $i)) } else { params.all[$k] }
                        };
                    }
                    let x = V::load(x.add(8 * $i));
                    let x = if LEAK & SHIFTED == 0 { x } else { <V as Vector>::shifted(x, params.fraction) };
                    let h = V::charge::<LEAK>($v, x, level!(BETA), level!(DRIVE));
                    let fired = V::fires(h, level!(FIRE));
                    $v = match RESET {
                        HARD => V::select(fired, level!(TO), h),
                        SOFT => V::reduced(fired, level!(THRESHOLD), h),
                        _ => h,
                    };
                    fired
                }};
            }
            let fired = [eight!(v0, 0), eight!(v1, 1), eight!(v2, 2), eight!(v3, 3)];
            S::write(fired, spikes.as_mut_ptr().add(S::elements(from)));
        }
        V::store(v0, v);
        V::store(v1, v.add(8));
        V::store(v2, v.add(16));
        V::store(v3, v.add(24));
    }
}

/// 32 lanes of ones or zeros as bytes of 1 or 0.
///
/// # Safety
/// The CPU has AVX2; 32 bytes from `out` on are writable.
#[inline(always)]
pub(super) unsafe fn write_bytes(fired: [__m256i; 4], out: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { _mm256_storeu_si256(out.cast(), _mm256_and_si256(bytes_of(fired), _mm256_set1_epi8(1))) }
}

/// 32 lanes of ones or zeros as bytes.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn bytes_of(fired: [__m256i; 4]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let words = [_mm256_packs_epi32(fired[0], fired[1]), _mm256_packs_epi32(fired[2], fired[3])];
        let bytes = _mm256_packs_epi16(words[0], words[1]);
        // Packing goes by halves: fours of lanes 0 4 8 12 16 20 24 28 stand as 0 8 16 24 4 12 20 28.
        _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
}

/// 32 lanes of ones or zeros as 32 bits.
///
/// # Safety
/// The CPU has AVX2; four bytes from `out` on are writable.
#[inline(always)]
pub(super) unsafe fn write_bits(fired: [__m256i; 4], out: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_movemask_epi8(bytes_of(fired)) as u32;
        out.cast::<u32>().write_unaligned(bits.to_le());
    }
}

/// 32 lanes of ones or zeros as floats of 1 or 0.
///
/// # Safety
/// The CPU has AVX2; 32 floats from `out` on are writable.
#[inline(always)]
pub(super) unsafe fn write_floats(fired: [__m256i; 4], out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for (i, fired) in fired.into_iter().enumerate() {
            let ones = _mm256_and_ps(_mm256_castsi256_ps(fired), _mm256_set1_ps(1.0));
            _mm256_storeu_ps(out.add(8 * i), ones);
        }
    }
}
