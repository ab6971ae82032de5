"""The binary protocol over a real Unix socket."""

from __future__ import annotations

from pathlib import Path

from bridge_fakes import Running, running_bridge

from llambo.bridge.settings import BridgeSettings


async def test_a_request_is_answered_under_its_id(bridge: Running) -> None:
    client = await bridge.client()
    await client.hello()
    client.send_frame(id="a", op="ping")
    assert await client.frame() == {"id": "a", "type": "ok", "message": "pong", "data": "pong"}


async def test_a_stream_is_ok_then_tokens_then_done(bridge: Running) -> None:
    client = await bridge.client()
    await client.hello()
    client.send_frame(id=1, op="infer_stream", prompt="a b", logprobs=True)
    frames = [await client.frame() for _ in range(4)]
    assert [frame["type"] for frame in frames] == ["ok", "token", "token", "done"]
    assert frames[1] == {"id": 1, "type": "token", "token": "a", "ids": [0], "logprob": -0.5}
    assert frames[3]["finish_reason"] == "stop"


async def test_requests_of_one_connection_do_not_wait_for_each_other(bridge: Running) -> None:
    client = await bridge.client()
    await client.hello()
    client.send_frame(id=1, op="infer", prompt="hold")
    client.send_frame(id=2, op="infer", prompt="hello")
    assert (await client.frame())["id"] == 2
    client.send_frame(id=3, op="cancel", target=1)
    answers = {frame["id"]: frame for frame in [await client.frame(), await client.frame()]}
    assert answers[3]["type"] == "ok"
    assert (answers[1]["code"], answers[1]["data"]) == ("cancelled", "held")


async def test_a_cancelled_stream_is_done(bridge: Running) -> None:
    client = await bridge.client()
    await client.hello()
    client.send_frame(id="s", op="infer_stream", prompt="hold")
    first, _ = await client.frame(), await client.frame()
    other = await bridge.client()
    assert (await other.ask(f"CANCEL {first['data']['id']}"))["status"] == "ok"
    last = await client.frame()
    assert (last["type"], last["finish_reason"], last["tokens"]) == ("done", "cancelled", 1)
    assert "prompt_tokens" not in last


async def test_cancel_of_an_unknown_request_is_an_error(bridge: Running) -> None:
    client = await bridge.client()
    await client.hello()
    for target in (7, "x", ""):
        client.send_frame(id=1, op="cancel", target=target)
        assert (await client.frame())["code"] == "not_found"


async def test_an_id_in_flight_cannot_be_used_again(bridge: Running) -> None:
    client = await bridge.client()
    await client.hello()
    client.send_frame(id=1, op="infer", prompt="hold")
    client.send_frame(id=1, op="infer", prompt="hold")
    assert (await client.frame())["code"] == "bad_request"
    client.send_frame(id=2, op="cancel", target=1)
    assert {(await client.frame())["id"] for _ in range(2)} == {1, 2}
    client.send_frame(id=1, op="infer", prompt="hello")
    assert (await client.frame())["data"] == "hello"


async def test_hello_waits_for_the_answers_before_it(bridge: Running) -> None:
    client = await bridge.client()
    client.send("INFER hello\nHELLO 2\n")
    client.send_frame(id=1, op="ping")
    assert (await client.line())["data"] == "hello"
    assert (await client.line())["data"]["protocol"] == 2
    assert (await client.frame())["data"] == "pong"


async def test_a_bad_frame_gets_an_error_and_the_connection_goes_on(bridge: Running) -> None:
    client = await bridge.client()
    await client.hello()
    client.send(b"\0\0\0\x02\xc1\xc1")
    client.send_frame(id=9, op="infer", prompt="x", max_tokens=0)
    client.send_frame(id=1, op="ping")
    first, second, third = [await client.frame() for _ in range(3)]
    assert (first["id"], first["code"]) == (None, "bad_request")
    assert (second["id"], second["code"]) == (9, "bad_request")
    assert third["data"] == "pong"


async def test_a_frame_that_is_too_long_ends_the_connection(bridge: Running) -> None:
    client = await bridge.client()
    await client.hello()
    client.send(b"PING\n")
    assert (await client.frame())["code"] == "too_large"
    assert await client.reader.read() == b""


async def test_too_many_requests_in_flight_are_refused_one_by_one(path: Path) -> None:
    async with running_bridge(path, settings=BridgeSettings(max_requests=3)) as bridge:
        client = await bridge.client()
        await client.hello()
        for number in range(4):
            client.send_frame(id=number, op="infer", prompt="hold")
        answer = await client.frame()
        assert (answer["id"], answer["code"]) == (3, "overloaded")
        client.send_frame(id=5, op="ping")
        assert (await client.frame())["id"] == 5


async def test_the_end_of_the_input_is_a_hang_up(bridge: Running) -> None:
    client = await bridge.client()
    await client.hello()
    client.send_frame(id=1, op="infer", prompt="hold")
    await bridge.door.until_active(1)
    client.writer.write_eof()
    await bridge.door.until_active(0)
