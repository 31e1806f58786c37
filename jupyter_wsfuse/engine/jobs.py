"""A request on its way through the dispatcher."""

from __future__ import annotations

from typing import Any

from ..protocol.messages import Request
from .gates import Gate
from .hooks import Paths
from .limiter import Stage
from .plans import Plan
from .session import Session


class Job:
    """A request that could not be answered at once.

    ``disk`` and ``limit``: nanoseconds at work on the files and held back by limits. ``charged``: it has passed the
    rate limit of its class, or of that the first ``passed`` limits. ``slots``: those that count it as at work.
    ``rule``: what denied it. ``behind``: nobody waits for it. ``lease_ends``: the session's when it was executed.
    """

    __slots__ = (
        "began",
        "behind",
        "charged",
        "disk",
        "gates",
        "lease_ends",
        "limit",
        "needs",
        "passed",
        "paths",
        "payload",
        "plan",
        "recorded",
        "request",
        "rule",
        "session",
        "slots",
    )

    def __init__(
        self, session: Session, request: Request, payload: bytes, plan: Plan, recorded: bool, began: int
    ) -> None:
        self.session = session
        self.request: Any = request
        self.payload = payload
        self.plan = plan
        self.recorded = recorded
        self.began = began
        self.gates: list[tuple[int, Gate]] = []
        self.needs = 0
        self.charged = False
        self.passed = 0
        self.slots: tuple[Stage, ...] = ()
        self.disk = 0
        self.limit = 0
        self.rule = ""
        self.behind = False
        self.lease_ends = session.lease_ends
        self.paths: Paths | None = None
