"""A chat: questions go to the connection, answers to the screen, both to the store as they come.

Owns the conversation, its settings and what is under way. What commands do is `actions`' business, what is sent
`conversation`'s, where it is shown `screen`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from llambo.core.errors import LlamboError, PromptTooLong, Unreachable
from llambo.core.types import Done, GenerateRequest, Sampling, check_unicode
from llambo.limbot import settings
from llambo.limbot.attachments import Attachment, with_files
from llambo.limbot.connection import Connection, Served
from llambo.limbot.conversation import SUMMARY_MAX_TOKENS, Conversation, budget_for, estimate, most_tokens
from llambo.limbot.journal import Answer, Journal, Settings
from llambo.limbot.records import Session, conversation_of
from llambo.limbot.screen import Screen
from llambo.limbot.shelf import Shelf
from llambo.limbot.store import Store

SMALL_MODEL = "the small built-in model knows Llambo alone; for a bigger: llamboctl pull REF"


class Chat:
    """One chat over a connection. `model` is a reference, "" the default; `system` and `sampling` are its settings.

    With `is_raw_prompt` a question is sent as it is, without a template and without what was said before.
    """

    def __init__(
        self,
        connection: Connection,
        shelf: Shelf,
        screen: Screen,
        *,
        model: str = "",
        system: str = "",
        sampling: Sampling | None = None,
        attached: Sequence[Attachment] = (),
        is_raw_prompt: bool = False,
    ) -> None:
        self.connection = connection
        self.shelf = shelf
        self.screen = screen
        self.model = model
        self.sampling = sampling or Sampling()
        self.conversation = Conversation(system)
        self.attached = list(attached)
        self.journal = Journal(shelf, screen.warn)
        self.served: Served | None = None
        self.is_raw_prompt = is_raw_prompt
        self.is_over = False
        self.last_done: Done | None = None
        self._key = f"limbot-{secrets.token_hex(4)}"  # binds the conversation to a node where there are several
        self._running: asyncio.Task[None] | None = None
        self._summarising: asyncio.Task[None] | None = None
        self._new_summary: tuple[str, int, Conversation] | None = None
        self._is_asking = False
        self._has_told_small = False

    # --- the loop -------------------------------------------------------------------------------------------------

    async def run(self, first: str = "") -> None:
        """Chats until the input ends or `/exit`. `first` is asked before anything is read."""
        for notice in self.shelf.notices:
            self.screen.warn(notice)
        opening = asyncio.create_task(self._open())
        try:
            async with aclosing(self.screen.lines()) as lines:  # type: ignore[type-var] # what gives it is a generator
                if first:
                    await self._perform(first)
                async for line in lines:
                    await self._perform(line)
                    if self.is_over:
                        break
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)

    async def close(self) -> None:
        """Ends what goes on in the background."""
        if self._summarising is not None:
            self._summarising.cancel()
            await asyncio.gather(self._summarising, return_exceptions=True)

    def interrupt(self) -> bool:
        """Stops what is under way; says whether there was something."""
        if self._running is None or self._running.done():
            return False
        self._running.cancel()
        return True

    async def _open(self) -> None:
        """Gets the cluster ready while the first question is being typed; what goes wrong is told with the question."""
        with contextlib.suppress(LlamboError):
            await self.ready()

    async def _perform(self, line: str) -> None:
        from llambo.limbot import actions  # noqa: PLC0415 - it needs what is here

        self._running = asyncio.create_task(actions.perform(self, line))
        try:
            await asyncio.wait({self._running})
        except asyncio.CancelledError:
            self._running.cancel()
            await asyncio.wait({self._running})
            raise
        finally:
            running, self._running = self._running, None
            self.screen.busy("")
        if not running.cancelled():
            running.result()

    # --- who answers ----------------------------------------------------------------------------------------------

    async def ready(self) -> Served:
        """Who answers now; tells of a change."""
        before = self.served
        self.served = served = await self.connection.ready(self.model)
        if before is not None and before.where != served.where:
            self.screen.note(f"now on {served.where}, model {served.model}")
        self.conversation = replace(self.conversation, sends_summary=not served.is_small)
        if served.is_small and not self._has_told_small:
            self._has_told_small = True
            self.screen.note(SMALL_MODEL)
        return served

    def budget(self) -> int:
        """Tokens that a prompt may have; 0: not known."""
        return budget_for(self.served.ctx if self.served else 0, self.sampling.max_tokens)

    # --- a question -----------------------------------------------------------------------------------------------

    async def ask(self, text: str) -> str:
        """Asks, shows the answer as it comes, keeps both, and returns it.

        What had arrived is shown and kept, when it is cancelled too. Raises: what the connection raises.
        """
        check_unicode("the message", text)
        self.screen.busy("…")
        prompt = with_files(text, self.attached)
        self._is_asking = True
        try:
            served = await self.ready()
            conversation = await self._with_question(prompt)
            answer = Answer(prompt, conversation, time.perf_counter(), served_model=served.model)
            self.screen.busy("thinking · Ctrl-C stops")
            await self._answer(answer)
        finally:
            self._is_asking = False
            self._take_summary()
        self._summarise()
        return answer.text

    async def _answer(self, answer: Answer) -> None:
        """Shows the answer and keeps it, whole or not. Raises: what cut it short."""
        storing = asyncio.create_task(self.journal.begin(answer, self.settings()))
        writer = self.screen.answer()
        try:
            await self._stream(answer, writer.feed)
        except asyncio.CancelledError:
            answer.is_stopped = True
        except LlamboError as error:
            answer.problem = error
        finally:
            writer.close()
            self.screen.busy("")
        await self._settle(answer, storing)

    async def _with_question(self, prompt: str) -> Conversation:
        """The conversation with one more question, trimmed so that there is room for the answer.

        The engine is asked for the number of tokens only where it could matter.
        """
        budget = self.budget()
        conversation = self.conversation
        tokens = 0
        if budget and conversation.size + most_tokens(prompt) > budget:
            tokens = await self._count(prompt)
        return conversation.asked(prompt, tokens=tokens).trimmed(budget)

    async def _count(self, text: str) -> int:
        try:
            return len(await self.connection.tokenize(text))
        except LlamboError:  # not every server tells
            return estimate(text)

    async def _stream(self, answer: Answer, feed: object) -> None:
        """Streams the answer; asks again elsewhere when the cluster went away before anything came."""
        assert callable(feed)
        for attempt in range(3):
            assert self.served is not None
            request = GenerateRequest(
                messages=() if self.is_raw_prompt else answer.conversation.messages(),
                raw_prompt=answer.question if self.is_raw_prompt else None,
                model=self.served.model,
                sampling=self.sampling,
                session=self._key,
                interface="limbot",
            )
            try:
                async with aclosing(self.connection.generate(request)) as events:
                    async for event in events:
                        if isinstance(event, Done):
                            answer.done = event
                            continue
                        answer.first = answer.first or time.perf_counter()
                        answer.text += event.text
                        feed(event.text)
                        self.journal.save_soon(answer)
                return
            except Unreachable:
                await self.connection.lost()
                if answer.text or attempt == 2:
                    raise
                await self.ready()
            except PromptTooLong:  # fewer tokens fit than was thought
                if answer.text or attempt == 2 or len(answer.conversation.kept) <= 1:
                    raise
                answer.conversation = answer.conversation.trimmed(answer.conversation.size * 2 // 3)

    async def _settle(self, answer: Answer, storing: asyncio.Task[None]) -> None:
        """Takes the answer, whole or not, into the conversation and the store, and says how it went."""
        done = answer.done
        is_cut = answer.is_stopped or answer.problem is not None
        if answer.text or not is_cut:
            self.attached.clear()
            self.conversation = answer.conversation.answered(
                answer.text,
                tokens=done.tokens if done else 0,
                prompt_tokens=done.prompt_tokens if done else 0,
                interrupted=is_cut,
            )
        self.last_done = done
        if done is not None and not is_cut:
            self.screen.note(_figures(done, self.served))
        elif answer.is_stopped:
            self.screen.note("stopped" if answer.text else "stopped; nothing had arrived")
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C pressed twice: what had arrived is kept all the same
            await asyncio.shield(asyncio.ensure_future(self._keep(answer, storing)))
        if answer.problem is not None:
            raise answer.problem
        if answer.is_stopped:
            raise asyncio.CancelledError

    async def _keep(self, answer: Answer, storing: asyncio.Task[None]) -> None:
        await asyncio.gather(storing, return_exceptions=True)
        self.conversation = await self.journal.end(answer, self.conversation, self.settings())

    def settings(self) -> Settings:
        """What is set, as it is stored."""
        return Settings(self.model, self.conversation.system, settings.to_dict(self.sampling))

    async def store_state(self) -> None:
        """Keeps the settings and what is trimmed."""
        await self.journal.keep_state(self.conversation, self.settings())

    # --- other conversations --------------------------------------------------------------------------------------

    async def resume(self, session: Session, *, with_settings: bool = True) -> None:
        """Goes on with a stored conversation; `with_settings` as it was set then."""
        turns = await self.shelf(Store.turns, session.id)
        self.conversation = conversation_of(session, turns)
        self.journal.session, self.journal.name = session.id, session.name
        if with_settings:
            self.model = session.model
            with contextlib.suppress(LlamboError):  # a value that is out of range by now
                self.sampling = settings.from_dict(session.sampling)

    def begin(self) -> None:
        """Begins a new conversation with the same settings."""
        self.conversation = Conversation(self.conversation.system)
        self.journal.session, self.journal.name, self.last_done = 0, "", None

    # --- the summary ----------------------------------------------------------------------------------------------

    def _summarise(self) -> None:
        """Has the model summarise in the background what is trimmed, or will be soon."""
        if self._summarising is not None and not self._summarising.done():
            return
        upto = self.conversation.to_summarise(self.budget())
        if upto:
            self._summarising = asyncio.create_task(self._summary(upto))

    async def _summary(self, upto: int) -> None:
        served, conversation = self.served, self.conversation
        assert served is not None
        if served.is_small:
            self._new_summary = (conversation.extract(upto), upto, conversation)
            self._take_summary()
            return
        request = GenerateRequest.from_prompt(
            conversation.summary_request(upto, self.budget()),
            model=served.model,
            sampling=Sampling(max_tokens=SUMMARY_MAX_TOKENS, temperature=0.0),
        )
        pieces: list[str] = []
        try:
            async with aclosing(self.connection.generate(replace(request, interface="limbot"))) as events:
                async for event in events:
                    if not isinstance(event, Done):
                        pieces.append(event.text)
            text = " ".join("".join(pieces).split())
            if text:
                self._new_summary = (text, upto, conversation)
                if not self._is_asking:  # else the conversation is about to change, and takes it then
                    self._take_summary()
                    await self.store_state()
        except LlamboError:  # the next turn tries again
            return

    def _take_summary(self) -> None:
        """Puts a summary that has come into the conversation, unless that is another one by now."""
        if self._new_summary is not None:
            (text, upto, of), self._new_summary = self._new_summary, None
            texts = [entry.text for entry in of.entries[:upto]]
            if [entry.text for entry in self.conversation.entries[:upto]] == texts:
                self.conversation = self.conversation.with_summary(text, upto)


def _figures(done: Done, served: Served | None) -> str:
    """The line after an answer."""
    decode_s = (done.time_ms - done.ttft_ms) / 1e3
    rate = f" · {(done.tokens - 1) / decode_s:.0f} tokens/s" if done.tokens > 1 and decode_s > 0 else ""
    cut = " · cut short" if done.finish_reason == "length" else ""
    node = f" on {done.node}" if done.node else f" at {served.where}" if served else ""
    return f"{done.tokens} tokens · first after {done.ttft_ms:.0f} ms{rate} · {done.model}{node}{cut}"
