"""all-MiniLM-L6-v2 through lowbit and through every peer, in turn: speed, size, fidelity.

    python benches/bench_minilm.py                      the table of all peers
    python benches/bench_minilm.py --quick              the peers that build in seconds, 5 rounds
    python benches/bench_minilm.py --avx2               held to AVX2
    python benches/bench_minilm.py --speedup            two threads against one
    pytest benches/bench_minilm.py --benchmark-only     times alone

Speed: 64 texts of 64 tokens through the transformer, the mean and the norm; one
text of 16 tokens. Fidelity: the cosine with torch's fp32 and how many of each
passage's ten nearest stay, over 640 passages of a text that none was calibrated
on. The megabytes count the whole model as it is stored, the bits what is stored of
its linear layers' and its embeddings' weights, scales and zero points and tables too.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import minilm
import numpy as np
import pytest
from measure import Spread, clock_for, cpu_name, interleave, settle, table
from minilm import PEERS, Encoder, Skip

FP32 = "torch fp32"

#: Peers that build within seconds: no export, no compiler.
QUICK = ("torch fp32", "torch bf16", "torch dynamic int8", "torchao int8")


def lowbit_int8(dtype: str = "float32") -> Encoder:
    """The encoder after one line of lowbit, floats between its layers in ``dtype``."""
    import lowbit
    import torch
    from lowbit.torch import quantize_

    module = minilm.encoder_module(getattr(torch, dtype))
    report = quantize_(module, lowbit.Int8())
    return minilm.torch_encoder(module, f"{len(report.quantized)} layers, {len(report.fused)} fused")


def lowbit_uniform(nbits: int, group_size: int = 32, dtype: str = "float32", **how: Any) -> Encoder:
    """The encoder with linear layers and embeddings of ``nbits``, floats between them in ``dtype``."""
    import lowbit
    import torch
    from lowbit.torch import quantize_

    module = minilm.encoder_module(getattr(torch, dtype))
    report = quantize_(module, lowbit.Uniform(nbits, group_size, **how))
    return minilm.torch_encoder(module, _groups(report, group_size))


def lowbit_codebook(nbits: int, group_size: int, **how: Any) -> Encoder:
    """The encoder with linear layers and embeddings whose codes look up tables."""
    import lowbit
    from lowbit.torch import quantize_

    module = minilm.encoder_module()
    report = quantize_(module, lowbit.Codebook(nbits, group_size=group_size, **how))
    return minilm.torch_encoder(module, _groups(report, group_size))


def lowbit_calibrated(config: Any, *, noise: bool = False) -> Encoder:
    """The same, with 150 passages of topics that none of the tests is from; or, as noise,
    150 times 64 random tokens, which is no data at all."""
    import torch
    from lowbit.torch import calibrate_

    module = minilm.encoder_module()
    batches = minilm.batches(minilm.passages(150, calibration=True))
    data = [{"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)} for ids, mask in batches]
    if noise:
        ids = torch.randint(1000, 30_000, (150, 64), generator=torch.Generator().manual_seed(0))
        data = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(50)]
    report = calibrate_(module.model, data, config)
    return minilm.torch_encoder(module, _groups(report, config.group_size))


def _groups(report: Any, group_size: int) -> str:
    rotated = sum("rotated" in (layer.kernel or "") for layer in report.quantized)
    return f"groups of {group_size}, {len(report.fused)} fused, {rotated} rotated"


def _codebook(nbits: int, **how: Any) -> Any:
    import lowbit

    return lowbit.Codebook(nbits, group_size=48, rotate="hadamard", **how)


def _uniform(nbits: int) -> Any:
    import lowbit

    return lowbit.Uniform(nbits, 64, rotate="hadamard")


CANDIDATES: dict[str, Callable[[], Encoder]] = {
    "lowbit int8": lowbit_int8,
    "lowbit int8, bf16 between": lambda: lowbit_int8("bfloat16"),
    **{f"lowbit {nbits} bits": lambda nbits=nbits: lowbit_uniform(nbits) for nbits in (6, 5, 4, 3, 2)},
    "lowbit 4 bits, bf16 between": lambda: lowbit_uniform(4, dtype="bfloat16"),
    # Fewer bits than NF4's and HQQ's 4.5, with the row's scale and the equalizer.
    "lowbit 4 bits, groups of 48": lambda: lowbit_uniform(4, 48),
    "lowbit 4 bits, rotated": lambda: lowbit_uniform(4, rotate="hadamard"),
    "lowbit 3 bits, rotated": lambda: lowbit_uniform(3, rotate="hadamard"),
    "lowbit 4 bits, calibrated": lambda: lowbit_calibrated(_uniform(4)),
    "lowbit 3 bits, calibrated": lambda: lowbit_calibrated(_uniform(3)),
    **{f"lowbit codebook {nbits} bits": lambda nbits=nbits: lowbit_codebook(nbits, 64) for nbits in (4, 3)},
    "lowbit codebook 4 bits, rotated": lambda: lowbit_codebook(4, 48, rotate="hadamard"),
    "lowbit codebook 4 bits, random tokens": lambda: lowbit_calibrated(_codebook(4, refine=2), noise=True),
    "lowbit codebook 4 bits, calibrated": lambda: lowbit_calibrated(_codebook(4, refine=2)),
    "lowbit codebook 3 bits, calibrated": lambda: lowbit_calibrated(_codebook(3, refine=2)),
    **PEERS,
}


def full_batch() -> tuple[np.ndarray, np.ndarray]:
    """64 real texts that fill 64 tokens."""
    words = " ".join(minilm.passages(640)).split()
    texts = [" ".join(words[i * 80 : i * 80 + 80]) for i in range(minilm.BATCH)]
    ids, mask = minilm.batches(texts)[0]
    assert mask.all()
    return ids, mask


def one_text() -> tuple[np.ndarray, np.ndarray]:
    """One text of 16 tokens."""
    text = ["how do I open a file, read all of its lines and close it again, safely?"]
    ids, mask = minilm.batches(text, 16, 1)[0]
    assert mask.all()
    return ids, mask


def build(names: list[str], passages: int, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, str]]:
    """Builds candidates and measures their fidelity; fp32 first. Those left out, with why."""
    texts = minilm.passages(passages)
    full, one = full_batch(), one_text()
    built: dict[str, Any] = {}
    left: dict[str, str] = {}
    for name in [FP32, *(n for n in names if n != FP32)]:
        start = time.perf_counter()
        try:
            encoder = CANDIDATES[name]()
            embedding = minilm.encode_all(encoder, texts)
            encoder.run(*full)
            one_shape = _takes(encoder, one)
        except Skip as e:
            left[name] = str(e)
            continue
        except Exception as e:  # a peer that fails is told, and no reason to lose the others
            left[name] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"
            continue
        exact = built[FP32]["embedding"] if built else embedding
        kept, half = minilm.neighbours_kept(embedding, exact)
        cosine = float((embedding * exact).sum(1).mean())
        built[name] = {
            "encoder": encoder, "embedding": embedding, "kept": kept, "kept95": half,
            "cosine": cosine, "takes one": one_shape, "megabytes": encoder.megabytes, "note": encoder.note, "bits": encoder.bits,
        }  # fmt: skip
        say(f"{name}: built and checked in {time.perf_counter() - start:.0f} s")
    return built, left


def _takes(encoder: Encoder, batch: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether an encoder runs a batch of this shape too: a program exported for one shape does not."""
    try:
        encoder.run(*batch)
    except Exception:
        return False
    return True


def measure(built: dict[str, Any], rounds: int, clock: Callable[[], float]) -> None:
    """Times all candidates in turn, and adds what came out to each."""
    full, one = full_batch(), one_text()
    gc.collect()
    runs = {name: b["encoder"].run for name, b in built.items()}
    batch = interleave({name: (lambda f=f: f(*full)) for name, f in runs.items()}, rounds, clock=clock)
    single = interleave(
        {name: (lambda f=f: f(*one)) for name, f in runs.items() if built[name]["takes one"]},
        rounds,
        at_least=0.02,
        clock=clock,
    )
    for name, b in built.items():
        b["sentences"] = minilm.BATCH / batch.seconds(name).median
        b["vs"] = {other: _list(batch.ratio(name, other)) for other in built}
        if b["takes one"]:
            b["one ms"] = single.seconds(name).median * 1e3
            b["one vs fp32"] = _list(single.ratio(name, FP32))


def _list(s: Spread) -> list[float]:
    return [s.low, s.median, s.high]


def _quartiles(s: list[float]) -> str:
    return f"{s[1]:.2f} [{s[0]:.2f} {s[2]:.2f}]"


def _one(b: dict[str, Any]) -> tuple[str, str]:
    return (f"{b['one ms']:.2f}", _quartiles(b["one vs fp32"])) if b["takes one"] else ("-", "-")


def rows_of(built: dict[str, Any]) -> list[list[object]]:
    rows = []
    for name, b in built.items():
        rows.append([
            name, f"{b['sentences']:.0f}", _quartiles(b["vs"][FP32]),
            _quartiles(built["lowbit int8"]["vs"][name]) if "lowbit int8" in built else "-",
            *_one(b), f"{b['megabytes']:.1f}", *(f"{bits:.2f}" if bits else "-" for bits in b["bits"]),
            f"{b['kept']:.3f} ± {b['kept95']:.3f}", f"{b['cosine']:.5f}", b["note"],
        ])  # fmt: skip
    return rows


HEAD = [
    "", "sentences/s", "× fp32", "lowbit is ×", "1×16 ms", "1×16 × fp32",
    "MB", "bits, linear", "bits, embeddings", "ten nearest kept", "cosine", "how",
]  # fmt: skip


# --- pytest ---


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    try:
        return full_batch()
    except Skip as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("who", CANDIDATES)
def test_minilm(benchmark, batch, who):
    if not benchmark.enabled and who not in ("lowbit int8", *QUICK):
        pytest.skip("needs an export or a compiler: only where times are taken")
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoder = CANDIDATES[who]()
        ids, mask = batch if benchmark.enabled else (batch[0][:2], batch[1][:2])
        benchmark.group = "MiniLM 64x64 tokens, one thread"
        embedding = benchmark(encoder.run, ids, mask)
    except Skip as e:
        pytest.skip(str(e))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-2)


# --- two threads ---


def speedup(rounds: int) -> list[list[object]]:
    """How much faster two threads are than one, for lowbit, for fp32 and for a loop on
    registers alone; the last column is a candidate's speed-up by the loop's in the same round."""
    import limits
    import lowbit
    import torch

    ids, mask = full_batch()
    encoders = {name: CANDIDATES[name]() for name in ("lowbit int8", FP32)}
    layers = (m for m in minilm.encoder_module().modules() if isinstance(m, torch.nn.Linear))
    linear = 2 * sum(layer.weight.numel() for layer in layers)
    loop = limits.peak_for(lowbit.isa())

    def call(name: str, threads: int) -> Callable[[], object]:
        if name == loop.instruction:
            return loop.work(linear * ids.size, threads)

        def run() -> object:
            torch.set_num_threads(threads)
            lowbit.set_num_threads(threads)
            return encoders[name].run(ids, mask)

        return run

    names = [loop.instruction, *encoders]
    timing = interleave({f"{name} {n}": call(name, n) for n in (1, 2) for name in names}, rounds)
    gains = {n: np.array(timing.rounds[f"{n} 1"]) / np.array(timing.rounds[f"{n} 2"]) for n in names}
    seconds = {n: [f"{timing.seconds(f'{n} {threads}').median:.3f}" for threads in (1, 2)] for n in names}
    shares = {n: Spread.of(list(gains[n] / gains[loop.instruction])) for n in names}
    return [[n, *seconds[n], Spread.of(list(gains[n])), shares[n]] for n in names]


# --- command line ---


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--passages", type=int, default=640)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="candidates with one of these in the name")
    parser.add_argument("--quick", action="store_true", help="without export or compiler, 5 rounds")
    parser.add_argument("--avx2", action="store_true", help="hold lowbit, torch and oneDNN to AVX2")
    parser.add_argument("--speedup", action="store_true", help="two threads against one, and nothing else")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    settle(2 if args.speedup else args.threads, avx2=args.avx2)
    warnings.filterwarnings("ignore")
    import lowbit
    import torch

    if args.speedup:
        print(f"{cpu_name()}, {lowbit.isa()}; medians of {args.rounds} rounds by the clock on the wall\n")
        print(table(["", "1 thread, s", "2 threads, s", "speed-up", "of the loop's"], speedup(args.rounds)))
        return
    torch.set_num_threads(args.threads)
    lowbit.set_num_threads(args.threads)
    names = list(QUICK) if args.quick else list(CANDIDATES)
    if args.quick:
        names += [n for n in CANDIDATES if n.startswith("lowbit")]
    if args.only:
        names = [n for n in CANDIDATES if any(word in n for word in args.only)]
    rounds, clock = 5 if args.quick else args.rounds, clock_for(args.threads)
    say = (lambda *_: None) if args.json else (lambda *text: print(*text, flush=True))
    about = {
        "cpu": cpu_name(), "lowbit's instruction set": lowbit.isa(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": args.threads, "rounds": rounds, "clock": clock.__name__,
    }  # fmt: skip
    say("; ".join(f"{key} {value}" for key, value in about.items()))
    if args.avx2:
        say("Held to AVX2: lowbit, torch, MKL, oneDNN. The other peers choose for themselves.")
    # Some peers draw their progress on stdout, where the table or the JSON goes.
    with contextlib.redirect_stdout(sys.stderr):
        built, left = build(names, args.passages, lambda text: print(text, file=sys.stderr, flush=True))
    measure(built, rounds, clock)
    say("\n64 texts of 64 tokens; medians with quartiles of ratios taken in turn\n")
    say(table(HEAD, rows_of(built)))
    for name, why in left.items():
        say(f"\n- left out: {name}: {why}")
    if args.json:
        for b in built.values():
            del b["encoder"], b["embedding"]
        print(json.dumps({**about, "candidates": built, "left out": left}, default=str))


if __name__ == "__main__":
    main()
