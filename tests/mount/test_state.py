"""The write-ahead log: what was flushed comes back, whatever a kill did to the rest."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from jupyter_wsfuse.mount import state
from jupyter_wsfuse.mount.state import StateLog


@pytest.fixture
def fd() -> Iterator[int]:
    number = state.create()
    yield number
    os.close(number)


def written(fd: int, *records: tuple[object, ...]) -> StateLog:
    log = StateLog(fd)
    for fields in records:
        log.record(*fields)
    log.flush()
    return log


def test_a_new_log_is_empty(fd: int) -> None:
    assert StateLog(fd).load() == []


def test_what_was_flushed_comes_back(fd: int) -> None:
    written(fd, ("node", 2, b"\xff name"), ("forget", 2, 1))
    assert StateLog(fd).load() == [["node", 2, b"\xff name"], ["forget", 2, 1]]


def test_what_was_not_flushed_does_not(fd: int) -> None:
    log = written(fd, ("one",))
    log.record("two")
    assert StateLog(fd).load() == [["one"]]


def test_a_successor_goes_on_writing(fd: int) -> None:
    written(fd, ("one",))
    successor = StateLog(fd)
    assert successor.load() == [["one"]]
    successor.record("two")
    successor.flush()
    assert StateLog(fd).load() == [["one"], ["two"]]


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_tail_is_dropped(fd: int, cut: int) -> None:
    """At whichever byte the last write was cut off, all earlier records are there and the log can be continued."""
    written(fd, ("first", b"x" * 100))
    whole = os.fstat(fd).st_size
    written_more = StateLog(fd)
    written_more.load()
    written_more.record("second", b"y" * 20)
    written_more.flush()
    os.ftruncate(fd, min(whole + cut, os.fstat(fd).st_size - 1))
    successor = StateLog(fd)
    assert successor.load() == [["first", b"x" * 100]]
    successor.record("third")
    successor.flush()
    assert StateLog(fd).load() == [["first", b"x" * 100], ["third"]]


def test_zeros_and_nonsense_at_the_end_are_dropped(fd: int) -> None:
    written(fd, ("first",))
    for tail in (bytes(64), struct.pack("<I", 3) + b"\xc1\xc1\xc1"):
        os.pwrite(fd, tail, os.fstat(fd).st_size)
        assert StateLog(fd).load() == [["first"]]


def test_compaction_keeps_what_the_snapshot_says_and_gives_memory_back(fd: int) -> None:
    log = StateLog(fd, compact_at=1 << 16)
    log.snapshot = lambda: [("everything", 1)]
    for number in range(40_000):
        log.record("node", number, b"some name")
        log.flush()
    records = StateLog(fd).load()
    assert records[0] == ["everything", 1]
    assert records[-1] == ["node", 39_999, b"some name"]
    assert len(records) < 10_000
    assert os.fstat(fd).st_blocks * 512 < 1 << 18


def test_a_snapshot_as_large_as_the_log_is_not_taken_all_the_time(fd: int) -> None:
    log = StateLog(fd, compact_at=100)
    taken = 0

    def snapshot() -> list[tuple[object, ...]]:
        nonlocal taken
        taken += 1
        return [("large", b"x" * 10_000)]

    log.snapshot = snapshot
    for _ in range(1000):
        log.record("more", b"x" * 100)
        log.flush()
    assert 1 < taken < 6


def test_a_kill_during_compaction_leaves_the_old_segment(fd: int) -> None:
    log = StateLog(fd, compact_at=100)
    log.record("old", b"x" * 200)

    def snapshot() -> list[tuple[object, ...]]:
        raise KeyboardInterrupt  # as good a place as any

    log.snapshot = snapshot
    with pytest.raises(KeyboardInterrupt):
        log.flush()
    assert StateLog(fd).load() == [["old", b"x" * 200]]
