"""What a model needs and what is free, with the arithmetic done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from gguf_files import write_model

import llambo
from llambo.core.errors import NoMemory
from llambo.engine import gguf, memory

GIB, MIB = 2**30, 2**20

LLAMA_8B = gguf.ModelFile(
    path=Path("/m/llama-8b.gguf"),
    parts=(Path("/m/llama-8b.gguf"),),
    size_bytes=5 * GIB,
    version=3,
    architecture="llama",
    name="",
    quant="Q4_K_M",
    n_layer=32,
    ctx_train=131_072,
    n_embd=4096,
    n_ff=14_336,
    n_head=32,
    n_head_kv=(8,) * 32,
    key_length=128,
    value_length=128,
    n_vocab=128_256,
    has_chat_template=True,
    pooling_type=None,
    tensors=291,
    tensor_bytes=5 * GIB - 8 * MIB,
)


def test_the_kv_cache_is_exact() -> None:
    # 32 layers x 8 heads x (128 + 128) elements x 2 bytes = 128 KiB a token
    assert memory.needed(LLAMA_8B, ctx=4096, slots=1).kv_bytes == 4096 * 128 * 1024
    assert memory.needed(LLAMA_8B, ctx=4096, slots=4).kv_bytes == 4 * 4096 * 128 * 1024


def test_a_context_is_rounded_up_as_llama_cpp_does() -> None:
    assert memory.needed(LLAMA_8B, ctx=257, slots=1).kv_bytes == 512 * 128 * 1024


def test_context_0_is_what_the_model_was_trained_for() -> None:
    assert memory.needed(LLAMA_8B, ctx=0, slots=1).kv_bytes == 131_072 * 128 * 1024


def test_layers_without_keys_and_values_need_none() -> None:
    hybrid = replace(LLAMA_8B, n_head_kv=(0, 0, 0, 8) * 8)
    assert memory.needed(hybrid, ctx=1024, slots=1).kv_bytes == 1024 * 32 * 1024


def test_the_total_is_the_sum_and_holds_the_weights() -> None:
    need = memory.needed(LLAMA_8B, ctx=4096, slots=1)
    assert need.weights_bytes == LLAMA_8B.tensor_bytes
    assert need.total == need.weights_bytes + need.kv_bytes + need.compute_bytes
    assert 100 * MIB < need.compute_bytes < 500 * MIB


def test_weights_are_shared_unless_the_engine_rearranges_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    mapped = memory.needed(replace(LLAMA_8B, quant="Q8_0"), ctx=512, slots=1)
    assert mapped.shared_bytes == LLAMA_8B.tensor_bytes
    assert mapped.private_bytes == mapped.kv_bytes + mapped.compute_bytes
    copied = memory.needed(LLAMA_8B, ctx=512, slots=1)  # Q4_K_M
    assert (copied.shared_bytes, copied.private_bytes) == (0, copied.total)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert memory.needed(replace(LLAMA_8B, quant="Q8_0"), ctx=512, slots=1).shared_bytes == 0
    assert memory.needed(replace(LLAMA_8B, quant="BF16"), ctx=512, slots=1).copied_bytes == 0


def test_the_prompt_cache_is_in_proportion_to_the_context_and_bounded() -> None:
    assert memory.needed(LLAMA_8B, ctx=256, slots=1).prompt_cache_bytes == 4 * 256 * 128 * 1024
    assert memory.needed(LLAMA_8B, ctx=8192, slots=4).prompt_cache_bytes == 256 * MIB


def test_a_tiny_model_needs_little() -> None:
    tiny = gguf.read(Path(llambo.__file__).parent / "data" / "built-in.gguf")
    assert 8 * MIB < memory.needed(tiny, ctx=512, slots=1).private_bytes < 12 * MIB


def test_a_7b_model_does_not_fit_4_gib() -> None:
    with pytest.raises(NoMemory, match=r"needs 5.\d GiB of memory and 4.0 GiB are free"):
        memory.check_fits(LLAMA_8B, ctx=512, slots=1, available=4 * GIB)


def test_what_fits_is_returned(tmp_path: Path) -> None:
    model = gguf.read(write_model(tmp_path / "m.gguf"))
    assert memory.check_fits(model, ctx=512, slots=1) == memory.needed(model, ctx=512, slots=1)


def test_too_long_a_context_gives_all_numbers_and_advice() -> None:
    with pytest.raises(NoMemory) as caught:
        memory.check_fits(LLAMA_8B, ctx=32_768, slots=4, available=16 * GIB)
    message = caught.value.message
    assert message.startswith("llama-8b.gguf needs 21.2 GiB of memory and 16.0 GiB are free: weights 5.0 GiB,")
    assert "KV cache 16.0 GiB (4 slots of 32,768 tokens)" in message
    assert "a smaller context or fewer slots would help" in message
    assert "a smaller quantisation than Q4_K_M" in message


def test_one_slot_is_not_told_to_use_fewer() -> None:
    with pytest.raises(NoMemory, match=r"\(1 slot of 131,072 tokens\).*; a smaller context would help"):
        memory.check_fits(LLAMA_8B, ctx=0, slots=1, available=16 * GIB)


def test_weights_that_do_not_fit_ask_for_a_smaller_model() -> None:
    with pytest.raises(NoMemory, match=r"900 MiB are free.*not even the smallest context fits"):
        memory.check_fits(LLAMA_8B, ctx=512, slots=1, available=900 * MIB)


# Limits of control groups, as files in a directory that looks like theirs


def group(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content + "\n")


def available(tmp_path: Path, membership: str) -> int:
    (tmp_path / "cgroup").write_text(membership)
    return memory.available_bytes(membership=tmp_path / "cgroup", mount=tmp_path / "sys")


def test_without_groups_the_machine_decides(tmp_path: Path) -> None:
    free = memory.available_bytes(membership=tmp_path / "none", mount=tmp_path / "none")
    assert 0 < free <= psutil.virtual_memory().total


def test_a_version_2_limit_counts_less_its_reclaimable_cache(tmp_path: Path) -> None:
    group(
        tmp_path / "sys/a/b",
        memory__max=str(50 * MIB),
        memory__current=str(40 * MIB),
        memory__stat=f"anon 1\ninactive_file {15 * MIB}",
    )
    assert available(tmp_path, "0::/a/b\n") == 25 * MIB


def test_the_tightest_group_above_decides(tmp_path: Path) -> None:
    group(tmp_path / "sys/a/b", memory__max="max", memory__current="1", memory__stat="inactive_file 0")
    group(tmp_path / "sys/a", memory__max=str(8 * MIB), memory__current="0", memory__stat="inactive_file 0")
    assert available(tmp_path, "0::/a/b\n") == 8 * MIB


def test_in_a_container_the_mounted_root_decides(tmp_path: Path) -> None:
    group(tmp_path / "sys", memory__max=str(9 * MIB), memory__current="0", memory__stat="inactive_file 0")
    assert available(tmp_path, "0::/host/path/that/is/not/here\n") == 9 * MIB


def test_a_version_1_limit_counts(tmp_path: Path) -> None:
    group(
        tmp_path / "sys/memory/g",
        memory__limit_in_bytes=str(7 * MIB),
        memory__usage_in_bytes=str(6 * MIB),
        memory__stat="total_inactive_file 0",
    )
    assert available(tmp_path, "5:cpu:/\n4:memory:/g\n0::/\n") == MIB


def test_a_group_over_its_limit_has_nothing(tmp_path: Path) -> None:
    group(tmp_path / "sys", memory__max="1000", memory__current="2000", memory__stat="inactive_file 0")
    assert available(tmp_path, "0::/\n") == 0
