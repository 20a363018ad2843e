"""Whether a built module, alone or in a wheel, runs on every x86-64 CPU.

Needs nothing but Python and objdump: `make wheel` runs it as a script.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

MOST_BYTES = 8_000_000

#: Functions that run only where the CPU has what they use.
DISPATCHED = re.compile(
    # ours: <family>/{avx2,avxvnni,avx512,amx}.rs and the on_isa! of lanes.rs take an Isa, which proves the feature,
    # or a token of theirs, whose methods are named <lowbit_kernels::gemm::avx512::Wide as ...>
    r"(14lowbit_kernels\w*?\d|lowbit_kernels\.\.[\w.]*?\.)(?P<isa>avx2|avxvnni|avx512|amx)"
    # the standard library's searches for a byte choose by is_x86_feature_detected!
    r"|6memchr4arch6x86_64\d+avx2"
    # so do the conversions of float16
    r"|4half8binary164arch3x86\w*f16c"
)

#: Coded in VEX or EVEX, which a CPU without AVX refuses: the vector instructions begin with v, the
#: registers tell the rest, and BMI has names of its own. popcnt came after x86-64's baseline too.
_BEYOND_BASELINE = re.compile(
    r"^v(?!err|erw)\w+|%[yz]mm\d|%k[0-7]\b|%tmm\d|^(tile|tdp|ldtilecfg|sttilecfg)|"
    r"^(andn|bextr|bls(i|r|msk)|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|popcnt)[lqw]?\b"
)
_SYMBOL = re.compile(r"^[0-9a-f]+ <(.*)>:$")


def vector_functions(module: Path) -> Counter[str]:
    """The functions with instructions that not every x86-64 CPU has, and how many."""
    found: Counter[str] = Counter()
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(module)]
    symbol = "?"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dump:
        assert dump.stdout is not None
        for line in dump.stdout:
            if start := _SYMBOL.match(line):
                symbol = start[1]
            elif "\t" in line and _BEYOND_BASELINE.search(line.partition("\t")[2].strip()):
                found[symbol] += 1
    if dump.returncode:
        raise RuntimeError(f"objdump could not read {module}")
    return found


def leaks(functions: Counter[str]) -> list[str]:
    """Those that would run on any CPU."""
    return sorted(name for name in functions if not DISPATCHED.search(name))


def modules(path: Path, into: Path) -> list[Path]:
    """The modules of a wheel, unpacked; or the module itself."""
    if path.suffix != ".whl":
        return [path]
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith((".so", ".pyd"))]
        return [Path(wheel.extract(name, into)) for name in names]


def main(path: Path) -> str | None:
    """What is wrong with it."""
    size = path.stat().st_size
    print(f"{path.name}: {size / 1e6:.2f} MB")
    if size >= MOST_BYTES:
        return f"{path}: expected less than {MOST_BYTES} bytes"
    if shutil.which("objdump") is None:
        print("instructions not checked: there is no objdump")
        return None
    with tempfile.TemporaryDirectory() as into:
        for module in modules(path, Path(into)):
            if module.suffix != ".so" or platform.machine() not in ("x86_64", "AMD64"):
                print(f"{module.name}: instructions not checked on this platform")
                continue
            functions = vector_functions(module)
            if wrong := leaks(functions):
                return "\n".join(["these use AVX and are not dispatched:", *wrong])
            print(f"{module.name}: {len(functions)} functions use AVX, all of them dispatched")
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
