"""Affine quantization of a 4096x4096 weight beside a copy of it and beside NumPy.

    pytest benches/bench_affine.py --benchmark-only    a table of times
    python benches/bench_affine.py                     ratios to the copy and to NumPy

The copy of the float32 weight is the limit: quantizing reads as much and writes
a quarter, dequantizing the other way about. NumPy's side is `lowbit.reference`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import lowbit
import numpy as np
import pytest
from lowbit import PerAxis, PerGroup, PerTensor, reference
from measure import interleave

GRANULARITIES = {
    "tensor": PerTensor(),
    "channel": PerAxis(0),
    "group 128": PerGroup(128),
    "group 32": PerGroup(32),
}
WHAT = ["quantize", "dequantize", "choose absmax", "choose percentile", "choose mse"]


def candidates(what: str, granularity: str, rows: int, isa: str | None = None) -> dict[str, Callable[[], object]]:
    """What to time, with the copy of the same weight."""
    x = (np.random.default_rng(0).standard_normal((rows, 4096)) * 0.02).astype(np.float32)
    g = GRANULARITIES[granularity]
    q = lowbit.choose_qparams(x, granularity=g)
    codes, values, copy = lowbit.quantize(x, q), np.empty_like(x), np.empty_like(x)

    def of(library) -> Callable[[], object]:
        if what == "quantize":
            return lambda: library.quantize(x, q, out=codes, isa=isa)
        if what == "dequantize":
            return lambda: library.dequantize(codes, q, out=values, isa=isa)
        method = what.removeprefix("choose ")
        return lambda: library.choose_qparams(x, 4, granularity=g, method=method, isa=isa)

    return {"copy": lambda: np.copyto(copy, x), "lowbit": of(lowbit), "numpy": of(reference)}


@pytest.mark.parametrize("who", ["copy", "lowbit", "numpy"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("what", WHAT)
def test_affine(benchmark, what, granularity, who):
    f = candidates(what, granularity, 64)[who]
    benchmark.group = f"{what}, one scale per {granularity}"
    benchmark.extra_info["isa"] = lowbit.isa()
    with lowbit.threads(1):
        benchmark(f)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", nargs="+", default=[lowbit.isa()], help="one or more instruction sets")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--numpy", action="store_true", help="time NumPy too, on 64 rows")
    args = parser.parse_args()
    print(
        f"{args.rows}x4096 on {args.threads} threads, medians of {args.rounds} rounds; "
        "share of the copy's speed [quartiles]"
    )
    with lowbit.threads(args.threads):
        for isa in args.isa:
            for what in WHAT:
                for granularity in GRANULARITIES:
                    print(isa, what, granularity, *report(what, granularity, isa, args), sep="  ", flush=True)


def report(what: str, granularity: str, isa: str, args: argparse.Namespace) -> list[str]:
    fs = candidates(what, granularity, args.rows, isa)
    del fs["numpy"]
    timing = interleave(fs, args.rounds)
    share = timing.ratio("lowbit", "copy")
    told = [
        f"{timing.seconds('lowbit').median * 1e3:.1f} ms",
        f"share {share.median:.2f} [{share.low:.2f} {share.high:.2f}]",
    ]
    if args.numpy:
        fs = candidates(what, granularity, 64, isa)
        told.append(f"{interleave(fs, 3).ratio('lowbit', 'numpy').median:.0f} times NumPy")
    return told


if __name__ == "__main__":
    main()
