"""The choice by measurement: what wins, what is not risked, and a real race."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llambo.core import paths
from llambo.core.errors import BadConfig, BadModel
from llambo.core.sections import Engine
from llambo.engine import backend_store, calibrate, choices, gguf, measure, memory, tune
from llambo.engine.backend_store import State
from llambo.engine.backend_variants import VARIANTS, missing_features
from llambo.engine.choices import Choice
from llambo.engine.engines import Engines
from llambo.engine.measure import NotMeasured
from llambo.engine.policy import (
    EnginePolicy,
    Shape,
    niceness_of,
    parse_cpus,
    share_of_threads,
    threads_of_type,
)
from llambo.engine.processor import allowed_cores, this_processor
from llambo.engine.trial import Setting, Trial
from llambo.engine.tune import Measured, Sample
from tests.engine.backends import CRASHES_WHEN_USED, SAME_AS_WHEEL, needs_compiler, put_backend

PLAIN = Setting("m.gguf", threads=2)
BUILT = replace(PLAIN, backend="/e/cascadelake")
MIB = 2**20


def _measured(setting: Setting, *rates: tuple[float, float], private_bytes: int = 10 * MIB) -> Measured:
    return Measured(setting, tuple(Sample(*rate) for rate in rates), private_bytes)


def _winner(plain: Measured, *others: Measured, is_small: bool = False) -> Setting:
    return tune.choose(plain, others, is_small=is_small).measured.setting


def test_what_is_clearly_faster_wins() -> None:
    assert _winner(_measured(PLAIN, (100, 10)), _measured(BUILT, (200, 15))) is BUILT


def test_within_the_noise_the_plain_wheel_stays() -> None:
    assert _winner(_measured(PLAIN, (100, 10)), _measured(BUILT, (104, 10.4))) is PLAIN


def test_what_is_slower_in_one_of_the_two_is_never_chosen() -> None:
    assert _winner(_measured(PLAIN, (100, 10)), _measured(BUILT, (300, 9.6))) is PLAIN
    assert _winner(_measured(PLAIN, (100, 10)), _measured(BUILT, (96, 30))) is PLAIN


def test_what_is_slower_with_all_slots_at_work_is_never_chosen() -> None:
    plain = Measured(PLAIN, (Sample(100, 10, together_tps=40),))
    more = replace(PLAIN, threads=4)
    assert _winner(plain, Measured(more, (Sample(300, 30, together_tps=38),))) is PLAIN
    assert _winner(plain, Measured(more, (Sample(300, 30, together_tps=40),))) is more
    judged = tune.judge(plain, Measured(more, (Sample(800, 20, together_tps=20),)))
    assert (judged.together, judged.worst, judged.score) == (0.5, 0.5, pytest.approx(2))


def test_rounds_are_compared_with_the_round_beside_them_so_a_busy_machine_slows_both() -> None:
    plain = _measured(PLAIN, (100, 10), (20, 2), (90, 9))
    built = _measured(BUILT, (150, 15), (30, 3), (135, 13.5))
    judged = tune.judge(plain, built)
    assert (judged.prefill, judged.decode) == (pytest.approx(1.5), pytest.approx(1.5))


def test_with_as_many_threads_processor_time_decides_and_others_at_work_do_not() -> None:
    plain = Measured(PLAIN, (Sample(100, 10, 200, 60), Sample(100, 10, 200, 60)))
    disturbed = (Sample(90, 3, 700, 60), Sample(95, 4, 700, 61))
    assert tune.judge(plain, Measured(BUILT, disturbed)).prefill == pytest.approx(3.5)
    assert tune.choose(plain, [Measured(BUILT, disturbed)], is_small=False).measured.setting is BUILT
    fewer = replace(BUILT, threads=1)
    assert tune.choose(plain, [Measured(fewer, disturbed)], is_small=False).measured.setting is PLAIN


def test_where_processor_time_is_not_known_the_clock_decides() -> None:
    plain = Measured(PLAIN, (Sample(100, 10, 200, 60),))
    assert tune.judge(plain, Measured(BUILT, (Sample(150, 15),))).prefill == pytest.approx(1.5)


def test_one_disturbed_round_decides_nothing() -> None:
    plain = _measured(PLAIN, (100, 10), (100, 10), (100, 10))
    assert _winner(plain, _measured(BUILT, (100, 10), (900, 90), (100, 10))) is PLAIN


def test_what_wins_in_half_of_the_rounds_alone_is_not_chosen() -> None:
    plain = _measured(PLAIN, (100, 10), (100, 10), (100, 10), (100, 10))
    assert _winner(plain, _measured(BUILT, (150, 15), (150, 15), (99, 9.9), (99, 9.9))) is PLAIN


def test_the_best_of_several_wins() -> None:
    one, two = replace(PLAIN, backend="/e/one"), replace(PLAIN, backend="/e/two")
    plain = _measured(PLAIN, (100, 10))
    assert _winner(plain, _measured(one, (200, 20)), _measured(two, (250, 21))) is two


def test_many_small_nodes_prefer_less_private_memory() -> None:
    plain = _measured(PLAIN, (100, 10), private_bytes=22 * MIB)
    greedy = _measured(BUILT, (200, 15), private_bytes=137 * MIB)
    modest = _measured(BUILT, (200, 15), private_bytes=30 * MIB)
    assert _winner(plain, greedy, is_small=True) is PLAIN
    assert _winner(plain, modest, is_small=True) is BUILT
    assert _winner(plain, greedy, is_small=False) is BUILT


def test_all_threads_and_half_of_them_are_tried() -> None:
    assert tune.thread_counts(8) == (8, 4)
    assert tune.thread_counts(2) == (2, 1)
    assert tune.thread_counts(1) == (1,)


@pytest.mark.parametrize(
    ("wanted", "nodes", "threads"), [(0, 1, 0), (4, 1, 4), (0, 2, 4), (2, 2, 2), (8, 3, 2), (8, 100, 1), (0, 8, 1)]
)
def test_nodes_together_have_no_more_threads_than_there_are_cores(wanted: int, nodes: int, threads: int) -> None:
    assert share_of_threads(wanted, nodes=nodes, cores=8) == threads
    assert nodes == 1 or nodes > 8 or nodes * threads <= 8


@pytest.mark.parametrize(
    ("nodes", "niceness"), [(0, 0), (1, 0), (4, 0), (5, 1), (8, 4), (16, 7), (100, 15), (1000, 19), (10**6, 19)]
)
def test_many_nodes_weigh_as_much_as_a_few_processes(nodes: int, niceness: int) -> None:
    assert niceness_of(nodes=nodes, cores=2) == niceness
    weight_per_core = nodes / 2 / 1.25**niceness
    assert weight_per_core <= 2.01 or niceness == 19


@pytest.mark.parametrize(
    ("configured", "few", "expected"),
    [(4, 0, (2, True)), (4, 1, (1, True)), (0, 0, (0, True)), (6, 0, (6, False)), (6, 1, (6, False))],
)
def test_a_type_s_own_number_of_threads_is_what_it_is_and_the_shipped_one_a_default(
    configured: int, few: int, expected: tuple[int, bool]
) -> None:
    assert threads_of_type(configured, shipped=4, few=few, cores=2) == expected


def test_cores_are_read_as_ranges_and_what_is_not_here_is_left_out() -> None:
    first = min(allowed_cores())
    assert parse_cpus("") == ()
    assert parse_cpus(f"{first},{first}-{first}") == (first,)
    assert parse_cpus("0-65535") == tuple(sorted(allowed_cores()))


def test_cores_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadConfig, match=r"engine\.cpus: 3-1 goes backwards; write 1-3"):
        parse_cpus("3-1")
    with pytest.raises(BadConfig, match="none of 60000 can be used here"):
        parse_cpus("60000")


def test_the_policy_is_what_the_configuration_says() -> None:
    section = Engine(backend="wheel", calibrate=False, share_cores=False, wait="passive", numa="distribute")
    policy = EnginePolicy.of(section)
    assert policy == EnginePolicy("wheel", calibrate=False, share_cores=False, wait="passive", numa="distribute")


@pytest.fixture
def small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that ask what is measured and not how exactly: questions of a few tokens, few times."""
    monkeypatch.setattr(measure, "PREFILL_TOKENS", (16, 16))
    monkeypatch.setattr(measure, "DECODE_TOKENS", (4, 4))
    monkeypatch.setattr(measure, "ROUNDS_MOST", 2 * measure.ROUNDS_LEAST)


@needs_compiler
def test_a_calibration_measures_within_its_time_and_is_remembered(tiny_model: Path) -> None:
    put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    engines, shape = Engines(paths.home()), Shape(slots=2, threads=1)
    assert engines.lacks_choice(tiny_model, shape)
    choice = calibrate.calibrate_and_remember(engines, tiny_model, shape, limit_s=30.0)
    assert choice.rounds >= measure.ROUNDS_LEAST
    assert choice.prefill_tps > 0 and choice.decode_tps > 0 and choice.private_bytes > 0
    assert not engines.lacks_choice(tiny_model, shape)
    assert engines.choices().find(choices.fingerprint(tiny_model), shape) == choice


@pytest.mark.usefixtures("small_rounds")
def test_a_small_model_has_the_threads_that_were_asked_for_however_long_it_is_measured(tiny_model: Path) -> None:
    told: list[str] = []
    choice = measure.calibrate(
        tiny_model, Shape(slots=1, threads=2), [], limit_s=60.0, thorough=True, progress=told.append
    )
    assert choice.threads == 2
    assert told == ["0 backends", "flash attention", "batches"]


@needs_compiler
@pytest.mark.usefixtures("small_rounds")
def test_a_backend_that_crashes_while_it_is_measured_is_not_chosen(tiny_model: Path) -> None:
    directory = put_backend(paths.home(), CRASHES_WHEN_USED, trusted=True)
    (built,) = Engines(paths.home()).built()
    choice = measure.calibrate(tiny_model, Shape(slots=1, threads=2), [built], limit_s=30.0)
    assert choice.backend != directory.name


def test_numbers_of_threads_are_not_compared_while_others_use_the_machine(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gguf.read(tiny_model)
    base = measure.plain_setting(model, Shape(slots=1, threads=1))
    rival = replace(base, threads=2)

    class SlowWithTwo(measure.Race):
        """Small questions, of which two threads are told to take ten times as long: they lose where it is asked."""

        def _sample(self, trial: Trial, number: int, sizes: tuple[int, int], *, together: bool) -> Sample:
            super()._sample(trial, number, (16, 4), together=together)
            rate = 100.0 if trial.setting == rival else 1000.0
            return Sample(rate, rate)

    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in allowed_cores()]
    try:
        monkeypatch.setattr(measure, "BUSY_SHARE", 0.02)  # the spinners themselves may have to wait
        race = SlowWithTwo(model.n_vocab, is_small=False)
        assert race.run(rival, [base], until=time.monotonic() + 60).measured.setting == rival
        monkeypatch.setattr(measure, "BUSY_SHARE", 2.0)
        assert race.run(rival, [base], until=time.monotonic() + 60).measured.setting == base
    finally:
        for one in spinners:
            one.kill()
            one.wait()


def test_rounds_become_shorter_where_the_machine_becomes_slower(tiny_model: Path) -> None:
    asked: list[tuple[int, int]] = []

    class Slower(measure.Race):
        def _sample(self, trial: Trial, number: int, sizes: tuple[int, int], *, together: bool) -> Sample:
            asked.append(sizes)
            rate = 1000.0 if number < 2 else 100.0
            return Sample(rate, rate)

    base = measure.plain_setting(gguf.read(tiny_model), Shape(slots=1, threads=1))
    Slower(512, is_small=False).run(base, [], until=time.monotonic() + 60)
    assert asked[:2] == [(16, 4), (250, 250)]
    assert asked[3:] == [(25, 25)] * (measure.ROUNDS_MOST - 3)


@pytest.mark.usefixtures("small_rounds")
def test_all_slots_are_put_to_work_where_numbers_of_threads_are_compared(tiny_model: Path) -> None:
    model = gguf.read(tiny_model)
    base = measure.plain_setting(model, Shape(slots=3, threads=1))

    def samples(rival: Setting) -> tuple[Sample, ...]:
        race = measure.Race(model.n_vocab, is_small=False)
        return race.run(base, [rival], until=time.monotonic() + 60).measured.samples

    assert all(one.together_tps > 0 for one in samples(replace(base, threads=2)))
    assert not any(one.together_tps for one in samples(replace(base, batch=128)))


def test_too_little_time_is_told_and_nothing_is_remembered(tiny_model: Path) -> None:
    with pytest.raises(NotMeasured):
        calibrate.calibrate_and_remember(Engines(paths.home()), tiny_model, Shape(1, 1), limit_s=0.001)
    assert not (paths.home() / "engines" / "choices.json").exists()


def test_what_the_plain_engine_says_is_told_where_it_cannot_open_the_model(tiny_model: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(tiny_model.read_bytes().replace(b"blk.0.attn_q.", b"blk.0.attn_x."))
    with pytest.raises(NotMeasured, match=r"^the engine inside the wheel does not open the model: (?!.*in time)"):
        measure.calibrate(strange, Shape(1, 1), [], limit_s=30.0)


def test_a_calibration_ends_by_itself_while_somebody_holds_its_input(tiny_model: Path) -> None:
    order = {"home": str(paths.home()), "model": str(tiny_model.with_name("none.gguf")), "shape": asdict(Shape(1, 1))}
    command = [sys.executable, "-m", "llambo.engine.calibrate", json.dumps(order)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert "problem" in json.loads(process.stdout.read())
        assert process.wait(30) == 1


def test_a_model_that_is_none_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    with pytest.raises(BadModel):
        measure.calibrate(tmp_path / "bad.gguf", Shape(1, 1), [], limit_s=5.0)


@needs_compiler
def test_a_choice_is_applied_within_what_the_node_may_have(tiny_model: Path) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    engines, shape = Engines(paths.home()), Shape(slots=2, threads=2)
    chosen = Choice(backend=directory.name, threads=2, batch=256, flash_attention="off")
    engines.choices().remember(choices.fingerprint(tiny_model), "tiny", shape, chosen)
    opening = engines.opening(tiny_model, shape=shape, threads=0, batch=512)
    assert (opening.backend, opening.threads, opening.batch, opening.flash_attention) == (str(directory), 2, 256, "off")
    usually_one = engines.opening(tiny_model, shape=shape, threads=1, batch=128)
    assert (usually_one.threads, usually_one.batch) == (2, 128)
    less = engines.opening(tiny_model, shape=Shape(slots=2, threads=1), threads=1, batch=128)
    assert (less.threads, less.backend) == (1, ""), "nothing was measured with one"
    asked = engines.opening(tiny_model, shape=shape, threads=3, batch=512, may_change_threads=False)
    assert (asked.backend, asked.threads) == (str(directory), 3)


@needs_compiler
def test_a_choice_for_a_backend_that_is_gone_or_set_aside_is_no_choice(tiny_model: Path) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    engines, shape = Engines(paths.home()), Shape(slots=2, threads=2)
    engines.choices().remember(choices.fingerprint(tiny_model), "tiny", shape, Choice(directory.name, 2, 256))
    (built,) = engines.built()
    engines.disable(directory, "0" * 64, "a node that used what lay here before crashed")
    assert [one.state for one in (*engines.built(), *Engines(paths.home()).built())] == [State.TRUSTED] * 2
    engines.disable(directory, built.library_sha256, "a node that used it crashed")
    for seen in (engines, Engines(paths.home())):  # in this process, and in the next one
        opening = seen.opening(tiny_model, shape=shape, threads=2, batch=512)
        assert (opening.backend, opening.threads, opening.batch) == ("", 2, 512)
        assert not seen.lacks_choice(tiny_model, shape)  # there is nothing to measure against


@needs_compiler
def test_a_choice_is_made_anew_when_there_is_another_backend_to_compare(tiny_model: Path) -> None:
    put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    engines, shape = Engines(paths.home()), Shape(slots=2, threads=2)
    choice = Choice(compared=backend_store.name_of_all(engines.built()))
    engines.choices().remember(choices.fingerprint(tiny_model), "tiny", shape, choice)
    assert not engines.lacks_choice(tiny_model, shape)
    another = next(one.name for one in reversed(VARIANTS) if not missing_features(one, this_processor()))
    put_backend(paths.home(), SAME_AS_WHEEL, name=another)
    assert engines.lacks_choice(tiny_model, shape), "the new one was not there"


@pytest.mark.usefixtures("small_rounds")
def test_no_more_engines_are_measured_than_there_is_memory_for(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shape = gguf.read(tiny_model), Shape(slots=1, threads=2)
    need = memory.needed(model, ctx=measure.CTX, slots=1).private_bytes
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * need - 1)
    with pytest.raises(NotMeasured, match=r"two engines take \d+ MiB and \d+ MiB are free"):
        measure.calibrate(tiny_model, shape, [], limit_s=30.0)
    open_at_once, now = [], 0

    class Counted(Trial):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            nonlocal now
            super().__init__(*arguments, **more)
            now += 1
            open_at_once.append(now)

        def close(self) -> None:
            nonlocal now
            now -= self._process is not None and self._process.poll() is None
            super().close()

    monkeypatch.setattr(measure, "Trial", Counted)
    base = measure.plain_setting(model, shape)
    rivals = [replace(base, threads=1), replace(base, batch=64), replace(base, batch=256)]
    race = measure.Race(model.n_vocab, is_small=False, at_once=2)
    assert race.run(base, rivals, until=time.monotonic() + 30).measured.setting in {base, *rivals}
    assert open_at_once == [1, 2, 3, 1, 2]


@needs_compiler
def test_the_configuration_can_name_a_backend_or_forbid_all(tiny_model: Path) -> None:
    directory = put_backend(paths.home(), SAME_AS_WHEEL, trusted=True)
    for name, expected in ((directory.name, str(directory)), ("wheel", ""), ("no-such", "")):
        engines = Engines(paths.home(), EnginePolicy(backend=name))
        assert engines.opening(tiny_model, shape=Shape(1, 1), threads=1, batch=128).backend == expected
        assert not engines.lacks_choice(tiny_model, Shape(1, 1))


def test_where_nothing_was_built_nothing_is_looked_at_or_made(tiny_model: Path) -> None:
    engines = Engines(paths.home())
    opening = engines.opening(tiny_model, shape=Shape(1, 1), threads=3, batch=77)
    assert (opening.backend, opening.threads, opening.batch) == ("", 3, 77)
    assert not engines.lacks_choice(tiny_model, Shape(1, 1))
    assert not paths.home().exists()
