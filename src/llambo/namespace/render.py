"""The texts of files: `key value` lines, JSON documents, lines of events and votes, conversations. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from llambo.cluster.control import BalancerStats, ClusterEvent, ClusterStatus, NodeInfo
from llambo.core.errors import LlamboError, NoQuorum
from llambo.core.fusion import Fusion, VoteCast
from llambo.core.fusion_document import fusion_document
from llambo.core.tally import tally
from llambo.core.types import Done, Message, ModelInfo
from llambo.namespace.grammar import quote

_MEMORY = ("rss_bytes", "uss_bytes")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the cluster does not know of itself: where it is served, and where its checkpoint is kept."""

    http: str | None = None
    styx: tuple[str, ...] = ()
    checkpoint: str = ""


def lines(facts: Mapping[str, object]) -> str:
    """`key value`, one a line; what would break a line is shown as blanks."""
    return "".join(f"{key} {one_line(value)}\n" for key, value in facts.items())


def one_line(value: object) -> str:
    """A value as a line shows it: numbers in decimal, nothing as an empty text."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.3f}".rstrip("0").rstrip(".")
        case _:
            return " ".join(str(value).splitlines())


def status(cluster: ClusterStatus, facts: Facts) -> str:
    """The cluster as `key value` lines; `problem` comes as often as there are problems."""
    shown: dict[str, object] = {
        "state": cluster.state,
        "nodes": cluster.nodes.total,
        "nodes_ready": cluster.nodes.ready,
        "nodes_busy": cluster.nodes.busy,
        "nodes_dead": cluster.nodes.dead,
        "slots": cluster.slots.total,
        "busy": cluster.slots.busy,
        "queued": cluster.queued,
        "requests": cluster.requests.total,
        "failed": cluster.requests.failed,
        "tokens_per_s": cluster.tokens_per_s,
        "strategy": cluster.strategy,
        "launcher": cluster.launcher,
        "models": " ".join(model.name for model in cluster.models),
        "uptime_s": cluster.uptime_s,
        "version": cluster.version,
        "http": facts.http,
        "styx": " ".join(facts.styx),
        "home": cluster.home,
        "pid": cluster.pid,
    }
    return lines(shown) + "".join(f"problem {one_line(problem)}\n" for problem in cluster.problems)


def status_json(cluster: ClusterStatus, facts: Facts, nodes: Iterable[NodeInfo], balancer: BalancerStats) -> bytes:
    """The cluster as one document; the memory of nodes is not measured for it, and null."""
    document = msgspec.to_builtins(cluster) | {
        "http": facts.http,
        "styx": facts.styx,
        "checkpoint": facts.checkpoint,
        "balancer": msgspec.to_builtins(balancer) | {"hit_ratio": balancer.hit_ratio},
        "node_list": [msgspec.to_builtins(node) | dict.fromkeys(_MEMORY) for node in nodes],
    }
    return document_of(document)


def document_of(value: Any) -> bytes:
    """One JSON document, with the newline that texts end with."""
    return msgspec.json.encode(value) + b"\n"


def node_status(node: NodeInfo) -> str:
    """A node as `key value` lines."""
    facts: dict[str, Any] = msgspec.to_builtins(node)
    return lines(facts | {"sandbox": " ".join(node.sandbox)})


def node_metrics(node: NodeInfo) -> str:
    """A node's figures in Prometheus's text format."""
    label = f'{{node="{node.id}"}}'
    kinds: dict[str, tuple[str, float]] = {
        "llambo_node_requests_total": ("counter", node.requests),
        "llambo_node_errors_total": ("counter", node.errors),
        "llambo_node_slots": ("gauge", node.slots),
        "llambo_node_slots_busy": ("gauge", node.busy),
        "llambo_node_tokens_per_second": ("gauge", node.tokens_per_s),
        "llambo_node_resident_memory_bytes": ("gauge", node.rss_bytes),
    }
    return "".join(f"# TYPE {name} {kind}\n{name}{label} {value:g}\n" for name, (kind, value) in kinds.items())


def model_status(model: ModelInfo) -> dict[str, object]:
    """What `status` of a model that the cluster knows says."""
    facts: dict[str, object] = msgspec.to_builtins(model)
    return facts


def event(happened: ClusterEvent) -> str:
    """`time kind key=value…`; that events were lost is `lost N` alone."""
    if happened.kind == "lost":
        return f"lost {happened.fields.get('events', 1)}"
    fields = (f" {key}={quote(one_line(value))}" for key, value in happened.fields.items())
    return f"{happened.time:.3f} {happened.kind}{''.join(fields)}"


def conversation(messages: Iterable[Message]) -> str:
    """Each message as its role on a line of its own, and its text below, every line of it after a tab."""
    return "".join(
        "\n".join([message.role, *(f"\t{line}" for line in message.content.split("\n"))]) + "\n" for message in messages
    )


def vote(cast: VoteCast) -> str:
    """A vote as a line, `key=value…`: what was answered, or why nothing was."""
    told = cast.vote
    facts: dict[str, object] = {
        "node": told.node,
        "model": told.model,
        "tokens": told.tokens,
        "weight": told.weight,
        "time_ms": told.time_ms,
        "asked": cast.asked,
        "answered": cast.answered,
        "agreement": cast.agreement,
    }
    facts |= {"error": told.error} if told.error else {"text": told.text}
    return " ".join(f"{key}={quote(one_line(value))}" for key, value in facts.items()) + "\n"


def votes(last: VoteCast, fusion: Fusion | None) -> dict[str, object]:
    """How far a vote is, for a status; with `fusion` what became of it."""
    facts: dict[str, object] = {"asked": last.asked, "answered": last.answered, "agreement": last.agreement}
    if fusion is not None:
        facts |= {"agreement": fusion.agreement, "cancelled": fusion.cancelled, "strategy": fusion.strategy}
    return facts


def result(text: str, done: Done) -> dict[str, Any]:
    """An answer with its counts, as SPEC section 2 has it."""
    document: dict[str, Any] = {"text": text, **msgspec.to_builtins(done)}
    return document | {"fusion": fusion_document(done.fusion) if done.fusion is not None else None}


def failed(error: LlamboError, casts: Sequence[VoteCast]) -> dict[str, Any]:
    """What is told in the place of an answer; where nodes did not agree, with what they said."""
    document: dict[str, Any] = {"error": {"code": error.code, "message": error.message}}
    return document | {"fusion": fusion_document(tally(casts)) if isinstance(error, NoQuorum) else None}
