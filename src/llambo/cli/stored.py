"""The models on this machine that a request may name: known without a wait, looked for again beside it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from pathlib import Path

from llambo.core.types import as_text
from llambo.engine import models

_FRESH_S = 10.0

_log = logging.getLogger("llambo.daemon")


class StoredModels:
    """Names of the models at `home` and in the Hub's cache that can be loaded. Belongs to one loop."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._paths: dict[str, str] = {}
        self._looked_at_s = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Looks for them now; a directory that cannot be read leaves the names as they were."""
        self._looked_at_s = time.monotonic()
        try:
            found = await asyncio.to_thread(models.list_models, self._home)
        except OSError as error:
            _log.warning("cannot look for models: %s", error)
        else:
            # No request can ask for a name that is no text, and no reply could tell it.
            named = (model for model in found if not model.problem and as_text(model.ref) == model.ref)
            self._paths = {model.ref: str(model.path) for model in named}

    def names(self, *, without: Collection[str] = ()) -> list[str]:
        """Those that were there some seconds ago at most, when somebody has asked by then; not the files `without`."""
        if time.monotonic() - self._looked_at_s > _FRESH_S and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self.look())
        return [name for name, path in self._paths.items() if path not in without]

    async def close(self) -> None:
        """Returns once no look goes on."""
        if self._looking is not None:
            await self._looking
