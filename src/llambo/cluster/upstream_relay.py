"""A relayed request as one node is asked it, and the node's reply as the relay reads it: what both kinds of node share.

Which members a body needs and what a refusal means is for `upstream_llama` and `upstream_openai` to know; what is done
when a node fails for `relaying`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from llambo.cluster.relay import Take
from llambo.cluster.upstream_events import Cutter, Oversized
from llambo.cluster.upstream_http import MAX_REPLY_BYTES, NodeHttp
from llambo.cluster.upstream_stream import ReplyStream
from llambo.core.errors import BadRequest, LlamboError, NodeLost, PromptTooLong

_MAX_REFUSAL_BYTES = 2**20


class NotThere(Exception):
    """The node has no such endpoint, and another one may; for `relaying` alone. Its text is a sentence."""


@dataclass(frozen=True, slots=True)
class RelayCall:
    """What one node is asked. `fields` None means GET; `seed` is to be put in where a request generates."""

    path: str
    fields: Mapping[str, msgspec.Raw] | None
    streams: bool = False
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """How one kind of server speaks.

    `check` is told a refusal's status and body: it raises for what is not the request's own fault, and returns what to
    say of a prompt that is too long. `error_of` makes an error of one that comes in the stream. A stream `is_watched`
    from its beginning where the server tells of its prefill, else from its first event on.
    """

    check: Callable[[int, bytes], PromptTooLong | None]
    error_of: Callable[[Any], LlamboError]
    stall_s: float
    is_watched: bool = True
    drops_progress: bool = False


class NodeReply:
    """A node's reply: 200, or a refusal that is the request's own fault, with its `body`.

    Of a stream `pour` gives pieces of whole events; anything else is in `body`, whole.
    """

    too_long: PromptTooLong | None = None
    """Set where that is what the request was refused for: a node with a larger context may take it."""

    def __init__(self, stream: ReplyStream, who: str, words: Words, body: bytes, cutter: Cutter | None = None) -> None:
        self.status = stream.status
        self.content_type = stream.content_type
        self.body = body
        self._stream = stream
        self._who = who
        self._words = words
        self._cutter = cutter
        self._is_watched = words.is_watched
        self._wants_more = True
        self._take: Take  # of the present `pour`

    @property
    def streams(self) -> bool:
        """Whether it comes as events, by `pour`."""
        return self._cutter is not None

    async def pour(self, take: Take) -> bool:
        """Gives the events to `take`; see `RelayReply.pour`. Raises: `NodeLost`, `EngineFailed`, `BadRequest`."""
        cutter = self._cutter
        if cutter is None:
            return True
        self._wants_more = True
        self._take = take
        while True:
            if cutter.error is not None:
                raise self._words.error_of(cutter.error)
            is_over = await self._stream.pour(self._feed)
            if not self._wants_more:
                return False
            if is_over and cutter.error is None:
                return True

    def _feed(self, data: bytes) -> bool:
        """Gives the events that `data` makes whole; whether more is wanted."""
        cutter = self._cutter
        assert cutter is not None
        reports = cutter.reports
        try:
            piece = cutter.feed(data)
        except Oversized:
            raise NodeLost(f"{self._who} streams an event that never ends") from None
        if piece:
            if not self._is_watched:
                self._is_watched = True
                self._stream.watch(self._words.stall_s)
            self._wants_more = self._take(piece)
        elif cutter.reports == reports:  # pings, or a part of an event
            self._stream.no_progress()
        return self._wants_more and cutter.error is None


@asynccontextmanager
async def opened(
    http: NodeHttp, call: RelayCall, fields: Mapping[str, Any] | None, words: Words
) -> AsyncIterator[NodeReply]:
    """Asks, and gives the reply from its headers on; leaving it closes the connection.

    Raises: `NodeLost`, what `words.check` raises.
    """
    method, body = ("GET", None) if fields is None else ("POST", encoded_fields(fields))
    stall_s = words.stall_s if call.streams and words.is_watched else None
    async with http.reply(method, call.path, body, stall_s=stall_s, connect_s=words.stall_s) as stream:
        if stream.status != 200:
            refusal = await stream.whole(_MAX_REFUSAL_BYTES)
            reply = NodeReply(stream, http.who, words, refusal)
            reply.too_long = words.check(stream.status, refusal)
            yield reply
        elif call.streams and stream.content_type.startswith("text/event-stream"):
            yield NodeReply(stream, http.who, words, b"", Cutter(drops_progress=words.drops_progress))
        else:
            yield NodeReply(stream, http.who, words, await stream.whole(MAX_REPLY_BYTES))


def encoded_fields(fields: Mapping[str, Any]) -> bytes:
    """The body. Raises: `BadRequest` for a name that JSON cannot carry."""
    try:
        return msgspec.json.encode(fields)
    except (UnicodeEncodeError, RecursionError) as error:
        raise BadRequest(f"the request holds what JSON cannot carry: {error}") from None
