"""How a connection is made and kept."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jupyter_wsfuse.busypoll import LIMIT


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How to connect. Times in seconds.

    ``transport``: "direct" needs the server's host, "relay" works from anywhere, "auto" takes the first if it can.
    ``deadline``: how long an operation waits for a lost connection. ``links`` and ``client`` are for the engine,
    ``tenant`` names one of the server's workspaces; empty: the one that the user belongs to.
    ``heartbeat``: the longest silence before we ask whether the peer is there; ``patience``: how long it may take
    to show a sign of life then. ``park_after``: idle time after which a relay is let go if no file is open,
    because a connection that lives keeps a Hub from stopping an idle server; 0: never.
    ``busy_poll``: for how long to stay awake for an answer over the direct transport, if the last came as soon.
    ``interrupt_patience``: how long the peer may be silent after somebody who waits for it got a signal.
    ``leases``: ask to be told of changes. ``reports``: offer to say what the client knows of itself, for people.
    ``jitter`` returns numbers in [0, 1).
    """

    transport: Literal["auto", "direct", "relay"] = "auto"
    deadline: float = 60.0
    links: str = "keep"
    leases: bool = False
    reports: bool = False
    tenant: str = ""
    client: str = ""
    backoff: float = 0.05
    backoff_max: float = 5.0
    heartbeat: float = 5.0
    patience: float = 15.0
    interrupt_patience: float = 2.0
    park_after: float = 300.0
    busy_poll: float = LIMIT
    welcome_timeout: float = 15.0
    close_timeout: float = 1.0
    jitter: Callable[[], float] = random.random
