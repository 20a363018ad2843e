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
    for (codes, bytes) in codes.chunks(8).zip(out.chunks_mut(W)) {
        let mut bits = 0u128;
        for (i, &code) in codes.iter().enumerate() {
            seen |= code;
            bits |= code.into() << (i * W);
        }
        bytes.copy_from_slice(&bits.to_le_bytes()[..bytes.len()]);
    }
    seen
}

/// Unpacks one row of `out.len()` codes; the bits after the last one are not
/// looked at.
pub(super) fn unpack<T: Word, const W: usize>(packed: &[u8], out: &mut [T]) {
    for (bytes, codes) in packed.chunks(W).zip(out.chunks_mut(8)) {
        let mut word = [0; 16];
        word[..bytes.len()].copy_from_slice(bytes);
        let bits = u128::from_le_bytes(word);
        for (i, code) in codes.iter_mut().enumerate() {
            *code = T::low((bits >> (i * W)) & ((1 << W) - 1));
        }
    }
}
