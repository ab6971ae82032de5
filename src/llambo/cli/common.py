"""What every entry point does alike: options, errors to exit statuses, signals, and when to draw.

Imports only what a `--help` needs; the rest is loaded by the commands that use it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from llambo.core.errors import Cancelled, LlamboError
from llambo.core.harmless import harmless
from llambo.core.version import __version__

INTERRUPTED = 130

APP_OPTIONS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,  # a fault of ours is a plain traceback, as in any Python program
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""What all programs have in common, as typer wants it."""


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"llambo {__version__}\n")
        raise typer.Exit


def _set_no_color(wanted: bool) -> bool:
    if wanted:
        os.environ["NO_COLOR"] = "1"  # what rich and the nodes honour; one switch for all
    return wanted


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Log to standard error; twice for more.")]
NoColor = Annotated[
    bool, typer.Option("--no-color", callback=_set_no_color, is_eager=True, help="Draw no colours (also NO_COLOR).")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Configuration file (also LLAMBO_CONFIG).")
]
Fusion = Annotated[
    str,
    typer.Option(
        metavar="S",
        help="Have several nodes answer, and make one answer of theirs: majority-vote, weighted-average, "
        "confidence-weighted, quorum (also raft-consensus) or token-average; off for one node.",
    ),
]
FusionNodes = Annotated[
    int | None, typer.Option("--nodes", metavar="N", help="With --fusion: how many answer, 2 to 64.")
]
MinConsensus = Annotated[int | None, typer.Option(metavar="N", help="With --fusion quorum: how many must agree.")]
Extract = Annotated[
    str, typer.Option(metavar="RE", help="With --fusion: the part of each answer that is compared, by its first group.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def run(name: str, app: typer.Typer) -> None:
    """Runs `app` as the program `name` and exits: errors become one line on standard error and their exit status."""
    has_output = _fill_standard_streams()
    try:
        if not has_output:
            raise LlamboError("standard output is closed; send it to /dev/null if nobody wants it")
        app(prog_name=name)
    except LlamboError as error:
        fail(name, error)
    except KeyboardInterrupt:
        finish(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has had enough
        _drop_output()
        finish(1)
    except OSError as error:  # such as output to a full disk
        _drop_output()
        place = f"{error.filename}: " if error.filename else ""
        fail(name, LlamboError(f"the system refused: {place}{error.strerror or error}"))


def _fill_standard_streams() -> bool:
    """Opens /dev/null in the place of closed standard streams; says whether there was a standard output.

    Otherwise the next socket or pipe would become number 0, 1 or 2, and be taken for one of them.
    """
    has_output = sys.stdout is not None
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, os.fdopen(number, "w"))
    return has_output


def _drop_output() -> None:
    """What is still in the buffer goes nowhere: writing it would fail again while Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(name: str, error: LlamboError) -> None:
    """Says what went wrong and exits with the error's status."""
    if not isinstance(error, Cancelled):
        sys.stderr.write(f"{name}: {harmless(error.message)}\n")  # it may be another machine's text
    finish(error.exit_status)


def finish(status: int) -> None:
    """Exits, with nothing left in the buffers."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    raise SystemExit(status)


def run_async(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `main` to its end; SIGINT, SIGTERM and SIGHUP cancel it, so that its clean-up runs.

    Raises: `Cancelled` after SIGINT; exits with 128 + the signal's number after the others, as a shell reports them.
    """
    import asyncio

    caught: list[int] = []

    async def guarded() -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            caught.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                loop.add_signal_handler(number, stop, number)
        await main()

    try:
        asyncio.run(guarded())
    except asyncio.CancelledError:
        if not caught:
            raise
        if caught[0] == signal.SIGINT:
            raise Cancelled("interrupted") from None
        finish(128 + caught[0])


def draws(stream: Any) -> bool:
    """Whether `stream` is a terminal on which progress may be drawn."""
    return bool(stream.isatty()) and os.environ.get("TERM", "") != "dumb"


def print_json(value: Any) -> None:
    """Prints one JSON document on standard output."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows in columns; the first one is their heading. What others have called things cannot do harm there."""
    rows = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def size_text(count: int) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
