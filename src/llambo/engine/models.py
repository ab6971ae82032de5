"""The models of this machine: where a reference's file is, how it gets here, what is stored, and its removal.

Owns `HOME/models`, one directory for each URL with a note of its origin. Files of Hugging Face lie in the Hub's cache
(`hub`), transfers are `download`'s. Knows nothing of what is loaded: whoever removes a file asks that first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never
from urllib.parse import quote, urljoin

from llambo.core.errors import BadModel, BadRequest, DownloadFailed, NotFound
from llambo.engine import download, gguf, hub, references
from llambo.engine.download import Progress, Source
from llambo.engine.references import PART, BuiltIn, File, Hub, Reference, Url

BUILT_IN_PATH = Path(__file__).parents[1] / "data" / "built-in.gguf"
"""Package data; `importlib.resources` would cost every start its import."""

_NOTE = "source.json"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on this machine. `ref` loads it again; `origin` is "built-in", "huggingface", "url" or "file".

    `problem` says what is wrong with a file that cannot be used; then `quant` and `architecture` are empty.
    """

    ref: str
    name: str
    path: Path
    origin: str
    size_bytes: int
    quant: str = ""
    architecture: str = ""
    problem: str = ""


def resolve(
    ref: str, *, home: Path, offline: bool = False, progress: Progress | None = None, refresh: bool = False
) -> Path:
    """The file of a model (of a split one the first part), fetched where it is not here yet. Blocking.

    `refresh` asks Hugging Face for a newer version of what is here. A path is returned unread: `gguf.read` judges it.

    Raises: `BadRequest` for what is no reference, `BadModel`, `DownloadFailed`, and whatever `progress` raises.
    """
    parsed = references.parse(ref)
    offline = offline or hub.is_offline()
    if not (refresh and isinstance(parsed, Hub) and not offline) and (path := _locate(parsed, home)):
        return path
    match parsed:
        case Hub() | Url() if offline:
            raise DownloadFailed(
                f"{ref} is not on this machine, and offline mode (models.offline, HF_HUB_OFFLINE) forbids fetching it"
            )
        case Hub():
            return hub.fetch(parsed, progress)
        case Url():
            return _fetch_url(parsed, home, progress)
        case BuiltIn():
            raise BadModel(f"the built-in model is missing from this installation ({BUILT_IN_PATH}): install it again")
        case File(path):
            return path
        case _:
            assert_never(parsed)


def _locate(ref: Reference, home: Path) -> Path | None:
    """Where the model's file is, if it is here."""
    match ref:
        case BuiltIn():
            return BUILT_IN_PATH if BUILT_IN_PATH.exists() else None
        case File(path):
            return path if references.path_exists(path) else None
        case Hub():
            return next(iter(hub.find_cached(ref)), None)
        case Url():
            return _locate_url(ref, home)
        case _:
            assert_never(ref)


def _url_dir(url: str, home: Path) -> Path:
    # Without the query: a signed URL is another one each time, and the file is the same.
    return home / "models" / hashlib.sha256(references.shown_url(url).encode()).hexdigest()[:12]


def _url_files(ref: Url, home: Path) -> list[Path]:
    directory = _url_dir(ref.url, home)
    return [directory / name for name in references.part_names(references.url_file_name(ref.url))]


def _read_note(directory: Path) -> dict[str, str]:
    try:
        note = json.loads((directory / _NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _locate_url(ref: Url, home: Path) -> Path | None:
    files = _url_files(ref, home)
    if not all(file.exists() for file in files):
        return None
    if ref.sha256 and _read_note(files[0].parent).get("sha256") != ref.sha256:
        _check_stored(ref, files[0])
    return files[0]


def _check_stored(ref: Url, path: Path) -> None:
    """Compares a file that was fetched without this checksum, and remembers it."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != ref.sha256:
        raise DownloadFailed(
            f"{path} has SHA-256 {found}, not {ref.sha256}: `llamboctl models rm {references.shown_url(ref.url)}`"
            " removes it, then it can be fetched again"
        )
    _write_note(ref, path.parent)


def _write_note(ref: Url, directory: Path) -> None:
    note = {"url": references.shown_url(ref.url), "sha256": ref.sha256}
    (directory / _NOTE).write_text(json.dumps(note), encoding="utf-8")


def _fetch_url(ref: Url, home: Path, progress: Progress | None) -> Path:
    files = _url_files(ref, home)
    for file in files:
        # The parts of a split model lie side by side; a checksum is the first one's.
        url = ref.url if len(files) == 1 else urljoin(ref.url, quote(file.name))
        is_named = file.name == references.url_file_name(ref.url)
        download.fetch(Source(url, sha256=ref.sha256 if is_named else ""), file, progress=progress)
    _write_note(ref, files[0].parent)
    return files[0]


def list_models(home: Path) -> list[StoredModel]:
    """Everything that can be loaded without the network: built in, in `home/models`, in the Hub's cache."""
    found = [_describe(references.BUILT_IN, BUILT_IN_PATH, "built-in")] if BUILT_IN_PATH.exists() else []
    found += [_describe(*entry) for entry in _files_at_home(home)]
    found += [_describe(f"{file.repo}:{file.name}", file.path, "huggingface") for file in hub.cached_files()]
    return found


def _files_at_home(home: Path) -> Iterator[tuple[str, Path, str]]:
    for path in sorted((home / "models").rglob("*.gguf")):
        if (part := PART.fullmatch(path.name)) and int(part["no"]) > 1:
            continue
        url = _read_note(path.parent).get("url")
        yield (url, path, "url") if url else (str(path), path, "file")


def _describe(ref: str, path: Path, origin: str) -> StoredModel:
    name = references.default_name(references.parse(ref))
    try:
        file = gguf.read(path)
    except BadModel as error:
        problem = error.message.removeprefix(f"{path}: ")
        return StoredModel(ref, name, path, origin, path.stat().st_size, problem=problem)
    return StoredModel(ref, name, path, origin, file.size_bytes, file.quant, file.architecture)


def show(ref: str, *, home: Path) -> tuple[StoredModel, gguf.ModelFile]:
    """One model of this machine, with what its header says; never uses the network.

    Raises: `BadRequest`, `NotFound`, `BadModel`.
    """
    parsed = references.parse(ref)
    path = _locate(parsed, home)
    if not path:
        raise NotFound(f"{ref} is not on this machine; `llamboctl pull {ref}` fetches it")
    origins = {BuiltIn: "built-in", File: "file", Hub: "huggingface", Url: "url"}
    return _describe(ref, path, origins[type(parsed)]), gguf.read(path)


def remove(ref: str, *, home: Path) -> int:
    """Deletes a fetched model and what is left of an unfinished download of it; returns the bytes that became free.

    Raises: `BadRequest` for what is not ours to delete or not one model, `NotFound`.
    """
    parsed = references.parse(ref)
    match parsed:
        case BuiltIn():
            raise BadRequest("the built-in model is part of the installation and cannot be removed")
        case Hub():
            return hub.remove(_files_to_remove(parsed))
        case Url():
            return _remove_files(list(_url_dir(parsed.url, home).glob("*")), ref)
        case File(path):
            if not path.resolve().is_relative_to((home / "models").resolve()):
                raise BadRequest(f"{path} does not lie in {home / 'models'}: delete it yourself if you mean to")
            if _read_note(path.parent):
                return _remove_files(list(path.parent.glob("*")), ref)
            siblings = [path.with_name(name) for name in references.part_names(path.name)]
            return _remove_files([file for file in siblings if file.exists()], ref)
        case _:
            assert_never(parsed)


def _files_to_remove(ref: Hub) -> tuple[Path, ...]:
    here = [file for file in hub.cached_files() if file.repo == ref.repo]
    if not (ref.quant or ref.file) and len(here) > 1:
        names = ", ".join(f"{ref.repo}:{file.name}" for file in here)
        raise BadRequest(f"{ref.repo} has several files here; say which one: {names}")
    if len(here) == 1 and not (ref.quant or ref.file):
        ref = Hub(ref.repo, file=here[0].name)
    paths = hub.find_cached(ref)
    if not paths:
        raise NotFound(f"{ref} is not on this machine")
    return paths


def _remove_files(files: list[Path], ref: str) -> int:
    if not files:
        raise NotFound(f"{ref} is not on this machine")
    freed = 0
    for file in files:
        freed += file.stat().st_size
        file.unlink()
    directory = files[0].parent
    if directory.name != "models" and not any(directory.iterdir()):
        directory.rmdir()
    return freed
