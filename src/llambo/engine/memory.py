"""Whether a model fits: what it will need, what is free, and the sentence that says why not.

Owns the estimate and the reading of limits (the machine's and the control group's). Knows nothing of
processes or of what is loaded already: weights are memory-mapped and shared between nodes, but every page of
them must find room.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from llambo.core.errors import NoMemory
from llambo.engine.gguf import ModelFile
from llambo.engine.policy import Shape

KV_ELEMENT_BYTES = 2  # the KV cache is F16
CTX_GRANULE = 256  # llama.cpp rounds a context up to this many tokens
BATCH_TOKENS = 512  # llama.cpp's n_ubatch: what one pass computes at once
SMALL_BATCH_TOKENS = 128
SMALL_MODEL_BYTES = 32 * 2**20  # of weights; many nodes of such a model are usual
ACTIVATIONS = 4  # vectors alive at once, with some room
PROCESS_BYTES = 6 * 2**20  # a node with nothing loaded: the interpreter, its page tables, stacks
VOCABULARY_ENTRY_BYTES = 400  # a token's text, its places in the look-up tables, and its merge
PROMPT_CACHE_CONTEXTS = 4
PROMPT_CACHE_MAX_BYTES = 256 * 2**20

_SHARED_AS_THEY_ARE = ("F32", "F16", "BF16")
_REARRANGED_ON_X86 = ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What one node needs, in bytes. `copied_bytes` of the weights are its own; it shares the rest with others."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    copied_bytes: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes

    @property
    def shared_bytes(self) -> int:
        """What all nodes of one file need together, once."""
        return self.weights_bytes - self.copied_bytes

    @property
    def private_bytes(self) -> int:
        """What every further node of the same file adds."""
        return self.total - self.shared_bytes

    @property
    def prompt_cache_bytes(self) -> int:
        """What a node may use on top for the states of idle conversations: a few times its context, at most 256 MiB.

        Proportional, since a fixed size that suits one large node is many times what a thousand tiny ones have.
        """
        return min(PROMPT_CACHE_MAX_BYTES, PROMPT_CACHE_CONTEXTS * self.kv_bytes)


def needed(model: ModelFile, *, ctx: int, slots: int, embedding: bool = False) -> MemoryNeed:
    """Estimates a node's memory; `ctx` is tokens per slot (0: what the model was trained for).

    Weights and KV cache are exact for full attention and an upper bound for sliding windows. The compute buffers are
    estimated from what llama.cpp reserves for one batch with flash attention: F32 activations (measured: 3.0 vectors
    of the model's width and 3.3 of the feed-forward layer's for each token), the F16 attention mask, and one row of
    logits per slot; then come the vocabulary (measured: 280 bytes an entry without merges) and the process itself
    (measured: 4 MiB, and 1 that the kernel keeps for it).
    """
    tokens = _padded(ctx or model.ctx_train)
    per_token = sum(model.n_head_kv) * (model.key_length + model.value_length) * KV_ELEMENT_BYTES
    is_small = Shape.of(ctx=tokens, slots=slots, threads=0).is_small
    batch = min(batch_tokens(model, ctx=tokens, is_small=is_small, embedding=embedding), tokens * slots)
    activations = batch * 4 * ACTIVATIONS * (model.n_embd + model.n_ff)
    compute = activations + batch * 2 * tokens + slots * 4 * model.n_vocab
    compute += PROCESS_BYTES + VOCABULARY_ENTRY_BYTES * model.n_vocab
    copied = model.tensor_bytes if _is_rearranged(model.quant) else 0
    return MemoryNeed(model.tensor_bytes, per_token * tokens * slots, compute, copied)


def batch_tokens(model: ModelFile, *, ctx: int, is_small: bool, embedding: bool = False) -> int:
    """How many tokens a node should compute in one pass.

    Fewer for a small model in a node that `is_small`, one of many: its buffers would outweigh both. An embedding takes
    its whole text at once: as many as the context of a slot, `ctx`.
    """
    if embedding:
        return max(BATCH_TOKENS, ctx)
    return SMALL_BATCH_TOKENS if is_small and model.tensor_bytes < SMALL_MODEL_BYTES else BATCH_TOKENS


def _is_rearranged(quant: str) -> bool:
    """Whether llama.cpp copies weights of that kind into an order that suits the processor.

    Measured on x86-64 for Q4_0 (four fifths of the file) and Q8_0 (nothing); other processors rearrange others.
    """
    if platform.machine() in {"x86_64", "AMD64"}:
        return quant.startswith(_REARRANGED_ON_X86)
    return quant not in _SHARED_AS_THEY_ARE


def _padded(ctx: int) -> int:
    return -(-ctx // CTX_GRANULE) * CTX_GRANULE


def available_bytes(*, membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that a new process could have, in bytes: free and reclaimable, within the control group's
    limits.

    The arguments are where Linux tells the group of this process and its limits (cgroups(7)).
    """
    import psutil  # noqa: PLC0415 - 20 ms that only a load should cost

    free: int = psutil.virtual_memory().available
    return max(0, min([free, *_group_rooms(membership, mount)]))


def _group_rooms(membership: Path, mount: Path) -> list[int]:
    """What each control group that this process is in, and each one above it, has left."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []  # not Linux
    rooms: list[int] = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            rooms += _rooms_above(mount, group, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _rooms_above(mount / "memory", group, names)
    return rooms


def _rooms_above(root: Path, group: str, names: tuple[str, str, str]) -> list[int]:
    # Inside a container the group's path may be the host's, of which only the root is mounted here.
    inner = root / group.lstrip("/")
    groups = [directory for directory in (inner, *inner.parents) if directory.is_relative_to(root)]
    return [room for group_dir in groups if (room := _room(group_dir, *names)) is not None]


def _room(directory: Path, limit_name: str, usage_name: str, reclaimable: str) -> int | None:
    try:
        limit = int((directory / limit_name).read_text())
        usage = int((directory / usage_name).read_text())
        statistics = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such controller, or "max"
        return None
    # Page cache counts as usage, and goes when somebody needs the room.
    return limit - usage + int(statistics.get(reclaimable, 0))


def check_fits(model: ModelFile, *, ctx: int, slots: int, available: int | None = None) -> MemoryNeed:
    """Refuses a model that would not fit; `available` in bytes (None: what is free now).

    Raises: `NoMemory` with what is needed, for what, what is free, and what would help.
    """
    need = needed(model, ctx=ctx, slots=slots)
    free = available_bytes() if available is None else available
    if need.total <= free:
        return need
    tokens = ctx or model.ctx_train
    raise NoMemory(
        f"{model.path.name} needs {_size(need.total)} of memory and {_size(free)} are free:"
        f" weights {_size(need.weights_bytes)}, KV cache {_size(need.kv_bytes)}"
        f" ({slots} {'slot' if slots == 1 else 'slots'} of {tokens:,} tokens),"
        f" buffers {_size(need.compute_bytes)}; {_advice(model, free, slots)}"
    )


def _advice(model: ModelFile, free: int, slots: int) -> str:
    if needed(model, ctx=CTX_GRANULE, slots=1).total > free:
        return f"not even the smallest context fits: take a smaller model or quantisation than {model.quant}"
    fewer = " or fewer slots" if slots > 1 else ""
    return f"a smaller context{fewer} would help, and so would a smaller quantisation than {model.quant}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
