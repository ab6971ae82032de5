"""The shipped model in the real engine: its figures, its facts, and that it always ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gguf import GGUFReader

from training import evaluate, heldout
from training.engine import Engine
from training.settings import CHAT_TEMPLATE, MAX_FILE_BYTES, MODEL_FILE, MODEL_NAME

# What the shipped model reaches on the held-out files of its version, less a little for engines that round otherwise.
# The aims are 0.85, none, 0.90, 0.75, and 0.01 for what never ends: raise a floor with each better model, never lower
# one unless the questions are new (these follow-ups are both sets: the last model reached 0.715).
GREEDY_FLOOR, ROUNDABOUT_FLOOR, REFUSAL_FLOOR, FOLLOW_UP_FLOOR = 0.88, 0.47, 0.90, 0.77
MAX_TOKENS_CEILING = 0.02


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(MODEL_FILE, threads=1, slots=4) as engine:
        yield engine


def test_the_first_question_is_answered_well_however_it_is_written(engine: Engine) -> None:
    for wording in ("What is distributed computing?", "what is distributed computing", "Distributed computing?"):
        reply = engine.answer([("user", wording)])
        assert "several computers work on one problem" in reply["text"]
        assert reply["finish"] == "stop"


def test_the_first_question_is_answered_well_at_every_common_temperature(engine: Engine) -> None:
    for seed in range(5):
        reply = engine.answer([("user", "What is distributed computing?")], temperature=0.8, seed=seed)
        assert "several computers" in reply["text"]


def test_held_out_questions_are_answered_as_often_as_the_floor_says(engine: Engine) -> None:
    assert evaluate.accuracy(engine, heldout.questions()) >= GREEDY_FLOOR


def test_harder_questions_are_answered_as_often_as_the_floor_says(engine: Engine) -> None:
    assert evaluate.accuracy(engine, heldout.cases("roundabout")) >= ROUNDABOUT_FLOOR


def test_other_subjects_are_refused_as_often_as_the_floor_says(engine: Engine) -> None:
    assert evaluate.refusals(engine, heldout.prompts("offtopic")) >= REFUSAL_FLOOR


def test_follow_ups_are_understood_as_often_as_the_floor_says(engine: Engine) -> None:
    cases = [*heldout.cases("followups"), *heldout.cases("followups-late")]
    assert evaluate.accuracy(engine, cases) >= FOLLOW_UP_FLOOR


def test_bad_input_ends_normally(engine: Engine) -> None:
    found = evaluate.endings(engine, evaluate.bad_input()[:110], temperature=0.0)
    assert found["max_tokens"] <= MAX_TOKENS_CEILING


def test_a_long_chat_does_not_collapse(engine: Engine) -> None:
    chat: list[tuple[str, str]] = []
    for _ in range(6):
        for wording in ("What is a slot?", "What is the bridge?", "What is dish?"):
            chat.append(("user", wording))
            chat.append(("assistant", engine.answer(chat)["text"]))
    reply = engine.answer([*chat, ("user", "What is distributed computing?")])
    assert "several computers" in reply["text"]


def test_the_file_is_small_and_says_what_it_is() -> None:
    assert MODEL_FILE.stat().st_size <= MAX_FILE_BYTES
    fields = GGUFReader(MODEL_FILE).fields
    facts = {name: fields[name].contents() for name in fields if name.startswith(("general.", "llama."))}
    assert facts["general.architecture"] == "llama"
    assert facts["general.name"] == MODEL_NAME
    assert facts["general.license"] == "MIT"
    assert facts["llama.context_length"] >= 2048
    assert fields["tokenizer.chat_template"].contents() == CHAT_TEMPLATE


def test_the_marks_of_turns_are_single_control_tokens(engine: Engine) -> None:
    assert engine.tokenize("<|im_start|>", special=True) == [1]
    assert engine.tokenize("<|im_end|>", special=True) == [2]
    assert len(engine.tokenize("<|im_end|>")) > 1


def test_the_card_gives_the_size_of_this_very_file() -> None:
    card = MODEL_FILE.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{MODEL_FILE.stat().st_size} bytes" in card
