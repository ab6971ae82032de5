"""Blocks of Markdown as coloured lines of a given width.

Text of a model never reaches a terminal with its control characters: they could move the cursor, change the title or
paste into the shell. They are taken out after rendering, since Markdown can spell them (`&#13;`).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Heading, Markdown
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from llambo.core.harmless import harmless
from llambo.limbot.blocks import Block, Code, Prose

_THEME = "ansi_dark"
DIM = Style(dim=True)
Line = list[Segment]


class _PlainHeading(Heading):
    """A heading at the left, without a box around it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Markdown(Markdown):
    elements = {**Markdown.elements, "heading_open": _PlainHeading}  # noqa: RUF012 - as rich has it


class Painter:
    """Makes lines of blocks. `has_colour` False leaves bold and dim alone."""

    def __init__(self, *, has_colour: bool, width: int = 80) -> None:
        self.has_colour = has_colour
        self._console = Console(
            file=io.StringIO(),
            force_terminal=True,
            color_system="256" if has_colour else None,
            no_color=not has_colour,
            width=width,
            legacy_windows=False,
            theme=Theme({"markdown.code": "cyan", "markdown.table.border": "dim"}),
        )

    def lines(self, block: Block, width: int) -> list[Line]:
        """The block as lines; those of code are as long as they are, all others fit `width`."""
        match block:
            case Prose(text, indent):
                return self._prose(text, indent, max(1, width))
            case Code():
                return self._code(block)

    @staticmethod
    def plain(text: str) -> list[Line]:
        """Text that is no Markdown."""
        return [[Segment(line)] for line in harmless(text).split("\n")]

    def wrapped(self, text: str, width: int) -> list[str]:
        """A line in lines of `width` columns, parted between words."""
        return [line.plain.rstrip(" ") for line in Text(text).wrap(self._console, max(1, width))] or [""]

    def ansi(self, lines: Iterable[Line]) -> str:
        """The lines as a terminal takes them, each with its newline."""
        return "".join(f"{''.join(self._ansi(segment) for segment in line)}\n" for line in lines)

    def _ansi(self, segment: Segment) -> str:
        text, style, _ = segment
        system = self._console._color_system
        return style.render(text, color_system=system) if style else text

    def _prose(self, text: str, indent: int, width: int) -> list[Line]:
        indent = min(indent, width // 3)
        options = self._console.options.update(width=max(1, width - indent))
        markdown = _Markdown(harmless(text), code_theme=_THEME, hyperlinks=False)
        lines = [_clean(line) for line in self._console.render_lines(markdown, options, pad=False)]
        while lines and _is_blank(lines[-1]):
            lines.pop()
        while lines and _is_blank(lines[0]):
            lines.pop(0)
        return [[Segment(" " * indent), *line] for line in lines] if indent else lines

    def _code(self, block: Code) -> list[Line]:
        whole = f"{block.before}\n{block.text}" if not block.begins else block.text
        syntax = Syntax("", block.language or "text", theme=_THEME, background_color="default")
        texts = list(syntax.highlight(harmless(whole).expandtabs(4)).split("\n", allow_blank=True))
        first = whole.count("\n") - block.text.count("\n")
        count = block.text.count("\n") + 1
        wanted = [*texts[first : first + count], *[Text("")] * count][:count]  # a highlighter drops empty last lines
        head = [[Segment(block.language, DIM)]] if block.begins and block.language else []
        return [*map(_clean, head), *(_clean(text.render(self._console, end="")) for text in wanted)]


def _clean(line: Iterable[Segment]) -> Line:
    """A line without control characters, and without blanks at its end."""
    found = [Segment(harmless(text).replace("\n", ""), style) for text, style, control in line if not control]
    while found and not found[-1].text.strip(" "):
        found.pop()
    if found:
        found[-1] = Segment(found[-1].text.rstrip(" "), found[-1].style)
    return found


def _is_blank(line: Line) -> bool:
    return not any(text.strip() for text, _, _ in line)


def fragments(lines: Iterable[Line]) -> Iterator[tuple[str, str]]:
    """The lines as prompt_toolkit has them: (style, text), a newline between each two."""
    for number, line in enumerate(lines):
        if number:
            yield "", "\n"
        for text, style, _ in line:
            yield (_style(style) if style else ""), text


def _style(style: Style) -> str:
    words = [
        word
        for word, is_on in (
            ("bold", style.bold),
            ("italic", style.italic),
            ("underline", style.underline),
            ("reverse", style.reverse),
            ("strike", style.strike),
            ("dim", style.dim),
        )
        if is_on
    ]
    if style.color is not None and not style.color.is_default:
        words.append(f"fg:{style.color.get_truecolor().hex}")
    return " ".join(words)
