"""Built backends on disk: what is believed, and what is not."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from llambo.core import paths
from llambo.core.errors import LlamboError
from llambo.engine import backend, backend_store
from llambo.engine.backend_store import LIBRARY, MANIFEST, VERDICTS, Built, State
from llambo.engine.processor import Processor, this_processor
from tests.engine.backends import SAME_AS_WHEEL, needs_compiler, put_backend

pytestmark = needs_compiler


@pytest.fixture
def directory() -> Path:
    return put_backend(paths.home(), SAME_AS_WHEEL)


def _look(directory: Path, *, processor: Processor | None = None, machine: str = "here", version: str = "") -> Built:
    return backend_store.look(
        directory,
        version=version or backend.wheel_version(),
        processor=processor or this_processor(),
        machine=machine,
    )


def test_a_tag_is_the_last_part_of_the_version() -> None:
    assert backend_store.tag_of("2026.10.11549") == "b11549"
    assert backend_store.tag_of("2026.10.11549+cu128") == "b11549"
    assert backend_store.tag_of("2026.10.dev") == "2026.10.dev"


def test_a_fresh_backend_is_untested_and_a_verdict_counts_on_its_machine_alone(directory: Path) -> None:
    assert _look(directory).state is State.UNTESTED
    backend_store.note_verdict(directory, machine="here", trusted=True)
    backend_store.note_verdict(directory, machine="there", trusted=False, reason="it crashed")
    assert _look(directory).state is State.TRUSTED
    there = _look(directory, machine="there")
    assert (there.state, there.reason) == (State.SET_ASIDE, "it crashed")
    assert _look(directory, machine="a machine that the home was moved to").state is State.UNTESTED


@pytest.mark.parametrize("damage", ["changed", "truncated", "emptied"])
def test_a_library_that_was_tampered_with_is_not_loaded(directory: Path, damage: str) -> None:
    backend_store.note_verdict(directory, machine="here", trusted=True)
    library = directory / LIBRARY
    content = library.read_bytes()
    damaged = {"changed": content[:-1] + b"\x01", "truncated": content[: len(content) // 2], "emptied": b""}
    library.write_bytes(damaged[damage])
    built = _look(directory)
    assert (built.state, built.reason) == (
        State.UNUSABLE,
        f"{LIBRARY} is not what was built: it was changed or truncated since",
    )
    with pytest.raises(LlamboError, match="it was changed or truncated since"):
        backend.prepare(directory)


def test_a_library_that_is_gone_is_told(directory: Path) -> None:
    (directory / LIBRARY).unlink()
    assert _look(directory).reason == f"{LIBRARY} cannot be read: No such file or directory"


_FIELDS = '"variant": "v", "version": "1", "ggml": "1", "compiler": "", "built_at": 0'


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "null", '{"variant": 1}', "\x00", f'{{{_FIELDS}, "files": "{LIBRARY}"}}',
        f'{{{_FIELDS}, "files": ["{LIBRARY}"]}}', f'{{{_FIELDS}, "files": {{"{LIBRARY}": 1}}}}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_makes_a_backend_unusable(directory: Path, text: str) -> None:
    (directory / MANIFEST).write_text(text)
    assert (_look(directory).state, _look(directory).reason) == (
        State.UNUSABLE,
        "its manifest is damaged, or of another version of Llambo",
    )


@pytest.mark.parametrize("text", ["", "[]", "not json", '{"here": 3}'])
def test_damaged_verdicts_mean_that_it_is_tested_again(directory: Path, text: str) -> None:
    (directory / VERDICTS).write_text(text)
    assert _look(directory).state is State.UNTESTED


def test_a_backend_for_another_version_of_the_wheel_is_not_used(directory: Path) -> None:
    built = _look(directory, version="2027.1.1")
    assert built.state is State.UNUSABLE
    assert built.reason == f"it was built for xllamacpp {backend.wheel_version()} and 2027.1.1 is installed"


def test_a_backend_that_needs_what_the_processor_lacks_is_not_used(directory: Path) -> None:
    built = _look(directory, processor=replace(this_processor(), features=frozenset()))
    assert built.state is State.UNUSABLE
    assert built.reason.startswith("this processor lacks ")


def test_a_verdict_on_a_library_does_not_count_for_another_that_took_its_place(directory: Path) -> None:
    backend_store.note_verdict(directory, machine="here", trusted=True)
    manifest = backend_store.read_manifest(directory)
    (directory / LIBRARY).write_bytes(b"another")
    files = {LIBRARY: backend_store.file_sha256(directory / LIBRARY)}
    backend_store.write_manifest(directory, replace(manifest, files=files))
    assert _look(directory).state is State.UNTESTED


def test_removing_takes_what_is_named_or_everything(directory: Path) -> None:
    version = backend.wheel_version()
    assert backend_store.remove(paths.home(), version=version, names=("other",)) == 0
    assert backend_store.remove(paths.home(), version=version, names=(directory.name,)) == 1
    again = put_backend(paths.home(), SAME_AS_WHEEL)
    assert backend_store.remove(paths.home(), version="1.2.3") == 1
    assert not again.exists()
    assert list(again.parent.iterdir()) == []


def test_writing_leaves_the_old_text_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    backend_store.write_atomically(path, "old")

    def fail(_descriptor: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        backend_store.write_atomically(path, "new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_a_manifest_is_json_that_people_can_read(directory: Path) -> None:
    fields = json.loads((directory / MANIFEST).read_text())
    assert fields["version"] == backend.wheel_version()
    assert set(fields["files"]) == {LIBRARY}
