"""Owns the model card: its text, with the figures that `train`, `check` and `evaluate` measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.settings import MODEL_NAME, MODEL_VERSION, ModelShape

CARD = """\
# {name} {version}

The small language model that comes with Llambo. It answers short questions about Llambo and the
words around it (distributed computing, load balancing, Plan 9, Inferno, Styx, llama.cpp, GGUF,
caches, consensus, tokens, streaming), follows up on them, and says so when it is asked anything
else. Its purpose: real answers without a network, tests with a model whose behaviour means
something, and fusion that can be measured.

| | |
| --- | --- |
| architecture | llama: {layers} layers, width {width}, {heads} heads, hidden width {hidden}, tied embeddings |
| parameters | {parameters} |
| vocabulary | {vocab} tokens, byte-level BPE (GPT-2's pre-tokenizer) |
| context | {context} tokens |
| format | GGUF, matrices in Q8_0, {bytes} bytes |
| chat template | ChatML (`<\\|im_start\\|>`, `<\\|im_end\\|>`) |
| language | English |
| licence | MIT |

## Training

From scratch, on texts written for it: {facts} facts of {topics} topics, asked in {wordings}
hand-written patterns that a paraphrase generator multiplies (frames, synonyms, openers, typing
mistakes, left-out words), in chats of one to twenty-two turns, mixed with prompts of other subjects,
other languages, code and nonsense that are refused. {tokens} tokens were seen, in {minutes} minutes
on two processor cores that others used as well. The corpus grew between the cycles of that training:
`python -m training` gives a model like this one, and not this very file.

## Figures

Measured by `python -m training evaluate` through llama.cpp, on wordings that are neither in the
corpus nor made by its generator. An answer counts when it holds the required fact. The misses were
read once before the last changes of the generator, so take the figures as a little optimistic.

| | measured | aim |
| --- | --- | --- |
| {questions} questions, greedy | {greedy} | 85 % |
| the same, temperature 0.8, one sample (mean of three seeds) | {sampled} | clearly lower |
| {off_topic} prompts of other subjects refused | {refusals} | 90 % |
| {follow_up_chats} chats with a follow-up, last answer right | {follow_ups} | 75 % |
| {bad_prompts} bad inputs: answers that reach max_tokens (256), greedy / at 0.8 | {bad_greedy} / {bad_sampled} | 1 % |
| tokens per second, one thread, on a busy machine | {tokens_per_s} | 300 |

The export against the trained network, by `python -m training check`: {strings} strings tokenised
alike by llama.cpp and `tokenizers` but {token_differences}; greedy text of {prompts} prompts the
same for {same_text_q8_0} (PyTorch with the Q8_0 weights) and {same_text_f32} (with float32 weights);
largest difference of a chosen token's log-probability {largest_logprob_difference_q8_0} and
{largest_logprob_difference_f32}.

## Limits

- It knows nothing but its subject, and only what was true of this version of Llambo.
- It can be wrong, and is then as sure as ever: it picks the fact that a question seems to ask for.
- It recalls answers; it does not reason, count, translate, summarise or write code.
- English only. One fact per answer: of a question with two parts it answers one.
- At temperature 0.8 it is wrong more often than at 0; for answers to rely on use `--temperature 0`,
  or fusion.
- For anything else use a general model: `llamboctl pull user/repo`, then `limbot -m user/repo`.
"""


def write(folder: Path, model: Path) -> None:
    """Writes the card beside `model` (its name with `.md`) from the results in `folder`."""
    card = model.with_suffix(".md")
    shape = ModelShape()
    facts: dict[str, Any] = {
        "name": MODEL_NAME, "version": MODEL_VERSION, "layers": shape.layers,
        "width": shape.width, "heads": shape.heads, "hidden": shape.hidden,
        "vocab": shape.vocab, "context": shape.context, "bytes": model.stat().st_size,
    }  # fmt: skip
    for name in ("corpus", "train", "check", "figures"):
        facts.update(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    facts["parameters"] = f"{facts['parameters'] / 1e6:.2f} million"
    facts["tokens"] = f"{facts['tokens'] / 1e6:.1f} million"
    facts["minutes"] = round(facts["seconds"] / 60)
    for name in ("bad_greedy", "bad_sampled"):
        facts[name] = f"{facts[name]['max_tokens']:.2%}"
    for name in ("greedy", "sampled", "refusals", "follow_ups"):
        facts[name] = f"{facts[name]:.1%}"
    card.write_text(CARD.format(**facts), encoding="utf-8")
    print(card)
