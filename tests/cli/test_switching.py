"""A chat's connection: it goes where the cluster is, and on elsewhere when that ends."""

from __future__ import annotations

import os
import signal
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from llambo.cli import running
from llambo.cli.switching import PRIVATE, Switching
from llambo.core import config
from llambo.core.errors import BadRequest, Refused, Unreachable
from llambo.core.types import Done, GenerateRequest, Sampling
from llambo.limbot.connection import Served
from tests.cli.daemons import cluster, ctl

QUESTION = "What is a node?"


async def answer(connection: Switching, served: Served, **sampling: int) -> tuple[str, Done]:
    """The text and the end of a short answer."""
    request = GenerateRequest.from_prompt(
        QUESTION, model=served.model, sampling=Sampling(temperature=0.0, max_tokens=sampling.get("max_tokens", 12))
    )
    text, done = "", None
    async with aclosing(connection.generate(request)) as events:
        async for event in events:
            if isinstance(event, Done):
                done = event
            else:
                text += event.text
    assert done is not None
    return text, done


async def test_it_follows_the_daemon_and_goes_on_alone_without_one() -> None:
    async with Switching(config.load()) as connection:
        alone = await connection.ready("")
        assert (alone.where, alone.model, alone.ctx, alone.is_small) == (PRIVATE, "built-in", 2048, True)
        assert await connection.ready("") is alone
        text, _ = await answer(connection, alone)
        private = psutil.Process().children(recursive=True)
        assert private
        with cluster():
            together = await connection.ready("")
            assert together.where == "the cluster of this home"
            assert not psutil.wait_procs(private, timeout=30)[1], "the private node ended"
            assert (await answer(connection, together))[0] == text
            assert len(await connection.tokenize("two words")) >= 2
            assert await connection.models() == ["built-in"]
        with pytest.raises(Unreachable):
            await answer(connection, together)
        again = await connection.ready("")
        assert again.where == PRIVATE
        assert (await answer(connection, again))[0] == text


async def test_a_daemon_that_is_killed_is_left_and_its_successor_found() -> None:
    async with Switching(config.load()) as connection:
        with cluster() as facts:
            assert (await connection.ready("")).where == "the cluster of this home"
            left = psutil.Process(facts["pid"]).children(recursive=True)
            os.kill(facts["pid"], signal.SIGKILL)
            psutil.wait_procs([psutil.Process(facts["pid"])] if psutil.pid_exists(facts["pid"]) else [], timeout=30)
            assert not psutil.wait_procs(left, timeout=30)[1]
            assert running.find(running.DAEMON) is None
            assert (await connection.ready("")).where == PRIVATE
            with cluster():
                served = await connection.ready("")
                assert served.where == "the cluster of this home"
                await answer(connection, served)


async def test_another_model_takes_the_place_of_the_first_in_a_private_cluster(walk_model: Path) -> None:
    async with Switching(config.load()) as connection:
        assert (await connection.ready("")).model == "built-in"
        served = await connection.ready(str(walk_model))
        assert (served.model, served.is_small) == ("walk", False)
        assert (await answer(connection, served))[1].model == "walk"
        assert len(psutil.Process().children(recursive=True)) == 2, "the zygote and one node"
        assert await connection.models() == ["walk"]


async def test_a_bridge_elsewhere_wants_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    token = ctl("token", "create", "--scope", "infer").split()[-1]
    monkeypatch.setenv("LLAMBO_BRIDGE_LISTEN", "tcp!127.0.0.1!0")
    with cluster() as facts:
        address = next(place for place in facts["bridge"] if place.startswith("tcp!"))
        monkeypatch.setenv("LLAMBO_TOKEN", token)
        async with Switching(config.load(), connect=address) as connection:
            served = await connection.ready("")
            assert served.where == address
            await answer(connection, served)
            assert token not in repr(connection) + repr(served)
        monkeypatch.setenv("LLAMBO_TOKEN", "llb_wrong")
        async with Switching(config.load(), connect=address) as connection:
            with pytest.raises(Refused):
                await connection.ready("")


async def test_an_address_that_is_none_or_where_nobody_listens_is_told() -> None:
    with pytest.raises(BadRequest, match="write tcp!HOST!PORT"):
        Switching(config.load(), connect="somewhere")
    for address in ("tcp!127.0.0.1!1", "http://127.0.0.1:1", "https://127.0.0.1:1"):
        async with Switching(config.load(), connect=address) as connection:
            with pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
                await connection.ready("")
