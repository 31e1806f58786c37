"""What files occupy: trees, and the parts of files that have no blocks yet."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_wsfuse.engine import blocks, syscalls
from jupyter_wsfuse.engine.blocks import BLOCK, Stopped, measure, missing
from tests.helpers.unprivileged import as_user
from tests.helpers.workspace import needs_root

WAYS = [blocks._by_extents, blocks._by_holes]


@pytest.fixture
def go_on() -> threading.Event:
    return threading.Event()


@pytest.fixture(params=WAYS, ids=["extents", "holes"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int, int, int], int]:
    found: Callable[[int, int, int], int] = request.param
    with open(tmp_path / "probe", "wb") as file:
        try:
            found(file.fileno(), 0, BLOCK)
        except OSError as exc:
            pytest.skip(f"not on this file system: {exc}")
    return found


@pytest.mark.parametrize(
    ("start", "end", "lacking"),
    [
        (0, 4, 1),
        (0, 1, 1),
        (1, 2, 0),
        (1, 4, 0),
        (0, 8, 3),
        (4, 5, 1),
        (5, 6, 1),
        (6, 8, 0),
        (8, 16, 8),
        (100, 200, 100),
    ],
)
def test_holes(
    way: Callable[[int, int, int], int], tmp_path: Path, start: int, end: int, lacking: int
) -> None:
    """A file of 8 blocks: a hole, three with data, two of a hole, two with data."""
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * 3 * BLOCK, BLOCK)
    os.pwrite(fd, b"x" * (2 * BLOCK - 10), 6 * BLOCK)
    assert way(fd, start * BLOCK, end * BLOCK) == lacking * BLOCK
    os.close(fd)


def test_many_pieces(way: Callable[[int, int, int], int], tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    for number in range(600):
        os.pwrite(fd, b"x", number * 2 * BLOCK)
    lacking = way(fd, 0, 1200 * BLOCK)
    assert 600 * BLOCK <= lacking <= 1200 * BLOCK
    if way is blocks._by_extents:
        assert lacking == 600 * BLOCK
    os.close(fd)


def test_blocks_that_were_reserved_are_not_missing(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        blocks._by_extents(fd, 0, BLOCK)
    except OSError as exc:
        pytest.skip(f"not on this file system: {exc}")
    syscalls.fallocate(fd, syscalls.FALLOC_FL_KEEP_SIZE, 0, 10 * BLOCK)
    assert missing(fd, 0, 10 * BLOCK) == 0
    assert missing(fd, 5 * BLOCK + 1, 10 * BLOCK) == 6 * BLOCK
    os.close(fd)


def test_ranges_are_rounded_to_blocks(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x", 0)
    assert missing(fd, 1, 4095) == 0
    assert missing(fd, 1, 4096) == BLOCK
    assert missing(fd, BLOCK - 1, 2) == BLOCK
    os.close(fd)


def test_what_tells_nothing_lacks_everything() -> None:
    reader, writer = os.pipe()
    assert missing(writer, 0, 10) == BLOCK
    os.close(reader)
    os.close(writer)


# --- trees


def test_a_count_can_be_stopped(tmp_path: Path, go_on: threading.Event) -> None:
    go_on.set()
    with pytest.raises(Stopped):
        measure(bytes(tmp_path), go_on)


def test_no_link_is_followed(tmp_path: Path, go_on: threading.Event) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "f").write_bytes(b"x" * 100_000)
    empty = measure(bytes(root), go_on)
    (root / "absolute").symlink_to(outside)
    (root / "relative").symlink_to("../outside")
    (root / "up").symlink_to("..")
    assert measure(bytes(root), go_on)[0] <= empty[0] + BLOCK  # of the targets


def test_links_beyond_those_remembered_count_their_share(
    tmp_path: Path, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"x" * 64 * BLOCK)
    os.link(tmp_path / "f", tmp_path / "g")
    exact = measure(bytes(tmp_path), go_on)
    monkeypatch.setattr(blocks, "LINKED_MAX", 0)
    assert measure(bytes(tmp_path), go_on) == exact


def test_a_directory_swapped_for_a_link_is_not_entered(
    tmp_path: Path, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "d").mkdir(parents=True)
    outside.mkdir()
    (outside / "f").write_bytes(b"x" * 100_000)
    entry = blocks._Count.entry

    def swap(self: blocks._Count, place: object, name: bytes, found: os.DirEntry[str]) -> None:
        entry(self, place, name, found)  # type: ignore[arg-type]
        os.rmdir(root / "d")
        (root / "d").symlink_to(outside)

    monkeypatch.setattr(blocks._Count, "entry", swap)
    total, unreadable = measure(bytes(root), go_on)
    assert total < 100_000
    assert not unreadable


@needs_root
def test_a_mount_is_not_counted(tmp_path: Path, go_on: threading.Event) -> None:
    place = tmp_path / "m"
    place.mkdir()
    empty = measure(bytes(tmp_path), go_on)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"none", bytes(place), b"tmpfs", 0, None) == 0
    try:
        (place / "f").write_bytes(b"x" * 100_000)
        total, unreadable = measure(bytes(tmp_path), go_on)
    finally:
        assert libc.umount2(bytes(place), 0) == 0
    assert total <= empty[0]
    assert not unreadable


@needs_root
def test_a_file_mounted_over_another_is_not_counted(tmp_path: Path, go_on: threading.Event) -> None:
    root, place = tmp_path / "root", tmp_path / "root" / "f"
    root.mkdir()
    place.touch()
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    empty = measure(bytes(root), go_on)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(bytes(tmp_path / "big"), bytes(place), None, 4096, None) == 0  # MS_BIND
    try:
        assert measure(bytes(root), go_on) == empty
    finally:
        assert libc.umount2(bytes(place), 0) == 0


@needs_root
def test_what_cannot_be_read_is_said(tmp_path: Path, go_on: threading.Event) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "f").write_bytes(b"x" * 100_000)
    fd = os.open(tmp_path, os.O_RDONLY)
    os.fchmod(fd, 0o755)
    total, unreadable = as_user(lambda: measure(b"/proc/self/fd/%d" % fd, go_on))
    os.close(fd)
    assert unreadable == 1
    assert total < 100_000
