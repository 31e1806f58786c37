"""File data are believed under a lease, or for their time, and never exceed the space that they have."""

from __future__ import annotations

import pytest

from jupyter_wsfuse.client.leases import Leases
from jupyter_wsfuse.client.pages import BLOCK, Pages
from jupyter_wsfuse.protocol.messages import Identity

FILE = Identity(1, 2, 3)
OTHER = Identity(1, 9, 3)
DIR = Identity(1, 1, 3)
VERSION = (5, 1, 1)
LATER = (5, 2, 2)
TTL = 1.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases() -> Leases:
    return Leases()


@pytest.fixture
def pages(leases: Leases, clock: Clock) -> Pages:
    return Pages(4 * BLOCK, leases, TTL, clock)


@pytest.fixture
def used(pages: Pages) -> list[int]:
    """The blocks that were fetched ahead and then read."""
    told: list[int] = []
    pages.on_used = told.append
    return told


@pytest.fixture
def unused(pages: Pages) -> list[int]:
    """The blocks that were fetched ahead and went without having been read."""
    told: list[int] = []
    pages.on_unused = told.append
    return told


# --- for how long --------------------------------------------------------------------------------------


def test_a_block_that_was_never_kept_is_not_here(pages: Pages) -> None:
    assert pages.block(FILE, 0) is None
    assert not pages.has(FILE, 0)
    assert len(pages) == pages.size == 0
    assert pages.limit == 4 * BLOCK


def test_without_a_lease_blocks_are_believed_for_their_time(pages: Pages, clock: Clock) -> None:
    pages.keep(FILE, 0, b"data", 0, VERSION)
    clock.now += 0.75
    assert pages.has(FILE, 0)
    assert pages.block(FILE, 0) == b"data"
    assert pages.block(FILE, 1) is None
    assert pages.block(OTHER, 0) is None
    clock.now += 0.25
    assert not pages.has(FILE, 0)
    assert pages.block(FILE, 0) is None


def test_under_a_lease_blocks_are_believed_until_it_ends(pages: Pages, leases: Leases, clock: Clock) -> None:
    pages.keep(FILE, 0, b"data", leases.grant(DIR), VERSION)
    clock.now += 1e6
    assert pages.block(FILE, 0) == b"data"
    leases.end(DIR)
    assert pages.block(FILE, 0) is None
    leases.grant(DIR)  # another one: between the two the file may have changed
    assert pages.block(FILE, 0) is None


def test_blocks_of_the_same_state_are_kept_beside_each_other(pages: Pages, leases: Leases) -> None:
    cover = leases.grant(DIR)
    pages.keep(FILE, 0, b"first", cover, VERSION)
    pages.keep(FILE, 7, b"second", cover, VERSION)
    pages.keep(FILE, 7, b"again", cover, VERSION)
    assert pages.block(FILE, 0) == b"first"
    assert pages.block(FILE, 7) == b"again"
    assert len(pages) == 2
    assert pages.snapshot() == {"files": 1, "bytes": pages.size, "hits": 0, "misses": 0}


@pytest.mark.parametrize("change", ["version", "lease", "no version"])
def test_a_block_of_another_state_sends_those_of_the_one_before_away(
    pages: Pages, leases: Leases, change: str
) -> None:
    cover = leases.grant(DIR)
    pages.keep(FILE, 0, b"old", cover, VERSION)
    if change == "lease":
        leases.end(DIR)
        cover = leases.grant(DIR)
    version = {"version": LATER, "lease": VERSION, "no version": None}[change]
    pages.keep(FILE, 1, b"new", cover, version)
    assert pages.block(FILE, 0) is None
    assert pages.block(FILE, 1) == b"new"
    assert len(pages) == 1


# --- renewal -------------------------------------------------------------------------------------------


def test_blocks_whose_lease_ended_are_taken_up_again_if_the_file_is_the_same(
    pages: Pages, leases: Leases
) -> None:
    pages.keep(FILE, 0, b"data", leases.grant(DIR), VERSION)
    leases.end(DIR)
    pages.renew(FILE, VERSION, leases.grant(DIR))
    assert pages.block(FILE, 0) == b"data"


@pytest.mark.parametrize("version", [LATER, None])
def test_blocks_of_a_file_that_is_not_known_to_be_the_same_are_dropped(
    pages: Pages, leases: Leases, version: tuple[int, int, int] | None
) -> None:
    pages.keep(FILE, 0, b"data", leases.grant(DIR), VERSION)
    leases.end(DIR)
    pages.renew(FILE, version, leases.grant(DIR))
    assert pages.block(FILE, 0) is None
    assert len(pages) == 0


def test_without_a_new_lease_there_is_nothing_to_renew(pages: Pages, leases: Leases) -> None:
    cover = leases.grant(DIR)
    pages.renew(FILE, VERSION, cover)
    assert len(pages) == 0
    pages.keep(FILE, 0, b"data", cover, VERSION)
    pages.renew(FILE, LATER, cover)  # under the same lease nothing can have changed
    pages.renew(FILE, LATER, 0)
    assert pages.block(FILE, 0) == b"data"


def test_blocks_in_doubt_are_not_believed_until_they_are_renewed(pages: Pages, leases: Leases) -> None:
    cover = leases.grant(DIR)
    pages.keep(FILE, 0, b"data", cover, VERSION)
    pages.unsure(FILE)
    assert pages.block(FILE, 0) is None
    pages.renew(FILE, VERSION, cover)
    assert pages.block(FILE, 0) == b"data"


def test_blocks_in_doubt_that_nothing_could_confirm_are_dropped(pages: Pages, leases: Leases) -> None:
    pages.keep(FILE, 0, b"data", leases.grant(DIR), None)
    pages.unsure(FILE)
    assert len(pages) == 0


def test_all_files_can_be_in_doubt_at_once(pages: Pages, leases: Leases) -> None:
    cover = leases.grant(DIR)
    pages.keep(FILE, 0, b"data", cover, VERSION)
    pages.keep(OTHER, 0, b"data", cover, None)
    pages.unsure_all()
    assert not pages.has(FILE, 0)
    assert not pages.has(OTHER, 0)
    assert len(pages) == 1
    pages.unsure(OTHER)  # of which there is nothing any more
    pages.renew(FILE, VERSION, cover)
    assert pages.has(FILE, 0)


# --- what was fetched ahead ----------------------------------------------------------------------------


def test_the_first_read_of_a_block_that_was_fetched_ahead_is_told(pages: Pages, used: list[int]) -> None:
    pages.keep(FILE, 0, b"asked for", 0, VERSION)
    pages.keep(FILE, 4, b"ahead", 0, VERSION, prefetched=True)
    pages.keep(FILE, 5, b"ahead", 0, VERSION, prefetched=True)
    assert pages.has(FILE, 4)
    pages.block(FILE, 0)
    assert used == []
    pages.block(FILE, 4)
    pages.block(FILE, 4)
    assert used == [4]
    pages.use(FILE, 5)
    pages.use(FILE, 5)
    pages.use(OTHER, 5)
    assert used == [4, 5]


def test_a_block_that_was_fetched_ahead_in_vain_is_told(
    pages: Pages, used: list[int], unused: list[int]
) -> None:
    pages.keep(FILE, 4, b"ahead", 0, VERSION, prefetched=True)
    pages.keep(FILE, 5, b"ahead", 0, VERSION, prefetched=True)
    pages.block(FILE, 4)
    pages.drop(FILE)
    pages.drop(FILE)
    assert (used, unused) == ([4], [5])
    assert len(pages) == 0


def test_nobody_has_to_listen(pages: Pages) -> None:
    pages.keep(FILE, 0, b"ahead", 0, VERSION, prefetched=True)
    pages.keep(FILE, 1, b"ahead", 0, VERSION, prefetched=True)
    assert pages.block(FILE, 0) == b"ahead"
    pages.drop(FILE)
    assert pages.block(FILE, 0) is None


# --- bounds --------------------------------------------------------------------------------------------


def test_the_blocks_that_were_used_longest_ago_go_first(pages: Pages, unused: list[int]) -> None:
    block = bytes(BLOCK)
    for index in range(3):
        pages.keep(FILE, index, block, 0, VERSION, prefetched=True)
    pages.block(FILE, 0)
    pages.keep(OTHER, 0, block, 0, VERSION)
    assert unused == [1]
    pages.keep(OTHER, 1, block, 0, VERSION)
    assert unused == [1, 2]
    assert [pages.has(FILE, index) for index in range(3)] == [True, False, False]
    assert BLOCK < pages.size <= pages.limit


def test_of_a_file_whose_last_block_went_nothing_is_left(pages: Pages, unused: list[int]) -> None:
    pages.keep(FILE, 0, bytes(BLOCK), 0, VERSION)
    for index in range(3):
        pages.keep(OTHER, index, bytes(BLOCK), 0, VERSION)
    assert not pages.has(FILE, 0)
    assert pages.snapshot()["files"] == 1
    assert unused == []


def test_a_block_is_not_sent_away_to_make_room_for_its_own_successor(pages: Pages, unused: list[int]) -> None:
    pages.keep(FILE, 0, b"as long as it was then", 0, VERSION, prefetched=True)
    for index in range(3):
        pages.keep(OTHER, index, bytes(BLOCK), 0, VERSION)
    pages.keep(FILE, 0, bytes(BLOCK), 0, VERSION)
    assert pages.has(FILE, 0)
    assert unused == []
    assert [pages.has(OTHER, index) for index in range(3)] == [False, True, True]


def test_a_block_that_is_larger_than_all_there_is_is_not_kept(leases: Leases, clock: Clock) -> None:
    pages = Pages(BLOCK, leases, TTL, clock)
    unused: list[int] = []
    pages.on_unused = unused.append
    pages.keep(FILE, 0, b"small", 0, VERSION)
    pages.keep(FILE, 0, bytes(BLOCK), 0, VERSION, prefetched=True)
    assert not pages.has(FILE, 0)
    assert unused == [0]
    assert pages.snapshot()["files"] == pages.size == 0
