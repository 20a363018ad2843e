//! Every instruction set against the definition, and worked examples.

use proptest::prelude::*;

use super::*;

fn definition(x: &[f32], symmetric: bool) -> (Vec<u8>, RowScale) {
    let mut codes = vec![0; x.len()];
    let row = quantize_row(Floats::F32(x), symmetric, &mut codes, Isa::Scalar);
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
            let r = quantize_row(Floats::F32(&x), symmetric, &mut got, isa);
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
