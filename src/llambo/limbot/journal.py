"""What a chat writes down: each question as it is asked, each answer as it grows, and the state to go on with.

Knows the store and no cluster. A store that fails is told of once, and the chat goes on without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from llambo.core.errors import LlamboError, NoQuorum
from llambo.core.fusion import Fusion, FusionRequest, VoteCast
from llambo.core.fusion_document import fusion_document
from llambo.core.types import Done
from llambo.limbot.conversation import Conversation
from llambo.limbot.fusion import so_far
from llambo.limbot.records import Turn
from llambo.limbot.shelf import Shelf
from llambo.limbot.store import Store

SAVE_EVERY_S = 0.4
"""How often an answer that grows is stored: the end of the process costs no more than that."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is set in a chat: the model's reference, the system prompt, the parameters, what several nodes are asked."""

    model: str
    system: str
    sampling: dict[str, Any] = field(default_factory=dict)
    fusion: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    """An answer under way. `casts` are the votes of the nodes that were asked for it, where these are several."""

    question: str
    conversation: Conversation
    started: float
    text: str = ""
    first: float = 0.0
    done: Done | None = None
    turn: int = 0
    question_turn: int = 0
    problem: LlamboError | None = None
    is_stopped: bool = False
    served_model: str = ""
    saved: float = 0.0
    wanted: FusionRequest | None = None
    casts: list[VoteCast] = field(default_factory=list)

    @property
    def outcome(self) -> Fusion | None:
        """What became of the votes, or how far they are; None where there are none."""
        if self.done is not None:
            return self.done.fusion
        return so_far(self.wanted, self.casts) if self.wanted is not None and self.casts else None


class Journal:
    """The chat's part of the store. `session` is 0 until the first question; `warn` tells what went wrong."""

    def __init__(self, shelf: Shelf, warn: Callable[[str], None]) -> None:
        self.session = 0
        self.name = ""
        self._shelf = shelf
        self._warn = warn
        self._has_told = False
        self._saving: set[asyncio.Task[None]] = set()

    async def begin(self, answer: Answer, settings: Settings) -> None:
        """Keeps the question, and a place for the answer, while the engine is at work."""
        try:
            if not self.session:
                self.session = await self._shelf(
                    Store.begin,
                    system=settings.system,
                    model=settings.model,
                    sampling=settings.sampling,
                    fusion=settings.fusion,
                )
            question = Turn("user", answer.question, time.time(), session=self.session)
            answer.question_turn = await self._shelf(Store.add, self.session, question)
            empty = replace(self._turn(answer, settings), interrupted=True)
            answer.turn = await self._shelf(Store.add, self.session, empty, is_open=True)
        except LlamboError as error:
            self._failed(error)

    def save_soon(self, answer: Answer) -> None:
        """Keeps what there is of the answer, where that is due."""
        now = time.monotonic()
        if answer.turn and now - answer.saved > SAVE_EVERY_S:
            answer.saved = now
            task = asyncio.create_task(self._save(answer.turn, answer.text))
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)

    async def end(self, answer: Answer, conversation: Conversation, settings: Settings) -> Conversation:
        """Keeps the answer as it is, and the state; the conversation with the numbers of its last turns."""
        if not answer.turn:
            return conversation
        is_in_it = len(conversation.entries) >= 2 and conversation.entries[-1].text == answer.text
        if is_in_it:
            *before, question, reply = conversation.entries
            question, reply = replace(question, turn=answer.question_turn), replace(reply, turn=answer.turn)
            conversation = replace(conversation, entries=(*before, question, reply))
        try:
            await self._shelf(Store.finish, answer.turn, self._turn(answer, settings))
            if is_in_it:
                await self._shelf(Store.count_tokens, {answer.question_turn: conversation.entries[-2].tokens})
            await self.keep_state(conversation, settings)
        except LlamboError as error:
            self._failed(error)
        return conversation

    async def keep_state(self, conversation: Conversation, settings: Settings) -> None:
        """Keeps what is set and what is trimmed. Raises: `LlamboError`."""
        if self.session:
            await self._shelf(
                Store.change,
                self.session,
                system=settings.system,
                model=settings.model,
                sampling=settings.sampling,
                fusion=settings.fusion,
                first_kept=_turn_at(conversation, conversation.start),
                summary=conversation.summary,
                summarised=_turn_at(conversation, conversation.summarised),
                pin_tokens=conversation.pin_tokens,
            )

    async def _save(self, turn: int, text: str) -> None:
        try:
            await self._shelf(Store.grow, turn, text)
        except LlamboError as error:
            self._failed(error)

    def _turn(self, answer: Answer, settings: Settings) -> Turn:
        done = answer.done
        outcome, lacks_quorum = answer.outcome, isinstance(answer.problem, NoQuorum)
        first_ms = (answer.first - answer.started) * 1e3 if answer.first else 0.0
        return Turn(
            "assistant",
            answer.text,
            time.time(),
            session=self.session,
            model=done.model if done else answer.served_model,
            node=done.node if done else "",
            sampling=settings.sampling,
            tokens=done.tokens if done else 0,
            prompt_tokens=done.prompt_tokens if done else 0,
            cached_tokens=done.cached_tokens if done else 0,
            ttft_ms=done.ttft_ms if done else first_ms,
            time_ms=done.time_ms if done else (time.perf_counter() - answer.started) * 1e3,
            finish=done.finish_reason if done else NoQuorum.code if lacks_quorum else "cancelled",
            interrupted=done is None,
            fusion=fusion_document(outcome) if outcome else {},
        )

    def _failed(self, error: LlamboError) -> None:
        if not self._has_told:
            self._has_told = True
            self._warn(f"{error.message}; the chat goes on and is not kept")


def _turn_at(conversation: Conversation, index: int) -> int:
    """The stored turn of that entry; 0 for the first, and where it is not stored."""
    return conversation.entries[index].turn if 0 < index < len(conversation.entries) else 0
