"""What all files of one namespace share: the cluster's two sides, its events, sessions, answers and downloads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llambo.cluster.control import Control, NodeInfo
from llambo.namespace.answer import Answers
from llambo.namespace.pulls import Pulls
from llambo.namespace.render import Facts
from llambo.namespace.session import Sessions
from llambo.ninep.streams import Broadcast


class NodeLook(Protocol):
    """The nodes as they are now, at the price of what is asked for: nothing is measured, and nobody waits."""

    def node_ids(self) -> Mapping[str, object]:
        """Every node by its id, in order. A value stands for one node, as long as it lives."""
        ...

    def node_info(self, node_id: str) -> NodeInfo:
        """One node, both memory figures 0. Raises: `KeyError`."""
        ...


@dataclass(frozen=True, slots=True)
class House:
    """The parts. `facts` tells where the cluster is served, `config` is the text of the effective configuration."""

    control: Control
    look: NodeLook
    answers: Answers
    sessions: Sessions
    pulls: Pulls
    events: Broadcast
    facts: Callable[[], Facts]
    config: Callable[[], str]
    home: Path
    request_stop: Callable[[], None]
