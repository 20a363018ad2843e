//! Products with one weight, prepared once for many calls.

use super::conv::{SpikeConv2d, spike_conv2d};
use super::pairs::{Pairs, Windows};
use super::scatter::{Scattered, fits, is_few};
use super::{SpikeForm, SpikeWeight, Spikes, Start, Sums, check_ends, spike_matmul};
use crate::error::{bail, checked_product};
use crate::spiking::count_spikes;
use crate::{Ctl, Isa, Result};

/// Outputs of a place up to which inputs are scattered however many they are.
const FEW_OUTPUTS: usize = 32;
/// Elements of a weight up to which it is unpacked to be scattered.
const UNPACKED: usize = 1 << 22;

/// A product, or a convolution, of spikes or counts with a weight. The sums are those of
/// [`spike_matmul`] and [`spike_conv2d`], bit for bit.
///
/// ```
/// use lowbit_kernels::spiking::{SpikeProduct, SpikeWeight, Start, Sums};
/// use lowbit_kernels::{Ctl, Isa};
///
/// let weight = SpikeWeight::from_codes(&[1, 2, -3, 4], 2, 2, 4)?;
/// let product = SpikeProduct::new(weight, None, Start::Zero)?;
/// let mut out = [0; 4];
/// let met = product.run(&[1, 0, 2, 1], 2, Sums::I32(&mut out), Isa::best(), &Ctl::new(1))?;
/// assert_eq!((out, met), ([1, 2, -1, 8], 3));
/// # Ok::<(), lowbit_kernels::Error>(())
/// ```
#[derive(Debug)]
pub struct SpikeProduct {
    weight: SpikeWeight,
    conv: Option<(SpikeConv2d, [usize; 2])>,
    start: Bias,
    prepared: Prepared,
}

#[derive(Debug)]
enum Bias {
    Zero,
    I32(Vec<i32>),
    F32(Vec<f32>),
}

/// What is made of the weight; where nothing is, or inputs are too many or too large, it is taken as it is.
#[derive(Debug)]
enum Prepared {
    No,
    Pairs(Pairs),
    Codes(Scattered<i32>),
    Floats(Scattered<f32>),
}

impl SpikeProduct {
    /// # Errors
    /// As [`spike_matmul`] and [`spike_conv2d`] of a weight and a start that do not fit each other or
    /// the convolution.
    pub fn new(weight: SpikeWeight, conv: Option<SpikeConv2d>, start: Start) -> Result<Self> {
        let (n, codes) = (weight.n(), weight.form() != SpikeForm::Floats);
        let start = match start {
            Start::Zero => Bias::Zero,
            Start::I32(s) if codes && s.len() == n => Bias::I32(s.to_vec()),
            Start::F32(s) if !codes && s.len() == n => Bias::F32(s.to_vec()),
            _ => bail!("bias: expected {n} values of the sums' kind"),
        };
        let conv = conv.map(|conv| conv.output().map(|output| (conv, output))).transpose()?;
        let mut product = SpikeProduct { weight, conv, start, prepared: Prepared::No };
        product.prepared = product.prepare()?;
        Ok(product)
    }

    fn prepare(&self) -> Result<Prepared> {
        let weight = &self.weight;
        let Some((conv, output)) = &self.conv else {
            if weight.form() == SpikeForm::Floats {
                return Ok(Prepared::No);
            }
            return Ok(Pairs::new(weight, None, self.integers())?.map_or(Prepared::No, Prepared::Pairs));
        };
        let depth = checked_product("weight", &[conv.kernel[0], conv.kernel[1], conv.input[2]])?;
        if depth != weight.k() {
            bail!("weight: expected {depth} inputs of an output, got {}", weight.k());
        }
        let places = checked_product("out", &[output[0], output[1], weight.n()])?;
        checked_product("spikes", &conv.input)?;
        let small = weight.k() * weight.n() <= UNPACKED && places <= UNPACKED;
        if weight.form() == SpikeForm::Floats {
            if !small || places == 0 {
                return Ok(Prepared::No);
            }
            return Scattered::new(conv, *output, weight, self.floats()).map(Prepared::Floats);
        }
        if let Some(pairs) = Pairs::new(weight, Some(conv), self.integers())? {
            return Ok(Prepared::Pairs(pairs));
        }
        if !small || places == 0 {
            return Ok(Prepared::No);
        }
        Scattered::new(conv, *output, weight, self.integers()).map(Prepared::Codes)
    }

    fn integers(&self) -> Option<&[i32]> {
        if let Bias::I32(start) = &self.start { Some(start) } else { None }
    }

    fn floats(&self) -> Option<&[f32]> {
        if let Bias::F32(start) = &self.start { Some(start) } else { None }
    }

    /// Inputs of one row, or of one image.
    pub fn inputs(&self) -> usize {
        self.conv.as_ref().map_or(self.weight.k(), |(conv, _)| conv.input.iter().product())
    }

    /// Sums of one row, or of one image.
    pub fn outputs(&self) -> usize {
        self.weight.n() * self.conv.as_ref().map_or(1, |(_, [oh, ow])| oh * ow)
    }

    /// Outputs of a row, or of a place of an image.
    pub fn n(&self) -> usize {
        self.weight.n()
    }

    /// Whether sums are integers.
    pub fn is_exact(&self) -> bool {
        self.weight.form() != SpikeForm::Floats
    }

    /// All rows or images that `bytes` has, a byte an input, none of which exceeds `most`: the pairs of
    /// an input that is not 0 and a row of outputs, or a place of an image, that it reaches.
    ///
    /// # Errors
    /// As [`spike_matmul`] and [`spike_conv2d`].
    pub fn run(&self, bytes: &[u8], most: u8, out: Sums, isa: Isa, ctl: &Ctl) -> Result<u64> {
        let (input, n) = (self.inputs(), self.weight.n());
        let rows = bytes.len().checked_div(input).unwrap_or(0);
        if rows * input != bytes.len() {
            bail!("spikes: expected rows or images of {input} bytes, got {}", bytes.len());
        }
        let places = self.conv.as_ref().map_or(1, |(_, [oh, ow])| oh * ow);
        let m = checked_product("out", &[rows, places])?;
        match (&self.prepared, out) {
            (Prepared::Pairs(pairs), Sums::I32(out)) if let Some(chunk) = pairs.chunk(most) => {
                check_ends(m, n, None, out)?;
                let windows = match &self.conv {
                    Some((conv, output)) => Windows::Conv(conv, *output),
                    None => Windows::Rows,
                };
                pairs.run(bytes, m, &windows, chunk, out, isa, ctl)
            }
            (Prepared::Codes(scattered), Sums::I32(out)) if fits(most, usize::MAX, &self.weight, self.integers()) => {
                check_ends(m, n, None, out)?;
                scattered.run(bytes, most, out, isa, ctl)
            }
            (Prepared::Floats(scattered), Sums::F32(out))
                if n <= FEW_OUTPUTS || self.conv.as_ref().is_some_and(|(conv, _)| is_few(bytes, m, conv, isa)) =>
            {
                check_ends(m, n, None, out)?;
                scattered.run(bytes, most, out, isa, ctl)
            }
            (_, out) => self.run_unprepared(bytes, rows, most, out, isa, ctl),
        }
    }

    fn run_unprepared(&self, bytes: &[u8], rows: usize, most: u8, out: Sums, isa: Isa, ctl: &Ctl) -> Result<u64> {
        let spikes = if most <= 1 { Spikes::Bytes(bytes) } else { Spikes::Counts(bytes) };
        let start = match &self.start {
            Bias::Zero => Start::Zero,
            Bias::I32(start) => Start::I32(start),
            Bias::F32(start) => Start::F32(start),
        };
        if let Some((conv, _)) = &self.conv {
            spike_conv2d(spikes, rows, conv, &self.weight, start, out, isa, ctl)?;
            return conv.pairs(bytes, rows, ctl);
        }
        spike_matmul(spikes, rows, &self.weight, start, out, isa, ctl)?;
        Ok(count_spikes(bytes, isa) as u64)
    }
}
