"""The kernels' speed on this machine, beside NumPy's and torch's products."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import lowbit
from lowbit.cli._measure import in_turn

__all__ = ["Row", "run"]

#: M, K, N of a product, and where it is from.
SHAPES = [
    (1024, 1024, 1024, "square"),
    (4096, 384, 1536, "MiniLM, 64×64 tokens"),
    (512, 3072, 768, "BERT, 512 tokens"),
    (3136, 576, 64, "ResNet-50, 3×3"),
    (1, 4096, 4096, "decoder, one token"),
]
QUICK = SHAPES[1:2] + SHAPES[4:]


@dataclass(frozen=True)
class Row:
    """One kernel on one size: ``speeds`` in ``unit``, by who ran it."""

    kernel: str
    size: str
    unit: str
    speeds: dict[str, float]


def run(*, quick: bool = False, isa: str | None = None, threads: int | None = None) -> Iterator[Row]:
    """Measures each kernel in turn with its peers, for about a second (``quick``: a third).

    ``isa`` and ``threads`` are lowbit's; torch gets the same number of threads.
    """
    torch = _torch()
    seconds, count = 0.35 if quick else 1.2, threads or lowbit.get_num_threads()
    if torch:
        torch.set_num_threads(count)
    with lowbit.threads(count):
        for kernel, size, unit, work, calls in _cases(QUICK if quick else SHAPES, isa, torch):
            times = in_turn(calls, rounds=25, seconds=seconds)
            speeds = {name: work / statistics.median(t) / 1e9 for name, t in times.items()}
            yield Row(kernel, size, unit, speeds)


def _torch() -> Any:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch


Calls = dict[str, Callable[[], object]]
CaseOf = tuple[str, str, str, float, Calls]  # kernel, size, unit, work of one call, who runs it


def _cases(shapes: list[tuple[int, int, int, str]], isa: str | None, torch: Any) -> Iterator[CaseOf]:
    rng = np.random.default_rng(0)
    for m, k, n, where in shapes:
        yield _product(rng, m, k, n, where, isa, torch)
    yield _rows(rng, isa)
    for nbits in (4,) if shapes is QUICK else (1, 3, 4, 8):
        yield from _packing(rng, nbits, isa)


def _product(rng: np.random.Generator, m: int, k: int, n: int, where: str, isa: str | None, torch: Any) -> CaseOf:
    a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-127, 128, (k, n), np.int8)
    fa, fb = a.astype(np.float32), b.astype(np.float32)
    tiled = lowbit.tile_matrix(b)
    calls: Calls = {
        "lowbit int8": partial(lowbit.matmul_int8, a, tiled, out=np.empty((m, n), np.int32), isa=isa),
        "NumPy fp32": partial(np.matmul, fa, fb, out=np.empty((m, n), np.float32)),
    }
    for name, dtype in (("torch fp32", "float32"), ("torch bf16", "bfloat16")) if torch else ():
        left, right = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in (fa, fb))
        calls[name] = partial(torch.matmul, left, right, out=torch.empty(m, n, dtype=left.dtype))
    return "matmul_int8", f"{m}×{k}×{n} {where}", "GOP/s", 2.0 * m * k * n, calls


def _rows(rng: np.random.Generator, isa: str | None) -> CaseOf:
    x = rng.normal(size=(4096, 384)).astype(np.float32)
    calls: Calls = {
        "lowbit": partial(lowbit.quantize_rows, x, isa=isa),
        "NumPy copy": partial(np.copyto, np.empty_like(x), x),
    }
    return "quantize_rows", "4096×384 MiniLM", "GB/s", float(x.nbytes), calls


def _packing(rng: np.random.Generator, nbits: int, isa: str | None) -> Iterator[CaseOf]:
    codes = rng.integers(0, 1 << nbits, (4096, 4096), np.uint8)
    packed, loose = lowbit.pack_codes(codes, nbits), np.empty_like(codes)
    size, copy = f"4096×4096 {nbits} bits", partial(np.copyto, loose, codes)
    pack: Calls = {"lowbit": partial(lowbit.pack_codes, codes, nbits, out=packed.copy(), isa=isa), "NumPy copy": copy}
    unpack: Calls = {
        "lowbit": partial(lowbit.unpack_codes, packed, nbits, 4096, out=np.empty_like(codes), isa=isa),
        "NumPy copy": copy,
    }
    yield "pack_codes", size, "GB/s", float(codes.size), pack
    yield "unpack_codes", size, "GB/s", float(codes.size), unpack
