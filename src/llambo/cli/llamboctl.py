"""`llamboctl`: starts, stops and looks at what runs, fetches models, makes tokens."""

from __future__ import annotations

import typer

from llambo.cli import (
    bridge_control,
    common,
    configuration,
    daemon_control,
    engine,
    infer,
    logs,
    looks,
    models,
    mounting,
    nodes,
    programs,
    tokens,
    top,
)

app = typer.Typer(
    **common.APP_OPTIONS,
    no_args_is_help=True,
    help="Controls Llambo: the cluster and its nodes, bridges, models, tokens and the configuration.",
)
for part in (daemon_control, nodes, looks, top, infer, logs, models, configuration, mounting, engine, programs):
    part.register(app)
app.add_typer(bridge_control.app, name="bridge")
app.add_typer(tokens.app, name="token")


@app.callback()
def options(
    verbose: common.Verbose = 0,
    no_color: common.NoColor = False,
    version: common.Version = False,
) -> None:
    """Options of every command."""
    from llambo.core import log

    log.to_stderr(verbose=verbose)


def main() -> None:
    """The entry point."""
    common.run("llamboctl", app)
