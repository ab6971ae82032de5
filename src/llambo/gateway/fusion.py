"""What a client says who wants several nodes to answer: the same members over HTTP and WebSocket. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from llambo.core.fusion import FusionRequest, Strategy, strategy_named


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The object `fusion`; docs/fusion.md says what its members mean. What is left out, the configuration says."""

    strategy: str | None = None
    nodes: int | None = None
    min_consensus: int | None = None
    extract: str | None = None

    def request(self) -> FusionRequest:
        """The same for the door. Raises: `BadRequest`."""
        strategy: Strategy | Literal[""] = strategy_named(self.strategy) if self.strategy else ""
        return FusionRequest(strategy, self.nodes or 0, self.min_consensus or 0, self.extract or "")
