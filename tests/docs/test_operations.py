"""docs/operations.md: its commands run as they stand, and what it says of the code is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.main import get_group

from llambo.cli import llamboctl
from llambo.core import config, sections
from llambo.core.errors import LlamboError
from tests.cli.daemons import cluster, no_daemon_left
from tests.cli.programs import run

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
SESSION, *OTHERS = [
    re.findall(r"^ {4}llamboctl (.*)$", block, re.MULTILINE)
    for block in re.findall(r"(?:^ {4}llamboctl .*\n)+", PAGE, re.MULTILINE)
]


def test_the_session_runs() -> None:
    assert SESSION[0] == "init"
    with no_daemon_left():
        for line in SESSION:
            done = run("llamboctl", *shlex.split(line))
            assert (done.returncode, done.stderr) == (0, ""), line
            assert done.stdout, line


def test_the_other_commands_run() -> None:
    assert len(OTHERS) == 2
    with cluster():
        for line in [line for block in OTHERS for line in block]:
            done = run("llamboctl", *shlex.split(line))
            assert (done.returncode, done.stderr) == (0, ""), line


def test_every_command_that_is_named_exists() -> None:
    assert set(re.findall(r"llamboctl ([a-z]+)", PAGE)) <= set(get_group(llamboctl.app).commands)


def test_the_table_of_types_is_that_of_the_presets() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) (MiB|GiB) \|", PAGE, re.MULTILINE)
    told = {
        name: (int(ctx), int(slots), int(threads), int(size) * {"MiB": 2**20, "GiB": 2**30}[unit])
        for name, ctx, slots, threads, size, unit in rows
    }
    assert told == {name: (t.ctx, t.slots, t.threads, t.memory) for name, t in sections.PRESETS.items()}


def test_the_example_of_node_types_is_sound(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "c.yaml").write_text(example)
    types = config.load(tmp_path / "c.yaml").settings.cluster.node_types
    assert (types["tiny"].slots, types["wide"].ctx, types["wide"].slots) == (2, 16384, 4)


def test_every_exit_status_of_an_error_is_told() -> None:
    told = {int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}

    def of(kind: type[LlamboError]) -> set[int]:
        return {kind.exit_status}.union(*(of(child) for child in kind.__subclasses__()))

    assert of(LlamboError) | {0} == told
