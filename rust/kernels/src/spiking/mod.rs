//! Spiking networks: products of spikes with weights.

mod product;

pub use product::{
    MAX_SPIKE_K, SpikeConv2d, SpikeForm, SpikeWeight, Spikes, Start, Sums, spike_conv2d, spike_matmul,
    spike_weight_len, tile_spike_codes, tile_spike_floats, untile_spike_codes, untile_spike_floats,
};
