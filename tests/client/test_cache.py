"""The cache keeps what is true and nothing else."""

from __future__ import annotations

import pytest

from jupyter_wsfuse.client import cache as cache_module
from jupyter_wsfuse.client.api import VfsOptions
from jupyter_wsfuse.client.cache import STALE, Cache
from jupyter_wsfuse.protocol.messages import Attr, Identity

FILE = Identity(1, 2, 3)
OTHER = Identity(1, 9, 3)


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
    assert cache.entry(1, b"a") is None
    assert cache.keep_entry(1, b"a", FILE, cache.version) == 1.0
    assert cache.keep_entry(1, b"b", None, cache.version) == 0.5
    assert cache.entry(1, b"a") == (FILE, 1.0)
    assert cache.entry(1, b"b") == (None, 0.5)
    clock.now += 0.5
    assert cache.entry(1, b"b") is None
    assert cache.entry(1, b"a") is not None


def test_without_caching_nothing_is_kept_and_nothing_may_be_believed(clock: Clock) -> None:
    cache = Cache(VfsOptions(cache=False, negative_ttl=5.0), clock)
    assert cache.keep_attr(FILE, attr(), cache.version) == 0.0
    assert cache.keep_entry(1, b"a", FILE, cache.version) == 0.0
    assert cache.keep_entry(1, b"a", None, cache.version) == 0.0
    cache.keep_link(FILE, b"x")
    assert cache.link(FILE) is None
    assert cache.attr(FILE) is None
    assert cache.entry(1, b"a") is None


def test_an_answer_older_than_a_change_is_not_kept(cache: Cache) -> None:
    since = cache.version
    cache.drop_attr(FILE)
    assert cache.keep_attr(FILE, attr(), since) == 0.0
    assert cache.keep_attr(OTHER, attr(), since) == 1.0
    cache.drop_entry(1, b"a")
    assert cache.keep_entry(1, b"a", FILE, since) == 0.0
    assert cache.keep_entry(1, b"b", FILE, since) == 1.0


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
    with cache.changing((1, b"a")) as change:
        pass
    assert cache.keep_attr(FILE, attr(), change.token(FILE)) == 1.0
    assert cache.keep_attr(FILE, attr(mtime=1), since) == 0.0
    with cache.changing((1, b"a")) as change:
        cache.drop_attr(FILE)  # somebody else's
    assert change.token(FILE) == STALE


def test_clearing_forgets_and_refuses_everything_older(cache: Cache) -> None:
    since = cache.version
    cache.keep_attr(FILE, attr(), since)
    cache.keep_entry(1, b"a", FILE, since)
    cache.keep_link(FILE, b"t")
    cache.clear()
    assert cache.attr(FILE) is None
    assert cache.entry(1, b"a") is None
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


def test_capacity_is_bounded(clock: Clock) -> None:
    cache = Cache(VfsOptions(attr_capacity=10, entry_capacity=5), clock)
    for ino in range(100):
        cache.keep_attr(Identity(1, ino, 0), attr(), cache.version)
        cache.keep_entry(1, b"%d" % ino, FILE, cache.version)
    assert cache.snapshot() == {"hits": 0, "misses": 0, "attributes": 10, "entries": 5, "links": 0}


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
