"""A picture of an integer network: boxes from top to bottom, branches side by side. Needs matplotlib.

Boxes stand in rows, below all that they read. The heaviest path of boxes goes
straight down; what is left of the network, path by path, gets the nearest lane
beside it that is free, and so does a tensor that skips rows. Horizontal lines
run between rows, each source's on a track of its own, and no line crosses a box.
A tall network continues in further columns, cut where one tensor alone goes on.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.integer import graph as g

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["draw"]

#: Inches.
HEIGHT, GAP, TRACK, BESIDE, MARGIN, CORNER = 0.42, 0.26, 0.11, 0.3, 0.3, 0.07
#: Points.
FONT = 8.5
#: Characters of a name.
NAME = 22
#: A picture's height over its width, about, and the least rows that are cut for it.
ASPECT, TALL = 1.25, 20
DPI, MOST_PIXELS = 150, 30_000

INK, GREY, SKIP = "#2b303b", "#6b7280", "#d2601a"
#: Fill and edge: layers, what joins tensors, the rest, inputs and outputs.
LAYER, JOIN, OTHER, END = ("#dcefe9", "#0b7a5c"), ("#fde9da", SKIP), ("#f1f3f6", "#8a94a3"), ("#ffffff", INK)


def draw(graph: g.Graph, path: str | os.PathLike[str]) -> Path:
    """Draws a network: a box for each operation, arrows along the data flow, top to bottom.

    A box tells the operation, its output's name, shape and dtype, and its weight's shape and bits. Tensors
    that skip operations, such as those of residual connections, are drawn in a colour of their own.

    Parameters
    ----------
    graph : Graph
    path : path_like
        Ends in .png or .svg. A file there is replaced; it is complete or not there.

    Returns
    -------
    Path
        That of the file.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    TypeError
        No graph.
    ValueError
        Another suffix.
    OSError
        The file cannot be written.
    """
    if not isinstance(graph, g.Graph):
        raise TypeError(f"graph: expected a Graph, got {type(graph).__name__}")
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ValueError(f"path: expected a name that ends in .png or .svg, got {path.name!r}")
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("draw: needs the package matplotlib: pip install 'lowbit[plots]'") from error
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    metadata = {"Date": None} if suffix == ".svg" else None
    try:
        with matplotlib.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": "lowbit"}):
            figure = _figure(_Layout(_boxes(graph)))
            dpi = min(DPI, MOST_PIXELS / max(figure.get_size_inches()))
            figure.savefig(unfinished, format=suffix[1:], dpi=dpi, metadata=metadata)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------ what is drawn


@dataclass(eq=False)
class _Box:
    title: str
    #: Beside the title, and below.
    shape: str
    below: str
    colours: tuple[str, str]
    sources: list[_Box]
    readers: list[_Box] = field(default_factory=list)
    weights: int = 0
    row: int = 0
    lane: int = 0


def _boxes(graph: g.Graph) -> list[_Box]:
    """Inputs, operations and outputs, none before what it reads."""
    written: dict[str, _Box] = {}
    boxes = []

    def add(title: str, tensor: g.Tensor, below: str, colours: tuple[str, str], reads: Iterable[str]) -> _Box:
        sources = [written[name] for name in dict.fromkeys(reads)]
        box = _Box(title, f"{_by(tensor.shape)} {tensor.dtype}", below, colours, sources)
        box.row = max((source.row + 1 for source in sources), default=0)
        for source in sources:
            source.readers.append(box)
        boxes.append(box)
        return box

    for name in graph.inputs:
        written[name] = add("input", graph.tensors[name], _short(name), END, ())
    for name, _ in graph.states:
        written[name] = add("state", graph.tensors[name], _short(name), END, ())
    for op in graph.operations:
        name = op.output  # type: ignore[attr-defined]  # each kind has one
        below, weights = _short(name), 0
        if isinstance(op, (g.Conv2d, g.FullyConnected)):
            weight = graph.constants[op.weight]
            below, weights = f"{below}: {_by(weight.data.shape)}, {weight.nbits} bits", weight.data.size
        colours = LAYER if weights else JOIN if len(op.inputs) > 1 else OTHER
        written[name] = add(op.kind, graph.tensors[name], below, colours, op.inputs)
        written[name].weights = 1 + weights
    for name in graph.outputs:
        add("output", graph.tensors[name], _short(name), END, [name])
    for read, name in graph.states:
        add("state", graph.tensors[name], f"then {_short(read)}", END, [name])
    for box in boxes:  # inputs stand where they are read
        if not box.sources and box.readers:
            box.row = min(reader.row for reader in box.readers) - 1
    return boxes


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "1"


def _short(name: str) -> str:
    name = "".join(c if c.isprintable() else "·" for c in name)
    return name if len(name) <= NAME else name[: NAME - 1] + "…"


# ------------------------------------------------------------------ where


@dataclass(eq=False)
class _Edge:
    """A tensor's way from what writes it to one reader; straight down, or along a lane."""

    source: _Box
    reader: _Box
    lane: int | None = None
    skips: bool = False

    @property
    def straight(self) -> bool:
        return self.lane == self.source.lane == self.reader.lane


class _Layout:
    """Rows, lanes and columns of boxes, and the ways between them."""

    def __init__(self, boxes: list[_Box]) -> None:
        self.boxes = boxes
        self.edges: list[_Edge] = []
        #: By lane, from where to where something is: row r is 2 r, what follows it 2 r + 1.
        self._taken: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        done = set()
        for path in _paths(boxes):
            first, last = path[0], path[-1]
            before = max(first.sources, key=lambda box: box.row, default=None)
            after = min((box for box in last.readers), key=lambda box: box.row, default=None)
            start = 2 * first.row if before is None else 2 * before.row + 1
            stop = 2 * last.row if after is None else 2 * after.row - 1
            home = before or after
            lane = self._free(home.lane if home else 0, start, stop)
            for box in path:
                box.lane = lane
            ways = zip([before, *path], [*path, after], strict=True)
            for source, reader in ways:
                if source is not None and reader is not None:
                    self.edges.append(_Edge(source, reader, lane))
                    done.add((source, reader))
        rest = {box: [r for r in box.readers if (box, r) not in done] for box in boxes}
        for box, readers in sorted(
            rest.items(), key=lambda found: max((r.row for r in found[1]), default=0) - found[0].row
        ):
            far = [r for r in readers if r.row > box.row + 1]
            lane = self._free(box.lane, 2 * box.row + 1, 2 * max(r.row for r in far) - 1) if far else 0
            self.edges += [_Edge(box, r, lane if r in far else None, r in far) for r in readers]
        self.n_rows = 1 + max(box.row for box in boxes)

    def _free(self, home: int, start: int, stop: int) -> int:
        """The lane nearest to ``home`` with nothing in it here, those to the right first."""
        away = 0
        while True:
            for lane in (home + away, home - away):
                if all(stop < a or b < start for a, b in self._taken[lane]):
                    self._taken[lane].append((start, stop))
                    return lane
            away += 1

    def cuts(self, count: int) -> list[int]:
        """After which rows new columns start, to get about ``count`` of them."""
        crossing: list[set[_Box]] = [set() for _ in range(self.n_rows)]
        for edge in self.edges:
            for row in range(edge.source.row, edge.reader.row):
                crossing[row].add(edge.source)
        allowed = [row for row, boxes in enumerate(crossing) if len(boxes) == 1 and next(iter(boxes)).row == row]
        wanted = [round(self.n_rows * i / count) - 1 for i in range(1, count)]
        nearest = {min(allowed, key=lambda row: abs(row - want)): want for want in wanted if allowed}
        return sorted(row for row, want in nearest.items() if 4 * abs(row - want) <= self.n_rows / count)


def _paths(boxes: list[_Box]) -> Iterator[list[_Box]]:
    """The heaviest path, then the heaviest of what is left, and so on."""
    left = dict.fromkeys(boxes)
    while left:
        heaviest: dict[_Box, tuple[int, _Box | None]] = {}
        for box in left:
            before = max((s for s in box.sources if s in left), key=lambda s: heaviest[s][0], default=None)
            heaviest[box] = (box.weights + (heaviest[before][0] if before else 0), before)
        # The last of equals, so that an output ends its path.
        at: _Box | None = max(reversed(left), key=lambda box: heaviest[box][0])
        path: list[_Box] = []
        while at is not None:
            path.append(at)
            at = heaviest[at][1]
        for box in path:
            del left[box]
        yield path[::-1]


# ------------------------------------------------------------------ how


class _Sheet:
    """Places in inches, from the top left."""

    def __init__(self, layout: _Layout) -> None:
        self.layout = layout
        self.width = max(map(_width, layout.boxes))
        self._lanes()
        #: By gap (that after a row), the horizontal lines in it: who is left, then who is reached.
        self._tracks: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
        self._index = {box: i for i, box in enumerate(layout.boxes)}
        for edge in (edge for edge in layout.edges if not edge.straight):
            self._tracks[edge.source.row].add((0, self._index[edge.source]))
            if edge.reader.row > edge.source.row + 1:
                self._tracks[edge.reader.row - 1].add((1, self._index[edge.reader]))
        self._rows()

    def _lanes(self) -> None:
        wide = {box.lane for box in self.layout.boxes}
        used = wide | {edge.lane for edge in self.layout.edges if edge.lane is not None}
        sizes = {lane: self.width if lane in wide else 0.0 for lane in range(min(used), max(used) + 1)}
        self._left = dict(zip(sizes, _sums(size + BESIDE for size in sizes.values()), strict=False))
        self._wide = wide
        self.column = sum(sizes.values()) + BESIDE * len(sizes)

    def _rows(self) -> None:
        n = self.layout.n_rows
        gaps = [max(GAP, TRACK * (len(self._tracks[row]) + 1)) for row in range(n)]
        tall = sum(gaps) + HEIGHT * n
        count = max(1, round(math.sqrt(tall / (ASPECT * (self.column + BESIDE))))) if n > TALL else 1
        self.cuts = self.layout.cuts(count)
        self._top: list[float] = []
        self._gap: list[tuple[float, float]] = []
        self._columns: list[int] = []
        column, y = 0, MARGIN
        for row in range(n):
            self._top.append(y)
            self._columns.append(column)
            y += HEIGHT
            if row in self.cuts:
                column, y = column + 1, MARGIN
            self._gap.append((y, gaps[row]))
            y += gaps[row]
        self.size = (
            2 * MARGIN - BESIDE + (column + 1) * (self.column + BESIDE) - (0 if column else BESIDE),
            max(top + HEIGHT for top in self._top) + MARGIN,
        )

    def lane(self, lane: int, row: int, alone: bool = False) -> float:
        """The middle of a lane, or its inner side for a line where boxes are elsewhere."""
        left = MARGIN + self._columns[row] * (self.column + BESIDE) + self._left[lane]
        if lane not in self._wide:
            return left
        if alone and lane:
            return left if lane > 0 else left + self.width
        return left + self.width / 2

    def box(self, box: _Box) -> tuple[float, float]:
        """The middle of its upper side."""
        return self.lane(box.lane, box.row), self._top[box.row]

    def _track(self, row: int, line: tuple[int, int]) -> float:
        y, gap = self._gap[row]
        lines = sorted(self._tracks[row])
        return y + gap * (lines.index(line) + 1) / (len(lines) + 1)

    def way(self, edge: _Edge) -> list[tuple[float, float]]:
        """The corners of an edge; where its source ends a column, from the top of the next."""
        source, reader = edge.source, edge.reader
        x0, y0 = self.lane(source.lane, reader.row), self._gap[source.row][0]
        x1, y1 = self.box(reader)
        if edge.straight:
            return [(x0, y0), (x1, y1)]
        x = x0 if edge.lane is None else self.lane(edge.lane, reader.row, alone=edge.skips)
        if source.row not in self.cuts:
            x0 += self._beside(x1 if edge.lane is None else x, x0)
        x1 += self._beside(x, x1)
        out = self._track(source.row, (0, self._index[source]))
        if reader.row == source.row + 1:
            return [(x0, y0), (x0, out), (x1, out), (x1, y1)]
        back = self._track(reader.row - 1, (1, self._index[reader]))
        return [(x0, y0), (x0, out), (x, out), (x, back), (x1, back), (x1, y1)]

    def _beside(self, x: float, of: float) -> float:
        """How far from the middle a line that comes from there arrives."""
        return 0.0 if abs(x - of) < 1e-9 else math.copysign(self.width / 4, x - of)

    def links(self) -> Iterator[list[tuple[float, float]]]:
        """From columns' ends to the next ones' tops."""
        for row in self.cuts:
            source = next(edge.source for edge in self.layout.edges if edge.source.row == row)
            x, y = self.box(source)
            low, between = y + HEIGHT + GAP / 2, MARGIN + (self._columns[row] + 1) * (self.column + BESIDE) - BESIDE
            to = self.lane(source.lane, row + 1)
            yield [(x, y + HEIGHT), (x, low), (between, low), (between, MARGIN / 2), (to, MARGIN / 2), (to, MARGIN)]


def _sums(sizes: Iterable[float]) -> Iterator[float]:
    total = 0.0
    for size in sizes:
        yield total
        total += size


def _width(box: _Box) -> float:
    above = _inches(box.title, "bold") + 0.15 + _inches(box.shape, "normal")
    return max(above, _inches(box.below, "normal")) + 0.2


@cache
def _inches(text: str, weight: str) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", weight=weight, size=FONT)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72 if text else 0.0


def _figure(layout: _Layout) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch

    sheet = _Sheet(layout)
    figure = Figure(figsize=sheet.size, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, sheet.size[0]), ylim=(sheet.size[1], 0))
    axes.set_axis_off()
    for edge in sorted(layout.edges, key=lambda edge: not edge.skips):
        colour = SKIP if edge.skips else INK
        arrow = FancyArrowPatch(
            path=_rounded(sheet.way(edge)),
            arrowstyle="-|>,head_length=3.5,head_width=1.8",
            color=colour,
            linewidth=1.3,
            shrinkA=0,
            shrinkB=0,
            joinstyle="miter",
            fill=False,
            zorder=1 + edge.skips,
        )
        axes.add_patch(arrow)
    for way in sheet.links():
        axes.add_patch(PathPatch(_rounded(way), edgecolor=INK, linewidth=1.3, fill=False))
    for box in layout.boxes:
        x, y = sheet.box(box)
        fill, edge_colour = box.colours
        round_by = HEIGHT / 2 if box.colours is END else 0.05
        style = f"round,pad=0,rounding_size={round_by}"
        left = x - sheet.width / 2
        axes.add_patch(
            FancyBboxPatch((left, y), sheet.width, HEIGHT, style, facecolor=fill, edgecolor=edge_colour, zorder=3)
        )
        inside = 0.1 if box.colours is not END else 0.16
        upper = y + HEIGHT * (0.3 if box.below else 0.5)
        how: dict[str, Any] = {"fontsize": FONT, "va": "center_baseline", "zorder": 4, "parse_math": False}
        axes.text(left + inside, upper, box.title, color=INK, fontweight="bold", **how)
        axes.text(left + sheet.width - inside, upper, box.shape, color=INK, ha="right", **how)
        if box.below:
            axes.text(left + inside, y + HEIGHT * 0.72, box.below, color=GREY, **how)
    return figure


def _rounded(corners: list[tuple[float, float]]) -> Any:
    """Straight lines through these points, horizontal or vertical, with round corners."""
    from matplotlib.path import Path as Line

    points = [p for i, p in enumerate(corners) if i == 0 or math.dist(p, corners[i - 1]) > 1e-9]
    codes, way = [Line.MOVETO], [points[0]]
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        near = min(CORNER, math.dist(before, at) / 2, math.dist(at, after) / 2)
        way += [_towards(at, before, near), at, _towards(at, after, near)]
        codes += [Line.LINETO, Line.CURVE3, Line.CURVE3]
    return Line([*way, points[-1]], [*codes, Line.LINETO])


def _towards(at: tuple[float, float], to: tuple[float, float], by: float) -> tuple[float, float]:
    share = by / math.dist(at, to)
    return at[0] + share * (to[0] - at[0]), at[1] + share * (to[1] - at[1])
