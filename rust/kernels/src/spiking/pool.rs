//! Pooling of spikes and counts.

use std::ops::Range;

use super::SpikeConv2d;
use crate::error::{bail, checked_product, try_zeroed};
use crate::lanes::{Lanes, on_isa};
use crate::{Isa, Result};

/// What becomes of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// The sum: counts of spikes.
    Sum,
    /// The largest: of spikes, whether any.
    Max,
}

/// Pools windows of images of bytes (N, H, W, C), of which padding is 0, into `out` (N, OH, OW, C).
/// `windows` has the sizes.
///
/// # Errors
/// [`crate::Error::Value`] for lengths that do not fit, or a sum of more than 255; as
/// [`SpikeConv2d::output`]; [`crate::Error::Memory`].
pub fn spike_pool2d(bytes: &[u8], windows: &SpikeConv2d, kind: PoolKind, out: &mut [u8], isa: Isa) -> Result<()> {
    let ([oh, ow], [h, w, c]) = (windows.output()?, windows.input);
    let (input, output) = (checked_product("input", &[h, w, c])?, checked_product("out", &[oh, ow, c])?);
    if input == 0 || output == 0 {
        return if bytes.is_empty() && out.is_empty() {
            Ok(())
        } else {
            bail!("input: expected pixels, got {:?}", [h, w, c])
        };
    }
    let images = bytes.len() / input;
    if images * input != bytes.len() || checked_product("out", &[images, output])? != out.len() {
        bail!("out: expected images of {input} to {output}, got {} to {} bytes", bytes.len(), out.len());
    }
    let most = super::greatest_count(bytes, isa);
    let window = windows.kernel[0].saturating_mul(windows.kernel[1]);
    if kind == PoolKind::Sum && window.saturating_mul(most.into()) > 255 {
        // Bytes may not hold them: in wider sums first.
        let mut wide = try_zeroed::<usize>(output)?;
        for (image, out) in bytes.chunks_exact(input).zip(out.chunks_exact_mut(output)) {
            image_of(image, windows, [oh, ow], &mut wide, |x, y| x + y, usize::from);
            if let Some(&most) = wide.iter().max().filter(|&&most| most > 255) {
                bail!("expected counts of at most 255 spikes, got {most}");
            }
            out.iter_mut().zip(&wide).for_each(|(out, &x)| *out = x as u8);
        }
        return Ok(());
    }
    let mut line = try_zeroed(w * (c / 8))?;
    for (image, out) in bytes.chunks_exact(input).zip(out.chunks_exact_mut(output)) {
        pool_image(image, windows, [oh, ow], kind, most <= 1, &mut line, out, isa);
    }
    Ok(())
}

on_isa! {
    fn pool_image(
        image: &[u8], windows: &SpikeConv2d, sizes: [usize; 2], kind: PoolKind, spikes: bool, line: &mut [u64],
        out: &mut [u8],
    ) = image_in;
}

#[inline(always)]
fn image_in<L: Lanes>(
    _: L,
    image: &[u8],
    windows: &SpikeConv2d,
    sizes: [usize; 2],
    kind: PoolKind,
    spikes: bool,
    line: &mut [u64],
    out: &mut [u8],
) {
    macro_rules! by_words {
        ($fold:expr) => {
            match windows.input[2] {
                8 => return words_of::<1>(image, windows, sizes, line, out, $fold),
                16 => return words_of::<2>(image, windows, sizes, line, out, $fold),
                32 => return words_of::<4>(image, windows, sizes, line, out, $fold),
                64 => return words_of::<8>(image, windows, sizes, line, out, $fold),
                128 => return words_of::<16>(image, windows, sizes, line, out, $fold),
                _ => {}
            }
        };
    }
    match kind {
        PoolKind::Sum => {
            // No byte of a sum carries into the next: all are at most 255.
            by_words!(u64::wrapping_add);
            image_of(image, windows, sizes, out, u8::wrapping_add, |x| x);
        }
        PoolKind::Max => {
            if spikes {
                by_words!(|x, y| x | y);
            }
            image_of(image, windows, sizes, out, u8::max, |x| x);
        }
    }
}

/// Of a window that begins at `first` of the padded image, what lies in the image.
#[inline(always)]
fn inside(first: usize, kernel: usize, before: usize, size: usize) -> Range<usize> {
    first.saturating_sub(before).min(size)..(first + kernel).saturating_sub(before).min(size)
}

/// `E` words of eight channels at a time: along H, then along W.
#[inline(always)]
fn words_of<const E: usize>(
    image: &[u8],
    windows: &SpikeConv2d,
    [oh, ow]: [usize; 2],
    line: &mut [u64],
    out: &mut [u8],
    fold: impl Fn(u64, u64) -> u64,
) {
    let ([h, w, _], [kh, kw], [sy, sx]) = (windows.input, windows.kernel, windows.stride);
    let [top, left] = windows.padding.map(|[before, _]| before);
    let (pixels, out) = (image.as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
    for (y, out) in out.chunks_exact_mut(ow * E).enumerate().take(oh) {
        line.fill(0);
        for row in inside(y * sy, kh, top, h) {
            for (all, x) in line.iter_mut().zip(&pixels[row * w * E..][..w * E]) {
                *all = fold(*all, u64::from_ne_bytes(*x));
            }
        }
        let line = line.as_chunks::<E>().0;
        for (x, out) in out.as_chunks_mut::<E>().0.iter_mut().enumerate() {
            let mut all = [0; E];
            for pixel in &line[inside(x * sx, kw, left, w)] {
                for i in 0..E {
                    all[i] = fold(all[i], pixel[i]);
                }
            }
            *out = all.map(u64::to_ne_bytes);
        }
    }
}

#[inline(always)]
fn image_of<T: Copy + Default>(
    image: &[u8],
    windows: &SpikeConv2d,
    [oh, ow]: [usize; 2],
    out: &mut [T],
    fold: impl Fn(T, T) -> T,
    of: impl Fn(u8) -> T,
) {
    let ([h, w, c], [kh, kw], [sy, sx]) = (windows.input, windows.kernel, windows.stride);
    let [top, left] = windows.padding.map(|[before, _]| before);
    for (y, out) in out.chunks_exact_mut(ow * c).enumerate().take(oh) {
        let rows = inside(y * sy, kh, top, h);
        for (x, out) in out.chunks_exact_mut(c).enumerate() {
            out.fill(T::default());
            let columns = inside(x * sx, kw, left, w);
            for row in rows.clone() {
                let line = &image[(row * w + columns.start) * c..][..columns.len() * c];
                for pixel in line.chunks_exact(c) {
                    out.iter_mut().zip(pixel).for_each(|(out, &x)| *out = fold(*out, of(x)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_the_book(x: &[u8], images: usize, windows: &SpikeConv2d, kind: PoolKind) -> Vec<usize> {
        let ([oh, ow], [h, w, c], [kh, kw]) = (windows.output().unwrap(), windows.input, windows.kernel);
        let mut out = vec![];
        for (image, y, x0, channel) in
            (0..images * oh * ow * c).map(|i| (i / c / ow / oh, i / c / ow % oh, i / c % ow, i % c))
        {
            let mut all = 0;
            for (i, j) in (0..kh * kw).map(|l| (l / kw, l % kw)) {
                let row = (y * windows.stride[0] + i).checked_sub(windows.padding[0][0]).filter(|&row| row < h);
                let column = (x0 * windows.stride[1] + j).checked_sub(windows.padding[1][0]).filter(|&x| x < w);
                let (Some(row), Some(column)) = (row, column) else { continue };
                let here = usize::from(x[((image * h + row) * w + column) * c + channel]);
                all = if kind == PoolKind::Sum { all + here } else { all.max(here) };
            }
            out.push(all);
        }
        out
    }

    proptest! {
        #[test]
        fn any_windows(
            input in (1usize..9, 1usize..9, prop::sample::select(vec![1usize, 3, 8, 16, 32])),
            kernel in (1usize..4, 1usize..4),
            stride in (1usize..4, 1usize..4),
            padding in (0usize..3, 0usize..3, 0usize..3, 0usize..3),
            images in 0usize..4,
            most in prop::sample::select(vec![1u8, 40, 255]),
            sums: bool,
            seed: u64,
        ) {
            let windows = SpikeConv2d {
                input: input.into(), kernel: kernel.into(), stride: stride.into(),
                padding: [[padding.0, padding.1], [padding.2, padding.3]],
            };
            let Ok([oh, ow]) = windows.output() else { return Ok(()) };
            let kind = if sums { PoolKind::Sum } else { PoolKind::Max };
            let x: Vec<u8> = (0..images * input.0 * input.1 * input.2)
                .map(|i| ((seed >> (i % 57)) as u8).wrapping_add(i as u8) % most.saturating_add(1).max(2))
                .collect();
            let want = by_the_book(&x, images, &windows, kind);
            for &isa in Isa::available() {
                let mut out = vec![77; images * oh * ow * input.2];
                let got = spike_pool2d(&x, &windows, kind, &mut out, isa);
                if want.iter().any(|&x| x > 255) {
                    prop_assert!(got.unwrap_err().to_string().contains("at most 255"));
                } else {
                    got.unwrap();
                    prop_assert!(out.iter().map(|&x| usize::from(x)).eq(want.iter().copied()));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let windows = SpikeConv2d { input: [2, 2, 1], kernel: [2, 2], stride: [2, 2], padding: [[0; 2]; 2] };
        for (input, output) in [(4, 2), (5, 1), (3, 1)] {
            let mut out = vec![0; output];
            assert!(spike_pool2d(&vec![0; input], &windows, PoolKind::Max, &mut out, Isa::best()).is_err());
        }
    }
}
