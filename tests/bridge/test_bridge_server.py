"""The text protocol over a real Unix socket, in front of a door without models."""

from __future__ import annotations

import asyncio
import logging
import random
import socket

import pytest
from bridge_fakes import PATIENCE_S, RawClient, Running

from llambo.core.types import LoadOptions, Sampling

LONG = "x" * (2 << 20)


async def started(client: RawClient, prompt: str) -> str:
    """The id of a stream whose first token has arrived."""
    answer = await client.ask(f"INFER_STREAM {prompt}")
    assert answer["message"] == "Starting token generation"
    assert "token" in await client.line()
    request_id: str = answer["data"]["id"]
    return request_id


async def last_of(client: RawClient) -> dict[str, object]:
    while not (line := await client.line()).get("final"):
        pass
    return line


async def test_ping_answers_exactly_as_promised(bridge: Running) -> None:
    client = await bridge.client()
    client.send("PING\n")
    assert await client.reader.readline() == b'{"status":"ok","message":"pong","data":"pong"}\n'


async def test_status_tells_everything_that_is_promised(bridge: Running) -> None:
    answer = await (await bridge.client()).ask("STATUS")
    assert answer["message"] == "Model loaded: /models/fake.gguf"
    for name in ("models", "slots", "busy", "requests", "tokens", "errors", "uptime_s", "version", "http"):
        assert name in answer["data"]
    assert answer["data"]["rss_bytes"] > 1 << 20
    assert answer["data"]["http"] is None, "a bridge alone speaks no HTTP"


async def test_models_come_and_go(bridge: Running) -> None:
    client = await bridge.client()
    await client.ask("FREE")
    assert (await client.ask("STATUS"))["message"] == "No model loaded"
    assert (await client.ask("FREE"))["code"] == "no_model"
    assert (await client.ask("INFER x"))["code"] == "no_model"
    loaded = await client.ask("LOAD as=one ctx=512 /m/a.gguf")
    assert loaded["message"] == "Model loaded successfully"
    assert loaded["data"] == {"name": "one", "path": "/models/one.gguf", "ctx": 512, "slots": 4}
    assert [model["name"] for model in (await client.ask("MODELS"))["data"]] == ["one"]
    assert (await client.ask("LOAD /m/bad.gguf"))["code"] == "bad_model"
    assert (await client.ask("PING"))["data"] == "pong"


async def test_an_answer_comes_whole_with_its_counts(bridge: Running) -> None:
    client = await bridge.client()
    answer = await client.ask("INFER max_tokens=9 hello big world")
    assert answer == {
        "status": "ok",
        "message": "Inference completed",
        "data": "hello big world",
        "finish_reason": "stop",
        "model": "fake",
        "node": "n1",
        "tokens": 3,
        "prompt_tokens": 3,
        "cached_tokens": 1,
        "ttft_ms": 1.5,
        "time_ms": 2.5,
        "failovers": 0,
    }
    assert bridge.door.requests[-1].sampling == Sampling(9)


async def test_a_stream_is_tokens_between_a_start_and_a_final_line(bridge: Running) -> None:
    client = await bridge.client()
    first = await client.ask("INFER_STREAM hello world")
    assert first["message"] == "Starting token generation"
    assert await client.line() == {"type": "token", "token": "hello"}
    assert await client.line() == {"type": "token", "token": " world"}
    last = await client.line()
    assert (last["final"], last["token"], last["finish_reason"], last["tokens"]) == (True, "", "stop", 2)
    assert (await client.ask("PING"))["data"] == "pong"


async def test_several_prompts_are_answered_in_order(bridge: Running) -> None:
    answer = await (await bridge.client()).ask("INFER_MULTI a b||c||d e f")
    assert answer["data"] == ["a b", "c", "d e f"]
    assert (answer["tokens"], answer["prompt_tokens"], answer["cached_tokens"]) == (6, 9, 3)
    assert answer["finish_reasons"] == ["stop"] * 3


async def test_many_prompts_take_turns_on_the_slots(bridge: Running) -> None:
    prompts = [f"a {number}" for number in range(100)]
    answer = await (await bridge.client()).ask(f"INFER_MULTI {'||'.join(prompts)}")
    assert answer["data"] == prompts
    assert bridge.door.most_active == 4


async def test_one_prompt_that_fails_fails_all_and_says_which(bridge: Running) -> None:
    answer = await (await bridge.client()).ask("INFER_MULTI a||fail||hold")
    assert answer["code"] == "node_lost"
    assert answer["message"].startswith("prompt 2 of 3: ")
    await bridge.door.until_active(0)


async def test_tokenize_and_embed(bridge: Running) -> None:
    client = await bridge.client()
    assert (await client.ask("TOKENIZE ab"))["data"] == [97, 98]
    assert (await client.ask("EMBED ab"))["data"] == [0.6, 0.8]


async def test_commands_of_one_connection_are_answered_in_order(bridge: Running) -> None:
    client = await bridge.client()
    client.send("INFER one\nPING\nFROB\nINFER two\nSTATUS\n")
    answers = [await client.line() for _ in range(5)]
    assert [answer.get("data") for answer in answers[:4]] == ["one", "pong", None, "two"]
    assert answers[2]["code"] == "unknown_command"


async def test_other_connections_do_not_wait(bridge: Running) -> None:
    busy, other = await bridge.client(), await bridge.client()
    await started(busy, "hold")
    assert (await other.ask("INFER hello"))["data"] == "hello"


async def test_cancel_on_the_same_connection_takes_effect_at_once(bridge: Running) -> None:
    client = await bridge.client()
    await started(client, "hold")
    client.send("CANCEL\n")
    last = await client.line()
    assert (last["final"], last["finish_reason"], last["tokens"]) == (True, "cancelled", 1)
    assert "status" not in last
    assert (await client.line())["message"] == "Cancelled"
    await bridge.door.until_active(0)


async def test_cancel_right_behind_a_command_ends_it(bridge: Running) -> None:
    client = await bridge.client()
    client.send("INFER_STREAM endless\nCANCEL\nPING\n")
    assert (await client.line())["message"] == "Starting token generation"
    assert (await last_of(client))["finish_reason"] == "cancelled"
    assert (await client.line())["message"] == "Cancelled"
    assert (await client.line())["data"] == "pong"


async def test_a_cancelled_infer_gives_what_there_was(bridge: Running) -> None:
    client = await bridge.client()
    client.send("INFER hold\n")
    await bridge.door.until_active(1)
    client.send("CANCEL\n")
    answer = await client.line()
    assert (answer["status"], answer["code"], answer["data"]) == ("error", "cancelled", "held")


async def test_a_cancelled_multi_gives_what_there_was(bridge: Running) -> None:
    client = await bridge.client()
    client.send("INFER_MULTI hold||hold\n")
    await bridge.door.until_active(2)
    client.send("CANCEL\n")
    answer = await client.line()
    assert (answer["code"], answer["data"]) == ("cancelled", ["held", "held"])


async def test_cancel_by_id_from_another_connection(bridge: Running) -> None:
    client, other = await bridge.client(), await bridge.client()
    request_id = await started(client, "hold")
    assert (await other.ask(f"CANCEL {request_id}"))["status"] == "ok"
    assert (await last_of(client))["finish_reason"] == "cancelled"
    assert (await other.ask(f"CANCEL {request_id}"))["code"] == "not_found"


async def test_cancel_of_nothing_is_an_error(bridge: Running) -> None:
    client = await bridge.client()
    assert (await client.ask("CANCEL"))["code"] == "not_found"
    assert (await client.ask("CANCEL abc"))["code"] == "not_found"


async def test_an_id_is_told_to_nobody_else(bridge: Running) -> None:
    client, other = await bridge.client(), await bridge.client()
    request_id = await started(client, "hold")
    for command in ("STATUS", "MODELS"):
        other.send(f"{command}\n")
        assert request_id.encode() not in await other.reader.readline()


async def test_free_during_a_stream_ends_it_with_an_error(bridge: Running) -> None:
    client, other = await bridge.client(), await bridge.client()
    await started(client, "hold")
    assert (await other.ask("FREE"))["status"] == "ok"
    last = await client.line()
    assert (last["final"], last["status"], last["code"]) == (True, "error", "node_lost")


async def test_an_unforeseen_failure_is_answered_and_logged(bridge: Running, caplog: pytest.LogCaptureFixture) -> None:
    client = await bridge.client()
    with caplog.at_level(logging.ERROR, "llambo.bridge"):
        await started(client, "crash secret words")
        last = await client.line()
        assert (last["final"], last["code"]) == (True, "failed")
        assert (await client.ask("INFER crash"))["code"] == "failed"
    assert caplog.records[0].exc_info is not None
    assert "secret words" not in caplog.text
    assert (await client.ask("PING"))["data"] == "pong"


async def test_an_unforeseen_failure_of_the_status_is_answered_and_logged(
    bridge: Running, caplog: pytest.LogCaptureFixture
) -> None:
    client = await bridge.client()
    bridge.door.models["odd"] = None  # type: ignore[assignment]
    assert (await client.ask("STATUS"))["code"] == "failed"
    assert caplog.records[0].exc_info is not None
    assert (await client.ask("PING"))["data"] == "pong"
    del bridge.door.models["odd"]


async def test_ping_is_answered_while_a_model_loads(bridge: Running) -> None:
    client, other = await bridge.client(), await bridge.client()
    bridge.door.load_gate = asyncio.Event()
    client.send("LOAD /m/slow.gguf\n")
    await bridge.door.until_loads_begun(1)
    assert (await other.ask("PING"))["data"] == "pong"
    bridge.door.load_gate.set()
    assert (await client.line())["status"] == "ok"


async def test_two_loads_at_once_are_both_answered(bridge: Running) -> None:
    clients = [await bridge.client() for _ in range(2)]
    bridge.door.load_gate = asyncio.Event()
    for client in clients:
        client.send("LOAD as=same /m/x.gguf\n")
    await bridge.door.until_loads_begun(2)
    bridge.door.load_gate.set()
    codes = {(await client.line()).get("code", "") for client in clients}
    assert codes == {"", "name_in_use"}


@pytest.mark.parametrize("command", ["INFER_STREAM hold", "INFER hold", "INFER_MULTI hold||hold"])
async def test_a_client_that_hangs_up_cancels_at_once(bridge: Running, command: str) -> None:
    client = await bridge.client()
    client.send(f"{command}\nPING\n")
    await bridge.door.until_active(2 if "||" in command else 1)
    await client.close()
    await bridge.door.until_active(0)


async def test_a_client_that_hangs_up_with_a_full_queue_cancels_at_once(bridge: Running) -> None:
    client = await bridge.client()
    client.send("INFER hold\n" + "PING\n" * 1000)
    await bridge.door.until_active(1)
    await client.close()
    await bridge.door.until_active(0)


async def test_a_client_that_has_only_finished_speaking_gets_every_answer(bridge: Running) -> None:
    client = await bridge.client()
    client.send("PING\nSTATUS\nINFER hello\nINFER_STREAM a b\n")
    client.writer.write_eof()
    answers = await client.rest()
    assert [answer.get("data") for answer in answers[:3:2]] == ["pong", "hello"]
    assert answers[-1]["final"]


async def test_a_client_that_hangs_up_after_it_finished_speaking_cancels_at_once(bridge: Running) -> None:
    client = await bridge.client()
    client.send("INFER hold\n")
    client.writer.write_eof()
    await bridge.door.until_active(1)
    await client.close()
    await bridge.door.until_active(0)


async def test_half_a_line_and_then_a_hang_up_runs_nothing(bridge: Running) -> None:
    client = await bridge.client()
    client.send("PING\nFREE")
    assert (await client.line())["data"] == "pong"
    await client.close()
    assert (await (await bridge.client()).ask("MODELS"))["data"], "FREE was not run"


async def test_half_a_line_and_then_the_end_is_told(bridge: Running) -> None:
    client = await bridge.client()
    client.send("PING\nFREE")
    client.writer.write_eof()
    answers = await client.rest()
    assert [answer.get("code") for answer in answers] == [None, "bad_request"]
    assert bridge.door.models


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("INFER ", "bad_request"),
        (b"INFER \xff\xfe", "bad_request"),
        ("INFER a\0b", "bad_request"),
        (f"INFER {LONG}", "too_large"),
        ("FROB", "unknown_command"),
        ("INFER max_tokens=0 x", "bad_request"),
        ("INFER max_tokens=-1 x", "bad_request"),
        ("INFER max_tokens=1e9 x", "bad_request"),
        ("INFER max_tokens=1000000000 x", "bad_request"),
        ("INFER temperature=abc x", "bad_request"),
        ("", "bad_request"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_bad_input_gets_an_error_and_the_connection_goes_on(
    bridge: Running, line: str | bytes, code: str
) -> None:
    client = await bridge.client()
    client.send(line)
    client.send("\nPING\n")
    assert (await client.line())["code"] == code
    assert (await client.line())["data"] == "pong"
    assert not bridge.door.requests


@pytest.mark.parametrize("opening", [b"", b"HELLO 2\n"])
async def test_garbage_harms_nobody_else(bridge: Running, opening: bytes, caplog: pytest.LogCaptureFixture) -> None:
    other = await bridge.client()
    for length in range(100):
        client = await bridge.client()
        client.send(opening + random.randbytes(length) + b"\n")
        client.writer.write_eof()
        assert (await other.ask("PING"))["data"] == "pong"
    assert (await other.ask("INFER hello"))["data"] == "hello"
    assert not caplog.records


async def test_bytes_one_by_one_are_a_command(bridge: Running) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(bridge.path))
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        for byte in b"INFER hello\n":
            await loop.sock_sendall(client, bytes([byte]))
            await (await bridge.client()).ask("PING")  # the bridge has read until here
        answer = await asyncio.wait_for(loop.sock_recv(client, 1000), PATIENCE_S)
    assert b'"data":"hello"' in answer


async def test_a_loaded_model_gets_the_options(bridge: Running) -> None:
    seen: list[LoadOptions | None] = []
    load = bridge.door.load

    async def spy(ref: str, *, name: str = "", options: LoadOptions | None = None) -> object:
        seen.append(options)
        return await load(ref, name=name, options=options)

    bridge.door.load = spy  # type: ignore[method-assign,assignment]
    await (await bridge.client()).ask("LOAD ctx=64 slots=2 threads=1 /m/y.gguf")
    assert seen == [LoadOptions(64, 2, 1)]
