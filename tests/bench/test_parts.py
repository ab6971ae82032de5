"""What `python -m bench` says of itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bench import __main__ as bench

README = Path(bench.__file__).parent / "README.md"


def test_its_page_names_every_part_and_no_other() -> None:
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(bench.PARTS)


def test_a_part_that_there_is_not_is_bad_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "pong"])
    with pytest.raises(SystemExit) as end:
        bench.main()
    assert end.value.code == 2
    assert "no such part: pong; there are one-shot, imports, ping" in capsys.readouterr().err
