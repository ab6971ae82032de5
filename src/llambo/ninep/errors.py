"""Rerror texts, the error classes behind them, and the way from one to the other and back.

Clients turn texts into error numbers: Linux v9fs compares whole strings with a table, 9pfuse looks for words in them.
So the standard refusals are exactly these texts, and every other error of ours begins with words that they know.
"""

from __future__ import annotations

from typing import Final

from llambo.core.errors import (
    BadRequest,
    Cancelled,
    LlamboError,
    NameInUse,
    NotFound,
    Overloaded,
    Refused,
    TimedOut,
    Unreachable,
    from_code,
)

NOT_FOUND: Final = "file does not exist"
PERMISSION: Final = "permission denied"
IN_USE: Final = "file in use"
ILLEGAL_NAME: Final = "illegal name"
ILLEGAL_MODE: Final = "illegal mode"
NOT_A_DIRECTORY: Final = "not a directory"
UNKNOWN_FID: Final = "fid unknown or out of range"
FID_IN_USE: Final = "fid already in use"
BAD_USE_OF_FID: Final = "bad use of fid"
BAD_DIRECTORY_OFFSET: Final = "bad offset in directory read"
DUPLICATE_TAG: Final = "duplicate tag"
NO_AUTHENTICATION: Final = "authentication not required"
INTERRUPTED: Final = "interrupted"
INVALID: Final = "invalid argument"
IO_ERROR: Final = "i/o error"

_PREFIXES: Final[tuple[tuple[str, type[LlamboError]], ...]] = (
    (INVALID, BadRequest),
    (NOT_FOUND, NotFound),
    (PERMISSION, Refused),
    (IN_USE, NameInUse),
    (INTERRUPTED, Cancelled),
    ("timed out", TimedOut),
    ("overloaded", Overloaded),
    ("unreachable", Unreachable),
)
_PREFIX_OF: Final = {kind: prefix for prefix, kind in _PREFIXES}
_CODES_SENT: Final = (
    "bad_model", "no_memory", "no_model", "download_failed", "node_lost", "engine_failed", "diverged", "no_quorum",
)  # fmt: skip
_SELF_TOLD: Final = ("no_quorum",)
"""Codes whose sentence begins with their words by itself."""


class Malformed(BadRequest):
    """Bytes that are no 9P2000 message; where the next one would begin cannot be told."""

    code = "malformed"


class FileError(LlamboError):
    """A refusal whose Rerror text is exactly its message; what a client raises for a text that it does not know."""

    code = "file_error"


def rerror_text(error: LlamboError) -> str:
    """The Rerror text of an error that a handler raised: words that clients know, then the sentence.

    A `NotFound()` without a message is exactly `file does not exist`, and so on for the standard refusals.
    """
    if isinstance(error, FileError):
        return error.message
    prefix = _PREFIX_OF.get(type(error))
    if prefix is None:
        prefix = INVALID if isinstance(error, BadRequest) else error.code.replace("_", " ")
    if not error.args or error.message == prefix:
        return prefix
    if error.code in _SELF_TOLD and error.message.startswith(f"{prefix}: "):
        return error.message
    return f"{prefix}: {error.message}"


def error_from_text(text: str) -> LlamboError:
    """The error that an Rerror stands for: the class that its first words name, with the sentence after them.

    The inverse of `rerror_text` but for subclasses of `BadRequest`, which come back as `BadRequest`, and for sentences
    that should begin with the words of their code and did not.
    """
    prefix, separator, sentence = text.partition(": ")
    message = sentence if separator else text
    for known, kind in _PREFIXES:
        if prefix == known:
            return kind(message)
    code = prefix.replace(" ", "_")
    if separator and code in _CODES_SENT:
        return from_code(code, text if code in _SELF_TOLD else message)
    return FileError(text)
