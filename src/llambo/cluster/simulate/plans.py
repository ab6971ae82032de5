"""What will happen, in the order in which it will.

Owns the order and nothing else. One heap of tens of thousands of plans would have to be read in as many places as it is
deep for each thing that happens, and hardly any of them would be in the processor's cache. So the plans lie in
drawers, each for a short span of time, and only the first drawer is in order.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

DRAWERS_PER_S = 64
Plan = tuple[float, int, Callable[..., None], tuple[object, ...]]
"""When (in seconds), after how many others it was made, what is done, and with what."""


class Plans:
    """Plans by their time, which is never below 0; those of one moment come in the order in which they were made."""

    def __init__(self) -> None:
        self.made = 0
        """How many there have been."""
        self._first: list[Plan] = []  # a heap: all plans up to and with the drawer of that number
        self._first_number = 0
        self._later: dict[int, list[Plan]] = {}
        self._numbers: list[int] = []  # of the later drawers, a heap

    def add(self, at_s: float, act: Callable[..., None], arguments: tuple[object, ...]) -> None:
        """Plans `act(*arguments)`."""
        self.made += 1
        plan = (at_s, self.made, act, arguments)
        number = int(at_s * DRAWERS_PER_S)
        if number <= self._first_number:
            heappush(self._first, plan)
        elif (drawer := self._later.get(number)) is not None:
            drawer.append(plan)
        else:
            self._later[number] = [plan]
            heappush(self._numbers, number)

    def next_s(self) -> float | None:
        """The time of the next one; None where there is none."""
        if not self._first:
            if not self._numbers:
                return None
            self._first_number = heappop(self._numbers)
            self._first = self._later.pop(self._first_number)
            heapify(self._first)
        return self._first[0][0]

    def pop(self) -> Plan:
        """Takes the next one; `next_s` has said that there is one."""
        return heappop(self._first)
