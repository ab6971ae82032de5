"""What is typed: pastes of any size, the table of commands, and the page of the docs that is made of it."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

from llambo.core.errors import BadRequest, UnknownCommand
from llambo.core.types import Sampling
from llambo.limbot import commands, settings
from llambo.limbot.paste import PasteParser
from llambo.limbot.screen import PipeScreen

DOCS = Path(__file__).parents[2] / "docs"


def keys_of(pieces: list[str], limit: int = 1000) -> tuple[list[KeyPress], list[int]]:
    keys: list[KeyPress] = []
    too_long: list[int] = []
    parser = PasteParser(keys.append, too_long.append, limit)
    for piece in pieces:
        parser.feed(piece)
    parser.flush()
    return keys, too_long


@given(st.text(alphabet="ab\x1b[201~\n", max_size=30), st.integers(1, 7))
def test_a_paste_is_one_key_however_it_arrives(text: str, size: int) -> None:
    text = text.replace("\x1b[201~", "")
    whole = f"x\x1b[200~{text}\x1b[201~y"
    keys, _ = keys_of([whole[n : n + size] for n in range(0, len(whole), size)])
    assert [key.data for key in keys if key.key == Keys.BracketedPaste] == [text]
    assert [key.key for key in keys if key.key != Keys.BracketedPaste] == ["x", "y"]


def test_a_paste_that_is_too_long_is_told_of_and_dropped_without_holding_it() -> None:
    piece = "p" * 65536
    keys: list[KeyPress] = []
    too_long: list[int] = []
    parser = PasteParser(keys.append, too_long.append, 1 << 20)
    parser.feed("\x1b[200~")
    started = time.process_time()
    for _ in range(1600):  # a hundred megabytes
        parser.feed(piece)
    assert time.process_time() - started < 5
    assert sum(map(len, parser._pieces or [])) <= 1 << 20
    parser.feed("\x1b[201~z")
    assert too_long == [1 << 20]
    assert [key.key for key in keys] == ["z"]


class _Output(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal  # type: ignore[method-assign]


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "a[2Jb\n"), (False, "a\x1b[2Jb\n")])
def test_a_chat_that_is_fed_from_a_pipe_shows_no_escapes_on_a_terminal(is_terminal: bool, shown: str) -> None:
    out = _Output(is_terminal=is_terminal)
    screen = PipeScreen(io.StringIO(), out, io.StringIO())
    screen.show(["a\x1b[2Jb"])
    screen.markdown("a\x1b[2Jb")
    assert out.getvalue() == shown * 2


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    assert commands.docs_table() in (DOCS / "usage.md").read_text(encoding="utf-8")


def test_the_page_on_the_inside_names_every_module() -> None:
    page = (DOCS / "limbot.md").read_text(encoding="utf-8")
    import llambo.limbot

    for path in Path(llambo.limbot.__file__).parent.glob("*.py"):
        assert path.stem == "__init__" or f"`{path.stem}`" in page or f"`{path.stem}.py`" in page, path.stem


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("/help", True),
        ("/nope x", True),
        ("/etc/hosts", False),
        ("/", False),
        ("/2", False),
        ("hi", False),
        ("", False),
    ],
)
def test_a_command_is_a_slash_and_letters(line: str, is_one: bool) -> None:
    assert commands.is_command(line) is is_one


def test_a_beginning_will_do_where_it_is_one_commands_alone() -> None:
    assert commands.parse("/q")[0].name == "exit"
    assert commands.parse("/SEARCH  two words ")[1] == "two words"
    with pytest.raises(UnknownCommand, match="there are /status, /system, /set, /save, /sessions, /search"):
        commands.parse("/s")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_help_fits_its_width(width: int) -> None:
    assert max(map(len, commands.help_lines(width=width))) <= max(width, 20)


def test_every_parameter_can_be_set_checked_and_left_to_the_engine_again() -> None:
    assert set(settings.PARAMETERS) >= {"max_tokens", "temperature", "top_p", "seed"}
    for name, kind in settings.PARAMETERS.items():
        sampling = settings.changed(Sampling(), name, "1")
        assert settings.to_dict(sampling) == {name: kind(1)}
        assert settings.from_dict(settings.to_dict(sampling)) == sampling
        assert settings.changed(sampling, name, "default") == Sampling()
        for wrong in ("x", "", "nan", "1e999", "-99999999999"):
            with pytest.raises(BadRequest):
                settings.changed(sampling, name, wrong)
    with pytest.raises(BadRequest, match="there are max_tokens"):
        settings.changed(Sampling(), "colour", "1")
