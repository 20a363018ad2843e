//! Eight lanes of f32 with comparisons: what scans tiles of eight codewords.
//!
//! For the tokens of `lanes.rs`. Unlike there, results may differ in the last bits
//! between instruction sets: they rule out codewords, within bounds that cover
//! each of them.

use super::scan::{Least, Points, VECTORS};
use crate::lanes::Scalar;

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
    /// Lanes of `yes` where `a` is less than `b`, else of `no`.
    fn where_less(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// Bit i: lane i of `a` is at most that of `b`.
    fn le(self, a: Self::F, b: Self::F) -> u32;
    /// The least lane.
    fn least(self, a: Self::F) -> f32;

    /// Takes a tile, its `|c|²/2` and -c', into the least scores of points, which are
    /// dimension by dimension. The least scores in this tile.
    #[inline(always)]
    fn take_tile(
        self,
        points: &[Points],
        tile: usize,
        halves: &[f32; 8],
        rows: &[[f32; 8]],
        least: &mut Least,
    ) -> Points {
        let mut lows = Points::default();
        let at = self.splat(f32::from_bits(tile as u32));
        for p in 0..VECTORS {
            let mut low = self.splat(f32::INFINITY);
            for c in 0..8 {
                let mut score = self.splat(halves[c]);
                for (x, row) in points.iter().zip(rows) {
                    score = self.mul_add(self.load(&x.0[p]), self.splat(row[c]), score);
                }
                low = self.min(score, low);
            }
            let before = self.load(&least.scores.0[p]);
            let other = self.min(self.max(low, before), self.load(&least.others.0[p]));
            self.store(other, &mut least.others.0[p]);
            let tile = self.where_less(low, before, at, self.load(&least.tiles.0[p]));
            self.store(tile, &mut least.tiles.0[p]);
            self.store(self.min(low, before), &mut least.scores.0[p]);
            self.store(low, &mut lows.0[p]);
        }
        lows
    }
}

impl Eight for Scalar {
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
    fn where_less(self, a: [f32; 8], b: [f32; 8], yes: [f32; 8], no: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn le(self, a: [f32; 8], b: [f32; 8]) -> u32 {
        (0..8).fold(0, |mask, i| mask | u32::from(a[i] <= b[i]) << i)
    }
    #[inline(always)]
    fn least(self, a: [f32; 8]) -> f32 {
        a.into_iter().fold(f32::INFINITY, |m, x| if x < m { x } else { m })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Eight, Least, Points};
    use crate::lanes::{Avx2, intrinsics};

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
            where_less(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
                _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
            }
            le(a: __m256, b: __m256) -> u32 { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(a, b)) as u32 }
            least(a: __m256) -> f32 {
                let four = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        fn take_tile(
            self,
            points: &[Points],
            tile: usize,
            halves: &[f32; 8],
            rows: &[[f32; 8]],
            least: &mut Least,
        ) -> Points {
            // SAFETY: the token proves the instruction set.
            unsafe { take_tile(points, tile, halves, rows, least) }
        }
    }

    /// Four codewords times a dimension of the points.
    #[rustfmt::skip]
    macro_rules! dimension {
        ($points:literal, $rows:literal) => {
            concat!(
                "vmovaps ymm12, ymmword ptr [{points} + ", $points, "]\n",
                "vmovaps ymm13, ymmword ptr [{points} + ", $points, " + 32]\n",
                "vmovaps ymm14, ymmword ptr [{points} + ", $points, " + 64]\n",
                "vbroadcastss ymm15, dword ptr [{rows} + ", $rows, "]\n",
                "vfmadd231ps ymm0, ymm12, ymm15\n",
                "vfmadd231ps ymm1, ymm13, ymm15\n",
                "vfmadd231ps ymm2, ymm14, ymm15\n",
                "vbroadcastss ymm15, dword ptr [{rows} + ", $rows, " + 4]\n",
                "vfmadd231ps ymm3, ymm12, ymm15\n",
                "vfmadd231ps ymm4, ymm13, ymm15\n",
                "vfmadd231ps ymm5, ymm14, ymm15\n",
                "vbroadcastss ymm15, dword ptr [{rows} + ", $rows, " + 8]\n",
                "vfmadd231ps ymm6, ymm12, ymm15\n",
                "vfmadd231ps ymm7, ymm13, ymm15\n",
                "vfmadd231ps ymm8, ymm14, ymm15\n",
                "vbroadcastss ymm15, dword ptr [{rows} + ", $rows, " + 12]\n",
                "vfmadd231ps ymm9, ymm12, ymm15\n",
                "vfmadd231ps ymm10, ymm13, ymm15\n",
                "vfmadd231ps ymm11, ymm14, ymm15\n",
            )
        };
    }

    /// The least scores of four codewords, in ymm0 to ymm2.
    #[rustfmt::skip]
    macro_rules! four {
        ($first:literal) => {
            concat!(
                "mov {points}, {x}\n",
                "lea {rows}, [{c} + 4 * ", $first, "]\n",
                "vbroadcastss ymm0, dword ptr [{halves} + 4 * ", $first, "]\n",
                "vbroadcastss ymm3, dword ptr [{halves} + 4 * ", $first, " + 4]\n",
                "vbroadcastss ymm6, dword ptr [{halves} + 4 * ", $first, " + 8]\n",
                "vbroadcastss ymm9, dword ptr [{halves} + 4 * ", $first, " + 12]\n",
                "vmovaps ymm1, ymm0\n",
                "vmovaps ymm2, ymm0\n",
                "vmovaps ymm4, ymm3\n",
                "vmovaps ymm5, ymm3\n",
                "vmovaps ymm7, ymm6\n",
                "vmovaps ymm8, ymm6\n",
                "vmovaps ymm10, ymm9\n",
                "vmovaps ymm11, ymm9\n",
                "mov {count}, {d}\n",
                "sub {count}, 2\n",
                "jb 3f\n",
                "2:\n",
                dimension!("0", "0"),
                dimension!("96", "32"),
                "add {points}, 192\n",
                "add {rows}, 64\n",
                "sub {count}, 2\n",
                "jae 2b\n",
                "3:\n",
                "cmp {count}, -2\n",
                "je 4f\n",
                dimension!("0", "0"),
                "4:\n",
                "vminps ymm0, ymm0, ymm3\n",
                "vminps ymm6, ymm6, ymm9\n",
                "vminps ymm1, ymm1, ymm4\n",
                "vminps ymm7, ymm7, ymm10\n",
                "vminps ymm2, ymm2, ymm5\n",
                "vminps ymm8, ymm8, ymm11\n",
                "vminps ymm0, ymm0, ymm6\n",
                "vminps ymm1, ymm1, ymm7\n",
                "vminps ymm2, ymm2, ymm8\n",
            )
        };
    }

    /// A vector's part of [`Least`], given the least score in a tile.
    #[rustfmt::skip]
    macro_rules! track {
        ($low:literal, $at:literal) => {
            concat!(
                "vmovaps ymm3, ymmword ptr [{scores} + ", $at, "]\n",
                "vmaxps ymm4, ", $low, ", ymm3\n",
                "vminps ymm4, ymm4, ymmword ptr [{others} + ", $at, "]\n",
                "vcmpltps ymm5, ", $low, ", ymm3\n",
                "vminps ymm3, ", $low, ", ymm3\n",
                "vmovaps ymm6, ymmword ptr [{tiles} + ", $at, "]\n",
                "vblendvps ymm6, ymm6, ymm7, ymm5\n",
                "vmovaps ymmword ptr [{scores} + ", $at, "], ymm3\n",
                "vmovaps ymmword ptr [{others} + ", $at, "], ymm4\n",
                "vmovaps ymmword ptr [{tiles} + ", $at, "], ymm6\n",
            )
        };
    }

    /// [`Eight::take_tile`], in assembly since compilers keep some of the sums in memory.
    #[target_feature(enable = "avx2,fma")]
    fn take_tile(points: &[Points], tile: usize, halves: &[f32; 8], rows: &[[f32; 8]], least: &mut Least) -> Points {
        assert!(points.len() == rows.len());
        let mut low = Points::default();
        // SAFETY: as many dimensions as counted are in `points` and in `rows`; all that is
        // loaded and stored aligned is `Points`.
        unsafe {
            std::arch::asm!(
                four!("0"),
                "vmovaps ymmword ptr [{low}], ymm0",
                "vmovaps ymmword ptr [{low} + 32], ymm1",
                "vmovaps ymmword ptr [{low} + 64], ymm2",
                four!("4"),
                "vminps ymm0, ymm0, ymmword ptr [{low}]",
                "vminps ymm1, ymm1, ymmword ptr [{low} + 32]",
                "vminps ymm2, ymm2, ymmword ptr [{low} + 64]",
                "vmovaps ymmword ptr [{low}], ymm0",
                "vmovaps ymmword ptr [{low} + 32], ymm1",
                "vmovaps ymmword ptr [{low} + 64], ymm2",
                "vmovd xmm7, {tile:e}",
                "vpbroadcastd ymm7, xmm7",
                track!("ymm0", "0"),
                track!("ymm1", "32"),
                track!("ymm2", "64"),
                x = in(reg) points.as_ptr(),
                c = in(reg) rows.as_ptr(),
                d = in(reg) rows.len(),
                halves = in(reg) halves,
                tile = in(reg) tile as u32,
                low = in(reg) &mut low,
                scores = in(reg) &mut least.scores,
                others = in(reg) &mut least.others,
                tiles = in(reg) &mut least.tiles,
                points = out(reg) _,
                rows = out(reg) _,
                count = out(reg) _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack),
            );
        }
        low
    }
}
