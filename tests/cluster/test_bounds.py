"""What bounds an answer: what is refused before any node sees it, and that nodes survive what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from llambo.cluster import bounds
from llambo.cluster.launch.base import NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.upstream import Attempt, open_upstream
from llambo.core.errors import BadRequest
from llambo.core.types import GenerateRequest, LoadOptions, Sampling


def grammar(depth: int) -> str:
    return "root ::= " + "(" * depth + '"a"' + ")" * depth


def schema(depth: int) -> str:
    return '{"items":' * (depth - 1) + "{}" + "}" * (depth - 1)


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        ({"grammar": grammar(65)}, "more than 64 parentheses"),
        ({"grammar": grammar(30_000)}, "more than 64 parentheses"),
        ({"grammar": grammar(100_000)}, "has 200012 bytes and may have 65536"),
        ({"grammar": 'root ::= "' + "(" * 65}, "more than 64 parentheses"),
        ({"grammar": 'root ::= <"> ' + "(" * 65 + '"a"'}, "more than 64 parentheses"),
        ({"grammar": 'root ::= "' + '\\"' * 30_000 + "(" * 65}, "more than 64 parentheses"),
        ({"grammar": "(" * 65 + "<" * 60_000}, "more than 64 parentheses"),
        ({"grammar": "(" * 65 + "[\\" * 30_000}, "more than 64 parentheses"),
        ({"json_schema": schema(65)}, "more than 64 deep"),
        ({"json_schema": '{"enum":' + "[" * 64 + "]" * 64 + "}"}, "more than 64 deep"),
        ({"json_schema": '{"a":' + "[" * 60_000}, "more than 64 deep"),
        ({"json_schema": "[" * 100_000}, "has 100000 bytes and may have 65536"),
        ({"json_schema": "{"}, "not JSON"),
        ({"json_schema": "[]"}, "no JSON object"),
    ],
)
def test_what_is_too_large_too_deep_or_no_schema_is_refused_with_what_would_be_right(
    bound: dict[str, str], words: str
) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        bounds.check(GenerateRequest(raw_prompt="x", **bound))  # type: ignore[arg-type]
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "bound",
    [
        {"grammar": grammar(64)},
        {"grammar": "root ::= " + '("(" | "sin(" | [(] | "\\"(")' * 100 + " # " + "(" * 100},
        {"grammar": 'root ::= ("a")' + ' ("b")' * 1000},
        {"json_schema": schema(64)},
        {"json_schema": '{"enum":["' + "[" * 1000 + '"]}'},
        {},
    ],
)
def test_what_is_wide_and_not_deep_passes(bound: dict[str, str]) -> None:
    bounds.check(GenerateRequest(raw_prompt="x", **bound))  # type: ignore[arg-type]


async def test_a_node_lives_through_whatever_passes(tmp_path: Path, walk_model: Path) -> None:
    chain = "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(3000)) + 'a3000 ::= "a"'
    worst = [
        {"grammar": grammar(64)},
        {"grammar": chain},
        {"grammar": "root ::= root"},
        {"json_schema": schema(64)},
        {"json_schema": '{"$ref":"#"}'},
    ]
    launcher = LocalLauncher(tmp_path / "run")
    options = LoadOptions(ctx=256, slots=1, threads=1)
    node = open_upstream(await launcher.spawn(NodeRequest("n1", str(walk_model), options), timeout_s=30))
    for bound in worst:
        bounds.check(GenerateRequest(raw_prompt="x", **bound))  # type: ignore[arg-type]
        attempt = Attempt("x", sampling=Sampling(max_tokens=2, temperature=0), **bound)  # type: ignore[arg-type]
        try:
            assert [event async for event in node.stream(attempt)]
        except BadRequest as error:
            assert "root" in bound.get("grammar", "root"), error
        await node.health(5)
    await node.close()
    await launcher.close()
