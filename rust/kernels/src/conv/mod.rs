//! Integer convolutions and what stands between them in a network: pooling,
//! additions, tables, softmax.
//!
//! Images are channels-last and come one at a time; a code is a byte, and
//! [`Kind`] says whether it is signed and which code stands for 0. Zero points
//! are taken off before anything is multiplied, so a padded border is 0 and no
//! sum is corrected afterwards; or codes are multiplied as they are, a border is the
//! code of 0, and what the zero point adds to a filter's sums is taken off its bias.
//!
//! A convolution is an implicit GEMM. Some rows of the image are widened to
//! 16 bits, between their borders of zeros, into a *band* that stays in cache;
//! the products read it where it lies, one kernel row at a time, since a kernel
//! row of one pixel is one piece of memory. Nothing is copied per tap. With
//! AVX-512 bands hold bytes, or are the image itself (quads.rs), where weights fit a
//! byte. Three forms are done otherwise: one filter a channel (depthwise.rs); and, of
//! 16-bit products alone, 3×3 windows side by side by Winograd's transform
//! (winograd.rs), exactly, and one window of the whole image, a matrix times a vector
//! (vector.rs).
//!
//! ```
//! use lowbit_kernels::conv::{Conv2d, Finish, Kind, Shape, To, Weight};
//! use lowbit_kernels::{Ctl, Isa};
//!
//! // Two images of 1×3 pixels with one channel, a kernel of 1×2.
//! let shape = Shape {
//!     input: [1, 3, 1], filters: 1, kernel: [1, 2], stride: [1, 1], dilation: [1, 1], padding: [[0; 2]; 2], groups: 1,
//! };
//! let kind = Kind { signed: true, zero_point: 0 };
//! let finish = Finish { bias: vec![100], to: To::Sums };
//! let conv = Conv2d::new(shape, Weight { codes: &[1, 10], kind }, kind, finish, Isa::best())?;
//! let mut sums = [0; 4];
//! conv.sums(2, &[1, 2, 3, 4, 5, 6], &mut sums, &Ctl::new(1))?;
//! assert_eq!(sums, [121, 132, 154, 165]);
//! # Ok::<(), lowbit_kernels::Error>(())
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod band;
mod depthwise;
mod feedback;
mod filter;
mod finish;
mod pool;
mod quads;
mod rounded;
mod scalar;
mod simple;
#[cfg(test)]
mod tests;
mod vector;
mod winograd;

pub use feedback::Feedback;
pub use finish::{AddCodes, Finish, Requantize, Rule, To};
pub use pool::{Means, Window, average_pool, max_pool};
pub use simple::{Multiply, Softmax, add, dequantize, look_up, multiply, quantize};

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{bail, checked_product, try_zeroed};
use crate::par::{Ctl, Parts};
use crate::{Isa, Result};
use filter::Filter;
use quads::Quads;
use vector::Vector;

/// The sizes of a convolution over one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Height, width, channels.
    pub input: [usize; 3],
    /// Output channels.
    pub filters: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Steps down and right between windows.
    pub stride: [usize; 2],
    /// Steps down and right between taps.
    pub dilation: [usize; 2],
    /// Rows above and below, columns left and right.
    pub padding: [[usize; 2]; 2],
    /// Groups that input and output channels are cut into.
    pub groups: usize,
}

impl Shape {
    /// Height, width and channels of the output.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where the sizes do not fit together.
    pub fn output(&self) -> Result<[usize; 3]> {
        let [height, width, channels] = self.input;
        if self.groups == 0 || !channels.is_multiple_of(self.groups) || !self.filters.is_multiple_of(self.groups) {
            let filters = self.filters;
            bail!("groups: expected a divisor of {channels} input and {filters} output channels, got {}", self.groups);
        }
        if channels == 0 || self.filters == 0 {
            bail!("shape: expected at least one channel, got {channels} in and {} out", self.filters);
        }
        let mut out = [0, 0, self.filters];
        for axis in 0..2 {
            let size = [height, width][axis];
            out[axis] = windows(size, self.padding[axis], self.kernel[axis], self.stride[axis], self.dilation[axis])?;
        }
        // Offsets within a band, and all that is computed from sizes, stay within these: no form's
        // scratch memory takes more than 16 elements for each of the image's, by whole vectors of channels.
        checked_product("input", &[self.padded(0), self.padded(1), channels.saturating_add(15), 64])?;
        if self.padded(1) * channels > u32::MAX as usize {
            bail!("input: expected fewer than 2^32 elements in a padded row, got {} by {channels}", self.padded(1));
        }
        checked_product("output", &[out[0], out[1], out[2], 4])?;
        checked_product("weight", &[self.filters.next_multiple_of(16), self.kernel[0], self.kernel[1], channels, 4])?;
        Ok(out)
    }

    fn padded(&self, axis: usize) -> usize {
        self.input[axis] + self.padding[axis][0] + self.padding[axis][1]
    }

    /// The same without steps that nothing takes: between windows where there is one, or taps.
    fn without_idle_steps(mut self, out: [usize; 3]) -> Shape {
        for axis in 0..2 {
            self.stride[axis] = if out[axis] == 1 { 1 } else { self.stride[axis] };
            self.dilation[axis] = if self.kernel[axis] == 1 { 1 } else { self.dilation[axis] };
        }
        self
    }

    /// The same with its columns as its rows where it is one column: a row of the same memory.
    fn lying(mut self) -> Shape {
        if self.input[1] == 1 && self.kernel[1] == 1 && self.padding[1] == [0; 2] {
            self.input.swap(0, 1);
            for pair in [&mut self.kernel, &mut self.stride, &mut self.dilation] {
                pair.swap(0, 1);
            }
            self.padding.swap(0, 1);
        }
        self
    }

    /// Channels that a filter sees.
    fn depth(&self) -> usize {
        self.input[2] / self.groups
    }

    /// Products of one image.
    pub fn products(&self) -> Result<usize> {
        let [height, width, filters] = self.output()?;
        checked_product("products", &[height, width, filters, self.kernel[0], self.kernel[1], self.depth()])
    }
}

/// Windows along an axis of this size, each of `kernel` taps `dilation` apart.
pub(super) fn windows(
    size: usize,
    padding: [usize; 2],
    kernel: usize,
    stride: usize,
    dilation: usize,
) -> Result<usize> {
    if size == 0 || kernel == 0 || stride == 0 || dilation == 0 {
        bail!("expected sizes of at least 1, got input {size}, kernel {kernel}, stride {stride}, dilation {dilation}");
    }
    let padded = size.checked_add(padding[0]).and_then(|s| s.checked_add(padding[1]));
    let reach = (kernel - 1).checked_mul(dilation).and_then(|r| r.checked_add(1));
    match (padded, reach) {
        (Some(padded), Some(reach)) if padded <= u32::MAX as usize && reach <= padded => {
            Ok((padded - reach) / stride + 1)
        }
        _ => bail!("padding: expected a kernel within the padded input, got {size} + {padding:?} for {kernel} taps"),
    }
}

/// What a byte of a tensor stands for: `code - zero_point`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// int8, else uint8.
    pub signed: bool,
    /// The code of 0.
    pub zero_point: i32,
}

impl Kind {
    /// The least and the largest code.
    pub fn range(self) -> (i32, i32) {
        if self.signed { (-128, 127) } else { (0, 255) }
    }

    /// A byte's code.
    #[inline(always)]
    pub fn code(self, byte: u8) -> i32 {
        if self.signed { i32::from(byte as i8) } else { i32::from(byte) }
    }

    /// A byte's code without its zero point: within ±255.
    #[inline(always)]
    pub fn value(self, byte: u8) -> i32 {
        self.code(byte) - self.zero_point
    }

    pub(super) fn check(self, what: &str) -> Result<()> {
        let (low, high) = self.range();
        if (low..=high).contains(&self.zero_point) {
            return Ok(());
        }
        bail!("{what}: expected a zero point of {low} to {high}, got {}", self.zero_point)
    }
}

/// Weights, `[filter][row][column][channel of the group]`.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    /// A byte a code.
    pub codes: &'a [u8],
    /// What they stand for.
    pub kind: Kind,
}

/// A convolution made ready for one instruction set.
#[derive(Debug, Clone)]
pub struct Conv2d {
    shape: Shape,
    out: [usize; 3],
    input: Kind,
    finish: Finish,
    filter: Arc<Filter>,
    /// What each filter's weights sum to.
    weight_sums: Vec<i32>,
    /// Whether codes are sums times floats of less than 1: no product is beyond int32.
    below_one: bool,
    scratch_len: usize,
    isa: Isa,
}

/// Where outputs go: one for each pixel and filter.
#[derive(Debug)]
pub enum Out<'a> {
    /// Codes, and the codes added to them if [`Requantize::add`] says so.
    Codes(&'a mut [u8], Option<&'a [u8]>),
    /// The sums themselves.
    Sums(&'a mut [i32]),
    /// The sums times a multiplier.
    Floats(&'a mut [f32]),
}

impl Out<'_> {
    fn len(&self) -> usize {
        match self {
            Out::Codes(codes, _) => codes.len(),
            Out::Sums(sums) => sums.len(),
            Out::Floats(floats) => floats.len(),
        }
    }
}

impl Conv2d {
    /// Checks the sizes and brings the weights into the order that `isa` reads.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where something does not fit,
    /// [`Error::Memory`](crate::Error::Memory).
    pub fn new(shape: Shape, weight: Weight, input: Kind, finish: Finish, isa: Isa) -> Result<Conv2d> {
        let shape = shape.lying();
        let out = shape.output()?;
        let shape = shape.without_idle_steps(out);
        let taps = shape.kernel[0] * shape.kernel[1] * shape.depth();
        if weight.codes.len() != shape.filters * taps {
            bail!("weight: expected {} codes for {shape:?}, got {}", shape.filters * taps, weight.codes.len());
        }
        // 255 · 255 · 2^15 < 2^31, and no bias takes a sum beyond what fits.
        if taps > 1 << 15 {
            bail!("weight: expected at most 32,768 products a sum, got {taps}");
        }
        input.check("input")?;
        weight.kind.check("weight")?;
        finish.check(shape.filters, taps)?;
        let isa = if isa.has_avx2() { isa } else { Isa::Scalar };
        let filter = Filter::new(&shape, out, weight, input, isa)?;
        let mut finish = finish;
        // Some multiply codes as they are: what the zero point adds is taken off the bias.
        let (zero_point, fold) = match &filter {
            Filter::Depthwise(depthwise) => (input.zero_point, depthwise.fold),
            Filter::Vector(_) => (Vector::zero_point(input), 1),
            Filter::Quads(_) | Filter::DepthwiseQuads(_) => (Quads::zero_point(input), 1),
            Filter::Plain(_) | Filter::Tiled(_) | Filter::Winograd(_) => (0, 1),
        };
        let sum = |codes: &[u8]| codes.iter().map(|&code| weight.kind.value(code)).sum();
        let weight_sums: Vec<i32> = weight.codes.chunks_exact(taps).map(sum).collect();
        finish.bias.iter_mut().zip(&weight_sums).for_each(|(bias, sum)| *bias -= zero_point * sum);
        let below_one = finish.is_below_one();
        finish.pad(fold);
        let (scratch_len, filter) = (filter.scratch_len(), Arc::new(filter));
        Ok(Conv2d { shape, out, input, finish, filter, weight_sums, below_one, scratch_len, isa })
    }

    /// Products of one image.
    pub fn products(&self) -> usize {
        self.shape.products().unwrap_or(usize::MAX)
    }

    /// Elements of scratch memory that [`run`](Self::run) wants.
    pub fn scratch_len(&self) -> usize {
        self.scratch_len
    }

    /// Bytes that the weights take.
    pub fn bytes(&self) -> usize {
        self.filter.bytes()
    }

    /// The sums of `n` images, one after the other, shared out to threads.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where a length does not fit, [`Error::Memory`](crate::Error::Memory),
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn sums(&self, n: usize, x: &[u8], out: &mut [i32], ctl: &Ctl) -> Result<()> {
        let (image, count) = (self.shape.input.iter().product::<usize>(), self.out.iter().product::<usize>());
        if Some(x.len()) != image.checked_mul(n) || Some(out.len()) != count.checked_mul(n) {
            bail!("x, out: expected {n} times {image} and {count} elements, got {} and {}", x.len(), out.len());
        }
        let mut scratch = Vec::new();
        for _ in 0..ctl.threads().min(n) {
            scratch.push(Mutex::new(try_zeroed::<i16>(self.scratch_len())?));
        }
        let parts = Parts::new(out.chunks_mut(count));
        let failed = Mutex::new(None);
        ctl.for_each(n, &|slot, task| {
            let mut scratch = scratch[slot].lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = self.run(&x[task * image..][..image], Out::Sums(parts.take(task)), &mut scratch) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        })?;
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// One image. Allocates nothing.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where a length does not fit.
    pub fn run(&self, x: &[u8], out: Out, scratch: &mut [i16]) -> Result<()> {
        let [height, width, channels] = self.shape.input;
        if x.len() != height * width * channels {
            bail!("x: expected {} codes, got {}", height * width * channels, x.len());
        }
        let count = self.out.iter().product::<usize>();
        if out.len() != count {
            bail!("out: expected {count} elements, got {}", out.len());
        }
        if scratch.len() < self.scratch_len {
            bail!("scratch: expected {} elements, got {}", self.scratch_len, scratch.len());
        }
        self.finish.check_out(&out)?;
        match &*self.filter {
            Filter::Plain(weight) => scalar::conv2d(&self.shape, self.out, x, self.input, weight, &self.finish, out),
            #[cfg(target_arch = "x86_64")]
            Filter::Tiled(tiled) => avx2::run(self, tiled, x, out, scratch),
            #[cfg(target_arch = "x86_64")]
            Filter::Depthwise(depthwise) => avx2::run_depthwise(self, depthwise, x, out, scratch),
            #[cfg(target_arch = "x86_64")]
            Filter::DepthwiseQuads(depthwise) => avx512::run_depthwise(self, depthwise, x, out, scratch),
            #[cfg(target_arch = "x86_64")]
            Filter::Vector(vector) => avx2::run_vector(self, vector, x, out, scratch),
            #[cfg(target_arch = "x86_64")]
            Filter::Winograd(winograd) => avx2::run_winograd(self, winograd, x, out, scratch),
            #[cfg(target_arch = "x86_64")]
            Filter::Quads(quads) => avx512::run(self, quads, x, out, scratch),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("tiled for x86-64 alone"),
        }
        Ok(())
    }
}
