"""Random reads, writes, truncations, mappings and holes on one file, against a model in memory (after fsx)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.helpers.live import Mount

pytestmark = pytest.mark.mount

LIMIT = 256 * 1024
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


class Exerciser:
    """One file, the bytes it should have, and a source of randomness that a failure names."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.second = os.open(path, os.O_RDWR)
        self.model = bytearray()

    def extent(self) -> tuple[int, int]:
        offset = self.random.randrange(LIMIT)
        return offset, self.random.randrange(1, min(64 * 1024, LIMIT - offset) + 1)

    def grow(self, size: int) -> None:
        self.model.extend(bytes(max(0, size - len(self.model))))

    def read(self) -> None:
        offset, length = self.extent()
        fd = self.random.choice([self.fd, self.second])
        assert os.pread(fd, length, offset) == self.model[offset : offset + length]

    def write(self) -> None:
        offset, length = self.extent()
        data = self.random.randbytes(length)
        fd = self.random.choice([self.fd, self.second])
        assert os.pwrite(fd, data, offset) == length
        self.grow(offset)
        self.model[offset : offset + length] = data

    def truncate(self) -> None:
        size = self.random.randrange(LIMIT)
        os.ftruncate(self.fd, size)
        self.grow(size)
        del self.model[size:]

    def map_read(self) -> None:
        if self.model:
            with mmap.mmap(self.fd, len(self.model), mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                assert mapped[:] == self.model

    def map_write(self) -> None:
        if self.model:
            offset = self.random.randrange(len(self.model))
            data = self.random.randbytes(min(5000, len(self.model) - offset))
            with mmap.mmap(self.fd, len(self.model), mmap.MAP_SHARED) as mapped:
                mapped[offset : offset + len(data)] = data
            self.model[offset : offset + len(data)] = data

    def punch_hole(self) -> None:
        offset, length = self.extent()
        fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
        end = min(offset + length, len(self.model))
        if offset < end:
            self.model[offset:end] = bytes(end - offset)

    def zero_range(self) -> None:
        offset, length = self.extent()
        try:
            fallocate(self.fd, ZERO_RANGE, offset, length)
        except OSError as problem:
            if problem.errno != errno.EOPNOTSUPP:
                raise
            return
        self.grow(offset + length)
        self.model[offset : offset + length] = bytes(length)

    def preallocate(self) -> None:
        offset, length = self.extent()
        keep = self.random.choice([0, KEEP_SIZE])
        fallocate(self.fd, keep, offset, length)
        if not keep:
            self.grow(offset + length)

    def copy(self) -> None:
        source, length = self.extent()
        target = self.random.randrange(LIMIT - length + 1)
        if source < target + length and target < source + length:
            return  # overlapping ranges of one file are EINVAL
        moved = os.copy_file_range(self.fd, self.fd, length, source, target)
        data = bytes(self.model[source : source + length])
        assert moved == len(data)
        if data:
            self.grow(target)
            self.model[target : target + len(data)] = data

    def reopen(self) -> None:
        os.close(self.second)
        self.second = os.open(self.path, os.O_RDWR)

    def sync(self) -> None:
        os.fsync(self.fd)

    def run(self, steps: int) -> None:
        actions = [
            self.read, self.read, self.write, self.write, self.truncate, self.map_read, self.map_write, self.punch_hole,
            self.zero_range, self.preallocate, self.copy, self.reopen, self.sync,
        ]  # fmt: skip
        history = []
        for _ in range(steps):
            action = self.random.choice(actions)
            history.append(action.__name__)
            action()
            assert os.fstat(self.fd).st_size == len(self.model), history[-5:]
        assert self.path.read_bytes() == self.model
        os.close(self.fd)
        os.close(self.second)


@pytest.mark.parametrize("seed", range(4))
def test_file_keeps_every_byte(live_mount: Mount, seed: int) -> None:
    Exerciser(live_mount.path / "file", seed).run(400)


def test_file_keeps_every_byte_without_caches(uncached_mount: Mount) -> None:
    Exerciser(uncached_mount.path / "file", 99).run(400)
