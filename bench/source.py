"""Tokens at a set pace, for measuring a relay: a real HTTP server in llama-server's dialect, without a model.

An engine on the same two cores hides what a relay costs. This one costs next to nothing: every answer is the same word,
as often as the body's `max_tokens` says and `pace_ms` apart (default 0: as fast as they are read), each in a write of
its own. The first comes at once. It measures relays only; no figure of an engine comes from it.

    python -m bench.source SOCKET SLOTS      says "ready", and lives until its standard input closes
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import httptools
import msgspec
import uvloop

from bench import ending

MODEL = "source"
_CTX = 4096
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/completion")


class _Asked(msgspec.Struct):
    stream: bool = False
    max_tokens: int = 16
    n_predict: int | None = None
    pace_ms: float = 0.0


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(choice: str) -> bytes:
    return _chunk(
        f'data: {{"choices":[{{"index":0,{choice}}}],"created":1700000000,"id":"chatcmpl-0123456789abcdef0123456789ab",'
        f'"model":"{MODEL}","system_fingerprint":"b1-source","object":"chat.completion.chunk"}}\n\n'.encode()
    )


_ROLE = _event('"finish_reason":null,"delta":{"role":"assistant","content":null}')
_TOKEN = _event('"finish_reason":null,"text":" word","delta":{"content":" word"}')
_END = _event('"finish_reason":"length","text":"","delta":{}') + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class _Connection(asyncio.Protocol):
    """One client; its requests are answered one after another."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._parser = httptools.HttpRequestParser(self)
        self._path = ""
        self._body = bytearray()
        self._transport: asyncio.Transport | None = None
        self._left = 0  # tokens
        self._is_answering = False  # the end comes after the last token
        self._pace_s = 0.0
        self._next_s = 0.0
        self._timer: asyncio.Handle | None = None
        self._may_write = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self._may_write = False

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._may_write = True
        if self._is_answering and self._timer is None:
            self._pump()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            if self._transport is not None:
                self._transport.close()

    def on_url(self, url: bytes) -> None:
        """Called by httptools."""
        self._path += url.decode()

    def on_body(self, data: bytes) -> None:
        """Called by httptools."""
        self._body += data

    def on_message_complete(self) -> None:
        """Called by httptools."""
        path, self._path = self._path, ""
        body, self._body = bytes(self._body), bytearray()
        asked = msgspec.json.decode(body or b"{}", type=_Asked)
        tokens = asked.max_tokens if asked.n_predict is None else asked.n_predict
        if path in _STREAMS and asked.stream:
            self._left, self._pace_s = tokens, asked.pace_ms / 1e3
            self._is_answering = True
            self._next_s = asyncio.get_running_loop().time()
            self._write(_HEAD + _ROLE)
            self._pump()
            return
        reply = self._reply(path, tokens)
        status = "404 Not Found" if reply is None else "200 OK"
        data = msgspec.json.encode({"error": {"message": "no such path"}} if reply is None else reply)
        self._write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def _reply(self, path: str, tokens: int) -> object:
        text = " word" * tokens
        match path:
            case "/health":
                return {"status": "ok"}
            case "/props":
                settings = {"n_ctx": _CTX}
                return {"total_slots": self._slots, "model_alias": MODEL, "default_generation_settings": settings}
            case "/v1/models":
                return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            case "/tokenize":
                return {"tokens": [1]}
            case "/apply-template":
                return {"prompt": "word"}
            case "/completion":
                return {"content": text, "tokens": [1] * tokens, "stop": True}
            case "/v1/chat/completions" | "/v1/completions":
                choice = {"index": 0, "finish_reason": "length", "text": text, "message": {"content": text}}
                return {"choices": [choice], "usage": {"completion_tokens": tokens}}
        return None

    def _pump(self) -> None:
        """Writes one event and sees to the next one."""
        self._timer = None
        if not self._may_write:
            return  # `resume_writing` goes on
        if not self._left:
            self._is_answering = False
            self._write(_END)
            return
        self._left -= 1
        self._write(_TOKEN)
        loop = asyncio.get_running_loop()
        if self._pace_s and self._left:
            self._next_s += self._pace_s
            self._timer = loop.call_at(self._next_s, self._pump)
        else:
            self._timer = loop.call_soon(self._pump)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(socket_path: str, slots: int) -> None:
    """Serves until standard input closes."""
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: _Connection(slots), socket_path, backlog=1024)
    async with server:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def source_process(socket_path: str, slots: int) -> Iterator[str]:
    """A source in a process of its own for the block; gives its URL."""
    command = [sys.executable, "-m", "bench.source", socket_path, str(slots)]
    with ending.process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit("the source did not start")
        yield f"unix://{socket_path}"


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
