"""How the load generator reads a reply, and what it calls one that is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load import wire
from bench.load.wire import Outcome, ReplyReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(**choice: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


STREAM = HEAD + chunked(
    event(delta={"role": "assistant", "content": None}),
    b": ping\n\n",
    event(delta={"content": "a"}),
    event(delta={"reasoning_content": "b"}) + event(text="c"),
    event(delta={"tool_calls": [{"index": 0}]}),
    event(delta={}, finish_reason="stop"),
    b'data: {"choices":[],"usage":{"completion_tokens":9}}\n\n',
    b"data: [DONE]\n\n",
)


def read(data: bytes, *, streams: bool = True, step: int = 0, close: bool = False) -> tuple[Outcome, ReplyReader]:
    reader = ReplyReader(streams=streams)
    is_over = False
    for number, at in enumerate(range(0, len(data), step or len(data))):
        is_over = reader.feed(data[at : at + (step or len(data))], float(number + 1))
        if is_over:
            break
    assert is_over or close, "the reply goes on"
    if close:
        reader.close(1000.0)
    return reader.outcome, reader


@given(st.integers(1, len(STREAM)))
def test_a_stream_is_counted_the_same_however_it_is_cut(step: int) -> None:
    outcome, reader = read(STREAM, step=step)
    assert (outcome.status, outcome.reason, outcome.tokens, outcome.counted_tokens) == (200, "", 4, 9)
    assert len(outcome.gaps_s) == 3
    assert reader.can_reuse


def test_moments_are_those_of_the_reads() -> None:
    reader = ReplyReader(streams=True)
    reader.feed(HEAD, 1.0)
    for number, moment in enumerate((2.0, 2.5, 4.5)):
        piece = event(text=str(number))
        assert not reader.feed(b"%x\r\n%b\r\n" % (len(piece), piece), moment)
    assert reader.feed(chunked(b"data: [DONE]\r\n\r\n"), 5.0)
    outcome = reader.outcome
    assert (outcome.first_s, list(outcome.gaps_s), outcome.last_s, outcome.reason) == (2.0, [0.5, 2.0], 5.0, "")


def plain(status: str, body: bytes, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


REFUSED = plain("429 Too Many Requests", b'{"error":{"message":"the queue is full","code":"overloaded"}}')
EMPTY = plain("200 OK", b'{"choices":[]}')

BAD = [
    (b"SSH-2.0-OpenSSH_9\r\n", wire.NOT_HTTP, "HTTP"),
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", wire.NOT_HTTP, "protocol"),
    (HEAD + chunked(b"data: {not json}\n\n"), wire.BAD_EVENT, "not json"),
    (HEAD + chunked(b'data: {"choices": 4}\n\n'), wire.BAD_EVENT, "choices"),
    (HEAD + chunked(b'data: "\xff"\n\n'), wire.BAD_EVENT, ""),
    (HEAD + chunked(b'data: {"error":{"message":"node n1 is gone"}}\n\n'), wire.ERROR_EVENT, "node n1 is gone"),
    (HEAD + chunked(event(text="a")), wire.NO_END, "last event"),
    (plain("200 OK", b"<html>", "text/html"), wire.NO_STREAM, "event-stream"),
    (REFUSED, "status 429", "the queue is full"),
    (plain("502 Bad Gateway", b"<h1>oh</h1>", "text/html"), "status 502", "<h1>oh</h1>"),
]


@pytest.mark.parametrize(("data", "reason", "detail"), BAD)
@pytest.mark.parametrize("step", [0, 1])
def test_what_is_wrong_has_a_name(data: bytes, reason: str, detail: str, step: int) -> None:
    outcome, reader = read(data, step=step)
    assert outcome.reason == reason
    assert detail in outcome.detail
    assert reader.can_reuse == reason.startswith("status")


def test_an_end_within_the_reply_is_broken_off_at_every_byte() -> None:
    for length in range(len(STREAM)):
        outcome, reader = read(STREAM[:length] or b"\r\n", close=True)
        assert (outcome.reason, reader.can_reuse) == (wire.BROKEN_OFF, False)


def test_a_reply_that_ends_with_its_connection_is_whole() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event(text="a") + b"data: [DONE]\n\n"
    outcome, reader = read(data, close=True)
    assert (outcome.reason, outcome.tokens, reader.can_reuse) == ("", 1, False)


def test_a_reply_in_one_piece_has_the_tokens_that_the_server_counted() -> None:
    body = b'{"choices":[{"message":{"content":"x"}}],"usage":{"completion_tokens":5}}'
    outcome, _ = read(plain("200 OK", body), streams=False, step=3)
    assert (outcome.reason, outcome.tokens, outcome.counted_tokens) == ("", 5, 5)


@pytest.mark.parametrize("data", [EMPTY, plain("200 OK", b"[1]"), plain("200 OK", b"{"), plain("200 OK", b"\xff")])
def test_a_reply_in_one_piece_without_an_answer_is_a_bad_body(data: bytes) -> None:
    outcome, _ = read(data, streams=False)
    assert outcome.reason == wire.BAD_BODY


def test_an_interim_reply_is_not_the_reply() -> None:
    outcome, _ = read(b"HTTP/1.1 100 Continue\r\n\r\n" + STREAM)
    assert (outcome.status, outcome.tokens) == (200, 4)


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    for prefix in (b"", HEAD):
        reader = ReplyReader(streams=True)
        if not reader.feed(prefix + data, 1.0):
            reader.close(2.0)
        assert reader.outcome.reason
