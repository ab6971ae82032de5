"""The figures of many nodes as one text for Prometheus: what llama.cpp's servers say, labelled with the node. Pure.

llama.cpp calls its series `llamacpp:NAME`. In Prometheus's names a colon belongs to recording rules, and `promtool
check metrics` refuses it elsewhere, so that they are `llamacpp_NAME` here. A "counter" that does not count a total
(`n_tokens_max`) is the gauge that it really is.

A node may be anybody's server: what is not a plain sample of a family that was announced is dropped, line by line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

FAMILIES_MAX = 256
SAMPLES_MAX = 256
"""Of one node."""
_HELP_CHARACTERS = 200

_NAME = r"llamacpp:([a-z][a-z0-9_]{0,99})"
_ABOUT = re.compile(rf"# (HELP|TYPE) {_NAME} (\S.*)", re.ASCII)
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\[\\"n])*"'
_SAMPLE = re.compile(
    rf"{_NAME}(?:\{{({_LABEL}(?:,{_LABEL})*),?\}})? ([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?|[-+]?Inf|NaN)(?: -?[0-9]+)?",
    re.ASCII,
)
_LABEL_NAME = re.compile(rf"(?:^|,)([a-zA-Z_][a-zA-Z0-9_]*)={_LABEL.partition('=')[2]}")
_BELONGS_TO_HISTOGRAMS = ("_count", "_sum", "_bucket")


@dataclass(slots=True)
class _Family:
    """One series of all nodes; `kind` is "counter" or "gauge"."""

    kind: str
    help: str = "A figure of the node's engine."
    lines: list[str] = field(default_factory=list)


class NodeSeries:
    """Grows by a node at a time; about 0.1 ms each."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def add(self, node: str, text: str) -> None:
        """What the server of `node` said, in Prometheus's text format. Each node comes once."""
        label = 'node="' + node.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        helps: dict[str, str] = {}
        families: dict[str, _Family] = {}
        seen: set[str] = set()
        for line in text.split("\n"):
            if (about := _ABOUT.fullmatch(line)) is not None:
                what, name, words = about.groups()
                if what == "HELP":
                    helps[name] = words.replace("\\", "")[:_HELP_CHARACTERS].strip()
                elif (family := self._family(name, words, helps.get(name, ""))) is not None:
                    families[name] = family
            elif (sample := _SAMPLE.fullmatch(line)) is not None and len(seen) < SAMPLES_MAX:
                name, labels, value = sample.groups()
                key = f"llamacpp_{name}{{{label}{',' + labels if labels else ''}}}"
                if name in families and key not in seen and _is_number(value) and _are_apart(labels):
                    seen.add(key)
                    families[name].lines.append(f"{key} {value}\n")

    def text(self) -> str:
        """All of it: help and type once for each family, then the samples of all nodes."""
        return "".join(
            f"# HELP llamacpp_{name} {family.help}\n# TYPE llamacpp_{name} {family.kind}\n{''.join(family.lines)}"
            for name, family in self._families.items()
            if family.lines
        )

    def _family(self, name: str, kind: str, words: str) -> _Family | None:
        """The family of that name; None for a type that it cannot have, here or beside what another node says."""
        if kind not in ("counter", "gauge") or name.endswith(_BELONGS_TO_HISTOGRAMS):
            return None
        if not name.endswith("_total"):
            kind = "gauge"
        elif kind == "gauge":
            return None
        family = self._families.get(name)
        if family is None and len(self._families) < FAMILIES_MAX:
            family = self._families[name] = _Family(kind)
            family.help = words or family.help
        return family


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:  # such as 1.2.3
        return False
    return True


def _are_apart(labels: str | None) -> bool:
    """Whether no label comes twice, `node` among them."""
    names = ["node", *_LABEL_NAME.findall(labels)] if labels else []
    return len(names) == len(set(names))
