"""Conversations as the manual tells them, over a real socket: T lines are sent, R lines must come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ninep_world import Wire, World, dialled, serving

START = """
    Tversion 65535 8192 9P2000
    Rversion 65535 8192 9P2000
    Tattach 0 0 4294967295 glenda ''
    Rattach 0 dir
"""


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def wire(world: World, tmp_path: Path) -> AsyncIterator[Wire]:
    async with serving(world, tmp_path) as (_, address), dialled(address) as wire:
        yield wire


TRANSCRIPTS = {
    "a version is agreed on, the smaller message wins": """
        Tversion 65535 1073741824 9P2000
        Rversion 65535 1048576 9P2000
        Tversion 65535 4096 9P2000
        Rversion 65535 4096 9P2000
    """,
    "a dialect is answered with the version it is of": """
        Tversion 65535 8192 9P2000.u
        Rversion 65535 8192 9P2000
    """,
    "an unknown version is answered so, and nothing else is": """
        Tversion 65535 8192 9P2001
        Rversion 65535 8192 unknown
        Tattach 0 0 4294967295 glenda ''
        Rerror 0 invalid argument: Tversion must come first
        Tversion 65535 8192 9P2000
        Rversion 65535 8192 9P2000
    """,
    "messages below 4 KiB are refused": """
        Tversion 65535 4095 9P2000
        Rerror 65535 invalid argument: msize 4095 is below 4096
    """,
    "authentication is refused and the client attaches without": """
        Tversion 65535 8192 9P2000
        Rversion 65535 8192 9P2000
        Tauth 1 5 glenda ''
        Rerror 1 authentication not required
        Tattach 1 0 5 glenda ''
        Rerror 1 fid unknown or out of range
        Tattach 1 0 4294967295 glenda ''
        Rattach 1 dir
    """,
    "aname chooses the root or is refused": """
        Tversion 65535 8192 9P2000
        Rversion 65535 8192 9P2000
        Tattach 1 0 4294967295 glenda many
        Rattach 1 dir
        Twalk 1 0 1 n000
        Rwalk 1 file
        Tattach 1 9 4294967295 glenda nothing
        Rerror 1 permission denied
        Tattach 1 9 4294967295 glenda ''
        Rattach 1 dir
    """,
    "a file is walked to, opened, read and given back": START
    + r"""
        Twalk 1 0 1 status
        Rwalk 1 file
        Tstat 1 1
        Rstat 1 status 444 0
        Topen 1 1 0
        Ropen 1 file 8168
        Tread 1 1 0 100
        Rread 1 state ready\n
        Tread 1 1 6 3
        Rread 1 rea
        Tread 1 1 12 100
        Rread 1
        Tread 1 1 4000 100
        Rread 1
        Tread 1 1 0 0
        Rread 1
        Tclunk 1 1
        Rclunk 1
        Tread 1 1 0 100
        Rerror 1 fid unknown or out of range
    """,
    "a walk goes as far as it can": START
    + """
        Twalk 1 0 1 deep deeper file
        Rwalk 1 dir dir file
        Twalk 1 0 2 deep nothing file
        Rwalk 1 dir
        Tstat 1 2
        Rerror 1 fid unknown or out of range
        Twalk 1 0 2 nothing
        Rerror 1 file does not exist
        Twalk 1 1 2 x
        Rerror 1 not a directory
        Twalk 1 0 2 status x
        Rwalk 1 file
        Twalk 1 0 2
        Rwalk 1
        Tstat 1 2
        Rstat 1 / 20000000555 0
        Twalk 1 1 1 ..
        Rerror 1 not a directory
        Twalk 1 2 1 deep
        Rerror 1 fid already in use
        Twalk 1 2 2 .. .. .. deep
        Rwalk 1 dir dir dir dir
        Tstat 1 2
        Rstat 1 deep 20000000555 0
    """,
    "names that no file has are illegal": START
    + """
        Twalk 1 0 1 a/b
        Rerror 1 illegal name
        Twalk 1 0 1 .
        Rerror 1 illegal name
        Twalk 1 0 1 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17
        Rerror 1 invalid argument: a walk has 16 names at most, not 17
        Twalk 1 0 1 .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. ..
        Rwalk 1 dir dir dir dir dir dir dir dir dir dir dir dir dir dir dir dir
    """,
    "fids and tags are used once at a time": START
    + """
        Twalk 1 0 1 status
        Rwalk 1 file
        Twalk 1 0 1 ctl
        Rerror 1 fid already in use
        Tattach 1 0 4294967295 glenda ''
        Rerror 1 fid already in use
        Twalk 1 7 8 ctl
        Rerror 1 fid unknown or out of range
        Topen 1 1 0
        Ropen 1 file 8168
        Topen 1 1 0
        Rerror 1 bad use of fid
        Twalk 1 1 2
        Rerror 1 bad use of fid
        Tclunk 65535 1
        Rerror 65535 invalid argument: tag 65535 is for Tversion alone
        Tclunk 1 1
        Rclunk 1
    """,
    "a tag under way is refused, and what it stands for goes on": START
    + """
        Twalk 1 0 1 events
        Rwalk 1 file
        Topen 1 1 0
        Ropen 1 file 8168
        Tread 5 1 0 100
        Tstat 5 0
        Rerror 5 duplicate tag
        Tflush 6 5
        Rflush 6
    """,
    "modes are those that the file allows": START
    + """
        Twalk 1 0 1 status
        Rwalk 1 file
        Topen 1 1 1
        Rerror 1 permission denied
        Topen 1 1 2
        Rerror 1 permission denied
        Topen 1 1 16
        Rerror 1 permission denied
        Topen 1 1 64
        Rerror 1 permission denied
        Topen 1 1 3
        Rerror 1 permission denied
        Topen 1 1 4
        Rerror 1 illegal mode
        Twalk 1 0 2 secret
        Rwalk 1 file
        Topen 1 2 0
        Rerror 1 permission denied
        Topen 1 0 1
        Rerror 1 permission denied
        Topen 1 0 3
        Ropen 1 dir 8168
    """,
    "what is open for one thing is not for another": START
    + """
        Twalk 1 0 1 status
        Rwalk 1 file
        Tread 1 1 0 10
        Rerror 1 bad use of fid
        Topen 1 1 0
        Ropen 1 file 8168
        Twrite 1 1 0 x
        Rerror 1 bad use of fid
        Twalk 1 0 2 ctl
        Rwalk 1 file
        Topen 1 2 1
        Ropen 1 file 8168
        Tread 1 2 0 10
        Rerror 1 bad use of fid
    """,
    "offsets beyond 2^63 are refused": START
    + """
        Twalk 1 0 1 ctl
        Rwalk 1 file
        Topen 1 1 2
        Ropen 1 file 8168
        Tread 1 1 9223372036854775808 1
        Rerror 1 invalid argument: offset 9223372036854775808 is beyond 9223372036854775807
        Twrite 1 1 9223372036854775808 x
        Rerror 1 invalid argument: offset 9223372036854775808 is beyond 9223372036854775807
        Tread 1 1 9223372036854775807 1
        Rread 1
    """,
    "commands run in order until one fails": START
    + r"""
        Twalk 1 0 1 ctl
        Rwalk 1 file
        Topen 1 1 17
        Ropen 1 file 8168
        Twrite 1 1 0 say a\nsay b\n
        Rwrite 1 12
        Twrite 1 1 12 say c\nbad d\nsay e
        Rerror 1 invalid argument: no such command: bad d; there are say and wait
        Twrite 1 1 12 \xff
        Rerror 1 invalid argument: a command is UTF-8 text, byte 0 is none
        Twrite 1 1 12
        Rwrite 1 0
        Tclunk 1 1
        Rclunk 1
    """,
    "what shells send beside their writes changes nothing": START
    + """
        Twalk 1 0 1 ctl
        Rwalk 1 file
        Twstat 1 1 length=0
        Rwstat 1
        Twstat 1 1 length=0 mtime=7
        Rwstat 1
        Twstat 1 1 mtime=7
        Rwstat 1
        Twstat 1 1
        Rwstat 1
        Twstat 1 1 length=5
        Rerror 1 permission denied
        Twstat 1 1 name=other
        Rerror 1 permission denied
        Twstat 1 1 mode=511
        Rerror 1 permission denied
        Twalk 1 0 2 status
        Rwalk 1 file
        Twstat 1 2 length=0
        Rerror 1 permission denied
        Twstat 1 2
        Rwstat 1
    """,
    "nothing is created": START
    + """
        Tcreate 1 0 new 420 1
        Rerror 1 permission denied
        Tcreate 1 9 new 420 1
        Rerror 1 fid unknown or out of range
    """,
    "a remove gives the fid back, refused or not": START
    + """
        Twalk 1 0 1 removable
        Rwalk 1 file
        Tremove 1 1
        Rremove 1
        Tstat 1 1
        Rerror 1 fid unknown or out of range
        Twalk 1 0 1 removable
        Rerror 1 file does not exist
        Twalk 1 0 1 status
        Rwalk 1 file
        Tremove 1 1
        Rerror 1 permission denied
        Tstat 1 1
        Rerror 1 fid unknown or out of range
    """,
    "a stream is read piece by piece, in whole characters, to an end that stays": START
    + r"""
        Twalk 1 0 1 count
        Rwalk 1 file
        Topen 1 1 0
        Ropen 1 file 8168
        Tread 1 1 0 100
        Rread 1 one\x20
        Tread 1 1 4 3
        Rread 1 two
        Tread 1 1 7 100
        Rread 1 \x20
        Tread 1 1 8 4
        Rread 1 dr
        Tread 1 1 10 4
        Rread 1 \xe2\x82\xaci
        Tread 1 1 14 4
        Rread 1
        Tread 1 1 14 4
        Rread 1
    """,
    "requests of one fid sent together are done in order": START
    + r"""
        Twalk 1 0 1 status \
        Topen 2 1 0 \
        Tread 3 1 0 100 \
        Tclunk 4 1 \
        Tstat 5 1
        Rwalk 1 file
        Ropen 2 file 8168
        Rread 3 state ready\n
        Rclunk 4
        Rerror 5 fid unknown or out of range
    """,
    "so are those of a clone, whose opening is a coroutine": START
    + r"""
        Twalk 1 0 1 clone \
        Topen 2 1 2 \
        Tread 3 1 0 100 \
        Tstat 4 1 \
        Tclunk 5 1 \
        Tstat 6 0
        Rwalk 1 file
        Ropen 2 file 8168
        Rread 3 0\n
        Rstat 4 ctl 644 0
        Rclunk 5
        Rstat 6 / 20000000555 0
    """,
    "flushes of what is unknown, of a flush and of oneself are answered": START
    + """
        Tflush 1 99
        Rflush 1
        Tflush 1 1
        Rflush 1
        Twalk 1 0 1 events
        Rwalk 1 file
        Topen 1 1 0
        Ropen 1 file 8168
        Tread 5 1 0 100 \\
        Tflush 6 5 \\
        Tflush 7 5 \\
        Tflush 8 6
        Rflush 6
        Rflush 7
        Rflush 8
        Tread 5 1 0 0
        Rread 5
    """,
    "a new version ends everything of the old": START
    + """
        Twalk 1 0 1 events
        Rwalk 1 file
        Topen 1 1 0
        Ropen 1 file 8168
        Tread 5 1 0 100 \\
        Tversion 65535 8192 9P2000
        Rversion 65535 8192 9P2000
        Tstat 5 0
        Rerror 5 fid unknown or out of range
        Tattach 5 0 4294967295 glenda ''
        Rattach 5 dir
    """,
    "a fault of a handler is told and ends nothing": START
    + """
        Twalk 1 0 1 broken
        Rwalk 1 file
        Topen 1 1 0
        Rerror 1 i/o error: a fault of the server, which its log tells
        Tstat 1 1
        Rstat 1 broken 444 0
    """,
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
async def test_conversation(name: str, wire: Wire) -> None:
    await wire.follow(TRANSCRIPTS[name])
