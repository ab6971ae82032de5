"""Those who wait for a node: that it serves, or that it is gone."""

from __future__ import annotations

import asyncio

from llambo.core.errors import LlamboError

Waiter = asyncio.Future[None]


class NodeWaiters:
    """All who wait now, by node. Nobody has to come back for what it waited for."""

    def __init__(self) -> None:
        self._for_ready: dict[str, list[Waiter]] = {}
        self._for_gone: dict[str, list[Waiter]] = {}

    def until_ready(self, node: str) -> Waiter:
        """Done with `ready`; raises what `failed` or `close` was given."""
        return _add(self._for_ready, node)

    def until_gone(self, node: str) -> Waiter:
        """Done with `gone` or `close`."""
        return _add(self._for_gone, node)

    def ready(self, node: str) -> None:
        """The node serves."""
        _finish(self._for_ready.pop(node, ()))

    def failed(self, node: str, error: LlamboError) -> None:
        """The node will not serve, at least not now."""
        _fail(self._for_ready.pop(node, ()), error)

    def gone(self, node: str) -> None:
        """The node is forgotten, and its process is gone."""
        _finish(self._for_gone.pop(node, ()))

    def fail_all(self, error: LlamboError) -> None:
        """No node will serve any more."""
        for waiters in self._for_ready.values():
            _fail(waiters, error)

    def all_gone(self) -> None:
        """Every node's process is gone."""
        for waiters in self._for_gone.values():
            _finish(waiters)


def done() -> Waiter:
    """For whom there is nothing to wait for."""
    waiter: Waiter = asyncio.get_running_loop().create_future()
    waiter.set_result(None)
    return waiter


def failed(error: LlamboError) -> Waiter:
    """For whom there is nothing to wait for any more."""
    waiter: Waiter = asyncio.get_running_loop().create_future()
    waiter.set_exception(error)
    return waiter


def _add(waiters: dict[str, list[Waiter]], node: str) -> Waiter:
    waiter: Waiter = asyncio.get_running_loop().create_future()
    waiters.setdefault(node, []).append(waiter)
    return waiter


def _finish(waiters: list[Waiter] | tuple[()]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _fail(waiters: list[Waiter] | tuple[()], error: LlamboError) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)
            waiter.exception()  # whoever waited may have gone: that is no fault
