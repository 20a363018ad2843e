"""Every peer of integer networks, called at its best: LiteRT on .tflite files, and on ResNet-20
torch, onnxruntime and OpenVINO, in floats and in 8 bits of their own calibration.

An entry of `PEERS` takes a `Source` and a batch size and returns a `Candidate`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from limits import Skip

__all__ = ["PEERS", "Candidate", "Skip", "Source", "channels_last", "litert"]


@dataclass(frozen=True, eq=False)
class Source:
    """What all start from."""

    model: Any
    """The network in torch, in floats."""
    calibration: np.ndarray
    """Normalized images, float32 (N, 3, 32, 32)."""


@dataclass
class Candidate:
    """A network ready to run on one batch."""

    given: np.ndarray
    """Its input, float32 (N, 3, 32, 32), laid out in memory as it likes best: to be filled."""
    run: Callable[[], np.ndarray]
    """What it makes of ``given``: logits (N, 10)."""


def litert(path: Path) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    """LiteRT with XNNPACK on one thread: ``invoke`` alone, and with its input given and its output taken."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    net = Interpreter(str(path), num_threads=1, experimental_op_resolver_type=OpResolverType.AUTO)
    net.allocate_tensors()
    (x,), (y,) = net.get_input_details(), net.get_output_details()
    there, back = x["index"], y["index"]

    def call(codes: np.ndarray) -> np.ndarray:
        net.set_tensor(there, codes)
        net.invoke()
        return net.get_tensor(back)

    return net.invoke, call


# --- ResNet-20 ---


def channels_last(batch: int) -> np.ndarray:
    """A batch whose channels lie side by side."""
    return np.zeros((batch, 32, 32, 3), np.float32).transpose(0, 3, 1, 2)


def torch_fp32(source: Source, batch: int, compiled: bool = False) -> Candidate:
    """torch in floats, channels last; ``compiled`` with frozen weights, which folds the norms in."""
    import torch
    import torch._inductor.config as inductor

    given = channels_last(batch)
    x, net = torch.from_numpy(given), copy.deepcopy(source.model).to(memory_format=torch.channels_last)
    if compiled:
        inductor.freezing = True
        net = torch.compile(net, dynamic=False)

    def run() -> np.ndarray:
        # The compiler freezes under no_grad alone.
        with torch.no_grad() if compiled else torch.inference_mode():
            return net(x).numpy()

    return Candidate(given, run)


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@cache
def onnx_file(source: Source) -> Path:
    """The network as ONNX, of any batch, optimized as onnxruntime asks before it is quantized."""
    try:
        import onnxscript  # noqa: F401
        import torch
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    path = Path(_folder().name) / "network.onnx"
    torch.onnx.export(
        source.model, (torch.zeros(2, 3, 32, 32),), path, input_names=["x"], output_names=["y"], verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, dynamo=True,
    )  # fmt: skip
    quant_pre_process(path, path)
    return path


def _session(path: Path, batch: int) -> Candidate:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("batch", batch)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given, logits = np.zeros((batch, 3, 32, 32), np.float32), np.zeros((batch, 10), np.float32)
    binding = session.io_binding()
    for bind, name, array in ((binding.bind_input, "x", given), (binding.bind_output, "y", logits)):
        bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)
        return logits

    return Candidate(given, run)


def ort_fp32(source: Source, batch: int) -> Candidate:
    """onnxruntime in floats."""
    return _session(onnx_file(source), batch)


@cache
def _onnx_int8(source: Source, form: str, reduce_range: bool) -> Path:
    base = onnx_file(source)
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        left = iter(np.array_split(source.calibration, 10))

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self.left, None)
            return None if images is None else {"x": images}

    path = base.with_name(f"{form}{'-7' * reduce_range}.onnx")
    quantize_static(
        base, path, Images(), quant_format=QuantFormat[form], per_channel=True, reduce_range=reduce_range,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def ort_int8(source: Source, batch: int, form: str = "QDQ", reduce_range: bool = False) -> Candidate:
    """onnxruntime's static int8: u8 activations by s8 weights per channel, with ``reduce_range`` of 7 bits."""
    return _session(_onnx_int8(source, form, reduce_range), batch)


@cache
def _openvino(source: Source) -> Any:
    try:
        import openvino as ov
        import torch
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    return ov.convert_model(source.model, example_input=torch.zeros(1, 3, 32, 32), input=[-1, 3, 32, 32])


@cache
def _openvino_int8(source: Source) -> Any:
    base = _openvino(source)
    try:
        import nncf
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    nncf.set_log_level(40)
    return nncf.quantize(base, nncf.Dataset(list(source.calibration[:, None])), subset_size=len(source.calibration))


def _compiled(network: Any, batch: int) -> Candidate:
    import openvino as ov

    network = network.clone()
    network.reshape([batch, 3, 32, 32])
    settings = {
        "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    request = ov.Core().compile_model(network, "CPU", settings).create_infer_request()
    given = np.zeros((batch, 3, 32, 32), np.float32)
    request.set_input_tensor(ov.Tensor(given, shared_memory=True))
    logits = request.get_output_tensor().data

    def run() -> np.ndarray:
        request.infer()
        return logits

    return Candidate(given, run)


def openvino_fp32(source: Source, batch: int) -> Candidate:
    """OpenVINO in floats."""
    return _compiled(_openvino(source), batch)


def openvino_int8(source: Source, batch: int) -> Candidate:
    """OpenVINO in 8 bits, by NNCF as it comes: it knows of CPUs that saturate, other settings gave no speed."""
    return _compiled(_openvino_int8(source), batch)


PEERS: dict[str, Callable[[Source, int], Candidate]] = {
    "torch fp32": torch_fp32,
    "torch fp32 compiled": partial(torch_fp32, compiled=True),
    "onnxruntime fp32": ort_fp32,
    "onnxruntime int8 QDQ": ort_int8,
    "onnxruntime int8 QDQ, 7 bits": partial(ort_int8, reduce_range=True),
    "onnxruntime int8 QOperator": partial(ort_int8, form="QOperator"),
    "onnxruntime int8 QOperator, 7 bits": partial(ort_int8, form="QOperator", reduce_range=True),
    "openvino fp32": openvino_fp32,
    "openvino int8": openvino_int8,
}
