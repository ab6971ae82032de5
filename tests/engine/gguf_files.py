"""Small GGUF files for the tests, written with the `gguf` package (llama.cpp's own writer)."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, KV_HEADS, CTX = 64, 2, 4, 2, 512
TOKENS = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(29))]


def write_model(
    path: Path,
    *,
    architecture: str = "llama",
    leave_out: tuple[str, ...] = (),
    keys: dict[str, int | str | list[int]] | None = None,
    tensors: int = 3,
    part: tuple[int, int] | None = None,
) -> Path:
    """A valid llama of no use; `keys` adds or overrides, `leave_out` drops, `part` makes it (no, count) of a split."""
    values: dict[str, int | str | list[int] | list[str]] = {
        "general.name": "Tiny Test",
        "general.file_type": 1,
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": CTX,
        f"{architecture}.embedding_length": WIDTH,
        f"{architecture}.feed_forward_length": 128,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    if part and part[0]:
        values = {}
    values |= keys or {}
    writer = gguf.GGUFWriter(path, architecture)
    if "general.architecture" in leave_out or (part and part[0]):
        writer.kv_data[0].pop("general.architecture")
    if part:
        writer.add_uint16("split.no", part[0])
        writer.add_uint16("split.count", part[1])
    for key, value in values.items():
        if key in leave_out:
            continue
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for number in range(tensors):
        writer.add_tensor(f"blk.{number}.weight", np.full((WIDTH, 32), number, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_split(directory: Path, name: str, count: int) -> list[Path]:
    """A model in `count` parts; the first has the keys."""
    paths = [directory / f"{name}-{no + 1:05}-of-{count:05}.gguf" for no in range(count)]
    for no, path in enumerate(paths):
        write_model(path, part=(no, count))
    return paths


def text(value: str) -> bytes:
    """A string as GGUF writes it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(*, version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    """A header by hand, for what no writer would write."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest
