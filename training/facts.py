"""Owns the corpus files' grammar: topics, their facts, and the wordings that ask for each.

The grammar, one item per line (a line that starts with white space continues the one before it;
`#` opens a comment line):

    @ id: name | name        a topic and what people call it
    kind: answer             a fact of that topic; one kind once per topic
    ? question               a whole question that this fact answers
    ~ verb phrase            what somebody wants to do ("stop a node"); put into how-to frames
    > follow-up              a question that means this fact right after a turn about this topic
    + topic: follow-up       the same right after a turn about that other topic
    % one thing / another    the two things that this fact compares; put into "difference" frames
    ! weight                 this fact is drawn that many times as often (default 1)
    = topic.kind             more wordings for a fact that an earlier line gave

`[a|b|]` anywhere in a name or wording is a choice; `{n}` is a number that the answer may repeat.
It knows nothing of how wordings are varied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from training.settings import CORPUS_DIR


class CorpusError(ValueError):
    """A corpus file breaks the grammar; the text names file, line and what was expected."""


@dataclass(slots=True)
class Fact:
    """One answer and every hand-written way of asking for it."""

    topic: str
    kind: str
    answer: str
    questions: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    follow_ups: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: list[tuple[str, str]] = field(default_factory=list)
    weight: float = 1.0

    @property
    def wordings(self) -> int:
        """How many hand-written patterns ask for this fact."""
        alone = len(self.questions) + len(self.actions) + len(self.pairs)
        return alone + len(self.follow_ups) + len(self.elsewhere)

    @property
    def name(self) -> str:
        """`topic.kind`, unique in the corpus."""
        return f"{self.topic}.{self.kind}"


@dataclass(slots=True)
class Topic:
    """Something one can ask about, with its names and facts by kind."""

    id: str
    names: list[str]
    facts: dict[str, Fact] = field(default_factory=dict)
    neighbours: list[tuple[str, Fact]] = field(default_factory=list)
    """Follow-ups that after a turn about this topic mean facts of others."""


def parse(text: str, origin: str = "corpus", known: dict[str, Topic] | None = None) -> dict[str, Topic]:
    """`known` and the topics written in `text`, by id.

    Raises CorpusError with `origin` and the line's number.
    """
    topics = {} if known is None else known
    topic: Topic | None = None
    fact: Fact | None = None
    for number, line in _logical_lines(text):
        where = f"{origin}:{number}"
        mark, rest = line[0], line[1:].strip()
        if mark == "@":
            ident, _, names = rest.partition(":")
            if ident.strip() in topics:
                raise CorpusError(f"{where}: topic {ident.strip()!r} is written twice")
            parts = [part.strip() for part in _split_bars(names)]
            topic = Topic(ident.strip(), [part for part in parts if part])
            topics[topic.id], fact = topic, None
        elif mark == "=":
            ident, _, kind = rest.partition(".")
            fact = topics[ident].facts.get(kind) if ident in topics else None
            if fact is None:
                raise CorpusError(f"{where}: there is no fact {rest!r}")
        elif mark in "?~>!%+":
            if fact is None:
                raise CorpusError(f"{where}: a wording needs a fact before it")
            _add(fact, mark, rest, where)
        else:
            kind, colon, answer = line.partition(": ")
            if topic is None or not colon or not kind.replace("-", "").isalnum():
                raise CorpusError(f"{where}: expected '@ id: names' or 'kind: answer'")
            if kind in topic.facts:
                raise CorpusError(f"{where}: {topic.id} has {kind!r} already")
            fact = topic.facts[kind] = Fact(topic.id, kind, answer.strip())
    return topics


def load(folder: Path = CORPUS_DIR) -> dict[str, Topic]:
    """Every topic of every `*.txt` file in `folder`, by id, in a fixed order."""
    topics: dict[str, Topic] = {}
    for path in sorted(folder.glob("*.txt")):
        parse(path.read_text(encoding="utf-8"), path.name, topics)
    for fact in [fact for topic in topics.values() for fact in topic.facts.values()]:
        for ident, wording in fact.elsewhere:
            if ident not in topics:
                raise CorpusError(f"{fact.name}: there is no topic {ident!r} to follow up")
            topics[ident].neighbours.append((wording, fact))
    return topics


def _logical_lines(text: str) -> list[tuple[int, str]]:
    lines: list[tuple[int, str]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        if not raw.strip() or raw.startswith("#"):
            continue
        if raw[0] in " \t" and lines:
            lines[-1] = (lines[-1][0], lines[-1][1] + " " + raw.strip())
        else:
            lines.append((number, raw.strip()))
    return lines


def _split_bars(text: str) -> list[str]:
    """Splits at the bars that are outside square brackets."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += {"[": 1, "]": -1}.get(char, 0)
        if char == "|" and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _add(fact: Fact, mark: str, rest: str, where: str) -> None:
    if mark == "!":
        try:
            fact.weight = float(rest)
        except ValueError:
            raise CorpusError(f"{where}: '!' needs a number, not {rest!r}") from None
        return
    if mark == "%":
        one, slash, other = (part.strip() for part in rest.partition(" / "))
        if not slash or not one or not other:
            raise CorpusError(f"{where}: '%' needs two things with ' / ' between them, not {rest!r}")
        fact.pairs.append((one, other))
        return
    if mark == "+":
        ident, colon, rest = rest.partition(":")
        if not colon or not rest.strip():
            raise CorpusError(f"{where}: '+' needs 'topic: follow-up', not {ident!r}")
        fact.elsewhere.extend((ident.strip(), part.strip()) for part in _split_bars(rest) if part.strip())
        return
    wordings = [part.strip() for part in _split_bars(rest)]
    target = {"?": fact.questions, "~": fact.actions, ">": fact.follow_ups}[mark]
    target.extend(part for part in wordings if part)
