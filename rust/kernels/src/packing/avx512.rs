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

/// As `scalar::unpack` for codes of 1 to 8 bits. `stream`: past the caches, for
/// results larger than they are.
pub(super) fn unpack<const W: usize>(isa: Isa, packed: &[u8], out: &mut [u8], stream: bool) {
    assert!(isa.has_avx512vbmi());
    // SAFETY: an `Isa` that has these exists only where the CPU has them.
    unsafe { if stream { unpack_row::<W, true>(packed, out) } else { unpack_row::<W, false>(packed, out) } }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn pack_row<const W: usize>(codes: &[u8], out: &mut [u8]) -> u8 {
    let mut seen = _mm512_setzero_si512();
    let head = head(codes);
    let (first, mut codes) = codes.split_at(head);
    let (bytes, mut out) = out.split_at_mut(head / 8 * W);
    pack_part::<W>(first, bytes, &mut seen);
    // Stores reach past their block, into bytes that the next block writes;
    // the last blocks are masked.
    while let (Some((block, rest)), Some(reach)) = (codes.split_first_chunk(), out.first_chunk_mut()) {
        let x = load(block);
        seen = _mm512_or_si512(seen, x);
        store(gather::<W>(x), reach);
        codes = rest;
        out = &mut out[8 * W..];
    }
    for (codes, out) in codes.chunks(BLOCK).zip(out.chunks_mut(8 * W)) {
        pack_part::<W>(codes, out, &mut seen);
    }
    let mut lanes = [0; BLOCK];
    store(seen, &mut lanes);
    lanes.iter().fold(0, |a, b| a | b)
}

/// At most a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn pack_part<const W: usize>(codes: &[u8], out: &mut [u8], seen: &mut __m512i) {
    let x = load_part(codes);
    *seen = _mm512_or_si512(*seen, x);
    store_part(gather::<W>(x), out);
}

/// Codes before the first one at the start of a cache line, if these fill whole
/// bytes and the row is long: vectors that straddle lines cost a fifth.
fn head(codes: &[u8]) -> usize {
    let head = codes.as_ptr().align_offset(BLOCK);
    if codes.len() >= 16 * BLOCK && head.is_multiple_of(8) { head } else { 0 }
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
fn unpack_row<const W: usize, const STREAM: bool>(packed: &[u8], out: &mut [u8]) {
    let head = head(out);
    let (bytes, mut packed) = packed.split_at(head / 8 * W);
    let (first, mut out) = out.split_at_mut(head);
    unpack_part::<W>(bytes, first);
    // Loads reach past their block as the stores of `pack_row` do.
    while let (Some(reach), Some(block)) = (packed.first_chunk(), out.first_chunk_mut()) {
        let x = scatter::<W>(load(reach));
        if STREAM {
            stream(x, block)
        } else {
            store(x, block)
        }
        packed = &packed[8 * W..];
        out = &mut out[BLOCK..];
    }
    if STREAM {
        _mm_sfence(); // streaming stores are not ordered with what follows
    }
    for (packed, out) in packed.chunks(8 * W).zip(out.chunks_mut(BLOCK)) {
        unpack_part::<W>(packed, out);
    }
}

/// At most a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack_part<const W: usize>(packed: &[u8], out: &mut [u8]) {
    store_part(scatter::<W>(load_part(packed)), out);
}

/// The 64 codes that the lowest 8 W bytes hold, a byte each: each 8 codes to
/// 64 bits of their own, and there 8 bits from bit W i to byte i.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn scatter<const W: usize>(x: __m512i) -> __m512i {
    if W == 8 {
        return x;
    }
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

/// At most 64 bytes, then zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_part(x: &[u8]) -> __m512i {
    // SAFETY: the mask keeps to the slice.
    unsafe { _mm512_maskz_loadu_epi8(lowest(x.len()), x.as_ptr().cast()) }
}

/// The first `out.len()` bytes, at most 64.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store_part(x: __m512i, out: &mut [u8]) {
    // SAFETY: the mask keeps to the slice.
    unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), lowest(out.len()), x) }
}

fn lowest(count: usize) -> u64 {
    assert!(count <= BLOCK);
    if count == 0 { 0 } else { u64::MAX >> (BLOCK - count) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn stream(x: __m512i, out: &mut [u8; BLOCK]) {
    if out.as_ptr().addr().is_multiple_of(BLOCK) {
        // SAFETY: the array is 64 bytes, at a multiple of 64.
        unsafe { _mm512_stream_si512(out.as_mut_ptr().cast(), x) }
    } else {
        store(x, out);
    }
}
