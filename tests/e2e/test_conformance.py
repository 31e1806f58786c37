"""What POSIX says, call by call: each script shows the same on a mount as on the file system under it.

The scripts follow the chapters of the public conformance suites: permissions of each call for owner, group and
others, sticky and set-group-ID directories, errno corners, link counts, and which timestamps a call marks.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.live import Mount
from tests.helpers.posixops import Operation, Workbench, perform, tree

pytestmark = pytest.mark.mount

A, B = 65534, 65533  # two ordinary users
CLOCK_REALTIME_COARSE = 5  # <linux/time.h>
Script = list[Operation]


def op(name: str, *arguments: Any, uid: int | None = None) -> Operation:
    return Operation(name, arguments, uid)


def every_kind(name: bytes) -> Script:
    """Make one of each kind of file: name + suffix."""
    return [
        op("open", 9, name + b"-file", os.O_CREAT | os.O_WRONLY, 0o644),
        op("close", 9),
        op("mkdir", name + b"-dir", 0o755),
        op("mkfifo", name + b"-fifo", 0o644),
        op("mknod", name + b"-sock", stat.S_IFSOCK | 0o644),
        op("symlink", b"target", name + b"-link"),
    ]


KINDS = [b"-file", b"-dir", b"-fifo", b"-sock", b"-link"]
LONG = b"x" * 255
TOO_LONG = b"x" * 256


def errno_corners() -> Script:
    script = [*every_kind(b"k"), op("mkdir", b"full", 0o755), op("mkdir", b"full/sub", 0o755)]
    odd = [b"k-file/x", b"missing/x", TOO_LONG, b"k-dir", b"k-file", b"full", b"k-link", b"k-fifo", LONG]
    for path in odd:
        for call in (
            ("mkdir", path, 0o755), ("rmdir", path), ("unlink", path), ("symlink", b"t", path), ("readlink", path),
            ("mkfifo", path, 0o644), ("mknod", path, stat.S_IFREG | 0o600), ("chmod", path, 0o600),
            ("truncate", path, 5),
            ("open", 1, path, os.O_RDONLY, 0), ("open", 1, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600),
            ("open", 1, path, os.O_RDONLY | os.O_DIRECTORY, 0), ("open", 1, path, os.O_RDONLY | os.O_NOFOLLOW, 0),
            ("link", path, b"new-link"), ("unlink", b"new-link"), ("lstat", path), ("stat", path),
            ("listdir", path),
        ):  # fmt: skip
            script += [op(*call), op("listdir", b"")]
        script += every_kind(b"k")
    return script


def renames() -> Script:
    script: Script = []
    for old in KINDS:
        for new in KINDS:
            script += [*every_kind(b"o"), *every_kind(b"n")]
            script += [op("rename", b"o" + old, b"n" + new), op("lstat", b"n" + new), op("lstat", b"o" + old)]
            script += [op("unlink", b"n" + new), op("rmdir", b"n" + new)]
    script += [
        op("mkdir", b"p", 0o755), op("mkdir", b"p/q", 0o755), op("rename", b"p", b"p/q/r"),
        op("rename", b"p", b"p/q"),
        op("rename", b"p/q", b"p"), op("rename", b"p", b"p"), op("rename", b"p/.", b"x"),
        op("rename", b"p/q", b"q"),
        op("lstat", b"p"), op("open", 1, b"f", os.O_CREAT | os.O_RDWR, 0o644), op("link", b"f", b"g"),
        op("rename", b"f", b"g"), op("lstat", b"f"), op("fstat", 1), op("rename", b"f", b"h"), op("fstat", 1),
        op("unlink", b"g"), op("fstat", 1), op("unlink", b"h"), op("fstat", 1), op("unlink", b"f"), op("fstat", 1),
        op("pwrite", 1, b"still here", 0), op("pread", 1, 100, 0), op("ftruncate", 1, 3), op("fstat", 1),
        op("fchmod", 1, 0o600), op("fstat", 1),
    ]  # fmt: skip
    return script


def permissions() -> Script:
    """Every call in a directory with every mode, by its owner, another user, and root."""
    script: Script = []
    for number, mode in enumerate([0o000, 0o100, 0o300, 0o500, 0o700, 0o707, 0o077, 0o777, 0o1777, 0o2777]):
        d = b"d%d" % number
        script += [op("mkdir", d, 0o777), op("chown", d, A, A), *every_kind(d + b"/k")]
        script += [op("chown", d + b"/k-file", A, A), op("chown", d + b"/k-dir", A, A), op("chmod", d, mode)]
        for uid in (A, B):
            for call in (
                ("listdir", d), ("lstat", d + b"/k-file"), ("access", d, 7), ("access", d + b"/k-file", 6),
                ("open", 1, d + b"/k-file", os.O_RDONLY, 0), ("open", 1, d + b"/k-file", os.O_RDWR, 0),
                ("open", 1, d + b"/new", os.O_CREAT | os.O_RDWR, 0o666), ("fstat", 1), ("unlink", d + b"/new"),
                ("mkdir", d + b"/newdir", 0o777), ("lstat", d + b"/newdir"), ("rmdir", d + b"/newdir"),
                ("mkfifo", d + b"/newfifo", 0o666), ("lstat", d + b"/newfifo"), ("unlink", d + b"/newfifo"),
                ("symlink", b"t", d + b"/newlink"), ("lstat", d + b"/newlink"), ("unlink", d + b"/newlink"),
                ("link", d + b"/k-file", d + b"/hard"), ("unlink", d + b"/hard"),
                ("rename", d + b"/k-file", d + b"/moved"), ("rename", d + b"/moved", d + b"/k-file"),
                ("rename", d + b"/k-dir", d + b"/moved"), ("rename", d + b"/moved", d + b"/k-dir"),
                ("truncate", d + b"/k-file", 10), ("chmod", d + b"/k-file", 0o640),
                ("chmod", d + b"/k-file", 0o644),
                ("chown", d + b"/k-file", B, B), ("chown", d + b"/k-file", A, A), ("utime", d + b"/k-file", 1, 2),
                ("setxattr", d + b"/k-file", "user.x", b"1", 0), ("getxattr", d + b"/k-file", "user.x"),
                ("unlink", d + b"/k-fifo"), ("rmdir", d + b"/k-dir"), ("mkdir", d + b"/k-dir", 0o755),
            ):  # fmt: skip
                script.append(op(*call, uid=uid))
    return script


def special_bits() -> Script:
    script: Script = [op("mkdir", b"g", 0o777), op("chown", b"g", A, B), op("chmod", b"g", 0o2777)]
    for uid in (None, A, B):
        script += [
            op("open", 1, b"g/f", os.O_CREAT | os.O_RDWR, 0o2775, uid=uid), op("fstat", 1),
            op("mkdir", b"g/d", 0o755, uid=uid), op("lstat", b"g/d"), op("mkfifo", b"g/p", 0o2755, uid=uid),
            op("lstat", b"g/p"), op("symlink", b"t", b"g/l", uid=uid), op("lstat", b"g/l"),
            op("unlink", b"g/f"), op("rmdir", b"g/d"), op("unlink", b"g/p"), op("unlink", b"g/l"),
        ]  # fmt: skip
    for mode in (0o4777, 0o2777, 0o6777, 0o2767, 0o6666):
        for uid in (None, A):
            for change in (
                ("write", 2, b"data"), ("ftruncate", 2, 1), ("truncate", b"s", 7), ("chown", b"s", A, A),
                ("chown", b"s", -1, -1), ("fallocate", 2, 0, 100), ("chmod", b"s", mode),
                ("open", 3, b"s", os.O_WRONLY | os.O_TRUNC, 0),
            ):  # fmt: skip
                script += [
                    op("open", 2, b"s", os.O_CREAT | os.O_RDWR, 0o777), op("chown", b"s", A, A),
                    op("chmod", b"s", mode),
                    op("open", 2, b"s", os.O_RDWR, 0, uid=uid), op(*change, uid=uid), op("lstat", b"s"),
                    op("fstat", 2),
                ]  # fmt: skip
    script += [op("mkdir", b"t", 0o777), op("chmod", b"t", 0o1777)]
    for owner in (A, B):
        for kind in KINDS:
            script += every_kind(b"t/k")
            script += [op("chown", b"t/k" + kind, owner, owner)]
            for call in (
                ("rename", b"t/k" + kind, b"t/moved"),
                ("unlink", b"t/k" + kind),
                ("rmdir", b"t/k" + kind),
            ):
                script += [op(*call, uid=A), op("listdir", b"t")]
            script += [op("unlink", b"t/moved"), op("rmdir", b"t/moved")]
    return script


def link_counts() -> Script:
    script: Script = [op("mkdir", b"d", 0o755)]
    for number in range(5):
        script += [op("mkdir", b"d/%d" % number, 0o755), op("lstat", b"d")]
    script += [
        op("rename", b"d/0", b"out"),
        op("lstat", b"d"),
        op("rename", b"out", b"d/1"),
        op("lstat", b"d"),
    ]
    script += [op("rmdir", b"d/2"), op("lstat", b"d"), op("lstat", b"d/1")]
    script += [op("open", 1, b"f", os.O_CREAT | os.O_RDWR, 0o644)]
    for number in range(4):
        script += [op("link", b"f", b"l%d" % number), op("fstat", 1), op("lstat", b"l0")]
    for number in range(4):
        script += [op("unlink", b"l%d" % number), op("fstat", 1), op("lstat", b"f")]
    script += [
        op("symlink", b"f", b"s"),
        op("link", b"s", b"s2"),
        op("lstat", b"s"),
        op("lstat", b"s2"),
        op("stat", b"s2"),
    ]
    script += [op("link", b"d", b"d2"), op("link", b"f", b"d"), op("link", b"f", b"s")]
    return script


def io_corners() -> Script:
    wr = os.O_CREAT | os.O_RDWR
    return [
        op("open", 1, b"f", wr, 0o644), op("pwrite", 1, b"abc", 10_000), op("pread", 1, 20_000, 0), op("fstat", 1),
        op("open", 2, b"f", os.O_WRONLY | os.O_APPEND, 0), op("write", 2, b"tail"), op("pwrite", 2, b"more", 0),
        op("write", 1, b"head"), op("pread", 1, 20_000, 0), op("ftruncate", 1, 4), op("write", 2, b"x"),
        op("pread", 1, 99, 0),
        op("open", 3, b"f", os.O_RDONLY, 0), op("write", 3, b"no"), op("ftruncate", 3, 0), op("pread", 2, 5, 0),
        op("pread", 1, 5, 2**40), op("pwrite", 1, b"", 100), op("fstat", 1),
        op("fallocate", 1, 50_000, 10), op("fstat", 1),
        op("copy_range", 1, 1, 100, 0, 60_000), op("copy_range", 1, 1, 100, 0, 50), op("pread", 1, 99_999, 0),
        op("map_and_write", 1, 0, b"mapped"), op("pread", 1, 10, 0),
        op("open", 4, b"f", os.O_RDONLY | os.O_TRUNC, 0),
        op("fstat", 1), op("open", 5, b"f", os.O_RDWR | os.O_TRUNC, 0), op("fstat", 1), op("truncate", b"f", 2**33),
        op("lstat", b"f"), op("truncate", b"f", 0), op("open", 6, b"", os.O_RDONLY, 0), op("fsync", 6),
        op("fsync", 1),
        op("open", 7, b"f", os.O_RDONLY, 0), op("unlink", b"f"), op("open", 7, b"f", wr, 0o600),
        op("fstat", 1), op("fstat", 7),
    ]  # fmt: skip


def extended_attributes() -> Script:
    script = every_kind(b"k")
    for kind in KINDS:
        path = b"k" + kind
        for name in (
            "user.a",
            "user." + "n" * 250,
            "user." + "n" * 251,
            "trusted.a",
            "security.x",
            "nonsense.a",
            "user.",
        ):
            for flags in (os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE, 0):
                script += [op("setxattr", path, name, b"v" * flags, flags), op("getxattr", path, name)]
            script += [op("removexattr", path, name), op("removexattr", path, name)]
    return script


SCRIPTS: list[Callable[[], Script]] = [
    errno_corners, renames, permissions, special_bits, link_counts, io_corners, extended_attributes,
]  # fmt: skip


@pytest.fixture
def benches(raw_mount: Mount, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """The same directory name on the mount and beside it, both open to every user."""
    made = []
    for place in (raw_mount.path, tmp_path):
        (place / "bench").mkdir()
        (place / "bench").chmod(0o777)
        made.append(Workbench(place / "bench"))
    yield made
    for bench in made:
        bench.close()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_script_shows_the_same(script: Callable[[], Script], benches: list[Workbench]) -> None:
    differences = []
    for number, operation in enumerate(script()):
        on_mount, on_plain = (perform(bench, operation) for bench in benches)
        if on_mount != on_plain:
            differences.append(f"{number}: {operation}: mount {on_mount}, plain {on_plain}")
    assert not differences, "\n".join(differences[:40])
    assert tree(benches[0]) == tree(benches[1])


def next_tick() -> None:
    """Until the file systems' clock has moved on, so that a marked timestamp differs from the one before."""
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    deadline = time.monotonic() + 5
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == before:
        assert time.monotonic() < deadline


MARKING: list[tuple[str, Operation]] = [
    ("mkdir", op("mkdir", b"d/new", 0o755)),
    ("create", op("open", 1, b"d/new", os.O_CREAT | os.O_RDWR, 0o644)),
    ("mkfifo", op("mkfifo", b"d/new", 0o644)),
    ("symlink", op("symlink", b"t", b"d/new")),
    ("link", op("link", b"f", b"d/new")),
    ("unlink hard link", op("unlink", b"d/hard")),
    ("unlink", op("unlink", b"d/f")),
    ("rmdir", op("rmdir", b"d/sub")),
    ("rename", op("rename", b"d/f", b"e/moved")),
    ("rename directory", op("rename", b"d/sub", b"e/moved")),
    ("rename over", op("rename", b"f", b"d/f")),
    ("chmod", op("chmod", b"f", 0o600)),
    ("chown", op("chown", b"f", A, A)),
    ("truncate", op("truncate", b"f", 1)),
    ("truncate same", op("truncate", b"f", 4)),
    ("ftruncate", op("ftruncate", 0, 2)),
    ("ftruncate same", op("ftruncate", 0, 4)),
    ("write", op("pwrite", 0, b"x", 0)),
    ("append", op("pwrite", 0, b"x", 100)),
    ("write nothing", op("pwrite", 0, b"", 0)),
    ("fallocate", op("fallocate", 0, 0, 9000)),
    ("setxattr", op("setxattr", b"f", "user.a", b"1", 0)),
    ("open truncating", op("open", 1, b"f", os.O_WRONLY | os.O_TRUNC, 0)),
    ("failed unlink", op("unlink", b"d/missing")),
    ("failed rmdir", op("rmdir", b"d")),
    ("failed mkdir", op("mkdir", b"d/f", 0o755)),
    ("copy", op("copy_range", 0, 0, 2, 0, 10)),
]


@pytest.mark.parametrize("operation", [o for _, o in MARKING], ids=[n for n, _ in MARKING])
def test_marks_the_same_timestamps(operation: Operation, benches: list[Workbench]) -> None:
    watched = [b"", b"d", b"e", b"f", b"d/f", b"d/hard", b"d/sub", b"e/moved", b"d/new"]
    for bench in benches:
        for setup in (
            op("mkdir", b"d", 0o755), op("mkdir", b"e", 0o755), op("mkdir", b"d/sub", 0o755),
            op("open", 0, b"d/f", os.O_CREAT | os.O_RDWR, 0o644),
            op("open", 0, b"f", os.O_CREAT | os.O_RDWR, 0o644),
            op("pwrite", 0, b"text", 0), op("link", b"f", b"d/hard"),
        ):  # fmt: skip
            assert perform(bench, setup)[0] == "ok"

    def times(bench: Workbench) -> dict[bytes, tuple[int, int]]:
        found = {}
        for path in watched:
            if os.path.lexists(bench.path(path)):
                info = os.lstat(bench.path(path))
                found[path] = (info.st_mtime_ns, info.st_ctime_ns)
        return found

    before = [times(bench) for bench in benches]
    next_tick()
    outcomes = [perform(bench, operation) for bench in benches]
    assert outcomes[0] == outcomes[1]
    marked = []
    for bench, old in zip(benches, before, strict=True):
        new = times(bench)
        marked.append(
            {path: [n != o for n, o in zip(new[path], old.get(path, (0, 0)), strict=True)] for path in new}
        )
    assert marked[0] == marked[1]
