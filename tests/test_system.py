"""Threads, import, faults of the process. "Row" numbers are those of the
project's table of bad inputs.

What concerns a whole process runs in one of its own.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import lowbit
import numpy as np
import pytest
from lowbit import _core

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CHOOSE = ("LOWBIT_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS")
linux = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# A product that takes every thread, and whether it is right.
PRODUCT = """
import numpy as np, lowbit
a = np.full((300, 256), 3, np.uint8)
b = np.full((256, 256), -2, np.int8)
def right():
    return bool((lowbit.matmul_int8(a, b) == -1536).all())
"""


def run(code: str, *, timeout: float = 60, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python process with these environment variables and no others of ours."""
    env = {name: value for name, value in os.environ.items() if name not in (*CHOOSE, "LOWBIT_ISA")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env | variables, capture_output=True, text=True, timeout=timeout)


def answer(code: str, **variables: str) -> str:
    done = run(code, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------ how many threads


@pytest.fixture
def default_threads():
    yield
    lowbit.set_num_threads(0)


@pytest.mark.usefixtures("default_threads")
def test_a_count_is_kept():
    lowbit.set_num_threads(1)
    assert lowbit.get_num_threads() == 1
    with lowbit.threads(np.int64(2)):
        assert lowbit.get_num_threads() == 2
    assert lowbit.get_num_threads() == 1


@pytest.mark.usefixtures("default_threads")
def test_zero_is_the_default_and_minus_one_all_cores():  # row 63
    before = lowbit.get_num_threads()
    lowbit.set_num_threads(-1)
    assert lowbit.get_num_threads() == CORES
    lowbit.set_num_threads(0)
    assert lowbit.get_num_threads() == before


@pytest.mark.parametrize("n", ["4", 1.0, None, True])
def test_no_count(n):  # row 63
    with pytest.raises(TypeError, match="n: expected an int"):
        lowbit.set_num_threads(n)


def test_below_minus_one():
    with pytest.raises(ValueError, match="n: expected -1, 0 or a count"):
        lowbit.set_num_threads(-2)


@pytest.mark.usefixtures("default_threads")
@pytest.mark.parametrize("n", [10**6, 2**70])
def test_an_absurd_count_is_cut(n):  # row 63
    with pytest.warns(RuntimeWarning, match=f"using {4 * CORES}"):
        lowbit.set_num_threads(n)
    assert lowbit.get_num_threads() == 4 * CORES


def test_an_error_within_threads_gives_the_count_back():
    before = lowbit.get_num_threads()
    with pytest.raises(KeyError), lowbit.threads(1):
        raise KeyError
    assert lowbit.get_num_threads() == before


COUNT = "import lowbit; print(lowbit.get_num_threads())"


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({"LOWBIT_NUM_THREADS": "3"}, 3),
        ({"LOWBIT_NUM_THREADS": " 3 "}, 3),
        ({"RAYON_NUM_THREADS": "3"}, 3),
        ({"LOWBIT_NUM_THREADS": "1", "RAYON_NUM_THREADS": "3"}, 1),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,2"}, 1),  # a count for each level of nesting
        ({"OMP_NUM_THREADS": "999"}, CORES),  # a limit and no wish
        ({"LOWBIT_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, 2),
    ],
)
def test_variables_choose(variables, count):
    done = run(COUNT, **variables)
    assert (done.stdout.strip(), done.stderr) == (str(count), "")


@pytest.mark.parametrize("name", CHOOSE)
@pytest.mark.parametrize("value", ["abc", "", "0", "-1", "1.5", "99999999999999999999"])
def test_variables_that_are_no_count(name, value):  # row 64
    done = run(COUNT, **{name: value})
    assert done.stdout.strip() == str(CORES)
    assert f"RuntimeWarning: {name}: expected a count of threads, got '{value}'; ignored" in done.stderr


@pytest.mark.parametrize("name", ["LOWBIT_NUM_THREADS", "RAYON_NUM_THREADS"])
def test_an_absurd_variable_is_cut(name):  # row 63
    done = run(PRODUCT + "print(right(), lowbit.get_num_threads())", **{name: "1000000"})
    assert done.stdout.split() == ["True", str(4 * CORES)]
    assert f"RuntimeWarning: {name}: 1000000 threads on {CORES} cores" in done.stderr


@linux
def test_affinity_is_respected():  # row 63; a cgroup's quota comes from the same call
    assert answer("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + COUNT) == "1"


@linux
def test_no_more_threads_than_asked_for():
    code = PRODUCT + "print(right(), len(__import__('os').listdir('/proc/self/task')))"
    for n in (1, 2, 3):
        before = int(answer("import os, numpy, lowbit; print(len(os.listdir('/proc/self/task')))"))
        right, after = answer(code, LOWBIT_NUM_THREADS=str(n)).split()
        assert (right, int(after) - before) == ("True", n - 1)


# A user without privileges whose every further thread is refused.
REFUSED = """
import resource, os, threading
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=int).start()
    print("granted")
except RuntimeError:
    print("refused")
"""


@linux
def test_threads_refused_by_the_system():  # row 65
    done = run(PRODUCT + REFUSED + "print(right(), right())", LOWBIT_NUM_THREADS="4")
    if "granted" in done.stdout:
        pytest.skip("this user's threads cannot be limited")
    assert done.stdout.split() == ["refused", "True", "True"]
    assert done.stderr.count("RuntimeWarning: the system refused threads") == 1


# ------------------------------------------------------------------ fork, threads, exit

CHILD = """
import os, signal
def child():
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)  # the watchdog: a child that hangs is killed
        os._exit(0 if right() else 1)
    return os.waitpid(pid, 0)[1]
"""


@forks
@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_fork_after_a_parallel_call(threads):  # row 57
    code = "assert right(); print(child(), child(), right())"
    assert answer(PRODUCT + CHILD + code, LOWBIT_NUM_THREADS=threads) == "0 0 True"


@forks
def test_a_child_forks_too():
    code = """
    right()
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        os._exit(0 if right() and child() == 0 else 1)
    print(os.waitpid(pid, 0)[1])
    """
    assert answer(PRODUCT + CHILD + textwrap.dedent(code), LOWBIT_NUM_THREADS="2") == "0"


@forks
def test_fork_while_another_thread_is_in_a_kernel():  # row 58
    code = """
    import threading
    going = True
    def work():
        while going:
            right()
    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers: worker.start()
    print({child() for _ in range(20)})
    going = False
    for worker in workers: worker.join()
    """
    assert answer(PRODUCT + CHILD + textwrap.dedent(code), LOWBIT_NUM_THREADS="2") == "{0}"


@pytest.mark.parametrize(
    "method", [pytest.param("fork", marks=forks), pytest.param("forkserver", marks=forks), "spawn"]
)
def test_process_pools(method, tmp_path):  # row 57
    main = tmp_path / "main.py"
    main.write_text(
        PRODUCT
        + textwrap.dedent(f"""
            def ask(_):
                return right()
            if __name__ == "__main__":
                import multiprocessing
                from concurrent.futures import ProcessPoolExecutor
                assert right()
                with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context({method!r})) as pool:
                    print(all(pool.map(ask, range(4))))
        """)
    )
    done = subprocess.run([sys.executable, main], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True", done.stderr


def test_many_python_threads():  # row 59
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (64, 300, 128), np.uint8)
    b = rng.integers(-128, 128, (128, 96), np.int8)
    expected = [x.astype(np.int32) @ b for x in a]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: lowbit.matmul_int8(x, b), a))
    assert all((x == y).all() for x, y in zip(got, expected, strict=True))


def test_input_changed_meanwhile():  # row 60: torn values at worst
    a = np.zeros((512, 512), np.uint8)
    b = np.ones((512, 512), np.int8)
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            a[...] = a[0, 0] ^ 1

    other = threading.Thread(target=change)
    other.start()
    try:
        for _ in range(20):
            c = lowbit.matmul_int8(a, b)
            assert ((c >= 0) & (c <= 512)).all()
    finally:
        over.set()
        other.join()


def test_exit_with_a_live_pool():  # row 69
    code = PRODUCT + "import threading; assert right(); threading.Thread(target=right, daemon=True).start()"
    assert run(code, timeout=10, LOWBIT_NUM_THREADS="2").returncode == 0


def test_reload():  # row 69
    assert importlib.reload(lowbit).isa() in lowbit.available_isas()


def test_subinterpreter():  # row 69: refused, or it works
    code = """
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    it = interpreters.create()
    code = "try:\\n import lowbit._core\\nexcept ImportError as e:\\n print('ImportError')\\nelse:\\n print('works')"
    interpreters.run_string(it, code)
    import sys; sys.stdout.flush()
    """
    done = run(code)
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("this Python has no subinterpreters")
    assert (done.returncode, done.stdout.strip()) in [(0, "ImportError"), (0, "works")], done.stderr


# ------------------------------------------------------------------ the floating-point environment


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc's fesetround")
@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00], ids=["down", "up", "to zero"])
def test_integers_do_not_depend_on_the_rounding_mode(mode, isa):  # row 68
    import ctypes
    import ctypes.util
    import platform

    if platform.machine() != "x86_64":
        pytest.skip("the modes' numbers are x86's")
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (33, 65), np.uint8), rng.integers(-128, 128, (65, 17), np.int8)
    codes = rng.integers(0, 8, 1001, np.uint8)
    expected = lowbit.matmul_int8(a, b, isa=isa), lowbit.pack_codes(codes, 3, isa=isa)
    assert libm.fesetround(mode) == 0
    try:
        got = lowbit.matmul_int8(a, b, isa=isa), lowbit.pack_codes(codes, 3, isa=isa)
    finally:
        libm.fesetround(0)
    assert all((x == y).all() for x, y in zip(got, expected, strict=True))


def test_a_layer_with_denormals_flushed(isa):  # row 68: another library's -ffast-math
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 64), np.float32)
    x[3] *= np.float32(1e-38)
    w = lowbit.quantize_weight(rng.standard_normal((16, 64), np.float32))
    expected = lowbit.linear(x, w, isa=isa)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        got = lowbit.linear(x, w, isa=isa)
    finally:
        torch.set_flush_denormal(False)
    ordinary = [0, 1, 2, 4]
    assert (got[ordinary] == expected[ordinary]).all()
    assert np.isfinite(got).all()
    assert np.abs(got[3] - expected[3]).max() < 1e-37


# ------------------------------------------------------------------ import and defects


def test_import_is_lean():
    """`import lowbit` brings numpy and Python's own modules, and nothing else."""
    code = "import sys, numpy; before = set(sys.modules); import lowbit; print(*set(sys.modules) - before)"
    loaded = {name.partition(".")[0] for name in answer(code).split()}
    assert loaded - sys.stdlib_module_names - {"numpy"} == {"lowbit"}


def test_import_warns_of_nothing():
    assert run("import warnings; warnings.simplefilter('error'); import lowbit, lowbit.reference").stderr == ""


def test_import_is_quick(tmp_path):
    code = "import time, numpy; t = time.process_time(); import lowbit; print(time.process_time() - t)"
    # As installed, compiled to bytecode, which the environment may forbid: the first run writes it.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    best = min(float(answer(code, **bytecode)) for _ in range(6))
    print(f"import lowbit adds {best * 1e3:.1f} ms to numpy")
    assert best < 0.05


@pytest.mark.parametrize("work", [0, 1 << 40], ids=["small call", "long call"])
def test_a_panic_is_an_ordinary_exception(work):
    assert issubclass(lowbit.InternalError, RuntimeError)
    with pytest.raises(lowbit.InternalError, match="a kernel panicked: on purpose"):
        _core._panic("on purpose", work)
