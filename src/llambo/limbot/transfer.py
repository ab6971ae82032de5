"""Conversations as Markdown, text and JSON, and JSON back again. Pure."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import PurePath
from typing import Any

from llambo.core.errors import BadRequest
from llambo.core.fusion_document import fusion_of
from llambo.limbot.blocks import Blocks, Code
from llambo.limbot.fusion import rows, stored_summary
from llambo.limbot.records import Session, Turn

FORMAT = "limbot"
FORMAT_VERSION = 1
_ROLES = ("system", "user", "assistant")
_SESSION_MEMBERS = ("name", "system", "model", "sampling", "fusion", "created", "updated")
VOTE_COLUMNS = 1000
"""The most that a page has of a vote; JSON has the whole."""
Stored = tuple[Session, list[Turn]]


def format_of(path: PurePath) -> str:
    """The format that a file's name wants. Raises: `BadRequest`."""
    found = {".md": "markdown", ".markdown": "markdown", ".json": "json", ".txt": "text"}.get(path.suffix.lower())
    if found is None:
        raise BadRequest(f"{path} does not say in which format: name it .md, .json or .txt")
    return found


def exported(form: str, stored: Iterable[Stored]) -> str:
    """The conversations in one of `FORMATS`. Raises: `BadRequest` for another one."""
    if form not in FORMATS:
        raise BadRequest(f"{form!r} is no format; there are {', '.join(FORMATS)}")
    return FORMATS[form](list(stored))


def to_markdown(session: Session, turns: list[Turn]) -> str:
    """A conversation as a page."""
    lines = [f"# {session.name or session.title or f'Conversation {session.id}'}", ""]
    lines += [f"Begun {_when(session.created)}.", ""]
    if session.system:
        lines += ["## System", "", session.system, ""]
    for turn in turns:
        by = f" ({turn.model}{', interrupted' if _is_cut(turn) else ''})" if turn.role == "assistant" else ""
        lines += [f"## {_who(turn)}{by}", ""]
        lines += [turn.text.strip("\n"), ""] if turn.text else []
        outcome = stored_summary(turn.fusion)
        lines += [f"*{outcome}*", ""] if outcome else []
        lines += [*(f"- {row}" for row in _votes(turn)), ""] if outcome and not turn.text else []
    return "\n".join(lines).rstrip("\n") + "\n"


def _is_cut(turn: Turn) -> bool:
    return turn.interrupted and bool(turn.text)


def _who(turn: Turn) -> str:
    """Whose turn it is; a vote without a quorum, for one, leaves no answer."""
    if turn.role == "assistant" and turn.interrupted and not turn.text:
        return "No answer"
    return {"user": "You", "assistant": "Answer", "system": "System"}[turn.role]


def _votes(turn: Turn) -> list[str]:
    """A line for what each node said, where no answer could be made of it; `turn.fusion` is an outcome."""
    return rows(fusion_of(turn.fusion), VOTE_COLUMNS)


def to_text(session: Session, turns: list[Turn]) -> str:
    """A conversation as plain text."""
    head = [f"System: {session.system}"] if session.system else []
    said: list[str] = []
    for turn in turns:
        outcome = stored_summary(turn.fusion)
        who = f"{_who(turn)} ({outcome})" if outcome else _who(turn)
        votes = [f"  {row}" for row in _votes(turn)] if outcome and not turn.text else []
        said.append("\n".join([f"{who}: {turn.text.strip()}".rstrip(), *votes]))
    return "\n\n".join([*head, *said]) + "\n"


def to_json(stored: Iterable[Stored]) -> str:
    """Conversations with all that is known of them; `from_json` reads it."""
    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "sessions": [
            {
                **{name: getattr(session, name) for name in _SESSION_MEMBERS},
                "turns": [
                    {name: value for name, value in asdict(turn).items() if name not in {"id", "session"}}
                    for turn in turns
                ],
            }
            for session, turns in stored
        ],
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def from_json(text: str) -> list[Stored]:
    """The conversations in a document of `to_json`; their numbers are 0.

    Raises: `BadRequest` saying what is wrong with which conversation and turn.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"this is no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadRequest('this is no export of limbot: it has no "format": "limbot"')
    if document.get("version") != FORMAT_VERSION:
        raise BadRequest(f"the export has version {document.get('version')!r}, this Llambo reads {FORMAT_VERSION}")
    sessions = document.get("sessions")
    if not isinstance(sessions, list):
        raise BadRequest('the export has no list "sessions"')
    return [_stored(number, value) for number, value in enumerate(sessions, start=1)]


def _stored(number: int, value: Any) -> Stored:
    where = f"conversation {number}"
    if not isinstance(value, dict) or not isinstance(value.get("turns"), list):
        raise BadRequest(f"{where} has no list of turns")
    session = _made(Session, {"id": 0, "created": 0.0, "updated": 0.0}, value, where)
    turns = [_turn(turn, f"{where}, turn {n}") for n, turn in enumerate(value["turns"], start=1)]
    return session, turns


def _turn(value: Any, where: str) -> Turn:
    if not isinstance(value, dict) or value.get("role") not in _ROLES or not isinstance(value.get("text"), str):
        raise BadRequest(f"{where} needs a role ({', '.join(_ROLES)}) and a text")
    turn: Turn = _made(Turn, {"role": "user", "text": "", "at": 0.0}, value, where)
    return turn


def _made(kind: Any, least: dict[str, Any], value: dict[str, Any], where: str) -> Any:
    """A record of the members that have the right type; numbers that are ours to give are left out."""
    found = dict(least)
    kinds: dict[str, Any] = {
        "str": str,
        "int": int,
        "float": (int, float),
        "bool": bool,
        "dict[str, Any]": dict,
        "Role": str,
    }
    for field in fields(kind):
        if field.name in {"id", "session", "turns", "title"} or field.name not in value:
            continue
        given = value[field.name]
        is_number = isinstance(given, int | float)
        if not isinstance(given, kinds[str(field.type)]) or (is_number and not math.isfinite(given)):
            raise BadRequest(f"{where}: {field.name} is {type(given).__name__}, and {field.type} is wanted")
        if is_number and not -(2**62) < given < 2**62:
            raise BadRequest(f"{where}: {field.name} is out of range")
        found[field.name] = given
    return kind(**found)


def code_blocks(text: str) -> list[str]:
    """The blocks of code in a Markdown text."""
    blocks = Blocks()
    found: list[list[str]] = []
    for block in (*blocks.feed(text), *blocks.close()):
        if isinstance(block, Code):
            if block.begins:
                found.append([])
            found[-1].append(block.text)
    return ["\n".join(lines) for lines in found]


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


FORMATS: dict[str, Callable[[list[Stored]], str]] = {
    "markdown": lambda stored: "\n---\n\n".join(to_markdown(*one) for one in stored),
    "text": lambda stored: "\n---\n\n".join(to_text(*one) for one in stored),
    "json": to_json,
}
