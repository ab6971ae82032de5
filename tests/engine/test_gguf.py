"""The header reader: what it gives is what llama.cpp's own reader gives, and every bad file has its sentence."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from gguf_files import CTX, HEADS, KV_HEADS, LAYERS, TOKENS, WIDTH, header, text, write_model, write_split
from hypothesis import given, settings
from hypothesis import strategies as st

from llambo.core.errors import BadModel
from llambo.engine import gguf, gguf_tables


def refusal(path: Path) -> str:
    with pytest.raises(BadModel) as caught:
        gguf.read(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message.removeprefix(f"{path}: ")


def refusal_of(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    return refusal(path)


# What a good file gives


def test_every_field_is_what_the_writer_was_given(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    model = gguf.read(path)
    assert model == gguf.ModelFile(
        path=path,
        parts=(path,),
        size_bytes=path.stat().st_size,
        version=3,
        architecture="llama",
        name="Tiny Test",
        quant="F16",
        n_layer=LAYERS,
        ctx_train=CTX,
        n_embd=WIDTH,
        n_ff=128,
        n_head=HEADS,
        n_head_kv=(KV_HEADS,) * LAYERS,
        key_length=WIDTH // HEADS,
        value_length=WIDTH // HEADS,
        n_vocab=len(TOKENS),
        has_chat_template=True,
        pooling_type=None,
        tensors=3,
        tensor_bytes=3 * WIDTH * 32 * 2,
    )


def test_fields_agree_with_the_reference_reader(tiny_model: Path) -> None:
    model = gguf.read(tiny_model)
    other = reference.GGUFReader(tiny_model)
    value = {name: field.contents() for name, field in other.fields.items()}
    assert model.version == value["GGUF.version"]
    assert model.architecture == value["general.architecture"]
    assert model.n_layer == value["llama.block_count"]
    assert model.ctx_train == value["llama.context_length"]
    assert model.n_embd == value["llama.embedding_length"]
    assert model.n_ff == value["llama.feed_forward_length"]
    assert model.n_head == value["llama.attention.head_count"]
    assert set(model.n_head_kv) == {value["llama.attention.head_count_kv"]}
    assert model.n_vocab == len(value["tokenizer.ggml.tokens"])
    assert model.has_chat_template == ("tokenizer.chat_template" in value)
    assert model.quant == max(other.tensors, key=lambda tensor: tensor.n_bytes).tensor_type.name
    assert model.tensors == len(other.tensors)
    assert model.tensor_bytes == sum(tensor.n_bytes for tensor in other.tensors)


@pytest.mark.parametrize("kind", [k for k in reference.GGMLQuantizationType if k in reference.GGML_QUANT_SIZES])
def test_tensor_sizes_agree_with_the_reference_for_each_type(kind: reference.GGMLQuantizationType) -> None:
    name, block, block_bytes = gguf_tables.TENSOR_TYPES[kind.value]
    assert name == kind.name
    # The package still counts two F32 scales in Q8_1, a type of activations that no file has.
    assert (block, block_bytes) == ((32, 36) if name == "Q8_1" else reference.GGML_QUANT_SIZES[kind])


def test_architectures_and_file_types_cover_the_reference() -> None:
    assert set(reference.MODEL_ARCH_NAMES.values()) <= set(gguf_tables.ARCHITECTURES)
    named = {t.value: t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in reference.LlamaFileType}
    del named[reference.LlamaFileType.GUESSED.value]
    assert named.items() <= gguf_tables.FILE_TYPES.items()
    assert {t.value: t.name.lower() for t in reference.PoolingType} == gguf_tables.POOLING_TYPES


ASK_ENGINE = """
import ctypes, importlib.util, json, pathlib
(package,) = importlib.util.find_spec("xllamacpp").submodule_search_locations
engine = ctypes.CDLL(str(next(pathlib.Path(package).glob("xllamacpp*.so"))))
engine.ggml_blck_size.restype = ctypes.c_int64
engine.ggml_type_size.restype = ctypes.c_size_t
name = engine._Z13llm_arch_name8llm_arch
name.restype = ctypes.c_char_p
types = {i: (engine.ggml_blck_size(i), engine.ggml_type_size(i)) for i in range(43)}
names = []
while not (found := name(len(names)).decode()).startswith(("unknown", "(unknown")):
    names.append(found)
print(json.dumps([types, names]))
"""


def test_tables_are_the_engines_own() -> None:
    done = subprocess.run([sys.executable, "-c", ASK_ENGINE], capture_output=True, text=True, check=True)
    types, architectures = json.loads(done.stdout)
    ours = {str(code): [block, size] for code, (_, block, size) in gguf_tables.TENSOR_TYPES.items()}
    assert ours == {code: facts for code, facts in types.items() if facts[0]}
    assert [str(code) for code in sorted(gguf_tables.REMOVED_TENSOR_TYPES)] == [
        code for code, facts in types.items() if not facts[0]
    ]
    assert list(gguf_tables.ARCHITECTURES) == architectures
    assert set(gguf_tables.NOT_TEXT) <= set(architectures)


def test_heads_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    keys: dict[str, int | str | list[int]] = {"llama.attention.head_count_kv": [0, 4]}
    assert gguf.read(write_model(tmp_path / "m.gguf", keys=keys)).n_head_kv == (0, 4)


def test_a_model_without_attention_keeps_no_keys_and_values(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.gguf",
        architecture="mamba",
        leave_out=("mamba.attention.head_count", "mamba.attention.head_count_kv"),
    )
    model = gguf.read(path)
    assert (model.n_head, model.n_head_kv, model.key_length) == (0, (0, 0), 0)


def test_key_lengths_and_pooling_are_read_where_they_are_given(tmp_path: Path) -> None:
    keys: dict[str, int | str | list[int]] = {
        "llama.attention.key_length": 24,
        "llama.attention.value_length": 20,
        "llama.pooling_type": 1,
    }
    model = gguf.read(write_model(tmp_path / "m.gguf", keys=keys))
    assert (model.key_length, model.value_length, model.pooling_type) == (24, 20, "mean")


def test_experts_count_into_the_feed_forward_width(tmp_path: Path) -> None:
    keys: dict[str, int | str | list[int]] = {
        "llama.expert_used_count": 8,
        "llama.expert_feed_forward_length": 96,
    }
    assert gguf.read(write_model(tmp_path / "m.gguf", keys=keys)).n_ff == 768


def test_the_commonest_tensor_type_stands_in_for_a_missing_file_type(tmp_path: Path) -> None:
    assert gguf.read(write_model(tmp_path / "m.gguf", leave_out=("general.file_type",))).quant == "F16"


def test_an_empty_or_missing_chat_template_is_none(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", keys={"tokenizer.chat_template": ""})
    assert not gguf.read(path).has_chat_template
    path = write_model(tmp_path / "n.gguf", leave_out=("tokenizer.chat_template",))
    assert not gguf.read(path).has_chat_template


def test_a_chat_template_of_any_length_is_seen(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", keys={"tokenizer.chat_template": "x" * 200_000})
    assert gguf.read(path).has_chat_template


def test_a_path_may_be_text(tmp_path: Path) -> None:
    assert gguf.read(str(write_model(tmp_path / "m.gguf"))).path == tmp_path / "m.gguf"


def test_a_vocabulary_of_150000_tokens_is_skipped_quickly(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    strings = b"".join(text(f"token{i}") for i in range(150_000))
    array = struct.pack("<IIQ", 9, 8, 150_000) + strings
    small = write_model(tmp_path / "small.gguf", leave_out=("tokenizer.ggml.tokens",)).read_bytes()
    tensors, keys = struct.unpack_from("<QQ", small, 8)
    # The arrays go in front of the other keys; the padding before the tensors' data stays a multiple of 32.
    added = text("tokenizer.ggml.tokens") + array
    filler = -(len(added) + len(text("x")) + 12) % 32
    added += text("x") + struct.pack("<IQ", 8, filler) + bytes(filler)
    path.write_bytes(small[:8] + struct.pack("<QQ", tensors, keys + 2) + added + small[24:])
    begin = time.process_time()
    model = gguf.read(path)
    assert time.process_time() - begin < 0.5  # measured: 0.04 s; bounded against a return to the 5 s of before
    assert model.n_vocab == 150_000


# Split models


def test_a_split_model_counts_all_its_parts(tmp_path: Path) -> None:
    parts = write_split(tmp_path, "m", 3)
    model = gguf.read(parts[0])
    assert model.parts == tuple(parts)
    assert (model.tensors, model.tensor_bytes) == (9, 9 * WIDTH * 32 * 2)
    assert model.size_bytes == sum(part.stat().st_size for part in parts)


def test_a_later_part_of_a_split_model_names_the_first(tmp_path: Path) -> None:
    assert refusal(write_split(tmp_path, "m", 3)[1]) == (
        "this is part 2 of 3 of a split model; give the first part, m-00001-of-00003.gguf"
    )


def test_missing_parts_are_listed(tmp_path: Path) -> None:
    parts = write_split(tmp_path, "m", 3)
    parts[1].unlink()
    assert refusal(parts[0]) == "1 of the model's 3 parts are missing beside it: m-00002-of-00003.gguf"


def test_a_renamed_part_is_refused(tmp_path: Path) -> None:
    part = write_split(tmp_path, "m", 2)[0].rename(tmp_path / "other.gguf")
    assert "must be named like NAME-00001-of-00002.gguf" in refusal(part)


def test_a_part_of_another_model_is_refused(tmp_path: Path) -> None:
    parts = write_split(tmp_path, "m", 2)
    write_model(parts[1])
    assert "m-00002-of-00002.gguf is not part 2 of 2" in refusal(parts[0])


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    parts = write_split(tmp_path, "m", 2)
    os.truncate(parts[1], parts[1].stat().st_size - 1)
    assert f"{parts[1]}: the file is truncated" in refusal(parts[0])


# Bad files


def test_a_missing_file() -> None:
    assert refusal(Path("/nowhere/m.gguf")) == "there is no such file"


def test_a_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "this is a directory; a model is a GGUF file"


def test_a_device() -> None:
    assert refusal(Path("/dev/null")) == "this is no regular file; a model is a GGUF file"


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo") == "this is no regular file; a model is a GGUF file"


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    path.chmod(0)
    caller = os.geteuid()
    if caller == 0:  # root may read everything, and nobody may not
        os.seteuid(65_534)
    try:
        assert refusal(path) == "no permission to read it"
    finally:
        os.seteuid(caller)


def test_a_path_with_a_nul_byte() -> None:
    with pytest.raises(BadModel, match="this is no path"):
        gguf.read("a\0b.gguf")


def test_a_path_that_is_too_long() -> None:
    assert "cannot be read" in refusal(Path("/tmp/" + "x" * 5000))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty (0 bytes); fetch it again"),
        (b"\xde\xad\xbe\xef" * 100, "this is no GGUF file: it starts with b'\\xde\\xad\\xbe\\xef'; expected b'GGUF'"),
        (struct.pack("<Q", 80) + b'{"__metadata__":{}}', "a safetensors file"),
        (b"PK\x03\x04" + bytes(60), "a zip archive or PyTorch checkpoint"),
        (b"\x80\x02}q\0.", "a Python pickle or old PyTorch checkpoint"),
        (struct.pack("<II", 0x67676A74, 3) + bytes(60), "an old ggml file"),
        (struct.pack("<I", 0x67676D6C) + bytes(60), "an old ggml file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n <html><body>404", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b'{"error":"Repository not found"}', "JSON text"),
        (b"\x1f\x8b\x08" + bytes(20), "a compressed file"),
        (b"GG", "this is no GGUF file: it starts with b'GG'; expected b'GGUF'"),
        (b"GGUF", "its header runs beyond its end (4 bytes)"),
        (header(version=1), "GGUF version 1 is not supported; versions 2 and 3 are"),
        (header(version=4), "GGUF version 4 is not supported; versions 2 and 3 are"),
        (header(version=0), "GGUF version 0 is not supported; versions 2 and 3 are"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "the file is big-endian GGUF"),
        (header(), "the key 'general.architecture' is missing"),
        (header(tensors=2**63), "tensors and 0 keys: the file is damaged"),
        (header(keys=2**63), "the file is damaged"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in refusal_of(tmp_path, content)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(keys=1, rest=struct.pack("<Q", 2**40) + b"x"), "runs beyond its end"),
        (header(keys=1, rest=text("k" * 2000) + bytes(12)), "a key of 2,000 bytes is longer than 1,024"),
        (header(keys=1, rest=struct.pack("<Q", 2) + b"\xff\xfe" + bytes(12)), "a key is no UTF-8 text"),
        (header(keys=1, rest=text("k") + struct.pack("<IQ", 77, 0)), "'k' has the unknown type 77"),
        (header(keys=1, rest=text("k") + struct.pack("<IQ", 8, 2**62)), "runs beyond its end"),
        (header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 4, 2**62)), "runs beyond its end"),
        (header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 8, 2**62)), "runs beyond its end"),
        (header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(20)), "an array of arrays"),
        (header(keys=1, rest=text("k") + struct.pack("<IIQ", 9, 99, 1) + bytes(20)), "the unknown type 99"),
        (header(keys=1, rest=text("k") + struct.pack("<IIQQ", 9, 8, 1, 2**63)), "runs beyond its end"),
        (header(keys=2, rest=ARCHITECTURE * 2), "'general.architecture' occurs twice"),
        (header(tensors=1, rest=text("t" * 64) + bytes(40)), "a tensor's name of 64 bytes is longer than 63"),
        (header(tensors=1, rest=text("t") + struct.pack("<I", 5) + bytes(60)), "'t' has 5 dimensions"),
        (header(tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 32, 99, 0)), "has type 99, which the engine's"),
        (
            header(tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 32, 4, 0)),
            "has type 4, which llama.cpp has removed",
        ),
        (header(tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 31, 8, 0)), "rows of 31, no multiple of Q8_0's 32"),
        (header(tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 32, 8, 64)), "'t' lies at 64, not at 0"),
        (
            header(tensors=1, rest=text("t") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0)),
            "elements: the file is damaged",
        ),
        (
            header(tensors=2, rest=(text("t") + struct.pack("<IQIQ", 1, 32, 0, 0)) * 2),
            "the tensor 't' occurs twice",
        ),
        (
            header(keys=1, rest=text("general.alignment") + struct.pack("<II", 4, 33)),
            "general.alignment is 33, which is no power of two",
        ),
    ],
)
def test_a_damaged_container_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in refusal_of(tmp_path, content)


def test_a_truncated_file_gives_both_sizes_and_what_is_missing(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    whole = path.stat().st_size
    os.truncate(path, whole - 100)
    end = whole - (whole - gguf.read(write_model(tmp_path / "n.gguf")).size_bytes)
    assert refusal(path) == (
        f"the file is truncated: its tensors end at byte {end:,} and it has {whole - 100:,} bytes"
        " (100 are missing); fetch it again"
    )


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("general.architecture", "the key 'general.architecture' is missing"),
        ("llama.block_count", "the key 'llama.block_count' is missing"),
        ("llama.context_length", "the key 'llama.context_length' is missing"),
        ("llama.embedding_length", "the key 'llama.embedding_length' is missing"),
        ("tokenizer.ggml.tokens", "'tokenizer.ggml.tokens' are missing"),
        ("tokenizer.ggml.model", "'tokenizer.ggml.tokens' are missing"),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, missing: str, words: str) -> None:
    assert words in refusal(write_model(tmp_path / "m.gguf", leave_out=(missing,)))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"llama.block_count": 0}, "'llama.block_count' is 0, not a whole number from 1 to 512"),
        ({"llama.block_count": 2**31}, "not a whole number from 1 to 512"),
        ({"llama.block_count": "two"}, "'llama.block_count' is 'two'"),
        ({"llama.embedding_length": "x" * 2000}, "'llama.embedding_length' is a long text"),
        ({"llama.context_length": [1, 2]}, "'llama.context_length' is an array"),
        ({"llama.attention.head_count_kv": [2]}, "'llama.attention.head_count_kv' should be 2 whole numbers"),
        ({"llama.attention.head_count": [-1, 2]}, "'llama.attention.head_count' should be 2 whole numbers"),
        ({"general.type": "adapter"}, "this is a LoRA adapter"),
    ],
)
def test_a_senseless_value_is_named(tmp_path: Path, keys: dict[str, int | str | list[int]], words: str) -> None:
    assert words in refusal(write_model(tmp_path / "m.gguf", keys=keys))


def test_an_unknown_architecture_is_the_engines_limit(tmp_path: Path) -> None:
    words = refusal(write_model(tmp_path / "m.gguf", architecture="llama99"))
    assert words == "the architecture 'llama99' is not known to the engine's llama.cpp"


@pytest.mark.parametrize("architecture", ["clip", "wavtokenizer-dec"])
def test_what_is_no_text_model_is_said_so(tmp_path: Path, architecture: str) -> None:
    assert "this is no text model but" in refusal(write_model(tmp_path / "m.gguf", architecture=architecture))


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert "the file holds no tensors" in refusal(write_model(tmp_path / "m.gguf", tensors=0))


# Hostile files


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_model(tmp_path_factory.mktemp("good") / "m.gguf").read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "m.gguf"


def read_bounded(scratch: Path, content: bytes) -> None:
    """Reads what may be anything: a model or `BadModel`, in little time and memory."""
    scratch.write_bytes(content)
    tracemalloc.start()
    begin = time.process_time()
    try:
        gguf.read(scratch)
    except BadModel as error:
        assert error.message
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert time.process_time() - begin < 2
    assert peak < 100 * 2**20


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_truncation_is_refused_or_read(good: bytes, scratch: Path, data: st.DataObject) -> None:
    read_bounded(scratch, good[: data.draw(st.integers(0, len(good)))])


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_changed_bytes_are_refused_or_read(good: bytes, scratch: Path, data: st.DataObject) -> None:
    header_bytes = len(good) - 3 * WIDTH * 32 * 2
    content = bytearray(good)
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(4, header_bytes - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        content[place] = value
    read_bounded(scratch, bytes(content))


@settings(max_examples=100, deadline=None)
@given(rest=st.binary(max_size=300), counts=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
def test_garbage_behind_the_magic_is_refused_or_read(scratch: Path, rest: bytes, counts: tuple[int, int]) -> None:
    read_bounded(scratch, header(tensors=counts[0] % 5, keys=counts[1] % 5, rest=rest))
    read_bounded(scratch, header(tensors=counts[0], keys=counts[1], rest=rest))


@pytest.mark.parametrize(
    "rest",
    [
        text("k") + struct.pack("<IIQ", 9, 8, 10**9),  # a thousand million empty strings
        text("k") + struct.pack("<IIQ", 9, 4, 10**9),
        text("k") + struct.pack("<IQ", 8, 10**10),
        struct.pack("<Q", 10**10),
    ],
)
def test_a_sparse_file_that_has_room_for_everything_is_bounded(scratch: Path, rest: bytes) -> None:
    with scratch.open("wb") as file:
        file.write(header(keys=1, rest=rest))
        file.truncate(2**40)
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(BadModel):
        gguf.read(scratch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    scratch.unlink()
    assert time.process_time() - begin < 5
    assert peak < 100 * 2**20


def test_the_largest_header_that_is_accepted_stays_small_in_memory(scratch: Path) -> None:
    numbers = struct.pack("<IIQ", 9, 4, 512) + np.arange(512, dtype="<u4").tobytes()
    scratch.write_bytes(header(keys=2_048, rest=b"".join(text(f"k{i}") + numbers for i in range(2_048))))
    read_bounded(scratch, scratch.read_bytes())
