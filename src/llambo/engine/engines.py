"""What a node's engine is opened with: which backend, how many threads, and what was found to be fastest.

The one place where the store, the choices and the policy meet. Where nothing was built it looks at one directory and
changes nothing. Blocking, for milliseconds; measures nothing itself (`calibrate` does, in a process of its own).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from llambo.core.errors import LlamboError
from llambo.engine import backend, backend_store, choices
from llambo.engine.backend_store import Built, State
from llambo.engine.choices import Choice, Choices
from llambo.engine.policy import AUTO, WHEEL, EnginePolicy, Shape
from llambo.engine.processor import this_machine, this_processor

log = logging.getLogger("llambo.engine")


@dataclass(frozen=True, slots=True)
class Opening:
    """How a node opens its engine; `backend` is a directory of the store, "" the wheel's own.

    `library_sha256` is the checksum of the backend's library: a later build in the same place is another backend.
    """

    backend: str
    library_sha256: str
    threads: int
    batch: int
    flash_attention: str
    numa: str
    cpus: tuple[int, ...]


class Engines:
    """The engines of one home, on this machine."""

    def __init__(self, home: Path, policy: EnginePolicy | None = None) -> None:
        self.home = home
        self.policy = policy or EnginePolicy()
        self._looked: dict[Path, tuple[object, Built]] = {}
        # (directory, library) -> why: of backends that failed while we live.
        self._disabled: dict[tuple[Path, str], str] = {}

    @property
    def has_any(self) -> bool:
        """Whether anything was ever built in this home; costs one look at the disk."""
        return backend_store.engines_dir(self.home).is_dir()

    def built(self) -> list[Built]:
        """Every backend for the installed wheel, as it stands here; files that did not change are not read again.

        Raises: `LlamboError` where xllamacpp is not installed.
        """
        if not self.has_any:
            return []
        version, processor, machine = backend.wheel_version(), this_processor(), this_machine()
        place = backend_store.tag_dir(self.home, version)
        found = []
        for directory in backend_store.directories(place):
            stamp = _stamp(directory)
            known = self._looked.get(directory)
            if known is None or known[0] != stamp:
                looked = backend_store.look(directory, version=version, processor=processor, machine=machine)
                known = self._looked[directory] = (stamp, looked)
            one = known[1]
            reason = self._disabled.get((directory, one.library_sha256))
            found.append(replace(one, state=State.SET_ASIDE, reason=reason) if reason else one)
        return found

    def choices(self) -> Choices:
        """What is remembered for the installed wheel on this machine. Raises: `LlamboError`."""
        return Choices(self.home, tag=backend_store.tag_of(backend.wheel_version()), machine=this_machine())

    def opening(
        self, model_path: Path, *, shape: Shape, threads: int, batch: int, may_change_threads: bool = True
    ) -> Opening:
        """How to open `model_path` in a node of that shape; `threads` and `batch` are what it would have otherwise.

        Without `may_change_threads` the number was asked for, and stays. Never raises: where something is wrong with
        what was built, the wheel's own serves, and the log says why.
        """
        policy = self.policy
        plain = Opening("", "", threads, batch, policy.flash_attention, policy.numa, policy.cpus)
        if policy.backend == WHEEL or not self.has_any:
            return plain
        try:
            trusted = {one.name: one for one in self.built() if one.state is State.TRUSTED}
            if policy.backend != AUTO:
                return _with(plain, self._named(policy.backend, trusted))
            choice = self.choices().find(choices.fingerprint(model_path), shape)
        except (LlamboError, OSError) as error:
            log.warning("the wheel's own engine is used: %s", error)
            return plain
        if choice is None or (choice.backend and choice.backend not in trusted):
            return plain
        opening = _apply(choice, plain, trusted.get(choice.backend), most=shape.threads)
        return opening if may_change_threads else replace(opening, threads=threads)

    def lacks_choice(self, model_path: Path, shape: Shape) -> bool:
        """Whether it would be worth measuring: something is built that could be used, and was not compared yet.

        Never raises.
        """
        if not (self.policy.calibrate and self.policy.backend == AUTO and self.has_any):
            return False
        try:
            usable = [one for one in self.built() if one.state in {State.TRUSTED, State.UNTESTED}]
            choice = self.choices().find(choices.fingerprint(model_path), shape) if usable else None
        except (LlamboError, OSError):
            return False
        return bool(usable) and (choice is None or choice.compared != backend_store.name_of_all(usable))

    def disable(self, directory: Path, library_sha256: str, reason: str) -> None:
        """Sets a backend aside, now and for later: it failed in use. One that was built in its place since is another.

        Never raises.
        """
        self._disabled[directory, library_sha256] = reason
        log.warning("engine backend %s is set aside: %s", directory.name, reason)
        try:
            backend_store.note_verdict(
                directory, machine=this_machine(), trusted=False, reason=reason, library_sha256=library_sha256
            )
        except (LlamboError, OSError) as error:
            log.warning("that could not be written down: %s", error)

    def _named(self, name: str, trusted: dict[str, Built]) -> Built | None:
        if name not in trusted:
            log.warning("engine.backend is %s, which is not built, or not trusted here: the wheel's own is used", name)
        return trusted.get(name)


def _with(opening: Opening, built: Built | None) -> Opening:
    if built is None:
        return opening
    return replace(opening, backend=str(built.directory), library_sha256=built.library_sha256)


def _apply(choice: Choice, plain: Opening, built: Built | None, *, most: int) -> Opening:
    """What was measured, within what the node may have: never more threads, and no larger batch, than that."""
    threads = min(choice.threads, most) if choice.threads else plain.threads
    batch = choice.batch if 0 < choice.batch < plain.batch else plain.batch
    flash = choice.flash_attention if plain.flash_attention == AUTO else plain.flash_attention
    return _with(replace(plain, threads=threads, batch=batch, flash_attention=flash), built)


def _stamp(directory: Path) -> object:
    """Changes when a file of the backend, or a verdict on it, does."""
    names = (backend_store.MANIFEST, backend_store.VERDICTS, backend_store.LIBRARY, backend_store.BASE)
    stamps = []
    for name in names:
        try:
            facts = (directory / name).stat()
            stamps.append((facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
        except OSError:
            stamps.append((0, 0, 0, 0))
    return tuple(stamps)
