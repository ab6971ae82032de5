"""`llama-cpp-bridge`: the bridge protocol in front of a private cluster on this machine."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llambo.cli import common, serving
from llambo.core.errors import LlamboError

if TYPE_CHECKING:
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

    serving.prepare_process()
    report = serving.Report(ready_fd)
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


def _say(addresses: tuple[str, ...], log_path: Path, model: str) -> None:
    loaded = f"; model {model} is loaded" if model else ""
    sys.stdout.write(f"llama-cpp-bridge listens on {', '.join(addresses)}{loaded}; log: {log_path}\n")
    sys.stdout.flush()


async def _serve(
    settings: Settings, socket_path: Path, model: str, log_path: Path, report: serving.Report, *, private: bool
) -> None:
    from llambo.bridge.server import BridgeServer
    from llambo.cli import running
    from llambo.cluster.api import Cluster
    from llambo.core import paths
    from llambo.core.tokens import TokenStore

    limits = serving.bridge_settings(settings)
    async with Cluster(settings, log_dir=None if private else paths.home() / "logs" / "nodes") as cluster:
        tokens = TokenStore(paths.home() / "tokens.json")
        server = BridgeServer(cluster, socket_path, listen=settings.bridge.listen, tokens=tokens, settings=limits)
        serving.stop_on_signals(server)
        await server.start()
        work = asyncio.create_task(server.serve())
        try:
            name = await _load_first(cluster, model, work)
            if work.done():  # stopped before it was ready: nobody is told otherwise
                return
            with (
                nullcontext()
                if private
                else running.announced(str(socket_path), log=log_path, drain_timeout_s=settings.bridge.drain_timeout)
            ):
                if report.has_reader:
                    report.ready(addresses=server.addresses, log=str(log_path), model=name)
                else:
                    _say(server.addresses, log_path, name)
                await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await server.stop(0)


async def _load_first(cluster: Cluster, model: str, work: asyncio.Task[None]) -> str:
    """Loads the model named on the command line, if any, and returns its name; a stop meanwhile gives it up."""
    if not model:
        return ""
    loading = asyncio.create_task(cluster.load(model))
    await asyncio.wait({loading, work}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        loading.cancel()
        return ""
    return loading.result().name


def main() -> None:
    """The entry point."""
    common.run("llama-cpp-bridge", app)


if __name__ == "__main__":  # as llamboctl starts it
    main()
