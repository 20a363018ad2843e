//! AVX-512 VNNI: `vpdpbusd`, four products of bytes a lane.
//!
//! A tile is 6 pixels by 64 filters, or more pixels by fewer filters: up to 24
//! accumulators, over a whole window. Panels stream from L2 through each tile,
//! and tiles of a panel are as even as they can be, since one of few pixels
//! takes as long to read the weights as one of many. The common rule rounds sums
//! before they leave the registers: those of smaller tiles, whose weights come from
//! L1, during the next tile. For other rules they are stored, and finished block by
//! block.

mod depthwise;
mod finish;

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx2::ROW;
use super::filter::Panel;
use super::quads::{LANES, Quads, VECTOR};
use super::{Conv2d, Out};
use finish::{Added, Common, finish};

pub(super) use depthwise::run as run_depthwise;

/// Pixels of a tile, at most, by its vectors of filters.
const PIXELS: [usize; 9] = [0, 12, 12, 8, 6, 0, 0, 0, 1];
/// And of one that is rounded during the next: registers hold the sums of both.
const PIPED: [usize; 9] = [0, 12, 6, 4, 3, 0, 0, 0, 0];
/// Bytes of a panel that stay in L1, from where smaller tiles can read them more often.
const PIPED_PANEL: usize = 16 << 10;
/// Pixels that are finished at a time: whole tiles.
const BLOCK: usize = 24;

/// Sums of a block, vector after vector, each in rows of 16 filters. Products write them before they
/// are read: to clear them would cost a small layer half of its time.
#[repr(align(64))]
struct Sums([MaybeUninit<i32>; 8 * BLOCK * ROW]);

impl Sums {
    /// The first rows of a vector.
    ///
    /// # Safety
    /// They have been written.
    unsafe fn written(&self, vector: usize, rows: usize) -> &[i32] {
        let sums = &self.0[vector * BLOCK * ROW..][..rows * ROW];
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(sums.as_ptr().cast(), sums.len()) }
    }
}

/// What products read: pixels of a band.
struct Pixels<'a> {
    bytes: &'a [u8],
    starts: &'a [u32],
    /// The first of the channels.
    channel: usize,
    runs: &'a [(usize, usize)],
    /// What is left to do to the bits of a pixel that is alone.
    flip: u8,
}

impl Pixels<'_> {
    /// Where P of them are, from `from` on.
    ///
    /// # Safety
    /// There are as many, and they lie in the bytes.
    #[inline(always)]
    unsafe fn bases<const P: usize>(&self, from: usize) -> [*const u8; P] {
        let mut base = [self.bytes.as_ptr(); P];
        for p in 0..P {
            // SAFETY: the caller's promise.
            unsafe { base[p] = base[p].add(*self.starts.get_unchecked(from + p) as usize + self.channel) };
        }
        base
    }
}

/// How the sums of a panel become codes by the common rule.
struct Rounding<'a> {
    common: &'a Common,
    /// Of the panel's filters.
    multiplier: &'a [f32],
    /// Codes from one pixel to the next.
    filters: usize,
    /// Which of the last vector's filters there are.
    last: __mmask16,
    /// What is added to them.
    added: Option<&'a Added>,
}

/// Where a tile's results go.
enum Results<'a> {
    /// Rows of sums, a block from one vector to the next.
    Sums(*mut i32),
    /// The first pixel's codes.
    Codes(*mut u8, &'a Rounding<'a>),
}

/// A convolution.
pub(super) fn run(conv: &Conv2d, quads: &Quads, x: &[u8], mut out: Out, scratch: &mut [i16]) {
    assert!(conv.isa.has_avx512());
    // SAFETY: an `Isa` that has AVX-512 exists only where the CPU has it, and AVX2.
    unsafe { avx512(conv, quads, x, &mut out, bytemuck::cast_slice_mut(scratch)) };

    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn avx512(conv: &Conv2d, quads: &Quads, x: &[u8], out: &mut Out, scratch: &mut [u8]) {
        let mut sums = Sums([MaybeUninit::uninit(); _]);
        let (Conv2d { out: [height, width, _], .. }, band) = (conv, &quads.band);
        let (flip, zero) = (Quads::flip(conv.input), Quads::zero_point(conv.input) as u8);
        let common = Common::of(conv);
        if let (true, Some((common, multiplier)), Out::Codes(codes, None)) = (quads.is_vector(), &common, &mut *out) {
            return of_one(conv, quads, x, common, multiplier, codes);
        }
        let added = Added::of(&conv.finish);
        let common = common.as_ref().map(|(common, multiplier)| (common, *multiplier, added.as_ref()));
        for row in (0..*height).step_by(band.rows) {
            let rows = band.rows.min(height - row);
            let bytes = if quads.in_image {
                &x[band.offset(row)..]
            } else {
                band.fill(&conv.shape, row, rows, x, scratch, zero, |x, to| flipped(x, flip, to))
            };
            for panel in &quads.panels {
                let (starts, runs) = (&band.starts[..rows * width], &band.runs[..]);
                let flip = if quads.in_image { flip } else { 0 };
                let pixels = Pixels { bytes, starts, channel: panel.channel, runs, flip };
                let weights = quads.weights.at(panel.at, band.steps * panel.vectors * VECTOR);
                of_panel(conv, panel, &pixels, weights, row * width, common, &mut sums, out);
            }
        }
    }
}

/// The codes of one pixel, whose window is the image: a matrix times a vector. What is done besides reading
/// the matrix takes a good part of the time, so no more is done than has to be.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
fn of_one(conv: &Conv2d, quads: &Quads, x: &[u8], common: &Common, multiplier: &[f32], codes: &mut [u8]) {
    let (band, filters) = (&quads.band, conv.out[2]);
    let (steps, flip) = (band.steps, Quads::flip(conv.input));
    assert!(codes.len() == filters && band.starts[..] == [0]);
    for panel in &quads.panels {
        let Panel { filter, count, vectors, at, channel } = *panel;
        let weights = quads.weights.at(at, steps * vectors * VECTOR);
        assert!(channel + band.reach <= x.len() && filter + count <= filters && count <= vectors * LANES);
        // What is one for each filter is padded by more than a vector.
        let bias = &conv.finish.bias[filter..][..vectors * LANES];
        let rounding = Rounding::new(common, multiplier, None, panel, filters);
        let pixels = Pixels { bytes: x, starts: &band.starts, channel, runs: &band.runs, flip };
        let to = Results::Codes(codes[filter..].as_mut_ptr(), &rounding);
        // SAFETY: the assertions above; `Band` has summed up its runs as `reach` and `steps`.
        unsafe { tile_of(vectors, 1, &pixels, 0, weights, bias, to) };
    }
}

/// Codes with some of their bits flipped.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn flipped(x: &[u8], flip: u8, to: &mut [u8]) {
    let bits = _mm512_set1_epi8(flip as i8);
    let (x64, rest) = x.as_chunks::<64>();
    let (to64, to_rest) = to.as_chunks_mut::<64>();
    for (x, to) in x64.iter().zip(to64) {
        // SAFETY: both are 64 bytes.
        unsafe {
            let x = _mm512_loadu_si512(x.as_ptr().cast());
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_xor_si512(x, bits));
        }
    }
    to_rest.iter_mut().zip(rest).for_each(|(to, &x)| *to = x ^ flip);
}

/// What becomes of a band's pixels, of which the first is `pixel`, with one panel. Their starts ascend, as
/// `Band::of_pitch` makes them.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline(never)]
fn of_panel(
    conv: &Conv2d,
    panel: &Panel,
    pixels: &Pixels,
    weights: &[i8],
    pixel: usize,
    common: Option<(&Common, &[f32], Option<&Added>)>,
    sums: &mut Sums,
    out: &mut Out,
) {
    let (Panel { vectors, filter, .. }, filters) = (*panel, conv.out[2]);
    // What is one for each filter is padded by more than a vector.
    let bias = &conv.finish.bias[filter..][..vectors * LANES];
    let furthest = pixels.starts.last().map_or(0, |&start| start as usize);
    let reach = pixels.runs.iter().map(|&(at, len)| at + len.next_multiple_of(4)).max().unwrap_or(0);
    assert!(furthest + pixels.channel + reach <= pixels.bytes.len());
    let steps = pixels.runs.iter().map(|&(_, len)| len.div_ceil(4)).sum::<usize>();
    assert!(steps * vectors * VECTOR <= weights.len() && PIXELS[vectors] > 0);
    let count = pixels.starts.len();
    let (mut from, mut rounding) = (0, None);
    if let (Some((common, multiplier, added)), Out::Codes(codes, other)) = (common, &mut *out) {
        let all = Rounding::new(common, multiplier, added, panel, filters);
        let first = pixel * filters + filter;
        assert!(first + (count - 1) * filters + panel.count <= codes.len());
        assert!(other.is_none_or(|other| other.len() == codes.len()) && other.is_some() == added.is_some());
        let piped = PIPED[vectors];
        if piped > 0 && (added.is_some() || weights.len() <= PIPED_PANEL) {
            // A tile of few pixels takes as long as one of many: those left over share with one more.
            let tiles = (count / piped).saturating_sub(usize::from((1..piped.div_ceil(2)).contains(&(count % piped))));
            let codes = codes[first..].as_mut_ptr();
            let other = other.map_or(std::ptr::null(), |other| other[first..].as_ptr());
            // SAFETY: the assertions above; so many tiles there are.
            unsafe { piped_of(vectors, tiles, pixels, weights, bias, codes, other, &all) };
            from = tiles * piped;
        }
        rounding = added.is_none().then_some(all);
    }
    let (start, rest) = (from, count - from);
    let tiles = rest.div_ceil(PIXELS[vectors]);
    let mut done = from;
    for tile in 0..tiles {
        let end = start + (tile + 1) * rest / tiles;
        let to = match (&rounding, &mut *out) {
            (Some(rounding), Out::Codes(codes, _)) => {
                Results::Codes(codes[(pixel + from) * filters + filter..].as_mut_ptr(), rounding)
            }
            _ => Results::Sums(sums.0[(from - done) * ROW..].as_mut_ptr().cast()),
        };
        // SAFETY: no tile has more pixels than `PIXELS` says, nor than are left in the block; the
        // assertions above.
        unsafe { tile_of(vectors, end - from, pixels, from, weights, bias, to) };
        from = end;
        if rounding.is_none() && (from - done + PIXELS[vectors] > BLOCK || from == count) {
            for v in 0..vectors {
                let rows = from - done;
                // SAFETY: the block's tiles have written a row of each vector for each of their pixels.
                let sums = unsafe { sums.written(v, rows) };
                let columns = (panel.count - v * LANES).min(LANES);
                finish(&conv.finish, filters, sums, rows, pixel + done, filter + v * LANES, columns, out);
            }
            done = from;
        }
    }
}

impl<'a> Rounding<'a> {
    /// For a panel of so many filters in all, each with its multiplier.
    fn new(common: &'a Common, multiplier: &'a [f32], added: Option<&'a Added>, panel: &Panel, filters: usize) -> Self {
        let multiplier = &multiplier[panel.filter..][..panel.vectors * LANES];
        let last = u16::MAX >> (panel.vectors * LANES - panel.count);
        Rounding { common, multiplier, filters, last, added }
    }

    /// The codes of P pixels of V vectors.
    ///
    /// # Safety
    /// There is room for them from `codes` on; there are V vectors of multipliers; AVX-512.
    #[inline(always)]
    unsafe fn store<const P: usize, const V: usize>(&self, sums: &[[__m512i; V]; P], codes: *mut u8) {
        // One four after the other is written here: compilers leave a loop of them, and then sums go through memory.
        macro_rules! fours {
            ($($first:literal)*) => { $(if $first < P * V { self.four::<P, V, false>(sums, $first, codes, std::ptr::null()); })* };
        }
        // SAFETY: the caller's promises.
        unsafe {
            fours!(0 4 8 12 16 20);
        }
    }

    /// Those of four vectors, or as many as are left, from the one at `first` on: of one pixel or of several, they
    /// take fewer instructions than each of them.
    ///
    /// # Safety
    /// As of [`store`](Self::store).
    #[inline(always)]
    unsafe fn four<const P: usize, const V: usize, const ADD: bool>(
        &self,
        sums: &[[__m512i; V]; P],
        first: usize,
        codes: *mut u8,
        other: *const u8,
    ) {
        // SAFETY: the caller's promises.
        unsafe {
            // Four of each vector come in turn.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let mask = |at: usize| if at % V + 1 < V { u16::MAX } else { self.last };
            let in_one = V.is_multiple_of(4) || (self.filters == V * LANES && self.last == u16::MAX);
            let (mut four, mut by) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_ps(); 4]);
            for i in 0..4 {
                let at = if first + i < P * V { first + i } else { first };
                four[i] = sums[at / V][at % V];
                by[i] = _mm512_loadu_ps(self.multiplier.as_ptr().add(LANES * (at % V)));
            }
            let bytes = match self.added {
                Some(added) if ADD => {
                    let mut others = [_mm_setzero_si128(); 4];
                    for i in 0..4 {
                        let at = if first + i < P * V { first + i } else { first };
                        let from = other.wrapping_add(at / V * self.filters + at % V * LANES);
                        others[i] = if mask(at) == u16::MAX {
                            _mm_loadu_si128(from.cast())
                        } else {
                            _mm_maskz_loadu_epi8(mask(at), from.cast())
                        };
                    }
                    self.common.codes_added(four, by, added, others)
                }
                _ => self.common.codes(four, by),
            };
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            let to = |at: usize| codes.wrapping_add(at / V * self.filters + at % V * LANES).cast::<i8>();
            if in_one && first + 4 <= P * V {
                let last = mask(first + 3);
                if last == u16::MAX {
                    // What follows can read these bytes before they are in L1.
                    _mm512_storeu_si512(to(first).cast(), bytes);
                } else {
                    _mm512_mask_storeu_epi8(to(first), (u64::from(last) << 48) | (u64::MAX >> 16), bytes);
                }
                return;
            }
            _mm_mask_storeu_epi8(to(first), mask(first), _mm512_castsi512_si128(bytes));
            if first + 1 < P * V {
                _mm_mask_storeu_epi8(to(first + 1), mask(first + 1), _mm512_extracti32x4_epi32(bytes, 1));
            }
            if first + 2 < P * V {
                _mm_mask_storeu_epi8(to(first + 2), mask(first + 2), _mm512_extracti32x4_epi32(bytes, 2));
            }
            if first + 3 < P * V {
                _mm_mask_storeu_epi8(to(first + 3), mask(first + 3), _mm512_extracti32x4_epi32(bytes, 3));
            }
        }
    }
}

/// # Safety
/// `vectors` and `count` are a tile's, and as of [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile_of(
    vectors: usize,
    count: usize,
    pixels: &Pixels,
    from: usize,
    weights: &[i8],
    bias: &[i32],
    to: Results,
) {
    macro_rules! tiles {
        ($($v:literal: $($p:literal)*;)*) => {
            // SAFETY: the caller's promises.
            unsafe {
                match (vectors, count) {
                    $($(($v, $p) => tile::<$p, $v>(pixels, from, weights, bias, to),)*)*
                    _ => unreachable!("{count} pixels of {vectors} vectors"),
                }
            }
        };
    }
    tiles! {
        8: 1;
        4: 6 5 4 3 2 1;
        3: 8 7 6 5 4 3 2 1;
        2: 12 11 10 9 8 7 6 5 4 3 2 1;
        1: 12 11 10 9 8 7 6 5 4 3 2 1;
    }
}

/// # Safety
/// `vectors` is a panel's; as of [`piped`], for as many pixels as [`PIPED`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn piped_of(
    vectors: usize,
    count: usize,
    pixels: &Pixels,
    weights: &[i8],
    bias: &[i32],
    codes: *mut u8,
    other: *const u8,
    rounding: &Rounding,
) {
    macro_rules! tiles {
        ($($v:literal)*) => {
            // SAFETY: the caller's promises.
            unsafe {
                match (vectors, rounding.added.is_some()) {
                    $(
                        ($v, false) => piped::<{ PIPED[$v] }, $v, false>(count, pixels, weights, bias, codes, other, rounding),
                        ($v, true) => piped::<{ PIPED[$v] }, $v, true>(count, pixels, weights, bias, codes, other, rounding),
                    )*
                    _ => unreachable!("{vectors} vectors"),
                }
            }
        };
    }
    tiles!(1 2 3 4);
}

/// The codes of `count` tiles of P pixels, the first of them first. Each is rounded while the products of the
/// next are summed up: if it were at once, the units that multiply would wait.
///
/// # Safety
/// As of [`tile`], for each of the tiles; and what is added to their codes can be read from `other` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn piped<const P: usize, const V: usize, const ADD: bool>(
    count: usize,
    pixels: &Pixels,
    weights: &[i8],
    bias: &[i32],
    mut codes: *mut u8,
    mut other: *const u8,
    rounding: &Rounding,
) {
    if count == 0 {
        return;
    }
    let (runs, third) = (pixels.runs, pixels.runs.len() / 3);
    let thirds = [&runs[..third], &runs[third..2 * third], &runs[2 * third..]];
    // SAFETY: the caller's promises; `codes` and `other` do not go beyond the last tile.
    unsafe {
        let (mut before, no_flip) = ([[_mm512_setzero_si512(); V]; P], _mm512_setzero_si512());
        // Behind the last tile nothing is summed up.
        for tile in 0..=count {
            let thirds = if tile < count { thirds } else { [&[][..]; 3] };
            let mut acc = from_bias::<P, V>(bias);
            let base = pixels.bases::<P>(tile.min(count - 1) * P);
            let mut at = weights.as_ptr();
            macro_rules! third {
                ($third:literal) => {
                    for &(offset, len) in thirds[$third] {
                        let (mut i, end) = (offset, offset.wrapping_add(len));
                        while i < end {
                            step(&mut acc, &base, i, at, no_flip);
                            (at, i) = (at.add(VECTOR * V), i.wrapping_add(4));
                        }
                    }
                    if tile > 0 {
                        rounding.four::<P, V, ADD>(&before, 4 * $third, codes, other);
                    }
                };
            }
            third!(0);
            third!(1);
            third!(2);
            before = acc;
            if tile > 0 && tile < count {
                codes = codes.add(P * rounding.filters);
                other = other.wrapping_add(P * rounding.filters);
            }
        }
    }
}

/// The sums of P pixels and V vectors of filters, from `bias` on.
///
/// # Safety
/// `pixels` has P of them from `from` on; each run, from each pixel's start and the channel on, lies in the
/// bytes, to a multiple of four; `weights` has V vectors for each four of them; `bias` V vectors. There is
/// room for P rows of sums, V times, each a block on from the one before, or for the codes that P pixels have
/// of these filters, and `rounding` has V vectors of multipliers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const P: usize, const V: usize>(
    pixels: &Pixels,
    from: usize,
    weights: &[i8],
    bias: &[i32],
    to: Results,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut acc = from_bias::<P, V>(bias);
        let base = pixels.bases::<P>(from);
        let mut at = weights.as_ptr();
        let flip = _mm512_set1_epi8(pixels.flip as i8);
        // Of a few sums one waits for the other: a second set of them takes every other four.
        let (few, mut second) = (P * V < 4, [[_mm512_setzero_si512(); V]; P]);
        for &(offset, len) in pixels.runs {
            // Pointers and this index wrap where sums of `usize` would be checked.
            let mut i = offset;
            let end = offset.wrapping_add(len);
            while few && i.wrapping_add(4) < end {
                step(&mut acc, &base, i, at, flip);
                step(&mut second, &base, i.wrapping_add(4), at.add(VECTOR * V), flip);
                (at, i) = (at.add(2 * VECTOR * V), i.wrapping_add(8));
            }
            while i < end {
                step(&mut acc, &base, i, at, flip);
                (at, i) = (at.add(VECTOR * V), i.wrapping_add(4));
            }
        }
        for p in 0..if few { P } else { 0 } {
            for v in 0..V {
                acc[p][v] = _mm512_add_epi32(acc[p][v], second[p][v]);
            }
        }
        match to {
            Results::Sums(sums) => {
                for p in 0..P {
                    for v in 0..V {
                        _mm512_storeu_si512(sums.add((v * BLOCK + p) * ROW).cast(), acc[p][v]);
                    }
                }
            }
            Results::Codes(codes, rounding) => rounding.store(&acc, codes),
        }
    }
}

/// Sums that begin with the bias.
///
/// # Safety
/// There are V vectors of it; AVX-512.
#[inline(always)]
unsafe fn from_bias<const P: usize, const V: usize>(bias: &[i32]) -> [[__m512i; V]; P] {
    // SAFETY: the caller's promises.
    unsafe {
        let mut start = [_mm512_setzero_si512(); V];
        for v in 0..V {
            start[v] = _mm512_loadu_si512(bias.as_ptr().add(LANES * v).cast());
        }
        [start; P]
    }
}

/// Adds the products of four bytes of P pixels with the weights of V vectors.
///
/// # Safety
/// They can be read from `i` on from each base, and from `at` on.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn step<const P: usize, const V: usize>(
    acc: &mut [[__m512i; V]; P],
    base: &[*const u8; P],
    i: usize,
    at: *const i8,
    flip: __m512i,
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut w = [_mm512_setzero_si512(); V];
        for v in 0..V {
            w[v] = _mm512_loadu_si512(at.add(VECTOR * v).cast());
        }
        for p in 0..P {
            let mut four = _mm512_set1_epi32(base[p].add(i).cast::<i32>().read_unaligned());
            if P == 1 {
                four = _mm512_xor_si512(four, flip);
            }
            for v in 0..V {
                acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], four, w[v]);
            }
        }
    }
}
