"""The grammar of ctl files: what is read, what is refused and how, what is made."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.core.errors import BadRequest, UnknownCommand
from llambo.namespace import ctls
from llambo.namespace.grammar import Argument, Call, Grammar, quote, split


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("spawn 3", {"n": 3}),
        ("spawn 3 tiny", {"n": 3, "type": "tiny"}),
        ("  spawn   3\ttiny  slots=2 model='my x'", {"n": 3, "type": "tiny", "slots": 2, "model": "my x"}),
        ("spawn model=m 3", {"n": 3, "model": "m"}),
        ("scale 0", {"n": 0}),
        ("attach http://h/?a=b tiny key=s=t", {"url": "http://h/?a=b", "type": "tiny", "key": "s=t"}),
        ("restore '/it''s here'", {"path": "/it's here"}),
        ("checkpoint", {}),
    ],
)  # fmt: skip
def test_a_line_is_a_command_with_its_arguments(line: str, values: dict[str, object]) -> None:
    assert ctls.CLUSTER.read(line) == Call(line.split(maxsplit=1)[0], values)


def test_a_text_is_the_rest_of_the_line_as_it_stands() -> None:
    assert ctls.SESSION.read("system  You're  terse. ").text("text") == "You're  terse."


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("spawn", "spawn needs N; write: spawn N [TYPE] [model=REF] [slots=S]"),
        ("spawn many", "spawn: N is a whole number, not 'many'"),
        ("spawn 1.5", "spawn: N is a whole number, not '1.5'"),
        ("spawn 1_000", "spawn: N is a whole number, not '1_000'"),
        ("spawn ٣", "spawn: N is a whole number, not '٣'"),
        ("spawn 3 slots=x", "spawn: slots is a whole number, not 'x'"),
        ("spawn 3 tiny more", "spawn has too many arguments; write: spawn N [TYPE] [model=REF] [slots=S]"),
        ("spawn 3 size=2", "spawn has no option size=; write: spawn N [TYPE] [model=REF] [slots=S]"),
        ("spawn 3 slots=1 slots=2", "spawn takes slots= once; write: spawn N [TYPE] [model=REF] [slots=S]"),
        ("shutdown now", "shutdown takes no arguments; write: shutdown"),
        ("spawn 'x", "a quote is not closed; quote so: 'two words', and ' itself as ''"),
    ],
)
def test_a_wrong_line_is_refused_with_what_would_be_right(line: str, complaint: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        ctls.CLUSTER.read(line)
    assert refusal.value.message == complaint


def test_an_unknown_command_names_those_there_are() -> None:
    with pytest.raises(UnknownCommand) as refusal:
        ctls.NODE.read("explode now")
    assert refusal.value.message == "unknown command 'explode'; there are drain, kill, restart, load, free"


def test_what_is_too_much_is_not_repeated_since_it_may_be_a_secret() -> None:
    with pytest.raises(BadRequest) as refusal:
        ctls.CLUSTER.read("attach http://h tiny llb_secret")
    assert "secret" not in refusal.value.message


@pytest.mark.parametrize("grammar", ctls.GRAMMARS, ids=lambda grammar: grammar.title)
def test_each_command_is_refused_with_too_few_and_too_many_arguments(grammar: Grammar) -> None:
    for command in grammar.commands:
        needed = [argument for argument in command.arguments if not argument.is_optional and not argument.key]
        if needed:
            wanted = re.escape(f"{command.name} needs {needed[0].name}; write: {command.name} ")
            with pytest.raises(BadRequest, match=wanted):
                grammar.read(command.name)
        if not needed or needed[0].kind != "rest":
            with pytest.raises(BadRequest, match=f"{command.name} (has too many|takes no) arguments; write:"):
                grammar.read(f"{command.name} {'on' if 'switch' in {a.kind for a in needed} else '1'} 2 3 4 5 6")
        for argument in needed:
            if argument.kind in {"whole", "decimal"}:
                with pytest.raises(BadRequest, match=f"{command.name}: {argument.name} is a (whole )?number, not 'x'"):
                    grammar.read(f"{command.name} x")
            if argument.kind == "switch":
                with pytest.raises(BadRequest, match=f"{command.name} is on or off, not 'x'"):
                    grammar.read(f"{command.name} x")


@pytest.mark.parametrize("grammar", ctls.GRAMMARS, ids=lambda grammar: grammar.title)
def test_texts_are_made_of_the_table(grammar: Grammar) -> None:
    lines = grammar.text().splitlines()
    assert [line.split()[0] for line in lines] == [command.name for command in grammar.commands]
    assert all(command.help in grammar.markdown() for command in grammar.commands)


_words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)


@given(st.lists(_words))
def test_what_is_quoted_is_read_back(words: list[str]) -> None:
    assert split(" ".join(map(quote, words))) == words


@given(st.text())
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    for grammar in ctls.GRAMMARS:
        try:
            grammar.read(text)
        except BadRequest as refusal:
            assert refusal.message


def test_a_line_made_of_values_is_read_as_these() -> None:
    line = ctls.CLUSTER["spawn"].line(n=2, type="tiny", model="a b", slots=0)
    assert line == "spawn 2 tiny model='a b'"
    assert ctls.CLUSTER.read(line).values == {"n": 2, "type": "tiny", "model": "a b"}
    assert ctls.CLUSTER["scale"].line(n=0, model="") == "scale 0"
    with pytest.raises(BadRequest, match="one line"):
        ctls.CLUSTER["kill"].line(id="n1\nshutdown")


def test_an_argument_shows_how_it_is_given() -> None:
    assert [Argument("N").usage, Argument("N", is_optional=True).usage, Argument("S", key="slots").usage] == [
        "N", "[N]", "[slots=S]",
    ]  # fmt: skip
