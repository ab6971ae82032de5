"""The fuzz target for a moment, and any sequence of messages through the session alone."""

from __future__ import annotations

from pathlib import Path

import fuzz_ninep
import ninep_messages as drawn
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.ninep import messages as m
from llambo.ninep.files import StaticDirectory, TextFile
from llambo.ninep.frames import Frames
from llambo.ninep.messages import Message
from llambo.ninep.requests import Cancel, Release, Request
from llambo.ninep.session import ServerSession
from llambo.ninep.tree import Walked, walk
from llambo.ninep.wire import encode


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_sent_the_server_goes_on_and_nothing_stays_open(seed: int, tmp_path: Path) -> None:
    assert await fuzz_ninep.bombard(tmp_path, seed, seconds=0.2)


few = st.integers(0, 5)
likely = st.one_of(
    st.builds(m.Twalk, few, few, few, st.lists(st.sampled_from(["a", "d", ".."]), max_size=2).map(tuple)),
    st.builds(m.Topen, few, few, st.sampled_from([0, 1, 2])),
    st.builds(m.Tread, few, few, few, few),
    st.builds(m.Twrite, few, few, few, st.just(b"x")),
    st.builds(m.Tclunk, few, few),
    st.builds(m.Tremove, few, few),
    st.builds(m.Tflush, few, few),
    st.builds(m.Tattach, few, few, st.just(m.NOFID), st.just("u"), st.just("")),
)


@given(st.lists(likely | drawn.t_messages, max_size=40), st.randoms(use_true_random=False))
def test_every_request_is_answered_once_or_flushed_whenever_handlers_end(sent: list[Message], chance: object) -> None:
    root = StaticDirectory("/", [TextFile("a", lambda: "a", lambda offset, data: None), StaticDirectory("d")])
    session = ServerSession()
    session.receive_data(encode(m.Tversion(m.NOTAG, 65536, m.VERSION)))
    assert session.next_event() is None
    session.data_to_send()
    running: list[Request] = []
    due: dict[int, int] = {}
    answers = Frames(1 << 20)

    def end(request: Request) -> None:
        running.remove(request)
        message = request.message
        if request.is_cancelled:
            session.drop(request)
            return
        match message:
            case m.Tattach():
                session.attached(request, root)
            case m.Twalk():
                walked = walk(request.trail, message.names)
                assert isinstance(walked, Walked)
                session.walked(request, walked)
            case m.Topen():
                session.opened(request, request.fid.node.open(message.mode))  # type: ignore[arg-type]
            case m.Tread():
                session.read(request, b"")
            case m.Twrite():
                session.answer(request, m.Rwrite(message.tag, 1))
            case m.Tclunk():
                session.answer(request, m.Rclunk(message.tag))
            case m.Tremove():
                session.answer(request, m.Rremove(message.tag))
            case m.Tstat():
                session.answer(request, m.Rstat(message.tag, request.fid.node.stat()))

    def pump() -> None:
        while (event := session.next_event()) is not None:
            match event:
                case Request():
                    assert not event.is_ended
                    running.append(event)
                case Cancel(request):
                    assert request.is_cancelled
                case Release(handle):
                    handle.close()

    def collect() -> None:
        answers.receive_data(b"".join(map(bytes, session.data_to_send())))
        while (answer := answers.next_message()) is not None:
            assert due.get(answer.tag, 0) > 0, answer
            due[answer.tag] -= 1

    for message in sent:
        if isinstance(message, m.Tversion):
            continue
        due[message.tag] = due.get(message.tag, 0) + 1
        session.receive_data(encode(message))
        pump()
        while running and chance.random() < 0.5:  # type: ignore[attr-defined]
            end(chance.choice(running))  # type: ignore[attr-defined]
            pump()
        collect()
    while running:
        end(running[0])
        pump()
    collect()
    flushed = sum(isinstance(message, m.Tflush) for message in sent)
    assert sum(due.values()) <= flushed
    session.hang_up()
    pump()
    assert not running
    assert session.fid_count == 0
