//! The layout in which kernels read 8-bit weights (FORMATS.md, "Tiled int8").

use crate::error::{bail, checked_product, try_zeroed};
use crate::par::Parts;
use crate::{Ctl, Error, Result};

/// Columns of a panel.
pub(crate) const PANEL: usize = 64;
/// Columns are padded to a multiple of this.
pub(super) const STEP: usize = 16;

/// A K×N matrix of int8 in tiled order, with a scale for each column.
///
/// Columns come in panels of 64, the last one as narrow as the multiple of 16
/// that holds the rest. A panel of `w` columns is, in little-endian order: `w`
/// i32 sums of the columns' codes, `w` f32 scales, then for every four rows the
/// `w` columns' four codes each, as i8. What pads N and K is zero.
#[derive(Clone, Copy, Debug)]
pub struct Tiled<B = Vec<u8>> {
    bytes: B,
    k: usize,
    n: usize,
}

/// One panel.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// Columns with padding: a multiple of 16, at most 64.
    pub width: usize,
    /// Columns without.
    pub cols: usize,
    /// The first column.
    pub first: usize,
    pub col_sum: &'a [[u8; 4]],
    pub scale: &'a [[u8; 4]],
    /// `[ceil(K / 4)][width][4]`
    pub codes: &'a [u8],
}

/// A panel's sums and scales as arrays, zero where it is narrow.
pub(super) fn header(col_sum: &[[u8; 4]], scale: &[[u8; 4]]) -> ([i32; PANEL], [f32; PANEL]) {
    let (mut sums, mut scales) = ([0; PANEL], [0.0; PANEL]);
    for (to, from) in sums.iter_mut().zip(col_sum) {
        *to = i32::from_le_bytes(*from);
    }
    for (to, from) in scales.iter_mut().zip(scale) {
        *to = f32::from_le_bytes(*from);
    }
    (sums, scales)
}

pub(super) fn width_of(n: usize, first: usize) -> usize {
    (n - first).min(PANEL).next_multiple_of(STEP)
}

/// Bytes of a tiled K×N matrix.
///
/// # Errors
/// [`Error::Value`] where the size overflows.
pub fn tiled_len(k: usize, n: usize) -> Result<usize> {
    let padded = n.checked_next_multiple_of(STEP);
    let column = k.div_ceil(4).checked_add(2);
    match (padded, column) {
        (Some(padded), Some(column)) => checked_product("tiled matrix", &[padded, column, 4]),
        _ => Err(Error::Value(format!("tiled matrix: the size {k} by {n} overflows"))),
    }
}

impl<B: AsRef<[u8]>> Tiled<B> {
    /// Takes bytes that are in tiled order already.
    ///
    /// # Errors
    /// [`Error::Value`] where there are too few or too many of them.
    pub fn from_bytes(bytes: B, k: usize, n: usize) -> Result<Self> {
        let (got, expected) = (bytes.as_ref().len(), tiled_len(k, n)?);
        if got != expected {
            bail!("tiled matrix: {k} by {n} takes {expected} bytes, got {got}");
        }
        Ok(Tiled { bytes, k, n })
    }

    /// Rows: the depth of a product.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The bytes in tiled order.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    pub(crate) fn view(&self) -> Tiled<&[u8]> {
        Tiled { bytes: self.bytes(), k: self.k, n: self.n }
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    pub(crate) fn panel(&self, index: usize) -> Panel<'_> {
        let first = index * PANEL;
        let column = 4 * (self.k.div_ceil(4) + 2);
        let width = width_of(self.n, first);
        let bytes = &self.bytes.as_ref()[first * column..][..width * column];
        let (col_sum, rest) = bytes.split_at(4 * width);
        let (scale, codes) = rest.split_at(4 * width);
        Panel {
            width,
            cols: (self.n - first).min(PANEL),
            first,
            col_sum: col_sum.as_chunks().0,
            scale: scale.as_chunks().0,
            codes,
        }
    }

    /// The code of row `k`, column `n`.
    fn code(panel: &Panel, k: usize, j: usize) -> i8 {
        panel.codes[(k / 4 * panel.width + j) * 4 + k % 4] as i8
    }

    /// Writes column `n`'s codes times its scale: one output row of a layer, or
    /// one row of an embedding that shares the layer's weights.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such column or `out` is not K long.
    pub fn dequantize_column(&self, n: usize, out: &mut [f32]) -> Result<()> {
        if n >= self.n || out.len() != self.k {
            bail!("column {n} of {} does not exist, or is not {} long", self.n, out.len());
        }
        let (panel, j) = (self.panel(n / PANEL), n % PANEL);
        let scale = f32::from_le_bytes(panel.scale[j]);
        for (k, out) in out.iter_mut().enumerate() {
            *out = f32::from(Self::code(&panel, k, j)) * scale;
        }
        Ok(())
    }

    /// Each column's scale.
    pub fn scales(&self) -> Vec<f32> {
        (0..self.panels())
            .flat_map(|p| {
                let p = self.panel(p);
                header(p.col_sum, p.scale).1.into_iter().take(p.cols)
            })
            .collect()
    }

    /// The codes back in row order, `(N, K)`.
    ///
    /// # Errors
    /// [`Error::Value`] where `out` is not N × K long.
    pub fn untile_nk(&self, out: &mut [i8]) -> Result<()> {
        if out.len() != self.k * self.n {
            bail!("out: expected {} codes, got {}", self.k * self.n, out.len());
        }
        for (n, row) in out.chunks_exact_mut(self.k.max(1)).enumerate() {
            let (panel, j) = (self.panel(n / PANEL), n % PANEL);
            for (k, out) in row.iter_mut().enumerate() {
                *out = Self::code(&panel, k, j);
            }
        }
        Ok(())
    }
}

impl Tiled<Vec<u8>> {
    /// Tiles a `(K, N)` matrix; all scales are 1.
    ///
    /// # Errors
    /// [`Error::Value`] where the length is not K × N, [`Error::Memory`].
    pub fn from_kn(b: &[i8], k: usize, n: usize) -> Result<Self> {
        let mut bytes = try_zeroed(tiled_len(k, n)?)?;
        tile(b, k, n, n, 1, None, &mut bytes, &Ctl::new(1))?;
        Ok(Tiled { bytes, k, n })
    }
}

/// Tiles the K×N matrix whose element (k, n) is `b[k * stride_k + n *
/// stride_n]`, with `scales` for the columns (None: 1), into `out`.
///
/// # Errors
/// [`Error::Value`] where the lengths do not fit, [`Error::Interrupted`].
pub fn tile(
    b: &[i8],
    k: usize,
    n: usize,
    stride_k: usize,
    stride_n: usize,
    scales: Option<&[f32]>,
    out: &mut [u8],
    ctl: &Ctl,
) -> Result<()> {
    if b.len() != checked_product("matrix", &[k, n])?
        || (stride_k, stride_n) != (n, 1) && (stride_k, stride_n) != (1, k)
    {
        bail!("matrix: {} codes with strides {stride_k}, {stride_n} are not {k} by {n}", b.len());
    }
    if let Some(scales) = scales
        && scales.len() != n
    {
        bail!("scales: expected {n}, got {}", scales.len());
    }
    if out.len() != tiled_len(k, n)? {
        bail!("out: a tiled {k} by {n} matrix takes {} bytes, got {}", tiled_len(k, n)?, out.len());
    }
    if n == 0 {
        return Ok(());
    }
    let column = 4 * (k.div_ceil(4) + 2);
    let panels = Parts::new(out.chunks_mut(PANEL * column));
    ctl.for_each(panels.len(), &|_, panel| {
        let bytes = panels.take(panel);
        bytes.fill(0);
        let first = panel * PANEL;
        let (width, cols) = (width_of(n, first), (n - first).min(PANEL));
        let (header, codes) = bytes.split_at_mut(8 * width);
        let (sums, scale_bytes) = header.split_at_mut(4 * width);
        let mut totals = [0i32; PANEL];
        for (k4, rows) in codes.chunks_exact_mut(4 * width).enumerate() {
            for (j, column) in rows.chunks_exact_mut(4).take(cols).enumerate() {
                for (i, code) in column.iter_mut().enumerate().take(k - 4 * k4) {
                    let value = b[(4 * k4 + i) * stride_k + (first + j) * stride_n];
                    *code = value as u8;
                    totals[j] = totals[j].wrapping_add(i32::from(value));
                }
            }
        }
        for (j, total) in totals.iter().enumerate().take(cols) {
            sums[4 * j..4 * j + 4].copy_from_slice(&total.to_le_bytes());
            let scale = scales.map_or(1.0, |s| s[first + j]);
            scale_bytes[4 * j..4 * j + 4].copy_from_slice(&scale.to_le_bytes());
        }
    })
}
