"""A conversation and what of it the model is sent: the budget, the trimming, the summary of what was trimmed.

Pure: entries in, messages out. Knows no engine, clock or database. Between two trims every list of messages begins with
the list before, byte for byte, so that the engine finds it in its KV cache; a trim therefore takes much at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from llambo.core.types import Message, Role

MAX_ENTRIES = 50
"""Entries (questions and answers) that are sent at most."""
TRIM_TO = 0.5
"""A trim leaves this share of the budget, and of `MAX_ENTRIES`: the next one is far away."""
SUMMARISE_AT = 0.75
"""From this share on, what the next trim will take is summarised, so that the summary is there when it is needed."""
LEAVE_THEN = 0.3
"""That trim is to leave this share of the budget, as it is then; what comes until the trim stays as well."""
ANSWER_SHARE = 4
"""The answer may have a quarter of the context, unless `max_tokens` says how much."""
PIN_TOKENS = 16
"""What a template puts around the whole, until a count tells it."""
_BYTES_PER_TOKEN = 3
EXTRACT_CHARS = 60

SUMMARY_HEADING = "Earlier in this conversation: "
SUMMARY_TASK = "Summarise this conversation in at most five short sentences. Keep names, numbers and decisions.\n\n"
SUMMARY_MAX_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Entry:
    """A question or an answer. `tokens` is what it takes in the context; 0: nobody has counted it yet.

    `outcome` tells of the votes for an answer that several nodes were asked for; for people alone.
    """

    role: Role
    text: str
    tokens: int = 0
    turn: int = 0
    interrupted: bool = False
    outcome: str = ""

    @property
    def cost(self) -> int:
        """The tokens counted, or else estimated."""
        return self.tokens or estimate(self.text)


@dataclass(frozen=True, slots=True)
class Conversation:
    """All entries, oldest first. Those before `start` are not sent; `summary` tells of those before `summarised`.

    `system` stays at the beginning whatever is trimmed. `pending` is a summary that waits for the next trim, with the
    number of entries that it covers. `pin_tokens` is what stands before the first entry. Without `sends_summary` the
    summary is for people alone: the smallest models take it for the question.
    """

    system: str = ""
    entries: tuple[Entry, ...] = ()
    start: int = 0
    summary: str = ""
    summarised: int = 0
    pending: tuple[str, int] | None = None
    pin_tokens: int = 0
    sends_summary: bool = True

    @property
    def kept(self) -> tuple[Entry, ...]:
        """The entries that are sent."""
        return self.entries[self.start :]

    @property
    def size(self) -> int:
        """Tokens of what is sent, as far as they are known."""
        pinned = self.pin_tokens or (estimate(self._pinned()) + PIN_TOKENS)
        return pinned + sum(entry.cost for entry in self.kept)

    def messages(self) -> tuple[Message, ...]:
        """What is sent: the system prompt with the summary, then the entries; a question left without answer is not.

        Two questions in a row are more than most chat templates take.
        """
        pinned = self._pinned()
        head = (Message("system", pinned),) if pinned else ()
        return (*head, *(Message(entry.role, entry.text) for entry in answered_only(self.kept)))

    def with_system(self, text: str) -> Conversation:
        """The same with another system prompt."""
        return replace(self, system=text, pin_tokens=0)

    def asked(self, text: str, *, tokens: int = 0, turn: int = 0) -> Conversation:
        """The same with one more question."""
        return replace(self, entries=(*self.entries, Entry("user", text, tokens, turn)))

    def answered(
        self,
        text: str,
        *,
        tokens: int = 0,
        prompt_tokens: int = 0,
        turn: int = 0,
        interrupted: bool = False,
        outcome: str = "",
    ) -> Conversation:
        """The same with the answer to the last question.

        `prompt_tokens` is what the engine counted for all that was sent (0: it told nothing). What that is above the
        entries known before belongs to the question, or where that cannot be, to what stands before the first entry.
        """
        answer = Entry("assistant", text, tokens, turn, interrupted, outcome)
        if not prompt_tokens or not self.entries:
            return replace(self, entries=(*self.entries, answer))
        question = self.entries[-1]
        rest = prompt_tokens - (self.size - question.cost)
        if 1 <= rest <= len(question.text.encode()) + PIN_TOKENS:
            question = replace(question, tokens=rest)
            pin_tokens = self.pin_tokens
        else:
            pinned = prompt_tokens - sum(entry.cost for entry in self.kept)
            pin_tokens = max(1, pinned)
        return replace(self, entries=(*self.entries[:-1], question, answer), pin_tokens=pin_tokens)

    def undone(self) -> Conversation:
        """The same without the last question and its answer; the answer alone where no question stands before it."""
        entries = self.entries
        if entries and entries[-1].role == "assistant":
            entries = entries[:-1]
        if entries and entries[-1].role == "user":
            entries = entries[:-1]
        start = min(self.start, len(entries))
        return replace(self, entries=entries, start=start, pending=None)

    def trimmed(self, budget: int) -> Conversation:
        """The same, small enough for `budget` tokens (0: no limit) and `MAX_ENTRIES`; unchanged when it is already.

        The last entry always stays: whether it fits alone, the engine says.
        """
        if self._fits(budget):
            return self
        planned = replace(self, start=max(self.start, self.pending[1])) if self.pending else self
        is_enough = planned.start > self.start and planned._is_below(SUMMARISE_AT, budget)
        trimmed = planned if is_enough else replace(self, start=self._trim_point(budget, TRIM_TO))
        if self.pending is not None and self.pending[1] <= trimmed.start:
            trimmed = replace(trimmed, summary=self.pending[0], summarised=self.pending[1], pending=None, pin_tokens=0)
        return trimmed

    def to_summarise(self, budget: int) -> int:
        """How many entries a summary should cover now; 0 for none.

        Those that are trimmed already and not covered, or those that the next trim will take, when it is near.
        """
        if self.start > self.summarised:
            return self.start
        if self.pending or self._is_below(SUMMARISE_AT, budget):
            return 0
        point = self._trim_point(budget, LEAVE_THEN)
        return point if point > self.summarised else 0

    def summary_request(self, upto: int, budget: int) -> str:
        """The prompt that asks for a summary of the first `upto` entries; the newest of them, where not all fit."""
        covered, text = self.summarised, self.summary
        room = (budget or 2**30) - estimate(SUMMARY_TASK) - SUMMARY_MAX_TOKENS - PIN_TOKENS
        lines: list[str] = []
        for entry in reversed(self.entries[covered:upto]):
            room -= entry.cost + 4
            if room < 0:
                break
            lines.append(f"{'User' if entry.role == 'user' else 'Assistant'}: {entry.text.strip()}")
        if text:
            lines.append(f"Before that: {text}")
        return SUMMARY_TASK + "\n".join(reversed(lines)) if lines else ""

    def extract(self, upto: int) -> str:
        """What was asked in the first `upto` entries: the summary of a model that cannot make one."""
        asked = dict.fromkeys(" ".join(entry.text.split()) for entry in self.entries[:upto] if entry.role == "user")
        questions = [text if len(text) <= EXTRACT_CHARS else f"{text[:EXTRACT_CHARS]}…" for text in asked]
        return " · ".join(questions)

    def with_summary(self, text: str, upto: int) -> Conversation:
        """The same with a summary of the first `upto` entries.

        It is sent from now on when they are trimmed already, and from the next trim on when they are not.
        """
        if upto <= self.start:
            return replace(self, summary=text, summarised=upto, pending=None, pin_tokens=0)
        return replace(self, pending=(text, upto))

    def _pinned(self) -> str:
        summary = f"{SUMMARY_HEADING}{self.summary}" if self.summary and self.sends_summary else ""
        return "\n\n".join(part for part in (self.system, summary) if part)

    def _fits(self, budget: int) -> bool:
        return len(self.kept) <= MAX_ENTRIES and (not budget or self.size <= budget)

    def _is_below(self, share: float, budget: int) -> bool:
        return len(self.kept) < share * MAX_ENTRIES and (not budget or self.size < share * budget)

    def _trim_point(self, budget: int, share: float) -> int:
        """Where the kept part begins after a trim that leaves a share of the room: always at a question."""
        most = int(MAX_ENTRIES * share)
        room = int(budget * share) if budget else 2**62
        size = self.size
        point = self.start
        last = max((n for n, entry in enumerate(self.entries) if entry.role == "user"), default=0)
        while point < last and (size > room or len(self.entries) - point > most or self.entries[point].role != "user"):
            size -= self.entries[point].cost
            point += 1
        return point


def estimate(text: str) -> int:
    """A guess at the tokens of a text, for as long as the engine has not counted it."""
    return math.ceil(len(text.encode()) / _BYTES_PER_TOKEN)


def most_tokens(text: str) -> int:
    """More tokens than this a text never has: each stands for one byte at least."""
    return len(text.encode()) + PIN_TOKENS


def budget_for(ctx: int, max_tokens: int | None) -> int:
    """Tokens that a prompt may have in a context of `ctx` tokens (0: unknown, no limit), with room for the answer."""
    if not ctx:
        return 0
    reserve = min(max_tokens or ctx // ANSWER_SHARE, ctx // 2)
    return ctx - reserve


def answered_only(entries: Iterable[Entry]) -> list[Entry]:
    """The entries without questions that got no answer, and without the empty answers; the last question stays."""
    found: list[Entry] = []
    for entry in entries:
        if entry.role == "assistant" and not entry.text:
            if found and found[-1].role == "user":
                found.pop()
            continue
        if entry.role == "user" and found and found[-1].role == "user":
            found.pop()
        found.append(entry)
    return found
