"""Events as the kernel tells them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_wsfuse.engine import inotify
from jupyter_wsfuse.engine.inotify import Event, Inotify


@pytest.fixture
def queue() -> Iterator[Inotify]:
    queue = Inotify()
    yield queue
    queue.close()


def test_names_are_bytes_and_events_in_order(queue: Inotify, tmp_path: Path) -> None:
    wd = queue.add(os.fsencode(tmp_path), inotify.ENTRY | inotify.FILE)
    assert queue.read() == []
    (tmp_path / os.fsdecode(b"\xff\xfe")).write_bytes(b"")
    (tmp_path / "dir").mkdir()
    assert queue.read() == [
        Event(wd, inotify.CREATE, b"\xff\xfe"),
        Event(wd, inotify.CLOSE_WRITE, b"\xff\xfe"),
        Event(wd, inotify.CREATE | inotify.ISDIR, b"dir"),
    ]
    tmp_path.chmod(0o700)
    assert queue.read() == [Event(wd, inotify.ATTRIB | inotify.ISDIR, b"")]


def test_a_watch_ends(queue: Inotify, tmp_path: Path) -> None:
    wd = queue.add(os.fsencode(tmp_path), inotify.ENTRY)
    assert queue.add(os.fsencode(tmp_path) + b"/.", inotify.ENTRY) == wd
    queue.remove(wd)
    assert queue.read() == [Event(wd, inotify.IGNORED, b"")]
    queue.remove(wd)  # once more is no error


def test_errors_are_the_kernels(queue: Inotify, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        queue.add(os.fsencode(tmp_path / "nothing"), inotify.ENTRY)
    other = Inotify()
    other.close()
    with pytest.raises(OSError) as caught:
        other.remove(1)
    assert caught.value.errno == errno.EBADF


def test_no_more_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        @staticmethod
        def inotify_init1(flags: int) -> int:
            import ctypes

            ctypes.set_errno(errno.EMFILE)
            return -1

    monkeypatch.setattr(inotify, "_libc", Full)
    with pytest.raises(OSError) as caught:
        Inotify()
    assert caught.value.errno == errno.EMFILE
