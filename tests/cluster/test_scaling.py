"""The number of nodes, on command and by load."""

from __future__ import annotations

from llambo.cluster.autoscaler import ScalePolicy
from llambo.cluster.events import (
    DrainWanted,
    ModelRemoved,
    ModelUnloaded,
    MoveConversations,
    NodeStartFailed,
    NodeStopped,
    ScaleWanted,
)
from llambo.cluster.scaling import SETTLE_S
from llambo.cluster.state import EMBED
from llambo.cluster.world import Policy
from tests.simulation.driver import Driver, M, check


def auto(minimum: int = 1, maximum: int = 8) -> Driver:
    driver = Driver(
        Policy(
            strategy="least-loaded",
            auto_scale=True,
            scale=ScalePolicy(minimum=minimum, maximum=maximum, cool_down_s=10),
            health_interval_s=1000,
            queue_timeout_s=1000,
            max_crashes=0,
        )
    )
    driver.after(SETTLE_S + 1)
    driver.start("n1")  # the minimum wanted it
    driver.after(10)  # the cool-down
    return driver


def alive(driver: Driver) -> list[str]:
    return [node.id for node in driver.world.nodes.values() if node.is_coming]


def test_scaling_up_starts_what_is_missing() -> None:
    driver = Driver()
    driver.serve()
    driver.tell(ScaleWanted(M, 4))
    assert driver.started() == [("n2", 1), ("n3", 1), ("n4", 1)]
    assert driver.node("n4").options.ctx == 1000


def test_scaling_down_drains_and_the_idle_and_new_go_first() -> None:
    driver = Driver()
    for _ in range(4):
        driver.serve(slots=2)
    busy = {driver.where(driver.ask()) for _ in range(2)}
    starting = driver.want(slots=2)
    driver.tell(ScaleWanted(M, 2))
    assert driver.state(starting) == "dead"  # it served nobody
    assert set(alive(driver)) == busy
    check(driver, driver.world.flights)


def test_scaling_down_lets_running_answers_finish() -> None:
    driver = Driver()
    driver.serve()
    request = driver.ask()
    driver.tell(ScaleWanted(M, 0))
    assert (driver.state("n1"), driver.where(request)) == ("draining", "n1")
    driver.finish(request)
    driver.tell(NodeStopped("n1", 1))
    assert driver.state("n1") == "gone"


def test_somebody_elses_servers_are_neither_counted_nor_let_go() -> None:
    driver = Driver()
    driver.serve(launcher="attach")
    driver.serve()
    driver.tell(ScaleWanted(M, 1))
    assert alive(driver) == ["n1", "n2"]
    driver.tell(ScaleWanted(M, 0))
    assert alive(driver) == ["n1"]


def test_those_given_up_are_replaced_by_scaling_on_command() -> None:
    driver = Driver(Policy(max_crashes=0))
    driver.serve()
    driver.serve()
    driver.end("n2")
    assert driver.node("n2").is_given_up
    driver.tell(ScaleWanted(M, 2))
    assert (driver.started(), driver.stopped()) == ([("n3", 1)], [("n2", 1)])
    driver.tell(NodeStopped("n2", 1))
    assert driver.state("n2") == "gone"


def test_embedding_nodes_are_not_counted() -> None:
    driver = Driver()
    driver.serve()
    driver.want(kind=EMBED)
    driver.tell(ScaleWanted(M, 2))
    assert len(driver.started()) == 1


def test_a_leaving_model_is_not_scaled() -> None:
    driver = Driver()
    driver.serve()
    driver.tell(ModelRemoved(M))
    assert driver.tell(ScaleWanted(M, 3)) == []


def test_load_brings_nodes_and_its_end_takes_them_away() -> None:
    driver = auto()
    requests = [driver.ask(session=f"s{number}") for number in range(8)]
    driver.after(8)
    assert len(driver.world.nodes) == 2
    assert "scaled" in driver.published()
    for _ in range(60):
        for node in list(driver.world.nodes.values()):
            if node.state.value == "starting":
                driver.start(node.id)
        driver.after(1)
    assert len(driver.world.nodes) == 8  # 2, 3, 5 (eight answers on ten slots are still many), 8
    for request in requests:
        driver.finish(request)
    for _ in range(60):
        driver.after(1)
        for node in list(driver.world.nodes.values()):
            if node.state.value == "draining":
                driver.tell(DrainWanted(node.id))
    assert len(alive(driver)) == 1
    assert driver.world.totals.scaled_up >= 2
    assert driver.world.totals.scaled_down >= 1


def test_load_never_brings_more_than_the_maximum() -> None:
    driver = auto(maximum=3)
    for number in range(50):
        driver.ask(session=f"s{number}")
    for _ in range(100):
        driver.after(1)
    assert len(driver.world.nodes) == 3


def test_the_minimum_is_there_without_any_load() -> None:
    driver = auto(minimum=2)
    assert len(driver.world.nodes) == 2


def test_a_model_that_was_given_up_is_not_started_again_by_its_minimum() -> None:
    driver = auto(minimum=1)
    driver.end("n1")
    before = driver.world.totals.scaled_up
    driver.after(120)
    assert (list(driver.world.nodes), driver.world.totals.scaled_up) == (["n1"], before)
    assert "scaled" not in driver.published()


def test_requests_for_embeddings_bring_no_nodes_for_answers() -> None:
    driver = auto()
    for _ in range(20):
        driver.ask(kind=EMBED)
    driver.after(60)
    assert [node.id for node in driver.world.nodes.values() if EMBED not in node.kinds] == ["n1"]


def test_a_model_without_nodes_is_left_alone_while_they_are_being_ordered() -> None:
    driver = Driver(Policy(auto_scale=True, scale=ScalePolicy(minimum=1)))
    driver.after(SETTLE_S - 2)
    assert driver.world.nodes == {}
    driver.serve()
    driver.after(SETTLE_S)
    assert alive(driver) == ["n1"], "two would be one too many"


def test_a_model_whose_nodes_cannot_start_is_tried_again_now_and_then_and_not_all_the_time() -> None:
    driver = auto()
    driver.tell(DrainWanted("n1"))
    driver.tell(NodeStopped("n1", 1))
    tries = 0
    for _ in range(60):
        driver.after(1)
        for node in list(driver.world.nodes.values()):
            tries += 1
            driver.tell(NodeStartFailed(node.id, node.epoch, "bad_model", "it is no model"))
    assert 2 <= tries <= 7


def test_a_model_that_made_room_has_no_minimum_until_it_is_asked_for() -> None:
    driver = auto()
    driver.tell(ModelUnloaded(M))
    driver.tell(NodeStopped("n1", 1))
    driver.after(60)
    assert driver.world.nodes == {}
    driver.ask()
    assert alive(driver) == ["n2"]
    assert driver.node("n2").is_on_demand


def test_nodes_that_go_together_hand_nothing_to_each_other() -> None:
    driver = Driver()
    for _ in range(5):
        driver.serve()
    driver.tell(ScaleWanted(M, 1))
    assert {command.target for command in driver.all_said(MoveConversations)} == {"n1"}
