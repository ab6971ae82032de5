"""Runs lines and scripts: expands words, joins commands by pipes, opens what is redirected, and tells what fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

from llambo.core.errors import LlamboError
from llambo.core.types import check_unicode
from llambo.dish.asking import Conversations
from llambo.dish.command import OWN, Context, Dish
from llambo.dish.commands import TABLE
from llambo.dish.grammar import Assignment, Pipeline, Prompt, Stage, Statement, parse
from llambo.dish.jobs import Job, Jobs
from llambo.dish.mounts import Mounts
from llambo.dish.own import own_files
from llambo.dish.pipes import Pipe, PipeEnded, Sink, Source, SourceFailed
from llambo.dish.servers import File

Complain = Callable[[str], None]
"""Is told each error, in one sentence."""


class FileSink:
    """An open file as a sink."""

    shows = False

    def __init__(self, file: File) -> None:
        self._file = file

    async def write(self, data: bytes) -> None:
        """Writes `data`: a line of a ctl in one piece."""
        await self._file.write(data)


class FileSource:
    """An open file as a source."""

    def __init__(self, file: File) -> None:
        self._file = file

    async def pieces(self) -> AsyncIterator[bytes]:
        """The pieces, to the end."""
        while piece := await self._file.read():
            yield piece


def new_dish(mounts: Mounts) -> Dish:
    """A shell over `mounts`, with its own files in place."""
    dish = Dish(TABLE, mounts, Jobs(), Conversations(mounts))
    mounts.mount(own_files(dish), OWN, "this shell")
    return dish


class Interpreter:
    """Runs what is typed to `dish`; output goes to `out`."""

    def __init__(self, dish: Dish, out: Sink, complain: Complain) -> None:
        self.dish = dish
        self._out = out
        self._complain = complain

    async def line(self, text: str, where: str = "") -> int:
        """Runs a line; returns its status, 0 or that of the first command that failed, which ends it."""
        dish = self.dish
        status = 0
        try:
            check_unicode("the line", text)
            for statement in parse(text, dish.table.__contains__):
                await self._statement(statement)
                if dish.exit_status is not None:
                    break
        except LlamboError as error:
            self._complain(f"{where}{error.message}")
            status = error.exit_status
        dish.status = status
        return status

    async def script(self, text: str, name: str = "") -> int:
        """Runs lines up to the first that fails, then waits for what runs in the background; returns the status."""
        dish = self.dish
        for number, line in logical_lines(text):
            status = await self.line(line, f"{name}:{number}: " if name else "")
            if dish.exit_status is not None:
                return dish.exit_status
            if status:
                return status
        failed = 0
        for job in list(dish.jobs.by_number.values()):
            failed = failed or await self._await(job, f"{name}: " if name else "")
        return failed

    async def close(self) -> None:
        """Ends jobs and conversations, and takes every mount away."""
        await self.dish.jobs.close()
        await self.dish.conversations.close()
        await self.dish.mounts.close()

    async def _await(self, job: Job, where: str) -> int:
        try:
            await self.dish.jobs.follow(job, self._out)
        except LlamboError as error:
            self._complain(f"{where}%{job.number}: {error.message}")
            return error.exit_status
        return 0

    async def _statement(self, statement: Statement) -> None:
        dish = self.dish
        match statement:
            case Assignment(name, value):
                dish.set_variable(name, value.expand(dish.variables))
            case Prompt(text):
                await dish.conversations.ask(dish.cluster, text, dish.settings(), self._out)
            case Pipeline(_, True, text):
                job = dish.jobs.start(text, lambda out: self._pipeline(statement, out))
                if self._out.shows:
                    await self._out.write(f"%{job.number}\n".encode())
            case Pipeline():
                await self._pipeline(statement, self._out)

    async def _pipeline(self, pipeline: Pipeline, out: Sink) -> None:
        """Runs the commands beside each other; the first that fails ends them all. Raises: its error."""
        if len(pipeline.stages) == 1:
            await self._stage(pipeline.stages[0], None, out)
            return
        pipes = [Pipe() for _ in pipeline.stages[1:]]
        tasks = [
            asyncio.create_task(self._joined(stage, before, after, out), name=stage.name)
            for stage, before, after in zip(pipeline.stages, [None, *pipes], [*pipes, None], strict=True)
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
        for error in errors:
            if not isinstance(error, PipeEnded):
                raise error

    async def _joined(self, stage: Stage, before: Pipe | None, after: Pipe | None, out: Sink) -> None:
        """A command of a pipeline, which ends its pipes when it ends."""
        has_failed = True
        try:
            await self._stage(stage, before, after or out)
            has_failed = False
        except SourceFailed:
            raise
        except PipeEnded:  # nobody reads any more, which is no failure
            has_failed = False
        finally:
            if before is not None:
                before.end_reading()
            if after is not None:
                await after.end(failed=has_failed)

    async def _stage(self, stage: Stage, piped: Source | None, out: Sink) -> None:
        dish = self.dish
        command = dish.table[stage.name]
        words = await self._words(stage, takes_patterns=command.takes_patterns)
        async with AsyncExitStack() as opened:
            for redirection in stage.redirections:
                path = dish.path(redirection.target.expand(dish.variables))
                mode = {"<": "r", ">": "w", ">>": "a"}[redirection.operator]
                file = await opened.enter_async_context(dish.mounts.open(path, mode))
                if mode == "r":
                    piped = FileSource(file)
                else:
                    out = FileSink(file)
            await command.run(Context(dish, command, words, piped, out))

    async def _words(self, stage: Stage, *, takes_patterns: bool) -> tuple[str, ...]:
        dish = self.dish
        words: list[str] = []
        for word in stage.words:
            pattern = word.pattern(dish.variables) if takes_patterns else ""
            found = await dish.mounts.match(dish.path(pattern)) if pattern else []
            words += found or [word.expand(dish.variables)]
        return tuple(words)


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a script with their numbers from 1; one that ends in a backslash goes on in the next."""
    begun, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        start = start if begun else number
        if line.endswith("\\"):
            begun += line[:-1]
            continue
        yield start, begun + line
        begun = ""
    if begun:
        yield start, begun
