"""What of an answer counts: searches answers for a caller's regular expression, and bounds what that may cost.

Python's matching cannot be interrupted and may take for ever, so it is done in a process of its own (`extract_child`),
which lives for one vote. Knows nothing of votes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from llambo.core.errors import BadRequest, EngineFailed, Overloaded

PATIENCE_S = 30.0
"""How long the process may take for anything, on a machine that has no time for it; it bounds its own work."""
MAX_PROCESSES = 64
"""At once: each takes some 5 MiB, and a question that waits for its voters has one."""
_MAX_LINE_BYTES = 64 * 2**20
_CHILD = Path(__file__).with_name("extract_child.py")


class Extract:
    """One regular expression, for the block; "" gives every text whole, and needs no process.

    Raises, on entering: `BadRequest` for what is no regular expression, `Overloaded` where there are `MAX_PROCESSES`.
    """

    _living: ClassVar[set[Extract]] = set()  # that have a process

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._process: asyncio.subprocess.Process | None = None
        self._is_searching = False

    async def __aenter__(self) -> Self:
        if not self._pattern:
            return self
        if len(self._living) >= MAX_PROCESSES:
            raise Overloaded(f"{MAX_PROCESSES} questions with extract are being answered already; ask again later")
        self._living.add(self)
        try:
            await self._begin()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def of(self, text: str) -> str | None:
        """What the expression finds first in `text`: its first group, or all that it matches; None where it is nowhere.

        Raises: `BadRequest` when the search takes too much time or memory.
        """
        if not self._pattern:
            return text
        found: str | None = (await self._ask(text))["found"]
        return found

    async def _begin(self) -> None:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_CHILD)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                limit=_MAX_LINE_BYTES,
            )
        except OSError as error:
            raise EngineFailed(f"no process could be started to search answers: {error.strerror}") from None
        answer = await self._ask(self._pattern)
        if "error" in answer:
            raise BadRequest(f"extract is no regular expression: {answer['error']}")

    async def _ask(self, text: str) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        self._is_searching = True
        with suppress(TimeoutError, ConnectionError, ValueError):  # ValueError: no line ended within the limit
            async with asyncio.timeout(PATIENCE_S):
                process.stdin.write(json.dumps(text).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise BadRequest("extract takes too much time or memory to search an answer; use fewer nested repetitions")
        self._is_searching = False
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _end(self) -> None:
        self._living.discard(self)
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        # One that has ended already must not be signalled: that takes its status away from who waits for it.
        if self._is_searching and not process.stdout.at_eof():
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()
