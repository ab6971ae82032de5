"""One file from a server that breaks off, forgets, changes, refuses and lies."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from file_server import FileServer, Served

from llambo.core.errors import DownloadFailed
from llambo.engine import download
from llambo.engine.download import Source, fetch

MIB = 2**20
CONTENT = b"GGUF" + bytes(range(256)) * 4 * 1024  # 1 MiB and 4 bytes
SHA = hashlib.sha256(CONTENT).hexdigest()


class Stop(Exception):
    pass


class Told:
    """A progress that remembers, and raises `Stop` once `stop_at` bytes are there."""

    def __init__(self, stop_at: int | None = None, error: type[BaseException] = Stop) -> None:
        self.calls: list[tuple[int, int]] = []
        self.stop_at = stop_at
        self.error = error

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        if self.stop_at is not None and done >= self.stop_at:
            raise self.error


@pytest.fixture
def goal(tmp_path: Path) -> Path:
    return tmp_path / "models" / "m.gguf"


def part(goal: Path) -> Path:
    return goal.with_name("m.gguf.part")


def leave_part(server: FileServer, goal: Path, *, sha256: str = "", at: int = MIB // 4) -> int:
    """Stops a download midway, as Ctrl-C does; returns the bytes that are kept."""
    with pytest.raises(KeyboardInterrupt):
        fetch(Source(f"{server.url}/m.gguf", sha256=sha256), goal, progress=Told(at, KeyboardInterrupt))
    assert not goal.exists()
    kept = part(goal).stat().st_size
    assert at <= kept < len(CONTENT)
    server.seen.clear()
    return kept


def get(server: FileServer, goal: Path, *, sha256: str = "", size: int | None = None) -> list[float]:
    """Fetches without waiting; returns the pauses that were asked for."""
    pauses: list[float] = []
    source = Source(f"{server.url}/m.gguf", sha256=sha256, size_bytes=size)
    fetch(source, goal, pause=pauses.append)
    return pauses


def failure(server: FileServer, goal: Path, *, sha256: str = "", size: int | None = None) -> str:
    with pytest.raises(DownloadFailed) as caught:
        get(server, goal, sha256=sha256, size=size)
    assert not goal.exists()
    return caught.value.message


def only(goal: Path) -> bool:
    """Whether nothing but the file itself is left."""
    return [path.name for path in goal.parent.iterdir()] == [goal.name]


def test_a_file_arrives_whole_and_alone(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    assert get(server, goal, sha256=SHA, size=len(CONTENT)) == []
    assert goal.read_bytes() == CONTENT
    assert only(goal)


def test_what_is_there_is_not_asked_for(server: FileServer, goal: Path) -> None:
    goal.parent.mkdir()
    goal.write_bytes(b"GGUF here")
    get(server, goal)
    assert server.seen == []


def test_progress_rises_to_the_total(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    told = Told()
    fetch(Source(f"{server.url}/m.gguf"), goal, progress=told)
    done = [call[0] for call in told.calls]
    assert done == sorted(done)
    assert told.calls[-1] == (len(CONTENT), len(CONTENT))
    assert {total for _, total in told.calls} == {len(CONTENT)}


def test_an_interrupted_download_goes_on_with_the_rest_only(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    kept = leave_part(server, goal)
    told = Told()
    fetch(Source(f"{server.url}/m.gguf", sha256=SHA), goal, progress=told)
    assert [seen.range for seen in server.gets()] == [f"bytes={kept}-"]
    assert goal.read_bytes() == CONTENT
    assert told.calls[0][0] > kept
    assert only(goal)


def test_a_broken_connection_is_taken_up_again_in_the_same_call(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT, breaks=[MIB // 2, MIB // 4])
    pauses = get(server, goal, sha256=SHA)
    assert goal.read_bytes() == CONTENT
    assert [seen.range for seen in server.gets()] == [None, f"bytes={MIB // 2}-", f"bytes={MIB * 3 // 4}-"]
    assert pauses == [download.FIRST_PAUSE_S] * 2  # each try brought something, so the pause does not grow


def test_a_connection_that_brings_nothing_is_given_up(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT, breaks=[1000] + [0] * 10)
    message = failure(server, goal)
    assert "(4 tries); 1,000 bytes have arrived and are kept for the next try" in message
    assert len(server.gets()) == 1 + download.ATTEMPTS - 1
    server.files["/m.gguf"].breaks.clear()
    get(server, goal, sha256=SHA)
    assert goal.read_bytes() == CONTENT


def test_pauses_grow_and_a_busy_server_is_asked_again(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT, status=[503, 429, 500])
    assert get(server, goal) == [0.5, 1.0, 2.0]
    assert goal.read_bytes() == CONTENT


def test_a_server_that_stays_broken_is_named(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT, status=[500] * 9)
    assert failure(server, goal) == f"{server.url}/m.gguf: the server answers 500 (4 tries)"


def test_nobody_listening_is_named(server: FileServer, goal: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(DownloadFailed, match=r"the connection failed: .*4 tries"):
        fetch(Source("http://127.0.0.1:1/m.gguf"), goal, pause=pauses.append)
    assert len(pauses) == download.ATTEMPTS - 1


def test_a_server_without_ranges_starts_again(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT, ranges=False)
    leave_part(server, goal)
    told = Told()
    fetch(Source(f"{server.url}/m.gguf", sha256=SHA), goal, progress=told)
    assert goal.read_bytes() == CONTENT
    assert told.calls == sorted(told.calls)


def test_a_changed_file_is_fetched_from_its_start(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    leave_part(server, goal)
    newer = b"GGUF" + bytes(len(CONTENT))
    server.files["/m.gguf"] = Served(newer, etag='"v2"')
    get(server, goal)
    assert goal.read_bytes() == newer
    assert len(server.gets()) == 1


def test_a_change_is_seen_though_the_server_ignores_if_range(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    leave_part(server, goal)
    newer = b"GGUF" + bytes(len(CONTENT))
    server.files["/m.gguf"] = Served(newer, etag='"v2"', if_range=False)
    get(server, goal)
    assert goal.read_bytes() == newer
    assert [seen.range is None for seen in server.gets()] == [False, True]


def test_without_a_validator_only_a_checksum_allows_to_go_on(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT, etag="")
    kept = leave_part(server, goal)
    get(server, goal, sha256=SHA)
    assert [seen.range for seen in server.gets()] == [f"bytes={kept}-"]
    goal.unlink()
    leave_part(server, goal)
    get(server, goal)
    assert [seen.range for seen in server.gets()] == [None]


def test_a_part_that_is_whole_already_is_only_checked(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    leave_part(server, goal)
    part(goal).write_bytes(CONTENT)
    get(server, goal, sha256=SHA)
    assert goal.read_bytes() == CONTENT
    assert [seen.range for seen in server.gets()] == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_longer_than_the_file_is_dropped(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    leave_part(server, goal)
    part(goal).write_bytes(CONTENT + b"more")
    get(server, goal)
    assert goal.read_bytes() == CONTENT


def test_a_wrong_checksum_deletes_what_came(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    message = failure(server, goal, sha256="0" * 64)
    assert f"SHA-256 should be {'0' * 64} and is {SHA}" in message
    assert "deleted" in message
    assert list(goal.parent.iterdir()) == []


def test_the_checksum_that_a_hub_sends_counts(server: FileServer, goal: Path) -> None:
    server.files["/store"] = Served(CONTENT)
    server.files["/m.gguf"] = Served(b"", redirect="/store", headers={"X-Linked-Etag": f'"{"0" * 64}"'})
    assert "the checksum is wrong" in failure(server, goal)


def test_a_size_that_was_not_promised_is_refused(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    assert "has 1,048,580 bytes where 5 were expected" in failure(server, goal, size=5)
    assert list(goal.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "the server refuses access (HTTP 401)"),
        (403, "the server refuses access (HTTP 403)"),
        (404, "there is no such file (HTTP 404)"),
        (410, "there is no such file (HTTP 410)"),
        (418, "the server cannot give it (HTTP 418)"),
    ],
)
def test_a_refusal_is_final_and_named(server: FileServer, goal: Path, status: int, words: str) -> None:
    server.files["/m.gguf"] = Served(CONTENT, status=[status])
    assert failure(server, goal) == f"{server.url}/m.gguf: {words}"
    assert len(server.seen) == 1


def test_a_login_page_is_stopped_at_its_first_bytes(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(b"<!DOCTYPE html><html>" + bytes(MIB))
    assert "it looks like a web page" in failure(server, goal)
    assert list(goal.parent.iterdir()) == []


def test_an_empty_file_is_refused(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(b"")
    assert "the file is empty (0 bytes)" in failure(server, goal)


def test_a_file_larger_than_the_disk_is_not_begun(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT, claims=2**60)
    message = failure(server, goal)
    assert "MiB free and the download needs 1,099,511,627,776 MiB" in message


def test_a_full_disk_is_named(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(CONTENT)
    goal.parent.mkdir()
    part(goal).symlink_to("/dev/full")  # every write there is refused as on a full disk
    message = failure(server, goal)
    assert message.startswith(f"the disk of {goal.parent} is full; what had arrived is kept")


def test_a_directory_that_cannot_be_made_is_named(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadFailed, match=r"cannot write .*m\.gguf"):
        fetch(Source(f"{server.url}/m.gguf"), tmp_path / "file" / "m.gguf")


def test_a_query_is_not_repeated_in_errors(server: FileServer, goal: Path) -> None:
    with pytest.raises(DownloadFailed) as caught:
        fetch(Source(f"{server.url}/m.gguf?signature=secret"), goal)
    assert "secret" not in caught.value.message


def test_a_token_does_not_follow_a_redirect_to_another_server(server: FileServer, goal: Path) -> None:
    other = server.url.replace("127.0.0.1", "localhost")
    server.files["/store"] = Served(CONTENT)
    server.files["/m.gguf"] = Served(b"", redirect=f"{other}/store")
    fetch(Source(f"{server.url}/m.gguf", headers={"Authorization": "Bearer t"}), goal)
    assert [(seen.path, seen.authorization) for seen in server.seen] == [("/m.gguf", "Bearer t"), ("/store", None)]


def test_redirects_that_never_end_are_named(server: FileServer, goal: Path) -> None:
    server.files["/m.gguf"] = Served(b"", redirect="/m.gguf")
    assert "redirect" in failure(server, goal).lower()


def test_two_at_once_are_one_download(server: FileServer, goal: Path) -> None:
    second_waits = threading.Event()
    server.files["/m.gguf"] = Served(CONTENT, gate=lambda: second_waits.wait(30))
    first_began = threading.Event()
    source = Source(f"{server.url}/m.gguf", sha256=SHA)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, source, goal, progress=lambda *_: first_began.set())
        assert first_began.wait(30)
        # The second one tells the first one's progress while it waits; that lets the server go on.
        second = pool.submit(fetch, source, goal, progress=lambda *_: second_waits.set())
        first.result(30)
        second.result(30)
    assert second_waits.is_set()
    assert len(server.gets()) == 1
    assert goal.read_bytes() == CONTENT
    assert only(goal)


def test_who_waits_for_another_download_can_be_stopped(server: FileServer, goal: Path) -> None:
    release = threading.Event()
    server.files["/m.gguf"] = Served(CONTENT, gate=lambda: release.wait(30))
    began = threading.Event()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, Source(f"{server.url}/m.gguf"), goal, progress=lambda *_: began.set())
        assert began.wait(30)
        with pytest.raises(Stop):
            fetch(Source(f"{server.url}/m.gguf"), goal, progress=Told(0))
        release.set()
        first.result(30)
    assert goal.read_bytes() == CONTENT
