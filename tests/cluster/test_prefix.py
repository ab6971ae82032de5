"""Hashes of beginnings, and the map from them to nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.prefix import (
    COMMON_CHARS,
    CUTS,
    FEW,
    MIN_ENTRIES,
    PrefixIndex,
    chain,
    conversation_text,
)

texts = st.text(alphabet="ab\ud800é", max_size=900)


@given(texts, texts, texts)
def test_two_texts_share_exactly_the_hashes_of_their_common_beginning(start: str, one: str, other: str) -> None:
    left, right = start + one, start + other
    common = next(
        (at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    shared = sum(a == b for a, b in zip(chain(left), chain(right), strict=False))
    assert shared == sum(cut <= common for cut in CUTS)
    assert chain(left)[:shared] == chain(right)[:shared]


@given(texts, texts)
def test_a_longer_text_has_the_hashes_of_the_shorter_and_more(text: str, more: str) -> None:
    assert chain(text + more)[: len(chain(text))] == chain(text)


def test_cuts_are_close_at_first_and_then_ever_farther_apart() -> None:
    steps = [after - before for before, after in zip((0, *CUTS), CUTS, strict=False)]
    assert steps == sorted(steps)
    assert (CUTS[0], CUTS[-1] > 500_000) == (128, True)


def test_a_turn_of_a_conversation_begins_the_next() -> None:
    first = [("user", "hello " * 60)]
    second = [*first, ("assistant", "hi " * 80), ("user", "and now?")]
    assert conversation_text(second).startswith(conversation_text(first))


def test_the_session_comes_first_and_then_the_longest_match() -> None:
    index = PrefixIndex()
    index.computed("n1", "mine", (1, 2))
    index.computed("n2", "", (1, 2, 3))
    index.computed("n3", "", (1, 2, 3, 4))
    assert list(index.candidates("mine", (1, 2, 3, 4, 5))) == [("n1", 0, False), ("n3", 4, False)]
    index.computed("n2", "", (1, 2, 3))
    assert list(index.candidates("", (1, 2, 3, 4, 5))) == [("n3", 4, False), ("n2", 3, False)]
    assert (index.best("mine", ()), index.best("", (1, 2, 3)), index.best("other", (9,))) == ("n1", "n2", "")


def conversations(index: PrefixIndex, shared: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """That many texts, each on a node of its own, with one beginning."""
    texts = [(*shared, 1000 + number, 2000 + number) for number in range(count)]
    for number, text in enumerate(texts):
        index.computed(f"n{number}", "", text)
    return texts


def test_a_beginning_after_which_texts_keep_parting_is_everybodys_and_each_of_them_is_still_its_own() -> None:
    index = PrefixIndex()
    texts = conversations(index, (1, 2), FEW)
    assert list(index.candidates("", (1, 2, 77))) == [(f"n{FEW - 1}", 2, False)]
    texts += conversations(index, (1, 2), FEW + 1)[FEW:]
    assert list(index.candidates("", (1, 2, 77))) == list(index.candidates("", (1, 2))) == [(f"n{FEW}", 2, True)]
    for number, text in enumerate(texts):
        assert next(index.candidates("", (*text, 88))) == (f"n{number}", 4, False)
        assert index.best("", text) == f"n{number}"
    assert index.best("", (1, 2, 77)) == ""


def test_a_conversation_that_goes_on_and_on_parts_from_nothing() -> None:
    index = PrefixIndex()
    for length in range(1, 40):
        index.computed("n1", "", tuple(range(length)))
        index.computed("n1", "", tuple(range(length)))  # asked again, answered alike
        assert list(index.candidates("", tuple(range(length + 3)))) == [("n1", length, False)]


def test_a_long_beginning_is_followed_whoever_shares_it() -> None:
    index = PrefixIndex()
    depth = next(number for number, cut in enumerate(CUTS, start=1) if cut > COMMON_CHARS)
    shared = tuple(range(depth))
    conversations(index, shared, FEW + 3)
    assert list(index.candidates("", (*shared, 77))) == [(f"n{FEW + 2}", depth, False)]


def test_the_session_is_followed_whatever_its_text_begins_with() -> None:
    index = PrefixIndex()
    conversations(index, (1,), FEW + 3)
    index.computed("n9", "mine", (1,))
    assert list(index.candidates("mine", (1, 77))) == [("n9", 1, False)]


def test_what_a_node_turned_out_not_to_have_is_not_believed_nor_what_is_older() -> None:
    index = PrefixIndex()
    index.computed("n1", "old", (1,))
    index.computed("n1", "s", (2, 3))
    index.computed("n1", "new", (4,))
    index.missed("n1", (2, 3), 2)
    assert [index.best("", (hashed,)) for hashed in (1, 3, 4)] == ["", "", "n1"]
    assert [index.best(session, ()) for session in ("old", "s", "new")] == ["", "", "n1"]
    index.computed("n1", "s", (2, 3))
    assert list(index.candidates("s", (2, 3))) == [("n1", 2, False)]


def test_a_miss_says_nothing_of_another_nodes_cache() -> None:
    index = PrefixIndex()
    index.computed("n1", "", (1, 2))
    index.computed("n2", "", (1, 2))  # the later one is the one that is known
    index.missed("n1", (1, 2), 2)
    index.missed("n2", (1, 2), 0)
    assert list(index.candidates("", (1, 2))) == [("n2", 2, False)]


def test_a_restarted_node_has_nothing_until_it_computes_again() -> None:
    index = PrefixIndex()
    index.computed("n1", "s", (1,))
    index.forget("n1")
    assert list(index.candidates("s", (1,))) == []
    index.computed("n1", "s", (1,))
    assert list(index.candidates("s", (1,))) == [("n1", 1, False)]


def test_what_is_moved_is_found_at_the_other_node_also_right_after_its_restart() -> None:
    index = PrefixIndex()
    index.computed("n1", "s", (1, 2))
    index.computed("n2", "t", (7,))
    index.forget("n2")
    index.move("n1", "n2")
    assert list(index.candidates("s", (1, 2))) == [("n2", 2, False)]
    assert index.best("t", (7,)) == ""


@given(st.lists(st.integers(1, 64), min_size=1, max_size=30))
def test_the_map_is_bounded_and_the_latest_is_in_it(sizes: list[int]) -> None:
    index = PrefixIndex()
    index.capacity = 100
    for number, size in enumerate(sizes):
        index.computed("n1", f"s{number}", tuple(range(number * 100, number * 100 + size)))
        assert len(index) <= 2 * (50 + 64) + 2 * 26
        assert index.best(f"s{number}", ()) == index.best("", (number * 100,)) == "n1"


def test_a_larger_cluster_gets_a_larger_map() -> None:
    index = PrefixIndex()
    index.size_for(10)
    assert index.capacity == MIN_ENTRIES
    index.size_for(10_000)
    assert index.capacity > MIN_ENTRIES
