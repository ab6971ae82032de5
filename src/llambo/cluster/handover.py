"""Hands the warm conversations of a draining node to another: slot states, by files, from engine to engine.

Both nodes run the same model with the same options. A slot that cannot be moved is left: its conversation is prefilled
again where it goes on. Which node is drained and which one takes over is the orchestrator's decision.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from llambo.cluster.launch.base import SLOT_FILES, NodeHandle
from llambo.cluster.upstream import SlotState, Upstream
from llambo.core.errors import LlamboError

log = logging.getLogger("llambo.cluster")

LIMIT_S = 60.0
"""A drain does not wait longer than this for its conversations: what is not moved by then is prefilled again."""


class Place(Protocol):
    """A live node, as the runtime has it."""

    @property
    def handle(self) -> NodeHandle:
        """What the launcher said of it."""
        ...

    @property
    def upstream(self) -> Upstream:
        """The way to it."""
        ...


async def move(source: Place, target: Place, slot_dir: Callable[[str], Path | None]) -> int:
    """Moves what idle slots of `source` hold into idle slots of `target`, the longest first; returns how many.

    `slot_dir` gives the directory of a node's slot files, by the launcher's name for it.
    """
    dirs = slot_dir(source.handle.name), slot_dir(target.handle.name)
    if dirs[0] is None or dirs[1] is None or SLOT_FILES not in source.handle.features & target.handle.features:
        return 0
    moved = 0
    try:
        async with asyncio.timeout(LIMIT_S):
            pairs = _pair(await source.upstream.slots(), await target.upstream.slots())
            for origin, goal in pairs:
                await _move_slot(source, target, (origin.id, goal.id), (dirs[0], dirs[1]))
                moved += 1
    except (LlamboError, OSError, TimeoutError) as error:
        log.info(
            "after %d slots, %s hands no more on: %s", moved, source.handle.name, str(error) or "it takes too long"
        )
    return moved


def _pair(sources: list[SlotState], targets: list[SlotState]) -> list[tuple[SlotState, SlotState]]:
    """The fullest idle slots of one engine with the emptiest idle slots of the other, where that is a gain."""
    full = sorted((slot for slot in sources if not slot.is_busy and slot.tokens), key=lambda slot: -slot.tokens)
    free = sorted((slot for slot in targets if not slot.is_busy), key=lambda slot: slot.tokens)
    return [(origin, goal) for origin, goal in zip(full, free, strict=False) if origin.tokens > goal.tokens]


async def _move_slot(source: Place, target: Place, slots: tuple[int, int], dirs: tuple[Path, Path]) -> None:
    name = f"{source.handle.name}-{slots[0]}.slot"
    goal = dirs[1] / name
    try:
        await source.upstream.save_slot(slots[0], name)
        await asyncio.to_thread((dirs[0] / name).rename, goal)
        await target.upstream.restore_slot(slots[1], name)
    finally:
        goal.unlink(missing_ok=True)
