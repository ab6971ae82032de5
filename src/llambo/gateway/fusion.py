"""What a client says who wants several nodes to answer: the same members over HTTP and WebSocket. Pure."""

from __future__ import annotations

import msgspec

from llambo.core.fusion import FusionRequest, fusion_asked


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The object `fusion`; docs/fusion.md says what its members mean. What is left out, the configuration says."""

    strategy: str | None = None
    nodes: int | None = None
    min_consensus: int | None = None
    extract: str | None = None

    def request(self) -> FusionRequest:
        """The same for the door. Raises: `BadRequest`."""
        return fusion_asked(self.strategy, self.nodes, self.min_consensus, self.extract)
