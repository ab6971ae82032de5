"""Owns every number and path of the build; knows nothing of how they are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS_DIR = ROOT / "training" / "corpus"
HELDOUT_DIR = ROOT / "training" / "heldout"
WORK_DIR = ROOT / ".training"
STEPS_NAME = "steps.json"
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
MODEL_VERSION = "1.4"
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
class Leg:
    """A stretch of the course; `tokens` counts all tokens seen, prompts included.

    The learning rate goes in a straight line from `start` to `end`, shares of the plan's rates.
    `chat_share` of what is read are chats of more than one turn; with `numbers` the tokens that
    repeat a number of the question count in full. `long_prompts` of the chats are one long text
    instead, of up to `long_words` words.
    """

    tokens: int
    start: float = 1.0
    end: float = 1.0
    chat_share: float = 0.15
    numbers: bool = True
    long_prompts: float = 0.018
    long_words: int = 700


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How the network is trained.

    `short_share` of the short chats are cut `short_tokens` after the place where the last answer
    differs from all others: which answer it is, is decided there, so more wordings are seen in the
    same time. For the same reason a chat of a few turns goes on in `branches` ways, each of which
    sees the chat before it and none of the others.
    """

    legs: tuple[Leg, ...] = (
        Leg(100_000, 0.03, 1.0, 0.0, numbers=False),
        Leg(1_200_000, 1.0, 1.0, 0.15, numbers=False),
        Leg(1_500_000, chat_share=0.2),
        Leg(1_500_000, 1.0, 0.85, 0.2),
        Leg(1_500_000, 0.85, 0.70, 0.2),
        Leg(1_500_000, 0.70, 0.55, 0.24, long_prompts=0.03, long_words=1500),
        Leg(1_500_000, 0.55, 0.40, 0.24, long_prompts=0.03, long_words=1500),
        Leg(1_500_000, 0.40, 0.25, 0.24, long_prompts=0.03, long_words=1500),
        Leg(1_500_000, 0.25, 0.13, 0.24, long_prompts=0.03, long_words=1500),
        Leg(1_500_000, 0.13, 0.01, 0.24, long_prompts=0.03, long_words=1500),
    )
    batch_tokens: int = 3072
    branches: int = 6
    pool_chats: int = 512
    short_share: float = 0.8
    short_tokens: int = 2
    peak_rate: float = 4e-3
    matrix_rate: float = 2e-2
    weight_decay: float = 0.05
    seed: int = 20261123
