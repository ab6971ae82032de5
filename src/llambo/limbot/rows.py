"""Rows of the database as records."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from llambo.limbot.records import Session, Turn, title_of

TURN_COLUMNS = (
    "session",
    "role",
    "text",
    "at",
    "model",
    "node",
    "sampling",
    "tokens",
    "prompt_tokens",
    "cached_tokens",
    "ttft_ms",
    "time_ms",
    "finish",
    "interrupted",
    "fusion",
)
_DOCUMENTS = ("sampling", "fusion")
"""Columns that hold JSON."""


def session_of(row: sqlite3.Row) -> Session:
    """A row of sessions, with its number of turns, and its opening: the beginning and the end of the first question."""
    beginning, _, end = row["opening"].partition("\0")
    return Session(
        id=row["id"],
        created=row["created"],
        updated=row["updated"],
        name=row["name"] or "",
        system=row["system"],
        model=row["model"],
        sampling=_json(row["sampling"]),
        first_kept=row["first_kept"],
        summary=row["summary"],
        summarised=row["summarised"],
        pin_tokens=row["pin_tokens"],
        title=title_of(beginning, end),
        turns=row["turns"],
        fusion=_json(row["fusion"]),
    )


def turn_of(row: sqlite3.Row) -> Turn:
    """A row of turns."""
    values = {name: row[name] for name in TURN_COLUMNS}
    values |= {name: _json(row[name]) for name in _DOCUMENTS}
    values["interrupted"] = bool(row["interrupted"])
    return Turn(id=row["id"], **values)


def values_of(turn: Turn) -> dict[str, Any]:
    """The columns of a turn as SQLite takes them."""
    values = {name: getattr(turn, name) for name in TURN_COLUMNS}
    values |= {name: json.dumps(values[name]) for name in _DOCUMENTS}
    return {**values, "interrupted": int(turn.interrupted)}


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
