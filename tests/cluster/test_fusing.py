"""Several real nodes answer one question."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import make_model
from llambo.cluster.api import Cluster
from llambo.core import config
from llambo.core.errors import BadRequest, NoQuorum, PromptTooLong, TimedOut
from llambo.core.fusion import Fusion, FusionRequest, Strategy, VoteCast
from llambo.core.types import Done, Event, GenerateRequest, LoadOptions, Message, Sampling, TokenEvent
from tests.cluster.clusters import until

SMALL = LoadOptions(ctx=512, slots=1, threads=1)
GREEDY = Sampling(max_tokens=8, temperature=0)
LONG = Sampling(max_tokens=300, temperature=0)
QUESTION = "What is a node?"


@pytest.fixture(scope="session")
def other_walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that walks another way through the same words."""
    path = tmp_path_factory.mktemp("models") / "other.gguf"
    return make_model.write(path, make_model.PRESETS["tiny"], walk=True, seed=2)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


def settings(**cognition: Any) -> config.Settings:
    return config.Settings.model_validate({"cognition": cognition})


def ask(
    strategy: Strategy | str = "",
    voters: int = 3,
    sampling: Sampling = GREEDY,
    *,
    prompt: str = "hello",
    model: str = "",
    **wanted: Any,
) -> GenerateRequest:
    fusion = FusionRequest(strategy, voters, **wanted)  # type: ignore[arg-type]
    return GenerateRequest(messages=(Message("user", prompt),), model=model, sampling=sampling, fusion=fusion)


async def serve(cluster: Cluster, model: Path, nodes: int, *, name: str = "") -> None:
    """So many nodes of one slot."""
    loaded = await cluster.load(str(model), name=name, options=SMALL)
    if nodes > 1:
        await cluster.spawn(nodes - 1, model=loaded.name)


async def collect(cluster: Cluster, request: GenerateRequest) -> tuple[list[VoteCast], str, Done]:
    """The votes, the text and the end; and that they came in that order."""
    events = [event async for event in cluster.generate(request)]
    kinds = [type(event) for event in events]
    votes = kinds.count(VoteCast)
    assert kinds == [VoteCast] * votes + [TokenEvent] * (len(kinds) - votes - 1) + [Done]
    casts = [event for event in events if isinstance(event, VoteCast)]
    text = "".join(event.text for event in events if isinstance(event, TokenEvent))
    assert isinstance(events[-1], Done)
    return casts, text, events[-1]


def outcome(done: Done) -> Fusion:
    assert done.fusion is not None
    return done.fusion


async def plain(cluster: Cluster, model: str = "", sampling: Sampling = GREEDY) -> str:
    request = GenerateRequest(messages=(Message("user", "hello"),), model=model, sampling=sampling)
    return "".join([event.text async for event in cluster.generate(request) if isinstance(event, TokenEvent)])


def is_calm(cluster: Cluster) -> bool:
    """Whether nothing is asked of any node."""
    return not cluster.status().busy and not cluster._world.flights


# --- the strategies -----------------------------------------------------------------------------------------------


async def test_the_built_in_model_agrees_with_itself_on_three_nodes() -> None:
    async with Cluster() as cluster:
        await cluster.spawn(3, node_type="tiny")
        request = ask("majority-vote", 3, Sampling(max_tokens=60, temperature=0), prompt=QUESTION)
        casts, text, done = await collect(cluster, request)
        alone = replace(request, fusion=None)
        assert text == "".join([e.text async for e in cluster.generate(alone) if isinstance(e, TokenEvent)]) != ""
        assert [cast.answered for cast in casts] == list(range(1, len(casts) + 1))
        assert len({cast.vote.node for cast in casts}) == len(casts)
        fusion = outcome(done)
        assert fusion.answered + fusion.cancelled == fusion.asked == 3
        assert fusion.agreement == casts[-1].agreement == 1.0
        assert done.node in {vote.node for vote in fusion.votes if vote.text == text}
        assert all(vote.logprob is not None and vote.logprob < 0 for vote in fusion.votes)
        assert 0 < done.ttft_ms <= done.time_ms
        assert all(vote.time_ms <= done.time_ms for vote in fusion.votes)
        assert is_calm(cluster)


async def test_different_models_are_asked_in_turns_and_the_most_frequent_answer_wins(
    cluster: Cluster, walk_model: Path, other_walk: Path
) -> None:
    await serve(cluster, walk_model, 2)
    await serve(cluster, other_walk, 1)
    one, other = await plain(cluster, "walk"), await plain(cluster, "other")
    assert one != other
    casts, text, done = await collect(cluster, ask("majority-vote"))
    votes = outcome(done).votes
    assert text == one
    assert done.model == "walk"
    assert {vote.node for vote in votes if vote.model == "walk"} == {"n1", "n2"}
    assert outcome(done).answered >= 2
    (cast, *_) = casts
    assert cast.asked == 3
    named = await collect(cluster, ask("majority-vote", model="other"))
    assert named[1] == other
    assert {vote.model for vote in outcome(named[2]).votes} == {"other"}


async def test_models_without_a_node_of_the_type_that_is_wanted_are_not_asked(
    cluster: Cluster, walk_model: Path, other_walk: Path
) -> None:
    await serve(cluster, walk_model, 1)
    await serve(cluster, other_walk, 1)
    await cluster.spawn(1, node_type="tiny", model="other")
    request = replace(ask("majority-vote", 2), node_type="tiny")
    _, text, done = await collect(cluster, request)
    assert text == await plain(cluster, "other")
    assert {(vote.model, vote.node, vote.error) for vote in outcome(done).votes} == {("other", "n3", "")}


@pytest.mark.parametrize("strategy", ["weighted-average", "confidence-weighted"])
async def test_the_other_strategies_choose_too(
    cluster: Cluster, walk_model: Path, other_walk: Path, strategy: Strategy
) -> None:
    await serve(cluster, walk_model, 2)
    await serve(cluster, other_walk, 1)
    one, other = await plain(cluster, "walk"), await plain(cluster, "other")
    _, text, done = await collect(cluster, ask(strategy, 5))
    fusion = outcome(done)
    assert fusion.strategy == strategy
    assert text in (one, other)
    if strategy == "weighted-average":
        assert text == one, "three of five gave it word for word"
        assert all(vote.weight == 1 for vote in fusion.votes)
    else:
        assert all(0 < vote.weight < 1 for vote in fusion.votes)
        weight = Counter[str]()
        for vote in fusion.votes:
            weight[vote.text] += vote.weight  # type: ignore[assignment]
        assert weight[text] == max(weight.values())


async def test_the_weight_of_a_node_type_counts(walk_model: Path, other_walk: Path) -> None:
    heavy = config.Settings.model_validate({"cluster": {"node_types": {"tiny": {"weight": 7}}}})
    async with Cluster(heavy) as cluster:
        await serve(cluster, walk_model, 1)
        await cluster.load(str(other_walk), options=SMALL)
        await cluster.spawn(1, node_type="tiny", model="walk")
        _, _, done = await collect(cluster, ask("weighted-average", 2, model="walk"))
        assert sorted(vote.weight for vote in outcome(done).votes) == [1, 7]


async def test_a_quorum_is_reached_or_there_is_no_answer(cluster: Cluster, walk_model: Path, other_walk: Path) -> None:
    await serve(cluster, walk_model, 2)
    await serve(cluster, other_walk, 2)
    _, text, done = await collect(cluster, ask("quorum", 4, min_consensus=2, model="walk"))
    assert text == await plain(cluster, "walk")
    assert outcome(done).agreement >= 0.5
    seen: list[Event] = []
    with pytest.raises(NoQuorum, match="no quorum: 2 of 4 nodes agree, 3 are needed"):
        async for event in cluster.generate(ask("quorum", 4)):
            seen.append(event)
    votes = [event for event in seen if isinstance(event, VoteCast)]
    assert len(votes) == len(seen) in (3, 4)
    assert votes[-1].agreement == 0.5
    assert is_calm(cluster)
    with pytest.raises(BadRequest, match="a quorum of 9 cannot come of 3 nodes"):
        async with Cluster(settings(n_nodes=9, min_consensus_nodes=9)) as other:
            await serve(other, walk_model, 1)
            await collect(other, ask("quorum", 3))


async def test_what_is_left_open_is_as_configured(walk_model: Path) -> None:
    async with Cluster(settings(strategy="raft-consensus", n_nodes=5, min_consensus_nodes=4)) as cluster:
        await serve(cluster, walk_model, 2)
        _, _, done = await collect(cluster, ask("", 0))
        assert (outcome(done).strategy, outcome(done).asked, outcome(done).answered) == ("quorum", 5, 4)


# --- voters -------------------------------------------------------------------------------------------------------


async def test_more_voters_than_nodes_take_turns_on_them(cluster: Cluster, tiny_model: Path) -> None:
    await cluster.load(str(tiny_model), options=LoadOptions(ctx=512, slots=3, threads=1))
    await cluster.spawn(1)
    hot = Sampling(max_tokens=8, temperature=2)
    _, text, done = await collect(cluster, ask("majority-vote", 6, hot))
    fusion = outcome(done)
    assert fusion.answered == fusion.asked == 6, "no two random answers are the same: all are waited for"
    assert Counter(vote.node for vote in fusion.votes) == {"n1": 3, "n2": 3}
    assert len({vote.text for vote in fusion.votes}) == 6
    assert fusion.agreement == pytest.approx(1 / 6)
    best = max(fusion.votes, key=lambda vote: vote.logprob or -99)
    assert text == best.text, "the most confident one, then"


async def test_a_seeded_vote_is_repeatable(cluster: Cluster, tiny_model: Path) -> None:
    await serve(cluster, tiny_model, 2)
    hot = Sampling(max_tokens=6, temperature=1.5, seed=11)
    first = await collect(cluster, ask("majority-vote", 4, hot))
    again = await collect(cluster, ask("majority-vote", 4, hot))
    other = await collect(cluster, ask("majority-vote", 4, Sampling(max_tokens=6, temperature=1.5, seed=12)))
    texts = [sorted(vote.text for vote in outcome(done).votes) for _, _, done in (first, again, other)]
    assert first[1] == again[1]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 4
    assert await plain(cluster, sampling=hot) in texts[0], "the first voter has the request's own seed"


async def test_log_probabilities_are_given_to_who_asks_for_them(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 1)
    for wants in (False, True):
        fusion = FusionRequest("majority-vote", 2)
        request = GenerateRequest(raw_prompt="hello", sampling=GREEDY, logprobs=wants, fusion=fusion)
        tokens = [event async for event in cluster.generate(request) if isinstance(event, TokenEvent)]
        assert [event.logprob is not None for event in tokens] == [wants] * 8


async def test_answers_are_compared_by_what_the_pattern_finds(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 2)
    whole = await plain(cluster)
    _, text, done = await collect(cluster, ask("majority-vote", 3, extract=r"^\s*(\S)"))
    assert text == whole, "the answer is given whole"
    assert outcome(done).agreement == 1
    _, _, done = await collect(cluster, ask("majority-vote", 3, extract="no such thing"))
    assert outcome(done).agreement == 0
    with pytest.raises(NoQuorum, match="no quorum: 0 of 3 nodes agree, 2 are needed"):
        await collect(cluster, ask("quorum", 3, extract="no such thing"))


async def test_a_bad_pattern_is_told_before_anybody_is_asked_and_an_endless_one_is_ended(
    cluster: Cluster, walk_model: Path
) -> None:
    await serve(cluster, walk_model, 2)
    asked = cluster.status().counters.requests
    with pytest.raises(BadRequest, match="extract is no regular expression: unterminated"):
        await collect(cluster, ask("majority-vote", 3, extract="[a"))
    assert cluster.status().counters.requests == asked
    with pytest.raises(BadRequest, match="extract takes too much time"):
        await collect(cluster, ask("majority-vote", 3, Sampling(max_tokens=64, temperature=0), extract=r"(\w?\W?)+~$"))
    assert is_calm(cluster)
    assert await plain(cluster)


# --- when things fail ---------------------------------------------------------------------------------------------


async def pid_of(cluster: Cluster, node: str) -> int:
    return next(info.pid for info in await cluster.nodes() if info.id == node)


async def test_a_straggler_is_cancelled_and_its_slot_is_free(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 3)
    os.kill(await pid_of(cluster, "n2"), signal.SIGSTOP)
    async with asyncio.timeout(10):  # no health check has found it by then
        casts, text, done = await collect(cluster, ask("majority-vote", 3))
    assert text
    fusion = outcome(done)
    assert (fusion.asked, fusion.answered, fusion.cancelled, len(casts)) == (3, 2, 1, 2)
    assert {vote.node for vote in fusion.votes} == {"n1", "n3"}
    assert is_calm(cluster)


async def test_a_caller_who_is_slow_to_take_the_votes_keeps_no_slot(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 3)
    os.kill(await pid_of(cluster, "n2"), signal.SIGSTOP)
    async with aclosing(cluster.generate(ask("majority-vote", 3))) as events:
        async for event in events:
            assert isinstance(event, VoteCast)
            if event.answered == 2:
                assert is_calm(cluster), "the outcome is sure: the third is let go before this vote is told"
                break


async def test_who_is_late_has_no_vote(walk_model: Path) -> None:
    async with Cluster(settings(timeout="2500ms")) as cluster:
        await serve(cluster, walk_model, 3)
        os.kill(await pid_of(cluster, "n2"), signal.SIGSTOP)
        seen: list[VoteCast] = []
        with pytest.raises(NoQuorum, match="2 of 3 nodes agree, 3 are needed"):
            async for event in cluster.generate(ask("quorum", 3, min_consensus=3)):
                assert isinstance(event, VoteCast)
                seen.append(event)
        late = seen[-1].vote
        assert (late.node, late.text, late.weight, late.error) == ("n2", "", 0, "no answer within 2.5 s")
        assert seen[-1].answered == 2
        assert is_calm(cluster)


async def test_where_all_are_late_the_question_has_timed_out(walk_model: Path) -> None:
    async with Cluster(settings(timeout="2500ms")) as cluster:
        await serve(cluster, walk_model, 3)
        for node in ("n1", "n2", "n3"):
            os.kill(await pid_of(cluster, node), signal.SIGSTOP)
        with pytest.raises(TimedOut, match=r"no answer within 2\.5 s"):
            await collect(cluster, ask("majority-vote", 3))


async def test_a_voter_whose_node_is_killed_goes_on_elsewhere(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 3)
    whole = await plain(cluster, sampling=LONG)
    pid = await pid_of(cluster, "n1")
    for _ in range(20):  # a voter may be done before its node is killed
        voting = asyncio.create_task(collect(cluster, ask("quorum", 3, LONG, min_consensus=3)))
        await until(lambda: cluster._world.nodes["n1"].busy)
        os.kill(pid, signal.SIGKILL)
        _, text, done = await voting
        assert text == whole
        assert outcome(done).answered == 3
        if cluster._world.totals.failovers + cluster._world.totals.retries:
            break
        await until(lambda: cluster.cluster_status().nodes.ready == 3)
        pid = await pid_of(cluster, "n1")
    else:
        pytest.fail("no voter was ever met")
    assert is_calm(cluster)


async def test_who_leaves_takes_all_voters_along(cluster: Cluster, tiny_model: Path) -> None:
    await serve(cluster, tiny_model, 2)
    request = ask("majority-vote", 6, Sampling(max_tokens=100, temperature=1))
    async with aclosing(cluster.generate(request)) as events:
        assert isinstance(await anext(events), VoteCast)
    assert is_calm(cluster)
    leaving = asyncio.create_task(collect(cluster, request))
    await until(lambda: cluster.status().busy)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert is_calm(cluster)


async def test_when_all_fail_the_first_error_is_told(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 2)
    seen = []
    with pytest.raises(PromptTooLong):
        async for event in cluster.generate(ask("majority-vote", 3, prompt="long " * 2000)):
            seen.append(event)
    assert all(isinstance(event, VoteCast) and "the prompt has" in event.vote.error for event in seen)
    assert [event.answered for event in seen if isinstance(event, VoteCast)] == [0, 0, 0]
    with pytest.raises(BadRequest, match="the JSON schema is not JSON"):
        fusion = FusionRequest("quorum", 3)
        await collect(cluster, GenerateRequest(raw_prompt="x", json_schema="{", fusion=fusion))


async def test_the_metrics_tell_how_far_nodes_agree(cluster: Cluster, walk_model: Path, other_walk: Path) -> None:
    await serve(cluster, walk_model, 1)
    await serve(cluster, other_walk, 1)
    await collect(cluster, ask("majority-vote", 2, model="walk"))
    with pytest.raises(NoQuorum):
        await collect(cluster, ask("quorum", 2))
    lines = cluster.metrics().splitlines()
    assert 'llambo_fusion_agreement_ratio_count{strategy="majority-vote"} 1.0' in lines
    assert 'llambo_fusion_agreement_ratio_sum{strategy="majority-vote"} 1.0' in lines
    assert 'llambo_fusion_agreement_ratio_bucket{le="0.5",strategy="quorum"} 1.0' in lines
    assert 'llambo_tokens_total{kind="generated"} 32.0' in lines, "four answered"
    assert "llambo_inter_token_seconds_count 0.0" in lines, "the answer came all at once"
    assert 'llambo_requests_total{interface="python",outcome="done"} 1.0' in lines
    assert 'llambo_requests_total{interface="python",outcome="error"} 1.0' in lines
