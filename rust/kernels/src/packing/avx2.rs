//! 32 codes at a time with AVX2. No `pext`: before Zen 3 it takes 18 cycles and
//! more, and shuffles are faster everywhere.

use std::arch::x86_64::*;

use super::scalar;
use crate::Isa;

/// Codes in a block; it packs to whole bytes at every width.
const BLOCK: usize = 64;

/// As `scalar::pack` for codes of 1 to 7 bits.
pub(super) fn pack<const W: usize>(isa: Isa, codes: &[u8], out: &mut [u8]) -> u8 {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { pack_row::<W>(codes, out) }
}

/// As `scalar::unpack` for codes of 1 to 8 bits. `stream`: past the caches, for
/// results larger than they are.
pub(super) fn unpack<const W: usize>(isa: Isa, packed: &[u8], out: &mut [u8], stream: bool) {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { if stream { unpack_row::<W, true>(packed, out) } else { unpack_row::<W, false>(packed, out) } }
}

// ---------------------------------------------------------------- pack

/// What a block's stores touch: the last 16-byte store begins at byte 6 W.
const REACH: usize = 6 * 8 + 16;

#[target_feature(enable = "avx2")]
fn pack_row<const W: usize>(codes: &[u8], out: &mut [u8]) -> u8 {
    let mut seen = _mm256_setzero_si256();
    let head = head(codes);
    let (first, mut codes) = codes.split_at(head);
    let (bytes, mut out) = out.split_at_mut(head / 8 * W);
    pack_part::<W>(first, bytes, &mut seen);
    // Stores reach past their block, into bytes that the next block writes;
    // the last blocks go through a buffer.
    while let (Some((block, rest)), Some(reach)) = (codes.split_first_chunk(), out.first_chunk_mut()) {
        pack_block::<W>(block, reach, &mut seen);
        codes = rest;
        out = &mut out[8 * W..];
    }
    for (codes, out) in codes.chunks(BLOCK).zip(out.chunks_mut(8 * W)) {
        pack_part::<W>(codes, out, &mut seen);
    }
    let mut lanes = [0; 32];
    store(seen, &mut lanes);
    lanes.iter().fold(0, |a, b| a | b)
}

/// A block through a buffer, or what is less than one.
#[target_feature(enable = "avx2")]
fn pack_part<const W: usize>(codes: &[u8], out: &mut [u8], seen: &mut __m256i) {
    if let Some(block) = codes.first_chunk() {
        let mut reach = [0; REACH];
        pack_block::<W>(block, &mut reach, seen);
        out.copy_from_slice(&reach[..out.len()]);
    } else {
        let codes = scalar::pack::<u8, W>(codes, out);
        *seen = _mm256_or_si256(*seen, _mm256_set1_epi8(codes as i8));
    }
}

/// Codes before the first one at the start of a cache line, if these fill whole
/// bytes and the row is long: vectors that straddle lines cost a fifth.
fn head(codes: &[u8]) -> usize {
    let head = codes.as_ptr().align_offset(BLOCK);
    if codes.len() >= 16 * BLOCK && head.is_multiple_of(8) { head } else { 0 }
}

#[inline]
#[target_feature(enable = "avx2")]
fn pack_block<const W: usize>(codes: &[u8; BLOCK], out: &mut [u8; REACH], seen: &mut __m256i) {
    let halves = codes.as_chunks::<32>().0;
    let x = [load(&halves[0]), load(&halves[1])];
    *seen = _mm256_or_si256(*seen, _mm256_or_si256(x[0], x[1]));
    if W == 1 {
        for (x, out) in x.into_iter().zip(out.as_chunks_mut::<4>().0) {
            *out = _mm256_movemask_epi8(_mm256_slli_epi16(x, 7)).to_le_bytes();
        }
        return;
    }
    let (low, high) = (gather::<W>(x[0]), gather::<W>(x[1]));
    let quarters = [
        _mm256_castsi256_si128(low),
        _mm256_extracti128_si256(low, 1),
        _mm256_castsi256_si128(high),
        _mm256_extracti128_si256(high, 1),
    ];
    for (i, x) in quarters.into_iter().enumerate() {
        match out[2 * W * i..].first_chunk_mut() {
            Some(out) => store_half(x, out),
            None => unreachable!("2 W * 3 + 16 is at most REACH"),
        }
    }
}

/// The bits of each 16 codes in the lowest 2 W bytes of their lane. Neighbours
/// are joined by multiply-adds, then by a shift: 2, 4, 8 codes.
#[inline]
#[target_feature(enable = "avx2")]
fn gather<const W: usize>(x: __m256i) -> __m256i {
    // Weights are the unsigned operand, for 2^7 has no signed byte; sums are
    // below 2^14, so nothing saturates.
    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi16((1 << (8 + W)) | 1), x);
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32((1 << (16 + 2 * W)) | 1));
    let up = _mm256_set1_epi64x(32 - 4 * W as i64); // the even 32-bit lanes
    let eights = _mm256_srl_epi64(_mm256_sllv_epi32(fours, up), _mm_cvtsi32_si128(32 - 4 * W as i32));
    const { assert!(W < 8) }
    _mm256_shuffle_epi8(eights, twice(load_half(&const { drop_zeros::<W>() })))
}

/// Bytes 0..W of each 8.
const fn drop_zeros<const W: usize>() -> [u8; 16] {
    let mut order = [0x80; 16]; // the high bit makes a zero
    let mut i = 0;
    while i < 2 * W {
        order[i] = (i / W * 8 + i % W) as u8;
        i += 1;
    }
    order
}

// ---------------------------------------------------------------- unpack

#[target_feature(enable = "avx2")]
fn unpack_row<const W: usize, const STREAM: bool>(packed: &[u8], out: &mut [u8]) {
    let head = head(out);
    let (bytes, mut packed) = packed.split_at(head / 8 * W);
    let (first, mut out) = out.split_at_mut(head);
    unpack_part::<W>(bytes, first);
    // Loads reach past their block as the stores of `pack_row` do.
    while let (Some(reach), Some(block)) = (packed.first_chunk(), out.first_chunk_mut()) {
        unpack_block::<W, STREAM>(reach, block);
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

/// A block through a buffer, or what is less than one.
#[target_feature(enable = "avx2")]
fn unpack_part<const W: usize>(packed: &[u8], out: &mut [u8]) {
    if let Some(block) = out.first_chunk_mut() {
        let mut reach = [0; REACH];
        reach[..packed.len()].copy_from_slice(packed);
        unpack_block::<W, false>(&reach, block);
    } else {
        scalar::unpack::<u8, W>(packed, out);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn unpack_block<const W: usize, const STREAM: bool>(packed: &[u8; REACH], out: &mut [u8; BLOCK]) {
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (Some(low), Some(high)) = (packed[4 * W * i..].first_chunk(), packed[4 * W * i + 2 * W..].first_chunk())
        else {
            unreachable!("6 W + 16 is at most REACH");
        };
        let x = _mm256_inserti128_si256(_mm256_castsi128_si256(load_half(low)), load_half(high), 1);
        let x = scatter::<W>(x);
        if STREAM { stream(x, out) } else { store(x, out) }
    }
}

/// The 16 codes that the lowest 2 W bytes of each lane hold, a byte each.
#[inline]
#[target_feature(enable = "avx2")]
fn scatter<const W: usize>(x: __m256i) -> __m256i {
    if W == 8 {
        return x;
    }
    // Four codes to the low bits of each 32; those of an odd width begin in
    // the middle of a byte every second time.
    let mut x = _mm256_shuffle_epi8(x, twice(load_half(&const { four_by_four::<W>() })));
    if W % 2 == 1 {
        x = _mm256_srlv_epi32(x, _mm256_set1_epi64x(4 << 32));
    }
    // Two codes to the low bits of each 16, then one to each byte.
    let x = _mm256_blend_epi16(x, _mm256_sll_epi32(x, _mm_cvtsi32_si128(16 - 2 * W as i32)), 0b1010_1010);
    let even = _mm256_and_si256(x, _mm256_set1_epi16((1 << W) - 1));
    let odd = _mm256_sll_epi16(x, _mm_cvtsi32_si128(8 - W as i32));
    _mm256_or_si256(even, _mm256_and_si256(odd, _mm256_set1_epi16(((1 << W) - 1) << 8)))
}

/// The four bytes at which the codes 4 i .. 4 i + 4 begin.
const fn four_by_four<const W: usize>() -> [u8; 16] {
    let mut order = [0; 16];
    let mut i = 0;
    while i < 16 {
        let byte = i / 4 * 4 * W / 8 + i % 4;
        order[i] = if byte < 2 * W { byte as u8 } else { 0x80 };
        i += 1;
    }
    order
}

// ---------------------------------------------------------------- memory

#[inline]
#[target_feature(enable = "avx2")]
fn twice(x: __m128i) -> __m256i {
    _mm256_broadcastsi128_si256(x)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[u8; 32]) -> __m256i {
    // SAFETY: the array is 32 bytes.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_half(x: &[u8; 16]) -> __m128i {
    // SAFETY: the array is 16 bytes.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(x: __m256i, out: &mut [u8; 32]) {
    // SAFETY: the array is 32 bytes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_half(x: __m128i, out: &mut [u8; 16]) {
    // SAFETY: the array is 16 bytes.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn stream(x: __m256i, out: &mut [u8; 32]) {
    if out.as_ptr().addr().is_multiple_of(32) {
        // SAFETY: the array is 32 bytes, at a multiple of 32.
        unsafe { _mm256_stream_si256(out.as_mut_ptr().cast(), x) }
    } else {
        store(x, out);
    }
}
