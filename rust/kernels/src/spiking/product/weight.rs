//! The layout in which products of spikes read weights (FORMATS.md, "Tiled spike weights").

use crate::error::{bail, checked_product, try_zeroed};
use crate::par::Parts;
use crate::{Ctl, Error, Result};

/// Columns of a panel.
pub(super) const PANEL: usize = 64;
/// Bytes of a vector: what the order of columns in a row of codes is made for.
const VECTOR: usize = 32;

/// The greatest K: sums of so many codes stay within int32 whatever they are.
pub const MAX_SPIKE_K: usize = (1 << 24) - 1;

/// What a weight's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpikeForm {
    /// Signed codes of 2, 4 or 8 bits.
    Codes(u32),
    /// float32
    Floats,
}

impl SpikeForm {
    pub(super) fn check(self) -> Result<()> {
        match self {
            SpikeForm::Codes(2 | 4 | 8) | SpikeForm::Floats => Ok(()),
            SpikeForm::Codes(nbits) => bail!("nbits: expected 2, 4 or 8, got {nbits}"),
        }
    }

    /// The last panel is padded to a multiple of so many columns.
    fn step(self) -> usize {
        match self {
            SpikeForm::Codes(8) => VECTOR,
            SpikeForm::Codes(_) => PANEL,
            SpikeForm::Floats => 8,
        }
    }

    /// Columns of the panel that begins at `first`, with padding.
    fn width(self, n: usize, first: usize) -> usize {
        (n - first).min(PANEL).next_multiple_of(self.step())
    }

    /// Bits of an element.
    fn bits(self) -> usize {
        match self {
            SpikeForm::Codes(nbits) => nbits as usize,
            SpikeForm::Floats => 32,
        }
    }

    /// Bytes of a panel before its rows, for each column.
    fn head(self) -> usize {
        if self == SpikeForm::Floats { 0 } else { 4 }
    }
}

/// Where column `c` of a panel is in a row of bytes, one code each: the columns of 32 bytes are
/// in the order in which sums of their even and odd bytes come apart into int32 without a shuffle.
pub(super) fn place(c: usize) -> usize {
    c / VECTOR * VECTOR + c % 8 * 4 + c % VECTOR / 8
}

/// A K×N matrix, K inputs and N outputs, as products of spikes read it.
///
/// Columns come in panels of 64, the last one as narrow as the multiple of 32 (codes of 8 bits),
/// 64 (fewer bits) or 8 (floats) that holds the rest. A panel of `w` columns is, in little-endian
/// order: for codes `w` i32 sums of the columns' codes; then the K rows one after the other.
///
/// A row of floats is its `w` f32 in order. A row of codes holds each as `code + 2^(nbits - 1)`.
/// Of 8 bits, column `c` is the byte `32 ⌊c / 32⌋ + 4 (c mod 8) + ⌊(c mod 32) / 8⌋`. Of 4 and 2
/// bits, those bytes are `b = 64 nbits / 8` to a part, and part `i` fills the bits `nbits i` to
/// `nbits (i + 1) - 1` of the row's `b` bytes. Bytes and sums of columns that pad are zero.
#[derive(Clone, Copy, Debug)]
pub struct SpikeWeight<B = Vec<u8>> {
    bytes: B,
    k: usize,
    n: usize,
    form: SpikeForm,
}

/// One panel.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub form: SpikeForm,
    /// Columns with padding.
    pub width: usize,
    /// Columns without.
    pub cols: usize,
    pub first: usize,
    /// Of each column's codes; empty for floats.
    pub sums: &'a [[u8; 4]],
    pub rows: &'a [u8],
    pub row_bytes: usize,
}

/// Bytes of a tiled K×N weight.
///
/// # Errors
/// [`Error::Value`] for a form that there is none of, a K past [`MAX_SPIKE_K`], a size that overflows.
pub fn spike_weight_len(k: usize, n: usize, form: SpikeForm) -> Result<usize> {
    form.check()?;
    if k > MAX_SPIKE_K {
        bail!("weight: expected at most {MAX_SPIKE_K} inputs, got {k}");
    }
    let columns = n / PANEL * PANEL;
    let Some(columns) = columns.checked_add(if columns == n { 0 } else { form.width(n, columns) }) else {
        bail!("weight: {n} outputs overflow");
    };
    // Columns are multiples of 8, so that any bits of them are whole bytes.
    checked_product("weight", &[columns / 8, form.head() * 8 + k * form.bits()])
}

impl<B: AsRef<[u8]>> SpikeWeight<B> {
    /// # Errors
    /// [`Error::Value`] where the bytes are not those of such a weight.
    pub fn from_bytes(bytes: B, k: usize, n: usize, form: SpikeForm) -> Result<Self> {
        let (expected, got) = (spike_weight_len(k, n, form)?, bytes.as_ref().len());
        if got != expected {
            bail!("tiled: a spike weight {k} by {n} takes {expected} bytes, got {got}");
        }
        Ok(SpikeWeight { bytes, k, n, form })
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// What its elements are.
    pub fn form(&self) -> SpikeForm {
        self.form
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    pub(super) fn panel(&self, p: usize) -> Panel<'_> {
        let (form, first) = (self.form, p * PANEL);
        let each = |width| width / 8 * (form.head() * 8 + self.k * form.bits());
        let width = form.width(self.n, first);
        let bytes = &self.bytes.as_ref()[p * each(PANEL)..][..each(width)];
        let (sums, rows) = bytes.split_at(form.head() * width);
        let row_bytes = width / 8 * form.bits();
        Panel { form, width, cols: (self.n - first).min(PANEL), first, sums: sums.as_chunks().0, rows, row_bytes }
    }
}

impl SpikeWeight {
    /// Tiles signed codes, row by row, K×N.
    ///
    /// # Errors
    /// As [`tile_spike_codes`].
    pub fn from_codes(w: &[i8], k: usize, n: usize, nbits: u32) -> Result<Self> {
        let form = SpikeForm::Codes(nbits);
        let mut bytes = try_zeroed(spike_weight_len(k, n, form)?)?;
        tile_spike_codes(w, k, n, nbits, &mut bytes, &Ctl::new(1))?;
        Ok(SpikeWeight { bytes, k, n, form })
    }

    /// Tiles floats, row by row, K×N.
    ///
    /// # Errors
    /// As [`tile_spike_floats`].
    pub fn from_floats(w: &[f32], k: usize, n: usize) -> Result<Self> {
        let form = SpikeForm::Floats;
        let mut bytes = try_zeroed(spike_weight_len(k, n, form)?)?;
        tile_spike_floats(w, k, n, &mut bytes, &Ctl::new(1))?;
        Ok(SpikeWeight { bytes, k, n, form })
    }
}

fn check(len: usize, k: usize, n: usize, form: SpikeForm, tiled: usize) -> Result<()> {
    let expected = spike_weight_len(k, n, form)?;
    if len != checked_product("w", &[k, n])? {
        bail!("w: expected {k} by {n}, got {len} elements");
    }
    if tiled != expected {
        bail!("tiled: a spike weight {k} by {n} takes {expected} bytes, got {tiled}");
    }
    Ok(())
}

/// Bytes of a whole panel; at least 1, to cut by.
fn panel_bytes(k: usize, form: SpikeForm) -> usize {
    (PANEL / 8 * (form.head() * 8 + k * form.bits())).max(1)
}

/// Tiles signed codes, row by row, K×N, into `out`, [`spike_weight_len`] bytes.
///
/// # Errors
/// [`Error::Value`] where lengths do not fit or a code takes more bits; [`Error::Interrupted`].
pub fn tile_spike_codes(w: &[i8], k: usize, n: usize, nbits: u32, out: &mut [u8], ctl: &Ctl) -> Result<()> {
    let form = SpikeForm::Codes(nbits);
    check(w.len(), k, n, form, out.len())?;
    let half = 1i32 << (nbits - 1);
    if let Some(at) = w.iter().position(|&code| !(-half..half).contains(&code.into())) {
        bail!("w: expected codes of {} to {} ({nbits} bits), got {} at flat index {at}", -half, half - 1, w[at]);
    }
    let panels = Parts::new(out.chunks_mut(panel_bytes(k, form)));
    ctl.for_each(panels.len(), &|_, p| {
        let bytes = panels.take(p);
        bytes.fill(0);
        let first = p * PANEL;
        let (width, cols) = (form.width(n, first), (n - first).min(PANEL));
        let (head, rows) = bytes.split_at_mut(4 * width);
        let mut sums = [0i32; PANEL];
        let row_bytes = width / 8 * form.bits();
        for (k, row) in rows.chunks_exact_mut(row_bytes).enumerate() {
            for (c, &code) in w[k * n + first..][..cols].iter().enumerate() {
                sums[c] += i32::from(code);
                let stored = (i32::from(code) + half) as u8;
                row[place(c) % row_bytes] |= stored << (place(c) / row_bytes * nbits as usize);
            }
        }
        for (to, sum) in head.as_chunks_mut().0.iter_mut().zip(sums) {
            *to = sum.to_le_bytes();
        }
    })
}

/// Tiles floats, row by row, K×N, into `out`, [`spike_weight_len`] bytes.
///
/// # Errors
/// [`Error::Value`] where lengths do not fit or a value is NaN or infinite; [`Error::Interrupted`].
pub fn tile_spike_floats(w: &[f32], k: usize, n: usize, out: &mut [u8], ctl: &Ctl) -> Result<()> {
    let form = SpikeForm::Floats;
    check(w.len(), k, n, form, out.len())?;
    if let Some(at) = w.iter().position(|x| !x.is_finite()) {
        let count = w.iter().filter(|x| !x.is_finite()).count();
        bail!("w: expected finite values, got {} at flat index {at} ({count} such in all)", w[at]);
    }
    let panels = Parts::new(out.chunks_mut(panel_bytes(k, form)));
    ctl.for_each(panels.len(), &|_, p| {
        let bytes = panels.take(p);
        let first = p * PANEL;
        let (width, cols) = (form.width(n, first), (n - first).min(PANEL));
        for (k, row) in bytes.chunks_exact_mut(4 * width).enumerate() {
            row.fill(0);
            for (to, x) in row.as_chunks_mut().0.iter_mut().zip(&w[k * n + first..][..cols]) {
                *to = x.to_le_bytes();
            }
        }
    })
}

impl Panel<'_> {
    /// The code of row `k`, column `c`: what the layout says, spelt out.
    #[inline]
    pub(super) fn code(&self, k: usize, c: usize) -> i32 {
        let SpikeForm::Codes(nbits) = self.form else { unreachable!("floats have no codes") };
        let (byte, part) = (place(c) % self.row_bytes, place(c) / self.row_bytes);
        let stored = self.rows[k * self.row_bytes + byte] >> (part as u32 * nbits) & (u8::MAX >> (8 - nbits));
        i32::from(stored) - (1 << (nbits - 1))
    }

    #[inline]
    pub(super) fn float(&self, k: usize, c: usize) -> f32 {
        f32::from_le_bytes(self.rows.as_chunks().0[k * self.width + c])
    }
}

fn untile<T, B: AsRef<[u8]>>(
    weight: &SpikeWeight<B>,
    out: &mut [T],
    ctl: &Ctl,
    get: impl Fn(&Panel, usize, usize) -> T,
) -> Result<()> {
    let n = weight.n;
    check(out.len(), weight.k, n, weight.form, weight.bytes.as_ref().len())?;
    for p in 0..weight.panels() {
        let panel = weight.panel(p);
        for k in 0..weight.k {
            for c in 0..panel.cols {
                out[k * n + panel.first + c] = get(&panel, k, c);
            }
        }
        ctl.check()?;
    }
    Ok(())
}

/// The codes, row by row.
///
/// # Errors
/// [`Error::Value`] for a weight of floats or another length; [`Error::Interrupted`].
pub fn untile_spike_codes<B: AsRef<[u8]>>(weight: &SpikeWeight<B>, out: &mut [i8], ctl: &Ctl) -> Result<()> {
    if weight.form == SpikeForm::Floats {
        return Err(Error::Value("weight: expected codes, got floats".into()));
    }
    untile(weight, out, ctl, |panel, k, c| panel.code(k, c) as i8)
}

/// The floats, row by row.
///
/// # Errors
/// [`Error::Value`] for a weight of codes or another length; [`Error::Interrupted`].
pub fn untile_spike_floats<B: AsRef<[u8]>>(weight: &SpikeWeight<B>, out: &mut [f32], ctl: &Ctl) -> Result<()> {
    if weight.form != SpikeForm::Floats {
        return Err(Error::Value("weight: expected floats, got codes".into()));
    }
    untile(weight, out, ctl, |panel, k, c| panel.float(k, c))
}
