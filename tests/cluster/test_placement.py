"""Requests: placed, queued, tried elsewhere, refused."""

from __future__ import annotations

import pytest

from llambo.cluster.events import (
    DrainWanted,
    KillWanted,
    ModelAdded,
    ModelRemoved,
    NodeStarted,
    NodeStartFailed,
    NodeStopped,
    ProbeAnswered,
    RequestFailed,
    RequestFinished,
    RequestGone,
)
from llambo.cluster.state import EMBED
from llambo.cluster.world import Policy
from llambo.core.types import LoadOptions
from tests.simulation.driver import Driver, M, check

AFFINE = Policy(strategy="prefix-affinity")


def test_a_request_goes_to_a_free_node_and_its_slot_comes_back() -> None:
    driver = Driver()
    node = driver.serve()
    one, other = driver.ask(), driver.ask()
    assert (driver.where(one), driver.where(other), driver.state(node)) == (node, "queued", "busy")
    driver.finish(one, tokens=10)
    assert (driver.where(one), driver.where(other)) == ("ended", node)
    driver.finish(other, tokens=10)
    assert driver.state(node) == "ready"
    assert (driver.world.totals.finished, driver.world.totals.tokens) == (2, 20)


def test_the_name_of_no_model_is_refused_with_those_there_are() -> None:
    driver = Driver()
    assert driver.refused[driver.ask(model="x")] == ("not_found", "no model is called 'x'; loaded are m")


def test_a_type_that_no_node_has_is_refused_with_those_there_are() -> None:
    driver = Driver()
    driver.serve()
    assert driver.refused[driver.ask(node_type="large")] == ("bad_request", "no 'large' node has m; there are medium")


def test_a_type_that_would_not_be_started_is_refused_and_does_not_wait() -> None:
    driver = Driver()
    assert driver.where(driver.ask(node_type="large")) == "bad_request"
    assert driver.started() == []


def test_a_failed_request_goes_to_another_node_and_never_back() -> None:
    driver = Driver()
    nodes = {driver.serve(), driver.serve(), driver.serve()}
    request = driver.ask()
    tried = []
    for _ in range(3):
        tried.append(driver.where(request))
        driver.fail(request)
    assert set(tried) == nodes
    assert driver.refused[request] == ("engine_failed", "it failed")
    assert driver.world.totals.retries == 2


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_it_is_tried_again_at_most_so_many_times(retries: int) -> None:
    driver = Driver(Policy(strategy="random", max_retries=retries))
    for _ in range(8):
        driver.serve()
    request = driver.ask()
    for _ in range(retries):
        driver.fail(request)
        assert driver.where(request) in driver.world.nodes
    driver.fail(request)
    assert driver.where(request) == "engine_failed"


def test_taking_over_after_tokens_were_delivered_is_a_failover() -> None:
    driver = Driver()
    first, second = driver.serve(), driver.serve()
    request = driver.ask()
    there = driver.where(request)
    driver.fail(request, "lost", delivered=True)
    assert driver.where(request) == ({first, second} - {there}).pop()
    assert (driver.world.totals.failovers, driver.world.totals.retries) == (1, 0)
    driver.fail(request)  # once delivered, always delivered
    assert driver.world.totals.retries == 0


def test_too_long_a_prompt_goes_to_a_larger_context_only() -> None:
    driver = Driver()
    small, other = driver.serve(ctx=512), driver.serve(ctx=512)
    request = driver.ask()
    assert driver.where(request) in (small, other)
    large = driver.serve(type="large", ctx=4096)
    driver.fail(request, "too_long")
    assert driver.where(request) == large
    driver.fail(request, "too_long")
    assert driver.where(request) == "prompt_too_long"


def test_nodes_of_one_type_with_unequal_contexts_are_told_apart() -> None:
    driver = Driver()
    for ctx in (512, 4096):
        node = driver.want(launcher="attach", ctx=0)
        driver.tell(NodeStarted(node, 1, slots=4, ctx=ctx))
    requests = [driver.ask() for _ in range(4)]
    for request in requests:
        if driver.where(request) == "n1":
            driver.fail(request, "too_long")
        assert driver.where(request) == "n2"


def test_a_request_waits_no_longer_than_its_deadline() -> None:
    driver = Driver(Policy(queue_timeout_s=7))
    driver.serve(slots=3)
    for _ in range(3):
        driver.ask()
    late = driver.ask()
    driver.after(6.9)
    assert driver.where(late) == "queued"
    driver.after(0.2)
    assert driver.refused[late] == ("timeout", "no slot came free within 7 s; all 3 are busy")


def test_a_request_that_was_placed_in_time_is_not_ended_by_its_deadline() -> None:
    driver = Driver(Policy(strategy="random", queue_timeout_s=7))
    driver.serve()
    first, second = driver.ask(), driver.ask()
    driver.after(5)
    driver.finish(first)
    driver.after(60)
    assert driver.where(second) == "n1"


def test_a_request_that_broke_has_its_time_to_wait_again() -> None:
    driver = Driver(Policy(strategy="random", queue_timeout_s=7))
    nodes = [driver.serve(), driver.serve()]
    request, other = driver.ask(), driver.ask()
    driver.after(5)
    driver.fail(request)  # the other node is busy
    driver.after(6)
    assert driver.where(request) == "queued"
    driver.finish(other)
    assert driver.where(request) in nodes


def test_a_full_queue_answers_at_once_and_holds_so_many_per_node() -> None:
    driver = Driver(Policy(queue_limit=2))
    driver.serve()
    driver.serve()
    requests = [driver.ask() for _ in range(7)]
    assert [driver.where(one) for one in requests[2:]] == ["queued"] * 4 + ["overloaded"]
    assert "4 requests wait already" in driver.refused[requests[-1]][1]


def test_nodes_that_will_not_come_give_no_room_in_the_queue() -> None:
    driver = Driver(Policy(queue_limit=2))
    driver.serve()
    drained = driver.serve()
    running = [driver.ask(), driver.ask()]
    driver.tell(DrainWanted(drained))
    assert [driver.where(driver.ask()) for _ in range(3)] == ["queued", "queued", "overloaded"]
    check(driver, driver.world.flights.keys() | running)


@pytest.mark.parametrize("policy", [Policy(strategy="least-loaded"), AFFINE])
def test_sessions_share_a_freed_slot_in_turns(policy: Policy) -> None:
    driver = Driver(policy)
    driver.serve()
    running = driver.ask()
    greedy = [driver.ask(session="greedy") for _ in range(5)]
    modest = driver.ask(session="modest")
    order = []
    while driver.placed:
        order.append(running)
        driver.finish(running)
        running = next(iter(driver.placed), 0)
    assert order[1:] == [greedy[0], modest, *greedy[1:]]


def test_a_warm_conversation_overtakes_while_nobody_waits_long() -> None:
    for waited, first in ((0.5, "warm"), (1.5, "cold")):
        driver = Driver(AFFINE)
        driver.serve()
        driver.finish(driver.ask(session="warm"), prompt_tokens=10)
        running = driver.ask(session="other")
        found = {"cold": driver.ask(session="cold"), "warm": driver.ask(session="warm")}
        driver.after(waited)
        driver.finish(running)
        assert [name for name, number in found.items() if number in driver.placed] == [first]


def test_a_request_for_one_type_does_not_hold_up_those_for_any() -> None:
    driver = Driver()
    medium, large = driver.serve(), driver.serve(type="large", ctx=4096)
    running = {driver.ask(node_type="large"): large, driver.ask(node_type="medium"): medium}
    for number in range(100):
        driver.ask(session=f"s{number}", node_type="large")
    last = driver.ask(session="last")
    driver.finish(list(running)[1])
    assert driver.where(last) == medium


def test_from_zero_a_first_node_starts_and_serves_those_who_waited() -> None:
    driver = Driver()
    requests = [driver.ask(), driver.ask(), driver.ask()]
    assert {driver.where(one) for one in requests} == {"queued"}
    assert list(driver.world.nodes) == ["n1"]
    assert (driver.node("n1").type, driver.node("n1").options.slots) == ("medium", 2)
    driver.start("n1")
    assert [driver.where(one) for one in requests] == ["n1", "n1", "queued"]


def test_embeddings_get_a_node_of_their_own_kind() -> None:
    driver = Driver()
    driver.serve()
    request = driver.ask(kind=EMBED)
    assert driver.started() == [("n2", 1)]
    assert (driver.node("n2").type, driver.node("n2").kinds) == ("embedding", frozenset({EMBED}))
    driver.start("n2")
    assert (driver.where(request), driver.where(driver.ask())) == ("n2", "n1")


def test_when_the_first_node_cannot_start_those_who_wait_are_told_why() -> None:
    driver = Driver()
    requests = [driver.ask(), driver.ask()]
    driver.tell(NodeStartFailed("n1", 1, "no_memory", "it needs 8 GiB"))
    assert [driver.refused[one] for one in requests] == [("no_memory", "it needs 8 GiB")] * 2
    assert (driver.gone(), driver.started(), list(driver.world.nodes)) == ({"n1": "no_memory"}, [], [])


def test_a_lone_request_whose_connection_broke_is_refused_once_the_node_turns_out_to_live() -> None:
    driver = Driver()
    driver.serve(slots=2)
    request, other = driver.ask(), driver.ask()
    driver.fail(request, "lost")
    assert (driver.state("n1"), driver.where(request), driver.probed()) == ("suspect", "queued", [("n1", False)])
    driver.tell(ProbeAnswered("n1", 1))
    assert (driver.state("n1"), driver.where(request), driver.where(other)) == ("ready", "node_lost", "n1")


def test_a_lone_request_waits_for_the_restart_of_its_node() -> None:
    driver = Driver()
    node = driver.serve()
    request = driver.ask()
    driver.end(node)
    driver.fail(request, "lost")
    assert driver.where(request) == "queued"
    driver.start(node)
    assert driver.placed[request] == (node, 2)


def test_requests_only_a_drained_node_could_serve_are_refused_at_once() -> None:
    driver = Driver()
    driver.serve()
    large = driver.serve(type="large", ctx=4096)
    running, waiting = driver.ask(node_type="large"), driver.ask(node_type="large")
    driver.tell(DrainWanted(large))
    assert (driver.where(waiting), driver.where(running)) == ("node_lost", large)


def test_requests_that_wait_for_the_only_node_get_a_new_one_when_it_is_drained_or_killed() -> None:
    for event in (DrainWanted("n1"), KillWanted("n1")):
        driver = Driver()
        driver.serve()
        driver.ask()
        waiting = driver.ask()
        driver.tell(event)
        assert driver.started() == [("n2", 1)]
        driver.start("n2")
        assert driver.where(waiting) == "n2"


def test_a_request_that_ends_while_it_waits_leaves_the_queue() -> None:
    driver = Driver()
    driver.serve()
    driver.ask()
    failed, gone = driver.ask(), driver.ask()
    driver.tell(RequestFailed(failed))
    driver.tell(RequestGone(gone))
    assert (driver.where(failed), driver.where(gone)) == ("ended", "ended")
    check(driver, [1])
    assert (driver.world.totals.failed, driver.world.totals.cancelled) == (1, 1)


def test_words_about_a_request_that_is_over_change_nothing() -> None:
    driver = Driver()
    driver.serve()
    request = driver.ask()
    driver.finish(request)
    for event in (RequestFinished(request, tokens=9), RequestFailed(request), RequestGone(request)):
        assert driver.tell(event) == []
    check(driver, [])
    assert driver.world.totals.tokens == 0


def test_a_slot_of_an_earlier_epoch_is_not_given_back_to_the_new_process() -> None:
    driver = Driver()
    node = driver.serve(slots=2)
    old = driver.ask()
    driver.end(node)
    driver.start(node)
    new = driver.ask()
    driver.finish(old)
    assert driver.node(node).busy == 1
    check(driver, [new])


def test_a_freed_model_sends_its_requests_away_and_they_do_not_come_back_to_another_of_that_name() -> None:
    driver = Driver()
    driver.serve()
    running, waiting = driver.ask(), driver.ask()
    driver.tell(ModelRemoved(M))
    assert driver.where(waiting) == "no_model"
    assert driver.stopped() == [("n1", 1)]
    assert driver.where(driver.ask()) == "not_found"
    driver.tell(NodeStopped("n1", 1))
    assert driver.gone() == {"n1": ""}
    driver.tell(ModelAdded(M, LoadOptions(), "medium"))
    driver.serve()
    driver.fail(running, "lost", delivered=True)
    assert driver.where(running) == "node_lost"
    check(driver, [])


def test_a_model_is_loaded_again_while_its_old_nodes_end() -> None:
    driver = Driver()
    driver.serve()
    running = driver.ask()
    driver.tell(ModelRemoved(M))
    driver.tell(ModelAdded(M, LoadOptions(slots=3), "medium"))
    waiting = driver.ask()
    driver.tell(NodeStopped("n1", 1))
    driver.fail(running, "lost")
    driver.start("n2")
    assert (driver.where(running), driver.where(waiting), driver.node("n2").slots) == ("node_lost", "n2", 3)
    check(driver, [waiting])


def test_a_freed_model_with_only_dead_nodes_is_gone_with_them() -> None:
    driver = Driver()
    for _ in range(3):
        driver.end(driver.serve(launcher="attach"))
    driver.tell(ModelRemoved(M))
    for node, epoch in driver.stopped():
        driver.tell(NodeStopped(node, epoch))
    assert (driver.world.models, driver.world.nodes) == ({}, {})
    assert "model_removed" in driver.published()


def test_a_measured_answer_tells_a_nodes_speed_and_a_short_one_does_not() -> None:
    driver = Driver()
    node = driver.serve(slots=2)
    driver.finish(driver.ask(), tokens=7, decode_s=1.0)
    assert driver.node(node).rate_tps == 0
    driver.finish(driver.ask(), tokens=100, decode_s=2.0)
    assert driver.node(node).rate_tps == 50
    driver.finish(driver.ask(), tokens=100, decode_s=1.0)
    assert driver.node(node).rate_tps == pytest.approx(0.8 * 50 + 0.2 * 100)
    assert driver.world.rates.mean == pytest.approx(30)


def test_a_miss_in_the_cache_is_learnt_from() -> None:
    driver = Driver(AFFINE)
    driver.serve(slots=4)
    driver.serve(slots=4)
    driver.finish(driver.ask(chain=(1, 2, 3), size_chars=400), prompt_tokens=100, chain=(1, 2, 3))
    request = driver.ask(chain=(1, 2, 3), size_chars=400)
    node = driver.where(request)
    assert driver.world.flights[request].matched == 3
    driver.finish(request, prompt_tokens=100, cached_tokens=10, chain=())
    assert list(driver.world.index.candidates("", (1, 2, 3))) == []
    driver.finish(driver.ask(), chain=(4,))
    assert node in driver.world.nodes


def test_a_request_that_two_nodes_did_not_survive_gets_no_third() -> None:
    driver = Driver()
    for _ in range(4):
        driver.serve()
    request = driver.ask()
    for _ in range(2):
        node, _ = driver.placed[request]
        driver.end(node, "killed by signal 11 (SIGSEGV)")
        driver.fail(request, "lost")
    code, message = driver.refused[request]
    assert (code, message) == (
        "node_lost",
        "2 nodes died as they began with this request; it is not tried on another",
    )
    check(driver, [])
