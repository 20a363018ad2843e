//! Which scale each value has.

use std::ops::Range;

use crate::Result;
use crate::error::{bail, checked_product};

use super::scalar::BLOCK;

/// How scales are shared in an array of shape (outer, channels, inner): each
/// (channel, group of `group` along inner) has one, the last group of a row
/// being shorter where `group` does not divide inner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    outer: usize,
    channels: usize,
    inner: usize,
    group: usize,
    per_channel: usize,
}

impl Layout {
    /// One scale for `n` values.
    ///
    /// # Errors
    /// As for [`Layout::groups_of`].
    pub fn tensor(n: usize) -> Result<Layout> {
        Layout::new(1, 1, n, n)
    }

    /// One scale for each index of the middle axis.
    ///
    /// # Errors
    /// As for [`Layout::groups_of`].
    pub fn axis(outer: usize, channels: usize, inner: usize) -> Result<Layout> {
        Layout::new(outer, channels, inner, inner)
    }

    /// One scale for each `group` values of each row of `k`.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where a size is 0 or their product overflows.
    pub fn groups_of(group: usize, rows: usize, k: usize) -> Result<Layout> {
        Layout::new(1, rows, k, group)
    }

    fn new(outer: usize, channels: usize, inner: usize, group: usize) -> Result<Layout> {
        if outer == 0 || channels == 0 || inner == 0 || group == 0 {
            bail!(
                "x: expected at least 1 value and a group_size of at least 1, got shape ({outer}, {channels}, {inner}), group_size {group}"
            );
        }
        checked_product("x", &[outer, channels, inner])?;
        let group = group.min(inner);
        Ok(Layout { outer, channels, inner, group, per_channel: inner.div_ceil(group) })
    }

    /// How many scales.
    pub fn groups(&self) -> usize {
        self.channels * self.per_channel
    }

    pub(super) fn check(&self, name: &str, len: usize) -> Result<()> {
        let n = self.outer * self.channels * self.inner;
        if len != n {
            bail!("{name}: expected {n} elements, got {len}");
        }
        Ok(())
    }

    /// Values of the longest group.
    pub(super) fn longest(&self) -> usize {
        self.outer * self.group
    }

    /// Values of one group.
    pub(super) fn len(&self, group: usize) -> usize {
        self.outer * self.width(group % self.per_channel)
    }

    /// The pieces of a part of the array that each have one group.
    pub(super) fn runs(&self, part: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut at = part.start;
        std::iter::from_fn(move || {
            if at >= part.end {
                return None;
            }
            let (row, i) = (at / self.inner, at % self.inner);
            let g = i / self.group;
            let from = at;
            at = part.end.min(row * self.inner + g * self.group + self.width(g));
            Some((row % self.channels * self.per_channel + g, from..at))
        })
    }

    /// Neighbours in a row that share the `g`th scale of their channel.
    fn width(&self, g: usize) -> usize {
        self.group.min(self.inner - g * self.group)
    }

    /// Where a part of a group lies, if groups are never in several pieces.
    #[inline]
    pub(super) fn span(&self, group: usize, part: &Range<usize>) -> Option<Range<usize>> {
        if self.outer > 1 {
            return None;
        }
        let (channel, g) = (group / self.per_channel, group % self.per_channel);
        let first = channel * self.inner + g * self.group;
        Some(first + part.start..first + part.end)
    }

    /// (outer, channels, inner) of groups in several pieces, one for each
    /// channel.
    pub(super) fn strided(&self) -> Option<(usize, usize, usize)> {
        (self.outer > 1).then_some((self.outer, self.channels, self.inner))
    }

    /// The first value of a group and the distance to the next, if neighbours
    /// are of different groups.
    pub(super) fn stride(&self, group: usize) -> Option<(usize, usize)> {
        (self.inner == 1).then_some((group, self.channels))
    }

    /// The pieces of the array that hold the values `part` of one group, in
    /// order.
    pub(super) fn pieces(&self, group: usize, part: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let (channel, g) = (group / self.per_channel, group % self.per_channel);
        let width = self.width(g);
        let mut at = part.start;
        std::iter::from_fn(move || {
            if at >= part.end {
                return None;
            }
            let (o, i) = (at / width, at % width);
            let n = (width - i).min(part.end - at);
            at += n;
            let first = (o * self.channels + channel) * self.inner + g * self.group + i;
            Some(first..first + n)
        })
    }
}

/// Each value's scale and zero point, block by block.
pub(super) struct Each<'a> {
    layout: &'a Layout,
    scale: &'a [f32],
    zero_point: &'a [f32],
    /// The group of the next value, and how many values it still has in its row.
    group: usize,
    left: usize,
    scales: [f32; BLOCK],
    zeros: [f32; BLOCK],
    /// The group that fills both buffers to this length.
    filled: Option<(usize, usize)>,
}

impl<'a> Each<'a> {
    /// From the value at flat index `first` on.
    pub(super) fn new(layout: &'a Layout, first: usize, scale: &'a [f32], zero_point: &'a [f32]) -> Self {
        let (row, i) = (first / layout.inner, first % layout.inner);
        let g = i / layout.group;
        let group = row % layout.channels * layout.per_channel + g;
        let left = layout.width(g) - i % layout.group;
        Each { layout, scale, zero_point, group, left, scales: [0.0; BLOCK], zeros: [0.0; BLOCK], filled: None }
    }

    /// Those of the next `n` values, at most [`BLOCK`].
    pub(super) fn next(&mut self, n: usize) -> (&[f32], &[f32]) {
        let groups = self.layout.groups();
        if self.left >= n && self.filled.is_some_and(|(group, len)| group == self.group && len >= n) {
            self.left -= n;
        } else {
            let group = self.group;
            let mut at = 0;
            while at < n {
                if self.left == 0 {
                    self.group = (self.group + 1) % groups;
                    self.left = self.layout.width(self.group % self.layout.per_channel);
                }
                if self.layout.inner == 1 {
                    // Neighbours have neighbouring scales.
                    let many = (groups - self.group).min(n - at);
                    self.scales[at..at + many].copy_from_slice(&self.scale[self.group..self.group + many]);
                    self.zeros[at..at + many].copy_from_slice(&self.zero_point[self.group..self.group + many]);
                    (at, self.group, self.left) = (at + many, self.group + many - 1, 0);
                } else {
                    let many = self.left.min(n - at);
                    self.scales[at..at + many].fill(self.scale[self.group]);
                    self.zeros[at..at + many].fill(self.zero_point[self.group]);
                    (at, self.left) = (at + many, self.left - many);
                }
            }
            self.filled = (group == self.group && self.layout.inner > 1).then_some((group, n));
        }
        (&self.scales[..n], &self.zeros[..n])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_the_scale_of_its_group() {
        for (outer, channels, inner, group) in [(3, 5, 1, 1), (2, 3, 4, 4), (1, 7, 100, 32), (1, 1, 5000, 5000)] {
            let layout = Layout::new(outer, channels, inner, group).unwrap();
            let n = outer * channels * inner;
            let mut expected = vec![usize::MAX; n];
            for g in 0..layout.groups() {
                let pieces: Vec<_> = layout.pieces(g, 0..layout.len(g)).collect();
                assert_eq!(pieces.iter().map(Range::len).sum::<usize>(), layout.len(g));
                pieces.into_iter().flatten().for_each(|i| expected[i] = g);
            }
            let scale: Vec<f32> = (0..layout.groups()).map(|g| g as f32).collect();
            for first in [0, 1, n / 2] {
                for block in [1, 3, 1000] {
                    let mut each = Each::new(&layout, first, &scale, &scale);
                    let mut got = Vec::new();
                    while first + got.len() < n {
                        let (scales, zeros) = each.next(block.min(n - first - got.len()));
                        assert_eq!(scales, zeros);
                        got.extend(scales.iter().map(|&s| s as usize));
                    }
                    assert_eq!(got, expected[first..]);
                }
            }
        }
    }
}
