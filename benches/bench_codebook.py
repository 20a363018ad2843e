"""k-means in one dimension beside those who do it: the exact ckmeans and kmeans1d, the approximate
flash1dkmeans and scikit-learn, and NumPy's dynamic programme.

As a script, in turn in one process on one thread: times of a million float32 numbers, from their
families and in rows, in sorts of our own (which lowbit's times include), and what
memory a call takes. `pytest benches/bench_codebook.py` keeps a few for the record.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable

import lowbit
import numpy as np
import pytest
from limits import sort
from lowbit import reference
from measure import clock_for, interleave, settle

N = 1_000_000

FAMILIES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "uniform": lambda rng, n: rng.random(n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "lognormal": lambda rng, n: rng.lognormal(size=n),
    "bfloat16": lambda rng, n: (rng.standard_normal(n).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(
        np.float32
    ),
    "1000 distinct": lambda rng, n: rng.integers(0, 1000, n),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "tight clusters": lambda rng, n: rng.integers(0, 40, n) + 0.01 * rng.standard_normal(n),
    "one outlier": lambda rng, n: np.append(rng.standard_normal(n - 1), 1e8),
}


def peers(x: np.ndarray, k: int, names: list[str]) -> dict[str, Callable[[], object]]:
    """What to time; a peer that is not installed is left out."""
    wide, column = x.astype(np.float64), np.ascontiguousarray(x.reshape(-1, 1))
    calls: dict[str, Callable[[], object]] = {}
    for name in names:
        try:
            if name == "ckmeans":
                from ckmeans import ckmeans

                calls[name] = lambda f=ckmeans: f(wide, k)
            elif name == "kmeans1d":
                from kmeans1d import cluster

                calls[name] = lambda f=cluster: f(wide, k)
            elif name == "flash1dkmeans":
                from flash1dkmeans import kmeans_1d

                calls[name] = lambda f=kmeans_1d: f(x, k)
                calls[name]()  # compiles
            elif name == "scikit-learn":
                from sklearn.cluster import KMeans

                calls[name] = lambda f=KMeans: f(k, n_init=1, random_state=0).fit(column)
        except ImportError:
            print(f"{name} is not installed")
    return calls


@pytest.mark.parametrize("k", [16, 255])
def test_kmeans_1d(benchmark, k):
    x = np.random.default_rng(3).standard_normal(N).astype(np.float32)
    with lowbit.threads(1):
        benchmark(lambda: lowbit.kmeans_1d(x, k))


def test_rows(benchmark):
    x = np.random.default_rng(3).standard_normal((64, 4096)).astype(np.float32)
    with lowbit.threads(1):
        benchmark(lambda: lowbit.kmeans_1d_rows(x, 16))


def test_numpy(benchmark):
    x = np.random.default_rng(3).standard_normal(1000).astype(np.float32)
    benchmark(lambda: reference.kmeans_1d(x, 16))


def families(rounds: int) -> None:
    print(f"\n{N:,} float32, float64 sums; milliseconds, and the time in our own sorts of the same numbers")
    normal: dict[int, float] = {}
    for name, make in FAMILIES.items():
        x = make(np.random.default_rng(3), N).astype(np.float32)
        timing = interleave(
            {
                "sort": sort(x),
                "k=16": lambda x=x: lowbit.kmeans_1d(x, 16),
                "k=255": lambda x=x: lowbit.kmeans_1d(x, 255),
            },
            rounds,
            clock=clock_for(1),
        )
        told = f"{name:15}"
        for k in (16, 255):
            ratio, time = timing.ratio("sort", f"k={k}"), timing.seconds(f"k={k}").median
            normal.setdefault(k, time)
            told += f"  k={k}: {time * 1e3:6.1f} ms, {ratio.median:.2f} sorts"
            told += f" [{ratio.low:.2f} {ratio.high:.2f}], {time / normal[k]:.2f} x normal"
        print(told, flush=True)


def beside(rounds: int, names: list[str]) -> None:
    x = np.random.default_rng(3).standard_normal(N).astype(np.float32)
    for k in (16, 255):
        ours = lowbit.kmeans_1d(x, k)
        print(f"\n{N:,} float32 N(0,1), k = {k}; inertia {ours.inertia:.9g}")
        for name, call in peers(x, k, names).items():
            timing = interleave({"lowbit": lambda k=k: lowbit.kmeans_1d(x, k), name: call}, rounds, clock=clock_for(1))
            ratio = timing.ratio("lowbit", name)
            print(
                f"{name:14} {timing.seconds(name).median * 1e3:9.1f} ms, lowbit {timing.seconds('lowbit').median * 1e3:6.1f} ms:"
                f" {ratio.median:.1f} [{ratio.low:.1f} {ratio.high:.1f}] x faster",
                flush=True,
            )


def rows(rounds: int) -> None:
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((64, 4096)).astype(np.float32), rng.random(4096)
    calls = {
        "plain": lambda: lowbit.kmeans_1d_rows(x, 16),
        "weighted": lambda: lowbit.kmeans_1d_rows(x, 16, sample_weight=weight),
    }
    try:
        from ckmeans import ckmeans

        wide = x.astype(np.float64)
        calls["ckmeans"] = lambda: [ckmeans(row, 16) for row in wide]
    except ImportError:
        print("ckmeans is not installed")
    # Turns of one length: whoever begins one finds the caches as the one before left them.
    timing = interleave(calls, rounds, at_least=0.1, clock=clock_for(1))
    print("\n64 rows of 4,096 float32 N(0,1), k = 16")
    for name in calls:
        print(f"{name:10} {timing.seconds(name).median / 64 * 1e6:7.0f} µs a row")
    weighted = timing.ratio("plain", "weighted")
    print(f"weighted takes {weighted.median:.2f} [{weighted.low:.2f} {weighted.high:.2f}] x the time of plain")
    if "ckmeans" in calls:
        ratio = timing.ratio("plain", "ckmeans")
        print(f"ckmeans takes {ratio.median:.1f} [{ratio.low:.1f} {ratio.high:.1f}] x the time of lowbit")


MEMORY = """
import re, sys
import numpy as np, lowbit
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
x, k = np.load(sys.argv[1]), int(sys.argv[2])
lowbit.kmeans_1d(x[:50_000], k)
before = peak()
lowbit.kmeans_1d(x, k)
print((peak() - before) / x.size)
"""


def memory() -> None:
    print("\nmemory beyond the input, bytes a number, codes included: how far a call raises the process's peak (Linux)")
    for name in ("normal", "cauchy", "tight clusters"):
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file.name, FAMILIES[name](np.random.default_rng(3), N).astype(np.float32))
            for k in (16, 255):
                command = [sys.executable, "-c", MEMORY, file.name, str(k)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"{name:15} k={k}: {float(done.stdout):.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=["families", "peers", "rows", "memory"])
    parser.add_argument(
        "--peers", nargs="*", default=["ckmeans", "flash1dkmeans", "scikit-learn"], help="kmeans1d takes minutes"
    )
    args = parser.parse_args()
    settle(1)
    warnings.simplefilter("ignore")
    wanted = args.only or ["families", "peers", "rows", "memory"]
    with lowbit.threads(1):
        if "families" in wanted:
            families(args.rounds)
        if "peers" in wanted:
            beside(args.rounds, args.peers)
        if "rows" in wanted:
            rows(args.rounds)
    if "memory" in wanted:
        memory()


if __name__ == "__main__":
    main()
