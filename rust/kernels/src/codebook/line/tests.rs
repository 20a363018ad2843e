//! The exact solution against a dynamic programme that tries every cut.

use super::*;

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

const FAMILIES: [&str; 15] = [
    "normal",
    "uniform",
    "laplace",
    "cauchy",
    "lognormal",
    "student",
    "integers",
    "duplicates",
    "bfloat16",
    "steps",
    "pairs",
    "clusters",
    "gaps",
    "offset",
    "outlier",
];

/// `n` numbers of a family.
fn numbers(family: &str, n: usize, random: &mut Random) -> Vec<f64> {
    let outlier = 10f64.powi(random.below(33) as i32) * if random.below(2) == 0 { 1.0 } else { -1.0 };
    let offset = 10f64.powi(random.below(9) as i32);
    let few: Vec<f64> = (0..1 + n / 3).map(|_| random.normal()).collect();
    (0..n)
        .map(|i| match family {
            "normal" => random.normal(),
            "uniform" => random.uniform(),
            "laplace" => random.uniform().ln() * if random.below(2) == 0 { 1.0 } else { -1.0 },
            "cauchy" => (std::f64::consts::PI * (random.uniform() - 0.5)).tan(),
            "lognormal" => (2.0 * random.normal()).exp(),
            "student" => random.normal() / (0..3).map(|_| random.normal().powi(2)).sum::<f64>().sqrt(),
            "integers" => random.below(20) as f64,
            "duplicates" => few[random.below(few.len())],
            "bfloat16" => f64::from(f32::from_bits((random.normal() as f32).to_bits() & 0xFFFF_0000)),
            "steps" => i as f64,
            "pairs" => (i / 2) as f64,
            "clusters" => random.below(5) as f64 * offset + random.normal() * 1e-3,
            "gaps" => (2.0f64).powi(random.below(40) as i32) + random.uniform(),
            "offset" => offset + random.normal(),
            _ => {
                let at = i % 17;
                random.normal() + if at == 3 { outlier } else { 0.0 }
            }
        })
        .collect()
}

/// Distinct values and weights, ascending, of `x`.
fn points(x: &[f64], w: Option<&[f64]>) -> Vec<[f64; 2]> {
    let mut p: Vec<[f64; 2]> =
        x.iter().enumerate().map(|(i, &x)| [x, w.map_or(1.0, |w| w[i])]).filter(|p| p[1] > 0.0).collect();
    p.sort_by(|a, b| a[0].total_cmp(&b[0]));
    p
}

/// The least squares of `k` segments, by trying all: squares of a segment by Welford's updates.
fn least(p: &[[f64; 2]], k: usize, pinned: bool) -> f64 {
    let n = p.len();
    let mut cost = vec![vec![0.0; n + 1]; n];
    for i in 0..n {
        let mut m = path::Moments::default();
        for j in i..n {
            m = m.with(p[j][0] - p[i][0], p[j][1]);
            cost[i][j + 1] = m.squares;
        }
    }
    // best[z][j]: the first j points, z if one of the segments was at zero; segments may be empty.
    let mut best = [vec![f64::INFINITY; n + 1], vec![f64::INFINITY; n + 1]];
    best[0][0] = 0.0;
    for _ in 0..k {
        let mut next = best.clone();
        for j in 0..=n {
            let mut at_zero = 0.0;
            for i in (0..=j).rev() {
                if i < j {
                    at_zero += p[i][1] * p[i][0] * p[i][0];
                    for z in 0..2 {
                        next[z][j] = next[z][j].min(best[z][i] + cost[i][j]);
                    }
                }
                next[1][j] = next[1][j].min(best[0][i] + at_zero);
            }
        }
        best = next;
    }
    best[usize::from(pinned)][n]
}

fn solved(x: &[f64], w: Option<&[f64]>, k: usize, pin_zero: bool) -> (Fit, Vec<u16>) {
    let mut codes = vec![0u16; x.len()];
    let options = Options { k, pin_zero, method: Method::Exact };
    let fit = kmeans_1d(x, w, options, &mut codes, Isa::Scalar, &Ctl::new(1)).unwrap();
    for &isa in Isa::available() {
        let mut others = codes.clone();
        let other = kmeans_1d(x, w, options, &mut others, isa, &Ctl::new(1)).unwrap();
        assert!(other == fit && others == codes, "{}", isa.name());
    }
    (fit, codes)
}

/// The squares of the partition that the codes are, about its exact means.
fn squares(x: &[f64], w: Option<&[f64]>, codes: &[u16], fit: &Fit, pinned: bool) -> f64 {
    let zero = fit.levels.iter().position(|&l| l == 0.0).filter(|_| pinned);
    (0..fit.levels.len())
        .map(|level| {
            let own: Vec<f64> = (0..x.len()).filter(|&i| codes[i] as usize == level).map(|i| x[i]).collect();
            let weights: Option<Vec<f64>> =
                w.map(|w| (0..x.len()).filter(|&i| codes[i] as usize == level).map(|i| w[i]).collect());
            let p = points(&own, weights.as_deref());
            if zero == Some(level) {
                p.iter().map(|p| p[1] * p[0] * p[0]).sum()
            } else if p.is_empty() {
                0.0
            } else {
                path::Moments::of(Weighted(&p), 0, p.len()).squares
            }
        })
        .sum()
}

fn compare(cases: usize, most: usize, check: impl Fn(&str, &mut Random, usize)) {
    for family in FAMILIES {
        for case in 0..cases {
            let mut random = Random((case * 31 + family.len() * 1009 + most) as u64);
            random.0 ^= u64::from(family.as_bytes()[0]) << 32;
            let n = 1 + random.below(most);
            check(family, &mut random, n);
        }
    }
    println!("{} cases of {} families", cases * FAMILIES.len(), FAMILIES.len());
}

fn optimal(x: &[f64], w: Option<&[f64]>, k: usize, pinned: bool, told: &str) {
    let (fit, codes) = solved(x, w, k, pinned);
    let best = least(&points(x, w), k, pinned);
    let ours = squares(x, w, &codes, &fit, pinned);
    // Below the square of a rounding error nothing can be told.
    let scale = x.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let floor = 1e-30 * scale * scale * if pinned { 1.0 } else { 0.0 };
    assert!(
        ours <= best * (1.0 + 1e-9) + floor,
        "{told}: n {} k {k} pinned {pinned}: {ours} above {best}\n{x:?}\n{w:?}\n{:?}",
        x.len(),
        fit.levels
    );
    assert!((fit.inertia - ours).abs() <= 1e-9 * ours + floor, "{told}: inertia {} and not {ours}", fit.inertia);
    for (x, &code) in x.iter().zip(&codes) {
        let distance = |level: usize| (x - fit.levels[level]).abs();
        assert!(
            (0..k).all(|level| distance(code as usize) <= distance(level) * (1.0 + 1e-15)),
            "{told}: {x} is not with the nearest"
        );
    }
    assert_eq!(fit.levels.len(), k);
    assert!(fit.levels.is_sorted());
}

#[test]
fn it_is_the_optimum_of_small_problems() {
    compare(700, 60, |family, random, n| {
        let x = numbers(family, n, random);
        optimal(&x, None, 1 + random.below(12), false, family);
    });
}

#[test]
fn it_is_the_optimum_with_weights() {
    compare(200, 40, |family, random, n| {
        let x = numbers(family, n, random);
        let mut w: Vec<f64> = (0..n)
            .map(|_| match random.below(4) {
                0 => 0.0,
                1 => 1.0,
                2 => random.uniform(),
                _ => 10f64.powi(random.below(12) as i32 - 6),
            })
            .collect();
        w[0] = 1.0;
        optimal(&x, Some(&w), 1 + random.below(10), false, family);
    });
}

#[test]
fn it_is_the_optimum_with_a_level_at_zero() {
    compare(200, 40, |family, random, n| {
        let mut x = numbers(family, n, random);
        let shift = if random.below(3) == 0 { 0.0 } else { x[random.below(n)] };
        x.iter_mut().for_each(|x| *x -= shift);
        optimal(&x, None, 1 + random.below(10), true, family);
    });
}

#[test]
fn bins_leave_the_optimum_in() {
    let (mut pruned, mut all) = (0, 0);
    let cases = 40;
    for family in FAMILIES {
        for case in 0..cases {
            let mut random = Random(case as u64 ^ u64::from(family.as_bytes()[1]) << 16);
            let n = 600 + random.below(2400);
            let mut x = numbers(family, n, &mut random);
            x.sort_by(f64::total_cmp);
            let (k, ctl) = (2 + random.below(10), Ctl::new(1));
            if x.windows(2).filter(|v| v[0] != v[1]).count() < n / 2 {
                continue;
            }
            let (points, reach) = (Plain(&x), path::reach(n as f64, 1.0));
            let mut pass = Pass::new(Isa::best());
            let mut free = Free { points, reach, pass: &mut pass };
            let first = 2.0 * Moments::of(points, 0, n).squares / (k as f64).powi(3);
            let best = search::search(&mut free, k, first, || Ok(None), search::EXACT, &ctl).unwrap();
            // At the optimum's fee and others near it.
            for factor in [1.0, 0.7, 1.3] {
                let fee = best.fee * factor;
                let expected = Free { points, reach, pass: &mut Pass::new(Isa::best()) }.solve(fee, &ctl).unwrap();
                let mut passes = [(); 3].map(|()| Pass::new(Isa::best()));
                let mut estimate = prune::estimate(points, k, 16, reach, &mut passes[0], &ctl).unwrap();
                estimate.fee = fee;
                all += 1;
                let problem = Pruned::new(points, k, &estimate, reach, 1.0, &mut passes, &ctl).unwrap();
                let Some(ends) = problem.and_then(|mut problem| problem.pruned(fee, &ctl).unwrap()) else { continue };
                pruned += 1;
                let ours = Partition::new(points, ends);
                let total = |p: &Partition| p.squares + fee * p.count() as f64;
                let (ours, expected) = (total(&ours), total(&expected));
                assert!((ours - expected).abs() <= 1e-9 * expected, "{family} n {n} k {k}: {ours} and not {expected}");
            }
        }
    }
    println!("{pruned} of {all} paths were found among the points that bins left");
    assert!(pruned > all / 4, "bins prune: {pruned} of {all}");
}

#[test]
fn many_levels_and_large_problems_agree_with_a_plain_search() {
    // Where bins estimate and prune, and where there are a thousand levels.
    for (family, n, k) in [
        ("normal", 40_000, 16),
        ("uniform", 50_000, 100),
        ("cauchy", 30_000, 1000),
        ("clusters", 40_000, 7),
        ("normal", 4096, 16),
        ("uniform", 5000, 12),
        ("cauchy", 3000, 5),
    ] {
        let x = numbers(family, n, &mut Random(5));
        let (fit, codes) = solved(&x, None, k, false);
        let sorted = points(&x, None);
        let (points, reach) = (Weighted(&sorted), path::reach(n as f64, 1.0));
        let first = 2.0 * Moments::of(points, 0, n).squares / (k as f64).powi(3);
        let mut pass = Pass::new(Isa::best());
        let mut free = Free { points, reach, pass: &mut pass };
        let best =
            search::search(&mut free, k, first, || Ok(None), search::EXACT, &Ctl::new(1)).unwrap().partition.squares;
        let ours = squares(&x, None, &codes, &fit, false);
        assert!((ours - best).abs() <= 1e-9 * best, "{family}: {ours} and not {best}");
    }
}

#[test]
fn numbers_whose_squares_overflow_or_vanish() {
    for scale in [1e300, 1e-300, 1e160, 1e-160, 1.0] {
        let x: Vec<f64> = [1.0, 2.0, 4.0, 4.5, -3.0].iter().map(|x| x * scale).collect();
        let (fit, codes) = match std::panic::catch_unwind(|| solved(&x, None, 2, false)) {
            Ok(found) => found,
            Err(_) => {
                assert!(scale > 1e150, "only squares beyond float64 are refused");
                continue;
            }
        };
        assert_eq!(codes, [1, 1, 1, 1, 0], "{scale}");
        assert!((fit.levels[1] / scale - 2.875).abs() < 1e-12, "{:?}", fit.levels);
    }
    let weights = [1e300, 1e300, 1e-300, 1e300, 0.0];
    let (fit, codes) = solved(&[0.0, 1.0, 5.0, 9.0, 2.0], Some(&weights), 2, false);
    assert_eq!(codes, [0, 0, 1, 1, 0]);
    assert_eq!(fit.levels[0], 0.5);
    assert_eq!(fit.n_distinct, 4);
}

#[test]
fn clusters_whose_bins_are_too_few_and_numbers_whose_fees_vanish() {
    // A grid of fewer bins than levels.
    let mut x: Vec<f64> = (0..210).map(|i| 1e-4 * f64::from(i) / 210.0).collect();
    x.extend((0..269).map(|i| 1.0 + 1e-4 * f64::from(i) / 269.0));
    x.push(1000.0);
    // Products of two fees are below float64's.
    let tiny: Vec<f64> =
        (0..240).map(|i| 1e-90 * ([0.0, 0.1, 1.0, 1.0][i % 4] + 1e-4 * (i * 37 % 240) as f64 / 240.0)).collect();
    let large: Vec<f64> = tiny.iter().map(|x| 1e180 * x).collect();
    for (x, k) in [(&x, 4), (&tiny, 2), (&large, 2), (&x, 3), (&tiny, 5)] {
        let (fit, codes) = solved(x, None, k, false);
        assert_eq!(fit.levels.len(), k);
        let levels = usize::from(*codes.iter().max().unwrap()) + 1;
        assert_eq!(levels, k, "every level has numbers");
    }
    // Squares times weights that are 0 in float64: an error, and no search without end.
    let (x, weights): (Vec<f64>, Vec<f64>) = (0..240).map(|i| (1e-115 * f64::from(i * i), 1e-115)).unzip();
    let options = Options { k: 3, pin_zero: false, method: Method::Exact };
    let mut codes = vec![0u8; x.len()];
    let outcome = kmeans_1d(&x, Some(&weights), options, &mut codes, Isa::best(), &Ctl::new(1));
    assert!(outcome.is_err_and(|e| e.to_string().starts_with("x: ")));
}

#[test]
fn fewer_values_than_levels_repeat_the_greatest() {
    let (fit, codes) = solved(&[2.0, -1.0, 2.0, -0.0, 0.0], None, 5, false);
    assert_eq!(fit, Fit { levels: vec![-1.0, 0.0, 2.0, 2.0, 2.0], inertia: 0.0, n_distinct: 3 });
    assert_eq!(codes, [2, 0, 2, 1, 1]);
    let (fit, codes) = solved(&[2.0, 1.0], None, 3, true);
    assert_eq!((fit.levels, codes), (vec![0.0, 1.0, 2.0], vec![2, 1]));
}

#[test]
fn a_number_between_two_levels_goes_to_the_lower() {
    let steps = Steps::<f32>::new(&[-1.0, 0.0, 3.0], 3);
    let (mut few, mut many) = ([0u8; 6], vec![0u8; 6]);
    let x = [-1e30f32, -0.5, -0.499_999_97, 1.5, 1.500_000_1, f32::MAX];
    let mut random = Random(3);
    let others: Vec<f32> = (0..301).map(|_| 2.0 * random.normal() as f32).collect();
    for &isa in Isa::available() {
        steps.encode(&x, &mut few, isa);
        Steps::<f32>::new(&[-1.0, 0.0, 3.0], PREFIXES).encode(&x, &mut many, isa);
        assert_eq!(few, [0, 0, 1, 1, 2, 2], "{}", isa.name());
        assert_eq!(many, few, "{}", isa.name());
        let mut codes = vec![0u8; others.len()];
        steps.encode(&others, &mut codes, isa);
        let expected = others.iter().map(|&x| steps.steps().partition_point(|&step| step < x) as u8);
        assert!(codes.iter().copied().eq(expected), "{}", isa.name());
    }
}

#[test]
fn rows_are_what_each_row_is_on_any_threads() {
    let (rows, n) = (37, 211);
    let mut random = Random(8);
    let x: Vec<f32> = (0..rows * n).map(|_| random.normal() as f32).collect();
    let weights: Vec<f64> = (0..rows * n).map(|_| random.uniform()).collect();
    let options = Options { k: 9, pin_zero: false, method: Method::Exact };
    for weights in [None, Some(&weights[..n]), Some(&weights[..])] {
        for threads in [1, 2, 7] {
            let mut codes = vec![0u8; x.len()];
            let fits = kmeans_1d_rows(&x, rows, weights, options, &mut codes, Isa::best(), &Ctl::new(threads)).unwrap();
            for row in 0..rows {
                let part = row * n..(row + 1) * n;
                let own = weights.map(|w| if w.len() == n { w } else { &w[part.clone()] });
                let mut expected = vec![0u8; n];
                let fit = kmeans_1d(&x[part.clone()], own, options, &mut expected, Isa::best(), &Ctl::new(1)).unwrap();
                assert_eq!((&fits[row], &codes[part]), (&fit, &expected[..]));
            }
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let call = |x: &[f64], w: Option<&[f64]>, k: usize| {
        let mut codes = vec![0u8; x.len()];
        kmeans_1d(x, w, Options { k, pin_zero: false, method: Method::Exact }, &mut codes, Isa::best(), &Ctl::new(1))
            .unwrap_err()
            .to_string()
    };
    assert!(call(&[], None, 2).starts_with("x: expected 1 to"));
    assert_eq!(
        call(&[1.0, f64::NAN, f64::INFINITY], None, 2),
        "x: expected finite values, got NaN at index 1; 2 in all"
    );
    assert_eq!(call(&[1.0], None, 0), "k: expected 1 to 256, got 0");
    assert_eq!(call(&[1.0], None, 257), "k: expected 1 to 256, got 257");
    assert_eq!(call(&[1.0, 2.0], Some(&[1.0]), 2), "sample_weight: expected 2 weights, got 1");
    assert!(call(&[1.0, 2.0], Some(&[1.0, -1.0]), 2).contains("got -1 at index 1"));
    assert!(call(&[1.0, 2.0], Some(&[0.0, 0.0]), 2).contains("zeros alone"));
    let stop = || true;
    let ctl = Ctl::with(1, false, &stop);
    let x: Vec<f32> = (0..3000).map(|i| (i * i % 977) as f32).collect();
    let options = Options { k: 4, pin_zero: false, method: Method::Exact };
    assert_eq!(kmeans_1d(&x, None, options, &mut vec![0u8; 3000], Isa::best(), &ctl), Err(Error::Interrupted));
}
