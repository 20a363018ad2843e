//! What happens to codes one by one, and pooling.

use std::arch::x86_64::*;

use super::super::{AddCodes, Kind, Means, Multiply, Window, pool, simple};
use super::finish::{added, halves, narrowed};
use crate::Isa;

/// [`super::super::add`], of a multiple of 16 codes; returns how many.
pub(in super::super) fn add(isa: Isa, a: &[u8], b: &[u8], how: &AddCodes, out: &mut [u8]) -> usize {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { avx2(a, b, how, out) };
    return out.len() / 16 * 16;

    #[target_feature(enable = "avx2")]
    fn avx2(a: &[u8], b: &[u8], how: &AddCodes, out: &mut [u8]) {
        let all = a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0);
        for ((a, b), out) in all.zip(out.as_chunks_mut::<16>().0) {
            let (a, b) = (halves(a, how.signed), halves(b, how.signed));
            let codes = _mm256_packs_epi32(added(how, a[0], b[0]), added(how, a[1], b[1]));
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), narrowed(codes)) };
        }
    }
}

/// [`super::super::simple::multiply_all`].
pub(in super::super) fn multiply(isa: Isa, a: &[u8], b: &[u8], how: &Multiply, out: &mut [u8]) {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    return unsafe { avx2(a, b, how, out) };

    #[target_feature(enable = "avx2")]
    fn avx2(a: &[u8], b: &[u8], how: &Multiply, out: &mut [u8]) {
        simple::multiply_all(a, b, how, out);
    }
}

/// [`super::super::pool::average`].
pub(in super::super) fn average(isa: Isa, x: &[u8], window: &Window, size: [usize; 3], how: &Means, out: &mut [u8]) {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    return unsafe { avx2(x, window, size, how, out) };

    #[target_feature(enable = "avx2")]
    fn avx2(x: &[u8], window: &Window, size: [usize; 3], how: &Means, out: &mut [u8]) {
        pool::average(x, window, size, how, out);
    }
}

/// [`super::super::pool::maximum`].
pub(in super::super) fn maximum(
    isa: Isa,
    x: &[u8],
    window: &Window,
    size: [usize; 3],
    kind: Kind,
    bounds: (i32, i32),
    out: &mut [u8],
) {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    return unsafe { avx2(x, window, size, kind, bounds, out) };

    #[target_feature(enable = "avx2")]
    fn avx2(x: &[u8], window: &Window, size: [usize; 3], kind: Kind, bounds: (i32, i32), out: &mut [u8]) {
        pool::maximum(x, window, size, kind, bounds, out);
    }
}

/// [`super::super::simple::quantize_all`].
pub(in super::super) fn quantize(isa: Isa, x: &[f32], scale: f32, kind: Kind, out: &mut [u8]) -> bool {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    return unsafe { avx2(x, scale, kind, out) };

    #[target_feature(enable = "avx2")]
    fn avx2(x: &[f32], scale: f32, kind: Kind, out: &mut [u8]) -> bool {
        simple::quantize_all(x, scale, kind, out)
    }
}
