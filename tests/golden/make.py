"""Writes golden.npz anew: integers in, and what plain NumPy makes of them.

Run it only when a case is added; what is there must never change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def extremes(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Integers of which half are a bound of the dtype."""
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    bounds = rng.choice(np.array([info.min, info.max], dtype), shape)
    return np.where(rng.random(shape) < 0.5, bounds, x)


def pack(codes: np.ndarray, nbits: int) -> np.ndarray:
    bits = codes[:, None] >> np.arange(nbits, dtype=codes.dtype) & 1
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little")


def cases() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(20)
    out: dict[str, np.ndarray] = {}
    for m, k, n in [(1, 1, 1), (5, 7, 17), (13, 66, 33), (2, 129, 81)]:
        b = extremes(rng, (k, n), np.int8)
        for dtype in (np.uint8, np.int8):
            a = extremes(rng, (m, k), dtype)
            name = f"product_{m}_{k}_{n}_{np.dtype(dtype).name}"
            out |= {f"{name}.a": a, f"{name}.b": b, f"{name}.c": a.astype(np.int32) @ b.astype(np.int32)}
    for nbits in range(1, 17):
        codes = rng.integers(0, 1 << nbits, 8 * 33 + nbits, np.uint8 if nbits <= 8 else np.uint16)
        out |= {f"packed_{nbits}.codes": codes, f"packed_{nbits}.bytes": pack(codes, nbits)}
    return out


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("golden.npz"), allow_pickle=False, **cases())
