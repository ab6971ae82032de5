"""The whole way, with nothing played: clone, one command, real packages, a real answer.

Downloads some 60 MB and takes a minute or two, so it runs in CI and when LLAMBO_TEST_SETUP=1 asks for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from setup_machine import CHECKOUT

pytestmark = [
    pytest.mark.setup_real,
    pytest.mark.timeout(540),
    pytest.mark.skipif(
        os.environ.get("CI") != "true" and os.environ.get("LLAMBO_TEST_SETUP") != "1",
        reason="installs real packages: set LLAMBO_TEST_SETUP=1",
    ),
]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of HEAD, brought to the state of this working tree, in a path with spaces."""
    place = tmp_path / "a clean clone"
    subprocess.run(["git", "clone", "--quiet", CHECKOUT, place], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, target = CHECKOUT / name, place / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        else:
            target.unlink(missing_ok=True)
    return place


def limbot(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [clone / "limbot-cli", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def test_a_clean_clone_answers_and_never_installs_again(clone: Path) -> None:
    first = limbot(clone, "What is distributed computing?")
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.split()) >= 5
    assert "3/3 check" in first.stderr
    stamp = clone / ".venv/.llambo-run"
    stamped_at = stamp.stat().st_mtime_ns
    second = limbot(clone, "What is a node?")
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip()
    assert "setting up" not in second.stderr
    assert stamp.stat().st_mtime_ns == stamped_at


def test_a_set_up_killed_among_the_packages_is_repaired(clone: Path) -> None:
    with subprocess.Popen(
        [clone / "limbot-cli", "--version"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as killed:
        try:
            assert killed.stderr is not None
            while "2/3 packages" not in (line := killed.stderr.readline()):
                assert line, "the set-up ended before its packages"
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
    assert (clone / ".venv/pyvenv.cfg").exists()
    assert not (clone / ".venv/.llambo-run").exists()
    repaired = limbot(clone, "--version")
    assert repaired.returncode == 0, repaired.stderr
    assert repaired.stdout.startswith("llambo ")
    assert (clone / ".venv/.llambo-run").exists()
