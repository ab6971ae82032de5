"""The asynchronous client of a bridge: many requests in flight on one connection.

Knows what is asked and what comes back; `async_link` moves the bytes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from typing import Any, Self, Unpack

from llambo.bridge import client_calls as calls
from llambo.bridge.async_link import AsyncLink
from llambo.bridge.binary import AnswerFrame
from llambo.bridge.client_calls import ChatOptions, Completion, InferOptions, LoadModelOptions, Token
from llambo.bridge.dial import default_socket_path, parse_dial
from llambo.core.address import Address
from llambo.core.fusion import VoteCast


class _Connecting:
    """What `AsyncBridge.connect` gives: `await` it, or use it in `async with`."""

    def __init__(self, address: Address, token: str, timeout_s: float) -> None:
        self._address = address
        self._token = token
        self._timeout_s = timeout_s
        self._bridge: AsyncBridge | None = None

    def __await__(self) -> Generator[Any, None, AsyncBridge]:
        return self._connect().__await__()

    async def __aenter__(self) -> AsyncBridge:
        self._bridge = await self._connect()
        return self._bridge

    async def __aexit__(self, *_: object) -> None:
        if self._bridge is not None:
            await self._bridge.disconnect()

    async def _connect(self) -> AsyncBridge:
        return AsyncBridge(await AsyncLink.open(self._address, self._token, self._timeout_s), self._timeout_s)


class AsyncBridge:
    """A connection to a bridge, made by `connect`; any number of tasks of its loop may use it at once.

    The calls, their time-outs and errors are those of `client.Bridge`. A task that is cancelled while it waits for an
    answer cancels the request too.
    """

    def __init__(self, link: AsyncLink, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s

    @classmethod
    def connect(cls, path: str = "", *, token: str = "", timeout_s: float = calls.DEFAULT_TIMEOUT_S) -> _Connecting:
        """`await` it or use it in `async with`; arguments and errors as `client.Bridge.connect` has them."""
        return _Connecting(parse_dial(path or default_socket_path()), token, timeout_s)

    @property
    def address(self) -> str:
        """Where the bridge is, as a dial string."""
        return str(self._link.address)

    @property
    def is_connected(self) -> bool:
        """Whether the connection is up."""
        return self._link.failure is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def disconnect(self) -> None:
        """Ends the connection; what is in flight on it is cancelled."""
        await self._link.close()

    async def ping(self, *, timeout_s: float | None = None) -> None:
        """Returns when the bridge answers."""
        await self._call("ping", {}, timeout_s)

    async def get_status(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Models, slots and totals: the `data` of STATUS."""
        status: dict[str, Any] = calls.data_of(await self._call("status", {}, timeout_s), dict)
        return status

    async def models(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """The loaded models, the default one first."""
        models: list[dict[str, Any]] = calls.data_of(await self._call("models", {}, timeout_s), list)
        return models

    async def load_model(self, path: str, name: str = "", **options: Unpack[LoadModelOptions]) -> dict[str, Any]:
        """Loads a model and returns its `name`, `path`, `ctx` and `slots`.

        Raises: `BadModel`, `NoMemory`, `NameInUse`, `DownloadFailed`.
        """
        given, timeout_s = calls.split_timeout(options, max(self._timeout_s, calls.LOAD_TIMEOUT_S))
        frame = await self._call("load", calls.load_fields(path, name, given), timeout_s)
        model: dict[str, Any] = calls.data_of(frame, dict)
        return model

    async def free_model(self, name: str = "", *, timeout_s: float | None = None) -> None:
        """Ends a model, without a name the default one.

        Raises: `NoModel`.
        """
        await self._call("free", {"name": name}, timeout_s)

    async def infer(self, prompt: str = "", **options: Unpack[ChatOptions]) -> str:
        """The text of one answer.

        Raises: `NoModel`, `PromptTooLong`, `NodeLost`, `Overloaded`, `NoQuorum`, `Cancelled`.
        """
        return (await self.complete(prompt, **options)).text

    async def complete(self, prompt: str = "", **options: Unpack[ChatOptions]) -> Completion:
        """One answer with its counts; raises as `infer` does."""
        given, timeout_s = calls.split_timeout(options, self._timeout_s)
        frame = await self._call("infer", calls.ask_fields(prompt, given), timeout_s)
        return calls.completion_of(frame, calls.data_of(frame, str))

    async def infer_stream(
        self, prompt: str, callback: Callable[[Token], object], **options: Unpack[ChatOptions]
    ) -> Completion:
        """Calls `callback` with each token, the final one too, and returns the whole; an exception in it cancels.

        Raises: as `infer` does.
        """
        texts: list[str] = []
        last = Token("", True)
        async with aclosing(self.stream(prompt, **options)) as tokens:
            async for last in tokens:
                texts.append(last.text)
                callback(last)
        return calls.completion_of(last, "".join(texts))

    async def stream(self, prompt: str = "", **options: Unpack[ChatOptions]) -> AsyncGenerator[Token, None]:
        """One answer as it comes, the final token last. Asking begins with the first token; closing early cancels.

        Leave it early only inside `contextlib.aclosing`, so that it is closed at once.

        Raises: as `infer` does.
        """
        async with aclosing(self.stream_votes(prompt, **options)) as events:
            async for event in events:
                if isinstance(event, Token):
                    yield event

    async def stream_votes(
        self, prompt: str = "", **options: Unpack[ChatOptions]
    ) -> AsyncGenerator[Token | VoteCast, None]:
        """As `stream`, with each vote of a fusion as it is cast."""
        given, timeout_s = calls.split_timeout(options, self._timeout_s)
        key = await self._link.request("infer_stream", calls.ask_fields(prompt, given), timeout_s)
        has_ended = False
        try:
            while not has_ended:
                frame = await self._link.wait(key, timeout_s)
                has_ended = frame.type in ("done", "error")
                if calls.checked(frame).type != "ok":  # "ok" is "Starting token generation"
                    yield calls.event_of(frame)
        finally:
            self._link.forget(key, cancel=not has_ended)

    async def infer_multi(self, prompts: Sequence[str], **options: Unpack[InferOptions]) -> list[str]:
        """The answers to several prompts, which run at the same time; one that fails fails all.

        Raises: as `infer` does, naming the prompt.
        """
        given, timeout_s = calls.split_timeout(options, self._timeout_s)
        frame = await self._call("infer_multi", calls.multi_fields(prompts, given), timeout_s)
        texts: list[str] = calls.data_of(frame, list)
        return texts

    async def tokenize(self, text: str, *, model: str = "", timeout_s: float | None = None) -> list[int]:
        """The token ids of a text.

        Raises: `NoModel`.
        """
        frame = await self._call("tokenize", {"text": text, "model": model}, timeout_s)
        ids: list[int] = calls.data_of(frame, list)
        return ids

    async def embed(self, text: str, *, model: str = "", timeout_s: float | None = None) -> list[float]:
        """The embedding of a text, with norm 1.

        Raises: `NoModel`.
        """
        frame = await self._call("embed", {"text": text, "model": model}, timeout_s)
        vector: list[float] = calls.data_of(frame, list)
        return vector

    async def cancel(self, request_id: str, *, timeout_s: float | None = None) -> None:
        """Ends a request of any connection by its id, which the bridge told to whoever started it.

        Raises: `NotFound`.
        """
        await self._call("cancel", {"target": request_id}, timeout_s)

    async def quit(self, *, timeout_s: float | None = None) -> None:
        """Makes the bridge drain and stop."""
        await self._call("quit", {}, timeout_s)

    async def _call(self, op: str, fields: dict[str, Any], timeout_s: float | None) -> AnswerFrame:
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        key = await self._link.request(op, fields, deadline - time.monotonic())
        has_ended = False
        try:
            frame = await self._link.wait(key, deadline - time.monotonic())
            has_ended = True
        finally:
            self._link.forget(key, cancel=not has_ended)
        return calls.checked(frame)
