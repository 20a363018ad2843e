"""Runs all benchmarks and keeps what they print: one file per CPU in `record/`.

    python benches/record.py            everything: an hour
    python benches/record.py --quick    minutes, without the peers that want an export or a compiler

A file is written anew each time: it holds one run, with its date and versions.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import limits
from measure import clock_for, cpu_name, interleave, pin, table

HERE = Path(__file__).parent
PACKAGES = (
    *("numpy", "torch", "torchao", "onnxruntime", "openvino", "nncf", "sentence-transformers"),
    *("bitsandbytes", "hqq", "auto-round-lib", "ai-edge-litert"),
)
KIB = 32, 512, 4096, 16384, 65536


def slug(name: str) -> str:
    """A CPU's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> str:
    """The libraries measured, those that are here."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def limits_text(rounds: int) -> str:
    """The loops' speeds on this CPU; the best round is what it can do when left alone."""
    try:
        found = limits.peaks()
    except limits.Skip as e:
        return f"Not measured: {e}."
    # Turns far shorter than a scheduler's slice, so that some are whole.
    timing = interleave({p.instruction: p.work(1e8) for p in found}, 20 * rounds, at_least=0, clock=clock_for(1))
    speeds = []
    for p in found:
        s = timing.seconds(p.instruction)
        best = min(timing.rounds[p.instruction])
        speeds.append([p.instruction, f"{0.1 / best:.0f}", f"{0.1 / s.median:.0f}"])
    bandwidth = []
    for kib in KIB:
        size = kib << 10
        times = max(1, (1 << 23) // size)
        loops = {"read": limits.read(size, times), "copy": limits.copy(size, times)}
        timing = interleave(loops, rounds, clock=clock_for(1))
        gbs = [f"{size * times / min(timing.rounds[name]) / 1e9:.1f}" for name in loops]
        bandwidth.append([kib, *gbs])
    return "\n\n".join(
        [
            table(["registers alone, one thread", "best GOP/s", "median"], speeds),
            table(["KiB", "best read GB/s", "best copy GB/s"], bandwidth),
        ]
    )


def run(title: str, *command: str) -> str:
    """Runs one benchmark on the cores it chooses, shows its output as it comes, and answers it as a section."""
    print(f"\n## {title}\n", flush=True)
    # Not -P and not -I: the scripts import each other from their own folder.
    with subprocess.Popen(
        [sys.executable, str(HERE / command[0]), *command[1:]], stdout=subprocess.PIPE, text=True
    ) as process:
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        lines.append(f"\nended with status {process.returncode}\n")
    return f"## {title}\n\n`python benches/{' '.join(command)}`\n\n{''.join(lines).strip()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--limits", action="store_true", help="the limits alone, on one core; writes nothing")
    args = parser.parse_args()
    if args.limits:
        pin(1)
        print(limits_text(5 if args.quick else 15))
        return
    quick = ["--quick"] if args.quick else []
    cpu = cpu_name()
    head = textwrap.dedent(f"""\
        # {cpu}

        {datetime.date.today().isoformat()}; {versions()}; {platform.system()} {platform.machine()}.
        """)
    print(head, flush=True)
    sections = [head, run("Limits", "record.py", "--limits", *quick)]
    models = ["acceptance", "minilm"]
    if not args.quick:
        models += ["resnet20", "resnet50", "llm_1b", "llm_7b"]
    rounds = ["--rounds", "5" if args.quick else "15"]
    sections.append(run("Packing", "bench_packing.py", *rounds))
    sections.append(run("k-means in one dimension", "bench_codebook.py", *rounds))
    sections.append(run("k-means in many dimensions", "bench_kmeans.py", *rounds))
    sections.append(run("Levels", "bench_levels.py", *rounds))
    sections.append(run("Products and layers", "bench_gemm.py", "--linear", "--growth", *rounds, "--shapes", *models))
    sections.append(run("Products, held to AVX2", "bench_gemm.py", "--avx2", *rounds))
    sections.append(run("Layers below eight bits", "bench_gemm.py", "--shapes", "--groups", *rounds))
    sections.append(run("Layers that look up tables", "bench_gemm.py", "--shapes", "--codebook", *rounds))
    sections.append(run("Convolutions", "bench_conv.py", *rounds))
    sections.append(run("Spiking neurons", "bench_spiking.py", *rounds))
    sections.append(run("Products of spikes", "bench_spike_product.py", *rounds))
    sections.append(run("Products of spikes, held to AVX2", "bench_spike_product.py", "--avx2", *rounds))
    sections.append(run("Spiking networks", "bench_snn.py", *rounds))
    sections.append(run("Integer networks", "bench_integer.py", *rounds, *quick))
    sections.append(run("Integer networks, held to AVX2", "bench_integer.py", "--avx2", *rounds, *quick))
    for threads in args.threads:
        counted = ["--threads", str(threads)]
        sections.append(run(f"MiniLM, {threads} thread(s)", "bench_minilm.py", *quick, *counted))
    sections.append(run("MiniLM, held to AVX2", "bench_minilm.py", *quick, "--avx2"))
    sections.append(run("A small language model", "bench_stories.py"))
    path = HERE / "record" / f"{slug(cpu)}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(sections))
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
