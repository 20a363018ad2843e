//! The fast Walsh–Hadamard transform, by which weights and the inputs of their layer
//! are rotated.

use crate::lanes::{Lanes, Scalar, on_isa};

on_isa! {
    /// Multiplies each `block` of `x`, a power of two, with the Walsh–Hadamard matrix of
    /// 1 and -1, in place. For the strides 1, 2, 4, … below `block`, elements i and
    /// i + stride become their sum and their difference: the same bits everywhere.
    pub(crate) fn rotate(x: &mut [f32], block: usize) = transform;
}

#[inline(always)]
fn transform<L: Lanes>(l: L, x: &mut [f32], block: usize) {
    assert!(block.is_power_of_two() && x.len().is_multiple_of(block));
    // A vector holds whole blocks, or a block whole vectors.
    let (vectors, rest) = x.split_at_mut(x.len() / L::N * L::N);
    let within = L::N.min(block);
    for x in vectors.chunks_exact_mut(L::N) {
        let mut y = l.load(x);
        for stride in [1, 2, 4, 8] {
            if stride < within {
                y = l.butterfly(y, stride);
            }
        }
        l.store(y, x);
    }
    across(l, vectors, within, block);
    across(Scalar, rest, 1, block);
}

/// The strides from `stride` on, two at a time while there are two.
#[inline(always)]
fn across<L: Lanes>(l: L, x: &mut [f32], first: usize, block: usize) {
    for x in x.chunks_exact_mut(block) {
        let mut stride = first;
        while 4 * stride <= block {
            for four in x.chunks_exact_mut(4 * stride) {
                let (low, high) = four.split_at_mut(2 * stride);
                let ((a, b), (c, d)) = (low.split_at_mut(stride), high.split_at_mut(stride));
                let (a, b) = (a.chunks_exact_mut(L::N), b.chunks_exact_mut(L::N));
                let (c, d) = (c.chunks_exact_mut(L::N), d.chunks_exact_mut(L::N));
                for ((a, b), (c, d)) in a.zip(b).zip(c.zip(d)) {
                    let (sum, difference) = both(l, l.load(a), l.load(b));
                    let (more, less) = both(l, l.load(c), l.load(d));
                    let ((sum, more), (difference, less)) = (both(l, sum, more), both(l, difference, less));
                    l.store(sum, a);
                    l.store(difference, b);
                    l.store(more, c);
                    l.store(less, d);
                }
            }
            stride *= 4;
        }
        if stride < block {
            let (low, high) = x.split_at_mut(stride);
            for (a, b) in low.chunks_exact_mut(L::N).zip(high.chunks_exact_mut(L::N)) {
                let (sum, difference) = both(l, l.load(a), l.load(b));
                l.store(sum, a);
                l.store(difference, b);
            }
        }
    }
}

/// The sum and the difference.
#[inline(always)]
fn both<L: Lanes>(l: L, a: L::F, b: L::F) -> (L::F, L::F) {
    (l.add(a, b), l.sub(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn every_isa_has_the_bits_of_one_butterfly_after_the_other() {
        for &isa in Isa::available() {
            for block in (3..13).map(|i| 1 << i) {
                for blocks in [1, 2, 3, 5] {
                    let x: Vec<f32> = (0..block * blocks).map(|i| ((i * i * 31 + i) % 1009) as f32 / 7.0).collect();
                    let (mut got, mut expected) = (x.clone(), x.clone());
                    rotate(&mut got, block, isa);
                    for stride in (0..).map(|i| 1 << i).take_while(|&stride| stride < block) {
                        for i in (0..x.len()).filter(|i| i & stride == 0) {
                            let (a, b) = (expected[i], expected[i + stride]);
                            (expected[i], expected[i + stride]) = (a + b, a - b);
                        }
                    }
                    assert_eq!(got, expected, "{block} {blocks} {}", isa.name());
                    // Twice is `block` times as much.
                    rotate(&mut got, block, isa);
                    assert!(got.iter().zip(&x).all(|(got, x)| (got / block as f32 - x).abs() < 1e-3));
                }
            }
        }
    }
}
