"""The files of sessions, and `clone`: how conversations are had by reading and writing."""

from __future__ import annotations

from collections.abc import Awaitable

from llambo.core.errors import NotFound
from llambo.namespace import ctls, render
from llambo.namespace.ctl_file import CtlFile, CtlHandle, Refusals
from llambo.namespace.grammar import Call
from llambo.namespace.session import Session, Sessions
from llambo.ninep.files import StaticDirectory, TextFile, TextHandle
from llambo.ninep.messages import OTRUNC
from llambo.ninep.tree import READABLE, Data, Directory, Handle, Node, Result


class SessionDirectory(Directory):
    """`sessions/N`; removing it hangs up."""

    def __init__(self, session: Session, refusals: Refusals) -> None:
        super().__init__(session.name, 0o777)
        self._session = session
        own = Refusals(refusals)
        self.ctl = _SessionCtl(session, own)
        self._files = StaticDirectory(
            session.name,
            [
                self.ctl,
                _Prompt(session, own),
                _AnswerFile("stream", session, own),
                _AnswerFile("reply", session, own),
                _AnswerFile("tally", session, own),
                TextFile("history", lambda: render.conversation(session.messages)),
                TextFile("status", lambda: render.lines(status_of(session))),
                own.file(),
            ],
        )

    def lookup(self, name: str) -> Node:
        """The file of that name. Raises: `NotFound`."""
        if self._session.is_over:
            raise NotFound
        return self._files.lookup(name)

    def entries(self) -> list[Node]:
        """Its files."""
        return [] if self._session.is_over else list(self._files.entries())

    async def remove(self) -> None:
        """Hangs up."""
        await self._session.hang_up()


def status_of(session: Session) -> dict[str, object]:
    """What `sessions/N/status` says."""
    answer = session.answer
    done = answer.done if answer is not None else None
    facts: dict[str, object] = {
        "state": session.state,
        "node": done.node if done else "",
        "tokens": done.tokens if done else len(answer.pieces) if answer is not None else 0,
        "prompt_tokens": done.prompt_tokens if done else 0,
        "cached_tokens": done.cached_tokens if done else 0,
        "ttft_ms": done.ttft_ms if done else 0.0,
    }
    if done is not None:
        facts |= {"model": done.model, "finish_reason": done.finish_reason, "time_ms": done.time_ms}
        facts["failovers"] = done.failovers
    if answer is not None and answer.casts:
        facts |= render.votes(answer.casts[-1], done.fusion if done is not None else None)
    return facts


async def perform(session: Session, call: Call) -> None:
    """Performs one line of `sessions/N/ctl`."""
    if session.is_over:
        raise NotFound
    match call.command:
        case "send":
            session.send()
        case "cancel":
            await session.cancel()
        case "clear":
            await session.clear()
        case "keep":
            session.keep()
        case "hangup":
            await session.hang_up()
        case _:
            session.set(session.settings.changed(call))


class _Counted(Handle):
    """An open file of a session: as long as there is one, the session is not idle."""

    __slots__ = ("_inner", "_is_closed", "_session")

    def __init__(self, session: Session, inner: Handle) -> None:
        session.opened()
        self._session = session
        self._inner = inner
        self._is_closed = False

    def read(self, offset: int, count: int) -> Result[Data]:
        return self._inner.read(offset, count)

    def write(self, offset: int, data: bytes) -> Result[int | None]:
        if self._session.is_over:
            raise NotFound
        return self._inner.write(offset, data)

    def close(self) -> Result[None]:
        if not self._is_closed:
            self._is_closed = True
            self._session.closed()
        return self._inner.close()


class _SessionCtl(CtlFile):
    def __init__(self, session: Session, refusals: Refusals) -> None:
        def text() -> str:
            return session.settings.text() + ("keep\n" if session.is_kept else "")

        super().__init__(ctls.SESSION, lambda call: perform(session, call), refusals, text)
        self._session = session

    def open(self, mode: int) -> Handle:
        return _Counted(self._session, super().open(mode))


class _Prompt(TextFile):
    """The next user message: what is written is added to it; opening it with OTRUNC begins it anew."""

    def __init__(self, session: Session, refusals: Refusals) -> None:
        def write(offset: int, data: bytes) -> Result[int | None]:
            return refusals.noting(lambda: session.add_prompt(data))

        super().__init__("prompt", lambda: session.prompt, write, perm=0o666)
        self._session = session

    def open(self, mode: int) -> Result[Handle]:
        if mode & OTRUNC:
            self._session.drop_prompt()
        return _Counted(self._session, TextHandle(self._session.prompt, self._write))


class _AnswerFile(Node):
    """`stream`, whose opening sends a prompt that waits, `reply` and `tally`."""

    def __init__(self, name: str, session: Session, refusals: Refusals) -> None:
        super().__init__(name, READABLE)
        self._session = session
        self._refusals = refusals

    def open(self, mode: int) -> Handle:
        return self._refusals.noting(self._open)  # type: ignore[return-value] # it is plain

    def _open(self) -> Handle:
        session, note = self._session, self._refusals.note
        if session.is_over:
            raise NotFound

        def timeout_s() -> float:
            return session.settings.timeout_s

        match self.name:
            case "stream":
                handle = session.to_stream().stream(note, timeout_s)
            case "reply":
                handle = session.to_read().whole(note, timeout_s)
            case _:
                handle = session.to_read().tally(note, timeout_s)
        return _Counted(session, handle)


class Clone(Node):
    """Opening it makes a session; the fid is then its ctl, and reading gives its number."""

    def __init__(self, sessions: Sessions, owner: str, directory: Directory, refusals: Refusals) -> None:
        super().__init__("clone", 0o666)
        self._sessions = sessions
        self._owner = owner
        self._directory = directory
        self._refusals = refusals

    def open(self, mode: int) -> Handle:
        """A new session. Raises: `Overloaded`."""
        made = self._refusals.noting(lambda: self._sessions.make(self._owner))
        assert isinstance(made, Session)
        directory = self._directory.lookup(made.name)
        assert isinstance(directory, SessionDirectory)
        return _CloneHandle(made, CtlHandle(directory.ctl, f"{made.name}\n"), directory.ctl)


class _CloneHandle(_Counted):
    __slots__ = ("node",)

    def __init__(self, session: Session, inner: Handle, node: Node) -> None:
        super().__init__(session, inner)
        self.node = node

    async def close(self) -> None:
        closing = super().close()
        if isinstance(closing, Awaitable):
            await closing
        if not self._session.is_kept and not self._session.is_over:
            await self._session.hang_up()
