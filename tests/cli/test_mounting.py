"""`llamboctl mount` and `umount`: what is called, what is refused, and a real mount where the machine can."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from llambo.cli import mounting
from llambo.core.errors import LlamboError
from tests.cli.daemons import cluster, ctl
from tests.cli.fake_daemon import fake_daemon
from tests.cli.programs import run

CAN_MOUNT = (os.geteuid() == 0 and mounting.has_kernel_9p()) or shutil.which("9pfuse") is not None


def test_the_kernel_is_taken_where_it_can_and_9pfuse_else() -> None:
    words = mounting.mount_words("/r/styx.sock", Path("/mnt"), kernel=True, fuse="/bin/9pfuse", uid=0)
    assert words[:4] == ["mount", "-t", "9p", "-o"]
    assert {"trans=unix", "version=9p2000"} <= set(words[4].split(","))
    assert words[5:] == ["/r/styx.sock", "/mnt"]
    words = mounting.mount_words("/r/styx.sock", Path("/mnt"), kernel=False, fuse="/bin/9pfuse", uid=1)
    assert words == ["/bin/9pfuse", "unix!/r/styx.sock", "/mnt"]
    with pytest.raises(LlamboError, match=r"modprobe 9p.*9pfuse of plan9port"):
        mounting.mount_words("/r/styx.sock", Path("/mnt"), kernel=False, fuse=None, uid=1)


def test_what_is_mounted_is_read_from_the_mount_table() -> None:
    table = (
        "36 35 0:32 / /mnt/a rw - 9p /r/styx.sock rw,trans=unix\n"
        "37 35 0:33 / /mnt/two\\040words rw shared:1 - fuse.9pfuse 9pfuse rw\n"
        "38 35 0:34 / /mnt/c rw - ext4 /dev/sda1 rw\n"
    )
    kinds = {where: mounting.mounted_kind(where, table) for where in ("/mnt/a", "/mnt/two words", "/mnt/c", "/mnt")}
    assert kinds == {"/mnt/a": "9p", "/mnt/two words": "fuse.9pfuse", "/mnt/c": None, "/mnt": None}
    assert mounting.umount_words(Path("/mnt/a"), kind="9p", fuse="fusermount3") == ["umount", "/mnt/a"]
    assert mounting.umount_words(Path("/b"), kind="fuse", fuse="fusermount3") == ["fusermount3", "-u", "/b"]


def test_a_directory_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with fake_daemon():
        for where, status, complaint in (("none", 2, "is no directory: make it first"), ("full", 1, "is not empty")):
            done = run("llamboctl", "mount", tmp_path / where)
            assert (done.returncode, done.stdout) == (status, "")
            assert complaint in done.stderr
    done = run("llamboctl", "umount", tmp_path / "full")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing of ours is mounted at" in done.stderr
    assert run("llamboctl", "mount", tmp_path).returncode == 3


@pytest.mark.skipif(CAN_MOUNT, reason="this machine can mount")
def test_without_a_way_to_mount_it_says_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with fake_daemon():
        done = run("llamboctl", "mount", tmp_path / "m")
    assert (done.returncode, done.stdout) == (1, "")
    assert "install 9pfuse of plan9port" in done.stderr


@pytest.mark.skipif(not CAN_MOUNT, reason="neither root with the kernel's 9p, nor 9pfuse")
def test_a_mounted_cluster_is_files_and_umount_leaves_nothing(tmp_path: Path) -> None:
    where = tmp_path / "n"
    where.mkdir()
    with cluster():
        try:
            assert ctl("mount", where) == f"{where}\n"
            assert "state ready\n" in (where / "status").read_text()
            (where / "ctl").write_text("spawn 1 tiny\n")
            assert sorted(path.name for path in (where / "nodes").iterdir()) == ["n1", "n2"]
            with pytest.raises(OSError, match="rgument"):
                (where / "ctl").write_text("explode\n")
            assert (where / "error").read_text().startswith("invalid argument: unknown command 'explode'; there are ")
        finally:
            assert ctl("umount", where) == ""
        assert list(where.iterdir()) == []
