"""The server's side of one connection without I/O: bytes become requests that may be performed, results become bytes.

Owns version and msize, tags, fids, and the order of things:

1. A request comes out only when its fid exists, is settled and is open for what is asked. While a walk, open or attach
   of a fid is under way, later requests on that fid wait for it in their order; all others go on.
2. A Tflush is answered after the request that it names has ended, be that with an answer or without one.
3. A clunk or remove cancels what is under way on its fid, and comes out when that has ended.
4. Tversion, and the end of the connection, cancel everything; nothing of it is answered later.

The driver takes events until there are none, and tells how each `Request` ended: `attached`, `walked`, `opened`,
`answer`, `fail` or `drop`, exactly one of them. Knows nothing of how requests are performed.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from llambo.core.errors import LlamboError, Overloaded
from llambo.ninep import messages as m
from llambo.ninep.errors import (
    DUPLICATE_TAG,
    FID_IN_USE,
    ILLEGAL_NAME,
    INTERRUPTED,
    INVALID,
    IO_ERROR,
    NO_AUTHENTICATION,
    UNKNOWN_FID,
    FileError,
    Malformed,
    rerror_text,
)
from llambo.ninep.frames import Frames
from llambo.ninep.messages import RMessage
from llambo.ninep.requests import Cancel, Event, Fid, Limits, Release, Request
from llambo.ninep.rules import ACCESS_BITS, PERFORMED, check, check_walk, is_text
from llambo.ninep.tree import Handle, Node, Walked
from llambo.ninep.wire import Buffer, encode, encode_read

_FIRST_MSIZE = 8192  # for what comes before the first Tversion
_LAST = (m.Tclunk, m.Tremove)  # what ends a fid
_BUFFERS = (bytes, memoryview)
_ERROR_BYTES = 1024  # of an Rerror's text; Plan 9 itself keeps 127


class ServerSession:
    """One connection's protocol state."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._frames = Frames(_FIRST_MSIZE)
        self._msize = 0  # until a version is agreed on
        self._fids: dict[int, Fid] = {}
        self._requests: dict[int, Request] = {}
        self._flushes: dict[int, Request] = {}  # by the Tflush's own tag
        self._events: deque[Event] = deque()
        self._output: list[Buffer] = []
        self._output_bytes = 0
        self._write_bytes = 0  # of writes under way

    @property
    def msize(self) -> int:
        """Bytes of the largest message; 0 until a version is agreed on."""
        return self._msize

    @property
    def fid_count(self) -> int:
        """Fids in use."""
        return len(self._fids)

    @property
    def input_bytes(self) -> int:
        """How much arrived that no event came of yet."""
        return len(self._frames)

    @property
    def output_bytes(self) -> int:
        """How much there is to send."""
        return self._output_bytes

    def receive_data(self, data: bytes) -> None:
        """Takes what arrived."""
        self._frames.receive_data(data)

    def data_to_send(self) -> list[Buffer]:
        """What is to be sent now, in pieces; it is not given twice."""
        output, self._output = self._output, []
        self._output_bytes = 0
        return output

    def next_event(self) -> Event | None:
        """What is to be done next, or None until more arrives or a request ends.

        Raises: `Malformed`, after which the connection is to be closed.
        """
        while not self._events:
            message = self._frames.next_message()
            if message is None:
                return None
            self._accept(message)
        return self._events.popleft()

    def hang_up(self) -> None:
        """The connection is over: what is left to do comes out of `next_event`, and nothing is to be sent."""
        self._reset()
        self._frames = Frames(_FIRST_MSIZE)

    # How requests end

    def attached(self, request: Request, root: Node) -> None:
        """A Tattach succeeded."""
        request.fid.trail = (root,)
        self._end(request, m.Rattach(request.message.tag, root.qid))

    def walked(self, request: Request, walked: Walked) -> None:
        """A Twalk ended; when not at its first name, that is no error."""
        message = request.message
        assert isinstance(message, m.Twalk)
        if walked.error is not None and not walked.qids:
            error = walked.error
            self.fail(request, error if isinstance(error, LlamboError) else FileError(IO_ERROR))
            return
        if walked.error is None:
            request.fid.trail = walked.trail
        self._end(request, m.Rwalk(message.tag, walked.qids))

    def opened(self, request: Request, handle: Handle) -> None:
        """A Topen succeeded."""
        fid = request.fid
        message = request.message
        assert isinstance(message, m.Topen)
        fid.handle = handle
        fid.mode = message.mode & ACCESS_BITS
        if handle.node is not None:
            fid.trail = (*fid.trail[:-1], handle.node)
        self._end(request, m.Ropen(message.tag, fid.node.qid, self._msize - m.IO_HEADER_BYTES))

    def read(self, request: Request, data: Buffer) -> None:
        """A Tread succeeded, with no more than `read_count` bytes."""
        self._end(request, data)

    def answer(self, request: Request, reply: RMessage) -> None:
        """Any other request succeeded."""
        self._end(request, reply)

    def fail(self, request: Request, error: LlamboError) -> None:
        """The request was refused or went wrong."""
        self._end(request, self._error(request.message.tag, rerror_text(error)))

    def drop(self, request: Request) -> None:
        """The request ended because it was cancelled."""
        # Only a flush lets a request go without an answer; one that a clunk ended has its client waiting.
        self._end(request, None if request.flushes else self._error(request.message.tag, INTERRUPTED))

    def _end(self, request: Request, reply: RMessage | Buffer | None) -> None:
        assert not request.is_ended
        self._mark_ended(request)
        if not request.is_silent:
            tag = request.message.tag
            del self._requests[tag]
            if isinstance(reply, _BUFFERS):
                self._output.extend(encode_read(tag, reply))
                self._output_bytes += m.READ_HEADER_BYTES + len(reply)
            elif reply is not None:
                self._send(reply)
            for flush in request.flushes:
                del self._flushes[flush]
                self._send(m.Rflush(flush))
        fid = request.fid
        fid.running.pop(request, None)
        if fid.settling is request:
            self._settle(fid)
        if not fid.running:
            if fid.last is not None and fid.last is not request:
                self._events.append(fid.last)
            elif fid.is_released and fid.handle is not None and fid.last is None:
                self._release(fid)

    def _mark_ended(self, request: Request) -> None:
        request.is_ended = True
        if isinstance(request.message, m.Twrite):
            self._write_bytes -= len(request.message.data)

    def _settle(self, fid: Fid) -> None:
        fid.settling = None
        if not fid.trail and self._fids.get(fid.number) is fid:
            del self._fids[fid.number]
        while fid.waiting and fid.settling is None:
            request = fid.waiting.pop(0)
            if fid.trail:
                self._check(request)
            else:
                self.fail(request, FileError(UNKNOWN_FID))

    def _release(self, fid: Fid) -> None:
        if fid.handle is not None:
            self._events.append(Release(fid.handle))
            fid.handle = None

    # What arrives

    def _accept(self, message: m.Message) -> None:
        tag = message.tag
        if isinstance(message, m.Tversion):
            self._agree(message)
        elif not self._msize:
            self._refuse(tag, f"{INVALID}: Tversion must come first")
        elif tag in self._requests or tag in self._flushes:
            self._refuse(tag, DUPLICATE_TAG)
        elif tag == m.NOTAG:
            self._refuse(tag, f"{INVALID}: tag {tag} is for Tversion alone")
        elif isinstance(message, m.Tflush):
            self._flush(message)
        elif len(self._requests) >= self._limits.max_requests:
            limit = self._limits.max_requests
            self._refuse(tag, rerror_text(Overloaded(f"{limit} requests of this connection are under way")))
        elif type(message) in PERFORMED:
            self._resolve(message)
        elif isinstance(message, m.Tattach):
            self._attach(message)
        elif isinstance(message, m.Tauth):
            self._refuse(tag, NO_AUTHENTICATION)
        else:
            raise Malformed(f"{type(message).__name__} is no message to a server")

    def _resolve(self, message: Any) -> None:
        fid = self._fids.get(message.fid)
        if fid is None:
            self._refuse(message.tag, UNKNOWN_FID)
            return
        if isinstance(message, m.Twrite):
            if self._write_bytes + len(message.data) > self._limits.max_write_bytes:
                self._refuse(message.tag, rerror_text(Overloaded("too much is being written by this connection")))
                return
            self._write_bytes += len(message.data)
        request = Request(message, fid)
        self._requests[message.tag] = request
        if fid.settling is not None and not isinstance(message, _LAST):
            fid.waiting.append(request)
        else:
            self._check(request)

    def _check(self, request: Request) -> None:
        """Lets the request come out when its fid allows it, else answers it."""
        message = request.message
        reply: RMessage | None = None
        try:
            if isinstance(message, m.Twalk):
                self._prepare_walk(request, message)
            elif isinstance(message, _LAST):
                if not self._prepare_last(request):
                    return
            else:
                reply = check(message, request.fid)
        except LlamboError as error:
            self.fail(request, error)
            return
        if reply is not None:
            self._end(request, reply)
            return
        if isinstance(message, m.Topen):
            request.fid.settling = request
        request.fid.running[request] = None
        self._events.append(request)

    def _agree(self, message: m.Tversion) -> None:
        self._reset()
        self._msize = 0
        self._frames.limit_bytes = _FIRST_MSIZE
        if message.msize < m.MIN_MSIZE:
            self._refuse(message.tag, f"{INVALID}: msize {message.msize} is below {m.MIN_MSIZE}")
            return
        msize = min(message.msize, self._limits.max_msize)
        if message.version.split(".")[0] != m.VERSION:
            self._send(m.Rversion(message.tag, msize, m.UNKNOWN_VERSION))
            return
        self._msize = msize
        self._frames.limit_bytes = msize
        self._send(m.Rversion(message.tag, msize, m.VERSION))

    def _reset(self) -> None:
        fids = {request.fid: None for request in self._requests.values()}
        fids.update(dict.fromkeys(self._fids.values()))
        for request in tuple(self._requests.values()):
            request.is_silent = True
            if request in request.fid.waiting:
                self._mark_ended(request)
            else:
                self._cancel(request)
        self._requests.clear()
        self._flushes.clear()
        self._fids.clear()
        for fid in fids:
            fid.waiting.clear()
            fid.is_released = True
            if not fid.running and fid.last is None:
                self._release(fid)

    def _flush(self, message: m.Tflush) -> None:
        # A flush of a flush waits for the same request: answers keep their order.
        request = self._requests.get(message.oldtag) or self._flushes.get(message.oldtag)
        if request is None:
            self._send(m.Rflush(message.tag))
            return
        request.flushes.append(message.tag)
        self._flushes[message.tag] = request
        if request in request.fid.waiting:
            request.fid.waiting.remove(request)
            self.drop(request)
        else:
            self._cancel(request)

    def _cancel(self, request: Request) -> None:
        # What closes a file is not stopped half-way: its flush waits for its end.
        if not request.is_cancelled and not isinstance(request.message, m.Tclunk | m.Tremove):
            request.is_cancelled = True
            self._events.append(Cancel(request))

    def _attach(self, message: m.Tattach) -> None:
        if message.afid != m.NOFID:
            self._refuse(message.tag, UNKNOWN_FID)
        elif not is_text(message.uname) or not is_text(message.aname):
            self._refuse(message.tag, ILLEGAL_NAME)
        else:
            try:
                fid = self._new_fid(message.fid)
            except LlamboError as error:
                self._refuse(message.tag, rerror_text(error))
                return
            request = fid.settling = Request(message, fid)
            self._requests[message.tag] = request
            fid.running[request] = None
            self._events.append(request)

    def _new_fid(self, number: int) -> Fid:
        if number in self._fids:
            raise FileError(FID_IN_USE)
        if number == m.NOFID:
            raise FileError(UNKNOWN_FID)
        if len(self._fids) >= self._limits.max_fids:
            raise Overloaded(f"this connection has {len(self._fids)} fids already")
        fid = self._fids[number] = Fid(number)
        return fid

    def _prepare_walk(self, request: Request, message: m.Twalk) -> None:
        fid = request.fid
        check_walk(message, fid)
        request.trail = fid.trail
        if message.newfid != message.fid:
            # The new fid is the request's from here on: what is under way on it is what a clunk of it ends.
            request.fid = self._new_fid(message.newfid)
        request.fid.settling = request

    def _prepare_last(self, request: Request) -> bool:
        """Takes the fid away; whether nothing is under way on it that must end first."""
        fid = request.fid
        del self._fids[fid.number]
        while fid.waiting:
            self.drop(fid.waiting.pop(0))
        fid.last = request
        for running in fid.running:
            self._cancel(running)
        return not fid.running

    def read_count(self, message: m.Tread) -> int:
        """How much an answer to this read may hold."""
        return min(message.count, self._msize - m.READ_HEADER_BYTES)

    def _refuse(self, tag: int, text: str) -> None:
        self._send(self._error(tag, text))

    def _error(self, tag: int, text: str) -> m.Rerror:
        raw = text.encode("utf-8", "replace")[:_ERROR_BYTES]
        return m.Rerror(tag, raw.decode("utf-8", "ignore"))

    def _send(self, reply: RMessage) -> None:
        try:
            data = encode(reply)
        except Malformed as error:
            data = encode(m.Rerror(reply.tag, f"{IO_ERROR}: {error.message}"[:_ERROR_BYTES]))
        if len(data) > (self._msize or _FIRST_MSIZE):
            data = encode(m.Rerror(reply.tag, f"{IO_ERROR}: the answer does not fit into a message"))
        self._output.append(data)
        self._output_bytes += len(data)
