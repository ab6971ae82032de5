"""What a request leaves in memory: nothing that only a search for cycles would find.

Such searches stop the event loop, and so every token that is on its way, the longer the more there is to search.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways import Served, serving

from llambo.cluster.api import Cluster
from llambo.core.types import LoadOptions

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


@pytest.fixture
async def served(walk_model: Path) -> AsyncIterator[Served]:
    async with Cluster() as cluster:
        await cluster.load(str(walk_model), options=LoadOptions(ctx=256, slots=1, threads=1))
        async with serving(cluster) as served:
            yield served


@pytest.fixture
def garbage() -> Iterator[list[Any]]:
    """Gets what the collector finds, in place of freeing it; by itself it does not look."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("streams", [True, False])
async def test_a_request_leaves_none_of_ours(served: Served, garbage: list[Any], streams: bool) -> None:
    for _ in range(3):
        reply = await served.client.post("/v1/chat/completions", json=BODY | {"stream": streams})
        assert reply.status_code == 200
        assert reply.content.endswith(b"data: [DONE]\n\n") == streams
    gc.collect()
    ours = Counter(type(found).__qualname__ for found in garbage if type(found).__module__.startswith("llambo."))
    assert not ours


async def test_a_look_leaves_none_of_ours(served: Served, garbage: list[Any]) -> None:
    for path in ("/health", "/v1/models", "/metrics"):
        assert (await served.client.get(path)).status_code == 200
    gc.collect()
    ours = Counter(type(found).__qualname__ for found in garbage if type(found).__module__.startswith("llambo."))
    assert not ours
