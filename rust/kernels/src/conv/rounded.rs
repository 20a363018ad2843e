//! Convolutions of floats: each image is rounded to codes of its own scale and
//! zero point, convolved exactly, and scaled.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use super::feedback::{self, Feedback};
use super::filter::Filter;
use super::{Conv2d, Out};
use crate::affine::{Floats, Levels, quantize_row};
use crate::error::{bail, try_zeroed};
use crate::lanes::{Lanes, on_isa};
use crate::par::{Ctl, Parts};
use crate::{Isa, Result};

on_isa! {
    fn scale_sums(sums: &[i32], scale: &[f32], bias: &[f32], out: &mut [f32]) = scaled;
}

/// What a thread needs for one image.
struct Room {
    codes: Vec<u8>,
    sums: Vec<i32>,
    scratch: Vec<i16>,
    scale: Vec<f32>,
    feedback: Option<feedback::Room>,
}

impl Conv2d {
    /// `f32(sum) * (image's scale * scale) + bias` of `n` images of floats, one after the other, shared out
    /// to threads. Each image is rounded by itself as [`quantize_rows`](crate::affine::quantize_rows) rounds a row, to unsigned codes of
    /// `levels`, or with feedback as [`Feedback::round`] says; `scale` and `bias` have one value for each
    /// filter. An image with NaN or an infinity gives NaN.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where a length does not fit or the convolution was made for other
    /// inputs than uint8, or for other outputs than sums, [`Error::Memory`](crate::Error::Memory),
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn rounded(
        &self,
        n: usize,
        x: &[f32],
        levels: &Levels,
        feedback: Option<&Feedback>,
        [scale, bias]: [&[f32]; 2],
        out: &mut [f32],
        isa: Isa,
        ctl: &Ctl,
    ) -> Result<()> {
        let (image, count) = (self.shape.input.iter().product::<usize>(), self.out.iter().product::<usize>());
        if Some(x.len()) != image.checked_mul(n) || Some(out.len()) != count.checked_mul(n) {
            bail!("x, out: expected {n} times {image} and {count} elements, got {} and {}", x.len(), out.len());
        }
        let filters = self.shape.filters;
        if scale.len() != filters || bias.len() != filters {
            bail!("scale, bias: expected {filters} values each, got {} and {}", scale.len(), bias.len());
        }
        if self.input.signed {
            bail!("x: expected a convolution of uint8 codes");
        }
        if let Some(feedback) = feedback
            && feedback.size() != image
        {
            bail!("feedback: expected images of {image} values, got of {}", feedback.size());
        }
        let mut rooms = Vec::new();
        for _ in 0..ctl.threads().min(n) {
            rooms.push(Mutex::new(Room {
                codes: try_zeroed(image)?,
                sums: try_zeroed(count)?,
                scratch: try_zeroed(self.scratch_len())?,
                scale: try_zeroed(filters)?,
                feedback: feedback.map(Feedback::room).transpose()?,
            }));
        }
        let parts = Parts::new(out.chunks_mut(count));
        let failed = Mutex::new(None);
        ctl.for_each(n, &|slot, task| {
            let mut room = rooms[slot].lock().unwrap_or_else(PoisonError::into_inner);
            let (x, out) = (&x[task * image..][..image], parts.take(task));
            if let Err(error) = self.one_rounded(x, levels, feedback, [scale, bias], out, &mut room, isa) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        })?;
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn one_rounded(
        &self,
        x: &[f32],
        levels: &Levels,
        feedback: Option<&Feedback>,
        [scale, bias]: [&[f32]; 2],
        out: &mut [f32],
        room: &mut Room,
        isa: Isa,
    ) -> Result<()> {
        let Room { codes, sums, scratch, scale: scales, feedback: room } = room;
        let row = match feedback.zip(room.as_mut()) {
            None => quantize_row(Floats::F32(x), levels, codes, isa),
            Some((feedback, room)) => feedback.round_one(x, levels, codes, room, isa),
        };
        if row.scale.is_nan() {
            out.fill(f32::NAN);
            return Ok(());
        }
        self.with_zero_point(row.zero_point.into()).run(codes, Out::Sums(sums), scratch)?;
        scales.iter_mut().zip(scale).for_each(|(to, scale)| *to = row.scale * scale);
        scale_sums(sums, scales, bias, out, isa);
        Ok(())
    }

    /// The same for inputs of another zero point.
    fn with_zero_point(&self, zero_point: i32) -> Cow<'_, Conv2d> {
        let step = zero_point - self.input.zero_point;
        if step == 0 {
            return Cow::Borrowed(self);
        }
        let mut conv = self.clone();
        conv.input.zero_point = zero_point;
        if !matches!(*conv.filter, Filter::Plain(_) | Filter::Tiled(_) | Filter::Winograd(_)) {
            let filters = self.shape.filters;
            let folded = (conv.finish.bias.len() - super::finish::BEHIND) / filters * filters;
            for (at, bias) in conv.finish.bias[..folded].iter_mut().enumerate() {
                *bias -= step * self.weight_sums[at % filters];
            }
        }
        Cow::Owned(conv)
    }
}

#[inline(always)]
fn scaled<L: Lanes>(_: L, sums: &[i32], scale: &[f32], bias: &[f32], out: &mut [f32]) {
    for (sums, out) in sums.chunks(scale.len()).zip(out.chunks_mut(scale.len())) {
        for (((out, &sum), scale), bias) in out.iter_mut().zip(sums).zip(scale).zip(bias) {
            *out = sum as f32 * scale + bias;
        }
    }
}
