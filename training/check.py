"""Owns the proof that the exported file is the trained network: tokens, text and probabilities.

The engine multiplies in 8 bits (weights and activations), so probabilities differ a little from
PyTorch's; the greedy text of the check's prompts must not.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from training import export, facts, heldout, offtopic, tokenizer, train
from training.chats import ChatMaker
from training.encode import Encoder
from training.engine import Engine
from training.model import Network
from training.settings import ModelShape

PROMPTS = 50
STRINGS = 3_000
RESULT_NAME = "check.json"


def run(shape: ModelShape, folder: Path, model: Path) -> dict[str, Any]:
    """Compares and writes `check.json`; raises SystemExit where tokens or text differ."""
    made = tokenizer.load(folder)
    float_network = train.load(shape, folder)
    weights = export.tensors(float_network.state_dict())
    q8_network = Network(shape)
    q8_network.load_state_dict({
        name: torch.from_numpy(export.dequantised(array) if array.ndim == 2 else array)
        for name, array in weights.items()
    })  # fmt: skip
    prompts = [case.turns[0] for case in heldout.cases("dev")[: PROMPTS - 6]]
    prompts += ["", "What is distributed computing?", "hello", "What is 2+2?", "¿Qué?", "🙂🙂"]
    with Engine(model) as engine:
        result: dict[str, Any] = {"strings": STRINGS, "prompts": len(prompts)}
        result["token_differences"] = _token_differences(engine, made)
        for name, network in (("f32", float_network), ("q8_0", q8_network.eval())):
            same, largest = _compare(engine, network, Encoder(made), prompts)
            result[f"same_text_{name}"] = same
            result[f"largest_logprob_difference_{name}"] = round(largest, 4)
    print(json.dumps(result, indent=2))
    (folder / RESULT_NAME).write_text(json.dumps(result, indent=2), encoding="utf-8")
    if result["token_differences"] or result["same_text_q8_0"] != len(prompts):
        raise SystemExit("the exported model differs from the trained one")
    return result


def _token_differences(engine: Engine, made: Tokenizer) -> int:
    maker, rng = ChatMaker(facts.load(), 99), random.Random(99)
    stream, strings = maker.stream(), [" ", "\n", "\n\n a  b\t c ", "don't I'll we've 1234567"]
    while len(strings) < STRINGS:
        strings += [text for _, text in next(stream)]
        strings += [offtopic.nonsense(rng), offtopic.foreign(rng)]
    encode = Encoder(made)
    # Marks of turns inside a text are marks for both: so does llama.cpp read a whole chat.
    return sum(engine.tokenize(text, special=True) != encode.text(text) for text in strings[:STRINGS] if text)


@torch.no_grad()
def _compare(engine: Engine, network: Network, encoder: Encoder, prompts: list[str]) -> tuple[int, float]:
    """How many greedy texts are the same, and the largest difference of a chosen token's log-prob.

    The network is given the engine's whole answer at once: the texts are the same exactly when
    each of its tokens is the network's first choice after those before it.
    """
    same, largest = 0, 0.0
    for prompt in prompts:
        ids = encoder.prompt([("user", prompt)])
        reply = engine.post("/completion", {
            "prompt": ids, "temperature": 0.0, "n_predict": 200, "n_probs": 1,
            "return_tokens": True, "cache_prompt": False,
        })  # fmt: skip
        theirs = [entry["id"] for entry in reply["completion_probabilities"]]
        scores = [entry["logprob"] for entry in reply["completion_probabilities"]]
        logits = network(torch.tensor([ids + theirs]))[0, len(ids) - 1 : -1]
        same += logits.argmax(-1).tolist() == theirs
        logprobs = logits.float().log_softmax(-1)
        for row, token, score in zip(logprobs, theirs, scores, strict=True):
            largest = max(largest, abs(float(row[token]) - score))
    return same, largest
