"""Every message of 9P2000 as hypothesis draws them."""

from __future__ import annotations

import dataclasses
import types
import typing

from hypothesis import strategies as st

from llambo.ninep import messages as m
from llambo.ninep.messages import Message, Qid, Stat

ALL = typing.get_args(m.TMessage) + typing.get_args(m.RMessage)

_WIDTH = {"tag": 2, "oldtag": 2, "mode": 1, "offset": 8}


def integers(size: int) -> st.SearchStrategy[int]:
    return st.integers(0, 256**size - 1)


texts = st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape")) | st.text(max_size=20)
qids = st.builds(Qid, integers(1), integers(4), integers(8))
stats = st.builds(
    Stat, texts, qids, integers(4), integers(8), integers(4), integers(4), texts, texts, texts, integers(2), integers(4)
)


def _field(name: str, kind: object) -> st.SearchStrategy[typing.Any]:
    if kind is int:
        return integers(_WIDTH.get(name, 4))
    by_kind: dict[object, st.SearchStrategy[typing.Any]] = {
        str: texts,
        bytes: st.binary(max_size=300),
        Qid: qids,
        Stat: stats,
        tuple[str, ...]: st.lists(texts, max_size=20).map(tuple),
        tuple[Qid, ...]: st.lists(qids, max_size=20).map(tuple),
    }
    return by_kind[kind]


def of(kind: type[Message]) -> st.SearchStrategy[Message]:
    hints = typing.get_type_hints(kind)
    fields = {field.name: _field(field.name, hints[field.name]) for field in dataclasses.fields(kind)}
    return st.builds(kind, **fields)


messages = st.one_of([of(kind) for kind in ALL])
t_messages = st.one_of([of(kind) for kind in typing.get_args(m.TMessage)])
assert isinstance(m.Message, types.UnionType)
