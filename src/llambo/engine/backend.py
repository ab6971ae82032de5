"""A CPU backend that was built for this processor, in the place of the one inside the wheel, in this process.

The wheel exports llama.cpp's registry of backends, so ctypes can take its "CPU" entry out and put another in. That must
happen before an engine is opened, and may happen in two steps: `prepare` in a parent, so that every fork shares the
library's pages and tables, and `use` in the fork that wants it. Whether a backend deserves it is `backend_trust`'s
business.
"""

from __future__ import annotations

import ctypes
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llambo.core.errors import LlamboError
from llambo.engine import backend_store

_NAME = b"CPU"

CRASHES = frozenset({signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT})
"""Signals that a process of an engine ends by where its backend is at fault; others come from outside."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A backend whose library is loaded; nothing uses it yet. `registration` is llama.cpp's `ggml_backend_reg_t`."""

    name: str
    registration: int


def library() -> Any:
    """The wheel's extension as ctypes sees it, with the signatures of what we call.

    Raises: `ImportError` where there is no wheel, `LlamboError` where it does not export the registry.
    """
    import xllamacpp  # noqa: PLC0415 - 60 ms

    found = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer = ctypes.c_void_p
    try:
        for name, result, arguments in (
            ("ggml_version", ctypes.c_char_p, []),
            ("ggml_backend_reg_by_name", pointer, [ctypes.c_char_p]),
            ("ggml_backend_unload", None, [pointer]),
            ("ggml_backend_register", None, [pointer]),
        ):
            function = getattr(found, name)
            function.restype = result
            function.argtypes = arguments
    except AttributeError as error:
        raise LlamboError(f"this build of xllamacpp does not let its CPU backend be replaced: {error}") from None
    return found


def ggml_version() -> str:
    """The version of ggml inside the wheel, such as "0.26.0"."""
    return str(library().ggml_version().decode())


def wheel_version() -> str:
    """The version of the installed xllamacpp; its extension is not loaded for that."""
    from importlib import metadata  # noqa: PLC0415 - 15 ms

    try:
        return metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        raise LlamboError("xllamacpp is not installed") from None


class NotHere(LlamboError):
    """Nothing is wrong with the backend, but it is not for this process."""


def loaded_version() -> str:
    """The version of the xllamacpp that this process has loaded: another one may have been installed since."""
    import xllamacpp  # noqa: PLC0415 - 60 ms

    return str(xllamacpp.__version__)


def prepare(directory: Path, *, library_sha256: str = "") -> Prepared:
    """Loads the backend in `directory` after comparing its files with their checksums. Costs about 10 ms, once.

    `library_sha256` is that of the library which is meant, "" for any. Raises: `LlamboError` with what is wrong;
    `NotHere` where another one was built meanwhile, or for another llama.cpp than this process has: its structures may
    be others.
    """
    manifest = backend_store.read_manifest(directory)
    if library_sha256 not in {"", manifest.files[backend_store.LIBRARY]}:
        raise NotHere("it was built again since the node was ordered")
    loaded, built_for = (backend_store.tag_of(one) for one in (loaded_version(), manifest.version))
    if loaded != built_for:
        raise NotHere(f"it was built for llama.cpp {built_for} and this process has {loaded}: restart Llambo")
    backend_store.check_files(directory, manifest)
    try:
        if (directory / backend_store.BASE).exists():
            ctypes.CDLL(str(directory / backend_store.BASE))
        backend = ctypes.CDLL(str(directory / backend_store.LIBRARY))
        backend.ggml_backend_score.restype = ctypes.c_int
        backend.ggml_backend_init.restype = ctypes.c_void_p
    except (OSError, AttributeError) as error:
        raise LlamboError(f"the loader refuses it: {error}") from None
    if not backend.ggml_backend_score():
        raise LlamboError("it says itself that this processor cannot run it")
    registration = backend.ggml_backend_init()
    if not registration:
        raise LlamboError("it does not start")
    return Prepared(directory.name, registration)


def use(prepared: Prepared) -> None:
    """From now on engines of this process compute with `prepared`. Call it before the first is opened.

    Raises: `LlamboError`; then the process goes on with what it had.
    """
    engine = library()
    before = engine.ggml_backend_reg_by_name(_NAME)
    if before == prepared.registration:
        return
    if before:
        engine.ggml_backend_unload(before)
    engine.ggml_backend_register(prepared.registration)
    if engine.ggml_backend_reg_by_name(_NAME) != prepared.registration:
        if before:
            engine.ggml_backend_register(before)
        raise LlamboError("llama.cpp did not take it")
