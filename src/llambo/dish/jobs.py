"""Commands that run in the background, and the commands over them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from llambo.core.errors import BadRequest, Cancelled, LlamboError, NotFound
from llambo.dish.command import Command, Context
from llambo.dish.pipes import Buffer, Sink

State = Literal["running", "done", "failed", "killed"]


class Job:
    """One of them: its number, how it was written, what it wrote, and the error that ended it."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        self.out = Buffer()
        self.error: LlamboError | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """How it is."""
        assert self.task is not None
        if not self.task.done():
            return "running"
        if self.task.cancelled():
            return "killed"
        return "failed" if self.error is not None else "done"

    def __str__(self) -> str:
        reason = f"  ({self.error.message})" if self.error is not None else ""
        return f"%{self.number} {self.state:7}  {self.text}{reason}"


class Jobs:
    """The jobs of one shell. `ended` is told of each that ends by itself."""

    def __init__(self) -> None:
        self.by_number: dict[int, Job] = {}
        self.ended: Callable[[Job], None] | None = None
        self._last = 0

    def start(self, text: str, run: Callable[[Sink], Awaitable[None]]) -> Job:
        """Begins a job; numbers are used again once there are no jobs."""
        self._last = self._last + 1 if self.by_number else 1
        job = self.by_number[self._last] = Job(self._last, text)
        job.task = asyncio.create_task(self._run(job, run), name=f"job {text}")
        job.task.add_done_callback(lambda _: self._ended(job))
        return job

    def find(self, reference: str) -> Job:
        """The job that `%1` means; "" is the last one. Raises: `BadRequest`, `NotFound`."""
        if not reference and self.by_number:
            return self.by_number[max(self.by_number)]
        if not reference:
            raise NotFound("there are no jobs; a command that ends in & becomes one")
        number = reference.removeprefix("%")
        if not (number.isascii() and number.isdigit()):
            raise BadRequest(f"{reference!r} is no job: write %N, N being a number that jobs shows")
        if int(number) not in self.by_number:
            known = ", ".join(f"%{job}" for job in self.by_number) or "none"
            raise NotFound(f"there is no job %{number}; jobs are {known}")
        return self.by_number[int(number)]

    def forget(self, job: Job) -> None:
        """It has been told of."""
        self.by_number.pop(job.number, None)

    async def kill(self, job: Job) -> None:
        """Ends it; returns when it has ended."""
        assert job.task is not None
        self.forget(job)
        job.task.cancel()
        await asyncio.wait({job.task})

    async def follow(self, job: Job, out: Sink) -> None:
        """Hands on what the job writes, until it ends; a caller that is cancelled ends it. Raises: what ended it."""
        assert job.task is not None
        try:
            await job.out.follow(out)
        except BaseException:
            await self.kill(job)
            raise
        await asyncio.wait({job.task})
        self.forget(job)
        if job.error is not None:
            raise job.error
        if job.task.cancelled():
            raise Cancelled(f"job %{job.number} was killed")

    async def close(self) -> None:
        """Ends all of them."""
        self.ended = None
        for job in list(self.by_number.values()):
            await self.kill(job)

    def __str__(self) -> str:
        return "".join(f"{job}\n" for job in self.by_number.values())

    async def _run(self, job: Job, run: Callable[[Sink], Awaitable[None]]) -> None:
        try:
            await run(job.out)
        except LlamboError as error:
            job.error = error

    def _ended(self, job: Job) -> None:
        assert job.task is not None
        if not job.task.cancelled() and (error := job.task.exception()) is not None:
            job.error = LlamboError(f"dish failed in an unforeseen way: {error!r}")
        job.out.end()
        if self.ended is not None and job.number in self.by_number:
            self.ended(job)


async def jobs(context: Context) -> None:
    """`jobs`."""
    context.count(0, 0)
    await context.print(str(context.dish.jobs))
    for job in [job for job in context.dish.jobs.by_number.values() if job.state == "killed"]:
        context.dish.jobs.forget(job)


async def foreground(context: Context) -> None:
    """`fg [%N]`."""
    context.count(0, 1)
    job = context.dish.jobs.find(context.words[0] if context.words else "")
    await context.dish.jobs.follow(job, context.out)


COMMANDS = (
    Command("jobs", "jobs", "lists what runs in the background: a command that ends in &", jobs),
    Command("fg", "fg [%N]", "shows what a job wrote, and waits for its end", foreground, ("job",)),
)
