"""The operators ``torch.ops.lowbit.*``: the kernels as torch sees them.

Defined with `torch.library.Library`, since a `custom_op` costs twice as much a
call. Outputs never alias inputs; each has a fake kernel, so compile and export
work, and an autograd formula that gives the inputs' gradients, none to codes.
"""

from __future__ import annotations

from typing import Any

import torch

from lowbit import gemm
from lowbit.torch import _bridge

__all__ = ["dequantize", "embedding", "embedding_tiled", "linear", "mlp"]

_lib = torch.library.Library("lowbit", "DEF")
_lib.define(
    "linear(Tensor x, Tensor tiled, Tensor? bias, int n, "
    "Tensor? residual=None, Tensor? gamma=None, Tensor? beta=None, float eps=0.0, Tensor? codebook=None) -> Tensor"
)
_lib.define(
    "mlp(Tensor x, Tensor up, Tensor? up_bias, int inner, str activation, Tensor down, Tensor? down_bias, int n, "
    "Tensor? residual=None, Tensor? gamma=None, Tensor? beta=None, float eps=0.0, "
    "Tensor? up_codebook=None, Tensor? down_codebook=None) -> Tensor"
)
_lib.define("embedding(Tensor indices, Tensor codes, Tensor scale) -> Tensor")
_lib.define("embedding_tiled(Tensor indices, Tensor tiled, int k, int n, Tensor? codebook=None) -> Tensor")
_lib.define("dequantize(Tensor tiled, int k, int n, Tensor? codebook=None) -> Tensor")

_KERNEL_TYPES = (torch.float32, torch.bfloat16)


def _floats(name: str, x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of a type that the kernels take."""
    if x.dtype not in _KERNEL_TYPES:
        if not x.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {x.dtype}")
        x = x.float()
    return x.contiguous()


def _weight(tiled: torch.Tensor, codebook: torch.Tensor | None) -> tuple[Any, Any]:
    """A weight's bytes, and the tables that they look up."""
    return tiled.numpy(), None if codebook is None else _bridge.view(codebook)


def _bias(bias: torch.Tensor | None) -> Any:
    if bias is None:
        return None
    if bias.dtype is torch.float32 and not bias.requires_grad:
        return bias.numpy()
    return _bridge.view(bias.float().contiguous())


def _after(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    eps: float,
) -> tuple[Any, Any]:
    added = None if residual is None else _bridge.view(residual.to(x.dtype).contiguous())
    norm = None if gamma is None else (_bias(gamma), _bias(beta), eps)
    return added, norm


#: Multiplications up to which a call is too small for threads.
_SMALL = 1 << 19


def _linear(
    x: torch.Tensor,
    tiled: torch.Tensor,
    bias: torch.Tensor | None,
    n: int,
    residual: torch.Tensor | None = None,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    eps: float = 0.0,
    codebook: torch.Tensor | None = None,
) -> torch.Tensor:
    shape = x.shape
    k = shape[-1]
    m = x.numel() // k if k else 0
    small = m * n * k <= _SMALL
    threads = 1 if small else _bridge.count()
    if x.dtype is torch.float32 and x.is_contiguous():
        rows = x
    else:
        rows = _floats("x", x)
    added, norm = (None, None) if residual is None and gamma is None else _after(rows, residual, gamma, beta, eps)
    out, written = _bridge.empty((*shape[:-1], n), rows.dtype, small)
    gemm._core.linear(
        _bridge.view(rows), m, _weight(tiled, codebook), k, n, _bias(bias), "",
        added, norm, written, threads, _bridge.openmp, None,
    )  # fmt: skip
    return out if out.dtype is x.dtype else out.to(x.dtype)


def _mlp(
    x: torch.Tensor,
    up: torch.Tensor,
    up_bias: torch.Tensor | None,
    inner: int,
    activation: str,
    down: torch.Tensor,
    down_bias: torch.Tensor | None,
    n: int,
    residual: torch.Tensor | None = None,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    eps: float = 0.0,
    up_codebook: torch.Tensor | None = None,
    down_codebook: torch.Tensor | None = None,
) -> torch.Tensor:
    rows = _floats("x", x)
    k = x.shape[-1]
    out, written = _bridge.empty((*x.shape[:-1], n), rows.dtype)
    added, norm = _after(rows, residual, gamma, beta, eps)
    m = x.numel() // k if k else 0
    view = _bridge.view
    gemm._core.mlp(
        view(rows), m, k, _weight(up, up_codebook), _bias(up_bias), inner, activation,
        _weight(down, down_codebook), _bias(down_bias), n,
        added, norm, written, _bridge.count(), _bridge.openmp, None,
    )  # fmt: skip
    return out if out.dtype is x.dtype else out.to(x.dtype)


def _embedding(indices: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    out = torch.empty((*indices.shape, codes.shape[1]), dtype=torch.float32, device="cpu")
    view = _bridge.view
    with _index_errors():
        gemm._core.lookup_rows(view(indices.long().contiguous()), view(codes), view(scale.float()), view(out))
    return out


def _embedding_tiled(
    indices: torch.Tensor, tiled: torch.Tensor, k: int, n: int, codebook: torch.Tensor | None = None
) -> torch.Tensor:
    out = torch.empty((*indices.shape, k), dtype=torch.float32, device="cpu")
    view = _bridge.view
    with _index_errors():
        gemm._core.lookup(view(indices.long().contiguous()), _weight(tiled, codebook), k, n, view(out))
    return out


class _index_errors:
    """An index past the end is an IndexError to users of torch."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValueError) and str(error).startswith("indices"):
            raise IndexError(str(error)) from None


def _dequantize(tiled: torch.Tensor, k: int, n: int, codebook: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.empty((n, k), dtype=torch.float32, device="cpu")
    gemm._core.lookup(None, _weight(tiled, codebook), k, n, _bridge.view(out))
    return out


def _refuse(x: torch.Tensor, *_: Any) -> torch.Tensor:
    raise RuntimeError(f"lowbit's kernels run on the CPU: got a tensor on {x.device}; use .cpu()")


for _name, _kernel in (
    ("linear", _linear),
    ("mlp", _mlp),
    ("embedding", _embedding),
    ("embedding_tiled", _embedding_tiled),
    ("dequantize", _dequantize),
):
    _lib.impl(_name, _kernel, "CPU")
    for _device in ("CUDA", "MPS", "XPU"):
        _lib.impl(_name, _refuse, _device)


@torch.library.register_fake("lowbit::linear")
def _(x, tiled, bias, n, residual=None, gamma=None, beta=None, eps=0.0, codebook=None):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], n))


@torch.library.register_fake("lowbit::mlp")
def _(  # type: ignore[no-untyped-def]
    x, up, up_bias, inner, activation, down, down_bias, n,
    residual=None, gamma=None, beta=None, eps=0.0, up_codebook=None, down_codebook=None,
):  # fmt: skip
    return x.new_empty((*x.shape[:-1], n))


@torch.library.register_fake("lowbit::embedding")
def _(indices, codes, scale):  # type: ignore[no-untyped-def]
    return scale.new_empty((*indices.shape, codes.shape[1]), dtype=torch.float32)


@torch.library.register_fake("lowbit::embedding_tiled")
def _(indices, tiled, k, n, codebook=None):  # type: ignore[no-untyped-def]
    return tiled.new_empty((*indices.shape, k), dtype=torch.float32)


@torch.library.register_fake("lowbit::dequantize")
def _(tiled, k, n, codebook=None):  # type: ignore[no-untyped-def]
    return tiled.new_empty((n, k), dtype=torch.float32)


linear = torch.ops.lowbit.linear.default
mlp = torch.ops.lowbit.mlp.default
embedding = torch.ops.lowbit.embedding.default
embedding_tiled = torch.ops.lowbit.embedding_tiled.default
dequantize = torch.ops.lowbit.dequantize.default


# ------------------------------------------------------------------ gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*(a if isinstance(a, torch.Tensor) else None for a in inputs))
    ctx.rest = tuple(None if isinstance(a, torch.Tensor) else a for a in inputs)


def _norm_backward(
    grad: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of layer normalization's input y, gamma and beta."""
    shape = [y.shape[-1]]
    aten = torch.ops.aten
    y, grad = y.to(gamma.dtype), grad.to(gamma.dtype)
    _, mean, rstd = aten.native_layer_norm(y, shape, gamma, beta, eps)
    return aten.native_layer_norm_backward(grad.contiguous(), y, shape, mean, rstd, gamma, beta, [True, True, True])


def _linear_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, tiled, bias, _, residual, gamma, beta, _, codebook = (*ctx.saved_tensors, *(None,) * 9)[:9]
    rest = (*ctx.rest, *(None,) * 9)[:9]
    n, eps = rest[3], rest[7] or 0.0
    g_gamma = g_beta = None
    if gamma is not None:
        plain = None if residual is None else residual.detach()
        y = linear(x.detach(), tiled, bias, n, plain, codebook=codebook)
        grad, g_gamma, g_beta = _norm_backward(grad, y, gamma, beta, eps)
    weight = dequantize(tiled, x.shape[-1], n, codebook)
    g_x = (grad.float() @ weight).to(x.dtype)
    g_residual = None if residual is None else grad.to(residual.dtype)
    return g_x, None, None, None, g_residual, g_gamma, g_beta, None, None


def _mlp_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    saved = (*ctx.saved_tensors, *(None,) * 14)[:14]
    rest = (*ctx.rest, *(None,) * 14)[:14]
    x, up, up_bias, down, down_bias, residual, gamma, beta = (saved[i] for i in (0, 1, 2, 5, 6, 8, 9, 10))
    up_codebook, down_codebook = saved[12:]
    inner, activation, n, eps = rest[3], rest[4], rest[7], rest[11] or 0.0
    hidden = linear(x.detach(), up, up_bias, inner, codebook=up_codebook).float()
    g_gamma = g_beta = None
    if gamma is not None:
        plain = None if residual is None else residual.detach()
        tables = {"up_codebook": up_codebook, "down_codebook": down_codebook}
        y = mlp(x.detach(), up, up_bias, inner, activation, down, down_bias, n, plain, **tables)
        grad, g_gamma, g_beta = _norm_backward(grad, y, gamma, beta, eps)
    g_hidden = grad.float() @ dequantize(down, inner, n, down_codebook)
    aten = torch.ops.aten
    if activation == "relu":
        g_hidden = g_hidden * (hidden > 0)
    elif activation == "silu":
        g_hidden = aten.silu_backward(g_hidden, hidden)
    elif activation in ("gelu", "gelu_tanh"):
        kind = "tanh" if activation == "gelu_tanh" else "none"
        g_hidden = aten.gelu_backward(g_hidden, hidden, approximate=kind)
    g_x = (g_hidden @ dequantize(up, x.shape[-1], inner, up_codebook)).to(x.dtype)
    g_residual = None if residual is None else grad.to(residual.dtype)
    return g_x, None, None, None, None, None, None, None, g_residual, g_gamma, g_beta, None, None, None


def _register_autograd(op: Any, kernel: Any, backward: Any, codes: int) -> None:
    """As `torch.library.register_autograd`, but an ordinary call that no
    gradient can come from goes straight to the kernel: 2 to 3 µs less. Of the
    arguments after x, the first ``codes`` never have a gradient."""

    class Generated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *args: Any) -> torch.Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                y = op.redispatch(keyset & torch._C._after_autograd_keyset, *args)
            _save(ctx, args, y)
            return y

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            return None, *backward(ctx, grad)[: len(ctx.rest)]

    def autograd(keyset: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        after = rest[codes:]
        if torch._C.is_grad_enabled() and (x.requires_grad or (after and torch._C._any_requires_grad(*after))):
            return Generated.apply(keyset, x, *rest)
        if type(x) is torch.Tensor and x.is_cpu and torch._C._len_torch_dispatch_stack() == 0:
            return kernel(x, *rest)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, x, *rest)

    _lib.impl(op.name().rpartition("::")[2].partition(".")[0], autograd, "Autograd", with_keyset=True)


_register_autograd(linear, _linear, _linear_backward, 3)
_register_autograd(mlp, _mlp, _mlp_backward, 7)


_C = torch._C


def small_linear(
    x: torch.Tensor, tiled: torch.Tensor, bias: torch.Tensor | None, n: int, codebook: torch.Tensor | None = None
) -> torch.Tensor:
    """:data:`linear` of a few rows.

    The dispatcher costs 2 µs, as much as such a product. A plain eager call that
    nothing records, transforms or differentiates goes to the kernel instead.
    """
    if (
        type(x) is torch.Tensor
        and x.is_cpu
        and not (x.requires_grad and _C.is_grad_enabled())
        and not torch.compiler.is_compiling()
        and _C._len_torch_dispatch_stack() == 0
        and _C._functorch.peek_interpreter_stack() is None
        and _C._get_tracing_state() is None
    ):
        return _linear(x, tiled, bias, n, codebook=codebook)
    return linear(x, tiled, bias, n, codebook=codebook)
