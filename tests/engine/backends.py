"""Small backends and sources for the tests: real libraries, made by the compiler of this machine in an instant."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from llambo.engine import backend, backend_store
from llambo.engine.backend_store import LIBRARY, Manifest
from llambo.engine.backend_variants import VARIANTS, missing_features
from llambo.engine.processor import this_machine, this_processor

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="no CMake and compiler here"
)

# ggml_backend_reg of llama.cpp's ggml-backend-impl.h: a version, four functions, a context.
_WHEEL = """
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
struct reg { int api_version; void *name, *count, *device, *address, *context; };
static struct reg *wheel(void) {
    void *library = dlopen(EXTENSION, RTLD_NOW);
    return ((struct reg *(*)(void))dlsym(library, "ggml_backend_cpu_reg"))();
}
int ggml_backend_score(void) { return 1; }
"""
SAME_AS_WHEEL = _WHEEL + "void *ggml_backend_init(void) { return wheel(); }"
"""A backend that is the wheel's own under another name: it works."""
CRASHES_WHEN_USED = (
    _WHEEL
    + """
static void *die(void) { abort(); }
void *ggml_backend_init(void) {
    struct reg *mine = malloc(sizeof *mine);
    memcpy(mine, wheel(), sizeof *mine);
    mine->device = (void *)die;
    return mine;
}
"""
)
"""One that loads, and aborts as soon as an engine looks at it."""
CRASHES_WHEN_LOADED = (
    "#include <stdlib.h>\n#include <unistd.h>\n"
    "int ggml_backend_score(void) { abort(); }\nvoid *ggml_backend_init(void) { return 0; }"
)
HANGS_WHEN_LOADED = """
#include <unistd.h>
int ggml_backend_score(void) { for (;;) pause(); }
void *ggml_backend_init(void) { return 0; }
"""
REFUSES = "int ggml_backend_score(void) { return 0; }\nvoid *ggml_backend_init(void) { return 0; }"
"""One that says that the processor cannot run it."""


def runnable_variant() -> str:
    """A variant that this processor can run."""
    return next(one.name for one in VARIANTS if not missing_features(one, this_processor()))


def put_backend(home: Path, source: str, *, trusted: bool | None = None, name: str = "") -> Path:
    """Compiles `source` and puts it into the store of `home` as a backend; `trusted` None leaves it untested."""
    import xllamacpp

    version = backend.wheel_version()
    directory = backend_store.tag_dir(home, version) / (name or runnable_variant())
    directory.mkdir(parents=True)
    for one in (home, backend_store.engines_dir(home)):
        one.chmod(0o700)
    code = directory.parent / f".{directory.name}.c"
    code.write_text(source)
    library = directory / LIBRARY
    define = f'-DEXTENSION="{xllamacpp.xllamacpp.__file__}"'
    subprocess.run(["cc", "-shared", "-fPIC", define, "-o", library, code, "-ldl"], check=True)
    code.unlink()
    write_manifest(directory, version=version)
    if trusted is not None:
        backend_store.note_verdict(directory, machine=this_machine(), trusted=trusted, reason="" if trusted else "why")
    return directory


def write_manifest(directory: Path, *, version: str) -> None:
    """A manifest that fits the files in `directory`."""
    files = {LIBRARY: backend_store.file_sha256(directory / LIBRARY)}
    manifest = Manifest(directory.name, version, backend.ggml_version(), "cc", time.time(), files)
    backend_store.write_manifest(directory, manifest)


_CMAKE = """
cmake_minimum_required(VERSION 3.14)
project("ggml" C CXX)
set(GGML_VERSION_MAJOR {major})
set(GGML_VERSION_MINOR {minor})
set(GGML_VERSION_PATCH {patch})
add_library(ggml-base SHARED base.c)
set_target_properties(ggml-base PROPERTIES SOVERSION 0)
add_library(ggml-cpu-{variant} MODULE cpu.c)
target_link_libraries(ggml-cpu-{variant} PRIVATE ggml-base)
"""


def source_archive(
    path: Path, *, version: str = "", ggml: str = "", code: str = "int cpu(void) { return 1; }", variant: str = ""
) -> Path:
    """An archive laid out as the engine's source, which builds two small libraries."""
    major, minor, patch = (ggml or backend.ggml_version()).partition("-")[0].split(".")
    cmake = _CMAKE.format(major=major, minor=minor, patch=patch, variant=variant or runnable_variant())
    top = "xllamacpp-anything"
    files = {
        f"{top}/PKG-INFO": f"Metadata-Version: 2.1\nName: xllamacpp\nVersion: {version or backend.wheel_version()}\n",
        f"{top}/README.md": "not wanted",
        f"{top}/thirdparty/llama.cpp/ggml/CMakeLists.txt": cmake,
        f"{top}/thirdparty/llama.cpp/ggml/base.c": "int base(void) { return 1; }",
        f"{top}/thirdparty/llama.cpp/ggml/cpu.c": code,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def sha256(path: Path) -> str:
    """The checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
