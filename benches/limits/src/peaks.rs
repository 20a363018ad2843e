//! The register-only loops. Each runs as many independent accumulators as hide
//! the instruction's latency at two a cycle, and touches no memory.

use std::ffi::CStr;

pub struct Peak {
    pub name: &'static CStr,
    /// Operations of one turn.
    pub ops: u64,
    pub supported: fn() -> bool,
    /// Runs some turns, at least one, on a CPU that has the instruction.
    pub run: unsafe fn(u64),
}

#[cfg(not(target_arch = "x86_64"))]
pub const PEAKS: &[Peak] = &[];

#[cfg(target_arch = "x86_64")]
pub use x86::PEAKS;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Peak;
    use std::arch::asm;

    pub const PEAKS: &[Peak] = &[
        Peak {
            name: c"vpdpbusd zmm",
            ops: 14 * 128,
            supported: || is_x86_feature_detected!("avx512vnni"),
            run: vnni_zmm,
        },
        Peak {
            name: c"vpdpbusd ymm (AVX-VNNI)",
            ops: 12 * 64,
            supported: || is_x86_feature_detected!("avxvnni"),
            run: vnni_ymm,
        },
        Peak {
            name: c"tdpbusd tile",
            ops: 4 * 32_768,
            supported: || lowbit_kernels::Isa::best().has_amx(),
            run: tiles,
        },
        Peak {
            name: c"vpmaddwd + vpaddd ymm",
            ops: 8 * 32,
            supported: || is_x86_feature_detected!("avx2"),
            run: madd_ymm,
        },
        Peak {
            name: c"vpmaddubsw + vpaddw ymm",
            ops: 8 * 64,
            supported: || is_x86_feature_detected!("avx2"),
            run: maddubs_ymm,
        },
        Peak {
            name: c"vfmadd231ps zmm",
            ops: 12 * 32,
            supported: || is_x86_feature_detected!("avx512f"),
            run: fma_zmm,
        },
        Peak { name: c"vfmadd231ps ymm", ops: 12 * 16, supported: || is_x86_feature_detected!("fma"), run: fma_ymm },
        // Additions of bytes as sums of 16 bits: one operation each.
        Peak {
            name: c"2 vpaddw + vpsrlw ymm",
            ops: 4 * 32,
            supported: || is_x86_feature_detected!("avx2"),
            run: add_bytes_ymm,
        },
        Peak {
            name: c"2 vpaddw + vpsrlw zmm",
            ops: 4 * 64,
            supported: || is_x86_feature_detected!("avx512bw"),
            run: add_bytes_zmm,
        },
        // One chain: a turn is the cycles that its additions take, which tells the clock.
        Peak { name: c"dependent add", ops: 16, supported: || true, run: cycles },
    ];

    /// A loop of `$line`s, counting `$turns` down, with registers zeroed before
    /// it (so that no float is denormal) and `vzeroupper` after it.
    macro_rules! turns {
        ($turns:expr, $($line:expr),+ $(,)?) => {
            asm!(
                "vzeroall",
                "2:",
                $($line,)+
                "dec {turns}",
                "jnz 2b",
                "vzeroupper",
                turns = inout(reg) $turns => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nomem, nostack),
            )
        };
    }

    /// `$op $reg{i}, $reg14, $reg15` for twelve accumulators.
    macro_rules! twelve {
        ($turns:expr, $op:literal, $r:literal) => {
            turns!(
                $turns,
                concat!($op, " ", $r, "0, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "1, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "2, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "3, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "4, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "5, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "6, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "7, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "8, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "9, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "10, ", $r, "14, ", $r, "15"),
                concat!($op, " ", $r, "11, ", $r, "14, ", $r, "15"),
            )
        };
    }

    /// A product into one of four scratch registers, added to one of eight accumulators.
    macro_rules! eight_pairs {
        ($turns:expr, $mul:literal, $add:literal) => {
            turns!(
                $turns,
                concat!($mul, " ymm8, ymm14, ymm15"),
                concat!($add, " ymm0, ymm0, ymm8"),
                concat!($mul, " ymm9, ymm14, ymm15"),
                concat!($add, " ymm1, ymm1, ymm9"),
                concat!($mul, " ymm10, ymm14, ymm15"),
                concat!($add, " ymm2, ymm2, ymm10"),
                concat!($mul, " ymm11, ymm14, ymm15"),
                concat!($add, " ymm3, ymm3, ymm11"),
                concat!($mul, " ymm8, ymm14, ymm15"),
                concat!($add, " ymm4, ymm4, ymm8"),
                concat!($mul, " ymm9, ymm14, ymm15"),
                concat!($add, " ymm5, ymm5, ymm9"),
                concat!($mul, " ymm10, ymm14, ymm15"),
                concat!($add, " ymm6, ymm6, ymm10"),
                concat!($mul, " ymm11, ymm14, ymm15"),
                concat!($add, " ymm7, ymm7, ymm11"),
            )
        };
    }

    unsafe fn add_bytes_ymm(turns: u64) {
        // SAFETY: the CPU has AVX2; the block declares every register it writes.
        unsafe {
            turns!(
                turns,
                "vpaddw ymm0, ymm0, ymm15",
                "vpsrlw ymm8, ymm15, 8",
                "vpaddw ymm4, ymm4, ymm8",
                "vpaddw ymm1, ymm1, ymm15",
                "vpsrlw ymm9, ymm15, 8",
                "vpaddw ymm5, ymm5, ymm9",
                "vpaddw ymm2, ymm2, ymm15",
                "vpsrlw ymm10, ymm15, 8",
                "vpaddw ymm6, ymm6, ymm10",
                "vpaddw ymm3, ymm3, ymm15",
                "vpsrlw ymm11, ymm15, 8",
                "vpaddw ymm7, ymm7, ymm11",
            )
        }
    }

    unsafe fn add_bytes_zmm(turns: u64) {
        // SAFETY: the CPU has AVX-512BW; the block declares every register it writes.
        unsafe {
            turns!(
                turns,
                "vpaddw zmm0, zmm0, zmm15",
                "vpsrlw zmm8, zmm15, 8",
                "vpaddw zmm4, zmm4, zmm8",
                "vpaddw zmm1, zmm1, zmm15",
                "vpsrlw zmm9, zmm15, 8",
                "vpaddw zmm5, zmm5, zmm9",
                "vpaddw zmm2, zmm2, zmm15",
                "vpsrlw zmm10, zmm15, 8",
                "vpaddw zmm6, zmm6, zmm10",
                "vpaddw zmm3, zmm3, zmm15",
                "vpsrlw zmm11, zmm15, 8",
                "vpaddw zmm7, zmm7, zmm11",
            )
        }
    }

    unsafe fn vnni_zmm(turns: u64) {
        // SAFETY: the CPU has AVX-512 VNNI; the block declares every register it writes.
        unsafe {
            turns!(
                turns,
                "vpdpbusd zmm0, zmm14, zmm15",
                "vpdpbusd zmm1, zmm14, zmm15",
                "vpdpbusd zmm2, zmm14, zmm15",
                "vpdpbusd zmm3, zmm14, zmm15",
                "vpdpbusd zmm4, zmm14, zmm15",
                "vpdpbusd zmm5, zmm14, zmm15",
                "vpdpbusd zmm6, zmm14, zmm15",
                "vpdpbusd zmm7, zmm14, zmm15",
                "vpdpbusd zmm8, zmm14, zmm15",
                "vpdpbusd zmm9, zmm14, zmm15",
                "vpdpbusd zmm10, zmm14, zmm15",
                "vpdpbusd zmm11, zmm14, zmm15",
                "vpdpbusd zmm12, zmm14, zmm15",
                "vpdpbusd zmm13, zmm14, zmm15",
            )
        }
    }

    /// Four sums of 16 by 16, of tiles of zeros.
    unsafe fn tiles(turns: u64) {
        #[repr(align(64))]
        struct Palette([u8; 64]);
        let mut palette = Palette([0; 64]);
        palette.0[0] = 1;
        for tile in 0..8 {
            (palette.0[16 + 2 * tile], palette.0[48 + tile]) = (64, 16);
        }
        // SAFETY: the CPU has AMX, and lowbit has asked for its tiles; the block declares every register it writes.
        unsafe {
            asm!(
                "ldtilecfg [{palette}]",
                "2:",
                "tdpbusd tmm0, tmm4, tmm6",
                "tdpbusd tmm1, tmm4, tmm7",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
                "dec {turns}",
                "jnz 2b",
                "tilerelease",
                palette = in(reg) palette.0.as_ptr(),
                turns = inout(reg) turns => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }

    unsafe fn vnni_ymm(turns: u64) {
        // SAFETY: the CPU has AVX-VNNI; the block declares every register it writes.
        unsafe { twelve!(turns, "{{vex}} vpdpbusd", "ymm") }
    }

    unsafe fn madd_ymm(turns: u64) {
        // SAFETY: the CPU has AVX2; the block declares every register it writes.
        unsafe { eight_pairs!(turns, "vpmaddwd", "vpaddd") }
    }

    unsafe fn maddubs_ymm(turns: u64) {
        // SAFETY: the CPU has AVX2; the block declares every register it writes.
        unsafe { eight_pairs!(turns, "vpmaddubsw", "vpaddw") }
    }

    unsafe fn fma_zmm(turns: u64) {
        // SAFETY: the CPU has AVX-512F; the block declares every register it writes.
        unsafe { twelve!(turns, "vfmadd231ps", "zmm") }
    }

    unsafe fn cycles(turns: u64) {
        // SAFETY: the block declares every register it writes.
        unsafe {
            asm!(
                "2:",
                ".rept 16",
                "add {x}, {one}",
                ".endr",
                "dec {turns}",
                "jnz 2b",
                x = inout(reg) 0u64 => _,
                one = in(reg) 1u64,
                turns = inout(reg) turns => _,
                options(nomem, nostack),
            );
        }
    }

    unsafe fn fma_ymm(turns: u64) {
        // SAFETY: the CPU has FMA; the block declares every register it writes.
        unsafe { twelve!(turns, "vfmadd231ps", "ymm") }
    }
}

/// XORs all whole words of `bytes`.
pub fn read(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has AVX-512F.
            return unsafe { read_512(bytes) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2.
            return unsafe { read_256(bytes) };
        }
    }
    read_words(bytes)
}

/// Eight chains of 64 bytes: the compiler makes wide loads of it.
#[inline(always)]
fn read_words(bytes: &[u8]) -> u64 {
    let mut acc = [[0u64; 8]; 8];
    for chunk in bytes.chunks_exact(512) {
        for (lane, line) in acc.iter_mut().zip(chunk.chunks_exact(64)) {
            for (word, raw) in lane.iter_mut().zip(line.chunks_exact(8)) {
                *word ^= u64::from_le_bytes(raw.try_into().unwrap());
            }
        }
    }
    acc.iter().flatten().fold(0, |a, b| a ^ b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_512(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let mut acc = [_mm512_setzero_si512(); 8];
    for chunk in bytes.chunks_exact(512) {
        for (i, lane) in acc.iter_mut().enumerate() {
            // SAFETY: the chunk has 512 bytes and i is below 8.
            let line = unsafe { _mm512_loadu_si512(chunk.as_ptr().add(64 * i).cast()) };
            *lane = _mm512_xor_si512(*lane, line);
        }
    }
    let all = acc.into_iter().reduce(|a, b| _mm512_xor_si512(a, b)).unwrap();
    _mm512_reduce_add_epi64(all) as u64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_256(bytes: &[u8]) -> u64 {
    read_words(bytes)
}
