"""The metrics: every series that is promised, the right values, and their cost."""

from __future__ import annotations

import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from llambo.cluster.control import ClusterEvent
from llambo.cluster.metrics import Metrics, MetricsSnapshot, text_as_json

SNAPSHOT = MetricsSnapshot(
    nodes={("ready", "tiny"): 3, ("busy", "medium"): 1}, slots_busy=2, slots_free=5, queue_depth=4, models={"ready": 2}
)


def tell(metrics: Metrics, kind: str, **fields: object) -> None:
    metrics.happened(ClusterEvent(0.0, kind, fields))


def values(metrics: Metrics) -> dict[str, float]:
    """Every sample as Prometheus reads it, by its name and labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_what_happened_is_counted_and_what_there_is_is_read() -> None:
    metrics = Metrics(lambda: SNAPSHOT)
    metrics.request_ended("bridge", "done", 2.0, ttft_s=0.5, tokens=4, prompt_tokens=30, cached_tokens=10)
    metrics.request_ended("bridge", "error", 0.1)
    metrics.request_ended("http", "done", 1.0, ttft_s=0.2, tokens=1, prompt_tokens=10, cached_tokens=0)
    metrics.queued(0.3)
    metrics.routed(0.00002)
    tell(metrics, "failover", node="n1")
    tell(metrics, "retry", node="n1")
    tell(metrics, "retry", node="n1")
    tell(metrics, "node_starting", node="n1")
    tell(metrics, "node_starting", node="n1", epoch=2)
    tell(metrics, "scaled", nodes=1, target=2)
    seen = values(metrics)
    expected = {
        "llambo_nodes{state=ready,type=tiny}": 3,
        "llambo_nodes{state=busy,type=medium}": 1,
        "llambo_slots{state=busy}": 2,
        "llambo_slots{state=free}": 5,
        "llambo_models{state=ready}": 2,
        "llambo_queue_depth": 4,
        "llambo_prefix_hit_ratio": 0.25,
        "llambo_requests_total{interface=bridge,outcome=done}": 1,
        "llambo_requests_total{interface=bridge,outcome=error}": 1,
        "llambo_requests_total{interface=http,outcome=done}": 1,
        "llambo_request_seconds_count": 3,
        "llambo_request_seconds_bucket{le=2.5}": 3,
        "llambo_request_seconds_bucket{le=1.0}": 2,
        "llambo_time_to_first_token_seconds_count": 2,
        "llambo_inter_token_seconds_count": 1,
        "llambo_inter_token_seconds_sum": 0.5,
        "llambo_queue_seconds_sum": 0.3,
        "llambo_routing_seconds_bucket{le=2.5e-05}": 1,
        "llambo_tokens_total{kind=prompt}": 40,
        "llambo_tokens_total{kind=cached}": 10,
        "llambo_tokens_total{kind=generated}": 5,
        "llambo_failovers_total": 1,
        "llambo_retries_total": 2,
        "llambo_node_restarts_total": 1,
        "llambo_scale_events_total{direction=up}": 1,
        "llambo_scale_events_total{direction=down}": 0,
    }
    assert {key: seen.get(key) for key in expected} == expected
    assert not [name for name in seen if "_created" in name]


def test_every_series_has_its_help_and_type() -> None:
    text = Metrics(lambda: SNAPSHOT).render()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert names == {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert {"llambo_nodes", "llambo_requests_total", "llambo_request_seconds", "llambo_tokens_total"} <= names


def test_gauges_are_those_of_the_moment() -> None:
    now = MetricsSnapshot(queue_depth=1)
    metrics = Metrics(lambda: now)
    assert values(metrics)["llambo_queue_depth"] == 1
    now = MetricsSnapshot(queue_depth=7)
    assert values(metrics)["llambo_queue_depth"] == 7


def test_two_clusters_in_one_process_keep_apart() -> None:
    first, second = Metrics(MetricsSnapshot), Metrics(MetricsSnapshot)
    tell(first, "failover")
    assert (values(first)["llambo_failovers_total"], values(second)["llambo_failovers_total"]) == (1, 0)


def test_json_has_the_same_values() -> None:
    metrics = Metrics(lambda: SNAPSHOT)
    tell(metrics, "failover")
    document = metrics.as_json()
    assert text_as_json(metrics.render()) == document
    assert document["llambo_failovers"]["samples"] == [{"name": "llambo_failovers_total", "labels": {}, "value": 1.0}]
    assert {"name": "llambo_nodes", "labels": {"state": "ready", "type": "tiny"}, "value": 3} in document[
        "llambo_nodes"
    ]["samples"]


def test_much_that_happens_before_anybody_asks_is_counted_too() -> None:
    metrics = Metrics(MetricsSnapshot)
    for _ in range(1000):
        metrics.request_ended("bridge", "done", 0.1)
    assert values(metrics)["llambo_requests_total{interface=bridge,outcome=done}"] == 1000


def test_counts_that_cannot_be_are_no_fault() -> None:
    metrics = Metrics(MetricsSnapshot)
    metrics.render()
    metrics.request_ended("http", "done", 1.0, ttft_s=0.1, tokens=-7, prompt_tokens=-5, cached_tokens=10**400)
    seen = values(metrics)
    assert (seen["llambo_tokens_total{kind=generated}"], seen["llambo_tokens_total{kind=prompt}"]) == (0, 0)


def test_the_library_waits_until_it_is_needed() -> None:
    program = """
import sys
from llambo.cluster.control import ClusterEvent
from llambo.cluster.metrics import Metrics, MetricsSnapshot
metrics = Metrics(MetricsSnapshot)
metrics.request_ended("bridge", "done", 1.0, ttft_s=0.1, tokens=50)
assert "prometheus_client" not in sys.modules
metrics.render()
assert "prometheus_client" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
