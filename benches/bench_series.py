"""Series: layers and models of `lowbit.Series` beside `Int8` and floats, `expand` beside a copy, terms in processes.

    python benches/bench_series.py                          everything; ResNet-20 with --data FOLDER or LOWBIT_DATA=FOLDER
    python benches/bench_series.py --only layers expand     parts of it
    pytest benches/bench_series.py --benchmark-only         times alone

Parts: `layers`, linear layers with floats in and out; `minilm`, a sentence encoder, its speed and the ten
nearest neighbours kept; `resnet`, ResNet-20 beside torch's fp32; `expand`, arrays; `processes`, what a forward
pass of ResNet-20 with its terms in 1, 2 and 4 processes consists of.
Two terms of 4 bits by two are one product of 8 bits: there the bars are 0.9 of Int8's speed, and 0.97 of
the neighbours. Triangular sums and three terms do not merge into one product and have no bar.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from statistics import median
from typing import Any

import limits
import lowbit
import minilm
import numpy as np
import pytest
from bench_integer import BATCHES, folder
from integer_peers import PEERS, Candidate, Source, channels_last
from limits import Skip
from lowbit import reference
from measure import Spread, clock_for, cpu_name, interleave, settle, table

PARTS = ("layers", "minilm", "resnet", "expand", "processes")

BASE = "Int8"
TWO = "Series 2x2"
CONFIGS: dict[str, lowbit.config.Config] = {
    BASE: lowbit.Int8(),
    TWO: lowbit.Series(4, 2, 4, 2),
    "Series 2x2, triangular": lowbit.Series(4, 2, 4, 2, triangular=True),
    "Series 3x3": lowbit.Series(4, 3, 4, 3),
}
SPEED_BAR, NEIGHBOURS_BAR = 0.9, 0.97

ROWS = 1, 64, 512
#: Inputs and outputs.
LAYERS = (384, 1536), (1536, 384), (768, 3072)


def holds(value: float, bar: float) -> str:
    """A value beside its bar."""
    return f"{'yes' if value >= bar else 'no'}, {value:.2f}"


# --- layers ---


def layer(k: int, n: int, config: lowbit.config.Config | None) -> Any:
    """A linear layer in a model; None: in floats."""
    import torch
    from lowbit.torch import quantize_

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(k, n)).eval().requires_grad_(False)
    if config is not None:
        quantize_(model, config)
    return model


def layers(rounds: int, threads: int) -> list[dict[str, Any]]:
    """Times linear layers: rows of the table as dictionaries."""
    import torch

    rows = []
    for k, n in LAYERS:
        models = {name: layer(k, n, config) for name, config in {**CONFIGS, "torch fp32": None}.items()}
        for m in ROWS:
            x = torch.randn(m, k, generator=torch.Generator().manual_seed(m))
            fs = {name: partial(model, x) for name, model in models.items()}
            with torch.no_grad():
                timing = interleave(fs, rounds, at_least=2e-3, clock=clock_for(threads), warm=True)
            rows.append({
                "shape": f"{m}x{n}x{k}",
                "us": {name: timing.seconds(name).median * 1e6 for name in fs},
                "ratios": {name: timing.ratio(name, BASE) for name in fs},
            })  # fmt: skip
        print(f"{k} to {n}: done", file=sys.stderr, flush=True)
    return rows


# --- MiniLM ---


@cache
def topics() -> list[str]:
    from lowbit.cli.texts import help_topics

    return help_topics(640)


def encoder(config: lowbit.config.Config | None) -> minilm.Encoder:
    """The sentence encoder of the other benchmarks; None: in floats."""
    from lowbit.torch import quantize_

    module = minilm.encoder_module()
    note = ""
    if config is not None:
        report = quantize_(module, config)
        note = f"{len(report.quantized)} layers, {len(report.fused)} fused"
    return minilm.torch_encoder(module, note)


def full_batch(count: int = minilm.BATCH) -> tuple[np.ndarray, np.ndarray]:
    """Texts that fill 64 tokens."""
    words = " ".join(topics()).split()
    return minilm.batches([" ".join(words[i * 80 : i * 80 + 80]) for i in range(count)], batch=count)[0]


#: In the encoder's speed table; the others' fidelity alone would take minutes.
ENCODERS = (BASE, TWO)


def encoders(rounds: int, threads: int) -> list[dict[str, Any]]:
    """Times MiniLM and counts neighbours: rows of the table as dictionaries."""
    found = {"torch fp32": encoder(None), **{name: encoder(CONFIGS[name]) for name in ENCODERS}}
    embeddings = {name: minilm.encode_all(one, topics()) for name, one in found.items()}
    exact = embeddings["torch fp32"]
    batch, one = full_batch(), minilm.batches(["how do I open a file and read its lines, one by one?"], 16, 1)[0]
    clock = clock_for(threads)
    many = interleave({name: partial(e.run, *batch) for name, e in found.items()}, rounds, clock=clock)
    single = interleave({name: partial(e.run, *one) for name, e in found.items()}, rounds, at_least=0.02, clock=clock)
    rows = []
    for name, e in found.items():
        kept, half = minilm.neighbours_kept(embeddings[name], exact)
        rows.append({
            "name": name, "sentences": minilm.BATCH / many.seconds(name).median, "ratio": many.ratio(name, BASE),
            "one ms": single.seconds(name).median * 1e3, "one ratio": single.ratio(name, BASE),
            "kept": kept, "kept95": half, "cosine": float((embeddings[name] * exact).sum(1).mean()), "note": e.note,
        })  # fmt: skip
    return rows


# --- ResNet-20 ---


@cache
def source(data: str | None) -> Source:
    """ResNet-20 in floats, and images."""
    try:
        import torch
        from lowbit.models.resnet import load_resnet, normalized
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    model = load_resnet(folder(data, "resnet_cifar10", "resnet20.safetensors"))
    with np.load(folder(data, "cifar10", "test_first5000_jpeg.npz")) as z:
        return Source(model, normalized(torch.from_numpy(z["x"][: max(BATCHES)])).numpy())


def in_series(config: lowbit.config.Config, source: Source, batch: int) -> Candidate:
    """The network on series, channels last."""
    import copy

    import torch
    from lowbit.torch import quantize_

    net, given = copy.deepcopy(source.model), channels_last(batch)
    quantize_(net, config)
    x = torch.from_numpy(given)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return net(x).numpy()

    return Candidate(given, run)


NETWORKS: dict[str, Callable[[Source, int], Candidate]] = {
    **{name: partial(in_series, config) for name, config in CONFIGS.items() if name != BASE},
    "Series 2x2, feedback": partial(in_series, lowbit.Series(4, 2, 4, 2, feedback=True)),
    **{name: PEERS[name] for name in ("torch fp32", "torch fp32 compiled")},
}


def networks(data: str | None, rounds: int, quick: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Times ResNet-20: rows of the table as dictionaries, and who was left out, and why."""
    start = source(data)
    built: dict[str, dict[int, Candidate]] = {}
    left: dict[str, str] = {}
    for name, make in NETWORKS.items():
        if quick and "compiled" in name:
            left[name] = "--quick"
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr):
                made = {batch: make(start, batch) for batch in BATCHES}
                for batch, candidate in made.items():
                    candidate.given[:] = start.calibration[:batch]
                    candidate.run()  # compiles
        except Exception as e:  # no compiler here, or one that fails
            left[name] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"
            continue
        built[name] = made
        print(f"{name}: built", file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = [{"name": name} for name in built]
    for batch in BATCHES:
        fs = {name: by_batch[batch].run for name, by_batch in built.items()}
        timing = interleave(fs, rounds, at_least=5e-3, clock=clock_for(1), warm=True)
        for row in rows:
            row[f"images/s, {batch}"] = batch / timing.seconds(row["name"]).median
            for base in NETWORKS:
                row[f"vs {base}, {batch}"] = timing.ratio(row["name"], base) if base in built else "-"
    return rows, left


# --- expand ---

SIZES = 1 << 10, 1 << 14, 1 << 18, 1 << 22
#: Bits and terms at one size.
FORMS = (4, 1), (4, 2), (4, 4), (4, 8), (2, 2), (8, 2), (8, 4)
#: Beyond so many values the reference takes seconds.
REFERENCE = 1 << 18


def floats(size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size // 256, 256), dtype=np.float32)


def expanded(size: int, bits: int, terms: int, rounds: int, threads: int) -> dict[str, Any]:
    """Times `lowbit.expand` of rows of 256, each with its own scale.

    It reads four bytes a value and writes one a term; a copy of half as many reads and writes the same.
    """
    x, rows = floats(size), lowbit.PerAxis(0)
    moved = size * (4 + terms)
    times = max(1, (1 << 20) // moved)
    fs: dict[str, Callable[[], object]] = {"lowbit": partial(lowbit.expand, x, bits, terms, granularity=rows)}
    with contextlib.suppress(Skip):
        fs["copy"] = limits.copy(moved // 2, times)
    if size <= REFERENCE:
        fs["reference"] = partial(reference.expand, x, bits, terms, granularity=rows)
    timing = interleave(fs, rounds, clock=clock_for(threads), warm=True)
    seconds = timing.seconds("lowbit").median
    return {
        "values": size, "bits": bits, "terms": terms, "us": seconds * 1e6, "GB/s": moved / seconds / 1e9,
        "copy GB/s": moved * times / timing.seconds("copy").median / 1e9 if "copy" in fs else None,
        "share": timing.share("lowbit", ["copy"], times) if "copy" in fs else None,
        "ns": seconds / size * 1e9,
        "ratio": timing.ratio("lowbit", "reference") if "reference" in fs else None,
    }  # fmt: skip


# --- processes ---

RANKS = 1, 2, 4
#: Seconds after which processes are killed.
LIMIT = 120.0


@dataclass
class Parts:
    """Of one process: seconds of each forward pass, of them in AllReduce, and of the CPU, gloo's thread with
    them; bytes that each pass reduces."""

    whole: list[float]
    reduced: list[float]
    cpu: list[float]
    bytes: int
    calls: int
    same: bool


def resnet20(config: lowbit.Series) -> Any:
    """With random weights: times are the same."""
    import torch
    from lowbit.models.resnet import ResNet
    from lowbit.torch import quantize_

    torch.manual_seed(0)
    model = ResNet(3).eval().requires_grad_(False)
    quantize_(model, config)
    return model


def one_process(rank: int, ranks: int, path: str, batch: int, rounds: int, config: lowbit.Series, answer: Any) -> None:
    """In a process of its own."""
    import torch
    import torch.distributed as dist
    from lowbit.methods.series import distribute_

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the script is on one core, these are on all
    torch.set_num_threads(1)
    lowbit.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    patience = timedelta(seconds=LIMIT)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=ranks, timeout=patience)
    model = resnet20(config)
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = model(x)
    shares = distribute_(model)
    found = Parts([], [], [], 0, 0, torch.equal(model(x), exact))
    for _ in range(rounds):
        dist.barrier()
        before, size, calls = shares.seconds, shares.bytes, shares.calls
        cpu, start = time.process_time(), time.perf_counter()
        model(x)
        found.whole.append(time.perf_counter() - start)
        found.cpu.append(time.process_time() - cpu)
        found.reduced.append(shares.seconds - before)
        found.bytes, found.calls = shares.bytes - size, shares.calls - calls
    dist.destroy_process_group()
    answer.send(found)


def in_processes(ranks: int, batch: int, rounds: int, config: lowbit.Series) -> list[Parts]:
    """What each of the processes measured.

    Raises
    ------
    RuntimeError
        One gave no answer in time.
    """
    context, found, started = multiprocessing.get_context("spawn"), [], []
    with tempfile.TemporaryDirectory() as place:
        try:
            for rank in range(ranks):
                ours, theirs = context.Pipe()
                args = (rank, ranks, f"{place}/met", batch, rounds, config, theirs)
                process = context.Process(target=one_process, args=args, daemon=True)
                process.start()
                theirs.close()
                started.append((process, ours))
            end = time.monotonic() + LIMIT
            for rank, (_, ours) in enumerate(started):
                try:
                    answered = ours.poll(max(0.0, end - time.monotonic()))
                    found.append(ours.recv() if answered else None)
                except EOFError:
                    found.append(None)
                if found[-1] is None:
                    raise RuntimeError(f"process {rank} of {ranks} gave no answer")
        finally:
            for process, ours in started:
                process.join(0 if len(found) < ranks or None in found else 5)
                process.kill()
                process.join()
                ours.close()
    return found


def parts_of(ranks: int, batch: int, rounds: int, name: str) -> dict[str, Any]:
    """A row of the table: medians of the passes, each pass as long as its slowest process."""
    config = CONFIGS[name]
    assert isinstance(config, lowbit.Series)
    found = in_processes(ranks, batch, rounds, config)
    passes = range(len(found[0].whole))
    computed = [[p.whole[i] - p.reduced[i] for p in found] for i in passes]
    reduced = [[p.reduced[i] for p in found] for i in passes]
    return {
        "config": name, "processes": ranks, "batch": batch, "same": all(p.same for p in found),
        "whole": median(max(p.whole[i] for p in found) for i in passes),
        "computing": median(map(max, computed)), "CPU": median(sum(p.cpu[i] for p in found) for i in passes),
        # Who is done first waits for the others: the least of the processes' is what AllReduce itself takes.
        "AllReduce": median(map(min, reduced)), "AllReduce, most": median(map(max, reduced)),
        "calls": found[0].calls, "bytes": found[0].bytes,
    }  # fmt: skip


def undistributed(batch: int, rounds: int, config: lowbit.Series) -> tuple[float, float]:
    """Seconds of a pass in this process: by merged products, and by each product of terms for itself."""
    import torch
    from lowbit.methods.series import abelian_mul

    model = resnet20(config)
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fs = {"merged": partial(model, x), "apart": partial(abelian_mul(model, 1), x)}
    timing = interleave(fs, rounds)
    return timing.seconds("merged").median, timing.seconds("apart").median


# --- pytest ---


@contextlib.contextmanager
def one_thread() -> Any:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with lowbit.threads(1), torch.no_grad():
            yield torch
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("m", ROWS)
def test_layer(benchmark, m, name):
    k, n = LAYERS[0] if benchmark.enabled else (64, 48)
    with one_thread() as torch:
        x = torch.randn(m if benchmark.enabled else min(m, 5), k)
        benchmark.group = f"linear {m}x{n}x{k}"
        y = benchmark(layer(k, n, CONFIGS[name]), x)
        exact = layer(k, n, None)(x)
        assert (y - exact).norm() < (0.2 if "triangular" in name else 0.03) * exact.norm()


@pytest.mark.parametrize("name", ENCODERS)
def test_minilm(benchmark, name):
    with one_thread():
        try:
            made, (ids, mask) = encoder(CONFIGS[name]), full_batch(minilm.BATCH if benchmark.enabled else 2)
        except Skip as e:
            pytest.skip(str(e))
        benchmark.group = "MiniLM 64x64 tokens, one thread"
        embedding = benchmark(made.run, ids, mask)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-2)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", [name for name in NETWORKS if "compiled" not in name])
def test_resnet(benchmark, name, batch):
    with one_thread() as torch:
        try:
            start = source(None)
        except Skip as e:
            pytest.skip(str(e))
        batch = batch if benchmark.enabled else min(batch, 4)
        candidate = NETWORKS[name](start, batch)
        candidate.given[:] = x = start.calibration[:batch]
        benchmark.group = f"ResNet-20, {batch} images"
        logits = benchmark(candidate.run)
        exact = start.model(torch.from_numpy(x)).numpy()
    assert np.linalg.norm(logits - exact) < 0.2 * np.linalg.norm(exact)


@pytest.mark.parametrize(("bits", "terms"), FORMS)
def test_expand(benchmark, bits, terms):
    x = floats(1 << 22 if benchmark.enabled else 1 << 10)
    benchmark.group = f"expand {x.size} values"
    with lowbit.threads(1):
        series = benchmark(partial(lowbit.expand, x, bits, terms, granularity=lowbit.PerAxis(0)))
    assert series.codes.shape == (terms, *x.shape)


def test_processes():
    torch = pytest.importorskip("torch")
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    row = parts_of(2, 1, 2, TWO)
    assert row["same"]
    assert row["calls"] == 20
    assert row["whole"] > row["AllReduce"] > 0


# --- command line ---


def _spread(s: Spread | None, digits: int = 2) -> str:
    return "-" if s is None else f"{s.median:.{digits}f} [{s.low:.{digits}f} {s.high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="the data's folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of layers, minilm and expand")
    parser.add_argument("--avx2", action="store_true", help="hold lowbit, torch and oneDNN to AVX2")
    parser.add_argument("--quick", action="store_true", help="5 rounds, without a compiler")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    settle(args.threads, avx2=args.avx2)
    warnings.filterwarnings("ignore")
    rounds = 5 if args.quick else args.rounds
    told: dict[str, Any] = {"cpu": cpu_name(), "isa": lowbit.isa(), "threads": args.threads, "rounds": rounds}
    told["clock"] = clock_for(args.threads).__name__
    lowbit.set_num_threads(args.threads)
    try:
        import torch

        torch.set_num_threads(args.threads)
        told["torch"] = f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    except ImportError:
        args.only = [part for part in args.only if part == "expand"]
    say = (lambda *_: None) if args.json else (lambda *text: print(*text, flush=True))
    say("; ".join(f"{key} {value}" for key, value in told.items()))
    if args.avx2:
        say("Held to AVX2: lowbit, torch, MKL, oneDNN.")
    if "layers" in args.only:
        rows = told["layers"] = layers(rounds, args.threads)
        say(f"\nLinear layers with bias, floats in and out, microseconds; then the speed against {BASE}'s\n")
        names = list(rows[0]["us"])
        head = ["M x N x K", *names, *(f"{name} vs {BASE}" for name in names[1:]), f"{TWO} at least {SPEED_BAR}"]
        say(table(head, [
            [r["shape"], *(f"{us:.1f}" for us in r["us"].values()), *(r["ratios"][name] for name in names[1:]),
             holds(r["ratios"][TWO].median, SPEED_BAR)]
            for r in rows
        ]))  # fmt: skip
    if "minilm" in args.only:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                rows = told["minilm"] = encoders(rounds, args.threads)
            say(f"\nMiniLM, 64 texts of 64 tokens and one of 16; neighbours over {len(topics())} passages\n")
            head = ["", "sentences/s", f"vs {BASE}", "1×16 ms", f"1×16 vs {BASE}", "ten nearest kept", "cosine", "how"]
            say(table(head, [
                [r["name"], f"{r['sentences']:.0f}", r["ratio"], f"{r['one ms']:.2f}", r["one ratio"],
                 f"{r['kept']:.3f} ± {r['kept95']:.3f}", f"{r['cosine']:.5f}", r["note"]]
                for r in rows
            ]))  # fmt: skip
            two = next(r for r in rows if r["name"] == TWO)
            say(f"\n{TWO}: at least {SPEED_BAR} of {BASE}'s speed: {holds(two['ratio'].median, SPEED_BAR)}, "
                f"one text {holds(two['one ratio'].median, SPEED_BAR)}; "
                f"at least {NEIGHBOURS_BAR} of the neighbours: {holds(two['kept'], NEIGHBOURS_BAR)}")  # fmt: skip
        except Skip as e:
            say(f"\n- left out: MiniLM: {e}")
    if "resnet" in args.only:
        torch.set_num_threads(1)
        lowbit.set_num_threads(1)
        try:
            rows, left = networks(args.data, rounds, args.quick)
            told["resnet"], told["left out"] = rows, left
            say(
                "\nResNet-20, one thread, channels last, normalized floats to logits; the speed against each of torch's\n"
            )
            bases = [name for name in ("torch fp32", "torch fp32 compiled") if name not in left]
            head = [""]
            for batch in BATCHES:
                head += [f"images/s, batch {batch}", *(f"vs {base}" for base in bases)]
            say(table(head, [
                [r["name"], *(cell for b in BATCHES
                              for cell in (f"{r[f'images/s, {b}']:.0f}", *(r[f"vs {base}, {b}"] for base in bases)))]
                for r in rows
            ]))  # fmt: skip
            for name, why in left.items():
                say(f"\n- left out: {name}: {why}")
        except Skip as e:
            say(f"\n- left out: ResNet-20: {e}")
        torch.set_num_threads(args.threads)
        lowbit.set_num_threads(args.threads)
    if "expand" in args.only:
        forms = [(size, 4, 2) for size in SIZES] + [(1 << 18, bits, terms) for bits, terms in FORMS]
        rows = told["expand"] = [expanded(*form, rounds, args.threads) for form in dict.fromkeys(forms)]
        say(
            "\nexpand, float32, rows of 256 with a scale each; bytes read and written, as a copy of as many on one thread\n"
        )
        head = ["values", "bits", "terms", "us", "ns a value", "GB/s", "copy GB/s", "share of copy", "vs reference"]
        say(table(head, [
            [r["values"], r["bits"], r["terms"], f"{r['us']:.1f}", f"{r['ns']:.2f}", f"{r['GB/s']:.2f}",
             f"{r['copy GB/s']:.1f}" if r["copy GB/s"] else "-", _spread(r["share"], 3), _spread(r["ratio"])]
            for r in rows
        ]))  # fmt: skip
    if "processes" in args.only:
        rows = told["processes"] = []
        alone = told["one process"] = {}
        torch.set_num_threads(1)
        lowbit.set_num_threads(1)
        for batch in BATCHES:
            alone[batch] = undistributed(batch, rounds, lowbit.Series(4, 2, 4, 2))
            for ranks in RANKS:
                rows.append(parts_of(ranks, batch, rounds, TWO))
                print(f"{ranks} processes, batch {batch}: done", file=sys.stderr, flush=True)
        say(f"\nResNet-20, {TWO} distributed: ms of a pass by the clock on the wall, on {os.cpu_count()} cores, "
            "one thread a process\n")  # fmt: skip
        head = ["batch", "processes", "pass", "computing, slowest", "CPU, all together", "AllReduce",
                "AllReduce with waiting", "calls", "MB", "same bits"]  # fmt: skip
        say(table(head, [
            [r["batch"], r["processes"], *(f"{r[what] * 1e3:.1f}" for what in
             ("whole", "computing", "CPU", "AllReduce", "AllReduce, most")),
             r["calls"], f"{r['bytes'] / 1e6:.2f}", "yes" if r["same"] else "NO"]
            for r in rows
        ]))  # fmt: skip
        for batch, (merged, apart) in alone.items():
            say(f"\n- batch {batch} without processes: {merged * 1e3:.1f} ms merged, {apart * 1e3:.1f} ms term by term")
    if args.json:
        print(json.dumps(told, default=str))


if __name__ == "__main__":
    main()
