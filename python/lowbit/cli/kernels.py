"""Each kernel beside its twin in `lowbit.reference`; needs NumPy alone.

``lowbit demo kernels``, or ``python -m lowbit.cli.kernels`` without the extra.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lowbit
from lowbit import reference
from lowbit.cli._measure import in_turn, median_ratio

__all__ = ["Result", "cases", "run", "table"]


@dataclass(frozen=True)
class Case:
    """One kernel on one size: the same call on `lowbit` and on `lowbit.reference`."""

    kernel: str
    size: str
    call: Callable[[Any], Any]


@dataclass(frozen=True)
class Result:
    """What a case showed; times in milliseconds."""

    kernel: str
    size: str
    numpy_ms: float
    lowbit_ms: float
    speedup: float
    equal: bool


def cases() -> Iterator[Case]:
    """Sizes from MiniLM (64 passages of 64 tokens), BERT, ResNet-50 and a 7B decoder."""
    rng = np.random.default_rng(0)
    yield _product(rng, 4096, 384, 384, "MiniLM")
    yield _product(rng, 3136, 576, 64, "ResNet-50")
    yield _product(rng, 1, 4096, 4096, "decoder")
    yield from _layers(rng)
    yield from _affine(rng)
    yield from _packing(rng, 3)
    yield from _packing(rng, 4)


def _floats(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.normal(size=shape).astype(np.float32)


def _product(rng: np.random.Generator, m: int, k: int, n: int, where: str) -> Case:
    a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-127, 128, (k, n), np.int8)
    right = {lowbit: lowbit.tile_matrix(b), reference: b}
    return Case("matmul_int8", f"{m}×{k}×{n} {where}", lambda lib: lib.matmul_int8(a, right[lib]))


def _layers(rng: np.random.Generator) -> Iterator[Case]:
    x, w, v = _floats(rng, 4096, 384), _floats(rng, 1536, 384) / 20, _floats(rng, 384, 1536) / 40
    b, c = _floats(rng, 1536), _floats(rng, 384)
    libs: tuple[Any, ...] = (lowbit, reference)
    up, down = {lib: lib.quantize_weight(w) for lib in libs}, {lib: lib.quantize_weight(v) for lib in libs}
    norm = (np.ones(384, np.float32), np.zeros(384, np.float32), 1e-12)
    yield Case("quantize_weight", "1536×384 MiniLM", lambda lib: lib.quantize_weight(w).tiled)
    yield Case("linear + relu", "4096×384×1536 MiniLM", lambda lib: lib.linear(x, up[lib], b, activation="relu"))
    yield Case(
        "mlp + norm",
        "4096×384×1536×384 MiniLM",
        lambda lib: lib.mlp(x, up[lib], b, down[lib], c, activation="relu", residual=x, norm=norm),
    )


def _affine(rng: np.random.Generator) -> Iterator[Case]:
    x, w, size = _floats(rng, 4096, 384), _floats(rng, 3072, 768), "3072×768 4 bits BERT"
    groups = lowbit.PerGroup(32)
    qparams = lowbit.choose_qparams(w, 4, granularity=groups, symmetric=False)
    codes = lowbit.quantize(w, qparams)
    yield Case("quantize_rows", "4096×384 MiniLM", lambda lib: lib.quantize_rows(x).codes)
    yield Case("choose_qparams", size, lambda lib: lib.choose_qparams(w, 4, granularity=groups, symmetric=False).scale)
    yield Case("quantize", size, lambda lib: lib.quantize(w, qparams))
    yield Case("dequantize", size, lambda lib: lib.dequantize(codes, qparams))


def _packing(rng: np.random.Generator, nbits: int) -> Iterator[Case]:
    codes = rng.integers(0, 1 << nbits, (3072, 768), np.uint8)
    packed, size = lowbit.pack_codes(codes, nbits), f"3072×768 {nbits} bits BERT"
    yield Case("pack_codes", size, lambda lib: lib.pack_codes(codes, nbits))
    yield Case("unpack_codes", size, lambda lib: lib.unpack_codes(packed, nbits, 768))


def run(*, seconds: float = 0.5) -> Iterator[Result]:
    """Compares and times the cases one by one, each for about ``seconds``."""
    for case in cases():
        ours, numpys = case.call(lowbit), case.call(reference)
        equal = ours.dtype == numpys.dtype and ours.shape == numpys.shape and ours.tobytes() == numpys.tobytes()
        del ours, numpys
        calls = {"numpy": partial(case.call, reference), "lowbit": partial(case.call, lowbit)}
        times = in_turn(calls, seconds=seconds)
        yield Result(
            case.kernel,
            case.size,
            1e3 * statistics.median(times["numpy"]),
            1e3 * statistics.median(times["lowbit"]),
            median_ratio(times["numpy"], times["lowbit"]),
            equal,
        )


def table(results: Iterator[Result]) -> Iterator[str]:
    """The results as lines of text, each as soon as it is there."""
    yield f"{'kernel':<16} {'size':<26} {'NumPy ms':>9} {'lowbit ms':>9} {'faster':>7}  same bytes"
    for r in results:
        yield (
            f"{r.kernel:<16} {r.size:<26} {r.numpy_ms:>9.2f} {r.lowbit_ms:>9.3f} {r.speedup:>6.1f}×"
            f"  {'yes' if r.equal else 'NO'}"
        )


def _threads() -> str:
    count = lowbit.get_num_threads()
    return f"{count} thread{'s' * (count > 1)}"


def main(*, as_json: bool = False) -> int:
    """Prints every case; 1 if any result differs from the reference's, else 0."""
    told: list[Result] = []

    def keep() -> Iterator[Result]:
        for result in run():
            told.append(result)
            yield result

    if as_json:
        rows = [asdict(r) for r in keep()]
        threads = lowbit.get_num_threads()
        print(json.dumps({"isa": lowbit.isa(), "threads": threads, "kernels": rows}, indent=2, ensure_ascii=False))
    else:
        print(f"lowbit {lowbit.__version__}: {lowbit.isa()}, {_threads()}; medians, in turn")
        for line in table(keep()):
            print(line, flush=True)
    differ = [f"{r.kernel} {r.size}" for r in told if not r.equal]
    if differ:
        print(f"lowbit: not what the reference gives: {', '.join(differ)}", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(as_json="--json" in sys.argv[1:]))
