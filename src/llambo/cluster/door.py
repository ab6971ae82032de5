"""The only door: what every interface may ask of a cluster, wherever that cluster runs.

`api.Cluster` is the door of a cluster in this process; an interface that reaches a cluster elsewhere offers the same
protocol, so that nobody behind it has to know which one it has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from llambo.core.types import Counters, Event, GenerateRequest, LoadOptions, ModelInfo


@dataclass(frozen=True, slots=True)
class DoorStatus:
    """A snapshot of everything behind the door. The default model comes first in `models`."""

    models: tuple[ModelInfo, ...]
    counters: Counters
    uptime_s: float

    @property
    def slots(self) -> int:
        """Parallel sequences in all."""
        return sum(model.slots for model in self.models)

    @property
    def busy(self) -> int:
        """Sequences that are answering now."""
        return sum(model.busy for model in self.models)


class Door(Protocol):
    """One cluster. Every coroutine raises only `LlamboError` and may be cancelled at any await."""

    async def load(self, ref: str, *, name: str = "", options: LoadOptions | None = None) -> ModelInfo:
        """Makes a model ready under `name` (default: derived from the reference) and returns once it can answer.

        The first loaded model is the default one. Loading what is loaded already, with equal options, is no work.

        Raises: `BadModel`, `NoMemory`, `NameInUse`, `DownloadFailed`.
        """
        ...

    async def free(self, name: str = "") -> None:
        """Ends a model's node and gives its memory back; answers in flight there end with `NodeLost`.

        Raises: `NoModel`.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Streams one answer: `TokenEvent`s, then exactly one `Done`, or raises. Closing it frees the slot at once.

        With `fusion` a `VoteCast` for each voter comes too; see docs/fusion.md.

        Raises: `NoModel`, `PromptTooLong`, `NodeLost`, `Overloaded`, `TimedOut`, `NoQuorum`.
        """
        ...

    async def tokenize(self, text: str, *, model: str = "") -> list[int]:
        """The token ids of `text`, special tokens parsed, none added."""
        ...

    async def embed(self, text: str, *, model: str = "") -> list[float]:
        """The embedding of `text`, of the model's width, with Euclidean norm 1."""
        ...

    def status(self) -> DoorStatus:
        """What is behind the door now; never blocks."""
        ...
