"""Text files in a prompt, with their names: reading them, and refusing what is no text or too much."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llambo.core.errors import BadRequest, TooLarge

MAX_BYTES = 8 << 20
"""No file over this is read: what is sent to a cluster has limits of its own, and no context holds as much."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text file that goes into a prompt."""

    name: str
    text: str

    def block(self) -> str:
        """As it stands in the prompt: its name, and the text in a fence longer than any in it."""
        longest = max((len(run) for run in re.findall(r"`+", self.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"File {self.name}:\n{fence}\n{self.text.rstrip(chr(10))}\n{fence}"


def read(path: str, *, ctx: int = 0) -> Attachment:
    """The text file at `path`; `ctx` is the context in tokens, where it is known.

    Raises: `BadRequest` for what is no readable text file, `TooLarge` with both numbers.
    """
    place = Path(path).expanduser()
    try:
        if place.is_dir():
            raise BadRequest(f"{path} is a directory; name a text file")
        with place.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise BadRequest(f"{path!r} is no path of a file") from None
    if len(data) > MAX_BYTES:
        size = max(place.stat().st_size, len(data))
        limit = f"the context holds {ctx} tokens" if ctx else f"a message holds {MAX_BYTES} bytes"
        raise TooLarge(f"{path} has {size} bytes and {limit}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path} is not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise BadRequest(f"{path} is no text: it holds NUL bytes")
    return Attachment(place.name, text)


def with_files(prompt: str, attached: list[Attachment]) -> str:
    """The prompt with the files before it."""
    return "\n\n".join([*(attachment.block() for attachment in attached), prompt])
