//! Spiking networks without cycles: values between layers stay in the caches, sums in the first of them.
//!
//! Each stream goes through all nodes a few steps at a time; what neurons alone read of a layer's sums is
//! written nowhere else. One stream after the other, or some at a time where there are threads for them.
//!
//! ```
//! use lowbit_kernels::spiking::{Each, Leak, Neurons, Reset, SpikeProduct, SpikeWeight, Start};
//! use lowbit_kernels::{Ctl, Isa};
//! use lowbit_runtime::spiking::{AnyCells, Cells, Data, Kind, Piece, Seen, SpikingNetwork, Step, Wanted};
//!
//! // Two inputs, whose weights are 1 and 2, and one neuron that fires from 3 on.
//! let weight = SpikeWeight::from_codes(&[1, 2], 2, 1, 4)?;
//! let product = SpikeProduct::new(weight, None, Start::Zero)?;
//! let neurons = Neurons::new(Leak::None, Each::All(3), Reset::Soft);
//! let cells = AnyCells::I32(Cells::new(&neurons, Each::All(0)));
//! let mut network = SpikingNetwork::new(Kind::Spikes, 2)?;
//! let sums = network.push("sums", Step::Product(Box::new(product)), &[0])?;
//! let spikes = network.push("cells", Step::Neurons { cells, readout: false }, &[sums])?;
//!
//! let mut out = [0; 3];
//! let piece = Piece { input: Seen::Frames(Data::Bytes(&[1, 0, 0, 1, 1, 1])), steps: 3, streams: 1 };
//! let mut wanted = [Wanted { value: spikes, out: Data::Bytes(&mut out), first: [0, 0], streams: 1 }];
//! let counted = network.run(&piece, None, &mut wanted, Isa::best(), &Ctl::new(1))?;
//! assert_eq!((counted.spikes, counted.operations), (vec![2], vec![4]));
//! assert_eq!(out, [0, 1, 1]); // 1, 3 and 3
//! # Ok::<(), lowbit_kernels::Error>(())
//! ```

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use lowbit_kernels::spiking::{
    Adaptation, Current, Each, Leak, Neurons, PoolKind, Reset, SpikeAttention, SpikeConv2d, SpikeProduct, SpikesOut,
    State, Sums, Voltage, count_spikes, greatest_count, simulate, spike_attention, spike_pool2d,
};
use lowbit_kernels::{Ctl, Error, Isa, Parts, Result};

use crate::{bail, within};

/// Bytes of the widest value of spikes or counts that a stream's steps are cut by.
const VALUES: usize = 1 << 16;
/// Bytes of sums that are made before their neurons read them.
const SUMS: usize = 1 << 16;
/// Elements of a node's steps from which one stream's are worth threads.
const LARGE: usize = 1 << 18;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A byte of 0 or 1.
    Spikes,
    /// A byte: how many spikes.
    Counts,
    /// int32
    Sums,
    /// float32
    Numbers,
}

/// Elements of values.
#[derive(Debug)]
pub enum Data<B, I, F> {
    /// Spikes or counts.
    Bytes(B),
    /// Sums.
    I32(I),
    /// Numbers.
    F32(F),
}

/// The elements of an array to read.
pub type Input<'a> = Data<&'a [u8], &'a [i32], &'a [f32]>;
/// The elements of an array to write.
pub type Output<'a> = Data<&'a mut [u8], &'a mut [i32], &'a mut [f32]>;
type Buffer = Data<Vec<u8>, Vec<i32>, Vec<f32>>;

/// A layer's neurons with parameters of their own, and the potential they start from.
#[derive(Debug)]
pub struct Cells<V> {
    leak: u8,
    reset: u8,
    levels: Vec<Level<V>>,
    to: Level<V>,
    threshold: Level<V>,
    current: Option<[Level<f32>; 2]>,
    adaptation: Option<[Level<f32>; 2]>,
    strict: bool,
    refractory: u16,
    fraction: u32,
    start: Level<V>,
}

#[derive(Debug)]
enum Level<V> {
    All(V),
    Channel(Vec<V>),
}

impl<V: Copy> Level<V> {
    fn of(each: Each<'_, V>) -> Self {
        match each {
            Each::All(x) => Level::All(x),
            Each::Channel(x) => Level::Channel(x.to_vec()),
        }
    }

    fn get(&self) -> Each<'_, V> {
        match self {
            Level::All(x) => Each::All(*x),
            Level::Channel(x) => Each::Channel(x),
        }
    }
}

impl<V: Voltage> Cells<V> {
    /// Copies of the parameters, and of the first potential.
    pub fn new(neurons: &Neurons<'_, V>, start: Each<'_, V>) -> Self {
        let (leak, levels) = match neurons.leak {
            Leak::None => (0, vec![]),
            Leak::Keep { beta, drive } => (1, vec![Level::of(beta), Level::of(drive)]),
            Leak::Toward { rate, rest } => (2, vec![Level::of(rate), Level::of(rest)]),
        };
        let none = Each::All(V::default());
        let (reset, to) = match neurons.reset {
            Reset::None => (0, none),
            Reset::Soft => (1, none),
            Reset::SoftLater => (2, none),
            Reset::Hard(to) => (3, to),
            Reset::HardLater(to) => (4, to),
        };
        Cells {
            leak,
            reset,
            levels,
            to: Level::of(to),
            threshold: Level::of(neurons.threshold),
            current: neurons.current.map(|c| [Level::of(c.alpha), Level::of(c.gain)]),
            adaptation: neurons.adaptation.map(|a| [Level::of(a.rho), Level::of(a.jump)]),
            strict: neurons.strict,
            refractory: neurons.refractory,
            fraction: neurons.fraction,
            start: Level::of(start),
        }
    }

    fn neurons(&self) -> Neurons<'_, V> {
        let level = |i: usize| self.levels[i].get();
        let leak = match self.leak {
            0 => Leak::None,
            1 => Leak::Keep { beta: level(0), drive: level(1) },
            _ => Leak::Toward { rate: level(0), rest: level(1) },
        };
        let reset = match self.reset {
            0 => Reset::None,
            1 => Reset::Soft,
            2 => Reset::SoftLater,
            3 => Reset::Hard(self.to.get()),
            _ => Reset::HardLater(self.to.get()),
        };
        let mut neurons = Neurons::new(leak, self.threshold.get(), reset);
        (neurons.strict, neurons.refractory, neurons.fraction) = (self.strict, self.refractory, self.fraction);
        neurons.current = self.current.as_ref().map(|[alpha, gain]| Current { alpha: alpha.get(), gain: gain.get() });
        neurons.adaptation =
            self.adaptation.as_ref().map(|[rho, jump]| Adaptation { rho: rho.get(), jump: jump.get() });
        neurons
    }

    /// What `n` neurons remember before the first step, the potentials in `room`.
    fn memory(&self, n: usize, room: Vec<V>) -> Result<Part<V>> {
        let floats = |has: bool| zeroed(if has { n } else { 0 });
        let mut v = sized(room, n)?;
        match &self.start {
            Level::All(x) => v.fill(*x),
            Level::Channel(x) if !x.is_empty() && n.is_multiple_of(x.len()) => {
                v.chunks_exact_mut(x.len()).for_each(|v| v.copy_from_slice(x));
            }
            Level::Channel(x) => bail!("start: expected a length that divides {n} neurons, got {}", x.len()),
        }
        let left = zeroed(if self.refractory > 0 { n } else { 0 })?;
        Ok(Part { v, i: floats(self.current.is_some())?, a: floats(self.adaptation.is_some())?, left })
    }
}

/// Neurons of floats, or of integers.
#[derive(Debug)]
pub enum AnyCells {
    /// With potentials in float32.
    F32(Cells<f32>),
    /// With integer potentials.
    I32(Cells<i32>),
}

/// What a layer of neurons remembers, of all streams, one behind the other.
#[derive(Clone, Debug)]
pub struct Part<V> {
    /// The potentials.
    pub v: Vec<V>,
    /// The synaptic currents, or none.
    pub i: Vec<f32>,
    /// What thresholds have risen by, or none.
    pub a: Vec<f32>,
    /// Refractory steps left, or none.
    pub left: Vec<u16>,
}

/// As [`AnyCells`].
#[derive(Clone, Debug)]
pub enum AnyPart {
    /// With potentials in float32.
    F32(Part<f32>),
    /// With integer potentials.
    I32(Part<i32>),
}

impl AnyPart {
    /// All of it.
    fn state(&mut self) -> AnyState<'_> {
        fn of<V>(part: &mut Part<V>) -> State<'_, V> {
            State { v: &mut part.v, i: &mut part.i, a: &mut part.a, left: &mut part.left }
        }
        match self {
            AnyPart::F32(part) => AnyState::F32(of(part)),
            AnyPart::I32(part) => AnyState::I32(of(part)),
        }
    }
}

/// What a node does with the values that it reads.
#[derive(Debug)]
pub enum Step {
    /// Sums of a weight's rows.
    Product(Box<SpikeProduct>),
    /// Spikes; or, as a readout, the potentials after each step.
    Neurons {
        /// What they are.
        cells: AnyCells,
        /// Potentials.
        readout: bool,
    },
    /// Windows of spikes or counts.
    Pool {
        /// The sizes.
        windows: SpikeConv2d,
        /// What becomes of a window.
        kind: PoolKind,
    },
    /// H, W, C to C, H, W.
    ChannelsFirst([usize; 3]),
    /// Counts of spikes.
    Add,
    /// Of queries, keys and values.
    Attention {
        /// Channels of a token.
        width: usize,
        /// Heads.
        heads: usize,
    },
    /// Sums over the middle of three axes.
    Total([usize; 3]),
}

#[derive(Debug)]
struct Node {
    label: String,
    step: Step,
    reads: Vec<usize>,
    /// How many nodes with a weight come before it.
    rank: usize,
}

#[derive(Debug)]
struct Value {
    kind: Kind,
    len: usize,
}

/// Nodes in the order that they run; value 0 is the input, value i + 1 is what node i gives.
#[derive(Debug)]
pub struct SpikingNetwork {
    values: Vec<Value>,
    nodes: Vec<Node>,
}

/// Events of all streams: bytes that are not 0 of frames that are mostly 0.
#[derive(Clone, Copy, Debug)]
pub struct Events<'a> {
    /// `(stream · steps + step) · elements + place`, ascending.
    pub keys: &'a [i64],
    /// How many there are at each.
    pub counts: &'a [u8],
    /// Steps of a stream.
    pub steps: usize,
    /// The first step of the piece, and its first stream.
    pub first: [usize; 2],
}

/// What streams see.
#[derive(Debug)]
pub enum Seen<'a> {
    /// steps × streams × elements.
    Frames(Input<'a>),
    /// streams × elements, at every step.
    Still(Input<'a>),
    /// Spikes or counts.
    Events(Events<'a>),
}

/// Some steps of some streams of a run.
#[derive(Debug)]
pub struct Piece<'a> {
    /// What they see.
    pub input: Seen<'a>,
    /// How many steps.
    pub steps: usize,
    /// How many streams.
    pub streams: usize,
}

/// Where a piece's values are kept: in arrays of all steps of all streams.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Which value.
    pub value: usize,
    /// All steps × all streams × elements.
    pub out: Output<'a>,
    /// The piece's first step, and its first stream.
    pub first: [usize; 2],
    /// All streams.
    pub streams: usize,
}

/// What was counted in a piece.
#[derive(Debug, Default)]
pub struct Counted {
    /// Of each layer of neurons, then of each stream of the piece: spikes; of readouts 0.
    pub spikes: Vec<u64>,
    /// Of each layer with a weight, pairs of an input that is not 0 and a synapse.
    pub operations: Vec<u64>,
}

impl SpikingNetwork {
    /// Without nodes.
    ///
    /// # Errors
    /// [`Error::Value`] where the input has no elements.
    pub fn new(kind: Kind, len: usize) -> Result<Self> {
        if len == 0 {
            bail!("input: expected elements, got none");
        }
        Ok(SpikingNetwork { values: vec![Value { kind, len }], nodes: vec![] })
    }

    /// Appends a node that reads earlier values; the number of the value that it gives.
    ///
    /// # Errors
    /// [`Error::Value`], with the label before it, where a value does not fit.
    pub fn push(&mut self, label: &str, step: Step, reads: &[usize]) -> Result<usize> {
        let value = within(|| label.to_owned(), self.value_of(&step, reads))?;
        if value.len == 0 {
            bail!("{label}: expected elements, got none");
        }
        self.values.push(value);
        let rank = self.nodes.iter().filter(|node| matches!(node.step, Step::Product(_))).count();
        self.nodes.push(Node { label: label.to_owned(), step, reads: reads.to_vec(), rank });
        Ok(self.values.len() - 1)
    }

    fn value_of(&self, step: &Step, reads: &[usize]) -> Result<Value> {
        let wanted = match step {
            Step::Add => reads.len().max(1),
            Step::Attention { .. } => 3,
            _ => 1,
        };
        if reads.len() != wanted || reads.iter().any(|&value| value >= self.values.len()) {
            bail!("expected {wanted} of {} values, got {reads:?}", self.values.len());
        }
        let read: Vec<&Value> = reads.iter().map(|&value| &self.values[value]).collect();
        let (kind, len) = (read[0].kind, read[0].len);
        let bytes = |value: &Value| matches!(value.kind, Kind::Spikes | Kind::Counts);
        let fits = |ok: bool| if ok { Ok(()) } else { Err(Error::Value(format!("got {len} elements of {kind:?}"))) };
        Ok(match step {
            Step::Product(product) => {
                let rows = len / product.inputs().max(1);
                fits(bytes(read[0]) && rows * product.inputs() == len)?;
                let Some(len) = rows.checked_mul(product.outputs()) else { bail!("{rows} rows of outputs overflow") };
                Value { kind: if product.is_exact() { Kind::Sums } else { Kind::Numbers }, len }
            }
            Step::Neurons { cells, readout } => {
                fits((kind == Kind::Sums) == matches!(cells, AnyCells::I32(_)))?;
                let own = if kind == Kind::Sums { Kind::Sums } else { Kind::Numbers };
                Value { kind: if *readout { own } else { Kind::Spikes }, len }
            }
            Step::Pool { windows, kind: pool } => {
                let [oh, ow] = windows.output()?;
                fits(bytes(read[0]) && windows.input.iter().try_fold(1usize, |x, &y| x.checked_mul(y)) == Some(len))?;
                let kind = if *pool == PoolKind::Sum { Kind::Counts } else { kind };
                let Some(len) = oh.checked_mul(ow).and_then(|x| x.checked_mul(windows.input[2])) else {
                    bail!("{oh} by {ow} windows overflow")
                };
                Value { kind, len }
            }
            Step::ChannelsFirst(sizes) => {
                fits(bytes(read[0]) && sizes.iter().try_fold(1usize, |x, &y| x.checked_mul(y)) == Some(len))?;
                Value { kind, len }
            }
            Step::Add => {
                fits(read.iter().all(|value| bytes(value) && value.len == len))?;
                Value { kind: Kind::Counts, len }
            }
            Step::Attention { width, heads } => {
                fits(read.iter().all(|value| value.kind == Kind::Spikes) && read[1].len == read[2].len)?;
                fits(*width > 0 && *heads > 0 && width % heads == 0 && read.iter().all(|v| v.len % width == 0))?;
                Value { kind: Kind::Sums, len }
            }
            Step::Total([outer, count, inner]) => {
                let all = outer.checked_mul(*count).and_then(|x| x.checked_mul(*inner));
                fits(kind == Kind::Sums && all == Some(len) && len > 0)?;
                Value { kind, len: outer * inner }
            }
        })
    }

    /// Elements of a value at one step of one stream, and what they are.
    pub fn value(&self, value: usize) -> Option<(Kind, usize)> {
        self.values.get(value).map(|value| (value.kind, value.len))
    }

    /// What all layers of so many streams remember before the first step, in the order of the nodes that are neurons.
    ///
    /// # Errors
    /// [`Error::Memory`]; [`Error::Value`] where a start does not fit.
    pub fn memory(&self, streams: usize) -> Result<Vec<AnyPart>> {
        let mut parts = vec![];
        for (node, value) in self.nodes.iter().zip(&self.values[1..]) {
            let Step::Neurons { cells, .. } = &node.step else { continue };
            let Some(n) = streams.checked_mul(value.len) else { bail!("{streams} streams overflow") };
            // A start is of one stream.
            let part = match cells {
                AnyCells::F32(cells) => AnyPart::F32(cells.memory(n, vec![])?),
                AnyCells::I32(cells) => AnyPart::I32(cells.memory(n, vec![])?),
            };
            parts.push(part);
        }
        Ok(parts)
    }

    /// Takes streams through the steps of a piece; `memory` is that of [`Self::memory`], or what an
    /// earlier piece left; none, from the start, where nobody asks for what is left.
    ///
    /// # Errors
    /// [`Error::Value`] where something does not fit, or a node refuses its inputs; its label comes
    /// first. [`Error::Memory`]; [`Error::Interrupted`]. The memory is then of no use.
    pub fn run(
        &self,
        piece: &Piece,
        memory: Option<&mut [AnyPart]>,
        wanted: &mut [Wanted],
        isa: Isa,
        ctl: &Ctl,
    ) -> Result<Counted> {
        self.check(piece, memory.as_deref(), wanted, isa)?;
        let products = self.nodes.iter().filter(|node| matches!(node.step, Step::Product(_))).count();
        if piece.streams == 0 {
            return Ok(Counted { spikes: vec![], operations: vec![0; products] });
        }
        let Some(layers) = self.neurons().count().checked_mul(piece.streams) else {
            bail!("input: {} streams overflow", piece.streams)
        };
        let zeros = |n: usize| Ok(zeroed::<u64>(n)?.into_iter().map(AtomicU64::new).collect::<Vec<_>>());
        let (operations, spikes) = (zeros(products)?, zeros(layers)?);
        let plan = self.plan(wanted);
        let outs: Vec<Mutex<&mut Wanted>> = wanted.iter_mut().map(Mutex::new).collect();
        let parts = memory.map(|memory| Parts::new(self.cut(memory, piece.streams)));
        let spare: Vec<_> = (0..ctl.threads().min(piece.streams)).map(|_| Mutex::new(Spare::default())).collect();
        let failed = Mutex::new(None);
        let one = |slot: usize, stream: usize, ctl: &Ctl| {
            let mut spare = spare[slot].lock().unwrap_or_else(PoisonError::into_inner);
            // Neurons that are done with all steps leave their potentials' room to others.
            let mut own = match &parts {
                None if piece.steps > plan.steps => Some(self.memory(1)?),
                _ => None,
            };
            let cells = match (&parts, &mut own) {
                (Some(parts), _) => parts.take(stream),
                (None, Some(own)) => self.cut(own, 1).swap_remove(0),
                (None, None) => vec![],
            };
            let values = self.values.iter().map(|_| None).collect();
            let (outs, operations, spikes) = (&outs[..], &operations[..], &spikes[..]);
            let mut stream = Stream {
                network: self,
                plan: &plan,
                piece,
                stream,
                cells,
                outs,
                operations,
                spikes,
                values,
                spare: &mut spare,
                isa,
            };
            stream.run(ctl)
        };
        if ctl.threads() > 1 && piece.streams > 1 {
            ctl.for_each(piece.streams, &|slot, stream| {
                if let Err(error) = one(slot, stream, &Ctl::new(1)) {
                    // The first stream's, whichever thread was faster.
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if failed.as_ref().is_none_or(|(first, _)| stream < *first) {
                        *failed = Some((stream, error));
                    }
                }
            })?;
        } else {
            (0..piece.streams).try_for_each(|stream| one(0, stream, ctl))?;
        }
        if let Some((_, error)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let of = |counts: Vec<AtomicU64>| counts.into_iter().map(AtomicU64::into_inner).collect();
        Ok(Counted { spikes: of(spikes), operations: of(operations) })
    }

    fn check(&self, piece: &Piece, memory: Option<&[AnyPart]>, wanted: &[Wanted], isa: Isa) -> Result<()> {
        let input = &self.values[0];
        let product = |sizes: [usize; 3]| sizes.iter().try_fold(1usize, |x, &y| x.checked_mul(y));
        let (frames, steps) = match &piece.input {
            Seen::Frames(frames) => (Some(frames), piece.steps),
            Seen::Still(frames) => (Some(frames), 1),
            Seen::Events(events) => {
                let bytes = matches!(input.kind, Kind::Spikes | Kind::Counts);
                if !bytes || events.keys.len() != events.counts.len() {
                    bail!("input: expected as many counts as keys, got {}", events.counts.len());
                }
                let [Some(_), Some(streams)] =
                    [events.first[0].checked_add(piece.steps), events.first[1].checked_add(piece.streams)]
                else {
                    bail!("input: the first step overflows")
                };
                if product([streams, events.steps, input.len]).is_none_or(|all| all > i64::MAX as usize) {
                    bail!("input: {streams} streams of {} steps overflow", events.steps);
                }
                (None, 0)
            }
        };
        let len = match (frames, input.kind) {
            (None, _) => 0,
            (Some(Data::Bytes(x)), Kind::Spikes | Kind::Counts) => x.len(),
            (Some(Data::I32(x)), Kind::Sums) => x.len(),
            (Some(Data::F32(x)), Kind::Numbers) => x.len(),
            _ => bail!("input: expected {:?}", input.kind),
        };
        if product([steps, piece.streams, input.len]) != Some(len) {
            bail!("input: expected {steps} steps of {} streams of {}, got {len}", piece.streams, input.len);
        }
        if let (Some(Data::Bytes(x)), Kind::Spikes) = (frames, input.kind)
            && greatest_count(x, isa) > 1
        {
            bail!("input: expected spikes, 0 or 1, got counts");
        }
        let expected = self.memory(0)?;
        let lens = self.neurons().map(|value| value.len.checked_mul(piece.streams));
        let fits = memory.is_none_or(|memory| {
            expected.len() == memory.len()
                && memory.iter().zip(&expected).zip(lens).all(|((part, like), len)| match (part, like) {
                    (AnyPart::F32(part), AnyPart::F32(_)) => Some(part.v.len()) == len,
                    (AnyPart::I32(part), AnyPart::I32(_)) => Some(part.v.len()) == len,
                    _ => false,
                })
        });
        if !fits {
            bail!("memory: expected that of {} streams", piece.streams);
        }
        for wanted in wanted {
            let Some(value) = self.values.get(wanted.value) else {
                bail!("wanted: there is no value {}", wanted.value)
            };
            let len = match (&wanted.out, value.kind) {
                (Data::Bytes(x), Kind::Spikes | Kind::Counts) => x.len(),
                (Data::I32(x), Kind::Sums) => x.len(),
                (Data::F32(x), Kind::Numbers) => x.len(),
                _ => bail!("wanted: expected an array of {:?}", value.kind),
            };
            let ends = [wanted.first[0].checked_add(piece.steps), wanted.first[1].checked_add(piece.streams)];
            let [Some(steps), Some(streams)] = ends else { bail!("wanted: the first step overflows") };
            if streams > wanted.streams || product([steps, wanted.streams, value.len]).is_none_or(|all| all > len) {
                bail!("wanted: expected {steps} steps of at least {streams} streams, got {len} elements");
            }
        }
        Ok(())
    }

    fn neurons(&self) -> impl Iterator<Item = &Value> {
        let nodes = self.nodes.iter().zip(&self.values[1..]);
        nodes.filter(|(node, _)| matches!(node.step, Step::Neurons { .. })).map(|(_, value)| value)
    }

    /// Which sums neurons alone read, and the last reader of each value.
    fn plan(&self, wanted: &[Wanted]) -> Plan {
        let mut readers = vec![0; self.values.len()];
        let mut last = vec![usize::MAX; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for &value in &node.reads {
                readers[value] += 1;
                last[value] = i;
            }
        }
        for wanted in wanted {
            readers[wanted.value] += 2;
        }
        let mut fused = vec![false; self.nodes.len()];
        for node in &self.nodes {
            if let (Step::Neurons { .. }, Some(product)) = (&node.step, node.reads[0].checked_sub(1))
                && matches!(self.nodes[product].step, Step::Product(_))
                && readers[product + 1] == 1
            {
                fused[product] = true;
            }
        }
        // A product that waits for its neurons keeps what it reads.
        for (i, node) in self.nodes.iter().enumerate() {
            if let Some(product) = node.reads[0].checked_sub(1)
                && fused[product]
            {
                let read = self.nodes[product].reads[0];
                last[read] = last[read].max(i);
            }
        }
        let bytes = |value: &&Value| matches!(value.kind, Kind::Spikes | Kind::Counts);
        let widest = self.values.iter().filter(bytes).map(|value| value.len).max().unwrap_or(1);
        Plan { fused, last, steps: (VALUES / widest).max(1) }
    }

    /// Each stream's part of the memory.
    fn cut<'a>(&self, memory: &'a mut [AnyPart], streams: usize) -> Vec<Vec<AnyState<'a>>> {
        fn parts<'a, V>(part: &'a mut Part<V>, streams: usize) -> Vec<State<'a, V>> {
            fn cut<T>(all: &mut [T], streams: usize) -> impl Iterator<Item = &mut [T]> {
                let each = all.len() / streams;
                all.chunks_mut(each.max(1)).chain(std::iter::repeat_with(|| &mut [][..]))
            }
            let v = cut(&mut part.v, streams).take(streams);
            let rest = cut(&mut part.i, streams).zip(cut(&mut part.a, streams)).zip(cut(&mut part.left, streams));
            v.zip(rest).map(|(v, ((i, a), left))| State { v, i, a, left }).collect()
        }
        let mut all: Vec<Vec<AnyState>> = (0..streams).map(|_| vec![]).collect();
        for part in memory {
            match part {
                AnyPart::F32(part) => {
                    all.iter_mut().zip(parts(part, streams)).for_each(|(to, state)| to.push(AnyState::F32(state)));
                }
                AnyPart::I32(part) => {
                    all.iter_mut().zip(parts(part, streams)).for_each(|(to, state)| to.push(AnyState::I32(state)));
                }
            }
        }
        all
    }
}

struct Plan {
    /// Of each node, whether its neurons take its sums as they come.
    fused: Vec<bool>,
    /// Of each value, the last node that reads it.
    last: Vec<usize>,
    /// Steps that go through all nodes together.
    steps: usize,
}

enum AnyState<'a> {
    F32(State<'a, f32>),
    I32(State<'a, i32>),
}

/// Memory to use again.
#[derive(Default)]
struct Spare {
    bytes: Vec<Vec<u8>>,
    i32: Vec<Vec<i32>>,
    f32: Vec<Vec<f32>>,
}

fn zeroed<T: Copy + Default>(n: usize) -> Result<Vec<T>> {
    sized(Vec::new(), n)
}

/// A vector with another length, its old elements of no use.
fn sized<T: Copy + Default>(mut old: Vec<T>, n: usize) -> Result<Vec<T>> {
    if old.len() < n {
        old.clear();
        old.try_reserve_exact(n).map_err(|_| Error::Memory(n.saturating_mul(size_of::<T>())))?;
    }
    old.resize(n, T::default());
    Ok(old)
}

/// A value of some steps of one stream.
struct Held {
    data: Buffer,
    /// One step stands for all.
    still: bool,
    /// No byte exceeds it.
    most: u8,
}

impl Held {
    fn bytes(&self) -> &[u8] {
        if let Data::Bytes(x) = &self.data { x } else { unreachable!("kinds were checked when the node was pushed") }
    }

    fn sums(&self) -> &[i32] {
        if let Data::I32(x) = &self.data { x } else { unreachable!("kinds were checked when the node was pushed") }
    }
}

/// One stream on its way through a piece.
struct Stream<'a, 'o, 'w> {
    network: &'a SpikingNetwork,
    plan: &'a Plan,
    piece: &'a Piece<'a>,
    stream: usize,
    cells: Vec<AnyState<'a>>,
    outs: &'o [Mutex<&'o mut Wanted<'w>>],
    operations: &'a [AtomicU64],
    spikes: &'a [AtomicU64],
    values: Vec<Option<Held>>,
    spare: &'a mut Spare,
    isa: Isa,
}

impl Stream<'_, '_, '_> {
    fn run(&mut self, ctl: &Ctl) -> Result<()> {
        let network = self.network;
        for begin in (0..self.piece.steps).step_by(self.plan.steps) {
            let steps = self.plan.steps.min(self.piece.steps - begin);
            let input = self.input(begin, steps)?;
            self.keep(0, input, begin, steps);
            let mut neurons = 0;
            for i in 0..network.nodes.len() {
                if !self.plan.fused[i] {
                    let node = &network.nodes[i];
                    let held = within(|| node.label.clone(), self.node(i, &mut neurons, steps, ctl))?;
                    self.keep(i + 1, held, begin, steps);
                }
                for value in 0..=i {
                    if self.plan.last[value] == i {
                        self.drop(value);
                    }
                }
                ctl.check()?;
            }
            (0..self.values.len()).for_each(|value| self.drop(value));
        }
        Ok(())
    }

    /// The input's steps.
    fn input(&mut self, begin: usize, steps: usize) -> Result<Held> {
        fn copy<T: Copy>(x: &[T], stride: usize, at: usize, out: &mut [T], len: usize) {
            for (t, out) in out.chunks_exact_mut(len).enumerate() {
                out.copy_from_slice(&x[t * stride + at..][..len]);
            }
        }
        let (piece, value) = (self.piece, &self.network.values[0]);
        let (len, stride) = (value.len, piece.streams * value.len);
        let (frames, still) = match &piece.input {
            Seen::Frames(frames) => (frames, false),
            Seen::Still(frames) => (frames, true),
            Seen::Events(events) => return self.events(events, begin, steps),
        };
        let (steps, at) = if still { (1, 0) } else { (steps, begin * stride) };
        let at = at + self.stream * len;
        let mut data = self.buffer(value.kind, steps * len)?;
        let mut most = 1;
        match (frames, &mut data) {
            (Data::Bytes(x), Data::Bytes(out)) => {
                copy(x, stride, at, out, len);
                if value.kind == Kind::Counts {
                    most = greatest_count(out, self.isa);
                }
            }
            (Data::I32(x), Data::I32(out)) => copy(x, stride, at, out, len),
            (Data::F32(x), Data::F32(out)) => copy(x, stride, at, out, len),
            _ => unreachable!("checked before the run"),
        }
        Ok(Held { data, still, most })
    }

    /// Frames of events.
    fn events(&mut self, events: &Events, begin: usize, steps: usize) -> Result<Held> {
        let value = &self.network.values[0];
        let mut data = self.buffer(value.kind, steps * value.len)?;
        let Data::Bytes(out) = &mut data else { unreachable!("checked before the run") };
        out.fill(0);
        let first = (events.first[0] + begin).min(events.steps);
        let inside = steps.min(events.steps - first) * value.len;
        let stream = events.first[1] + self.stream;
        // Checked before the run: keys of all streams fit.
        let base = ((stream * events.steps + first) * value.len) as i64;
        let from = events.keys.partition_point(|&key| key < base);
        let mut most = 1;
        for (key, &count) in events.keys[from..].iter().zip(&events.counts[from..]) {
            let place = key.wrapping_sub(base);
            if place >= inside as i64 {
                break;
            }
            // Keys that do not ascend are lost, no more.
            if let Some(out) = usize::try_from(place).ok().and_then(|place| out.get_mut(place)) {
                *out = count;
            }
            most = most.max(count);
        }
        if value.kind == Kind::Spikes && most > 1 {
            bail!("input: expected spikes, 0 or 1, got {most}");
        }
        Ok(Held { data, still: false, most })
    }

    fn buffer(&mut self, kind: Kind, len: usize) -> Result<Buffer> {
        Ok(match kind {
            Kind::Spikes | Kind::Counts => Data::Bytes(sized(self.spare.bytes.pop().unwrap_or_default(), len)?),
            Kind::Sums => Data::I32(sized(self.spare.i32.pop().unwrap_or_default(), len)?),
            Kind::Numbers => Data::F32(sized(self.spare.f32.pop().unwrap_or_default(), len)?),
        })
    }

    fn give_back(&mut self, data: Buffer) {
        match data {
            Data::Bytes(x) => self.spare.bytes.push(x),
            Data::I32(x) => self.spare.i32.push(x),
            Data::F32(x) => self.spare.f32.push(x),
        }
    }

    fn drop(&mut self, value: usize) {
        if let Some(held) = self.values[value].take() {
            self.give_back(held.data);
        }
    }

    /// Holds a value for its readers, and copies it to where it is wanted.
    fn keep(&mut self, value: usize, held: Held, begin: usize, steps: usize) {
        fn copy<T: Copy>(x: &[T], len: usize, still: bool, steps: usize, out: &mut [T], stride: usize) {
            for t in 0..steps {
                let from = if still { 0 } else { t * len };
                out[t * stride..][..len].copy_from_slice(&x[from..][..len]);
            }
        }
        let len = self.network.values[value].len;
        for out in self.outs {
            let mut wanted = out.lock().unwrap_or_else(PoisonError::into_inner);
            if wanted.value != value {
                continue;
            }
            let stride = wanted.streams * len;
            let at = (wanted.first[0] + begin) * stride + (wanted.first[1] + self.stream) * len;
            match (&held.data, &mut wanted.out) {
                (Data::Bytes(x), Data::Bytes(out)) => copy(x, len, held.still, steps, &mut out[at..], stride),
                (Data::I32(x), Data::I32(out)) => copy(x, len, held.still, steps, &mut out[at..], stride),
                (Data::F32(x), Data::F32(out)) => copy(x, len, held.still, steps, &mut out[at..], stride),
                _ => unreachable!("checked before the run"),
            }
        }
        self.values[value] = Some(held);
    }

    fn read(&self, node: usize, input: usize) -> &Held {
        let value = self.network.nodes[node].reads[input];
        self.values[value].as_ref().expect("values are held until their last reader")
    }

    /// What node `i` gives; `neurons`: layers of them so far.
    fn node(&mut self, i: usize, neurons: &mut usize, steps: usize, ctl: &Ctl) -> Result<Held> {
        let network = self.network;
        let (node, value) = (&network.nodes[i], &network.values[i + 1]);
        let len = value.len;
        if let Step::Neurons { cells, readout } = &node.step {
            let state = *neurons;
            *neurons += 1;
            return self.neurons(i, cells, state, *readout, steps, ctl);
        }
        let still = (0..node.reads.len()).all(|input| self.read(i, input).still);
        let own = if still { 1 } else { steps };
        let mut data = self.buffer(value.kind, own * len)?;
        let mut most = 1;
        let isa = self.isa;
        match (&node.step, &mut data) {
            (Step::Product(product), data) => {
                let out = match data {
                    Data::I32(out) => Sums::I32(out),
                    Data::F32(out) => Sums::F32(out),
                    Data::Bytes(_) => unreachable!("sums are no bytes"),
                };
                let x = self.read(i, 0);
                let met = product.run(x.bytes(), x.most, out, isa, inner(ctl, own * len))?;
                self.count(i, product, met, if still { steps } else { 1 });
            }
            (Step::Pool { windows, kind }, Data::Bytes(out)) => {
                spike_pool2d(self.read(i, 0).bytes(), windows, *kind, out, isa)?;
                most = if value.kind == Kind::Counts { greatest_count(out, self.isa) } else { 1 };
            }
            (Step::ChannelsFirst([h, w, c]), Data::Bytes(out)) => {
                let x = self.read(i, 0);
                for (x, out) in x.bytes().chunks_exact(len).zip(out.chunks_exact_mut(len)) {
                    for (channel, out) in out.chunks_exact_mut(h * w).enumerate() {
                        out.iter_mut().zip(x[channel..].iter().step_by(*c)).for_each(|(out, &x)| *out = x);
                    }
                }
                most = x.most;
            }
            (Step::Add, Data::Bytes(out)) => {
                most = self.add(i, out, len, own)?;
            }
            (Step::Attention { width, heads }, Data::I32(out)) => {
                let at = |input: usize, t: usize| {
                    let held = self.read(i, input);
                    let len = network.values[node.reads[input]].len;
                    &held.bytes()[if held.still { 0 } else { t * len }..][..len]
                };
                for (t, out) in out.chunks_exact_mut(len).enumerate() {
                    let (query, key, value) = (at(0, t), at(1, t), at(2, t));
                    spike_attention(&SpikeAttention { query, key, value, width: *width, heads: *heads }, out, isa)?;
                }
            }
            (Step::Total([_, count, inner]), Data::I32(out)) => {
                let x = self.read(i, 0).sums();
                for (block, out) in x.chunks_exact(count * inner).zip(out.chunks_exact_mut(*inner)) {
                    for (j, out) in out.iter_mut().enumerate() {
                        let total: i64 = block[j..].iter().step_by(*inner).map(|&x| i64::from(x)).sum();
                        let Ok(total) = i32::try_from(total) else {
                            bail!("expected sums that int32 holds, got more");
                        };
                        *out = total;
                    }
                }
            }
            _ => unreachable!("kinds were checked when the node was pushed"),
        }
        Ok(Held { data, still, most })
    }

    fn add(&self, i: usize, out: &mut [u8], len: usize, steps: usize) -> Result<u8> {
        let reads = 0..self.network.nodes[i].reads.len();
        let bound: usize = reads.clone().map(|input| usize::from(self.read(i, input).most)).sum();
        for (t, out) in (0..steps).zip(out.chunks_exact_mut(len)) {
            let at = |input: usize| {
                let held = self.read(i, input);
                &held.bytes()[if held.still { 0 } else { t * len }..][..len]
            };
            if bound > 255 {
                for j in 0..len {
                    let total: usize = reads.clone().map(|input| usize::from(at(input)[j])).sum();
                    let Ok(total) = u8::try_from(total) else {
                        bail!("expected counts of at most 255 spikes, got {total}");
                    };
                    out[j] = total;
                }
                continue;
            }
            out.copy_from_slice(at(0));
            for input in reads.clone().skip(1) {
                out.iter_mut().zip(at(input)).for_each(|(out, &x)| *out = out.wrapping_add(x));
            }
        }
        Ok(greatest_count(out, self.isa))
    }

    fn count(&self, node: usize, product: &SpikeProduct, met: u64, times: usize) {
        self.operations[self.network.nodes[node].rank].fetch_add(met * product.n() as u64 * times as u64, Relaxed);
    }

    fn neurons(
        &mut self,
        i: usize,
        cells: &AnyCells,
        state: usize,
        readout: bool,
        steps: usize,
        ctl: &Ctl,
    ) -> Result<Held> {
        let len = self.network.values[i + 1].len;
        let Data::Bytes(mut spikes) = self.buffer(Kind::Spikes, steps * len)? else { unreachable!("spikes are bytes") };
        let kind = if matches!(cells, AnyCells::I32(_)) { Kind::Sums } else { Kind::Numbers };
        let mut trace = if readout { Some(self.buffer(kind, steps * len)?) } else { None };
        let each = (SUMS / 4 / len.max(1)).clamp(1, steps.max(1));
        let mut sums = self.buffer(kind, each * len)?;
        let mut own = if self.cells.is_empty() { Some(self.part(cells, len)?) } else { None };
        let ctl = inner(ctl, steps * len);
        for begin in (0..steps).step_by(each) {
            let block = begin..steps.min(begin + each);
            self.sums(i, block.clone(), begin == 0, steps, &mut sums, ctl)?;
            let (at, n) = (begin * len, block.len() * len);
            let out = SpikesOut::Bytes(&mut spikes[at..][..n]);
            let trace = trace.as_mut();
            match &mut own {
                None => through(&sums, cells, &mut self.cells[state], out, trace, at, n, self.isa, ctl)?,
                Some(part) => through(&sums, cells, &mut part.state(), out, trace, at, n, self.isa, ctl)?,
            }
        }
        self.give_back(sums);
        match own {
            Some(AnyPart::F32(part)) => self.spare.f32.push(part.v),
            Some(AnyPart::I32(part)) => self.spare.i32.push(part.v),
            None => {}
        }
        if let Some(data) = trace {
            self.give_back(Data::Bytes(spikes));
            return Ok(Held { data, still: false, most: 1 });
        }
        let fired = count_spikes(&spikes, self.isa);
        self.spikes[state * self.piece.streams + self.stream].fetch_add(fired as u64, Relaxed);
        Ok(Held { data: Data::Bytes(spikes), still: false, most: 1 })
    }

    /// What neurons of one stream remember before the first step.
    fn part(&mut self, cells: &AnyCells, n: usize) -> Result<AnyPart> {
        Ok(match cells {
            AnyCells::F32(cells) => AnyPart::F32(cells.memory(n, self.spare.f32.pop().unwrap_or_default())?),
            AnyCells::I32(cells) => AnyPart::I32(cells.memory(n, self.spare.i32.pop().unwrap_or_default())?),
        })
    }

    /// What the neurons of node `i` read at some steps; of a product that waited, computed now.
    fn sums(
        &self,
        i: usize,
        block: std::ops::Range<usize>,
        first: bool,
        steps: usize,
        sums: &mut Buffer,
        ctl: &Ctl,
    ) -> Result<()> {
        let (network, source) = (self.network, self.network.nodes[i].reads[0]);
        let len = network.values[source].len;
        if let Some(product) = source.checked_sub(1).filter(|&node| self.plan.fused[node]) {
            let Step::Product(step) = &network.nodes[product].step else { unreachable!("products alone wait") };
            let x = self.read(product, 0);
            let input = network.values[network.nodes[product].reads[0]].len;
            let rows = if x.still { 0..1 } else { block.clone() };
            if x.still && !first {
                return Ok(());
            }
            let out = match sums {
                Data::I32(out) => Sums::I32(&mut out[..rows.len() * len]),
                Data::F32(out) => Sums::F32(&mut out[..rows.len() * len]),
                Data::Bytes(_) => unreachable!("sums are no bytes"),
            };
            let bytes = &x.bytes()[rows.start * input..rows.end * input];
            let label = || network.nodes[product].label.clone();
            let met = within(label, step.run(bytes, x.most, out, self.isa, ctl))?;
            self.count(product, step, met, if x.still { steps } else { 1 });
            if x.still {
                repeat(sums, len, block.len());
            }
            return Ok(());
        }
        let x = self.read(i, 0);
        let part = if x.still { 0..len } else { block.start * len..block.end * len };
        match (&x.data, &mut *sums) {
            (Data::F32(x), Data::F32(out)) => out[..part.len()].copy_from_slice(&x[part]),
            (Data::I32(x), Data::I32(out)) => out[..part.len()].copy_from_slice(&x[part]),
            (Data::Bytes(x), Data::F32(out)) => {
                out.iter_mut().zip(&x[part]).for_each(|(out, &x)| *out = x.into());
            }
            _ => unreachable!("kinds were checked when the node was pushed"),
        }
        if x.still {
            repeat(sums, len, block.len());
        }
        Ok(())
    }
}

/// Neurons through steps of `n` sums, the first of which is at `at` of the trace.
fn through(
    sums: &Buffer,
    cells: &AnyCells,
    state: &mut AnyState,
    spikes: SpikesOut,
    trace: Option<&mut Buffer>,
    at: usize,
    n: usize,
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    match (sums, cells, state) {
        (Data::F32(x), AnyCells::F32(cells), AnyState::F32(state)) => {
            let trace = trace.map(|t| if let Data::F32(t) = t { &mut t[at..][..n] } else { &mut [] });
            simulate(&x[..n], &cells.neurons(), state, None, spikes, trace, isa, ctl)
        }
        (Data::I32(x), AnyCells::I32(cells), AnyState::I32(state)) => {
            let trace = trace.map(|t| if let Data::I32(t) = t { &mut t[at..][..n] } else { &mut [] });
            simulate(&x[..n], &cells.neurons(), state, None, spikes, trace, isa, ctl)
        }
        _ => unreachable!("kinds were checked when the node was pushed"),
    }
}

/// The first step in all of them.
fn repeat(sums: &mut Buffer, len: usize, steps: usize) {
    fn copy<T: Copy>(x: &mut [T], len: usize, steps: usize) {
        (1..steps).for_each(|t| x.copy_within(..len, t * len));
    }
    match sums {
        Data::Bytes(x) => copy(x, len, steps),
        Data::I32(x) => copy(x, len, steps),
        Data::F32(x) => copy(x, len, steps),
    }
}

/// What a node of so many elements runs on.
fn inner<'a>(ctl: &'a Ctl<'a>, elements: usize) -> &'a Ctl<'a> {
    const ALONE: &Ctl = &Ctl::new(1);
    if elements < LARGE { ALONE } else { ctl }
}
