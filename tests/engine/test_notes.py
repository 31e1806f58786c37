"""What is an echo of our own operations, and what is not although it looks like one."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

import msgspec
import pytest

from jupyter_wsfuse.engine import notes as notes_module
from jupyter_wsfuse.engine.inotify import CREATE, DELETE, MOVED_FROM, MOVED_TO
from jupyter_wsfuse.engine.notes import Notes, state_of, who
from jupyter_wsfuse.protocol.messages import Attr

WATCH = 7


def attr_of(ino: int, **values: Any) -> Attr:
    attr = Attr(1, ino, 0o100644, 1, 0, 0, 0, 5, 8, 4096, 10, 11, 12, 13)
    return msgspec.structs.replace(attr, **values)


ONE, TWO = attr_of(1), attr_of(2)


class Table(Notes):
    """Notes of one name, by operations of "home" unless said otherwise."""

    def done(self, kind: int, attr: Attr | None, *, by: object = "home", began: int | None = None) -> None:
        self.expect(WATCH, b"x", kind, attr, by, perf_counter_ns() if began is None else began)

    def comes(self, kind: int, attr: Attr | None) -> object:
        return self.spend(WATCH, b"x", kind, attr)


@pytest.fixture
def notes() -> Table:
    return Table()


def test_who_it_is(notes: Table) -> None:
    assert who(None) is None
    assert who(ONE) == ONE.identity
    # Without birth times the next file may have the same number.
    assert who(attr_of(1, btime=0)) != who(attr_of(1, btime=0, ctime=13))
    assert state_of(ONE) == (5, 11, 12)


def test_one_operation_excuses_one_event(notes: Table) -> None:
    notes.done(DELETE, None)
    assert notes.comes(DELETE, None) == "home"
    # Somebody else has made it and removed it again, and it looks as it did.
    assert notes.comes(CREATE, None) is None
    assert notes.comes(DELETE, None) is None


def test_several_operations_before_any_event_is_looked_at(notes: Table) -> None:
    notes.done(CREATE, ONE)
    notes.done(MOVED_FROM, None)
    notes.done(MOVED_TO, TWO)
    assert [notes.comes(kind, TWO) for kind in (CREATE, MOVED_FROM, MOVED_TO)] == ["home"] * 3
    assert notes.comes(MOVED_TO, TWO) is None


def test_somebody_elses_between_ones_own(notes: Table) -> None:
    notes.done(DELETE, None)
    notes.done(CREATE, ONE)
    events = (DELETE, CREATE, DELETE, CREATE)  # the two in the middle are another's
    assert None in [notes.comes(kind, ONE) for kind in events]


def test_what_stands_there_now_is_anothers(notes: Table) -> None:
    notes.done(CREATE, ONE)
    assert notes.comes(CREATE, TWO) is None
    notes.done(CREATE, ONE)
    assert notes.comes(CREATE, None) is None


def test_another_kind_of_event_ends_what_was_expected(notes: Table) -> None:
    notes.done(CREATE, ONE)
    assert notes.comes(MOVED_TO, ONE) is None
    assert notes.comes(CREATE, ONE) is None


def test_the_kernel_makes_one_event_of_two_alike(notes: Table) -> None:
    notes.done(MOVED_TO, ONE)
    notes.done(MOVED_TO, TWO)
    assert notes.comes(MOVED_TO, TWO) == "home"
    assert notes.comes(MOVED_TO, TWO) is None  # not the second one's


def test_two_alike_of_two_workspaces_are_told_to_both(notes: Table) -> None:
    notes.done(MOVED_TO, ONE)
    notes.done(MOVED_TO, TWO, by="elsewhere")
    assert notes.comes(MOVED_TO, TWO) is None


def test_what_began_before_its_event_was_looked_at(notes: Table) -> None:
    began = perf_counter_ns()
    assert notes.comes(CREATE, ONE) is None  # told, the operation was not noted yet
    notes.done(CREATE, ONE, began=began)
    assert notes.comes(CREATE, ONE) is None
    notes.done(DELETE, None)
    assert notes.comes(DELETE, None) == "home"


def test_what_began_before_events_were_lost(notes: Table) -> None:
    began = perf_counter_ns()
    notes.done(CREATE, ONE)
    notes.left(ONE, "home")
    notes.lost()
    assert notes.left_by(ONE) is None
    notes.done(CREATE, ONE, began=began)
    assert notes.comes(CREATE, ONE) is None
    notes.done(DELETE, None)
    assert notes.comes(DELETE, None) == "home"


def test_states_of_files(notes: Table) -> None:
    assert notes.left_by(ONE) is None
    notes.left(ONE, "home")
    assert notes.left_by(ONE) == "home"
    assert notes.left_by(attr_of(1, ctime=13)) is None
    assert notes.left_by(attr_of(1, size=6)) is None
    notes.unsure(ONE.identity)
    notes.unsure(ONE.identity)
    assert notes.left_by(ONE) is None


def test_each_watch_is_told_once(notes: Table) -> None:
    assert notes.told(1, ONE)
    assert not notes.told(1, ONE)
    assert notes.told(2, ONE)
    assert notes.told(1, attr_of(1, mtime=12))
    assert notes.told(1, ONE)


def test_what_is_at_work(notes: Table) -> None:
    keys = [ONE.identity, (TWO.identity, b"x")]
    notes.begin(keys)
    notes.begin(keys[:1])
    assert all(map(notes.at_work, keys))
    notes.end(keys)
    assert notes.at_work(keys[0])
    assert not notes.at_work(keys[1])
    notes.end(keys[:1])
    assert not notes.at_work(keys[0])


def test_they_are_bounded(notes: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes_module, "MOST", 2)
    began = perf_counter_ns()
    assert notes.comes(CREATE, ONE) is None
    for number in range(3):
        notes.left(attr_of(10 + number), "home")
    assert len(notes) == 2
    assert notes.left_by(attr_of(10)) is None
    # That its event was told is forgotten, and with it everything that began before.
    notes.done(CREATE, ONE, began=began)
    assert notes.comes(CREATE, ONE) is None
