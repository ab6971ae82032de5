"""Lines that break between words although the text comes in pieces: a word that grows over the edge moves down.

Pure. The text is shown at once, so what was shown of such a word is taken back with the terminal's own codes.
"""

from __future__ import annotations

import unicodedata

_TAB = 8
_BACK = "\b"
_REST_OF_LINE = "\x1b[K"


class Wrapping:
    """A text from the start of a line on."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""  # what stands on this line of the last word
        self._word_columns = 0

    def feed(self, text: str, width: int) -> str:
        """What is to be shown for the next piece of the text, on a terminal `width` columns wide."""
        # In its last column a cursor waits behind the character, where going back is another matter on each terminal.
        return "".join(self._character(character, max(width - 1, 1)) for character in text)

    def _character(self, character: str, width: int) -> str:
        match character:
            case "\n":
                self._begin_line()
                return character
            case "\t" | " ":
                return self._blank(character, width)
        columns = columns_of(character)
        shown = character
        if self._column + columns > width:
            shown = self._break(character)
        if columns > 1:  # scripts without blanks, whose lines may end anywhere
            self._word, self._word_columns = "", 0
        else:
            self._word += character
            self._word_columns += columns
        self._column += columns
        return shown

    def _blank(self, character: str, width: int) -> str:
        column = self._column + 1 if character == " " else (self._column // _TAB + 1) * _TAB
        self._word, self._word_columns = "", 0
        self._column = min(column, width)
        return character if column <= width else ""  # the end of the line stands for it

    def _break(self, character: str) -> str:
        """Ends the line before the word that `character` goes on with, or in it where it is longer than a line."""
        word, columns = self._word, self._word_columns
        if columns == self._column:
            self._begin_line()
            return f"\n{character}"
        self._begin_line()
        self._word, self._word_columns, self._column = word, columns, columns
        back = f"{_BACK * columns}{_REST_OF_LINE}" if columns else ""
        return f"{back}\n{word}{character}"

    def _begin_line(self) -> None:
        self._column = self._word_columns = 0
        self._word = ""


def columns_of(character: str) -> int:
    """How wide a terminal shows it."""
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1
