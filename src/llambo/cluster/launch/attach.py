"""Servers that somebody else runs, as nodes: llama.cpp's own server, or any other with the OpenAI API.

Owns the dialling of a URL and the finding out of what answers there; a feature is claimed only after it has worked.
Never starts, stops or changes a server. It cannot tell when one ends: no connection is held to it, so `watch` reports
nothing and the runtime's health checks find out.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from llambo.cluster.launch.base import (
    EMBEDDING,
    GENERATE,
    RERANKING,
    SLOT_FILES,
    TEMPLATE,
    TOKEN_IDS,
    UNIX,
    NodeExited,
    NodeHandle,
    NodeRequest,
)
from llambo.cluster.upstream_http import BadStatus, NodeHttp
from llambo.cluster.upstream_json import MALFORMED
from llambo.core.errors import BadRequest, NameInUse, NodeLost, Refused, TimedOut, Unreachable

OPENAI_SLOTS = 4
"""Requests at once to a server that does not say how many it takes, unless the request for the node does."""

_LOADING_POLL_S = 0.25
_FORMS = "give http://HOST:PORT, https://HOST[:PORT] or unix:///PATH"


_Size = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Settings(msgspec.Struct):
    n_ctx: _Size = 0


class _Props(msgspec.Struct):
    """What llama-server says at /props; nothing else has `total_slots` there."""

    total_slots: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    default_generation_settings: _Settings = msgspec.field(default_factory=_Settings)
    model_alias: str = ""
    model_path: str = ""


class _Meta(msgspec.Struct):
    n_ctx: _Size = 0


class _Model(msgspec.Struct):
    """A model of /v1/models; how long its context is some servers say in one of two ways."""

    id: str
    max_model_len: _Size | None = None
    meta: _Meta | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Completion(msgspec.Struct):
    content: str
    tokens: list[int] = []


class AttachLauncher:
    """A launcher for servers that run already."""

    def __init__(self) -> None:
        self._names: set[str] = set()  # wanted or attached
        self._closed = asyncio.Event()

    async def spawn(self, request: NodeRequest, *, timeout_s: float) -> NodeHandle:
        """Dials `request.url`, waits while a model is being loaded there, and finds out what the server can do.

        `options.slots` is how many requests at once a server gets that does not say it itself (0: `OPENAI_SLOTS`).

        Raises: `BadRequest` for a URL or key that cannot be, `Unreachable`, `Refused`, `TimedOut`, `NameInUse`.
        """
        if request.name in self._names:
            raise NameInUse(f"there is a node {request.name} already")
        address, machine = parse_url(request.url)
        _check_key(request.api_key)
        self._names.add(request.name)
        try:
            return await self._dial(request, address, machine, timeout_s)
        except BaseException:
            self._names.discard(request.name)
            raise

    async def room_for(self, request: NodeRequest) -> int | None:
        """None: what room there is elsewhere cannot be told."""
        return None

    async def terminate(self, name: str) -> None:
        """Forgets the node; its server goes on."""
        self._names.discard(name)

    async def watch(self) -> AsyncIterator[NodeExited]:
        """Reports nothing; ends when the launcher is closed."""
        nothing: list[NodeExited] = []
        await self._closed.wait()
        for exited in nothing:
            yield exited

    async def close(self) -> None:
        """Forgets all nodes; their servers go on."""
        self._names.clear()
        self._closed.set()

    async def _dial(self, request: NodeRequest, address: str, machine: str, timeout_s: float) -> NodeHandle:
        http = NodeHttp("its server", address, api_key=request.api_key)
        try:
            async with asyncio.timeout(timeout_s):
                return await _Visit(request, http, address, machine).handle()
        except TimeoutError:
            raise TimedOut(f"{request.url} was not ready to answer within {timeout_s:g} s") from None
        except NodeLost as error:
            raise Unreachable(f"{request.url} cannot be attached: {error.message}") from None
        except MALFORMED as error:
            raise Unreachable(f"{request.url} cannot be attached: it answers as no LLM server does: {error}") from None
        finally:
            await http.close()


def parse_url(url: str) -> tuple[str, str]:
    """A node's address and its machine: the URL without "/v1" and slashes at its end.

    Raises: `BadRequest`; the message does not repeat a URL that holds a password.
    """
    if "@" in url:
        raise BadRequest(f"the URL holds a user name or password; give a key apart from it, and {_FORMS}")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise BadRequest(f"{url!r} is no URL: {error}; {_FORMS}") from None
    if any(not c.isprintable() or c.isspace() for c in url):
        raise BadRequest(f"{url!r} holds a space or a control character; {_FORMS}")
    if parts.query or parts.fragment:
        raise BadRequest("the URL has something after ? or #; give the server's address alone, and a key apart from it")
    if parts.scheme == "unix":
        return _unix(url, parts)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f"{url!r} is no URL of a server; {_FORMS}")
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        raise BadRequest(f"{url!r} has a host name with an empty part or one over 63 characters; {_FORMS}") from None
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}", parts.hostname


def _unix(url: str, parts: SplitResult) -> tuple[str, str]:
    if parts.netloc or not parts.path.strip("/"):
        raise BadRequest(f"{url!r} names no socket by its full path; {_FORMS}")
    return UNIX + parts.path, socket.gethostname()


def _check_key(key: str) -> None:
    if not all("!" <= c <= "~" for c in key):
        raise BadRequest("the API key holds a space or another character that no HTTP header can carry")


class _Visit:
    """One dialling: from a URL to what answers there."""

    def __init__(self, request: NodeRequest, http: NodeHttp, address: str, machine: str) -> None:
        self._request = request
        self._http = http
        self._address = address
        self._machine = machine

    async def handle(self) -> NodeHandle:
        props = await self._props()
        if props is None:
            return await self._openai()
        features = frozenset([f async for f in self._llama_features()])
        if not features & {GENERATE, EMBEDDING, RERANKING}:
            raise Unreachable(f"{self._request.url} has a model, but gives neither answers nor embeddings")
        model = props.model_alias
        if not model or model == props.model_path:
            model = Path(props.model_path).name.removesuffix(".gguf")
        ctx = props.default_generation_settings.n_ctx
        return self._made(slots=props.total_slots, ctx=ctx, model=model, features=features)

    async def _props(self) -> _Props | None:
        """What llama-server says of itself; None where something else answers. Waits while it loads its model."""
        while True:
            try:
                return msgspec.json.decode(await self._http.get("/props", timeout_s=None), type=_Props)
            except MALFORMED:
                return None
            except BadStatus as error:
                if error.status != 503:
                    return None
            await asyncio.sleep(_LOADING_POLL_S)

    async def _llama_features(self) -> AsyncIterator[str]:
        """Each feature that works, tried on a word."""
        reply = await self._works("/tokenize", {"content": "word"})
        ids = msgspec.json.decode(reply, type=_Tokens).tokens if reply else []
        body = {"n_predict": 1, "return_tokens": True, "cache_prompt": False, "prompt": ids or "word"}
        if reply := await self._works("/completion", body):
            yield GENERATE
            if msgspec.json.decode(reply, type=_Completion).tokens and ids:
                yield TOKEN_IDS
        if await self._works("/apply-template", {"messages": [{"role": "user", "content": "word"}]}):
            yield TEMPLATE
        if await self._works("/v1/embeddings", {"input": "word"}):
            yield EMBEDDING
        if await self._works("/v1/rerank", {"query": "word", "documents": ["word"]}):
            yield RERANKING
        # An action that does not exist is refused in another way where files are not kept.
        if await self._status("/slots/0?action=none", {"filename": "none"}) == 400:
            yield SLOT_FILES

    async def _openai(self) -> NodeHandle:
        url = self._request.url
        try:
            reply = await self._http.get("/v1/models", timeout_s=None)
            models = msgspec.json.decode(reply, type=_Models).data
        except BadStatus as error:
            raise self._refusal(error.status) from None
        except MALFORMED:
            raise Unreachable(f"{url} cannot be attached: what answers there has no list of models") from None
        if not models:
            raise Unreachable(f"{url} serves no model at present")
        # The order of a list may change while a node lives: what it serves must not.
        model = next((model for model in models if model.id == self._request.model), models[0])
        chat = {"model": model.id, "messages": [{"role": "user", "content": "word"}], "max_tokens": 1}
        features = set()
        if await self._works("/v1/chat/completions", chat):
            features.add(GENERATE)
        if await self._works("/v1/embeddings", {"model": model.id, "input": "word"}):
            features.add(EMBEDDING)
        if not features:
            raise Unreachable(f"{url} lists a model, {model.id}, but gives neither answers nor embeddings")
        ctx = model.max_model_len or (model.meta.n_ctx if model.meta else 0)
        slots = self._request.options.slots or OPENAI_SLOTS
        return self._made(slots=slots, ctx=ctx, model=model.id, features=frozenset(features))

    def _refusal(self, status: int) -> Unreachable | Refused:
        url = self._request.url
        if status in (401, 403):
            what = "refuses the API key" if self._request.api_key else "wants an API key"
            return Refused(f"{url} {what} (HTTP status {status})")
        return Unreachable(f"{url} cannot be attached: it answers with HTTP status {status}")

    async def _works(self, path: str, body: dict[str, Any]) -> bytes:
        """The reply, or nothing where the server does not do that."""
        try:
            return await self._http.post(path, body, timeout_s=None)
        except BadStatus as error:
            if error.status in (401, 403):
                raise self._refusal(error.status) from None
            return b""

    async def _status(self, path: str, body: dict[str, Any]) -> int:
        try:
            await self._http.post(path, body, timeout_s=None)
        except BadStatus as error:
            return error.status
        return 200

    def _made(self, *, slots: int, ctx: int, model: str, features: frozenset[str]) -> NodeHandle:
        return NodeHandle(
            name=self._request.name,
            pid=0,
            address=self._address,
            machine=self._machine,
            slots=slots,
            ctx=ctx,
            model=model,
            features=features,
            api_key=self._request.api_key,
        )
