"""Requests that are passed to a node in the node's own HTTP dialect: what is asked, and what comes back.

Pure data and one protocol. A relayed body is never understood here: the engine has the features (tools, grammars,
log-probabilities, embeddings, rerank), and whoever asks has read what choosing a node needs. How it is done, and how an
answer outlives its node, is `relaying`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from llambo.cluster.transcript import Transcript

Kind = Literal["generate", "embed", "rerank", "look"]
"""What a node must be able to do. "look" takes no slot and waits for none: any node of the model will do."""

Take = Callable[[bytes], bool]
"""Is given a piece of a reply and says whether it has room for another one. Must neither block nor wait."""


@dataclass(frozen=True, slots=True)
class RelayRequest:
    """One request as a node's own HTTP server takes it.

    `path` is the endpoint ("/v1/chat/completions"); `fields` are the members of its JSON body, each as the bytes that
    the client sent, None for GET. `text` is what the model will read, as far as it is known, for routing by prefix
    (`prefix.conversation_text`); `max_tokens` the answer's, 0 for open. `model` "" is the default one. With `streams`
    the reply is server-sent events. `session`, `node_type` and `interface` are as in `GenerateRequest`.

    `resume` is what an earlier relay of the same request delivered: only what follows is given then.
    """

    path: str
    fields: Mapping[str, msgspec.Raw] | None
    model: str = ""
    kind: Kind = "generate"
    streams: bool = False
    text: str = ""
    max_tokens: int = 0
    session: str = ""
    node_type: str = ""
    interface: str = "http"
    resume: Transcript | None = field(default=None, compare=False)


class RelayReply(Protocol):
    """A node's reply, from its headers on.

    `status` is 200, or from 400 to 499 where the node refused the request for the request's own fault.
    """

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def content_type(self) -> str:
        """As the node gave it."""
        ...

    @property
    def node(self) -> str:
        """The node that answers now; another one after it died."""
        ...

    @property
    def transcript(self) -> Transcript:
        """What was given so far, for a later `resume`."""
        ...

    async def pour(self, take: Take) -> bool:
        """Gives the body to `take` as it comes, and returns True at its end.

        Returns False once `take` has no room for more; the next call goes on from there. `take` is called where the
        bytes come in, and not from the task that waits here: waking a task costs more than all else that is done with
        a token. Once this has returned or was cancelled, nothing is given any more.

        Of a stream each piece is one or more whole server-sent events, each with the empty line that ends it, without
        comments; a stream that ends normally has the dialect's own last event. Raises: `NodeLost`, `EngineFailed`,
        `Diverged`, `TimedOut`, `Overloaded`, after what was given already; what `take` raises.
        """
        ...


class Relays(Protocol):
    """Who passes requests on; `api.Cluster` does."""

    def relay(self, request: RelayRequest) -> AbstractAsyncContextManager[RelayReply]:
        """Entered once a node has answered with headers; leaving it closes the connection, and the slot is free.

        A node that dies before anything was given is replaced without a trace. One that dies in the middle of a stream
        is replaced too: the request runs again from its start on another node, what was delivered is checked and not
        given twice.

        Raises: `NoModel`, `NotFound`, `Overloaded`, `TimedOut`, `NodeLost`, `EngineFailed`, `BadRequest` for a path
        that no node of the model has.
        """
        ...
