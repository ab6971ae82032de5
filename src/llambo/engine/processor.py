"""This machine as the engine sees it: the processor's instructions, its cores, and a name for the whole.

Owns the reading of /proc/cpuinfo (proc(5)) and what counts as "the same machine". Knows nothing of backends.
"""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ARCHITECTURES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
_FEATURE_KEYS = ("flags", "features")  # x86, ARM
_MODEL_KEYS = ("model name", "cpu implementer", "cpu part", "cpu variant")


@dataclass(frozen=True, slots=True)
class Processor:
    """`architecture` is "x86", "arm" or the system's own word; `features` are the kernel's names, lower case.

    The kernel lists only what it has switched on, so what is in `features` may be used. `cores` are those that this
    process may run on.
    """

    architecture: str
    model: str
    features: frozenset[str]
    cores: int


def parse(cpuinfo: str, *, machine: str, cores: int) -> Processor:
    """The processor that the text of /proc/cpuinfo describes, by its first core."""
    features: frozenset[str] = frozenset()
    words: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        name = key.strip().lower()
        if name in _FEATURE_KEYS and not features:
            features = frozenset(value.lower().split())
        elif name in _MODEL_KEYS:
            words.setdefault(name, value.strip())
    model = words.get("model name") or " ".join(words[key] for key in _MODEL_KEYS if key in words)
    return Processor(_ARCHITECTURES.get(machine.lower(), machine.lower()), model or "unknown", features, cores)


@cache
def this_processor() -> Processor:
    """The processor of this machine; without features where the system does not tell (no Linux)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return parse(text, machine=platform.machine(), cores=usable_cores())


def usable_cores() -> int:
    """How many cores this process may run on; what a container or taskset took away is not counted."""
    return len(allowed_cores())


def allowed_cores() -> frozenset[int]:
    """The numbers of the cores that this process may run on."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return frozenset(range(os.cpu_count() or 1))


def machine_id(processor: Processor, *, kernel: str = "", libc: str = "") -> str:
    """Twelve letters that are the same as long as measurements made here still hold.

    A home that was moved to another machine, or a machine with other cores, kernel or C library, gets another name.
    """
    facts = (
        processor.architecture,
        processor.model,
        " ".join(sorted(processor.features)),
        str(processor.cores),
        kernel or platform.release(),
        libc or "-".join(platform.libc_ver()),
    )
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


@cache
def this_machine() -> str:
    """`machine_id` of this machine."""
    return machine_id(this_processor())
