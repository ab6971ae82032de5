"""Asks llama.cpp's servers for their own figures, many at once and not for long.

Owns the limits of such a look: it is for a scraper that comes every few seconds, and must neither wait for a node that
hangs nor take more memory than the figures are worth. What the figures are is `node_series`' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress

import aiohttp

from llambo.cluster.launch.base import NodeHandle
from llambo.cluster.node_series import NodeSeries

CONCURRENT = 64
"""Nodes that are asked at the same time."""
NODE_S = 1.0
"""How long one node may take; one that computes answers between two steps."""
ALL_S = 1.5
"""How long all may take together; whoever was not asked by then is left out."""
_MAX_BYTES = 256 * 2**10


async def node_metrics(nodes: Iterable[tuple[str, NodeHandle]]) -> str:
    """The figures of `nodes` (id, handle) in Prometheus's text format, as far as they come in time.

    A server that has none, such as one that was started without them, is left out.
    """
    series = NodeSeries()
    waiting = iter(list(nodes))
    with suppress(TimeoutError):
        async with asyncio.timeout(ALL_S), asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT):
                group.create_task(_ask_each(waiting, series))
    return series.text()


async def _ask_each(waiting: Iterator[tuple[str, NodeHandle]], series: NodeSeries) -> None:
    """Takes nodes from what all askers share until there are no more."""
    for node, handle in waiting:
        with suppress(aiohttp.ClientError, OSError, UnicodeError, ValueError):  # TimeoutError is an OSError
            async with asyncio.timeout(NODE_S):
                series.add(node, (await _fetch(handle)).decode(errors="replace"))


async def _fetch(handle: NodeHandle) -> bytes:
    """What a node's server has at /metrics; nothing of a reply that is none or too large."""
    path = handle.socket_path
    connector = aiohttp.UnixConnector(path, force_close=True) if path else aiohttp.TCPConnector(force_close=True)
    headers = {"Authorization": f"Bearer {handle.api_key}"} if handle.api_key else {}
    base = "http://node" if path else handle.address
    async with (
        aiohttp.ClientSession(
            connector=connector, headers=headers, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as session,
        session.get(f"{base}/metrics", allow_redirects=False) as response,
    ):
        body = bytearray()
        while response.status == 200 and (piece := await response.content.readany()):
            body += piece
            if len(body) > _MAX_BYTES:
                return b""
        return bytes(body)
