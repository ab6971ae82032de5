"""How a running program is found, and by whom it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from llambo.cli import running
from llambo.core.errors import LlamboError, NameInUse, Refused


def announce(tmp_path: Path) -> object:
    return running.announced(
        "/tmp/b.sock",
        log=tmp_path / "log",
        drain_timeout_s=1.0,
        name=running.DAEMON,
        styx="unix!x",
        http=("http://h:1",),
    )


def test_what_runs_is_found_by_its_home_and_gone_with_it(tmp_path: Path) -> None:
    with announce(tmp_path):
        found = running.find(running.DAEMON)
        assert found is not None
        assert (found.styx, found.socket, found.http) == ("unix!x", "/tmp/b.sock", ("http://h:1",))
    assert running.find(running.DAEMON) is None


def test_two_homes_with_one_runtime_directory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_RUNTIME_DIR", str(tmp_path / "run"))
    with announce(tmp_path):
        monkeypatch.setenv("LLAMBO_HOME", str(tmp_path / "other"))
        with pytest.raises(NameInUse, match=r"is used by the home .*; set LLAMBO_RUNTIME_DIR to another"):
            running.find(running.DAEMON)
        monkeypatch.setenv("LLAMBO_HOME", str(tmp_path / "home"))


def test_a_runtime_directory_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(Refused, match="belongs to another user"):
        running.find(running.DAEMON)


def test_a_claim_that_cannot_be_written_is_a_failure_and_not_bad_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LlamboError, match="No space left on device") as raised, announce(tmp_path):
        pass
    assert raised.value.exit_status == 1
