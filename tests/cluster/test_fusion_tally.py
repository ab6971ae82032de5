"""How answers are compared and counted, whatever gives them and in whatever order."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llambo.cluster.comparing import CHARS, Grams, both_ways, chars_of, normalised
from llambo.cluster.fusion import Ballot, Rules, Tally, needed, tally_for
from llambo.cluster.fusion_plan import plan, seed_of
from llambo.core.errors import BadRequest
from llambo.core.fusion import FusionRequest, Strategy
from llambo.core.sections import Cognition
from llambo.core.types import MAX_SEED

VOTES: tuple[Strategy, ...] = ("majority-vote", "confidence-weighted", "quorum")
ALL: tuple[Strategy, ...] = (*VOTES, "weighted-average")


def tally(strategy: Strategy, asked: int, *, need: int = 0, is_ordered: bool = False, heaviest: float = 1.0) -> Tally:
    return tally_for(Rules(strategy, asked, need or asked // 2 + 1, is_ordered, heaviest))


def chrf(hypothesis: str, reference: str) -> float:
    return both_ways(Grams(hypothesis), Grams(reference))[0]


def cast(count: Tally, *texts: str | None, logprob: float = -0.5) -> Tally:
    for voter, text in enumerate(texts):
        count.cast(Ballot(voter, text, logprob))
    return count


# --- comparing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris.", " paris "),
        ("The answer\n\tis:  42!", "the answer is 42"),
        ("Don\u2019t (ever) stop", "dont ever stop"),
        ("well-known", "well known"),
        ("\ufb01ne", "fine"),  # a ligature
        ("STRASSE", "straße"),
        ("\u22127", "-7"),
        ("yes\u200a", "Yes"),
    ],
)
def test_case_white_space_and_punctuation_make_no_difference(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3.5", "35"),
        ("-7", "7"),
        ("1,5", "15"),
        ("a+b", "a b"),
        ("x = 1", "x 1"),
        ("?", "!"),
        ("été", "ete"),
        ("", "."),
    ],
)
def test_what_makes_another_answer_stays(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.text(max_size=60))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert normalised(f" {text}\n") == once


def test_likeness_is_the_chrf_score_as_its_paper_defines_it() -> None:
    def naive(hypothesis: str, reference: str) -> float:
        precisions, recalls = [], []
        for size in range(1, 7):
            mine = ["".join(gram) for gram in zip(*(hypothesis[at:] for at in range(size)), strict=False)]
            theirs = ["".join(gram) for gram in zip(*(reference[at:] for at in range(size)), strict=False)]
            if mine and theirs:
                shared = sum(min(mine.count(gram), theirs.count(gram)) for gram in set(mine))
                precisions.append(shared / len(mine))
                recalls.append(shared / len(theirs))
        precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
        return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0

    for one, other in itertools.permutations(("the cat sat on the mat", "the cat is on a mat", "cats", "dogs bark"), 2):
        assert chrf(one, other) == pytest.approx(naive(one.replace(" ", ""), other.replace(" ", "")))


@given(st.text(max_size=40), st.text(max_size=40))
def test_likeness_is_1_to_itself_and_between_0_and_1_to_others(one: str, other: str) -> None:
    assert chrf(one, one) == pytest.approx(1)
    assert 0 <= chrf(one, other) <= 1 + 1e-9
    assert chrf("", "abc") == chrf("abc", "") == 0


def test_comparing_long_answers_is_bounded() -> None:
    count = tally("weighted-average", 4)
    texts = [" ".join(str(number * voter % 977) for number in range(60_000)) for voter in range(3, 6)]
    started = time.thread_time()
    cast(count, *texts)
    assert time.thread_time() - started < 5
    assert 0 < count.agreement < 1


def test_of_many_answers_less_is_compared_so_that_all_of_them_fit_into_memory() -> None:
    assert [chars_of(answers) for answers in (2, 16, 64)] == [CHARS, CHARS, CHARS // 4]
    alike = "ab" * (CHARS // 8)
    count = cast(tally("weighted-average", 64), f"{alike}x", f"{alike}y")
    assert count.agreement == 1.0


# --- what each strategy says --------------------------------------------------------------------------------------


def test_the_most_frequent_answer_wins_a_majority_vote() -> None:
    count = cast(tally("majority-vote", 5), "Paris", "Rome", "paris.", "Oslo", "PARIS")
    assert (count.chosen().text, count.agreement, count.leading) == ("Paris", 3 / 5, 3)


def test_a_tie_goes_to_the_more_confident() -> None:
    count = tally("majority-vote", 4)
    for voter, (text, logprob) in enumerate([("a", -1.0), ("b", -0.2), ("a", -0.9), ("b", -0.3)]):
        count.cast(Ballot(voter, text, logprob))
    assert count.chosen() == Ballot(1, "b", -0.2)
    assert count.agreement == 0.5


def test_confidence_may_outweigh_number() -> None:
    count = tally("confidence-weighted", 3)
    ballots = [Ballot(0, "a", -2.0), Ballot(1, "a", -2.0), Ballot(2, "b", -0.1)]
    for ballot in ballots:
        count.cast(ballot)
    assert count.chosen().text == "b"
    weights = [count.weight_of(ballot) for ballot in ballots]
    assert weights == pytest.approx([math.exp(-2), math.exp(-2), math.exp(-0.1)])
    assert count.agreement == pytest.approx(weights[2] / sum(weights))


def test_confidence_that_is_not_told_is_taken_to_be_the_others() -> None:
    count = tally("confidence-weighted", 2)
    count.cast(Ballot(0, "a", None))
    assert count.weight_of(Ballot(0, "a", None)) == 1
    count.cast(Ballot(1, "b", -1.0))
    assert count.weight_of(Ballot(0, "a", None)) == pytest.approx(math.exp(-1))


def test_an_answer_that_is_all_but_impossible_counts_for_next_to_nothing() -> None:
    count = cast(tally("confidence-weighted", 3), "a", "a", "b", logprob=-9999.0)
    assert count.chosen().text == "a"
    assert count.agreement == pytest.approx(2 / 3)
    other = cast(tally("confidence-weighted", 3), "a", "a", logprob=-9999.0)
    other.cast(Ballot(2, "b", -3.0))
    assert other.chosen().text == "b"
    assert other.agreement == pytest.approx(1)


def test_a_quorum_is_of_those_asked_and_not_of_those_who_answered() -> None:
    count = cast(tally("quorum", 5), "a", "a")
    assert (count.agreement, count.is_settled, count.is_hopeless) == (2 / 5, False, False)
    count.failed(2)
    count.failed(3)
    assert not count.is_hopeless
    count.failed(4)
    assert count.is_hopeless


def test_a_quorum_is_given_up_as_soon_as_it_cannot_come() -> None:
    count = tally("quorum", 5)
    for voter, text in enumerate("abc"):
        assert not count.is_hopeless
        count.cast(Ballot(voter, text))
    assert not count.is_hopeless, "two more may still join one of them"
    count.cast(Ballot(3, "d"))
    assert count.is_hopeless


def test_the_answer_most_like_the_others_is_the_weighted_average() -> None:
    count = cast(
        tally("weighted-average", 4), "a cat sat on the mat", "the cat sat on a mat", "the cat sat there", "no"
    )
    assert count.chosen().voter == 1
    assert 0.3 < count.agreement < 0.7


def test_the_weight_of_a_node_turns_the_average() -> None:
    texts = ("alpha beta gamma", "alpha beta delta", "one two three", "one two four")
    for heavy, winners in ((0, {0, 1}), (2, {2, 3})):
        count = tally("weighted-average", 4, heaviest=5)
        for voter, text in enumerate(texts):
            count.cast(Ballot(voter, text, weight=5.0 if voter == heavy else 1.0))
        assert count.chosen().voter in winners


@pytest.mark.parametrize("strategy", ALL)
def test_who_fails_agrees_with_nobody(strategy: Strategy) -> None:
    count = cast(tally(strategy, 4), "a", "a")
    count.failed(2)
    count.failed(3)
    assert count.agreement == pytest.approx(0.5)
    assert count.is_settled


@pytest.mark.parametrize("strategy", ALL)
def test_an_answer_that_the_pattern_does_not_fit_agrees_with_nobody(strategy: Strategy) -> None:
    count = cast(tally(strategy, 3), None, "a", None)
    assert count.chosen().voter == 1
    assert count.agreement <= 1 / 3 + 1e-9
    nobody = cast(tally(strategy, 3), None, None, None)
    assert (nobody.chosen().voter, nobody.agreement) == (0, 0)
    assert nobody.is_hopeless == (strategy == "quorum")


# --- what holds at every moment -----------------------------------------------------------------------------------

ballots = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "A!", "a b", None, "FAILED"]),
        st.one_of(st.none(), st.floats(-3, 0), st.just(-9999.0)),
        st.sampled_from([0.5, 1.0, 3.0]),
    ),
    min_size=2,
    max_size=7,
)


def answer_of(count: Tally) -> str | None:
    text = count.chosen().text
    return None if text is None else normalised(text)


@pytest.mark.parametrize("strategy", ALL)
@given(votes=ballots, need=st.integers(1, 7), order=st.randoms(use_true_random=False), is_ordered=st.booleans())
@settings(max_examples=200, deadline=None)
def test_once_settled_nothing_that_comes_changes_the_answer(
    strategy: Strategy,
    votes: list[tuple[str | None, float | None, float]],
    need: int,
    order: object,
    is_ordered: bool,
) -> None:
    count = tally(strategy, len(votes), need=min(need, len(votes)), is_ordered=is_ordered, heaviest=3.0)
    numbers = list(range(len(votes)))
    order.shuffle(numbers)  # type: ignore[attr-defined]
    settled: Ballot | None = None
    was_hopeless = False
    for voter in numbers:
        text, logprob, weight = votes[voter]
        if text == "FAILED":
            count.failed(voter)
        else:
            count.cast(Ballot(voter, text, logprob, weight))
        assert 0 <= count.agreement <= 1 + 1e-9
        assert count.is_hopeless >= was_hopeless, "what is hopeless stays so"
        was_hopeless = count.is_hopeless
        if settled is not None:
            assert answer_of(count) == (None if settled.text is None else normalised(settled.text))
            assert not is_ordered or count.chosen() == settled
            assert not count.is_hopeless
        elif count.is_settled and not count.is_hopeless and count.leading:
            settled = count.chosen()
    assert count.is_settled
    if strategy == "quorum":
        assert count.is_hopeless == (count.leading < min(need, len(votes)))


@pytest.mark.parametrize("strategy", ALL)
@given(votes=ballots, order=st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_an_ordered_vote_does_not_hang_on_who_answers_first(
    strategy: Strategy, votes: list[tuple[str | None, float | None, float]], order: object
) -> None:
    numbers = list(range(len(votes)))
    chosen = set()
    for _ in range(3):
        count = tally(strategy, len(votes), need=1, is_ordered=True, heaviest=3.0)
        for voter in numbers:
            text, logprob, weight = votes[voter]
            if text == "FAILED":
                count.failed(voter)
            else:
                count.cast(Ballot(voter, text, logprob, weight))
            if count.is_settled:
                break
        if any(text != "FAILED" for text, _, _ in votes):
            chosen.add(count.chosen().voter)
        order.shuffle(numbers)  # type: ignore[attr-defined]
    assert len(chosen) <= 1


# --- what is asked ------------------------------------------------------------------------------------------------


def test_more_than_half_must_agree_unless_somebody_says_how_many() -> None:
    assert [needed(asked, 0, 0) for asked in (2, 3, 4, 5)] == [2, 2, 3, 3]
    assert (needed(5, 4, 2), needed(5, 0, 2)) == (4, 2)
    with pytest.raises(BadRequest, match="a quorum of 4 cannot come of 3 nodes"):
        needed(3, 0, 4)


def test_a_request_says_what_it_wants_and_the_configuration_the_rest() -> None:
    cognition = Cognition(strategy="quorum", n_nodes=4, min_consensus_nodes=2, timeout=5)
    left_open = plan(FusionRequest(), ["m"], cognition)
    assert (left_open.strategy, left_open.models, left_open.need, left_open.timeout_s) == ("quorum", ("m",) * 4, 2, 5)
    said = plan(FusionRequest("majority-vote", 3, extract="x"), ["m", "o"], cognition)
    assert (said.strategy, said.models, said.need, said.extract) == ("majority-vote", ("m", "o", "m"), 2, "x")


def test_what_a_type_weighs_is_as_configured_and_one_that_nobody_knows_weighs_1() -> None:
    light = plan(FusionRequest(), ["m"], Cognition(), {"tiny": 0.25, "large": 0.5})
    assert (light.weight_of("tiny"), light.weight_of("far"), light.heaviest) == (0.25, 1, 1)
    assert plan(FusionRequest(), ["m"], Cognition(), {"tiny": 1.0, "large": 7.0}).heaviest == 7
    assert plan(FusionRequest(), ["m"], Cognition()).heaviest == 1


@given(st.integers(0, MAX_SEED))
def test_each_voter_has_a_seed_of_its_own_and_the_first_the_request_s(seed: int) -> None:
    seeds = [seed_of(seed, voter) for voter in range(64)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 64
    assert all(one is not None and 0 <= one <= MAX_SEED for one in seeds)
    assert seed_of(None, 3) is None
