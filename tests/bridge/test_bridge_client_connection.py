from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.bridge.answers import Answer, Failed, Finished, Reply
from llambo.bridge.binary import AnswerFrame, decode_request, encode_answer
from llambo.bridge.client_connection import ClientConnection
from llambo.bridge.commands import Cancel, Ping
from llambo.bridge.text import encode_line
from llambo.core.errors import LlamboError, Overloaded, Refused, TooLarge
from llambo.core.types import TokenEvent

answers = st.one_of(
    st.builds(TokenEvent, st.text()),
    st.builds(Reply, st.text(), st.none() | st.text()),
    st.just(Finished({"tokens": 1})),
    st.just(Failed(Overloaded("full"))),
)


def opened() -> ClientConnection:
    connection = ClientConnection()
    connection.opening()
    connection.receive_data(encode_line(Reply("hello")))
    assert connection.is_open
    return connection


def test_it_opens_with_hello_and_a_token_first() -> None:
    assert ClientConnection().opening() == b"HELLO 2\n"
    connection = ClientConnection("secret")
    assert connection.opening() == b"AUTH secret\nHELLO 2\n"
    connection.receive_data(encode_line(Reply("one")))
    assert not connection.is_open
    connection.receive_data(encode_line(Reply("two")))
    assert connection.is_open


def test_a_refusal_is_raised_as_what_it_is() -> None:
    with pytest.raises(Refused, match="wrong"):
        ClientConnection("x").receive_data(encode_line(Failed(Refused("wrong"))))


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", b"\xff\n", b"{}\n", b"x" * (2 << 20)])
def test_something_else_is_told(data: bytes) -> None:
    with pytest.raises(LlamboError, match="does not speak"):
        ClientConnection().receive_data(data)


def test_a_length_that_no_bridge_sends_is_told() -> None:
    with pytest.raises(LlamboError, match="does not speak"):
        opened().receive_data(b"\xff\xff\xff\xff")


def test_requests_get_keys_of_their_own() -> None:
    connection = opened()
    first, data = connection.request("ping", {})
    second, _ = connection.request("ping", {})
    assert first != second
    request = decode_request(data[4:])
    assert (request.key, request.command) == (first, Ping())
    assert decode_request(connection.cancel(first)[4:]).command == Cancel(first)


def test_a_request_that_no_bridge_takes_is_not_sent() -> None:
    with pytest.raises(TooLarge):
        opened().request("infer", {"prompt": "x" * (17 << 20)})


@given(st.lists(answers, max_size=8), st.lists(st.integers(1, 40), max_size=30))
def test_any_way_of_cutting_the_answers_gives_the_same(given_answers: list[Answer], sizes: list[int]) -> None:
    data = encode_line(Reply("hello")) + b"".join(encode_answer(n, one) for n, one in enumerate(given_answers))
    whole = ClientConnection().receive_data(data)
    connection, cut, rest = ClientConnection(), list[AnswerFrame](), data
    for size in sizes:
        cut += connection.receive_data(rest[:size])
        rest = rest[size:]
    cut += connection.receive_data(rest)
    assert cut == whole
    assert [frame.id for frame in whole] == list(range(len(given_answers)))


@given(st.binary(max_size=100))
def test_garbage_is_answers_or_an_error_of_ours(data: bytes) -> None:
    for connection in (ClientConnection(), opened()):
        with contextlib.suppress(LlamboError):
            connection.receive_data(data)
