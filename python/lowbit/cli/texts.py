"""The demo's text: Python's own help topics, or a file of passages."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["QUESTIONS", "from_file", "help_topics"]

#: Questions that Python's help topics answer.
QUESTIONS = [
    "How do I make sure a file is closed when an error happens?",
    "How do I catch several kinds of exceptions at once?",
    "What is the difference between a list and a tuple?",
    "How do I sort the items of a list in place?",
    "How do I remove spaces from both ends of a string?",
    "What does the yield keyword do in a function?",
    "How do I write a function that takes any number of arguments?",
    "How do I compare two objects for identity?",
    "What happens when an integer is divided by zero?",
    "How are dictionary keys looked up?",
    "How do I format a number with two decimals?",
    "Which statement ends a loop early?",
    "How do I set a breakpoint and step through my program?",
    "What is the value of an empty list in a condition?",
    "How do I define a property that computes its value?",
    "How do I change a variable of the enclosing function?",
    "Which operators bind more tightly than others?",
    "How do I import one name from a module?",
    "What makes a class's instances usable in a with statement?",
    "How do I wait for a coroutine to finish?",
    "How does a class inherit from two base classes?",
    "How do I take every second element of a sequence?",
    "Which characters may a variable's name contain?",
    "How do I add type hints to a function?",
]

SHORT, LONG = 100, 220


def help_topics(count: int | None = None) -> list[str]:
    """Passages of 100 to 220 characters from the help that every Python carries.

    ``count`` keeps the first that many, taken from all topics in turn.
    """
    from pydoc_data.topics import topics

    piles = [_passages(text) for _, text in sorted(topics.items())]
    turns = (pile[i] for i in range(max(map(len, piles))) for pile in piles if i < len(pile))
    return list(dict.fromkeys(turns))[:count]


def _passages(text: str) -> list[str]:
    """Paragraphs of prose, short ones joined and long ones cut between sentences."""
    text = re.sub(r"^(.+)\n[*=~^-]{3,}$", r"\1.", text, flags=re.MULTILINE)  # a heading is a sentence
    text = re.sub(r"(?<=\w-)\n\s*(?=\w)", "", text)  # built-\n   in
    passages, open_ = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line for line in paragraph.splitlines() if not re.fullmatch(r"\W*", line)]
        if not lines or any(mark in paragraph for mark in ("::=", "+--", ">>>", "|--")):
            continue  # grammar, tables, sessions
        for sentence in re.split(r"(?<=[.!?:])\s+", " ".join(" ".join(lines).split())):
            if len(open_) >= SHORT and len(open_) + len(sentence) > LONG:
                passages.append(open_)
                open_ = ""
            open_ = f"{open_} {sentence}".strip()
        if len(open_) >= SHORT:
            passages.append(open_)
            open_ = ""
    return [p[: 2 * LONG] for p in passages]


def from_file(path: Path, most: int = 2000) -> tuple[list[str], int]:
    """One passage a line, and how many lines there were; past ``most``, every so manieth.

    Raises
    ------
    ValueError
        Not UTF-8, or nothing in it.
    OSError
        It cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    passages = list(dict.fromkeys(filter(None, (" ".join(line.split()) for line in lines))))
    if not passages:
        raise ValueError(f"{path}: no text in it; one passage a line is expected")
    total = len(passages)
    if total > most:
        passages = [passages[i * total // most] for i in range(most)]
    return passages, total
