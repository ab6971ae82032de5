"""`llamboctl engine`: what it prints, what it refuses, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from llambo.core import paths
from llambo.engine import backend, backend_store
from llambo.engine.processor import this_machine
from tests.cli.programs import command, run
from tests.engine.backends import (
    SAME_AS_WHEEL,
    needs_cmake,
    needs_compiler,
    put_backend,
    runnable_variant,
    source_archive,
)


def test_with_nothing_built_show_says_how_to_build() -> None:
    done = run("llamboctl", "engine", "show")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"xllamacpp {backend.wheel_version()}" in done.stdout
    assert "`llamboctl engine build` makes backends for this processor" in done.stdout
    assert not paths.home().exists()


@needs_compiler
def test_show_as_json_has_the_backends_with_their_state_the_devices_and_what_was_measured() -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=False)
    facts = json.loads(run("llamboctl", "engine", "show", "--json").stdout)
    (built,) = facts["backends"]
    assert (built["name"], built["state"], built["reason"]) == (directory.name, "set aside", "why")
    assert facts["machine"] == this_machine()
    assert "CPU" in {device["kind"] for device in facts["devices"]}
    assert (facts["choices"], facts["problem"]) == ([], "")


def test_tune_measures_and_show_tells_it(tiny_model: Path) -> None:
    done = run("llamboctl", "engine", "tune", str(tiny_model), "--limit", "15", "--slots", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tiny_model} (slots=2 threads=1): backend of the wheel, 1 threads")
    shown = run("llamboctl", "engine", "show").stdout
    assert f"{tiny_model.name} (slots=2 threads=1): backend of the wheel" in shown


def test_tune_refuses_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("no model")
    done = run("llamboctl", "engine", "tune", tmp_path / "bad.gguf")
    assert (done.returncode, done.stdout) == (1, "")
    assert "bad.gguf" in done.stderr


def test_without_tools_everything_that_is_missing_is_listed(tmp_path: Path) -> None:
    # Tools beside this Python count too; the test environment has none.
    done = run("llamboctl", "engine", "build", "--variant", runnable_variant(), PATH=str(tmp_path), CC="", CXX="")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the engine cannot be built here; missing: a C and C++ compiler" in done.stderr
    assert "rust" not in done.stderr.lower()


def test_an_unknown_variant_is_bad_usage_and_names_those_that_there_are() -> None:
    done = run("llamboctl", "engine", "build", "--variant", "avx1024")
    assert done.returncode == 2
    assert "there is no backend called 'avx1024'" in done.stderr


def test_a_source_that_is_no_file_is_bad_usage(tmp_path: Path) -> None:
    done = run("llamboctl", "engine", "build", "--variant", runnable_variant(), "--source", tmp_path / "none")
    assert done.returncode == 2
    assert "is no file" in done.stderr


@needs_cmake
def test_a_registry_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    environment = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "no_proxy": "*"}
    done = run("llamboctl", "engine", "build", "--variant", runnable_variant(), **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the package registry cannot be reached" in done.stderr
    assert "give it with --source" in done.stderr


@needs_cmake
def test_a_build_that_fails_its_test_is_set_aside_and_exits_1(tmp_path: Path) -> None:
    archive = source_archive(tmp_path / "a.tar.gz", code="int nothing;")
    done = run("llamboctl", "engine", "build", "--variant", runnable_variant(), "--source", archive)
    assert done.returncode == 1
    assert f"{runnable_variant()}: set aside: it failed its test: the loader refuses it" in done.stdout
    assert "no backend passed its test; the engine inside the wheel stays in use" in done.stderr


@needs_cmake
def test_a_build_that_is_told_to_end_leaves_nothing_half_made(tmp_path: Path) -> None:
    archive = source_archive(tmp_path / "a.tar.gz")
    build = command("llamboctl", "engine", "build", "--variant", runnable_variant(), "--source", archive)
    with subprocess.Popen(build, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "configuring\n":
                process.send_signal(signal.SIGTERM)
            said = line
    assert (process.returncode, said) == (130, "interrupted; nothing half-made is left\n")
    engines = backend_store.engines_dir(paths.home())
    assert not [path for path in engines.iterdir() if path.is_dir()]


@needs_compiler
def test_remove_takes_a_backend_and_what_is_not_there_is_bad_usage() -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    refused = run("llamboctl", "engine", "remove", "other")
    assert refused.returncode == 2
    assert f"there are {directory.name}" in refused.stderr
    assert run("llamboctl", "engine", "remove", directory.name).stdout == "removed 1 backend\n"
    assert not directory.exists()
    assert json.loads(run("llamboctl", "engine", "remove", "--json").stdout) == {"removed": 0}


@pytest.mark.skipif(not os.environ.get("LLAMBO_TEST_BUILD"), reason="minutes of compiling; set LLAMBO_TEST_BUILD")
@pytest.mark.timeout(540)
def test_the_real_engine_is_built_tested_and_measured() -> None:
    assert shutil.which("cmake")
    done = subprocess.run(
        command("llamboctl", "engine", "build", "--json"), capture_output=True, text=True, check=False, timeout=1700
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert {one["state"] for one in facts["built"]} <= {"trusted"}
