"""What all tests share: a home of their own, small real models, and a check that nothing is left behind."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench import make_model

# A runner in the background, or under nohup, ignores these, and so would every program that the tests start and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


_END_OF_A_FAILED_TEST_S = 180
"""What a test that failed may take to clean up: its fixtures, and whatever waits for its threads."""
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the real standard error: here it is captured already."""
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        config.stash[_stderr] = os.dup(sys.stderr.fileno())


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Ends a test that failed and then hangs. pytest ends both of its own watches over a test as soon as it fails."""
    if isinstance(node, pytest.Item):  # its end ends this watch too
        faulthandler.dump_traceback_later(_END_OF_A_FAILED_TEST_S, file=node.config.stash[_stderr], exit=True)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has an empty home, and no setting from outside reaches it."""
    for name in list(os.environ):
        if name.startswith("LLAMBO_") and not name.startswith("LLAMBO_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMBO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET", str(tmp_path / "bridge.sock"))
    monkeypatch.setenv("LLAMBO_GATEWAY_LISTEN", "127.0.0.1:0")  # daemons of tests that run beside each other
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 0.9M parameters; its answers do not end by themselves."""
    return make_model.write(tmp_path_factory.mktemp("models") / "tiny.gguf", make_model.PRESETS["tiny"])


@pytest.fixture(scope="session")
def walk_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose greedy text is a fixed, endless walk through its words."""
    return make_model.write(tmp_path_factory.mktemp("models") / "walk.gguf", make_model.PRESETS["tiny"], walk=True)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """No child process outlives the test that started it."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=20)
    assert not alive, f"left running: {[process.cmdline() for process in alive]}"
