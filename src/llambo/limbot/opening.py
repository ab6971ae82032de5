"""The database file: opened, made, brought to this version, or set aside where it is damaged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from llambo.core.errors import LlamboError
from llambo.limbot import schema

BUSY_MS = 5000
MAX_CHECKED_BYTES = 64 << 20
"""A larger file is not read through at every start; its damage shows when it is met."""
_DAMAGE = ("malformed", "not a database", "no such table", "no such column", "vtable constructor failed")


def connect(path: Path) -> sqlite3.Connection:
    """The database at `path`, of this version and sound.

    Raises: `sqlite3.DatabaseError` (see `is_damage`), `OSError`, `LlamboError` for one of a newer version.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # others may not read what is said
    os.close(descriptor)
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_MS / 1000, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        version = schema.version_of(db)
        if version > schema.VERSION:
            raise LlamboError(f"it was made by a newer Llambo (version {version}, this one knows {schema.VERSION})")
        schema.migrate(db)
        db.execute("SELECT 1 FROM sessions, turns, turns_text LIMIT 0")  # all are there
        small = path.stat().st_size <= MAX_CHECKED_BYTES
        fault = db.execute("PRAGMA quick_check(1)").fetchone()[0] if small else "ok"
        if fault != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {fault}")
    except BaseException:
        db.close()
        raise
    return db


def in_memory() -> sqlite3.Connection:
    """A database that ends with the program."""
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    schema.migrate(db)
    return db


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is at fault, and not the place or the moment (a full disk, a lock, no permission)."""
    text = str(error)
    return any(word in text for word in _DAMAGE)


def set_aside(path: Path) -> str:
    """Renames the file, with its log, so that nothing of it is lost; its name now. Raises: `OSError`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{stamp}-{os.getpid()}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside.name
