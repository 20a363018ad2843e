//! Convolutions of few spikes: each is added to the outputs that it reaches.
//!
//! An image's inputs come row by row, so that an output meets its own in the order (KH, KW, C), in which
//! the listed product adds them: sums of floats are the same bits.

use super::conv::SpikeConv2d;
use super::weight::{PANEL, Panel};
use super::{SpikeWeight, Sum};
use crate::error::{bail, try_zeroed};
use crate::par::Parts;
use crate::{Ctl, Result};

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
pub(super) fn fits<T: Sum, B: AsRef<[u8]>>(most: u8, places: usize, weight: &SpikeWeight<B>, start: Option<&[T]>) -> bool {
    let (k, n) = (weight.k(), weight.n());
    places.saturating_mul(PANEL) >= k.saturating_mul(n)
        && (k as u64).saturating_mul(most.into()) <= T::most(weight.form(), start)
}

/// Whether spikes are few enough to be scattered.
pub(super) fn is_few(bytes: &[u8], places: usize, conv: &SpikeConv2d) -> bool {
    let of = |part: &[u8]| usize::from(part.iter().fold(0u8, |count, &x| count.wrapping_add(u8::from(x != 0))));
    let spikes: usize = bytes.chunks(255).map(of).sum();
    let [[kh, kw], [sy, sx]] = [conv.kernel, conv.stride];
    spikes.saturating_mul(kh.div_ceil(sy) * kw.div_ceil(sx)) <= places.saturating_mul(FEW)
}

/// As [`super::spike_conv2d`], whose checks of the inputs are made; `most` is the greatest of them.
pub(super) fn scatter<T: Term, B: AsRef<[u8]> + Sync>(
    bytes: &[u8],
    images: usize,
    most: u8,
    conv: &SpikeConv2d,
    output: [usize; 2],
    weight: &SpikeWeight<B>,
    start: Option<&[T]>,
    out: &mut [T],
    ctl: &Ctl,
) -> Result<()> {
    let (k, n) = (weight.k(), weight.n());
    let [h, w, c] = conv.input;
    let (size, input) = (output[0] * output[1] * n, h * w * c);
    if out.len() != images * size {
        bail!("out: expected {} by {n}, got {} elements", images * output[0] * output[1], out.len());
    }
    if let Some(start) = start
        && start.len() != n
    {
        bail!("bias: expected {n} values, got {}", start.len());
    }
    if out.is_empty() {
        return Ok(());
    }
    let mut rows: Vec<T> = try_zeroed(k * n)?;
    for panel in (0..weight.panels()).map(|p| weight.panel(p)) {
        for (k, row) in rows.chunks_exact_mut(n).enumerate() {
            for (c, to) in row[panel.first..][..panel.cols].iter_mut().enumerate() {
                *to = T::of(&panel, k, c);
            }
        }
    }
    let [down, across] = [0, 1].map(|axis| taps(conv, output, axis));
    let mut empty: Vec<T> = try_zeroed(size)?;
    if let Some(start) = start {
        empty.chunks_exact_mut(n).for_each(|place| place.copy_from_slice(start));
    }
    let each = LEAST.div_ceil(size).max(1);
    let tasks = Parts::new(out.chunks_mut(each * size));
    ctl.for_each(tasks.len(), &|_, task| {
        for (i, out) in tasks.take(task).chunks_exact_mut(size).enumerate() {
            out.copy_from_slice(&empty);
            let image = &bytes[(task * each + i) * input..][..input];
            for (line, down) in image.chunks_exact(w * c).zip(&down) {
                spiking(line, |at, count| {
                    let (x, channel) = (at / c as u32, (at % c as u32) as usize);
                    for &(kh, y) in down {
                        for &(kw, x) in &across[x as usize] {
                            let row = &rows[((kh * conv.kernel[1] + kw) * c + channel) * n..][..n];
                            add(&mut out[(y * output[1] + x) * n..][..n], row, if most == 1 { 1 } else { count });
                        }
                    }
                });
            }
        }
    })
}

/// Eight at a time, without iterators: those cost more than eight additions where they are not inlined.
#[inline(always)]
fn add<T: Term>(sums: &mut [T], row: &[T], count: u8) {
    let ((eights, rest), (row_eights, row_rest)) = (sums.as_chunks_mut::<8>(), row.as_chunks::<8>());
    for j in 0..eights.len().min(row_eights.len()) {
        let (sums, row) = (&mut eights[j], &row_eights[j]);
        for i in 0..8 {
            sums[i] = sums[i].with(row[i], count);
        }
    }
    for i in 0..rest.len().min(row_rest.len()) {
        rest[i] = rest[i].with(row_rest[i], count);
    }
}

/// Calls `f` with the place and the value of each byte that is not 0, in order.
#[inline(always)]
fn spiking(bytes: &[u8], mut f: impl FnMut(u32, u8)) {
    let (eights, rest) = bytes.as_chunks();
    for i in 0..eights.len() {
        let mut word = u64::from_le_bytes(eights[i]);
        while word != 0 {
            let byte = word.trailing_zeros() / 8;
            f(8 * i as u32 + byte, eights[i][byte as usize]);
            word &= !(0xff << (8 * byte));
        }
    }
    for i in 0..rest.len() {
        if rest[i] != 0 {
            f((8 * eights.len() + i) as u32, rest[i]);
        }
    }
}

/// For each row (or column) of the image, the kernel's rows that meet it and where their outputs are.
fn taps(conv: &SpikeConv2d, output: [usize; 2], axis: usize) -> Vec<Vec<(usize, usize)>> {
    let (kernel, stride, before) = (conv.kernel[axis], conv.stride[axis], conv.padding[axis][0]);
    let of = |place: usize| {
        let meets = |tap: usize| {
            let first = (place + before).checked_sub(tap)?;
            (first % stride == 0 && first / stride < output[axis]).then(|| (tap, first / stride))
        };
        (0..kernel).filter_map(meets).collect()
    };
    (0..conv.input[axis]).map(of).collect()
}
