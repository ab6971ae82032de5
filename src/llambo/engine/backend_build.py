"""Builds CPU backends of llama.cpp for this processor, from the engine's own source, with the compiler that is here.

Owns the tools, the build directory and the moment at which a finished backend appears: everything happens in a
temporary directory beside its place, and one rename puts it there. Whether it is any good is `backend_trust`'s
business. Blocking; a `KeyboardInterrupt` or any other error leaves nothing half-made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llambo.core import paths
from llambo.core.errors import LlamboError, NameInUse
from llambo.engine import backend_patches, backend_source, backend_store
from llambo.engine.backend_store import Manifest
from llambo.engine.backend_variants import Variant

Progress = Callable[[str, int, int], None]
"""Told (what is being done, how much of it is done, of how much; 0 where that is not known)."""

CMAKE_LEAST = (3, 14)
ROOM_BYTES = 400 * 2**20
"""Free disk that a build needs: 38 MB of archive, 26 MB of source, and the objects."""
NICENESS = 10
BUILD_PREFIX = ".build-"
LOG_NAME = "build.log"
_LOG_TAIL_LINES = 4
_STEP = re.compile(r"\[\s*(\d+)/(\d+)\]|\[\s*(\d+)%\]")
_CMAKE_LISTS = """\
cmake_minimum_required(VERSION 3.14)
project(llambo_backends C CXX)
add_subdirectory(ggml)
"""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a build runs. `generator` is CMake's word for the `maker`; `compiler` its first line about itself."""

    cmake: str
    cc: str
    cxx: str
    generator: str
    maker: str
    compiler: str


def find_tools(path: str | None = None) -> Tools:
    """The tools on PATH, and beside this Python (where `pip install cmake ninja` puts them).

    Raises: `LlamboError` with everything that is missing, and what it is called in package managers.
    """
    where = (
        path if path is not None else os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
    )
    missing = []
    cxx = _first(where, os.environ.get("CXX", ""), "g++", "c++", "clang++")
    cc = _first(where, os.environ.get("CC", ""), "gcc", "cc", "clang")
    if not cxx or not cc:
        missing.append("a C and C++ compiler (Debian, Ubuntu: build-essential; Fedora: gcc-c++; Alpine: build-base)")
    cmake = _first(where, "cmake")
    if not cmake:
        missing.append("CMake 3.14 or newer (package cmake; or `pip install cmake` into this environment)")
    elif (version := _cmake_version(cmake)) < CMAKE_LEAST:
        found = ".".join(map(str, version)) or "one that does not run"
        missing.append(f"CMake 3.14 or newer, since {cmake} is {found} (`pip install cmake` into this environment)")
    ninja = _first(where, "ninja", "ninja-build")
    maker = ninja or _first(where, "make", "gmake")
    if not maker:
        missing.append("ninja or make (package ninja-build or make; or `pip install ninja` into this environment)")
    if missing:
        raise LlamboError(f"the engine cannot be built here; missing: {'; '.join(missing)}")
    assert cmake and cc and cxx
    generator = "Ninja" if ninja else "Unix Makefiles"
    return Tools(cmake, cc, cxx, generator, maker, _first_line([cxx, "--version"]))


def _first(where: str, *names: str) -> str:
    return next((found for name in names if name and (found := shutil.which(name, path=where))), "")


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _cmake_version(cmake: str) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)", _first_line([cmake, "--version"]))
    return (int(match[1]), int(match[2])) if match else ()


@contextlib.contextmanager
def one_at_a_time(home: Path) -> Iterator[Path]:
    """Holds the lock of the engines' directory, and gives that directory, cleared of what killed builds left.

    Raises: `NameInUse` while another build runs, `BadConfig`, `Refused` where there cannot be such a directory.
    """
    paths.make_private_dir(home)
    directory = paths.make_private_dir(backend_store.engines_dir(home))
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 32).decode(errors="replace").strip()
            raise NameInUse(
                f"another engine build runs (process {pid or 'unknown'}): wait until it has ended"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        for left in (*directory.glob(f"{BUILD_PREFIX}*"), *directory.glob(f"*/{backend_store.GONE_PREFIX}*")):
            shutil.rmtree(left, ignore_errors=True)
        yield directory
    finally:
        os.close(descriptor)


def build(
    home: Path,
    variants: tuple[Variant, ...],
    *,
    version: str,
    ggml: str,
    source: Path | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Builds the variants and puts each in its place; returns their directories.

    `version` and `ggml` are the installed wheel's. `source` is an archive that is here already (None: from the
    registry). What the tools say goes to `engines/build.log`. A backend of the same name is replaced.

    Raises: `LlamboError` and its kin; nothing half-made is left.
    """
    tell = progress or (lambda _what, _done, _total: None)
    tools = find_tools()
    with one_at_a_time(home) as engines:
        try:
            free = shutil.disk_usage(engines).free
            if free < ROOM_BYTES:
                raise _disk_full(engines, free)
            with _work_directory(engines) as work:
                archive = source or work / "source.tar.gz"
                if source is None:
                    tell("finding the source", 0, 0)
                    found = backend_source.find(version)
                    backend_source.fetch(found, archive, lambda done, total: tell("fetching the source", done, total))
                tell("unpacking the source", 0, 0)
                sources = backend_source.unpack(archive, work / "unpacked", version=version, ggml=ggml)
                made = _compile(work, sources, variants, tools=tools, log_path=engines / LOG_NAME, tell=tell)
                return [_put(home, one, made, version=version, ggml=ggml, tools=tools) for one in variants]
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise _disk_full(engines, 0) from None
            raise LlamboError(f"the engine cannot be built: {error.filename or ''} {error.strerror or error}") from None


@contextlib.contextmanager
def _work_directory(engines: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=BUILD_PREFIX, dir=engines))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _disk_full(engines: Path, free: int) -> LlamboError:
    return LlamboError(
        f"the disk of {engines} is full: a build needs {ROOM_BYTES // 2**20} MiB for a few minutes and"
        f" {free // 2**20} MiB are free"
    )


def _compile(
    work: Path, sources: Path, variants: tuple[Variant, ...], *, tools: Tools, log_path: Path, tell: Progress
) -> Path:
    """Runs CMake and the compiler; returns the directory with the libraries."""
    (work / "CMakeLists.txt").write_text(_CMAKE_LISTS, encoding="utf-8")
    sources.rename(work / "ggml")
    changes = backend_patches.apply(work / "ggml")
    out = work / "out"
    configure = [
        tools.cmake, "-S", str(work), "-B", str(work / "build"),
        "-G", tools.generator, f"-DCMAKE_MAKE_PROGRAM={tools.maker}",  # CMake itself would look on PATH alone
        f"-DCMAKE_C_COMPILER={tools.cc}", f"-DCMAKE_CXX_COMPILER={tools.cxx}", "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=ON", "-DGGML_BACKEND_DL=ON", "-DGGML_NATIVE=OFF", "-DGGML_CPU_ALL_VARIANTS=ON",
        "-DGGML_CCACHE=OFF", "-DGGML_LLAMAFILE=ON",  # llama.cpp's own default; ggml alone would leave it out
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out}", f"-DCMAKE_RUNTIME_OUTPUT_DIRECTORY={out}",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    ]  # fmt: skip
    targets = [f"ggml-cpu-{variant.name}" for variant in variants]
    compile_ = [tools.cmake, "--build", str(work / "build"), "--parallel", str(os.cpu_count() or 1), "--target"]
    with log_path.open("w", encoding="utf-8", errors="replace") as log:
        log.writelines(f"== changed in the source: {one}\n" for one in changes)
        _run(configure, "configuring", log, log_path, tell)
        _run([*compile_, *targets], f"compiling {', '.join(one.name for one in variants)}", log, log_path, tell)
    return out


def _run(command: list[str], what: str, log: Any, log_path: Path, tell: Progress) -> None:
    """Runs a tool with its words in the log; it ends with us, whatever ends us."""
    tell(what, 0, 0)
    log.write(f"== {' '.join(command)}\n")
    log.flush()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", "NINJA_STATUS": "[%f/%t] "},
        start_new_session=True,  # so that the compilers can be ended with it
    )
    assert process.stdout is not None
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
    try:
        for line in process.stdout:
            log.write(line)
            if match := _STEP.match(line):
                done, total = (int(match[1]), int(match[2])) if match[1] else (int(match[3]), 100)
                tell(what, done, total)
        status = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
    if status:
        log.flush()
        raise LlamboError(f"{what} failed; {log_path} ends with: {_tail(log_path)}")


def _tail(log_path: Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "error:" in line.lower() or "No space left" in line]
    return " | ".join(line.strip() for line in (errors or lines)[-_LOG_TAIL_LINES:] if line.strip())


def _put(home: Path, variant: Variant, made: Path, *, version: str, ggml: str, tools: Tools) -> Path:
    """Puts one finished backend in its place, by a rename; returns its directory."""
    place = backend_store.tag_dir(home, version)
    place.mkdir(mode=0o700, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=BUILD_PREFIX, dir=backend_store.engines_dir(home)))
    try:
        built = {
            backend_store.LIBRARY: made / f"libggml-cpu-{variant.name}.so",
            backend_store.BASE: made / backend_store.BASE,
        }
        for name, path in built.items():
            if not path.exists():
                raise LlamboError(f"the build made no {path.name}: its log has the reason")
            shutil.copyfile(path, new / name)  # through a link: what counts is the file
            _sync(new / name)
        files = {name: backend_store.file_sha256(new / name) for name in built}
        backend_store.write_manifest(new, Manifest(variant.name, version, ggml, tools.compiler, time.time(), files))
        directory = place / variant.name
        old = backend_store.hide(directory) if directory.exists() else None
        new.rename(directory)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return directory


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
