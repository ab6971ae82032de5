"""Models on Hugging Face: which file of a repository is meant, and its way into the Hub's own cache.

Owns the choice by quantisation and the words for the Hub's refusals. Files go into the cache that other programs use
too (`HF_HOME`), under the names that `huggingface_hub` gives them; it lists and links, and `download` transfers, since
the library's own transfer starts again after an interruption. Honours `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from llambo.core.errors import BadRequest, DownloadFailed
from llambo.engine import download
from llambo.engine.download import Progress, Source
from llambo.engine.references import PART, Hub, part_names

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFERRED = ("Q4_K_M", "Q4_0", "Q5_K_M", "Q8_0")
"""What is taken, in this order, where a reference names no quantisation."""

METADATA_TIMEOUT_S = 15.0
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
_QUANT = re.compile(r"(?:^|[-._/])((?:UD-)?(?:I?Q\d|TQ\d|BF16|F16|F32|FP16|MXFP4|NVFP4)[\w]*)", re.IGNORECASE)


def cache_dir() -> Path:
    """The Hub's cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else below the user's cache directory."""
    if value := os.environ.get("HF_HUB_CACHE"):
        return Path(value).expanduser()
    if value := os.environ.get("HF_HOME"):
        return Path(value).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def quant_of(file_name: str) -> str:
    """The quantisation in a file's name, such as "Q4_K_M"; empty where there is none."""
    part = PART.fullmatch(file_name)
    stem = part["stem"] if part else file_name.removesuffix(".gguf")
    found: list[str] = _QUANT.findall(stem)
    return found[-1].upper() if found else ""


def choose(ref: Hub, names: Sequence[str]) -> tuple[str, ...]:
    """The files of `names` that `ref` means: one, or all parts of a split model in order.

    Raises: `DownloadFailed` that names what there is.
    """
    models = sorted(name for name in names if name.endswith(".gguf") and not _is_projector(name))
    firsts = [name for name in models if not (part := PART.fullmatch(name)) or int(part["no"]) == 1]
    if not firsts:
        raise DownloadFailed(f"{ref.repo} has no GGUF files; look for a repository whose name ends in -GGUF")
    if ref.file:
        chosen = [name for name in models if name == ref.file]
    elif ref.quant:
        chosen = [name for name in firsts if quant_of(name) == ref.quant.upper()]
    else:
        chosen = _by_preference(firsts)
    if not chosen:
        raise DownloadFailed(f"{ref} does not exist; {ref.repo} has {_offer(firsts)}")
    # Of several files with one quantisation the plainest is meant: in the top directory, with the shortest name.
    first = min(chosen, key=lambda name: (name.count("/"), len(name), name))
    parts = part_names(first)
    if missing := [name for name in parts if name not in models]:
        raise DownloadFailed(f"{ref.repo} lacks {len(missing)} of the {len(parts)} parts of {first}: {missing[0]}")
    return parts


def _is_projector(name: str) -> bool:
    return PurePosixPath(name).name.lower().startswith("mmproj")


def _by_preference(names: list[str]) -> list[str]:
    for quant in PREFERRED:
        if chosen := [name for name in names if quant_of(name) == quant]:
            return chosen
    return names if len(names) == 1 else []


def _offer(names: list[str]) -> str:
    quants = sorted({quant_of(name) for name in names} - {""})
    return ", ".join(quants or names[:10])


def find_cached(ref: Hub) -> tuple[Path, ...]:
    """The files of `ref` in the cache, newest snapshot first; empty where they are not all there."""
    for snapshot in _snapshots(ref.repo):
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf") if path.exists()]
        try:
            return tuple(snapshot / name for name in choose(ref, names))
        except DownloadFailed:
            continue
    return ()


def _repo_dir(repo: str) -> Path:
    return cache_dir() / f"models--{repo.replace('/', '--')}"


def _snapshots(repo: str) -> list[Path]:
    root = _repo_dir(repo)
    try:
        main = (root / "refs" / "main").read_text().strip()
    except OSError:
        main = ""
    try:
        found = [path for path in (root / "snapshots").iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda path: (path.name == main, path.stat().st_mtime), reverse=True)


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A model file in the cache; `path` is the name under a snapshot, which links to a blob."""

    repo: str
    name: str
    path: Path


def cached_files() -> list[CachedFile]:
    """Every GGUF model file in the cache, whoever put it there; of a split model its first part."""
    found: dict[tuple[str, str], CachedFile] = {}
    for root in sorted(cache_dir().glob("models--*--*")):
        repo = root.name.removeprefix("models--").replace("--", "/", 1)
        for snapshot in _snapshots(repo):
            for path in sorted(snapshot.rglob("*.gguf")):
                name = path.relative_to(snapshot).as_posix()
                part = PART.fullmatch(name)
                if path.exists() and not _is_projector(name) and not (part and int(part["no"]) > 1):
                    found.setdefault((repo, name), CachedFile(repo, name, path))
    return list(found.values())


def remove(paths: Sequence[Path]) -> int:
    """Deletes files of the cache with their blobs, in every snapshot; returns the bytes that became free."""
    freed = 0
    for path in paths:
        blob = _blob(path)
        freed += blob.lstat().st_size
        root = next(parent for parent in path.parents if parent.name == "snapshots")
        for link in [link for link in root.rglob("*.gguf") if _blob(link) == blob]:
            link.unlink()
        blob.unlink(missing_ok=True)
    return freed


def _blob(path: Path) -> Path:
    """What a name under a snapshot stands for. One step only: a blob may link on, to a store that is not ours."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


@dataclass(frozen=True, slots=True)
class _RepoFile:
    name: str
    size_bytes: int
    sha256: str  # empty for a file that is not in LFS


def fetch(ref: Hub, progress: Progress | None) -> Path:
    """Brings what `ref` means into the cache and returns its (first) file; what is there already is not fetched.

    Raises: `DownloadFailed`.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - a quarter of a second that only a download should cost

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    files = _list_files(api, ref)
    by_name = {file.name: file for file in files}
    chosen = [by_name[name] for name in choose(ref, list(by_name))]
    total = sum(file.size_bytes for file in chosen)
    before = 0
    paths: list[Path] = []
    for file in chosen:
        paths.append(_fetch_file(api, ref, file, _from(progress, before, total)))
        before += file.size_bytes
    if progress:
        progress(total, total)
    return paths[0]


def _from(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress over all files while one of them arrives."""
    return (lambda done, _: progress(before + done, total)) if progress else None


def _list_files(api: HfApi, ref: Hub) -> list[_RepoFile]:
    import httpx2  # noqa: PLC0415 - huggingface_hub has imported it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        info = api.model_info(ref.repo, files_metadata=True, timeout=METADATA_TIMEOUT_S)
    except HFValidationError:
        raise BadRequest(f"{ref.repo!r} cannot be the name of a repository on Hugging Face") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise DownloadFailed(f"{ref.repo}: {_explain(ref, status)} (HTTP {status})") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise DownloadFailed(f"{api.endpoint} cannot be reached to fetch {ref}: {reason}") from None
    except (ValueError, KeyError, TypeError, AttributeError):  # whatever the library finds in a foreign answer
        raise DownloadFailed(f"{api.endpoint} does not answer as Hugging Face does; check HF_ENDPOINT") from None
    return [
        _RepoFile(entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else "")
        for entry in info.siblings or []
    ]


def _explain(ref: Hub, status: int) -> str:
    token = "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "a token in HF_TOKEN, which is not set"
    match status:
        case 401 | 404:
            return f"there is no such model on Hugging Face, or it is private and needs {token}"
        case 403:
            return f"access is restricted: accept the terms on the model's page, and use {token}, that may read it"
        case _:
            return "Hugging Face cannot give it now"


def _fetch_file(api: HfApi, ref: Hub, file: _RepoFile, progress: Progress | None) -> Path:
    from huggingface_hub import get_token, hf_hub_url  # noqa: PLC0415

    if file.sha256:
        token = get_token()
        source = Source(
            url=hf_hub_url(ref.repo, file.name, endpoint=api.endpoint),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            explain=lambda status: _explain(ref, status),
        )
        download.fetch(source, _repo_dir(ref.repo) / "blobs" / file.sha256, progress=progress)
    path = _link(api, ref, file)
    linked_elsewhere = path.is_symlink() and file.sha256 not in {"", _blob(path).name}
    if path.stat().st_size != file.size_bytes or linked_elsewhere:
        raise DownloadFailed(f"{ref.repo} changed while {file.name} was fetched; try again")
    return path


def _link(api: HfApi, ref: Hub, file: _RepoFile) -> Path:
    """Gives the blob its name in the newest snapshot; a file outside LFS, always a small one, is fetched here too."""
    import httpx2  # noqa: PLC0415 - huggingface_hub has imported it
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # noqa: PLC0415

    disable_progress_bars()
    try:
        return Path(hf_hub_download(ref.repo, file.name, cache_dir=cache_dir(), endpoint=api.endpoint))
    except (OSError, httpx2.HTTPError) as error:  # the library's own errors are kinds of OSError
        raise DownloadFailed(f"{ref.repo}: {file.name} could not be put into {cache_dir()}: {error}") from None
