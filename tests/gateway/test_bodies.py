"""What is read of a request's body, and what is refused before any node sees it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.prefix import conversation_text
from llambo.core.errors import BadRequest, LlamboError
from llambo.gateway import bodies
from llambo.gateway.bodies import Asked, Shape
from llambo.gateway.errors import InvalidField

HELLO = [{"role": "user", "content": "hello"}]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def chat(shape: Shape = bodies.CHAT, **members: Any) -> Asked:
    return bodies.read(json.dumps({"messages": HELLO, **members}).encode(), shape)


def refused(body: bytes, shape: Shape = bodies.CHAT) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        bodies.read(body, shape)
    assert caught.value.message
    return caught.value


# --- members pass untouched -------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text().filter(lambda name: name != "llambo"), JSON, max_size=6))
def test_every_member_stays_the_bytes_that_were_sent(members: dict[str, Any]) -> None:
    sent = {name: json.dumps(value, ensure_ascii=False).encode() for name, value in members.items()}
    body = b"{" + b" , ".join(json.dumps(name).encode() + b" : " + raw for name, raw in sent.items()) + b"}"
    assert {name: bytes(raw) for name, raw in bodies.decode(body).items()} == sent


def test_numbers_keep_every_digit_and_unknown_members_pass() -> None:
    fields = chat(odd=1).fields | bodies.decode(b'{"temperature":0.10000000000000000001,"top_k":40.0}')
    assert bytes(fields["temperature"]) == b"0.10000000000000000001"
    assert bytes(fields["top_k"]) == b"40.0"
    assert bytes(fields["odd"]) == b"1"


def test_the_extensions_are_taken_out() -> None:
    asked = chat(llambo={"session": "s", "node_type": "tiny"})
    assert (asked.session, asked.node_type) == ("s", "tiny")
    assert "llambo" not in asked.fields
    assert set(asked.fields) == {"messages"}


# --- what routing needs -----------------------------------------------------------------------------------------------


def test_the_plain_members_are_read() -> None:
    asked = chat(model="m", stream=True, max_tokens=7)
    assert (asked.model, asked.streams, asked.max_tokens) == ("m", True, 7)


def test_what_is_left_out_or_null_is_the_default() -> None:
    asked = chat(model=None, stream=None, max_tokens=None, temperature=None, llambo=None, tools=None)
    assert asked == Asked(asked.fields, "", False, asked.text, 0, "", "")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"])
def test_the_limit_has_several_names(name: str) -> None:
    assert chat(**{name: 12}).max_tokens == 12


def test_minus_one_is_llama_servers_word_for_no_limit() -> None:
    assert chat(n_predict=-1).max_tokens == 0


def test_the_bodys_session_comes_before_the_headers() -> None:
    body = json.dumps({"messages": HELLO}).encode()
    assert bodies.read(body, bodies.CHAT, session="header").session == "header"
    body = json.dumps({"messages": HELLO, "llambo": {"session": "body"}}).encode()
    assert bodies.read(body, bodies.CHAT, session="header").session == "body"


def test_an_endpoint_that_cannot_stream_does_not() -> None:
    assert not bodies.read(b'{"input":"a","stream":true}', bodies.EMBEDDINGS).streams


# --- the text that the model reads ------------------------------------------------------------------------------------


def test_a_conversation_is_the_text_that_other_interfaces_make_of_it() -> None:
    turns = [("system", "be kind"), ("user", "hé\n"), ("assistant", "yes"), ("user", "go on")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert chat(messages=messages).text == conversation_text(turns)


def test_parts_are_the_same_text_as_a_string() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert chat(messages=[{"role": "user", "content": parts}]).text == chat().text


def test_each_turn_begins_the_next_ones_text() -> None:
    images = [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": "what is it?"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
    messages = [{"role": "user", "content": images}, call, {"role": "tool", "content": "42"}]
    texts = [chat(messages=messages[:count]).text for count in (1, 2, 3)]
    assert texts[1].startswith(texts[0])
    assert texts[2].startswith(texts[1])
    assert len(set(texts)) == 3
    assert "data:," in texts[0]
    assert '"f"' in texts[1]


def test_tools_and_the_system_prompt_come_first() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    plain, with_tools = chat().text, chat(tools=tools).text
    assert with_tools.endswith(plain)
    assert not with_tools.startswith(plain[:4])
    asked = bodies.read(json.dumps({"messages": HELLO, "system": "be kind"}).encode(), bodies.ANTHROPIC)
    assert asked.text == conversation_text([("system", "be kind"), ("user", "hello")])


def test_responses_take_a_string_or_items() -> None:
    one = bodies.read(b'{"input":"hello","instructions":"be kind"}', bodies.RESPONSES).text
    many = bodies.read(json.dumps({"input": HELLO, "instructions": "be kind"}).encode(), bodies.RESPONSES).text
    assert one == many == conversation_text([("system", "be kind"), ("user", "hello")])
    items = [*HELLO, {"type": "function_call_output", "call_id": "c", "output": "42"}]
    assert "42" in bodies.read(json.dumps({"input": items}).encode(), bodies.RESPONSES).text


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3], ["a", "b"], [[1], [2]], {"prompt_string": "a"}])
def test_a_prompt_may_be_text_or_tokens(prompt: object) -> None:
    asked = bodies.read(json.dumps({"prompt": prompt}).encode(), bodies.COMPLETION)
    assert asked.text == (prompt if isinstance(prompt, str) else json.dumps(prompt))


def test_the_parts_of_an_infill_are_its_text() -> None:
    asked = bodies.read(b'{"input_prefix":"def f(","input_suffix":"):","n_predict":3}', bodies.INFILL)
    assert "def f(" in asked.text
    assert asked.max_tokens == 3


# --- what no engine could take ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b'{"messages":[]', "not JSON"),
        (b'{"messages":[]} {}', "not JSON"),
        (b'{"temperature":NaN}', "not JSON"),
        (b'{"messages":"\xff"}', "UTF-8"),
        (b'{"\xc3":1}', "UTF-8"),
        (b'{"messages":[{"role":"user","content":"\\ud800 half"}]}', "not JSON"),
        (b'{"messages":' + b"[" * 500 + b"]" * 500 + b"}", "nested"),
        (b'{"messages":' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", "nested"),
        (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b"[" * 1_000_000, "no JSON object"),
        (b'{"a":' * 1_000_000, "nested"),
        (b'{"a":' + b"[" * 200 + b'"' + b'\\"' * 1_000_000, "not JSON"),  # a string in a million places, and no end
        (b'{"a":' + b"[" * 200 + b'"' + b"\\" * 1_000_000, "not JSON"),
    ],
    ids=range(18),
)
def test_what_is_no_body_is_refused(body: bytes, says: str) -> None:
    assert says in refused(body).message


def test_brackets_in_strings_do_not_nest_and_wide_is_not_deep() -> None:
    assert chat(messages=[{"role": "user", "content": '[{"\\' * 500}]).text
    assert chat(logit_bias=[[token, 1] for token in range(100_000)])


def test_a_schema_may_be_as_deep_as_schemas_may_be() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(20):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert chat(tools=[tool])
    for _ in range(20):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    with pytest.raises(BadRequest, match="nested"):
        chat(tools=[tool])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 5),
        ("stream", "yes"),
        ("messages", "hello"),
        ("messages", {}),
        ("messages", []),
        ("messages", None),
        ("messages", ["hello"]),
        ("messages", [{"role": 1, "content": "a"}]),
        ("messages", [{"content": "a"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": ["a"]}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": 5}]}]),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", []),
        ("seed", "1"),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", "5"),
        ("max_tokens", 2**31),
        ("max_completion_tokens", -5),
        ("n_predict", -2),
        ("n", 0),
        ("top_logprobs", -1),
        ("tools", {}),
        ("tools", ["f"]),
        ("response_format", "json"),
        ("stream_options", []),
        ("grammar", 5),
    ],
)
def test_a_member_of_the_wrong_kind_is_named(name: str, value: object) -> None:
    error = refused(json.dumps({"messages": HELLO, name: value}).encode())
    assert isinstance(error, InvalidField)
    assert error.param == name
    assert name in error.message


@pytest.mark.parametrize(
    ("shape", "param"),
    [
        (bodies.CHAT, "messages"),
        (bodies.ANTHROPIC, "messages"),
        (bodies.COMPLETION, "prompt"),
        (bodies.RESPONSES, "input"),
        (bodies.EMBEDDINGS, "input"),
        (bodies.RERANK, "query"),
        (bodies.TOKENIZE, "content"),
        (bodies.DETOKENIZE, "tokens"),
    ],
)
def test_what_is_missing_is_named(shape: Shape, param: str) -> None:
    error = refused(b"{}", shape)
    assert isinstance(error, InvalidField)
    assert error.param == param


@pytest.mark.parametrize(
    ("shape", "body", "param"),
    [
        (bodies.COMPLETION, {"prompt": 5}, "prompt"),
        (bodies.COMPLETION, {"prompt": None}, "prompt"),
        (bodies.RESPONSES, {"input": 5}, "input"),
        (bodies.RESPONSES, {"input": "a", "instructions": 5}, "instructions"),
        (bodies.ANTHROPIC, {"messages": HELLO, "system": 5}, "system"),
        (bodies.EMBEDDINGS, {"input": 5}, "input"),
        (bodies.RERANK, {"query": 5, "documents": []}, "query"),
        (bodies.RERANK, {"query": "a", "documents": "b"}, "documents"),
        (bodies.DETOKENIZE, {"tokens": [-1]}, "tokens"),
        (bodies.DETOKENIZE, {"tokens": "a"}, "tokens"),
        (bodies.INFILL, {"input_prefix": 5, "input_suffix": ""}, "input_prefix"),
    ],
)
def test_each_endpoints_own_members_are_checked(shape: Shape, body: dict[str, Any], param: str) -> None:
    error = refused(json.dumps(body).encode(), shape)
    assert isinstance(error, InvalidField)
    assert error.param == param


@pytest.mark.parametrize("extension", [5, [], {"odd": 1}, {"session": 5}, {"session": "s" * 300}])
def test_extensions_that_are_none_are_refused(extension: object) -> None:
    refused(json.dumps({"messages": HELLO, "llambo": extension}).encode())


def test_a_grammar_that_would_end_the_engines_process_is_refused() -> None:
    assert "parentheses" in refused(json.dumps({"messages": HELLO, "grammar": "(" * 1000}).encode()).message


@given(st.binary(max_size=200), st.sampled_from([bodies.CHAT, bodies.RESPONSES, bodies.COMPLETION, bodies.RERANK]))
def test_any_bytes_are_read_or_refused(body: bytes, shape: Shape) -> None:
    try:
        bodies.read(body, shape)
    except LlamboError as error:
        assert error.message


@given(
    st.dictionaries(st.sampled_from(["messages", "input", "prompt", "llambo", "model", "stream", "tools", "n"]), JSON),
    st.sampled_from([bodies.CHAT, bodies.RESPONSES, bodies.COMPLETION, bodies.ANTHROPIC, bodies.EMBEDDINGS]),
)
def test_any_json_is_read_or_refused(body: dict[str, Any], shape: Shape) -> None:
    try:
        asked = bodies.read(msgspec.json.encode(body), shape)
    except BadRequest as error:
        assert error.message
    else:
        assert "llambo" not in asked.fields
