"""The built backends on disk: where they lie, whether they are whole, and what was found out about them.

    $LLAMBO_HOME/engines/TAG/VARIANT/backend.json       the manifest: what it is, and the SHA-256 of each file
                                     libggml-cpu.so     the backend
                                     libggml-base.so.0  what it stands on
                                     verdicts.json      per machine: trusted, or set aside and why

A variant's directory appears by one rename and is never changed but for its verdicts. Builds nothing, loads nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from llambo.core.errors import LlamboError
from llambo.engine.backend_variants import BY_NAME, missing_features
from llambo.engine.policy import DIRECTORY
from llambo.engine.processor import Processor

LIBRARY = "libggml-cpu.so"
BASE = "libggml-base.so.0"
MANIFEST = "backend.json"
VERDICTS = "verdicts.json"
FORMAT = 1
GONE_PREFIX = ".gone-"


class State(Enum):
    """What may be done with a backend here and now."""

    TRUSTED = "trusted"
    UNTESTED = "untested"
    SET_ASIDE = "set aside"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backend is. `version` is the wheel's that it was built for, `files` maps names to SHA-256."""

    variant: str
    version: str
    ggml: str
    compiler: str
    built_at: float
    files: dict[str, str]
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Built:
    """A backend on disk, as it stands on this machine; `reason` says why it is set aside or unusable."""

    name: str
    directory: Path
    state: State
    reason: str = ""
    manifest: Manifest | None = None

    @property
    def library(self) -> Path:
        """The file to load."""
        return self.directory / LIBRARY

    @property
    def library_sha256(self) -> str:
        """The checksum of that file when it was built, "" where the manifest does not tell."""
        return self.manifest.files[LIBRARY] if self.manifest is not None else ""


def name_of_all(backends: Iterable[Built]) -> str:
    """A short name for these backends together; another one when one of them comes, goes or is built again."""
    return hashlib.sha256(" ".join(sorted(one.library_sha256 for one in backends)).encode()).hexdigest()[:16]


def tag_of(version: str) -> str:
    """llama.cpp's tag by the version of the wheel: 2026.10.11549 is b11549."""
    last = version.partition("+")[0].rpartition(".")[2]
    return f"b{last}" if last.isdecimal() else version


def engines_dir(home: Path) -> Path:
    """Where everything of the engine lies."""
    return home / DIRECTORY


def tag_dir(home: Path, version: str) -> Path:
    """Where the backends for that version of the wheel lie."""
    return engines_dir(home) / tag_of(version)


def file_sha256(path: Path) -> str:
    """The checksum of a file. Raises: `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a backend's directory.

    Raises: `LlamboError` that says what is wrong with it.
    """
    try:
        fields = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**fields)
        well_formed = (
            manifest.format == FORMAT
            and LIBRARY in fields["files"]
            and all(isinstance(fields[name], str) for name in ("variant", "version"))
            and all(isinstance(one, str) for one in fields["files"].values())
        )
    except OSError as error:
        raise LlamboError(f"its manifest cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        raise LlamboError("its manifest is damaged, or of another version of Llambo")
    return manifest


def check_files(directory: Path, manifest: Manifest) -> None:
    """Compares every file with the checksum that was taken when it was built; about 5 ms.

    Raises: `LlamboError` for one that is missing, truncated or changed.
    """
    for name, expected in manifest.files.items():
        path = directory / name
        try:
            found = file_sha256(path)
        except OSError as error:
            raise LlamboError(f"{name} cannot be read: {error.strerror or error}") from None
        if found != expected:
            raise LlamboError(f"{name} is not what was built: it was changed or truncated since")


def look(directory: Path, *, version: str, processor: Processor, machine: str) -> Built:
    """A backend as it stands here; its files are compared with their checksums. Never raises."""
    name = directory.name
    try:
        manifest = read_manifest(directory)
        if manifest.version != version:
            raise LlamboError(f"it was built for xllamacpp {manifest.version} and {version} is installed")
        variant = BY_NAME.get(manifest.variant)
        if variant is None:
            raise LlamboError(f"this version of Llambo knows no variant called {manifest.variant}")
        if missing := missing_features(variant, processor):
            raise LlamboError(f"this processor lacks {', '.join(missing)}")
        check_files(directory, manifest)
    except LlamboError as error:
        return Built(name, directory, State.UNUSABLE, error.message)
    verdict = read_verdicts(directory).get(machine)
    if verdict is None or verdict.get("library") != manifest.files[LIBRARY]:
        return Built(name, directory, State.UNTESTED, "not tested on this machine yet", manifest)
    state = State.TRUSTED if verdict.get("trusted") is True else State.SET_ASIDE
    return Built(name, directory, state, str(verdict.get("reason", "")), manifest)


def directories(place: Path) -> list[Path]:
    """The backends' directories in that of a tag, by name."""
    if not place.is_dir():
        return []
    return sorted(one for one in place.iterdir() if one.is_dir() and not one.name.startswith("."))


def read_verdicts(directory: Path) -> dict[str, dict[str, Any]]:
    """What was found out on which machine; a damaged file is as good as none: then it is tested again."""
    try:
        verdicts = json.loads((directory / VERDICTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(verdicts, dict):
        return {}
    return {machine: verdict for machine, verdict in verdicts.items() if isinstance(verdict, dict)}


def note_verdict(directory: Path, *, machine: str, trusted: bool, reason: str = "", library_sha256: str = "") -> None:
    """Remembers what was found out about the backend on `machine`.

    With `library_sha256` nothing where another one has taken its place. Raises: `LlamboError`, `OSError`.
    """
    library = read_manifest(directory).files[LIBRARY]
    if library_sha256 not in {"", library}:
        return
    verdict = {"trusted": trusted, "reason": reason, "at": time.time(), "library": library}
    write_atomically(directory / VERDICTS, json.dumps(read_verdicts(directory) | {machine: verdict}, indent=1))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest. Raises: `OSError`."""
    write_atomically(directory / MANIFEST, json.dumps(asdict(manifest), indent=1))


def write_atomically(path: Path, text: str) -> None:
    """Puts `text` in place of what was at `path`, whole or not at all. Raises: `OSError`."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove(home: Path, *, version: str, names: tuple[str, ...] = ()) -> int:
    """Deletes these backends of that version, or all that there are of any version; returns how many went.

    A process that has one loaded keeps it until it ends. Raises: `OSError`.
    """
    if names:
        gone = [tag_dir(home, version) / name for name in names if (tag_dir(home, version) / name).is_dir()]
    else:
        tags = [one for one in engines_dir(home).glob("*") if one.is_dir()]
        gone = [one for tag in tags for one in tag.iterdir() if (one / MANIFEST).exists()]
    for directory in gone:
        shutil.rmtree(hide(directory))
    return len(gone)


def hide(directory: Path) -> Path:
    """Takes a backend out of sight by one rename, so that nobody meets a half-removed one; returns what to delete.

    Raises: `OSError`.
    """
    return directory.rename(directory.with_name(f"{GONE_PREFIX}{directory.name}-{os.getpid()}"))
