"""JSON to and from a node: whatever is wrong with it becomes one of our errors.

A reply comes from a server that may be anything; the body of a request holds what a caller gave. Knows neither
endpoints nor connections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from llambo.core.errors import BadRequest, NodeLost

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a document that is no JSON, has another form, is no UTF-8, or is nested too deep."""

MAX_COUNT = 2**31
"""No request has so many tokens."""

_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode


def decoded(decode: Callable[[bytes], _T], reply: bytes, who: str) -> _T:
    """The reply of `who` ("node n1") as `decode` reads it. Raises: `NodeLost` when it cannot be read."""
    try:
        return decode(reply)
    except MALFORMED as error:
        raise NodeLost(f"{who} answers with what no LLM server says: {error}") from None


def encoded(body: dict[str, Any]) -> bytes:
    """The body of a request. Raises: `BadRequest` when a caller's text in it cannot be sent."""
    try:
        return _encode(body)
    except (UnicodeEncodeError, RecursionError, OverflowError) as error:
        raise BadRequest(f"the request holds what JSON cannot carry: {error}") from None


def count(value: int | None) -> int:
    """A count that a server tells; 0 for one that cannot be."""
    return value if value is not None and 0 <= value < MAX_COUNT else 0
