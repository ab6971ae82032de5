"""The store in a thread of its own, so that a slow disk never holds up the keyboard.

Calls run one after the other, in the order in which they were made. A store that fails is told of once; the chat goes
on without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from llambo.limbot.store import Store

P = ParamSpec("P")
T = TypeVar("T")


class Shelf:
    """Gives `await shelf(Store.add, session, turn)`: what the call returns or raises."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "limbot store")
        self._store: Store | None = None
        self.lasts = False

    async def __aenter__(self) -> Self:
        path = self._path
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(
            self._thread, lambda: Store.open(path) if path is not None else Store.in_memory()
        )
        self._store, self.lasts = opened, opened.lasts
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._store is not None:
            self._thread.submit(self._store.close)
        self._thread.shutdown()

    @property
    def notices(self) -> tuple[str, ...]:
        """What was found when the file was opened."""
        return self._store.notices if self._store is not None else ()

    async def __call__(self, call: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the store's method."""
        store = self._store
        assert store is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(store, *args, **kwargs))
