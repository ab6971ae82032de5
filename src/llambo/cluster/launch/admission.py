"""How many more nodes this machine's memory allows: what is free, less what was promised to nodes.

Owns the account of one launcher's nodes, from the wish to the exit, and remembers the headers of model files. The
estimate itself is `engine.memory`'s, and what to do with the answer is the caller's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llambo.cluster.launch.base import NodeRequest
from llambo.core.errors import BadModel
from llambo.engine import gguf, memory
from llambo.engine.gguf import ModelFile
from llambo.engine.memory import MemoryNeed
from llambo.engine.policy import Shape

_HEADERS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """What a node will use: `need` in bytes, `batch` tokens in one pass, the model by its resolved `path`.

    `ctx` is the tokens that each slot really has.
    """

    path: Path
    need: MemoryNeed
    batch: int
    has_template: bool
    ctx: int


@dataclass(slots=True)
class _Claim:
    plan: Plan
    is_loading: bool = True


class Admission:
    """The account. `available` gives the bytes that a new process could have now."""

    def __init__(self, available: Callable[[], int] = memory.available_bytes) -> None:
        self._available = available
        self._claims: dict[str, _Claim] = {}
        self._headers: dict[Path, tuple[tuple[int, int], ModelFile]] = {}

    async def plan(self, request: NodeRequest) -> Plan | None:
        """What such a node will use; None where the model's header does not tell."""
        try:
            model = await asyncio.to_thread(self._read, request.model_path)
        except (BadModel, OSError, ValueError):
            return None  # llama.cpp will say why when it is asked to load it
        ctx, slots = request.options.ctx, request.options.slots
        pools = request.embedding or request.reranking
        need = memory.needed(model, ctx=ctx, slots=slots, embedding=pools)
        real = engine_ctx(ctx, model.ctx_train)
        is_small = Shape.of(ctx=real, slots=slots, threads=0).is_small
        batch = memory.batch_tokens(model, ctx=real, is_small=is_small, embedding=pools)
        return Plan(model.path, need, batch, model.has_chat_template, real)

    async def room_for(self, request: NodeRequest) -> int | None:
        """How many more such nodes there is memory for; None where the model's header does not tell."""
        plan = await self.plan(request)
        if plan is None:
            return None
        free = await asyncio.to_thread(self._available) - self._promised_bytes()
        if all(claim.plan.path != plan.path for claim in self._claims.values()):
            free -= plan.need.shared_bytes
        return max(0, free // (plan.need.private_bytes + plan.need.prompt_cache_bytes))

    def claim(self, name: str, plan: Plan) -> None:
        """Notes that a node is wanted: until it has settled, nothing of what it needs is seen as used."""
        self._claims[name] = _Claim(plan)

    def settle(self, name: str) -> None:
        """Notes that a node has loaded: what it has touched is no longer free."""
        if claim := self._claims.get(name):
            claim.is_loading = False

    def release(self, name: str) -> None:
        """Notes that a node is gone, or will not be; an unknown name is no error."""
        self._claims.pop(name, None)

    def _promised_bytes(self) -> int:
        """What nodes will have and the system still counts as free.

        Mapped weights stay in that count for as long as they live, since the kernel could drop their pages.
        """
        mapped = {claim.plan.path: claim.plan.need.shared_bytes for claim in self._claims.values()}
        private = sum(claim.plan.need.private_bytes for claim in self._claims.values() if claim.is_loading)
        caches = sum(claim.plan.need.prompt_cache_bytes for claim in self._claims.values())
        return sum(mapped.values()) + private + caches

    def _read(self, model_path: str) -> ModelFile:
        path = Path(model_path).resolve()
        facts = path.stat()
        stamp = (facts.st_mtime_ns, facts.st_size)
        known = self._headers.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        model = gguf.read(path)
        if len(self._headers) >= _HEADERS_KEPT:
            self._headers.clear()
        self._headers[path] = (stamp, model)
        return model


def engine_ctx(ctx: int, ctx_train: int) -> int:
    """What llama.cpp makes of `ctx` tokens per slot (0: what the model was trained for), whatever the slots' number.

    It rounds what the slots have together up, then each one's share, and gives a slot no more than the model was
    trained for. The two roundings are one: a share lies between `ctx` and the next multiple.
    """
    tokens = padded(ctx or ctx_train)
    return min(tokens, ctx_train) if ctx_train else tokens


def padded(ctx: int) -> int:
    """`ctx` rounded up as llama.cpp does it."""
    return -(-ctx // memory.CTX_GRANULE) * memory.CTX_GRANULE
