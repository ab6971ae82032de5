"""`llamboctl` commands that change which nodes there are: spawn, attach, scale, drain, kill and their like.

Owns what these commands print; what they mean is the business of the namespace's `ctl`.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from llambo.cli import common
from llambo.cli.daemon_client import command, look, model_ref, nodes_named
from llambo.core.errors import BadRequest

NodeId = Annotated[str, typer.Argument(metavar="ID", help="The node's id, as `llamboctl nodes` shows it.")]
ModelRef = Annotated[str, typer.Option("--model", metavar="REF", help="Model; default: models.default.")]
NodeType = Annotated[str, typer.Option("--type", metavar="T", help="Node type: tiny, medium, large, or your own.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to a command line."""
    for verb in (spawn, attach, detach, scale, drain, kill, restart, pin, unpin, nodes):
        app.command()(verb)


def spawn(
    count: Annotated[int, typer.Option(metavar="N", help="How many.")] = 1,
    node_type: NodeType = "",
    model: ModelRef = "",
    slots: Annotated[int, typer.Option(metavar="S", help="Parallel answers per node; 0: as the type says.")] = 0,
    as_json: common.Json = False,
) -> None:
    """Starts nodes and returns once all of them are ready."""
    ids = command("spawn", title="starting nodes", n=count, type=node_type, model=model_ref(model), slots=slots)
    _tell_nodes(ids, "started", as_json=as_json)


def scale(
    count: Annotated[int | None, typer.Argument(metavar="N", help="How many nodes there shall be.")] = None,
    count_option: Annotated[int | None, typer.Option("--count", metavar="N", help="The same.")] = None,
    model: ModelRef = "",
    as_json: common.Json = False,
) -> None:
    """Makes it N nodes: starts more, or drains the least busy ones."""
    wanted = {number for number in (count, count_option) if number is not None}
    if len(wanted) != 1:
        raise BadRequest("say how many nodes there shall be, once: llamboctl scale 4")
    left = command("scale", title="scaling", n=wanted.pop(), model=model_ref(model))
    if as_json:
        common.print_json(nodes_named(left))
    else:
        sys.stdout.write(f"{_count(len(left))}\n")


def attach(
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as http://127.0.0.1:8080.")],
    node_type: NodeType = "",
    api_key_env: Annotated[
        str, typer.Option(metavar="VAR", help="Environment variable that holds the server's API key.")
    ] = "",
    as_json: common.Json = False,
) -> None:
    """Takes in a running llama-server, or any server with OpenAI's API, as a node."""
    key = os.environ.get(api_key_env, "") if api_key_env else ""
    if api_key_env and not key:
        raise BadRequest(f"the environment variable {api_key_env} is not set: it should hold the server's API key")
    # Written to a file of the daemon: the key is in no process list, and the daemon shows it nowhere.
    ids = command("attach", url=url, type=node_type, key=key, key_env=api_key_env)
    _tell_nodes(ids, "attached", as_json=as_json)


def detach(node: NodeId) -> None:
    """Lets an attached node finish, then forgets it."""
    _do("detach", f"node {node} is detached", id=node)


def drain(node: NodeId) -> None:
    """Lets a node finish what it is doing, then ends it."""
    _do("drain", f"node {node} is drained", id=node)


def kill(node: NodeId) -> None:
    """Ends a node at once; what it was answering goes on elsewhere."""
    _do("kill", f"node {node} is gone", id=node)


def restart(node: NodeId, as_json: common.Json = False) -> None:
    """Ends a node's process and starts it again."""
    command("restart", id=node)
    _tell_nodes([node], "restarted", as_json=as_json)


def pin(model: Annotated[str, typer.Argument(metavar="MODEL", help="A loaded model's name.")]) -> None:
    """Keeps a model from being unloaded to make room for another."""
    _do("pin", f"model {model} is pinned", model=model)


def unpin(model: Annotated[str, typer.Argument(metavar="MODEL", help="A loaded model's name.")]) -> None:
    """Lets a model be unloaded again when there is no room."""
    _do("unpin", f"model {model} is not pinned any more", model=model)


def nodes(
    what: Annotated[str, typer.Argument(metavar="[list]", help="Nothing, or list.")] = "list",
    as_json: common.Json = False,
) -> None:
    """Lists the nodes."""
    if what != "list":
        raise BadRequest(f"nodes has no {what!r}: say llamboctl nodes, or llamboctl nodes list")
    found = look("nodes.json")
    if as_json:
        common.print_json(found)
    elif not found:
        sys.stdout.write("no nodes; `llamboctl spawn` starts one\n")
    else:
        common.print_table(table(found))


def table(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The nodes as rows of text with a heading."""
    rows: list[tuple[str, ...]] = [
        ("ID", "TYPE", "STATE", "MODEL", "SLOTS", "CTX", "PID", "MEMORY", "TOKENS/S", "REQUESTS", "ERRORS", "")
    ]
    for node in found:
        rows.append(
            (
                node["id"],
                node["type"],
                node["state"],
                node["model"],
                f"{node['busy']}/{node['slots']}",
                str(node["ctx"]),
                str(node["pid"] or "-"),
                common.size_text(node["uss_bytes"]) if node["uss_bytes"] else "-",
                f"{node['tokens_per_s']:.0f}",
                str(node["requests"]),
                str(node["errors"]),
                node["reason"] or ("" if node["pid"] else node["address"]),
            )
        )
    return rows


def _do(name: str, done: str, **values: str) -> None:
    command(name, **values)
    sys.stdout.write(f"{done}\n")


def _count(number: int) -> str:
    return f"{number} {'node' if number == 1 else 'nodes'}"


def _tell_nodes(ids: list[str], done: str, *, as_json: bool) -> None:
    if as_json:
        common.print_json(nodes_named(ids))
        return
    shown = ", ".join(ids[:10]) + (", …" if len(ids) > 10 else "")
    sys.stdout.write(f"{_count(len(ids))} {done}: {shown}\n")
