"""docs/fusion.md: its example runs, its configuration is sound, and what it says of the code is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from llambo.core import config
from llambo.core.fusion import ALIASES, STRATEGIES

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "fusion.md").read_text(encoding="utf-8")


def test_the_table_of_strategies_has_them_all() -> None:
    rows = re.findall(r"^\| (`[\w-]+`(?:, also `[\w-]+`)?) \|.*\|.*\|.*\|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == {*STRATEGIES, *ALIASES}


def test_the_example_of_the_configuration_is_sound(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "c.yaml").write_text(example)
    settings = config.load(tmp_path / "c.yaml").settings
    assert settings.cognition == config.Settings().cognition, "the page gives the defaults"
    assert settings.cluster.node_types["large"].weight == 3


def test_every_module_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:core|cluster)/\w+)`", PAGE)
    assert len(named) == 9
    assert all((REPOSITORY / "src" / "llambo" / f"{name}.py").exists() for name in named)


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^\d+% agree, of [23] who answered$", done.stdout, re.MULTILINE)
