"""The engine's source: where it is looked for, what is refused, and what is unpacked."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llambo.core.errors import DownloadFailed, LlamboError
from llambo.engine import backend_source
from tests.engine.backends import sha256, source_archive

VERSION = "2026.10.11549"
GGML = "0.26.0"
NAME = f"xllamacpp-{VERSION}.tar.gz"


class Index:
    """A package index on a port of its own; `pages` maps paths to (status, content type, body)."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, str, bytes]] = {}
        self.seen: list[tuple[str, str]] = []  # path, Authorization
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.seen.append((self.path, self.headers.get("Authorization", "")))
                status, kind, body = index.pages.get(self.path, (404, "text/plain", b"nothing here"))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}/simple"

    def offer(self, archive: Path, *, checksum: str = "") -> None:
        """Serves the archive, and a page that names it."""
        file = {"filename": NAME, "url": f"/files/{NAME}", "hashes": {"sha256": checksum or sha256(archive)}}
        page = json.dumps({"meta": {"api-version": "1.1"}, "files": [file]}).encode()
        self.pages["/simple/xllamacpp/"] = (200, "application/vnd.pypi.simple.v1+json", page)
        self.pages[f"/files/{NAME}"] = (200, "application/gzip", archive.read_bytes())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def index() -> Iterator[Index]:
    served = Index()
    yield served
    served.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return source_archive(tmp_path / NAME, version=VERSION, ggml=GGML, variant="haswell")


def test_the_index_is_the_one_that_pip_or_uv_would_use(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example/simple/\n")
    assert backend_source.index_url({}, ()) == "https://pypi.org/simple"
    assert backend_source.index_url({}, (tmp_path / "none", config)) == "https://mirror.example/simple"
    assert (
        backend_source.index_url({"PIP_INDEX_URL": "https://p.example/s?a=b"}, (config,)) == "https://p.example/s?a=b"
    )
    assert (
        backend_source.index_url({"UV_DEFAULT_INDEX": "own=https://u.example/s/"}, (config,)) == "https://u.example/s"
    )


def test_a_damaged_pip_configuration_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\xff\xfe no section")
    assert backend_source.index_url({}, (tmp_path / "bad",)) == backend_source.DEFAULT_INDEX


def test_the_source_is_found_fetched_and_checked(index: Index, archive: Path, tmp_path: Path) -> None:
    index.offer(archive)
    seen: list[tuple[int, int]] = []
    found = backend_source.find(VERSION, index=index.url)
    backend_source.fetch(found, tmp_path / "got", lambda done, total: seen.append((done, total)))
    assert (tmp_path / "got").read_bytes() == archive.read_bytes()
    assert seen[-1] == (archive.stat().st_size, archive.stat().st_size)


def test_an_index_that_answers_in_html_will_do(index: Index, archive: Path) -> None:
    page = f'<html><a href="../../files/{NAME}#sha256={"a" * 64}">x</a></html>'.encode()
    index.pages["/simple/xllamacpp/"] = (200, "text/html", page)
    found = backend_source.find(VERSION, index=index.url)
    assert found == backend_source.Archive(f"http://{index.host}/files/{NAME}", "a" * 64)


def test_user_and_password_go_into_a_header_and_into_no_message(index: Index) -> None:
    with pytest.raises(DownloadFailed) as failed:
        backend_source.find(VERSION, index=f"http://me:secret@{index.host}/simple")
    assert index.seen == [("/simple/xllamacpp/", "Basic bWU6c2VjcmV0")]
    assert "secret" not in failed.value.message


def test_an_archive_with_another_checksum_is_refused_and_deleted(index: Index, archive: Path, tmp_path: Path) -> None:
    index.offer(archive, checksum="0" * 64)
    with pytest.raises(DownloadFailed, match="the checksum is wrong: SHA-256 should be 0000"):
        backend_source.fetch(backend_source.find(VERSION, index=index.url), tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_an_archive_that_does_not_end_is_refused_and_deleted(
    index: Index, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.offer(archive)
    monkeypatch.setattr(backend_source, "ARCHIVE_MAX_BYTES", 100)
    with pytest.raises(DownloadFailed, match="is larger than 0 MiB: no source archive"):
        backend_source.fetch(backend_source.find(VERSION, index=index.url), tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_an_index_without_that_version_says_so(index: Index, archive: Path) -> None:
    index.offer(archive)
    with pytest.raises(DownloadFailed, match="has no source of the installed version"):
        backend_source.find("1.2.3", index=index.url)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"not json"])
def test_a_page_that_is_no_index_is_told(index: Index, body: bytes) -> None:
    index.pages["/simple/xllamacpp/"] = (200, "application/json", body)
    with pytest.raises(DownloadFailed, match="does not answer as a package index does"):
        backend_source.find(VERSION, index=index.url)


def test_a_registry_that_cannot_be_reached_is_told_with_the_way_round(index: Index) -> None:
    index.close()
    with pytest.raises(DownloadFailed, match=r"cannot be reached .* give it with --source"):
        backend_source.find(VERSION, index=index.url)


def test_a_registry_that_does_not_speak_http_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(backend_source.ATTEMPTS):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(b"SSH-2.0-something\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        index = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        with pytest.raises(DownloadFailed, match=r"cannot be reached .* give it with --source"):
            backend_source.find(VERSION, index=index)
        thread.join()


def test_only_ggml_is_unpacked(archive: Path, tmp_path: Path) -> None:
    root = backend_source.unpack(archive, tmp_path / "out", version=VERSION, ggml=GGML)
    assert (root / "cpu.c").exists()
    assert not (tmp_path / "out" / "README.md").exists()


def test_the_source_of_another_version_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamboError, match=r"is the source of xllamacpp 2026\.10\.11549, and 2026\.11\.1 is installed"):
        backend_source.unpack(archive, tmp_path / "out", version="2026.11.1", ggml=GGML)


def test_a_source_with_another_ggml_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamboError, match=r"holds ggml 0\.26\.0, and the installed xllamacpp has 0\.27\.1"):
        backend_source.unpack(archive, tmp_path / "out", version=VERSION, ggml="0.27.1-dirty")


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00broken"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(LlamboError, match=r"x\.tar\.gz is no source archive"):
        backend_source.unpack(tmp_path / "x.tar.gz", tmp_path / "out", version=VERSION, ggml=GGML)


def test_a_truncated_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(LlamboError, match="is no source archive"):
        backend_source.unpack(archive, tmp_path / "out", version=VERSION, ggml=GGML)


def test_an_archive_that_is_damaged_anywhere_is_refused(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    refused = 0
    for place in range(20, len(whole) - 20, max(1, len(whole) // 60)):
        archive.write_bytes(
            whole[:place] + bytes(byte ^ 0x55 for byte in whole[place : place + 8]) + whole[place + 8 :]
        )
        try:
            backend_source.unpack(archive, tmp_path / str(place), version=VERSION, ggml=GGML)
        except LlamboError:
            refused += 1
    assert refused > 40
