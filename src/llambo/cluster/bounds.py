"""What bounds an answer, a grammar or a JSON Schema, checked before any node sees it.

Pure. llama.cpp reads both by recursion, and its whole process dies of one that is nested deep enough; so size and depth
have limits here. Whether a grammar or schema makes sense is the engine's to say.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from llambo.cluster.upstream_json import MALFORMED
from llambo.core.errors import BadRequest
from llambo.core.types import GenerateRequest

MAX_BYTES = 64 * 2**10
MAX_DEPTH = 64

# Where GBNF takes a parenthesis for a character: texts, character classes, tokens and comments.
# One that does not end is taken to the text's end: to look again from within it would take the square of its length.
_NO_GROUPS = re.compile(r'"(?:\\.?|[^"\\])*+("?)|\[(?:\\.?|[^]\\])*+(\]?)|<[^>]*+(>?)|(#)[^\r\n]*+', re.DOTALL)


def check(request: GenerateRequest) -> None:
    """Raises: `BadRequest` for a grammar or schema that is too large, nested too deep, or no JSON object."""
    if request.grammar:
        check_grammar(request.grammar)
    if request.json_schema:
        schema(request.json_schema)


def check_grammar(grammar: str) -> None:
    """Raises: `BadRequest` for one that is too large or has too many parentheses open at once."""
    _check_size("grammar", grammar)
    depth = 0
    for character in _NO_GROUPS.sub(lambda found: "" if found[found.lastindex or 0] else found[0], grammar):
        depth += (character == "(") - (character == ")")
        if depth > MAX_DEPTH:
            raise BadRequest(
                f"the grammar has more than {MAX_DEPTH} parentheses open at once; use rules in their place"
            )


def schema(text: str) -> dict[str, Any]:
    """A JSON Schema as a value. Raises: `BadRequest` for one that is too large, nested too deep, or no JSON object."""
    _check_size("JSON schema", text)
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except MALFORMED as error:
        raise BadRequest(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest('the JSON schema is no JSON object; give one such as {"type": "object"}')
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for found in level for child in _children(found)]
    if any(isinstance(found, dict | list) for found in level):
        raise _too_deep()
    return value


def _children(value: object) -> list[Any]:
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
        case _:
            return []


def _check_size(what: str, text: str) -> None:
    size = len(text.encode())
    if size > MAX_BYTES:
        raise BadRequest(f"the {what} has {size} bytes and may have {MAX_BYTES}; give a shorter one")


def _too_deep() -> BadRequest:
    return BadRequest(f"the JSON schema is nested more than {MAX_DEPTH} deep; use $ref and $defs in place of nesting")
