"""Which backends are worth building for which processor, and how a processor is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llambo.cli import engine as command
from llambo.core import paths
from llambo.core.errors import BadRequest, LlamboError
from llambo.engine import backend_variants
from llambo.engine import processor as processors
from llambo.engine.processor import Processor, machine_id, parse, this_machine, this_processor, usable_cores

HASWELL = "fpu avx avx2 fma f16c bmi2"
CASCADE_LAKE = f"{HASWELL} avx512f avx512cd avx512vl avx512dq avx512bw avx512_vnni"
SAPPHIRE_RAPIDS = f"{CASCADE_LAKE} avx512vbmi avx512_bf16 amx_tile amx_int8"


def _x86(flags: str) -> Processor:
    text = f"processor\t: 0\nmodel name\t: Test CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: none\n"
    return parse(text, machine="x86_64", cores=2)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("fpu sse4_2", ()),
        (HASWELL, ()),
        (f"{HASWELL} avx_vnni", ("alderlake",)),
        (CASCADE_LAKE, ("cascadelake",)),
        (f"{CASCADE_LAKE} avx512vbmi avx512_bf16", ("zen4",)),
        (SAPPHIRE_RAPIDS, ("zen4", "sapphirerapids")),
    ],
)
def test_the_best_of_each_family_is_built_and_nothing_that_the_wheel_is_already(
    flags: str, names: tuple[str, ...]
) -> None:
    assert tuple(one.name for one in backend_variants.worth_building(_x86(flags))) == names


def test_an_arm_processor_gets_arm_variants() -> None:
    text = (
        "processor : 0\nFeatures : fp asimd asimddp asimdhp sve i8mm sve2\nCPU implementer : 0x41\nCPU part : 0xd40\n"
    )
    processor = parse(text, machine="aarch64", cores=4)
    assert (processor.architecture, processor.model) == ("arm", "0x41 0xd40")
    assert [one.name for one in backend_variants.worth_building(processor)] == ["armv8.2_2", "armv8.6_2"]


def test_an_unknown_architecture_gets_none() -> None:
    assert backend_variants.worth_building(parse("", machine="riscv64", cores=1)) == ()


def test_a_variant_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(BadRequest, match="no backend called 'avx1024'; for this processor there are haswell"):
        backend_variants.named(("avx1024",), _x86(HASWELL))


def test_a_variant_that_the_processor_cannot_run_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(BadRequest, match=r"Test CPU\) cannot run sapphirerapids: it lacks amx_int8, amx_tile"):
        backend_variants.named(("sapphirerapids",), _x86(f"{CASCADE_LAKE} avx512vbmi avx512_bf16"))
    with pytest.raises(BadRequest, match="it lacks arm processor"):
        backend_variants.named(("armv8.2_2",), _x86(HASWELL))


def test_naming_one_twice_builds_it_once() -> None:
    assert len(backend_variants.named(("haswell", "haswell"), _x86(HASWELL))) == 1


def test_another_processor_core_count_kernel_or_libc_is_another_machine() -> None:
    base = _x86(HASWELL)
    names = {
        machine_id(base, kernel="6.1", libc="glibc-2.36"),
        machine_id(_x86(CASCADE_LAKE), kernel="6.1", libc="glibc-2.36"),
        machine_id(Processor("x86", "Other", base.features, 2), kernel="6.1", libc="glibc-2.36"),
        machine_id(Processor("x86", base.model, base.features, 4), kernel="6.1", libc="glibc-2.36"),
        machine_id(base, kernel="6.2", libc="glibc-2.36"),
        machine_id(base, kernel="6.1", libc="glibc-2.40"),
    }
    assert len(names) == 6
    assert machine_id(base, kernel="6.1", libc="glibc-2.36") in names


def test_this_machine_has_a_name_that_stays() -> None:
    assert this_machine() == machine_id(this_processor())
    assert this_processor().cores == usable_cores() >= 1


def test_a_processor_without_avx2_is_told_what_would_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "this_processor", lambda: _x86("fpu sse4_2"))
    result = CliRunner().invoke(command.app, ["build"])
    assert isinstance(result.exception, LlamboError)
    assert "(Test CPU) has no AVX2, which the installed xllamacpp needs" in result.exception.message
    assert not paths.home().exists()


@pytest.mark.parametrize("found", [_x86(HASWELL), replace(_x86(""), architecture="riscv64")])
def test_where_there_is_nothing_to_gain_it_says_so_and_builds_nothing(
    monkeypatch: pytest.MonkeyPatch, found: Processor
) -> None:
    monkeypatch.setattr(processors, "this_processor", lambda: found)
    result = CliRunner().invoke(command.app, ["build"])
    assert (result.exit_code, result.exception) == (0, None)
    assert (
        result.stdout == "nothing to build: the engine inside the wheel uses all that this processor (Test CPU) has\n"
    )
    assert not paths.home().exists()
