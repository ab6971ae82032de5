"""A caller's regular expression finds what counts of an answer, and cannot hang or fell whoever runs it."""

from __future__ import annotations

import asyncio
import time

import pytest

from llambo.cluster import extract as extracting
from llambo.cluster.extract import Extract
from llambo.core.errors import BadRequest, Overloaded


async def test_the_first_group_is_what_counts_or_else_the_whole_match() -> None:
    async with Extract(r"answer is (\S+)") as extract:
        assert await extract.of("I think the answer is 42 \n") == "42"
        assert await extract.of("no idea") is None
        assert await extract.of("the answer is \ud800!") == "\ud800!"
    async with Extract(r"\d+") as extract:
        assert await extract.of("3 or 4") == "3"
    async with Extract(r"(?i)yes: (a)|no: (b)") as extract:
        assert await extract.of("NO: B") == "B"
    async with Extract(r"x*") as extract:
        assert await extract.of("abc") == ""


async def test_without_an_expression_the_whole_text_counts_and_no_process_is_started() -> None:
    async with Extract("") as extract:
        assert await extract.of("all\nof it") == "all\nof it"


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<x", "(?:" * 300, "a{5,2}", "(?<=a+)b", "\\"])
async def test_what_is_no_regular_expression_is_told_in_words(pattern: str) -> None:
    with pytest.raises(BadRequest, match="extract is no regular expression: "):
        await Extract(pattern).__aenter__()


async def test_an_expression_that_would_take_for_ever_is_ended_and_holds_up_nobody() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    started = time.perf_counter()
    async with Extract(r"(a+)+$") as extract:
        assert await extract.of("aaab aaa") == "aaa"
        with pytest.raises(BadRequest, match="extract takes too much time or memory to search an answer"):
            await extract.of("a" * 60 + "b")
    assert time.perf_counter() - started < 20
    assert ticks > 20
    ticking.cancel()


async def test_an_expression_that_would_take_all_memory_is_ended() -> None:
    async with Extract(r"(?:(a)|(b))*c") as extract:
        assert await extract.of("ababc") == "a"
        with pytest.raises(BadRequest, match="too much time or memory"):
            await extract.of("ab" * 4_000_000)


async def test_a_search_that_nobody_waits_for_any_more_is_ended_at_once() -> None:
    ended_after_s: list[float] = []
    for _ in range(3):
        async with Extract(r"(a+)+$") as extract:
            search = asyncio.create_task(extract.of("a" * 60 + "b"))
            await asyncio.sleep(0)
            search.cancel()
            with pytest.raises(asyncio.CancelledError):
                await search
            started = time.perf_counter()
        ended_after_s.append(time.perf_counter() - started)
    assert min(ended_after_s) < 1, "the best counts: a busy machine may add to one"


async def test_a_long_answer_is_searched_whole() -> None:
    async with Extract(r"end: (\d+)") as extract:
        assert await extract.of("é" * 300_000 + "end: 7") == "7"


async def test_so_many_expressions_have_a_process_and_no_more_however_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extracting, "MAX_PROCESSES", 2)
    for _ in range(3):
        with pytest.raises(BadRequest):
            await Extract("(").__aenter__()
    async with Extract("a"), Extract("b"), Extract(""):
        with pytest.raises(Overloaded, match="2 questions with extract are being answered already; ask again later"):
            await Extract("c").__aenter__()
    async with Extract("a"), Extract("b") as extract:
        assert await extract.of("ab") == "b"
