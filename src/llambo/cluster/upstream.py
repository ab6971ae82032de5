"""The client of one node, whatever kind of server it is: what may be asked of it, and how such a client is made.

`upstream_llama` speaks with llama.cpp's own server, `upstream_openai` with any server that has the OpenAI API. Neither
knows models, queues or other nodes; what is asked of several nodes in turn is `failover`'s business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from llambo.cluster.failover import Attempt, StreamEnd
from llambo.cluster.launch.base import TEMPLATE, TOKEN_IDS, NodeHandle
from llambo.cluster.mixing import NextToken
from llambo.cluster.upstream_llama import LlamaUpstream, SlotState
from llambo.cluster.upstream_openai import OpenAiUpstream
from llambo.cluster.upstream_relay import NodeReply, RelayCall
from llambo.core.types import GenerateRequest, TokenEvent

__all__ = ["STALL_S", "Attempt", "SlotState", "StreamEnd", "Upstream", "open_upstream"]

STALL_S = 60.0
"""Seconds without a token or a step of the prefill after which a node counts as lost, unless the caller says else."""


class Upstream(Protocol):
    """One node. Every coroutine raises only `LlamboError` and may be cancelled at any await.

    `NodeLost` means that the node does not answer or breaks off, `EngineFailed` that it answers with a fault of its
    own; after both another node may do better. A node without a feature raises `EngineFailed` for what wants it.
    """

    @property
    def node(self) -> str:
        """The node's name."""
        ...

    @property
    def has_ids(self) -> bool:
        """Whether the node takes prompts as token ids and gives ids with the text."""
        ...

    @property
    def ctx(self) -> int:
        """Tokens that a slot holds, as the engine has it; 0 for unknown."""
        ...

    @property
    def probe_kind(self) -> str:
        """What `probe` asks for, "completion" or "chat"; answers to different things cannot be compared."""
        ...

    def stream(self, attempt: Attempt) -> AsyncGenerator[TokenEvent | StreamEnd, None]:
        """Token events as the node makes them, none without text, then one `StreamEnd`.

        An event has the ids of all its tokens, or none where the node does not tell them all; its log-probability is
        the sum of those that the node tells. Closing the generator closes the connection, on which the engine stops
        decoding and frees the slot.

        Raises: `PromptTooLong`, `BadRequest`, `NodeLost` (also after `stall_s` seconds without a token or a step of the
        prefill), `EngineFailed`.
        """
        ...

    def relay(self, call: RelayCall) -> AbstractAsyncContextManager[NodeReply]:
        """Passes a request on in the node's own HTTP; entered with the reply's headers, left without a connection.

        A refusal that is the request's fault is a reply as any other. Raises, now or when it is entered: `NotThere`
        for an endpoint that the node does not have, `NodeLost`, `EngineFailed`, `BadRequest`.
        """
        ...

    async def prompt_text(self, request: GenerateRequest) -> str:
        """The text that a model is given for `request`, by the node's own chat template where it has one.

        Raises: `NodeLost`, `BadRequest`, `EngineFailed`.
        """
        ...

    async def next_token(self, ids: Sequence[int]) -> NextToken:
        """The likeliest tokens after `ids`, as the model has them, whatever the sampling. Waits without a limit.

        Raises: `PromptTooLong`, `NodeLost`, `BadRequest` for an id that the vocabulary has not, `EngineFailed`.
        """
        ...

    async def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The token ids of `text`: special tokens are parsed; those that begin a prompt are added with `add_special`.

        Raises: `NodeLost`, `EngineFailed`.
        """
        ...

    async def embed(self, text: str) -> list[float]:
        """The embedding of `text`, normalised; the node must have been started for embeddings.

        Raises: `PromptTooLong`, `NodeLost`, `EngineFailed`.
        """
        ...

    async def health(self, timeout_s: float) -> None:
        """Returns when the node's server says that it is well. Cheap; it asks the server, not the engine behind it.

        Raises: `NodeLost` when it does not answer in time, is still loading, or says something else.
        """
        ...

    async def probe(self, timeout_s: float) -> str:
        """The text of four greedy tokens after a fixed prompt, computed afresh: what equal nodes must agree on.

        Raises: `NodeLost` when it is not there in time, `EngineFailed`.
        """
        ...

    async def slots(self) -> list[SlotState]:
        """What the engine's slots are doing. Raises: `NodeLost`, `EngineFailed`."""
        ...

    async def save_slot(self, slot: int, filename: str) -> int:
        """Writes a slot's state to a file in the node's own directory for them; returns its tokens.

        Raises: `NodeLost`, `BadRequest` for a file name that is no plain name, `EngineFailed`.
        """
        ...

    async def restore_slot(self, slot: int, filename: str) -> int:
        """Reads what `save_slot` wrote, on a node with the same model and context; returns its tokens.

        Raises: `NodeLost`, `BadRequest` when the file does not exist or does not fit, `EngineFailed`.
        """
        ...

    async def close(self) -> None:
        """Ends what is in flight with `NodeLost`, and so refuses what is new; returns when all is closed."""
        ...


def open_upstream(handle: NodeHandle, *, stall_s: float = STALL_S) -> Upstream:
    """The client for a node; opens nothing yet.

    A node that neither takes token ids nor has a template of its own, and is no process of ours, has only the OpenAI
    API.
    """
    if handle.pid or handle.features & {TOKEN_IDS, TEMPLATE}:
        return LlamaUpstream(handle, stall_s=stall_s)
    return OpenAiUpstream(handle, stall_s=stall_s)
