"""Attaching servers that run already: what is found out about them, and what is said where there is none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llambo.cluster.launch.attach import OPENAI_SLOTS, AttachLauncher, parse_url
from llambo.cluster.launch.base import EMBEDDING, GENERATE, SLOT_FILES, TEMPLATE, TOKEN_IDS, UNIX, NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.core.errors import BadRequest, LlamboError, Refused, TimedOut, Unreachable
from llambo.core.types import LoadOptions
from tests.cluster.llama_server import llama_server


@pytest.fixture
async def launcher() -> AsyncIterator[AttachLauncher]:
    launcher = AttachLauncher()
    yield launcher
    await launcher.close()


Replies = dict[str, tuple[int, object]]


@asynccontextmanager
async def server(replies: Replies, *, default: int = 404) -> AsyncIterator[tuple[str, list[str]]]:
    """A small HTTP server with fixed replies by path; its URL, and the first lines and headers of what it was asked."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head)
        status, value = replies.get(head.split(" ")[1], (default, {"error": {"message": "no"}}))
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", asked


MODELS = (200, {"data": [{"id": "org/model", "max_model_len": 4096}]})
CHAT = (200, {"choices": [{"message": {"content": "x"}}]})


async def test_a_llama_server_is_known_for_what_it_can_do(launcher: AttachLauncher, walk_model: Path) -> None:
    async with llama_server(walk_model, ctx=512, slots=3) as running:
        node = await launcher.spawn(NodeRequest("a1.1", url=f"{running.url}/v1/"), timeout_s=10)
    assert (node.name, node.pid, node.address, node.machine) == ("a1.1", 0, running.url, "127.0.0.1")
    assert (node.slots, node.ctx, node.model) == (3, 512, "walk")
    assert node.features == {GENERATE, TOKEN_IDS, TEMPLATE}


async def test_slot_files_and_embeddings_are_claimed_where_the_server_has_them(
    launcher: AttachLauncher, walk_model: Path, tmp_path: Path
) -> None:
    async with llama_server(walk_model, embedding=True, slot_dir=tmp_path) as running:
        node = await launcher.spawn(NodeRequest("a1.1", url=running.url), timeout_s=10)
    assert {SLOT_FILES, EMBEDDING} <= node.features
    assert not list(tmp_path.glob("*")), "finding out writes nothing"


async def test_a_server_on_a_unix_socket_is_attached_by_its_path(
    launcher: AttachLauncher, walk_model: Path, tmp_path: Path
) -> None:
    local = LocalLauncher(tmp_path / "run")
    options = LoadOptions(ctx=256, slots=2, threads=1)
    ours = await local.spawn(NodeRequest("n1", str(walk_model), options), timeout_s=30)
    node = await launcher.spawn(NodeRequest("a1.1", url=f"{UNIX}{ours.socket_path}"), timeout_s=10)
    assert (node.address, node.machine, node.slots) == (ours.address, ours.machine, 2)
    assert {GENERATE, TOKEN_IDS, TEMPLATE} <= node.features
    await local.close()


async def test_a_server_with_the_openai_api_alone_has_the_slots_that_it_is_given(launcher: AttachLauncher) -> None:
    async with server({"/v1/models": MODELS, "/v1/chat/completions": CHAT}) as (url, _):
        node = await launcher.spawn(NodeRequest("a1.1", url=url), timeout_s=10)
        more = await launcher.spawn(NodeRequest("a2.1", url=url, options=LoadOptions(slots=9)), timeout_s=10)
    assert node.features == {GENERATE}
    assert (node.slots, node.ctx, node.model) == (OPENAI_SLOTS, 4096, "org/model")
    assert more.slots == 9


async def test_a_server_with_several_models_goes_on_serving_the_one_that_the_node_is_for(
    launcher: AttachLauncher,
) -> None:
    models = (200, {"data": [{"id": "newest"}, {"id": "org/model"}]})
    async with server({"/v1/models": models, "/v1/chat/completions": CHAT}) as (url, _):
        new = await launcher.spawn(NodeRequest("a1.1", url=url), timeout_s=10)
        kept = await launcher.spawn(NodeRequest("a2.2", url=url, model="org/model"), timeout_s=10)
        gone = await launcher.spawn(NodeRequest("a3.2", url=url, model="no longer there"), timeout_s=10)
    assert [node.model for node in (new, kept, gone)] == ["newest", "org/model", "newest"]


async def test_a_path_before_v1_is_kept(launcher: AttachLauncher) -> None:
    async with server({"/api/v1/models": MODELS, "/api/v1/chat/completions": CHAT}) as (url, _):
        node = await launcher.spawn(NodeRequest("a1.1", url=f"{url}/api/v1"), timeout_s=10)
    assert node.address == f"{url}/api"


async def test_the_key_is_a_header_of_every_request_and_in_no_text(
    launcher: AttachLauncher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    async with server({"/v1/models": MODELS, "/v1/chat/completions": CHAT}) as (url, asked):
        request = NodeRequest("a1.1", url=url, api_key="open-sesame")
        node = await launcher.spawn(request, timeout_s=10)
    assert all("Authorization: Bearer open-sesame\r\n" in head for head in asked)
    assert len(asked) > 2
    assert node.api_key == "open-sesame"
    assert "open-sesame" not in f"{node!r}{request!r}{launcher!r}{caplog.text}"


async def test_a_key_that_is_missing_or_wrong_is_refused(launcher: AttachLauncher, walk_model: Path) -> None:
    async with llama_server(walk_model, key="open-sesame") as running:
        with pytest.raises(Refused, match="wants an API key"):
            await launcher.spawn(NodeRequest("a1.1", url=running.url), timeout_s=10)
        with pytest.raises(Refused, match="refuses the API key") as caught:
            await launcher.spawn(NodeRequest("a1.1", url=running.url, api_key="wrong-word"), timeout_s=10)
        assert "wrong-word" not in repr(caught.value)
        node = await launcher.spawn(NodeRequest("a1.1", url=running.url, api_key="open-sesame"), timeout_s=10)
    assert TOKEN_IDS in node.features


async def test_a_server_that_loads_its_model_is_waited_for(launcher: AttachLauncher) -> None:
    loading: Replies = {"/props": (503, {"error": {"message": "Loading model", "type": "unavailable_error"}})}
    ready: Replies = {
        "/props": (200, {"total_slots": 1, "model_alias": "it"}),
        "/completion": (200, {"content": "x", "tokens": [1]}),
    }
    async with server(loading) as (url, asked):
        spawn = asyncio.ensure_future(launcher.spawn(NodeRequest("a1.1", url=url), timeout_s=10))
        while not asked:
            await asyncio.sleep(0)
        loading.update(ready)
        node = await spawn
    assert (node.model, node.slots, node.ctx, node.features) == ("it", 1, 0, frozenset({GENERATE}))


async def test_a_server_that_loads_for_too_long_or_hangs_is_too_late(
    launcher: AttachLauncher, walk_model: Path
) -> None:
    async with server({"/props": (503, {})}) as (url, _):
        with pytest.raises(TimedOut, match=r"within 0\.6 s"):
            await launcher.spawn(NodeRequest("a1.1", url=url), timeout_s=0.6)
    async with llama_server(walk_model) as running:
        os.kill(running.pid, signal.SIGSTOP)
        with pytest.raises(TimedOut, match=r"within 0\.3 s"):
            await launcher.spawn(NodeRequest("a1.1", url=running.url), timeout_s=0.3)


@pytest.mark.parametrize(
    ("replies", "default", "error", "words"),
    [
        ({}, 404, Unreachable, "HTTP status 404"),
        ({}, 500, Unreachable, "HTTP status 500"),
        ({}, 301, Unreachable, "HTTP status 301"),
        ({}, 403, Refused, "HTTP status 403"),
        ({}, 200, Unreachable, "no list of models"),
        ({"/v1/models": (200, b"<html>")}, 404, Unreachable, "no list of models"),
        ({"/v1/models": (200, {"data": []})}, 404, Unreachable, "no model at present"),
        ({"/v1/models": MODELS}, 500, Unreachable, "neither answers nor embeddings"),
        ({"/v1/models": MODELS}, 401, Refused, "HTTP status 401"),
        ({"/v1/models": (200, b'{"data":[{"id":"\xff"}]}')}, 404, Unreachable, "no list of models"),
        ({"/v1/models": (200, b"[" * 100_000), "/props": (200, b"[" * 100_000)}, 404, Unreachable, "no list of models"),
        ({"/props": (200, {"total_slots": -1})}, 404, Unreachable, "HTTP status 404"),
        ({"/props": (200, {"total_slots": 2})}, 500, Unreachable, "neither answers nor embeddings"),
        ({"/props": (200, {"total_slots": 2}), "/completion": (200, b"x")}, 500, Unreachable, "as no LLM server"),
        ({"/props": (200, {"total_slots": 2}), "/tokenize": (200, b"x")}, 500, Unreachable, "as no LLM server"),
    ],
)
async def test_what_is_no_llm_server_is_said_in_one_sentence(
    launcher: AttachLauncher, replies: Replies, default: int, error: type[LlamboError], words: str
) -> None:
    async with server(replies, default=default) as (url, _):
        with pytest.raises(error, match=words) as caught:
            await launcher.spawn(NodeRequest("a1.1", url=url), timeout_s=10)
        assert url in caught.value.message
        assert "\n" not in caught.value.message


async def test_what_is_no_http_server_is_said_in_one_sentence(launcher: AttachLauncher) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        with pytest.raises(Unreachable, match="cannot be attached") as caught:
            await launcher.spawn(NodeRequest("a1.1", url=url), timeout_s=10)
    assert "\n" not in caught.value.message
    with pytest.raises(Unreachable, match="Connection refused"):
        await launcher.spawn(NodeRequest("a1.1", url=url), timeout_s=10)
    with pytest.raises(Unreachable, match="No such file"):
        await launcher.spawn(NodeRequest("a1.1", url="unix:///no/such/socket"), timeout_s=10)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://host",
        "http://",
        "http://host:99999",
        "http://host:x",
        "http://[::1",
        "http://a..b",
        "http://.",
        "http://é..x",
        f"http://{'a' * 70}.com",
        "http://ho st",
        "http://host/\n",
        "http://host?key=secret",
        "http://host#here",
        "http://user:secret@host",
        "http://user:secret@host:99999",
        "unix://relative/path",
        "unix:///",
    ],
)
async def test_a_url_that_cannot_be_is_refused_with_the_forms_that_can(launcher: AttachLauncher, url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await launcher.spawn(NodeRequest("a1.1", url=url), timeout_s=10)
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("key", ["two words", "line\r\nX-Evil: 1", "schlüssel"])
async def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(launcher: AttachLauncher, key: str) -> None:
    with pytest.raises(BadRequest, match="API key") as caught:
        await launcher.spawn(NodeRequest("a1.1", url="http://127.0.0.1:1", api_key=key), timeout_s=10)
    assert key not in caught.value.message


def test_urls_lose_v1_and_slashes_and_keep_the_rest() -> None:
    assert parse_url("http://host:8080") == ("http://host:8080", "host")
    assert parse_url("https://host/v1/") == ("https://host", "host")
    assert parse_url("http://[::1]:8080/v1") == ("http://[::1]:8080", "::1")
    assert parse_url("http://host/openai/v1") == ("http://host/openai", "host")
    assert parse_url("unix:///run/it.sock")[0] == "unix:///run/it.sock"


async def test_an_attached_server_outlives_its_node(launcher: AttachLauncher, walk_model: Path) -> None:
    async with llama_server(walk_model) as running:
        request = NodeRequest("a1.1", url=running.url)
        await launcher.spawn(request, timeout_s=10)
        await launcher.terminate("a1.1")
        await launcher.close()
        again = await AttachLauncher().spawn(replace(request, name="a2.1"), timeout_s=10)
    assert GENERATE in again.features


async def test_the_watch_of_a_closed_launcher_ends(launcher: AttachLauncher) -> None:
    await launcher.close()
    async with asyncio.timeout(5):
        assert [exited async for exited in launcher.watch()] == []
