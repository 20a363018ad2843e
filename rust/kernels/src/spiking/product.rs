//! Products of spikes with weights, at a cost proportional to the spikes.
//!
//! For each row the inputs that spiked are listed; then, some panels of the weight at a time, the
//! rows at those inputs are added, the sums of their columns in registers. Sums of codes are exact;
//! where most inputs spiked, the others' rows are taken from the columns' sums. A count is a sum
//! of powers of two, each a spike in a plane of its own. Sums of floats go by ascending input,
//! from the bias on, one addition each: the same bits on every instruction set.
//!
//! Where there are tiles, many rows of many spikes are multiplied instead (`dense.rs`).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod conv;
#[cfg(target_arch = "x86_64")]
mod dense;
mod lists;
mod pairs;
mod prepared;
mod scalar;
mod scatter;
#[cfg(test)]
mod tests;
mod weight;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

pub use conv::{SpikeConv2d, spike_conv2d};
pub use prepared::SpikeProduct;
pub use weight::{
    MAX_SPIKE_K, SpikeForm, SpikeWeight, spike_weight_len, tile_spike_codes, tile_spike_floats, untile_spike_codes,
    untile_spike_floats,
};

use crate::error::{bail, checked_product, try_zeroed};
use crate::packing::{packed_len, unpack};
use crate::par::Parts;
use crate::{Ctl, Error, Isa, Result};
use lists::{Kind, Lists};
use weight::{PANEL, Panel};

/// Indices that are listed before their rows are added: with some panels they stay in L2.
const LISTED: usize = 1 << 16;
/// Additions of a task, at most, were every input a spike: so that Ctrl-C waits for 0.1 s at most.
const TASK: usize = 1 << 30;

/// Rows of inputs.
#[derive(Clone, Copy, Debug)]
pub enum Spikes<'a> {
    /// A bit each, rows as [`crate::packing::pack`] packs them.
    Packed(&'a [u8]),
    /// A byte each, 0 or 1.
    Bytes(&'a [u8]),
    /// A byte each: how many spikes.
    Counts(&'a [u8]),
}

/// Where sums start: at 0, or at one number for each column.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// 0
    Zero,
    /// For weights of codes.
    I32(&'a [i32]),
    /// For weights of floats.
    F32(&'a [f32]),
}

/// Where sums go.
#[derive(Debug)]
pub enum Sums<'a> {
    /// Of codes.
    I32(&'a mut [i32]),
    /// Of floats.
    F32(&'a mut [f32]),
}

/// M rows of K inputs times a weight (K, N), from `start` on, into `out`, M×N.
///
/// # Errors
/// [`Error::Value`] where lengths do not fit, `start` or `out` is not of the weight's kind, an
/// input is neither 0 nor 1 where it should be, a bit after a row's last is set, or an int32 sum
/// could overflow: where a row's counts times the greatest magnitude of a code and the greatest
/// of `start` are 2^31 or more. `out` then holds nothing of use. [`Error::Memory`];
/// [`Error::Interrupted`].
pub fn spike_matmul<B: AsRef<[u8]> + Sync>(
    spikes: Spikes,
    m: usize,
    weight: &SpikeWeight<B>,
    start: Start,
    out: Sums,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let k = weight.k();
    let (bytes, each) = match spikes {
        Spikes::Packed(bits) => (bits, packed_len(k, 1)?),
        Spikes::Bytes(bytes) | Spikes::Counts(bytes) => (bytes, k),
    };
    if bytes.len() != checked_product("spikes", &[m, each])? {
        bail!("spikes: expected {m} rows of {each} bytes, got {} in all", bytes.len());
    }
    let source = Rows { spikes, bytes, each, k };
    multiply(&source, m, 1, weight, start, out, isa, ctl)
}

/// What rows of a product are listed from.
trait Source: Sync {
    /// What a thread keeps from row to row.
    type Memory: Default + Send;
    /// Appends row `row`: its sum, or which input is not what it should be.
    fn push(
        &self,
        row: usize,
        kind: Kind,
        isa: Isa,
        lists: &mut Lists,
        memory: &mut Self::Memory,
    ) -> Result<std::result::Result<u64, usize>>;
    /// Whether inputs are counts.
    fn counts(&self) -> bool;
    /// All inputs as they came, and how many they are.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn inputs(&self) -> (&[u8], usize);
    /// Some rows, a byte an input, `buffer` being as long: none where one is not what it should be.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn bytes<'a>(&'a self, rows: Range<usize>, buffer: &'a mut [u8], isa: Isa) -> Option<&'a [u8]>;
    /// Whether [`Self::bytes`] wants a buffer.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn is_made(&self) -> bool;
    /// What is said of the input at this place.
    fn wrong(&self, at: usize) -> Error;
}

struct Rows<'a> {
    spikes: Spikes<'a>,
    bytes: &'a [u8],
    /// Bytes of a row.
    each: usize,
    k: usize,
}

impl Source for Rows<'_> {
    type Memory = ();

    fn push(
        &self,
        row: usize,
        kind: Kind,
        isa: Isa,
        lists: &mut Lists,
        (): &mut (),
    ) -> Result<std::result::Result<u64, usize>> {
        let bytes = &self.bytes[row * self.each..][..self.each];
        if matches!(self.spikes, Spikes::Packed(_)) {
            if self.k % 8 != 0 && bytes.last().is_some_and(|last| last >> (self.k % 8) != 0) {
                return Ok(Err(row));
            }
            return lists.push_packed(isa, bytes, self.k, kind).map(Ok);
        }
        Ok(lists.push_bytes(isa, bytes, kind)?.ok_or_else(|| row * self.each + first_above_1(bytes)))
    }

    fn counts(&self) -> bool {
        matches!(self.spikes, Spikes::Counts(_))
    }

    fn inputs(&self) -> (&[u8], usize) {
        (self.bytes, self.bytes.len().checked_div(self.each).unwrap_or(0) * self.k)
    }

    fn bytes<'a>(&'a self, rows: Range<usize>, buffer: &'a mut [u8], isa: Isa) -> Option<&'a [u8]> {
        let bytes = &self.bytes[rows.start * self.each..rows.end * self.each];
        match self.spikes {
            Spikes::Packed(_) => {
                unpack(bytes, rows.len(), self.k, 1, buffer, isa, &Ctl::new(1)).ok()?;
                Some(buffer)
            }
            Spikes::Bytes(_) => (bits_in(bytes) <= 1).then_some(bytes),
            Spikes::Counts(_) => Some(bytes),
        }
    }

    fn is_made(&self) -> bool {
        matches!(self.spikes, Spikes::Packed(_))
    }

    fn wrong(&self, at: usize) -> Error {
        if matches!(self.spikes, Spikes::Packed(_)) {
            let text = "spikes: expected zeros after the last bit of each row, got a set bit at the end of row";
            return Error::Value(format!("{text} {at}"));
        }
        neither(self.bytes[at], at)
    }
}

/// The bits that any of the bytes has.
fn bits_in(bytes: &[u8]) -> u8 {
    let (sixteens, rest) = bytes.as_chunks::<16>();
    let seen = sixteens.iter().fold(0, |seen, sixteen| seen | u128::from_ne_bytes(*sixteen));
    seen.to_ne_bytes().iter().chain(rest).fold(0, |seen, byte| seen | byte)
}

fn first_above_1(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| byte > 1).unwrap_or(0)
}

fn neither(got: u8, at: usize) -> Error {
    Error::Value(format!("spikes: expected 0 or 1, got {got} at flat index {at}; counts are to be told as such"))
}

/// All rows of a source times a weight; `unit`: rows that a task is a multiple of.
fn multiply<S: Source, B: AsRef<[u8]> + Sync>(
    source: &S,
    m: usize,
    unit: usize,
    weight: &SpikeWeight<B>,
    start: Start,
    out: Sums,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    match (out, start, weight.form()) {
        (Sums::I32(out), Start::Zero, SpikeForm::Codes(_)) => {
            codes_product(source, m, unit, weight, None, out, isa, ctl)
        }
        (Sums::I32(out), Start::I32(s), SpikeForm::Codes(_)) => {
            codes_product(source, m, unit, weight, Some(s), out, isa, ctl)
        }
        (Sums::F32(out), Start::Zero, SpikeForm::Floats) => product(source, m, unit, weight, None, out, isa, ctl),
        (Sums::F32(out), Start::F32(s), SpikeForm::Floats) => product(source, m, unit, weight, Some(s), out, isa, ctl),
        (_, _, SpikeForm::Codes(_)) => bail!("bias, out: expected int32 with a weight of codes, got float32"),
        (_, _, SpikeForm::Floats) => bail!("bias, out: expected float32 with a weight of floats, got int32"),
    }
}

fn codes_product<S: Source, B: AsRef<[u8]> + Sync>(
    source: &S,
    m: usize,
    unit: usize,
    weight: &SpikeWeight<B>,
    start: Option<&[i32]>,
    out: &mut [i32],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    #[cfg(target_arch = "x86_64")]
    if dense::is_safe(source, weight, start, isa)
        && dense::is_quicker(source, m, weight, ctl.threads())
        && dense::product(source, m, weight, start, out, isa, ctl)?
    {
        return Ok(());
    }
    product(source, m, unit, weight, start, out, isa, ctl)
}

fn product<T: Sum, S: Source, B: AsRef<[u8]> + Sync>(
    source: &S,
    m: usize,
    unit: usize,
    weight: &SpikeWeight<B>,
    start: Option<&[T]>,
    out: &mut [T],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let (k, n) = (weight.k(), weight.n());
    check_ends(m, n, start, out)?;
    if out.is_empty() {
        return Ok(());
    }
    let (kind, most) = (T::kind(source.counts()), T::most(weight.form(), start));
    let cut = Cut::new(m, unit, k, weight.panels(), ctl.threads());
    let tasks = Parts::new(cut_output(out, n, &cut));
    let made = || Ok(Mutex::new((Lists::default(), S::Memory::default(), try_zeroed(scratch_len(weight))?)));
    let threads: Vec<_> = (0..ctl.threads().min(tasks.len())).map(|_| made()).collect::<Result<_>>()?;
    let (wrong, over) = (AtomicUsize::new(usize::MAX), AtomicUsize::new(usize::MAX));
    let failed = Mutex::new(None);
    ctl.for_each(tasks.len(), &|slot, task| {
        let (first, panels, mut out) = tasks.take(task);
        let mut memory = threads[slot].lock().unwrap_or_else(PoisonError::into_inner);
        let (lists, memory, scratch) = &mut *memory;
        let mut done = 0;
        while done < out.len() {
            lists.clear();
            while done + lists.rows.len() < out.len() && lists.indices.len() < LISTED {
                let row = first + done + lists.rows.len();
                match source.push(row, kind, isa, lists, memory) {
                    Ok(Ok(sum)) if sum <= most => continue,
                    Ok(Ok(_)) => {
                        over.fetch_min(row, Relaxed);
                    }
                    Ok(Err(at)) => {
                        wrong.fetch_min(at, Relaxed);
                    }
                    Err(error) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
                }
                return; // the first such row of this task: others have their own
            }
            let rows = lists.rows.len();
            add_rows(weight, panels.clone(), lists, start, &mut out[done..done + rows], scratch, isa);
            done += rows;
        }
    })?;
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    match (wrong.into_inner(), over.into_inner()) {
        (usize::MAX, usize::MAX) => Ok(()),
        (usize::MAX, row) => {
            bail!("spikes: int32 is sure to hold sums of up to {most} spikes here, row {row} has more")
        }
        (at, _) => Err(source.wrong(at)),
    }
}

/// That M×N sums fit, and where they start.
fn check_ends<T>(m: usize, n: usize, start: Option<&[T]>, out: &[T]) -> Result<()> {
    if out.len() != checked_product("out", &[m, n])? {
        bail!("out: expected {m} by {n}, got {} elements", out.len());
    }
    match start {
        Some(start) if start.len() != n => bail!("bias: expected {n} values, got {}", start.len()),
        _ => Ok(()),
    }
}

/// How M rows times some panels are cut into tasks.
struct Cut {
    rows: usize,
    panels: usize,
}

impl Cut {
    fn new(m: usize, unit: usize, k: usize, panels: usize, threads: usize) -> Cut {
        let most = TASK / (k.max(1) * PANEL); // rows times panels
        let wanted = if threads == 1 { 1 } else { 4 * threads };
        let rows = (most / panels.max(1)).min(m.div_ceil(wanted)).max(LEAST_ROWS.min(most.max(1)));
        let rows = rows.next_multiple_of(unit).min(m);
        let blocks = m.div_ceil(rows);
        // A task's rows are listed again for each range of panels: so these are cut last.
        let panels = panels.div_ceil(wanted.div_ceil(blocks)).min((most / rows).max(1));
        Cut { rows, panels: panels.max(1) }
    }
}

/// Rows of a task, at least, if there are as many: what a panel is worth to be loaded for.
const LEAST_ROWS: usize = 16;

/// Rows up to which a panel is not found in a cache, but asked for ahead of its use.
const FEW_ROWS: usize = 4;

/// For each task the first row, the panels, and these panels' part of each row.
fn cut_output<'a, T>(out: &'a mut [T], n: usize, cut: &Cut) -> Vec<(usize, Range<usize>, Vec<&'a mut [T]>)> {
    let (width, panels) = (cut.panels * PANEL, n.div_ceil(PANEL));
    let mut tasks = Vec::new();
    for (block, rows) in out.chunks_mut(cut.rows * n).enumerate() {
        let first = tasks.len();
        tasks.extend((0..panels).step_by(cut.panels).map(|p| {
            let range = p..panels.min(p + cut.panels);
            (block * cut.rows, range, Vec::with_capacity(rows.len() / n))
        }));
        for row in rows.chunks_exact_mut(n) {
            for (task, part) in tasks[first..].iter_mut().zip(row.chunks_mut(width)) {
                task.2.push(part);
            }
        }
    }
    tasks
}

/// Bytes of a panel of packed codes that is unpacked.
fn scratch_len<B: AsRef<[u8]>>(weight: &SpikeWeight<B>) -> usize {
    if matches!(weight.form(), SpikeForm::Codes(2 | 4)) { weight.k() * PANEL } else { 0 }
}

/// The listed rows times some panels.
fn add_rows<T: Sum, B: AsRef<[u8]>>(
    weight: &SpikeWeight<B>,
    panels: Range<usize>,
    lists: &Lists,
    start: Option<&[T]>,
    out: &mut [&mut [T]],
    scratch: &mut [u8],
    isa: Isa,
) {
    let origin = panels.start * PANEL;
    let panels = T::side_by_side(weight, panels, lists, start, out, isa);
    for p in panels {
        let mut panel = weight.panel(p);
        #[cfg(target_arch = "x86_64")]
        // Unpacking a row costs about as much as adding it does; unpacked it is added in half the time.
        if !scratch.is_empty() && isa.has_avx2() && lists.indices.len() > 2 * weight.k() {
            avx2::unpack(isa, &panel, scratch);
            panel = Panel { rows: scratch, row_bytes: PANEL, ..panel };
        }
        let starts = T::starts(&panel, start);
        let columns = panel.first - origin..panel.first - origin + panel.cols;
        for (row, out) in lists.rows.iter().zip(out.iter_mut()) {
            T::row(&panel, lists, row, &starts, &mut out[columns.clone()], isa);
        }
    }
}

/// What sums are made of.
trait Sum: Copy + Default + Send + Sync {
    fn kind(counts: bool) -> Kind;
    /// The greatest sum of a row's inputs with which no sum can overflow.
    fn most(form: SpikeForm, start: Option<&[Self]>) -> u64;
    /// Where a panel's sums start: of rows that list what spiked, and of those that list what did not.
    fn starts(panel: &Panel, start: Option<&[Self]>) -> [[Self; PANEL]; 2];
    /// The listed rows times as many panels as can be gone through together; those that are left.
    fn side_by_side<B: AsRef<[u8]>>(
        weight: &SpikeWeight<B>,
        panels: Range<usize>,
        lists: &Lists,
        start: Option<&[Self]>,
        out: &mut [&mut [Self]],
        isa: Isa,
    ) -> Range<usize> {
        let _ = (weight, lists, start, out, isa);
        panels
    }
    /// One listed row times a panel.
    fn row(panel: &Panel, lists: &Lists, row: &lists::Row, starts: &[[Self; PANEL]; 2], out: &mut [Self], isa: Isa);
}

fn padded<T: Copy + Default>(panel: &Panel, start: Option<&[T]>) -> [T; PANEL] {
    let mut all = [T::default(); PANEL];
    if let Some(start) = start {
        all[..panel.cols].copy_from_slice(&start[panel.first..][..panel.cols]);
    }
    all
}

impl Sum for i32 {
    fn kind(counts: bool) -> Kind {
        if counts { Kind::Planes } else { Kind::Spikes }
    }

    fn most(form: SpikeForm, start: Option<&[i32]>) -> u64 {
        let SpikeForm::Codes(nbits) = form else { unreachable!("sums of codes") };
        let start = start.unwrap_or_default().iter().map(|s| s.unsigned_abs()).max().unwrap_or(0);
        u64::from(i32::MAX.unsigned_abs().saturating_sub(start)) >> (nbits - 1)
    }

    fn starts(panel: &Panel, start: Option<&[i32]>) -> [[i32; PANEL]; 2] {
        let plus = padded(panel, start);
        let mut minus = plus;
        for (to, sum) in minus.iter_mut().zip(panel.sums) {
            *to = to.wrapping_add(i32::from_le_bytes(*sum));
        }
        [plus, minus]
    }

    #[cfg(target_arch = "x86_64")]
    fn side_by_side<B: AsRef<[u8]>>(
        weight: &SpikeWeight<B>,
        mut panels: Range<usize>,
        lists: &Lists,
        start: Option<&[i32]>,
        out: &mut [&mut [i32]],
        isa: Isa,
    ) -> Range<usize> {
        // Few rows do better to ask for what is far.
        if !isa.has_avx512() || weight.form() != SpikeForm::Codes(8) || lists.rows.len() <= FEW_ROWS {
            return panels;
        }
        let origin = panels.start * PANEL;
        // Those of 64 columns: the last one may be narrower.
        let whole = panels.end.min(weight.n() / PANEL);
        let shared = if panels.start < whole { sharing(lists, weight.k(), isa) } else { Vec::new() };
        while panels.start < whole {
            let columns = panels.start * PANEL - origin;
            if whole - panels.start >= avx512::MANY && weight.k() <= avx512::MANY_INPUTS {
                let some = std::array::from_fn(|p| weight.panel(panels.start + p));
                panel_sums::<{ avx512::MANY }>(&some, &shared, lists, start, out, columns, isa);
                panels.start += avx512::MANY;
            } else {
                panel_sums::<1>(&[weight.panel(panels.start)], &shared, lists, start, out, columns, isa);
                panels.start += 1;
            }
        }
        panels
    }

    fn row(panel: &Panel, lists: &Lists, row: &lists::Row, starts: &[[i32; PANEL]; 2], out: &mut [i32], isa: Isa) {
        let planes = &lists.planes[row.planes.clone()];
        let start = &starts[usize::from(row.minus)];
        let add = |tile: &mut [i32; PANEL]| {
            let mut last = [0; PANEL];
            let far = lists.rows.len() <= FEW_ROWS;
            for (i, plane) in planes.iter().enumerate() {
                let from = if i == 0 { start } else { &last };
                add_codes(panel, &lists.indices[plane.at.clone()], plane.shift, row.minus, from, tile, far, isa);
                if planes.len() > 1 {
                    last = *tile;
                }
            }
        };
        if planes.is_empty() {
            return out.copy_from_slice(&start[..out.len()]);
        }
        if let Some(whole) = out.first_chunk_mut() {
            return add(whole);
        }
        let mut tile = [0; PANEL];
        add(&mut tile);
        out.copy_from_slice(&tile[..out.len()]);
    }
}

/// Rows that are added together, each time the first of them, and the inputs that they share.
#[cfg(target_arch = "x86_64")]
type Sharing = Vec<(usize, avx512::Shared)>;

#[cfg(target_arch = "x86_64")]
fn sharing(lists: &Lists, k: usize, isa: Isa) -> Sharing {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Some(rows) = lists.rows[at..].first_chunk::<{ avx512::TOGETHER }>() {
        at += 1;
        if let [Some(a), Some(b), Some(c)] = rows.each_ref().map(|row| lists.dense(row)) {
            let mut shared = avx512::Shared::default();
            if all.try_reserve(1).is_err() || !shared.list(isa, k, [a, b, c]) {
                break; // no memory: they are added one by one
            }
            all.push((at - 1, shared));
            at += avx512::TOGETHER - 1;
        }
    }
    all
}

/// The listed rows times P panels, whose columns begin at `columns` of each row of `out`.
#[cfg(target_arch = "x86_64")]
fn panel_sums<const P: usize>(
    panels: &[Panel; P],
    shared: &Sharing,
    lists: &Lists,
    start: Option<&[i32]>,
    out: &mut [&mut [i32]],
    columns: usize,
    isa: Isa,
) {
    fn part<const P: usize>(out: &mut [i32], columns: usize) -> &mut [[i32; PANEL]; P] {
        out[columns..].as_chunks_mut().0.first_chunk_mut().unwrap_or_else(|| unreachable!("whole panels"))
    }
    let each = panels.each_ref().map(|panel| i32::starts(panel, start));
    let starts = [each.map(|[plus, _]| plus), each.map(|[_, minus]| minus)];
    // Block by block and panel by panel: the first-level cache holds what the rows have in common.
    for block in 0..shared.iter().map(|(_, shared)| shared.blocks()).max().unwrap_or(0) {
        for (p, panel) in panels.iter().enumerate() {
            for (at, shared) in shared.iter().filter(|(_, shared)| block < shared.blocks()) {
                let minus = std::array::from_fn(|i| lists.rows[at + i].minus);
                let from: [_; avx512::TOGETHER] = minus.map(|minus| &starts[usize::from(minus)][p]);
                let [a, b, c] = &mut out[*at..at + avx512::TOGETHER] else { unreachable!("as many rows") };
                let columns = columns + p * PANEL;
                let out = [part::<1>(a, columns), part(b, columns), part(c, columns)].map(|[out]| out);
                shared.add(isa, panel, block, minus, from, out);
            }
        }
    }
    let (mut at, mut shared) = (0, shared.iter().peekable());
    while at < lists.rows.len() {
        if shared.next_if(|(first, _)| *first == at).is_some() {
            at += avx512::TOGETHER;
            continue;
        }
        let (row, out) = (&lists.rows[at], part(out[at], columns));
        at += 1;
        let from = &starts[usize::from(row.minus)];
        let planes = &lists.planes[row.planes.clone()];
        if planes.is_empty() {
            *out = *from;
        }
        for (i, plane) in planes.iter().enumerate() {
            let list = &lists.indices[plane.at.clone()];
            let copy;
            let from = if i == 0 {
                from
            } else {
                copy = *out;
                &copy
            };
            // SAFETY: a list's numbers are below K.
            unsafe { avx512::codes(isa, panels, list, plane.shift, row.minus, from, out) };
        }
    }
}

fn add_codes(
    panel: &Panel,
    list: &[u32],
    shift: u32,
    minus: bool,
    from: &[i32; PANEL],
    out: &mut [i32; PANEL],
    far: bool,
    isa: Isa,
) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: the Isa is this CPU's; a list's numbers are below K.
        return unsafe { avx2::codes(panel, list, shift, minus, from, out, far) };
    }
    let _ = (isa, far);
    scalar::codes(panel, list, shift, minus, from, &mut out[..panel.cols]);
}

impl Sum for f32 {
    fn kind(counts: bool) -> Kind {
        if counts { Kind::Counts } else { Kind::EachSpike }
    }

    fn most(_: SpikeForm, _: Option<&[f32]>) -> u64 {
        u64::MAX
    }

    fn starts(panel: &Panel, start: Option<&[f32]>) -> [[f32; PANEL]; 2] {
        [padded(panel, start); 2]
    }

    fn row(panel: &Panel, lists: &Lists, row: &lists::Row, starts: &[[f32; PANEL]; 2], out: &mut [f32], isa: Isa) {
        let plane = &lists.planes[row.planes.start];
        let list = &lists.indices[plane.at.clone()];
        let counts = lists.counts.get(plane.at.clone()).unwrap_or_default();
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx2() {
            // SAFETY: the Isa is this CPU's; a list's numbers are below K.
            unsafe {
                if let Some(whole) = out.first_chunk_mut() {
                    return avx2::floats(panel, list, counts, &starts[0], whole);
                }
                let mut tile = [0.0; PANEL];
                avx2::floats(panel, list, counts, &starts[0], &mut tile);
                return out.copy_from_slice(&tile[..out.len()]);
            }
        }
        let _ = isa;
        scalar::floats(panel, list, counts, &starts[0], out);
    }
}
