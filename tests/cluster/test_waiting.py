"""The fair queue."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.waiting import LANES_TRIED, FairQueue


@dataclass(eq=False)
class Item:
    session: str
    number: int
    demand: str = ""


def anybody(item: Item) -> bool:
    return True


def drain(queue: FairQueue[Item]) -> list[tuple[str, int]]:
    taken = []
    while (item := queue.pop_first(anybody)) is not None:
        taken.append((item.session, item.number))
    return taken


def test_sessions_take_turns_and_each_keeps_its_own_order() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(3):
        queue.push(Item("a", number))
    queue.push(Item("b", 0))
    queue.push(Item("c", 0))
    queue.push(Item("b", 1))
    assert drain(queue) == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("a", 2)]


def test_a_session_with_a_hundred_requests_delays_another_by_one() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(100):
        queue.push(Item("greedy", number))
    queue.push(Item("modest", 0))
    assert drain(queue).index(("modest", 0)) == 1


def test_turns_are_common_to_all_demands() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number, (session, demand) in enumerate([("a", ""), ("b", "large"), ("c", ""), ("d", "large")]):
        queue.push(Item(session, number, demand))
    assert [session for session, _ in drain(queue)] == ["a", "b", "c", "d"]


def test_what_cannot_go_holds_up_no_other_demand_however_many_they_are() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(LANES_TRIED * 3):
        queue.push(Item(f"s{number}", number, "large"))
    queue.push(Item("last", 0, "small"))
    taken = queue.pop_first(lambda item: item.demand == "small")
    assert taken is not None
    assert taken.session == "last"


def test_who_has_waited_before_goes_first() -> None:
    queue: FairQueue[Item] = FairQueue()
    queue.push(Item("a", 1))
    queue.push(Item("b", 1))
    queue.push(Item("b", 0), front=True)
    queue.push(Item("c", 0), front=True)
    assert queue.first() is not None
    assert drain(queue) == [("c", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_removing_what_is_not_there_is_no_error() -> None:
    queue: FairQueue[Item] = FairQueue()
    item = Item("a", 0)
    queue.remove(item)
    queue.push(item)
    queue.remove(Item("a", 0))
    assert len(queue) == 1
    queue.remove(item)
    assert (len(queue), queue.first(), queue.one_of_each()) == (0, None, [])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "x"]), st.sampled_from("pfrto")), max_size=60))
def test_nothing_is_lost_or_doubled(moves: list[tuple[str, str, str]]) -> None:
    queue: FairQueue[Item] = FairQueue()
    inside: list[Item] = []
    for number, (session, demand, move) in enumerate(moves):
        if move in "pf":
            inside.append(Item(session, number, demand))
            queue.push(inside[-1], front=move == "f")
        elif move == "r" and inside:
            queue.remove(inside.pop(number % len(inside)))
        elif move == "t" and (item := queue.pop_first(anybody)) is not None:
            inside.remove(item)
        elif move == "o" and (item := queue.pop_first(lambda one, s=session: one.session == s)) is not None:  # type: ignore[misc]
            assert item.session == session
            inside.remove(item)
        assert len(queue) == len(inside)
        assert {id(item) for item in queue} == {id(item) for item in inside}
    assert {id(item) for item in queue.clear()} == {id(item) for item in inside}
    assert len(queue) == 0
