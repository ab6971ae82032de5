"""What the configuration says about engines, the shape of a node, and how nodes share the cores.

Light: imported by every start, also where nothing was ever built. What follows from it is `engines`' business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llambo.core.errors import BadConfig
from llambo.engine.processor import allowed_cores, usable_cores

if TYPE_CHECKING:
    from llambo.core.sections import Engine
    from llambo.engine.engines import Engines

DIRECTORY = "engines"
"""Where everything of the engine lies, below the home."""

AUTO, WHEEL = "auto", "wheel"
_CORES_MOST = 65_535


@dataclass(frozen=True, slots=True)
class EnginePolicy:
    """What the configuration says. `backend` is "auto" (what was measured), "wheel" or the name of a built one.

    With `share_cores` nodes that share the machine get fewer threads. `cpus` are the cores nodes may run on; () is all.
    `wait` says how idle threads wait: "active", "passive", or "auto" for by how busy the machine is.
    """

    backend: str = AUTO
    calibrate: bool = True
    share_cores: bool = True
    flash_attention: str = AUTO
    numa: str = ""
    cpus: tuple[int, ...] = ()
    wait: str = AUTO

    @classmethod
    def of(cls, section: Engine) -> EnginePolicy:
        """What the section `engine` of the configuration says. Raises: `BadConfig`."""
        return cls(
            backend=section.backend,
            calibrate=section.calibrate,
            share_cores=section.share_cores,
            flash_attention=section.flash_attention,
            numa=section.numa,
            cpus=parse_cpus(section.cpus),
            wait=section.wait,
        )


def parse_cpus(text: str) -> tuple[int, ...]:
    """The cores that "0-3,6" means, sorted; () for "".

    Raises: `BadConfig` for a range that goes backwards, or where none of them can be used here.
    """
    cores: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high:
            raise BadConfig(f"engine.cpus: {part.strip()} goes backwards; write {high}-{low}")
        cores.update(range(low, min(high, _CORES_MOST) + 1))
    if cores and not cores & allowed_cores():
        raise BadConfig(f"engine.cpus: none of {text} can be used here; there are {sorted(allowed_cores())}")
    return tuple(sorted(cores & allowed_cores()))


SMALL_NODE_CTX = 512
"""A node with one slot of so many tokens at most is taken as one of many: it prefers less private memory."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The type of a node, as far as it decides: parallel answers, and the most threads that it may have.

    `is_small` says that it is meant to be one of many.
    """

    slots: int
    threads: int
    is_small: bool = False

    @classmethod
    def of(cls, *, ctx: int, slots: int, threads: int) -> Shape:
        """The shape of a node with `ctx` tokens a slot."""
        return cls(slots, threads, slots == 1 and 0 < ctx <= SMALL_NODE_CTX)

    def __str__(self) -> str:
        return f"slots={self.slots} threads={self.threads}{' small' if self.is_small else ''}"


@dataclass(frozen=True, slots=True)
class EngineHome:
    """The engines of one home, not looked at yet."""

    path: Path
    policy: EnginePolicy = field(default_factory=EnginePolicy)

    @property
    def has_any(self) -> bool:
        """Whether anything was ever built there; costs one look at the disk."""
        return (self.path / DIRECTORY).is_dir()

    def open(self) -> Engines:
        """The engines, with all that it takes to choose between them."""
        from llambo.engine.engines import Engines  # noqa: PLC0415 - 20 ms that a plain start does without

        return Engines(self.path, self.policy)


def threads_of_type(configured: int, *, shipped: int, few: int, cores: int = 0) -> tuple[int, bool]:
    """The threads of a node of some type, and whether that is by default.

    `configured` is what the type says, `shipped` what it says where nobody changed it: another number was asked for,
    and is what it is. `few` is the rule of thumb for the model (0: none).
    """
    if configured not in {0, shipped}:
        return configured, False
    return few or min(configured, cores or usable_cores()), True


def share_of_threads(wanted: int, *, nodes: int, cores: int = 0) -> int:
    """How many threads a node gets that is one of `nodes` on this machine; `wanted` 0 leaves one alone its own choice.

    So that all of them together have no more runnable threads than there are cores, and each has at least one.
    """
    cores = cores or usable_cores()
    if nodes <= 1:
        return wanted
    return min(wanted or cores, max(1, cores // nodes))


MOST_NICENESS = 19
_WEIGHTS_PER_CORE = 2  # a core's nodes together take as much from others as so many ordinary processes
_WEIGHT_STEP = 1.25  # from one niceness to the next, in Linux


def niceness_of(*, nodes: int, cores: int = 0) -> int:
    """The niceness of a node that is one of `nodes` on this machine: 0 for a few, more where many share a core.

    A hundred nodes that compute at once would leave whoever relays their tokens a hundredth of the processor, and with
    it seconds of waiting for its turn. Together they now weigh as much as a few ordinary processes, however many they
    are, and so other programs lose no more to many nodes than to few.
    """
    share = nodes / (_WEIGHTS_PER_CORE * (cores or usable_cores()))
    return min(MOST_NICENESS, math.ceil(math.log(max(1.0, share), _WEIGHT_STEP) - 1e-9))
