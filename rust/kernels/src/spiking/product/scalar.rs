//! The definition: the rows of the weight at the inputs that spiked, added up.

use super::weight::{PANEL, Panel};

/// `out[c] = from[c] ± 2^shift Σ code[k][c]` over the rows `k` that `list` names: exact in int32
/// where the callers see that the last sum fits, for sums on the way may wrap and come back.
pub(super) fn codes(panel: &Panel, list: &[u32], shift: u32, minus: bool, from: &[i32; PANEL], out: &mut [i32]) {
    for (c, out) in out.iter_mut().enumerate() {
        let sum = list.iter().fold(0i32, |sum, &k| sum.wrapping_add(panel.code(k as usize, c)));
        let sum = sum.wrapping_shl(shift);
        *out = if minus { from[c].wrapping_sub(sum) } else { from[c].wrapping_add(sum) };
    }
}

/// `out[c] = start[c] + count[0] w[k0][c] + count[1] w[k1][c] + …`, from left to right: each
/// product and each sum rounded to float32. No counts: all are 1.
pub(super) fn floats(panel: &Panel, list: &[u32], counts: &[u8], start: &[f32; PANEL], out: &mut [f32]) {
    for (c, out) in out.iter_mut().enumerate() {
        let mut sum = start[c];
        for (i, &k) in list.iter().enumerate() {
            let count = counts.get(i).map_or(1.0, |&count| f32::from(count));
            sum += count * panel.float(k as usize, c);
        }
        *out = sum;
    }
}
