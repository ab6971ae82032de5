"""A model whose answers survive: as text in the next prompt they are the very tokens that were generated.

Random pieces do not: the tokenizer puts their text together in another way, and then every next prompt has tokens that
no cache holds. Here each piece of more than one character is a space and letters, and so are those that make it up; a
word's text has one way to be put together. Greedy text walks through the words, the same on every engine.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind

from bench.harness import MODELS
from bench.make_model import SPECIALS, Matrix, Shape, Writer

SHAPES = {
    "chat": Shape(256, 6, 4, 2, 704, 8_192, 4096, Kind.Q8_0),  # 9M parameters
    "chat-tiny": Shape(128, 2, 4, 2, 384, 8_192, 4096, Kind.F16),  # the same words for a fraction of the work
}
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
_FIRST_PIECE = len(SPECIALS) + 256  # after the bytes
_CHARACTERS = ["\u2581", *(chr(code) for code in range(33, 127))]


def words(count: int) -> list[str]:
    """`count` words, the short ones first: every word but its last letter is a word too."""
    lengths = itertools.count(1)
    spelt = ("".join(letters) for length in lengths for letters in itertools.product(LETTERS, repeat=length))
    return list(itertools.islice(spelt, count))


def words_of(shape: Shape) -> list[str]:
    """The words of a model of that shape; each is one token after a space."""
    return words(shape.vocab - _FIRST_PIECE - len(_CHARACTERS))


class _Walk(Writer):
    """A walk through the words alone."""

    def output(self, embedding: Matrix) -> Matrix:
        first_word = _FIRST_PIECE + len(_CHARACTERS)
        order = self.random.permutation(np.arange(first_word, self.shape.vocab))
        gain, width = np.float32(4.0), np.float32(self.shape.width)
        output = np.zeros_like(embedding)
        output[np.roll(order, -1)] = embedding[order] * (gain / np.sqrt(width))
        output[order[0]] += embedding[:first_word].sum(0) * (gain / width)  # where an answer begins
        return output


def model(name: str) -> Path:
    """The model of that name in `SHAPES`, made on first use."""
    path = MODELS / f"{name}.gguf"
    if not path.exists():
        MODELS.mkdir(exist_ok=True)
        shape = SHAPES[name]
        pieces = _CHARACTERS + ["\u2581" + word for word in words_of(shape)]
        _Walk(path.with_suffix(f".{os.getpid()}"), shape, walk=True, pieces=pieces).write(name).replace(path)
    return path
