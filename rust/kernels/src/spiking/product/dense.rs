//! Rows in which many inputs spiked, by tiles of AMX: these multiply so much faster than vectors add that from some
//! spikes in a hundred on it is quicker to multiply all inputs.
//!
//! A panel's codes are written as tiles take them, once for all rows of a block.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::weight::{PANEL, Panel, SpikeWeight};
use super::{Cut, Source, Sum, TASK, avx2, avx512, check_ends, cut_output, padded};
use crate::error::try_zeroed;
use crate::gemm::{MAX_K_U8, MadePanel, PanelScratch};
use crate::par::Parts;
use crate::{Ctl, Isa, Result};

/// Nanoseconds as measured where these tiles came with AVX-512: to list an input of a row; to add a listed row of a
/// panel, and to begin and end its sums; by tiles, for each input of a row and a panel, and of a panel that is written.
const LIST: f64 = 0.1;
const ADD: f64 = 0.63;
const SUMS: f64 = 22.0;
const MULTIPLY: f64 = 0.055;
const WRITE: f64 = 5.2;
/// Rows from which on tiles are asked.
const FEWEST: usize = 16;
/// Rows of a block, at least, and their bytes, at most, if there are more: they stay in L2.
const LEAST: usize = 32;
const BLOCK: usize = 512 << 10;
/// Panels that are written at a time, at most.
const GROUP: usize = 8;
/// Bytes of a line.
const LINE: usize = 64;
/// Bytes of inputs that are looked at together, and how often.
const SAMPLE: usize = 64;
const SAMPLES: usize = 64;

/// Whether [`product`] may be asked: no sum can be too large, whatever the inputs.
pub(super) fn is_safe<S: Source, B: AsRef<[u8]>>(
    source: &S,
    weight: &SpikeWeight<B>,
    start: Option<&[i32]>,
    isa: Isa,
) -> bool {
    let (k, most) = (weight.k(), if source.counts() { u64::from(u8::MAX) } else { 1 });
    isa.has_amx() && (1..=MAX_K_U8).contains(&k) && k as u64 * most <= i32::most(weight.form(), start)
}

/// Whether so many rows of this source would be quicker so, by what some of the inputs are.
pub(super) fn is_quicker<S: Source, B: AsRef<[u8]>>(
    source: &S,
    m: usize,
    weight: &SpikeWeight<B>,
    threads: usize,
) -> bool {
    if m < FEWEST || weight.n() == 0 {
        return false;
    }
    let (bytes, inputs) = source.inputs();
    let (mut seen, mut ones) = (0, 0);
    let step = (bytes.len() / SAMPLES).max(SAMPLE);
    for (i, some) in bytes.chunks(step).enumerate() {
        // Elsewhere in each: they may be whole rows or images.
        let from = (i * SAMPLE * 5) % (some.len().saturating_sub(SAMPLE) + 1);
        let words = some[from..][..some.len().min(SAMPLE)].as_chunks().0;
        seen += 8 * words.len();
        ones += words.iter().map(|word| u64::from_ne_bytes(*word).count_ones() as usize).sum::<usize>();
    }
    // Of a count, each bit is a spike.
    let share = (ones * bytes.len()) as f64 / (seen.max(1) * inputs.max(1)) as f64;
    let added = if source.counts() { share } else { share.min(1.0 - share) };
    let rows = cut(m, weight.k(), weight.panels(), threads).rows as f64;
    let (k, panels) = (weight.k() as f64, weight.panels() as f64);
    // For a row and a panel.
    MULTIPLY * k + WRITE * k / rows < SUMS + ADD * k * added + LIST * k / panels
}

/// Blocks of many rows, each with as many panels as leave each thread some tasks; of fewer rows where panels are few.
fn cut(m: usize, k: usize, panels: usize, threads: usize) -> Cut {
    let share = if panels < 4 * threads { m.div_ceil(threads).next_multiple_of(LEAST) } else { m };
    let rows = share.min((BLOCK / k / LEAST * LEAST).max(LEAST)).min(m);
    let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(m.div_ceil(rows)) };
    let most = TASK / (rows * k * PANEL);
    Cut { rows, panels: panels.div_ceil(wanted).min(most.max(1)) }
}

/// Memory of a thread.
struct Memory {
    rows: PanelScratch,
    bytes: Vec<u8>,
    /// A panel's codes with a byte each; and some panels' as tiles take them.
    unpacked: Vec<u8>,
    codes: Vec<u8>,
}

/// As [`super::product`], of what [`is_safe`] says may be asked, at least a row and a column: false if an input is not
/// what it should be.
pub(super) fn product<S: Source, B: AsRef<[u8]> + Sync>(
    source: &S,
    m: usize,
    weight: &SpikeWeight<B>,
    start: Option<&[i32]>,
    out: &mut [i32],
    isa: Isa,
    ctl: &Ctl,
) -> Result<bool> {
    let (k, n) = (weight.k(), weight.n());
    check_ends(m, n, start, out)?;
    let cut = cut(m, k, weight.panels(), ctl.threads());
    let tasks = Parts::new(cut_output(out, n, &cut));
    // Of a panel.
    let len = k.div_ceil(4) * 4 * PANEL;
    let made = || {
        let rows = PanelScratch::new(isa, cut.rows, k, if cut.panels > GROUP { usize::MAX } else { cut.panels })?;
        let bytes = try_zeroed(if source.is_made() { cut.rows * k } else { 0 })?;
        let codes = try_zeroed(LINE + rows.side_by_side().min(GROUP).min(cut.panels) * len)?;
        Ok(Mutex::new(Memory { rows, bytes, unpacked: try_zeroed(super::scratch_len(weight))?, codes }))
    };
    let threads: Vec<_> = (0..ctl.threads().min(tasks.len())).map(|_| made()).collect::<Result<_>>()?;
    let (wrong, failed) = (AtomicBool::new(false), Mutex::new(None));
    ctl.for_each(tasks.len(), &|slot, task| {
        let (first, panels, mut out) = tasks.take(task);
        if wrong.load(Relaxed) {
            return;
        }
        let mut memory = threads[slot].lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { rows, bytes, unpacked, codes } = &mut *memory;
        let buffer = if source.is_made() { &mut bytes[..out.len() * k] } else { &mut bytes[..] };
        let Some(bytes) = source.bytes(first..first + out.len(), buffer, isa) else {
            return wrong.store(true, Relaxed);
        };
        let skip = codes.as_ptr().align_offset(LINE).min(LINE);
        let some = rows.side_by_side().min(GROUP);
        let mut multiply = || {
            let mut rows = rows.rows(bytes)?;
            for from in panels.clone().step_by(some) {
                let group = from..panels.end.min(from + some);
                let starts: Vec<_> = group.clone().map(|p| padded(&weight.panel(p), start)).collect();
                let mut made = Vec::with_capacity(group.len());
                for ((p, start), codes) in group.zip(&starts).zip(codes[skip..].chunks_exact_mut(len)) {
                    let mut panel = weight.panel(p);
                    if !unpacked.is_empty() {
                        avx2::unpack(isa, &panel, unpacked);
                        panel = Panel { rows: unpacked, row_bytes: PANEL, ..panel };
                    }
                    let (width, cols) = (panel.row_bytes, panel.cols);
                    let codes = &mut codes[..k.div_ceil(4) * 4 * width];
                    avx512::tile(isa, &panel, codes);
                    made.push(MadePanel { codes, width, cols, start });
                }
                rows.times(&made, &mut out, (from - panels.start) * PANEL)?;
            }
            Ok(())
        };
        if let Err(error) = multiply() {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    })?;
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(!wrong.into_inner()),
    }
}
