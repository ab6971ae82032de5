"""The daemon: one cluster for this home, with the namespace, the bridge protocol and HTTP in front of it.

Owns the order in which things come up and go away, and that there is only one. What the cluster does is its business.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from llambo.cli import common, serving
from llambo.core.errors import BadRequest, LlamboError, NameInUse, NotFound

if TYPE_CHECKING:
    from llambo.cluster.control import Control
    from llambo.core.config import Config, Settings

app = typer.Typer(**common.APP_OPTIONS)

LOG_NAME = "daemon.log"
_LOCK_NAME = "daemon.lock"
_START_NAME = "daemon.starting"


class RunsAlready(Exception):
    """Another daemon has this home, and has started; `pid` is its process."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid


@app.command()
def daemon(
    ready_fd: Annotated[int, typer.Option(help="Descriptor to report the start to.")],
    launcher: Annotated[str | None, typer.Option(help="What starts nodes.")] = None,
    config: common.ConfigFile = None,
    verbose: common.Verbose = 0,
) -> None:
    """The daemon's process, as `llamboctl init` starts it."""
    try:
        run(config, launcher, serving.Report(ready_fd), verbose=verbose)
    except RunsAlready:  # which the report has told
        common.finish(1)


def run(
    config_file: Path | None, launcher: str | None, report: serving.Report, *, as_json: bool = False, verbose: int = 0
) -> None:
    """Runs the cluster of this home in this process until somebody stops it.

    Raises: `RunsAlready`, `BadConfig`, and whatever keeps the first node from starting; `report` is told too.
    """
    import uvloop

    from llambo.core import config as configuration
    from llambo.core import log, paths

    try:
        loaded = configuration.load(config_file, {"cluster.launcher": launcher})
        with _starting(paths.home()) as started, _only_one(paths.home()):
            log_path = paths.home() / "logs" / LOG_NAME
            log.to_file(log_path, verbose=verbose)
            serving.prepare_process()
            uvloop.run(_serve(loaded, log_path, report, started, as_json=as_json))
    except RunsAlready as error:
        report.failed(NameInUse("a cluster runs for this home already"), runs=error.pid)
        raise
    except LlamboError as error:
        report.failed(error)
        raise


def _open_lock(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LlamboError(f"cannot write {path}: {error.strerror}") from None
    return os.fdopen(descriptor, "r+b", buffering=0)


@contextmanager
def _starting(home: Path) -> Iterator[Callable[[], None]]:
    """Waits while another daemon of this home starts, then starts for the block, or until what it gives is called.

    So of two that are started at once the second one meets a daemon that is ready, or none.
    """
    with _open_lock(home / _START_NAME) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)


def is_starting(home: Path) -> bool:
    """Whether a daemon of this home starts just now."""
    with _open_lock(home / _START_NAME) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def wait_until_started(home: Path) -> None:
    """Returns when no daemon of this home starts any more: it is ready, or it has failed."""
    with _open_lock(home / _START_NAME) as file:
        fcntl.flock(file, fcntl.LOCK_SH)


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Holds this home's lock for the block; the kernel gives it back when the process ends, however that happens.

    Raises: `RunsAlready`, `LlamboError` where the home cannot be written.
    """
    with _open_lock(home / _LOCK_NAME) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read(32).strip()
            raise RunsAlready(int(text) if text.isdigit() else 0) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        yield


async def _serve(
    config: Config, log_path: Path, report: serving.Report, started: Callable[[], None], *, as_json: bool
) -> None:
    from llambo.cli import running
    from llambo.cli.front import Front
    from llambo.cluster import checkpoint
    from llambo.cluster.api import Cluster
    from llambo.core import paths

    settings = config.settings
    async with Cluster(
        settings,
        log_dir=paths.home() / "logs" / "nodes",
        state_path=checkpoint.path_of(settings.state.path, paths.home()),
        on_demand=settings.models.on_demand,
    ) as cluster:
        front = Front(cluster, config, paths.make_private_dir(paths.runtime_dir()))
        serving.stop_on_signals(front)
        work: asyncio.Task[None] | None = None
        try:
            await front.start()
            work = asyncio.create_task(front.serve())
            with running.announced(
                str(front.bridge_path),
                log=log_path,
                drain_timeout_s=settings.bridge.drain_timeout,
                name=running.DAEMON,
                styx=front.styx_addresses[0],
                http=front.http_addresses,
            ):
                problems = await _unless_stopped(_bring_up(cluster, settings, report), work)
                if problems is None:
                    report.failed(LlamboError("the cluster was stopped before it was ready"))
                    return
                facts = {
                    "styx": front.styx_addresses,
                    "bridge": front.bridge_addresses,
                    "http": front.http_addresses,
                    "log": str(log_path),
                    "pid": os.getpid(),
                    "nodes": cluster.cluster_status().nodes.total,
                    "problems": problems,
                }
                serving.settle_memory()
                started()
                _tell_ready(facts, report, as_json=as_json)
                await work
        finally:
            if work is not None:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            await front.close()


async def _unless_stopped(bringing_up: Coroutine[Any, Any, list[str]], work: asyncio.Task[None]) -> list[str] | None:
    """What `bringing_up` gives, or None when a stop is asked for meanwhile."""
    task = asyncio.create_task(bringing_up)
    try:
        await asyncio.wait({task, work}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() and not work.done() else None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _bring_up(cluster: Control, settings: Settings, report: serving.Report) -> list[str]:
    """Restores the checkpoint and sees to the least number of nodes; returns what could not be, in sentences.

    Raises: what spawning raises, where there was nothing to restore.
    """
    problems = await _restore(cluster, settings)
    missing = settings.orchestrator.min_nodes - cluster.cluster_status().nodes.total
    if missing > 0:
        try:
            await cluster.spawn(missing, progress=lambda ready, wanted: report.progress(ready=ready, wanted=wanted))
        except LlamboError as error:
            if not problems:
                raise
            problems.append(error.message)
    return problems


async def _restore(cluster: Control, settings: Settings) -> list[str]:
    from llambo.cluster import checkpoint
    from llambo.core import paths

    try:
        return await cluster.restore_checkpoint()
    except NotFound:
        return []
    except BadRequest as error:
        aside = checkpoint.set_aside(checkpoint.path_of(settings.state.path, paths.home()))
        return [f"{error.message}; it was set aside as {aside.name}, and the cluster starts without it"]


def _tell_ready(facts: dict[str, Any], report: serving.Report, *, as_json: bool) -> None:
    if report.has_reader:
        report.ready(**facts)
    elif as_json:
        common.print_json({"started": True, **facts})
    else:
        sys.stderr.write("".join(f"llamboctl: {problem}\n" for problem in facts["problems"]))
        sys.stdout.write(f"the cluster runs here until Ctrl-C\n{describe(facts)}")
    sys.stdout.flush()


def describe(facts: dict[str, Any]) -> str:
    """Where a cluster listens, for people."""
    lines = [
        f"namespace  {', '.join(facts['styx'])}",
        f"bridge     {', '.join(facts['bridge'])}",
        f"http       {', '.join(facts['http']) or 'off'}",
        f"log        {facts['log']}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The entry point."""
    common.run("llamboctl", app)


if __name__ == "__main__":  # as llamboctl starts it
    main()
