"""Tickets: how the Jupyter server vouches to the engine for a client.

The extension and its engine share a secret. A client that the Jupyter server has authenticated gets a ticket
from the extension and shows it to the engine in its ``Hello``. A ticket is short-lived, good for one
connection to one engine (its *audience*), and says who comes and what he may do::

    base64url(msgpack(Ticket)) "." base64url(HMAC-SHA256(secret, "wsfuse-ticket-1" NUL msgpack(Ticket)))

It is not encrypted: nothing in it is a secret but the nonce, and that only until the ticket is redeemed.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from ..errors import RefusedError
from .messages import REFUSALS

RIGHTS: Final = frozenset({"read", "write"})

_PURPOSE: Final = b"wsfuse-ticket-1\0"
_LONGEST: Final = 4096  # characters; tenant and principal are names, so a real ticket is far shorter

Clock = Callable[[], float]


class Ticket(msgspec.Struct, array_like=True, frozen=True):
    """What a ticket says. ``expires`` in seconds of the clock that both sides use."""

    tenant: str
    principal: str
    rights: frozenset[str]
    audience: str
    nonce: str
    expires: float


_decoder: Final = msgspec.msgpack.Decoder(Ticket)
_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")


def bearer(secret: bytes, purpose: str) -> str:
    """A token for the ``Authorization: Bearer`` header, proof of the secret for one *purpose* only.

    Compare with :func:`hmac.compare_digest`.
    """
    return hmac.digest(secret, purpose.encode(), hashlib.sha256).hex()


def _sign(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, _PURPOSE + body, hashlib.sha256)


def _pack(data: bytes) -> str:
    return urlsafe_b64encode(data).decode("ascii")


def _refuse(code: str) -> RefusedError:
    return RefusedError(code, REFUSALS[code])


class TicketIssuer:
    """Issues tickets for one engine. *secret*: at least 16 bytes that only the two sides know."""

    def __init__(self, secret: bytes, audience: str, *, clock: Clock = time.time) -> None:
        if len(secret) < 16:
            raise ValueError("the ticket secret is too short")
        self._secret = secret
        self._audience = audience
        self._clock = clock

    def issue(self, tenant: str, principal: str, rights: Iterable[str], ttl: float) -> str:
        """A ticket that is valid for *ttl* seconds, once. Raises :class:`ValueError` for unknown rights."""
        granted = frozenset(rights)
        if not granted <= RIGHTS:
            raise ValueError(f"unknown rights: {', '.join(sorted(granted - RIGHTS))}")
        nonce = secrets.token_urlsafe(16)
        ticket = Ticket(tenant, principal, granted, self._audience, nonce, self._clock() + ttl)
        body = _encoder.encode(ticket)
        return f"{_pack(body)}.{_pack(_sign(self._secret, body))}"


class TicketVerifier:
    """Redeems tickets, each once. Remembers a nonce until its ticket has expired, and no longer."""

    def __init__(self, secret: bytes, audience: str, clock: Clock = time.time) -> None:
        self._secret = secret
        self._audience = audience
        self._clock = clock
        self._used: set[str] = set()
        self._expiries: list[tuple[float, str]] = []  # a heap of the same nonces
        # A clock that is set back must not revive a ticket whose nonce has been forgotten.
        self._forgotten = float("-inf")

    def redeem(self, ticket: str) -> Ticket:
        """What the ticket says. Raises :class:`RefusedError` whose ``code`` starts with ``ticket-``."""
        try:
            if len(ticket) > _LONGEST:
                raise ValueError("too long")
            packed_body, packed_mac = ticket.encode("ascii").split(b".")
            body, mac = urlsafe_b64decode(packed_body), urlsafe_b64decode(packed_mac)
            if not hmac.compare_digest(mac, _sign(self._secret, body)):
                raise ValueError("wrong signature")
            claims = _decoder.decode(body)
        except ValueError:  # includes those of base64, msgspec and encoding
            raise _refuse("ticket-forged") from None
        if claims.audience != self._audience:
            raise _refuse("ticket-foreign")
        now = self._clock()
        if claims.expires <= max(now, self._forgotten):
            raise _refuse("ticket-expired")
        if claims.nonce in self._used:
            raise _refuse("ticket-replayed")
        self._forget(now)
        self._used.add(claims.nonce)
        heapq.heappush(self._expiries, (claims.expires, claims.nonce))
        return claims

    def _forget(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] <= now:
            self._forgotten, nonce = heapq.heappop(self._expiries)
            self._used.discard(nonce)
