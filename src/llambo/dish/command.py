"""What a command of dish is, what it is run with, and the shell's state that all of them share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llambo.core.errors import BadRequest
from llambo.dish.grammar import quote
from llambo.dish.mounts import Mounts, absolute
from llambo.dish.pipes import Sink, Source

if TYPE_CHECKING:
    from llambo.dish.asking import Conversations
    from llambo.dish.jobs import Jobs

Completes = Literal["path", "node", "model", "command", "job", "target", "mount", "type", "option", "strategy", ""]
"""What an argument names, for completion; a target is a node or a job."""

FIRST_CLUSTER = "/n/llambo"
OWN = "/n/dish"
SETTINGS = ("max_tokens", "temperature", "top_p", "seed", "model", "system", "raw")
"""How a question is answered: options of `infer` and `ask`, and the variables that stand for them."""

_READ_ONLY = ("status", "cluster", "session", "cwd")


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `aliases` are its other names. `completes` tells what its arguments name, the last one all the rest.

    With `takes_patterns`, words such as `nodes/*/status` become the paths that they match.
    """

    name: str
    usage: str
    help: str
    run: Callable[[Context], Awaitable[None]]
    completes: tuple[Completes, ...] = ()
    takes_patterns: bool = False
    aliases: tuple[str, ...] = ()

    def wrong(self, what: str) -> BadRequest:
        """The error for arguments that are wrong."""
        return BadRequest(f"{self.name} {what}; write: {self.usage}")


class Table:
    """The commands by their names, in the order of `help`."""

    def __init__(self, commands: tuple[Command, ...]) -> None:
        self.commands = commands
        self._by_name = {name: command for command in commands for name in (command.name, *command.aliases)}

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Command:
        return self._by_name[name]

    @property
    def names(self) -> list[str]:
        """Every name that begins a line."""
        return list(self._by_name)


class Dish:
    """The state of one shell: its namespace, directory, variables, history, jobs and conversations."""

    def __init__(self, table: Table, mounts: Mounts, jobs: Jobs, conversations: Conversations) -> None:
        self.table = table
        self.mounts = mounts
        self.jobs = jobs
        self.conversations = conversations
        self.directory = FIRST_CLUSTER
        self.cluster = FIRST_CLUSTER
        self.history: list[str] = []
        self.status = 0
        self.exit_status: int | None = None
        self.stdin: Source | None = None  # what the host gives the commands of this shell to read
        self._variables: dict[str, str] = {}

    @property
    def variables(self) -> Mapping[str, str]:
        """What `$NAME` stands for."""
        return self._variables | {
            "status": str(self.status),
            "cluster": self.cluster,
            "session": self.conversations.number_of(self.cluster),
            "cwd": self.directory,
        }

    def set_variable(self, name: str, value: str) -> None:
        """Gives a variable its value; an empty one takes it away. Raises: `BadRequest`."""
        if name in _READ_ONLY:
            raise BadRequest(f"{name} is set by dish itself; other names are free")
        if not name.isidentifier() or not name.isascii():
            raise BadRequest(f"{name!r} is no name of a variable: letters, digits and _, such as max_tokens")
        self._variables.pop(name, None)
        if value:
            self._variables[name] = value

    def variables_text(self) -> str:
        """The variables, one `NAME=VALUE` a line, as they can be typed."""
        return "".join(f"{name}={quote(value)}\n" for name, value in self.variables.items())

    def path(self, text: str) -> str:
        """A path that a person wrote, as an absolute one."""
        return absolute(text, self.directory)

    def settings(self) -> dict[str, str]:
        """The variables that say how questions are answered."""
        return {name: value for name, value in self._variables.items() if name in SETTINGS}


@dataclass(frozen=True, slots=True)
class Context:
    """What a command is run with. `piped` is what it reads when something is piped or redirected to it."""

    dish: Dish
    command: Command
    words: tuple[str, ...]
    piped: Source | None
    out: Sink

    async def print(self, text: str) -> None:
        """Writes text."""
        await self.out.write(text.encode("utf-8", "surrogateescape"))

    def input(self) -> Source:
        """What to read where no file is named. Raises: `BadRequest` where there is nothing."""
        source = self.piped or self.dish.stdin
        if source is None:
            raise self.command.wrong("has nothing to read")
        return source

    def count(self, least: int, most: int) -> None:
        """Checks the number of arguments. Raises: `BadRequest`."""
        if len(self.words) < least:
            raise self.command.wrong("needs more arguments" if self.words else "needs an argument")
        if len(self.words) > most:
            raise self.command.wrong("has too many arguments" if most else "takes no arguments")
