"""A file that is still arriving: what lies beside its destination, and who may write it.

Owns `NAME.part`, `NAME.part.json` (what tells whether the rest still belongs to it) and `NAME.lock`. Knows nothing of
HTTP.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

LOCK_POLL_S = 0.1


@contextlib.contextmanager
def locked(destination: Path, tell: Callable[[int], None]) -> Iterator[None]:
    """Holds the lock on `destination`; while another download has it, tells how many bytes that one has."""
    path = destination.with_name(destination.name + ".lock")
    part = Part(destination)
    while True:
        with path.open("a") as file:
            while not _try_lock(file.fileno()):
                tell(part.size)
                time.sleep(LOCK_POLL_S)
            # The last holder removes the file: a lock on a removed one keeps nobody out.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                try:
                    yield
                    return
                finally:
                    path.unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Part:
    """What has arrived so far, and the validator that tells whether the rest still belongs to it."""

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self.path = destination.with_name(destination.name + ".part")
        self._facts = destination.with_name(destination.name + ".part.json")

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def validator(self) -> str:
        """The server's word for this very content (an ETag or a date); empty where it gave none."""
        try:
            value = json.loads(self._facts.read_text()).get("validator", "")
        except (OSError, ValueError, AttributeError):
            return ""
        return value if isinstance(value, str) else ""

    def begin(self, validator: str) -> None:
        """Starts from nothing, with the validator of what is to come."""
        self.path.write_bytes(b"")
        self._facts.write_text(json.dumps({"validator": validator}))

    def append(self) -> BinaryIO:
        """Opens the part to write what comes next."""
        return self.path.open("ab")

    def discard(self) -> None:
        """Forgets what has arrived."""
        self.path.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)

    def sha256(self) -> str:
        """The checksum of what has arrived, in hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def finish(self) -> None:
        """Puts the whole file in its place, at once."""
        with self.append() as file:
            os.fsync(file.fileno())
        self.path.replace(self._destination)
        self._facts.unlink(missing_ok=True)
