//! 64 codes at a time with AVX-512 VBMI.

use std::arch::x86_64::*;

use crate::Isa;

/// Codes in a block, and the bytes of a vector.
const BLOCK: usize = 64;

/// As `scalar::pack` for codes of 1 to 7 bits.
pub(super) fn pack<const W: usize>(isa: Isa, codes: &[u8], out: &mut [u8]) -> u8 {
    assert!(isa.has_avx512vbmi());
    // SAFETY: an `Isa` that has these exists only where the CPU has them.
    unsafe { pack_row::<W>(codes, out) }
}

/// As `scalar::unpack` for codes of 1 to 7 bits.
pub(super) fn unpack<const W: usize>(isa: Isa, packed: &[u8], out: &mut [u8]) {
    assert!(isa.has_avx512vbmi());
    // SAFETY: an `Isa` that has these exists only where the CPU has them.
    unsafe { unpack_row::<W>(packed, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn pack_row<const W: usize>(mut codes: &[u8], mut out: &mut [u8]) -> u8 {
    let mut seen = _mm512_setzero_si512();
    // Stores reach past their block, into bytes that the next block writes;
    // the last blocks go through a buffer.
    while let (Some((block, rest)), Some(reach)) = (codes.split_first_chunk(), out.first_chunk_mut()) {
        let x = load(block);
        seen = _mm512_or_si512(seen, x);
        store(gather::<W>(x), reach);
        codes = rest;
        out = &mut out[8 * W..];
    }
    while !codes.is_empty() {
        let (part, rest) = codes.split_at(codes.len().min(BLOCK));
        let (mut block, mut reach) = ([0; BLOCK], [0; BLOCK]);
        block[..part.len()].copy_from_slice(part);
        let x = load(&block);
        seen = _mm512_or_si512(seen, x);
        store(gather::<W>(x), &mut reach);
        let bytes = out.len().min(8 * W);
        out[..bytes].copy_from_slice(&reach[..bytes]);
        (codes, out) = (rest, &mut out[bytes..]);
    }
    let mut lanes = [0; BLOCK];
    store(seen, &mut lanes);
    lanes.iter().fold(0, |a, b| a | b)
}

/// The bits of the codes in the lowest 8 W bytes. Neighbours are joined by
/// multiply-adds, then by a shift: 2, 4, 8 codes; then the zeros dropped.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn gather<const W: usize>(x: __m512i) -> __m512i {
    // Weights are the unsigned operand, for 2^7 has no signed byte; sums are
    // below 2^14, so nothing saturates.
    let pairs = _mm512_maddubs_epi16(_mm512_set1_epi16((1 << (8 + W)) | 1), x);
    let fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32((1 << (16 + 2 * W)) | 1));
    let up = _mm512_set1_epi64(32 - 4 * W as i64); // the even 32-bit lanes
    let eights = _mm512_srl_epi64(_mm512_sllv_epi32(fours, up), _mm_cvtsi32_si128(32 - 4 * W as i32));
    const { assert!(W < 8) }
    _mm512_permutexvar_epi8(load(&const { drop_zeros::<W>() }), eights)
}

/// Bytes 0..W of each 8.
const fn drop_zeros<const W: usize>() -> [u8; BLOCK] {
    let mut order = [0; BLOCK];
    let mut i = 0;
    while i < 8 * W {
        order[i] = (i / W * 8 + i % W) as u8;
        i += 1;
    }
    order
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack_row<const W: usize>(mut packed: &[u8], mut out: &mut [u8]) {
    // Loads reach past their block as the stores of `pack_row` do.
    while let (Some(reach), true) = (packed.first_chunk(), out.len() >= BLOCK) {
        let (block, rest) = out.split_at_mut(BLOCK);
        if let Some(block) = block.first_chunk_mut() {
            store(scatter::<W>(load(reach)), block);
        }
        packed = &packed[8 * W..];
        out = rest;
    }
    while !out.is_empty() {
        let (part, rest) = out.split_at_mut(out.len().min(BLOCK));
        let bytes = packed.len().min(8 * W);
        let (mut reach, mut block) = ([0; BLOCK], [0; BLOCK]);
        reach[..bytes].copy_from_slice(&packed[..bytes]);
        store(scatter::<W>(load(&reach)), &mut block);
        part.copy_from_slice(&block[..part.len()]);
        (packed, out) = (&packed[bytes..], rest);
    }
}

/// The 64 codes that the lowest 8 W bytes hold, a byte each: each 8 codes to
/// 64 bits of their own, and there 8 bits from bit W i to byte i.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn scatter<const W: usize>(x: __m512i) -> __m512i {
    let eights = _mm512_permutexvar_epi8(load(&const { eight_by_eight::<W>() }), x);
    let shifts = i64::from_le_bytes(
        const { [0, W as u8, 2 * W as u8, 3 * W as u8, 4 * W as u8, 5 * W as u8, 6 * W as u8, 7 * W as u8] },
    );
    let codes = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(shifts), eights);
    _mm512_and_si512(codes, _mm512_set1_epi8((0xff >> (8 - W)) as i8))
}

/// The bytes that the codes 8 i .. 8 i + 8 fill.
const fn eight_by_eight<const W: usize>() -> [u8; BLOCK] {
    let mut order = [0; BLOCK];
    let mut i = 0;
    while i < BLOCK {
        if i % 8 < W {
            order[i] = (i / 8 * W + i % 8) as u8;
        }
        i += 1;
    }
    order
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[u8; BLOCK]) -> __m512i {
    // SAFETY: the array is 64 bytes.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(x: __m512i, out: &mut [u8; BLOCK]) {
    // SAFETY: the array is 64 bytes.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
}
