//! Products with panels that are made as they are needed: for families whose weights are no [`Tiled`](super::Tiled).

use super::tiled::{PANEL, Panel};
use super::{Fits, Found, Part, Rows};
use crate::error::{bail, checked_product, try_zeroed};
use crate::{Isa, Result};

/// Memory of a thread for blocks of rows.
#[derive(Debug)]
pub struct PanelScratch {
    isa: Isa,
    /// Rows of a block, at most, and bytes of a row.
    rows: usize,
    k: usize,
    forms: Vec<i32>,
    /// Of a panel that has more columns than are put out.
    sums: Vec<i32>,
}

/// A block of rows of unsigned bytes, to be multiplied with panels.
pub struct PanelRows<'a> {
    isa: Isa,
    rows: Rows<'a>,
    sums: &'a mut Vec<i32>,
}

/// A panel of signed codes, `[ceil(K / 4)][width][4]`, what pads K being 0.
#[derive(Clone, Copy, Debug)]
pub struct MadePanel<'a> {
    /// They do best to begin at a line of 64 bytes.
    pub codes: &'a [u8],
    /// Columns, with what pads them: a multiple of 16 up to 64.
    pub width: usize,
    /// The first of them, which are put out.
    pub cols: usize,
    /// What the columns' sums start from.
    pub start: &'a [i32; PANEL],
}

impl PanelScratch {
    /// For blocks of up to `rows` rows of `k` bytes, to be multiplied with so many panels.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where `k` is 0 or past [`MAX_K_U8`](super::MAX_K_U8), or sizes overflow;
    /// [`crate::Error::Memory`].
    pub fn new(isa: Isa, rows: usize, k: usize, panels: usize) -> Result<Self> {
        if k == 0 || k > super::MAX_K_U8 {
            bail!("k: int32 sums are exact from 1 to {}, got {k}", super::MAX_K_U8);
        }
        checked_product("rows", &[rows, k.next_multiple_of(PANEL)])?;
        let forms = try_zeroed(Rows::scratch_len(isa, rows, k, panels))?;
        Ok(PanelScratch { isa, rows, k, forms, sums: Vec::new() })
    }

    /// Panels that do best to be multiplied together.
    pub fn side_by_side(&self) -> usize {
        Rows::side_by_side(self.isa, self.k)
    }

    /// A block of them.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where `a` is not some rows, or too many.
    pub fn rows<'a>(&'a mut self, a: &'a [u8]) -> Result<PanelRows<'a>> {
        if !a.len().is_multiple_of(self.k) || a.len() / self.k > self.rows {
            bail!("a: expected up to {} rows of {}, got {} elements", self.rows, self.k, a.len());
        }
        let rows = Rows::new(self.isa, a, self.k, 0, &mut self.forms);
        Ok(PanelRows { isa: self.isa, rows, sums: &mut self.sums })
    }
}

impl PanelRows<'_> {
    /// The rows' sums with the columns of up to [`PanelScratch::side_by_side`] panels, into columns from `col` on of each
    /// row of `out`, 64 from panel to panel.
    ///
    /// # Errors
    /// [`crate::Error::Value`] where lengths do not fit, there are more panels or no columns, a width is no multiple
    /// of 16 up to 64; [`crate::Error::Memory`].
    pub fn times(&mut self, panels: &[MadePanel], out: &mut [&mut [i32]], col: usize) -> Result<()> {
        let (k, rows) = (self.rows.k, self.rows.a.len() / self.rows.k);
        let most = Rows::side_by_side(self.isa, k);
        if panels.len() > most {
            bail!("panels: expected up to {most}, got {}", panels.len());
        }
        let mut parts = Vec::with_capacity(panels.len());
        for (i, &MadePanel { codes, width, cols, start }) in panels.iter().enumerate() {
            if !width.is_multiple_of(16) || width > PANEL || cols == 0 || cols > width {
                bail!(
                    "width, cols: expected a multiple of 16 up to {PANEL} and at least a column of it, got {width}, {cols}"
                );
            }
            if codes.len() != k.div_ceil(4) * 4 * width {
                bail!("codes: expected {} for {k} by {width}, got {}", k.div_ceil(4) * 4 * width, codes.len());
            }
            let col = col.saturating_add(i * PANEL);
            if out.len() != rows || out.iter().any(|row| row.len().saturating_sub(col) < cols) {
                bail!("out: expected {rows} rows of at least {cols} columns from {col} on");
            }
            let panel = Panel { width, cols, first: 0, col_sum: &[], scale: &[], codes };
            parts.push(Part { with: Found { panel, excess: &[], fits: Fits::Unknown }, start: *start, col });
        }
        if self.sums.len() < rows * PANEL && parts.iter().any(Part::is_padded) {
            *self.sums = try_zeroed(rows * PANEL)?;
        }
        self.rows.times_parts(self.isa, &parts, out, self.sums);
        Ok(())
    }
}
