//! Every instruction set against the definition, and worked examples.

use proptest::prelude::*;

use super::*;

fn rows_of(symmetric: bool) -> &'static Levels {
    if symmetric { &Levels::SYMMETRIC } else { &Levels::RANGE }
}

fn definition(x: &[f32], symmetric: bool) -> (Vec<u8>, RowScale) {
    let mut codes = vec![0; x.len()];
    let row = quantize_row(Floats::F32(x), rows_of(symmetric), &mut codes, Isa::Scalar);
    (codes, row)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn every_isa_equals_the_definition(
        x in prop::collection::vec(prop_oneof![
            8 => -3f32..3f32, 1 => any::<f32>(), 1 => Just(0.0), 1 => Just(f32::MIN_POSITIVE / 4.0)
        ], 1..300),
        symmetric: bool,
    ) {
        let (codes, row) = definition(&x, symmetric);
        for &isa in Isa::available() {
            let mut got = vec![0; x.len()];
            let r = quantize_row(Floats::F32(&x), rows_of(symmetric), &mut got, isa);
            prop_assert_eq!(r.scale.to_bits(), row.scale.to_bits(), "{}", isa.name());
            prop_assert_eq!(r.zero_point, row.zero_point);
            if row.scale.is_finite() {
                prop_assert_eq!(&got, &codes, "{}", isa.name());
            }
        }
    }
}

#[test]
fn worked_examples() {
    assert_eq!(definition(&[0.0, 0.0], false), (vec![0, 0], RowScale { scale: 1.0, zero_point: 0 }));
    assert_eq!(definition(&[2.5, 2.5], false), (vec![1, 1], RowScale { scale: 2.5, zero_point: 0 }));
    assert_eq!(definition(&[-2.5], false), (vec![0], RowScale { scale: 2.5, zero_point: 1 }));
    assert_eq!(definition(&[0.0, 255.0, 0.5, 1.5], false).0, [0, 255, 0, 2]); // ties to even
    assert_eq!(definition(&[f32::MAX, f32::MIN], false).0, [255, 0]);
    assert_eq!(definition(&[-127.0, 63.5], true).0, [1, 192]); // 63.5 ties to 64
    assert!(definition(&[1.0, f32::NAN], false).1.scale.is_nan());
    assert!(definition(&[f32::NEG_INFINITY, 0.0], true).1.scale.is_nan());
}

/// Scales' bits, zero points, codes, values' bits.
type Steps = (Vec<u32>, Vec<i32>, Vec<u8>, Vec<u32>);

/// All steps on one Isa.
fn all(x: &[f32], layout: &Layout, levels: &Levels, method: Method, isa: Isa, threads: usize) -> Result<Steps> {
    let n = layout.groups();
    let (mut scale, mut zero_point, mut codes, mut values) =
        (vec![0.0; n], vec![0; n], vec![0; x.len()], vec![0.0; x.len()]);
    let ctl = Ctl::new(threads);
    choose_qparams(Floats::F32(x), layout, levels, method, None, &mut scale, &mut zero_point, isa, &ctl)?;
    let bounds = (levels.qmin(), levels.qmax());
    quantize(Floats::F32(x), layout, bounds, &scale, &zero_point, &mut codes, isa, &ctl)?;
    dequantize(&codes, layout, bounds.1, &scale, &zero_point, FloatsMut::F32(&mut values), isa, &ctl)?;
    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect();
    Ok((bits(scale), zero_point, codes, bits(values)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn static_codes_are_the_same_on_every_isa(
        x in prop::collection::vec(prop_oneof![
            8 => -3f32..3f32, 1 => -f32::MAX..f32::MAX, 1 => Just(0.0), 1 => Just(f32::MIN_POSITIVE / 4.0)
        ], 1..300),
        group in 1usize..40,
        nbits in 2u32..=8,
        symmetric: bool,
        method in prop_oneof![Just(Method::AbsMax), Just(Method::Percentile(90.0)), Just(Method::Mse)],
    ) {
        let levels = Levels::new(nbits, symmetric, false).unwrap();
        for layout in [Layout::groups_of(group, 1, x.len()), Layout::axis(x.len(), 1, 1), Layout::axis(1, x.len(), 1)] {
            let layout = layout.unwrap();
            let want = all(&x, &layout, &levels, method, Isa::Scalar, 1).unwrap();
            for &isa in Isa::available() {
                for threads in [1, 2, 7] {
                    prop_assert_eq!(&all(&x, &layout, &levels, method, isa, threads).unwrap(), &want, "{}", isa.name());
                }
            }
        }
    }
}

#[test]
fn long_groups_are_the_same_on_every_isa_and_thread_count() {
    let x: Vec<f32> = (0..150_001u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32 - 2e9) * 1e-9).collect();
    for layout in [Layout::tensor(150_001), Layout::groups_of(100_000, 1, 150_001), Layout::axis(150_001, 1, 1)] {
        let layout = layout.unwrap();
        for method in [Method::AbsMax, Method::Percentile(99.0), Method::Mse] {
            for symmetric in [true, false] {
                let levels = Levels::new(3, symmetric, false).unwrap();
                let want = all(&x, &layout, &levels, method, Isa::Scalar, 1).unwrap();
                for &isa in Isa::available() {
                    for threads in [1, 2, 7] {
                        assert_eq!(all(&x, &layout, &levels, method, isa, threads).unwrap(), want, "{}", isa.name());
                    }
                }
            }
        }
    }
}

#[test]
fn a_percentile_of_a_long_group_is_that_of_its_sorted_values() {
    let x: Vec<f32> = (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32 - 2e9) * 1e-9).collect();
    let mut sorted: Vec<f32> = x.iter().map(|x| x.abs()).collect();
    sorted.sort_by(f32::total_cmp);
    let levels = Levels::new(8, true, false).unwrap();
    for (p, rank) in [(1e-9, 1), (50.0, 35_000), (99.99, 69_993), (100.0, 70_000)] {
        let layout = Layout::tensor(x.len()).unwrap();
        let (scale, ..) = all(&x, &layout, &levels, Method::Percentile(p), Isa::best(), 2).unwrap();
        assert_eq!(f32::from_bits(scale[0]), sorted[rank - 1] / 127.0);
    }
}

#[test]
fn lengths_and_values_are_checked() {
    let (isa, ctl) = (Isa::best(), Ctl::new(1));
    let layout = Layout::groups_of(2, 1, 3).unwrap();
    let x = Floats::F32(&[1.0, 2.0, 3.0]);
    let refused = |scale: &[f32], zero_point: &[i32], codes: usize| {
        quantize(x, &layout, (0, 255), scale, zero_point, &mut vec![0; codes], isa, &ctl).unwrap_err().to_string()
    };
    assert!(refused(&[1.0], &[0, 0], 3).contains("expected 2 scales"));
    assert!(refused(&[1.0; 2], &[0, 0], 2).contains("codes: expected 3 elements"));
    assert!(refused(&[1.0, 0.0], &[0, 0], 3).contains("at flat index 1"));
    assert!(refused(&[1.0; 2], &[0, 256], 3).contains("zero_point"));
    assert!(Layout::groups_of(0, 1, 3).is_err());
    assert!(Layout::tensor(0).is_err());
    assert!(Layout::axis(usize::MAX, 2, 2).is_err());
    assert!(Levels::new(9, true, false).is_err());
    let mut out = [0.0; 3];
    let wide = dequantize(&[1, 2, 16], &layout, 15, &[1.0; 2], &[0; 2], FloatsMut::F32(&mut out), isa, &ctl);
    assert!(wide.unwrap_err().to_string().contains("got 16 at flat index 2"));
}

#[test]
fn a_stop_ends_the_search() {
    let x = vec![1.0; 1 << 20];
    let layout = Layout::groups_of(64, 1 << 10, 1 << 10).unwrap();
    let stop = || true;
    let ctl = Ctl::with(2, false, &stop);
    let n = layout.groups();
    let (mut scale, mut zero_point) = (vec![0.0; n], vec![0; n]);
    let levels = Levels::new(4, true, false).unwrap();
    let isa = Isa::Scalar;
    let ended =
        choose_qparams(Floats::F32(&x), &layout, &levels, Method::Mse, None, &mut scale, &mut zero_point, isa, &ctl);
    assert_eq!(ended, Err(Error::Interrupted));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn digits_are_fields_of_the_code(
        x in prop::collection::vec(prop_oneof![8 => -3f32..3f32, 1 => -1e9f32..1e9, 1 => Just(0.0)], 1..3000),
        bits in 1..=8u32, most_terms in 1..=32u32, scale in 1e-6f32..1.0, zero in any::<u32>(), channels in 1..5usize,
    ) {
        let digits = Digits::new(bits, most_terms.min(32 / bits)).unwrap();
        let inner = x.len().div_ceil(channels);
        let channels = x.len() / inner;
        let x = &x[..channels * inner];
        let layout = Layout::axis(1, channels, inner).unwrap();
        let scales: Vec<_> = (0..channels).map(|c| scale * (1.0 + c as f32)).collect();
        let zeros: Vec<_> = (0..channels as u32).map(|c| zero.wrapping_mul(c + 1) & digits.most()).collect();
        for &isa in Isa::available() {
            for threads in [1, 2] {
                let mut planes = vec![0; digits.terms as usize * x.len()];
                let ctl = Ctl::new(threads);
                expand(Floats::F32(x), &layout, digits, &scales, &zeros, &mut planes, isa, &ctl).unwrap();
                for (i, &x) in x.iter().enumerate() {
                    let code = planes[i..].iter().step_by(channels * inner).fold(0u64, |v, &f| v << bits | u64::from(f));
                    let (scale, zero) = (f64::from(scales[i / inner]), f64::from(zeros[i / inner]));
                    let expected = ((f64::from(x) / scale).round_ties_even() + zero).clamp(0.0, digits.most().into());
                    prop_assert_eq!(code as f64, expected, "{}", isa.name());
                }
            }
        }
    }
}

#[test]
fn digits_that_do_not_fit_are_refused() {
    for (bits, terms) in [(0, 1), (9, 1), (8, 5), (2, 17), (1, 0), (2, u32::MAX)] {
        assert!(Digits::new(bits, terms).is_err(), "{bits} bits, {terms} terms");
    }
    let (layout, digits) = (Layout::tensor(2).unwrap(), Digits::new(4, 2).unwrap());
    let mut planes = [0; 4];
    let mut run = |x: &[f32], scale: &[f32], zero: &[u32], n: usize| {
        expand(Floats::F32(x), &layout, digits, scale, zero, &mut planes[..n], Isa::Scalar, &Ctl::new(1))
    };
    assert!(run(&[1.0, 2.0], &[0.5], &[3], 4).is_ok());
    assert!(run(&[1.0, f32::NAN], &[0.5], &[3], 4).is_err());
    assert!(run(&[1.0, 2.0], &[0.0], &[3], 4).is_err());
    assert!(run(&[1.0, 2.0], &[0.5], &[256], 4).is_err());
    assert!(run(&[1.0, 2.0], &[0.5, 0.5], &[3], 4).is_err());
    assert!(run(&[1.0, 2.0], &[0.5], &[3], 3).is_err());
    assert!(run(&[1.0], &[0.5], &[3], 2).is_err());
}
