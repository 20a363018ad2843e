"""What lowbit finds on this machine, and what it chose."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata
from typing import Any

import lowbit
from lowbit import _core

__all__ = ["facts"]

#: The file of each family's kernels by instruction set, the best first.
KERNELS = {
    "affine": ("avx512", "avx2", "neon", "scalar"),
    "packing": ("avx512vbmi", "avx2", "scalar"),
    "gemm": ("amx", "avx512", "avxvnni", "avx2", "neondot", "neon", "scalar"),
}

#: What each instruction set implies for KERNELS.
IMPLIES = {
    "scalar": ("scalar",),
    "neon": ("neon", "scalar"),
    "neondot": ("neondot", "neon", "scalar"),
    "avx2": ("avx2", "scalar"),
    "avxvnni": ("avxvnni", "avx2", "scalar"),
    "avx512": ("avx512", "avx2", "scalar"),
    "avx512vbmi": ("avx512vbmi", "avx512", "avx2", "scalar"),
    "amx": ("amx", "avx512vbmi", "avx512", "avx2", "scalar"),
}

PACKAGES = (
    *("numpy", "safetensors", "ml-dtypes", "torch", "sentence-transformers", "transformers"),
    *("onnx", "onnxruntime", "openvino", "torchao", "typer", "rich", "matplotlib"),
)


def facts(*, torch: bool = False) -> dict[str, Any]:
    """Everything as plain data; a mistake in the environment is under ``complaints``.

    Parameters
    ----------
    torch : bool
        Import torch too, to see whether its OpenMP pool is used.
    """
    complaints: list[str] = []
    told: dict[str, Any] = {
        "lowbit": lowbit.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "isa": _isa(complaints),
        "threads": _threads(complaints),
    }
    chosen = told["isa"]["chosen"]
    told["kernels"] = {family: _kernel(family, chosen) for family in KERNELS} if chosen else {}
    told["versions"] = {name: version for name in PACKAGES if (version := _version(name))}
    if torch:
        told["torch_openmp"] = _openmp(complaints)
    return {**told, "complaints": complaints}


def cpu() -> str:
    """The CPU's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _isa(complaints: list[str]) -> dict[str, Any]:
    wanted = os.environ.get("LOWBIT_ISA")
    try:
        chosen = lowbit.isa()
    except ValueError as error:
        complaints.append(f"LOWBIT_ISA: {error}")
        chosen = None
    why = f"LOWBIT_ISA={wanted}" if wanted else "the best that this CPU has"
    return {"available": list(lowbit.available_isas()), "chosen": chosen, "why": why}


def _threads(complaints: list[str]) -> dict[str, Any]:
    complaints += _core.thread_complaints()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    why = "the cores that affinity and cgroup allow"
    for name in ("LOWBIT_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").strip()
        if text.isdecimal() and int(text) > 0 and (name != "OMP_NUM_THREADS" or int(text) < cores):
            why = f"{name}={text}"
            break
    return {"default": lowbit.get_num_threads(), "why": why, "cores": cores, "machine": os.cpu_count()}


def _kernel(family: str, isa: str) -> str:
    return next(path for path in KERNELS[family] if path in IMPLIES.get(isa, ("scalar",)))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _openmp(complaints: list[str]) -> bool | None:
    """Whether calls between torch's operators run on torch's own threads."""
    if importlib.util.find_spec("torch") is None:
        complaints.append("torch is not installed: pip install 'lowbit[torch]'")
        return None
    from lowbit.torch import _bridge

    return bool(_bridge.openmp)


def lines(told: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as pairs to print."""
    isa, threads = told["isa"], told["threads"]
    pairs = [
        ("lowbit", f"{told['lowbit']}, Python {told['python']} ({sys.implementation.name})"),
        ("platform", told["platform"]),
        ("cpu", told["cpu"]),
        ("instruction sets", ", ".join(isa["available"])),
        ("chosen", f"{isa['chosen'] or 'none'}: {isa['why']}"),
        ("threads", f"{threads['default']}: {threads['why']} ({threads['cores']} of {threads['machine']} cores)"),
        ("kernels", ", ".join(f"{family} {path}" for family, path in told["kernels"].items()) or "none"),
        ("versions", ", ".join(f"{name} {version}" for name, version in told["versions"].items())),
    ]
    if "torch_openmp" in told:
        adopted = {True: "lowbit runs on torch's own threads", False: "not found: lowbit uses threads of its own"}
        pairs.append(("torch's OpenMP", adopted.get(told["torch_openmp"], "torch is not installed")))
    return pairs
