"""What is measured. A workload takes a directory reached through a peer and returns seconds.

``WORKLOADS`` says for each whether it runs with the peers' caches on, what it needs prepared on the source,
and what the ratio to sshfs should be.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
SIZE = 256 * MIB  # of the file read and written in sequence
RANDOM_SIZE = 64 * MIB
CALLS = 2000  # operations in one measurement of an operation's latency


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o644)


def fstat(directory: Path, tag: str) -> float:
    """Seconds for CALLS times fstat(2) on an open file."""
    fd = _open(directory / "random.bin", os.O_RDONLY)
    try:
        start = time.perf_counter()
        for _ in range(CALLS):
            os.fstat(fd)
        return time.perf_counter() - start
    finally:
        os.close(fd)


def random_reads(directory: Path, tag: str) -> float:
    """Seconds for CALLS reads of 4 KiB at random offsets."""
    offsets = [random.randrange(RANDOM_SIZE // 4096) * 4096 for _ in range(CALLS)]
    fd = _open(directory / "random.bin", os.O_RDONLY)
    try:
        start = time.perf_counter()
        for offset in offsets:
            if len(os.pread(fd, 4096, offset)) != 4096:
                raise RuntimeError("short read")
        return time.perf_counter() - start
    finally:
        os.close(fd)


def sequential_read(directory: Path, tag: str) -> float:
    """Seconds to read SIZE bytes in pieces of 1 MiB, nothing of them cached on the client's side."""
    fd = _open(directory / "sequential.bin", os.O_RDONLY)
    buffer, total = bytearray(MIB), 0
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while count := os.readv(fd, [buffer]):
            total += count
        elapsed = time.perf_counter() - start
    finally:
        os.close(fd)
    if total != SIZE:
        raise RuntimeError(f"read {total} of {SIZE} bytes")
    return elapsed


def sequential_write(directory: Path, tag: str) -> float:
    """Seconds to write SIZE bytes in pieces of 1 MiB to a new file, until close(2) has returned."""
    path, piece = directory / f"written-{tag}.bin", os.urandom(MIB)
    start = time.perf_counter()
    fd = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for _ in range(SIZE // MIB):
            if os.write(fd, piece) != MIB:
                raise RuntimeError("short write")
    finally:
        os.close(fd)
    elapsed = time.perf_counter() - start
    os.unlink(path)
    return elapsed


@dataclass(frozen=True)
class Workload:
    """One row of the table. ``limit``: the greatest ratio of seconds to sshfs that we accept of ourselves."""

    name: str
    run: Callable[[Path, str], float]
    cached: bool
    unit: Callable[[float], str]
    limit: float


def _per_call(seconds: float) -> str:
    return f"{seconds / CALLS * 1e6:.0f} µs"


def _rate(seconds: float) -> str:
    return f"{SIZE / MIB / seconds:.0f} MiB/s"


WORKLOADS = (
    Workload("fstat, caches off", fstat, cached=False, unit=_per_call, limit=0.6),
    Workload("4 KiB random read, caches off", random_reads, cached=False, unit=_per_call, limit=0.6),
    Workload("sequential read, 1 MiB", sequential_read, cached=True, unit=_rate, limit=0.5),
    Workload("sequential write, 1 MiB", sequential_write, cached=True, unit=_rate, limit=0.5),
)


def prepare(source: Path) -> None:
    """Make the files that the workloads read."""
    piece = os.urandom(MIB)
    for name, size in (("random.bin", RANDOM_SIZE), ("sequential.bin", SIZE)):
        with (source / name).open("wb") as file:
            for _ in range(size // MIB):
                file.write(piece)
