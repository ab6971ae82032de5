"""Owns the held-out files' grammar. Pure; used by the evaluation and by the tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from training.phrases import SMALL_WORDS
from training.settings import HELDOUT_DIR

FIGURES = ("plain", "casual", "roundabout", "followups", "followups-late")
REFUSAL_MARK = re.compile(r"only know about llambo|only understand english", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Case:
    """The user's turns and the regex that the last answer must hold."""

    turns: tuple[str, ...]
    wanted: str

    def passes(self, answer: str) -> bool:
        """Whether `answer` holds the wanted fact and is no refusal."""
        found = re.search(self.wanted, answer, re.IGNORECASE | re.DOTALL)
        return found is not None and not refused(answer)


def cases(name: str, folder: Path = HELDOUT_DIR) -> list[Case]:
    """The cases of one of FIGURES, `dev` or `dev-followups`."""
    found: list[Case] = []
    for line in prompts(name, folder):
        turns, arrow, wanted = line.rpartition(" => ")
        if not arrow:
            raise ValueError(f"{name}.txt: ' => ' is missing in {line!r}")
        found.append(Case(tuple(turn.strip() for turn in turns.split(">>")), wanted.strip()))
    return found


def questions(folder: Path = HELDOUT_DIR) -> list[Case]:
    """The held-out questions as people ask them; `roundabout` has those that are harder than that."""
    return [*cases("plain", folder), *cases("casual", folder)]


def prompts(name: str, folder: Path = HELDOUT_DIR) -> list[str]:
    """The lines of a file without comments and empty ones."""
    lines = (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def wordings(folder: Path = HELDOUT_DIR) -> frozenset[str]:
    """Every wording that must not be trained on, as `normal` writes it; a chat's last turn counts, not its first."""
    asked = [case.turns[-1] for name in FIGURES for case in cases(name, folder)]
    return frozenset(normal(wording) for wording in [*asked, *prompts("offtopic", folder)]) - {""}


def refused(answer: str) -> bool:
    """Whether `answer` is one of the refusals."""
    return REFUSAL_MARK.search(answer) is not None


def content(wording: str) -> frozenset[str]:
    """The words of `wording` that say something, to tell how like two wordings are."""
    return frozenset(normal(wording).split()) - SMALL_WORDS


def normal(wording: str) -> str:
    """`wording` without case, marks and doubled spaces, to compare wordings."""
    return " ".join(re.findall(r"[a-z0-9]+", wording.lower()))
