"""An engine on trial: how it opens, fails and ends, and that nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llambo.engine import trial as trials
from llambo.engine.trial import Setting, Trial, TrialFailed, TrialLate


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where trials make their directories, also those of processes that are started from here.

    A short path: there are sockets further down.
    """
    with tempfile.TemporaryDirectory(prefix="lt-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


def test_a_model_that_does_not_open_is_told_by_a_trial(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(TrialFailed, match="Failed to init server"):
        Trial(Setting(str(tmp_path / "bad.gguf")))


def test_a_socket_whose_path_does_not_fit_is_told_as_that(
    temporary: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / ("x" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / ("x" * 100)))
    with pytest.raises(TrialFailed, match="too long for a socket's path, which has at most 103 bytes"):
        Trial(Setting(str(tiny_model)))


def test_a_trial_that_is_not_open_in_time_is_ended(tiny_model: Path) -> None:
    with pytest.raises(TrialLate):
        Trial(Setting(str(tiny_model)), timeout_s=0.001)


def test_a_trial_that_is_killed_says_so(tiny_model: Path) -> None:
    with Trial(Setting(str(tiny_model))) as trial:
        os.kill(trial._pid, signal.SIGKILL)
        with pytest.raises(TrialFailed, match="killed by signal 9"):
            trial.complete("word", 2)


def test_a_trial_answers_and_leaves_nothing(tiny_model: Path) -> None:
    with Trial(Setting(str(tiny_model), slots=2)) as trial:
        directory = trial._directory
        one, two = trial.complete_together(["a node", "a slot"], 3)
        assert one["tokens_predicted"] == two["tokens_predicted"] == 3
        assert trial.private_bytes() > 0
        used = trial.processor_s()
        trial.complete("more", 20)
        assert 0 < used < trial.processor_s()
    assert not directory.exists()


_HOLDER = """
import sys
from llambo.engine.trial import Setting, Trial
with Trial(Setting(sys.argv[1])) as trial:
    print(trial._directory, flush=True)
    sys.stdin.read()
"""


def _grow_old(directory: Path) -> None:
    then = time.time() - 2 * trials.YOUNG_S
    os.utime(directory, (then, then))


def test_what_a_killed_process_left_is_removed_by_the_next_trial(temporary: Path, tiny_model: Path) -> None:
    command = [sys.executable, "-c", _HOLDER, str(tiny_model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        left = Path(holder.stdout.readline().decode().strip())
        _grow_old(left)
        trials.clear_left()
        assert left.exists()  # its trial still runs
        holder.kill()
    trials.clear_left()
    assert list(temporary.iterdir()) == []


def test_a_directory_that_was_made_just_now_or_leads_elsewhere_is_left_alone(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (temporary / f"{trials.PREFIX}link").symlink_to(tmp_path / "precious")
    (temporary / f"{trials.PREFIX}young").mkdir()
    then = time.time() - 2 * trials.YOUNG_S
    os.utime(temporary / f"{trials.PREFIX}link", (then, then), follow_symlinks=False)
    trials.clear_left()
    assert (tmp_path / "precious").exists()
    assert {path.name for path in temporary.iterdir()} == {f"{trials.PREFIX}link", f"{trials.PREFIX}young"}


_ASKER = """
import os, signal, sys
from llambo.engine import calibrate
from llambo.engine.trial import Setting, Trial
signal.signal(signal.SIGTERM, calibrate._leave)
with Trial(Setting(sys.argv[1], slots=2)) as trial:
    os.kill(trial._pid, signal.SIGSTOP)  # so that no answer ever comes
    print("asking", flush=True)
    trial.complete_together(["a", "b"], 2)
"""


def test_who_is_told_to_end_while_answers_are_under_way_does_not_wait_for_them(
    temporary: Path, tiny_model: Path
) -> None:
    command = [sys.executable, "-c", _ASKER, str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as asker:
        assert asker.stdout is not None
        assert asker.stdout.readline() == b"asking\n"
        asker.send_signal(signal.SIGTERM)
        asker.send_signal(signal.SIGTERM)  # `timeout` sends two
        assert asker.wait(30) == 1
    assert list(temporary.iterdir()) == []
