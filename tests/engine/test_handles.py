"""Handles: numbers, bounds, and descriptors that are not closed under a running call."""

from __future__ import annotations

import errno
import os
import threading
from itertools import chain, repeat

import pytest

from jupyter_wsfuse.engine.handles import Handle, HandleTable
from jupyter_wsfuse.protocol.messages import Identity
from tests.helpers.workspace import fails

IDENTITY = Identity(1, 2, 3)


def pipe_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def add(table: HandleTable, **options: object) -> Handle:
    return table.add(pipe_end(), flags=os.O_RDONLY, identity=IDENTITY, **options)  # type: ignore[arg-type]


def test_numbers_are_random_positive_and_not_sequential() -> None:
    table = HandleTable()
    ids = [add(table).id for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(0 < id < 1 << 63 for id in ids)
    assert max(ids) > 1 << 55
    assert ids != sorted(ids)
    assert sorted(table.ids()) == sorted(ids)
    assert len(table) == 100
    assert {handle.id for handle in table} == set(ids)
    table.close_all()


def test_a_number_is_never_zero_nor_taken() -> None:
    numbers = chain([7, 0, 7, 8], repeat(9))
    table = HandleTable(rng=lambda: next(numbers))
    assert [add(table).id for _ in range(3)] == [7, 8, 9]
    table.close_all()


def test_adopting_a_number() -> None:
    table = HandleTable()
    assert add(table, id=42).id == 42
    assert 42 in table
    fd = pipe_end()
    with fails(errno.EEXIST):
        table.add(fd, flags=0, identity=IDENTITY, id=42)
    assert not is_open(fd)
    for id in (-1, 1 << 63):
        with fails(errno.EINVAL):
            add(table, id=id)
    table.close_all()


def test_the_number_of_handles_is_bounded() -> None:
    table = HandleTable(limit=2)
    first = add(table)
    add(table)
    fd = pipe_end()
    with fails(errno.EMFILE):
        table.add(fd, flags=0, identity=IDENTITY)
    assert not is_open(fd)
    table.close(first.id)
    add(table)
    table.close_all()


def test_unknown_numbers() -> None:
    table = HandleTable()
    with fails(errno.EBADF):
        table.get(1)
    with fails(errno.EBADF):
        table.acquire(1)
    assert table.find(1) is None
    assert table.close(1) is None


def test_a_descriptor_stays_open_while_it_is_used() -> None:
    table = HandleTable()
    handle = add(table)
    assert table.acquire(handle.id) is handle
    with table.use(handle.id):
        assert table.close(handle.id) is handle
        assert handle.id not in table
        with fails(errno.EBADF):
            table.acquire(handle.id)
        assert is_open(handle.fd)
    assert is_open(handle.fd)
    table.release(handle)
    assert not is_open(handle.fd)


def test_keep_closes_the_others() -> None:
    table = HandleTable()
    handles = [add(table) for _ in range(4)]
    closed = table.keep([handles[1].id, 12345])
    assert {handle.id for handle in closed} == {handles[i].id for i in (0, 2, 3)}
    assert [is_open(handle.fd) for handle in handles] == [False, True, False, False]
    assert table.close_all() == [handles[1]]


@pytest.mark.parametrize(
    ("flags", "pin", "writable", "append"),
    [
        (os.O_RDONLY, False, False, False),
        (os.O_WRONLY, False, True, False),
        (os.O_RDWR | os.O_APPEND, False, True, True),
        (os.O_PATH, True, False, False),
    ],
)
def test_what_a_handle_may_be_used_for(flags: int, pin: bool, writable: bool, append: bool) -> None:
    handle = Handle(99, 5, flags, IDENTITY, False, b"a/b", pin)
    assert (handle.writable, handle.append) == (writable, append)
    assert "99" not in repr(handle)  # a log must not give it away
    assert "a/b" in repr(handle)


def test_closing_and_using_from_many_threads() -> None:
    """A call that runs never sees its descriptor become another file."""
    table = HandleTable()
    expected: dict[int, int] = {}
    wrong: list[tuple[int, int]] = []
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            for id, inode in list(expected.items()):
                try:
                    with table.use(id) as handle:
                        found = os.fstat(handle.fd).st_ino
                except OSError as error:
                    if error.errno != errno.EBADF or id in table:
                        wrong.append((-1, inode))
                else:
                    if found != inode:
                        wrong.append((found, inode))

    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    for _ in range(3000):
        handle = add(table)
        expected[handle.id] = os.fstat(handle.fd).st_ino
        if len(expected) > 4:
            oldest = next(iter(expected))
            table.close(oldest)
            del expected[oldest]
    stop.set()
    for user in users:
        user.join()
    assert not wrong
    table.close_all()


def test_an_observer_knows_what_is_open() -> None:
    """It is asked while the descriptor is still open, and once for each handle."""
    seen: list[tuple[str, int]] = []

    class Observer:
        def opened(self, handle: Handle) -> None:
            os.fstat(handle.fd)
            seen.append(("opened", handle.id))

        def closing(self, handle: Handle) -> None:
            os.fstat(handle.fd)
            seen.append(("closing", handle.id))

    table = HandleTable(limit=2)
    table.observer = Observer()
    one, two = (
        table.add(os.open("/", os.O_RDONLY), flags=os.O_RDONLY, identity=Identity(1, 1, 1)) for _ in range(2)
    )
    with pytest.raises(OSError):
        table.add(os.open("/", os.O_RDONLY), flags=os.O_RDONLY, identity=Identity(1, 1, 1))
    with table.use(one.id):
        table.close(one.id)
        assert seen == [("opened", one.id), ("opened", two.id)]
    assert seen[2:] == [("closing", one.id)]
    table.close(one.id)
    table.close_all()
    assert seen[3:] == [("closing", two.id)]
