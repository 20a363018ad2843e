//! Where levels are for a clip of 1, and where the companders put them.

use super::Method;

/// The signed places of a method's levels, ascending, the outermost at most 1 from 0: two lists where one
/// side has a level more, else one.
pub(super) fn shapes(method: Method, n: usize, pin_zero: bool) -> Vec<Vec<f64>> {
    let one_more = pin_zero && n % 2 == 0;
    match method {
        Method::Pot => {
            let zero = pin_zero || n % 2 == 1;
            let sides = |below, above| signed(&powers(below), zero, &powers(above));
            if one_more { vec![sides(n / 2, n / 2 - 1), sides(n / 2 - 1, n / 2)] } else { vec![sides(n / 2, n / 2)] }
        }
        Method::Apot => {
            let positive = apot(apot_bits(n).unwrap_or(2));
            let mut places = signed(&positive, true, &positive);
            places.resize(n, 1.0);
            vec![places]
        }
        _ if one_more => vec![fractions(n, -1.0), fractions(n, 1.0)],
        _ => vec![fractions(n, 0.0)],
    }
}

/// The middles of n even steps from -1 to 1, or half a step beside them.
fn fractions(n: usize, shift: f64) -> Vec<f64> {
    (0..n).map(|i| ((2 * i + 1) as f64 - n as f64 + shift) / n as f64).collect()
}

fn signed(below: &[f64], zero: bool, above: &[f64]) -> Vec<f64> {
    let zero = zero.then_some(0.0);
    below.iter().rev().map(|p| -p).chain(zero).chain(above.iter().copied()).collect()
}

/// The powers of two up to 1, `n` of them, ascending.
fn powers(n: usize) -> Vec<f64> {
    let mut powers: Vec<f64> = std::iter::successors(Some(1.0), |p| Some(p / 2.0)).take(n).collect();
    powers.reverse();
    powers
}

/// Whether float32 holds all the powers of a `Pot` of so many levels.
pub(super) fn pot_makes(n: usize) -> bool {
    n <= 256
}

/// b where `n` is 2^b or one less, b of 2 to 8.
pub(super) fn apot_bits(n: usize) -> Option<u32> {
    (2..=8).find(|&bits| n == 1 << bits || n + 1 == 1 << bits)
}

/// The positive levels of additive powers of two in `bits` bits, one of them the sign (Li et al., ICLR 2020): each sum
/// of one of {0, 2^-i, …} from every term, over the greatest. A term of two bits has three powers beside 0; where `bits`
/// is even, a last term of one bit has one.
fn apot(bits: u32) -> Vec<f64> {
    let (pairs, single) = ((bits as usize - 1) / 2, bits % 2 == 0);
    let mut powers = std::iter::successors(Some(0.5), |p| Some(p / 2.0));
    let mut next = || powers.next().unwrap_or(0.0);
    let mut terms = vec![vec![0.0]; pairs];
    for i in 0..3 {
        if i == 2 && single {
            terms.push(vec![0.0, next()]);
        }
        for term in &mut terms[..pairs] {
            term.push(next());
        }
    }
    let mut sums = vec![0.0];
    for term in &terms {
        sums = sums.iter().flat_map(|sum| term.iter().map(move |p| sum + p)).collect();
    }
    sums.sort_by(f64::total_cmp);
    let most = sums[sums.len() - 1];
    sums[1..].iter().map(|sum| sum / most).collect()
}

/// The level of a signed place: even steps of the compressed range from -`clip` to `clip`, expanded; without a
/// compander, those of the range itself. `scale` is the distribution's b or σ.
pub(super) fn expand(method: Method, scale: f64, clip: f64, shape: &[f64], centre: f64, levels: &mut [f64]) {
    match method {
        Method::Laplace => {
            let (b, edge) = (3.0 * scale, libm::expm1(-clip / (3.0 * scale)));
            fill(shape, centre, levels, |v| -b * libm::log1p(v * edge));
        }
        Method::Gauss => {
            let root = 6.0f64.sqrt() * scale;
            let edge = libm::erf(clip / root);
            // erf⁻¹(p) is the normal distribution's quantile at (1 + p) / 2 over √2.
            let root = root / std::f64::consts::SQRT_2;
            fill(shape, centre, levels, |v| if v < 1.0 { root * upper_quantile((1.0 - v * edge) / 2.0) } else { clip });
        }
        _ => fill(shape, centre, levels, |v| v * clip),
    }
}

fn fill(shape: &[f64], centre: f64, levels: &mut [f64], expand: impl Fn(f64) -> f64) {
    for i in 0..shape.len() {
        let v = shape[i];
        // The mirror image of one that is there already.
        let other = shape.len() - 1 - i;
        levels[i] = if v > 0.0 && shape[other] == -v {
            centre - (levels[other] - centre)
        } else if v == 0.0 {
            centre
        } else {
            let level = expand(v.abs());
            centre + if v < 0.0 { -level } else { level }
        };
    }
}

/// Where the normal distribution has a mass of `q` above, 0 < q ≤ 1/2.
pub(super) fn upper_quantile(q: f64) -> f64 {
    // Abramowitz and Stegun 26.2.23, within 4.5e-4, then Halley's steps.
    let t = (-2.0 * libm::log(q)).sqrt();
    let mut x = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    for _ in 0..2 {
        let step = (upper_mass(x) - q) / normal(x);
        x += step / (1.0 - 0.5 * x * step);
    }
    x
}

/// The mass of the normal distribution above `x`.
pub(super) fn upper_mass(x: f64) -> f64 {
    0.5 * libm::erfc(x * std::f64::consts::FRAC_1_SQRT_2)
}

/// The normal density.
pub(super) fn normal(x: f64) -> f64 {
    const OVER_ROOT: f64 = 0.398_942_280_401_432_68; // 1 / √(2 π)
    OVER_ROOT * libm::exp(-0.5 * x * x)
}
