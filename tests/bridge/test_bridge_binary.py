from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.bridge import commands as c
from llambo.bridge.answers import Answer, Failed, Finished, Reply, Started, counts_of
from llambo.bridge.binary import (
    HEADER_BYTES,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from llambo.core.errors import BadRequest, NodeLost
from llambo.core.types import Done, GenerateRequest, LoadOptions, Message, Sampling, TokenEvent

keys = st.integers(-(2**63), 2**64 - 1) | st.text(min_size=1, max_size=128)
texts = st.text(min_size=1).filter(lambda text: "\0" not in text)


def request(**fields: Any) -> c.Command | BadRequest:
    return decode_request(msgspec.msgpack.encode({"id": 1, **fields})).command


def payload(frame: bytes) -> bytes:
    assert int.from_bytes(frame[:HEADER_BYTES], "big") == len(frame) - HEADER_BYTES
    return frame[HEADER_BYTES:]


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({"op": "ping"}, c.Ping()),
        ({"op": "PING"}, c.Ping()),
        ({"op": "load", "path": "/m", "name": "x", "ctx": 9}, c.Load("/m", "x", LoadOptions(9))),
        ({"op": "free"}, c.Free()),
        ({"op": "tokenize", "text": "a"}, c.Tokenize("a")),
        ({"op": "embed", "text": "a", "model": "m"}, c.Embed("a", "m")),
        ({"op": "cancel", "target": 3}, c.Cancel(3)),
        ({"op": "cancel", "target": "ab"}, c.Cancel("ab")),
        ({"op": "quit"}, c.Quit()),
        (
            {"op": "infer", "prompt": "a", "raw": True, "seed": 1, "temperature": 1},
            c.Infer(GenerateRequest(raw_prompt="a", sampling=Sampling(seed=1, temperature=1.0))),
        ),
        (
            {"op": "infer_stream", "messages": [{"role": "user", "content": "a"}], "system": "s", "logprobs": True},
            c.InferStream(GenerateRequest(messages=(Message("system", "s"), Message("user", "a")), logprobs=True)),
        ),
        (
            {"op": "infer_multi", "prompts": ["a", "b||c"]},
            c.InferMulti((GenerateRequest.from_prompt("a"), GenerateRequest.from_prompt("b||c"))),
        ),
    ],
)
def test_a_map_is_a_command(fields: dict[str, Any], command: c.Command) -> None:
    assert request(**fields) == command


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "op must name a command"),
        ({"op": 3}, "op must name a command"),
        ({"op": "frob"}, "unknown command"),
        ({"op": "ping", "x": 1}, "unknown field 'x'"),
        ({"op": "infer"}, "the prompt is empty"),
        ({"op": "infer", "prompt": 3}, "Expected `str"),
        ({"op": "infer", "prompt": "a\0"}, "NUL"),
        ({"op": "infer", "prompt": "a", "max_tokens": 0}, "max_tokens must be between"),
        ({"op": "infer", "prompt": "a", "temperature": float("nan")}, "temperature must be between"),
        ({"op": "infer", "prompt": "a", "temprature": 1}, "unknown field 'temprature'"),
        ({"op": "infer", "prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "either prompt or messages"),
        ({"op": "infer", "messages": []}, "messages is empty"),
        ({"op": "infer", "messages": [{"role": "boss", "content": "b"}]}, "Invalid enum value"),
        ({"op": "infer", "messages": [{"role": "user", "content": "\0"}]}, "NUL"),
        ({"op": "infer", "messages": [{"role": "user", "content": "b"}], "raw": True}, "raw needs prompt"),
        ({"op": "infer", "prompts": ["a"]}, "INFER_MULTI"),
        ({"op": "infer_multi", "prompt": "a"}, "prompts only"),
        ({"op": "infer_multi", "prompts": []}, "empty"),
        ({"op": "load"}, "path"),
        ({"op": "hello", "version": 9}, "protocol 2"),
    ],
)
def test_bad_fields_are_an_error_with_the_request_s_id(fields: dict[str, Any], words: str) -> None:
    answer = decode_request(msgspec.msgpack.encode({"id": 7, **fields}))
    assert answer.key == 7
    assert isinstance(answer.command, BadRequest)
    assert words in answer.command.message


@pytest.mark.parametrize("key", [None, True, 1.5, "", "x" * 129, [1]])
def test_an_id_is_a_number_or_a_text(key: object) -> None:
    answer = decode_request(msgspec.msgpack.encode({"id": key, "op": "ping"}))
    assert answer.key is None
    assert isinstance(answer.command, BadRequest)


@given(st.binary(max_size=200))
def test_garbage_is_a_request_or_an_error_of_ours(data: bytes) -> None:
    answer = decode_request(data)
    assert answer.key is None or isinstance(answer.command, BadRequest)


def test_deep_nesting_is_an_error_of_ours() -> None:
    assert isinstance(decode_request(b"\x81\xa1x" + b"\x91" * 100_000).command, BadRequest)


@given(keys, texts)
def test_a_request_survives_encoding(key: int | str, text: str) -> None:
    answer = decode_request(payload(encode_request(key, "tokenize", {"text": text})))
    assert (answer.key, answer.command) == (key, c.Tokenize(text))


@given(keys, st.text(), st.lists(st.integers(0, 2**31)), st.none() | st.floats(-100, 0))
def test_a_token_survives_encoding(key: int | str, text: str, ids: list[int], logprob: float | None) -> None:
    frame = decode_answer(payload(encode_answer(key, TokenEvent(text, tuple(ids), logprob))))
    assert (frame.id, frame.type, frame.token, frame.ids, frame.logprob) == (key, "token", text, tuple(ids), logprob)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Reply("pong", "pong"), "ok"),
        (Started("ab"), "ok"),
        (Finished(counts_of(Done("stop", "m", "n", 1, 2, 3, 4.0, 5.0))), "done"),
        (Finished({"finish_reason": "cancelled", "tokens": 1, "prompt_tokens": None}), "done"),
        (Failed(NodeLost("gone"), "part"), "error"),
    ],
)
def test_every_answer_has_its_type(answer: Answer, kind: str) -> None:
    assert decode_answer(payload(encode_answer(5, answer))).type == kind


def test_an_error_keeps_code_message_and_what_was_done() -> None:
    frame = decode_answer(payload(encode_answer(None, Failed(NodeLost("gone"), "part"))))
    assert (frame.id, frame.code, frame.message, frame.data) == (None, "node_lost", "gone", "part")


@given(st.binary(max_size=100))
def test_what_is_no_answer_is_a_bad_request(data: bytes) -> None:
    with contextlib.suppress(BadRequest):
        decode_answer(data)


def test_many_prompts_share_one_system_prompt() -> None:
    command = request(op="infer_multi", prompts=["a", "b"], system="be kind")
    assert isinstance(command, c.InferMulti)
    first, second = (request.messages for request in command.requests)
    assert first == (Message("system", "be kind"), Message("user", "a"))
    assert first[0] is second[0], "it is checked once, however many prompts there are"
