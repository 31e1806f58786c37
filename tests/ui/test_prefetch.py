"""``wsfuse prefetch``: on plain directories, whose mount is made up, and on real mounts."""

from __future__ import annotations

import errno
import functools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from jupyter_wsfuse.errors import MountError, NotMountedError
from jupyter_wsfuse.mount import launcher, registry
from jupyter_wsfuse.mount.registry import KernelMount
from jupyter_wsfuse.ui import prefetch, progress
from jupyter_wsfuse.ui.cli import Code, main
from jupyter_wsfuse.ui.fetching import PIECE, SMALL, Counts, Crew, Fetch, Root
from tests.helpers.kernel import Kernel
from tests.helpers.live import PACKAGE, PATIENCE, Mount, run
from tests.helpers.waiting import eventually


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three directories with five files of 2 MiB and a bit."""
    top = tmp_path / "tree"
    (top / "a" / "deep").mkdir(parents=True)
    (top / "b").mkdir()
    (top / "empty").touch()
    (top / "a" / "large").write_bytes(b"x" * (2 * PIECE + 10))
    (top / "a" / "small").write_bytes(b"x" * 1000)
    (top / "a" / "deep" / "one").write_bytes(b"x" * 100)
    (top / "b" / "two").write_bytes(b"x" * 10)
    return top


WHOLE = 2 * PIECE + 1120


def root(path: Path | str) -> Root:
    return Root(str(path), os.stat(path).st_dev if os.path.exists(path) else 0)


def fetched(*roots: Root, threads: int = 4, limit: int | None = 1 << 30, **options: Any) -> Fetch:
    fetch = Fetch(roots, **options)
    prefetch.bring(fetch, progress.Quiet(), threads=threads, limit=limit)
    return fetch


def name_of(fd: int) -> str:
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


# --- what is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 8])
def test_everything_is_read(tree: Path, threads: int) -> None:
    counts = fetched(root(tree), threads=threads).counts
    assert (counts.directories, counts.files, counts.bytes) == (4, 5, WHOLE)
    assert (counts.read, counts.read_bytes) == (5, WHOLE)
    assert counts.errors == counts.gone == counts.over == counts.special == counts.links == 0


def test_what_is_no_file(tree: Path) -> None:
    os.mkfifo(tree / "a" / "fifo")
    (tree / "loop").symlink_to(".")
    (tree / "outside").symlink_to("/etc")
    (tree / "dangling").symlink_to("nothing")
    counts = fetched(root(tree)).counts
    assert (counts.read, counts.directories, counts.links, counts.special) == (5, 4, 3, 1)
    assert counts.errors == 0


def test_the_order(tree: Path) -> None:
    """A directory after the other, as they are listed; in each, small files first."""
    (tree / "a" / "large too").write_bytes(b"x" * (SMALL + 1))
    seen: list[str] = []

    def readv(fd: int, buffers: Any) -> int:
        seen.append(name_of(fd))
        return os.readv(fd, buffers)

    fetched(root(tree), threads=1, readv=readv)
    names = list(dict.fromkeys(seen))
    large = [entry.name for entry in os.scandir(tree / "a") if entry.name.startswith("large")]
    below_a = ["small", *large, "one"]
    two = [entry.name for entry in os.scandir(tree) if entry.is_dir()]
    assert names == [*below_a, "two"] if two == ["a", "b"] else ["two", *below_a]
    assert seen.count("large") == 3, "in pieces"


def test_a_limit(tree: Path) -> None:
    counts = fetched(root(tree), limit=1105).counts
    assert counts.read_bytes <= 1105
    assert counts.read == counts.files
    assert counts.over == 2, "the large one, and a small one for which there was no room any more"
    assert counts.over_bytes + counts.bytes == WHOLE
    assert fetched(root(tree), limit=0).counts.read == 1, "the empty one"


def test_metadata_only(tree: Path) -> None:
    def readv(fd: int, buffers: Any) -> int:
        raise AssertionError

    counts = fetched(root(tree), limit=None, readv=readv).counts
    assert (counts.directories, counts.files, counts.bytes, counts.read) == (4, 5, WHOLE, 0)


def test_a_single_file_and_a_link_that_was_named(tree: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tree / "a")
    assert fetched(root(tree / "b" / "two")).counts.read_bytes == 10
    assert fetched(root(link)).counts.read == 3
    link.unlink()
    link.symlink_to(tree / "b" / "two")
    assert fetched(root(link)).counts.read == 1
    os.mkfifo(tmp_path / "fifo")
    assert fetched(root(tmp_path / "fifo")).counts.special == 1


def test_other_file_systems_are_not_entered(tree: Path) -> None:
    counts = fetched(Root(str(tree), 1)).counts
    assert counts.failed == [(str(tree), "is on another file system, not in the mount")]
    inside = next(path for path in ("/dev/shm", "/dev/pts", "/proc") if os.path.ismount(path))
    assert fetched(root(os.path.dirname(inside)), limit=None, threads=2).counts.elsewhere >= 1


# --- what goes wrong -------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read(tree: Path) -> None:
    def readv(fd: int, buffers: Any) -> int:
        if name_of(fd) in ("one", "two"):
            raise OSError(errno.EIO, "Input/output error")
        return os.readv(fd, buffers)

    fetch = fetched(root(tree), readv=readv)
    assert (fetch.counts.errors, fetch.counts.read) == (2, 3), "the others are read all the same"
    report = prefetch.described(fetch, [str(tree)])
    assert not report.ok
    assert "2 errors:" in str(report)
    assert f"{tree}/a/deep/one: Input/output error" in str(report)
    fetch.counts.errors = 12
    fetch.counts.failed *= 6
    assert "and 7 more" in str(prefetch.described(fetch, [str(tree)]))


def test_what_does_not_exist(tmp_path: Path) -> None:
    counts = fetched(root(tmp_path / "nothing")).counts
    assert counts.failed == [(f"{tmp_path}/nothing", "No such file or directory")]
    assert counts.errors == 1


def test_what_cannot_be_looked_at(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "link").symlink_to("empty")

    def refused(path: str) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "readlink", refused)
    counts = fetched(root(tree)).counts
    assert (counts.links, counts.errors, counts.read) == (1, 0, 5), "nobody asked for where a link leads"
    fetch = Fetch([root(tree / "b")])
    monkeypatch.setattr(fetch, "_look_at", lambda directory, entry: refused(entry.path))
    run_through(fetch.look(1))
    assert fetch.counts.failed == [(f"{tree}/b/two", "Permission denied")]


def run_through(crew: Crew) -> None:
    crew.start()
    assert crew.wait(PATIENCE)


def test_what_has_changed_since_it_was_listed(tree: Path) -> None:
    fetch = Fetch([root(tree)])
    run_through(fetch.look(2))
    fetch.choose(1 << 30)
    (tree / "a" / "small").unlink()
    (tree / "a" / "deep" / "one").unlink()
    os.mkfifo(tree / "a" / "deep" / "one")  # whose writer is not waited for
    (tree / "b" / "two").unlink()
    (tree / "b" / "two").symlink_to(tree / "a" / "large")
    run_through(fetch.read(2))
    assert (fetch.counts.read, fetch.counts.gone, fetch.counts.errors) == (2, 2, 0)


def test_a_file_that_grows_all_the_time(tree: Path) -> None:
    counts = fetched(root(tree / "a" / "large"), readv=lambda fd, buffers: PIECE).counts
    assert (counts.read, counts.read_bytes) == (1, 3 * PIECE)
    shrunk = fetched(root(tree / "a" / "large"), readv=lambda fd, buffers: 0).counts
    assert (shrunk.read, shrunk.read_bytes) == (1, 0)


def test_a_mount_that_is_lost(tree: Path) -> None:
    """Not every file waits for the deadline again."""

    def readv(fd: int, buffers: Any) -> int:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    fetch = fetched(root(tree), threads=1, readv=readv)
    assert fetch.lost == "Connection timed out"
    assert fetch.counts.errors == 1
    report = prefetch.described(fetch, [str(tree)])
    assert not report.ok
    assert "does not answer any more (Connection timed out): it ended early" in str(report)


# --- threads ---------------------------------------------------------------------------------------------------


def test_further_tasks_come_next() -> None:
    done: list[str] = []

    def work(task: str) -> list[str]:
        done.append(task)
        return [task + "1", task + "2"] if len(task) == 1 else []

    run_through(Crew(1, ["a", "b"], work))
    assert done == ["a", "a1", "a2", "b", "b1", "b2"]
    run_through(Crew(3, [], work))


def test_a_mistake_of_ours_is_not_swallowed() -> None:
    def work(task: int) -> list[int]:
        raise ZeroDivisionError

    crew = Crew(4, range(100), work)
    crew.start()
    with pytest.raises(ZeroDivisionError):
        crew.wait(PATIENCE)


def test_stopping_while_a_read_does_not_return(tree: Path) -> None:
    begun, returned = threading.Semaphore(0), threading.Event()

    def readv(fd: int, buffers: Any) -> int:
        begun.release()
        assert returned.wait(PATIENCE)
        return PIECE

    fetch = Fetch([root(tree / "a" / "large")], readv=readv)
    run_through(fetch.look(1))
    fetch.choose(1 << 30)
    crew = fetch.read(3)
    crew.start()
    assert begun.acquire(timeout=PATIENCE)
    eventually(lambda: fetch.stop(0.0) == 1)  # the two others have nothing to do
    returned.set()
    assert crew.wait(PATIENCE)
    assert fetch.counts.read == 0
    assert fetch.counts.read_bytes == PIECE, "the present read, and no other"


def test_stopping_while_looking(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = Fetch([root(tree)])
    crew = fetch.look(1)
    monkeypatch.setattr(fetch, "_look_at", lambda directory, entry: crew.stop())
    run_through(crew)
    assert fetch.counts.directories == 1
    assert Fetch([]).stop(0.0) == 0, "before it began"


# --- where -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two mounts, one in the other, and all looks at them are failures."""
    base = tmp_path / "somewhere"
    base.mkdir()
    table = [
        KernelMount(f"{base}/m", "fuse.wsfuse", "", 7),
        KernelMount(f"{base}/m/in/n", "fuse.wsfuse", "", 8),
    ]
    monkeypatch.setattr(registry, "kernel_mounts", lambda: table)
    is_link = os.path.islink

    def islink(path: str) -> bool:
        assert path != f"{base}/m"
        assert not path.startswith(f"{base}/m/")
        return is_link(path)

    monkeypatch.setattr(os.path, "islink", islink)
    return base


def test_paths_in_mounts(mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mounts / "to").symlink_to("m/in")
    (mounts / "absolute").symlink_to(mounts / "to")
    for path, minor, place in (
        ("m", 7, "m"),
        ("m/", 7, "m"),
        ("m/a/../b", 7, "m/b"),
        ("m/in/n", 8, "m/in/n"),
        ("m/in/n/x", 8, "m/in/n/x"),
        ("m/in/no", 7, "m/in/no"),
        ("to/x", 7, "m/in/x"),
        ("absolute/n/x", 8, "m/in/n/x"),
    ):
        mount, found = prefetch.locate(f"{mounts}/{path}")
        assert (mount.minor, found) == (minor, f"{mounts}/{place}")
    monkeypatch.setenv("HOME", str(mounts))
    monkeypatch.chdir(mounts)
    assert prefetch.locate("~/m/x")[1] == prefetch.locate("m/x")[1] == f"{mounts}/m/x"


def test_paths_outside(mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (mounts, mounts / "mm", Path("/")):
        with pytest.raises(NotMountedError, match=f"is not in a mount of wsfuse; these are: {mounts}/m, "):
            prefetch.locate(str(path))
    (mounts / "loop").symlink_to("loop")
    with pytest.raises(MountError, match="loop of symbolic links"):
        prefetch.locate(str(mounts / "loop"))
    monkeypatch.setattr(registry, "kernel_mounts", list)
    with pytest.raises(NotMountedError, match="`wsfuse mount URL DIR` mounts a workspace"):
        prefetch.locate(str(mounts))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "dead"}, "the mount on /m is dead; `wsfuse umount /m` takes it down"),
        ({"state": "not answering"}, "is not answering"),
        ({"state": "mounted", "cache": False}, "with --cache off and remembers nothing"),
        ({"state": "unsupervised", "daemon": {}}, ""),
        ({"state": "mounted", "daemon": {"connection": {"told": True, "untold_because": ""}}}, ""),
        (
            {"daemon": {"connection": {"told": False, "untold_because": "it is NFS"}}},
            "of changes (it is NFS): na",
        ),
    ],
)
def test_mounts_that_are_not_well(
    status: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mount = KernelMount("/m", "fuse.wsfuse", "", 7)
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", str(tmp_path / "run"))
    assert prefetch._examine(mount) == "", "not one of ours"
    claim = registry.Claim("/m")
    claim.write({})
    monkeypatch.setattr(launcher, "status", lambda entry: status)
    try:
        said = prefetch._examine(mount)
    except MountError as exc:
        said = str(exc)
    assert words in said
    assert bool(words) == bool(said)
    claim.release()


def test_the_only_mount_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", str(tmp_path / "run"))
    with pytest.raises(NotMountedError, match="nothing is mounted"):
        prefetch._only()
    claim = registry.Claim("/m")
    claim.write({})
    with pytest.raises(NotMountedError, match="or not yet"):
        prefetch._only()
    mount = KernelMount("/m", "fuse.wsfuse", "", 7)
    monkeypatch.setattr(registry, "kernel_mounts", lambda: [mount])
    assert prefetch._only() == (mount, "/m")
    claim.release()


def test_paths_below_others_are_not_read_twice() -> None:
    assert prefetch._outermost(["/a/b", "/a", "/ab", "/a", "/c/d"]) == ["/a", "/ab", "/c/d"]


# --- how much --------------------------------------------------------------------------------------------------


def test_available_memory(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def available() -> int:
        return prefetch.available(str(tmp_path)) >> 20

    write("proc/meminfo", "MemTotal: 1 kB\nMemAvailable:   1048576 kB\nBuffers: 2 kB\n")
    assert available() == 1024
    write("proc/self/cgroup", "0::/pod/box\n")
    assert available() == 1024, "no such groups here"
    write("sys/fs/cgroup/pod/memory.max", f"{512 << 20}\n")
    write("sys/fs/cgroup/pod/box/memory.max", "max\n")
    assert available() == 512, "that of the group around it"
    write("sys/fs/cgroup/memory.max", f"{256 << 20}\n")
    assert available() == 256, "in a container its own group is the root"
    write("proc/self/cgroup", "3:cpu,memory:/docker/x\n2:pids:/\n")
    assert available() == 1024
    write("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", f"{128 << 20}\n")
    assert available() == 128, "version 1"
    assert prefetch.available() > 1 << 20


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every directory is in a mount."""

    def locate(path: str) -> tuple[KernelMount, str]:
        device = os.stat(path if os.path.exists(path) else "/").st_dev
        return KernelMount("/", "fuse.wsfuse", "", device), os.path.abspath(path)

    monkeypatch.setattr(prefetch, "locate", locate)
    monkeypatch.setattr(prefetch, "_examine", lambda mount: "")
    monkeypatch.setattr(os, "makedev", lambda major, minor: minor)


@pytest.mark.usefixtures("plain")
def test_the_command(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prefetch", str(tree), str(tree / "a")]) == Code.OK
    said = capsys.readouterr()
    assert f"{tree}: read 5 files, 2.0 MiB, in 4 directories in " in said.out
    assert "MiB/s)" in said.out
    assert said.err == ""
    assert main(["prefetch", str(tree), "--metadata"]) == Code.OK
    assert f"{tree}: listed 4 directories with 5 files, 2.0 MiB, in " in capsys.readouterr().out
    assert main(["prefetch", str(tree / "b"), "--threads", "1"]) == Code.OK
    assert "read 1 file, 10 B, in 1 directory in" in capsys.readouterr().out


@pytest.mark.usefixtures("plain")
def test_what_was_left_out_is_said(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["prefetch", str(tree), "--limit", "2k"]) == Code.OK
    assert "Left out: 1 file, 2.0 MiB, because --limit is 2.0 KiB" in capsys.readouterr().out
    monkeypatch.setattr(prefetch, "available", lambda: 4096)
    monkeypatch.setattr(prefetch, "_examine", lambda mount: "The server does not tell.")
    assert main(["prefetch", str(tree)]) == Code.OK
    said = capsys.readouterr().out
    assert (
        "Left out: 1 file, 2.0 MiB, because half of the memory that is available is 2.0 KiB (--limit SIZE allows"
        in said
    )
    assert "The server does not tell." in said
    fetch = Fetch([])
    fetch.counts = Counts(elsewhere=2)
    assert "Left out: 2 on other file systems" in str(prefetch.described(fetch, ["/m"]))


@pytest.mark.usefixtures("plain")
def test_for_programs(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["prefetch", str(tree), str(tree / "nothing"), str(tree.parent / "no"), "--json"]) == Code.FAILED
    )
    said = capsys.readouterr()
    assert said.err == ""
    found = json.loads(said.out)
    assert found.pop("seconds") > 0
    assert found == {
        "paths": [str(tree), str(tree.parent / "no")],
        "directories": 4,
        "files": 5,
        "bytes": WHOLE,
        "found": {"files": 5, "bytes": WHOLE},
        "links": 0,
        "skipped": {"limit": 0, "limit_bytes": 0, "special": 0, "elsewhere": 0, "gone": 0},
        "errors": 1,
        "failed": [{"path": str(tree.parent / "no"), "error": "No such file or directory"}],
        "lost": "",
        "interrupted": False,
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threads", "0"], "1<=x<=64"),
        (["--limit", "lots"], "'lots' must be a number of bytes"),
        (["--limit", "off"], "'off' must be"),
    ],
)
def test_wrong_usage(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prefetch", "/x", *options]) == Code.USAGE
    assert words in capsys.readouterr().err


# --- interrupts ------------------------------------------------------------------------------------------------

#: ``wsfuse prefetch`` of a plain directory, with a reader that says when it reads and does not return (or that returns
#: a little each time, and never all), and what it says at the end of threads that are left.
BLOCKED = """
import functools, os, sys, threading
from jupyter_wsfuse.mount.registry import KernelMount
from jupyter_wsfuse.ui import cli, fetching, prefetch

never = threading.Event()

def readv(fd, buffers):
    if not never.is_set():
        never.set()
        os.write(2, b"reading\\n")
    if sys.argv[1] == "stuck":
        threading.Event().wait()
    return 1

fetching.PIECE = 1
prefetch.Fetch = functools.partial(fetching.Fetch, readv=readv)
prefetch.locate = lambda path: (KernelMount("/", "fuse.wsfuse", "", os.stat(path).st_dev), path)
prefetch._examine = lambda mount: ""
prefetch.os.makedev = lambda major, minor: minor
code = cli.main(sys.argv[2:])
print([t.name for t in threading.enumerate() if "prefetch" in t.name and t.is_alive()], file=sys.stderr)
sys.exit(code)
"""


def blocked(how: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BLOCKED, how, "prefetch", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )  # fmt: skip


@pytest.mark.parametrize("how", ["stuck", "endless"])
def test_ctrl_c(tree: Path, how: str) -> None:
    with open(tree / "endless", "wb") as file:
        file.truncate(1 << 40)
    with blocked(how, tree / "endless", "--limit", "2T", "--threads", "2") as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "reading\n"
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "wsfuse: interrupted after " in said
    assert "Traceback" not in said
    if how == "stuck":
        assert "1 operation still on the way" in said
    else:
        assert "0 of 1 file read" in said
        assert "of 1.0 TiB so far" in said
        assert "still" not in said
        assert said.endswith("\n[]\n"), "no thread is left"


def test_a_bar_on_a_terminal(tree: Path) -> None:
    with open(tree / "endless", "wb") as file:
        file.truncate(1 << 40)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED, "endless", "prefetch", str(tree / "endless"), "--limit", "2T"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE), "TERM": "xterm", "COLUMNS": "150", "LINES": "50"},
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            seen = read_until(ours, rb"Reading.*0 of 1 files.* of 1\.0 TiB.*/s")
            assert b"\x1b[" in seen
            os.killpg(process.pid, signal.SIGINT)
            read_until(ours, rb"wsfuse: interrupted after")
            assert process.wait(PATIENCE) == 130
        finally:
            process.kill()
            os.close(ours)


def read_until(fd: int, pattern: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + PATIENCE
    while not re.search(pattern, seen, re.DOTALL):
        assert select.select([fd], [], [], max(0.0, end - time.monotonic()))[0], seen[-2000:]
        seen += os.read(fd, 65536)
    return seen


def test_ctrl_c_for_programs(tree: Path) -> None:
    with blocked("stuck", tree, "--json") as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "reading\n"
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert json.loads(out)["interrupted"] is True
    assert json.loads(out)["found"]["files"] == 5


def test_an_interrupt_while_listing() -> None:
    fetch = Fetch([])
    fetch.counts = Counts(directories=1, files=2)
    said = prefetch._so_far(fetch, False, 2)
    assert "1 directory with 2 files listed so far; 2 operations still on the way" in said


# --- how far it is ---------------------------------------------------------------------------------------------

HALF = progress.Moment("Reading", 5, 10 << 20, 4.0, 10, 20 << 20)


def test_lines_now_and_then() -> None:
    lines: list[str] = []
    now = [0.0]
    display = progress.Lines(lines.append, lambda: now[0])
    for second in range(23):
        now[0] = float(second)
        display.show(HALF if second > 7 else progress.Moment("Listing", 3, 2048, 1.0))
    display.close()
    assert lines == [
        "Listing: 3 files, 2.0 KiB",
        *["Reading: 5 of 10 files, 10.0 MiB of 20.0 MiB, 2.5 MiB/s, about 4 s left"] * 3,
    ]


@pytest.mark.usefixtures("plain")
def test_lines_in_a_log(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A look each time that something is read."""
    may_read = threading.Semaphore(0)
    show = progress.Lines.show

    def shown(self: progress.Lines, moment: progress.Moment) -> None:
        show(self, moment)
        may_read.release()

    def readv(fd: int, buffers: Any) -> int:
        assert may_read.acquire(timeout=PATIENCE)
        return os.readv(fd, buffers)

    monkeypatch.setattr(progress, "LINES", 0.0)
    monkeypatch.setattr(progress.Lines, "show", shown)
    monkeypatch.setattr(prefetch, "Fetch", functools.partial(Fetch, readv=readv))
    monkeypatch.setattr(prefetch, "_TICK", 0.01)
    assert main(["prefetch", str(tree)]) == Code.OK
    said = capsys.readouterr().err
    assert "wsfuse: Reading: " in said
    assert " of 5 files, " in said


def test_a_picture_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw
            shown.append(data)

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        shown.append(data)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    now = [0.0]
    cell = progress.Cell(lambda: now[0])
    cell.close()
    assert shown == [], "it was over before there was anything to show"
    cell.show(HALF)
    for now[0], moment in ((1.0, progress.Moment("Listing", 3, 2048, 1.0)), (1.1, HALF), (2.0, HALF)):
        cell.show(moment)
    assert len(shown) == 2, "not at every look"
    assert shown[0]["text/plain"].startswith("Listing")
    assert "Reading" in shown[1]["text/plain"]
    assert "5 of 10 files" in shown[1]["text/plain"]
    assert "\x1b" not in shown[1]["text/plain"]
    assert shown[1]["text/html"].startswith("<pre")
    cell.close()
    assert shown[-1] == {"text/plain": "", "text/html": ""}


# --- in a notebook ---------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("WSFUSE_RUNTIME_DIR", str(tmp_path / "run"))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    shell.run_line_magic("load_ext", "jupyter_wsfuse")
    yield shell
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


@pytest.mark.usefixtures("plain")
def test_a_line_of_a_notebook(shell: InteractiveShell, tree: Path) -> None:
    with capture_output() as captured:
        outcome = shell.run_cell(f"%wsfuse prefetch {tree}")
    assert outcome.success
    assert outcome.result.data["files"] == 5
    assert "read 5 files" in str(outcome.result)
    assert captured.stderr == ""
    assert shell.run_cell(f"%wsfuse prefetch --metadata --json {tree}").result["directories"] == 4


@pytest.mark.usefixtures("plain")
def test_an_interrupted_line_fails(
    shell: InteractiveShell, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that "run all" stops here."""

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prefetch, "bring", interrupted)
    outcome = shell.run_cell(f"%wsfuse prefetch {tree}")
    said = "".join(capsys.readouterr())
    assert not outcome.success
    assert "wsfuse: interrupted after " in said
    assert "0 directories with 0 files listed so far" in said
    assert "Traceback" not in said


# --- real mounts -----------------------------------------------------------------------------------------------


def made(mount: Mount) -> tuple[Path, int]:
    """Small files in three directories and a large one, as the mount shows them; and their bytes together."""
    top = mount.source / "data"
    for name in ("a", "b", "c"):
        (top / name).mkdir(parents=True)
        for number in range(20):
            (top / name / f"{number}.txt").write_bytes(b"x" * 5000)
    (top / "large").write_bytes(b"y" * (3 * PIECE))
    (top / "link").symlink_to("a/1.txt")
    return mount.path / "data", 60 * 5000 + 3 * PIECE


def root_of(mount: Mount) -> str:
    return str(mount.path.parent)


def stats(mount: Mount, *options: str) -> dict[str, Any]:
    return dict(json.loads(run("stats", root_of(mount), "--json", *options, env=mount.env).stdout))


@pytest.mark.mount
def test_nobody_waits_afterwards(live_mount: Mount) -> None:
    directory, whole = made(live_mount)
    found = json.loads(run("prefetch", directory, "--json", env=live_mount.env).stdout)
    assert (found["files"], found["bytes"], found["directories"], found["errors"]) == (61, whole, 4, 0)
    assert found["links"] == 1
    stats(live_mount, "--reset")
    seen = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            seen += len(Path(folder, name).read_bytes())
    assert seen == whole + 5000, "a link, too"
    operations = stats(live_mount)["operations"]
    asked = {name: row["asked"] for name, row in operations.items() if row["asked"]}
    assert asked == {}


@pytest.mark.mount
def test_only_a_part_of_a_mount(live_mount: Mount) -> None:
    directory, _ = made(live_mount)
    said = run("prefetch", directory / "a", directory / "large", "--limit", "200k", env=live_mount.env).stdout
    assert f"{directory}/a, {directory}/large: read 20 files, 97.7 KiB, in 1 directory in " in said
    assert "Left out: 1 file, 3.0 MiB, because --limit is 200.0 KiB" in said
    done = run("prefetch", live_mount.source, env=live_mount.env, check=False)
    assert done.returncode == Code.NOT_MOUNTED
    assert f"{live_mount.source} is not in a mount of wsfuse" in done.stderr


@pytest.mark.mount
def test_a_mount_that_remembers_nothing(uncached_mount: Mount) -> None:
    done = run("prefetch", uncached_mount.path, env=uncached_mount.env, check=False)
    assert done.returncode == Code.FAILED
    assert f"{root_of(uncached_mount)} was mounted with --cache off" in done.stderr


@pytest.mark.mount
@pytest.mark.jupyter
def test_a_kernel(live_mount: Mount) -> None:
    """Its picture, and the interrupt of a read that would go on for long."""
    directory, whole = made(live_mount)
    kernel = Kernel(Path(live_mount.env["HOME"]))
    try:
        assert kernel.run("%load_ext jupyter_wsfuse")[0] == "ok"
        status, shown = kernel.run(f"r = %wsfuse prefetch {directory}\nprint(r.data['bytes'])")
        assert status == "ok", shown
        assert str(whole) in shown
        assert "Warning" not in shown
        code = """import functools, os, threading
from jupyter_wsfuse.ui import fetching, prefetch, progress
progress.PICTURES = 0.01
prefetch.Fetch = functools.partial(fetching.Fetch, readv=lambda fd, buffers: os.preadv(fd, buffers, 0) and 1)"""
        assert kernel.run(code)[0] == "ok"
        pictures: list[str] = []
        others: list[str] = []

        def on_message(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] in ("display_data", "update_display_data"):
                pictures.append(content["data"]["text/plain"])
                assert "text/html" in content["data"]
                if len(pictures) == 3:
                    kernel.interrupt()
            elif message["msg_type"] in ("stream", "error"):
                others.append(content.get("text") or "\n".join(content["traceback"]))

        status, _ = kernel.run(f"%wsfuse prefetch {directory}", on_message)
        assert status == "error"
        assert "wsfuse: interrupted after" in "".join(others)
        assert "Traceback" not in "".join(others)
        assert any("Reading" in picture and "of 61 files" in picture for picture in pictures)
        assert pictures[-1] == "", "taken away"
        code = "print([t.name for t in threading.enumerate() if 'prefetch' in t.name])"
        assert kernel.run(code)[1].strip() == "[]"
    finally:
        kernel.stop()
