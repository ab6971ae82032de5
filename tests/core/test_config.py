"""Layers of configuration, and errors that name the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from llambo.core import config
from llambo.core.errors import BadConfig

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / "c.yaml"


def test_defaults_need_no_file() -> None:
    loaded = config.load()
    assert loaded.settings.models.default == "built-in"
    assert loaded.sources["models.default"] == "default"


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    write: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write.write_text("models:\n  ctx: 100\n  slots: 2\n  threads: 1\n")
    monkeypatch.setenv("LLAMBO_MODELS_SLOTS", "3")
    monkeypatch.setenv("LLAMBO_MODELS_THREADS", "3")
    loaded = config.load(write, {"models.threads": 5, "models.offline": None})
    models = loaded.settings.models
    assert (models.ctx, models.slots, models.threads, models.offline) == (100, 3, 5, False)
    assert loaded.sources["models.ctx"] == f"{write}:2"
    assert loaded.sources["models.slots"] == "environment variable LLAMBO_MODELS_SLOTS"
    assert loaded.sources["models.threads"] == "command line"


def test_the_file_in_the_home_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cluster-config.yaml").write_text("models: {ctx: 64}\n")
    assert config.load().settings.models.ctx == 64


def test_the_bridge_socket_has_a_short_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET", "/x/y.sock")
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET_PATH", "/x/z.sock")
    assert config.load().settings.bridge.socket_path == "/x/y.sock"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models:\n  ctx: 12\n", ":2: models.ctx = 12: input should be greater than or equal to 16"),
        ("bridge:\n  drain_timeout: soon\n", ":2: bridge.drain_timeout = 'soon': expected a duration such as 30s"),
        ("bridge:\n  colour: red\n", ":2: unknown key bridge.colour; there are socket_path, listen"),
        ("# comment\nmodel: {}\n", ":2: unknown section 'model'; there are cluster, models, bridge"),
        ("models: 3\n", ":1: models must hold keys"),
        ("- 1\n", ":1: expected sections"),
        ("a: [\n", "not valid YAML"),
        ("models:\n  ctx: 1\n  ctx: 2\n", "not valid YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(write: Path, text: str, complaint: str) -> None:
    write.write_text(text)
    with pytest.raises(BadConfig) as caught:
        config.load(write)
    assert str(write) in caught.value.message
    assert complaint in caught.value.message


def test_a_missing_file_is_an_error_only_when_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadConfig, match="no such file"):
        config.load(tmp_path / "none.yaml")
    monkeypatch.setenv("LLAMBO_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(BadConfig, match="no such file"):
        config.load()


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET", "")
    monkeypatch.setenv("LLAMBO_MODELS_CTX", "")
    assert config.load().settings == config.Settings()


def test_a_misspelt_variable_of_a_known_section_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_MODELS_CONTEXT", "5")
    with pytest.raises(BadConfig, match="environment variable LLAMBO_MODELS_CONTEXT: unknown; models has default"):
        config.load()


@pytest.mark.parametrize(
    ("written", "seconds"), [("30s", 30), ("250ms", 0.25), ("2m", 120), ("1h", 3600), (5, 5), ("1.5 s", 1.5)]
)
def test_durations_have_units(write: Path, written: object, seconds: float) -> None:
    write.write_text(f"bridge:\n  drain_timeout: {written}\n")
    assert config.load(write).settings.bridge.drain_timeout == seconds


def test_the_commented_example_in_the_repository_shows_every_key_at_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LLAMBO_BRIDGE_SOCKET")
    example = config.load(REPOSITORY / "cluster-config.yaml")
    assert example.settings == config.Settings()
    assert "default" not in example.sources.values()
