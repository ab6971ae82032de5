"""`llamboctl infer`: one answer of the running cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llambo.cli import common
from llambo.core.errors import BadRequest

if TYPE_CHECKING:
    from llambo.core.config import Config
    from llambo.core.types import GenerateRequest


def register(app: typer.Typer) -> None:
    """Adds the command to a command line."""
    app.command()(infer)


def infer(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads standard input.")],
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="0 always takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P", help="Share of likelihood to choose from.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes a sampled answer repeatable.")] = None,
    model: Annotated[str, typer.Option("--model", metavar="REF", help="Model name, file or reference.")] = "",
    raw_prompt: Annotated[bool, typer.Option("--raw-prompt", help="Send the prompt without a chat template.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="With --json: a line per token, then the document.")] = False,
    config: common.ConfigFile = None,
    as_json: common.Json = False,
) -> None:
    """Asks the cluster and streams the answer."""
    from llambo.cli import asking
    from llambo.core import config as configuration
    from llambo.core.quoted import unquoted
    from llambo.core.types import GenerateRequest, Sampling

    effective = configuration.load(config)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    text = unquoted(asking.read_stdin() if prompt == "-" else prompt)
    if not text.strip():
        raise BadRequest("the prompt is empty")
    request = GenerateRequest.from_prompt(text, raw=raw_prompt, sampling=sampling)
    common.run_async(lambda: _ask(request, effective, model, as_json=as_json, stream=stream))


async def _ask(request: GenerateRequest, config: Config, model: str, *, as_json: bool, stream: bool) -> None:
    from dataclasses import replace

    from llambo.cli import asking
    from llambo.cli.daemon_client import the_daemon
    from llambo.cli.doors import daemon_door
    from llambo.cli.models import download_progress
    from llambo.limbot import oneshot
    from llambo.limbot.silence import Silence

    found = the_daemon()
    writer = asking.JsonLines() if as_json and stream else asking.choose_writer(raw=False, as_json=as_json)
    async with asking.waiting() as spinner:
        with download_progress(model) as bar:

            def progress(done: int, total: int) -> None:
                spinner.end()
                bar(done, total)

            async with daemon_door(found, config, model, progress, spinner.say) as (door, name):
                ready = asking.AfterWaiting(writer, spinner)
                async with Silence(spinner.say, asking.THINKING):
                    completion = await oneshot.ask(door.generate, replace(request, model=name), ready)
    if as_json:
        common.print_json(completion.document())
