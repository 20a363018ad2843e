//! Loops that do nothing but what bounds a kernel, called from Python by
//! `ctypes` so that they run in turn with the kernel in one process:
//! one instruction on registers alone, reads and copies of memory, and the sort
//! that k-means begins with.

mod peaks;
#[cfg(feature = "rten")]
mod rten;

use std::ffi::{CStr, c_char};

use lowbit_kernels::{Ctl, codebook};

/// The instruction of peak `kind`, empty past the last.
#[unsafe(no_mangle)]
pub extern "C" fn peak_name(kind: u32) -> *const c_char {
    peaks::PEAKS.get(kind as usize).map_or(c"", |p| p.name).as_ptr()
}

/// Operations (a multiplication and an addition are two) of one turn of the
/// loop of peak `kind`; 0 where this CPU lacks the instruction.
#[unsafe(no_mangle)]
pub extern "C" fn peak_ops(kind: u32) -> u64 {
    peaks::PEAKS.get(kind as usize).filter(|p| (p.supported)()).map_or(0, |p| p.ops)
}

/// Runs the loop of peak `kind` for `turns`, shared by `threads`.
///
/// Does nothing where `peak_ops` is 0.
#[unsafe(no_mangle)]
pub extern "C" fn peak_run(kind: u32, turns: u64, threads: u32) {
    if peak_ops(kind) == 0 || turns == 0 {
        return;
    }
    let run = peaks::PEAKS[kind as usize].run;
    let share = turns.div_ceil(u64::from(threads.max(1)));
    std::thread::scope(|s| {
        for _ in 1..threads {
            // SAFETY: peak_ops is not 0, so the CPU has the instruction; share is at least 1.
            s.spawn(move || unsafe { run(share) });
        }
        // SAFETY: as above.
        unsafe { run(share) };
    });
}

/// Reads `len` bytes `times` over, with the widest loads there are.
///
/// # Safety
/// `from` points to `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read_bytes(from: *const u8, len: usize, times: u64) -> u64 {
    let mut sum = 0;
    for _ in 0..times {
        // SAFETY: the caller's promise.
        sum ^= peaks::read(unsafe { std::slice::from_raw_parts(std::hint::black_box(from), len) });
    }
    std::hint::black_box(sum)
}

/// Copies `len` bytes `times` over.
///
/// # Safety
/// `from` and `to` point to `len` bytes each, apart from each other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_bytes(from: *const u8, to: *mut u8, len: usize, times: u64) {
    for _ in 0..times {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(std::hint::black_box(from), std::hint::black_box(to), len) };
    }
}

/// Sorts `len` floats with the sort of lowbit's k-means: what its time is measured in.
///
/// # Safety
/// `x` points to `len` finite floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sort_floats(x: *const f32, len: usize) {
    // SAFETY: the caller's promise.
    let x = unsafe { std::slice::from_raw_parts(x, len) };
    let mut values = Vec::new();
    let sorted = codebook::sorted(x, &mut Default::default(), &mut values, &Ctl::new(1));
    assert!(sorted.is_ok());
    std::hint::black_box(values);
}

/// The features this library was built with.
#[unsafe(no_mangle)]
pub extern "C" fn built_with() -> *const c_char {
    let features: &CStr = if cfg!(feature = "rten") { c"rten" } else { c"" };
    features.as_ptr()
}
