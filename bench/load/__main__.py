"""The command line: loads one server, and says what came of it.

python -m bench.load http://127.0.0.1:8080 --streams 8 --requests 100
python -m bench.load https://host/v1 --model M --api-key-env KEY --mode open --rate 20 --json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Sequence

import uvloop

from bench.load.client import Target, run
from bench.load.plan import PATHS, Span, Workload, arrivals_s
from bench.load.report import summarise


def _span(text: str) -> Span:
    match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens: give one such as 64, or two such as 16-64")
    return Span(low, high)


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no count: give a whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")


def _members(text: str) -> dict[str, object]:
    with contextlib.suppress(ValueError):
        members = json.loads(text)
        if isinstance(members, dict):
            return members
    raise argparse.ArgumentTypeError(f'{text!r} is no JSON object; give one such as {{"ignore_eos": true}}')


def _target(text: str) -> Target:
    try:
        return Target.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.load",
        description="Load a server that has OpenAI's API. The same seed gives the same requests at the same times.",
        epilog="Exit status: 0 when every request succeeded, 1 when one did not, 2 for bad usage.",
    )
    add = parser.add_argument
    add("target", metavar="URL", type=_target, help="http://HOST:PORT, https://HOST[:PORT] or unix:///PATH")
    add("--model", default="", help="the model's name (default: none is named)")
    add("--api-key-env", metavar="VAR", default="", help="environment variable that holds the API key")
    add("--endpoint", choices=list(PATHS), default="chat")
    add("--requests", type=_count, default=100, metavar="N")
    add("--mode", choices=["closed", "open"], default="closed", help="closed: --streams clients; open: by --rate")
    add("--streams", type=_count, default=8, metavar="N", help="clients at once, in the closed loop (default: 8)")
    add("--rate", type=_positive, metavar="R", help="requests a second, in the open loop")
    add("--arrivals", choices=["poisson", "even"], default="poisson", help="how the open loop's requests are spread")
    add("--prompt-tokens", type=_span, default=Span(32, 32), metavar="N[-M]", help="about how long prompts are")
    add("--max-tokens", type=_span, default=Span(64, 64), metavar="N[-M]", help="bound of the answers")
    add("--temperature", type=float, default=0.0, metavar="T")
    add("--seed", type=int, default=1, metavar="N")
    add(
        "--extra", type=_members, default={}, metavar="JSON", help="more members of every body: '{\"ignore_eos\":true}'"
    )
    add("--no-stream", action="store_true", help="replies in one piece")
    add(
        "--timeout", type=_positive, default=120.0, metavar="S", help="seconds that one request may take (default: 120)"
    )
    add("--json", action="store_true", help="the figures as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.mode == "open") != (options.rate is not None):
        parser.error("--rate belongs to --mode open, and --mode open needs it")
    key = os.environ.get(options.api_key_env, "") if options.api_key_env else ""
    if options.api_key_env and not re.fullmatch(r"[!-~]+", key):
        parser.error(f"the environment variable {options.api_key_env} holds no API key")
    workload = Workload(
        model=options.model,
        endpoint=options.endpoint,
        streams=not options.no_stream,
        prompt_tokens=options.prompt_tokens,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        extra=options.extra,
    )
    moments = None
    if options.mode == "open":
        moments = arrivals_s(options.arrivals, rate=options.rate, count=options.requests, seed=options.seed)
    _allow_connections()
    spent_s = time.process_time()
    outcomes = uvloop.run(
        run(
            options.target,
            workload,
            requests=options.requests,
            streams=options.streams,
            arrivals_s=moments,
            timeout_s=options.timeout,
            api_key=key,
        )
    )
    summary = summarise(outcomes, cpu_s=time.process_time() - spent_s)
    if options.json:
        sys.stdout.write(json.dumps({"url": str(options.target)} | summary.document()) + "\n")
    else:
        sys.stdout.write(summary.lines())
    return 0 if not summary.failed else 1


def _allow_connections() -> None:
    """Connections are files: raises their soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
