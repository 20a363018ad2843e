//! Convolutions of few spikes: each is added to the outputs that it reaches.
//!
//! An image's inputs come row by row, so that an output meets its own in the order (KH, KW, C), in which
//! the listed product adds them: sums of floats are the same bits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::conv::SpikeConv2d;
use super::weight::{PANEL, Panel};
use super::{SpikeWeight, Sum};
use crate::error::try_zeroed;
use crate::lanes::{Lanes, on_isa};
use crate::par::Parts;
use crate::spiking::words::{count_spikes, for_spiking};
use crate::{Ctl, Isa, Result};

/// Additions at an output place, on average, up to which this is faster than listing its inputs.
const FEW: usize = 24;
/// Elements of an empty output that are written together, where they are whole places.
const REPEATED: usize = 32;
/// Elements of the output that are a task at least.
const LEAST: usize = 1 << 14;

/// A number that is added to sums.
pub(super) trait Term: Sum {
    /// The weight's element in row `k`, column `c` of a panel.
    fn of(panel: &Panel, k: usize, c: usize) -> Self;
    /// This sum with the element added so many times.
    fn with(self, element: Self, count: u8) -> Self;
}

impl Term for i32 {
    fn of(panel: &Panel, k: usize, c: usize) -> i32 {
        panel.code(k, c)
    }

    #[inline(always)]
    fn with(self, element: i32, count: u8) -> i32 {
        self.wrapping_add(element.wrapping_mul(count.into()))
    }
}

impl Term for f32 {
    fn of(panel: &Panel, k: usize, c: usize) -> f32 {
        panel.float(k, c)
    }

    #[inline(always)]
    fn with(self, element: f32, count: u8) -> f32 {
        self + f32::from(count) * element
    }
}

/// Whether a weight is worth unpacking for so many places, and no sum can overflow.
pub(super) fn fits<T: Sum, B: AsRef<[u8]>>(
    most: u8,
    places: usize,
    weight: &SpikeWeight<B>,
    start: Option<&[T]>,
) -> bool {
    let (k, n) = (weight.k(), weight.n());
    places.saturating_mul(PANEL) >= k.saturating_mul(n)
        && (k as u64).saturating_mul(most.into()) <= T::most(weight.form(), start)
}

/// Whether spikes are few enough to be scattered.
pub(super) fn is_few(bytes: &[u8], places: usize, conv: &SpikeConv2d, isa: Isa) -> bool {
    let spikes = count_spikes(bytes, isa);
    let [[kh, kw], [sy, sx]] = [conv.kernel, conv.stride];
    spikes.saturating_mul(kh.div_ceil(sy) * kw.div_ceil(sx)) <= places.saturating_mul(FEW)
}

/// What images of a convolution have in common.
#[derive(Debug)]
pub(super) struct Scattered<T> {
    /// The weight: row by row of the kernel, channel by channel, and of each channel the columns in
    /// the order in which they meet neighbouring outputs.
    rows: Vec<T>,
    /// An output without spikes, as far as it repeats.
    empty: Vec<T>,
    /// Elements of an output.
    size: usize,
    /// For each row of the image, those of the kernel that meet it: where they begin, and their outputs.
    down: Vec<Vec<[usize; 2]>>,
    /// Of each input of a row of the image.
    across: Vec<Run>,
    /// Inputs of an image, and of a row of it.
    input: usize,
    line: usize,
    n: usize,
}

/// The kernel's columns that meet an input.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where they begin in their row.
    row: usize,
    /// The first of their outputs in its row.
    out: usize,
    /// Elements of all of them.
    len: usize,
    /// How many they are.
    columns: usize,
}

impl<T: Term> Scattered<T> {
    /// The convolution's sizes are checked; `start` has N values.
    pub(super) fn new<B: AsRef<[u8]>>(
        conv: &SpikeConv2d,
        output: [usize; 2],
        weight: &SpikeWeight<B>,
        start: Option<&[T]>,
    ) -> Result<Self> {
        let n = weight.n();
        let ([h, w, c], [kh, kw]) = (conv.input, conv.kernel);
        let each = kw * n;
        let (order, runs) = columns(conv, output[1], n);
        let of_channels = |run: Run| (0..c).map(move |channel| Run { row: run.row + channel * each, ..run });
        let across = runs.into_iter().flat_map(of_channels).collect();
        let mut rows: Vec<T> = try_zeroed(weight.k() * n)?;
        for panel in (0..weight.panels()).map(|p| weight.panel(p)) {
            for (y, channel, place) in
                (0..kh).flat_map(|y| (0..c).flat_map(move |channel| (0..kw).map(move |place| (y, channel, place))))
            {
                let from = (y * kw + order[place]) * c + channel;
                let to = &mut rows[((y * c + channel) * kw + place) * n + panel.first..][..panel.cols];
                to.iter_mut().enumerate().for_each(|(column, to)| *to = T::of(&panel, from, column));
            }
        }
        let size = output[0] * output[1] * n;
        let mut empty: Vec<T> = try_zeroed(if REPEATED % n == 0 { REPEATED } else { size })?;
        if let Some(start) = start {
            empty.chunks_exact_mut(n).for_each(|place| place.copy_from_slice(start));
        }
        let down = (0..h).map(|y| taps(conv, output, y, c * each, n)).collect();
        Ok(Scattered { rows, empty, size, down, across, input: h * w * c, line: w * c, n })
    }

    /// Images of inputs of at most `most`, and the pairs of an input that is not 0 and a place that it reaches.
    pub(super) fn run(&self, bytes: &[u8], most: u8, out: &mut [T], isa: Isa, ctl: &Ctl) -> Result<u64> {
        let size = self.size;
        let each = LEAST.div_ceil(size.max(1)).max(1);
        let tasks = Parts::new(out.chunks_mut((each * size).max(1)));
        let pairs = AtomicU64::new(0);
        ctl.for_each(tasks.len(), &|_, task| {
            for (i, out) in tasks.take(task).chunks_exact_mut(size).enumerate() {
                let image = &bytes[(task * each + i) * self.input..][..self.input];
                pairs.fetch_add(image_on(self, image, most, out, isa), Relaxed);
            }
        })?;
        Ok(pairs.into_inner())
    }

    /// An output as it is without spikes.
    #[inline(always)]
    fn clear(&self, out: &mut [T]) {
        if self.empty.len() == out.len() {
            return out.copy_from_slice(&self.empty);
        }
        let Some(repeated) = self.empty.first_chunk::<REPEATED>() else { unreachable!("of one of both lengths") };
        let (blocks, rest) = out.as_chunks_mut();
        for block in blocks {
            *block = *repeated;
        }
        rest.copy_from_slice(&repeated[..rest.len()]);
    }

    /// One image; `SPIKES`: all inputs are 0 or 1; `N`: what the outputs of a place are a multiple of.
    #[inline(always)]
    fn image<const SPIKES: bool, const N: usize, L: Lanes>(&self, lanes: L, image: &[u8], out: &mut [T]) -> u64 {
        self.clear(out);
        let mut pairs = 0;
        for (y, line) in image.chunks_exact(self.line.max(1)).enumerate() {
            let down = &self.down[y][..];
            for_spiking!(lanes, line, |at, count| {
                let run = self.across[at];
                pairs += down.len() * run.columns;
                for &[first, line] in down {
                    let row = &self.rows[first + run.row..][..run.len];
                    let places = &mut out[line + run.out..][..run.len];
                    for (place, row) in places.as_chunks_mut::<N>().0.iter_mut().zip(row.as_chunks::<N>().0) {
                        // By value: what is stored is then known not to be what is read next.
                        let (row, mut sums) = (*row, *place);
                        for k in 0..N {
                            sums[k] = sums[k].with(row[k], if SPIKES { 1 } else { count });
                        }
                        *place = sums;
                    }
                }
            });
        }
        pairs as u64
    }
}

on_isa! {
    fn image_on<T: Term>(scattered: &Scattered<T>, image: &[u8], most: u8, out: &mut [T]) -> u64 = image_in;
}

#[inline(always)]
fn image_in<L: Lanes, T: Term>(lanes: L, scattered: &Scattered<T>, image: &[u8], most: u8, out: &mut [T]) -> u64 {
    match (most, scattered.n % 8) {
        (0 | 1, 0) => scattered.image::<true, 8, L>(lanes, image, out),
        (0 | 1, _) => scattered.image::<true, 1, L>(lanes, image, out),
        (_, 0) => scattered.image::<false, 8, L>(lanes, image, out),
        (_, _) => scattered.image::<false, 1, L>(lanes, image, out),
    }
}

/// The kernel's rows that meet row `y` of the image: where they begin, and their outputs.
fn taps(conv: &SpikeConv2d, [oh, ow]: [usize; 2], y: usize, each: usize, n: usize) -> Vec<[usize; 2]> {
    let (stride, before) = (conv.stride[0], conv.padding[0][0]);
    let meets = |tap: usize| {
        let first = (y + before).checked_sub(tap)?;
        (first % stride == 0 && first / stride < oh).then_some([tap * each, first / stride * ow * n])
    };
    (0..conv.kernel[0]).filter_map(meets).collect()
}

/// The kernel's columns in the order in which they are kept, and those that meet each of the image's:
/// every `stride`th from some on, the last first, for outputs one beside the other.
fn columns(conv: &SpikeConv2d, ow: usize, n: usize) -> (Vec<usize>, Vec<Run>) {
    let (kw, stride, before) = (conv.kernel[1], conv.stride[1], conv.padding[1][0]);
    let (mut order, mut starts) = (Vec::with_capacity(kw), vec![]);
    for rest in 0..stride.min(kw) {
        starts.push(order.len());
        order.extend((rest..kw).step_by(stride).rev());
    }
    let run = |x: usize| {
        let meets = |tap: usize| {
            let first = (x + before).checked_sub(tap)?;
            (first % stride == 0 && first / stride < ow).then_some(first / stride)
        };
        let rest = (x + before) % stride;
        let Some(&start) = starts.get(rest) else { return Run { row: 0, out: 0, len: 0, columns: 0 } };
        let end = starts.get(rest + 1).copied().unwrap_or(kw);
        let mut met = (start..end).filter_map(|place| Some((place, meets(order[place])?)));
        let Some((place, out)) = met.next() else { return Run { row: 0, out: 0, len: 0, columns: 0 } };
        let columns = 1 + met.count();
        Run { row: place * n, out: out * n, len: columns * n, columns }
    };
    let across = (0..conv.input[1]).map(run).collect();
    (order, across)
}
