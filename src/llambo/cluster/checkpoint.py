"""The checkpoint: what a cluster was, as one JSON file that is either the old one or the new one, never half of it.

Owns the file's format (version 1) and how it is written, read and set aside. What is put into it and what a restore
makes of it is the cluster's business. There is no secret in it: of an API key only the name of its variable.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from llambo.core.errors import BadRequest, LlamboError, NotFound
from llambo.core.types import LoadOptions

VERSION = 1
FILE_NAME = "cluster-state.json"
_NODE_ID = re.compile(r"n[1-9][0-9]{0,8}")
_MAX_SLOTS = 256
_MAX_CTX = 2**24
_MAX_BYTES = 64 * 2**20  # ten thousand nodes need 2 MiB: what is larger is no checkpoint


class ModelState(msgspec.Struct, frozen=True):
    """A model that was loaded: `ref` is what it was loaded from, `options` as they were asked for."""

    name: str
    ref: str
    options: LoadOptions = LoadOptions()
    node_type: str = ""
    pinned: bool = False


class NodeState(msgspec.Struct, frozen=True):
    """A node that was wanted. `url` is set for an attached one; `api_key_env` names the variable that holds its key.

    `ctx` is in tokens per slot, and of an attached one alone: ours get what their type or their model has.
    """

    id: str
    type: str = ""
    model: str = ""
    slots: int = 0
    url: str = ""
    api_key_env: str = ""
    ctx: int = 0


class Checkpoint(msgspec.Struct, frozen=True):
    """A cluster's state; `saved_at` in seconds since the epoch. The default model comes first in `models`.

    `configured_strategy` and `configured_default` are what the configuration said then: where it says something else
    at the next start, that is what somebody wants now.
    """

    saved_at: float
    strategy: str = ""
    models: tuple[ModelState, ...] = ()
    nodes: tuple[NodeState, ...] = ()
    configured_strategy: str = ""
    configured_default: str = ""
    version: int = VERSION


class _Head(msgspec.Struct):
    version: int


def path_of(configured: str, home: Path) -> Path:
    """Where the checkpoint is: as `state.path` says, relative to the home directory; "" for the usual place."""
    return home / Path(configured or FILE_NAME).expanduser()


def to_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint as plain JSON values, as they are in the file."""
    fields: dict[str, Any] = msgspec.to_builtins(checkpoint)
    return {"version": fields.pop("version"), **fields}


def encode(checkpoint: Checkpoint) -> bytes:
    """The file's contents, indented for people."""
    return msgspec.json.format(msgspec.json.encode(to_dict(checkpoint)), indent=2) + b"\n"


def decode(data: bytes) -> Checkpoint:
    """Reads what `encode` wrote; keys that are not known are left out.

    Raises: `BadRequest` naming what is wrong.
    """
    try:
        version = msgspec.json.decode(data, type=_Head).version
        if version != VERSION:
            raise BadRequest(f"it has version {version}, and this Llambo reads version {VERSION}")
        checkpoint = msgspec.json.decode(data, type=Checkpoint)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"it is not valid JSON: {error}") from None
    _check(checkpoint)
    return checkpoint


def _check(checkpoint: Checkpoint) -> None:
    """Raises `BadRequest` where the parts cannot have been written by us."""
    for model in checkpoint.models:
        if not model.name or not model.ref:
            raise BadRequest("it has a model without a name or without what it was loaded from")
    for node in checkpoint.nodes:
        if not _NODE_ID.fullmatch(node.id):
            raise BadRequest(f'{node.id[:40]!r} is no id of a node: those are "n" and a number, such as n7')
        for what, count, most in (("slots", node.slots, _MAX_SLOTS), ("ctx", node.ctx, _MAX_CTX)):
            if not 0 <= count <= most:
                raise BadRequest(f"the {what} of node {node.id} must be between 0 and {most}, not {count}")
    _check_once("model", (model.name for model in checkpoint.models))
    _check_once("node", (node.id for node in checkpoint.nodes))


def _check_once(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadRequest(f"it has {what} {name[:40]} twice")
        seen.add(name)


def read(path: Path) -> Checkpoint:
    """The checkpoint in the file at `path`. Blocks.

    Raises: `NotFound` without a file, `BadRequest` for a damaged one, `LlamboError` for one that cannot be read; each
    names the path.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no checkpoint at {path}") from None
    except (OSError, ValueError) as error:
        raise LlamboError(f"cannot read the checkpoint {path}: {_reason(error)}") from None
    if len(data) > _MAX_BYTES:
        raise BadRequest(f"the checkpoint {path} is damaged: it has more than {_MAX_BYTES >> 20} MiB")
    try:
        return decode(data)
    except BadRequest as error:
        raise BadRequest(f"the checkpoint {path} is damaged: {error.message}") from None


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint, mode 0600, on disk when this returns; a failure leaves the old file as it was. Blocks.

    Raises: `LlamboError` naming the path and the reason.
    """
    data = encode(checkpoint)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_synced(part, data)
        part.replace(path)
        _sync_directory(path.parent)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            part.unlink()
        raise LlamboError(f"cannot write the checkpoint {path}: {_reason(error)}") from None


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint to the first free `….damaged-N` and returns that.

    Raises: `LlamboError`.
    """
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        return path.rename(aside)
    except OSError as error:
        raise LlamboError(f"cannot set the checkpoint {path} aside: {_reason(error)}") from None


def _write_synced(path: Path, data: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # of a process that had our number and was killed
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """The new name is on disk only when its directory is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
