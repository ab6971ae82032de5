"""Votes as plain values: what goes out comes back."""

from __future__ import annotations

import json

import pytest

from llambo.core.errors import BadRequest
from llambo.core.fusion import STRATEGIES, Fusion, Vote, VoteCast
from llambo.core.fusion_document import cast_document, cast_of, fusion_document, fusion_of

ANSWER = Vote("n1", "m", "Paris", 3, 0.25, 12.5, -0.125)
FAILURE = Vote("n2", "m", "", 0, 0.0, 7.0, error="the node is gone")
FUSION = Fusion("quorum", 0.5, 3, 1, 1, (ANSWER, FAILURE))


def test_the_shape_is_the_promised_one() -> None:
    document = fusion_document(FUSION)
    assert {"strategy", "agreement", "asked", "answered", "cancelled", "votes"} <= document.keys()
    assert all({"node", "text", "tokens", "weight"} <= vote.keys() for vote in document["votes"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_outcome_comes_back_through_json(strategy: str) -> None:
    document = {**fusion_document(FUSION), "strategy": strategy, "more": 1}
    back = fusion_of(json.loads(json.dumps(document)))
    assert (back.strategy, back.votes, back.agreement) == (strategy, FUSION.votes, 0.5)


def test_a_vote_comes_back_through_json_with_how_far_the_whole_is() -> None:
    for vote in FUSION.votes:
        cast = VoteCast(vote, 3, 1, 2 / 3)
        document = json.loads(json.dumps(cast_document(cast)))
        assert document["agreement"] == 0.666667
        assert cast_of(document) == VoteCast(vote, 3, 1, 0.666667)


@pytest.mark.parametrize("wrong", [None, [], {}, "x", {"strategy": "nope"}, {"node": 1}])
def test_what_is_none_is_told(wrong: object) -> None:
    with pytest.raises(BadRequest, match="as fusion has them"):
        fusion_of(wrong)
    with pytest.raises(BadRequest, match="as fusion has them"):
        cast_of(wrong)
