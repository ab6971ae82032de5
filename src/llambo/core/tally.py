"""The votes of a quorum that was not reached, as the same picture that an answer comes with. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from llambo.core.fusion import Fusion, VoteCast


def tally(casts: Sequence[VoteCast]) -> Fusion:
    """What became of the vote, of which `casts` was told; who has not voted was cancelled.

    Of the strategies `quorum` alone can end without an answer although nodes gave some.
    """
    if not casts:
        return Fusion("quorum", 0.0, 0, 0, 0, ())
    last = casts[-1]
    votes = tuple(cast.vote for cast in casts)
    return Fusion("quorum", last.agreement, last.asked, last.answered, last.asked - len(votes), votes)
