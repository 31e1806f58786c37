"""A lease is one promise: what was remembered under it is good for exactly as long as that very lease is held."""

from __future__ import annotations

import pytest

from jupyter_wsfuse.client.leases import Leases
from jupyter_wsfuse.protocol.messages import Identity

FIRST = Identity(1, 1, 3)
SECOND = Identity(1, 2, 3)
THIRD = Identity(1, 3, 3)


@pytest.fixture
def leases() -> Leases:
    return Leases()


def test_at_first_nothing_is_held_and_zero_is_no_cover(leases: Leases) -> None:
    assert not leases.offered
    assert len(leases) == 0
    assert leases.on(FIRST) == 0
    assert not leases.holds(0)


def test_a_lease_that_is_held_already_stays_the_same_when_granted_again(leases: Leases) -> None:
    cover = leases.grant(FIRST)
    assert cover
    assert leases.grant(FIRST) == leases.on(FIRST) == cover
    assert leases.holds(cover)
    assert len(leases) == 1
    assert leases.grant(SECOND) not in (0, cover)
    assert len(leases) == 2


def test_a_lease_that_ended_and_was_granted_again_is_another_one(leases: Leases) -> None:
    before = leases.grant(FIRST)
    leases.end(FIRST)
    assert leases.on(FIRST) == 0
    assert not leases.holds(before)
    after = leases.grant(FIRST)
    assert after not in (0, before)
    assert leases.holds(after)
    assert not leases.holds(before)


def test_the_end_of_a_lease_that_is_not_held_changes_nothing(leases: Leases) -> None:
    cover = leases.grant(FIRST)
    leases.end(SECOND)
    assert leases.holds(cover)
    assert len(leases) == 1


def test_some_can_be_ended_at_once_and_the_others_stay(leases: Leases) -> None:
    first, second, third = (leases.grant(identity) for identity in (FIRST, SECOND, THIRD))
    leases.clear([FIRST, THIRD, Identity(9, 9, 9)])
    assert [leases.holds(cover) for cover in (first, second, third)] == [False, True, False]
    leases.clear([])  # none, not all
    assert leases.holds(second)
    assert len(leases) == 1


def test_when_all_are_over_no_number_is_used_twice(leases: Leases) -> None:
    before = {leases.grant(identity) for identity in (FIRST, SECOND)}
    leases.clear()
    assert len(leases) == 0
    assert not any(leases.holds(cover) for cover in before)
    assert leases.grant(FIRST) not in before
