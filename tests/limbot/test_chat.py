"""A chat over a connection that does what the test says, and a real store."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llambo.core.errors import LlamboError, NodeLost, PromptTooLong, Unreachable
from llambo.core.fusion import Fusion, FusionRequest
from llambo.core.types import Done, Event, GenerateRequest, TokenEvent
from llambo.limbot import actions
from llambo.limbot.chat import SMALL_MODEL, Chat
from llambo.limbot.connection import Served
from llambo.limbot.conversation import SUMMARY_TASK
from llambo.limbot.dialogue import Dialogue
from llambo.limbot.shelf import Shelf
from llambo.limbot.store import Store

Script = Callable[[GenerateRequest], AsyncGenerator[Event, None]]


class Elsewhere:
    """A connection. `answers` are what the next requests get, the last of them again and again."""

    def __init__(self, *answers: Script, ctx: int = 1000, is_small: bool = False) -> None:
        self.answers = list(answers)
        self.requests: list[GenerateRequest] = []
        self.served = Served("here", "m", ctx, is_small)
        self.times_lost = 0
        self.fusions: list[FusionRequest | None] = []

    async def ready(self, model: str, fusion: FusionRequest | None = None) -> Served:
        self.fusions.append(fusion)
        return self.served

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        script = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        async for event in script(request):
            yield event

    async def tokenize(self, text: str) -> list[int]:
        return [0] * len(text.split())

    async def models(self) -> list[str]:
        return ["m"]

    async def lost(self) -> None:
        self.times_lost += 1


class Notes:
    """A screen that remembers."""

    width = 80

    def __init__(self) -> None:
        self.said: list[str] = []
        self.busy_with: list[str] = []
        self.shown: list[Fusion | None] = []

    async def lines(self) -> AsyncIterator[str]:
        for line in ("first", "second"):
            yield line

    def echo(self, text: str) -> None:
        self.said.append(f"> {text}")

    def note(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(f"! {text}")

    def show(self, lines: Sequence[str]) -> None:
        self.said += lines

    def markdown(self, text: str) -> None:
        self.said.append(text)

    def answer(self) -> Notes:
        return self

    def feed(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        self.said.append("<end>")

    def busy(self, text: str) -> None:
        self.busy_with.append(text)

    def votes(self, fusion: Fusion | None) -> None:
        self.shown.append(fusion)

    def copy(self, text: str) -> None:
        self.said.append(f"copied {text}")

    def toggle_multiline(self) -> bool:
        return False

    def clear(self) -> None:
        pass


def says(text: str, *, prompt_tokens: int = 0) -> Script:
    async def script(request: GenerateRequest) -> AsyncGenerator[Event, None]:
        yield TokenEvent(text)
        size = prompt_tokens or 5 + sum(len(message.content.split()) for message in request.messages)
        yield Done("stop", "m", "n1", len(text.split()), size, 0, 1.0, 2.0)

    return script


def fails(error: LlamboError, *before: str) -> Script:
    async def script(request: GenerateRequest) -> AsyncGenerator[Event, None]:
        for text in before:
            yield TokenEvent(text)
        raise error

    return script


@asynccontextmanager
async def chatting(connection: Elsewhere, path: Path) -> AsyncIterator[tuple[Chat, Notes]]:
    notes = Notes()
    async with Shelf(path / "limbot.db") as shelf:
        chat = Chat(connection, shelf, notes)
        yield chat, notes
        await chat.close()


async def test_what_was_said_is_sent_with_the_next_question_and_stored(tmp_path: Path) -> None:
    connection = Elsewhere(says("hello back"))
    async with chatting(connection, tmp_path) as (chat, notes):
        await Dialogue(chat).run()
        contents = [[message.content for message in request.messages] for request in connection.requests]
        assert contents == [["first"], ["first", "hello back", "second"]]
        assert notes.said[:3] == ["> first", "hello back", "<end>"]
        turns = await chat.shelf(Store.turns, 1)
        assert [(turn.role, turn.text) for turn in turns] == [
            ("user", "first"),
            ("assistant", "hello back"),
            ("user", "second"),
            ("assistant", "hello back"),
        ]
        assert turns[1].tokens == 2


async def test_a_cluster_that_is_gone_before_the_first_token_is_asked_again_elsewhere(tmp_path: Path) -> None:
    connection = Elsewhere(fails(Unreachable("gone")), says("here"))
    async with chatting(connection, tmp_path) as (chat, _):
        assert await chat.ask("hello") == "here"
        assert connection.times_lost == 1


async def test_one_that_is_gone_later_leaves_what_had_arrived_and_says_so(tmp_path: Path) -> None:
    connection = Elsewhere(fails(NodeLost("node n1 is gone"), "half an"), says("answer"))
    async with chatting(connection, tmp_path) as (chat, notes):
        await actions.perform(chat, "hello")
        assert notes.said[-1] == "! node n1 is gone"
        assert chat.conversation.entries[-1].interrupted
        await actions.perform(chat, "go on")
        assert [message.content for message in connection.requests[-1].messages] == ["hello", "half an", "go on"]


async def test_a_question_that_failed_leaves_the_conversation_as_it_was(tmp_path: Path) -> None:
    connection = Elsewhere(says("one"), fails(NodeLost("gone")), says("three"))
    async with chatting(connection, tmp_path) as (chat, _):
        for line in ("first", "second", "third"):
            await actions.perform(chat, line)
        assert [message.content for message in connection.requests[-1].messages] == ["first", "one", "third"]
        resumed = Chat(connection, chat.shelf, Notes())
        await resumed.resume(await chat.shelf(Store.session, 1))
        assert [entry.text for entry in resumed.conversation.entries] == ["first", "one", "third", "three"]


async def test_a_retry_takes_the_place_of_the_answer_once_something_has_come(tmp_path: Path) -> None:
    connection = Elsewhere(says("one"), fails(NodeLost("gone")), says("two"))
    async with chatting(connection, tmp_path) as (chat, _):
        await actions.perform(chat, "first")
        for texts in (["first", "one"], ["first", "two"]):
            await actions.perform(chat, "/retry")
            assert [entry.text for entry in chat.conversation.entries] == texts
            assert [message.content for message in connection.requests[-1].messages] == ["first"]
        turns = await chat.shelf(Store.turns, 1)
        assert [turn.text for turn in turns if not turn.interrupted][-2:] == ["first", "two"]
        assert "one" not in [turn.text for turn in turns]


async def test_what_a_retry_replaced_is_gone_also_when_somebody_leaves_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chatting(Elsewhere(says("one"), says("two")), tmp_path) as (chat, _):
        await actions.perform(chat, "first")
        disk, ask, answered = threading.Event(), chat.ask, asyncio.Event()

        async def ask_with_a_slow_disk(text: str) -> str:
            answer = await ask(text)
            chat.shelf._thread.submit(disk.wait)
            answered.set()
            return answer

        monkeypatch.setattr(chat, "ask", ask_with_a_slow_disk)
        retrying = asyncio.create_task(actions.retry(chat, ""))
        try:
            await answered.wait()
            await asyncio.sleep(0)  # a turn of the loop, in which what the retry replaced is sent behind the disk
            retrying.cancel()
            await asyncio.gather(retrying, return_exceptions=True)
            for _ in range(3):  # turns of the loop, in which a cancelled call would be taken back
                await asyncio.sleep(0)
        finally:
            disk.set()
        assert [turn.text for turn in await chat.shelf(Store.turns, 1)] == ["first", "two"]


async def test_a_context_smaller_than_was_told_is_met_by_sending_less(tmp_path: Path) -> None:
    connection = Elsewhere(says("word " * 100), ctx=0)
    async with chatting(connection, tmp_path) as (chat, _):
        for number in range(6):
            await chat.ask(f"question {number}")
        connection.answers = [
            fails(PromptTooLong("the prompt has 900 tokens and the context holds 512")),
            says("short"),
        ]
        assert await chat.ask("and now?") == "short"
        assert len(connection.requests[-1].messages) < len(connection.requests[-2].messages)


async def test_a_cancelled_answer_is_kept_as_interrupted(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless(request: GenerateRequest) -> AsyncGenerator[Event, None]:
        yield TokenEvent("so far")
        begun.set()
        await asyncio.Event().wait()

    async with chatting(Elsewhere(endless), tmp_path) as (chat, notes):
        task = asyncio.create_task(chat.ask("hello"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert notes.said[-2:] == ["<end>", "stopped"]
        (question, answer) = await chat.shelf(Store.turns, 1)
        assert (question.text, answer.text, answer.interrupted) == ("hello", "so far", True)


async def test_one_that_is_cancelled_before_there_is_a_cluster_says_so(tmp_path: Path) -> None:
    connection = Elsewhere(says("never"))

    async def wait_for_ever(model: str, fusion: FusionRequest | None = None) -> Served:
        never: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
        return await never

    connection.ready = wait_for_ever  # type: ignore[method-assign]
    async with chatting(connection, tmp_path) as (chat, notes):
        task = asyncio.create_task(chat.ask("hello"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert notes.said == ["stopped; nothing had arrived"]


async def test_the_model_summarises_in_the_background_what_the_next_trim_takes(tmp_path: Path) -> None:
    def script(request: GenerateRequest) -> AsyncGenerator[Event, None]:
        is_summary = request.messages[-1].content.startswith(SUMMARY_TASK)
        return (says("they spoke of words") if is_summary else says("word " * 40))(request)

    connection = Elsewhere(script, ctx=600)
    async with chatting(connection, tmp_path) as (chat, notes):
        for number in range(30):
            await chat.ask(f"question {number}")
            await chat.summarised()
        asked = [r for r in connection.requests if not r.messages[-1].content.startswith(SUMMARY_TASK)]
        assert asked[-1].messages[0].content == "Earlier in this conversation: they spoke of words"
        breaks = 0
        for before, after in itertools.pairwise(asked):
            breaks += after.messages[: len(before.messages)] != before.messages
        trims = len(connection.requests) - len(asked)
        assert 2 <= breaks <= trims <= 8, "a summary costs no break of its own"
        await actions.perform(chat, "/history 1")
        assert any(line.endswith("they spoke of words)") for line in notes.said)


async def test_the_small_model_says_once_that_it_is_small(tmp_path: Path) -> None:
    async with chatting(Elsewhere(says("yes"), is_small=True), tmp_path) as (chat, notes):
        await chat.ask("one")
        await chat.ask("two")
        assert notes.said.count(SMALL_MODEL) == 1
        assert len(SMALL_MODEL) <= 80
        assert "llamboctl pull" in SMALL_MODEL


async def test_a_store_that_fails_is_told_of_once_and_the_chat_goes_on(tmp_path: Path) -> None:
    async with chatting(Elsewhere(says("yes")), tmp_path) as (chat, notes):
        assert chat.shelf._store is not None
        chat.shelf._store._db.execute("PRAGMA query_only = 1")
        assert [await chat.ask("one"), await chat.ask("two")] == ["yes", "yes"]
        told = [line for line in notes.said if line.startswith("!")]
        assert len(told) == 1
        assert told[0].endswith("the chat goes on and is not kept")
        assert len(chat.conversation.entries) == 4


async def test_every_command_of_the_table_has_an_action_and_none_is_left_over(tmp_path: Path) -> None:
    from llambo.limbot.commands import TABLE

    assert set(actions.ACTIONS) == {command.name for command in TABLE}
    async with chatting(Elsewhere(says("```py\ncode\n```")), tmp_path) as (chat, notes):
        for command in TABLE:  # with nothing said yet, each answers or says what it wants
            await actions.perform(chat, f"/{command.name}")
        await chat.ask("hello")
        await actions.perform(chat, "/copy code")
        assert "copied code" in notes.said
        path = tmp_path / "out.md"
        await actions.perform(chat, f"/export {path}")
        assert "## You\n\nhello" in path.read_text()
        await actions.perform(chat, f"/export {tmp_path / 'out.pdf'}")
        assert notes.said[-1].endswith("name it .md, .json or .txt")
        await actions.perform(chat, "/etc/hosts is a path")
        assert "> /etc/hosts is a path" in notes.said
        await actions.perform(chat, "/undo now")
        assert notes.said[-2:] == ["> /undo now", "! /undo takes no argument"]
        await actions.perform(chat, "/hel")
        assert any(line.startswith("/history") for line in notes.said)
