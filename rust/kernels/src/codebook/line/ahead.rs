//! Whether a candidate beats another at positions one after the other: the one step of a best path
//! that is worth a vector. Each position's arithmetic is that of `Candidates::beats`, so that
//! results are the same bits on every instruction set.

use crate::lanes::{Lanes, Scalar};

/// Positions that are looked at side by side.
pub(super) const AHEAD: usize = 8;

pub(super) trait Ahead: Lanes {
    /// The first of these positions that is served as well or better from `j` than from `i < j`, or [`AHEAD`]: see
    /// [`beats`].
    #[inline(always)]
    fn first_beaten(self, gain: f64, i: [f64; 2], j: [f64; 2], s: &[f64; AHEAD], w: &[f64; AHEAD]) -> usize {
        (0..AHEAD).position(|t| beats(gain, i, j, s[t], w[t])).unwrap_or(AHEAD)
    }
}

/// Whether a position is served as well or better from `j` than from `i < j`, without a division. `gain` is what the
/// potential of `j` is more than that of `i`; sums and weights are those before each of the three.
#[inline(always)]
pub(super) fn beats(gain: f64, [si, wi]: [f64; 2], [sj, wj]: [f64; 2], s: f64, w: f64) -> bool {
    let (si, wi) = (s - si, w - wi);
    let (sj, wj) = (s - sj, w - wj);
    wi * (gain * wj + sj * sj) >= si * si * wj
}

impl Ahead for Scalar {}
#[cfg(target_arch = "aarch64")]
impl Ahead for crate::lanes::Neon {}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{AHEAD, Ahead};
    use crate::lanes::{Avx2, Avx512, intrinsics};

    impl Ahead for Avx2 {
        intrinsics! {
            first_beaten(gain: f64, i: [f64; 2], j: [f64; 2], s: &[f64; AHEAD], w: &[f64; AHEAD]) -> usize {
                macro_rules! four {
                    ($first:literal) => {{
                        let s = _mm256_loadu_pd(s.as_ptr().add($first));
                        let w = _mm256_loadu_pd(w.as_ptr().add($first));
                        let (si, wi) = (_mm256_sub_pd(s, _mm256_set1_pd(i[0])), _mm256_sub_pd(w, _mm256_set1_pd(i[1])));
                        let (sj, wj) = (_mm256_sub_pd(s, _mm256_set1_pd(j[0])), _mm256_sub_pd(w, _mm256_set1_pd(j[1])));
                        // No fused operations, here and below: they would round otherwise.
                        let left = _mm256_add_pd(_mm256_mul_pd(_mm256_set1_pd(gain), wj), _mm256_mul_pd(sj, sj));
                        let (left, right) = (_mm256_mul_pd(wi, left), _mm256_mul_pd(_mm256_mul_pd(si, si), wj));
                        _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_GE_OQ>(left, right))
                    }};
                }
                (four!(0) | four!(4) << 4 | 1 << AHEAD).trailing_zeros() as usize
            }
        }
    }

    impl Ahead for Avx512 {
        intrinsics! {
            first_beaten(gain: f64, i: [f64; 2], j: [f64; 2], s: &[f64; AHEAD], w: &[f64; AHEAD]) -> usize {
                let (s, w) = (_mm512_loadu_pd(s.as_ptr()), _mm512_loadu_pd(w.as_ptr()));
                let (si, wi) = (_mm512_sub_pd(s, _mm512_set1_pd(i[0])), _mm512_sub_pd(w, _mm512_set1_pd(i[1])));
                let (sj, wj) = (_mm512_sub_pd(s, _mm512_set1_pd(j[0])), _mm512_sub_pd(w, _mm512_set1_pd(j[1])));
                let left = _mm512_add_pd(_mm512_mul_pd(_mm512_set1_pd(gain), wj), _mm512_mul_pd(sj, sj));
                let (left, right) = (_mm512_mul_pd(wi, left), _mm512_mul_pd(_mm512_mul_pd(si, si), wj));
                let beaten = u32::from(_mm512_cmp_pd_mask::<_CMP_GE_OQ>(left, right));
                (beaten | 1 << AHEAD).trailing_zeros() as usize
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    crate::lanes::on_isa! {
        fn first_beaten(gain: f64, i: [f64; 2], j: [f64; 2], s: &[f64; AHEAD], w: &[f64; AHEAD]) -> usize = Ahead::first_beaten;
    }

    #[test]
    fn vectors_are_by_the_definition() {
        let mut seed = 9u64;
        let mut number = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f64 / 65_536.0 - 128.0
        };
        let (mut some, mut cases) = (0, 0);
        for _ in 0..2000 {
            let (sums, weights) = (std::array::from_fn(|_| number()), std::array::from_fn(|t| 300.0 + t as f64));
            let (gain, i, j) = (number() / 8.0, [number(), 100.0], [number(), 150.0]);
            let want = Scalar.first_beaten(gain, i, j, &sums, &weights);
            some += usize::from(want != 0 && want != AHEAD);
            for &isa in Isa::available() {
                assert_eq!(first_beaten(gain, i, j, &sums, &weights, isa), want, "{}", isa.name());
            }
            cases += 1;
        }
        assert!(some > 200, "the test's data: {some}");
        for isa in Isa::available() {
            println!("positions ahead: {cases} cases on {}", isa.name());
        }
    }
}
