"""Owns the training loop: Muon for the matrices, AdamW for the rest, float32 on processors.

The number of steps follows from the plan's tokens, so the same seed and thread count give the
same course; wall time does not steer it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from training.settings import Cycle, ModelShape, TrainPlan

WEIGHTS_NAME = "weights.pt"
# The weights given out lie between those of the last two cycles: the last one is for long chats and forgets a little.
LAST_SHARE = 0.6


def run(
    topics: dict[str, Topic],
    tokenizer: Tokenizer,
    shape: ModelShape,
    plan: TrainPlan,
    folder: Path,
    say: Callable[[str], None] = print,
) -> Network:
    """Trains a network, writes its weights and a log into `folder`, and returns it.

    Each finished cycle is kept in `folder`; a run that finds cycles that its own plan begins with
    goes on after them, so an interrupted one loses a cycle at most.
    """
    torch.manual_seed(plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Network(shape).to(device)
    encoder = Encoder(tokenizer)
    count = sum(weight.numel() for weight in network.parameters())
    say(f"{count / 1e6:.2f}M parameters, {len(plan.cycles)} cycles on {device}")
    facts: dict[str, Any] = {"parameters": count, "tokens": 0, "steps": 0, "seconds": 0, "processor_seconds": 0}
    for number, cycle in enumerate(plan.cycles):
        kept, notes = folder / f"cycle-{number}.pt", folder / f"cycle-{number}.json"
        course = repr((shape, replace(plan, cycles=plan.cycles[: number + 1])))
        if notes.exists() and json.loads(notes.read_text())["plan"] == course:
            network.load_state_dict(torch.load(kept, map_location=device))
            facts = json.loads(notes.read_text())["facts"]
            continue
        maker = ChatMaker(topics, plan.seed + 1000 * number)
        maker.progress = 0.0 if number == 0 else 1.0
        _add(facts, _cycle(network, batches(maker, encoder, shape, plan, cycle), maker, plan, cycle, say))
        torch.save(network.state_dict(), kept)
        notes.write_text(json.dumps({"plan": course, "facts": facts}))
    if len(plan.cycles) > 1:
        before = torch.load(folder / f"cycle-{len(plan.cycles) - 2}.pt", map_location=device)
        network.load_state_dict({
            name: torch.lerp(before[name], weight, LAST_SHARE) for name, weight in network.state_dict().items()
        })  # fmt: skip
    torch.save(network.state_dict(), folder / WEIGHTS_NAME)
    (folder / "train.json").write_text(json.dumps(facts), encoding="utf-8")
    return network


def _cycle(
    network: Network,
    source: Iterator[list[Sequence]],
    maker: ChatMaker,
    plan: TrainPlan,
    cycle: Cycle,
    say: Callable[[str], None],
) -> dict[str, int]:
    """One course of the learning rate from warm-up to its end, with new optimisers."""
    device = network.cos.device
    optimizers = _optimizers(network, plan, cycle.rate_share)
    seen, step, started, worked = 0, 0, time.monotonic(), time.process_time()
    recent: list[float] = []
    while seen < cycle.tokens:
        done = seen / cycle.tokens
        maker.progress = max(maker.progress, done)
        _set_rates(optimizers, done, plan)
        batch = _pad(next(source), device)
        loss = _loss(network, *batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += batch[0].numel()
        step += 1
        recent.append(loss.item())
        if step % 100 == 0:
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


def _optimizers(network: Network, plan: TrainPlan, share: float) -> list[torch.optim.Optimizer]:
    matrices = [w for n, w in network.named_parameters() if w.dim() == 2 and n.startswith("blk.")]
    table = [network.token_embd.weight]
    gains = [w for w in network.parameters() if w.dim() == 1]
    muon = Muon(matrices, lr=plan.matrix_rate * share, decay=plan.weight_decay)
    adam = torch.optim.AdamW(
        [{"params": table, "weight_decay": 0.0}, {"params": gains, "weight_decay": 0.0}],
        lr=plan.peak_rate * share, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def _set_rates(optimizers: list[torch.optim.Optimizer], done: float, plan: TrainPlan) -> None:
    if done < plan.warmup_share:
        share = max(done, 1e-3) / plan.warmup_share
    else:
        along = (done - plan.warmup_share) / (1 - plan.warmup_share)
        share = max(plan.final_rate_share, 0.5 * (1 + math.cos(math.pi * along)))
    for optimizer in optimizers:
        group: dict[str, Any]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


def _pad(sequences: list[Sequence], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(sequence.ids) for sequence in sequences)
    ids = torch.zeros((len(sequences), width), dtype=torch.long)
    targets = torch.full((len(sequences), width), IGNORED, dtype=torch.long)
    weights = torch.zeros((len(sequences), width))
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        targets[row, : len(sequence.targets)] = torch.tensor(sequence.targets)
        weights[row, : len(sequence.weights)] = torch.tensor(sequence.weights)
    return ids.to(device), targets.to(device), weights.to(device)


def _loss(network: Network, ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
        hidden = network.hidden(ids)
        wanted = targets != IGNORED
        logits = network.logits(hidden[wanted])
    losses = functional.cross_entropy(logits.float(), targets[wanted], reduction="none")
    counted = weights[wanted]
    return (losses * counted).sum() / counted.sum()
