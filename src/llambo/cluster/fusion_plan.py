"""What a question to several nodes comes to, and what whoever asks it offers, whatever the strategy."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from llambo.cluster.fusion import needed
from llambo.core.fusion import FusionRequest, Strategy
from llambo.core.sections import Cognition
from llambo.core.types import MAX_SEED, Event

_SEED_STEP = 2_654_435_761
"""A prime, so that the seeds of one vote are far apart and differ."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a question is to be asked: `models` has one name for each voter, `weights` are by node type."""

    strategy: Strategy
    models: tuple[str, ...]
    need: int
    extract: str
    timeout_s: float
    weights: Mapping[str, float]

    @property
    def asked(self) -> int:
        """How many voters there are."""
        return len(self.models)

    def weight_of(self, node_type: str) -> float:
        """What an answer of a node of that type counts for; 1 where the configuration does not know the type."""
        return self.weights.get(node_type, 1.0)

    @property
    def heaviest(self) -> float:
        """The most that any answer can count for."""
        return max([1.0, *self.weights.values()])


def plan(
    request: FusionRequest, models: Sequence[str], cognition: Cognition, weights: Mapping[str, float] | None = None
) -> Plan:
    """What the request and the configuration come to; the voters take turns through `models`.

    Raises: `BadRequest` for a quorum of more than are asked, and for one that the configured strategy does not know.
    """
    asked = request.voters or cognition.n_nodes
    strategy = request.strategy or cognition.strategy
    replace(request, strategy=strategy, voters=asked)  # which checks what only together can be wrong
    return Plan(
        strategy=strategy,
        models=tuple(models[voter % len(models)] for voter in range(asked)),
        need=needed(asked, request.min_consensus, cognition.min_consensus_nodes if strategy == "quorum" else 0),
        extract=request.extract,
        timeout_s=cognition.timeout,
        weights=weights or {},
    )


def seed_of(seed: int | None, voter: int) -> int | None:
    """The seed of a voter: the first has the request's own, each other one of its own that follows from it."""
    return None if seed is None else (seed + voter * _SEED_STEP) % (MAX_SEED + 1)


class Fusing(Protocol):
    """One question to several nodes, whatever the strategy."""

    @property
    def agreement(self) -> float:
        """The leading answer's share, as far as it is known."""
        ...

    @property
    def other_tokens(self) -> int:
        """Those of the answers that were not chosen."""
        ...

    def events(self) -> AsyncGenerator[Event, None]:
        """The votes as they are cast, the chosen answer's token events, and one `Done`.

        Raises: `NoQuorum`, once none can come of it; the first voter's error when all fail; `TimedOut`; `BadRequest`.
        """
        ...
