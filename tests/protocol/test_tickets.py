from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.errors import RefusedError
from jupyter_wsfuse.protocol.tickets import Ticket, TicketIssuer, TicketVerifier, TokenClaims, bearer

SECRET = bytes(range(32))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer(clock: Clock) -> TicketIssuer:
    return TicketIssuer(SECRET, "engine-1", clock=clock)


@pytest.fixture
def verifier(clock: Clock) -> TicketVerifier:
    return TicketVerifier(SECRET, "engine-1", clock)


def refusal(verifier: TicketVerifier, ticket: str) -> str:
    with pytest.raises(RefusedError) as caught:
        verifier.redeem(ticket)
    return caught.value.code


def test_a_ticket_says_who_comes(issuer: TicketIssuer, verifier: TicketVerifier) -> None:
    ticket = verifier.redeem(issuer.issue("default", "änn", {"read", "write"}, 30))
    assert ticket == Ticket(
        tenant="default", principal="änn", groups=(), rights=frozenset({"read", "write"}), audience="engine-1",
        nonce=ticket.nonce, expires=1030.0, address="", token=None,
    )  # fmt: skip
    assert verifier.redeem(issuer.issue("other", "bob", ["read"], 30)).rights == {"read"}
    whole = issuer.issue("", "bob", ["read"], 30, groups=["staff", "ph\xfcsik"], address="2001:db8::7")
    redeemed = verifier.redeem(whole)
    assert (redeemed.groups, redeemed.address) == (("staff", "ph\xfcsik"), "2001:db8::7")


CLAIMS = TokenClaims(
    id="t2", paths=(b"data", b"a/\xff"), rights=frozenset({"read"}), expires=1010.0, limits={"read": 5.0},
    label="for bob", parents=("t0", "t1"), parent_limits=({}, {"read": 9.0}),
)  # fmt: skip


def test_a_token_narrows_it(issuer: TicketIssuer, verifier: TicketVerifier) -> None:
    ticket = verifier.redeem(issuer.issue("default", "ann", ["read", "write"], 30, token=CLAIMS))
    assert ticket.token == CLAIMS
    assert ticket.rights == {"read"}
    assert ticket.expires == 1010.0
    assert CLAIMS.family == ("t0", "t1", "t2")
    assert CLAIMS.chain() == (("t0", {}), ("t1", {"read": 9.0}), ("t2", {"read": 5.0}))
    shorter = verifier.redeem(issuer.issue("default", "ann", ["write"], 5, token=CLAIMS))
    assert (shorter.rights, shorter.expires) == (frozenset(), 1005.0)


@pytest.mark.parametrize(
    "change", [{"paths": ()}, {"rights": frozenset({"admin"})}, {"parents": ("t0",)}, {"parent_limits": ()}]
)
def test_claims_that_do_not_fit_together(
    change: dict[str, Any], issuer: TicketIssuer, verifier: TicketVerifier
) -> None:
    with pytest.raises(ValueError, match="fit"):
        msgspec.structs.replace(CLAIMS, **change)
    told = msgspec.to_builtins(CLAIMS, builtin_types=(bytes,)) | change
    body = msgspec.msgpack.encode(
        ["default", "ann", [], ["read"], "engine-1", "n", 1010.0, "", told], enc_hook=list
    )
    mac = hmac.digest(SECRET, b"wsfuse-ticket-1\0" + body, hashlib.sha256)
    assert refusal(verifier, b".".join(map(urlsafe_b64encode, (body, mac))).decode()) == "ticket-forged"


def test_an_identity_that_is_too_long_is_refused_when_the_ticket_is_issued(issuer: TicketIssuer) -> None:
    with pytest.raises(ValueError, match="too long"):
        issuer.issue("default", "ann", ["read"], 30, groups=["x" * 1000] * 50)


def test_it_is_good_once(issuer: TicketIssuer, verifier: TicketVerifier) -> None:
    first, second = (issuer.issue("default", "ann", ["read"], 30) for _ in range(2))
    assert first != second
    verifier.redeem(first)
    assert refusal(verifier, first) == "ticket-replayed"
    body, mac = first.split(".")
    assert refusal(verifier, f"{body}\n.{mac}") == "ticket-replayed"  # the same bytes, written differently
    verifier.redeem(second)


def test_it_expires(issuer: TicketIssuer, verifier: TicketVerifier, clock: Clock) -> None:
    ticket = issuer.issue("default", "ann", ["read"], 30)
    clock.now += 30
    assert refusal(verifier, ticket) == "ticket-expired"


def test_it_is_for_one_engine(clock: Clock, verifier: TicketVerifier) -> None:
    ticket = TicketIssuer(SECRET, "engine-2", clock=clock).issue("default", "ann", ["read"], 30)
    assert refusal(verifier, ticket) == "ticket-foreign"


def test_it_cannot_be_forged(issuer: TicketIssuer, verifier: TicketVerifier, clock: Clock) -> None:
    ticket = issuer.issue("default", "ann", ["read"], 30)
    body, _, mac = ticket.partition(".")
    claims = msgspec.msgpack.decode(urlsafe_b64decode(body))
    claims[0] = "somebody else's"
    altered = urlsafe_b64encode(msgspec.msgpack.encode(claims)).decode()
    other = TicketIssuer(SECRET[::-1], "engine-1", clock=clock).issue("default", "ann", ["read"], 30)
    for bad in (
        f"{altered}.{mac}", f"{body}.", f".{mac}", body, f"{ticket}.{mac}", "", ".", "€.€", "a.a", other,
        f"{body}.{mac}" + "=" * 50_000,
    ):  # fmt: skip
        assert refusal(verifier, bad) == "ticket-forged"
    assert verifier.redeem(ticket).principal == "ann"


def test_what_is_signed_is_checked_as_well(verifier: TicketVerifier) -> None:
    for body in (
        b"rubbish",
        msgspec.msgpack.encode(["default", "ann", [], ["read"], "e", "n", "soon", "", None]),
    ):
        mac = hmac.digest(SECRET, b"wsfuse-ticket-1\0" + body, hashlib.sha256)
        ticket = b".".join(map(urlsafe_b64encode, (body, mac))).decode()
        assert refusal(verifier, ticket) == "ticket-forged"


@given(st.data())
def test_no_bit_of_it_can_be_changed(data: st.DataObject) -> None:
    clock = Clock()
    ticket = TicketIssuer(SECRET, "e", clock=clock).issue("default", "ann", ["read"], 30)
    verifier = TicketVerifier(SECRET, "e", clock)
    body, mac = map(urlsafe_b64decode, ticket.split("."))
    at = data.draw(st.integers(0, 8 * (len(body) + len(mac)) - 1))
    changed = bytearray(body + mac)
    changed[at // 8] ^= 1 << at % 8
    parts = changed[: len(body)], changed[len(body) :]
    assert refusal(verifier, b".".join(map(urlsafe_b64encode, parts)).decode()) == "ticket-forged"


def test_nonces_are_forgotten_but_their_tickets_not_revived(
    issuer: TicketIssuer, verifier: TicketVerifier, clock: Clock
) -> None:
    short = issuer.issue("default", "ann", ["read"], 10)
    long = issuer.issue("default", "ann", ["read"], 100)
    verifier.redeem(long)
    verifier.redeem(short)
    clock.now += 50
    verifier.redeem(issuer.issue("default", "ann", ["read"], 10))
    assert len(verifier._used) == len(verifier._expiries) == 2
    clock.now -= 50  # the administrator sets the clock
    assert refusal(verifier, short) == "ticket-expired"
    assert refusal(verifier, long) == "ticket-replayed"
    verifier.redeem(issuer.issue("default", "ann", ["read"], 30))


def test_the_issuer_refuses_nonsense(issuer: TicketIssuer) -> None:
    with pytest.raises(ValueError, match="admin"):
        issuer.issue("default", "ann", ["read", "admin"], 30)
    with pytest.raises(ValueError, match="too short"):
        TicketIssuer(b"short", "engine-1")


def test_the_default_clock_is_the_wall_clock() -> None:
    ticket = TicketIssuer(SECRET, "e").issue("default", "ann", [], 30)
    assert TicketVerifier(SECRET, "e").redeem(ticket).rights == frozenset()


def test_a_bearer_token_is_for_one_purpose() -> None:
    assert bearer(SECRET, "status") == hmac.new(SECRET, b"status", "sha256").hexdigest()
    assert bearer(SECRET, "status") != bearer(SECRET, "stop")
