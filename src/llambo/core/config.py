"""The effective configuration: file, environment, command line and defaults, and where each value is from.

Owns the schema. A flag beats the environment (`LLAMBO_<SECTION>_<KEY>`), which beats the file, which beats the
default. Whatever is wrong is a `BadConfig` that names the place (file and line, or variable), the key and what was
expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from llambo.core import paths
from llambo.core.errors import BadConfig

FILE_NAME = "cluster-config.yaml"
ALIASES = {"LLAMBO_BRIDGE_SOCKET": ("bridge", "socket_path")}
"""Shorter environment names that the protocol documents promise."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def _duration_s(value: object) -> object:
    """Turns "30s", "250ms", "2m", "1h" or a number of seconds into seconds."""
    match = _QUANTITY.fullmatch(str(value)) if not isinstance(value, bool) else None
    if not match or (match[2] or "s") not in _UNITS_S:
        raise ValueError("expected a duration such as 30s, 250ms or 2m")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


Duration = Annotated[float, BeforeValidator(_duration_s)]
"""Seconds; written with a unit (`30s`) or as a bare number."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Models(_Section):
    """Which model answers by default, where models may come from, and how they are loaded."""

    default: str = Field("built-in", min_length=1, description="model reference that answers when none is named")
    offline: bool = Field(False, description="never use the network to fetch a model")
    ctx: int = Field(4096, ge=16, le=2**24, description="tokens per slot, at most what the model was trained for")
    slots: int = Field(4, ge=1, le=256, description="parallel answers per node")
    threads: int = Field(0, ge=0, le=1024, description="engine threads per node; 0: by model and processor")
    gpu_layers: int = Field(-1, ge=-1, le=10_000, description="layers on a GPU; -1: as many as fit")


class Bridge(_Section):
    """The Unix-socket (and TCP) service that speaks the bridge protocol."""

    socket_path: str = Field("/tmp/llama-cpp-bridge.sock", min_length=1, description="where it listens")  # noqa: S108
    listen: str = Field("", description="additional TCP listener, as tcp!host!port; needs tokens")
    connection_pool_size: int = Field(4, ge=1, le=1024, description="connections a pool keeps per bridge")
    max_connections: int = Field(1024, ge=1, le=65_536, description="clients at once")
    write_timeout: Duration = Field(30.0, gt=0, description="a client that reads nothing for so long is dropped")
    drain_timeout: Duration = Field(30.0, ge=0, description="how long answers in flight may go on at a stop")


class Cluster(_Section):
    """How nodes are started and how requests wait for them."""

    start_timeout: Duration = Field(300.0, gt=0, description="how long a node may take to load its model")
    queue_limit: int = Field(64, ge=1, le=1_000_000, description="requests that may wait per node")
    queue_timeout: Duration = Field(30.0, gt=0, description="how long a request may wait for a free slot")


class Settings(_Section):
    """Every section with its effective values."""

    cluster: Cluster = Cluster()
    models: Models = Models()
    bridge: Bridge = Bridge()


@dataclass(frozen=True, slots=True)
class Config:
    """The effective settings; `sources` tells for each "section.key" whose word it was."""

    settings: Settings
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Value:
    """A raw value and the words that name its place in an error."""

    raw: object
    source: str


def load(file: Path | None = None, flags: Mapping[str, object] | None = None) -> Config:
    """Merges all layers. `flags` maps "section.key" to a value; None values count as not given.

    `file` defaults to `LLAMBO_CONFIG`, else `cluster-config.yaml` in the home directory where that exists.

    Raises: `BadConfig`.
    """
    values = _read_file(file) | _read_environment(os.environ)
    for key, raw in (flags or {}).items():
        if raw is not None:
            values[key] = _Value(raw, "command line")
    tree: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value.raw
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise BadConfig(_explain(error, values)) from None
    sources = {f"{section}.{name}": "default" for section, names in _schema().items() for name in names}
    return Config(settings, sources | {key: value.source for key, value in values.items()})


def _schema() -> dict[str, list[str]]:
    return {name: list(type(getattr(Settings(), name)).model_fields) for name in Settings.model_fields}


def _read_environment(environment: Mapping[str, str]) -> dict[str, _Value]:
    schema = _schema()
    found: dict[str, _Value] = {}
    for variable, raw in sorted(environment.items(), key=lambda item: item[0] in ALIASES):  # a short name beats a long
        if not raw:  # empty is unset, as everywhere
            continue
        if variable in ALIASES:
            section, name = ALIASES[variable]
        else:
            section = next((s for s in schema if variable.startswith(f"LLAMBO_{s.upper()}_")), "")
            if not section:
                continue
            name = variable.removeprefix(f"LLAMBO_{section.upper()}_").lower()
            if name not in schema[section]:
                raise BadConfig(f"environment variable {variable}: unknown; {section} has {', '.join(schema[section])}")
        found[f"{section}.{name}"] = _Value(raw, f"environment variable {variable}")
    return found


def _read_file(file: Path | None) -> dict[str, _Value]:
    explicit = file or (Path(value) if (value := os.environ.get("LLAMBO_CONFIG", "")) else None)
    path = explicit or paths.home() / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if explicit:
            raise BadConfig(f"{path}: no such file; the configuration is a YAML file, or leave it out") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: cannot be read: {error}") from None
    return _parse_file(path, text)


def _parse_file(path: Path, text: str) -> dict[str, _Value]:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only where there is a file
    from ruamel.yaml.comments import CommentedMap  # noqa: PLC0415
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    try:
        document: Any = YAML(typ="rt").load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise BadConfig(f"{place}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if document is None:
        return {}
    if not isinstance(document, CommentedMap):
        raise BadConfig(f"{path}:1: expected sections such as models: and bridge:, found {document!r:.40}")
    schema = _schema()
    found: dict[str, _Value] = {}
    for section, body in document.items():
        line = document.lc.key(section)[0] + 1
        if section not in schema:
            raise BadConfig(f"{path}:{line}: unknown section {section!r}; there are {', '.join(schema)}")
        if body is None:
            continue
        if not isinstance(body, CommentedMap):
            raise BadConfig(f"{path}:{line}: {section} must hold keys ({', '.join(schema[section])}), not {body!r}")
        for name, raw in body.items():
            line = body.lc.key(name)[0] + 1
            if name not in schema[section]:
                raise BadConfig(f"{path}:{line}: unknown key {section}.{name}; there are {', '.join(schema[section])}")
            found[f"{section}.{name}"] = _Value(raw, f"{path}:{line}")
    return found


def _explain(error: ValidationError, values: Mapping[str, _Value]) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in first["loc"][:2])
    value = values.get(key)
    place = value.source if value else "configuration"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{place}: {key} = {value.raw if value else first['input']!r}: {reason[0].lower()}{reason[1:]}"
