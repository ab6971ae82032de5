"""References: every form, what is refused, and the names that come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.core.errors import BadRequest
from llambo.engine.references import (
    BuiltIn,
    File,
    Hub,
    Reference,
    Url,
    default_name,
    parse,
    part_names,
    shown_url,
)

SHA = "a1" * 32


def nothing_exists(_: Path) -> bool:
    return False


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("built-in", BuiltIn()),
        ("/models/a.gguf", File(Path("/models/a.gguf"))),
        ("/models/a", File(Path("/models/a"))),
        ("a.gguf", File(Path.cwd() / "a.gguf")),
        ("dir/a.gguf", File(Path.cwd() / "dir/a.gguf")),
        ("./a b", File(Path.cwd() / "a b")),
        ("../a", File(Path.cwd() / "../a")),
        ("~/a", File(Path.home() / "a")),
        ("user/repo", Hub("user/repo")),
        ("user/repo:Q4_K_M", Hub("user/repo", quant="Q4_K_M")),
        ("user/repo-1.5_x:IQ2_XXS", Hub("user/repo-1.5_x", quant="IQ2_XXS")),
        ("user/repo:m-Q8_0.gguf", Hub("user/repo", file="m-Q8_0.gguf")),
        ("user/repo:sub/m.gguf", Hub("user/repo", file="sub/m.gguf")),
        ("hf:user/repo", Hub("user/repo")),
        ("hf:user/repo.gguf", Hub("user/repo.gguf")),
        ("https://example.org/d/m.gguf", Url("https://example.org/d/m.gguf")),
        ("https://example.org/m.gguf?x=1", Url("https://example.org/m.gguf?x=1")),
        (f"https://example.org/m.gguf#sha256={SHA.upper()}", Url("https://example.org/m.gguf", SHA)),
        ("http://127.0.0.1:80/m.gguf", Url("http://127.0.0.1:80/m.gguf")),
        ("http://127.8.9.1/m.gguf", Url("http://127.8.9.1/m.gguf")),
        ("http://localhost/m.gguf", Url("http://localhost/m.gguf")),
        ("http://[::1]:8080/m.gguf", Url("http://[::1]:8080/m.gguf")),
    ],
)
def test_every_form_is_read(text: str, ref: Reference) -> None:
    assert parse(text, exists=nothing_exists) == ref


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no model reference: give built-in, a path"),
        ("model", "is no model reference: give built-in, a path"),
        ("a/b/c", "user/repo[:quant] on Hugging Face"),
        ("user/repo:", "is no model reference"),
        ("user/..", "is no model reference"),
        ("user/repo:../x.gguf", "is no model reference"),
        ("user/repo:a b", "is no model reference"),
        ("user/repo\n", "is no model reference"),
        ("a\0b", "is no model reference"),
        ("-user/repo", "is no model reference"),
        ("user/repo:sub/Q4_0", "'sub/Q4_0' is no quantisation"),
        ("hf:", "is no model reference"),
        ("~nobody-has-this-name/m", "there is no such user"),
        ("http://example.org/m.gguf", "a model is fetched by https"),
        ("http://128.0.0.1/m.gguf", "a model is fetched by https"),
        ("http://localhost.example.org/m.gguf", "a model is fetched by https"),
        ("ftp://example.org/m.gguf", "a model is fetched by https"),
        ("file:///etc/m.gguf", "names no host"),
        ("https:///m.gguf", "names no host"),
        ("https://example.org:port/m.gguf", "is no valid URL"),
        ("https://[::1/m.gguf", "is no valid URL"),
        ("https://me:secret@example.org/m.gguf", "a URL with a password"),
        ("https://example.org/m.bin", "does not end in .gguf"),
        ("https://example.org/", "does not end in .gguf"),
        ("https://example.org/m.gguf#sha256=12", "expected #sha256= and 64 hexadecimal digits"),
        ("https://example.org/m.gguf#md5=12", "expected #sha256= and 64 hexadecimal digits"),
    ],
)
def test_what_is_no_reference_says_what_would_be(text: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(text, exists=nothing_exists)
    assert words in caught.value.message


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(BadRequest) as caught:
        parse("https://me:secret@example.org/m.gguf")
    assert "secret" not in caught.value.message


def test_what_exists_is_a_path_and_hf_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "repo").mkdir(parents=True)
    assert parse("user/repo") == File(tmp_path / "user/repo")
    assert parse("hf:user/repo") == Hub("user/repo")
    assert parse("user/other") == Hub("user/other")


def test_a_name_that_no_file_can_have_is_no_path() -> None:
    with pytest.raises(BadRequest):
        parse("x" * 5000)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("built-in", "built-in"),
        ("/m/Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B-Q8_0"),
        ("/m/big-00001-of-00003.gguf", "big"),
        ("/m/two words.gguf", "two-words"),
        ("/m/.gguf", "model"),
        ("user/Qwen3-0.6B-GGUF", "Qwen3-0.6B"),
        ("user/Qwen3-0.6B-GGUF:Q8_0", "Qwen3-0.6B-Q8_0"),
        ("user/repo:sub/m-Q4_0.gguf", "m-Q4_0"),
        ("https://example.org/d/m%20x.gguf?a=1", "m-x"),
    ],
)
def test_the_default_name_is_short_and_plain(text: str, name: str) -> None:
    assert default_name(parse(text, exists=nothing_exists)) == name


def test_part_names_follow_the_first() -> None:
    assert part_names("m-00001-of-00003.gguf") == tuple(f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    assert part_names("m.gguf") == ("m.gguf",)
    assert part_names("m-00004-of-00003.gguf") == ("m-00004-of-00003.gguf",)


def test_a_url_is_shown_without_its_query() -> None:
    assert shown_url("https://h/m.gguf?signature=secret") == "https://h/m.gguf"


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_bad_request(text: str) -> None:
    try:
        ref = parse(text)
    except BadRequest:
        return
    assert default_name(ref)
