"""Owns the network: llama's shape (RMS norm, rotary positions, SwiGLU) with tied embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.settings import ModelShape


class Norm(nn.Module):
    """Root-mean-square norm with a learned gain, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last dimension."""
        return functional.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


class Block(nn.Module):
    """Attention and feed-forward, each with its norm before it."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width, hidden = shape.width, shape.hidden
        self.heads, self.head_width = shape.heads, shape.head_width
        self.attn_norm = Norm(width, shape.norm_eps)
        self.attn_q = nn.Linear(width, width, bias=False)
        self.attn_k = nn.Linear(width, width, bias=False)
        self.attn_v = nn.Linear(width, width, bias=False)
        self.attn_output = nn.Linear(width, width, bias=False)
        self.ffn_norm = Norm(width, shape.norm_eps)
        self.ffn_gate = nn.Linear(width, hidden, bias=False)
        self.ffn_up = nn.Linear(width, hidden, bias=False)
        self.ffn_down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor | None) -> Tensor:
        """`x` is (batch, time, width); without a `mask` each position sees itself and those before it."""
        batch, time, width = x.shape
        h = self.attn_norm(x)
        q, k, v = (
            layer(h).view(batch, time, self.heads, self.head_width) for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, turns).transpose(1, 2), rotate(k, turns).transpose(1, 2)
        seen = functional.scaled_dot_product_attention(
            q, k, v.to(q.dtype).transpose(1, 2), attn_mask=mask, is_causal=mask is None
        )
        x = x + self.attn_output(seen.transpose(1, 2).reshape(batch, time, width))
        h = self.ffn_norm(x)
        step: Tensor = self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return x + step


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions over adjacent pairs of components, as llama.cpp's llama does.

    `x` is (batch, time, heads, head width); `turns` are complex numbers of length 1 that fit
    (batch, time, heads, half the head width).
    """
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


class Network(nn.Module):
    """Token ids in, hidden states or logits out."""

    turns: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.width, shape.norm_eps)
        steps = torch.arange(0, shape.head_width, 2) / shape.head_width
        angles = torch.outer(torch.arange(shape.context), shape.rope_base**-steps)
        turns = torch.polar(torch.ones_like(angles), angles)
        self.register_buffer("turns", turns, persistent=False)
        self._start_values()

    def _start_values(self) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
            if name.endswith(("attn_output.weight", "ffn_down.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * self.shape.layers) ** 0.5)

    def hidden(self, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Final hidden states (batch, time, width) of `ids` (batch, time).

        `positions` (batch, time) are 0, 1, 2, … where not given; `mask` (batch, 1, time, time) is
        true where a position sees another.
        """
        turns = self.turns[None, : ids.shape[1]] if positions is None else self.turns[positions]
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, turns.unsqueeze(2), mask)
        normed: Tensor = self.output_norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token for each hidden state."""
        return functional.linear(hidden, self.token_embd.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, time, vocab) of `ids` (batch, time)."""
        return self.logits(self.hidden(ids))
