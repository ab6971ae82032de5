"""The shape of the database, and how an older one is brought to it: one script for each version."""

from __future__ import annotations

import sqlite3

MIGRATIONS = (
    """
    CREATE TABLE sessions (
        id INTEGER PRIMARY KEY,
        name TEXT UNIQUE,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        system TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL DEFAULT '',
        sampling TEXT NOT NULL DEFAULT '{}',
        first_kept INTEGER NOT NULL DEFAULT 0,
        summary TEXT NOT NULL DEFAULT '',
        summarised INTEGER NOT NULL DEFAULT 0,
        pin_tokens INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX sessions_updated ON sessions (updated);
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
        text TEXT NOT NULL,
        at REAL NOT NULL,
        model TEXT NOT NULL DEFAULT '',
        node TEXT NOT NULL DEFAULT '',
        sampling TEXT NOT NULL DEFAULT '{}',
        tokens INTEGER NOT NULL DEFAULT 0,
        prompt_tokens INTEGER NOT NULL DEFAULT 0,
        cached_tokens INTEGER NOT NULL DEFAULT 0,
        ttft_ms REAL NOT NULL DEFAULT 0,
        time_ms REAL NOT NULL DEFAULT 0,
        finish TEXT NOT NULL DEFAULT '',
        interrupted INTEGER NOT NULL DEFAULT 0,
        writer TEXT
    );
    CREATE INDEX turns_session ON turns (session, id);
    CREATE INDEX turns_writer ON turns (writer) WHERE writer IS NOT NULL;
    CREATE VIRTUAL TABLE turns_text USING fts5 (
        text, content = 'turns', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
    );
    CREATE TRIGGER turns_added AFTER INSERT ON turns BEGIN
        INSERT INTO turns_text (rowid, text) VALUES (new.id, new.text);
    END;
    CREATE TRIGGER turns_removed AFTER DELETE ON turns BEGIN
        INSERT INTO turns_text (turns_text, rowid, text) VALUES ('delete', old.id, old.text);
    END;
    CREATE TRIGGER turns_changed AFTER UPDATE OF text ON turns BEGIN
        INSERT INTO turns_text (turns_text, rowid, text) VALUES ('delete', old.id, old.text);
        INSERT INTO turns_text (rowid, text) VALUES (new.id, new.text);
    END;
    """,
    """
    ALTER TABLE sessions ADD COLUMN fusion TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE turns ADD COLUMN fusion TEXT NOT NULL DEFAULT '{}';
    """,
)

VERSION = len(MIGRATIONS)


def version_of(connection: sqlite3.Connection) -> int:
    """The version that the database has; 0 for an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Brings the database to `VERSION`, all or nothing; another program that does the same at once is waited for."""
    if version_of(connection) >= VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number in range(version_of(connection), VERSION):
            for statement in _statements(MIGRATIONS[number]):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """The statements of a script; `executescript` would end the transaction."""
    found: list[str] = []
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n;"):
                found.append(statement)
            statement = ""
    return found
