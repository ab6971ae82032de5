"""The client's side of one connection without I/O: calls become bytes, bytes become answers.

Owns tags and fids: none is used again while the server may still mean the old one by it. A flushed tag is free once
the Rflush is there; a walk that succeeded although it was flushed has its fid given back. Knows nothing of what calls
are for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llambo.core.errors import Overloaded
from llambo.ninep import messages as m
from llambo.ninep.errors import Malformed
from llambo.ninep.frames import Frames
from llambo.ninep.messages import RMessage, TMessage
from llambo.ninep.wire import encode

Build = Callable[[int], TMessage]
"""Makes a request of the tag that it is to have."""

_ANSWER_TO: dict[type[TMessage], type[RMessage]] = {
    m.Tversion: m.Rversion,
    m.Tauth: m.Rauth,
    m.Tattach: m.Rattach,
    m.Tflush: m.Rflush,
    m.Twalk: m.Rwalk,
    m.Topen: m.Ropen,
    m.Tcreate: m.Rcreate,
    m.Tread: m.Rread,
    m.Twrite: m.Rwrite,
    m.Tclunk: m.Rclunk,
    m.Tremove: m.Rremove,
    m.Tstat: m.Rstat,
    m.Twstat: m.Rwstat,
}


@dataclass(slots=True)
class _Pending:
    message: TMessage
    is_wanted: bool = True  # somebody waits for the answer
    flush: int = m.NOTAG  # the tag of the Tflush that was sent for it
    is_answered: bool = False


class ClientSession:
    """One connection's protocol state. Until `agreed` is called only a Tversion may be sent."""

    def __init__(self, msize: int) -> None:
        self.msize = msize
        self._frames = Frames(msize, keeps_buffer=True)
        self._pending: dict[int, _Pending] = {}
        self._free_tags: list[int] = []
        self._next_tag = 0
        self._free_fids: list[int] = []
        self._next_fid = 0
        self._output: list[bytes] = []

    @property
    def pending_count(self) -> int:
        """Requests that the server has not answered."""
        return len(self._pending)

    def agreed(self, msize: int) -> None:
        """The server's Rversion said `msize`."""
        self.msize = self._frames.limit_bytes = msize

    def new_fid(self) -> int:
        """A fid that is not in use."""
        if self._free_fids:
            return self._free_fids.pop()
        self._next_fid += 1
        return self._next_fid - 1

    def start(self, build: Build) -> TMessage:
        """Sends a request, which is returned with the tag by which its answer comes.

        Raises: `Overloaded` when every tag is in use, `Malformed` for values that no message can hold.
        """
        return self._start(build, is_wanted=True)

    def discard(self, fid: int) -> None:
        """Gives a fid back without waiting for it."""
        self._start(lambda tag: m.Tclunk(tag, fid), is_wanted=False)

    def flush(self, tag: int) -> None:
        """Ends a request: no answer of it comes from now on."""
        pending = self._pending.get(tag)
        if pending is not None and pending.is_wanted:
            pending.is_wanted = False
            pending.flush = self._start(lambda new: m.Tflush(new, tag), is_wanted=False).tag

    def disown(self, message: TMessage, answer: RMessage) -> None:
        """Nobody took this answer, which came out: gives back the fid that it made, if any."""
        if isinstance(message, m.Twalk | m.Tattach) and is_success(message, answer):
            self._discard_made(message)

    def _start(self, build: Build, is_wanted: bool) -> TMessage:
        tag = self._free_tags.pop() if self._free_tags else self._new_tag()
        message = build(tag)
        self._output.append(encode(message))
        self._pending[message.tag] = _Pending(message, is_wanted)
        if message.tag != tag:  # Tversion has one of its own
            self._free_tags.append(tag)
        return message

    def _new_tag(self) -> int:
        if self._next_tag == m.NOTAG:
            raise Overloaded("every tag of this connection is in use: wait for answers first")
        self._next_tag += 1
        return self._next_tag - 1

    def receive_data(self, data: bytes) -> None:
        """Takes what arrived."""
        self._frames.receive_data(data)

    def room(self) -> memoryview:
        """Where the next bytes may be put instead; to be let go before anything else is asked."""
        return self._frames.room()

    def received(self, count: int) -> None:
        """So many bytes were put into the room."""
        self._frames.received(count)

    def next_answer(self) -> RMessage | None:
        """The next answer that somebody waits for, or None until more arrives.

        Raises: `Malformed` for what is no answer to anything; the connection is of no use then.
        """
        while (answer := self._frames.next_message()) is not None:
            pending = self._pending.get(answer.tag)
            if pending is None or pending.is_answered:
                raise Malformed(f"an answer to tag {answer.tag}, which asked for nothing")
            if not isinstance(answer, (m.Rerror, _ANSWER_TO[type(pending.message)])):
                raise Malformed(f"{type(answer).__name__} is no answer to {type(pending.message).__name__}")
            self._settle(pending, answer)
            if pending.is_wanted:
                return answer
        return None

    def data_to_send(self) -> bytes:
        """What is to be sent now; it is not given twice."""
        data = b"".join(self._output)
        self._output.clear()
        return data

    def _settle(self, pending: _Pending, answer: RMessage) -> None:
        """Takes back the tags and fids that the answer makes free."""
        message = pending.message
        pending.is_answered = True
        match message:
            case m.Tflush(tag, oldtag):
                old = self._pending[oldtag]
                if not old.is_answered and isinstance(old.message, m.Twalk | m.Tattach):
                    self._free_made(old.message)
                self._free_tag(oldtag)
                self._free_tag(tag)
                return
            case m.Tclunk(fid=fid) | m.Tremove(fid=fid):
                self._free_fids.append(fid)
            case m.Twalk() | m.Tattach():
                if not is_success(message, answer):
                    self._free_made(message)
                elif not pending.is_wanted:
                    self._discard_made(message)
        if pending.flush == m.NOTAG:
            self._free_tag(message.tag)

    def _free_tag(self, tag: int) -> None:
        del self._pending[tag]
        if tag != m.NOTAG:
            self._free_tags.append(tag)

    def _free_made(self, message: m.Twalk | m.Tattach) -> None:
        if isinstance(message, m.Tattach):
            self._free_fids.append(message.fid)
        elif message.newfid != message.fid:
            self._free_fids.append(message.newfid)

    def _discard_made(self, message: m.Twalk | m.Tattach) -> None:
        if isinstance(message, m.Tattach):
            self.discard(message.fid)
        elif message.newfid != message.fid:
            self.discard(message.newfid)


def is_success(message: TMessage, answer: RMessage) -> bool:
    """Whether `answer` says that all of `message` was done; a walk that came only part of the way was not."""
    if isinstance(message, m.Twalk) and isinstance(answer, m.Rwalk):
        return len(answer.qids) == len(message.names)
    return not isinstance(answer, m.Rerror)
