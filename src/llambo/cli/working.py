"""A long piece of work at a terminal: shown as it goes on, and ended in order by whatever asks it to end.

Knows nothing of what the work is.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from llambo.cli.common import draws
from llambo.core.errors import Cancelled


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Whatever asks us to end is an interruption, so that nothing half-made stays."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in before:  # a second one would break off the cleaning up
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing half-made is left\n")
        raise Cancelled("interrupted") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Shows how it goes on: a bar on a terminal, else a line for each new thing."""
    if not draws(sys.stderr):
        said: set[str] = set()

        def announce(what: str, _done: int, _total: int) -> None:
            if what not in said:
                said.add(what)
                sys.stderr.write(f"{what}\n")
                sys.stderr.flush()

        yield announce
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)
