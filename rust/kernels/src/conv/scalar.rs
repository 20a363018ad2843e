//! The definition of a convolution.

use super::{Finish, Kind, Out, Shape};

/// Each window times each filter; beyond the image there is 0.
pub(super) fn conv2d(
    shape: &Shape,
    [height, width, filters]: [usize; 3],
    x: &[u8],
    input: Kind,
    weight: &[i16],
    finish: &Finish,
    mut out: Out,
) {
    let Shape { input: [rows, columns, channels], kernel: [kh, kw], stride, dilation, padding, groups, .. } = *shape;
    let (depth, per_group) = (channels / groups, filters / groups);
    for (pixel, filter) in (0..height * width).flat_map(|p| (0..filters).map(move |f| (p, f))) {
        let mut sum = finish.bias[filter];
        for (i, j) in (0..kh).flat_map(|i| (0..kw).map(move |j| (i, j))) {
            // Above and left of the image these wrap around to more than it has.
            let row = (pixel / width * stride[0] + i * dilation[0]).wrapping_sub(padding[0][0]);
            let column = (pixel % width * stride[1] + j * dilation[1]).wrapping_sub(padding[1][0]);
            if row >= rows || column >= columns {
                continue;
            }
            let x = &x[(row * columns + column) * channels + filter / per_group * depth..][..depth];
            let weight = &weight[((filter * kh + i) * kw + j) * depth..][..depth];
            sum += x.iter().zip(weight).map(|(&x, &w)| input.value(x) * i32::from(w)).sum::<i32>();
        }
        finish.one(sum, filter, pixel * filters + filter, &mut out);
    }
}
