"""The codec: every message, however cut, and whatever else may arrive."""

from __future__ import annotations

import itertools
import struct

import ninep_messages as drawn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llambo.ninep import messages as m
from llambo.ninep.errors import Malformed
from llambo.ninep.frames import Frames
from llambo.ninep.messages import Message, Qid, Stat
from llambo.ninep.wire import decode, decode_directory, decode_stat, encode, encode_read, encode_stat


@pytest.mark.parametrize("kind", drawn.ALL)
def test_every_message_comes_back_as_it_went(kind: type[Message]) -> None:
    @settings(max_examples=40)
    @given(drawn.of(kind))
    def check(message: Message) -> None:
        assert decode(encode(message)) == message

    check()


@given(st.lists(drawn.messages, max_size=8), st.lists(st.integers(0, 1000), max_size=20), st.booleans())
def test_any_way_of_cutting_the_bytes_gives_the_same_messages(sent: list[Message], cuts: list[int], room: bool) -> None:
    data = b"".join(map(encode, sent))
    frames = Frames(m.MAX_MSIZE, keeps_buffer=room)
    found = []
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(edges):
        if room:
            with frames.room() as place:
                place[: end - start] = data[start:end]
            frames.received(end - start)
        else:
            frames.receive_data(data[start:end])
        while (message := frames.next_message()) is not None:
            found.append(message)
    assert found == sent
    assert len(frames) == 0


def test_bytes_one_by_one_give_the_same_message() -> None:
    message = m.Twrite(1, 2, 3, bytes(range(256)) * 700)
    frames = Frames(m.MAX_MSIZE)
    data = encode(message)
    for number in range(len(data) - 1):
        frames.receive_data(data[number : number + 1])
        assert frames.next_message() is None
    frames.receive_data(data[-1:])
    assert frames.next_message() == message


@given(st.binary(max_size=400))
def test_garbage_is_either_a_message_or_malformed(garbage: bytes) -> None:
    framed = struct.pack("<I", len(garbage) + 4) + garbage
    try:
        message = decode(framed)
    except Malformed:
        return
    assert encode(message) == framed


@given(drawn.messages, st.data())
def test_a_damaged_message_is_either_another_message_or_malformed(message: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        other = decode(bytes(raw))
    except Malformed:
        return
    assert encode(other) == raw


@given(drawn.messages, st.integers(1, 40))
def test_a_message_cut_short_or_drawn_out_is_malformed(message: Message, by: int) -> None:
    body = encode(message)[4:]
    for wrong in (body[: max(3, len(body) - by)], body + bytes(by)):
        if wrong != body:
            with pytest.raises(Malformed):
                decode(struct.pack("<I", 4 + len(wrong)) + wrong)


@pytest.mark.parametrize("size", [0, 6, 8193, 0xFFFFFFFF])
def test_a_length_that_no_message_has_is_malformed_before_the_message_is_there(size: int) -> None:
    frames = Frames(8192)
    frames.receive_data(struct.pack("<I", size))
    with pytest.raises(Malformed, match=str(size)):
        frames.next_message()


def test_a_length_is_not_believed_before_it_is_checked() -> None:
    frames = Frames(m.MAX_MSIZE)
    frames.receive_data(struct.pack("<I", m.MAX_MSIZE)[:3])
    frames.receive_data(b"\x00")
    frames.receive_data(b"\x00")
    assert frames.next_message() is None


@pytest.mark.parametrize("number", [0, 99, 106, 128, 255])
def test_an_unknown_type_is_malformed(number: int) -> None:
    with pytest.raises(Malformed, match=f"type {number}"):
        decode(struct.pack("<IBH", 7, number, 1))


def test_a_count_beyond_the_message_is_malformed() -> None:
    raw = bytearray(encode(m.Twrite(1, 2, 3, b"four")))
    raw[19:23] = struct.pack("<I", 5)
    with pytest.raises(Malformed, match="beyond"):
        decode(bytes(raw))


@pytest.mark.parametrize(
    "message",
    [
        m.Rerror(1, "x" * 65536),
        m.Tread(1, 2, -1, 0),
        m.Tread(1, 2, 1 << 64, 0),
        m.Tclunk(70000, 1),
        m.Rerror(1, "\ud800"),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_malformed(message: Message) -> None:
    with pytest.raises(Malformed):
        encode(message)


def test_a_message_stands_on_the_wire_as_the_manual_draws_it() -> None:
    assert (
        encode(m.Tversion(0xFFFF, 8192, "9P2000")).hex(" ")
        == "13 00 00 00 64 ff ff 00 20 00 00 06 00 39 50 32 30 30 30"
    )
    assert (
        encode(m.Twalk(1, 2, 3, ("ab",))).hex(" ") == "15 00 00 00 6e 01 00 02 00 00 00 03 00 00 00 01 00 02 00 61 62"
    )
    qid = Qid(0x80, 1, 2)
    assert encode(m.Rattach(1, qid)).hex(" ") == "14 00 00 00 69 01 00 80 01 00 00 00 02 00 00 00 00 00 00 00"


@given(st.lists(drawn.stats, max_size=6))
def test_a_directory_comes_back_as_its_entries(entries: list[Stat]) -> None:
    assert decode_directory(b"".join(map(encode_stat, entries))) == entries


@given(st.binary(max_size=120))
def test_a_garbled_entry_is_either_an_entry_or_malformed(garbage: bytes) -> None:
    try:
        entry, end = decode_stat(garbage)
    except Malformed:
        return
    assert encode_stat(entry) == garbage[:end]


@given(st.integers(0, 0xFFFE), st.sampled_from([0, 1, 1000, 65535, 65536, 200_000]), st.booleans())
def test_a_read_in_pieces_is_the_same_message(tag: int, size: int, view: bool) -> None:
    data = bytes(size)
    assert b"".join(encode_read(tag, memoryview(data) if view else data)) == encode(m.Rread(tag, data))
