"""Several answers to one question, and what became of them: the words that every interface shares. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from llambo.core.errors import BadRequest

Strategy = Literal["majority-vote", "weighted-average", "confidence-weighted", "quorum", "token-average"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
ALIASES: dict[str, Strategy] = {"raft-consensus": "quorum"}
MIN_VOTERS, MAX_VOTERS = 2, 64
MAX_EXTRACT = 1024
"""Characters that a regular expression may have."""


def strategy_named(name: str) -> Strategy:
    """The strategy that people call `name`. Raises: `BadRequest`, which lists the names."""
    for strategy in STRATEGIES:
        if name == strategy or ALIASES.get(name) == strategy:
            return strategy
    known = ", ".join((*STRATEGIES, *ALIASES))
    raise BadRequest(f"no fusion strategy is called {name!r}; there are {known}")


@dataclass(frozen=True, slots=True)
class FusionRequest:
    """How several nodes are to answer one question.

    `strategy` "" is the configured one. `voters` answers are asked for, 0 for the configured number. `min_consensus` of
    them must agree for a quorum, 0 for the configured number or else more than half. `extract` is a regular expression
    whose first group (or whole match) is what two answers are compared by, "" compares whole answers.

    Raises: `BadRequest` for a number out of range, and a consensus that the strategy does not look at.
    """

    strategy: Strategy | Literal[""] = ""
    voters: int = 0
    min_consensus: int = 0
    extract: str = ""

    def __post_init__(self) -> None:
        if not (self.voters == 0 or MIN_VOTERS <= self.voters <= MAX_VOTERS):
            raise BadRequest(f"fusion takes between {MIN_VOTERS} and {MAX_VOTERS} nodes, not {self.voters}")
        if not 0 <= self.min_consensus <= (self.voters or MAX_VOTERS):
            most = f"the {self.voters} nodes asked" if self.voters else str(MAX_VOTERS)
            raise BadRequest(f"min_consensus must be between 1 and {most}, not {self.min_consensus}")
        if self.min_consensus and self.strategy not in ("", "quorum"):
            raise BadRequest(f"min_consensus goes with the strategy quorum; {self.strategy} takes none")
        if len(self.extract) > MAX_EXTRACT:
            raise BadRequest(f"extract has {len(self.extract)} characters and may have {MAX_EXTRACT}")


def fusion_asked(
    strategy: str | None, nodes: int | None, min_consensus: int | None, extract: str | None
) -> FusionRequest:
    """What somebody outside asks for; what is None, or a strategy "", is left to the configuration.

    Raises: `BadRequest`, also for a number 0, which stands for the configured one in here alone.
    """
    for name, number in (("nodes", nodes), ("min_consensus", min_consensus)):
        if number == 0:
            raise BadRequest(f"{name} must be 1 at least; leave it out for the configured number")
    return FusionRequest(strategy_named(strategy) if strategy else "", nodes or 0, min_consensus or 0, extract or "")


@dataclass(frozen=True, slots=True)
class Vote:
    """One voter's answer. `weight` is what it counted for, `logprob` the mean over its tokens (None: not told).

    `error` says why there is no answer; the text is "" then. `time_ms` is counted from the request's arrival.
    """

    node: str
    model: str
    text: str
    tokens: int
    weight: float
    time_ms: float
    logprob: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class VoteCast:
    """One voter has answered or failed: `answered` of `asked` have so far, and the leading answer has `agreement`."""

    vote: Vote
    asked: int
    answered: int
    agreement: float  # 0..1


@dataclass(frozen=True, slots=True)
class Fusion:
    """What became of the vote. `agreement` is the chosen answer's share, 0..1; `votes` are in the order they came.

    Of those `asked`, `answered` did and `cancelled` were; the others failed or did not answer in time.
    """

    strategy: Strategy
    agreement: float
    asked: int
    answered: int
    cancelled: int  # voters that could not change the outcome any more
    votes: tuple[Vote, ...]
