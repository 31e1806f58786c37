"""What is measured. ``python -m benchmarks.workloads NAME DIRECTORY TAG`` runs one workload in a process of its own.

A workload takes a directory that is reached through a peer, and a tag that tells what it writes from what others do.
It yields (row, seconds); the first row is measured on a mount where nothing was read before, the others after that.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
BIG = 128 * MIB  # of the file that is read in sequence
RANDOM_SIZE = 64 * MIB
CALLS = 2000  # operations in one measurement of an operation's latency, without caches
SMALL_FILES = 1000
MODULES = (
    "argparse", "ast", "calendar", "configparser", "csv", "dataclasses", "difflib", "email.message", "fractions",
    "http.client", "json", "logging", "pathlib", "pickle", "pprint", "statistics", "tarfile", "typing", "uuid",
    "zipfile",
)  # fmt: skip

Rows = Iterator[tuple[str, float]]


class Stopwatch:
    """``with Stopwatch() as watch: ...``; then ``watch.seconds``."""

    def __enter__(self) -> Stopwatch:
        self._begun = time.perf_counter()
        self.seconds = 0.0
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._begun


def _run(*command: object, cwd: Path | None = None) -> None:
    subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )


# --- reading ---------------------------------------------------------------------------------------------------


def walk(directory: Path, tag: str) -> Rows:
    for row in ("walk and stat 1,100 files", "walk and stat, again"):
        with Stopwatch() as watch:
            found = 0
            for folder, _, files in os.walk(directory / "tree/src"):
                for name in files:
                    os.lstat(os.path.join(folder, name))
                    found += 1
        if found != 1100:
            raise RuntimeError(f"{found} files")
        yield row, watch.seconds


def git_status(directory: Path, tag: str) -> Rows:
    for row in ("git status, cold", "git status, warm"):
        with Stopwatch() as watch:
            _run("git", "status", "--short", cwd=directory / "tree")
        yield row, watch.seconds


def grep(directory: Path, tag: str) -> Rows:
    with Stopwatch() as watch:
        found = subprocess.run(["grep", "-r", "no such text", "."], cwd=directory / "tree/src", check=False)
    if found.returncode != 1:
        raise RuntimeError("grep found it")
    yield "grep -r in 1,100 files", watch.seconds


def small_files(directory: Path, tag: str) -> Rows:
    with Stopwatch() as watch:
        total = 0
        for name in sorted(os.listdir(directory / "small")):
            with open(directory / "small" / name, "rb") as file:
                total += len(file.read())
    yield "read 1,000 small files", watch.seconds


def imports(directory: Path, tag: str) -> Rows:
    # The compiled modules of the standard library are the local ones: only Python code is on the mount.
    dynamic = next(path for path in sys.path if path.endswith("lib-dynload"))
    code = (
        f"import sys; sys.path[:] = [{str(directory / 'stdlib')!r}, {dynamic!r}]\nimport {', '.join(MODULES)}"
    )
    with Stopwatch() as watch:
        _run(sys.executable, "-I", "-S", "-B", "-c", code)
    yield "import 20 modules from the mount", watch.seconds


def _read(path: Path) -> float:
    buffer, total = bytearray(MIB), 0
    with Stopwatch() as watch:
        fd = os.open(path, os.O_RDONLY)
        while count := os.readv(fd, [buffer]):
            total += count
        os.close(fd)
    if total != os.stat(path).st_size:
        raise RuntimeError(f"read {total} bytes")
    return watch.seconds


def sequential_read(directory: Path, tag: str) -> Rows:
    yield "read 128 MiB in sequence", _read(directory / "big.bin")
    again = [_read(directory / "big.bin")]
    # Where it comes from memory, a moment of noise decides; where it comes from far, once is enough.
    if again[0] < 1:
        again += [_read(directory / "big.bin") for _ in range(2)]
    yield "the same file, again", min(again)


def random_reads(directory: Path, tag: str) -> Rows:
    source = random.Random(4)
    offsets = [source.randrange(RANDOM_SIZE // 4096) * 4096 for _ in range(300)]
    fd = os.open(directory / "random.bin", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    with Stopwatch() as watch:
        for offset in offsets:
            os.pread(fd, 4096, offset)
    os.close(fd)
    yield "300 random reads of 4 KiB", watch.seconds


def strided_reads(directory: Path, tag: str) -> Rows:
    fd = os.open(directory / "random.bin", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    with Stopwatch() as watch:
        for offset in range(0, RANDOM_SIZE, 256 << 10):
            os.pread(fd, 16 << 10, offset)
    os.close(fd)
    yield "every 16th 16 KiB of 64 MiB", watch.seconds


def csv(directory: Path, tag: str) -> Rows:
    import pandas

    with Stopwatch() as watch:
        pandas.read_csv(directory / "table.csv")
    yield "pandas: CSV of 20 MB", watch.seconds


def parquet(directory: Path, tag: str) -> Rows:
    import pandas

    with Stopwatch() as watch:
        pandas.read_parquet(directory / "table.parquet", columns=["c3"])
    yield "pandas: one column of Parquet", watch.seconds


# --- writing ---------------------------------------------------------------------------------------------------


def git_clone(directory: Path, tag: str) -> Rows:
    target = directory / f"clone-{tag}"
    with Stopwatch() as watch:
        _run("git", "clone", "-q", "--no-hardlinks", directory / "../repository.git", target)
    yield "git clone of 1,100 files", watch.seconds
    shutil.rmtree(target)


def untar(directory: Path, tag: str) -> Rows:
    target = directory / f"untar-{tag}"
    with Stopwatch() as watch, tarfile.open(os.environ["WSFUSE_BENCH_TAR"]) as archive:
        archive.extractall(target, filter="data")
    yield "untar 1,100 files", watch.seconds
    with Stopwatch() as watch:
        _run("rm", "-rf", target)
    yield "rm -rf of them", watch.seconds


def copy_inside(directory: Path, tag: str) -> Rows:
    target = directory / f"copy-{tag}.bin"
    with Stopwatch() as watch:
        _run("cp", "--reflink=auto", directory / "big.bin", target)
    yield "cp of 128 MiB inside", watch.seconds
    target.unlink()


def write(directory: Path, tag: str) -> Rows:
    target, piece = directory / f"written-{tag}.bin", os.urandom(MIB)
    with Stopwatch() as watch, open(target, "wb", buffering=0) as file:
        for _ in range(64):
            file.write(piece)
        os.fsync(file.fileno())
    yield "write 64 MiB and fsync", watch.seconds
    target.unlink()


def append_log(directory: Path, tag: str) -> Rows:
    target = directory / f"log-{tag}.txt"
    with Stopwatch() as watch, open(target, "ab", buffering=0) as file:
        for number in range(1000):
            file.write(b"line %d of a log that somebody follows\n" % number)
    yield "append 1,000 lines", watch.seconds
    target.unlink()


def sqlite(directory: Path, tag: str) -> Rows:
    target = directory / f"data-{tag}.db"
    with Stopwatch() as watch:
        connection = sqlite3.connect(target, isolation_level=None)
        connection.execute("create table t (n integer, s text)")
        for number in range(50):
            connection.execute("insert into t values (?, ?)", (number, "x" * 100))
        connection.close()
    yield "50 SQLite transactions", watch.seconds
    target.unlink()


def notebook(directory: Path, tag: str) -> Rows:
    from jupyter_server.services.contents.fileio import atomic_writing

    target, text = directory / f"notebook-{tag}.ipynb", (directory / "notebook.ipynb").read_text()
    with Stopwatch() as watch:
        for _ in range(30):
            with atomic_writing(str(target), encoding="utf-8") as file:
                file.write(text)
            target.read_text()
    yield "open and save a notebook, 30 times", watch.seconds
    target.unlink()


def pip_install(directory: Path, tag: str) -> Rows:
    target = directory / f"site-{tag}"
    with Stopwatch() as watch:
        _run(
            sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile",
            "--disable-pip-version-check", "--target", target, os.environ["WSFUSE_BENCH_WHEEL"],
        )  # fmt: skip
    yield "pip install --target", watch.seconds
    shutil.rmtree(target)


# --- single operations, nothing cached -------------------------------------------------------------------------


def fstat(directory: Path, tag: str) -> Rows:
    fd = os.open(directory / "random.bin", os.O_RDONLY)
    with Stopwatch() as watch:
        for _ in range(CALLS):
            os.fstat(fd)
    os.close(fd)
    yield f"{CALLS} fstat, caches off", watch.seconds


def uncached_reads(directory: Path, tag: str) -> Rows:
    offsets = [random.randrange(RANDOM_SIZE // 4096) * 4096 for _ in range(CALLS)]
    fd = os.open(directory / "random.bin", os.O_RDONLY)
    with Stopwatch() as watch:
        for offset in offsets:
            if len(os.pread(fd, 4096, offset)) != 4096:
                raise RuntimeError("short read")
    os.close(fd)
    yield f"{CALLS} reads of 4 KiB, caches off", watch.seconds


@dataclass(frozen=True)
class Workload:
    """``rows`` are what ``run`` yields, in order. ``far``: by row, the greatest ratio to sshfs at 20 ms that we accept
    of ourselves; ``local``: the greatest ratio to the local directory of a row that is warm, at 20 ms and at 0.
    ``later``: the limit at 20 ms is not promised yet. ``cached`` False: with all caches off, and without distance."""

    run: Callable[[Path, str], Rows]
    rows: tuple[str, ...]
    far: dict[str, float] = field(default_factory=dict)
    local: dict[str, tuple[float, float]] = field(default_factory=dict)
    writes: bool = False
    later: bool = False
    cached: bool = True

    @property
    def name(self) -> str:
        return self.run.__name__


WORKLOADS = (
    Workload(
        walk,
        ("walk and stat 1,100 files", "walk and stat, again"),
        {"walk and stat 1,100 files": 0.05},
        {"walk and stat, again": (2.0, 1.5)},
    ),
    Workload(
        git_status,
        ("git status, cold", "git status, warm"),
        {"git status, cold": 0.03},
        {"git status, warm": (2.0, 1.5)},
    ),
    Workload(grep, ("grep -r in 1,100 files",), {"grep -r in 1,100 files": 0.05}),
    Workload(small_files, ("read 1,000 small files",), {"read 1,000 small files": 0.03}),
    Workload(imports, ("import 20 modules from the mount",), {"import 20 modules from the mount": 0.15}),
    Workload(
        sequential_read,
        ("read 128 MiB in sequence", "the same file, again"),
        {"read 128 MiB in sequence": 0.1},
        {"the same file, again": (2.0, 1.5)},
    ),
    Workload(random_reads, ("300 random reads of 4 KiB",)),
    Workload(strided_reads, ("every 16th 16 KiB of 64 MiB",)),
    Workload(csv, ("pandas: CSV of 20 MB",)),
    Workload(parquet, ("pandas: one column of Parquet",)),
    Workload(
        git_clone, ("git clone of 1,100 files",), {"git clone of 1,100 files": 0.05}, writes=True, later=True
    ),
    Workload(
        untar,
        ("untar 1,100 files", "rm -rf of them"),
        {"untar 1,100 files": 0.02, "rm -rf of them": 0.02},
        writes=True,
        later=True,
    ),
    Workload(copy_inside, ("cp of 128 MiB inside",), {"cp of 128 MiB inside": 0.05}, writes=True, later=True),
    Workload(write, ("write 64 MiB and fsync",), {"write 64 MiB and fsync": 0.7}, writes=True, later=True),
    Workload(append_log, ("append 1,000 lines",), {"append 1,000 lines": 1.0}, writes=True, later=True),
    Workload(sqlite, ("50 SQLite transactions",), {"50 SQLite transactions": 0.3}, writes=True, later=True),
    Workload(
        notebook,
        ("open and save a notebook, 30 times",),
        {"open and save a notebook, 30 times": 0.6},
        writes=True,
        later=True,
    ),
    Workload(pip_install, ("pip install --target",), writes=True, later=True),
    Workload(fstat, (f"{CALLS} fstat, caches off",), cached=False),
    Workload(uncached_reads, (f"{CALLS} reads of 4 KiB, caches off",), cached=False),
)


def main(arguments: list[str]) -> None:
    """Run one workload; each row is printed as soon as it is measured."""
    name, directory, tag = arguments
    workload = next(workload for workload in WORKLOADS if workload.name == name)
    for row, seconds in workload.run(Path(directory), tag):
        print(f"{seconds!r}\t{row}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
