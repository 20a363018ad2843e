"""``lowbit demo``: one sentence encoder in every precision, on real text."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lowbit
from lowbit.cli import encoder, texts
from lowbit.cli._measure import in_turn

__all__ = ["Answer", "Change", "Row", "ask", "run"]

#: Passages of the help topics that the comparison takes.
PASSAGES = 640
#: Those that a question is put to: encoded within seconds.
ASK_PASSAGES = 900
LEAST_PASSAGES = 11


@dataclass
class Row:
    """One precision. Speeds are medians, measured in turn; until then one run each."""

    name: str
    megabytes: float | None = None
    per_second_one_thread: float | None = None
    per_second_all_threads: float | None = None
    neighbours_kept: float | None = None
    cosine: float | None = None
    left_out: str | None = None
    settled: bool = False


@dataclass(frozen=True)
class Change:
    """A question whose nearest passage is another in int8."""

    question: str
    fp32: str
    int8: str


@dataclass(frozen=True)
class Answer:
    """A passage and its cosine with the question."""

    cosine: float
    passage: str


@dataclass(frozen=True)
class Outcome:
    """All that the demo found."""

    rows: list[Row]
    asked: int
    changes: list[Change]
    passages: int
    threads: int
    rounds: int


Say = Callable[[str], None]
Show = Callable[[Sequence[Row]], None]


def _nothing(_: Any) -> None:
    pass


def read(path: Path | None, count: int | None = None) -> tuple[list[str], str]:
    """The passages and a word on where they are from."""
    if path is None:
        return texts.help_topics(count), "Python's help topics"
    passages, total = texts.from_file(path)
    return passages, f"{path.name}" + (f" ({len(passages):,} of {total:,} lines)" if total > len(passages) else "")


def run(
    passages: Sequence[str],
    questions: Sequence[str] | None,
    *,
    say: Say = _nothing,
    show: Show = _nothing,
    rounds: int = 9,
) -> Outcome:
    """Compares the precisions.

    Parameters
    ----------
    passages : sequence of str
        At least 11.
    questions : sequence of str or None
        None: each passage asks for the nearest other one.
    say, show : callable
        Told what is going on; given the rows each time they change.
    rounds : int
        Of measuring speed, at most.
    """
    threads = lowbit.get_num_threads()
    say("loading torch and the encoder")
    model = encoder.load()
    with _torch_threads(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block = encoder.block(model, passages)
        rows, made = [], {}
        vectors: dict[str, np.ndarray] = {}
        answers: dict[str, np.ndarray] = {}
        batches: list[Any] = []
        for name, make in encoder.VARIANTS.items():
            say(f"{name}: converting")
            rows.append(row := Row(name))
            try:
                made[name] = variant = make(model)
            except encoder.Missing as reason:
                row.left_out = str(reason)
                show(rows)
                continue
            row.megabytes = variant.megabytes
            row.per_second_one_thread = _once(variant, block, 1)
            row.per_second_all_threads = _once(variant, block, threads)
            # Where other programs hold the cores, one thread can be the quicker way through the passages.
            variant.use(1 if row.per_second_one_thread > row.per_second_all_threads else threads)
            if name == "fp32":
                row.neighbours_kept = row.cosine = 1.0
                show(rows)
                batches = list(encoder.batches(model, passages))
                asked = list(encoder.batches(model, questions)) if questions else []
            say(f"{name}: {len(passages)} passages")
            vectors[name] = _embed(variant, batches)
            if name in ("fp32", "lowbit int8"):
                answers[name] = _embed(variant, asked) if questions else vectors[name]
            if name == "fp32":
                near = encoder.neighbours(vectors[name])
                continue
            own = encoder.neighbours(vectors[name])
            row.neighbours_kept = float(np.mean([np.isin(a, b).mean() for a, b in zip(near, own, strict=True)]))
            row.cosine = float(np.mean((vectors[name] * vectors["fp32"]).sum(1)))
            show(rows)

        for count in dict.fromkeys((1, threads)):
            say(f"speed on {count} thread{'s' * (count > 1)}, in turn")
            for variant in made.values():
                variant.use(count)
            calls = {name: lambda v=variant: v.encode(block) for name, variant in made.items()}
            times = in_turn(calls, rounds=rounds, seconds=40)
            done = min(map(len, times.values()))
            for row in rows:
                if row.left_out is None:
                    speed = len(block["input_ids"]) / statistics.median(times[row.name])
                    if count == 1:
                        row.per_second_one_thread = speed
                    if count == threads:
                        row.per_second_all_threads = speed
        for row in rows:
            row.settled = True
        show(rows)
    changes = _changes(questions or passages, passages, vectors, answers, apart=questions is None)
    return Outcome(rows, len(questions or passages), changes, len(passages), threads, done)


def ask(passages: Sequence[str], question: str, *, say: Say = _nothing, best: int = 3) -> list[Answer]:
    """The passages nearest to a question, by the int8 encoder alone."""
    say("loading torch and the encoder")
    model = encoder.load()
    with _torch_threads(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        say("quantizing")
        variant = encoder.VARIANTS["lowbit int8"](model)
        variant.use(lowbit.get_num_threads())
        say(f"encoding {len(passages):,} passages")
        vectors = _embed(variant, encoder.batches(model, passages))
        cosines = vectors @ _embed(variant, encoder.batches(model, [question]))[0]
    order = np.argsort(-cosines, kind="stable")[:best]
    return [Answer(float(cosines[i]), passages[i]) for i in order]


@contextlib.contextmanager
def _torch_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _once(variant: encoder.Encoder, block: encoder.Features, threads: int) -> float:
    variant.use(threads)
    part = {name: tokens[:16] for name, tokens in block.items()}
    variant.encode(part)
    start = time.perf_counter()
    variant.encode(part)
    return len(part["input_ids"]) / (time.perf_counter() - start)


def _embed(variant: encoder.Encoder, batches: Any) -> np.ndarray:
    """Vectors of all texts, in the texts' order."""
    parts = [(numbers, variant.encode(features)) for numbers, features in batches]
    vectors = np.empty((sum(len(numbers) for numbers, _ in parts), parts[0][1].shape[1]), np.float32)
    for numbers, part in parts:
        vectors[numbers] = part
    return vectors


def _changes(
    questions: Sequence[str],
    passages: Sequence[str],
    vectors: dict[str, np.ndarray],
    answers: dict[str, np.ndarray],
    *,
    apart: bool,
) -> list[Change]:
    """Questions whose nearest passage differs. ``apart``: they are the passages, and none answers itself."""
    best = {}
    for name in ("fp32", "lowbit int8"):
        near = answers[name] @ vectors[name].T
        if apart:
            np.fill_diagonal(near, -np.inf)
        best[name] = near.argmax(1)
    return [
        Change(question, passages[a], passages[b])
        for question, a, b in zip(questions, best["fp32"], best["lowbit int8"], strict=True)
        if a != b
    ]


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """For JSON."""
    return {**asdict(outcome), "isa": lowbit.isa(), "lowbit": lowbit.__version__}
