"""A running zygote, seen from its launcher: orders go in, events come out.

Owns the child process, its two pipes and its environment. What the events mean is the launcher's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from llambo.core.errors import LlamboError, TimedOut
from llambo.engine import llama

_START_S = 60.0  # an import of a 100 MB library from a cold disk
END_S = 10.0
"""How long a zygote may take to end its nodes and itself (a thousand take 2 s); then it is killed, and they with it."""
ANSWER_S = 5.0
"""How long a zygote may take to carry out an order; one that takes longer is stopped, or has lost its way."""
_GONE_S = 30.0  # the kernel takes this long at most to give back the memory of a killed node

_PASSED_ON = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD"})
_PASSED_ON_PREFIXES = (
    "LC_",
    "PYTHON",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "GGML_",
    "LLAMA_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "HSA_",
    "VK_",
)
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")  # such as LLAMA_API_KEY


def environment(ours: Mapping[str, str], *, wait: str = "auto", is_shared: bool = False) -> dict[str, str]:
    """What nodes get of our environment `ours`: what their libraries look at, and no secret.

    `wait` and `is_shared` as `llama.spin_environment` has them.

    Anybody who can read a node's memory could read the rest there, and a node needs none of it.
    """
    passed_on = {
        name: value
        for name, value in ours.items()
        if (name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)) and not any(word in name for word in _SECRETS)
    }
    return passed_on | llama.spin_environment(ours, wait=wait, is_shared=is_shared)


class ZygoteProcess:
    """A zygote from its start to its end. `on_event` gets each node's event, `on_end` is called once, after the last.

    Made by `start`.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_end: Callable[[ZygoteProcess], None],
    ) -> None:
        self._process = process
        self._on_event = on_event
        self._on_end = on_end
        self._up = asyncio.Event()
        self._broken = ""
        self.has_ended = False
        self._reader = asyncio.create_task(self._read_events(), name=f"events of zygote {process.pid}")

    @classmethod
    async def start(
        cls,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_end: Callable[[ZygoteProcess], None],
        wait: str = "auto",
    ) -> ZygoteProcess:
        """Starts the process; `wait_up` tells when it takes orders. `wait` says how its nodes' idle threads wait.

        Raises: `OSError`.
        """
        # A process group of its own: signals from a terminal reach us alone, and we end it in our own order. Not a
        # session: Linux may share the processor among these first (autogroups), and then a node's niceness counts for
        # nothing against us. uvloop does not know `process_group`.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llambo.node.zygote",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=os.setpgrp,
            env=environment(os.environ, wait=wait, is_shared=llama.machine_is_shared()),
        )
        return cls(process, on_event=on_event, on_end=on_end)

    @property
    def ending(self) -> str:
        """How it ended, as a sentence part; "" while it lives."""
        status = self._process.returncode
        return "" if status is None else exit_reason(status)

    @property
    def status(self) -> int:
        """Its exit status, negative for a signal; 0 while it lives."""
        return self._process.returncode or 0

    async def wait_up(self) -> None:
        """Returns once the engine's library is loaded.

        Raises: `LlamboError` where it cannot be, `TimedOut`.
        """
        try:
            async with asyncio.timeout(_START_S):
                await self._up.wait()
        except TimeoutError:
            self.kill()
            raise TimedOut(f"the engine's library was not loaded within {_START_S:g} s") from None
        if self._broken:
            raise LlamboError(f"the engine cannot be loaded: {self._broken}")

    def order(self, order: dict[str, Any]) -> None:
        """Sends one order; to a zygote that has ended it is lost, as `on_end` tells."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def kill(self) -> None:
        """Ends it at once, and its nodes with it; `on_end` tells when that is done."""
        if self._process.returncode is None:
            self._process.kill()

    async def kill_node(self, pid: int) -> bool:
        """Kills its child `pid` without its help; True once the process is gone.

        False where the system has no means that is sure to hit that child alone.
        """
        import psutil  # noqa: PLC0415 - 20 ms for what hardly ever happens

        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):  # AttributeError: not Linux
            return False
        try:
            # Another process may have got the number only after the child was reaped; it has another parent.
            if psutil.Process(pid).ppid() != self._process.pid:
                return False
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            await _readable(descriptor)
        except (psutil.Error, OSError, TimeoutError):
            return False
        finally:
            os.close(descriptor)
        return True

    async def end(self) -> None:
        """Closes its standard input, at which it ends its nodes and itself; returns when that is done."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:  # it was stopped, perhaps
            self.kill()
        await self._reader

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        broken = "its process ended at once"
        async for line in self._process.stdout:
            event = json.loads(line)
            match event["event"]:
                case "up":
                    broken = ""
                    self._up.set()
                case "broken":
                    broken = event["message"]
                case _:
                    self._on_event(event)
        # The last node has closed its end too: whatever they were, they are gone.
        await self._process.wait()
        self._broken = broken
        self.has_ended = True
        self._up.set()
        self._on_end(self)


async def _readable(descriptor: int) -> None:
    """Returns when there is something to read; a process's descriptor is readable once it has ended.

    Raises: `TimeoutError`.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        async with asyncio.timeout(_GONE_S):
            await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def exit_reason(status: int) -> str:
    """What an exit status means, as a sentence part; negative for a signal, as `subprocess` has it."""
    if status >= 0:
        return f"it ended with status {status}"
    name = ""
    with contextlib.suppress(ValueError):
        name = f" ({signal.Signals(-status).name})"
    return f"it was killed by signal {-status}{name}"
