"""What takes a model made for it: calls of tools, whose ids are random, and ranking."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bench.make_model import PRESETS, SPECIALS, Matrix, Writer
from llambo.cluster.api import Cluster
from llambo.core.errors import BadRequest
from tests.cluster.clusters import quick
from tests.cluster.llama_server import BUILT_IN
from tests.cluster.relay_world import (
    GREEDY,
    LIMITS,
    OPTIONS,
    ask,
    dialect,
    essence,
    killed_in_the_middle,
    relay,
    second,
)

# --- ranking ----------------------------------------------------------------------------------------------------------

QUESTION = {"query": "what is a node", "documents": ["apple pie", "a node is a process", "rain"]}


class _Reranker(Writer):
    """A random model with the head of Qwen3's rerankers: two classes, of which the first is how well a text fits."""

    def facts(self, name: str) -> None:
        super().facts(name)
        self.gguf.add_pooling_type(gguf.PoolingType.RANK)
        self.gguf.add_classifier_output_labels(["yes", "no"])

    def tensors(self) -> None:
        s = self.shape
        for layer in range(s.layers):
            for name in ("attn_q_norm", "attn_k_norm"):
                self.put(f"blk.{layer}.{name}.weight", np.ones(s.width // s.heads, np.float32), s.kind.F32)
        self.put("cls.output.weight", self.matrix(2, s.width, 3.0), s.kind.F32)
        super().tensors()


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "reranker.gguf"
    return _Reranker(path, PRESETS["tiny"], seed=3, architecture="qwen3").write("reranker")


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(quick()) as cluster:
        await cluster.load(str(BUILT_IN), name="built-in", options=OPTIONS)
        yield cluster


async def test_a_reranker_ranks_on_a_node_for_that(cluster: Cluster, reranker: Path) -> None:
    await cluster.load(str(reranker), name="reranker", options=OPTIONS)
    request = replace(ask("/v1/rerank", QUESTION, streams=False, kind="rerank"), model="reranker")
    first, again = [json.loads((await relay(cluster, request)).body) for _ in range(2)]
    assert sorted(result["index"] for result in first["results"]) == [0, 1, 2]
    scores = {result["index"]: result["relevance_score"] for result in first["results"]}
    assert len({round(score, 6) for score in scores.values()}) == 3
    assert all(0 <= score <= 1 for score in scores.values())
    assert essence(first) == essence(again)
    nodes = [node for node in cluster._world.nodes.values() if node.model == "reranker"]
    assert sorted(node.type for node in nodes) == ["custom", "reranking"]


async def test_a_model_that_cannot_rank_says_so_before_a_node_is_started(cluster: Cluster) -> None:
    with pytest.raises(BadRequest, match="built-in cannot rank texts; that takes a reranker"):
        await relay(cluster, ask("/v1/rerank", QUESTION, streams=False, kind="rerank"))
    assert len(cluster._world.nodes) == 1


# --- tools ------------------------------------------------------------------------------------------------------------

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}\n"
    'Call one so:\n<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content %}{{ m.content }}{% endif %}"
    '{% if m.tool_calls %}{% for t in m.tool_calls %}\n<tool_call>\n{"name": "{{ t.function.name }}", '
    '"arguments": {{ t.function.arguments | tojson }}}\n</tool_call>{% endfor %}{% endif %}<|im_end|>\n{% endfor %}'
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"  # the walk begins after a special token
)
SPACE = "\u2581"
BEGIN = f'<tool_call>\n{{"name":{SPACE}"weather",{SPACE}"arguments":{SPACE}{{"city":{SPACE}"'
ENDING = '"}}\n</tool_call>'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: dict[str, dict[str, Any]] = {
    "chat": {"tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]},
    "responses": {"tools": [{"type": "function", "name": "weather", "parameters": PARAMETERS}]},
    "messages": {"tools": [{"name": "weather", "input_schema": PARAMETERS}]},
}
CALL_ID = re.compile(rb'"(?:id|call_id)":"((?:call_|fc_|toolu_)?\w{9,})"')


class _ToolWalk(Writer):
    """A walk whose greedy text is one call of a tool, with many words for its argument, and then the end."""

    def output(self, embedding: Matrix) -> Matrix:
        first_word, last = len(SPECIALS) + 256, self.shape.vocab - 1
        words = [at + first_word for at, word in enumerate(self.words) if word.isalpha()]
        words = [at for at in words if at < last - 1][:120]
        order = [last - 1, *words, last, 4]  # BEGIN, words, ENDING, <|im_end|>
        output = np.zeros((self.shape.vocab, self.shape.width), np.float32)
        output[order[1:]] = embedding[order[:-1]] * np.float32(4 / np.sqrt(self.shape.width))
        output[order[0]] = embedding[3] * np.float32(8 / np.sqrt(self.shape.width))  # <|im_start|>
        return output


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tools.gguf"
    writer = _ToolWalk(path, PRESETS["tiny"], walk=True, pieces=(BEGIN, ENDING), template=TOOL_TEMPLATE)
    return writer.write("tools")


@pytest.mark.parametrize("name", TOOLS)
async def test_a_tool_call_keeps_its_id_when_its_node_dies(name: str, tool_model: Path) -> None:
    limit: dict[str, Any] = {LIMITS.get(name, "max_tokens"): 200}
    request = dialect(name, **GREEDY, **TOOLS[name], **limit)
    async with Cluster(quick()) as cluster:
        await cluster.load(str(tool_model), name="tools", options=OPTIONS)
        await second(cluster)
        whole = await relay(cluster, request)
        assert b"weather" in whole.body
        for death in (6, 30):
            seen = await killed_in_the_middle(cluster, request, death)
            assert seen.events == whole.events
            assert len(seen.ids) == len(whole.ids)
            assert len(set(CALL_ID.findall(seen.body))) == len(set(CALL_ID.findall(whole.body))) > 0
