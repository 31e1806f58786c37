"""Locks: what is remembered of them, and that nothing older than a granted lock stays in a cache."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.client.handles import apply_lock, locks_of
from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.ranges import LAST, Span, assign
from tests.helpers.local_engine import Mount


def raises(number: int):
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def lock(owner: int = 7, type: str = "w", start: int = 0, end: int = LAST, flock: bool = False) -> m.Lock:
    return m.Lock(owner, start, end, type, 99, flock)


@pytest.fixture
async def opened(mount: Mount, root: Path) -> tuple[int, int]:
    (root / "f").write_bytes(b"abc")
    return await mount.open(b"f", os.O_RDWR)


async def test_getlk_tells_who_is_in_the_way(mount: Mount, opened) -> None:
    node, handle = opened
    await mount.vfs.setlk(mount.caller(), node, handle, lock(7), False)
    assert (await mount.vfs.getlk(mount.caller(), node, handle, lock(8))).owner == 7
    free = await mount.vfs.getlk(mount.caller(), node, handle, lock(7))
    assert free == m.Lock(7, 0, LAST, "u", 0)
    with raises(errno.EAGAIN):
        await mount.vfs.setlk(mount.caller(), node, handle, lock(8), False)


async def test_a_waiting_lock_says_so(mount: Mount, opened) -> None:
    node, handle = opened
    await mount.vfs.setlk(mount.caller(), node, handle, lock(7), True)
    assert mount.engine.requests[-1].wait is True


async def test_flush_asks_only_if_its_owner_holds_locks(mount: Mount, opened) -> None:
    node, handle = opened
    vfs, caller = mount.vfs, mount.caller
    await vfs.setlk(caller(), node, handle, lock(7), False)
    asked = len(mount.engine.requests)
    await vfs.flush(caller(), node, handle, 8)
    assert len(mount.engine.requests) == asked
    await vfs.flush(caller(), node, handle, 7)
    await vfs.flush(caller(), node, handle, 7)
    assert len(mount.engine.requests) == asked + 1
    assert mount.engine.requests[-1].lock.type == "u"
    assert mount.engine.locks == []


async def test_parts_unlocked_leave_the_rest(mount: Mount, opened) -> None:
    node, handle = opened
    vfs, caller = mount.vfs, mount.caller
    await vfs.setlk(caller(), node, handle, lock(7, "w", 0, 99), False)
    await vfs.setlk(caller(), node, handle, lock(7, "u", 10, 19), False)
    held = list(locks_of(vfs.tree.get(node).locks, handle))
    assert [(one.start, one.end) for one in held] == [(0, 9), (20, 99)]
    await vfs.setlk(caller(), node, handle, lock(7, "u"), False)
    await vfs.setlk(caller(), node, handle, lock(8, "u"), False)
    assert vfs.tree.get(node).locks == {}


async def test_closing_forgets_what_was_locked_through_it(mount: Mount, opened) -> None:
    node, handle = opened
    await mount.vfs.setlk(mount.caller(), node, handle, lock(7, flock=True), False)
    await mount.vfs.flush(mount.caller(), node, handle, 7)  # is none of a flock's business
    assert mount.vfs.tree.get(node).locks
    mount.vfs.release(node, handle, 7, True)
    assert mount.vfs.tree.get(node).locks == {}


async def test_an_unchanged_file_keeps_its_pages_under_a_lock(mount: Mount, opened) -> None:
    node, handle = opened
    await mount.vfs.getattr(mount.caller(), node)
    await mount.vfs.setlk(mount.caller(), node, handle, lock(), False)
    assert mount.notes.seen == []
    assert mount.notes.settlings == 1
    await mount.vfs.setlk(mount.caller(), node, handle, lock(type="u"), False)
    assert mount.notes.settlings == 1


@pytest.mark.parametrize("how", ["changed", "written", "just now", "unknown"])
async def test_what_may_have_changed_is_read_anew_under_a_lock(
    mount: Mount, opened, root: Path, how: str
) -> None:
    node, handle = opened
    attr, _ = await mount.vfs.getattr(mount.caller(), node)
    if how == "changed":
        (root / "f").write_bytes(b"other")
    elif how == "written":
        await mount.vfs.write(mount.caller(), node, handle, 0, b"x")
    elif how == "just now":
        mount.clock.wall_ns = attr.ctime + 1000
    else:

        async def silent(request: m.Request, reply: m.Reply) -> m.Reply:
            return m.LockReply(0)

        mount.engine.after = silent
    await mount.vfs.setlk(mount.caller(), node, handle, lock(), False)
    mount.engine.after = None
    assert mount.notes.seen == [(node, True)]
    assert mount.notes.settlings == 1
    assert (await mount.vfs.getattr(mount.caller(), node))[0].size == (root / "f").stat().st_size


RANGES = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from("rwu")).map(
        lambda step: (min(step[:2]), max(step[:2]), step[2])
    ),
    max_size=12,
)


@given(RANGES)
def test_ranges_are_what_a_byte_by_byte_model_says(steps: list[tuple[int, int, str]]) -> None:
    spans: list[Span] = []
    model = ["u"] * 21
    for start, end, type in steps:
        spans = assign(spans, start, end, type, 1)
        model[start : end + 1] = type * (end + 1 - start)
    found = ["u"] * 21
    for span in spans:
        found[span.start : span.end + 1] = span.type * (span.end + 1 - span.start)
    assert found == model
    assert all(a.end + 1 < b.start or a.type != b.type for a, b in itertools.pairwise(spans))


def test_locks_belong_to_the_handle_that_set_them_last() -> None:
    locks: dict = {}
    apply_lock(locks, 1, lock(7, "r", 0, 9))
    apply_lock(locks, 2, lock(7, "w", 5, 9))
    apply_lock(locks, 3, lock(8, "u"))
    assert list(locks_of(locks, 1)) == []
    assert list(locks_of(locks, 2)) == [lock(7, "r", 0, 4), lock(7, "w", 5, 9)]
