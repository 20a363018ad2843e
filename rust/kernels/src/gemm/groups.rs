//! The layout in which kernels read weights in groups (FORMATS.md, "Tiled groups").

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use super::tables::{Codebook, Tables, fold, products_that_fit};
use super::tiled::{PANEL, width_of};
use crate::affine::{GroupedRows, most_of};
use crate::error::{bail, checked_product};
use crate::par::Parts;
use crate::{Ctl, Error, Result};

/// Depth of a superstep: what one load of a plane's bytes reaches.
pub(crate) const SUPER: usize = 32;
/// Bytes before the first panel.
const HEADER: usize = 64;
/// As two int32 sums these are far beyond what a column of int8 can reach, so no
/// int8 weight begins with them.
const MAGIC: [u8; 8] = *b"lowbit g";
/// The longest block that is rotated: 16 KiB of floats, within the nearest cache.
const MAX_ROTATION: usize = 4096;

/// How a layer takes its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Rounded to 8 bits, with a scale and a zero point for each row.
    Rows,
    /// The same for each 32 of a row.
    Spans,
    /// As they are.
    Floats,
}

/// How a weight is cut into groups, and what it is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    nbits: u32,
    group_size: usize,
    symmetric: bool,
    rotation: usize,
    inputs: Inputs,
    tables: Option<Tables>,
}

impl Groups {
    /// Codes of 2 to 6 or of 8 bits; of each output row, `group_size` of them, a multiple
    /// of 8, share a scale and, unless symmetric, a zero point.
    ///
    /// # Errors
    /// [`Error::Value`] for other widths and sizes.
    pub fn new(nbits: u32, group_size: usize, symmetric: bool) -> Result<Groups> {
        if !matches!(nbits, 2..=6 | 8) {
            bail!("nbits: expected 2 to 6 or 8, got {nbits}");
        }
        if group_size == 0 || !group_size.is_multiple_of(8) || u32::try_from(group_size).is_err() {
            bail!("group_size: expected a multiple of 8 below 2**32, got {group_size}");
        }
        Ok(Groups { nbits, group_size, symmetric, rotation: 0, inputs: Inputs::Rows, tables: None })
    }

    /// The same of a weight that is rotated, with its inputs, in blocks of this size by a
    /// randomised Hadamard transform, or of one that is not (0).
    ///
    /// # Errors
    /// [`Error::Value`] where it is neither 0 nor a power of two from 8 to 4096.
    pub fn rotated(self, rotation: usize) -> Result<Groups> {
        if rotation != 0 && !(rotation.is_power_of_two() && (8..=MAX_ROTATION).contains(&rotation)) {
            bail!("rotation: expected 0 or a power of two from 8 to {MAX_ROTATION}, got {rotation}");
        }
        Ok(Groups { rotation, ..self })
    }

    /// The same with other inputs.
    pub fn with(self, inputs: Inputs) -> Groups {
        Groups { inputs, ..self }
    }

    /// The same with codes that stand for entries of tables: of 2, 3, 4 or 8 bits, in groups
    /// of a multiple of 16, without zero points, for inputs of 8 bits a row or floats.
    /// Multipliers are signed then, 128 more.
    ///
    /// # Errors
    /// [`Error::Value`] for other forms.
    pub fn with_tables(self, tables: Option<Tables>) -> Result<Groups> {
        if tables.is_some() {
            if !matches!(self.nbits, 2..=4 | 8) {
                bail!("nbits: expected 2, 3, 4 or 8 with a codebook, got {}", self.nbits);
            }
            if !self.group_size.is_multiple_of(16) {
                bail!("group_size: expected a multiple of 16 with a codebook, got {}", self.group_size);
            }
            if !self.symmetric || self.inputs == Inputs::Spans {
                bail!("symmetric, activation: a codebook has no zero points, and no inputs of 8 bits per 32");
            }
        }
        Ok(Groups { tables, ..self })
    }

    /// What the header of a weight says.
    ///
    /// # Errors
    /// [`Error::Value`] where it has none, or one that cannot be.
    pub fn of(bytes: &[u8]) -> Result<Groups> {
        if bytes.len() < HEADER || !Grouped::begins(bytes) {
            bail!("weight: not in tiled groups");
        }
        let symmetric = match word_of(bytes, 4) {
            symmetric @ 0..=1 => symmetric == 1,
            other => bail!("weight: expected 0 or 1 for symmetric, got {other}"),
        };
        let inputs = match word_of(bytes, 7) {
            0 => Inputs::Rows,
            1 => Inputs::Spans,
            2 => Inputs::Floats,
            other => bail!("weight: expected 0 to 2 for inputs, got {other}"),
        };
        let tables = match word_of(bytes, 8) {
            0 => None,
            1 => Some(Tables::Tensor),
            2 => Some(Tables::Row),
            3 => Some(Tables::Group),
            other => bail!("weight: expected 0 to 3 for tables, got {other}"),
        };
        let groups = Groups::new(word_of(bytes, 2), word_of(bytes, 3) as usize, symmetric);
        let groups = groups.and_then(|groups| groups.rotated(word_of(bytes, 6) as usize));
        match groups.and_then(|groups| groups.with(inputs).with_tables(tables)) {
            Ok(groups) => Ok(groups),
            Err(error) => bail!("weight: {error}"),
        }
    }

    /// Bits of a code.
    pub fn nbits(&self) -> u32 {
        self.nbits
    }

    /// Codes that share a scale.
    pub fn group_size(&self) -> usize {
        self.group_size
    }

    /// Whether every zero point is 2^(nbits - 1).
    pub fn symmetric(&self) -> bool {
        self.symmetric
    }

    /// How a layer takes its inputs.
    pub fn inputs(&self) -> Inputs {
        self.inputs
    }

    /// Which codes share a table; None where codes are numbers themselves.
    pub fn tables(&self) -> Option<Tables> {
        self.tables
    }

    /// Inputs that are rotated together; 0 where none are.
    pub fn rotation(&self) -> usize {
        self.rotation
    }

    /// Groups of a row of `k`.
    pub fn count(&self, k: usize) -> usize {
        k.div_ceil(self.group_size)
    }

    /// The greatest code.
    pub(crate) fn qmax(&self) -> u8 {
        u8::MAX >> (8 - self.nbits)
    }

    /// A symmetric group's zero point.
    pub(crate) fn middle(&self) -> u8 {
        1 << (self.nbits - 1)
    }

    /// The greatest multiplier of a group.
    pub(crate) fn most(&self) -> u8 {
        if self.tables.is_some() { 255 } else { most_of(self.nbits) }
    }

    /// Depth whose sums are sure to fit int32, whatever the activations' zero
    /// point: 255 · most · qmax · depth stays below 2^31. At least 512.
    pub(crate) fn depth(&self) -> usize {
        ((i32::MAX / (255 * i32::from(self.most()) * i32::from(self.qmax()))) as usize + 1).next_power_of_two() / 2
    }

    /// Bytes of one column: scale, sum, multipliers, zero points, codes; in eighths,
    /// for zero points of 16 columns are bytes again.
    fn column_bits(&self, k: usize) -> Option<usize> {
        let groups = self.count(k);
        let bits = self.nbits as usize;
        let zeros = if self.symmetric { 0 } else { groups.checked_mul(bits)? };
        let codes = k.checked_next_multiple_of(SUPER)?.checked_mul(bits)?;
        64usize.checked_add(groups.checked_mul(8)?)?.checked_add(zeros)?.checked_add(codes)
    }

    /// Tables of a weight (N, K); 0 where it has none.
    pub fn table_count(&self, k: usize, n: usize) -> Result<usize> {
        match self.tables {
            None => Ok(0),
            Some(Tables::Tensor) => Ok(1),
            Some(Tables::Row) => Ok(n),
            Some(Tables::Group) => checked_product("codebook", &[n, self.count(k)]),
        }
    }

    /// Where the table of an output row's group begins, one of `count`.
    pub(super) fn table_of(&self, row: usize, group: usize, count: usize) -> usize {
        let table = match self.tables {
            None | Some(Tables::Tensor) => 0,
            Some(Tables::Row) => row,
            Some(Tables::Group) => row * count + group,
        };
        table << self.nbits
    }

    /// # Errors
    /// [`Error::Value`] where a weight (N, K) needs other tables.
    pub(super) fn check_codebook(&self, codebook: Option<Codebook>, k: usize, n: usize) -> Result<()> {
        let expected = checked_product("codebook", &[self.table_count(k, n)?, 1 << self.nbits])?;
        if expected > i32::MAX as usize {
            bail!("codebook: expected fewer than 2**31 entries, got a weight that takes {expected}");
        }
        let got = codebook.map_or(0, |codebook| codebook.len());
        let kind = codebook.map(|codebook| match codebook {
            Codebook::Int8(_) => Inputs::Rows,
            Codebook::F32(_) | Codebook::Bf16(_) => Inputs::Floats,
        });
        if got != expected || self.tables.is_some() != codebook.is_some() {
            bail!("codebook: a weight of {n} rows of {k} takes {expected} entries of {} bits, got {got}", self.nbits);
        }
        if kind.is_some_and(|kind| kind != self.inputs) {
            bail!("codebook: expected int8 entries for inputs of 8 bits, and float32 or bfloat16 ones for floats");
        }
        Ok(())
    }

    /// Bytes of a weight (N, K).
    ///
    /// # Errors
    /// [`Error::Value`] where the size overflows, or K is not cut into whole blocks.
    pub fn len(&self, k: usize, n: usize) -> Result<usize> {
        if self.rotation > 0 && !k.is_multiple_of(self.rotation) {
            bail!("weight: rotated in blocks of {}, which do not divide {k} inputs", self.rotation);
        }
        let bits = self.column_bits(k).zip(n.checked_next_multiple_of(16)).and_then(|(bits, n)| bits.checked_mul(n));
        match bits.and_then(|bits| (bits / 8).checked_add(HEADER)) {
            Some(len) if len <= isize::MAX as usize => Ok(len),
            _ => Err(Error::Value(format!("weight: the size {n} by {k} overflows"))),
        }
    }
}

/// The header's `i`-th dword.
fn word_of(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[4 * i + byte]))
}

/// A layer's weight (N, K) in tiled groups.
#[derive(Clone, Copy, Debug)]
pub struct Grouped<'a> {
    bytes: &'a [u8],
    groups: Groups,
    k: usize,
    n: usize,
    pass: usize,
    codebook: Option<Codebook<'a>>,
    /// Products of its integers that fit a sum in 16 bits.
    fits: u8,
}

/// One panel. What a column's code stands for is `(code - zero point) ·
/// multiplier · scale`.
#[derive(Clone, Copy)]
pub(crate) struct GroupPanel<'a> {
    pub groups: Groups,
    pub k: usize,
    /// Depth whose sums fit int32, whatever the rows: all of it, or [`Groups::depth`].
    pub pass: usize,
    /// As of an int8 [`super::tiled::Panel`].
    pub width: usize,
    pub cols: usize,
    pub first: usize,
    pub scale: &'a [[u8; 4]],
    /// Of each column, the sum of `multiplier · (code - zero point)`.
    pub col_sum: &'a [[u8; 4]],
    /// `[group][width]`
    pub multipliers: &'a [u8],
    /// `[group][width]` of nbits each; the codes follow them.
    pub zeros: &'a [u8],
    /// `[superstep][plane]`
    pub codes: &'a [u8],
    /// What the codes stand for, if it is not themselves.
    pub codebook: Option<Codebook<'a>>,
}

impl GroupPanel<'_> {
    /// The zero point of a group's column.
    pub fn zero(&self, group: usize, j: usize) -> u8 {
        if self.groups.symmetric {
            return self.groups.middle();
        }
        let bits = self.groups.nbits as usize;
        let at = (group * self.width + j) * bits;
        let two = u16::from_le_bytes([self.zeros[at / 8], self.zeros[at / 8 + 1]]);
        (two >> (at % 8)) as u8 & self.groups.qmax()
    }

    /// Those of all of the panel's columns.
    pub fn zeros_of(&self, group: usize, to: &mut [f32; PANEL]) {
        if self.groups.symmetric {
            return to.fill(self.groups.middle().into());
        }
        let bits = self.groups.nbits as usize;
        let eights = self.zeros[group * self.width * bits / 8..].windows(8).step_by(bits);
        for (to, eight) in to[..self.width].chunks_exact_mut(8).zip(eights) {
            // Eight zero points lie in as many bytes as one has bits; the codes follow.
            let eight = u64::from_le_bytes(eight.try_into().unwrap_or_default());
            for (i, to) in to.iter_mut().enumerate() {
                *to = f32::from((eight >> (i * bits)) as u8 & self.groups.qmax());
            }
        }
    }

    /// Where a group's column has its table; 0 where it has none of its own, or pads N.
    pub fn table(&self, group: usize, j: usize) -> usize {
        let row = self.first + if j < self.cols { j } else { 0 };
        self.groups.table_of(row, group, self.groups.count(self.k))
    }

    /// Those of all of the panel's columns.
    pub fn tables_of(&self, group: usize, to: &mut [u32; PANEL]) {
        let count = self.groups.count(self.k);
        for (j, to) in to[..self.width].iter_mut().enumerate() {
            let row = self.first + if j < self.cols { j } else { 0 };
            *to = self.groups.table_of(row, group, count) as u32;
        }
    }

    /// A group's multiplier of a column of a weight with tables.
    pub fn signed(&self, group: usize, j: usize) -> i8 {
        (self.multipliers[group * self.width + j] ^ 0x80) as i8
    }

    /// The codes of rows `4 · step` and on, column `j`.
    pub fn quad(&self, step: usize, j: usize) -> [u8; 4] {
        let row = 4 * self.width;
        let bytes = &self.codes[4 * step / SUPER * row * self.groups.nbits as usize..];
        let mut codes = [0; 4];
        for place in places(self.groups.nbits, step % (SUPER / 4)) {
            for (code, byte) in codes.iter_mut().zip(&bytes[place.vector * row + 4 * j..]) {
                *code |= (byte >> place.shift & place.mask) << place.up;
            }
        }
        codes
    }
}

/// Where some of a code's bits are: at `shift` of a byte of the superstep's
/// `vector`-th row of quads; and `up`, where they belong in the code.
pub(crate) struct Place {
    pub vector: usize,
    pub shift: u32,
    pub mask: u8,
    pub up: u32,
}

/// The places of the codes of a superstep's `step`-th four rows: planes of four
/// bits, one of two, one of one, as the width has them.
pub(crate) fn places(nbits: u32, step: usize) -> impl Iterator<Item = Place> {
    let (mut vector, mut up) = (0, 0);
    let planes: &[u32] = match nbits {
        8 => &[4, 4],
        6 => &[4, 2],
        5 => &[4, 1],
        4 => &[4],
        3 => &[2, 1],
        _ => &[2],
    };
    planes.iter().map(move |&bits| {
        let steps = 8 / bits as usize;
        let place =
            Place { vector: vector + step / steps, shift: (step % steps) as u32 * bits, mask: (1 << bits) - 1, up };
        vector += bits as usize;
        up += bits;
        place
    })
}

impl<'a> Grouped<'a> {
    /// Whether bytes begin as a weight in tiled groups does.
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Takes the bytes of a weight in tiled groups, and the tables that its codes look up if
    /// it has any.
    ///
    /// # Errors
    /// [`Error::Value`] where the header, the length or the tables are others.
    pub fn from_bytes(bytes: &'a [u8], k: usize, n: usize, codebook: Option<Codebook<'a>>) -> Result<Self> {
        let groups = Groups::of(bytes)?;
        groups.check_codebook(codebook, k, n)?;
        let expected = groups.len(k, n)?;
        if bytes.len() != expected {
            bail!("weight: {n} rows of {k} at {} bits take {expected} bytes, got {}", groups.nbits, bytes.len());
        }
        // A row less its zero point spans at most 255: it reaches no sum above 255 times
        // that of the positive values, or of the negative ones, whichever is greater.
        let reach = word_of(bytes, 5);
        let fits = reach <= i32::MAX as u32 / 255;
        let pass = match groups.inputs {
            Inputs::Spans => SUPER,
            _ if fits || groups.tables.is_some() => k,
            _ => groups.depth(),
        };
        Ok(Grouped { bytes, groups, k, n, pass: pass.min(k).max(1), codebook, fits: bytes[36] })
    }

    /// Rows: the depth of a product.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// How the codes are grouped.
    pub fn groups(&self) -> Groups {
        self.groups
    }

    /// Depth whose sums fit int32, whatever the rows, or share a scale.
    pub(crate) fn pass(&self) -> usize {
        self.pass
    }

    /// The tables that codes look up.
    pub(crate) fn codebook(&self) -> Option<Codebook<'a>> {
        self.codebook
    }

    /// The entries, where codes stand for integers of tables.
    pub(crate) fn integers(&self) -> Option<&'a [i8]> {
        match self.codebook {
            Some(Codebook::Int8(entries)) => Some(entries),
            _ => None,
        }
    }

    /// How many products of its integers are sure to fit a sum in 16 bits
    /// ([`products_that_fit`]).
    pub(crate) fn fits(&self) -> u8 {
        self.fits
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    pub(crate) fn panel(&self, index: usize) -> GroupPanel<'a> {
        let first = index * PANEL;
        let bits = self.groups.column_bits(self.k).unwrap_or(0); // `len` has checked it
        let width = width_of(self.n, first);
        let bytes = &self.bytes[HEADER + first * bits / 8..][..width * bits / 8];
        let (scale, rest) = bytes.split_at(4 * width);
        let (col_sum, rest) = rest.split_at(4 * width);
        let (multipliers, zeros) = rest.split_at(self.groups.count(self.k) * width);
        let codes = self.k.next_multiple_of(SUPER) * width * self.groups.nbits as usize / 8;
        GroupPanel {
            groups: self.groups,
            k: self.k,
            pass: self.pass,
            width,
            cols: (self.n - first).min(PANEL),
            first,
            scale: scale.as_chunks().0,
            col_sum: col_sum.as_chunks().0,
            multipliers,
            zeros,
            codes: &zeros[zeros.len() - codes..],
            codebook: self.codebook,
        }
    }

    /// Writes output row `n` as the floats that it stands for.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such row or `out` is not K long.
    pub fn dequantize_column(&self, n: usize, out: &mut [f32]) -> Result<()> {
        if n >= self.n || out.len() != self.k {
            bail!("column {n} of {} does not exist, or is not {} long", self.n, out.len());
        }
        let (panel, j) = (self.panel(n / PANEL), n % PANEL);
        let scale = f32::from_le_bytes(panel.scale[j]);
        for (group, out) in out.chunks_mut(self.groups.group_size).enumerate() {
            let zero = i32::from(panel.zero(group, j));
            let multiplier = panel.multipliers[group * panel.width + j];
            let (at, signed) = (panel.table(group, j), panel.signed(group, j));
            for (i, out) in out.chunks_mut(4).enumerate() {
                let codes = panel.quad(group * self.groups.group_size / 4 + i, j);
                for (out, code) in out.iter_mut().zip(codes) {
                    let value = match self.codebook {
                        None => ((i32::from(code) - zero) * i32::from(multiplier)) as f32,
                        Some(Codebook::Int8(entries)) => fold(entries[at + usize::from(code)], signed).into(),
                        Some(codebook) => codebook.entry(at + usize::from(code)) * f32::from(signed),
                    };
                    *out = value * scale;
                }
            }
        }
        Ok(())
    }

    /// Takes the weight apart.
    ///
    /// # Errors
    /// [`Error::Value`] where a length is another.
    pub fn untile(&self, parts: GroupedRows) -> Result<()> {
        let (k, groups) = (self.k, self.groups.count(self.k));
        parts.check(self.n, k, self.groups.group_size)?;
        for n in 0..self.n {
            let (panel, j) = (self.panel(n / PANEL), n % PANEL);
            parts.scale[n] = f32::from_le_bytes(panel.scale[j]);
            for group in 0..groups {
                parts.multipliers[n * groups + group] = panel.multipliers[group * panel.width + j];
                parts.zeros[n * groups + group] = panel.zero(group, j);
            }
            for (step, codes) in parts.codes[n * k..(n + 1) * k].chunks_mut(4).enumerate() {
                codes.copy_from_slice(&panel.quad(step, j)[..codes.len()]);
            }
        }
        Ok(())
    }
}

/// Tiles a weight (N, K) into `out` of [`Groups::len`] bytes.
///
/// # Errors
/// [`Error::Value`] where a length is another or a code is out of range,
/// [`Error::Interrupted`].
pub fn tile_groups(
    parts: &GroupedRows,
    groups: Groups,
    codebook: Option<Codebook>,
    n: usize,
    k: usize,
    out: &mut [u8],
    ctl: &Ctl,
) -> Result<()> {
    let count = groups.count(k);
    groups.check_codebook(codebook, k, n)?;
    parts.check(n, k, groups.group_size)?;
    if out.len() != groups.len(k, n)? {
        bail!("out: expected {} bytes, got {}", groups.len(k, n)?, out.len());
    }
    if parts.codes.iter().chain(&*parts.zeros).any(|&code| code > groups.qmax()) {
        bail!("codes, zero points: expected at most {}", groups.qmax());
    }
    if parts.multipliers.iter().any(|&multiplier| multiplier > groups.most()) {
        bail!("multipliers: expected at most {}", groups.most());
    }
    if groups.tables.is_some() && parts.multipliers.contains(&0) {
        bail!("multipliers: expected -127 to 127 with a codebook, got -128");
    }
    let (header, rest) = out.split_at_mut(HEADER);
    header.fill(0);
    header[..8].copy_from_slice(&MAGIC);
    for (i, word) in [
        (2, groups.nbits),
        (3, groups.group_size as u32),
        (4, u32::from(groups.symmetric)),
        (6, groups.rotation as u32),
        (7, groups.inputs as u32),
        (8, groups.tables.map_or(0, |tables| tables as u32 + 1)),
    ] {
        header[4 * i..4 * i + 4].copy_from_slice(&word.to_le_bytes());
    }
    if n == 0 {
        return Ok(());
    }
    let (codes, bits) = (&*parts.codes, groups.nbits as usize);
    let (multipliers, zeros, scale) = (&*parts.multipliers, &*parts.zeros, &*parts.scale);
    let (reach, fits) = (AtomicU64::new(0), AtomicU8::new(4));
    let panels = Parts::new(rest.chunks_mut((PANEL * groups.column_bits(k).unwrap_or(0) / 8).max(1)));
    ctl.for_each(panels.len(), &|_, p| {
        let bytes = panels.take(p);
        bytes.fill(0);
        let first = p * PANEL;
        let (width, cols) = (width_of(n, first), (n - first).min(PANEL));
        let (scale_to, rest) = bytes.split_at_mut(4 * width);
        let (sums_to, rest) = rest.split_at_mut(4 * width);
        let (multipliers_to, rest) = rest.split_at_mut(count * width);
        let (zeros_to, codes_to) = rest.split_at_mut(if groups.symmetric { 0 } else { count * width * bits / 8 });
        for j in 0..cols {
            let row = first + j;
            scale_to[4 * j..4 * j + 4].copy_from_slice(&scale[row].to_le_bytes());
            // The sums below 0 and above.
            let (mut sum, mut reaches) = (0i32, [0u64; 2]);
            let mut integers = Vec::new();
            for (g, codes) in codes[row * k..(row + 1) * k].chunks(groups.group_size).enumerate() {
                let (multiplier, zero) = (multipliers[row * count + g], zeros[row * count + g]);
                multipliers_to[g * width + j] = multiplier;
                let at = (g * width + j) * bits;
                if !groups.symmetric {
                    let two = (u16::from(zero) << (at % 8)).to_le_bytes();
                    zeros_to[at / 8] |= two[0];
                    if two[1] != 0 {
                        zeros_to[at / 8 + 1] |= two[1];
                    }
                }
                for (i, &code) in codes.iter().enumerate() {
                    let k = g * groups.group_size + i;
                    let part = match codebook {
                        None => i32::from(multiplier) * (i32::from(code) - i32::from(zero)),
                        Some(Codebook::Int8(entries)) => {
                            let at = groups.table_of(row, g, count);
                            integers.push(fold(entries[at + usize::from(code)], (multiplier ^ 0x80) as i8));
                            integers[k].into()
                        }
                        Some(Codebook::F32(_) | Codebook::Bf16(_)) => 0,
                    };
                    sum = sum.wrapping_add(part);
                    reaches[usize::from(part > 0)] += u64::from(part.unsigned_abs());
                    let superstep = &mut codes_to[k / SUPER * 4 * width * bits..];
                    for place in places(groups.nbits, k % SUPER / 4) {
                        superstep[place.vector * 4 * width + 4 * j + k % 4] |=
                            (code >> place.up & place.mask) << place.shift;
                    }
                }
            }
            sums_to[4 * j..4 * j + 4].copy_from_slice(&sum.to_le_bytes());
            fits.fetch_min(products_that_fit(&integers), Relaxed);
            reach.fetch_max(reaches[0].max(reaches[1]), Relaxed);
        }
    })?;
    let reach = u32::try_from(reach.into_inner()).unwrap_or(u32::MAX);
    header[20..24].copy_from_slice(&reach.to_le_bytes());
    if let Some(Codebook::Int8(_)) = codebook {
        header[36] = fits.into_inner();
    }
    Ok(())
}
