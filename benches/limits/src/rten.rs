//! The rten-gemm crate: u8 by s8 into i32, with B packed beforehand, and floats by 4 bits in blocks.

use std::ffi::c_char;

use rten_gemm::{
    BlockQuantizedGemm, BlockQuantizedMatrix, ComputeMode, GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions,
    PackedBMatrix,
};
use rten_tensor::{Contiguous, NdTensorView};

/// A constant B and what multiplies with it.
pub struct Rten {
    gemm: GemmExecutor<u8, i8, i32>,
    b: PackedBMatrix<i8>,
    k: usize,
    n: usize,
}

/// Packs B, (K, N) row by row.
///
/// # Safety
/// `b` points to `k * n` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rten_new(b: *const i8, k: usize, n: usize) -> *mut Rten {
    let gemm = GemmExecutor::<u8, i8, i32>::default();
    // SAFETY: the caller's promise.
    let b = unsafe { std::slice::from_raw_parts(b, k * n) };
    let b = gemm.prepack_b(NdTensorView::from_data([k, n], b));
    Box::into_raw(Box::new(Rten { gemm, b, k, n }))
}

/// Frees what `rten_new` made.
///
/// # Safety
/// `it` came from `rten_new` and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rten_free(it: *mut Rten) {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(it) });
}

/// Writes A B to `out`; 0 on success.
///
/// # Safety
/// `it` came from `rten_new`; `a` points to `m * k` readable bytes, `out` to
/// `m * n` writable i32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rten_run(it: *const Rten, a: *const u8, m: usize, out: *mut i32) -> i32 {
    // SAFETY: the caller's promise.
    let (it, a, out) = unsafe {
        let it = &*it;
        let out = std::slice::from_raw_parts_mut(out.cast(), m * it.n);
        (it, std::slice::from_raw_parts(a, m * it.k), out)
    };
    let a = GemmInputA::Unpacked(NdTensorView::from_data([m, it.k], a));
    let done = it.gemm.gemm_uninit(out, a, GemmInputB::Packed(&it.b), GemmUninitOptions::default());
    i32::from(done.is_err())
}

/// Whether its kernel may saturate on this CPU, and so be wrong for full-range codes.
///
/// # Safety
/// `it` came from `rten_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rten_may_saturate(it: *const Rten) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*it).gemm.may_saturate() }
}

/// Its kernel's name into `to`, `len` bytes, ended by a zero.
///
/// # Safety
/// `it` came from `rten_new`; `to` points to `len` writable bytes, at least one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rten_kernel(it: *const Rten, to: *mut c_char, len: usize) {
    // SAFETY: the caller's promise.
    let (name, to) = unsafe { ((*it).gemm.kernel_name(), std::slice::from_raw_parts_mut(to.cast::<u8>(), len)) };
    let kept = name.len().min(len - 1);
    to[..kept].copy_from_slice(&name.as_bytes()[..kept]);
    to[kept] = 0;
}

/// Writes A B to `out`, B in 4 bits with a zero point of 8; 0 on success.
///
/// One row goes through the crate's product for 4 bits, with A in 8 bits where
/// that is quicker; more rows through its float product, which dequantizes B as
/// it packs it.
///
/// # Safety
/// `a` points to `m * k` readable f32, `codes` to `n * k / 2` readable bytes,
/// `scales` to `n * k / block` readable f32, `out` to `m * n` writable f32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rten_blocks(
    a: *const f32,
    m: usize,
    k: usize,
    codes: *const u8,
    scales: *const f32,
    n: usize,
    block: usize,
    out: *mut f32,
) -> i32 {
    // SAFETY: the caller's promise.
    let (a, codes, scales, out) = unsafe {
        (
            std::slice::from_raw_parts(a, m * k),
            std::slice::from_raw_parts(codes, n * k / 2),
            std::slice::from_raw_parts(scales, n * (k / block)),
            std::slice::from_raw_parts_mut(out.cast(), m * n),
        )
    };
    let (Some(codes), Some(scales)) = (
        Contiguous::new(NdTensorView::from_data([n, k / block, block / 2], codes)),
        Contiguous::new(NdTensorView::from_data([n, k / block], scales)),
    ) else {
        return 2;
    };
    let Ok(b) = BlockQuantizedMatrix::new(codes, scales, 4) else {
        return 2;
    };
    let done = if m == 1 {
        let int8 = BlockQuantizedGemm::is_compute_optimized(ComputeMode::Int8);
        let mode = if int8 { ComputeMode::Int8 } else { ComputeMode::Float };
        let gemm = BlockQuantizedGemm::new().with_compute(mode);
        gemm.batched_gemm_uninit(out, NdTensorView::from_data([1, 1, k], a), b).is_err()
    } else {
        let gemm = GemmExecutor::<f32, f32, f32>::default();
        let a = GemmInputA::Unpacked(NdTensorView::from_data([m, k], a));
        gemm.gemm_uninit(out, a, GemmInputB::BlockQuantized(b), GemmUninitOptions::default()).is_err()
    };
    i32::from(done)
}
