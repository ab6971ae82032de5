"""How long nothing has come of an answer is told, and taken back when something does."""

from __future__ import annotations

import asyncio

import pytest

from llambo.limbot import silence
from llambo.limbot.silence import Silence


async def test_a_long_silence_is_told_until_something_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "QUIET_S", 0.5)
    said: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.timeout(20), Silence(said.put_nowait, "thinking") as quiet:
        assert await said.get() == "thinking"
        assert (await said.get()).startswith("nothing has come for ")
        while not said.empty():
            said.get_nowait()
        monkeypatch.setattr(silence, "QUIET_S", 1000.0)
        quiet.heard()
        assert await said.get() == "thinking"
    while not said.empty():
        said.get_nowait()
    await asyncio.sleep(0)
    assert said.empty(), "it is over with the block"
