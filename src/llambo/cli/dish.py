"""`dish`: the shell of a cluster, on the running one of this home, or on a private one that ends with it.

Puts a file tree (the daemon's, or a namespace served to this process alone) and the shell together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llambo.cli import common
from llambo.core.errors import BadRequest, Unreachable

if TYPE_CHECKING:
    from llambo.core.config import Config
    from llambo.dish.command import Dish
    from llambo.dish.interpreter import Interpreter
    from llambo.dish.servers import Server
    from llambo.dish.terminal import Terminal

app = typer.Typer(**common.APP_OPTIONS)

HISTORY = "dish_history"
_PRIVATE_SOCKET = "styx.sock"
_PIECE_BYTES = 64 << 10


@app.command()
def dish(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A script: one command a line.")] = None,
    command: Annotated[str | None, typer.Option("-c", metavar="COMMAND", help="Run this and exit.")] = None,
    config: common.ConfigFile = None,
    verbose: common.Verbose = 0,
    no_color: common.NoColor = False,
    version: common.Version = False,
) -> None:
    """A shell for the cluster and its files; `help` in it lists the commands.

    Talks to the cluster that runs for this home; with none it starts a private one and takes it down again.
    """
    from llambo.core import config as configuration
    from llambo.core import log

    if file is not None and command is not None:
        raise BadRequest("give either -c COMMAND or a FILE")
    log.to_stderr(verbose=verbose)
    effective = configuration.load(config)
    script = _script(file, command)
    status = 0

    async def main() -> None:
        nonlocal status
        status = await _run(
            effective, script, str(file) if file is not None else "", has_stdin=command is not None or file is not None
        )

    common.run_async(main)
    if status:
        common.finish(status)


def _script(file: Path | None, command: str | None) -> str | None:
    """What is to be run without a terminal; None for a shell on one. Raises: `BadRequest`."""
    if command is not None:
        return command
    try:
        if file is not None:
            return file.read_text("utf-8")
        if sys.stdin is None or not sys.stdin.isatty():
            return _piped_script()
    except OSError as error:
        raise BadRequest(f"cannot read {file or 'standard input'}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"{file or 'standard input'} is not UTF-8 text (byte {error.start})") from None
    if not sys.stdout.isatty():
        raise BadRequest("standard output is no terminal; give -c COMMAND or a FILE")
    return None


def _piped_script() -> str:
    if sys.stdin is None:
        raise BadRequest("standard input is closed; give -c COMMAND or a FILE")
    return sys.stdin.buffer.read().decode()


async def _run(config: Config, script: str | None, name: str, *, has_stdin: bool) -> int:
    """Runs a script, or the shell; returns the status to exit with."""
    from llambo.dish.command import FIRST_CLUSTER
    from llambo.dish.interpreter import Interpreter, new_dish
    from llambo.dish.mounts import Mounts
    from llambo.dish.terminal import Terminal

    draws = common.draws(sys.stdout)
    terminal = Terminal(sys.stdout, shows=draws, has_colour=draws and not os.environ.get("NO_COLOR"))
    mounts = Mounts()
    shell = new_dish(mounts)
    interpreter = Interpreter(shell, terminal, _complaints(terminal, is_shell=script is None))

    def stop() -> None:
        shell.exit_status = 0

    async with _cluster(config, stop) as server:
        mounts.mount(server, FIRST_CLUSTER, str(server))
        try:
            if script is not None:
                shell.stdin = _Stdin() if has_stdin else None
                return await interpreter.script(script, name)
            return await _shell(interpreter, shell, terminal)
        finally:
            await interpreter.close()


async def _shell(interpreter: Interpreter, shell: Dish, terminal: Terminal) -> int:
    from llambo.core import paths
    from llambo.dish.shell import Shell

    return await Shell(interpreter, terminal, paths.home() / HISTORY).run()


def _complaints(terminal: Terminal, *, is_shell: bool) -> Callable[[str], None]:
    """Tells errors on standard error: alone in a shell, with the program's name elsewhere."""

    def complain(text: str) -> None:
        terminal.end_line()
        if is_shell and terminal.has_colour:
            text = f"\x1b[31m{text}\x1b[0m"
        sys.stderr.write(f"{text}\n" if is_shell else f"dish: {text}\n")
        sys.stderr.flush()

    return complain


class _Stdin:
    """Standard input, for the commands of a script."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The pieces as they come."""
        from llambo.core.threads import run_abandonable

        while data := await run_abandonable(lambda: os.read(0, _PIECE_BYTES), name="standard input"):
            yield data


@asynccontextmanager
async def _cluster(config: Config, stop: Callable[[], None]) -> AsyncIterator[Server]:
    """The tree of this home's daemon, or of a private cluster that lives as long as the block.

    `stop` is called when the private cluster is told to shut down.
    """
    from llambo.cli import running
    from llambo.dish.servers import Server

    daemon = running.find(running.DAEMON)
    if daemon is not None and daemon.styx:
        server = Server(daemon.styx)
        try:
            await server.client()
        except Unreachable:
            message = f"the cluster of this home (pid {daemon.pid}) is starting or ending: try again"
            raise Unreachable(message) from None
        yield server
        return
    if common.draws(sys.stderr):
        sys.stderr.write("no cluster runs for this home; starting a private one\n")
    async with _private(config, stop) as address:
        server = Server(address)
        await server.client()
        yield server


@asynccontextmanager
async def _private(config: Config, stop: Callable[[], None]) -> AsyncIterator[str]:
    """A cluster of this process with the default model, served where only this user can reach it."""
    import shutil

    from llambo.cluster.api import Cluster
    from llambo.core import paths
    from llambo.namespace.render import Facts
    from llambo.namespace.server import Namespace
    from llambo.ninep.server import FileServer

    settings = config.settings
    async with Cluster(settings, on_demand=settings.models.on_demand) as cluster:
        await cluster.load(settings.models.default)
        directory = paths.make_short_private_dir(paths.runtime_dir(), "dish-", _PRIVATE_SOCKET)
        address = f"unix!{directory / _PRIVATE_SOCKET}"
        namespace = Namespace(
            cluster,
            cluster,
            cluster,
            home=paths.home(),
            request_stop=stop,
            facts=lambda: Facts(None, (address,), ""),
            config=lambda: "".join(f"{key} = {value}  # {source}\n" for key, value, source in config.entries()),
            idle_s=settings.styx.idle_limit,
            offline=settings.models.offline,
        )
        try:
            async with namespace, FileServer(namespace.attach) as files:
                await files.listen(address)
                yield address
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """The entry point."""
    common.run("dish", app)
