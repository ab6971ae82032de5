"""Where things are kept, and for whose eyes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llambo.core import paths
from llambo.core.errors import BadConfig, Refused


def test_a_home_of_its_own_has_a_runtime_directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.setenv("LLAMBO_HOME", "/a")
    assert paths.runtime_dir() == Path("/a/run")
    monkeypatch.delenv("LLAMBO_HOME")
    assert paths.runtime_dir() == Path("/run/user/1/llambo")
    monkeypatch.setenv("LLAMBO_RUNTIME_DIR", "/elsewhere")
    assert paths.runtime_dir() == Path("/elsewhere")


def test_private_directories_are_for_their_owner_alone(tmp_path: Path) -> None:
    for _ in ("made", "found"):
        assert paths.make_private_dir(tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(Refused, match="can be entered by others"):
        paths.make_private_dir(tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o755, "it is not ours to change"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadConfig, match="file is in the way"):
        paths.make_private_dir(tmp_path / "file")
    with pytest.raises(BadConfig, match="cannot create"):
        paths.make_private_dir(tmp_path / "file" / "below")


def test_a_directory_moves_to_where_socket_paths_fit(tmp_path: Path) -> None:
    near = paths.make_short_private_dir(tmp_path / "r", "x-", "s")
    deep = paths.make_short_private_dir(tmp_path / ("d" * 90), "x-", "s")
    try:
        assert near.parent == tmp_path / "r"
        assert deep.name.startswith(f"{paths.OVERFLOW_PREFIX}x-")
        assert len(str(deep / "s")) <= paths.SOCKET_PATH_MAX
        assert not list((tmp_path / ("d" * 90)).iterdir())
    finally:
        deep.rmdir()
