"""Building a backend: the tools, the place, and what is left when it goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from llambo.core import paths
from llambo.core.errors import LlamboError, NameInUse
from llambo.engine import backend, backend_build, backend_source, backend_store
from llambo.engine.backend_store import State
from llambo.engine.backend_variants import BY_NAME
from llambo.engine.engines import Engines
from llambo.engine.processor import this_machine
from tests.engine.backends import needs_cmake, runnable_variant, source_archive

VARIANT = BY_NAME[runnable_variant()]


def _build(home: Path, archive: Path, **more: Any) -> list[Path]:
    return backend_build.build(
        home, (VARIANT,), version=backend.wheel_version(), ggml=backend.ggml_version(), source=archive, **more
    )


def _left(home: Path) -> list[str]:
    return sorted(path.name for path in backend_store.engines_dir(home).rglob("*") if path.name.startswith("."))


def _tool(directory: Path, name: str, says: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (directory / name).chmod(0o755)


def test_everything_that_is_missing_is_listed_with_its_packages(tmp_path: Path) -> None:
    with pytest.raises(LlamboError) as refused:
        backend_build.find_tools(str(tmp_path))
    for word in ("build-essential", "CMake 3.14 or newer", "ninja-build", "pip install cmake"):
        assert word in refused.value.message


def test_an_old_cmake_is_told_with_its_version(tmp_path: Path) -> None:
    for name in ("cc", "c++", "make"):
        _tool(tmp_path, name, "anything")
    _tool(tmp_path, "cmake", "cmake version 3.10.2")
    with pytest.raises(LlamboError, match=r"CMake 3\.14 or newer, since .*/cmake is 3\.10"):
        backend_build.find_tools(str(tmp_path))


def test_make_will_do_where_there_is_no_ninja_and_rust_is_not_asked_for(tmp_path: Path) -> None:
    for name in ("cc", "c++", "make"):
        _tool(tmp_path, name, "anything 1.0")
    _tool(tmp_path, "cmake", "cmake version 3.25.1")
    tools = backend_build.find_tools(str(tmp_path))
    assert (tools.generator, tools.compiler) == ("Unix Makefiles", "anything 1.0")
    assert tools.maker == str(tmp_path / "make")


def test_a_ninja_that_is_not_on_path_is_named_to_cmake(tmp_path: Path) -> None:
    for name in ("cc", "c++", "ninja", "make"):
        _tool(tmp_path, name, "anything 1.0")
    _tool(tmp_path, "cmake", "cmake version 3.25.1")
    tools = backend_build.find_tools(str(tmp_path))
    assert (tools.generator, tools.maker) == ("Ninja", str(tmp_path / "ninja"))


@needs_cmake
def test_a_build_puts_a_whole_backend_in_its_place_and_leaves_nothing_else(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    archive = source_archive(tmp_path / "a.tar.gz")
    (directory,) = _build(paths.home(), archive, progress=lambda *step: steps.append(step))
    tag = backend_store.tag_of(backend.wheel_version())
    assert directory == paths.home() / "engines" / tag / VARIANT.name
    backend_store.check_files(directory, backend_store.read_manifest(directory))
    (built,) = Engines(paths.home()).built()
    assert (built.name, built.state) == (VARIANT.name, State.UNTESTED)
    assert _left(paths.home()) == []
    assert steps[-1][0] == f"compiling {VARIANT.name}" and steps[-1][1] == steps[-1][2] > 0
    assert "ggml-cpu" in (paths.home() / "engines" / "build.log").read_text()


@needs_cmake
def test_a_second_build_replaces_the_first_and_forgets_its_verdict(tmp_path: Path) -> None:
    (directory,) = _build(paths.home(), source_archive(tmp_path / "a.tar.gz"))
    backend_store.note_verdict(directory, machine=this_machine(), trusted=False, reason="it crashed")
    (again,) = _build(paths.home(), source_archive(tmp_path / "b.tar.gz", code="int cpu(void) { return 2; }"))
    assert again == directory
    assert backend_store.read_verdicts(directory) == {}
    assert _left(paths.home()) == []


@needs_cmake
def test_source_that_does_not_compile_is_told_with_the_compiler_s_words(tmp_path: Path) -> None:
    archive = source_archive(tmp_path / "a.tar.gz", code="this is not C;")
    with pytest.raises(LlamboError, match=r"compiling .* failed; .*build\.log ends with: .*error:"):
        _build(paths.home(), archive)
    assert _left(paths.home()) == []
    assert backend_store.directories(backend_store.tag_dir(paths.home(), backend.wheel_version())) == []


@needs_cmake
def test_a_failed_build_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    (directory,) = _build(paths.home(), source_archive(tmp_path / "a.tar.gz"))
    with pytest.raises(LlamboError):
        _build(paths.home(), source_archive(tmp_path / "b.tar.gz", code="not C"))
    backend_store.check_files(directory, backend_store.read_manifest(directory))


@needs_cmake
@pytest.mark.parametrize("moment", ["unpacking the source", "configuring", f"compiling {VARIANT.name}"])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, moment: str) -> None:
    def interrupt(what: str, _done: int, _total: int) -> None:
        if what == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(paths.home(), source_archive(tmp_path / "a.tar.gz"), progress=interrupt)
    assert _left(paths.home()) == []
    _build(paths.home(), source_archive(tmp_path / "a.tar.gz"))  # and the lock is free again


def test_what_a_killed_build_left_is_cleared_by_the_next_one() -> None:
    with backend_build.one_at_a_time(paths.home()) as engines:
        (engines / ".build-killed").mkdir()
        (engines / "b1" / ".gone-haswell-7").mkdir(parents=True)
    with backend_build.one_at_a_time(paths.home()):
        assert _left(paths.home()) == []


_HOLDER = """
import sys
from llambo.core import paths
from llambo.engine import backend_build
with backend_build.one_at_a_time(paths.home()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_of_two_builds_at_once_the_second_is_refused_with_the_first_s_process() -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(NameInUse, match=rf"another engine build runs \(process {other.pid}\)"),
            backend_build.one_at_a_time(paths.home()),
        ):
            pass
    with backend_build.one_at_a_time(paths.home()):
        pass  # the lock went with its holder


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10 * 2**20))
    monkeypatch.setattr(backend_build, "find_tools", lambda: None)
    with pytest.raises(LlamboError, match=r"is full: a build needs 400 MiB .* and 10 MiB are free"):
        _build(paths.home(), tmp_path / "never read")


def test_a_disk_that_fills_up_in_the_middle_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any, **_more: Any) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(backend_build, "find_tools", lambda: None)
    monkeypatch.setattr(backend_source, "unpack", full)
    with pytest.raises(LlamboError, match=r"the disk of .*engines is full"):
        _build(paths.home(), tmp_path / "never read")
    assert _left(paths.home()) == []


def test_a_disk_that_fills_up_while_it_compiles_is_told_with_the_compiler_s_words(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    tool = ["sh", "-c", "echo 'fatal error: x.o: No space left on device'; echo 'ninja: stopped'; exit 1"]
    with (
        log_path.open("w") as log,
        pytest.raises(LlamboError, match=r"compiling failed; .*/log ends with: .*No space left on device"),
    ):
        backend_build._run(tool, "compiling", log, log_path, lambda _what, _done, _total: None)


_COMPILING = """
import sys
from pathlib import Path
from llambo.engine import backend_build
log_path = Path(sys.argv[1])
tool = ["sh", "-c", "echo '[1/2] '; while sleep 0.05; do echo '[2/2] '; done"]
with log_path.open("w") as log:
    backend_build._run(tool, "compiling", log, log_path, lambda *step: print(*step, flush=True))
"""


def test_the_tools_of_a_build_that_is_killed_end_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _COMPILING, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as build:
        assert build.stdout is not None
        assert [build.stdout.readline() for _ in range(2)] == [b"compiling 0 0\n", b"compiling 1 2\n"]
        tools = psutil.Process(build.pid).children(recursive=True)
        build.kill()
    _, alive = psutil.wait_procs(tools, timeout=10)
    assert tools and not alive
