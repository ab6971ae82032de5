"""Models being fetched, and what is on this machine. Fetching and reading are the engine's, in threads of their own."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path

from llambo.core.errors import Cancelled, LlamboError, NameInUse
from llambo.core.threads import run_abandonable
from llambo.engine import models, references
from llambo.engine.models import StoredModel


@dataclass(slots=True)
class Pull:
    """A download. `state` is "downloading", "fetched" or "failed: REASON"; sizes in bytes, `total` 0 if not known."""

    ref: str
    state: str = "downloading"
    done: int = 0
    total: int = 0
    path: str = ""


class Pulls:
    """The downloads since the start by the model's name, and the models in `home` and the caches."""

    def __init__(self, home: Path, *, offline: bool = False) -> None:
        self._home = home
        self._offline = offline
        self.by_name: dict[str, Pull] = {}

    async def pull(self, ref: str) -> str:
        """Fetches a model, or what is missing of it, and returns where it lies; being cancelled ends that.

        Raises: `BadRequest`, `DownloadFailed`, `BadModel`, `NameInUse` while another of its name is fetched.
        """
        name = references.default_name(references.parse(ref))
        running = self.by_name.get(name)
        if running is not None and running.state == "downloading":
            raise NameInUse(f"{name} is being fetched already; models/{name}/status tells how far it is")
        pull = self.by_name[name] = Pull(references.shown_url(ref) if "://" in ref else ref)
        given_up = threading.Event()

        def progress(done: int, total: int) -> None:
            if given_up.is_set():
                raise Cancelled("the download was given up")
            pull.done, pull.total = done, total

        def fetch() -> Path:
            return models.resolve(ref, home=self._home, offline=self._offline, progress=progress, refresh=True)

        try:
            path = await run_abandonable(fetch, name=f"fetch {name}")
        except asyncio.CancelledError:
            given_up.set()  # a thread cannot be cancelled; it ends at its next piece
            pull.state = "failed: it was given up"
            raise
        except LlamboError as error:
            pull.state = f"failed: {error.message}"
            raise
        pull.state, pull.path = "fetched", str(path)
        return pull.path

    async def stored(self) -> dict[str, StoredModel]:
        """What can be loaded without the network, by name; where two have one name, the first."""
        found: dict[str, StoredModel] = {}
        for model in await asyncio.to_thread(models.list_models, self._home):
            found.setdefault(model.name, model)
        return found
