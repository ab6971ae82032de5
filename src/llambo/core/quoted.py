"""A prompt written as a JSON string, which may hold newlines where a line cannot."""

from __future__ import annotations

import msgspec

_STRING = msgspec.json.Decoder(str)


def unquoted(text: str) -> str:
    """The string that `text` is when all of it is a JSON string, else `text` as it stands."""
    if not text.startswith('"'):
        return text
    try:
        return _STRING.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):  # the latter: no text at all, which is told where it is sent
        return text
