from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop
from bridge_fakes import Running, bridge_in_thread, running_bridge


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The bridge runs on uvloop, but the loops differ in how they tell a hang-up: both must do."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "b.sock"


@pytest.fixture
async def bridge(path: Path) -> AsyncIterator[Running]:
    async with running_bridge(path) as running:
        yield running


@pytest.fixture
def threaded(path: Path) -> Iterator[Running]:
    with bridge_in_thread(path) as running:
        yield running
