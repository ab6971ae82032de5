"""What every launcher promises, asked of each of them with real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llambo.cluster.launch.base import EMBEDDING, GENERATE, SLOT_FILES, TEMPLATE, TOKEN_IDS, NodeHandle
from llambo.cluster.upstream import Attempt, StreamEnd, Upstream, open_upstream
from llambo.core.errors import BadModel, BadRequest, NameInUse, Refused, TimedOut, Unreachable
from llambo.core.types import GenerateRequest, Sampling, TokenEvent
from tests.conformance.launchers import RIGS, Rig

GREEDY = Sampling(max_tokens=6, temperature=0)


@pytest.fixture(params=RIGS)
async def rig(request: pytest.FixtureRequest, tmp_path: Path, walk_model: Path) -> AsyncIterator[Rig]:
    async with RIGS[request.param](tmp_path, walk_model) as rig:
        yield rig
        await rig.launcher.close()
        assert not rig.left()


@asynccontextmanager
async def opened(handle: NodeHandle) -> AsyncIterator[Upstream]:
    client = open_upstream(handle)
    try:
        yield client
    finally:
        await client.close()


async def answer(upstream: Upstream, attempt: Attempt | None = None) -> tuple[str, list[int]]:
    """The text and the ids."""
    text, is_ended = "", False
    ids: list[int] = []
    async for event in upstream.stream(attempt or Attempt("hello", sampling=GREEDY)):
        if isinstance(event, TokenEvent):
            text += event.text
            ids += event.ids
        else:
            is_ended = isinstance(event, StreamEnd)
    assert is_ended
    return text, ids


async def test_a_spawned_node_is_well_and_answers(rig: Rig) -> None:
    handle = await rig.launcher.spawn(rig.request("n1.1"), timeout_s=30)
    assert (handle.name, handle.slots, handle.ctx, handle.model) == ("n1.1", 2, 256, rig.model)
    assert handle.machine
    async with opened(handle) as upstream:
        await upstream.health(5)
        assert len((await answer(upstream))[1]) == 6
        assert await upstream.probe(20)


async def test_nodes_of_one_model_agree_and_the_end_of_one_is_not_that_of_another(rig: Rig) -> None:
    one, two = await asyncio.gather(
        rig.launcher.spawn(rig.request("n1.1"), timeout_s=30), rig.launcher.spawn(rig.request("n2.1"), timeout_s=30)
    )
    assert (one.name, two.name) == ("n1.1", "n2.1")
    async with opened(one) as first, opened(two) as second:
        assert await answer(first) == await answer(second)
        assert await first.probe(20) == await second.probe(20)
        await rig.launcher.terminate("n1.1")
        await second.health(5)
        assert await answer(second)


async def test_terminate_frees_the_name_is_no_exit_and_may_be_said_twice(rig: Rig) -> None:
    await rig.launcher.spawn(rig.request("n1.1"), timeout_s=30)
    exits = asyncio.ensure_future(anext(aiter(rig.launcher.watch())))
    await asyncio.sleep(0)  # it watches
    await rig.launcher.terminate("n1.1")
    await rig.launcher.terminate("n1.1")
    await rig.launcher.terminate("never heard of")
    assert not rig.left()
    again = await rig.launcher.spawn(rig.request("n1.1"), timeout_s=30)
    async with opened(again) as upstream:
        await upstream.health(5)
    assert not exits.done()
    exits.cancel()


async def test_a_name_is_used_once_at_a_time(rig: Rig) -> None:
    handle = await rig.launcher.spawn(rig.request("n1.1"), timeout_s=30)
    with pytest.raises(NameInUse, match=r"n1\.1"):
        await rig.launcher.spawn(rig.request("n1.1"), timeout_s=30)
    async with opened(handle) as upstream:
        await upstream.health(5)


async def test_what_cannot_be_spawned_is_a_documented_error_and_leaves_nothing(rig: Rig) -> None:
    for request in rig.broken("n1.1"):
        with pytest.raises((BadModel, BadRequest, Unreachable, Refused)) as caught:
            await rig.launcher.spawn(request, timeout_s=30)
        assert caught.value.message
        assert not rig.left()
    await rig.launcher.spawn(rig.request("n1.1"), timeout_s=30)  # and neither was the name taken


async def test_a_node_that_is_not_ready_in_time_is_an_error_and_leaves_nothing(rig: Rig) -> None:
    with pytest.raises(TimedOut):
        await rig.launcher.spawn(rig.request("n1.1"), timeout_s=0.0005)
    assert not rig.left()
    await rig.launcher.spawn(rig.request("n1.1"), timeout_s=30)


async def test_a_spawn_that_is_cancelled_leaves_nothing(rig: Rig) -> None:
    await rig.launcher.spawn(rig.request("n0.1"), timeout_s=30)  # what the launcher needs for itself is there
    await rig.launcher.terminate("n0.1")
    for steps in (0, 1, 3, 10):
        spawn = asyncio.ensure_future(rig.launcher.spawn(rig.request("n1.1"), timeout_s=30))
        for _ in range(steps):
            await asyncio.sleep(0)
        spawn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawn
        assert not rig.left()
    await rig.launcher.spawn(rig.request("n1.1"), timeout_s=30)


async def test_close_leaves_no_task_and_no_descriptor(rig: Rig) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    tasks, before = asyncio.all_tasks(), descriptors()
    for name in ("n1.1", "n2.1"):
        await rig.launcher.spawn(rig.request(name), timeout_s=30)
    await rig.launcher.close()
    assert not rig.left()
    async with asyncio.timeout(5):  # closed transports go in the next turns of the loop
        while asyncio.all_tasks() != tasks or descriptors() != before:
            await asyncio.sleep(0)


async def test_room_is_a_number_or_unknown(rig: Rig) -> None:
    room = await rig.launcher.room_for(rig.request("n1.1"))
    assert room is None or room > 0


@pytest.mark.parametrize("embedding", [False, True])
async def test_every_feature_that_a_node_claims_works(rig: Rig, embedding: bool) -> None:
    handle = await rig.launcher.spawn(rig.request("n1.1", embedding=embedding), timeout_s=30)
    assert handle.features & {GENERATE, EMBEDDING}
    assert (EMBEDDING in handle.features) or not embedding
    async with opened(handle) as upstream:
        assert upstream.has_ids == (TOKEN_IDS in handle.features)
        for feature in handle.features:
            await FEATURES[feature](upstream)


async def generates(upstream: Upstream) -> None:
    assert (await answer(upstream))[0]


async def takes_and_gives_ids(upstream: Upstream) -> None:
    prompt = tuple(await upstream.tokenize("hello", add_special=True))
    text, ids = await answer(upstream)
    going_on = Attempt((*prompt, *ids[:2]), sampling=Sampling(max_tokens=4, temperature=0))
    rest, rest_ids = await answer(upstream, going_on)
    assert ids[2:] == rest_ids
    assert text.endswith(rest)


async def applies_its_template(upstream: Upstream) -> None:
    text = await upstream.prompt_text(GenerateRequest.from_prompt("hello", system="be kind"))
    assert text.index("be kind") < text.index("hello")
    assert text != "be kind\n\nhello"


async def keeps_slot_files(upstream: Upstream) -> None:
    await answer(upstream)
    used = max(await upstream.slots(), key=lambda slot: slot.tokens)
    saved = await upstream.save_slot(used.id, "it.bin")
    assert saved > 0
    assert await upstream.restore_slot(used.id, "it.bin") == saved


async def embeds(upstream: Upstream) -> None:
    assert sum(x * x for x in await upstream.embed("hello")) == pytest.approx(1.0, abs=1e-3)


FEATURES = {
    GENERATE: generates,
    TOKEN_IDS: takes_and_gives_ids,
    TEMPLATE: applies_its_template,
    SLOT_FILES: keeps_slot_files,
    EMBEDDING: embeds,
}
