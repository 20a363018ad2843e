//! A radix sort of floats, by keys whose order as integers is the floats' own.

use crate::error::try_zeroed;
use crate::{Ctl, Result};

/// A float that sorts by an integer.
pub trait Value: Copy + PartialOrd + Send + Sync + 'static {
    /// What is sorted, and what is sorted with an index beside it.
    type Key: Key;
    #[doc(hidden)]
    type Tagged: Key;
    /// Whether squares may overflow float64.
    #[doc(hidden)]
    const WIDE: bool;
    #[doc(hidden)]
    fn key(self) -> Self::Key;
    #[doc(hidden)]
    fn from_key(key: Self::Key) -> Self;
    #[doc(hidden)]
    fn tagged(self, index: u32) -> Self::Tagged;
    #[doc(hidden)]
    fn untagged(key: Self::Tagged) -> (Self, u32);
    #[doc(hidden)]
    fn to_f64(self) -> f64;
    /// The upper 16 bits of its key: values with more are greater.
    #[doc(hidden)]
    fn prefix(self) -> usize;
    /// The greatest value that is at most `x`, or −∞.
    #[doc(hidden)]
    fn at_most(x: f64) -> Self;
}

/// An integer that is sorted by its upper bits, from digit to digit.
pub trait Key: Copy + Default + Send {
    /// The bits that order it are those from here to [`Key::TO`].
    const FROM: u32;
    /// See [`Key::FROM`].
    const TO: u32;
    #[doc(hidden)]
    fn bits(self, from: u32) -> usize;
}

macro_rules! keys {
    ($($t:ty: $from:literal..$to:literal, $key:expr;)*) => {$(
        impl Key for $t {
            const FROM: u32 = $from;
            const TO: u32 = $to;
            #[inline(always)]
            fn bits(self, from: u32) -> usize {
                #[allow(clippy::redundant_closure_call)] // the macro's way to name `self`
                let key = ($key)(self);
                (key >> from) as usize
            }
        }
    )*};
}
keys! {
    u32: 0..32, |k: u32| k;
    u64: 32..64, |k: u64| k; // float32's key above an index
    Wide: 0..64, |k: Wide| k.0;
    (Wide, u32): 0..64, |k: (Wide, u32)| k.0.0;
}

/// float64's key, a type of its own beside that of float32 with an index.
#[derive(Clone, Copy, Default)]
pub struct Wide(u64);

impl Value for f32 {
    type Key = u32;
    type Tagged = u64;
    const WIDE: bool = false;

    #[inline(always)]
    fn key(self) -> u32 {
        let bits = (self + 0.0).to_bits(); // -0 is 0
        bits ^ ((bits as i32 >> 31) as u32 | 1 << 31)
    }
    #[inline(always)]
    fn from_key(key: u32) -> f32 {
        f32::from_bits(key ^ (((!key) as i32 >> 31) as u32 | 1 << 31))
    }
    #[inline(always)]
    fn tagged(self, index: u32) -> u64 {
        u64::from(self.key()) << 32 | u64::from(index)
    }
    #[inline(always)]
    fn untagged(key: u64) -> (f32, u32) {
        (f32::from_key((key >> 32) as u32), key as u32)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn prefix(self) -> usize {
        (self.key() >> 16) as usize
    }
    fn at_most(x: f64) -> f32 {
        let near = x as f32;
        if f64::from(near) > x { near.next_down() } else { near }
    }
}

impl Value for f64 {
    type Key = Wide;
    type Tagged = (Wide, u32);
    const WIDE: bool = true;

    #[inline(always)]
    fn key(self) -> Wide {
        let bits = (self + 0.0).to_bits();
        Wide(bits ^ ((bits as i64 >> 63) as u64 | 1 << 63))
    }
    #[inline(always)]
    fn from_key(key: Wide) -> f64 {
        f64::from_bits(key.0 ^ (((!key.0) as i64 >> 63) as u64 | 1 << 63))
    }
    #[inline(always)]
    fn tagged(self, index: u32) -> (Wide, u32) {
        (self.key(), index)
    }
    #[inline(always)]
    fn untagged(key: (Wide, u32)) -> (f64, u32) {
        (f64::from_key(key.0), key.1)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn prefix(self) -> usize {
        (self.key().0 >> 48) as usize
    }
    fn at_most(x: f64) -> f64 {
        x
    }
}

/// Elements between two questions whether to go on.
const CHUNK: usize = 1 << 20;

/// Below this many elements small digits: the counts cost more than the passes.
const FEW: usize = 1000;

/// `keys` in ascending order, equal ones in the order in which they came. `other` is scratch.
pub(super) fn sort<K: Key>(keys: &mut Vec<K>, other: &mut Vec<K>, ctl: &Ctl) -> Result<()> {
    if keys.len() < FEW { by_digits::<K, 8>(keys, other, ctl) } else { by_digits::<K, 11>(keys, other, ctl) }
}

fn by_digits<K: Key, const BITS: u32>(keys: &mut Vec<K>, other: &mut Vec<K>, ctl: &Ctl) -> Result<()> {
    let digits = (K::TO - K::FROM).div_ceil(BITS) as usize;
    let radix = 1usize << BITS;
    // Positions are 32 bits wide.
    let mut counts = try_zeroed::<u32>(digits << BITS)?;
    for chunk in keys.chunks(CHUNK) {
        for key in chunk {
            let bits = key.bits(K::FROM);
            for (d, counts) in counts.chunks_exact_mut(radix).enumerate() {
                counts[(bits >> (d as u32 * BITS)) & (radix - 1)] += 1;
            }
        }
        ctl.check()?;
    }
    if other.len() < keys.len() {
        *other = try_zeroed(keys.len())?;
    }
    other.truncate(keys.len());
    for (d, counts) in counts.chunks_exact_mut(radix).enumerate() {
        if counts.contains(&(keys.len() as u32)) {
            continue; // one digit for all
        }
        let mut start = 0;
        for count in &mut *counts {
            start += std::mem::replace(count, start);
        }
        let from = K::FROM + d as u32 * BITS;
        for chunk in keys.chunks(CHUNK) {
            for &key in chunk {
                let place = &mut counts[key.bits(from) & (radix - 1)];
                other[*place as usize] = key;
                *place += 1;
            }
            ctl.check()?;
        }
        std::mem::swap(keys, other);
    }
    Ok(())
}
