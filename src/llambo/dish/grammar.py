"""What a line of dish says: words, quotes, variables, pipes, redirections, comments, and where a line is wrong.

Pure. A quote opens only where a word begins (or after its `=`), so that an apostrophe inside a word is one: quoting is
as in Plan 9, 'so it''s one word', or "so, with $variables and \\" ". A line that begins with no command is a prompt for
the model, and is taken as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from llambo.core.errors import BadRequest

PartKind = Literal["plain", "quoted", "variable"]
TokenKind = Literal["word", "operator", "comment"]

OPERATORS = (">>", ">", "<", "|", "&", ";")
_REDIRECTIONS = frozenset({">", ">>", "<"})
_SPECIAL = frozenset("|<>&;")
_PATTERN = frozenset("*?[")
_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_LITERAL = re.compile(r"([*?[])")
_FIRST_WORD = re.compile(r"[^\s|<>&;]*")


class LineFault(BadRequest):
    """A line that cannot be read; `position` is the index of the character where it went wrong."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} (position {position + 1})")
        self.position = position


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a word: its text, or the name of a variable."""

    kind: PartKind
    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """A word, operator or comment, from `start` up to `end` of the line. `parts` are a word's."""

    kind: TokenKind
    start: int
    end: int
    text: str
    parts: tuple[Part, ...] = ()

    @property
    def is_quoted(self) -> bool:
        """Whether any of it stands in quotes."""
        return any(part.kind == "quoted" for part in self.parts)

    def expand(self, variables: Mapping[str, str]) -> str:
        """The word, with the values of its variables; one that is not set is an empty text."""
        return "".join(variables.get(part.text, "") if part.kind == "variable" else part.text for part in self.parts)

    def pattern(self, variables: Mapping[str, str]) -> str:
        """The word as a pattern of `fnmatch`, "" where it is none: what is quoted stands for itself."""
        if not any(part.kind == "plain" and _PATTERN & set(part.text) for part in self.parts):
            return ""
        texts = (variables.get(part.text, "") if part.kind == "variable" else part.text for part in self.parts)
        pieces = zip(self.parts, texts, strict=True)
        return "".join(text if part.kind == "plain" else _LITERAL.sub(r"[\1]", text) for part, text in pieces)


@dataclass(frozen=True, slots=True)
class Redirection:
    """`>` and `>>` send output to a file, `<` reads input from one."""

    operator: str
    target: Token


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of a pipeline with its arguments; `start` is where it begins in the line."""

    name: str
    words: tuple[Token, ...]
    redirections: tuple[Redirection, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands, each reading what the one before it writes. `text` is how it was written."""

    stages: tuple[Stage, ...]
    is_background: bool
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question to the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """`NAME=VALUE` alone on its line."""

    name: str
    value: Token


Statement = Pipeline | Prompt | Assignment


def parse(line: str, is_command: Callable[[str], bool]) -> tuple[Statement, ...]:
    """What a line says; nothing for an empty one and for a comment. Raises: `LineFault`."""
    text = line.strip()
    if not text or text.startswith("#"):
        return ()
    first = _FIRST_WORD.match(text)
    assert first is not None
    if not is_command(first[0]) and text[0] not in _SPECIAL:
        assignment = _assignment(text)
        return (assignment or Prompt(text),)
    tokens, fault = scan(line)
    if fault is not None:
        raise fault
    return _Parser(line, [token for token in tokens if token.kind != "comment"], is_command).statements()


def _assignment(text: str) -> Assignment | None:
    if _ASSIGNMENT.match(text) is None:
        return None
    tokens, fault = scan(text)
    if fault is not None or len(tokens) != 1 or tokens[0].kind != "word":
        return None
    word = tokens[0]
    name, _, head = word.parts[0].text.partition("=")
    parts = (Part("plain", head), *word.parts[1:])
    return Assignment(name, Token("word", word.start, word.end, word.text, parts))


class _Parser:
    def __init__(self, line: str, tokens: list[Token], is_command: Callable[[str], bool]) -> None:
        self._line = line
        self._tokens = tokens
        self._is_command = is_command
        self._at = 0

    def statements(self) -> tuple[Statement, ...]:
        found: list[Statement] = []
        while self._peek() is not None:
            found.append(self._pipeline())
        return tuple(found)

    def _peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self, *operators: str) -> Token | None:
        token = self._peek()
        if token is None or token.kind != "operator" or token.text not in operators:
            return None
        self._at += 1
        return token

    def _pipeline(self) -> Pipeline:
        stages = [self._stage("")]
        while (bar := self._take("|")) is not None:
            stages.append(self._stage(bar.text))
        text = self._line[stages[0].start : self._tokens[self._at - 1].end]
        ampersand = self._take("&")
        following = self._peek()
        if ampersand is not None and following is not None and following.text != ";":
            raise LineFault("& ends a command; as a character it is written '&'", ampersand.start)
        self._take(";")
        return Pipeline(tuple(stages), ampersand is not None, text)

    def _stage(self, after: str) -> Stage:
        name = self._peek()
        if name is None:
            raise LineFault(f"a command is missing after {after}", len(self._line.rstrip()))
        if name.kind == "operator":
            raise LineFault(f"a command is missing before {name.text}", name.start)
        if name.is_quoted or not self._is_command(name.text):
            raise LineFault(f"{name.text!r} is no command; help lists them, ask PROMPT asks the model", name.start)
        self._at += 1
        words: list[Token] = []
        redirections: list[Redirection] = []
        while (token := self._peek()) is not None:
            if token.kind == "word":
                self._at += 1
                words.append(token)
            elif token.text in _REDIRECTIONS:
                self._at += 1
                redirections.append(self._redirection(token))
            else:
                break
        return Stage(name.text, tuple(words), tuple(redirections), name.start)

    def _redirection(self, operator: Token) -> Redirection:
        target = self._peek()
        if target is None or target.kind != "word":
            raise LineFault(f"a file is missing after {operator.text}", operator.end)
        self._at += 1
        return Redirection(operator.text, target)


def scan(line: str) -> tuple[list[Token], LineFault | None]:
    """The tokens of a line, as far as it can be read, and why no further."""
    tokens: list[Token] = []
    at = 0
    while at < len(line):
        if line[at].isspace():
            at += 1
            continue
        if line[at] == "#":
            tokens.append(Token("comment", at, len(line), line[at:]))
            break
        operator = next((found for found in OPERATORS if line.startswith(found, at)), "")
        if operator:
            tokens.append(Token("operator", at, at + len(operator), operator))
            at += len(operator)
            continue
        parts: list[Part] = []
        try:
            end = _word(line, at, parts)
        except LineFault as fault:
            tokens.append(Token("word", at, len(line), line[at:], (*parts, Part("quoted", ""))))
            return tokens, fault
        tokens.append(Token("word", at, end, line[at:end], tuple(parts)))
        at = end
    return tokens, None


def _word(line: str, start: int, parts: list[Part]) -> int:
    """Adds the parts of the word at `start`; returns where it ends. Raises: `LineFault`."""
    at = start
    may_quote = True
    while at < len(line) and not line[at].isspace() and line[at] not in _SPECIAL:
        variable = _VARIABLE.match(line, at)
        if variable is not None:
            parts.append(Part("variable", variable[1]))
            at, may_quote = variable.end(), False
        elif may_quote and line[at] == "'":
            at = _single(line, at, parts)
        elif may_quote and line[at] == '"':
            at = _double(line, at, parts)
        else:
            may_quote = line[at] == "="
            if parts and parts[-1].kind == "plain":
                parts[-1] = Part("plain", parts[-1].text + line[at])
            else:
                parts.append(Part("plain", line[at]))
            at += 1
    return at


def _single(line: str, start: int, parts: list[Part]) -> int:
    end = start + 1
    while (end := line.find("'", end)) >= 0 and line[end : end + 2] == "''":
        end += 2
    if end < 0:
        raise LineFault("the quote ' is not closed; inside it ' is written ''", start)
    parts.append(Part("quoted", line[start + 1 : end].replace("''", "'")))
    return end + 1


def _double(line: str, start: int, parts: list[Part]) -> int:
    at = start + 1
    text = ""
    parts.append(Part("quoted", ""))  # what is empty is a word too
    while at < len(line) and line[at] != '"':
        variable = _VARIABLE.match(line, at)
        if variable is not None:
            parts += [Part("quoted", text), Part("variable", variable[1])]
            text, at = "", variable.end()
        elif line[at] == "\\" and line[at + 1 : at + 2] in {'"', "\\", "$"}:
            text += line[at + 1]
            at += 2
        else:
            text += line[at]
            at += 1
    if at == len(line):
        raise LineFault('the quote " is not closed; inside it " is written \\"', start)
    parts.append(Part("quoted", text))
    return at + 1


def quote(word: str) -> str:
    """The word as `scan` reads it back."""
    if re.fullmatch(r"[\w./:%@+,~^!-][\w./:%@+,~^!=-]*", word):
        return word
    doubled = word.replace("'", "''")
    return f"'{doubled}'"
