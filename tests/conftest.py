"""Shared by all families: every instruction set, and how many cases each ran."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict

import lowbit
import pytest

_RAN: dict[str, Counter[str]] = defaultdict(Counter)


# A shell starts its background jobs with Ctrl-C ignored, and children inherit
# that: the tests of Ctrl-C would wait for what never comes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=lowbit.available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of this CPU in turn; the run's end counts the tests.

    A test that tries many cases counts them itself with `ran`.
    """
    return request.param


@pytest.fixture
def ran(request: pytest.FixtureRequest):
    """``ran(isa)`` counts a case of the test's module on an instruction set."""
    family = request.module.__name__.rpartition(".")[2].removeprefix("test_")

    def count(isa: str, cases: int = 1) -> None:
        _RAN[family][isa] += cases

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A path that ran no case would otherwise pass unseen."""
    if _RAN:
        terminalreporter.section("cases by instruction set")
    for family, counts in sorted(_RAN.items()):
        told = ", ".join(f"{isa} {counts[isa]}" for isa in lowbit.available_isas())
        terminalreporter.line(f"{family}: {told}")
