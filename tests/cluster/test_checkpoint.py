"""The checkpoint: what was written is read, damage is named, and a write that fails changes nothing."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster import checkpoint
from llambo.cluster.checkpoint import Checkpoint, ModelState, NodeState
from llambo.core.errors import BadRequest, LlamboError, NotFound
from llambo.core.types import LoadOptions

SMALL = Checkpoint(
    1.5,
    "random",
    (ModelState("m", "built-in", LoadOptions(ctx=512), "tiny", True),),
    (NodeState("n1", "tiny", "m", 2), NodeState("n2", url="http://127.0.0.1:1", api_key_env="KEY")),
)
BIG = Checkpoint(2.5, nodes=tuple(NodeState(f"n{i}", "tiny", "m", 1) for i in range(1, 2001)))


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


words = st.text(max_size=20)
named = st.text(min_size=1, max_size=20)
ids = st.integers(1, 999_999_999).map("n{}".format)
models = st.builds(ModelState, named, named, st.builds(LoadOptions, ctx=st.integers(0, 2**24)), words, st.booleans())
nodes = st.builds(NodeState, ids, words, words, st.integers(0, 256), words, words, st.integers(0, 2**24))


@given(
    st.builds(
        Checkpoint,
        st.floats(0, 2e9),
        words,
        st.lists(models, max_size=3, unique_by=lambda model: model.name).map(tuple),
        st.lists(nodes, max_size=3, unique_by=lambda node: node.id).map(tuple),
    )
)
def test_what_is_encoded_is_decoded(state: Checkpoint) -> None:
    assert checkpoint.decode(checkpoint.encode(state)) == state


def test_the_file_is_json_of_the_documented_shape_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    checkpoint.write(path, SMALL)
    document = json.loads(path.read_text())
    assert list(document) == [
        "version",
        "saved_at",
        "strategy",
        "models",
        "nodes",
        "configured_strategy",
        "configured_default",
    ]
    options = {"ctx": 512, "slots": 0, "threads": 0, "gpu_layers": -1, "threads_by_default": False}
    assert document["models"] == [
        {"name": "m", "ref": "built-in", "options": options, "node_type": "tiny", "pinned": True}
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names_in(path.parent) == ["state.json"]
    assert checkpoint.read(path) == SMALL


def nodes_of(*ids: str, **more: int) -> str:
    return json.dumps({"version": 1, "saved_at": 1, "nodes": [{"id": each, "model": "m", **more} for each in ids]})


def models_of(*names: str, ref: str = "built-in") -> str:
    return json.dumps({"version": 1, "saved_at": 1, "models": [{"name": name, "ref": ref} for name in names]})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it is not valid JSON"),
        ('{"version": 1, "saved_at": 1', "it is not valid JSON"),
        ("\ufffe\x00", "it is not valid JSON"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field `version`"),
        ('{"version": 2, "saved_at": "new"}', "it has version 2, and this Llambo reads version 1"),
        ('{"version": 1}', "missing required field `saved_at`"),
        ('{"version": 1, "saved_at": 1, "nodes": [{"id": 3}]}', "Expected `str`, got `int` - at `$.nodes[0].id`"),
        (
            '{"version": 1, "saved_at": 1, "models": [{"name": "m", "ref": "r", "options": {"slots": 999}}]}',
            "slots must be between 0 and 256, not 999",
        ),
        *((nodes_of(each), f"{each!r} is no id of a node") for each in ("x1", "n0", "n05", "n-3", "n1_0", "n", "n1\n")),
        (nodes_of("n1234567890"), "'n1234567890' is no id of a node"),
        (nodes_of("n\u0661"), "is no id of a node"),
        (nodes_of("n1", "n2", "n1"), "it has node n1 twice"),
        (nodes_of("n1", slots=-1), "the slots of node n1 must be between 0 and 256, not -1"),
        (nodes_of("n1", slots=257), "the slots of node n1 must be between 0 and 256, not 257"),
        (nodes_of("n1", ctx=2**24 + 1), "the ctx of node n1 must be between 0 and 16777216, not 16777217"),
        (models_of("m", "m"), "it has model m twice"),
        (models_of(""), "a model without a name"),
        (models_of("m", ref=""), "without what it was loaded from"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(BadRequest) as caught:
        checkpoint.read(path)
    assert caught.value.message.startswith(f"the checkpoint {path} is damaged: ")
    assert complaint in caught.value.message


@given(st.integers(0, 600), st.binary(max_size=8))
def test_no_damage_of_bytes_is_more_than_a_refusal(place: int, noise: bytes) -> None:
    data = checkpoint.encode(SMALL)
    try:
        checkpoint.decode(data[:place] + noise + data[place + len(noise) :])
    except BadRequest as error:
        assert error.message


def test_more_keys_than_are_known_are_no_damage() -> None:
    document = checkpoint.to_dict(SMALL) | {"later": 1}
    assert checkpoint.decode(json.dumps(document).encode()) == SMALL


def test_no_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no checkpoint at"):
        checkpoint.read(tmp_path / "none.json")
    with pytest.raises(LlamboError, match="Is a directory"):
        checkpoint.read(tmp_path)


def test_damaged_files_are_set_aside_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for number in (1, 2):
        path.write_text(f"damage {number}")
        aside = checkpoint.set_aside(path)
        assert (aside.name, aside.read_text()) == (f"state.json.damaged-{number}", f"damage {number}")
        assert not path.exists()
    with pytest.raises(LlamboError, match="cannot set the checkpoint"):
        checkpoint.set_aside(path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from llambo.cluster import checkpoint
from tests.cluster.test_checkpoint import BIG
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
checkpoint.write(Path(sys.argv[1]), BIG)
"""


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    checkpoint.write(path, SMALL)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=False)
    assert f"cannot write the checkpoint {path}: File too large" in done.stderr
    assert checkpoint.read(path) == SMALL
    assert names_in(tmp_path) == ["state.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from llambo.cluster import checkpoint
from tests.cluster.test_checkpoint import BIG
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write(Path(sys.argv[1]), BIG)
"""


def test_being_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    checkpoint.write(path, SMALL)
    done = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert checkpoint.read(path) == SMALL
    checkpoint.write(path, BIG)
    assert checkpoint.read(path) == BIG


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LlamboError, match="File exists"):
        checkpoint.write(tmp_path / "file" / "state.json", SMALL)
    (tmp_path / "state.json").mkdir()
    with pytest.raises(LlamboError, match="Is a directory"):
        checkpoint.write(tmp_path / "state.json", SMALL)
    assert names_in(tmp_path) == ["file", "state.json"]


def test_where_it_lies_is_configurable(tmp_path: Path) -> None:
    assert checkpoint.path_of("", tmp_path) == tmp_path / "cluster-state.json"
    assert checkpoint.path_of("a/b.json", tmp_path) == tmp_path / "a" / "b.json"
    assert checkpoint.path_of("/x/y.json", tmp_path) == Path("/x/y.json")
