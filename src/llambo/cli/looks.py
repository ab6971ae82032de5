"""`llamboctl` commands that look at the cluster: status, health, balancer, metrics, checkpoint.

Owns what these commands print.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from llambo.cli import common
from llambo.cli.daemon_client import command, look, read
from llambo.core.errors import BadRequest
from llambo.core.harmless import harmless


def register(app: typer.Typer) -> None:
    """Adds the commands to a command line."""
    for verb in (status, health, balancer, metrics, checkpoint):
        app.command()(verb)


def _status() -> dict[str, Any]:
    facts: dict[str, Any] = look()
    return facts


def status(as_json: common.Json = False) -> None:
    """Shows the whole cluster at a glance."""
    facts = _status()
    if as_json:
        common.print_json(facts)
    else:
        sys.stdout.write("\n".join(status_lines(facts)) + "\n")


def status_lines(facts: dict[str, Any]) -> list[str]:
    """The status for people."""
    nodes, slots, requests = facts["nodes"], facts["slots"], facts["requests"]
    lines = [
        f"cluster   {facts['state']}, up {_span(facts['uptime_s'])} (pid {facts['pid']}, version {facts['version']})",
        f"nodes     {nodes['total']}: {nodes['ready']} ready, {nodes['busy']} busy, {nodes['dead']} dead",
        f"slots     {slots['busy']} of {slots['total']} busy, {facts['queued']} requests waiting",
        f"requests  {requests['total']}: {requests['failed']} failed, {requests['cancelled']} cancelled,"
        f" {requests['failovers']} failovers, {requests['retries']} retries",
        f"tokens    {facts['tokens_per_s']:.0f} per second",
        f"balancer  {facts['strategy']}, launcher {facts['launcher']}",
        f"http      {facts['http'] or 'off'}",
    ]
    for model in facts["models"]:
        default = " (default)" if model["is_default"] else ""
        lines.append(
            f"model     {model['name']}{default}: {model['state']}, {model['busy']} of {model['slots']} slots busy"
        )
    return [harmless(line) for line in (*lines, *(f"problem   {problem}" for problem in facts["problems"]))]


def _span(seconds: float) -> str:
    for unit, scale in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.0f} s"


def health(as_json: common.Json = False) -> None:
    """Says whether every wanted node serves; exits 1 when one does not, and says why."""
    facts = _status()
    is_healthy = facts["state"] != "degraded"
    if as_json:
        common.print_json({"healthy": is_healthy, "state": facts["state"], "problems": facts["problems"]})
    else:
        sys.stdout.write("\n".join([facts["state"], *map(harmless, facts["problems"])]) + "\n")
    if not is_healthy:
        common.finish(1)


def balancer(
    what: Annotated[str, typer.Argument(metavar="[stats]", help="Nothing, or stats.")] = "stats",
    strategy: Annotated[
        str,
        typer.Option(
            metavar="S", help="round-robin, least-loaded, random, cognitive-affinity or prefix-affinity, from now on."
        ),
    ] = "",
    as_json: common.Json = False,
) -> None:
    """Shows how requests are spread, or changes the strategy."""
    if what != "stats":
        raise BadRequest(f"balancer has no {what!r}: say llamboctl balancer stats, or balancer --strategy S")
    if strategy:
        command("balancer", strategy=strategy)
    stats = look()["balancer"]
    if as_json:
        common.print_json(stats)
        return
    sys.stdout.write(f"strategy  {stats['strategy']}\n")
    if strategy:
        return
    sys.stdout.write(
        f"requests  {stats['placed']} placed, {stats['queued']} waiting, {stats['retries']} retries,"
        f" {stats['failovers']} failovers\n"
        f"prefixes  {stats['cached_tokens']} of {stats['prompt_tokens']} prompt tokens were in a cache"
        f" ({stats['hit_ratio']:.0%})\n"
    )
    if stats["by_node"]:
        common.print_table([("NODE", "REQUESTS"), *((node, str(n)) for node, n in stats["by_node"].items())])


def metrics(
    export: Annotated[str, typer.Option(metavar="FORMAT", help="prometheus or json.")] = "prometheus",
) -> None:
    """Prints the live figures."""
    if export not in {"prometheus", "json"}:
        raise BadRequest(f"--export {export}: give prometheus or json")
    text = read("metrics").decode()
    if export == "prometheus":
        sys.stdout.write(text)
        return
    from llambo.cluster.metrics import text_as_json

    common.print_json(text_as_json(text))


def checkpoint(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="Default: where the configuration says.")] = "",
    show: Annotated[bool, typer.Option("--show", help="Print the state as it is now.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Write it, atomically.")] = False,
    restore: Annotated[bool, typer.Option("--restore", help="Bring back what it holds, beside what there is.")] = False,
) -> None:
    """Shows, saves or restores the state of the cluster: models, nodes, strategy."""
    if show + save + restore != 1:
        raise BadRequest("give one of --show, --save and --restore")
    if show:
        if path:
            raise BadRequest("--show prints the state as it is now and takes no path; a file is read with cat")
        import msgspec

        sys.stdout.write(msgspec.json.format(read("checkpoint").strip(), indent=2).decode() + "\n")
        return
    from pathlib import Path

    where = str(Path(path).expanduser().absolute()) if path else ""  # the daemon has a directory of its own
    if save:
        sys.stdout.write("".join(f"{line}\n" for line in command("checkpoint", path=where)))
        return
    command("restore", path=where)
    sys.stdout.write("restored\n")
