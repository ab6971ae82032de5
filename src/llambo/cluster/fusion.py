"""How one answer comes of several: the count of each strategy, and when it is settled.

Pure: no clock, no chance, no I/O. A tally takes ballots as they come and says at any moment which answer leads, by how
much, and whether what is still to come could change that. Sums are `math.fsum`'s, which hang on no order. Asking the
nodes is `fusing`'s; a text that several nodes write together, token by token, is `averaging`'s. docs/fusion.md names
the papers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llambo.cluster.comparing import Grams, both_ways, chars_of, normalised
from llambo.core.errors import BadRequest
from llambo.core.fusion import Strategy

_LEAST_LOGPROB = -700.0
"""Servers say -9999 for "hardly ever": its exponential is no number to divide by."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One voter's answer. `voter` is its number, from 0; `logprob` the mean over its tokens (None: not told).

    `text` is what it is compared by: None where the caller's pattern found nothing to compare. `weight` is the node's.
    """

    voter: int
    text: str | None
    logprob: float | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What a tally goes by. `need` of the `asked` must agree for a quorum; `heaviest` is the most that a node weighs.

    With `is_ordered` the text does not hang on who answers first, so that a seeded vote is repeatable: of those who
    agree the voter of the lowest number is chosen, and waited for.
    """

    strategy: Strategy
    asked: int
    need: int
    is_ordered: bool = False
    heaviest: float = 1.0


def needed(asked: int, wanted: int, configured: int) -> int:
    """How many of those asked must agree: the request's number, else the configured one, else more than half.

    Raises: `BadRequest` for more than are asked.
    """
    need = wanted or configured or asked // 2 + 1
    if need > asked:
        raise BadRequest(f"a quorum of {need} cannot come of {asked} nodes; ask more nodes or want fewer to agree")
    return need


class Tally(Protocol):
    """The count so far. Each voter is told of once, by `cast` or by `failed`."""

    def cast(self, ballot: Ballot) -> None:
        """A voter has answered."""
        ...

    def failed(self, voter: int) -> None:
        """A voter will not answer."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether no voter that is still to come can change the chosen answer."""
        ...

    @property
    def is_hopeless(self) -> bool:
        """Whether so few agree that no quorum can come of it any more."""
        ...

    @property
    def agreement(self) -> float:
        """The leading answer's share, 0 to 1, of those who answered or failed; for a quorum, of all asked."""
        ...

    @property
    def leading(self) -> int:
        """How many voters agree on the leading answer."""
        ...

    def chosen(self) -> Ballot:
        """The leading answer; there must be one."""
        ...

    def weight_of(self, ballot: Ballot) -> float:
        """What a ballot that was cast counts for, as far as it is known now."""
        ...


def tally_for(rules: Rules) -> Tally:
    """An empty tally. `token-average` has none: there is one answer only."""
    return Likeness(rules) if rules.strategy == "weighted-average" else Votes(rules)


@dataclass(slots=True)
class _Standing:
    """A group of voters whose answers are the same, and what it counts for."""

    ballots: list[Ballot]
    weight: float

    @property
    def rank(self) -> tuple[float, float, int]:
        """The highest leads: by weight, then by confidence, then by the lowest voter."""
        told = [ballot.logprob for ballot in self.ballots if ballot.logprob is not None]
        confidence = math.fsum(told) / len(told) if told else -math.inf
        return self.weight, confidence, -min(ballot.voter for ballot in self.ballots)


class _Counting:
    """Who has answered and who is still to come."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._ballots: list[Ballot] = []
        self._over: set[int] = set()
        self._failed = 0

    def failed(self, voter: int) -> None:
        """See `Tally.failed`."""
        self._over.add(voter)
        self._failed += 1

    @property
    def _remaining(self) -> int:
        return self._rules.asked - len(self._over)

    @property
    def _turnout(self) -> float:
        """The share of those who are over that answered."""
        return len(self._ballots) / len(self._over) if self._over else 0.0

    def _pick(self, ballots: Sequence[Ballot]) -> Ballot:
        """Which of those who agree speaks for them."""
        if self._rules.is_ordered:
            return min(ballots, key=lambda ballot: ballot.voter)
        return max(ballots, key=lambda ballot: (_confidence(ballot), -ballot.voter))

    def _is_picked(self, ballots: Sequence[Ballot]) -> bool:
        """Whether nobody still to come would speak for them."""
        first = min(ballot.voter for ballot in ballots)
        return not self._rules.is_ordered or self._over.issuperset(range(first))


def _confidence(ballot: Ballot) -> float:
    return -math.inf if ballot.logprob is None else ballot.logprob


def _share(logprob: float) -> float:
    """The probability, above 0 and at most 1."""
    return math.exp(min(0.0, max(_LEAST_LOGPROB, logprob)))


class Votes(_Counting):
    """Each voter counts for the answer that it gave: majority, by confidence, and quorum."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._by_confidence = rules.strategy == "confidence-weighted"
        self._groups: dict[str, list[Ballot]] = {}  # of equal answers; one that cannot be compared is in none

    def cast(self, ballot: Ballot) -> None:
        """See `Tally.cast`."""
        if ballot.text is not None:
            self._groups.setdefault(normalised(ballot.text), []).append(ballot)
        self._over.add(ballot.voter)
        self._ballots.append(ballot)

    @property
    def is_settled(self) -> bool:
        """See `Tally.is_settled`: each voter still to come adds one vote at most, and exp(logprob) is at most 1."""
        if not self._remaining:
            return True
        standings = self._standings()
        if not standings or (self._by_confidence and any(ballot.logprob is None for ballot in self._ballots)):
            return False
        first = standings[0]
        if self._rules.strategy == "quorum" and len(first.ballots) < self._rules.need:
            return False
        second = standings[1].weight if len(standings) > 1 else 0.0
        return first.weight > second + self._remaining and self._is_picked(first.ballots)

    @property
    def is_hopeless(self) -> bool:
        """See `Tally.is_hopeless`."""
        return self._rules.strategy == "quorum" and self.leading + self._remaining < self._rules.need

    @property
    def agreement(self) -> float:
        """See `Tally.agreement`."""
        standings = self._standings()
        if not standings:
            return 0.0
        if self._rules.strategy == "quorum":
            return len(standings[0].ballots) / self._rules.asked
        return standings[0].weight / math.fsum(map(self.weight_of, self._ballots)) * self._turnout

    @property
    def leading(self) -> int:
        """See `Tally.leading`."""
        standings = self._standings()
        return len(standings[0].ballots) if standings else 0

    def chosen(self) -> Ballot:
        """See `Tally.chosen`; where the pattern found nothing in any answer, one is as good as another."""
        standings = self._standings()
        return self._pick(standings[0].ballots if standings else self._ballots)

    def weight_of(self, ballot: Ballot) -> float:
        """See `Tally.weight_of`; confidence that a node does not tell is taken to be that of the others."""
        if not self._by_confidence:
            return 1.0
        if ballot.logprob is not None:
            return _share(ballot.logprob)
        told = [_share(other.logprob) for other in self._ballots if other.logprob is not None]
        return math.fsum(told) / len(told) if told else 1.0

    def _standings(self) -> list[_Standing]:
        """The groups, the leading one first."""
        standings = [_Standing(group, math.fsum(map(self.weight_of, group))) for group in self._groups.values()]
        return sorted(standings, key=lambda standing: standing.rank, reverse=True)


@dataclass(slots=True)
class _Compared:
    """A ballot with its likeness, as hypothesis, to every other by its number."""

    ballot: Ballot
    grams: Grams
    likeness: dict[int, float] = field(default_factory=dict)


class Likeness(_Counting):
    """Minimum Bayes risk: the answer that is most like the others, each weighted by its node.

    An answer that more than half of the weight gives word for word is it without more ado: that is what makes it
    possible to know the outcome before all have answered.
    """

    is_hopeless = False

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._compared: dict[int, _Compared] = {}
        self._chars = chars_of(rules.asked)

    def cast(self, ballot: Ballot) -> None:
        """See `Tally.cast`. Takes milliseconds for each pair of long answers."""
        self._over.add(ballot.voter)
        self._ballots.append(ballot)
        new = _Compared(ballot, Grams(ballot.text or "", self._chars))
        for number, known in self._compared.items():
            if ballot.text is None or known.ballot.text is None:
                pair = (0.0, 0.0)
            elif ballot.text == known.ballot.text:
                pair = (1.0, 1.0)
            else:
                pair = both_ways(new.grams, known.grams)
            new.likeness[number], known.likeness[ballot.voter] = pair
        self._compared[ballot.voter] = new

    @property
    def is_settled(self) -> bool:
        """See `Tally.is_settled`."""
        same = self._same(self._remaining * self._rules.heaviest)
        return not self._remaining or (bool(same) and self._is_picked(same))

    @property
    def agreement(self) -> float:
        """See `Tally.agreement`: the mean likeness of the leading answer to the others."""
        return self._score(self.chosen()) * self._turnout if self._ballots else 0.0

    @property
    def leading(self) -> int:
        """See `Tally.leading`: those who gave the leading answer word for word."""
        return len(self._equals(self.chosen())) if self._ballots else 0

    def chosen(self) -> Ballot:
        """See `Tally.chosen`."""
        if same := self._same(0.0):
            return self._pick(same)
        best = max(self._ballots, key=lambda ballot: (ballot.text is not None, self._score(ballot), -ballot.voter))
        return self._pick(self._equals(best))

    def weight_of(self, ballot: Ballot) -> float:
        """See `Tally.weight_of`."""
        return ballot.weight

    def _score(self, ballot: Ballot) -> float:
        others = [other for other in self._ballots if other is not ballot]
        likeness = self._compared[ballot.voter].likeness
        if not others:
            return 0.0 if ballot.text is None else 1.0
        return math.fsum(other.weight * likeness[other.voter] for other in others) / _weight(others)

    def _equals(self, ballot: Ballot) -> list[Ballot]:
        if ballot.text is None:
            return [ballot]
        return [other for other in self._ballots if other.text == ballot.text]

    def _same(self, to_come: float) -> list[Ballot]:
        """Those who give one answer and have more than half of the weight, that which is to come included."""
        total = _weight(self._ballots) + to_come
        for ballot in self._ballots:
            same = self._equals(ballot)
            if ballot.text is not None and _weight(same) > total / 2:
                return same
        return []


def _weight(ballots: Iterable[Ballot]) -> float:
    return math.fsum(ballot.weight for ballot in ballots)
