"""The grammar of ctl files: tables of commands, from which lines are read, made, refused and explained.

Words are separated by blanks; one that holds blanks is quoted as in Plan 9, 'so it''s one word'. Pure: knows no files
and no cluster.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llambo.core.errors import BadRequest, UnknownCommand

Kind = Literal["word", "whole", "decimal", "switch", "rest"]
Value = str | int | float

_OPTION = re.compile(r"([a-z_]+)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"[^\s']+")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument. `name` is how people see it; with `key` it is given as `key=VALUE`, and never has to be.

    `kind` is a word, a whole or decimal number, "on" or "off", or the rest of the line.
    """

    name: str
    kind: Kind = "word"
    is_optional: bool = False
    key: str = ""

    @property
    def usage(self) -> str:
        """As the grammar shows it."""
        shown = f"{self.key}={self.name}" if self.key else self.name
        return f"[{shown}]" if self.is_optional or self.key else shown

    def read(self, command: str, word: str) -> Value:
        """The value of a word. Raises: `BadRequest`, which tells nothing of the word but where a number was wanted."""
        if self.kind in {"word", "rest"}:
            return word
        if self.kind == "switch":
            if word not in {"on", "off"}:
                raise BadRequest(f"{command} is on or off, not {word!r}")
            return word == "on"
        wanted = "a whole number" if self.kind == "whole" else "a number"
        try:
            if word.isascii() and "_" not in word:
                return int(word) if self.kind == "whole" else float(word)
        except ValueError:
            pass
        raise BadRequest(f"{command}: {self.key or self.name} is {wanted}, not {word!r}")


@dataclass(frozen=True, slots=True)
class Call:
    """A line that was understood: the command, and the arguments that were given, by name or key in small letters."""

    command: str
    values: Mapping[str, Value]

    def text(self, name: str, default: str = "") -> str:
        """The argument as text."""
        return str(self.values.get(name, default))

    def whole(self, name: str, default: int = 0) -> int:
        """The argument as a whole number."""
        return int(self.values.get(name, default))

    def is_on(self, name: str) -> bool:
        """The argument as a switch."""
        return bool(self.values[name])

    def decimal(self, name: str, default: float = 0.0) -> float:
        """The argument as a number."""
        return float(self.values.get(name, default))


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its arguments in their order, those with keys last, and what it does, in one sentence."""

    name: str
    arguments: tuple[Argument, ...]
    help: str

    @property
    def usage(self) -> str:
        """The command with its arguments, as it is to be written."""
        return " ".join((self.name, *(argument.usage for argument in self.arguments)))

    def read(self, rest: str) -> Call:
        """What the line after the command's name says. Raises: `BadRequest`."""
        if self.arguments and self.arguments[0].kind == "rest":
            if not rest:
                raise self._wrong(f"needs {self.arguments[0].name}")
            return Call(self.name, {_name_of(self.arguments[0]): rest})
        values: dict[str, Value] = {}
        places = [argument for argument in self.arguments if not argument.key]
        keyed = {argument.key: argument for argument in self.arguments if argument.key}
        for word in split(rest):
            option = _OPTION.fullmatch(word) if keyed else None
            if option is not None:
                argument = keyed.get(option[1])
                if argument is None:
                    raise self._wrong(f"has no option {option[1]}=")
                if argument.key in values:
                    raise self._wrong(f"takes {argument.key}= once")
                values[argument.key] = argument.read(self.name, option[2])
            elif places:
                place = places.pop(0)
                values[_name_of(place)] = place.read(self.name, word)
            else:
                # What is too much is not repeated: it may be a key that was meant as key=.
                raise self._wrong("has too many arguments" if self.arguments else "takes no arguments")
        if places and not places[0].is_optional:
            raise self._wrong(f"needs {places[0].name}")
        return Call(self.name, values)

    def line(self, **values: Value) -> str:
        """The line that says this command with these arguments; "" and 0 of optional ones are left out."""
        words = [self.name]
        for argument in self.arguments:
            value = values.pop(_name_of(argument), "")
            if (argument.is_optional or argument.key) and value in {"", 0}:
                continue
            text = str(value) if argument.kind == "rest" else quote(str(value))
            words.append(f"{argument.key}={text}" if argument.key else text)
        assert not values, f"{self.name} has no {', '.join(values)}"
        line = " ".join(words)
        if len(line.splitlines()) > 1:
            raise BadRequest(f"{self.name}: what a ctl is told is one line")
        return line

    def _wrong(self, what: str) -> BadRequest:
        return BadRequest(f"{self.name} {what}; write: {self.usage}")


@dataclass(frozen=True, slots=True)
class Grammar:
    """The commands of one kind of ctl file; `title` names it in documents."""

    title: str
    commands: tuple[Command, ...]
    _by_name: dict[str, Command] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {command.name: command for command in self.commands})

    def __getitem__(self, name: str) -> Command:
        return self._by_name[name]

    def read(self, line: str) -> Call:
        """What a line says. Raises: `UnknownCommand` naming those there are, `BadRequest`."""
        name, _, rest = line.strip().partition(" ")
        command = self._by_name.get(name)
        if command is None:
            raise UnknownCommand(f"unknown command {name!r}; there are {', '.join(self._by_name)}")
        return command.read(rest.strip())

    def text(self) -> str:
        """What a read of the file gives: one command a line."""
        return "".join(f"{command.usage}\n" for command in self.commands)

    def markdown(self) -> str:
        """The commands with what they do, as a table for documents."""
        usages = ((command.usage.replace("|", "\\|"), command.help) for command in self.commands)
        rows = "".join(f"| `{usage}` | {what} |\n" for usage, what in usages)
        return f"| command | does |\n| --- | --- |\n{rows}"


def _name_of(argument: Argument) -> str:
    return argument.key or argument.name.lower()


def split(text: str) -> list[str]:
    """The words of a line. Raises: `BadRequest` for a quote that is not closed."""
    words: list[str] = []
    word: list[str] | None = None
    position = 0
    while position < len(text):
        if text[position].isspace():
            if word is not None:
                words.append("".join(word))
                word = None
            position += 1
            continue
        word = word or []
        if text[position] == "'":
            end = position + 1
            while (end := text.find("'", end)) >= 0 and text[end : end + 2] == "''":
                end += 2
            if end < 0:
                raise BadRequest("a quote is not closed; quote so: 'two words', and ' itself as ''")
            word.append(text[position + 1 : end].replace("''", "'"))
            position = end + 1
        else:
            plain = _PLAIN.match(text, position)
            assert plain is not None
            word.append(plain[0])
            position = plain.end()
    return words if word is None else [*words, "".join(word)]


def quote(word: str) -> str:
    """The word as `split` reads it back."""
    if _PLAIN.fullmatch(word):
        return word
    doubled = word.replace("'", "''")
    return f"'{doubled}'"
