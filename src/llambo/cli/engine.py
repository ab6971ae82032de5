"""`llamboctl engine`: builds the engine for this processor, shows it, measures with it, removes it.

Owns what these commands print. How a backend is built, tested and chosen is the engine's business. Imports are inside
the commands, so that `--help` does without the engine.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llambo.cli.common import ConfigFile, Json, print_json, print_table, size_text
from llambo.cli.working import ended_by_signals, progress
from llambo.core import paths
from llambo.core.errors import BadRequest, LlamboError

if TYPE_CHECKING:
    from llambo.core.sections import Settings
    from llambo.engine.backend_store import Built
    from llambo.engine.choices import Choice, Remembered
    from llambo.engine.engines import Engines
    from llambo.engine.gguf import ModelFile
    from llambo.engine.policy import Shape

app = typer.Typer(
    no_args_is_help=True, help="The engine on this machine: builds for its processor, and what is fastest."
)

BUILD_LIMIT_S = 20.0
"""How long the measurement with the default model at the end of a build may take."""


def register(root: typer.Typer) -> None:
    """Adds `engine` to a command line."""
    root.add_typer(app, name="engine")


@app.command()
def build(
    variant: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Build this one; may be given again. Default: what pays.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Source archive of the installed xllamacpp; else fetched.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help="Measure the default model afterwards.")] = True,
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """Builds CPU backends for this processor, tests them, and measures which is fastest."""
    from llambo.engine import backend, backend_build, backend_store, backend_variants, engines
    from llambo.engine.processor import this_processor

    processor = this_processor()
    wanted = backend_variants.named(tuple(variant or ()), processor) or backend_variants.worth_building(processor)
    if not wanted:
        _nothing_to_build(as_json=as_json)
        return
    if source is not None and not source.is_file():
        raise BadRequest(f"--source {source} is no file; the source archive of xllamacpp is wanted there")
    home = paths.home()
    with ended_by_signals(), progress() as tell:
        backend_build.build(
            home,
            wanted,
            version=backend.wheel_version(),
            ggml=backend.ggml_version(),
            source=source,
            progress=tell,
        )
        tell("testing", 0, 0)
        found = _test(home, tuple(one.name for one in wanted))
        problem = ""
        if tune and any(not one.reason for one in found):
            tell("measuring", 0, 0)
            problem = _tune_default(engines.Engines(home), config_file)
    log = backend_store.engines_dir(home) / backend_build.LOG_NAME
    if as_json:
        print_json({"built": [_as_dict(one) for one in found], "log": str(log), "problem": problem})
    else:
        _print_built(found, log, problem)
    if all(one.reason for one in found):
        raise LlamboError("no backend passed its test; the engine inside the wheel stays in use")


def _print_built(found: list[Built], log: Path, problem: str) -> None:
    for one in found:
        sys.stdout.write(f"{one.name}: {one.state.value}{f': {one.reason}' if one.reason else ''}\n")
    sys.stdout.write(f"log: {log}\n")
    if problem:
        sys.stderr.write(f"not measured: {problem}\n")


def _nothing_to_build(*, as_json: bool) -> None:
    from llambo.engine.processor import this_processor

    processor = this_processor()
    if processor.architecture == "x86" and "avx2" not in processor.features:
        raise LlamboError(
            f"this processor ({processor.model}) has no AVX2, which the installed xllamacpp needs: install one that"
            " was compiled from source on this machine"
        )
    reason = f"the engine inside the wheel uses all that this processor ({processor.model}) has"
    if as_json:
        print_json({"built": [], "log": "", "problem": reason})
    else:
        sys.stdout.write(f"nothing to build: {reason}\n")


def _test(home: Path, names: tuple[str, ...]) -> list[Built]:
    from llambo.engine import backend_trust
    from llambo.engine.engines import Engines
    from llambo.engine.processor import this_machine

    reference = backend_trust.Reference()
    for one in Engines(home).built():
        if one.name in names and one.manifest is not None:
            backend_trust.self_test(one, machine=this_machine(), reference=reference)
    return [one for one in Engines(home).built() if one.name in names]


def _tune_default(engines: Engines, config_file: Path | None) -> str:
    """Measures with the default model where it is here; returns why it was not, or ""."""
    from llambo.core import config
    from llambo.engine import calibrate, gguf, models

    try:
        settings = config.load(config_file).settings
        path = models.resolve(settings.models.default, home=engines.home, offline=True)
        shape = _shape(settings, gguf.read(path))
        calibrate.calibrate_and_remember(engines, path, shape, limit_s=BUILD_LIMIT_S)
    except (LlamboError, OSError) as error:
        return str(error)
    return ""


def _shape(settings: Settings, model: ModelFile, *, node_type: str = "", slots: int = 0, threads: int = 0) -> Shape:
    """The shape that a node for the model gets by the configuration, with what is asked for in its place.

    Raises: `BadRequest` for a type that there is not.
    """
    from llambo.core.sections import PRESETS, NodeType
    from llambo.engine import llama
    from llambo.engine.policy import Shape, threads_of_type
    from llambo.engine.processor import usable_cores

    types = settings.cluster.node_types
    if node_type and node_type not in types:
        raise BadRequest(f"no node type is called {node_type!r}; there are {', '.join(types)}")
    usual = types[node_type] if node_type else settings.models
    few = llama.threads_for(model.tensor_bytes)
    if node_type:
        most, _ = threads_of_type(usual.threads, shipped=PRESETS.get(node_type, NodeType()).threads, few=few)
    else:
        most = settings.models.threads or few
    ctx = min(usual.ctx, model.ctx_train or usual.ctx)
    return Shape.of(ctx=ctx, slots=slots or usual.slots, threads=threads or most or usable_cores())


@app.command("tune")
def tune_(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Model to measure; default: models.default.")] = "",
    node_type: Annotated[str, typer.Option("--type", metavar="T", help="Measure for a node of this type.")] = "",
    slots: Annotated[int, typer.Option(min=0, max=256, help="Parallel answers of the node; 0: as configured.")] = 0,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads it may have; 0: as nodes get.")] = 0,
    limit: Annotated[float, typer.Option(min=1, max=3600, metavar="SECONDS", help="Time to take.")] = 60.0,
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """Measures how a model is answered fastest on this machine, and remembers it."""
    from llambo.core import config
    from llambo.engine import calibrate, gguf, models
    from llambo.engine.engines import Engines

    settings = config.load(config_file).settings
    ref = model or settings.models.default
    path = models.resolve(ref, home=paths.home(), offline=settings.models.offline)
    shape = _shape(settings, gguf.read(path), node_type=node_type, slots=slots, threads=threads)
    with ended_by_signals(), progress() as tell:
        choice = calibrate.calibrate_and_remember(
            Engines(paths.home()),
            path,
            shape,
            limit_s=limit,
            thorough=True,
            progress=lambda what: tell(f"measuring: {what}", 0, 0),
        )
    if as_json:
        print_json({"model": ref, "shape": str(shape), **asdict(choice)})
        return
    sys.stdout.write(f"{ref} ({shape}): {_words(choice)}\n")


@app.command()
def show(as_json: Json = False) -> None:
    """Shows the processor, the devices, the backends that were built, and what was measured."""
    from llambo.engine import backend, backend_store, devices, processor
    from llambo.engine.engines import Engines

    engines = Engines(paths.home())
    version, machine, here = backend.wheel_version(), processor.this_machine(), processor.this_processor()
    tag = backend_store.tag_of(version)
    built, choices, found = engines.built(), engines.choices(), devices.find()
    remembered = choices.read()
    if as_json:
        print_json(
            {
                "xllamacpp": version,
                "tag": tag,
                "machine": machine,
                "processor": here.model,
                "cores": here.cores,
                "devices": [asdict(one) for one in found],
                "backends": [_as_dict(one) for one in built],
                "choices": [{**asdict(one), "here": (one.machine, one.tag) == (machine, tag)} for one in remembered],
                "problem": choices.problem,
            }
        )
        return
    sys.stdout.write(f"xllamacpp {version} (llama.cpp {tag}), machine {machine}\n{here.model}, {here.cores} cores\n")
    for device in found:
        sys.stdout.write(f"{device.kind} {device.name}: {device.description}, {size_text(device.memory_total)}\n")
    if built:
        print_table([("BACKEND", "STATE", "REASON"), *((one.name, one.state.value, one.reason) for one in built)])
    else:
        sys.stdout.write("nothing is built; `llamboctl engine build` makes backends for this processor\n")
    if choices.problem:
        sys.stderr.write(f"{choices.problem}\n")
    _print_choices(remembered, machine, tag)


def _print_choices(remembered: list[Remembered], machine: str, tag: str) -> None:
    here = [one for one in remembered if (one.machine, one.tag) == (machine, tag)]
    for entry in here:
        sys.stdout.write(f"{entry.model_name} ({entry.shape}): {_words(entry.choice)}\n")
    if others := len(remembered) - len(here):
        sys.stdout.write(f"{others} of another machine, or another llama.cpp, are not used here\n")


@app.command()
def remove(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Backends to remove; default: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Removes built backends, and what was measured with them."""
    from llambo.engine import backend, backend_build, backend_store
    from llambo.engine.engines import Engines

    home = paths.home()
    version = backend.wheel_version()
    known = {one.name for one in Engines(home).built()}
    for name in names or ():
        if name not in known:
            raise BadRequest(f"no backend called {name!r} is built; there are {', '.join(sorted(known)) or 'none'}")
    count = 0
    if backend_store.engines_dir(home).is_dir():
        with backend_build.one_at_a_time(home):
            count = backend_store.remove(home, version=version, names=tuple(names or ()))
            choices = Engines(home).choices()
            for name in names or ("",):
                choices.forget(backend=name)
    if as_json:
        print_json({"removed": count})
    else:
        sys.stdout.write(f"removed {count} {'backend' if count == 1 else 'backends'}\n")


def _words(choice: Choice) -> str:
    """A choice for people."""
    gains = f"prefill {choice.prefill:.2f} and decode {choice.decode:.2f} times the plain wheel's"
    rates = f"{choice.prefill_tps:.0f} and {choice.decode_tps:.0f} tokens/s"
    return (
        f"backend {choice.backend or 'of the wheel'}, {choice.threads} threads, batches of {choice.batch},"
        f" flash attention {choice.flash_attention}; {gains} ({rates})"
    )


def _as_dict(built: Built) -> dict[str, Any]:
    return {
        "name": built.name,
        "state": built.state.value,
        "reason": built.reason,
        "path": str(built.library),
        "compiler": built.manifest.compiler if built.manifest else "",
        "version": built.manifest.version if built.manifest else "",
    }
