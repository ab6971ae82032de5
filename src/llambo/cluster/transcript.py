"""What of a relayed stream was delivered, and whether another node's answer to the same request agrees with it.

Pure: server-sent events as bytes in, those that the reader still lacks out. Knows which members of an event are
arbitrary (ids, times, counts of caches) and nothing else of what events mean.

A replay is compared event by event:

1. What is arbitrary may differ. An id that does is remembered, and from then on the first one stands in its place, so
   that the reader sees one id throughout.
2. Log-probabilities are not compared, since their last digits depend on what else a node computes. Tokens are.
3. The choices of one answer (`n`) come in any order, so each is compared with itself.
4. Everything else must be equal, or the replay has parted from what was delivered: `Diverged`, never a silent splice.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from llambo.core.errors import Diverged

END = b"\n\n"
"""What ends an event."""

_OF_THE_NODE = ("usage", "timings", "model", "system_fingerprint", "id_slot", "tokens_cached", "generation_settings")
_PROBABILITIES = ("logprob", "top_logprobs", "prob", "top_probs", "token_logprobs")
_IGNORED = frozenset((*_OF_THE_NODE, *_PROBABILITIES))
_TIMES = frozenset({"created", "created_at", "completed_at"})
_decode = msgspec.json.Decoder().decode


class Transcript:
    """The events that were delivered, in pieces of one or more whole ones.

    `seed` is the one that was drawn for a request without a seed; `is_whole` is set once the stream has ended as it
    should.
    """

    def __init__(self) -> None:
        self.seed: int | None = None
        self.is_whole = False
        self._pieces: list[bytes] = []
        self._replay: _Replay | None = None
        self._renames: list[tuple[bytes, bytes]] = []  # what stands for what: the newer spelling, the first one

    @property
    def count(self) -> int:
        """How many events there are."""
        return sum(piece.count(END) for piece in self._pieces)

    @property
    def size_bytes(self) -> int:
        """What they take."""
        return sum(map(len, self._pieces))

    def events(self, start: int = 0) -> list[bytes]:
        """The events from number `start` on (counted from 0), each with the empty line that ends it."""
        found: list[bytes] = []
        seen = 0
        for piece in self._pieces:
            more = piece.count(END)
            if seen + more > start:
                found += split(piece)[max(0, start - seen) :]
            seen += more
        return found

    def tail(self, most: int) -> list[bytes]:
        """The last `most` events, or what there is."""
        found: list[bytes] = []
        for piece in reversed(self._pieces):
            found[:0] = split(piece)
            if len(found) >= most:
                break
        return found[-most:]

    def head(self, most: int) -> list[bytes]:
        """The first `most` events, or what there is."""
        return [event for piece in self._pieces[:most] for event in split(piece)][:most]

    @property
    def is_replaying(self) -> bool:
        """Whether some of what was delivered is still to come again."""
        return self._replay is not None

    def again(self) -> None:
        """Another node begins with the answer: what is taken from now on is compared first."""
        self._renames = []
        self._replay = _Replay(self.events()) if self._pieces else None

    def take(self, piece: bytes) -> bytes:
        """What the reader still lacks of `piece`, one or more whole events: all of it, its rest, or nothing.

        Raises: `Diverged` when a replay parts from what was delivered.
        """
        if self._replay is not None:
            return self._check(self._replay, piece)
        if self._renames:
            piece = renamed(piece, self._renames)
        self._pieces.append(piece)
        return piece

    def end(self) -> None:
        """The answer is whole. Raises: `Diverged` when a replay ended before all that was delivered came again."""
        if self._replay is not None:
            raise self._replay.diverged()
        self.is_whole = True

    def _check(self, replay: _Replay, piece: bytes) -> bytes:
        fresh = b"".join(event for event in split(piece) if replay.lacks(event))
        if replay.is_over:
            self._replay = None
        self._renames = replay.renames
        if not fresh:
            return b""
        fresh = renamed(fresh, self._renames)
        self._pieces.append(fresh)
        return fresh


class _Replay:
    """A comparison in progress with the events that were delivered."""

    def __init__(self, events: list[bytes]) -> None:
        self.renames: list[tuple[bytes, bytes]] = []
        self._known: dict[str | int, str | int] = {}  # ids and times of this node, and the first one's
        values = [(event, parsed(event)) for event in events]
        values = [(event, value) for event, value in values if not _is_progress(value)]
        self._count = self._left = len(values)
        # Of one answer all events come in one order; of several each has its own.
        self._choices = {_choice(value) for _, value in values} - {None}
        self._is_apart = len(self._choices) > 1
        self._expected: dict[object, deque[tuple[bytes, Any]]] = {}
        for event, value in values:
            self._expected.setdefault(self._lane(value), deque()).append((event, value))

    @property
    def is_over(self) -> bool:
        """Whether all that was delivered has come again."""
        return self._left == 0

    def lacks(self, event: bytes) -> bool:
        """Whether the reader has not got `event` yet. Raises: `Diverged`."""
        if not self._left:
            return True
        if not self._is_apart and renamed(event, self.renames) == self._expected[None][0][0]:
            self._expected[None].popleft()
            self._left -= 1
            return False
        value = parsed(event)
        if _is_progress(value):
            return False
        if self._choices and _choice(value) not in {None, *self._choices}:
            return True  # a choice of which nothing was delivered
        lane = self._lane(value)
        expected = self._expected.get(lane)
        if not expected:
            # One choice may be ahead of the others; the end of the answer may not.
            if lane is None or self._expected.get(None):
                raise self.diverged()
            return True
        old, old_value = expected.popleft()
        if _name(event) != _name(old) or not self._agree(old_value, value):
            raise self.diverged()
        self._left -= 1
        return False

    def diverged(self) -> Diverged:
        """The error for a replay that is another answer."""
        return Diverged(
            f"another node took over and its answer parted from the first one's after {self._count - self._left} of "
            f"the {self._count} events that were delivered; ask again for a whole answer"
        )

    def _lane(self, value: Any) -> object:
        return _choice(value) if self._is_apart else None

    def _agree(self, old: Any, new: Any) -> bool:
        if isinstance(old, dict) and isinstance(new, dict):
            if old.keys() - _IGNORED != new.keys() - _IGNORED:
                return False
            return all(self._members_agree(name, old[name], new[name]) for name in old if name not in _IGNORED)
        if isinstance(old, list) and isinstance(new, list):
            return len(old) == len(new) and all(map(self._agree, old, new))
        return type(old) is type(new) and bool(old == new)

    def _members_agree(self, name: str, old: Any, new: Any) -> bool:
        if isinstance(old, str) and isinstance(new, str) and (name == "id" or name.endswith("_id")):
            return self._same_id(old, new)
        if name in _TIMES and isinstance(old, int) and isinstance(new, int):
            if old != new and new not in self._known:
                self._known[new] = old
                for colon in (":", ": "):
                    self.renames.append((f'"{name}"{colon}{new}'.encode(), f'"{name}"{colon}{old}'.encode()))
            return True
        return self._agree(old, new)

    def _same_id(self, old: str, new: str) -> bool:
        if new not in self._known:
            self._known[new] = old
            if old != new:
                self.renames.append((msgspec.json.encode(new), msgspec.json.encode(old)))
        return self._known[new] == old


def split(piece: bytes) -> list[bytes]:
    """The events of a piece, each with its end."""
    if piece.count(END) == 1:
        return [piece]
    return [event + END for event in piece.split(END)[:-1]]


def renamed(piece: bytes, renames: list[tuple[bytes, bytes]]) -> bytes:
    """The piece with the first node's ids and times in place of another one's."""
    for new, old in renames:
        piece = piece.replace(new, old)
    return piece


def parsed(event: bytes) -> Any:
    """The data of an event as JSON, or as bytes where it is none ("[DONE]")."""
    data = b"\n".join(line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data


def _name(event: bytes) -> bytes:
    return next((line for line in event.split(b"\n") if line.startswith(b"event:")), b"")


def _is_progress(value: Any) -> bool:
    return isinstance(value, dict) and "prompt_progress" in value


def _choice(value: Any) -> object:
    """Which of several answers an event belongs to; None where it is about the whole."""
    if not isinstance(value, dict):
        return None
    choices = value.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0].get("index")
    if "content" in value and "type" not in value:  # llama-server's own /completion
        return value.get("index")
    return None
