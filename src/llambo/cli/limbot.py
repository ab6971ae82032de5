"""`limbot`: asks a model from the terminal, once or in a chat.

Puts a connection (the running cluster of this home, its bridge, a private cluster in this process tree, or a cluster
elsewhere), the store of chats and a place to show answers together.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from llambo.cli import asking, common
from llambo.core.errors import BadRequest

if TYPE_CHECKING:
    from llambo.core.config import Config
    from llambo.core.fusion import FusionRequest
    from llambo.core.types import Sampling
    from llambo.engine.download import Progress
    from llambo.limbot.chat import Chat
    from llambo.limbot.screen import Screen
    from llambo.limbot.shelf import Shelf

app = typer.Typer(**common.APP_OPTIONS)

DATABASE = "limbot.db"


@dataclass(slots=True)
class Wanted:
    """What the command line asks for."""

    prompt: str
    model: str
    system: str
    sampling: Sampling
    files: list[str] = field(default_factory=list)
    connect: str = ""
    goes_on: bool = False
    is_raw: bool = False
    is_raw_prompt: bool = False
    fusion: FusionRequest | None = None
    sets_fusion: bool = False  # also where it is set to none


@app.command()
def limbot(
    prompt: Annotated[list[str] | None, typer.Argument(help="What to ask; - or a pipe reads standard input.")] = None,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Chat, beginning with PROMPT.")] = False,
    goes_on: Annotated[bool, typer.Option("-c", "--continue", help="Go on with the last conversation.")] = False,
    model: Annotated[str, typer.Option("-m", "--model", metavar="REF", help="Model name, file or reference.")] = "",
    system: Annotated[str, typer.Option("-s", "--system", metavar="TEXT", help="System prompt.")] = "",
    file: Annotated[
        list[str] | None, typer.Option("-f", "--file", metavar="PATH", help="Text file to ask about.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="0 always takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P", help="Share of likelihood to choose from.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes a sampled answer repeatable.")] = None,
    connect: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="A cluster elsewhere: tcp!HOST!PORT or http(s)://HOST."),
    ] = "",
    fusion: common.Fusion = "",
    nodes: common.FusionNodes = None,
    min_consensus: common.MinConsensus = None,
    extract: common.Extract = "",
    raw: Annotated[bool, typer.Option("--raw", help="Show the text as it is: no Markdown.")] = False,
    raw_prompt: Annotated[bool, typer.Option("--raw-prompt", help="Send the prompt without a chat template.")] = False,
    as_json: common.Json = False,
    config: common.ConfigFile = None,
    verbose: common.Verbose = 0,
    no_color: common.NoColor = False,
    version: common.Version = False,
) -> None:
    """Asks a model and streams its answer; alone or with -i it chats. `limbot logs` shows what was said.

    Talks to the cluster or the bridge that runs for this home; with none it starts a private node and takes it down
    again.
    """
    from llambo.core import config as configuration
    from llambo.core import log
    from llambo.core.types import Sampling

    if raw_prompt and system:
        raise BadRequest("a raw prompt takes no system prompt: put the text into the prompt itself")
    log.to_stderr(verbose=verbose)
    effective = configuration.load(config)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    chats = interactive or (not prompt and _has_terminal())
    if chats and as_json:
        raise BadRequest("--json prints one answer, and a chat has many; leave -i out and give a prompt")
    text = " ".join(prompt or []) if chats else _read_prompt(prompt or [], has_files=bool(file))
    votes = asking.fusion_of(fusion, nodes, min_consensus, extract)
    wanted = Wanted(text, model, system, sampling, file or [], connect, goes_on, raw, raw_prompt)
    wanted.fusion, wanted.sets_fusion = votes, bool(fusion)
    if chats:
        common.run_async(lambda: _chat(wanted, effective))
    else:
        common.run_async(lambda: _ask(wanted, effective, as_json=as_json))


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def _read_prompt(words: list[str], *, has_files: bool) -> str:
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
    if not prompt.strip() and not has_files:
        raise BadRequest("the prompt is empty")
    return prompt


def _is_piped() -> bool:
    """Whether standard input is a pipe, socket or file, and not a terminal or /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something without a descriptor
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)


@asynccontextmanager
async def _opened(
    wanted: Wanted, config: Config, screen: Screen, shelf: Shelf, progress: Progress
) -> AsyncIterator[Chat]:
    """A chat as the command line wants it, for the block."""
    from llambo.cli.switching import Switching
    from llambo.limbot import attachments
    from llambo.limbot.chat import Chat
    from llambo.limbot.store import Store

    files = [attachments.read(path) for path in wanted.files]
    async with Switching(config, connect=wanted.connect, progress=progress, tell=screen.busy) as connection:
        chat = Chat(connection, shelf, screen, model=wanted.model, system=wanted.system, sampling=wanted.sampling)
        chat.attached, chat.is_raw_prompt, chat.fusion = files, wanted.is_raw_prompt, wanted.fusion
        if wanted.goes_on:
            last = await shelf(Store.last)
            if last is None:
                raise BadRequest("there is no conversation to go on with yet; leave -c out")
            await chat.resume(last)
            _overrule(chat, wanted)
        try:
            yield chat
        finally:
            await chat.close()


def _overrule(chat: Chat, wanted: Wanted) -> None:
    """What the command line says goes before what was set when the conversation was stored."""
    from dataclasses import replace

    from llambo.limbot import settings

    chat.sampling = replace(chat.sampling, **settings.to_dict(wanted.sampling))
    chat.model = wanted.model or chat.model
    if wanted.sets_fusion:
        chat.fusion = wanted.fusion
    if wanted.system:
        chat.conversation = chat.conversation.with_system(wanted.system)


async def _ask(wanted: Wanted, config: Config, *, as_json: bool) -> None:
    from llambo.cli.models import download_progress
    from llambo.core import paths
    from llambo.limbot.oneshot import Completion
    from llambo.limbot.shelf import Shelf

    writer = asking.choose_writer(raw=wanted.is_raw, as_json=as_json)
    async with Shelf(paths.home() / DATABASE) as shelf, asking.waiting() as waiting:
        screen = asking.OneAnswer(asking.AfterWaiting(writer, waiting), waiting)
        with download_progress(wanted.model or config.settings.models.default) as bar:

            def progress(done: int, total: int) -> None:
                waiting.end()
                bar(done, total)

            async with _opened(wanted, config, screen, shelf, progress) as chat:
                for notice in shelf.notices:
                    screen.warn(notice)
                text = await chat.ask(wanted.prompt)
                if as_json and chat.last_done is not None:
                    common.print_json(Completion(text, chat.last_done).document())
                if chat.last_done is not None and chat.last_done.fusion is not None:
                    asking.tell_outcome(chat.last_done.fusion)


async def _chat(wanted: Wanted, config: Config) -> None:
    import asyncio
    import signal

    from llambo.core import paths
    from llambo.limbot import actions
    from llambo.limbot.dialogue import Dialogue
    from llambo.limbot.shelf import Shelf

    async with Shelf(paths.home() / DATABASE) as shelf:
        screen, terminal = await asking.chat_screen(shelf, is_raw=wanted.is_raw)
        loop = asyncio.get_running_loop()

        def progress(done: int, total: int) -> None:
            text = f"fetching the model: {common.size_text(done)} of {common.size_text(total)}"
            loop.call_soon_threadsafe(screen.busy, text if done < total else "")

        async with _opened(wanted, config, screen, shelf, progress) as chat:
            dialogue = Dialogue(chat)
            if terminal is not None:
                terminal.serve(dialogue)
                if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                    loop.add_signal_handler(signal.SIGINT, dialogue.interrupt)
            screen.note("limbot: /help lists the commands, Ctrl-D ends")
            if wanted.goes_on:
                actions.show_resumed(chat)
            await dialogue.run(wanted.prompt)


def main() -> None:
    """The entry point."""
    if sys.argv[1:2] == ["logs"]:
        from llambo.cli.limbot_logs import app as logs

        sys.argv[1:2] = []
        common.run("limbot logs", logs)
    common.run("limbot", app)
