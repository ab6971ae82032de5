"""The simulator: the real orchestrator, ten thousand times faster than life."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.balancer import STRATEGIES
from llambo.cluster.prefix import CUTS
from llambo.cluster.simulate import Outcome, Scenario, simulate
from llambo.cluster.simulate.__main__ import main, parse
from llambo.cluster.simulate.engine import Engine, Slot
from llambo.cluster.simulate.load import Chat, Request
from llambo.cluster.simulate.outcome import jain
from llambo.core.errors import BadRequest


def played(**fields: object) -> Outcome:
    return simulate(Scenario(**{"nodes": 20, "requests": 1500, **fields}))  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_lost_or_doubled_whatever_fails(strategy: str) -> None:
    outcome = played(strategy=strategy, deaths_per_min=20, hangs_per_min=5, burst=60, load=0.9, seed=7)
    assert (outcome.lost, outcome.doubled) == (0, 0)
    assert outcome.finished + sum(outcome.refused.values()) == outcome.requests == 1500
    assert outcome.failovers > 0
    assert outcome.restarts > 0


def test_without_failures_every_request_is_answered() -> None:
    outcome = played()
    assert (outcome.finished, outcome.refused, outcome.retries, outcome.failovers) == (1500, {}, 0, 0)


def test_one_seed_gives_one_outcome() -> None:
    fields: dict[str, object] = {"deaths_per_min": 20, "burst": 30}
    assert played(**fields, seed=3) == played(**fields, seed=3)
    assert played(**fields, seed=3) != played(**fields, seed=4)


def test_prefix_affinity_is_near_the_oracle_and_far_above_round_robin() -> None:
    affine = played(load=0.3, strategy="prefix-affinity")
    other = played(load=0.3, strategy="round-robin")
    assert affine.hit_share >= 0.9 * affine.oracle_share
    assert other.hit_share < 0.5 * affine.hit_share
    assert affine.ttft_s["p50"] <= 0.4 * other.ttft_s["p50"]


def test_texts_alone_do_nearly_as_well_as_sessions() -> None:
    assert played(load=0.3, has_sessions=False).hit_share >= 0.9 * played(load=0.3).hit_share


def test_no_cache_beats_the_oracle() -> None:
    for seed in range(3):
        outcome = played(seed=seed, slow_share=0.0)
        assert 0 < outcome.hit_share <= outcome.oracle_share <= 1


def test_more_load_than_there_is_capacity_is_refused_in_time_and_the_nodes_are_busy() -> None:
    outcome = played(load=4.0, queue_timeout_s=3.0, turns=1, requests=4000)
    assert set(outcome.refused) <= {"timeout", "overloaded"}
    assert outcome.refused
    assert outcome.queue_s["max"] <= 3.001
    assert all(used > 0.5 for _, used, _ in outcome.speeds.values())


def test_fast_nodes_do_more_per_slot() -> None:
    outcome = played(load=0.6, strategy="least-loaded")
    assert outcome.speeds["1"][2] > 2 * outcome.speeds["0.25"][2]


def test_a_hung_node_is_found_and_replaced() -> None:
    outcome = played(hangs_per_min=10, slow_share=0.0)
    assert outcome.restarts > 0
    assert (outcome.lost, outcome.doubled) == (0, 0)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_chats_share_the_hashes_of_their_system_prompt_and_no_others(one: int, other: int) -> None:
    left, right = Chat(1, "a", 5, 300, 1, 0), Chat(2, "b", 5, 300, 1, 0)
    shared = set(left.chain(one)) & set(right.chain(other))
    assert len(shared) == sum(cut <= min(one, other, 300) * 4 for cut in CUTS)
    assert left.chain(one)[: len(left.chain(one // 2))] == left.chain(one // 2)


def test_a_slot_keeps_one_conversation_and_the_store_the_latest_others() -> None:
    def ask(engine: Engine, chat: int, prompt: int, now: float) -> int:
        request = Request(1, Chat(chat, "", chat, 50, 1, prompt), prompt, 10, now)
        engine.begin(request, now)
        request.emitted = 10
        engine.end(request, now + 0.5)
        return request.cached

    bare = Engine("n1", 1, 1.0, 50, 1000, [Slot()])
    assert [ask(bare, 1, 100, 1), ask(bare, 1, 200, 2), ask(bare, 2, 100, 3), ask(bare, 1, 300, 4)] == [0, 110, 0, 0]
    kept = Engine("n1", 1, 1.0, 50, 1000, [Slot()], spare=1)
    assert [ask(kept, 1, 100, 1), ask(kept, 2, 100, 2), ask(kept, 1, 200, 3)] == [0, 0, 110]
    assert [ask(kept, 3, 100, 4), ask(kept, 2, 200, 5)] == [0, 0]


def test_the_fairness_index_is_one_for_equals_and_falls_to_one_over_n() -> None:
    assert jain([2.0] * 5) == pytest.approx(1.0)
    assert jain([1.0, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([]) == 1.0


def test_the_command_line_prints_json_and_says_by_its_status_whether_anything_was_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--nodes", "5", "--requests", "50", "--slots", "2", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["nodes"], found["requests"], found["lost"], found["doubled"]) == (5, 50, 0, 0)
    assert found["wall_s"] > 0
    assert main(["--nodes", "5", "--requests", "50"]) == 0
    assert "lost        0\ndoubled     0\n" in capsys.readouterr().out


def test_every_field_is_an_option() -> None:
    scenario, as_json = parse(["--no-sessions", "--deaths-per-min", "3", "--strategy", "random", "--think-s", "2"])
    assert scenario == Scenario(has_sessions=False, deaths_per_min=3, strategy="random", think_s=2)
    assert not as_json


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "0"], "nodes must be between 1 and"),
        (["--strategy", "best"], "no strategy is called 'best'"),
        (["--slots", "0"], "slots must be between 1 and 1024, not 0"),
        (["--load", "nan"], "load must be between"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_scenario_needs_slots() -> None:
    with pytest.raises(BadRequest, match="slots must name"):
        Scenario(slots=())
