"""`llamboctl`: starts, stops and looks at what runs, fetches models, makes tokens."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from llambo.cli import bridge_control, common, models
from llambo.core.errors import BadRequest

app = typer.Typer(
    **common.APP_OPTIONS,
    no_args_is_help=True,
    help="Controls Llambo: bridges, models, tokens and the configuration.",
)
token = typer.Typer(no_args_is_help=True, help="Access tokens for TCP listeners.")
app.add_typer(bridge_control.app, name="bridge")
app.add_typer(token, name="token")
models.register(app)


@app.callback()
def options(
    verbose: common.Verbose = 0,
    no_color: common.NoColor = False,
    version: common.Version = False,
) -> None:
    """Options of every command."""
    from llambo.core import log

    log.to_stderr(verbose=verbose)


def _store() -> Any:
    from llambo.core import paths
    from llambo.core.tokens import TokenStore

    return TokenStore(paths.home() / "tokens.json")


@token.command("create")
def create_token(
    scope: Annotated[str, typer.Option(help="read, infer or admin.")],
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="Such as 30d or 12h; default: never.")] = None,
    as_json: common.Json = False,
) -> None:
    """Makes a token and prints it; it is stored hashed and cannot be shown again."""
    token_id, secret = _store().create(scope, expires_s=_lifetime_s(expires) if expires else None)
    if as_json:
        common.print_json({"id": token_id, "scope": scope, "token": secret})
    else:
        sys.stderr.write(f"token {token_id} with scope {scope}; keep it, it is shown only now:\n")
        sys.stdout.write(f"{secret}\n")


@token.command("list")
def list_tokens(as_json: common.Json = False) -> None:
    """Lists tokens, without their secrets."""
    from datetime import UTC, datetime

    tokens = _store().list()
    if as_json:
        common.print_json(tokens)
        return
    for known in tokens:
        times = [
            datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d") if t else "never"
            for t in (known.created, known.expires)
        ]
        sys.stdout.write(f"{known.id}  {known.scope:5}  created {times[0]}  expires {times[1]}\n")


@token.command("revoke")
def revoke_token(token_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Makes a token worthless."""
    _store().revoke(token_id)


@app.command()
def config(
    show: Annotated[bool, typer.Option("--show", help="Print every value and where it is from.")] = False,
    validate: Annotated[bool, typer.Option("--validate", help="Only check; says nothing when all is well.")] = False,
    file: common.ConfigFile = None,
    as_json: common.Json = False,
) -> None:
    """Shows or checks the effective configuration."""
    from llambo.core import config as configuration

    if show == validate:
        raise BadRequest("give either --show or --validate")
    loaded = configuration.load(file)
    if validate:
        return
    rows = [
        {"key": key, "value": getattr(getattr(loaded.settings, key.split(".")[0]), key.split(".")[1]), "source": source}
        for key, source in loaded.sources.items()
    ]
    if as_json:
        common.print_json({row.pop("key"): row for row in rows})
        return
    for row in rows:
        sys.stdout.write(f"{row['key']} = {row['value']}  # {row['source']}\n")


_DAY_S = 86_400.0


def _lifetime_s(text: str) -> float:
    """Seconds in "30d", "12h", "90m" or "60s"."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY_S}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isdecimal():
        raise BadRequest(f"{text!r} is no lifetime: write it as 30d, 12h, 90m or 60s")
    return int(number) * units[unit]


def main() -> None:
    """The entry point."""
    common.run("llamboctl", app)
