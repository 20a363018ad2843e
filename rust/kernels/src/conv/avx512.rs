//! AVX-512 VNNI: `vpdpbusd`, four products of bytes a lane.
//!
//! A tile is 6 pixels by 64 filters, or more pixels by fewer filters: up to 24
//! accumulators, over a whole window. Panels stream from L2 through each tile,
//! and tiles of a panel are as even as they can be, since one of few pixels
//! takes as long to read the weights as one of many.

use std::arch::x86_64::*;

use super::avx2::{ROW, finish};
use super::filter::Panel;
use super::quads::{LANES, Quads, VECTOR};
use super::{Conv2d, Out};

/// Pixels of a tile, at most, by its vectors of filters.
const PIXELS: [usize; 5] = [0, 12, 12, 8, 6];
/// Pixels that are finished at a time: whole tiles.
const BLOCK: usize = 24;

/// Sums of a block, vector after vector, each in rows of 16 filters.
#[repr(align(64))]
struct Sums([i32; 4 * BLOCK * ROW]);

/// What products read: pixels of a band.
struct Pixels<'a> {
    bytes: &'a [u8],
    starts: &'a [u32],
    /// The first of the channels.
    channel: usize,
    runs: &'a [(usize, usize)],
}

/// A convolution.
pub(super) fn run(conv: &Conv2d, quads: &Quads, x: &[u8], mut out: Out, scratch: &mut [i16]) {
    assert!(conv.isa.has_avx512());
    // SAFETY: an `Isa` that has AVX-512 exists only where the CPU has it.
    unsafe { avx512(conv, quads, x, &mut out, bytemuck::cast_slice_mut(scratch)) };

    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn avx512(conv: &Conv2d, quads: &Quads, x: &[u8], out: &mut Out, scratch: &mut [u8]) {
        let mut sums = Sums([0; _]);
        let (Conv2d { out: [height, width, _], .. }, band) = (conv, &quads.band);
        let flip = Quads::flip(conv.input);
        for row in (0..*height).step_by(band.rows) {
            let rows = band.rows.min(height - row);
            let bytes = if quads.in_image {
                &x[band.offset(row)..]
            } else {
                let zero = Quads::zero_point(conv.input) as u8;
                band.fill(&conv.shape, row, rows, x, scratch, zero, |x, to| {
                    to.iter_mut().zip(x).for_each(|(to, &x)| *to = x ^ flip);
                });
                &*scratch
            };
            let starts = &band.starts[..rows * width];
            for panel in &quads.panels {
                let pixels = Pixels { bytes, starts, channel: panel.channel, runs: &band.runs };
                let weights = quads.weights.at(panel.at, band.steps * panel.vectors * VECTOR);
                of_panel(conv, panel, &pixels, band.reach, weights, row * width, &mut sums, out);
            }
        }
    }
}

/// The sums of a band's pixels, of which the first is `pixel`, and one panel, finished. Their starts ascend.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn of_panel(
    conv: &Conv2d,
    panel: &Panel,
    pixels: &Pixels,
    reach: usize,
    weights: &[i8],
    pixel: usize,
    sums: &mut Sums,
    out: &mut Out,
) {
    let Panel { vectors, filter, .. } = *panel;
    let bias = &conv.finish.bias[filter..][..vectors * LANES];
    let furthest = pixels.starts.last().map_or(0, |&start| start as usize);
    assert!(furthest + pixels.channel + reach <= pixels.bytes.len());
    let steps = pixels.runs.iter().map(|&(_, len)| len.div_ceil(4)).sum::<usize>();
    assert!(steps * vectors * VECTOR <= weights.len() && (1..=4).contains(&vectors));
    let count = pixels.starts.len();
    let tiles = count.div_ceil(PIXELS[vectors]);
    let (mut done, mut next) = (0, 0);
    for tile in 0..tiles {
        let end = (tile + 1) * count / tiles;
        // SAFETY: at most so many pixels are a tile, and blocks hold whole tiles; the assertions above.
        unsafe {
            tile_of(vectors, end - next, pixels, next, weights, bias, sums.0.as_mut_ptr().add((next - done) * ROW))
        };
        next = end;
        if next - done + PIXELS[vectors] > BLOCK || next == count {
            for v in 0..vectors {
                let (sums, filters) = (&sums.0[v * BLOCK * ROW..], (panel.count - v * LANES).min(LANES));
                finish(&conv.finish, conv.out[2], sums, next - done, pixel + done, filter + v * LANES, filters, out);
            }
            done = next;
        }
    }
}

/// # Safety
/// `vectors` and `count` are a tile's, and as of [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile_of(
    vectors: usize,
    count: usize,
    pixels: &Pixels,
    from: usize,
    weights: &[i8],
    bias: &[i32],
    sums: *mut i32,
) {
    macro_rules! tiles {
        ($($v:literal: $($p:literal)*;)*) => {
            // SAFETY: the caller's promises.
            unsafe {
                match (vectors, count) {
                    $($(($v, $p) => tile::<$p, $v>(pixels, from, weights, bias, sums),)*)*
                    _ => unreachable!("{count} pixels of {vectors} vectors"),
                }
            }
        };
    }
    tiles! {
        4: 6 5 4 3 2 1;
        3: 8 7 6 5 4 3 2 1;
        2: 12 11 10 9 8 7 6 5 4 3 2 1;
        1: 12 11 10 9 8 7 6 5 4 3 2 1;
    }
}

/// The sums of P pixels and V vectors of filters, from `bias` on.
///
/// # Safety
/// `pixels` has P of them from `from` on; each run, from each pixel's start and the channel on, lies in the
/// bytes, to a multiple of four; `weights` has V vectors for each four of them; `bias` V vectors; `sums`
/// has room for P rows, V times, a block apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const P: usize, const V: usize>(
    pixels: &Pixels,
    from: usize,
    weights: &[i8],
    bias: &[i32],
    sums: *mut i32,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); V]; P];
        for v in 0..V {
            let start = _mm512_loadu_si512(bias.as_ptr().add(LANES * v).cast());
            for p in 0..P {
                acc[p][v] = start;
            }
        }
        let mut base = [pixels.bytes.as_ptr(); P];
        for p in 0..P {
            base[p] = base[p].add(*pixels.starts.get_unchecked(from + p) as usize + pixels.channel);
        }
        let mut at = weights.as_ptr();
        for &(offset, len) in pixels.runs {
            // Pointers and this index wrap where sums of `usize` would be checked.
            let mut i = offset;
            let end = offset.wrapping_add(len);
            while i < end {
                let mut w = [_mm512_setzero_si512(); V];
                for v in 0..V {
                    w[v] = _mm512_load_si512(at.add(VECTOR * v).cast());
                }
                for p in 0..P {
                    let four = _mm512_set1_epi32(base[p].add(i).cast::<i32>().read_unaligned());
                    for v in 0..V {
                        acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], four, w[v]);
                    }
                }
                at = at.add(VECTOR * V);
                i = i.wrapping_add(4);
            }
        }
        for p in 0..P {
            for v in 0..V {
                _mm512_store_si512(sums.add((v * BLOCK + p) * ROW).cast(), acc[p][v]);
            }
        }
    }
}
