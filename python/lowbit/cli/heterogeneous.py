"""A spiking transformer from training to few bits, in tables: search, training on the levels, what it keeps."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.cli.nonuniform import Check, Missing
from lowbit.config import Spiking
from lowbit.methods import heterogeneous as method
from lowbit.models.spikformer import Spikformer, to_integers
from lowbit.neurons import LIF
from lowbit.snn import Costs
from lowbit.torch.spiking import Neurons, SpikingLayer

__all__ = ["TASKS", "Missing", "Task", "draw", "study", "task"]

TASKS = ("mnist", "events")

#: Where the paper's own averages lie: the assignment whose table is shown has this many bits.
RANGE = (3.1, 3.7)
#: Of the search's cost: the more, the fewer bits.
WEIGHTS = (0.003, 0.01, 0.03, 0.1)
#: Those that all layers have alike.
HOMOGENEOUS = (Spiking(3), Spiking(3, "power_of_two"), Spiking(2))


@dataclass
class Task:
    """Inputs of a network, for training and for what is told of it."""

    name: str
    what: str
    make: Callable[[], Spikformer]
    x: torch.Tensor
    y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    epochs: int


def task(name: str, data: Path | None = None) -> Task:
    """The task of this name.

    Raises
    ------
    Missing
        There is no folder, or not what is read of it.
    """
    home = data or (Path(os.environ["LOWBIT_DATA"]) if os.environ.get("LOWBIT_DATA") else None)
    if home is None:
        raise Missing("no data: --data FOLDER or LOWBIT_DATA")
    digits = home / "mnist" / "test_first5000.npz"
    if not digits.is_file():
        raise Missing(f"no {digits}")
    with np.load(digits) as file:
        images, labels = file["x"], torch.from_numpy(file["y"].astype(np.int64))
    if name == "mnist":
        x = torch.from_numpy(images).float()[:, None] / 255
        what = "MNIST, 4,000 images of the first 5,000 of its test set; the other 1,000 are tested"
        return Task(name, what, Spikformer, x[:4000], labels[:4000], x[4000:], labels[4000:], 14)
    streams = home / "snn_nir" / "mnist_saccade_events_0_299.npz"
    if not streams.is_file():
        raise Missing(f"no {streams}")
    with np.load(streams) as file:
        counts = _frames(file["t"], file["p"], file["y_pix"], file["x_pix"], file["offsets"])
        test_y = torch.from_numpy(file["label"].astype(np.int64))
    # The streams tested are of the digits 0 to 299; none of them is trained on.
    x = torch.from_numpy(np.concatenate([saccades(part) for part in np.split(images[300:2300], 8)])).float()
    make = lambda: Spikformer(2, unit=1.0)  # noqa: E731
    what = f"300 event streams of moving digits in {FRAMES} frames; 2,000 others, of other digits, are trained on"
    return Task(name, what, make, x, labels[300:2300], torch.from_numpy(counts).float(), test_y, 10)


#: Frames that a stream of 300 steps is summed to.
FRAMES, STEPS, SIDE = 6, 300, 34


def _frames(t: Any, p: Any, y: Any, x: Any, offsets: Any) -> np.ndarray:
    """Events of several streams as counts, (streams, frames, 2, side, side)."""
    stream = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    counts = np.zeros((len(offsets) - 1, FRAMES, 2, SIDE, SIDE), np.float32)
    np.add.at(counts, (stream, t.astype(np.int64) * FRAMES // STEPS, p, y, x), 1)
    return counts


def saccades(images: np.ndarray) -> np.ndarray:
    """Frames of the events that digits make where they move along a triangle.

    An event is a change of a quarter of the range since the pixel's last one, brighter or
    darker.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, 28, 28)

    Returns
    -------
    ndarray of float32, shape (N, frames, 2, 34, 34)
        Counts of events.
    """
    edge = 12
    room = np.zeros((len(images), SIDE + 2 * edge, SIDE + 2 * edge), np.float32)
    at = edge + (SIDE - 28) // 2
    room[:, at : at + 28, at : at + 28] = images / np.float32(255)
    corners = np.array([(-2.5, -2.5), (0, 2.5), (2.5, -2.5), (-2.5, -2.5)])
    counts = np.zeros((len(images), FRAMES, 2, SIDE, SIDE), np.float32)
    last: np.ndarray | None = None
    for step in range(STEPS):
        leg, share = divmod(step / (STEPS // 3), 1.0)
        dx, dy = corners[int(leg)] * (1 - share) + corners[int(leg) + 1] * share
        (part_x, ix), (part_y, iy) = math.modf(dx + 10), math.modf(dy + 10)

        def moved(down: float, right: float) -> np.ndarray:
            top, left = edge + 10 - int(down), edge + 10 - int(right)
            return room[:, top : top + SIDE, left : left + SIDE]

        near = moved(iy, ix) * np.float32(1 - part_x) + moved(iy, ix + 1) * np.float32(part_x)
        far = moved(iy + 1, ix) * np.float32(1 - part_x) + moved(iy + 1, ix + 1) * np.float32(part_x)
        view = near * np.float32(1 - part_y) + far * np.float32(part_y)
        if last is None:
            last = view
            continue
        events = np.stack([view - last >= 0.25, view - last <= -0.25], 1)
        counts[:, step * FRAMES // STEPS] += events
        last = last + np.float32(0.25) * (events[:, 0].astype(np.float32) - events[:, 1])
    return counts


def shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each sample moved by up to two pixels."""
    height, width = x.shape[-2:]
    room = torch.nn.functional.pad(x, (2, 2, 2, 2))
    by = torch.randint(0, 5, (len(x), 2), generator=generator).tolist()
    return torch.stack([r[..., i : i + height, j : j + width] for r, (i, j) in zip(room, by, strict=True)])


def trained(subject: Task, folder: Path, progress: Any = None) -> tuple[Spikformer, float]:
    """The network in float32, from the folder or trained now, and the seconds it took (0: it was there)."""
    torch.manual_seed(0)
    model = subject.make()
    path = folder / f"spikformer-{subject.name}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval(), 0.0
    start = time.perf_counter()
    method.finetune_(
        model, subject.x, subject.y, epochs=subject.epochs, lr=3e-3, smoothing=0.1, augment=shifted, progress=progress
    )
    taken = time.perf_counter() - start
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, path)
    return model, taken


@dataclass(frozen=True)
class Searched:
    """A search and what it found."""

    weight: float
    bits: float
    mean_bits: float
    seconds: float
    assignment: dict[str, Spiking]


def searches(
    model: Spikformer, subject: Task, folder: Path, weights: Sequence[float], epochs: int, progress: Any = None
) -> Iterator[Searched]:
    """One search for each weight of the cost, with a journal each: killed, they go on."""
    for weight in weights:
        start = time.perf_counter()
        found = method.search(
            model, subject.x, subject.y, weight=weight, epochs=epochs, augment=shifted,
            journal=folder / f"search-{subject.name}-{weight:g}.safetensors", progress=progress,
        )  # fmt: skip
        taken = time.perf_counter() - start
        yield Searched(
            weight,
            code_bits(model, found.assignment),
            method.mean_bits(model, found.assignment),
            taken,
            found.assignment,
        )


def code_bits(model: Any, assignment: dict[str, Spiking]) -> float:
    """Bits of a weight's code on average: the paper's count."""
    sizes = {name: layer.weight.weight.numel() for name, layer in method.spiking_layers(model).items()}
    return sum(sizes[name] * config.nbits for name, config in assignment.items()) / sum(sizes.values())


@dataclass(frozen=True)
class Row:
    """An assignment before and after the training on its levels.

    Accuracies, agreement and their differences are in points; ``*_half`` is half of a 95 % interval:
    of differences from float32 over the test samples, the seeds' mean of each.
    """

    name: str
    bits: float
    mean_bits: float
    compression: float
    untrained: float
    accuracy: float
    seeds: list[float]
    drop: float
    drop_half: float
    agreement: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class Paired:
    """What the heterogeneous assignment has more than another, sample by sample: the mean of the
    seeds, and half of a 95 % interval."""

    against: str
    loss: float
    loss_half: float
    accuracy: float
    accuracy_half: float
    agreement: float
    agreement_half: float


def table(
    model: Spikformer, subject: Task, assignments: dict[str, dict[str, Spiking]], seeds: int, epochs: int,
    progress: Any = None,
) -> Iterator[tuple[Row, dict[str, np.ndarray], Any]]:  # fmt: skip
    """A row for each assignment, of each test sample loss, hits and agreement, and the last seed's network."""
    plain = method.evaluate(model, subject.test_x)
    right = (plain.argmax(1) == subject.test_y).double().numpy()
    for name, assignment in assignments.items():
        start = time.perf_counter()
        fresh = method.quantized(model, assignment)
        untrained = method.evaluate(fresh, subject.test_x)
        outs = []
        for seed in range(seeds):
            net = method.quantized(model, assignment)
            method.finetune_(
                net, subject.x, subject.y, teacher=model, epochs=epochs, lr=1e-3, seed=seed, augment=shifted,
                progress=progress,
            )  # fmt: skip
            outs.append(method.evaluate(net, subject.test_x))
        taken = (time.perf_counter() - start) / max(1, seeds)
        kept = {
            "loss": _mean([torch.nn.functional.cross_entropy(o, subject.test_y, reduction="none") for o in outs]),
            "accuracy": _mean([(o.argmax(1) == subject.test_y) for o in outs]),
            "agreement": _mean([(o.argmax(1) == plain.argmax(1)) for o in outs]),
        }
        drop, half = _interval(right - kept["accuracy"])
        mean = method.mean_bits(model, assignment)
        yield (
            Row(
                name, code_bits(model, assignment), mean, 32 / mean,
                100 * float((untrained.argmax(1) == subject.test_y).double().mean()),
                100 * float(kept["accuracy"].mean()),
                [100 * float((o.argmax(1) == subject.test_y).double().mean()) for o in outs],
                100 * drop, 100 * half, 100 * float(kept["agreement"].mean()), float(kept["loss"].mean()), taken,
            ),
            kept,
            net,
        )  # fmt: skip


def paired(against: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> Paired:
    """Sample by sample."""
    loss, accuracy, agreement = (_interval(ours[key] - theirs[key]) for key in ("loss", "accuracy", "agreement"))
    scaled = [100 * x for x in (*accuracy, *agreement)]
    return Paired(against, *loss, *scaled)


def _mean(values: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.stack([x.double() for x in values]).mean(0).numpy()


def _interval(x: np.ndarray) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    return float(x.mean()), 1.96 * float(x.std(ddof=1)) / math.sqrt(len(x))


def row_lines(row: Row | None) -> list[str]:
    """The table's head, or a line of it."""
    if row is None:
        return [
            f"{'levels':<26} {'bits':>5} {'all':>5} {'x':>5}  {'before':>6}  {'after':>6}  {'from fp32':>13}  "
            f"{'agrees':>6}  {'loss':>6}  {'s/run':>5}"
        ]
    return [
        f"{row.name:<26} {row.bits:>5.2f} {row.mean_bits:>5.2f} {row.compression:>5.2f}  {row.untrained:>6.2f}  "
        f"{row.accuracy:>6.2f}  {-row.drop:>+5.2f} +- {row.drop_half:>4.2f}  {row.agreement:>6.2f}  {row.loss:>6.4f}  "
        f"{row.seconds:>5.0f}"
    ]


def paired_line(pair: Paired) -> str:
    """Of one comparison."""
    return (
        f"against {pair.against}: loss {pair.loss:+.4f} +- {pair.loss_half:.4f}, accuracy {pair.accuracy:+.2f} +- "
        f"{pair.accuracy_half:.2f}, agreement {pair.agreement:+.2f} +- {pair.agreement_half:.2f}"
    )


def energies(
    net: Any, assignment: dict[str, Spiking], x: torch.Tensor, costs: Costs | None = None
) -> list[dict[str, Any]]:
    """The trained assignment in integers, layer by layer: what a sample takes on average.

    ``rate`` is of the layer's neurons, spikes by neuron and step; operations are pairs of an input that
    is not 0 and a synapse. Energies in nanojoules: of the layer's sums, of its neurons, and of the same
    operations on float32.
    """
    costs = costs or Costs(weight_read=5.0)
    integers = to_integers(net, (x.shape[-2], x.shape[-1]))
    given = torch.round(x / net.patch[0].unit).to(torch.uint8).numpy()
    given = given.transpose(1, 0, 3, 4, 2) if given.ndim == 5 else given.transpose(0, 2, 3, 1)
    run = integers.run(np.ascontiguousarray(given))
    network, n = integers.network, len(x)
    kinds = network.kinds(run.input_kind)
    rows = []
    for name, config in assignment.items():
        spikes = kinds[network.reads[name][0]] == "spikes"
        cost = costs.addition if spikes else costs.product
        operations = run.operations[name]
        cells = f"{name}.neurons"
        updates = math.prod(network.shapes[cells]) * run.n_steps * n if cells in run.spikes else 0
        rows.append(
            {
                "layer": name, "levels": config.levels, "bits": config.nbits,
                "parameters": net.get_submodule(name).weight.numel(),
                "rate": int(run.spikes[cells].sum()) / updates if updates else None,
                "operations": operations / n,
                "nJ": operations * cost(config.nbits) / n / 1e3,
                "neurons_nJ": updates * costs.update(floats=False, leaks=True) / n / 1e3,
                "float32_nJ": (operations * cost(32) + updates * costs.update(floats=True, leaks=True)) / n / 1e3,
            }
        )  # fmt: skip
    return rows


def layer_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The assignment, layer by layer, and its sums."""
    yield (
        f"{'layer':<18} {'levels':<13} {'bits':>4} {'parameters':>10} {'rate':>6} {'operations':>10} {'nJ':>8} "
        f"{'neurons':>8} {'float32':>9}"
    )
    names = ("parameters", "operations", "nJ", "neurons_nJ", "float32_nJ")
    total = {name: math.fsum(row[name] for row in rows) for name in names}
    whole = {"layer": "sum", "levels": "", "bits": "", "rate": None, **total}
    for row in [*rows, whole]:
        rate = "" if row["rate"] is None else f"{row['rate']:.4f}"
        yield (
            f"{row['layer']:<18} {row['levels'].replace('_', ' '):<13} {row['bits']:>4} {row['parameters']:>10,.0f} "
            f"{rate:>6} {row['operations']:>10,.0f} {row['nJ']:>8.2f} {row['neurons_nJ']:>8.2f} {row['float32_nJ']:>9.2f}"
        )
    yield (
        f"a sample on average; energy {total['float32_nJ'] / (total['nJ'] + total['neurons_nJ']):.2f} times less than of "
        "float32 by the model:"
    )
    yield from (f"  {line}" for line in Costs(weight_read=5.0).assumptions())


class Three(torch.nn.Module):
    """Three spiking layers of images' pixels: small enough to try every assignment."""

    def __init__(self, steps: int = 4, width: int = 32) -> None:
        super().__init__()
        sizes = (784, width, width, 10)
        self.steps = steps
        self.layers = torch.nn.ModuleList(
            SpikingLayer(
                torch.nn.Linear(a, b, bias=False), torch.nn.BatchNorm1d(b), Neurons(LIF(), detach_reset=True),
                **({"most": 255, "unit": 1 / 255} if i == 0 else {}),
            )
            for i, (a, b) in enumerate(itertools.pairwise(sizes))
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.layers
        x = first.fire(first.sums(x.flatten(1)[None]).expand(self.steps, -1, -1))
        for layer in others:
            x = layer(x)
        # The rates of ten neurons, spread for a softmax.
        return 4 * x.mean(0)


def against_all(subject: Task, weight: float = 0.05, samples: int = 1000) -> dict[str, Any]:
    """The search on three layers beside every assignment of them: loss plus weight times mean bits."""
    torch.manual_seed(0)
    model = Three()
    x, y = subject.x[:samples], subject.y[:samples]
    method.finetune_(model, subject.x, subject.y, epochs=3, lr=5e-3)
    candidates = (Spiking(2), Spiking(3), Spiking(3, "power_of_two"), Spiking(4), Spiking(8))
    names = list(method.spiking_layers(model))
    values = {}
    for configs in itertools.product(candidates, repeat=len(names)):
        assignment = dict(zip(names, configs, strict=True))
        out = method.evaluate(method.quantized(model, assignment), x, 500)
        values[configs] = float(torch.nn.functional.cross_entropy(out, y)) + weight * method.mean_bits(
            model, assignment
        )
    # The weights stay, so that the search is of the assignment alone.
    found = method.search(model, x, y, weight=weight, candidates=candidates, lr=0.0, epochs=20, batch=100).assignment
    spent = method.mean_bits(model, found)
    exact = method.choose(model, x[:200], spent, candidates=candidates)
    best, worst = min(values.values()), max(values.values())
    return {
        "assignments": len(values), "best": best, "worst": worst,
        "search": values[tuple(found.values())], "knapsack": values[tuple(exact.values())],
        "better_than_search": sum(v < values[tuple(found.values())] for v in values.values()),
    }  # fmt: skip


def study(
    subject: Task, folder: Path, weights: Sequence[float], seeds: int, epochs: int, say: Any, progress: Any = None
) -> dict[str, Any]:
    """Everything, told as it comes."""
    checks: list[Check] = []
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    say(f"{subject.what}; {threads} threads, {lowbit.isa()}")
    model, taken = trained(subject, folder, progress)
    out = method.evaluate(model, subject.test_x)
    plain = 100 * float((out.argmax(1) == subject.test_y).double().mean())
    half = 196 * math.sqrt(plain / 100 * (1 - plain / 100) / len(out))
    loss = float(torch.nn.functional.cross_entropy(out, subject.test_y))
    size = sum(p.numel() for p in model.parameters())
    how = f"trained in {taken:.0f} s" if taken else f"from {folder}"
    say(f"float32: {size:,} parameters, {how}: {plain:.2f} +- {half:.2f} %, loss {loss:.4f}")

    say()
    say(f"{'weight':>7} {'bits':>5} {'all':>5} {'s':>4}  of the search; all: thresholds and biases counted")
    found = []
    for one in searches(model, subject, folder, weights, 2, progress):
        say(f"{one.weight:>7g} {one.bits:>5.2f} {one.mean_bits:>5.2f} {one.seconds:>4.0f}")
        found.append(one)
    falls = all(a.mean_bits >= b.mean_bits for a, b in itertools.pairwise(found))
    checks.append(Check("bound", "mean bits fall with the weight of the cost", falls))
    inside = [one for one in found if RANGE[0] <= one.mean_bits <= RANGE[1]]
    chosen = min(inside or found, key=lambda one: abs(one.mean_bits - sum(RANGE) / 2))
    kinds = method.spiking_layers(model)
    assignments = {f"searched, weight {chosen.weight:g}": chosen.assignment}
    sample = subject.x[:128]
    assignments["knapsack, as many bits"] = method.choose(model, sample, chosen.mean_bits, progress=progress)
    for config in HOMOGENEOUS:
        name = f"all {config.nbits} bits" + (", powers of two" if config.levels == "power_of_two" else "")
        assignments[name] = dict.fromkeys(kinds, config)
    say()
    rows, kept = [], {}
    layers: list[dict[str, Any]] = []
    for row, values, net in table(model, subject, assignments, seeds, epochs, progress):
        for line in ([] if rows else row_lines(None)) + row_lines(row):
            say(line)
        if not rows:
            layers = energies(net, chosen.assignment, subject.test_x[:100])
        rows.append(row)
        kept[row.name] = values
    say()
    for line in layer_lines(layers):
        say(line)
    first = rows[0]
    checks.append(Check("trend", f"{RANGE[0]} to {RANGE[1]} bits in all", RANGE[0] <= first.mean_bits <= RANGE[1]))
    checks.append(Check("trend", "at most a point from float32", first.drop <= 1.0))
    say()
    pairs = [paired(row.name, kept[first.name], kept[row.name]) for row in rows[1:]]
    for row, pair in zip(rows[1:], pairs, strict=True):
        say(paired_line(pair))
        if row.mean_bits <= first.mean_bits:
            no_worse = pair.loss <= pair.loss_half and pair.agreement >= -pair.agreement_half
            checks.append(Check("trend", f"loss and agreement no worse than of {row.name}", no_worse))
    told: dict[str, Any] = {
        "task": subject.name, "threads": threads, "isa": lowbit.isa(), "float32": {"accuracy": plain, "loss": loss},
        "searches": [{**asdict(one), "assignment": {k: asdict(c) for k, c in one.assignment.items()}} for one in found],
        "layers": layers, "rows": [asdict(row) for row in rows], "paired": [asdict(pair) for pair in pairs],
    }  # fmt: skip
    if subject.name == "mnist":
        told["three"] = three = against_all(subject)
        say()
        say(
            f"three layers, {three['assignments']} assignments: least loss plus bits {three['best']:.4f}, most "
            f"{three['worst']:.4f}; search {three['search']:.4f} ({three['better_than_search']} are better), "
            f"knapsack {three['knapsack']:.4f}"
        )
    return {**told, "checks": checks}


def draw(study: dict[str, Any], path: Path) -> None:
    """Accuracy against bits: every assignment, and float32."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    axes.axhline(study["float32"]["accuracy"], color="0.6", linewidth=1, label="float32")
    for row in study["rows"]:
        spread = [[max(0.0, row["accuracy"] - min(row["seeds"]))], [max(0.0, max(row["seeds"]) - row["accuracy"])]]
        axes.errorbar(row["mean_bits"], row["accuracy"], yerr=spread, fmt="o", capsize=3, label=row["name"])
    axes.set_xlabel("bits a weight, all counted")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"Spikformer, {study['task']}: trained on its levels")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
