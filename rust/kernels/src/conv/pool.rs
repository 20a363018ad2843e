//! Means and maxima of windows.

use super::{Kind, windows};
use crate::error::{bail, checked_product};
use crate::{Isa, Result};

/// Channels whose sums are kept at a time.
const CHANNELS: usize = 64;

/// The windows of a pooling over one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Height, width, channels.
    pub input: [usize; 3],
    /// Height and width.
    pub kernel: [usize; 2],
    /// Steps down and right between windows.
    pub stride: [usize; 2],
    /// Rows above and below, columns left and right, that are in no window's count.
    pub padding: [[usize; 2]; 2],
}

impl Window {
    /// Height, width and channels of the output.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where the sizes do not fit together, or a window might
    /// lie in the padding.
    pub fn output(&self) -> Result<[usize; 3]> {
        let [height, width, channels] = self.input;
        let mut out = [0, 0, channels];
        for axis in 0..2 {
            out[axis] = windows([height, width][axis], self.padding[axis], self.kernel[axis], self.stride[axis], 1)?;
            if self.padding[axis].iter().any(|&p| p >= self.kernel[axis]) {
                bail!("padding: expected less than the kernel {:?}, got {:?}", self.kernel, self.padding);
            }
        }
        checked_product("input", &self.input)?;
        // Sums of codes stay within 2^31.
        if checked_product("kernel", &self.kernel)? > 1 << 22 {
            bail!("kernel: expected at most 2^22 elements, got {:?}", self.kernel);
        }
        Ok(out)
    }

    /// The rows or columns of the image that output row or column `i` sees.
    fn span(&self, axis: usize, i: usize) -> std::ops::Range<usize> {
        let from = i * self.stride[axis];
        let to = (from + self.kernel[axis]).saturating_sub(self.padding[axis][0]);
        from.saturating_sub(self.padding[axis][0])..to.min(self.input[axis])
    }

    fn check(&self, x: &[u8], out: &[u8]) -> Result<[usize; 3]> {
        let size = self.output()?;
        let (inputs, outputs) = (self.input.iter().product::<usize>(), size.iter().product::<usize>());
        if x.len() != inputs || out.len() != outputs {
            bail!("x, out: expected {inputs} and {outputs} codes, got {} and {}", x.len(), out.len());
        }
        Ok(size)
    }
}

/// How the codes of a window become a mean.
#[derive(Debug, Clone, Copy)]
pub struct Means {
    /// The input's codes.
    pub kind: Kind,
    /// The least and the largest code of the output.
    pub bounds: (i32, i32),
    /// The input's scale over the output's, and the output's code of 0, where they are not the input's own.
    pub rescale: Option<(f32, i32)>,
}

/// The mean of each window's codes, rounded half away from 0, as LiteRT has it; or, with another scale,
/// `rint(clamp(f32(sum - count * zero_point) * (ratio / f32(count))))`, half to even.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) where a length does not fit.
pub fn average_pool(x: &[u8], window: &Window, how: &Means, out: &mut [u8], isa: Isa) -> Result<()> {
    let size = window.check(x, out)?;
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        super::avx2::average(isa, x, window, size, how, out);
        return Ok(());
    }
    average(x, window, size, how, out);
    Ok(())
}

/// The largest code of each window, within `bounds`.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) where a length does not fit.
pub fn max_pool(x: &[u8], window: &Window, kind: Kind, bounds: (i32, i32), out: &mut [u8], isa: Isa) -> Result<()> {
    let size = window.check(x, out)?;
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        super::avx2::maximum(isa, x, window, size, kind, bounds, out);
        return Ok(());
    }
    maximum(x, window, size, kind, bounds, out);
    Ok(())
}

#[inline(always)]
pub(super) fn average(x: &[u8], window: &Window, size: [usize; 3], how: &Means, out: &mut [u8]) {
    let Means { kind, bounds: (qmin, qmax), rescale } = *how;
    let take = |sums: &mut [i32], x: &[u8]| {
        if kind.signed {
            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum = sum.wrapping_add(i32::from(x as i8)));
        } else {
            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum = sum.wrapping_add(i32::from(x)));
        }
    };
    match rescale {
        None => each(x, window, size, 0, out, take, |sum, count| {
            let half = if sum > 0 { count / 2 } else { -(count / 2) };
            ((sum + half) / count).clamp(qmin, qmax) as u8
        }),
        Some((ratio, zero_point)) => {
            let (low, high) = ((qmin - zero_point) as f32, (qmax - zero_point) as f32);
            each(x, window, size, 0, out, take, |sum, count| {
                let mean = (sum - count * kind.zero_point) as f32 * (ratio / count as f32);
                (mean.clamp(low, high).round_ties_even() as i32).wrapping_add(zero_point) as u8
            });
        }
    }
}

#[inline(always)]
pub(super) fn maximum(
    x: &[u8],
    window: &Window,
    size: [usize; 3],
    kind: Kind,
    (qmin, qmax): (i32, i32),
    out: &mut [u8],
) {
    each(
        x,
        window,
        size,
        i32::MIN,
        out,
        |most, x| {
            if kind.signed {
                most.iter_mut().zip(x).for_each(|(most, &x)| *most = (*most).max(i32::from(x as i8)));
            } else {
                most.iter_mut().zip(x).for_each(|(most, &x)| *most = (*most).max(i32::from(x)));
            }
        },
        |most, _| most.clamp(qmin, qmax) as u8,
    );
}

/// Takes the codes of each window's pixels, some channels at a time, and ends with how many there were.
#[inline(always)]
fn each(
    x: &[u8],
    window: &Window,
    [height, width, channels]: [usize; 3],
    start: i32,
    out: &mut [u8],
    take: impl Fn(&mut [i32], &[u8]),
    end: impl Fn(i32, i32) -> u8,
) {
    for (pixel, out) in out.chunks_exact_mut(channels).enumerate().take(height * width) {
        let (rows, columns) = (window.span(0, pixel / width), window.span(1, pixel % width));
        let count = (rows.len() * columns.len()) as i32;
        for (at, out) in out.chunks_mut(CHANNELS).enumerate() {
            let mut all = [start; CHANNELS];
            let held = &mut all[..out.len()];
            for (row, column) in rows.clone().flat_map(|row| columns.clone().map(move |column| (row, column))) {
                let from = (row * window.input[1] + column) * channels + at * CHANNELS;
                take(held, &x[from..from + held.len()]);
            }
            out.iter_mut().zip(held).for_each(|(out, held)| *out = end(*held, count));
        }
    }
}
