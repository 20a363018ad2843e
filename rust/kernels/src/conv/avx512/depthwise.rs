//! Depthwise tiles: 64 channels, an entry of four taps to each `vpdpbusd`.
//!
//! A vector of the image's bytes is 64 channels of a pixel, or fewer of pixels far apart: one of each *segment*
//! of the output's row. Four vectors, of four taps, are unpacked into four entries; packing the sums of four
//! entries to bytes brings the channels back into their order. Where a kernel is three taps wide and two or three
//! high, and windows are one or two columns apart, as most are, entries stay in registers: a column goes to all
//! windows that see it, and those that have seen their last are done. Else they go to a band.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::depthwise::{Depthwise, Element};
use super::super::quads::{Quads, VECTOR};
use super::super::{Conv2d, Out};
use super::finish::{Added, Common, finish};
use super::{BLOCK, ROW, Sums};

const LANES: usize = <i8 as Element>::LANES;
const ENTRY: usize = <i8 as Element>::ENTRY;
/// Windows of a tile, at most.
const PIXELS: usize = 4;

/// Channels that one vector sees, and where.
#[derive(Clone, Copy)]
struct Piece {
    /// The first of the channels, and how many there are.
    lane: usize,
    count: usize,
    /// Segments of a row, pixels of each, and the row's.
    segments: usize,
    segment: usize,
    width: usize,
}

impl Piece {
    fn new(lane: usize, width: usize, channels: usize) -> Piece {
        let segments = i8::segments(channels - lane);
        Piece { lane, count: (channels - lane).min(LANES), segments, segment: width.div_ceil(segments), width }
    }

    /// The channels of a segment's pixel that there are.
    fn mask(&self) -> u64 {
        u64::MAX >> (LANES - self.count)
    }

    /// Bytes of a segment's pixel in a vector.
    fn room(&self) -> usize {
        LANES / self.segments
    }

    /// Pixels of those from `column` on, at most `count`, that a segment has.
    fn there(&self, segment: usize, column: usize, count: usize) -> usize {
        self.width.saturating_sub(segment * self.segment + column).min(count)
    }
}

/// A depthwise convolution.
pub(in super::super) fn run(conv: &Conv2d, depthwise: &Depthwise<i8>, x: &[u8], mut out: Out, scratch: &mut [i16]) {
    assert!(conv.isa.has_avx512());
    // SAFETY: an `Isa` that has AVX-512 exists only where the CPU has it, and AVX2.
    unsafe { avx512(conv, depthwise, x, &mut out, bytemuck::cast_slice_mut(scratch)) };

    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn avx512(conv: &Conv2d, depthwise: &Depthwise<i8>, x: &[u8], out: &mut Out, scratch: &mut [u8]) {
        let mut sums = Sums([MaybeUninit::uninit(); _]);
        let [_, width, channels] = conv.out;
        let common = if Added::of(&conv.finish).is_none() { Common::of(conv) } else { None };
        for lane in (0..channels).step_by(LANES) {
            let piece = &Piece::new(lane, width, channels);
            let bias = for_lanes(piece, &conv.finish.bias);
            let rounding = common.as_ref().map(|(common, of)| Rounding::new(common, of, piece, channels));
            let mut to = match (&rounding, &mut *out) {
                (Some(rounding), Out::Codes(codes, _)) => Results::Codes(codes, rounding),
                (_, out) => Results::Others(&mut sums, out),
            };
            let windows = Windows { conv, depthwise, piece, bias };
            if !depthwise.direct {
                windows.banded(x, scratch, &mut to);
            } else if matches!(to, Results::Codes(..)) {
                windows.directly::<true>(x, &mut to);
            } else {
                windows.directly::<false>(x, &mut to);
            }
        }
    }
}

/// The columns of some rows of the image, as four vectors each.
struct Columns<'a> {
    x: &'a [u8],
    image: [usize; 3],
    left: usize,
    piece: &'a Piece,
    /// Columns from a segment to the next.
    between: usize,
    /// For each vector its first column, and where it is.
    first: [usize; 4],
    sources: [Source; 4],
    /// The columns of which all that is loaded lies in the image's rows.
    inside: Range<usize>,
    /// The channels of a pixel that there are.
    mask: u64,
    /// The code of 0.
    border: &'a [u8; LANES],
    zero: __m512i,
    flip: __m512i,
}

/// Where a vector's bytes are, if its column is inside: the first column's first segment, and steps to the next
/// column and segment.
#[derive(Clone, Copy)]
struct Source {
    from: *const u8,
    column: usize,
    segment: usize,
}

impl<'a> Columns<'a> {
    /// Of no row yet. `border` is of the code of 0.
    #[target_feature(enable = "avx512f")]
    fn new(windows: &Windows<'a>, x: &'a [u8], border: &'a [u8; LANES]) -> Columns<'a> {
        let Windows { conv, depthwise, piece, .. } = *windows;
        let image @ [_, width, channels] = conv.shape.input;
        let left = conv.shape.padding[1][0];
        let between = piece.segment * conv.shape.stride[1];
        let across = (<i8 as Element>::TAPS - 1) * depthwise.apart[1] + (piece.segments - 1) * between;
        let more = (width * channels).checked_sub(piece.lane + piece.room());
        let end = more.map_or(0, |more| (left + more / channels + 1).saturating_sub(across));
        let (zero, flip) = (_mm512_set1_epi8(border[0] as i8), _mm512_set1_epi8(Quads::flip(conv.input) as i8));
        let (first, sources) = ([0; 4], [Source { from: border.as_ptr(), column: 0, segment: 0 }; 4]);
        let mask = piece.mask();
        Columns { x, image, left, piece, between, first, sources, inside: left..end, mask, border, zero, flip }
    }

    /// To what the entries of row `row` see, counted with the padding.
    fn go_to(&mut self, conv: &Conv2d, depthwise: &Depthwise<i8>, row: usize) {
        let [height, width, channels] = self.image;
        for tap in 0..4 {
            let row =
                (row + tap * depthwise.apart[0]).checked_sub(conv.shape.padding[0][0]).filter(|&row| row < height);
            let first = tap * depthwise.apart[1];
            self.first[tap] = first;
            self.sources[tap] = match row {
                Some(row) => {
                    let pixel = (row * width + first).wrapping_sub(self.left);
                    let from = self.x.as_ptr().wrapping_add(pixel.wrapping_mul(channels).wrapping_add(self.piece.lane));
                    Source { from, column: channels, segment: self.between * channels }
                }
                None => Source { from: self.border.as_ptr(), column: 0, segment: 0 },
            };
        }
    }

    /// The first V vectors of a column: the code of 0 where there is no image. Lanes beyond a pixel's channels
    /// hold something that weights of 0 multiply.
    ///
    /// # Safety
    /// S are the piece's segments; AVX-512.
    #[inline(always)]
    unsafe fn at<const S: usize, const V: usize>(&self, column: usize) -> [__m512i; V] {
        let mut vectors = [self.zero; V];
        // SAFETY: the caller's promise; `inside` ends where what is loaded no longer lies in the row. Where a mask
        // has bits there are a pixel's channels, or a border's.
        unsafe {
            if self.inside.contains(&column) {
                for v in 0..V {
                    vectors[v] = self.sources[v].bytes::<S>(column);
                }
            } else {
                for v in 0..V {
                    for segment in 0..S {
                        let pixel = column + self.first[v] + segment * self.between;
                        if pixel.wrapping_sub(self.left) < self.image[1] {
                            let shift = segment * (LANES / S);
                            let from = self.sources[v].at(column, segment).wrapping_sub(shift);
                            vectors[v] = _mm512_mask_loadu_epi8(vectors[v], self.mask << shift, from.cast());
                        }
                    }
                }
            }
            for v in 0..V {
                vectors[v] = _mm512_xor_si512(vectors[v], self.flip);
            }
        }
        vectors
    }

    /// The entries of a column, of three rows.
    ///
    /// # Safety
    /// As of [`at`](Self::at).
    #[inline(always)]
    unsafe fn next<const S: usize>(&self, column: usize) -> [__m512i; 4] {
        // SAFETY: the caller's promises.
        unsafe {
            let [a, b, c] = self.at::<S, 3>(column);
            unpacked([a, b, c, c])
        }
    }
}

impl Source {
    /// # Safety
    /// S pieces of 64 bytes in all can be read; AVX-512.
    #[inline(always)]
    unsafe fn bytes<const S: usize>(&self, column: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            match S {
                1 => _mm512_loadu_si512(self.at(column, 0).cast()),
                2 => {
                    let low = _mm512_castsi256_si512(_mm256_loadu_si256(self.at(column, 0).cast()));
                    _mm512_inserti64x4(low, _mm256_loadu_si256(self.at(column, 1).cast()), 1)
                }
                _ => {
                    let low = _mm512_castsi128_si512(_mm_loadu_si128(self.at(column, 0).cast()));
                    let low = _mm512_mask_broadcast_i32x4(low, 0x00f0, _mm_loadu_si128(self.at(column, 1).cast()));
                    let low = _mm512_mask_broadcast_i32x4(low, 0x0f00, _mm_loadu_si128(self.at(column, 2).cast()));
                    _mm512_mask_broadcast_i32x4(low, 0xf000, _mm_loadu_si128(self.at(column, 3).cast()))
                }
            }
        }
    }

    #[inline(always)]
    fn at(&self, column: usize, segment: usize) -> *const u8 {
        self.from.wrapping_add(column.wrapping_mul(self.column)).wrapping_add(segment.wrapping_mul(self.segment))
    }
}

/// Four vectors' bytes side by side: four entries.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn unpacked([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let (more_ab, more_cd) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        [
            _mm512_unpacklo_epi16(ab, cd),
            _mm512_unpackhi_epi16(ab, cd),
            _mm512_unpacklo_epi16(more_ab, more_cd),
            _mm512_unpackhi_epi16(more_ab, more_cd),
        ]
    }
}

/// Quarters of vectors as vectors, and back: between channels in order and the order of entries.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (low_ab, low_cd) = (_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(c, d, 0x44));
    let (high_ab, high_cd) = (_mm512_shuffle_i32x4(a, b, 0xee), _mm512_shuffle_i32x4(c, d, 0xee));
    [
        _mm512_shuffle_i32x4(low_ab, low_cd, 0x88),
        _mm512_shuffle_i32x4(low_ab, low_cd, 0xdd),
        _mm512_shuffle_i32x4(high_ab, high_cd, 0x88),
        _mm512_shuffle_i32x4(high_ab, high_cd, 0xdd),
    ]
}

/// What is one for each channel, for the lanes of a piece, in the order of entries.
#[target_feature(enable = "avx512f")]
fn for_lanes<T: bytemuck::NoUninit>(piece: &Piece, of: &[T]) -> [__m512i; 4] {
    const { assert!(size_of::<T>() == 4) };
    let mut rows = [_mm512_setzero_si512(); 4];
    for (q, row) in rows.iter_mut().enumerate() {
        let sixteen = &of[piece.lane + (16 * q) % piece.room()..][..16];
        // SAFETY: 16 elements of four bytes.
        *row = unsafe { _mm512_loadu_si512(sixteen.as_ptr().cast()) };
    }
    transposed(rows)
}

/// Where the windows' results go.
enum Results<'a, 'b> {
    /// Codes by the common rule.
    Codes(&'a mut [u8], &'a Rounding<'a>),
    /// Sums, and what becomes of them otherwise.
    Others(&'a mut Sums, &'a mut Out<'b>),
}

/// How the sums of a vector become codes.
struct Rounding<'a> {
    common: &'a Common,
    /// In the order of entries.
    multiplier: [__m512; 4],
    /// The channels of a segment's pixel that there are.
    mask: u64,
    /// Codes from one pixel to the next.
    channels: usize,
}

impl<'a> Rounding<'a> {
    #[target_feature(enable = "avx512f")]
    fn new(common: &'a Common, of: &[f32], piece: &Piece, channels: usize) -> Self {
        let of_lanes = for_lanes(piece, of);
        let mut multiplier = [_mm512_setzero_ps(); 4];
        for v in 0..4 {
            multiplier[v] = _mm512_castsi512_ps(of_lanes[v]);
        }
        Rounding { common, multiplier, mask: piece.mask(), channels }
    }
}

/// The windows of a piece.
struct Windows<'a> {
    conv: &'a Conv2d,
    depthwise: &'a Depthwise<i8>,
    piece: &'a Piece,
    bias: [__m512i; 4],
}

impl Windows<'_> {
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn directly<const CODES: bool>(&self, x: &[u8], to: &mut Results) {
        match (self.piece.segments, self.depthwise.entry_step) {
            (1, 1) => self.direct::<1, 1, CODES>(x, to),
            (1, _) => self.direct::<1, 2, CODES>(x, to),
            (2, 1) => self.direct::<2, 1, CODES>(x, to),
            (2, _) => self.direct::<2, 2, CODES>(x, to),
            (_, 1) => self.direct::<4, 1, CODES>(x, to),
            (_, _) => self.direct::<4, 2, CODES>(x, to),
        }
    }

    /// Three taps side by side, windows STEP columns apart, S segments. Whether the results are codes is known
    /// beforehand: a call among the windows would send all registers to memory.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn direct<const S: usize, const STEP: usize, const CODES: bool>(&self, x: &[u8], to: &mut Results) {
        let border = [self.conv.input.zero_point as u8; LANES];
        let weights = self.depthwise.weights(self.piece.lane, 0);
        assert!(weights.len() == 3 * ENTRY && S == self.piece.segments && CODES == matches!(to, Results::Codes(..)));
        let mut taps = [[_mm512_setzero_si512(); 4]; 3];
        for tap in 0..3 {
            for v in 0..4 {
                // SAFETY: three entries.
                taps[tap][v] = unsafe { _mm512_loadu_si512(weights.as_ptr().add(tap * ENTRY + v * VECTOR).cast()) };
            }
        }
        let mut columns = Columns::new(self, x, &border);
        for row in 0..self.conv.out[0] {
            columns.go_to(self.conv, self.depthwise, row * self.conv.shape.stride[0]);
            // SAFETY: S are the piece's segments.
            unsafe {
                let mut now = summed(self.bias, columns.next::<S>(0), &taps[0]);
                let mut entries = columns.next::<S>(1);
                now = summed(now, entries, &taps[1]);
                for window in 0..self.piece.segment {
                    let mut next = self.bias;
                    if STEP == 1 {
                        next = summed(next, entries, &taps[0]);
                    }
                    entries = columns.next::<S>(STEP * window + 2);
                    self.put::<S, CODES>(summed(now, entries, &taps[2]), row, window, to);
                    if STEP == 2 {
                        next = summed(next, entries, &taps[0]);
                        entries = columns.next::<S>(STEP * window + 3);
                    }
                    now = summed(next, entries, &taps[1]);
                }
            }
        }
    }

    /// Any kernel: entries go to a band, and tiles of windows read it.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn banded(&self, x: &[u8], scratch: &mut [u8], to: &mut Results) {
        let Depthwise { kernel_width, entry_step, tap_step, rows, .. } = *self.depthwise;
        let height = self.conv.out[0];
        for row in (0..height).step_by(rows) {
            let rows = rows.min(height - row);
            self.fill(row, rows, x, scratch);
            let taps = &self.depthwise.taps;
            let furthest = taps.last().map_or(0, |&tap| tap);
            assert!(self.depthwise.start(rows - 1, self.piece.segment - 1) + furthest + ENTRY <= scratch.len());
            for i in 0..rows {
                let band = scratch[self.depthwise.start(i, 0)..].as_ptr();
                let weights = self.depthwise.weights(self.piece.lane, i);
                assert!(weights.len() == taps.len() * ENTRY);
                // SAFETY: the last window's last tap is in the band, and there are weights for each.
                unsafe {
                    match (kernel_width, entry_step, tap_step) {
                        (5, 1, 1) => self.tiles::<5, 1>(band, weights, row + i, to),
                        (5, 2, 1) => self.tiles::<5, 2>(band, weights, row + i, to),
                        _ => self.tiles::<0, 0>(band, weights, row + i, to),
                    }
                }
            }
        }
    }

    /// Makes the entries of a band, from output row `first` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn fill(&self, first: usize, rows: usize, x: &[u8], scratch: &mut [u8]) {
        let Windows { conv, depthwise, piece, .. } = *self;
        let border = [conv.input.zero_point as u8; LANES];
        let count = depthwise.columns - (depthwise.width - piece.segment) * depthwise.entry_step;
        let rows_of = scratch.chunks_exact_mut(depthwise.columns * ENTRY).take(depthwise.entry_rows(rows));
        let mut columns = Columns::new(self, x, &border);
        for (i, entries) in rows_of.enumerate() {
            columns.go_to(conv, depthwise, first * conv.shape.stride[0] + i * depthwise.step);
            let (entries, _) = entries.as_chunks_mut::<ENTRY>();
            for (column, entry) in entries[..count].iter_mut().enumerate() {
                // SAFETY: the segments are the piece's; an entry is four vectors.
                unsafe {
                    let four = match piece.segments {
                        1 => columns.at::<1, 4>(column),
                        2 => columns.at::<2, 4>(column),
                        _ => columns.at::<4, 4>(column),
                    };
                    let four = unpacked(four);
                    for v in 0..4 {
                        _mm512_storeu_si512(entry.as_mut_ptr().add(VECTOR * v).cast(), four[v]);
                    }
                }
            }
        }
    }

    /// A row of windows with KW taps side by side, S entries apart; 0 where neither is known.
    ///
    /// # Safety
    /// All are in the band; there is an entry of weights for each tap.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn tiles<const KW: usize, const S: usize>(
        &self,
        band: *const u8,
        weights: &[i8],
        row: usize,
        to: &mut Results,
    ) {
        let step = self.depthwise.entry_step * ENTRY;
        let segment = self.piece.segment;
        for from in (0..segment).step_by(PIXELS) {
            // Windows that are done again have the same sums.
            let from = from.min(segment.saturating_sub(PIXELS));
            // SAFETY: the caller's promise.
            unsafe {
                let base = band.add(from * step);
                if segment < PIXELS {
                    for window in 0..segment {
                        let [sums] = self.sums::<1, KW, S>(base.add(window * step), weights);
                        self.put_any(sums, row, window, to);
                    }
                } else {
                    let sums = self.sums::<PIXELS, KW, S>(base, weights);
                    for p in 0..PIXELS {
                        self.put_any(sums[p], row, from + p, to);
                    }
                }
            }
        }
    }

    /// The sums of P windows.
    ///
    /// # Safety
    /// They are in the band from `base` on; there is an entry of weights for each tap; AVX-512.
    #[inline(always)]
    unsafe fn sums<const P: usize, const KW: usize, const S: usize>(
        &self,
        base: *const u8,
        weights: &[i8],
    ) -> [[__m512i; 4]; P] {
        let Depthwise { entry_step, kernel_width, tap_step, ref taps, .. } = *self.depthwise;
        // SAFETY: the caller's promises.
        unsafe {
            let mut weights = weights.as_ptr();
            let mut acc = [self.bias; P];
            for tap in taps.iter().step_by(kernel_width) {
                let row = base.add(*tap);
                for v in 0..4 {
                    let (row, weights) = (row.add(VECTOR * v), weights.add(VECTOR * v));
                    if KW == 0 {
                        for k in 0..kernel_width {
                            let w = _mm512_loadu_si512(weights.add(k * ENTRY).cast());
                            for p in 0..P {
                                let entry = row.add((p * entry_step + k * tap_step) * ENTRY);
                                acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], _mm512_loadu_si512(entry.cast()), w);
                            }
                        }
                    } else {
                        let mut w = [_mm512_setzero_si512(); KW];
                        for k in 0..KW {
                            w[k] = _mm512_loadu_si512(weights.add(k * ENTRY).cast());
                        }
                        // A window's neighbour sees what it has loaded.
                        for p in 0..P {
                            for k in 0..KW {
                                let entry = _mm512_loadu_si512(row.add((p * S + k) * ENTRY).cast());
                                acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], entry, w[k]);
                            }
                        }
                    }
                }
                weights = weights.wrapping_add(kernel_width * ENTRY);
            }
            acc
        }
    }

    /// The sums of a window of an output row become what they are to.
    ///
    /// # Safety
    /// S are the piece's segments; AVX-512.
    #[inline(always)]
    unsafe fn put<const S: usize, const CODES: bool>(
        &self,
        sums: [__m512i; 4],
        row: usize,
        window: usize,
        to: &mut Results,
    ) {
        let piece = self.piece;
        match to {
            Results::Codes(codes, rounding) if CODES => {
                // SAFETY: the caller's promise; where the mask has bits there are codes.
                unsafe {
                    let bytes = rounding.common.codes(sums, rounding.multiplier);
                    for i in 0..S {
                        let column = i * piece.segment + window;
                        if column >= piece.width {
                            break;
                        }
                        let at = (row * piece.width + column) * rounding.channels + piece.lane;
                        assert!(at + piece.count <= codes.len());
                        let shift = i * (LANES / S);
                        let to = codes.as_mut_ptr().wrapping_add(at).wrapping_sub(shift);
                        _mm512_mask_storeu_epi8(to.cast(), rounding.mask << shift, bytes);
                    }
                }
            }
            // SAFETY: the caller's promise.
            Results::Others(block, out) if !CODES => unsafe { self.finished(sums, row, window, block, out) },
            _ => unreachable!("codes or not"),
        }
    }

    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn put_any(&self, sums: [__m512i; 4], row: usize, window: usize, to: &mut Results) {
        let codes = matches!(to, Results::Codes(..));
        // SAFETY: the segments are the piece's.
        unsafe {
            match (codes, self.piece.segments) {
                (true, 1) => self.put::<1, true>(sums, row, window, to),
                (true, 2) => self.put::<2, true>(sums, row, window, to),
                (true, _) => self.put::<4, true>(sums, row, window, to),
                (false, _) => self.put::<1, false>(sums, row, window, to),
            }
        }
    }

    /// The same otherwise than by the common rule: block by block. Windows come one after the other, or some
    /// that were done before again.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn finished(&self, sums: [__m512i; 4], row: usize, window: usize, block: &mut Sums, out: &mut Out) {
        let (piece, conv) = (self.piece, self.conv);
        let i = window % BLOCK;
        for (q, sums) in transposed(sums).into_iter().enumerate() {
            let to = &mut block.0[(q * BLOCK + i) * ROW..][..ROW];
            // SAFETY: a row of 16.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), sums) };
        }
        if i + 1 < BLOCK && window + 1 < piece.segment {
            return;
        }
        for q in 0..4 {
            let (segment, lane) = ((16 * q) / piece.room(), (16 * q) % piece.room());
            let rows = piece.there(segment, window - i, i + 1);
            let columns = piece.count.saturating_sub(lane).min(16);
            if rows == 0 || columns == 0 {
                continue;
            }
            // SAFETY: each window's sums have been written.
            let sums = unsafe { block.written(q, rows) };
            let pixel = row * piece.width + segment * piece.segment + window - i;
            finish(&conv.finish, conv.out[2], sums, rows, pixel, piece.lane + lane, columns, out);
        }
    }
}

/// Sums, and the products of an entry's taps with their weights.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn summed(mut sums: [__m512i; 4], entries: [__m512i; 4], weights: &[__m512i; 4]) -> [__m512i; 4] {
    for v in 0..4 {
        // SAFETY: the caller's promise.
        sums[v] = unsafe { _mm512_dpbusd_epi32(sums[v], entries[v], weights[v]) };
    }
    sums
}
