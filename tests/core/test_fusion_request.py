"""What fusion may be asked, by which names, and what the configuration says where a request does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from llambo.core import config
from llambo.core.errors import BadConfig, BadRequest
from llambo.core.fusion import MAX_EXTRACT, STRATEGIES, FusionRequest, Strategy, fusion_asked, strategy_named


def test_every_strategy_is_found_by_its_name_and_raft_consensus_is_a_quorum() -> None:
    assert [strategy_named(name) for name in STRATEGIES] == list(STRATEGIES)
    assert strategy_named("raft-consensus") == "quorum"


@pytest.mark.parametrize("name", ["", "majority", "Quorum", "quorum "])
def test_a_name_that_is_none_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(BadRequest, match=r"there are majority-vote, weighted-average, .*token-average, raft-consensus"):
        strategy_named(name)


def test_what_is_left_open_is_the_configuration_s_to_say() -> None:
    assert FusionRequest() == FusionRequest("", 0, 0, "")


def test_what_somebody_outside_leaves_out_is_left_open_and_a_zero_is_no_number() -> None:
    assert fusion_asked(None, None, None, None) == fusion_asked("", None, None, "") == FusionRequest()
    assert fusion_asked("raft-consensus", 5, 3, "a") == FusionRequest("quorum", 5, 3, "a")
    with pytest.raises(BadRequest, match="nodes must be 1 at least; leave it out for the configured number"):
        fusion_asked("quorum", 0, None, None)
    with pytest.raises(BadRequest, match="min_consensus must be 1 at least; leave it out"):
        fusion_asked("quorum", None, 0, None)


@pytest.mark.parametrize("voters", [-1, 1, 65, 10**9])
def test_fewer_than_two_voters_and_too_many_are_refused(voters: int) -> None:
    with pytest.raises(BadRequest, match=f"between 2 and 64 nodes, not {voters}"):
        FusionRequest("quorum", voters)


@pytest.mark.parametrize(("voters", "consensus"), [(3, 4), (3, -1), (0, 65)])
def test_a_consensus_of_more_than_are_asked_is_refused(voters: int, consensus: int) -> None:
    most = "the 3 nodes asked" if voters else "64"
    with pytest.raises(BadRequest, match=f"between 1 and {most}, not {consensus}"):
        FusionRequest("quorum", voters, consensus)


@pytest.mark.parametrize("strategy", [one for one in STRATEGIES if one != "quorum"])
def test_a_consensus_that_a_strategy_does_not_look_at_is_refused(strategy: Strategy) -> None:
    with pytest.raises(BadRequest, match=f"goes with the strategy quorum; {strategy} takes none"):
        FusionRequest(strategy, 3, 2)
    assert FusionRequest("", 3, 2).min_consensus == 2  # the configured one may be a quorum


def test_a_pattern_has_a_length_that_it_may_have() -> None:
    FusionRequest(extract="a" * MAX_EXTRACT)
    with pytest.raises(BadRequest, match="extract has 1025 characters and may have 1024"):
        FusionRequest(extract="a" * (MAX_EXTRACT + 1))


def test_the_configuration_takes_the_alias_of_a_strategy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("cognition:\n  strategy: raft-consensus\n  n_nodes: 5\n  timeout: 2m\n")
    monkeypatch.setenv("LLAMBO_COGNITION_MIN_CONSENSUS_NODES", "4")
    cognition = config.load(tmp_path / "c.yaml").settings.cognition
    assert (cognition.strategy, cognition.n_nodes, cognition.min_consensus_nodes, cognition.timeout) == (
        "quorum",
        5,
        4,
        120,
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "strategy: loudest",
            ":2: cognition.strategy = 'loudest': no fusion strategy is called 'loudest'; there are",
        ),
        ("strategy: 3", ":2: cognition.strategy = 3: input should be 'majority-vote', "),
        ("n_nodes: 1", ":2: cognition.n_nodes = 1: input should be greater than or equal to 2"),
        ("n_nodes: 65", ":2: cognition.n_nodes = 65: input should be less than or equal to 64"),
        (
            "min_consensus_nodes: 4",
            ":2: cognition.min_consensus_nodes = 4: must be at most cognition.n_nodes, which",
        ),
        ("timeout: 0", ":2: cognition.timeout = 0: input should be greater than 0"),
        ("voters: 3", ":2: unknown key cognition.voters; there are strategy, n_nodes, min_consensus_nodes, timeout"),
    ],
)
def test_a_configuration_that_cannot_be_is_told_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"cognition:\n  {text}\n")
    with pytest.raises(BadConfig) as caught:
        config.load(file)
    assert f"{file}{complaint}" in caught.value.message
