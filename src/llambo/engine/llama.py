"""llama.cpp in this process: opens its native HTTP server through xllamacpp.

The only module that knows xllamacpp's parameters. It is called in a node process alone: construction holds the
interpreter lock for as long as the model loads, and a crash in llama.cpp ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from typing import Any

LOG_WARNINGS = 2
"""llama.cpp's verbosity for warnings and errors: a line per request would grow a node's log without bound."""

SINGLE_THREAD_BYTES = 32 * 2**20
"""Below this size of weights a token takes less time than handing its work to a second thread."""

SPIN_ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}
"""How long an OpenMP thread spins before it sleeps: tens of microseconds instead of milliseconds.

With the library's own default two threads beside another busy process wait for each other by spinning, and a model of
125M parameters falls from 79 tokens/s to 2 to 13; with this it keeps 18 to 22 there, and 72 to 86 on an idle machine.
See docs/decisions/0004.
"""

SPARE_HTTP_THREADS = 4
"""Threads of llama.cpp's HTTP server beyond one for each slot's stream: for health checks, templates, idle connections.

It would start more when all are busy, but not for connections that come in one burst: those wait for a free thread.
"""


class EngineRefused(Exception):
    """llama.cpp would not start with this model; its log has the reason."""


def load_library() -> None:
    """Imports xllamacpp (about 60 ms and 100 MB of shared mappings) and fills llama.cpp's constant tables.

    The tables (3 MiB in all) are then shared by every process that is forked from this one.

    Raises: `ImportError`, with the loader's word on what is missing.
    """
    import xllamacpp  # noqa: PLC0415

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    with contextlib.suppress(AttributeError):  # not exported: then each node fills its own
        # Of the CPU backend alone, which has no threads yet: a graphics driver would not survive the fork.
        library.ggml_backend_cpu_reg()
        library._Z26unicode_cpt_flags_from_cptj(0)  # unicode_cpt_flags_from_cpt(uint32_t): what each character is


def spin_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a process that will load the library; the user's own choice stands."""
    chosen = "OMP_WAIT_POLICY" in environment or "GOMP_SPINCOUNT" in environment
    return {} if chosen else SPIN_ENVIRONMENT


def threads_for(tensor_bytes: int) -> int:
    """The number of threads for a model of that size: 1 for a small one, else 0, the engine's own choice."""
    return 1 if tensor_bytes < SINGLE_THREAD_BYTES else 0


def open_server(
    *,
    model_path: str,
    socket_path: str,
    ctx: int,
    slots: int,
    threads: int,
    gpu_layers: int,
    embedding: bool,
    batch: int,
    cache_mib: int,
    slots_path: str,
) -> Any:
    """Loads the model and serves it on a Unix socket; returns the server, which lives as long as it is referenced.

    `ctx` is tokens per slot, `batch` the tokens of one pass, `cache_mib` host memory for the states of idle
    conversations (llama.cpp's own default is 8 GiB), `slots_path` where slots are saved. With `embedding` the engine
    pools (mean, unless the model says otherwise) and gives embeddings.

    Raises: `EngineRefused`.
    """
    import xllamacpp  # noqa: PLC0415 - the zygote has imported it before the fork

    params = xllamacpp.CommonParams()
    params.model.path = model_path
    params.hostnames = [socket_path]
    params.n_ctx = ctx * slots
    params.n_parallel = slots
    params.n_gpu_layers = gpu_layers
    params.n_threads_http = slots + SPARE_HTTP_THREADS
    params.cache_ram_mib = cache_mib
    params.n_ubatch = batch
    params.slot_save_path = f"{slots_path}/"  # llama.cpp puts the file's name right behind it
    params.verbosity = LOG_WARNINGS
    # The caller has sized the context and checked the memory; a second opinion would load the model twice.
    params.fit_params = False
    params.warmup = False
    params.ui = False
    if threads:
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
    if embedding:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = batch  # pooling takes a whole text at once
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise EngineRefused(str(error)) from None
