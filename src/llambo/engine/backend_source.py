"""The source of the installed engine: found in the package registry, fetched, checked, and unpacked as far as needed.

Owns what is asked of the registry (the simple API, PEP 503 and 691) and what makes a source the right one: the version
of the wheel, and the version of ggml that the wheel itself names. The registry is the one that pip or uv would use.
Building is `backend_build`'s business. Blocking.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import html
import json
import lzma
import os
import re
import shutil
import ssl
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from llambo.core.errors import DownloadFailed, LlamboError

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all; 0 where the registry does not say)."""

PACKAGE = "xllamacpp"
DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_S = 30.0
ATTEMPTS = 3
CHUNK_BYTES = 2**18
ARCHIVE_MAX_BYTES = 2**30
"""What is larger is not the source, whatever it is; it has 38 MB."""
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
_LINK = re.compile(r"""<a\s[^>]*?href\s*=\s*["']([^"']+)["'][^>]*>""", re.IGNORECASE)
_UV_NAME = re.compile(r"^[A-Za-z0-9._-]+=(?=https?://)")  # uv takes NAME=URL too
_VERSION_PART = re.compile(r"set\(GGML_VERSION_(MAJOR|MINOR|PATCH)\s+(\d+)\)")
_GGML = PurePosixPath("thirdparty/llama.cpp/ggml")


@dataclass(frozen=True, slots=True)
class Archive:
    """A source archive that the registry has, and its checksum there."""

    url: str
    sha256: str


def index_url(environment: Mapping[str, str] = os.environ, config_files: tuple[Path, ...] | None = None) -> str:
    """The package index that pip or uv would use here, without a slash at its end; it may hold a password."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if value := environment.get(name, "").strip():
            return _UV_NAME.sub("", value).rstrip("/")
    for path in pip_config_files(environment) if config_files is None else config_files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
            if value := parser.get("global", "index-url", fallback="").strip():
                return value.rstrip("/")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # pip will complain about it; it is not ours to judge
    return DEFAULT_INDEX


def pip_config_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where pip looks for its configuration, what counts most first (pip's user guide, "Configuration")."""
    home = Path(environment.get("HOME", "~")).expanduser()
    user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    named = environment.get("PIP_CONFIG_FILE", "")
    own = Path(sys.prefix) / "pip.conf"
    return (*((Path(named),) if named else ()), own, user, home / ".pip" / "pip.conf", Path("/etc/pip.conf"))


def shown(url: str) -> str:
    """The address without its user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def find(version: str, *, index: str = "") -> Archive:
    """The source archive of that version in the registry.

    Raises: `DownloadFailed` where the registry cannot be reached or has none.
    """
    index = index or index_url()
    page = f"{index}/{PACKAGE}/"
    body, kind = _get(page)
    wanted = f"{PACKAGE}-{version.partition('+')[0]}.tar.gz"
    for name, url, sha256 in _files_of(body, kind, page):
        if name == wanted:
            if not sha256:
                raise DownloadFailed(f"{shown(page)} names no SHA-256 for {wanted}, so it cannot be checked")
            return Archive(url, sha256)
    raise DownloadFailed(
        f"{shown(page)} has no source of the installed version ({wanted}); give the file with --source"
    )


def _files_of(body: bytes, kind: str, page: str) -> list[tuple[str, str, str]]:
    """(file name, address, SHA-256 or "") of every file on a page of the simple API."""
    if "json" in kind:
        try:
            files = json.loads(body)["files"]
            return [
                (str(one["filename"]), urljoin(page, one["url"]), str(one.get("hashes", {}).get("sha256", "")))
                for one in files
            ]
        except (ValueError, KeyError, TypeError):
            raise DownloadFailed(f"{shown(page)} does not answer as a package index does") from None
    found = []
    for link in _LINK.findall(body.decode("utf-8", "replace")):
        url, fragment = urldefrag(urljoin(page, html.unescape(link)))
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
        found.append((unquote(PurePosixPath(urlsplit(url).path).name), url, sha256))
    return found


def _open(url: str) -> urllib.request.Request:
    """A request; a user and password within the address go into a header, as pip does it."""
    parts = urlsplit(url)
    if parts.scheme not in {"https", "http"}:
        raise DownloadFailed(f"{shown(url)}: only http and https indexes are read; give the file with --source")
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = urllib.request.Request(bare, headers={"Accept": _ACCEPT, "User-Agent": "llambo"})  # noqa: S310
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        # Not sent on when the registry leads elsewhere.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(pair).decode()}")
    return request


def _context() -> ssl.SSLContext:
    """The system's certificates, or those that pip was told to use."""
    return ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or None)


def _get(url: str) -> tuple[bytes, str]:
    request = _open(url)
    problem = ""
    for _ in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_context()) as response:  # noqa: S310
                return response.read(), str(response.headers.get_content_type())
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                raise DownloadFailed(f"{shown(url)}: the registry answers {error.code} {error.reason}") from None
            problem = f"it answers {error.code}"
        except (OSError, HTTPException) as error:
            problem = _words(error)
    raise DownloadFailed(
        f"the package registry cannot be reached ({shown(url)}): {problem}; with the source archive at hand,"
        " give it with --source"
    )


def _words(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(str(getattr(error, "reason", "") or error).split()) or type(error).__name__


def fetch(archive: Archive, destination: Path, progress: Progress | None = None) -> None:
    """Brings the archive to `destination`, whole and checked, or raises and leaves nothing.

    Raises: `DownloadFailed`, and what `progress` raises.
    """
    problem = ""
    for _ in range(ATTEMPTS):
        try:
            found = _receive(archive.url, destination, progress)
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"the registry answers {error.code} {error.reason}"
        except (urllib.error.URLError, ssl.SSLError, TimeoutError, ConnectionError, HTTPException) as error:
            problem = _words(error)
        except BaseException:
            destination.unlink(missing_ok=True)
            raise
        else:
            if found == archive.sha256:
                return
            problem = f"the checksum is wrong: SHA-256 should be {archive.sha256} and is {found}"
        destination.unlink(missing_ok=True)
    raise DownloadFailed(f"{shown(archive.url)}: {problem} ({ATTEMPTS} tries)")


def _receive(url: str, destination: Path, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    done = 0
    with (
        urllib.request.urlopen(_open(url), timeout=TIMEOUT_S, context=_context()) as response,  # noqa: S310
        destination.open("wb") as file,
    ):
        total = int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            if done > ARCHIVE_MAX_BYTES:
                raise DownloadFailed(f"{shown(url)} is larger than {ARCHIVE_MAX_BYTES // 2**20} MiB: no source archive")
            if progress:
                progress(done, total)
    return digest.hexdigest()


def unpack(archive: Path, into: Path, *, version: str, ggml: str) -> Path:
    """Takes ggml out of the source archive and returns its directory below `into`.

    `version` is the wheel's and `ggml` what its library says of itself: both must be the archive's too, since
    llama.cpp compares no more than the number of its backend interface.

    Raises: `LlamboError` for a source of another version, or a file that is no source.
    """
    try:
        with tarfile.open(archive) as source:
            members = [_below_top(member) for member in source.getmembers() if _is_wanted(member)]
            source.extractall(into, members=[one for one in members if one is not None], filter="data")
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise LlamboError(f"{archive.name} is no source archive of {PACKAGE}: {error}") from None
    _check(into, archive.name, version=version.partition("+")[0], ggml=ggml)
    return into / _GGML


def _is_wanted(member: tarfile.TarInfo) -> bool:
    parts = PurePosixPath(member.name).parts[1:]
    return parts == ("PKG-INFO",) or parts[: len(_GGML.parts)] == _GGML.parts


def _below_top(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The member without the archive's own top directory, so that its name does not matter."""
    parts = PurePosixPath(member.name).parts
    return member.replace(name=str(PurePosixPath(*parts[1:])), deep=False) if len(parts) > 1 else None


def _check(root: Path, name: str, *, version: str, ggml: str) -> None:
    try:
        facts = (root / "PKG-INFO").read_text(encoding="utf-8", errors="replace")
        build = (root / _GGML / "CMakeLists.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise LlamboError(f"{name} is no source archive of {PACKAGE}: it lacks PKG-INFO or ggml") from None
    found = next((line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("Version:")), "")
    if found != version:
        raise LlamboError(f"{name} is the source of {PACKAGE} {found or 'of no version'}, and {version} is installed")
    numbers = dict(_VERSION_PART.findall(build))
    said = ".".join(numbers.get(part, "?") for part in ("MAJOR", "MINOR", "PATCH"))
    if said != ggml.partition("-")[0]:
        shutil.rmtree(root / _GGML, ignore_errors=True)
        raise LlamboError(f"{name} holds ggml {said}, and the installed {PACKAGE} has {ggml}: it is of another tag")
