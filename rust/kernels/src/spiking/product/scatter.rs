//! Convolutions of few spikes: each is added to the outputs that it reaches.
//!
//! An image's inputs come row by row, so that an output meets its own in the order (KH, KW, C), in which
//! the listed product adds them: sums of floats are the same bits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::conv::SpikeConv2d;
use super::weight::{PANEL, Panel};
use super::{SpikeWeight, Sum};
use crate::spiking::words::for_spiking;
use crate::error::try_zeroed;
use crate::lanes::{Lanes, on_isa};
use crate::par::Parts;
use crate::{Ctl, Isa, Result};

/// Additions at an output place, on average, up to which this is faster than listing its inputs.
const FEW: usize = 24;
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
pub(super) fn is_few(bytes: &[u8], places: usize, conv: &SpikeConv2d) -> bool {
    let of = |part: &[u8]| usize::from(part.iter().fold(0u8, |count, &x| count.wrapping_add(u8::from(x != 0))));
    // Whole vectors, and no more than a byte counts.
    let spikes: usize = bytes.chunks(224).map(of).sum();
    let [[kh, kw], [sy, sx]] = [conv.kernel, conv.stride];
    spikes.saturating_mul(kh.div_ceil(sy) * kw.div_ceil(sx)) <= places.saturating_mul(FEW)
}

/// What images of a convolution have in common.
#[derive(Debug)]
pub(super) struct Scattered<T> {
    /// The weight, row by row.
    rows: Vec<T>,
    /// An output without spikes.
    empty: Vec<T>,
    down: Vec<Vec<Tap>>,
    across: Vec<Vec<Tap>>,
    channels: usize,
    /// Inputs of an image, and of a row of it.
    input: usize,
    line: usize,
    n: usize,
}

impl<T: Term> Scattered<T> {
    /// The convolution's sizes are checked; `start` has N values.
    pub(super) fn new<B: AsRef<[u8]>>(
        conv: &SpikeConv2d,
        output: [usize; 2],
        weight: &SpikeWeight<B>,
        start: Option<&[T]>,
    ) -> Result<Self> {
        let (k, n) = (weight.k(), weight.n());
        let [h, w, c] = conv.input;
        let mut rows: Vec<T> = try_zeroed(k * n)?;
        for panel in (0..weight.panels()).map(|p| weight.panel(p)) {
            for (k, row) in rows.chunks_exact_mut(n).enumerate() {
                for (c, to) in row[panel.first..][..panel.cols].iter_mut().enumerate() {
                    *to = T::of(&panel, k, c);
                }
            }
        }
        let mut empty: Vec<T> = try_zeroed(output[0] * output[1] * n)?;
        if let Some(start) = start {
            empty.chunks_exact_mut(n).for_each(|place| place.copy_from_slice(start));
        }
        let [down, across] = [0, 1].map(|axis| taps(conv, output, axis, n));
        Ok(Scattered { rows, empty, down, across, channels: c, input: h * w * c, line: w * c, n })
    }

    /// Images of inputs of at most `most`, and the pairs of an input that is not 0 and a place that it reaches.
    pub(super) fn run(&self, bytes: &[u8], most: u8, out: &mut [T], isa: Isa, ctl: &Ctl) -> Result<u64> {
        let size = self.empty.len();
        let each = LEAST.div_ceil(size.max(1)).max(1);
        let tasks = Parts::new(out.chunks_mut((each * size).max(1)));
        let pairs = AtomicU64::new(0);
        ctl.for_each(tasks.len(), &|_, task| {
            for (i, out) in tasks.take(task).chunks_exact_mut(size).enumerate() {
                let image = &bytes[(task * each + i) * self.input..][..self.input];
                pairs.fetch_add(image_on(self, image, most, out, isa.at_most_avx2()), Relaxed);
            }
        })?;
        Ok(pairs.into_inner())
    }

    /// One image; `SPIKES`: all inputs are 0 or 1; `N`: outputs of a place, 0 for any number.
    #[inline(always)]
    fn image<const SPIKES: bool, const N: usize>(&self, image: &[u8], out: &mut [T]) -> u64 {
        out.copy_from_slice(&self.empty);
        let n = if N == 0 { self.n } else { N };
        let mut pairs = 0;
        for (y, line) in image.chunks_exact(self.line.max(1)).enumerate() {
            let down = &self.down[y][..];
            for_spiking!(line, |at, count| {
                let across = &self.across[at / self.channels][..];
                let channel = at % self.channels * n;
                pairs += down.len() * across.len();
                for i in 0..down.len() {
                    for j in 0..across.len() {
                        let row = &self.rows[down[i].row + across[j].row + channel..][..n];
                        let place = &mut out[down[i].out + across[j].out..][..n];
                        for k in 0..n {
                            place[k] = place[k].with(row[k], if SPIKES { 1 } else { count });
                        }
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
fn image_in<L: Lanes, T: Term>(_: L, scattered: &Scattered<T>, image: &[u8], most: u8, out: &mut [T]) -> u64 {
    match (most, scattered.n) {
        (0 | 1, 8) => scattered.image::<true, 8>(image, out),
        (0 | 1, 16) => scattered.image::<true, 16>(image, out),
        (0 | 1, 32) => scattered.image::<true, 32>(image, out),
        (0 | 1, _) => scattered.image::<true, 0>(image, out),
        (_, 8) => scattered.image::<false, 8>(image, out),
        (_, 16) => scattered.image::<false, 16>(image, out),
        (_, 32) => scattered.image::<false, 32>(image, out),
        (_, _) => scattered.image::<false, 0>(image, out),
    }
}

/// A row (or column) of the kernel: where its rows of the weight begin, and the outputs that it is for.
#[derive(Debug)]
struct Tap {
    row: usize,
    out: usize,
}

/// For each row (or column) of the image, the kernel's that meet it.
fn taps(conv: &SpikeConv2d, output: [usize; 2], axis: usize, n: usize) -> Vec<Vec<Tap>> {
    let (kernel, stride, before) = (conv.kernel[axis], conv.stride[axis], conv.padding[axis][0]);
    let (row, out) = if axis == 0 { (conv.kernel[1], output[1]) } else { (1, 1) };
    let of = |place: usize| {
        let meets = |tap: usize| {
            let first = (place + before).checked_sub(tap)?;
            let found = Tap { row: tap * row * conv.input[2] * n, out: first / stride * out * n };
            (first % stride == 0 && first / stride < output[axis]).then_some(found)
        };
        (0..kernel).filter_map(meets).collect()
    };
    (0..conv.input[axis]).map(of).collect()
}
