"""One text out of several nodes' next-token distributions: their mean, the choice of a token, and the text it makes.

Pure. A token is chosen as llama.cpp does by default: the likeliest 40, then top_p, then min_p, then the temperature.
Averaging the members of an ensemble token by token: Sennrich et al. 2016, arXiv:1511.06709, among many.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llambo.cluster.balancer import Chance
from llambo.core.errors import BadRequest
from llambo.core.types import Sampling, TokenEvent

TOP_K = 40
"""So many tokens of each node are looked at, and of their mean: llama.cpp's default."""
DEFAULT_TEMPERATURE, DEFAULT_TOP_P, MIN_P = 0.8, 0.95, 0.05
"""llama.cpp's defaults too."""

_UTF8 = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may come next. `piece` is its text in bytes, b"" for one that has none, as a token of control."""

    id: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class NextToken:
    """What one node makes of what comes next: the likeliest tokens, the first its own choice.

    `ends` says that the answer is over for the node if its own choice is taken.
    """

    candidates: tuple[Candidate, ...]
    ends: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """The token that was chosen: its share of the mean, and the weight of the nodes whose own choice it is, 0 to 1."""

    id: int
    piece: bytes
    logprob: float
    agreement: float
    ends: bool


def choose(views: Sequence[tuple[NextToken, float]], sampling: Sampling, chance: Chance) -> Chosen:
    """The next token of nodes with (view, weight); there is one at least, and each has a candidate.

    Raises: `BadRequest` where one id is two texts: the nodes' models share no vocabulary.
    """
    total = sum(weight for _, weight in views)
    pieces: dict[int, bytes] = {}
    mean: dict[int, float] = {}
    for view, weight in views:
        for candidate in view.candidates:
            if pieces.setdefault(candidate.id, candidate.piece) != candidate.piece:
                raise no_shared_vocabulary()
            mean[candidate.id] = mean.get(candidate.id, 0.0) + weight / total * math.exp(candidate.logprob)
    token = _drawn(mean, sampling, chance)
    fans = [(view, weight) for view, weight in views if view.candidates[0].id == token]
    return Chosen(
        token,
        pieces[token],
        math.log(mean[token]) if mean[token] > 0 else -math.inf,
        sum(weight for _, weight in fans) / total,
        # A token without text is one of control: nothing that can be read comes after it.
        not pieces[token] or any(view.ends for view, _ in fans),
    )


def no_shared_vocabulary() -> BadRequest:
    """The error for models whose tokens are not the same."""
    return BadRequest("token-average takes models that share a vocabulary, and these do not; name one with model")


def _drawn(mean: Mapping[int, float], sampling: Sampling, chance: Chance) -> int:
    ranked = sorted(mean.items(), key=lambda item: (-item[1], item[0]))[:TOP_K]
    temperature = DEFAULT_TEMPERATURE if sampling.temperature is None else sampling.temperature
    most = ranked[0][1]
    if temperature == 0 or most <= 0:
        return ranked[0][0]
    kept = _nucleus(ranked, DEFAULT_TOP_P if sampling.top_p is None else sampling.top_p)
    likely = [(token, share / most) for token, share in kept if share >= MIN_P * most]
    shares = [share ** (1 / temperature) for _, share in likely]
    at = chance.random() * sum(shares)
    for (token, _), share in zip(likely, shares, strict=True):
        at -= share
        if at < 0:
            return token
    return likely[-1][0]  # rounding


def _nucleus(ranked: Iterable[tuple[int, float]], top_p: float) -> list[tuple[int, float]]:
    """The likeliest that together have a share of `top_p`; one at least."""
    kept = list(ranked)
    bound = top_p * sum(share for _, share in kept)
    have = 0.0
    for count, (_, share) in enumerate(kept, start=1):
        have += share
        if have >= bound:
            return kept[:count]
    return kept


@dataclass(slots=True)
class _Piece:
    text: str
    ids: tuple[int, ...]
    logprob: float


@dataclass(slots=True)
class Text:
    """The text of the tokens so far, given out as far as it is sure: whole characters, and no beginning of a stop text.

    `is_stopped` once a text of `stops` has come; what is before it is the answer.
    """

    stops: tuple[str, ...]
    is_stopped: bool = False
    _held: list[_Piece] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)  # of a character that is not whole yet
    _logprob: float = 0.0
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: _UTF8("replace"))

    def take(self, token: Chosen) -> list[TokenEvent]:
        """What can be given out now that this token has come."""
        self._ids.append(token.id)
        self._logprob += token.logprob
        text = self._decoder.decode(token.piece)
        if not text:
            return []
        self._held.append(_Piece(text, tuple(self._ids), self._logprob))
        self._ids, self._logprob = [], 0.0
        held = "".join(piece.text for piece in self._held)
        found = min((at for stop in self.stops if stop and (at := held.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.is_stopped = True
            return self._given(found, is_last=True)
        return self._given(len(held) - _overlap(held, self.stops))

    def rest(self) -> list[TokenEvent]:
        """What was held back, now that no more comes; a character that is not whole is lost."""
        return self._given(sum(len(piece.text) for piece in self._held), is_last=True)

    def _given(self, chars: int, *, is_last: bool = False) -> list[TokenEvent]:
        """The pieces within the first `chars` characters; of the one across the end its part, if it is the last."""
        events = []
        while self._held and chars >= len(self._held[0].text):
            piece = self._held.pop(0)
            chars -= len(piece.text)
            events.append(TokenEvent(piece.text, piece.ids, piece.logprob))
        if is_last and self._held and chars:
            events.append(TokenEvent(self._held[0].text[:chars]))
        return events


def _overlap(text: str, stops: Iterable[str]) -> int:
    """How many characters at the end of `text` may begin a stop text."""
    return max(
        (size for stop in stops for size in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:size])),
        default=0,
    )
