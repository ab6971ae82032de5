"""`llamboctl token`: makes, lists and revokes access tokens."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from llambo.cli import common
from llambo.core.errors import BadRequest

app = typer.Typer(no_args_is_help=True, help="Access tokens for TCP listeners.")


def _store() -> Any:
    from llambo.core import paths
    from llambo.core.tokens import TokenStore

    return TokenStore(paths.home() / "tokens.json")


@app.command("create")
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


@app.command("list")
def list_tokens(as_json: common.Json = False) -> None:
    """Lists tokens, without their secrets."""
    from datetime import UTC, datetime

    tokens = _store().list()
    if as_json:
        common.print_json(tokens)
        return
    if not tokens:
        sys.stdout.write("no tokens; `llamboctl token create --scope infer` makes one\n")
    for known in tokens:
        times = [
            datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%MZ") if t else "never"
            for t in (known.created, known.expires)
        ]
        sys.stdout.write(f"{known.id}  {known.scope:5}  created {times[0]}  expires {times[1]}\n")


@app.command("revoke")
def revoke_token(token_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Makes a token worthless."""
    _store().revoke(token_id)


_DAY_S = 86_400.0


def _lifetime_s(text: str) -> float:
    """Seconds in "30d", "12h", "90m" or "60s"."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY_S}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isdecimal():
        raise BadRequest(f"{text!r} is no lifetime: write it as 30d, 12h, 90m or 60s")
    return int(number) * units[unit]
