//! NEON, with the dot products of bytes (`sdot`, `udot`) and without: 4 or 2 rows ×
//! 16 columns in the accumulators, four times for a panel of 64.
//!
//! Bytes are signed here, so rows are taken 128 less, and 128 times the columns' sums
//! added: they are found with the first rows, a row more of products.

use std::arch::aarch64::*;

use super::Block;
use crate::Isa;

mod groups;

pub(in crate::gemm) use groups::{groups, groups_scratch_len};

/// Products of bytes, summed in 32 bits. A value proves that the CPU has the instructions.
trait Products: Copy {
    /// Sums of four columns, perhaps in parts.
    type Sums: Copy;
    /// Rows of a tile, at most 4.
    const ROWS: usize;
    /// Rows that are few enough for tiles of 32 columns.
    const FEW: usize;

    fn start(self, sums: int32x4_t) -> Self::Sums;
    fn total(self, sums: Self::Sums) -> int32x4_t;
    /// Adds four columns' quads times the `L`-th quad of `a`, bytes signed.
    fn signed<const L: i32>(self, sums: Self::Sums, w: int8x16_t, a: int8x16_t) -> Self::Sums;
    /// The same, bytes unsigned.
    fn unsigned<const L: i32>(self, sums: Self::Sums, w: uint8x16_t, a: uint8x16_t) -> Self::Sums;
}

/// `sdot` and `udot`.
#[derive(Clone, Copy)]
struct Dot(());

/// Widening products: a column's sum is in two parts.
#[derive(Clone, Copy)]
struct Widening(());

impl Dot {
    /// # Safety
    /// The CPU has NEON with dot products.
    #[inline(always)]
    unsafe fn new() -> Self {
        Dot(())
    }
}

impl Widening {
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    unsafe fn new() -> Self {
        Widening(())
    }
}

/// In assembly, for the intrinsics are not stable. The directive is for builds in which
/// this is not inlined.
macro_rules! dot {
    ($instruction:literal, $lane:ident, $sums:ident, $w:ident, $a:ident) => {
        std::arch::asm!(
            ".arch_extension dotprod",
            concat!($instruction, " {sums:v}.4s, {w:v}.16b, {a:v}.4b[{lane}]"),
            sums = inout(vreg) $sums,
            w = in(vreg) $w,
            a = in(vreg) $a,
            lane = const $lane,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

impl Products for Dot {
    type Sums = int32x4_t;
    const ROWS: usize = 4;
    const FEW: usize = 2;

    #[inline(always)]
    fn start(self, sums: int32x4_t) -> int32x4_t {
        sums
    }

    #[inline(always)]
    fn total(self, sums: int32x4_t) -> int32x4_t {
        sums
    }

    #[inline(always)]
    fn signed<const L: i32>(self, mut sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: `new` was told that the CPU has it.
        unsafe { dot!("sdot", L, sums, w, a) };
        sums
    }

    #[inline(always)]
    fn unsigned<const L: i32>(self, mut sums: int32x4_t, w: uint8x16_t, a: uint8x16_t) -> int32x4_t {
        // SAFETY: `new` was told that the CPU has it.
        unsafe { dot!("udot", L, sums, w, a) };
        sums
    }
}

impl Products for Widening {
    type Sums = [int32x4_t; 2];
    const ROWS: usize = 2;
    const FEW: usize = 0;

    #[inline(always)]
    fn start(self, sums: int32x4_t) -> [int32x4_t; 2] {
        // SAFETY: `new` was told that the CPU has NEON.
        unsafe {
            let zero = vdupq_n_s32(0);
            [vzip1q_s32(sums, zero), vzip2q_s32(sums, zero)]
        }
    }

    #[inline(always)]
    fn total(self, sums: [int32x4_t; 2]) -> int32x4_t {
        // SAFETY: `new` was told that the CPU has NEON.
        unsafe { vpaddq_s32(sums[0], sums[1]) }
    }

    #[inline(always)]
    fn signed<const L: i32>(self, sums: [int32x4_t; 2], w: int8x16_t, a: int8x16_t) -> [int32x4_t; 2] {
        // SAFETY: `new` was told that the CPU has NEON.
        unsafe {
            let a = vreinterpretq_s8_s32(vdupq_laneq_s32::<L>(vreinterpretq_s32_s8(a)));
            // Two products of -128 and -128 are past 16 bits.
            let products = [vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a)];
            [vpadalq_s16(sums[0], products[0]), vpadalq_s16(sums[1], products[1])]
        }
    }

    #[inline(always)]
    fn unsigned<const L: i32>(self, sums: [int32x4_t; 2], w: uint8x16_t, a: uint8x16_t) -> [int32x4_t; 2] {
        // SAFETY: `new` was told that the CPU has NEON.
        unsafe {
            let a = vreinterpretq_u8_u32(vdupq_laneq_u32::<L>(vreinterpretq_u32_u8(a)));
            let products = [vmull_u8(vget_low_u8(w), vget_low_u8(a)), vmull_high_u8(w, a)];
            let sums = sums.map(|sums| vreinterpretq_u32_s32(sums));
            [vpadalq_u16(sums[0], products[0]), vpadalq_u16(sums[1], products[1])]
                .map(|sums| vreinterpretq_s32_u32(sums))
        }
    }
}

/// `scalar::panel`.
///
/// # Safety
/// `isa` is at least NEON; `block.a` is as many rows as `out`; the panel's codes are
/// `block.k` deep; each row of `out` has at least `col + block.panel.width` columns.
pub(super) unsafe fn panel(isa: Isa, block: &Block, out: &mut [&mut [i32]], col: usize) {
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot(block: &Block, out: &mut [&mut [i32]], col: usize) {
        // SAFETY: the features of this function; the caller's promises.
        unsafe { all(Dot::new(), block, out, col) }
    }
    #[target_feature(enable = "neon")]
    unsafe fn widening(block: &Block, out: &mut [&mut [i32]], col: usize) {
        // SAFETY: the features of this function; the caller's promises.
        unsafe { all(Widening::new(), block, out, col) }
    }
    // SAFETY: an Isa exists only where the CPU has it; the caller's promises.
    unsafe { if isa.has_neondot() { dot(block, out, col) } else { widening(block, out, col) } }
}

/// # Safety
/// As of [`panel`].
#[inline(always)]
unsafe fn all<P: Products>(p: P, block: &Block, out: &mut [&mut [i32]], col: usize) {
    let width = block.panel.width;
    let mut at = 0;
    while at < width {
        // SAFETY: the caller's promises; so many columns are left.
        unsafe {
            if out.len() <= P::FEW && width - at >= 32 {
                columns::<P, 8>(p, block, at, out, col);
                at += 32;
            } else {
                columns::<P, 4>(p, block, at, out, col);
                at += 16;
            }
        }
    }
}

/// All rows times the panel's columns from `at`, 4 · `V` of them.
///
/// # Safety
/// As of [`panel`], and the panel has these columns.
#[inline(always)]
unsafe fn columns<P: Products, const V: usize>(p: P, block: &Block, at: usize, out: &mut [&mut [i32]], col: usize) {
    // SAFETY: an array of as many integers is a vector for each four; the caller's promises.
    unsafe {
        let mut start = [vdupq_n_s32(0); V];
        for (start, from) in start.iter_mut().zip(block.start[at..at + 4 * V].chunks_exact(4)) {
            *start = vld1q_s32(from.as_ptr());
        }
        for (i, out) in out.chunks_mut(P::ROWS).enumerate() {
            if i == 0 {
                start = rows::<P, V, true>(p, block, 0, at, start, out, col);
            } else {
                rows::<P, V, false>(p, block, i * P::ROWS, at, start, out, col);
            }
        }
    }
}

/// # Safety
/// As of [`tile`].
#[inline(always)]
unsafe fn rows<P: Products, const V: usize, const FIRST: bool>(
    p: P,
    block: &Block,
    first: usize,
    at: usize,
    start: [int32x4_t; V],
    out: &mut [&mut [i32]],
    col: usize,
) -> [int32x4_t; V] {
    // SAFETY: the caller's promises.
    unsafe {
        match out.len() {
            4 => tile::<P, 4, V, FIRST>(p, block, first, at, start, out, col),
            3 => tile::<P, 3, V, FIRST>(p, block, first, at, start, out, col),
            2 => tile::<P, 2, V, FIRST>(p, block, first, at, start, out, col),
            _ => tile::<P, 1, V, FIRST>(p, block, first, at, start, out, col),
        }
    }
}

/// `R` rows from `first` times 4 · `V` columns from `at`. Of the first rows, `start` is
/// the block's; what is returned has 128 times the columns' sums added to it, and is the
/// others' start.
///
/// # Safety
/// As of [`columns`], and `out` is `R` rows.
#[inline(always)]
unsafe fn tile<P: Products, const R: usize, const V: usize, const FIRST: bool>(
    p: P,
    block: &Block,
    first: usize,
    at: usize,
    mut start: [int32x4_t; V],
    out: &mut [&mut [i32]],
    col: usize,
) -> [int32x4_t; V] {
    let (k, stride) = (block.k, 4 * block.panel.width);
    let bytes = &block.a[first * k..(first + R) * k];
    let mut w = block.panel.codes[4 * at..].as_ptr();
    // SAFETY: every 16 of K read 16 bytes of each row, and four steps of the panel's
    // ceil(K / 4); the rest is read from copies, and a step for each begun four. Each of
    // `out` has the columns.
    unsafe {
        let flip = vdupq_n_u8(block.flip ^ 0x80);
        let mut sums = [[p.start(vdupq_n_s32(0)); V]; R];
        let mut less = [p.start(vdupq_n_s32(0)); V];
        for sums in &mut sums {
            for v in 0..V {
                sums[v] = p.start(start[v]);
            }
        }
        let mut a = [vdupq_n_s8(0); R];
        let mut minus = vdupq_n_s8(-128);
        let mut row = bytes.as_ptr();
        for _ in 0..k / 16 {
            for r in 0..R {
                a[r] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(row.wrapping_add(r * k)), flip));
            }
            row = row.wrapping_add(16);
            step::<P, R, V, FIRST, 0>(p, &mut sums, &mut less, w, a, minus);
            step::<P, R, V, FIRST, 1>(p, &mut sums, &mut less, w.wrapping_add(stride), a, minus);
            step::<P, R, V, FIRST, 2>(p, &mut sums, &mut less, w.wrapping_add(2 * stride), a, minus);
            step::<P, R, V, FIRST, 3>(p, &mut sums, &mut less, w.wrapping_add(3 * stride), a, minus);
            w = w.wrapping_add(4 * stride);
        }
        let rest = k % 16;
        if rest != 0 {
            for r in 0..R {
                let mut tail = [block.flip ^ 0x80; 16];
                tail[..rest].copy_from_slice(&bytes[(r + 1) * k - rest..][..rest]);
                a[r] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(tail.as_ptr()), flip));
            }
            let mut tail = [0; 16];
            tail[..rest].fill(-128);
            minus = vld1q_s8(tail.as_ptr());
            for _ in 0..rest.div_ceil(4) {
                step::<P, R, V, FIRST, 0>(p, &mut sums, &mut less, w, a, minus);
                w = w.wrapping_add(stride);
                minus = vextq_s8::<4>(minus, minus);
                for a in &mut a {
                    *a = vextq_s8::<4>(*a, *a);
                }
            }
        }
        for v in 0..V {
            let less = p.total(less[v]);
            start[v] = vsubq_s32(start[v], less);
            for r in 0..R {
                let sum = p.total(sums[r][v]);
                let to = &mut out[r][col + at + 4 * v..][..4];
                vst1q_s32(to.as_mut_ptr(), if FIRST { vsubq_s32(sum, less) } else { sum });
            }
        }
    }
    start
}

/// One quad of depth: the `L`-th of `a`.
///
/// # Safety
/// `w` is 16 · `V` bytes.
#[inline(always)]
unsafe fn step<P: Products, const R: usize, const V: usize, const FIRST: bool, const L: i32>(
    p: P,
    sums: &mut [[P::Sums; V]; R],
    less: &mut [P::Sums; V],
    w: *const u8,
    a: [int8x16_t; R],
    minus: int8x16_t,
) {
    for v in 0..V {
        // SAFETY: the caller's promise.
        let w = unsafe { vld1q_s8(w.wrapping_add(16 * v).cast()) };
        for r in 0..R {
            sums[r][v] = p.signed::<L>(sums[r][v], w, a[r]);
        }
        if FIRST {
            less[v] = p.signed::<L>(less[v], w, minus);
        }
    }
}
