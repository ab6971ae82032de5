"""`llamboctl bridge`: starts, stops, shows and tests the bridge of this home."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llambo.cli import common, launching
from llambo.cli.daemon_client import LOOK_TIMEOUT_S
from llambo.core.errors import LlamboError, Unreachable

if TYPE_CHECKING:
    from llambo.bridge.client import Bridge
    from llambo.cli import running

app = typer.Typer(no_args_is_help=True, help="The bridge of this home: a Unix-socket service in front of llama.cpp.")


def _the_running() -> running.Running:
    from llambo.cli import running

    found = running.find()
    if found is not None:
        return found
    cluster = running.find(running.DAEMON)
    if cluster is not None:
        raise Unreachable(f"no bridge runs alone for this home; its cluster speaks the protocol on {cluster.socket}")
    raise Unreachable("no bridge runs for this home; start one with: llamboctl bridge start")


@app.command()
def start(
    model: Annotated[str | None, typer.Option(metavar="REF", help="Model to load; default: models.default.")] = None,
    socket_path: Annotated[str | None, typer.Option(metavar="PATH", help="Unix socket to listen on.")] = None,
    listen: Annotated[str | None, typer.Option(metavar="tcp!HOST!PORT", help="Listen on TCP too.")] = None,
    config: common.ConfigFile = None,
    as_json: common.Json = False,
) -> None:
    """Starts a bridge in the background and returns once its model is loaded."""
    from llambo.cli import running
    from llambo.core import config as configuration

    found = running.find()
    if found is not None:
        _tell({"socket": found.socket, "pid": found.pid, "log": found.log, "started": False}, as_json=as_json)
        return
    settings = configuration.load(config).settings
    arguments = ["--model", settings.models.default if model is None else model]
    for option, value in (("--socket-path", socket_path), ("--listen", listen), ("--config", config)):
        if value is not None:
            arguments += [option, str(value)]
    pid, report = _launch(arguments)
    socket = report["addresses"][0].removeprefix("unix!")
    _tell({"socket": socket, "pid": pid, "log": report["log"], "started": True}, as_json=as_json)


def _launch(arguments: list[str]) -> tuple[int, dict[str, Any]]:
    """Starts the bridge's process and waits for its report.

    Raises: the error that the bridge reported.
    """
    try:
        return launching.launch("llambo.cli.bridge", arguments, what="the bridge")
    except launching.LaunchFailed as failure:
        raise failure.error from None


def _tell(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        common.print_json(facts)
        return
    state = "listens" if facts["started"] else "runs already"
    sys.stdout.write(f"bridge {state} on {facts['socket']} (pid {facts['pid']}); log: {facts['log']}\n")


@app.command()
def stop() -> None:
    """Stops the bridge: answers in flight finish, then its nodes end and its memory is free."""
    found = _the_running()
    launching.end(found.pid, found.drain_timeout_s + launching.STOP_MARGIN_S, what="the bridge")
    sys.stdout.write("bridge stopped\n")


@app.command()
def status(as_json: common.Json = False) -> None:
    """Shows what the bridge has loaded and done."""
    from llambo.bridge.client import Bridge

    found = _the_running()
    with Bridge.connect(found.socket, timeout_s=LOOK_TIMEOUT_S) as bridge:
        facts = bridge.get_status()
    if as_json:
        common.print_json({**facts, "socket": found.socket, "pid": found.pid, "log": found.log})
        return
    sys.stdout.write(f"bridge on {found.socket} (pid {found.pid}), up {facts['uptime_s']:.0f} s\n")
    for model in facts["models"]:
        busy = f"{model['busy']} of {model['slots']} slots busy"
        sys.stdout.write(f"model {model['name']}: {model['state']}, {busy}, context {model['ctx']}, {model['path']}\n")
    totals = ", ".join(f"{facts[key]} {key}" for key in ("requests", "tokens", "errors"))
    sys.stdout.write(f"{totals}; {facts['rss_bytes'] / 2**20:.0f} MiB resident\n")


@app.command()
def test(
    model: Annotated[str | None, typer.Argument(metavar="[REF]", help="Model to test with.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Check a streamed answer, token by token.")] = False,
    ffi: Annotated[bool, typer.Option("--ffi", help="Check the engine's library and the plain calls.")] = False,
) -> None:
    """Loads a model into a private bridge, on a socket of its own, and checks that it answers."""
    import tempfile

    from llambo.bridge.client import Bridge
    from llambo.core import config as configuration

    ref = model or configuration.load().settings.models.default
    with tempfile.TemporaryDirectory(prefix="llambo-") as directory:
        socket = str(Path(directory) / "bridge.sock")
        pid, _ = _launch(
            ["--model", ref, "--socket-path", socket, "--log-file", f"{directory}/bridge.log", "--private"]
        )
        try:
            with Bridge.connect(socket) as bridge:
                if ffi or not streaming:
                    _check_calls(bridge)
                if streaming or not ffi:
                    _check_stream(bridge)
        finally:
            launching.end(pid, launching.STOP_MARGIN_S, what="the bridge")
    sys.stdout.write(f"all checks passed with {ref}\n")


def _report(check: str, seen: str) -> None:
    sys.stdout.write(f"ok  {check}: {seen}\n")
    sys.stdout.flush()


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise LlamboError(f"check failed: {complaint}")


def _check_calls(bridge: Bridge) -> None:
    bridge.ping()
    _report("ping", "pong")
    ids = bridge.tokenize("What is a node?")
    _require(len(ids) > 0, "TOKENIZE gave no tokens")
    _report("tokenize", f"{len(ids)} tokens")
    first, second = (bridge.infer("What is a node?", max_tokens=32, temperature=0) for _ in range(2))
    _require(first != "" and first == second, f"greedy answers differ: {first!r} and {second!r}")
    _report("infer", repr(first))


def _check_stream(bridge: Bridge) -> None:
    import time

    started = time.perf_counter()
    arrivals: list[float] = []
    text = ""
    for token in bridge.stream("What is a node?", max_tokens=32, temperature=0):
        arrivals.append(time.perf_counter() - started)
        text += token.text
    whole = bridge.infer("What is a node?", max_tokens=32, temperature=0)
    _require(text == whole, f"streamed {text!r} is not the whole answer {whole!r}")
    first, last = arrivals[0] * 1e3, arrivals[-1] * 1e3
    _report("stream", f"{len(arrivals)} events, the first after {first:.1f} ms, the last after {last:.1f} ms")
