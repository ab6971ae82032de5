"""`llamboctl config`: what it shows, and editing that never leaves a broken file in the home."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llambo.core import config, paths
from tests.cli.programs import run


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that takes the place of the editor."""
    script = tmp_path / "an editor"
    script.write_text("#!/bin/sh\n:\n")
    script.chmod(0o700)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"'{script}' --wait")
    return script


def test_every_value_is_shown_with_its_source() -> None:
    lines = run("llamboctl", "config", "--show", LLAMBO_LOAD_BALANCER_STRATEGY="random").stdout.splitlines()
    assert "load_balancer.strategy = random  # environment variable LLAMBO_LOAD_BALANCER_STRATEGY" in lines
    assert "cluster.node_types.tiny.ctx = 512  # default" in lines
    document = json.loads(run("llamboctl", "config", "--show", "--json").stdout)
    assert document["orchestrator.queue_limit"] == {"value": 64, "source": "default"}


def test_one_thing_at_a_time() -> None:
    for arguments in ((), ("--show", "--edit")):
        done = run("llamboctl", "config", *arguments)
        assert (done.returncode, done.stderr) == (2, "llamboctl: give one of --show, --validate and --edit\n")


def test_the_first_edit_begins_with_the_commented_example(editor: Path) -> None:
    editor.write_text('#!/bin/sh\ntest "$1" = --wait && sed -i "s/strategy: prefix-affinity/strategy: random/" "$2"\n')
    done = run("llamboctl", "config", "--edit")
    home_file = paths.home() / "cluster-config.yaml"
    assert (done.returncode, done.stdout) == (0, f"{home_file}\n")
    assert "# share of busy slots above which nodes are added" in home_file.read_text()
    assert config.load().settings.load_balancer.strategy == "random"
    assert [path.name for path in paths.home().iterdir()] == ["cluster-config.yaml"]


def test_an_edit_that_is_wrong_is_told_and_changes_nothing_and_the_next_one_goes_on_with_it(editor: Path) -> None:
    paths.home().mkdir()
    home_file = paths.home() / "cluster-config.yaml"
    home_file.write_text("models: {slots: 2}\n")
    editor.write_text('#!/bin/sh\nprintf "models:\\n  slots: many\\n" > "$2"\n')
    done = run("llamboctl", "config", "--edit")
    assert (done.returncode, done.stdout) == (2, "")
    assert ":2: models.slots = 'many': input should be a valid integer" in done.stderr
    assert f"{home_file} is as it was" in done.stderr
    assert home_file.read_text() == "models: {slots: 2}\n"
    editor.write_text('#!/bin/sh\nsed -i s/many/3/ "$2"\n')
    assert run("llamboctl", "config", "--edit").returncode == 0
    assert home_file.read_text() == "models:\n  slots: 3\n"


def test_an_editor_that_fails_changes_nothing(editor: Path) -> None:
    editor.write_text('#!/bin/sh\nprintf x > "$2"\nexit 3\n')
    done = run("llamboctl", "config", "--edit")
    assert (done.returncode, done.stderr) == (1, "llamboctl: the editor ended with status 3: nothing was changed\n")
    assert list(paths.home().iterdir()) == []


@pytest.mark.parametrize("value", ["/no/such/editor", "'"])
def test_no_editor_is_told(value: str) -> None:
    done = run("llamboctl", "config", "--edit", VISUAL=value)
    assert done.returncode == 2
    assert "editor" in done.stderr
