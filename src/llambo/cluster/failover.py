"""One answer's way over several nodes: what each node is asked, and what of its reply the reader still lacks.

Pure: knows requests, token events and texts; no sockets, nodes, clocks or chance.

Three ways lead on from a node that died; `Answer` takes the first that is exact:

1. *Continue*: the prompt's token ids and those of the answer become the prompt of the next node. For greedy decoding,
   and for sampling without a seed, whose random state nobody can ask to be kept.
2. *Replay*: the next node answers from the start; what was delivered already is checked and not given twice. For what
   ids do not carry (a seeded sampler, a grammar, a JSON schema), and on every node that gives no ids.
3. Both: ids are known only up to a character that spans tokens, since llama.cpp then reports the last of them. Greedy
   decoding continues from there and replays the text behind it. Sampling without a seed takes the text behind it as
   the tokens that the tokenizer makes of it: any going-on is right, as long as what was delivered stays.

A replay that parts from what was delivered raises `Diverged`: never a silent splice. Sampling without a seed is given
one, so that even on nodes without ids a replay can succeed; where it does not, it says so.

An answer is exact between nodes of one model and one engine. A node whose context is smaller than that of the nodes
before it is `PromptTooLong` as soon as the answer outgrows it: never a silent cut. Ids are counted from text that was
delivered, never from text that the engine held back (it may begin a stop text), so that such text is made again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from llambo.core.errors import Diverged, PromptTooLong
from llambo.core.types import MAX_SEED, GenerateRequest, Message, Sampling, TokenEvent

Mode = Literal["continue", "replay"]

_UNKNOWN_CTX = 2**62  # of a node that does not tell: nobody can say that it was full


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one node is asked.

    `prompt` is a text, or the ids to go on from. `messages` are the conversation that `prompt` was made of, for nodes
    that take no bare prompt; () when there is none. `sampling.max_tokens` is what is left of it. Without `cache_prompt`
    the engine computes the whole prompt again.
    """

    prompt: str | tuple[int, ...]
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: str = ""
    logprobs: bool = False
    cache_prompt: bool = True


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The last event of a node's answer; `decode_s` is the time that the node took for its tokens, 0 where untold."""

    finish_reason: Literal["stop", "length"]
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    decode_s: float = field(default=0.0, compare=False)


@dataclass(slots=True)
class _Known:
    """The answer's ids from its start: `ids` make exactly its first `chars` characters."""

    ids: list[int] = field(default_factory=list)
    chars: int = 0


class Answer:
    """One answer, whichever nodes give it. `seed` is a fresh random number for it, 0 to `MAX_SEED`.

    `prompt` is the prompt's text. The order of calls is `first`, then `take` for each token event and `end` for the
    last one. When a node fails, `needs_prompt_ids` and `needs_tail_ids` say what to tokenize on the next one, and
    `again` gives what to ask there.
    """

    def __init__(self, request: GenerateRequest, prompt: str, seed: int) -> None:
        sampling = request.sampling
        self._is_greedy = sampling.temperature == 0
        is_bound = bool(request.grammar or request.json_schema)
        self.mode: Mode = "replay" if is_bound or (sampling.seed is not None and not self._is_greedy) else "continue"
        self._max_tokens = sampling.max_tokens
        self._seed = seed if sampling.seed is None else sampling.seed
        self._base = Attempt(
            prompt,
            request.messages,
            # Greedy decoding draws nothing: its seed stays the caller's.
            sampling if self._is_greedy else replace(sampling, seed=self._seed),
            request.stop,
            request.grammar,
            request.json_schema,
            request.logprobs,
        )
        self.failovers = 0
        """How often another node took over after something had been delivered."""
        self._attempts = 0
        self._pieces: list[str] = []  # what was delivered
        self._delivered = 0  # its length in characters
        self._best = _Known()  # of earlier attempts
        self._known: _Known | None = None  # of this attempt; None once an id is missing
        self._start = 0  # tokens of the answer that this attempt's prompt holds
        self._to_check = ""  # delivered already, and still to come again
        self._checked = 0
        self._ctx = 0  # of this attempt's node
        self._is_running = False  # that node gave something
        self._limit = 0  # the largest context of earlier nodes that gave something

    @property
    def text(self) -> str:
        """What was delivered so far."""
        return "".join(self._pieces)

    @property
    def prompt(self) -> str:
        """The prompt's text, for tokenizing on the next node (`add_special` as for a new prompt)."""
        prompt = self._base.prompt
        assert isinstance(prompt, str)
        return prompt

    @property
    def needs_prompt_ids(self) -> bool:
        """Whether `again` on a node with token ids wants those of `prompt`: special tokens parsed and added."""
        return bool(self._continues() and (self._furthest().ids or self.tail))

    @property
    def tail(self) -> str:
        """Text to tokenize for `again` on a node with token ids, bare of added special tokens; "" for none."""
        if self._is_greedy or not self._continues():
            return ""
        return self.text[self._furthest().chars :]

    def first(self, ctx: int = 0) -> Attempt:
        """What the first node is asked; `ctx` is its tokens per slot, 0 for unknown."""
        self._attempts = 1
        self._ctx = ctx
        self._known = _Known()
        return self._base

    def again(
        self,
        *,
        has_ids: bool,
        prompt_ids: list[int] | None = None,
        tail_ids: list[int] | None = None,
        ctx: int = 0,
        prompt: str | None = None,
    ) -> Attempt | StreamEnd:
        """What the next node is asked, or the answer's end where nothing is left to ask.

        `has_ids` says whether that node takes and gives token ids; if so `prompt_ids` and `tail_ids` are its ids of
        `prompt` and `tail` where they are needed. `ctx` is its tokens per slot, 0 for unknown. A `prompt` replaces the
        prompt's text on a node with ids: the first one may have had no template of its own.

        Raises: `PromptTooLong` when prompt and answer do not fit that node, and would have fit an earlier one;
        `ValueError` when ids are needed and missing.
        """
        self._attempts += 1
        self._move_to(ctx)
        if prompt is not None and has_ids:
            self._base = replace(self._base, prompt=prompt)
        self._best = self._furthest()
        self._known = None
        if not (has_ids and self._continues()) or not (self._best.ids or self.tail):
            self.failovers += self._delivered > 0
            return self._from_start(has_ids)
        if prompt_ids is None or (self.tail and tail_ids is None):
            raise ValueError("the ids of the prompt and of the tail are needed to go on")
        if tail_ids and self.tail:
            self._best = _Known([*self._best.ids, *tail_ids], self._delivered)
        emitted = len(self._best.ids)
        held = len(prompt_ids) + emitted
        self._start = emitted
        # A node asked for 0 more tokens gives one, and one whose context is full refuses the prompt.
        if held >= self._limit or self._is_spent(emitted):
            self.failovers += self._delivered > 0
            self._to_check, self._checked = "", 0
            return self._whole(StreamEnd("length", 0, held, 0))
        if 0 < ctx <= held:
            raise self._outgrown()
        self.failovers += self._delivered > 0
        self._known = _Known(list(self._best.ids), self._best.chars)
        self._to_check, self._checked = self.text[self._best.chars :], 0
        sampling = self._base.sampling
        if not self._is_greedy:  # the numbers drawn so far must not come again
            sampling = replace(sampling, seed=(self._seed + self._attempts - 1) % (MAX_SEED + 1))
        if self._max_tokens is not None:
            sampling = replace(sampling, max_tokens=self._max_tokens - emitted)
        return replace(self._base, prompt=(*prompt_ids, *self._best.ids), messages=(), sampling=sampling)

    def take(self, event: TokenEvent) -> list[TokenEvent]:
        """What of `event` the reader lacks: all of it, its rest, or nothing.

        Raises: `Diverged` when a replay parts from what was delivered.
        """
        if not event.text:
            return []
        self._is_running = True
        self._note_ids(event)
        left = len(self._to_check) - self._checked
        if left:
            overlap = min(left, len(event.text))
            if not self._to_check.startswith(event.text[:overlap], self._checked):
                raise self._diverged()
            self._checked += overlap
            if overlap == len(event.text):
                return []
            # Its ids belong partly to what was delivered.
            event = TokenEvent(event.text[overlap:], (), event.logprob)
        self._pieces.append(event.text)
        self._delivered += len(event.text)
        return [event]

    def end(self, event: StreamEnd) -> StreamEnd:
        """The end of the whole answer: tokens over all nodes, the prompt as the caller gave it.

        `cached_tokens` is what the last node had in its cache of the caller's prompt, at most.

        Raises: `PromptTooLong` when this node's context was full and an earlier one's would not have been; `Diverged`
        when a replay ended before all that was delivered had come again.
        """
        is_cut = event.finish_reason == "length" and not self._is_spent(event.tokens + self._start)
        if is_cut and 0 < self._ctx < self._limit:
            raise self._outgrown()
        if self._checked < len(self._to_check):
            raise self._diverged()
        return self._whole(event)

    def _whole(self, event: StreamEnd) -> StreamEnd:
        prompt_tokens = max(0, event.prompt_tokens - self._start)
        return StreamEnd(
            event.finish_reason,
            event.tokens + self._start,
            prompt_tokens,
            min(event.cached_tokens, prompt_tokens),
        )

    def _move_to(self, ctx: int) -> None:
        if self._is_running:
            self._limit = max(self._limit, self._ctx or _UNKNOWN_CTX)
        self._is_running = False
        self._ctx = ctx

    def _is_spent(self, tokens: int) -> bool:
        return self._max_tokens is not None and tokens >= self._max_tokens

    def _outgrown(self) -> PromptTooLong:
        return PromptTooLong(
            f"another node took over, and its context of {self._ctx} tokens is too small for the answer that an "
            "earlier one began; load the model with the same ctx on all its nodes"
        )

    def _from_start(self, has_ids: bool) -> Attempt:
        self._start = 0
        self._known = _Known() if has_ids else None
        self._to_check, self._checked = self.text, 0
        return self._base

    def _continues(self) -> bool:
        return self.mode == "continue" and self._delivered > 0

    def _furthest(self) -> _Known:
        if self._known is not None and self._known.chars >= self._best.chars:
            return self._known
        return self._best

    def _note_ids(self, event: TokenEvent) -> None:
        if self._known is None:
            return
        if event.ids:
            self._known.ids.extend(event.ids)
            self._known.chars += len(event.text)
            return
        if self._known.chars > self._best.chars:
            self._best = self._known
        self._known = None

    def _diverged(self) -> Diverged:
        at = self._delivered - len(self._to_check) + self._checked
        return Diverged(
            f"another node took over and its answer parted from the first one's after {at} of the {self._delivered} "
            "characters that were delivered; ask again for a whole answer"
        )
