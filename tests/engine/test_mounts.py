"""The table of mount points."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_wsfuse.engine.mounts import MountTable, parse_mountinfo
from tests.helpers.workspace import needs_root

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def table() -> Iterator[MountTable]:
    table = MountTable()
    yield table
    table.close()


def test_parsing() -> None:
    text = (
        b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        b"36 35 98:0 /mnt1 /mnt/with\\040space\\134x rw master:1 - ext3 /dev/root rw,errors=continue\n"
    )
    assert parse_mountinfo(text) == {b"/", b"/mnt/with space\\x"}


def test_names_directly_in_a_directory(table: MountTable) -> None:
    assert b"/proc" in table.points()
    assert b"proc" in table.within(b"/")
    assert b"" not in table.within(b"/")
    assert b"proc" not in table.within(b"/etc")


@needs_root
def test_a_new_mount_is_seen(table: MountTable, tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    before = table.points()
    assert table.points() is before  # nothing changed: not read again
    assert libc.mount(b"none", bytes(place), b"tmpfs", 0, None) == 0
    try:
        assert table.within(bytes(tmp_path)) == {b"a b"}
    finally:
        assert libc.umount2(bytes(place), 2) == 0
    assert table.within(bytes(tmp_path)) == frozenset()


def test_a_table_longer_than_a_page(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(b"".join(b"1 1 0:1 / /m/%d rw - tmpfs none rw\n" % i for i in range(5000)))
    # poll(2) takes a regular file as well, and reports none of the events asked for.
    table = MountTable(str(path))
    assert len(table.within(b"/m")) == 5000
    table.close()
