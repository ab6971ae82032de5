"""`pull` and `models` as programs see them: what is on which stream, and the exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from file_server import FileServer, Served
from gguf_files import write_model

from llambo.cli import common, models
from llambo.core import paths


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    app = typer.Typer()
    models.register(app)

    def run(*arguments: str) -> tuple[int, str, str]:
        before = sys.argv
        sys.argv = ["llamboctl", *arguments]
        try:
            with pytest.raises(SystemExit) as left:
                common.run("llamboctl", app)
        finally:
            sys.argv = before
        streams = capsys.readouterr()
        return int(left.value.code or 0), streams.out, streams.err

    return run


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(server: FileServer, tmp_path: Path) -> str:
    content = write_model(tmp_path / "content.gguf").read_bytes()
    server.files["/m.gguf"] = Served(content)
    return f"{server.url}/m.gguf"


def test_pull_prints_the_path_alone_and_says_on_the_side_what_it_does(run: Run, url: str) -> None:
    status, out, err = run("pull", url)
    assert status == 0
    assert Path(out.rstrip("\n")).read_bytes().startswith(b"GGUF")
    assert err.startswith(f"fetching {url} (")
    assert len(err.splitlines()) == 1
    assert run("pull", url) == (0, out, "")


def test_pull_as_json_is_one_document(run: Run, url: str) -> None:
    status, out, _ = run("pull", "--json", url)
    facts = json.loads(out)
    assert status == 0
    assert (facts["ref"], facts["name"], facts["quant"], facts["architecture"]) == (url, "m", "F16", "llama")
    assert Path(facts["path"]).stat().st_size == facts["size_bytes"]


def test_pull_of_the_built_in_model_fetches_nothing(run: Run) -> None:
    status, out, err = run("pull", "built-in")
    assert (status, err) == (0, "")
    assert out.endswith("built-in.gguf\n")


def test_pull_refuses_a_file_that_is_no_model(run: Run, tmp_path: Path) -> None:
    assert run("pull", str(tmp_path / "none.gguf")) == (
        1,
        "",
        f"llamboctl: {tmp_path / 'none.gguf'}: there is no such file\n",
    )


def test_pull_of_nonsense_is_bad_usage(run: Run) -> None:
    status, out, err = run("pull", "no such thing")
    assert (status, out) == (2, "")
    assert "user/repo[:quant]" in err


def test_pull_obeys_the_offline_setting(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_MODELS_OFFLINE", "true")
    status, _, err = run("pull", url)
    assert status == 1
    assert "offline mode" in err


def test_an_interrupted_pull_keeps_what_came(run: Run, server: FileServer, url: str) -> None:
    over = threading.Event()
    server.files["/m.gguf"].gate = lambda: over.wait(30)  # the second half does not come
    code = "from llambo.cli.llamboctl import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "pull", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as pull:
        assert pull.stderr
        assert pull.stderr.readline().startswith(f"fetching {url}")
        pull.send_signal(signal.SIGINT)
        out, err = pull.communicate(timeout=30)
    over.set()
    assert (pull.returncode, out) == (130, "")
    assert err == "interrupted; what has arrived is kept, and the same command goes on from there\n"
    (part,) = (paths.home() / "models").rglob("*.part")
    kept = part.stat().st_size
    assert kept > 0
    server.files["/m.gguf"].gate = None
    assert run("pull", url)[0] == 0
    assert server.seen[-1].range == f"bytes={kept}-"


def test_models_lists_a_table_with_references_that_work(run: Run, url: str) -> None:
    run("pull", url)
    status, out, err = run("models")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "QUANT", "ARCHITECTURE", "REFERENCE"]
    assert [line.split()[-1] for line in lines[1:]] == ["built-in", url]
    assert run("models", "list") == (0, out, "")


def test_models_as_json(run: Run, url: str) -> None:
    run("pull", url)
    for arguments in (("models", "--json"), ("models", "list", "--json")):
        _, out, _ = run(*arguments)
        listed = json.loads(out)["models"]
        assert [model["origin"] for model in listed] == ["built-in", "url"]
        assert set(listed[1]) == {"ref", "name", "path", "origin", "size_bytes", "quant", "architecture", "problem"}


def test_an_unusable_file_is_listed_and_explained(run: Run) -> None:
    bad = paths.home() / "models" / "bad.gguf"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"no model")
    status, out, err = run("models")
    assert status == 0
    assert "unusable" in out
    assert f"{bad}: this is no GGUF file" in err


def test_show_tells_what_the_header_says(run: Run) -> None:
    _, out, _ = run("models", "show", "--json", "built-in")
    facts = json.loads(out)
    assert facts["ctx_train"] > 0
    assert facts["chat_template"] is True
    status, out, _ = run("models", "show", "built-in")
    assert status == 0
    assert dict(line.split(maxsplit=1) for line in out.splitlines())["layers"] == str(facts["layers"])


def test_rm_frees_and_says_how_much(run: Run, url: str) -> None:
    run("pull", url)
    status, out, _ = run("models", "rm", url)
    assert status == 0
    assert out.startswith(f"removed {url} (")
    assert run("models", "rm", "--json", url)[0] == 1
    run("pull", url)
    _, out, _ = run("models", "rm", "--json", url)
    assert json.loads(out)["freed_bytes"] > 0


def test_rm_refuses_the_built_in_model(run: Run) -> None:
    status, _, err = run("models", "rm", "built-in")
    assert status == 2
    assert "cannot be removed" in err
