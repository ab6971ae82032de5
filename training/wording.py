"""Owns the paraphrase engine: one pattern in, one of very many wordings out. Pure given its `rng`.

A pattern's choices are drawn, the result is put into a frame, words are exchanged for words of
like meaning, openers and closers are added, and now and then letters are mistyped, words left
out, capitals and marks dropped.
"""

from __future__ import annotations

import random
import re

from training import phrases, synonyms

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_WORD = re.compile(r"[A-Za-z]+")
_GROUPS: dict[str, list[str]] = {}
for _group in synonyms.GROUPS:
    for _words in _group:
        _GROUPS.setdefault(_words.lower(), []).extend(w for w in _group if w != _words)
_GROUP = re.compile(r"(?<![\w/`.-])(?:" + "|".join(sorted(map(re.escape, _GROUPS), key=len, reverse=True))
                    + r")(?![\w/`-])", re.IGNORECASE)  # fmt: skip
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def expand(pattern: str, rng: random.Random) -> str:
    """`pattern` with each `[a|b]` replaced by one of its options, innermost first."""
    while True:
        match = _CHOICE.search(pattern)
        if match is None:
            return re.sub(r"\s+", " ", pattern).strip()
        option = rng.choice(match.group(1).split("|"))
        pattern = pattern[: match.start()] + option + pattern[match.end() :]


def spellings(pattern: str) -> set[str]:
    """Everything that `expand` can make of `pattern`."""
    match = _CHOICE.search(pattern)
    if match is None:
        return {re.sub(r"\s+", " ", pattern).strip()}
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return {text for option in match.group(1).split("|") for text in spellings(head + option + tail)}


def bag(name: str, rng: random.Random) -> str:
    """`name` among words that say nothing: only the name tells what the question is about."""
    words = rng.choices(phrases.NEUTRAL + tuple(sorted(phrases.SMALL_WORDS)), k=rng.randint(1, 5))
    words.insert(rng.randint(0, len(words)), expand(name, rng))
    return " ".join(words)


def how_to(action: str, rng: random.Random) -> str:
    """A question that asks how to do `action` ("stop a node")."""
    return expand(rng.choice(phrases.HOW_TO), rng).replace("{x}", expand(action, rng))


def versus(one: str, other: str, rng: random.Random) -> str:
    """A question that asks how `one` and `other` differ, in either order."""
    pair = [expand(one, rng), expand(other, rng)]
    rng.shuffle(pair)
    return expand(rng.choice(phrases.VERSUS), rng).replace("{x}", pair[0]).replace("{y}", pair[1])


def about(kind: str, name: str, rng: random.Random) -> str | None:
    """A question of this kind about `name`, or None where the kind has no general frames."""
    frames = phrases.ABOUT.get(kind)
    if not frames:
        return None
    return expand(rng.choice(frames), rng).replace("{x}", expand(name, rng))


def follow_up(kind: str, rng: random.Random) -> str | None:
    """A question of this kind about what the last turn was about, or None."""
    frames = phrases.FOLLOW_UP.get(kind)
    return expand(rng.choice(frames), rng) if frames else None


def vary(text: str, rng: random.Random) -> str:
    """Another wording of `text` that asks for the same thing."""
    text = _synonyms(_rephrase(text, rng), rng)
    if rng.random() < 0.10:
        text = _leave_out(text, rng)
    if rng.random() < 0.04:
        words = text.rstrip("?.! ").split()
        text = " ".join(rng.sample(words, len(words)))
    if rng.random() < 0.12:
        text = _insert(text, rng)
    if rng.random() < 0.15:
        words = text.split()
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            words.insert(rng.randint(0, len(words)), rng.choice(phrases.NEUTRAL))
        text = " ".join(words)
    if rng.random() < 0.30:
        text = _surround(text, rng)
    if rng.random() < 0.16:
        text = _mistype(text, rng)
    return _finish(text, rng)


def _rephrase(text: str, rng: random.Random) -> str:
    """`text` with some groups of words exchanged for others of like meaning."""

    def swap(match: re.Match[str]) -> str:
        found = match.group(0)
        return rng.choice(_GROUPS[found.lower()]) if rng.random() < 0.4 else found

    return _GROUP.sub(swap, text)


def _synonyms(text: str, rng: random.Random) -> str:
    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        options = synonyms.SYNONYMS.get(word.lower())
        if options and rng.random() < 0.3:
            return rng.choice(options)
        return word

    parts = re.split(r"(`[^`]*`|\S*[/._-]\S*|\{n\})", text)
    return "".join(p if i % 2 else _WORD.sub(swap, p) for i, p in enumerate(parts))


def _leave_out(text: str, rng: random.Random) -> str:
    words = text.split()
    kept = [w for w in words if w.lower() not in phrases.SMALL_WORDS or rng.random() < 0.3]
    return " ".join(kept) if kept else text


def _insert(text: str, rng: random.Random) -> str:
    words = text.split()
    words.insert(rng.randint(0, len(words)), rng.choice(phrases.FILLERS))
    return " ".join(words)


def _surround(text: str, rng: random.Random) -> str:
    if rng.random() < 0.6:
        opener = expand(rng.choice(phrases.OPENERS), rng)
        first = text[:1].lower() + text[1:] if rng.random() < 0.7 else text
        text = f"{opener} {first}"
    if rng.random() < 0.5:
        text = f"{text.rstrip('?.! ')} {expand(rng.choice(phrases.CLOSERS), rng)}"
    return text


def _mistype(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    long_words = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    for index in rng.sample(long_words, min(len(long_words), rng.choice((1, 1, 2)))):
        words[index] = _mistype_word(words[index], rng)
    return " ".join(words)


def _mistype_word(word: str, rng: random.Random) -> str:
    at = rng.randint(1, len(word) - 2)
    match rng.randint(0, 3):
        case 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 1:
            return word[:at] + word[at + 1 :]
        case 2:
            return word[:at] + word[at] + word[at:]
        case _:
            row = next((r for r in _KEYS if word[at].lower() in r), _KEYS[0])
            return word[:at] + rng.choice(row) + word[at + 1 :]


def _finish(text: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.45:
        text = text[:1].upper() + text[1:]
    elif draw < 0.72:
        text = text.lower()
    elif draw < 0.75:
        text = text.upper()
    draw = rng.random()
    if draw < 0.30:
        text = text.rstrip("?.! ")
    elif draw < 0.34:
        text = text.rstrip("?.! ") + rng.choice(("??", " ?", "...", "!", ".", "?!"))
    elif text[-1:].isalnum():
        text += "?"
    return text
