"""Owns the readable sample of the corpus and its figures."""

from __future__ import annotations

import json
from pathlib import Path

from training.chats import ChatMaker
from training.facts import Topic
from training.settings import TrainPlan

SAMPLE_CHATS = 2_000


def write_sample(topics: dict[str, Topic], plan: TrainPlan, folder: Path) -> dict[str, int]:
    """Writes `corpus-sample.txt` (the first chats of training) and `corpus.json` into `folder`."""
    maker = ChatMaker(topics, plan.seed)
    stream = maker.stream()
    with (folder / "corpus-sample.txt").open("w", encoding="utf-8") as out:
        for _ in range(SAMPLE_CHATS):
            for role, text in next(stream):
                out.write(f"{role}: {text}\n")
            out.write("\n")
    figures = {
        "topics": len(topics),
        "facts": len(maker.facts),
        "wordings": sum(fact.wordings for fact in maker.facts),
    }
    (folder / "corpus.json").write_text(json.dumps(figures), encoding="utf-8")
    print(figures)
    return figures
