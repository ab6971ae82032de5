"""`llamboctl infer`: one answer of the running cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llambo.cli import common
from llambo.core.errors import BadRequest, NoQuorum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llambo.core.config import Config
    from llambo.core.fusion import VoteCast
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
    fusion: common.Fusion = "",
    nodes: common.FusionNodes = None,
    min_consensus: common.MinConsensus = None,
    extract: common.Extract = "",
    raw_prompt: Annotated[bool, typer.Option("--raw-prompt", help="Send the prompt without a chat template.")] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="With --json: a line per vote and token, then the document.")
    ] = False,
    config: common.ConfigFile = None,
    as_json: common.Json = False,
) -> None:
    """Asks the cluster and streams the answer; with --fusion several nodes, of whose answers one is made."""
    from dataclasses import replace

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
    request = replace(request, fusion=asking.fusion_of(fusion, nodes, min_consensus, extract))
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
    casts: list[VoteCast] = []
    writer = asking.JsonLines() if as_json and stream else asking.choose_writer(raw=False, as_json=as_json)
    async with asking.waiting() as spinner:
        with download_progress(model) as bar:

            def progress(done: int, total: int) -> None:
                spinner.end()
                bar(done, total)

            async with daemon_door(found, config, model, progress, spinner.say) as (door, name):
                ready = asking.AfterWaiting(writer, spinner)
                async with Silence(spinner.say, asking.THINKING) as silence:

                    def voted(cast: VoteCast) -> None:
                        casts.append(cast)
                        if isinstance(writer, asking.JsonLines):
                            writer.vote(cast)
                        silence.heard(_progress(request, casts))

                    try:
                        completion = await oneshot.ask(door.generate, replace(request, model=name), ready, voted)
                    except NoQuorum:
                        if not isinstance(writer, asking.JsonLines):  # which has told them
                            _tell_votes(casts)
                        raise
    if as_json:
        common.print_json(completion.document())
    if completion.done.fusion is not None:
        asking.tell_outcome(completion.done.fusion)


def _progress(request: GenerateRequest, casts: Sequence[VoteCast]) -> str:
    """How far the votes are, in words for the spinner."""
    from llambo.limbot import fusion

    assert request.fusion is not None, "who votes was asked to"
    return fusion.progress(fusion.so_far(request.fusion, casts))


def _tell_votes(casts: Sequence[VoteCast]) -> None:
    """The votes that no answer could be made of, on standard error."""
    import sys

    from llambo.cli import asking
    from llambo.core.tally import tally
    from llambo.limbot import fusion

    told = tally(casts)
    name = "llamboctl: "
    sys.stderr.write("".join(f"{name}{row}\n" for row in fusion.rows(told, asking.error_columns() - len(name))))
