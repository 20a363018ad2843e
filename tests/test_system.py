"""Threads, instruction sets, and what an import costs.

"Row" numbers are those of the project's table of bad inputs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import lowbit
import pytest

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS") and k != "LOWBIT_ISA"}
    return subprocess.run([sys.executable, "-c", code], env={**clean, **env}, capture_output=True, text=True)


THREADS = "import lowbit; print(lowbit.get_num_threads())"


@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({}, CORES),
        ({"LOWBIT_NUM_THREADS": "3"}, 3),
        ({"RAYON_NUM_THREADS": "2"}, 2),
        ({"LOWBIT_NUM_THREADS": "1", "RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}, 1),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1000"}, CORES),
        ({"LOWBIT_NUM_THREADS": "1000000"}, 4 * CORES),
    ],
)
def test_the_environment_sets_the_threads(env, count):  # row 63
    told = run(THREADS, **env)
    assert (told.stdout, told.stderr) == (f"{count}\n", "")


@pytest.mark.parametrize("name", ["LOWBIT_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("text", ["abc", "", "0", "-1", "1.5"])
def test_a_count_that_is_none_is_told_and_ignored(name, text):  # row 64
    told = run(THREADS, **{name: text})
    assert told.stdout == f"{CORES}\n"
    assert f"{name}: expected a count of threads, got '{text}'; ignored" in told.stderr


def test_set_num_threads():  # row 63
    before = lowbit.get_num_threads()
    try:
        lowbit.set_num_threads(3)
        assert lowbit.get_num_threads() == 3
        lowbit.set_num_threads(-1)
        assert lowbit.get_num_threads() == CORES
        with pytest.warns(RuntimeWarning, match="1000000 threads on"):
            lowbit.set_num_threads(10**6)
        assert lowbit.get_num_threads() == 4 * CORES
        lowbit.set_num_threads(0)
        assert lowbit.get_num_threads() == before
    finally:
        lowbit.set_num_threads(0)


@pytest.mark.parametrize(("n", "error"), [("4", TypeError), (True, TypeError), (1.0, TypeError), (-2, ValueError)])
def test_counts_that_are_refused(n, error):  # row 63
    with pytest.raises(error, match="n: expected"):
        lowbit.set_num_threads(n)


def test_threads_are_put_back():
    before = lowbit.get_num_threads()
    with pytest.raises(KeyError), lowbit.threads(5):
        raise KeyError
    assert lowbit.get_num_threads() == before


def test_an_isa_that_is_none():  # row 67
    told = run("import lowbit\ntry: lowbit.isa()\nexcept ValueError as e: print(e)", LOWBIT_ISA="mmx")
    assert told.stdout.startswith("isa: expected one of scalar,")
    assert "'mmx'" in told.stdout


def test_an_isa_that_this_cpu_lacks():  # row 67
    known = ["scalar", "avx2", "avxvnni", "avx512", "avx512vbmi"]
    lacking = [name for name in known if name not in lowbit.available_isas()]
    if not lacking:
        pytest.skip("this CPU has them all")
    for name in lacking:
        told = run("import lowbit, numpy as np\nlowbit.pack_codes([1], 1)", LOWBIT_ISA=name)
        assert told.returncode == 1
        assert f"ValueError: isa: this CPU lacks {name}" in told.stderr or name in told.stderr.splitlines()[-1]


@pytest.mark.parametrize("isa", lowbit.available_isas())
def test_lowbit_isa_chooses(isa):  # row 66
    assert run("import lowbit; print(lowbit.isa())", LOWBIT_ISA=isa).stdout == f"{isa}\n"


def test_import_is_lean():
    """`import lowbit` brings numpy and Python's own modules, and nothing else."""
    code = (
        "import sys, numpy\n"
        "before = set(sys.modules)\n"
        "import lowbit\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'numpy'}))\n"
    )
    assert run(code).stdout == "['lowbit']\n"


def test_import_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("import warnings; warnings.simplefilter('error'); import lowbit, lowbit.reference").stderr == ""
