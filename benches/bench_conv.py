"""Convolutions of integer networks beside onnxruntime's QLinearConv and the CPU's limit.

    python benches/bench_conv.py                          the layers of every network in shapes/conv_*.txt
    python benches/bench_conv.py --shapes resnet50 tiny
    pytest benches/bench_conv.py --benchmark-only         a table of times

Codes to codes, channels last, one image, with bias, a scale for each output channel and
zero points other than 0: u8 activations by s8 weights. The limit is as many multiplications
in the kernel's own instruction on registers alone, depthwise or not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import limits
import lowbit
import numpy as np
import pytest
from gemm_peers import bound, onnx_session
from limits import Skip
from lowbit.integer import Constant, Conv2d, Graph, Tensor
from measure import clock_for, cpu_name, interleave, settle, table

#: Files of shapes/, without "conv_" and ".txt".
MODELS = ("resnet20", "resnet50", "mobilenetv1", "mobilenetv2", "tiny")

#: Of activations and outputs.
ZERO_POINT = 128


@dataclass(frozen=True)
class Conv:
    """A convolution of one image."""

    size: tuple[int, int]
    channels: int
    outputs: int
    kernel: tuple[int, int]
    stride: int
    groups: int
    """1, or as many as there are channels."""
    same: bool
    """Padded so that the output is the input by the stride; otherwise not padded."""
    name: str

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of what it makes."""
        lost = (0, 0) if self.same else tuple(k - 1 for k in self.kernel)
        return tuple(-(-(n - less) // self.stride) for n, less in zip(self.size, lost, strict=True))

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """((top, bottom), (left, right)): the odd one comes after, as TensorFlow has it."""
        spans = [(o - 1) * self.stride + k for o, k in zip(self.output, self.kernel, strict=True)]
        missing = [max(0, span - n) if self.same else 0 for span, n in zip(spans, self.size, strict=True)]
        return tuple((n // 2, n - n // 2) for n in missing)

    @property
    def ops(self) -> int:
        """Its operations: a multiplication and an addition are two."""
        (h, w), (kh, kw) = self.output, self.kernel
        return 2 * h * w * self.outputs * kh * kw * (self.channels // self.groups)

    def __str__(self) -> str:
        (h, w), (kh, kw) = self.size, self.kernel
        kind = "dw " if self.groups > 1 else ""
        return f"{h}x{w} {self.channels}->{self.outputs} {kind}{kh}x{kw}/{self.stride} {self.name}"


def convs(model: str) -> list[Conv]:
    """The convolutions in ``shapes/conv_<model>.txt``."""

    def pair(text: str) -> tuple[int, int]:
        a, b = text.split("x")
        return int(a), int(b)

    out = []
    for line in (Path(__file__).parent / "shapes" / f"conv_{model}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            size, c, o, kernel, stride, groups, padding, name = line.split()
            same = padding == "same"
            out.append(Conv(pair(size), int(c), int(o), pair(kernel), int(stride), int(groups), same, name))
    return out


@dataclass(frozen=True)
class Operands:
    """What a convolution takes, and the codes that it should make."""

    x: np.ndarray
    """uint8 (1, H, W, C)."""
    weight: np.ndarray
    """int8 (O, KH, KW, C / groups)."""
    bias: np.ndarray
    """int32 (O,)."""
    scales: np.ndarray
    """float32 (O,): of the weights. The activations' is 1."""
    scale: float
    """Of the output."""
    exact: np.ndarray
    """uint8 (1, OH, OW, O)."""


def operands(conv: Conv) -> Operands:
    """Random codes of the full range, the same for the same shape; few outputs are clamped."""
    (kh, kw), depth = conv.kernel, conv.channels // conv.groups
    rng = np.random.default_rng([*conv.size, conv.channels, conv.outputs, kh, kw, conv.stride])
    x = rng.integers(0, 256, (1, *conv.size, conv.channels), dtype=np.uint8)
    weight = rng.integers(-127, 128, (conv.outputs, kh, kw, depth), dtype=np.int8)
    spread = 74 * 73 * (kh * kw * depth) ** 0.5
    bias = rng.normal(0, spread, conv.outputs).astype(np.int32)
    scales = rng.uniform(0.5, 1.5, conv.outputs).astype(np.float32)
    scale = float(np.float32(spread / 30))
    padded = np.pad(x[0].astype(np.float64) - ZERO_POINT, (*conv.padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, conv.kernel, (0, 1))[:: conv.stride, :: conv.stride]
    if conv.groups > 1:
        sums = np.einsum("hwcij,cij->hwc", windows, weight[..., 0], optimize=True)
    else:
        sums = np.tensordot(windows, weight.astype(np.float64), ((2, 3, 4), (3, 1, 2)))
    codes = np.rint((sums + bias) * (scales / scale)) + ZERO_POINT
    return Operands(x, weight, bias, scales, scale, np.clip(codes, 0, 255).astype(np.uint8)[None])


def ours(conv: Conv, p: Operands) -> Callable[[], np.ndarray]:
    """A planned network of this one operation."""
    graph = Graph(
        tensors={
            "x": Tensor("x", p.x.shape[1:], "uint8", 1.0, ZERO_POINT),
            "y": Tensor("y", p.exact.shape[1:], "uint8", p.scale, ZERO_POINT),
        },
        constants={"w": Constant("w", p.weight, p.scales), "b": Constant("b", p.bias)},
        operations=(Conv2d("x", "w", "b", "y", stride=(conv.stride,) * 2, padding=conv.padding, groups=conv.groups),),
        inputs=("x",),
        outputs=("y",),
    )
    net = graph.plan()
    return lambda: net(p.x)


def qlinear_conv(conv: Conv, p: Operands, unsigned: bool = False) -> Callable[[], np.ndarray]:
    """onnxruntime's com.microsoft QLinearConv, channels last, constant weights, bound buffers.

    ``unsigned`` gives it the same weights as uint8 around 128: without VNNI its u8 by s8
    kernel saturates, and this one does not.
    """
    try:
        from onnx import TensorProto, helper
    except ImportError:
        raise Skip("not installed: onnx") from None
    weight, zero = p.weight.transpose(0, 3, 1, 2), np.zeros(conv.outputs, np.int8)
    if unsigned:
        weight, zero = ((v.astype(np.int16) + 128).astype(np.uint8) for v in (weight, zero))
    constants = {
        "x_scale": np.ones((), np.float32), "x_zero": np.array(ZERO_POINT, np.uint8),
        "w": np.ascontiguousarray(weight), "w_scale": p.scales, "w_zero": zero,
        "y_scale": np.array(p.scale, np.float32), "y_zero": np.array(ZERO_POINT, np.uint8), "b": p.bias,
    }  # fmt: skip
    (top, bottom), (left, right) = conv.padding
    node = helper.make_node(
        "QLinearConv", ["a", *constants], ["y"], domain="com.microsoft", channels_last=1, group=conv.groups,
        kernel_shape=conv.kernel, strides=(conv.stride,) * 2, pads=(top, left, bottom, right),
    )  # fmt: skip
    return bound(onnx_session([node], constants, p.x, TensorProto.UINT8, p.exact.shape), p.x, np.zeros_like(p.exact))


PEERS: dict[str, Callable[[Conv, Operands], Callable[[], np.ndarray]]] = {
    "onnxruntime u8s8": qlinear_conv,
    "onnxruntime u8u8": lambda conv, p: qlinear_conv(conv, p, unsigned=True),
}


def wrong(got: np.ndarray, p: Operands) -> float:
    """The share of codes that are off by more than the rounding of a half."""
    return float((np.abs(got.astype(int) - p.exact) > 1).mean())


def row(conv: Conv, rounds: int) -> dict[str, Any]:
    """Times one convolution; a row of the table as a dictionary."""
    p = operands(conv)
    fs, left = {"lowbit": ours(conv, p)}, {}
    for name, make in PEERS.items():
        try:
            fs[name] = make(conv, p)
        except Skip as e:
            left[name] = str(e)
    errors = {name: wrong(f(), p) for name, f in fs.items()}
    if errors["lowbit"]:
        raise AssertionError(f"{conv}: {errors['lowbit']:.2%} of lowbit's codes are wrong")
    loop, times = limits.limit(lowbit.isa(), conv.ops)
    timing = interleave({**loop, **fs}, rounds, at_least=2e-3, clock=clock_for(1), warm=True)
    peers = [name for name in fs if name != "lowbit"]
    exact = [name for name in peers if not errors[name]]
    best = min(exact, key=lambda name: timing.seconds(name).median, default=None)
    return {
        "shape": str(conv),
        "us": {name: timing.seconds(name).median * 1e6 for name in fs},
        "gops": {name: conv.ops / timing.seconds(name).median / 1e9 for name in fs},
        "share": timing.share("lowbit", loop, times) if loop else None,
        "share best": timing.share(best, loop, times) if loop and best else None,
        "best": best,
        "ratio": timing.ratio("lowbit", best) if best else None,
        "ratios": {name: timing.ratio("lowbit", name) for name in peers},
        "wrong": {name: error for name, error in errors.items() if error},
        "left": left,
    }


# --- pytest ---


@pytest.mark.parametrize("who", ["lowbit", *PEERS])
@pytest.mark.parametrize("model", MODELS)
def test_conv(benchmark, model, who):
    """A network's first depthwise convolution, or its first; where nothing is timed, the least of them."""
    found = convs(model)
    if not benchmark.enabled:
        found.sort(key=lambda conv: conv.ops)
    conv = next((c for c in found if c.groups > 1), found[0])
    p = operands(conv)
    with lowbit.threads(1):
        try:
            f = ours(conv, p) if who == "lowbit" else PEERS[who](conv, p)
        except Skip as e:
            pytest.skip(str(e))
        benchmark.group = f"conv {conv}"
        got = benchmark(f)
    assert got.shape == p.exact.shape
    if who != "onnxruntime u8s8":
        assert not wrong(got, p)


# --- command line ---


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=MODELS, help="files of shapes/, without conv_ and .txt")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--avx2", action="store_true", help="hold lowbit to AVX2; onnxruntime knows no such switch")
    parser.add_argument("--quick", action="store_true", help="5 rounds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    settle(1, avx2=args.avx2)
    lowbit.set_num_threads(1)
    rounds = 5 if args.quick else args.rounds
    told: dict[str, Any] = {"cpu": cpu_name(), "isa": lowbit.isa(), "threads": 1, "rounds": rounds}
    told["clock"] = clock_for(1).__name__
    say = (lambda *_: None) if args.json else (lambda *text: print(*text, flush=True))
    say("; ".join(f"{key} {value}" for key, value in told.items()))
    told["convs"] = {}
    for model in args.shapes:
        rows = told["convs"][model] = []
        for conv in convs(model):
            rows.append(row(conv, rounds))
            print(f"{conv}: done", file=sys.stderr, flush=True)
        say(f"\n{model}: codes to codes, channels last, one image\n")
        head = ["H x W C -> O kernel/stride", "us", "share of limit", "ratio to best exact peer", "best", "its share"]
        names = ["lowbit", *PEERS]
        heads = [*head, *(f"vs {name}" for name in PEERS), *(f"{name} GOP/s" for name in names)]
        say(table(heads, [
            [r["shape"], f"{r['us']['lowbit']:.1f}", r["share"], r["ratio"], r["best"], r["share best"],
             *(r["ratios"].get(name) for name in PEERS),
             *(f"{r['gops'][name]:.0f}" if name in r["gops"] else "-" for name in names)]
            for r in rows
        ]))  # fmt: skip
        told.setdefault("means", {})[model] = means = {
            name: geometric_mean(r["ratios"][name].median for r in rows) for name in PEERS if name in rows[0]["ratios"]
        }
        best = [r["ratio"] for r in rows if r["ratio"]]
        say("\nGeometric means of the medians: " + ", ".join(f"vs {name} {m:.2f}" for name, m in means.items()))
        if best:
            say(f"vs the best exact peer {geometric_mean(r.median for r in best):.2f}")
        for name in PEERS:
            bad = [r["wrong"][name] for r in rows if name in r["wrong"]]
            if bad:
                say(f"\n- {name}: wrong on {len(bad)} of {len(rows)}, up to {max(bad):.1%} of the codes: it saturates")
        for name, why in sorted({item for r in rows for item in r["left"].items()}):
            say(f"\n- {name}: left out: {why}")
    if args.json:
        print(json.dumps(told, default=str))


if __name__ == "__main__":
    main()
