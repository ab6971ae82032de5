"""`llamboctl config`: shows, checks and edits the configuration."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from llambo.cli import common
from llambo.core.errors import BadConfig, BadRequest, LlamboError

EXAMPLE = Path(__file__).parents[1] / "data" / "cluster-config.yaml"
"""Every key at its default, with comments."""


def register(app: typer.Typer) -> None:
    """Adds the command to a command line."""
    app.command()(config)


def config(
    show: Annotated[bool, typer.Option("--show", help="Print every value and where it is from.")] = False,
    validate: Annotated[bool, typer.Option("--validate", help="Only check; says nothing when all is well.")] = False,
    edit: Annotated[bool, typer.Option("--edit", help="Open the home's file in $VISUAL or $EDITOR.")] = False,
    file: common.ConfigFile = None,
    as_json: common.Json = False,
) -> None:
    """Shows, checks or edits the configuration."""
    from llambo.core import config as configuration

    if show + validate + edit != 1:
        raise BadRequest("give one of --show, --validate and --edit")
    if edit:
        _edit(file or configuration.file_of_home())
        return
    loaded = configuration.load(file)
    if validate:
        return
    if as_json:
        common.print_json({key: {"value": value, "source": source} for key, value, source in loaded.entries()})
        return
    for key, value, source in loaded.entries():
        sys.stdout.write(f"{key} = {value}  # {source}\n")


def _edit(path: Path) -> None:
    """Opens a copy in the editor and puts it in the file's place when it is sound; else the file stays as it was."""
    from llambo.core import config as configuration

    draft = path.with_name(f"{path.name}.edit")
    editor = _editor()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not draft.exists():  # one that was refused the last time is gone on with
        shutil.copyfile(path if path.exists() else EXAMPLE, draft)
    status = subprocess.run([*editor, str(draft)], check=False).returncode
    if status != 0:
        draft.unlink(missing_ok=True)
        raise LlamboError(f"the editor ended with status {status}: nothing was changed")
    try:
        configuration.load(draft)
    except BadConfig as error:
        raise BadConfig(
            f"{error.message}; {path} is as it was, and --edit goes on with your changes in {draft.name}"
        ) from None
    draft.replace(path)
    sys.stdout.write(f"{path}\n")


def _editor() -> list[str]:
    """The command line of the user's editor.

    Raises: `BadRequest` where there is none.
    """
    wanted = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        command = shlex.split(wanted)
    except ValueError as error:
        raise BadRequest(f"the editor {wanted!r} is no command: {error}") from None
    if not command or shutil.which(command[0]) is None:
        raise BadRequest(f"there is no editor {wanted!r}; set VISUAL or EDITOR")
    return command
