"""The zygote's private protocol, spoken line by line with a real one."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llambo.node.main import say
from llambo.node.spec import LINE_MAX, NodeSpec


class Zygote:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llambo.node.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.hear()["event"] == "up"

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event

    def order(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()

    def spawn(self, name: str, model: Path, **changes: Any) -> None:
        directory = self.directory / name
        directory.mkdir()
        spec = NodeSpec(name, str(directory), f"{directory}/log", str(model), ctx=128, slots=1, threads=1)
        self.order(spawn=dataclasses.asdict(dataclasses.replace(spec, **changes)))

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(10)
        self.process.stdout.close()
        return status


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path)
    yield zygote
    assert zygote.end() == 0


def in_order(events: list[dict[str, Any]]) -> list[str]:
    """Three events: the node's own word and the zygote's race, that the node is gone comes last."""
    *two, last = [str(event["event"]) for event in events]
    return [*sorted(two), last]


def test_a_node_is_started_then_ready_then_exited(zygote: Zygote, tiny_model: Path) -> None:
    zygote.spawn("n1", tiny_model)
    started, ready = zygote.hear(), zygote.hear()
    assert (started["event"], ready["event"]) == ("started", "ready")
    assert started["pid"] == ready["pid"]
    assert ready["address"].endswith("/n1/node.sock")
    assert "no-new-privs" in ready["sandbox"]
    zygote.order(signal=15, name="n1")
    exited = zygote.hear()
    assert (exited["event"], exited["name"], exited["status"]) == ("exited", "n1", -15)


def test_nodes_may_have_more_connections_than_the_usual_soft_limit(tmp_path: Path, tiny_model: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        zygote = Zygote(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    zygote.spawn("n1", tiny_model)
    pid = zygote.hear()["pid"]
    assert zygote.hear()["event"] == "ready"
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == min(65_536, hard)
    assert zygote.end() == 0


def test_the_end_of_standard_input_ends_zygote_and_nodes(tmp_path: Path, tiny_model: Path) -> None:
    zygote = Zygote(tmp_path)
    zygote.spawn("n1", tiny_model)
    node = psutil.Process(zygote.hear()["pid"])
    assert zygote.end() == 0
    assert not node.is_running()


def test_an_engine_that_refuses_says_so_and_exits(zygote: Zygote, tmp_path: Path) -> None:
    zygote.spawn("n1", tmp_path / "none.gguf")
    events = [zygote.hear() for _ in range(3)]
    assert in_order(events) == ["refused", "started", "exited"]
    assert events[2]["status"] == 1


def test_a_node_that_cannot_open_its_log_says_why(zygote: Zygote, tiny_model: Path, tmp_path: Path) -> None:
    zygote.spawn("n1", tiny_model, log_path=str(tmp_path / "no" / "log"))
    events = [zygote.hear() for _ in range(3)]
    assert in_order(events) == ["failed", "started", "exited"]
    assert "No such file or directory" in next(event["message"] for event in events if event["event"] == "failed")


def test_a_log_never_follows_a_link(zygote: Zygote, tiny_model: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "link").symlink_to(precious)
    zygote.spawn("n1", tiny_model, log_path=str(tmp_path / "link"))
    assert in_order([zygote.hear() for _ in range(3)]) == ["failed", "started", "exited"]
    assert precious.read_text() == "mine"


def test_signalling_a_node_that_is_gone_is_no_error(zygote: Zygote) -> None:
    zygote.order(signal=9, name="nobody")


def test_an_event_line_is_never_longer_than_an_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with path.open("wb") as file:
        say(file.fileno(), event="failed", name="n1", message="\u20ac" * 10_000)
    line = path.read_bytes()
    assert len(line) <= LINE_MAX
    assert json.loads(line)["event"] == "failed"
