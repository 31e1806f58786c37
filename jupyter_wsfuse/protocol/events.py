"""What the two ends of a session make of the bytes that they receive."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from .messages import Changed, InvalidateAll, Released, Reply, Request, Watched, Welcome

Kind = Literal["resumed", "new", "recovered", "lost"]
#: How a session went on; each kind asks more of the client than the one before.
KINDS: Final[tuple[Kind, ...]] = ("resumed", "new", "recovered", "lost")


class Event(msgspec.Struct):
    """Base of what ``receive`` returns."""


class Welcomed(Event):
    """The client is admitted. Make good what was lost, then call :meth:`ClientSession.recovered`.

    ``kind``: "new": nothing to do. "resumed": handles, locks and requests go on. "recovered": handles and
    locks have to be claimed again. "lost": handles and locks are gone, another session has begun. The most
    demanding kind is repeated until ``recovered`` has been called for it.
    """

    welcome: Welcome
    kind: Kind


class RefusedEvent(Event):
    """The engine does not admit us, and closes the connection."""

    code: str
    message: str


class Replied(Event):
    """The answer to ``seq``. For a ``once`` request :meth:`ClientSession.done` has to be called in time."""

    seq: int
    reply: Reply
    payload: bytes


class Notified(Event):
    message: Changed | InvalidateAll | Released | Watched


class PongReceived(Event):
    nonce: int


class PeerClosed(Event):
    """The peer has ended the session for good."""

    reason: str


class Requested(Event):
    """To be executed, and answered by exactly one :meth:`EngineSession.reply`."""

    seq: int
    request: Request
    payload: bytes


class Cancelled(Event):
    """Nobody waits for ``seq``, which is being executed, any longer. It has to be answered all the same."""

    seq: int


class Acked(Event):
    """The remembered replies to ``seqs`` have been forgotten."""

    seqs: list[int]
