"""In front of the application: who asks, from which page, for what, and how often.

Owns ids of requests, tokens and scopes, browsers (Host, Origin, CORS), rates and the answers while stopping. Knows
nothing of endpoints beyond the scope that a path needs. A secret never leaves this module.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from llambo.core.errors import LlamboError, Overloaded, Refused
from llambo.core.sections import Gateway as GatewaySettings
from llambo.core.tokens import SECRET_PREFIX, Scope, TokenStore
from llambo.gateway.errors import Failure, dialect_of
from llambo.gateway.listen import is_loopback
from llambo.gateway.rates import Rates

Message = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

SUBPROTOCOL = "llambo"
"""What a WebSocket is spoken in where its client asks for it."""
TOKEN_SUBPROTOCOL = "llambo-token."  # noqa: S105 - what a token comes after
"""A page cannot give a WebSocket headers, but it can offer subprotocols: `llambo` and `llambo-token.SECRET`."""

_OPEN = frozenset({"/health", "/ready"})
_INFER_PREFIXES = ("/v1/ws", "/v1/streams/")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_RANK: dict[str, int] = {"": 0, "read": 1, "infer": 2, "admin": 3}
_WANTED = frozenset({b"host", b"origin", b"authorization", b"x-api-key", b"access-control-request-method"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

_log = logging.getLogger("llambo.gateway")


@dataclass(slots=True)
class _Asked:
    """A request's headers that count here. `failure_headers` go with a refusal too."""

    values: dict[bytes, str]
    reply: Headers = field(default_factory=list)

    def get(self, name: bytes) -> str:
        return self.values.get(name, "")


class Guard:
    """`app` behind the checks. `hosts` are names, beside the usual ones, that a loopback listener goes by."""

    def __init__(
        self,
        app: App,
        settings: GatewaySettings,
        tokens: TokenStore,
        *,
        hosts: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._clock = clock
        self._require_token = settings.require_token
        self._origins = frozenset(filter(None, settings.cors_origins.split(",")))
        self._hosts = _LOCAL_NAMES | set(hosts)
        self._rates = Rates(settings.requests_per_minute) if settings.requests_per_minute else None
        self.stopping = asyncio.Event()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request, or one WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            return
        state = scope["state"]
        state["request_id"] = request_id = f"req-{secrets.token_hex(16)}"
        state["owner"] = state["scope"] = ""
        state["stopping"] = self.stopping
        asked = _Asked(_wanted(scope["headers"]), [(b"x-request-id", request_id.encode())])
        failure = self._page_failure(scope, asked)
        if failure is None and scope["type"] == "http" and _is_preflight(scope, asked):
            await _answer_preflight(scope, asked, send)
            return
        failure = failure or self._client_failure(scope, asked)
        if failure is not None:
            await _refuse(failure, scope, asked, receive, send)
            return
        if scope["type"] == "websocket":
            state["again"] = partial(self._refusal_later, state["owner"], _rate_key(scope))
        await self._pass_on(scope, asked, receive, send)

    async def _pass_on(self, scope: Any, asked: _Asked, receive: Receive, send: Send) -> None:
        has_begun = False

        def first(message: Message) -> Awaitable[None]:
            # No coroutine of its own: every token of an answer goes through here.
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                message = _with_headers(message, scope, asked)
            return send(message)

        try:
            await self._app(scope, receive, first)
        except Exception:
            _log.exception("%s failed", asked.reply[0][1].decode())
            if has_begun:
                raise  # the server hangs up: the client must not take what it has for the whole
            failure = Failure(500, "failed", f"a fault of ours, in the log as {asked.reply[0][1].decode()}")
            await _refuse(failure, scope, asked, None, send)

    # --- which page asks ---

    def _page_failure(self, scope: Any, asked: _Asked) -> Failure | None:
        """What is wrong with Host and Origin; what goes with CORS is added to the reply's headers."""
        host = asked.get(b"host").lower()
        server = scope.get("server") or ("", None)
        if server[1] is not None and _is_loopback(server[0]):
            # A foreign name that leads here is a page's way around its browser's rules (DNS rebinding).
            name = _name_of(host)
            if name and name not in self._hosts and name.strip("[]") != server[0]:
                return Failure(403, "refused", f"Host {name[:100]!r} is not a name of this machine: use localhost")
        origin = asked.get(b"origin")
        if not origin or (host and origin.lower().partition("://")[2] == host):
            return None
        if "*" in self._origins:
            asked.reply.append((b"access-control-allow-origin", b"*"))
        elif origin in self._origins:
            asked.reply += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
        else:
            return Failure(403, "refused", f"pages of {origin[:100]!r} may not use this: see gateway.cors_origins")
        asked.reply.append((b"access-control-expose-headers", b"x-request-id, retry-after, x-llambo-node"))
        return None

    # --- who asks ---

    def _client_failure(self, scope: Any, asked: _Asked) -> Failure | None:
        path: str = scope["path"]
        if self.stopping.is_set() and path != "/health":
            return Failure(503, "stopping", "the cluster is being stopped")
        if path in _OPEN:
            return None
        try:
            failure = self._authenticate(scope, asked)
        except LlamboError as error:  # of the token file
            _log.error("tokens cannot be checked: %s", error.message)
            return Failure(503, "failed", "tokens cannot be checked now: the log says why")
        if failure is not None:
            return failure
        state = scope["state"]
        needed = _needed(scope, path)
        if _RANK[state["scope"]] < _RANK[needed]:
            text = f"this needs a token with scope {needed}, and the one given has {state['scope']}"
            return Failure(403, "refused", text)
        return self._over_rate(_rate_key(scope))

    def _authenticate(self, scope: Any, asked: _Asked) -> Failure | None:
        """Puts who asks into the request's state."""
        secret = asked.get(b"x-api-key")
        if given := asked.get(b"authorization"):
            kind, _, secret = given.partition(" ")
            secret = secret.strip()
            if kind.lower() != "bearer" or not secret:
                return _unknown("the Authorization header is no token: write Bearer TOKEN")
        if scope["type"] == "websocket":
            secret = _take_subprotocol(scope) or secret
        state = scope["state"]
        is_needed = self._require_token or not _is_local(scope)
        # Programs that insist on a key are given a placeholder where none is needed; what looks like ours is checked.
        if secret and (is_needed or secret.startswith(SECRET_PREFIX)):
            token = self._tokens.verify(secret)
            if token is None:
                return _unknown("the token is not valid: it is wrong, expired or revoked")
            state["owner"], state["scope"] = token.id, token.scope
            return None
        if is_needed:
            return _unknown("a token is needed: Authorization: Bearer TOKEN; llamboctl token create makes one")
        state["scope"] = "infer"
        return None

    def _refusal_later(self, owner: str, rate_key: str, *, counts: bool = True) -> LlamboError | None:
        """Why a client whose handshake is done may not ask, or be told, once more; what `counts` is of its rate."""
        try:
            if owner and not self._tokens.is_valid(owner):
                return Refused("the token is not valid any more: it has expired or was revoked")
        except LlamboError as error:  # of the token file
            _log.error("tokens cannot be checked: %s", error.message)
            return LlamboError("tokens cannot be checked now: the log says why")
        failure = self._over_rate(rate_key) if counts else None
        return Overloaded(failure.message) if failure is not None else None

    def _over_rate(self, key: str) -> Failure | None:
        if self._rates is None:
            return None
        wait_s = self._rates.take(key, self._clock())
        if wait_s == 0:
            return None
        return Failure(429, "rate_limit_exceeded", f"too many requests: try again in {wait_s:.1f} s", None, wait_s)


def _rate_key(scope: Any) -> str:
    """Whose requests count together: a token's, or those of an address."""
    client = scope.get("client")
    return scope["state"]["owner"] or (f"from {client[0]}" if client else "from here")


def _wanted(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, str]:
    return {name: value.decode("latin-1") for name, value in headers if name in _WANTED}


def _unknown(message: str) -> Failure:
    return Failure(401, "invalid_api_key", message)


def _needed(scope: Any, path: str) -> Scope:
    """The scope that a request needs. What is sent may make the engine work, so only looking is for readers."""
    if path.startswith(_INFER_PREFIXES) or scope.get("method", "GET") not in _READING:
        return "infer"
    return "read"


def _is_local(scope: Any) -> bool:
    """Whether the client is on this machine: on a Unix socket, or on a loopback address of ours."""
    server = scope.get("server")
    return bool(server) and (server[1] is None or _is_loopback(server[0]))


@lru_cache(maxsize=256)
def _is_loopback(host: str) -> bool:
    return is_loopback(host)


def _name_of(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _take_subprotocol(scope: Any) -> str:
    """The token among the offered subprotocols; the application does not see it."""
    offered: list[str] = scope.get("subprotocols", [])
    found = next((name for name in offered if name.startswith(TOKEN_SUBPROTOCOL)), "")
    if found:
        scope["subprotocols"] = [name for name in offered if not name.startswith(TOKEN_SUBPROTOCOL)]
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"sec-websocket-protocol"]
    return found.removeprefix(TOKEN_SUBPROTOCOL)


def _with_headers(message: Message, scope: Any, asked: _Asked) -> Message:
    """The first message of an answer with our headers, and the subprotocol that browsers insist on."""
    match message["type"]:
        case "http.response.start":
            return message | {"headers": [*message.get("headers", ()), *asked.reply]}
        case "websocket.accept":
            message = message | {"headers": [*message.get("headers", ()), *asked.reply]}
            if not message.get("subprotocol") and SUBPROTOCOL in scope.get("subprotocols", ()):
                message["subprotocol"] = SUBPROTOCOL
    return message


def _is_preflight(scope: Any, asked: _Asked) -> bool:
    return bool(scope["method"] == "OPTIONS" and asked.get(b"origin") and asked.get(b"access-control-request-method"))


async def _answer_preflight(scope: Any, asked: _Asked, send: Send) -> None:
    """Says what a page may send; that it may at all was found before."""
    names = [value for name, value in scope["headers"] if name == b"access-control-request-headers"]
    headers = [
        *asked.reply,
        (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", b", ".join(names) or b"authorization, content-type, x-api-key"),
        (b"access-control-max-age", b"600"),
    ]
    if any(name == b"access-control-request-private-network" for name, _ in scope["headers"]):
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _waits_to_send(scope: Any) -> bool:
    """Whether the client sends its body only if it is told to; then what comes next may be a body or a request."""
    return any(name == b"expect" for name, _ in scope["headers"])


async def _refuse(failure: Failure, scope: Any, asked: _Asked, receive: Receive | None, send: Send) -> None:
    """Answers instead of the application; a WebSocket is refused before its handshake."""
    body = failure.body(dialect_of(scope["path"]))
    headers = [*failure.headers, (b"content-length", str(len(body)).encode()), *asked.reply]
    if failure.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="llambo"'))
    if failure.code == "stopping" or _waits_to_send(scope):
        headers.append((b"connection", b"close"))
    kind = "http"
    if scope["type"] == "websocket":
        kind = "websocket.http"
        if receive is not None:
            await receive()  # websocket.connect
    await send({"type": f"{kind}.response.start", "status": failure.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})
