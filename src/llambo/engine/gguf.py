"""What a model file is, read from its header alone: `read(path)` gives a `ModelFile` or says in one sentence
what is wrong.

Owns which keys llama.cpp needs and what each other kind of file looks like when it was taken for a model. The
bytes are `gguf_format`'s business, what the engine knows is in `gguf_tables`. Reads a few MiB at most, maps
nothing, and never looks at the weights: a checksum is what finds damage there. Source: GGUF specification
(ggml `docs/gguf.md`), llama.cpp's `llama-hparams` and `llama-model-loader`.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llambo.core.errors import BadModel
from llambo.engine.gguf_format import MAGIC, Container, LongArray, LongText, Value, read_container
from llambo.engine.gguf_tables import ARCHITECTURES, FILE_TYPES, NOT_TEXT, POOLING_TYPES
from llambo.engine.references import PART

MAX_LAYERS = 512  # llama.cpp aborts beyond it (LLAMA_MAX_LAYERS)
MAX_PARTS = 10_000
_MAX_SIZE = 2**31  # for a width, a context, a count of heads: llama.cpp keeps them in 32 bits
_SNIFFED_BYTES = 512


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A text model that the engine's llama.cpp can read; sizes in bytes, over all parts of a split model."""

    path: Path
    parts: tuple[Path, ...]  # in order; `path` alone where the model is not split
    size_bytes: int
    version: int
    architecture: str
    name: str
    quant: str  # such as "Q4_K_M"; the commonest tensor type where the file does not say
    n_layer: int
    ctx_train: int  # tokens
    n_embd: int
    n_ff: int  # activations of the widest feed-forward layer for one token, over the experts it uses
    n_head: int  # of the widest layer; 0 for a model without attention
    n_head_kv: tuple[int, ...]  # per layer; 0 where a layer keeps no keys and values
    key_length: int  # elements per head
    value_length: int
    n_vocab: int
    has_chat_template: bool
    pooling_type: str | None
    tensors: int
    tensor_bytes: int


def read(path: Path | str) -> ModelFile:
    """Reads the header of a GGUF model, and those of its other parts where it is split.

    Raises: `BadModel` with one sentence that names the path and what is wrong with it.
    """
    path = Path(path)
    container = _open(path)
    try:
        return _describe(path, container)
    except BadModel as error:
        raise BadModel(f"{path}: {error.message}") from None
    except OSError as error:  # a part that went away meanwhile
        raise BadModel(f"{path}: cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> Container:
    """One file's header, with the tensor table checked against the file's size."""
    try:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            raise BadModel("this is a directory; a model is a GGUF file")
        if not stat.S_ISREG(facts.st_mode):
            raise BadModel("this is no regular file; a model is a GGUF file")
        with path.open("rb") as file:
            check_magic(file.read(_SNIFFED_BYTES), facts.st_size)
            container = read_container(file, facts.st_size)
        _check_size(container, facts.st_size)
        return container
    except BadModel as error:
        raise BadModel(f"{path}: {error.message}") from None
    except FileNotFoundError:
        raise BadModel(f"{path}: there is no such file") from None
    except PermissionError:
        raise BadModel(f"{path}: no permission to read it") from None
    except OSError as error:
        raise BadModel(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:  # a NUL byte in the path
        raise BadModel(f"{str(path)!r}: this is no path") from None


def _check_size(container: Container, size_bytes: int) -> None:
    missing = container.data_end - size_bytes
    if container.tensors and missing > 0:
        raise BadModel(
            f"the file is truncated: its tensors end at byte {container.data_end:,} and it has"
            f" {size_bytes:,} bytes ({missing:,} are missing); fetch it again"
        )


_CONVERT = "convert it with llama.cpp's convert_hf_to_gguf.py"
_OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer (fetch the model itself with `git lfs pull`)"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page (the download gave an error page, not the model)"),
    (rb"(?s).{6}\0\0\{", f"a safetensors file ({_CONVERT})"),
    (rb"PK\x03\x04", f"a zip archive or PyTorch checkpoint ({_CONVERT})"),
    (rb"\x80[\x02-\x05]", f"a Python pickle or old PyTorch checkpoint ({_CONVERT})"),
    (rb"lmgg|fmgg|tjgg|algg", "an old ggml file from before GGUF (get the model as GGUF)"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ|7z\xbc\xaf", "a compressed file (unpack it first)"),
    (rb"\x89HDF", "an HDF5 file (get the model as GGUF)"),
    (rb"\s*[{\[]", "JSON text (the download may have given an error message, not the model)"),
)


def check_magic(head: bytes, size_bytes: int) -> None:
    """Refuses what does not begin like a GGUF file; `head` is its first few hundred bytes, or all of it.

    Raises: `BadModel` that says what the bytes look like.
    """
    if not size_bytes:
        raise BadModel("the file is empty (0 bytes); fetch it again")
    if head.startswith(MAGIC):
        return
    looks = next((f"; it looks like {what}" for pattern, what in _OTHER_FORMATS if re.match(pattern, head)), "")
    raise BadModel(f"this is no GGUF file: it starts with {head[:4]!r}; expected {MAGIC!r}{looks}")


class _Keys:
    """The header's keys with their meaning: typed, bounded, and named in the error when they are wrong."""

    def __init__(self, values: dict[str, Value], architecture: str) -> None:
        self._values = values
        self._prefix = f"{architecture}."

    def number(self, key: str, default: int | None = None, *, low: int = 0, high: int = _MAX_SIZE) -> int:
        """A whole number; a key that starts with "." is the architecture's own. Without `default` it is
        required."""
        key = self._prefix + key[1:] if key.startswith(".") else key
        value = self._values.get(key, default)
        if value is None:
            raise BadModel(f"the key {key!r} is missing, which llama.cpp needs")
        if not isinstance(value, int) or not low <= value < high:
            wanted = f"a whole number from {low} to {high - 1}"
            raise BadModel(f"{key!r} is {_show(value)}, not {wanted}: the file is damaged")
        return int(value)

    def per_layer(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """One number for each layer, which the file may give once for all."""
        value = self._values.get(self._prefix + key)
        if value is None:
            return default
        if not isinstance(value, tuple):
            return (self.number("." + key),) * len(default)
        items = tuple(item for item in value if isinstance(item, int) and 0 <= item < _MAX_SIZE)
        if len(items) != len(value) or len(items) < len(default):
            name = self._prefix + key
            raise BadModel(f"{name!r} should be {len(default)} whole numbers: the file is damaged")
        return items[: len(default)]

    def count(self, key: str) -> int:
        """The length of an array; 0 where there is none."""
        value = self._values.get(key)
        return value.count if isinstance(value, LongArray) else len(value) if isinstance(value, tuple) else 0

    def text(self, key: str, default: str = "") -> str:
        value = self._values.get(key)
        return value if isinstance(value, str) else default

    def has_text(self, key: str) -> bool:
        value = self._values.get(key)
        return isinstance(value, LongText) or (isinstance(value, str) and bool(value))


def _show(value: Value) -> str:
    match value:
        case LongArray() | tuple():
            return "an array"
        case LongText():
            return "a long text"
        case _:
            return repr(value)[:80]


def _describe(path: Path, first: Container) -> ModelFile:
    parts = _part_paths(path, first)
    architecture = _architecture(first)
    containers = [first, *(_open_part(part, no, len(parts)) for no, part in enumerate(parts) if no)]
    tensors = sum(container.tensors for container in containers)
    if not tensors:
        raise BadModel("the file holds no tensors (a vocabulary only, or an unfinished conversion)")
    keys = _Keys(first.keys, architecture)
    n_layer = keys.number(".block_count", low=1, high=MAX_LAYERS + 1)
    n_embd = keys.number(".embedding_length", low=1)
    heads = keys.per_layer("attention.head_count", (0,) * n_layer)
    head_length = n_embd // max(heads) if max(heads) else 0
    pooling = first.keys.get(f"{architecture}.pooling_type")
    return ModelFile(
        path=path,
        parts=parts,
        size_bytes=sum(part.stat().st_size for part in parts),
        version=first.version,
        architecture=architecture,
        name=keys.text("general.name"),
        quant=_quant(keys, containers),
        n_layer=n_layer,
        ctx_train=keys.number(".context_length", low=1),
        n_embd=n_embd,
        n_ff=_feed_forward(keys, n_layer),
        n_head=max(heads),
        n_head_kv=keys.per_layer("attention.head_count_kv", heads),
        key_length=keys.number(".attention.key_length", head_length),
        value_length=keys.number(".attention.value_length", head_length),
        n_vocab=_vocabulary(keys),
        has_chat_template=keys.has_text("tokenizer.chat_template"),
        pooling_type=POOLING_TYPES.get(pooling) if isinstance(pooling, int) else None,
        tensors=tensors,
        tensor_bytes=sum(container.tensor_bytes for container in containers),
    )


def _architecture(container: Container) -> str:
    name = container.keys.get("general.architecture")
    if not isinstance(name, str):
        raise BadModel("the key 'general.architecture' is missing: nothing says what kind of model this is")
    if name not in ARCHITECTURES:
        raise BadModel(f"the architecture {name[:64]!r} is not known to the engine's llama.cpp")
    if name in NOT_TEXT:
        raise BadModel(f"this is no text model but {NOT_TEXT[name]} (architecture {name!r})")
    kind = container.keys.get("general.type", "model")
    if kind == "adapter":
        raise BadModel("this is a LoRA adapter, which works only on top of a model; give the model itself")
    return name


def _vocabulary(keys: _Keys) -> int:
    tokens = keys.count("tokenizer.ggml.tokens")
    if not keys.has_text("tokenizer.ggml.model") or not tokens:
        raise BadModel("the keys 'tokenizer.ggml.model' and 'tokenizer.ggml.tokens' are missing: it cannot read text")
    return tokens


def _feed_forward(keys: _Keys, n_layer: int) -> int:
    dense = max(keys.per_layer("feed_forward_length", (0,) * n_layer))
    experts = keys.number(".expert_used_count", 0) * keys.number(".expert_feed_forward_length", dense)
    return max(dense, experts)


def _quant(keys: _Keys, containers: list[Container]) -> str:
    label = FILE_TYPES.get(keys.number("general.file_type", -1, low=-1, high=2**32))
    if label:
        return label
    sizes: Counter[str] = Counter()
    for container in containers:
        sizes.update(container.bytes_by_type)
    return sizes.most_common(1)[0][0]


def _part_paths(path: Path, first: Container) -> tuple[Path, ...]:
    """Every file of the model, in order; refuses a part that is not the first, and names what is missing."""
    keys = _Keys(first.keys, "")
    count = keys.number("split.count", 0, high=MAX_PARTS)
    no = keys.number("split.no", 0, high=MAX_PARTS)
    if count <= 1:
        return (path,)
    match = PART.fullmatch(path.name)
    if not match or (int(match["no"]), int(match["count"])) != (no + 1, count):
        wanted = f"NAME-{no + 1:05}-of-{count:05}.gguf"
        raise BadModel(f"this is part {no + 1} of {count} of a split model and must be named like {wanted}")
    names = [f"{match['stem']}-{part:05}-of-{count:05}.gguf" for part in range(1, count + 1)]
    if no:
        raise BadModel(f"this is part {no + 1} of {count} of a split model; give the first part, {names[0]}")
    parts = tuple(path.with_name(name) for name in names)
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise BadModel(f"{len(missing)} of the model's {count} parts are missing beside it: {shown}")
    return parts


def _open_part(path: Path, no: int, count: int) -> Container:
    container = _open(path)
    keys = _Keys(container.keys, "")
    if (keys.number("split.no", -1, low=-1), keys.number("split.count", -1, low=-1)) != (no, count):
        raise BadModel(f"{path.name} is not part {no + 1} of {count} of this model")
    return container
