//! The definition: eight codes of `W` bits are `W` bytes, the first code in the
//! lowest bits.

/// An integer that holds one code.
pub(super) trait Word: Copy + Into<u128> + std::ops::BitOrAssign + Default {
    /// The lowest bits of `bits`.
    fn low(bits: u128) -> Self;
}

impl Word for u8 {
    #[inline(always)]
    fn low(bits: u128) -> u8 {
        bits as u8
    }
}

impl Word for u16 {
    #[inline(always)]
    fn low(bits: u128) -> u16 {
        bits as u16
    }
}

/// Packs one row and returns the OR of its codes: a bit at or above `W` there
/// says that some code was too wide, and that `out` is to be thrown away.
pub(super) fn pack<T: Word, const W: usize>(codes: &[T], out: &mut [u8]) -> T {
    let mut seen = T::default();
    let (eights, rest) = codes.as_chunks::<8>();
    let (whole, last) = out.split_at_mut(eights.len() * W);
    for (codes, bytes) in eights.iter().zip(whole.as_chunks_mut::<W>().0) {
        join::<T, W>(codes, bytes, &mut seen);
    }
    join::<T, W>(rest, last, &mut seen);
    seen
}

/// Unpacks one row of `out.len()` codes; the bits after the last one are not
/// looked at.
pub(super) fn unpack<T: Word, const W: usize>(packed: &[u8], out: &mut [T]) {
    let (eights, rest) = out.as_chunks_mut::<8>();
    let (whole, last) = packed.split_at(eights.len() * W);
    for (bytes, codes) in whole.as_chunks::<W>().0.iter().zip(eights) {
        part::<T, W>(bytes, codes);
    }
    part::<T, W>(last, rest);
}

/// At most eight codes.
#[inline(always)] // for eight the loop unrolls
fn join<T: Word, const W: usize>(codes: &[T], bytes: &mut [u8], seen: &mut T) {
    let mut bits = 0u128;
    for (i, &code) in codes.iter().enumerate() {
        *seen |= code;
        bits |= code.into() << (i * W);
    }
    bytes.copy_from_slice(&bits.to_le_bytes()[..bytes.len()]);
}

#[inline(always)]
fn part<T: Word, const W: usize>(bytes: &[u8], codes: &mut [T]) {
    let mut word = [0; 16];
    word[..bytes.len()].copy_from_slice(bytes);
    let bits = u128::from_le_bytes(word);
    for (i, code) in codes.iter_mut().enumerate() {
        *code = T::low((bits >> (i * W)) & ((1 << W) - 1));
    }
}
