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
        bail!("query, key: expected tokens of {width} channels in {heads} heads, got {} and {}", query.len(), key.len());
    }
    if value.len() != key.len() || out.len() != query.len() {
        bail!("value, out: expected {} and {} elements, got {} and {}", key.len(), query.len(), value.len(), out.len());
    }
    let each = width / heads;
    if checked_product("query", &[each, key.len() / width])? > i32::MAX as usize {
        bail!("key: int32 is sure to hold sums of {each} channels and fewer tokens than {}", key.len() / width);
    }
    let mut mixed = try_zeroed(checked_product("heads", &[each, each])?)?;
    attend(of, &mut mixed, out, isa.at_most_avx2());
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
