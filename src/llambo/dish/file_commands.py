"""Commands that read and write files, whatever they mean, and those that change where files are."""

from __future__ import annotations

import asyncio
import os
import stat as modes
from collections import deque

from llambo.core.errors import BadRequest, LlamboError
from llambo.core.tokens import SECRET_PREFIX
from llambo.dish.command import OWN, Command, Context
from llambo.dish.servers import File, Server
from llambo.ninep.messages import Stat

TAIL_LINES = 10
_NOW_S = 0.25
"""What a file gives without a longer wait than this is there now; `tail` then goes on with what is added."""


async def ls(context: Context) -> None:
    """`ls [-l] [PATH…]`."""
    is_long = context.words[:1] == ("-l",)
    paths = context.words[1:] if is_long else context.words
    for path in paths or (".",):
        entries = await context.dish.mounts.ls(context.dish.path(path))
        await context.print("".join(_entry(entry, is_long=is_long) for entry in entries))


def _entry(entry: Stat, *, is_long: bool) -> str:
    name = entry.name + ("/" if entry.is_directory else "")
    return f"{_mode(entry)} {entry.uid:8} {entry.length:8} {name}\n" if is_long else f"{name}\n"


def _mode(entry: Stat) -> str:
    kind = modes.S_IFDIR if entry.is_directory else modes.S_IFREG
    return modes.filemode(kind | entry.mode & 0o777)


async def cat(context: Context) -> None:
    """`cat [PATH…]`."""
    if not context.words:
        async for piece in context.input().pieces():
            await context.out.write(piece)
    for word in context.words:
        path = context.dish.path(word)
        if (await context.dish.mounts.stat(path)).is_directory:
            raise BadRequest(f"{path} is a directory; ls lists it")
        async with context.dish.mounts.open(path) as file:
            while piece := await file.read():
                await context.out.write(piece)


async def echo(context: Context) -> None:
    """`echo [-n] [TEXT…]`."""
    has_no_end = context.words[:1] == ("-n",)
    words = context.words[1:] if has_no_end else context.words
    await context.print(" ".join(words) + ("" if has_no_end else "\n"))


async def cd(context: Context) -> None:
    """`cd [DIR]`."""
    context.count(0, 1)
    path = context.dish.path(context.words[0] if context.words else context.dish.cluster)
    if not (await context.dish.mounts.stat(path)).is_directory:
        raise BadRequest(f"{path} is not a directory")
    context.dish.directory = path


async def pwd(context: Context) -> None:
    """`pwd`."""
    context.count(0, 0)
    await context.print(f"{context.dish.directory}\n")


async def rm(context: Context) -> None:
    """`rm PATH…`."""
    if not context.words:
        raise context.command.wrong("needs a path")
    for path in context.words:
        await context.dish.mounts.remove(context.dish.path(path))


async def write(context: Context) -> None:
    """`write FILE [TEXT…]`: as it is, no newline is added."""
    if not context.words:
        raise context.command.wrong("needs a file")
    path, *words = context.words
    async with context.dish.mounts.open(context.dish.path(path), "a") as file:
        if words:
            await file.write(" ".join(words))
            return
        async for piece in context.input().pieces():
            await file.write(piece)


async def tail(context: Context) -> None:
    """`tail [-n N] [FILE]`."""
    words = context.words
    lines = TAIL_LINES
    if words[:1] == ("-n",):
        if len(words) < 2 or not words[1].isdecimal():
            raise context.command.wrong("-n takes a whole number")
        lines, words = int(words[1]), words[2:]
    if len(words) > 1:
        raise context.command.wrong("takes one file")
    if words:
        async with context.dish.mounts.open(context.dish.path(words[0])) as file:
            await _tail(context, file, lines)
        return
    kept: deque[bytes] = deque(maxlen=lines)
    rest = b""
    async for piece in context.input().pieces():
        *whole, rest = (rest + piece).split(b"\n")
        kept.extend(line + b"\n" for line in whole)
    if rest:
        kept.append(rest)
    await context.out.write(b"".join(kept))


async def _tail(context: Context, file: File, lines: int) -> None:
    kept: deque[bytes] = deque(maxlen=lines)
    rest = b""
    is_now = True
    reading = asyncio.ensure_future(file.read())
    try:
        while True:
            if is_now and not (await asyncio.wait({reading}, timeout=_NOW_S))[0]:
                is_now = False
                await context.out.write(b"".join([*kept, rest]))
            if not (piece := await reading):
                break
            reading = asyncio.ensure_future(file.read())
            if is_now:
                *whole, rest = (rest + piece).split(b"\n")
                kept.extend(line + b"\n" for line in whole)
            else:
                await context.out.write(piece)
    finally:
        reading.cancel()
        await asyncio.wait({reading})
    if is_now:
        if rest:
            kept.append(rest)
        await context.out.write(b"".join(kept))


async def mount(context: Context) -> None:
    """`mount [ADDRESS DIR [PATH] [token_env=VAR]]`."""
    if not context.words:
        await context.print(str(context.dish.mounts))
        return
    words = [word for word in context.words if not word.startswith("token_env=")]
    variables = [word.partition("=")[2] for word in context.words if word.startswith("token_env=")]
    if not 2 <= len(words) <= 3 or len(variables) > 1:
        raise context.command.wrong("takes an address and a directory")
    if any(SECRET_PREFIX in word for word in words):
        raise BadRequest("a token that is typed is seen by others: put it into the environment, give token_env=VAR")
    address, directory = words[0], context.dish.path(words[1])
    secret = os.environ.get(variables[0], "") if variables else ""
    if variables and not secret:
        raise BadRequest(f"the environment variable {variables[0]} is not set: it should hold a token")
    if directory in context.dish.mounts.points:
        raise BadRequest(f"{directory} is taken; umount {directory} first")
    server = Server(address, words[2] if len(words) == 3 else "", secret)
    await server.client()
    try:
        context.dish.mounts.mount(server, directory, str(server))
    except LlamboError:
        await server.close()
        raise


async def umount(context: Context) -> None:
    """`umount DIR`."""
    context.count(1, 1)
    path = context.dish.path(context.words[0])
    if path == OWN:
        raise BadRequest(f"{OWN} is this shell's own and stays")
    await context.dish.conversations.end(path)
    await context.dish.mounts.unmount(path)


async def bind(context: Context) -> None:
    """`bind SOURCE NAME`."""
    context.count(2, 2)
    source, name = map(context.dish.path, context.words)
    await context.dish.mounts.bind(source, name)


COMMANDS = (
    Command("ls", "ls [-l] [PATH…]", "lists a directory", ls, ("path",), takes_patterns=True),
    Command("cat", "cat [PATH…]", "shows files, or what is piped to it", cat, ("path",), takes_patterns=True),
    Command("echo", "echo [-n] [TEXT…]", "writes its arguments: echo 'scale 3' > ctl", echo, ("path",)),
    Command("write", "write FILE [TEXT…]", "writes TEXT, or what is piped to it, as it is", write, ("path",)),
    Command(
        "tail", "tail [-n N] [FILE]", "shows the last lines, and what is added while a file grows", tail, ("path",)
    ),
    Command("rm", "rm PATH…", "hangs up a session, drains a node", rm, ("path",), takes_patterns=True),
    Command("cd", "cd [DIR]", "goes to a directory; alone, to the cluster", cd, ("path",)),
    Command("pwd", "pwd", "shows the directory", pwd),
    Command(
        "mount",
        "mount [ADDRESS DIR [PATH] [token_env=VAR]]",
        "puts another server's files at DIR, such as tcp!host!5640 at /n/other; alone, lists what is mounted",
        mount,
        ("", "path", ""),
    ),
    Command("umount", "umount DIR", "takes away what is mounted or bound at DIR", umount, ("mount",)),
    Command("bind", "bind SOURCE NAME", "lets NAME stand for SOURCE too", bind, ("path",)),
)
