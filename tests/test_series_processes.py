"""`distribute_` on several processes: the bits of one process, and an error when a process is lost.

The processes start once, since each loads torch for seconds, and run one task after another. A
test that damages them kills them, and the next starts others. Nothing waits without a limit.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lowbit
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from lowbit.methods.series import distribute_, series_layers  # noqa: E402
from lowbit.models.resnet import ResNet  # noqa: E402
from lowbit.torch import quantize_  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]

S = lowbit.Series
ORDERS = 20
#: Seconds after which processes that do not answer are killed; far more than any task takes.
LIMIT = 60.0
#: Seconds that gloo waits; what shows at once takes less than half of them.
PATIENCE = 12.0

#: Configs, and rules for single layers.
CONFIGS: dict[str, tuple[lowbit.Series, list[tuple[str, lowbit.Series | None]]]] = {
    "clip": (S(4, 2, 4, 2, clip=2.0), []),
    "3 x 3 terms": (S(4, 3, 4, 3), []),
    "rules": (
        S(4, 2, 4, 2),
        # One product, which most ranks have no part of; a triangle; floats.
        [("layer1", S(8, 1, 8, 1)), (r"layer2\.0\.conv1", S(2, 3, 2, 3, triangular=True, clip=2.0)), ("linear", None)],
    ),
}


def made(name: str) -> nn.Module:
    """The same on every process."""
    config, rules = CONFIGS[name]
    torch.manual_seed(0)
    model = ResNet(1).eval()
    quantize_(model, config, rules=rules)
    return model.requires_grad_(False)


def images() -> torch.Tensor:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 3, 12, 12)).astype(np.float32))
    x[1] = x[1].relu()  # without negatives: another zero point
    return x


# ------------------------------------------------------------------ processes


def serve(connection: Any) -> None:
    """A process: runs the tasks that come, until nobody is there to send any."""
    torch.set_num_threads(1)
    lowbit.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send((None, None))  # here
        while True:
            task, args = connection.recv()
            try:
                connection.send((task(*args), None))
            except Exception:
                connection.send((None, traceback.format_exc()))


class Late(AssertionError):
    """An error came, but not at once."""


class Workers:
    """Processes of which the first ``n`` make a group."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.processes: list[tuple[Any, Any]] = []

    def send(self, ranks: int, task: Callable[..., Any], folder: Path, *args: Any) -> Path:
        """Starts ``task(rank, ranks, path, *args)`` on each; ``path``, where they meet, is the answer."""
        alive = [one for one in self.processes if one[0].is_alive()]
        for process, connection in self.processes:
            if not process.is_alive():
                connection.close()
        started = [self._started() for _ in range(ranks - len(alive))]
        self.processes = [*alive, *started]
        self.answers(range(len(alive), len(self.processes)))  # how long they take to load torch is no matter of gloo's
        path = folder / f"{task.__name__}{ranks}"
        for rank, (_, connection) in enumerate(self.processes[:ranks]):
            connection.send((task, (rank, ranks, path, *args)))
        return path

    def _started(self) -> tuple[Any, Any]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def ended(self, rank: int) -> float:
        """When a process ended that was to."""
        process, _ = self.processes[rank]
        process.join(LIMIT)
        if process.exitcode != 9:
            self.stop()
            pytest.fail(f"rank {rank} did not end as told: {process.exitcode}")
        return time.monotonic()

    def answers(self, ranks: Iterable[int]) -> list[Any]:
        """What the tasks gave; if one raised, or gave nothing within the limit, all are killed and the test fails."""
        end, found = time.monotonic() + LIMIT, []
        for rank in ranks:
            process, connection = self.processes[rank]
            error = f"no answer in {LIMIT:.0f} s"
            with contextlib.suppress(EOFError):
                if connection.poll(max(0.0, end - time.monotonic())):
                    answer, error = connection.recv()
            if error:
                process.join(0.1)
                code = process.exitcode
                self.stop()
                pytest.fail(f"rank {rank}: {error}" + ("" if code is None else f"; it ended with {code}"))
            found.append(answer)
        return found

    def run(self, ranks: int, task: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
        self.send(ranks, task, folder, *args)
        return self.answers(range(ranks))

    def stop(self) -> None:
        """Kills all: whatever they wait for is of no use."""
        for process, _ in self.processes:
            process.kill()
        for process, connection in self.processes:
            process.join()
            connection.close()
        self.processes = []


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    found = Workers()
    try:
        yield found
    finally:
        found.stop()


def meet(rank: int, ranks: int, path: Path, timeout: float) -> None:
    """In a process: makes the default group."""
    patience = timedelta(seconds=timeout)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=ranks, timeout=patience)


@contextlib.contextmanager
def met(rank: int, ranks: int, path: Path) -> Iterator[None]:
    """In a process: within a default group that nobody leaves early."""
    meet(rank, ranks, path, LIMIT)
    yield
    dist.destroy_process_group()


# ------------------------------------------------------------------ the same bits


@dataclass
class Run:
    """What one process had of a run in one order."""

    outputs: list[np.ndarray]
    terms: dict[str, tuple[tuple[int, int], ...]]
    told: list[tuple[int, int, float, float]]
    """After each forward pass: calls, bytes and seconds so far, and the seconds of the pass."""


def run_orders(rank: int, ranks: int, path: Path, orders: list[int | None]) -> dict[str, list[Run]]:
    """A forward pass in each order; two in that of the config, None."""
    found: dict[str, list[Run]] = {}
    with met(rank, ranks, path):
        for name in CONFIGS:
            model, found[name] = made(name), []
            for order in orders:
                mine = copy.deepcopy(model)
                shares = distribute_(mine, order=order)
                assert (shares.rank, shares.ranks, shares.calls, shares.bytes) == (rank, ranks, 0, 0)
                run = Run([], dict(shares.terms), [])
                for x in (images(), images()[:1])[: 1 + (order is None)]:
                    start = time.perf_counter()
                    run.outputs.append(mine(x).numpy())
                    run.told.append((shares.calls, shares.bytes, shares.seconds, time.perf_counter() - start))
                found[name].append(run)
    return found


@pytest.fixture(scope="module", params=[1, 2, 4])
def runs(request, workers, tmp_path_factory) -> list[dict[str, list[Run]]]:
    """Of each rank."""
    return workers.run(request.param, run_orders, tmp_path_factory.mktemp("met"), [None, *range(ORDERS)])


@functools.cache
def alone(name: str) -> tuple[nn.Module, list[np.ndarray], list[int]]:
    """A model, what it gives in this process, and how many sums its layers make in each pass."""
    model, counts, before = made(name), [], torch.get_num_threads()
    torch.set_num_threads(1)  # a layer in floats may sum in another order on two
    try:
        outputs = [model(x).numpy() for x in (images(), images()[:1])]
        for layer in series_layers(model).values():
            layer.register_forward_hook(lambda module, args, y: counts.append(y.numel()))
        model(images())
    finally:
        torch.set_num_threads(before)
    return model, outputs, [sum(counts), sum(counts) // len(images())]


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_the_same_bits(runs, name):
    _, want, _ = alone(name)
    for of_rank in runs:
        assert len(of_rank[name]) == 1 + ORDERS
        for run in of_rank[name]:
            for got, exact in zip(run.outputs, want, strict=False):  # the second pass is of one order alone
                assert got.dtype == exact.dtype
                assert np.array_equal(got.view(np.uint32), exact.view(np.uint32))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_product_is_of_one_rank(runs, name):
    layers = series_layers(made(name))
    for ranks_runs in zip(*(of_rank[name] for of_rank in runs), strict=True):
        for layer_name, layer in layers.items():
            dealt = Counter(pair for run in ranks_runs for pair in run.terms[layer_name])
            assert dealt == Counter(dict.fromkeys(layer.all_coefficients(), 1))
        totals = [sum(map(len, run.terms.values())) for run in ranks_runs]
        assert max(totals) - min(totals) <= 1
        assert all(run.terms.keys() == layers.keys() for run in ranks_runs)
    # Orders are what they say: one rank's sums are taken in many.
    assert len({str(run.terms) for run in runs[0][name]}) > ORDERS / 2


@pytest.mark.parametrize("name", CONFIGS)
def test_shares_tell_calls_bytes_and_seconds(runs, name):
    model, _, sums = alone(name)
    layers = len(series_layers(model))
    for of_rank in runs:
        for run in of_rank[name]:
            calls, size, seconds, whole = run.told[0]
            assert calls == layers
            if name == "3 x 3 terms":  # some layers' sums fit in 32 bits
                assert 4 * sums[0] < size < 8 * sums[0]
            else:
                assert size == 4 * sums[0]
            assert 0 < seconds < whole
        (_, size, seconds, _), (calls, size_2, seconds_2, whole) = of_rank[name][0].told
        assert calls == 2 * layers
        assert (size_2 - size) * sums[0] == size * sums[1]
        assert seconds < seconds_2 < seconds + whole
    # All agree on how many, and on how many bytes, whatever the order.
    assert len({run.told[0][:2] for of_rank in runs for run in of_rank[name]}) == 1


def in_a_group(rank: int, ranks: int, path: Path) -> list[np.ndarray]:
    with met(rank, ranks, path):
        few = dist.new_group([1, 3])
        if rank not in (1, 3):
            return []
        model = made("clip")
        shares = distribute_(model, few)
        assert (shares.rank, shares.ranks) == ((1, 3).index(rank), 2)
        return [model(images()).numpy()]


def test_a_group_of_some_of_the_processes(workers, tmp_path):
    exact = made("clip")(images()).numpy()
    answers = workers.run(4, in_a_group, tmp_path)
    assert [len(outputs) for outputs in answers] == [0, 1, 0, 1]
    assert all(np.array_equal(one, exact) for outputs in answers for one in outputs)


# ------------------------------------------------------------------ misuse


def misuse(rank: int, ranks: int, path: Path) -> list[str]:
    """What is said of a model that is not everyone's, and of one that is distributed already."""
    words = []
    with met(rank, ranks, path):
        twice = made("clip")
        distribute_(twice)
        for model in (made("rules" if rank else "clip"), twice):
            with pytest.raises(ValueError, match=r"^model") as told:
                distribute_(model)
            words.append(str(told.value))
    return words


def test_models_that_cannot_be_distributed(workers, tmp_path):
    for rank, (other, twice) in enumerate(workers.run(2, misuse, tmp_path)):
        assert f"the same on every process, but rank {1 - rank} has others" in other
        assert "expected one that is not distributed yet" in twice


def test_without_a_group_or_layers():
    with pytest.raises(RuntimeError, match=r"group: torch\.distributed\.init_process_group\('gloo', \.\.\.\)"):
        distribute_(made("clip"))
    with pytest.raises(ValueError, match=r"model: expected layers on series; quantize_"):
        distribute_(ResNet(1))
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
        distribute_([])


# ------------------------------------------------------------------ lost processes

LOST = 1
#: Where it is lost: within a pass.
WHERE = "layer2.0.conv1"

#: When a call began and ended, by a clock that all processes share, and its error's words.
Call = tuple[float, float, str]


def lose_one(rank: int, ranks: int, path: Path, timeout: float, end: Callable[[Path], None]) -> list[Call]:
    """A pass of all, then two that a rank does not come through."""
    meet(rank, ranks, path, timeout)
    model = made("clip")
    distribute_(model)
    model(images())
    if rank == LOST:
        model.get_submodule(WHERE).register_forward_pre_hook(lambda *_: end(path))
    found = []
    for _ in range(2):  # a later call hangs no more than the first
        start, words = time.monotonic(), "no error"
        try:
            model(images())
        except RuntimeError as error:
            words = str(error)
        found.append((start, time.monotonic(), words))
    # This process goes on, as a server would: others are not told by its end.
    return found


def die(path: Path) -> None:
    time.sleep(0.5)  # all others wait for this one's sums
    os._exit(9)


def hang(path: Path) -> None:
    end = time.monotonic() + LIMIT
    while not over(path).exists() and time.monotonic() < end:
        time.sleep(0.05)


def over(path: Path) -> Path:
    """Exists once a hanging process may go on."""
    return path.with_suffix(".over")


def leave(rank: int, ranks: int, path: Path) -> None:
    """Ends the group that `lose_one` left."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check(calls: list[Call], rank: int, ranks: int) -> None:
    (_, _, first), (start, told, second) = calls
    assert f"the AllReduce of layer {WHERE} failed on rank {rank} of {ranks}: another process ended" in first
    assert f"failed on rank {rank} of {ranks}" in second
    assert told - start < PATIENCE / 2


def test_a_process_that_hangs_is_told_after_the_timeout(workers, tmp_path):
    path = workers.send(4, lose_one, tmp_path, 4.0, hang)
    others = [rank for rank in range(4) if rank != LOST]
    for rank, calls in zip(others, workers.answers(others), strict=True):
        check(calls, rank, 4)
        assert calls[0][1] - calls[0][0] < PATIENCE  # the one that hangs still does
    over(path).touch()
    workers.answers([LOST])
    workers.run(4, leave, tmp_path)


# gloo sums in a ring: who is no neighbour of the lost one has to be told.
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_process_that_ends_is_told_at_once(workers, tmp_path, ranks):
    workers.send(ranks, lose_one, tmp_path, PATIENCE, die)
    ended = workers.ended(LOST)
    others = [rank for rank in range(ranks) if rank != LOST]
    answers = workers.answers(others)
    for rank, calls in zip(others, answers, strict=True):
        check(calls, rank, ranks)
    late = {rank: calls[0][1] - ended for rank, calls in zip(others, answers, strict=True)}
    if max(late.values()) > PATIENCE / 2:
        workers.stop()
        raise Late(f"seconds after the end, by rank: {late}")
    workers.run(ranks, leave, tmp_path)


def test_no_process_is_left(workers):
    workers.stop()
    assert not multiprocessing.active_children()
