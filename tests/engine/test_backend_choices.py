"""What was measured is remembered per machine, tag, model and shape, and believed nowhere else."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from llambo.core import paths
from llambo.core.errors import LlamboError
from llambo.engine import choices
from llambo.engine.choices import Choice, Choices, fingerprint
from llambo.engine.policy import Shape

SHAPE = Shape(slots=4, threads=2)
CHOICE = Choice(backend="cascadelake", threads=2, batch=512, prefill=1.5, decode=1.2, rounds=9)


def _choices(*, machine: str = "here", tag: str = "b1") -> Choices:
    return Choices(paths.home(), tag=tag, machine=machine)


def test_a_choice_is_found_again_by_its_model_shape_machine_and_tag() -> None:
    _choices().remember("m1", "one.gguf", SHAPE, CHOICE)
    assert _choices().find("m1", SHAPE) == CHOICE
    assert _choices().find("m2", SHAPE) is None
    assert _choices().find("m1", Shape(slots=1, threads=2, is_small=True)) is None
    assert _choices(tag="b2").find("m1", SHAPE) is None


def test_a_choice_of_another_machine_is_kept_and_not_believed() -> None:
    _choices(machine="there").remember("m1", "one.gguf", SHAPE, CHOICE)
    assert _choices().find("m1", SHAPE) is None
    _choices().remember("m1", "one.gguf", SHAPE, Choice(threads=1))
    assert [entry.machine for entry in _choices().read()] == ["there", "here"]
    assert _choices(machine="there").find("m1", SHAPE) == CHOICE


def test_a_newer_choice_takes_the_place_of_the_older_one() -> None:
    for threads in (1, 2):
        _choices().remember("m1", "one.gguf", SHAPE, Choice(threads=threads))
    assert [entry.choice.threads for entry in _choices().read()] == [2]


def test_the_oldest_choices_are_dropped_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "CHOICES_KEPT", 3)
    for number in range(5):
        _choices().remember(f"m{number}", "x.gguf", SHAPE, CHOICE)
    assert [entry.model for entry in _choices().read()] == ["m2", "m3", "m4"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"format": 2, "choices": []}',
        b'{"format": 1, "choices": [{"machine": "here"}]}',
        b'{"format": 1, "choices": [3]}',
    ],
)
def test_a_damaged_file_is_put_aside_and_is_as_good_as_none(text: bytes) -> None:
    kept = _choices()
    kept.remember("m1", "one.gguf", SHAPE, CHOICE)
    kept.path.write_bytes(text)
    assert kept.find("m1", SHAPE) is None
    assert "was damaged and is choices.json.damaged now" in kept.problem
    assert kept.path.with_name("choices.json.damaged").read_bytes() == text
    kept.remember("m1", "one.gguf", SHAPE, CHOICE)
    assert (kept.find("m1", SHAPE), kept.problem) == (CHOICE, "")


@pytest.mark.parametrize(
    "bad", [{"threads": -1}, {"batch": 2**50}, {"backend": "../x"}, {"flash_attention": "perhaps"}]
)
def test_a_choice_that_cannot_be_is_damage(bad: dict[str, object]) -> None:
    kept = _choices()
    kept.remember("m1", "one.gguf", SHAPE, CHOICE)
    document = json.loads(kept.path.read_text())
    document["choices"][0]["choice"] |= bad
    kept.path.write_text(json.dumps(document))
    assert kept.find("m1", SHAPE) is None


def test_forgetting_a_backend_forgets_what_was_measured_with_it() -> None:
    _choices().remember("m1", "one.gguf", SHAPE, CHOICE)
    _choices().remember("m2", "two.gguf", SHAPE, Choice(threads=1))
    _choices().forget(backend="cascadelake")
    assert [entry.model for entry in _choices().read()] == ["m2"]
    _choices().forget()
    assert _choices().read() == []


def test_a_place_that_cannot_be_written_is_told() -> None:
    paths.make_private_dir(paths.home())
    (paths.home() / "engines").write_text("in the way")
    with pytest.raises(LlamboError, match="engines is in the way"):
        _choices().remember("m1", "one.gguf", SHAPE, CHOICE)


def test_the_file_is_its_owner_s_alone() -> None:
    _choices().remember("m1", "one.gguf", SHAPE, CHOICE)
    assert stat.S_IMODE(_choices().path.stat().st_mode) == 0o600


def test_a_model_is_known_by_its_content_wherever_it_lies(tmp_path: Path, tiny_model: Path, walk_model: Path) -> None:
    shutil.copy(tiny_model, tmp_path / "moved.gguf")
    assert fingerprint(tmp_path / "moved.gguf") == fingerprint(tiny_model) != fingerprint(walk_model)
    with (tmp_path / "moved.gguf").open("ab") as file:
        file.write(b"x")
    assert fingerprint(tmp_path / "moved.gguf") != fingerprint(tiny_model)


def test_a_node_with_one_small_slot_is_one_of_many() -> None:
    assert Shape.of(ctx=512, slots=1, threads=1).is_small
    assert not Shape.of(ctx=512, slots=2, threads=1).is_small
    assert not Shape.of(ctx=4096, slots=1, threads=1).is_small
    assert str(Shape.of(ctx=512, slots=1, threads=1)) == "slots=1 threads=1 small"
