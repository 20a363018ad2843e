//! Eight lanes of f32 with comparisons: what scans tiles of eight codewords.
//!
//! A value of [`Eight`] is a token: holding one proves that the CPU has the
//! instruction set. Unlike `lanes.rs`, results may differ in the last bits
//! between instruction sets: they rule out codewords, within bounds that cover
//! each of them.

pub(super) trait Eight: Copy {
    /// The vector.
    type F: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 8]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; 8]);
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once or twice.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Bit i: lane i of `a` is at most that of `b`.
    fn le(self, a: Self::F, b: Self::F) -> u32;
    /// The least lane.
    fn least(self, a: Self::F) -> f32;
    /// Lane i: the least lane of vector i.
    fn leasts(self, a: [Self::F; 8]) -> Self::F;
    fn sqrt(self, a: Self::F) -> Self::F;
}

/// Portable Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Eight for Portable {
    type F = [f32; 8];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 8]) -> [f32; 8] {
        *x
    }
    #[inline(always)]
    fn store(self, x: [f32; 8], out: &mut [f32; 8]) {
        *out = x;
    }
    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn le(self, a: [f32; 8], b: [f32; 8]) -> u32 {
        (0..8).fold(0, |mask, i| mask | u32::from(a[i] <= b[i]) << i)
    }
    #[inline(always)]
    fn least(self, a: [f32; 8]) -> f32 {
        a.into_iter().fold(f32::INFINITY, |m, x| if x < m { x } else { m })
    }
    #[inline(always)]
    fn leasts(self, a: [[f32; 8]; 8]) -> [f32; 8] {
        a.map(|a| self.least(a))
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; 8]) -> [f32; 8] {
        a.map(f32::sqrt)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Eight;

    /// AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(());

    impl Avx2 {
        /// # Safety
        /// The CPU has AVX2 and FMA.
        #[inline(always)]
        pub(in super::super) unsafe fn new() -> Self {
            Avx2(())
        }
    }

    macro_rules! intrinsics {
        ($($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {$(
            #[inline(always)]
            fn $name(self, $($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the token proves the instruction set (see `new`); arrays have eight elements.
                unsafe { $body }
            }
        )*};
    }

    impl Eight for Avx2 {
        type F = __m256;

        intrinsics! {
            splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
            load(x: &[f32; 8]) -> __m256 { _mm256_loadu_ps(x.as_ptr()) }
            store(x: __m256, out: &mut [f32; 8]) { _mm256_storeu_ps(out.as_mut_ptr(), x) }
            sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
            mul_add(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
            max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
            min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
            le(a: __m256, b: __m256) -> u32 { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(a, b)) as u32 }
            least(a: __m256) -> f32 {
                let four = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
            }
            leasts(a: [__m256; 8]) -> __m256 {
                // Not closures: these would be compiled without the instruction set.
                macro_rules! two {
                    ($a:expr, $b:expr) => { _mm256_min_ps(_mm256_unpacklo_ps($a, $b), _mm256_unpackhi_ps($a, $b)) };
                }
                let pairs = [two!(a[0], a[1]), two!(a[2], a[3]), two!(a[4], a[5]), two!(a[6], a[7])];
                macro_rules! four {
                    ($a:expr, $b:expr) => {
                        _mm256_min_ps(_mm256_shuffle_ps::<0x44>($a, $b), _mm256_shuffle_ps::<0xee>($a, $b))
                    };
                }
                let (low, high) = (four!(pairs[0], pairs[1]), four!(pairs[2], pairs[3]));
                _mm256_min_ps(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
            }
            sqrt(a: __m256) -> __m256 { _mm256_sqrt_ps(a) }
        }
    }
}
