"""What `/set` sets: the parameters of `Sampling`, read from its fields, so that there is never another list of them."""

from __future__ import annotations

import types
import typing
from dataclasses import fields, replace
from typing import Any

from llambo.core.errors import BadRequest
from llambo.core.types import Sampling

DEFAULT_WORDS = ("default", "off", "none")


def _numbers() -> dict[str, type]:
    """The parameters that are numbers, with the kind of each."""
    hints = typing.get_type_hints(Sampling)
    found: dict[str, type] = {}
    for field in fields(Sampling):
        hint = hints[field.name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for kind in (int, float):
            if kind in kinds:
                found[field.name] = kind
    return found


PARAMETERS = _numbers()


def changed(sampling: Sampling, name: str, text: str) -> Sampling:
    """`sampling` with the parameter `name` as `text` has it; "default" leaves it to the engine again.

    Raises: `BadRequest` for an unknown name, what is no number, and a value out of range.
    """
    kind = PARAMETERS.get(name)
    if kind is None:
        raise BadRequest(f"{name!r} is no parameter; there are {', '.join(PARAMETERS)}")
    if text.lower() in DEFAULT_WORDS:
        return replace(sampling, **{name: getattr(Sampling(), name)})
    try:
        value: Any = kind(text)
    except (ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise BadRequest(f"{name} must be {what} or default, not {text!r}") from None
    return replace(sampling, **{name: value})


def described(sampling: Sampling) -> list[tuple[str, str]]:
    """Every parameter with its value, for people."""
    return [
        (name, "default" if getattr(sampling, name) is None else str(getattr(sampling, name))) for name in PARAMETERS
    ]


def to_dict(sampling: Sampling) -> dict[str, Any]:
    """The parameters that are set."""
    return {name: value for name in PARAMETERS if (value := getattr(sampling, name)) is not None}


def from_dict(values: dict[str, Any]) -> Sampling:
    """The opposite of `to_dict`; a name that is none of ours any more is left out.

    Raises: `BadRequest` for a value out of range.
    """
    known: dict[str, Any] = {
        name: value for name, value in values.items() if name in PARAMETERS and isinstance(value, int | float)
    }
    return Sampling(**known)
