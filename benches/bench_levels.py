"""Levels: encoding beside NumPy and torch, fits in sorts of our own, and errors on trained layers.

    python benches/bench_levels.py                        all, on one thread
    python benches/bench_levels.py --only errors          every layer of MiniLM and, with LOWBIT_DATA=FOLDER where
                                                          resnet_cifar10/resnet20.safetensors is, of ResNet-20

`pytest benches/bench_levels.py --benchmark-only` keeps a few for the record.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import lowbit
import numpy as np
import pytest
from limits import sort
from lowbit import reference
from measure import clock_for, interleave, settle

METHODS = ("optimal", "lloyd_max", "laplace", "gauss", "uniform", "quantile", "pot", "apot")


def encoders(x: np.ndarray, levels: np.ndarray) -> dict[str, Callable[[], object]]:
    """Those who find codes; torch where it is installed."""
    cuts = lowbit.boundaries(levels)
    calls: dict[str, Callable[[], object]] = {
        "lowbit": lambda: lowbit.encode(x, levels),
        "lowbit scalar": lambda: lowbit.encode(x, levels, isa="scalar"),
        "numpy.searchsorted": lambda: np.searchsorted(cuts, x),
    }
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        tensor, bounds = torch.from_numpy(x), torch.from_numpy(cuts)
        calls["torch.bucketize"] = lambda: torch.bucketize(tensor, bounds, out_int32=True)
    return calls


@pytest.mark.parametrize("k", [16, 256])
@pytest.mark.parametrize("who", ["lowbit", "numpy.searchsorted", "torch.bucketize"])
def test_encode(benchmark, k, who):
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    calls = encoders(x, lowbit.fit_levels(x[:10_000], k, method="gauss").levels)
    if who not in calls:
        pytest.skip("torch is not installed")
    benchmark.group = f"encode, {k} levels"
    with lowbit.threads(1):
        benchmark(calls[who])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("library", [lowbit, reference], ids=["lowbit", "numpy"])
def test_fit(benchmark, method, library):
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    benchmark.group = f"fit_levels_rows, {method}"
    with lowbit.threads(1):
        benchmark(lambda: library.fit_levels_rows(x, 16, method=method))


def encoding(rounds: int) -> None:
    print("\nencode, a million float32 N(0, 1): milliseconds; how many times as fast as each")
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    for k in (4, 8, 16, 32, 256):
        levels = lowbit.fit_levels(x[:10_000], k, method="gauss").levels
        calls = encoders(x, levels)
        expected = calls["numpy.searchsorted"]()
        assert all(np.array_equal(np.asarray(call()), expected) for call in calls.values())
        timing = interleave(calls, rounds, clock=clock_for(1))
        told = f"{k:3} levels  {timing.seconds('lowbit').median * 1e3:.2f} ms"
        for name in list(calls)[1:]:
            told += f"   {name} {timing.seconds(name).median * 1e3:.2f} ms, {timing.ratio('lowbit', name)} x"
        print(told, flush=True)


def fitting(rounds: int) -> None:
    print(
        "\nfit_levels, a million float32 N(0, 1), 16 and 256 levels: milliseconds, and our own sorts of the same numbers"
    )
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    for method in METHODS:
        told = f"{method:10}"
        for k in (16, 256):
            calls = {"sort": sort(x), "fit": lambda k=k, m=method: lowbit.fit_levels(x, k, method=m)}
            timing = interleave(calls, rounds, clock=clock_for(1))
            told += f"  {k}: {timing.seconds('fit').median * 1e3:6.1f} ms, {timing.ratio('sort', 'fit')} sorts"
        print(told, flush=True)
    print("\nfit_levels_rows, 64 rows of 576 float32 N(0, 1), 16 levels: microseconds a row")
    rows = x[: 64 * 576].reshape(64, 576)
    calls = {m: lambda m=m: lowbit.fit_levels_rows(rows, 16, method=m) for m in METHODS}
    timing = interleave(calls, rounds, clock=clock_for(1))
    for method in METHODS:
        print(f"{method:10} {timing.seconds(method).median / 64 * 1e6:7.1f}", flush=True)


def models() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The weights of matrices and kernels, by model; what is not there is told."""
    path = Path(os.environ.get("LOWBIT_DATA", ""), "resnet_cifar10", "resnet20.safetensors")
    if path.is_file():
        from safetensors.numpy import load_file

        yield "ResNet-20", {name: w for name, w in load_file(path).items() if w.ndim > 1}
    else:
        print("no ResNet-20: LOWBIT_DATA=FOLDER, with resnet_cifar10/resnet20.safetensors in it")
    try:
        from minilm import Skip, source

        state = source().state_dict()
    except (ImportError, Skip) as error:
        print(f"no MiniLM: {error}")
        return
    yield "MiniLM", {name: w.numpy() for name, w in state.items() if w.ndim > 1 and w.is_floating_point()}


def errors() -> None:
    """Every method's error over the optimum's on every layer, and that the order holds."""
    for model, weights in models():
        print(
            f"\n{model}, {len(weights)} layers: error of each method over that of the optimum, geometric mean and greatest"
        )
        print("bits  " + "".join(f"{m:>18}" for m in (*METHODS[1:], "better compander")))
        for bits in (2, 3, 4, 5, 6):
            ratios = []
            for name, w in weights.items():
                found = [lowbit.fit_levels(w, 2**bits, method=m).mse for m in METHODS]
                assert found[0] <= found[1] * (1 + 1e-9), (name, bits)
                assert all(found[1] <= other * (1 + 1e-12) for other in found[2:]), (name, bits)
                ratios.append([other / found[0] for other in (*found[1:], min(found[2:4]))])
            table = np.array(ratios)
            means, most = np.exp(np.log(table).mean(0)), table.max(0)
            print(f"{bits:4}  " + "".join(f"{a:>9.3f} {b:>8.3f}" for a, b in zip(means, most, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=["encode", "fit", "errors"])
    args = parser.parse_args()
    settle(1)
    warnings.simplefilter("ignore")
    wanted = args.only or ["encode", "fit", "errors"]
    with lowbit.threads(1):
        if "encode" in wanted:
            encoding(args.rounds)
        if "fit" in wanted:
            fitting(args.rounds)
        if "errors" in wanted:
            errors()


if __name__ == "__main__":
    main()
