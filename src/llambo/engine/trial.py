"""An engine opened for a trial in a process of its own, and what can be asked of it.

Owns that process, its directory and its socket. What the answers mean is said elsewhere: `backend_trust` compares
them, `measure` times them. Blocking; every wait is bounded.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llambo.core.errors import LlamboError
from llambo.engine import backend, llama

PREFIX = "llambo-trial-"
"""Begins the names of the directories of trials, among the system's temporary files."""
YOUNG_S = 60.0
"""A directory that was made so lately may not have its lock yet."""
START_S = 120.0
END_S = 5.0
_LOG_TAIL_BYTES = 400
_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED of linux/posix-timers.h: the clock of a process, by its id


class TrialFailed(LlamboError):
    """The engine did not open, ended in the middle, or answered with an error; the message says which."""


class TrialLate(TrialFailed):
    """It took longer than it was given."""


class TrialKilled(TrialFailed):
    """Somebody else ended its process: that says nothing about what was tried."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How an engine is opened. `backend` is a directory of the store ("": the wheel's own); `ctx` is tokens a slot."""

    model_path: str
    backend: str = ""
    ctx: int = 512
    slots: int = 1
    threads: int = 1
    batch: int = 512
    flash_attention: str = "auto"
    gpu_layers: int = 0
    numa: str = ""


class Trial:
    """An open engine; `with Trial(setting) as trial` ends it. `niceness` is its process's.

    Raises: `TrialFailed`, `TrialLate` where it is not open within `timeout_s`.
    """

    def __init__(self, setting: Setting, *, timeout_s: float = START_S, niceness: int = 0) -> None:
        self.setting = setting
        self._process: subprocess.Popen[bytes] | None = None
        clear_left()
        self._directory = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = -1
        try:
            self._lock = _locked(self._directory)
            self._socket = str(self._directory / "t.sock")
            self._log = self._directory / "log"
            self._process = self._start(niceness)
            self._wait_ready(self._process, time.monotonic() + timeout_s)
        except BaseException:
            self.close()
            raise

    def _start(self, niceness: int) -> subprocess.Popen[bytes]:
        order = asdict(self.setting) | {
            "socket_path": self._socket,
            "cache_mib": 0,
            "slots_path": str(self._directory),
            "niceness": niceness,
        }
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "llambo.engine.trial_child", json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **llama.spin_environment(os.environ)},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and removes its directory; may be called again."""
        process = self._process
        if process is not None:
            self._kill()
            process.wait(END_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def complete(
        self, prompt: str | list[int], tokens: int, *, timeout_s: float = START_S, **more: Any
    ) -> dict[str, Any]:
        """Greedy `/completion` of exactly `tokens` tokens, nothing reused; `more` are fields of llama-server's request.

        Raises: `TrialFailed`, `TrialLate`.
        """
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        return self._post("/completion", body | more, timeout_s)

    def complete_together(
        self, prompts: Sequence[str | list[int]], tokens: int, *, timeout_s: float = START_S, **more: Any
    ) -> list[dict[str, Any]]:
        """As many completions at the same time as there are prompts. Raises: as `complete`."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            try:
                return list(
                    pool.map(lambda prompt: self.complete(prompt, tokens, timeout_s=timeout_s, **more), prompts)
                )
            except BaseException:  # whoever is told to end does not wait for answers that nobody wants any more
                self._kill()
                raise

    def processor_s(self) -> float:
        """Processor time that its threads have used so far, in seconds; 0 where the system does not tell."""
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                return time.clock_gettime(~self._pid << 3 | _PROCESS_CLOCK)
        return 0.0

    def private_bytes(self) -> int:
        """Memory that no other process could share with it; 0 where the system does not tell."""
        import psutil  # noqa: PLC0415 - 20 ms

        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(self._pid).memory_full_info().uss)
        return 0

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _wait_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        assert process.stdout is not None
        left = max(0.0, deadline - time.monotonic())
        if not select.select([process.stdout], [], [], left)[0]:
            raise TrialLate("the engine was not open in time")
        line = process.stdout.readline()
        try:
            said = dict(json.loads(line)) if line else {}
        except (ValueError, TypeError):
            raise TrialFailed(f"the engine says {line[:_LOG_TAIL_BYTES]!r} in place of being ready") from None
        if "failed" in said:
            raise TrialFailed(str(said["failed"]))
        if "ready" not in said:
            raise self._ending()

    def _ending(self) -> TrialFailed:
        """How the process ended."""
        assert self._process is not None
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return TrialFailed("the engine does not answer")
        tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip().replace("\n", " | ")
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        kind = TrialKilled if status < 0 and -status not in backend.CRASHES else TrialFailed
        return kind(f"the engine {how}{f': {tail}' if tail else ''}")

    def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            return post(self._socket, path, body, timeout_s=timeout_s)
        except ConnectionError:
            raise self._ending() from None


def clear_left() -> None:
    """Removes the directories of trials whose processes were killed, and so could not do it."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, or just going
            facts = left.lstat()
            if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < YOUNG_S:
                continue
            lock = _locked(left)
            try:
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(directory: Path) -> int:
    """A descriptor that holds the directory's lock until it is closed; the kernel closes it for a killed process.

    Raises: `OSError` where another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def post(socket_path: str, path: str, body: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """What a llama-server on a Unix socket answers to a JSON body.

    Raises: `ConnectionError` where nobody answers, `TrialLate`, `TrialFailed` for an answer that is an error.
    """
    connection = _UnixConnection(socket_path, timeout_s)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
    except TimeoutError:
        raise TrialLate(f"the engine gave no answer within {timeout_s:.1f} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConnectionError(str(error)) from None
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise TrialFailed(f"the engine answers {response.status}: {json.dumps(answer)[:_LOG_TAIL_BYTES]}")
    return dict(answer)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connects to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)
