//! Lloyd's iterations, and where they start.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::bounds::Bounds;
use super::tree::{Frame, Tree};
use super::{Real, Slots, block, check_codebook, finite, points, scalar};
use crate::error::{Result, bail, checked_product, try_zeroed};
use crate::par::Parts;
use crate::{Ctl, Isa};

/// Where the iterations start.
#[derive(Debug, Clone, Copy)]
pub enum Init<'a, T> {
    /// Points drawn one by one with probabilities in proportion to the squared
    /// distance from those drawn before (Arthur, Vassilvitskii 2007); of more
    /// than 16 k + 16,384 points, among as many drawn at random.
    PlusPlus,
    /// Points drawn at random.
    Random,
    /// These, (k, d).
    Given(&'a [T]),
}

/// What governs [`kmeans`].
#[derive(Debug, Clone, Copy)]
pub struct Options<'a, T> {
    /// Codewords.
    pub k: usize,
    /// The start.
    pub init: Init<'a, T>,
    /// Starts to try; the least inertia wins, of equals the first.
    pub n_init: usize,
    /// The most iterations.
    pub max_iter: usize,
    /// Stop when the sum of squared shifts is at most this times the mean
    /// variance of the dimensions, or nothing changes its codeword.
    pub tol: f64,
    /// The weight of each point, at least 0 and not all 0.
    pub weight: Option<&'a [f64]>,
    /// What random numbers come from.
    pub seed: u64,
}

/// What [`kmeans`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit<T> {
    /// (k, d).
    pub codebook: Vec<T>,
    /// The nearest codeword of each point.
    pub codes: Vec<u32>,
    /// The sum of weighted squared distances.
    pub inertia: f64,
    /// Iterations of the start that won.
    pub n_iter: usize,
    /// Different points, if at most k, else k: of a codebook's rest each slot
    /// repeats the last of them.
    pub n_distinct: usize,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In 0..n.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// Codewords with a small sum of weighted squared distances from `x`, (n, d).
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, a value or a weight is not finite,
/// weights are negative or all 0, `k`, `n_init` or `max_iter` is 0, or a sum of
/// squares exceeds float64; [`crate::Error::Memory`]; [`crate::Error::Interrupted`].
pub fn kmeans<T: Real>(x: &[T], d: usize, o: &Options<T>, isa: Isa, ctl: &Ctl) -> Result<Fit<T>> {
    let n = points("x", x, d)?;
    check_codebook(o.k)?;
    let size = checked_product("codebook", &[o.k, d, 8])? / 8;
    if n == 0 || n > u32::MAX as usize {
        bail!("x: expected 1 to {} points, got {n}", u32::MAX);
    }
    if o.n_init == 0 || o.max_iter == 0 || o.tol.is_nan() || o.tol < 0.0 {
        bail!("n_init, max_iter, tol: expected at least 1, 1 and 0, got {}, {} and {}", o.n_init, o.max_iter, o.tol);
    }
    finite("x", x, ctl)?;
    if let Init::Given(start) = o.init {
        if start.len() != size {
            bail!("init: expected {} codewords of {d} dimensions, got {} values", o.k, start.len());
        }
        finite("init", start, ctl)?;
    }
    if let Some(weight) = o.weight {
        check_weight(weight, n)?;
    }
    if let Some(fit) = few(x, d, o.k, ctl)? {
        return Ok(fit);
    }
    let frame = Frame::of(x, d, ctl)?;
    let tol = if o.tol > 0.0 { o.tol * variance(x, d, ctl)? } else { 0.0 };
    let mut random = Random(o.seed);
    let mut best: Option<Fit<T>> = None;
    for _ in 0..o.n_init {
        let start = match o.init {
            Init::Given(start) => start.to_vec(),
            Init::Random => random_points(x, d, o, &mut random)?,
            Init::PlusPlus => plus_plus(x, d, o, &frame, &mut random, isa, ctl)?,
        };
        let fit = lloyd(x, d, o, start, &frame, tol, isa, ctl)?;
        if best.as_ref().is_none_or(|best| fit.inertia < best.inertia) {
            best = Some(fit);
        }
        if matches!(o.init, Init::Given(_)) {
            break; // each would be the same
        }
    }
    match best {
        Some(fit) if fit.inertia.is_finite() => Ok(fit),
        _ => bail!("x: the sum of squared distances exceeds float64; scale x down"),
    }
}

fn check_weight(weight: &[f64], n: usize) -> Result<()> {
    if weight.len() != n {
        bail!("sample_weight: expected one for each of {n} points, got {}", weight.len());
    }
    if let Some(at) = weight.iter().position(|w| !(0.0..f64::INFINITY).contains(w)) {
        bail!("sample_weight: expected finite weights of at least 0, got {:e} at flat index {at}", weight[at]);
    }
    let sum: f64 = weight.iter().sum();
    if sum == 0.0 {
        bail!("sample_weight: expected a weight above 0, got only zeros");
    }
    if sum == f64::INFINITY {
        bail!("sample_weight: their sum exceeds float64");
    }
    Ok(())
}

/// The fit where there are no more than `k` different points.
fn few<T: Real>(x: &[T], d: usize, k: usize, ctl: &Ctl) -> Result<Option<Fit<T>>> {
    // Bits of -0 as those of 0.
    let bits = |x: &[T]| -> Vec<u64> { x.iter().map(|x| (x.wide() + 0.0).to_bits()).collect() };
    let mut seen = HashSet::new();
    let mut firsts = Vec::new();
    for (i, point) in x.chunks_exact(d).enumerate() {
        if i % 4096 == 0 {
            ctl.check()?;
        }
        if seen.insert(bits(point)) {
            firsts.push(point);
            if firsts.len() > k {
                return Ok(None);
            }
        }
    }
    drop(seen);
    firsts.sort_by(|a, b| {
        a.iter()
            .zip(*b)
            .map(|(a, b)| a.wide().partial_cmp(&b.wide()))
            .find_map(|o| o.filter(|o| o.is_ne()))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let rank: std::collections::HashMap<Vec<u64>, u32> =
        firsts.iter().enumerate().map(|(i, p)| (bits(p), i as u32)).collect();
    let mut codes: Vec<u32> = try_zeroed(x.len() / d)?;
    for (x, codes) in x.chunks(d << 12).zip(codes.chunks_mut(1 << 12)) {
        for (point, code) in x.chunks_exact(d).zip(codes) {
            *code = rank.get(&bits(point)).copied().unwrap_or_default();
        }
        ctl.check()?;
    }
    let mut codebook: Vec<T> = try_zeroed(k * d)?;
    for (i, c) in codebook.chunks_exact_mut(d).enumerate() {
        for (c, x) in c.iter_mut().zip(firsts[i.min(firsts.len() - 1)]) {
            *c = T::narrow(x.wide() + 0.0);
        }
    }
    Ok(Some(Fit { codebook, codes, inertia: 0.0, n_iter: 0, n_distinct: firsts.len() }))
}

/// The mean of the dimensions' variances.
fn variance<T: Real>(x: &[T], d: usize, ctl: &Ctl) -> Result<f64> {
    let n = (x.len() / d) as f64;
    let mut mean: Vec<f64> = try_zeroed(d)?;
    for x in x.chunks(d << 12) {
        for point in x.chunks_exact(d) {
            for (m, x) in mean.iter_mut().zip(point) {
                *m += x.wide() / n;
            }
        }
        ctl.check()?;
    }
    let mut sum = 0.0;
    for x in x.chunks(d << 12) {
        for point in x.chunks_exact(d) {
            sum += point.iter().zip(&mean).fold(0.0, |sum, (x, m)| sum + (x.wide() - m) * (x.wide() - m)) / n;
        }
        ctl.check()?;
    }
    Ok(sum / d as f64)
}

/// Different points, drawn at random among those of some weight; all of them
/// and the first of those again where these are not enough.
fn draw(n: usize, count: usize, weight: Option<&[f64]>, random: &mut Random) -> Vec<u32> {
    let mut all: Vec<u32> = (0..n as u32).filter(|&i| weight.is_none_or(|w| w[i as usize] > 0.0)).collect();
    let have = all.len().min(count);
    for i in 0..have {
        let other = i + random.below(all.len() - i);
        all.swap(i, other);
    }
    (0..count).map(|i| all[if i < have { i } else { i % have }]).collect()
}

fn random_points<T: Real>(x: &[T], d: usize, o: &Options<T>, random: &mut Random) -> Result<Vec<T>> {
    let mut out: Vec<T> = try_zeroed(o.k * d)?;
    for (c, i) in out.chunks_exact_mut(d).zip(draw(x.len() / d, o.k, o.weight, random)) {
        c.copy_from_slice(&x[i as usize * d..][..d]);
    }
    Ok(out)
}

fn plus_plus<T: Real>(
    x: &[T],
    d: usize,
    o: &Options<T>,
    frame: &Frame,
    random: &mut Random,
    isa: Isa,
    ctl: &Ctl,
) -> Result<Vec<T>> {
    let n = x.len() / d;
    let heavy = o.weight.map_or(n, |w| w.iter().filter(|&&w| w > 0.0).count());
    let among = draw(n, heavy.min(16 * o.k + 16384), o.weight, random);
    let m = among.len();
    // Dimension by dimension, so that points are lanes.
    let padded = m.next_multiple_of(16);
    let mut placed: Vec<f32> = try_zeroed(padded * d)?;
    let mut point: Vec<f32> = try_zeroed(d)?;
    let mut weight: Vec<f32> = try_zeroed(padded)?;
    let most = o.weight.map_or(1.0, |w| w.iter().copied().fold(0.0, f64::max));
    for (i, &at) in among.iter().enumerate() {
        frame.place(&x[at as usize * d..][..d], &mut point);
        for (j, &p) in point.iter().enumerate() {
            placed[j * padded + i] = p;
        }
        weight[i] = o.weight.map_or(1.0, |w| (w[at as usize] / most) as f32);
    }
    let mut distance: Vec<f32> = try_zeroed(padded)?;
    distance.fill(f32::INFINITY);
    let mut out: Vec<T> = try_zeroed(o.k * d)?;
    let mut sums: Vec<f64> = try_zeroed(padded / 16)?;
    // Drawing the first by weight alone, as those after it by weight and distance.
    for (i, sums) in sums.iter_mut().enumerate() {
        *sums = weight[16 * i..][..16].iter().map(|&w| f64::from(w)).sum();
    }
    let mut by_weight = true;
    for c in out.chunks_exact_mut(d) {
        let total: f64 = sums.iter().sum();
        let mut chosen;
        if total > 0.0 {
            let mut left = random.unit() * total;
            let mut at = sums.iter().position(|&s| {
                left -= s;
                left < 0.0
            });
            // Rounding may leave a little at the end.
            let block = *at.get_or_insert_with(|| sums.iter().rposition(|&s| s > 0.0).unwrap_or(0));
            left = (left + sums[block]).min(sums[block]);
            let share = |i: usize| f64::from(if by_weight { weight[i] } else { weight[i] * distance[i] });
            let inside = 16 * block..16 * (block + 1);
            chosen = inside.clone().rfind(|&i| share(i) > 0.0).unwrap_or(16 * block);
            for i in inside {
                left -= share(i);
                if left < 0.0 && share(i) > 0.0 {
                    chosen = i;
                    break;
                }
            }
        } else {
            chosen = random.below(m);
        }
        by_weight = false;
        let from = among[chosen.min(m - 1)] as usize;
        c.copy_from_slice(&x[from * d..][..d]);
        for (j, p) in point.iter_mut().enumerate() {
            *p = placed[j * padded + chosen.min(m - 1)];
        }
        nearer(&placed, &point, &weight, &mut distance, &mut sums, isa);
        // A codeword's turn is short: one question each.
        ctl.for_each(1, &|_, _| ())?;
    }
    Ok(out)
}

crate::lanes::on_isa! {
    /// Lowers each point's squared distance to that from `c`, and sums them, weighted, by sixteens.
    fn nearer(placed: &[f32], c: &[f32], weight: &[f32], distance: &mut [f32], sums: &mut [f64]) = nearer_in;
}

#[inline(always)]
fn nearer_in<L: crate::lanes::Lanes>(
    l: L,
    placed: &[f32],
    c: &[f32],
    weight: &[f32],
    distance: &mut [f32],
    sums: &mut [f64],
) {
    let n = distance.len();
    for (block, sum) in sums.iter_mut().enumerate() {
        let mut shares = [0.0f32; 16];
        for at in (0..16).step_by(L::N) {
            let first = 16 * block + at;
            let mut square = l.splat(0.0);
            for (j, &c) in c.iter().enumerate() {
                let off = l.sub(l.load(&placed[j * n + first..][..L::N]), l.splat(c));
                square = l.add(square, l.mul(off, off));
            }
            let least = l.min(square, l.load(&distance[first..][..L::N]));
            l.store(least, &mut distance[first..][..L::N]);
            l.store(l.mul(least, l.load(&weight[first..][..L::N])), &mut shares[at..][..L::N]);
        }
        *sum = shares.iter().fold(0.0, |sum, &s| sum + f64::from(s));
    }
}

/// Ranges of points whose sums are taken apart and added in order: a number
/// that the sizes give, whatever the threads.
fn ranges(n: usize, k: usize) -> usize {
    (n / (4 * k)).clamp(1, 16.max(n >> 20))
}

fn lloyd<T: Real>(
    x: &[T],
    d: usize,
    o: &Options<T>,
    start: Vec<T>,
    frame: &Frame,
    tol: f64,
    isa: Isa,
    ctl: &Ctl,
) -> Result<Fit<T>> {
    let (n, k) = (x.len() / d, o.k);
    let block = block(k, d);
    let slots = Slots::new(ctl, block.min(n), d, k, 1)?;
    let mut before = start.clone();
    let mut codebook = start;
    let mut codes: Vec<u32> = try_zeroed(n)?;
    let mut next: Vec<u32> = try_zeroed(n)?;
    let parts = ranges(n, k);
    let share = n.div_ceil(parts);
    let mut sums: Vec<f64> = try_zeroed(checked_product("codebook", &[parts, k, d])?)?;
    let mut counts: Vec<f64> = try_zeroed(parts * k)?;
    let mut n_iter = 0;
    let (mut guessed, mut filled, mut unclear) = (false, false, false);
    let mut bounds = Bounds::new(x, &codebook, d, frame, isa, ctl)?;
    while n_iter < o.max_iter {
        n_iter += 1;
        let moved = match holding(&mut bounds, &codebook, frame)? {
            Some((bounds, tree)) => {
                let passed = bounds.pass(&tree, x, &codebook, &mut codes, filled, &slots, ctl)?;
                unclear = passed.unclear;
                passed.moved || !guessed
            }
            None => {
                let tree = Tree::new(&codebook, d, frame)?.with_rough(isa)?;
                let moved = AtomicBool::new(!guessed);
                let tasks = Parts::new(next.chunks_mut(block));
                ctl.for_each(tasks.len(), &|slot, task| {
                    let next = tasks.take(task);
                    let first = task * block;
                    let old = &codes[first..][..next.len()];
                    slots.with(slot, |slot| {
                        let x = &x[first * d..][..next.len() * d];
                        let found = slot.search(&tree, frame, &codebook, x, guessed.then_some(old), false, isa);
                        for (next, &(_, code)) in next.iter_mut().zip(found) {
                            *next = code;
                        }
                    });
                    if old != next {
                        moved.store(true, Relaxed);
                    }
                })?;
                (codes, next) = (next, codes);
                moved.into_inner()
            }
        };
        guessed = true;
        sum_up(x, d, k, share, o.weight, &codes, &mut sums, &mut counts, isa, ctl)?;
        filled = fill_empty(x, d, &codebook, o.weight, &mut codes, &counts[..k]);
        if filled {
            sum_up(x, d, k, share, o.weight, &codes, &mut sums, &mut counts, isa, ctl)?;
        }
        before.copy_from_slice(&codebook);
        let mut shift = 0.0;
        for ((c, sum), &weight) in codebook.chunks_exact_mut(d).zip(sums.chunks_exact(d)).zip(&counts) {
            if weight > 0.0 {
                for (c, sum) in c.iter_mut().zip(sum) {
                    let new = T::narrow(sum / weight);
                    if !new.wide().is_finite() {
                        bail!("x: sums of points exceed float64; scale x, or sample_weight, down");
                    }
                    let off = new.wide() - c.wide();
                    shift += off * off;
                    *c = new;
                }
            }
        }
        match &mut bounds {
            Some(_) if unclear => bounds = None,
            Some(bounds) => bounds.moved(&before, &codebook, d, frame)?,
            None => (),
        }
        if !moved && !filled {
            break;
        }
        if tol > 0.0 && shift <= tol {
            break;
        }
    }
    let mut squares: Vec<f64> = try_zeroed(n.div_ceil(block))?;
    let weigh = |first: usize, i: usize, far: f64| o.weight.map_or(1.0, |w| w[first + i]) * far;
    match holding(&mut bounds, &codebook, frame)? {
        Some((bounds, tree)) => {
            bounds.pass(&tree, x, &codebook, &mut codes, filled, &slots, ctl)?;
            let tasks = Parts::new(codes.chunks(block).zip(&mut squares));
            ctl.for_each(tasks.len(), &|_, task| {
                let (codes, square) = tasks.take(task);
                let x = &x[task * block * d..][..codes.len() * d];
                for (i, (x, &code)) in x.chunks_exact(d).zip(codes).enumerate() {
                    *square += weigh(task * block, i, scalar::distance(x, &codebook[code as usize * d..][..d]));
                }
            })?;
        }
        None => {
            let tree = Tree::new(&codebook, d, frame)?.with_rough(isa)?;
            let tasks = Parts::new(next.chunks_mut(block).zip(&mut squares));
            ctl.for_each(tasks.len(), &|slot, task| {
                let (next, square) = tasks.take(task);
                let first = task * block;
                slots.with(slot, |slot| {
                    let x = &x[first * d..][..next.len() * d];
                    let guesses = Some(&codes[first..][..next.len()]);
                    let found = slot.search(&tree, frame, &codebook, x, guesses, true, isa);
                    for (i, (next, &(far, code))) in next.iter_mut().zip(found).enumerate() {
                        *next = code;
                        *square += weigh(first, i, far);
                    }
                });
            })?;
            codes = next;
        }
    }
    let inertia = squares.iter().sum();
    Ok(Fit { codebook, codes, inertia, n_iter, n_distinct: k })
}

/// The bounds, and a tree for them; none of both any longer where they do not hold.
fn holding<'a, T: Real>(
    bounds: &'a mut Option<Bounds>,
    codebook: &[T],
    frame: &Frame,
) -> Result<Option<(&'a mut Bounds, Tree)>> {
    let tree = match bounds {
        Some(bounds) => bounds.tree(codebook, frame)?,
        None => None,
    };
    if tree.is_none() {
        *bounds = None;
    }
    Ok(bounds.as_mut().zip(tree))
}

/// The weighted sum and the weight of each codeword's points, into the first
/// (k, d) of `sums` and the first k of `counts`.
fn sum_up<T: Real>(
    x: &[T],
    d: usize,
    k: usize,
    share: usize,
    weight: Option<&[f64]>,
    codes: &[u32],
    sums: &mut [f64],
    counts: &mut [f64],
    isa: Isa,
    ctl: &Ctl,
) -> Result<()> {
    let tasks = Parts::new(sums.chunks_mut(k * d).zip(counts.chunks_mut(k)));
    ctl.for_each(tasks.len(), &|_, task| {
        let (sums, counts) = tasks.take(task);
        sums.fill(0.0);
        counts.fill(0.0);
        let range = (task * share).min(codes.len())..((task + 1) * share).min(codes.len());
        let x = &x[range.start * d..range.end * d];
        let (codes, weight) = (&codes[range.clone()], weight.map(|weight| &weight[range]));
        sum_points(&mut Points { x, d, weight, codes, sums, counts }, isa);
    })?;
    for (all, width) in [(sums, k * d), (counts, k)] {
        let (first, others) = all.split_at_mut(width);
        for other in others.chunks_exact(width) {
            for (a, b) in first.iter_mut().zip(other) {
                *a += b;
            }
        }
    }
    Ok(())
}

/// Some points, and where they are summed.
struct Points<'a, T> {
    x: &'a [T],
    d: usize,
    weight: Option<&'a [f64]>,
    codes: &'a [u32],
    sums: &'a mut [f64],
    counts: &'a mut [f64],
}

fn sum_points<T: Real>(a: &mut Points<T>, isa: Isa) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2<T: Real>(a: &mut Points<T>) {
            sum_points_any(a);
        }
        if isa.has_avx2() {
            // SAFETY: an Isa exists only where the CPU has it.
            return unsafe { avx2(a) };
        }
    }
    let _ = isa;
    sum_points_any(a);
}

#[inline(always)]
fn sum_points_any<T: Real>(a: &mut Points<T>) {
    match a.d {
        2 => sum_points_of::<T, 2>(a),
        4 => sum_points_of::<T, 4>(a),
        8 => sum_points_of::<T, 8>(a),
        16 => sum_points_of::<T, 16>(a),
        _ => sum_points_of::<T, 0>(a),
    }
}

/// [`sum_points`] of `D` dimensions, if not 0.
#[inline(always)]
fn sum_points_of<T: Real, const D: usize>(a: &mut Points<T>) {
    match a.weight {
        Some(weight) => add_points::<T, D>(a, |i| weight[i]),
        // Times 1 nothing is rounded.
        None => add_points::<T, D>(a, |_| 1.0),
    }
}

#[inline(always)]
fn add_points<T: Real, const D: usize>(a: &mut Points<T>, weight: impl Fn(usize) -> f64) {
    let d = if D > 0 { D } else { a.d };
    let n = a.codes.len();
    for (i, (x, &code)) in a.x[..n * d].chunks_exact(d).zip(a.codes).enumerate() {
        let w = weight(i);
        a.counts[code as usize] += w;
        let sums = &mut a.sums[code as usize * d..][..d];
        if let (Ok(x), Ok(sums)) = (<&[T; D]>::try_from(x), <&mut [f64; D]>::try_from(&mut *sums)) {
            // In a copy, so that they are added as vectors.
            let mut new = *sums;
            for j in 0..D {
                new[j] += w * x[j].wide();
            }
            *sums = new;
        } else {
            for j in 0..d {
                sums[j] += w * x[j].wide();
            }
        }
    }
}

/// Gives each codeword without points one: the farthest from theirs, of equally
/// far ones the first, that leave their codeword others. Whether it did.
fn fill_empty<T: Real>(
    x: &[T],
    d: usize,
    codebook: &[T],
    weight: Option<&[f64]>,
    codes: &mut [u32],
    counts: &[f64],
) -> bool {
    let empty: Vec<u32> = (0..counts.len() as u32).filter(|&c| counts[c as usize] == 0.0).collect();
    if empty.is_empty() {
        return false;
    }
    let heavy = |i: usize| weight.is_none_or(|w| w[i] > 0.0);
    let mut members = vec![0usize; counts.len()];
    let mut far: Vec<(f64, u32)> = Vec::new();
    for (i, (x, &code)) in x.chunks_exact(d).zip(codes.iter()).enumerate() {
        if heavy(i) {
            members[code as usize] += 1;
            let distance = scalar::distance(x, &codebook[code as usize * d..][..d]);
            if distance > 0.0 {
                far.push((distance, i as u32));
            }
        }
    }
    far.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut far = far.into_iter();
    let mut taken = HashSet::new();
    let mut filled = false;
    for e in empty {
        for (_, i) in far.by_ref() {
            let at = i as usize;
            let point: Vec<u64> = x[at * d..][..d].iter().map(|x| (x.wide() + 0.0).to_bits()).collect();
            if members[codes[at] as usize] > 1 && taken.insert(point) {
                members[codes[at] as usize] -= 1;
                codes[at] = e;
                filled = true;
                break;
            }
        }
    }
    filled
}
