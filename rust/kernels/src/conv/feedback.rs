//! Images rounded so that a convolution's outputs stay right: what a code is off by is made good by the
//! codes after it, as far as the filters see both.

use std::sync::{Mutex, PoisonError};

use crate::affine::{Floats, Levels, RowScale, quantize_row};
use crate::error::{bail, checked_product, try_zeroed};
use crate::lanes::{Lanes, on_isa};
use crate::par::{Ctl, Parts};
use crate::{Isa, Result};

/// Columns that are summed at once, at most: four vectors.
const AHEAD: usize = 64;
/// Coefficients are below: no sum of errors overflows.
const GREATEST: f32 = 65536.0;

/// What each code's error adds to the targets of codes after it, in images of one size.
#[derive(Debug, Clone)]
pub struct Feedback {
    /// Height, width, channels.
    image: [usize; 3],
    /// Rows above that a code hears of, and columns to each side.
    reach: [usize; 2],
    /// (channels, reach + 1, 2 reach + 1, channels)
    coefficients: Vec<f32>,
}

impl Feedback {
    /// `coefficients` (channels, `rows`, `columns`, channels): for each channel of a pixel, those of the
    /// errors of `rows - 1` rows above and its own, `columns` around it, an odd number. Of its own row and pixel only
    /// what comes before it is looked at.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where sizes do not fit or a coefficient is NaN or 65,536 or more.
    pub fn new(coefficients: &[f32], [rows, columns]: [usize; 2], image: [usize; 3]) -> Result<Feedback> {
        let channels = image[2];
        if checked_product("image", &image)? == 0 {
            bail!("image: expected at least one pixel of one channel, got {image:?}");
        }
        let expected = checked_product("feedback", &[channels, rows, columns, channels])?;
        if columns.is_multiple_of(2) || rows == 0 || coefficients.len() != expected {
            bail!(
                "feedback: expected {channels} channels, at least one row and an odd number of columns, got {} values \
                 for {rows} rows and {columns} columns",
                coefficients.len()
            );
        }
        if let Some(odd) = coefficients.iter().find(|c| c.is_nan() || c.abs() >= GREATEST) {
            bail!("feedback: expected values between -65536 and 65536, got {odd}");
        }
        Ok(Feedback { image, reach: [rows - 1, columns / 2], coefficients: coefficients.to_vec() })
    }

    /// Values of an image.
    pub fn size(&self) -> usize {
        self.image.iter().product()
    }

    /// Products that a code takes, at most.
    pub fn products(&self) -> usize {
        self.coefficients.len() / self.image[2]
    }

    /// What one thread rounds images in.
    pub(super) fn room(&self) -> Result<Room> {
        let ([above, beside], [_, columns, channels]) = (self.reach, self.image);
        let row = columns.saturating_add(2 * beside + AHEAD);
        Ok(Room {
            errors: try_zeroed(checked_product("image", &[above + 1, channels, row])?)?,
            sums: try_zeroed(checked_product("image", &[channels, row])?)?,
            line: try_zeroed(checked_product("image", &[channels, row])?)?,
        })
    }

    /// Rounds images, each to unsigned codes of `levels` by its own range, as
    /// [`quantize_rows`](crate::affine::quantize_rows) takes it. With v a value in steps, its code less the
    /// zero point is `rint(v - Σ coefficient · error)`, clamped, and its error what that is more than v. All in
    /// float32, one operation after the other: the rows above first, columns from the left, channels ascending.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) where lengths do not fit, [`Error::Memory`](crate::Error::Memory),
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn round(
        &self,
        x: &[f32],
        levels: &Levels,
        codes: &mut [u8],
        rows: &mut [RowScale],
        isa: Isa,
        ctl: &Ctl,
    ) -> Result<()> {
        let size = self.size();
        if rows.len().checked_mul(size) != Some(x.len()) || codes.len() != x.len() {
            bail!("x, codes: expected {} images of {size} values, got {} and {}", rows.len(), x.len(), codes.len());
        }
        let mut rooms = Vec::new();
        for _ in 0..ctl.threads().min(rows.len()) {
            rooms.push(Mutex::new(self.room()?));
        }
        let parts = Parts::new(codes.chunks_mut(size).zip(rows).zip(x.chunks(size)));
        ctl.for_each(parts.len(), &|slot, task| {
            let mut room = rooms[slot].lock().unwrap_or_else(PoisonError::into_inner);
            let ((codes, row), x) = parts.take(task);
            *row = self.round_one(x, levels, codes, &mut room, isa);
        })
    }

    /// Of one image the scale and zero point, NaN and 0 where it holds NaN or an infinity.
    pub(super) fn round_one(
        &self,
        x: &[f32],
        levels: &Levels,
        codes: &mut [u8],
        room: &mut Room,
        isa: Isa,
    ) -> RowScale {
        let row = quantize_row(Floats::F32(x), levels, codes, isa);
        if !row.scale.is_nan() {
            let grid = Grid {
                inverse: 1.0 / row.scale,
                zero_point: row.zero_point.into(),
                least: f32::from(levels.qmin()) - f32::from(row.zero_point),
                most: f32::from(levels.qmax()) - f32::from(row.zero_point),
            };
            carry(self, grid, x, codes, room, isa);
        }
        row
    }
}

/// What one thread rounds images in; rows of columns and a border on both sides, with room for a vector.
pub(super) struct Room {
    /// Of as many rows as matter, each (channels, columns), the row y in place y mod their number.
    errors: Vec<f32>,
    /// What the rows above add to one row's targets, (channels, columns).
    sums: Vec<f32>,
    /// The row's own errors as they come, (columns, channels).
    line: Vec<f32>,
}

/// The codes that an image may have.
#[derive(Clone, Copy)]
struct Grid {
    inverse: f32,
    zero_point: f32,
    least: f32,
    most: f32,
}

impl Grid {
    /// The error, in steps, and the code of a value that is to make up for `sum`.
    #[inline(always)]
    fn round(&self, x: f32, sum: f32) -> (f32, u8) {
        let value = x * self.inverse;
        let steps = (value - sum).round_ties_even().max(self.least).min(self.most);
        (steps - value, (steps + self.zero_point) as u8)
    }
}

/// A row's codes, where so few errors of it matter that they stay in registers: those of `BESIDE` pixels of `C` channels.
#[inline(always)]
fn along<const C: usize, const BESIDE: usize>(
    coefficients: [&[f32]; C],
    grid: Grid,
    sums: &[f32],
    x: &[f32],
    codes: &mut [u8],
    line: &mut [f32],
) {
    let row = sums.len() / C;
    let pixels =
        x.as_chunks::<C>().0.iter().zip(codes.as_chunks_mut::<C>().0).zip(&mut line.as_chunks_mut::<C>().0[BESIDE..]);
    let mut before = [[0f32; C]; BESIDE];
    for (column, ((x, codes), line)) in pixels.enumerate() {
        let mut errors = [0f32; C];
        for channel in 0..C {
            let coefficients = coefficients[channel].as_chunks::<C>().0;
            let mut sum = sums[channel * row + column];
            for (errors, coefficients) in before.iter().zip(coefficients) {
                for (error, coefficient) in errors.iter().zip(coefficients) {
                    sum += coefficient * error;
                }
            }
            for (error, coefficient) in errors[..channel].iter().zip(&coefficients[BESIDE]) {
                sum += coefficient * error;
            }
            (errors[channel], codes[channel]) = grid.round(x[channel], sum);
        }
        before.rotate_left(1);
        before[BESIDE - 1] = errors;
        *line = errors;
    }
}

on_isa! {
    fn carry(feedback: &Feedback, grid: Grid, x: &[f32], codes: &mut [u8], room: &mut Room) = carried;
}

#[inline(always)]
fn carried<L: Lanes>(l: L, feedback: &Feedback, grid: Grid, x: &[f32], codes: &mut [u8], room: &mut Room) {
    let ([_, columns, channels], [above, beside]) = (feedback.image, feedback.reach);
    let (window, row) = ((2 * beside + 1) * channels, columns + 2 * beside + AHEAD);
    let Room { errors, sums, line } = room;
    errors.fill(0.0);
    for (y, (x, codes)) in x.chunks(columns * channels).zip(codes.chunks_mut(columns * channels)).enumerate() {
        for (channel, sums) in sums.chunks_mut(row).enumerate() {
            let coefficients = &feedback.coefficients[channel * (above + 1) * window..][..above * window];
            for at in (0..columns).step_by(4 * L::N) {
                let mut four = [l.splat(0.0); 4];
                for (i, coefficients) in coefficients.chunks(window).enumerate() {
                    // The place of row y - above + i.
                    let errors = &errors[(y + 1 + i) % (above + 1) * channels * row..][..channels * row];
                    for (column, coefficients) in coefficients.chunks(channels).enumerate() {
                        for (errors, &coefficient) in errors.chunks(row).zip(coefficients) {
                            let errors = &errors[at + column..][..4 * L::N];
                            for (sum, errors) in four.iter_mut().zip(errors.chunks(L::N)) {
                                *sum = l.add(*sum, l.mul(l.splat(coefficient), l.load(errors)));
                            }
                        }
                    }
                }
                for (sum, sums) in four.iter().zip(sums[at..][..4 * L::N].chunks_mut(L::N)) {
                    l.store(*sum, sums);
                }
            }
        }
        // Those of pixels to the left, and of the pixel's channels before it.
        let left = |channel: usize| &feedback.coefficients[(channel * (above + 1) + above) * window..][..window];
        match (channels, beside) {
            (1, 2) => along::<1, 2>([left(0)], grid, sums, x, codes, line),
            (3, 2) => along::<3, 2>([left(0), left(1), left(2)], grid, sums, x, codes, line),
            _ => {
                for (column, (x, codes)) in x.chunks(channels).zip(codes.chunks_mut(channels)).enumerate() {
                    for (channel, (&x, code)) in x.iter().zip(codes).enumerate() {
                        let before = beside * channels + channel;
                        let mut sum = sums[channel * row + column];
                        for (coefficient, error) in left(channel)[..before].iter().zip(&line[column * channels..]) {
                            sum += coefficient * error;
                        }
                        (line[column * channels + before], *code) = grid.round(x, sum);
                    }
                }
            }
        }
        let errors = &mut errors[y % (above + 1) * channels * row..][..channels * row];
        for (channel, errors) in errors.chunks_mut(row).enumerate() {
            let made = line[beside * channels + channel..].iter().step_by(channels);
            errors[beside..][..columns].iter_mut().zip(made).for_each(|(to, &error)| *to = error);
        }
    }
}
