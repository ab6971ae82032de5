"""A model whose answers last as long as a test needs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import make_model


@pytest.fixture(scope="session")
def _long_walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = replace(make_model.PRESETS["tiny"], ctx=65_536)
    return make_model.write(tmp_path_factory.mktemp("models") / "long.gguf", shape, walk=True)


@pytest.fixture
def endless_model(_long_walk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its greedy text is a walk through its words that lasts for half a minute at least, on any machine."""
    monkeypatch.setenv("LLAMBO_MODELS_CTX", "65536")
    monkeypatch.setenv("LLAMBO_MODELS_SLOTS", "1")
    return _long_walk
