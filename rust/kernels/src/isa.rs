//! Instruction sets: found once, passed down by value, named by callers.

use std::sync::OnceLock;

use crate::{Error, Result};

/// An instruction set that kernels are written for, in order of preference.
///
/// Holding a value other than [`Isa::Scalar`] proves that this CPU can run it:
/// [`Isa::best`] and [`Isa::named`] are the only doors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isa(Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Level {
    Scalar,
    // Below those of x86-64, so that none of AArch64's is at least one of them.
    Neon,
    NeonDot,
    Avx2,
    AvxVnni,
    Avx512,
    Avx512Vbmi,
    Amx,
}

const ALL: [(Level, &str); 8] = [
    (Level::Scalar, "scalar"),
    (Level::Neon, "neon"),
    (Level::NeonDot, "neondot"),
    (Level::Avx2, "avx2"),
    (Level::AvxVnni, "avxvnni"),
    (Level::Avx512, "avx512"),
    (Level::Avx512Vbmi, "avx512vbmi"),
    (Level::Amx, "amx"),
];

#[allow(non_upper_case_globals)] // read as the variants they stand for
impl Isa {
    /// Portable Rust: every CPU, and the definition of every kernel.
    pub const Scalar: Isa = Isa(Level::Scalar);

    /// NEON, which every AArch64 that runs an operating system has; it may have more.
    pub fn has_neon(self) -> bool {
        matches!(self.0, Level::Neon | Level::NeonDot)
    }

    /// NEON with the dot products of bytes, `sdot` and `udot` (Cortex-A55, Cortex-A76,
    /// Neoverse N1, Apple M1 and later).
    pub fn has_neondot(self) -> bool {
        self.0 == Level::NeonDot
    }

    /// At least AVX2, FMA, BMI1, BMI2 (Haswell, Zen and later).
    pub fn has_avx2(self) -> bool {
        self.0 >= Level::Avx2
    }

    /// AVX2 and the VEX-coded 256-bit `vpdpbusd` (most client CPUs since 2021),
    /// and nothing wider.
    pub fn is_avxvnni(self) -> bool {
        self.0 == Level::AvxVnni
    }

    /// At least AVX-512 F, BW, DQ, VL, VNNI (Cascade Lake, Zen 4 and later).
    pub fn has_avx512(self) -> bool {
        self.0 >= Level::Avx512
    }

    /// AVX-512 as above, with VBMI (Ice Lake, Zen 4 and later).
    pub fn has_avx512vbmi(self) -> bool {
        self.0 >= Level::Avx512Vbmi
    }

    /// AVX-512 as above, with tiles of bytes and of bfloat16 (Sapphire Rapids and later), which Linux grants a
    /// process that asks.
    pub fn has_amx(self) -> bool {
        self.0 == Level::Amx
    }

    /// The name by which users choose it.
    pub fn name(self) -> &'static str {
        ALL[self.0 as usize].1
    }

    /// Every instruction set that this CPU can run, the best one last.
    pub fn available() -> &'static [Isa] {
        static FOUND: OnceLock<Vec<Isa>> = OnceLock::new();
        FOUND.get_or_init(|| ALL.iter().filter(|(level, _)| is_here(*level)).map(|&(l, _)| Isa(l)).collect())
    }

    /// The best one that this CPU can run.
    pub fn best() -> Isa {
        *Isa::available().last().unwrap_or(&Isa::Scalar)
    }

    /// The one of this name.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such name, [`Error::Isa`] where this
    /// CPU lacks it.
    pub fn named(name: &str) -> Result<Isa> {
        let known = || ALL.map(|(_, n)| n).join(", ");
        let Some(&(level, _)) = ALL.iter().find(|(_, n)| *n == name) else {
            return Err(Error::Value(format!("isa: expected one of {}, got '{name}'", known())));
        };
        // Not all that there are: whoever names another need not ask for tiles.
        if is_here(level) {
            return Ok(Isa(level));
        }
        let has: Vec<_> = Isa::available().iter().map(|i| i.name()).collect();
        Err(Error::Isa(name.to_owned(), has.join(", ")))
    }
}

/// Whether this CPU has it, and the system lets it: asked once.
fn is_here(level: Level) -> bool {
    static HERE: [OnceLock<bool>; ALL.len()] = [const { OnceLock::new() }; ALL.len()];
    *HERE[level as usize].get_or_init(|| runs(level))
}

#[cfg(target_arch = "x86_64")]
fn runs(level: Level) -> bool {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    match level {
        Level::Scalar => true,
        Level::Neon | Level::NeonDot => false,
        Level::Avx2 => avx2,
        Level::AvxVnni => avx2 && is_x86_feature_detected!("avxvnni"),
        Level::Avx512 => avx512,
        Level::Avx512Vbmi => avx512 && is_x86_feature_detected!("avx512vbmi"),
        Level::Amx => avx512 && is_x86_feature_detected!("avx512vbmi") && crate::gemm::amx_is_granted(),
    }
}

#[cfg(target_arch = "aarch64")]
fn runs(level: Level) -> bool {
    use std::arch::is_aarch64_feature_detected;
    // The kernels read their layouts as little-endian vectors.
    let neon = cfg!(target_endian = "little") && is_aarch64_feature_detected!("neon");
    match level {
        Level::Scalar => true,
        Level::Neon => neon,
        Level::NeonDot => neon && is_aarch64_feature_detected!("dotprod"),
        Level::Avx2 | Level::AvxVnni | Level::Avx512 | Level::Avx512Vbmi | Level::Amx => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn runs(level: Level) -> bool {
    level == Level::Scalar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_is_first_and_best_is_last() {
        assert_eq!(Isa::available()[0], Isa::Scalar);
        assert!(Isa::available().is_sorted());
        assert_eq!(Isa::named(Isa::best().name()), Ok(Isa::best()));
    }

    #[test]
    fn a_level_of_another_architecture_is_none_of_this_ones() {
        for isa in Isa::available() {
            assert!(!(isa.has_neon() && isa.has_avx2()) && (isa.has_neon() || !isa.has_neondot()));
            assert_eq!(*isa != Isa::Scalar, isa.has_neon() || isa.has_avx2());
        }
        assert_eq!(Isa::named("neon").is_ok(), cfg!(all(target_arch = "aarch64", target_endian = "little")));
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(matches!(Isa::named("mmx"), Err(Error::Value(m)) if m.contains("avxvnni")));
    }
}
