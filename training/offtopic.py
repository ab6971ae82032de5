"""Owns prompts about every other subject, nonsense and bad input. Pure given its `rng`.

Words come from `corpus/other/*.list`; the same lists feed the tokenizer. The prompts are made to
be as unlike one another as possible, since everything but Llambo must be refused.
"""

from __future__ import annotations

import random
import string
from functools import cache

from training import wording
from training.settings import CORPUS_DIR

_REPEATED = string.ascii_lowercase + "....!!??00"
_VOWELS, _CONSONANTS = "aeiouy", "bcdfghjklmnprstvwz"
_SCRIPTS = ((0x0410, 0x044F), (0x4E00, 0x4FFF), (0x3041, 0x3096), (0x0621, 0x064A),
            (0x05D0, 0x05EA), (0x0391, 0x03C9), (0x0905, 0x0939), (0xAC00, 0xAD00),
            (0x0E01, 0x0E2E))  # fmt: skip
_EMOJI = ((0x1F600, 0x1F64F), (0x1F300, 0x1F5FF), (0x1F680, 0x1F6C5), (0x2600, 0x26FF))


@cache
def lists() -> dict[str, tuple[str, ...]]:
    """The word and sentence lists by file name; one entry a line, `#` for comments."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted((CORPUS_DIR / "other").glob("*.list")):
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        entries = [line for line in lines if line and not line.startswith("#")]
        if path.stem in ("things", "names", "verbs"):
            entries = [word.strip() for line in entries for word in line.split(",")]
        found[path.stem] = tuple(word for word in entries if word)
    return found


def prompt(rng: random.Random) -> str:
    """One prompt that Llambo's own model must refuse, in English words."""
    draw = rng.random()
    if draw < 0.06:
        return wording.vary(wording.bag(_fill("{t}", rng), rng), rng)
    if draw < 0.26:
        # The frames that Llambo's questions stand in must not tell that a question is about it.
        return wording.vary(_framed(rng), rng)
    if draw < 0.62:
        text = _fill(rng.choice(lists()["frames"]), rng)
        return wording.vary(text, rng) if rng.random() < 0.8 else text
    if draw < 0.74:
        return wording.vary(rng.choice(lists()["questions"]), rng)
    if draw < 0.80:
        return _sum(rng)
    if draw < 0.86:
        return rng.choice(lists()["code"])
    if draw < 0.92:
        return wording.expand(_fill(rng.choice(lists()["tricks"]), rng), rng)
    return nonsense(rng)


def foreign(rng: random.Random) -> str:
    """A prompt in another language, from the list or as random letters of another script."""
    if rng.random() < 0.75:
        text = rng.choice(lists()["languages"])
        words = text.split(" ")
        if len(words) > 3 and rng.random() < 0.3:
            text = " ".join(words[: rng.randint(2, len(words))])
        return text.lower() if rng.random() < 0.2 else text
    low, high = rng.choice(_SCRIPTS)
    return " ".join(
        "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8))) for _ in range(rng.randint(1, 8))
    )


def nonsense(rng: random.Random) -> str:
    """Gibberish, emoji, repeated text or stray marks; never empty."""
    match rng.randint(0, 6):
        case 0:
            return " ".join(made_up(rng) for _ in range(rng.randint(1, 9)))
        case 1:
            low, high = rng.choice(_EMOJI)
            return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12)))
        case 2:
            letters = string.ascii_lowercase + rng.choice(("", string.digits, "  "))
            return "".join(rng.choice(letters) for _ in range(rng.randint(2, 40))).strip() or "x"
        case 3:
            unit = rng.choice((made_up(rng), rng.choice(lists()["things"]), rng.choice(_REPEATED)))
            gap = rng.choice(("", " "))
            return gap.join([unit] * rng.randint(3, 60))
        case 4:
            return "".join(rng.choice(string.punctuation) for _ in range(rng.randint(1, 15)))
        case 5:
            return " ".join(rng.choice(lists()["things"]) for _ in range(rng.randint(1, 8)))
        case _:
            return str(rng.randint(0, 10 ** rng.randint(1, 9)))


def long_text(rng: random.Random, words: int) -> str:
    """About `words` words of running text or repetition on other subjects."""
    parts: list[str] = []
    same = nonsense(rng) if rng.random() < 0.3 else None
    while len(parts) < words:
        parts.extend((same or prompt(rng)).split()[:40] or ["."])
    return " ".join(parts[:words])


def endless(rng: random.Random) -> str:
    """One letter, mark or short word some hundred times without a space."""
    unit = rng.choice((rng.choice(string.ascii_letters + "0123456789.!?-_=🙂"), made_up(rng)))
    return unit * rng.randint(60, 900 // len(unit))


def made_up(rng: random.Random) -> str:
    """A word that does not exist but could."""
    pairs = range(rng.randint(1, 4))
    word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in pairs)
    return word + rng.choice(("", "", "n", "r", "sk", "t", "ng", "x"))


def _fill(frame: str, rng: random.Random) -> str:
    text = wording.expand(frame, rng)
    while "{t}" in text:
        word = made_up(rng) if rng.random() < 0.2 else rng.choice(lists()["things"])
        text = text.replace("{t}", word, 1)
    while "{p}" in text:
        text = text.replace("{p}", rng.choice(lists()["names"]), 1)
    while "{v}" in text:
        text = text.replace("{v}", rng.choice(lists()["verbs"]), 1)
    return text.replace("{n}", str(rng.randint(2, 99)))


def _framed(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return wording.how_to(_fill("{v} {t}", rng), rng)
    kind = rng.choice(("what", "what", "what", "why", "how", "example", "where", "limits"))
    return wording.about(kind, _fill(rng.choice(("{t}", "{t}", "{p}")), rng), rng) or "what"


def _sum(rng: random.Random) -> str:
    a, b = rng.randint(0, 999), rng.randint(1, 99)
    sign = rng.choice(("+", "-", "*", "/", "plus", "minus", "times", "divided by", "x", "^", "%"))
    frame = rng.choice(("what is {}", "{}", "{} =", "calculate {}", "how much is {}", "solve {}",
                        "compute {} please", "can you work out {}", "{}?"))  # fmt: skip
    return frame.format(f"{a} {sign} {b}" if rng.random() < 0.8 else f"{a}{sign}{b}")
