"""Which cluster answers: the bridge that runs for this home, else a private one in this process tree."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llambo.bridge.async_client import AsyncBridge
from llambo.bridge.remote import BridgeDoor
from llambo.cli import running
from llambo.cluster.api import Cluster
from llambo.cluster.door import Door
from llambo.core import paths
from llambo.core.config import Config
from llambo.core.errors import LlamboError, Unreachable
from llambo.core.types import ModelInfo
from llambo.engine import models
from llambo.engine.download import Progress


@asynccontextmanager
async def open_door(config: Config, model: str, progress: Progress | None = None) -> AsyncIterator[tuple[Door, str]]:
    """A door behind which `model` ("" for the default) answers, and the name that it has there.

    The running bridge is used when it has the model loaded; otherwise a private cluster loads it, and tells `progress`
    of a download. The cluster ends with the block.
    """
    async with _running_bridge(config) as bridge:
        if bridge is not None:
            name = _find(model, (await bridge.refresh()).models)
            if name is not None:
                yield bridge, name
                return
    settings = config.settings
    async with Cluster(settings, progress=progress) as cluster:
        info = await cluster.load(model or settings.models.default)
        yield cluster, info.name


@asynccontextmanager
async def _running_bridge(config: Config) -> AsyncIterator[BridgeDoor | None]:
    socket = _socket_of_running(config)
    if socket is None:
        yield None
        return
    try:
        client = await AsyncBridge.connect(socket)
    except Unreachable:  # it ended a moment ago
        yield None
        return
    async with client:
        yield BridgeDoor(client)


def _find(wanted: str, loaded: tuple[ModelInfo, ...]) -> str | None:
    """The name of the loaded model that is meant: by its name, by any reference to its file, or the default one."""
    try:
        path = os.path.realpath(models.resolve(wanted, home=paths.home(), offline=True)) if wanted else None
    except LlamboError:  # it is not on this machine
        path = None
    for info in loaded:
        if not wanted or wanted == info.name or path == os.path.realpath(info.path):
            return info.name
    return None


def _socket_of_running(config: Config) -> str | None:
    """The socket of the bridge of this home, or one that was named on purpose."""
    found = running.find()
    if found is not None:
        return found.socket
    named = config.sources["bridge.socket_path"] != "default"
    return config.settings.bridge.socket_path if named else None
