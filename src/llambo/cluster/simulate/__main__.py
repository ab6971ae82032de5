"""The command line of the simulator: every field of `Scenario` is an option.

python -m llambo.cluster.simulate --nodes 10000 --requests 1000000 --deaths-per-min 60 --json
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import time

from llambo.cluster.simulate import Scenario, simulate
from llambo.core.errors import BadRequest


def parse(arguments: list[str]) -> tuple[Scenario, bool]:
    """The scenario, and whether the outcome is wanted as JSON. Exits with 2 for what makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m llambo.cluster.simulate", description="Drive the orchestrator through a made-up day."
    )
    for name in dataclasses.fields(Scenario):
        option = "--" + name.name.replace("_", "-")
        if name.name == "has_sessions":
            parser.add_argument("--no-sessions", dest="has_sessions", action="store_false")
        elif name.name == "slots":
            parser.add_argument(option, type=int, nargs="+", default=name.default)
        else:
            parser.add_argument(option, type=type(name.default), default=name.default)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = vars(parser.parse_args(arguments))
    as_json = options.pop("json")
    try:
        return Scenario(**{**options, "slots": tuple(options["slots"])}), as_json
    except BadRequest as error:
        parser.error(error.message)


def main(arguments: list[str] | None = None) -> int:
    """Runs and prints; the exit status is 1 when a request was lost or doubled."""
    scenario, as_json = parse(sys.argv[1:] if arguments is None else arguments)
    gc.disable()  # the run makes no cycles; looking for them among a million objects takes a third of the time
    began = time.perf_counter()
    outcome = dataclasses.replace(simulate(scenario), wall_s=time.perf_counter() - began)
    sys.stdout.write((json.dumps(dataclasses.asdict(outcome)) if as_json else outcome.text()) + "\n")
    return 1 if outcome.lost or outcome.doubled else 0


if __name__ == "__main__":
    sys.exit(main())
