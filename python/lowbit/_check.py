"""What every family asks of its arguments: one wording, one behaviour.

A message names the argument, what was expected and what came. The first lines
of each function are the path of a well-formed call and cost well under a
microsecond.
"""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "REALS",
    "aligned",
    "as_array",
    "as_numbers",
    "as_rows",
    "as_weights",
    "check_int",
    "check_out",
    "code_dtype",
    "exact_floats",
    "new_out",
]

# By the dtype itself, since `dtype.name` costs a microsecond. A dtype that is
# byte-swapped or an extension (bfloat16) is not here and takes the slow path.
_NAMES = {
    np.dtype(name): name
    for name in ("uint8", "int8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64")
}

# Numbers that levels are found for. The first is what lists of numbers become.
REALS = ("float64", "float32", "float16", "bfloat16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")
_WEIGHTS = ("float64", "float32", "float16", "bfloat16")
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)

_REMEDIES = {
    "bool": "; convert with .view(np.uint8)",
    "int8": "; store signed codes as code + 2**(nbits - 1)",
}


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as an int within ``low..=high``.

    NumPy's integers are ints; a bool or a float is not, whatever its value.

    Raises
    ------
    TypeError
        ``value`` is no integer.
    ValueError
        It lies outside the range.
    """
    if type(value) is not int:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name}: expected an int, got {value!r} (bool)")
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name}: expected an int, got {value!r} ({type(value).__name__})") from None
    if value < low or (high is not None and value > high):
        expected = f"{low} to {high}" if high is not None else f"at least {low}"
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return value


#: What numbers may be given in.
FLOATS = ("float32", "float64", "float16", "bfloat16")


def as_array(name: str, x: Any, dtypes: Sequence[str], *, min_ndim: int = 1) -> np.ndarray:
    """``x`` as a C-contiguous, aligned ndarray in native byte order.

    ``x`` itself where it is one already, else copied once: other strides
    (negative, zero, Fortran order: an array that `numpy.broadcast_to` made is
    written out in full), misaligned views, swapped bytes. An array's dtype is
    never changed otherwise. Python numbers have none, so lists of them become
    ``dtypes[0]`` if every value fits.

    Parameters
    ----------
    name : str
        The argument's name, for messages.
    x : array_like
        ndarray, subclass or memory map; anything with ``__array__``, such as a
        DataFrame; a plain torch tensor on the CPU; a list or tuple, nested.
    dtypes : sequence of str
        Names of the dtypes allowed. ``"bfloat16"`` means `ml_dtypes.bfloat16`.
    min_ndim : int
        The least number of axes.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain, or
        something that is no array at all.
    ValueError
        Fewer than ``min_ndim`` axes, a ragged list, a number out of range.
    """
    if type(x) is not np.ndarray or _NAMES.get(x.dtype) not in dtypes:
        x = _convert(name, x, dtypes)
    if x.ndim < min_ndim:
        raise ValueError(f"{name}: expected at least {min_ndim}-D, got {x.ndim}-D of shape {x.shape}")
    flags = x.flags
    if flags.c_contiguous and flags.aligned:
        return x
    return np.array(x, order="C", subok=False)  # always aligned, unlike ascontiguousarray


def core_view(x: np.ndarray) -> np.ndarray:
    """``x`` as the core takes it: bfloat16 as uint16."""
    return x if x.dtype in _NAMES or x.dtype.name != "bfloat16" else x.view(np.uint16)


def aligned(size: int) -> np.ndarray:
    """Uninitialised bytes that start at a cache line, as the kernels like best."""
    raw = np.empty(size + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def new_out(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """An uninitialised result; a large one is `aligned`, which a small one does not repay."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    return np.empty(shape, dtype) if size < 1 << 16 else aligned(size).view(dtype).reshape(shape)


def check_out(name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype, *inputs: Any) -> np.ndarray:
    """``out`` if a kernel may write a result of this shape and dtype to it.

    ``inputs`` are the call's arguments, both as the user gave them and as
    `as_array` made them; what is no ndarray is passed over.

    Raises
    ------
    TypeError
        ``out`` is no ndarray, is masked, or has another dtype.
    ValueError
        Another shape, not C-contiguous, misaligned, read-only, or sharing
        memory with an input.
    """
    if type(out) is not np.ndarray and (not isinstance(out, np.ndarray) or isinstance(out, _masked())):
        raise TypeError(f"{name}: expected a numpy.ndarray, got {_kind(out)}")
    if out.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {out.shape}")
    flags = out.flags
    if not (flags.c_contiguous and flags.aligned):
        raise ValueError(f"{name}: expected a C-contiguous, aligned array, got strides {out.strides}")
    if not flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one")
    seen = None
    for x in inputs:
        if x is seen or not isinstance(x, np.ndarray):
            continue
        seen = x
        if np.may_share_memory(out, x) and _overlap(out, x):
            raise ValueError(f"{name}: expected memory of its own, got an array that overlaps an input")
    return out


def as_numbers(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """``x``, at least one number, as it came, and as float32 or float64 that holds it exactly."""
    array = as_array("x", x, REALS)
    if array.size == 0:
        raise ValueError(f"x: expected at least one value, got shape {array.shape}")
    return array, exact_floats("x", array)


def exact_floats(name: str, array: np.ndarray) -> np.ndarray:
    """``array``, of a dtype of `REALS`, as float32 or float64 that holds it exactly."""
    if array.dtype == _F32 or array.dtype == _F64:
        return array
    exact = array.astype(_F64 if array.dtype.itemsize >= 4 else _F32)
    if array.dtype == np.int64 and (wrong := (np.abs(exact) > 2.0**53).ravel()).any():
        at = int(wrong.argmax())
        raise ValueError(f"{name}: expected integers that float64 holds, got {array.flat[at]} at flat index {at}")
    return exact


def as_weights(sample_weight: Any, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray | None:
    """Weights of one of the shapes as float64."""
    if sample_weight is None:
        return None
    weight = as_array("sample_weight", sample_weight, _WEIGHTS)
    if weight.shape not in shapes:
        raise ValueError(f"sample_weight: expected shape {' or '.join(map(str, shapes))}, got {weight.shape}")
    return weight.astype(_F64, copy=False)


def as_rows(x: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """`as_numbers` of rows, and their weights: a row's own that are all 0 are as if all were 1, with
    a warning to the caller's caller."""
    array, exact = as_numbers(x)
    if array.ndim != 2:
        raise ValueError(f"x: expected shape (rows, n), got {array.shape}")
    weight = as_weights(sample_weight, (array.shape[1:], array.shape))
    if weight is not None and weight.ndim == 2:
        unused = np.flatnonzero((weight == 0).all(axis=1))
        if unused.size:
            text = f"sample_weight: all 0 in {unused.size} of {len(weight)} rows, which are taken as unweighted"
            warnings.warn(text, RuntimeWarning, stacklevel=3)
            weight = weight.copy()
            weight[unused] = 1.0
    return array, exact, weight


def code_dtype(k: int) -> type[np.unsignedinteger[Any]]:
    """The smallest dtype of ``k`` codes."""
    return np.uint8 if k <= 1 << 8 else np.uint16 if k <= 1 << 16 else np.uint32


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # any count will do
    except np.exceptions.TooHardError:
        return True


def _masked() -> tuple[type, ...]:
    """The masked array's class, if anyone has imported it."""
    ma = sys.modules.get("numpy.ma")
    return (ma.MaskedArray,) if ma is not None else ()


def _kind(x: Any) -> str:
    kind = type(x)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _convert(name: str, x: Any, dtypes: Sequence[str]) -> np.ndarray:
    """The slow path of `as_array`: whatever is no ndarray of an allowed dtype."""
    allowed = " or ".join(dtypes)
    if isinstance(x, _masked()):
        raise TypeError(f"{name}: expected an array of {allowed}, got a masked array; use .filled(value)")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        x = _from_torch(name, x, torch)
    plain = isinstance(x, (list, tuple, int, float, complex)) and not isinstance(x, np.generic)
    if not plain and not hasattr(x, "__array__") and not _is_buffer(x):
        raise TypeError(f"{name}: expected an array of {allowed}, got {_kind(x)}")
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array, got a ragged {_kind(x)} ({error})") from None
    if isinstance(array, _masked()):  # from a list or an __array__ of one
        raise TypeError(f"{name}: expected an array of {allowed}, got a masked array; use .filled(value)")
    native = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    known = _NAMES.get(native) or native.name
    if known in dtypes:
        return array if native == array.dtype else array.astype(native)
    if plain and not _holds_arrays(x):
        return _from_numbers(name, array, dtypes)
    remedy = _REMEDIES.get(known, "") if any(d.startswith("uint") for d in dtypes) else ""
    raise TypeError(f"{name}: expected dtype {allowed}, got {array.dtype}{remedy}")


def _is_buffer(x: Any) -> bool:
    try:
        memoryview(x)
    except TypeError:
        return False
    return not isinstance(x, (bytes, bytearray))  # np.asarray reads these as text


def _holds_arrays(x: Any) -> bool:
    """Whether a nested list ends in arrays, whose dtypes then count."""
    while isinstance(x, (list, tuple)):
        if not x:
            return False
        x = x[0]
    return hasattr(x, "dtype")


def _from_numbers(name: str, array: np.ndarray, dtypes: Sequence[str]) -> np.ndarray:
    """Python numbers, which NumPy read as int64 or float64, as ``dtypes[0]``."""
    target = np.dtype(dtypes[0])
    if array.size == 0:
        return array.astype(target)
    if target.kind == "f" and array.dtype.kind in "iuf":
        return array.astype(target)
    if target.kind in "iu" and array.dtype.kind in "iu":
        info = np.iinfo(target)
        wrong = (array < info.min) | (array > info.max)
        if wrong.any():
            at = int(wrong.argmax())
            got = f"{array.flat[at]} at flat index {at}"
            raise ValueError(f"{name}: expected values of {info.min} to {info.max}, got {got}")
        return array.astype(target)
    raise TypeError(f"{name}: expected numbers that fit {target}, got {array.dtype}")


def _from_torch(name: str, x: Any, torch: Any) -> np.ndarray:
    """A plain CPU tensor's memory; the remedy for any other."""
    where = f"{name}: expected a numpy array or a plain torch CPU tensor, got a tensor"
    if x.device.type == "meta":
        raise TypeError(f"{where} on the meta device, which has no data")
    if x.device.type != "cpu":
        raise TypeError(f"{where} on {x.device}; use .detach().cpu()")
    if x.is_quantized:
        raise TypeError(f"{where} of {x.dtype}; use .int_repr()")
    if x.layout != torch.strided:
        raise TypeError(f"{where} of layout {x.layout}; use .to_dense()")
    if x.requires_grad:
        raise TypeError(f"{where} that requires grad; use .detach()")
    try:
        return x.numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{where} of {x.dtype} that numpy cannot hold: {error}") from None
