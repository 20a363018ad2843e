//! AVX2: `vpmaddwd`, two products of 16-bit values a lane.
//!
//! A tile is 6 pixels by 16 filters: twelve accumulators, two vectors of
//! weights, and one pair of a pixel's elements, broadcast from where it lies in
//! the band. A depthwise tile is 4 pixels by 16 channels: two taps of 16
//! channels are brought side by side by `vpunpcklwd` and `vpunpckhwd`.

use std::arch::asm;
use std::arch::x86_64::*;

use super::band::{self, Band};
use super::filter::{Aligned, Depthwise, Panel, Tiled};
use super::finish::{AddCodes, Requantize, Rule};
use super::{Add, Conv2d, Kind, Out, To, Window, pool, simple};
use crate::Isa;

/// Pixels of a tile, and of a depthwise one.
const MR: usize = 6;
const DEPTHWISE_MR: usize = 4;
/// Pixels that are finished at a time, whole tiles of both kinds.
const BLOCK: usize = 48;
/// Sums from one pixel to the next. One pixel alone may have more.
const ROW: usize = 16;

/// What products read and write: pixels of a filled band.
struct Pixels<'a> {
    elements: &'a [i16],
    starts: &'a [u32],
    /// The first of the channels.
    channel: usize,
    runs: &'a [(usize, usize)],
    sums: &'a mut [i32; BLOCK * ROW],
}

/// A convolution.
pub(super) fn run(conv: &Conv2d, tiled: &Tiled, x: &[u8], mut out: Out, scratch: &mut [i16]) {
    assert!(conv.isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { avx2(conv, tiled, x, &mut out, scratch) };

    #[target_feature(enable = "avx2")]
    fn avx2(conv: &Conv2d, tiled: &Tiled, x: &[u8], out: &mut Out, scratch: &mut [i16]) {
        let mut sums = [0; BLOCK * ROW];
        let Conv2d { band, out: [height, width, _], .. } = conv;
        for row in (0..*height).step_by(band.rows) {
            let rows = band.rows.min(height - row);
            band.fill(&conv.shape, row, rows, 0, x, scratch, |x, to| widen(conv.input, x, to));
            let starts = &band.starts[..rows * width];
            for panel in &tiled.panels {
                for (block, starts) in starts.chunks(BLOCK).enumerate() {
                    let channel = panel.channel;
                    let pixels = Pixels { elements: scratch, starts, channel, runs: &band.runs, sums: &mut sums };
                    products_of(pixels, band, panel, &tiled.weights, &conv.finish.bias);
                    let pixel = row * width + block * BLOCK;
                    finish(conv, &sums, starts.len(), pixel, panel.filter, panel.count, out);
                }
            }
        }
    }
}

/// A depthwise convolution.
pub(super) fn run_depthwise(conv: &Conv2d, taps: &Depthwise, x: &[u8], mut out: Out, scratch: &mut [i16]) {
    assert!(conv.isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { avx2(conv, taps, x, &mut out, scratch) };

    #[target_feature(enable = "avx2")]
    fn avx2(conv: &Conv2d, taps: &Depthwise, x: &[u8], out: &mut Out, scratch: &mut [i16]) {
        let mut sums = [0; BLOCK * ROW];
        let Conv2d { band, out: [height, width, channels], .. } = conv;
        for row in (0..*height).step_by(band.rows) {
            let rows = band.rows.min(height - row);
            let starts = &band.starts[..rows * width];
            for channel in (0..*channels).step_by(band::DEPTHWISE) {
                band.fill(&conv.shape, row, rows, channel, x, scratch, |x, to| widen(conv.input, x, to));
                let count = (channels - channel).min(band::DEPTHWISE);
                for (block, starts) in starts.chunks(BLOCK).enumerate() {
                    let pixels = Pixels { elements: scratch, starts, channel: 0, runs: &band.runs, sums: &mut sums };
                    depthwise_of(pixels, band, taps, channel, &conv.finish.bias);
                    let pixel = row * width + block * BLOCK;
                    finish(conv, &sums, starts.len(), pixel, channel, count, out);
                }
            }
        }
    }
}

impl Pixels<'_> {
    /// Whether what their windows reach over is there. Their starts ascend.
    fn reach(&self, band: &Band) -> bool {
        let furthest = self.starts.last().map_or(0, |&start| start as usize);
        self.starts.len() <= BLOCK && furthest + self.channel + band.reach <= self.elements.len()
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn widen(kind: Kind, x: &[u8], to: &mut [i16]) {
    let zero = _mm256_set1_epi16(kind.zero_point as i16);
    let (x16, rest) = x.as_chunks::<16>();
    let (to16, to_rest) = to.as_chunks_mut::<16>();
    for (x, to) in x16.iter().zip(to16) {
        // SAFETY: both are 16 elements.
        unsafe {
            let x = _mm_loadu_si128(x.as_ptr().cast());
            let words = if kind.signed { _mm256_cvtepi8_epi16(x) } else { _mm256_cvtepu8_epi16(x) };
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_sub_epi16(words, zero));
        }
    }
    band::widen(kind, rest, to_rest);
}

/// The sums of some pixels and one panel, from `bias` on.
#[target_feature(enable = "avx2")]
#[inline]
fn products_of(mut pixels: Pixels, band: &Band, panel: &Panel, weights: &Aligned, bias: &[i32]) {
    let bias = &bias[panel.filter..][..8 * panel.vectors];
    let weights_of = panel.at..panel.at + band.pairs * panel.vectors * 16;
    assert!(pixels.reach(band) && (panel.vectors <= 2 || pixels.starts.len() == 1));
    // SAFETY: the slices hold what the products read and write.
    unsafe {
        match weights {
            Aligned::Words(words, skip) => {
                let words = &words[*skip..][weights_of];
                let full = pixels.starts.len() / MR * MR;
                for from in (0..full).step_by(MR) {
                    if panel.vectors == 2 {
                        full_tile(&mut pixels, from, words, bias);
                    } else {
                        products::<MR, 1, i16>(&mut pixels, from, words, bias);
                    }
                }
                match (panel.vectors, pixels.starts.len() - full) {
                    (2, 5) => products::<5, 2, i16>(&mut pixels, full, words, bias),
                    (2, 4) => products::<4, 2, i16>(&mut pixels, full, words, bias),
                    (2, 3) => products::<3, 2, i16>(&mut pixels, full, words, bias),
                    (2, 2) => products::<2, 2, i16>(&mut pixels, full, words, bias),
                    (2, 1) => products::<1, 2, i16>(&mut pixels, full, words, bias),
                    (1, 5) => products::<5, 1, i16>(&mut pixels, full, words, bias),
                    (1, 4) => products::<4, 1, i16>(&mut pixels, full, words, bias),
                    (1, 3) => products::<3, 1, i16>(&mut pixels, full, words, bias),
                    (1, 2) => products::<2, 1, i16>(&mut pixels, full, words, bias),
                    (1, 1) => products::<1, 1, i16>(&mut pixels, full, words, bias),
                    (4, 1) => products::<1, 4, i16>(&mut pixels, full, words, bias),
                    _ => {}
                }
            }
            Aligned::Bytes(bytes, skip) => {
                let bytes = &bytes[*skip..][weights_of];
                match panel.vectors {
                    4 => products::<1, 4, i8>(&mut pixels, 0, bytes, bias),
                    2 => products::<1, 2, i8>(&mut pixels, 0, bytes, bias),
                    _ => products::<1, 1, i8>(&mut pixels, 0, bytes, bias),
                }
            }
        }
    }
}

/// Weights as they lie in memory.
trait Element: Copy {
    /// Sixteen of them as 16-bit lanes.
    ///
    /// # Safety
    /// The CPU has AVX2, and `at` points to 16 of them.
    unsafe fn load(at: *const Self) -> __m256i;
}

impl Element for i16 {
    #[inline(always)]
    unsafe fn load(at: *const i16) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(at.cast()) }
    }
}

impl Element for i8 {
    #[inline(always)]
    unsafe fn load(at: *const i8) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())) }
    }
}

/// # Safety
/// `pixels` has P of them from `from` on; each run, from each pixel's start and the channel on, lies
/// in the band, to an even number of elements; `weights` has V vectors for each pair of them; `bias`
/// V vectors; there is room for their sums.
#[target_feature(enable = "avx2")]
unsafe fn products<const P: usize, const V: usize, W: Element>(
    pixels: &mut Pixels,
    from: usize,
    weights: &[W],
    bias: &[i32],
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut acc = [[_mm256_setzero_si256(); V]; P];
        for v in 0..V {
            let start = _mm256_loadu_si256(bias.as_ptr().add(8 * v).cast());
            for p in 0..P {
                acc[p][v] = start;
            }
        }
        let mut at = weights.as_ptr();
        let mut base = [pixels.elements.as_ptr(); P];
        for p in 0..P {
            base[p] = base[p].add(*pixels.starts.get_unchecked(from + p) as usize + pixels.channel);
        }
        for &(offset, len) in pixels.runs {
            for pair in 0..len.div_ceil(2) {
                let mut w = [_mm256_setzero_si256(); V];
                for v in 0..V {
                    w[v] = W::load(at.add(16 * v));
                }
                for p in 0..P {
                    let two = base[p].add(offset + 2 * pair).cast::<i32>().read_unaligned();
                    let two = _mm256_set1_epi32(two);
                    for v in 0..V {
                        acc[p][v] = _mm256_add_epi32(acc[p][v], _mm256_madd_epi16(two, w[v]));
                    }
                }
                at = at.add(16 * V);
            }
        }
        for p in 0..P {
            for v in 0..V {
                _mm256_storeu_si256(pixels.sums.as_mut_ptr().add((from + p) * ROW + 8 * v).cast(), acc[p][v]);
            }
        }
    }
}

/// [`products`] of a full tile, in assembly since compilers keep some sums in memory.
///
/// # Safety
/// As of `products::<6, 2, i16>`.
#[target_feature(enable = "avx2")]
unsafe fn full_tile(pixels: &mut Pixels, from: usize, weights: &[i16], bias: &[i32]) {
    /// Two weights of 16 filters and two elements of six pixels, so many bytes further on.
    macro_rules! pair {
        ($weights:literal, $elements:literal) => {
            concat!(
                "vmovdqu ymm12, [{w} + ",
                $weights,
                "]\n",
                "vmovdqu ymm13, [{w} + ",
                $weights,
                " + 32]\n",
                pair!("ymm0", "ymm1", "{a}", $elements),
                pair!("ymm2", "ymm3", "{b}", $elements),
                pair!("ymm4", "ymm5", "{c}", $elements),
                pair!("ymm6", "ymm7", "{d}", $elements),
                pair!("ymm8", "ymm9", "{e}", $elements),
                pair!("ymm10", "ymm11", "{f}", $elements),
            )
        };
        ($low:literal, $high:literal, $pixel:literal, $elements:literal) => {
            concat!(
                "vpbroadcastd ymm14, dword ptr [",
                $pixel,
                " + {i} + ",
                $elements,
                "]\n",
                "vpmaddwd ymm15, ymm14, ymm12\n",
                "vpmaddwd ymm14, ymm14, ymm13\n",
                "vpaddd ",
                $low,
                ", ",
                $low,
                ", ymm15\n",
                "vpaddd ",
                $high,
                ", ",
                $high,
                ", ymm14\n",
            )
        };
    }
    let mut weights = weights.as_ptr();
    // SAFETY: the caller's promises; the code reads what they name and writes registers alone.
    unsafe {
        let base: [_; MR] = std::array::from_fn(|p| {
            pixels.elements.as_ptr().add(*pixels.starts.get_unchecked(from + p) as usize + pixels.channel)
        });
        let bias = bias.as_ptr().cast::<__m256i>();
        let mut acc = [[_mm256_loadu_si256(bias), _mm256_loadu_si256(bias.add(1))]; MR];
        for &(offset, len) in pixels.runs {
            asm!(
                "sub {end}, 8",
                "jb 3f",
                "2:",
                pair!(0, 0),
                pair!(64, 4),
                "add {w}, 128",
                "add {i}, 8",
                "sub {end}, 8",
                "jae 2b",
                "3:",
                "test {end}, 4",
                "jz 4f",
                pair!(0, 0),
                "add {w}, 64",
                "4:",
                w = inout(reg) weights,
                i = inout(reg) 2 * offset => _,
                end = inout(reg) 4 * len.div_ceil(2) => _,
                a = in(reg) base[0], b = in(reg) base[1], c = in(reg) base[2],
                d = in(reg) base[3], e = in(reg) base[4], f = in(reg) base[5],
                inout("ymm0") acc[0][0], inout("ymm1") acc[0][1], inout("ymm2") acc[1][0], inout("ymm3") acc[1][1],
                inout("ymm4") acc[2][0], inout("ymm5") acc[2][1], inout("ymm6") acc[3][0], inout("ymm7") acc[3][1],
                inout("ymm8") acc[4][0], inout("ymm9") acc[4][1], inout("ymm10") acc[5][0], inout("ymm11") acc[5][1],
                out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                options(nostack, readonly),
            );
        }
        for p in 0..MR {
            let to = pixels.sums.as_mut_ptr().add((from + p) * ROW).cast::<__m256i>();
            _mm256_storeu_si256(to, acc[p][0]);
            _mm256_storeu_si256(to.add(1), acc[p][1]);
        }
    }
}

/// The sums of some pixels and 16 channels from `channel` on.
#[target_feature(enable = "avx2")]
#[inline]
fn depthwise_of(mut pixels: Pixels, band: &Band, taps: &Depthwise, channel: usize, bias: &[i32]) {
    let Aligned::Words(words, skip) = &taps.weights else { return };
    let words = &words[skip + channel * taps.taps.len()..][..16 * taps.taps.len()];
    let bias = &bias[channel..][..16];
    assert!(pixels.reach(band));
    let full = pixels.starts.len() / DEPTHWISE_MR * DEPTHWISE_MR;
    // SAFETY: the slices hold what the products read and write.
    unsafe {
        for from in (0..full).step_by(DEPTHWISE_MR) {
            depthwise::<DEPTHWISE_MR>(&mut pixels, from, &taps.taps, words, bias);
        }
        match pixels.starts.len() - full {
            3 => depthwise::<3>(&mut pixels, full, &taps.taps, words, bias),
            2 => depthwise::<2>(&mut pixels, full, &taps.taps, words, bias),
            1 => depthwise::<1>(&mut pixels, full, &taps.taps, words, bias),
            _ => {}
        }
    }
}

/// # Safety
/// `pixels` has P of them from `from` on, each with 16 elements of each tap in the band; `weights` has
/// 16 for each of an even number of taps, and `bias` has 16; there is room for the sums.
#[target_feature(enable = "avx2")]
unsafe fn depthwise<const P: usize>(pixels: &mut Pixels, from: usize, taps: &[usize], weights: &[i16], bias: &[i32]) {
    // SAFETY: the caller's promises.
    unsafe {
        let (low, high) = (_mm256_loadu_si256(bias.as_ptr().cast()), _mm256_loadu_si256(bias.as_ptr().add(8).cast()));
        // In the order of the lanes: channels 0 to 3 and 8 to 11, then the others.
        let start = [_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)];
        let mut acc = [start; P];
        let mut base = [pixels.elements.as_ptr(); P];
        for p in 0..P {
            base[p] = base[p].add(*pixels.starts.get_unchecked(from + p) as usize);
        }
        let mut at = weights.as_ptr().cast::<__m256i>();
        for two in taps.chunks_exact(2) {
            let (w0, w1) = (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1)));
            for p in 0..P {
                let first = _mm256_loadu_si256(base[p].add(two[0]).cast());
                let second = _mm256_loadu_si256(base[p].add(two[1]).cast());
                let (low, high) = (_mm256_unpacklo_epi16(first, second), _mm256_unpackhi_epi16(first, second));
                acc[p][0] = _mm256_add_epi32(acc[p][0], _mm256_madd_epi16(low, w0));
                acc[p][1] = _mm256_add_epi32(acc[p][1], _mm256_madd_epi16(high, w1));
            }
            at = at.add(2);
        }
        for p in 0..P {
            let to = pixels.sums.as_mut_ptr().add((from + p) * ROW).cast::<__m256i>();
            _mm256_storeu_si256(to, _mm256_permute2x128_si256(acc[p][0], acc[p][1], 0x20));
            _mm256_storeu_si256(to.add(1), _mm256_permute2x128_si256(acc[p][0], acc[p][1], 0x31));
        }
    }
}

/// Finishes a tile's sums: `count` filters from `filter` on, of `rows` pixels from `pixel` on.
#[target_feature(enable = "avx2")]
#[inline]
fn finish(conv: &Conv2d, sums: &[i32], rows: usize, pixel: usize, filter: usize, count: usize, out: &mut Out) {
    let filters = conv.out[2];
    let first = pixel * filters + filter;
    let end = first + (rows - 1) * filters + count;
    match (&conv.finish.to, out) {
        (To::Codes(requantize), Out::Codes(codes, other)) => {
            assert!(rows * ROW <= sums.len() && (rows == 1 || count <= ROW) && end <= codes.len());
            assert!(count <= sums.len() && other.is_none_or(|other| end <= other.len()));
            let tile = Tile { sums, rows, first, filters, filter, count, other: *other, requantize };
            match &requantize.rule {
                Rule::Float32(multiplier) => codes_of::<Float32>(&tile, multiplier, codes),
                Rule::FixedPoint(all) => codes_of::<FixedPoint>(&tile, all, codes),
                Rule::PowerOfTwo(shift) => codes_of::<PowerOfTwo>(&tile, shift, codes),
            }
        }
        (To::Floats(multiplier), Out::Floats(floats)) => {
            for (row, sums) in sums.chunks_exact(ROW).take(rows).enumerate() {
                let all = sums.iter().zip(&multiplier[filter..]);
                for (to, (&sum, m)) in floats[first + row * filters..][..count].iter_mut().zip(all) {
                    *to = sum as f32 * m;
                }
            }
        }
        (_, Out::Sums(to)) => {
            for (row, sums) in sums.chunks_exact(ROW).take(rows).enumerate() {
                to[first + row * filters..][..count].copy_from_slice(&sums[..count]);
            }
        }
        _ => {}
    }
}

/// Sums that become codes.
struct Tile<'a> {
    sums: &'a [i32],
    rows: usize,
    /// Where the first pixel's first code is; `filters` from pixel to pixel.
    first: usize,
    filters: usize,
    filter: usize,
    count: usize,
    other: Option<&'a [u8]>,
    requantize: &'a Requantize,
}

/// Sixteen filters at a time: what belongs to a filter is loaded once for all rows.
#[target_feature(enable = "avx2")]
fn codes_of<R: Round>(tile: &Tile, rule: &[R::Of], codes: &mut [u8]) {
    let Requantize { zero_point, qmin, qmax, ref add, .. } = *tile.requantize;
    let (low, high) = (_mm256_set1_epi32(qmin - zero_point), _mm256_set1_epi32(qmax - zero_point));
    let zero_point = _mm256_set1_epi32(zero_point);
    for column in (0..tile.count).step_by(16) {
        let count = (tile.count - column).min(16);
        let filter = tile.filter + column;
        // What is one for each filter is padded by more than a panel.
        let round: [R; 2] = [0, 8].map(|half| R::new(rule[filter + half..].first_chunk::<8>().unwrap_or(&R::NONE)));
        let first = tile.first + column;
        for row in 0..tile.rows {
            // SAFETY: `finish` has checked that the tile's last row ends within codes and others.
            let (sums, to, other) = unsafe {
                let at = first + row * tile.filters;
                let other = tile.other.map(|other| other.as_ptr().add(at));
                (tile.sums.as_ptr().add(row * ROW + column), codes.as_mut_ptr().add(at), other)
            };
            let mut of = [_mm256_setzero_si256(); 2];
            for half in 0..2 {
                // SAFETY: eight of a row's sums.
                let sums = unsafe { _mm256_loadu_si256(sums.add(8 * half).cast()) };
                let inside = _mm256_max_epi32(round[half].of(sums, high), low);
                of[half] = _mm256_add_epi32(inside, zero_point);
            }
            if let (Some(add), Some(other)) = (add, other) {
                let mut copy = [0; 16];
                // SAFETY: `count` codes, which are 16 or are copied.
                let others = unsafe {
                    if count == 16 {
                        &*other.cast()
                    } else {
                        copy[..count].copy_from_slice(std::slice::from_raw_parts(other, count));
                        &copy
                    }
                };
                let others = halves(others, add.signed);
                of = [added(add, of[0], others[0]), added(add, of[1], others[1])];
            }
            let bytes = narrowed(of);
            // SAFETY: `count` codes: all of the vector's, half of them, or what is copied.
            unsafe {
                match count {
                    16 => _mm_storeu_si128(to.cast(), bytes),
                    8 => _mm_storel_epi64(to.cast(), bytes),
                    _ => {
                        let mut copy = [0u8; 16];
                        _mm_storeu_si128(copy.as_mut_ptr().cast(), bytes);
                        for (i, code) in copy.into_iter().enumerate().take(count) {
                            *to.add(i) = code;
                        }
                    }
                }
            }
        }
    }
}

/// A rounding rule for eight filters: the integer of each sum, at most `high`.
trait Round: Copy {
    type Of: Copy;
    const NONE: [Self::Of; 8];
    fn new(of: &[Self::Of; 8]) -> Self;
    fn of(self, sums: __m256i, high: __m256i) -> __m256i;
}

#[derive(Clone, Copy)]
struct Float32(__m256);

impl Round for Float32 {
    type Of = f32;
    const NONE: [f32; 8] = [0.0; 8];

    #[inline(always)]
    fn new(multiplier: &[f32; 8]) -> Self {
        // SAFETY: eight numbers; its callers have AVX2.
        Float32(unsafe { _mm256_loadu_ps(multiplier.as_ptr()) })
    }

    #[inline(always)]
    fn of(self, sums: __m256i, high: __m256i) -> __m256i {
        // SAFETY: its callers have AVX2.
        unsafe {
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), self.0);
            // A number too small converts to the least integer; one too large would too.
            _mm256_cvtps_epi32(_mm256_min_ps(scaled, _mm256_cvtepi32_ps(high)))
        }
    }
}

#[derive(Clone, Copy)]
struct FixedPoint {
    multiplier: __m256i,
    shift: __m256i,
}

impl Round for FixedPoint {
    type Of = (i32, i32);
    const NONE: [(i32, i32); 8] = [(0, 0); 8];

    #[inline(always)]
    fn new(of: &[(i32, i32); 8]) -> Self {
        let (multiplier, shift) = (of.map(|of| of.0), of.map(|of| of.1));
        // SAFETY: eight numbers each; its callers have AVX2.
        unsafe {
            let load = |of: &[i32; 8]| _mm256_loadu_si256(of.as_ptr().cast());
            FixedPoint { multiplier: load(&multiplier), shift: load(&shift) }
        }
    }

    #[inline(always)]
    fn of(self, sums: __m256i, high: __m256i) -> __m256i {
        // SAFETY: its callers have AVX2.
        unsafe { _mm256_min_epi32(fixed_point(sums, self.multiplier, self.shift), high) }
    }
}

#[derive(Clone, Copy)]
struct PowerOfTwo(__m256i);

impl Round for PowerOfTwo {
    type Of = i32;
    const NONE: [i32; 8] = [0; 8];

    #[inline(always)]
    fn new(shift: &[i32; 8]) -> Self {
        // SAFETY: eight numbers; its callers have AVX2.
        PowerOfTwo(unsafe { _mm256_loadu_si256(shift.as_ptr().cast()) })
    }

    #[inline(always)]
    fn of(self, sums: __m256i, high: __m256i) -> __m256i {
        // SAFETY: its callers have AVX2.
        unsafe { _mm256_min_epi32(power_of_two(sums, self.0), high) }
    }
}

/// See [`Rule::FixedPoint`].
#[target_feature(enable = "avx2")]
#[inline]
fn fixed_point(sums: __m256i, multiplier: __m256i, shift: __m256i) -> __m256i {
    let zero = _mm256_setzero_si256();
    let left = _mm256_max_epi32(shift, zero);
    let right = _mm256_max_epi32(_mm256_sub_epi32(zero, shift), zero);
    let sums = _mm256_sllv_epi32(sums, left);
    let half = _mm256_set1_epi64x(1 << 30);
    // Bits 31 to 62 of the products, of even and of odd lanes.
    let even = _mm256_srli_epi64(_mm256_add_epi64(_mm256_mul_epi32(sums, multiplier), half), 31);
    let odd = _mm256_mul_epi32(_mm256_srli_epi64(sums, 32), _mm256_srli_epi64(multiplier, 32));
    let odd = _mm256_slli_epi64(_mm256_add_epi64(odd, half), 1);
    let high = _mm256_blend_epi32(even, odd, 0b1010_1010);
    let ones = _mm256_set1_epi32(1);
    let mask = _mm256_sub_epi32(_mm256_sllv_epi32(ones, right), ones);
    let below = _mm256_srli_epi32(high, 31);
    let threshold = _mm256_add_epi32(_mm256_srli_epi32(mask, 1), below);
    let up = _mm256_cmpgt_epi32(_mm256_and_si256(high, mask), threshold);
    _mm256_sub_epi32(_mm256_srav_epi32(high, right), up)
}

/// See [`Rule::PowerOfTwo`].
#[target_feature(enable = "avx2")]
#[inline]
fn power_of_two(sums: __m256i, shift: __m256i) -> __m256i {
    let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi32(1));
    let right = _mm256_sub_epi32(zero, shift);
    // One more bit than is kept, and that one rounds.
    let kept = _mm256_srav_epi32(sums, _mm256_sub_epi32(right, ones));
    let down = _mm256_add_epi32(_mm256_srai_epi32(kept, 1), _mm256_and_si256(kept, ones));
    // What is shifted left and overflows is far beyond any code, on the same side.
    let up = _mm256_sllv_epi32(sums, shift);
    let back = _mm256_cmpeq_epi32(_mm256_srav_epi32(up, shift), sums);
    let far = _mm256_xor_si256(_mm256_srai_epi32(sums, 31), _mm256_set1_epi32(i32::MAX));
    let up = _mm256_blendv_epi8(far, up, back);
    _mm256_blendv_epi8(up, down, _mm256_cmpgt_epi32(right, zero))
}

/// [`AddCodes::of`].
#[target_feature(enable = "avx2")]
#[inline]
fn added(add: &AddCodes, a: __m256i, b: __m256i) -> __m256i {
    let a = _mm256_mullo_epi32(a, _mm256_set1_epi32(add.a_multiplier));
    let b = _mm256_mullo_epi32(b, _mm256_set1_epi32(add.b_multiplier));
    let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_set1_epi32(add.bias));
    let code = _mm256_sra_epi32(sum, _mm_cvtsi32_si128(add.shift as i32));
    let code = _mm256_add_epi32(code, _mm256_set1_epi32(add.zero_point));
    _mm256_max_epi32(_mm256_min_epi32(code, _mm256_set1_epi32(add.qmax)), _mm256_set1_epi32(add.qmin))
}

/// [`super::add`], of a multiple of 16 codes; returns how many.
pub(super) fn add(isa: Isa, a: &[u8], b: &[u8], how: &Add, out: &mut [u8]) -> usize {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { avx2(a, b, how, out) };
    return out.len() / 16 * 16;

    #[target_feature(enable = "avx2")]
    fn avx2(a: &[u8], b: &[u8], how: &Add, out: &mut [u8]) {
        let all = a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0);
        for ((a, b), out) in all.zip(out.as_chunks_mut::<16>().0) {
            let (a, b) = (halves(a, how.signed), halves(b, how.codes.signed));
            let codes = [added(&how.codes, a[0], b[0]), added(&how.codes, a[1], b[1])];
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), narrowed(codes)) };
        }
    }
}

/// [`super::pool::average`].
pub(super) fn average(
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
        pool::average(x, window, size, kind, bounds, out);
    }
}

/// [`super::pool::maximum`].
pub(super) fn maximum(
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

/// [`super::simple::quantize_all`].
pub(super) fn quantize(isa: Isa, x: &[f32], scale: f32, kind: Kind, out: &mut [u8]) {
    assert!(isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    return unsafe { avx2(x, scale, kind, out) };

    #[target_feature(enable = "avx2")]
    fn avx2(x: &[f32], scale: f32, kind: Kind, out: &mut [u8]) {
        simple::quantize_all(x, scale, kind, out);
    }
}

/// Sixteen codes, as 32-bit lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn halves(bytes: &[u8; 16], signed: bool) -> [__m256i; 2] {
    // SAFETY: 16 bytes.
    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let upper = _mm_srli_si128(bytes, 8);
    if signed {
        [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(upper)]
    } else {
        [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(upper)]
    }
}

/// Sixteen codes, as bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn narrowed(halves: [__m256i; 2]) -> __m128i {
    let words = _mm256_permute4x64_epi64(_mm256_packs_epi32(halves[0], halves[1]), 0b11_01_10_00);
    let words = _mm256_and_si256(words, _mm256_set1_epi16(0xff));
    _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1))
}
