"""Which engine each node of a launcher gets, and what follows when one fails or was never measured.

Owns the calibration that runs beside the nodes, at most one at a time and once for each model and shape of node, and
the rule what a crash says about a backend. What to choose is `engine.engines`' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llambo.engine.policy import EngineHome, EnginePolicy, Shape, share_of_threads
from llambo.engine.processor import usable_cores
from llambo.node.spec import NodeSpec

if TYPE_CHECKING:
    from llambo.engine.engines import Engines

log = logging.getLogger("llambo.launch.engine")

CALIBRATION_S = 200.0
"""When a calibration is given up. It takes 5 s; before it comes the self-test of what is untested, and a backend that
hangs is known as one, and set aside, after a minute."""
END_S = 5.0


class NodeEngines:
    """The engines of one launcher's nodes; with `home` None every node has the wheel's own, as it was asked for."""

    def __init__(self, home: EngineHome | None) -> None:
        self._home = home
        self._opened: Engines | None = None  # once something is built
        self._tried: set[tuple[str, object]] = set()
        self._waiting: list[NodeSpec] = []  # for their calibration
        self._calibration: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def policy(self) -> EnginePolicy:
        """What the configuration says."""
        return self._home.policy if self._home is not None else EnginePolicy()

    @property
    def _engines(self) -> Engines | None:
        """What there is to choose from; None where nothing was built."""
        if self._opened is None and self._home is not None and self._home.has_any:
            self._opened = self._home.open()
        return self._opened

    async def complete(self, spec: NodeSpec, *, nodes: int) -> NodeSpec:
        """The spec with what the engine is opened with, for one of `nodes` nodes that share this machine.

        A number of threads that somebody asked for stays.
        """
        if self._home is None:
            return spec
        policy = self.policy
        may_change = spec.threads_by_default or not spec.threads
        if policy.share_cores and may_change:
            spec = dataclasses.replace(spec, threads=share_of_threads(spec.threads, nodes=nodes))
        spec = dataclasses.replace(spec, most_threads=spec.threads or usable_cores())
        engines = self._engines
        if spec.pools or engines is None:
            return dataclasses.replace(spec, flash_attention=policy.flash_attention, numa=policy.numa, cpus=policy.cpus)
        opening = await asyncio.to_thread(
            engines.opening,
            Path(spec.model_path),
            shape=_shape(spec),
            threads=spec.threads,
            batch=spec.batch,
            may_change_threads=may_change,
        )
        return dataclasses.replace(spec, **dataclasses.asdict(opening))

    def blames(self, spec: NodeSpec, status: int) -> bool:
        """Sets the backend of a node aside that ended by itself with this status; whether it was the backend's doing.

        A node that was killed, or that ran out of memory, says nothing about its backend.
        """
        engines = self._engines
        if engines is None or not spec.backend:
            return False
        from llambo.engine.backend import CRASHES  # noqa: PLC0415 - only where something was built

        if -status not in CRASHES:
            return False
        name = signal.Signals(-status).name
        engines.disable(Path(spec.backend), spec.library_sha256, f"a node that used it crashed ({name})")
        return True

    def cannot_load(self, spec: NodeSpec, reason: str, *, lasts: bool) -> None:
        """A zygote or a node could not load a node's backend; where that `lasts`, the backend is set aside."""
        engines = self._engines
        if engines is not None and lasts:
            engines.disable(Path(spec.backend), spec.library_sha256, f"it could not be loaded: {reason}")
        else:
            log.warning("node %s has the wheel's own engine: %s", spec.name, reason)

    def has_served(self, spec: NodeSpec) -> None:
        """A node is ready: where nothing is known of such a node yet, it is measured, in the background."""
        engines = self._engines
        if engines is None or self._is_closed or spec.pools:
            return
        key = (spec.model_path, _shape(spec))
        if key in self._tried:
            return
        self._tried.add(key)
        self._waiting.append(spec)
        if self._calibration is None or self._calibration.done():
            self._calibration = asyncio.create_task(self._calibrate_waiting(engines), name="calibration")

    async def close(self) -> None:
        """Ends a calibration that is in progress, and starts no more."""
        self._is_closed = True
        if self._calibration is not None:
            self._calibration.cancel()
            await asyncio.gather(self._calibration, return_exceptions=True)

    async def _calibrate_waiting(self, engines: Engines) -> None:
        while self._waiting:
            await self._calibrate(engines, self._waiting.pop(0))

    async def _calibrate(self, engines: Engines, spec: NodeSpec) -> None:
        shape = _shape(spec)
        if not await asyncio.to_thread(engines.lacks_choice, Path(spec.model_path), shape):
            return
        order = {"home": str(engines.home), "model": spec.model_path, "shape": dataclasses.asdict(shape)}
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "llambo.engine.calibrate",
                json.dumps(order),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            log.warning("%s could not be measured: %s", spec.model_path, error.strerror)
            return
        try:
            async with asyncio.timeout(CALIBRATION_S):
                assert process.stdout is not None
                said = await process.stdout.read()
            log.info("measured %s (%s): %s", spec.model_path, shape, said.decode(errors="replace").strip() or "nothing")
        except TimeoutError:
            log.warning("measuring %s took longer than %g s and was given up", spec.model_path, CALIBRATION_S)
        finally:
            await asyncio.shield(_end(process))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends a calibration, which ends its engines; by force where it does not listen."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _shape(spec: NodeSpec) -> Shape:
    """The shape that was asked for: a choice may have given the node fewer threads than it may have."""
    return Shape.of(ctx=spec.ctx, slots=spec.slots, threads=spec.most_threads)
