//! Which inputs spiked, row by row: what the sums are made from.

use std::ops::Range;

use crate::{Error, Isa, Result};

/// Inputs that are looked at together.
pub(super) const WORD: usize = 64;

/// Per cent of the inputs from which on rows share enough of them that it is worth to look for them.
const DENSE: usize = 16;

/// Inputs of some rows, in ascending order within each plane.
#[derive(Default)]
pub(super) struct Lists {
    pub indices: Vec<u32>,
    /// Of each index, where the rows have counts that are kept as such; else empty.
    pub counts: Vec<u8>,
    pub planes: Vec<Plane>,
    pub rows: Vec<Row>,
    words: Vec<u64>,
    /// Of dense rows, what `words` was.
    dense: Vec<u64>,
    spare: Vec<u32>,
    spare_bytes: Vec<u8>,
}

/// Inputs that all count 2^shift.
pub(super) struct Plane {
    pub shift: u32,
    pub at: Range<usize>,
}

/// One row: some planes.
pub(super) struct Row {
    pub planes: Range<usize>,
    /// The indices are those of the inputs that did not spike: they count against the columns' sums.
    pub minus: bool,
    /// Of a row of one plane that has many indices: where its bits are, with AVX-512.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    dense: Option<Range<usize>>,
}

/// How rows become lists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Inputs are 0 or 1; where most are 1, the zeros are listed.
    Spikes,
    /// Inputs are 0 or 1, all listed.
    EachSpike,
    /// A count is a sum of powers of two, each a spike in the plane of its own.
    Planes,
    /// A count is kept beside its index.
    Counts,
}

impl Kind {
    pub(super) fn has_counts(self) -> bool {
        matches!(self, Kind::Planes | Kind::Counts)
    }
}

/// Bytes of 0 and 1 as bits, 64 to a word; false where there are others, whose lowest bits it takes.
fn bits_of(isa: Isa, bytes: &[[u8; WORD]], out: &mut [u64]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        return super::avx2::bits_of(isa, bytes, out);
    }
    let _ = isa;
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut seen = 0;
    for (bytes, out) in bytes.iter().zip(out) {
        *out = 0;
        for (i, eight) in bytes.as_chunks().0.iter().enumerate() {
            let x = u64::from_le_bytes(*eight);
            seen |= x;
            // Bit 0 of byte j goes to bit 56 + j, and nothing else there or below carries into it.
            *out |= ((x & ONES).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
        }
    }
    seen & !ONES == 0
}

#[inline(always)]
pub(super) fn count_in(words: &[u64]) -> usize {
    words.iter().map(|word| word.count_ones() as usize).sum()
}

fn count(isa: Isa, words: &[u64]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        return super::avx2::count_in(isa, words);
    }
    let _ = isa;
    count_in(words)
}

/// The numbers of the set bits, which are as many as `out` has before its last 8; those are scratch.
#[inline(always)]
pub(super) fn numbers_of(words: &[u64], out: &mut [u32]) {
    let mut end = 0;
    for (base, &word) in (0u32..).step_by(WORD).zip(words) {
        let (mut word, mut at) = (word, end);
        end += word.count_ones() as usize;
        // Eight at a time, whatever is left: that spares a branch for each.
        while at < end {
            let Some(eight) = out[at..].first_chunk_mut::<8>() else { unreachable!("eight more than there are") };
            for slot in eight {
                *slot = base.wrapping_add(word.trailing_zeros());
                word &= word.wrapping_sub(1);
            }
            at += 8;
        }
    }
}

fn append_numbers(isa: Isa, words: &[u64], count: usize, to: &mut Vec<u32>) -> Result<()> {
    let at = to.len();
    grow(to, count + 8)?;
    to.resize(at + count + 8, 0);
    #[cfg(target_arch = "x86_64")]
    let done = isa.has_avx2() && super::avx2::numbers_of(isa, words, &mut to[at..]);
    #[cfg(not(target_arch = "x86_64"))]
    let done = false;
    if !done {
        let _ = isa;
        numbers_of(words, &mut to[at..]);
    }
    to.truncate(at + count);
    Ok(())
}

fn grow<T>(v: &mut Vec<T>, more: usize) -> Result<()> {
    v.try_reserve(more).map_err(|_| Error::Memory((v.len() + more).saturating_mul(size_of::<T>())))
}

impl Lists {
    /// Without rows, the memory kept.
    pub(super) fn clear(&mut self) {
        self.indices.clear();
        self.counts.clear();
        self.planes.clear();
        self.rows.clear();
        self.dense.clear();
    }

    /// The indices of a row that has many, as bits.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn dense(&self, row: &Row) -> Option<&[u64]> {
        row.dense.clone().map(|at| &self.dense[at])
    }

    /// A row of packed spikes; its sum.
    pub(super) fn push_packed(&mut self, isa: Isa, bits: &[u8], k: usize, kind: Kind) -> Result<u64> {
        self.words.clear();
        grow(&mut self.words, k.div_ceil(WORD))?;
        let (eights, rest) = bits.as_chunks();
        self.words.extend(eights.iter().map(|eight| u64::from_le_bytes(*eight)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.words.push(u64::from_le_bytes(last));
        }
        // Bits past K were looked for, but a caller's bytes may have changed meanwhile.
        self.end_at(k);
        self.push_words(isa, k, kind)
    }

    /// A row of bytes: its sum, or None where one is neither 0 nor 1 and no count is wanted.
    pub(super) fn push_bytes(&mut self, isa: Isa, bytes: &[u8], kind: Kind) -> Result<Option<u64>> {
        if !kind.has_counts() {
            if !self.words_of(isa, bytes)? {
                return Ok(None);
            }
            return self.push_words(isa, bytes.len(), kind).map(Some);
        }
        let at = self.indices.len();
        self.append_counts(isa, bytes)?;
        self.finish(at, kind).map(Some)
    }

    /// The numbers of the bytes that are not 0, appended, and the counts if wanted, without a row
    /// made of them; false where bytes are neither 0 nor 1 and no count is wanted.
    pub(super) fn append(&mut self, isa: Isa, bytes: &[u8], kind: Kind) -> Result<bool> {
        if kind.has_counts() {
            self.append_counts(isa, bytes)?;
            return Ok(true);
        }
        if !self.words_of(isa, bytes)? {
            return Ok(false);
        }
        let count = count(isa, &self.words);
        append_numbers(isa, &self.words, count, &mut self.indices)?;
        Ok(true)
    }

    /// Once after [`Self::append`] of `len` bytes without counts: the numbers of those that are 0.
    /// From what was read then: a caller's bytes may have changed meanwhile.
    pub(super) fn zeros(&mut self, isa: Isa, len: usize, to: &mut Vec<u32>) -> Result<()> {
        self.invert(len);
        to.clear();
        append_numbers(isa, &self.words, count(isa, &self.words), to)
    }

    /// Turns the bits of `len` inputs.
    fn invert(&mut self, len: usize) {
        self.words.iter_mut().for_each(|word| *word = !*word);
        self.end_at(len);
    }

    /// Bits of more than `len` inputs are 0.
    fn end_at(&mut self, len: usize) {
        if len % WORD != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << (len % WORD)) - 1;
        }
    }

    /// Inputs and their counts, if there are any, `shift` further on: that leaves them below K.
    pub(super) fn append_shifted(&mut self, indices: &[u32], counts: &[u8], shift: i64) -> Result<()> {
        grow(&mut self.indices, indices.len())?;
        self.indices.extend(indices.iter().map(|&i| i.wrapping_add(shift as u32)));
        grow(&mut self.counts, counts.len())?;
        self.counts.extend_from_slice(counts);
        Ok(())
    }

    /// Inputs that follow each other.
    pub(super) fn append_range(&mut self, range: Range<usize>) -> Result<()> {
        grow(&mut self.indices, range.len())?;
        self.indices.extend(range.start as u32..range.end as u32);
        Ok(())
    }

    fn append_counts(&mut self, isa: Isa, bytes: &[u8]) -> Result<()> {
        self.spare_bytes.clear();
        grow(&mut self.spare_bytes, bytes.len())?;
        self.spare_bytes.extend(bytes.iter().map(|&count| u8::from(count != 0)));
        let spare = std::mem::take(&mut self.spare_bytes);
        self.words_of(isa, &spare)?;
        self.spare_bytes = spare;
        let at = self.indices.len();
        let count = count(isa, &self.words);
        append_numbers(isa, &self.words, count, &mut self.indices)?;
        grow(&mut self.counts, count)?;
        self.counts.extend(self.indices[at..].iter().map(|&k| bytes[k as usize]));
        Ok(())
    }

    /// Bytes of 0 and 1 as words of bits; false where there are others.
    fn words_of(&mut self, isa: Isa, bytes: &[u8]) -> Result<bool> {
        let (whole, rest) = bytes.as_chunks::<WORD>();
        self.words.clear();
        grow(&mut self.words, whole.len() + 1)?;
        self.words.resize(whole.len(), 0);
        let mut fit = bits_of(isa, whole, &mut self.words);
        if !rest.is_empty() {
            let (mut last, mut word) = ([0; WORD], [0]);
            last[..rest.len()].copy_from_slice(rest);
            fit &= bits_of(isa, &[last], &mut word);
            self.words.extend(word);
        }
        Ok(fit)
    }

    fn push_words(&mut self, isa: Isa, k: usize, kind: Kind) -> Result<u64> {
        let ones = count(isa, &self.words);
        let minus = kind == Kind::Spikes && 2 * ones > k;
        let mut count = ones;
        if minus {
            self.invert(k);
            count = k - ones;
        }
        let at = self.indices.len();
        append_numbers(isa, &self.words, count, &mut self.indices)?;
        self.push(at, minus)?;
        if kind == Kind::Spikes && isa.has_avx512() && count > DENSE * k / 100 {
            let from = self.dense.len();
            grow(&mut self.dense, self.words.len())?;
            self.dense.extend_from_slice(&self.words);
            let Some(row) = self.rows.last_mut() else { unreachable!("it was pushed") };
            row.dense = Some(from..self.dense.len());
        }
        Ok(ones as u64)
    }

    /// A row of what was appended from `at` on; its sum.
    pub(super) fn finish(&mut self, at: usize, kind: Kind) -> Result<u64> {
        let len = self.indices.len() - at;
        match kind {
            Kind::Spikes | Kind::EachSpike => self.push(at, false)?,
            Kind::Counts => {
                self.push(at, false)?;
                return Ok(self.counts[at..].iter().map(|&c| u64::from(c)).sum());
            }
            Kind::Planes => return self.split(at),
        }
        Ok(len as u64)
    }

    /// A row of what was appended from `at` on, one plane.
    pub(super) fn push(&mut self, at: usize, minus: bool) -> Result<()> {
        grow(&mut self.planes, 1)?;
        grow(&mut self.rows, 1)?;
        self.planes.push(Plane { shift: 0, at: at..self.indices.len() });
        self.rows.push(Row { planes: self.planes.len() - 1..self.planes.len(), minus, dense: None });
        Ok(())
    }

    /// A row of planes from indices from `at` on and all the counts, which are used up.
    fn split(&mut self, at: usize) -> Result<u64> {
        let first = self.planes.len();
        self.spare.clear();
        grow(&mut self.spare, self.indices.len() - at)?;
        self.spare.extend_from_slice(&self.indices[at..]);
        self.indices.truncate(at);
        let seen = self.counts.iter().fold(0, |seen, &count| seen | count);
        for shift in 0..8 {
            if seen >> shift & 1 == 0 {
                continue;
            }
            let from = self.indices.len();
            grow(&mut self.indices, self.spare.len())?;
            for (&k, count) in self.spare.iter().zip(&self.counts) {
                if count >> shift & 1 == 1 {
                    self.indices.push(k);
                }
            }
            grow(&mut self.planes, 1)?;
            self.planes.push(Plane { shift, at: from..self.indices.len() });
        }
        let sum = self.counts.iter().map(|&count| u64::from(count)).sum();
        self.counts.clear();
        grow(&mut self.rows, 1)?;
        self.rows.push(Row { planes: first..self.planes.len(), minus: false, dense: None });
        Ok(sum)
    }
}
