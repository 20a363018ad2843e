"""Damaged files of integer networks: what reads them gives a network or a ValueError, soon and in little memory.

    python tests/fuzz_readers.py --seconds 600 --seed 3

Files are made, and with LOWBIT_DATA=FOLDER the .tflite files in it are damaged
too. What is found is saved beside what `make fuzz` finds otherwise, once for
each line of code that it comes from, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import math
import os
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
from lowbit.integer import Graph, load, save
from lowbit.integer.tflite import from_tflite
from test_integer import Random, delayed
from tflite_file import Operator, Tensor, made

FOUND = Path(__file__).parent.parent / "rust/kernels/fuzz/artifacts/readers"
#: Seconds of one file; bytes that it may take beyond its own size; and of how many files one is measured.
SECONDS, MEMORY, MEASURED = 5, 16 << 20, 16
#: Elements and products of networks that are run.
ELEMENTS, PRODUCTS = 1 << 18, 1 << 26
READERS = {".tflite": from_tflite, ".safetensors": load}

WORDS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
#: What stands in a file's JSON instead of something else, as JSON.
VALUES = r"""
0 1 2 3 7 8 9 -1 127 -129 255 2147483647 2147483648 4294967296 9223372036854775808 1e400 0.5 1e-12 1e300 NaN null true
[] [[]] [1] [2,2] [0.5] {} {"op":"add"} "" "x" "t0" "c0" "\ud800" "add" "float32" "int8" "uint8" "int4" "object"
"(2,3)i1" "05i4" "i1,f4"
"""


def network() -> bytes:
    """A TFLite file with each operator that is read."""
    rng = np.random.default_rng(0)

    def codes(*shape: int, axis: int = 0) -> Tensor:
        scale = np.full(shape[axis], 0.02)
        return Tensor(shape, scale=scale, axis=axis, data=rng.integers(-127, 128, shape).astype(np.int8))

    def flows(*shape: int, dtype: str = "int8", **how) -> Tensor:
        return Tensor(shape, dtype, **({"scale": 0.05, "zero_point": 3} | how))

    def words(*values) -> Tensor:
        data = np.array(values, np.int32)
        return Tensor(data.shape, "int32", data=data)

    bias, image = words(5, -6, 7, 8), (1, 5, 5, 4)
    tensors = [
        *(Tensor((1, 4, 4, 3), "float32"), flows(1, 4, 4, 3), flows(1, 5, 5, 3), words((0, 0), (0, 1), (0, 1), (0, 0))),
        *(codes(4, 3, 3, 3), bias, flows(*image), codes(1, 3, 3, 4, axis=3), bias, flows(*image), flows(*image)),
        *(flows(1, 2, 2, 4), flows(1, 1, 1, 4), flows(1, 4), codes(4, 4), bias, flows(1, 4)),
        *(flows(1, 4, scale=1 / 256, zero_point=-128), flows(1, 4, dtype="uint8", scale=1 / 256, zero_point=0)),
        Tensor((1, 4), "float32"),
    ]
    act = {"FusedActivationFunction": 1}
    window = act | {"StrideH": 1, "StrideW": 1}
    taps = window | {"DilationHFactor": 1, "DilationWFactor": 1}
    pool = act | {"StrideH": 2, "StrideW": 2, "FilterHeight": 2, "FilterWidth": 2, "Padding": 1}
    operators = [
        Operator("QUANTIZE", [0], [1]),
        Operator("PAD", [1, 3], [2]),
        Operator("CONV_2D", [2, 4, 5], [6], "Conv2DOptions", taps),
        Operator("DEPTHWISE_CONV_2D", [6, 7, 8], [9], "DepthwiseConv2DOptions", taps),
        Operator("ADD", [6, 9], [10], "AddOptions", act),
        Operator("MAX_POOL_2D", [10], [11], "Pool2DOptions", pool),
        Operator("AVERAGE_POOL_2D", [11], [12], "Pool2DOptions", pool),
        Operator("RESHAPE", [12], [13]),
        Operator("FULLY_CONNECTED", [13, 14, 15], [16], "FullyConnectedOptions", act),
        Operator("SOFTMAX", [16], [17], "SoftmaxOptions", {"Beta": 1.0}),
        Operator("QUANTIZE", [17], [18]),
        Operator("DEQUANTIZE", [18], [19]),
    ]
    return made(tensors, operators, [0], [19])


def files(folder: Path) -> dict[str, list[bytes]]:
    """Good files of each kind."""
    good = {".tflite": [network()], ".safetensors": []}
    for graph in [*(Random(seed).graph for seed in range(20)), *map(delayed, (1, 6, 9, 11))]:
        save(graph, folder / "good")
        good[".safetensors"].append((folder / "good").read_bytes())
    if "LOWBIT_DATA" in os.environ:
        stored = sorted(Path(os.environ["LOWBIT_DATA"]).rglob("*.tflite"))
        good[".tflite"] += [path.read_bytes() for path in stored if path.stat().st_size < 1 << 20]
    return good


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Some bytes differ, are missing, are there again or come from another file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 20))):
        # Tables are at the ends of a file, weights between them.
        size = len(changed) + 1
        at = rng.choice((rng.randrange(size), rng.randrange(min(size, 1500)), -rng.randrange(min(size, 9000)) % size))
        n = rng.choice((1, 4, 16, rng.randrange(1, 200)))
        match rng.randrange(9):
            case 0 | 1:
                changed[at : at + 1] = rng.randbytes(1)
            case 2 | 3 | 4:
                at = at // 4 * 4 if rng.random() < 0.8 else at
                changed[at : at + 4] = struct.pack("<I", rng.choice((*WORDS, rng.randrange(300), size - at)))
            case 5:
                del changed[at : rng.choice((size, at + n))]
            case 6:
                start = rng.randrange(len(other))
                changed[at : at + rng.choice((0, n))] = other[start : start + n]
            case 7:
                start = rng.randrange(size)
                changed[at : at + n] = changed[start : start + n]
            case 8:
                changed[at:at] = changed[at : at + n] * rng.choice((1, 3, 50))
    return bytes(changed)


def redescribed(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose JSON says something else."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    about = header["__metadata__"]
    if rng.random() < 0.15:
        twist(header, rng)
    else:
        graph = json.loads(about["lowbit.graph"])
        for _ in range(rng.choice((1, 1, 2, 4))):
            twist(graph, rng)
        about["lowbit.graph"] = json.dumps(graph)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[end:]


def twist(inside, rng: random.Random) -> None:
    """Something in lists and dicts becomes something else."""
    keys = list(inside) if isinstance(inside, dict) else range(len(inside))
    if not keys:
        return
    key = rng.choice(keys)
    if isinstance(inside[key], (dict, list)) and inside[key] and rng.random() < 0.95:
        twist(inside[key], rng)
    elif rng.random() < 0.1:
        del inside[key]
    elif isinstance(inside, list) and rng.random() < 0.3:
        inside.insert(key, inside[rng.randrange(len(inside))])
    elif isinstance(inside[key], int) and rng.random() < 0.3:
        inside[key] += rng.choice((-1, 1))
    else:
        inside[key] = json.loads(rng.choice((*VALUES.split(), "9" * 400, "[" * 300 + "]" * 300, "[" * 800 + "]" * 800)))


def small(graph: Graph) -> bool:
    """Whether to run it takes a moment."""
    tensors = {name: math.prod(t.shape) for name, t in graph.tensors.items()}
    weights = {name: math.prod(c.data.shape[1:]) for name, c in graph.constants.items()}
    products = (tensors[op.output] * weights[name] for op in graph.operations for name in op.constants[:1])
    return sum(tensors.values()) <= ELEMENTS and sum(products) <= PRODUCTS


def use(graph: Graph) -> str:
    """Plans a network and runs it."""
    if not small(graph):
        return "loaded, too large to run"
    net = graph.plan()
    if net.memory[0] > 64 << 20:
        return "loaded, too large to run"
    run = net.stream() if graph.states else net
    inputs = [np.ones((2, *graph.tensors[name].shape), graph.tensors[name].dtype) for name in graph.inputs]
    try:
        run(*inputs)
    except ValueError as error:
        raise AssertionError(f"planned and not run: {error}") from error
    return "loaded and run"


def attempt(path: Path, size: int, measured: bool) -> str:
    """What became of a file: an AssertionError or any other where it is neither read nor refused."""
    start = time.process_time()
    outcome = "refused"
    if measured:
        tracemalloc.start()
    try:
        graph = READERS[path.suffix](path)
        outcome = "loaded" if measured else "loaded, not planned"
        if not measured:
            outcome = use(graph)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < size + MEMORY, f"takes {peak:,} bytes"
    took = time.process_time() - start
    assert took < SECONDS, f"takes {took:.1f} s"
    return outcome


def where(error: BaseException) -> str:
    """The exception and the last line of lowbit's Python that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "lowbit" in Path(f.filename).parts]
    at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else str(error).split(" ")[0]
    return f"{type(error).__name__} at {at}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, end = random.Random(args.seed), time.monotonic() + args.seconds
    # A file that asks for too much gets MemoryError, and the machine lives on.
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30,) * 2)
    faulthandler.enable()
    found: dict[str, Path] = {}
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        good = files(Path(folder))
    FOUND.mkdir(parents=True, exist_ok=True)
    # Where a crash or a hang ends this process, its file stays here.
    paths = {kind: FOUND / f"last{kind}" for kind in good}
    for i in range(sys.maxsize):
        if time.monotonic() >= end:
            break
        kind = rng.choice(tuple(good))
        data, other = rng.choice(good[kind]), rng.choice(good[kind])
        if kind == ".safetensors" and rng.random() < 0.6:
            data = redescribed(data, rng)
        else:
            data = damaged(data, other, rng)
        path = paths[kind]
        path.write_bytes(data)
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            outcomes[f"{kind} {attempt(path, len(data), i % MEASURED == 0)}"] += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            outcomes[f"{kind} wrong"] += 1
            if where(error) not in found:
                kept = FOUND / f"{hashlib.sha256(data).hexdigest()[:16]}{kind}"
                kept.write_bytes(data)
                found[where(error)] = kept
                print(f"{where(error)}: {str(error)[:200]}\n  {kept}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    for path in paths.values():
        path.unlink(missing_ok=True)
    told = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(outcomes.items()))
    print(f"{outcomes.total():,} files, seed {args.seed}: {told}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
