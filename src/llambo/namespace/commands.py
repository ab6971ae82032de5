"""Performs the lines of the cluster's `ctl`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from llambo.cluster.control import NodeInfo
from llambo.core.errors import BadRequest, LlamboError
from llambo.namespace.grammar import Call
from llambo.namespace.house import House


async def perform(house: House, call: Call) -> str | None:  # noqa: PLR0912 - one case per command
    """Performs a line of `ctl` and returns once it has taken effect, with what it answers.

    Raises: what `Control` refuses it with.
    """
    control = house.control
    match call.command:
        case "spawn":
            started = await control.spawn(
                call.whole("n"),
                node_type=call.text("type"),
                model=call.text("model"),
                slots=call.whole("slots"),
                progress=_progress(house, "spawn"),
            )
            return _ids(started)
        case "scale":
            nodes = await control.scale(call.whole("n"), model=call.text("model"), progress=_progress(house, "scale"))
            return _ids(nodes)
        case "attach":
            node = await control.attach(
                call.text("url"),
                node_type=call.text("type"),
                api_key=call.text("key"),
                api_key_env=call.text("key_env"),
            )
            return node.id
        case "detach":
            await control.detach(call.text("id"))
        case "drain":
            await control.drain(call.text("id"))
        case "kill":
            await control.kill(call.text("id"))
        case "restart":
            await control.restart(call.text("id"))
        case "pin" | "unpin":
            await control.pin(call.text("model"), pinned=call.command == "pin")
        case "balancer":
            control.set_strategy(call.text("strategy"))
        case "checkpoint":
            return str(await control.save_checkpoint(_path(call)))
        case "restore":
            problems = await control.restore_checkpoint(_path(call))
            if problems:
                raise LlamboError("; ".join(problems))
        case "shutdown":
            house.request_stop()
        case command:
            raise AssertionError(f"the grammar let {command} through")
    return None


def _progress(house: House, command: str) -> Callable[[int, int], None]:
    def tell(ready: int, wanted: int) -> None:
        house.events.send(f"{time.time():.3f} progress command={command} ready={ready} wanted={wanted}")

    return tell


def _ids(nodes: list[NodeInfo]) -> str:
    return "\n".join(node.id for node in nodes)


def _path(call: Call) -> Path | None:
    """The file that is meant; where the daemon happens to run means nothing to who writes. Raises: `BadRequest`."""
    text = call.text("path")
    if not text:
        return None
    path = Path(text)
    if not path.is_absolute():
        raise BadRequest(f"{call.command}: PATH begins with /, not {text!r}")
    return path
