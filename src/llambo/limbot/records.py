"""What the store keeps: sessions and turns, as plain values. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from llambo.core.types import Role
from llambo.limbot.conversation import Conversation, Entry, answered_only
from llambo.limbot.fusion import stored_summary

TITLE_CHARS = 60
_HAS_FILES = re.compile(r"File [^\n]+:\n```")  # as `attachments` puts them before a question


@dataclass(frozen=True, slots=True)
class Turn:
    """A question or an answer with all that is known of it. Times of the clock in seconds, durations in ms.

    `fusion` is the outcome of an answer that several nodes were asked for (`core.fusion_document`), else empty.
    """

    role: Role
    text: str
    at: float
    id: int = 0
    session: int = 0
    model: str = ""
    node: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    ttft_ms: float = 0.0
    time_ms: float = 0.0
    finish: str = ""
    interrupted: bool = False
    fusion: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation. `fusion` is what is asked of several nodes (`limbot.fusion`), empty where one answers.

    `first_kept` is the first turn that is sent, `summarised` the first that the summary does not cover; 0: all, none.
    """

    id: int
    created: float
    updated: float
    name: str = ""
    system: str = ""
    model: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    first_kept: int = 0
    summary: str = ""
    summarised: int = 0
    pin_tokens: int = 0
    title: str = ""
    turns: int = 0
    fusion: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A turn that was found, with its session; `snippet` has the words found between « and »."""

    session: Session
    turn: Turn
    snippet: str


def conversation_of(session: Session, turns: list[Turn]) -> Conversation:
    """The conversation as it was when it was stored last."""
    entries = tuple(
        answered_only(
            Entry(turn.role, turn.text, turn.tokens, turn.id, turn.interrupted, stored_summary(turn.fusion))
            for turn in turns
            if turn.role != "system"
        )
    )
    start = sum(entry.turn < session.first_kept for entry in entries)
    summarised = min(sum(entry.turn < session.summarised for entry in entries), start)
    return Conversation(
        session.system, entries, start, session.summary if summarised else "", summarised, None, session.pin_tokens
    )


def title_of(beginning: str, end: str = "") -> str:
    """The first line of a question, cut where it is long; of one that has files before it, what follows them."""
    texts = (end.rpartition("\n```")[2].lstrip("`"), beginning) if _HAS_FILES.match(beginning) else (beginning,)
    line = next((line.strip() for text in texts for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1] + "…"
