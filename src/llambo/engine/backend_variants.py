"""Which CPU backends of llama.cpp there are, what each needs of a processor, and which are worth building for one.

Pure. The names are llama.cpp's own: `ggml-cpu-NAME` is the target of its build that `GGML_CPU_ALL_VARIANTS` makes.
"""

from __future__ import annotations

from dataclasses import dataclass

from llambo.core.errors import BadRequest
from llambo.engine.processor import Processor

_AVX2 = ("avx", "avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw")
_VNNI, _VBMI, _BF16 = "avx512_vnni", "avx512vbmi", "avx512_bf16"
_DOTPROD, _FP16 = "asimddp", "asimdhp"


@dataclass(frozen=True, slots=True)
class Variant:
    """One build of the CPU backend. `needs` are features by the kernel's names; of a family only the best is built."""

    name: str
    architecture: str
    family: str
    needs: frozenset[str]


def _x86(name: str, family: str, *needs: str) -> Variant:
    return Variant(name, "x86", family, frozenset(needs))


def _arm(name: str, family: str, *needs: str) -> Variant:
    return Variant(name, "arm", family, frozenset(needs))


# Within a family the later is the better one, as llama.cpp itself ranks them.
VARIANTS = (
    _x86("haswell", "AVX2", *_AVX2),
    _x86("alderlake", "AVX2", *_AVX2, "avx_vnni"),
    _x86("skylakex", "AVX-512", *_AVX512),
    _x86("cannonlake", "AVX-512", *_AVX512, _VBMI),
    _x86("cascadelake", "AVX-512", *_AVX512, _VNNI),
    _x86("icelake", "AVX-512", *_AVX512, _VBMI, _VNNI),
    _x86("cooperlake", "AVX-512", *_AVX512, _VNNI, _BF16),
    _x86("zen4", "AVX-512", *_AVX512, _VBMI, _VNNI, _BF16),
    _x86("sapphirerapids", "AMX", *_AVX512, _VBMI, _VNNI, _BF16, "amx_tile", "amx_int8"),
    _arm("armv8.2_2", "NEON", _DOTPROD, _FP16),
    _arm("armv8.2_3", "SVE", _DOTPROD, _FP16, "sve"),
    _arm("armv8.6_1", "SVE", _DOTPROD, _FP16, "sve", "i8mm"),
    _arm("armv8.6_2", "SVE", _DOTPROD, _FP16, "sve", "i8mm", "sve2"),
    _arm("armv9.2_2", "SME", _DOTPROD, _FP16, "sve", "i8mm", "sve2", "sme"),
)

BY_NAME = {variant.name: variant for variant in VARIANTS}

WHEEL_NEEDS = {"x86": frozenset(_AVX2)}
"""What the installed wheel itself was compiled for; a build for no more than that gains less, and is made if named."""


def missing_features(variant: Variant, processor: Processor) -> tuple[str, ...]:
    """What the processor lacks for the variant, sorted; its architecture where that is another one."""
    if variant.architecture != processor.architecture:
        return (f"{variant.architecture} processor",)
    return tuple(sorted(variant.needs - processor.features))


def worth_building(processor: Processor) -> tuple[Variant, ...]:
    """The best variant of each family that the processor can run and that is more than the wheel is."""
    best: dict[str, Variant] = {}
    wheel = WHEEL_NEEDS.get(processor.architecture, frozenset())
    for variant in VARIANTS:
        if not missing_features(variant, processor) and variant.needs - wheel:
            best[variant.family] = variant
    return tuple(best.values())


def named(names: tuple[str, ...], processor: Processor) -> tuple[Variant, ...]:
    """The variants of these names.

    Raises: `BadRequest` for an unknown one, or one that this processor cannot run.
    """
    found = []
    for name in names:
        variant = BY_NAME.get(name)
        if variant is None:
            known = ", ".join(one.name for one in VARIANTS if one.architecture == processor.architecture)
            raise BadRequest(f"there is no backend called {name!r}; for this processor there are {known}")
        if missing := missing_features(variant, processor):
            raise BadRequest(f"this processor ({processor.model}) cannot run {name}: it lacks {', '.join(missing)}")
        found.append(variant)
    return tuple(dict.fromkeys(found))
