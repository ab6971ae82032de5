"""Commands that look at a cluster and control it: reads of its files, and lines written to its `ctl`.

What a line means, and what is wrong with one, its server says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from llambo.core.errors import BadRequest, LlamboError
from llambo.dish.command import OWN, Command, Completes, Context, Dish
from llambo.dish.grammar import quote
from llambo.dish.pipes import Buffer
from llambo.dish.terminal import Terminal

Run = Callable[[Context], Awaitable[None]]

_NODE_COLUMNS = ("id", "type", "state", "model", "slots", "pid", "memory", "tokens/s", "requests", "errors")
_SESSION_COLUMNS = ("session", "state", "node", "tokens", "prompt_tokens", "ttft_ms")


def _shows(name: str) -> Run:
    """A command that shows a file of the cluster."""

    async def run(context: Context) -> None:
        context.count(0, 0)
        await context.out.write(await context.dish.mounts.read_file(f"{context.dish.cluster}/{name}"))

    return run


def _tells(verb: str, *, answers: bool) -> Run:
    """A command that is a line of the cluster's ctl; with `answers` it shows what the ctl has to say to it."""

    async def run(context: Context) -> None:
        line = " ".join((verb, *map(quote, context.words)))
        async with context.dish.mounts.open(f"{context.dish.cluster}/ctl", "rw") as ctl:
            await ctl.write(f"{line}\n")
            while answers and (piece := await ctl.read()):
                await context.out.write(piece)

    return run


async def kill(context: Context) -> None:
    """`kill ID|%N`."""
    if context.words and context.words[0].startswith("%"):
        context.count(1, 1)
        await context.dish.jobs.kill(context.dish.jobs.find(context.words[0]))
    else:
        await _tells("kill", answers=False)(context)


async def nodes(context: Context) -> None:
    """`nodes`."""
    context.count(0, 0)
    found = await node_list(context.dish)
    if not found:
        await context.print("no nodes; spawn 1 starts one\n")
        return
    rows = [
        (
            *(str(node.get(key, "")) for key in ("id", "type", "state", "model")),
            f"{node.get('busy', 0)}/{node.get('slots', 0)}",
            str(node.get("pid") or "-"),
            f"{node['uss_bytes'] / 2**20:.1f} MiB" if node.get("uss_bytes") else "-",
            f"{node.get('tokens_per_s', 0):.0f}",
            *(str(node.get(key, "")) for key in ("requests", "errors")),
        )
        for node in found
    ]
    await context.print(_table(_NODE_COLUMNS, rows))


async def node_list(dish: Dish) -> list[dict[str, Any]]:
    """The nodes of the cluster that commands are for. Raises: `LlamboError` where another kind of server has none."""
    path = f"{dish.cluster}/nodes.json"
    document = await dish.mounts.read_file(path)
    try:
        return msgspec.json.decode(document, type=list[dict[str, Any]])
    except msgspec.DecodeError as error:
        raise LlamboError(f"{path} is no list of nodes: {error}") from None


async def sessions(context: Context) -> None:
    """`sessions`."""
    context.count(0, 0)
    directory = f"{context.dish.cluster}/sessions"
    own = context.dish.conversations.number_of(context.dish.cluster)
    rows = []
    for entry in await context.dish.mounts.ls(directory):
        try:
            text = await context.dish.mounts.read_file(f"{directory}/{entry.name}/status")
        except LlamboError:  # it ended a moment ago
            continue
        facts = _facts(text)
        rows.append((entry.name, *(facts.get(key) or "-" for key in _SESSION_COLUMNS[1:])))
    rows = [(*row, "this shell's") if row[0] == own else row for row in rows]
    await context.print(_table(_SESSION_COLUMNS, rows) if rows else "no sessions\n")


async def cluster(context: Context) -> None:
    """`cluster [DIR]`."""
    context.count(0, 1)
    mounts = context.dish.mounts
    if context.words:
        path = context.dish.path(context.words[0])
        await mounts.stat(f"{path}/status")
        context.dish.cluster = path
        return
    for point in mounts.points:
        if point == OWN:
            continue
        try:
            facts = _facts(await mounts.read_file(f"{point}/status"))
        except LlamboError as error:
            facts = {"state": error.message}
        mark = "*" if point == context.dish.cluster else " "
        shown = "  ".join(f"{key} {facts[key]}" for key in ("state", "nodes", "slots", "busy") if key in facts)
        await context.print(f"{mark} {point}  {shown}\n")


async def watch(context: Context) -> None:
    """`watch [every=S] [times=N] [COMMAND…]`."""
    every, times, words = _pace(context)
    name = words[0] if words else "status"
    if name not in context.dish.table or name in {"watch", "exit", "quit", "fg"}:
        raise context.command.wrong(f"takes a command that shows something, not {name}")
    command = context.dish.table[name]
    seen = 0

    async def look() -> bytes:
        out = Buffer()
        await command.run(Context(context.dish, command, tuple(words[1:]), None, out))
        return bytes(out.data)

    if not isinstance(context.out, Terminal) or not context.out.shows:
        while True:
            await context.out.write(await look())
            seen += 1
            if seen == times:
                return
            await asyncio.sleep(every)
    with context.out.screen():
        while True:
            text = (await look()).decode("utf-8", "replace")
            context.out.draw(f"{' '.join(words) or name}, every {every:g} s; Ctrl-C ends\n\n{text}")
            seen += 1
            if seen == times:
                return
            await asyncio.sleep(every)


def _pace(context: Context) -> tuple[float, int, list[str]]:
    every, times = 1.0, 0
    words = list(context.words)
    while words and words[0].partition("=")[0] in {"every", "times"} and "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name == "every" and 0.1 <= number <= 86_400:
            every = number
        elif name == "times" and number >= 1 and number == int(number):
            times = int(number)
        else:
            wanted = "0.1 to 86400 seconds" if name == "every" else "a whole number from 1"
            raise BadRequest(f"watch: {name} is {wanted}, not {value!r}")
    return every, times, words


async def show_help(context: Context) -> None:
    """`help [COMMAND]`."""
    table = context.dish.table
    if context.words:
        name = context.words[0]
        if name not in table or len(context.words) > 1:
            raise BadRequest(f"help knows one command at a time, such as help cat; to ask the model: ask help {name} …")
        command = table[name]
        await context.print(f"{command.usage}\n    {command.help}\n")
        return
    width = max(len(command.usage) for command in table.commands if len(command.usage) <= 32)
    for command in table.commands:
        gap = "\n" + " " * (width + 2) if len(command.usage) > width else " " * (width + 2 - len(command.usage))
        await context.print(f"{command.usage}{gap}{command.help}\n")
    await context.print(_MORE)


_MORE = """
Any other line is a question to the model. Files of the cluster are below /n/llambo: cat ctl shows what it understands.
COMMAND > FILE   COMMAND >> FILE   COMMAND < FILE   COMMAND | COMMAND   COMMAND &   COMMAND ; COMMAND   # comment
'one word'   "one word with a $variable"   NAME=VALUE sets a variable: max_tokens=64 holds for every question
"""


async def leave(context: Context) -> None:
    """`exit [STATUS]`."""
    context.count(0, 1)
    word = context.words[0] if context.words else "0"
    if not (word.isascii() and word.isdigit() and int(word) < 256):
        raise BadRequest(f"exit takes a status from 0 to 255, not {word!r}")
    context.dish.exit_status = int(word)


def _facts(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [tuple(name.upper() for name in heading), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    shown = (
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), *line[len(widths) :]])
        for line in lines
    )
    return "".join(f"{line.rstrip()}\n" for line in shown)


def _ctl(verb: str, usage: str, what: str, *completes: Completes, name: str = "", answers: bool = False) -> Command:
    return Command(name or verb, usage, what, _tells(verb, answers=answers), completes)


LOOKS = (
    Command("help", "help [COMMAND]", "lists the commands, or explains one", show_help, ("command",), aliases=("?",)),
    Command("status", "status", "shows the cluster at a glance", _shows("status")),
    Command("nodes", "nodes", "lists the nodes", nodes),
    Command("metrics", "metrics", "shows the live figures, as Prometheus reads them", _shows("metrics")),
    Command("sessions", "sessions", "lists the conversations that are open", sessions),
    Command(
        "watch", "watch [every=S] [times=N] [COMMAND]", "shows a command's output live", watch, ("command", "path")
    ),
)
CONTROL = (
    _ctl("scale", "scale N [MODEL]", "makes it N nodes", "", "model", answers=True),
    _ctl("spawn", "spawn N [TYPE] [model=REF] [slots=S]", "starts N nodes", "", "type", answers=True),
    _ctl("drain", "drain ID", "lets a node finish what it is doing, then ends it", "node"),
    Command("kill", "kill ID|%N", "ends a node, or a job, now", kill, ("target",)),
    _ctl("restart", "restart ID", "gives a node a new process", "node"),
    _ctl("checkpoint", "save [PATH]", "saves the state of the cluster; says where", name="save", answers=True),
    _ctl("restore", "restore [PATH]", "brings back what was saved, beside what there is"),
    Command("cluster", "cluster [DIR]", "chooses the cluster that commands are for; alone, lists", cluster, ("mount",)),
)
LEAVING = (Command("exit", "exit [STATUS]", "ends dish, as Ctrl-D does", leave, aliases=("quit",)),)
