"""Every peer of `matmul_int8` and of layers below eight bits, called at its best: B
constant and packed where the library can, the result in memory that is warm, u8 by s8.

An entry of `PEERS` takes a (M, K) uint8 and b (K, N) int8 and returns a callable
that computes their product and returns it, int32 or the float of the same value.
Its attribute ``correction``, where it has one, is what to add for a peer that
takes signed codes; ``note`` says what to know about its result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import lowbit
import numpy as np
from limits import Skip, library
from measure import lines

__all__ = ["GROUP_PEERS", "PEERS", "Skip", "bound", "onnx_session"]

Product = Callable[[], np.ndarray]


def torch_int_mm(a: np.ndarray, b: np.ndarray) -> Product:
    """`torch._int_mm`: s8 by s8; it packs nothing beforehand.

    For one row B lies column by column, three times as fast; for more rows row by row.
    """
    torch = _torch()
    ours = torch.from_numpy((a.astype(np.int16) - 128).astype(np.int8))
    theirs = torch.from_numpy(b if len(a) > 1 else np.ascontiguousarray(b.T).T)
    out = torch.empty(a.shape[0], b.shape[1], dtype=torch.int32)
    # For the check alone; a user of s8 codes has no such correction.
    fix = 128 * b.sum(0, dtype=np.int32)

    def run() -> np.ndarray:
        return torch._int_mm(ours, theirs, out=out).numpy()

    run.correction = fix
    return run


def torch_onednn(a: np.ndarray, b: np.ndarray) -> Product:
    """oneDNN's int8 linear layer through torch, its weight packed for this M, floats out."""
    torch = _torch()
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise Skip("this torch has no onednn.qlinear_pointwise")
    x, weight = torch.from_numpy(a), torch.from_numpy(np.ascontiguousarray(b.T))
    packed = torch.ops.onednn.qlinear_prepack(weight, list(a.shape))
    scales, zeros = torch.ones(b.shape[1]), torch.zeros(b.shape[1], dtype=torch.int32)

    def run() -> np.ndarray:
        return torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        ).numpy()

    return run


def _torch():
    try:
        import torch
    except ImportError:
        raise Skip("not installed: torch") from None
    return torch


def onnx_session(nodes, initializers, a: np.ndarray, out_type: int, shape: list[int]):
    """A session of a graph from "a", of an array's type and shape, to "y"."""
    try:
        import onnx
        import onnxruntime as ort
        from onnx import helper
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("a", helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)],
        [helper.make_tensor_value_info("y", out_type, shape)],
        [onnx.numpy_helper.from_array(v, name) for name, v in initializers.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("mlas.use_lut_gemm", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _threads() -> int:
    return lowbit.get_num_threads()


def bound(session, a: np.ndarray, out: np.ndarray) -> Product:
    """Runs on buffers bound once: no allocation, no copy."""
    import onnxruntime as ort

    binding = session.io_binding()
    given, answer = ort.OrtValue.ortvalue_from_numpy(a), ort.OrtValue.ortvalue_from_numpy(out)
    binding.bind_ortvalue_input("a", given)
    binding.bind_ortvalue_output("y", answer)

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)  # looking through RunOptions costs 40 us in 1.32
        return answer.numpy()

    return run


def ort_matmulinteger(a: np.ndarray, b: np.ndarray) -> Product:
    """onnxruntime's MatMulInteger, u8 by constant s8, int32 out."""
    try:
        from onnx import TensorProto, helper
    except ImportError:
        raise Skip("not installed: onnx") from None
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    session = onnx_session([node], {"b": b}, a, TensorProto.INT32, [len(a), b.shape[1]])
    return bound(session, a, lines((a.shape[0], b.shape[1])))


def ort_qgemm(a: np.ndarray, b: np.ndarray) -> Product:
    """onnxruntime's QGemm, u8 by constant s8, floats out (no output scale given)."""
    try:
        from onnx import TensorProto, helper
    except ImportError:
        raise Skip("not installed: onnx") from None
    node = helper.make_node("QGemm", ["a", "sa", "za", "b", "sb", "zb"], ["y"], domain="com.microsoft")
    one, zero = np.ones((), np.float32), np.zeros((), np.uint8)
    constants = {"sa": one, "za": zero, "b": b, "sb": one, "zb": zero.view(np.int8)}
    session = onnx_session([node], constants, a, TensorProto.FLOAT, [len(a), b.shape[1]])
    return bound(session, a, lines((a.shape[0], b.shape[1]), np.float32))


def openvino(a: np.ndarray, b: np.ndarray) -> Product:
    """OpenVINO's int8 product: u8 codes by constant s8 through a FakeQuantize graph; floats out.

    The activations need the FakeQuantize: without it the same product runs on
    floats, or on codes rounded a second time. Skipped where the compiled product
    does not run on 8 bits, for that would be other work.
    """
    try:
        import openvino as ov
        from openvino import opset13 as op
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None

    def levels(x: object, low: float, high: float) -> object:
        low, high = op.constant(np.float32(low)), op.constant(np.float32(high))
        return op.fake_quantize(x, low, high, low, high, 256)

    x = op.parameter(list(a.shape), np.uint8, name="a")
    weight = op.constant(np.ascontiguousarray(b.T).astype(np.float32))
    product = op.matmul(levels(op.convert(x, np.float32), 0, 255), levels(weight, -128, 127), False, True)
    settings = {
        "INFERENCE_NUM_THREADS": _threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    compiled = ov.Core().compile_model(ov.Model([product], [x]), "CPU", settings)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    products = [i for i in infos if i["layerType"].value in ("FullyConnected", "MatMul")]
    how = [str(i["primitiveType"].value) for i in products]
    if not how or not how[0].lower().endswith(("i8", "u8")):
        raise Skip(f"openvino ran this product as {how}, not on 8 bits")
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(a, shared_memory=True))
    answer = request.get_output_tensor().data

    def run() -> np.ndarray:
        request.infer()
        return answer

    return run


def rten(a: np.ndarray, b: np.ndarray) -> Product:
    """The rten-gemm crate, B packed beforehand, int32 out."""
    lib = library()
    if lib.built_with() != b"rten":
        raise Skip("the limits crate was built without rten-gemm (it asks for a newer Rust)")
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    lib.rten_new.restype, lib.rten_new.argtypes = pointer, [pointer, size, size]
    lib.rten_run.restype, lib.rten_run.argtypes = ctypes.c_int, [pointer, pointer, size, pointer]
    lib.rten_may_saturate.restype, lib.rten_may_saturate.argtypes = ctypes.c_bool, [pointer]
    b = np.ascontiguousarray(b)
    handle = lib.rten_new(b.ctypes.data, *b.shape)
    out = lines((a.shape[0], b.shape[1]))
    source, target, m = a.ctypes.data, out.ctypes.data, a.shape[0]

    def run() -> np.ndarray:
        lib.rten_run(handle, source, m, target)
        return out

    run.keep = a
    if lib.rten_may_saturate(handle):
        run.note = "its sums are wrong for codes of the full range"
    return run


def numpy_float(a: np.ndarray, b: np.ndarray) -> Product:
    """NumPy's float product, which is exact while sums fit the mantissa: B in floats beforehand."""
    dtype = np.float32 if b.shape[0] * 255 * 128 < 1 << 24 else np.float64
    there, result = b.astype(dtype), np.empty((a.shape[0], b.shape[1]), dtype)
    out = np.empty(result.shape, np.int32)

    def run() -> np.ndarray:
        np.matmul(a.astype(dtype), there, out=result)
        np.copyto(out, result, casting="unsafe")
        return out

    return run


def numpy_integers(a: np.ndarray, b: np.ndarray) -> Product:
    """What users write first: ``a.astype(np.int32) @ b``; no BLAS takes it."""
    if a.size * b.shape[1] > 1 << 27:
        raise Skip("takes seconds at this size")
    there = b.astype(np.int32)
    return lambda: a.astype(np.int32) @ there


PEERS: dict[str, Callable[[np.ndarray, np.ndarray], Product]] = {
    "torch._int_mm": torch_int_mm,
    "torch oneDNN int8": torch_onednn,
    "onnxruntime MatMulInteger": ort_matmulinteger,
    "onnxruntime QGemm": ort_qgemm,
    "openvino": openvino,
    "rten-gemm": rten,
    "numpy floats": numpy_float,
    "numpy integers": numpy_integers,
}


# --- below eight bits ---


def ort_matmulnbits(x: np.ndarray, weight: lowbit.GroupedWeight) -> Product:
    """onnxruntime's MatMulNBits of lowbit's own codes and zero points: activations as
    int8 (accuracy level 4), 2 bits by look-up tables; floats in and out."""
    try:
        from onnx import TensorProto, helper
    except ImportError:
        raise Skip("not installed: onnx") from None
    (k, n), config = weight.shape, weight.config
    if config.nbits not in (2, 4, 8) or k % config.group_size:
        raise Skip("2, 4 or 8 bits and whole groups alone")
    packed = lowbit.pack_codes(weight.codes().reshape(n, -1, config.group_size), config.nbits)
    constants = {
        "b": packed,
        "scales": weight.scale().reshape(-1),
        "zero_points": lowbit.pack_codes(weight.zero_point(), config.nbits).reshape(-1),
    }
    node = helper.make_node(
        "MatMulNBits", ["a", *constants], ["y"], domain="com.microsoft", K=k, N=n, bits=config.nbits,
        block_size=config.group_size, accuracy_level=4,
    )  # fmt: skip
    session = onnx_session([node], constants, x, TensorProto.FLOAT, [len(x), n])
    return bound(session, x, lines((x.shape[0], n), np.float32))


def openvino_groups(x: np.ndarray, weight: lowbit.GroupedWeight) -> Product:
    """OpenVINO's product with a compressed constant of lowbit's codes, scales and zero points;
    activations rounded in groups of 32 where it can on this CPU."""
    try:
        import openvino as ov
        from openvino import opset13 as op
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    (k, n), config = weight.shape, weight.config
    if config.nbits not in (2, 4) or k % config.group_size:
        raise Skip("2 or 4 bits and whole groups alone")
    kind, groups = {2: ov.Type.u2, 4: ov.Type.u4}[config.nbits], k // config.group_size

    kept = []  # constants look into these arrays

    def floats(codes: np.ndarray, shape: list[int]) -> object:
        kept.append(packed := lowbit.pack_codes(codes.reshape(-1), config.nbits))
        return op.convert(op.constant(ov.Tensor(packed, ov.Shape(shape), kind)), np.float32)

    codes, zeros = floats(weight.codes(), [n, groups, config.group_size]), floats(weight.zero_point(), [n, groups, 1])
    kept.append(scale := weight.scale()[..., None])
    scaled = op.multiply(op.subtract(codes, zeros), op.constant(scale))
    there = op.reshape(scaled, np.array([n, k]), False)
    given = op.parameter(list(x.shape), np.float32, name="x")
    settings = {
        "INFERENCE_NUM_THREADS": _threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
    }  # fmt: skip
    model = ov.Model([op.matmul(given, there, False, True)], [given])
    compiled = ov.Core().compile_model(model, "CPU", settings)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    runs = [str(i["runtimePrecision"].value) for i in infos if i["layerType"].value in ("FullyConnected", "MatMul")]
    if f"u{config.nbits}" not in runs:
        raise Skip(f"openvino unpacked {config.nbits} bits to {', '.join(runs) or 'floats'} beforehand")
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))
    answer = request.get_output_tensor().data

    def run() -> np.ndarray:
        request.infer()
        return answer

    run.keep = x, kept
    return run


def torchao_groups(x: np.ndarray, weight: lowbit.GroupedWeight) -> Product:
    """torchao's x86 kernel of 8-bit activations by 4-bit weights, compiled and frozen."""
    torch = _torch()
    try:
        import torch._inductor.config as inductor
        from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor
    except ImportError as e:
        raise Skip(f"torchao: {e}") from None
    if "CPU" not in torch._C._dispatch_dump("torchao::da8w4_linear_cpu"):
        raise Skip("this torchao was built without its kernel da8w4_linear_cpu")
    (k, n), config = weight.shape, weight.config
    if config.nbits != 4 or config.group_size not in (32, 64, 128) or k % config.group_size or n % 32:
        raise Skip("4 bits in groups of 32, 64 or 128 alone, N a multiple of 32")
    parts = weight.codes(), weight.scale(), weight.zero_point().astype(np.int8)
    packed = torch.ops.torchao.da8w4_linear_prepack_cpu(*map(torch.from_numpy, parts))
    tensor = Int4OpaqueTensor(*packed[:2], [1, config.group_size], (n, k), None, *packed[2:], "asymmetric")
    layer = torch.nn.Linear(k, n, bias=False, device="meta").eval()
    layer.weight = torch.nn.Parameter(tensor, requires_grad=False)
    inductor.freezing = True
    inner, given = torch.compile(layer, dynamic=False), torch.from_numpy(x)

    def run() -> np.ndarray:
        with torch.no_grad():
            return inner(given).numpy()

    return run


def bitsandbytes_groups(x: np.ndarray, weight: lowbit.GroupedWeight) -> Product:
    """bitsandbytes' NF4 in blocks of the group's size, as its layer calls it."""
    torch = _torch()
    try:
        import bitsandbytes as bnb
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    (k, n), size = weight.shape, weight.config.group_size
    if weight.config.nbits != 4:
        raise Skip("4 bits alone")
    dtype = torch.bfloat16 if bnb.functional.has_avx512bf16() else torch.float32
    layer = bnb.nn.Linear4bit(k, n, False, dtype, compress_statistics=False, quant_type="nf4").eval()
    given = torch.from_numpy(weight.dequantize())
    layer.weight = bnb.nn.Params4bit(given, False, blocksize=size, compress_statistics=False, quant_type="nf4").to(
        "cpu"
    )
    own = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().numpy()
    there = torch.from_numpy(x).to(dtype)

    def run() -> np.ndarray:
        with torch.no_grad():
            return layer(there).float().numpy()

    run.weight = own
    return run


def hqq_groups(x: np.ndarray, weight: lowbit.GroupedWeight) -> Product:
    """HQQ's layer: dequantized at each call, then a product of floats."""
    torch = _torch()
    try:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    layer = torch.nn.Linear(weight.k, weight.n, bias=False)
    layer.weight = torch.nn.Parameter(torch.from_numpy(weight.dequantize()), requires_grad=False)
    config = BaseQuantizeConfig(nbits=weight.config.nbits, group_size=weight.config.group_size, axis=1)
    config["weight_quant_params"]["optimize"] = False  # the search takes minutes, and no call's time
    layer, there = HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu"), torch.from_numpy(x)

    def run() -> np.ndarray:
        with torch.no_grad():
            return layer(there).numpy()

    run.weight = layer.dequantize().numpy()
    return run


def autoround_groups(x: np.ndarray, weight: lowbit.GroupedWeight) -> Product:
    """The kernels of auto-round (auto-round-lib): of lowbit's codes, activations as int8 where they can."""
    torch = _torch()
    try:
        import auto_round_kernel as ark
    except ImportError as e:
        raise Skip(f"not installed: {e.name}") from None
    if getattr(ark, "cpu_lib", None) is None:
        raise Skip("auto-round-lib has no kernels for this CPU")
    (k, n), config = weight.shape, weight.config
    if k % config.group_size:
        raise Skip("whole groups alone")
    form, middle = (config.group_size, "int8", f"int{config.nbits}", "fp32", True), 2 ** (config.nbits - 1)
    codes, zeros = (
        (codes.astype(np.int16) - middle).astype(np.int8) for codes in (weight.codes(), weight.zero_point())
    )
    parts = [torch.from_numpy(np.ascontiguousarray(part.T)) for part in (codes, weight.scale(), zeros)]
    packed = ark.repack_quantized_weight(*parts, *form)
    given, none, out = torch.from_numpy(x), torch.empty(0), torch.zeros(len(x), n)
    return lambda: ark.woqgemm(given, packed, none, n, k, *form, out=out).numpy()


def rten_groups(x: np.ndarray, weight: lowbit.GroupedWeight) -> Product:
    """The rten-gemm crate's 4 bits, symmetric: one row by a product of its own, more rows by its float product."""
    lib = library()
    if lib.built_with() != b"rten":
        raise Skip("the limits crate was built without rten-gemm (it asks for a newer Rust)")
    (k, n), size = weight.shape, weight.config.group_size
    if weight.config.nbits != 4 or size & (size - 1) or k % size:
        raise Skip("4 bits and whole groups of a power of two alone")
    own = lowbit.quantize_weight(weight.dequantize(), lowbit.Uniform(4, size, symmetric=True, equalize=False))
    codes, scales = lowbit.pack_codes(own.codes().reshape(-1), 4), own.scale()
    out = lines((len(x), n), np.float32)
    count, pointer = ctypes.c_size_t, ctypes.c_void_p
    lib.rten_blocks.restype = ctypes.c_int
    lib.rten_blocks.argtypes = [pointer, count, count, pointer, pointer, count, count, pointer]
    given = (x.ctypes.data, len(x), k, codes.ctypes.data, scales.ctypes.data, n, size, out.ctypes.data)

    def run() -> np.ndarray:
        lib.rten_blocks(*given)
        return out

    run.keep = x, codes, scales
    run.weight = own.dequantize()
    return run


GROUP_PEERS: dict[str, Callable[[np.ndarray, lowbit.GroupedWeight], Product]] = {
    "onnxruntime MatMulNBits": ort_matmulnbits,
    "openvino": openvino_groups,
    "torchao x86": torchao_groups,
    "auto-round": autoround_groups,
    "rten-gemm": rten_groups,
    "bitsandbytes NF4": bitsandbytes_groups,
    "hqq": hqq_groups,
}
