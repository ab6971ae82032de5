"""The queue of requests that wait for a node: bounded by its owner, fair between sessions.

One lane per session, served in turns: a session with a hundred requests delays another by one request, not by a
hundred. Requests that not every node can serve have lanes apart, so that they hold up nobody else; the turns are
common to all lanes. Pure; knows nothing of nodes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from typing import Generic, Protocol, TypeVar

LANES_TRIED = 32
"""How many lanes' heads of one demand are looked at for one that can go: the cost of a look is bounded."""


class Waiting(Protocol):
    """Anything that waits."""

    @property
    def session(self) -> str:
        """The lane it waits in."""
        ...

    @property
    def demand(self) -> Hashable:
        """What it needs of a node; it does not change while it waits."""
        ...


W = TypeVar("W", bound=Waiting)


@dataclass(slots=True)
class _Lane(Generic[W]):
    """What waits in one session for one demand; the lowest turn is next."""

    turn: int
    items: deque[W] = field(default_factory=deque)


class FairQueue(Generic[W]):
    """Lanes in rotation; within a lane first come, first served."""

    def __init__(self) -> None:
        self._demands: dict[Hashable, OrderedDict[str, _Lane[W]]] = {}  # lanes by turn
        self._size = 0
        self._last_turn = 0
        self._first_turn = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[W]:
        """Everything that waits, in no order that matters."""
        for lanes in self._demands.values():
            for lane in lanes.values():
                yield from lane.items

    def one_of_each(self) -> list[W]:
        """One that waits for each demand."""
        return [next(iter(lanes.values())).items[0] for lanes in self._demands.values()]

    def first(self) -> W | None:
        """Whose turn it is."""
        head = next(self._in_turn(), None)
        return head.items[0] if head else None

    def is_alone(self, item: W) -> bool:
        """Whether nothing else waits in the lane of one that waits."""
        return len(self._demands[item.demand][item.session].items) == 1

    def push(self, item: W, *, front: bool = False) -> None:
        """Adds `item` to its session's lane; `front` for one that has waited its turn before."""
        lanes = self._demands.setdefault(item.demand, OrderedDict())
        lane = lanes.get(item.session)
        if lane is None:
            lane = lanes[item.session] = _Lane(self._new_turn(front))
            lanes.move_to_end(item.session, last=not front)
        if front:
            lane.items.appendleft(item)
        else:
            lane.items.append(item)
        self._size += 1

    def remove(self, item: W) -> None:
        """Takes `item` out; one that is not there is no error."""
        lanes = self._demands.get(item.demand)
        lane = lanes.get(item.session) if lanes else None
        if lane is None or item not in lane.items:
            return
        lane.items.remove(item)
        self._size -= 1
        self._drop_if_empty(item, lane)

    def pop_first(self, can_go: Callable[[W], bool]) -> W | None:
        """Takes the first lane head for which `can_go`, and puts its lane at the end; None when none can."""
        for lane in self._in_turn():
            head = lane.items[0]
            if can_go(head):
                lane.items.popleft()
                self._size -= 1
                if lane.items:
                    lane.turn = self._new_turn(front=False)
                    self._demands[head.demand].move_to_end(head.session)
                else:
                    self._drop_if_empty(head, lane)
                return head  # the lanes have changed: nothing may be read from the iteration after this
        return None

    def clear(self) -> list[W]:
        """Takes everything out."""
        items = list(self)
        self._demands.clear()
        self._size = 0
        return items

    def _in_turn(self) -> Iterator[_Lane[W]]:
        looks = [islice(lanes.values(), LANES_TRIED) for lanes in self._demands.values()]
        return looks[0] if len(looks) == 1 else merge(*looks, key=lambda lane: lane.turn)

    def _new_turn(self, front: bool) -> int:
        if front:
            self._first_turn -= 1
            return self._first_turn
        self._last_turn += 1
        return self._last_turn

    def _drop_if_empty(self, item: W, lane: _Lane[W]) -> None:
        if lane.items:
            return
        lanes = self._demands[item.demand]
        del lanes[item.session]
        if not lanes:
            del self._demands[item.demand]
