"""`llamboctl init` and `llamboctl shutdown`: starts and ends the cluster of this home."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llambo.cli import common
from llambo.cli.daemon_client import ask_to_stop, node_progress, the_daemon
from llambo.core.errors import LlamboError

if TYPE_CHECKING:
    from pathlib import Path

_STOP_MARGIN_S = 60.0  # over the drain: a thousand nodes end, sockets close


def register(app: typer.Typer) -> None:
    """Adds the commands to a command line."""
    app.command()(init)
    app.command()(shutdown)


def init(
    launcher: Annotated[str | None, typer.Option(metavar="NAME", help="What starts nodes: local.")] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay here until it is stopped.")] = False,
    config: common.ConfigFile = None,
    as_json: common.Json = False,
) -> None:
    """Starts the cluster of this home: restores the last checkpoint, else starts orchestrator.min_nodes nodes.

    Returns once they are ready and says where the cluster listens. One that runs already is no error.
    """
    from llambo.cli import running

    found = running.find(running.DAEMON)
    if found is not None and _has_started():
        _tell_found(found, as_json=as_json)
    elif foreground:
        _stay(config, launcher, as_json=as_json)
    else:
        _launch(config, launcher, as_json=as_json)


def _has_started() -> bool:
    """Waits for the end of a start that goes on; says whether a daemon runs then."""
    from llambo.cli import daemon, running
    from llambo.core import paths

    if daemon.is_starting(paths.home()):
        with node_progress("waiting for the cluster"):
            daemon.wait_until_started(paths.home())
    return running.find(running.DAEMON) is not None


def _stay(config: Path | None, launcher: str | None, *, as_json: bool) -> None:
    from llambo.cli import daemon, serving

    try:
        # A JSON document for who reads it; a sentence or two else.
        daemon.run(config, launcher, serving.Report(None), as_json=as_json)
    except daemon.RunsAlready as error:
        _tell_lost(error.pid, as_json=as_json)


def _launch(config: Path | None, launcher: str | None, *, as_json: bool) -> None:
    from llambo.cli import daemon, launching

    arguments = []
    for option, value in (("--config", config), ("--launcher", launcher)):
        if value is not None:
            arguments += [option, str(value)]
    try:
        with node_progress("starting nodes") as progress:
            pid, report = launching.launch("llambo.cli.daemon", arguments, what="the cluster", progress=progress)
    except launching.LaunchFailed as failure:
        if "runs" not in failure.fields:
            raise failure.error from None
        _tell_lost(failure.fields["runs"], as_json=as_json)
        return
    for problem in report["problems"]:
        sys.stderr.write(f"llamboctl: {problem}\n")
    if as_json:
        common.print_json({"started": True, **report})
        return
    nodes = report["nodes"]
    sys.stdout.write(f"the cluster runs (pid {pid}) with {nodes} {'node' if nodes == 1 else 'nodes'}\n")
    sys.stdout.write(daemon.describe(report))


def _tell_found(found: Any, *, as_json: bool) -> None:
    from llambo.cli import daemon

    facts = {
        "pid": found.pid,
        "styx": [found.styx],
        "bridge": [f"unix!{found.socket}"],
        "http": found.http,
        "log": found.log,
    }
    if as_json:
        common.print_json({"started": False, **facts})
        return
    sys.stdout.write(f"the cluster runs already (pid {found.pid})\n{daemon.describe(facts)}")


def _tell_lost(pid: int, *, as_json: bool) -> None:
    """Another `init` was faster. Raises: `LlamboError` where its daemon ends already."""
    from llambo.cli import running

    found = running.find(running.DAEMON)
    if found is None:
        raise LlamboError(f"the cluster of this home (pid {pid}) is ending: try again in a moment")
    _tell_found(found, as_json=as_json)


def shutdown() -> None:
    """Stops the cluster: answers in flight finish, then its nodes end; the checkpoint stays for the next init."""
    from llambo.cli import launching

    found = the_daemon()
    ask_to_stop()
    launching.wait_for_end(found.pid, found.drain_timeout_s + _STOP_MARGIN_S, what="the cluster")
    sys.stdout.write("the cluster is stopped\n")
