//! Integer matrix products and the layers made of them.
//!
//! | function | in | out |
//! |---|---|---|
//! | [`matmul_i32`] | u8 or i8 (M, K), tiled i8 (K, N) | i32 (M, N), exact to K = 131,071 (i8) or 65,793 (u8) |
//! | [`matmul_i64`] | the same, any K | i64 (M, N), exact |
//! | [`linear`] | f32, bf16 or u8 rows (M, K), tiled i8 | f32, bf16 or u8 rows (M, N) |
//! | [`linear`] | the same, weights of 2 to 8 bits in [`Groups`], f32 and bf16 also unrounded | the same |
//! | [`mlp`] | f32 or bf16 (M, K), two tiled i8 | f32 or bf16 (M, N) |
//!
//! The integer part is the same bits everywhere. So are the floats: each step
//! after the sums is one float32 operation in a fixed order (`epilogue.rs`). Rows
//! that are not rounded times tables of rows or groups, of bfloat16, are summed in another order
//! by tiles of AMX (`amx/floats.rs`), within (K + 4) · 2^-23 of Σ |x w| as everywhere. A
//! row's result does not depend on the other rows of its batch.
//!
//! A task is a block of rows times a range of panels. Rows are quantized, and
//! for AVX2 widened, once a task; a panel's sums stay in the nearest cache
//! until their epilogue has run. Tiles take 32 rows at a time, with all panels that fit L2.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod epilogue;
mod fit;
mod floats;
mod groups;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panels;
mod scalar;
mod tables;
mod tiled;
#[cfg(any(target_arch = "x86_64", test))]
mod vnni;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

pub use epilogue::{Activation, Norm};
pub use fit::{fit_groups, settle};
pub use groups::{Grouped, Groups, Inputs, tile_groups};
pub use panels::{MadePanel, PanelRows, PanelScratch};
pub use tables::{Codebook, Tables};
pub use tiled::{Tiled, tile, tiled_len};

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::is_granted as amx_is_granted;

use crate::affine::{Floats, GroupedRows, Levels, RowScale, all_finite, quantize_groups, quantize_row, rotate};
use crate::error::{bail, checked_product, try_zeroed};
use crate::lanes::{Element, on_isa};
use crate::par::Parts;
use crate::{Ctl, Isa, Result};
use epilogue::Finish;
use groups::{GroupPanel, SUPER};
use tiled::{PANEL, Panel, STEP};

/// The greatest K of [`matmul_i32`] with u8 rows: 255 · 128 · K stays below 2^31.
pub const MAX_K_U8: usize = 65_793;
/// The greatest K of [`matmul_i32`] with i8 rows: 128 · 128 · K stays below 2^31.
pub const MAX_K_I8: usize = 131_071;
/// Rows of a block: enough to use a panel from L2 many times over.
const ROWS: usize = 256;
/// Rows of a block of [`mlp`], whose inner floats must stay in L2: 2 MB of it where there are tiles, for which a weight
/// in groups is written anew for each block.
const MLP_ROWS: [usize; 2] = [96, 192];
/// Bytes of a line.
const LINE: usize = 64;
/// Bytes of rows in a block, at most (a share of L2).
const BLOCK_BYTES: usize = 384 << 10;
/// Multiplications of a task, at most: a slow core does them in less than 0.1 s, and only
/// then sees that it is asked to stop.
const TASK_PRODUCTS: usize = 1 << 30;
/// Values of a weight that one task prepares.
const BLOCK_VALUES: usize = 1 << 20;
/// Depth of one pass of [`matmul_i64`]: a multiple of 4 within [`MAX_K_U8`].
const PASS: usize = 65_792;

/// The left factor: M×K in row order.
#[derive(Clone, Copy, Debug)]
pub enum Lhs<'a> {
    /// 0..=255
    U8(&'a [u8]),
    /// -128..=127
    I8(&'a [i8]),
}

impl<'a> Lhs<'a> {
    /// The bytes, and what turns each into u8: i8 a is u8 a + 128.
    fn bytes(self) -> (&'a [u8], u8) {
        match self {
            Lhs::U8(a) => (a, 0),
            Lhs::I8(a) => (bytemuck::cast_slice(a), 0x80),
        }
    }
}

/// Some rows times one panel: what an instruction-set file computes.
pub(crate) struct Block<'a> {
    /// Rows of `k` bytes.
    a: &'a [u8],
    k: usize,
    /// XORed to each byte of `a`.
    flip: u8,
    panel: Panel<'a>,
    /// What each column's sum starts from.
    start: &'a [i32; PANEL],
    /// Of each 32 columns of the panel; empty where nobody looked.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    excess: &'a [Option<Excess>],
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    fits: Fits,
}

/// How many products of a panel's columns with u8 are sure to fit a sum in 16 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fits {
    /// Nobody looked.
    Unknown,
    /// Two neighbours.
    Pairs,
    /// Four, as [`tables::products_that_fit`] has them.
    Fours,
}

#[cfg(target_arch = "x86_64")]
impl Block<'_> {
    /// The last K % 4 bytes of a row, and what `flip` turns into 0 behind them.
    #[inline(always)]
    fn last_four(&self, row: usize) -> [u8; 4] {
        let mut four = [self.flip; 4];
        let tail = &self.a[row * self.k..(row + 1) * self.k][self.k / 4 * 4..];
        four[..tail.len()].copy_from_slice(tail);
        four
    }
}

/// Some rows times one panel in groups.
pub(crate) struct GroupBlock<'a> {
    /// Rows of `panel.k` bytes.
    a: &'a [u8],
    panel: &'a GroupPanel<'a>,
    /// One pass of the panel.
    depth: Range<usize>,
    /// Where each row's results go in the end, of which a path may ask for before: or none.
    #[cfg_attr(not(any(target_arch = "x86_64", test)), expect(dead_code))]
    soon: &'a [*const u8],
}

#[cfg(target_arch = "x86_64")]
use avx2::Excess;
/// No instruction set here sums in 16 bits.
#[cfg(not(target_arch = "x86_64"))]
type Excess = std::convert::Infallible;

/// Whether this instruction set is AVX2 and nothing wider, which wants forms of its own of rows.
#[cfg(target_arch = "x86_64")]
fn is_avx2_alone(isa: Isa) -> bool {
    isa.has_avx2() && !isa.has_avx512() && !isa.is_avxvnni()
}

/// The columns of a layer.
enum LayerColumns<'a> {
    Int8(Columns<'a>),
    Groups(Grouped<'a>),
}

impl<'a> LayerColumns<'a> {
    fn new(isa: Isa, m: usize, weight: &Weight<'a>, ctl: &Ctl) -> Result<Self> {
        Ok(match weight.codes {
            Codes::Int8(tiled) => LayerColumns::Int8(Columns::new(isa, m, tiled, ctl)?),
            Codes::Groups(grouped) => LayerColumns::Groups(grouped),
        })
    }
}

/// The columns of a product, with what is found out about them once a call.
struct Columns<'a> {
    tiled: Tiled<&'a [u8]>,
    excess: Vec<Option<Excess>>,
}

impl<'a> Columns<'a> {
    /// For a product with `m` rows.
    fn new(isa: Isa, m: usize, tiled: Tiled<&'a [u8]>, ctl: &Ctl) -> Result<Self> {
        let excess = Vec::new();
        #[cfg(target_arch = "x86_64")]
        let excess = if is_avx2_alone(isa) && m >= avx2::BYTES {
            let mut found = excess;
            found.resize_with(2 * tiled.panels(), || None);
            let panels = Parts::new(found.as_chunks_mut().0);
            ctl.for_each(panels.len(), &|_, p| {
                // SAFETY: the Isa is this CPU's.
                *panels.take(p) = [0, 1].map(|half| unsafe { Excess::of(&tiled.panel(p), half) });
            })?;
            drop(panels);
            found
        } else {
            excess
        };
        let _ = (isa, m, ctl);
        Ok(Columns { tiled, excess })
    }

    fn panel(&self, p: usize) -> Found<'_> {
        Found {
            panel: self.tiled.panel(p),
            excess: self.excess.get(2 * p..2 * p + 2).unwrap_or_default(),
            fits: Fits::Unknown,
        }
    }
}

/// A panel, with what was found out about it.
#[derive(Clone, Copy)]
struct Found<'a> {
    panel: Panel<'a>,
    excess: &'a [Option<Excess>],
    fits: Fits,
}

/// A panel, what its sums start from, and the first column of the output that they go to.
struct Part<'a> {
    with: Found<'a>,
    start: [i32; PANEL],
    col: usize,
}

impl Part<'_> {
    /// Whether there are more columns than the output has.
    fn is_padded(&self) -> bool {
        self.with.panel.cols != self.with.panel.width
    }
}

/// One block of rows as the kernels want them.
struct Rows<'a> {
    a: &'a [u8],
    k: usize,
    flip: u8,
    /// AVX2's forms of the rows and of some columns, packed rows, and all paths' forms for weights in groups.
    scratch: &'a mut [i32],
    #[cfg(target_arch = "x86_64")]
    made: avx2::Made,
    /// Whether the rows' forms for weights in groups, or of floats for tiles, are in scratch.
    formed: bool,
    /// How many rows are packed for tiles.
    #[cfg(target_arch = "x86_64")]
    packed: usize,
    /// The rows where they are not rounded, room for [`floats::interleave`], and whether it is filled.
    floats: &'a [f32],
    interleaved: &'a mut [f32],
    is_interleaved: bool,
    /// How each [`SUPER`] of a row was rounded, if not all of it alike.
    spans: &'a [RowScale],
    /// Where each row's results with the next panel go.
    soon: Vec<*const u8>,
}

impl<'a> Rows<'a> {
    /// Scratch for so many rows of `k` bytes, to be multiplied with so many panels at a time.
    fn scratch_len(isa: Isa, rows: usize, k: usize, panels: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        {
            if isa.has_amx() {
                return amx::scratch_len(rows, k, panels);
            }
            if is_avx2_alone(isa) {
                return avx2::scratch_len(rows, k);
            }
        }
        let _ = (isa, rows, k, panels);
        0
    }

    fn new(isa: Isa, a: &'a [u8], k: usize, flip: u8, scratch: &'a mut [i32]) -> Self {
        let _ = isa;
        Rows {
            a,
            k,
            flip,
            scratch,
            #[cfg(target_arch = "x86_64")]
            made: avx2::Made::default(),
            formed: false,
            #[cfg(target_arch = "x86_64")]
            packed: 0,
            floats: &[],
            interleaved: &mut [],
            is_interleaved: false,
            spans: &[],
            soon: Vec::new(),
        }
    }

    /// Scratch for rows that are not rounded.
    fn floats_scratch_len(isa: Isa, rows: usize, k: usize, groups: Groups) -> usize {
        #[cfg(target_arch = "x86_64")]
        if isa.has_amx() && amx::floats::takes(groups, k) {
            return amx::floats::scratch_len(rows, k);
        }
        let _ = (isa, rows, k, groups);
        0
    }

    /// Scratch for weights in groups.
    fn groups_scratch_len(isa: Isa, rows: usize, (k, pass): (usize, usize), groups: Groups) -> usize {
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx512() || isa.is_avxvnni() {
            let len = vnni::groups_scratch_len(rows, (k, pass), groups);
            return if isa.has_amx() { len.max(amx::groups_scratch_len(rows, (k, pass))) } else { len };
        }
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx2() {
            return avx2::groups_scratch_len(rows, k, pass, groups.group_size());
        }
        #[cfg(target_arch = "aarch64")]
        if isa.has_neon() {
            return neon::groups_scratch_len(rows, k, pass, groups.group_size());
        }
        let _ = (isa, rows, k, pass, groups);
        0
    }

    /// The rows times some depth of a panel in groups, into the first columns of
    /// each row of `out`.
    fn times_groups(&mut self, isa: Isa, panel: &GroupPanel, depth: Range<usize>, out: &mut [&mut [i32]]) {
        assert!(self.flip == 0 && self.k == panel.k && out.len() * self.k == self.a.len());
        assert!(out.iter().all(|row| row.len() >= panel.width));
        let block = GroupBlock { a: self.a, panel, depth, soon: &self.soon };
        assert!(self.scratch.len() >= Rows::groups_scratch_len(isa, out.len(), (self.k, panel.pass), panel.groups));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the Isa is this CPU's; the asserts are the callees' conditions.
        unsafe {
            if isa.has_amx() && amx::takes(out.len(), panel.pass) {
                return amx::groups(avx512::Wide::new(), &block, self.scratch, &mut self.packed, out, isa);
            }
            if isa.has_avx512() {
                return vnni::groups(avx512::Wide::new(), &block, self.scratch, &mut self.formed, out, 0);
            }
            if isa.is_avxvnni() {
                return vnni::groups(avxvnni::Narrow::new(), &block, self.scratch, &mut self.formed, out, 0);
            }
            if isa.has_avx2() {
                return avx2::groups(&block, self.scratch, &mut self.formed, out, 0);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if isa.has_neon() {
            // SAFETY: the Isa is this CPU's.
            return unsafe { neon::groups(isa, &block, self.scratch, &mut self.formed, out) };
        }
        let _ = isa;
        scalar::groups(&block, out, 0);
    }

    /// The rows as floats times a panel in groups.
    fn times_floats(&mut self, isa: Isa, panel: &GroupPanel, columns: &mut [f32], out: &mut [[f32; PANEL]]) {
        assert!(self.floats.len() == out.len() * panel.k);
        #[cfg(target_arch = "x86_64")]
        if isa.has_amx() && amx::floats::takes(panel.groups, panel.k) {
            // SAFETY: the Isa is this CPU's.
            let w = unsafe { avx512::Wide::new() };
            if amx::floats::sums(w, self.floats, panel, self.scratch, &mut self.formed, out, isa) {
                return;
            }
        }
        if !std::mem::replace(&mut self.is_interleaved, true) {
            floats::interleave(self.floats, panel.k, self.interleaved);
        }
        floats::float_sums(self.interleaved, panel, columns, out, isa);
    }

    /// Panels that do best to be given to [`Self::times_parts`] together.
    fn side_by_side(isa: Isa, k: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if isa.has_amx() {
            return amx::side_by_side(k);
        }
        let _ = (isa, k);
        1
    }

    /// As [`Self::times`], of some panels, where rows of `out` may have no room for columns that pad the last one; `sums`
    /// has.
    fn times_parts(&mut self, isa: Isa, parts: &[Part], out: &mut [&mut [i32]], sums: &mut [i32]) {
        let mut rest = parts;
        #[cfg(target_arch = "x86_64")]
        if isa.has_amx() && out.len() >= amx::LEAST {
            let whole;
            (whole, rest) = parts.split_at(parts.iter().position(Part::is_padded).unwrap_or(parts.len()));
            if !whole.is_empty() {
                self.times_tiles(isa, whole, out);
            }
        }
        for Part { with, start, col } in rest {
            let cols = with.panel.cols;
            if cols == with.panel.width {
                self.times(isa, *with, start, out, *col);
                continue;
            }
            let mut padded: Vec<_> = sums.chunks_exact_mut(PANEL).take(out.len()).collect();
            self.times(isa, *with, start, &mut padded, 0);
            for (out, sums) in out.iter_mut().zip(padded) {
                out[*col..col + cols].copy_from_slice(&sums[..cols]);
            }
        }
    }

    /// The rows times up to [`Self::side_by_side`] panels by tiles.
    #[cfg(target_arch = "x86_64")]
    fn times_tiles(&mut self, isa: Isa, parts: &[Part], out: &mut [&mut [i32]]) {
        assert!(self.scratch.len() >= Rows::scratch_len(isa, out.len(), self.k, 1));
        assert!(parts.len() <= Rows::side_by_side(isa, self.k));
        assert!(out.len() * self.k == self.a.len());
        // SAFETY: the Isa is this CPU's.
        let w = unsafe { avx512::Wide::new() };
        amx::panels(w, (self.a, self.k, self.flip), parts, self.scratch, &mut self.packed, out, isa);
    }

    /// The rows times a panel, into columns from `col` of each row of `out`.
    fn times(&mut self, isa: Isa, with: Found, start: &[i32; PANEL], out: &mut [&mut [i32]], col: usize) {
        #[cfg(target_arch = "x86_64")]
        if isa.has_amx() && out.len() >= amx::LEAST {
            return self.times_tiles(isa, &[Part { with, start: *start, col }], out);
        }
        let Found { panel, excess, fits } = with;
        assert!(self.scratch.len() >= Rows::scratch_len(isa, out.len(), self.k, 1));
        assert!(out.len() * self.k == self.a.len() && panel.codes.len() == self.k.div_ceil(4) * 4 * panel.width);
        assert!(out.iter().all(|row| row.len() >= col + panel.width));
        let block = Block { a: self.a, k: self.k, flip: self.flip, panel, start, excess, fits };
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the Isa is this CPU's; the asserts above are the callees' conditions.
        unsafe {
            if isa.has_avx512() {
                return avx512::panel(&block, out, col);
            }
            if isa.is_avxvnni() {
                return avxvnni::panel(&block, out, col);
            }
            if isa.has_avx2() {
                return avx2::panel(&block, self.scratch, &mut self.made, out, col);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if isa.has_neon() {
            // SAFETY: the Isa is this CPU's; the asserts above are the callee's conditions.
            return unsafe { neon::panel(isa, &block, out, col) };
        }
        let _ = isa;
        scalar::panel(&block, out, col);
    }
}

/// `start` of a panel: what undoes `flip`.
fn start_of(panel: &Panel, flip: u8) -> [i32; PANEL] {
    let mut start = [0; PANEL];
    if flip != 0 {
        for (start, sum) in start.iter_mut().zip(panel.col_sum) {
            *start = i32::from_le_bytes(*sum).wrapping_mul(-i32::from(flip));
        }
    }
    start
}

/// How M rows times some panels are cut into tasks.
struct Cut {
    /// Rows of a block.
    rows: usize,
    /// Panels of a task.
    panels: usize,
}

impl Cut {
    fn new(m: usize, k: usize, panels: usize, threads: usize, most_rows: usize) -> Cut {
        let fits = (BLOCK_BYTES / k.max(1)) / 12 * 12;
        Cut::of(m, k, panels, threads, most_rows.min(fits.max(12)))
    }

    /// Blocks of so many rows.
    fn of(m: usize, k: usize, panels: usize, threads: usize, rows: usize) -> Cut {
        let rows = rows.min(m.max(1));
        let blocks = m.div_ceil(rows);
        // Enough tasks for the threads to end together; blocks of rows first.
        let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(blocks.max(1)) };
        let most = TASK_PRODUCTS / (rows * PANEL).saturating_mul(k).max(1);
        Cut { rows, panels: panels.div_ceil(wanted).min(most).max(1) }
    }
}

/// An output of M rows cut into one list of row parts for each task: by blocks
/// of rows and, in those, by panels.
fn cut_output<'a, T>(out: &'a mut [T], n: usize, cut: &Cut) -> Vec<(usize, usize, Vec<&'a mut [T]>)> {
    let width = cut.panels * PANEL;
    let mut tasks = Vec::new();
    for (block, rows) in out.chunks_mut(cut.rows * n).enumerate() {
        let first = tasks.len();
        tasks.extend(
            (0..n.div_ceil(width)).map(|p| (block * cut.rows, p * cut.panels, Vec::with_capacity(rows.len() / n))),
        );
        for row in rows.chunks_exact_mut(n) {
            for (task, part) in tasks[first..].iter_mut().zip(row.chunks_mut(width)) {
                task.2.push(part);
            }
        }
    }
    tasks
}

/// Memory of a thread, made before the threads start.
fn per_thread<T>(ctl: &Ctl, make: impl Fn() -> Result<T>) -> Result<Vec<Mutex<T>>> {
    (0..ctl.threads()).map(|_| Ok(Mutex::new(make()?))).collect()
}

fn lock<T>(scratch: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_lhs<B: AsRef<[u8]>>(len: usize, m: usize, b: &Tiled<B>) -> Result<()> {
    if len != checked_product("a", &[m, b.k()])? {
        bail!("a: expected {m} rows of {}, got {len} elements", b.k());
    }
    Ok(())
}

/// C = A B in int32, exact.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit or K is past
/// [`MAX_K_U8`], [`MAX_K_I8`]; [`crate::Error::Memory`];
/// [`crate::Error::Interrupted`].
pub fn matmul_i32<B: AsRef<[u8]> + Sync>(
    a: Lhs,
    m: usize,
    b: &Tiled<B>,
    out: &mut [i32],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let limit = if matches!(a, Lhs::U8(_)) { MAX_K_U8 } else { MAX_K_I8 };
    if b.k() > limit {
        bail!("k: int32 sums are exact to K = {limit}, got {}", b.k());
    }
    let (a, flip) = a.bytes();
    let (n, k) = (b.n(), b.k());
    check_lhs(a.len(), m, b)?;
    if out.len() != checked_product("out", &[m, n])? {
        bail!("out: expected {m} by {n}, got {} elements", out.len());
    }
    if k == 0 {
        out.fill(0);
    }
    if k == 0 || out.is_empty() {
        return Ok(());
    }
    let columns = Columns::new(isa, m, b.view(), ctl)?;
    let cut = Cut::new(m, k, b.panels(), ctl.threads(), ROWS);
    let scratch = per_thread(ctl, || {
        let sums = if b.n().is_multiple_of(STEP) { 0 } else { cut.rows * PANEL };
        Ok((try_zeroed::<i32>(Rows::scratch_len(isa, cut.rows, k, cut.panels))?, try_zeroed::<i32>(sums)?))
    })?;
    let tasks = Parts::new(cut_output(out, n, &cut));
    ctl.for_each(tasks.len(), &|slot, task| {
        let (first, panel, mut out) = tasks.take(task);
        let (rows, sums) = &mut *lock(&scratch[slot]);
        let mut rows = Rows::new(isa, &a[first * k..(first + out.len()) * k], k, flip, rows);
        let panels = panel..b.panels().min(panel + cut.panels);
        let some = Rows::side_by_side(isa, k);
        let mut parts = Vec::with_capacity(some.min(panels.len()));
        for from in panels.clone().step_by(some) {
            parts.clear();
            parts.extend((from..panels.end.min(from + some)).map(|p| {
                let with = columns.panel(p);
                Part { with, start: start_of(&with.panel, flip), col: (p - panels.start) * PANEL }
            }));
            rows.times_parts(isa, &parts, &mut out, sums);
        }
    })
}

/// C = A B in int64, exact for every K: int32 sums over passes of the depth,
/// widened between them.
///
/// # Errors
/// As [`matmul_i32`], without its limit.
pub fn matmul_i64<B: AsRef<[u8]> + Sync>(
    a: Lhs,
    m: usize,
    b: &Tiled<B>,
    out: &mut [i64],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let (a, flip) = a.bytes();
    let (n, k) = (b.n(), b.k());
    check_lhs(a.len(), m, b)?;
    if out.len() != checked_product("out", &[m, n])? {
        bail!("out: expected {m} by {n}, got {} elements", out.len());
    }
    if k == 0 {
        out.fill(0);
    }
    if k == 0 || out.is_empty() {
        return Ok(());
    }
    let cut = Cut { rows: 12.min(m), panels: 1 };
    let scratch = per_thread(ctl, || Wide::new(isa, cut.rows))?;
    let tasks = Parts::new(cut_output(out, n, &cut));
    ctl.for_each(tasks.len(), &|slot, task| {
        let (first, panel, mut out) = tasks.take(task);
        let panel = b.panel(panel);
        let mut sums = vec![[0i64; PANEL]; out.len()];
        lock(&scratch[slot]).sum(isa, &a[first * k..], k, flip, panel, &mut sums);
        for (out, sums) in out.iter_mut().zip(sums) {
            out.copy_from_slice(&sums[..panel.cols]);
        }
    })
}

/// Scratch of a product deeper than int32 allows.
struct Wide {
    rows: Vec<i32>,
    a: Vec<u8>,
    ones: Vec<u8>,
    sums: Vec<i32>,
}

impl Wide {
    fn new(isa: Isa, rows: usize) -> Result<Wide> {
        let mut ones = try_zeroed(PASS)?;
        ones.fill(1);
        Ok(Wide {
            // The last pass may be no whole tiles.
            rows: try_zeroed(Rows::scratch_len(isa, rows, PASS - 1, 1))?,
            a: try_zeroed(rows * PASS)?,
            ones,
            sums: try_zeroed(rows * PANEL)?,
        })
    }

    /// `sums[r][j] = Σ a[r][k] w[k][j]`, with a flipped byte read as i8.
    fn sum(&mut self, isa: Isa, a: &[u8], k: usize, flip: u8, panel: Panel, sums: &mut [[i64; PANEL]]) {
        for from in (0..k).step_by(PASS) {
            let depth = PASS.min(k - from);
            let part =
                Panel { codes: &panel.codes[from * panel.width..][..depth.div_ceil(4) * 4 * panel.width], ..panel };
            let mut product = |a: &[u8], flip: u8, scratch: &mut [i32], add: &mut dyn FnMut(usize, usize, i64)| {
                let mut rows = Rows::new(isa, a, depth, flip, scratch);
                let mut out: Vec<_> = self.sums.chunks_exact_mut(PANEL).take(a.len() / depth).collect();
                rows.times(isa, Found { panel: part, excess: &[], fits: Fits::Unknown }, &[0; PANEL], &mut out, 0);
                for (r, row) in out.iter().enumerate() {
                    (0..panel.width).for_each(|j| add(r, j, i64::from(row[j])));
                }
            };
            for (r, row) in self.a[..sums.len() * depth].chunks_exact_mut(depth).enumerate() {
                row.copy_from_slice(&a[r * k + from..r * k + from + depth]);
            }
            product(&self.a[..sums.len() * depth], flip, &mut self.rows, &mut |r, j, sum| sums[r][j] += sum);
            if flip != 0 {
                // The rows were read 128 too high; a row of ones sums the columns.
                product(&self.ones[..depth], 0, &mut self.rows, &mut |_, j, sum| {
                    sums.iter_mut().for_each(|row| row[j] -= i64::from(flip) * sum);
                });
            }
        }
    }
}

// ------------------------------------------------------------------ layers

/// A layer's weight (N, K): its transpose in tiled order, and what each input is
/// multiplied with before it is quantized, if the weight is equalized.
#[derive(Clone, Debug)]
pub struct Weight<'a> {
    codes: Codes<'a>,
    /// K floats, or none; there if the weight is rotated.
    equalizer: Vec<f32>,
}

/// A weight's transpose in the order that the kernels read.
#[derive(Clone, Copy, Debug)]
pub enum Codes<'a> {
    /// Eight bits, a scale for each output.
    Int8(Tiled<&'a [u8]>),
    /// Two to eight bits, in groups.
    Groups(Grouped<'a>),
}

impl Codes<'_> {
    fn panels(&self) -> usize {
        match self {
            Codes::Int8(tiled) => tiled.panels(),
            Codes::Groups(grouped) => grouped.panels(),
        }
    }
}

impl<'a> Weight<'a> {
    /// Takes the bytes that [`quantize_weight`] wrote: a tiled matrix, and K
    /// float32 after it where the weight is equalized; or those of
    /// [`quantize_weight_groups`], with the tables that its codes look up if it has any.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where there are too few or too many of them, or they are
    /// no weight's.
    pub fn from_bytes(bytes: &'a [u8], k: usize, n: usize, codebook: Option<Codebook<'a>>) -> Result<Self> {
        let groups = Grouped::begins(bytes).then(|| Groups::of(bytes)).transpose()?;
        let plain = match groups {
            Some(groups) => groups.len(k, n)?,
            None => tiled_len(k, n)?,
        };
        let (codes, rest) = bytes.split_at(plain.min(bytes.len()));
        let equalized = with_equalizer(plain, k, n, true)?;
        if bytes.len() != plain && bytes.len() != equalized {
            bail!("weight: {n} rows of {k} take {plain} bytes, or {equalized} if equalized, got {}", bytes.len());
        }
        if groups.is_some_and(|groups| groups.rotation() > 0) && rest.is_empty() && k > 0 {
            bail!("weight: rotated, but without an equalizer");
        }
        let codes = match groups {
            Some(_) => Codes::Groups(Grouped::from_bytes(codes, k, n, codebook)?),
            None if codebook.is_some() => bail!("codebook: expected none with a weight in int8"),
            None => Codes::Int8(Tiled::from_bytes(codes, k, n)?),
        };
        let equalizer = rest.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        Ok(Weight { codes, equalizer })
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        match self.codes {
            Codes::Int8(tiled) => tiled.n(),
            Codes::Groups(grouped) => grouped.n(),
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match self.codes {
            Codes::Int8(tiled) => tiled.k(),
            Codes::Groups(grouped) => grouped.k(),
        }
    }

    /// The codes, with their scales.
    pub fn codes(&self) -> &Codes<'a> {
        &self.codes
    }

    /// How a layer takes its inputs.
    fn inputs(&self) -> Inputs {
        match self.codes {
            Codes::Int8(_) => Inputs::Rows,
            Codes::Groups(grouped) => grouped.groups().inputs(),
        }
    }

    /// Inputs that are rotated together before they are quantized; 0 where none are.
    fn rotation(&self) -> usize {
        match self.codes {
            Codes::Int8(_) => 0,
            Codes::Groups(grouped) => grouped.groups().rotation(),
        }
    }

    /// Writes output row `n` as the floats that it stands for.
    fn row(&self, n: usize, out: &mut [f32]) -> Result<()> {
        match self.codes {
            Codes::Int8(tiled) => tiled.dequantize_column(n, out)?,
            Codes::Groups(grouped) => grouped.dequantize_column(n, out)?,
        }
        let (rotation, mut whole) = (self.rotation(), 1.0);
        if rotation > 0 {
            // The equalizer's share of 1 / rotation, so that no sum overflows.
            whole = rotation as f32;
            out.iter_mut().for_each(|out| *out /= whole);
            rotate(out, rotation, Isa::best());
        }
        let times = |out: &mut f32, by: &f32| *out = (*out * (by * whole)).clamp(-f32::MAX, f32::MAX);
        out.iter_mut().zip(&self.equalizer).for_each(|(out, by)| times(out, by));
        Ok(())
    }
}

/// Bytes of a layer's weight.
///
/// # Errors
/// [`crate::Error::Value`] where the size overflows.
pub fn weight_len(k: usize, n: usize, equalized: bool) -> Result<usize> {
    with_equalizer(tiled_len(k, n)?, k, n, equalized)
}

/// Each column's root mean square over the mean of all.
///
/// Multiplied with an input, and the weight's column divided by it, it makes columns
/// alike. Two errors want different powers of it, without data. The rounding of a row
/// of inputs adds the same error to each of them; in the outputs it counts as much as
/// the columns' norms. With x_j c_j quantized and w_j / c_j in the weight's place,
/// Σ x_j² c_j² · Σ |w_j|² / c_j², which bounds it, is least at c_j = √(|w_j| / |x_j|).
/// The rounding of a group of weights adds about the same error to each of them, as
/// large as the largest; Σ c_j² · max |w_j|² / c_j² is least at c_j = |w_j|.
fn column_sizes(w: &[f32], n: usize, k: usize, ctl: &Ctl) -> Result<Vec<f64>> {
    // Blocks of rows by the shape alone, summed in order: the same on any number of threads.
    let rows = BLOCK_VALUES.div_ceil(k);
    let mut partial = try_zeroed::<f64>(checked_product("weight", &[n.div_ceil(rows), k])?)?;
    let sums = Parts::new(partial.chunks_exact_mut(k));
    ctl.for_each(sums.len(), &|_, block| {
        let sums = sums.take(block);
        for row in w[block * rows * k..].chunks_exact(k).take(rows) {
            for (sum, &w) in sums.iter_mut().zip(row) {
                *sum += f64::from(w) * f64::from(w);
            }
        }
    })?;
    drop(sums);
    if n == 0 {
        return Ok(vec![1.0; k]);
    }
    let (squares, others) = partial.split_at_mut(k);
    for block in others.chunks_exact(k) {
        squares.iter_mut().zip(block).for_each(|(sum, more)| *sum += more);
    }
    let rms: Vec<f64> = squares.iter().map(|sum| (sum / n as f64).sqrt()).collect();
    let mean = rms.iter().sum::<f64>() / k as f64;
    Ok(rms.iter().map(|&rms| if mean > 0.0 { rms / mean } else { 1.0 }).collect())
}

/// The power of two that is nearest to the square root of each column's size.
fn equalizer(w: &[f32], n: usize, k: usize, ctl: &Ctl) -> Result<Vec<f32>> {
    // c² = size; 2^i is nearest to c where 2^(2i - 1) ≤ c² < 2^(2i + 1).
    let nearest = |size: &f64| (-5..5).find(|&i| *size < 2f64.powi(2 * i + 1)).unwrap_or(5);
    Ok(column_sizes(w, n, k, ctl)?.iter().map(|size| 2f32.powi(nearest(size))).collect())
}

/// The power of 2^(1/4) that is nearest to a power of each column's size: to its 3/4,
/// between what the inputs and what the weights want.
///
/// A rotation spreads both errors over all inputs: either counts as Σ |w_j|² / c_j² ·
/// Σ x_j² c_j², which is least at c_j = √(|w_j| / |x_j|). What error feedback leaves of a
/// weight's is least at |w_j|: with `squares`, the inputs' mean squares over their mean, it
/// is the geometric mean of both, (|w_j|³ / |x_j|)^(1/4). Without, it stays |w_j|^(3/4).
fn equalizer_of_groups(
    w: &[f32],
    n: usize,
    k: usize,
    rotated: bool,
    squares: Option<&[f64]>,
    ctl: &Ctl,
) -> Result<Vec<f32>> {
    const QUARTERS: [f32; 4] = [1.0, 1.189_207_1, std::f32::consts::SQRT_2, 1.681_792_9];
    /// What an input that hardly ever is anything counts.
    const LEAST: f64 = 1.0 / 1024.0;
    let eighth = |i: usize, size: f64| match squares {
        Some(squares) if rotated => size.powi(6) / squares[i].max(LEAST),
        _ => size.powi(6),
    };
    // 2^(i/4) is nearest to c where 2^(2i - 1) ≤ c⁸ < 2^(2i + 1).
    let nearest = |eighth: f64| (-20..20).find(|&i| eighth < 2f64.powi(2 * i + 1)).unwrap_or(20);
    let power = |i: i32| 2f32.powi(i.div_euclid(4)) * QUARTERS[i.rem_euclid(4) as usize];
    let sizes = column_sizes(w, n, k, ctl)?;
    Ok(sizes.iter().enumerate().map(|(i, &size)| power(nearest(eighth(i, size)))).collect())
}

/// Quantizes a layer's N×K weight to int8, one symmetric scale for each output
/// row, and tiles it into `out` of [`weight_len`] bytes. If `equalized`, each
/// column is first divided by a power of two that goes with the weight.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit or the weight is not
/// finite, [`crate::Error::Memory`], [`crate::Error::Interrupted`].
pub fn quantize_weight(
    w: &[f32],
    n: usize,
    k: usize,
    equalized: bool,
    out: &mut [u8],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    if w.len() != checked_product("weight", &[n, k])? || k == 0 {
        bail!("weight: expected {n} rows of {k} (at least 1), got {} values", w.len());
    }
    if out.len() != weight_len(k, n, equalized)? {
        bail!("out: expected {} bytes, got {}", weight_len(k, n, equalized)?, out.len());
    }
    let (out, rest) = out.split_at_mut(tiled_len(k, n)?);
    let mut dividers = Vec::new();
    if equalized {
        let equalizer = equalizer(w, n, k, ctl)?;
        for (bytes, by) in rest.chunks_exact_mut(4).zip(&equalizer) {
            bytes.copy_from_slice(&by.to_le_bytes());
        }
        dividers = equalizer.into_iter().map(f32::recip).collect(); // exact: powers of two
    }
    let mut codes = try_zeroed::<u8>(w.len())?;
    let mut rows = try_zeroed::<RowScale>(n)?;
    let scratch = per_thread(ctl, || try_zeroed::<f32>(dividers.len()))?;
    let block = BLOCK_VALUES.div_ceil(k);
    let blocks = Parts::new(codes.chunks_mut(block * k).zip(rows.chunks_mut(block)).zip(w.chunks(block * k)));
    ctl.for_each(blocks.len(), &|slot, block| {
        let ((codes, rows), w) = blocks.take(block);
        let divided = &mut *lock(&scratch[slot]);
        for ((codes, row), w) in codes.chunks_exact_mut(k).zip(rows).zip(w.chunks_exact(k)) {
            *row = quantize_row(scaled(Floats::F32(w), &dividers, 0, divided, isa), &Levels::SYMMETRIC, codes, isa);
            codes.iter_mut().for_each(|code| *code ^= 0x80);
        }
    })?;
    drop(blocks);
    if let Some(row) = rows.iter().position(|row| row.scale.is_nan()) {
        bail!("weight: row {row} holds NaN or an infinity");
    }
    let scales: Vec<f32> = rows.iter().map(|row| row.scale).collect();
    tile(bytemuck::cast_slice(&codes), k, n, 1, k, Some(&scales), out, ctl)
}

/// Quantizes a layer's N×K weight to groups and tiles it into `out` of
/// [`groups_weight_len`] bytes. If `equalized`, each column is first divided by a power
/// of 2^(1/4) that goes with the weight; then its blocks are rotated if the groups say so;
/// `searched` is as in [`quantize_groups`]. `importance`: of each input how much an error
/// of its weights counts. With an `equalizer` in the place of its own
/// ([`groups_equalizer`]) that is of inputs as they are quantized.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit or the weight is not
/// finite, [`crate::Error::Memory`], [`crate::Error::Interrupted`].
pub fn quantize_weight_groups(
    w: &[f32],
    n: usize,
    k: usize,
    groups: Groups,
    (equalized, searched): (bool, bool),
    importance: Option<&[f32]>,
    equalizer: Option<&[f32]>,
    out: &mut [u8],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    if w.len() != checked_product("weight", &[n, k])? || k == 0 {
        bail!("weight: expected {n} rows of {k} (at least 1), got {} values", w.len());
    }
    if out.len() != groups_weight_len(k, n, groups, equalized)? {
        bail!("out: expected {} bytes, got {}", groups_weight_len(k, n, groups, equalized)?, out.len());
    }
    let (out, rest) = out.split_at_mut(groups.len(k, n)?);
    let mut dividers = Vec::new();
    let mut counts = importance.map(<[f32]>::to_vec);
    let rotation = groups.rotation();
    if equalized || rotation > 0 {
        dividers = match equalizer {
            Some(equalizer) if equalizer.len() == k => equalizer.to_vec(),
            Some(equalizer) => bail!("equalizer: expected {k} values, got {}", equalizer.len()),
            None => groups_equalizer(w, n, k, groups, equalized, None, ctl)?,
        };
        for (bytes, by) in rest.chunks_exact_mut(4).zip(&dividers) {
            bytes.copy_from_slice(&by.to_le_bytes());
        }
        dividers.iter_mut().for_each(|by| *by *= rotation.max(1) as f32);
        // An error of the divided weight is as much larger in the weight. Only ratios
        // count, so the greatest importance is brought to 1 to 2, and none overflows.
        let down = counts.iter().flatten().fold(0f32, |most, &count| most.max(count));
        let down = if down.is_normal() { 2f32.powi(127 - (down.to_bits() >> 23) as i32) } else { 1.0 };
        let counts = counts.get_or_insert_with(|| vec![1.0; k]);
        if equalizer.is_some() {
            counts.iter_mut().for_each(|count| *count *= down);
        } else {
            counts.iter_mut().zip(&dividers).for_each(|(count, by)| *count = *count * down * (by * by));
            if rotation > 0 {
                // Every rotated input has a part of all of its block: the mean, a rotation's first.
                rotate(counts, rotation, isa);
                counts.chunks_exact_mut(rotation).for_each(|block| block.fill(block[0] / rotation as f32));
            }
        }
    }
    let all = checked_product("weight", &[n, groups.count(k)])?;
    let (mut codes, mut scale) = (try_zeroed::<u8>(w.len())?, try_zeroed::<f32>(n)?);
    let (mut multipliers, mut zeros) = (try_zeroed::<u8>(all)?, try_zeroed::<u8>(all)?);
    let mut rows =
        GroupedRows { codes: &mut codes, multipliers: &mut multipliers, zeros: &mut zeros, scale: &mut scale };
    let form = (groups.nbits(), groups.group_size(), groups.symmetric(), searched);
    quantize_groups(w, k, form, &dividers, rotation, counts.as_deref(), &mut rows, isa, ctl)?;
    tile_groups(&rows, groups, None, n, k, out, ctl)
}

/// What each input is multiplied with before it is quantized: the weight's equalizer, or
/// 1; where it is rotated, also a sign that only k decides, and over the block's size, so
/// that no sum of finite inputs overflows. `squares`: the inputs' mean squares over the
/// mean of those, or none.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, [`crate::Error::Memory`],
/// [`crate::Error::Interrupted`].
pub fn groups_equalizer(
    w: &[f32],
    n: usize,
    k: usize,
    groups: Groups,
    equalized: bool,
    squares: Option<&[f64]>,
    ctl: &Ctl,
) -> Result<Vec<f32>> {
    if w.len() != checked_product("weight", &[n, k])? || k == 0 {
        bail!("weight: expected {n} rows of {k} (at least 1), got {} values", w.len());
    }
    if let Some(squares) = squares
        && squares.len() != k
    {
        bail!("squares: expected {k} values, got {}", squares.len());
    }
    let rotated = groups.rotation() > 0;
    let mut equalizer = if equalized { equalizer_of_groups(w, n, k, rotated, squares, ctl)? } else { vec![1.0; k] };
    if rotated {
        let share = 1.0 / groups.rotation() as f32;
        equalizer.iter_mut().enumerate().for_each(|(i, by)| *by *= if negative(i as u64) { -share } else { share });
    }
    Ok(equalizer)
}

/// The rotation's sign of input `k`: the highest bit of splitmix64's `k`-th number (Steele,
/// Lea and Flood 2014), from the seed 0.
fn negative(k: u64) -> bool {
    let z = (k + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31 >= 1 << 63
}

/// Bytes of a layer's weight in groups.
///
/// # Errors
/// [`crate::Error::Value`] where the size overflows.
pub fn groups_weight_len(k: usize, n: usize, groups: Groups, equalized: bool) -> Result<usize> {
    with_equalizer(groups.len(k, n)?, k, n, equalized || groups.rotation() > 0)
}

/// `len`, and room for an equalizer.
fn with_equalizer(len: usize, k: usize, n: usize, equalized: bool) -> Result<usize> {
    let extra = if equalized { checked_product("weight", &[4, k])? } else { 0 };
    match len.checked_add(extra) {
        Some(len) => Ok(len),
        None => bail!("weight: the size {n} by {k} overflows"),
    }
}

/// Writes rows `indices` of a layer's weight as floats: the look-up of an
/// embedding that shares it, or all of the weight.
///
/// # Errors
/// [`crate::Error::Value`] where an index is not below N or lengths do not fit.
pub fn lookup(indices: impl ExactSizeIterator<Item = i64>, weight: &Weight, out: &mut [f32]) -> Result<()> {
    if out.len() != checked_product("out", &[indices.len(), weight.k()])? {
        bail!("out: expected {} rows of {}, got {} values", indices.len(), weight.k(), out.len());
    }
    for (index, row) in indices.zip(out.chunks_exact_mut(weight.k().max(1))) {
        match usize::try_from(index) {
            Ok(n) if n < weight.n() => weight.row(n, row)?,
            _ => bail!("indices: expected 0 to {}, got {index}", weight.n() as i64 - 1),
        }
    }
    Ok(())
}

/// Writes rows `indices` of an N×K matrix of codes + 128, each row with a scale,
/// as floats: the look-up of an embedding.
///
/// # Errors
/// As [`lookup`].
pub fn lookup_rows(indices: &[i64], codes: &[u8], scale: &[f32], out: &mut [f32]) -> Result<()> {
    let (n, k) = (scale.len(), codes.len() / scale.len().max(1));
    if codes.len() != n * k || out.len() != checked_product("out", &[indices.len(), k])? {
        bail!("out: expected {} rows of {k}, got {} values", indices.len(), out.len());
    }
    for (&index, row) in indices.iter().zip(out.chunks_exact_mut(k.max(1))) {
        let Some(n) = usize::try_from(index).ok().filter(|&i| i < n) else {
            bail!("indices: expected 0 to {}, got {index}", n as i64 - 1);
        };
        for (out, &code) in row.iter_mut().zip(&codes[n * k..(n + 1) * k]) {
            *out = (i32::from(code) - 128) as f32 * scale[n];
        }
    }
    Ok(())
}

/// Rows that go into a layer.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Quantized within the call, per row, to u8 with a zero point.
    Floats(Floats<'a>),
    /// Already u8, with how each row was quantized.
    Codes(&'a [u8], &'a [RowScale]),
}

/// Where a layer's rows go.
#[derive(Debug)]
pub enum Output<'a> {
    /// float32
    F32(&'a mut [f32]),
    /// bfloat16, as its bits
    Bf16(&'a mut [u16]),
    /// Quantized per row for the next layer: codes, and how.
    Codes(&'a mut [u8], &'a mut [RowScale]),
}

impl Output<'_> {
    fn len(&self) -> usize {
        match self {
            Output::F32(out) => out.len(),
            Output::Bf16(out) => out.len(),
            Output::Codes(out, _) => out.len(),
        }
    }
}

/// What follows a layer's last sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct After<'a> {
    /// Added to the outputs: of their shape and element type.
    pub residual: Option<Floats<'a>>,
    /// Normalizes each row of outputs, after the residual.
    pub norm: Option<Norm<'a>>,
}

impl After<'_> {
    fn check(&self, m: usize, n: usize) -> Result<()> {
        if let Some(residual) = self.residual
            && residual.len() != m * n
        {
            bail!("residual: expected {m} by {n}, got {} elements", residual.len());
        }
        if let Some(norm) = self.norm
            && (norm.gamma.len() != n || norm.beta.len() != n)
        {
            bail!("norm: expected {n} values of gamma and beta, got {} and {}", norm.gamma.len(), norm.beta.len());
        }
        Ok(())
    }
}

/// The outputs of a task's rows: from the sums directly, or through a row of
/// floats that is normalized.
struct Sink<'a, T> {
    residual: Option<&'a [T]>,
    norm: Option<Norm<'a>>,
}

/// A residual of T, or an error where it is of another type.
trait Residual: Element {
    fn of<'a>(values: Floats<'a>) -> Result<&'a [Self]>;
}

impl Residual for f32 {
    fn of(values: Floats<'_>) -> Result<&[f32]> {
        match values {
            Floats::F32(x) => Ok(x),
            _ => bail!("residual: expected float32, as the output is"),
        }
    }
}

impl Residual for u16 {
    fn of(values: Floats<'_>) -> Result<&[u16]> {
        match values {
            Floats::Bf16(x) => Ok(x),
            _ => bail!("residual: expected bfloat16, as the output is"),
        }
    }
}

impl<'a, T: Residual> Sink<'a, T> {
    fn new(after: After<'a>) -> Result<Self> {
        Ok(Sink { residual: after.residual.map(T::of).transpose()?, norm: after.norm })
    }

    /// Runs all of `layer` for rows from `first`, normalized if so asked.
    fn run(
        &self,
        isa: Isa,
        layer: &Layer,
        columns: &LayerColumns,
        rows: &mut Rows,
        scales: &[RowScale],
        panels: Range<usize>,
        sums: &mut Sums,
        floats: &mut [f32],
        first: usize,
        out: &mut [&mut [T]],
    ) {
        let n = layer.weight.n();
        let residual = self.residual.map(|r| (&r[first * n..], n));
        let Some(norm) = &self.norm else {
            return layer.rows(isa, columns, rows, scales, panels, sums, residual, out);
        };
        let mut whole: Vec<_> = floats.chunks_exact_mut(n).take(out.len()).collect();
        layer.rows(isa, columns, rows, scales, panels, sums, None, &mut whole);
        for (r, (x, out)) in whole.into_iter().zip(out).enumerate() {
            if let Some((residual, _)) = residual {
                add(x, &residual[r * n..(r + 1) * n]);
            }
            normalize(x, norm, out, isa);
        }
    }
}

/// A weight with what follows the product.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// N outputs, K inputs.
    pub weight: &'a Weight<'a>,
    /// N float32, or none.
    pub bias: Option<&'a [f32]>,
    /// Applied to product and bias.
    pub activation: Activation,
}

impl Layer<'_> {
    fn check(&self) -> Result<()> {
        let n = self.weight.n();
        if let Some(bias) = self.bias
            && bias.len() != n
        {
            bail!("bias: expected {n} values, got {}", bias.len());
        }
        if self.weight.k() == 0 || self.weight.k() > MAX_K_U8 {
            bail!("weight: a layer takes 1 to {MAX_K_U8} inputs, got {}", self.weight.k());
        }
        Ok(())
    }

    /// Rows times panels, finished into columns from `from` of each row of
    /// `out`. `residual`: the first row's first output, and from row to row.
    fn rows<T: Element>(
        &self,
        isa: Isa,
        columns: &LayerColumns,
        rows: &mut Rows,
        scales: &[RowScale],
        panels: Range<usize>,
        sums: &mut Sums,
        residual: Option<(&[T], usize)>,
        out: &mut [&mut [T]],
    ) {
        let (totals, columns_of, expanded) = (&mut sums.totals, &mut sums.columns, &mut sums.expanded);
        let sums = &mut sums.sums[..scales.len() * PANEL];
        for p in panels.clone() {
            let mut parts: Vec<_> = sums.chunks_exact_mut(PANEL).collect();
            let (width, cols, first, (col_sum, scale), rounded) = match columns {
                LayerColumns::Groups(grouped) if grouped.integers().is_some() => {
                    // As an int8 panel.
                    let (from, entries) = (grouped.panel(p), grouped.integers().unwrap_or_default());
                    let (col_sum, scale) = (from.col_sum, from.scale);
                    let done = (from.width, from.cols, from.first, tiled::header(col_sum, scale), false);
                    if tables::has_few(isa, parts.len(), grouped) {
                        tables::few(&from, entries, rows.a, expanded, &mut parts, isa);
                    } else {
                        let codes = &mut expanded[..from.k.div_ceil(4) * 4 * from.width];
                        tables::expand(&from, entries, codes, isa);
                        let GroupPanel { width, cols, first, .. } = from;
                        let fits = match grouped.fits() {
                            4 => Fits::Fours,
                            2 => Fits::Pairs,
                            _ => Fits::Unknown,
                        };
                        let panel = Panel { width, cols, first, col_sum, scale, codes };
                        rows.times(isa, Found { panel, excess: &[], fits }, &[0; PANEL], &mut parts, 0);
                    }
                    done
                }
                LayerColumns::Int8(columns) => {
                    let with @ Found { panel, .. } = columns.panel(p);
                    rows.times(isa, with, &[0; PANEL], &mut parts, 0);
                    (panel.width, panel.cols, panel.first, tiled::header(panel.col_sum, panel.scale), false)
                }
                LayerColumns::Groups(grouped) => {
                    let panel = grouped.panel(p);
                    let col = (p - panels.start) * PANEL;
                    rows.soon.clear();
                    rows.soon.extend(out.iter().map(|out| out[col..].as_ptr().cast::<u8>()));
                    let header = tiled::header(panel.col_sum, panel.scale);
                    let rounded = match panel.groups.inputs() {
                        Inputs::Rows => group_sums(isa, rows, &panel, &header.0, scales, parts, totals),
                        Inputs::Spans => span_sums(isa, rows, &panel, parts, totals, columns_of),
                        Inputs::Floats => {
                            drop(parts);
                            let floats = bytemuck::cast_slice_mut(sums).as_chunks_mut().0;
                            rows.times_floats(isa, &panel, columns_of, floats);
                            true
                        }
                    };
                    (panel.width, panel.cols, panel.first, header, rounded)
                }
            };
            let bias = self.bias.map(|bias| {
                let mut padded = [0.0; PANEL];
                padded[..cols].copy_from_slice(&bias[first..first + cols]);
                padded
            });
            let residual = residual.map(|(values, stride)| (&values[first..], stride));
            let f = Finish { width, cols, rounded, col_sum, scale, bias, activation: self.activation, residual };
            finish(&f, sums, scales, out, (p - panels.start) * PANEL, isa);
        }
    }
}

/// Rows times a panel in groups. Where the depth is more than int32 sums are sure to
/// hold, they are summed in int64, centred here, and rounded: float32 in the place of
/// sums, and true.
fn group_sums(
    isa: Isa,
    rows: &mut Rows,
    panel: &GroupPanel,
    col_sum: &[i32; PANEL],
    scales: &[RowScale],
    mut sums: Vec<&mut [i32]>,
    totals: &mut [i64],
) -> bool {
    let depth = panel.pass;
    if panel.k <= depth {
        rows.times_groups(isa, panel, 0..panel.k, &mut sums);
        return false;
    }
    let totals = &mut totals[..sums.len() * PANEL];
    totals.fill(0);
    for from in (0..panel.k).step_by(depth) {
        rows.times_groups(isa, panel, from..panel.k.min(from + depth), &mut sums);
        for (total, sum) in totals.chunks_exact_mut(PANEL).zip(&sums) {
            total.iter_mut().zip(sum.iter()).take(panel.width).for_each(|(total, &sum)| *total += i64::from(sum));
        }
    }
    for ((sums, totals), row) in sums.into_iter().zip(totals.chunks_exact(PANEL)).zip(scales) {
        for ((sum, total), &col_sum) in sums.iter_mut().zip(totals).zip(col_sum) {
            let centred = total - i64::from(row.zero_point) * i64::from(col_sum);
            *sum = (centred as f32).to_bits() as i32;
        }
    }
    true
}

/// Rows whose every [`SUPER`] codes have a scale of their own times a panel: float32 in
/// the place of sums, and true.
fn span_sums(
    isa: Isa,
    rows: &mut Rows,
    panel: &GroupPanel,
    mut sums: Vec<&mut [i32]>,
    totals: &mut [i64],
    columns: &mut [f32],
) -> bool {
    let spans = panel.k.div_ceil(SUPER);
    let totals: &mut [f32] = &mut bytemuck::cast_slice_mut(totals)[..sums.len() * PANEL];
    totals.fill(0.0);
    for span in 0..spans {
        let depth = span * SUPER..panel.k.min((span + 1) * SUPER);
        let mut col_sum = [0; PANEL];
        floats::span_column_sums(panel, depth.clone(), columns, &mut col_sum, isa);
        rows.times_groups(isa, panel, depth, &mut sums);
        for (r, (total, sums)) in totals.chunks_exact_mut(PANEL).zip(&sums).enumerate() {
            floats::add_span(sums, &col_sum, rows.spans[r * spans + span], total, isa);
        }
    }
    for (sums, totals) in sums.into_iter().zip(totals.chunks_exact(PANEL)) {
        sums.copy_from_slice(bytemuck::cast_slice(totals));
    }
    true
}

on_isa! {
    fn finish<T: Element>(
        f: &Finish<T>,
        sums: &[i32],
        rows: &[RowScale],
        out: &mut [&mut [T]],
        col: usize,
    ) = epilogue::finish;
    fn normalize<T: Element>(x: &[f32], norm: &Norm, out: &mut [T]) = epilogue::normalize;
    /// out = x · by, elementwise, all of one length.
    fn multiply(x: Floats, by: &[f32], out: &mut [f32]) = epilogue::multiply;
}

/// x · by, its blocks of `rotation` rotated, in `to`; x where there is nothing to multiply by.
fn scaled<'a>(x: Floats<'a>, by: &[f32], rotation: usize, to: &'a mut [f32], isa: Isa) -> Floats<'a> {
    if by.is_empty() {
        return x;
    }
    multiply(x, by, to, isa);
    if rotation > 0 {
        rotate(to, rotation, isa);
    }
    Floats::F32(to)
}

/// x += y
fn add<T: Element>(x: &mut [f32], y: &[T]) {
    for (x, y) in x.iter_mut().zip(y.chunks_exact(1)) {
        *x += T::load(crate::lanes::Scalar, y);
    }
}

/// Rows for the kernels, how each was quantized, and room for their sums.
type Prepared<'a> = (Rows<'a>, &'a [RowScale], &'a mut Sums);

/// Room for a panel's sums.
struct Sums {
    sums: Vec<i32>,
    /// For weights too deep for int32, and as floats for spans.
    totals: Vec<i64>,
    /// A panel's columns as floats.
    columns: Vec<f32>,
    /// A panel's codes, looked up.
    expanded: Vec<u8>,
}

/// Scratch of a thread that runs blocks of rows through a layer.
struct Scratch {
    /// A row, or all rows where they are not rounded; those as their kernel reads them.
    equalized: Vec<f32>,
    interleaved: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<RowScale>,
    spans: Vec<RowScale>,
    rows: Vec<i32>,
    sums: Sums,
}

impl Scratch {
    fn new(isa: Isa, rows: usize, weight: &Weight) -> Result<Scratch> {
        let (k, inputs) = (weight.k(), weight.inputs());
        let (scratch, totals) = match weight.codes {
            Codes::Int8(_) => (Rows::scratch_len(isa, rows, k, usize::MAX), 0),
            Codes::Groups(grouped) if inputs == Inputs::Floats => {
                (Rows::floats_scratch_len(isa, rows, k, grouped.groups()), 0)
            }
            Codes::Groups(grouped) if grouped.integers().is_some() => (Rows::scratch_len(isa, rows, k, usize::MAX), 0),
            Codes::Groups(grouped) => {
                let totals = if k > grouped.pass() || inputs == Inputs::Spans { rows * PANEL } else { 0 };
                (Rows::groups_scratch_len(isa, rows, (k, grouped.pass()), grouped.groups()), totals)
            }
        };
        let (codes, floats) = if inputs == Inputs::Floats { (0, rows) } else { (rows, 1) };
        let spans = if inputs == Inputs::Spans { rows * k.div_ceil(SUPER) } else { 0 };
        let columns = match (inputs, weight.codes) {
            (Inputs::Rows, _) => 0,
            (Inputs::Floats, Codes::Groups(grouped)) => floats::scratch_len(&grouped),
            _ => floats::SCRATCH,
        };
        let expanded = match weight.codes {
            Codes::Groups(grouped) if grouped.integers().is_some() => tables::room(isa, rows, &grouped),
            _ => 0,
        };
        Ok(Scratch {
            equalized: try_zeroed(checked_product("scratch", &[floats, k])?)?,
            interleaved: try_zeroed(if codes == 0 { checked_product("scratch", &[floats, k])? } else { 0 })?,
            codes: try_zeroed(LINE + checked_product("scratch", &[codes, k])?)?,
            scales: Vec::with_capacity(rows),
            spans: try_zeroed(spans)?,
            rows: try_zeroed(scratch)?,
            sums: Sums {
                sums: try_zeroed(rows * PANEL)?,
                totals: try_zeroed(totals)?,
                columns: try_zeroed(columns)?,
                expanded: try_zeroed(expanded)?,
            },
        })
    }

    /// The rows from `first` as codes: quantized here where they are floats.
    fn rows<'a>(&'a mut self, isa: Isa, x: Input<'a>, first: usize, rows: usize, weight: &Weight) -> Prepared<'a> {
        let k = weight.k();
        match x {
            Input::Floats(x) => self.quantize(isa, x.part(first * k..(first + rows) * k), weight),
            Input::Codes(codes, scales) => {
                let codes = &codes[first * k..(first + rows) * k];
                (Rows::new(isa, codes, k, 0, &mut self.rows), &scales[first..first + rows], &mut self.sums)
            }
        }
    }

    fn quantize(&mut self, isa: Isa, x: Floats, weight: &Weight) -> Prepared<'_> {
        let (k, by) = (weight.k(), &weight.equalizer[..]);
        let rows = x.len() / k;
        let floats = if weight.inputs() == Inputs::Floats { rows * k } else { 0 };
        let part = |r: usize| x.part(r * k..(r + 1) * k);
        self.scales.clear();
        // Tiles are read from whole lines.
        let skip = self.codes.as_ptr().align_offset(LINE).min(LINE);
        let all_codes = &mut self.codes[skip..];
        match weight.inputs() {
            Inputs::Rows => {
                for (r, codes) in all_codes.chunks_exact_mut(k).take(rows).enumerate() {
                    // The next row, which the CPU does not fetch by itself past a page.
                    x.part((r + 1).min(rows - 1) * k..(r + 2).min(rows) * k).prefetch();
                    let x = scaled(part(r), by, weight.rotation(), &mut self.equalized, isa);
                    self.scales.push(quantize_row(x, &Levels::RANGE, codes, isa));
                }
            }
            Inputs::Spans => {
                let spans = self.spans.chunks_exact_mut(k.div_ceil(SUPER));
                for (r, (codes, spans)) in all_codes.chunks_exact_mut(k).zip(spans).take(rows).enumerate() {
                    let x = scaled(part(r), by, weight.rotation(), &mut self.equalized, isa);
                    for ((i, codes), span) in codes.chunks_mut(SUPER).enumerate().zip(spans) {
                        let x = x.part(i * SUPER..i * SUPER + codes.len());
                        *span = quantize_row(x, &Levels::RANGE, codes, isa);
                    }
                    self.scales.push(RowScale { scale: 1.0, zero_point: 0 });
                }
            }
            Inputs::Floats => {
                let plain = &mut self.equalized[..rows * k];
                for (r, to) in plain.chunks_exact_mut(k).enumerate() {
                    multiply(part(r), by, to, isa);
                    if weight.rotation() > 0 {
                        rotate(to, weight.rotation(), isa);
                    }
                    // A row with an infinity is NaN as one with NaN is.
                    let finite = all_finite(Floats::F32(to), isa);
                    self.scales.push(RowScale { scale: if finite { 1.0 } else { f32::NAN }, zero_point: 0 });
                }
            }
        }
        let codes = if floats > 0 { &[] } else { &all_codes[..rows * k] };
        let mut rows = Rows::new(isa, codes, k, 0, &mut self.rows);
        (rows.floats, rows.spans) = (&self.equalized[..floats], &self.spans);
        rows.interleaved = &mut self.interleaved[..floats];
        (rows, &self.scales, &mut self.sums)
    }
}

/// y = activation(x Wᵀ + bias), then what comes `after`; rows of floats are
/// quantized per row within the call. Rows put out as codes take no `after`.
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit,
/// [`crate::Error::Memory`], [`crate::Error::Interrupted`].
pub fn linear(x: Input, m: usize, layer: &Layer, after: After, out: Output, isa: Isa, ctl: &Ctl) -> Result<()> {
    let n = layer.weight.n();
    layer.check()?;
    check_input(&x, m, layer.weight)?;
    if out.len() != checked_product("out", &[m, n])? {
        bail!("out: expected {m} by {n}, got {} elements", out.len());
    }
    after.check(m, n)?;
    if out.len() == 0 {
        return Ok(());
    }
    match out {
        Output::F32(out) => layer_into(x, m, layer, after, out, isa, ctl),
        Output::Bf16(out) => layer_into(x, m, layer, after, out, isa, ctl),
        Output::Codes(codes, scales) => {
            if after.residual.is_some() || after.norm.is_some() {
                bail!("residual, norm: expected none where rows are put out as codes");
            }
            layer_into_codes(x, m, layer, codes, scales, isa, ctl)
        }
    }
}

fn check_input(x: &Input, m: usize, weight: &Weight) -> Result<()> {
    let (len, rows) = match x {
        Input::Floats(x) => (x.len(), m),
        Input::Codes(..) if !weight.equalizer.is_empty() => {
            bail!("x: an equalized weight takes floats, since it multiplies them before they are quantized")
        }
        Input::Codes(..) if weight.inputs() != Inputs::Rows => {
            bail!("x: expected floats, which this weight does not round to 8 bits per row")
        }
        Input::Codes(codes, scales) => (codes.len(), scales.len()),
    };
    if rows != m || len != checked_product("x", &[m, weight.k()])? {
        bail!("x: expected {m} rows of {}, got {len} elements and {rows} scales", weight.k());
    }
    Ok(())
}

fn layer_into<T: Residual>(
    x: Input,
    m: usize,
    layer: &Layer,
    after: After,
    out: &mut [T],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let (n, k) = (layer.weight.n(), layer.weight.k());
    let sink = Sink::new(after)?;
    let columns = LayerColumns::new(isa, m, layer.weight, ctl)?;
    let (panels, threads) = (layer.weight.codes.panels(), ctl.threads());
    let mut cut = match layer.weight.inputs() {
        Inputs::Floats => Cut::of(m, k, panels, threads, float_rows(isa, layer.weight)),
        _ => Cut::new(m, k, panels, threads, ROWS),
    };
    let mut floats = 0;
    if sink.norm.is_some() {
        // A row is normalized by the task that has all of it.
        cut = Cut { rows: block_rows(isa, m, k.max(n), ctl), panels };
        floats = checked_product("scratch", &[cut.rows, n])?;
    }
    let scratch = per_thread(ctl, || Ok((Scratch::new(isa, cut.rows, layer.weight)?, try_zeroed::<f32>(floats)?)))?;
    let tasks = Parts::new(cut_output(out, n, &cut));
    ctl.for_each(tasks.len(), &|slot, task| {
        let (first, panel, mut out) = tasks.take(task);
        let (scratch, floats) = &mut *lock(&scratch[slot]);
        let (mut rows, scales, sums) = scratch.rows(isa, x, first, out.len(), layer.weight);
        let panels = panel..layer.weight.codes.panels().min(panel + cut.panels);
        sink.run(isa, layer, &columns, &mut rows, scales, panels, sums, floats, first, &mut out);
    })
}

fn layer_into_codes(
    x: Input,
    m: usize,
    layer: &Layer,
    codes: &mut [u8],
    row_scales: &mut [RowScale],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let (n, k) = (layer.weight.n(), layer.weight.k());
    if row_scales.len() != m {
        bail!("out: expected {m} row scales, got {}", row_scales.len());
    }
    let columns = LayerColumns::new(isa, m, layer.weight, ctl)?;
    let block = block_rows(isa, m, k, ctl);
    let scratch = per_thread(ctl, || {
        Ok((Scratch::new(isa, block, layer.weight)?, try_zeroed::<f32>(checked_product("scratch", &[block, n])?)?))
    })?;
    let tasks = Parts::new(codes.chunks_mut(block * n).zip(row_scales.chunks_mut(block)));
    ctl.for_each(tasks.len(), &|slot, task| {
        let (codes, row_scales) = tasks.take(task);
        let (scratch, floats) = &mut *lock(&scratch[slot]);
        let (mut rows, scales, sums) = scratch.rows(isa, x, task * block, row_scales.len(), layer.weight);
        let mut out: Vec<_> = floats.chunks_exact_mut(n).take(row_scales.len()).collect();
        layer.rows(isa, &columns, &mut rows, scales, 0..layer.weight.codes.panels(), sums, None, &mut out);
        for ((codes, row), floats) in codes.chunks_exact_mut(n).zip(row_scales).zip(out) {
            *row = quantize_row(Floats::F32(floats), &Levels::RANGE, codes, isa);
        }
    })
}

/// Rows of a block that are not rounded.
fn float_rows(isa: Isa, weight: &Weight) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Codes::Groups(grouped) = weight.codes
        && isa.has_amx()
        && amx::floats::takes(grouped.groups(), grouped.k())
    {
        return amx::floats::rows(grouped.k());
    }
    let _ = (isa, weight);
    floats::ROWS
}

/// Rows of a block whose floats stay in L2, and small enough that each thread
/// has one.
fn block_rows(isa: Isa, m: usize, k: usize, ctl: &Ctl) -> usize {
    let fits = ((BLOCK_BYTES / k.max(1)) / 12 * 12).max(12);
    MLP_ROWS[usize::from(isa.has_amx())].min(fits).min(m.div_ceil(ctl.threads())).max(1)
}

/// Two layers as one: y = down(up(x)), then what comes `after`. What lies
/// between is quantized per row as [`linear`] would do it, and never leaves the
/// cache: for f32 the bits are those of two calls of [`linear`].
///
/// # Errors
/// As [`linear`].
pub fn mlp(
    x: Floats,
    m: usize,
    up: &Layer,
    down: &Layer,
    after: After,
    out: Output,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    up.check()?;
    down.check()?;
    let (inner, n) = (up.weight.n(), down.weight.n());
    if down.weight.k() != inner {
        bail!("down: expected {inner} inputs, the outputs of up, got {}", down.weight.k());
    }
    check_input(&Input::Floats(x), m, up.weight)?;
    if out.len() != checked_product("out", &[m, n])? {
        bail!("out: expected {m} by {n}, got {} elements", out.len());
    }
    after.check(m, n)?;
    if out.len() == 0 {
        return Ok(());
    }
    match out {
        Output::F32(out) => mlp_into(x, m, up, down, after, out, isa, ctl),
        Output::Bf16(out) => mlp_into(x, m, up, down, after, out, isa, ctl),
        Output::Codes(..) => bail!("out: expected floats"),
    }
}

fn mlp_into<T: Residual>(
    x: Floats,
    m: usize,
    up: &Layer,
    down: &Layer,
    after: After,
    out: &mut [T],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let (k, inner, n) = (up.weight.k(), up.weight.n(), down.weight.n());
    let sink = Sink::new(after)?;
    let up_columns = LayerColumns::new(isa, m, up.weight, ctl)?;
    let down_columns = LayerColumns::new(isa, m, down.weight, ctl)?;
    let block = block_rows(isa, m, k.max(inner), ctl);
    let scratch = per_thread(ctl, || {
        let floats = try_zeroed::<f32>(checked_product("scratch", &[block, inner.max(n)])?)?;
        Ok((Scratch::new(isa, block, up.weight)?, floats, Scratch::new(isa, block, down.weight)?))
    })?;
    let tasks = Parts::new(out.chunks_mut(block * n));
    ctl.for_each(tasks.len(), &|slot, task| {
        let mut out: Vec<_> = tasks.take(task).chunks_exact_mut(n).collect();
        let (scratch, floats, between) = &mut *lock(&scratch[slot]);
        let (first, count) = (task * block, out.len());
        let (mut rows, scales, sums) = scratch.quantize(isa, x.part(first * k..(first + count) * k), up.weight);
        let mut hidden: Vec<_> = floats.chunks_exact_mut(inner).take(count).collect();
        up.rows(isa, &up_columns, &mut rows, scales, 0..up.weight.codes.panels(), sums, None, &mut hidden);
        let hidden = Floats::F32(&floats[..count * inner]);
        let (mut rows, scales, sums) = between.quantize(isa, hidden, down.weight);
        // The codes are made, so the floats are free again.
        sink.run(
            isa,
            down,
            &down_columns,
            &mut rows,
            scales,
            0..down.weight.codes.panels(),
            sums,
            floats,
            first,
            &mut out,
        );
    })
}

#[cfg(test)]
mod tests;
