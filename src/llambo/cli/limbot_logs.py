"""`limbot logs`: lists what was said in all chats of this home, searches it, writes it out and reads it in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llambo.cli import common
from llambo.core.errors import BadRequest, LlamboError

if TYPE_CHECKING:
    from llambo.limbot.records import Hit, Session, Turn
    from llambo.limbot.store import Store

app = typer.Typer(**common.APP_OPTIONS)
MAX_IMPORT_BYTES = 256 << 20


@app.command()
def logs(
    words: Annotated[list[str] | None, typer.Argument(help="What to search for; alone, lists conversations.")] = None,
    number: Annotated[int, typer.Option("-n", metavar="N", help="So many at most.", min=1, max=10**6)] = 20,
    session: Annotated[str, typer.Option("--session", metavar="N|NAME", help="Show this conversation.")] = "",
    export: Annotated[str, typer.Option(metavar="FORMAT", help="Write markdown, json or text.")] = "",
    read: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Read a JSON export in; - is a pipe.")
    ] = None,
    as_json: common.Json = False,
    no_color: common.NoColor = False,
) -> None:
    """Lists the conversations of this home, or what was said in them."""
    from llambo.core import paths
    from llambo.limbot.store import Store

    if read is not None and (words or session or export):
        raise BadRequest("--import goes alone: it reads conversations in, and shows none")
    store = Store.open(paths.home() / "limbot.db")
    try:
        for notice in store.notices:
            sys.stderr.write(f"limbot logs: {notice}\n")
        if read is not None:
            _import(store, read)
        elif export:
            _export(store, export, session, number)
        elif words:
            _search(store, " ".join(words), session, number, as_json=as_json)
        elif session:
            _show(store, session, as_json=as_json)
        else:
            _list(store, number, as_json=as_json)
    finally:
        store.close()


def _list(store: Store, number: int, *, as_json: bool) -> None:
    from llambo.limbot.actions import session_line

    sessions = store.sessions(number)
    if as_json:
        common.print_json([_session(session) for session in sessions])
        return
    _print([session_line(session) for session in reversed(sessions)] or ["no conversation is stored yet"])


def _show(store: Store, wanted: str, *, as_json: bool) -> None:
    from llambo.limbot import transfer

    session = store.session(wanted)
    turns = store.turns(session.id)
    if as_json:
        common.print_json({**_session(session), "turns": [_turn(turn) for turn in turns]})
        return
    _print(transfer.to_markdown(session, turns).splitlines())


def _search(store: Store, words: str, wanted: str, number: int, *, as_json: bool) -> None:
    hits = store.search(words, number if not wanted else 10**6)
    if wanted:
        chosen = store.session(wanted).id
        hits = [hit for hit in hits if hit.session.id == chosen][:number]
    if as_json:
        common.print_json([_hit(hit) for hit in hits])
        return
    _print(
        [f"{hit.session.name or hit.session.id}: {' '.join(hit.snippet.split())}" for hit in hits]
        or [f"nothing that was said has: {words}"]
    )


def _export(store: Store, form: str, wanted: str, number: int) -> None:
    from llambo.limbot import transfer

    sessions = [store.session(wanted)] if wanted else store.sessions(number)
    form = {"md": "markdown", "txt": "text"}.get(form, form)
    sys.stdout.write(transfer.exported(form, [(session, store.turns(session.id)) for session in sessions]))


def _import(store: Store, path: Path) -> None:
    from llambo.limbot import transfer

    if not store.lasts:
        raise LlamboError("nothing can be stored in this home, so nothing can be read in")
    try:
        file = sys.stdin.buffer if str(path) == "-" else path.open("rb")
        with file:
            data = file.read(MAX_IMPORT_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_IMPORT_BYTES:
        raise BadRequest(f"{path} has more than {MAX_IMPORT_BYTES} bytes, the most that is read in at once")
    try:
        stored = transfer.from_json(data.decode())
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path} is not UTF-8 text (byte {error.start})") from None
    numbers = store.take_in(stored)
    _print([f"read in: {len(numbers)} conversations, {sum(len(turns) for _, turns in stored)} entries"])


def _print(lines: list[str]) -> None:
    from llambo.core.harmless import harmless

    clean = harmless if sys.stdout.isatty() else str
    sys.stdout.write("".join(f"{clean(line)}\n" for line in lines))


def _session(session: Session) -> dict[str, object]:
    names = ("id", "name", "title", "created", "updated", "model", "system", "turns")
    return {name if name != "turns" else "entries": getattr(session, name) for name in names}


def _turn(turn: Turn) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(turn), "fusion": turn.fusion or None}


def _hit(hit: Hit) -> dict[str, object]:
    return {"session": hit.session.id, "name": hit.session.name, "snippet": hit.snippet, **_turn(hit.turn)}
