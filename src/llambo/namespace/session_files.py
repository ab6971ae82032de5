"""The files of sessions, `clone` and `data`: how conversations are had by reading and writing."""

from __future__ import annotations

from collections.abc import Awaitable

from llambo.core.errors import BadRequest, NameInUse, NotFound, TooLarge
from llambo.core.types import GenerateRequest
from llambo.namespace import ctls, render
from llambo.namespace.answer import Answer, Answers
from llambo.namespace.ctl_file import CtlFile, CtlHandle, Refusals
from llambo.namespace.grammar import Call
from llambo.namespace.session import MAX_PROMPT_BYTES, Session, Sessions, prompt_text
from llambo.ninep.errors import IN_USE
from llambo.ninep.files import StaticDirectory, TextFile, TextHandle
from llambo.ninep.messages import OTRUNC
from llambo.ninep.streams import StreamHandle
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
    return facts


def settings_text(session: Session) -> str:
    """What a read of `sessions/N/ctl` gives: each setting that is not left to the model, as the line that makes it."""
    settings = session.settings
    sampling = settings.sampling
    values: dict[str, object] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "model": settings.model or None,
        "system": settings.system or None,
        "raw": "on" if settings.raw else None,
        "timeout": settings.timeout_s or None,
    }
    text = render.lines({key: value for key, value in values.items() if value is not None})
    return text + ("keep\n" if settings.keep else "")


async def perform(session: Session, call: Call) -> None:  # noqa: PLR0912 - one case per command
    """Performs one line of `sessions/N/ctl`."""
    if session.is_over:
        raise NotFound
    match call.command:
        case "max_tokens" | "seed":
            session.change(**{call.command: call.whole("n")})
        case "temperature":
            session.change(temperature=call.decimal("t"))
        case "top_p":
            session.change(top_p=call.decimal("p"))
        case "model":
            session.change(model=call.text("m"))
        case "system":
            session.change(system=call.text("text"))
        case "raw":
            session.change(raw=call.is_on("on|off"))
        case "timeout":
            seconds = call.decimal("s")
            if not 0 <= seconds <= 86_400:
                raise BadRequest(f"timeout must be between 0 and 86400 seconds, not {seconds:g}")
            session.change(timeout_s=seconds)
        case "send":
            session.send()
        case "cancel":
            await session.cancel()
        case "clear":
            await session.clear()
        case "keep":
            session.change(keep=True)
        case "hangup":
            await session.hang_up()
        case command:
            raise AssertionError(f"the grammar let {command} through")


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
        super().__init__(ctls.SESSION, lambda call: perform(session, call), refusals, lambda: settings_text(session))
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
    """`stream`, whose opening sends a prompt that waits, and `reply`."""

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

        if self.name == "stream":
            return _Counted(session, session.to_stream().stream(note, timeout_s))
        return _Counted(session, session.to_read().whole(note, timeout_s))


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
        if not self._session.settings.keep and not self._session.is_over:
            await self._session.hang_up()


class DataFile(Node):
    """One question and its answer on one fid: write the prompt, then read until the end of the file."""

    def __init__(self, answers: Answers, refusals: Refusals) -> None:
        super().__init__("data", 0o666)
        self._answers = answers
        self._refusals = refusals

    def open(self, mode: int) -> Handle:
        """Ready for a prompt."""
        return _DataHandle(self._answers, self._refusals)


class _DataHandle(Handle):
    __slots__ = ("_answer", "_answers", "_prompt", "_refusals", "_stream")

    def __init__(self, answers: Answers, refusals: Refusals) -> None:
        self._answers = answers
        self._refusals = refusals
        self._prompt = bytearray()
        self._answer: Answer | None = None
        self._stream: StreamHandle | None = None

    def write(self, offset: int, data: bytes) -> Result[int | None]:
        return self._refusals.noting(lambda: self._add(data))

    def _add(self, data: bytes) -> None:
        if self._stream is not None:
            raise NameInUse(f"{IN_USE}: this prompt is being answered; open data anew for the next one")
        if len(self._prompt) + len(data) > MAX_PROMPT_BYTES:
            raise TooLarge(f"a prompt has at most {MAX_PROMPT_BYTES >> 20} MiB")
        self._prompt += data

    def read(self, offset: int, count: int) -> Result[Data]:
        if self._stream is None:
            self._refusals.noting(self._send)
        assert self._stream is not None
        return self._stream.read(offset, count)

    def _send(self) -> None:
        request = GenerateRequest.from_prompt(prompt_text(bytes(self._prompt)))
        answer = self._answers.start(_of_styx(request))
        self._stream = answer.stream(self._refusals.note, lambda: 0.0)

    def close(self) -> Result[None]:
        return self._stream.close() if self._stream is not None else None


def _of_styx(request: GenerateRequest) -> GenerateRequest:
    return GenerateRequest(messages=request.messages, interface="styx")
