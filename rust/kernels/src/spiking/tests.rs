use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::scalar::{One, step};
use super::*;

/// Cases of a property; `LOWBIT_CASES` sets another number.
fn cases(otherwise: u32) -> ProptestConfig {
    let cases = std::env::var("LOWBIT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// What a layer has, drawn at random; [`Layer::with`] lends it as [`Neurons`].
#[derive(Debug, Clone)]
struct Layer<V> {
    leak: u8,
    reset: u8,
    strict: bool,
    refractory: u16,
    current: bool,
    adapts: bool,
    fraction: u32,
    /// One value for all of the bits that are 0, the channels' for the others.
    each: u16,
    /// beta or rate, drive or rest, threshold, reset, of the channels.
    levels: [Vec<V>; 4],
    /// alpha, gain, rho, jump.
    floats: [Vec<f32>; 4],
}

impl<V: Voltage> Layer<V> {
    /// Plain neurons, all alike.
    fn plain(leak: u8, reset: u8, levels: [Vec<V>; 4]) -> Self {
        let floats = [const { Vec::new() }; 4];
        let (strict, refractory, current, adapts, fraction, each) = (false, 0, false, false, 0, 0);
        Layer { leak, reset, strict, refractory, current, adapts, fraction, each, levels, floats }
    }

    fn with<T>(&self, body: impl FnOnce(&Neurons<'_, V>) -> T) -> T {
        fn each<T: Copy>(bits: u16, bit: usize, values: &[T]) -> Each<'_, T> {
            if bits >> bit & 1 == 0 { Each::All(values[0]) } else { Each::Channel(values) }
        }
        let level = |i: usize| each(self.each, i, &self.levels[i]);
        let float = |i: usize| each(self.each, 4 + i, &self.floats[i]);
        let leak = match self.leak {
            0 => Leak::None,
            1 => Leak::Keep { beta: level(0), drive: Each::All(V::default()) },
            2 => Leak::Keep { beta: level(0), drive: level(1) },
            _ => Leak::Toward { rate: level(0), rest: level(1) },
        };
        let reset = match self.reset {
            0 => Reset::None,
            1 => Reset::Soft,
            2 => Reset::Hard(level(3)),
            3 => Reset::SoftLater,
            _ => Reset::HardLater(level(3)),
        };
        body(&Neurons {
            leak,
            threshold: level(2),
            reset,
            strict: self.strict,
            refractory: self.refractory,
            current: self.current.then(|| Current { alpha: float(0), gain: float(1) }),
            adaptation: self.adapts.then(|| Adaptation { rho: float(2), jump: float(3) }),
            fraction: self.fraction,
        })
    }
}

/// Everything that a run leaves: spikes, trace, v, i, a, left.
#[derive(Debug, PartialEq)]
struct Outcome<V> {
    spikes: Vec<u8>,
    trace: Vec<V>,
    v: Vec<V>,
    i: Vec<f32>,
    a: Vec<f32>,
    left: Vec<u16>,
}

/// One neuron and one step after the other, by the definition.
fn by_the_book<V: Voltage>(layer: &Layer<V>, x: &[V], v: &[V]) -> Outcome<V> {
    let n = v.len();
    let mut ones: Vec<_> = v.iter().map(|&v| One { v, i: 0.0, a: 0.0, left: 0 }).collect();
    let mut out = Outcome { spikes: vec![], trace: vec![], v: vec![], i: vec![], a: vec![], left: vec![] };
    layer.with(|neurons| {
        for row in x.chunks(n) {
            for (j, (one, &x)) in ones.iter_mut().zip(row).enumerate() {
                out.spikes.push(u8::from(step(neurons, j, one, x)));
                out.trace.push(one.v);
            }
        }
    });
    out.v = ones.iter().map(|one| one.v).collect();
    if layer.current {
        out.i = ones.iter().map(|one| one.i).collect();
    }
    if layer.adapts {
        out.a = ones.iter().map(|one| one.a).collect();
    }
    if layer.refractory > 0 {
        out.left = ones.iter().map(|one| one.left).collect();
    }
    out
}

/// The kernel, its steps cut in two calls at `cut`. Not traced, it is told where to start, and the state holds anything.
fn run<V: Voltage>(
    layer: &Layer<V>,
    x: &[V],
    v: &[V],
    cut: usize,
    bits: Option<usize>,
    traced: bool,
    isa: Isa,
    threads: usize,
) -> Outcome<V> {
    let n = v.len();
    let start = if traced { None } else { Some(Each::Channel(v)) };
    let zeros = |has: bool| vec![0.0; if has { n } else { 0 }];
    let (mut v, mut i, mut a) = (
        if traced { v.to_vec() } else { v.iter().rev().copied().collect() },
        zeros(layer.current),
        zeros(layer.adapts),
    );
    let mut left = vec![0; if layer.refractory > 0 { n } else { 0 }];
    let per_step = bits.map_or(n, |row| n / row * row.div_ceil(8));
    let steps = x.len() / n;
    let (mut spikes, mut trace) = (vec![0xa5; steps * per_step], vec![V::default(); x.len()]);
    for (from, to) in [(0, cut), (cut, steps)] {
        let part = &mut spikes[from * per_step..to * per_step];
        let out = match bits {
            Some(row) => SpikesOut::Bits { out: part, row },
            None => SpikesOut::Bytes(part),
        };
        let mut state = State { v: &mut v, i: &mut i, a: &mut a, left: &mut left };
        layer.with(|neurons| {
            let trace = traced.then_some(&mut trace[from * n..to * n]);
            let (x, start) = (&x[from * n..to * n], start.filter(|_| from == 0));
            simulate(x, neurons, &mut state, start, out, trace, isa, &Ctl::new(threads)).unwrap();
        });
    }
    Outcome { spikes, trace, v, i, a, left }
}

/// Rows of bits from bytes, by [`crate::packing`].
fn packed(bytes: &[u8], row: usize) -> Vec<u8> {
    let rows = bytes.len() / row;
    let mut out = vec![0; rows * row.div_ceil(8)];
    crate::packing::pack(bytes, rows, row, 1, &mut out, Isa::Scalar, &Ctl::new(1)).unwrap();
    out
}

/// Counts cases by instruction set, and prints them: a path that ran none would
/// otherwise pass unseen.
struct Ran(&'static str, BTreeMap<&'static str, usize>);

impl Ran {
    fn on(&mut self, isa: Isa) {
        *self.1.entry(isa.name()).or_default() += 1;
    }
}

impl Drop for Ran {
    fn drop(&mut self) {
        println!("spiking {}: cases by instruction set {:?}", self.0, self.1);
        let all = Isa::available().iter().all(|isa| self.1.get(isa.name()).is_some_and(|&n| n > 0));
        assert!(all || std::thread::panicking());
    }
}

fn check_case<V: Voltage>(layer: &Layer<V>, x: &[V], v: &[V], row: usize, cut: usize, threads: usize, ran: &mut Ran) {
    let want = by_the_book(layer, x, v);
    let bits = packed(&want.spikes, row);
    for &isa in Isa::available() {
        let got = run(layer, x, v, cut, None, true, isa, threads);
        assert!(got == want, "{} {layer:?}", isa.name());
        let got = run(layer, x, v, cut, None, false, isa, threads);
        assert!(got.spikes == want.spikes && got.v == want.v, "no trace, {} {layer:?}", isa.name());
        for traced in [false, true] {
            let got = run(layer, x, v, cut, Some(row), traced, isa, threads);
            assert!(got.spikes == bits && got.v == want.v, "bits, {} {layer:?}", isa.name());
        }
        ran.on(isa);
    }
}

/// Channels, rows of them, steps.
fn shapes() -> impl Strategy<Value = (usize, usize, usize)> {
    (1..70usize, 1..40usize, 0..11usize)
}

fn floats() -> impl Strategy<Value = (Layer<f32>, Vec<f32>, Vec<f32>, usize, usize)> {
    shapes().prop_flat_map(|(channels, rows, steps)| {
        // Halves and quarters meet thresholds exactly.
        let number = || prop_oneof![(-12..=12i32).prop_map(|x| x as f32 / 4.0), -3.0..3.0f32];
        let share = || prop_oneof![Just(0.5f32), 0.0..1.0f32];
        let list = |n: usize| prop::collection::vec(number(), n);
        let shares = move || prop::collection::vec(share(), channels);
        let levels = [shares().boxed(), list(channels).boxed(), list(channels).boxed(), list(channels).boxed()];
        let own = [shares().boxed(), list(channels).boxed(), shares().boxed(), shares().boxed()];
        let flags = (0..4u8, 0..5u8, any::<bool>(), 0..4u16, any::<bool>(), any::<bool>(), any::<u16>(), any::<bool>());
        let n = channels * rows;
        (flags, levels, own, list(n * steps), list(n), 0..=steps).prop_map(move |(flags, levels, floats, x, v, cut)| {
            let (leak, reset, strict, refractory, current, adapts, each, plain) = flags;
            let fraction = 0;
            let layer = Layer { leak, reset, strict, refractory, current, adapts, fraction, each, levels, floats };
            // Half of them plain, as most layers are.
            let layer = if plain {
                Layer { reset: reset % 3, refractory: 0, current: false, adapts: false, ..layer }
            } else {
                layer
            };
            (layer, x, v, channels, cut)
        })
    })
}

fn integers() -> impl Strategy<Value = (Layer<i32>, Vec<i32>, Vec<i32>, usize, usize)> {
    const MOST: i32 = (1 << 23) - 1;
    shapes().prop_flat_map(|(channels, rows, steps)| {
        let number = || prop_oneof![-40..40i32, -30_000..30_000i32, -MOST..=MOST];
        let input = || prop_oneof![8 => -60..90i32, 4 => -30_000..30_000i32, 1 => -(1 << 30)..(1 << 30)];
        let beta = || prop_oneof![(0..=8).prop_map(|halvings| 256 >> halvings), 0..=256i32];
        let list = |n: usize| prop::collection::vec(number(), n);
        let positive = prop::collection::vec(prop_oneof![1..60i32, 1..=MOST], channels);
        let levels = [
            prop::collection::vec(beta(), channels).boxed(),
            list(channels).boxed(),
            positive.boxed(),
            list(channels).boxed(),
        ];
        let n = channels * rows;
        let inputs = prop::collection::vec(input(), n * steps);
        let flags = (0..3u8, 0..3u8, any::<bool>(), any::<u16>(), prop_oneof![Just(0), 0..23u32]);
        (flags, levels, inputs, list(n), 0..=steps).prop_map(
            move |((leak, reset, strict, each, fraction), levels, x, v, cut)| {
                let floats = [const { Vec::new() }; 4];
                let (refractory, current, adapts) = (0, false, false);
                let each = each & 15;
                let layer = Layer { leak, reset, strict, refractory, current, adapts, fraction, each, levels, floats };
                (layer, x, v, channels, cut)
            },
        )
    })
}

#[test]
fn every_path_equals_the_definition() {
    let ran = RefCell::new(Ran("floats", BTreeMap::new()));
    proptest!(cases(400), |((layer, x, v, row, cut) in floats(), threads in 1..4usize)| {
        check_case(&layer, &x, &v, row, cut, threads, &mut ran.borrow_mut());
    });
    let ran = RefCell::new(Ran("integers", BTreeMap::new()));
    proptest!(cases(400), |((layer, x, v, row, cut) in integers(), threads in 1..4usize)| {
        check_case(&layer, &x, &v, row, cut, threads, &mut ran.borrow_mut());
    });
}

#[test]
fn tasks_and_blocks() {
    /// Neurons of a task of few.
    const FEW: usize = 8 * BLOCK;
    let mut ran = Ran("tasks", BTreeMap::new());
    for (n, row) in
        [(FEW + 8, FEW + 8), (3 * FEW, 24), (3 * FEW, 32), (5 * 3001, 3001), (2 * FEW + 2, 2), (BLOCK + 1, BLOCK + 1)]
    {
        let thresholds = (0..row).map(|i| (i % 13) as f32 / 8.0 + 0.25).collect();
        let layer = Layer { each: 4, ..Layer::plain(3, 2, [vec![0.5], vec![0.0], thresholds, vec![0.0]]) };
        let x: Vec<f32> = (0..6 * n).map(|i| (i * 7 % 31) as f32 / 8.0).collect();
        // One value of each for all, alone and with currents.
        let alike = Layer { each: 0, floats: [vec![0.5], vec![1.5], Vec::new(), Vec::new()], ..layer.clone() };
        let flows = Layer { current: true, ..alike.clone() };
        for layer in [layer.clone(), alike, flows, Layer { refractory: 2, ..layer }] {
            for threads in [1, 3] {
                check_case(&layer, &x, &vec![0.25; n], row, 1, threads, &mut ran);
            }
        }
    }
}

#[test]
fn spikes_past_the_caches() {
    let mut ran = Ran("past the caches", BTreeMap::new());
    let layer = Layer::plain(3, 2, [vec![0.5], vec![0.0], vec![1.0], vec![0.0]]);
    let ints = Layer::plain(1, 2, [vec![128], vec![0], vec![100], vec![0]]);
    // So many spikes that they are written so: rows of whole lines, of which a task may end within one, and others.
    let n = rows::PAST / 10 / 64 * 64 + 64;
    for n in [n, n + 1] {
        let x: Vec<f32> = (0..11 * n).map(|i| (i * 7 % 31) as f32 / 8.0 - 1.0).collect();
        check_case(&layer, &x, &vec![0.25; n], n, 0, 2, &mut ran);
        let x: Vec<i32> = (0..11 * n).map(|i| (i * 7 % 31) as i32 * 10 - 80).collect();
        check_case(&ints, &x, &vec![25; n], n, 0, 1, &mut ran);
    }
}

#[test]
fn zeros_keep_their_sign() {
    // -0 halved and no drive: the sum with an input of -0 is -0, on every path and with parameters of either kind.
    for each in [0, 0b1111] {
        let levels = [vec![0.5], vec![0.0], vec![1.0], vec![0.0]];
        for &isa in Isa::available() {
            for leak in [1, 2] {
                let layer = Layer { each, ..Layer::plain(leak, 2, levels.clone().map(|x: Vec<f32>| x.repeat(80))) };
                let got = run(&layer, &[-0.0; 160], &[-0.0; 80], 1, None, true, isa, 1);
                assert!(got.trace.iter().all(|v| v.to_bits() == (-0.0f32).to_bits()), "{} {layer:?}", isa.name());
            }
        }
    }
}

#[test]
fn potentials_saturate() {
    let layer = Layer { strict: true, ..Layer::plain(0, 0, [vec![], vec![], vec![(1 << 23) - 1], vec![]]) };
    for &isa in Isa::available() {
        let got = run(&layer, &[1 << 22; 40], &[0; 10], 1, None, true, isa, 1);
        assert_eq!(got.v, [(1 << 23) - 1; 10]);
        assert_eq!(got.spikes, [0; 40], "strict at the greatest potential");
        let got = run(&layer, &[-(1 << 22); 40], &[0; 10], 1, None, true, isa, 1);
        assert_eq!(got.v, [1 - (1 << 23); 10]);
    }
    // Thresholds about the greatest potential, which some of them are beyond, and every reset.
    const MOST: i32 = (1 << 23) - 1;
    let mut ran = Ran("about the greatest potential", BTreeMap::new());
    for (threshold, reset) in [MOST - 1, MOST, MOST + 1].into_iter().flat_map(|x| (0..3).map(move |y| (x, y))) {
        for (strict, each) in [(false, 0), (true, 0), (false, 4), (true, 4)] {
            let levels = [vec![255], vec![0], vec![threshold; 80], vec![5]];
            let layer = Layer { strict, each, ..Layer::plain(1, reset, levels) };
            let x: Vec<i32> = (0..480).map(|i| [MOST / 2, MOST - 1, MOST, MOST + 1, 1 << 30, 0, -9][i % 7]).collect();
            check_case(&layer, &x, &[0; 80], 80, 2, 1, &mut ran);
        }
    }
}

#[test]
fn integers_beyond_potentials_are_refused() {
    let told = |threshold: i32, reset: Reset<i32>, start: i32| {
        let neurons = Neurons::new(Leak::None, Each::All(threshold), reset);
        let (mut v, mut out, start) = ([0], [0], Some(Each::All(start)));
        let (state, spikes) = (&mut State::new(&mut v), SpikesOut::Bytes(&mut out));
        simulate(&[0], &neurons, state, start, spikes, None, Isa::best(), &Ctl::new(1)).unwrap_err().to_string()
    };
    assert!(told(5, Reset::Hard(Each::All(1 << 23)), 0).starts_with("reset: "));
    assert!(told(5, Reset::Hard(Each::All(0)), -(1 << 23)).starts_with("start: "));
    assert!(told(-1, Reset::Soft, 0).starts_with("threshold: "));
}

#[test]
fn halved_potentials_are_rounded_as_products_are() {
    const MOST: i32 = (1 << 23) - 1;
    let mut ran = Ran("halved", BTreeMap::new());
    // Eight vectors of every instruction set, four, one, and a part of one.
    let n = 128 + 64 + 16 + 5;
    let v: Vec<i32> = (0..n).map(|i| [MOST, -MOST, -1, 1, -3, 12_345, -77_777, 0, MOST - 2][i % 9]).collect();
    let x: Vec<i32> = (0..7 * n).map(|i| [0, 1, -1, 40, -60, 30_001, -MOST][i % 7] / (1 + i as i32 % 5)).collect();
    for (halvings, reset) in (0..=8).flat_map(|x| (0..3).map(move |y| (x, y))) {
        for fraction in [0, 3] {
            let levels = [vec![256 >> halvings], vec![0], vec![5000], vec![-3]];
            let layer = Layer { fraction, ..Layer::plain(1, reset, levels) };
            check_case(&layer, &x, &v, n, 3, 1, &mut ran);
        }
    }
}

#[test]
fn lengths_are_checked() {
    let neurons = Neurons::new(Leak::None, Each::All(1.0), Reset::Soft);
    let (isa, ctl) = (Isa::Scalar, Ctl::new(1));
    let told = |x: &[f32], neurons: &Neurons<'_, f32>, v: &mut [f32], out: &mut [u8], row: Option<usize>| {
        let spikes = match row {
            Some(row) => SpikesOut::Bits { out, row },
            None => SpikesOut::Bytes(out),
        };
        simulate(x, neurons, &mut State::new(v), None, spikes, None, isa, &ctl).unwrap_err().to_string()
    };
    let mut out = [0; 6];
    assert!(told(&[0.0; 5], &neurons, &mut [0.0; 2], &mut out, None).starts_with("x: "));
    assert!(told(&[0.0; 5], &neurons, &mut [], &mut out, None).starts_with("x: "));
    assert!(told(&[0.0; 8], &neurons, &mut [0.0; 2], &mut out, None).starts_with("spikes: "));
    assert!(told(&[0.0; 6], &neurons, &mut [0.0; 3], &mut out, Some(0)).starts_with("row: "));
    assert!(told(&[0.0; 6], &neurons, &mut [0.0; 3], &mut out, Some(2)).starts_with("row: "));
    let channels = Neurons { threshold: Each::Channel(&[1.0, 2.0]), ..neurons };
    assert!(told(&[0.0; 6], &channels, &mut [0.0; 3], &mut out, None).starts_with("threshold: "));
    let start = Some(Each::Channel(&[1.0, 2.0][..]));
    let outcome = simulate(
        &[0.0; 6],
        &neurons,
        &mut State::new(&mut [0.0; 3]),
        start,
        SpikesOut::Bytes(&mut out),
        None,
        isa,
        &ctl,
    );
    assert!(outcome.unwrap_err().to_string().starts_with("start: "));
    let waits = Neurons { refractory: 1, ..neurons };
    assert!(told(&[0.0; 6], &waits, &mut [0.0; 3], &mut out, None).starts_with("left: "));
    let leaks = Leak::Toward { rate: Each::All(128), rest: Each::All(0) };
    let neurons = Neurons::new(leaks, Each::All(1), Reset::Soft);
    let outcome =
        simulate(&[0; 6], &neurons, &mut State::new(&mut [0; 3]), None, SpikesOut::Bytes(&mut out), None, isa, &ctl);
    assert!(outcome.unwrap_err().to_string().starts_with("neurons: "));
}
