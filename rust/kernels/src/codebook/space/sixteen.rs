//! Sixteen lanes of i32 that hold points: what scans tiles of codewords in integers of 16 bits, two dimensions to
//! a lane.
//!
//! For the tokens of `lanes.rs`. All instruction sets compute the same integers.

use super::eight::Eight;
use crate::lanes::Scalar;

/// Two dimensions each of four pairs of a point or codeword.
pub(super) type Quad = [i32; 4];
/// Places of a block.
pub(super) const BLOCK: usize = 512;
/// Places that may follow a list, so that it is written sixteen at a time.
pub(super) type List = [u16; BLOCK + 16];

/// A half, and more than what float32 rounds.
const ROUNDED: f32 = 0.5 + 4.0 * f32::EPSILON;
/// More than half the square of any distance.
const MOST: f32 = 2_140_000_000.0;

pub(super) trait Sixteen: Copy {
    /// The same instruction set's floats.
    type Eight: Eight;
    /// The vector.
    type I: Copy;
    /// Codewords of a tile: as many as are fastest.
    const TILE: usize;

    fn eight(self) -> Self::Eight;
    fn splat(self, x: i32) -> Self::I;
    fn load(self, x: &[i32; 16]) -> Self::I;
    fn store(self, x: Self::I, out: &mut [i32; 16]);
    fn add(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub(self, a: Self::I, b: Self::I) -> Self::I;
    /// `sum` and the products of the halves of lanes.
    fn dot(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// The scores of four codewords: `|c|²/2`, and the products of points, pair by pair, with as many pairs of each
    /// codeword, one after the other.
    fn scores(self, halves: &[i32; 4], points: &[[i32; 16]], codewords: &[i32]) -> [Self::I; 4];
    fn min(self, a: Self::I, b: Self::I) -> Self::I;
    /// The lesser of `a` and `b`, or `a` where `x` is `y`.
    fn min_unless(self, a: Self::I, b: Self::I, x: Self::I, y: Self::I) -> Self::I;
    /// Lanes of `yes` where `a` is less than `b`, else of `no`.
    fn where_less(self, a: Self::I, b: Self::I, yes: Self::I, no: Self::I) -> Self::I;
    /// Bit i: lane i of `a` is at most that of `b`.
    fn le(self, a: Self::I, b: Self::I) -> u32;
    /// Element j of the quads at `at`.
    fn gather(self, from: &[Quad], at: &[u16; 16]) -> [Self::I; 4];
    /// Sixteen quads, of the elements that are vectors here.
    fn quads(self, elements: [Self::I; 4], out: &mut [Quad; 16]);
    /// `scale (√(2 a) + more)` rounded down, from 0 to 65,535, for `a` of at least 0.
    fn root(self, a: Self::I, more: f32, scale: f32) -> Self::I;
    /// `((√(2 a) + more)² + 1) / 2`, or a little more, at most [`MOST`], for `a` of at least 0.
    fn half_square(self, a: Self::I, more: f32) -> Self::I;
    /// `a + b`, at most 65,535, for `a` from 0 to that.
    fn narrow(self, a: Self::I, b: u16) -> [u16; 16];
    /// [`narrow`](Sixteen::narrow), each to its place.
    fn scatter(self, a: Self::I, b: u16, at: &[u16; 16], out: &mut [u16]);
    /// Lists where `a` less `b`, or 0, is at most `c`; `a` and `c` are as long, a multiple of 32 and at most [`BLOCK`].
    fn list(self, a: &[u16], b: u16, c: &[u16], list: &mut List) -> usize;
}

impl Sixteen for Scalar {
    type Eight = Scalar;
    type I = [i32; 16];
    const TILE: usize = 8;

    #[inline(always)]
    fn eight(self) -> Scalar {
        self
    }
    #[inline(always)]
    fn splat(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[i32; 16]) -> [i32; 16] {
        *x
    }
    #[inline(always)]
    fn store(self, x: [i32; 16], out: &mut [i32; 16]) {
        *out = x;
    }
    #[inline(always)]
    fn add(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn sub(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn dot(self, sum: [i32; 16], a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        let low = |x: i32| i32::from(x as i16);
        std::array::from_fn(|i| {
            let two = (low(a[i]) * low(b[i])).wrapping_add((a[i] >> 16) * (b[i] >> 16));
            sum[i].wrapping_add(two)
        })
    }
    #[inline(always)]
    fn scores(self, halves: &[i32; 4], points: &[[i32; 16]], codewords: &[i32]) -> [[i32; 16]; 4] {
        std::array::from_fn(|i| {
            let codeword = &codewords[i * points.len()..];
            points.iter().zip(codeword).fold([halves[i]; 16], |sum, (x, &c)| self.dot(sum, *x, [c; 16]))
        })
    }
    #[inline(always)]
    fn min(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i].min(b[i]))
    }
    #[inline(always)]
    fn min_unless(self, a: [i32; 16], b: [i32; 16], x: [i32; 16], y: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| if x[i] == y[i] { a[i] } else { a[i].min(b[i]) })
    }
    #[inline(always)]
    fn where_less(self, a: [i32; 16], b: [i32; 16], yes: [i32; 16], no: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn le(self, a: [i32; 16], b: [i32; 16]) -> u32 {
        (0..16).fold(0, |mask, i| mask | u32::from(a[i] <= b[i]) << i)
    }
    #[inline(always)]
    fn gather(self, from: &[Quad], at: &[u16; 16]) -> [[i32; 16]; 4] {
        std::array::from_fn(|j| std::array::from_fn(|i| from[at[i] as usize][j]))
    }
    #[inline(always)]
    fn quads(self, elements: [[i32; 16]; 4], out: &mut [Quad; 16]) {
        *out = std::array::from_fn(|i| std::array::from_fn(|j| elements[j][i]));
    }
    #[inline(always)]
    fn root(self, a: [i32; 16], more: f32, scale: f32) -> [i32; 16] {
        std::array::from_fn(|i| (((2.0 * a[i] as f32).sqrt() + more) * scale).clamp(0.0, 65_535.0) as i32)
    }
    #[inline(always)]
    fn half_square(self, a: [i32; 16], more: f32) -> [i32; 16] {
        std::array::from_fn(|i| {
            let root = (2.0 * a[i] as f32).sqrt() + more;
            (root * root * ROUNDED + 1.0).min(MOST) as i32
        })
    }
    #[inline(always)]
    fn narrow(self, a: [i32; 16], b: u16) -> [u16; 16] {
        a.map(|a| (a as u16).saturating_add(b))
    }
    #[inline(always)]
    fn scatter(self, a: [i32; 16], b: u16, at: &[u16; 16], out: &mut [u16]) {
        at.iter().zip(self.narrow(a, b)).for_each(|(&at, a)| out[at as usize] = a);
    }
    #[inline(always)]
    fn list(self, a: &[u16], b: u16, c: &[u16], list: &mut List) -> usize {
        let mut len = 0;
        for (at, (a, c)) in a.iter().zip(c).enumerate() {
            list[len] = at as u16;
            len += usize::from(a.saturating_sub(b) <= *c);
        }
        len
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::{BLOCK, List, MOST, Quad, ROUNDED, Sixteen};
    use crate::lanes::{Avx2, Avx512, intrinsics};

    /// Rows of four to columns, in each 128 bits: the same turns both ways.
    macro_rules! turned {
        ($x:expr, $low:ident, $high:ident, $low2:ident, $high2:ident) => {{
            let x = $x;
            let (a, b) = ($low(x[0], x[1]), $high(x[0], x[1]));
            let (c, d) = ($low(x[2], x[3]), $high(x[2], x[3]));
            [$low2(a, c), $high2(a, c), $low2(b, d), $high2(b, d)]
        }};
    }

    /// Words to their places, of a vector of them: faster than from memory.
    macro_rules! scattered {
        ($words:expr, $at:expr, $out:expr) => {{
            let words = $words;
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            scattered!($at, $out, low, 0: 0 1 2 3 4 5 6 7);
            scattered!($at, $out, high, 8: 0 1 2 3 4 5 6 7);
        }};
        ($at:expr, $out:expr, $words:ident, $first:literal: $($i:literal)*) => {
            $($out.add($at[$first + $i] as usize).write(_mm_extract_epi16::<$i>($words) as u16);)*
        };
    }

    /// Two quads.
    macro_rules! two {
        ($from:ident, $at:ident: $a:expr, $b:expr) => {
            _mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(_mm_loadu_si128($from.add($at[$a] as usize))),
                _mm_loadu_si128($from.add($at[$b] as usize)),
            )
        };
    }

    /// Numbers of the bits of a byte, the lowest first.
    const BITS: [[u8; 8]; 256] = {
        let mut bits = [[0; 8]; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut bit, mut len) = (0, 0);
            while bit < 8 {
                if byte >> bit & 1 == 1 {
                    bits[byte][len] = bit;
                    len += 1;
                }
                bit += 1;
            }
            byte += 1;
        }
        bits
    };

    /// Whether all are below `len`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn inside(at: &[u16; 16], len: usize) -> bool {
        // SAFETY: the array is of one vector.
        let at = unsafe { _mm256_loadu_si256(at.as_ptr().cast()) };
        let Some(last) = len.checked_sub(1) else { return false };
        let over = _mm256_subs_epu16(at, _mm256_set1_epi16(last.min(usize::from(u16::MAX)) as i16));
        _mm256_testz_si256(over, over) == 1
    }

    /// `a + b` as words.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn words(a: [__m256i; 2], b: u16) -> __m256i {
        // Quarters 0 2 1 3.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a[0], a[1]));
        _mm256_adds_epu16(words, _mm256_set1_epi16(b as i16))
    }

    impl Sixteen for Avx2 {
        type Eight = Avx2;
        type I = [__m256i; 2];
        const TILE: usize = 8;

        intrinsics! {
            eight() -> Avx2 { Avx2::new() }
            splat(x: i32) -> [__m256i; 2] { [_mm256_set1_epi32(x); 2] }
            load(x: &[i32; 16]) -> [__m256i; 2] {
                let x = x.as_ptr().cast::<__m256i>();
                [_mm256_loadu_si256(x), _mm256_loadu_si256(x.add(1))]
            }
            store(x: [__m256i; 2], out: &mut [i32; 16]) {
                let out = out.as_mut_ptr().cast::<__m256i>();
                _mm256_storeu_si256(out, x[0]);
                _mm256_storeu_si256(out.add(1), x[1]);
            }
            sub(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
                [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])]
            }
            dot(sum: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
                [
                    _mm256_add_epi32(sum[0], _mm256_madd_epi16(a[0], b[0])),
                    _mm256_add_epi32(sum[1], _mm256_madd_epi16(a[1], b[1])),
                ]
            }
            add(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
                [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
            }
            scores(halves: &[i32; 4], points: &[[i32; 16]], codewords: &[i32]) -> [[__m256i; 2]; 4] {
                assert!(codewords.len() == 4 * points.len());
                let mut sums = [[_mm256_setzero_si256(); 2]; 4];
                for i in 0..4 {
                    sums[i] = [_mm256_set1_epi32(halves[i]); 2];
                }
                for (j, x) in points.iter().enumerate() {
                    let x = x.as_ptr().cast::<__m256i>();
                    let (low, high) = (_mm256_loadu_si256(x), _mm256_loadu_si256(x.add(1)));
                    for i in 0..4 {
                        let c = _mm256_set1_epi32(*codewords.as_ptr().add(i * points.len() + j));
                        sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(low, c));
                        sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(high, c));
                    }
                }
                sums
            }
            min(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
                [_mm256_min_epi32(a[0], b[0]), _mm256_min_epi32(a[1], b[1])]
            }
            min_unless(a: [__m256i; 2], b: [__m256i; 2], x: [__m256i; 2], y: [__m256i; 2]) -> [__m256i; 2] {
                let low = _mm256_blendv_epi8(b[0], a[0], _mm256_cmpeq_epi32(x[0], y[0]));
                let high = _mm256_blendv_epi8(b[1], a[1], _mm256_cmpeq_epi32(x[1], y[1]));
                [_mm256_min_epi32(a[0], low), _mm256_min_epi32(a[1], high)]
            }
            where_less(a: [__m256i; 2], b: [__m256i; 2], yes: [__m256i; 2], no: [__m256i; 2]) -> [__m256i; 2] {
                [
                    _mm256_blendv_epi8(no[0], yes[0], _mm256_cmpgt_epi32(b[0], a[0])),
                    _mm256_blendv_epi8(no[1], yes[1], _mm256_cmpgt_epi32(b[1], a[1])),
                ]
            }
            le(a: [__m256i; 2], b: [__m256i; 2]) -> u32 {
                let low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(a[0], b[0]));
                let high = _mm256_castsi256_ps(_mm256_cmpgt_epi32(a[1], b[1]));
                !(_mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8) as u32 & 0xffff
            }
            gather(from: &[Quad], at: &[u16; 16]) -> [[__m256i; 2]; 4] {
                assert!(inside(at, from.len()));
                let from = from.as_ptr().cast::<__m128i>();
                macro_rules! half {
                    ($first:literal) => {
                        turned!(
                            [
                                two!(from, at: $first, $first + 4),
                                two!(from, at: $first + 1, $first + 5),
                                two!(from, at: $first + 2, $first + 6),
                                two!(from, at: $first + 3, $first + 7),
                            ],
                            _mm256_unpacklo_epi32, _mm256_unpackhi_epi32, _mm256_unpacklo_epi64, _mm256_unpackhi_epi64
                        )
                    };
                }
                let (low, high) = (half!(0), half!(8));
                [[low[0], high[0]], [low[1], high[1]], [low[2], high[2]], [low[3], high[3]]]
            }
            quads(x: [[__m256i; 2]; 4], out: &mut [Quad; 16]) {
                for half in 0..2 {
                    let rows = turned!(
                        [x[0][half], x[1][half], x[2][half], x[3][half]],
                        _mm256_unpacklo_epi32, _mm256_unpackhi_epi32, _mm256_unpacklo_epi64, _mm256_unpackhi_epi64
                    );
                    for (i, row) in rows.into_iter().enumerate() {
                        let out = out.as_mut_ptr().cast::<__m128i>().add(8 * half + i);
                        _mm_storeu_si128(out, _mm256_castsi256_si128(row));
                        _mm_storeu_si128(out.add(4), _mm256_extracti128_si256::<1>(row));
                    }
                }
            }
            root(a: [__m256i; 2], more: f32, scale: f32) -> [__m256i; 2] {
                macro_rules! one {
                    ($i:literal) => {{
                        let a = _mm256_cvtepi32_ps(a[$i]);
                        let root = _mm256_add_ps(_mm256_sqrt_ps(_mm256_add_ps(a, a)), _mm256_set1_ps(more));
                        let scaled = _mm256_max_ps(_mm256_mul_ps(root, _mm256_set1_ps(scale)), _mm256_setzero_ps());
                        _mm256_cvttps_epi32(_mm256_min_ps(scaled, _mm256_set1_ps(65_535.0)))
                    }};
                }
                [one!(0), one!(1)]
            }
            narrow(a: [__m256i; 2], b: u16) -> [u16; 16] {
                let mut out = [0; 16];
                _mm256_storeu_si256(out.as_mut_ptr().cast(), words(a, b));
                out
            }
            scatter(a: [__m256i; 2], b: u16, at: &[u16; 16], out: &mut [u16]) {
                assert!(inside(at, out.len()));
                let out = out.as_mut_ptr();
                scattered!(words(a, b), at, out);
            }
            half_square(a: [__m256i; 2], more: f32) -> [__m256i; 2] {
                macro_rules! one {
                    ($i:literal) => {{
                        let a = _mm256_cvtepi32_ps(a[$i]);
                        let root = _mm256_add_ps(_mm256_sqrt_ps(_mm256_add_ps(a, a)), _mm256_set1_ps(more));
                        let half = _mm256_mul_ps(_mm256_mul_ps(root, root), _mm256_set1_ps(ROUNDED));
                        let up = _mm256_add_ps(half, _mm256_set1_ps(1.0));
                        _mm256_cvttps_epi32(_mm256_min_ps(up, _mm256_set1_ps(MOST)))
                    }};
                }
                [one!(0), one!(1)]
            }
            list(a: &[u16], b: u16, c: &[u16], list: &mut List) -> usize {
                assert!(a.len() == c.len() && a.len() <= BLOCK && a.len().is_multiple_of(32));
                let (b, mut len) = (_mm256_set1_epi16(b as i16), 0);
                for at in (0..a.len()).step_by(16) {
                    let a = _mm256_loadu_si256(a.as_ptr().add(at).cast());
                    let c = _mm256_loadu_si256(c.as_ptr().add(at).cast());
                    let over = _mm256_subs_epu16(_mm256_subs_epu16(a, b), c);
                    let within = _mm256_cmpeq_epi16(over, _mm256_setzero_si256());
                    let bytes = _mm_packs_epi16(_mm256_castsi256_si128(within), _mm256_extracti128_si256::<1>(within));
                    let mask = _mm_movemask_epi8(bytes) as usize;
                    for (mask, first) in [(mask & 255, at), (mask >> 8, at + 8)] {
                        // Without a branch; no more are listed than were looked at.
                        let bits = _mm_cvtepu8_epi16(_mm_loadl_epi64(BITS[mask].as_ptr().cast()));
                        let places = _mm_add_epi16(bits, _mm_set1_epi16(first as i16));
                        _mm_storeu_si128(list.as_mut_ptr().add(len).cast(), places);
                        len += mask.count_ones() as usize;
                    }
                }
                len
            }
        }
    }

    /// In assembly, since compilers make two instructions of this one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dot(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: nothing but registers is read or written.
        unsafe {
            asm!(
                "vpdpwssd {sum}, {a}, {b}",
                sum = inout(zmm_reg) sum,
                a = in(zmm_reg) a,
                b = in(zmm_reg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    /// A pair of four codewords, at so many bytes.
    macro_rules! pair {
        ($x:literal, $at:literal) => {
            concat!(
                "vpdpwssd {s0}, {",
                $x,
                "}, dword ptr [{c0} + ",
                $at,
                "]{{1to16}}\n",
                "vpdpwssd {s1}, {",
                $x,
                "}, dword ptr [{c1} + ",
                $at,
                "]{{1to16}}\n",
                "vpdpwssd {s2}, {",
                $x,
                "}, dword ptr [{c2} + ",
                $at,
                "]{{1to16}}\n",
                "vpdpwssd {s3}, {",
                $x,
                "}, dword ptr [{c3} + ",
                $at,
                "]{{1to16}}\n",
            )
        };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn scores(halves: &[i32; 4], points: &[[i32; 16]], codewords: &[i32]) -> [__m512i; 4] {
        let pairs = points.len();
        assert!(codewords.len() == 4 * pairs);
        let [mut s0, mut s1, mut s2, mut s3] = [
            _mm512_set1_epi32(halves[0]),
            _mm512_set1_epi32(halves[1]),
            _mm512_set1_epi32(halves[2]),
            _mm512_set1_epi32(halves[3]),
        ];
        let (fours, rest) = points.as_chunks::<4>();
        let mut at = codewords.as_ptr();
        for x in fours {
            // SAFETY: of each codeword there are four pairs more, and nothing else is read.
            unsafe {
                asm!(
                    pair!("x0", "0"),
                    pair!("x1", "4"),
                    pair!("x2", "8"),
                    pair!("x3", "12"),
                    s0 = inout(zmm_reg) s0,
                    s1 = inout(zmm_reg) s1,
                    s2 = inout(zmm_reg) s2,
                    s3 = inout(zmm_reg) s3,
                    x0 = in(zmm_reg) _mm512_loadu_si512(x[0].as_ptr().cast()),
                    x1 = in(zmm_reg) _mm512_loadu_si512(x[1].as_ptr().cast()),
                    x2 = in(zmm_reg) _mm512_loadu_si512(x[2].as_ptr().cast()),
                    x3 = in(zmm_reg) _mm512_loadu_si512(x[3].as_ptr().cast()),
                    c0 = in(reg) at,
                    c1 = in(reg) at.add(pairs),
                    c2 = in(reg) at.add(2 * pairs),
                    c3 = in(reg) at.add(3 * pairs),
                    options(pure, readonly, nostack, preserves_flags),
                );
                at = at.add(4);
            }
        }
        for x in rest {
            // SAFETY: of each codeword there is a pair more.
            unsafe {
                let x = _mm512_loadu_si512(x.as_ptr().cast());
                s0 = dot(s0, x, _mm512_set1_epi32(*at));
                s1 = dot(s1, x, _mm512_set1_epi32(*at.add(pairs)));
                s2 = dot(s2, x, _mm512_set1_epi32(*at.add(2 * pairs)));
                s3 = dot(s3, x, _mm512_set1_epi32(*at.add(3 * pairs)));
                at = at.add(1);
            }
        }
        [s0, s1, s2, s3]
    }

    /// `a + b` as words.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn words_of(a: __m512i, b: u16) -> __m256i {
        _mm256_adds_epu16(_mm512_cvtepi32_epi16(a), _mm256_set1_epi16(b as i16))
    }

    impl Sixteen for Avx512 {
        type Eight = Avx2;
        type I = __m512i;
        const TILE: usize = 16;

        intrinsics! {
            eight() -> Avx2 { Avx2::new() }
            splat(x: i32) -> __m512i { _mm512_set1_epi32(x) }
            load(x: &[i32; 16]) -> __m512i { _mm512_loadu_si512(x.as_ptr().cast()) }
            store(x: __m512i, out: &mut [i32; 16]) { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
            add(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
            sub(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
            dot(sum: __m512i, a: __m512i, b: __m512i) -> __m512i { dot(sum, a, b) }
            scores(halves: &[i32; 4], points: &[[i32; 16]], codewords: &[i32]) -> [__m512i; 4] {
                scores(halves, points, codewords)
            }
            min(a: __m512i, b: __m512i) -> __m512i { _mm512_min_epi32(a, b) }
            min_unless(a: __m512i, b: __m512i, x: __m512i, y: __m512i) -> __m512i {
                _mm512_mask_min_epi32(a, _mm512_cmpneq_epi32_mask(x, y), a, b)
            }
            where_less(a: __m512i, b: __m512i, yes: __m512i, no: __m512i) -> __m512i {
                _mm512_mask_mov_epi32(no, _mm512_cmplt_epi32_mask(a, b), yes)
            }
            le(a: __m512i, b: __m512i) -> u32 { _mm512_cmple_epi32_mask(a, b).into() }
            gather(from: &[Quad], at: &[u16; 16]) -> [__m512i; 4] {
                assert!(inside(at, from.len()));
                let from = from.as_ptr().cast::<__m128i>();
                macro_rules! four {
                    ($i:literal) => {
                        _mm512_inserti64x4::<1>(
                            _mm512_castsi256_si512(two!(from, at: $i, $i + 4)), two!(from, at: $i + 8, $i + 12),
                        )
                    };
                }
                turned!(
                    [four!(0), four!(1), four!(2), four!(3)],
                    _mm512_unpacklo_epi32, _mm512_unpackhi_epi32, _mm512_unpacklo_epi64, _mm512_unpackhi_epi64
                )
            }
            quads(x: [__m512i; 4], out: &mut [Quad; 16]) {
                let rows = turned!(
                    x, _mm512_unpacklo_epi32, _mm512_unpackhi_epi32, _mm512_unpacklo_epi64, _mm512_unpackhi_epi64
                );
                for (i, row) in rows.into_iter().enumerate() {
                    let out = out.as_mut_ptr().cast::<__m128i>().add(i);
                    _mm_storeu_si128(out, _mm512_castsi512_si128(row));
                    _mm_storeu_si128(out.add(4), _mm512_extracti32x4_epi32::<1>(row));
                    _mm_storeu_si128(out.add(8), _mm512_extracti32x4_epi32::<2>(row));
                    _mm_storeu_si128(out.add(12), _mm512_extracti32x4_epi32::<3>(row));
                }
            }
            root(a: __m512i, more: f32, scale: f32) -> __m512i {
                let a = _mm512_cvtepi32_ps(a);
                let root = _mm512_add_ps(_mm512_sqrt_ps(_mm512_add_ps(a, a)), _mm512_set1_ps(more));
                let scaled = _mm512_max_ps(_mm512_mul_ps(root, _mm512_set1_ps(scale)), _mm512_setzero_ps());
                _mm512_cvttps_epi32(_mm512_min_ps(scaled, _mm512_set1_ps(65_535.0)))
            }
            narrow(a: __m512i, b: u16) -> [u16; 16] {
                let mut out = [0; 16];
                _mm256_storeu_si256(out.as_mut_ptr().cast(), words_of(a, b));
                out
            }
            scatter(a: __m512i, b: u16, at: &[u16; 16], out: &mut [u16]) {
                assert!(inside(at, out.len()));
                let out = out.as_mut_ptr();
                scattered!(words_of(a, b), at, out);
            }
            half_square(a: __m512i, more: f32) -> __m512i {
                let a = _mm512_cvtepi32_ps(a);
                let root = _mm512_add_ps(_mm512_sqrt_ps(_mm512_add_ps(a, a)), _mm512_set1_ps(more));
                let half = _mm512_mul_ps(_mm512_mul_ps(root, root), _mm512_set1_ps(ROUNDED));
                _mm512_cvttps_epi32(_mm512_min_ps(_mm512_add_ps(half, _mm512_set1_ps(1.0)), _mm512_set1_ps(MOST)))
            }
            list(a: &[u16], b: u16, c: &[u16], list: &mut List) -> usize {
                assert!(a.len() == c.len() && a.len() <= BLOCK && a.len().is_multiple_of(32));
                let (b, mut len) = (_mm256_set1_epi16(b as i16), 0);
                let mut places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                for at in (0..a.len()).step_by(16) {
                    let a = _mm256_loadu_si256(a.as_ptr().add(at).cast());
                    let c = _mm256_loadu_si256(c.as_ptr().add(at).cast());
                    let mask = _mm256_cmple_epu16_mask(_mm256_subs_epu16(a, b), c);
                    // Without a branch; no more are listed than were looked at.
                    let listed = _mm512_maskz_compress_epi32(mask, places);
                    _mm256_storeu_si256(list.as_mut_ptr().add(len).cast(), _mm512_cvtepi32_epi16(listed));
                    len += mask.count_ones() as usize;
                    places = _mm512_add_epi32(places, _mm512_set1_epi32(16));
                }
                len
            }
        }
    }
}
