"""The queue of requests that wait for a node: bounded by its owner, fair between sessions.

One lane per session, served in turns: a session with a hundred requests delays another by one request, not by a
hundred. Pure; knows nothing of nodes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

LANES_TRIED = 32
"""How many lanes' heads are looked at for one that can go: a head that fits no free node must not hold up the rest."""


class Waiting(Protocol):
    """Anything that waits."""

    @property
    def session(self) -> str:
        """The lane it waits in."""
        ...


W = TypeVar("W", bound=Waiting)


class FairQueue(Generic[W]):
    """Lanes in rotation; within a lane first come, first served."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, deque[W]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[W]:
        for lane in self._lanes.values():
            yield from lane

    def push(self, item: W, *, front: bool = False) -> None:
        """Adds `item` to its session's lane; `front` for one that has waited its turn before."""
        lane = self._lanes.get(item.session)
        if lane is None:
            lane = self._lanes[item.session] = deque()
            if front:
                self._lanes.move_to_end(item.session, last=False)
        if front:
            lane.appendleft(item)
        else:
            lane.append(item)
        self._size += 1

    def remove(self, item: W) -> None:
        """Takes `item` out; one that is not there is no error."""
        lane = self._lanes.get(item.session)
        if lane is not None and item in lane:
            lane.remove(item)
            self._size -= 1
            if not lane:
                del self._lanes[item.session]

    def pop_first(self, can_go: Callable[[W], bool]) -> W | None:
        """Takes the first lane head for which `can_go`, and puts its lane at the end; None when none can."""
        for session, lane in list(self._lanes.items())[:LANES_TRIED] if len(self._lanes) > 1 else self._lanes.items():
            head = lane[0]
            if can_go(head):
                lane.popleft()
                self._size -= 1
                if lane:
                    self._lanes.move_to_end(session)
                else:
                    del self._lanes[session]
                return head
        return None

    def clear(self) -> list[W]:
        """Takes everything out."""
        items = list(self)
        self._lanes.clear()
        self._size = 0
        return items
