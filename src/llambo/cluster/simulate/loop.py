"""The loop: takes the next thing that happens, tells the orchestrator, performs its commands on simulated nodes.

Everything that will happen is in `plans`. What was planned for a process or a placement that is gone is void: each
plan carries the epoch or the placement it was made for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from random import Random

from llambo.cluster.events import (
    Command,
    ConversationsMoved,
    Event,
    ModelAdded,
    MoveConversations,
    NodeEnded,
    NodeStarted,
    NodeStopped,
    NodeWanted,
    PlaceRequest,
    ProbeAnswered,
    ProbeFailed,
    ProbeNode,
    RefuseRequest,
    RequestArrived,
    RequestBroken,
    RequestFinished,
    StartNode,
    StopNode,
    Ticked,
)
from llambo.cluster.orchestrator import Orchestrator
from llambo.cluster.simulate.engine import CROWDING, Engine, Slot
from llambo.cluster.simulate.load import MEAN_ANSWER, MODEL, Load, Request
from llambo.cluster.simulate.outcome import Outcome, Tally, spread
from llambo.cluster.simulate.plans import Plans
from llambo.cluster.simulate.scenario import Scenario
from llambo.cluster.world import Policy
from llambo.core.types import LoadOptions

TYPE = "simulated"
CTX = 1_000_000
PROBE_S = 0.01
PROBE_TIMEOUT_S = 5.0
STOP_S = 0.05
MOVE_S = 0.1
STALL_S = 60.0
GIVE_UP_S = 3600.0
"""Whatever has not ended so long after the last request was made is lost."""
UNCACHED = 120
"""Prompt tokens that a typical request has to compute, for the choice of the arrival rate."""


class Simulation:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._chance = _chance(scenario.seed)
        policy = Policy(
            strategy=scenario.strategy,
            queue_limit=scenario.queue_limit,
            queue_timeout_s=scenario.queue_timeout_s,
        )
        self.orchestrator = Orchestrator(policy, _chance(scenario.seed + 1))
        self._load = Load(scenario, _chance(scenario.seed + 2))
        self.tally = Tally()
        self._plans = Plans()
        self.now = 0.0
        self._began = 0.0
        self._engines: dict[str, Engine] = {}
        self._retired: dict[str, list[Engine]] = defaultdict(list)
        self._names: list[str] = []
        self._starting: dict[str, int] = {}  # the epoch whose process loads
        self._open: dict[int, Request] = {}
        self._seen_systems: set[int] = set()
        self._rate = self._requests_per_s()

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Plays everything."""
        self._tell(ModelAdded(MODEL, LoadOptions(), TYPE))
        for number in range(self.scenario.nodes):
            slots = self.scenario.slots[number % len(self.scenario.slots)]
            self._tell(NodeWanted(MODEL, TYPE, LoadOptions(slots=slots)))
        self._began = self.scenario.start_s * 1.5
        self._plan(self._began, self._chat_begins)
        self._plan_next(self.scenario.deaths_per_min, self._node_dies)
        self._plan_next(self.scenario.hangs_per_min, self._node_hangs)
        if self.scenario.burst:
            self._plan(self._began + self.scenario.burst_every_s, self._burst)
        self._play()
        return self._outcome()

    def _play(self) -> None:
        plans, orchestrator, load = self._plans, self.orchestrator, self._load
        stop_at = float("inf")
        while (next_s := plans.next_s()) is not None:
            wake_at = orchestrator.wake_at
            if wake_at is not None and wake_at <= next_s:
                self.now = max(self.now, wake_at)
                self._tell(Ticked())
                continue
            self.now, _, act, arguments = plans.pop()
            act(*arguments)
            if load.is_spent:
                if not self._open:
                    return
                stop_at = min(stop_at, self.now + GIVE_UP_S)
                if self.now > stop_at:
                    return

    def _plan(self, delay_s: float, act: Callable[..., None], *arguments: object) -> None:
        self._plans.add(self.now + delay_s, act, arguments)

    def _plan_next(self, per_min: float, act: Callable[[], None]) -> None:
        if per_min:
            self._plan(self._chance.expovariate(per_min / 60.0), act)

    def _tell(self, event: Event) -> None:
        self.tally.events += 1
        for command in self.orchestrator.handle(event, self.now):
            self._perform(command)

    def _perform(self, command: Command) -> None:
        match command:
            case PlaceRequest():
                self._place(command.id, command.node, command.epoch)
            case RefuseRequest(request_id, code):
                self._refused(request_id, code)
            case StartNode(node, epoch):
                self._starting[node] = epoch
                self._plan(self.scenario.start_s * (0.5 + self._chance.random()), self._started, node, epoch)
            case StopNode(node, epoch):
                self._plan(STOP_S, self._stopped, node, epoch)
            case ProbeNode(node, epoch, end_to_end):
                self._probe(node, epoch, end_to_end)
            case MoveConversations(source, target):
                self._plan(MOVE_S, self._moved, source, target)
            case _:
                pass

    # --- people ---------------------------------------------------------------------------------------------------

    def _chat_begins(self) -> None:
        if self._load.is_spent:
            return
        self._turn(self._load.chat())
        chats_per_s = self._rate / ((1 + self.scenario.turns) / 2)
        self._plan(self._chance.expovariate(chats_per_s), self._chat_begins)

    def _burst(self) -> None:
        for _ in range(self.scenario.burst):
            self._turn(self._load.chat())
        greedy = f"greedy{self._plans.made}"
        for _ in range(self.scenario.burst // 10):
            self._turn(self._load.chat(greedy, turns=1))
        self._plan(self.scenario.burst_every_s, self._burst)

    def _turn(self, chat: object) -> None:
        if self._load.is_spent:
            return
        request = self._load.turn(chat, self.now)  # type: ignore[arg-type]
        self._open[request.id] = request
        request.oracle = self._oracle(request)
        self._tell(RequestArrived(self._load.route(request)))

    def _oracle(self, request: Request) -> int:
        """Tokens of the prompt that one node with unlimited slots would have."""
        chat = request.chat
        if chat.known:
            return min(chat.known, request.prompt - 1)
        return chat.system_tokens if chat.system in self._seen_systems else 0

    def _refused(self, request_id: int, code: str) -> None:
        self.tally.refused[code] = self.tally.refused.get(code, 0) + 1
        request = self._end(request_id)
        if request is not None and request.node:
            self.tally.doubled += 1  # refused while a node had it

    def _end(self, request_id: int) -> Request | None:
        request = self._open.pop(request_id, None)
        if request is None:
            self.tally.doubled += 1
        return request

    # --- answers --------------------------------------------------------------------------------------------------

    def _place(self, request_id: int, node: str, epoch: int) -> None:
        request, engine = self._open.get(request_id), self._engines.get(node)
        if request is None or request.node:
            self.tally.doubled += 1
            return
        if request.started < 0:
            request.started = self.now
            self.tally.queue_s.append(self.now - request.arrived)
        request.placing += 1
        if engine is None or engine.epoch != epoch:
            request.node, request.slot = node, -1  # it runs into a closed door
            self._plan(PROBE_S, self._break, request, request.placing, node)
            return
        if engine.busy >= len(engine.slots):
            raise AssertionError(f"node {node} got a request over its {len(engine.slots)} slots")
        engine.begin(request, self.now)
        if engine.is_hung:
            self._plan(STALL_S, self._stall, request, request.placing, engine)
        else:
            ends = self.now + (request.prefill_s + request.decode_s)
            self._plans.add(ends, self._finish, (request, request.placing, engine))

    def _finish(self, request: Request, placing: int, engine: Engine) -> None:
        if request.placing != placing or engine.is_hung or not request.node:
            return
        tally, chat = self.tally, request.chat
        whole_s = self.now - request.arrived
        if not request.has_first:
            tally.ttft_s.append(request.placed + request.prefill_s - request.arrived)
        ideal_s = request.answer / self.scenario.decode_tps + 1 / self.scenario.prefill_tps
        tally.pace(chat.session, ideal_s, whole_s)
        tokens = request.answer - request.emitted
        request.emitted = request.answer
        engine.end(request, self.now)
        engine.served += 1
        request.node = ""
        tally.finished += 1
        tally.tokens += tokens
        tally.prompt_tokens += request.prompt
        tally.oracle_tokens += request.oracle
        tally.cached_tokens += min(request.cached, request.prompt)
        chat.tokens += request.answer
        chat.known = chat.tokens
        self._seen_systems.add(chat.system)
        self._end(request.id)
        self._tell(
            RequestFinished(
                request.id, tokens, request.decode_s, request.prompt, request.cached, chat.chain(chat.tokens)
            )
        )
        if chat.turns_left > 0:
            self._plan(self._chance.expovariate(1 / self.scenario.think_s), self._turn, chat)

    def _stall(self, request: Request, placing: int, engine: Engine) -> None:
        """Nothing has come for so long that the caller's side closes the connection."""
        if request.placing == placing and request.node == engine.node and self._engines.get(engine.node) is engine:
            engine.end(request, self.now)
            self._break(request, placing, engine.node)

    def _break(self, request: Request, placing: int, node: str) -> None:
        """The connection that carried the answer is gone."""
        if request.placing != placing or request.node != node:
            return
        request.node = ""
        request.placing += 1
        self._tell(RequestBroken(request.id, "lost", "node_lost", f"{node} is gone", request.has_first))

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _started(self, node: str, epoch: int) -> None:
        if self._starting.get(node) != epoch:
            return
        del self._starting[node]
        number = self.orchestrator.world.nodes[node].number if node in self.orchestrator.world.nodes else 0
        slots = self.scenario.slots[(number - 1) % len(self.scenario.slots)]
        speed = self._speed(number)
        engine = Engine(node, epoch, speed, self.scenario.decode_tps, self.scenario.prefill_tps)
        engine.slots, engine.spare = [Slot() for _ in range(slots)], self.scenario.spare
        if node not in self._retired and node not in self._engines:
            self._names.append(node)
        self._engines[node] = engine
        self._tell(NodeStarted(node, epoch, slots, CTX))

    def _speed(self, number: int) -> float:
        """Slow nodes are spread evenly over the numbers, so that every size of node has its share of them."""
        share = self.scenario.slow_share
        at = (number - 1) // len(self.scenario.slots)
        return self.scenario.slow_speed if int((at + 1) * share) > int(at * share) else 1.0

    def _stopped(self, node: str, epoch: int) -> None:
        if self._starting.get(node) == epoch:
            del self._starting[node]
        engine = self._engines.get(node)
        if engine is not None and engine.epoch == epoch:
            self._process_ends(engine)
        self._tell(NodeStopped(node, epoch))

    def _process_ends(self, engine: Engine) -> None:
        """The process is gone: its answers break, in the order in which their connections are noticed."""
        del self._engines[engine.node]
        self._retired[engine.node].append(engine)
        for request in engine.running():
            engine.busy_s += self.now - request.placed
            passed = self.now - request.placed - request.prefill_s
            if passed > 0 and not engine.is_hung:
                left = request.answer - request.emitted
                request.emitted += min(int(left * passed / request.decode_s), left - 1) if request.decode_s else 0
                if not request.has_first:
                    request.has_first = True
                    self.tally.ttft_s.append(request.placed + request.prefill_s - request.arrived)
            self._plan(self._chance.random() * PROBE_S, self._break, request, request.placing, engine.node)

    def _node_dies(self) -> None:
        if (engine := self._victim()) is not None:
            self._process_ends(engine)
            self._plan(self._chance.random() * PROBE_S, self._ended, engine.node, engine.epoch)
        self._plan_next(self.scenario.deaths_per_min, self._node_dies)

    def _ended(self, node: str, epoch: int) -> None:
        self._tell(NodeEnded(node, epoch, "it was killed by signal 9"))

    def _node_hangs(self) -> None:
        if (engine := self._victim()) is not None:
            engine.is_hung = True
            for request in engine.running():
                self._plan(STALL_S, self._stall, request, request.placing, engine)
        self._plan_next(self.scenario.hangs_per_min, self._node_hangs)

    def _victim(self) -> Engine | None:
        name = self._names[int(self._chance.random() * len(self._names))] if self._names else ""
        engine = self._engines.get(name)
        return engine if engine is not None and not engine.is_hung else None

    def _probe(self, node: str, epoch: int, end_to_end: bool) -> None:
        engine = self._engines.get(node)
        if engine is None or engine.epoch != epoch:
            self._plan(PROBE_S, self._tell, ProbeFailed(node, epoch, "nothing listens there"))
        elif engine.is_hung:
            self._plan(PROBE_TIMEOUT_S, self._tell, ProbeFailed(node, epoch, "it did not answer its check"))
        else:
            self._plan(PROBE_S, self._tell, ProbeAnswered(node, epoch, "right" if end_to_end else None))

    def _moved(self, source: str, target: str) -> None:
        giver, taker = self._engines.get(source), self._engines.get(target)
        moved = 0
        if giver is not None and taker is not None:
            idle = [slot for slot in taker.slots if slot.request is None]
            for old, new in zip(giver.slots, idle, strict=False):
                new.held, old.held = old.held, new.held
                moved += new.held.tokens > 0
        self._tell(ConversationsMoved(source, target, moved))

    # --- figures --------------------------------------------------------------------------------------------------

    def _requests_per_s(self) -> float:
        """What `load` means in requests per second."""
        scenario, total = self.scenario, 0.0
        token_s, prompt_s = MEAN_ANSWER / scenario.decode_tps, UNCACHED / scenario.prefill_tps
        for number in range(1, min(scenario.nodes, 10_000) + 1):
            slots = scenario.slots[(number - 1) % len(scenario.slots)]
            total += slots * self._speed(number) / ((token_s + prompt_s) * (1 + CROWDING * (slots - 1)))
        return scenario.load * total * scenario.nodes / min(scenario.nodes, 10_000)

    def _outcome(self) -> Outcome:
        scenario, tally, totals = self.scenario, self.tally, self.orchestrator.world.totals
        lasted = max(self.now - self._began, 1e-9)
        by_speed: dict[float, list[float]] = {}
        slots = 0
        for name in self._names:
            lives = [*self._retired.get(name, ()), *([self._engines[name]] if name in self._engines else ())]
            size = len(lives[0].slots)
            slots += size
            kept = by_speed.setdefault(lives[0].speed, [0, 0, 0, 0])
            figures = (1, size, sum(life.busy_s for life in lives), sum(life.served for life in lives))
            by_speed[lives[0].speed] = [old + new for old, new in zip(kept, figures, strict=True)]
        prompt_tokens = max(1, tally.prompt_tokens)
        return Outcome(
            nodes=scenario.nodes,
            slots=slots,
            strategy=scenario.strategy,
            requests=self._load.made,
            finished=tally.finished,
            refused=dict(tally.refused),
            lost=len(self._open),
            doubled=tally.doubled,
            retries=totals.retries,
            failovers=totals.failovers,
            restarts=totals.restarts,
            simulated_s=lasted,
            requests_per_s=tally.finished / lasted,
            tokens_per_s=tally.tokens / lasted,
            queue_s=spread(tally.queue_s),
            ttft_s=spread(tally.ttft_s),
            hit_share=tally.cached_tokens / prompt_tokens,
            oracle_share=tally.oracle_tokens / prompt_tokens,
            fairness=tally.fairness(),
            sessions=len(tally.paces),
            speeds={
                f"{speed:g}": (int(count), used / (size * lasted), served / size)
                for speed, (count, size, used, served) in sorted(by_speed.items())
            },
            events=tally.events,
        )


def _chance(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - made-up fates, no secrets
