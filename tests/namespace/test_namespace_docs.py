"""docs/namespace.md says what is so: its tables are the grammars and the tree, its Python runs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llambo.cli import mounting
from llambo.namespace import ctls
from llambo.namespace.grammar import Grammar
from tests.namespace.namespace_world import World, names

TEXT = (Path(__file__).parents[2] / "docs" / "namespace.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("grammar", ctls.GRAMMARS, ids=lambda grammar: grammar.title)
def test_the_commands_are_those_of_the_tables(grammar: Grammar) -> None:
    assert f"### `{grammar.title}`\n\n{grammar.markdown()}" in TEXT


async def test_every_file_is_in_the_table_of_the_tree(world: World) -> None:
    table = TEXT.partition("## The tree")[2].partition("## Commands")[0]
    async with await world.client() as client, client.open("clone", "rw"):
        paths = [name for name in await names(client) if name not in {"nodes", "models", "sessions", "fusion"}]
        live = {"nodes/n1": "nodes/ID", "sessions/0": "sessions/N", "models/m": "models/NAME", "fusion": "fusion"}
        for directory, shown in live.items():
            paths += [f"{shown}/{name}" for name in await names(client, directory)]
    paths.remove("nodes/ID/metrics")  # beside nodes/ID/model
    assert [path for path in paths if f"`{path}`" not in table] == []


async def test_the_python_example_runs(world: World) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"address = {world.unix!r}\n{example}", stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert output.decode().endswith("['n2', 'n3']\none two drei€")


def test_the_mount_options_are_those_that_llamboctl_takes() -> None:
    (shown,) = re.findall(r"mount -t 9p -o (\S+)", TEXT)
    taken = mounting.mount_words("/s", Path("/m"), kernel=True, fuse=None, uid=0)[4]
    assert set(shown.split(",")) <= set(taken.split(","))


@pytest.mark.parametrize("line", re.findall(r"echo '([a-z_]+ [^']*)' >|echo '([a-z_]+ [^']*)' \|", TEXT))
def test_every_command_that_is_shown_is_one(line: tuple[str, str]) -> None:
    text = line[0] or line[1]
    assert any(text.split(maxsplit=1)[0] in {command.name for command in grammar.commands} for grammar in ctls.GRAMMARS)
