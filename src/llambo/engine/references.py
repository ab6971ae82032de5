"""Model references: what a person may write where a model is wanted, and the name it gets.

Pure but for one question, whether a path exists, which the caller may answer. Knows nothing of what is stored or how
it is fetched.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

from llambo.core.errors import BadRequest

BUILT_IN = "built-in"
FORMS = "built-in, a path to a .gguf file, user/repo[:quant] on Hugging Face, or https://HOST/FILE.gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
"""The file name of one part of a split model, counted from 1."""

_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]*\w)(?::(?P<choice>[\w.+-]+(?:/[\w.+-]+)*))?", re.ASCII)
_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_SUFFIX = ".gguf"
_UNFIT_FOR_A_NAME = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """The model that the package ships."""


@dataclass(frozen=True, slots=True)
class File:
    """A model file here; `path` is absolute."""

    path: Path


@dataclass(frozen=True, slots=True)
class Hub:
    """A model on Hugging Face: `quant` or `file` says which of the repository's files, neither leaves it open."""

    repo: str
    quant: str = ""
    file: str = ""

    def __str__(self) -> str:
        choice = self.quant or self.file
        return f"{self.repo}:{choice}" if choice else self.repo


@dataclass(frozen=True, slots=True)
class Url:
    """A model file on some web server; `sha256` is lower-case hexadecimal or empty."""

    url: str
    sha256: str = ""


Reference = BuiltIn | File | Hub | Url


def parse(text: str, *, exists: Callable[[Path], bool] | None = None) -> Reference:
    """Reads a reference. What exists as a path is a path; `hf:` in front makes it a Hugging Face one all the same.

    Raises: `BadRequest` that names the forms there are.
    """
    if not text or any(ord(character) < 32 for character in text):
        raise BadRequest(f"{text!r} is no model reference: give {FORMS}")
    if text == BUILT_IN:
        return BuiltIn()
    if "://" in text:
        return _parse_url(text)
    if text.startswith("hf:"):
        return _parse_hub(text, text.removeprefix("hf:"))
    if _looks_like_path(text) or (exists or path_exists)(Path(text)):
        return File(_absolute(text))
    return _parse_hub(text, text)


def path_exists(path: Path) -> bool:
    """Whether something is there that this process can see."""
    try:
        return path.exists()
    except OSError:  # too long a name, or a directory that may not be searched
        return False


def _looks_like_path(text: str) -> bool:
    # user/repo:file.gguf ends like a path, and is none: a colon in a file's name needs ./ in front.
    return text.startswith(("/", "./", "../", "~")) or (text.endswith(_SUFFIX) and ":" not in text)


def _absolute(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise BadRequest(f"{text}: there is no such user") from None


def _parse_hub(text: str, rest: str) -> Hub:
    match = _HUB.fullmatch(rest)
    if not match or ".." in rest:
        raise BadRequest(f"{text!r} is no model reference: give {FORMS}")
    choice = match["choice"] or ""
    if choice.endswith(_SUFFIX):
        return Hub(match["repo"], file=choice)
    if "/" in choice:
        raise BadRequest(f"{text!r}: {choice!r} is no quantisation; a file's name ends in {_SUFFIX}")
    return Hub(match["repo"], quant=choice)


def _parse_url(text: str) -> Url:
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port  # raises when it is no number
    except ValueError as error:
        raise BadRequest(f"{text!r} is no valid URL: {error}") from None
    if not host:
        raise BadRequest(f"{text!r} is no valid URL: it names no host")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise BadRequest(f"{parts.scheme}://{host}: a model is fetched by https (by http from this machine only)")
    if parts.username is not None:
        raise BadRequest(f"{parts.scheme}://{host}: a URL with a password would show it in lists and logs")
    if not unquote(parts.path).endswith(_SUFFIX) or not _file_name(parts).strip("."):
        raise BadRequest(f"{parts.scheme}://{host}{parts.path} does not end in {_SUFFIX}")
    checksum = _SHA256.fullmatch(parts.fragment)
    if parts.fragment and not checksum:
        raise BadRequest(f"#{parts.fragment}: expected #sha256= and 64 hexadecimal digits")
    return Url(parts._replace(fragment="").geturl(), checksum[1].lower() if checksum else "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _file_name(parts: SplitResult) -> str:
    return PurePosixPath(unquote(parts.path)).name


def url_file_name(url: str) -> str:
    """The file name at the end of a URL that `parse` has accepted; holds no slash."""
    return _file_name(urlsplit(url))


def shown_url(url: str) -> str:
    """The URL for people: without its query, which may hold a signature."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def default_name(ref: Reference) -> str:
    """The name under which a model is loaded when nobody chose one: letters, digits and `._+-`."""
    match ref:
        case BuiltIn():
            return BUILT_IN
        case File(path):
            name = _stem(path.name)
        case Url(url):
            name = _stem(url_file_name(url))
        case Hub(file=file) if file:
            name = _stem(PurePosixPath(file).name)
        case Hub(repo, quant):
            name = re.sub(r"[-_.]gguf$", "", repo.partition("/")[2], flags=re.IGNORECASE)
            name = f"{name}-{quant}" if quant else name
    return _UNFIT_FOR_A_NAME.sub("-", name).strip("-") or "model"


def _stem(file_name: str) -> str:
    part = PART.fullmatch(file_name)
    return part["stem"] if part else file_name.removesuffix(_SUFFIX)


def part_names(file_name: str) -> tuple[str, ...]:
    """The names of all parts of the split model that `file_name` belongs to; itself alone where it is not split."""
    part = PART.fullmatch(file_name)
    if not part or int(part["no"]) > int(part["count"]) or not 1 < int(part["count"]) < 10_000:
        return (file_name,)
    return tuple(f"{part['stem']}-{no:05}-of-{part['count']}.gguf" for no in range(1, int(part["count"]) + 1))
