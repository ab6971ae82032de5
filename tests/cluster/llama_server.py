"""A real llama.cpp HTTP server on a TCP port, in a process of its own: what `attach` finds in the wild.

    python -m tests.cluster.llama_server MODEL CTX SLOTS EMBEDDING SLOT_DIR   (the key, if any, in LLAMA_KEY)

The child says its address in one line and lives until its standard input closes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import llambo

BUILT_IN = Path(llambo.__file__).parent / "data" / "built-in.gguf"


@dataclass(frozen=True)
class LlamaServer:
    """A server that answers at `url`; `pid` is its process."""

    url: str
    pid: int


@asynccontextmanager
async def llama_server(
    model: Path, *, ctx: int = 256, slots: int = 2, key: str = "", embedding: bool = False, slot_dir: Path | None = None
) -> AsyncIterator[LlamaServer]:
    """Runs one; `ctx` is tokens per slot. It is gone when the block ends."""
    arguments = [str(model), str(ctx), str(slots), str(int(embedding)), f"{slot_dir}/" if slot_dir else ""]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.cluster.llama_server",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "LLAMA_KEY": key},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            url = (await process.stdout.readline()).decode().strip()
        assert url, "the server did not start"
        yield LlamaServer(url, process.pid)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main(model: str, ctx: str, slots: str, embedding: str, slot_dir: str) -> None:
    """The child."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = int(ctx) * int(slots)
    params.n_parallel = int(slots)
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_slots = True
    params.warmup = params.fit_params = params.ui = False
    if slot_dir:
        params.slot_save_path = slot_dir
    if os.environ["LLAMA_KEY"]:
        params.api_keys = [os.environ["LLAMA_KEY"]]
    if int(embedding):
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
