"""Tickets: how the Jupyter server vouches to the engine for a client.

The extension and its engine share a secret. A client that the Jupyter server has authenticated gets a ticket
from the extension and shows it to the engine in its ``Hello``. A ticket is short-lived, good for one
connection to one engine (its *audience*), and says who comes and what he may do; for a client that came with
a scoped token, also what that token claims (:class:`TokenClaims`), which the engine holds him to::

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
_LONGEST: Final = 48 << 10  # characters; the groups of a user and the paths of a token take the most of it

Clock = Callable[[], float]


class TokenClaims(msgspec.Struct, frozen=True, kw_only=True):
    """A scoped token, as far as the engine has to enforce it. It only ever takes away from what ``Ticket`` grants.

    ``paths`` are relative to the workspace, without slashes at the ends, never empty; ``b""`` is all of it.
    ``limits`` has the keys of :class:`~jupyter_wsfuse.engine.tenants.Limits` and binds all sessions of the token
    together. ``expires`` in seconds of the clock that both sides use. ``parents``: ids of the tokens that this
    one was created with, the nearest last, and ``parent_limits`` theirs in the same order: what is made with a
    limited token comes out of its allowance.
    """

    id: str
    paths: tuple[bytes, ...]
    rights: frozenset[str]
    expires: float
    limits: dict[str, float] = {}
    label: str = ""
    parents: tuple[str, ...] = ()
    parent_limits: tuple[dict[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.paths or not self.rights <= RIGHTS or len(self.parents) != len(self.parent_limits):
            raise ValueError("claims that do not fit together")

    @property
    def family(self) -> tuple[str, ...]:
        """The ids whose revocation ends this token: its parents' and its own."""
        return (*self.parents, self.id)

    def chain(self) -> tuple[tuple[str, dict[str, float]], ...]:
        """Ids and limits that bind this token, the outermost parent's first, its own last."""
        return (*zip(self.parents, self.parent_limits, strict=True), (self.id, self.limits))


class Ticket(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What a ticket says. ``expires`` in seconds of the clock that both sides use.

    ``tenant`` is the one that is wanted, ``""`` for the one that the identity belongs to: ``principal``, a name
    or ``""`` where all users are one, and ``groups``. ``address`` is where the HTTP client came from, for the
    audit alone. ``token`` is there if that is what the client came with.
    """

    tenant: str
    principal: str
    groups: tuple[str, ...]
    rights: frozenset[str]
    audience: str
    nonce: str
    expires: float
    address: str
    token: TokenClaims | None


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

    def issue(
        self,
        tenant: str,
        principal: str,
        rights: Iterable[str],
        ttl: float,
        *,
        groups: Iterable[str] = (),
        address: str = "",
        token: TokenClaims | None = None,
    ) -> str:
        """A ticket that is valid for *ttl* seconds, once.

        A *token* narrows the rights and may shorten the time. Raises :class:`ValueError` for unknown rights, and
        for an identity whose ticket would be too long to be redeemed.
        """
        granted = frozenset(rights)
        if not granted <= RIGHTS:
            raise ValueError(f"unknown rights: {', '.join(sorted(granted - RIGHTS))}")
        expires = self._clock() + ttl
        if token is not None:
            granted &= token.rights
            expires = min(expires, token.expires)
        body = _encoder.encode(
            Ticket(
                tenant=tenant,
                principal=principal,
                groups=tuple(groups),
                rights=granted,
                audience=self._audience,
                nonce=secrets.token_urlsafe(16),
                expires=expires,
                address=address,
                token=token,
            )
        )
        ticket = f"{_pack(body)}.{_pack(_sign(self._secret, body))}"
        if len(ticket) > _LONGEST:
            raise ValueError("the names of the user, the groups and the paths are too long for a ticket")
        return ticket


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
