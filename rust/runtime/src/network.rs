//! A plan that runs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lowbit_kernels::conv::{self, Out};
use lowbit_kernels::{Ctl, Error, Isa, Parts, Result};

use crate::bail;
use crate::check::AXES;
use crate::graph::{Graph, Tensor};
use crate::memory::ALIGN;
use crate::plan::{Pad, Plan, Slice, Source, Step, Work};

/// A network made ready for one instruction set.
///
/// Any number of threads may call [`run`](Self::run) at a time.
#[derive(Debug)]
pub struct Network {
    plan: Plan,
    isa: Isa,
    /// Blocks of memory that no call is using: one for each thread that has worked at a time.
    blocks: Mutex<Vec<Vec<u8>>>,
}

/// What lives between the samples of a stream, and the block of memory that it works in.
#[derive(Debug)]
pub struct Stream {
    block: Vec<u8>,
    /// The states one after the other, in whole words: those to be read, and those being written.
    now: Vec<u32>,
    next: Vec<u32>,
}

/// A step and the time that it took.
#[derive(Debug, Clone)]
pub struct Timed {
    /// What kind of operation.
    pub kind: &'static str,
    /// The tensor that it writes.
    pub output: String,
    /// Products of one sample.
    pub products: usize,
    /// The time of one sample.
    pub time: Duration,
}

impl Network {
    /// Plans a graph with its constants' bytes, in the graph's order.
    ///
    /// # Errors
    /// [`Error::Value`] naming what does not fit, [`Error::Memory`].
    pub fn new(graph: &Graph, constants: &[&[u8]], isa: Isa) -> Result<Network> {
        let plan = Plan::new(graph, constants, isa)?;
        Ok(Network { plan, isa, blocks: Mutex::new(Vec::new()) })
    }

    /// The tensors that it takes.
    pub fn inputs(&self) -> &[Tensor] {
        &self.plan.inputs
    }

    /// The tensors that it gives.
    pub fn outputs(&self) -> impl Iterator<Item = &Tensor> {
        self.plan.outputs.iter().map(|(tensor, _)| tensor)
    }

    /// Products of one sample.
    pub fn products(&self) -> usize {
        self.plan.steps.iter().map(|step| step.products).sum()
    }

    /// The instruction set that it was planned for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of tensors and scratch memory for each thread that works at a time, and of weights.
    pub fn memory(&self) -> (usize, usize) {
        (self.plan.memory + ALIGN, self.plan.weights)
    }

    /// Runs `n` samples: the bytes of each input and output, one sample after the other. Samples are
    /// shared out to threads; on one thread, no call but the first allocates. After an error outputs may
    /// have been written in part.
    ///
    /// # Errors
    /// [`Error::Value`] where a length does not fit, [`Error::Memory`], [`Error::Interrupted`].
    pub fn run(&self, n: usize, inputs: &[&[u8]], outputs: &mut [&mut [u8]], ctl: &Ctl) -> Result<()> {
        if let Some((state, _)) = self.plan.states.first() {
            bail!("states: expected to run as a stream what keeps {:?} from sample to sample", state.name);
        }
        check_lengths("inputs", n, self.inputs(), inputs.iter().map(|x| x.len()))?;
        check_lengths("outputs", n, self.outputs(), outputs.iter().map(|y| y.len()))?;
        let threads = ctl.threads().min(n);
        if threads <= 1 {
            let mut block = self.block()?;
            let mut result = Ok(());
            for sample in 0..n {
                result = self.sample(&mut block, sample, n, inputs, sample, outputs, (&[], &mut []), None);
                if result.is_err() {
                    break;
                }
                if let Err(stopped) = ctl.check() {
                    result = Err(stopped);
                    break;
                }
            }
            self.give_back(block);
            return result;
        }
        // Some shares for each thread, so that one that is slow delays the others little.
        let share = n.div_ceil(4 * threads);
        let mut rest: Vec<&mut [u8]> = outputs.iter_mut().map(|y| &mut y[..]).collect();
        let mut shares = Vec::new();
        for first in (0..n).step_by(share) {
            let count = share.min(n - first);
            let mut own = Vec::with_capacity(rest.len());
            for (y, tensor) in rest.iter_mut().zip(self.outputs()) {
                let (head, tail) = std::mem::take(y).split_at_mut(count * bytes(tensor));
                own.push(head);
                *y = tail;
            }
            shares.push((first, count, own));
        }
        let shares = Parts::new(shares);
        let failed = Mutex::new(None);
        ctl.for_each(shares.len(), &|_, task| {
            let (first, count, mut own) = shares.take(task);
            let mut work = || -> Result<()> {
                let mut block = self.block()?;
                for sample in 0..count {
                    self.sample(&mut block, first + sample, n, inputs, sample, &mut own, (&[], &mut []), None)?;
                }
                self.give_back(block);
                Ok(())
            };
            if let Err(error) = work() {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        })?;
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// A new stream: its states are 0.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn stream(&self) -> Result<Stream> {
        let len = self.plan.states.iter().map(|(tensor, _)| words(tensor)).sum::<usize>();
        let mut stream = Stream { block: self.block()?, now: Vec::new(), next: Vec::new() };
        for state in [&mut stream.now, &mut stream.next] {
            state.try_reserve_exact(len).map_err(|_| Error::Memory(len.saturating_mul(WORD)))?;
            for (tensor, _) in &self.plan.states {
                let zero = if tensor.dtype.is_code() { tensor.zero_point as u8 } else { 0 };
                state.resize(state.len() + words(tensor), u32::from_ne_bytes([zero; WORD]));
            }
        }
        Ok(stream)
    }

    /// Runs the next `n` samples of a stream, one after the other. Allocates nothing.
    ///
    /// # Errors
    /// As of [`run`](Self::run); the stream then stands where it last succeeded.
    pub fn advance(
        &self,
        stream: &mut Stream,
        n: usize,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        ctl: &Ctl,
    ) -> Result<()> {
        check_lengths("inputs", n, self.inputs(), inputs.iter().map(|x| x.len()))?;
        check_lengths("outputs", n, self.outputs(), outputs.iter().map(|y| y.len()))?;
        let states = self.plan.states.iter().map(|(tensor, _)| words(tensor)).sum::<usize>();
        if stream.now.len() != states || stream.block.len() != self.plan.memory + ALIGN {
            bail!("stream: expected one of this network");
        }
        for sample in 0..n {
            let Stream { block, now, next } = stream;
            let states = (bytemuck::cast_slice(now), bytemuck::cast_slice_mut(next));
            self.sample(block, sample, n, inputs, sample, outputs, states, None)?;
            std::mem::swap(&mut stream.now, &mut stream.next);
            ctl.check()?;
        }
        Ok(())
    }

    /// The time of each step for one sample, the least of `rounds`.
    ///
    /// # Errors
    /// As of [`run`](Self::run).
    pub fn profile(&self, inputs: &[&[u8]], rounds: usize) -> Result<Vec<Timed>> {
        check_lengths("inputs", 1, self.inputs(), inputs.iter().map(|x| x.len()))?;
        let steps = self.plan.steps.iter();
        let mut timed: Vec<_> = steps
            .map(|step| {
                let (kind, output, products) = (step.kind, step.output.clone(), step.products);
                Timed { kind, output, products, time: Duration::MAX }
            })
            .collect();
        let mut own: Vec<_> = self.outputs().map(|tensor| vec![0; bytes(tensor)]).collect();
        let mut outputs: Vec<_> = own.iter_mut().map(|y| &mut y[..]).collect();
        let Stream { mut block, now, mut next } = self.stream()?;
        for _ in 0..rounds.max(1) {
            let mut took = |step: usize, time| timed[step].time = timed[step].time.min(time);
            let states = (bytemuck::cast_slice(&now), bytemuck::cast_slice_mut(&mut next));
            self.sample(&mut block, 0, 1, inputs, 0, &mut outputs, states, Some(&mut took))?;
        }
        self.give_back(block);
        Ok(timed)
    }

    /// A block that no other call is using.
    fn block(&self) -> Result<Vec<u8>> {
        if let Some(block) = self.blocks.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(block);
        }
        let len = self.plan.memory + ALIGN;
        let mut block = Vec::new();
        block.try_reserve_exact(len).map_err(|_| Error::Memory(len))?;
        block.resize(len, 0);
        Ok(block)
    }

    fn give_back(&self, block: Vec<u8>) {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).push(block);
    }

    /// One sample: number `sample` of the inputs, number `to` of the outputs; the states before and after it.
    fn sample(
        &self,
        block: &mut [u8],
        sample: usize,
        n: usize,
        inputs: &[&[u8]],
        to: usize,
        outputs: &mut [&mut [u8]],
        (now, next): (&[u8], &mut [u8]),
        mut took: Option<&mut dyn FnMut(usize, Duration)>,
    ) -> Result<()> {
        let skip = block.as_ptr().align_offset(ALIGN).min(ALIGN);
        let block = &mut block[skip..];
        let input = |i: usize| match inputs.get(i) {
            Some(x) => {
                let len = x.len() / n;
                &x[sample * len..][..len]
            }
            None => {
                let (states, i) = (&self.plan.states, i - inputs.len());
                let first = states[..i].iter().map(|(tensor, _)| words(tensor)).sum::<usize>();
                &now[WORD * first..][..bytes(&states[i].0)]
            }
        };
        for (at, step) in self.plan.steps.iter().enumerate() {
            let start = took.as_ref().map(|_| Instant::now());
            let out = step.to.map(|i| {
                let len = bytes(&self.plan.outputs[i].0);
                &mut outputs[i][to * len..][..len]
            });
            self.step(step, block, &input, out)?;
            if let (Some(took), Some(start)) = (&mut took, start) {
                took(at, start.elapsed());
            }
        }
        let of = |source: &Source| match source {
            Source::Input(i) => input(*i),
            Source::Memory(place) => &block[place.clone()],
            Source::Written => &[],
        };
        for ((tensor, source), y) in self.plan.outputs.iter().zip(outputs) {
            if *source != Source::Written {
                let len = bytes(tensor);
                y[to * len..][..len].copy_from_slice(of(source));
            }
        }
        let mut first = 0;
        for (tensor, source) in &self.plan.states {
            next[first..][..bytes(tensor)].copy_from_slice(of(source));
            first += WORD * words(tensor);
        }
        Ok(())
    }

    /// One step, whose result goes to `given` if the caller gets it.
    fn step<'a>(
        &self,
        step: &Step,
        block: &mut [u8],
        input: &dyn Fn(usize) -> &'a [u8],
        given: Option<&mut [u8]>,
    ) -> Result<()> {
        let place = |source: Option<&Source>| match source {
            Some(Source::Memory(place)) => place.clone(),
            _ => 0..0,
        };
        let (of_a, of_b) = (place(Some(&step.a)), place(step.b.as_ref()));
        // What is added to itself is there once.
        let twice = step.b.as_ref() == Some(&step.a);
        let of_b = if twice { 0..0 } else { of_b };
        let places = [of_a, of_b, step.out.clone(), step.scratch.clone()];
        let Ok([a, b, out, scratch]) = block.get_disjoint_mut(places) else {
            bail!("a plan's tensors lie apart");
        };
        let out = given.unwrap_or(out);
        let a: &[u8] = if let Source::Input(i) = step.a { input(i) } else { a };
        let b: &[u8] = match step.b {
            _ if twice => a,
            Some(Source::Input(i)) => input(i),
            _ => b,
        };
        match &step.work {
            Work::Layer(conv, dtype) => {
                let scratch = cast_mut::<i16>(scratch)?;
                let out = match dtype {
                    crate::Dtype::Int32 => Out::Sums(cast_mut(out)?),
                    crate::Dtype::Float32 => Out::Floats(cast_mut(out)?),
                    _ => Out::Codes(out, step.b.is_some().then_some(b)),
                };
                conv.run(a, out, scratch)
            }
            Work::Add(how) => conv::add(a, b, how, out, self.isa),
            Work::Multiply(how) => conv::multiply(a, b, how, out, self.isa),
            Work::Place(place) => {
                let rows = out.chunks_exact_mut(place.out_row).zip(a.chunks_exact(place.row));
                rows.for_each(|(out, a)| out[place.skip..place.skip + place.row].copy_from_slice(a));
                Ok(())
            }
            Work::AveragePool(window, how) => conv::average_pool(a, window, how, out, self.isa),
            Work::MaxPool(window, kind, bounds) => conv::max_pool(a, window, *kind, *bounds, out, self.isa),
            Work::Softmax(softmax, row) => {
                a.chunks_exact(*row).zip(out.chunks_exact_mut(*row)).try_for_each(|(a, out)| softmax.run(a, out))
            }
            Work::Table(table, signed) => conv::look_up(a, table, *signed, out),
            Work::Pad(pad) => {
                pad.run(a, out);
                Ok(())
            }
            Work::Slice(slice) => {
                slice.run(a, out);
                Ok(())
            }
            Work::Quantize(scale, kind) => conv::quantize(cast(a)?, *scale, *kind, out, self.isa),
            Work::Dequantize(scale, kind) => conv::dequantize(a, *scale, *kind, cast_mut(out)?),
        }
    }
}

impl Pad {
    fn run(&self, x: &[u8], out: &mut [u8]) {
        out.fill(self.zero);
        // Rows of the last axis but one at a time.
        let row = self.input.last().copied().unwrap_or(1);
        let out_row = self.output.last().copied().unwrap_or(1);
        let outer = &self.input[..self.input.len().saturating_sub(1)];
        let rows = outer.last().copied().unwrap_or(1);
        let mut index = [0; AXES];
        for x in x.chunks_exact(rows * row) {
            let at = offset(&self.output, &index, &self.before, None);
            copy_pieces(row, x, row, &mut out[at..], out_row);
            advance(&mut index, outer);
        }
    }
}

impl Slice {
    fn run(&self, x: &[u8], out: &mut [u8]) {
        let element = self.element;
        let row = self.output.last().copied().unwrap_or(1);
        let step = self.step.last().copied().unwrap_or(1) * element;
        let mut index = [0; AXES];
        for out in out.chunks_exact_mut(row * element) {
            let from = offset(&self.input, &index, &self.begin, Some(&self.step)) * element;
            if step == element {
                out.copy_from_slice(&x[from..from + row * element]);
            } else {
                copy_pieces(element, &x[from..], step, out, element);
            }
            advance(&mut index, &self.output);
        }
    }
}

/// Copies pieces of so many bytes, each some bytes on from the one before.
fn copy_pieces(len: usize, x: &[u8], step: usize, out: &mut [u8], out_step: usize) {
    fn of<const LEN: usize>(x: &[u8], step: usize, out: &mut [u8], out_step: usize) {
        for (x, out) in x.chunks(step).zip(out.chunks_mut(out_step)) {
            if let (Some(x), Some(out)) = (x.first_chunk::<LEN>(), out.first_chunk_mut()) {
                *out = *x;
            }
        }
    }
    // A call for each would take longer than the piece.
    match len {
        1 => of::<1>(x, step, out, out_step),
        2 => of::<2>(x, step, out, out_step),
        4 => of::<4>(x, step, out, out_step),
        8 => of::<8>(x, step, out, out_step),
        16 => of::<16>(x, step, out, out_step),
        32 => of::<32>(x, step, out, out_step),
        64 => of::<64>(x, step, out, out_step),
        _ => {
            let pieces = x.chunks(step).zip(out.chunks_mut(out_step));
            pieces.filter(|(x, out)| x.len().min(out.len()) >= len).for_each(|(x, out)| {
                out[..len].copy_from_slice(&x[..len]);
            });
        }
    }
}

/// Where in an array of this shape `index * step + begin` is.
fn offset(shape: &[usize], index: &[usize], begin: &[usize], step: Option<&[usize]>) -> usize {
    (0..shape.len()).fold(0, |at, axis| at * shape[axis] + index[axis] * step.map_or(1, |s| s[axis]) + begin[axis])
}

/// To the next row of an array of this shape.
fn advance(index: &mut [usize], shape: &[usize]) {
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        index[axis] += 1;
        if index[axis] < shape[axis] {
            return;
        }
        index[axis] = 0;
    }
}

/// Bytes of the widest element: each state begins at a multiple of it.
const WORD: usize = size_of::<u32>();

fn words(tensor: &Tensor) -> usize {
    bytes(tensor).div_ceil(WORD)
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.len() * tensor.dtype.size()
}

fn check_lengths<'a>(
    what: &str,
    n: usize,
    tensors: impl IntoIterator<Item = &'a Tensor>,
    lengths: impl ExactSizeIterator<Item = usize>,
) -> Result<()> {
    let got = lengths.len();
    let mut tensors = tensors.into_iter();
    let mut count = 0;
    for (tensor, len) in tensors.by_ref().zip(lengths) {
        count += 1;
        match bytes(tensor).checked_mul(n) {
            Some(expected) if expected == len => {}
            _ => bail!("{what}: expected {n} times {} bytes of {}, got {len}", bytes(tensor), tensor.name),
        }
    }
    if count != got || tensors.next().is_some() {
        bail!("{what}: expected one for each tensor, got {got}");
    }
    Ok(())
}

fn cast<T: bytemuck::Pod>(bytes: &[u8]) -> Result<&[T]> {
    bytemuck::try_cast_slice(bytes).map_err(unaligned)
}

fn cast_mut<T: bytemuck::Pod>(bytes: &mut [u8]) -> Result<&mut [T]> {
    bytemuck::try_cast_slice_mut(bytes).map_err(unaligned)
}

fn unaligned(error: bytemuck::PodCastError) -> Error {
    Error::Value(format!("expected aligned memory: {error}"))
}
