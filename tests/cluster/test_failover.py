"""One answer over several nodes, without any: a toy engine dies wherever hypothesis wants it to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llambo.cluster.failover import Answer, Attempt, StreamEnd
from llambo.core.errors import Diverged, PromptTooLong
from llambo.core.types import GenerateRequest, Sampling, TokenEvent

PROMPT = "ask"
PROMPT_IDS = [1, 2, 3]
# Ids of the toy vocabulary: those under 256 are bytes, so that a character may span up to four of them.
WORDS = {300: "the", 301: " end", 302: "é", 303: " ", 304: "…!"}

texts = st.text(alphabet="ab é…😀", min_size=1, max_size=12)
answers = st.lists(
    st.one_of(texts.map(lambda text: list(text.encode())), st.sampled_from([[i] for i in WORDS])),
    min_size=1,
    max_size=8,
).map(lambda parts: [i for part in parts for i in part])


def bytes_of(ids: list[int]) -> bytes:
    return b"".join(WORDS[i].encode() if i in WORDS else bytes([i]) for i in ids)


def ids_of(text: str) -> list[int]:
    """The toy tokenizer: it need not find the tokens that the answer was made of, only the same text."""
    return list(text.encode())


class Node:
    """An engine whose whole answer is `ids`; like llama.cpp it waits for whole characters, and then knows one id."""

    def __init__(self, ids: list[int], *, has_ids: bool = True, piece: int = 0) -> None:
        self.ids = ids
        self.has_ids = has_ids
        self.piece = piece  # characters in an event of a node without ids

    def run(self, attempt: Attempt) -> Iterator[TokenEvent | StreamEnd]:
        emitted = list(attempt.prompt[len(PROMPT_IDS) :]) if isinstance(attempt.prompt, tuple) else []
        if isinstance(attempt.prompt, tuple):
            assert list(attempt.prompt[: len(PROMPT_IDS)]) == PROMPT_IDS
            assert self.ids[: len(emitted)] == emitted, "asked to go on from another answer"
        limit = len(self.ids) if attempt.sampling.max_tokens is None else attempt.sampling.max_tokens
        assert limit > 0
        rest = self.ids[len(emitted) :][:limit]
        if self.has_ids:
            yield from self._tokens(rest)
        else:
            text = bytes_of(rest).decode(errors="ignore")
            yield from (TokenEvent(text[i : i + self.piece]) for i in range(0, len(text), self.piece))
        reason = "length" if len(rest) == limit and attempt.sampling.max_tokens is not None else "stop"
        assert reason in ("length", "stop")
        end = StreamEnd("length" if reason == "length" else "stop", len(rest), len(PROMPT_IDS) + len(emitted), 0)
        yield end

    def _tokens(self, ids: list[int]) -> Iterator[TokenEvent]:
        held: list[int] = []
        for i in ids:
            held.append(i)
            try:
                text = bytes_of(held).decode()
            except UnicodeDecodeError:
                continue
            yield TokenEvent(text, (i,) if len(held) == 1 else ())
            held = []


class Reader:
    """What the caller of an answer gets."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def known_ids(self) -> list[int]:
        return [i for event in self.events for i in event.ids]


def drive(answer: Answer, nodes: list[tuple[Node, int]], last: Node, reader: Reader, ctx: int = 0) -> StreamEnd:
    """Asks each node in turn, which dies after so many events, then the last one, which lives."""
    attempt: Attempt | StreamEnd = answer.first()
    for number, (node, life) in enumerate([*nodes, (last, 10**6)]):
        if number:
            attempt = answer.again(
                has_ids=node.has_ids,
                prompt_ids=PROMPT_IDS if answer.needs_prompt_ids else None,
                tail_ids=ids_of(answer.tail) if answer.tail else None,
                ctx=ctx,
            )
        if isinstance(attempt, StreamEnd):
            return attempt
        for count, event in enumerate(node.run(attempt)):
            if count >= life:
                break
            if isinstance(event, StreamEnd):
                return answer.end(event)
            reader.events += answer.take(event)
    raise AssertionError("the last node does not die")


def request(**sampling: object) -> GenerateRequest:
    return GenerateRequest(raw_prompt=PROMPT, sampling=Sampling(**sampling))  # type: ignore[arg-type]


deaths = st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(1, 5)), max_size=5)
kinds = st.sampled_from(
    [
        request(temperature=0),
        request(temperature=1.0, seed=3),
        GenerateRequest(raw_prompt=PROMPT, grammar="root ::= x"),
        GenerateRequest(raw_prompt=PROMPT, json_schema="{}", sampling=Sampling(temperature=0)),
    ]
)


@given(answers, deaths, kinds, st.one_of(st.none(), st.integers(1, 30)))
def test_wherever_nodes_die_the_text_is_that_of_an_undisturbed_run_and_so_are_the_counts(
    ids: list[int], deaths: list[tuple[int, bool, int]], kind: GenerateRequest, max_tokens: int | None
) -> None:
    kind = GenerateRequest(
        raw_prompt=PROMPT,
        grammar=kind.grammar,
        json_schema=kind.json_schema,
        sampling=Sampling(max_tokens, kind.sampling.temperature, seed=kind.sampling.seed),
    )
    whole, reader = Reader(), Reader()
    undisturbed = drive(Answer(kind, PROMPT, 7), [], Node(ids), whole)
    nodes = [(Node(ids, has_ids=has_ids, piece=piece), life) for life, has_ids, piece in deaths]
    end = drive(Answer(kind, PROMPT, 7), nodes, Node(ids), reader)
    assert reader.text == whole.text
    assert (end.tokens, end.prompt_tokens, end.finish_reason) == (
        undisturbed.tokens,
        undisturbed.prompt_tokens,
        undisturbed.finish_reason,
    )
    taken = iter(whole.known_ids)
    assert all(i in taken for i in reader.known_ids), "no id comes twice or out of order"


@given(answers, st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 5))
def test_a_greedy_answer_of_tokens_that_are_characters_is_continued_and_never_replayed(
    ids: list[int], lives: list[int], piece: int
) -> None:
    ids = [i for i in ids if i in WORDS or i < 128]
    assume(ids)
    answer, reader = Answer(request(temperature=0), PROMPT, 7), Reader()
    asked: list[Attempt] = []

    class Watched(Node):
        def run(self, attempt: Attempt) -> Iterator[TokenEvent | StreamEnd]:
            asked.append(attempt)
            return super().run(attempt)

    drive(answer, [(Watched(ids), life) for life in lives], Watched(ids), reader)
    assert reader.text == bytes_of(ids).decode()
    assert reader.known_ids == ids
    expected = 0  # what the answer had when each next node was asked
    for attempt, life in zip(asked[1:], lives, strict=False):
        expected += life
        assert attempt.prompt == ((*PROMPT_IDS, *ids[:expected]) if expected else PROMPT)


@given(answers, answers, st.integers(1, 40), st.booleans(), st.integers(1, 5), kinds)
def test_a_replay_that_differs_in_what_was_delivered_is_refused_and_nothing_of_it_is_delivered(
    ids: list[int], others: list[int], life: int, has_ids: bool, piece: int, kind: GenerateRequest
) -> None:
    answer, reader = Answer(kind, PROMPT, 7), Reader()
    first = drive_until_death(answer, Node(ids, has_ids=False, piece=1), life, reader)
    delivered = reader.text
    assert first == delivered
    other = bytes_of(others).decode()
    assume(delivered and not other.startswith(delivered))
    attempt = answer.again(has_ids=has_ids)
    assert isinstance(attempt, Attempt)
    assert attempt.prompt == PROMPT
    with pytest.raises(Diverged, match=f"of the {len(delivered)} characters"):
        for event in Node(others, has_ids=has_ids, piece=piece).run(attempt):
            if isinstance(event, StreamEnd):
                answer.end(event)
            else:
                reader.events += answer.take(event)
    assert reader.text == delivered


def drive_until_death(answer: Answer, node: Node, life: int, reader: Reader) -> str:
    for count, event in enumerate(node.run(answer.first())):
        if count >= life or isinstance(event, StreamEnd):
            break
        reader.events += answer.take(event)
    return answer.text


@given(answers, answers, st.integers(1, 40))
def test_sampling_without_a_seed_goes_on_from_ids_of_exactly_what_was_delivered(
    ids: list[int], more: list[int], life: int
) -> None:
    answer, reader = Answer(request(temperature=1.0), PROMPT, 7), Reader()
    delivered = drive_until_death(answer, Node(ids), life, reader)
    assume(delivered)
    tail = ids_of(answer.tail)
    attempt = answer.again(has_ids=True, prompt_ids=PROMPT_IDS, tail_ids=tail)
    assert isinstance(attempt, Attempt)
    assert isinstance(attempt.prompt, tuple)
    emitted = list(attempt.prompt[len(PROMPT_IDS) :])
    assert bytes_of(emitted).decode() == delivered
    assert attempt.sampling.seed != answer.first().sampling.seed, "the same numbers are not drawn again"
    for event in Node(emitted + more).run(attempt):
        if isinstance(event, StreamEnd):
            assert answer.end(event).tokens == len(emitted) + len(more)
        else:
            reader.events += answer.take(event)
    assert reader.text == delivered + bytes_of(more).decode()


@pytest.mark.parametrize(
    ("asked", "mode"),
    [
        (request(), "continue"),
        (request(temperature=0), "continue"),
        (request(temperature=0, seed=5), "continue"),
        (request(temperature=0.7), "continue"),
        (request(temperature=0.7, seed=5), "replay"),
        (request(seed=5), "replay"),
        (GenerateRequest(raw_prompt="a", grammar="root ::= x"), "replay"),
        (GenerateRequest(raw_prompt="a", json_schema="{}", sampling=Sampling(temperature=0)), "replay"),
    ],
)
def test_what_ids_do_not_carry_is_replayed(asked: GenerateRequest, mode: str) -> None:
    assert Answer(asked, "a", 7).mode == mode


def test_the_callers_seed_stands_and_sampling_without_one_gets_one_for_all_its_replays() -> None:
    assert Answer(request(seed=5), PROMPT, 7).first().sampling.seed == 5
    bound = Answer(GenerateRequest(raw_prompt="a", grammar="root ::= x"), "a", 7)
    assert bound.first().sampling.seed == 7
    bound.take(TokenEvent("x", (9,)))
    assert bound.again(has_ids=True) == bound.first()
    assert Answer(request(temperature=0), PROMPT, 7).first().sampling.seed is None


def test_a_node_that_dies_after_the_last_token_allowed_leaves_nothing_to_ask() -> None:
    answer = Answer(request(temperature=0, max_tokens=2), PROMPT, 7)
    answer.first()
    for i, text in ((300, "the"), (301, " end")):
        answer.take(TokenEvent(text, (i,)))
    assert answer.again(has_ids=True, prompt_ids=PROMPT_IDS) == StreamEnd("length", 2, 3, 0)


def begun(ctx: int, **sampling: object) -> Answer:
    """An answer of two tokens, after a prompt of three, on a node with that context, which dies."""
    answer = Answer(request(temperature=0, **sampling), PROMPT, 7)
    answer.first(ctx)
    for i, text in ((300, "the"), (301, " end")):
        answer.take(TokenEvent(text, (i,)))
    return answer


@pytest.mark.parametrize("ctx", [4, 5, 6, 0])
def test_a_node_that_dies_when_its_context_is_full_leaves_nothing_to_ask_of_any_other(ctx: int) -> None:
    end = begun(5).again(has_ids=True, prompt_ids=PROMPT_IDS, ctx=ctx)
    assert end == StreamEnd("length", 2, 3, 0)


@pytest.mark.parametrize("first", [6, 0])
@pytest.mark.parametrize("ctx", [4, 5])
def test_an_answer_that_does_not_fit_the_next_node_goes_on_where_there_is_room_and_is_one_failover(
    first: int, ctx: int
) -> None:
    answer = begun(first)
    with pytest.raises(PromptTooLong, match=f"context of {ctx} tokens"):
        answer.again(has_ids=True, prompt_ids=PROMPT_IDS, ctx=ctx)
    attempt = answer.again(has_ids=True, prompt_ids=PROMPT_IDS, ctx=6)
    assert isinstance(attempt, Attempt)
    assert attempt.prompt == (*PROMPT_IDS, 300, 301)
    assert answer.take(TokenEvent("…!", (304,))) == [TokenEvent("…!", (304,))]
    assert answer.end(StreamEnd("stop", 2, 5, 0)) == StreamEnd("stop", 4, 3, 0)
    assert answer.failovers == 1


def test_an_answer_that_outgrows_a_smaller_node_is_not_cut_there() -> None:
    answer = begun(100)
    answer.again(has_ids=True, prompt_ids=PROMPT_IDS, ctx=7)
    answer.take(TokenEvent("é", (302,)))
    answer.take(TokenEvent(" ", (303,)))
    with pytest.raises(PromptTooLong, match="context of 7 tokens"):
        answer.end(StreamEnd("length", 2, 5, 0))
    attempt = answer.again(has_ids=True, prompt_ids=PROMPT_IDS, ctx=100)
    assert isinstance(attempt, Attempt)
    assert attempt.prompt == (*PROMPT_IDS, 300, 301, 302, 303)


def test_a_replay_that_fills_a_smaller_node_before_all_has_come_again_is_too_long_and_has_not_diverged() -> None:
    answer = Answer(request(temperature=1.0, seed=3), PROMPT, 7)
    answer.first(100)
    answer.take(TokenEvent("the end"))
    answer.again(has_ids=True, ctx=5)
    answer.take(TokenEvent("the"))
    with pytest.raises(PromptTooLong):
        answer.end(StreamEnd("length", 1, 3, 0))


def test_an_answer_that_ends_at_its_own_limit_on_a_smaller_node_is_whole() -> None:
    answer = begun(100, max_tokens=4)
    answer.again(has_ids=True, prompt_ids=PROMPT_IDS, ctx=7)
    answer.take(TokenEvent("é", (302,)))
    answer.take(TokenEvent(" ", (303,)))
    assert answer.end(StreamEnd("length", 2, 5, 0)) == StreamEnd("length", 4, 3, 0)


def test_a_smaller_node_whose_turn_came_first_gives_what_it_has_room_for() -> None:
    answer = begun(5)
    assert answer.end(StreamEnd("length", 2, 3, 0)) == StreamEnd("length", 2, 3, 0)


def test_a_node_that_dies_before_it_gave_anything_is_a_retry_and_no_failover() -> None:
    answer = Answer(request(temperature=0), PROMPT, 7)
    first = answer.first()
    counts = [answer.needs_prompt_ids]
    assert answer.again(has_ids=True) == first
    counts.append(answer.failovers > 0)
    answer.take(TokenEvent("the", (300,)))
    counts.append(answer.needs_prompt_ids)
    answer.again(has_ids=True, prompt_ids=PROMPT_IDS)
    assert [*counts, answer.failovers] == [False, False, True, 1]


def test_going_on_without_the_ids_that_were_needed_is_a_fault_of_the_caller() -> None:
    answer = Answer(request(temperature=0), PROMPT, 7)
    answer.first()
    answer.take(TokenEvent("the", (300,)))
    with pytest.raises(ValueError, match="ids"):
        answer.again(has_ids=True)


def test_an_event_that_is_delivered_in_part_has_no_ids_and_keeps_its_log_probability() -> None:
    answer = Answer(request(temperature=1.0, seed=3), PROMPT, 7)
    answer.first()
    answer.take(TokenEvent("th", ()))
    answer.again(has_ids=True)
    assert answer.take(TokenEvent("the", (300,), -0.5)) == [TokenEvent("e", (), -0.5)]
    assert answer.take(TokenEvent(" end", (301,), -0.1)) == [TokenEvent(" end", (301,), -0.1)]


def test_the_template_of_a_later_node_may_replace_a_prompt_that_had_none() -> None:
    answer = Answer(request(temperature=0), "bare", 7)
    answer.first()
    answer.take(TokenEvent("x", ()))
    attempt = answer.again(has_ids=True, prompt="<user>bare")
    assert isinstance(attempt, Attempt)
    assert attempt.prompt == "<user>bare"
