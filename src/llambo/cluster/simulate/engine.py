"""A simulated node: slots that keep the last conversation each, and times that depend on speed and company.

It caches as llama.cpp's server does: a request goes to the idle slot that shares most with it, when that is a tenth of
the prompt or more, else to the slot that was idle longest. What the slot held goes to a store of spare conversations,
where the least recently used makes room; a spare one that shares more than the slot does is taken back out of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llambo.cluster.simulate.load import Request

SIMILAR = 0.1
CROWDING = 0.15
"""What each further stream on a node adds to the time of every token, as a share."""


@dataclass(slots=True, eq=False)
class Cached:
    """A state: the first `tokens` tokens of a chat."""

    chat: int = 0
    system: int = -1
    system_tokens: int = 0
    tokens: int = 0

    def shared(self, request: Request) -> int:
        """Tokens at the beginning of the prompt that it has; at least one is always computed."""
        if self.chat == request.chat.id:
            same = self.tokens
        elif self.system == request.chat.system:
            same = min(self.system_tokens, self.tokens)
        else:
            return 0
        return min(same, request.prompt + request.emitted - 1)


@dataclass(slots=True, eq=False)
class Slot:
    """Room for one answer at a time."""

    held: Cached = field(default_factory=Cached)
    used: float = -1.0
    request: Request | None = None


@dataclass(slots=True, eq=False)
class Engine:
    """The process of one epoch of a node."""

    node: str
    epoch: int
    speed: float
    decode_tps: float
    prefill_tps: float
    slots: list[Slot] = field(default_factory=list)
    spare: int = 0
    store: list[Cached] = field(default_factory=list)  # least recently used first
    is_hung: bool = False
    busy: int = 0
    served: int = 0
    busy_s: float = 0.0

    def begin(self, request: Request, now: float) -> None:
        """Takes the request into a slot and plans it; its pace is that of this moment. A slot must be idle."""
        request.slot = self._choose(request)
        slot = self.slots[request.slot]
        self._load(slot, request)
        request.cached = slot.held.shared(request)
        chat, tokens = request.chat, request.prompt + request.emitted
        slot.held = Cached(chat.id, chat.system, chat.system_tokens, tokens)
        slot.request = request
        self.busy += 1
        slowness = (1 + CROWDING * (self.busy - 1)) / self.speed
        request.node, request.placed = self.node, now
        request.prefill_s = (tokens - request.cached) / self.prefill_tps * slowness
        request.decode_s = (request.answer - request.emitted) / self.decode_tps * slowness

    def _choose(self, request: Request) -> int:
        best, most, longest_idle = -1, SIMILAR * request.prompt, -1
        oldest = float("inf")
        chat, system = request.chat.id, request.chat.system
        for index, slot in enumerate(self.slots):
            if slot.request is not None:
                continue
            held = slot.held
            if (held.chat == chat or held.system == system) and (shared := held.shared(request)) >= most:
                best, most = index, shared
            if slot.used < oldest:
                longest_idle, oldest = index, slot.used
        return best if best >= 0 else longest_idle

    def _load(self, slot: Slot, request: Request) -> None:
        """Saves what the slot would lose, and takes what fits better out of the store."""
        if not self.spare or slot.held.chat == request.chat.id:
            return
        saved = slot.held
        best, most = None, saved.shared(request)
        chat, system = request.chat.id, request.chat.system
        for spare in self.store:
            if (spare.chat == chat or spare.system == system) and (shared := spare.shared(request)) > most:
                best, most = spare, shared
        if best is not None:
            self.store.remove(best)
            slot.held = best
        if saved.tokens:
            self.store.append(saved)
            del self.store[: -self.spare]

    def end(self, request: Request, now: float) -> None:
        """Frees the request's slot; the cache stays."""
        slot = self.slots[request.slot]
        slot.request = None
        slot.used = now
        slot.held.tokens = request.prompt + request.emitted
        self.busy -= 1
        self.busy_s += now - request.placed

    def running(self) -> list[Request]:
        """The requests on it."""
        return [slot.request for slot in self.slots if slot.request is not None]
