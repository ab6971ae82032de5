"""`/n/dish`: the shell's own state as files."""

from __future__ import annotations

from llambo.core.errors import BadRequest
from llambo.dish.command import Dish
from llambo.dish.grammar import Assignment, parse
from llambo.dish.local import LocalFiles
from llambo.ninep.files import ControlFile, StaticDirectory, TextFile


def own_files(dish: Dish) -> LocalFiles:
    """The tree: `history`, `env` (lines `NAME=VALUE`, which can be written), `jobs`."""

    def set_one(line: str) -> None:
        found = parse(line, lambda name: False)
        if len(found) != 1 or not isinstance(found[0], Assignment):
            raise BadRequest(f"{line!r} is no NAME=VALUE, such as max_tokens=64")
        dish.set_variable(found[0].name, found[0].value.expand(dish.variables))

    root = StaticDirectory(
        "/",
        [
            TextFile("history", lambda: "".join(f"{line}\n" for line in dish.history)),
            ControlFile("env", set_one, dish.variables_text),
            TextFile("jobs", lambda: str(dish.jobs)),
        ],
    )
    return LocalFiles(root)
