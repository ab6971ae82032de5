"""A benchmark that is told to end in the middle: nothing of it is left, and its status says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bench import ending

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 60.0


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where all that a benchmark makes goes. What was started with it is known by it, whoever its parent is.

    A short path: there are sockets further down.
    """
    with tempfile.TemporaryDirectory(prefix="lb-") as directory:
        yield Path(directory)
        for process in started_with(Path(directory)):
            process.kill()


def started_with(scratch: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(scratch) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def benchmark(part: str, scratch: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench", part], cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


PARTS = {
    "ping": signal.SIGTERM,  # a bridge, and a client that blocks
    "chat-reuse": signal.SIGHUP,  # a cluster in asyncio's loop
    "styx-streams": signal.SIGTERM,  # one in uvloop's, and a reader that is another process
    "gateway-leak": signal.SIGTERM,  # a daemon, which has a session of its own, and a server beside it
}


@pytest.mark.parametrize("part", PARTS)
def test_a_benchmark_that_is_ended_in_the_middle_leaves_nothing_behind(part: str, scratch: Path) -> None:
    with benchmark(part, scratch) as running:
        wait_for(lambda: [*scratch.rglob("*.sock"), *scratch.rglob("styx")] or running.poll(), "nothing was started")
        time.sleep(0.3)  # at whatever it is then: every moment must do
        running.send_signal(PARTS[part])
        running.send_signal(PARTS[part])  # as `timeout` does, which tells the process and then its group
        _, told = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 128 + PARTS[part], told.decode()
    assert b"Traceback" not in told, told.decode()
    wait_for(lambda: not started_with(scratch), "processes are left")
    kept = scratch / "llambo-bench"  # models, made once for all runs
    left = [path for path in scratch.rglob("*") if kept not in (path, *path.parents)]
    assert not left
    assert not [path for path in kept.rglob("*") if path.is_socket() or path.suffix not in ("", ".gguf")]


def test_a_signal_waits_for_what_is_to_be_whole_and_interrupts_then() -> None:
    seen = []
    with pytest.raises(SystemExit) as end, ending.orderly():
        with ending.whole():
            os.kill(os.getpid(), signal.SIGTERM)
            with ending.whole():
                seen.append("begun")
            seen.append("done")
        time.sleep(LIMIT_S)
    assert seen == ["begun", "done"]
    assert end.value.code == 128 + signal.SIGTERM


def test_another_signal_does_not_break_off_the_cleaning_up() -> None:
    seen = []
    with pytest.raises(SystemExit) as end, ending.orderly():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(LIMIT_S)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
            seen.append("cleaned up")
    assert seen == ["cleaned up"]
    assert end.value.code == 128 + signal.SIGHUP


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with ending.orderly():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_of_its_own_goes_through() -> None:
    with pytest.raises(ValueError, match="mine"), ending.orderly():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_process_ends_with_its_block_also_when_that_is_interrupted() -> None:
    asleep = [sys.executable, "-c", "import time; time.sleep(1000)"]
    with pytest.raises(SystemExit), ending.orderly(), ending.process(asleep) as one:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LIMIT_S)
    assert one.returncode == -signal.SIGTERM
    reads = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with ending.process(reads, stdin=subprocess.PIPE) as other:
        assert other.poll() is None
    assert other.returncode == 0
