"""llama.cpp in this process: opens its native HTTP server through xllamacpp.

The only module that knows xllamacpp's parameters. It is called in a node process alone: construction holds the
interpreter lock for as long as the model loads, and a crash in llama.cpp ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llambo.core import paths

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

_GPU_TYPES = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU of ggml-backend.h

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


SHARED_SPIN_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}
"""The same for a machine that others keep busy: 29 to 36 tokens/s there, for 56 to 72 on an idle one."""

WAIT_ENVIRONMENTS = {
    "active": {"OMP_WAIT_POLICY": "active"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


def has_gpu() -> bool:
    """Whether the installed engine finds a graphics card. Call it in a node: a driver does not survive a fork."""
    import xllamacpp  # noqa: PLC0415

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    try:
        library.ggml_backend_dev_get.restype = ctypes.c_void_p
        library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
        library.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
        library.ggml_backend_dev_count.restype = ctypes.c_size_t
    except AttributeError:  # not exported: then llama.cpp puts on the card what it was told to
        return False
    devices = (library.ggml_backend_dev_get(number) for number in range(library.ggml_backend_dev_count()))
    return any(library.ggml_backend_dev_type(device) in _GPU_TYPES for device in devices)


def spin_environment(environment: Mapping[str, str], *, wait: str = "auto", is_shared: bool = False) -> dict[str, str]:
    """What to add to the environment of a process that will load the library; the user's own choice stands.

    `wait` is `engine.wait` of the configuration; for "auto" it counts whether the machine `is_shared` with other work.
    """
    if "OMP_WAIT_POLICY" in environment or "GOMP_SPINCOUNT" in environment:
        return {}
    return WAIT_ENVIRONMENTS.get(wait) or (SHARED_SPIN_ENVIRONMENT if is_shared else SPIN_ENVIRONMENT)


def machine_is_shared() -> bool:
    """Whether other work keeps half of the cores busy or more, by the load of the last minute."""
    try:
        return os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    except (OSError, AttributeError):  # not known here
        return False


def threads_for(tensor_bytes: int) -> int:
    """The number of threads for a model of that size: 1 for a small one, else 0, the engine's own choice."""
    return 1 if tensor_bytes < SINGLE_THREAD_BYTES else 0


@dataclass(frozen=True, slots=True)
class ServerSetting:
    """How a server is opened.

    `ctx` is tokens per slot, `batch` the tokens of one pass; `threads` 0 leaves the number to llama.cpp. `cache_mib` is
    host memory for the states of idle conversations (llama.cpp's own default is 8 GiB), `slots_path` where slots are
    saved. With `embedding` the engine pools (mean, unless the model says otherwise) and gives embeddings; with
    `reranking` it ranks texts, which needs a model made for it. `alias` is what it calls its model in replies, "" for
    the path. `flash_attention` is "auto", "on" or "off", `numa` "", "distribute", "isolate", "numactl" or "mirror":
    llama.cpp's own words.
    """

    model_path: str
    socket_path: str
    slots_path: str
    ctx: int
    slots: int
    threads: int
    gpu_layers: int
    batch: int
    cache_mib: int
    embedding: bool = False
    reranking: bool = False
    alias: str = ""
    flash_attention: str = "auto"
    numa: str = ""


def open_server(setting: ServerSetting) -> Any:
    """Loads the model and serves it on a Unix socket; returns the server, which lives as long as it is referenced.

    Raises: `EngineRefused`.
    """
    import xllamacpp  # noqa: PLC0415 - the zygote has imported it before the fork

    if len(os.fsencode(setting.socket_path)) > paths.SOCKET_PATH_MAX:  # llama.cpp would not say what is wrong
        raise EngineRefused(
            f"{setting.socket_path} is too long for a socket's path, which has at most {paths.SOCKET_PATH_MAX} bytes;"
            " choose a shorter LLAMBO_RUNTIME_DIR or TMPDIR"
        )
    try:
        return xllamacpp.Server(_parameters(setting))
    except RuntimeError as error:
        _finish_log(ctypes.CDLL(xllamacpp.xllamacpp.__file__))
        raise EngineRefused(str(error)) from None


def _finish_log(library: ctypes.CDLL) -> None:
    """Returns once llama.cpp's log is written: a thread of its own does that, and the process is about to end."""
    with contextlib.suppress(AttributeError):  # not exported
        library._Z15common_log_mainv.restype = ctypes.c_void_p
        library._Z16common_log_flushP10common_log(ctypes.c_void_p(library._Z15common_log_mainv()))


def _parameters(setting: ServerSetting) -> Any:
    """The setting in xllamacpp's words."""
    import xllamacpp  # noqa: PLC0415

    params = xllamacpp.CommonParams()
    params.model.path = setting.model_path
    params.hostnames = [setting.socket_path]
    params.n_ctx = setting.ctx * setting.slots
    params.n_parallel = setting.slots
    params.n_gpu_layers = setting.gpu_layers
    params.n_threads_http = setting.slots + SPARE_HTTP_THREADS
    params.cache_ram_mib = setting.cache_mib
    params.n_ubatch = setting.batch
    params.slot_save_path = f"{setting.slots_path}/"  # llama.cpp puts the file's name right behind it
    params.verbosity = LOG_WARNINGS
    # The caller has sized the context and checked the memory; a second opinion would load the model twice.
    # But what fits on a graphics card only llama.cpp can tell.
    params.fit_params = setting.gpu_layers < 0 and has_gpu()
    params.warmup = False
    params.ui = False
    params.endpoint_metrics = True  # counts at no cost that could be measured
    if setting.alias:
        params.model_alias = {setting.alias}
    _set_processor(params, setting)
    _set_pooling(params, setting)
    return params


def _set_processor(params: Any, setting: ServerSetting) -> None:
    import xllamacpp  # noqa: PLC0415

    if setting.flash_attention != "auto":
        state = "ENABLED" if setting.flash_attention == "on" else "DISABLED"
        params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{state}")
    if setting.numa:
        params.numa = getattr(xllamacpp.ggml_numa_strategy, f"GGML_NUMA_STRATEGY_{setting.numa.upper()}")
    if setting.threads:
        params.cpuparams.n_threads = setting.threads
        params.cpuparams_batch.n_threads = setting.threads


def _set_pooling(params: Any, setting: ServerSetting) -> None:
    import xllamacpp  # noqa: PLC0415

    if not (setting.embedding or setting.reranking):
        return
    kind = "RANK" if setting.reranking else "MEAN"
    params.embedding = True
    params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{kind}")
    params.n_batch = setting.batch  # pooling takes a whole text at once
