"""The commands. Each asks the functions beside this file, and prints."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

import lowbit

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Low-bit neural networks on CPUs. Start with: lowbit demo",
)
demo_app = typer.Typer(invoke_without_command=True)
app.add_typer(demo_app, name="demo")
snn_app = typer.Typer(no_args_is_help=True, help="Spiking networks. Example: lowbit snn run FILE.nir")
app.add_typer(snn_app, name="snn")
heterogeneous_app = typer.Typer(no_args_is_help=True, help="Each layer of a spiking network its own levels and bits.")
app.add_typer(heterogeneous_app, name="heterogeneous")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
IsaOption = Annotated[str | None, typer.Option("--isa", help="Instruction set, one that `lowbit doctor` lists.")]

FAILED, MISUSE, INTERRUPTED, NO_READER = 1, 2, 130, 141


def fail(text: object, code: int = FAILED) -> NoReturn:
    """One line on stderr, and the end."""
    print(f"lowbit: {text}", file=sys.stderr)
    raise typer.Exit(code)


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every command shares: the environment checked, no traceback for what a user can mend."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            with open(os.devnull, "w") as nowhere:  # so that the interpreter's last flush finds a file
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise typer.Exit(NO_READER) from None
        except (OSError, MemoryError) as error:
            fail(error)

    return checked


def _check_isa(isa: str | None = None) -> None:
    """A wrong LOWBIT_ISA or --isa is misuse, told before any work."""
    try:
        lowbit.isa()
    except ValueError as error:
        fail(f"LOWBIT_ISA={os.environ.get('LOWBIT_ISA')}: {error}", MISUSE)
    if isa is not None and isa not in lowbit.available_isas():
        fail(f"--isa: expected one of {', '.join(lowbit.available_isas())}, got '{isa}'", MISUSE)


def _version(wanted: bool) -> None:
    if wanted:
        print(lowbit.__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# ------------------------------------------------------------------ doctor, bench


@app.command()
@command
def doctor(
    torch: Annotated[bool, typer.Option("--torch", help="Import torch, to see whose threads are used.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the instruction sets, threads, kernels and versions in use.

    Exit code 1 if something is to be mended.

    Example: lowbit doctor --json
    """
    from lowbit.cli.doctor import facts, lines

    told = facts(torch=torch)
    if as_json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        width = _width()
        for name, text in lines(told):
            print(textwrap.fill(text, width, initial_indent=f"{name:<18}", subsequent_indent=" " * 18))
        for complaint in told["complaints"]:
            print(textwrap.fill(complaint, width, initial_indent=f"{'to mend':<18}", subsequent_indent=" " * 18))
    if told["complaints"]:
        raise typer.Exit(FAILED)


@app.command()
@command
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A few shapes, a few seconds.")] = False,
    isa: IsaOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the kernels on this machine, in turn with NumPy and torch.

    Example: lowbit bench --quick --threads 1
    """
    from lowbit.cli.bench import run

    _check_isa(isa)
    count = threads or lowbit.get_num_threads()
    rows = run(quick=quick, isa=isa, threads=count)
    if as_json:
        told = {"isa": isa or lowbit.isa(), "threads": count, "rows": [asdict(row) for row in rows]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    print(f"lowbit {lowbit.__version__}: {isa or lowbit.isa()}, {_threads(count)}; medians, in turn")
    for row in rows:
        speeds = "   ".join(f"{name} {speed:.4g}" for name, speed in row.speeds.items())
        print(f"{row.kernel:<14} {row.size:<34} {row.unit}  {speeds}", flush=True)


# ------------------------------------------------------------------ levels


@app.command()
@command
def levels(
    model: Annotated[Path, typer.Argument(help="A safetensors file.", show_default=False)],
    layer: Annotated[str, typer.Option("--layer", help="A tensor, or the layer whose weight it is.")],
    nbits: Annotated[int, typer.Option(min=2, max=8, help="Bits of a code: 2**nbits levels.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Show a layer's histogram, the levels of each method under it, and their errors.

    Example: lowbit levels model.safetensors --layer layer1.0.conv1 --nbits 3
    """
    from lowbit.cli.levels import as_dict, lines, read, rows

    if not model.is_file():
        fail(f"{model}: there is no such file", MISUSE)
    try:
        found = read(model, layer)
        told = rows(found, nbits)
        if as_json:
            print(json.dumps(as_dict(found, nbits, list(told)), indent=2, ensure_ascii=False))
        else:
            first = [next(told)]  # what cannot be fitted is told before anything is printed
            for line in lines(found, nbits, itertools.chain(first, told)):
                print(line, flush=True)
    except (ValueError, TypeError) as error:
        fail(error, MISUSE)


# ------------------------------------------------------------------ profile


@app.command()
@command
def profile(
    model: Annotated[
        Path, typer.Argument(help="An integer network: .tflite, or what lowbit.integer saved.", show_default=False)
    ],
    rounds: Annotated[int, typer.Option(min=1, help="The least time of so many.")] = 100,
    isa: Annotated[str | None, typer.Option(help="The instruction set; the best by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show an integer network's steps, and the time of each for one sample of random codes on one thread.

    Example: lowbit profile resnet8_int8.tflite
    """
    from lowbit.cli.profile import as_dict, lines, measured, read

    if not model.is_file():
        fail(f"{model}: there is no such file", MISUSE)
    _check_isa(isa)
    try:
        network = read(model).plan(isa=isa)
    except (ValueError, ImportError) as error:
        fail(error, MISUSE)
    steps = measured(network, rounds)
    if as_json:
        print(json.dumps(as_dict(network, steps), indent=2, ensure_ascii=False))
    else:
        print("\n".join(lines(network, steps)))


# ------------------------------------------------------------------ snn


@snn_app.command("run")
@command
def snn_run(
    model: Annotated[Path, typer.Argument(help="A network: a NIR graph's file.", show_default=False)],
    events: Annotated[
        Path | None, typer.Option("--events", help=".npz of arrays t and y, x, p (or i0, i1, …), and perhaps stream.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help=".npy of (T, N, H, W, C) or (T, N, K); (N, …) with --steps.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps; as many as the inputs have.")] = None,
    dt: Annotated[float, typer.Option("--dt", help="Length of a step in the file's unit of time.")] = 1.0,
    soft: Annotated[bool, typer.Option("--soft", help="A spike subtracts the threshold.")] = False,
    at_threshold: Annotated[bool, typer.Option("--at-threshold", help="Fire at the threshold too.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a raster of the first stream.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a spiking network; show spikes, synaptic operations and energy of each layer.

    Without inputs it sees random spikes.

    Example: lowbit snn run network.nir --events events.npz --dt 1e-4
    """
    from lowbit.cli import snn

    for path in (model, events, inputs):
        if path is not None and not path.is_file():
            fail(f"{path}: there is no such file", MISUSE)
    if events is not None and inputs is not None:
        fail("--events, --inputs: expected at most one of them, got both", MISUSE)
    try:
        network = snn.read(model, dt, "soft" if soft else "hard", not at_threshold)
        x, what = snn.inputs(network, events, inputs, steps)
        with _status() as say:
            done = snn.run(network, x, steps, plot is not None, lambda now, of: say(f"{now:,} of {of:,} steps"))
        told = snn.report(network, done)
        if plot is not None:
            snn.plot(done, plot, f"{model.name}: {what}")
    except (ValueError, TypeError, ImportError) as error:
        fail(error, MISUSE)
    if as_json:
        print(json.dumps(snn.as_dict(told, done, what), indent=2, ensure_ascii=False))
    else:
        print("\n".join(snn.lines(network, told, done, what)))


# ------------------------------------------------------------------ nonuniform


@app.command()
@command
def nonuniform(
    model: Annotated[
        Path | None, typer.Argument(help="A safetensors file whose layers are told; ResNet-20's by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of ResNet-20 and CIFAR-10; LOWBIT_DATA by default.")
    ] = None,
    nbits: Annotated[
        list[int] | None, typer.Option("--nbits", min=2, max=8, help="Bits of codes, to be given again for more.")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="So many images, at most.")] = 5000,
    rivals: Annotated[bool, typer.Option(help="Rows of rivals, written anew here.")] = True,
    as_json: AsJson = False,
) -> None:
    """Tell what non-uniform quantization gains: on densities, on layers, in accuracy.

    Densities need no data; layers need a model; accuracy needs ResNet-20 and images, and takes
    a quarter of an hour for all widths. Exit code 1 if an identity or a bound does not hold.

    Example: lowbit nonuniform --data FOLDER --nbits 4 --nbits 3
    """
    from lowbit.cli import nonuniform as tables

    if model is not None and not model.is_file():
        fail(f"{model}: there is no such file", MISUSE)
    if data is not None and not data.is_dir():
        fail(f"--data: there is no folder {data}", MISUSE)
    lacks = None
    try:
        network = tables.resnet(data)
    except tables.Missing as reason:
        network, lacks = None, str(reason)
        if data is not None:
            fail(f"--data: {reason}", MISUSE)
    try:
        weights = tables.read_weights(model) if model is not None else None
        if weights is None and network is not None:
            weights = {n: p.numpy().reshape(-1) for n, p in network[0]().named_parameters() if p.ndim > 1}
    except ValueError as error:
        fail(error, MISUSE)

    say = (lambda _="": None) if as_json else functools.partial(print, flush=True)
    told, checks = tables.densities()
    for line in tables.density_lines(told):
        say(line)
    told |= {"layers": [], "accuracy": [], "lacks": lacks}
    for width in nbits or (4, 3):
        head = max(map(len, weights or [""])) + 1
        for i, (row, found) in enumerate(tables.layers(weights or {}, width)):
            for line in ["", *tables.layer_head(head, width)] if i == 0 else []:
                say(line)
            say(tables.layer_line(row, head))
            told["layers"].append(row)
            checks += found
    say()
    if network is None:
        say(f"accuracy left out: {lacks}")
    else:
        make, x, y = network
        x, y = x[:images], y[:images]
        for line in tables.accuracy_head(len(x)):
            say(line)
        for row in tables.accuracy(make, x, y, nbits or (8, 6, 5, 4, 3, 2), rivals=rivals):
            say(tables.accuracy_line(row))
            told["accuracy"].append(asdict(row))
    say()
    if as_json:
        print(json.dumps({**told, "checks": tables.as_dicts(checks)}, indent=2, ensure_ascii=False))
    for line in tables.check_lines(checks):
        say(line)
    if any(not check.holds and check.kind != "trend" for check in checks):
        raise typer.Exit(FAILED)


# ------------------------------------------------------------------ heterogeneous


@heterogeneous_app.command("search")
@command
def heterogeneous_search(
    task: Annotated[str, typer.Argument(help="mnist or events.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of MNIST and the event streams; LOWBIT_DATA by default.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the trained network and the searches' journals; made if absent.")
    ] = Path("heterogeneous"),
    weights: Annotated[
        str | None, typer.Option("--weights", help="Of the cost against the loss, one search each: 0.01,0.03,0.1")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Of the training on the levels.")] = 5,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of that training.")] = 2,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a picture of accuracy against bits, PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search levels and bits for a spiking transformer, train on them, and tell what that keeps.

    Trains the network first where the folder has none (minutes), then searches once for each weight of the cost,
    then trains every assignment from the one network with several seeds. What was killed goes on from its journal.

    Example: lowbit heterogeneous search mnist --data FOLDER
    """
    try:
        from lowbit.cli import heterogeneous as tables
    except ImportError as error:
        fail(f"heterogeneous needs {error.name}: pip install 'lowbit[torch]'", MISUSE)
    from lowbit.cli.nonuniform import as_dicts, check_lines

    if task not in tables.TASKS:
        fail(f"TASK: expected one of {', '.join(tables.TASKS)}, got {task}", MISUSE)
    if data is not None and not data.is_dir():
        fail(f"--data: there is no folder {data}", MISUSE)
    try:
        steps = tables.WEIGHTS if weights is None else tuple(sorted(float(w) for w in weights.split(",")))
    except ValueError:
        fail(f"--weights: expected numbers with commas, got {weights}", MISUSE)
    try:
        subject = tables.task(task, data)
    except tables.Missing as reason:
        fail(f"{task}: {reason}", MISUSE)
    say = (lambda _="": None) if as_json else functools.partial(print, flush=True)
    with _status() as busy:
        study = tables.study(
            subject, out, steps, seeds, epochs, say, lambda done, total, what: busy(f"{done}/{total} {what}")
        )
    if plot is not None:
        try:
            tables.draw(study, plot)
        except ImportError as error:
            fail(f"--plot needs {error.name}: pip install 'lowbit[plots]'", MISUSE)
        except OSError as error:
            fail(f"--plot: {error}", MISUSE)
    checks = study.pop("checks")
    say()
    for line in check_lines(checks):
        say(line)
    if as_json:
        print(json.dumps({**study, "checks": as_dicts(checks)}, indent=2, ensure_ascii=False))
    if any(not check.holds and check.kind != "trend" for check in checks):
        raise typer.Exit(FAILED)


# ------------------------------------------------------------------ series


@app.command()
@command
def series(
    model: Annotated[str, typer.Argument(help="resnet20, resnet32, resnet44, minilm or stories260k.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the models and CIFAR-10; LOWBIT_DATA by default.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--images", min=2, help="So many images, passages or sequences, at most.")
    ] = None,
    rivals: Annotated[bool, typer.Option(help="Rows of what series are compared with.")] = True,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a picture of error against terms, PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what series of terms of few bits cost and what they keep: digits, layers, a model, anytime precision.

    Needs no calibration data; a row of onnxruntime's, where it is installed, has its own. Exit code 1 if a bound
    does not hold.

    Example: lowbit series resnet20 --data FOLDER
    """
    from lowbit.cli import series as tables
    from lowbit.cli.nonuniform import as_dicts, check_lines

    if model not in tables.MODELS:
        fail(f"MODEL: expected one of {', '.join(tables.MODELS)}, got {model}", MISUSE)
    if data is not None and not data.is_dir():
        fail(f"--data: there is no folder {data}", MISUSE)
    try:
        network = tables.subject(model, data, count)
    except tables.Missing as reason:
        fail(f"{model}: {reason}", MISUSE)
    say = (lambda _="": None) if as_json else functools.partial(print, flush=True)
    weights = {n: p.detach().numpy() for n, p in network.make().named_parameters() if p.ndim in (2, 4)}
    told: dict[str, Any] = {"model": network.name, "inputs": network.what, "isa": lowbit.isa()}
    told["digits"], checks = tables.digits(weights)
    told["outputs"], found = tables.outputs(network)
    checks += found
    for line in [*tables.digit_lines(told["digits"], len(weights)), "", *tables.output_lines(told["outputs"]), ""]:
        say(line)
    told["accuracy"] = []
    with _status() as busy:
        for row in tables.accuracy(network, rivals=rivals):
            for line in [] if told["accuracy"] else tables.accuracy_head(network, row.measured):
                say(line)
            say(tables.accuracy_line(row))
            told["accuracy"].append(asdict(row))
            busy(f"after {row.name}")
    if model in tables.RESNETS:
        told["anytime"], found = tables.anytime(network)
        checks += found
        for line in ["", *tables.anytime_lines(told["anytime"])]:
            say(line)
    if plot is not None:
        measured = "output_error" if model == "minilm" else "logit_error"
        try:
            tables.draw(told["accuracy"], measured, plot, f"{network.name}, {lowbit.isa()}")
        except ImportError as error:
            fail(f"--plot needs {error.name}: pip install 'lowbit[plots]'", MISUSE)
        except OSError as error:
            fail(f"--plot: {error}", MISUSE)
    say()
    for line in check_lines(checks):
        say(line)
    if as_json:
        print(json.dumps({**told, "checks": as_dicts(checks)}, indent=2, ensure_ascii=False))
    if any(not check.holds and check.kind != "trend" for check in checks):
        raise typer.Exit(FAILED)


# ------------------------------------------------------------------ demo


@demo_app.callback()
@command
def demo(
    context: typer.Context,
    file: Annotated[Path | None, typer.Option("--texts", help="UTF-8 text, one passage a line.")] = None,
    question: Annotated[str | None, typer.Option("--ask", help="Only answer this, with int8.")] = None,
    plot: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("lowbit-demo.png"),
    as_json: AsJson = False,
) -> None:
    """Compare a sentence encoder in fp32, bf16, int8 and fewer bits on real text.

    Size, speed, and how many of each passage's ten nearest neighbours stay;
    then a picture. With --ask, nearest passages to a question instead.

    Example: lowbit demo --ask "how do I close a file"
    """
    if context.invoked_subcommand is not None:
        return
    from lowbit.cli import demo as demos
    from lowbit.cli.encoder import Missing

    _check_isa()
    if question is not None and not question.strip():
        fail("--ask: expected a question, got nothing", MISUSE)
    if question is None and not plot.absolute().parent.is_dir():
        fail(f"--plot: there is no folder {plot.absolute().parent}", MISUSE)
    try:
        passages, source = demos.read(file, demos.ASK_PASSAGES if question else demos.PASSAGES)
    except (ValueError, OSError) as error:
        fail(f"--texts: {error}", MISUSE)
    if question is None and len(passages) < demos.LEAST_PASSAGES:
        fail(f"--texts: expected at least {demos.LEAST_PASSAGES} passages, got {len(passages)}", MISUSE)
    try:
        if question is not None:
            _ask(demos, passages, source, question, as_json)
        else:
            _compare(demos, passages, source, file is None, plot, as_json)
    except Missing as reason:
        fail(reason, MISUSE)


def _ask(demos: Any, passages: Sequence[str], source: str, question: str, as_json: bool) -> None:
    with _status() as say:
        answers = demos.ask(passages, question, say=say)
    if as_json:
        told = {"question": question, "source": source, "answers": [asdict(answer) for answer in answers]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for answer in answers:
        head = f"{answer.cosine:.2f}  "
        print(textwrap.fill(answer.passage, _width(), initial_indent=head, subsequent_indent=" " * len(head)))


def _compare(demos: Any, passages: Sequence[str], source: str, ours: bool, plot: Path, as_json: bool) -> None:
    from lowbit.cli.doctor import cpu
    from lowbit.cli.texts import QUESTIONS

    head = f"{len(passages)} passages of {source}; {cpu()}, {lowbit.isa()}"
    questions = QUESTIONS if ours else None
    if as_json:
        with _status() as say:
            outcome = demos.run(passages, questions, say=say)
    else:
        print(head, flush=True)
        with _board() as (say, show):
            outcome = demos.run(passages, questions, say=say, show=show)
    rows = [asdict(row) for row in outcome.rows if row.left_out is None]
    drawn, why = _draw(rows, plot, f"all-MiniLM-L6-v2 on {cpu()}, {lowbit.isa()}")
    if as_json:
        told = {"cpu": cpu(), "source": source, **demos.as_dict(outcome), "plot": str(plot) if drawn else None}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _tell_changes(outcome)
        if drawn:
            print(f"\npicture: {plot}")
    if why:
        print(f"lowbit: {why}", file=sys.stderr)


def _tell_changes(outcome: Any) -> None:
    what = "passages, each asking for the nearest other one" if outcome.asked == outcome.passages else "questions"
    if not outcome.changes:
        print(f"\nOf {outcome.asked} {what}, none has another nearest passage in int8.")
        return
    count = len(outcome.changes)
    have = "has" if count == 1 else "have"
    print(f"\nOf {outcome.asked} {what}, {count} {have} another nearest passage in int8:")
    for change in outcome.changes[:3]:
        print(_short("  ", change.question))
        print(_short("    fp32  ", change.fp32))
        print(_short("    int8  ", change.int8))


def _draw(rows: list[dict[str, Any]], path: Path, title: str) -> tuple[bool, str | None]:
    """Whether the picture was drawn, and why not where a user can mend it."""
    from lowbit.cli.plot import draw

    try:
        draw(rows, path, title=title)
    except ImportError:
        return False, "no picture without matplotlib: pip install 'lowbit[plots]'"
    except OSError as error:
        return False, f"no picture: {error}"
    return True, None


@demo_app.command("kernels")
@command
def demo_kernels(as_json: AsJson = False) -> None:
    """Run each kernel beside its NumPy reference; needs NumPy alone.

    Exit code 1 if any result differs.

    Example: lowbit demo kernels
    """
    from lowbit.cli.kernels import main

    _check_isa()
    raise typer.Exit(main(as_json=as_json))


# ------------------------------------------------------------------ printing


def _width() -> int:
    return max(40, min(shutil.get_terminal_size((100, 24)).columns, 110))


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _short(head: str, text: str) -> str:
    return head + textwrap.shorten(text, max(20, _width() - len(head)), placeholder=" …")


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """A spinner on stderr where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield status.update


@contextmanager
def _board() -> Iterator[tuple[Callable[[str], None], Callable[[Sequence[Any]], None]]]:
    """The table: redrawn in place on a terminal, else a line for each row as it comes and all at the end."""
    console = Console(highlight=False)
    if not console.is_terminal:
        with _status() as told:
            yield told, _Lines().show
        return
    spinner = Spinner("dots", "")

    def show(rows: Sequence[Any]) -> None:
        settled = all(row.settled for row in rows)
        live.update(Group(_table(rows)) if settled else Group(_table(rows), spinner))

    def say(text: str) -> None:
        spinner.update(text=text)

    with Live(Group(spinner), console=console, refresh_per_second=8) as live:
        yield say, show


class _Lines:
    """Prints each row once, and all of them when their speeds are settled."""

    def __init__(self) -> None:
        self.printed = 0

    def show(self, rows: Sequence[Any]) -> None:
        if self.printed == 0:
            print(_header(), flush=True)
        if all(row.settled for row in rows):
            print(f"speeds measured in turn:\n{_header()}")
            self.printed = 0
        for row in rows[self.printed :]:
            print(_line(row), flush=True)
        self.printed = len(rows)


def _header() -> str:
    every = _threads(lowbit.get_num_threads())
    return f"{'':<20}{'MB':>7}{'1 thread/s':>13}{every + '/s':>13}{'neighbours kept':>17}{'cosine':>9}"


def _line(row: Any) -> str:
    if row.left_out is not None:
        return f"{row.name:<20}left out: {row.left_out}"
    sign = "" if row.settled else "~"
    one, every = f"{sign}{row.per_second_one_thread:.0f}", f"{sign}{row.per_second_all_threads:.0f}"
    kept = "…" if row.neighbours_kept is None else f"{100 * row.neighbours_kept:.1f} %"
    cosine = "…" if row.cosine is None else f"{row.cosine:.4f}"
    return f"{row.name:<20}{row.megabytes:>7.1f}{one:>13}{every:>13}{kept:>17}{cosine:>9}"


def _table(rows: Sequence[Any]) -> Text:
    styles = [("bold" if row.name.startswith("lowbit") else "dim" if row.left_out else "") for row in rows]
    lines = [(_header() + "\n", "dim")]
    lines += [(_line(row) + "\n", style) for row, style in zip(rows, styles, strict=True)]
    return Text.assemble(*lines, no_wrap=True, overflow="ellipsis")
