"""The mean of several nodes' distributions, the token that is drawn from it, and the text that tokens make."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.mixing import Candidate, Chosen, NextToken, Text, choose
from llambo.core.errors import BadRequest
from llambo.core.types import Sampling, TokenEvent

GREEDY = Sampling(temperature=0)


def view(*shares: float, first: int = 0, ends: bool = False) -> NextToken:
    """A node's view: tokens from `first` on with these probabilities, the likeliest first."""
    ranked = sorted(enumerate(shares, start=first), key=lambda item: -item[1])
    found = tuple(Candidate(token, b"t%d" % token, math.log(share)) for token, share in ranked)
    return NextToken(found, ends)


def token(piece: bytes, number: int = 1) -> Chosen:
    return Chosen(number, piece, -0.5, 1.0, False)


def text_of(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def test_greedy_takes_what_is_likeliest_on_the_whole() -> None:
    views = [(view(0.6, 0.4), 1.0), (view(0.1, 0.9), 1.0), (view(0.55, 0.45), 1.0)]
    chosen = choose(views, GREEDY, random.Random(1))
    assert (chosen.id, chosen.piece) == (1, b"t1")
    assert chosen.logprob == pytest.approx(math.log((0.4 + 0.9 + 0.45) / 3))
    assert chosen.agreement == pytest.approx(1 / 3)


def test_a_heavier_node_has_more_of_the_say() -> None:
    views = [(view(0.6, 0.4), 5.0), (view(0.1, 0.9), 1.0)]
    chosen = choose(views, GREEDY, random.Random(1))
    assert (chosen.id, chosen.agreement) == (0, pytest.approx(5 / 6))


def test_a_token_that_one_node_alone_has_among_its_likeliest_counts_with_that_alone() -> None:
    chosen = choose([(view(0.7, first=0), 1.0), (view(0.8, first=9), 1.0)], GREEDY, random.Random(1))
    assert (chosen.id, chosen.logprob) == (9, pytest.approx(math.log(0.4)))


def test_one_id_with_two_texts_is_no_shared_vocabulary() -> None:
    other = NextToken((Candidate(0, b"else", -0.1),))
    with pytest.raises(BadRequest, match="models that share a vocabulary, and these do not; name one with model"):
        choose([(view(0.9), 1.0), (other, 1.0)], GREEDY, random.Random(1))


def test_the_text_ends_where_a_node_whose_choice_was_taken_says_so_or_with_a_token_of_control() -> None:
    ends, goes_on = view(0.9, 0.1, ends=True), view(0.2, 0.8)
    assert choose([(ends, 1.0), (goes_on, 1.0)], GREEDY, random.Random(1)).ends
    assert not choose([(ends, 1.0), (goes_on, 3.0)], GREEDY, random.Random(1)).ends
    assert choose([(NextToken((Candidate(7, b"", -0.1),)), 1.0)], GREEDY, random.Random(1)).ends


def test_a_seed_gives_the_same_tokens_again_and_the_shares_are_those_of_the_mean() -> None:
    views = [(view(0.5, 0.5), 1.0), (view(0.1, 0.9), 1.0)]
    hot = Sampling(temperature=1, top_p=1)

    def draw(seed: int, count: int) -> list[int]:
        chance = random.Random(seed)
        return [choose(views, hot, chance).id for _ in range(count)]

    assert draw(7, 50) == draw(7, 50) != draw(8, 50)
    assert Counter(draw(3, 4000))[0] / 4000 == pytest.approx(0.3, abs=0.03)


def test_temperature_and_top_p_narrow_the_draw() -> None:
    views = [(view(0.5, 0.3, 0.2), 1.0)]

    def drawn(sampling: Sampling) -> set[int]:
        chance = random.Random(1)
        return {choose(views, sampling, chance).id for _ in range(300)}

    assert drawn(Sampling(temperature=1, top_p=1)) == {0, 1, 2}
    assert drawn(Sampling(temperature=1, top_p=0.7)) == {0, 1}
    assert drawn(Sampling(temperature=1, top_p=0)) == {0}
    assert drawn(Sampling(temperature=0.01, top_p=1)) == {0}


@given(
    st.lists(
        st.tuples(st.lists(st.floats(1e-6, 1), min_size=1, max_size=5), st.floats(0.1, 9)), min_size=1, max_size=4
    ),
    st.sampled_from([None, 0.0, 0.3, 5.0]),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
)
def test_what_is_chosen_is_always_one_of_the_candidates(
    nodes: list[tuple[list[float], float]], temperature: float | None, top_p: float | None
) -> None:
    views = [(view(*(share / sum(shares) for share in shares)), weight) for shares, weight in nodes]
    chosen = choose(views, Sampling(temperature=temperature, top_p=top_p), random.Random(1))
    assert any(chosen.id == one.id for seen, _ in views for one in seen.candidates)
    assert 0 <= chosen.agreement <= 1 + 1e-9
    assert chosen.logprob <= 1e-9


# --- the text -----------------------------------------------------------------------------------------------------


def test_a_character_that_spans_tokens_comes_whole_with_all_its_ids() -> None:
    text = Text(())
    parts = "é🙂".encode()
    given_out = [text.take(token(parts[at : at + 1], at)) for at in range(len(parts))]
    events = [event for events in given_out for event in events]
    assert [(event.text, event.ids) for event in events] == [("é", (0, 1)), ("🙂", (2, 3, 4, 5))]
    assert events[1].logprob == -2.0
    text.take(token(parts[2:4]))
    assert text.rest() == [], "half a character is none"


def test_nothing_of_a_stop_text_is_given_out() -> None:
    text = Text(("END", "\n\n"))
    seen = [text_of(text.take(token(piece))) for piece in (b"one", b" E", b"NO", b" E", b"N", b"D and more")]
    assert seen == ["one", "", " ENO", "", "", " "]
    assert text.is_stopped


def test_what_was_held_back_comes_at_the_end() -> None:
    text = Text(("STOP",))
    assert text_of(text.take(token(b"go ST"))) == ""
    assert text_of(text.rest()) == "go ST"
    assert not text.is_stopped


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_the_text_is_all_before_the_first_stop_text(whole: str, stops: list[str], data: st.DataObject) -> None:
    text = Text(tuple(stops))
    seen, left = "", whole
    while left and not text.is_stopped:
        size = data.draw(st.integers(1, len(left)))
        seen += text_of(text.take(token(left[:size].encode())))
        left = left[size:]
    if not text.is_stopped:
        seen += text_of(text.rest())
    read = whole[: len(whole) - len(left)]
    ends = [at for stop in stops if (at := read.find(stop)) >= 0]
    assert seen == (read[: min(ends)] if ends else read)
