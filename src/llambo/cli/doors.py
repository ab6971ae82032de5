"""How a running cluster of this home, or its bridge, is reached, and which of its models is meant."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from llambo.bridge.async_client import AsyncBridge
from llambo.bridge.remote import BridgeDoor
from llambo.cli import running
from llambo.cli.daemon_client import model_ref
from llambo.core import paths
from llambo.core.config import Config
from llambo.core.errors import Cancelled, LlamboError, TimedOut, Unreachable
from llambo.core.threads import run_abandonable
from llambo.core.types import ModelInfo
from llambo.engine import models
from llambo.engine.download import Progress

CONNECT_TIMEOUT_S = 10.0
"""How long a program that runs here may take to say its first word."""
SLOW_S = 3.0
"""From then on a person is told that it is waited for."""

Tell = Callable[[str], None]


@asynccontextmanager
async def daemon_door(
    daemon: running.Running, config: Config, model: str, progress: Progress | None = None, tell: Tell = lambda _: None
) -> AsyncIterator[tuple[BridgeDoor, str]]:
    """The door of the running cluster, and the name that `model` has there; it is fetched and loaded where it is not.

    `tell` is told when that takes long. Raises: `Unreachable`, `TimedOut`, and what fetching and loading raise.
    """
    what = f"the cluster of this home (pid {daemon.pid})"
    async with connected(daemon.socket, what, tell) as door:
        if door is None:
            raise Unreachable(f"the cluster of this home (pid {daemon.pid}) is starting or ending: try again")
        name = find_model(model, (await door.refresh()).models) if model else ""
        if name is None and config.settings.models.on_demand:
            name = await _load(door, config, model, progress)
        yield door, model if name is None else name


async def _load(door: BridgeDoor, config: Config, model: str, progress: Progress | None) -> str:
    """Has the cluster load a model and returns its name there; what is not on this machine is fetched here first.

    The cluster would fetch it too, but nobody would see how that goes on.
    """
    given_up = threading.Event()

    def tell(done: int, total: int) -> None:
        if given_up.is_set():
            raise Cancelled("the download was given up")
        if progress is not None:
            progress(done, total)

    offline = config.settings.models.offline
    try:
        await run_abandonable(
            lambda: models.resolve(model, home=paths.home(), offline=offline, progress=tell), name=f"fetch {model}"
        )
    finally:
        given_up.set()  # a thread cannot be cancelled; it ends at its next piece
    return (await door.load(model_ref(model))).name


@asynccontextmanager
async def connected(socket: str | None, what: str, tell: Tell = lambda _: None) -> AsyncIterator[BridgeDoor | None]:
    """The door of the bridge at `socket` for the block; None where there is none, or it has just ended.

    `what` is its name for people, `tell` is told when it is slow. Raises: `TimedOut` for one that hangs.
    """
    if socket is None:
        yield None
        return
    late = asyncio.get_running_loop().call_later(
        SLOW_S, tell, f"{what} does not answer; waiting for {CONNECT_TIMEOUT_S:g} s at most"
    )
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            client = await AsyncBridge.connect(socket)
    except Unreachable:  # it ended a moment ago
        yield None
        return
    except TimeoutError:
        raise TimedOut(
            f"{what} does not answer within {CONNECT_TIMEOUT_S:g} s (connect timeout): it was stopped or hangs"
        ) from None
    finally:
        late.cancel()
    async with client:
        yield BridgeDoor(client)


def find_model(wanted: str, loaded: tuple[ModelInfo, ...]) -> str | None:
    """The name of the loaded model that is meant: by its name, by any reference to its file, or the default one."""
    try:
        path = os.path.realpath(models.resolve(wanted, home=paths.home(), offline=True)) if wanted else None
    except LlamboError:  # it is not on this machine
        path = None
    for info in loaded:
        if not wanted or wanted == info.name or path == os.path.realpath(info.path):
            return info.name
    return None


def socket_of_bridge(config: Config) -> str | None:
    """The socket of the bridge of this home, or one that was named on purpose."""
    found = running.find()
    if found is not None:
        return found.socket
    named = config.sources["bridge.socket_path"] != "default"
    return config.settings.bridge.socket_path if named else None
