"""Nodes as processes: what the launcher promises, with real nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from llambo.cluster.launch.base import NodeRequest
from llambo.cluster.launch.local import LOGS_KEPT, RUN_PREFIX, LocalLauncher, prune_logs, sweep
from llambo.core.errors import BadModel, LlamboError, TimedOut
from llambo.core.types import LoadOptions

SMALL = LoadOptions(ctx=128, slots=1, threads=1)


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path / "run")
    yield launcher
    await launcher.close()
    assert not list((tmp_path / "run").glob("*")), "the run directory stays clean"


def request_for(model: Path, name: str = "n1") -> NodeRequest:
    return NodeRequest(name, str(model), SMALL)


async def test_a_spawned_node_serves_on_a_socket_in_a_directory_of_its_own(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    assert Path(node.socket_path).is_socket()
    assert Path(node.socket_path).parent.stat().st_mode & 0o777 == 0o700
    assert os.getpgid(node.pid) == node.pid  # a process group per node


async def test_terminate_returns_when_the_process_and_its_directory_are_gone(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    await launcher.terminate("n1")
    assert not psutil.pid_exists(node.pid)
    assert not Path(node.socket_path).parent.exists()
    await launcher.terminate("n1")  # once more is no error


async def test_a_killed_node_is_reported_with_its_signal(launcher: LocalLauncher, tiny_model: Path) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    os.kill(node.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        exited = await anext(launcher.watch())
    assert (exited.name, exited.pid) == ("n1", node.pid)
    assert exited.reason == "it was killed by signal 9 (SIGKILL)"


async def test_a_killed_zygote_takes_its_nodes_along_and_the_next_spawn_has_another(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    zygote = psutil.Process(node.pid).parent()
    assert zygote is not None
    zygote.kill()
    async with asyncio.timeout(10):
        assert (await anext(launcher.watch())).name == "n1"
    again = await launcher.spawn(request_for(tiny_model, "n2"), timeout_s=30)
    assert psutil.pid_exists(again.pid)


async def test_a_model_that_llama_cpp_refuses_is_an_error_with_its_last_words(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(BadModel, match=r"llama.cpp refused it; its log ends with: .*failed to load model"):
        await launcher.spawn(request_for(broken), timeout_s=30)
    assert not psutil.Process().children(recursive=True)[1:], "only the zygote lives"


async def test_a_node_that_is_not_ready_in_time_is_ended(launcher: LocalLauncher, tiny_model: Path) -> None:
    with pytest.raises(TimedOut, match="was not loaded within 0 s"):
        await launcher.spawn(request_for(tiny_model), timeout_s=0)
    assert not psutil.Process().children(recursive=True)[1:]


async def test_a_cancelled_spawn_leaves_no_node(launcher: LocalLauncher, tiny_model: Path) -> None:
    await launcher.spawn(request_for(tiny_model, "n0"), timeout_s=30)
    before = set(psutil.Process().children(recursive=True))
    spawning = asyncio.create_task(launcher.spawn(request_for(tiny_model), timeout_s=30))
    while set(psutil.Process().children(recursive=True)) == before:
        await asyncio.sleep(0)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert set(psutil.Process().children(recursive=True)) == before


async def test_many_nodes_start_at_once(launcher: LocalLauncher, tiny_model: Path) -> None:
    nodes = await asyncio.gather(*(launcher.spawn(request_for(tiny_model, f"n{i}"), timeout_s=60) for i in range(12)))
    assert len({node.pid for node in nodes}) == 12


async def test_nodes_log_to_files_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "run", log_dir=tmp_path / "logs")
    try:
        await launcher.spawn(request_for(tiny_model), timeout_s=30)
        assert (tmp_path / "logs" / f"{os.getpid()}-n1.log").exists()
    finally:
        await launcher.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_node_outlives_the_process_that_launched_it(number: int, tiny_model: Path, tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import asyncio, pathlib
        from llambo.cluster.launch.base import NodeRequest
        from llambo.cluster.launch.local import LocalLauncher
        from llambo.core.types import LoadOptions
        async def main():
            launcher = LocalLauncher(pathlib.Path({str(tmp_path / "run")!r}))
            node = await launcher.spawn(
                NodeRequest("n1", {str(tiny_model)!r}, LoadOptions(ctx=128, slots=1)), timeout_s=60)
            print(node.pid, flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        node = psutil.Process(int(parent.stdout.readline()))
        zygote = node.parent()
        assert zygote is not None
        parent.send_signal(number)
    _, alive = psutil.wait_procs([node, zygote], timeout=10)
    assert not alive
    sweep(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*")), "the next start removes what a killed one had to leave"


async def test_sweeping_spares_the_directories_of_living_launchers(
    launcher: LocalLauncher, tiny_model: Path, tmp_path: Path
) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    left = tmp_path / "run" / f"{RUN_PREFIX}left"
    left.mkdir()
    sweep(tmp_path / "run")
    assert Path(node.socket_path).exists()
    assert not left.exists()


async def test_a_process_that_cannot_be_made_is_told_and_the_others_go_on(
    launcher: LocalLauncher, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The system refuses the second fork; Python reads this module at the zygote's start.
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import errno, itertools, os
            real, calls = os.fork, itertools.count(1)
            def fork():
                if next(calls) == 2:
                    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                return real()
            os.fork = fork
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    with pytest.raises(LlamboError, match="the system makes no process for it: Resource temporarily unavailable"):
        await launcher.spawn(request_for(tiny_model, "n2"), timeout_s=30)
    await launcher.spawn(request_for(tiny_model, "n3"), timeout_s=30)
    assert psutil.pid_exists(node.pid)


async def test_a_place_for_logs_that_is_none_is_told(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    launcher = LocalLauncher(tmp_path / "run", log_dir=tmp_path / "logs")
    with pytest.raises(LlamboError, match="logs is in the way"):
        await launcher.spawn(request_for(tiny_model), timeout_s=30)
    await launcher.close()


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    for number in range(LOGS_KEPT + 10):
        path = tmp_path / f"1-n{number}.log"
        path.touch()
        os.utime(path, (number, number))
    prune_logs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"1-n{i}.log" for i in range(10, LOGS_KEPT + 10)}
