"""Owns the Muon optimiser in float32: momentum made orthogonal by Newton-Schulz steps.

Matrices of one shape are stacked and treated in one batched product, which is several times
faster on a processor than one after the other. After Jordan et al., "Muon" (2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Updates two-dimensional weights; `lr` is the length of a step relative to the weights."""

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for weight in weights:
            shapes.setdefault(tuple(weight.shape), []).append(weight)
        defaults = {"lr": lr, "momentum": momentum, "decay": decay}
        super().__init__([{"params": group} for group in shapes.values()], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step for every group; every weight must have a gradient."""
        for group in self.param_groups:
            weights: list[Tensor] = group["params"]
            gradients = torch.stack([weight.grad for weight in weights])  # type: ignore[misc]
            state = self.state[weights[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradients)
            moment = state["momentum"]
            moment.lerp_(gradients, 1 - group["momentum"])
            update = orthogonal(gradients.lerp(moment, group["momentum"]))
            rows, columns = weights[0].shape
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for weight, direction in zip(weights, update, strict=True):
                weight.mul_(1 - group["lr"] * group["decay"]).add_(direction, alpha=-rate)


def orthogonal(stack: Tensor, steps: int = 5) -> Tensor:
    """Each matrix of `stack` (count, rows, columns) moved to a near orthogonal one."""
    tall = stack.shape[1] > stack.shape[2]
    x: Tensor = stack.transpose(1, 2) if tall else stack
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.transpose(1, 2) if tall else x
