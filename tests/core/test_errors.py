"""The error tree and what is drawn of it."""

from __future__ import annotations

import re

from llambo.core import errors


def all_errors() -> list[type[errors.LlamboError]]:
    found = [errors.LlamboError]
    for one in found:
        found += [child for child in one.__subclasses__() if child.__module__ == errors.__name__]
    return found


def test_the_drawing_at_the_top_of_the_module_is_the_tree() -> None:
    drawn = re.findall(r"^ {4}[│├└─ ]*(\w+) +(\w+) +(\d+)", errors.__doc__ or "", re.MULTILINE)
    real = [(one.__name__, one.code, str(one.exit_status)) for one in all_errors()]
    assert sorted(drawn) == sorted(real)


def test_codes_are_unique_and_find_their_class() -> None:
    for one in all_errors():
        error = errors.from_code(one.code, "why")
        assert (type(error), error.message) == (one, "why")


def test_an_unknown_code_gives_the_base_class() -> None:
    assert type(errors.from_code("new_in_a_later_version", "why")) is errors.LlamboError
