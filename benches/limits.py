"""What bounds a kernel on this CPU, measured by the native loops in `limits/`."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["WIDE", "Peak", "Skip", "copy", "library", "limit", "peak_for", "peaks", "read", "sort"]

CRATE = Path(__file__).parent / "limits"

#: The instruction whose loop bounds the 8-bit products of an instruction set.
INT8 = {
    "avx2": "vpmaddwd + vpaddd ymm",
    "avxvnni": "vpdpbusd ymm (AVX-VNNI)",
    "avx512": "vpdpbusd zmm",
    "avx512vbmi": "vpdpbusd zmm",
    # What AVX-512 alone could do: tiles may pass it.
    "amx": "vpdpbusd zmm",
}


#: Those whose registers hold 512 bits.
WIDE = ("avx512", "avx512vbmi", "amx")


class Skip(Exception):
    """Something this machine lacks; says what."""


@cache
def library() -> ctypes.CDLL:
    """The native loops, built on first use: ``cargo build`` in `limits/`.

    Raises
    ------
    Skip
        No built library, and no cargo to build it.
    """
    target = Path(os.environ.get("CARGO_TARGET_DIR", CRATE / "target")) / "limits"
    command = ["cargo", "build", "--release", "--quiet", "--target-dir", str(target)]
    told = ""
    # rten-gemm asks for a newer Rust than lowbit does: its limits are measured without it too.
    for extra in (["--features", "rten"], []):
        try:
            done = subprocess.run(command + extra, cwd=CRATE, capture_output=True, text=True)
        except FileNotFoundError:
            told = "no cargo"
            break
        if done.returncode == 0:
            break
        told = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "cargo build failed"
    else:
        raise Skip(f"the limits' loops: {told}")
    found = [p for p in (target / "release").glob("*limits.*") if p.suffix in (".so", ".dylib", ".dll")]
    if not found:
        raise Skip(f"the limits' loops are not built: {told}")
    lib = ctypes.CDLL(str(found[0]))
    size, word, pointer = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p
    for name, result, arguments in (
        ("peak_name", ctypes.c_char_p, [ctypes.c_uint32]),
        ("peak_ops", word, [ctypes.c_uint32]),
        ("peak_run", None, [ctypes.c_uint32, word, ctypes.c_uint32]),
        ("read_bytes", word, [pointer, size, word]),
        ("copy_bytes", None, [pointer, pointer, size, word]),
        ("sort_floats", None, [pointer, size]),
        ("built_with", ctypes.c_char_p, []),
    ):
        f = getattr(lib, name)
        f.restype, f.argtypes = result, arguments
    return lib


@dataclass(frozen=True)
class Peak:
    """A loop of one instruction on registers alone."""

    kind: int
    instruction: str
    ops: int
    """Operations of one turn; a multiplication and an addition are two."""

    def work(self, ops: float, threads: int = 1) -> Callable[[], None]:
        """A callable that does as many operations, to time in turn with a kernel of the same."""
        run, turns = library().peak_run, max(threads, round(ops / self.ops))
        return lambda: run(self.kind, turns, threads)


def peaks() -> list[Peak]:
    """The loops that this CPU can run."""
    lib, out, kind = library(), [], 0
    while name := lib.peak_name(kind).decode():
        if ops := lib.peak_ops(kind):
            out.append(Peak(kind, name, ops))
        kind += 1
    return out


def peak_for(isa: str) -> Peak:
    """The loop that bounds 8-bit products on a lowbit instruction set.

    Raises
    ------
    Skip
        No such loop here (the scalar path, another architecture).
    """
    for peak in peaks():
        if peak.instruction == INT8.get(isa):
            return peak
    raise Skip(f"no register-only loop for {isa}")


def limit(isa: str, ops: float) -> tuple[dict[str, Callable[[], None]], int]:
    """The loop that bounds ``ops`` 8-bit operations, as "limit", on one thread, and how often it
    does them: so often that its call costs nothing. Empty where this machine has none."""
    times = max(1, round(1e8 / ops))
    try:
        return {"limit": peak_for(isa).work(ops * times)}, times
    except Skip:
        return {}, times


def peak_for_groups(isa: str) -> tuple[Peak, float]:
    """The loop that bounds products with weights of four bits and fewer, and the share of
    it that groups of 32 leave: with VNNI one instruction in nine scales a group.

    Raises
    ------
    Skip
        As `peak_for`.
    """
    if isa == "avx2":
        return next(peak for peak in peaks() if peak.instruction.startswith("vpmaddubsw")), 1.0
    return peak_for(isa), 8 / 9


def _aligned(size: int) -> np.ndarray:
    raw = np.ones(size + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + size]


def read(size: int, times: int = 1) -> Callable[[], None]:
    """A callable that reads a buffer of ``size`` bytes ``times`` over, on one thread."""
    lib, buffer = library(), _aligned(size)
    return lambda keep=buffer: lib.read_bytes(keep.ctypes.data, size, times)


def copy(size: int, times: int = 1) -> Callable[[], None]:
    """A callable that copies a buffer of ``size`` bytes ``times`` over, on one thread."""
    lib, source, target = library(), _aligned(size), _aligned(size)
    return lambda a=source, b=target: lib.copy_bytes(a.ctypes.data, b.ctypes.data, size, times)


def sort(x: np.ndarray) -> Callable[[], None]:
    """A callable that sorts float32 numbers as `lowbit.kmeans_1d` does, on one thread."""
    lib, x = library(), np.ascontiguousarray(x, np.float32)
    return lambda: lib.sort_floats(x.ctypes.data, x.size)
