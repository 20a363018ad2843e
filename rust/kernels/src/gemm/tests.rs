//! One set of properties, run on every instruction set of this CPU.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::vnni::{Job, Vnni};
use super::*;

fn naive(a: Lhs, b: &[i8], m: usize, n: usize, k: usize) -> Vec<i64> {
    let at = |i: usize| match a {
        Lhs::U8(a) => i64::from(a[i]),
        Lhs::I8(a) => i64::from(a[i]),
    };
    let cell = |r: usize, c: usize| (0..k).map(|i| at(r * k + i) * i64::from(b[i * n + c])).sum();
    (0..m * n).map(|i| cell(i / n, i % n)).collect()
}

/// For so many cases, or at most as many as LOWBIT_CASES says: emulators are slow.
fn runner(cases: u32) -> TestRunner {
    let most = std::env::var("LOWBIT_CASES").ok().and_then(|most| most.parse().ok());
    TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(cases.min(most.unwrap_or(cases))) })
}

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut x = seed | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    }
}

/// Bytes that reach the extremes often.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut next = random(seed);
    (0..len).map(|_| [0, 255, 127, 128, next() as u8, next() as u8][(next() % 6) as usize]).collect()
}

/// Codes as in a trained layer: most of them small, one in `rare` a large one.
fn trained(len: usize, seed: u64, rare: u64) -> Vec<i8> {
    let mut next = random(seed);
    let large = |x: u64| [127, -128, 126, -127, 64, 65, -64, -65][(x % 8) as usize];
    (0..len).map(|_| if next() % rare == 0 { large(next()) } else { next() as i8 / 2 }).collect()
}

fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|&b| b as i8).collect()
}

/// Sizes that straddle every tile and vector width.
fn sizes() -> impl Strategy<Value = (usize, usize, usize)> {
    let edge = |around: &'static [usize]| {
        prop_oneof![1usize..20, (prop::sample::select(around), 0usize..3).prop_map(|(a, d)| (a + d).max(2) - 1)]
    };
    (
        edge(&[0, 4, 6, 12, 24, 48, 96, 192]),
        edge(&[0, 16, 32, 48, 64, 128, 192]),
        edge(&[0, 4, 8, 16, 32, 64, 128, 257]),
    )
}

/// Both products on 1, 2 and 7 threads against the definition; how many cases that is.
fn products_are_right(
    a: &[u8],
    sign: bool,
    b: &[i8],
    (m, n, k): (usize, usize, usize),
    isa: Isa,
) -> std::result::Result<usize, TestCaseError> {
    let a_signed = signed(a);
    let lhs = if sign { Lhs::I8(&a_signed) } else { Lhs::U8(a) };
    let tiled = Tiled::from_kn(b, k, n).unwrap();
    let expected = naive(lhs, b, m, n, k);
    for threads in [1, 2, 7] {
        let mut got = vec![0i32; m * n];
        matmul_i32(lhs, m, &tiled, &mut got, isa, &Ctl::new(threads)).unwrap();
        prop_assert!(got.iter().map(|&x| i64::from(x)).eq(expected.iter().copied()), "{m}x{n}x{k}, {threads} threads");
        let mut got = vec![0i64; m * n];
        matmul_i64(lhs, m, &tiled, &mut got, isa, &Ctl::new(threads)).unwrap();
        prop_assert_eq!(&got, &expected);
    }
    Ok(3)
}

#[test]
fn products_equal_the_definition_on_every_isa_and_thread_count() {
    for &isa in Isa::available() {
        let cases = std::cell::Cell::new(0);
        let mut runner = runner(300);
        runner
            .run(&(sizes(), any::<u64>(), any::<bool>()), |((m, n, k), seed, sign)| {
                let (a, b) = (bytes(m * k, seed), signed(&bytes(n * k, !seed)));
                cases.set(cases.get() + products_are_right(&a, sign, &b, (m, n, k), isa)?);
                Ok(())
            })
            .unwrap();
        println!("gemm: {} products on {}", cases.get(), isa.name());
    }
}

#[test]
fn many_rows_times_trained_weights_equal_the_definition() {
    let deep = prop_oneof![24usize..80, (0usize..3, 0usize..5).prop_map(|(i, d)| [128, 512, 1024][i] + d - 2)];
    let rows = prop_oneof![Just(127usize), 128usize..150, 190usize..300];
    let rare = prop_oneof![Just(8u64), 20u64..200, Just(u64::MAX)];
    for &isa in Isa::available() {
        let cases = std::cell::Cell::new(0);
        let mut runner = runner(60);
        runner
            .run(&(rows.clone(), 1usize..140, deep.clone(), any::<u64>(), rare.clone(), any::<bool>()), |case| {
                let (m, n, k, seed, rare, sign) = case;
                let (a, b) = (bytes(m * k, seed), trained(n * k, !seed, rare));
                cases.set(cases.get() + products_are_right(&a, sign, &b, (m, n, k), isa)?);
                Ok(())
            })
            .unwrap();
        println!("gemm: {} products with trained weights on {}", cases.get(), isa.name());
    }
}

/// More panels than lie side by side, and a depth of several pieces, where both have tails.
#[test]
fn products_of_many_panels_and_pieces_equal_the_definition() {
    for &isa in Isa::available() {
        let mut cases = 0;
        for (m, n, k) in
            [(33, 1100, 70), (64, 1040, 64), (40, 130, 1500), (32, 96, 1088), (37, 70, 2100), (300, 530, 65)]
        {
            for sign in [false, true] {
                let (a, b) = (bytes(m * k, k as u64), signed(&bytes(n * k, n as u64)));
                cases += products_are_right(&a, sign, &b, (m, n, k), isa).unwrap();
            }
        }
        println!("gemm: {cases} products of many panels and pieces on {}", isa.name());
    }
}

/// The sums of two products in 16 bits where they are largest, and one past it.
#[test]
fn pairs_that_just_fit_and_just_do_not() {
    let pairs = [[127, 1], [127, 2], [1, 127], [127, 127], [-128, 0], [-128, -1], [0, -128], [-128, -128], [-128, 127]];
    let (m, n, k) = (130, pairs.len() * 8, 64);
    for &isa in Isa::available() {
        for pad in [0, 255u8] {
            let a: Vec<u8> = (0..m * k).map(|i| if i % 3 == 0 { pad } else { 255 }).collect();
            // Each pair in one column of eight, at every depth; the others have it once.
            let pair = |i: usize, j: usize| if j % 8 == 0 || i / 2 == j % 32 { pairs[j / 8][i % 2] } else { 0 };
            let b: Vec<i8> = (0..n * k).map(|i| pair(i / n, i % n)).collect();
            let sparse: Vec<i8> =
                (0..n * k).map(|i| if i / n / 2 == i % n % 32 { pair(i / n, i % n) } else { 0 }).collect();
            for b in [b, sparse] {
                let mut got = vec![0i32; m * n];
                let tiled = Tiled::from_kn(&b, k, n).unwrap();
                matmul_i32(Lhs::U8(&a), m, &tiled, &mut got, isa, &Ctl::new(1)).unwrap();
                let expected = naive(Lhs::U8(&a), &b, m, n, k);
                assert!(got.iter().map(|&x| i64::from(x)).eq(expected), "{}", isa.name());
            }
        }
    }
}

/// A weight in groups, by parts and tiled.
struct Grouping {
    groups: Groups,
    codes: Vec<u8>,
    multipliers: Vec<u8>,
    zeros: Vec<u8>,
    scale: Vec<f32>,
    bytes: Vec<u8>,
    /// Entries of tables, of the one or the other kind, or neither.
    int8: Vec<i8>,
    floats: Vec<f32>,
    /// The floats as bfloat16, if they are looked up so.
    halves: Vec<u16>,
}

/// The codebook of [`Grouping::int8`], [`Grouping::floats`] and [`Grouping::halves`].
fn codebook<'a>(groups: Groups, int8: &'a [i8], floats: &'a [f32], halves: &'a [u16]) -> Option<Codebook<'a>> {
    groups.tables().map(|_| match groups.inputs() {
        Inputs::Floats if !halves.is_empty() => Codebook::Bf16(halves),
        Inputs::Floats => Codebook::F32(floats),
        _ => Codebook::Int8(int8),
    })
}

fn upper_halves(floats: &[f32]) -> Vec<u16> {
    floats.iter().map(|x| (x.to_bits() >> 16) as u16).collect()
}

impl Grouping {
    /// Codes, multipliers and zero points that reach the extremes often; scales of 1.
    fn random(groups: Groups, n: usize, k: usize, seed: u64) -> Grouping {
        let (count, q, most) = (groups.count(k), groups.qmax(), groups.most());
        let mut next = random(seed);
        let mut codes: Vec<u8> = (0..n * k).map(|_| [0, q, next() as u8 & q][(next() % 3) as usize]).collect();
        let mut multipliers: Vec<u8> =
            (0..n * count).map(|_| [0, most, next() as u8 & most][(next() % 3) as usize]).collect();
        if groups.tables().is_some() {
            multipliers.iter_mut().for_each(|m| *m = (*m).max(1));
        }
        let zero = |x: u64| if groups.symmetric() { groups.middle() } else { [0, q, x as u8 & q][(x % 3) as usize] };
        let mut zeros: Vec<u8> = (0..n * count).map(|_| zero(next() >> 8)).collect();
        let mut scale = vec![1.0; n];
        let mut bytes = vec![0; groups.len(k, n).unwrap()];
        let entries = groups.table_count(k, n).unwrap() << groups.nbits();
        let small = next() % 2 == 0; // four products fit 16 bits, or two
        let int8 = |x: u64| {
            if small { x as i8 / [4, 8][n % 2] } else { [-128, 127, x as i8, x as i8 / 2][(x >> 8) as usize % 4] }
        };
        let int8: Vec<i8> = (0..entries).map(|_| int8(next())).collect();
        // Of every second weight bfloat16, as lowbit's are.
        let kept = if seed % 2 == 0 { u32::MAX << 16 } else { u32::MAX };
        let floats: Vec<f32> =
            (0..entries).map(|_| f32::from_bits(((next() as i32) as f32 / 1e9).to_bits() & kept)).collect();
        let halves = if seed % 4 == 0 { upper_halves(&floats) } else { vec![] };
        let parts =
            GroupedRows { codes: &mut codes, multipliers: &mut multipliers, zeros: &mut zeros, scale: &mut scale };
        let entries = codebook(groups, &int8, &floats, &halves);
        tile_groups(&parts, groups, entries, n, k, &mut bytes, &Ctl::new(1)).unwrap();
        Grouping { groups, codes, multipliers, zeros, scale, bytes, int8, floats, halves }
    }

    fn codebook(&self) -> Option<Codebook<'_>> {
        codebook(self.groups, &self.int8, &self.floats, &self.halves)
    }

    /// Whether rows of floats times this are sums of tiles, in an order of their own.
    fn is_for_tiles(&self, k: usize, isa: Isa) -> bool {
        let (size, kept) = (self.groups.group_size(), self.floats.iter().all(|x| x.to_bits() & 0xffff == 0));
        let tables = matches!(self.groups.tables(), Some(Tables::Row | Tables::Group)) && self.groups.nbits() <= 4;
        isa.has_amx() && tables && kept && (size % 32 == 0 || size >= k)
    }

    /// The entry of a code.
    fn entry(&self, n: usize, k: usize, depth: usize) -> usize {
        let group = k / self.groups.group_size();
        let table = match self.groups.tables().unwrap() {
            Tables::Tensor => 0,
            Tables::Row => n,
            Tables::Group => n * self.groups.count(depth) + group,
        };
        (table << self.groups.nbits()) + usize::from(self.codes[n * depth + k])
    }

    fn value(&self, n: usize, k: usize, depth: usize) -> i64 {
        let at = n * self.groups.count(depth) + k / self.groups.group_size();
        if self.groups.tables().is_some() {
            let product = f64::from(self.int8[self.entry(n, k, depth)]) * (f64::from(self.multipliers[at]) - 128.0);
            return (product / 128.0 + 0.5).floor() as i64;
        }
        i64::from(self.multipliers[at]) * (i64::from(self.codes[n * depth + k]) - i64::from(self.zeros[at]))
    }

    /// Rows of codes times the weight against the definition, which float32 rounds.
    fn is_right(&self, m: usize, n: usize, k: usize, isa: Isa, seed: u64) -> usize {
        let (a, zero_points) = (bytes(m * k, seed), bytes(m, !seed));
        let rows: Vec<_> = zero_points.iter().map(|&zero_point| RowScale { scale: 1.0, zero_point }).collect();
        let sum = |r: usize, j: usize| -> i64 {
            let centred = |i: usize| i64::from(a[r * k + i]) - i64::from(zero_points[r]);
            (0..k).map(|i| centred(i) * self.value(j, i, k)).sum()
        };
        let expected: Vec<f32> = (0..m * n).map(|i| sum(i / n, i % n) as f32).collect();
        let weight = Weight::from_bytes(&self.bytes, k, n, self.codebook()).unwrap();
        let layer = Layer { weight: &weight, bias: None, activation: Activation::Identity };
        for threads in [1, 2, 7] {
            let mut got = vec![0f32; m * n];
            let (x, out) = (Input::Codes(&a, &rows), Output::F32(&mut got));
            linear(x, m, &layer, After::default(), out, isa, &Ctl::new(threads)).unwrap();
            assert_eq!(got, expected, "{m}x{n}x{k}, {:?}, {threads} threads, {}", self.groups, isa.name());
        }
        3
    }
}

#[test]
fn products_in_groups_equal_the_definition_on_every_isa_and_thread_count() {
    let forms = (
        prop_oneof![2u32..=6, Just(8)],
        prop_oneof![Just(32usize), Just(64), Just(128), (1usize..20).prop_map(|g| 8 * g)],
    );
    let deep = prop_oneof![1usize..140, (1usize..5, 0usize..3).prop_map(|(i, d)| 512 * i + d - 1)];
    for &isa in Isa::available() {
        let cases = std::cell::Cell::new(0);
        let mut runner = runner(200);
        runner
            .run(&(forms.clone(), any::<bool>(), 1usize..30, 1usize..140, deep.clone(), any::<u64>()), |case| {
                let ((nbits, group_size), symmetric, m, n, k, seed) = case;
                let groups = Groups::new(nbits, group_size, symmetric).unwrap();
                cases.set(cases.get() + Grouping::random(groups, n, k, seed).is_right(m, n, k, isa, !seed));
                Ok(())
            })
            .unwrap();
        println!("gemm: {} products in groups on {}", cases.get(), isa.name());
    }
}

/// Vectors of N dwords in plain Rust: `vnni.rs` is tested on every CPU, but for its instructions.
#[derive(Clone, Copy)]
struct Plain<const N: usize>;

fn each<const N: usize>(f: impl FnMut(usize) -> i32) -> [i32; N] {
    std::array::from_fn(f)
}

impl<const N: usize> Vnni for Plain<N> {
    const N: usize = N;
    const ROWS: usize = if N == 16 { 4 } else { 3 };
    type V = [i32; N];

    fn run<J: Job>(self, job: J) {
        job.run(self);
    }
    fn splat(self, x: i32) -> [i32; N] {
        [x; N]
    }
    unsafe fn load(self, from: *const i32) -> [i32; N] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[i32; N]>().read() }
    }
    unsafe fn store(self, to: *mut i32, x: [i32; N]) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[i32; N]>().write(x) }
    }
    unsafe fn widen(self, from: *const u8) -> [i32; N] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u8; N]>().read() }.map(i32::from)
    }
    fn add(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        each(|i| a[i].wrapping_add(b[i]))
    }
    fn sub(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        each(|i| a[i].wrapping_sub(b[i]))
    }
    fn sub_bytes(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        let byte = |x: i32, i: usize| x.to_le_bytes()[i];
        each(|lane| i32::from_le_bytes(std::array::from_fn(|i| byte(a[lane], i).wrapping_sub(byte(b[lane], i)))))
    }
    fn mul(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        each(|i| a[i].wrapping_mul(b[i]))
    }
    fn and(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        each(|i| a[i] & b[i])
    }
    fn or(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        each(|i| a[i] | b[i])
    }
    fn right(self, a: [i32; N], by: u32) -> [i32; N] {
        a.map(|a| (a as u32 >> by) as i32)
    }
    fn left(self, a: [i32; N], by: u32) -> [i32; N] {
        a.map(|a| a << by)
    }
    fn right_signed(self, a: [i32; N], by: u32) -> [i32; N] {
        a.map(|a| a >> by)
    }
    fn pick(self, codes: &[u8; 16], index: [i32; N], by: [i32; N]) -> [i32; N] {
        let picked = |index: u8| if index < 128 { codes[usize::from(index % 16)] } else { 0 };
        each(|i| (u32::from_le_bytes(index[i].to_le_bytes().map(picked)) >> by[i]) as i32)
    }
    fn dot_bytes(self, sum: [i32; N], unsigned: [i32; N], signed: [i32; N]) -> [i32; N] {
        let byte = |x: i32, i: usize| x.to_le_bytes()[i];
        let product = |a: i32, b: i32, i: usize| i32::from(byte(a, i)) * i32::from(byte(b, i) as i8);
        each(|lane| (0..4).fold(sum[lane], |sum, i| sum.wrapping_add(product(unsigned[lane], signed[lane], i))))
    }
}

/// A kernel of products in groups: the block, scratch, whether rows are in it, and the sums.
type GroupsKernel<'a> = &'a dyn Fn(&GroupBlock, &mut [i32], &mut bool, &mut [&mut [i32]]);

/// One kernel against the definition; how many blocks that is.
fn groups_are_right(a: &[u8], weight: &Grouping, (n, k): (usize, usize), len: usize, kernel: GroupsKernel) -> usize {
    let (m, grouped) = (a.len() / k, Grouped::from_bytes(&weight.bytes, k, n, None).unwrap());
    let (mut scratch, mut made, mut blocks) = (vec![0; len], false, 0);
    for p in 0..grouped.panels() {
        let panel = grouped.panel(p);
        for from in (0..k).step_by(panel.pass) {
            let block = GroupBlock { a, panel: &panel, depth: from..k.min(from + panel.pass), soon: &[] };
            let [mut expected, mut got] = [0, 1].map(|_| vec![1i32; m * PANEL]);
            scalar::groups(&block, &mut expected.chunks_exact_mut(PANEL).collect::<Vec<_>>(), 0);
            kernel(&block, &mut scratch, &mut made, &mut got.chunks_exact_mut(PANEL).collect::<Vec<_>>());
            assert_eq!(got, expected, "{m}x{n}x{k}, {:?}, {:?}", weight.groups, block.depth);
            blocks += 1;
        }
    }
    blocks
}

/// As [`groups_are_right`], of `vnni.rs`.
fn vnni_is_right<W: Vnni>(w: W, a: &[u8], weight: &Grouping, (n, k): (usize, usize)) -> usize {
    let pass = Grouped::from_bytes(&weight.bytes, k, n, None).unwrap().pass();
    let len = vnni::groups_scratch_len(a.len() / k, (k, pass), weight.groups);
    groups_are_right(a, weight, (n, k), len, &|block, scratch, made, out| vnni::groups(w, block, scratch, made, out, 0))
}

/// As [`groups_are_right`], of what [`Rows`] has for this instruction set.
fn rows_in_groups_are_right(isa: Isa, a: &[u8], weight: &Grouping, (n, k): (usize, usize)) -> usize {
    let pass = Grouped::from_bytes(&weight.bytes, k, n, None).unwrap().pass();
    let len = Rows::groups_scratch_len(isa, a.len() / k, (k, pass), weight.groups);
    groups_are_right(a, weight, (n, k), len, &|block, scratch, made, out| {
        let mut rows = Rows::new(isa, a, k, 0, scratch);
        rows.formed = *made;
        #[cfg(target_arch = "x86_64")]
        (rows.packed = if *made { out.len() } else { 0 });
        rows.times_groups(isa, block.panel, block.depth.clone(), out);
        *made = true;
    })
}

#[test]
fn wider_products_in_groups_equal_the_definition() {
    let forms = (
        prop::sample::select(&[2u32, 3, 4, 5, 6, 8][..]),
        prop_oneof![Just(32usize), Just(64), Just(128), (1usize..20).prop_map(|g| 8 * g)],
    );
    let deep = prop_oneof![1usize..140, (1usize..5, 0usize..3).prop_map(|(i, d)| 512 * i + d - 1)];
    let rows = prop_oneof![6 => 1usize..5, 6 => 1usize..20, 1 => 30usize..40];
    let counts = std::cell::RefCell::new(std::collections::BTreeMap::new());
    let count = |name, blocks| *counts.borrow_mut().entry(name).or_insert(0) += blocks;
    runner(300)
        .run(&(forms, any::<(bool, bool)>(), rows, 1usize..140, deep, any::<u64>()), |case| {
            let ((nbits, group_size), (symmetric, spans), m, n, k, seed) = case;
            let inputs = if spans { Inputs::Spans } else { Inputs::Rows };
            let groups = Groups::new(nbits, group_size, symmetric).unwrap().with(inputs);
            let weight = Grouping::random(groups, n, k, seed);
            let a = bytes(m * k, !seed);
            count("16 dwords", vnni_is_right(Plain::<16>, &a, &weight, (n, k)));
            count("8 dwords", vnni_is_right(Plain::<8>, &a, &weight, (n, k)));
            for &isa in Isa::available() {
                count(isa.name(), rows_in_groups_are_right(isa, &a, &weight, (n, k)));
                #[cfg(target_arch = "x86_64")]
                if isa.has_avx512() {
                    // SAFETY: the Isa is this CPU's.
                    let half = unsafe { avx512::Half::new() };
                    count("256 bits of avx512", vnni_is_right(half, &a, &weight, (n, k)));
                }
            }
            Ok(())
        })
        .unwrap();
    for (name, blocks) in counts.take() {
        println!("gemm: {blocks} panels in groups on {name}");
    }
}

/// Rows of more than one block, of which the last is of few or of some rows, each as alone.
#[test]
fn blocks_of_rows_in_groups_are_their_rows() {
    let (n, k) = (70, 1100);
    for (m, nbits, symmetric) in [(258, 4, false), (300, 8, false), (289, 3, true)] {
        let weight = Grouping::random(Groups::new(nbits, 32, symmetric).unwrap(), n, k, 5);
        let tiled = Weight::from_bytes(&weight.bytes, k, n, None).unwrap();
        let layer = Layer { weight: &tiled, bias: None, activation: Activation::Identity };
        let (x, scales) = (bytes(m * k, 9), vec![RowScale { scale: 0.5, zero_point: 100 }; m]);
        let run = |isa, from: usize, rows: usize| {
            let mut out = vec![0f32; rows * n];
            let x = Input::Codes(&x[from * k..][..rows * k], &scales[..rows]);
            linear(x, rows, &layer, After::default(), Output::F32(&mut out), isa, &Ctl::new(1)).unwrap();
            bits(&out)
        };
        let expected: Vec<u32> = (0..m).flat_map(|row| run(Isa::Scalar, row, 1)).collect();
        for &isa in &Isa::available()[1..] {
            assert!(run(isa, 0, m) == expected, "{m} rows of {nbits} bits on {}", isa.name());
        }
    }
}

/// Rows' sums where they are not as far apart as the rows before.
#[test]
fn sums_go_to_rows_wherever_they_are() {
    let (m, n, k) = (52, 64, 200);
    let (a, b) = (bytes(m * k, 1), signed(&bytes(k * n, 2)));
    let tiled = Tiled::from_kn(&b, k, n).unwrap();
    let weight = Grouping::random(Groups::new(4, 32, false).unwrap(), n, k, 3);
    let grouped = Grouped::from_bytes(&weight.bytes, k, n, None).unwrap();
    let with = Found { panel: tiled.panel(0), excess: &[], fits: Fits::Unknown };
    for &isa in Isa::available() {
        for groups in [false, true] {
            let run = |isa, gap: &dyn Fn(usize) -> usize| {
                let lens: Vec<usize> = (0..m).map(|row| n + gap(row)).collect();
                let (mut all, mut out) = (vec![7; lens.iter().sum()], vec![]);
                let mut rest = &mut all[..];
                for len in lens {
                    let (row, others) = rest.split_at_mut(len);
                    out.push(row);
                    rest = others;
                }
                let len = Rows::scratch_len(isa, m, k, usize::MAX).max(Rows::groups_scratch_len(
                    isa,
                    m,
                    (k, k),
                    weight.groups,
                ));
                let mut scratch = vec![0; len];
                let mut rows = Rows::new(isa, &a, k, 0, &mut scratch);
                if groups {
                    rows.times_groups(isa, &grouped.panel(0), 0..k, &mut out);
                } else {
                    rows.times(isa, with, &[5; PANEL], &mut out, 0);
                }
                assert!(out.iter().all(|row| row[n..].iter().all(|&beside| beside == 7)), "{}", isa.name());
                out.iter().flat_map(|row| row[..n].to_vec()).collect::<Vec<_>>()
            };
            let expected = run(Isa::Scalar, &|_| 0);
            for gap in [&|_| 0usize as _, &|_| 3, &|row| row % 3, &|row| usize::from(row == 40)]
                as [&dyn Fn(usize) -> usize; 4]
            {
                assert_eq!(run(isa, gap), expected, "{}", isa.name());
            }
        }
    }
}

/// The 16-bit sums of a group where they are largest.
#[test]
fn groups_that_just_fit_16_bits() {
    for nbits in [2, 3, 4, 5, 6, 8] {
        let (q, groups) = (u8::MAX >> (8 - nbits), Groups::new(nbits, 128, false).unwrap());
        for (row, code, zero) in [(0, 0, q), (0, q, 0), (255, 0, q), (255, q, 0), (0, 0, 0), (255, q, q)] {
            let (n, k) = (17, 128);
            let (mut codes, mut multipliers) = (vec![code; n * k], vec![groups.most(); n]);
            let (mut zeros, mut scale) = (vec![zero; n], vec![1.0; n]);
            let mut bytes = vec![0; groups.len(k, n).unwrap()];
            let parts =
                GroupedRows { codes: &mut codes, multipliers: &mut multipliers, zeros: &mut zeros, scale: &mut scale };
            tile_groups(&parts, groups, None, n, k, &mut bytes, &Ctl::new(1)).unwrap();
            let weight = Grouping {
                groups,
                codes,
                multipliers,
                zeros,
                scale,
                bytes,
                int8: vec![],
                floats: vec![],
                halves: vec![],
            };
            for m in [1, 7, 40] {
                let a = vec![row; m * k];
                vnni_is_right(Plain::<16>, &a, &weight, (n, k));
                vnni_is_right(Plain::<8>, &a, &weight, (n, k));
                for &isa in Isa::available() {
                    rows_in_groups_are_right(isa, &a, &weight, (n, k));
                }
            }
        }
    }
}

#[test]
fn groups_whose_sums_just_fit_and_just_do_not() {
    // 255 · 15 · 255 · K is below 2^31 to K = 2201.
    for (k, code, zero) in [2201, 2202, 5000].into_iter().flat_map(|k| [(k, 15, 0), (k, 0, 15)]) {
        let groups = Groups::new(4, 32, false).unwrap();
        let mut parts = (vec![code; k], vec![255; groups.count(k)], vec![zero; groups.count(k)], vec![1.0]);
        let rows =
            GroupedRows { codes: &mut parts.0, multipliers: &mut parts.1, zeros: &mut parts.2, scale: &mut parts.3 };
        let mut bytes = vec![0; groups.len(k, 1).unwrap()];
        tile_groups(&rows, groups, None, 1, k, &mut bytes, &Ctl::new(1)).unwrap();
        let weight = Weight::from_bytes(&bytes, k, 1, None).unwrap();
        let layer = Layer { weight: &weight, bias: None, activation: Activation::Identity };
        for (&isa, m) in Isa::available().iter().flat_map(|isa| [(isa, 1), (isa, 7)]) {
            for (a, zero_point) in [(255u8, 0u8), (0, 255)] {
                let scales = vec![RowScale { scale: 1.0, zero_point }; m];
                let mut got = vec![0f32; m];
                let (x, out) = (vec![a; m * k], Output::F32(&mut got));
                linear(Input::Codes(&x, &scales), m, &layer, After::default(), out, isa, &Ctl::new(1)).unwrap();
                let one = (i64::from(a) - i64::from(zero_point)) * 255 * (i64::from(code) - i64::from(zero));
                assert_eq!(got, vec![(one * k as i64) as f32; m], "{k} {code} {a} {}", isa.name());
            }
        }
    }
}

#[test]
fn weights_in_groups_are_what_was_tiled() {
    for (nbits, group_size, symmetric) in
        [(2, 8, false), (3, 32, false), (4, 40, true), (5, 64, false), (6, 1024, true), (8, 24, false)]
    {
        let groups = Groups::new(nbits, group_size, symmetric).unwrap();
        for (n, k) in [(1, 1), (70, 33), (130, 100)] {
            let w = Grouping::random(groups, n, k, 7);
            let grouped = Grouped::from_bytes(&w.bytes, k, n, None).unwrap();
            let count = groups.count(k);
            let (mut codes, mut multipliers) = (vec![9; n * k], vec![9; n * count]);
            let (mut zeros, mut scale) = (vec![9; n * count], vec![9.0; n]);
            let parts =
                GroupedRows { codes: &mut codes, multipliers: &mut multipliers, zeros: &mut zeros, scale: &mut scale };
            grouped.untile(parts).unwrap();
            assert_eq!((&codes, &multipliers, &zeros, &scale), (&w.codes, &w.multipliers, &w.zeros, &w.scale));
            let mut row = vec![0f32; k];
            grouped.dequantize_column(n - 1, &mut row).unwrap();
            assert!(row.iter().enumerate().all(|(i, &x)| x == w.value(n - 1, i, k) as f32));
            assert!(Grouped::from_bytes(&w.bytes[..w.bytes.len() - 1], k, n, None).is_err());
            assert!(Grouped::from_bytes(&w.bytes, k + 32, n, None).is_err());
        }
    }
}

/// Forms of weights with tables, without their inputs.
fn tabled() -> impl Strategy<Value = Groups> {
    let tables = prop::sample::select(&[Tables::Tensor, Tables::Row, Tables::Group][..]);
    let forms = (prop_oneof![2u32..=4, Just(8)], prop_oneof![Just(4usize), Just(8), 1usize..12], tables);
    forms.prop_map(|(nbits, sixteens, tables)| {
        Groups::new(nbits, 16 * sixteens, true).unwrap().with_tables(Some(tables)).unwrap()
    })
}

#[test]
fn products_with_tables_equal_the_definition_on_every_isa_and_thread_count() {
    let rows = prop_oneof![1usize..12, 90usize..100, 190usize..200];
    let deep = prop_oneof![1usize..140, (1usize..3, 0usize..3).prop_map(|(i, d)| 512 * i + d - 1)];
    for &isa in Isa::available() {
        let (cases, fours) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let mut runner = runner(200);
        runner
            .run(&(tabled(), rows.clone(), 1usize..140, deep.clone(), any::<u64>()), |(groups, m, n, k, seed)| {
                let weight = Grouping::random(groups, n, k, seed);
                let grouped = Grouped::from_bytes(&weight.bytes, k, n, weight.codebook()).unwrap();
                fours.set(fours.get() + usize::from(grouped.fits() == 4));
                cases.set(cases.get() + weight.is_right(m, n, k, isa, seed));
                Ok(())
            })
            .unwrap();
        assert!(fours.get() * 3 < cases.get() && (fours.get() > 0 || cases.get() < 60));
        println!("gemm: {} products with tables on {}", cases.get(), isa.name());
    }
}

/// Four products where their sum in 16 bits is largest, and one past it.
#[test]
fn fours_that_just_fit_and_just_do_not() {
    let (k, n, m) = (64, 16, 12);
    let entries = [(32, 32, 4), (-32, -32, 4), (33, 33, 2), (-33, -33, 2), (64, 64, 2), (-65, -64, 2), (66, 65, 1)];
    for (entry, integer, fits) in entries.into_iter().chain([(-66, -65, 1)]) {
        let groups = Groups::new(2, 64, true).unwrap().with_tables(Some(Tables::Tensor)).unwrap();
        let mut parts = (vec![1u8; n * k], vec![255u8; n], vec![2u8; n], vec![1f32; n]);
        let (int8, mut bytes) = ([0, entry, 0, 0], vec![0; groups.len(k, n).unwrap()]);
        let rows =
            GroupedRows { codes: &mut parts.0, multipliers: &mut parts.1, zeros: &mut parts.2, scale: &mut parts.3 };
        let book = Some(Codebook::Int8(&int8));
        tile_groups(&rows, groups, book, n, k, &mut bytes, &Ctl::new(1)).unwrap();
        assert_eq!(Grouped::from_bytes(&bytes, k, n, book).unwrap().fits(), fits, "{entry}");
        let weight = Weight::from_bytes(&bytes, k, n, book).unwrap();
        let layer = Layer { weight: &weight, bias: None, activation: Activation::Identity };
        let (a, scales) = (vec![255u8; m * k], vec![RowScale { scale: 1.0, zero_point: 0 }; m]);
        for &isa in Isa::available() {
            let mut got = vec![0.0; m * n];
            let x = Input::Codes(&a, &scales);
            linear(x, m, &layer, After::default(), Output::F32(&mut got), isa, &Ctl::new(1)).unwrap();
            assert!(got.iter().all(|&sum| sum == (255 * 64 * integer) as f32), "{entry} on {}", isa.name());
        }
    }
}

/// Rows of floats times a weight: the same bits everywhere, but where tiles sum them, and each row's by itself; and
/// within (K + 4) · 2^-23 of the exact sum.
#[test]
fn products_of_floats_are_near_and_the_same_on_every_isa_and_thread_count() {
    let forms = prop_oneof![
        tabled(),
        (prop_oneof![2u32..=6, Just(8)], (1usize..12).prop_map(|g| 8 * g), any::<bool>())
            .prop_map(|(nbits, group_size, symmetric)| Groups::new(nbits, group_size, symmetric).unwrap()),
        (2u32..=4, 1usize..5, prop::sample::select(&[Tables::Row, Tables::Group][..])).prop_map(
            |(nbits, size, tables)| Groups::new(nbits, 32 * size, true).unwrap().with_tables(Some(tables)).unwrap()
        ),
    ];
    let rows = prop_oneof![1usize..20, 190usize..200];
    // Few outputs have few tables, which together may be as short as one of another width.
    let outputs = prop_oneof![1usize..5, 1usize..140];
    for &isa in Isa::available() {
        let (cases, tiled) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let mut runner = runner(200);
        let any_case = (forms.clone(), rows.clone(), outputs.clone(), 1usize..300, any::<u64>());
        runner
            .run(&any_case, |(groups, m, n, k, seed)| {
                let weight = Grouping::random(groups.with(Inputs::Floats), n, k, seed);
                let x = floats(m * k, !seed);
                let bytes = Weight::from_bytes(&weight.bytes, k, n, weight.codebook()).unwrap();
                let layer = Layer { weight: &bytes, bias: None, activation: Activation::Identity };
                let run = |x: &[f32], isa: Isa, threads: usize| {
                    let m = x.len() / k;
                    let (mut got, input) = (vec![0.0; m * n], Input::Floats(Floats::F32(x)));
                    linear(input, m, &layer, After::default(), Output::F32(&mut got), isa, &Ctl::new(threads)).unwrap();
                    got
                };
                let tiles = weight.is_for_tiles(k, isa);
                tiled.set(tiled.get() + usize::from(tiles));
                let expected = run(&x, if tiles { isa } else { Isa::Scalar }, 1);
                for threads in [1, 2, 7] {
                    prop_assert_eq!(bits(&run(&x, isa, threads)), bits(&expected), "{}x{}x{}", m, n, k);
                }
                prop_assert_eq!(bits(&run(&x[..k], isa, 1)), bits(&expected[..n]));
                let mut w = vec![0.0; n * k];
                lookup((0..n as i64).collect::<Vec<_>>().into_iter(), &bytes, &mut w).unwrap();
                for (i, &got) in expected.iter().enumerate() {
                    let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                    let terms = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                    prop_assert!(
                        (f64::from(got) - sum).abs() <= size * (k + 4) as f64 / (1 << 23) as f64,
                        "{got} {sum}"
                    );
                }
                cases.set(cases.get() + 4);
                Ok(())
            })
            .unwrap();
        println!("gemm: {} products of floats on {}, {} weights by tiles", cases.get(), isa.name(), tiled.get());
        assert!(!isa.has_amx() || tiled.get() >= 20);
    }
}

/// Floats and entries of every size, side by side too; rows with nothing to multiply, with infinities, with NaN.
#[test]
fn floats_of_every_size_times_tables() {
    let (n, k) = (33, 100);
    for &isa in Isa::available() {
        // Some entries have more bits, or none are of a size that tiles keep.
        for (tables, size, power, kept, halves) in [
            (Tables::Group, 32, 0, true, true),
            (Tables::Group, 64, -60, true, false),
            (Tables::Group, 64, -60, true, true),
            (Tables::Row, 128, 25, true, false),
            (Tables::Row, 128, 25, true, true),
            (Tables::Row, 96, -30, true, false),
            (Tables::Group, 64, 0, false, false),
            (Tables::Group, 64, 0, false, true),
            (Tables::Group, 64, -110, false, true),
            (Tables::Row, 96, -140, false, true),
            (Tables::Row, 64, 70, false, true),
            (Tables::Group, 32, 70, false, false),
        ] {
            let groups = Groups::new(4, size, true).unwrap().with_tables(Some(tables)).unwrap().with(Inputs::Floats);
            let mut weight = Grouping::random(groups, n, k, 6);
            for (i, x) in weight.floats.iter_mut().enumerate() {
                *x = if i % 7 == 0 { 0.0 } else { (f64::from(*x) * 2f64.powi(power)) as f32 };
            }
            // The last entry alone, of a second table of two.
            if !kept && power == 0 {
                *weight.floats.last_mut().unwrap() = if halves { 1e-30 } else { 1.0 + f32::EPSILON };
            }
            if halves {
                weight.halves = upper_halves(&weight.floats);
                weight.floats.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits() & u32::MAX << 16));
            }
            let bytes = Weight::from_bytes(&weight.bytes, k, n, weight.codebook()).unwrap();
            let layer = Layer { weight: &bytes, bias: None, activation: Activation::Identity };
            let mut w = vec![0.0; n * k];
            lookup((0..n as i64).collect::<Vec<_>>().into_iter(), &bytes, &mut w).unwrap();
            for m in [1, 5, 16, 17, 40, 135] {
                let mut x = floats(m * k, 9);
                for (r, x) in x.chunks_exact_mut(k).enumerate() {
                    // What a product may reach stays in range.
                    let most = if power > 0 { 30 } else { 100 };
                    let mut size = [0, 40.min(most), -100, -126, -140, most][r % 6];
                    for (i, x) in x.iter_mut().enumerate() {
                        if r % 2 == 1 {
                            size = [most, 0, -40, -100][i % 4];
                        }
                        *x = (f64::from(*x) / 1e3 * 2f64.powi(size)) as f32;
                    }
                    match r {
                        7 => x.fill(0.0),
                        8 => x[k - 1] = f32::INFINITY,
                        9 => x[3] = f32::NAN,
                        _ => (),
                    }
                }
                let run = |x: &[f32], isa: Isa| {
                    let (mut got, input) = (vec![0.0; x.len() / k * n], Input::Floats(Floats::F32(x)));
                    let out = Output::F32(&mut got);
                    linear(input, x.len() / k, &layer, After::default(), out, isa, &Ctl::new(1)).unwrap();
                    got
                };
                let (got, scalar) = (run(&x, isa), run(&x, Isa::Scalar));
                assert_eq!(bits(&got) == bits(&scalar), !kept || !isa.has_amx(), "2^{power} on {}", isa.name());
                let last = run(&x[(m - 1) * k..], isa);
                assert_eq!(bits(&got[(m - 1) * n..]), bits(&last), "a row by itself");
                for (i, &got) in got.iter().enumerate() {
                    let (r, x, w) = (i / n, &x[i / n * k..][..k], &w[i % n * k..][..k]);
                    if r == 8 || r == 9 {
                        assert!(got.is_nan());
                        continue;
                    }
                    let terms = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                    // An entry's value is rounded to a float too, and below 2^-149 there is none.
                    let greatest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                    let least = 128.0 * k as f64 * 2f64.powi(-149) * (1.0 + f64::from(greatest));
                    let near = size * (k + 4) as f64 / (1 << 23) as f64 + least;
                    assert!(
                        (f64::from(got) - sum).abs() <= near,
                        "{got} {sum}, 2^{power}, row {r} of {m}, {}",
                        isa.name()
                    );
                }
            }
        }
    }
}

/// Layers of floats in blocks of rows: two as one, before a norm, put out as codes.
#[test]
fn layers_of_float_tables_are_the_same_in_blocks() {
    let (m, k, inner, n) = (200, 96, 130, 70);
    for &isa in Isa::available() {
        for (tables, size) in [(Tables::Group, 32), (Tables::Row, 64)] {
            let groups = Groups::new(4, size, true).unwrap().with_tables(Some(tables)).unwrap().with(Inputs::Floats);
            let (up, down) = (Grouping::random(groups, inner, k, 2), Grouping::random(groups, n, inner, 4));
            assert_eq!(up.is_for_tiles(k, isa) && down.is_for_tiles(inner, isa), isa.has_amx());
            let up = Weight::from_bytes(&up.bytes, k, inner, up.codebook()).unwrap();
            let down = Weight::from_bytes(&down.bytes, inner, n, down.codebook()).unwrap();
            let up = Layer { weight: &up, bias: None, activation: Activation::Relu };
            let down = Layer { weight: &down, bias: None, activation: Activation::Identity };
            let plain = |x: &[f32], layer: &Layer, after: After| {
                let mut got = vec![0.0; m * layer.weight.n()];
                let input = Input::Floats(Floats::F32(x));
                linear(input, m, layer, after, Output::F32(&mut got), isa, &Ctl::new(1)).unwrap();
                got
            };
            let x = floats(m * k, 1);
            let hidden = plain(&x, &up, After::default());
            let expected = plain(&hidden, &down, After::default());
            let (gamma, beta) = (floats(n, 7), floats(n, 8));
            let norm = Norm { gamma: &gamma, beta: &beta, eps: 1e-12 };
            let mut normed = vec![0.0; m * n];
            for (x, out) in expected.chunks(n).zip(normed.chunks_mut(n)) {
                epilogue::normalize(crate::lanes::Scalar, x, &norm, out);
            }
            assert_eq!(bits(&plain(&hidden, &down, After { residual: None, norm: Some(norm) })), bits(&normed));
            for threads in [1, 2, 7] {
                let (mut got, x) = (vec![0.0; m * n], Floats::F32(&x));
                mlp(x, m, &up, &down, After::default(), Output::F32(&mut got), isa, &Ctl::new(threads)).unwrap();
                assert_eq!(bits(&got), bits(&expected), "{} threads on {}", threads, isa.name());
                let (mut codes, mut scales) = (vec![0; m * n], vec![RowScale { scale: 0.0, zero_point: 0 }; m]);
                let (input, out) = (Input::Floats(Floats::F32(&hidden)), Output::Codes(&mut codes, &mut scales));
                linear(input, m, &down, After::default(), out, isa, &Ctl::new(threads)).unwrap();
                for ((codes, scale), row) in codes.chunks(n).zip(&scales).zip(expected.chunks(n)) {
                    let mut want = vec![0; n];
                    let of = quantize_row(Floats::F32(row), &Levels::RANGE, &mut want, isa);
                    assert_eq!((codes, scale.scale, scale.zero_point), (&want[..], of.scale, of.zero_point));
                }
            }
        }
    }
}

/// A rotated weight's bytes, of these floats.
fn rotated(w: &[f32], n: usize, k: usize, groups: Groups, equalized: bool, isa: Isa) -> Vec<u8> {
    let mut out = vec![0; groups_weight_len(k, n, groups, equalized).unwrap()];
    quantize_weight_groups(w, n, k, groups, (equalized, true), None, None, &mut out, isa, &Ctl::new(2)).unwrap();
    out
}

#[test]
fn rotated_layers_equal_the_definition_on_every_isa_and_thread_count() {
    let forms = (2u32..=6, (1usize..20).prop_map(|g| 8 * g), any::<bool>(), any::<bool>());
    let blocks = (prop::sample::select(&[8usize, 16, 32, 128, 512][..]), 1usize..6);
    for &isa in Isa::available() {
        let cases = std::cell::Cell::new(0);
        let mut runner = runner(60);
        runner
            .run(&(forms.clone(), blocks.clone(), 1usize..30, 1usize..80, any::<u64>()), |case| {
                let ((nbits, group_size, symmetric, equalized), (rotation, blocks), m, n, seed) = case;
                let k = rotation * blocks;
                let groups = Groups::new(nbits, group_size, symmetric).unwrap().rotated(rotation).unwrap();
                let (x, w) = (floats(m * k, seed), floats(n * k, !seed));
                let bytes = rotated(&w, n, k, groups, equalized, isa);
                prop_assert_eq!(&bytes, &rotated(&w, n, k, groups, equalized, Isa::Scalar));
                prop_assert_eq!(Groups::of(&bytes).unwrap(), groups);
                let weight = Weight::from_bytes(&bytes, k, n, None).unwrap();
                let layer = Layer { weight: &weight, bias: None, activation: Activation::Relu };
                let expected = definition(&x, m, &layer, None);
                for threads in [1, 2, 7] {
                    let (mut got, input) = (vec![0.0; m * n], Input::Floats(Floats::F32(&x)));
                    linear(input, m, &layer, After::default(), Output::F32(&mut got), isa, &Ctl::new(threads)).unwrap();
                    prop_assert_eq!(bits(&got), bits(&expected), "{}x{}x{} {}", m, n, k, isa.name());
                }
                cases.set(cases.get() + 3);
                Ok(())
            })
            .unwrap();
        println!("gemm: {} rotated layers on {}", cases.get(), isa.name());
    }
}

/// Rotated or not, a weight stands for itself, and a layer for its product.
#[test]
fn a_rotated_weight_stands_for_itself() {
    let (m, n, k) = (3, 9, 96);
    let (x, w) = (floats(m * k, 5), floats(n * k, 6));
    let bytes = rotated(&w, n, k, Groups::new(6, 32, false).unwrap().rotated(32).unwrap(), true, Isa::best());
    let weight = Weight::from_bytes(&bytes, k, n, None).unwrap();
    let mut back = vec![0f32; n * k];
    lookup((0..9).map(i64::from), &weight, &mut back).unwrap();
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = |a: &[f32], b: &[f32]| {
        let all = norm(&mut b.iter().map(|&b| f64::from(b)));
        norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b))) / all
    };
    assert!(off(&back, &w) < 0.03, "{}", off(&back, &w));
    let layer = Layer { weight: &weight, bias: None, activation: Activation::Identity };
    let dot = |r: usize, j: usize| (0..k).map(|i| x[r * k + i] * back[j * k + i]).sum::<f32>();
    let products: Vec<f32> = (0..m * n).map(|i| dot(i / n, i % n)).collect();
    let got = definition(&x, m, &layer, None);
    assert!(off(&got, &products) < 0.02, "{}", off(&got, &products));
}

#[test]
fn rotations_that_cannot_be_are_refused() {
    let groups = Groups::new(4, 32, false).unwrap();
    for rotation in [1, 4, 12, 8192, usize::MAX] {
        assert!(groups.rotated(rotation).is_err(), "{rotation}");
    }
    assert_eq!(groups.rotated(8).and_then(|groups| groups.rotated(0)).unwrap(), groups);
    let groups = groups.rotated(16).unwrap();
    assert!(groups.len(40, 3).is_err());
    let bytes = rotated(&floats(3 * 48, 1), 3, 48, groups, false, Isa::Scalar);
    assert!(Weight::from_bytes(&bytes, 48, 3, None).is_ok());
    // Without the equalizer that has its signs, in other blocks, in none that can be.
    assert!(Weight::from_bytes(&bytes[..bytes.len() - 4 * 48], 48, 3, None).is_err());
    for word in [32u32, 64, 12, 4, 1 << 31] {
        let mut bad = bytes.clone();
        bad[24..28].copy_from_slice(&word.to_le_bytes());
        assert!(Weight::from_bytes(&bad, 48, 3, None).is_err(), "{word}");
    }
    let weight = Weight::from_bytes(&bytes, 48, 3, None).unwrap();
    let layer = Layer { weight: &weight, bias: None, activation: Activation::Identity };
    let (codes, rows, mut out) = ([0; 48], [RowScale { scale: 1.0, zero_point: 0 }], [0.0; 3]);
    let (x, ctl) = (Input::Codes(&codes, &rows), Ctl::new(1));
    assert!(linear(x, 1, &layer, After::default(), Output::F32(&mut out), Isa::Scalar, &ctl).is_err());
}

#[test]
fn sums_are_exact_to_the_limit_and_past_it() {
    for &isa in Isa::available() {
        for (a, w, limit) in [(255u8, -128i8, MAX_K_U8), (0x80, -128, MAX_K_I8), (0x80, 127, MAX_K_I8)] {
            let sign = limit == MAX_K_I8;
            for k in [limit - 1, limit, limit + 1] {
                let (a, b) = (vec![a; k], vec![w; k]);
                let a_signed = signed(&a);
                let lhs = if sign { Lhs::I8(&a_signed) } else { Lhs::U8(&a) };
                let tiled = Tiled::from_kn(&b, k, 1).unwrap();
                let expected = k as i64 * if sign { -128 } else { 255 } * i64::from(w);
                let mut narrow = [0i32];
                let done = matmul_i32(lhs, 1, &tiled, &mut narrow, isa, &Ctl::new(1));
                assert_eq!(done.is_ok(), k <= limit);
                if k <= limit {
                    assert_eq!(i64::from(narrow[0]), expected, "{} {k}", isa.name());
                }
                // As many rows as tiles are asked for, whose last pass is no whole tiles.
                let (a, a_signed) = (a.repeat(7), a_signed.repeat(7));
                let lhs = if sign { Lhs::I8(&a_signed) } else { Lhs::U8(&a) };
                let mut wide = [0i64; 7];
                matmul_i64(lhs, 7, &tiled, &mut wide, isa, &Ctl::new(1)).unwrap();
                assert_eq!(wide, [expected; 7], "{} {k}", isa.name());
            }
        }
    }
}

/// A layer in the plainest words, one element at a time.
fn definition(x: &[f32], m: usize, layer: &Layer, residual: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![0.0; m * layer.weight.n()];
    linear(Input::Floats(Floats::F32(x)), m, layer, after(residual), Output::F32(&mut out), Isa::Scalar, &Ctl::new(1))
        .unwrap();
    out
}

fn after(residual: Option<&[f32]>) -> After<'_> {
    After { residual: residual.map(Floats::F32), norm: None }
}

fn floats(len: usize, seed: u64) -> Vec<f32> {
    bytes(len * 4, seed).chunks(4).map(|b| (i32::from_le_bytes(b.try_into().unwrap()) >> 8) as f32 / 2e6).collect()
}

/// A weight's bytes; with an odd seed it is equalized.
fn weight(k: usize, n: usize, seed: u64) -> Vec<u8> {
    let codes = signed(&bytes(n * k, seed));
    let scales: Vec<f32> = (0..n).map(|i| 0.001 + i as f32 * 1e-4).collect();
    let mut out = vec![0; tiled_len(k, n).unwrap()];
    tile(&codes, k, n, 1, k, Some(&scales), &mut out, &Ctl::new(1)).unwrap();
    if seed % 2 == 1 {
        out.extend((0..k).flat_map(|i| [0.25f32, 0.5, 1.0, 2.0][i % 4].to_le_bytes()));
    }
    out
}

/// A NaN's sign and payload are the compiler's choice: each is one to this.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu];

#[test]
fn layers_equal_the_definition_bit_for_bit() {
    for &isa in Isa::available() {
        let cases = std::cell::Cell::new(0);
        let mut runner = runner(200);
        runner
            .run(
                &(sizes(), any::<u64>(), 0..5usize, any::<bool>(), any::<bool>()),
                |((m, n, k), seed, act, with_bias, with_residual)| {
                    let (x, w, bias, residual) =
                        (floats(m * k, seed), weight(k, n, seed ^ 7), floats(n, seed ^ 9), floats(m * n, seed ^ 11));
                    let w = Weight::from_bytes(&w, k, n, None).unwrap();
                    let layer =
                        Layer { weight: &w, bias: with_bias.then_some(&bias[..]), activation: ACTIVATIONS[act] };
                    let residual = with_residual.then_some(&residual[..]);
                    let expected = definition(&x, m, &layer, residual);
                    for threads in [1, 2, 7] {
                        let ctl = Ctl::new(threads);
                        let mut got = vec![0.0; m * n];
                        let input = Input::Floats(Floats::F32(&x));
                        linear(input, m, &layer, after(residual), Output::F32(&mut got), isa, &ctl).unwrap();
                        prop_assert_eq!(
                            bits(&got),
                            bits(&expected),
                            "{}x{}x{} {:?} {}",
                            m,
                            n,
                            k,
                            layer.activation,
                            isa.name()
                        );

                        // Codes out are the rows of floats, quantized.
                        if residual.is_none() {
                            let (mut codes, mut rows) =
                                (vec![0; m * n], vec![RowScale { scale: 0.0, zero_point: 0 }; m]);
                            linear(input, m, &layer, After::default(), Output::Codes(&mut codes, &mut rows), isa, &ctl)
                                .unwrap();
                            let mut one = vec![0; n];
                            for (r, row) in rows.iter().enumerate() {
                                let expected = quantize_row(
                                    Floats::F32(&expected[r * n..(r + 1) * n]),
                                    &Levels::RANGE,
                                    &mut one,
                                    Isa::Scalar,
                                );
                                prop_assert_eq!((*row, &codes[r * n..(r + 1) * n]), (expected, &one[..]));
                            }
                        }
                        // One row alone is the same row.
                        let mut alone = vec![0.0; n];
                        let last = Input::Floats(Floats::F32(&x[(m - 1) * k..]));
                        linear(
                            last,
                            1,
                            &layer,
                            after(residual.map(|r| &r[(m - 1) * n..])),
                            Output::F32(&mut alone),
                            isa,
                            &ctl,
                        )
                        .unwrap();
                        prop_assert_eq!(bits(&alone), bits(&expected[(m - 1) * n..]));

                        // bfloat16 out is the float, rounded.
                        if residual.is_none() {
                            let mut half = vec![0u16; m * n];
                            linear(input, m, &layer, After::default(), Output::Bf16(&mut half), isa, &ctl).unwrap();
                            let rounded: Vec<u16> =
                                expected.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect();
                            prop_assert_eq!(half, rounded);
                        }
                        cases.set(cases.get() + 1);
                    }
                    Ok(())
                },
            )
            .unwrap();
        println!("gemm: {} layers on {}", cases.get(), isa.name());
    }
}

#[test]
fn an_mlp_is_two_layers() {
    for &isa in Isa::available() {
        for (m, k, inner, n) in [(1, 1, 1, 1), (3, 17, 65, 5), (50, 64, 128, 64), (130, 33, 200, 31)] {
            let (x, up, down) = (floats(m * k, 1), weight(k, inner, 2), weight(inner, n, 3));
            let (up, down) =
                (Weight::from_bytes(&up, k, inner, None).unwrap(), Weight::from_bytes(&down, inner, n, None).unwrap());
            let (b1, b2, residual) = (floats(inner, 4), floats(n, 5), floats(m * n, 6));
            let up = Layer { weight: &up, bias: Some(&b1), activation: Activation::Gelu };
            let down = Layer { weight: &down, bias: Some(&b2), activation: Activation::Identity };
            let (gamma, beta) = (floats(n, 7), floats(n, 8));
            let plain = definition(&definition(&x, m, &up, None), m, &down, Some(&residual));
            for norm in [None, Some(Norm { gamma: &gamma, beta: &beta, eps: 1e-12 })] {
                let mut expected = plain.clone();
                if let Some(norm) = &norm {
                    for (x, out) in plain.chunks(n).zip(expected.chunks_mut(n)) {
                        epilogue::normalize(crate::lanes::Scalar, x, norm, out);
                    }
                    // The same through `linear`, and close to float64's.
                    let hidden = definition(&x, m, &up, None);
                    let mut got = vec![0.0; m * n];
                    let after = After { residual: Some(Floats::F32(&residual)), norm: Some(*norm) };
                    linear(
                        Input::Floats(Floats::F32(&hidden)),
                        m,
                        &down,
                        after,
                        Output::F32(&mut got),
                        isa,
                        &Ctl::new(2),
                    )
                    .unwrap();
                    assert_eq!(bits(&got), bits(&expected), "{}", isa.name());
                    for (x, y) in plain.chunks(n).zip(expected.chunks(n)) {
                        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
                        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
                        for (((&x, &y), &g), &b) in x.iter().zip(y).zip(&gamma).zip(&beta) {
                            let exact = (f64::from(x) - mean) / (variance + 1e-12).sqrt() * f64::from(g) + f64::from(b);
                            assert!(
                                n == 1 || (f64::from(y) - exact).abs() <= 2e-5 * (1.0 + exact.abs()),
                                "{y} {exact}"
                            );
                        }
                    }
                }
                for threads in [1, 2, 7] {
                    let mut got = vec![0.0; m * n];
                    mlp(
                        Floats::F32(&x),
                        m,
                        &up,
                        &down,
                        After { residual: Some(Floats::F32(&residual)), norm },
                        Output::F32(&mut got),
                        isa,
                        &Ctl::new(threads),
                    )
                    .unwrap();
                    assert_eq!(bits(&got), bits(&expected), "{}", isa.name());
                }
            }
        }
    }
}

#[test]
fn a_row_with_nan_spoils_itself_alone() {
    let (m, k, n) = (5, 20, 70);
    let (mut x, w) = (floats(m * k, 1), weight(k, n, 2));
    let w = Weight::from_bytes(&w, k, n, None).unwrap();
    let layer = Layer { weight: &w, bias: None, activation: Activation::Gelu };
    let clean = definition(&x, m, &layer, None);
    x[2 * k + 3] = f32::NAN;
    x[4 * k] = f32::INFINITY;
    for &isa in Isa::available() {
        let mut got = vec![0.0; m * n];
        linear(Input::Floats(Floats::F32(&x)), m, &layer, After::default(), Output::F32(&mut got), isa, &Ctl::new(2))
            .unwrap();
        for r in 0..m {
            let row = &got[r * n..(r + 1) * n];
            if r == 2 || r == 4 {
                assert!(row.iter().all(|y| y.is_nan()), "{}", isa.name());
            } else {
                assert_eq!(bits(row), bits(&clean[r * n..(r + 1) * n]));
            }
        }
    }
}

#[test]
fn activations_keep_their_error_budget() {
    let values: Vec<f32> = (-4000..=4000).map(|i| i as f32 / 300.0).collect();
    let unit = {
        let mut out = vec![0; tiled_len(1, 1).unwrap()];
        tile(&[1], 1, 1, 1, 1, None, &mut out, &Ctl::new(1)).unwrap();
        out
    };
    let unit = Weight::from_bytes(&unit, 1, 1, None).unwrap();
    // A row of one value is exact: its output is activation(value).
    let exact: [(Activation, fn(f64) -> f64); 4] = [
        (Activation::Relu, |y| y.max(0.0)),
        (Activation::Gelu, |y| 0.5 * y * erfc(-y / 2f64.sqrt())),
        (Activation::GeluTanh, |y| {
            0.5 * y * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y.powi(3))).tanh())
        }),
        (Activation::Silu, |y| y / (1.0 + (-y).exp())),
    ];
    for (activation, exact) in exact {
        let layer = Layer { weight: &unit, bias: None, activation };
        let got = definition(&values, values.len(), &layer, None);
        for (&y, got) in values.iter().zip(got) {
            let y = f64::from(y);
            let error = (f64::from(got) - exact(y)).abs() / y.abs().max(1.0);
            assert!(error <= 5e-7, "{activation:?}({y}): {got}, error {error:e}");
        }
    }
}

/// erfc by its Taylor series about 0 for small |x|, else by its continued fraction.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let mut fraction = 0.0;
    for n in (1..100).rev() {
        fraction = f64::from(n) / 2.0 / (x + fraction);
    }
    (-x * x).exp() / (std::f64::consts::PI.sqrt() * (x + fraction))
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let tiled = Tiled::from_kn(&[1; 6], 3, 2).unwrap();
    let ctl = Ctl::new(1);
    assert!(matmul_i32(Lhs::U8(&[0; 7]), 2, &tiled, &mut [0; 4], Isa::Scalar, &ctl).is_err());
    assert!(matmul_i32(Lhs::U8(&[0; 6]), 2, &tiled, &mut [0; 5], Isa::Scalar, &ctl).is_err());
    assert!(Tiled::from_kn(&[1; 6], 4, 2).is_err());
    assert!(Tiled::from_bytes(vec![0; 5], 3, 2).is_err());
    assert!(
        tiled_len(usize::MAX, 3).is_err()
            && tiled_len(3, usize::MAX).is_err()
            && tiled_len(usize::MAX / 8, 64).is_err()
    );
}
