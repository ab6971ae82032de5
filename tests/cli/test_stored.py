"""The names of models that a request may load: known without a wait, and fresh a little later."""

from __future__ import annotations

from pathlib import Path

import pytest

from llambo.cli import stored
from llambo.cli.stored import StoredModels
from llambo.core import paths


async def test_names_are_those_of_models_that_can_be_loaded(walk_model: Path) -> None:
    directory = paths.home() / "models"
    directory.mkdir(parents=True)
    (directory / "w.gguf").write_bytes(walk_model.read_bytes())
    (directory / "broken.gguf").write_bytes(b"GGUF")
    (directory / "caf\udce9.gguf").write_bytes(walk_model.read_bytes())  # in Latin-1: a name that no request can give
    models = StoredModels(paths.home())
    assert models.names() == [], "nobody has looked yet, and asking does not wait"
    await models.close()
    assert models.names() == ["built-in", str(directory / "w.gguf")]
    assert models.names(without={str(directory / "w.gguf")}) == ["built-in"], "it is loaded, under a shorter name"


async def test_a_new_model_is_found_once_the_names_are_old(walk_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = StoredModels(paths.home())
    await models.look()
    assert models.names() == ["built-in"]
    directory = paths.home() / "models"
    directory.mkdir(parents=True)
    (directory / "w.gguf").write_bytes(walk_model.read_bytes())
    assert models.names() == ["built-in"]
    monkeypatch.setattr(stored, "_FRESH_S", 0.0)
    models.names()
    await models.close()
    assert str(directory / "w.gguf") in models.names()
    await models.close()
