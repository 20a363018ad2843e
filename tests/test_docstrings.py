"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import lowbit
import pytest

MODULES = [
    info.name for info in pkgutil.walk_packages(lowbit.__path__, "lowbit.") if not info.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name.startswith(("lowbit.torch", "lowbit.methods", "lowbit.models")):
        pytest.importorskip("torch")
    assert doctest.testmod(importlib.import_module(name)).failed == 0
