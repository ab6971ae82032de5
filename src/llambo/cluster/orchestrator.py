"""The orchestrator: decides everything, does nothing.

`handle(event, now)` takes what happened and gives the commands to perform. It never blocks, reads no clock and draws no
chance of its own, so that the runtime and the simulator drive the very same code. Two rules hold at every moment:

- every request that arrived is in exactly one place: on a node, in its model's queue, or ended;
- a node's state changes only as `state.TRANSITIONS` says.

The work is done by four hands that share one `World`: `placement` has the requests, `lifecycle` the nodes, `scaling`
their number, and this module passes each event to the right one.
"""

from __future__ import annotations

from typing import assert_never

from llambo.cluster.balancer import Chance
from llambo.cluster.events import (
    Command,
    ConversationsMoved,
    DrainWanted,
    Event,
    KillWanted,
    ModelAdded,
    ModelPinned,
    ModelRemoved,
    ModelUnloaded,
    NodeEnded,
    NodeStarted,
    NodeStartFailed,
    NodeStopped,
    NodeWanted,
    NumbersTaken,
    ProbeAnswered,
    ProbeFailed,
    RequestArrived,
    RequestBroken,
    RequestFailed,
    RequestFinished,
    RequestGone,
    RestartWanted,
    SaveCheckpoint,
    ScaleWanted,
    StrategyChosen,
    Ticked,
)
from llambo.cluster.lifecycle import Lifecycle
from llambo.cluster.scaling import Scaling
from llambo.cluster.state import Route
from llambo.cluster.world import Policy, Timer, World


class Orchestrator:
    """The one owner of the cluster's state. Names in events are the caller's to check; unknown ones change nothing."""

    def __init__(self, policy: Policy, chance: Chance) -> None:
        self.world = World(policy, chance)
        self._lifecycle = Lifecycle(self.world)
        self._placement = self._lifecycle.placement
        self._scaling = Scaling(self.world, self._lifecycle)

    @property
    def wake_at(self) -> float | None:
        """When `Ticked` should come, on the clock that `handle` is given; None: not before the next event."""
        return self.world.wake_at

    def handle(self, event: Event, now: float) -> list[Command]:
        """What to do about `event`; `now` in seconds of any clock that goes forward."""
        self.world.advance(now)
        if not self._scaling.has_begun:
            self._scaling.begin()
        self._take(event)
        while (due := self.world.due()) is not None:
            self._take_timer(*due)
        commands, self.world.commands = self.world.commands, []
        return commands

    def _take(self, event: Event) -> None:  # noqa: PLR0912 - one case per event, each of one line
        match event:  # of a class alone, and first what comes most: reading members in a pattern costs more
            case RequestArrived():
                self._arrived(event.route)
            case RequestFinished():
                self._placement.finished(event)
            case RequestBroken():
                self._broken(event)
            case RequestFailed():
                self._placement.failed(event.id)
            case RequestGone():
                self._placement.gone(event.id)
            case ModelAdded():
                self._lifecycle.add_model(event)
            case ModelRemoved():
                self._lifecycle.remove_model(event)
            case NumbersTaken(highest):
                self.world.use_number(highest)
            case ModelUnloaded(name):
                self._lifecycle.unload_model(name)
            case NodeStarted():
                self._lifecycle.started(event)
            case NodeStartFailed():
                self._lifecycle.start_failed(event)
            case NodeEnded(node, epoch, reason):
                self._lifecycle.ended(node, epoch, reason)
            case NodeStopped(node, epoch):
                self._lifecycle.stopped(node, epoch)
            case ProbeAnswered():
                self._lifecycle.health.probe_answered(event)
            case ProbeFailed():
                self._lifecycle.health.probe_failed(event)
            case ConversationsMoved():
                self._lifecycle.moved(event)
            case Ticked():
                pass
            case _:
                self._obey(event)

    def _arrived(self, route: Route) -> None:
        self._placement.arrived(route)
        model = self.world.models.get(route.model)
        if model is not None and len(model.queue):
            self._lifecycle.ensure_some(model, route.kind)

    def _broken(self, event: RequestBroken) -> None:
        flight = self.world.flights.get(event.id)
        if event.kind == "lost" and flight is not None and flight.node is not None:
            self._lifecycle.health.suspected(flight.node.id, flight.epoch)  # first, so that nobody else is sent there
        self._placement.broken(event)

    def _obey(  # noqa: PLR0912 - one case per order, each of one line
        self,
        event: ModelPinned | NodeWanted | ScaleWanted | DrainWanted | KillWanted | RestartWanted | StrategyChosen,
    ) -> None:
        """What an operator wants."""
        world = self.world
        match event:
            case NodeWanted(model):
                if model in world.models and not world.models[model].is_leaving and event.id not in world.nodes:
                    self._lifecycle.want(event)
            case ScaleWanted(model, count):
                if model in world.models and not world.models[model].is_leaving:
                    self._scaling.scale(world.models[model], count)
            case DrainWanted(node):
                if node in world.nodes:
                    self._lifecycle.drain([world.nodes[node]])
            case KillWanted(node, reason):
                if node in world.nodes:
                    self._lifecycle.kill(world.nodes[node], reason)
            case RestartWanted(node):
                if node in world.nodes:
                    self._lifecycle.restart(world.nodes[node])
            case ModelPinned(model, pinned):
                if model in world.models:
                    world.models[model].pinned = pinned
                    world.say(SaveCheckpoint())
            case StrategyChosen(strategy):
                world.balancer.use(strategy)
                world.publish("strategy", strategy=strategy)
                world.say(SaveCheckpoint())
            case _:
                assert_never(event)

    def _take_timer(self, timer: Timer, key: str | int, epoch: int) -> None:
        match timer:
            case Timer.PROBE:
                self._lifecycle.health.probe_due(str(key), epoch)
            case Timer.RESTART:
                self._lifecycle.restart_due(str(key), epoch)
            case Timer.DEADLINE:
                self._placement.expire(int(key))
            case Timer.SCALE:
                self._scaling.look()
            case _:
                assert_never(timer)
