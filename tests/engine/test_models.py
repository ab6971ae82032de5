"""Resolving, listing, showing and removing, as the rest of Llambo asks for it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from file_server import FileServer, Served
from gguf_files import write_model, write_split

from llambo.core import paths
from llambo.core.errors import BadModel, BadRequest, DownloadFailed, NotFound
from llambo.engine import gguf, models

REPO = "maker/Tiny-GGUF"


@pytest.fixture
def home() -> Path:
    return paths.home()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_model(tmp_path_factory.mktemp("content") / "m.gguf").read_bytes()


def resolve(ref: str, home: Path, *, offline: bool = False, refresh: bool = False) -> Path:
    return models.resolve(ref, home=home, offline=offline, refresh=refresh)


# resolve


def test_the_built_in_model_is_package_data(home: Path) -> None:
    path = resolve("built-in", home, offline=True)
    assert path == models.BUILT_IN_PATH
    assert gguf.read(path).has_chat_template


def test_a_path_is_itself_whether_it_exists_or_not(home: Path, tmp_path: Path) -> None:
    assert resolve(str(tmp_path / "m.gguf"), home) == tmp_path / "m.gguf"
    path = write_model(tmp_path / "m.gguf")
    assert resolve(str(path), home, offline=True) == path


def test_what_is_no_reference_is_refused(home: Path) -> None:
    with pytest.raises(BadRequest):
        resolve("no such thing", home)


def test_a_url_is_fetched_once_and_then_needs_no_server(server: FileServer, home: Path, content: bytes) -> None:
    server.files["/d/m.gguf"] = Served(content)
    url = f"{server.url}/d/m.gguf"
    path = resolve(url, home)
    assert path.name == "m.gguf"
    assert path.is_relative_to(home / "models")
    assert gguf.read(path).architecture == "llama"
    server.files.clear()
    assert resolve(url, home) == resolve(url, home, offline=True, refresh=True) == path
    assert len(server.seen) == 1


def test_two_urls_with_one_file_name_stay_apart(server: FileServer, home: Path, content: bytes) -> None:
    server.files["/a/m.gguf"] = Served(content)
    server.files["/b/m.gguf"] = Served(content + b"x")
    assert resolve(f"{server.url}/a/m.gguf", home) != resolve(f"{server.url}/b/m.gguf", home)


def test_a_new_signature_in_a_url_is_the_same_file(server: FileServer, home: Path, content: bytes) -> None:
    server.files["/m.gguf"] = Served(content)
    path = resolve(f"{server.url}/m.gguf?sig=1", home)
    assert resolve(f"{server.url}/m.gguf?sig=2", home) == path
    assert "sig" not in (path.parent / "source.json").read_text()


def test_a_checksum_in_a_url_is_verified(server: FileServer, home: Path, content: bytes) -> None:
    server.files["/m.gguf"] = Served(content)
    good = f"{server.url}/m.gguf#sha256={hashlib.sha256(content).hexdigest()}"
    with pytest.raises(DownloadFailed, match="the checksum is wrong"):
        resolve(f"{server.url}/m.gguf#sha256={'0' * 64}", home)
    path = resolve(good, home)
    assert resolve(good, home, offline=True) == path


def test_a_checksum_given_later_is_held_against_what_is_here(server: FileServer, home: Path, content: bytes) -> None:
    server.files["/m.gguf"] = Served(content)
    path = resolve(f"{server.url}/m.gguf", home)
    with pytest.raises(DownloadFailed, match="models rm"):
        resolve(f"{server.url}/m.gguf#sha256={'0' * 64}", home)
    assert resolve(f"{server.url}/m.gguf#sha256={hashlib.sha256(content).hexdigest()}", home) == path


def test_all_parts_of_a_split_model_are_fetched_from_a_url(server: FileServer, home: Path, tmp_path: Path) -> None:
    parts = write_split(tmp_path, "m", 3)
    for part in parts:
        server.files[f"/d/{part.name}"] = Served(part.read_bytes())
    path = resolve(f"{server.url}/d/{parts[0].name}?sig=1", home)
    assert len(gguf.read(path).parts) == 3


@pytest.mark.parametrize("ref", [REPO, f"{REPO}:Q8_0", "https://example.org/m.gguf"])
def test_offline_what_is_not_here_is_said_so(ref: str, home: Path) -> None:
    with pytest.raises(DownloadFailed) as caught:
        resolve(ref, home, offline=True)
    assert caught.value.message == (
        f"{ref} is not on this machine, and offline mode (models.offline, HF_HUB_OFFLINE) forbids fetching it"
    )


def test_the_hubs_own_offline_switch_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadFailed, match="offline mode"):
        resolve("https://example.org/m.gguf", home)


def test_offline_uses_what_the_hubs_cache_has(server: FileServer, home: Path, content: bytes) -> None:
    server.add_repo(REPO, {"tiny-Q8_0.gguf": content})
    path = resolve(REPO, home)
    server.seen.clear()
    assert resolve(REPO, home, offline=True, refresh=True) == path
    assert resolve(f"{REPO}:Q8_0", home) == path
    assert server.seen == []


def test_refresh_brings_the_newer_version(server: FileServer, home: Path, content: bytes) -> None:
    server.add_repo(REPO, {"tiny-Q8_0.gguf": content})
    old = resolve(REPO, home)
    server.add_repo(REPO, {"tiny-Q8_0.gguf": content + b"newer"})
    commit = "f00d" + "0" * 36
    served = server.files[f"/{REPO}/resolve/main/tiny-Q8_0.gguf"]
    served.headers["X-Repo-Commit"] = commit
    assert resolve(REPO, home) == old
    assert resolve(REPO, home, refresh=True).read_bytes() == content + b"newer"
    assert resolve(REPO, home).parent.name == commit


def test_whatever_progress_raises_comes_through(server: FileServer, home: Path, content: bytes) -> None:
    server.files["/m.gguf"] = Served(content)

    def stop(_done: int, _total: int) -> None:
        raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        models.resolve(f"{server.url}/m.gguf", home=home, progress=stop)


# list and show


def test_an_empty_home_has_the_built_in_model_only(home: Path) -> None:
    assert [model.ref for model in models.list_models(home)] == ["built-in"]


def test_every_listed_reference_loads_the_same_file_offline(server: FileServer, home: Path, content: bytes) -> None:
    server.add_repo(REPO, {"tiny-Q8_0.gguf": content, "sub/x-Q4_0.gguf": content})
    server.files["/m.gguf"] = Served(content)
    resolve(f"{REPO}:Q8_0", home)
    resolve(f"{REPO}:Q4_0", home)
    resolve(f"{server.url}/m.gguf", home)
    own = home / "models" / "own.gguf"
    own.write_bytes(content)
    found = {model.ref: model for model in models.list_models(home)}
    assert {ref: model.origin for ref, model in found.items()} == {
        "built-in": "built-in",
        f"{REPO}:tiny-Q8_0.gguf": "huggingface",
        f"{REPO}:sub/x-Q4_0.gguf": "huggingface",
        f"{server.url}/m.gguf": "url",
        str(own): "file",
    }
    server.files.clear()
    for ref, model in found.items():
        assert resolve(ref, home, offline=True) == model.path
        assert (model.problem, model.architecture) == ("", "llama")
        assert models.show(ref, home=home)[0] == model


def test_a_split_model_is_one_line(home: Path) -> None:
    (home / "models").mkdir(parents=True)
    parts = write_split(home / "models", "m", 2)
    (listed,) = [model for model in models.list_models(home) if model.origin == "file"]
    assert listed.size_bytes == sum(part.stat().st_size for part in parts)
    assert listed.name == "m"


def test_a_damaged_file_is_listed_with_its_problem(home: Path) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / "bad.gguf").write_bytes(b"not a model")
    (listed,) = [model for model in models.list_models(home) if model.origin == "file"]
    assert listed.problem.startswith("this is no GGUF file")
    with pytest.raises(BadModel):
        models.show(listed.ref, home=home)


def test_showing_what_is_not_here_tells_how_to_get_it(home: Path) -> None:
    with pytest.raises(NotFound, match=r"llamboctl pull maker/Tiny-GGUF"):
        models.show(REPO, home=home)


# remove


def test_the_built_in_model_cannot_be_removed(home: Path) -> None:
    with pytest.raises(BadRequest, match="part of the installation"):
        models.remove("built-in", home=home)
    assert models.BUILT_IN_PATH.exists()


def test_a_url_goes_with_all_that_is_left_of_it(server: FileServer, home: Path, content: bytes) -> None:
    server.files["/m.gguf"] = Served(content)
    path = resolve(f"{server.url}/m.gguf", home)
    assert models.remove(f"{server.url}/m.gguf", home=home) > len(content)
    assert not path.parent.exists()
    with pytest.raises(NotFound):
        models.remove(f"{server.url}/m.gguf", home=home)


def test_an_unfinished_download_can_be_removed(server: FileServer, home: Path, content: bytes) -> None:
    server.files["/m.gguf"] = Served(content)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.resolve(f"{server.url}/m.gguf", home=home, progress=stop)
    assert len(list((home / "models").rglob("*.part"))) == 1
    models.remove(f"{server.url}/m.gguf", home=home)
    assert list((home / "models").iterdir()) == []


def test_a_fetched_file_can_be_removed_by_its_path(server: FileServer, home: Path, content: bytes) -> None:
    server.files["/m.gguf"] = Served(content)
    path = resolve(f"{server.url}/m.gguf", home)
    models.remove(str(path), home=home)
    assert not path.parent.exists()


def test_all_parts_of_a_split_model_go(home: Path) -> None:
    (home / "models").mkdir(parents=True)
    write_split(home / "models", "m", 2)
    models.remove(str(home / "models" / "m-00001-of-00002.gguf"), home=home)
    assert list((home / "models").iterdir()) == []


def test_a_file_elsewhere_is_not_ours_to_delete(home: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "mine.gguf")
    with pytest.raises(BadRequest, match="delete it yourself"):
        models.remove(str(path), home=home)
    assert path.exists()


def test_a_link_out_of_the_home_is_not_followed(home: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "mine.gguf")
    (home / "models").mkdir(parents=True)
    (home / "models" / "link.gguf").symlink_to(path)
    with pytest.raises(BadRequest, match="delete it yourself"):
        models.remove(str(home / "models" / "link.gguf"), home=home)
    assert path.exists()


def test_of_several_files_of_a_repository_one_must_be_named(server: FileServer, home: Path, content: bytes) -> None:
    server.add_repo(REPO, {"t-Q8_0.gguf": content, "t-Q4_0.gguf": content + b"x"})
    resolve(f"{REPO}:Q8_0", home)
    resolve(f"{REPO}:Q4_0", home)
    with pytest.raises(BadRequest, match=r"several files here; say which one: maker/Tiny-GGUF:t-Q4_0\.gguf"):
        models.remove(REPO, home=home)
    assert models.remove(f"{REPO}:Q4_0", home=home) == len(content) + 1
    assert models.remove(REPO, home=home) == len(content)
    with pytest.raises(NotFound):
        models.remove(REPO, home=home)


def test_a_missing_home_is_no_error(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    with pytest.raises(NotFound):
        models.remove("https://example.org/m.gguf", home=home)
