"""The cache keeps what is true and nothing else."""

from __future__ import annotations

import msgspec
import pytest

from jupyter_wsfuse.client import cache as cache_module
from jupyter_wsfuse.client.api import VfsOptions
from jupyter_wsfuse.client.cache import STALE, Cache
from jupyter_wsfuse.client.directory import LEASED
from jupyter_wsfuse.protocol.messages import Attr, DirEntry, Identity

FILE = Identity(1, 2, 3)
OTHER = Identity(1, 9, 3)
DIR = Identity(1, 1, 3)


def attr(atime: int = 10, mtime: int = 0, ctime: int = 0) -> Attr:
    return Attr(1, 2, 0o100644, 1, 0, 0, 0, 5, 8, 4096, atime, mtime, ctime, 3)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> Cache:
    return Cache(VfsOptions(negative_ttl=0.5), clock, lambda: 20)


def test_attributes_are_kept_for_their_time_and_the_rest_of_it_is_told(cache: Cache, clock: Clock) -> None:
    assert cache.attr(FILE) is None
    assert cache.keep_attr(FILE, attr(), cache.version) == 1.0
    clock.now += 0.75
    assert cache.attr(FILE) == (attr(), 0.25)
    clock.now += 0.25
    assert cache.attr(FILE) is None


def test_entries_have_a_time_of_their_own_and_negative_ones_another(cache: Cache, clock: Clock) -> None:
    assert cache.entry(DIR, b"a") is None
    assert cache.keep_entry(DIR, b"a", FILE, cache.version) == 1.0
    assert cache.keep_entry(DIR, b"b", None, cache.version) == 0.5
    assert cache.entry(DIR, b"a") == (FILE, 1.0)
    assert cache.entry(DIR, b"b") == (None, 0.5)
    clock.now += 0.5
    assert cache.entry(DIR, b"b") is None
    assert cache.entry(DIR, b"a") is not None


def test_without_caching_nothing_is_kept_and_nothing_may_be_believed(clock: Clock) -> None:
    cache = Cache(VfsOptions(cache=False, negative_ttl=5.0), clock)
    assert cache.keep_attr(FILE, attr(), cache.version) == 0.0
    assert cache.keep_entry(DIR, b"a", FILE, cache.version) == 0.0
    assert cache.keep_entry(DIR, b"a", None, cache.version) == 0.0
    cache.keep_link(FILE, b"x")
    assert cache.link(FILE) is None
    assert cache.attr(FILE) is None
    assert cache.entry(DIR, b"a") is None


def test_an_answer_older_than_a_change_is_not_kept(cache: Cache) -> None:
    since = cache.version
    cache.drop_attr(FILE)
    assert cache.keep_attr(FILE, attr(), since) == 0.0
    assert cache.keep_attr(OTHER, attr(), since) == 1.0
    cache.drop_entry(DIR, b"a")
    assert cache.keep_entry(DIR, b"a", FILE, since) == 0.0
    assert cache.keep_entry(DIR, b"b", FILE, since) == 1.0


def test_nothing_is_kept_of_what_is_being_changed(cache: Cache) -> None:
    cache.keep_attr(FILE, attr(), cache.version)
    with cache.changing(FILE) as change:
        assert cache.keep_attr(FILE, attr(), cache.version) == 0.0
        inside = cache.version
    assert cache.attr(FILE) is None
    assert cache.keep_attr(FILE, attr(), inside) == 0.0
    assert cache.keep_attr(FILE, attr(), change.token(FILE)) == 1.0


def test_a_failed_change_drops_as_well(cache: Cache) -> None:
    cache.keep_attr(FILE, attr(), cache.version)
    with pytest.raises(OSError, match="unknown"), cache.changing(FILE):
        raise OSError("outcome unknown")
    assert cache.attr(FILE) is None


def test_of_two_changes_at_a_time_neither_answer_is_the_last_word(cache: Cache) -> None:
    with cache.changing(FILE) as first:
        with cache.changing(FILE) as second:
            pass
        assert second.token(FILE) == STALE
    assert first.token(FILE) == STALE
    assert cache.keep_attr(FILE, attr(), first.token(FILE)) == 0.0


def test_a_change_that_was_not_foreseen_supersedes_questions_on_their_way(cache: Cache) -> None:
    since = cache.version
    with cache.changing((DIR, b"a")) as change:
        pass
    assert cache.keep_attr(FILE, attr(), change.token(FILE)) == 1.0
    assert cache.keep_attr(FILE, attr(mtime=1), since) == 0.0
    with cache.changing((DIR, b"a")) as change:
        cache.drop_attr(FILE)  # somebody else's
    assert change.token(FILE) == STALE


def test_clearing_forgets_and_refuses_everything_older(cache: Cache) -> None:
    since = cache.version
    cache.keep_attr(FILE, attr(), since)
    cache.keep_entry(DIR, b"a", FILE, since)
    cache.keep_link(FILE, b"t")
    cache.clear()
    assert cache.attr(FILE) is None
    assert cache.entry(DIR, b"a") is None
    assert cache.link(FILE) is None
    assert cache.keep_attr(OTHER, attr(), since) == 0.0
    assert cache.keep_attr(OTHER, attr(), cache.version) == 1.0


def test_touches_beyond_the_bound_make_old_answers_doubtful(cache: Cache, monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "_REMEMBERED_TOUCHES", 3)
    since = cache.version
    for ino in range(5):
        cache.drop_attr(Identity(1, ino, 0))
    assert cache.keep_attr(OTHER, attr(), since) == 0.0
    assert cache.keep_attr(OTHER, attr(), cache.version) == 1.0


def test_capacity_is_bounded_in_bytes(clock: Clock) -> None:
    cache = Cache(VfsOptions(attr_bytes=12_000, entry_bytes=20_000), clock)
    evicted: list[Identity] = []
    cache.on_evict = lambda identity, directory: evicted.append(identity)
    for ino in range(100):
        cache.keep_attr(Identity(1, ino, 0), attr(), cache.version)
        cache.keep_entry(Identity(2, ino, 0), b"name", FILE, cache.version)
    snapshot = cache.snapshot()
    assert snapshot["attributes"] == 10
    assert 1 < snapshot["directories"] == snapshot["entries"] < 20
    assert len(evicted) == 100 - snapshot["directories"]


def entry_of(name: bytes, ino: int, cookie: int, nlink: int = 1, mode: int = 0o100644) -> DirEntry:
    return DirEntry(name, cookie, ino, mode >> 12, Attr(1, ino, mode, nlink, 0, 0, 0, 5, 8, 4096, 1, 2, 3, 3))


def listed(cache: Cache, *names: bytes, since: int | None = None) -> None:
    entries = [entry_of(name, 100 + place, 10 * (place + 1)) for place, name in enumerate(names)]
    cache.keep_listing(DIR, b"dir", entries, cache.version if since is None else since, False)


def test_under_a_lease_things_stay_true_until_it_ends(cache: Cache, clock: Clock) -> None:
    cache.grant(DIR, cache.version)
    assert cache.keep_attr(FILE, attr(), cache.version, DIR) == LEASED
    assert cache.keep_entry(DIR, b"a", FILE, cache.version) == LEASED
    assert cache.keep_entry(DIR, b"b", None, cache.version) == LEASED
    clock.now += 10_000
    assert cache.attr(FILE) == (attr(), LEASED)
    assert cache.entry(DIR, b"a") == (FILE, LEASED)
    assert cache.entry(DIR, b"b") == (None, LEASED)
    cache.leases.end(DIR)
    assert cache.attr(FILE) is None
    assert cache.entry(DIR, b"a") is cache.entry(DIR, b"b") is None
    cache.grant(DIR, cache.version)  # another lease: between the two anything may have happened
    assert cache.attr(FILE) is None
    assert cache.entry(DIR, b"a") is None


def test_who_is_covered_by_whose_lease(cache: Cache) -> None:
    cache.grant(DIR, cache.version)
    several = msgspec.structs.replace(attr(), nlink=2)
    folder = msgspec.structs.replace(attr(), mode=0o40755, nlink=1)
    assert cache.cover(attr(), DIR)
    assert not cache.cover(attr(), None)
    assert not cache.cover(several, DIR)  # changed by its other name, nobody would hear of it
    assert not cache.cover(folder, DIR)
    cache.grant(FILE, cache.version)
    assert cache.cover(several, DIR) == cache.cover(folder, None) != cache.cover(attr(), DIR)


def test_a_grant_that_was_overtaken_by_the_end_of_the_lease_is_none(cache: Cache) -> None:
    since = cache.version
    cache.drop_directory(DIR)
    cache.grant(DIR, since)
    assert not cache.leases.on(DIR)
    since = cache.version
    cache.clear()
    cache.grant(DIR, since)
    assert not cache.leases.on(DIR)
    cache.grant(DIR, cache.version)
    assert cache.leases.on(DIR)


def test_a_directory_that_is_known_as_a_whole_knows_what_is_not_in_it(cache: Cache, clock: Clock) -> None:
    cache.grant(DIR, cache.version)
    listed(cache, b"a", b"b")
    assert cache.entry(DIR, b"a") == (Identity(1, 100, 3), LEASED)
    assert cache.entry(DIR, b"z") == (None, LEASED)
    directory = cache.directory(DIR)
    assert directory is not None
    assert [entry.name for entry in directory.order or ()] == [b".", b"..", b"a", b"b"]
    cache.drop_entry(DIR, b"z")  # somebody made it
    assert cache.entry(DIR, b"z") is None
    assert cache.entry(DIR, b"y") == (None, LEASED)
    assert directory.order is None
    cache.keep_entry(DIR, b"z", FILE, cache.version)
    assert cache.entry(DIR, b"z") == (FILE, LEASED)
    cache.keep_entry(DIR, b"z", None, cache.version)
    assert cache.entry(DIR, b"z") == (None, LEASED)


def test_without_a_lease_a_listing_holds_for_its_time_only(cache: Cache, clock: Clock) -> None:
    listed(cache, b"a")
    assert cache.entry(DIR, b"a") == (Identity(1, 100, 3), 1.0)
    assert cache.entry(DIR, b"z") == (None, 0.5)
    clock.now += 0.75
    assert cache.entry(DIR, b"z") == (None, 0.25)
    clock.now += 0.25
    assert cache.entry(DIR, b"a") is cache.entry(DIR, b"z") is cache.directory(DIR) is None


def test_a_listing_does_not_know_names_that_changed_since_it_was_asked_for(cache: Cache) -> None:
    cache.grant(DIR, cache.version)
    since = cache.version
    cache.drop_entry(DIR, b"a")
    cache.drop_entry(DIR, b"z")
    with cache.changing((DIR, b"b")):
        listed(cache, b"a", b"b", b"c", since=since)
        assert cache.entry(DIR, b"b") is None
    assert cache.entry(DIR, b"a") is None
    assert cache.entry(DIR, b"z") is None
    assert cache.entry(DIR, b"c") is not None
    assert cache.entry(DIR, b"x") == (None, LEASED)
    with cache.changing(DIR):
        listed(cache, b"q")
    assert cache.entry(DIR, b"q") == (None, LEASED)
    cache.clear()
    listed(cache, b"a", since=since)
    assert cache.directory(DIR) is None


def test_a_lease_that_comes_later_does_not_make_older_knowledge_better(cache: Cache, clock: Clock) -> None:
    listed(cache, b"a")
    cache.grant(DIR, cache.version)
    cache.keep_entry(DIR, b"b", FILE, cache.version)
    assert cache.entry(DIR, b"a") == (Identity(1, 100, 3), 1.0)
    assert cache.entry(DIR, b"z") is None
    clock.now += 1
    assert cache.entry(DIR, b"a") is None
    assert cache.entry(DIR, b"b") == (FILE, LEASED)


def test_a_directory_that_had_to_go_takes_its_lease_with_it(clock: Clock) -> None:
    cache = Cache(VfsOptions(entry_bytes=3_000), clock)
    cache.grant(DIR, cache.version)
    cache.keep_attr(FILE, attr(), cache.version, DIR)
    listed(cache, b"a")
    assert cache.attr(FILE) is not None
    listed(cache, *(b"%d" % number for number in range(50)))  # larger than all there is
    assert cache.known(DIR) is None
    assert cache.attr(FILE) is None


def test_what_was_found_out_about_a_file_is_kept_while_it_is_the_same(cache: Cache) -> None:
    cache.grant(DIR, cache.version)
    cache.keep_attr(FILE, attr(), cache.version, DIR, readable=True, plain=True)
    cache.keep_attr(FILE, attr(), cache.version, DIR)
    record = cache.record(FILE)
    assert record is not None
    assert record.readable
    assert record.plain
    cache.keep_attr(FILE, attr(ctime=7), cache.version, DIR)
    record = cache.record(FILE)
    assert record is not None
    assert not record.readable
    dropped: list[Identity] = []
    cache.on_drop = dropped.append
    cache.drop_attr(FILE)
    assert dropped == [FILE]


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ({"atime": 10, "mtime": 5, "ctime": 5}, True),
        ({"atime": 5, "mtime": 5, "ctime": 1}, False),
        ({"atime": 5, "mtime": 1, "ctime": 5}, False),
        ({"atime": 10 - 48 * 3600 * 10**9, "mtime": -(10**18), "ctime": -(10**18)}, False),
    ],
)
def test_reading_moves_the_access_time_when_relatime_would(cache: Cache, times: dict, kept: bool) -> None:
    cache.was_read(FILE)
    cache.keep_attr(FILE, attr(**times), cache.version)
    cache.was_read(FILE)
    assert (cache.attr(FILE) is not None) is kept


def test_link_targets_are_kept_where_an_identity_is_never_used_again(cache: Cache) -> None:
    cache.keep_link(FILE, b"target")
    assert cache.link(FILE) == b"target"
    cache.keep_link(Identity(1, 2, 0), b"target")
    assert cache.link(Identity(1, 2, 0)) is None
