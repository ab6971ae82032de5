"""Throws messages, sound and damaged, at a server over a real socket; every one must be answered or hung up on.

python tests/ninep/fuzz_ninep.py [SECONDS] [SEED]      by hand
`bombard` is what the suite runs for a moment.

The rules that are checked: after any sequence the server still serves others, every answer belongs to a tag that asked,
no request is left without an answer unless it was flushed, and when all have hung up nothing is open any more.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from ninep_world import Wire, World, dialled, serving

from llambo.ninep import messages as m
from llambo.ninep.messages import Message
from llambo.ninep.wire import encode

NAMES = (
    "status",
    "ctl",
    "events",
    "count",
    "gate",
    "slow",
    "clone",
    "many",
    "deep",
    "deeper",
    "file",
    "..",
    "no",
    "secret",
)


def draw(chance: random.Random) -> Message:
    """A message that makes sense more often than not."""
    tag, fid = chance.randrange(12), chance.randrange(6)
    offset = chance.choice((0, 0, 3, 1 << 63, (1 << 64) - 1))
    match chance.randrange(16):
        case 0 | 1 | 2 | 3:
            names = tuple(chance.choice(NAMES) for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 17))))
            return m.Twalk(tag, 0 if chance.random() < 0.7 else fid, fid, names)
        case 4 | 5 | 6:
            return m.Topen(tag, fid, chance.choice((0, 0, 0, 1, 2, 3, 0x11, 0x40, 0xFF)))
        case 7 | 8:
            return m.Tread(tag, fid, offset, chance.choice((0, 1, 100, 1 << 32 - 1)))
        case 9 | 10:
            return m.Twrite(tag, fid, offset, chance.choice((b"", b"say x", b"wait", b"bad", b"\xff")))
        case 11:
            return m.Tclunk(tag, fid)
        case 12:
            return m.Tflush(tag, chance.randrange(13))
        case 13:
            return m.Tstat(tag, fid)
        case 14:
            return chance.choice((m.Tremove(tag, fid), m.Twstat(tag, fid, m.UNCHANGED), m.Tcreate(tag, fid, "x", 0, 0)))
        case _:
            return chance.choice(
                (m.Tattach(tag, fid, m.NOFID, "u", ""), m.Tauth(tag, fid, "u", ""), m.Tversion(tag, 8192, "9P2000"))
            )


def damage(chance: random.Random, raw: bytes) -> bytes:
    """One byte of it is another, or it is longer or shorter than it says."""
    at = chance.randrange(len(raw))
    return chance.choice((raw[:at] + bytes([chance.randrange(256)]) + raw[at + 1 :], raw[:at], raw + bytes(at)))


async def attack(address: str, chance: random.Random, messages: int) -> None:
    """One client's life: sends, reads what comes, and hangs up when it likes."""
    async with dialled(address) as wire:
        await wire.hello()
        bad = False
        for _ in range(messages):
            raw = encode(draw(chance))
            if chance.random() < 0.03:
                raw, bad = damage(chance, raw), True
            if bad and wire.writer.transport.is_closing():
                return
            cut = chance.randrange(len(raw) + 1)
            wire.writer.write(raw[:cut])
            if chance.random() < 0.2:
                await asyncio.sleep(0)
            wire.writer.write(raw[cut:])
        if bad:
            return  # what comes back depends on what the damage made
        await settle(wire)


async def settle(wire: Wire) -> None:
    """Ends the session and sees that the server is still in step: the answer to the last Tversion comes."""
    wire.send(m.Tversion(m.NOTAG, 4096, "the end"))
    while (answer := await wire.receive()) != m.Rversion(m.NOTAG, 4096, m.UNKNOWN_VERSION):
        assert answer.tag <= 12 or answer.tag == m.NOTAG, answer


async def bombard(directory: Path, seed: int, seconds: float, messages: int = 200, clients: int = 4) -> int:
    """Rounds of clients until the time is over; returns how many there were. Raises: what went wrong."""
    chance = random.Random(seed)
    rounds = 0
    deadline = time.monotonic() + seconds
    world = World()
    async with serving(world, directory) as (server, address):
        while time.monotonic() < deadline or not rounds:
            world.gate = asyncio.Event()
            if chance.random() < 0.3:
                world.gate.set()
            await asyncio.gather(*(attack(address, chance, messages) for _ in range(clients)))
            async with asyncio.timeout(20):
                while server.connection_count or server._house.tasks:
                    await asyncio.sleep(0)
            assert len(world.events) == 0, "a reader of events is left"
            assert not world.sessions._nodes or world.log, "a session is left"
            async with dialled(address) as wire:
                await wire.hello("status", mode=m.OREAD)
                assert await wire.ask(m.Tread(1, 1, 0, 100)) == m.Rread(1, b"state ready\n")
            rounds += 1
    return rounds


def main() -> None:
    """By hand."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")
    with tempfile.TemporaryDirectory() as directory:
        rounds = asyncio.run(bombard(Path(directory), seed, seconds))
    sys.stdout.write(f"{rounds} rounds\n")


if __name__ == "__main__":
    main()
