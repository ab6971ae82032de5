"""Conversations: their messages and answers. Knows nothing of files or of how lines are read.

A session lives until it is hung up: by its owner, by the end of the fid that made it unless it is kept, or because
nobody has had a file of it open for the idle limit.
"""

from __future__ import annotations

import asyncio

from llambo.core.errors import BadRequest, NameInUse, NotFound, Overloaded, TooLarge
from llambo.core.quoted import unquoted
from llambo.core.types import Message
from llambo.namespace.answer import Answer, Answers
from llambo.namespace.settings import Settings

MAX_PROMPT_BYTES = 4 << 20
MAX_SESSIONS = 4096


class Session:
    """One conversation. `owner` is who made it: "" for the owner of the socket, else a token's id."""

    def __init__(self, name: str, owner: str, sessions: Sessions) -> None:
        self.name = name
        self.owner = owner
        self.settings = Settings()
        self.is_kept = False
        self.messages: list[Message] = []
        self.answer: Answer | None = None
        self.is_over = False
        self.version = 0
        self._prompt = bytearray()
        self._sessions = sessions
        self._open_files = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def prompt(self) -> bytes:
        """What is not sent yet."""
        return bytes(self._prompt)

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being generated."""
        return self.answer is not None and self.answer.is_running

    @property
    def state(self) -> str:
        """ "idle", "pending" (a prompt is not sent yet), or how the answer is: "waiting", "streaming", "done" …"""
        if self._prompt and not self.is_answering:
            return "pending"
        return self.answer.state if self.answer is not None else "idle"

    def set(self, settings: Settings) -> None:
        """Other settings from now on."""
        self.settings = settings
        self.version += 1

    def keep(self) -> None:
        """It outlives the fid that made it."""
        self.is_kept = True
        self.version += 1

    def add_prompt(self, data: bytes) -> None:
        """More of the next user message. Raises: `TooLarge`."""
        if len(self._prompt) + len(data) > MAX_PROMPT_BYTES:
            raise TooLarge(f"a prompt has at most {MAX_PROMPT_BYTES >> 20} MiB")
        self._prompt += data
        self.version += 1

    def drop_prompt(self) -> None:
        """The next user message begins anew."""
        self._prompt.clear()

    def send(self) -> Answer:
        """Sends the prompt; returns its answer, which has begun.

        Raises: `BadRequest` without a prompt or for one that is no text, `NameInUse` while another answer is generated,
        `Overloaded`.
        """
        if self.is_answering:
            raise NameInUse("an answer is being generated; read it to its end, or cancel it")
        user = Message("user", prompt_text(self.prompt))
        request = self.settings.request(user, self.messages, f"styx-{self.name}")
        sent = self.prompt
        self.answer = self._sessions.answers.start(
            request, lambda answer: self._ended(answer, user, sent), owner=self.owner
        )
        self._prompt.clear()
        self.version += 1
        return self.answer

    def to_stream(self) -> Answer:
        """The answer that a reader of the stream wants: to the prompt, where one waits, else the last one.

        Raises: `BadRequest` where there is neither, and what `send` raises.
        """
        if self._prompt and not self.is_answering:
            return self.send()
        return self.to_read()

    def to_read(self) -> Answer:
        """The answer that is being generated, or the last one. Raises: `BadRequest` before the first."""
        if self.answer is None:
            raise BadRequest("nothing was asked yet: write to prompt, then open stream, or send")
        return self.answer

    async def cancel(self) -> None:
        """Ends the answer; returns once its slot is free."""
        if self.answer is not None and not self.answer.task.done():
            self.answer.cancel()
            await asyncio.wait([self.answer.task])

    async def clear(self) -> None:
        """Forgets the conversation."""
        await self.cancel()
        self.messages.clear()
        self._prompt.clear()
        self.answer = None
        self.version += 1

    async def hang_up(self) -> None:
        """Ends the session."""
        self.is_over = True
        self._set_timer(None)
        self._sessions.forget(self)
        await self.cancel()

    def opened(self) -> None:
        """One more of its files is open. Raises: `NotFound` once the session is over."""
        if self.is_over:
            raise NotFound
        self._open_files += 1
        self._set_timer(None)

    def closed(self) -> None:
        """One of its files is closed."""
        self._open_files -= 1
        self._watch_idleness()

    def _ended(self, answer: Answer, user: Message, sent: bytes) -> None:
        self.version += 1
        if answer.text:
            self.messages += [user, Message("assistant", answer.text)]
        elif answer.state == "done":
            self.messages += [user, Message("assistant", "")]
        elif answer is self.answer:
            self._prompt[:0] = sent  # nothing came of it: it can be sent again
        self._watch_idleness()

    def _watch_idleness(self) -> None:
        if not self._open_files and not self.is_answering and not self.is_over:
            self._set_timer(self._sessions.idle_s)

    def _set_timer(self, delay_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if delay_s is None else loop.call_later(delay_s, self._sessions.give_up, self)


class Sessions:
    """The sessions of a namespace by name; a number is never used twice. `idle_s` is the idle limit in seconds."""

    def __init__(self, answers: Answers, *, idle_s: float) -> None:
        self.answers = answers
        self.idle_s = idle_s
        self.by_name: dict[str, Session] = {}
        self._made = 0
        self._endings: set[asyncio.Task[None]] = set()

    def make(self, owner: str) -> Session:
        """A new session. Raises: `Overloaded`."""
        if len(self.by_name) >= MAX_SESSIONS:
            raise Overloaded(f"there are {MAX_SESSIONS} sessions already; hang up those that nobody needs")
        session = self.by_name[str(self._made)] = Session(str(self._made), owner, self)
        self._made += 1
        return session

    def of(self, owner: str | None) -> dict[str, Session]:
        """Those of one owner, None for all."""
        if owner is None:
            return self.by_name
        return {name: session for name, session in self.by_name.items() if session.owner == owner}

    def forget(self, session: Session) -> None:
        """It is over."""
        self.by_name.pop(session.name, None)

    def give_up(self, session: Session) -> None:
        """Hangs up on a session that was idle for too long."""
        task = asyncio.get_running_loop().create_task(session.hang_up())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def close(self) -> None:
        """Ends all of them."""
        for session in list(self.by_name.values()):
            await session.hang_up()
        if self._endings:
            await asyncio.wait(self._endings)


def prompt_text(data: bytes) -> str:
    """The prompt in what was written, without the newlines around it or as a JSON string. Raises: `BadRequest`."""
    try:
        text = unquoted(data.decode().strip("\n"))
    except UnicodeDecodeError as error:
        raise BadRequest(f"a prompt is UTF-8 text, byte {error.start} is none") from None
    if not text.strip():
        raise BadRequest("the prompt is empty: write it first")
    return text
