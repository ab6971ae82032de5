"""`llama-cpp-bridge`: the bridge protocol in front of a private cluster on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llambo.cli import common
from llambo.core.errors import LlamboError

if TYPE_CHECKING:
    from llambo.bridge.server import BridgeServer
    from llambo.cluster.api import Cluster
    from llambo.core.config import Settings

app = typer.Typer(**common.APP_OPTIONS)

LOG_NAME = "bridge.log"


@app.command()
def bridge(
    socket_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="Unix socket to listen on (also LLAMBO_BRIDGE_SOCKET).")
    ] = None,
    model: Annotated[str, typer.Option(metavar="REF", help="Model to load first; it is the default.")] = "",
    listen: Annotated[
        str | None, typer.Option(metavar="tcp!HOST!PORT", help="Listen on TCP too; needs tokens.")
    ] = None,
    log_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Log file; default: in LLAMBO_HOME.")] = None,
    private: Annotated[bool, typer.Option(help="Do not make it known as the bridge of this home.")] = False,
    ready_fd: Annotated[int | None, typer.Option(hidden=True, help="Descriptor to report the start to.")] = None,
    config: common.ConfigFile = None,
    verbose: common.Verbose = 0,
    no_color: common.NoColor = False,
    version: common.Version = False,
) -> None:
    """Serves llama.cpp models to local programs, until QUIT, SIGTERM or Ctrl-C.

    A stop lets answers in flight finish (bridge.drain_timeout); a second signal ends them at once.
    """
    import uvloop

    from llambo.core import config as configuration
    from llambo.core import log, paths

    # A model file is read in a thread: the loop must not wait five milliseconds, the default, for its turn.
    sys.setswitchinterval(0.001)
    _allow_many_connections()
    report = _Report(ready_fd)
    try:
        flags = {"bridge.socket_path": socket_path, "bridge.listen": listen}
        settings = configuration.load(config, flags).settings
        log_path = log_file or paths.home() / "logs" / LOG_NAME
        log.to_file(log_path, verbose=verbose)
        # An absolute path: it is written down for programs that run elsewhere.
        socket = Path(settings.bridge.socket_path).expanduser().absolute()
        uvloop.run(_serve(settings, socket, model, log_path, report, private=private))
    except LlamboError as error:
        report.failed(error)
        raise


class _Report:
    """Tells whoever started us how the start went: on a descriptor as JSON, else on standard output."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)  # our own children would keep the reader waiting

    def ready(self, addresses: tuple[str, ...], log_path: Path, model: str) -> None:
        """Says where the bridge listens."""
        if self._fd is not None:
            self._write({"addresses": addresses, "log": str(log_path), "model": model})
            return
        loaded = f"; model {model} is loaded" if model else ""
        sys.stdout.write(f"llama-cpp-bridge listens on {', '.join(addresses)}{loaded}; log: {log_path}\n")
        sys.stdout.flush()

    def failed(self, error: LlamboError) -> None:
        """Says why there is no bridge."""
        if self._fd is not None:
            self._write({"code": error.code, "message": error.message})

    def _write(self, fields: dict[str, Any]) -> None:
        import msgspec

        assert self._fd is not None
        with contextlib.suppress(OSError):  # nobody waits for the report any more
            os.write(self._fd, msgspec.json.encode(fields) + b"\n")
            os.close(self._fd)
        self._fd = None


def _allow_many_connections() -> None:
    """Raises the soft limit on open files to the hard one: connections are files."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    settings: Settings, socket_path: Path, model: str, log_path: Path, report: _Report, *, private: bool
) -> None:
    from llambo.bridge.server import BridgeServer
    from llambo.bridge.settings import BridgeSettings
    from llambo.cli import running
    from llambo.cluster.api import Cluster
    from llambo.core import paths
    from llambo.core.tokens import TokenStore

    limits = BridgeSettings(
        max_connections=settings.bridge.max_connections,
        write_timeout_s=settings.bridge.write_timeout,
        drain_timeout_s=settings.bridge.drain_timeout,
    )
    async with Cluster(settings, log_dir=None if private else paths.home() / "logs" / "nodes") as cluster:
        tokens = TokenStore(paths.home() / "tokens.json")
        server = BridgeServer(cluster, socket_path, listen=settings.bridge.listen, tokens=tokens, settings=limits)
        _stop_on_signals(server)
        await server.start()
        serving = asyncio.create_task(server.serve())
        try:
            name = await _load_first(cluster, model, serving)
            if serving.done():  # stopped before it was ready: nobody is told otherwise
                return
            with (
                nullcontext()
                if private
                else running.announced(str(socket_path), log=log_path, drain_timeout_s=settings.bridge.drain_timeout)
            ):
                report.ready(server.addresses, log_path, name)
                await serving
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await server.stop(0)


async def _load_first(cluster: Cluster, model: str, serving: asyncio.Task[None]) -> str:
    """Loads the model named on the command line, if any, and returns its name; a stop meanwhile gives it up."""
    if not model:
        return ""
    loading = asyncio.create_task(cluster.load(model))
    await asyncio.wait({loading, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        loading.cancel()
        return ""
    return loading.result().name


def _stop_on_signals(server: BridgeServer) -> None:
    """The first signal asks for a stop, the next one ends everything that still goes on."""
    loop = asyncio.get_running_loop()
    hurrying: list[asyncio.Task[None]] = []
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            hurrying.append(loop.create_task(server.stop(0)))
        asked = True
        server.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's & want it
            loop.add_signal_handler(number, stop)


def main() -> None:
    """The entry point."""
    common.run("llama-cpp-bridge", app)


if __name__ == "__main__":  # as llamboctl starts it
    main()
