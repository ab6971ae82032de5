"""Owns the GGUF file: llama architecture, Q8_0 matrices, GPT-2 byte-level BPE, ChatML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants
from tokenizers import Tokenizer

from training.settings import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    MAX_FILE_BYTES,
    MODEL_NAME,
    MODEL_VERSION,
    SPECIAL_TOKENS,
    TURN_END,
    TURN_START,
    ModelShape,
)

DEFAULT_TEMPERATURE = 0.2
DESCRIPTION = (
    "Answers short questions about Llambo and the words around it, in English, and declines every other subject."
)


def tensors(state: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of a trained network by the names that GGUF's llama uses, in float32."""
    return {name: weight.detach().float().cpu().numpy() for name, weight in state.items()}


def quantise(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`array` (rows a multiple of 32 long) as Q8_0 blocks."""
    packed: np.ndarray[Any, Any] = quants.quantize(array, GGMLQuantizationType.Q8_0)
    return packed


def dequantised(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What is left of `array` after Q8_0."""
    back: np.ndarray[Any, Any] = quants.dequantize(quantise(array), GGMLQuantizationType.Q8_0)
    return back


def write(weights: dict[str, np.ndarray[Any, Any]], tokenizer: Tokenizer, shape: ModelShape, path: Path) -> int:
    """Writes the model aside and renames it to `path`; returns its size in bytes.

    Raises ValueError, and leaves `path` as it was, when the file would be over MAX_FILE_BYTES.
    """
    aside = path.with_name(path.name + ".new")
    writer = gguf.GGUFWriter(aside, "llama")
    _facts(writer, shape)
    _vocabulary(writer, tokenizer, shape)
    for name, array in weights.items():
        if array.ndim == 2:
            writer.add_tensor(name, quantise(array), raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    size = aside.stat().st_size
    if size > MAX_FILE_BYTES:
        aside.unlink()
        raise ValueError(f"the model is {size} bytes; at most {MAX_FILE_BYTES} are allowed")
    aside.replace(path)
    return size


def _facts(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    writer.add_name(MODEL_NAME)
    writer.add_version(MODEL_VERSION)
    writer.add_description(DESCRIPTION)
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_type("model")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # What llama.cpp uses when a request names no temperature: this model is best near greedy.
    writer.add_float32(gguf.Keys.General.SAMPLING_TEMP, DEFAULT_TEMPERATURE)


def _vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, shape: ModelShape) -> None:
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=lambda token: ids[token])
    if len(tokens) != shape.vocab or [ids[t] for t in tokens] != list(range(shape.vocab)):
        raise ValueError("the tokenizer's ids are not 0 .. vocab-1")
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in tokens]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(ids[TURN_START])
    writer.add_eos_token_id(ids[TURN_END])
    writer.add_eot_token_id(ids[TURN_END])
    writer.add_pad_token_id(ids[END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
