from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llambo.bridge import commands as c
from llambo.bridge.answers import Reply
from llambo.bridge.binary import encode_request
from llambo.bridge.connection import ConnectionEvent, Received, Rejected, ServerConnection
from llambo.bridge.settings import BridgeSettings
from llambo.core.tokens import Scope

SMALL = BridgeSettings(max_line_bytes=40, max_frame_bytes=60)


def drive(connection: ServerConnection, chunks: list[bytes], *, eof: bool = False) -> list[ConnectionEvent]:
    """All events, with every HELLO and right AUTH accepted at once."""
    events: list[ConnectionEvent] = []

    def drain() -> None:
        while (event := connection.next_event()) is not None:
            events.append(event)
            match event:
                case Received(c.Hello()):
                    connection.switch_to_binary()
                case Received(c.Auth(token)):
                    if token == "right":
                        connection.grant("infer")
                    else:
                        connection.deny()

    for chunk in chunks:
        connection.receive_data(chunk)
        drain()
    if eof:
        connection.receive_eof()
        drain()
    return events


def of(data: bytes, *, eof: bool = False, scope: Scope | None = "admin") -> list[object]:
    """Commands and error codes in order."""
    events = drive(ServerConnection(SMALL, scope), [data], eof=eof)
    return [event.command if isinstance(event, Received) else event.error.code for event in events]


def test_lines_end_with_either_line_end() -> None:
    assert of(b"PING\nSTATUS\r\n") == [c.Ping(), c.Status()]


def test_half_a_line_is_no_command_yet() -> None:
    assert of(b"PING\nSTA") == [c.Ping()]


def test_half_a_line_before_the_end_is_rejected_and_not_run() -> None:
    assert of(b"PING\nQUIT", eof=True) == [c.Ping(), "bad_request"]
    assert of(b"PING\n", eof=True) == [c.Ping()]


def test_a_bad_line_leaves_the_next_one_alone() -> None:
    assert of(b"FROB\nINFER \xff\nPING\n") == ["unknown_command", "bad_request", c.Ping()]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_that_is_too_long_is_told_once_and_skipped(end: bytes) -> None:
    assert of(b"INFER " + b"x" * 200 + end + b"PING\n") == ["too_large", c.Ping()]


def test_a_line_that_is_too_long_is_told_before_it_ends() -> None:
    assert of(b"x" * 41) == ["too_large"]
    assert of(b"x" * 41, eof=True) == ["too_large"]


def test_a_line_of_exactly_the_limit_is_taken() -> None:
    assert of(b"TOKENIZE " + b"x" * 31 + b"\n") == [c.Tokenize("x" * 31)]


def test_after_hello_the_rest_of_the_same_bytes_are_frames() -> None:
    data = b"HELLO 2\n" + encode_request(1, "ping", {}) + encode_request("b", "status", {})
    assert of(data) == [c.Hello(2), c.Ping(), c.Status()]


def test_a_bad_frame_leaves_the_next_one_alone() -> None:
    data = b"HELLO 2\n" + b"\0\0\0\0" + b"\0\0\0\x01\xc1" + encode_request(1, "ping", {})
    assert of(data) == [c.Hello(2), "bad_request", "bad_request", c.Ping()]


def test_a_frame_over_the_limit_ends_everything() -> None:
    connection = ServerConnection(SMALL, "admin")
    events = drive(connection, [b"HELLO 2\n" + b"PING\n", encode_request(1, "ping", {})])
    last = events[-1]
    assert isinstance(last, Rejected)
    assert last.fatal
    assert last.error.code == "too_large"
    assert connection.encode(Reply("x"), None)[4:5] != b"{", "answers are frames still"


def test_hello_in_the_binary_protocol_is_rejected() -> None:
    assert of(b"HELLO 2\n" + encode_request(1, "hello", {"version": 2})) == [c.Hello(2), "bad_request"]


def test_nothing_comes_out_behind_hello_until_it_is_decided() -> None:
    connection = ServerConnection(SMALL, "admin")
    connection.receive_data(b"HELLO 2\n" + encode_request(1, "ping", {}))
    assert isinstance(connection.next_event(), Received)
    assert connection.awaits_decision
    assert connection.next_event() is None
    connection.switch_to_binary()
    assert connection.next_event() == Received(c.Ping(), 1, len(encode_request(1, "ping", {})) - 4)


def test_without_authentication_nothing_but_auth_is_allowed() -> None:
    data = b"PING\nFROB\nHELLO 2\nAUTH wrong\nPING\nAUTH right\nPING\nLOAD /m\n"
    assert of(data, scope=None) == [
        "refused",
        "refused",
        "refused",
        c.Auth("wrong"),
        "refused",
        c.Auth("right"),
        c.Ping(),
        "refused",
    ]


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("read", {"PING", "STATUS", "MODELS"}),
        ("infer", {"PING", "STATUS", "MODELS", "INFER", "INFER_STREAM", "INFER_MULTI", "TOKENIZE", "EMBED", "CANCEL"}),
        ("admin", set(c.NAMES.values()) - {"AUTH", "HELLO"}),
    ],
)
def test_a_scope_allows_its_commands(scope: Scope, allowed: set[str]) -> None:
    for name in set(c.NAMES.values()) - {"AUTH", "HELLO"}:
        argument = b"" if name in ("PING", "STATUS", "MODELS", "QUIT") else b" x"
        (outcome,) = of(name.encode() + argument + b"\n", scope=scope)
        assert (outcome != "refused") == (name in allowed), name


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Received(c.Auth("secret"), None, 1))


stretches = st.sampled_from(
    [
        b"PING\n",
        b"PING\r\n",
        b"INFER hello\n",
        b"\n",
        b"x" * 60,
        b"x" * 41 + b"\n",
        b"FROB\n",
        b"\xff\n",
        b"AUTH right\n",
        b"AUTH wrong\n",
        b"HELLO 2\n",
        encode_request(1, "ping", {}),
        encode_request(2, "infer", {"prompt": ""}),
        b"\0\0\0\x02\xc1\xc1",
        b"\0\0\1\0",
    ]
)
streams = st.lists(stretches | st.binary(max_size=20), max_size=12).map(b"".join)


@settings(max_examples=300)
@given(streams, st.lists(st.integers(1, 30), max_size=20), st.sampled_from([None, "read", "admin"]))
def test_any_way_of_cutting_the_input_gives_the_same_events(data: bytes, sizes: list[int], scope: Scope | None) -> None:
    whole = drive(ServerConnection(SMALL, scope), [data], eof=True)
    single = drive(ServerConnection(SMALL, scope), [bytes([byte]) for byte in data], eof=True)
    pieces, rest = [], data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    cut = drive(ServerConnection(SMALL, scope), [*pieces, rest], eof=True)
    assert [repr(event) for event in whole] == [repr(event) for event in cut] == [repr(event) for event in single]
