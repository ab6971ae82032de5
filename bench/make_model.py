"""Writes llama-shaped GGUF models with random weights: real shapes and a valid vocabulary, no meaning.

    python -m bench.make_model small.gguf --preset small

A walk makes the next token a fixed permutation of the last one: greedy text never ends and does not hang on rounding,
so two engines must agree on it (it cannot show a fault in the KV cache). A model that is to say something else is a
`Writer` with an `output` of its own. Needs `gguf` and `numpy`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Shape:
    """A model's dimensions; `kind` is the type of its matrices."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    ctx: int
    kind: Kind


PRESETS = {
    "tiny": Shape(128, 4, 4, 2, 384, 512, 2048, Kind.F16),  # 0.9M parameters
    "small": Shape(768, 12, 12, 4, 2048, 32_000, 4096, Kind.Q8_0),  # 125M
    "medium": Shape(1024, 24, 16, 4, 4864, 32_000, 4096, Kind.Q4_0),  # 487M
}


def vocabulary(size: int) -> list[str]:
    """SentencePiece pieces after the specials and the 256 bytes; each longer piece is a shorter one plus a letter."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    pieces = ["\u2581", *(chr(c) for c in range(33, 127))]
    grow = ["\u2581", *letters]
    for piece in grow:
        if len(pieces) >= size:
            break
        longer = [piece + letter for letter in letters]
        pieces += longer
        grow += longer
    return pieces[: size - len(SPECIALS) - 256]


class Writer:
    """One model on its way to the file `path`; equal arguments give equal files.

    `pieces` take the place of the vocabulary's last words. A subclass adds to `facts` and `tensors`, or has an `output`
    of its own.
    """

    def __init__(
        self,
        path: Path,
        shape: Shape,
        *,
        walk: bool = False,
        seed: int = 1,
        pieces: Sequence[str] = (),
        template: str = CHAT_TEMPLATE,
        architecture: str = "llama",
    ) -> None:
        self.path = path
        self.shape = shape
        self.walk = walk
        self.words = vocabulary(shape.vocab)
        self.words[len(self.words) - len(pieces) :] = pieces
        self.template = template
        self.random = np.random.default_rng(seed)
        self.gguf = gguf.GGUFWriter(path, architecture)

    def write(self, name: str) -> Path:
        """Writes all of it; `name` is what the model calls itself. Returns `path`."""
        self.facts(name)
        self.tokens()
        self.tensors()
        self.gguf.write_header_to_file()
        self.gguf.write_kv_data_to_file()
        self.gguf.write_tensors_to_file()
        self.gguf.close()
        return self.path

    def matrix(self, rows: int, columns: int, scale: float = 1.0) -> Matrix:
        """Random values, so small that a product with them keeps the size of what it is a product with."""
        values = self.random.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(scale / np.sqrt(columns))

    def put(self, name: str, values: Matrix, kind: Kind) -> None:
        """One tensor, in the type `kind`."""
        if kind == Kind.F32:
            self.gguf.add_tensor(name, values)
        elif kind == Kind.F16:
            self.gguf.add_tensor(name, values.astype(np.float16))
        else:
            self.gguf.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def facts(self, name: str) -> None:
        """What the file says of the model."""
        s, w = self.shape, self.gguf
        w.add_name(name)
        w.add_context_length(s.ctx)
        w.add_embedding_length(s.width)
        w.add_block_count(s.layers)
        w.add_feed_forward_length(s.ffn)
        w.add_head_count(s.heads)
        w.add_head_count_kv(s.kv_heads)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_rope_dimension_count(s.width // s.heads)
        w.add_vocab_size(s.vocab)

    def tokens(self) -> None:
        """The vocabulary, its special tokens and the chat template."""
        texts = [*SPECIALS, *(f"<0x{b:02X}>" for b in range(256)), *self.words]
        kinds = [
            gguf.TokenType.UNKNOWN,
            *[gguf.TokenType.CONTROL] * (len(SPECIALS) - 1),
            *[gguf.TokenType.BYTE] * 256,
            *[gguf.TokenType.NORMAL] * len(self.words),
        ]
        w = self.gguf
        w.add_tokenizer_model("llama")
        w.add_tokenizer_pre("default")
        w.add_token_list([text.encode() for text in texts])
        w.add_token_scores([0.0] * (len(SPECIALS) + 256) + [-float(i + 1) for i in range(len(self.words))])
        w.add_token_types(kinds)
        w.add_unk_token_id(0)
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_eot_token_id(4)
        w.add_add_bos_token(True)
        w.add_add_space_prefix(False)
        w.add_chat_template(self.template)

    def tensors(self) -> None:
        """All weights."""
        s = self.shape
        head = s.width // s.heads
        # In a walk the blocks hardly touch the residual stream, so that the output sees the last token alone.
        residual = 0.02 if self.walk else 1.0
        outer = Kind.Q8_0 if s.kind == Kind.Q4_0 else s.kind
        embedding = self.random.standard_normal((s.vocab, s.width), dtype=np.float32)
        self.put("token_embd.weight", embedding, outer)
        ones: Matrix = np.ones(s.width, np.float32)
        for i in range(s.layers):
            self.put(f"blk.{i}.attn_norm.weight", ones, Kind.F32)
            self.put(f"blk.{i}.attn_q.weight", self.matrix(s.width, s.width), s.kind)
            self.put(f"blk.{i}.attn_k.weight", self.matrix(s.kv_heads * head, s.width), s.kind)
            self.put(f"blk.{i}.attn_v.weight", self.matrix(s.kv_heads * head, s.width), s.kind)
            self.put(f"blk.{i}.attn_output.weight", self.matrix(s.width, s.width, residual), s.kind)
            self.put(f"blk.{i}.ffn_norm.weight", ones, Kind.F32)
            self.put(f"blk.{i}.ffn_gate.weight", self.matrix(s.ffn, s.width), s.kind)
            self.put(f"blk.{i}.ffn_up.weight", self.matrix(s.ffn, s.width), s.kind)
            self.put(f"blk.{i}.ffn_down.weight", self.matrix(s.width, s.ffn, residual), s.kind)
        self.put("output_norm.weight", ones, Kind.F32)
        self.put("output.weight", self.output(embedding), outer)

    def output(self, embedding: Matrix) -> Matrix:
        """The last matrix. Rows of specials and bytes are zero: they are never the likeliest, text never ends."""
        s = self.shape
        first_word = len(SPECIALS) + 256
        gain = 4.0
        if not self.walk:
            output = self.matrix(s.vocab, s.width, gain)
            output[:first_word] = 0.0
            return output
        order = self.random.permutation(np.arange(first_word, s.vocab))  # one cycle through every word
        output = np.zeros((s.vocab, s.width), np.float32)
        output[np.roll(order, -1)] = embedding[order] * np.float32(gain / np.sqrt(s.width))
        output[order[0]] += embedding[:first_word].sum(0) * np.float32(gain / s.width)  # where the walk starts
        return output


def write(path: Path, shape: Shape, *, walk: bool = False, seed: int = 1, name: str = "random") -> Path:
    """Writes the model and returns `path`; equal arguments give equal files."""
    return Writer(path, shape, walk=walk, seed=seed).write(name)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a llama-shaped GGUF with random weights.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--walk", action="store_true", help="the next token is a fixed permutation of the last")
    parser.add_argument("--ctx", type=int, help="context length in the metadata")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    shape = PRESETS[options.preset]
    if options.ctx:
        shape = replace(shape, ctx=options.ctx)
    write(options.path, shape, walk=options.walk, seed=options.seed, name=f"random-{options.preset}")


if __name__ == "__main__":
    main()
