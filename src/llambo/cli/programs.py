"""`llamboctl limbot …` and `llamboctl dish …`: the other programs, with their own options, by their names."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Adds the commands to a command line."""
    for verb in (limbot, dish):
        app.command(context_settings=_ANYTHING, add_help_option=False)(verb)


def limbot() -> None:
    """Asks a model, once or in a chat; as the program limbot."""
    from llambo.cli.limbot import main

    _hand_over("limbot", main)


def dish() -> None:
    """A shell for the cluster and its files; as the program dish."""
    from llambo.cli.dish import main

    _hand_over("dish", main)


def _hand_over(name: str, main: Callable[[], None]) -> None:
    """Runs another program with what stands behind its name, as it stands."""
    sys.argv[:] = sys.argv[sys.argv.index(name) :]
    main()
