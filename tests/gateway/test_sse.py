"""Server-sent events as bytes: what is written reads back as one event, and a ping as none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.transcript import split
from llambo.gateway import sse

LINES = st.text().map(lambda text: text.replace("\n", " ").replace("\r", " ")).map(str.encode)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz._", max_size=20)


def read_back(event: bytes) -> tuple[str, bytes]:
    """The name and the data of one event, as the specification has browsers read them."""
    name, data = "", []
    *lines, empty, end = event.split(b"\n")
    assert (empty, end) == (b"", b"")
    for line in lines:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"event":
                name = value.decode()
            case b"data":
                data.append(value)
    return name, b"\n".join(data)


@given(LINES, NAMES)
def test_an_event_reads_back_as_it_was_written(data: bytes, name: str) -> None:
    assert read_back(sse.event(data, name)) == (name, data)


@given(st.lists(st.tuples(LINES, NAMES), min_size=1))
def test_events_that_follow_each_other_stay_apart(events: list[tuple[bytes, str]]) -> None:
    written = [sse.event(data, name) for data, name in events]
    assert split(b"".join(written)) == written


def test_a_ping_is_a_comment_and_ends_itself() -> None:
    assert sse.PING.startswith(b":")
    assert sse.PING.endswith(b"\n\n")
    assert read_back(sse.PING) == ("", b"")
