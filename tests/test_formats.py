"""The layouts of FORMATS.md, whose examples are read from that file.

Packed codes are in test_packing.py, rounding in test_affine.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import lowbit
import numpy as np
import pytest
from lowbit.integer import Constant, FullyConnected, Graph, Tensor

TEXT = (Path(__file__).parents[1] / "FORMATS.md").read_text(encoding="utf-8")


def table(section: str, heading: str) -> list[list[str]]:
    """The cells of the table whose first heading this is."""
    lines = next(s for s in TEXT.split("\n## ") if s.startswith(section)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def tiled(codes: np.ndarray, scale: np.ndarray) -> bytes:
    """A weight (N, K) in the layout that FORMATS.md tells, in its words."""
    n, k = codes.shape
    out = b""
    for first in range(0, n, 64):
        w = -(-min(n - first, 64) // 16) * 16
        sums, scales, block = np.zeros(w, "<i4"), np.zeros(w, "<f4"), np.zeros((-(-k // 4), w, 4), np.int8)
        for j in range(min(w, n - first)):
            sums[j] = codes[first + j].sum(dtype=np.int64).astype(np.int32)
            scales[j] = scale[first + j]
            for i in range(k):
                block[i // 4, j, i % 4] = codes[first + j, i]
        out += sums.tobytes() + scales.tobytes() + block.tobytes()
    return out


def example() -> tuple[np.ndarray, np.ndarray, bytes]:
    rows = table("Tiled int8", "output")
    codes = np.array([row[1].split() for row in rows], np.int8)
    scale = np.array([row[2] for row in rows], np.float32)
    out = bytearray(256)
    for offset, data, _ in table("Tiled int8", "offset"):
        out[int(offset) : int(offset) + 4] = bytes.fromhex(data)
    return codes, scale, bytes(out)


def test_the_example_of_tiled_int8():
    codes, scale, expected = example()
    assert tiled(codes, scale) == expected
    weight = lowbit.quantize_weight(codes * scale[:, None], lowbit.Int8(equalize=False))
    assert weight.tiled.tobytes() == expected
    read = lowbit.QuantizedWeight(np.frombuffer(expected, np.uint8), weight.k, weight.n)
    assert (read.codes() == codes).all()
    assert (read.scale() == scale).all()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 80, 81, 128, 130])
@pytest.mark.parametrize("k", [1, 3, 4, 5, 64, 67])
def test_tiled_int8_of_any_shape(n, k):
    b = np.random.default_rng(n * k).integers(-128, 128, (k, n), np.int8)
    got = lowbit.tile_matrix(b).tiled.tobytes()
    assert got == tiled(b.T, np.ones(n))
    assert len(got) == 4 * -(-n // 16) * 16 * (-(-k // 4) + 2)


@pytest.mark.parametrize("n", [5, 70])
def test_a_weight_is_tiled_alike_on_every_isa(n, isa, ran):
    w = np.random.default_rng(n).standard_normal((n, 37), np.float32)
    scale = np.abs(w).max(1) / np.float32(127)
    codes = np.rint(w * (np.float32(1) / scale)[:, None]).astype(np.int8)
    assert lowbit.quantize_weight(w, lowbit.Int8(equalize=False), isa=isa).tiled.tobytes() == tiled(codes, scale)
    ran(isa)


def grouped(codes, multipliers, zeros, scale, nbits: int, g: int, symmetric: bool) -> bytes:
    """A weight (N, K) in the layout that FORMATS.md tells, in its words."""
    (n, k), groups = codes.shape, multipliers.shape[1]
    value = [
        [(int(codes[j, i]) - int(zeros[j, i // g])) * int(multipliers[j, i // g]) for i in range(k)] for j in range(n)
    ]
    reach = max(max(sum(v for v in row if v > 0), -sum(v for v in row if v < 0)) for row in value)
    out = b"lowbit g" + np.array([nbits, g, symmetric, reach], "<u4").tobytes() + bytes(40)
    for first in range(0, n, 64):
        w = -(-min(n - first, 64) // 16) * 16
        scales, sums, by = np.zeros(w, "<f4"), np.zeros(w, "<i4"), np.zeros((groups, w), np.uint8)
        zero, block = np.zeros((groups, w), np.uint8), np.zeros((-(-k // 32), nbits, w, 4), np.uint8)
        for j in range(min(w, n - first)):
            scales[j], sums[j] = scale[first + j], sum(value[first + j])
            by[:, j], zero[:, j] = multipliers[first + j], zeros[first + j]
            for i in range(k):
                row, code, quad = 0, int(codes[first + j, i]), i % 32 // 4
                for p in (4, 2, 1):
                    if nbits & p:
                        block[i // 32, row + quad // (8 // p), j, i % 4] |= code % 2**p << p * (quad % (8 // p))
                        row, code = row + p, code >> p
        packed = b"" if symmetric else lowbit.pack_codes(zero, nbits).tobytes()
        out += scales.tobytes() + sums.tobytes() + by.tobytes() + packed + block.tobytes()
    return out


def test_the_example_of_tiled_groups():
    ((_, *numbers),) = table("Tiled groups", "output")
    codes, multipliers, zeros = (np.array([cell.split()], np.uint8) for cell in numbers[:3])
    expected = bytearray(428)
    for offset, data, _ in table("Tiled groups", "offset"):
        expected[int(offset) : int(offset) + len(data.split())] = bytes.fromhex(data)
    assert grouped(codes, multipliers, zeros, [float(numbers[3])], 3, 8, False) == bytes(expected)
    config = lowbit.Uniform(3, 8, equalize=False)
    weight = lowbit.GroupedWeight(np.frombuffer(bytes(expected), np.uint8), 9, 1, config)
    assert (weight.codes() == codes).all()
    assert (weight.zero_point() == zeros).all()
    assert (weight.scale() == multipliers * np.float32(0.5)).all()
    assert weight.dequantize()[0, 0] == -4 * 255 * 0.5


def test_the_example_of_tables():
    expected = bytearray(336)
    for offset, data, _ in table("Tables", "from"):
        expected[int(offset) : int(offset) + len(data.split())] = bytes.fromhex(data)
    entries = np.array([-127, -40, 30, 100], np.int8)[None, :, None]
    config = lowbit.Codebook(2, group_size=16, equalize=False)
    weight = lowbit.CodebookWeight(np.frombuffer(bytes(expected), np.uint8), 3, 1, config, entries)
    assert (weight.codes() == [0, 3, 1]).all()
    assert (weight.dequantize() == [32, -25, 10]).all()
    parts, out = weight.untile(), np.empty(336, np.uint8)
    form = (2, 16, True, 0, "int8", "tensor")
    lowbit._core.tile_groups(parts, 1, 3, form, entries, out)
    assert out.tobytes() == bytes(expected)


@pytest.mark.parametrize("nbits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("n", "k", "g"), [(1, 1, 8), (17, 33, 32), (70, 100, 40), (130, 64, 128)])
def test_tiled_groups_of_any_shape(nbits, n, k, g, isa, ran):
    w = np.random.default_rng(n * nbits).standard_normal((n, k), np.float32)
    for symmetric in (False, True):
        weight = lowbit.quantize_weight(w, lowbit.Uniform(nbits, g, symmetric, equalize=False), isa=isa)
        assert weight.tiled.tobytes() == grouped(*weight.untile(), nbits, g, symmetric)
        ran(isa)


def test_the_example_of_an_equalizer():
    w = np.array([[float(x) for x in row[1].split()] for row in table("Layer weights", "output")], np.float32)
    weight = lowbit.quantize_weight(w)
    assert weight.tiled[192:].tobytes() == bytes.fromhex("00000040 0000003f 0000803e")
    assert weight.tiled.size == 204
    assert weight.equalizer().tolist() == [2, 0.5, 0.25]
    assert np.allclose(weight.dequantize(), w, rtol=0.01, atol=0.02)
    assert (weight.dequantize() == weight.codes() * weight.scale()[:, None] * weight.equalizer()).all()


def test_the_example_of_a_rotation():
    ((weight, rotated, equalizer),) = table("Layer weights", "weight")
    w, want, by = (np.array([cell.split()], np.float32) for cell in (weight, rotated, equalizer))
    expected = bytearray(438)
    for offset, data, _ in table("Layer weights", "from"):
        expected[int(offset) : int(offset) + len(data.split())] = bytes.fromhex(data)
    ours = lowbit.quantize_weight(w, lowbit.Uniform(3, 8, rotate="hadamard", equalize=False))
    assert ours.tiled.tobytes() == bytes(expected)
    assert (ours.dequantize() == w).all()
    assert (ours.codes() * ours.scale() == want).all()
    assert (ours.equalizer() == by[0]).all()
    # In the words of the text.
    x = w / (by * 8)
    for stride in (1, 2, 4):
        for i in range(8):
            if not i & stride:
                x[0, i], x[0, i + stride] = x[0, i] + x[0, i + stride], x[0, i] - x[0, i + stride]
    assert (x == want).all()
    # A layer's input, so rotated, is rounded to what it is.
    y = lowbit.linear(np.float32([[0, 0, 0, 8, 0, 0, 0, 0]]), ours)
    assert y.tolist() == [[0]]
    y = lowbit.linear(np.float32([[8, 0, 0, 0, 0, 0, 0, 0]]), ours)
    assert y.tolist() == [[8 * -892.5]]


def test_the_signs_of_a_rotation():
    want = next(part for part in TEXT.split("`") if len(part) == 16 and set(part) == {"+", "-"})
    for k in (16, 512):
        ours = lowbit.quantize_weight(np.ones((1, k)), lowbit.Uniform(4, rotate="hadamard", equalize=False))
        assert "".join("+-"[int(by < 0)] for by in ours.equalizer()[:16]) == want
        assert (np.abs(ours.equalizer()) == 1 / k).all()
        numbers = []
        for i in range(k):
            z = (i + 1) * 0x9E3779B97F4A7C15 % 2**64
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            numbers.append(z ^ z >> 31)
        assert numbers[0] == 0xE220A8397B1DCDAF  # what others have for the seed 0
        assert ((ours.equalizer() < 0) == [number >= 2**63 for number in numbers]).all()


def numbers(cell: str, kind=int) -> list:
    """Rows of numbers, which "/" separates."""
    return [[kind(x) for x in row.split()] for row in cell.split("/")]


def upwards(exact: float) -> float:
    """The least float32 that is no less, from 2^-126 on; 1 for 0."""
    near = np.float32(exact)
    if float(near) < exact:
        near = np.nextafter(near, np.float32(np.inf))
    return max(float(near), 2.0**-126) if exact else 1.0


def series(values: list[float], bits: int, terms: int, symmetric: bool, clip: float | None):
    """Scale, zero point, codes and steps, in the words of the text; in Python's float64."""
    most = 2 ** (bits * terms) - 1
    half = 2 ** (bits - 1) * most // (2**bits - 1)
    low, high = min(values), max(values)
    if clip is not None:
        reach = clip * math.sqrt(sum(x * x for x in values) / len(values))
        low, high = max(low, -reach), min(high, reach)
    if symmetric:
        scale, zero = upwards(max(high, -low) / (most - half)), half
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        scale = upwards(high / most - low / most)
        zero = min(max(round(-low / scale), 0), most)
    steps = [round(x / scale) for x in values]  # half to even
    inside = [min(max(step, -zero), most - zero) for step in steps]
    left = [(a - b) * (clip is not None) for a, b in zip(steps, inside, strict=True)]
    return scale, zero, [step + zero for step in inside], left


def neuron_steps(beta: int, threshold: int, reset: str, strict: bool, bias: int, fraction: int, v: int, x: list[int]):
    """Potentials and spikes, in the words of the text."""
    most, potentials, spikes = 2**23 - 1, [], []
    for value in x:
        kept = (beta * v + 128) // 256
        h = min(max(kept + value * 2**fraction + bias, -most), most)
        fired = h > threshold if strict else h >= threshold
        after = {"soft": h - threshold, "none": h}.get(reset)
        v = (int(reset.removeprefix("hard ")) if after is None else after) if fired else h
        potentials.append(v)
        spikes.append(int(fired))
    return potentials, spikes


@pytest.mark.parametrize("row", table("Spiking integers", "β"), ids=lambda row: f"{row[0]} {row[2]} {row[7]}")
def test_the_examples_of_spiking_integers(row, isa, ran):
    beta, threshold, bias, fraction, v = (int(row[i]) for i in (0, 1, 4, 5, 6))
    reset, strict, x = row[2], row[3] == "yes", numbers(row[7])[0]
    want = numbers(row[8])[0], numbers(row[9])[0]
    assert neuron_steps(beta, threshold, reset, strict, bias, fraction, v, x) == want
    options = {"v_threshold": threshold, "strict": strict, "bias": bias, "fraction": fraction}
    options |= {"reset": reset.split()[0], "v_reset": int([*reset.split(), "0"][1])}
    neuron = lowbit.IF(**options) if beta == 256 else lowbit.LIF(beta=beta / 256, decay_input=False, **options)
    state = lowbit.NeuronState(np.array([v], np.int32))
    run = lowbit.simulate(np.array(x, np.int32)[:, None], neuron, state, return_v=True, isa=isa)
    assert (run.v_seq.ravel().tolist(), run.spike_seq.ravel().tolist()) == want
    ran(isa)


@pytest.mark.parametrize("row", table("Series", "bits"), ids=lambda row: f"{row[0]} {row[1]} {row[2]} {row[5]}")
def test_the_examples_of_series(row, isa, ran):
    (bits, terms), (scheme, clip, dtype) = map(int, row[:2]), row[2:5]
    (values,), clip = numbers(row[5], float), None if clip == "-" else float(clip)
    x = np.array(values, dtype)
    got = lowbit.expand(x, bits, terms, symmetric=scheme == "symmetric", clip=clip, isa=isa)
    scale, zero, codes, steps = series(x.tolist(), bits, terms, scheme == "symmetric", clip)
    assert float(got.scale) == float(np.float32(row[6])) == scale
    assert got.zero_point == int(row[7]) == zero
    assert codes == numbers(row[8])[0]
    fields = [[code >> bits * i & 2**bits - 1 for code in codes] for i in reversed(range(terms))]
    assert got.codes.tolist() == fields
    assert got.digits().tolist() == [[f - 2 ** (bits - 1) for f in field] for field in fields] == numbers(row[9])
    sparse = [f"{i}:{step}" for i, step in enumerate(steps) if step]
    assert (" ".join(sparse) or "-") == row[10]
    assert [f"{i}:{step}" for i, step in zip(got.positions, got.steps, strict=True)] == sparse
    # Values, of all terms and of the first.
    for count in range(terms + 1):
        left = bits * (terms - count)
        half = sum(2 ** (bits * i + bits - 1) for i in range(terms - count))
        want = [((c >> left << left) + half - zero + step) * scale for c, step in zip(codes, steps, strict=True)]
        back = lowbit.reconstruct(got, terms=count, dtype=np.float64)
        assert back.tolist() == want
        if count:
            assert got.bound(count) == scale * (0.5 + 2.0**-19 + half)
            assert (np.abs(back - x) <= got.bound(count)).all()
    total = sum(scale * 2.0 ** (bits * (terms - 1 - i)) * d for i, d in enumerate(got.digits())) + got.bias
    total[got.positions] += got.steps * scale
    assert np.allclose(total, back, rtol=1e-12)
    ran(isa)


@pytest.mark.parametrize("row", table("Series", "nbits"), ids=lambda row: f"{row[0]} {row[1]} {row[2]}")
def test_the_examples_of_rows(row, isa, ran):
    x = np.array(numbers(row[2], float), np.float32)
    got = lowbit.quantize_rows(x, nbits=int(row[0]), symmetric=row[1] == "symmetric", isa=isa)
    assert np.array_equal(got.scale, np.array(row[3].split(), np.float32), equal_nan=True)
    assert got.zero_point.tolist() == numbers(row[4])[0]
    assert got.codes.tolist() == numbers(row[5])
    assert got.group_sums[:, 0].tolist() == numbers(row[6])[0]
    ran(isa)


@pytest.mark.parametrize("row", table("Series", "image bits"), ids=lambda row: f"{row[0]} bits, {row[1]}")
def test_the_examples_of_images_with_feedback(row, isa, ran):
    height, width, channels = numbers(row[1])[0]
    window = numbers(row[3])[0]
    x = np.array(row[2].split(), np.float32).reshape(1, height, width, channels)
    feedback = np.array(row[4].split(), np.float32).reshape(channels, *window, channels)
    got = lowbit.quantize_images(x, feedback, nbits=int(row[0]), isa=isa)
    assert got.scale == np.float32(row[5])
    assert got.zero_point == int(row[6])
    assert got.codes.tolist() == numbers(row[7])
    ran(isa)


def test_the_examples_of_layers_on_series():
    torch = pytest.importorskip("torch")
    from lowbit.torch import quantize_

    rows = table("Series", "layer")
    model = torch.nn.Sequential(torch.nn.Linear(5, 2)).requires_grad_(False).eval()
    model[0].weight.copy_(torch.tensor([numbers(row[1], float)[0] for row in rows]))
    quantize_(model, lowbit.Series(4, 2, 4, 2, equalize=False))
    layer, expected = model[0], bytearray(256)
    for offset, data, _ in table("Series", "offset"):
        expected[int(offset) : int(offset) + 4] = bytes.fromhex(data)
    assert list(layer.state_dict()) == ["tiled", "bias"]
    assert layer.tiled.numpy().tobytes() == bytes(expected)
    assert layer.integers().tolist() == [numbers(row[3])[0] for row in rows]
    assert layer.digits().transpose(1, 0, 2).tolist() == [numbers(row[4]) for row in rows]
    # An equalizer behind the first bytes; the others without one, and coarser.
    w = torch.tensor([[1911.0, -1, 300], [1e4, 2, 3]])
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False)).requires_grad_(False).eval()
    model[0].weight.copy_(w)
    quantize_(model, lowbit.Series(4, 3, 4, 2))
    layer, c = model[0], lowbit.quantize_weight(w.numpy()).equalizer()
    assert list(layer.state_dict()) == ["tiled", "tiled_1"]
    assert layer.tiled.numpy()[192:].tobytes() == c.astype("<f4").tobytes()
    scale, integers = [], []
    for row in (w.numpy() / c).tolist():
        s, zero, codes, _ = series(row, 4, 3, True, None)
        scale.append(s)
        integers.append([code - zero for code in codes])
    low = (np.array(integers) + 128) % 256 - 128
    assert layer.tiled.numpy()[:192].tobytes() == tiled(low.astype(np.int8), scale)
    coarse = (np.array(integers) - low) // 256
    assert layer.tiled_1.numpy().tobytes() == tiled(coarse.astype(np.int8), np.array(scale) * 256)
    # A convolution.
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 1, (1, 2), bias=False)).requires_grad_(False).eval()
    model[0].weight.copy_(torch.tensor([[[[1911.0, 300]], [[-1, 0]]]]))
    quantize_(model, lowbit.Series(4, 3, 4, 2))
    assert model[0].codes.shape == (2, 1, 4)
    assert model[0].codes.flatten().tolist() == [119, -1, 44, 0, 7, 0, 1, 0]
    assert model[0].scale == 1
    assert "119 −1 44 0 and 7 0 1 0" in TEXT


@pytest.mark.parametrize("off", [-1, 1])
def test_another_length_is_refused(off):
    data = np.zeros(256 + off, np.uint8)
    with pytest.raises(ValueError, match=f"5 by 2 takes 256 bytes, got {256 + off}"):
        lowbit.TiledMatrix(data, 5, 2)


@pytest.mark.parametrize("row", table("Integer networks", "requantize"), ids=lambda row: f"{row[0]} {row[1]}")
def test_the_examples_of_requantization(row, isa):
    name, sums, *numbers, codes = row
    (s_x, s_w, s_y), (zp, qmin, qmax) = map(float, numbers[:3]), map(int, numbers[3:])
    sums = np.array(sums.split(), np.int32)
    dtype = "int8" if qmin < 0 else "uint8"
    x, y = Tensor("x", (1,), "int8", scale=s_x), Tensor("y", sums.shape, dtype, scale=s_y, zero_point=zp)
    # A sum is its bias where the weight is 0.
    weight = Constant("w", np.zeros((len(sums), 1), np.int8), np.array([s_w], np.float32))
    layer = FullyConnected("x", "w", "b", "y", qmin=qmin, qmax=qmax, requantize=name)
    constants = {"w": weight, "b": Constant("b", sums)}
    graph = Graph({"x": x, "y": y}, constants, (layer,), ("x",), ("y",))
    assert graph.plan(isa=isa)(np.ones((1, 1), np.int8))[0].tolist() == [int(code) for code in codes.split()]
