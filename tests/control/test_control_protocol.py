"""The codec of the control protocol."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.control import protocol as p
from llambo.core.errors import LlamboError, NoMemory

calls = st.sampled_from(sorted(p.NAMES, key=lambda kind: kind.__name__)).flatmap(st.from_type)


@given(st.integers(0, 2**53), calls)
def test_every_call_is_read_as_it_was_written(request_id: int, call: p.Call) -> None:
    assert p.decode_request(p.encode_request(request_id, call)) == (request_id, call)


@pytest.mark.parametrize(
    ("line", "request_id", "complaint"),
    [
        (b"", 0, "this is no request"),
        (b"\xff\xfe\n", 0, "this is no request"),
        (b"[]\n", 0, "Expected `object`"),
        (b'{"call": "nodes"}\n', 0, "missing required field `id`"),
        (b'{"id": 3, "call": "explode"}\n', 3, "there is no call 'explode'; there are status, nodes, spawn"),
        (b'{"id": 3, "call": "spawn"}\n', 3, "spawn: Object missing required field `count`"),
        (b'{"id": 3, "call": "spawn", "args": {"count": "two"}}\n', 3, "spawn: Expected `int`, got `str`"),
        (b'{"id": 3, "call": "spawn", "args": {"count": 1, "x": 1}}\n', 3, "spawn: Object contains unknown field `x`"),
        (b'{"id": 3, "call": "nodes", "args": 1}\n', 3, "nodes: Expected `object`"),
    ],
)
def test_what_is_no_request_is_told_with_its_id(line: bytes, request_id: int, complaint: str) -> None:
    with pytest.raises(p.BadLine) as caught:
        p.decode_request(line)
    assert caught.value.request_id == request_id
    assert complaint in caught.value.error.message


@given(st.binary(max_size=60))
def test_no_line_is_more_than_a_refusal(line: bytes) -> None:
    with pytest.raises(p.BadLine):
        p.decode_request(line)
    with pytest.raises(LlamboError):
        p.decode_answer(line)


def test_answers_have_the_documented_shape() -> None:
    assert json.loads(p.encode_answer(1, p.Progress({"ready": 1}))) == {"id": 1, "progress": {"ready": 1}}
    assert json.loads(p.encode_answer(2, p.Result(None))) == {"id": 2, "ok": None}
    error = {"code": "no_memory", "message": "full"}
    assert json.loads(p.encode_answer(3, NoMemory("full"))) == {"id": 3, "error": error}


def test_answers_are_read_as_they_were_written() -> None:
    assert p.decode_answer(p.encode_answer(1, p.Progress([1]))) == (1, p.Progress([1]))
    assert p.decode_answer(p.encode_answer(2, p.Result(None))) == (2, p.Result(None))
    request_id, error = p.decode_answer(p.encode_answer(3, NoMemory("full")))
    assert (request_id, type(error), str(error)) == (3, NoMemory, "full")


def test_a_key_does_not_show_in_what_a_call_prints_as() -> None:
    assert "secret" not in repr(p.Attach("http://h", api_key="secret"))
