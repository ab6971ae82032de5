"""A calibration in a process of its own: tests what is untested, measures, remembers, and says what came out.

`python -m llambo.engine.calibrate JSON`, started by a launcher after the first load of a model: the node that serves
does not wait for it, and it is over in seconds. One line of JSON on standard output tells the result. It ends when its
standard input closes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from llambo.core.errors import LlamboError
from llambo.engine import backend_store, backend_trust, choices, measure
from llambo.engine.backend_store import Built, State
from llambo.engine.choices import Choice
from llambo.engine.engines import Engines
from llambo.engine.policy import Shape
from llambo.engine.processor import this_machine

NICENESS = 15
"""Behind the node that serves meanwhile."""


def trusted_backends(engines: Engines, *, niceness: int = 0) -> list[Built]:
    """The backends that may be used here; those that were never tested on this machine are tested now.

    Raises: `LlamboError`, `OSError`.
    """
    reference = backend_trust.Reference(niceness=niceness)
    for built in engines.built():
        if built.state is State.UNTESTED:
            backend_trust.self_test(built, machine=this_machine(), reference=reference, niceness=niceness)
    return [one for one in engines.built() if one.state is State.TRUSTED]


def calibrate_and_remember(
    engines: Engines,
    model_path: Path,
    shape: Shape,
    *,
    limit_s: float = measure.QUICK_S,
    thorough: bool = False,
    niceness: int = 0,
    progress: measure.Progress | None = None,
) -> Choice:
    """Measures and remembers how to open that model in a node of that shape.

    Raises: `NotMeasured`, `BadModel`, `LlamboError`, `OSError`.
    """
    backends = trusted_backends(engines, niceness=niceness)
    choice = measure.calibrate(
        model_path, shape, backends, limit_s=limit_s, thorough=thorough, niceness=niceness, progress=progress
    )
    choice = replace(choice, compared=backend_store.name_of_all(backends))
    engines.choices().remember(choices.fingerprint(model_path), model_path.name, shape, choice)
    return choice


def main() -> int:
    """The process's entry."""
    order = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        engines = Engines(Path(order["home"]))
        choice = calibrate_and_remember(engines, Path(order["model"]), Shape(**order["shape"]), niceness=NICENESS)
    except (LlamboError, OSError) as error:
        print(json.dumps({"problem": str(error)}))
        return 1
    print(json.dumps(asdict(choice)))
    return 0


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):  # not `sys.stdin`, whose lock the interpreter wants when it ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one, as from `_end_with_parent`, would break off the cleaning up
    raise SystemExit(1)  # so that what is open is closed and removed on the way out


if __name__ == "__main__":
    raise SystemExit(main())
