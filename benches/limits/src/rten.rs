//! The rten-gemm crate, u8 by s8 into i32, with B packed beforehand.

use std::ffi::c_char;

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions, PackedBMatrix};
use rten_tensor::NdTensorView;

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
