"""The engine: the plain wheel, what `llamboctl engine build` and `tune` make of it, and a native llama-server.

    python -m bench.engine [tiny] [small] [medium] [shared] [--rounds N]

Everything is measured within one run, in turns, and told as the median of the rounds' ratios. The tuned engine is the
one of this home (`LLAMBO_HOME`): build it first. A `llama-server` on PATH takes part; let it be of the same tag. In
decode memory takes part too: a token needs every weight once, so no engine is faster than they can be read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
from gguf import GGUFReader

from bench import ending
from bench.harness import Report, model
from llambo.cluster.launch.base import NodeHandle, NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.core import paths
from llambo.core.types import LoadOptions
from llambo.engine import calibrate, gguf, measure
from llambo.engine.choices import Choice
from llambo.engine.engines import Engines
from llambo.engine.policy import EngineHome, Shape, share_of_threads
from llambo.engine.processor import usable_cores
from llambo.engine.trial import Setting, Trial, post

ROUNDS = 7
STREAMS = 8
PREFILL_TOKENS = 256
DECODE_TOKENS = 48
STREAM_TOKENS = 24
FAST = 4
"""The tiny model gets so many times as many tokens: else a sample is over in milliseconds."""
TUNE_S = 40.0
LIBRARY_SPIN = "300000"
"""What libgomp spins where nobody tells it otherwise (its env.c)."""
TIMEOUT_S = 300.0
SHARED_PROMPTS = (16, 160)
"""Tokens of a question to nodes that share a machine: a short one, and one with some conversation before it."""
MEMORY_BYTES = 2**28
"""What is read to see how fast memory is: several times the processor's caches."""
_WORDS = itertools.count()


@dataclass(frozen=True)
class Contestant:
    """A way to answer: `ask(body)` gives llama-server's reply to `/completion`, and process `pid` works for it.

    `scale` is how many times as much it is asked for.
    """

    name: str
    ask: Callable[[dict[str, Any]], dict[str, Any]]
    pid: int
    scale: int = 1


def _ids(tokens: int) -> list[int]:
    """Token ids that nobody was asked about before; valid in every model of `make_model`."""
    start = next(_WORDS) * 17
    return [261 + (start + step * 7) % 250 for step in range(tokens)]


def _body(prompt: int, tokens: int) -> dict[str, Any]:
    return {
        "prompt": _ids(prompt),
        "n_predict": tokens,
        "temperature": 0,
        "cache_prompt": False,
        "ignore_eos": True,
    }


def _prefill(one: Contestant) -> float:
    return float(one.ask(_body(PREFILL_TOKENS, 1))["timings"]["prompt_per_second"])


def _decode(one: Contestant) -> float:
    return float(one.ask(_body(8, DECODE_TOKENS * one.scale))["timings"]["predicted_per_second"])


def _decode_used(one: Contestant) -> float:
    """Tokens for a second of processor time, so that it does not count who else is at work; the prompt is one token."""
    before = _processor_s([one.pid])
    tokens = int(one.ask(_body(1, DECODE_TOKENS * one.scale))["tokens_predicted"])
    return tokens / (_processor_s([one.pid]) - before)


def _streams(one: Contestant) -> float:
    """Tokens per second of all streams together, prompts included."""
    bodies = [_body(8, STREAM_TOKENS * one.scale) for _ in range(STREAMS)]
    began = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(one.ask, bodies))
    return sum(int(answer["tokens_predicted"]) for answer in answers) / (time.perf_counter() - began)


TESTS = {"prefill": _prefill, "decode": _decode, f"{STREAMS} streams": _streams}


@contextlib.contextmanager
def _ours(name: str, setting: Setting) -> Iterator[Contestant]:
    with Trial(setting, timeout_s=TIMEOUT_S) as trial:
        yield Contestant(name, lambda body: trial._post("/completion", body, TIMEOUT_S), trial._pid)


@contextlib.contextmanager
def _native(program: str, setting: Setting) -> Iterator[Contestant]:
    """A llama-server with the same model, context, slots and threads, and its own defaults for the rest."""
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as directory:
        socket = f"{directory}/n.sock"
        command = [
            *(program, "--model", setting.model_path, "--host", socket, "--parallel", str(setting.slots)),
            *("--ctx-size", str(setting.ctx * setting.slots), "--threads", str(usable_cores())),
            *("--no-webui", "--log-verbosity", "3"),  # 3 tells when it listens
        ]
        with ending.process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            said = b""
            while b"listening on" not in said:
                if not (line := process.stdout.readline()):
                    raise SystemExit(f"{program} does not serve: {said.decode(errors='replace')[-500:]}")
                said += line
            reader = threading.Thread(target=_drain, args=(process.stdout,))
            reader.start()
            try:
                yield Contestant(
                    "native", lambda body: post(socket, "/completion", body, timeout_s=TIMEOUT_S), process.pid
                )
            finally:
                process.terminate()
                reader.join()


def _drain(pipe: IO[bytes]) -> None:
    for _ in pipe:
        pass


def memory(path: Path, threads: int) -> Contestant:
    """Reads the weights that a token needs, with so many threads, and does nothing with them."""
    tensors = {one.name: int(one.n_bytes) for one in GGUFReader(path).tensors}
    if "output.weight" in tensors:
        del tensors["token_embd.weight"]  # of which a token needs one row
    token_bytes = sum(tensors.values())
    parts = [np.ones(MEMORY_BYTES // 8 // threads) for _ in range(threads)]

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        passes = -(-body["n_predict"] * token_bytes // MEMORY_BYTES)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(np.max, parts * passes))
        return {"tokens_predicted": passes * MEMORY_BYTES // token_bytes}

    return Contestant("memory", ask, os.getpid())


def _tuned(plain: Setting, choice: Choice, engines: Engines) -> Setting:
    directories = {one.name: str(one.directory) for one in engines.built()}
    return replace(
        plain,
        backend=directories.get(choice.backend, ""),
        threads=choice.threads,
        batch=choice.batch,
        flash_attention=choice.flash_attention,
    )


def engine(report: Report, preset: str, *, rounds: int = ROUNDS) -> None:
    """One model: the plain wheel, the tuned engine, and a native llama-server where there is one."""
    path = model(preset)
    engines, shape = Engines(paths.home()), Shape(slots=STREAMS, threads=usable_cores())
    plain = measure.plain_setting(gguf.read(path), shape)
    choice = calibrate.calibrate_and_remember(engines, path, shape, limit_s=TUNE_S, thorough=True)
    tuned = _tuned(plain, choice, engines)
    told = f"{choice.backend or 'wheel'}, {tuned.threads} threads, batch {tuned.batch}, {tuned.flash_attention}"
    report.add(f"engine {preset}: tuned", told)
    native = shutil.which("llama-server")
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(_ours("plain", plain)), stack.enter_context(_ours("tuned", tuned))]
        if native:
            racers.append(stack.enter_context(_native(native, plain)))
        racers = [replace(one, scale=FAST if preset == "tiny" else 1) for one in racers]
        for what, test in TESTS.items():
            rates = _race(racers, test, rounds)
            report.add(f"engine {preset}: {what}, tokens/s", _medians(rates))
            report.add(
                f"engine {preset}: {what}, tuned / plain", _ratio(rates, "tuned", "plain"), _wanted(preset, what)
            )
            if native:
                report.add(f"engine {preset}: {what}, tuned / native", _ratio(rates, "tuned", "native"), ">= 0.97")
        rates = _race([*racers[:2], memory(path, tuned.threads)], _decode_used, rounds)
        title = f"engine {preset}: decode, tokens for a second of processor time"
        report.add(title, _medians(rates))
        for name in ("plain", "tuned"):
            report.add(f"{title}, {name} / what memory allows", _ratio(rates, name, "memory"))


def _race(racers: list[Contestant], test: Callable[[Contestant], float], rounds: int) -> dict[str, list[float]]:
    """Rates by name; in each round everybody runs once, and who begins changes."""
    for one in racers:
        test(one)  # warm
    rates: dict[str, list[float]] = {one.name: [] for one in racers}
    for number in range(rounds):
        turn = number % len(racers)
        for one in racers[turn:] + racers[:turn]:
            rates[one.name].append(test(one))
    return rates


def _medians(rates: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(found):.0f}" for name, found in rates.items())


def _ratio(rates: dict[str, list[float]], first: str, second: str) -> str:
    return f"{statistics.median(a / b for a, b in zip(rates[first], rates[second], strict=True)):.2f}"


def _wanted(preset: str, what: str) -> str:
    wanted = {("small", "prefill"): ">= 2 (AVX-512, AMX)", ("small", "decode"): ">= 1.5 (AVX-512, AMX)"}
    return wanted.get((preset, what), ">= 0.97")


def shared(report: Report, *, rounds: int = ROUNDS) -> None:
    """Four nodes for two cores, all busy: as the library has it, as Llambo has it without `share_cores`, and tuned.

    The library's own default is each node with a thread for every core, which spins for milliseconds. Llambo's threads
    sleep early in any case (decision 4), so that against its own nodes only the threads and the backend differ.

    Beside the rate there is what a second of processor time brings. The rate alone depends on who else is at work: more
    threads take more of the machine from others.
    """
    path, cores = model("small"), usable_cores()
    count, engines = 2 * cores, Engines(paths.home())
    shape = Shape.of(ctx=512, slots=4, threads=share_of_threads(0, nodes=count))
    calibrate.calibrate_and_remember(engines, path, shape, limit_s=TUNE_S / 2)
    measured = asyncio.run(_shared(path, count, EngineHome(paths.home()), rounds))
    for prompt, (number, what) in itertools.product(
        SHARED_PROMPTS, enumerate(("tokens/s", "tokens for a second of processor time"))
    ):
        rates = [[group[number] for group in one] for one in measured[prompt]]
        library, unshared, tuned = (statistics.median(column) for column in zip(*rates, strict=True))
        title = f"engine: {count} nodes on {cores} cores, {prompt} tokens asked, {STREAM_TOKENS} answered, {what}"
        report.add(title, f"library's own {library:.0f}, Llambo's unshared {unshared:.0f}, tuned {tuned:.0f}")
        for base, (name, wanted) in enumerate((("library's own", ">= 1.5"), ("Llambo's unshared", ""))):
            ratio = statistics.median(one[2] / one[base] for one in rates)
            report.add(f"{title}, tuned / {name}", f"{ratio:.2f}", wanted)


Rounds = list[list[tuple[float, float]]]
"""For each round what each of the three groups of nodes brought, as `_together` tells it."""


async def _shared(path: Path, count: int, engines: EngineHome, rounds: int) -> dict[int, Rounds]:
    """The rounds, by the tokens of a prompt."""
    # As a medium node has them; a number that somebody asked for would be kept, and nothing shared.
    options = LoadOptions(ctx=512, slots=4, threads=min(4, usable_cores()), threads_by_default=True)
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as directory:
        async with contextlib.AsyncExitStack() as stack:
            groups = []
            for number, (chosen, spin) in enumerate(((None, LIBRARY_SPIN), (None, ""), (engines, ""))):
                launcher = LocalLauncher(Path(directory, str(number)), engines=chosen)
                stack.push_async_callback(launcher.close)
                os.environ.pop("GOMP_SPINCOUNT", None)
                if spin:
                    os.environ["GOMP_SPINCOUNT"] = spin
                spawns = (launcher.spawn(_request(n, path, options), timeout_s=TIMEOUT_S) for n in range(count))
                groups.append(await asyncio.gather(*spawns))
            for group in groups:
                await _together(group, 16)  # warm
            return {
                prompt: [[await _together(group, prompt) for group in groups] for _ in range(rounds)]
                for prompt in SHARED_PROMPTS
            }


def _request(number: int, path: Path, options: LoadOptions) -> NodeRequest:
    return NodeRequest(f"n{number}.1", str(path), options)


async def _together(nodes: list[NodeHandle], prompt: int) -> tuple[float, float]:
    """Tokens of all nodes, each with one stream: per second, and per second of their processor time."""
    bodies = [_body(prompt, STREAM_TOKENS) for _ in nodes]
    pids = [node.pid for node in nodes]
    began, used = time.perf_counter(), _processor_s(pids)
    await asyncio.gather(
        *(
            asyncio.to_thread(post, node.socket_path, "/completion", body, timeout_s=TIMEOUT_S)
            for node, body in zip(nodes, bodies, strict=True)
        )
    )
    tokens = len(nodes) * STREAM_TOKENS
    return tokens / (time.perf_counter() - began), tokens / (_processor_s(pids) - used)


def _processor_s(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(one.user + one.system for one in times))


PARTS: dict[str, Callable[[Report], None]] = {
    "engine-tiny": lambda report: engine(report, "tiny"),
    "engine-small": lambda report: engine(report, "small"),
    "engine-medium": lambda report: engine(report, "medium"),
    "engine-shared": shared,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help="of tiny, small, medium, shared; default: all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    report = Report()
    if not Engines(paths.home()).has_any:
        report.add("engine", f"nothing is built in {paths.home()}: run `llamboctl engine build` first")
    with ending.orderly():
        for part in options.parts or ("tiny", "small", "medium", "shared"):
            if part == "shared":
                shared(report, rounds=options.rounds)
            elif f"engine-{part}" in PARTS:
                engine(report, part, rounds=options.rounds)
            else:
                parser.error(f"no such part: {part}")


if __name__ == "__main__":
    main()
