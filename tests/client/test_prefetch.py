"""The policies guess what comes next from what is known, and give up guessing where that is mostly wrong."""

from __future__ import annotations

import math
from stat import S_IFDIR, S_IFLNK, S_IFREG

import pytest

from jupyter_wsfuse.client.api import VfsOptions
from jupyter_wsfuse.client.cache import Cache
from jupyter_wsfuse.client.directory import Directory
from jupyter_wsfuse.client.prefetch import OVERHEAD, SMALL, Map, Tally, join
from jupyter_wsfuse.client.siblings import Candidate, Siblings, _Run
from jupyter_wsfuse.client.subtree import Plan, Subtree
from jupyter_wsfuse.protocol.messages import Attr, DirEntry, Identity, Ref

SIZE = 100
PLENTY = 1 << 40


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """A workspace as this client knows it. Paths name files; those that end with ``/`` are directories."""

    def __init__(self, clock: Clock) -> None:
        self.cache = Cache(VfsOptions(), clock)
        self.places = Map(self.cache)
        self.distance = math.inf  # seconds that an answer takes
        self.subtree = Subtree(self.cache, self.places, lambda: self.distance, clock)
        self.data: set[Identity] = set()  # files whose data are here
        self.siblings = Siblings(
            self.cache, self.places, self.data.__contains__, lambda: self.distance, clock
        )
        self._numbers: dict[bytes, int] = {}

    def identity(self, path: bytes) -> Identity:
        return Identity(1, self._numbers.setdefault(path, len(self._numbers) + 1), 3)

    def directory(self, path: bytes) -> Directory:
        directory = self.cache.known(self.identity(path))
        assert directory is not None
        return directory

    def put(self, path: bytes, *names: bytes, prefetched: bool = False) -> Directory:
        """The directory *path* is listed, in this order."""
        identity = self.identity(path)
        self.cache.grant(identity, self.cache.version)
        entries = []
        for cookie, name in enumerate(names, 1):
            type = S_IFDIR if name.endswith(b"/") else S_IFREG
            attr = self.attr(join(path, name.rstrip(b"/")), type=type)
            entries.append(DirEntry(name.rstrip(b"/"), cookie, attr.ino, type >> 12, attr))
            if type == S_IFREG:
                self.cache.keep_attr(attr.identity, attr, self.cache.version, identity)
        directory = self.cache.keep_listing(identity, path, entries, self.cache.version, prefetched)
        assert directory is not None
        self.places.put(path, identity)
        return directory

    def attr(self, path: bytes, *, size: int = SIZE, nlink: int = 1, type: int = S_IFREG) -> Attr:
        ino = self.identity(path).ino
        return Attr(1, ino, type | 0o644, nlink, 0, 0, 0, size, 8, 4096, 1, 2, 3, 3)

    def keep(self, path: bytes, attr: Attr) -> None:
        parent = self.identity(path.rpartition(b"/")[0])
        self.cache.keep_attr(self.identity(path), attr, self.cache.version, parent)

    def read(self, path: bytes, *, late: bool = False) -> None:
        """The file *path* is opened and read; afterwards its data are here."""
        parent, _, name = path.rpartition(b"/")
        identity = self.identity(path)
        hit = identity in self.data
        self.siblings.opened(self.identity(parent), self.directory(parent), name, hit, late)
        self.data.add(identity)

    def fetch(self, room: int = PLENTY) -> list[bytes]:
        """What is fetched ahead now."""
        found = []
        for candidate in self.siblings.more(room):
            self.data.add(candidate.identity)
            found.append(candidate.ref.path)
        return found

    def read_all(self, *paths: bytes) -> list[bytes]:
        """They are read one after the other. Those whose data were not here then."""
        missing = []
        for path in paths:
            if self.identity(path) not in self.data:
                missing.append(path)
            self.read(path)
            self.fetch()
        return missing


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


def numbered(count: int, prefix: bytes = b"f") -> list[bytes]:
    return [prefix + b"%04d" % number for number in range(count)]


def refs(plan: Plan | None) -> list[bytes]:
    return [] if plan is None else [ref.path for ref in plan.refs]


# --- tally ---------------------------------------------------------------------------------------------


def test_a_policy_is_trusted_at_first(clock: Clock) -> None:
    tally = Tally(clock)
    assert tally.worth
    assert tally.snapshot() == {"issued": 0, "used": 0, "wasted": 0, "paused": False}


def test_a_policy_that_is_mostly_wrong_pauses_for_a_while(clock: Clock) -> None:
    tally = Tally(clock)
    tally.miss(127)
    assert tally.worth
    tally.miss()
    assert not tally.worth
    clock.now += 29
    tally.miss()  # does not make it longer
    assert tally.snapshot() == {"issued": 0, "used": 0, "wasted": 129, "paused": True}
    clock.now += 1
    assert tally.worth


def test_after_a_pause_a_policy_has_less_credit(clock: Clock) -> None:
    tally = Tally(clock)
    tally.miss(128)
    clock.now += 30
    assert tally.worth
    tally.miss(31)
    assert tally.worth
    tally.miss()
    assert not tally.worth


def test_who_was_right_may_be_wrong_more_often_but_not_without_end(clock: Clock) -> None:
    tally = Tally(clock)
    tally.hit()
    tally.miss(128)
    assert tally.worth
    tally.hit(100_000)
    assert tally.used == 100_001
    tally.miss(511)
    assert tally.worth
    tally.miss()
    assert not tally.worth


# --- map -----------------------------------------------------------------------------------------------


def test_a_path_in_the_root_has_no_slash() -> None:
    assert join(b"", b"a") == b"a"
    assert join(b"a", b"b") == b"a/b"


def test_a_directory_is_found_where_it_was_listed(world: World) -> None:
    root = world.put(b"", b"a/")
    below = world.put(b"a", b"f")
    assert world.places.at(b"") == (world.identity(b""), root)
    assert world.places.at(b"a") == (world.identity(b"a"), below)
    assert world.places.above(b"a") == (world.identity(b""), root)
    assert world.places.above(b"a/f") == (world.identity(b"a"), below)
    assert world.places.above(b"") is None


def test_a_directory_of_which_nothing_is_known_is_nowhere(world: World) -> None:
    world.places.put(b"a", world.identity(b"a"))
    for path in (b"a", b"b"):
        assert world.places.at(path) is None
        assert world.places.above(path + b"/f") is None


def test_a_directory_that_is_elsewhere_now_is_not_where_it_was(world: World) -> None:
    world.put(b"a", b"f")
    world.places.put(b"b", world.identity(b"a"))
    assert world.places.at(b"b") is None
    assert world.places.above(b"b/f") is None
    assert world.places.at(b"a") is not None


def test_only_the_directory_that_is_there_is_removed(world: World) -> None:
    world.put(b"a")
    world.places.remove(b"a", world.identity(b"other"))
    world.places.remove(b"nowhere", world.identity(b"a"))
    assert world.places.at(b"a") is not None
    world.places.remove(b"a", world.identity(b"a"))
    assert world.places.at(b"a") is None


def test_nothing_is_anywhere_after_all_was_cleared(world: World) -> None:
    world.put(b"a")
    world.places.clear()
    assert world.places.at(b"a") is None


# --- subtree -------------------------------------------------------------------------------------------


def test_where_nothing_is_known_nothing_is_planned(world: World) -> None:
    assert world.subtree.plan(b"a") is None
    world.put(b"", b"f", b"g")
    assert world.subtree.plan(b"") is None


def test_the_first_directory_that_is_listed_says_nothing_of_those_in_it(world: World) -> None:
    world.put(b"", b"a/", b"b/")
    assert world.subtree.plan(b"") is None


def test_who_enters_a_directory_finds_those_below_it_then_those_after_it_then_those_before(
    world: World,
) -> None:
    world.put(b"", b"a/", b"f", b"b/", b"c/")
    world.put(b"b", b"x/", b"y/", b"g")
    plan = world.subtree.plan(b"b")
    assert plan is not None
    assert plan.refs == [Ref(path, world.identity(path)) for path in (b"b/x", b"b/y", b"c", b"a")]
    assert (plan.limit, plan.depth) == (Subtree.LIMITS[0], Subtree.DEPTH)


def test_upwards_it_goes_on_to_the_root(world: World) -> None:
    world.put(b"", b"a/", b"z/")
    world.put(b"a", b"b/", b"y/")
    world.put(b"a/b", b"c/", b"x/")
    world.put(b"a/b/c", b"f")
    assert refs(world.subtree.plan(b"a/b/c")) == [b"a/b/x", b"a/y", b"z"]


def test_directories_that_are_known_are_not_listed_again(world: World) -> None:
    world.put(b"", b"a/", b"b/", b"c/")
    world.put(b"b", b"x/")
    world.put(b"b/x")
    world.put(b"c")
    assert refs(world.subtree.plan(b"b")) == [b"a"]
    world.put(b"a")
    assert world.subtree.plan(b"b") is None


def test_a_directory_that_the_one_above_does_not_list_has_nothing_beside_it(world: World) -> None:
    world.put(b"", b"a/", b"c/")
    world.put(b"new", b"x/")
    assert refs(world.subtree.plan(b"new")) == [b"new/x"]


def test_without_an_order_nobody_knows_what_comes_next(world: World) -> None:
    world.put(b"", b"a/", b"b/")
    world.put(b"a", b"x/")
    world.cache.drop_entry(world.identity(b""), b"f")
    assert refs(world.subtree.plan(b"a")) == [b"a/x"]


def test_a_directory_without_attributes_is_left_out(world: World) -> None:
    world.put(b"", b"a/", b"b/", b"c/")
    world.directory(b"").names.pop(b"b")
    assert refs(world.subtree.plan(b"a")) == [b"c"]


def test_one_request_names_a_bounded_number_of_directories(world: World) -> None:
    below = numbered(200, b"d")
    world.put(b"", b"a/", *(name + b"/" for name in below))
    world.put(b"a", *(name + b"/" for name in below))
    assert refs(world.subtree.plan(b"a")) == [b"a/" + name for name in below[: Subtree.REFS]]
    world.put(b"a", *(name + b"/" for name in below[:100]))
    assert refs(world.subtree.plan(b"a")) == [b"a/" + name for name in below[:100]] + below[:28]


def test_a_directory_beside_that_is_known_leads_to_those_below_it(world: World) -> None:
    world.put(b"", b"a/", b"b/", b"c/")
    world.put(b"a")
    world.put(b"b", b"x/", b"y/")
    world.put(b"b/x", b"z/")
    assert refs(world.subtree.plan(b"a")) == [b"b/x/z", b"b/y", b"c"]


def test_a_plan_goes_down_a_bounded_number_of_levels(world: World) -> None:
    world.put(b"", b"a/", b"d/")
    world.put(b"a")
    path = b"d"
    for _ in range(2000):
        world.put(path, b"d/")
        path += b"/d"
    assert world.subtree.plan(b"a") is None


def test_a_plan_looks_at_a_bounded_number_of_names(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subtree, "SCAN", 3)
    world.put(b"", b"a/", b"b/", b"c/", b"d/", b"e/")
    for name in (b"a", b"b", b"c"):
        world.put(name)
    assert refs(world.subtree.plan(b"a")) == [b"d"]


def test_the_more_that_is_entered_the_more_is_listed_unasked(world: World) -> None:
    assert world.subtree.allowance == Subtree.UNASKED
    ahead = world.put(b"a", *numbered(100), prefetched=True)
    world.subtree.listed(ahead)
    world.subtree.entered(ahead)
    assert world.subtree.allowance == Subtree.UNASKED + 400
    world.subtree.listed(huge := world.put(b"b", *numbered(8000), prefetched=True))
    world.subtree.entered(huge)
    assert world.subtree.allowance == Subtree.UNUSED


def test_those_before_are_counted_as_well(world: World) -> None:
    below = numbered(200, b"d")
    world.put(b"", *(name + b"/" for name in below), b"z/")
    assert refs(world.subtree.plan(b"z")) == below[: Subtree.REFS]


def test_more_is_listed_at_a_time_as_long_as_it_is_used(world: World) -> None:
    world.put(b"", b"a/", b"b/")
    limits = []
    for number in range(4):
        plan = world.subtree.plan(b"a")
        assert plan is not None
        limits.append(plan.limit)
        directory = world.put(b"%d" % number, b"f", prefetched=True)
        world.subtree.listed(directory)
        world.subtree.entered(directory)
        world.subtree.entered(directory)  # only the first time counts
    assert limits == [*Subtree.LIMITS, Subtree.LIMITS[-1]]
    tally = world.subtree.tally
    assert (tally.issued, tally.used, tally.wasted) == (4, 4, 0)
    unused = world.put(b"unused", b"f", prefetched=True)
    world.subtree.listed(unused)
    world.subtree.dropped(unused)
    world.subtree.dropped(unused)
    assert tally.wasted == 1
    plan = world.subtree.plan(b"a")
    assert plan is not None
    assert plan.limit == Subtree.LIMITS[0]


def test_what_was_asked_for_is_neither_right_nor_wrong(world: World) -> None:
    directory = world.put(b"a", b"f")
    world.subtree.entered(directory)
    world.subtree.dropped(directory)
    tally = world.subtree.tally
    assert (tally.issued, tally.used, tally.wasted, world.subtree.unused) == (0, 0, 0, 0)


def test_entries_that_nobody_looked_at_are_counted_until_somebody_does(world: World) -> None:
    entered, dropped, replaced = (
        world.put(path, *numbered(3), prefetched=True) for path in (b"a", b"b", b"c")
    )
    for directory in (entered, dropped, replaced):
        world.subtree.listed(directory)
    assert world.subtree.unused == 9
    world.subtree.entered(entered)
    assert world.subtree.unused == 6
    world.subtree.dropped(dropped)
    assert world.subtree.unused == 3
    world.subtree.replaced(replaced)
    assert world.subtree.unused == 0


def test_with_enough_unused_entries_no_more_are_asked_for(world: World) -> None:
    world.put(b"", b"a/", b"b/")
    world.subtree.unused = Subtree.UNUSED
    assert world.subtree.plan(b"a") is None
    world.subtree.unused -= 1
    assert refs(world.subtree.plan(b"a")) == [b"b"]


def test_a_walk_that_was_mostly_guessed_wrong_is_not_followed(world: World, clock: Clock) -> None:
    world.put(b"", b"a/", b"b/")
    world.subtree.tally.miss(128)
    assert world.subtree.plan(b"a") is None
    clock.now += 30
    assert refs(world.subtree.plan(b"a")) == [b"b"]


# --- siblings ------------------------------------------------------------------------------------------


NEAR = 0.0003


def test_the_nearer_the_server_the_less_is_listed_ahead(world: World) -> None:
    world.put(b"", b"a/", b"b/")
    world.put(b"a")
    plan = world.subtree.plan(b"a")
    assert plan is not None
    assert plan.limit == Subtree.LIMITS[0]
    world.distance = 0.00255
    assert world.subtree.near
    assert world.subtree.reach == 1020
    world.distance = 0.0026
    assert not world.subtree.near
    world.distance = NEAR
    assert world.subtree.near
    assert world.subtree.reach == Subtree.LEAST
    world.distance = 0.02
    assert world.subtree.reach == 8000


def test_nearby_what_is_ahead_unused_is_enough_sooner(world: World) -> None:
    world.distance = NEAR
    assert world.subtree.eager
    ahead = world.put(b"x", *numbered(Subtree.LEAST), prefetched=True)
    world.subtree.listed(ahead)
    assert not world.subtree.eager
    world.distance = math.inf
    assert world.subtree.eager


def test_nearby_one_directory_is_no_walk_and_the_next_one_is(world: World) -> None:
    world.put(b"", b"c/", b"a/", b"b/", b"d/")
    world.distance = NEAR
    for path in (b"c", b"b"):  # as in a list of names that somebody looks for
        assert not world.subtree.goes_on(path)
        world.put(path)
        assert world.subtree.plan(path) is None
    assert world.subtree.goes_on(b"d")  # behind b, as it was listed
    world.distance = math.inf
    assert world.subtree.goes_on(b"nowhere/x")
    world.distance = NEAR
    assert not world.subtree.goes_on(b"nowhere/x")


def test_nearby_a_walk_by_name_is_one_and_goes_forwards_only(world: World) -> None:
    world.distance = NEAR
    world.put(b"", b"c/", b"a/", b"e/", b"b/", b"d/")
    assert not world.subtree.goes_on(b"a")
    assert world.subtree.goes_on(b"b")
    world.put(b"b", b"x/")
    assert refs(world.subtree.plan(b"b")) == [b"b/x", b"c", b"d", b"e"]
    world.distance = math.inf
    assert refs(world.subtree.plan(b"b")) == [b"b/x", b"c", b"d", b"e", b"a"]


def test_nearby_a_walk_is_followed_upwards_only_as_far_as_it_goes(world: World) -> None:
    world.distance = NEAR
    world.put(b"", b"top/", b"other/")
    world.put(b"top", b"a/", b"b/", b"c/")
    for path in (b"top", b"top/a", b"top/b"):
        world.subtree.goes_on(path)
    assert refs(world.subtree.plan(b"top/b")) == [b"top/c"]


def test_of_too_many_directories_that_were_come_to_the_first_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subtree, "ABOVE", 1)
    world.distance = NEAR
    world.put(b"p", b"a/", b"b/", b"c/")
    world.put(b"q", b"a/")
    world.subtree.goes_on(b"p/a")
    assert world.subtree.goes_on(b"p/b")
    world.subtree.goes_on(b"q/a")
    assert not world.subtree.goes_on(b"p/c")


def test_where_nothing_was_found_nothing_is_looked_for_until_something_changes(world: World) -> None:
    world.put(b"", b"a/", b"b/")
    world.put(b"a")
    assert world.subtree.plan(b"a", skip={world.identity(b"b")}) is None
    assert world.subtree.plan(b"a") is None
    world.put(b"c")
    assert refs(world.subtree.plan(b"a")) == [b"b"]


def test_before_anything_was_read_there_is_nothing_to_fetch(world: World) -> None:
    assert world.fetch() == []


def test_one_file_says_nothing_and_the_second_of_a_directory_does(world: World) -> None:
    names = numbered(6)
    world.put(b"", *names)
    world.read(names[0])
    assert world.fetch() == []
    world.read(names[1])
    assert world.fetch() == names[2:]


def test_a_candidate_says_all_that_fetching_it_takes(world: World) -> None:
    world.put(b"d", b"a", b"b", b"c")
    world.read(b"d/a")
    world.read(b"d/b")
    file = world.identity(b"d/c")
    assert list(world.siblings.more(PLENTY)) == [
        Candidate(Ref(b"d/c", file), file, world.identity(b"d"), SIZE)
    ]


def test_a_file_that_was_read_before_its_directory_was_known_counts(world: World) -> None:
    world.siblings.opened_early(world.identity(b"d"))
    world.put(b"d", b"a", b"b", b"c")
    world.read(b"d/b")
    assert world.fetch() == [b"d/c", b"d/a"]


def test_of_too_many_such_directories_the_first_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Siblings, "RUNS", 2)
    for path in (b"a", b"b", b"c"):
        world.put(path, b"1", b"2")
        world.siblings.opened_early(world.identity(path))
    world.read(b"a/1")
    assert world.fetch() == []
    world.read(b"c/1")
    assert world.fetch() == [b"c/2"]


def test_files_come_in_the_order_of_the_listing_if_that_is_how_they_are_read(world: World) -> None:
    world.put(b"", b"b", b"d", b"a", b"e", b"c")
    world.read(b"b")
    world.read(b"d")
    assert world.fetch() == [b"a", b"e", b"c"]


def test_files_come_by_name_if_that_is_how_they_are_read(world: World) -> None:
    world.put(b"", b"b", b"d", b"a", b"e", b"c")
    world.read(b"a")
    world.read(b"b")
    assert world.fetch() == [b"c", b"d", b"e"]


def test_files_before_the_one_that_was_read_come_last(world: World) -> None:
    names = numbered(6)
    world.put(b"", *names)
    world.read(names[2])
    world.read(names[3])
    assert world.fetch() == [*names[4:], *names[:2]]


def test_a_file_that_was_not_listed_leaves_out_none_of_the_others(world: World) -> None:
    world.put(b"", b"b", b"d", b"a", b"e", b"c")
    world.read(b"a")
    world.read(b"b")
    world.read(b"bb")  # new, and between two others by name
    assert world.fetch() == [b"c", b"d", b"e"]


def test_a_file_that_was_not_listed_has_no_place_in_the_order_of_the_listing(world: World) -> None:
    world.put(b"", b"b", b"d", b"a")
    world.read(b"b")
    world.read(b"new")
    assert world.fetch() == [b"d", b"a"]


def test_who_has_read_nothing_yet_begins_with_the_first() -> None:
    order = [DirEntry(name, cookie, cookie, 8) for cookie, name in enumerate((b"b", b"a"), 1)]
    assert list(_Run(order).coming()) == [b"b", b"a"]


def test_few_are_fetched_ahead_until_that_turns_out_to_be_too_late(world: World) -> None:
    names = numbered(200)
    world.put(b"", *names)
    world.read(names[0])
    world.read(names[1])
    assert world.fetch() == names[2:10]
    assert world.fetch() == []
    world.read(names[2])
    assert world.fetch() == names[10:11]  # for the one that was used
    world.read(names[3], late=True)
    assert world.fetch() == names[11:20]


def test_the_files_that_are_fetched_ahead_are_bounded(world: World) -> None:
    names = numbered(700)
    world.put(b"", *names)
    world.read(names[0])
    world.read(names[1])
    world.fetch()
    for name in names[2:10]:
        world.read(name, late=True)
    fetched = 8
    while found := world.fetch():
        assert len(found) <= Siblings.SCAN
        fetched += len(found)
    assert fetched == Siblings.MOST + 8


def test_what_there_is_no_room_for_is_fetched_later(world: World) -> None:
    world.put(b"", b"a", b"b", b"c", b"d", b"e")
    world.read(b"a")
    world.read(b"b")
    assert world.fetch(2 * (SIZE + OVERHEAD)) == [b"c", b"d"]
    assert world.fetch(0) == []
    assert world.fetch(SIZE + OVERHEAD) == [b"e"]
    assert world.fetch() == []


def test_who_finds_nothing_sets_out_anew(world: World) -> None:
    names = numbered(100)
    world.put(b"", *names)
    world.read_all(*names[:4])
    assert world.read_all(*names[50:60]) == names[50:51]


def test_a_whole_directory_is_read_with_two_files_missing(world: World) -> None:
    names = numbered(600)
    world.put(b"", *names)
    assert world.read_all(*names) == names[:2]


def test_files_whose_data_are_not_worth_having_or_not_certain_are_left_out(world: World) -> None:
    names = [b"1", b"2", b"dir/", b"empty", b"gone", b"here", b"large", b"linked", b"loose", b"ok", b"socket"]
    world.put(b"", *names)
    world.data.add(world.identity(b"here"))
    world.keep(b"empty", world.attr(b"empty", size=0))
    world.keep(b"large", world.attr(b"large", size=SMALL + 1))
    world.keep(b"ok", world.attr(b"ok", size=SMALL))
    world.keep(b"socket", world.attr(b"socket", type=S_IFLNK))
    loose = world.identity(b"loose")
    world.cache.keep_attr(loose, world.attr(b"loose"), world.cache.version)  # under no lease
    linked = world.identity(b"linked")
    world.cache.grant(linked, world.cache.version)
    world.cache.keep_attr(linked, world.attr(b"linked", nlink=2), world.cache.version)
    world.cache.drop_attr(world.identity(b"gone"))
    world.read(b"1")
    world.directory(b"").names[b"2"] = world.identity(b"2")
    world.read(b"2")
    assert world.fetch() == [b"ok"]


def test_a_file_that_is_gone_from_its_directory_is_left_out(world: World) -> None:
    world.put(b"", b"a", b"b", b"c", b"d")
    world.read(b"a")
    world.read(b"b")
    world.cache.drop_entry(world.identity(b""), b"c")
    assert world.fetch() == [b"d"]


def test_only_so_many_names_are_looked_at_for_one_opening(world: World) -> None:
    names = numbered(600)
    world.put(b"", *names)
    for name in names[2:500]:
        world.data.add(world.identity(name))
    world.read(names[0])
    world.read(names[1])
    assert world.fetch() == []
    assert world.fetch() == names[500:508]


def test_reading_ahead_of_small_files_that_was_mostly_in_vain_pauses(world: World, clock: Clock) -> None:
    world.put(b"", b"a", b"b", b"c")
    world.read(b"a")
    world.read(b"b")
    world.siblings.tally.miss(128)
    assert world.fetch() == []
    clock.now += 30
    assert world.fetch() == [b"c"]


def test_in_a_directory_whose_order_is_not_known_nothing_is_fetched(world: World) -> None:
    world.put(b"", b"a", b"b", b"c")
    world.cache.drop_entry(world.identity(b""), b"x")
    world.read(b"a")
    world.read(b"b")
    assert world.fetch() == []


def test_after_all_was_forgotten_two_files_are_needed_again(world: World) -> None:
    names = numbered(6)
    world.put(b"", *names)
    world.read_all(*names[:2])
    world.siblings.forget()
    assert world.fetch() == []
    world.data.clear()
    assert world.read_all(*names) == names[:2]


def test_of_too_many_directories_the_one_that_was_read_longest_ago_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Siblings, "RUNS", 2)
    monkeypatch.setattr(Siblings, "SPREAD", 99)  # that they are beside each other is not what is tested
    paths = [b"a/x", b"b/x", b"c/x"]
    for path in paths:
        world.put(path, b"1", b"2", b"3")
    world.read(b"a/x/1")
    world.read(b"b/x/1")
    world.read(b"a/x/2")
    assert world.fetch() == [b"a/x/3"]
    world.read(b"c/x/1")
    world.read(b"b/x/2")
    assert world.fetch() == []


# --- from directory to directory -----------------------------------------------------------------------


def tree(world: World) -> list[bytes]:
    """Four directories of three files each. The files, as a walk reads them."""
    paths = [b"top/a", b"top/b", b"top/c", b"top/d"]
    world.put(b"", b"top/")
    world.put(b"top", b"a/", b"b/", b"c/", b"d/")
    for path in paths:
        world.put(path, b"1", b"2", b"3")
    return [path + b"/" + name for path in paths for name in (b"1", b"2", b"3")]


def test_directories_that_are_read_one_after_the_other_are_followed(world: World) -> None:
    files = tree(world)
    assert world.read_all(*files) == [b"top/a/1", b"top/a/2", b"top/b/1"]


def test_one_file_of_each_directory_is_enough(world: World) -> None:
    tree(world)
    world.read(b"top/a/1")
    assert world.fetch() == []
    world.read(b"top/b/1")
    assert world.fetch() == [
        b"top/b/2",
        b"top/b/3",
        *(b"top/%s/%s" % (directory, name) for directory in (b"c", b"d") for name in (b"1", b"2", b"3")),
    ]


def test_a_trail_goes_on_in_the_directory_where_it_led(world: World) -> None:
    names = numbered(20)
    world.put(b"", b"a/", b"b/", b"c/")
    for path in (b"a", b"b", b"c"):
        world.put(path, *names)
    world.read(b"a/" + names[0])
    world.read(b"b/" + names[18])
    assert world.fetch() == [b"b/" + names[19], *(b"b/" + name for name in names[:7])]
    world.data.add(world.identity(b"c/" + names[0]))
    world.read(b"c/" + names[0])
    assert world.fetch() == [b"b/" + names[7]]  # room for one more, on the way that was taken


def test_a_trail_that_was_left_keeps_its_width(world: World) -> None:
    names = numbered(60)
    world.put(b"", b"a/", b"b/", b"c/")
    for path in (b"a", b"b", b"c"):
        world.put(path, *names)
    world.read(b"a/" + names[0])
    world.read(b"b/" + names[0], late=True)
    assert len(world.fetch()) == 16
    world.read(b"c/" + names[0])
    assert world.fetch() == [b"c/" + name for name in names[1:17]]


def test_what_is_below_comes_before_what_is_beside(world: World) -> None:
    world.put(b"", b"a/", b"b/", b"f")
    world.put(b"a", b"1")
    world.put(b"b", b"1", b"sub/", b"unknown/", b"2")
    world.put(b"b/sub", b"3", b"deep/")
    world.put(b"b/sub/deep", b"4")
    world.read(b"a/1")
    world.read(b"b/1")
    assert world.fetch() == [b"b/2", b"b/sub/3", b"b/sub/deep/4"]


def test_beside_those_above_it_goes_on(world: World) -> None:
    world.put(b"", b"x/", b"y/", b"z/", b"unknown/")
    for path in (b"x", b"y", b"z"):
        world.put(path, b"m/", b"n/")
        world.put(path + b"/m", b"1")
        world.put(path + b"/n", b"1")
    world.read(b"x/m/1")
    world.read(b"y/m/1")
    assert world.fetch() == [b"y/n/1", b"z/m/1", b"z/n/1"]


def test_a_directory_that_is_not_in_the_one_above_is_before_all_others(world: World) -> None:
    world.put(b"", b"a/", b"b/")
    world.put(b"a", b"1")
    world.put(b"b", b"1")
    world.put(b"new", b"1")
    world.read(b"a/1")
    world.read(b"new/1")
    assert world.fetch() == [b"b/1"]


def test_without_the_order_of_the_one_above_nothing_beside_is_fetched(world: World) -> None:
    world.put(b"", b"a/", b"b/", b"c/")
    for path in (b"a", b"b", b"c"):
        world.put(path, b"1", b"2")
    world.read(b"a/1")
    world.cache.drop_entry(world.identity(b""), b"x")
    world.read(b"b/1")
    assert world.fetch() == [b"b/2"]


def test_of_a_directory_above_that_is_not_known_nothing_is_fetched(world: World) -> None:
    for path in (b"a", b"b", b"c"):
        world.put(path, b"1", b"2")
    world.read(b"a/1")
    world.read(b"b/1")
    assert world.fetch() == [b"b/2"]


def test_a_directory_below_that_changed_is_not_gone_down_into(world: World) -> None:
    world.put(b"", b"a/", b"b/")
    world.put(b"a", b"1")
    world.put(b"b", b"1", b"2", b"sub/")
    world.put(b"b/sub", b"3", b"4")
    world.cache.drop_entry(world.identity(b"b/sub"), b"3")
    world.read(b"a/1")
    world.read(b"b/1")
    assert world.fetch() == [b"b/2", b"b/sub/4"]


def test_nearby_few_files_are_fetched_ahead_and_only_for_who_reads_them_in_turn(world: World) -> None:
    names = [b"f%02d" % number for number in range(40)]
    world.put(b"", *names)
    world.distance = NEAR
    for name in (names[5], names[9], names[7]):
        world.read(name)
        assert world.fetch() == []
    world.read(names[8])
    assert len(world.fetch()) == Siblings.LEAST
    world.read(names[10], late=True)
    world.read(names[11], late=True)
    assert world.siblings.most == Siblings.LEAST
    assert len(world.fetch()) <= 2
    world.distance = 0.02
    assert world.siblings.most == 500
