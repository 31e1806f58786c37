"""In which order the requests of one handle run.

Requests run concurrently, except that on one handle they keep their order of arrival where it matters: one
that changes something runs alone, those that only look run together, and nobody overtakes. Each request takes
its place in line at every gate it has to pass at once, when it arrives; as all lines are then in the same
order, none waits for ever.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Passenger(Protocol):
    """Who passes gates: ``needs`` counts those that have not let it in yet."""

    needs: int


class Gate:
    """The line of one handle. Exists only while something of it runs or waits."""

    __slots__ = ("alone", "inside", "line", "waiting_alone")

    def __init__(self) -> None:
        self.inside = 0
        self.alone = False  # the one inside is there alone
        self.line: deque[tuple[Passenger, bool]] = deque()
        self.waiting_alone = 0

    @property
    def changing(self) -> bool:
        """Whether something inside or in line wants to be alone: it may be about to change the file."""
        return self.alone or self.waiting_alone > 0

    def admits(self, alone: bool) -> bool:
        """Whether one that came now could pass at once."""
        return not self.line and not self.alone and not (alone and self.inside)

    def enter(self, passenger: Passenger, alone: bool) -> None:
        """Take a place in line; ``needs`` is one more until the passenger is let in."""
        if self.admits(alone):
            self.inside += 1
            self.alone = alone
        else:
            passenger.needs += 1
            self.line.append((passenger, alone))
            self.waiting_alone += alone

    def leave(self) -> list[Passenger]:
        """One that was inside is finished. Returns those whose last gate this was."""
        self.inside -= 1
        self.alone = False
        ready = []
        while self.line:
            passenger, alone = self.line[0]
            if self.alone or (alone and self.inside):
                break
            self.line.popleft()
            self.waiting_alone -= alone
            self.inside += 1
            self.alone = alone
            passenger.needs -= 1
            if not passenger.needs:
                ready.append(passenger)
        return ready

    def __bool__(self) -> bool:
        """Whether anybody is inside."""
        return self.inside > 0
