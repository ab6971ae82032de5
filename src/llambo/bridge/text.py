r"""The text protocol as pure functions: one line in, one command out; one answer in, one line of JSON out.

The grammar, all of it:

    LINE    = COMMAND { " " KEY "=" VALUE } [ " " REST ]        COMMAND in any case, KEY in lower case
    REST    = a JSON string that is the whole rest, or the rest as it stands

A key that the command does not know starts the rest. A known key with a bad value is an error, never a default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, assert_never

import msgspec

from llambo.bridge import commands as c
from llambo.bridge.answers import STARTING, Answer, Failed, Finished, Reply, Started
from llambo.core.errors import BadRequest
from llambo.core.fusion import VoteCast
from llambo.core.fusion_document import cast_document
from llambo.core.quoted import unquoted
from llambo.core.types import LoadOptions, TokenEvent

PROMPT_SEPARATOR = "||"

_OPTION = re.compile(r" *([a-z_]+)=(\S*)")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_QUOTED = re.compile(r'\s*("[^"\\]*(?:\\.[^"\\]*)*")\s*(?:\|\||$)')

_encode = msgspec.json.Encoder().encode


def parse_line(line: bytes) -> c.Command:
    r"""The command in a line, given without its `\n` or `\r\n`.

    Raises: `BadRequest`, `UnknownCommand`.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the line is not valid UTF-8 (byte {error.start + 1})") from None
    if "\0" in text:
        raise BadRequest("the line holds a NUL byte")
    name, _, rest = text.lstrip(" ").partition(" ")
    if not name.strip():
        raise BadRequest(f"the line is empty; commands are {' '.join(c.NAMES.values())}")
    return _PARSERS[c.command_type(name.strip().upper())](rest)


def _whole(key: str, value: str) -> int:
    if not _WHOLE.fullmatch(value):
        raise BadRequest(f"{key} must be a whole number, not {value[:40]!r}")
    return int(value)


def _number(key: str, value: str) -> float:
    if not _NUMBER.fullmatch(value):
        raise BadRequest(f"{key} must be a number, not {value[:40]!r}")
    return float(value)


def _truth(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise BadRequest(f"{key} must be true or false, not {value[:40]!r}")
    return value == "true"


def _name(key: str, value: str) -> str:
    if not value:
        raise BadRequest(f"{key}= needs a name")
    return value


_Options = Mapping[str, Callable[[str, str], object]]
_INFER: _Options = {
    "max_tokens": _whole,
    "temperature": _number,
    "top_p": _number,
    "seed": _whole,
    "raw": _truth,
    "model": _name,
    "fusion": _name,
    "nodes": _whole,
    "min_consensus": _whole,
    "extract": _name,
}
_LOAD: _Options = {"as": _name, "ctx": _whole, "slots": _whole, "threads": _whole, "gpu_layers": _whole}
_TEXT: _Options = {"model": _name}


def _split_options(rest: str, known: _Options) -> tuple[dict[str, Any], str]:
    """The options at the head of `rest`, converted, and what follows them."""
    found: dict[str, Any] = {}
    while (match := _OPTION.match(rest)) and (convert := known.get(match[1])):
        key, value = match[1], match[2]
        if key in found:
            raise BadRequest(f"{key} is given twice")
        found[key] = convert(key, value)
        rest = rest[match.end() :].removeprefix(" ")
    return found, rest


def _split_prompts(rest: str) -> tuple[str, ...]:
    """The prompts between `||`; inside a JSON string `||` separates nothing.

    Walks along `rest` without copying what remains, and no further than prompts are taken: time grows with its length.
    """
    prompts: list[str] = []
    start = 0
    while len(prompts) < c.MAX_PROMPTS:
        quoted = _QUOTED.match(rest, start)
        if quoted and (text := unquoted(quoted[1])) != quoted[1]:
            prompts.append(text)
            if not quoted[0].endswith(PROMPT_SEPARATOR):
                return tuple(prompts)
            start = quoted.end()
            continue
        end = rest.find(PROMPT_SEPARATOR, start)
        if end < 0:
            prompts.append(rest[start:])
            return tuple(prompts)
        prompts.append(rest[start:end])
        start = end + len(PROMPT_SEPARATOR)
    raise BadRequest(f"there are too many prompts: at most {c.MAX_PROMPTS} are taken")


def _parse_load(rest: str) -> c.Load:
    options, path = _split_options(rest, _LOAD)
    name = options.pop("as", "")
    return c.build_load(unquoted(path.strip()), name, LoadOptions(**options))


def _parse_ask(rest: str) -> c.Ask:
    options, prompt = _split_options(rest, _INFER)
    return c.Ask(prompt=unquoted(prompt), **options)


def _parse_multi(rest: str) -> c.InferMulti:
    options, prompts = _split_options(rest, _INFER)
    return c.InferMulti(c.Ask(prompts=_split_prompts(prompts), **options).many())


def _parse_tokenize(rest: str) -> c.Tokenize:
    options, text = _split_options(rest, _TEXT)
    return c.Tokenize(c.check_text("text", unquoted(text)), **options)


def _parse_embed(rest: str) -> c.Embed:
    options, text = _split_options(rest, _TEXT)
    return c.Embed(c.check_text("text", unquoted(text)), **options)


def _bare(command: c.Command) -> Callable[[str], c.Command]:
    """The parser of a command that is its name alone."""

    def parse(rest: str) -> c.Command:
        if rest.strip():
            raise BadRequest(f"{c.NAMES[type(command)]} takes no argument")
        return command

    return parse


_PARSERS: dict[type[c.Command], Callable[[str], c.Command]] = {
    c.Ping: _bare(c.Ping()),
    c.Status: _bare(c.Status()),
    c.Models: _bare(c.Models()),
    c.Quit: _bare(c.Quit()),
    c.Load: _parse_load,
    c.Free: lambda rest: c.Free(rest.strip()),
    c.Infer: lambda rest: c.Infer(_parse_ask(rest).one()),
    c.InferStream: lambda rest: c.InferStream(_parse_ask(rest).one()),
    c.InferMulti: _parse_multi,
    c.Tokenize: _parse_tokenize,
    c.Embed: _parse_embed,
    c.Cancel: lambda rest: c.Cancel(rest.strip()),
    c.Auth: lambda rest: c.Auth(rest.strip()),
    c.Hello: lambda rest: c.build_hello(_whole("the version", rest.strip())),
}


class _TokenLine(msgspec.Struct):
    type: str
    token: str


def encode_line(answer: Answer) -> bytes:
    """The answer as one line of JSON with its line end."""
    match answer:
        case TokenEvent():
            return _encode(_TokenLine("token", answer.text)) + b"\n"
        case VoteCast():
            return _encode({"type": "vote", **cast_document(answer)}) + b"\n"
        case Reply():
            data = {} if answer.data is None else {"data": answer.data}
            return _encode({"status": "ok", "message": answer.message, **data, **answer.counts}) + b"\n"
        case Started():
            return _encode({"status": "ok", "message": STARTING, "data": {"id": answer.request_id}}) + b"\n"
        case Finished():
            return _encode({"type": "token", "token": "", "final": True, **answer.counts}) + b"\n"
        case Failed():
            head = {"type": "token", "token": "", "final": True} if answer.in_stream else {}
            data = {} if answer.data is None else {"data": answer.data}
            error = {"status": "error", "message": answer.error.message, "code": answer.error.code}
            return _encode({**head, **error, **data}) + b"\n"
        case _:
            assert_never(answer)
