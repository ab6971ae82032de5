"""What is told of a quorum that was not reached."""

from __future__ import annotations

from llambo.core.fusion import Fusion, Vote, VoteCast
from llambo.core.tally import tally

FIRST = Vote("n1", "m", "four", 1, 1.0, 12.5)
BROKEN = Vote("n2", "m", "", 0, 0.0, 13.0, error="gone")


def test_who_has_not_voted_was_cancelled_and_the_last_vote_tells_how_far_it_was() -> None:
    casts = [VoteCast(FIRST, 5, 1, 0.2), VoteCast(BROKEN, 5, 1, 0.2)]
    assert tally(casts) == Fusion("quorum", 0.2, 5, 1, 3, (FIRST, BROKEN))


def test_without_a_vote_there_is_nothing_to_tell() -> None:
    assert tally([]) == Fusion("quorum", 0.0, 0, 0, 0, ())
