"""The notifier's thread, on a socket instead of the kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator

import pytest

from jupyter_wsfuse.fuse import replies
from jupyter_wsfuse.fuse.notifier import Notifier
from tests.fuse.kernel import Device


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.close()


async def close(notifier: Notifier) -> None:
    thread = notifier.close()
    if thread is not None:
        await asyncio.to_thread(thread.join)


async def test_unused_costs_nothing(device: Device) -> None:
    before = threading.active_count()
    notifier = Notifier(device.fd, asyncio.get_running_loop())
    await notifier.settled()
    assert threading.active_count() == before
    assert notifier.close() is None
    assert notifier.close() is None


async def test_written_in_order_and_settled(device: Device) -> None:
    notifier = Notifier(device.fd, asyncio.get_running_loop())
    notifier.inval_entry(1, b"name")
    notifier.inval_node(5)
    notifier.inval_node(6, data=False)
    await notifier.settled()
    seen = [device.kernel.recv(100) for _ in range(3)]
    assert seen == [
        replies.inval_entry(1, b"name"),
        replies.inval_inode(5, data=True),
        replies.inval_inode(6, data=False),
    ]
    await close(notifier)


async def test_queued_ones_are_written_before_it_closes_and_later_ones_not(device: Device) -> None:
    notifier = Notifier(device.fd, asyncio.get_running_loop())
    notifier.inval_node(5)
    await close(notifier)
    notifier.inval_node(6)
    await notifier.settled()
    assert device.kernel.recv(100) == replies.inval_inode(5, data=True)
    with pytest.raises(BlockingIOError):
        device.kernel.recv(100)


async def test_its_descriptor_is_its_own(device: Device) -> None:
    fd = os.dup(device.fd)
    notifier = Notifier(fd, asyncio.get_running_loop())
    os.close(fd)
    notifier.inval_node(5)
    await notifier.settled()
    assert device.kernel.recv(100)
    await close(notifier)


async def test_not_cached_is_fine(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOENT, "not cached")

    monkeypatch.setattr("jupyter_wsfuse.fuse.notifier.os.write", write)
    notifier = Notifier(device.fd, asyncio.get_running_loop())
    notifier.inval_node(5)
    await notifier.settled()
    await close(notifier)
    assert not caplog.records


async def test_refused_is_logged(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("jupyter_wsfuse.fuse.notifier.os.write", write)
    notifier = Notifier(device.fd, asyncio.get_running_loop())
    notifier.inval_node(5)
    await notifier.settled()
    await close(notifier)
    assert [record.message for record in caplog.records] == [
        "the kernel refused a notification of 40 bytes: [Errno 22] Invalid argument"
    ]


async def test_a_waiter_that_gave_up(device: Device) -> None:
    notifier = Notifier(device.fd, asyncio.get_running_loop())
    notifier.inval_node(5)
    waiter = asyncio.create_task(notifier.settled())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await notifier.settled()
    await close(notifier)


def test_a_loop_that_is_closed(device: Device) -> None:
    loop = asyncio.new_event_loop()
    notifier = Notifier(device.fd, loop)
    marker: asyncio.Future[None] = loop.create_future()
    loop.close()
    notifier.inval_node(5)
    notifier._queue.put(marker)
    thread = notifier.close()
    assert thread is not None
    thread.join()
    assert not marker.done()
