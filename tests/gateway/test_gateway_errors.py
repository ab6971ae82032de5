"""How failures look from outside: statuses, envelopes, headers, and what a node's own refusals become."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from llambo.core import errors
from llambo.core.errors import LlamboError
from llambo.gateway.errors import (
    Conflict,
    Dialect,
    Failure,
    InvalidField,
    Missing,
    dialect_of,
    failure_of,
    failure_of_node,
)

TABLE = [
    (errors.BadRequest("x"), 400, "bad_request"),
    (InvalidField("x", "messages"), 400, "bad_request"),
    (errors.TooLarge("x"), 413, "too_large"),
    (errors.PromptTooLong("x"), 400, "context_length_exceeded"),
    (errors.NotFound("x"), 404, "model_not_found"),
    (errors.NoModel("x"), 404, "model_not_found"),
    (Missing("x"), 404, "not_found"),
    (Conflict("x"), 409, "conflict"),
    (errors.Cancelled("x"), 409, "cancelled"),
    (errors.Refused("x"), 403, "refused"),
    (errors.Overloaded("x"), 429, "overloaded"),
    (errors.TimedOut("x"), 504, "timeout"),
    (errors.NodeLost("x"), 502, "node_lost"),
    (errors.EngineFailed("x"), 502, "engine_failed"),
    (errors.Diverged("x"), 502, "diverged"),
    (errors.BadModel("x"), 503, "bad_model"),
    (errors.NoMemory("x"), 503, "no_memory"),
    (LlamboError("x"), 500, "failed"),
]
DIALECTS: tuple[Dialect, ...] = ("openai", "responses", "anthropic")


@pytest.mark.parametrize(("error", "status", "code"), TABLE, ids=lambda value: type(value).__name__)
def test_each_error_has_its_status_and_code(error: LlamboError, status: int, code: str) -> None:
    failure = failure_of(error)
    assert (failure.status, failure.code, failure.message) == (status, code, "x")


def all_errors(kind: type[LlamboError]) -> Iterator[type[LlamboError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from all_errors(child)


def test_every_error_of_the_tree_is_a_failure_and_only_the_unforeseen_are_500() -> None:
    for kind in all_errors(LlamboError):
        if kind.__module__ == errors.__name__:
            status = failure_of(kind("what was wrong")).status
            assert (status == 500) == (kind in {LlamboError, errors.NameInUse}), kind


def test_the_member_at_fault_is_named() -> None:
    assert failure_of(InvalidField("x", "temperature")).param == "temperature"
    assert failure_of(errors.NotFound("x")).param == "model"
    assert failure_of(errors.TimedOut("x")).param is None


def test_openai_has_its_four_members() -> None:
    body = json.loads(failure_of(InvalidField("wrong", "n")).body("openai"))
    assert body == {"error": {"message": "wrong", "type": "invalid_request_error", "param": "n", "code": "bad_request"}}


def test_anthropic_has_its_own_envelope() -> None:
    body = json.loads(failure_of(errors.Overloaded("full")).body("anthropic"))
    assert body == {"type": "error", "error": {"type": "rate_limit_error", "message": "full", "code": "overloaded"}}


def test_only_a_429_says_when_to_try_again_in_whole_seconds() -> None:
    assert dict(failure_of(errors.Overloaded("x")).headers)[b"retry-after"] == b"1"
    assert dict(Failure(429, "rate_limit_exceeded", "x", retry_after_s=2.1).headers)[b"retry-after"] == b"3"
    for error, status, _ in TABLE:
        assert (b"retry-after" in dict(failure_of(error).headers)) == (status == 429)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_in_a_stream_a_failure_is_one_event_with_the_error_in_it(dialect: Dialect) -> None:
    event = failure_of(errors.NodeLost("gone")).event(dialect)
    *names, data, empty, end = event.decode().split("\n")
    assert names == ([] if dialect == "openai" else ["event: error"])
    assert (empty, end) == ("", "")
    body = json.loads(data.removeprefix("data: "))
    assert body["error"]["message"] == "gone"
    assert body.get("type") == (None if dialect == "openai" else "error")


def test_the_path_tells_the_dialect() -> None:
    assert dialect_of("/v1/messages") == dialect_of("/v1/messages/count_tokens") == "anthropic"
    assert dialect_of("/v1/responses") == "responses"
    assert dialect_of("/v1/messagesx") == dialect_of("/v1/chat/completions") == dialect_of("/") == "openai"


def node_error(**error: object) -> bytes:
    return json.dumps({"error": error}).encode()


def test_a_prompt_that_is_too_long_is_told_with_both_numbers() -> None:
    body = node_error(code=400, message="m", type="exceed_context_size_error", n_prompt_tokens=700, n_ctx=512)
    failure = failure_of_node(400, body, "n1", "prompt")
    assert (failure.status, failure.code, failure.param) == (400, "context_length_exceeded", "prompt")
    assert "700" in failure.message
    assert "512" in failure.message


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected"),
    [
        (400, "invalid_request_error", "top_k is odd", (400, "bad_request")),
        (413, "invalid_request_error", "too many documents", (413, "too_large")),
        (418, "", "short and stout", (400, "bad_request")),
    ],
)
def test_a_nodes_refusal_keeps_its_words(status: int, kind: str, message: str, expected: tuple[int, str]) -> None:
    failure = failure_of_node(status, node_error(code=status, message=message, type=kind), "n1")
    assert (failure.status, failure.code) == expected
    assert failure.message == message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":"no"}', b"\xff", b"[" * 5000])
def test_a_refusal_that_is_no_llama_cpp_is_told_with_its_status(body: bytes) -> None:
    failure = failure_of_node(422, body, "n7")
    assert (failure.status, failure.code) == (400, "bad_request")
    assert "n7" in failure.message
    assert "422" in failure.message


def test_words_that_are_no_text_do_not_keep_a_failure_from_being_told() -> None:
    failure = Failure(503, "bad_model", "caf\udce9.gguf is broken")
    for dialect in ("openai", "responses", "anthropic"):
        assert b"caf?.gguf is broken" in failure.body(dialect)
        assert b"caf?.gguf is broken" in failure.event(dialect)
