"""The kernels' speed on this machine, beside NumPy's and torch's products."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    seconds, count = (0.35, threads or lowbit.get_num_threads()) if quick else (1.2, threads or lowbit.get_num_threads())
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


def _cases(
    shapes: list[tuple[int, int, int, str]], isa: str | None, torch: Any
) -> Iterator[tuple[str, str, str, float, Calls]]:
    rng = np.random.default_rng(0)
    for m, k, n, where in shapes:
        a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-127, 128, (k, n), np.int8)
        tiled, out = lowbit.tile_matrix(b), np.empty((m, n), np.int32)
        fa, fb, fout = a.astype(np.float32), b.astype(np.float32), np.empty((m, n), np.float32)
        calls: Calls = {
            "lowbit int8": lambda a=a, t=tiled, o=out: lowbit.matmul_int8(a, t, out=o, isa=isa),
            "NumPy fp32": lambda a=fa, b=fb, o=fout: np.matmul(a, b, out=o),
        }
        if torch:
            for name, dtype in (("torch fp32", torch.float32), ("torch bf16", torch.bfloat16)):
                ta, tb = torch.from_numpy(fa).to(dtype), torch.from_numpy(fb).to(dtype)
                to = torch.empty(m, n, dtype=dtype)
                calls[name] = lambda a=ta, b=tb, o=to: torch.matmul(a, b, out=o)
        yield "matmul_int8", f"{m}×{k}×{n} {where}", "GOP/s", 2.0 * m * k * n, calls

    x = rng.normal(size=(4096, 384)).astype(np.float32)
    copy = np.empty_like(x)
    calls = {"lowbit int8": lambda: lowbit.quantize_rows(x, isa=isa), "NumPy copy": lambda: np.copyto(copy, x)}
    yield "quantize_rows", "4096×384 MiniLM", "GB/s", float(x.nbytes), calls
    for nbits in (4,) if shapes is QUICK else (1, 3, 4, 8):
        codes = rng.integers(0, 1 << nbits, (4096, 4096), np.uint8)
        packed, loose = lowbit.pack_codes(codes, nbits), np.empty_like(codes)
        size, work = f"4096×4096 {nbits} bits", float(codes.size)
        reads: Calls = {
            "lowbit int8": lambda c=codes, n=nbits, o=packed: lowbit.pack_codes(c, n, out=o, isa=isa),
            "NumPy copy": lambda c=codes, o=loose: np.copyto(o, c),
        }
        yield "pack_codes", size, "GB/s", work, reads
        writes: Calls = {
            "lowbit int8": lambda p=packed, n=nbits, o=loose: lowbit.unpack_codes(p, n, 4096, out=o, isa=isa),
            "NumPy copy": lambda c=codes, o=loose: np.copyto(o, c),
        }
        yield "unpack_codes", size, "GB/s", work, writes
