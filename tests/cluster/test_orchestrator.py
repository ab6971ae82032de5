"""The two rules of the orchestrator, under any order of true and stale events."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llambo.cluster.autoscaler import ScalePolicy
from llambo.cluster.balancer import STRATEGIES
from llambo.cluster.events import (
    Command,
    ConversationsMoved,
    DrainWanted,
    Event,
    KillWanted,
    ModelAdded,
    ModelPinned,
    ModelRemoved,
    MoveConversations,
    NodeEnded,
    NodeStarted,
    NodeStartFailed,
    NodeStopped,
    NodeWanted,
    PlaceRequest,
    ProbeAnswered,
    ProbeFailed,
    ProbeNode,
    RefuseRequest,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    RequestGone,
    RestartWanted,
    ScaleWanted,
    StartNode,
    StopNode,
    StrategyChosen,
    Ticked,
)
from llambo.cluster.orchestrator import Orchestrator
from llambo.cluster.state import EMBED, GENERATE, TRANSITIONS, NodeState, Route
from llambo.cluster.world import Policy, World
from llambo.core.types import LoadOptions
from tests.simulation.driver import Driver, check

MODELS = ("m", "other")
numbers = st.integers(0, 10**6)
models = st.sampled_from(MODELS)


class Watched(Driver):
    """A driver that also checks each command against what is so when it is given, and each change of state."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.open: set[int] = set()
        self.loading: list[tuple[str, int]] = []
        self.running: list[tuple[str, int]] = []
        self.stopping: list[tuple[str, int]] = []
        self.probing: list[tuple[str, int]] = []
        self.moving: list[tuple[str, str]] = []
        self.ever: list[tuple[str, int]] = []
        watch_states(self.world)

    def tell(self, event: Event) -> list[Command]:
        for command in super().tell(event):
            match command:
                case PlaceRequest(number, node, epoch):
                    assert number in self.open
                    found = self.world.nodes[node]
                    assert found.epoch == epoch
                    assert found.has_served
                    assert found.busy <= found.slots
                case RefuseRequest(number):
                    self.open.discard(number)
                case StartNode(node, epoch):
                    assert (node, epoch) not in self.ever, "a process was started twice"
                    self.loading.append((node, epoch))
                    self.ever.append((node, epoch))
                case StopNode(node, epoch):
                    self.stopping.append((node, epoch))
                case ProbeNode(node, epoch):
                    assert (node, epoch) not in self.probing, "a node is checked twice at once"
                    self.probing.append((node, epoch))
                case MoveConversations(source, target):
                    assert source not in [pair[0] for pair in self.moving], "conversations were handed on twice"
                    self.moving.append((source, target))
                case _:
                    pass
        return self.said


def watch_states(world: World) -> None:
    """Every change goes through `World.change`: nothing may be in another state than it left."""
    change, take = world.change, world.take_slot

    def changed(node, what, reason=""):  # type: ignore[no-untyped-def]
        assert (node.state, what) in TRANSITIONS
        change(node, what, reason)

    def taken(node):  # type: ignore[no-untyped-def]
        assert node.state is NodeState.READY, "a request was sent to a node that does not serve"
        assert node.busy < node.slots, "a request was sent to a full node"
        take(node)

    world.change, world.take_slot = changed, taken  # type: ignore[method-assign]


class Life(RuleBasedStateMachine):
    """Anything that can happen to a cluster, and a good deal that comes too late."""

    def __init__(self) -> None:
        super().__init__()
        scale = ScalePolicy(minimum=0, maximum=4, cool_down_s=3)
        policy = Policy(auto_scale=True, scale=scale, queue_limit=3, queue_timeout_s=6, max_retries=2, max_crashes=2)
        self.driver = Watched(policy)

    def pick(self, known: list[tuple[str, int]], number: int) -> tuple[str, int]:
        return known.pop(number % len(known))

    @rule(model=models, attached=st.booleans())
    def add_model(self, model: str, attached: bool) -> None:
        self.driver.tell(ModelAdded(model, LoadOptions(slots=2, ctx=512), "medium", attached=attached))

    @rule(model=models)
    def remove_model(self, model: str) -> None:
        self.driver.tell(ModelRemoved(model))

    @rule(model=models, type_=st.sampled_from(["medium", "large"]), launcher=st.sampled_from(["local", "attach"]))
    def want(self, model: str, type_: str, launcher: str) -> None:
        self.driver.tell(NodeWanted(model, type_, LoadOptions(slots=2, ctx=512), launcher))

    @precondition(lambda self: self.driver.loading)
    @rule(number=numbers, slots=st.integers(1, 3), ctx=st.sampled_from([512, 4096]), fails=st.integers(0, 4))
    def load(self, number: int, slots: int, ctx: int, fails: int) -> None:
        node, epoch = self.pick(self.driver.loading, number)
        if fails == 0:
            self.driver.tell(NodeStartFailed(node, epoch, "bad_model", "no"))
        elif fails == 1:
            self.driver.tell(NodeEnded(node, epoch, "died while loading"))
        else:
            kinds = frozenset({GENERATE, EMBED}) if ctx == 4096 else None
            self.driver.running.append((node, epoch))
            self.driver.tell(NodeStarted(node, epoch, slots, ctx, kinds))

    @precondition(lambda self: self.driver.running)
    @rule(number=numbers)
    def die(self, number: int) -> None:
        node, epoch = self.pick(self.driver.running, number)
        self.driver.tell(NodeEnded(node, epoch, "signal 9"))

    @precondition(lambda self: self.driver.stopping)
    @rule(number=numbers)
    def stop(self, number: int) -> None:
        self.driver.tell(NodeStopped(*self.pick(self.driver.stopping, number)))

    @precondition(lambda self: self.driver.probing)
    @rule(number=numbers, answer=st.sampled_from([None, "a", "a", "b", "missed"]))
    def probe(self, number: int, answer: str | None) -> None:
        node, epoch = self.pick(self.driver.probing, number)
        if answer == "missed":
            self.driver.tell(ProbeFailed(node, epoch, answer))
        else:
            self.driver.tell(ProbeAnswered(node, epoch, answer))

    @precondition(lambda self: self.driver.moving)
    @rule(number=numbers, moved=st.integers(0, 1))
    def move(self, number: int, moved: int) -> None:
        source, target = self.driver.moving.pop(number % len(self.driver.moving))
        self.driver.tell(ConversationsMoved(source, target, moved))

    @precondition(lambda self: self.driver.ever)
    @rule(number=numbers, kind=st.integers(0, 6))
    def say_what_is_stale(self, number: int, kind: int) -> None:
        """Words about processes that ended, or that were told before."""
        node, epoch = self.driver.ever[number % len(self.driver.ever)]
        known = self.driver.world.nodes.get(node)
        if known is not None and known.epoch == epoch:
            return
        events: tuple[Event, ...] = (
            NodeStarted(node, epoch, 2, 512),
            NodeStartFailed(node, epoch, "failed", "late"),
            NodeEnded(node, epoch, "late"),
            NodeStopped(node, epoch),
            ProbeAnswered(node, epoch, "late"),
            ProbeFailed(node, epoch, "late"),
            RequestFinished(10**9),
        )
        self.driver.tell(events[kind])

    @rule(
        model=models,
        session=st.sampled_from(["", "a", "b", "c"]),
        kind=st.sampled_from([GENERATE, GENERATE, EMBED]),
        node_type=st.sampled_from(["", "", "large"]),
        hashes=st.integers(0, 4),
    )
    def ask(self, model: str, session: str, kind: str, node_type: str, hashes: int) -> None:
        self.driver.requests += 1
        number = self.driver.requests
        self.driver.open.add(number)
        chain = tuple(range(1, hashes + 1))
        route = Route(number, model, kind, session, node_type, chain=chain, size_chars=hashes * 128)
        self.driver.tell(RequestArrived(route))

    @precondition(lambda self: self.driver.placed)
    @rule(number=numbers, how=st.sampled_from(["finish", "finish", "lost", "failed", "too_long"]), late=st.booleans())
    def answer(self, number: int, how: str, late: bool) -> None:
        request = sorted(self.driver.placed)[number % len(self.driver.placed)]
        if how == "finish":
            self.driver.open.discard(request)
            self.driver.finish(request, tokens=20, decode_s=1.0, prompt_tokens=9, cached_tokens=1, chain=(1, 2, 3))
        else:
            self.driver.fail(request, how, delivered=late)

    @precondition(lambda self: self.driver.open)
    @rule(number=numbers, is_gone=st.booleans())
    def leave(self, number: int, is_gone: bool) -> None:
        request = sorted(self.driver.open)[number % len(self.driver.open)]
        self.driver.open.discard(request)
        self.driver.placed.pop(request, None)
        self.driver.tell(RequestGone(request) if is_gone else RequestFailed(request))

    @precondition(lambda self: self.driver.world.nodes)
    @rule(number=numbers, what=st.sampled_from([DrainWanted, KillWanted, RestartWanted]))
    def order(self, number: int, what: type[DrainWanted | KillWanted | RestartWanted]) -> None:
        names = list(self.driver.world.nodes)
        self.driver.tell(what(names[number % len(names)]))

    @rule(model=models, count=st.integers(0, 3), strategy=st.sampled_from(STRATEGIES))
    def command(self, model: str, count: int, strategy: str) -> None:
        self.driver.tell(ScaleWanted(model, count))
        self.driver.tell(ModelPinned(model, count > 1))
        self.driver.tell(StrategyChosen(strategy))

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 3.0, 20.0, -50.0, 1e7]))
    def time_passes(self, seconds: float) -> None:
        self.driver.now += seconds
        self.driver.tell(Ticked())

    @invariant()
    def the_rules_hold(self) -> None:
        check(self.driver, self.driver.open)

    @invariant()
    def nobody_waits_without_hope(self) -> None:
        for model in self.driver.world.models.values():
            for flight in model.queue:
                pools = [pool for pool in model.pools if flight.route.kind in pool.kinds]
                assert any(node.is_coming for pool in pools for node in pool.nodes.values())

    def teardown(self) -> None:
        """Everything that is open ends: the queue by its deadlines, what is on nodes by its nodes' deaths."""
        driver = self.driver
        for model in MODELS:
            driver.tell(ModelRemoved(model))
        while driver.placed:
            driver.fail(min(driver.placed), "lost")
        while driver.stopping:
            driver.tell(NodeStopped(*driver.stopping.pop()))
        assert driver.open == set()
        assert (driver.world.nodes, driver.world.flights, driver.world.models) == ({}, {}, {})
        assert driver.world.rates.mean == 0
        totals = driver.world.totals
        assert totals.requests == totals.finished + totals.failed + totals.cancelled == driver.requests


TestAnyLife = Life.TestCase
TestAnyLife.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_the_same_events_and_chance_give_the_same_commands() -> None:
    def commands() -> list[Command]:
        orchestrator = Orchestrator(Policy(), random.Random(5))
        said = orchestrator.handle(ModelAdded("m", LoadOptions(slots=2), "medium"), 0.0)
        for number in range(20):
            said += orchestrator.handle(NodeWanted("m", "medium", LoadOptions(slots=2)), 0.0)
            said += orchestrator.handle(NodeStarted(f"n{number + 1}", 1, 2, 512), 0.0)
        for number in range(60):
            said += orchestrator.handle(RequestArrived(Route(number, "m", session=f"s{number % 7}")), number / 10)
        return said

    assert commands() == commands()


def test_unknown_names_in_orders_change_nothing() -> None:
    driver = Driver()
    for event in (
        DrainWanted("x"),
        KillWanted("x"),
        RestartWanted("x"),
        ScaleWanted("x", 3),
        ModelPinned("x", True),
        ModelRemoved("x"),
        ConversationsMoved("x", "y", 1),
    ):
        assert driver.tell(event) == []
