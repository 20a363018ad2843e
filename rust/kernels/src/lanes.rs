//! Vectors of f32, so that the float arithmetic of a family is written once.
//!
//! A [`Lanes`] value is a token: holding one proves that the CPU has the
//! instruction set, because the only way to make one is an `unsafe` call in an
//! instruction-set file. Code generic over it is `#[inline(always)]` and takes
//! its target features from the `#[target_feature]` function that it inlines
//! into.
//!
//! Every operation is one IEEE operation, rounded to nearest even, and nothing
//! is contracted to a fused multiply-add that does not say so: a result is the same bits on every
//! instruction set, and in NumPy's float32.

/// A vector of [`Lanes::N`] floats and what can be done with it.
///
/// Slices passed to `load_*` and `store_*` hold exactly as many elements as
/// the method says; it asserts so.
pub(crate) trait Lanes: Copy {
    /// Lanes in a vector.
    const N: usize;
    /// The vector.
    type F: Copy;
    /// N doubles: sums of squares.
    type D: Copy;

    fn splat(self, x: f32) -> Self::F;
    /// N floats.
    fn load(self, x: &[f32]) -> Self::F;
    /// N floats.
    fn store(self, x: Self::F, out: &mut [f32]);
    /// N bfloat16, as their bits.
    fn load_bf16(self, x: &[u16]) -> Self::F;
    /// N bfloat16, rounded to nearest even; a NaN stays one.
    fn store_bf16(self, x: Self::F, out: &mut [u16]);
    /// `x - y * z` of N integers, wrapping, rounded to the nearest float.
    fn centred(self, x: &[i32], y: &[i32], z: i32) -> Self::F;
    /// 4N integral values in 0..=255, NaN as anything.
    fn store_u8(self, x: [Self::F; 4], out: &mut [u8]);
    /// 4N values within ±2^15: each rounded to nearest even, and the zero point added, within 0..=255.
    #[inline(always)]
    fn store_codes(self, x: [Self::F; 4], zero_point: u8, out: &mut [u8]) {
        let zero_point = f32::from(zero_point);
        let (least, most) = (self.splat(-zero_point), self.splat(255.0 - zero_point));
        let within = x.map(|x| self.min(self.max(self.rint(x), least), most));
        self.store_u8(within.map(|x| self.add(x, self.splat(zero_point))), out);
    }
    /// N integers.
    fn load_u8(self, x: &[u8]) -> Self::F;
    /// Bit i: whether byte i is not 0.
    #[inline(always)]
    fn some_of(self, x: &[u8; 64]) -> u64 {
        const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
        let mut bits = 0;
        for (i, eight) in x.as_chunks::<8>().0.iter().enumerate() {
            // Of each byte the highest bit, set where any is.
            let x = u64::from_le_bytes(*eight);
            let some = (((x & LOW) + LOW) | x) & !LOW;
            bits |= ((some >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
        }
        bits
    }

    /// The byte at bit `shift` of each of N dwords, 4N bytes.
    fn byte_of(self, x: &[u8], shift: u32) -> Self::F;
    /// A table of up to 16 floats.
    type T: Copy;
    /// It holds zeros behind them.
    fn table(self, x: &[f32]) -> Self::T;
    /// Of each of N dwords, 4N bytes, what the table has at the number in the four bits from
    /// bit `shift` on.
    fn pick(self, table: Self::T, x: &[u8], shift: u32) -> Self::F;
    /// `sum` and, one fused multiply-add after the other, `x` times what the table has at the
    /// lower halves of the bytes of N dwords, 4N bytes, and then at the upper ones.
    #[inline(always)]
    fn add_eight(self, table: &Self::T, bytes: &[u8], x: &[f32; 8], mut sum: Self::F) -> Self::F {
        for (i, &x) in x.iter().enumerate() {
            let bit = 8 * (i as u32 % 4) + 4 * (i as u32 / 4);
            sum = self.mul_add(self.splat(x), self.pick(*table, bytes, bit), sum);
        }
        sum
    }
    /// Of N columns of eight codes each, the first four of all and the others, 4N bytes, what is
    /// in `entries` at each code, from the column's of `tables` on: by code. Codes have `NBITS`.
    #[inline(always)]
    fn look_up<const NBITS: u32>(self, entries: &[f32], tables: &[u32], codes: [&[u8]; 2]) -> [Self::F; 8] {
        let mut out = [self.splat(0.0); 8];
        for (i, out) in out.iter_mut().enumerate() {
            let mut lanes = [0.0; 16];
            for (j, (lane, &table)) in lanes.iter_mut().zip(&tables[..Self::N]).enumerate() {
                let code = codes[i / 4][4 * j + i % 4];
                debug_assert!(u32::from(code) >> NBITS == 0);
                *lane = entries[table as usize + usize::from(code)];
            }
            *out = self.load(&lanes[..Self::N]);
        }
        out
    }

    /// N doubles of 0.
    fn no_squares(self) -> Self::D;
    /// `sum + a * a` in double precision, where the square is exact.
    fn add_square(self, sum: Self::D, a: Self::F) -> Self::D;
    /// `sum + w * (a * a)` in double precision.
    fn add_square_weighted(self, sum: Self::D, a: Self::F, w: Self::F) -> Self::D;
    /// N doubles.
    fn store_squares(self, sum: Self::D, out: &mut [f64]);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }` in each lane: `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }` in each lane: `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, half to even.
    fn rint(self, a: Self::F) -> Self::F;
    /// Of lanes i and i + stride, i without that bit, the sum and the difference; stride 1, 2, 4, 8 below N.
    fn butterfly(self, a: Self::F, stride: usize) -> Self::F;
    /// 2^n for an integral n in -126..=127.
    fn exp2i(self, n: Self::F) -> Self::F;

    /// The lanes' greatest value, NaN lanes aside.
    #[inline(always)]
    fn reduce_max(self, a: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(a, &mut lanes[..Self::N]);
        lanes[..Self::N].iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }

    /// e^x for x ≤ 88, within 2 units in the last place; e^-87.3 = 1.2e-38 for
    /// everything below -87.3; NaN for NaN.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        // n = rint(x / ln 2); r = x - n ln 2 in two parts; a polynomial fitted here
        // to 3e-9 over |r| ≤ ln 2 / 2; times 2^n.
        let low = self.splat(-87.3);
        let clamped = self.max(low, x); // x where it is NaN
        let n = self.rint(self.mul(clamped, self.splat(std::f32::consts::LOG2_E)));
        let r = self.sub(clamped, self.mul(n, self.splat(0.693_359_4)));
        let r = self.sub(r, self.mul(n, self.splat(-2.121_944_4e-4)));
        let mut p = self.splat(1.381_446_4e-3);
        for c in [8.368_782e-3, 4.166_839_3e-2, 0.166_665_2, 0.499_999_94, 1.0, 1.0] {
            p = self.add(self.mul(p, r), self.splat(c));
        }
        let scale = self.exp2i(self.max(self.min(n, self.splat(127.0)), self.splat(-126.0)));
        self.mul(p, scale)
    }
}

/// Asks for a line of memory before it is needed: a hint, where a CPU takes one. Any address is harmless.
#[inline(always)]
pub(crate) fn prefetch_line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: nothing is read, and every x86-64 CPU has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    let _ = at;
}

/// All lines of a slice.
#[inline(always)]
pub(crate) fn prefetch<T>(x: &[T]) {
    x.chunks(64 / size_of::<T>()).for_each(|line| prefetch_line(line.as_ptr().cast()));
}

/// An element type of rows: float32, or bfloat16 as its bits.
pub(crate) trait Element: Copy + Default + Send + Sync {
    /// `L::N` elements as floats.
    fn load<L: Lanes>(l: L, x: &[Self]) -> L::F;
    /// `L::N` floats as elements.
    fn store<L: Lanes>(l: L, x: L::F, out: &mut [Self]);
}

impl Element for f32 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, x: &[f32]) -> L::F {
        l.load(x)
    }
    #[inline(always)]
    fn store<L: Lanes>(l: L, x: L::F, out: &mut [f32]) {
        l.store(x, out);
    }
}

impl Element for u16 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, x: &[u16]) -> L::F {
        l.load_bf16(x)
    }
    #[inline(always)]
    fn store<L: Lanes>(l: L, x: L::F, out: &mut [u16]) {
        l.store_bf16(x, out);
    }
}

/// One lane of portable Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Lanes for Scalar {
    const N: usize = 1;
    type F = f32;
    type D = f64;

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> f32 {
        x[0]
    }
    #[inline(always)]
    fn store(self, x: f32, out: &mut [f32]) {
        out[0] = x;
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16]) -> f32 {
        half::bf16::from_bits(x[0]).to_f32()
    }
    #[inline(always)]
    fn store_bf16(self, x: f32, out: &mut [u16]) {
        out[0] = half::bf16::from_f32(x).to_bits();
    }
    #[inline(always)]
    fn centred(self, x: &[i32], y: &[i32], z: i32) -> f32 {
        x[0].wrapping_sub(y[0].wrapping_mul(z)) as f32
    }
    #[inline(always)]
    fn store_u8(self, x: [f32; 4], out: &mut [u8]) {
        for (o, x) in out.iter_mut().zip(x) {
            *o = x as u8;
        }
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8]) -> f32 {
        f32::from(x[0])
    }
    #[inline(always)]
    fn byte_of(self, x: &[u8], shift: u32) -> f32 {
        f32::from(x[shift as usize / 8])
    }
    type T = [f32; 16];
    #[inline(always)]
    fn table(self, x: &[f32]) -> [f32; 16] {
        let mut table = [0.0; 16];
        table[..x.len()].copy_from_slice(x);
        table
    }
    #[inline(always)]
    fn pick(self, table: [f32; 16], x: &[u8], shift: u32) -> f32 {
        table[usize::from(x[shift as usize / 8] >> (shift % 8) & 15)]
    }
    #[inline(always)]
    fn no_squares(self) -> f64 {
        0.0
    }
    #[inline(always)]
    fn add_square(self, sum: f64, a: f32) -> f64 {
        sum + f64::from(a) * f64::from(a)
    }
    #[inline(always)]
    fn add_square_weighted(self, sum: f64, a: f32, w: f32) -> f64 {
        sum + f64::from(w) * (f64::from(a) * f64::from(a))
    }
    #[inline(always)]
    fn store_squares(self, sum: f64, out: &mut [f64]) {
        out[0] = sum;
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        // Not `f32::mul_add`, which calls a library. The product is exact in float64, and
        // the sum is rounded to odd there, so that the last rounding is as if the only one.
        let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
        let sum = product + c;
        let part = sum - product;
        let off = (product - (sum - part)) + (c - part);
        let bits = sum.to_bits();
        if off == 0.0 || bits & 1 == 1 || !sum.is_finite() {
            return sum as f32;
        }
        f64::from_bits(if (off > 0.0) == (sum > 0.0) { bits + 1 } else { bits - 1 }) as f32
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn rint(self, a: f32) -> f32 {
        a.round_ties_even()
    }
    #[inline(always)]
    fn butterfly(self, _: f32, stride: usize) -> f32 {
        unreachable!("one lane, stride {stride}")
    }
    #[inline(always)]
    fn exp2i(self, n: f32) -> f32 {
        f32::from_bits((n as i32 as u32).wrapping_add(127) << 23)
    }
}

/// Functions that run a definition, generic over [`Lanes`], on the vectors of an
/// [`Isa`](crate::Isa): its arguments, then the Isa.
macro_rules! on_isa {
    ($(
        $(#[$doc:meta])*
        $vis:vis fn $name:ident$(<$t:ident: $bound:path>)?($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $definition:path;
    )*) => {$(
        $(#[$doc])*
        #[inline]
        $vis fn $name$(<$t: $bound>)?($($arg: $ty,)* isa: crate::Isa) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,bmi1,bmi2")]
                fn avx2$(<$t: $bound>)?($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the features of this function are those that the token stands for.
                    $definition(unsafe { crate::lanes::Avx2::new() }, $($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512$(<$t: $bound>)?($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the features of this function are those that the token stands for.
                    $definition(unsafe { crate::lanes::Avx512::new() }, $($arg),*)
                }
                if isa.has_avx512() {
                    // SAFETY: an Isa exists only where the CPU has it.
                    return unsafe { avx512($($arg),*) };
                }
                if isa.has_avx2() {
                    // SAFETY: an Isa exists only where the CPU has it.
                    return unsafe { avx2($($arg),*) };
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                #[target_feature(enable = "neon")]
                fn neon$(<$t: $bound>)?($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the features of this function are those that the token stands for.
                    $definition(unsafe { crate::lanes::Neon::new() }, $($arg),*)
                }
                if isa.has_neon() {
                    // SAFETY: an Isa exists only where the CPU has it.
                    return unsafe { neon($($arg),*) };
                }
            }
            let _ = isa;
            $definition(crate::lanes::Scalar, $($arg),*)
        }
    )*};
}

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::Neon;
pub(crate) use on_isa;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Methods whose bodies are intrinsics of the token's instruction set.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! intrinsics {
    ($($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the token proves the instruction set (see `new`); what is read or written through a
            // pointer is an array of that size, or in a slice whose length is asserted before.
            unsafe { $body }
        }
    )*};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use intrinsics;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, Scalar};

    /// Eight lanes.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    /// Sixteen lanes.
    #[derive(Clone, Copy)]
    pub struct Avx512(());

    /// Sixteen floats: the first and the last eight; bytes 2 and 3 of all, in both lanes;
    /// and whether the others are 0.
    #[derive(Clone, Copy)]
    pub(crate) struct Table {
        halves: [__m256; 2],
        upper: [__m256i; 2],
        is_bf16: bool,
    }

    impl Avx2 {
        /// # Safety
        /// The CPU has AVX2 and FMA.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Self {
            Avx2(())
        }
    }

    impl Avx512 {
        /// # Safety
        /// The CPU has what [`crate::Isa::has_avx512`] tells of: AVX-512 F, BW, DQ, VL and VNNI.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Self {
            Avx512(())
        }
    }

    /// Eight by eight floats, transposed.
    ///
    /// # Safety
    /// The CPU has AVX.
    #[inline(always)]
    unsafe fn transposed(a: [__m256; 8]) -> [__m256; 8] {
        macro_rules! pairs {
            ($i:literal) => {
                (_mm256_unpacklo_ps(a[$i], a[$i + 1]), _mm256_unpackhi_ps(a[$i], a[$i + 1]))
            };
        }
        macro_rules! fours {
            ($a:expr, $b:expr) => {
                (_mm256_shuffle_ps::<0x44>($a, $b), _mm256_shuffle_ps::<0xee>($a, $b))
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            let (two, four, six, eight) = (pairs!(0), pairs!(2), pairs!(4), pairs!(6));
            let low = [fours!(two.0, four.0), fours!(two.1, four.1)];
            let high = [fours!(six.0, eight.0), fours!(six.1, eight.1)];
            let mut out = [_mm256_setzero_ps(); 8];
            for i in 0..2 {
                out[2 * i] = _mm256_permute2f128_ps::<0x20>(low[i].0, high[i].0);
                out[2 * i + 1] = _mm256_permute2f128_ps::<0x20>(low[i].1, high[i].1);
                out[2 * i + 4] = _mm256_permute2f128_ps::<0x31>(low[i].0, high[i].0);
                out[2 * i + 5] = _mm256_permute2f128_ps::<0x31>(low[i].1, high[i].1);
            }
            out
        }
    }

    /// [`Lanes::look_up`] of eight columns; `$sixteen` looks up in a table of sixteen.
    macro_rules! looked_up {
        ($nbits:ident, $entries:expr, $tables:expr, $codes:expr, $sixteen:path) => {{
            let (entries, tables, codes): (&[f32], &[u32], [&[u8]; 2]) = ($entries, $tables, $codes);
            assert!(tables.len() == 8 && codes[0].len() == 32 && codes[1].len() == 32);
            assert!((1usize << $nbits..=i32::MAX as usize).contains(&entries.len()));
            // SAFETY: the token proves the instruction set; a table that would end past the entries is refused.
            unsafe {
                let last = _mm256_set1_epi32((entries.len() - (1 << $nbits)) as i32);
                let first = _mm256_loadu_si256(tables.as_ptr().cast());
                let past = _mm256_or_si256(_mm256_cmpgt_epi32(first, last), first);
                assert!(_mm256_movemask_ps(_mm256_castsi256_ps(past)) == 0);
                let [low, high] =
                    [_mm256_loadu_si256(codes[0].as_ptr().cast()), _mm256_loadu_si256(codes[1].as_ptr().cast())];
                // Of each column eight bytes: columns 0, 1, 4, 5, then 2, 3, 6, 7.
                let mut eights = [0u64; 8];
                _mm256_storeu_si256(eights.as_mut_ptr().cast(), _mm256_unpacklo_epi32(low, high));
                _mm256_storeu_si256(eights[4..].as_mut_ptr().cast(), _mm256_unpackhi_epi32(low, high));
                let mut columns = [_mm256_setzero_ps(); 8];
                for j in 0..8 {
                    let from = entries.as_ptr().add(tables[j] as usize);
                    let eight = &eights[[0, 1, 4, 5, 2, 3, 6, 7][j]];
                    let at = _mm256_cvtepu8_epi32(_mm_loadl_epi64((eight as *const u64).cast()));
                    columns[j] = match $nbits {
                        0..=2 => _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), at),
                        3 => _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), at),
                        4 => $sixteen(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)), at),
                        _ => _mm256_i32gather_ps::<4>(from, _mm256_and_si256(at, _mm256_set1_epi32((1 << $nbits) - 1))),
                    };
                }
                transposed(columns)
            }
        }};
    }

    /// What is at the lower four bits of lanes, in eight floats and eight more.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sixteen(low: __m256, high: __m256, at: __m256i) -> __m256 {
        let (low, high) = (_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at));
        _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(at)))
    }

    /// The same in one instruction.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    fn sixteen_at_once(low: __m256, high: __m256, at: __m256i) -> __m256 {
        _mm256_permutex2var_ps(low, at, high)
    }

    impl Lanes for Avx2 {
        const N: usize = 8;
        type F = __m256;
        type T = Table;
        type D = [__m256d; 2];

        intrinsics! {
            splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
            load(x: &[f32]) -> __m256 { assert!(x.len() == 8); _mm256_loadu_ps(x.as_ptr()) }
            store(x: __m256, out: &mut [f32]) { assert!(out.len() == 8); _mm256_storeu_ps(out.as_mut_ptr(), x) }
            load_bf16(x: &[u16]) -> __m256 {
                assert!(x.len() == 8);
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
            }
            store_bf16(x: __m256, out: &mut [u16]) {
                assert!(out.len() == 8);
                let bits = _mm256_castps_si256(x);
                let odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
                let nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
                let high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
                let packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0b10_00);
                _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
            }
            centred(x: &[i32], y: &[i32], z: i32) -> __m256 {
                assert!(x.len() == 8 && y.len() == 8);
                let (x, y) = (_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(y.as_ptr().cast()));
                _mm256_cvtepi32_ps(_mm256_sub_epi32(x, _mm256_mullo_epi32(y, _mm256_set1_epi32(z))))
            }
            store_u8(x: [__m256; 4], out: &mut [u8]) { Avx2::new().store_codes(x, 0, out) }
            store_codes(x: [__m256; 4], zero_point: u8, out: &mut [u8]) {
                assert!(out.len() == 32);
                let i = x.map(|x| _mm256_cvtps_epi32(x));
                let zero = _mm256_set1_epi16(zero_point.into());
                let (low, high) = (_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
                let bytes = _mm256_packus_epi16(_mm256_adds_epi16(low, zero), _mm256_adds_epi16(high, zero));
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_permutevar8x32_epi32(bytes, order));
            }
            some_of(x: &[u8; 64]) -> u64 {
                let none = |at: *const u8| {
                    let none = _mm256_cmpeq_epi8(_mm256_loadu_si256(at.cast()), _mm256_setzero_si256());
                    u64::from(_mm256_movemask_epi8(none) as u32)
                };
                !(none(x.as_ptr()) | none(x.as_ptr().add(32)) << 32)
            }
            load_u8(x: &[u8]) -> __m256 {
                assert!(x.len() == 8);
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast())))
            }
            byte_of(x: &[u8], shift: u32) -> __m256 {
                assert!(x.len() == 32);
                let down = _mm256_srl_epi32(_mm256_loadu_si256(x.as_ptr().cast()), _mm_cvtsi32_si128(shift as i32));
                _mm256_cvtepi32_ps(_mm256_and_si256(down, _mm256_set1_epi32(255)))
            }
            table(x: &[f32]) -> Table {
                let table = Scalar.table(x);
                let mut planes = [[0; 16]; 2];
                for (i, x) in table.iter().enumerate() {
                    [_, _, planes[0][i], planes[1][i]] = x.to_le_bytes();
                }
                Table {
                    halves: [_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table[8..].as_ptr())],
                    upper: [
                        _mm256_broadcastsi128_si256(_mm_loadu_si128(planes[0].as_ptr().cast())),
                        _mm256_broadcastsi128_si256(_mm_loadu_si128(planes[1].as_ptr().cast())),
                    ],
                    is_bf16: table.iter().all(|x| x.to_bits() as u16 == 0),
                }
            }
            add_eight(table: &Table, bytes: &[u8], x: &[f32; 8], sum: __m256) -> __m256 {
                assert!(bytes.len() == 32);
                let mut sum = sum;
                if !table.is_bf16 {
                    for (i, &x) in x.iter().enumerate() {
                        let entry = Avx2(()).pick(*table, bytes, 8 * (i as u32 % 4) + 4 * (i as u32 / 4));
                        sum = _mm256_fmadd_ps(_mm256_set1_ps(x), entry, sum);
                    }
                    return sum;
                }
                // Bytes 0 and 1 of each dword together, then bytes 2 and 3.
                let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
                let bytes = _mm256_loadu_si256(bytes.as_ptr().cast());
                let bytes = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order));
                let (four, upper) = (_mm256_set1_epi8(15), _mm256_set1_epi32(-0x1_0000));
                for half in 0..2 {
                    let codes = if half == 0 { bytes } else { _mm256_srli_epi16(bytes, 4) };
                    let codes = _mm256_and_si256(codes, four);
                    let low = _mm256_shuffle_epi8(table.upper[0], codes);
                    let high = _mm256_shuffle_epi8(table.upper[1], codes);
                    // A lane's words are the upper halves of two floats.
                    let two = _mm256_unpacklo_epi8(low, high);
                    let entry = _mm256_castsi256_ps(_mm256_slli_epi32(two, 16));
                    sum = _mm256_fmadd_ps(_mm256_set1_ps(x[4 * half]), entry, sum);
                    let entry = _mm256_castsi256_ps(_mm256_and_si256(two, upper));
                    sum = _mm256_fmadd_ps(_mm256_set1_ps(x[4 * half + 1]), entry, sum);
                    let two = _mm256_unpackhi_epi8(low, high);
                    let entry = _mm256_castsi256_ps(_mm256_slli_epi32(two, 16));
                    sum = _mm256_fmadd_ps(_mm256_set1_ps(x[4 * half + 2]), entry, sum);
                    let entry = _mm256_castsi256_ps(_mm256_and_si256(two, upper));
                    sum = _mm256_fmadd_ps(_mm256_set1_ps(x[4 * half + 3]), entry, sum);
                }
                sum
            }
            pick(table: Table, x: &[u8], shift: u32) -> __m256 {
                assert!(x.len() == 32);
                let x = _mm256_loadu_si256(x.as_ptr().cast());
                // The lowest three bits pick in both halves of the table; the fourth, brought to
                // the sign, between them.
                let three = _mm256_srl_epi32(x, _mm_cvtsi32_si128(shift as i32));
                let fourth = _mm256_sll_epi32(x, _mm_cvtsi32_si128(28 - shift as i32));
                let low = _mm256_permutevar8x32_ps(table.halves[0], three);
                let high = _mm256_permutevar8x32_ps(table.halves[1], three);
                _mm256_blendv_ps(low, high, _mm256_castsi256_ps(fourth))
            }
            no_squares() -> [__m256d; 2] { [_mm256_setzero_pd(); 2] }
            add_square(sum: [__m256d; 2], a: __m256) -> [__m256d; 2] {
                let a = [_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(a))];
                [_mm256_add_pd(sum[0], _mm256_mul_pd(a[0], a[0])), _mm256_add_pd(sum[1], _mm256_mul_pd(a[1], a[1]))]
            }
            add_square_weighted(sum: [__m256d; 2], a: __m256, w: __m256) -> [__m256d; 2] {
                let a = [_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(a))];
                let w = [_mm256_cvtps_pd(_mm256_castps256_ps128(w)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(w))];
                [
                    _mm256_add_pd(sum[0], _mm256_mul_pd(w[0], _mm256_mul_pd(a[0], a[0]))),
                    _mm256_add_pd(sum[1], _mm256_mul_pd(w[1], _mm256_mul_pd(a[1], a[1]))),
                ]
            }
            store_squares(sum: [__m256d; 2], out: &mut [f64]) {
                assert!(out.len() == 8);
                _mm256_storeu_pd(out.as_mut_ptr(), sum[0]);
                _mm256_storeu_pd(out[4..].as_mut_ptr(), sum[1]);
            }
            add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
            sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
            mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
            div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
            mul_add(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
            max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
            min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
            rint(a: __m256) -> __m256 { _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) }
            butterfly(a: __m256, stride: usize) -> __m256 {
                let s = -0.0;
                let (other, negate) = match stride {
                    1 => (_mm256_permute_ps::<0b10_11_00_01>(a), _mm256_setr_ps(0.0, s, 0.0, s, 0.0, s, 0.0, s)),
                    2 => (_mm256_permute_ps::<0b01_00_11_10>(a), _mm256_setr_ps(0.0, 0.0, s, s, 0.0, 0.0, s, s)),
                    4 => (_mm256_permute2f128_ps::<1>(a, a), _mm256_setr_ps(0.0, 0.0, 0.0, 0.0, s, s, s, s)),
                    _ => unreachable!("eight lanes, stride {stride}"),
                };
                _mm256_add_ps(other, _mm256_xor_ps(a, negate))
            }
            exp2i(n: __m256) -> __m256 {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))
            }
        }

        #[inline(always)]
        fn look_up<const NBITS: u32>(self, entries: &[f32], tables: &[u32], codes: [&[u8]; 2]) -> [__m256; 8] {
            looked_up!(NBITS, entries, tables, codes, sixteen)
        }
    }

    impl Lanes for Avx512 {
        const N: usize = 16;
        type F = __m512;
        type T = __m512;
        type D = [__m512d; 2];

        intrinsics! {
            splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
            load(x: &[f32]) -> __m512 { assert!(x.len() == 16); _mm512_loadu_ps(x.as_ptr()) }
            store(x: __m512, out: &mut [f32]) { assert!(out.len() == 16); _mm512_storeu_ps(out.as_mut_ptr(), x) }
            load_bf16(x: &[u16]) -> __m512 {
                assert!(x.len() == 16);
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))
            }
            store_bf16(x: __m512, out: &mut [u16]) {
                assert!(out.len() == 16);
                let bits = _mm512_castps_si512(x);
                let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
                let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
                let nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
                let high = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(high));
            }
            centred(x: &[i32], y: &[i32], z: i32) -> __m512 {
                assert!(x.len() == 16 && y.len() == 16);
                let (x, y) = (_mm512_loadu_si512(x.as_ptr().cast()), _mm512_loadu_si512(y.as_ptr().cast()));
                _mm512_cvtepi32_ps(_mm512_sub_epi32(x, _mm512_mullo_epi32(y, _mm512_set1_epi32(z))))
            }
            store_u8(x: [__m512; 4], out: &mut [u8]) { Avx512::new().store_codes(x, 0, out) }
            store_codes(x: [__m512; 4], zero_point: u8, out: &mut [u8]) {
                assert!(out.len() == 64);
                let i = x.map(|x| _mm512_cvtps_epi32(x));
                let zero = _mm512_set1_epi16(zero_point.into());
                let (low, high) = (_mm512_packs_epi32(i[0], i[1]), _mm512_packs_epi32(i[2], i[3]));
                let bytes = _mm512_packus_epi16(_mm512_adds_epi16(low, zero), _mm512_adds_epi16(high, zero));
                let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi32(order, bytes));
            }
            load_u8(x: &[u8]) -> __m512 {
                assert!(x.len() == 16);
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
            }
            byte_of(x: &[u8], shift: u32) -> __m512 {
                assert!(x.len() == 64);
                let down = _mm512_srl_epi32(_mm512_loadu_si512(x.as_ptr().cast()), _mm_cvtsi32_si128(shift as i32));
                _mm512_cvtepi32_ps(_mm512_and_si512(down, _mm512_set1_epi32(255)))
            }
            table(x: &[f32]) -> __m512 { _mm512_loadu_ps(Scalar.table(x).as_ptr()) }
            pick(table: __m512, x: &[u8], shift: u32) -> __m512 {
                assert!(x.len() == 64);
                let four = _mm512_srl_epi32(_mm512_loadu_si512(x.as_ptr().cast()), _mm_cvtsi32_si128(shift as i32));
                _mm512_permutexvar_ps(four, table)
            }
            no_squares() -> [__m512d; 2] { [_mm512_setzero_pd(); 2] }
            add_square(sum: [__m512d; 2], a: __m512) -> [__m512d; 2] {
                let a = [_mm512_cvtps_pd(_mm512_castps512_ps256(a)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(a))];
                [_mm512_add_pd(sum[0], _mm512_mul_pd(a[0], a[0])), _mm512_add_pd(sum[1], _mm512_mul_pd(a[1], a[1]))]
            }
            add_square_weighted(sum: [__m512d; 2], a: __m512, w: __m512) -> [__m512d; 2] {
                let a = [_mm512_cvtps_pd(_mm512_castps512_ps256(a)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(a))];
                let w = [_mm512_cvtps_pd(_mm512_castps512_ps256(w)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(w))];
                [
                    _mm512_add_pd(sum[0], _mm512_mul_pd(w[0], _mm512_mul_pd(a[0], a[0]))),
                    _mm512_add_pd(sum[1], _mm512_mul_pd(w[1], _mm512_mul_pd(a[1], a[1]))),
                ]
            }
            store_squares(sum: [__m512d; 2], out: &mut [f64]) {
                assert!(out.len() == 16);
                _mm512_storeu_pd(out.as_mut_ptr(), sum[0]);
                _mm512_storeu_pd(out[8..].as_mut_ptr(), sum[1]);
            }
            add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
            sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
            mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
            div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
            mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
            max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
            min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
            rint(a: __m512) -> __m512 { _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) }
            butterfly(a: __m512, stride: usize) -> __m512 {
                let (other, second) = match stride {
                    1 => (_mm512_permute_ps::<0b10_11_00_01>(a), 0xaaaa),
                    2 => (_mm512_permute_ps::<0b01_00_11_10>(a), 0xcccc),
                    4 => (_mm512_shuffle_f32x4::<0b10_11_00_01>(a, a), 0xf0f0),
                    8 => (_mm512_shuffle_f32x4::<0b01_00_11_10>(a, a), 0xff00),
                    _ => unreachable!("sixteen lanes, stride {stride}"),
                };
                _mm512_mask_sub_ps(_mm512_add_ps(other, a), second, other, a)
            }
            exp2i(n: __m512) -> __m512 {
                let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))
            }
        }

        #[inline(always)]
        fn look_up<const NBITS: u32>(self, entries: &[f32], tables: &[u32], codes: [&[u8]; 2]) -> [__m512; 8] {
            assert!(tables.len() == 16);
            let halves = [[&codes[0][..32], &codes[1][..32]], [&codes[0][32..], &codes[1][32..]]];
            let low = looked_up!(NBITS, entries, &tables[..8], halves[0], sixteen_at_once);
            let high = looked_up!(NBITS, entries, &tables[8..], halves[1], sixteen_at_once);
            let mut both = [self.splat(0.0); 8];
            for i in 0..8 {
                // SAFETY: the token proves the instruction set.
                both[i] = unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low[i]), high[i]) };
            }
            both
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::aarch64::*;

    use super::{Lanes, Scalar};

    /// Four lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon(());

    impl Neon {
        /// # Safety
        /// The CPU has NEON.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Self {
            Neon(())
        }
    }

    impl Lanes for Neon {
        const N: usize = 4;
        type F = float32x4_t;
        type T = [f32; 16];
        type D = [float64x2_t; 2];

        intrinsics! {
            splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
            load(x: &[f32]) -> float32x4_t { assert!(x.len() == 4); vld1q_f32(x.as_ptr()) }
            store(x: float32x4_t, out: &mut [f32]) { assert!(out.len() == 4); vst1q_f32(out.as_mut_ptr(), x) }
            load_bf16(x: &[u16]) -> float32x4_t {
                assert!(x.len() == 4);
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(x.as_ptr())))
            }
            store_bf16(x: float32x4_t, out: &mut [u16]) {
                assert!(out.len() == 4);
                let bits = vreinterpretq_u32_f32(x);
                let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
                let rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
                let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
                let number = vceqq_f32(x, x);
                vst1_u16(out.as_mut_ptr(), vshrn_n_u32::<16>(vbslq_u32(number, rounded, quiet)));
            }
            centred(x: &[i32], y: &[i32], z: i32) -> float32x4_t {
                assert!(x.len() == 4 && y.len() == 4);
                let (x, y) = (vld1q_s32(x.as_ptr()), vld1q_s32(y.as_ptr()));
                vcvtq_f32_s32(vmlsq_n_s32(x, y, z))
            }
            store_u8(x: [float32x4_t; 4], out: &mut [u8]) {
                assert!(out.len() == 16);
                let words = x.map(|x| vmovn_u32(vcvtq_u32_f32(x)));
                let halves = (vcombine_u16(words[0], words[1]), vcombine_u16(words[2], words[3]));
                vst1q_u8(out.as_mut_ptr(), vcombine_u8(vmovn_u16(halves.0), vmovn_u16(halves.1)));
            }
            load_u8(x: &[u8]) -> float32x4_t {
                assert!(x.len() == 4);
                let four = vcreate_u8(x.as_ptr().cast::<u32>().read_unaligned().into());
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four))))
            }
            byte_of(x: &[u8], shift: u32) -> float32x4_t {
                assert!(x.len() == 16);
                let down = vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(x.as_ptr())), vdupq_n_s32(-(shift as i32)));
                vcvtq_f32_u32(vandq_u32(down, vdupq_n_u32(255)))
            }
            table(x: &[f32]) -> [f32; 16] { Scalar.table(x) }
            pick(table: [f32; 16], x: &[u8], shift: u32) -> float32x4_t {
                assert!(x.len() == 16);
                let one = |x: &[u8]| Scalar.pick(table, x, shift);
                let four = [one(&x[..4]), one(&x[4..8]), one(&x[8..12]), one(&x[12..])];
                vld1q_f32(four.as_ptr())
            }
            no_squares() -> [float64x2_t; 2] { [vdupq_n_f64(0.0); 2] }
            add_square(sum: [float64x2_t; 2], a: float32x4_t) -> [float64x2_t; 2] {
                let a = [vcvt_f64_f32(vget_low_f32(a)), vcvt_high_f64_f32(a)];
                [vaddq_f64(sum[0], vmulq_f64(a[0], a[0])), vaddq_f64(sum[1], vmulq_f64(a[1], a[1]))]
            }
            add_square_weighted(sum: [float64x2_t; 2], a: float32x4_t, w: float32x4_t) -> [float64x2_t; 2] {
                let a = [vcvt_f64_f32(vget_low_f32(a)), vcvt_high_f64_f32(a)];
                let w = [vcvt_f64_f32(vget_low_f32(w)), vcvt_high_f64_f32(w)];
                [
                    vaddq_f64(sum[0], vmulq_f64(w[0], vmulq_f64(a[0], a[0]))),
                    vaddq_f64(sum[1], vmulq_f64(w[1], vmulq_f64(a[1], a[1]))),
                ]
            }
            store_squares(sum: [float64x2_t; 2], out: &mut [f64]) {
                assert!(out.len() == 4);
                vst1q_f64(out.as_mut_ptr(), sum[0]);
                vst1q_f64(out[2..].as_mut_ptr(), sum[1]);
            }
            add(a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
            sub(a: float32x4_t, b: float32x4_t) -> float32x4_t { vsubq_f32(a, b) }
            mul(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
            div(a: float32x4_t, b: float32x4_t) -> float32x4_t { vdivq_f32(a, b) }
            mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
            // Not fmax and fmin, which give a NaN where either is one.
            max(a: float32x4_t, b: float32x4_t) -> float32x4_t { vbslq_f32(vcgtq_f32(a, b), a, b) }
            min(a: float32x4_t, b: float32x4_t) -> float32x4_t { vbslq_f32(vcltq_f32(a, b), a, b) }
            rint(a: float32x4_t) -> float32x4_t { vrndnq_f32(a) }
            butterfly(a: float32x4_t, stride: usize) -> float32x4_t {
                let minus = 1u64 << 63;
                let (other, negate) = match stride {
                    1 => (vrev64q_f32(a), vcombine_u64(vcreate_u64(minus), vcreate_u64(minus))),
                    2 => (vextq_f32::<2>(a, a), vcombine_u64(vcreate_u64(0), vcreate_u64(minus | minus >> 32))),
                    _ => unreachable!("four lanes, stride {stride}"),
                };
                let a = veorq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_u64(negate));
                vaddq_f32(other, vreinterpretq_f32_u32(a))
            }
            exp2i(n: float32x4_t) -> float32x4_t {
                let biased = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Lanes, Scalar};

    #[test]
    fn a_sum_of_a_product_is_rounded_once() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        for i in 0..200_000 {
            let [a, b, mut c] = [(); 3].map(|()| f32::from_bits(next()));
            if i % 2 == 0 {
                // Near the product, where roundings meet.
                c = -f32::from_bits((a * b).to_bits() ^ (next() % 4)) * [1.0, 0.5, 1e-7, 1e7][next() as usize % 4];
            }
            let (ours, exact) = (Scalar.mul_add(a, b, c), a.mul_add(b, c));
            assert!(ours == exact || ours.is_nan() && exact.is_nan(), "{a:e} {b:e} {c:e}: {ours:e} {exact:e}");
        }
    }
}
