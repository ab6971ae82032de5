"""`limbot`: asks a model from the terminal.

Puts a door (the running cluster of this home, its bridge, or a private cluster in this process tree) and a writer
together.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from llambo.cli import asking, common
from llambo.core.errors import BadRequest

if TYPE_CHECKING:
    from llambo.cluster.door import Door
    from llambo.core.config import Config
    from llambo.core.types import GenerateRequest

app = typer.Typer(**common.APP_OPTIONS)


@app.command()
def limbot(
    prompt: Annotated[list[str] | None, typer.Argument(help="What to ask; - or a pipe reads standard input.")] = None,
    model: Annotated[str, typer.Option("-m", "--model", metavar="REF", help="Model name, file or reference.")] = "",
    system: Annotated[str, typer.Option("-s", "--system", metavar="TEXT", help="System prompt.")] = "",
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="0 always takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P", help="Share of likelihood to choose from.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes a sampled answer repeatable.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Show the text as it is: no Markdown.")] = False,
    raw_prompt: Annotated[bool, typer.Option("--raw-prompt", help="Send the prompt without a chat template.")] = False,
    as_json: common.Json = False,
    config: common.ConfigFile = None,
    verbose: common.Verbose = 0,
    no_color: common.NoColor = False,
    version: common.Version = False,
) -> None:
    """Asks a model and streams its answer.

    Talks to the cluster or the bridge that runs for this home; with none it starts a private node and takes it down
    again.
    """
    from llambo.core import config as configuration
    from llambo.core import log
    from llambo.core.types import GenerateRequest, Sampling

    log.to_stderr(verbose=verbose)
    effective = configuration.load(config)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    request = GenerateRequest.from_prompt(_read_prompt(prompt or []), raw=raw_prompt, system=system, sampling=sampling)
    common.run_async(lambda: _ask(request, effective, model, raw=raw, as_json=as_json))


def _read_prompt(words: list[str]) -> str:
    """The prompt from the arguments, from standard input, or from both (the piped text first, as context).

    Raises: `BadRequest` when there is neither.
    """
    prompt = " ".join(words)
    if prompt == "-" or not words:
        if not words and sys.stdin.isatty():
            raise BadRequest('give a prompt, such as: limbot "What is a node?"; or pipe one in')
        prompt = asking.read_stdin()
    elif _is_piped():
        prompt = "\n\n".join(part for part in (asking.read_stdin(), prompt) if part)
    if not prompt.strip():
        raise BadRequest("the prompt is empty")
    return prompt


def _is_piped() -> bool:
    """Whether standard input is a pipe, socket or file, and not a terminal or /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something without a descriptor
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)


async def _ask(request: GenerateRequest, config: Config, model: str, *, raw: bool, as_json: bool) -> None:
    from dataclasses import replace

    from llambo.limbot import oneshot

    writer = asking.choose_writer(raw=raw, as_json=as_json)
    async with asking.waiting() as waiting, _open(config, model, waiting) as (door, name):
        ready = asking.AfterWaiting(writer, waiting)
        completion = await oneshot.ask(door.generate, replace(request, model=name), ready)
    if as_json:
        common.print_json(completion.document())


@asynccontextmanager
async def _open(config: Config, model: str, waiting: asking.Waiting) -> AsyncIterator[tuple[Door, str]]:
    """The door to ask, as `doors.open_door` has it; a download takes the spinner's place with a bar."""
    from llambo.cli.doors import open_door
    from llambo.cli.models import download_progress

    with download_progress(model or config.settings.models.default) as bar:

        def progress(done: int, total: int) -> None:
            waiting.end()
            bar(done, total)

        async with open_door(config, model, progress) as opened:
            yield opened


def main() -> None:
    """The entry point."""
    common.run("limbot", app)
