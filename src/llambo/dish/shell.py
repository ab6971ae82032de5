"""dish on a terminal: line editing, history, completion and colours by prompt_toolkit; Ctrl-C ends a command alone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.lexers import Lexer
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from llambo.core.errors import Cancelled
from llambo.core.foreground import Foreground
from llambo.core.tokens import SECRET_PREFIX
from llambo.dish.command import Dish
from llambo.dish.completion import candidates
from llambo.dish.highlighting import STYLE, fragments
from llambo.dish.interpreter import Interpreter
from llambo.dish.jobs import Job
from llambo.dish.terminal import Terminal

PROMPT = "llambo> "


class Shell:
    """Reads lines until the end of input or `exit`, and runs each. `history_path` is where they are kept."""

    def __init__(self, interpreter: Interpreter, terminal: Terminal, history_path: Path) -> None:
        self._interpreter = interpreter
        self._dish = interpreter.dish
        self._terminal = terminal
        self._history = _open_history(history_path)
        self._foreground = Foreground()
        self._ended: list[Job] = []
        self._tellings: set[asyncio.Task[None]] = set()
        self._session: PromptSession[str] = PromptSession(
            history=self._history,
            completer=_Completer(self._dish),
            complete_while_typing=False,
            lexer=_Lexer(self._dish.table.__contains__),
            style=Style.from_dict(STYLE),
            color_depth=None if terminal.has_colour else ColorDepth.DEPTH_1_BIT,
            enable_history_search=True,
        )

    async def run(self) -> int:
        """Runs until the end; returns the status to exit with."""
        dish = self._dish
        dish.history.extend(reversed(list(self._history.load_history_strings())))
        dish.jobs.ended = self._job_ended
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._foreground.interrupt)
        while dish.exit_status is None:
            await self._tell_of_jobs()
            self._terminal.end_line()
            try:
                line = await self._session.prompt_async(
                    [("class:ps1", PROMPT)], set_exception_handler=False, handle_sigint=False
                )
            except KeyboardInterrupt:  # Ctrl-C drops the line
                continue
            except EOFError:
                return 0
            if line.strip():
                if SECRET_PREFIX not in line:
                    dish.history.append(line)
                await self._run_line(line)
        return dish.exit_status

    async def _run_line(self, line: str) -> None:
        if not await self._foreground.run(self._interpreter.line(line)):
            self._dish.status = Cancelled.exit_status
            self._terminal.end_line()

    def _job_ended(self, job: Job) -> None:
        self._ended.append(job)
        if self._session.app.is_running:
            telling = asyncio.get_running_loop().create_task(self._tell_above_prompt())
            self._tellings.add(telling)
            telling.add_done_callback(self._tellings.discard)

    async def _tell_above_prompt(self) -> None:
        async with in_terminal():
            await self._tell_of_jobs()

    async def _tell_of_jobs(self) -> None:
        """Shows which jobs have ended, and what each wrote."""
        while self._ended:
            job = self._ended.pop(0)
            if job.number in self._dish.jobs.by_number:
                self._dish.jobs.forget(job)
                await self._terminal.write(f"{job}\n".encode() + job.out.take())
                self._terminal.end_line()


class _Completer(Completer):
    """Completion of what a line ends in."""

    def __init__(self, dish: Dish) -> None:
        self._dish = dish

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> list[Completion]:
        """None: they are only found by asking servers."""
        return []

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Those of the text before the cursor."""
        text = document.text_before_cursor
        for found in await candidates(self._dish, text):
            yield Completion(found.text, found.start - len(text), display=found.shown)


class _Lexer(Lexer):
    """The colours of lines."""

    def __init__(self, is_command: Callable[[str], bool]) -> None:
        self._is_command = is_command

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        """The colours of line N."""
        return lambda number: list(fragments(document.lines[number], self._is_command))


class _History(FileHistory):
    """Lines kept in a file; none that holds a token, and a full disk only means that they are not kept."""

    def store_string(self, string: str) -> None:
        """Adds a line."""
        if SECRET_PREFIX not in string:
            with contextlib.suppress(OSError):
                super().store_string(string)


def _open_history(path: Path) -> History:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return _History(str(path))
