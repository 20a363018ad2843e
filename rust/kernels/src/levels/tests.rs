//! Every path against the definition, and the searches against plain sums.

use proptest::prelude::*;

use super::numbers::{Numbers, Scratch};
use super::*;
use crate::codebook::midpoint;
use crate::{Ctl, Isa};

fn alone() -> Ctl<'static> {
    Ctl::new(1)
}

/// The code of the nearest level, the lower of two as near, by definition.
fn nearest(x: f64, levels: &[f64]) -> usize {
    let mut order: Vec<usize> = (0..levels.len()).collect();
    order.sort_by(|&a, &b| levels[a].total_cmp(&levels[b]));
    order.dedup_by(|later, first| levels[*later] == levels[*first]);
    let mut at = 0;
    while at + 1 < order.len() && x > midpoint(levels[order[at]], levels[order[at + 1]]) {
        at += 1;
    }
    order[at]
}

fn floats() -> impl Strategy<Value = Vec<f32>> {
    // Few distinct values, so that numbers fall on levels and halfway between them.
    prop_oneof![
        prop::collection::vec((-24i32..=24).prop_map(|i| i as f32 / 4.0), 0..200),
        prop::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), 0..200),
    ]
}

proptest! {
    #[test]
    fn every_path_gives_the_nearest_level(
        x in floats(),
        levels in prop::collection::vec((-24i32..=24).prop_map(|i| f64::from(i) / 4.0), 1..60),
    ) {
        let expected: Vec<u8> = x.iter().map(|&x| nearest(f64::from(x), &levels) as u8).collect();
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for &isa in Isa::available() {
            let mut codes = vec![0u8; x.len()];
            encode(&x, 1, &levels, &mut codes, isa, &alone()).unwrap();
            prop_assert_eq!(&codes, &expected, "{}", isa.name());
            let mut codes = vec![0u16; x.len()];
            encode(&wide, 1, &levels, &mut codes, isa, &alone()).unwrap();
            prop_assert!(codes.iter().zip(&expected).all(|(&a, &b)| a == u16::from(b)));
        }
    }

    #[test]
    fn a_number_that_is_not_finite_is_found_at_any_place(n in 1usize..150, at in 0usize..150, kind in 0usize..3) {
        let mut x = vec![1.0f32; n];
        x[at % n] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][kind];
        for &isa in Isa::available() {
            let told = encode(&x, 1, &[0.0, 1.0], &mut vec![0u8; n], isa, &alone()).unwrap_err().to_string();
            prop_assert!(told.contains(&format!("at flat index {}; 1 in all", at % n)), "{told}");
        }
    }

    #[test]
    fn moments_are_those_of_plain_sums(
        x in prop::collection::vec(-1e3f64..1e3, 1..500),
        n_levels in 1usize..20,
        t in prop::collection::vec(-1e3f64..1e3, 2),
        weighted: bool,
    ) {
        let weights: Vec<f64> = (0..x.len()).map(|i| (i % 7) as f64 + 0.5).collect();
        let given = weighted.then_some(&weights[..]);
        let ctl = alone();
        let numbers = Numbers::sorted(&x, given, n_levels, &mut Scratch::default(), &ctl).unwrap();
        let (a, b) = (t[0].min(t[1]), t[0].max(t[1]));
        let found = numbers.sums(numbers.cut(a), numbers.cut(b), a);
        let mut expected = [0.0; 3];
        for (&x, &w) in x.iter().zip(&weights).filter(|(x, _)| **x > a && **x <= b) {
            let w = if weighted { w } else { 1.0 };
            expected = [expected[0] + w, expected[1] + w * (x - a), expected[2] + w * (x - a) * (x - a)];
        }
        for (found, expected) in found.into_iter().zip(expected) {
            prop_assert!((found - expected).abs() <= 1e-11 * expected.abs(), "{found} {expected}");
        }
    }

    #[test]
    fn the_order_of_errors(x in prop::collection::vec(-1e3f32..1e3, 1..300), n_levels in 1usize..20, pin_zero: bool) {
        let of = |method| fit(&x, None, Options { n_levels, method, pin_zero }, Isa::best(), &alone()).unwrap().mse;
        let (optimal, lloyd) = (of(Method::Optimal), of(Method::LloydMax));
        prop_assert!(optimal <= lloyd * (1.0 + 1e-9) + 1e-20);
        for method in [Method::Uniform, Method::Laplace, Method::Gauss, Method::Quantile, Method::Pot] {
            prop_assert!(lloyd <= of(method) * (1.0 + 1e-12), "{method:?}");
        }
    }
}

#[test]
fn a_density_and_many_of_its_numbers_have_the_same_levels() {
    let n = 40_000;
    for density in [Density::Gauss, Density::Laplace] {
        let x: Vec<f64> = (0..n)
            .map(|i| {
                let p = (f64::from(i) + 0.5) / f64::from(n);
                let q = if p < 0.5 { p } else { 1.0 - p };
                let distance = match density {
                    Density::Gauss => shapes::upper_quantile(q),
                    Density::Laplace => -libm::log(2.0 * q) / std::f64::consts::SQRT_2,
                };
                if p < 0.5 { -distance } else { distance }
            })
            .collect();
        for method in [Method::LloydMax, Method::Uniform, Method::Laplace, Method::Gauss, Method::Pot, Method::Apot] {
            let exact = of_density(density, 15, method, false, &alone()).unwrap();
            let found =
                fit(&x, None, Options { n_levels: 15, method, pin_zero: false }, Isa::best(), &alone()).unwrap();
            assert!((found.mse / exact.mse - 1.0).abs() < 1e-2, "{density:?} {method:?} {} {}", found.mse, exact.mse);
        }
    }
}

#[test]
fn quantiles_invert_the_mass() {
    for i in 1..2000 {
        let q = 0.5 * libm::exp(-0.2 * f64::from(i));
        let x = shapes::upper_quantile(q);
        assert!((shapes::upper_mass(x) / q - 1.0).abs() < 1e-13 * (1.0 + x * x), "{q:e}");
    }
}

#[test]
fn rows_are_fits_one_by_one_on_any_number_of_threads() {
    let x: Vec<f32> = (0u32..9 * 100).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 8.0).collect();
    for (_, method) in Method::NAMES {
        let options = Options { n_levels: 7, method, pin_zero: true };
        let one_by_one: Vec<Fit> =
            x.chunks(100).map(|x| fit(x, None, options, Isa::best(), &alone()).unwrap()).collect();
        for threads in [1, 2, 7] {
            let found = fit_rows(&x, 9, None, options, Isa::best(), &Ctl::new(threads)).unwrap();
            for (a, b) in found.iter().zip(&one_by_one) {
                assert_eq!((&a.levels, a.mse.to_bits(), a.n_distinct), (&b.levels, b.mse.to_bits(), b.n_distinct));
            }
        }
    }
}
