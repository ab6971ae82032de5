"""Nodes with a built backend: used where it is trusted, set aside where it fails, and measured in the background."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llambo.cluster.launch.base import NodeHandle, NodeRequest
from llambo.cluster.launch.engine import NodeEngines
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.launch.zygote import environment
from llambo.core import paths
from llambo.core.types import LoadOptions
from llambo.engine import backend, backend_store, choices, llama
from llambo.engine.backend_store import LIBRARY, State
from llambo.engine.backend_variants import VARIANTS, missing_features
from llambo.engine.choices import Choice
from llambo.engine.engines import Engines
from llambo.engine.measure import ROUNDS_LEAST
from llambo.engine.policy import EngineHome, EnginePolicy, Shape, share_of_threads
from llambo.engine.processor import allowed_cores, this_machine, this_processor, usable_cores
from llambo.node.spec import NodeSpec
from tests.engine.backends import (
    CRASHES_WHEN_LOADED,
    CRASHES_WHEN_USED,
    REFUSES,
    SAME_AS_WHEEL,
    needs_compiler,
    put_backend,
    write_manifest,
)

OPTIONS = LoadOptions(ctx=256, slots=2)


@asynccontextmanager
async def _launcher(tmp_path: Path, policy: EnginePolicy) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path / "run", engines=EngineHome(paths.home(), policy))
    try:
        yield launcher
    finally:
        await launcher.close()


async def _spawn(launcher: LocalLauncher, name: str, model: Path, options: LoadOptions = OPTIONS) -> NodeHandle:
    return await launcher.spawn(NodeRequest(name, str(model), options), timeout_s=60)


def _state() -> tuple[State, str]:
    (built,) = Engines(paths.home()).built()
    return built.state, built.reason


@needs_compiler
async def test_a_trusted_backend_is_used_and_the_node_says_so(tmp_path: Path, tiny_model: Path) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    async with _launcher(tmp_path, EnginePolicy(backend=directory.name)) as launcher:
        assert (await _spawn(launcher, "n1.1", tiny_model)).backend == directory.name
        assert (await _spawn(launcher, "n2.1", tiny_model)).backend == directory.name


@needs_compiler
async def test_what_was_measured_is_used_where_the_configuration_says_auto(tmp_path: Path, tiny_model: Path) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    shape = Shape.of(ctx=OPTIONS.ctx, slots=OPTIONS.slots, threads=usable_cores())
    engines = Engines(paths.home())
    engines.choices().remember(choices.fingerprint(tiny_model), "tiny", shape, Choice(directory.name, 1, 64))
    async with _launcher(tmp_path, EnginePolicy()) as launcher:
        assert (await _spawn(launcher, "n1.1", tiny_model)).backend == directory.name


@needs_compiler
async def test_an_untested_backend_is_not_used(tmp_path: Path, tiny_model: Path) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL)
    async with _launcher(tmp_path, EnginePolicy(backend=directory.name)) as launcher:
        assert (await _spawn(launcher, "n1.1", tiny_model)).backend == ""


@needs_compiler
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (CRASHES_WHEN_USED, "a node that used it crashed (SIGABRT)"),
        (CRASHES_WHEN_LOADED, "a node that used it crashed (SIGABRT)"),
        (REFUSES, "it could not be loaded: it says itself that this processor cannot run it"),
    ],
    ids=["crashes in the node", "takes the zygote along", "cannot be loaded"],
)
async def test_a_backend_that_fails_is_set_aside_and_the_node_starts_without_it(
    tmp_path: Path, tiny_model: Path, source: str, reason: str
) -> None:
    directory = put_backend(paths.home(), source, trusted=True)
    async with _launcher(tmp_path, EnginePolicy(backend=directory.name)) as launcher:
        assert (await _spawn(launcher, "n1.1", tiny_model)).backend == ""
    assert _state() == (State.SET_ASIDE, reason)


@needs_compiler
async def test_for_the_end_of_a_zygote_only_the_backend_that_it_was_loading_is_blamed(
    tmp_path: Path, tiny_model: Path, walk_model: Path
) -> None:
    first, second = [one.name for one in VARIANTS if not missing_features(one, this_processor())][:2]
    engines, shape = Engines(paths.home()), Shape.of(ctx=OPTIONS.ctx, slots=OPTIONS.slots, threads=usable_cores())
    for name, source, model in (
        (first, CRASHES_WHEN_LOADED.replace("abort()", "sleep(1); abort()"), tiny_model),
        (second, SAME_AS_WHEEL, walk_model),
    ):
        put_backend(paths.home(), source, trusted=True, name=name)
        engines.choices().remember(choices.fingerprint(model), "", shape, Choice(name))
    async with _launcher(tmp_path, EnginePolicy(calibrate=False, share_cores=False)) as launcher:
        crashing = asyncio.create_task(_spawn(launcher, "n1.1", tiny_model))
        async with asyncio.timeout(10):
            while "n1.1" not in launcher._nodes:  # its order is out, and takes the zygote a second
                await asyncio.sleep(0.002)
        handles = await asyncio.gather(crashing, _spawn(launcher, "n2.1", walk_model))
    assert [handle.backend for handle in handles] == ["", second]
    states = {one.name: one.state for one in Engines(paths.home()).built()}
    assert states == {first: State.SET_ASIDE, second: State.TRUSTED}


@needs_compiler
async def test_a_library_that_was_truncated_meanwhile_is_not_loaded(tmp_path: Path, tiny_model: Path) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    with (directory / LIBRARY).open("r+b") as file:
        file.truncate(100)
    async with _launcher(tmp_path, EnginePolicy(backend=directory.name)) as launcher:
        assert (await _spawn(launcher, "n1.1", tiny_model)).backend == ""
    assert _state()[0] is State.UNUSABLE


@needs_compiler
async def test_a_crash_in_use_disables_the_backend_and_the_next_node_has_the_wheel_s_own(
    tmp_path: Path, tiny_model: Path
) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    async with _launcher(tmp_path, EnginePolicy(backend=directory.name)) as launcher:
        node = await _spawn(launcher, "n1.1", tiny_model)
        os.kill(node.pid, signal.SIGILL)
        exit_ = await anext(aiter(launcher.watch()))
        assert exit_.name == "n1.1"
        assert (await _spawn(launcher, "n1.2", tiny_model)).backend == ""
    assert _state() == (State.SET_ASIDE, "a node that used it crashed (SIGILL)")


@needs_compiler
async def test_a_node_that_was_killed_says_nothing_about_its_backend(tmp_path: Path, tiny_model: Path) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    async with _launcher(tmp_path, EnginePolicy(backend=directory.name)) as launcher:
        node = await _spawn(launcher, "n1.1", tiny_model)
        os.kill(node.pid, signal.SIGKILL)
        await anext(aiter(launcher.watch()))
        assert (await _spawn(launcher, "n1.2", tiny_model)).backend == directory.name


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where processes that are started from here make their temporary directories."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@needs_compiler
async def test_the_first_load_does_not_wait_and_is_measured_beside_it(
    tmp_path: Path, tiny_model: Path, trials: Path
) -> None:
    put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    async with _launcher(tmp_path, EnginePolicy()) as launcher:
        assert (await _spawn(launcher, "n1.1", tiny_model)).backend == ""
        calibration = launcher._engines._calibration
        assert calibration is not None and not calibration.done()
        await asyncio.wait_for(calibration, 60)
    shape = Shape.of(ctx=OPTIONS.ctx, slots=OPTIONS.slots, threads=usable_cores())
    found = Engines(paths.home()).choices().find(choices.fingerprint(tiny_model), shape)
    # On a machine without time for it nothing is remembered.
    assert found is None or found.rounds >= ROUNDS_LEAST
    assert list(trials.iterdir()) == []


@needs_compiler
async def test_what_is_loaded_while_another_is_measured_is_measured_after_it(
    tmp_path: Path, tiny_model: Path, walk_model: Path, trials: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    caplog.set_level(logging.INFO, "llambo.launch.engine")
    async with _launcher(tmp_path, EnginePolicy()) as launcher:
        for number, model in enumerate((tiny_model, walk_model)):
            await _spawn(launcher, f"n{number}.1", model)
        calibration = launcher._engines._calibration
        assert calibration is not None and not calibration.done()
        await asyncio.wait_for(calibration, 60)
    told = [record.getMessage().split()[:2] for record in caplog.records if record.name == "llambo.launch.engine"]
    assert told == [["measured", str(tiny_model)], ["measured", str(walk_model)]]


@needs_compiler
async def test_closing_ends_a_calibration_in_progress_and_what_it_opened(
    tmp_path: Path, tiny_model: Path, trials: Path
) -> None:
    put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    async with _launcher(tmp_path, EnginePolicy()) as launcher:
        await _spawn(launcher, "n1.1", tiny_model)
        calibration = launcher._engines._calibration
        assert calibration is not None
        async with asyncio.timeout(30):
            while not list(trials.iterdir()) and not calibration.done():
                await asyncio.sleep(0.01)
        assert not calibration.done()
    assert calibration.done()
    assert list(trials.iterdir()) == []


async def test_where_nothing_was_built_nothing_is_measured(tmp_path: Path, tiny_model: Path) -> None:
    async with _launcher(tmp_path, EnginePolicy()) as launcher:
        assert (await _spawn(launcher, "n1.1", tiny_model)).backend == ""
        assert launcher._engines._calibration is None
    assert not backend_store.engines_dir(paths.home()).exists()


async def test_nodes_that_share_the_machine_share_its_cores(tmp_path: Path, tiny_model: Path) -> None:
    count = usable_cores()
    options = LoadOptions(ctx=256, slots=1)
    async with _launcher(tmp_path, EnginePolicy()) as launcher:
        await asyncio.gather(*(_spawn(launcher, f"n{n}.1", tiny_model, options) for n in range(max(2, count))))
        threads = [node.spec.threads for node in launcher._nodes.values()]
    assert min(threads) >= 1 and sum(threads) <= max(2, count)


@pytest.mark.parametrize("asked", [usable_cores(), usable_cores() + 3])
async def test_a_number_of_threads_that_was_asked_for_is_not_shared(asked: int) -> None:
    engines = NodeEngines(EngineHome(paths.home()))
    spec = NodeSpec("n1.1", "d", "log", "m.gguf", ctx=256, slots=1, threads=asked, threads_by_default=False)
    assert (await engines.complete(spec, nodes=8)).threads == asked
    by_default = await engines.complete(dataclasses.replace(spec, threads_by_default=True), nodes=8)
    assert by_default.threads == share_of_threads(asked, nodes=8)
    unsaid = await engines.complete(dataclasses.replace(spec, threads=0), nodes=8)
    assert unsaid.threads == share_of_threads(0, nodes=8)


async def test_threads_stay_as_asked_for_where_cores_are_not_to_be_shared(tmp_path: Path, tiny_model: Path) -> None:
    async with _launcher(tmp_path, EnginePolicy(share_cores=False)) as launcher:
        for name in ("n1.1", "n2.1"):
            await _spawn(launcher, name, tiny_model, LoadOptions(ctx=256, slots=1, threads=2))
        assert [node.spec.threads for node in launcher._nodes.values()] == [2, 2]


async def test_a_node_runs_on_the_cores_that_it_was_given(tmp_path: Path, tiny_model: Path) -> None:
    core = max(allowed_cores())
    async with _launcher(tmp_path, EnginePolicy(cpus=(core,), numa="distribute", flash_attention="off")) as launcher:
        node = await _spawn(launcher, "n1.1", tiny_model)
        assert os.sched_getaffinity(node.pid) == {core}


def test_how_idle_threads_wait_is_the_user_s_choice_then_the_configuration_s_then_by_how_busy_it_is() -> None:
    def spin(ours: dict[str, str], **more: object) -> dict[str, str]:
        found = environment(ours, **more)  # type: ignore[arg-type]
        return {name: value for name, value in found.items() if name in {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}}

    assert spin({"OMP_WAIT_POLICY": "active"}, wait="passive") == {"OMP_WAIT_POLICY": "active"}
    assert spin({}, wait="passive") == {"OMP_WAIT_POLICY": "passive"}
    assert spin({}, wait="active") == {"OMP_WAIT_POLICY": "active"}
    assert spin({}) == llama.SPIN_ENVIRONMENT
    assert spin({}, is_shared=True) == llama.SHARED_SPIN_ENVIRONMENT


@needs_compiler
def test_a_verdict_of_this_machine_is_what_nodes_go_by() -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL)
    backend_store.note_verdict(directory, machine="another", trusted=True)
    assert _state()[0] is State.UNTESTED
    backend_store.note_verdict(directory, machine=this_machine(), trusted=True)
    assert _state()[0] is State.TRUSTED


async def test_nodes_have_the_number_of_threads_that_was_asked_for(tmp_path: Path, tiny_model: Path) -> None:
    asked = usable_cores() + 1
    options = LoadOptions(ctx=256, slots=1, threads=asked)
    async with _launcher(tmp_path, EnginePolicy()) as launcher:
        for name in ("n1.1", "n2.1"):
            await _spawn(launcher, name, tiny_model, options)
        assert [node.spec.threads for node in launcher._nodes.values()] == [asked, asked]
        await _spawn(launcher, "n3.1", tiny_model, dataclasses.replace(options, threads_by_default=True))
        assert launcher._nodes["n3.1"].spec.threads == 1


@needs_compiler
async def test_what_a_node_may_have_stays_its_shape_when_it_was_given_less(tiny_model: Path) -> None:
    put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    home = EngineHome(paths.home())
    shape = Shape.of(ctx=512, slots=4, threads=usable_cores())
    home.open().choices().remember(choices.fingerprint(tiny_model), "tiny", shape, Choice(threads=1))
    spec = NodeSpec("n1.1", "d", "log", str(tiny_model), ctx=512, slots=4)
    for usual in (0, usable_cores()):
        completed = await NodeEngines(home).complete(dataclasses.replace(spec, threads=usual), nodes=1)
        assert (completed.threads, completed.most_threads) == (1, usable_cores())


@needs_compiler
def test_a_backend_for_another_wheel_or_of_another_build_is_not_for_this_process() -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL)
    with pytest.raises(backend.NotHere, match="was built again"):
        backend.prepare(directory, library_sha256="0" * 64)
    write_manifest(directory, version="2027.1.99999")
    with pytest.raises(backend.NotHere, match=r"built for llama\.cpp b99999 and this process has b\d+: restart Llambo"):
        backend.prepare(directory)


@needs_compiler
async def test_a_node_whose_backend_was_built_again_has_the_wheel_s_own_and_nothing_is_set_aside(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    opening = Engines.opening

    def before_it_was_built_again(engines: Engines, *arguments: Any, **more: Any) -> Any:
        return dataclasses.replace(opening(engines, *arguments, **more), library_sha256="0" * 64)

    monkeypatch.setattr(Engines, "opening", before_it_was_built_again)
    async with _launcher(tmp_path, EnginePolicy(backend=directory.name)) as launcher:
        handle = await _spawn(launcher, "n1.1", tiny_model)
        assert handle.backend == ""
    assert _state()[0] is State.TRUSTED
