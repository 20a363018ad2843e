//! AMX: 32 rows × 32 columns in four tiles, over much of the depth.
//!
//! A tile is 16 rows of 64 bytes. `tdpbusd` multiplies 16 rows of 64 bytes with 16 columns of as
//! many: 16,384 products in 16 cycles, eight times what `vpdpbusd` does. Rows are read where they
//! are if they begin at lines, or packed, 16 of them by 64 of depth in a kilobyte; the layout of a
//! panel is that of tiles already.
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
use super::vnni::{Spread, quads_of};
use super::{GroupBlock, Part};
use crate::Isa;
use crate::lanes::prefetch_line;

/// Assembly that leaves nothing in tiles that anyone is to read.
macro_rules! with_tiles {
    ([$($option:ident),*] $($body:tt)*) => {
        asm!(
            $($body)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options($($option),*),
        )
    };
}

pub(super) mod floats;

/// Rows of a tile.
const ROWS: usize = 16;
/// Bytes of a tile's row: the depth of rows, or 16 columns by 4 of depth.
const ROW: usize = 64;
/// Columns of a tile.
const COLUMNS: usize = 16;
/// Dwords of a line.
const LINE: usize = 16;
/// Rows and columns of a block.
const BLOCK: usize = 2 * ROWS;
/// Bytes of panels side by side, and their number, at most.
const SIDE: usize = 1 << 20;
const MOST: usize = 16;
/// Depth of a panel in groups that is written as planes at a time, at most.
const CHUNK: usize = 1024;
/// Depth of int8 from which on it is multiplied in one piece, and by half as many panels; and else at a time: what 32
/// rows have of it stays in L1 with 32 columns'.
const DEEP: usize = 2048;
const DEPTH: usize = 1024;
/// Bytes ahead of the codes that are read: they come from memory.
const AHEAD: usize = 8192;
/// Fewer rows do not repay packing them.
pub(super) const LEAST: usize = 6;

/// Asks Linux for this process's permission to use tiles; whether it has it. From then on signals' stacks have to
/// hold tiles too, which glibc's own sizes know.
#[cfg(target_os = "linux")]
pub(crate) fn is_granted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    #[allow(unused_unsafe)] // `cpuid` is safe since Rust 1.94
    // SAFETY: every x86-64 CPU has `cpuid`; the call takes two numbers, and answers with another.
    unsafe {
        // Tiles, and their products of bytes and of bfloat16.
        let has_tiles = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 22 & 0b1101 == 0b1101;
        has_tiles && libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
    }
}

/// Tiles of other systems are not asked for.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_granted() -> bool {
    false
}

/// This thread's tiles, of 16 rows, until it is dropped.
struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// Tiles of 64 bytes a row; but of so many columns where sums are, 0 to 3, and in 6 and 7.
    ///
    /// # Safety
    /// No other of these is on this thread: the first to go would take the tiles with it.
    unsafe fn new(isa: Isa, columns: usize) -> Tiles {
        assert!(isa.has_amx() && (1..=COLUMNS).contains(&columns));
        let mut palette = [0u8; 64];
        palette[0] = 1;
        for tile in 0..8 {
            palette[16 + 2 * tile] = if matches!(tile, 4 | 5) { ROW } else { 4 * columns } as u8;
            palette[48 + tile] = ROWS as u8;
        }
        // SAFETY: by the Isa, the CPU has tiles and the process may use them; 64 bytes that say palette 1.
        unsafe {
            with_tiles!(
                [nostack, readonly, preserves_flags]
                "ldtilecfg [{}]",
                in(reg) palette.as_ptr(),
            );
        }
        Tiles(PhantomData)
    }
}

/// Sums that stay in tiles 0 to 3 from call to call, of 16 rows with 32 columns; in [`floats`] of 32 with up to 16, and
/// factors in 4 to 7 too.
/// Rust says nothing of registers between blocks of assembly; but it has no use for tiles where no function asks for
/// AMX, and [`multiply`], which has, is not called between.
impl Tiles {
    fn zero(&mut self) {
        // SAFETY: there are tiles.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem, preserves_flags)
            );
        }
    }

    /// Adds products with two tiles of high bytes, and with two of low ones behind them.
    ///
    /// # Safety
    /// A tile can be read from `rows`, `stride` bytes from row to row, and four from `columns` on.
    unsafe fn add(&mut self, rows: *const u8, stride: usize, columns: *const u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm4, [{rows} + {stride}]",
                "tileloadd tmm5, [{columns} + {row}]",
                "tdpbusd tmm0, tmm4, tmm5",
                "tileloadd tmm6, [{columns} + {row} + 1024]",
                "tdpbusd tmm1, tmm4, tmm6",
                "tileloadd tmm7, [{columns} + {row} + 2048]",
                "tdpbuud tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{columns} + {row} + 3072]",
                "tdpbuud tmm3, tmm4, tmm5",
                rows = in(reg) rows,
                columns = in(reg) columns,
                stride = in(reg) stride,
                row = in(reg) ROW,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    /// Puts out 16 rows of 32 sums with high bytes, and of as many with low ones.
    ///
    /// # Safety
    /// So many can be written.
    unsafe fn store(&mut self, to: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilestored [{to} + {row}], tmm0",
                "tilestored [{to} + {row} + 64], tmm1",
                "tilestored [{to} + {row} + 2048], tmm2",
                "tilestored [{to} + {row} + 2112], tmm3",
                to = in(reg) to,
                row = in(reg) 4 * BLOCK,
                options(nostack, preserves_flags),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles, or there was no value of this type.
        unsafe {
            with_tiles!(
                [nostack, nomem, preserves_flags]
                "tilerelease",
            );
        }
    }
}

/// Sums of tiles: where they begin, null if they are 0, and bytes from row to row.
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

/// Rows of a block as tiles: where the first 16 are, [`packed_len`] bytes before the others, bytes from row to row, and
/// to the next 64 of depth. It is lent, not copied: a copy would read at once what was written in pieces, and so wait for
/// all that tiles have stored.
struct RowTiles {
    at: *const u8,
    stride: usize,
    step: usize,
}

/// Rows and columns of a product.
struct Factors<'a> {
    /// From here on, and 16 further.
    rows: [*const u8; 2],
    tiles: &'a RowTiles,
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
                with_tiles!(
                    [nostack]
                    concat!(".macro lowbit_dot sum, rows, columns\n", $dot, " \\sum, \\rows, \\columns\n.endm"),
                    "mov {x}, [{ends}]",
                    "mov {y}, [{ends} + 8]",
                    "test {x}, {x}",
                    "jz 4f",
                    $($load,)*
                    "jmp 5f",
                    "4:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "5:",
                    "2:",
                    $($step,)*
                    "add {a}, {step}",
                    "add {b}, {step}",
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
                    ".purgem lowbit_dot",
                    ends = in(reg) ends,
                    x = out(reg) _,
                    y = out(reg) _,
                    a = inout(reg) factors.rows[0] => _,
                    b = inout(reg) factors.rows[1] => _,
                    c = inout(reg) columns => _,
                    row = in(reg) factors.tiles.stride,
                    step = in(reg) factors.tiles.step,
                    stride = in(reg) factors.stride,
                    by = in(reg) 16 * factors.stride,
                    n = inout(reg) steps => _,
                    last = inout(reg) last => _,
                )
            }
        };
    }
    macro_rules! products {
        ($dot:literal) => {
            match (R, C) {
                (1, 1) => product!($dot,
                    ["tileloadd tmm0, [{x} + {y}]"]
                    ["tileloadd tmm4, [{a} + {row}]" "tileloadd tmm6, [{c} + {stride}]" "lowbit_dot tmm0, tmm4, tmm6"]
                    ["tilestored [{x} + {y}], tmm0"]
                ),
                (1, _) => product!($dot,
                    ["tileloadd tmm0, [{x} + {y}]" "tileloadd tmm1, [{x} + {y} + 64]"]
                    ["tileloadd tmm4, [{a} + {row}]"
                     "tileloadd tmm6, [{c} + {stride}]" "lowbit_dot tmm0, tmm4, tmm6"
                     "tileloadd tmm7, [{c} + {stride} + 64]" "lowbit_dot tmm1, tmm4, tmm7"]
                    ["tilestored [{x} + {y}], tmm0" "tilestored [{x} + {y} + 64], tmm1"]
                ),
                (_, 1) => product!($dot,
                    ["tileloadd tmm0, [{x} + {y}]"
                     "lea {x}, [{x} + 8 * {y}]" "lea {x}, [{x} + 8 * {y}]"
                     "tileloadd tmm2, [{x} + {y}]"]
                    ["tileloadd tmm6, [{c} + {stride}]"
                     "tileloadd tmm4, [{a} + {row}]" "lowbit_dot tmm0, tmm4, tmm6"
                     "tileloadd tmm5, [{b} + {row}]" "lowbit_dot tmm2, tmm5, tmm6"]
                    ["tilestored [{x} + {y}], tmm0"
                     "lea {x}, [{x} + 8 * {y}]" "lea {x}, [{x} + 8 * {y}]"
                     "tilestored [{x} + {y}], tmm2"]
                ),
                _ => product!($dot,
                    ["tileloadd tmm0, [{x} + {y}]" "tileloadd tmm1, [{x} + {y} + 64]"
                     "lea {x}, [{x} + 8 * {y}]" "lea {x}, [{x} + 8 * {y}]"
                     "tileloadd tmm2, [{x} + {y}]" "tileloadd tmm3, [{x} + {y} + 64]"]
                    ["tileloadd tmm4, [{a} + {row}]"
                     "tileloadd tmm6, [{c} + {stride}]" "lowbit_dot tmm0, tmm4, tmm6"
                     "tileloadd tmm7, [{c} + {stride} + 64]" "lowbit_dot tmm1, tmm4, tmm7"
                     "tileloadd tmm5, [{b} + {row}]" "lowbit_dot tmm2, tmm5, tmm6" "lowbit_dot tmm3, tmm5, tmm7"]
                    ["tilestored [{x} + {y}], tmm0" "tilestored [{x} + {y} + 64], tmm1"
                     "lea {x}, [{x} + 8 * {y}]" "lea {x}, [{x} + 8 * {y}]"
                     "tilestored [{x} + {y}], tmm2" "tilestored [{x} + {y} + 64], tmm3"]
                ),
            }
        };
    }
    if SIGNED { products!("tdpbusd") } else { products!("tdpbuud") }
}

/// Bytes of 16 packed rows.
fn packed_len(k: usize) -> usize {
    ROWS * k.next_multiple_of(ROW)
}

/// Depth of int8 that is multiplied at a time.
fn piece(k: usize) -> usize {
    if k < DEEP { DEPTH } else { k.next_multiple_of(ROW) }
}

/// Dwords of the last columns of panels, if those are no whole tile.
fn lasts_len(k: usize) -> usize {
    if k.is_multiple_of(ROW) { 0 } else { MOST * ROW * PANEL / 4 }
}

/// Panels that are multiplied side by side with 32 rows at a time: their codes stay in L2, and what is written of a
/// row is in one piece.
pub(super) fn side_by_side(k: usize) -> usize {
    let bytes = if k < DEEP { SIDE } else { SIDE / 2 };
    (bytes / (PANEL * k.max(1))).clamp(1, MOST)
}

/// Dwords of scratch for rows: packed, from a line's beginning on; and the last columns of some panels. Where the rows
/// are multiplied but once with panels side by side, and with one that is padded, 32 at a time are packed.
pub(super) fn scratch_len(rows: usize, k: usize, panels: usize) -> usize {
    let last = lasts_len(k);
    let packed = if panels <= side_by_side(k) { rows.min(BLOCK) } else { rows };
    if rows < LEAST { 0 } else { LINE + packed.div_ceil(ROWS) * packed_len(k) / 4 + last }
}

/// The same for weights in groups: and, for more rows than a tile's, two planes of a panel's columns.
pub(super) fn groups_scratch_len(rows: usize, (k, pass): (usize, usize)) -> usize {
    let planes = if rows <= ROWS { 0 } else { planes_len(CHUNK.min(k.min(pass))) };
    if takes(rows, pass) { scratch_len(rows, k, usize::MAX) + planes } else { 0 }
}

/// Whether so many rows times weights in groups of such passes are for tiles: a pass begins where a tile of rows does.
pub(super) fn takes(rows: usize, pass: usize) -> bool {
    rows >= LEAST && pass > SUPER
}

/// Dwords of both planes.
fn planes_len(depth: usize) -> usize {
    2 * PANEL * depth.next_multiple_of(ROW) / 4
}

/// Up to 16 rows of `k` bytes, each XORed with `flip`, as tiles: 16 rows of 64 bytes, the next 64, and so on, 0 behind.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack(a: &[u8], k: usize, flip: u8, to: &mut [u8]) {
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

/// Rows that are packed when they are asked for, since they are read at once then.
struct Packed<'a> {
    _has: Wide,
    /// Rows of `k` bytes.
    a: &'a [u8],
    k: usize,
    flip: u8,
    /// Room for all of them, or for 32.
    bytes: &'a mut [u8],
    /// How many are packed, if there is room for all.
    made: &'a mut usize,
}

impl<'a> Packed<'a> {
    /// In dwords of scratch, `rest` of which are for others: these too.
    fn new(
        w: Wide,
        (a, k, flip): (&'a [u8], usize, u8),
        scratch: &'a mut [i32],
        rest: usize,
        made: &'a mut usize,
    ) -> (Self, &'a mut [i32]) {
        let skip = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
        let tile = packed_len(k) / 4;
        let room = (scratch.len() - LINE - rest) / tile;
        let (bytes, rest) = scratch[skip..].split_at_mut((a.len() / k).div_ceil(ROWS).min(room) * tile);
        (Packed { _has: w, a, k, flip, bytes: bytemuck::cast_slice_mut(bytes), made }, rest)
    }

    /// From this row on, a multiple of 32, up to 32 of them: as they are where tiles can be read from whole lines.
    fn rows(&mut self, row: usize, rows: usize) -> RowTiles {
        let (len, k) = (packed_len(self.k), self.k);
        let a = &self.a[row * k..(row + rows) * k];
        if rows.is_multiple_of(ROWS) && k.is_multiple_of(ROW) && self.flip == 0 && a.as_ptr().addr().is_multiple_of(ROW)
        {
            return RowTiles { at: a.as_ptr(), stride: k, step: ROW };
        }
        let has_all = self.bytes.len() / len * ROWS * k >= self.a.len();
        let bytes = &mut self.bytes[if has_all { row / ROWS * len } else { 0 }..];
        if !has_all || *self.made < row + rows {
            for (a, to) in a.chunks(ROWS * k).zip(bytes.chunks_exact_mut(len)) {
                // SAFETY: the token proves the instruction set.
                unsafe { pack(a, k, self.flip, to) };
            }
            *self.made = row + rows;
        }
        RowTiles { at: bytes[..rows.div_ceil(ROWS) * len].as_ptr(), stride: ROW, step: ROWS * ROW }
    }
}

/// A panel's columns as tiles.
struct Columns<'a> {
    k: usize,
    /// The depth at which the columns begin.
    from: usize,
    width: usize,
    /// Whole tiles of depth.
    steps: usize,
    form: Form<'a>,
    /// The column of the output that the first one is.
    col: usize,
}

enum Form<'a> {
    /// `[quad][width][4]`; what is left of the last tile, and 0 behind; and what sums start from, if not 0.
    Bytes { codes: &'a [u8], last: Option<&'a [u8]>, start: Option<&'a [i32; PANEL]> },
    /// The same of signed high bytes and of unsigned low ones.
    Planes { high: &'a [u8], low: &'a [u8] },
}

impl<'a> Columns<'a> {
    /// Codes of an int8 panel; of those whose depth is no whole tile the last are copied, to be followed by 0.
    fn bytes(k: usize, part: &'a Part, last: &'a mut [u8]) -> Self {
        let (codes, width) = (part.with.panel.codes, part.with.panel.width);
        assert!(codes.len() == k.div_ceil(4) * 4 * width && width.is_multiple_of(COLUMNS) && width <= PANEL);
        let steps = k / ROW;
        let tail = &codes[steps * ROW * width..];
        let last = (!tail.is_empty()).then(|| {
            last[..tail.len()].copy_from_slice(tail);
            last[tail.len()..].fill(0);
            &*last
        });
        let start = part.start.iter().any(|&start| start != 0).then_some(&part.start);
        Columns { k, from: 0, width, steps, form: Form::Bytes { codes, last, start }, col: part.col }
    }

    /// The integers of some depth of a panel in groups, in [`planes_len`] dwords.
    fn planes(w: Wide, panel: &GroupPanel, depth: Range<usize>, planes: &'a mut [i32]) -> Self {
        assert!(depth.start.is_multiple_of(ROW) && depth.end <= panel.k);
        let planes: &mut [u8] = bytemuck::cast_slice_mut(&mut planes[..planes_len(depth.len())]);
        let (high, low) = planes.split_at_mut(planes.len() / 2);
        // SAFETY: the token proves the instruction set.
        unsafe { digits(w, panel, depth.clone(), high, low) };
        let (from, steps) = (depth.start, depth.len().div_ceil(ROW));
        Columns { k: panel.k, from, width: panel.width, steps, form: Form::Planes { high, low }, col: 0 }
    }

    /// Sums of up to 32 rows and columns, into `out`, or added to what planes' sums are there.
    ///
    /// # Safety
    /// `from` are so many rows of `k` bytes, with what pads them.
    #[inline]
    unsafe fn block(
        &self,
        tiles: &Tiles,
        from: &RowTiles,
        (row, rows): (usize, usize),
        first: usize,
        depth: usize,
        add: bool,
        out: &mut Out,
        buffer: &mut Buffer,
    ) {
        let columns = BLOCK.min(self.width - first);
        let whole = out.tiles(row, rows, self.col + first);
        let to = whole.unwrap_or(Sums { at: buffer.0.as_mut_ptr(), stride: 4 * BLOCK });
        if add && whole.is_none() && matches!(self.form, Form::Bytes { .. }) {
            for (out, sums) in out.rows[row..][..rows].iter().zip(buffer.0.chunks_exact_mut(BLOCK)) {
                sums[..columns].copy_from_slice(&out[self.col + first..][..columns]);
            }
        }
        let add = add.then_some(&*out);
        // SAFETY: the caller's promise; the tiles of `out` are rows of enough columns, or the buffer is as large as any.
        unsafe { self.sums(tiles, from, (row, rows), (first, columns), depth, add, to, buffer) };
        if whole.is_none() {
            for (out, sums) in out.rows[row..][..rows].iter_mut().zip(buffer.0.chunks_exact(BLOCK)) {
                out[self.col + first..][..columns].copy_from_slice(&sums[..columns]);
            }
        }
    }

    /// # Safety
    /// `from` are so many rows of `k` bytes, with what pads them, and `to` has room for the block's tiles.
    #[inline]
    unsafe fn sums(
        &self,
        tiles: &Tiles,
        from: &RowTiles,
        (row, rows): (usize, usize),
        (first, columns): (usize, usize),
        depth: usize,
        add: Option<&Out>,
        to: Sums,
        buffer: &mut Buffer,
    ) {
        const NONE: Sums = Sums { at: std::ptr::null_mut(), stride: 0 };
        let shape = (rows > ROWS, columns > COLUMNS);
        const { assert!(CHUNK <= DEPTH) } // planes are one piece
        let skipped = depth / ROW;
        let first_row = from.at.wrapping_add((self.from / ROW + skipped) * from.step);
        let factors = |codes: &[u8], last: Option<&[u8]>| {
            let steps = (self.steps - skipped).min(piece(self.k) / ROW);
            let last = last.filter(|_| depth + piece(self.k) >= self.k);
            let all = steps + usize::from(last.is_some());
            let codes = &codes[skipped * ROW * self.width..];
            assert!(codes.len() >= steps * ROW * self.width && all > 0);
            assert!(last.is_none_or(|last| last.len() >= ROW * self.width));
            assert!(self.from + (skipped + all) * ROW <= self.k.next_multiple_of(ROW));
            Factors {
                rows: [first_row, first_row.wrapping_add(packed_len(self.k))],
                tiles: from,
                columns: codes.as_ptr().wrapping_add(4 * first),
                stride: 4 * self.width,
                steps,
                last: last.map_or(std::ptr::null(), |last| last.as_ptr().wrapping_add(4 * first)),
            }
        };
        let from_columns = |start: &[i32; PANEL]| Sums { at: start[first..].as_ptr().cast_mut(), stride: 0 };
        // SAFETY: by the asserts, here and where the columns were made, the factors' rows and columns are there; sums
        // start from as many of a panel's, from the buffer's, or from what a piece before left in `to`; the caller's promise; the token proves the instruction set.
        unsafe {
            match self.form {
                Form::Bytes { codes, last, start } => {
                    let start = if add.is_some() { to } else { start.map_or(NONE, from_columns) };
                    any::<true>(tiles, shape, &factors(codes, last), &Ends { from: start, to });
                }
                Form::Planes { high, low } => {
                    let between = Sums { at: buffer.0.as_mut_ptr(), stride: 4 * BLOCK };
                    any::<true>(tiles, shape, &factors(high, None), &Ends { from: NONE, to: between });
                    match add {
                        None => shift(&mut buffer.0[..rows * BLOCK]),
                        Some(out) => {
                            let out = out.rows[row..][..rows].iter().map(|out| &out[self.col + first..][..columns]);
                            shift_and_add(&mut buffer.0, out);
                        }
                    }
                    any::<false>(tiles, shape, &factors(low, None), &Ends { from: between, to });
                }
            }
        }
    }
}

/// Sums of a block.
#[repr(align(64))]
struct Buffer([i32; BLOCK * BLOCK]);

/// Where sums go: rows, where the first one is, and bytes from one to the next if all are as far apart.
struct Out<'a, 'b> {
    rows: &'a mut [&'b mut [i32]],
    first: usize,
    stride: Option<usize>,
}

impl<'a, 'b> Out<'a, 'b> {
    /// Rows of at least so many columns.
    fn new(rows: &'a mut [&'b mut [i32]], columns: usize) -> Self {
        assert!(rows.iter().all(|row| row.len() >= columns));
        let mut at = rows.iter_mut().map(|row| row.as_mut_ptr().expose_provenance());
        let first = at.next().unwrap_or_default();
        let mut stride = None;
        let even = at.enumerate().all(|(i, at)| {
            let by = *stride.get_or_insert(at.wrapping_sub(first));
            at == first.wrapping_add(by.wrapping_mul(i + 1))
        });
        Out { rows, first, stride: stride.filter(|_| even) }
    }

    /// As tiles, if these are whole.
    fn tiles(&self, row: usize, rows: usize, col: usize) -> Option<Sums> {
        let stride = self.stride.filter(|_| rows.is_multiple_of(ROWS))?;
        // A tile reaches its other rows from the first: all are exposed.
        let at = self.first.wrapping_add(row.wrapping_mul(stride)).wrapping_add(4 * col);
        Some(Sums { at: std::ptr::with_exposed_provenance_mut(at), stride })
    }
}

/// `scalar::panel` of some panels, at most [`side_by_side`]: 32 rows at a time with all of them.
///
/// `scratch` holds [`scratch_len`] dwords, and `made` tells how many rows are in it; `out` has as many rows as `a`, each
/// with room for all columns of the panels.
#[inline(never)] // nothing but this file's functions is to hold tiles' instructions
pub(super) fn panels(
    w: Wide,
    rows: (&[u8], usize, u8),
    parts: &[Part],
    scratch: &mut [i32],
    made: &mut usize,
    out: &mut [&mut [i32]],
    isa: Isa,
) {
    let k = rows.1;
    let (mut packed, rest) = Packed::new(w, rows, scratch, lasts_len(k), made);
    let rest: &mut [u8] = bytemuck::cast_slice_mut(rest);
    let mut last = rest.chunks_exact_mut(ROW * PANEL);
    let mut columns = [const { None }; MOST];
    for (columns, part) in columns.iter_mut().zip(parts) {
        let last = if k.is_multiple_of(ROW) { &mut [] } else { last.next().expect("room for the last columns") };
        *columns = Some(Columns::bytes(k, part, last));
    }
    // SAFETY: this thread has no other tiles: nothing that holds them calls this.
    let tiles = unsafe { Tiles::new(isa, COLUMNS) };
    let ends = parts.iter().map(|part| part.col + part.with.panel.width).max().unwrap_or(0);
    let (mut out, mut buffer) = (Out::new(out, ends), Buffer([0; BLOCK * BLOCK]));
    for row in (0..out.rows.len()).step_by(BLOCK) {
        let rows = BLOCK.min(out.rows.len() - row);
        let from = packed.rows(row, rows);
        for depth in (0..k).step_by(piece(k)) {
            for columns in columns[..parts.len()].iter().flatten() {
                for first in (0..columns.width).step_by(BLOCK) {
                    let add = depth > 0;
                    // SAFETY: these rows, each of which has the columns' depth.
                    unsafe { columns.block(&tiles, &from, (row, rows), first, depth, add, &mut out, &mut buffer) };
                }
            }
        }
    }
}

/// `scalar::groups`.
///
/// As [`panels`], with [`groups_scratch_len`] dwords; the depth is one pass.
#[inline(never)]
pub(super) fn groups(
    w: Wide,
    block: &GroupBlock,
    scratch: &mut [i32],
    made: &mut usize,
    out: &mut [&mut [i32]],
    isa: Isa,
) {
    let (panel, depth) = (block.panel, block.depth.clone());
    assert!(depth.start.is_multiple_of(ROW) && (depth.end == panel.k || depth.end.is_multiple_of(ROW)));
    // SAFETY: this thread has no other tiles: nothing that holds them calls this.
    let mut tiles = unsafe { Tiles::new(isa, COLUMNS) };
    let rest = if out.len() <= ROWS { 0 } else { planes_len(CHUNK.min(panel.k.min(panel.pass))) };
    let (mut packed, planes) = Packed::new(w, (block.a, panel.k, 0), scratch, rest, made);
    let all = out.len();
    if all <= ROWS {
        // SAFETY: the token proves the instruction set.
        return unsafe { few(w, panel, packed.rows(0, all), depth, out, &mut tiles) };
    }
    let (mut out, mut buffer) = (Out::new(out, panel.width), Buffer([0; BLOCK * BLOCK]));
    for from in depth.clone().step_by(CHUNK) {
        let columns = Columns::planes(w, panel, from..depth.end.min(from + CHUNK), planes);
        for first in (0..columns.width).step_by(BLOCK) {
            for row in (0..all).step_by(BLOCK) {
                let rows = BLOCK.min(all - row);
                let tiles_of_rows = packed.rows(row, rows);
                let add = from > depth.start;
                // SAFETY: these rows, each of which has the columns' depth.
                unsafe { columns.block(&tiles, &tiles_of_rows, (row, rows), first, 0, add, &mut out, &mut buffer) };
            }
        }
    }
}

/// Products as [`multiply`] makes them, of one or two tiles of rows and of columns.
///
/// # Safety
/// As there.
unsafe fn any<const SIGNED: bool>(tiles: &Tiles, two: (bool, bool), factors: &Factors, ends: &Ends) {
    // SAFETY: the caller's promises.
    unsafe {
        match two {
            (false, false) => multiply::<1, 1, SIGNED>(tiles, factors, ends),
            (false, true) => multiply::<1, 2, SIGNED>(tiles, factors, ends),
            (true, false) => multiply::<2, 1, SIGNED>(tiles, factors, ends),
            (true, true) => multiply::<2, 2, SIGNED>(tiles, factors, ends),
        }
    }
}

/// Sums times 256.
#[target_feature(enable = "avx512f")]
fn shift(sums: &mut [i32]) {
    sums.iter_mut().for_each(|sum| *sum <<= 8);
}

/// A block's sums times 256, and others added.
#[target_feature(enable = "avx512f")]
fn shift_and_add<'a>(sums: &mut [i32; BLOCK * BLOCK], others: impl Iterator<Item = &'a [i32]>) {
    for (sums, others) in sums.chunks_exact_mut(BLOCK).zip(others) {
        sums.iter_mut().zip(others).for_each(|(sum, other)| *sum = (*sum << 8).wrapping_add(*other));
    }
}

/// Asks for what comes some way after these codes.
#[inline]
fn ask(codes: &[u8]) {
    for line in (0..codes.len()).step_by(4 * LINE) {
        prefetch_line(codes.as_ptr().wrapping_add(AHEAD + line));
    }
}

/// Calls a method of a panel's [`Digits`].
macro_rules! digits_of {
    ($w:expr, $panel:expr, $call:ident($($arg:expr),*)) => {
        match ($panel.groups.nbits(), $panel.groups.group_size().is_multiple_of(SUPER)) {
            (2, true) => Digits::<2, true>::new($w, $panel).$call($($arg),*),
            (2, false) => Digits::<2, false>::new($w, $panel).$call($($arg),*),
            (3, true) => Digits::<3, true>::new($w, $panel).$call($($arg),*),
            (3, false) => Digits::<3, false>::new($w, $panel).$call($($arg),*),
            (4, true) => Digits::<4, true>::new($w, $panel).$call($($arg),*),
            (4, false) => Digits::<4, false>::new($w, $panel).$call($($arg),*),
            (5, true) => Digits::<5, true>::new($w, $panel).$call($($arg),*),
            (5, false) => Digits::<5, false>::new($w, $panel).$call($($arg),*),
            (6, true) => Digits::<6, true>::new($w, $panel).$call($($arg),*),
            (6, false) => Digits::<6, false>::new($w, $panel).$call($($arg),*),
            (8, true) => Digits::<8, true>::new($w, $panel).$call($($arg),*),
            (8, false) => Digits::<8, false>::new($w, $panel).$call($($arg),*),
            (nbits, _) => unreachable!("codes of {nbits} bits"),
        }
    };
}

/// The integers of some depth of a panel, as `[quad][column][4]`: signed high bytes, unsigned low ones.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn digits(w: Wide, panel: &GroupPanel, depth: Range<usize>, high: &mut [u8], low: &mut [u8]) {
    digits_of!(w, panel, all(depth, high, low))
}

/// Up to 16 packed rows' sums over some depth.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
///
/// # Safety
/// `rows` are those of `out`, with what pads them to 16.
unsafe fn few(
    w: Wide,
    panel: &GroupPanel,
    rows: RowTiles,
    depth: Range<usize>,
    out: &mut [&mut [i32]],
    tiles: &mut Tiles,
) {
    // SAFETY: the token proves the instruction set; the caller's promise.
    unsafe { digits_of!(w, panel, few(tiles, rows, depth, out)) }
}

/// A panel's codes, to be written as the integers that they stand for.
/// `WHOLE`: groups are whole supersteps.
struct Digits<'a, const NBITS: usize, const WHOLE: bool> {
    w: Wide,
    panel: &'a GroupPanel<'a>,
    last_group: usize,
    spread: Spread<Wide>,
    /// Every zero point, if they are alike.
    middle: Option<__m512i>,
}

/// What 16 columns of a group have in common.
#[derive(Clone, Copy)]
struct Group {
    /// The multiplier of each even byte, and of each odd one.
    even: __m512i,
    odd: __m512i,
    /// The zero point of each byte; of codes of 8 bits, of each word its product with the multiplier.
    less: __m512i,
}

impl<'a, const NBITS: usize, const WHOLE: bool> Digits<'a, NBITS, WHOLE> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn new(w: Wide, panel: &'a GroupPanel) -> Self {
        let groups = panel.groups;
        let middle = groups.symmetric().then(|| _mm512_set1_epi32(groups.middle().into()));
        assert!(panel.width.is_multiple_of(COLUMNS) && groups.nbits() == NBITS as u32);
        Digits { w, panel, last_group: groups.count(panel.k) - 1, spread: Spread::new(w, NBITS as u32), middle }
    }

    /// The codes of 32 of depth from here on.
    fn superstep(&self, depth: usize) -> &'a [u8] {
        let len = 4 * self.panel.width * NBITS;
        &self.panel.codes[depth / SUPER * len..][..len]
    }

    #[inline(always)]
    fn group(&self, group: usize, column: usize) -> Group {
        let at = group * self.panel.width + column;
        let bytes: &[u8; COLUMNS] = self.panel.multipliers[at..].first_chunk().expect("16 columns");
        let points = match self.middle {
            Some(middle) => middle,
            // The codes follow: there are sixteen bytes.
            None => self.spread.of(self.w, self.panel.zeros[at * NBITS / 8..].first_chunk().expect("the codes")),
        };
        // SAFETY: the token proves the instruction set; 16 bytes.
        unsafe {
            let by = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            let even = _mm512_or_si512(by, _mm512_slli_epi32::<16>(by));
            let less = if NBITS == 8 { _mm512_mullo_epi16(points, by) } else { points };
            let less = _mm512_or_si512(less, _mm512_slli_epi32::<16>(less));
            let less = if NBITS == 8 { less } else { _mm512_or_si512(less, _mm512_slli_epi32::<8>(less)) };
            Group { even, odd: _mm512_slli_epi16::<8>(even), less }
        }
    }

    /// Writes 32 of depth from `depth` on of 16 columns from `column` on, whose codes are `codes`: each four a vector
    /// of high and one of low bytes, bytes from one to the next `stride`.
    ///
    /// # Safety
    /// There is room for eight vectors each.
    #[inline(always)]
    unsafe fn write(&self, codes: &[u8], depth: usize, column: usize, high: *mut u8, low: *mut u8, stride: usize) {
        let row = 4 * self.panel.width;
        assert!(codes.len() == row * NBITS && column + COLUMNS <= self.panel.width);
        let group_of = |quad: usize| ((depth + 4 * quad) / self.panel.groups.group_size()).min(self.last_group);
        let mut group = self.group(group_of(0), column);
        // Of two vectors of words, the even bytes of one and the odd bytes of the other.
        const ODD: __mmask64 = 0xaaaa_aaaa_aaaa_aaaa;
        // SAFETY: the token proves the instruction set; each of NBITS rows of codes has 16 columns from this one on;
        // the caller's promise.
        unsafe {
            let quads = quads_of::<Wide, NBITS>(self.w, codes.as_ptr().add(4 * column), row);
            for i in 0..8 {
                if !WHOLE && i > 0 && group_of(i) != group_of(i - 1) {
                    group = self.group(group_of(i), column);
                }
                let (quad, Group { even, odd, less }) = (quads[i], group);
                let (even, odd) = if NBITS == 8 {
                    // Multipliers of codes of 8 bits are 63 at most, and fit a signed byte.
                    let products = (_mm512_maddubs_epi16(quad, even), _mm512_maddubs_epi16(quad, odd));
                    (_mm512_sub_epi16(products.0, less), _mm512_sub_epi16(products.1, less))
                } else {
                    let code = _mm512_sub_epi8(quad, less);
                    (_mm512_maddubs_epi16(even, code), _mm512_maddubs_epi16(odd, code))
                };
                let words = _mm512_mask_blend_epi8(ODD, even, _mm512_slli_epi16::<8>(odd));
                _mm512_storeu_si512(low.wrapping_add(i.wrapping_mul(stride)).cast(), words);
                let words = _mm512_mask_blend_epi8(ODD, _mm512_srli_epi16::<8>(even), odd);
                _mm512_storeu_si512(high.wrapping_add(i.wrapping_mul(stride)).cast(), words);
            }
        }
    }

    /// Writes all columns of some depth, whole supersteps.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn all(&self, depth: Range<usize>, high: &mut [u8], low: &mut [u8]) {
        let stride = 4 * self.panel.width;
        let steps = depth.clone().step_by(SUPER);
        assert!(high.len() >= steps.len() * 8 * stride && low.len() >= steps.len() * 8 * stride);
        let (high, low) = (high.chunks_exact_mut(8 * stride), low.chunks_exact_mut(8 * stride));
        for ((depth, high), low) in steps.zip(high).zip(low) {
            let codes = self.superstep(depth);
            ask(codes);
            for column in (0..self.panel.width).step_by(COLUMNS) {
                // SAFETY: of eight rows of all columns, those from `column` on, which are 16 at least.
                unsafe {
                    let (high, low) = (high.as_mut_ptr().add(4 * column), low.as_mut_ptr().add(4 * column));
                    self.write(codes, depth, column, high, low, stride);
                }
            }
        }
    }

    /// 16 packed rows' sums over some depth: those of planes' products, which are made of 64 of depth while the
    /// next are written.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    ///
    /// # Safety
    /// `rows` are those of `out`, with what pads them to 16.
    unsafe fn few(&self, tiles: &mut Tiles, rows: RowTiles, depth: Range<usize>, out: &mut [&mut [i32]]) {
        #[repr(align(64))]
        struct Slot([u8; 4 * ROWS * ROW]);
        let steps = depth.clone().step_by(ROW);
        assert!(depth.end <= self.panel.k && out.len() <= ROWS);
        let mut slots = [const { Slot([0; 4 * ROWS * ROW]) }; 2];
        for first in (0..self.panel.width).step_by(BLOCK) {
            let columns = BLOCK.min(self.panel.width - first);
            tiles.zero();
            let mut waiting = None;
            for (i, from) in steps.clone().enumerate() {
                let at = rows.at.wrapping_add(from / ROW * rows.step);
                let slot = slots[i % 2].0.as_mut_ptr();
                for (half, depth) in (from..depth.end.min(from + ROW)).step_by(SUPER).enumerate() {
                    let codes = self.superstep(depth);
                    if first == 0 {
                        ask(codes);
                    }
                    for (tile, column) in (first..first + columns).step_by(COLUMNS).enumerate() {
                        let at = tile * ROWS * ROW + half * ROWS * ROW / 2;
                        // SAFETY: a slot holds two high and two low tiles, each of 16 vectors.
                        unsafe {
                            let (high, low) = (slot.add(at), slot.add(2 * ROWS * ROW + at));
                            self.write(codes, depth, column, high, low, ROW);
                        }
                    }
                }
                if let Some((at, slot)) = waiting {
                    // SAFETY: a tile of rows, and four of columns.
                    unsafe { tiles.add(at, rows.stride, slot) };
                }
                waiting = Some((at, slot.cast_const()));
            }
            if let Some((at, slot)) = waiting {
                // SAFETY: as above.
                unsafe { tiles.add(at, rows.stride, slot) };
            }
            let mut sums = Buffer([0; BLOCK * BLOCK]);
            // SAFETY: room for four tiles.
            unsafe { tiles.store(sums.0.as_mut_ptr()) };
            let (high, low) = sums.0.split_at(BLOCK * ROWS);
            for ((out, high), low) in out.iter_mut().zip(high.chunks_exact(BLOCK)).zip(low.chunks_exact(BLOCK)) {
                let out = &mut out[first..][..columns];
                for ((out, high), low) in out.iter_mut().zip(high).zip(low) {
                    *out = (high << 8).wrapping_add(*low);
                }
            }
        }
    }
}
