"""Non-uniform quantization in tables: of densities, of layers' weights, of a network's accuracy."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lowbit

__all__ = ["Check", "Missing", "accuracy", "densities", "layers", "read_weights", "resnet"]

NETWORK = Path("resnet_cifar10", "resnet20.safetensors")
IMAGES = Path("cifar10", "test_first5000_jpeg.npz")

DENSITIES = ("gauss", "laplace")
#: (∫ f^(1/3))³ / 12, what N² D tends to.
LIMITS = {"gauss": math.sqrt(3) * math.pi / 2, "laplace": 4.5}

#: Columns of the layers' table, and what `lowbit.fit_levels` calls them.
COLUMNS = {"quantile": "quantile", "PoT": "pot", "APoT": "apot", "Lloyd": "lloyd_max", "optimum": "optimal"}
ORDER = ("absmax", "ACIQ", "quantile", "PoT", "APoT", "analytic", "Lloyd", "optimum")

BATCH = 50  # channels last, it is quicker than larger ones


class Missing(Exception):
    """What a table lacks."""


@dataclass(frozen=True)
class Check:
    """A statement of one kind: an "identity", equal to the digits told; a "bound", which must hold; or a "trend", which need not."""

    kind: str
    text: str
    holds: bool


# ------------------------------------------------------------------ densities


def densities() -> tuple[dict[str, Any], list[Check]]:
    """Tables 2 to 4: Lloyd's iteration, N² D, and the clip, for densities of variance 1."""
    told: dict[str, Any] = {"lloyd": [], "high_resolution": [], "clip": []}
    checks: list[Check] = []
    for density in DENSITIES:
        for nbits in (2, 3, 4):
            row, found = _iterations(density, nbits)
            told["lloyd"].append(row)
            checks += found
        products = []
        for nbits in range(2, 9):
            n = 1 << nbits
            products.append(n * n * lowbit.density_levels(density, n).mse)
            told["high_resolution"].append({"density": density, "nbits": nbits, "product": products[-1]})
        below = all(a < b for a, b in zip(products, [*products[1:], LIMITS[density]], strict=True))
        checks.append(Check("bound", f"{density}: N² D rises, and stays below {LIMITS[density]:.4f}", below))
        for nbits in (2, 3, 4, 5, 6):
            row, found = _clip(density, nbits)
            told["clip"].append(row)
            checks += found
    return told, checks


def _iterations(density: str, nbits: int) -> tuple[dict[str, Any], list[Check]]:
    """Lloyd's iteration from three starts; the row has the first one's errors."""
    n, ends, curves = 1 << nbits, [], {}
    for start in ("uniform", "quantile", density):
        levels = lowbit.density_levels(density, n, method=start).levels
        errors = []
        while len(errors) < 2 or errors[-2] - errors[-1] > 1e-12 * errors[-1]:
            levels, error = _step(density, levels)
            errors.append(error)
        ends.append(levels)
        curves[start] = errors
    apart = max(float(np.abs(a - ends[0]).max()) for a in ends[1:])
    known = lowbit.density_levels(density, n)
    off = abs(min(errors[-1] for errors in curves.values()) / known.mse - 1)
    falls = all(b <= a * (1 + 1e-14) for errors in curves.values() for a, b in itertools.pairwise(errors))
    excess = [error - known.mse for error in curves["uniform"]]
    at = max(2, min(len(excess) - 1, next((i for i, e in enumerate(excess) if e < 1e-8 * known.mse), len(excess) - 1)))
    name = f"{density}, {nbits} bits"
    row = {
        "density": density,
        "nbits": nbits,
        "iterations": {start: len(errors) for start, errors in curves.items()},
        "errors": [curves["uniform"][i] for i in (0, 1, 3, 7, 15, 31) if i < len(curves["uniform"])],
        "rate": excess[at] / excess[at - 1] if excess[at - 1] > 0 else 0.0,
        "fixed_point": known.mse,
    }
    return row, [
        Check("bound", f"{name}: no iteration raises D", falls),
        Check("bound", f"{name}: three starts end in levels {apart:.1e} apart, below 1e-4", apart < 1e-4),
        Check("identity", f"{name}: D there is that of lowbit.density_levels, to 1e-8", off < 1e-8),
    ]


def _step(density: str, levels: np.ndarray) -> tuple[np.ndarray, float]:
    """The means of the levels' cells, and their error."""
    edges = np.concatenate([[-np.inf], (levels[:-1] + levels[1:]) / 2, [np.inf]])
    share, first, second = (np.diff(moment) for moment in _integrals(density, edges))
    means = first / share
    return means, float((second - first * means).sum())


def _integrals(density: str, x: np.ndarray) -> list[np.ndarray]:
    """∫ f, ∫ t f and ∫ t² f up to each x, of the density of variance 1."""
    inside = np.clip(x, -60, 60)
    if density == "gauss":
        bell = np.exp(-inside * inside / 2) / math.sqrt(2 * math.pi)
        share = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in inside])
        return [share, -bell, share - inside * bell]
    b = math.sqrt(0.5)
    size = np.abs(inside)
    tail = np.exp(-size / b) / 2
    below = inside < 0
    share = np.where(below, tail, 1 - tail)
    second = (size * size + 2 * b * size + 2 * b * b) * tail
    return [share, -(size + b) * tail, np.where(below, second, 2 * b * b - second)]


def _clip(density: str, nbits: int) -> tuple[dict[str, Any], list[Check]]:
    """The clip that the model of high resolution asks for, and the one of least true error."""
    n = 1 << nbits
    model = lowbit.density_levels(density, n, method=density, clip="model")
    search = lowbit.density_levels(density, n, method=density)
    grid = np.linspace(0.05, 14, 2791)
    errors = np.array([_model_error(density, n, alpha) for alpha in grid])
    least = float(grid[errors.argmin()])
    optimum = lowbit.density_levels(density, n).mse
    row = {
        "density": density,
        "nbits": nbits,
        "model_clip": model.clip,
        "grid_clip": least,
        "searched_clip": search.clip,
        "model_over_optimum": model.mse / optimum,
        "searched_over_optimum": search.mse / optimum,
    }
    name, near = f"{density}, {nbits} bits", abs(least - model.clip) <= 0.005 + 1e-9
    over = search.mse / optimum
    found = [Check("identity", f"{name}: on a grid of 0.005 the least error is at the clip of the closed form", near)]
    found.append(Check("bound", f"{name}: with its clip searched the compander is above Lloyd-Max", over >= 1 - 1e-12))
    found.append(Check("trend", f"{name}: it is within 0.5 % of it", over <= 1.005))
    return row, found


def _model_error(density: str, n: int, alpha: float) -> float:
    """The error outside the clip, and the noise of high resolution inside."""
    if density == "laplace":
        b = math.sqrt(0.5)
        u = math.exp(-alpha / (3 * b))
        return 2 * b * b * u**3 + 9 * b * b * (1 - u) ** 3 / n**2
    outside = (1 + alpha * alpha) * math.erfc(alpha / math.sqrt(2))
    outside -= math.sqrt(2 / math.pi) * alpha * math.exp(-alpha * alpha / 2)
    return outside + math.sqrt(3) * math.pi * math.erf(alpha / math.sqrt(6)) ** 3 / (2 * n**2)


# ------------------------------------------------------------------ layers


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file's tensors of two axes and more, flat, as floats.

    Raises
    ------
    ValueError
        No safetensors file, none such in it, or NaN or infinities.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in sorted(file.keys()):
                part = file.get_slice(name)
                if part.get_dtype() in ("F16", "F32", "F64") and len(part.get_shape()) > 1:
                    found[name] = file.get_tensor(name).reshape(-1)
    except (SafetensorError, IsADirectoryError) as error:
        raise ValueError(f"{path}: no safetensors file: {error}") from None
    found = {name: weight for name, weight in found.items() if weight.size}
    if not found:
        raise ValueError(f"{path}: expected floats of two axes or more, found none")
    for name, weight in found.items():
        if not np.isfinite(weight).all():
            at = int((~np.isfinite(weight)).argmax())
            raise ValueError(f"{path}: {name}: expected finite values, got {weight[at]} at flat index {at}")
    return found


def layers(weights: dict[str, np.ndarray], nbits: int) -> Iterator[tuple[dict[str, Any], list[Check]]]:
    """Tables 1 and 6, a layer at a time: errors over the variance, and which density was chosen by what."""
    for name, w in weights.items():
        row = _layer(name, w, nbits)
        errors = row["errors"]
        rest = [error for column, error in errors.items() if column != "optimum"]
        others = [error for column, error in errors.items() if column not in ("optimum", "Lloyd")]
        slack = 1 + 1e-9
        where = f"{name}, {nbits} bits"
        yield (
            row,
            [
                Check("bound", f"{where}: optimum ≤ all others", all(errors["optimum"] <= e * slack for e in rest)),
                Check("bound", f"{where}: Lloyd ≤ all others", all(errors["Lloyd"] <= e * slack for e in others)),
                Check("trend", f"{where}: analytic below ACIQ", errors["analytic"] < errors["ACIQ"]),
            ],
        )


def _layer(name: str, w: np.ndarray, nbits: int) -> dict[str, Any]:
    n = 1 << nbits
    variance = float(np.var(w, dtype=np.float64)) or math.nan

    def error(levels: np.ndarray) -> float:
        off = w - lowbit.decode(lowbit.encode(w, levels), levels).astype(np.float64)
        return float(np.mean(off * off)) / variance

    def fitted(method: Any) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lowbit.ConvergenceWarning)
            return float(lowbit.fit_levels(w, n, method=method).mse) / variance

    qparams = lowbit.choose_qparams(w.astype(np.float32), nbits)
    steps = np.arange(qparams.qmin, qparams.qmax + 1) - int(qparams.zero_point)
    # ACIQ has no data to search a clip with: the density's parameter scales the model's.
    spread = _spread(w)
    aciq = {
        d: error(center + size * lowbit.density_levels(d, n, method="uniform", clip="model").levels)
        for d, (center, size) in spread.items()
    }
    analytic = {d: fitted(d) for d in DENSITIES}
    errors = {"absmax": error(steps * float(qparams.scale)), "ACIQ": min(aciq.values())}
    errors |= {column: fitted(method) for column, method in COLUMNS.items()}
    errors["analytic"] = min(analytic.values())
    return {
        "layer": name,
        "numbers": w.size,
        "nbits": nbits,
        "errors": {column: errors[column] for column in ORDER},
        "chosen": min(analytic, key=lambda d: analytic[d]),
        "fit": {d: {"error": analytic[d], **_fit(w, d, *spread[d])} for d in DENSITIES},
    }


def _spread(w: np.ndarray) -> dict[str, tuple[float, float]]:
    """Each density's centre and standard deviation, of greatest likelihood."""
    exact = w.astype(np.float64)
    middle = float(np.median(exact))
    mean = float(exact.mean())
    return {
        "gauss": (mean, float(exact.std()) or 1.0),
        "laplace": (middle, math.sqrt(2) * float(np.abs(exact - middle).mean()) or 1.0),
    }


def _fit(w: np.ndarray, density: str, center: float, size: float) -> dict[str, float]:
    """Log-likelihood a number, in nats, and the greatest distance of the distribution functions."""
    if density == "gauss":
        likelihood = -0.5 * (math.log(2 * math.pi) + 1) - math.log(size)
    else:
        likelihood = -math.log(math.sqrt(2) * size) - 1
    # A layer of millions is thinned: the distance moves by less than 1e-3.
    x = np.sort(w.astype(np.float64)[:: max(1, w.size >> 18)])
    share = _integrals(density, (x - center) / size)[0]
    at = np.arange(x.size + 1) / x.size
    distance = max(np.abs(share - at[1:]).max(), np.abs(share - at[:-1]).max())
    return {"log_likelihood": likelihood, "distance": float(distance)}


# ------------------------------------------------------------------ accuracy


@dataclass(frozen=True)
class Row:
    """A network's accuracy: ``top1`` and ``change`` to float32 in percent, each with half its 95 % interval."""

    quantizer: str
    granularity: str
    nbits: int | None
    corrected: bool
    kilobytes: float
    top1: float
    half: float
    change: float
    change_half: float


def resnet(data: Path | None) -> tuple[Callable[[], Any], Any, Any]:
    """What makes a fresh ResNet-20, images as it takes them, and their labels.

    Raises
    ------
    Missing
        No folder, a file that is not in it, or no torch.
    """
    root = data if data is not None else os.environ.get("LOWBIT_DATA")
    needed = f"{NETWORK} and {IMAGES}"
    if not root:
        raise Missing(f"no data: --data FOLDER or LOWBIT_DATA=FOLDER, with {needed} in it")
    for path in (NETWORK, IMAGES):
        if not (Path(root) / path).is_file():
            raise Missing(f"no {path} in {root}: expected {needed}")
    try:
        import torch

        from lowbit.models.resnet import load_resnet, normalized
    except ImportError as error:
        raise Missing(f"it needs PyTorch: pip install 'lowbit[torch]' ({error})") from None
    stored = np.load(Path(root) / IMAGES)
    images = normalized(torch.from_numpy(stored["x"])).to(memory_format=torch.channels_last)
    labels = torch.from_numpy(stored["y"].astype(np.int64))
    return lambda: load_resnet(Path(root) / NETWORK), images, labels


def right(model: Any, images: Any, labels: Any) -> np.ndarray:
    """Whether each image's label is the model's first choice, float64."""
    import torch

    model = model.to(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small layers: on a busy machine more threads wait for each other most of the time
    try:
        with torch.inference_mode():
            parts = [model(part).argmax(1) for part in images.split(BATCH)]
    finally:
        torch.set_num_threads(threads)
    return (torch.cat(parts) == labels).numpy().astype(np.float64)


def accuracy(
    make: Callable[[], Any], images: Any, labels: Any, widths: Sequence[int], *, rivals: bool = True
) -> Iterator[Row]:
    """Table 5, a row at a time: float32, then each quantizer, without and with corrected outputs."""
    exact = right(make(), images, labels)
    model = make()
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    yield _row("float32", "-", None, False, size, exact, exact)
    for nbits in widths:
        for granularity in ("tensor", "channel"):
            for quantizer in (*UNIFORM, *OURS):
                for corrected in (False, True):
                    model, size = quantized(make(), quantizer, nbits, granularity, corrected)
                    yield _row(quantizer, granularity, nbits, corrected, size, right(model, images, labels), exact)
    for nbits in [w for w in widths if w in (3, 4)] if rivals else []:
        for quantizer in RIVALS:
            for corrected in (False, True):
                model, size = quantized(make(), quantizer, nbits, "channel", corrected)
                yield _row(quantizer, "channel", nbits, corrected, size, right(model, images, labels), exact)


def _row(
    quantizer: str, granularity: str, nbits: int | None, corrected: bool, size: int, got: np.ndarray, exact: np.ndarray
) -> Row:
    # The difference is taken image by image: the same images, so its interval is the narrower one.
    change, change_half = _mean(got - exact)
    return Row(quantizer, granularity, nbits, corrected, size / 1e3, *_mean(got), change, change_half)


def _mean(x: np.ndarray) -> tuple[float, float]:
    return 100 * float(x.mean()), 196 * float(x.std(ddof=1)) / math.sqrt(x.size)


def quantized(model: Any, quantizer: str, nbits: int, granularity: str, corrected: bool) -> tuple[Any, int]:
    """The model with the quantizer's weights, first and last layer in int8, and what it takes.

    All of it runs in floats: only weights are rounded.
    """
    from lowbit.torch import dequantize_

    if quantizer in OURS:
        report = _nonuniform(model, nbits, corrected, granularity=granularity, method=OURS[quantizer])
        return dequantize_(model), report.bytes_stored

    import torch

    from lowbit.torch.correction import correct_bias_, input_moments

    inputs = input_moments(model)
    middle = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and n != "conv1"}
    before = {name: layer.weight.detach().clone() for name, layer in middle.items()}
    size = _nonuniform(model, 8, corrected, rules=[(f"^{name}$", None) for name in middle]).bytes_stored
    for name, layer in middle.items():
        w = before[name].flatten(1).numpy()
        values, stored = QUANTIZERS[quantizer](w, nbits, granularity, inputs[name])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(values)).view_as(layer.weight))
        size += stored - w.nbytes
    if corrected:
        correct_bias_(model, before, inputs)
    return dequantize_(model), size


def _nonuniform(model: Any, nbits: int, corrected: bool, **how: Any) -> Any:
    from lowbit.methods.nonuniform import nonuniform_

    return nonuniform_(model, nbits, bias_correction=corrected, **how)


def _packed(w: np.ndarray, nbits: int) -> int:
    return len(w) * -(-w.shape[1] * nbits // 8)


def _uniform(method: Any) -> Callable[..., tuple[np.ndarray, int]]:
    def quantizer(w: np.ndarray, nbits: int, granularity: str, _: Any) -> tuple[np.ndarray, int]:
        scales = lowbit.PerTensor() if granularity == "tensor" else lowbit.PerAxis(0)
        qparams = lowbit.choose_qparams(w, nbits, granularity=scales, method=method)
        return lowbit.dequantize(lowbit.quantize(w, qparams), qparams), _packed(w, nbits) + 4 * qparams.scale.size

    return quantizer


def _mid_rise(w: np.ndarray, nbits: int, granularity: str, _: Any) -> tuple[np.ndarray, int]:
    """Even steps about the mean, none of them at 0, so that all 2**nbits are used; two floats a table."""
    rows = w.reshape(1, -1) if granularity == "tensor" else w
    with warnings.catch_warnings():  # 8 bits have more levels than a channel has weights
        warnings.simplefilter("ignore", lowbit.ConvergenceWarning)
        levels = lowbit.fit_levels_rows(rows, 1 << nbits, method="uniform").levels
    return lowbit.decode(lowbit.encode(rows, levels), levels).reshape(w.shape), _packed(w, nbits) + 8 * len(rows)


# Our own re-implementations of what the papers describe, without data as everything here: in the place of
# calibration sets stand the moments that BatchNorms tell, and where they tell none nothing is weighted.


def _squeezellm(w: np.ndarray, nbits: int, granularity: str, inputs: Any) -> tuple[np.ndarray, int]:
    """Weighted k-means of each channel, weights E[x²] in the place of the Fisher information (Kim et al., 2023)."""
    from lowbit.methods.nonuniform import nonuniform_weight

    counts = None
    if inputs.variance is not None:
        squares = (inputs.mean.square() + inputs.variance).numpy()
        counts = np.ascontiguousarray(np.broadcast_to(np.repeat(squares, w.shape[1] // squares.size), w.shape))
    coded = nonuniform_weight(w, nbits, sample_weight=counts)
    return coded.values(), coded.nbytes


def _any4(w: np.ndarray, nbits: int, granularity: str, _: Any) -> tuple[np.ndarray, int]:
    """A table of each channel under scales of groups of 64 (Elhoushi and Johnson, 2025)."""
    weight = lowbit.quantize_weight(w, lowbit.Codebook(nbits, "channel", 64, equalize=False))
    _, multipliers, _, scale = weight.untile()
    size = _packed(w, nbits) + multipliers.nbytes + scale.nbytes + weight.codebook.nbytes
    return weight.dequantize(), size


def _gptq(w: np.ndarray, nbits: int, granularity: str, inputs: Any) -> tuple[np.ndarray, int]:
    """Error feedback (Frantar et al., 2022) to the even steps of each channel's best clip."""
    plain, size = _uniform("mse")(w, nbits, granularity, inputs)
    if inputs.variance is None:
        return plain, size
    each = w.shape[1] // inputs.mean.numel()
    mean, variance = (np.repeat(x.numpy(), each) for x in (inputs.mean, inputs.variance))
    qparams = lowbit.choose_qparams(w, nbits, granularity=lowbit.PerAxis(0), method="mse")
    steps = np.arange(qparams.qmin, qparams.qmax + 1) - (1 << (nbits - 1))
    levels = (steps * qparams.scale[:, None]).astype(np.float32)
    codes = lowbit.round_with_feedback(w, levels[:, None], np.diag(variance) + np.outer(mean, mean))
    return lowbit.decode(codes, levels), size


def _higgs(w: np.ndarray, nbits: int, granularity: str, _: Any) -> tuple[np.ndarray, int]:
    """The normal distribution's best levels after a Hadamard rotation of random signs (Malinovskii et al., 2024)."""
    from lowbit.weights import rotated

    k = w.shape[1]
    block = k & -k
    signs = np.random.default_rng(0).choice([-1.0, 1.0], k)
    turned = rotated(w * signs, block) / math.sqrt(block)
    size = np.sqrt(np.mean(turned * turned, axis=1, keepdims=True)).astype(np.float32)
    levels = size * lowbit.density_levels("gauss", 1 << nbits).levels
    values = lowbit.decode(lowbit.encode(turned, levels), levels)
    back = rotated(values, block) / math.sqrt(block) * signs
    return back.astype(np.float32), _packed(w, nbits) + size.nbytes


#: Their methods in `lowbit.methods.nonuniform`.
OURS = {"analytic": "analytic", "optimum": "optimal"}
RIVALS = {
    "weighted k-means, as SqueezeLLM": _squeezellm,
    "tables under group scales, as any4": _any4,
    "error feedback on even steps, as GPTQ": _gptq,
    "rotated normal grid, as HIGGS": _higgs,
}
UNIFORM = {
    "uniform absmax": _uniform("absmax"),
    "uniform best clip": _uniform("mse"),
    "uniform best clip, mid-rise": _mid_rise,
}
QUANTIZERS = {**UNIFORM, **RIVALS}


# ------------------------------------------------------------------ printing


def density_lines(told: dict[str, Any]) -> Iterator[str]:
    """Tables 2 to 4 in lines."""
    yield "Lloyd's iteration on densities of variance 1: D after so many rounds, from even steps"
    head = "".join(f"{i:>11}" for i in (1, 2, 4, 8, 16, 32))
    yield f"{'density':<9}{'bits':>4}{head}{'fixed point':>13}{'rate':>8}  rounds to 1e-12 from even steps, quantiles, compander"
    for row in told["lloyd"]:
        errors = "".join(f"{error:>11.6f}" for error in row["errors"])
        rounds = ", ".join(str(count) for count in row["iterations"].values())
        yield (
            f"{row['density']:<9}{row['nbits']:>4}{errors:<66}{row['fixed_point']:>13.6f}{row['rate']:>8.4f}  {rounds}"
        )
    yield ""
    yield "N² D of Lloyd-Max levels"
    widths = sorted({row["nbits"] for row in told["high_resolution"]})
    yield f"{'density':<9}" + "".join(f"{f'{w} bits':>9}" for w in widths) + f"{'limit':>9}"
    for density in DENSITIES:
        products = [row["product"] for row in told["high_resolution"] if row["density"] == density]
        yield f"{density:<9}" + "".join(f"{p:>9.4f}" for p in products) + f"{LIMITS[density]:>9.4f}"
    yield ""
    yield "Clip of the density's compander, in standard deviations, and D over that of Lloyd-Max"
    yield f"{'density':<9}{'bits':>4}{'closed form':>13}{'grid':>8}{'D':>8}{'searched':>10}{'D':>8}"
    for row in told["clip"]:
        yield (
            f"{row['density']:<9}{row['nbits']:>4}{row['model_clip']:>13.3f}{row['grid_clip']:>8.3f}"
            f"{row['model_over_optimum']:>8.4f}{row['searched_clip']:>10.3f}{row['searched_over_optimum']:>8.4f}"
        )


def layer_head(width: int, nbits: int) -> Iterator[str]:
    yield f"error/variance of each layer with one table, {nbits} bits; the density chosen, with log-likelihoods and distances (KS)"
    columns = "".join(f"{column:>9}" for column in ORDER)
    yield f"{'layer':<{width}}{columns}  {'chosen':<8}{'laplace':>9}{'gauss':>9}{'KS':>7}{'KS':>7}"


def layer_line(row: dict[str, Any], width: int) -> str:
    errors = "".join(f"{row['errors'][column]:>9.4f}" for column in ORDER)
    fit = row["fit"]
    likely = "".join(f"{fit[d]['log_likelihood']:>9.3f}" for d in ("laplace", "gauss"))
    apart = "".join(f"{fit[d]['distance']:>7.3f}" for d in ("laplace", "gauss"))
    return f"{row['layer']:<{width}}{errors}  {row['chosen']:<8}{likely}{apart}"


def accuracy_head(images: int) -> Iterator[str]:
    yield (
        f"ResNet-20 on {images} images of CIFAR-10's test set, weights alone, first and last layer int8, no data;"
        " 95 % intervals, of the difference image by image"
    )
    yield f"{'weights':<40}{'table of':<9}{'bits':>5}  {'corrected':<10}{'kB':>8}{'top-1 %':>16}{'to float32':>18}"


def accuracy_line(row: Row) -> str:
    nbits = "32" if row.nbits is None else str(row.nbits)
    corrected = "yes" if row.corrected else "no"
    change = "-" if row.nbits is None else f"{row.change:+.2f} ± {row.change_half:.2f}"
    top1 = f"{row.top1:.2f} ± {row.half:.2f}"
    return (
        f"{row.quantizer:<40}{row.granularity:<9}{nbits:>5}  {corrected:<10}{row.kilobytes:>8.1f}{top1:>16}{change:>18}"
    )


def check_lines(checks: Sequence[Check]) -> Iterator[str]:
    """What was verified, by kind; what fails is named."""
    titles = {
        "identity": "verified identities (equal, to the digits told)",
        "bound": "bounds (must hold)",
        "trend": "trends (expected, not required)",
    }
    for kind, title in titles.items():
        of = [check for check in checks if check.kind == kind]
        if not of:
            continue
        failed = [check for check in of if not check.holds]
        yield f"{title}: {len(of) - len(failed)} of {len(of)} hold"
        yield from (f"  not so: {check.text}" for check in failed)
    yield "paper's numbers: none; its tables were not at hand, and no figure above is the paper's"


def as_dicts(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return [asdict(check) for check in checks]
