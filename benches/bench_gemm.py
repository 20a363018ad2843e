"""`matmul_int8` and `linear` beside their peers and the CPU's limit.

    python benches/bench_gemm.py                        products of the acceptance lines
    python benches/bench_gemm.py --shapes minilm llm_1b --linear --growth
    python benches/bench_gemm.py --shapes --groups      layers of 2 to 4 bits alone, beside their peers
    python benches/bench_gemm.py --shapes --codebook    layers whose codes look up tables, beside the same
    pytest benches/bench_gemm.py --benchmark-only       a table of times

The limit of a product is the longer of two loops timed in turn with it: as many
multiplications in the kernel's own instruction on registers alone, and, for few
rows, reading as many bytes as B has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import limits
import lowbit
import ml_dtypes
import numpy as np
import pytest
from gemm_peers import GROUP_PEERS, PEERS
from limits import Skip
from measure import Shape, Timing, clock_for, cpu_name, interleave, lines, settle, shapes, table

#: Rows up to which reading B can be what bounds a product.
FEW_ROWS = 16

#: Seconds of a turn, at least: Intel is slow for half a millisecond after its wide registers, or its tiles, were
#: at rest.
TURN = 2e-2

#: The peers that environment variables hold to AVX2.
HELD = ("torch._int_mm", "torch oneDNN int8", "numpy floats", "numpy integers")


def operands(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Random codes of the full range, the same for the same shape."""
    rng = np.random.default_rng([shape.m, shape.n, shape.k])
    a = lines((shape.m, shape.k), np.uint8)
    a[...] = rng.integers(0, 256, a.shape, dtype=np.uint8)
    return a, rng.integers(-128, 128, (shape.k, shape.n), dtype=np.int8)


def ours(a: np.ndarray, b: np.ndarray, isa: str | None = None) -> Callable[[], np.ndarray]:
    """`matmul_int8` with B tiled and the result warm."""
    tiled, out = lowbit.tile_matrix(b), lines((len(a), b.shape[1]))
    return lambda: lowbit.matmul_int8(a, tiled, out=out, isa=isa)


def candidates(shape: Shape, held: bool) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """What to time for a shape, each checked against the exact product, and which are no fair
    comparison or are left out, and why."""
    a, b = operands(shape)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    fs: dict[str, Callable[[], Any]] = {"lowbit": ours(a, b)}
    left: dict[str, str] = {}
    for name, make in PEERS.items():
        try:
            f = make(a, b)
            error = np.abs(f() + getattr(f, "correction", 0.0) - exact).max()
            if error > 1e-6 * max(1.0, np.abs(exact).max()):
                left[name] = "its sums are wrong for codes of the full range: timed, not compared"
            elif held and name not in HELD:
                left[name] = "chooses its instruction set for itself: timed, not compared"
            fs[name] = f
        except Skip as e:
            left[name] = str(e)
    # The signed path does the same work for half the peers' users.
    signed = (a.astype(np.int16) - 128).astype(np.int8)
    fs["lowbit s8"] = ours(signed, b)
    return fs, left


def bounds(shape: Shape, threads: int) -> dict[str, Callable[[], None]]:
    """The limit's loops for a shape: empty where this machine has none."""
    try:
        peak = limits.peak_for(lowbit.isa())
    except Skip:
        return {}
    fs = {"limit " + peak.instruction: peak.work(shape.ops, threads)}
    if shape.m <= FEW_ROWS and shape.n * shape.k >= 1 << 16 and threads == 1:
        fs["limit read"] = limits.read(shape.n * shape.k)
    return fs


def product(shape: Shape, rounds: int, threads: int, held: bool) -> dict[str, Any]:
    """Times one product; a row of the table as a dictionary."""
    fs, left = candidates(shape, held)
    loops = bounds(shape, threads)
    # Beside the limit, which is AVX-512's: what tiles could do.
    found = limits.peaks() if loops and lowbit.isa() == "amx" else []
    tiles = {peak.instruction: peak.work(shape.ops, threads) for peak in found if "tile" in peak.instruction}
    fs |= tiles
    timing = interleave({**loops, **fs}, rounds, at_least=TURN, clock=clock_for(threads), warm=True)
    peers = [name for name in fs if not name.startswith("lowbit") and name not in {**left, **tiles}]
    best = min(peers, key=lambda name: timing.seconds(name).median)
    ratio = timing.ratio("lowbit", best)
    gops = {name: shape.ops / timing.seconds(name).median / 1e9 for name in {**loops, **fs}}
    return {
        "shape": str(shape), "gops": gops, "left": left, "best": best,
        "ratio": [ratio.low, ratio.median, ratio.high],
        "share": spread(timing, "lowbit", loops), "share s8": spread(timing, "lowbit s8", loops),
        "share best": spread(timing, best, loops),
    }  # fmt: skip


def spread(timing: Timing, name: str, loops: dict[str, Any]) -> list[float] | None:
    """Quartiles of the share of the limit, or None without loops."""
    if not loops:
        return None
    s = timing.share(name, loops)
    return [s.low, s.median, s.high]


def _quartiles(s: list[float] | None) -> str:
    return "-" if s is None else f"{s[1]:.2f} [{s[0]:.2f} {s[2]:.2f}]"


def layers(shape: Shape) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """A linear layer with bias, floats in and out: `lowbit.linear` and torch's layers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((shape.m, shape.k), dtype=np.float32)
    w = rng.standard_normal((shape.n, shape.k), dtype=np.float32) / np.float32(shape.k**0.5)
    bias = rng.standard_normal(shape.n, dtype=np.float32)
    weight, out = lowbit.quantize_weight(w), np.zeros((shape.m, shape.n), np.float32)
    fs: dict[str, Callable[[], Any]] = {"lowbit linear": lambda: lowbit.linear(x, weight, bias, out=out)}
    left: dict[str, str] = {}
    try:
        import torch
    except ImportError:
        left["torch"] = "not installed"
        return fs, left
    layer = torch.nn.Linear(shape.k, shape.n).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(w))
        layer.bias.copy_(torch.from_numpy(bias))
    half, t = torch.nn.Linear(shape.k, shape.n, dtype=torch.bfloat16).eval(), torch.from_numpy(x)
    t16 = t.bfloat16()

    def no_grad(f: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return f(x)

        return run

    fs["torch fp32"], fs["torch bf16"] = no_grad(layer, t), no_grad(half, t16)
    try:
        from torch.ao.quantization import quantize_dynamic

        dynamic = quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear}, dtype=torch.qint8)
        fs["torch dynamic int8"] = no_grad(dynamic, t)
    except (ImportError, RuntimeError) as e:
        left["torch dynamic int8"] = str(e).splitlines()[0]
    return fs, left


def small_call() -> dict[str, Callable[[], Any]]:
    """One row through a 64 by 64 layer: what a call costs, gradients on and off.

    Raises
    ------
    Skip
        torch is not installed.
    """
    try:
        import torch
        from lowbit.torch import quantize_
    except ImportError as e:
        raise Skip(str(e)) from None
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval()
    quantized = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval()
    quantize_(quantized, lowbit.Int8())
    layer, quantized = layer[0], quantized[0]
    x = torch.randn(1, 64)
    moving = x.clone().requires_grad_()

    def off(f: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return f(x)

        return run

    return {
        "torch, no_grad": off(layer),
        "lowbit, no_grad": off(quantized),
        "torch, grad on": lambda: layer(x),
        "lowbit, grad on": lambda: quantized(x),
        "torch, input wants grad": lambda: layer(moving),
        "lowbit, input wants grad": lambda: quantized(moving),
    }


#: Bits and group sizes of the table.
GROUPS = ((4, 32), (3, 32), (2, 32), (4, 128))


def group_peers(x: np.ndarray, weight: lowbit.GroupedWeight) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The peers of a layer below eight bits, each checked against the float product of its own
    weight, and what is to know of them or why they are left out."""
    fs: dict[str, Callable[[], Any]] = {}
    told: dict[str, str] = {}
    exact = x @ weight.dequantize().T
    for name, make in GROUP_PEERS.items():
        try:
            f = make(x, weight)
            own = getattr(f, "weight", None)
            truth = exact if own is None else x @ own.T
            error = np.linalg.norm(f() - truth) / np.linalg.norm(truth)
        except Skip as e:
            told[name] = f"left out: {e}"
            continue
        except Exception as e:  # a peer that fails is told, and no reason to lose the others
            told[name] = f"left out: {type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"
            continue
        # Rounding to 8 bits costs about a hundredth, to bf16 a third of that, floats nothing.
        if not error < 0.03:
            told[name] = f"left out: {error:.2g} off the product of its own weight"
            continue
        if error < 5e-3:
            told[name] = "activations stay in floats"
        fs[name] = f
    return fs, told


def in_groups(shape: Shape, rounds: int, threads: int) -> tuple[list[list[object]], list[str]]:
    """Layers below eight bits, floats in and out: the share of the limit, and the ratio to lowbit's
    own eight bits and to each peer. The rows, and notes on peers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((shape.m, shape.k), dtype=np.float32)
    w = rng.standard_normal((shape.n, shape.k), dtype=np.float32) / np.float32(shape.k**0.5)
    peak, left_over = limits.peak_for_groups(lowbit.isa())

    def layer(config: lowbit.Int8 | lowbit.Uniform) -> Callable[[], Any]:
        weight, out = lowbit.quantize_weight(w, config), np.zeros((shape.m, shape.n), np.float32)
        return lambda: lowbit.linear(x, weight, out=out)

    rows: list[list[object]] = []
    notes: list[str] = []
    for nbits, group_size in GROUPS:
        config = lowbit.Uniform(nbits, group_size, equalize=False)
        weight = lowbit.quantize_weight(w, config)
        peers, told = group_peers(x, weight)
        notes += [f"{name}, {nbits} bits: {why}" for name, why in told.items()]
        fs = {"lowbit": layer(config), "lowbit int8": layer(lowbit.Int8()), **peers}
        few = shape.m == 1 and threads == 1
        loop = limits.read(weight.tiled.size) if few else peak.work(shape.ops, threads)
        timing = interleave({**fs, "limit": loop}, rounds, at_least=TURN, clock=clock_for(threads), warm=True)
        share = timing.share("lowbit", ["limit"])
        part = 1.0 if few or group_size > 32 else left_over
        best = min(peers, key=lambda name: timing.seconds(name).median, default="-")
        ratio = timing.ratio("lowbit", best) if peers else "-"
        names = ["lowbit", "lowbit int8", *GROUP_PEERS]
        gops = [f"{shape.ops / timing.seconds(name).median / 1e9:.0f}" if name in fs else "-" for name in names]
        shown = _quartiles([share.low / part, share.median / part, share.high / part])
        rows.append([shape, nbits, group_size, shown, timing.ratio("lowbit", "lowbit int8"), ratio, best, *gops])
    return rows, notes


#: Weights with tables: their bits, which codes share a table, and how inputs are taken.
CODEBOOKS: dict[str, lowbit.Codebook] = {
    "4 bits, int8, a table per group": lowbit.Codebook(4, "group", equalize=False),
    "4 bits, int8, one table": lowbit.Codebook(4, equalize=False),
    "3 bits, int8, a table per row": lowbit.Codebook(3, "channel", equalize=False),
    "2 bits, int8, one table": lowbit.Codebook(2, equalize=False),
    "4 bits, floats, a table per group": lowbit.Codebook(4, "group", activation=None, equalize=False),
    "4 bits, floats, a table per row": lowbit.Codebook(4, "channel", activation=None, equalize=False),
    "4 bits, floats, one table": lowbit.Codebook(4, activation=None, equalize=False),
    "3 bits, floats, a table per row": lowbit.Codebook(3, "channel", activation=None, equalize=False),
}


def with_tables(shape: Shape, rounds: int, threads: int) -> tuple[list[list[object]], list[str]]:
    """Layers whose codes look up tables, groups of 64: the share of the limit, which is FMA's
    where inputs are floats; and the time of `Uniform(4, 64)` and of peers in units of lowbit's."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((shape.m, shape.k), dtype=np.float32)
    w = rng.standard_normal((shape.n, shape.k), dtype=np.float32) / np.float32(shape.k**0.5)
    integers, _ = limits.peak_for_groups(lowbit.isa())
    fma = next(
        p
        for p in limits.peaks()
        if p.instruction.startswith("vfmadd") and ("zmm" in p.instruction) == (lowbit.isa() in limits.WIDE)
    )
    peers: dict[str, Callable[[], Any]] = {}
    notes = []
    uniform = lowbit.quantize_weight(w, lowbit.Uniform(4, 64, equalize=False))
    try:
        peers["bitsandbytes NF4"] = GROUP_PEERS["bitsandbytes NF4"](x, uniform)
    except Skip as e:
        notes.append(f"bitsandbytes NF4: left out: {e}")
    try:
        import torch

        tensor, dense = torch.from_numpy(x), torch.from_numpy(w)

        def product() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.linear(tensor, dense)

        peers["torch fp32"] = product
    except ImportError:
        notes.append("torch fp32: left out: not installed")

    def quantized(config: lowbit.Codebook) -> lowbit.CodebookWeight:
        weight = cast(lowbit.CodebookWeight, lowbit.quantize_weight(w, config))
        # Tables of floats as layers of torch have them.
        entries = weight.codebook if config.activation is not None else weight.codebook.astype(ml_dtypes.bfloat16)
        codebook = lines(entries.shape, entries.dtype)
        codebook[...] = entries
        return replace(weight, codebook=codebook)

    def layer(weight: lowbit.GroupedWeight | lowbit.CodebookWeight) -> Callable[[], Any]:
        out = np.zeros((shape.m, shape.n), np.float32)
        return lambda: lowbit.linear(x, weight, out=out)

    rows: list[list[object]] = []
    for name, config in CODEBOOKS.items():
        few = shape.m == 1 and threads == 1
        peak = integers if config.activation is not None else fma
        weight = quantized(config)
        fs = {"lowbit": layer(weight), "Uniform(4, 64)": layer(uniform), **peers}
        loop = limits.read(weight.tiled.nbytes + weight.codebook.nbytes) if few else peak.work(shape.ops, threads)
        timing = interleave({**fs, "limit": loop}, rounds, at_least=TURN, clock=clock_for(threads), warm=True)
        share = timing.share("lowbit", ["limit"])
        shown = _quartiles([share.low, share.median, share.high])
        speed = f"{shape.ops / timing.seconds('lowbit').median / 1e9:.0f}"
        bound = "reading" if few else peak.instruction
        ratios = [
            timing.ratio("lowbit", other) if other in fs else "-" for other in ("Uniform(4, 64)", *PEERS_OF_TABLES)
        ]
        rows.append([shape, name, speed, shown, bound, *ratios])
    return rows, notes


#: What `with_tables` times beside lowbit.
PEERS_OF_TABLES = ("torch fp32", "bitsandbytes NF4")


def growth(rounds: int, threads: int) -> list[list[object]]:
    """Squares of growing size: GOP/s and share, to see where calls and caches show."""
    rows = []
    for size in (16, 32, 64, 128, 256, 512, 1024, 2048):
        shape = Shape(size, size, size, "square")
        a, b = operands(shape)
        loops, f = bounds(shape, threads), ours(a, b)
        timing = interleave({**loops, "lowbit": f}, rounds, clock=clock_for(threads), warm=True)
        seconds = timing.seconds("lowbit").median
        row = [size, f"{seconds * 1e6:.1f}", f"{shape.ops / seconds / 1e9:.0f}"]
        rows.append([*row, _quartiles(spread(timing, "lowbit", loops))])
    return rows


# --- pytest ---


def _small(shape: Shape, benchmark: Any) -> Shape:
    """The shape itself, or, where nothing is timed, one of the same kind that takes no time."""
    if benchmark.enabled:
        return shape
    return Shape(min(shape.m, 5), min(shape.n, 48), min(shape.k, 64), shape.name)


@pytest.mark.parametrize("who", ["lowbit", *PEERS])
@pytest.mark.parametrize("shape", shapes("acceptance"), ids=str)
def test_matmul_int8(benchmark, shape, who):
    shape = _small(shape, benchmark)
    a, b = operands(shape)
    with lowbit.threads(1):
        try:
            f = ours(a, b) if who == "lowbit" else PEERS[who](a, b)
        except Skip as e:
            pytest.skip(str(e))
        benchmark.group = f"matmul_int8 {shape}"
        benchmark.extra_info["isa"] = lowbit.isa()
        got = benchmark(f)
    note = getattr(f, "note", None)
    if note:
        pytest.skip(note)
    exact = a.astype(np.int64) @ b.astype(np.int64) if shape.ops < 1e6 else None
    if exact is not None:
        np.testing.assert_allclose(got + getattr(f, "correction", 0), exact, rtol=1e-6)


@pytest.mark.parametrize("who", ["lowbit linear", "torch fp32", "torch bf16", "torch dynamic int8"])
@pytest.mark.parametrize("shape", shapes("minilm"), ids=str)
def test_linear(benchmark, shape, who):
    shape = _small(shape, benchmark)
    with lowbit.threads(1):
        fs, left = layers(shape)
        if who not in fs:
            pytest.skip(left.get(who, "torch is not installed"))
        benchmark.group = f"linear {shape}"
        assert benchmark(fs[who]).shape == (shape.m, shape.n)


@pytest.mark.parametrize("who", GROUP_PEERS)
@pytest.mark.parametrize("nbits", [4, 3, 2])
def test_groups(nbits, who):
    """Each peer gives the product of its own weight, on one row and on more."""
    rng = np.random.default_rng(0)
    weight = lowbit.quantize_weight(
        rng.standard_normal((64, 256), dtype=np.float32), lowbit.Uniform(nbits, equalize=False)
    )
    with lowbit.threads(1):
        for m in (1, 5):
            x = rng.standard_normal((m, 256), dtype=np.float32)
            try:
                f = GROUP_PEERS[who](x, weight)
            except Skip as e:
                pytest.skip(str(e))
            own = getattr(f, "weight", None)
            truth = x @ (weight.dequantize() if own is None else own).T
            assert np.linalg.norm(f() - truth) < 0.03 * np.linalg.norm(truth)


@pytest.mark.parametrize("grad", ["no_grad", "grad on", "input wants grad"])
@pytest.mark.parametrize("who", ["lowbit", "torch"])
def test_small_call(benchmark, who, grad):
    try:
        fs = small_call()
    except Skip as e:
        pytest.skip(str(e))
    benchmark.group = f"1x64x64 {grad}"
    assert benchmark(fs[f"{who}, {grad}"]).shape == (1, 64)


@pytest.mark.parametrize("model", ["acceptance", "minilm", "resnet20", "resnet50", "llm_1b", "llm_7b"])
def test_shapes_are_read(model):
    assert all(shape.ops > 0 and shape.name for shape in shapes(model))


def test_limits_run():
    try:
        found = limits.peaks()
    except Skip as e:
        pytest.skip(str(e))
    for peak in found:
        peak.work(10 * peak.ops, 2)()
    limits.read(4096)()
    limits.copy(4096)()


# --- command line ---


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="*", default=["acceptance"], help="files of shapes/, without .txt; none: no int8 products"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--linear", action="store_true", help="linear layers with floats in and out too")
    parser.add_argument("--groups", action="store_true", help="layers of 2 to 4 bits too")
    parser.add_argument("--codebook", action="store_true", help="layers whose codes look up tables too")
    parser.add_argument("--growth", action="store_true", help="squares of growing size too")
    parser.add_argument("--avx2", action="store_true", help="hold lowbit, torch and oneDNN to AVX2")
    parser.add_argument("--quick", action="store_true", help="5 rounds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    settle(args.threads, avx2=args.avx2)
    lowbit.set_num_threads(args.threads)
    rounds, clock = 5 if args.quick else args.rounds, clock_for(args.threads)
    told: dict[str, Any] = {"cpu": cpu_name(), "isa": lowbit.isa(), "threads": args.threads, "rounds": rounds}
    told["clock"] = clock.__name__
    try:
        import torch

        torch.set_num_threads(args.threads)
        told["torch"] = f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    except ImportError:
        pass
    say = (lambda *_: None) if args.json else (lambda *text: print(*text, flush=True))
    say("; ".join(f"{key} {value}" for key, value in told.items()))
    if args.avx2:
        say("Held to AVX2: lowbit, torch, MKL, oneDNN. The other peers choose for themselves.")
    told["products"] = []
    for model in args.shapes:
        rows = []
        for shape in shapes(model):
            row = product(shape, rounds, args.threads, args.avx2)
            told["products"].append(row)
            rows.append(row)
            print(f"{shape}: done", file=sys.stderr, flush=True)
        say(f"\n{model}, GOP/s: u8 by s8, B packed beforehand, results warm\n")
        names = list(dict.fromkeys(name.split(" (")[0] for row in rows for name in row["gops"]))
        head = ["M x N x K", "share of limit", "s8", "ratio to best peer", "best peer", "its share", *names]
        say(table(head, [
            [row["shape"], _quartiles(row["share"]), _quartiles(row["share s8"]), _quartiles(row["ratio"]),
             row["best"], _quartiles(row["share best"]),
             *(f"{row['gops'][name]:.0f}" if name in row["gops"] else "-" for name in names)]
            for row in rows
        ]))  # fmt: skip
        for name, why in sorted({(n, w) for row in rows for n, w in row["left"].items()}):
            say(f"\n- {name}: {why}")
    if args.linear:
        told["linear"] = []
        rows = []
        for shape in shapes("minilm"):
            fs, _ = layers(shape)
            timing = interleave(fs, rounds, at_least=TURN, clock=clock, warm=True)
            ratios = {name: timing.ratio("lowbit linear", name) for name in fs}
            microseconds = {name: timing.seconds(name).median * 1e6 for name in fs}
            told["linear"].append({"shape": str(shape), "us": microseconds})
            times = [f"{u:.1f}" for u in microseconds.values()]
            rows.append([shape, *times, *(str(ratios[n]) for n in list(fs)[1:])])
        names = list(fs)
        say("\nLinear layers with bias, floats in and out, microseconds; then lowbit's speed against each\n")
        say(table(["M x N x K", *names, *(f"vs {n}" for n in names[1:])], rows))
        try:
            fs = small_call()
            timing = interleave(fs, rounds, at_least=5e-3, clock=clock, warm=True)
            cost = []
            for grad in ("no_grad", "grad on", "input wants grad"):
                mine, theirs = f"lowbit, {grad}", f"torch, {grad}"
                times = [f"{timing.seconds(who).median * 1e6:.2f}" for who in (mine, theirs)]
                cost.append([grad, *times, timing.ratio(theirs, mine)])
            told["call"] = {name: timing.seconds(name).median * 1e6 for name in fs}
            say("\nOne call at 1x64x64 through torch, microseconds; its cost in torch's fp32 layers\n")
            say(table(["gradients", "lowbit", "torch fp32", "cost"], cost))
        except Skip as e:
            say(f"\n- left out: one call at 1x64x64: {e}")
    if args.groups:
        rows, notes = [], []
        for shape in [*shapes("acceptance"), Shape(16, 4096, 4096, "few")]:
            more, said = in_groups(shape, rounds, args.threads)
            rows += more
            notes += said
            print(f"{shape}: done", file=sys.stderr, flush=True)
        told["groups"] = {"rows": rows, "notes": list(dict.fromkeys(notes))}
        say("\nLayers below eight bits, floats in and out; 1 row: the limit is reading the weight\n")
        head = ["M x N x K", "bits", "group", "share of limit", "vs lowbit int8", "ratio to best peer", "best peer"]
        say(table([*head, *(f"{name} GOP/s" for name in ("lowbit", "lowbit int8", *GROUP_PEERS))], rows))
        for note in dict.fromkeys(notes):
            say(f"\n- {note}")
    if args.codebook:
        rows, notes = [], []
        for shape in (Shape(512, 3072, 768, "up"), Shape(1, 4096, 4096, "decode")):
            more, said = with_tables(shape, rounds, args.threads)
            rows += more
            notes += said
            print(f"{shape}: done", file=sys.stderr, flush=True)
        told["codebook"] = {"rows": rows, "notes": list(dict.fromkeys(notes))}
        say("\nLayers whose codes look up tables, floats in and out, groups of 64; times in units of lowbit's\n")
        head = ["M x N x K", "weights", "GOP/s", "share of limit", "limit"]
        say(table([*head, *(f"{name}" for name in ("Uniform(4, 64)", *PEERS_OF_TABLES))], rows))
        for note in dict.fromkeys(notes):
            say(f"\n- {note}")
    if args.growth:
        rows = growth(rounds, args.threads)
        told["growth"] = rows
        say("\nSquares, lowbit alone\n")
        say(table(["size", "us", "GOP/s", "share of limit"], rows))
    if args.json:
        print(json.dumps(told, default=str))


if __name__ == "__main__":
    main()
