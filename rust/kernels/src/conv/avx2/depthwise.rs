//! Depthwise tiles: 8 vectors of a row, half of the channels at a time. What
//! `vpmaddwd` multiplies lies side by side in the band, and is loaded once for
//! all the windows that see it.

use std::arch::x86_64::*;

use super::super::depthwise::{self, Element};
use super::super::finish::{Finish, Requantize, Rule};
use super::super::{Conv2d, Out, To};
use super::finish::finish;
use super::{BLOCK, MR, ROW};

type Depthwise = depthwise::Depthwise<i16>;

const LANES: usize = <i16 as Element>::LANES;
const ENTRY: usize = <i16 as Element>::ENTRY;
/// Rows of fewer vectors are taken one after the other, as if they were one.
const NARROW: usize = <i16 as Element>::FEW;

/// A depthwise convolution.
pub(in super::super) fn run(conv: &Conv2d, depthwise: &Depthwise, x: &[u8], mut out: Out, scratch: &mut [i16]) {
    assert!(conv.isa.has_avx2());
    // SAFETY: an `Isa` that has AVX2 exists only where the CPU has it.
    unsafe { avx2(conv, depthwise, x, &mut out, scratch) };

    #[target_feature(enable = "avx2")]
    fn avx2(conv: &Conv2d, depthwise: &Depthwise, x: &[u8], out: &mut Out, scratch: &mut [i16]) {
        let mut sums = [0; BLOCK * ROW];
        let height = conv.out[0];
        let Depthwise { rows, width, fold, .. } = *depthwise;
        let lanes = fold * conv.shape.input[2];
        // Whole rows are finished together where they are short, parts of them where they are long.
        let (block_rows, block_width) = if width <= BLOCK { (BLOCK / width, width) } else { (1, BLOCK) };
        for row in (0..height).step_by(rows) {
            let rows = rows.min(height - row);
            for lane in (0..lanes).step_by(LANES) {
                if conv.input.signed {
                    fill::<true>(conv, depthwise, row, rows, lane, x, scratch);
                } else {
                    fill::<false>(conv, depthwise, row, rows, lane, x, scratch);
                }
                let windows = |row| Windows::new(depthwise, scratch, lane, row, &conv.finish.bias);
                let count = (lanes - lane).min(LANES);
                if width < NARROW {
                    for first in (0..rows * width).step_by(BLOCK) {
                        let vectors = (rows * width - first).min(BLOCK);
                        windows(0).apart(first, &mut sums[..vectors * ROW]);
                        finish(&conv.finish, lanes, &sums, vectors, row * width + first, lane, count, out);
                    }
                    continue;
                }
                if let (Some(rounding), Out::Codes(codes, _), LANES) =
                    (Rounding::of(&conv.finish, lane), &mut *out, count)
                {
                    for i in 0..rows {
                        let at = (row + i) * width * lanes + lane;
                        windows(i).rounded_row(depthwise.start(i, 0), &rounding, lanes, &mut codes[at..]);
                    }
                    continue;
                }
                for first in (0..rows).step_by(block_rows) {
                    for column in (0..width).step_by(block_width) {
                        let (rows, columns) = (block_rows.min(rows - first), block_width.min(width - column));
                        for (i, sums) in sums.chunks_exact_mut(columns * ROW).take(rows).enumerate() {
                            windows(first + i).of_row(depthwise.start(first + i, column), sums);
                        }
                        let vector = (row + first) * width + column;
                        finish(&conv.finish, lanes, &sums, rows * columns, vector, lane, count, out);
                    }
                }
            }
        }
    }
}

/// Makes the entries of a band from output row `first` on, of 16 channels from `lane` on. Lanes
/// beyond a pixel's channels hold something that weights of 0 multiply.
#[target_feature(enable = "avx2")]
fn fill<const SIGNED: bool>(
    conv: &Conv2d,
    depthwise: &Depthwise,
    first: usize,
    rows: usize,
    lane: usize,
    x: &[u8],
    scratch: &mut [i16],
) {
    let [height, width, channels] = conv.shape.input;
    let [above, left] = [conv.shape.padding[0][0], conv.shape.padding[1][0]];
    let Depthwise { columns, step, .. } = *depthwise;
    let length = width * channels;
    let zero = conv.input.zero_point as u8;
    let image_row = |row: usize| match row.checked_sub(above) {
        Some(row) if row < height => Some(&x[row * length..][..length]),
        _ => None,
    };
    // The columns of which both vectors' 16 bytes all lie in the image's rows.
    let across = depthwise.apart[1];
    let inside = match length.checked_sub(lane + LANES) {
        Some(more) => left..(left + more / channels + 1).saturating_sub(across).min(columns),
        None => 0..0,
    };
    let inside = if inside.is_empty() { 0..0 } else { inside };
    let count = depthwise.entry_rows(rows);
    for (i, entries) in scratch.chunks_exact_mut(columns * ENTRY).take(count).enumerate() {
        let row = first * conv.shape.stride[0] + i * step;
        let pair = [image_row(row), image_row(row + depthwise.apart[0])];
        let (entries, _) = entries.as_chunks_mut::<ENTRY>();
        for column in (0..inside.start).chain(inside.end..columns) {
            let at = |column: usize| (column * channels + lane) as isize - (left * channels) as isize;
            let upper = at_border(pair[0].unwrap_or(&[]), at(column), zero);
            let lower = at_border(pair[1].unwrap_or(&[]), at(column + across), zero);
            // SAFETY: 16 bytes each.
            unsafe { entry::<SIGNED>(upper.as_ptr(), lower.as_ptr(), &mut entries[column]) };
        }
        let Some(entries) = entries.get_mut(inside.clone()).filter(|entries| !entries.is_empty()) else { continue };
        // A row that is not there is one pixel of zeros, again and again.
        let border = [zero; LANES];
        let from = lane + (inside.start - left) * channels;
        let at = |row: Option<&[u8]>, from: usize| match row {
            Some(row) => (row[from..].as_ptr(), channels),
            None => (border.as_ptr(), 0),
        };
        let (upper, lower) = (at(pair[0], from), at(pair[1], from + across * channels));
        for (j, to) in entries.iter_mut().enumerate() {
            // SAFETY: `inside` ends where 16 bytes of either no longer lie in the row.
            unsafe {
                let at = |(row, stride): (*const u8, usize)| row.add(j.wrapping_mul(stride));
                entry::<SIGNED>(at(upper), at(lower), to);
            }
        }
    }
}

/// Sixteen bytes of a row, the code of 0 where it has none.
fn at_border(row: &[u8], at: isize, zero: u8) -> [u8; LANES] {
    let mut bytes = [zero; LANES];
    let (before, from) = ((-at).max(0) as usize, at.max(0) as usize);
    if let Some(row) = row.get(from..) {
        let count = row.len().min(LANES.saturating_sub(before));
        bytes[before.min(LANES)..][..count].copy_from_slice(&row[..count]);
    }
    bytes
}

/// Two rows' codes side by side.
///
/// # Safety
/// Both point to 16 bytes.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn entry<const SIGNED: bool>(upper: *const u8, lower: *const u8, to: &mut [i16; ENTRY]) {
    // SAFETY: the caller's promise; `to` is two vectors.
    unsafe {
        let wide = |at: *const u8| {
            let bytes = _mm_loadu_si128(at.cast());
            if SIGNED { _mm256_cvtepi8_epi16(bytes) } else { _mm256_cvtepu8_epi16(bytes) }
        };
        let (upper, lower) = (wide(upper), wide(lower));
        let to = to.as_mut_ptr().cast::<__m256i>();
        _mm256_storeu_si256(to, _mm256_unpacklo_epi16(upper, lower));
        _mm256_storeu_si256(to.add(1), _mm256_unpackhi_epi16(upper, lower));
    }
}

/// Windows of a filled band, of 16 channels: those of one phase.
struct Windows<'a> {
    depthwise: &'a Depthwise,
    band: &'a [i16],
    weights: &'a [i16],
    bias: &'a [i32],
}

impl<'a> Windows<'a> {
    fn new(depthwise: &'a Depthwise, band: &'a [i16], lane: usize, row: usize, bias: &'a [i32]) -> Self {
        Windows { depthwise, band, weights: depthwise.weights(lane, row), bias: &bias[lane..][..LANES] }
    }

    /// Panics unless the window that begins at `last` is within the band.
    fn reach(&self, last: usize) {
        let furthest = self.depthwise.taps.last().map_or(0, |&tap| tap);
        assert!(last + furthest + ENTRY <= self.band.len());
        assert!(self.weights.len() == self.depthwise.taps.len() * ENTRY && self.bias.len() == LANES);
    }

    /// The sums of windows side by side, the first beginning at `start`.
    #[target_feature(enable = "avx2")]
    fn of_row(&self, start: usize, sums: &mut [i32]) {
        match (self.depthwise.kernel_width, self.depthwise.entry_step, self.depthwise.tap_step) {
            (1, 1, _) => self.all::<1, 1>(start, sums),
            (1, 2, _) => self.all::<1, 2>(start, sums),
            (3, 1, 1) => self.all::<3, 1>(start, sums),
            (3, 2, 1) => self.all::<3, 2>(start, sums),
            (5, 1, 1) => self.all::<5, 1>(start, sums),
            (5, 2, 1) => self.all::<5, 2>(start, sums),
            _ => self.all::<0, 0>(start, sums),
        }
    }

    /// KW taps side by side, windows S entries apart; 0 where neither is known.
    #[target_feature(enable = "avx2")]
    fn all<const KW: usize, const S: usize>(&self, start: usize, sums: &mut [i32]) {
        let step = self.depthwise.entry_step * ENTRY;
        let count = sums.len() / ROW;
        self.reach(start + (count - 1) * step);
        let mut done = 0;
        // SAFETY: the band reaches as far as the last window's last tap, `sums` to its row.
        unsafe {
            while done + 8 <= count {
                self.some::<8, KW, S>(start + done * step, &mut sums[done * ROW..]);
                done += 8;
            }
            if done + 4 <= count {
                self.some::<4, KW, S>(start + done * step, &mut sums[done * ROW..]);
                done += 4;
            }
            if done + 2 <= count {
                self.some::<2, KW, S>(start + done * step, &mut sums[done * ROW..]);
                done += 2;
            }
            if done < count {
                self.some::<1, KW, S>(start + done * step, &mut sums[done * ROW..]);
            }
        }
    }

    /// P of them, half of the channels at a time.
    ///
    /// # Safety
    /// They are within the band, and there is room for their sums.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn some<const P: usize, const KW: usize, const S: usize>(&self, start: usize, sums: &mut [i32]) {
        let Depthwise { entry_step, ref taps, .. } = *self.depthwise;
        // SAFETY: the caller's promise, and what `reach` asserts.
        unsafe {
            let base = self.band.as_ptr().add(start);
            for half in 0..2 {
                let mut acc = [self.bias(half); P];
                let mut weights = self.weights.as_ptr().add(LANES * half).cast::<__m256i>();
                if KW == 0 {
                    for &tap in taps {
                        let weight = _mm256_loadu_si256(weights);
                        for p in 0..P {
                            let entry = base.add(tap + p * entry_step * ENTRY + LANES * half).cast();
                            acc[p] = _mm256_add_epi32(acc[p], _mm256_madd_epi16(_mm256_loadu_si256(entry), weight));
                        }
                        weights = weights.add(2);
                    }
                } else {
                    for tap in taps.iter().step_by(KW) {
                        let mut weight = [_mm256_setzero_si256(); KW];
                        for k in 0..KW {
                            weight[k] = _mm256_loadu_si256(weights.add(2 * k));
                        }
                        let row = base.add(*tap + LANES * half).cast::<__m256i>();
                        // A window's neighbour sees what it has loaded.
                        for p in 0..P {
                            for k in 0..KW {
                                let entry = _mm256_loadu_si256(row.add(2 * (p * S + k)));
                                acc[p] = _mm256_add_epi32(acc[p], _mm256_madd_epi16(entry, weight[k]));
                            }
                        }
                        weights = weights.add(2 * KW);
                    }
                }
                for p in 0..P {
                    store(acc[p], half, sums.as_mut_ptr().add(p * ROW));
                }
            }
        }
    }

    /// A row of windows to codes, of which each is `stride` after the one before.
    #[target_feature(enable = "avx2")]
    fn rounded_row(&self, start: usize, rounding: &Rounding, stride: usize, codes: &mut [u8]) {
        match (self.depthwise.kernel_width, self.depthwise.entry_step, self.depthwise.tap_step) {
            (1, 1, _) => self.rounded::<1, 1>(start, rounding, stride, codes),
            (1, 2, _) => self.rounded::<1, 2>(start, rounding, stride, codes),
            (3, 1, 1) => self.rounded::<3, 1>(start, rounding, stride, codes),
            (3, 2, 1) => self.rounded::<3, 2>(start, rounding, stride, codes),
            (5, 1, 1) => self.rounded::<5, 1>(start, rounding, stride, codes),
            (5, 2, 1) => self.rounded::<5, 2>(start, rounding, stride, codes),
            _ => self.rounded::<0, 0>(start, rounding, stride, codes),
        }
    }

    /// As [`all`](Self::all), to codes.
    #[target_feature(enable = "avx2")]
    fn rounded<const KW: usize, const S: usize>(
        &self,
        start: usize,
        rounding: &Rounding,
        stride: usize,
        codes: &mut [u8],
    ) {
        let (step, width) = (self.depthwise.entry_step * ENTRY, self.depthwise.width);
        self.reach(start + (width - 1) * step);
        assert!((width - 1) * stride + LANES <= codes.len());
        let mut done = 0;
        let mut to = codes.as_mut_ptr();
        // SAFETY: the band reaches as far as the last window's last tap, `codes` to its codes.
        unsafe {
            while done + 4 <= width {
                self.some_rounded::<4, KW, S>(start + done * step, rounding, to, stride);
                (done, to) = (done + 4, to.wrapping_add(4 * stride));
            }
            if done + 2 <= width {
                self.some_rounded::<2, KW, S>(start + done * step, rounding, to, stride);
                (done, to) = (done + 2, to.wrapping_add(2 * stride));
            }
            if done < width {
                self.some_rounded::<1, KW, S>(start + done * step, rounding, to, stride);
            }
        }
    }

    /// P windows, rounded in registers.
    ///
    /// # Safety
    /// They are within the band, and from `to` on there is room for 16 codes of each, `stride` apart.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn some_rounded<const P: usize, const KW: usize, const S: usize>(
        &self,
        start: usize,
        rounding: &Rounding,
        to: *mut u8,
        stride: usize,
    ) {
        let Depthwise { entry_step, kernel_width, tap_step, ref taps, .. } = *self.depthwise;
        // SAFETY: the caller's promise, and what `reach` asserts.
        unsafe {
            let base = self.band.as_ptr().add(start);
            let mut acc = [[self.bias(0), self.bias(1)]; P];
            let mut weights = self.weights.as_ptr().cast::<__m256i>();
            for tap in taps.iter().step_by(kernel_width) {
                let row = base.add(*tap).cast::<__m256i>();
                if KW == 0 {
                    for k in 0..kernel_width {
                        let w = [_mm256_loadu_si256(weights.add(2 * k)), _mm256_loadu_si256(weights.add(2 * k + 1))];
                        for p in 0..P {
                            let entry = row.add(2 * (p * entry_step + k * tap_step));
                            for half in 0..2 {
                                let products = _mm256_madd_epi16(_mm256_loadu_si256(entry.add(half)), w[half]);
                                acc[p][half] = _mm256_add_epi32(acc[p][half], products);
                            }
                        }
                    }
                } else {
                    // A window's neighbour sees what it has loaded.
                    for half in 0..2 {
                        let mut w = [_mm256_setzero_si256(); KW];
                        for k in 0..KW {
                            w[k] = _mm256_loadu_si256(weights.add(2 * k + half));
                        }
                        for p in 0..P {
                            for k in 0..KW {
                                let entry = _mm256_loadu_si256(row.add(2 * (p * S + k) + half));
                                acc[p][half] = _mm256_add_epi32(acc[p][half], _mm256_madd_epi16(entry, w[k]));
                            }
                        }
                    }
                }
                weights = weights.add(2 * kernel_width);
            }
            let mut words = [_mm256_setzero_si256(); P];
            for p in 0..P {
                words[p] = rounding.words(acc[p]);
            }
            for p in (0..P - P % 2).step_by(2) {
                let bytes = _mm256_packus_epi16(words[p], words[p + 1]);
                let bytes = _mm256_permute4x64_epi64(bytes, 0b11_01_10_00);
                let to = to.add(p * stride);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
                _mm_storeu_si128(to.add(stride).cast(), _mm256_extracti128_si256(bytes, 1));
            }
            if P % 2 == 1 {
                let bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(words[P - 1], words[P - 1]), 0b11_01_10_00);
                _mm_storeu_si128(to.add((P - 1) * stride).cast(), _mm256_castsi256_si128(bytes));
            }
        }
    }

    /// The sums of windows number `first` and on, row after row.
    #[target_feature(enable = "avx2")]
    fn apart(&self, first: usize, sums: &mut [i32]) {
        let (count, width) = (sums.len() / ROW, self.depthwise.width);
        let start = |window: usize| self.depthwise.start(window / width, window % width);
        self.reach(start(first + count - 1));
        for (tile, sums) in sums.chunks_mut(MR * ROW).enumerate() {
            let mut starts = [0; MR];
            let rows = sums.len() / ROW;
            for (i, to) in starts[..rows].iter_mut().enumerate() {
                *to = start(first + tile * MR + i);
            }
            // SAFETY: windows begin one after the other, and the last is within the band; `sums` has a
            // row for each.
            unsafe {
                match rows {
                    6 => self.some_apart::<6>(&starts, sums),
                    5 => self.some_apart::<5>(&starts, sums),
                    4 => self.some_apart::<4>(&starts, sums),
                    3 => self.some_apart::<3>(&starts, sums),
                    2 => self.some_apart::<2>(&starts, sums),
                    _ => self.some_apart::<1>(&starts, sums),
                }
            }
        }
    }

    /// P windows that begin anywhere.
    ///
    /// # Safety
    /// They are within the band, and there is room for their sums.
    #[target_feature(enable = "avx2")]
    unsafe fn some_apart<const P: usize>(&self, starts: &[usize; MR], sums: &mut [i32]) {
        // SAFETY: the caller's promise, and what `reach` asserts.
        unsafe {
            let mut acc = [[self.bias(0), self.bias(1)]; P];
            let mut base = [self.band.as_ptr(); P];
            for p in 0..P {
                base[p] = base[p].add(starts[p]);
            }
            let mut weights = self.weights.as_ptr().cast::<__m256i>();
            for &tap in &self.depthwise.taps {
                let (w0, w1) = (_mm256_loadu_si256(weights), _mm256_loadu_si256(weights.add(1)));
                for p in 0..P {
                    let entry = base[p].add(tap).cast::<__m256i>();
                    acc[p][0] = _mm256_add_epi32(acc[p][0], _mm256_madd_epi16(_mm256_loadu_si256(entry), w0));
                    acc[p][1] = _mm256_add_epi32(acc[p][1], _mm256_madd_epi16(_mm256_loadu_si256(entry.add(1)), w1));
                }
                weights = weights.add(2);
            }
            for p in 0..P {
                for half in 0..2 {
                    store(acc[p][half], half, sums.as_mut_ptr().add(p * ROW));
                }
            }
        }
    }

    /// What the sums of half of the channels start from: channels 0 to 3 and 8 to 11, or the others.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn bias(&self, half: usize) -> __m256i {
        let four = |at: usize| {
            // SAFETY: four numbers.
            unsafe { _mm_loadu_si128(self.bias[at..at + 4].as_ptr().cast()) }
        };
        _mm256_set_m128i(four(8 + 4 * half), four(4 * half))
    }
}

/// How the sums of 16 channels become codes, the channels in the order of the accumulators.
struct Rounding {
    multiplier: [__m256; 2],
    high: __m256,
    zero_point: __m256i,
    low: __m256i,
}

impl Rounding {
    /// None unless sums are scaled in float32 and nothing is added.
    #[target_feature(enable = "avx2")]
    fn of(finish: &Finish, lane: usize) -> Option<Rounding> {
        let To::Codes(Requantize { rule: Rule::Float32(multiplier), zero_point, qmin, qmax, add: None }) = &finish.to
        else {
            return None;
        };
        let four = |at: usize| {
            // SAFETY: four numbers.
            unsafe { _mm_loadu_ps(multiplier[lane + at..lane + at + 4].as_ptr()) }
        };
        Some(Rounding {
            multiplier: [_mm256_set_m128(four(8), four(0)), _mm256_set_m128(four(12), four(4))],
            high: _mm256_set1_ps((qmax - zero_point) as f32),
            zero_point: _mm256_set1_epi16(*zero_point as i16),
            low: _mm256_set1_epi16(*qmin as i16),
        })
    }

    /// Codes as words, the channels in order.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn words(&self, sums: [__m256i; 2]) -> __m256i {
        let [s0, s1] = sums;
        let r0 = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(s0), self.multiplier[0]), self.high);
        let r1 = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(s1), self.multiplier[1]), self.high);
        // A number far below all codes becomes the least word, and then the least code.
        let words = _mm256_packs_epi32(_mm256_cvtps_epi32(r0), _mm256_cvtps_epi32(r1));
        let words = _mm256_max_epi16(_mm256_adds_epi16(words, self.zero_point), self.low);
        _mm256_and_si256(words, _mm256_set1_epi16(0xff))
    }
}

/// Half of the channels' sums, to where each belongs.
///
/// # Safety
/// There is room for 16.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store(sums: __m256i, half: usize, to: *mut i32) {
    // SAFETY: the caller's promise.
    unsafe {
        let to = to.add(4 * half);
        _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(sums));
        _mm_storeu_si128(to.add(8).cast(), _mm256_extracti128_si256(sums, 1));
    }
}
