//! Integer products pair by pair of inputs: each pair that is not all 0 is one 16-bit word beside
//! the two codes of every column, whatever the inputs count.
//!
//! That needs the codes in another order than a [`SpikeWeight`] has them, so it is for products
//! that are prepared.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::conv::SpikeConv2d;
use super::weight::{PANEL, SpikeWeight};
use crate::error::try_zeroed;
use crate::par::Parts;
use crate::{Ctl, Isa, Result};

/// Columns of a vector of sums: what a panel's width is a multiple of.
pub(super) const STEP: usize = 16;
/// Inputs that are looked at together.
const WORD: usize = 64;
/// A pair's number and value are halves of a word.
const MOST_INPUTS: usize = 1 << 17;
/// The greatest count: two of them times codes of 8 bits still fit 16.
const MOST_COUNT: u8 = 127;
/// Sums of a task, at least.
const LEAST: usize = 1 << 14;

/// A weight in panels of up to 64 columns: of each pair of inputs, column by column, its two codes.
#[derive(Debug)]
pub(super) struct Pairs {
    codes: Vec<i8>,
    k: usize,
    n: usize,
    /// The greatest magnitude of a code, at least 1.
    largest: usize,
    /// Where sums start, with padding.
    start: Vec<i32>,
}

/// Where the inputs of a sum lie.
pub(super) enum Windows<'a> {
    /// One behind the other.
    Rows,
    /// In an image.
    Conv(&'a SpikeConv2d, [usize; 2]),
}

/// What a thread keeps.
#[derive(Default)]
struct Memory {
    /// Pairs: number, then value.
    list: Vec<u32>,
    /// An image with its padding.
    padded: Vec<u8>,
}

impl Pairs {
    /// None where pairs of a window's inputs are none of the weight's, or too many.
    pub(super) fn new<B: AsRef<[u8]>>(
        weight: &SpikeWeight<B>,
        conv: Option<&SpikeConv2d>,
        start: Option<&[i32]>,
    ) -> Result<Option<Self>> {
        let (k, n) = (weight.k(), weight.n());
        let odd = conv.is_some_and(|conv| conv.kernel[1] * conv.input[2] % 2 != 0);
        if k > MOST_INPUTS || k == 0 || n == 0 || odd {
            return Ok(None);
        }
        let columns = n.next_multiple_of(STEP);
        let mut codes = try_zeroed(k.div_ceil(2) * 2 * columns)?;
        let mut largest = 1;
        for panel in (0..weight.panels()).map(|p| weight.panel(p)) {
            let width = panel.cols.next_multiple_of(STEP);
            let of_panel = &mut codes[k.div_ceil(2) * 2 * panel.first..];
            for k in 0..k {
                for c in 0..panel.cols {
                    let code = panel.code(k, c);
                    largest = largest.max(code.unsigned_abs() as usize);
                    of_panel[(k / 2 * width + c) * 2 + k % 2] = code as i8;
                }
            }
        }
        let mut padded = try_zeroed(columns)?;
        padded[..n].copy_from_slice(start.unwrap_or(&vec![0; n]));
        Ok(Some(Pairs { codes, k, n, largest, start: padded }))
    }

    /// Pairs whose products a sum in 16 bits holds, or None where inputs are too large.
    pub(super) fn chunk(&self, most: u8) -> Option<usize> {
        // Any number of inputs, times codes, stays within 32 bits.
        let all = (self.k as u64).saturating_mul(most.into()).saturating_mul(self.largest as u64);
        let start = self.start.iter().map(|s| s.unsigned_abs()).max().unwrap_or(0);
        if most > MOST_COUNT || all.saturating_add(start.into()) > i32::MAX as u64 {
            return None;
        }
        Some(i16::MAX as usize / (2 * self.largest * usize::from(most.max(1))))
    }

    /// `m` windows of inputs times the weight; how many inputs of theirs are not 0. `chunk` is that
    /// of [`Pairs::chunk`].
    pub(super) fn run(
        &self,
        bytes: &[u8],
        m: usize,
        windows: &Windows,
        chunk: usize,
        out: &mut [i32],
        isa: Isa,
        ctl: &Ctl,
    ) -> Result<u64> {
        // Images, or rows, of a task.
        let (unit, input) = match windows {
            Windows::Rows => (1, self.k),
            Windows::Conv(conv, [oh, ow]) => (oh * ow, conv.input.iter().product()),
        };
        let units = m / unit.max(1);
        let each = LEAST.div_ceil((unit * self.n).max(1)).max(units.div_ceil(4 * ctl.threads()));
        let tasks = Parts::new(out.chunks_mut((each * unit * self.n).max(1)));
        let met = AtomicU64::new(0);
        ctl.for_each(tasks.len(), &|_, task| {
            let mut memory = Memory::default();
            memory.list.resize(self.k.div_ceil(2), 0);
            let mut sum = 0;
            for (i, out) in tasks.take(task).chunks_exact_mut(unit * self.n).enumerate() {
                let bytes = &bytes[(task * each + i) * input..][..input];
                match windows {
                    Windows::Rows => {
                        let (end, some) = list_pairs(bytes, [0, self.k], 0, &mut memory.list, 0, isa);
                        sum += some;
                        self.add(&memory.list[..end], chunk, out, isa);
                    }
                    Windows::Conv(conv, [_, ow]) => sum += self.image(conv, *ow, bytes, &mut memory, chunk, out, isa),
                }
            }
            met.fetch_add(sum, Relaxed);
        })?;
        Ok(met.into_inner())
    }

    fn image(
        &self,
        conv: &SpikeConv2d,
        ow: usize,
        image: &[u8],
        memory: &mut Memory,
        chunk: usize,
        out: &mut [i32],
        isa: Isa,
    ) -> u64 {
        let ([h, w, c], [kh, kw], [sy, sx]) = (conv.input, conv.kernel, conv.stride);
        let [[top, bottom], [left, right]] = conv.padding;
        let line = (left + w + right) * c;
        let bytes = if [top, bottom, left, right] == [0; 4] {
            image
        } else {
            memory.padded.resize((top + h + bottom) * line, 0);
            for (line, from) in memory.padded.chunks_exact_mut(line).skip(top).zip(image.chunks_exact(w * c)) {
                line[left * c..][..w * c].copy_from_slice(from);
            }
            &memory.padded[..]
        };
        let mut met = 0;
        for (place, out) in out.chunks_exact_mut(self.n).enumerate() {
            let (y, x) = (place / ow * sy, place % ow * sx);
            let mut end = 0;
            for i in 0..kh {
                let row = [(y + i) * line + x * c, kw * c];
                let (next, some) = list_pairs(bytes, row, (i * kw * c / 2) as u32, &mut memory.list, end, isa);
                end = next;
                met += some;
            }
            self.add(&memory.list[..end], chunk, out, isa);
        }
        met
    }

    /// The listed pairs times all panels.
    #[inline]
    fn add(&self, list: &[u32], chunk: usize, out: &mut [i32], isa: Isa) {
        for (p, out) in out.chunks_mut(PANEL).enumerate() {
            let first = p * PANEL;
            let width = (self.n - first).min(PANEL).next_multiple_of(STEP);
            let codes = &self.codes[self.k.div_ceil(2) * 2 * first..][..self.k.div_ceil(2) * 2 * width];
            let start = &self.start[first..][..width];
            #[cfg(target_arch = "x86_64")]
            if isa.has_avx2() {
                super::avx2::pairs(isa, codes, list, chunk, start, out);
                continue;
            }
            let _ = (isa, chunk);
            out.copy_from_slice(&start[..out.len()]);
            for &entry in list {
                let row = &codes[(entry >> 16) as usize * 2 * width..][..2 * width];
                let [low, high] = (entry as u16).to_le_bytes().map(i32::from);
                for (sum, codes) in out.iter_mut().zip(row.as_chunks::<2>().0) {
                    *sum += low * i32::from(codes[0]) + high * i32::from(codes[1]);
                }
            }
        }
    }
}

/// Appends the pairs of `bytes[from..from + len]` that are not all 0, the first being pair `first`,
/// to `list` from `at` on; where it then ends, and how many inputs are not 0.
#[inline]
fn list_pairs(
    bytes: &[u8],
    [from, len]: [usize; 2],
    mut first: u32,
    list: &mut [u32],
    at: usize,
    isa: Isa,
) -> (usize, u64) {
    let (mut end, mut some) = (at, 0);
    for begin in (from..from + len).step_by(WORD) {
        let inside = WORD.min(from + len - begin);
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx2() {
            let mut last = [0; WORD];
            let whole = bytes[begin..].first_chunk().filter(|_| inside % 2 == 0);
            let word = whole.unwrap_or_else(|| {
                last[..inside].copy_from_slice(&bytes[begin..begin + inside]);
                &last
            });
            let inside = inside.next_multiple_of(2);
            (end, some) = super::avx2::list_pairs(isa, word, inside, first, list, end, some);
            first += WORD as u32 / 2;
            continue;
        }
        for pair in bytes[begin..begin + inside].chunks(2) {
            let [low, high] = [pair[0], pair.get(1).copied().unwrap_or(0)];
            if low | high != 0 {
                list[end] = first << 16 | u32::from(u16::from_le_bytes([low, high]));
                end += 1;
                some += u64::from(low != 0) + u64::from(high != 0);
            }
            first += 1;
        }
    }
    let _ = isa;
    (end, some)
}
