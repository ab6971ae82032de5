"""A web server on loopback that serves files as a model hub does, and fails on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Served:
    """A file and how it is given. `breaks` are the bytes after which the next responses end early."""

    content: bytes
    etag: str = '"v1"'
    headers: dict[str, str] = field(default_factory=dict)
    status: list[int] = field(default_factory=list)  # of the next responses; then 200
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    if_range: bool = True  # False: a server that does not look at the validator
    claims: int | None = None  # a Content-Length that is not the truth
    redirect: str = ""
    gate: Callable[[], object] | None = None  # called in the middle of the body


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class FileServer:
    """`files` by path; `seen` in order."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.seen: list[Seen] = []
        self.url = ""

    def gets(self, end: str = "") -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "GET" and seen.path.endswith(end)]

    def add_repo(self, repo: str, files: dict[str, bytes], *, sha256: dict[str, str] | None = None) -> None:
        """A model repository, with what `huggingface_hub` asks for: a listing, and each file by name."""
        siblings = []
        for name, content in files.items():
            digest = (sha256 or {}).get(name, hashlib.sha256(content).hexdigest())
            siblings.append(
                {
                    "rfilename": name,
                    "size": len(content),
                    "blobId": "0" * 40,
                    "lfs": {"sha256": digest, "size": len(content), "pointerSize": 130},
                }
            )
            self.files[f"/{repo}/resolve/main/{name}"] = Served(
                content,
                etag=f'"{digest}"',
                headers={
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Size": str(len(content)),
                    "X-Linked-Etag": f'"{digest}"',
                },
            )
        listing = {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "siblings": siblings}
        listing |= {"tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False}
        self.files[f"/api/models/{repo}"] = Served(json.dumps(listing).encode())


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        self.owner.seen.append(Seen(self.command, path, self.headers["Range"], self.headers["Authorization"]))
        served = self.owner.files.get(path)
        status = served.status.pop(0) if served and served.status else 200 if served else 404
        if not served or status != 200:
            self.send_response(status)
            if status in {401, 404}:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif served.redirect:
            self.send_response(302)
            self.send_header("Location", served.redirect)
            for name, value in served.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._give(served, body=body)

    def _give(self, served: Served, *, body: bool) -> None:
        start = self._start(served)
        size = len(served.content)
        if start >= size > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if served.etag:
            self.send_header("ETag", served.etag)
        for name, value in served.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(served.claims or size - start))
        self.end_headers()
        if body:
            self._send(served, start)

    def _start(self, served: Served) -> int:
        wanted = self.headers["Range"]
        if not wanted or not served.ranges:
            return 0
        condition = self.headers["If-Range"]
        if condition and served.if_range and condition != served.etag:
            return 0
        return int(wanted.removeprefix("bytes=").partition("-")[0])

    def _send(self, served: Served, start: int) -> None:
        rest = served.content[start:]
        if served.breaks:
            rest = rest[: served.breaks.pop(0)]
        half = len(rest) // 2
        with contextlib.suppress(ConnectionError):
            self.wfile.write(rest[:half])
            self.wfile.flush()
            if served.gate:
                served.gate()
            self.wfile.write(rest[half:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[FileServer]:
    owner = FileServer()
    handler = type("Handler", (_Handler,), {"owner": owner})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        owner.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield owner
        finally:
            server.shutdown()
            thread.join()
