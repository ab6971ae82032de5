"""One file over HTTP to one path: resumed, checked, and in place only when it is whole.

Owns the requests, the checks and the retries; what lies on disk meanwhile is `partial`'s. Knows nothing of where
models come from: `models` and `hub` say what to fetch. Blocking: call it from a thread, and raise from `progress` to
stop it; what has arrived stays and the next call goes on from there.
"""

from __future__ import annotations

import errno
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llambo.core.errors import BadModel, DownloadFailed
from llambo.engine.gguf import check_magic
from llambo.engine.gguf_format import MAGIC
from llambo.engine.partial import Part, locked
from llambo.engine.references import shown_url

if TYPE_CHECKING:
    import httpx2

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all; 0 where the server does not say). It may raise, which ends the download."""

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
ATTEMPTS = 4  # in a row that bring nothing
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


def _explain_status(status: int) -> str:
    match status:
        case 401 | 403:
            return "the server refuses access"
        case 404 | 410:
            return "there is no such file"
        case _:
            return "the server cannot give it"


@dataclass(frozen=True, slots=True)
class Source:
    """What to fetch and what it must be. `explain` turns an HTTP status into words for the error."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""
    size_bytes: int | None = None
    explain: Callable[[int], str] = _explain_status


class _Broken(Exception):
    """The transfer stopped before its end, for a reason that may pass. `wait_s` is the server's wish."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _ProgressRaised(Exception):
    """Carries an `OSError` of the caller's past those of the disk."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error


def fetch(
    source: Source,
    destination: Path,
    *,
    progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Brings `source` to `destination`, or finds it there. `pause` waits between tries.

    Raises: `DownloadFailed`, and what `progress` raises; what has arrived is kept unless it is known to be wrong.
    """
    tell = _monotone(progress)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(destination, lambda done: tell(done, 0)):
            if not destination.exists():
                _fetch_locked(source, Part(destination), tell, pause)
    except _ProgressRaised as raised:
        raise raised.error from None
    except OSError as error:
        raise _disk_failed(error, destination) from None


def _disk_failed(error: OSError, destination: Path) -> DownloadFailed:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DownloadFailed(
            f"the disk of {destination.parent} is full; what had arrived is kept: free some space and try again"
        )
    return DownloadFailed(f"cannot write {destination}: {error.strerror or error}")


def _monotone(progress: Progress | None) -> Progress:
    """`progress` that never goes back, though a transfer may start again."""
    most = 0

    def tell(done: int, total: int) -> None:
        nonlocal most
        most = max(most, done)
        if progress:
            try:
                progress(most, total)
            except OSError as error:
                raise _ProgressRaised(error) from None

    return tell


def _fetch_locked(source: Source, part: Part, tell: Progress, pause: Callable[[float], None]) -> None:
    import httpx2  # noqa: PLC0415 - 60 ms that only a download should cost

    expected = source.sha256
    failures = 0
    timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    with httpx2.Client(follow_redirects=True, timeout=timeout) as client:
        while True:
            before = part.size
            try:
                expected = _transfer(client, source, part, tell) or expected
                break
            except _Broken as broken:
                failures = 1 if part.size > before else failures + 1
                if failures >= ATTEMPTS:
                    raise DownloadFailed(_give_up(source, part, str(broken))) from None
                tell(part.size, 0)  # who has given up meanwhile raises here
                pause(min(max(FIRST_PAUSE_S * 2 ** (failures - 1), broken.wait_s), LONGEST_PAUSE_S))
    _check_sum(source, part, expected)
    tell(part.size, part.size)
    part.finish()


def _give_up(source: Source, part: Part, reason: str) -> str:
    kept = f"; {part.size:,} bytes have arrived and are kept for the next try" if part.size else ""
    return f"{shown_url(source.url)}: {reason} ({ATTEMPTS} tries){kept}"


def _check_sum(source: Source, part: Part, expected: str) -> None:
    if not expected:
        return
    found = part.sha256()
    if found != expected:
        part.discard()
        raise DownloadFailed(
            f"{shown_url(source.url)}: the checksum is wrong, so the file was deleted:"
            f" SHA-256 should be {expected} and is {found}"
        )


def _transfer(client: httpx2.Client, source: Source, part: Part, tell: Progress) -> str:
    """One request, to the end of the file; returns the SHA-256 that the server named on the way, if it did."""
    import httpx2  # noqa: PLC0415 - imported by the caller

    headers = {**source.headers, "Accept-Encoding": "identity", **_range_headers(source, part)}
    try:
        with client.stream("GET", source.url, headers=headers) as response:
            _check_redirects(source, response)
            if total := _start(source, part, response):
                _check_room(part, total)
            if response.status_code != 416:
                _receive(source, part, response, tell, total)
            return _linked_sha256(response)
    except httpx2.TransportError as error:
        raise _Broken(f"the connection failed: {str(error) or type(error).__name__}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise DownloadFailed(f"{shown_url(source.url)}: {error}") from None


def _range_headers(source: Source, part: Part) -> dict[str, str]:
    """Asks for the rest where something can prove that it belongs to what is here; otherwise starts again."""
    if not part.size:
        return {}
    if validator := part.validator:
        return {"Range": f"bytes={part.size}-", "If-Range": validator}
    if source.sha256:
        return {"Range": f"bytes={part.size}-"}
    part.discard()
    return {}


def _check_redirects(source: Source, response: httpx2.Response) -> None:
    for hop in (*response.history, response):
        if urlsplit(source.url).scheme == "https" and hop.url.scheme != "https":
            raise DownloadFailed(f"{shown_url(source.url)} leads to {hop.url.host} without https: refused")


def _start(source: Source, part: Part, response: httpx2.Response) -> int:
    """Makes the part ready for this response; returns the file's size in bytes, 0 where the server does not say."""
    match response.status_code:
        case 200:
            part.begin(_validator(response))
            total = int(response.headers.get("Content-Length", 0))
        case 206 | 416:
            match_ = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            total = int(match_[2]) if match_ and match_[2] != "*" else 0
            start = int(match_[1]) if match_ and match_[1] else total
            changed = part.validator not in {"", _validator(response)} and response.status_code == 206
            if start != part.size or changed:
                part.discard()
                raise _Broken("the file changed on the server, or the server does not continue where it should")
        case status if status in _TRANSIENT:
            wait = response.headers.get("Retry-After", "")
            raise _Broken(f"the server answers {status}", float(wait) if wait.isdecimal() else 0.0)
        case status:
            raise DownloadFailed(f"{shown_url(source.url)}: {source.explain(status)} (HTTP {status})")
    if source.size_bytes is not None and total not in {0, source.size_bytes}:
        part.discard()
        raise DownloadFailed(
            f"{shown_url(source.url)}: the server has {total:,} bytes where {source.size_bytes:,} were expected"
        )
    return total


def _validator(response: httpx2.Response) -> str:
    """What If-Range takes: a strong ETag, else the date (RFC 9110, section 13.1.5)."""
    tag: str = response.headers.get("ETag", "")
    date: str = response.headers.get("Last-Modified", "")
    return tag if tag and not tag.startswith("W/") else date


def _linked_sha256(response: httpx2.Response) -> str:
    """The checksum that Hugging Face gives with its redirect, as servers like it do."""
    for hop in (*response.history, response):
        tag = hop.headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            return str(tag)
    return ""


def _check_room(part: Part, total: int) -> None:
    needed = total - part.size
    free = shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise DownloadFailed(
            f"{part.path.parent} has {free / 2**20:,.0f} MiB free and the download needs {needed / 2**20:,.0f} MiB"
        )


def _receive(source: Source, part: Part, response: httpx2.Response, tell: Progress, total: int) -> None:
    done = part.size
    with part.append() as file:
        for chunk in response.iter_raw():
            if not done:
                _check_head(source, part, chunk)
            file.write(chunk)
            done += len(chunk)
            tell(done, total)
    if not done:
        part.discard()
        raise DownloadFailed(f"{shown_url(source.url)}: the file is empty (0 bytes)")
    if total and done < total:
        raise _Broken(f"the connection ended after {done:,} of {total:,} bytes")


def _check_head(source: Source, part: Part, head: bytes) -> None:
    """Stops at once where the server sends something else than a model, such as a page that asks to log in."""
    if MAGIC.startswith(head):
        return  # too little has come to tell
    try:
        check_magic(head, len(head))
    except BadModel as error:
        part.discard()
        raise DownloadFailed(f"{shown_url(source.url)}: {error.message}") from None
