"""torch CPU tensors as numpy views, and torch's threads as ours."""

from __future__ import annotations

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


def _adopt_openmp() -> str | None:
    """The OpenMP library, if kernels between torch's operators run on torch's own workers.

    Those spin for a while after each operator, so a second pool on the same
    cores would wait for them. A process may have loaded several OpenMP
    libraries (scikit-learn brings its own): torch's lies in torch's folders.
    """
    try:
        with open("/proc/self/maps") as maps:
            fields = [line.rstrip("\n").split(maxsplit=5) for line in maps]
    except OSError:
        return None
    loaded = {f[5] for f in fields if len(f) == 6 and "omp" in os.path.basename(f[5])}
    home = os.path.dirname(os.path.realpath(torch.__file__))
    homes = (home + os.sep, home + ".libs" + os.sep)
    mine = [path for path in loaded if os.path.realpath(path).startswith(homes)]
    return next((path for path in sorted(mine) if _core.use_openmp(path)), None)


#: Path of torch's OpenMP library, once its pool is ours too.
adopted: str | None = _adopt_openmp()
#: Whether torch's OpenMP pool was found and is used.
openmp: bool = adopted is not None


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
