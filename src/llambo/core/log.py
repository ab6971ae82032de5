"""Where log lines go: a file, in one format. Prompts, answers and secrets are never given to a logger.

Owns the handlers of the "llambo" logger tree; modules only call `logging.getLogger("llambo.…")`.
"""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

from llambo.core.errors import BadConfig

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ROTATE_BYTES = 8 * 2**20
ROTATE_KEEP = 2


def to_file(path: Path, *, verbose: int = 0) -> None:
    """Sends the log to `path`, rotated at 8 MiB with two old files kept; `verbose` >= 1 includes debug lines.

    Raises: `BadConfig` when the file cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=ROTATE_BYTES, backupCount=ROTATE_KEEP, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        raise BadConfig(f"cannot write the log file {path}: {error.strerror}") from None
    _install(handler, logging.DEBUG if verbose else logging.INFO)


def to_stderr(*, verbose: int = 0) -> None:
    """Sends the log to standard error: nothing but faults of our own, with `verbose` 1 information, with 2 all.

    What a command was asked for and failed at is in its error message; a warning beside it would say it twice.
    """
    levels = (logging.ERROR, logging.INFO, logging.DEBUG)
    _install(logging.StreamHandler(), levels[min(verbose, 2)])


def _install(handler: logging.Handler, level: int) -> None:
    handler.setFormatter(logging.Formatter(FORMAT))
    logger = logging.getLogger("llambo")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
