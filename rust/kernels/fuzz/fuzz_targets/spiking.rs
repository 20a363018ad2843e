//! Spiking networks of any nodes, sizes and inputs are refused or have the same values, spikes and
//! operations on every instruction set, on any number of threads and however their steps are cut.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use lowbit_kernels::spiking::{Each, Leak, Neurons, PoolKind, Reset, SpikeConv2d, SpikeProduct, SpikeWeight, Start};
use lowbit_kernels::{Ctl, Isa};
use lowbit_runtime::spiking::{AnyCells, Cells, Data, Events, Kind, Piece, Seen, SpikingNetwork, Step, Wanted};

/// Elements that do not keep the fuzzer waiting.
const MOST: usize = 1 << 12;

#[derive(Arbitrary, Debug)]
enum Node {
    Linear { k: u8, n: u8, nbits: u8, bias: bool },
    Conv { input: [u8; 3], kernel: [u8; 2], stride: [u8; 2], padding: [u8; 4], n: u8, nbits: u8, bias: bool },
    Cells { leak: u8, reset: u8, strict: bool, refractory: u8, fraction: u8, levels: [i8; 4], each: u8, readout: bool },
    Pool { input: [u8; 3], kernel: [u8; 2], stride: [u8; 2], padding: [u8; 4], sum: bool },
    ChannelsFirst([u8; 3]),
    Add(u8),
    Attention { width: u8, heads: u8, key: u8, value: u8 },
    Total([u8; 3]),
}

#[derive(Arbitrary, Debug)]
struct Case {
    kind: u8,
    len: u16,
    nodes: Vec<(Node, u8)>,
    steps: u8,
    streams: u8,
    input: u8,
    keys: Vec<(u16, u8)>,
    off: i8,
    wanted: Vec<u8>,
    fill: Vec<u8>,
    cut: u8,
}

struct Bytes<'a>(std::iter::Cycle<std::slice::Iter<'a, u8>>);

impl Bytes<'_> {
    fn take(&mut self, n: usize) -> Vec<u8> {
        (&mut self.0).take(n).copied().collect()
    }

    fn codes(&mut self, n: usize) -> Vec<i8> {
        self.take(n).into_iter().map(|x| x as i8).collect()
    }
}

fn windows(input: [u8; 3], kernel: [u8; 2], stride: [u8; 2], padding: [u8; 4]) -> SpikeConv2d {
    let [top, bottom, left, right] = padding.map(|p| usize::from(p % 4));
    SpikeConv2d {
        input: input.map(|x| usize::from(x % 12)),
        kernel: kernel.map(|x| usize::from(x % 5)),
        stride: stride.map(|x| usize::from(x % 4)),
        padding: [[top, bottom], [left, right]],
    }
}

fn product(k: usize, n: usize, nbits: u8, bias: bool, conv: Option<SpikeConv2d>, fill: &mut Bytes) -> Option<SpikeProduct> {
    if k.saturating_mul(n) > MOST * 8 {
        return None;
    }
    let floats: Vec<f32> = fill.codes(n).into_iter().map(f32::from).collect();
    let integers: Vec<i32> = fill.codes(n).into_iter().map(|x| i32::from(x) << 20).collect();
    let (weight, start) = match nbits % 4 {
        0 => {
            let w: Vec<f32> = fill.codes(k * n).into_iter().map(|x| f32::from(x) / 3.0).collect();
            (SpikeWeight::from_floats(&w, k, n).ok()?, Start::F32(&floats))
        }
        power => {
            let nbits = 1 << power;
            let w: Vec<i8> = fill.codes(k * n).into_iter().map(|x| x >> (8 - nbits)).collect();
            (SpikeWeight::from_codes(&w, k, n, nbits).ok()?, Start::I32(&integers))
        }
    };
    SpikeProduct::new(weight, conv, if bias { start } else { Start::Zero }).ok()
}

fn cells(node: &Node, integers: bool) -> Option<Step> {
    let Node::Cells { leak, reset, strict, refractory, fraction, levels, each, readout } = node else { return None };
    macro_rules! cells {
        ($v:ty, $any:path) => {{
            let one = |i: usize| <$v>::from(levels[i]);
            let many: Vec<[$v; 4]> = (0..usize::from(each % 5)).map(|j| [0, 1, 2, 3].map(|i| one(i) + j as $v)).collect();
            let lists: Vec<Vec<$v>> = (0..4).map(|i| many.iter().map(|x| x[i]).collect()).collect();
            let level = |i: usize| if many.is_empty() { Each::All(one(i)) } else { Each::Channel(&lists[i]) };
            let leak = match leak % 3 {
                0 => Leak::None,
                1 => Leak::Keep { beta: level(0), drive: level(1) },
                _ => Leak::Toward { rate: level(0), rest: level(1) },
            };
            let reset = match reset % 5 {
                0 => Reset::None,
                1 => Reset::Soft,
                2 => Reset::Hard(level(3)),
                3 => Reset::SoftLater,
                _ => Reset::HardLater(level(3)),
            };
            let mut neurons = Neurons::new(leak, level(2), reset);
            (neurons.strict, neurons.refractory, neurons.fraction) = (*strict, u16::from(refractory % 4), u32::from(fraction % 26));
            $any(Cells::new(&neurons, level(3)))
        }};
    }
    let cells = if integers { cells!(i32, AnyCells::I32) } else { cells!(f32, AnyCells::F32) };
    Some(Step::Neurons { cells, readout: *readout })
}

fn network(case: &Case, fill: &mut Bytes) -> Option<(SpikingNetwork, Kind, usize)> {
    let kind = [Kind::Spikes, Kind::Counts, Kind::Sums, Kind::Numbers][usize::from(case.kind % 4)];
    let len = usize::from(case.len) % MOST;
    let mut network = SpikingNetwork::new(kind, len).ok()?;
    let mut values = 1;
    for (node, reads) in case.nodes.iter().take(12) {
        let read = usize::from(*reads) % (values + usize::from(reads == &255));
        let (kind, _) = network.value(read).unwrap_or((Kind::Spikes, 0));
        let mut all = vec![read];
        let step = match node {
            Node::Linear { k, n, nbits, bias } => {
                product(usize::from(*k), usize::from(n % 90), *nbits, *bias, None, fill).map(|p| Step::Product(Box::new(p)))
            }
            Node::Conv { input, kernel, stride, padding, n, nbits, bias } => {
                let conv = windows(*input, *kernel, *stride, *padding);
                let k = conv.kernel[0] * conv.kernel[1] * conv.input[2];
                product(k, usize::from(n % 40), *nbits, *bias, Some(conv), fill).map(|p| Step::Product(Box::new(p)))
            }
            Node::Cells { .. } => cells(node, kind == Kind::Sums),
            Node::Pool { input, kernel, stride, padding, sum } => Some(Step::Pool {
                windows: windows(*input, *kernel, *stride, *padding),
                kind: if *sum { PoolKind::Sum } else { PoolKind::Max },
            }),
            Node::ChannelsFirst(sizes) => Some(Step::ChannelsFirst(sizes.map(|x| usize::from(x % 20)))),
            Node::Add(other) => {
                all.push(usize::from(*other) % values);
                Some(Step::Add)
            }
            Node::Attention { width, heads, key, value } => {
                all.extend([usize::from(*key) % values, usize::from(*value) % values]);
                Some(Step::Attention { width: usize::from(*width), heads: usize::from(*heads) })
            }
            Node::Total(sizes) => Some(Step::Total(sizes.map(|x| usize::from(x % 20)))),
        };
        if let Some(step) = step
            && network.push("node", step, &all).is_ok()
        {
            if network.value(values).is_none_or(|(_, len)| len > MOST) {
                return None;
            }
            values += 1;
        }
    }
    Some((network, kind, values))
}

type Values = Vec<(Vec<u8>, Vec<i32>, Vec<u32>)>;

fuzz_target!(|case: Case| {
    let bytes: &[u8] = if case.fill.is_empty() { &[1] } else { &case.fill };
    let mut fill = Bytes(bytes.iter().cycle());
    let Some((network, kind, values)) = network(&case, &mut fill) else { return };
    let (steps, streams) = (usize::from(case.steps % 40), usize::from(case.streams % 4));
    let len = network.value(0).expect("the input").1;
    if (steps + 1) * (streams + 1) * len > MOST * 8 {
        return;
    }
    let still = case.input % 3 == 1;
    let frames = if still { 1 } else { steps };
    let want = (frames * streams * len).saturating_add_signed(if case.off > 120 { 1 } else { 0 });
    let mut most = fill.take(want);
    if kind == Kind::Spikes && case.off != -128 {
        most.iter_mut().for_each(|x| *x &= 1);
    }
    let sums: Vec<i32> = most.iter().map(|&x| i32::from(x as i8) << 8).collect();
    let numbers: Vec<f32> = most.iter().map(|&x| f32::from(x as i8) / 3.0).collect();
    let mut keys: Vec<i64> = case.keys.iter().map(|(key, _)| i64::from(*key)).collect();
    if case.off != -127 {
        keys.sort_unstable();
    }
    let counts: Vec<u8> = case.keys.iter().map(|&(_, x)| if kind == Kind::Spikes { 1 } else { x }).collect();
    let wanted: Vec<usize> = case.wanted.iter().take(3).map(|&x| usize::from(x) % values).collect();

    let run = |isa: Isa, threads: usize, cut: usize, remembers: bool| -> Option<(Values, Vec<u64>, Vec<u64>)> {
        let mut memory = network.memory(streams).ok()?;
        let mut found: Values = wanted
            .iter()
            .map(|&value| {
                let (_, len) = network.value(value).expect("it is one");
                let n = steps * streams * len;
                (vec![0; n], vec![0; n], vec![0; n])
            })
            .collect();
        let (mut spikes, mut operations) = (vec![], vec![]);
        let mut floats: Vec<Vec<f32>> = found.iter().map(|x| vec![0.0; x.2.len()]).collect();
        for range in [0..cut, cut..steps] {
            let at = if still { 0..most.len() } else { (range.start * streams * len).min(most.len())..(range.end * streams * len).min(most.len()) };
            let at = if range.end == steps { at.start..most.len() } else { at };
            let frames = match kind {
                Kind::Spikes | Kind::Counts => Data::Bytes(&most[at]),
                Kind::Sums => Data::I32(&sums[at]),
                Kind::Numbers => Data::F32(&numbers[at]),
            };
            let first = [range.start, 0];
            let input = match case.input % 3 {
                0 => Seen::Frames(frames),
                1 => Seen::Still(frames),
                _ => Seen::Events(Events { keys: &keys, counts: &counts, steps, first }),
            };
            let piece = Piece { input, steps: range.len(), streams };
            let mut outs: Vec<Wanted> = wanted
                .iter()
                .zip(&mut found)
                .zip(&mut floats)
                .map(|((&value, found), floats)| {
                    let out = match network.value(value).expect("it is one").0 {
                        Kind::Spikes | Kind::Counts => Data::Bytes(&mut found.0[..]),
                        Kind::Sums => Data::I32(&mut found.1[..]),
                        Kind::Numbers => Data::F32(&mut floats[..]),
                    };
                    Wanted { value, out, first, streams }
                })
                .collect();
            let memory = remembers.then_some(&mut memory[..]);
            let counted = network.run(&piece, memory, &mut outs, isa, &Ctl::new(threads)).ok()?;
            for (all, more) in [(&mut spikes, counted.spikes), (&mut operations, counted.operations)] {
                if all.is_empty() {
                    *all = more;
                } else {
                    all.iter_mut().zip(more).for_each(|(x, y)| *x += y);
                }
            }
        }
        for (found, floats) in found.iter_mut().zip(floats) {
            // Any NaN is one.
            found.2 = floats.into_iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect();
        }
        Some((found, spikes, operations))
    };
    let want = run(Isa::Scalar, 1, 0, true);
    for &isa in Isa::available() {
        assert_eq!(run(isa, 2, 0, true), want, "{}", isa.name());
        assert_eq!(run(isa, 1, 0, false), want, "{}, forgotten", isa.name());
    }
    // What is refused in pieces is refused whole; errors aside, a cut changes nothing.
    if want.is_some()
        && let Some(cut) = run(Isa::best(), 1, usize::from(case.cut) % (steps + 1), true)
    {
        assert_eq!(Some(cut), want);
    }
});
