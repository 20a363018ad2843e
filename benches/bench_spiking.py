"""Spiking neurons beside the frameworks that simulate them, and the passes of their training.

    python benches/bench_spiking.py --rounds 15             16 steps of 1,048,576 neurons, and of what a cache holds
    python benches/bench_spiking.py --only training         forward and backward, as a spiking transformer has them
    python benches/bench_spiking.py --only transformer --model FILE   a quantized Spikformer in integers
    python benches/bench_spiking.py --only sizes            how the cost grows
    pytest benches/bench_spiking.py --benchmark-only        a table of times

The limit of many neurons is the time in which this core reads their inputs, measured in turn; that of
few is the clock: neuron-steps for each addition of a chain of them. The frameworks take the same
inputs, in the form that is quickest for each: eager without gradients, and compiled where that works.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import limits
import lowbit
import numpy as np
import pytest
from limits import Skip
from lowbit import IF, LIF
from measure import clock_for, cpu_name, interleave, settle, table

STEPS, MANY, FEW = 16, 1 << 20, 1024
#: Of the limit; neuron-steps a cycle; times as fast as each eager peer, as a compiled one, as torch's training, as
#: torch's network in float32.
BARS = {"share": 0.6, "cycle": 2.5, "eager": 30.0, "compiled": 6.0, "training": 2.0, "network": 5.0}

Candidates = dict[str, Callable[[], Any]]

KINDS: dict[str, tuple[lowbit.IF, type]] = {
    "LIF": (LIF(), np.float32),
    "LIF, soft reset, input undecayed": (LIF(decay_input=False, reset="soft"), np.float32),
    "IF": (IF(), np.float32),
    "LIF of integers": (LIF(decay_input=False, v_threshold=100), np.int32),
    # Kept by 192 / 256 rather than by halves, which are shifts.
    "LIF of integers, tau 4": (LIF(tau=4.0, decay_input=False, v_threshold=100), np.int32),
    "IF of integers": (IF(v_threshold=100, reset="soft"), np.int32),
}


def inputs(steps: int, n: int, dtype: type = np.float32) -> np.ndarray:
    x = np.random.default_rng(0).normal(0.4, 0.9, (steps, n))
    return (x * 100 if dtype is np.int32 else x).astype(dtype)


def ours(steps: int, n: int) -> Candidates:
    """Every kind, as bytes and as bits."""
    fs: Candidates = {}
    given = {dtype: inputs(steps, n, dtype) for dtype in (np.float32, np.int32)}
    for name, (neuron, dtype) in KINDS.items():
        for packed in (True, False):
            out = np.zeros((steps, n // 8 if packed else n), np.uint8)
            key = f"{name}, {'bits' if packed else 'bytes'}"
            fs[key] = partial(lowbit.simulate, given[dtype], neuron, packed=packed, out=out)
    return fs


def peers(x: np.ndarray) -> Candidates:
    """The frameworks' LIF of tau 2 on the same inputs, each checked against ours where it has its rules."""
    try:
        import torch
    except ImportError:
        return {}
    fs: Candidates = {}
    x_seq = torch.from_numpy(x)
    want = lowbit.simulate(x, LIF()).spike_seq

    def loop() -> Any:
        v, spikes = torch.zeros(x.shape[1]), []
        for step in x_seq:
            h = v + (step - v) / 2.0
            fired = (h >= 1.0).to(h.dtype)
            v = h * (1.0 - fired)
            spikes.append(fired)
        return torch.stack(spikes)

    fs["torch, a loop"] = torch.no_grad()(loop)
    try:
        from spikingjelly.activation_based import functional, neuron

        node = neuron.LIFNode(tau=2.0, step_mode="m").eval()

        def jelly(call: Any = node) -> Any:
            functional.reset_net(node)
            return call(x_seq)

        fs["spikingjelly LIFNode"] = torch.no_grad()(jelly)
        compiled = torch.compile(node)
        try:
            with torch.no_grad():
                jelly(compiled)
            fs["spikingjelly LIFNode, compiled"] = torch.no_grad()(partial(jelly, compiled))
        except Exception as reason:  # no compiler here
            print(f"(no compiled LIFNode: {str(reason).splitlines()[0]})", file=sys.stderr)
    except ImportError:
        pass
    try:
        import snntorch

        leaky = snntorch.Leaky(beta=0.5, reset_mechanism="zero", reset_delay=False)

        def snn() -> Any:
            mem, spikes = leaky.reset_mem(), []
            for step in x_seq:
                spike, mem = leaky(step, mem)
                spikes.append(spike)
            return torch.stack(spikes)

        fs["snnTorch Leaky"] = torch.no_grad()(snn)
    except ImportError:
        pass
    try:
        import norse.torch as norse

        cell = norse.Lift(norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0))))
        fs["norse LIFBox"] = torch.no_grad()(lambda: cell(x_seq)[0])
    except ImportError:
        pass
    for name in fs:
        if name.startswith(("torch", "spikingjelly")):
            assert np.array_equal(fs[name]().numpy(), want), name
    return fs


def many(rounds: int) -> list[list[object]]:
    """16 steps of 1,048,576 neurons: the share of the limit, and times as fast as each peer."""
    x = inputs(STEPS, MANY)
    fs = ours(STEPS, MANY) | peers(x) | {"read": limits.read(x.nbytes)}
    # Turns so long that each candidate finds in the caches what it left there itself.
    timing = interleave(fs, rounds, at_least=0.1, clock=clock_for(1), warm=True)
    rivals = [name for name in fs if name.partition(" ")[0] in ("torch,", "spikingjelly", "snnTorch", "norse")]
    rows: list[list[object]] = []
    for name in ours(1, 8):
        rate = STEPS * MANY / timing.seconds(name).median / 1e9
        share = timing.share(name, ["read"])
        rows.append([name, f"{rate:.2f}", share, "yes" if share.median >= BARS["share"] else "NO"])
    print(table(["16 x 1,048,576 neurons", "G steps/s", f"share of reading (bar {BARS['share']})", "met"], rows))
    print()
    against: list[list[object]] = []
    for rival in rivals:
        bar = BARS["compiled" if "compiled" in rival else "eager"]
        row: list[object] = [rival, f"{timing.seconds(rival).median * 1e3:.1f}"]
        for name in ("LIF, bits", "LIF, bytes"):
            row.append(timing.ratio(name, rival))
        best = max(timing.ratio(name, rival).median for name in ("LIF, bits", "LIF, bytes"))
        against.append([*row, f"{bar:g}", "yes" if best >= bar else "NO"])
    print(table(["peer", "ms", "LIF to bits, times as fast", "to bytes", "bar", "met"], against))
    return rows + against


def few(rounds: int) -> list[list[object]]:
    """Steps that a cache holds: neuron-steps a cycle."""
    steps = 64
    clock = next(peak for peak in limits.peaks() if peak.instruction == "dependent add")
    cycles = 1_000_000
    # Calls so long that what is around them costs little.
    fs = ours(steps, FEW)
    empty = {f"call {name}": call for name, call in ours(1, 8).items()}
    # Turns of 20 ms: some CPUs run slower for a while after their wide registers were last at rest.
    turns = fs | empty | {"cycles": clock.work(cycles)}
    timing = interleave(turns, rounds, at_least=20e-3, clock=clock_for(1), warm=True)
    rows: list[list[object]] = []
    for name in fs:
        pairs = zip(timing.rounds["cycles"], timing.rounds[name], timing.rounds[f"call {name}"], strict=True)
        # The call's own cost is no neuron's: it is printed beside.
        found = sorted(steps * FEW / (own - call) * cycle / cycles for cycle, own, call in pairs)
        median = found[len(found) // 2]
        quartiles = f"{median:.2f} [{found[len(found) // 4]:.2f} {found[3 * len(found) // 4]:.2f}]"
        rows.append([name, quartiles, "yes" if median >= BARS["cycle"] else "NO"])
    print(table([f"{steps} x {FEW} neurons", f"neuron-steps a cycle (bar {BARS['cycle']})", "met"], rows))
    called = [timing.seconds(name).median * 1e6 for name in empty]
    print(f"a call of eight neurons: {min(called):.1f} to {max(called):.1f} us, taken off above, each its own")
    return rows


def sizes(rounds: int) -> list[list[object]]:
    """How the cost grows with the neurons."""
    fs: Candidates = {}
    counts = [2**p for p in range(8, 23, 2)]
    for n in counts:
        x, out = inputs(STEPS, n), np.zeros((STEPS, n // 8), np.uint8)
        fs[str(n)] = partial(lowbit.simulate, x, LIF(), packed=True, out=out)
    timing = interleave(fs, rounds, clock=clock_for(1))
    rows: list[list[object]] = [
        [
            f"{n:,}",
            f"{timing.seconds(str(n)).median * 1e6:.0f}",
            f"{STEPS * n / timing.seconds(str(n)).median / 1e9:.2f}",
        ]
        for n in counts
    ]
    print(table(["neurons, 16 steps", "us", "G steps/s"], rows))
    return rows


def training(rounds: int) -> list[list[object]]:
    """Forward and backward of the neurons of a spiking transformer: batch 32, 4 steps."""
    import torch
    from lowbit.torch.spiking import Neurons
    from spikingjelly.activation_based import functional, neuron, surrogate

    rows: list[list[object]] = []
    for shape in ((4, 32, 16, 28, 28), (4, 32, 32, 14, 14), (4, 32, 49, 64), (4, 32, 49, 256)):
        generator = torch.Generator().manual_seed(0)
        x, grad = (torch.randn(shape, generator=generator) for _ in range(2))
        layer = Neurons(LIF(tau=2.0), detach_reset=True)
        node = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")

        def both(call: Any, x: Any = x, grad: Any = grad) -> Any:
            given = x.clone().requires_grad_()
            call(given).backward(grad)
            return given.grad

        def jelly(given: Any, node: Any = node) -> Any:
            functional.reset_net(node)
            return node(given)

        off = (both(layer) - both(jelly)).abs().max()
        assert off <= 1e-5, off
        fs = {"ours": partial(both, layer), "spikingjelly": partial(both, jelly)}
        timing = interleave(fs, rounds, clock=clock_for(1))
        ratio = timing.ratio("ours", "spikingjelly")
        took = [f"{timing.seconds(name).median * 1e3:.2f}" for name in fs]
        met = "yes" if ratio.median >= BARS["training"] else "NO"
        rows.append(["x".join(map(str, shape)), *took, ratio, f"{float(off):.1e}", met])
    head = [
        "both passes",
        "ms",
        "spikingjelly",
        f"times as fast (bar {BARS['training']:g})",
        "gradients differ by",
        "met",
    ]
    print(table(head, rows))
    return rows


def transformer(rounds: int, model_file: str | None = None) -> list[list[object]]:
    """A Spikformer of three bits in integers beside itself in float32, on spikingjelly's neurons too."""
    import copy

    import torch
    from lowbit import Spiking
    from lowbit.methods.heterogeneous import quantized, spiking_layers
    from lowbit.models.spikformer import Spikformer, to_integers
    from lowbit.torch.spiking import Neurons
    from safetensors.torch import load_file

    torch.manual_seed(0)
    model = Spikformer()
    digits = np.random.default_rng(0).integers(0, 256, (32, 28, 28, 1)).astype(np.uint8)
    if model_file is None:
        print("(no --model: untrained, its norms fit to random pixels)", file=sys.stderr)
        with torch.no_grad():
            for _ in range(10):
                model(torch.from_numpy(digits).permute(0, 3, 1, 2).float() / 255)
    else:
        model.load_state_dict(load_file(model_file))
        data = os.environ.get("LOWBIT_DATA")
        if data:
            with np.load(Path(data) / "mnist" / "test_first5000.npz") as file:
                digits = file["x"][4000:4032, ..., None]
    model.eval()
    small = quantized(model, dict.fromkeys(spiking_layers(model), Spiking(3)))
    integers = to_integers(small, (28, 28))
    x = torch.from_numpy(digits).permute(0, 3, 1, 2).float().contiguous() / 255
    plain = copy.deepcopy(model.fold_())
    fs: Candidates = {}
    rows: list[list[object]] = []
    peers = ["torch float32"]
    try:
        from spikingjelly.activation_based import functional, neuron

        jelly = copy.deepcopy(plain)
        for name, module in list(jelly.named_modules()):
            if isinstance(module, Neurons):
                parent, _, child = name.rpartition(".")
                threshold = module.neuron.v_threshold
                node = neuron.LIFNode(tau=2.0, v_threshold=threshold, step_mode="m")
                setattr(jelly.get_submodule(parent), child, node)

        def run_jelly(given: Any) -> Any:
            functional.reset_net(jelly)
            return jelly(given)

        peers.append("torch float32, spikingjelly's neurons")
    except ImportError:
        run_jelly = None
    for batch in (1, 32):
        given, pixels = x[:batch].contiguous(), np.ascontiguousarray(digits[:batch])
        fs = {"integers": partial(integers, pixels), "torch float32": torch.no_grad()(partial(plain, given))}
        if run_jelly is not None:
            fs[peers[1]] = torch.no_grad()(partial(run_jelly, given))
        with torch.no_grad():
            assert np.array_equal(integers(pixels).argmax(1), small(given).argmax(1).numpy())
        timing = interleave(fs, rounds, clock=clock_for(1))
        for peer in peers:
            ratio = timing.ratio("integers", peer)
            met = ("yes" if ratio.median >= BARS["network"] else "NO") if batch == 1 else ""
            took = [f"{timing.seconds(name).median * 1e3:.2f}" for name in ("integers", peer)]
            rows.append([batch, peer, *took, ratio, met])
    head = ["batch", "peer", "integers, ms", "peer, ms", f"times as fast (bar {BARS['network']:g} at 1)", "met"]
    print(table(head, rows))
    run = integers.run(digits)
    print(
        f"{sum(int(n.sum()) for n in run.spikes.values()) / len(digits):,.0f} spikes and "
        f"{sum(run.operations.values()) / len(digits):,.0f} synaptic operations an image"
    )
    return rows


PARTS = {"many": many, "few": few, "sizes": sizes, "training": training, "transformer": transformer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", help="of `lowbit heterogeneous search mnist`: spikformer-mnist.safetensors")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    settle(1)
    print(f"{cpu_name()}, {lowbit.isa()}, 1 thread, {asked.rounds} rounds, medians [quartiles]\n", flush=True)
    told = {}
    for part in asked.only:
        run = partial(transformer, model_file=asked.model) if part == "transformer" else PARTS[part]
        told[part] = run(asked.rounds)
        print(flush=True)
    if asked.json:
        print(json.dumps(told, default=str, indent=2))


@pytest.mark.parametrize("name", KINDS)
def test_neurons(benchmark: Any, name: str) -> None:
    neuron, dtype = KINDS[name]
    x, out = inputs(STEPS, 1 << 16, dtype), np.zeros((STEPS, 1 << 13), np.uint8)
    try:
        benchmark(lowbit.simulate, x, neuron, packed=True, out=out)
    except Skip as reason:
        pytest.skip(str(reason))


if __name__ == "__main__":
    main()
