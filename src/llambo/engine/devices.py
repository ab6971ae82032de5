"""The devices that the installed engine can compute on: the processor, and graphics cards where the wheel knows them.

An xllamacpp that was built for CUDA, ROCm, Vulkan or Metal registers its devices by itself; nothing is configured here.
The list is made in a process of its own: opening a graphics driver costs time and memory that a caller should not keep.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

TIMEOUT_S = 30.0
_PROGRAM = """
import json, sys, xllamacpp
print(json.dumps([
    {"name": one["name"], "description": one["description"], "kind": one["type"].name.rpartition("_")[2],
     "memory_free": one["memory_free"], "memory_total": one["memory_total"]}
    for one in xllamacpp.get_device_info()
]))
"""


@dataclass(frozen=True, slots=True)
class Device:
    """One device. `kind` is "CPU", "GPU", "IGPU" or "ACCEL"; memory in bytes."""

    name: str
    description: str
    kind: str
    memory_free: int
    memory_total: int


def find() -> tuple[Device, ...]:
    """Every device, as llama.cpp lists them; none where the engine cannot be asked."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
        return tuple(Device(**one) for one in json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, IndexError):
        return ()
