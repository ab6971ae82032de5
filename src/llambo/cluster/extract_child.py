"""The process that searches answers for a caller's regular expression, so that a bad one hangs nobody else.

Run by file name, in Python's isolated mode: it imports the standard library alone and starts in milliseconds. Reads
lines of JSON: the pattern, then texts. Answers a line to each: {"error"} for a pattern that is none, else {"found"},
which is null where it is nowhere. Ends with its standard input, and at the system's hand when a search is too long.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from contextlib import suppress
from typing import Any

SEARCH_CPU_S = 1
MEMORY_BYTES = 256 * 2**20


def _bound_next() -> None:
    """The system ends this process with SIGXCPU when it has computed for so much longer."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + SEARCH_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    if match is None:
        return None
    return next((group for group in match.groups() if group is not None), match.group()).strip()


def _say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Until standard input ends."""
    with suppress(ValueError, OSError):  # some systems cannot bound it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _bound_next()
    try:
        pattern = re.compile(json.loads(sys.stdin.readline()))
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        _say(error=str(error) or "it is too large")
        return
    _say(found=None)
    for line in sys.stdin:
        _bound_next()
        _say(found=_found(pattern, json.loads(line)))


if __name__ == "__main__":
    main()
