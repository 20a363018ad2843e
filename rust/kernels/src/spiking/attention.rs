//! Attention of spikes without softmax, at a cost proportional to the spikes.

use super::words::for_few;
use crate::error::{bail, checked_product, try_zeroed};
use crate::lanes::{Lanes, on_isa};
use crate::{Isa, Result};

/// Spikes of queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub struct SpikeAttention<'a> {
    /// tokens × width, a byte of 0 or 1 each.
    pub query: &'a [u8],
    /// Of as many tokens as there are values.
    pub key: &'a [u8],
    /// As the keys.
    pub value: &'a [u8],
    /// Channels of a token.
    pub width: usize,
    /// A head has `width / heads` neighbouring channels.
    pub heads: usize,
}

/// `query (keyᵀ value)` in each head, exact, into `out`, tokens × width.
///
/// ```
/// use lowbit_kernels::{Isa, spiking::{SpikeAttention, spike_attention}};
/// let x = &[1, 1, 0, 1];
/// let mut out = [0; 4];
/// spike_attention(&SpikeAttention { query: x, key: x, value: x, width: 2, heads: 1 }, &mut out, Isa::best())?;
/// assert_eq!(out, [2, 3, 1, 2]);
/// # Ok::<(), lowbit_kernels::Error>(())
/// ```
///
/// # Errors
/// [`crate::Error::Value`] where lengths do not fit, or int32 does not hold all sums; [`crate::Error::Memory`].
pub fn spike_attention(of: &SpikeAttention, out: &mut [i32], isa: Isa) -> Result<()> {
    let SpikeAttention { query, key, value, width, heads } = *of;
    if width == 0 || heads == 0 || width % heads != 0 || query.len() % width != 0 || key.len() % width != 0 {
        bail!(
            "query, key: expected tokens of {width} channels in {heads} heads, got {} and {}",
            query.len(),
            key.len()
        );
    }
    if value.len() != key.len() || out.len() != query.len() {
        bail!("value, out: expected {} and {} elements, got {} and {}", key.len(), query.len(), value.len(), out.len());
    }
    let each = width / heads;
    if checked_product("query", &[each, key.len() / width])? > i32::MAX as usize {
        bail!("key: int32 is sure to hold sums of {each} channels and fewer tokens than {}", key.len() / width);
    }
    let mut mixed = try_zeroed(checked_product("heads", &[each, each])?)?;
    attend(of, &mut mixed, out, isa);
    Ok(())
}

on_isa! {
    fn attend(of: &SpikeAttention, mixed: &mut [i32], out: &mut [i32]) = attend_in;
}

#[inline(always)]
fn attend_in<L: Lanes>(_: L, of: &SpikeAttention, mixed: &mut [i32], out: &mut [i32]) {
    match of.width / of.heads {
        8 => heads::<8>(of, mixed, out),
        16 => heads::<16>(of, mixed, out),
        32 => heads::<32>(of, mixed, out),
        64 => heads::<64>(of, mixed, out),
        _ => heads::<0>(of, mixed, out),
    }
}

/// `D`: channels of a head, 0 for any number.
#[inline(always)]
fn heads<const D: usize>(of: &SpikeAttention, mixed: &mut [i32], out: &mut [i32]) {
    let d = if D == 0 { of.width / of.heads } else { D };
    out.fill(0);
    for head in 0..of.heads {
        // Row i: how often each value spiked together with channel i of the keys.
        mixed.fill(0);
        for (key, value) in of.key.chunks_exact(of.width).zip(of.value.chunks_exact(of.width)) {
            let value = &value[head * d..][..d];
            for_few!(&key[head * d..][..d], |i| {
                let row = &mut mixed[i * d..][..d];
                for j in 0..d {
                    row[j] = row[j].wrapping_add(value[j].into());
                }
            });
        }
        for (query, out) in of.query.chunks_exact(of.width).zip(out.chunks_exact_mut(of.width)) {
            let out = &mut out[head * d..][..d];
            for_few!(&query[head * d..][..d], |i| {
                let row = &mixed[i * d..][..d];
                for j in 0..d {
                    out[j] = out[j].wrapping_add(row[j]);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_of_a_head_has_the_sums_of_the_definition() {
        let mut seed = 7u64;
        let mut spikes = |n: usize| -> Vec<u8> {
            let mut one = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                u8::from(seed >> 60 < 5)
            };
            (0..n).map(|_| one()).collect()
        };
        for (tokens, keys, heads, d) in
            [(1, 1, 1, 1), (5, 3, 2, 8), (49, 49, 4, 16), (7, 300, 3, 32), (4, 4, 1, 64), (6, 9, 2, 11)]
        {
            let width = heads * d;
            let (query, key, value) = (spikes(tokens * width), spikes(keys * width), spikes(keys * width));
            let mut want = vec![0; tokens * width];
            for (i, want) in want.iter_mut().enumerate() {
                let (token, channel) = (i / width, i % width);
                let head = channel / d * d;
                for (j, other) in (head..head + d).flat_map(|j| (0..keys).map(move |other| (j, other))) {
                    let on = query[token * width + j] & key[other * width + j] & value[other * width + channel];
                    *want += i32::from(on);
                }
            }
            for &isa in Isa::available() {
                let mut out = vec![-1; tokens * width];
                let of = SpikeAttention { query: &query, key: &key, value: &value, width, heads };
                spike_attention(&of, &mut out, isa).unwrap();
                assert_eq!(out, want, "{} {tokens} {keys} {heads} {d}", isa.name());
            }
        }
        println!("spiking attention: 6 cases on each of {:?}", Isa::available());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = [1; 4];
        let of = |width, heads| SpikeAttention { query: &x, key: &x, value: &x, width, heads };
        for (width, heads, out) in [(0, 1, 4), (2, 0, 4), (2, 3, 4), (3, 1, 4), (2, 1, 3)] {
            assert!(spike_attention(&of(width, heads), &mut vec![0; out], Isa::best()).is_err());
        }
    }
}
