"""What a line of the chat does: a question, or one of the commands of `commands.TABLE`."""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from llambo.core.errors import BadRequest, LlamboError, NotFound, TooLarge
from llambo.core.fusion import STRATEGIES
from llambo.limbot import attachments, commands, fusion, settings, transfer
from llambo.limbot.chat import Chat
from llambo.limbot.conversation import estimate
from llambo.limbot.records import Session
from llambo.limbot.store import Store

Action = Callable[[Chat, str], Awaitable[None]]


async def perform(chat: Chat, line: str) -> None:
    """Does what the line says; errors are shown, and the chat goes on."""
    try:
        if commands.is_command(line):
            chat.screen.echo(line.strip())
            command, argument = commands.parse(line)
            await ACTIONS[command.name](chat, argument)
        else:
            chat.screen.echo(line)
            await chat.ask(line)
    except LlamboError as error:
        chat.screen.warn(error.message)


async def show_help(chat: Chat, argument: str) -> None:
    """`/help`"""
    chosen = [commands.named(argument)] if argument else list(commands.TABLE)
    chat.screen.show(commands.help_lines(chosen, chat.screen.width))
    if not argument:
        chat.screen.note("Ctrl-C stops an answer, Ctrl-D ends the chat, Ctrl-R searches what was asked before")


async def show_history(chat: Chat, argument: str) -> None:
    """`/history`"""
    conversation = chat.conversation
    count = _number(argument, len(conversation.entries))
    summary, upto = conversation.pending or (conversation.summary, conversation.summarised)
    if summary:
        chat.screen.show([f"(summary of entries 1 to {upto}: {summary})"])
    if conversation.start > upto:
        chat.screen.show([f"(entries 1 to {conversation.start} are no longer sent; their summary is being made)"])
    if not conversation.entries:
        chat.screen.note("nothing was said yet")
    first = max(0, len(conversation.entries) - count)
    for number, entry in enumerate(conversation.entries[first:], start=first):
        marks = [
            "not sent" if number < conversation.start else "",
            "interrupted" if entry.interrupted else "",
            entry.outcome,
        ]
        mark = "".join(f" ({text})" for text in marks if text)
        who = "you" if entry.role == "user" else "answer"
        chat.screen.note(f"\n{number + 1} {who}{mark}")
        if entry.role == "user":
            chat.screen.show(entry.text.splitlines())
        else:
            chat.screen.markdown(entry.text)


async def clear(chat: Chat, _argument: str) -> None:
    """`/clear`"""
    chat.begin()
    chat.screen.clear()
    chat.screen.note("a new conversation")


async def show_status(chat: Chat, _argument: str) -> None:
    """`/status`"""
    served = await chat.ready()
    conversation = chat.conversation
    budget = chat.budget()
    used = f"{conversation.size} of {budget} tokens, {len(conversation.kept)} of {len(conversation.entries)} entries"
    rows = [
        ("model", served.model),
        ("at", served.where),
        ("context", f"{served.ctx or 'unknown'} tokens"),
        ("in use", used if budget else f"{conversation.size} tokens, {len(conversation.kept)} entries"),
        ("conversation", f"{chat.journal.session or 'new'} {chat.journal.name}".strip()),
        ("kept", "in the database of this home" if chat.shelf.lasts else "until the end of this chat alone"),
    ]
    if chat.last_done is not None:
        last = chat.last_done
        rows.append(("last prompt", f"{last.prompt_tokens} tokens, {last.cached_tokens} of them from the cache"))
    if chat.fusion is not None:
        rows.append(("fusion", fusion.described(chat.fusion)))
    if chat.attached:
        rows.append(("attached", ", ".join(file.name for file in chat.attached)))
    chat.screen.show([f"{name:<14}{value}" for name, value in rows])


async def end(chat: Chat, _argument: str) -> None:
    """`/exit`"""
    chat.is_over = True


async def system(chat: Chat, argument: str) -> None:
    """`/system`"""
    if not argument:
        chat.screen.show([chat.conversation.system or "there is no system prompt"])
        return
    text = "" if argument.lower() in settings.DEFAULT_WORDS else argument
    chat.conversation = chat.conversation.with_system(text)
    await chat.store_state()
    chat.screen.note("the system prompt is set" if text else "there is no system prompt any more")


async def model(chat: Chat, argument: str) -> None:
    """`/model`"""
    if not argument:
        served = await chat.ready()
        others = [name for name in await chat.connection.models() if name != served.model]
        also = f"; also there: {', '.join(others)}" if others else ""
        chat.screen.show([f"{served.model} ({served.where}){also}"])
        return
    before, chat.model = chat.model, argument
    chat.screen.busy(f"loading {argument} …")
    try:
        served = await chat.ready()
    except BaseException:
        chat.model = before
        raise
    await chat.store_state()
    chat.screen.note(f"model {served.model} answers from now on")


async def set_parameter(chat: Chat, argument: str) -> None:
    """`/set`"""
    name, _, value = argument.partition(" ")
    if not name:
        chat.screen.show([f"{key:<14}{text}" for key, text in settings.described(chat.sampling)])
        return
    if not value.strip():
        name, _, value = argument.partition("=")
    if not value.strip():
        raise BadRequest(
            f"/set needs a name and a value: /set {name} VALUE; there are {', '.join(settings.PARAMETERS)}"
        )
    chat.sampling = settings.changed(chat.sampling, name.strip(), value.strip())
    await chat.store_state()
    chat.screen.note(f"{name.strip()} is {dict(settings.described(chat.sampling))[name.strip()]}")


async def set_fusion(chat: Chat, argument: str) -> None:
    """`/fusion`"""
    if not argument:
        names = f"strategies are {', '.join(STRATEGIES)}"
        also = textwrap.wrap(names, chat.screen.width, break_on_hyphens=False)
        chat.screen.show([f"fusion is {fusion.described(chat.fusion)}", *also])
        return
    before, chat.fusion = chat.fusion, fusion.typed(argument)
    chat.screen.busy("getting ready · Ctrl-C stops")
    try:
        await chat.ready()
    except BaseException:
        chat.fusion = before
        raise
    await chat.store_state()
    chat.screen.note(f"fusion is {fusion.described(chat.fusion)}")


async def save(chat: Chat, argument: str) -> None:
    """`/save`"""
    if not argument:
        raise BadRequest("/save needs a name, such as: /save nodes")
    if argument.isdigit():
        raise BadRequest("a name cannot be a number: numbers are what conversations have already")
    if not chat.journal.session:
        raise NotFound("there is nothing to save yet: ask something first")
    await chat.shelf(Store.change, chat.journal.session, name=argument)
    chat.journal.name = argument
    chat.screen.note(f"conversation {chat.journal.session} is called {argument}; /load {argument} goes on with it")


async def load(chat: Chat, argument: str) -> None:
    """`/load`"""
    if not argument:
        raise BadRequest("/load needs the name or number of a conversation; /sessions lists them")
    await chat.resume(await chat.shelf(Store.session, argument))
    show_resumed(chat)


def show_resumed(chat: Chat) -> None:
    """What was said last in the conversation that goes on."""
    entries = chat.conversation.entries
    name = f" ({chat.journal.name})" if chat.journal.name else ""
    chat.screen.note(f"conversation {chat.journal.session}{name} goes on, {len(entries)} entries")
    for entry in entries[-2:]:
        if entry.role == "user":
            chat.screen.echo(entry.text)
        else:
            chat.screen.markdown(entry.text)
            if entry.interrupted:
                chat.screen.note("interrupted")


async def list_sessions(chat: Chat, argument: str) -> None:
    """`/sessions`"""
    found = await chat.shelf(Store.sessions, _number(argument, 20))
    chat.screen.show([session_line(session) for session in found] or ["no conversation is stored yet"])


async def search(chat: Chat, argument: str) -> None:
    """`/search`"""
    if not argument:
        raise BadRequest("/search needs words, such as: /search prefix cache")
    hits = await chat.shelf(Store.search, argument)
    lines = [f"{hit.session.name or hit.session.id}: {' '.join(hit.snippet.split())}" for hit in hits]
    chat.screen.show(lines or [f"nothing that was said has: {argument}"])


async def export(chat: Chat, argument: str) -> None:
    """`/export`"""
    if not chat.journal.session:
        raise NotFound("there is nothing to export yet: ask something first")
    session = await chat.shelf(Store.session, chat.journal.session)
    turns = await chat.shelf(Store.turns, chat.journal.session)
    if not argument:
        chat.screen.show(transfer.to_markdown(session, turns).splitlines())
        return
    path = Path(argument)
    text = transfer.exported(transfer.format_of(path), [(session, turns)])
    try:
        await asyncio.to_thread(lambda: path.expanduser().write_text(text, encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as error:
        raise LlamboError(f"cannot write {argument}: {getattr(error, 'strerror', None) or error}") from None
    chat.screen.note(f"written to {path}")


async def attach(chat: Chat, argument: str) -> None:
    """`/file`"""
    if not argument:
        raise BadRequest("/file needs the path of a text file")
    served = await chat.ready()
    file = attachments.read(argument, ctx=served.ctx)
    tokens = estimate(file.text)
    budget = chat.budget()
    if budget and len(file.text.encode()) > budget:
        tokens = len(await chat.connection.tokenize(file.text))
        if tokens > budget:
            raise TooLarge(f"{argument} has {tokens} tokens and the context holds {served.ctx}")
    chat.attached.append(file)
    chat.screen.note(f"{file.name} goes with the next message ({tokens} tokens or so)")


async def retry(chat: Chat, _argument: str) -> None:
    """`/retry`"""
    question = next((e for e in reversed(chat.conversation.entries) if e.role == "user"), None)
    if question is None:
        raise NotFound("there is no question to ask again")
    before, chat.conversation = chat.conversation, chat.conversation.undone()
    count = len(chat.conversation.entries)
    chat.screen.echo(question.text)
    try:
        await chat.ask(question.text)
    finally:
        if len(chat.conversation.entries) > count:
            await chat.forget(before.entries[count:])
        else:  # nothing came: what there was stays
            chat.conversation = before


async def undo(chat: Chat, _argument: str) -> None:
    """`/undo`"""
    before = chat.conversation.entries
    if not before:
        raise NotFound("there is nothing to undo")
    chat.conversation = chat.conversation.undone()
    gone = before[len(chat.conversation.entries) :]
    await chat.forget(gone)
    await chat.store_state()
    chat.screen.note("the last question and its answer are forgotten")


async def copy(chat: Chat, argument: str) -> None:
    """`/copy`"""
    answer = next((e.text for e in reversed(chat.conversation.entries) if e.role == "assistant" and e.text), None)
    if answer is None:
        raise NotFound("there is no answer to copy yet")
    if argument not in {"", "code"}:
        raise BadRequest("/copy takes nothing, or the word code")
    if argument:
        blocks = transfer.code_blocks(answer)
        if not blocks:
            raise NotFound("the last answer has no block of code")
        answer = blocks[-1]
    chat.screen.copy(answer)
    chat.screen.note(f"copied {len(answer)} characters")


async def multi(chat: Chat, _argument: str) -> None:
    """`/multi`"""
    is_multi = chat.screen.toggle_multiline()
    chat.screen.note("Enter begins a new line, Alt-Enter sends" if is_multi else "Enter sends, Alt-Enter begins a line")


def session_line(session: Session) -> str:
    """A conversation in one line."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(session.updated))
    name = f"{session.name}: " if session.name else ""
    return f"{session.id:>5}  {when}  {session.turns:>3} entries  {name}{session.title}"


def _number(text: str, default: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 10**9:
        raise BadRequest(f"{text!r} is no number of entries; write one from 1 on")
    return int(text)


ACTIONS: dict[str, Action] = {
    "help": show_help,
    "history": show_history,
    "clear": clear,
    "status": show_status,
    "exit": end,
    "system": system,
    "model": model,
    "set": set_parameter,
    "fusion": set_fusion,
    "save": save,
    "load": load,
    "sessions": list_sessions,
    "search": search,
    "export": export,
    "file": attach,
    "retry": retry,
    "undo": undo,
    "copy": copy,
    "multi": multi,
}
