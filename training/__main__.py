"""Owns the command line: `python -m training` does every step, a sub-command does one.

The steps leave their results in the working folder (`.training`), so each can run again alone.
"""

# ruff: noqa: PLC0415 - each step imports the heavy packages that it needs, and no others

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from training import facts
from training.settings import MODEL_FILE, STEPS_NAME, WORK_DIR, Leg, ModelShape, TrainPlan

STEPS = ("corpus", "tokenizer", "train", "export", "check", "evaluate", "report")


def main(arguments: list[str] | None = None) -> int:
    """Runs the steps named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("step", nargs="?", choices=STEPS, help="one step only; without: all")
    parser.add_argument("--work", type=Path, default=WORK_DIR, help="folder for what is made")
    parser.add_argument("--out", type=Path, default=MODEL_FILE, help="the GGUF file to write")
    parser.add_argument("--tokens", type=int, default=0, help="train one leg of so many tokens; 0: the whole plan")
    parser.add_argument("--threads", type=int, default=0, help="threads for training; 0: all")
    options = parser.parse_args(arguments)
    # Threads that sleep instead of spinning: on a busy machine half as fast again, on an idle one
    # a little slower. It must be set before PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options.work.mkdir(parents=True, exist_ok=True)
    plan = replace(TrainPlan(), legs=(Leg(options.tokens, 1.0, 0.02),)) if options.tokens else TrainPlan()
    for step in [options.step] if options.step else STEPS:
        started, worked = time.monotonic(), time.process_time()
        print(f"== {step}", flush=True)
        _run(step, plan, options)
        spent = time.process_time() - worked
        print(f"== {step}: {time.monotonic() - started:.0f} s, {spent:.0f} s of processor time", flush=True)
        _note(options.work / STEPS_NAME, step, round(spent))
    return 0


def _note(path: Path, step: str, seconds: int) -> None:
    """Keeps the processor time of the last run of each step for the model card."""
    spent = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**spent, step: seconds}), encoding="utf-8")


def _run(step: str, plan: TrainPlan, options: argparse.Namespace) -> None:
    shape, work = ModelShape(), options.work
    if step == "corpus":
        from training import corpus

        corpus.write_sample(facts.load(), plan, work)
    elif step == "tokenizer":
        from training import tokenizer

        made = tokenizer.train(facts.load(), shape, plan)
        made.save(str(work / tokenizer.TOKENIZER_NAME))
    elif step == "train":
        import torch

        from training import tokenizer, train

        if options.threads:
            torch.set_num_threads(options.threads)
        train.run(facts.load(), tokenizer.load(work), shape, plan, work, _say)
    elif step == "export":
        from training import export, tokenizer, train

        weights = export.tensors(train.load(shape, work).state_dict())
        print(export.write(weights, tokenizer.load(work), shape, options.out), "bytes")
    elif step == "check":
        from training import check

        check.run(shape, work, options.out)
    elif step == "evaluate":
        from training import evaluate

        evaluate.run(options.out, work)
    else:
        from training import report

        report.write(work, options.out)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
