"""Owns the real engine for measuring: one `xllamacpp` server on a Unix socket in a private folder."""

from __future__ import annotations

import http.client
import json
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from training.chats import Chat

MAX_TOKENS = 160


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


class EngineError(RuntimeError):
    """The engine refused a request; the text is its own."""


class Engine:
    """A loaded model that answers chats, `slots` of them at a time. Use as a context manager.

    `context` is each slot's. Its methods may be called from several threads.
    """

    def __init__(self, model: Path, context: int = 2048, threads: int = 1, slots: int = 1) -> None:
        import xllamacpp  # noqa: PLC0415 - only who measures needs the engine

        self.slots = slots
        self._folder = tempfile.TemporaryDirectory(prefix="llambo-engine-")
        self._socket = str(Path(self._folder.name) / "s.sock")
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = context * slots
        params.n_parallel = slots
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.hostnames = [self._socket]
        params.warmup = False
        params.verbosity = 0
        self._server: Any = xllamacpp.Server(params)
        self.answer([("user", "hello")], max_tokens=1)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server = None
        self._folder.cleanup()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to a POST. Raises EngineError for a status other than 200."""
        connection = _SocketConnection(self._socket)
        try:
            connection.request("POST", path, json.dumps(body).encode("utf-8"),
                               {"Content-Type": "application/json"})  # fmt: skip
            reply = connection.getresponse()
            text = reply.read().decode("utf-8", "replace")
        finally:
            connection.close()
        if reply.status != 200:
            raise EngineError(text)
        found: dict[str, Any] = json.loads(text)
        return found

    def answer(
        self, chat: Chat, temperature: float = 0.0, seed: int = 1, max_tokens: int = MAX_TOKENS
    ) -> dict[str, Any]:
        """The reply to `chat`: `text`, `finish` ("stop" or "length") and llama.cpp's `timings`."""
        reply = self.post("/v1/chat/completions", {
            "messages": [{"role": role, "content": text} for role, text in chat],
            "temperature": temperature, "seed": seed, "max_tokens": max_tokens,
        })  # fmt: skip
        choice = reply["choices"][0]
        return {"text": choice["message"]["content"], "finish": choice["finish_reason"],
                "timings": reply.get("timings", {})}  # fmt: skip

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """The ids that llama.cpp gives `text`."""
        reply = self.post("/tokenize", {"content": text, "parse_special": special})
        return [int(token) for token in reply["tokens"]]
