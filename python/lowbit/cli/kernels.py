"""Each kernel beside its twin in `lowbit.reference`; needs NumPy alone.

``lowbit demo kernels``, or ``python -m lowbit.cli.kernels`` without the extra.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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

    def floats(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def codes(low: int, high: int, dtype: type, *shape: int) -> np.ndarray:
        return rng.integers(low, high, shape, dtype=dtype)

    for m, k, n, where in [(4096, 384, 384, "MiniLM"), (3136, 576, 64, "ResNet-50"), (1, 4096, 4096, "decoder")]:
        a, b = codes(0, 256, np.uint8, m, k), codes(-127, 128, np.int8, k, n)
        tiled = {lowbit: lowbit.tile_matrix(b), reference: b}
        yield Case(
            "matmul_int8", f"{m}×{k}×{n} {where}", lambda lib, a=a, tiled=tiled: lib.matmul_int8(a, tiled[lib])
        )

    x, w, v = floats(4096, 384), floats(1536, 384) / 20, floats(384, 1536) / 40
    b, c = floats(1536), floats(384)
    up = {lib: lib.quantize_weight(w) for lib in (lowbit, reference)}
    down = {lib: lib.quantize_weight(v) for lib in (lowbit, reference)}
    norm = (np.ones(384, np.float32), np.zeros(384, np.float32), 1e-12)
    yield Case("quantize_weight", "1536×384 MiniLM", lambda lib: lib.quantize_weight(w).tiled)
    yield Case("linear + relu", "4096×384×1536 MiniLM", lambda lib: lib.linear(x, up[lib], b, activation="relu"))
    yield Case(
        "mlp + norm",
        "4096×384×1536×384 MiniLM",
        lambda lib: lib.mlp(x, up[lib], b, down[lib], c, activation="relu", residual=x, norm=norm),
    )
    yield Case("quantize_rows", "4096×384 MiniLM", lambda lib: lib.quantize_rows(x).codes)
    weight = floats(3072, 768)
    groups = {"nbits": 4, "granularity": lowbit.PerGroup(32), "symmetric": False}
    q = lowbit.choose_qparams(weight, **groups)
    four = lowbit.quantize(weight, q)
    yield Case("choose_qparams", "3072×768 4 bits BERT", lambda lib: lib.choose_qparams(weight, **groups).scale)
    yield Case("quantize", "3072×768 4 bits BERT", lambda lib: lib.quantize(weight, q))
    yield Case("dequantize", "3072×768 4 bits BERT", lambda lib: lib.dequantize(four, q))
    for nbits in (3, 4):
        loose = codes(0, 1 << nbits, np.uint8, 3072, 768)
        packed = lowbit.pack_codes(loose, nbits)
        size = f"3072×768 {nbits} bits BERT"
        yield Case("pack_codes", size, lambda lib, c=loose, n=nbits: lib.pack_codes(c, n))
        yield Case("unpack_codes", size, lambda lib, p=packed, n=nbits: lib.unpack_codes(p, n, 768))


def run(*, seconds: float = 0.5) -> Iterator[Result]:
    """Compares and times the cases one by one, each for about ``seconds``."""
    for case in cases():
        ours, numpys = case.call(lowbit), case.call(reference)
        equal = ours.dtype == numpys.dtype and ours.shape == numpys.shape and ours.tobytes() == numpys.tobytes()
        del ours, numpys
        times = in_turn(
            {"numpy": lambda c=case: c.call(reference), "lowbit": lambda c=case: c.call(lowbit)},
            seconds=seconds,
        )
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
