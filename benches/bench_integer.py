"""Integer networks whole: MLPerf Tiny's and MobileNets beside LiteRT, ResNet-20 beside torch, onnxruntime, OpenVINO.

    python benches/bench_integer.py --data FOLDER      FOLDER/mlperf_tiny, mobilenet_v1_imagenet_quant,
                                                       resnet_cifar10, cifar10; or LOWBIT_DATA=FOLDER
    python benches/bench_integer.py --only resnet
    pytest benches/bench_integer.py --benchmark-only   a table of times

One thread. A .tflite file runs the same integers on both sides, which is checked first; LiteRT is
timed by ``invoke`` alone and with its input set and its output got, lowbit always with both. ResNet-20
is calibrated by each on the same 200 images; agreement is that of the argmax with the network in floats,
on the first 5,000 test images (JPEG: compare with fp32's accuracy here, not with published ones).
The limit is as many multiplications as the network has in the kernel's own instruction on registers alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import limits
import lowbit
import numpy as np
import pytest
from integer_peers import PEERS, Candidate, Source, channels_last, litert
from limits import Skip
from lowbit.integer import from_tflite
from measure import Spread, clock_for, cpu_name, interleave, settle, table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import stored

#: The .tflite files: the shape of a sample, and multiplications of convolutions and linear layers.
TINY = {
    "resnet8_int8": ((32, 32, 3), 12_501_632),
    "dscnn_kws_int8": ((49, 10, 1), 2_656_768),
    "mobilenetv1_vww_int8": ((96, 96, 3), 7_489_664),
    "autoencoder_ad_int8": ((640,), 264_192),
    "streaming_wakeword_int8": ((30, 1, 40), 826_368),
}

#: The MobileNet-V1s of uint8, which are stored otherwise, likewise.
MOBILENET = {
    "mobilenet_v1_0.25_128_quant": ((128, 128, 3), 13_570_304),
    "mobilenet_v1_0.5_160_quant": ((160, 160, 3), 76_525_312),
}

#: Multiplications of ResNet-20's convolutions, an image.
RESNET20 = 40_550_400

BATCHES = 1, 64

#: Peers left out by --quick: they take a minute to compile.
SLOW = ("torch fp32 compiled",)


def folder(given: str | None, *parts: str) -> Path:
    """A path in the data's folder.

    Raises
    ------
    Skip
        No folder given, or the path is not in it.
    """
    root = given or os.environ.get("LOWBIT_DATA")
    if root is None:
        raise Skip("no data: --data FOLDER or LOWBIT_DATA=FOLDER")
    path = Path(root, *parts)
    if not path.exists():
        raise Skip(f"no data: {path}")
    return path


# --- MLPerf Tiny ---


def ours(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """lowbit's network of a .tflite file: codes in, codes out."""
    return from_tflite(path).plan()


def codes(path: Path, count: int = 1) -> np.ndarray:
    """Random samples as codes, (count, 1, ...)."""
    shape, _ = (TINY | MOBILENET)[path.stem]
    info = np.iinfo(np.int8 if path.stem in TINY else np.uint8)
    return np.random.default_rng(0).integers(info.min, info.max + 1, (count, 1, *shape), dtype=info.dtype)


def tiny(path: Path, rounds: int) -> dict[str, Any]:
    """Times one .tflite file; a row of the table as a dictionary."""
    net, (invoke, call) = ours(path), litert(path)
    inputs = codes(path, 1000)
    x = inputs[0]
    _, macs = (TINY | MOBILENET)[path.stem]
    loop, times = limits.limit(lowbit.isa(), 2 * macs)
    fs = {"lowbit": lambda: net(x), "invoke": invoke, "set, invoke, get": lambda: call(x)}
    timing = interleave({**loop, **fs}, rounds, at_least=5e-3, clock=clock_for(1), warm=True)
    return {
        "model": path.stem,
        "same": sum(np.array_equal(net(x), call(x)) for x in inputs),
        "us": {name: Spread.of([s * 1e6 for s in timing.rounds[name]]) for name in fs},
        "ratio": timing.ratio("lowbit", "invoke"),
        "ratio whole": timing.ratio("lowbit", "set, invoke, get"),
        "share": timing.share("lowbit", loop, times) if loop else None,
        "share LiteRT": timing.share("invoke", loop, times) if loop else None,
    }


def mobilenets(data: str | None, to: Path) -> list[Path]:
    """Writes the MobileNet-V1s as .tflite files."""
    root = folder(data, stored.MOBILENET).parent
    os.environ["LOWBIT_DATA"] = str(root)
    paths = [to / f"{name}.tflite" for name in MOBILENET]
    for path in paths:
        path.write_bytes(stored.file(stored.MOBILENET, path.stem))
    return paths


# --- ResNet-20 ---


@cache
def planned(source: Source, config: lowbit.Int8 | lowbit.Uniform) -> Callable[[np.ndarray], np.ndarray]:
    """lowbit's integer ResNet-20: normalized floats (N, 32, 32, 3) in, logits out."""
    import torch
    from lowbit.torch import to_integer

    return to_integer(source.model, [torch.from_numpy(source.calibration)], config=config).graph.plan()


def ours_resnet(source: Source, batch: int, config: lowbit.Int8 | lowbit.Uniform = lowbit.Int8()) -> Candidate:
    """`planned` on a batch."""
    net, given = planned(source, config), channels_last(batch)
    x = given.transpose(0, 2, 3, 1)
    return Candidate(given, lambda: net(x))


CANDIDATES: dict[str, Callable[[Source, int], Candidate]] = {
    "lowbit int8": ours_resnet,
    "lowbit int8, weights of 4 bits": partial(ours_resnet, config=lowbit.Uniform(4)),
    **PEERS,
}


@cache
def source(data: str | None) -> Source:
    """ResNet-20 in floats, and 200 images to calibrate on, normalized, 20 of each class."""
    try:
        import torch
        from lowbit.models.resnet import load_resnet, normalized
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    model = load_resnet(folder(data, "resnet_cifar10", "resnet20.safetensors"))
    with np.load(folder(data, "cifar10", "train_calib2000_jpeg.npz")) as z:
        chosen = np.concatenate([np.flatnonzero(z["y"] == label)[:20] for label in range(10)])
        return Source(model, normalized(torch.from_numpy(z["x"][chosen])).numpy())


def images(data: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 test images, normalized, and their classes."""
    import torch
    from lowbit.models.resnet import normalized

    with np.load(folder(data, "cifar10", "test_first5000_jpeg.npz")) as z:
        return normalized(torch.from_numpy(z["x"])).numpy(), z["y"]


def classes(candidate: Candidate, x: np.ndarray) -> np.ndarray:
    """The argmax on each of many images."""
    found, batch = [], len(candidate.given)
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        candidate.given[: len(part)] = part
        found.append(candidate.run().argmax(1)[: len(part)])
    return np.concatenate(found)


def resnet(data: str | None, rounds: int, quick: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Times ResNet-20: rows of the table as dictionaries, and who was left out, and why."""
    start = source(data)
    x, labels = images(data)
    built: dict[str, dict[int, Candidate]] = {}
    left: dict[str, str] = {}
    for name, make in CANDIDATES.items():
        if quick and name in SLOW:
            left[name] = "--quick"
            continue
        try:
            # Some peers draw their progress on stdout, where the table or the JSON goes.
            with contextlib.redirect_stdout(sys.stderr):
                built[name] = {batch: make(start, batch) for batch in BATCHES}
        except Skip as e:
            left[name] = str(e)
            continue
        print(f"{name}: built", file=sys.stderr, flush=True)
    answers = {name: classes(by_batch[max(BATCHES)], x) for name, by_batch in built.items()}
    rows = [
        {"name": n, "agreement": (a == answers["torch fp32"]).mean(), "top-1": (a == labels).mean()}
        for n, a in answers.items()
    ]
    for batch in BATCHES:
        for by_batch in built.values():
            by_batch[batch].given[:] = x[:batch]
        loop, times = limits.limit(lowbit.isa(), 2 * RESNET20 * batch)
        fs = {name: by_batch[batch].run for name, by_batch in built.items()}
        timing = interleave({**loop, **fs}, rounds, at_least=5e-3, clock=clock_for(1), warm=True)
        for row in rows:
            name = row["name"]
            row[f"images/s, {batch}"] = batch / timing.seconds(name).median
            row[f"ratio, {batch}"] = timing.ratio("lowbit int8", name)
            row[f"share, {batch}"] = timing.share(name, loop, times) if loop else None
    return rows, left


# --- pytest ---


@pytest.mark.parametrize("who", ["lowbit", "LiteRT"])
@pytest.mark.parametrize("model", TINY)
def test_tiny(benchmark, model, who):
    with lowbit.threads(1):
        try:
            path = folder(None, "mlperf_tiny", f"{model}.tflite")
            _, call = litert(path)
        except Skip as e:
            pytest.skip(str(e))
        net = ours(path) if who == "lowbit" else call
        x = codes(path)[0]
        benchmark.group = model
        assert np.array_equal(benchmark(net, x), call(x))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("who", [name for name in CANDIDATES if name not in SLOW])
def test_resnet(benchmark, who, batch):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = source(None)
        x = start.calibration[:batch]
        with lowbit.threads(1):
            candidate = CANDIDATES[who](start, batch)
            candidate.given[:] = x
            benchmark.group = f"ResNet-20, {batch} images"
            logits = benchmark(candidate.run)
    except Skip as e:
        pytest.skip(str(e))
    finally:
        torch.set_num_threads(before)
    exact = start.model(torch.from_numpy(x)).numpy()
    assert logits.shape == exact.shape
    # Of one image nothing follows.
    assert batch == 1 or (logits.argmax(1) == exact.argmax(1)).mean() > 0.8


# --- command line ---


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="the data's folder")
    parser.add_argument("--only", nargs="+", choices=["tiny", "resnet"], default=["tiny", "resnet"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--avx2", action="store_true", help="hold lowbit, torch and oneDNN to AVX2")
    parser.add_argument("--quick", action="store_true", help="5 rounds, without a compiler")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    settle(1, avx2=args.avx2)
    warnings.filterwarnings("ignore")
    lowbit.set_num_threads(1)
    rounds = 5 if args.quick else args.rounds
    told: dict[str, Any] = {"cpu": cpu_name(), "isa": lowbit.isa(), "threads": 1, "rounds": rounds}
    told["clock"] = clock_for(1).__name__
    say = (lambda *_: None) if args.json else (lambda *text: print(*text, flush=True))
    say("; ".join(f"{key} {value}" for key, value in told.items()))
    if args.avx2:
        say("Held to AVX2: lowbit, torch, oneDNN. LiteRT and onnxruntime choose for themselves.")
    try:
        if "tiny" in args.only:
            paths = [folder(args.data, "mlperf_tiny", f"{m}.tflite") for m in TINY]
            with tempfile.TemporaryDirectory() as made:
                paths += mobilenets(args.data, Path(made))
                rows = told["tiny"] = [tiny(path, rounds) for path in paths]
            say("\nOne sample, codes to codes; same: of 1,000 random inputs, outputs equal to LiteRT's\n")
            names = ["lowbit", "invoke", "set, invoke, get"]
            head = ["model", *(f"{n}, us" for n in names), "vs invoke", "vs set, invoke, get", "share of limit"]
            say(table([*head, "LiteRT's", "same"], [
                [r["model"], *(r["us"][n] for n in names), r["ratio"], r["ratio whole"], r["share"], r["share LiteRT"],
                 r["same"]]
                for r in rows
            ]))  # fmt: skip
            means = told["tiny means"] = [geometric_mean(r[k].median for r in rows) for k in ("ratio", "ratio whole")]
            say(f"\nGeometric means: {means[0]:.2f} vs invoke, {means[1]:.2f} vs set, invoke, get")
        if "resnet" in args.only:
            import torch

            torch.set_num_threads(1)
            rows, left = resnet(args.data, rounds, args.quick)
            told["resnet"], told["left out"] = rows, left
            say("\nResNet-20, normalized floats to logits; ratio: lowbit's speed by the candidate's\n")
            head = ["", "agreement with fp32", "top-1"]
            for batch in BATCHES:
                head += [f"images/s, batch {batch}", "ratio", "share of limit"]
            say(table(head, [
                [r["name"], f"{r['agreement']:.2%}", f"{r['top-1']:.2%}",
                 *(cell for b in BATCHES
                   for cell in (f"{r[f'images/s, {b}']:.0f}", r[f"ratio, {b}"], r[f"share, {b}"]))]
                for r in rows
            ]))  # fmt: skip
            for name, why in left.items():
                say(f"\n- left out: {name}: {why}")
    except Skip as e:
        say(f"\nleft out: {e}")
    if args.json:
        print(json.dumps(told, default=str))


if __name__ == "__main__":
    main()
