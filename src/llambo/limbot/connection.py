"""What a chat needs of a cluster, wherever that is: the seam to whoever chooses and opens the door."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from llambo.core.fusion import FusionRequest
from llambo.core.types import Event, GenerateRequest


@dataclass(frozen=True, slots=True)
class Served:
    """Who answers: `where` for people, the model by its name there, its context in tokens (0: unknown)."""

    where: str
    model: str
    ctx: int = 0
    is_small: bool = False  # the built-in model, which knows one subject


class Connection(Protocol):
    """A door that may change while a chat goes on."""

    async def ready(self, model: str, fusion: FusionRequest | None = None) -> Served:
        """Settles on a cluster where `model` ("" for its default) answers; starts and loads what is needed.

        A private cluster is given a node for each voter of `fusion`. To be called before every request: it is quick
        when nothing has changed. Raises: what opening a door raises.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """As `Door.generate`, at the cluster of the last `ready`."""
        ...

    async def tokenize(self, text: str) -> list[int]:
        """As `Door.tokenize` with the model of the last `ready`. Raises: `LlamboError` where that cannot be had."""
        ...

    async def models(self) -> list[str]:
        """The names of the models that answer there, the default one first."""
        ...

    async def lost(self) -> None:
        """The cluster of the last `ready` does not answer any more; the next `ready` looks again."""
        ...
