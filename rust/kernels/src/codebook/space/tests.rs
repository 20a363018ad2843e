use super::*;
use crate::Error;

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
fn plain(x: &[f64], start: &[f64], d: usize, max_iter: usize) -> (Vec<f64>, Vec<u32>) {
    let mut codebook = start.to_vec();
    let mut codes = Vec::new();
    for _ in 0..max_iter {
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
    (codebook, codes)
}

/// Small whole numbers, so that nothing is rounded.
#[test]
fn a_tile_is_taken_by_its_definition() {
    use super::eight::{Eight, Portable};
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
        let expected = run(&|tile, halves, rows, least| Portable.take_tile(&points, tile, halves, rows, least));
        for (p, &(score, other, tile)) in expected.1.iter().enumerate() {
            let mut lows: Vec<f32> = expected.0.iter().map(|low| low[p / 8][p % 8]).collect();
            assert_eq!(lows[tile], score);
            lows.sort_by(f32::total_cmp);
            assert_eq!((lows[0], lows[1]), (score, other));
        }
        #[cfg(target_arch = "x86_64")]
        if Isa::best().has_avx2() {
            // SAFETY: the CPU has AVX2.
            let avx2 = unsafe { super::eight::Avx2::new() };
            let got = run(&|tile, halves, rows, least| avx2.take_tile(&points, tile, halves, rows, least));
            assert_eq!(got, expected, "{d}");
        }
    }
}

#[test]
fn bounds_change_no_iteration() {
    for (d, k) in [(1, 5), (2, 16), (3, 33), (8, 65), (8, 200), (2, 520), (3, 700)] {
        // Sums of multiples of 2^-10 are exact in any order. The last block is not a whole one.
        let x = some(6007 * d, 7, 1.0 / 1024.0);
        let start = x[..k * d].to_vec();
        let want = plain(&x, &start, d, 12);
        for &isa in Isa::available() {
            let fit = kmeans(&x, d, &options(k, Init::Given(&start)), isa, &Ctl::new(2)).unwrap();
            assert!(fit.codebook == want.0 && fit.codes == want.1, "d {d}, k {k}, {}", isa.name());
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
        assert_eq!((fit.codebook, fit.codes), (vec![1.5, 100.0, 50.0], vec![0, 0, 0, 0, 2, 1]));
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
