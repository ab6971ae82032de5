"""`llamboctl pull` and `llamboctl models`: fetch, list, show and remove model files.

Owns what these commands print. What a model is and where it lies is the engine's business. Imports are inside the
commands, so that `--help` does without the engine.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llambo.cli.common import ConfigFile, Json, draws, print_json, print_table, size_text
from llambo.core import paths
from llambo.core.errors import Cancelled

if TYPE_CHECKING:
    from llambo.engine.download import Progress
    from llambo.engine.gguf import ModelFile
    from llambo.engine.models import StoredModel

Ref = Annotated[
    str, typer.Argument(metavar="REF", help="built-in, a path, user/repo[:quant] on Hugging Face, or https://…/x.gguf")
]

models_app = typer.Typer(name="models", help="The models of this machine.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Adds `pull` and `models` to a command line."""
    app.command()(pull)
    app.add_typer(models_app)


def pull(ref: Ref, as_json: Json = False, config_file: ConfigFile = None) -> None:
    """Fetches a model, or the rest of it, and prints where it lies."""
    from llambo.core import config
    from llambo.engine import gguf, models, references

    offline = config.load(config_file).settings.models.offline
    try:
        with download_progress(ref) as progress:
            path = models.resolve(ref, home=paths.home(), offline=offline, progress=progress, refresh=True)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what has arrived is kept, and the same command goes on from there\n")
        raise Cancelled("interrupted") from None
    file = gguf.read(path)
    if as_json:
        name = references.default_name(references.parse(ref))
        facts = {"size_bytes": file.size_bytes, "quant": file.quant, "architecture": file.architecture}
        print_json({"ref": ref, "name": name, "path": str(path)} | facts)
    else:
        sys.stdout.write(f"{path}\n")


@contextmanager
def download_progress(ref: str) -> Iterator[Progress]:
    """Shows how a download goes on: a bar on a terminal, else one line when it starts; nothing where none starts."""
    if not draws(sys.stderr):
        yield _announcer(ref)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), Speed(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(ref, total=None)

    def show(done: int, total: int) -> None:
        bar.start()  # with the first piece; once it is on, this does nothing
        bar.update(task, completed=done, total=total or None)

    try:
        yield show
    finally:
        bar.stop()


def _announcer(ref: str) -> Progress:
    announced = False

    def tell(_done: int, total: int) -> None:
        nonlocal announced
        if not announced:
            announced = True
            sys.stderr.write(f"fetching {ref}{f' ({size_text(total)})' if total else ''}\n")

    return tell


@models_app.callback()
def models_(context: typer.Context, as_json: Json = False) -> None:
    """Lists the models of this machine, or shows or removes one."""
    if context.invoked_subcommand is None:
        list_(as_json)


@models_app.command("list")
def list_(as_json: Json = False) -> None:
    """Lists the models of this machine."""
    from llambo.engine import models

    found = models.list_models(paths.home())
    if as_json:
        print_json({"models": [_as_dict(model) for model in found]})
    elif not found:
        sys.stdout.write("no models here; `llamboctl pull REF` fetches one\n")
    else:
        _print_table(found)


def _print_table(found: list[StoredModel]) -> None:
    rows = [("NAME", "SIZE", "QUANT", "ARCHITECTURE", "REFERENCE")]
    for model in found:
        facts = (model.quant, model.architecture) if not model.problem else ("-", "unusable")
        rows.append((model.name, size_text(model.size_bytes), *facts, model.ref))
    print_table(rows)
    for model in found:
        if model.problem:
            sys.stderr.write(f"{model.path}: {model.problem}\n")


@models_app.command()
def show(ref: Ref, as_json: Json = False) -> None:
    """Shows what the header of one model of this machine says."""
    from llambo.engine import models

    stored, file = models.show(ref, home=paths.home())
    facts = _as_dict(stored) | _facts(file)
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if value not in {None, ""}:
            sys.stdout.write(f"{key:16} {size_text(value) if key.endswith('_bytes') else value}\n")


def _facts(file: ModelFile) -> dict[str, Any]:
    return {
        "title": file.name,
        "layers": file.n_layer,
        "width": file.n_embd,
        "heads": file.n_head,
        "vocabulary": file.n_vocab,
        "ctx_train": file.ctx_train,
        "chat_template": file.has_chat_template,
        "pooling": file.pooling_type,
        "tensors": file.tensors,
        "parts": len(file.parts),
        "gguf_version": file.version,
    }


@models_app.command("rm")
def remove(ref: Ref, as_json: Json = False) -> None:
    """Deletes a fetched model from this machine."""
    from llambo.engine import models

    freed = models.remove(ref, home=paths.home())
    if as_json:
        print_json({"ref": ref, "freed_bytes": freed})
    else:
        sys.stdout.write(f"removed {ref} ({size_text(freed)})\n")


def _as_dict(model: StoredModel) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(model).items()}
