"""Chats in SQLite: one file for all sessions of a home, full-text searchable, open to several programs at once.

Owns the file, its damage and its absence. Synchronous, and of one thread: `shelf` gives it one of its own. Every call
is one short transaction in the write-ahead log, which survives the end of the process whatever ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from llambo.core.errors import LlamboError, NameInUse, NotFound
from llambo.limbot import opening, rows
from llambo.limbot.records import Hit, Session, Turn

_SESSION = """
    SELECT s.*, (SELECT count(*) FROM turns t WHERE t.session = s.id) AS turns,
           coalesce((SELECT substr(t.text, 1, 400) || char(0) || substr(t.text, -400) FROM turns t
                     WHERE t.session = s.id AND t.role = 'user' ORDER BY t.id LIMIT 1), '') AS opening
    FROM sessions s
"""


class Store:
    """An open database. `notices` are sentences for the person whose chats these are.

    Every call raises `LlamboError` when the file cannot be read or written.
    """

    def __init__(self, connection: sqlite3.Connection, notices: Iterable[str] = (), *, lasts: bool = True) -> None:
        self.notices = tuple(notices)
        self.lasts = lasts
        self._db = connection
        self._writer = ""

    @classmethod
    def open(cls, path: Path) -> Self:
        """The database at `path`, made where there is none.

        A damaged file is set aside and a new one begun; where nothing can be written, chats are kept in memory until
        the program ends. Both are told in `notices`.
        """
        try:
            return cls(opening.connect(path))
        except sqlite3.DatabaseError as error:
            if opening.is_damage(error):
                return cls._without(path, error)
            reason = str(error)
        except (OSError, LlamboError) as error:
            reason = error.message if isinstance(error, LlamboError) else error.strerror or str(error)
        return cls(opening.in_memory(), [f"this chat will not be kept: {path}: {reason}"], lasts=False)

    @classmethod
    def _without(cls, path: Path, error: Exception) -> Self:
        try:
            aside = opening.set_aside(path)
            return cls(opening.connect(path), [f"the chats in {path.name} are damaged ({error}); kept as {aside}"])
        except (OSError, sqlite3.Error, LlamboError) as failure:
            return cls(opening.in_memory(), [f"this chat will not be kept: {path} is damaged ({failure})"], lasts=False)

    @classmethod
    def in_memory(cls) -> Self:
        """A store that ends with the program."""
        return cls(opening.in_memory(), lasts=False)

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(sqlite3.Error):
            if self.lasts:
                self._db.execute("PRAGMA optimize")
            self._db.close()

    # --- sessions -------------------------------------------------------------------------------------------------

    def begin(
        self,
        *,
        system: str = "",
        model: str = "",
        sampling: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
    ) -> int:
        """A new session; its number."""
        now = time.time()
        with self._writing():
            row = self._db.execute(
                "INSERT INTO sessions (created, updated, system, model, sampling, fusion) VALUES (?, ?, ?, ?, ?, ?)",
                (now, now, system, model, json.dumps(sampling or {}), json.dumps(fusion or {})),
            )
        return int(row.lastrowid or 0)

    def change(self, session: int, /, **values: Any) -> None:
        """Sets columns of a session. Raises: `NameInUse` for a name that another one has."""
        values |= {name: json.dumps(values[name]) for name in ("sampling", "fusion") if name in values}
        assert values.keys() <= _CHANGEABLE
        columns = ", ".join(f"{name} = ?" for name in values)
        try:
            with self._writing():
                self._db.execute(f"UPDATE sessions SET {columns} WHERE id = ?", (*values.values(), session))  # noqa: S608 - names are ours
        except sqlite3.IntegrityError:
            raise NameInUse(f"another conversation is called {values.get('name')!r}; choose another name") from None

    def session(self, wanted: int | str) -> Session:
        """The session of that number or name. Raises: `NotFound`."""
        with self._reading():
            row = self._db.execute(f"{_SESSION} WHERE s.name = ?", (str(wanted),)).fetchone()
            if row is None and str(wanted).isascii() and str(wanted).isdigit():
                row = self._db.execute(f"{_SESSION} WHERE s.id = ?", (min(int(wanted), 2**62),)).fetchone()
        if row is None:
            listed = "/sessions and `limbot logs` list them"
            raise NotFound(f"no conversation has the number or name {str(wanted)!r}; {listed}")
        return rows.session_of(row)

    def last(self) -> Session | None:
        """The session that was used last and has turns."""
        with self._reading():
            condition = "WHERE EXISTS (SELECT 1 FROM turns t WHERE t.session = s.id)"
            row = self._db.execute(f"{_SESSION} {condition} ORDER BY s.updated DESC, s.id DESC LIMIT 1").fetchone()
        return rows.session_of(row) if row else None

    def sessions(self, limit: int = 20) -> list[Session]:
        """The sessions used last, the newest first; those without turns are left out."""
        with self._reading():
            condition = "WHERE EXISTS (SELECT 1 FROM turns t WHERE t.session = s.id)"
            found = self._db.execute(f"{_SESSION} {condition} ORDER BY s.updated DESC, s.id DESC LIMIT ?", (limit,))
            return [rows.session_of(row) for row in found]

    def forget_empty(self, session: int) -> None:
        """Removes a session without turns: one that was begun and never used."""
        with self._writing():
            self._db.execute(
                "DELETE FROM sessions WHERE id = ? AND NOT EXISTS (SELECT 1 FROM turns WHERE session = sessions.id)",
                (session,),
            )

    # --- turns ----------------------------------------------------------------------------------------------------

    def add(self, session: int, turn: Turn, *, is_open: bool = False) -> int:
        """A new turn; its number. One that `is_open` is still being written, by this process."""
        writer = self._me() if is_open else None
        with self._writing():
            number = self._insert(session, turn, writer)
            self._db.execute("UPDATE sessions SET updated = ? WHERE id = ?", (turn.at, session))
        return number

    def grow(self, turn: int, text: str) -> None:
        """Replaces the text of a turn that is being written."""
        with self._writing():
            self._db.execute("UPDATE turns SET text = ? WHERE id = ?", (text, turn))

    def finish(self, turn_id: int, turn: Turn) -> None:
        """The turn is whole, or as whole as it will be."""
        values = {name: value for name, value in rows.values_of(turn).items() if name not in {"session", "at", "role"}}
        values["writer"] = None
        columns = ", ".join(f"{name} = ?" for name in values)
        with self._writing():
            self._db.execute(f"UPDATE turns SET {columns} WHERE id = ?", (*values.values(), turn_id))  # noqa: S608
            self._db.execute(
                "UPDATE sessions SET updated = ? WHERE id = (SELECT session FROM turns WHERE id = ?)",
                (time.time(), turn_id),
            )

    def count_tokens(self, counts: dict[int, int]) -> None:
        """Keeps what turns take in the context, by their numbers."""
        with self._writing():
            self._db.executemany("UPDATE turns SET tokens = ? WHERE id = ?", [(n, turn) for turn, n in counts.items()])

    def remove(self, turns: Iterable[int]) -> None:
        """Forgets turns."""
        with self._writing():
            self._db.executemany("DELETE FROM turns WHERE id = ?", [(turn,) for turn in turns])

    def turns(self, session: int) -> list[Turn]:
        """All turns of a session, oldest first. One whose writer was killed is marked as interrupted."""
        self._close_abandoned(session)
        with self._reading():
            found = self._db.execute("SELECT * FROM turns WHERE session = ? ORDER BY id", (session,))
            return [rows.turn_of(row) for row in found]

    def questions(self, limit: int = 1000) -> list[str]:
        """What was asked last, oldest first: the history of lines."""
        with self._reading():
            found = self._db.execute(
                "SELECT text FROM turns WHERE role = 'user' AND length(text) < 4000 ORDER BY id DESC LIMIT ?", (limit,)
            )
            return [row[0] for row in found][::-1]

    def search(self, words: str, limit: int = 20) -> list[Hit]:
        """The turns that have all the words, or words that begin so; the newest first."""
        query = " ".join(f'"{word}"*' for word in words.replace('"', " ").split() if any(c.isalnum() for c in word))
        if not query:
            return []
        with self._reading():
            found = self._db.execute(
                """
                SELECT t.*, snippet(turns_text, 0, '«', '»', '…', 12) AS snippet
                FROM turns_text JOIN turns t ON t.id = turns_text.rowid
                WHERE turns_text MATCH ? ORDER BY turns_text.rowid DESC LIMIT ?
                """,
                (query, limit),
            ).fetchall()
        return [Hit(self.session(row["session"]), rows.turn_of(row), row["snippet"]) for row in found]

    def take_in(self, stored: Iterable[tuple[Session, list[Turn]]]) -> list[int]:
        """Adds conversations from elsewhere, all or none; their numbers here. A name that is taken gets a number."""
        numbers: list[int] = []
        with self._writing():
            for session, turns in stored:
                columns = ("created", "updated", "system", "model")
                values = [getattr(session, column) for column in columns]
                values += [json.dumps(session.sampling), json.dumps(session.fusion), self._free_name(session.name)]
                row = self._db.execute(
                    "INSERT INTO sessions (created, updated, system, model, sampling, fusion, name)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    values,
                )
                numbers.append(int(row.lastrowid or 0))
                for turn in turns:
                    self._insert(numbers[-1], turn, None)
        return numbers

    # --- inside ---------------------------------------------------------------------------------------------------

    def _insert(self, session: int, turn: Turn, writer: str | None) -> int:
        values = {**rows.values_of(turn), "session": session, "writer": writer}
        row = self._db.execute(
            f"INSERT INTO turns ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",  # noqa: S608
            tuple(values.values()),
        )
        return int(row.lastrowid or 0)

    def _free_name(self, name: str) -> str | None:
        """The name, with a number behind it where another conversation is called so."""
        found = name or None
        number = 2
        while found and self._db.execute("SELECT 1 FROM sessions WHERE name = ?", (found,)).fetchone():
            found = f"{name} {number}"
            number += 1
        return found

    def _me(self) -> str:
        if not self._writer:
            self._writer = _writer_of(os.getpid())
        return self._writer

    def _close_abandoned(self, session: int) -> None:
        with self._reading():
            found = self._db.execute(
                "SELECT DISTINCT writer FROM turns WHERE writer IS NOT NULL AND session = ?", (session,)
            ).fetchall()
        dead = [row[0] for row in found if row[0] != self._writer and _writer_of(int(row[0].split()[0])) != row[0]]
        if dead:
            with self._writing():
                self._db.executemany(
                    "UPDATE turns SET interrupted = 1, finish = 'cancelled', writer = NULL WHERE writer = ?",
                    [(writer,) for writer in dead],
                )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with _told():
            yield


_CHANGEABLE = frozenset(
    {"name", "system", "model", "sampling", "fusion", "first_kept", "summary", "summarised", "pin_tokens", "updated"}
)


@contextmanager
def _told() -> Iterator[None]:
    """SQLite's errors as ours; a clash of names is left to who can say which."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        raise LlamboError(f"the chats cannot be read or written: {error}") from error


def _writer_of(pid: int) -> str:
    """A process and when it was born, so that a reused number is not taken for it; "" where there is none."""
    import psutil  # noqa: PLC0415 - only where an answer is being written

    try:
        return f"{pid} {psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""
