"""What a node does: locks itself in, opens its engine, says so, and lives until it is ended or its parent is gone.

Runs in a freshly forked child of the zygote. It handles no signals: SIGTERM ends it at once, since whoever sends one
has drained it before, and the launcher owns (and removes) its directory.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from llambo.core.errors import LlamboError
from llambo.engine import llama
from llambo.engine.references import PART
from llambo.node import sandbox
from llambo.node.spec import LINE_MAX, NodeSpec

if TYPE_CHECKING:
    from llambo.engine.backend import Prepared

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def say(events_fd: int, **fields: object) -> None:
    """Writes one event line in one atomic write; an over-long message is cut."""
    line = json.dumps(fields).encode() + b"\n"
    if len(line) > LINE_MAX:
        fields["message"] = str(fields.get("message", ""))[: LINE_MAX // 8]
        line = json.dumps(fields).encode() + b"\n"
    os.write(events_fd, line)


def run(
    spec: NodeSpec, *, events_fd: int, lifeline_fd: int, parent_pid: int, prepared: Prepared | None = None
) -> NoReturn:
    """Becomes the node; never returns. `lifeline_fd` reads end-of-file when the zygote is gone.

    `prepared` is the CPU backend to compute with (None: the wheel's own).
    """
    _die_with(parent_pid)
    os.setpgid(0, 0)  # a terminal's Ctrl-C is for whoever started us, not for us
    os.nice(spec.niceness)  # before there are threads: in Linux each has its own
    os.chdir(spec.directory)
    Path(spec.slots_path).mkdir(mode=0o700)
    _redirect_output(spec.log_path)
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)  # inherited by every thread of the engine
    if prepared is not None:
        from llambo.engine import backend  # noqa: PLC0415 - the zygote has imported it, where something was built

        try:
            backend.use(prepared)
        except LlamboError as error:
            say(events_fd, event="unbacked", name=spec.name, message=error.message, lasts=True)
            prepared = None
    # Before the engine has threads, and after everything was opened that lies elsewhere.
    enforced = sandbox.enforce(reads=model_files(spec.model_path), directory=spec.directory)
    try:
        # Referenced until the process ends: dropping it would stop the engine.
        server = llama.open_server(_setting(spec))
    except llama.EngineRefused as error:
        say(events_fd, event="refused", name=spec.name, message=str(error))
        os._exit(1)
    address = str(server.listening_address)
    used = prepared.name if prepared is not None else ""
    say(events_fd, event="ready", name=spec.name, pid=os.getpid(), address=address, sandbox=enforced, backend=used)
    os.close(events_fd)
    os.read(lifeline_fd, 1)
    os._exit(0)


def _setting(spec: NodeSpec) -> llama.ServerSetting:
    return llama.ServerSetting(
        model_path=spec.model_path,
        socket_path=spec.socket_path,
        slots_path=spec.slots_path,
        ctx=spec.ctx,
        slots=spec.slots,
        threads=spec.threads,
        gpu_layers=spec.gpu_layers,
        batch=spec.batch,
        cache_mib=spec.cache_mib,
        embedding=spec.embedding,
        reranking=spec.reranking,
        alias=spec.alias,
        flash_attention=spec.flash_attention,
        numa=spec.numa,
    )


def model_files(model_path: str) -> list[str]:
    """The model's file, and every part where its name says that it is split."""
    path = Path(model_path)
    match = PART.fullmatch(path.name)
    if match is None:
        return [model_path]
    return [str(part) for part in path.parent.iterdir() if _is_part_of(match["stem"], match["count"], part.name)]


def _is_part_of(stem: str, count: str, name: str) -> bool:
    match = PART.fullmatch(name)
    return match is not None and (match["stem"], match["count"]) == (stem, count)


def _die_with(parent_pid: int) -> None:
    """Asks the kernel (Linux) to kill this process when its parent ends; elsewhere the lifeline alone tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it ended before the request was in force
            os._exit(1)


def _redirect_output(log_path: str) -> None:
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
