"""The colours of a line that is being typed. Pure: gives classes of style, which the shell gives colours."""

from __future__ import annotations

from collections.abc import Callable

from llambo.dish.grammar import Token, scan

STYLE = {
    "command": "ansigreen bold",
    "operator": "ansimagenta",
    "quoted": "ansiyellow",
    "variable": "ansicyan",
    "comment": "ansibrightblack",
    "wrong": "ansired",
    "path": "ansiblue",
    "ps1": "ansigreen",
}


def fragments(line: str, is_command: Callable[[str], bool]) -> list[tuple[str, str]]:
    """The line as (style, text) pieces; joined, the texts are the line. A question to the model has no colours."""
    tokens, fault = scan(line)
    if not tokens or (tokens[0].kind == "word" and not is_command(tokens[0].text)):
        return [("", line)]
    found: list[tuple[str, str]] = []
    end = 0
    begins = True
    for token in tokens:
        if token.start > end:
            found.append(("", line[end : token.start]))
        kind = _kind(token, begins, is_command)
        if fault is not None and token is tokens[-1]:
            kind = "wrong"
        begins = token.kind == "operator" and token.text in {"|", ";"}
        found.append((f"class:{kind}" if kind else "", token.text))
        end = token.end
    return [*found, ("", line[end:])] if end < len(line) else found


def _kind(token: Token, begins: bool, is_command: Callable[[str], bool]) -> str:
    """The class of style of a token; `begins` says that a command's name stands here."""
    if token.kind != "word":
        return token.kind
    if begins:
        return "command" if is_command(token.text) else "wrong"
    if token.is_quoted:
        return "quoted"
    if any(part.kind == "variable" for part in token.parts):
        return "variable"
    return "path" if token.text.startswith("/") else ""
