//! The second and later calls allocate nothing, and the memory is what the plan said.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use lowbit_kernels::{Ctl, Isa};
use lowbit_runtime::{Graph, Network};

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A residual block, its shortcut sliced and padded, a pool, a table and a layer: every kind of step.
const GRAPH: &str = r#"{
    "version": 1, "inputs": ["x"], "outputs": ["p", "z"],
    "tensors": [
        {"name": "x", "shape": [8, 8, 4], "dtype": "float32", "scale": null, "zero_point": 0},
        {"name": "q", "shape": [8, 8, 4], "dtype": "int8", "scale": 0.02, "zero_point": 3},
        {"name": "d", "shape": [8, 8, 4], "dtype": "int8", "scale": 0.03, "zero_point": -2},
        {"name": "c", "shape": [4, 4, 6], "dtype": "int8", "scale": 0.05, "zero_point": 1},
        {"name": "s", "shape": [4, 4, 4], "dtype": "int8", "scale": 0.02, "zero_point": 3},
        {"name": "w", "shape": [4, 4, 6], "dtype": "int8", "scale": 0.02, "zero_point": 3},
        {"name": "a", "shape": [4, 4, 6], "dtype": "int8", "scale": 0.06, "zero_point": 0},
        {"name": "b", "shape": [4, 4, 6], "dtype": "int8", "scale": 0.09, "zero_point": 0},
        {"name": "t", "shape": [4, 4, 6], "dtype": "int8", "scale": 0.01, "zero_point": 0},
        {"name": "m", "shape": [2, 2, 6], "dtype": "int8", "scale": 0.01, "zero_point": 0},
        {"name": "v", "shape": [1, 1, 6], "dtype": "int8", "scale": 0.01, "zero_point": 0},
        {"name": "f", "shape": [6], "dtype": "int8", "scale": 0.01, "zero_point": 0},
        {"name": "y", "shape": [5], "dtype": "int8", "scale": 0.1, "zero_point": 0},
        {"name": "p", "shape": [5], "dtype": "int8", "scale": 0.00390625, "zero_point": -128},
        {"name": "z", "shape": [5], "dtype": "float32", "scale": null, "zero_point": 0}],
    "constants": [
        {"name": "dw", "shape": [4, 3, 3, 1], "dtype": "int8", "scale": [0.01], "zero_point": 0, "nbits": 8},
        {"name": "cw", "shape": [6, 3, 3, 4], "dtype": "int8", "scale": [0.01], "zero_point": 0, "nbits": 8},
        {"name": "tt", "shape": [256], "dtype": "int8", "scale": null, "zero_point": 0, "nbits": 8},
        {"name": "fw", "shape": [5, 6], "dtype": "int8", "scale": [0.01], "zero_point": 0, "nbits": 8}],
    "operations": [
        {"op": "quantize", "input": "x", "output": "q"},
        {"op": "conv2d", "input": "q", "weight": "dw", "bias": null, "output": "d", "stride": [1, 1],
         "padding": [[1, 1], [1, 1]], "dilation": [1, 1], "groups": 4, "qmin": null, "qmax": null,
         "requantize": "float32"},
        {"op": "conv2d", "input": "d", "weight": "cw", "bias": null, "output": "c", "stride": [2, 2],
         "padding": [[1, 1], [1, 1]], "dilation": [1, 1], "groups": 1, "qmin": null, "qmax": null,
         "requantize": "fixed_point"},
        {"op": "slice", "input": "q", "output": "s", "begin": [0, 0, 0], "step": [2, 2, 1]},
        {"op": "pad", "input": "s", "output": "w", "padding": [[0, 0], [0, 0], [1, 1]]},
        {"op": "add", "a": "c", "b": "w", "output": "a", "qmin": 0, "qmax": null, "requantize": "shift20"},
        {"op": "add", "a": "a", "b": "a", "output": "b", "qmin": null, "qmax": null, "requantize": "shift20"},
        {"op": "table", "input": "b", "table": "tt", "output": "t"},
        {"op": "max_pool2d", "input": "t", "output": "m", "kernel": [2, 2], "stride": [2, 2],
         "padding": [[0, 0], [0, 0]], "qmin": null, "qmax": null},
        {"op": "average_pool2d", "input": "m", "output": "v", "kernel": [2, 2], "stride": [1, 1],
         "padding": [[0, 0], [0, 0]], "qmin": null, "qmax": null},
        {"op": "reshape", "input": "v", "output": "f"},
        {"op": "fully_connected", "input": "f", "weight": "fw", "bias": null, "output": "y", "qmin": null,
         "qmax": null, "requantize": "float32"},
        {"op": "softmax", "input": "y", "output": "p"},
        {"op": "dequantize", "input": "y", "output": "z"}]
}"#;

#[test]
fn later_calls_allocate_nothing_and_the_first_what_the_plan_said() {
    let graph = Graph::from_json(GRAPH).unwrap();
    let some = |n: usize| (0..n).map(|i| (i * 37 % 251) as u8).collect::<Vec<_>>();
    let (dw, cw, table, fw) = (some(36), some(216), some(256), some(30));
    let x: Vec<f32> = (0..3 * 256).map(|i| (i % 97) as f32 * 0.05 - 2.0).collect();
    let x: &[u8] = bytemuck::cast_slice(&x);
    let mut expected = None;
    for &isa in Isa::available() {
        let network = Network::new(&graph, &[&dw, &cw, &table, &fw], isa).unwrap();
        let (mut p, mut z) = (vec![0; 15], vec![0; 60]);
        let (ctl, mut calls) = (Ctl::new(1), Vec::new());
        for _ in 0..3 {
            let before = (COUNT.load(Relaxed), BYTES.load(Relaxed));
            network.run(3, &[x], &mut [&mut p, &mut z], &ctl).unwrap();
            calls.push((COUNT.load(Relaxed) - before.0, BYTES.load(Relaxed) - before.1));
        }
        let (tensors, weights) = network.memory();
        println!("{}: {tensors} bytes of tensors, {weights} of weights; each call allocated {calls:?}", isa.name());
        // The block, and the list that it is kept in between calls.
        assert!(calls[0].0 <= 2 && (tensors..tensors + 256).contains(&calls[0].1), "{calls:?} for {tensors}");
        assert_eq!(calls[1..], [(0, 0); 2]);
        // Samples are the same alone, and shared out to threads.
        let all = expected.get_or_insert((p.clone(), z.clone()));
        assert_eq!((&p, &z), (&all.0, &all.1), "{}", isa.name());
        for threads in [2, 7] {
            let (mut p, mut z) = (vec![0; 15], vec![0; 60]);
            network.run(3, &[x], &mut [&mut p, &mut z], &Ctl::new(threads)).unwrap();
            assert_eq!((&p, &z), (&all.0, &all.1), "{} threads", threads);
        }
    }
}
