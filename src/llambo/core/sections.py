"""The sections of the configuration: every key with its type, default and meaning, and the units of values.

Owns the schema and what must hold between keys. Where values come from is `config`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from llambo.core.errors import BadRequest
from llambo.core.fusion import MAX_VOTERS, MIN_VOTERS, strategy_named
from llambo.core.fusion import Strategy as FusionStrategy
from llambo.core.http_address import EXPECTED as HTTP_ADDRESSES
from llambo.core.http_address import parse_http_address

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNITS_BYTES = {"b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/,@?#]+")
_CPU_RANGE = re.compile(r"\s*\d{1,5}\s*(-\s*\d{1,5}\s*)?")
_TYPE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def _duration_s(value: object) -> object:
    """Turns "30s", "250ms", "2m", "1h" or a number of seconds into seconds."""
    match = _QUANTITY.fullmatch(str(value)) if not isinstance(value, bool) else None
    if not match or (match[2] or "s") not in _UNITS_S:
        raise ValueError("expected a duration such as 30s, 250ms or 2m")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


def _size_bytes(value: object) -> object:
    """Turns "512MiB", "1.5GiB", "2GB" or a number of bytes into bytes."""
    match = _QUANTITY.fullmatch(str(value)) if not isinstance(value, bool) else None
    if not match or (match[2] or "B").lower() not in _UNITS_BYTES:
        raise ValueError("expected a size such as 512MiB, 1GiB or 2GB")
    return round(float(match[1]) * _UNITS_BYTES[(match[2] or "B").lower()])


Duration = Annotated[float, BeforeValidator(_duration_s)]
"""Seconds; written with a unit (`30s`) or as a bare number."""

Size = Annotated[int, BeforeValidator(_size_bytes)]
"""Bytes; written with a unit (`512MiB`, decimal `2GB`) or as a bare number."""

Strategy = Literal["prefix-affinity", "cognitive-affinity", "least-loaded", "round-robin", "random"]
"""How requests are spread over nodes."""


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NodeType(Section):
    """What a node of one type gets; a new type has medium's values where it says nothing."""

    ctx: int = Field(2048, ge=16, le=2**24, description="tokens per slot, at most what the model was trained for")
    slots: int = Field(4, ge=1, le=256, description="parallel answers")
    threads: int = Field(4, ge=0, le=1024, description="engine threads; 0: by model and processor")
    memory: Size = Field(2**30, ge=2**20, description="what a node of this type is meant to stay within")
    weight: float = Field(1.0, gt=0, le=1000, description="what its answer counts for in fusion by weighted-average")


PRESETS: Mapping[str, NodeType] = {
    "tiny": NodeType(ctx=512, slots=1, threads=1, memory=128 * 2**20),
    "medium": NodeType(),
    "large": NodeType(ctx=4096, slots=4, threads=8, memory=8 * 2**30),
}
"""The node types that every cluster has; a configuration adds to them and may change their values."""


def check_type_name(name: object) -> str:
    """Returns `name` when a node type can be called so.

    Raises: `ValueError`.
    """
    if isinstance(name, str) and _TYPE_NAME.fullmatch(name):
        return name
    raise ValueError(f"{name!r} is no name of a node type: small letters, digits, - and _, at most 32 of them")


def _over_presets(value: object) -> object:
    """The types that were given on top of the presets; what is no mapping is left for pydantic to refuse."""
    if not isinstance(value, Mapping):
        return value
    merged: dict[Any, Any] = dict(PRESETS)
    for name, body in value.items():
        preset = PRESETS.get(check_type_name(name))
        merged[name] = preset.model_dump() | dict(body) if preset and isinstance(body, Mapping) else body
    return merged


class Cluster(Section):
    """What the cluster is called and how its nodes are started."""

    name: str = Field("llambo", min_length=1, max_length=64, description="what people call it")
    launcher: Literal["local", "ray"] = Field("local", description="what starts nodes; ray is not available yet")
    start_timeout: Duration = Field(300.0, gt=0, description="how long a node may take to load its model")
    node_types: Annotated[Mapping[str, NodeType], BeforeValidator(_over_presets)] = Field(
        PRESETS, description="node types; what is given here adds to the presets"
    )
    default_type: str = Field("", description='type of a node when none is named; "": the smallest that holds it')

    @field_validator("launcher")
    @classmethod
    def _launcher_exists(cls, value: str) -> str:
        if value == "ray":
            raise ValueError("nodes on other machines through Ray are not available yet; write local")
        return value

    @field_validator("default_type")
    @classmethod
    def _type_exists(cls, value: str, info: ValidationInfo) -> str:
        types = info.data.get("node_types", {})
        if value and types and value not in types:
            raise ValueError(f"there is no such node type; there are {', '.join(types)}")
        return value


class LoadBalancer(Section):
    """Which node answers, and how a node that cannot is found."""

    strategy: Strategy = Field("prefix-affinity", description="how requests are spread over nodes")
    health_check_interval: Duration = Field(5.0, gt=0, description="time between two looks at a node")
    health_check_timeout: Duration = Field(5.0, gt=0, description="how long a node may take to answer one")
    health_check_failures: int = Field(3, ge=1, le=1000, description="looks that fail before a node counts as dead")
    probe_interval: Duration = Field(60.0, gt=0, description="time between two test questions to a node")
    max_retries: int = Field(3, ge=0, le=100, description="other nodes that a request may be tried on")
    timeout: Duration = Field(
        60.0, gt=0, description="a node that gives neither a token nor prefill progress for so long is taken as hung"
    )


class Orchestrator(Section):
    """How many nodes there are, and how requests wait for them."""

    auto_scale: bool = Field(False, description="start and end nodes by load")
    min_nodes: int = Field(1, ge=0, le=100_000, description="nodes that are always there")
    max_nodes: int = Field(0, ge=0, le=100_000, description="nodes at most; 0: as many as memory holds")
    scale_up_threshold: float = Field(0.8, gt=0, le=1, description="share of busy slots above which nodes are added")
    scale_down_threshold: float = Field(0.2, ge=0, lt=1, description="share below which nodes are drained")
    scale_factor: float = Field(1.5, le=100, description="how many times as many nodes one step up makes")
    cool_down: Duration = Field(30.0, ge=0, description="time between two steps")
    queue_limit: int = Field(64, ge=1, le=1_000_000, description="requests that may wait per node")
    queue_timeout: Duration = Field(30.0, gt=0, description="how long a request may wait for a free slot")

    @field_validator("max_nodes")
    @classmethod
    def _max_over_min(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("min_nodes", 0)
        if value and value < least:
            raise _conflict("min_nodes", f"must be at least orchestrator.min_nodes, which is {least}, or 0")
        return value

    @field_validator("scale_down_threshold")
    @classmethod
    def _down_below_up(cls, value: float, info: ValidationInfo) -> float:
        up = info.data.get("scale_up_threshold", 1.0)
        if value >= up:
            raise _conflict("scale_up_threshold", f"must be below orchestrator.scale_up_threshold, which is {up:g}")
        return value

    @field_validator("scale_factor")
    @classmethod
    def _factor_grows(cls, value: float) -> float:
        if not value > 1:
            raise ValueError("must be greater than 1, or a step up would add nothing")
        return value


def _conflict(other: str, text: str) -> PydanticCustomError:
    """Two keys that do not go together; `other` is the one that is not being validated."""
    return PydanticCustomError("conflict", "{text}", {"text": text, "other": other})


def _fusion_strategy(value: object) -> object:
    """The strategy of that name or alias; what is no text is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    try:
        return strategy_named(value)
    except BadRequest as error:
        raise ValueError(error.message) from None


class Cognition(Section):
    """Fusion: how several nodes answer one question where the request does not say."""

    strategy: Annotated[FusionStrategy, BeforeValidator(_fusion_strategy)] = Field(
        "majority-vote", description="how one answer is made of several"
    )
    n_nodes: int = Field(3, ge=MIN_VOTERS, le=MAX_VOTERS, description="answers that are asked for")
    min_consensus_nodes: int = Field(
        0, ge=0, le=MAX_VOTERS, description="how many must agree for a quorum; 0: more than half"
    )
    timeout: Duration = Field(60.0, gt=0, description="who has not answered by then has no vote")

    @field_validator("min_consensus_nodes")
    @classmethod
    def _consensus_can_be(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("n_nodes", MAX_VOTERS)
        if value > most:
            raise _conflict("n_nodes", f"must be at most cognition.n_nodes, which is {most}")
        return value


class Models(Section):
    """Which model answers by default, where models may come from, and how they are loaded."""

    default: str = Field("built-in", min_length=1, description="model reference that answers when none is named")
    offline: bool = Field(False, description="never use the network to fetch a model")
    ctx: int = Field(4096, ge=16, le=2**24, description="tokens per slot, at most what the model was trained for")
    slots: int = Field(4, ge=1, le=256, description="parallel answers per node")
    threads: int = Field(0, ge=0, le=1024, description="engine threads per node; 0: by model and processor")
    gpu_layers: int = Field(-1, ge=-1, le=10_000, description="layers on a GPU; -1: as many as fit")
    on_demand: bool = Field(True, description="a request that names a model on this machine loads it")
    max_loaded: int = Field(0, ge=0, le=10_000, description="models loaded at once; 0: as many as memory holds")


class Bridge(Section):
    """The Unix-socket (and TCP) service that speaks the bridge protocol."""

    socket_path: str = Field("/tmp/llama-cpp-bridge.sock", min_length=1, description="where it listens")  # noqa: S108
    listen: str = Field("", description="additional TCP listener, as tcp!host!port; needs tokens")
    connection_pool_size: int = Field(4, ge=1, le=1024, description="connections a pool keeps per bridge")
    max_connections: int = Field(1024, ge=1, le=65_536, description="clients at once")
    write_timeout: Duration = Field(30.0, gt=0, description="a client that reads nothing for so long is dropped")
    drain_timeout: Duration = Field(30.0, ge=0, description="how long answers in flight may go on at a stop")


class Styx(Section):
    """The cluster as files: where the namespace is served beside its Unix socket."""

    listen: str = Field("", description="additional TCP listener, as tcp!host!port; port 5640 by default; needs tokens")
    idle_limit: Duration = Field(
        3600.0, gt=0, description="a session that is kept ends after so long without a file open"
    )


def _gateway_listen(value: object) -> object:
    """The listeners as they were written, one comma apart; "off" is "", since an empty variable counts as unset."""
    if not isinstance(value, str):
        raise ValueError(f"expected {HTTP_ADDRESSES}")
    parts = [part.strip() for part in value.split(",")]
    if parts in ([""], ["off"]):
        return ""
    for part in parts:
        parse_http_address(part)
    return ",".join(parts)


def _origins(value: object) -> object:
    """The origins, one comma apart."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else [""]
    good = parts in (["*"], [""]) or all(_ORIGIN.fullmatch(part) for part in parts)
    if not (isinstance(value, str) and good):
        raise ValueError('expected origins such as https://chat.example, one comma apart, or "*"')
    return ",".join(parts)


class Gateway(Section):
    """The HTTP gateway: where it listens, whom it lets in, and how much of what it takes."""

    listen: Annotated[str, BeforeValidator(_gateway_listen)] = Field(
        "127.0.0.1:5641", description='HOST:PORT or unix!PATH, several one comma apart; "" or off: no HTTP'
    )
    max_body: Size = Field(32 * 2**20, ge=1024, le=2**32, description="a larger request body is refused")
    header_timeout: Duration = Field(10.0, gt=0, description="how long a client may take to send a request's header")
    write_timeout: Duration = Field(30.0, gt=0, description="a client that reads nothing for so long is dropped")
    ping_interval: Duration = Field(15.0, gt=0, description="a silent stream gives a sign of life so often")
    resume_window: Duration = Field(60.0, ge=0, description="how long a stream can be resumed after its client left")
    resume_memory: Size = Field(64 * 2**20, ge=0, description="what such streams may take together")
    cors_origins: Annotated[str, BeforeValidator(_origins)] = Field(
        "", description='web pages that may use it, as origins one comma apart; "*": all'
    )
    require_token: bool = Field(False, description="a token is needed on this machine too")
    requests_per_minute: int = Field(0, ge=0, le=10_000_000, description="per token, else per client; 0: no limit")
    max_connections: int = Field(4096, ge=1, le=1_000_000, description="clients at once")
    tls_certificate: str = Field("", description="file with the certificate and its chain, as PEM")
    tls_key: str = Field("", description="file with its private key, as PEM")

    @field_validator("tls_key")
    @classmethod
    def _key_with_certificate(cls, value: str, info: ValidationInfo) -> str:
        if bool(value) != bool(info.data.get("tls_certificate", "")):
            raise _conflict("tls_certificate", "gateway.tls_certificate and gateway.tls_key go together: name both")
        return value


def _cpus(value: object) -> object:
    """Cores as "0-3,6": numbers and ranges, one comma apart; "" is all."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not (value == "" or all(_CPU_RANGE.fullmatch(one) for one in value.split(","))):
        raise ValueError('expected cores such as "0-3,6", or "" for all')
    return value


class Engine(Section):
    """What nodes compute with: the engine inside the wheel, or one that was built for this processor."""

    backend: str = Field(
        "auto", min_length=1, max_length=64, description="auto: what was measured; wheel; or the name of a built one"
    )
    calibrate: bool = Field(True, description="measure a model in the background when it is first loaded")
    share_cores: bool = Field(True, description="nodes together get no more threads than there are cores")
    wait: Literal["auto", "active", "passive"] = Field(
        "auto", description="how idle engine threads wait; auto: by how busy the machine is at the start"
    )
    flash_attention: Literal["auto", "on", "off"] = Field("auto", description="auto: what was measured")
    numa: Literal["", "distribute", "isolate", "numactl", "mirror"] = Field("", description="llama.cpp's NUMA strategy")
    cpus: Annotated[str, BeforeValidator(_cpus)] = Field("", description='cores for nodes, as "0-3,6"; "": all')


class State(Section):
    """Where the cluster's state is kept, for the next start."""

    path: str = Field("", description='checkpoint file; "": cluster-state.json in the home directory')
    checkpoint_on_change: bool = Field(True, description="write it whenever nodes or models change")


class Settings(Section):
    """Every section with its effective values."""

    cluster: Cluster = Cluster()
    load_balancer: LoadBalancer = LoadBalancer()
    orchestrator: Orchestrator = Orchestrator()
    models: Models = Models()
    cognition: Cognition = Cognition()
    engine: Engine = Engine()
    bridge: Bridge = Bridge()
    styx: Styx = Styx()
    gateway: Gateway = Gateway()
    state: State = State()
