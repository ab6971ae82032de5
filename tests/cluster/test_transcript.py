"""What was delivered of a stream, and a replay of it: pure, with streams as nodes send them."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llambo.cluster.transcript import END, Transcript
from llambo.cluster.upstream_events import MAX_EVENT_BYTES, Cutter, Oversized
from llambo.core.errors import Diverged

DONE = b"data: [DONE]\n\n"


def sse(value: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def chat(texts: list[str], run: str = "a", *, usage: bool = True) -> list[bytes]:
    """A chat as llama-server streams it; what differs between two runs hangs on `run`."""
    frame = {"created": 1700000000 + ord(run), "id": f"chatcmpl-{run}{run}", "model": "m", "system_fingerprint": run}

    def chunk(choice: dict[str, Any], **more: Any) -> bytes:
        return sse({"choices": [{"finish_reason": None, "index": 0, **choice}], **frame, **more})

    events = [chunk({"delta": {"role": "assistant", "content": None}})]
    events += [chunk({"delta": {"content": text}}) for text in texts]
    tool = {"index": 0, "id": f"call_{run}", "type": "function", "function": {"name": "f", "arguments": '{"x":'}}
    events.append(chunk({"delta": {"tool_calls": [tool]}}))
    events.append(chunk({"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}}))
    timings = {"cache_n": ord(run), "predicted_ms": ord(run) / 3}
    events.append(chunk({"delta": {}, "finish_reason": "tool_calls"}, timings=timings))
    if usage:
        events.append(sse({"choices": [], **frame, "usage": {"prompt_tokens_details": {"cached_tokens": ord(run)}}}))
    return [*events, DONE]


def responses(texts: list[str], run: str = "a") -> list[bytes]:
    """The same as /v1/responses has it: ids that come again in later events."""
    answer, item = {"id": f"resp_{run}", "created_at": ord(run)}, f"msg_{run}"
    whole = [{"id": item, "content": [{"text": "".join(texts)}]}]
    return [
        sse({"type": "response.created", "response": answer}, "response.created"),
        sse({"type": "response.output_item.added", "item": {"id": item}}, "response.output_item.added"),
        *[sse({"type": "d", "item_id": item, "delta": text}, "response.output_text.delta") for text in texts],
        sse(
            {"type": "response.completed", "response": {**answer, "output": whole, "usage": {"n": ord(run)}}},
            "response.completed",
        ),
    ]


def messages(texts: list[str], run: str = "a") -> list[bytes]:
    """And as /v1/messages."""
    start = {"id": f"msg_{run}", "usage": {"input_tokens": ord(run)}}
    return [
        sse({"type": "message_start", "message": start}, "message_start"),
        sse(
            {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": f"toolu_{run}"}},
            "content_block_start",
        ),
        *[sse({"type": "content_block_delta", "delta": {"text": text}}, "content_block_delta") for text in texts],
        sse({"type": "message_stop"}, "message_stop"),
    ]


def completion(texts: list[str], run: str = "a") -> list[bytes]:
    """And as llama-server's own /completion."""
    events = [sse({"index": 0, "content": text, "stop": False, "tokens": [7]}) for text in texts]
    chosen = {"seed": 1, "run": run}
    return [
        *events,
        sse({"index": 0, "content": "", "stop": True, "id_slot": ord(run), "generation_settings": chosen}),
    ]


DIALECTS = {"chat": chat, "responses": responses, "messages": messages, "completion": completion}
TEXTS = st.lists(st.text(min_size=1), min_size=1, max_size=8)


def delivered(events: list[bytes]) -> Transcript:
    transcript = Transcript()
    for event in events:
        assert transcript.take(event) == event
    return transcript


def cut(events: list[bytes], places: list[int]) -> list[bytes]:
    """The events as pieces of one or more."""
    bounds = sorted({0, len(events), *(place % (len(events) + 1) for place in places)})
    return [b"".join(events[a:b]) for a, b in itertools.pairwise(bounds)]


def test_what_is_taken_is_given_and_kept() -> None:
    events = chat(["one", "two"])
    transcript = delivered(events)
    assert transcript.count == len(events)
    assert transcript.size_bytes == sum(map(len, events))
    assert transcript.events() == events
    assert transcript.tail(2) == events[-2:]
    assert transcript.head(1) == events[:1]


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 30)), st.integers(0, 30))
def test_events_are_the_same_however_they_came_in_pieces(texts: list[str], places: list[int], start: int) -> None:
    events = chat(texts)
    transcript = delivered(cut(events, places))
    assert transcript.count == len(events)
    assert transcript.events(start) == events[start:]
    assert transcript.tail(3) == events[-3:]
    assert transcript.head(2) == events[:2]


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(deadline=None)
@given(texts=TEXTS, reached=st.integers(0, 30), places=st.lists(st.integers(0, 30)))
def test_a_replay_after_any_prefix_gives_exactly_the_rest_under_the_first_ids(
    dialect: str, texts: list[str], reached: int, places: list[int]
) -> None:
    first, second = DIALECTS[dialect](texts, "a"), DIALECTS[dialect](texts, "b")
    reached %= len(first) + 1
    transcript = delivered(cut(first[:reached], places) if reached else [])
    transcript.again()
    given_now = b"".join(transcript.take(piece) for piece in cut(second, places))
    transcript.end()
    assert given_now.count(END) == len(first) - reached
    whole = b"".join(transcript.events())
    ids = set(re.findall(rb'"(?:chatcmpl-|call_|resp_|msg_|toolu_)\w+"', whole))
    if reached:
        # All ids that were told before the death stay.
        told = set(re.findall(rb'"(?:chatcmpl-|call_|resp_|msg_|toolu_)\w+"', b"".join(first[:reached])))
        assert told <= ids
        assert not {old.replace(b"a", b"b") for old in told if b"a" in old} & ids - told
    assert [texts_of(event) for event in transcript.events()] == [texts_of(event) for event in first]


def texts_of(event: bytes) -> list[str]:
    return re.findall(r'"(?:text|content|delta)":("(?:[^"\\]|\\.)*")', event.decode())


@settings(deadline=None)
@given(TEXTS, st.integers(0, 7), st.integers(1, 30))
def test_a_changed_text_diverges(texts: list[str], changed: int, reached: int) -> None:
    changed %= len(texts)
    other = [*texts[:changed], texts[changed] + "!", *texts[changed + 1 :]]
    first, second = chat(texts, "a"), chat(other, "b")
    reached = 2 + changed + reached % (len(first) - changed - 2)  # the changed event was delivered
    transcript = delivered(first[:reached])
    transcript.again()
    with pytest.raises(Diverged, match=f"after {changed + 1} of the {reached} events"):
        for event in second:
            transcript.take(event)


def test_a_replay_that_ends_before_what_was_delivered_diverges() -> None:
    transcript = delivered(chat(["one", "two"])[:3])
    transcript.again()
    assert transcript.take(chat(["one"], "b")[0]) == b""
    with pytest.raises(Diverged):
        transcript.end()


def test_a_replay_of_another_name_diverges() -> None:
    transcript = delivered([sse({"type": "x"}, "one")])
    transcript.again()
    with pytest.raises(Diverged):
        transcript.take(sse({"type": "x"}, "two"))


def test_an_id_that_stands_for_two_diverges() -> None:
    transcript = delivered([sse({"id": "x"}), sse({"id": "y"})])
    transcript.again()
    assert transcript.take(sse({"id": "z"})) == b""
    with pytest.raises(Diverged):
        transcript.take(sse({"id": "z"}))


def test_ids_are_replaced_where_they_are_ids_and_not_within_a_text() -> None:
    transcript = delivered([sse({"id": "one"})])
    transcript.again()
    assert transcript.take(sse({"id": "1"})) == b""
    assert transcript.take(sse({"id": "1", "text": "1 and 1"})) == sse({"id": "one", "text": "1 and 1"})


def test_every_chunk_has_the_time_of_the_first() -> None:
    first, second = chat(["one", "two"], "a"), chat(["one", "two"], "b")
    transcript = delivered(first[:2])
    transcript.again()
    rest = b"".join(map(transcript.take, second))
    assert set(re.findall(rb'"created":(\d+)', rest)) == {str(1700000000 + ord("a")).encode()}


def test_log_probabilities_may_differ_and_tokens_may_not() -> None:
    def event(token: str, logprob: float) -> bytes:
        content = [{"id": 4, "token": token, "logprob": logprob, "top_logprobs": [{"token": "q", "logprob": logprob}]}]
        return sse({"choices": [{"index": 0, "delta": {"content": "I"}, "logprobs": {"content": content}}]})

    transcript = delivered([event("I", -0.25)])
    transcript.again()
    assert transcript.take(event("I", -0.2500001)) == b""
    transcript.again()
    with pytest.raises(Diverged):
        transcript.take(event("It", -0.25))


def test_choices_of_one_answer_may_come_in_another_order() -> None:
    def event(index: int, text: str) -> bytes:
        return sse({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}]})

    transcript = delivered([event(0, "a"), event(1, "x"), event(0, "b")])
    transcript.again()
    events = [event(1, "x"), event(1, "y"), event(0, "a"), event(0, "b"), event(0, "c"), DONE]
    assert [transcript.take(e) for e in events] == [b"", event(1, "y"), b"", b"", event(0, "c"), DONE]
    transcript.end()


def test_a_choice_of_which_nothing_was_delivered_may_come_first() -> None:
    def event(index: int, text: str) -> bytes:
        return sse({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}]})

    transcript = delivered([event(0, "a")])
    transcript.again()
    assert [transcript.take(e) for e in (event(1, "x"), event(0, "a"), DONE)] == [event(1, "x"), b"", DONE]
    transcript.end()


def test_reports_of_the_prefill_take_no_part_in_a_replay() -> None:
    def report(processed: int) -> bytes:
        return sse({"choices": [{"index": 0, "delta": {}}], "prompt_progress": {"processed": processed}})

    events = chat(["one"])
    transcript = delivered([report(0), report(5), *events[:2]])
    transcript.again()
    assert b"".join(map(transcript.take, [report(9), *chat(["one"], "a")])) == b"".join(events[2:])


def test_a_second_death_is_as_good_as_the_first() -> None:
    texts = ["one", "two", "three"]
    transcript = delivered(chat(texts, "a")[:2])
    for run, reached in (("b", 4), ("c", 3), ("d", 99)):
        transcript.again()
        for event in chat(texts, run)[:reached]:
            transcript.take(event)
    transcript.end()
    ids = set(re.findall(rb'"chatcmpl-\w+"', b"".join(transcript.events())))
    assert ids == {b'"chatcmpl-aa"'}
    assert transcript.count == len(chat(texts))
    assert transcript.is_whole


# --- cutting ----------------------------------------------------------------------------------------------------------


def fed(data: bytes, places: list[int], **options: bool) -> tuple[bytes, Cutter]:
    cutter = Cutter(**options)
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return b"".join(cutter.feed(data[a:b]) for a, b in itertools.pairwise(bounds)), cutter


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 5000), max_size=30), st.booleans())
def test_any_chunking_of_bytes_gives_the_same_whole_events(texts: list[str], places: list[int], windows: bool) -> None:
    data = b": ping\n\n".join(chat(texts)) + b": ping\n\n"
    sent = data.replace(b"\n", b"\r\n") if windows else data
    assert fed(sent, places)[0] == b"".join(chat(texts))


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=30))
def test_pieces_end_where_events_end(places: list[int]) -> None:
    cutter = Cutter()
    data = b"".join(chat(["one", "two", "error: no", '"error":']))
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    for a, b in itertools.pairwise(bounds):
        piece = cutter.feed(data[a:b])
        assert not piece or piece.endswith(END)
    assert cutter.error is None


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"code":500,"message":"no"}}\n\n',
        b'error: {"code":500,"message":"no"}\n\n',
        b'event: error\ndata: {"error":{"code":500,"message":"no"}}\n\n',
    ],
)
@settings(deadline=None)
@given(places=st.lists(st.integers(0, 500), max_size=9))
def test_an_error_in_the_stream_is_noticed_and_nothing_follows_it(event: bytes, places: list[int]) -> None:
    before = b"".join(chat(["one"])[:2])
    given_now, cutter = fed(before + event + before, places)
    assert given_now == before
    assert cutter.error == {"code": 500, "message": "no"}


def test_reports_of_the_prefill_are_dropped_where_nobody_asked_for_them() -> None:
    report = sse({"choices": [], "prompt_progress": {"processed": 1}})
    given_now, cutter = fed(report + report + DONE, [], drops_progress=True)
    assert (given_now, cutter.reports) == (DONE, 2)
    assert fed(report + DONE, [])[0] == report + DONE


def test_the_event_that_a_response_is_in_progress_stays_without_its_report() -> None:
    plain = {"type": "response.in_progress", "response": {"id": "r"}}
    report = sse({**plain, "prompt_progress": {"total": 3}}, "response.in_progress")
    assert fed(report * 3, [], drops_progress=True)[0] == sse(plain, "response.in_progress")


def test_an_event_without_an_end_is_not_kept_for_ever() -> None:
    cutter = Cutter()
    with pytest.raises(Oversized):
        for _ in range(MAX_EVENT_BYTES // 2**20 + 2):
            cutter.feed(b"x" * 2**20)
