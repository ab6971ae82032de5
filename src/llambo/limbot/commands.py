"""The commands of the chat: one table, of which help, completion and the page of the docs are made. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llambo.core.errors import BadRequest, UnknownCommand

Completes = Literal["", "command", "model", "session", "parameter", "strategy", "path", "words"]
MIN_HELP_COLUMNS = 30
"""With fewer beside the commands, help stands below them."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: how it is typed, what it does, and what its argument names."""

    name: str
    usage: str
    help: str
    aliases: tuple[str, ...] = ()
    completes: Completes = ""


TABLE = (
    Command("help", "/help [COMMAND]", "lists the commands, or explains one", completes="command"),
    Command("history", "/history [N]", "shows the last N entries, and the summary of what is no longer sent"),
    Command("clear", "/clear", "begins a new conversation; the old one stays stored"),
    Command("status", "/status", "shows who answers, the context in use, and where chats are kept"),
    Command("exit", "/exit", "ends the chat, as Ctrl-D does", aliases=("quit",)),
    Command("system", "/system [TEXT|off]", "shows or sets the system prompt, which is never trimmed away"),
    Command("model", "/model [REF]", "shows or changes the model", completes="model"),
    Command("set", "/set [NAME VALUE]", "shows or sets how tokens are chosen; default undoes", completes="parameter"),
    Command(
        "fusion",
        "/fusion [S N|off]",
        "has N nodes answer, and makes one answer of theirs by strategy S; a third number is what a quorum needs",
        completes="strategy",
    ),
    Command("save", "/save NAME", "gives the conversation a name"),
    Command("load", "/load NAME|N", "goes on with another conversation", completes="session"),
    Command("sessions", "/sessions [N]", "lists the last N conversations"),
    Command("search", "/search WORDS", "finds words in all conversations"),
    Command(
        "export", "/export [PATH]", "writes the conversation as .md, .json or .txt; alone, shows it", completes="path"
    ),
    Command("file", "/file PATH", "puts a text file into the next message", completes="path"),
    Command("retry", "/retry", "asks the last question again"),
    Command("undo", "/undo", "forgets the last question and its answer"),
    Command("copy", "/copy [code]", "copies the last answer, or its last block of code", completes="words"),
    Command("multi", "/multi", "switches what Enter does: send, or begin a new line (Alt-Enter does the other)"),
)

_BY_NAME = {name: command for command in TABLE for name in (command.name, *command.aliases)}
NAMES = tuple(f"/{name}" for name in _BY_NAME)


def is_command(line: str) -> bool:
    """Whether a line is a command: a slash and a letter; a path such as /etc/hosts is a message."""
    word = line.split(maxsplit=1)[0] if line.strip() else ""
    return word.startswith("/") and word[1:].isalpha() and "\n" not in line.strip()


def parse(line: str) -> tuple[Command, str]:
    """The command of a line, and its argument.

    Raises: `UnknownCommand` naming those that there are, `BadRequest` for an argument to one that takes none.
    """
    word, _, argument = line.strip().partition(" ")
    command, argument = named(word), argument.strip()
    if argument and " " not in command.usage:
        raise BadRequest(f"{command.usage} takes no argument")
    return command, argument


def named(word: str) -> Command:
    """The command of that name, with or without its slash; its beginning will do where it is one command's alone.

    Raises: `UnknownCommand`.
    """
    name = word.removeprefix("/").lower()
    if name in _BY_NAME:
        return _BY_NAME[name]
    meant = {command.name: command for known, command in _BY_NAME.items() if name and known.startswith(name)}
    if len(meant) == 1:
        return next(iter(meant.values()))
    known = ", ".join(f"/{n}" for n in (meant or _BY_NAME))
    raise UnknownCommand(f"{'/' + name} is no command; there are {known}")


def help_lines(commands: Iterable[Command] = TABLE, width: int = 80) -> list[str]:
    """The commands with their help beside them, or below them where `width` columns are too few."""
    rows = [(command.usage + _also(command), command.help) for command in commands]
    first = max(len(usage) for usage, _ in rows) + 2
    if width - first >= MIN_HELP_COLUMNS:
        indent = " " * first
        wrapped = (textwrap.wrap(text, width - first) for _, text in rows)
        return [
            line
            for (usage, _), (head, *rest) in zip(rows, wrapped, strict=True)
            for line in (f"{usage:<{first}}{head}", *(indent + more for more in rest))
        ]
    return [
        line
        for usage, text in rows
        for line in (usage, *(f"  {more}" for more in textwrap.wrap(text, max(width - 2, 8))))
    ]


def docs_table() -> str:
    """The table of docs/usage.md."""
    rows = [f"| {(command.usage + _also(command)).replace('|', chr(92) + '|')} | {command.help} |" for command in TABLE]
    return "\n".join(["| in the chat | does |", "| --- | --- |", *rows])


def _also(command: Command) -> str:
    return f" (also {', '.join('/' + alias for alias in command.aliases)})" if command.aliases else ""
