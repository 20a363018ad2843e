use super::*;
use crate::{Error, lanes};

/// Numbers with a distribution that has neighbours, ties and repeats.
fn some(n: usize, seed: u64, step: f64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut unit = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let one = |x: f64| if step > 0.0 { (x / step).round() * step } else { x };
    (0..n).map(|_| one(unit() + unit() + unit() - 1.5)).collect()
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

fn by_definition<T: Real>(x: &[T], codebook: &[T], d: usize, top: usize) -> (Vec<u32>, Vec<f32>) {
    let mut found = vec![(0.0, 0); top];
    let (mut codes, mut distances) = (Vec::new(), Vec::new());
    for x in x.chunks(d) {
        scalar::nearest(x, codebook, 0..(codebook.len() / d) as u32, &mut found);
        codes.extend(found.iter().map(|f| f.1));
        distances.extend(found.iter().map(|f| f.0 as f32));
    }
    (codes, distances)
}

fn check_assign<T: Real>(x: &[T], codebook: &[T], d: usize, top: usize, what: &str) {
    let want = by_definition(x, codebook, d, top);
    for &isa in Isa::available() {
        for threads in [1, 2, 7] {
            let mut codes = vec![0; want.0.len()];
            let mut distances = vec![0.0; want.0.len()];
            assign(x, codebook, d, top, &mut codes, &mut distances, isa, &Ctl::new(threads)).unwrap();
            assert!(codes == want.0 && distances == want.1, "{what}, {}, {threads} threads", isa.name());
        }
    }
}

#[test]
fn the_nearest_are_those_of_the_definition() {
    for d in [1, 2, 3, 4, 5, 8, 16, 17] {
        for k in [1, 2, 7, 8, 9, 63, 64, 65, 130, 600] {
            for (step, shift) in [(0.0, 0.0), (0.25, 0.0), (0.0, 1e4)] {
                let moved = |x: Vec<f64>| x.into_iter().map(|x| x + shift).collect::<Vec<_>>();
                let (x, c) = (moved(some(101 * d, 1, step)), moved(some(k * d, 2, step)));
                let what = format!("d {d}, k {k}, step {step}, shift {shift}");
                for top in [1, 3.min(k), k.min(20)] {
                    check_assign(&narrow(&x), &narrow(&c), d, top, &what);
                }
                check_assign(&x, &c, d, 1, &what);
            }
        }
    }
}

#[test]
fn magnitudes_at_the_ends_of_float64() {
    for scale in [1e-300, 1e-160, 1e-30, 1e30, 1e150] {
        let scaled = |n, seed| some(n, seed, 0.0).into_iter().map(|x| x * scale).collect::<Vec<_>>();
        let (x, c) = (scaled(60, 3), scaled(90, 4));
        for &isa in Isa::available() {
            let (mut codes, mut distances) = (vec![0; 20], vec![0.0; 20]);
            match assign(&x, &c, 3, 1, &mut codes, &mut distances, isa, &Ctl::new(1)) {
                Ok(()) => assert_eq!(codes, by_definition(&x, &c, 3, 1).0, "{scale}"),
                Err(error) => assert!(scale > 1e18 && error.to_string().contains("float32"), "{scale}: {error}"),
            }
        }
    }
}

fn options<T>(k: usize, init: Init<T>) -> Options<T> {
    Options { k, init, n_init: 1, max_iter: 12, tol: 0.0, weight: None, seed: 5 }
}

/// Lloyd's iterations by the definition alone, where no codeword loses its points.
fn plain(x: &[f64], start: &[f64], d: usize, max_iter: usize) -> (Vec<f64>, Vec<u32>, usize) {
    let mut codebook = start.to_vec();
    let (mut codes, mut n_iter) = (Vec::new(), 0);
    while n_iter < max_iter {
        n_iter += 1;
        let next = by_definition(x, &codebook, d, 1).0;
        if next == codes {
            break;
        }
        codes = next;
        let mut sums = vec![0.0; codebook.len()];
        let mut counts = vec![0.0; codebook.len() / d];
        for (x, &code) in x.chunks(d).zip(&codes) {
            counts[code as usize] += 1.0;
            for (sum, x) in sums[code as usize * d..].iter_mut().zip(x) {
                *sum += x;
            }
        }
        assert!(!counts.contains(&0.0), "the test's data");
        for (i, c) in codebook.iter_mut().enumerate() {
            *c = sums[i] / counts[i / d];
        }
    }
    let codes = by_definition(x, &codebook, d, 1).0;
    (codebook, codes, n_iter)
}

/// Small whole numbers, so that nothing is rounded.
#[test]
fn a_tile_is_taken_by_its_definition() {
    use super::eight::Eight;
    use super::scan::{Least, POINTS, Points};
    let whole = |n, seed| some(n, seed, 1.0 / 8.0).into_iter().map(|x| (8.0 * x) as f32).collect::<Vec<f32>>();
    for d in [1, 2, 3, 4, 7, 8, 16, 33] {
        let mut points = vec![Points::default(); d];
        for (j, to) in points.iter_mut().enumerate() {
            to.0.as_flattened_mut().copy_from_slice(&whole(POINTS, 3 + j as u64));
        }
        let tiles: Vec<Vec<f32>> = (0..9).map(|tile| whole(8 * (d + 1), 100 + tile)).collect();
        let run = |take: &dyn Fn(usize, &[f32; 8], &[[f32; 8]], &mut Least) -> Points| {
            let mut least = Least::none();
            let lows = tiles.iter().enumerate().map(|(tile, numbers)| {
                let eights = numbers.as_chunks().0;
                take(tile, &eights[0], &eights[1..], &mut least).0
            });
            let lows: Vec<_> = lows.collect();
            (lows, (0..POINTS).map(|p| least.of(p)).collect::<Vec<_>>())
        };
        let expected = run(&|tile, halves, rows, least| lanes::Scalar.take_tile(&points, tile, halves, rows, least));
        for (p, &(score, other, tile)) in expected.1.iter().enumerate() {
            let mut lows: Vec<f32> = expected.0.iter().map(|low| low[p / 8][p % 8]).collect();
            assert_eq!(lows[tile], score);
            lows.sort_by(f32::total_cmp);
            assert_eq!((lows[0], lows[1]), (score, other));
        }
        #[cfg(target_arch = "x86_64")]
        if Isa::best().has_avx2() {
            // SAFETY: the CPU has AVX2.
            let avx2 = unsafe { lanes::Avx2::new() };
            let got = run(&|tile, halves, rows, least| avx2.take_tile(&points, tile, halves, rows, least));
            assert_eq!(got, expected, "{d}");
        }
    }
}

/// What an instruction set says of `numbers`, of whole scans in integers.
fn sixteens<W: super::sixteen::Sixteen>(w: W, numbers: &[i32]) -> Vec<i32> {
    use super::sixteen::BLOCK;
    let mut told = Vec::new();
    let mut tell = |x: W::I| {
        let mut out = [0; 16];
        w.store(x, &mut out);
        told.extend(out);
    };
    let rows = numbers.as_chunks::<16>().0;
    let at = std::array::from_fn(|i| (numbers[i].unsigned_abs() % 50) as u16);
    let quads = numbers.as_chunks::<4>().0;
    let [a, b, c, x] = [0, 1, 2, 3].map(|i| w.load(&rows[i]));
    tell(w.add(a, b));
    tell(w.sub(a, b));
    tell(w.dot(a, b, c));
    tell(w.min(a, b));
    tell(w.min_unless(a, b, c, w.splat(rows[2][5])));
    tell(w.where_less(a, b, c, x));
    w.gather(quads, &at).into_iter().for_each(&mut tell);
    let sizes = w.load(&rows[4].map(|x| x.checked_abs().unwrap_or(7)));
    tell(w.root(sizes, -3.4, 0.9));
    tell(w.root(sizes, 3.4, 2.5));
    tell(w.half_square(sizes, 7.25));
    for pairs in [1, 2, 3, 4, 5, 8, 13] {
        w.scores(&quads[3], &rows[..pairs], &numbers[64..][..4 * pairs]).into_iter().for_each(&mut tell);
    }
    let mut turned = [[0; 4]; 16];
    w.quads([a, b, c, x], &mut turned);
    told.extend(turned.as_flattened());
    told.push(w.le(a, b) as i32);
    let small = w.root(sizes, 0.0, 1.5);
    let mut places = [9; 50];
    w.scatter(small, 30_000, &at, &mut places);
    told.extend(w.narrow(small, 30_000).iter().chain(&places).map(|&x| i32::from(x)));
    let halves: Vec<u16> = numbers.iter().map(|&x| x as u16 / 16).collect();
    for (len, drift) in [(0, 5), (32, 0), (BLOCK, 0), (BLOCK, 900), (BLOCK, 65_535), (BLOCK - 64, 4095)] {
        let mut list = [0; BLOCK + 16];
        let listed = w.list(&halves[..len], drift, &halves[BLOCK..][..len], &mut list);
        told.push(listed as i32);
        told.extend(list[..listed].iter().map(|&x| i32::from(x)));
    }
    told
}

#[test]
fn scans_in_integers_are_the_same_on_every_instruction_set() {
    let mut counts = (0, 0);
    for seed in 0..200 {
        let wide = [1.0, 3e4, 1e9][seed as usize % 3];
        let numbers: Vec<i32> = some(1200, 3 + seed, 0.0).into_iter().map(|x| (x * wide) as i32).collect();
        let want = sixteens(lanes::Scalar, &numbers);
        #[cfg(target_arch = "x86_64")]
        {
            if Isa::best().has_avx2() {
                // SAFETY: the CPU has AVX2.
                let avx2 = unsafe { lanes::Avx2::new() };
                assert_eq!(sixteens(avx2, &numbers), want, "AVX2, seed {seed}");
                counts.0 += 1;
            }
            if Isa::best().has_avx512() {
                // SAFETY: the CPU has AVX-512.
                let avx512 = unsafe { lanes::Avx512::new() };
                assert_eq!(sixteens(avx512, &numbers), want, "AVX-512, seed {seed}");
                counts.1 += 1;
            }
        }
        assert!(want.iter().any(|&x| x != want[0]));
    }
    println!("scans in integers: {} cases on AVX2, {} on AVX-512", counts.0, counts.1);
}

#[test]
fn nothing_is_gathered_from_outside() {
    use super::sixteen::Sixteen;
    fn refuses(w: impl Sixteen + std::panic::UnwindSafe) -> bool {
        let gathered = std::panic::catch_unwind(move || {
            w.gather(&[[0; 4]; 9], &[9; 16]);
        });
        let scattered = std::panic::catch_unwind(move || w.scatter(w.splat(1), 0, &[9; 16], &mut [0; 9]));
        gathered.is_err() && scattered.is_err()
    }
    assert!(refuses(lanes::Scalar));
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the CPU has AVX2.
        assert!(!Isa::best().has_avx2() || refuses(unsafe { lanes::Avx2::new() }));
        // SAFETY: the CPU has AVX-512.
        assert!(!Isa::best().has_avx512() || refuses(unsafe { lanes::Avx512::new() }));
    }
}

#[test]
fn bounds_change_no_iteration() {
    for (d, k) in [(1, 5), (2, 16), (3, 33), (8, 65), (8, 200), (2, 520), (3, 700), (16, 40), (17, 30), (33, 20)] {
        // Sums of multiples of 2^-10 are exact in any order. The last block is not a whole one.
        let even = some(6007 * d, 7, 1.0 / 1024.0);
        let mut outlier = even.clone();
        outlier[..d].fill(60.0);
        let apart: Vec<f64> = even.iter().enumerate().map(|(i, x)| x + [0.0, 30.0][i / d % 2]).collect();
        for (what, x) in [("even", &even), ("an outlier", &outlier), ("apart", &apart)] {
            let start = x[..k * d].to_vec();
            let want = plain(x, &start, d, 12);
            for &isa in Isa::available() {
                let fit = kmeans(x, d, &options(k, Init::Given(&start)), isa, &Ctl::new(2)).unwrap();
                let got = (fit.codebook, fit.codes, fit.n_iter);
                assert!(got == want, "{what}, d {d}, k {k}, {}", isa.name());
            }
        }
    }
}

#[test]
fn the_same_bytes_on_any_threads_and_instruction_set() {
    // Fewer points where LOWBIT_CASES asks for fewer cases: emulators are slow.
    let most = std::env::var("LOWBIT_CASES").ok().and_then(|most| most.parse().ok());
    let n = most.map_or(30_000, |most: usize| most.saturating_mul(75).clamp(3_000, 30_000));
    let weight: Vec<f64> = some(n, 9, 0.0).into_iter().map(|w| w.max(0.0)).collect();
    for (d, k) in [(2, 40), (8, 64), (8, 700), (2, 2100), (5, 9)] {
        let x = narrow(&some(n * d, 8, 0.0));
        for init in [Init::PlusPlus, Init::Random] {
            for weight in [None, Some(&weight[..])] {
                let o = Options { weight, n_init: 2, max_iter: 5, ..options(k, init) };
                let want = kmeans(&x, d, &o, Isa::Scalar, &Ctl::new(1)).unwrap();
                for &isa in Isa::available() {
                    for threads in [1, 2, 7] {
                        let fit = kmeans(&x, d, &o, isa, &Ctl::new(threads)).unwrap();
                        assert!(fit == want, "d {d}, k {k}, {init:?}, {}, {threads} threads", isa.name());
                    }
                }
                let mut codes = vec![0; n];
                let mut distances = vec![0.0; n];
                assign(&x, &want.codebook, d, 1, &mut codes, &mut distances, Isa::best(), &Ctl::new(2)).unwrap();
                assert!(codes == want.codes);
            }
        }
    }
}

#[test]
fn codewords_without_points_take_the_farthest() {
    let x = [0.0f32, 1.0, 2.0, 3.0, 50.0, 100.0];
    let start = [0.0f32, 1000.0, 2000.0];
    for &isa in Isa::available() {
        let fit = kmeans(&x, 1, &options(3, Init::Given(&start)), isa, &Ctl::new(1)).unwrap();
        assert_eq!((fit.codebook, fit.codes, fit.n_iter), (vec![1.5, 100.0, 50.0], vec![0, 0, 0, 0, 2, 1], 2));
    }
}

#[test]
fn means_beyond_the_points() {
    // Each product with a weight is rounded to the least number that there is: means are 1 or -1.
    let sign = |i: usize| if i % 2 == 0 { 1.0 } else { -1.0 };
    let x: Vec<f64> =
        (0..64 * 8).map(|i| sign(i / 8) * (0.51 + 0.001 * ((7 * (i / 8) + 3 * (i % 8)) % 64) as f64)).collect();
    let weight = vec![5e-324; 64];
    let o = Options { weight: Some(&weight), ..options(2, Init::Given(&x[..16])) };
    for &isa in Isa::available() {
        let fit = kmeans(&x, 8, &o, isa, &Ctl::new(1)).unwrap();
        assert!(fit.codebook.iter().all(|c| c.abs() == 1.0) && (0..64).all(|i| fit.codes[i] == i as u32 % 2));
    }
    let huge: Vec<f64> = (0..100).map(|i| 1e308 * (1.0 + 0.7 * f64::from(i) / 99.0)).collect();
    let start = [huge[12], huge[37], huge[62], huge[87]];
    for &isa in Isa::available() {
        let told = kmeans(&huge, 1, &options(4, Init::Given(&start)), isa, &Ctl::new(1)).unwrap_err().to_string();
        assert!(told.contains("exceed float64"), "{told}");
    }
}

#[test]
fn a_start_far_from_the_points() {
    let x = some(64, 10, 0.0);
    for far in [1e20, 1e60, 1e300] {
        let start: Vec<f64> = (0..8).map(|i| far * f64::from(i + 1)).collect();
        for &isa in Isa::available() {
            let fit = kmeans(&x, 2, &options(4, Init::Given(&start)), isa, &Ctl::new(1)).unwrap();
            assert!(fit.codebook.iter().all(|c| c.abs() < 2.0), "{far}: {:?}", fit.codebook);
        }
    }
}

#[test]
fn few_points_are_the_codewords() {
    let x = [1.0f32, 0.0, -0.0, 5.0, 0.0, 5.0, 1.0, -0.0];
    let fit = kmeans(&x, 2, &options(4, Init::PlusPlus), Isa::Scalar, &Ctl::new(1)).unwrap();
    assert_eq!(fit.codebook, [0.0, 5.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    assert_eq!((fit.codes, fit.inertia, fit.n_distinct), (vec![1, 0, 0, 1], 0.0, 2));
}

#[test]
fn look_up_checks_codes() {
    let table = [1u8, 2, 3, 4, 5, 6];
    let mut out = [0; 4];
    lookup(&[2u8, 0], &table, 2, &mut out, &Ctl::new(1)).unwrap();
    assert_eq!(out, [5, 6, 1, 2]);
    let error = lookup(&[2u16, 3], &table, 2, &mut out, &Ctl::new(1)).unwrap_err();
    assert!(matches!(error, Error::Value(m) if m.contains("got 3 at flat index 1")));
    assert!(lookup(&[0u8], &table, 4, &mut out, &Ctl::new(1)).is_err());
}

#[test]
fn misuse_is_an_error() {
    let ctl = Ctl::new(1);
    let x = [0.0f32, 1.0, f32::NAN, f32::INFINITY];
    let message = kmeans(&x, 1, &options(2, Init::Random), Isa::Scalar, &ctl).unwrap_err().to_string();
    assert!(message.contains("2 that are not (1 NaN, 1 +Inf") && message.contains("index 2"), "{message}");
    let fine = [0.0f32, 1.0, 2.0];
    for weight in [&[1.0, 1.0][..], &[1.0, -1.0, 1.0], &[0.0; 3], &[f64::NAN, 1.0, 1.0], &[f64::MAX; 3]] {
        let o = Options { weight: Some(weight), ..options(2, Init::Random) };
        assert!(kmeans(&fine, 1, &o, Isa::Scalar, &ctl).is_err(), "{weight:?}");
    }
    assert!(kmeans(&fine, 2, &options(2, Init::Random), Isa::Scalar, &ctl).is_err());
    assert!(kmeans(&fine, 1, &options(0, Init::Random), Isa::Scalar, &ctl).is_err());
    assert!(kmeans(&fine, 1, &options(2, Init::Given(&[1.0])), Isa::Scalar, &ctl).is_err());
    let stop = || true;
    let stopped = kmeans(&fine, 1, &options(2, Init::Random), Isa::Scalar, &Ctl::with(1, false, &stop));
    assert_eq!(stopped, Err(Error::Interrupted));
}
