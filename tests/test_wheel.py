"""What is built: small, and runnable on every CPU of its architecture."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from pathlib import Path

import pytest
from check_module import DISPATCHED, MOST_BYTES, leaks, vector_functions
from lowbit import _core

MODULE = Path(_core.__file__)


def test_the_module_is_small():
    assert MODULE.stat().st_size < MOST_BYTES


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX is of x86-64; a .pyd keeps no symbols")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
def test_avx_is_in_dispatched_functions_alone():
    functions = vector_functions(MODULE)
    assert leaks(functions) == []
    # A module without its symbols, or without a path, would pass unseen.
    seen = {match["isa"] for name in functions if (match := DISPATCHED.search(name))}
    assert seen >= {"avx2", "avxvnni", "avx512", "amx"}


def test_a_leak_would_be_seen():
    ours = "_ZN14lowbit_kernels4gemm6avx5125panel17hc208e91f5c026cd5E"
    leaked = "_ZN14lowbit_kernels7packing6scalar4pack17h0123456789abcdefE"
    assert leaks(Counter([ours, leaked])) == [leaked]
