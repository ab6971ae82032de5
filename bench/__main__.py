"""Runs benchmarks and prints each figure beside what is wanted.

python -m bench                  everything
python -m bench ping streams     these parts
python -m bench --report FILE    everything, and the table into a file
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import psutil
import xllamacpp

from bench import bridge, busy, chat, cluster, ending, engine, fusion, gateway, namespace, ninep, routing, start
from bench.harness import Report

PARTS = {
    **start.PARTS,
    **bridge.PARTS,
    **cluster.PARTS,
    **busy.PARTS,
    **routing.PARTS,
    **ninep.PARTS,
    **namespace.PARTS,
    **gateway.PARTS,
    **chat.PARTS,
    **engine.PARTS,
    **fusion.PARTS,
}


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    cores = psutil.cpu_count()
    return f"{cores} cores ({platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Llambo on this machine.")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--report", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"no such part: {name}; there are {', '.join(PARTS)}")
    report = Report()
    with ending.orderly():
        for name in options.parts or PARTS:
            PARTS[name](report)
    if options.report:
        text = f"""# Figures

Made by `python -m bench --report bench/REPORT.md` on {_machine()}, xllamacpp {xllamacpp.__version__}.
The machine is shared, so times vary from run to run; ratios compare two things in turns within one run.

{report.markdown()}
"""
        options.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
