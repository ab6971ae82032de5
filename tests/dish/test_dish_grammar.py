"""What lines of dish say, and where they are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.dish.grammar import Assignment, LineFault, Pipeline, Prompt, parse, quote, scan
from llambo.dish.highlighting import fragments
from llambo.dish.interpreter import logical_lines

COMMANDS = {"ls", "cat", "echo", "infer", "tail", "?"}
VARIABLES = {"x": "one two", "status": "0"}


def is_command(name: str) -> bool:
    return name in COMMANDS


def words(line: str) -> list[str]:
    """The expanded words of a line that is one command, with its name."""
    (pipeline,) = parse(line, is_command)
    assert isinstance(pipeline, Pipeline)
    (stage,) = pipeline.stages
    return [stage.name, *(word.expand(VARIABLES) for word in stage.words)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ls", ["ls"]),
        ("  ls   -l\t/n ", ["ls", "-l", "/n"]),
        ("echo 'one word'", ["echo", "one word"]),
        ("echo 'it''s'", ["echo", "it's"]),
        ("echo what's this", ["echo", "what's", "this"]),
        ('echo "a \\"b\\" \\\\ \\$x $x"', ["echo", 'a "b" \\ $x one two']),
        ("echo '' \"\"", ["echo", "", ""]),
        ("echo $x!", ["echo", "one two!"]),
        ("echo $unset", ["echo", ""]),
        ("echo '$x' $ 5$", ["echo", "$x", "$", "5$"]),
        ("echo 'a''b'", ["echo", "a'b"]),
        ("echo 'a'b", ["echo", "ab"]),
        ("echo system='be terse' why", ["echo", "system=be terse", "why"]),
        ("echo a#b # c", ["echo", "a#b"]),
        ("echo a\\b", ["echo", "a\\b"]),
        ("? ls", ["?", "ls"]),
    ],
)
def test_words_are_read(line: str, expected: list[str]) -> None:
    assert words(line) == expected


@pytest.mark.parametrize("line", ["", "   ", "# scale 3", "  # x"])
def test_an_empty_line_and_a_comment_say_nothing(line: str) -> None:
    assert parse(line, is_command) == ()


@pytest.mark.parametrize("line", ["What's 3 > 2 | why?", "lsx", "x=1, so what is x*2?", '"Hello" & goodbye', "x='1"])
def test_a_line_that_is_no_command_is_a_prompt_as_it_stands(line: str) -> None:
    assert parse(f"  {line} ", is_command) == (Prompt(line),)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [("x=1", "x", "1"), ("x=", "x", ""), ("system='be terse'", "system", "be terse"), ('y="$x!"', "y", "one two!")],
)
def test_an_assignment_stands_alone_on_its_line(line: str, name: str, value: str) -> None:
    (found,) = parse(line, is_command)
    assert isinstance(found, Assignment)
    assert (found.name, found.value.expand(VARIABLES)) == (name, value)


def test_pipes_redirections_and_jobs_are_read() -> None:
    first, second, third = parse("cat a|tail <in >>out 2; ls > x&; echo '|'", is_command)
    assert isinstance(first, Pipeline)
    assert [stage.name for stage in first.stages] == ["cat", "tail"]
    assert [(r.operator, r.target.text) for r in first.stages[1].redirections] == [("<", "in"), (">>", "out")]
    assert [word.text for word in first.stages[1].words] == ["2"]
    assert first.text == "cat a|tail <in >>out 2"
    assert isinstance(second, Pipeline)
    assert second.is_background
    assert second.text == "ls > x"
    assert isinstance(third, Pipeline)
    assert not third.is_background
    assert words("echo '|'") == ["echo", "|"]


@pytest.mark.parametrize(
    ("line", "position", "sentence"),
    [
        ("echo 'abc", 6, "the quote ' is not closed"),
        ('echo a "b', 8, 'the quote " is not closed'),
        ("ls |", 5, "a command is missing after |"),
        ("ls | | cat", 6, "a command is missing before |"),
        ("| ls", 1, "a command is missing before |"),
        ("ls ; ; ls", 6, "a command is missing before ;"),
        ("ls >", 5, "a file is missing after >"),
        ("ls > | cat", 5, "a file is missing after >"),
        ("ls & ls", 4, "& ends a command"),
        ("ls | nonsense", 6, "'nonsense' is no command"),
        ("  ls; 'ls'", 7, "\"'ls'\" is no command"),
    ],
)
def test_an_error_names_the_position(line: str, position: int, sentence: str) -> None:
    with pytest.raises(LineFault) as caught:
        parse(line, is_command)
    assert caught.value.position == position - 1
    assert caught.value.message.startswith(sentence)
    assert caught.value.message.endswith(f"(position {position})")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("word", "pattern"),
    [("n*", "n*"), ("'n*'", ""), ("n'*'*", "n'*'*"), ("nodes", ""), ("'[x]'?", "[[]x]?"), ("$x*", "one two*")],
)
def test_only_what_is_not_quoted_is_a_pattern(word: str, pattern: str) -> None:
    (token,), fault = scan(word)
    assert fault is None
    assert token.pattern(VARIABLES) == pattern


LINES = st.text(st.sampled_from("ab'\"\\ |<>&;$=#*x\téß"), max_size=30) | st.text(max_size=30)


@given(st.text())
def test_a_quoted_word_is_read_back(word: str) -> None:
    tokens, fault = scan(f"echo {quote(word)} end")
    assert fault is None
    assert [token.expand({}) for token in tokens] == ["echo", word, "end"]


@given(LINES)
def test_any_line_is_scanned_in_order_and_without_loss(line: str) -> None:
    tokens, fault = scan(line)
    end = 0
    for token in tokens:
        assert line[end : token.start].strip() == ""
        assert line[token.start : token.end] == token.text
        assert token.end > token.start
        end = token.end
    if fault is None:
        assert line[end:].strip() == ""
    else:
        assert 0 <= fault.position < len(line)


@given(LINES)
def test_any_line_is_read_or_refused_at_a_position(line: str) -> None:
    try:
        parse(f"echo {line}", is_command)
    except LineFault as fault:
        assert 0 <= fault.position <= len(line) + 5


@given(LINES)
def test_colours_change_no_character(line: str) -> None:
    for text in (line, f"echo {line}"):
        assert "".join(piece for _, piece in fragments(text, is_command)) == text


def test_colours_tell_commands_from_mistakes() -> None:
    found = {text: style for style, text in fragments("cat '/a b' /n $x | nope 'open", is_command)}
    assert found["cat"] == "class:command"
    assert found["'/a b'"] == "class:quoted"
    assert found["/n"] == "class:path"
    assert found["$x"] == "class:variable"
    assert found["nope"] == "class:wrong"
    assert found["'open"] == "class:wrong"
    assert fragments("What is ls?", is_command) == [("", "What is ls?")]


def test_a_line_of_a_script_goes_on_after_a_backslash() -> None:
    assert list(logical_lines("a\nb \\\nc\\\nd\n\ne\\")) == [(1, "a"), (2, "b cd"), (5, ""), (6, "e")]
