"""What is known of one directory: which names are in it, which are not, and which nobody knows about."""

from __future__ import annotations

import pytest

from jupyter_wsfuse.client import directory as directory_module
from jupyter_wsfuse.client.directory import LEASED, Directory
from jupyter_wsfuse.protocol.messages import Attr, DirEntry, Identity

COVER = 7
NOW = 100.0
UNTIL = NOW + 1.0
NEGATIVE = 0.5


def identity(ino: int) -> Identity:
    return Identity(1, ino, 3)


def entry(name: bytes, ino: int, cookie: int, *, known: bool = True) -> DirEntry:
    attr = Attr(1, ino, 0o100644, 1, 0, 0, 0, 5, 8, 4096, 1, 2, 3, 3)
    return DirEntry(name, cookie, ino, 8, attr if known else None)


def leased(*names: bytes) -> Directory:
    """A directory that is known as a whole and under a lease; the files' inode numbers count from 1."""
    directory = Directory(b"dir", COVER)
    directory.fill([entry(name, place, 100 + place) for place, name in enumerate(names, 1)], 0.0)
    return directory


def find(directory: Directory, name: bytes, now: float = NOW) -> tuple[Identity | None, float] | None:
    return directory.find(name, now, NEGATIVE)


def order(directory: Directory) -> list[bytes]:
    assert directory.order is not None
    return [listed.name for listed in directory.order]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most three names that nothing is known about."""
    monkeypatch.setattr(directory_module, "_MOST", 3)


# --- listings ------------------------------------------------------------------------------------------


def test_a_new_directory_knows_nothing() -> None:
    directory = Directory(b"dir", COVER, prefetched=True)
    assert directory.prefetched
    assert not directory.complete
    assert directory.order is None
    assert find(directory, b"a") is None
    assert list(directory) == []


def test_a_listing_says_what_is_there_and_what_is_not() -> None:
    directory = leased(b"b", b"a")
    assert find(directory, b"b") == (identity(1), LEASED)
    assert find(directory, b"a") == (identity(2), LEASED)
    assert find(directory, b"c") == (None, LEASED)
    assert list(directory) == [b"b", b"a"]
    assert not directory.prefetched


def test_the_order_of_a_listing_is_kept_without_attributes_behind_the_dots() -> None:
    directory = Directory(b"dir", COVER)
    directory.fill([entry(b"..", 8, 1), entry(b"z", 1, 5), entry(b".", 9, 3), entry(b"a", 2, 6)], 0.0)
    assert order(directory) == [b".", b"..", b"z", b"a"]
    assert directory.order is not None
    assert [listed.attr for listed in directory.order] == [None] * 4
    assert [listed.ino for listed in directory.order] == [0, 0, 1, 2]
    assert b"." not in directory.names


def test_the_dots_get_cookies_that_no_entry_has() -> None:
    directory = Directory(b"dir", COVER)
    directory.fill([entry(b"a", 1, 1), entry(b"b", 2, 3), entry(b"c", 3, 2**62)], 0.0)
    assert directory.order is not None
    cookies = [listed.cookie for listed in directory.order]
    assert len(set(cookies)) == 5
    assert 0 not in cookies  # that is where a listing begins


def test_an_entry_that_came_without_attributes_is_listed_but_not_known() -> None:
    directory = Directory(b"dir", COVER)
    directory.fill([entry(b"a", 1, 1), entry(b"gone", 2, 2, known=False)], 0.0)
    assert find(directory, b"gone") is None
    assert order(directory) == [b".", b"..", b"a", b"gone"]


def test_a_listing_goes_on_behind_a_cookie_if_an_entry_has_it() -> None:
    directory = leased(b"a", b"b")
    assert directory.order is not None
    for index, listed in enumerate(directory.order):
        assert directory.after(listed.cookie) == index + 1
    assert directory.after(12345) is None


# --- for how long --------------------------------------------------------------------------------------


def test_without_a_lease_a_listing_is_good_until_its_time() -> None:
    directory = Directory(b"dir", 0)
    directory.fill([entry(b"a", 1, 1)], UNTIL)
    assert find(directory, b"a") == (identity(1), 1.0)
    assert find(directory, b"a", UNTIL) is None
    assert find(directory, b"z") == (None, NEGATIVE)
    assert find(directory, b"z", UNTIL - 0.25) == (None, 0.25)
    assert find(directory, b"z", UNTIL) is None
    assert directory.find(b"z", NOW, 0.0) is None


def test_without_a_lease_each_name_has_a_time_of_its_own() -> None:
    directory = Directory(b"", 0)
    directory.keep(b"a", identity(1), NOW + 1)
    directory.keep(b"b", None, NOW + 2)
    assert find(directory, b"a") == (identity(1), 1.0)
    assert find(directory, b"b") == (None, 2.0)
    assert find(directory, b"a", NOW + 1) is None
    assert find(directory, b"b", NOW + 1) == (None, 1.0)
    assert find(directory, b"b", NOW + 2) is None


def test_under_a_lease_single_names_stay_true_beside_those_with_a_time() -> None:
    directory = Directory(b"", COVER)
    directory.keep(b"late", identity(1), NOW + 1)
    directory.keep(b"leased", identity(2), 0.0)
    directory.keep(b"nothing", None, 0.0)
    assert find(directory, b"late") == (identity(1), 1.0)
    assert find(directory, b"leased", NOW + 1e6) == (identity(2), LEASED)
    assert find(directory, b"nothing", NOW + 1e6) == (None, LEASED)
    directory.keep(b"late", identity(1), 0.0)
    assert find(directory, b"late", NOW + 1e6) == (identity(1), LEASED)


def test_a_lease_that_comes_later_leaves_a_listing_the_time_that_it_had() -> None:
    directory = Directory(b"dir", 0)
    directory.fill([entry(b"a", 1, 1), entry(b"gone", 2, 2, known=False)], UNTIL)
    directory.covered(COVER)
    assert directory.cover == COVER
    assert not directory.complete
    assert directory.order is None
    assert not directory.holes
    assert find(directory, b"a") == (identity(1), 1.0)
    assert find(directory, b"a", UNTIL) is None
    assert find(directory, b"z") is None


def test_a_lease_that_comes_later_leaves_single_names_the_time_that_they_had() -> None:
    directory = Directory(b"", 0)
    directory.keep(b"a", identity(1), UNTIL)
    directory.covered(COVER)
    assert find(directory, b"a") == (identity(1), 1.0)
    assert find(directory, b"a", UNTIL) is None


# --- changes -------------------------------------------------------------------------------------------


def test_a_name_that_is_as_it_was_leaves_the_order() -> None:
    directory = leased(b"a", b"b")
    directory.keep(b"a", identity(1), 0.0)
    directory.keep(b"nothing", None, 0.0)
    assert order(directory) == [b".", b"..", b"a", b"b"]
    assert not directory.absent  # that it is in none of them says the same


def test_another_file_under_a_name_ends_the_order() -> None:
    directory = leased(b"a")
    directory.keep(b"a", identity(9), 0.0)
    assert directory.order is None
    assert find(directory, b"a") == (identity(9), LEASED)


def test_a_new_name_ends_the_order() -> None:
    directory = leased(b"a")
    directory.keep(b"b", identity(9), 0.0)
    assert directory.order is None
    directory.keep(b"c", identity(10), 0.0)
    assert sorted(directory) == [b"a", b"b", b"c"]


def test_a_name_that_went_is_known_to_be_absent() -> None:
    directory = leased(b"a", b"b")
    directory.keep(b"a", None, 0.0)
    assert directory.order is None
    assert find(directory, b"a") == (None, LEASED)
    directory.keep(b"a", identity(9), 0.0)
    assert find(directory, b"a") == (identity(9), LEASED)


def test_a_name_that_was_absent_and_came_is_there() -> None:
    directory = Directory(b"", COVER)
    directory.keep(b"a", None, 0.0)
    directory.keep(b"a", identity(1), 0.0)
    assert find(directory, b"a") == (identity(1), LEASED)
    assert not directory.absent


def test_of_a_forgotten_name_nothing_is_known_while_all_others_are() -> None:
    directory = leased(b"a", b"b")
    directory.forget(b"a")
    directory.forget(b"new")
    assert find(directory, b"a") is None
    assert find(directory, b"new") is None
    assert find(directory, b"b") == (identity(2), LEASED)
    assert find(directory, b"z") == (None, LEASED)
    assert directory.order is None
    directory.keep(b"new", None, 0.0)
    assert find(directory, b"new") == (None, LEASED)


def test_in_a_directory_that_is_not_known_as_a_whole_a_forgotten_name_leaves_no_trace() -> None:
    directory = Directory(b"", 0)
    directory.keep(b"a", identity(1), UNTIL)
    directory.keep(b"b", None, UNTIL)
    directory.forget(b"a")
    directory.forget(b"b")
    assert find(directory, b"a") is find(directory, b"b") is None
    assert not directory.holes


# --- bounds --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_a_directory_with_too_many_forgotten_names_is_not_known_as_a_whole_any_more() -> None:
    directory = leased(b"a")
    for name in (b"1", b"2", b"3"):
        directory.forget(name)
    assert directory.complete
    directory.forget(b"4")
    assert not directory.complete
    assert not directory.holes
    assert find(directory, b"z") is None
    assert find(directory, b"a") == (identity(1), LEASED)


@pytest.mark.usefixtures("small")
def test_of_too_many_absent_names_the_last_one_stays_and_so_do_the_names_that_are_there() -> None:
    directory = Directory(b"", 0)
    directory.keep(b"a", identity(1), UNTIL)
    for name in (b"1", b"2", b"3", b"4"):
        directory.keep(name, None, UNTIL)
    assert find(directory, b"1") is find(directory, b"3") is None
    assert find(directory, b"4") == (None, 1.0)
    assert find(directory, b"a") == (identity(1), 1.0)


def test_it_is_counted_as_larger_the_more_it_knows() -> None:
    directory = leased()
    directory.measure()
    empty = directory.bytes
    for number in range(10):
        directory.keep(b"%d" % number, identity(number), 0.0)
    directory.measure()
    full = directory.bytes
    assert full > empty
    for number in range(10, 20):
        directory.forget(b"%d" % number)
    directory.measure()
    assert empty < full < directory.bytes < 2 * full
