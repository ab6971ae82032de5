"""The effective configuration: file, environment, command line and defaults, and where each value is from.

Owns the layers; the schema is in `sections`. A flag beats the environment (`LLAMBO_<SECTION>_<KEY>`), which beats the
file, which beats the default. Whatever is wrong is a `BadConfig` that names the place (file and line, or variable), the
key and what was expected.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llambo.core import paths
from llambo.core.errors import BadConfig
from llambo.core.sections import Bridge, Cluster, Gateway, LoadBalancer, Models, NodeType, Orchestrator, Settings, State
from llambo.core.sections import check_type_name as _check_type_name

__all__ = [
    "ALIASES",
    "FILE_NAME",
    "Bridge",
    "Cluster",
    "Config",
    "Gateway",
    "LoadBalancer",
    "Models",
    "NodeType",
    "Orchestrator",
    "Settings",
    "State",
    "file_of_home",
    "load",
]

FILE_NAME = "cluster-config.yaml"
ALIASES = {"LLAMBO_BRIDGE_SOCKET": ("bridge", "socket_path")}
"""Shorter environment names that the protocol documents promise."""

_NESTED = "cluster.node_types"
"""The one key whose value is a mapping of mappings; its values have keys such as "cluster.node_types.tiny.ctx"."""


@dataclass(frozen=True, slots=True)
class Config:
    """The effective settings; `sources` tells for each "section.key" whose word it was."""

    settings: Settings
    sources: Mapping[str, str]

    def entries(self) -> Iterator[tuple[str, object, str]]:
        """Every "section.key" with its value and its source, in the schema's order."""
        for key, value in _flat(self.settings.model_dump()):
            yield key, value, self.sources[key]


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
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value.raw
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise BadConfig(_explain(error, values)) from None
    sources = {key: "default" for key, _ in _flat(settings.model_dump())}
    return Config(settings, sources | {key: value.source for key, value in values.items()})


def _flat(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def file_of_home() -> Path:
    """The configuration file that is read when none is named."""
    return paths.home() / FILE_NAME


def _schema() -> dict[str, list[str]]:
    return {name: list(type(field.default).model_fields) for name, field in Settings.model_fields.items()}


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
        place = f"environment variable {variable}"
        if f"{section}.{name}" == _NESTED:
            document = _parse_yaml(place, raw)
            found |= _read_types(place, document, lambda *_, place=place: place)
        else:
            found[f"{section}.{name}"] = _Value(raw, place)
    return found


def _read_file(file: Path | None) -> dict[str, _Value]:
    explicit = file or (Path(value) if (value := os.environ.get("LLAMBO_CONFIG", "")) else None)
    path = explicit or file_of_home()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if explicit:
            raise BadConfig(f"{path}: no such file; the configuration is a YAML file, or leave it out") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: cannot be read: {error}") from None
    return _parse_file(path, text)


def _parse_yaml(place: str, text: str) -> Any:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only where there is a file
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    try:
        return YAML(typ="rt").load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise BadConfig(f"{place}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None


def _parse_file(path: Path, text: str) -> dict[str, _Value]:
    document = _parse_yaml(str(path), text)
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise BadConfig(f"{path}:1: expected sections such as models: and bridge:, found {document!r:.40}")

    def line_of(body: Any, name: object) -> str:
        return f"{path}:{body.lc.key(name)[0] + 1}"

    schema = _schema()
    found: dict[str, _Value] = {}
    for section, body in document.items():
        place = line_of(document, section)
        if section not in schema:
            raise BadConfig(f"{place}: unknown section {section!r}; there are {', '.join(schema)}")
        if body is None:
            continue
        if not isinstance(body, Mapping):
            raise BadConfig(f"{place}: {section} must hold keys ({', '.join(schema[section])}), not {body!r}")
        for name, raw in body.items():
            place = line_of(body, name)
            if name not in schema[section]:
                raise BadConfig(f"{place}: unknown key {section}.{name}; there are {', '.join(schema[section])}")
            if f"{section}.{name}" == _NESTED:
                found |= _read_types(place, raw, line_of)
            else:
                found[f"{section}.{name}"] = _Value(raw, place)
    return found


def _read_types(place: str, types: object, place_of: Callable[[Any, object], str]) -> dict[str, _Value]:
    """The values in a mapping of node types; `place_of` names where a key of a mapping stands."""
    if types is None:
        return {}
    if not isinstance(types, Mapping):
        raise BadConfig(f"{place}: {_NESTED} must hold node types, such as small: {{ctx: 1024}}, not {types!r}")
    known = list(NodeType.model_fields)
    found: dict[str, _Value] = {}
    for name, body in types.items():
        place = place_of(types, name)
        try:
            key = f"{_NESTED}.{_check_type_name(name)}"
        except ValueError as error:
            raise BadConfig(f"{place}: {_NESTED}: {error}") from None
        if not isinstance(body, Mapping) or not body:
            raise BadConfig(f"{place}: {key} must hold keys ({', '.join(known)}), not {body!r}")
        for option, raw in body.items():
            place = place_of(body, option)
            if option not in known:
                raise BadConfig(f"{place}: unknown key {key}.{option}; there are {', '.join(known)}")
            found[f"{key}.{option}"] = _Value(raw, place)
    return found


def _explain(error: ValidationError, values: Mapping[str, _Value]) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    # Of two keys that do not go together, the one that was given has a place.
    other = ".".join((str(first["loc"][0]), str(first.get("ctx", {}).get("other", ""))))
    given = values.get(key) or values.get(other)
    place = given.source if given else "configuration"
    reason = first["msg"].removeprefix("Value error, ")
    raw = values[key].raw if key in values else first["input"]
    return f"{place}: {key} = {raw!r}: {reason[0].lower()}{reason[1:]}"
