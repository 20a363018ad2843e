//! AVX2: `vpmaddwd`, two products of 16-bit values a lane.
//!
//! A tile is 6 pixels by 16 filters: twelve accumulators, two vectors of
//! weights, and one pair of a pixel's elements, broadcast from where it lies in
//! the band.

mod depthwise;
mod finish;
mod simple;
mod vector;
mod winograd;

use std::arch::asm;
use std::arch::x86_64::*;

use super::band;
use super::filter::Tiled;
use super::{Conv2d, Kind, Out};

pub(super) use depthwise::run as run_depthwise;
pub(super) use finish::finish;
pub(super) use simple::{add, average, maximum, multiply, quantize};
pub(super) use vector::run as run_vector;
pub(super) use winograd::run as run_winograd;

/// Pixels of a tile.
const MR: usize = 6;
/// Pixels that are finished at a time: whole tiles.
const BLOCK: usize = 48;
/// Sums from one pixel to the next; of one pixel alone there may be more.
pub(super) const ROW: usize = 16;

/// What products read and write: pixels of a filled band.
struct Pixels<'a> {
    elements: &'a [i16],
    starts: &'a [u32],
    /// The first of the channels.
    channel: usize,
    runs: &'a [(usize, usize)],
    /// Elements that a window reaches over.
    reach: usize,
    sums: &'a mut [i32],
}

/// A convolution.
pub(super) fn run(conv: &Conv2d, tiled: &Tiled, x: &[u8], mut out: Out, scratch: &mut [i16]) {
    assert!(conv.isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { avx2(conv, tiled, x, &mut out, scratch) };

    #[target_feature(enable = "avx2")]
    fn avx2(conv: &Conv2d, tiled: &Tiled, x: &[u8], out: &mut Out, scratch: &mut [i16]) {
        let mut sums = [0; BLOCK * ROW];
        let (Conv2d { out: [height, width, _], .. }, band) = (conv, &tiled.band);
        for row in (0..*height).step_by(band.rows) {
            let rows = band.rows.min(height - row);
            let elements = band.fill(&conv.shape, row, rows, x, scratch, 0, |x, to| widen(conv.input, x, to));
            let starts = &band.starts[..rows * width];
            for panel in &tiled.panels {
                for (block, starts) in starts.chunks(BLOCK).enumerate() {
                    let channel = panel.channel;
                    let (runs, reach, sums_of) = (&band.runs, band.reach, &mut sums[..]);
                    let pixels = Pixels { elements, starts, channel, runs, reach, sums: sums_of };
                    let weights = tiled.weights.at(panel.at, band.steps * panel.vectors * 16);
                    products_of(pixels, panel.vectors, weights, &conv.finish.bias[panel.filter..]);
                    let pixel = row * width + block * BLOCK;
                    finish(&conv.finish, conv.out[2], &sums, starts.len(), pixel, panel.filter, panel.count, out);
                }
            }
        }
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

/// The sums of some pixels and one panel, from `bias` on. Their starts ascend.
#[target_feature(enable = "avx2")]
#[inline]
fn products_of(mut pixels: Pixels, vectors: usize, weights: &[i16], bias: &[i32]) {
    let bias = &bias[..8 * vectors];
    let furthest = pixels.starts.last().map_or(0, |&start| start as usize);
    assert!(furthest + pixels.channel + pixels.reach <= pixels.elements.len());
    assert!(pixels.starts.len() * ROW <= pixels.sums.len());
    let pairs = pixels.runs.iter().map(|&(_, len)| len.div_ceil(2)).sum::<usize>();
    assert!(pairs * vectors * 16 <= weights.len());
    let full = pixels.starts.len() / MR * MR;
    // SAFETY: the slices hold what the products read and write.
    unsafe {
        for from in (0..full).step_by(MR) {
            if vectors == 2 {
                full_tile(&mut pixels, from, weights, bias);
            } else {
                products::<MR, 1>(&mut pixels, from, weights, bias);
            }
        }
        match (vectors, pixels.starts.len() - full) {
            (2, 5) => products::<5, 2>(&mut pixels, full, weights, bias),
            (2, 4) => products::<4, 2>(&mut pixels, full, weights, bias),
            (2, 3) => products::<3, 2>(&mut pixels, full, weights, bias),
            (2, 2) => products::<2, 2>(&mut pixels, full, weights, bias),
            (2, 1) => products::<1, 2>(&mut pixels, full, weights, bias),
            (1, 5) => products::<5, 1>(&mut pixels, full, weights, bias),
            (1, 4) => products::<4, 1>(&mut pixels, full, weights, bias),
            (1, 3) => products::<3, 1>(&mut pixels, full, weights, bias),
            (1, 2) => products::<2, 1>(&mut pixels, full, weights, bias),
            (1, 1) => products::<1, 1>(&mut pixels, full, weights, bias),
            _ => {}
        }
    }
}

/// # Safety
/// `pixels` has P of them from `from` on; each run, from each pixel's start and the channel on, lies
/// in the band, to an even number of elements; `weights` has V vectors for each pair of them; `bias`
/// V vectors; there is room for their sums.
#[target_feature(enable = "avx2")]
unsafe fn products<const P: usize, const V: usize>(pixels: &mut Pixels, from: usize, weights: &[i16], bias: &[i32]) {
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
            // Pointers and this index wrap where sums of `usize` would be checked.
            let mut i = offset;
            for _ in 0..len.div_ceil(2) {
                let mut w = [_mm256_setzero_si256(); V];
                for v in 0..V {
                    w[v] = _mm256_loadu_si256(at.add(16 * v).cast());
                }
                for p in 0..P {
                    let two = base[p].add(i).cast::<i32>().read_unaligned();
                    let two = _mm256_set1_epi32(two);
                    for v in 0..V {
                        acc[p][v] = _mm256_add_epi32(acc[p][v], _mm256_madd_epi16(two, w[v]));
                    }
                }
                at = at.add(16 * V);
                i = i.wrapping_add(2);
            }
        }
        for p in 0..P {
            for v in 0..V {
                _mm256_storeu_si256(pixels.sums.as_mut_ptr().add((from + p) * ROW + 8 * v).cast(), acc[p][v]);
            }
        }
    }
}

/// [`products`] of a full tile.
///
/// # Safety
/// As of `products::<6, 2>`.
#[target_feature(enable = "avx2")]
unsafe fn full_tile(pixels: &mut Pixels, from: usize, weights: &[i16], bias: &[i32]) {
    // SAFETY: the caller's promises.
    unsafe {
        let base = std::array::from_fn(|p| {
            pixels.elements.as_ptr().add(*pixels.starts.get_unchecked(from + p) as usize + pixels.channel)
        });
        let bias = bias.as_ptr().cast::<__m256i>();
        let mut acc = [[_mm256_loadu_si256(bias), _mm256_loadu_si256(bias.add(1))]; MR];
        let mut weights = weights.as_ptr();
        for &(offset, len) in pixels.runs {
            weights = run_of_tile(&mut acc, &base, offset, len.div_ceil(2), weights);
        }
        store_tile(&acc, pixels.sums.as_mut_ptr().add(from * ROW));
    }
}

/// # Safety
/// There is room for 6 rows of sums.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store_tile(acc: &[[__m256i; 2]; MR], sums: *mut i32) {
    for p in 0..MR {
        // SAFETY: the caller's promise.
        unsafe {
            let to = sums.add(p * ROW).cast::<__m256i>();
            _mm256_storeu_si256(to, acc[p][0]);
            _mm256_storeu_si256(to.add(1), acc[p][1]);
        }
    }
}

/// One run of six pixels and 16 filters, in assembly since compilers keep some sums in memory.
/// Returns where the next run's weights are.
///
/// # Safety
/// `pairs` pairs from each base and `offset` on are readable, as are 32 weights for each pair.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn run_of_tile(
    acc: &mut [[__m256i; 2]; MR],
    base: &[*const i16; MR],
    offset: usize,
    pairs: usize,
    mut weights: *const i16,
) -> *const i16 {
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
    // SAFETY: the caller's promises; the code reads what they name and writes registers alone.
    unsafe {
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
            end = inout(reg) 4 * pairs => _,
            a = in(reg) base[0], b = in(reg) base[1], c = in(reg) base[2],
            d = in(reg) base[3], e = in(reg) base[4], f = in(reg) base[5],
            inout("ymm0") acc[0][0], inout("ymm1") acc[0][1], inout("ymm2") acc[1][0], inout("ymm3") acc[1][1],
            inout("ymm4") acc[2][0], inout("ymm5") acc[2][1], inout("ymm6") acc[3][0], inout("ymm7") acc[3][1],
            inout("ymm8") acc[4][0], inout("ymm9") acc[4][1], inout("ymm10") acc[5][0], inout("ymm11") acc[5][1],
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack, readonly),
        );
    }
    weights
}
