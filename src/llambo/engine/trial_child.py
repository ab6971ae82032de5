"""A process that opens one engine for a trial: what goes wrong in it ends it, and nobody else.

Started by `trial` and by nobody else: `python -m llambo.engine.trial_child JSON`, which holds the fields of
`trial.Setting` and `socket_path`. It says `{"ready": …}` or `{"failed": WHY}` in one line and lives until its standard
input closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from llambo.core.errors import LlamboError
from llambo.engine import backend, llama

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> NoReturn:
    """The process's entry."""
    order = json.loads(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.nice(int(order.pop("niceness")))
    try:
        llama.load_library()
        if directory := order.pop("backend"):
            backend.use(backend.prepare(Path(directory)))
        # Referenced until the process ends: dropping it would stop the engine.
        server = llama.open_server(llama.ServerSetting(**order))
    except (LlamboError, llama.EngineRefused, ImportError, OSError) as error:
        _say(failed=str(error))
        os._exit(1)
    _say(ready=str(server.listening_address))
    sys.stdin.buffer.read()
    os._exit(0)


def _say(**fields: str) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
