//! The definition of the integer product, and the shape of every other file of
//! this family.

use super::groups::GroupPanel;
use super::tiled::PANEL;
use super::{Block, GroupBlock};

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

/// `out[r][col + j] = Σ_k a[r][k] · multiplier · (code[k][j] - zero point)` over the
/// block's depth, for every row and every column of the panel, in wrapping i32.
pub(super) fn groups(block: &GroupBlock, out: &mut [&mut [i32]], col: usize) {
    let panel = block.panel;
    out.iter_mut().for_each(|out| out[col..col + panel.width].fill(0));
    for k in block.depth.clone() {
        let w = values(panel, k);
        for (a, out) in block.a.chunks_exact(panel.k).zip(out.iter_mut()) {
            for (sum, w) in out[col..col + panel.width].iter_mut().zip(w) {
                *sum = sum.wrapping_add(i32::from(a[k]) * w);
            }
        }
    }
}

/// What a row of codes stands for, in units of the columns' scales.
fn values(panel: &GroupPanel, k: usize) -> [i32; PANEL] {
    let group = k / panel.groups.group_size();
    let mut values = [0; PANEL];
    for (j, value) in values.iter_mut().enumerate().take(panel.width) {
        let multiplier = i32::from(panel.multipliers[group * panel.width + j]);
        *value = multiplier * (i32::from(panel.quad(k / 4, j)[k % 4]) - i32::from(panel.zero(group, j)));
    }
    values
}
