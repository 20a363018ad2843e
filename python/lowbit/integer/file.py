"""Integer networks in safetensors files; FORMATS.md, "Integer network files"."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.integer import graph as g
from lowbit.packing import pack_codes, unpack_codes
from lowbit.types import FileFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["load", "save"]

#: What the file's metadata are called.
_GRAPH, _NOTES = "lowbit.graph", "lowbit.notes"
#: What a graph's text may take.
_MOST_TEXT = 64 << 20


def save(graph: g.Graph, path: str | os.PathLike[str]) -> None:
    """Writes a network to one safetensors file, which is complete or not there.

    Parameters
    ----------
    graph : Graph
    path : path_like
        A file there is replaced.

    Raises
    ------
    TypeError
        No graph: of what `to_integer` made, ``.graph`` is one.
    ValueError
        A constant is named ``__metadata__``, or a code does not fit its ``nbits``.
    """
    from safetensors.numpy import save as serialized

    if not isinstance(graph, g.Graph):
        raise TypeError(f"graph: expected a lowbit.integer.Graph, got {type(graph).__name__}")
    if "__metadata__" in graph.constants:
        raise ValueError("constants: expected another name than '__metadata__', which safetensors files reserve")
    data = {name: _packed(constant) for name, constant in graph.constants.items()}
    metadata = {_GRAPH: graph.to_json(), _NOTES: json.dumps(dict(graph.notes))}
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Not by safetensors, whose files are for the user alone.
        unfinished.write_bytes(serialized(data, metadata))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> g.Graph:
    """Reads what `save` wrote.

    Raises
    ------
    FileFormatError
        No safetensors file, none of an integer network, or one that does not fit together.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> from lowbit.integer import Constant, FullyConnected, Graph, Tensor, load, save
    >>> x, y = Tensor("x", (2,), "int8", scale=0.5), Tensor("y", (1,), "int8", scale=1.0)
    >>> w = Constant("w", np.array([[3, 4]], np.int8), np.array([0.5], np.float32))
    >>> layer = FullyConnected("x", "w", None, "y")
    >>> path = pathlib.Path(tempfile.mkdtemp(), "network.safetensors")
    >>> save(Graph({"x": x, "y": y}, {"w": w}, (layer,), ("x",), ("y",)), path)
    >>> load(path).constants["w"].data
    array([[3, 4]], dtype=int8)
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # what the system says of a file that cannot be read
        pass
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if _GRAPH not in metadata:
                raise FileFormatError(f"{path}: expected an integer network's file, got no {_GRAPH!r} in its metadata")
            described = _read_json(path, metadata[_GRAPH])
            constants = {}
            for entry in described["constants"]:
                constants[entry["name"]] = _constant(entry, file.get_tensor(entry["name"]))
            tensors = {t["name"]: g.Tensor(**{**t, "shape": tuple(t["shape"])}) for t in described["tensors"]}
            operations = tuple(g.operation_from(operation) for operation in described["operations"])
            notes = _read_json(path, metadata.get(_NOTES, "{}"))
            return g.Graph(
                tensors, constants, operations, tuple(described["inputs"]), tuple(described["outputs"]), notes
            )
    except SafetensorError as error:
        raise FileFormatError(f"{path}: no safetensors file: {error}") from None
    except FileFormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise FileFormatError(f"{path}: no integer network: {type(error).__name__}: {error}") from None


def _read_json(path: Any, text: str) -> Any:
    if len(text) > _MOST_TEXT:
        raise FileFormatError(f"{path}: expected at most {_MOST_TEXT:,} characters of metadata, got {len(text):,}")
    try:
        described = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileFormatError(f"{path}: expected JSON in its metadata: {error}") from None
    if not isinstance(described, dict):
        raise FileFormatError(f"{path}: expected a JSON object in its metadata, got {type(described).__name__}")
    if described.get("version", g.VERSION) != g.VERSION:
        raise FileFormatError(f"{path}: expected version {g.VERSION}, got {described['version']!r}")
    return described


def _packed(constant: g.Constant) -> NDArray[Any]:
    """Codes of fewer than 8 bits as unsigned ones, packed, a row for each index of the first axis."""
    if constant.nbits == 8:
        return np.ascontiguousarray(constant.data)
    _expect_rows(constant.name, constant.data.shape, constant.nbits)
    low, high = _range(constant.nbits, constant.data.dtype)
    if constant.data.min() < low or constant.data.max() > high:
        raise ValueError(f"{constant.name}: expected codes of {low} to {high} for {constant.nbits} bits")
    rows = constant.data.reshape(constant.data.shape[0], -1)
    return pack_codes((rows.astype(np.int16) - low).astype(np.uint8), constant.nbits)


def _constant(entry: dict[str, Any], stored: NDArray[Any]) -> g.Constant:
    if entry["dtype"] not in ("int8", "uint8", "int32"):
        raise ValueError(f"{entry['name']}: expected int8, uint8 or int32, got {entry['dtype']!r}")
    shape, dtype, nbits = tuple(entry["shape"]), np.dtype(entry["dtype"]), entry["nbits"]
    if nbits < 8:
        _expect_rows(entry["name"], shape, nbits)
        count = int(np.prod(shape[1:], dtype=np.int64))
        if stored.dtype != np.uint8 or stored.shape != (shape[0], -(-count * nbits // 8)):
            raise ValueError(f"{entry['name']}: expected {shape[0]} rows of {count} codes of {nbits} bits")
        low, _ = _range(nbits, dtype)
        stored = (unpack_codes(stored, nbits, count).astype(np.int16) + low).astype(dtype).reshape(shape)
    if stored.shape != shape or stored.dtype != dtype:
        raise ValueError(f"{entry['name']}: expected {dtype} of {shape}, got {stored.dtype} of {stored.shape}")
    with np.errstate(over="ignore"):  # the graph refuses infinities
        scale = None if entry["scale"] is None else np.array(entry["scale"], np.float32)
    return g.Constant(entry["name"], stored, scale, entry["zero_point"], nbits)


def _expect_rows(name: str, shape: tuple[int, ...], nbits: int) -> None:
    """Codes of fewer than 8 bits are packed row by row."""
    if not shape:
        raise ValueError(f"{name}: expected rows of codes for {nbits} bits, got the shape ()")


def _range(nbits: int, dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the largest code of these bits."""
    return (-(1 << (nbits - 1)), (1 << (nbits - 1)) - 1) if dtype == np.int8 else (0, (1 << nbits) - 1)
