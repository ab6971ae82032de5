"""Several nodes for one answer, in a chat: how that is asked for and stored, and what people see of the votes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import msgspec
from rich.cells import cell_len, set_cell_size

from llambo.core.errors import BadRequest
from llambo.core.fusion import ALIASES, STRATEGIES, Fusion, FusionRequest, Vote, VoteCast, strategy_named
from llambo.core.fusion_document import fusion_of
from llambo.core.harmless import harmless
from llambo.core.tally import tally

OFF = "off"
WORDS = (*STRATEGIES, *ALIASES, OFF)
MOST_ROWS = 8
"""Votes that are shown while they come; of more the last ones."""
MOST_NAME_COLUMNS = 16
WIDE_COLUMNS = 50
"""With fewer, what an answer took is left out."""


# --- what is asked for ------------------------------------------------------------------------------------------------


def requested(
    strategy: str, nodes: int | None = None, min_consensus: int | None = None, extract: str = ""
) -> FusionRequest | None:
    """What a command line or `/fusion` asks for; None for "" and "off".

    Raises: `BadRequest` for an unknown strategy, a number out of range, and anything else without a strategy.
    """
    numbers = {"the number of nodes": nodes, "the consensus": min_consensus}
    if strategy in ("", OFF):
        for name, given in {**numbers, "what is compared": extract or None}.items():
            if given is not None:
                raise BadRequest(f"{name} goes with a strategy: add --fusion S, such as --fusion {STRATEGIES[0]}")
        return None
    for name, number in numbers.items():
        if number == 0:  # a request's word for the configured number
            raise BadRequest(f"{name} must be 1 at least; leave it out for the configured one")
    return FusionRequest(strategy_named(strategy), nodes or 0, min_consensus or 0, extract)


def typed(argument: str) -> FusionRequest | None:
    """What `/fusion` is given: a strategy, and perhaps two numbers. Raises: `BadRequest`."""
    strategy, *words = argument.split()
    if strategy == OFF and words:
        raise BadRequest("/fusion off takes nothing more")
    if len(words) > 2 or not all(word.isascii() and word.isdigit() and len(word) < 9 for word in words):
        raise BadRequest(
            "/fusion takes a strategy, how many nodes, and how many of them must agree: /fusion quorum 5 3"
        )
    nodes, min_consensus = [*map(int, words), None, None][:2]
    return requested(strategy, nodes, min_consensus)


def described(request: FusionRequest | None) -> str:
    """What is asked for, for people."""
    if request is None:
        return "off: one node answers"
    nodes = f"{request.voters} nodes" if request.voters else "the configured number of nodes"
    agree = f", {request.min_consensus} must agree" if request.min_consensus else ""
    by = f", compared by {request.extract}" if request.extract else ""
    return f"{request.strategy or 'the configured strategy'} of {nodes}{agree}{by}"


def to_dict(request: FusionRequest | None) -> dict[str, Any]:
    """As it is stored: empty for None."""
    return {} if request is None else asdict(request)


def from_dict(values: dict[str, Any]) -> FusionRequest | None:
    """The opposite of `to_dict`. Raises: `BadRequest` for what is none."""
    if not values:
        return None
    try:
        return msgspec.convert(values, FusionRequest)
    except msgspec.ValidationError as error:
        raise BadRequest(f"this asks for no fusion: {error}") from None


# --- what comes of it -------------------------------------------------------------------------------------------------


def so_far(wanted: FusionRequest, casts: Sequence[VoteCast]) -> Fusion:
    """The votes that are cast, one at least, as an outcome has them."""
    told = tally(casts)  # which is one that is over: nobody else voted
    return replace(told, strategy=wanted.strategy or told.strategy, cancelled=0)


def summary(fusion: Fusion) -> str:
    """Strategy, how many of how many, and how far they agree."""
    return f"{fusion.strategy}: {_count(fusion)}"


def progress(fusion: Fusion) -> str:
    """How far a vote is: how many of how many, how far they agree, and who has answered."""
    return " · ".join(part for part in (_count(fusion), who(fusion), "Ctrl-C stops") if part)


def _count(fusion: Fusion) -> str:
    failed = sum(bool(vote.error) for vote in fusion.votes)
    also = f", {failed} failed" if failed else ""
    spared = f", {fusion.cancelled} not needed" if fusion.cancelled else ""
    agree = f", agreement {fusion.agreement * 100:.0f} %" if fusion.answered else ""
    return f"{fusion.answered} of {fusion.asked} answered{also}{spared}{agree}"


def stored_summary(document: dict[str, Any]) -> str:
    """The summary of an outcome that was stored; "" where there is none."""
    try:
        return summary(fusion_of(document)) if document else ""
    except BadRequest:  # of a file that somebody else has written
        return ""


def who(fusion: Fusion) -> str:
    """The nodes that have answered, in the order in which they did."""
    return " ".join(_node(vote) for vote in fusion.votes if not vote.error)


def rows(fusion: Fusion, width: int, *, most: int = 0) -> list[str]:
    """A line for each vote, of `width` columns at most: who, after how long, and what. `most` of them, 0 for all."""
    votes = fusion.votes[-most:] if most else fusion.votes
    hidden = len(fusion.votes) - len(votes)
    names = [_node(vote) for vote in votes]
    first = max(map(cell_len, names), default=0)
    lines = [f"{hidden} more before"] if hidden else []
    for vote, name in zip(votes, names, strict=True):
        took = f"{vote.time_ms / 1e3:6.1f} s  " if width >= WIDE_COLUMNS else ""
        said = f"failed: {vote.error}" if vote.error else vote.text
        lines.append(f"{name}{' ' * (first - cell_len(name))}  {took}{_line(said[: 4 * width])}")
    return [fitted(line, width) for line in lines]


def fitted(text: str, width: int) -> str:
    """One line of `width` columns at most; an ellipsis stands for what is cut. Wide characters count as they show."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + "…" * (width > 0)


def _node(vote: Vote) -> str:
    return fitted(_line(vote.node) or "-", MOST_NAME_COLUMNS)


def _line(text: str) -> str:
    """The text on one line, without what a terminal would obey."""
    return " ".join(harmless(text).split())
