use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Numbers that are the same on every run.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Inputs, `percent` of them up to `most`.
    fn inputs(&mut self, count: usize, percent: u64, most: u64) -> Vec<u8> {
        (0..count).map(|_| if self.below(100) < percent { 1 + self.below(most) as u8 } else { 0 }).collect()
    }

    /// Codes of so many bits, many of them extreme.
    fn codes(&mut self, count: usize, nbits: u32) -> Vec<i8> {
        let half = 1i64 << (nbits - 1);
        let one = |pick: u64, any: u64| match pick {
            0 => -half,
            1 => half - 1,
            _ => any as i64 - half,
        };
        (0..count).map(|_| one(self.below(4), self.below(2 * half as u64)) as i8).collect()
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.below(1 << 20) as f32 - 5e5) * (self.below(9) as f32 - 4.0).exp2()).collect()
    }
}

fn draw(seed: u64) -> Draw {
    Draw(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15))
}

/// Rows of 0 and 1 as bits.
fn packed(bytes: &[u8], k: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for row in bytes.chunks(k.max(1)) {
        out.extend(row.chunks(8).map(|eight| eight.iter().rev().fold(0, |byte, bit| byte << 1 | bit)));
    }
    out
}

/// The product, one multiplication after the other.
fn by_the_book(x: &[u8], w: &[i8], m: usize, k: usize, n: usize, bias: Option<&[i32]>) -> Vec<i32> {
    let mut out = Vec::new();
    for i in 0..m {
        for j in 0..n {
            let sum: i64 = (0..k).map(|l| i64::from(x[i * k + l]) * i64::from(w[l * n + j])).sum();
            out.push(i32::try_from(sum + i64::from(bias.map_or(0, |b| b[j]))).unwrap());
        }
    }
    out
}

fn floats_by_the_book(x: &[u8], w: &[f32], m: usize, k: usize, n: usize, bias: Option<&[f32]>) -> Vec<u32> {
    let mut out = Vec::new();
    for i in 0..m {
        for j in 0..n {
            let mut sum = bias.map_or(0.0, |b| b[j]);
            for l in (0..k).filter(|l| x[i * k + l] != 0) {
                sum += f32::from(x[i * k + l]) * w[l * n + j];
            }
            out.push(sum.to_bits());
        }
    }
    out
}

/// Counts cases by instruction set, and prints them: a path that ran none would otherwise pass unseen.
struct Ran(&'static str, BTreeMap<&'static str, usize>);

impl Ran {
    fn new(test: &'static str) -> Ran {
        Ran(test, BTreeMap::new())
    }

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

/// Rows and images by tiles, whatever is quicker, where the CPU has tiles.
#[cfg(target_arch = "x86_64")]
fn check_dense<S: Source>(
    source: &S,
    (m, n): (usize, usize),
    tiled: &SpikeWeight,
    bias: Option<&[i32]>,
    want: &[i32],
    ctl: &Ctl,
) {
    for &isa in Isa::available() {
        if m > 0 && n > 0 && dense::is_safe(source, tiled, bias, isa) {
            let mut out = vec![i32::MIN; m * n];
            assert_eq!(dense::product(source, m, tiled, bias, &mut out, isa, ctl), Ok(true));
            assert!(out == want, "by tiles");
        }
    }
}

/// A product on every instruction set, of codes and, where `nbits` is 8, of floats.
fn check_case(
    (m, k, n): (usize, usize, usize),
    nbits: u32,
    percent: u64,
    most: u64,
    threads: usize,
    seed: u64,
    ran: &mut Ran,
) {
    let case = format!("{m} {k} {n}, {nbits} bits, {percent} % of 1..={most}, {threads} threads, seed {seed}");
    let (mut draw, ctl) = (draw(seed), Ctl::new(threads));
    let x = draw.inputs(m * k, percent, most);
    let bits = packed(&x, k);
    let mut forms = vec![Spikes::Counts(&x)];
    if most == 1 {
        forms.extend([Spikes::Bytes(&x), Spikes::Packed(&bits)]);
    }
    let w = draw.codes(k * n, nbits);
    let tiled = SpikeWeight::from_codes(&w, k, n, nbits).unwrap();
    let bias: Vec<i32> = (0..n).map(|_| draw.below(1 << 30) as i32 - (1 << 29)).collect();
    let some = x.iter().filter(|&&x| x != 0).count() as u64;
    for bias in [None, Some(&bias[..])] {
        let want = by_the_book(&x, &w, m, k, n, bias);
        for (&isa, &form) in Isa::available().iter().flat_map(|isa| forms.iter().map(move |form| (isa, form))) {
            let mut out = vec![i32::MIN; m * n];
            let start = bias.map_or(Start::Zero, Start::I32);
            spike_matmul(form, m, &tiled, start, Sums::I32(&mut out), isa, &ctl).unwrap();
            assert!(out == want, "{} {case}", isa.name());
            ran.on(isa);
        }
        #[cfg(target_arch = "x86_64")]
        for &spikes in &forms {
            let (bytes, each) = if matches!(spikes, Spikes::Packed(_)) { (&bits, k.div_ceil(8)) } else { (&x, k) };
            check_dense(&Rows { spikes, bytes, each, k }, (m, n), &tiled, bias, &want, &ctl);
        }
        let prepared = SpikeProduct::new(tiled.clone(), None, bias.map_or(Start::Zero, Start::I32)).unwrap();
        for &isa in Isa::available().iter().filter(|_| k > 0) {
            let mut out = vec![i32::MIN; m * n];
            let met = prepared.run(&x, most as u8, Sums::I32(&mut out), isa, &ctl).unwrap();
            assert!(out == want && met == some, "prepared, {} {case}", isa.name());
            ran.on(isa);
        }
    }
    if nbits == 8 {
        let w = draw.floats(k * n);
        let tiled = SpikeWeight::from_floats(&w, k, n).unwrap();
        let bias = draw.floats(n);
        for bias in [None, Some(&bias[..])] {
            let want = floats_by_the_book(&x, &w, m, k, n, bias);
            for (&isa, &form) in Isa::available().iter().flat_map(|isa| forms.iter().map(move |form| (isa, form))) {
                let mut out = vec![f32::NAN; m * n];
                let start = bias.map_or(Start::Zero, Start::F32);
                spike_matmul(form, m, &tiled, start, Sums::F32(&mut out), isa, &ctl).unwrap();
                assert!(out.iter().map(|x| x.to_bits()).eq(want.iter().copied()), "floats {} {case}", isa.name());
            }
            let prepared = SpikeProduct::new(tiled.clone(), None, bias.map_or(Start::Zero, Start::F32)).unwrap();
            for &isa in Isa::available().iter().filter(|_| k > 0) {
                let mut out = vec![f32::NAN; m * n];
                let met = prepared.run(&x, most as u8, Sums::F32(&mut out), isa, &ctl).unwrap();
                let same = out.iter().map(|x| x.to_bits()).eq(want.iter().copied());
                assert!(same && met == some, "prepared floats {} {case}", isa.name());
            }
        }
    }
}

#[test]
fn sizes_about_those_of_words_and_panels() {
    let mut ran = Ran::new("sizes");
    for nbits in [2, 4, 8] {
        for n in [0, 1, 7, 8, 31, 32, 33, 63, 64, 65, 130] {
            for (m, k) in [(0, 5), (1, 0), (1, 1), (3, 7), (2, 8), (1, 63), (2, 64), (3, 65), (1, 130)] {
                check_case((m, k, n), nbits, 40, 1, 1, (n * 1000 + k) as u64, &mut ran);
            }
        }
    }
}

#[test]
fn densities_up_to_all() {
    let mut ran = Ran::new("densities");
    for percent in [0, 1, 10, 49, 51, 90, 100] {
        for nbits in [2, 4, 8] {
            check_case((5, 701, 97), nbits, percent, 1, 2, percent, &mut ran);
            check_case((5, 190, 33), nbits, percent, 4, 2, percent, &mut ran);
            check_case((3, 300, 64), nbits, percent, 255, 1, percent, &mut ran);
        }
    }
}

#[test]
fn rows_that_share_inputs() {
    let mut ran = Ran::new("shared");
    // Seven rows: two times three, and one alone; five panels, four of them side by side, and a narrow one. About
    // half of the inputs, blocks of 512 of them have more than a sum of 16 bits holds, or not quite.
    for percent in [15, 20, 33, 47, 49, 50, 51, 53, 70, 85] {
        for k in [257, 512, 1100] {
            check_case((7, k, 321), 8, percent, 1, 2, percent * 7 + k as u64, &mut ran);
        }
    }
    check_case((9, 2049, 300), 8, 40, 1, 1, 3, &mut ran);
    // Some lists too short for eights.
    for (percent, most) in [(0, 1), (1, 1), (5, 1), (9, 1), (97, 1), (9, 4)] {
        check_case((7, 257, 321), 8, percent, most, 1, percent, &mut ran);
    }
}

#[test]
fn rows_that_share_as_many_inputs_as_16_bits_hold() {
    let mut ran = Ran::new("shared extremes");
    let (m, k, n) = (3, 1100, 64);
    let w = vec![127i8; k * n];
    let tiled = SpikeWeight::from_codes(&w, k, n, 8).unwrap();
    // One of the rows has so many in the first 512 inputs, the others fewer, in part the same.
    for (full, count) in (0..m).flat_map(|row| [255, 256, 257, 258, 300].map(|count| (row, count))) {
        let x: Vec<u8> = (0..m * k)
            .map(|i| u8::from(if i / k == full { i % k < count } else { i % k < 900 && (i + i / k) % 4 == 0 }))
            .collect();
        for &isa in Isa::available() {
            // Alone three rows are few: those that follow are without spikes.
            let mut rows = x.clone();
            rows.resize(8 * k, 0);
            let mut out = vec![-1; 8 * n];
            spike_matmul(Spikes::Bytes(&rows), 8, &tiled, Start::Zero, Sums::I32(&mut out), isa, &Ctl::new(1)).unwrap();
            assert!(out == by_the_book(&rows, &w, 8, k, n, None), "{} {full} {count}", isa.name());
            ran.on(isa);
        }
    }
}

#[test]
fn extremes_past_every_bound_of_16_bits() {
    let mut ran = Ran::new("extremes");
    // 257 codes of 255 fill 16 bits, 4369 of 15, 21,845 of 3; inputs past 65,536 do not fit an index of 16.
    for (nbits, counts) in
        [(8, [256, 257, 258, 514, 515]), (4, [17, 18, 4369, 4370, 8739]), (2, [85, 86, 21_845, 21_846, 70_001])]
    {
        for k in counts {
            for code in [-(1i32 << (nbits - 1)), (1 << (nbits - 1)) - 1] {
                // So many rows and columns that panels go side by side, and rows share inputs.
                let (n, m) = if nbits == 8 { (321, 7) } else { (65, 2) };
                let w = vec![code as i8; k * n];
                let tiled = SpikeWeight::from_codes(&w, k, n, nbits).unwrap();
                // The second half of the inputs is there to keep the first from being most of them.
                let (mut wide, mut x) = (w.clone(), vec![1; k]);
                wide.extend(vec![0; (k + 1) * n]);
                x.extend(vec![0; k + 1]);
                let twice = SpikeWeight::from_codes(&wide, 2 * k + 1, n, nbits).unwrap();
                for &isa in Isa::available() {
                    for (count, times) in [(1, 1), (255, 255)] {
                        let x: Vec<u8> = x.iter().map(|&x| x * count).collect();
                        let rows = x.repeat(m);
                        let form = if count == 1 { Spikes::Bytes(&rows) } else { Spikes::Counts(&rows) };
                        let mut out = vec![0; m * n];
                        spike_matmul(form, m, &twice, Start::Zero, Sums::I32(&mut out), isa, &Ctl::new(1)).unwrap();
                        assert!(out.iter().all(|&sum| sum == code * times * k as i32), "{} {nbits} {k}", isa.name());
                    }
                    let mut out = vec![0; m * n];
                    let all = vec![1; m * k];
                    spike_matmul(Spikes::Bytes(&all), m, &tiled, Start::Zero, Sums::I32(&mut out), isa, &Ctl::new(1))
                        .unwrap();
                    assert!(out.iter().all(|&sum| sum == code * k as i32), "{} {nbits} {k}", isa.name());
                    ran.on(isa);
                }
            }
        }
    }
}

#[test]
fn more_inputs_than_16_bits_count() {
    let mut ran = Ran::new("many inputs");
    for percent in [1, 30, 80] {
        check_case((3, 70_003, 35), 8, percent, 1, 2, percent, &mut ran);
        check_case((2, 66_000, 3), 4, percent, 3, 2, percent, &mut ran);
    }
}

#[test]
fn many_rows_and_threads() {
    let mut ran = Ran::new("rows and threads");
    for threads in [1, 2, 7] {
        for nbits in [2, 4, 8] {
            check_case((301, 129, 200), nbits, 30, 1, threads, 5, &mut ran);
            check_case((40, 2500, 70), nbits, 45, 2, threads, 6, &mut ran);
        }
    }
}

#[test]
fn what_is_tiled_comes_back() {
    for nbits in [2, 4, 8] {
        for (k, n) in [(0, 3), (3, 0), (5, 1), (7, 64), (9, 65), (2, 200)] {
            let w = draw(1).codes(k * n, nbits);
            let tiled = SpikeWeight::from_codes(&w, k, n, nbits).unwrap();
            let mut back = vec![99; k * n];
            untile_spike_codes(&tiled, &mut back, &Ctl::new(1)).unwrap();
            assert_eq!(back, w);
            let w = draw(2).floats(k * n);
            let tiled = SpikeWeight::from_floats(&w, k, n).unwrap();
            let mut back = vec![0.0; k * n];
            untile_spike_floats(&tiled, &mut back, &Ctl::new(1)).unwrap();
            assert_eq!(back, w);
        }
    }
}

/// A convolution, place by place.
fn conv_by_the_book(x: &[u8], images: usize, conv: &SpikeConv2d, w: &[i64], filters: usize) -> Vec<i64> {
    let ([h, wide, c], [kh, kw], [oh, ow]) = (conv.input, conv.kernel, conv.output().unwrap());
    let mut out = Vec::new();
    for (i, y, x0, f) in (0..images)
        .flat_map(|i| (0..oh).flat_map(move |y| (0..ow).flat_map(move |x| (0..filters).map(move |f| (i, y, x, f)))))
    {
        let mut sum = 0;
        for (a, b, d) in (0..kh).flat_map(|a| (0..kw).flat_map(move |b| (0..c).map(move |d| (a, b, d)))) {
            let (row, column) = ((y * conv.stride[0] + a) as i64, (x0 * conv.stride[1] + b) as i64);
            let (row, column) = (row - conv.padding[0][0] as i64, column - conv.padding[1][0] as i64);
            if (0..h as i64).contains(&row) && (0..wide as i64).contains(&column) {
                let input = x[((i * h + row as usize) * wide + column as usize) * c + d];
                sum += i64::from(input) * w[((a * kw + b) * c + d) * filters + f];
            }
        }
        out.push(sum);
    }
    out
}

/// Sums of floats by ascending input, from the bias on.
fn float_conv_by_the_book(x: &[u8], images: usize, conv: &SpikeConv2d, w: &[f32], bias: &[f32]) -> Vec<u32> {
    let ([h, wide, c], [kh, kw], filters) = (conv.input, conv.kernel, bias.len());
    let [oh, ow] = conv.output().unwrap();
    let mut out = Vec::new();
    for (image, y, place, f) in (0..images * oh * ow * filters)
        .map(|i| (i / filters / ow / oh, i / filters / ow % oh, i / filters % ow, i % filters))
    {
        let mut sum = bias[f];
        for (i, j, channel) in (0..kh * kw * c).map(|l| (l / c / kw, l / c % kw, l % c)) {
            let row = (y * conv.stride[0] + i).checked_sub(conv.padding[0][0]).filter(|&row| row < h);
            let column = (place * conv.stride[1] + j).checked_sub(conv.padding[1][0]).filter(|&column| column < wide);
            let (Some(row), Some(column)) = (row, column) else { continue };
            let count = x[((image * h + row) * wide + column) * c + channel];
            if count != 0 {
                sum += f32::from(count) * w[((i * kw + j) * c + channel) * filters + f];
            }
        }
        out.push(sum.to_bits());
    }
    out
}

fn check_conv(conv: &SpikeConv2d, images: usize, filters: usize, most: u64, percent: u64, threads: usize, seed: u64) {
    let (mut draw, ctl) = (draw(seed), Ctl::new(threads));
    let x = draw.inputs(images * conv.input.iter().product::<usize>(), percent, most);
    let k = conv.kernel[0] * conv.kernel[1] * conv.input[2];
    let [oh, ow] = conv.output().unwrap();
    let len = images * oh * ow * filters;
    let form = if most == 1 { Spikes::Bytes(&x) } else { Spikes::Counts(&x) };
    let pairs = conv.pairs(&x, images, &ctl).unwrap();
    for nbits in [2, 4, 8] {
        let w = draw.codes(k * filters, nbits);
        let want = conv_by_the_book(&x, images, conv, &w.iter().map(|&c| c.into()).collect::<Vec<_>>(), filters);
        let tiled = SpikeWeight::from_codes(&w, k, filters, nbits).unwrap();
        #[cfg(target_arch = "x86_64")]
        {
            let want: Vec<i32> = want.iter().map(|&x| x as i32).collect();
            let places = conv::Places { bytes: &x, counts: most > 1, conv, output: [oh, ow], k };
            check_dense(&places, (images * oh * ow, filters), &tiled, None, &want, &ctl);
        }
        for &isa in Isa::available() {
            let mut out = vec![i32::MIN; len];
            spike_conv2d(form, images, conv, &tiled, Start::Zero, Sums::I32(&mut out), isa, &ctl).unwrap();
            assert!(out.iter().map(|&x| i64::from(x)).eq(want.iter().copied()), "{} {conv:?} {seed}", isa.name());
            let prepared = SpikeProduct::new(tiled.clone(), Some(*conv), Start::Zero).unwrap();
            out.fill(i32::MIN);
            let met = prepared.run(&x, most as u8, Sums::I32(&mut out), isa, &ctl).unwrap();
            let same = out.iter().map(|&x| i64::from(x)).eq(want.iter().copied());
            assert!(same && (met == pairs || filters == 0), "prepared, {} {conv:?} {seed}", isa.name());
        }
    }
    let (w, bias) = (draw.floats(k * filters), draw.floats(filters));
    let want = float_conv_by_the_book(&x, images, conv, &w, &bias);
    let tiled = SpikeWeight::from_floats(&w, k, filters).unwrap();
    let prepared = SpikeProduct::new(tiled.clone(), Some(*conv), Start::F32(&bias)).unwrap();
    for &isa in Isa::available() {
        let mut out = vec![f32::NAN; len];
        spike_conv2d(form, images, conv, &tiled, Start::F32(&bias), Sums::F32(&mut out), isa, &ctl).unwrap();
        assert!(out.iter().map(|x| x.to_bits()).eq(want.iter().copied()), "floats {} {conv:?} {seed}", isa.name());
        let met = prepared.run(&x, most as u8, Sums::F32(&mut out), isa, &ctl).unwrap();
        let same = out.iter().map(|x| x.to_bits()).eq(want.iter().copied());
        assert!(same && (met == pairs || filters == 0), "prepared floats {} {conv:?} {seed}", isa.name());
    }
    // Floats that are small integers: any order gives their sums; the order itself is the product's.
    let w = draw.codes(k * filters, 4);
    let want = conv_by_the_book(&x, images, conv, &w.iter().map(|&c| c.into()).collect::<Vec<_>>(), filters);
    let tiled = SpikeWeight::from_floats(&w.iter().map(|&c| c.into()).collect::<Vec<_>>(), k, filters).unwrap();
    for &isa in Isa::available() {
        let mut out = vec![f32::NAN; len];
        spike_conv2d(form, images, conv, &tiled, Start::Zero, Sums::F32(&mut out), isa, &ctl).unwrap();
        assert!(out.iter().map(|&x| x as i64).eq(want.iter().copied()), "floats {} {conv:?} {seed}", isa.name());
    }
    // What the operations are counted by.
    let ones = vec![1; k * filters];
    let spikes: Vec<u8> = x.iter().map(|&x| x.min(1)).collect();
    let counted = conv.pairs(&x, images, &ctl).unwrap() * filters as u64;
    assert_eq!(counted as i64, conv_by_the_book(&spikes, images, conv, &ones, filters).iter().sum::<i64>());
}

#[test]
fn convolutions_of_common_sizes() {
    for (kernel, stride, padding, channels) in [
        ([3, 3], [1, 1], [[1, 1], [1, 1]], 64),
        ([3, 3], [2, 2], [[1, 1], [1, 1]], 17),
        ([1, 1], [2, 2], [[0, 0], [0, 0]], 65),
        ([5, 3], [1, 2], [[2, 0], [0, 4]], 2),
        ([9, 9], [1, 1], [[4, 4], [4, 4]], 1),
    ] {
        let conv = SpikeConv2d { input: [7, 9, channels], kernel, stride, padding };
        for (most, percent) in [(1, 0), (1, 10), (1, 70), (1, 100), (4, 20), (255, 100)] {
            check_conv(&conv, 2, 67, most, percent, 2, percent);
            check_conv(&conv, 1, 0, most, percent, 2, percent);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (isa, ctl) = (Isa::best(), Ctl::new(2));
    let says = |r: Result<()>, what: &str| assert!(matches!(&r, Err(Error::Value(m)) if m.contains(what)), "{r:?}");
    let w = SpikeWeight::from_codes(&[127; 6], 3, 2, 8).unwrap();
    let f = SpikeWeight::from_floats(&[0.5; 6], 3, 2).unwrap();
    let run = |spikes, start, out: &mut [i32]| spike_matmul(spikes, 1, &w, start, Sums::I32(out), isa, &ctl);
    says(run(Spikes::Bytes(&[0; 4]), Start::Zero, &mut [0; 2]), "spikes: expected 1 rows of 3 bytes, got 4");
    says(run(Spikes::Packed(&[0; 2]), Start::Zero, &mut [0; 2]), "spikes: expected 1 rows of 1 bytes");
    says(run(Spikes::Bytes(&[0; 3]), Start::Zero, &mut [0; 3]), "out: expected 1 by 2");
    says(run(Spikes::Bytes(&[0; 3]), Start::I32(&[0; 3]), &mut [0; 2]), "bias: expected 2 values, got 3");
    says(run(Spikes::Bytes(&[0; 3]), Start::F32(&[0.0; 2]), &mut [0; 2]), "expected int32");
    says(run(Spikes::Bytes(&[0, 1, 2]), Start::Zero, &mut [0; 2]), "expected 0 or 1, got 2 at flat index 2");
    says(run(Spikes::Packed(&[8]), Start::Zero, &mut [0; 2]), "a set bit at the end of row 0");
    let much = [i32::MAX - 2 * 128, 0];
    assert_eq!(run(Spikes::Bytes(&[1, 1, 0]), Start::I32(&much), &mut [0; 2]), Ok(()));
    says(run(Spikes::Bytes(&[1, 1, 1]), Start::I32(&much), &mut [0; 2]), "sums of up to 2 spikes here, row 0 has more");
    assert_eq!(run(Spikes::Bytes(&[0; 3]), Start::I32(&[i32::MIN, 5]), &mut [0; 2]), Ok(()));
    let out = Sums::I32(&mut [0; 2]);
    says(spike_matmul(Spikes::Bytes(&[0; 3]), 1, &f, Start::Zero, out, isa, &ctl), "expected float32");
    let no = |r: Result<SpikeWeight>, what: &str| says(r.map(|_| ()), what);
    no(SpikeWeight::from_codes(&[8], 1, 1, 4), "w: expected codes of -8 to 7 (4 bits), got 8 at flat index 0");
    no(SpikeWeight::from_codes(&[0], 1, 1, 3), "nbits: expected 2, 4 or 8, got 3");
    no(SpikeWeight::from_codes(&[0], 1, 2, 8), "w: expected 1 by 2, got 1");
    no(SpikeWeight::from_floats(&[0.0, f32::NAN, f32::INFINITY], 3, 1), "got NaN at flat index 1 (2 such in all)");
    no(SpikeWeight::from_codes(&[], MAX_SPIKE_K + 1, 0, 8), "at most 16777215 inputs");
    says(SpikeWeight::from_bytes([0; 3], 1, 1, SpikeForm::Floats).map(|_| ()), "takes 32 bytes, got 3");
    let conv = SpikeConv2d { input: [2, 2, 1], kernel: [1, 3], stride: [1, 1], padding: [[0, 0], [0, 0]] };
    says(conv.output().map(|_| ()), "a kernel of 3 does not fit into 2");
    let conv = SpikeConv2d { kernel: [1, 1], stride: [1, 0], ..conv };
    says(conv.output().map(|_| ()), "at least 1");
    let conv = SpikeConv2d { stride: [2, 2], ..conv };
    let w = SpikeWeight::from_codes(&[1], 1, 1, 8).unwrap();
    let run = |x: &[u8]| spike_conv2d(Spikes::Bytes(x), 1, &conv, &w, Start::Zero, Sums::I32(&mut [0]), isa, &ctl);
    says(run(&[1, 1, 1, 7]), "expected 0 or 1, got 7 at flat index 3"); // though no output reads it
    assert_eq!(run(&[1, 1, 1, 1]), Ok(()));
}

#[test]
fn dense_rows_of_every_tail() {
    let mut ran = Ran::new("dense");
    for nbits in [2, 4, 8] {
        for (m, k, n) in [(16, 64, 64), (33, 65, 32), (47, 129, 96), (70, 200, 130), (40, 1100, 200), (520, 61, 17)] {
            for (percent, most) in [(30, 1), (60, 1), (40, 3), (100, 255)] {
                check_case((m, k, n), nbits, percent, most, 3, k as u64, &mut ran);
            }
        }
    }
}

/// On CPUs with tiles many spikes are multiplied, few are added: a choice that no result shows.
#[test]
#[cfg(target_arch = "x86_64")]
fn tiles_are_for_many_rows_of_many_spikes() {
    let w = SpikeWeight::from_codes(&vec![1; 1024 * 1024], 1024, 1024, 8).unwrap();
    let is_quicker = |m: usize, percent| {
        let bytes = draw(1).inputs(m * 1024, percent, 1);
        dense::is_quicker(&Rows { spikes: Spikes::Bytes(&bytes), bytes: &bytes, each: 1024, k: 1024 }, m, &w, 1)
    };
    assert_eq!([2, 10, 30, 60, 99].map(|percent| is_quicker(512, percent)), [false, true, true, true, false]);
    assert_eq!([10, 40].map(|percent| is_quicker(64, percent)), [false, true]);
    assert_eq!([10, 40].map(|percent| is_quicker(8, percent)), [false, false]);
}

#[test]
fn the_first_wrong_input_is_named() {
    let (m, k, n) = (300, 77, 130);
    let w = SpikeWeight::from_codes(&vec![1; k * n], k, n, 8).unwrap();
    for at in [0, 5000, m * k - 1] {
        let mut x = draw(3).inputs(m * k, 50, 1);
        (x[at], x[m * k - 1]) = (200, 200);
        for (&isa, threads) in Isa::available().iter().flat_map(|isa| [1, 2, 7].map(|t| (isa, t))) {
            let out = &mut vec![0; m * n];
            let got = spike_matmul(Spikes::Bytes(&x), m, &w, Start::Zero, Sums::I32(out), isa, &Ctl::new(threads));
            let want = format!("got 200 at flat index {at};");
            assert!(matches!(&got, Err(Error::Value(m)) if m.contains(&want)), "{got:?}");
        }
    }
}

#[test]
fn a_stop_ends_the_call() {
    let stop = || true;
    let w = SpikeWeight::from_codes(&vec![1; 100 * 1000], 100, 1000, 8).unwrap();
    for threads in [1, 2] {
        let ctl = Ctl::with(threads, false, &stop);
        let (x, out) = (vec![0; 100 * 100], &mut vec![0; 100 * 1000]);
        let got = spike_matmul(Spikes::Bytes(&x), 100, &w, Start::Zero, Sums::I32(out), Isa::best(), &ctl);
        assert_eq!(got, Err(Error::Interrupted));
    }
}

proptest! {
    #[test]
    fn any_product(
        shape in (0usize..40, 0usize..300, 0usize..200),
        nbits in prop::sample::select(vec![2u32, 4, 8]),
        percent in 0u64..=100,
        most in prop::sample::select(vec![1u64, 1, 4, 255]),
        threads in 1usize..5,
        seed: u64,
    ) {
        let mut ran = Ran::new("any product");
        if shape.0 * shape.2 > 0 { check_case(shape, nbits, percent, most, threads, seed, &mut ran) }
        for &isa in Isa::available() { ran.on(isa) }
    }

    #[test]
    fn any_convolution(
        input in (1usize..8, 1usize..8, 1usize..20),
        kernel in (1usize..4, 1usize..4),
        stride in (1usize..4, 1usize..4),
        padding in (0usize..3, 0usize..3, 0usize..3, 0usize..3),
        (images, filters) in (0usize..4, 0usize..70),
        (most, percent) in (prop::sample::select(vec![1u64, 3, 255]), 0u64..=100),
        seed: u64,
    ) {
        let conv = SpikeConv2d {
            input: input.into(), kernel: kernel.into(), stride: stride.into(),
            padding: [[padding.0, padding.1], [padding.2, padding.3]],
        };
        if conv.output().is_ok() { check_conv(&conv, images, filters, most, percent, 2, seed) }
    }
}
