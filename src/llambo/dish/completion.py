"""What the word at the end of a line may become: commands, paths, and whatever else a command's arguments name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llambo.core.errors import LlamboError
from llambo.core.fusion import ALIASES, STRATEGIES
from llambo.dish.cluster_commands import node_list
from llambo.dish.command import SETTINGS, Completes, Dish
from llambo.dish.grammar import Token, quote, scan

MOST = 200
"""So many candidates are offered at most: a directory may hold ten thousand."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that may stand in the place of the line from `start` on; `shown` is what a list of them shows."""

    text: str
    start: int
    shown: str


async def candidates(dish: Dish, line: str) -> list[Candidate]:
    """What may stand at the end of `line`."""
    tokens, fault = scan(line)
    if fault is not None or (tokens and tokens[-1].kind == "comment"):
        return []
    is_begun = bool(tokens) and tokens[-1].kind == "word" and tokens[-1].end == len(line)
    word = tokens.pop() if is_begun else Token("word", len(line), len(line), "")
    if word.is_quoted:
        return []
    kind = _kind(dish, tokens)
    if kind is None or (kind == "option" and not word.text):
        return []
    try:
        found = await _names(dish, kind, word.text)
    except LlamboError:  # what is not there completes nothing
        return []
    return [Candidate(text, word.start, shown) for text, shown in found[:MOST]]


def _kind(dish: Dish, before: list[Token]) -> Completes | None:
    """What the word after these tokens names; None where that cannot be said."""
    words: list[str] = []
    follows_redirection = False
    for token in before:
        if token.kind == "word":
            if not follows_redirection:
                words.append(token.text)
            follows_redirection = False
        elif token.text in {"<", ">", ">>"}:
            follows_redirection = True
        else:
            words, follows_redirection = [], False
    if words and words[0] not in dish.table:  # a question to the model
        return None
    if follows_redirection:
        return "path"
    if not words:
        return "command"
    kinds = dish.table[words[0]].completes
    return kinds[min(len(words), len(kinds)) - 1] or None if kinds else None


async def _names(dish: Dish, kind: Completes, begun: str) -> list[tuple[str, str]]:
    """The texts that begin so, with what is shown of each."""
    match kind:
        case "path":
            return await _paths(dish, begun)
        case "option":
            name, equals, _ = begun.partition("=")
            if equals:
                models = [f"model={model}" for model in await _models(dish)] if name == "model" else []
                return _beginning(model for model in models if model.startswith(begun))
            return [(f"{option}=", f"{option}=") for option in SETTINGS if option.startswith(begun)]
        case "command":
            names: Iterable[str] = dish.table.names
        case "node":
            names = await _listed(dish, "nodes")
        case "job":
            names = [f"%{number}" for number in dish.jobs.by_number]
        case "target":
            names = [*(f"%{number}" for number in dish.jobs.by_number), *await _listed(dish, "nodes")]
        case "model":
            names = await _models(dish)
        case "type":
            names = dict.fromkeys(str(node.get("type", "")) for node in await node_list(dish))
        case "strategy":
            names = (*STRATEGIES, *ALIASES)
        case "mount":
            names = dish.mounts.points
        case _:
            names = ()
    return _beginning(name for name in names if name.startswith(begun))


def _beginning(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(quote(name) if not name.startswith("?") else name, name) for name in names]


async def _listed(dish: Dish, directory: str) -> list[str]:
    return [entry.name for entry in await dish.mounts.ls(f"{dish.cluster}/{directory}")]


async def _models(dish: Dish) -> list[str]:
    return [name for name in await _listed(dish, "models") if name != "ctl"]


async def _paths(dish: Dish, begun: str) -> list[tuple[str, str]]:
    directory, slash, name = begun.rpartition("/")
    entries = await dish.mounts.ls(dish.path(directory + slash or "."))
    return [
        (directory + slash + quote(entry.name) + end, entry.name + end)
        for entry in sorted(entries, key=lambda entry: entry.name)
        if entry.name.startswith(name)
        for end in ("/" if entry.is_directory else "",)
    ]
