"""Several bridges used as one: requests go to the bridge with the fewest in flight.

Owns which bridges there are and which connection serves a call; a call itself is `client.Bridge`'s. Thread-safe.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

from llambo.bridge.client import Bridge, consume
from llambo.bridge.client_calls import (
    DEFAULT_TIMEOUT_S,
    ChatOptions,
    Completion,
    InferOptions,
    LoadModelOptions,
    Token,
)
from llambo.core.errors import BadRequest, NotFound, TimedOut, Unreachable
from llambo.core.fusion import VoteCast

_T = TypeVar("_T")
_SUMMED = ("slots", "busy", "requests", "tokens", "errors", "rss_bytes")


class _Member:
    """One bridge: its idle connections, and how many are in use."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.idle: list[Bridge] = []
        self.in_use = 0


class _NotConnected(Exception):
    """A bridge did not even take the connection, so another one may be asked."""

    def __init__(self, reason: Unreachable) -> None:
        super().__init__(reason)
        self.reason = reason


class BridgePool:
    """The bridges at `addresses` (paths or dial strings), with at most `size` connections to each.

    Without a `size` it is `bridge.connection_pool_size` of the configuration.

    Calls are those of `Bridge`. What generates goes to one bridge; `load_model`, `free_model`, `cancel`, `ping` and
    `quit` go to all; `get_status` and `models` put all together. A bridge that was restarted is connected to anew, once
    a call, as long as nothing of the answer had been delivered; one that is gone is passed over.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        size: int | None = None,
        token: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        if not addresses:
            raise BadRequest("a pool needs the address of one bridge at least")
        if size is None:
            from llambo.core import config  # noqa: PLC0415 - heavy, and seldom needed

            size = config.load().settings.bridge.connection_pool_size
        if size < 1:
            raise BadRequest(f"size must be 1 at least, not {size}")
        self._members = [_Member(address) for address in addresses]
        self._size = size
        self._token = token
        self._timeout_s = timeout_s
        self._next = 0  # where the search for the least busy bridge begins
        self._changed = threading.Condition()
        self._is_closed = False

    @classmethod
    def discover(
        cls, base: str, limit: int = 64, *, size: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Self:
        """The bridges at `BASE-N.sock`, N from 0 or 1 up, gaps allowed: the `limit` with the lowest numbers.

        Raises: `Unreachable` when there is none.
        """
        place = Path(base)
        pattern = re.compile(re.escape(place.name) + r"-([0-9]+)\.sock")
        found: list[tuple[int, str]] = []
        with suppress(OSError):
            for entry in place.parent.iterdir():
                match = pattern.fullmatch(entry.name)
                if match and entry.is_socket():
                    found.append((int(match[1]), str(entry)))
        if not found:
            raise Unreachable(f"there is no socket {base}-N.sock: start bridges with --socket-path {base}-0.sock")
        return cls([path for _, path in sorted(found)[:limit]], size=size, timeout_s=timeout_s)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bridges of this pool."""
        return tuple(member.address for member in self._members)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Closes every connection, those in use as soon as their call ends."""
        with self._changed:
            self._is_closed = True
            for member in self._members:
                _close_idle(member)
            self._changed.notify_all()

    def infer(self, prompt: str = "", **options: Unpack[ChatOptions]) -> str:
        """As `Bridge.infer`, on the least busy bridge."""
        return self.complete(prompt, **options).text

    def complete(self, prompt: str = "", **options: Unpack[ChatOptions]) -> Completion:
        """As `Bridge.complete`, on the least busy bridge."""
        return self._on_one(lambda bridge: bridge.complete(prompt, **options))

    def infer_stream(
        self, prompt: str, callback: Callable[[Token], object], **options: Unpack[ChatOptions]
    ) -> Completion:
        """As `Bridge.infer_stream`, on the least busy bridge."""
        return consume(self.stream(prompt, **options), callback)

    def stream(self, prompt: str = "", **options: Unpack[ChatOptions]) -> Generator[Token, None, None]:
        """As `Bridge.stream`, on the least busy bridge."""
        return self._run(lambda bridge: bridge.stream(prompt, **options))

    def stream_votes(self, prompt: str = "", **options: Unpack[ChatOptions]) -> Generator[Token | VoteCast, None, None]:
        """As `Bridge.stream_votes`, on the least busy bridge."""
        return self._run(lambda bridge: bridge.stream_votes(prompt, **options))

    def infer_multi(self, prompts: Sequence[str], **options: Unpack[InferOptions]) -> list[str]:
        """As `Bridge.infer_multi`, on the least busy bridge."""
        return self._on_one(lambda bridge: bridge.infer_multi(prompts, **options))

    def tokenize(self, text: str, *, model: str = "", timeout_s: float | None = None) -> list[int]:
        """As `Bridge.tokenize`, on the least busy bridge."""
        return self._on_one(lambda bridge: bridge.tokenize(text, model=model, timeout_s=timeout_s))

    def embed(self, text: str, *, model: str = "", timeout_s: float | None = None) -> list[float]:
        """As `Bridge.embed`, on the least busy bridge."""
        return self._on_one(lambda bridge: bridge.embed(text, model=model, timeout_s=timeout_s))

    def ping(self, *, timeout_s: float | None = None) -> None:
        """Returns when every bridge answers."""
        self._on_all(lambda bridge: bridge.ping(timeout_s=timeout_s))

    def get_status(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """`Bridge.get_status` of all bridges in one: models in a row, numbers summed, the longest `uptime_s`."""
        each = self._on_all(lambda bridge: bridge.get_status(timeout_s=timeout_s))
        merged = {**each[0], "models": [model for status in each for model in status["models"]]}
        for name in _SUMMED:
            merged[name] = sum(status[name] for status in each)
        merged["uptime_s"] = max(status["uptime_s"] for status in each)
        return merged

    def models(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """`Bridge.models` of all bridges in a row."""
        return [m for models in self._on_all(lambda bridge: bridge.models(timeout_s=timeout_s)) for m in models]

    def load_model(self, path: str, name: str = "", **options: Unpack[LoadModelOptions]) -> dict[str, Any]:
        """Loads a model on every bridge, at the same time; the answer is the first bridge's."""
        return self._on_all(lambda bridge: bridge.load_model(path, name, **options))[0]

    def free_model(self, name: str = "", *, timeout_s: float | None = None) -> None:
        """Ends a model on every bridge."""
        self._on_all(lambda bridge: bridge.free_model(name, timeout_s=timeout_s))

    def cancel(self, request_id: str, *, timeout_s: float | None = None) -> None:
        """Ends the request with that id, on whichever bridge it is.

        Raises: `NotFound`.
        """

        def cancel_there(bridge: Bridge) -> bool:
            with suppress(NotFound):
                bridge.cancel(request_id, timeout_s=timeout_s)
                return True
            return False

        if not any(self._on_all(cancel_there)):
            raise NotFound("no request with that id is in flight on any bridge")

    def quit(self, *, timeout_s: float | None = None) -> None:
        """Makes every bridge drain and stop."""
        self._on_all(lambda bridge: bridge.quit(timeout_s=timeout_s))

    # The rest is how.

    def _on_one(self, call: Callable[[Bridge], _T]) -> _T:
        with closing(self._run(_as_generator(call))) as results:
            return next(results)

    def _on_all(self, call: Callable[[Bridge], _T]) -> list[_T]:
        """The call's result on every bridge, in their order; the first error is raised once all have ended."""

        def on(member: _Member) -> _T:
            with closing(self._run(_as_generator(call), [member])) as results:
                return next(results)

        with ThreadPoolExecutor(len(self._members)) as threads:
            return [future.result() for future in [threads.submit(on, member) for member in self._members]]

    def _run(
        self, call: Callable[[Bridge], Generator[_T, None, None]], candidates: Sequence[_Member] | None = None
    ) -> Generator[_T, None, None]:
        """What the call gives on the least busy of the candidates (default: all) that can be reached."""
        remaining = list(self._members if candidates is None else candidates)
        while True:
            member = self._reserve(remaining)
            try:
                yield from self._run_on(member, call)
                return
            except _NotConnected as failure:
                remaining.remove(member)
                if not remaining:
                    raise failure.reason from None
            finally:
                self._release(member)

    def _run_on(
        self, member: _Member, call: Callable[[Bridge], Generator[_T, None, None]]
    ) -> Generator[_T, None, None]:
        while True:
            bridge, is_fresh = self._connection(member)
            has_delivered = False
            try:
                with closing(call(bridge)) as results:
                    for result in results:
                        has_delivered = True
                        yield result
                return
            except Unreachable:
                # An old connection of a bridge that was restarted: its siblings are as dead, a new one may work.
                if is_fresh or has_delivered:
                    raise
                with self._changed:
                    _close_idle(member)
            finally:
                self._give_back(member, bridge)

    def _reserve(self, candidates: list[_Member]) -> _Member:
        """The candidate with the fewest calls in flight, counted as in use; waits while every one is full."""
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            while True:
                if self._is_closed:
                    raise Unreachable("the pool was closed by disconnect()")
                turn = self._members[self._next :] + self._members[: self._next]
                member = min((one for one in turn if one in candidates), key=lambda one: one.in_use)
                if member.in_use < self._size:
                    member.in_use += 1
                    self._next = (self._members.index(member) + 1) % len(self._members)
                    return member
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimedOut(f"all {self._size} connections to each bridge stayed in use")

    def _release(self, member: _Member) -> None:
        with self._changed:
            member.in_use -= 1
            self._changed.notify()

    def _connection(self, member: _Member) -> tuple[Bridge, bool]:
        """A connection, and whether it was made just now."""
        with self._changed:
            if member.idle:
                return member.idle.pop(), False
        try:
            return Bridge.connect(member.address, token=self._token, timeout_s=self._timeout_s), True
        except Unreachable as error:
            raise _NotConnected(error) from error

    def _give_back(self, member: _Member, bridge: Bridge) -> None:
        with self._changed:
            if bridge.is_connected and not self._is_closed:
                member.idle.append(bridge)
                return
        bridge.disconnect()


def _as_generator(call: Callable[[Bridge], _T]) -> Callable[[Bridge], Generator[_T, None, None]]:
    def run(bridge: Bridge) -> Generator[_T, None, None]:
        yield call(bridge)

    return run


def _close_idle(member: _Member) -> None:
    # One by one: a stream that the garbage collector closes meanwhile may give its connection back.
    while member.idle:
        member.idle.pop().disconnect()
