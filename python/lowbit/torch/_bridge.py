"""torch CPU tensors as numpy views, and torch's threads as ours."""

from __future__ import annotations

import glob
import os
from typing import Any

import numpy as np
import torch

from lowbit import _core


def view(x: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous CPU tensor; bfloat16 as uint16, as the core takes it."""
    if x.requires_grad:
        x = x.detach()
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy()
    return x.numpy()


def _adopt_openmp() -> bool:
    """Whether kernels between torch's operators run on torch's own workers.

    Those spin for a while after each operator, so a second pool on the same
    cores would wait for them. The library is looked for among those that this
    torch has loaded.
    """
    try:
        with open("/proc/self/maps") as maps:
            loaded = {line.split()[-1] for line in maps if "omp" in line.rsplit("/", 1)[-1]}
    except OSError:
        return False
    home = os.path.realpath(os.path.join(os.path.dirname(torch.__file__), ".."))
    mine = [p for p in loaded if os.path.realpath(p).startswith(home) and glob.glob(glob.escape(p))]
    return any(_core.use_openmp(path) for path in sorted(mine))


#: Whether torch's OpenMP pool was found and is used.
openmp: bool = _adopt_openmp()


def count() -> int:
    """Threads of a call between torch's operators: torch's, at most lowbit's."""
    return min(torch.get_num_threads(), _core.get_num_threads())


def empty(shape: Any, dtype: torch.dtype, small: bool = False) -> tuple[torch.Tensor, np.ndarray]:
    """An uninitialised CPU tensor and its view.

    A small float32 one is made by numpy, which takes half the time; a large one
    by torch, whose memory starts at a cache line.
    """
    if small and dtype is torch.float32:
        array = np.empty(shape, np.float32)
        return torch.from_numpy(array), array
    tensor = torch.empty(shape, dtype=dtype)
    return tensor, view(tensor)
