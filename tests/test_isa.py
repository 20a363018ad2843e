"""Every instruction set gives the same bytes, and choosing one works as told."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import lowbit
import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent
KNOWN = ("scalar", "neon", "neondot", "avx2", "avxvnni", "avx512", "avx512vbmi", "amx")
LACKING = [name for name in KNOWN if name not in lowbit.available_isas()]

# What the default instruction set gives: a digest of integers and of floats' bits.
DIGEST = """
import hashlib, sys
import numpy as np, lowbit
digest = hashlib.sha256()
golden = np.load(sys.argv[1])
for name in golden.files:
    kind, _, part = name.partition(".")
    if part == "c":
        c = lowbit.matmul_int8(golden[kind + ".a"], golden[kind + ".b"])
        assert (c == golden[name]).all(), name
        digest.update(c.tobytes())
    elif part == "bytes":
        packed = lowbit.pack_codes(golden[kind + ".codes"], int(kind.partition("_")[2]))
        assert (packed == golden[name]).all(), name
        digest.update(packed.tobytes())
rng = np.random.default_rng(0)
x = rng.standard_normal((9, 83), np.float32)
w = lowbit.quantize_weight(rng.standard_normal((37, 83), np.float32))
digest.update(w.tiled.tobytes())
for activation in (None, "relu", "gelu", "gelu_tanh", "silu"):
    digest.update(lowbit.linear(x, w, activation=activation).tobytes())
print(lowbit.isa(), *lowbit.available_isas(), digest.hexdigest())
"""


def digest(*runner: str, **variables: str) -> list[str]:
    """The instruction set chosen, those available, and the digest."""
    env = {name: value for name, value in os.environ.items() if name != "LOWBIT_ISA"} | variables
    command = [*runner, sys.executable, "-c", DIGEST, str(HERE / "golden" / "golden.npz")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="session")
def expected() -> str:
    return digest(LOWBIT_ISA="scalar")[-1]


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    with np.load(HERE / "golden" / "golden.npz") as file:
        return {name: file[name] for name in file.files}


# ------------------------------------------------------------------ the same bytes


def test_golden_products(golden, isa, ran):
    for name in (name.removesuffix(".c") for name in golden if name.endswith(".c")):
        a, b, c = (golden[f"{name}.{part}"] for part in "abc")
        for threads in (1, 2):
            with lowbit.threads(threads):
                got = lowbit.matmul_int8(a, b, isa=isa)
            assert got.dtype == np.int32
            assert (got == c).all(), name
            ran(isa)


def test_golden_packed_codes(golden, isa, ran):
    for nbits in range(1, 17):
        codes, packed = golden[f"packed_{nbits}.codes"], golden[f"packed_{nbits}.bytes"]
        assert (lowbit.pack_codes(codes, nbits, isa=isa) == packed).all()
        assert (lowbit.unpack_codes(packed, nbits, codes.size, isa=isa) == codes).all()
        ran(isa)


def test_the_golden_file_is_what_its_script_makes(golden):
    done = subprocess.run(
        [sys.executable, "-c", "import make; print(*((n, x.tobytes().hex()) for n, x in make.cases().items()))"],
        cwd=HERE / "golden",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == " ".join(str((n, x.tobytes().hex())) for n, x in golden.items())


@pytest.mark.parametrize("name", lowbit.available_isas())
def test_lowbit_isa_forces_each_with_the_same_bytes(name, expected):
    chosen, *_, got = digest(LOWBIT_ISA=name)
    assert (chosen, got) == (name, expected)


def test_the_best_is_the_default(expected):
    chosen, *available, got = digest()
    assert (chosen, got) == (available[-1], expected)
    assert tuple(available) == lowbit.available_isas()


# ------------------------------------------------------------------ names


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=f"isa: expected one of {', '.join(KNOWN)}, got 'mmx'"):
        lowbit.matmul_int8(np.ones((1, 1), np.int8), np.ones((1, 1), np.int8), isa="mmx")


def test_an_unknown_variable_is_refused_with_the_choices():
    code = "import lowbit\ntry: lowbit.isa()\nexcept ValueError as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"LOWBIT_ISA": "mmx"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith(f"expected one of {', '.join(KNOWN)}, got 'mmx'")


@pytest.mark.parametrize(
    "name", LACKING or [pytest.param("", marks=pytest.mark.skip(reason="this CPU has every instruction set"))]
)
def test_one_that_this_cpu_lacks_is_refused(name):  # row 67
    with pytest.raises(ValueError, match=f"this CPU cannot run '{name}'; it has scalar"):
        lowbit.pack_codes(np.ones(8, np.uint8), 1, isa=name)


# ------------------------------------------------------------------ other CPUs, emulated

qemu = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64 (qemu-user)"
)


@qemu
@pytest.mark.parametrize(("cpu", "has"), [("Nehalem", ["scalar"]), ("Haswell", ["scalar", "avx2"])])
def test_the_module_on_an_older_cpu(cpu, has, expected):  # row 66
    # numpy's OpenBLAS would take a newer core's word from the environment.
    chosen, *available, got = digest("qemu-x86_64", "-cpu", cpu, OPENBLAS_CORETYPE="Nehalem")
    assert (chosen, available, got) == (has[-1], has, expected)


@qemu
def test_one_that_an_older_cpu_lacks_is_refused():  # row 67: an error and no SIGILL
    code = "import lowbit\ntry: lowbit.isa()\nexcept ValueError as e: print(e)"
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", "Nehalem", sys.executable, "-c", code],
        env=os.environ | {"LOWBIT_ISA": "avx2", "OPENBLAS_CORETYPE": "Nehalem"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "isa: this CPU cannot run 'avx2'; it has scalar", done.stderr


@qemu
@pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo, for the kernels' own tests")
def test_the_kernels_tests_on_a_cpu_without_avx(record_property):  # row 66
    build = ["cargo", "test", "--package", "lowbit-kernels", "--lib", "--no-run", "--message-format", "json"]
    built = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    messages = [json.loads(line) for line in built.splitlines() if line.startswith("{")]
    binary = next(m["executable"] for m in messages if m.get("executable") and m["profile"]["test"])
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", "Nehalem", binary, "--show-output", "gemm", "packing", "affine"],
        env=os.environ | {"LOWBIT_CASES": "60"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "test result: ok" in done.stdout
    assert "scalar" in done.stdout
    assert "avx2" not in done.stdout
