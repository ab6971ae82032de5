"""How answers look: nothing executes in a terminal, finished blocks are printed once, pipes get the very text."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth
from rich.console import Console

from llambo.core.harmless import harmless
from llambo.limbot.blocks import Block, Blocks, Code, Prose
from llambo.limbot.paint import Painter, fragments
from llambo.limbot.plain import Plain
from llambo.limbot.render import MarkdownStream

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.mark.parametrize(
    "attack", ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "a\rb", "\x08\x7f", "\u202eabc", "\ud800"]
)
def test_control_characters_never_reach_a_terminal(attack: str) -> None:
    shown = harmless(attack)
    assert all(c.isprintable() for c in shown)


@given(st.text())
def test_harmless_keeps_every_printable_character_and_newlines(text: str) -> None:
    kept = harmless(text)
    assert [c for c in text if c == "\n" or c.isprintable()] == [c for c in kept if c == "\n" or c.isprintable()]


def test_plain_text_to_a_pipe_is_untouched_but_for_the_last_newline() -> None:
    stream = io.StringIO()
    plain = Plain(stream, to_terminal=False)
    plain.feed("a\x1b[1m")
    plain.feed("b")
    plain.close()
    assert stream.getvalue() == "a\x1b[1mb\n"


def test_an_empty_answer_adds_no_line() -> None:
    stream = io.StringIO()
    plain = Plain(stream, to_terminal=True)
    plain.feed("")
    plain.close()
    assert stream.getvalue() == ""


def blocks_of(pieces: list[str] | str) -> list[Block]:
    blocks = Blocks()
    found = [block for piece in pieces for block in blocks.feed(piece)]
    return [*found, *blocks.close()]


MARKDOWN = st.text(alphabet="a1\n`~-*# .|>", max_size=80)


@given(MARKDOWN)
def test_blocks_do_not_depend_on_the_pieces_in_which_text_arrives(text: str) -> None:
    assert blocks_of(list(text)) == blocks_of([text])


@given(st.lists(st.sampled_from(["word", "", "- item", "  more", "# head", "| a | b |", "1. one"]), max_size=20))
def test_every_line_outside_code_is_in_exactly_one_block(lines: list[str]) -> None:
    found = [line.strip() for block in blocks_of(["\n".join(lines)]) for line in block.text.split("\n")]
    assert [line for line in found if line] == [line.strip() for line in lines if line.strip()]


def test_code_is_finished_line_by_line_with_its_language_and_what_stands_above() -> None:
    found = blocks_of("intro\n\n```python\na = 1\n\nb = 2\n```\nend")
    assert found == [
        Prose("intro"),
        Code("a = 1", "python"),
        Code("", "python", "a = 1", False),
        Code("b = 2", "python", "a = 1\n", False),
        Prose("end"),
    ]


def test_a_fence_ends_at_its_own_mark_alone_and_may_stay_open() -> None:
    assert [block.text for block in blocks_of("````\n```\n~~~\n````\nafter")] == ["```", "~~~", "after"]
    assert [block.text for block in blocks_of("```\nnever closed")] == ["never closed"]


def test_what_is_indented_after_a_list_is_no_code() -> None:
    found = blocks_of("1. one\n\n    more of one\n\n2. two\n\nplain\n\n    code")
    assert found == [Prose("1. one"), Prose("more of one", 4), Prose("2. two"), Prose("plain"), Prose("    code")]


def test_the_open_block_is_what_may_still_change() -> None:
    blocks = Blocks()
    assert blocks.open() is None
    blocks.feed("done\n\nstill *op")
    assert blocks.open() == Prose("still *op")
    blocks.feed("en*\n```c\nint x")
    assert blocks.open() == Code("int x", "c")


def plain_lines(text: str, width: int = 60) -> list[str]:
    painter = Painter(has_colour=True)
    return [
        "".join(segment.text for segment in line) for block in blocks_of([text]) for line in painter.lines(block, width)
    ]


@given(st.text(alphabet="ab 日本😀é\n-*", max_size=100), st.integers(8, 60))
def test_no_line_but_code_is_wider_than_the_terminal(text: str, width: int) -> None:
    assert all(get_cwidth(line) <= width for line in plain_lines(text, width))


def test_code_lines_are_as_they_are_however_long() -> None:
    code = "x = " + "1 + " * 40 + "1"
    assert plain_lines(f"```python\n{code}\n\n    y\n```", 20) == ["python", code, "", "    y"]


@given(st.text(max_size=60))
def test_nothing_that_is_painted_holds_a_control_character(text: str) -> None:
    painter = Painter(has_colour=True)
    for spelt in (text, f"&#27;{text}&#13;", f"```\n{text}\x1b[1m"):
        for block in blocks_of([spelt]):
            lines = painter.lines(block, 40)
            shown = "".join(fragment for _, fragment in fragments(lines)) + _ESCAPE.sub("", painter.ansi(lines))
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


def render(pieces: list[str], *, width: int = 60) -> str:
    stream = io.StringIO()
    markdown = MarkdownStream(Console(file=stream, force_terminal=False, width=width))
    for piece in pieces:
        markdown.feed(piece)
    markdown.close()
    return _ESCAPE.sub("", stream.getvalue())


TEXT = "# Title\n\nSome *text* with `code`.\n\n- one\n- two\n\n```\nx = 1\n\ny = 2\n```\n"


def test_the_rendering_does_not_depend_on_the_pieces() -> None:
    assert render([TEXT]) == render(list(TEXT)) == "Title\n\nSome text with code.\n\n • one\n • two\n\nx = 1\n\ny = 2\n"


def test_every_block_is_printed_exactly_once() -> None:
    shown = render(list(TEXT))
    for word in ("Title", "text", "one", "two", "x = 1", "y = 2"):
        assert shown.count(word) == 1
    assert "*" not in shown
    assert "`" not in shown
