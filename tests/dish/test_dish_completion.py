"""What the end of a line may become."""

from __future__ import annotations

import pytest

from llambo.dish.completion import candidates
from tests.dish.dish_world import World


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("sta", ["status"]),
        ("ls | ta", ["tail"]),
        ("ls; res", ["restart", "restore"]),
        ("cat sta", ["status"]),
        ("cat nodes/", ["nodes/n1/", "nodes/n2/"]),
        ("cat /n/ll", ["/n/llambo/"]),
        ("cat /n/llambo/nodes/n1/m", ["/n/llambo/nodes/n1/model"]),
        ("echo scale 3 > ct", ["ctl"]),
        ("drain ", ["n1", "n2"]),
        ("drain n2", ["n2"]),
        ("scale 3 b", ["built-in"]),
        ("spawn 2 ", ["tiny"]),
        ("infer max", ["max_tokens="]),
        ("infer model=b", ["model=built-in"]),
        ("infer ", []),
        ("fusion maj", ["majority-vote"]),
        ("fusion quorum 3 temp", ["temperature="]),
        ("umount /n/l", ["/n/llambo"]),
        ("help ca", ["cat"]),
        ("watch sta", ["status"]),
        ("watch cat sta", ["status"]),
        ("kill %", []),
        ("cat nope/", []),
        ("What is sta", []),
        ("cat 'sta", []),
        ("# sta", []),
        ("scale ", []),
    ],
)
async def test_completion_knows_commands_names_and_paths(world: World, line: str, found: list[str]) -> None:
    there = await candidates(world.dish, line)
    assert [candidate.text for candidate in there] == found
    assert all(line[candidate.start :] == candidate.text[: len(line) - candidate.start] for candidate in there)


async def test_jobs_are_completed(world: World) -> None:
    await world.run("cat events &")
    assert [candidate.text for candidate in await candidates(world.dish, "fg ")] == ["%1"]
    assert [candidate.text for candidate in await candidates(world.dish, "kill ")] == ["%1", "n1", "n2"]


async def test_every_command_has_a_usage_that_begins_with_its_name_and_a_sentence(world: World) -> None:
    for command in world.dish.table.commands:
        assert command.usage.split()[0] == command.name
        assert command.help
    shown = await world.run("help")
    assert all(command.usage in shown and command.help in shown for command in world.dish.table.commands)
