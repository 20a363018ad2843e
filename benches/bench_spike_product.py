"""`spike_matmul` and `spike_conv2d` beside the dense products and convolutions that do the same work.

    python benches/bench_spike_product.py --rounds 15       products and convolutions, one thread
    python benches/bench_spike_product.py --avx2            held to AVX2
    python benches/bench_spike_product.py --forms           the other weights and inputs too
    pytest benches/bench_spike_product.py --benchmark-only  a table of times

A dense product multiplies all inputs: `matmul_int8` with a tiled weight on the same bytes, 0 and 1. The
bars are for 8-bit weights, with AVX-512 VNNI and with AVX2 alone. Of a convolution the dense product is that of
its windows, which were gathered beforehand. The limit is as many additions as the spikes ask for (of the
inputs that did not spike, where those are fewer) in the kernel's own instructions on registers alone; with AVX-512
rows that share many inputs add them once.
torch takes the spikes as a CSR matrix of float32, made beforehand, and the weight as float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import limits
import lowbit
import numpy as np
import pytest
from limits import Skip
from measure import clock_for, cpu_name, interleave, lines, settle, table

#: Per cent of the inputs that spike, and how many times as fast as the dense product ours has to be, for the
#: first shape; for the others it is printed. With AVX-512, whose dense product is the faster one, and with AVX2.
BARS = {2: (1.0, 1.0), 5: (5.5, 8.0), 10: (3.0, 4.0), 30: (1.0, 1.0), 60: (1.0, 1.0)}
#: M, K, N
SHAPES = ((512, 1024, 1024), (512, 512, 512), (1, 4096, 4096), (16, 1024, 1024))
#: Images, height and width, input and output channels; kernels of 3 by 3, padding of 1.
CONVS = ((1, 32, 64, 64), (4, 16, 128, 256))

Candidates = dict[str, Callable[[], Any]]


def spikes_of(shape: tuple[int, ...], percent: int) -> np.ndarray:
    """Spikes at random, the same for the same shape."""
    return (np.random.default_rng([*shape, percent]).random(shape) < percent / 100).astype(np.uint8)


def codes_of(shape: tuple[int, ...], nbits: int = 8) -> np.ndarray:
    half = 1 << (nbits - 1)
    return np.random.default_rng(shape).integers(-half, half, shape).astype(np.int8)


def limit(additions: int) -> tuple[Candidates, int]:
    """The loop of so many additions, and how often it does them, so that its call costs nothing."""
    times = max(1, round(1e8 / max(additions, 1)))
    try:
        register = "zmm" if lowbit.isa() in limits.WIDE else "ymm"
        peak = next(p for p in limits.peaks() if p.instruction == f"2 vpaddw + vpsrlw {register}")
        return {"limit": peak.work(max(additions, 1) * times)}, times
    except (Skip, StopIteration):
        return {}, times


def products(shape: tuple[int, int, int], percent: int, forms: bool) -> Candidates:
    """What to time for a product, each checked against the dense one."""
    m, k, n = shape
    x, w = spikes_of((m, k), percent), codes_of((k, n))
    weight, dense, bits = lowbit.tile_spike_weight(w), lowbit.tile_matrix(w), lowbit.pack_codes(x, 1)
    out = lines((m, n))
    fs: Candidates = {
        "ours": partial(lowbit.spike_matmul, x, weight, out=out),
        "dense": partial(lowbit.matmul_int8, x, dense, out=lines((m, n))),
        "packed": partial(lowbit.spike_matmul, bits, weight, packed=True, out=out),
    }
    if forms:
        for nbits in (4, 2):
            few = lowbit.tile_spike_weight(codes_of((k, n), nbits), nbits)
            fs[f"{nbits} bits"] = partial(lowbit.spike_matmul, x, few, out=out)
        floats = lowbit.tile_spike_weight(w.astype(np.float32))
        fs["float32"] = partial(lowbit.spike_matmul, x, floats, out=lines((m, n), np.float32))
        counts = x * np.random.default_rng(1).integers(1, 5, x.shape, np.uint8)
        fs["counts to 4"] = partial(lowbit.spike_matmul, counts, weight, counts=True, out=out)
    try:
        import torch

        torch_w = torch.from_numpy(w.astype(np.float32))
        csr, floats_in = torch.from_numpy(x.astype(np.float32)).to_sparse_csr(), torch.from_numpy(x.astype(np.float32))
        fs["torch CSR"] = lambda: torch.sparse.mm(csr, torch_w)
        fs["torch fp32"] = lambda: floats_in @ torch_w
    except ImportError:
        pass
    want = lowbit.matmul_int8(x, dense)
    assert all((np.asarray(fs[name]()) == want).all() for name in fs if name in ("ours", "packed", "torch CSR"))
    return fs


def convolutions(shape: tuple[int, int, int, int], percent: int) -> Candidates:
    """What to time for a convolution."""
    images, size, c, o = shape
    x, w = spikes_of((images, size, size, c), percent), codes_of((3, 3, c, o))
    weight, ones = lowbit.tile_spike_weight(w), ((1, 1), (1, 1))
    out = lines((images, size, size, o))
    fs: Candidates = {"ours": partial(lowbit.spike_conv2d, x, weight, padding=ones, out=out)}
    filters = np.ascontiguousarray(w.transpose(3, 0, 1, 2))
    assert (fs["ours"]() == lowbit.conv2d(x, filters, padding=ones)).all()
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), *ones, (0, 0))), (3, 3), (1, 2))
    rows = np.ascontiguousarray(windows.transpose(0, 1, 2, 4, 5, 3)).reshape(-1, 9 * c)
    dense = lowbit.tile_matrix(w.reshape(-1, o))
    # Without what gathering the windows costs.
    fs["dense"] = partial(lowbit.matmul_int8, rows, dense, out=lines((len(rows), o)))
    try:
        import torch

        conv = torch.nn.Conv2d(c, o, 3, padding=1, bias=False).requires_grad_(False)
        conv.weight.copy_(torch.from_numpy(w.transpose(3, 2, 0, 1).astype(np.float32)))
        conv = conv.to(memory_format=torch.channels_last)
        given = torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2)
        fs["torch fp32"] = lambda: conv(given)
    except ImportError:
        pass
    return fs


def row(
    name: str, fs: Candidates, percent: int, additions: int, rounds: int, threads: int, barred: bool = False
) -> dict[str, Any]:
    """Times candidates in turn: a row of the table."""
    loops, times = limit(additions) if threads == 1 else ({}, 1)
    timing = interleave(fs | loops, rounds, clock=clock_for(threads), warm=True)
    told: dict[str, Any] = {"product": name, "spikes": f"{percent} %", "ms": 1e3 * timing.seconds("ours").median}
    told["vs dense"] = timing.ratio("ours", "dense")
    bar = BARS[percent][lowbit.isa() not in limits.WIDE]
    told["bar"] = f"{bar} {'held' if told['vs dense'].median >= bar else 'missed'}" if barred else "-"
    told["share of limit"] = timing.share("ours", loops, times) if loops else "-"
    for other in fs:
        if other not in ("ours", "dense"):
            told[f"vs {other}"] = timing.ratio("ours", other)
    return told


def measured(rounds: int, threads: int, forms: bool) -> list[list[dict[str, Any]]]:
    """The rows of the tables."""
    tables: list[list[dict[str, Any]]] = [[], []]
    for shape in SHAPES:
        for percent in BARS:
            m, k, n = shape
            spikes = int(spikes_of((m, k), percent).sum(dtype=np.int64))
            additions = min(spikes, m * k - spikes) * n
            name = f"{m}x{k}x{n}"
            fs, barred = products(shape, percent, forms), shape == SHAPES[0]
            tables[0].append(row(name, fs, percent, additions, rounds, threads, barred))
            print(f"{name}, {percent} %: done", file=sys.stderr, flush=True)
    for conv in CONVS:
        for percent in BARS:
            images, size, c, o = conv
            x = spikes_of((images, size, size, c), percent)
            weight = lowbit.tile_spike_weight(np.zeros((3, 3, c, o), np.int8))
            additions = lowbit.spike_operations(x, weight, padding=((1, 1), (1, 1)))
            additions = min(additions, images * size * size * 9 * c * o - additions)
            name = f"{images}x{size}x{size}x{c}, 3x3, {o}"
            tables[1].append(row(name, convolutions(conv, percent), percent, additions, rounds, threads))
            print(f"{name}, {percent} %: done", file=sys.stderr, flush=True)
    return tables


@pytest.mark.parametrize("percent", BARS)
@pytest.mark.parametrize("name", ["ours", "dense", "packed", "torch CSR"])
def test_product(benchmark, name, percent):
    fs = products(SHAPES[0], percent, False)
    if name not in fs:
        pytest.skip("no torch")
    benchmark(fs[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--forms", action="store_true", help="the other weights and inputs too")
    parser.add_argument("--avx2", action="store_true", help="lowbit and torch held to AVX2")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    settle(args.threads, avx2=args.avx2)
    lowbit.set_num_threads(args.threads)
    told: dict[str, Any] = {"cpu": cpu_name(), "isa": lowbit.isa(), "threads": args.threads, "rounds": args.rounds}
    try:
        import torch

        torch.set_num_threads(args.threads)
        told["torch"] = f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    except ImportError:
        pass
    tables = measured(args.rounds, args.threads, args.forms)
    if args.json:
        print(json.dumps(told | {"rows": [r for rows in tables for r in rows]}, default=str))
        return
    print("; ".join(f"{key} {value}" for key, value in told.items()))
    for rows in tables:
        head = list(rows[0])
        cells = [[f"{v:.3f}" if isinstance(v, float) and h == "ms" else v for h, v in r.items()] for r in rows]
        print("\n" + table(head, cells))


if __name__ == "__main__":
    main()
