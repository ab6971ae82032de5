"""Which node has the beginning of a prompt in its cache: chained hashes of text, mapped to nodes.

Pure. A text is cut at fixed offsets, close together at first and then ever farther apart; each hash covers everything
before it, so that two texts share exactly the hashes of their common beginning. The map is a guess about caches that
belong to others: it is bounded, the oldest goes first, and a node's real cached-token counts correct it.

A beginning after which texts part, as conversations do after their system prompt, is no conversation: who always
followed it would send all of them to one node. So it is told apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

FIRST_BLOCK = 128
"""Characters in the first blocks; from `EVEN_UNTIL` on each is an eighth of the text before it."""
EVEN_UNTIL = 2048
MAX_HASHES = 64
"""Covers half a million characters; what lies beyond does not matter for the choice."""
MIN_ENTRIES = 16_384
ENTRIES_PER_NODE = 16
SESSION_SHARE = 4
"""One session is remembered for so many hashes."""
FEW = 2
"""So often have texts parted after a beginning that is everybody's. Once is often a question, put in other words."""
COMMON_CHARS = 8192
"""A longer beginning is worth any crowd: 2,000 tokens take seconds to compute."""


def _cuts() -> tuple[int, ...]:
    cuts, at = [], 0
    for _ in range(MAX_HASHES):
        at += FIRST_BLOCK if at < EVEN_UNTIL else at // 8
        cuts.append(at)
    return tuple(cuts)


CUTS = _cuts()


def chain(text: str) -> tuple[int, ...]:
    """The hashes of the text's beginnings, shortest first; the unfinished last block has none."""
    hashes: list[int] = []
    start, link = 0, b""
    for end in CUTS:
        if end > len(text):
            break
        link = blake2b(link + text[start:end].encode("utf-8", "surrogatepass"), digest_size=8).digest()
        hashes.append(int.from_bytes(link, "big"))
        start = end
    return tuple(hashes)


def conversation_text(messages: Iterable[tuple[str, str]]) -> str:
    """The text that stands for a conversation of (role, content): each turn's text begins the next turn's."""
    return "".join(f"{role}\x1f{content}\x1e" for role, content in messages)


@dataclass(slots=True)
class _Claim:
    """That a node computed prefixes, and when (in computations, not seconds)."""

    node: str
    at: int
    depth: int  # how many hashes the whole text had


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Aged(Generic[K, V]):
    """A bounded map: what was not put again while the newer half filled up is forgotten."""

    def __init__(self) -> None:
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        return self._young.get(key) or self._old.get(key)

    def depth(self, keys: tuple[K, ...]) -> int:
        """How many keys there are up to the last one that is known; 0 where none is."""
        young, old = self._young, self._old
        depth = len(keys)
        for key in reversed(keys):
            if key in young or key in old:
                break
            depth -= 1
        return depth

    def put(self, keys: Iterable[K], value: V, capacity: int) -> None:
        young = self._young
        for key in keys:
            young[key] = value
        if len(young) > capacity // 2:
            self._old, self._young = young, {}

    def values(self) -> Iterator[V]:
        yield from self._young.values()
        yield from self._old.values()


class PrefixIndex:
    """Maps prefixes and sessions to the node that served them last."""

    def __init__(self) -> None:
        self._claims: _Aged[int, _Claim] = _Aged()
        self._sessions: _Aged[str, _Claim] = _Aged()
        self._partings: _Aged[int, int] = _Aged()  # how often a text went another way than the one before it
        self._believed_since: dict[str, int] = {}  # older claims of that node were found to be wrong
        self._clock = 0
        self.capacity = MIN_ENTRIES

    def __len__(self) -> int:
        return len(self._claims) + len(self._sessions) + len(self._partings)

    def size_for(self, nodes: int) -> None:
        """Bounds the map for a cluster of that many nodes."""
        self.capacity = max(MIN_ENTRIES, ENTRIES_PER_NODE * nodes)

    def candidates(self, session: str, hashes: tuple[int, ...]) -> Iterator[tuple[str, int, bool]]:
        """(node, hashes it should have, whether they are everybody's), the best first: the session's own node, then the
        longest matches.
        """
        seen: set[str] = set()
        if session and (claim := self._valid(self._sessions.get(session))):
            seen.add(claim.node)
            yield claim.node, self._depth(claim.node, hashes), False
        for depth in range(self._claims.depth(hashes), 0, -1):
            if (claim := self._valid(self._claims.get(hashes[depth - 1]))) and claim.node not in seen:
                seen.add(claim.node)
                yield claim.node, depth, self._is_common(hashes[depth - 1], depth)

    def best(self, session: str, hashes: tuple[int, ...]) -> str:
        """The first of the candidates that has what is the text's own, "" when there is none."""
        if session and (claim := self._valid(self._sessions.get(session))):
            return claim.node
        return next((node for node, _, is_common in self.candidates("", hashes) if not is_common), "")

    def computed(self, node: str, session: str, hashes: tuple[int, ...]) -> None:
        """The node has answered a prompt with these prefixes."""
        self._clock += 1
        self._part(hashes)
        claim = _Claim(node, self._clock, len(hashes))
        self._claims.put(hashes, claim, self.capacity)
        if session:
            self._sessions.put((session,), claim, self.capacity // SESSION_SHARE)

    def missed(self, node: str, hashes: tuple[int, ...], depth: int) -> None:
        """The node did not have the first `depth` prefixes after all: neither has it what is older than they."""
        claim = self._claims.get(hashes[depth - 1]) if 0 < depth <= len(hashes) else None
        if claim is not None and claim.node == node:
            self._believed_since[node] = max(self._believed_since.get(node, 0), claim.at)

    def forget(self, node: str) -> None:
        """The node's cache is gone."""
        self._believed_since[node] = self._clock

    def drop(self, node: str) -> None:
        """The node is gone for good. Its claims age out; nobody finds a node of that name any more."""
        self._believed_since.pop(node, None)

    def move(self, source: str, target: str) -> None:
        """What the source had in its cache is with the target now."""
        self._clock += 1  # after anything that the target has forgotten
        for claims in (self._claims.values(), self._sessions.values()):
            for claim in claims:
                if claim.node == source and self._valid(claim):
                    claim.node, claim.at = target, self._clock

    def _valid(self, claim: _Claim | None) -> _Claim | None:
        if claim is None or claim.at <= self._believed_since.get(claim.node, 0):
            return None
        return claim

    def _part(self, hashes: tuple[int, ...]) -> None:
        """Counts it where this text leaves the way of the one that had its longest known beginning last."""
        depth = self._claims.depth(hashes)
        claim = self._claims.get(hashes[depth - 1]) if depth else None
        if claim is not None and claim.depth > depth:
            count = (self._partings.get(hashes[depth - 1]) or 0) + 1
            self._partings.put((hashes[depth - 1],), count, self.capacity // SESSION_SHARE)

    def _is_common(self, hashed: int, depth: int) -> bool:
        return CUTS[depth - 1] <= COMMON_CHARS and (self._partings.get(hashed) or 0) >= FEW

    def _depth(self, node: str, hashes: tuple[int, ...]) -> int:
        for depth in range(self._claims.depth(hashes), 0, -1):
            claim = self._claims.get(hashes[depth - 1])
            if claim is not None and claim.node == node:
                return depth
        return 0
