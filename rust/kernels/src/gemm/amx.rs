//! AMX: 32 rows × 32 columns in four tiles, over the whole depth.
//!
//! A tile is 16 rows of 64 bytes. `tdpbusd` multiplies 16 rows of 64 bytes with 16 columns of as
//! many: 16,384 products in 16 cycles, eight times what `vpdpbusd` does. Rows are packed once a
//! block, 16 of them by 64 of depth in a kilobyte; the layout of a panel is that of tiles already.
//!
//! Weights in groups stand for integers of 16 bits, `(code - zero point) · multiplier`, and their
//! sums are exact: so a panel is written as two planes of bytes, whose products with the rows,
//! one times 256, are added. That is twice the products of int8, and nothing between groups.
//!
//! Rust's intrinsics for tiles are unstable: they are written in assembly.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::avx512::Wide;
use super::groups::{GroupPanel, SUPER};
use super::tiled::PANEL;
use super::vnni::{points_of, quads_of};
use super::{Block, GroupBlock};

/// Rows of a tile.
const ROWS: usize = 16;
/// Bytes of a tile's row: the depth of rows, or 16 columns by 4 of depth.
const ROW: usize = 64;
/// Columns of a tile.
const COLUMNS: usize = 16;
/// Dwords of a line.
const LINE: usize = 16;
/// Depth of a panel in groups that is written as bytes at a time, at most.
const CHUNK: usize = 1024;
/// Fewer rows do not repay packing them.
pub(super) const LEAST: usize = 9;

/// Asks Linux for this process's permission to use tiles; whether it has it.
#[cfg(target_os = "linux")]
pub(crate) fn is_granted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    let leaf = __cpuid_count(7, 0);
    let has_tiles = __cpuid(0).eax >= 7 && leaf.edx >> 24 & 3 == 3;
    // SAFETY: it takes two numbers, and answers with another.
    has_tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
}

/// Tiles of other systems are not asked for.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_granted() -> bool {
    false
}

/// This thread's tiles, all of 16 rows of 64 bytes, until it is dropped.
struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// # Safety
    /// The CPU has AMX, and the process its permission; no other of these is on this thread.
    unsafe fn new() -> Tiles {
        #[repr(align(64))]
        struct Palette([u8; 64]);
        const ALL: Palette = {
            let mut bytes = [0; 64];
            bytes[0] = 1;
            let mut tile = 0;
            while tile < 8 {
                bytes[16 + 2 * tile] = ROW as u8;
                bytes[48 + tile] = ROWS as u8;
                tile += 1;
            }
            Palette(bytes)
        };
        // SAFETY: 64 bytes that say palette 1; the caller's promise.
        unsafe { asm!("ldtilecfg [{}]", in(reg) ALL.0.as_ptr(), options(nostack, readonly, preserves_flags)) };
        Tiles(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles, or there was no value of this type.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Sums of tiles: where they begin, and bytes from row to row.
#[derive(Clone, Copy)]
#[repr(C)]
struct Sums {
    at: *mut i32,
    stride: usize,
}

/// Where sums come from, 0 from row to row if all begin alike, and where they go.
#[repr(C)]
struct Ends {
    from: Sums,
    to: Sums,
}

/// Rows and columns of a product.
struct Factors {
    /// Packed rows, and those 16 further.
    rows: [*const u8; 2],
    /// Four of depth of each column, and bytes to the next four.
    columns: *const u8,
    stride: usize,
    /// How many 64 of depth, and the columns of one more if not null.
    steps: usize,
    last: *const u8,
}

/// Adds products of `16 · R` rows with `16 · C` columns of bytes, signed or not.
///
/// # Safety
/// There are tiles, and what the factors and ends say.
unsafe fn multiply<const R: usize, const C: usize, const SIGNED: bool>(_: &Tiles, factors: &Factors, ends: &Ends) {
    let (mut columns, mut steps, mut last) = (factors.columns, factors.steps, factors.last);
    if steps == 0 {
        (columns, steps, last) = (last, 1, std::ptr::null());
    }
    macro_rules! product {
        ($dot:literal, [$($load:literal)*] [$($step:literal)*] [$($store:literal)*]) => {
            // SAFETY: the caller's promises; no other register is written.
            unsafe {
                asm!(
                    concat!(".macro dot sum, rows, columns\n", $dot, " \\sum, \\rows, \\columns\n.endm"),
                    "mov {x}, [{ends}]",
                    "mov {y}, [{ends} + 8]",
                    $($load,)*
                    "2:",
                    $($step,)*
                    "add {a}, 1024",
                    "add {b}, 1024",
                    "add {c}, {by}",
                    "dec {n}",
                    "jnz 2b",
                    "test {last}, {last}",
                    "jz 3f",
                    "mov {c}, {last}",
                    "mov {n:e}, 1",
                    "xor {last:e}, {last:e}",
                    "jmp 2b",
                    "3:",
                    "mov {x}, [{ends} + 16]",
                    "mov {y}, [{ends} + 24]",
                    $($store,)*
                    ".purgem dot",
                    ends = in(reg) ends,
                    x = out(reg) _,
                    y = out(reg) _,
                    a = inout(reg) factors.rows[0] => _,
                    b = inout(reg) factors.rows[1] => _,
                    c = inout(reg) columns => _,
                    row = in(reg) ROW,
                    stride = in(reg) factors.stride,
                    by = in(reg) 16 * factors.stride,
                    n = inout(reg) steps => _,
                    last = inout(reg) last => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            }
        };
    }
    macro_rules! products {
        ($dot:literal) => {
            match (R, C) {
                (1, 1) => product!($dot,
                    ["tileloadd tmm0, [{x} + {y}]"]
                    ["tileloadd tmm4, [{a} + {row}]" "tileloadd tmm6, [{c} + {stride}]" "dot tmm0, tmm4, tmm6"]
                    ["tilestored [{x} + {y}], tmm0"]
                ),
                (1, _) => product!($dot,
                    ["tileloadd tmm0, [{x} + {y}]" "tileloadd tmm1, [{x} + {y} + 64]"]
                    ["tileloadd tmm4, [{a} + {row}]"
                     "tileloadd tmm6, [{c} + {stride}]" "dot tmm0, tmm4, tmm6"
                     "tileloadd tmm7, [{c} + {stride} + 64]" "dot tmm1, tmm4, tmm7"]
                    ["tilestored [{x} + {y}], tmm0" "tilestored [{x} + {y} + 64], tmm1"]
                ),
                (_, 1) => product!($dot,
                    ["tileloadd tmm0, [{x} + {y}]"
                     "lea {x}, [{x} + 8 * {y}]" "lea {x}, [{x} + 8 * {y}]"
                     "tileloadd tmm2, [{x} + {y}]"]
                    ["tileloadd tmm6, [{c} + {stride}]"
                     "tileloadd tmm4, [{a} + {row}]" "dot tmm0, tmm4, tmm6"
                     "tileloadd tmm5, [{b} + {row}]" "dot tmm2, tmm5, tmm6"]
                    ["tilestored [{x} + {y}], tmm0"
                     "lea {x}, [{x} + 8 * {y}]" "lea {x}, [{x} + 8 * {y}]"
                     "tilestored [{x} + {y}], tmm2"]
                ),
                _ => product!($dot,
                    ["tileloadd tmm0, [{x} + {y}]" "tileloadd tmm1, [{x} + {y} + 64]"
                     "lea {x}, [{x} + 8 * {y}]" "lea {x}, [{x} + 8 * {y}]"
                     "tileloadd tmm2, [{x} + {y}]" "tileloadd tmm3, [{x} + {y} + 64]"]
                    ["tileloadd tmm4, [{a} + {row}]"
                     "tileloadd tmm6, [{c} + {stride}]" "dot tmm0, tmm4, tmm6"
                     "tileloadd tmm7, [{c} + {stride} + 64]" "dot tmm1, tmm4, tmm7"
                     "tileloadd tmm5, [{b} + {row}]" "dot tmm2, tmm5, tmm6" "dot tmm3, tmm5, tmm7"]
                    ["tilestored [{x} + {y}], tmm0" "tilestored [{x} + {y} + 64], tmm1"
                     "lea {x}, [{x} + 8 * {y}]" "lea {x}, [{x} + 8 * {y}]"
                     "tilestored [{x} + {y}], tmm2" "tilestored [{x} + {y} + 64], tmm3"]
                ),
            }
        };
    }
    if SIGNED { products!("tdpbusd") } else { products!("tdpbuud") }
}

/// Products as [`multiply`] makes them, of up to two tiles of rows and of columns.
///
/// # Safety
/// As there.
unsafe fn any<const SIGNED: bool>(tiles: &Tiles, rows: usize, columns: usize, factors: &Factors, ends: &Ends) {
    // SAFETY: the caller's promises.
    unsafe {
        match (rows > ROWS, columns > COLUMNS) {
            (false, false) => multiply::<1, 1, SIGNED>(tiles, factors, ends),
            (false, true) => multiply::<1, 2, SIGNED>(tiles, factors, ends),
            (true, false) => multiply::<2, 1, SIGNED>(tiles, factors, ends),
            (true, true) => multiply::<2, 2, SIGNED>(tiles, factors, ends),
        }
    }
}

/// Bytes of 16 packed rows.
fn packed_len(k: usize) -> usize {
    ROWS * k.next_multiple_of(ROW)
}

/// Dwords of scratch for rows: packed, from a line's beginning on.
pub(super) fn scratch_len(rows: usize, k: usize) -> usize {
    LINE + rows.div_ceil(ROWS) * packed_len(k) / 4
}

/// The same for weights in groups: and two planes of a panel's chunk.
pub(super) fn groups_scratch_len(rows: usize, (k, pass): (usize, usize)) -> usize {
    scratch_len(rows, k) + PANEL * chunk_of(k.min(pass)) / 2
}

fn chunk_of(depth: usize) -> usize {
    CHUNK.min(depth.next_multiple_of(ROW))
}

/// Rows of `k` bytes, each XORed with `flip`, as tiles: 16 rows of 64 bytes, the next 64, and so on, 0 behind.
fn pack(a: &[u8], k: usize, flip: u8, to: &mut [u8]) {
    for (a, to) in a.chunks(ROWS * k).zip(to.chunks_exact_mut(packed_len(k))) {
        for (r, a) in a.chunks_exact(k).enumerate() {
            for (a, to) in a.chunks(ROW).zip(to.chunks_exact_mut(ROWS * ROW)) {
                let to: &mut [u8; ROW] = to[r * ROW..].first_chunk_mut().expect("a row");
                match a.first_chunk::<ROW>() {
                    Some(a) => *to = a.map(|a| a ^ flip),
                    None => {
                        to.fill(0);
                        to.iter_mut().zip(a).for_each(|(to, a)| *to = a ^ flip);
                    }
                }
            }
        }
        let rows = a.len() / k;
        for to in to.chunks_exact_mut(ROWS * ROW) {
            to[rows * ROW..].fill(0);
        }
    }
}

/// The packed rows in scratch, made here if they are not, and what lies behind them.
fn rows_in<'a>(a: &[u8], k: usize, flip: u8, scratch: &'a mut [i32], made: &mut bool) -> (&'a [u8], &'a mut [i32]) {
    let skip = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
    let rows = (a.len() / k).div_ceil(ROWS) * packed_len(k) / 4;
    let (packed, rest) = scratch[skip..].split_at_mut(rows);
    let packed: &mut [u8] = bytemuck::cast_slice_mut(packed);
    if !std::mem::replace(made, true) {
        pack(a, k, flip, packed);
    }
    (packed, rest)
}

/// Sums of 32 rows and 32 columns.
#[repr(align(64))]
struct Buffer([[i32; 2 * COLUMNS]; 2 * ROWS]);

/// Where rows' sums go: row by row, or also as tiles if all are as far apart.
struct Target<'a, 'b> {
    out: &'a mut [&'b mut [i32]],
    stride: Option<usize>,
}

impl<'a, 'b> Target<'a, 'b> {
    fn new(out: &'a mut [&'b mut [i32]]) -> Self {
        let at: Vec<usize> = out.iter_mut().map(|row| row.as_mut_ptr().expose_provenance()).collect();
        let stride = match at[..] {
            [first, second, ..] => second.checked_sub(first),
            _ => None,
        };
        let stride = stride.filter(|&by| at.windows(2).all(|two| two[0].checked_add(by) == Some(two[1])));
        Target { out, stride }
    }

    /// As tiles, `rows` from the first on if they are whole.
    fn tiles(&mut self, first: usize, rows: usize, col: usize) -> Option<Sums> {
        let stride = self.stride.filter(|_| rows.is_multiple_of(ROWS))?;
        // Its rows are exposed: a tile reaches the next ones from the first.
        let at = std::ptr::with_exposed_provenance_mut(self.out[first][col..].as_mut_ptr().addr());
        Some(Sums { at, stride })
    }
}

/// `scalar::panel`.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VNNI, and AMX of which the process has permission; `scratch` holds [`scratch_len`]
/// dwords, and `made` tells whether the rows are in it; `out` has as many rows as `block`, each of at least
/// `col + block.panel.width` columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn panel(
    block: &Block,
    scratch: &mut [i32],
    made: &mut bool,
    out: &mut [&mut [i32]],
    col: usize,
) {
    let (m, k, width) = (out.len(), block.k, block.panel.width);
    let (packed, _) = rows_in(block.a, k, block.flip, scratch, made);
    let stride = 4 * width;
    // The last columns, for their depth is no whole tile.
    let mut last = [0; ROWS * 4 * PANEL];
    let from = k / ROW * ROWS * stride;
    let tail = &block.panel.codes[from..];
    last[..tail.len()].copy_from_slice(tail);
    let mut buffer = Buffer([[0; 2 * COLUMNS]; 2 * ROWS]);
    // SAFETY: the caller's promise.
    let tiles = unsafe { Tiles::new() };
    let mut target = Target::new(out);
    for first in (0..width).step_by(2 * COLUMNS) {
        let columns = (2 * COLUMNS).min(width - first);
        for (pair, row) in (0..m).step_by(2 * ROWS).enumerate() {
            let rows = (2 * ROWS).min(m - row);
            let packed = &packed[2 * pair * packed_len(k)..];
            let factors = Factors {
                rows: [packed.as_ptr(), packed.as_ptr().wrapping_add(packed_len(k))],
                columns: block.panel.codes.as_ptr().wrapping_add(4 * first),
                stride,
                steps: k / ROW,
                last: if tail.is_empty() { std::ptr::null() } else { last.as_ptr().wrapping_add(4 * first) },
            };
            let from = Sums { at: block.start.as_ptr().wrapping_add(first).cast_mut(), stride: 0 };
            let to = target.tiles(row, rows, col + first);
            let whole = to.is_some();
            let to = to.unwrap_or(Sums { at: buffer.0.as_mut_ptr().cast(), stride: 8 * COLUMNS });
            // SAFETY:
            unsafe { any::<true>(&tiles, rows, columns, &factors, &Ends { from, to }) };
            if !whole {
                for (out, sums) in target.out[row..][..rows].iter_mut().zip(&buffer.0) {
                    out[col + first..][..columns].copy_from_slice(&sums[..columns]);
                }
            }
        }
    }
}

/// `scalar::groups`.
///
/// # Safety
/// As [`panel`], with [`groups_scratch_len`] dwords; the depth is one pass.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn groups(
    block: &GroupBlock,
    scratch: &mut [i32],
    made: &mut bool,
    out: &mut [&mut [i32]],
    col: usize,
) {
    let (panel, m, depth) = (block.panel, out.len(), block.depth.clone());
    let (k, width) = (panel.k, panel.width);
    let (packed, rest) = rows_in(block.a, k, 0, scratch, made);
    let chunk = chunk_of(k.min(panel.pass));
    assert!(depth.start.is_multiple_of(chunk) && depth.end <= k);
    let planes: &mut [u8] = bytemuck::cast_slice_mut(&mut rest[..PANEL * chunk / 2]);
    let (high, low) = planes.split_at_mut(PANEL * chunk);
    let stride = 4 * width;
    let mut buffer = Buffer([[0; 2 * COLUMNS]; 2 * ROWS]);
    const ZEROS: [i32; 2 * COLUMNS] = [0; 2 * COLUMNS];
    // SAFETY: the caller's promise.
    let tiles = unsafe { Tiles::new() };
    let mut target = Target::new(out);
    for from in depth.clone().step_by(chunk) {
        let part = from..depth.end.min(from + chunk);
        let steps = part.len().div_ceil(ROW);
        // SAFETY: the caller's promise.
        let wide = unsafe { Wide::new() };
        digits(wide, panel, part.clone(), high, low);
        for first in (0..width).step_by(2 * COLUMNS) {
            let columns = (2 * COLUMNS).min(width - first);
            for (pair, row) in (0..m).step_by(2 * ROWS).enumerate() {
                let rows = (2 * ROWS).min(m - row);
                let packed = &packed[2 * pair * packed_len(k) + from * ROWS..];
                let factors = |plane: &[u8]| Factors {
                    rows: [packed.as_ptr(), packed.as_ptr().wrapping_add(packed_len(k))],
                    columns: plane.as_ptr().wrapping_add(4 * first),
                    stride,
                    steps,
                    last: std::ptr::null(),
                };
                let between = Sums { at: buffer.0.as_mut_ptr().cast(), stride: 8 * COLUMNS };
                let zero = Sums { at: ZEROS.as_ptr().cast_mut(), stride: 0 };
                // SAFETY:
                unsafe { any::<true>(&tiles, rows, columns, &factors(high), &Ends { from: zero, to: between }) };
                let fresh = from == depth.start;
                for (r, sums) in buffer.0.iter_mut().enumerate().take(rows) {
                    if fresh {
                        sums.iter_mut().for_each(|sum| *sum = *sum << 8);
                    } else {
                        let out = &target.out[row + r][col + first..][..columns];
                        sums.iter_mut().zip(out).for_each(|(sum, out)| *sum = (*sum << 8).wrapping_add(*out));
                    }
                }
                let to = target.tiles(row, rows, col + first);
                let whole = to.is_some();
                let to = to.unwrap_or(between);
                // SAFETY:
                unsafe { any::<false>(&tiles, rows, columns, &factors(low), &Ends { from: between, to }) };
                if !whole {
                    for (out, sums) in target.out[row..][..rows].iter_mut().zip(&buffer.0) {
                        out[col + first..][..columns].copy_from_slice(&sums[..columns]);
                    }
                }
            }
        }
    }
}

/// The integers of a chunk of a panel, as `[quad][column][4]`: signed high bytes, unsigned low ones.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn digits(w: Wide, panel: &GroupPanel, depth: Range<usize>, high: &mut [u8], low: &mut [u8]) {
    match panel.groups.nbits() {
        2 => digits_of::<2>(w, panel, depth, high, low),
        3 => digits_of::<3>(w, panel, depth, high, low),
        4 => digits_of::<4>(w, panel, depth, high, low),
        5 => digits_of::<5>(w, panel, depth, high, low),
        6 => digits_of::<6>(w, panel, depth, high, low),
        8 => digits_of::<8>(w, panel, depth, high, low),
        nbits => unreachable!("codes of {nbits} bits"),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn digits_of<const NBITS: usize>(w: Wide, panel: &GroupPanel, depth: Range<usize>, high: &mut [u8], low: &mut [u8]) {
    let (groups, width) = (panel.groups, panel.width);
    let (group_size, last) = (groups.group_size(), groups.count(panel.k) - 1);
    let row = 4 * width;
    let supersteps = depth.start / SUPER..depth.end.div_ceil(SUPER);
    let codes = panel.codes[supersteps.start * row * NBITS..supersteps.end * row * NBITS].chunks_exact(row * NBITS);
    let bytes = supersteps.len() * SUPER * width;
    let (high, low) = (&mut high[..bytes], &mut low[..bytes]);
    let even = _mm512_set1_epi16(0x00ff);
    let steps = codes.zip(high.chunks_exact_mut(SUPER * width)).zip(low.chunks_exact_mut(SUPER * width));
    for (step, ((codes, high), low)) in steps.enumerate() {
        let first = depth.start + step * SUPER;
        let at: [usize; SUPER / 4] = std::array::from_fn(|i| ((first + 4 * i) / group_size).min(last));
        for column in (0..width).step_by(COLUMNS) {
            // SAFETY: each row of codes has 16 columns from this one on.
            let quads = unsafe { quads_of::<Wide, NBITS>(w, codes.as_ptr().add(4 * column), row) };
            let mut less = _mm512_setzero_si512();
            let (mut by_even, mut by_odd) = (less, less);
            for (i, quad) in quads.into_iter().enumerate() {
                if i == 0 || at[i] != at[i - 1] {
                    let bytes = &panel.multipliers[at[i] * width + column..][..COLUMNS];
                    // SAFETY: 16 bytes.
                    let by = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast())) };
                    let points = points_of(w, panel, at[i], column);
                    by_even = _mm512_or_si512(by, _mm512_slli_epi32::<16>(by));
                    by_odd = _mm512_slli_epi16::<8>(by_even);
                    less = if NBITS == 8 {
                        // In words, of the product.
                        let product = _mm512_mullo_epi32(points, by);
                        _mm512_or_si512(product, _mm512_slli_epi32::<16>(product))
                    } else {
                        let two = _mm512_or_si512(points, _mm512_slli_epi32::<8>(points));
                        _mm512_or_si512(two, _mm512_slli_epi32::<16>(two))
                    };
                }
                let (e, o) = if NBITS == 8 {
                    // Multipliers of 8 bits are 63 at most, and fit a signed byte.
                    let e = _mm512_maddubs_epi16(quad, by_even);
                    let o = _mm512_maddubs_epi16(quad, by_odd);
                    (_mm512_sub_epi16(e, less), _mm512_sub_epi16(o, less))
                } else {
                    let code = _mm512_sub_epi8(quad, less);
                    (_mm512_maddubs_epi16(by_even, code), _mm512_maddubs_epi16(by_odd, code))
                };
                // Of both, the even bytes of one and the odd bytes of the other.
                let low_of = _mm512_ternarylogic_epi32::<0xca>(even, e, _mm512_slli_epi16::<8>(o));
                let high_of = _mm512_ternarylogic_epi32::<0xca>(even, _mm512_srli_epi16::<8>(e), o);
                let to = (i * width + column) * 4;
                // SAFETY: 64 bytes of each.
                unsafe {
                    _mm512_storeu_si512(low[to..to + 64].as_mut_ptr().cast(), low_of);
                    _mm512_storeu_si512(high[to..to + 64].as_mut_ptr().cast(), high_of);
                }
            }
        }
    }
}
