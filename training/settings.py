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
MODEL_VERSION = "1.1"
MAX_FILE_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The llama-shaped network. Row sizes are multiples of 32, as Q8_0 needs."""

    vocab: int = 6144
    width: int = 256
    layers: int = 3
    heads: int = 8
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
    """One course of the learning rate; `tokens` counts all tokens seen, prompts included.

    `chat_share` of what is read are chats of more than one turn; with `numbers` the tokens that
    repeat a number of the question count in full.
    """

    tokens: int
    rate_share: float = 1.0
    chat_share: float = 0.2
    numbers: bool = False


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How the network is trained.

    `short_share` of the short chats are cut `short_tokens` after the place where the last answer
    differs from all others: which answer it is, is decided there, so more wordings are seen in the
    same time.
    """

    cycles: tuple[Cycle, ...] = (
        Cycle(3_200_000),
        Cycle(2_400_000, 0.7, 0.3, True),
        Cycle(2_200_000, 0.5, 0.3, True),
        Cycle(300_000, 0.3, 1.0, True),
    )
    batch_tokens: int = 2048
    pool_chats: int = 512
    short_share: float = 0.85
    short_tokens: int = 2
    peak_rate: float = 4e-3
    matrix_rate: float = 2e-2
    weight_decay: float = 0.05
    warmup_share: float = 0.03
    final_rate_share: float = 0.02
    seed: int = 20240817
