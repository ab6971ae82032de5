"""Nodes: started, checked, suspected, restarted, drained, ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llambo.cluster.events import (
    ConversationsMoved,
    DrainWanted,
    KillWanted,
    ModelAdded,
    ModelRemoved,
    MoveConversations,
    NodeEnded,
    NodeStarted,
    NodeStartFailed,
    NodeStopped,
    NodeWanted,
    ProbeAnswered,
    ProbeFailed,
    RestartWanted,
    TellNodeReady,
)
from llambo.cluster.world import Policy
from llambo.core.types import LoadOptions
from tests.simulation.driver import Driver, M, check

Step = Callable[[Driver], object]

START: Step = lambda driver: driver.start("n1")  # noqa: E731
DIE: Step = lambda driver: driver.end("n1")  # noqa: E731
FAIL: Step = lambda driver: driver.tell(NodeStartFailed("n1", driver.node("n1").epoch, "bad_model", "no"))  # noqa: E731
ASK: Step = lambda driver: driver.ask()  # noqa: E731
MISS: Step = lambda driver: driver.tell(ProbeFailed("n1", driver.node("n1").epoch, "no answer"))  # noqa: E731
PASS: Step = lambda driver: driver.tell(ProbeAnswered("n1", driver.node("n1").epoch))  # noqa: E731
DRAIN: Step = lambda driver: driver.tell(DrainWanted("n1"))  # noqa: E731
KILL: Step = lambda driver: driver.tell(KillWanted("n1"))  # noqa: E731
STOPPED: Step = lambda driver: driver.tell(NodeStopped("n1", driver.node("n1").epoch))  # noqa: E731
RESTART: Step = lambda driver: driver.tell(RestartWanted("n1"))  # noqa: E731


@pytest.mark.parametrize(
    ("steps", "state", "epoch"),
    [
        ([], "starting", 1),
        ([START], "ready", 1),
        ([START, ASK], "busy", 1),
        ([FAIL], "gone", 0),
        ([START, DIE], "starting", 2),
        ([START, DIE, FAIL], "dead", 2),
        ([START, DIE, START, DIE], "dead", 2),
        ([START, MISS], "suspect", 1),
        ([START, ASK, MISS], "suspect", 1),
        ([START, MISS, PASS], "ready", 1),
        ([START, ASK, MISS, PASS], "busy", 1),
        ([START, MISS, MISS, MISS], "starting", 2),
        ([START, ASK, DRAIN], "draining", 1),
        ([START, ASK, DRAIN, MISS], "draining", 1),
        ([START, ASK, DRAIN, PASS], "draining", 1),
        ([START, ASK, DRAIN, DIE], "gone", 0),
        ([START, DRAIN], "dead", 1),
        ([START, DRAIN, STOPPED], "gone", 0),
        ([DRAIN, STOPPED], "gone", 0),
        ([START, MISS, DRAIN, STOPPED], "gone", 0),
        ([KILL], "dead", 1),
        ([START, KILL], "dead", 1),
        ([START, KILL, KILL], "dead", 1),
        ([START, KILL, DIE], "dead", 1),
        ([START, KILL, STOPPED], "gone", 0),
        ([START, KILL, RESTART], "dead", 1),
        ([START, STOPPED], "ready", 1),
        ([START, RESTART], "starting", 2),
        ([RESTART], "starting", 2),
        ([START, DIE, FAIL, RESTART], "starting", 3),
        ([START, DIE, FAIL, KILL], "dead", 2),
        ([START, DIE, FAIL, KILL, STOPPED], "gone", 0),
        ([START, PASS], "ready", 1),
        ([MISS], "starting", 1),
    ],
)
def test_a_nodes_life_goes_as_the_table_says(steps: list[Step], state: str, epoch: int) -> None:
    driver = Driver()
    driver.want()
    for step in steps:
        step(driver)
        check(driver, driver.world.flights)
    assert driver.state("n1") == state
    assert epoch == (driver.node("n1").epoch if state != "gone" else 0)


def test_a_started_node_is_what_it_says_of_itself() -> None:
    driver = Driver()
    driver.want(slots=1)
    driver.tell(NodeStarted("n1", 1, slots=3, ctx=777, kinds=frozenset({"embed", "generate"})))
    node = driver.node("n1")
    assert (node.slots, node.ctx, node.kinds) == (3, 777, frozenset({"embed", "generate"}))
    assert driver.all_said(TellNodeReady) == [TellNodeReady("n1")]
    check(driver, [])


def test_deaths_are_followed_by_ever_longer_waits_and_then_by_giving_up() -> None:
    driver = Driver(Policy(max_crashes=3))
    driver.serve()
    for death, wait in enumerate((0.0, 0.5, 1.0), start=1):
        driver.end("n1")
        if wait:
            driver.after(wait - 0.01)
            assert driver.state("n1") == "dead"
            driver.after(0.02)
        assert driver.started() == [("n1", death + 1)]
        driver.start("n1")
    waiting = driver.ask()
    driver.end("n1", "signal 11")
    assert driver.gone() == {"n1": "node_lost"}
    assert driver.node("n1").is_given_up
    driver.fail(waiting, "lost")
    assert driver.where(waiting) == "node_lost"
    driver.after(3600)
    assert driver.state("n1") == "dead"


def test_requests_for_a_model_that_was_given_up_are_refused_at_once_with_the_reason() -> None:
    driver = Driver(Policy(max_crashes=0))
    driver.serve()
    driver.ask()
    waiting = driver.ask()
    driver.end("n1", "signal 11")
    message = "model m failed: its node died 1 times in a minute (signal 11); FREE it and LOAD it again"
    assert driver.refused[waiting] == ("node_lost", message)
    assert driver.refused[driver.ask()] == ("node_lost", message)


def test_a_restart_on_command_gives_a_clean_record() -> None:
    driver = Driver(Policy(max_crashes=0))
    driver.serve()
    driver.end("n1")
    driver.tell(RestartWanted("n1"))
    assert (driver.started(), driver.node("n1").is_given_up) == ([("n1", 2)], False)
    driver.start("n1")
    assert driver.where(driver.ask()) == "n1"


def test_old_deaths_are_forgotten() -> None:
    driver = Driver(Policy(max_crashes=1, crash_window_s=60))
    driver.serve()
    for _ in range(10):
        driver.end("n1")
        assert driver.started() != []
        driver.start("n1")
        driver.after(61)


def test_somebody_elses_server_is_never_given_up() -> None:
    driver = Driver(Policy(max_crashes=0))
    driver.serve(launcher="attach")
    waits = []
    for _ in range(20):
        driver.end("n1")
        before = driver.now
        while driver.state("n1") == "dead":
            driver.after(0.25)
        waits.append(driver.now - before)
        driver.tell(NodeStartFailed("n1", driver.node("n1").epoch, "unreachable", "nobody there"))
        while driver.state("n1") == "dead":
            driver.after(0.25)
        driver.start("n1")
    assert waits[:2] == [0.5, 2.0]
    assert max(waits) <= 30.25
    assert not driver.node("n1").is_given_up


def test_a_model_that_an_attached_server_brought_goes_with_it() -> None:
    driver = Driver(model=False)
    driver.tell(ModelAdded(M, LoadOptions(), attached=True))
    driver.serve(launcher="attach")
    driver.tell(KillWanted("n1"))
    assert M in driver.world.models
    driver.tell(NodeStopped("n1", 1))
    assert driver.world.models == {}
    assert driver.where(driver.ask()) == "not_found"


@pytest.mark.parametrize(
    "event",
    [
        NodeEnded("n1", 1, "old"),
        NodeStopped("n1", 1),
        NodeStartFailed("n1", 1, "failed", "old"),
        ProbeAnswered("n1", 1, "old"),
        ProbeFailed("n1", 1, "old"),
        NodeEnded("n9", 1, "unknown"),
        ProbeFailed("n9", 1, "unknown"),
    ],
)
def test_an_earlier_epoch_is_never_believed(event: NodeEnded) -> None:
    for starts in (False, True):
        driver = Driver()
        driver.serve()
        driver.end("n1")
        if starts:
            driver.start("n1")
        assert driver.tell(event) == []
        assert (driver.state("n1"), driver.node("n1").epoch) == ("ready" if starts else "starting", 2)


def test_a_process_that_is_ready_when_it_is_wanted_no_more_is_stopped() -> None:
    driver = Driver()
    driver.serve()
    driver.end("n1")
    driver.tell(NodeStarted("n1", 1, 1, 1000))
    assert (driver.stopped(), driver.state("n1")) == ([("n1", 1)], "starting")
    driver.tell(NodeStarted("n7", 1, 1, 1000))
    assert driver.stopped() == [("n7", 1)]


def test_hearing_twice_that_a_node_is_ready_does_not_stop_it() -> None:
    driver = Driver()
    driver.serve()
    driver.ask()
    driver.start("n1")
    assert (driver.said, driver.state("n1")) == ([], "busy")


def test_checks_come_in_turns_and_one_at_a_time() -> None:
    driver = Driver(Policy(health_interval_s=5))
    driver.serve()
    driver.after(5)
    assert driver.probed() == [("n1", False)]
    driver.after(60)
    assert driver.probed() == []  # it has not answered yet
    driver.tell(ProbeAnswered("n1", 1))
    driver.after(4.9)
    assert driver.probed() == []
    driver.after(0.2)
    assert len(driver.probed()) == 1


def test_lost_connections_do_not_make_the_checks_more_frequent() -> None:
    driver = Driver(Policy(strategy="random", health_interval_s=5, max_retries=0))
    driver.serve(slots=4)
    for _ in range(20):
        driver.fail(driver.ask(), "lost")
        driver.tell(ProbeAnswered("n1", 1))
    count = 0
    for _ in range(100):
        if driver.after(0.5) and driver.probed():
            count += 1
            driver.tell(ProbeAnswered("n1", 1))
    assert 8 <= count <= 11


def test_many_nodes_are_checked_less_often() -> None:
    driver = Driver(Policy(health_interval_s=1, probes_per_s=2))
    for _ in range(20):
        driver.serve()
    count = 0
    for _ in range(200):
        driver.after(0.1)
        for node, _ in driver.probed():
            count += 1
            driver.tell(ProbeAnswered(node, 1))
    assert 30 <= count <= 60  # not 400


def test_every_now_and_then_the_check_is_an_answer_but_never_on_a_busy_node() -> None:
    driver = Driver(Policy(health_interval_s=1, probe_interval_s=4))
    driver.serve(slots=2)

    def checks(count: int) -> list[bool]:
        found: list[bool] = []
        while len(found) < count:
            driver.after(1)
            found += [end_to_end for _, end_to_end in driver.probed()]
            driver.tell(ProbeAnswered("n1", 1, "yes" if found[-1:] == [True] else None))
        return found

    assert sum(checks(12)) == 3
    driver.ask()
    assert sum(checks(12)) == 0


def answer(driver: Driver, node: str, text: str) -> None:
    driver.tell(ProbeAnswered(node, driver.node(node).epoch, text))


def test_a_node_that_twice_answers_other_than_its_peers_is_replaced() -> None:
    driver = Driver()
    for _ in range(3):
        driver.serve()
    for node in ("n1", "n2", "n3"):
        answer(driver, node, "right" if node != "n3" else "wrong")
    assert driver.state("n3") == "ready"
    driver.after(1)
    assert ("n3", True) in driver.probed()
    answer(driver, "n3", "wrong")
    assert "node_quarantined" in driver.published()
    assert (driver.stopped(), driver.started()) == ([("n3", 1)], [("n3", 2)])
    check(driver, [])


def test_two_nodes_that_differ_are_both_left_alone() -> None:
    driver = Driver()
    driver.serve()
    driver.serve()
    for _ in range(5):
        answer(driver, "n1", "one")
        answer(driver, "n2", "other")
    assert (driver.state("n1"), driver.state("n2")) == ("ready", "ready")


def test_a_minority_does_not_judge_the_majority() -> None:
    driver = Driver()
    for _ in range(5):
        driver.serve()
    for _ in range(3):
        for node, text in zip(("n1", "n2", "n3", "n4", "n5"), "aabbc", strict=True):
            answer(driver, node, text)
    assert {driver.state(f"n{number}") for number in range(1, 6)} == {"ready"}


def test_somebody_elses_wrong_server_gets_nothing_until_it_agrees() -> None:
    driver = Driver()
    for launcher in ("local", "local", "attach"):
        driver.serve(launcher=launcher)
    for node, text in (("n1", "a"), ("n2", "a"), ("n3", "b"), ("n3", "b")):
        answer(driver, node, text)
    assert (driver.state("n3"), driver.stopped()) == ("suspect", [])
    assert {driver.where(driver.ask()) for _ in range(3)} == {"n1", "n2", "queued"}
    answer(driver, "n3", "a")
    assert driver.state("n3") == "busy"  # it took the one that waited


def test_a_drained_node_finishes_hands_its_conversations_on_and_ends() -> None:
    driver = Driver()
    driver.serve(slots=2)
    running = driver.ask(session="s")
    other = driver.serve(slots=2)
    driver.tell(DrainWanted("n1"))
    assert (driver.all_said(MoveConversations), driver.where(running)) == ([], "n1")
    driver.finish(running, chain=(1, 2))
    assert driver.all_said(MoveConversations) == [MoveConversations("n1", other)]
    assert driver.where(driver.ask()) == other
    driver.tell(ConversationsMoved("n1", other, 1))
    assert driver.world.index.best("s", (1, 2)) == other
    assert driver.stopped() == [("n1", 1)]
    driver.tell(NodeStopped("n1", 1))
    assert driver.gone() == {"n1": ""}


def test_conversations_are_handed_on_once_and_only_by_a_draining_node() -> None:
    driver = Driver()
    driver.serve(slots=2)
    driver.serve(slots=2)
    old = driver.ask()
    node = driver.where(old)
    driver.end(node)
    driver.start(node)
    driver.tell(DrainWanted(node))
    assert len(driver.all_said(MoveConversations)) == 1
    driver.fail(old, "lost")  # of the process before
    assert driver.all_said(MoveConversations) == []
    other = ({"n1", "n2"} - {node}).pop()
    driver.tell(ConversationsMoved(other, node, 0))
    assert driver.state(other) in ("ready", "busy")


def test_nodes_that_are_not_alike_are_handed_nothing() -> None:
    driver = Driver()
    driver.serve(slots=2, ctx=512)
    driver.serve(slots=2, ctx=1024)
    driver.tell(DrainWanted("n1"))
    assert (driver.all_said(MoveConversations), driver.stopped()) == ([], [("n1", 1)])


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 1e9, -1e9])
def test_a_clock_that_jumps_ends_no_request_and_condemns_no_node(jump: float) -> None:
    driver = Driver(Policy(queue_timeout_s=30, health_interval_s=10))
    driver.serve()
    running, waiting = driver.ask(), driver.ask()
    for _ in range(5):
        driver.after(1)
        driver.tell(ProbeAnswered("n1", 1))
    driver.now += jump
    driver.after(0.1)
    assert (driver.where(running), driver.where(waiting), driver.state("n1")) == ("n1", "queued", "busy")
    wake = driver.orchestrator.wake_at
    assert wake is not None
    assert driver.now <= wake <= driver.now + 30
    driver.after(31)
    assert driver.where(waiting) == "timeout"


def test_a_node_of_a_model_that_goes_is_not_started() -> None:
    driver = Driver()
    driver.serve()
    driver.tell(ModelRemoved(M))
    assert driver.tell(NodeWanted(M, "medium", LoadOptions())) == []
    assert driver.tell(NodeWanted("x", "medium", LoadOptions())) == []


def test_numbers_go_on_after_those_of_restored_nodes_and_none_is_given_twice() -> None:
    driver = Driver()
    driver.tell(NodeWanted(M, "medium", LoadOptions(), id="n7"))
    assert driver.started() == [("n7", 1)]
    assert driver.tell(NodeWanted(M, "medium", LoadOptions(), id="n7")) == []
    assert driver.want() == "n8"


@pytest.mark.parametrize("start", [0.1, 1234.567, 98765.4321, 1.7e9])
def test_a_timer_is_due_when_the_orchestrator_said_it_would_be(start: float) -> None:
    driver = Driver(Policy(auto_scale=True, health_interval_s=0.7))
    driver.now = start
    driver.after(0)
    for number in range(300):
        wake = driver.orchestrator.wake_at
        assert wake is not None
        driver.now = max(wake, driver.now)
        driver.after(0)
        later = driver.orchestrator.wake_at
        assert later is not None
        assert later > driver.now
        driver.now += 0.001 * (number % 3)
