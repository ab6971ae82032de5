"""How many nodes there is room for: the account of promises, with real headers and a made-up machine."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import llambo
from llambo.cluster.launch.admission import Admission
from llambo.cluster.launch.base import NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.core.types import LoadOptions
from tests.cluster.clusters import until

MIB, GIB = 2**20, 2**30
BUILT_IN = Path(llambo.__file__).parent / "data" / "built-in.gguf"
TINY = NodeRequest("n1.1", str(BUILT_IN), LoadOptions(ctx=512, slots=1, threads=1))


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The header of a 7B model in Q8_0, with weights that take no room on the disk."""
    path = tmp_path_factory.mktemp("models") / "7b.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_block_count(32)
    writer.add_context_length(4096)
    writer.add_embedding_length(4096)
    writer.add_feed_forward_length(11_008)
    writer.add_head_count(32)
    writer.add_head_count_kv(32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(32_000)])
    size = 7 * GIB
    writer.add_tensor_info("blk.0.weight", (4096, size // 4096 // 2), np.dtype(np.float16), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size + 4096)
    return path


def admission(free_bytes: int) -> Admission:
    return Admission(lambda: free_bytes)


async def test_a_thousand_tiny_nodes_fit_a_machine_of_23_gib() -> None:
    room = await admission(22 * GIB).room_for(TINY)
    assert room is not None
    assert 1000 <= room < 3000


async def test_a_7b_model_does_not_fit_4_gib(seven_billion: Path) -> None:
    request = NodeRequest("n1.1", str(seven_billion), LoadOptions(ctx=512, slots=1))
    assert await admission(4 * GIB).room_for(request) == 0
    assert await admission(8 * GIB).room_for(request) == 1


async def test_weights_count_once_for_all_nodes_of_a_file(seven_billion: Path) -> None:
    request = NodeRequest("n1.1", str(seven_billion), LoadOptions(ctx=512, slots=1))
    account = admission(8 * GIB)
    plan = await account.plan(request)
    assert plan is not None
    one = plan.need.private_bytes + plan.need.prompt_cache_bytes
    assert await admission(plan.need.shared_bytes + 3 * one).room_for(request) == 3
    assert await admission(plan.need.shared_bytes + 3 * one - 1).room_for(request) == 2
    account.claim("n1.1", plan)
    assert await account.room_for(request) == (8 * GIB - plan.need.shared_bytes - one) // one


async def test_a_node_that_loads_is_counted_before_it_has_touched_its_memory() -> None:
    account = admission(GIB)
    plan = await account.plan(TINY)
    assert plan is not None
    before = await account.room_for(TINY)
    assert before is not None
    for number in range(10):
        account.claim(f"n{number}", plan)
    assert await account.room_for(TINY) == before - 10
    account.settle("n0")  # what it took, the system counts now; its prompt cache is still to come
    after = await account.room_for(TINY)
    assert after is not None
    one = plan.need.private_bytes + plan.need.prompt_cache_bytes
    room = GIB - plan.need.shared_bytes - 9 * one - plan.need.prompt_cache_bytes
    assert after == room // one >= before - 10
    for number in range(10):
        account.release(f"n{number}")
    account.release("nobody")
    assert await account.room_for(TINY) == before


async def test_the_question_takes_no_longer_for_a_machine_of_any_size() -> None:
    account = admission(10**18)
    await account.room_for(TINY)
    began = time.process_time()
    room = await account.room_for(TINY)
    assert room is not None
    assert room > 10**9
    assert time.process_time() - began < 1


async def test_what_has_no_header_cannot_be_told(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    for path in (tmp_path / "m.gguf", tmp_path / "none.gguf", tmp_path, "\0"):
        assert await admission(GIB).room_for(replace(TINY, model_path=str(path))) is None


async def test_a_file_that_was_replaced_is_read_again(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_model.read_bytes())
    account = admission(GIB)
    first = await account.plan(replace(TINY, model_path=str(path)))
    path.write_bytes(BUILT_IN.read_bytes())
    second = await account.plan(replace(TINY, model_path=str(path)))
    assert first is not None
    assert second is not None
    assert first.need != second.need


async def test_one_of_many_nodes_computes_small_batches_and_an_embedding_its_whole_text(seven_billion: Path) -> None:
    large = NodeRequest("n1.1", str(seven_billion), LoadOptions(ctx=2048, slots=1))
    alone = replace(TINY, options=LoadOptions(ctx=2048, slots=4))
    requests = (TINY, alone, large, replace(large, embedding=True))
    plans = [await admission(GIB).plan(request) for request in requests]
    assert [plan.batch if plan else 0 for plan in plans] == [128, 512, 512, 2048]


async def test_the_launcher_counts_its_own_nodes(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "run", available=lambda: GIB)
    try:
        before = await launcher.room_for(TINY)
        assert before is not None
        spawning = [asyncio.create_task(launcher.spawn(replace(TINY, name=f"n{i}.1"), timeout_s=60)) for i in range(5)]
        await until(lambda: launcher.slot_dir("n4.1") or all(task.done() for task in spawning))
        during = await launcher.room_for(TINY)
        await asyncio.gather(*spawning)
        ready = await launcher.room_for(TINY)
        assert during is not None
        assert ready is not None
        assert during <= ready < before
        await asyncio.gather(*(launcher.terminate(f"n{i}.1") for i in range(5)))
        assert await launcher.room_for(TINY) == before
    finally:
        await launcher.close()
