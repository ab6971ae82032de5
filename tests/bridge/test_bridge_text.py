from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.bridge import commands as c
from llambo.bridge.answers import Failed, Finished, Reply, Started
from llambo.bridge.text import encode_line, parse_line
from llambo.core.errors import BadRequest, LlamboError, UnknownCommand
from llambo.core.types import LoadOptions, Message, Sampling, TokenEvent


def prompt_of(line: str) -> str:
    command = parse_line(line.encode())
    assert isinstance(command, c.Infer | c.InferStream)
    return command.request.raw_prompt or command.request.messages[-1].content


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("PING", c.Ping()),
        ("ping", c.Ping()),
        ("  Ping  ", c.Ping()),
        ("STATUS", c.Status()),
        ("MODELS", c.Models()),
        ("QUIT", c.Quit()),
        ("LOAD /m/a b.gguf", c.Load("/m/a b.gguf")),
        ('LOAD "/m/odd\\nname.gguf"', c.Load("/m/odd\nname.gguf")),
        (
            "LOAD as=x ctx=512 slots=2 threads=3 gpu_layers=0 built-in",
            c.Load("built-in", "x", LoadOptions(512, 2, 3, 0)),
        ),
        ("FREE", c.Free()),
        ("FREE x", c.Free("x")),
        ("TOKENIZE a  b", c.Tokenize("a  b")),
        ("EMBED model=x a", c.Embed("a", "x")),
        ("CANCEL", c.Cancel()),
        ("CANCEL 0a1b", c.Cancel("0a1b")),
        ("AUTH llb_x", c.Auth("llb_x")),
        ("HELLO 2", c.Hello(2)),
    ],
)
def test_a_line_is_a_command(line: str, command: c.Command) -> None:
    assert parse_line(line.encode()) == command


def test_options_stand_before_the_prompt() -> None:
    command = parse_line(b"INFER max_tokens=5 temperature=.5 top_p=1 seed=7 raw=true model=m Hello  there ")
    assert isinstance(command, c.Infer)
    assert command.request.raw_prompt == "Hello  there "
    assert command.request.sampling == Sampling(5, 0.5, 1.0, 7)
    assert command.request.model == "m"


def test_without_raw_a_prompt_is_a_user_message() -> None:
    command = parse_line(b"INFER_STREAM hi")
    assert isinstance(command, c.InferStream)
    assert command.request.messages == (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("INFER x=1 y", "x=1 y"),
        ("INFER max_tokens=3 x=1 max_tokens=4", "x=1 max_tokens=4"),
        ("INFER MAX_TOKENS=3", "MAX_TOKENS=3"),
        ('INFER "two\\nlines"', "two\nlines"),
        ('INFER "he said" yes', '"he said" yes'),
        ('INFER "open', '"open'),
        ("INFER   max_tokens=3  padded", " padded"),
        ("INFER grün", "grün"),
        ("INFER  ", " "),
    ],
)
def test_the_rest_is_the_prompt(line: str, prompt: str) -> None:
    assert prompt_of(line) == prompt


@pytest.mark.parametrize(
    ("rest", "prompts"),
    [
        ("a||b c||d", ["a", "b c", "d"]),
        ("one", ["one"]),
        ('"a||b"||c', ["a||b", "c"]),
        ('a||"b\\n"', ["a", "b\n"]),
        ('"a" x||b', ['"a" x', "b"]),
        ('"\\x"||b', ['"\\x"', "b"]),
    ],
)
def test_prompts_are_separated_by_two_bars(rest: str, prompts: list[str]) -> None:
    command = parse_line(f"INFER_MULTI {rest}".encode())
    assert isinstance(command, c.InferMulti)
    assert [request.messages[-1].content for request in command.requests] == prompts


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "empty"),
        (b"   ", "empty"),
        (b"INFER", "the prompt is empty"),
        (b"INFER ", "the prompt is empty"),
        (b"INFER max_tokens=3", "the prompt is empty"),
        (b'INFER ""', "the prompt is empty"),
        (b"INFER_MULTI a||||b", "the prompt 2 is empty"),
        (b"INFER_MULTI", "empty"),
        (b"INFER_MULTI " + b"||".join([b"x"] * 257), "at most 256"),
        (b"INFER max_tokens=0 x", "max_tokens must be between 1"),
        (b"INFER max_tokens=-1 x", "max_tokens must be between 1"),
        (b"INFER max_tokens=1000000000 x", "max_tokens must be between 1"),
        (b"INFER max_tokens=1e9 x", "max_tokens must be a whole number"),
        (b"INFER max_tokens=1_0 x", "max_tokens must be a whole number"),
        (b"INFER max_tokens= x", "max_tokens must be a whole number"),
        (b"INFER max_tokens=" + b"9" * 9999 + b" x", "max_tokens must be a whole number"),
        (b"INFER temperature=abc x", "temperature must be a number, not 'abc'"),
        (b"INFER temperature=nan x", "temperature must be a number"),
        (b"INFER temperature=1e999 x", "temperature must be between"),
        (b"INFER temperature=-1 x", "temperature must be between"),
        (b"INFER top_p=2 x", "top_p must be between"),
        (b"INFER seed=-1 x", "seed must be between"),
        (b"INFER raw=yes x", "raw must be true or false"),
        (b"INFER model= x", "model= needs a name"),
        (b"INFER seed=1 seed=2 x", "seed is given twice"),
        (b"LOAD", "the path is empty"),
        (b"LOAD ctx=x /m", "ctx must be a whole number"),
        (b"LOAD ctx=-1 /m", "ctx must be between"),
        (b"TOKENIZE", "the text is empty"),
        (b"EMBED", "the text is empty"),
        (b"PING x", "PING takes no argument"),
        (b"HELLO 3", "speaks protocol 2"),
        (b"HELLO x", "whole number"),
        (b"INFER a\0b", "NUL"),
        (b'INFER "a\\u0000b"', "NUL"),
        (b"INFER \xff", "UTF-8"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_bad_input_is_an_error_that_says_so(line: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_line(line)


MIB = 1 << 20


@pytest.mark.parametrize(
    "line",
    [
        "INFER_MULTI " + "||" * (MIB // 2 - 8),
        "INFER_MULTI " + "x||" * (MIB // 3 - 8),
        "INFER_MULTI " + "||".join(['"a\\n"'] * (MIB // 8)),
        "INFER_MULTI " + '"||' * (MIB // 3 - 8),
        "INFER_MULTI " + '"\\x||' * (MIB // 6),
        "INFER_MULTI " + '"' + "\\" * MIB,
        "INFER_MULTI " + ("x||" + " " * 4000) * 255,
        "INFER " + "seed=1 " * (MIB // 7),
        "INFER " + "k=v " * (MIB // 4),
        "INFER " + "a" * MIB,
        "INFER " + " " * MIB,
        "INFER " + " " * (MIB // 2) + "a" * (MIB // 2),
        "INFER model=" + "m" * (MIB // 2) + " max_tokens=2 " + " " * (MIB // 2),
        'INFER "' + "\\n" * (MIB // 2) + '"',
        'INFER "' + '\\"' * (MIB // 2),
        "LOAD " + "as=x " * (MIB // 5),
        "TOKENIZE " + " " * MIB,
        " " * MIB,
        " " * MIB + "PING",
        "PING " + " " * MIB,
        "CANCEL " + " " * MIB,
        "HELLO " + "1" * MIB,
    ],
    ids=lambda line: f"{line[:24]!r}",
)
def test_no_line_takes_long(line: str) -> None:
    began = time.thread_time()
    with contextlib.suppress(BadRequest):
        parse_line(line.encode())
    assert time.thread_time() - began < 1, "what grows with the square of a line's length takes many seconds here"


def test_as_many_prompts_as_are_allowed_and_no_more() -> None:
    command = parse_line(b"INFER_MULTI " + b"||".join([b"x"] * 256))
    assert isinstance(command, c.InferMulti)
    assert len(command.requests) == 256
    for last in (b"x", b'"x"'):
        with pytest.raises(BadRequest, match="at most 256"):
            parse_line(b"INFER_MULTI " + b"||".join([b"x"] * 256 + [last]))


def test_an_unknown_command_names_the_known_ones() -> None:
    with pytest.raises(UnknownCommand, match=r"'FROB'.*PING.*INFER_STREAM.*QUIT"):
        parse_line(b"frob it")


def test_an_unknown_command_is_not_repeated_at_length() -> None:
    with pytest.raises(UnknownCommand) as caught:
        parse_line(b"X" * 100_000)
    assert len(caught.value.message) < 300


@given(st.binary(max_size=200))
def test_garbage_is_a_command_or_an_error_of_ours(line: bytes) -> None:
    try:
        parse_line(line)
    except LlamboError as error:
        assert error.code in ("bad_request", "unknown_command")


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_any_prompt_can_be_sent_as_a_json_string(prompt: str) -> None:
    assert prompt_of(f"INFER {json.dumps(prompt)}") == prompt


@given(st.lists(st.text(min_size=1).filter(lambda text: "\0" not in text), min_size=1, max_size=5))
def test_any_prompts_can_be_sent_as_json_strings(prompts: list[str]) -> None:
    line = "INFER_MULTI " + "||".join(json.dumps(prompt) for prompt in prompts)
    command = parse_line(line.encode())
    assert isinstance(command, c.InferMulti)
    assert [request.messages[-1].content for request in command.requests] == prompts


def test_answers_are_lines_of_json() -> None:
    assert encode_line(Reply("pong", "pong")) == b'{"status":"ok","message":"pong","data":"pong"}\n'
    assert encode_line(TokenEvent('a"\n', (1, 2), -0.5)) == b'{"type":"token","token":"a\\"\\n"}\n'
    assert json.loads(encode_line(Started("ab"))) == {
        "status": "ok",
        "message": "Starting token generation",
        "data": {"id": "ab"},
    }
    assert json.loads(encode_line(Finished({"tokens": 3}))) == {
        "type": "token",
        "token": "",
        "final": True,
        "tokens": 3,
    }
    error = BadRequest("no")
    assert json.loads(encode_line(Failed(error))) == {"status": "error", "message": "no", "code": "bad_request"}
    last = json.loads(encode_line(Failed(error, in_stream=True)))
    assert (last["type"], last["final"], last["status"]) == ("token", True, "error")


@given(st.text())
def test_any_token_is_one_line(text: str) -> None:
    line = encode_line(TokenEvent(text))
    assert line.count(b"\n") == 1
    assert json.loads(line)["token"] == text
