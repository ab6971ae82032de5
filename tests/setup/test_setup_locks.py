"""The lock files fit pyproject.toml and one another, and say where nothing is to be fetched from."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from setup_machine import CHECKOUT

LEVELS = ("run", "test", "check")


def pins(level: str) -> dict[str, set[str]]:
    """The versions that a lock file gives each package: more than one where Pythons differ."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (CHECKOUT / f"requirements/{level}.txt").read_text(), re.M):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def wanted(level: str) -> list[Requirement]:
    """What pyproject.toml asks for at a level."""
    metadata: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    lists = [metadata["project"]["dependencies"], metadata["build-system"]["requires"]]
    lists += [metadata["project"]["optional-dependencies"][extra] for extra in LEVELS[1 : LEVELS.index(level) + 1]]
    return [Requirement(line) for requirements in lists for line in requirements]


@pytest.mark.parametrize("level", LEVELS)
def test_every_requirement_is_pinned_to_a_version_that_fits(level: str) -> None:
    pinned = pins(level)
    for requirement in wanted(level):
        versions = pinned.get(canonicalize_name(requirement.name))
        assert versions, f"requirements/{level}.txt lacks {requirement.name}: run scripts/lock.sh"
        assert all(requirement.specifier.contains(Version(version)) for version in versions), requirement


@pytest.mark.parametrize("level", LEVELS)
def test_every_pin_has_its_hashes_and_no_line_names_a_registry(level: str) -> None:
    text = (CHECKOUT / f"requirements/{level}.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)", text, re.M)
    entries = [entry for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.M) if "==" in entry]
    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_each_level_holds_the_one_below_in_the_same_versions() -> None:
    for lower, higher in (("run", "test"), ("test", "check")):
        assert pins(lower).items() <= pins(higher).items(), (lower, higher)
