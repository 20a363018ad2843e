//! Where in one block of memory each tensor lies: those that live at the same
//! time lie apart.

use std::ops::Range;

/// Tensors begin on cache lines.
pub(crate) const ALIGN: usize = 64;

/// Something that takes `bytes` from the step that writes it to the last that reads it.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

/// A place for each, and the bytes of the whole: the largest first, each as low as it can.
pub(crate) fn places(lives: &[Life]) -> (Vec<Range<usize>>, usize) {
    let mut order: Vec<_> = (0..lives.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lives[i].bytes), i));
    let mut places = vec![0..0; lives.len()];
    let mut total = 0;
    let mut placed: Vec<usize> = Vec::new();
    for i in order {
        let life = &lives[i];
        if life.bytes == 0 {
            continue;
        }
        let mut taken: Vec<_> = placed
            .iter()
            .filter(|&&j| lives[j].first <= life.last && life.first <= lives[j].last)
            .map(|&j: &usize| places[j].clone())
            .collect();
        taken.sort_by_key(|place: &Range<usize>| place.start);
        let mut at = 0;
        for place in taken {
            if at + life.bytes <= place.start {
                break;
            }
            at = at.max(place.end.next_multiple_of(ALIGN));
        }
        places[i] = at..at + life.bytes;
        total = total.max(at + life.bytes);
        placed.push(i);
    }
    (places, total.next_multiple_of(ALIGN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_together_lies_apart() {
        let mut seed = 7u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for _ in 0..200 {
            let lives: Vec<Life> = (0..next(30))
                .map(|_| {
                    let first = next(20) as usize;
                    Life { bytes: next(500) as usize, first, last: first + next(6) as usize }
                })
                .collect();
            let (places, total) = places(&lives);
            for (i, a) in lives.iter().enumerate() {
                assert!(places[i].end <= total && places[i].len() == a.bytes);
                assert!(a.bytes == 0 || places[i].start.is_multiple_of(ALIGN));
                for (j, b) in lives.iter().enumerate().take(i) {
                    let apart = places[i].end <= places[j].start || places[j].end <= places[i].start;
                    assert!(apart || a.last < b.first || b.last < a.first);
                }
            }
        }
    }

    #[test]
    fn a_chain_takes_its_two_largest_neighbours() {
        let lives = [64, 640, 128, 64].iter().enumerate();
        let lives: Vec<Life> = lives.map(|(i, &bytes)| Life { bytes, first: i, last: i + 1 }).collect();
        assert_eq!(places(&lives).1, 768);
    }
}
