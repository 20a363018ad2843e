"""The Python of docs/*.md runs, and prints what the text says.

Blocks of ``python`` run from top to bottom in one namespace, in a folder of
their own; ``py`` is for the eye. The block after one, if it has no language or
is ``text``, is what it prints: ``text`` to the letter, without a language but
for what depends on the CPU: numbers, the width of columns, the instruction set
of kernels, and a step of a conversion that does not always help.
"""

from __future__ import annotations

import re
from pathlib import Path

import lowbit
import pytest

DOCS = sorted(Path(__file__).parents[1].glob("docs/*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?(e[+-]\d+)?")
KERNEL = re.compile(r", (scalar|neon|neondot|avx2|avxvnni|avx512|avx512vbmi|amx)$", re.MULTILINE)
#: A step of a conversion that is taken where it helps: the network was trained on this CPU, whose last bits decide.
CHANCE = re.compile(r"^channels made even: [\d.]+ dB, [\d.]+% agree\n", re.MULTILINE)


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line, language and body of each."""
    return [(text.count("\n", 0, found.start()) + 1, found[1], found[2]) for found in BLOCK.finditer(text)]


def without_chance(text: str) -> list[list[str]]:
    """What is left to compare; kernels are those of this CPU."""
    text = KERNEL.sub(f", {lowbit.isa()}", CHANCE.sub("", text))
    return [NUMBER.sub("#", line).split() for line in text.splitlines()]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_code_runs_and_prints_what_is_written(path, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "docs"}
    printed = None
    for line, language, body in blocks(path.read_text(encoding="utf-8")):
        where = f"{path.name}, line {line}"
        if language == "python":
            assert not printed, f"{where}: what was printed before is not in the text:\n{printed}"
            # Lines of a traceback are those of the file.
            exec(compile("\n" * line + body, str(path), "exec"), namespace)
            printed = capsys.readouterr().out
        elif printed is not None and language in ("", "text"):
            if language == "text":
                assert body == printed, where
            else:
                assert set(KERNEL.findall(printed)) <= {lowbit.isa()}, f"{where}: printed was\n{printed}"
                assert without_chance(body) == without_chance(printed), f"{where}: printed was\n{printed}"
            printed = None
        else:
            assert not printed, f"{where}: what was printed before is not in the text:\n{printed}"
            printed = None
    assert not printed, f"{path.name}: what was printed at the end is not in the text:\n{printed}"
