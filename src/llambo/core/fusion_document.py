"""Votes and their outcome as plain values, in the one shape that every interface gives them, and back. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

import msgspec

from llambo.core.errors import BadRequest
from llambo.core.fusion import Fusion, Vote, VoteCast

_SHARE_DIGITS = 6
_MS_DIGITS = 3
_T = TypeVar("_T")


def vote_document(vote: Vote) -> dict[str, Any]:
    """One voter's answer. `logprob` is None where it is not told, `error` "" where there is an answer."""
    return {
        "node": vote.node,
        "model": vote.model,
        "text": vote.text,
        "tokens": vote.tokens,
        "weight": round(vote.weight, _SHARE_DIGITS),
        "time_ms": round(vote.time_ms, _MS_DIGITS),
        "logprob": None if vote.logprob is None else round(vote.logprob, _SHARE_DIGITS),
        "error": vote.error,
    }


def cast_document(cast: VoteCast) -> dict[str, Any]:
    """A vote as it is cast: the members of `vote_document`, and beside them how far the whole is."""
    return {
        **vote_document(cast.vote),
        "asked": cast.asked,
        "answered": cast.answered,
        "agreement": round(cast.agreement, _SHARE_DIGITS),
    }


def fusion_document(fusion: Fusion) -> dict[str, Any]:
    """What became of the votes."""
    return {
        **asdict(fusion),
        "agreement": round(fusion.agreement, _SHARE_DIGITS),
        "votes": [vote_document(vote) for vote in fusion.votes],
    }


def cast_of(document: Any) -> VoteCast:
    """The opposite of `cast_document`; members that nobody knows are passed over.

    Raises: `BadRequest`.
    """
    vote = _made(document, Vote, "vote")
    told = _made(document, _Told, "vote")
    return VoteCast(vote, told.asked, told.answered, told.agreement)


def fusion_of(document: Any) -> Fusion:
    """The opposite of `fusion_document`; members that nobody knows are passed over.

    Raises: `BadRequest`.
    """
    return _made(document, Fusion, "outcome")


class _Told(msgspec.Struct):
    """How far the whole is."""

    asked: int
    answered: int
    agreement: float


def _made(document: Any, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"this is no {what} as fusion has them: {error}") from None
