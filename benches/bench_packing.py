"""Packing beside a copy of the same codes and beside NumPy.

    pytest benches/bench_packing.py --benchmark-only    a table of times
    python benches/bench_packing.py                     codes/s and share of the copy

The copy is the limit: it reads and writes one byte a code, as packing to 8 bits
does. NumPy's side is `lowbit.reference`, which is `numpy.packbits` over unpacked
bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import lowbit
import numpy as np
import pytest
from lowbit import reference
from measure import clock_for, interleave, settle

WIDTHS = range(1, 9)
SIZES = {"64Ki": 1 << 16, "16Mi": 1 << 24}


def pairs(n: int, nbits: int, isa: str | None = None) -> dict[str, dict[str, Callable[[], object]]]:
    """What to time, packing and unpacking, each with the copy of the same codes."""
    codes = np.random.default_rng(0).integers(0, 1 << nbits, n, dtype=np.uint8)
    packed, back, copy = lowbit.pack_codes(codes, nbits), np.empty_like(codes), np.empty_like(codes)
    out = np.empty_like(packed)
    return {
        "pack": {
            "copy": lambda: np.copyto(copy, codes),
            "lowbit": lambda: lowbit.pack_codes(codes, nbits, out=out, isa=isa),
            "numpy": lambda: reference.pack_codes(codes, nbits, out=out),
        },
        "unpack": {
            "copy": lambda: np.copyto(copy, codes),
            "lowbit": lambda: lowbit.unpack_codes(packed, nbits, n, out=back, isa=isa),
            "numpy": lambda: reference.unpack_codes(packed, nbits, n, out=back),
        },
    }


@pytest.mark.parametrize("who", ["copy", "lowbit", "numpy"])
@pytest.mark.parametrize("what", ["pack", "unpack"])
@pytest.mark.parametrize("nbits", WIDTHS)
@pytest.mark.parametrize("size", SIZES)
def test_packing(benchmark, size, nbits, what, who):
    f = pairs(SIZES[size], nbits)[what][who]
    benchmark.group = f"{what} {size} codes of {nbits} bits"
    benchmark.extra_info["isa"] = lowbit.isa()
    with lowbit.threads(1):
        benchmark(f)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", nargs="+", default=[lowbit.isa()], help="one or more instruction sets")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--numpy", action="store_true", help="time NumPy too (it takes seconds at 16Mi)")
    args = parser.parse_args()
    settle(args.threads)
    print(f"G codes/s on {args.threads} threads, medians of {args.rounds} rounds; share of the copy [quartiles]")
    few = np.arange(64, dtype=np.uint8) % 16
    call = interleave({"call": lambda: lowbit.pack_codes(few, 4)}, args.rounds, clock=clock_for(1)).seconds("call")
    print(f"a call with 64 codes of 4 bits: {call.median * 1e6:.2f} µs [{call.low * 1e6:.2f} {call.high * 1e6:.2f}]")
    with lowbit.threads(args.threads):
        for size in args.size:
            for isa in args.isa:
                for nbits in WIDTHS:
                    told = report(SIZES[size], nbits, isa, args)
                    print(f"{size} {isa} {nbits} bits", *told, sep="  ", flush=True)


def report(n: int, nbits: int, isa: str, args: argparse.Namespace) -> list[str]:
    told = []
    for what, fs in pairs(n, nbits, isa).items():
        if not args.numpy:
            del fs["numpy"]
        timing = interleave(fs, args.rounds, clock=clock_for(args.threads))
        share = timing.ratio("lowbit", "copy")
        speeds = " ".join(f"{who} {n / timing.seconds(who).median / 1e9:.3g}" for who in fs)
        told.append(f"{what}: {speeds} share {share.median:.2f} [{share.low:.2f} {share.high:.2f}]")
    return told


if __name__ == "__main__":
    main()
