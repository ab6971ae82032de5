"""The synchronous client of a bridge: one method for each thing that can be asked.

Knows what is asked and what comes back; `blocking_link` moves the bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, Self, Unpack

from llambo.bridge import client_calls as calls
from llambo.bridge.binary import AnswerFrame
from llambo.bridge.blocking_link import BlockingLink
from llambo.bridge.client_calls import ChatOptions, Completion, InferOptions, LoadModelOptions, Token
from llambo.bridge.dial import default_socket_path, parse_dial
from llambo.core.fusion import VoteCast


class Bridge:
    """A connection to a bridge, made by `connect`; several threads may use it.

    Every call takes `timeout_s`, seconds, raises `TimedOut` after that and cancels what it had asked for. Errors are
    those that the bridge reported, as the classes of `llambo.core.errors`; `Unreachable` when the bridge went away.
    """

    def __init__(self, link: BlockingLink, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s

    @classmethod
    def connect(cls, path: str = "", *, token: str = "", timeout_s: float = calls.DEFAULT_TIMEOUT_S) -> Self:
        """Connects to the socket at `path`, or to `tcp!HOST!PORT` with a `token`; `timeout_s` is every call's default.

        Without a path it is `LLAMBO_BRIDGE_SOCKET`, or `bridge.socket_path` of the configuration.

        Raises: `Unreachable` when nothing listens there, `Refused` (also by us, when the socket is another user's),
        `Overloaded`, `BadConfig` for what is no address.
        """
        return cls(BlockingLink(parse_dial(path or default_socket_path()), token, timeout_s), timeout_s)

    @property
    def address(self) -> str:
        """Where the bridge is, as a dial string."""
        return str(self._link.address)

    @property
    def is_connected(self) -> bool:
        """Whether no call has found the connection broken."""
        return self._link.failure is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Ends the connection; what is in flight on it is cancelled."""
        self._link.close()

    def ping(self, *, timeout_s: float | None = None) -> None:
        """Returns when the bridge answers."""
        self._call("ping", {}, timeout_s)

    def get_status(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Models, slots and totals: the `data` of STATUS."""
        status: dict[str, Any] = calls.data_of(self._call("status", {}, timeout_s), dict)
        return status

    def models(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """The loaded models, the default one first."""
        models: list[dict[str, Any]] = calls.data_of(self._call("models", {}, timeout_s), list)
        return models

    def load_model(self, path: str, name: str = "", **options: Unpack[LoadModelOptions]) -> dict[str, Any]:
        """Loads a model and returns its `name`, `path`, `ctx` and `slots`.

        Raises: `BadModel`, `NoMemory`, `NameInUse`, `DownloadFailed`.
        """
        given, timeout_s = calls.split_timeout(options, max(self._timeout_s, calls.LOAD_TIMEOUT_S))
        frame = self._call("load", calls.load_fields(path, name, given), timeout_s)
        model: dict[str, Any] = calls.data_of(frame, dict)
        return model

    def free_model(self, name: str = "", *, timeout_s: float | None = None) -> None:
        """Ends a model, without a name the default one.

        Raises: `NoModel`.
        """
        self._call("free", {"name": name}, timeout_s)

    def infer(self, prompt: str = "", **options: Unpack[ChatOptions]) -> str:
        """The text of one answer.

        Raises: `NoModel`, `PromptTooLong`, `NodeLost`, `Overloaded`, `NoQuorum`, `Cancelled`.
        """
        return self.complete(prompt, **options).text

    def complete(self, prompt: str = "", **options: Unpack[ChatOptions]) -> Completion:
        """One answer with its counts; raises as `infer` does."""
        given, timeout_s = calls.split_timeout(options, self._timeout_s)
        frame = self._call("infer", calls.ask_fields(prompt, given), timeout_s)
        return calls.completion_of(frame, calls.data_of(frame, str))

    def infer_stream(
        self, prompt: str, callback: Callable[[Token], object], **options: Unpack[ChatOptions]
    ) -> Completion:
        """Calls `callback` with each token, the final one too, and returns the whole; an exception in it cancels.

        Raises: as `infer` does.
        """
        return consume(self.stream(prompt, **options), callback)

    def stream(self, prompt: str = "", **options: Unpack[ChatOptions]) -> Generator[Token, None, None]:
        """One answer as it comes, the final token last. Asking begins with the first `next`; closing early cancels.

        Raises: as `infer` does.
        """
        with closing(self.stream_votes(prompt, **options)) as events:
            for event in events:
                if isinstance(event, Token):
                    yield event

    def stream_votes(self, prompt: str = "", **options: Unpack[ChatOptions]) -> Generator[Token | VoteCast, None, None]:
        """As `stream`, with each vote of a fusion as it is cast."""
        given, timeout_s = calls.split_timeout(options, self._timeout_s)
        key = self._link.request("infer_stream", calls.ask_fields(prompt, given), timeout_s)
        has_ended = False
        try:
            while not has_ended:
                frame = self._link.wait(key, timeout_s)
                has_ended = frame.type in ("done", "error")
                if calls.checked(frame).type != "ok":  # "ok" is "Starting token generation"
                    yield calls.event_of(frame)
        finally:
            self._link.forget(key, cancel=not has_ended)

    def infer_multi(self, prompts: Sequence[str], **options: Unpack[InferOptions]) -> list[str]:
        """The answers to several prompts, which run at the same time; one that fails fails all.

        Raises: as `infer` does, naming the prompt.
        """
        given, timeout_s = calls.split_timeout(options, self._timeout_s)
        frame = self._call("infer_multi", calls.multi_fields(prompts, given), timeout_s)
        texts: list[str] = calls.data_of(frame, list)
        return texts

    def tokenize(self, text: str, *, model: str = "", timeout_s: float | None = None) -> list[int]:
        """The token ids of a text.

        Raises: `NoModel`.
        """
        ids: list[int] = calls.data_of(self._call("tokenize", {"text": text, "model": model}, timeout_s), list)
        return ids

    def embed(self, text: str, *, model: str = "", timeout_s: float | None = None) -> list[float]:
        """The embedding of a text, with norm 1.

        Raises: `NoModel`.
        """
        vector: list[float] = calls.data_of(self._call("embed", {"text": text, "model": model}, timeout_s), list)
        return vector

    def cancel(self, request_id: str, *, timeout_s: float | None = None) -> None:
        """Ends a request of any connection by its id, which the bridge told to whoever started it.

        Raises: `NotFound`.
        """
        self._call("cancel", {"target": request_id}, timeout_s)

    def quit(self, *, timeout_s: float | None = None) -> None:
        """Makes the bridge drain and stop."""
        self._call("quit", {}, timeout_s)

    def _call(self, op: str, fields: dict[str, Any], timeout_s: float | None) -> AnswerFrame:
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        key = self._link.request(op, fields, deadline - time.monotonic())
        has_ended = False
        try:
            frame = self._link.wait(key, deadline - time.monotonic())
            has_ended = True
        finally:
            self._link.forget(key, cancel=not has_ended)
        return calls.checked(frame)


def consume(tokens: Generator[Token, None, None], callback: Callable[[Token], object]) -> Completion:
    """Calls `callback` with each token and returns the whole; closes `tokens` whatever happens."""
    texts: list[str] = []
    last = Token("", True)
    with closing(tokens):
        for last in tokens:
            texts.append(last.text)
            callback(last)
    return calls.completion_of(last, "".join(texts))
