"""A chat: questions go to the connection, answers to the screen, both to the store as they come.

Owns the conversation and its settings. What lines do is `actions`' business, what is sent `conversation`'s, where it is
shown `screen`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from llambo.core.errors import LlamboError, NoQuorum, PromptTooLong, Unreachable
from llambo.core.fusion import FusionRequest, VoteCast
from llambo.core.types import Done, GenerateRequest, Sampling, TokenEvent, check_unicode
from llambo.limbot import fusion as votes
from llambo.limbot import settings
from llambo.limbot.attachments import Attachment, with_files
from llambo.limbot.connection import Connection, Served
from llambo.limbot.conversation import Conversation, Entry, budget_for, estimate, most_tokens
from llambo.limbot.journal import Answer, Journal, Settings
from llambo.limbot.oneshot import Writer
from llambo.limbot.records import Session, conversation_of
from llambo.limbot.screen import Screen
from llambo.limbot.shelf import Shelf
from llambo.limbot.silence import Silence
from llambo.limbot.store import Store
from llambo.limbot.summaries import Summaries

STOPPED_BEFORE = "stopped; nothing had arrived"
SMALL_MODEL = "the small built-in model knows only Llambo; for a bigger one: llamboctl pull REF"


class Chat:
    """One chat over a connection. `model` is a reference, "" the default; `system` and `sampling` are its settings.

    With `fusion` several nodes are asked each question, and one answer is made of theirs.

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
        fusion: FusionRequest | None = None,
        attached: Sequence[Attachment] = (),
        is_raw_prompt: bool = False,
    ) -> None:
        self.connection = connection
        self.shelf = shelf
        self.screen = screen
        self.model = model
        self.sampling = sampling or Sampling()
        self.fusion = fusion
        self.conversation = Conversation(system)
        self.attached = list(attached)
        self.journal = Journal(shelf, screen.warn)
        self.served: Served | None = None
        self.is_raw_prompt = is_raw_prompt
        self.is_over = False
        self.last_done: Done | None = None
        self._key = f"limbot-{secrets.token_hex(4)}"  # binds the conversation to a node where there are several
        self._summaries = Summaries(connection)
        self._is_asking = False
        self._has_told_small = False

    async def close(self) -> None:
        """Ends what goes on in the background."""
        await self._summaries.close()

    # --- who answers ----------------------------------------------------------------------------------------------

    async def ready(self) -> Served:
        """Who answers now; tells of a change."""
        before = self.served
        self.served = served = await self.connection.ready(self.model, self.fusion)
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
        self.screen.busy("getting ready · Ctrl-C stops")
        prompt = with_files(text, self.attached)
        self._is_asking = True
        try:
            served, conversation = await self._prepare(prompt)
            answer = Answer(prompt, conversation, time.perf_counter(), served_model=served.model, wanted=self.fusion)
            await self._answer(answer)
        finally:
            self._is_asking = False
            self.conversation = self._summaries.into(self.conversation)
        self._summaries.make(self.conversation, self.budget(), served, self._summary_came)
        return answer.text

    async def _prepare(self, prompt: str) -> tuple[Served, Conversation]:
        """Who answers, and the conversation with the question."""
        try:
            return await self.ready(), await self._with_question(prompt)
        except asyncio.CancelledError:
            self.screen.note(STOPPED_BEFORE)
            raise

    async def _answer(self, answer: Answer) -> None:
        """Shows the answer and keeps it, whole or not. Raises: what cut it short."""
        storing = asyncio.create_task(self.journal.begin(answer, self.settings()))
        writer = self.screen.answer()
        try:
            async with Silence(self.screen.busy, "thinking · Ctrl-C stops") as silence:
                await self._stream(answer, writer, silence)
        except asyncio.CancelledError:
            answer.is_stopped = True
        except LlamboError as error:
            answer.problem = error
        finally:
            self.screen.votes(None)
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

    async def _stream(self, answer: Answer, writer: Writer, silence: Silence) -> None:
        """Streams the answer; asks again elsewhere when the cluster went away before anything came."""
        for attempt in range(3):
            assert self.served is not None
            answer.casts.clear()
            request = GenerateRequest(
                messages=() if self.is_raw_prompt else answer.conversation.messages(),
                raw_prompt=answer.question if self.is_raw_prompt else None,
                model=self.served.model if self.model or answer.wanted is None else "",  # "": every model has a vote
                sampling=self.sampling,
                session=self._key,
                fusion=answer.wanted,
                interface="limbot",
            )
            try:
                async with aclosing(self.connection.generate(request)) as events:
                    async for event in events:
                        match event:
                            case TokenEvent(text):
                                self._heard(answer, text)
                                silence.heard()
                                writer.feed(text)
                                self.journal.save_soon(answer)
                            case VoteCast():
                                answer.casts.append(event)
                                silence.heard(self._show_votes(answer))
                            case Done():
                                answer.done = event
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

    def _heard(self, answer: Answer, text: str) -> None:
        if not answer.first:
            answer.first = time.perf_counter()
            self.screen.votes(None)  # the answer takes their place
        answer.text += text

    def _show_votes(self, answer: Answer) -> str:
        """Shows the votes for an answer of which nothing has come yet; returns the words for how far they are."""
        outcome = answer.outcome
        assert outcome is not None
        if not answer.first:
            self.screen.votes(outcome)
        return votes.progress(outcome)

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
                outcome=votes.summary(answer.outcome) if answer.outcome else "",
            )
        self.last_done = done
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C pressed twice: what had arrived is kept all the same
            await asyncio.shield(asyncio.ensure_future(self._keep(answer, storing)))
        if done is not None and not is_cut:
            self.screen.note(_figures(done, self.served))
        elif answer.is_stopped:
            self.screen.note("stopped" if answer.text else STOPPED_BEFORE)
        if isinstance(answer.problem, NoQuorum) and answer.outcome is not None:
            for row in votes.rows(answer.outcome, self.screen.width):
                self.screen.warn(row)
        if answer.problem is not None:
            raise answer.problem
        if answer.is_stopped:
            raise asyncio.CancelledError

    async def _keep(self, answer: Answer, storing: asyncio.Task[None]) -> None:
        await asyncio.gather(storing, return_exceptions=True)
        self.conversation = await self.journal.end(answer, self.conversation, self.settings())

    async def _summary_came(self) -> None:
        """Takes a new summary in; while a question is under way, which changes the conversation, its end does that."""
        if not self._is_asking:
            self.conversation = self._summaries.into(self.conversation)
            await self.store_state()

    async def summarised(self) -> None:
        """Returns when no summary is being made."""
        await self._summaries.settled()

    def settings(self) -> Settings:
        """What is set, as it is stored."""
        return Settings(
            self.model, self.conversation.system, settings.to_dict(self.sampling), votes.to_dict(self.fusion)
        )

    async def forget(self, entries: Sequence[Entry]) -> None:
        """Takes entries out of the store. On the screen they are gone, so a Ctrl-C comes too late for that."""
        removing = asyncio.ensure_future(self.shelf(Store.remove, [entry.turn for entry in entries if entry.turn]))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(removing)

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
                self.fusion = votes.from_dict(session.fusion)

    def begin(self) -> None:
        """Begins a new conversation with the same settings."""
        self.conversation = Conversation(self.conversation.system)
        self.journal.session, self.journal.name, self.last_done = 0, "", None


def _figures(done: Done, served: Served | None) -> str:
    """The line after an answer."""
    # Votes are counted before anything is shown: the chosen answer then comes as fast as it can be written.
    is_live = done.fusion is None or done.fusion.strategy == "token-average"
    decode_s = (done.time_ms - done.ttft_ms) / 1e3 if is_live else 0.0
    rate = f" · {(done.tokens - 1) / decode_s:.0f} tokens/s" if done.tokens > 1 and decode_s > 0 else ""
    cut = " · cut short" if done.finish_reason == "length" else ""
    node = f" on {done.node}" if done.node else f" at {served.where}" if served else ""
    agreed = f" · {votes.summary(done.fusion)}" if done.fusion else ""
    return f"{done.tokens} tokens · first after {done.ttft_ms:.0f} ms{rate} · {done.model}{node}{cut}{agreed}"
