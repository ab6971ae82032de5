"""A door on the far side of a bridge gives what the door behind it gives."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from bridge_fakes import Running

from llambo.bridge.async_client import AsyncBridge
from llambo.bridge.remote import BridgeDoor
from llambo.cluster.door import Door
from llambo.core.errors import BadModel, NodeLost, NoModel
from llambo.core.types import Done, GenerateRequest, LoadOptions, Message, Sampling, TokenEvent

REQUESTS = [
    GenerateRequest.from_prompt("hello big world"),
    GenerateRequest(raw_prompt="raw words", sampling=Sampling(5, 0.5, 0.9, 3), model="fake", logprobs=True),
    GenerateRequest(messages=(Message("system", "s"), Message("user", "a"), Message("assistant", "b"))),
]


@pytest.mark.parametrize("request_", REQUESTS)
async def test_events_and_requests_are_the_same_on_both_sides(bridge: Running, request_: GenerateRequest) -> None:
    near = [event async for event in bridge.door.generate(request_)]
    async with AsyncBridge.connect(str(bridge.path)) as client:
        door: Door = BridgeDoor(client)
        far = [event async for event in door.generate(request_)]
    assert far == near
    assert bridge.door.requests == [request_, request_]
    assert isinstance(far[0], TokenEvent)
    assert isinstance(far[-1], Done)


async def test_closing_an_answer_frees_its_slot(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        async with aclosing(BridgeDoor(client).generate(GenerateRequest.from_prompt("endless"))) as events:
            await anext(events)
        await bridge.door.until_active(0)


async def test_everything_else_passes_through(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        door = BridgeDoor(client)
        assert door.status().models == ()
        assert await door.refresh() == bridge.door.status()
        loaded = await door.load("/m/x.gguf", name="second", options=LoadOptions(ctx=64))
        assert loaded == bridge.door.models["second"]
        assert door.status() == bridge.door.status()
        assert await door.tokenize("ab") == [97, 98]
        assert await door.embed("ab") == [0.6, 0.8]
        with pytest.raises(BadModel):
            await door.load("/m/bad.gguf")
        with pytest.raises(NodeLost):
            async for _ in door.generate(GenerateRequest.from_prompt("fail")):
                pass
        await door.free("second")
        await door.free()
        assert door.status().models == ()
        with pytest.raises(NoModel):
            await door.free()
