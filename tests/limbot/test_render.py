"""How answers look: nothing executes in a terminal, finished blocks are printed once, pipes get the very text."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llambo.limbot.render import MarkdownStream, Plain, harmless, split_blocks


@pytest.mark.parametrize("attack", ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "a\rb", "\x08\x7f"])
def test_control_characters_never_reach_a_terminal(attack: str) -> None:
    shown = harmless(attack)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)


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


@given(st.text(alphabet="a\n`~ ", max_size=60))
def test_splitting_loses_nothing_and_never_cuts_a_fence(text: str) -> None:
    blocks = split_blocks(text)
    assert "".join(blocks) == text
    for block in blocks[:-1]:
        fences = [line for line in block.splitlines() if re.match(r" {0,3}(```|~~~)", line)]
        assert len(fences) % 2 == 0


@given(st.text(alphabet="a\n`~ ", max_size=40))
def test_blocks_do_not_depend_on_the_pieces_in_which_text_arrives(text: str) -> None:
    seen: list[str] = []
    rest = ""
    for piece in text:
        *finished, rest = split_blocks(rest + piece)
        seen += finished
    assert [*seen, rest] == split_blocks(text)


def test_a_blank_line_inside_a_fence_does_not_finish_it() -> None:
    text = "intro\n\n```python\na = 1\n\nb = 2\n"
    assert split_blocks(text) == ["intro\n\n", "```python\na = 1\n\nb = 2\n"]


def render(pieces: list[str], *, width: int = 60) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=False, width=width)
    markdown = MarkdownStream(console)
    for piece in pieces:
        markdown.feed(piece)
    markdown.close()
    return stream.getvalue()


TEXT = "# Title\n\nSome *text* with `code`.\n\n- one\n- two\n\n```\nx = 1\n\ny = 2\n```\n"


def test_the_rendering_does_not_depend_on_the_pieces() -> None:
    assert render([TEXT]) == render(list(TEXT))


def test_every_block_is_printed_exactly_once() -> None:
    shown = render(list(TEXT))
    for word in ("Title", "text", "one", "two", "x = 1", "y = 2"):
        assert shown.count(word) == 1
    assert "*" not in shown
    assert "`" not in shown
