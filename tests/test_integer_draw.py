"""lowbit.integer.draw: what stands where, and what file comes of it."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from lowbit.integer import (
    Add,
    AveragePool2d,
    Concatenate,
    Constant,
    Conv2d,
    FullyConnected,
    Graph,
    MaxPool2d,
    Multiply,
    Reshape,
    Tensor,
    draw,
)
from stored import TINY, network

pytest.importorskip("matplotlib")

place = importlib.import_module("lowbit.integer.draw")  # the package's `draw` is the function


class Made:
    """A graph that grows."""

    def __init__(self, *inputs: str) -> None:
        self.tensors = {name: tensor(name, (8, 8, 8)) for name in inputs}
        self.constants, self.operations, self.inputs = {}, [], inputs

    def add(self, make, shape=(8, 8, 8)) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = tensor(name, shape)
        self.operations.append(make(name))
        return name

    def conv(self, x: str, n: int = 8, kernel: int = 3) -> str:
        weight, depth, pads = f"w{len(self.constants)}", self.tensors[x].shape[2], (kernel // 2, kernel // 2)
        data = np.ones((n, kernel, kernel, depth), np.int8)
        self.constants[weight] = Constant(weight, data, np.ones(1, np.float32), nbits=4 if kernel > 1 else 8)
        return self.add(lambda y: Conv2d(x, weight, None, y, padding=(pads, pads)), (8, 8, n))

    def graph(self, *outputs: str, **how) -> Graph:
        return Graph(self.tensors, self.constants, tuple(self.operations), self.inputs, outputs, **how)


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, shape, "int8", scale=0.5)


def chain(n: int) -> Graph:
    made, x = Made("x"), "x"
    for _ in range(n):
        x = made.conv(x, kernel=1)
    return made.graph(x)


def residual(blocks: int = 1) -> Graph:
    made, x = Made("x"), "x"
    for _ in range(blocks):
        before = x
        branch = made.conv(made.conv(x))
        x = made.add(lambda y, a=branch, b=before: Add(a, b, y))
    return made.graph(x)


def inception() -> Graph:
    made, x = Made("x"), "x"
    for _ in range(2):
        branches = [made.conv(x, kernel=1), made.conv(made.conv(x, kernel=1)), made.conv(made.conv(made.conv(x)))]
        branches.append(made.add(lambda y, x=x: MaxPool2d(x, y, (1, 1), (1, 1)), made.tensors[x].shape))
        depth = sum(made.tensors[branch].shape[2] for branch in branches)
        x = made.add(lambda y, parts=tuple(branches): Concatenate(parts, y, 2), (8, 8, depth))
    return made.graph(x)


def dense() -> Graph:
    """Each reads all before it; one is an output besides."""
    made, parts = Made("x"), ["x"]
    x = "x"
    for _ in range(12):
        parts.append(made.conv(x))
        x = made.add(lambda y, parts=tuple(parts): Concatenate(parts, y, 2), (8, 8, 8 * len(parts)))
    return made.graph(x, parts[3])


def gated() -> Graph:
    """Two inputs, the second read late; a gate; three outputs; one tensor twice in a sum."""
    made = Made("a$x$", "b\nof a name that goes on and on")
    sums = made.add(lambda y: Add(made.conv(made.conv("a$x$")), made.inputs[1], y))
    pooled = made.add(lambda y: AveragePool2d(sums, y, (8, 8), (1, 1)), (1, 1, 8))
    made.constants["gate"] = Constant("gate", np.ones((8, 8), np.int8), np.ones(1, np.float32))
    gate = made.add(lambda y: FullyConnected(pooled, "gate", None, y), (8,))
    maps = made.add(lambda y: Reshape(gate, y), (1, 1, 8))
    product = made.add(lambda y: Multiply(sums, maps, y))
    return made.graph(product, made.add(lambda y: Add(product, product, y)), gate)


GRAPHS = {
    "nothing": lambda: Made("x").graph("x"),
    "one": lambda: chain(1),
    "chain": lambda: chain(48),
    "residual": residual,
    "residuals": lambda: residual(10),
    "inception": inception,
    "dense": dense,
    "gated": gated,
}


def checked_png(path: Path) -> tuple[int, int]:
    """Width and height of a PNG whose chunks are whole."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds = 8, []
    while at < len(data):
        n = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + n]
        assert zlib.crc32(body) == int.from_bytes(data[at + 8 + n : at + 12 + n], "big")
        kinds.append(body[:4])
        at += 12 + n
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def drawn(graph: Graph):
    return place._Sheet(place._Layout(place._boxes(graph)))


# ------------------------------------------------------------------ the file


@pytest.mark.parametrize("name", GRAPHS)
def test_a_png(tmp_path, name):
    graph = GRAPHS[name]()
    path = tmp_path / "network.PNG"
    assert draw(graph, str(path)) == path
    width, height = checked_png(path)
    assert 200 < width < 8000
    assert 100 < height < 8000
    assert os.listdir(tmp_path) == ["network.PNG"]


def test_an_svg_and_the_same_bytes_each_time(tmp_path):
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        draw(gated(), tmp_path / name)
    for suffix in ("svg", "png"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_what_a_person_reads():
    figure = place._figure(place._Layout(place._boxes(gated())))
    texts = [text.get_text() for text in figure.axes[0].texts]
    for words in ("input", "a$x$", "conv2d", "8×8×8 int8", "t3: 8×3×3×8, 4 bits", "t6: 8×8, 8 bits", "multiply", "t8"):
        assert words in texts
    assert {text.split(":")[0] for text in texts} >= {op.output for op in gated().operations}
    assert "b·of a name that goes…" in texts
    assert texts.count("output") == 3


def test_a_file_there_stays_when_drawing_fails(tmp_path, monkeypatch):
    path = tmp_path / "network.png"
    path.write_bytes(b"before")
    from matplotlib.figure import Figure

    def full(self, path, **how):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space left"):
        draw(residual(), path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["network.png"]


def test_misuse(tmp_path, monkeypatch):
    for name in ("network.pdf", "network", ".png", "png"):
        with pytest.raises(ValueError, match=r"path: expected a name that ends in \.png or \.svg, got"):
            draw(residual(), tmp_path / name)
    with pytest.raises(TypeError, match="graph: expected a Graph, got Network"):
        draw(residual().plan(), tmp_path / "network.png")
    with pytest.raises(FileNotFoundError):
        draw(residual(), tmp_path / "folder" / "network.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"lowbit\[plots\]"):
        draw(residual(), tmp_path / "network.png")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------ where things stand


def test_a_residual_connection_goes_beside_its_branch():
    sheet = drawn(residual(2))
    boxes = {box.title: box for box in sheet.layout.boxes}
    assert {box.lane for box in sheet.layout.boxes} == {0}
    assert [box.row for box in sheet.layout.boxes] == [0, 1, 2, 3, 4, 5, 6, 7]
    skips = [edge for edge in sheet.layout.edges if edge.skips]
    assert [(edge.source.row, edge.reader.row, edge.lane) for edge in skips] == [(0, 3, 1), (3, 6, 1)]
    assert boxes["add"].colours == place.JOIN


def test_inputs_stand_where_they_are_read():
    rows = {box.below: box.row for box in drawn(gated()).layout.boxes if box.title == "input"}
    assert list(rows.values()) == [0, 2]


def overlap(a, b) -> bool:
    """Whether two rectangles (left, top, right, bottom) do, more than at their edges."""
    return all(a[i] + 1e-9 < b[i + 2] and b[i] + 1e-9 < a[i + 2] for i in (0, 1))


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_lies_on_anything_else(name):
    sheet = drawn(GRAPHS[name]())
    layout, (width, height) = sheet.layout, sheet.size
    places = []
    for box in layout.boxes:
        x, y = sheet.box(box)
        place_of = (x - sheet.width / 2, y, x + sheet.width / 2, y + place.HEIGHT)
        assert overlap(place_of, (0, 0, width, height))
        assert not any(overlap(place_of, other) for other in places)
        places.append(place_of)
    edges = {(edge.source, edge.reader) for edge in layout.edges}
    assert edges == {(source, box) for box in layout.boxes for source in box.sources}
    assert len(edges) == len(layout.edges)
    for way in [*(sheet.way(edge) for edge in layout.edges), *sheet.links()]:
        for (x0, y0), (x1, y1) in itertools.pairwise(way):
            assert abs(x0 - x1) < 1e-9 or abs(y0 - y1) < 1e-9
            line = (min(x0, x1) - 1e-6, min(y0, y1), max(x0, x1) + 1e-6, max(y0, y1))
            assert not any(overlap(line, other) for other in places)


def test_lines_of_different_sources_do_not_lie_on_each_other():
    """Unless they have the same reader."""
    for name in GRAPHS:
        sheet = drawn(GRAPHS[name]())
        lines = [
            (edge, min(x0, x1), max(x0, x1), y0)
            for edge in sheet.layout.edges
            for (x0, y0), (x1, y1) in itertools.pairwise(sheet.way(edge))
            if abs(y0 - y1) < 1e-9 < abs(x0 - x1)
        ]
        for (edge, left, right, y), (other, low, high, at) in itertools.combinations(lines, 2):
            apart = abs(y - at) > 1e-9 or right < low + 1e-9 or high < left + 1e-9
            assert apart or edge.source is other.source or edge.reader is other.reader


def test_tall_networks_go_on_in_further_columns():
    assert drawn(chain(10)).cuts == []
    sheet = drawn(chain(48))
    assert len(sheet.cuts) >= 2
    width, height = sheet.size
    assert 0.5 < height / width < 2
    assert len(list(sheet.links())) == len(sheet.cuts)
    assert drawn(dense()).cuts == []


def test_states_are_read_at_the_top_and_written_at_the_bottom():
    made = Made("new")
    made.tensors["old"] = tensor("old", (8, 8, 8))
    total = made.add(lambda y: Add("new", "old", y))
    graph = made.graph(total, states=(("old", total),))
    found = [(box.title, box.below) for box in place._boxes(graph)]
    assert found == [("input", "new"), ("state", "old"), ("add", total), ("output", total), ("state", "then old")]


@pytest.mark.parametrize("name", ["resnet8_int8", "mobilenetv1_vww_int8"])
def test_real_networks(tmp_path, name):
    width, height = checked_png(draw(network(TINY, name), tmp_path / "network.png"))
    assert width < 2500
    assert height < 2500
