"""Series expansion in tables: digits of weights, outputs of layers, a model's accuracy, anytime precision."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import lowbit
from lowbit.cli.nonuniform import Check, Missing
from lowbit.config import Series

__all__ = ["MODELS", "Subject", "accuracy", "anytime", "digits", "outputs", "subject"]

RESNETS = ("resnet20", "resnet32", "resnet44")
MODELS = (*RESNETS, "minilm", "stories260k")

#: Terms of each width that the digits' table shows.
DIGITS = {2: 8, 3: 6, 4: 5, 8: 3}
#: What clips weights where something has to be saturated: so many times a filter's root mean square.
CLIP = 2.5
#: The accuracy table's series. The last but one are of the convention that the first layer has 8 bits.
SERIES = [
    *(Series(4, k, 4, t) for k, t in ((1, 1), (1, 2), (2, 1), (2, 2))),
    Series(4, 2, 4, 2, triangular=True),
    Series(4, 2, 4, 2, clip=3.0),
    Series(4, 2, 4, 2, feedback=True),
    *(Series(4, k, 4, t) for k, t in ((3, 2), (3, 3))),
    *(Series(3, n, 3, n) for n in (1, 2, 3)),
    Series(3, 2, 3, 2, clip=CLIP),
    Series(3, 2, 3, 2, feedback=True),
    Series(3, 2, 3, 2, clip=CLIP, feedback=True),
    *(Series(2, n, 2, n) for n in (1, 2, 3, 4)),
]
FIRST = "first layer 4 bits 2x2"
#: Series, and the first terms that a sample may stop at.
ANYTIME = {
    Series(4, 2, 4, 2): ((1, 1), (1, 2), (2, 2)),
    Series(2, 4, 2, 4): ((3, 3), (4, 4)),
}
RISKS = (0.0, 0.001, 0.01)


@dataclass
class Subject:
    """A network, its inputs, and what is measured of it."""

    name: str
    make: Callable[[], Any]
    #: Of a model: its outputs, for all inputs.
    run: Callable[[Any], Any]
    #: Of outputs and those in float32: what the table shows.
    tell: Callable[[Any, Any], dict[str, float]]
    #: Inputs told in the head, and how many there are.
    what: str
    count: int
    #: The first layer's name, where convention keeps it in 8 bits.
    first: str | None = None
    #: A batch for the layers' outputs, and batches to measure margins on.
    few: Any = None
    others: list[Any] = field(default_factory=list)
    labels: Any = None


@dataclass(frozen=True)
class Row:
    """A model in one form. ``weight_bits`` and ``activation_bits`` are those of all terms together."""

    name: str
    weight: str
    activation: str
    weight_bits: int
    activation_bits: int
    products: int
    kilobytes: float
    milliseconds: float
    measured: dict[str, float]


# ------------------------------------------------------------------ subjects


def subject(name: str, data: Path | None, count: int | None) -> Subject:
    """One of `MODELS` with its data.

    Raises
    ------
    Missing
        No folder, a file that is not in it, a package that is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise Missing(f"it needs PyTorch: pip install 'lowbit[torch]' ({error})") from None
    if name == "minilm":
        return _minilm(count or 600)
    given = data if data is not None else os.environ.get("LOWBIT_DATA")
    if not given:
        raise Missing(f"no data: --data FOLDER or LOWBIT_DATA=FOLDER, with {name} in it")
    root = Path(given)
    return _stories(root, count or 32) if name == "stories260k" else _resnet(root, name, count or 1000)


def _there(root: Path, *paths: str) -> list[Path]:
    for path in paths:
        if not (root / path).is_file():
            raise Missing(f"no {path} in {root}")
    return [root / path for path in paths]


def _resnet(root: Path, name: str, count: int) -> Subject:
    import torch

    from lowbit.models.resnet import load_resnet, normalized

    network, test, other = _there(
        root,
        f"resnet_cifar10/{name}.safetensors",
        "cifar10/test_first5000_jpeg.npz",
        "cifar10/train_calib2000_jpeg.npz",
    )

    def images(path: Path, most: int | None) -> tuple[Any, Any]:
        stored = np.load(path)
        x = normalized(torch.from_numpy(stored["x"][:most])).to(memory_format=torch.channels_last)
        return x, torch.from_numpy(stored["y"][:most].astype(np.int64))

    x, y = images(test, count)

    def run(model: Any) -> Any:
        with torch.inference_mode():
            return torch.cat([model(part) for part in x.split(100)])

    def tell(logits: Any, exact: Any) -> dict[str, float]:
        right, were = ((z.argmax(1) == y).double() * 100 for z in (logits, exact))
        same = (logits.argmax(1) == exact.argmax(1)).double() * 100
        off = right - were
        return {
            "top1": float(right.mean()),
            "top1_half": _half(right),
            "change": float(off.mean()),
            "change_half": _half(off),
            "agreement": float(same.mean()),
            "logit_error": float((logits - exact).abs().max()),
        }

    what = f"{len(x)} images of CIFAR-10's test set, from JPEG"
    # As many to measure margins on, at least.
    others = list(images(other, None if count >= 1000 else 2 * count)[0].split(100))
    return Subject(name, lambda: load_resnet(network), run, tell, what, len(x), "conv1", x[:4], others, y)


def _half(x: Any) -> float:
    """Half of a mean's 95 % interval."""
    return 1.96 * float(x.std(correction=1)) / math.sqrt(len(x))


def _minilm(count: int) -> Subject:
    import torch

    from lowbit.cli import encoder, texts

    try:
        model = encoder.load()
    except encoder.Missing as error:
        raise Missing(str(error)) from None
    passages = texts.help_topics(count)
    batches = list(encoder.batches(model, passages))

    def run(model: Any) -> Any:
        vectors = torch.empty(len(passages), 384)
        with torch.inference_mode():
            for at, features in batches:
                vectors[at.tolist()] = model(dict(features))["sentence_embedding"]
        return torch.nn.functional.normalize(vectors)

    def tell(vectors: Any, exact: Any) -> dict[str, float]:
        near, were = (encoder.neighbours(v.numpy()) for v in (vectors, exact))
        kept = np.array([len({*a} & {*b}) / 10 for a, b in zip(near, were, strict=True)])
        cosine = (vectors * exact).sum(1)
        return {
            "kept": 100 * float(kept.mean()),
            "kept_half": 196 * float(kept.std(ddof=1)) / math.sqrt(len(kept)),
            "cosine": float(cosine.mean()),
            "output_error": float((vectors - exact).abs().max()),
        }

    what = f"{len(passages)} passages of Python's help; embeddings stay in float32"
    return Subject("all-MiniLM-L6-v2", encoder.load, run, tell, what, len(passages), few=batches[-1][1])


def _stories(root: Path, count: int) -> Subject:
    import torch

    from lowbit.models.llama import load_llama

    _, _, tokens = _there(
        root, "stories260k/config.json", "stories260k/stories260K.safetensors", "stories260k/sampled_tokens.npz"
    )
    ids = torch.from_numpy(np.load(tokens)["tokens"][:count].astype(np.int64))

    def run(model: Any) -> Any:
        with torch.inference_mode():
            return model(ids)

    def nats(logits: Any) -> Any:
        each = torch.nn.functional.cross_entropy(logits[:, :-1].double().transpose(1, 2), ids[:, 1:], reduction="none")
        return each.mean(1)

    def tell(logits: Any, exact: Any) -> dict[str, float]:
        off = nats(logits) - nats(exact)
        return {
            "perplexity": float(nats(logits).mean().exp()),
            "change": 100 * math.expm1(float(off.mean())),
            "change_half": 100 * _half(off),
            "agreement": 100 * float((logits.argmax(-1) == exact.argmax(-1)).double().mean()),
            "logit_error": float((logits - exact).abs().max()),
        }

    what = f"{len(ids)} sequences of 192 tokens that it sampled itself; the embedding stays in float32"
    return Subject("stories260K", lambda: load_llama(root / "stories260k"), run, tell, what, len(ids), few=ids[:1, :32])


# ------------------------------------------------------------------ digits and outputs


def digits(weights: dict[str, np.ndarray]) -> tuple[list[dict[str, Any]], list[Check]]:
    """Table 1: the largest error of each number of terms over the bound, the worst of all layers."""
    rows, checks = [], []
    for bits, most in DIGITS.items():
        before = None
        for terms in range(1, most + 1):
            over, clamped, error = 0.0, 0.0, 0.0
            bounds = {}
            for name, w in weights.items():
                series = lowbit.expand(w, bits, terms)
                off = np.abs(lowbit.reconstruct(series, dtype=np.float64) - w).max()
                bounds[name] = float(series.bound())
                over, error = max(over, off / bounds[name]), max(error, off / np.abs(w).max())
                clamped = max(clamped, _clamped(w, bits, terms) / bounds[name])
            falls = [before[name] / bounds[name] for name in bounds] if before else []
            row = {"bits": bits, "terms": terms, "error": float(error), "over_bound": float(over)}
            row |= {"clamped_over_bound": float(clamped), "fall": min(falls) if falls else None}
            rows.append(row)
            checks.append(
                Check("bound", f"{bits} bits, {terms} terms: no layer's error exceeds its bound", bool(over <= 1))
            )
            if falls:
                text = f"{bits} bits: term {terms} makes the bound at least {2**bits} times smaller"
                checks.append(Check("identity", text, min(falls) > 2**bits * (1 - 2.0**-20)))  # scales are float32
            before = bounds
        text = f"{bits} bits: residual digits that are clamped stall, {clamped:.3g} times the bound at {most} terms"
        checks.append(Check("trend", text, bool(clamped > 1)))
    return rows, checks


def _clamped(w: np.ndarray, bits: int, terms: int) -> float:
    """The largest error of digits of residuals, each clamped to its bits: what the balanced ones are for."""
    top = 2 ** (bits - 1) - 1
    scale = np.abs(w).max() / top
    left = w.astype(np.float64)
    for _ in range(terms):
        left = left - scale * np.clip(np.rint(left / scale), -top - 1, top)
        scale /= 2**bits
    return float(np.abs(left).max())


def outputs(subject: Subject) -> tuple[list[dict[str, Any]], list[Check]]:
    """Table 2: what each layer's outputs are off by, beside the bound, on inputs that it gets.

    With a bias, a weight of which some is saturated, inputs moved below 0 so that their zero point is
    not 0, and the layer's own padding.
    """
    import torch
    from torch import nn

    from lowbit.torch.series import SeriesConv2d, SeriesLinear

    seen: dict[str, tuple[Any, Any]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, _: Any) -> None:
            seen.setdefault(name, (module, args[0].detach()))

        return hook

    model = subject.make()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(keep(name))
    with torch.inference_mode():
        model(subject.few)
    rows, worst = [], 0.0
    for terms in (1, 2, 3, 4):
        config = Series(4, terms, 4, terms, clip=CLIP)
        over, off, largest, saturated = 0.0, 0.0, 0.0, 0
        for module, x in seen.values():
            bias = torch.linspace(-1, 1, module.weight.shape[0])
            conv = isinstance(module, nn.Conv2d)
            layer: Any = (SeriesConv2d if conv else SeriesLinear).of(module, config)  # type: ignore[arg-type]
            layer.bias = bias
            x = x.clone() - 0.3 * x.std()
            saturated += int(np.count_nonzero(layer.saturation()))
            weight = module.weight.detach().double()
            exact = layer.convolve(x.double(), weight)
            sums = layer.sums(x)
            scale = sums.scale.astype(np.float64).reshape(-1, *(1,) * (sums.sums.ndim - 1)) * layer._row_scale()
            got = torch.from_numpy(sums.sums * scale)
            got = got.permute(0, 3, 1, 2) if conv else got.reshape(exact.shape)
            error = (got - exact).abs()
            # |y - ŷ| <= |W| |x - x̂| + |W - Ŵ| |x̂|, by the steps of both.
            each = torch.from_numpy(layer._row_scale()).double() * (0.5 + 1e-5)
            each = each[:, None] * torch.from_numpy(_equalizer(layer)) if not conv else each[:, None, None, None]
            apart = (
                _step(sums.scale, x, conv) / torch.from_numpy(_equalizer(layer))
                if not conv
                else _step(sums.scale, x, conv)
            )
            bound = layer.convolve(apart.expand_as(x), weight.abs())
            bound = bound + layer.convolve(layer.seen(x).double().abs(), each.expand_as(weight))
            over = max(over, float((error / bound.clamp(min=1e-300)).max()))
            off, largest = max(off, float(error.max() / exact.abs().max())), max(largest, float(bound.max()))
        rows.append({"bits": 4, "terms": terms, "error": off, "over_bound": over, "saturated": saturated})
        worst = max(worst, over)
    checks = [Check("bound", f"no output of {len(seen)} layers is off by more than its bound", worst <= 1)]
    checks.append(Check("trend", "some of every network's weights is saturated", all(r["saturated"] for r in rows)))
    return rows, checks


def _step(scale: np.ndarray, x: Any, conv: bool) -> Any:
    """Half of each row's step, and a little for what float32 rounds, as it broadcasts to inputs."""
    import torch

    half = torch.from_numpy(scale.astype(np.float64)) * (0.5 + 1e-4)
    return half.reshape(-1, 1, 1, 1) if conv else half.reshape(*x.shape[:-1], 1)


def _equalizer(layer: Any) -> np.ndarray:
    equalizer = layer.equalizer() if hasattr(layer, "equalizer") else None
    return np.ones(1) if equalizer is None else equalizer.astype(np.float64)


# ------------------------------------------------------------------ accuracy


def accuracy(subject: Subject, *, rivals: bool = True) -> Iterator[Row]:
    """Table 3, a row at a time: float32, series, and what they are compared with."""
    from lowbit.torch import quantize_

    exact, took = _timed(subject, subject.make())

    def row(name: str, model: Any, config: Series | None, weight: str = "", size: int | None = None) -> Row:
        outputs, took = _timed(subject, model)
        bits = (32, 32) if config is None else config.effective_bits
        activation = "-" if config is None else f"{config.activation_terms} x {config.activation_bits}"
        weight = weight or ("-" if config is None else f"{config.weight_terms} x {config.weight_bits}")
        kilobytes = (_stored(model) if size is None else size) / 1e3
        products = 0 if config is None else config.products
        return Row(name, weight, activation, *bits, products, kilobytes, took, subject.tell(outputs, exact))

    yield Row("float32", "-", "-", 32, 32, 0, _stored(subject.make()) / 1e3, took, subject.tell(exact, exact))
    for config in SERIES:
        model = subject.make()
        quantize_(model, config)
        yield row(_name(config), model, config)
    if subject.first is not None:
        for config in (Series(3, 2, 3, 2), Series(3, 2, 3, 2, clip=CLIP)):
            model = subject.make()
            quantize_(model, config, rules=[(f"^{subject.first}$", Series(4, 2, 4, 2))])
            yield row(f"{_name(config)}, {FIRST}", model, config)
    if not rivals:
        return
    one = Series(8, 1, 8, 1)
    model = subject.make()
    quantize_(model, one)
    yield row("one term, round to nearest", model, one)
    for bits, activation in ((4, Series(4, 1, 4, 1)), (4, Series(4, 1, 4, 2))):
        yield row("one term, best clip", _clipped(subject.make(), bits, activation), activation)
    for orders in (2, 3):
        config = Series(4, orders, 4, 2)
        model, size = _residual(subject.make(), 4, orders)
        yield row("own scale each order, as REx", model, config, size=size)
    if subject.name in RESNETS:
        made = _onnxruntime(subject)
        if made is not None:
            run, size, weight = made
            outputs, took = _clock(run)
            yield Row(
                "onnxruntime static, 200 images", f"1 x {weight}", "1 x 8", weight, 8, 1, size / 1e3,
                took * 1e3 / subject.count, subject.tell(outputs, exact),
            )  # fmt: skip


def _name(config: Series) -> str:
    name = "series"
    if config.triangular:
        name += ", triangular"
    if config.clip is not None:
        name += f", clip {config.clip:g}"
    return f"{name}, feedback" if config.feedback else name


def _clock(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _timed(subject: Subject, model: Any) -> tuple[Any, float]:
    """Outputs, and milliseconds a sample on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if hasattr(model, "to") and subject.first is not None:
            model = model.to(memory_format=torch.channels_last)
        outputs, took = _clock(lambda: subject.run(model))
    finally:
        torch.set_num_threads(threads)
    return outputs, took * 1e3 / subject.count


def _stored(model: Any) -> int:
    """Bytes of a state_dict, a tensor that several names share once."""
    seen = {t.data_ptr(): t.nbytes for t in model.state_dict().values() if hasattr(t, "nbytes")}
    return sum(seen.values())


def _clipped(model: Any, bits: int, config: Series) -> Any:
    """Weights by the clip of least squared error, one term."""
    from lowbit.methods.series import series_layers
    from lowbit.torch import quantize_

    exact = {name: module for name, module in model.named_modules() if hasattr(module, "weight")}
    exact = {name: module.weight.detach().clone() for name, module in exact.items() if module.weight.ndim in (2, 4)}
    quantize_(model, Series(bits, 1, config.activation_bits, config.activation_terms, equalize=False))
    for name, layer in series_layers(model).items():
        w = exact[name]
        w = (w.permute(0, 2, 3, 1) if w.ndim == 4 else w).contiguous().numpy()
        qparams = lowbit.choose_qparams(w, bits, granularity=lowbit.PerAxis(0), method="mse")
        codes = lowbit.quantize(w, qparams).astype(np.int64) - 2 ** (bits - 1)
        new = layer.with_codes(codes, qparams.scale, layer.config)
        new.mean = layer.mean
        new.correct_(layer.dequantize())
        _replace(model, name, new)
    return model


def _residual(model: Any, bits: int, orders: int) -> tuple[Any, int]:
    """Weights as orders of residuals, each by its own absolute maximum; inputs as a series of 8 bits. In floats."""
    import torch
    from torch import nn

    from lowbit.methods.series import series_layers
    from lowbit.torch import quantize_
    from lowbit.torch.correction import moved_mean

    weights = {n: m.weight.detach().clone() for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    quantize_(model, Series(4, 2, 4, 2, equalize=False), fuse=False)
    size = _stored(model)
    for name, layer in series_layers(model).items():
        w = weights[name].flatten(1).numpy()
        size -= layer.integers().size
        values = np.zeros_like(w)
        for _ in range(orders):
            qparams = lowbit.choose_qparams(w - values, bits, granularity=lowbit.PerAxis(0))
            codes = lowbit.quantize(w - values, qparams)
            values = values + lowbit.dequantize(codes, qparams)
            size += len(w) * -(-w.shape[1] * bits // 8) + qparams.scale.nbytes
        weight = torch.from_numpy(values).view_as(weights[name])
        if layer.mean is not None and layer.bias is not None:
            layer.bias = layer.bias - moved_mean(layer, layer.dequantize(), weight, layer.mean).float()
        _replace(model, name, _rounding()(layer, weight))
    return model, size


@functools.cache
def _rounding() -> Any:
    from torch import nn

    class Rounding(nn.Module):
        """A layer of float weights whose inputs are rounded."""

        def __init__(self, layer: Any, weight: Any) -> None:
            super().__init__()
            self.layer, self.weight = layer, weight

        def forward(self, x: Any) -> Any:
            y = self.layer.convolve(self.layer.seen(x), self.weight)
            bias = self.layer.bias
            return y if bias is None else y + (bias if self.weight.ndim == 2 else bias[:, None, None])

    return Rounding


def _replace(model: Any, name: str, new: Any) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _onnxruntime(subject: Subject) -> tuple[Callable[[], Any], int, int] | None:
    """onnxruntime's static int8, calibrated on 200 images, weights per channel, its file's size and weights' bits.

    None where it is not installed. Where the CPU lacks VNNI its sums of 8-bit weights saturate: then of 7 bits.
    """
    narrow = "vnni" not in lowbit.isa()
    import tempfile

    try:
        import onnxruntime as ort
        import onnxscript  # noqa: F401
        import torch
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        return None
    images = torch.cat(subject.others)[::10].contiguous().numpy()

    class Images(CalibrationDataReader):  # type: ignore[misc]
        left = iter(np.array_split(images, 10))

        def get_next(self) -> dict[str, np.ndarray] | None:
            some = next(self.left, None)
            return None if some is None else {"x": some}

    with tempfile.TemporaryDirectory() as folder:
        path, made = f"{folder}/float.onnx", f"{folder}/int8.onnx"
        torch.onnx.export(
            subject.make(), (torch.zeros(2, 3, 32, 32),), path, input_names=["x"], output_names=["y"], verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, dynamo=True,
        )  # fmt: skip
        quant_pre_process(path, path)
        quantize_static(
            path, made, Images(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            reduce_range=narrow,
        )  # fmt: skip
        size = os.path.getsize(made)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    inputs: list[Any] = []

    def run() -> Any:
        parts = [session.run(None, {"x": part})[0] for part in inputs]
        return torch.from_numpy(np.concatenate(parts))

    subject.run(lambda part: inputs.append(part.contiguous().numpy()) or torch.zeros(len(part), 10))
    return run, size, 8 - narrow


# ------------------------------------------------------------------ anytime


def anytime(subject: Subject) -> tuple[list[dict[str, Any]], list[Check]]:
    """Table 4: what stopping early saves, by the certain bound and by measured margins."""
    from lowbit.methods.series import first_terms, leads, margin
    from lowbit.torch import quantize_

    told, checks = [], []
    for config, stages in ANYTIME.items():
        model = subject.make()
        quantize_(model, config)
        want = subject.run(model).argmax(1)
        row: dict[str, Any] = {"series": _terms(config), "fixed": []}
        for weight, activation in stages:
            got = subject.run(first_terms(model, weight, activation)).argmax(1)
            row["fixed"].append(
                {"terms": [weight, activation], "products": weight * activation, "error": _differ(got, want)}
            )
        row["certain"] = _certain(subject, model, first_terms(model, *stages[0]))
        found = leads(model, stages, subject.others)
        row["measured"] = [
            _measured(subject, model, stages, risk, [margin(*each, risk) for each in found], want, row["fixed"])
            for risk in RISKS
        ]
        told.append(row)
        text = f"{row['series']}: by the certain bound the first choice of all terms, on every image"
        checks.append(Check("bound", text, row["certain"]["differ"] == 0))
    return told, checks


def _terms(config: Series) -> str:
    return f"{config.weight_bits} bits {config.weight_terms}x{config.activation_terms}"


def _differ(got: Any, want: Any) -> float:
    return 100 * float((got != want).double().mean())


def _certain(subject: Subject, model: Any, few: Any) -> dict[str, Any]:
    """Images whose first choice the bound makes sure, and whether it was that of all terms."""
    import torch

    from lowbit.methods.series import certain_bound

    told = {"images": subject.count, "stopped": 0, "differ": 0, "radius": 0.0}

    def run(part: Any) -> Any:
        with torch.inference_mode():
            outputs, off = certain_bound(few, model, part)
            whole = model(part)
        first = outputs.argmax(1, keepdim=True)
        least = (outputs - off).gather(1, first)
        most = (outputs + off).scatter(1, first, -math.inf).amax(1, keepdim=True)
        sure = (least > most)[:, 0]
        told["radius"] = max(told["radius"], float(off.max()))
        told["stopped"] += int(sure.sum())
        told["differ"] += int((first[:, 0] != whole.argmax(1))[sure].sum())  # the others take all terms
        return whole

    subject.run(run)
    return {**told, "layers": _first_layers(model, few, subject.few)}


def _measured(
    subject: Subject,
    model: Any,
    stages: Sequence[Any],
    risk: float,
    margins: list[float],
    want: Any,
    fixed: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    import torch

    from lowbit.methods.series import Anytime

    runner, stopped = Anytime(model, stages, margins), []

    def run(part: Any) -> Any:
        answers = runner(part)
        stopped.append(answers.stage)
        return answers.logits

    error = _differ(subject.run(run).argmax(1), want)
    stage = torch.cat(stopped)
    products = float(torch.tensor(runner.products)[stage].double().mean())
    shares = [100 * float((stage == i).double().mean()) for i in range(len(stages))]
    # Fewer products than some fixed number of terms, and no more errors.
    beats = [f["terms"] for f in fixed if products < f["products"] and error <= f["error"]]
    near = [f["terms"] for f in fixed if products < f["products"] and f["error"] == 0]
    return {
        "risk": risk, "margins": margins, "products": products, "error": error, "stopped": shares, "beats": beats,
        "fewer_than_exact": near,
    }  # fmt: skip


def _first_layers(model: Any, few: Any, x: Any) -> list[dict[str, float]]:
    """What the certain bound is worth after one, two and three layers, beside what it bounds."""
    import torch

    from lowbit.methods.series import certain_bound, series_layers

    rows = []
    names = list(series_layers(model))[:3]
    for name in names:
        ours, theirs = (_until(m, name) for m in (few, model))
        with torch.inference_mode():
            outputs, radius = certain_bound(ours, model, x)
            off = (theirs(x) - outputs).abs()
        rows.append(
            {
                "layer": name,
                "radius": float(radius.max()),
                "error": float(off.max()),
                "size": float(outputs.abs().max()),
            }
        )  # type: ignore[dict-item]
    return rows


def _until(model: Any, name: str) -> Any:
    """A model that ends with a layer."""
    from torch import fx

    from lowbit.methods.series import _Tracer

    graph = _Tracer().trace(model)
    node = next(n for n in graph.nodes if n.op == "call_module" and n.target == name)
    for last in [n for n in graph.nodes if n.op == "output"]:
        graph.erase_node(last)
    graph.output(node)
    return fx.GraphModule(model, graph)


# ------------------------------------------------------------------ printing


def _plain(x: float) -> str:
    return f"{x:+.2f}" if abs(x) < 1e4 else f"{x:+.1e}"


def digit_lines(rows: Sequence[dict[str, Any]], layers: int) -> Iterator[str]:
    yield f"digits of {layers} weights: the largest error over the bound, the worst of all; and with clamped residual digits"
    yield f"{'bits':>4} {'terms':>5} {'error/max|w|':>13} {'over bound':>11} {'bound falls':>12} {'clamped over bound':>19}"
    for row in rows:
        fall = "" if row["fall"] is None else f"{row['fall']:.3f}"
        yield (
            f"{row['bits']:>4} {row['terms']:>5} {row['error']:>13.3g} {row['over_bound']:>11.4f} {fall:>12}"
            f" {row['clamped_over_bound']:>19.4g}"
        )


def output_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"outputs of every layer, bias, zero point and padding not 0, weights clipped at {CLIP} root mean squares"
    yield f"{'bits':>4} {'terms':>7} {'error/max|y|':>13} {'over bound':>11} {'saturated':>10}"
    for row in rows:
        terms = f"{row['terms']} x {row['terms']}"
        yield f"{row['bits']:>4} {terms:>7} {row['error']:>13.3g} {row['over_bound']:>11.4f} {row['saturated']:>10}"


COLUMNS = {
    "top1": ("top-1 %", lambda m: f"{m['top1']:.2f} ± {m['top1_half']:.2f}", 15),
    "kept": ("neighbours kept %", lambda m: f"{m['kept']:.2f} ± {m['kept_half']:.2f}", 18),
    "cosine": ("cosine", lambda m: f"{m['cosine']:.5f}", 9),
    "perplexity": ("perplexity", lambda m: f"{m['perplexity']:.5g}", 11),
    "change": ("to float32", lambda m: f"{_plain(m['change'])} ± {m['change_half']:.2f}", 18),
    "agreement": ("agreement %", lambda m: f"{m['agreement']:.2f}", 12),
    "logit_error": ("logits off by", lambda m: f"{m['logit_error']:.4g}", 14),
    "output_error": ("outputs off by", lambda m: f"{m['output_error']:.4g}", 15),
}


def accuracy_head(subject: Subject, measured: dict[str, float]) -> Iterator[str]:
    yield f"{subject.name}, {subject.what}; no calibration data but for onnxruntime; one thread, one run; 95 % intervals"
    yield "terms x bits; effective bits are those of one code with the same numerics; integer products a layer"
    columns = "".join(f"{title:>{width}}" for key, (title, _, width) in COLUMNS.items() if key in measured)
    yield f"{'':<46}{'weights':>8}{'inputs':>8}{'effective':>11}{'products':>9}{'kB':>9}{columns}{'ms':>9}"


def accuracy_line(row: Row) -> str:
    columns = "".join(
        f"{show(row.measured):>{width}}" for key, (_, show, width) in COLUMNS.items() if key in row.measured
    )
    effective = f"{row.weight_bits} x {row.activation_bits}"
    return (
        f"{row.name:<46}{row.weight:>8}{row.activation:>8}{effective:>11}{row.products or '-':>9}"
        f"{row.kilobytes:>9.1f}{columns}{row.milliseconds:>9.3f}"
    )


def anytime_lines(told: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "anytime: integer products a layer and image, and images whose first choice is not that of all terms"
    for series in told:
        certain = series["certain"]
        yield f"{series['series']}"
        for row in series["fixed"]:
            terms = "x".join(map(str, row["terms"]))
            yield f"  {terms} for every image: {row['products']} products, {row['error']:.2f} % differ"
        for row in certain["layers"]:
            yield (
                f"  certain bound of the first terms after {row['layer']}: {row['radius']:.3g}, where outputs are off by"
                f" {row['error']:.3g} and as large as {row['size']:.3g}"
            )
        yield (
            f"  certain bound of the logits: up to {certain['radius']:.3g}; {certain['stopped']} of {certain['images']}"
            f" images stop, {certain['differ']} differ"
        )
        for row in series["measured"]:
            shares = ", ".join(f"{share:.1f}" for share in row["stopped"])
            beats = ", ".join("x".join(map(str, terms)) for terms in row["beats"])
            fewer = ", ".join("x".join(map(str, terms)) for terms in row["fewer_than_exact"])
            worth = f"beats {beats}" if beats else "beats none of the fixed ones"
            worth += f"; fewer products than {fewer}, at that error" if fewer and not beats else ""
            yield (
                f"  measured margins, risk {row['risk']:g}: {row['products']:.2f} products, {row['error']:.2f} % differ;"
                f" {shares} % stop at each stage; {worth}"
            )


def draw(rows: Sequence[dict[str, Any]], measured: str, path: Path, title: str) -> None:
    """Writes a PNG: what outputs are off by, against terms, a line for each width.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for bits, color in ((2, "#b45309"), (3, "#1d4ed8"), (4, "#0b7a5c")):
        points = sorted(
            (int(r["weight"][0]), r["measured"][measured])
            for r in rows
            if r["name"] == "series" and r["weight"] == r["activation"] and r["weight"].endswith(f"x {bits}")
        )
        axes.semilogy(*zip(*points, strict=True), "o-", color=color, label=f"{bits} bits")
    axes.set_xticks([1, 2, 3, 4])
    axes.set_xlabel("terms of weights and of inputs")
    axes.set_ylabel("outputs off by, at most")
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(color="#e5e9f0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160, format="png")
