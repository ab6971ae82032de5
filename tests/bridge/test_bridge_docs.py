"""docs/bridge.md names everything there is, and its examples run."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from bridge_fakes import Running, bridge_in_thread

from llambo.bridge import commands as c
from llambo.bridge.client import Bridge
from llambo.bridge.client_calls import ChatOptions
from llambo.bridge.settings import BridgeSettings
from llambo.core.errors import LlamboError

PAGE = (Path(__file__).parents[2] / "docs" / "bridge.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def codes(base: type[LlamboError]) -> set[str]:
    children = [child for child in base.__subclasses__() if child.__module__ == LlamboError.__module__]
    return {base.code}.union(*(codes(child) for child in children))


def test_every_command_option_call_and_code_is_there() -> None:
    for name in c.NAMES.values():
        assert f"`{name}" in PAGE, name
    for name in ChatOptions.__optional_keys__:
        assert f"`{name}`" in PAGE, name
    for name in dir(Bridge):
        assert name.startswith("_") or name in ("connect", "address", "is_connected") or f"`{name}(" in PAGE, name
    for code in codes(LlamboError) - {"unreachable"}:
        assert f"| `{code}` |" in PAGE, code


def test_the_limits_are_those_of_the_settings() -> None:
    settings = BridgeSettings()
    for limit in (settings.max_connections, settings.max_requests):
        assert f"| {limit} |" in PAGE
    assert f"| {settings.max_queued_commands}, or {settings.max_queued_bytes >> 20} MiB |" in PAGE
    assert f"| {settings.auth_timeout_s:g} s, {settings.max_auth_attempts} |" in PAGE
    assert f"| {settings.write_timeout_s:g} s | dropped" in PAGE
    assert f"| {settings.drain_timeout_s:g} s | they end" in PAGE


@pytest.mark.parametrize("example", EXAMPLES[:2])
def test_the_examples_of_the_clients_run(
    example: str, threaded: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET", str(threaded.path))
    exec(compile(example, "docs/bridge.md", "exec"), {})
    assert "What is a semaphore?" in (out := capsys.readouterr().out) or "['One?', 'Two?']\nThree?" in out


def test_the_example_of_the_pool_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        for number in range(2):
            stack.enter_context(bridge_in_thread(tmp_path / f"bridge-{number}.sock"))
        exec(compile(EXAMPLES[2].replace("/tmp/bridge", str(tmp_path / "bridge")), "docs/bridge.md", "exec"), {})
    assert capsys.readouterr().out == "Hello\n"
