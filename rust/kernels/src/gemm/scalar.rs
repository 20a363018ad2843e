//! The definition of the integer product, and the shape of every other file of
//! this family.

use super::Block;

/// `out[r][col + j] = start[j] + Σ_k (a[r][k] ^ flip) · w[k][j]` for every row
/// and every column of the panel, in wrapping i32.
pub(super) fn panel(block: &Block, out: &mut [&mut [i32]], col: usize) {
    for (a, out) in block.a.chunks_exact(block.k).zip(out) {
        let out = &mut out[col..col + block.panel.width];
        out.copy_from_slice(&block.start[..block.panel.width]);
        for (a, w) in a.chunks(4).zip(block.panel.codes.chunks_exact(4 * block.panel.width)) {
            for (sum, w) in out.iter_mut().zip(w.chunks_exact(4)) {
                for (&a, &w) in a.iter().zip(w) {
                    *sum = sum.wrapping_add(i32::from(a ^ block.flip) * i32::from(w as i8));
                }
            }
        }
    }
}
