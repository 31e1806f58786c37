"""What people keep in a workspace: odd names, deep trees, huge directories, sparse files, databases, repositories."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.live import Mount

pytestmark = pytest.mark.mount

GIT_ENV = {
    **os.environ,
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
}  # fmt: skip


def git(*arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=cwd,
        env=GIT_ENV,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_names_are_bytes(live_mount: Mount) -> None:
    root = os.fsencode(live_mount.path)
    names = {
        b"\xff\xfe\x80",
        b"n" * 255,
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        b" ",
        b"new\nline",
        b"-rf",
        b"...",
        b"a\\b",
    }
    for name in names:
        with open(os.path.join(root, name), "wb") as file:
            file.write(name)
    assert set(os.listdir(root)) == names == set(os.listdir(os.fsencode(live_mount.source)))
    for name in names:
        with open(os.path.join(root, name), "rb") as file:
            assert file.read() == name


def test_deep_tree(live_mount: Mount) -> None:
    """Deeper than PATH_MAX, reached step by step as tar and rm do."""
    depth, name = 60, "d" * 100
    fd = os.open(live_mount.path, os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    assert len(list(os.fwalk(live_mount.source))) == depth + 1
    subprocess.run(["rm", "-r", live_mount.path / name], check=True)
    assert os.listdir(live_mount.source) == []


@pytest.mark.timeout(600)
def test_directory_of_100_000_entries(live_mount: Mount) -> None:
    (live_mount.source / "big").mkdir()
    fd = os.open(live_mount.source / "big", os.O_DIRECTORY)
    for number in range(100_000):
        os.close(os.open(f"file-{number:06}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    expected = {f"file-{number:06}" for number in range(100_000)}
    big = live_mount.path / "big"
    listed = os.listdir(big)
    assert len(listed) == 100_000
    assert set(listed) == expected
    assert sum(entry.stat().st_size for entry in os.scandir(big)) == 0
    with os.scandir(big) as entries:  # removing while listing, as rm -r does
        for number, entry in enumerate(entries):
            if number % 20 == 0:
                os.unlink(entry)
    assert set(os.listdir(big)) == set(os.listdir(live_mount.source / "big"))
    assert len(os.listdir(big)) == 95_000


def test_sparse_file_of_10_gib(live_mount: Mount) -> None:
    path, size = live_mount.path / "sparse", 10 << 30
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(5 << 30)
        file.write(b"island")
    info = path.stat()
    assert info.st_size == size
    assert info.st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        data = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        assert data <= 5 << 30 < data + (1 << 20)
        hole = os.lseek(file.fileno(), data, os.SEEK_HOLE)
        assert 5 << 30 < hole <= (5 << 30) + (1 << 20)
        assert os.pread(file.fileno(), 6, 5 << 30) == b"island"
        with pytest.raises(OSError, match="No such device"):
            os.lseek(file.fileno(), hole, os.SEEK_DATA)
    before = live_mount.source / "sparse"
    assert before.stat().st_blocks == path.stat().st_blocks


def test_shared_mapping_is_written_back(live_mount: Mount) -> None:
    path = live_mount.path / "mapped"
    path.write_bytes(bytes(3 * 4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as one, mmap.mmap(file.fileno(), 0) as two:
        one[5000:5005] = b"hello"
        assert two[5000:5005] == b"hello"
        one.flush()
        assert (live_mount.source / "mapped").read_bytes()[5000:5005] == b"hello"
        file.seek(0)
        file.write(b"by write")
        file.flush()
        assert one[:8] == b"by write"


def test_program_runs_from_the_mount(live_mount: Mount) -> None:
    script = live_mount.path / "tool"
    script.write_text("#!/bin/sh\necho it runs\n")
    with pytest.raises(PermissionError):
        subprocess.run([script], check=True)
    script.chmod(0o755)
    assert subprocess.run([script], capture_output=True, text=True, check=True).stdout == "it runs\n"
    shutil.copy2("/bin/true", live_mount.path / "true")
    subprocess.run([live_mount.path / "true"], check=True)


def test_fifo_and_socket_are_local_to_the_kernel(live_mount: Mount) -> None:
    fifo = live_mount.path / "fifo"
    os.mkfifo(fifo)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_text()))
    reader.start()
    fifo.write_text("through")
    reader.join(30)
    assert got == ["through"]
    with pytest.raises(PermissionError):
        os.mknod(live_mount.path / "device", 0o020600, os.makedev(1, 3))


def test_unlinked_but_open(live_mount: Mount) -> None:
    path = live_mount.path / "temporary"
    with path.open("w+b") as file:
        file.write(b"kept")
        file.flush()
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0)
        assert file.read() == b"kept"
        os.fchmod(file.fileno(), 0o600)
        file.truncate(2)
        assert os.fstat(file.fileno()).st_size == 2
    assert os.listdir(live_mount.source) == []


def test_file_without_a_name(live_mount: Mount) -> None:
    fd = os.open(live_mount.path, os.O_TMPFILE | os.O_RDWR, 0o644)
    try:
        os.write(fd, b"now it has one")
        # Only with a directory descriptor does Python follow the link, as the manual of open(2) tells one to.
        directory = os.open(live_mount.path, os.O_DIRECTORY)
        os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=directory)
        os.close(directory)
    finally:
        os.close(fd)
    assert (live_mount.source / "named").read_bytes() == b"now it has one"


def test_birth_time(live_mount: Mount) -> None:
    (live_mount.source / "born").touch()
    shown = [
        subprocess.run(
            ["stat", "-c", "%W", place / "born"], capture_output=True, text=True, check=True
        ).stdout
        for place in (live_mount.path, live_mount.source)
    ]
    assert shown[0] == shown[1] != "0\n"


def test_removed_working_directory(live_mount: Mount) -> None:
    script = (
        "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); s = os.stat('.'); print(s.st_nlink)"
    )
    results = []
    for place in (live_mount.path, live_mount.source):
        (place / "here").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", script, place / "here"], capture_output=True, text=True, check=False
        )
        results.append((done.returncode, done.stdout))
    assert results[0] == results[1]


@pytest.mark.parametrize("journal", ["delete", "truncate", "wal"])
def test_sqlite_database(live_mount: Mount, journal: str) -> None:
    path = live_mount.path / "data.sqlite"
    database = sqlite3.connect(path, timeout=30)
    database.execute(f"pragma journal_mode={journal}")
    database.execute("create table rows (number integer primary key, word text)")
    for number in range(20):
        with database:
            database.execute("insert into rows values (?, ?)", (number, "word" * number))
    other = sqlite3.connect(path, timeout=30)
    assert other.execute("select count(*) from rows").fetchone() == (20,)
    with other:
        other.execute("delete from rows where number < 10")
    assert database.execute("select count(*) from rows").fetchone() == (10,)
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    other.close()
    database.close()


def test_sqlite_from_two_mounts_and_the_server(live_mount: Mount, second_mount: Mount) -> None:
    places = [live_mount.path, second_mount.path, live_mount.source]
    with sqlite3.connect(live_mount.source / "shared.sqlite") as database:
        database.execute("create table log (place integer, number integer)")
    database.close()
    script = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for number in range(20):
    database.execute("begin immediate")
    (count,) = database.execute("select count(*) from log").fetchone()
    database.execute("insert into log values (?, ?)", (int(sys.argv[2]), count))
    database.execute("commit")
"""
    running = [
        subprocess.Popen([sys.executable, "-c", script, place / "shared.sqlite", str(number)])
        for number, place in enumerate(places)
    ]
    for process in running:
        assert process.wait(90) == 0
    database = sqlite3.connect(live_mount.source / "shared.sqlite")
    assert sorted(n for (n,) in database.execute("select number from log")) == list(range(60))
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()


def test_git_repository(live_mount: Mount, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git("init", "-q", "-b", "main", cwd=origin)
    for number in range(50):
        (origin / f"file{number}.txt").write_text(f"line {number}\n" * 20)
    git("add", ".", cwd=origin)
    git("commit", "-q", "-m", "first", cwd=origin)
    git("clone", "-q", origin, live_mount.path / "clone", cwd=tmp_path)
    clone = live_mount.path / "clone"
    assert git("status", "--porcelain", cwd=clone) == ""
    (clone / "file1.txt").write_text("changed\n")
    (clone / "file2.txt").unlink()
    assert git("status", "--porcelain", cwd=clone).split() == ["M", "file1.txt", "D", "file2.txt"]
    git("commit", "-q", "-a", "-m", "second", cwd=clone)
    git("checkout", "-q", "-b", "branch", "HEAD~1", cwd=clone)
    git("merge", "-q", "main", cwd=clone)
    git("gc", "-q", cwd=clone)
    git("fsck", "--strict", cwd=clone)
    assert len(git("log", "--oneline", cwd=clone).splitlines()) == 2


def test_two_mounts_see_each_other(live_mount: Mount, second_mount: Mount) -> None:
    one, two = live_mount.path / "file", second_mount.path / "file"
    one.write_text("first")
    assert two.read_text() == "first"
    two.write_text("second, longer")
    with one.open() as file:
        assert file.read() == "second, longer"
    two.unlink()
    with pytest.raises(FileNotFoundError):
        one.open()


def test_listing_the_mount_through_the_server_that_serves_it(mount_inside: Mount) -> None:
    """The mount lies below the root of the very server that serves it, and its contents API lists it."""
    (mount_inside.source / "seen.txt").write_text("x")

    def contents(path: str) -> list[str]:
        request = urllib.request.Request(
            f"{mount_inside.server.url}api/contents/{path}",
            headers={"Authorization": f"token {mount_inside.server.token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return sorted(entry["name"] for entry in json.load(reply)["content"])

    inside = mount_inside.path.name
    assert "seen.txt" in contents(inside)
    assert "seen.txt" in contents("")
    # One level further would be the mount within the mount: the engine never walks into it.
    assert inside not in contents(inside)
    with pytest.raises(PermissionError):
        os.stat(mount_inside.path / inside)
