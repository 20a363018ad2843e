"""k-means and assignment beside faiss, scikit-learn and the peak of fused multiply-adds.

    pytest benches/bench_kmeans.py --benchmark-only    a table of times
    python benches/bench_kmeans.py                     ratios to the peers, share of the peak

All run on one thread, from the same start, over the same points. The peak's work
is a multiply-add for each point, codeword and dimension, of each iteration: a
share above 1 says that lowbit ruled codewords out without that work, or did it in
integers of 16 bits, two at a time. faiss is taken at the best of its settings for each size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache

import limits
import lowbit
import numpy as np
import pytest
from measure import clock_for, interleave, settle

#: points, dimensions, codewords, iterations; none for assignment.
CASES = {
    "kmeans 262144x8 k=256": (262_144, 8, 256, 20),
    "assign 65536x8 k=256": (65_536, 8, 256, None),
    "assign 65536x8 k=4096": (65_536, 8, 4096, None),
    "assign 65536x8 k=65536": (65_536, 8, 65_536, None),
    "assign 65536x2 k=256": (65_536, 2, 256, None),
    "assign 65536x4 k=1024": (65_536, 4, 1024, None),
    "assign 65536x16 k=1024": (65_536, 16, 1024, None),
}


@cache
def candidates(case: str) -> dict[str, Callable[[], object]]:
    """What to time, by name; without the peers that are not installed."""
    n, d, k, n_iter = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)).astype(np.float32)
    start = x[rng.choice(n, k, replace=False)] if n_iter else rng.standard_normal((k, d)).astype(np.float32)
    run: dict[str, Callable[[], object]] = {}
    if n_iter:
        run["lowbit"] = lambda: lowbit.kmeans(x, k, init=start, max_iter=n_iter, tol=0)
    else:
        run["lowbit"] = lambda: lowbit.assign(x, start)
    try:
        peak = next(p for p in limits.peaks() if p.instruction == "vfmadd231ps ymm")
        run["peak"] = peak.work(2 * n * d * k * (n_iter or 1))
    except (limits.Skip, StopIteration):
        pass
    try:
        import faiss
    except ImportError:
        pass
    else:
        faiss.omp_set_num_threads(1)
        if n_iter:

            def train() -> object:
                model = faiss.Kmeans(d, k, niter=n_iter, max_points_per_centroid=10**9)
                model.train(x, init_centroids=start)
                return model.obj[-1]

            run["faiss"] = train
        else:
            index = faiss.IndexFlatL2(d)
            index.add(start)

            def search(threshold: int) -> object:
                faiss.cvar.distance_compute_blas_threshold = threshold
                return index.search(x, 1)

            run["faiss"] = lambda: search(1)
            run["faiss without BLAS"] = lambda: search(10**9)
    if n_iter:
        try:
            from sklearn.cluster import KMeans
        except ImportError:
            pass
        else:
            model = KMeans(k, init=start, n_init=1, max_iter=n_iter, tol=0, algorithm="lloyd")
            run["scikit-learn"] = lambda: model.fit(x).inertia_
    return run


@pytest.mark.parametrize("who", ["lowbit", "faiss", "scikit-learn"])
@pytest.mark.parametrize("case", CASES)
def test_kmeans(benchmark, case, who):
    f = candidates(case).get(who)
    if f is None:
        pytest.skip("not installed, or does nothing of the kind")
    benchmark.group = case
    benchmark.extra_info["isa"] = lowbit.isa()
    with lowbit.threads(1):
        benchmark(f)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    settle(1)
    with lowbit.threads(1):
        for case in args.case:
            run = dict(candidates(case))
            if CASES[case][2] > 10_000:
                run.pop("faiss without BLAS", None)  # ten times slower
            # Turns of one length: whoever begins one finds the caches as the one before left them.
            timing = interleave(run, args.rounds, at_least=0.5, clock=clock_for(1))
            told = [f"{who} {timing.seconds(who).median:.4g} s" for who in run]
            told += [f"{timing.ratio('lowbit', who)} x {who}" for who in run if who not in ("lowbit", "peak")]
            if "peak" in run:
                told.append(f"share of the peak {timing.share('lowbit', ['peak'])}")
            print(case, *told, sep="  ", flush=True)


if __name__ == "__main__":
    main()
