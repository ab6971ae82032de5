from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from llambo.core.errors import BadConfig, BadRequest, NotFound
from llambo.core.tokens import AccessToken, TokenStore


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "tokens.json"


def test_a_new_token_is_verified_and_a_wrong_one_is_not(file: Path) -> None:
    store = TokenStore(file, now=lambda: 1000.0)
    token_id, secret = store.create("infer")
    assert secret.startswith("llb_")
    assert store.verify(secret) == AccessToken(token_id, "infer", 1000.0, None)
    assert store.verify(secret[:-1]) is None
    assert store.verify("") is None
    assert store.verify("\ud800") is None


def test_the_file_is_private_and_holds_no_secret(file: Path) -> None:
    _, secret = TokenStore(file).create("admin")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert secret.removeprefix("llb_") not in file.read_text()
    assert [entry.name for entry in file.parent.iterdir()] == ["tokens.json"]


def test_an_expired_token_is_listed_but_not_verified(file: Path) -> None:
    now = 1000.0
    store = TokenStore(file, now=lambda: now)
    token_id, secret = store.create("read", expires_s=60)
    now = 1059.0
    assert store.verify(secret) is not None
    now = 1060.0
    assert store.verify(secret) is None
    assert [token.id for token in store.list()] == [token_id]


def test_a_revoked_token_is_gone(file: Path) -> None:
    store = TokenStore(file)
    first, first_secret = store.create("infer")
    second, second_secret = store.create("infer")
    store.revoke(first)
    assert store.verify(first_secret) is None
    assert store.verify(second_secret) is not None
    assert [token.id for token in store.list()] == [second]
    with pytest.raises(NotFound):
        store.revoke(first)


def test_what_another_process_changes_is_seen(file: Path) -> None:
    mine, other = TokenStore(file), TokenStore(file)
    assert mine.list() == ()
    token_id, secret = other.create("infer")
    assert mine.verify(secret) is not None
    other.revoke(token_id)
    assert mine.verify(secret) is None
    file.unlink()
    assert mine.list() == ()


def test_no_token_is_lost_when_many_are_made_at_once(file: Path) -> None:
    threads = [threading.Thread(target=lambda: TokenStore(file).create("infer")) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(TokenStore(file).list()) == 10


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 2, "tokens": []}',
        '{"version": 1, "tokens": [{}]}',
        '{"version":1,"tokens":[{"id":"a","scope":"god","sha256":"","created":1}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_a_clear_error(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    for call in (lambda: TokenStore(file).verify("x"), lambda: TokenStore(file).create("infer")):
        with pytest.raises(BadConfig, match=r"tokens\.json is damaged"):
            call()
    assert file.read_text() == content, "nothing is overwritten"


def test_a_damaged_file_stays_an_error_at_the_next_call(file: Path) -> None:
    store = TokenStore(file)
    _, secret = store.create("infer")
    file.write_text("{")
    for _ in range(2):
        with pytest.raises(BadConfig):
            store.verify(secret)


def test_a_directory_in_the_file_s_place_is_a_clear_error(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(BadConfig, match="cannot be read"):
        TokenStore(file).list()


def test_bad_arguments_are_refused(file: Path) -> None:
    with pytest.raises(BadRequest, match="scope"):
        TokenStore(file).create("root")  # type: ignore[arg-type]
    for expires_s in (0, -1, float("nan")):
        with pytest.raises(BadRequest, match="expire"):
            TokenStore(file).create("infer", expires_s=expires_s)
