"""limbot on a terminal, and somebody who chats there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.cli.programs import command
from tests.terminals import Person, on_terminal


class Chatter(Person):
    """Somebody who chats."""

    def prompt(self, typed: str = "") -> None:
        """Waits until nothing is under way and the cursor is behind `typed` on the input line."""
        line = f"> {typed}".rstrip()
        self.until(
            lambda: self.cursor_line == line and not any("Ctrl-C stops" in line for line in self.screen),
            f"no input line {line!r}",
        )

    def ask(self, question: str) -> str:
        """Asks, waits for the answer, and returns all that was shown since."""
        before = len(self.text.rstrip("\n> ").split("\n"))
        seen = self.text.count(" · first after ")
        self.enter(question)
        self.until(lambda: self.text.count(" · first after ") > seen, "no answer")
        self.prompt()
        return "\n".join(self.text.split("\n")[before:])


@contextlib.contextmanager
def limbot(*arguments: str | Path, columns: int = 80, rows: int = 30, **environment: str) -> Iterator[Chatter]:
    """limbot on a terminal; killed, with its nodes, where it is still there."""
    with on_terminal(command("limbot", *arguments), Chatter, columns=columns, rows=rows, **environment) as person:
        yield person
