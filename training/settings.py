"""Owns every number and path of the build; knows nothing of how they are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS_DIR = ROOT / "training" / "corpus"
HELDOUT_DIR = ROOT / "training" / "heldout"
WORK_DIR = ROOT / ".training"
MODEL_FILE = ROOT / "src" / "llambo" / "data" / "built-in.gguf"

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

MODEL_NAME = "llambo-built-in"
MODEL_VERSION = "1.0"
MAX_FILE_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The llama-shaped network. Row sizes are multiples of 32, as Q8_0 needs."""

    vocab: int = 4096
    width: int = 192
    layers: int = 4
    heads: int = 6
    hidden: int = 512
    context: int = 2048
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0

    @property
    def head_width(self) -> int:
        """Components per attention head."""
        return self.width // self.heads


@dataclass(frozen=True, slots=True)
class Cycle:
    """One course of the learning rate; `tokens` counts all tokens seen, prompts included."""

    tokens: int
    rate_share: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How the network is trained.

    `short_share` of the short chats are cut after `short_tokens` of the last answer: which answer
    it is, is decided there, so more wordings are seen in the same time.
    """

    cycles: tuple[Cycle, ...] = (Cycle(2_600_000), Cycle(2_600_000, 0.8), Cycle(800_000, 0.5))
    batch_tokens: int = 2048
    pool_chats: int = 256
    short_share: float = 0.7
    short_tokens: int = 9
    peak_rate: float = 4e-3
    matrix_rate: float = 2e-2
    weight_decay: float = 0.05
    warmup_share: float = 0.03
    final_rate_share: float = 0.02
    seed: int = 20240817
