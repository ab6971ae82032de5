"""Owns the figures: the held-out files put through the real engine.

Nothing here is used to train. `figures` needs no PyTorch; the tests use it on the shipped model.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from training import heldout, offtopic
from training.chats import Chat
from training.engine import Engine, EngineError
from training.heldout import Case

SAMPLED_TEMPERATURE = 0.8
SAMPLED_SEEDS = 3
BAD_GENERATED = 170
BAD_MAX_TOKENS = 256
RESULT_NAME = "figures.json"
SLOTS = 4

_Item = TypeVar("_Item")


def accuracy(
    engine: Engine,
    cases: list[Case],
    temperature: float = 0.0,
    seed: int = 1,
    missed: Callable[[str, str], None] | None = None,
) -> float:
    """The share of `cases` whose last answer holds what is wanted; `missed` hears of the others."""

    def answer(numbered: tuple[int, Case]) -> str:
        # One seed for all would give all the same draw for the first token, which decides most.
        number, case = numbered
        chat: Chat = []
        for turn in case.turns:
            chat.append(("user", turn))
            chat.append(("assistant", engine.answer(chat, temperature, 1000 * seed + number)["text"]))
        return chat[-1][1]

    answers = _side_by_side(engine, answer, list(enumerate(cases)))
    failures = [(c, a) for c, a in zip(cases, answers, strict=True) if not c.passes(a)]
    for case, text in failures:
        if missed is not None:
            missed(" >> ".join(case.turns), text)
    return 1 - len(failures) / len(cases)


def refusals(engine: Engine, prompts: list[str], missed: Callable[[str, str], None] | None = None) -> float:
    """The share of `prompts` that are refused; `missed` hears of the others."""
    answers = _side_by_side(engine, lambda prompt: _answer(engine, prompt), prompts)
    failures = [(p, a) for p, a in zip(prompts, answers, strict=True) if not heldout.refused(a)]
    for prompt, text in failures:
        if missed is not None:
            missed(prompt, text)
    return 1 - len(failures) / len(prompts)


def _answer(engine: Engine, prompt: str) -> str:
    text: str = engine.answer([("user", prompt)])["text"]
    return text


def _side_by_side(engine: Engine, work: Callable[[_Item], str], items: list[_Item]) -> list[str]:
    with ThreadPoolExecutor(engine.slots) as pool:
        return list(pool.map(work, items))


def bad_input() -> list[str]:
    """Empty, very long, foreign, code, emoji and adversarial prompts, always the same ones."""
    rng = random.Random(7)
    found = ["", " ", "\n", "a" * 10_000, "What is a node? " * 625, "node " * 2_000]
    found += ["\U0001f600" * 2_500, "x" * 500, "What is a node? " * 60, "why? " * 200]
    found += heldout.prompts("bad")
    makers = (offtopic.nonsense, offtopic.foreign, offtopic.prompt)
    while len(found) < BAD_GENERATED:
        found.append(rng.choice(makers)(rng))
    for words in (50, 100, 200, 400):
        found.append(offtopic.long_text(rng, words))
    return found


def endings(engine: Engine, prompts: list[str], temperature: float) -> dict[str, float]:
    """Shares of prompts whose answer ended, reached max_tokens, or that the engine refused."""

    def ending(prompt: str) -> str:
        try:
            reply = engine.answer([("user", prompt)], temperature, max_tokens=BAD_MAX_TOKENS)
        except EngineError as error:
            if "exceed_context_size" not in str(error):
                raise
            return "too_long"
        return "ended" if reply["finish"] == "stop" else "max_tokens"

    kinds = _side_by_side(engine, ending, prompts)
    return {kind: round(kinds.count(kind) / len(kinds), 4)
            for kind in ("ended", "max_tokens", "too_long")}  # fmt: skip


def speed(engine: Engine, prompts: list[str]) -> float:
    """The median of tokens per second while an answer is written."""
    replies = [engine.answer([("user", prompt)]) for prompt in prompts]
    return statistics.median(float(r["timings"]["predicted_per_second"]) for r in replies)


def figures(model: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Every figure of the model card; the speed is that of one thread and one request."""
    questions, roundabout = heldout.questions(), heldout.cases("roundabout")
    follow_ups, late = heldout.cases("followups"), heldout.cases("followups-late")

    def missed(wording: str, answer: str) -> None:
        say(f"  missed: {wording!r} got {answer[:100]!r}")

    found: dict[str, Any] = {
        "questions": len(questions),
        "roundabout_questions": len(roundabout),
        "off_topic": len(heldout.prompts("offtopic")),
        "follow_up_chats": len(follow_ups),
        "late_follow_up_chats": len(late),
    }
    with Engine(model, threads=2, slots=SLOTS) as engine:
        found["greedy"] = round(accuracy(engine, questions, missed=missed), 4)
        found["greedy_roundabout"] = round(accuracy(engine, roundabout, missed=missed), 4)
        sampled = [accuracy(engine, questions, SAMPLED_TEMPERATURE, seed)
                   for seed in range(1, SAMPLED_SEEDS + 1)]  # fmt: skip
        found["sampled"] = round(statistics.mean(sampled), 4)
        off_topic = heldout.prompts("offtopic")
        found["refusals"] = round(refusals(engine, off_topic, missed), 4)
        found["follow_ups"] = round(accuracy(engine, follow_ups, missed=missed), 4)
        found["late_follow_ups"] = round(accuracy(engine, late, missed=missed), 4)
        prompts = bad_input()
        found["bad_prompts"] = len(prompts)
        found["bad_greedy"] = endings(engine, prompts, 0.0)
        found["bad_sampled"] = endings(engine, prompts, SAMPLED_TEMPERATURE)
    with Engine(model, threads=1, slots=1) as engine:
        found["tokens_per_s"] = round(speed(engine, [case.turns[0] for case in questions[:20]]))
    found["file_bytes"] = model.stat().st_size
    return found


def run(model: Path, folder: Path) -> dict[str, Any]:
    """Measures, prints and writes `figures.json` into `folder`."""
    found = figures(model)
    print(json.dumps(found, indent=2))
    (folder / RESULT_NAME).write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found
