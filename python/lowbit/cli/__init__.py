"""``lowbit …``: commands over the public functions.

typer and rich are imported here alone, and only once a command runs.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line: exit code 0 for success, 1 for failure, 2 for misuse."""
    if hasattr(signal, "SIGPIPE"):  # a reader such as `head` that has seen enough ends us quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that has no × still gets its table
    try:
        from lowbit.cli.app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        print(f"lowbit: the command line needs {package}: pip install 'lowbit[cli]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="lowbit")
