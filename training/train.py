"""Owns the training loop: Muon for the matrices, AdamW for the rest, float32 on processors.

The number of steps follows from the plan's tokens, so the same seed and thread count give the
same course; wall time does not steer it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.chats import ChatMaker
from training.encode import IGNORED, Encoder, Sequence, batches
from training.facts import Topic
from training.model import Network
from training.muon import Muon
from training.settings import Leg, ModelShape, TrainPlan

WEIGHTS_NAME = "weights.pt"


def run(
    topics: dict[str, Topic],
    tokenizer: Tokenizer,
    shape: ModelShape,
    plan: TrainPlan,
    folder: Path,
    say: Callable[[str], None] = print,
) -> Network:
    """Trains a network, writes its weights and a log into `folder`, and returns it.

    After each leg all that the next one needs is kept in `folder`; a run that finds legs that its
    own plan begins with goes on after them, so an interrupted one loses a leg at most.
    """
    torch.manual_seed(plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Network(shape).to(device)
    optimizers = _optimizers(network, plan)
    encoder = Encoder(tokenizer)
    count = sum(weight.numel() for weight in network.parameters())
    say(f"{count / 1e6:.2f}M parameters, {len(plan.legs)} legs on {device}")
    facts: dict[str, Any] = {"parameters": count, "tokens": 0, "steps": 0, "seconds": 0, "processor_seconds": 0}
    for number, leg in enumerate(plan.legs):
        kept = folder / f"leg-{number}.pt"
        course = repr((shape, replace(plan, legs=plan.legs[: number + 1])))
        found = _resume(kept, course, network, optimizers)
        if found is not None:
            facts = found
            continue
        maker = ChatMaker(topics, plan.seed + 1000 * number)
        _add(facts, _leg(network, optimizers, batches(maker, encoder, shape, plan, leg), leg, say))
        _keep(kept, course, network, optimizers, facts)
    torch.save(network.state_dict(), folder / WEIGHTS_NAME)
    (folder / "train.json").write_text(json.dumps(facts), encoding="utf-8")
    return network


def _keep(
    path: Path, course: str, network: Network, optimizers: list[torch.optim.Optimizer], facts: dict[str, Any]
) -> None:
    state = {
        "course": course,
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "facts": facts,
    }
    # Renamed when whole: a run that is killed here leaves no half of a file.
    aside = path.with_suffix(".new")
    torch.save(state, aside)
    aside.replace(path)


def _resume(
    path: Path, course: str, network: Network, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any] | None:
    """The figures so far of a leg that ended on this very course, with its state put in place; else None."""
    state = torch.load(path, map_location=network.turns.device) if path.exists() else None
    if state is None or state["course"] != course:
        return None
    network.load_state_dict(state["network"])
    for optimizer, its_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(its_state)
    facts: dict[str, Any] = state["facts"]
    return facts


def _leg(
    network: Network,
    optimizers: list[torch.optim.Optimizer],
    source: Iterator[list[Sequence]],
    leg: Leg,
    say: Callable[[str], None],
) -> dict[str, int]:
    """One stretch of the course of the learning rate."""
    device = network.turns.device
    seen, step, started, worked = 0, 0, time.monotonic(), time.process_time()
    recent: list[float] = []
    while seen < leg.tokens:
        _set_rates(optimizers, leg.start + (leg.end - leg.start) * seen / leg.tokens)
        batch = _pad(next(source), device)
        loss = _loss(network, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += batch.ids.numel()
        step += 1
        recent.append(loss.item())
        if step % 50 == 0:
            rate = seen / (time.monotonic() - started)
            mean = sum(recent) / len(recent)
            say(f"step {step}  {seen / 1e6:.2f}M tokens  loss {mean:.4f}  {rate:.0f} tokens/s")
            recent.clear()
    return {
        "tokens": seen, "steps": step, "seconds": round(time.monotonic() - started),
        "processor_seconds": round(time.process_time() - worked),
    }  # fmt: skip


def _add(facts: dict[str, Any], more: dict[str, int]) -> None:
    for name, number in more.items():
        facts[name] += number


def load(shape: ModelShape, folder: Path) -> Network:
    """The network whose weights `run` wrote into `folder`."""
    network = Network(shape)
    network.load_state_dict(torch.load(folder / WEIGHTS_NAME, map_location="cpu"))
    return network.eval()


def _optimizers(network: Network, plan: TrainPlan) -> list[torch.optim.Optimizer]:
    matrices = [w for n, w in network.named_parameters() if w.dim() == 2 and n.startswith("blk.")]
    table = [network.token_embd.weight]
    gains = [w for w in network.parameters() if w.dim() == 1]
    muon = Muon(matrices, lr=plan.matrix_rate, decay=plan.weight_decay)
    adam = torch.optim.AdamW(
        [{"params": table, "weight_decay": 0.0}, {"params": gains, "weight_decay": 0.0}],
        lr=plan.peak_rate, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def _set_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers:
        group: dict[str, Any]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences side by side: tensors of (sequences, longest); without branches the last two are None."""

    ids: Tensor
    targets: Tensor
    weights: Tensor
    positions: Tensor | None
    mask: Tensor | None


def _pad(sequences: list[Sequence], device: torch.device) -> Batch:
    width = max(len(sequence.ids) for sequence in sequences)

    def rows(name: str, filler: float) -> Tensor:
        lists: list[list[float]] = [getattr(sequence, name) for sequence in sequences]
        return torch.tensor([row + [filler] * (width - len(row)) for row in lists], device=device)

    ids, targets, weights = rows("ids", 0), rows("targets", IGNORED), rows("weights", 0.0)
    if not sequences[0].parts:
        return Batch(ids, targets, weights, None, None)
    parts = rows("parts", -1)
    before = torch.ones((width, width), dtype=torch.bool, device=device).tril()
    same = (parts[:, :, None] == parts[:, None, :]) | (parts[:, None, :] == 0)
    return Batch(ids, targets, weights, rows("positions", 0), (same & before)[:, None])


def _loss(network: Network, batch: Batch) -> Tensor:
    with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=batch.ids.is_cuda):
        hidden = network.hidden(batch.ids, batch.positions, batch.mask)
        wanted = batch.targets != IGNORED
        logits = network.logits(hidden[wanted])
    losses = functional.cross_entropy(logits.float(), batch.targets[wanted], reduction="none")
    counted = batch.weights[wanted]
    return (losses * counted).sum() / counted.sum()
