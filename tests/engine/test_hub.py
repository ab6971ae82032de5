"""Hugging Face: which file is meant, how it gets into the cache, and what the Hub's refusals mean."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from file_server import FileServer

from llambo.core.errors import BadRequest, DownloadFailed
from llambo.engine import hub
from llambo.engine.references import Hub

REPO = "maker/Tiny-GGUF"
SPLIT = ("big-Q8_0-00001-of-00002.gguf", "big-Q8_0-00002-of-00002.gguf")
NAMES = ["README.md", "tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "tiny-Q4_0.gguf", "mmproj-tiny-F16.gguf"]


def content(name: str) -> bytes:
    return b"GGUF" + name.encode() * 500


def repo(server: FileServer, *names: str) -> None:
    server.add_repo(REPO, {name: content(name) for name in names or NAMES})


def fetch(choice: str = "") -> Path:
    return hub.fetch(ref(choice), None)


def ref(choice: str = "") -> Hub:
    return Hub(REPO, file=choice) if choice.endswith(".gguf") else Hub(REPO, quant=choice)


def refusal(choice: str = "") -> str:
    with pytest.raises(DownloadFailed) as caught:
        fetch(choice)
    return caught.value.message


# The choice


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-0.6B-Q4_K_M.gguf", "Q4_K_M"),
        ("model.q8_0.gguf", "Q8_0"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"),
        ("m-BF16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("m-f16.gguf", "F16"),
        ("big-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("Q4_K_M/m-00001-of-00002.gguf", "Q4_K_M"),
        ("plain.gguf", ""),
        ("Qwen3-4B.gguf", ""),
    ],
)
def test_the_quantisation_is_read_from_the_name(name: str, quant: str) -> None:
    assert hub.quant_of(name) == quant


@pytest.mark.parametrize(
    ("choice", "names", "chosen"),
    [
        ("", NAMES, "tiny-Q4_K_M.gguf"),
        ("", ["a-Q8_0.gguf", "a-Q5_K_M.gguf", "a-Q4_0.gguf"], "a-Q4_0.gguf"),
        ("", ["a-Q8_0.gguf", "a-Q5_K_M.gguf"], "a-Q5_K_M.gguf"),
        ("", ["a-Q2_K.gguf"], "a-Q2_K.gguf"),
        ("", ["only.gguf", "mmproj-F16.gguf"], "only.gguf"),
        ("q8_0", NAMES, "tiny-Q8_0.gguf"),
        ("tiny-Q8_0.gguf", NAMES, "tiny-Q8_0.gguf"),
        ("Q4_0", ["deep/a-Q4_0.gguf", "long-a-Q4_0.gguf", "a-Q4_0.gguf"], "a-Q4_0.gguf"),
    ],
)
def test_one_file_is_chosen(choice: str, names: list[str], chosen: str) -> None:
    assert hub.choose(ref(choice), names) == (chosen,)


def test_a_split_model_is_all_its_parts_in_order() -> None:
    assert hub.choose(ref("Q8_0"), [SPLIT[1], SPLIT[0], "big-Q4_0.gguf"]) == SPLIT


@pytest.mark.parametrize(
    ("choice", "names", "words"),
    [
        ("", ["README.md"], "has no GGUF files"),
        ("", ["mmproj-F16.gguf"], "has no GGUF files"),
        ("", ["a-Q2_K.gguf", "a-Q3_K_S.gguf"], f"{REPO} has Q2_K, Q3_K_S"),
        ("Q6_K", NAMES, f"{REPO}:Q6_K does not exist; {REPO} has Q4_0, Q4_K_M, Q8_0"),
        ("x.gguf", ["a.gguf", "b.gguf"], f"{REPO} has a.gguf, b.gguf"),
        ("Q8_0", [SPLIT[0]], f"lacks 1 of the 2 parts of {SPLIT[0]}: {SPLIT[1]}"),
    ],
)
def test_what_cannot_be_chosen_names_what_there_is(choice: str, names: list[str], words: str) -> None:
    with pytest.raises(DownloadFailed) as caught:
        hub.choose(ref(choice), names)
    assert words in caught.value.message


# The way into the cache


def test_a_model_lies_where_other_programs_find_it(server: FileServer, tmp_path: Path) -> None:
    repo(server)
    path = fetch()
    digest = hashlib.sha256(content("tiny-Q4_K_M.gguf")).hexdigest()
    root = tmp_path / "hf/hub/models--maker--Tiny-GGUF"
    assert path.read_bytes() == content("tiny-Q4_K_M.gguf")
    assert path.name == "tiny-Q4_K_M.gguf"
    assert path.resolve() == root / "blobs" / digest
    assert (root / "refs/main").read_text() == path.parent.name

    from huggingface_hub import try_to_load_from_cache

    assert try_to_load_from_cache(REPO, path.name, cache_dir=tmp_path / "hf/hub") == str(path)


def test_only_the_chosen_file_is_fetched_and_only_once(server: FileServer) -> None:
    repo(server)
    assert fetch("Q8_0") == fetch("Q8_0")
    assert [seen.path for seen in server.gets(".gguf")] == [f"/{REPO}/resolve/main/tiny-Q8_0.gguf"]


def test_a_split_model_is_fetched_whole_with_one_progress(server: FileServer) -> None:
    repo(server, *SPLIT)
    told: list[tuple[int, int]] = []
    path = hub.fetch(ref("Q8_0"), lambda done, total: told.append((done, total)))
    assert path.name == SPLIT[0]
    assert path.with_name(SPLIT[1]).read_bytes() == content(SPLIT[1])
    total = sum(len(content(name)) for name in SPLIT)
    assert told == sorted(told)
    assert told[-1] == (total, total)
    assert {call[1] for call in told} == {total}


def test_an_interrupted_download_goes_on_with_the_rest_only(server: FileServer) -> None:
    repo(server)
    size = len(content("tiny-Q8_0.gguf"))

    def stop(done: int, _: int) -> None:
        if done >= size // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.fetch(ref("Q8_0"), stop)
    assert hub.find_cached(ref("Q8_0")) == ()
    server.seen.clear()
    assert fetch("Q8_0").read_bytes() == content("tiny-Q8_0.gguf")
    assert [bool(seen.range) for seen in server.gets(".gguf")] == [True]


def test_a_wrong_checksum_is_said_and_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    server.add_repo(REPO, {"a.gguf": content("a")}, sha256={"a.gguf": "0" * 64})
    assert "the checksum is wrong" in refusal()
    assert list((tmp_path / "hf/hub/models--maker--Tiny-GGUF/blobs").iterdir()) == []
    assert hub.find_cached(ref()) == ()


def test_the_token_goes_to_the_hub(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repo(server)
    fetch()
    about_the_model = [seen for seen in server.seen if REPO in seen.path]  # huggingface_hub asks for its own things too
    assert {seen.authorization for seen in about_the_model} == {"Bearer hf_secret"}


def test_a_small_file_outside_lfs_is_fetched_too(server: FileServer) -> None:
    repo(server, "a.gguf")
    listing = server.files[f"/api/models/{REPO}"]
    digest = hashlib.sha256(content("a.gguf")).hexdigest().encode()
    lfs = b', "lfs": {"sha256": "' + digest + b'", "size": %d, "pointerSize": 130}' % len(content("a.gguf"))
    assert lfs in listing.content
    listing.content = listing.content.replace(lfs, b"")
    assert fetch().read_bytes() == content("a.gguf")


# Refusals


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            401,
            "there is no such model on Hugging Face, or it is private and needs a token in HF_TOKEN, which is not set",
        ),
        (
            404,
            "there is no such model on Hugging Face, or it is private and needs a token in HF_TOKEN, which is not set",
        ),
        (403, "access is restricted: accept the terms on the model's page, and use a token in HF_TOKEN"),
        (500, "Hugging Face cannot give it now"),
    ],
)
def test_a_refused_listing_is_explained(server: FileServer, status: int, words: str) -> None:
    repo(server)
    server.files[f"/api/models/{REPO}"].status = [status] * 9
    message = refusal()
    assert words in message
    assert message.endswith(f"(HTTP {status})")


def test_a_gated_file_is_explained(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repo(server)
    server.files[f"/{REPO}/resolve/main/tiny-Q8_0.gguf"].status = [403]
    message = refusal("Q8_0")
    assert "accept the terms on the model's page, and use the token in HF_TOKEN, that may read it" in message
    assert "hf_secret" not in message


def test_an_unreachable_hub_is_named(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert refusal().startswith(f"http://127.0.0.1:1 cannot be reached to fetch {REPO}: ")


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"id": 1, "siblings": 3}'])
def test_a_server_that_is_no_hub_is_named(server: FileServer, answer: bytes) -> None:
    repo(server)
    server.files[f"/api/models/{REPO}"].content = answer
    assert refusal() in {
        f"{server.url} does not answer as Hugging Face does; check HF_ENDPOINT",
        f"{REPO} has no GGUF files; look for a repository whose name ends in -GGUF",
    }


def test_a_name_that_no_repository_can_have(server: FileServer) -> None:
    with pytest.raises(BadRequest, match="cannot be the name of a repository"):
        hub.fetch(Hub("a/b--c"), None)


# The cache


@pytest.mark.parametrize(
    ("variables", "directory"),
    [
        ({"HF_HUB_CACHE": "/a/cache", "HF_HOME": "/b"}, "/a/cache"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_hubs_own_library_has_it(
    variables: dict[str, str], directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub.cache_dir() == Path(directory).expanduser()


def test_what_is_cached_is_found_by_quantisation_and_preference(server: FileServer) -> None:
    repo(server)
    assert hub.find_cached(ref()) == ()
    eight = fetch("Q8_0")
    assert hub.find_cached(ref("Q8_0")) == (eight,)
    assert hub.find_cached(ref("Q4_0")) == ()
    assert hub.find_cached(ref()) == (eight,)  # the only one here
    four = fetch("Q4_K_M")
    assert hub.find_cached(ref()) == (four,)


def test_a_split_model_is_cached_only_when_it_is_whole(server: FileServer) -> None:
    repo(server, *SPLIT)
    path = fetch("Q8_0")
    assert len(hub.find_cached(ref("Q8_0"))) == 2
    path.with_name(SPLIT[1]).resolve().unlink()
    assert hub.find_cached(ref("Q8_0")) == ()


def test_a_blob_in_a_shared_store_is_used_and_never_deleted(server: FileServer, tmp_path: Path) -> None:
    repo(server)
    path = fetch("Q8_0")
    blob = path.resolve()
    shared = blob.rename(tmp_path / "shared")
    blob.symlink_to(shared)
    assert fetch("Q8_0") == path
    hub.remove(hub.find_cached(ref("Q8_0")))
    assert shared.exists()
    assert not blob.is_symlink()
    assert hub.cached_files() == []


def test_removing_frees_the_blob_and_leaves_the_others(server: FileServer) -> None:
    repo(server)
    eight, four = fetch("Q8_0"), fetch("Q4_0")
    blob = eight.resolve()
    assert hub.remove(hub.find_cached(ref("Q8_0"))) == len(content("tiny-Q8_0.gguf"))
    assert not blob.exists()
    assert not eight.is_symlink()
    assert four.exists()
    assert [file.name for file in hub.cached_files()] == ["tiny-Q4_0.gguf"]
