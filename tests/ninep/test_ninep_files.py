"""The ready-made nodes by themselves, and the texts of errors."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.core import errors as core
from llambo.ninep.errors import FileError, error_from_text, rerror_text
from llambo.ninep.files import CloneFile, LiveDirectory, StaticDirectory, TextFile, cut_text
from llambo.ninep.messages import OREAD
from llambo.ninep.streams import StreamHandle
from llambo.ninep.tree import Handle, Node, Result


@given(st.text(max_size=60), st.integers(1, 12), st.booleans())
def test_a_text_read_in_pieces_is_the_text_in_whole_characters(text: str, count: int, view: bool) -> None:
    raw = text.encode()
    at = 0
    while at < len(raw):
        piece = bytes(
            cut_text(memoryview(raw)[at : at + count] if view else raw[at : at + count], at + count >= len(raw))
        )
        assert piece
        if count >= 4:
            piece.decode()
        at += len(piece)


@given(st.binary(min_size=1, max_size=30))
def test_what_is_no_text_is_read_without_end_or_loss(raw: bytes) -> None:
    piece = cut_text(raw, False)
    assert piece
    assert raw.startswith(piece)
    assert len(raw) - len(piece) < 4


async def test_reads_of_a_stream_are_served_in_their_order() -> None:
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    handle = StreamHandle(pieces.get)
    reads = [asyncio.ensure_future(_await(handle.read(0, 10))) for _ in range(3)]
    await asyncio.sleep(0)
    for piece in (b"one", b"two", b""):
        pieces.put_nowait(piece)
    assert await asyncio.gather(*reads) == [b"one", b"two", b""]
    assert await _await(handle.read(0, 10)) == b""


async def test_a_cancelled_read_of_a_queue_loses_nothing() -> None:
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    handle = StreamHandle(pieces.get)
    read = asyncio.ensure_future(_await(handle.read(0, 10)))
    await asyncio.sleep(0)
    read.cancel()
    await asyncio.wait([read])
    pieces.put_nowait(b"one")
    assert await _await(handle.read(0, 10)) == b"one"


async def _await(result: Result[object]) -> object:
    return await result if hasattr(result, "__await__") else result


def test_a_live_directory_keeps_a_node_as_long_as_its_value_is_there() -> None:
    things: dict[str, object] = {"a": object(), "b": object()}
    directory = LiveDirectory("things", lambda: things, lambda name: TextFile(name, lambda: name))
    first = directory.lookup("a")
    assert directory.lookup("a") is first
    assert [node.name for node in directory.entries()] == ["a", "b"]
    things["a"] = object()
    assert directory.lookup("a").qid.path != first.qid.path
    del things["a"]
    with pytest.raises(core.NotFound):
        directory.lookup("a")


def test_a_directory_changes_its_version_with_its_content() -> None:
    directory = StaticDirectory("d")
    before = directory.qid
    directory.add(TextFile("x", lambda: ""))
    directory.discard("nothing")
    assert directory.qid.version == before.version + 1
    assert directory.qid.path == before.path


async def test_a_clone_whose_file_cannot_be_opened_is_ended() -> None:
    ended: list[Node] = []
    clone = CloneFile("clone", lambda: Node("sealed", 0), ended.append)
    with pytest.raises(core.Refused):
        await clone.open(OREAD)
    assert [node.name for node in ended] == ["sealed"]


def test_a_handle_refuses_what_it_does_not_define() -> None:
    with pytest.raises(core.Refused):
        Handle().read(0, 1)
    with pytest.raises(core.Refused):
        Handle().write(0, b"x")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (core.NotFound(), "file does not exist"),
        (core.NotFound("file does not exist"), "file does not exist"),
        (core.NotFound("no node 9"), "file does not exist: no node 9"),
        (core.Refused(), "permission denied"),
        (core.NameInUse("x"), "file in use: x"),
        (core.BadRequest("x"), "invalid argument: x"),
        (core.PromptTooLong("x"), "invalid argument: x"),
        (core.NoMemory("x"), "no memory: x"),
        (core.TimedOut("x"), "timed out: x"),
        (core.NoQuorum("no quorum: 2 of 5 nodes agree"), "no quorum: 2 of 5 nodes agree"),
        (FileError("anything"), "anything"),
    ],
)
def test_errors_have_texts_that_clients_know(error: core.LlamboError, text: str) -> None:
    assert rerror_text(error) == text


@pytest.mark.parametrize("code", sorted({*core._BY_CODE} - {"failed"}))
def test_an_error_comes_back_with_its_exit_status_and_sentence(code: str) -> None:
    error = core.from_code(code, "no quorum: 2 of 5 agree" if code == "no_quorum" else "a sentence: with a colon")
    back = error_from_text(rerror_text(error))
    assert (back.exit_status, back.message) == (error.exit_status, error.message)
    assert isinstance(error, core.BadRequest) or type(back) is type(error)


def test_a_text_of_other_servers_is_kept() -> None:
    error = error_from_text("phase error -- cannot happen")
    assert isinstance(error, FileError)
    assert error.message == "phase error -- cannot happen"
