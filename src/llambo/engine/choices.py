"""What was found to be fastest, remembered: per machine, llama.cpp tag, model and shape of node.

One JSON file, `engines/choices.json`, replaced whole. What was measured on another machine stays in it and is not
believed here. Owns the file and its keys; measures and decides nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llambo.core import paths
from llambo.core.errors import LlamboError
from llambo.engine import backend_store
from llambo.engine.policy import Shape

FILE_NAME = "choices.json"
FORMAT = 1
CHOICES_KEPT = 500
_SAMPLE_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Choice:
    """How to open an engine. `backend` "" is the wheel's own.

    `prefill` and `decode` are how many times the rates of the plain wheel were reached, `prefill_tps` and `decode_tps`
    the tokens per second of one answer at the time; `private_bytes` what the process had to itself. `compared` names
    the backends that there were (`backend_store.name_of_all`).
    """

    backend: str = ""
    threads: int = 0
    batch: int = 0
    flash_attention: str = "auto"
    prefill: float = 1.0
    decode: float = 1.0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    private_bytes: int = 0
    rounds: int = 0
    compared: str = field(default="", compare=False)
    measured_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Remembered:
    """A line of the file. `model_name` is for people."""

    machine: str
    tag: str
    model: str
    shape: str
    model_name: str
    choice: Choice


def fingerprint(path: Path) -> str:
    """Sixteen letters that tell a model file from others: its size, its beginning and its end.

    A file that was moved or copied keeps them; half a megabyte is read at most. Raises: `OSError`.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(4 * _SAMPLE_BYTES))
        file.seek(max(0, size - 4 * _SAMPLE_BYTES))
        digest.update(file.read(4 * _SAMPLE_BYTES))
    return digest.hexdigest()[:16]


class Choices:
    """The choices of one home, for one tag on one machine."""

    def __init__(self, home: Path, *, tag: str, machine: str) -> None:
        self.path = backend_store.engines_dir(home) / FILE_NAME
        self._home = home
        self._tag = tag
        self._machine = machine
        self.problem = ""
        """What was wrong with the file when it was last read."""

    def find(self, model: str, shape: Shape) -> Choice | None:
        """What was found for that model, by its fingerprint, in that shape; on this machine and with this tag alone."""
        for entry in self.read():
            here = (entry.machine, entry.tag) == (self._machine, self._tag)
            if here and (entry.model, entry.shape) == (model, str(shape)):
                return entry.choice
        return None

    def read(self) -> list[Remembered]:
        """Everything that is remembered, of other machines too. A damaged file is put aside, and is as good as none."""
        self.problem = ""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except OSError as error:
            self.problem = f"{self.path} cannot be read: {error.strerror or error}"
            return []
        except UnicodeDecodeError:
            return self._put_aside()
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                return self._put_aside()
            return [_entry(one) for one in document["choices"]]
        except (ValueError, KeyError, TypeError):
            return self._put_aside()

    def remember(self, model: str, model_name: str, shape: Shape, choice: Choice) -> None:
        """Keeps a choice in place of what was known.

        Raises: `LlamboError` where it cannot be written.
        """
        stamped = Choice(**(asdict(choice) | {"measured_at": time.time()}))
        new = Remembered(self._machine, self._tag, model, str(shape), model_name, stamped)
        try:
            with self._locked():
                key = _key(new)
                others = [one for one in self.read() if _key(one) != key]
                others.sort(key=lambda one: one.choice.measured_at)
                self._write([*others[-(CHOICES_KEPT - 1) :], new])
        except OSError as error:
            raise LlamboError(f"{self.path} cannot be written: {error.strerror or error}") from None

    def forget(self, *, backend: str = "") -> None:
        """Drops every choice, or those for one backend. Raises: `OSError`."""
        if not self.path.exists():
            return
        with self._locked():
            self._write([one for one in self.read() if backend and one.choice.backend != backend])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Two processes that remember at the same time do so one after the other."""
        paths.make_private_dir(self._home)
        directory = paths.make_private_dir(self.path.parent)
        descriptor = os.open(directory / f"{FILE_NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, entries: list[Remembered]) -> None:
        document = {"format": FORMAT, "choices": [asdict(one) for one in entries]}
        backend_store.write_atomically(self.path, json.dumps(document, indent=1))

    def _put_aside(self) -> list[Remembered]:
        aside = self.path.with_name(f"{FILE_NAME}.damaged")
        with contextlib.suppress(OSError):
            self.path.replace(aside)
        self.problem = f"{self.path} was damaged and is {aside.name} now; models are measured again"
        return []


def _key(entry: Remembered) -> tuple[str, str, str, str]:
    return (entry.machine, entry.tag, entry.model, entry.shape)


def _entry(fields: dict[str, Any]) -> Remembered:
    choice = Choice(**fields["choice"])
    numbers = (choice.threads, choice.batch, choice.rounds, choice.private_bytes)
    if not all(0 <= one < 2**40 for one in numbers):
        raise ValueError("a choice is out of range")
    if choice.flash_attention not in {"auto", "on", "off"} or "/" in choice.backend:
        raise ValueError("a choice is out of range")
    return Remembered(**(fields | {"choice": choice}))
