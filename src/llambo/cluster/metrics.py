"""The cluster's figures for Prometheus (SPEC section 7), in a registry of their own.

Counters and histograms are told what happened; gauges are read from a snapshot when somebody asks. Owns the names of
the series. Knows nothing of nodes or requests but what it is told.

The library is loaded with the first figure that somebody asks for, or when much has happened: a private cluster that
answers one question never needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llambo.cluster.control import ClusterEvent

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_PATIENCE = 64  # events that are kept before the library is loaded for them

_MOST_TOKENS = 2**53  # what a figure, which is a float, can count

_REQUEST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKEN_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_QUEUE_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)
_AGREEMENT = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_ROUTING_S = (0.000005, 0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.001, 0.01)


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """What there is now: nodes by (state, type), slots of serving nodes, requests waiting, models by state."""

    nodes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    slots_busy: int = 0
    slots_free: int = 0
    queue_depth: int = 0
    models: Mapping[str, int] = field(default_factory=dict)


class Metrics:
    """The figures of one cluster; `snapshot` is called for each `render` and must not block. For one thread.

    `interface` is who asked ("bridge", "http"), `outcome` "done", "error" or "cancelled", `direction` "up" or "down".
    """

    def __init__(self, snapshot: Callable[[], MetricsSnapshot]) -> None:
        self._snapshot = snapshot
        self._series: _Series | None = None
        self._pending: list[Callable[[_Series], None]] = []

    def request_ended(
        self,
        interface: str,
        outcome: str,
        seconds: float,
        *,
        ttft_s: float | None = None,
        tokens: int = 0,
        prompt_tokens: int = 0,
        cached_tokens: int = 0,
        comes_at_once: bool = False,
    ) -> None:
        """A request ended after `seconds`, its first token after `ttft_s` (None: there was none).

        The time between its tokens is noted once, as their mean, unless the answer came all at once. Counts are what a
        server says: one that is negative counts as 0.
        """
        counts = (tokens, prompt_tokens, cached_tokens)
        self._tell(
            lambda series: series.request_ended(
                (interface, outcome), seconds, ttft_s, counts=counts, comes_at_once=comes_at_once
            )
        )

    def fused(self, strategy: str, agreement: float, other_tokens: int) -> None:
        """Several nodes answered one question: the leading answer's share, and the tokens of the answers not chosen."""
        self._tell(lambda series: series.fused(strategy, agreement, other_tokens))

    def queued(self, seconds: float) -> None:
        """A request got its place after `seconds` of waiting."""
        self._tell(lambda series: series.queue_seconds.observe(seconds))

    def routed(self, seconds: float) -> None:
        """A node was chosen, which took `seconds`."""
        self._tell(lambda series: series.routing_seconds.observe(seconds))

    def happened(self, event: ClusterEvent) -> None:
        """Something was published: failovers, retries, restarts and steps of scaling are counted."""
        match event.kind:
            case "failover":
                self._tell(lambda series: series.failovers.inc())
            case "retry":
                self._tell(lambda series: series.retries.inc())
            case "node_starting" if event.fields.get("epoch", 1) > 1:
                self._tell(lambda series: series.restarts.inc())
            case "scaled":
                direction = "up" if event.fields["target"] > event.fields["nodes"] else "down"
                self._tell(lambda series: series.scale_events.labels(direction).inc())

    def render(self) -> str:
        """Every series in Prometheus's text format, version 0.0.4."""
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - see above

        return generate_latest(self._loaded().registry).decode()

    def as_json(self) -> dict[str, Any]:
        """The same as plain values: {name: {"type", "help", "samples": [{"name", "labels", "value"}]}}."""
        return _as_json(self._loaded().registry.collect())

    def _tell(self, what: Callable[[_Series], None]) -> None:
        if self._series is not None:
            what(self._series)
            return
        self._pending.append(what)
        if len(self._pending) >= _PATIENCE:
            self._loaded()

    def _loaded(self) -> _Series:
        if self._series is None:
            self._series = _Series(self._snapshot)
            for what in self._pending:
                what(self._series)
            self._pending.clear()
        return self._series


def text_as_json(text: str) -> dict[str, Any]:
    """What `render` gave, as `as_json` gives it."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - see above

    return _as_json(text_string_to_metric_families(text))


def _as_json(families: Iterable[Metric]) -> dict[str, Any]:
    return {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            "samples": [{"name": s.name, "labels": dict(s.labels), "value": s.value} for s in family.samples],
        }
        for family in families
    }


class _Series:
    """The series themselves."""

    def __init__(self, snapshot: Callable[[], MetricsSnapshot]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics  # noqa: PLC0415

        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second sample beside each counter, which nobody reads
        own = self.registry = CollectorRegistry()
        labels = ("interface", "outcome")
        self.requests = Counter("llambo_requests", "Requests that ended.", labels, registry=own)
        self.request_seconds = Histogram(
            "llambo_request_seconds", "From a request's arrival to its end.", registry=own, buckets=_REQUEST_S
        )
        self.first_token_seconds = Histogram(
            "llambo_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            registry=own,
            buckets=_FIRST_TOKEN_S,
        )
        self.token_seconds = Histogram(
            "llambo_inter_token_seconds",
            "Between two tokens of an answer: one mean per request.",
            registry=own,
            buckets=_TOKEN_S,
        )
        self.queue_seconds = Histogram(
            "llambo_queue_seconds", "How long requests waited for a slot.", registry=own, buckets=_QUEUE_S
        )
        self.routing_seconds = Histogram(
            "llambo_routing_seconds", "How long it took to choose a node.", registry=own, buckets=_ROUTING_S
        )
        kinds = Counter("llambo_tokens", "Tokens of prompts and answers.", ("kind",), registry=own)
        self.prompt_tokens, self.cached_tokens, self.generated_tokens = (
            kinds.labels(kind) for kind in ("prompt", "cached", "generated")
        )
        self.failovers = Counter("llambo_failovers", "Answers that another node took over.", registry=own)
        self.retries = Counter("llambo_retries", "Requests that were tried on another node.", registry=own)
        self.restarts = Counter("llambo_node_restarts", "Node processes that were started again.", registry=own)
        self.scale_events = Counter(
            "llambo_scale_events", "Steps of the autoscaler and of operators.", ("direction",), registry=own
        )
        for direction in ("up", "down"):
            self.scale_events.labels(direction)  # so that they are 0, and not missing
        self.agreement = Histogram(
            "llambo_fusion_agreement_ratio",
            "The leading answer's share where several nodes answered one question.",
            ("strategy",),
            registry=own,
            buckets=_AGREEMENT,
        )
        self._by_outcome: dict[tuple[str, str], Counter] = {}
        self._prompt = self._cached = 0
        own.register(_Gauges(snapshot, self._hit_ratio))

    def request_ended(
        self,
        key: tuple[str, str],
        seconds: float,
        ttft_s: float | None,
        counts: tuple[int, int, int],
        *,
        comes_at_once: bool = False,
    ) -> None:
        """`counts` are tokens of the answer, of the prompt, and of the prompt in the cache."""
        tokens, prompt_tokens, cached_tokens = (min(max(0, count), _MOST_TOKENS) for count in counts)
        counter = self._by_outcome.get(key)
        if counter is None:
            counter = self._by_outcome[key] = self.requests.labels(*key)
        counter.inc()
        self.request_seconds.observe(seconds)
        if ttft_s is not None:
            self.first_token_seconds.observe(ttft_s)
            if tokens > 1 and not comes_at_once:
                self.token_seconds.observe(max(0.0, seconds - ttft_s) / (tokens - 1))
        self.generated_tokens.inc(tokens)
        self.prompt_tokens.inc(prompt_tokens)
        self.cached_tokens.inc(cached_tokens)
        self._prompt += prompt_tokens
        self._cached += cached_tokens

    def fused(self, strategy: str, agreement: float, other_tokens: int) -> None:
        """See `Metrics.fused`."""
        self.agreement.labels(strategy).observe(agreement)
        self.generated_tokens.inc(min(max(0, other_tokens), _MOST_TOKENS))

    def _hit_ratio(self) -> float:
        return self._cached / self._prompt if self._prompt else 0.0


class _Gauges:
    """What is read when somebody asks."""

    def __init__(self, snapshot: Callable[[], MetricsSnapshot], hit_ratio: Callable[[], float]) -> None:
        self._snapshot = snapshot
        self._hit_ratio = hit_ratio

    def describe(self) -> list[Metric]:
        """Nothing in advance: the registry would take a snapshot for it."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One snapshot as metric families."""
        from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - see above

        now = self._snapshot()
        nodes = GaugeMetricFamily("llambo_nodes", "Nodes by state and type.", labels=("state", "type"))
        for state_and_type, count in now.nodes.items():
            nodes.add_metric(state_and_type, count)
        slots = GaugeMetricFamily("llambo_slots", "Slots of the nodes that serve.", labels=("state",))
        slots.add_metric(("busy",), now.slots_busy)
        slots.add_metric(("free",), now.slots_free)
        models = GaugeMetricFamily("llambo_models", "Models by state.", labels=("state",))
        for state, count in now.models.items():
            models.add_metric((state,), count)
        yield from (nodes, slots, models)
        yield GaugeMetricFamily("llambo_queue_depth", "Requests that wait for a slot.", now.queue_depth)
        yield GaugeMetricFamily(
            "llambo_prefix_hit_ratio", "Share of prompt tokens that a node had in its cache.", self._hit_ratio()
        )
