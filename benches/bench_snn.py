"""A spiking network whole: N-MNIST's on event streams, beside snnTorch and spikingjelly, and beside int8 without spikes.

    python benches/bench_snn.py --data FOLDER           FOLDER/snn_nir; or LOWBIT_DATA=FOLDER
    python benches/bench_snn.py --streams 300           all streams in every round, instead of 30

A round is a run of the streams by each. lowbit starts from events and counts spikes and operations; the
others start from frames of float32 that are ready, under no_grad, all streams in a batch, and count
nothing. Their readers of NIR have no sums of windows, and snnTorch's gives IF neurons a leak: so the same network
is built by hand of their layers, snnTorch's step by step and with its convolutions over all steps at once,
spikingjelly's in multi-step mode, each also compiled if --compile. First all counts of spikes are compared
with the golden ones.

The network without spikes has the same weights, ReLU for IF, and sees each stream's sum of frames; int8 by
`lowbit.torch.to_integer`, calibrated on the first 100 streams.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lowbit
import numpy as np
from lowbit.snn import Costs, Network, from_nir, report
from measure import Spread, clock_for, cpu_name, interleave, settle, table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import snn_data

#: How many times as fast as the faster peer.
BAR = 20.0

Candidates = dict[str, Callable[[], Any]]


def layers(path: Path) -> list[Any]:
    """The network's layers with weights as torch's, in their order."""
    import torch

    graph, made = snn_data.graph(path, "snn_cnn_nmnist"), []
    for name in ("0", "2", "5", "9", "11"):
        node = graph.nodes[name]
        w = torch.from_numpy(node.weight.copy())
        if w.ndim == 4:
            layer = torch.nn.Conv2d(w.shape[1], w.shape[0], w.shape[2:], node.stride, node.padding)
        else:
            layer = torch.nn.Linear(w.shape[1], w.shape[0])
        layer.weight.data, layer.bias.data = w, torch.from_numpy(node.bias.copy())
        made.append(layer.eval())
    return made


def snntorch_nets(path: Path) -> Candidates:
    """Frames (T, N, 2, 34, 34) to counts (N, 10)."""
    import snntorch
    import torch
    from torch.nn import functional

    weighted = layers(path)

    def cells() -> list[Any]:
        # Its reset one step later is the same without a leak; with reset_delay=False a neuron misses spikes
        # that its reset left over.
        return [snntorch.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract") for _ in weighted]

    def between(i: int, x: Any) -> Any:
        """Sums of windows before the third and the fourth layer."""
        x = functional.avg_pool2d(x, 2, divisor_override=1) if i in (2, 3) else x
        return x.flatten(1) if i == 3 else x

    def by_step(frames: Any) -> Any:
        neurons = cells()
        memory = [n.init_leaky() for n in neurons]
        total = 0
        for x in frames:
            for i, layer in enumerate(weighted):
                x, memory[i] = neurons[i](layer(between(i, x)), memory[i])
            total = total + x
        return total

    def by_layer(frames: Any) -> Any:
        x = frames
        for i, (layer, neuron) in enumerate(zip(weighted, cells(), strict=True)):
            sums = layer(between(i, x.flatten(0, 1))).unflatten(0, x.shape[:2])
            memory, fired = neuron.init_leaky(), []
            for step in sums:
                spike, memory = neuron(step, memory)
                fired.append(spike)
            x = torch.stack(fired)
        return x.sum(0)

    return {"snnTorch by step": by_step, "snnTorch by layer": by_layer}


def spikingjelly_net(path: Path) -> Candidates:
    """The same, in multi-step mode."""
    import torch
    from spikingjelly.activation_based import functional, layer, neuron

    made: list[Any] = []
    for i, given in enumerate(layers(path)):
        if i in (2, 3):
            made.append(layer.AvgPool2d(2, divisor_override=1))
        if i == 3:
            made.append(layer.Flatten())
        if isinstance(given, torch.nn.Conv2d):
            sizes = (given.in_channels, given.out_channels, given.kernel_size, given.stride, given.padding)
            made.append(layer.Conv2d(*sizes))
        else:
            made.append(layer.Linear(given.in_features, given.out_features))
        made[-1].load_state_dict(given.state_dict())
        made.append(neuron.IFNode(v_threshold=1.0, v_reset=None))
    net = torch.nn.Sequential(*made).eval()
    functional.set_step_mode(net, "m")

    def run(frames: Any) -> Any:
        functional.reset_net(net)
        return net(frames).sum(0)

    return {"spikingjelly": run}


def without_spikes(path: Path, frames: np.ndarray, calibration: int) -> tuple[Any, Any, int]:
    """The network of ReLUs in floats and in int8, and its multiplications. Sums of frames (N, 2, 34, 34) in."""
    import torch
    from lowbit.torch import to_integer

    a, b, c, d, e = layers(path)
    # A mean of four in place of their sum: the layer behind it has four times the weights.
    for layer in (c, d):
        layer.weight.data *= 4
    relu, pool = torch.nn.ReLU, torch.nn.AvgPool2d
    model = torch.nn.Sequential(
        a, relu(), b, relu(), pool(2), c, relu(), pool(2), torch.nn.Flatten(), d, relu(), e
    ).eval()  # fmt: skip
    counts = [16 * 16 * a.weight.numel(), 16 * 16 * b.weight.numel(), 8 * 8 * c.weight.numel()]
    integer = to_integer(model, [torch.from_numpy(frames[:calibration])])
    return model, integer.graph.plan(), sum(counts) + d.weight.numel() + e.weight.numel()


def check(network: Network, path: Path, say: Callable[..., Any]) -> dict[str, Any]:
    """All 300 streams against the golden counts."""
    events, golden = snn_data.streams(path)
    run = network.run(events)
    out = run.output.sum(0, dtype=np.int64)
    counts = np.stack([run.spikes[name] for name in snn_data.SPIKING], 1)
    told = {
        "outputs": int((out == golden["out_spikes"]).all(1).sum()),
        "layers": int((counts == golden["layer_spikes"]).all(1).sum()),
        "accuracy": float((out.argmax(1) == golden["label"]).mean()),
    }
    say(
        f"\n300 streams: output counts equal to the golden ones in {told['outputs']}, counts of every layer "
        f"in {told['layers']}; accuracy {told['accuracy']:.2%}\n"
    )
    say(str(report(network, run)))
    return told


def speed(
    network: Network, path: Path, streams: int, threads: int, rounds: int, compiled: bool, say: Callable[..., Any]
) -> dict[str, Any]:
    """A table of times of one number of threads."""
    import torch

    torch.set_num_threads(threads)
    lowbit.set_num_threads(threads)
    events, golden = snn_data.streams(path, streams)
    frames = torch.from_numpy(events.frames(0, snn_data.STEPS, 0, streams).astype(np.float32)).permute(0, 1, 4, 2, 3)
    frames = frames.contiguous()
    nets, left = {}, {}
    for make in (snntorch_nets, spikingjelly_net):
        try:
            nets |= make(path)
        except ImportError as error:
            left[make.__name__] = f"not installed: {error.name}"
    if compiled:
        for name in list(nets):
            nets[f"{name}, compiled"] = torch.compile(nets[name])
    same, fs = {}, {"lowbit": lambda: network.run(events)}
    for name, net in nets.items():

        def call(net: Callable[[Any], Any] = net) -> Any:
            with torch.no_grad():
                return net(frames)

        try:
            found = call().numpy()
        except Exception as error:  # whatever a compiler says
            left[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
            continue
        same[name], fs[name] = int((found == golden["out_spikes"]).all(1).sum()), call
    timing = interleave(fs, rounds, clock=clock_for(threads))
    rows = []
    for name in fs:
        ms = Spread.of([1e3 * s / streams for s in timing.rounds[name]])
        ratio = timing.ratio("lowbit", name) if name != "lowbit" else None
        rows.append([name, ms, ratio, same.get(name, streams)])
    bar = min((row[2].median for row in rows if row[2] is not None), default=float("nan"))
    say(
        f"\n{threads} thread{'s' if threads > 1 else ''}, {streams} streams of {snn_data.STEPS} steps, {rounds} rounds\n"
    )
    say(table(["", "ms a stream", "lowbit's speed by its", "same counts"], rows))
    for name, why in left.items():
        say(f"- left out: {name}: {why}")
    say(f"\nvs the fastest peer: {bar:.1f}; bar {BAR:.0f}: {'met' if bar >= BAR else 'not met'}")
    return {"threads": threads, "rows": [[str(cell) for cell in row] for row in rows], "ratio": bar, "left": left}


def beside_int8(network: Network, path: Path, streams: int, rounds: int, say: Callable[..., Any]) -> dict[str, Any]:
    """The same layers without spikes: the better first."""
    import torch

    torch.set_num_threads(1)
    lowbit.set_num_threads(1)
    events, golden = snn_data.streams(path)
    summed = events.frames(0, snn_data.STEPS, 0, 300).sum(0, dtype=np.float32)
    channels_first = np.ascontiguousarray(summed.transpose(0, 3, 1, 2))
    model, integer, products = without_spikes(path, channels_first, 100)
    few = np.ascontiguousarray(summed[:streams])
    some, _ = snn_data.streams(path, streams)
    timing = interleave(
        {"spiking": lambda: network.run(some), "int8": lambda: integer(few)}, rounds, clock=clock_for(1)
    )
    run = network.run(events)
    costs = Costs()
    with torch.no_grad():
        exact = model(torch.from_numpy(channels_first)).numpy()
    correct = {
        "spiking": (run.output.sum(0, dtype=np.int64).argmax(1) == golden["label"]).mean(),
        "int8": (integer(summed).argmax(1) == golden["label"]).mean(),
    }
    energy = {"spiking": report(network, run, costs).energy / 300 / 1e3, "int8": products * costs.product(8) / 1e3}
    ms = {name: Spread.of([1e3 * s / streams for s in timing.rounds[name]]) for name in correct}
    names = {"spiking": "spiking, float32 weights", "int8": "int8, no spikes"}
    rows = [[names[n], ms[n], f"{correct[n]:.2%}", f"{energy[n]:,.0f}"] for n in names]
    rows.sort(key=lambda row: row[1].median)
    say("\nThe same layers with and without spikes, one thread; the faster first\n")
    say(table(["", "ms a stream", "accuracy", "nJ a stream, by the model"], rows))
    say(
        f"\nReLUs in float32: {(exact.argmax(1) == golden['label']).mean():.2%}. Its weights were trained for spikes, and it "
        f"sees the sum of all steps at once: no answer before the end. {products:,} multiplications a stream."
    )
    return {"rows": [[str(cell) for cell in row] for row in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", help="the data's folder")
    parser.add_argument("--streams", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--compile", action="store_true", help="peers compiled by torch too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    settle(max(args.threads))
    warnings.filterwarnings("ignore")
    path = snn_data.folder(args.data)
    if path is None:
        sys.exit("no data: --data FOLDER or LOWBIT_DATA=FOLDER, with snn_nir in it")
    say = (lambda *_: None) if args.json else (lambda *text: print(*text, flush=True))
    told: dict[str, Any] = {"cpu": cpu_name(), "isa": lowbit.isa(), "rounds": args.rounds, "streams": args.streams}
    say("; ".join(f"{key} {value}" for key, value in told.items()))
    network = from_nir(snn_data.graph(path, "snn_cnn_nmnist"), reset="soft", strict=False)
    told["int8"] = beside_int8(network, path, args.streams, args.rounds, say)
    told["golden"] = check(network, path, say)
    told["speed"] = [
        speed(network, path, args.streams, threads, args.rounds, args.compile, say) for threads in args.threads
    ]
    if args.json:
        print(json.dumps(told, default=str))


if __name__ == "__main__":
    main()
