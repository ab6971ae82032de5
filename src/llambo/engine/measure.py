"""Measures ways to open an engine against each other, in turns, within a time.

Owns the questions, the turns and the clock; `tune` judges what comes out. Every engine is a process of its own, so
whatever a backend does, it does it there. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from llambo.engine import gguf, llama, memory, tune
from llambo.engine.backend_store import Built
from llambo.engine.choices import Choice
from llambo.engine.policy import Shape
from llambo.engine.trial import Setting, Trial, TrialFailed, TrialLate
from llambo.engine.tune import Judged, Measured, Sample

Progress = Callable[[str], None]
"""Told what is being measured."""

QUICK_S = 5.0
"""What a calibration in the background takes at most."""
THOROUGH_S = 60.0
ROUNDS_LEAST = 3
ROUNDS_MOST = 21
ROUNDS_MEANT = 7
PREFILL_TOKENS = (16, 448)  # at least and at most in one question
DECODE_TOKENS = (4, 448)
TOGETHER_SHARE = 4
"""With all slots at work each answers with the decode's tokens divided by so much: together they take about as long."""
SAMPLE_S = (0.03, 0.25)  # what a question's prefill, or its decode, should take
BUSY_SHARE = 0.25
"""With so much of the processor in use by others, before or meanwhile, numbers of threads are not compared: it would
measure the others."""
_BUSY_LOOK_S = 0.2
CTX = 512
"""Tokens a slot while measuring: more would only take more memory."""
_FIRST_WORD_ID = 300
"""From here on ids are ordinary words, in every vocabulary of more than a thousand."""


class NotMeasured(TrialFailed):
    """There was not enough time, or the plain wheel itself failed; the message says which."""


def plain_setting(model: gguf.ModelFile, shape: Shape) -> Setting:
    """How a node opens the model when nothing was measured."""
    return Setting(
        str(model.path),
        ctx=CTX,
        slots=shape.slots,
        threads=shape.threads,
        batch=memory.batch_tokens(model, ctx=CTX, is_small=shape.is_small),
    )


def calibrate(
    model_path: Path,
    shape: Shape,
    backends: list[Built],
    *,
    limit_s: float = QUICK_S,
    thorough: bool = False,
    niceness: int = 0,
    progress: Progress | None = None,
) -> Choice:
    """Finds the best way to open the model, within about `limit_s` seconds.

    First the backends compete; when it is to be `thorough`, then numbers of threads, flash attention and batches. A
    small model's number of threads is what the shape says: by default one (`llama.threads_for`), else somebody's wish.

    Raises: `NotMeasured`, `BadModel`, `LlamboError`.
    """
    tell = progress or (lambda _what: None)
    deadline = time.monotonic() + limit_s
    model = gguf.read(model_path)
    plain = plain_setting(model, shape)
    first = [replace(plain, backend=str(one.directory)) for one in backends]
    counts: tuple[int, ...] = ()
    if thorough and not llama.threads_for(model.tensor_bytes) and busy_share() < BUSY_SHARE:
        counts = tune.thread_counts(shape.threads)
    tell(f"{len(backends)} backends")
    race = Race(model.n_vocab, is_small=shape.is_small, niceness=niceness, at_once=_room(model, shape))
    best = race.run(plain, first, until=_share(deadline, 2 if thorough else 1))
    for stage in range(3 if thorough else 0):
        now = best.measured.setting
        what, tries = (
            ("threads", [replace(now, threads=n) for n in counts]),
            ("flash attention", [replace(now, flash_attention=one) for one in ("on", "off")]),
            ("batches", [replace(now, batch=n) for n in (64, 128, 256) if n < plain.batch]),
        )[stage]
        if not tries:
            continue
        tell(what)
        with contextlib.suppress(NotMeasured):  # what is known by now stands
            found = race.run(now, tries, until=_share(deadline, 3 - stage))
            found = replace(
                found,
                prefill=best.prefill * found.prefill,
                decode=best.decode * found.decode,
                together=best.together * found.together,
            )
            if found.worst >= tune.SLOWER:
                best = found
    return _choice(best)


def _room(model: gguf.ModelFile, shape: Shape) -> int:
    """How many engines beside the first may be open at once: what they take is not to end the node that serves.

    Raises: `NotMeasured` where there is no room for a second one.
    """
    need = memory.needed(model, ctx=CTX, slots=shape.slots).private_bytes
    free = memory.available_bytes()
    if free < 2 * need:
        raise NotMeasured(f"two engines take {2 * need / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free")
    return free // need - 1


def busy_share() -> float:
    """The share of all cores' time that was in use for a moment just now, 0 to 1."""
    import psutil  # noqa: PLC0415 - 20 ms

    return float(psutil.cpu_percent(_BUSY_LOOK_S)) / 100


def _share(deadline: float, parts: int) -> float:
    """The moment at which one of `parts` equal parts of the time that is left is over."""
    now = time.monotonic()
    return now + (deadline - now) / parts


class _Others:
    """What the rest of the machine does from here on, while these trials run."""

    def __init__(self, trials: list[Trial]) -> None:
        self._trials = trials
        self._began, self._used = time.monotonic(), self._others_s()

    def busy_share(self) -> float:
        """The share of all cores' time that others have used since, 0 to 1; 0 where a trial's own is not told."""
        passed = time.monotonic() - self._began
        if not passed or not all(trial.processor_s() for trial in self._trials):
            return 0.0
        return (self._others_s() - self._used) / passed / (os.cpu_count() or 1)

    def _others_s(self) -> float:
        """Seconds of processor time of everybody but the trials."""
        import psutil  # noqa: PLC0415 - 20 ms

        times = psutil.cpu_times()
        unused = times.idle + getattr(times, "iowait", 0.0)
        counted_twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return float(sum(times) - unused - counted_twice) - sum(trial.processor_s() for trial in self._trials)


class Race:
    """Rounds of one setting and others in turns, `at_once` of them at most; what comes out is the best, against the
    first.
    """

    def __init__(self, vocabulary: int, *, is_small: bool, niceness: int = 0, at_once: int = 100) -> None:
        self._first_id = _FIRST_WORD_ID if vocabulary > 2 * _FIRST_WORD_ID else vocabulary // 2
        self._ids = max(1, vocabulary - self._first_id)
        self._is_small = is_small
        self._niceness = niceness
        self._at_once = at_once
        self._deadline = 0.0

    def run(self, base: Setting, others: list[Setting], *, until: float) -> Judged:
        """The best of `base` and the others, until that moment of the monotonic clock.

        Raises: `NotMeasured`.
        """
        rivals = [one for one in dict.fromkeys(others) if one != base]
        heats = [rivals[at : at + self._at_once] for at in range(0, len(rivals), self._at_once)] or [[]]
        winners: list[Judged] = []
        for number, heat in enumerate(heats):
            try:
                winners.append(self._heat(base, heat, _share(until, len(heats) - number)))
            except NotMeasured:
                if not winners:  # else what is known by now stands
                    raise
        return max(winners, key=lambda one: one.score)

    def _heat(self, base: Setting, rivals: list[Setting], until: float) -> Judged:
        self._deadline = until
        with ExitStack() as stack:
            first = self._open(stack, base)
            trials = [(one, trial) for one in rivals if (trial := self._open_if_it_can(stack, one)) is not None]
            rest = _Others([first, *(trial for _, trial in trials)])
            samples = self._rounds(first, trials)
            if rest.busy_share() >= BUSY_SHARE:
                trials = [(one, trial) for one, trial in trials if one.threads == base.threads]
            measured = [Measured(one, tuple(samples[trial]), trial.private_bytes()) for one, trial in trials]
            mine = Measured(base, tuple(samples[first]), first.private_bytes())
        whole = [one for one in measured if len(one.samples) >= ROUNDS_LEAST]
        if len(mine.samples) < ROUNDS_LEAST:
            raise NotMeasured(
                f"there was time for {len(mine.samples)} rounds and {ROUNDS_LEAST} are needed;"
                f" `llamboctl engine tune {Path(base.model_path).name}` takes more"
            )
        return tune.choose(mine, whole, is_small=self._is_small)

    def _open(self, stack: ExitStack, setting: Setting) -> Trial:
        """An engine that is open and warm. Raises: `NotMeasured`."""
        try:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TrialLate("there was no time left")
            trial = stack.enter_context(Trial(setting, timeout_s=left, niceness=self._niceness))
            trial.complete(self._prompt(0, 8), 2, timeout_s=max(0.1, self._deadline - time.monotonic()))
        except TrialLate:
            raise NotMeasured(f"{_name(setting)} does not open the model in time") from None
        except TrialFailed as error:
            raise NotMeasured(f"{_name(setting)} does not open the model: {error.message}") from None
        return trial

    def _open_if_it_can(self, stack: ExitStack, setting: Setting) -> Trial | None:
        try:
            return self._open(stack, setting)
        except NotMeasured:
            return None

    def _rounds(self, plain: Trial, others: list[tuple[Setting, Trial]]) -> dict[Trial, list[Sample]]:
        """The samples; one of the others that fails in the middle takes no part any more. Raises: `NotMeasured`."""
        samples: dict[Trial, list[Sample]] = {trial: [] for trial in (plain, *(trial for _, trial in others))}
        running = [plain, *(trial for _, trial in others)]
        together = plain.setting.slots > 1 and any(one.threads != plain.setting.threads for one, _ in others)
        sizes, round_s = (PREFILL_TOKENS[0], DECODE_TOKENS[0]), 0.0
        for number in range(ROUNDS_MOST):
            began = time.monotonic()
            if began + round_s > self._deadline:
                break  # a round that is cut off would compare with nothing
            turn = number % len(running)
            for trial in running[turn:] + running[:turn]:
                try:
                    samples[trial].append(self._sample(trial, number, sizes, together=together))
                except TrialLate:
                    return samples
                except TrialFailed as error:
                    if trial is plain:
                        raise NotMeasured(f"{_name(trial.setting)} failed: {error.message}") from None
                    samples[trial].clear()
                    running.remove(trial)
            ended = time.monotonic()
            questions = max(1, ROUNDS_MEANT - 1 - number) * len(running) * (3 if together else 2)
            sample_s = min(max((self._deadline - ended) / questions, SAMPLE_S[0]), SAMPLE_S[1])
            meant = _sizes(samples[plain], sample_s)
            if number:  # smaller where the machine has become slower, and never larger: ever fewer rounds would fit
                meant = (min(meant[0], sizes[0]), min(meant[1], sizes[1]))
            round_s = (ended - began) * max(meant[0] / sizes[0], meant[1] / sizes[1])
            sizes = meant
        return samples

    def _sample(self, trial: Trial, number: int, sizes: tuple[int, int], *, together: bool) -> Sample:
        prompt, tokens = sizes
        began = trial.processor_s()
        prefill = self._ask(trial, self._prompt(number + 1, prompt), 1)["timings"]
        between = trial.processor_s()
        decode = self._ask(trial, self._prompt(number + 1, 1), tokens)["timings"]
        ended = trial.processor_s()
        return Sample(
            float(prefill["prompt_per_second"]),
            float(decode["predicted_per_second"]),
            prompt / (between - began) if between > began else 0.0,
            tokens / (ended - between) if ended > between else 0.0,
            self._together_tps(trial, number, max(DECODE_TOKENS[0], tokens // TOGETHER_SHARE)) if together else 0.0,
        )

    def _together_tps(self, trial: Trial, number: int, tokens: int) -> float:
        """Tokens per second of all slots, each of which answers with so many."""
        prompts = [self._prompt(number + 1 + ROUNDS_MOST * slot, 1) for slot in range(trial.setting.slots)]
        began = time.monotonic()
        trial.complete_together(prompts, tokens, timeout_s=self._left_s())
        return len(prompts) * tokens / (time.monotonic() - began)

    def _ask(self, trial: Trial, prompt: list[int], tokens: int) -> dict[str, Any]:
        return trial.complete(prompt, tokens, timeout_s=self._left_s())

    def _left_s(self) -> float:
        return max(0.05, self._deadline - time.monotonic())

    def _prompt(self, number: int, tokens: int) -> list[int]:
        """Token ids that no cache has seen: another stretch of the vocabulary each time."""
        return [self._first_id + (number * 131 + step * 7) % self._ids for step in range(tokens)]


def _name(setting: Setting) -> str:
    return f"the backend {Path(setting.backend).name}" if setting.backend else "the engine inside the wheel"


def _sizes(seen: Sequence[Sample], seconds: float) -> tuple[int, int]:
    """How many tokens prefill and decode are asked for, so that each takes about so long at the lowest rates seen."""
    prefill = round(min(one.prefill_tps for one in seen) * seconds)
    decode = round(min(one.decode_tps for one in seen) * seconds)
    return (
        min(max(prefill, PREFILL_TOKENS[0]), PREFILL_TOKENS[1]),
        min(max(decode, DECODE_TOKENS[0]), DECODE_TOKENS[1]),
    )


def _choice(judged: Judged) -> Choice:
    setting, samples = judged.measured.setting, judged.measured.samples
    return Choice(
        backend=Path(setting.backend).name if setting.backend else "",
        threads=setting.threads,
        batch=setting.batch,
        flash_attention=setting.flash_attention,
        prefill=round(judged.prefill, 3),
        decode=round(judged.decode, 3),
        prefill_tps=round(max(one.prefill_tps for one in samples), 1),
        decode_tps=round(max(one.decode_tps for one in samples), 1),
        private_bytes=judged.measured.private_bytes,
        rounds=len(samples),
    )
