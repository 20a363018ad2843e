//! Depthwise tiles: 64 channels, an entry of four taps to each `vpdpbusd`.
//!
//! A vector of the image's bytes is 64 channels of a pixel, or fewer of pixels far apart: one of each *segment*
//! of the output's row. Four vectors, of four taps, are unpacked into four entries; packing the sums of four
//! entries to bytes brings the channels back into their order. Where a kernel is three taps wide and two or three
//! high, and windows are one or two columns apart, as most are, entries stay in registers: they go to all windows
//! that see them, and those that have seen their last are done. Else they go to a band.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::depthwise::{Depthwise, Element};
use super::super::quads::{Quads, VECTOR};
use super::super::{Conv2d, Out, Shape};
use super::finish::{Added, Common, finish};
use super::{BLOCK, ROW, Sums};

const LANES: usize = <i8 as Element>::LANES;
const ENTRY: usize = <i8 as Element>::ENTRY;
/// Windows of a tile, at most.
const PIXELS: usize = 4;
/// Bytes of the image's rows that stay in L2 while all channels of their windows are done.
const RESIDENT: usize = 256 << 10;

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
    /// Each segment's first pixel: where the row has too few, the last segments begin with pixels of those before.
    starts: [usize; 4],
}

impl Piece {
    fn new(lane: usize, width: usize, channels: usize) -> Piece {
        let segments = i8::segments(channels - lane);
        let segment = width.div_ceil(segments);
        let starts = std::array::from_fn(|i| (i * segment).min(width - segment));
        Piece { lane, count: (channels - lane).min(LANES), segments, segment, width, starts }
    }

    /// The channels of a segment's pixel that there are.
    fn mask(&self) -> u64 {
        u64::MAX >> (LANES - self.count)
    }

    /// Bytes of a segment's pixel in a vector.
    fn room(&self) -> usize {
        LANES / self.segments
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
        let height = conv.out[0];
        let mut rows = height;
        if depthwise.direct {
            scratch[..depthwise.len()].fill(conv.input.zero_point as u8);
            rows = (RESIDENT / (conv.shape.stride[0] * conv.shape.input[1] * channels)).clamp(1, height);
        }
        for first in (0..height).step_by(rows) {
            let rows = first..height.min(first + rows);
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
                    windows.directly::<true>(x, scratch, rows.clone(), &mut to);
                } else {
                    windows.directly::<false>(x, scratch, rows.clone(), &mut to);
                }
            }
        }
    }
}

/// The three rows of the image that a row of windows sees, where entries are used as they are made.
struct Seen<'a> {
    x: &'a [u8],
    /// A row of codes of 0, which stands for those that there are not.
    border: &'a [u8],
    image: [usize; 3],
    left: usize,
    /// Bytes of a row, and from its first column, counted with the padding, to the piece's first code in the image.
    pitch: usize,
    before: usize,
    /// Where each row's first column is, counted with the padding.
    from: [*const u8; 3],
    /// Columns from the first segment's to each other's, and bytes.
    apart: [usize; 4],
    bytes_apart: [usize; 4],
    /// Columns of the image, from its first on, of which all that is loaded lies in its rows.
    inside: usize,
    /// The channels of a pixel that there are.
    mask: u64,
    /// Whether codes are raised, and the code of 0 among them.
    raised: bool,
    flip: __m512i,
    zero: __m512i,
}

impl<'a> Seen<'a> {
    /// Of no windows yet.
    #[target_feature(enable = "avx512f")]
    fn new(windows: &Windows, x: &'a [u8], border: &'a [u8]) -> Seen<'a> {
        let Windows { conv, piece, .. } = *windows;
        let image @ [_, width, channels] = conv.shape.input;
        let apart = piece.starts.map(|start| start * conv.shape.stride[1]);
        let more = (width * channels).checked_sub(piece.lane + piece.room());
        let (left, flip) = (conv.shape.padding[1][0], Quads::flip(conv.input) as i8);
        Seen {
            x,
            border,
            image,
            left,
            pitch: width * channels,
            before: (left * channels).wrapping_sub(piece.lane),
            from: [x.as_ptr(); 3],
            apart,
            bytes_apart: apart.map(|columns| columns * channels),
            inside: more.map_or(0, |more| (more / channels + 1).saturating_sub(apart[piece.segments - 1])),
            mask: piece.mask(),
            raised: flip != 0,
            flip: _mm512_set1_epi8(flip),
            zero: _mm512_set1_epi8(conv.input.zero_point as i8 ^ flip),
        }
    }

    /// To what a row of windows sees.
    #[inline(always)]
    fn go_to(&mut self, shape: &Shape, row: usize) {
        let first = row.wrapping_mul(shape.stride[0]).wrapping_sub(shape.padding[0][0]);
        for tap in 0..3 {
            let row = first.wrapping_add(tap * shape.dilation[0]);
            let there = row < self.image[0];
            let row = if there { &self.x[row.wrapping_mul(self.pitch)..] } else { self.border };
            self.from[tap] = row[..self.pitch].as_ptr().wrapping_sub(self.before);
        }
    }

    /// A column, counted with the padding: the code of 0 where there is no image. Lanes beyond a pixel's channels
    /// hold something that weights of 0 multiply.
    ///
    /// # Safety
    /// S are the piece's segments, and [`go_to`](Self::go_to) has been called; AVX-512.
    #[inline(always)]
    unsafe fn at<const S: usize>(&self, column: usize) -> [__m512i; 3] {
        let offset = column.wrapping_mul(self.image[2]);
        let mut rows;
        // SAFETY: the caller's promise; `inside` ends where what is loaded no longer lies in the row. Where a mask
        // has bits there are a pixel's channels.
        unsafe {
            if column.wrapping_sub(self.left) < self.inside {
                rows = [_mm512_undefined_epi32(); 3];
                for v in 0..3 {
                    rows[v] = gathered::<S>(|segment| self.address(v, offset, segment));
                }
                if self.raised {
                    for v in 0..3 {
                        rows[v] = _mm512_xor_si512(rows[v], self.flip);
                    }
                }
            } else {
                rows = [self.zero; 3];
                for segment in 0..S {
                    if column.wrapping_add(self.apart[segment]).wrapping_sub(self.left) < self.image[1] {
                        let shift = segment * (LANES / S);
                        for v in 0..3 {
                            let from = self.address(v, offset, segment).wrapping_sub(shift);
                            let bytes = _mm512_maskz_loadu_epi8(self.mask << shift, from.cast());
                            let bytes = _mm512_xor_si512(bytes, self.flip);
                            rows[v] = _mm512_mask_mov_epi8(rows[v], self.mask << shift, bytes);
                        }
                    }
                }
            }
        }
        rows
    }

    /// Where a segment's pixel of a row is, `offset` bytes from the first segment's first column.
    #[inline(always)]
    fn address(&self, row: usize, offset: usize, segment: usize) -> *const u8 {
        let first = self.from[row].wrapping_add(offset);
        if segment == 0 { first } else { first.wrapping_add(self.bytes_apart[segment]) }
    }

    /// The entries of a column: its three rows.
    ///
    /// # Safety
    /// As of [`at`](Self::at).
    #[inline(always)]
    unsafe fn column<const S: usize>(&self, column: usize) -> [__m512i; 4] {
        // SAFETY: the caller's promises.
        unsafe {
            let [a, b, c] = self.at::<S>(column);
            fours(pairs(a, b), pairs(c, c))
        }
    }

    /// The entries of a column and the next: of their two first rows, and pairs of the third.
    ///
    /// # Safety
    /// As of [`at`](Self::at).
    #[inline(always)]
    unsafe fn pair<const S: usize>(&self, column: usize) -> ([__m512i; 4], [__m512i; 2]) {
        // SAFETY: the caller's promises.
        unsafe {
            let left = self.at::<S>(column);
            let right = self.at::<S>(column.wrapping_add(1));
            (fours(pairs(left[0], right[0]), pairs(left[1], right[1])), pairs(left[2], right[2]))
        }
    }
}

/// The columns of some rows of the image, as four vectors each.
struct Columns<'a> {
    x: &'a [u8],
    image: [usize; 3],
    left: usize,
    piece: &'a Piece,
    /// Columns from the first segment to each.
    between: [usize; 4],
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
    segment: [usize; 4],
}

impl<'a> Columns<'a> {
    /// Of no row yet. `border` is of the code of 0.
    #[target_feature(enable = "avx512f")]
    fn new(windows: &Windows<'a>, x: &'a [u8], border: &'a [u8; LANES]) -> Columns<'a> {
        let Windows { conv, depthwise, piece, .. } = *windows;
        let image @ [_, width, channels] = conv.shape.input;
        let left = conv.shape.padding[1][0];
        let between = piece.starts.map(|start| start * conv.shape.stride[1]);
        let across = (<i8 as Element>::TAPS - 1) * depthwise.apart[1] + between[piece.segments - 1];
        let more = (width * channels).checked_sub(piece.lane + piece.room());
        let end = more.map_or(0, |more| (left + more / channels + 1).saturating_sub(across));
        let (zero, flip) = (_mm512_set1_epi8(border[0] as i8), _mm512_set1_epi8(Quads::flip(conv.input) as i8));
        let (first, sources) = ([0; 4], [Source { from: border.as_ptr(), column: 0, segment: [0; 4] }; 4]);
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
                    Source { from, column: channels, segment: self.between.map(|columns| columns * channels) }
                }
                None => Source { from: self.border.as_ptr(), column: 0, segment: [0; 4] },
            };
        }
    }

    /// The four vectors of a column: the code of 0 where there is no image. Lanes beyond a pixel's channels hold
    /// something that weights of 0 multiply.
    ///
    /// # Safety
    /// S are the piece's segments; AVX-512.
    #[inline(always)]
    unsafe fn at<const S: usize>(&self, column: usize) -> [__m512i; 4] {
        let mut vectors = [self.zero; 4];
        // SAFETY: the caller's promise; `inside` ends where what is loaded no longer lies in the row. Where a mask
        // has bits there are a pixel's channels, or a border's.
        unsafe {
            if self.inside.contains(&column) {
                for v in 0..4 {
                    vectors[v] = self.sources[v].bytes::<S>(column);
                }
            } else {
                for v in 0..4 {
                    for segment in 0..S {
                        let pixel = column + self.first[v] + self.between[segment];
                        if pixel.wrapping_sub(self.left) < self.image[1] {
                            let shift = segment * (LANES / S);
                            let from = self.sources[v].at(column, segment).wrapping_sub(shift);
                            vectors[v] = _mm512_mask_loadu_epi8(vectors[v], self.mask << shift, from.cast());
                        }
                    }
                }
            }
            for v in 0..4 {
                vectors[v] = _mm512_xor_si512(vectors[v], self.flip);
            }
        }
        vectors
    }
}

impl Source {
    /// # Safety
    /// S pieces of 64 bytes in all can be read; AVX-512.
    #[inline(always)]
    unsafe fn bytes<const S: usize>(&self, column: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { gathered::<S>(|segment| self.at(column, segment)) }
    }

    #[inline(always)]
    fn at(&self, column: usize, segment: usize) -> *const u8 {
        self.from.wrapping_add(column.wrapping_mul(self.column)).wrapping_add(self.segment[segment])
    }
}

/// A vector of S pieces, each where `from` says.
///
/// # Safety
/// 64 bytes in all can be read there; AVX-512.
#[inline(always)]
unsafe fn gathered<const S: usize>(from: impl Fn(usize) -> *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        match S {
            1 => _mm512_loadu_si512(from(0).cast()),
            2 => {
                let low = _mm512_castsi256_si512(_mm256_loadu_si256(from(0).cast()));
                _mm512_inserti64x4(low, _mm256_loadu_si256(from(1).cast()), 1)
            }
            _ => {
                let low = _mm256_castsi128_si256(_mm_loadu_si128(from(0).cast()));
                let low = _mm256_inserti128_si256(low, _mm_loadu_si128(from(1).cast()), 1);
                let high = _mm256_castsi128_si256(_mm_loadu_si128(from(2).cast()));
                let high = _mm256_inserti128_si256(high, _mm_loadu_si128(from(3).cast()), 1);
                _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)
            }
        }
    }
}

/// Two vectors' bytes side by side: pairs.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn pairs(a: __m512i, b: __m512i) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe { [_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)] }
}

/// Two pairs side by side: four entries.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn fours([a, more_a]: [__m512i; 2], [b, more_b]: [__m512i; 2]) -> [__m512i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            _mm512_unpacklo_epi16(a, b),
            _mm512_unpackhi_epi16(a, b),
            _mm512_unpacklo_epi16(more_a, more_b),
            _mm512_unpackhi_epi16(more_a, more_b),
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

impl Results<'_, '_> {
    /// Where a row's codes of the piece begin, if they are by the common rule.
    fn codes(&mut self, row: usize) -> *mut u8 {
        match self {
            Results::Codes(codes, rounding) => {
                let row = &mut codes[row.wrapping_mul(rounding.pitch)..][..rounding.pitch];
                row[rounding.lane..].as_mut_ptr()
            }
            Results::Others(..) => std::ptr::null_mut(),
        }
    }
}

/// How the sums of a window become codes, and where these are.
struct Rounding<'a> {
    common: &'a Common,
    /// In the order of entries.
    multiplier: [__m512; 4],
    /// Codes of a row, from one pixel to the next, and from the row's first to each segment's.
    pitch: usize,
    channels: usize,
    starts: [usize; 4],
    lane: usize,
    /// The channels of a segment's pixel that there are: all, or those of the mask.
    full: bool,
    mask: u64,
}

impl<'a> Rounding<'a> {
    #[target_feature(enable = "avx512f")]
    fn new(common: &'a Common, of: &[f32], piece: &Piece, channels: usize) -> Self {
        let of_lanes = for_lanes(piece, of);
        let mut multiplier = [_mm512_setzero_ps(); 4];
        for v in 0..4 {
            multiplier[v] = _mm512_castsi512_ps(of_lanes[v]);
        }
        let (starts, full) = (piece.starts.map(|start| start * channels), piece.count == piece.room());
        let pitch = piece.width * channels;
        Rounding { common, multiplier, pitch, channels, starts, lane: piece.lane, full, mask: piece.mask() }
    }

    /// The codes of S windows.
    ///
    /// # Safety
    /// S are the piece's segments, and `to` is where the piece's codes of a window of the first segment are; AVX-512.
    #[inline(always)]
    unsafe fn put<const S: usize>(&self, sums: [__m512i; 4], to: *mut u8) {
        // SAFETY: the caller's promise; where the mask has bits there are codes.
        unsafe {
            let bytes = self.common.codes(sums, self.multiplier);
            for i in 0..S {
                let to = to.wrapping_add(self.starts[i]);
                if S == 1 {
                    match self.full {
                        true => _mm512_storeu_si512(to.cast(), bytes),
                        false => _mm512_mask_storeu_epi8(to.cast(), self.mask, bytes),
                    }
                } else if S == 2 {
                    let half = if i == 0 { _mm512_castsi512_si256(bytes) } else { _mm512_extracti64x4_epi64(bytes, 1) };
                    match self.full {
                        true => _mm256_storeu_si256(to.cast(), half),
                        false => _mm256_mask_storeu_epi8(to.cast(), self.mask as u32, half),
                    }
                } else {
                    let quarter = match i {
                        0 => _mm512_castsi512_si128(bytes),
                        1 => _mm512_extracti32x4_epi32(bytes, 1),
                        2 => _mm512_extracti32x4_epi32(bytes, 2),
                        _ => _mm512_extracti32x4_epi32(bytes, 3),
                    };
                    match self.full {
                        true => _mm_storeu_si128(to.cast(), quarter),
                        false => _mm_mask_storeu_epi8(to.cast(), self.mask as u16, quarter),
                    }
                }
            }
        }
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
    fn directly<const CODES: bool>(&self, x: &[u8], border: &[u8], rows: Range<usize>, to: &mut Results) {
        match (self.piece.segments, self.depthwise.entry_step) {
            (1, 1) => self.direct::<1, 1, CODES>(x, border, rows, to),
            (1, _) => self.direct::<1, 2, CODES>(x, border, rows, to),
            (2, 1) => self.direct::<2, 1, CODES>(x, border, rows, to),
            (2, _) => self.direct::<2, 2, CODES>(x, border, rows, to),
            (_, 1) => self.direct::<4, 1, CODES>(x, border, rows, to),
            (_, _) => self.direct::<4, 2, CODES>(x, border, rows, to),
        }
    }

    /// Three taps side by side, windows STEP columns apart, S segments. Whether the results are codes is known
    /// beforehand: a call among the windows would send all registers to memory.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline(never)]
    fn direct<const S: usize, const STEP: usize, const CODES: bool>(
        &self,
        x: &[u8],
        border: &[u8],
        rows: Range<usize>,
        to: &mut Results,
    ) {
        let weights = self.depthwise.weights(self.piece.lane, 0);
        assert!(weights.len() == 3 * ENTRY && S == self.piece.segments && CODES == matches!(to, Results::Codes(..)));
        let mut taps = [[_mm512_setzero_si512(); 4]; 3];
        for tap in 0..3 {
            for v in 0..4 {
                // SAFETY: three entries.
                taps[tap][v] = unsafe { _mm512_loadu_si512(weights.as_ptr().add(tap * ENTRY + v * VECTOR).cast()) };
            }
        }
        let mut seen = Seen::new(self, x, border);
        for row in rows {
            seen.go_to(&self.conv.shape, row);
            let codes = to.codes(row);
            let mut put = |sums, window: usize| match to {
                // SAFETY: S are the piece's segments, which have such a window.
                Results::Codes(_, rounding) if CODES => unsafe {
                    rounding.put::<S>(sums, codes.wrapping_add(window.wrapping_mul(rounding.channels)));
                },
                Results::Others(block, out) if !CODES => self.finished(sums, row, window, block, out),
                _ => unreachable!("codes or not"),
            };
            // SAFETY: S are the piece's segments, and the rows are those that this one sees.
            unsafe {
                if STEP == 1 {
                    let mut entries = seen.column::<S>(1);
                    let mut now = summed(summed(self.bias, seen.column::<S>(0), &taps[0]), entries, &taps[1]);
                    for window in 0..self.piece.segment {
                        let next = summed(self.bias, entries, &taps[0]);
                        entries = seen.column::<S>(window.wrapping_add(2));
                        put(summed(now, entries, &taps[2]), window);
                        now = summed(next, entries, &taps[1]);
                    }
                } else {
                    let (entries, mut third) = seen.pair::<S>(0);
                    let mut now = summed(self.bias, entries, &taps[0]);
                    for window in 0..self.piece.segment {
                        let (entries, next) = seen.pair::<S>(window.wrapping_mul(2).wrapping_add(2));
                        now = summed(now, entries, &taps[1]);
                        put(summed(now, fours(third, next), &taps[2]), window);
                        now = summed(self.bias, entries, &taps[0]);
                        third = next;
                    }
                }
            }
        }
    }

    /// Any kernel: entries go to a band, and tiles of windows read it.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline(never)]
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
                        1 => columns.at::<1>(column),
                        2 => columns.at::<2>(column),
                        _ => columns.at::<4>(column),
                    };
                    let [a, b, c, d] = four;
                    let four = fours(pairs(a, b), pairs(c, d));
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
        let codes = to.codes(row);
        for from in (0..segment).step_by(PIXELS) {
            // Windows that are done again have the same sums.
            let from = from.min(segment.saturating_sub(PIXELS));
            // SAFETY: the caller's promise.
            unsafe {
                let base = band.add(from * step);
                if segment < PIXELS {
                    for window in 0..segment {
                        let [sums] = self.sums::<1, KW, S>(base.add(window * step), weights);
                        self.put_any(sums, row, window, codes, to);
                    }
                } else {
                    let sums = self.sums::<PIXELS, KW, S>(base, weights);
                    for p in 0..PIXELS {
                        self.put_any(sums[p], row, from + p, codes, to);
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

    /// The sums of a window of an output row become what they are to; `codes` as of [`Results::codes`].
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn put_any(&self, sums: [__m512i; 4], row: usize, window: usize, codes: *mut u8, to: &mut Results) {
        match to {
            Results::Codes(_, rounding) => {
                let to = codes.wrapping_add(window * rounding.channels);
                // SAFETY: the segments are the piece's, which have such a window.
                unsafe {
                    match self.piece.segments {
                        1 => rounding.put::<1>(sums, to),
                        2 => rounding.put::<2>(sums, to),
                        _ => rounding.put::<4>(sums, to),
                    }
                }
            }
            Results::Others(block, out) => self.finished(sums, row, window, block, out),
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
            let (rows, columns) = (i + 1, piece.count.saturating_sub(lane).min(16));
            if columns == 0 {
                continue;
            }
            // SAFETY: each window's sums have been written.
            let sums = unsafe { block.written(q, rows) };
            let pixel = row * piece.width + piece.starts[segment] + window - i;
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
