"""File data on a local disk: never wrong, never too much, never an error."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_wsfuse.client import pagestore
from jupyter_wsfuse.client.pagestore import AsyncPageStore, PageStore
from jupyter_wsfuse.errors import MountError
from jupyter_wsfuse.protocol.messages import Identity

KIB, MIB = 1 << 10, 1 << 20
FILE = Identity(1, 2, 3)
OTHER = Identity(1, 2, 4)
VERSION = (10, 20, 30)
PAGE = 4096
#: Bytes before the data.
HEADER = 84

MakeStore = Callable[..., PageStore]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[MakeStore]:
    """A function that opens a store in the folder of this test."""
    stores: list[PageStore] = []

    def open_store(limit: int = 100 * MIB, folder: Path = tmp_path / "pages") -> PageStore:
        stores.append(PageStore(folder, limit, clock))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(make: MakeStore) -> PageStore:
    return make()


def data_of(number: int, size: int = 5000) -> bytes:
    return random.Random(number).randbytes(size)


def blocks_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("?/?/*"))


def bytes_in(folder: Path) -> int:
    """What blocks take, counted independently."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in blocks_in(folder))


# --- what is given back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4000, MIB])
def test_what_was_put(store: PageStore, size: int) -> None:
    store.put(FILE, VERSION, 7, data_of(1, size))
    assert store.get(FILE, VERSION, 7) == data_of(1, size)
    assert store.get(FILE, VERSION, 7) == data_of(1, size)


def test_a_view_of_it(store: PageStore) -> None:
    store.put(FILE, VERSION, 0, memoryview(b"0123456789")[2:5])
    assert store.get(FILE, VERSION, 0) == b"234"


def test_the_last_that_was_put(store: PageStore, tmp_path: Path) -> None:
    store.put(FILE, VERSION, 0, data_of(1, 50_000))
    store.put(FILE, VERSION, 0, data_of(2, 100))
    assert store.get(FILE, VERSION, 0) == data_of(2, 100)
    assert store.size == PAGE == bytes_in(tmp_path / "pages")


@pytest.mark.parametrize(
    ("identity", "version", "index"),
    [
        (Identity(2, 2, 3), VERSION, 0),
        (Identity(1, 3, 3), VERSION, 0),
        (Identity(1, 2, 4), VERSION, 0),
        (FILE, (11, 20, 30), 0),
        (FILE, (10, 21, 30), 0),
        (FILE, (10, 20, 31), 0),
        (FILE, VERSION, 1),
        (FILE, VERSION, -1),
        (FILE, VERSION, 1 << 70),
        (Identity(-1, 1 << 70, 3), VERSION, 0),
    ],
)
def test_nothing_of_anything_else(
    store: PageStore, identity: Identity, version: tuple[int, int, int], index: int
) -> None:
    store.put(FILE, VERSION, 0, b"data")
    assert store.get(identity, version, index) is None
    assert store.get(FILE, VERSION, 0) == b"data"


def test_nothing_of_anything_else_even_under_its_name(store: PageStore, tmp_path: Path) -> None:
    store.put(FILE, VERSION, 0, b"data")
    store.put(OTHER, VERSION, 0, b"others")
    names = blocks_in(tmp_path / "pages")
    contents = [path.read_bytes() for path in names]
    names[0].write_bytes(contents[1])
    names[1].write_bytes(contents[0])
    assert store.get(FILE, VERSION, 0) is None
    assert store.get(OTHER, VERSION, 0) is None
    assert store.snapshot()["corrupt"] == 2


def test_numbers_that_no_file_has(store: PageStore, tmp_path: Path) -> None:
    store.put(Identity(-1, 0, 0), VERSION, 0, b"data")
    store.put(FILE, (1 << 70, 0, 0), 0, b"data")
    store.put(FILE, VERSION, -1, b"data")
    assert blocks_in(tmp_path / "pages") == []
    assert store.snapshot()["refused"] == 3


def test_times_before_1970(store: PageStore) -> None:
    store.put(Identity(2**64 - 1, 2**64 - 1, -1), (0, -5, -(2**63)), 2**64 - 1, b"data")
    assert store.get(Identity(2**64 - 1, 2**64 - 1, -1), (0, -5, -(2**63)), 2**64 - 1) == b"data"


def test_names_tell_nothing(store: PageStore, tmp_path: Path) -> None:
    store.put(Identity(0xABCD, 123456789, 987654321), (4711, 5, 6), 0, b"data")
    (path,) = blocks_in(tmp_path / "pages")
    for number in ("123456789", "987654321", "4711", f"{123456789:x}", "abcd-"):
        assert number not in path.name


def test_it_is_there_the_next_time(make: MakeStore) -> None:
    first = make()
    for index in range(20):
        first.put(FILE, VERSION, index, data_of(index))
    second = make()
    assert [second.get(FILE, VERSION, index) for index in range(20)] == [data_of(n) for n in range(20)]
    assert second.size == first.size
    assert second.snapshot()["hits"] == 20


def test_drop_and_clear(store: PageStore, tmp_path: Path) -> None:
    for identity in (FILE, OTHER):
        for version in (VERSION, (1, 1, 1)):
            for index in range(3):
                store.put(identity, version, index, b"data")
    store.drop(FILE)
    assert store.get(FILE, VERSION, 0) is None
    assert store.get(FILE, (1, 1, 1), 2) is None
    assert store.get(OTHER, VERSION, 1) == b"data"
    assert store.size == bytes_in(tmp_path / "pages") == 6 * PAGE
    store.drop(FILE)
    store.clear()
    assert store.get(OTHER, VERSION, 1) is None
    assert store.size == 0
    assert blocks_in(tmp_path / "pages") == []
    assert store.snapshot()["files"] == 0


def test_numbers(store: PageStore) -> None:
    store.put(FILE, VERSION, 0, data_of(0))
    store.get(FILE, VERSION, 0)
    store.get(FILE, VERSION, 1)
    assert store.snapshot() == {
        "bytes": 2 * PAGE,
        "limit": 100 * MIB,
        "files": 1,
        "hits": 1,
        "misses": 1,
        "stored": 1,
        "evicted": 0,
        "corrupt": 0,
        "refused": 0,
        "failed": 0,
    }


def test_a_folder_that_is_not_ours_alone(make: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(0o755)
    with pytest.raises(MountError, match="chmod 700"):
        make(folder=tmp_path / "open")


# --- what is damaged --------------------------------------------------------------------------------------


def _damages(size: int) -> Iterator[tuple[int, int | None]]:
    """Where, and which bit is flipped, or None: cut off there."""
    places = [*range(HEADER + 16), *range(HEADER + 16, size, 997), size - 1]
    for place in places:
        yield place, None
        yield place, place % 8


def test_damage_is_noticed(store: PageStore, tmp_path: Path) -> None:
    data = data_of(1)
    count = 0
    for place, bit in _damages(HEADER + len(data)):
        store.put(FILE, VERSION, 5, data)
        (path,) = blocks_in(tmp_path / "pages")
        content = bytearray(path.read_bytes())
        assert len(content) == HEADER + len(data)
        if bit is None:
            del content[place:]
        else:
            content[place] ^= 1 << bit
        path.write_bytes(content)
        assert store.get(FILE, VERSION, 5) is None, (place, bit)
        assert not path.exists()
        count += 1
    assert store.snapshot()["corrupt"] == count
    assert store.get(FILE, VERSION, 5) is None


@pytest.mark.parametrize("more", [b"\0", bytes(10_000)])
def test_what_is_too_long_is_noticed(store: PageStore, tmp_path: Path, more: bytes) -> None:
    store.put(FILE, VERSION, 0, b"data")
    (path,) = blocks_in(tmp_path / "pages")
    with path.open("ab") as file:
        file.write(more)
    assert store.get(FILE, VERSION, 0) is None
    store.put(FILE, VERSION, 0, b"data")
    assert store.get(FILE, VERSION, 0) == b"data"


def test_zeros_after_a_crash(store: PageStore, tmp_path: Path) -> None:
    store.put(FILE, VERSION, 0, data_of(1))
    (path,) = blocks_in(tmp_path / "pages")
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)
    assert store.get(FILE, VERSION, 0) is None


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> Iterator[None]:
    def fail(*args: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        yield


@pytest.mark.parametrize("call", ["open", "fstat", "pread"])
def test_a_bad_disk_while_reading(store: PageStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store.put(FILE, VERSION, 0, b"data")
    with failing(monkeypatch, call, errno.EIO):
        assert store.get(FILE, VERSION, 0) is None
    assert store.snapshot()["failed"] == 1
    assert store.get(FILE, VERSION, 0) == b"data"


def test_a_disk_that_became_read_only(
    store: PageStore, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    store.put(FILE, VERSION, 0, b"data")
    clock.now += 3600
    with failing(monkeypatch, "utime", errno.EROFS):
        assert store.get(FILE, VERSION, 0) == b"data"
        store.put(FILE, VERSION, 1, b"data")
    with failing(monkeypatch, "unlink", errno.EROFS):
        store.drop(FILE)
    assert store.snapshot()["failed"] == 2
    assert store.get(FILE, VERSION, 0) == b"data"


def test_the_folder_is_removed_under_it(store: PageStore, tmp_path: Path) -> None:
    store.put(FILE, VERSION, 0, b"data")
    shutil.rmtree(tmp_path / "pages")
    assert store.get(FILE, VERSION, 0) is None
    store.put(FILE, VERSION, 0, b"data")
    store.drop(FILE)
    store.clear()
    assert store.snapshot()["failed"] == 1


# --- the bound --------------------------------------------------------------------------------------------


def test_the_bound_is_kept(make: MakeStore, tmp_path: Path) -> None:
    store = make(10 * MIB)
    for index in range(50):
        store.put(FILE, VERSION, index, data_of(index, MIB // 2))
        assert bytes_in(tmp_path / "pages") <= store.size <= 10 * MIB
    kept = [index for index in range(50) if store.get(FILE, VERSION, index) is not None]
    assert kept == list(range(50 - len(kept), 50))  # those that were put last
    assert len(kept) >= 0.9 * 10 * MIB // (MIB // 2 + PAGE) - 1
    assert store.snapshot()["evicted"] == 50 - len(kept)


def test_a_small_bound(make: MakeStore, tmp_path: Path) -> None:
    store = make(2 * PAGE)
    store.put(FILE, VERSION, 0, bytes(2 * PAGE))
    assert store.snapshot()["refused"] == 1
    for index in range(5):
        store.put(FILE, VERSION, index, data_of(index))
        assert store.get(FILE, VERSION, index) == data_of(index)
        assert bytes_in(tmp_path / "pages") <= 2 * PAGE


def test_nothing_fits(make: MakeStore, tmp_path: Path) -> None:
    store = make(0)
    store.put(FILE, VERSION, 0, b"")
    assert store.get(FILE, VERSION, 0) is None
    assert blocks_in(tmp_path / "pages") == []


def test_what_is_used_stays(make: MakeStore, clock: Clock) -> None:
    store = make(10 * 2 * PAGE)
    for index in range(10):
        store.put(FILE, VERSION, index, data_of(index))
    store.get(FILE, VERSION, 0)
    for index in range(10, 18):
        clock.now += 61
        store.put(FILE, VERSION, index, data_of(index))
        assert store.get(FILE, VERSION, 0) == data_of(0)
    assert store.get(FILE, VERSION, 1) is None


def test_what_was_used_last_time_stays(make: MakeStore, clock: Clock) -> None:
    store = make(10 * 2 * PAGE)
    for index in range(10):
        store.put(FILE, VERSION, index, data_of(index))
        clock.now += 61
    store.get(FILE, VERSION, 0)
    store = make(10 * 2 * PAGE)
    store.put(FILE, VERSION, 10, data_of(10))
    assert store.get(FILE, VERSION, 0) == data_of(0)
    assert store.get(FILE, VERSION, 1) is None


def test_a_use_is_noted_once_a_minute(
    store: PageStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[float] = []
    really = os.utime
    monkeypatch.setattr(os, "utime", lambda fd, times: (noted.append(times[0]), really(fd, times)))
    store.put(FILE, VERSION, 0, b"data")
    for _ in range(10):
        store.get(FILE, VERSION, 0)
    assert len(noted) == 1
    for _ in range(240):
        clock.now += 1
        store.get(FILE, VERSION, 0)
    assert len(noted) == 1 + 4


def test_another_process_uses_what_would_go(make: MakeStore, clock: Clock) -> None:
    store, other = make(10 * 2 * PAGE), make(10 * 2 * PAGE)
    for index in range(10):
        store.put(FILE, VERSION, index, data_of(index))
        clock.now += 61  # nothing is looked at again before ten minutes are over
    assert other.get(FILE, VERSION, 0) == data_of(0)
    clock.now -= 61
    store.put(FILE, VERSION, 10, data_of(10))
    assert store.get(FILE, VERSION, 0) == data_of(0)
    assert store.get(FILE, VERSION, 1) is None


def test_what_others_stored_goes_as_well(make: MakeStore, tmp_path: Path, clock: Clock) -> None:
    store, other = make(10 * 2 * PAGE), make(10 * 2 * PAGE)
    store.put(FILE, VERSION, 0, data_of(0))
    for index in range(1, 9):
        other.put(FILE, VERSION, index, data_of(index))
    clock.now += 61
    for index in range(10, 19):
        store.put(FILE, VERSION, index, data_of(index))
        assert bytes_in(tmp_path / "pages") <= store.size <= 10 * 2 * PAGE
    assert store.get(FILE, VERSION, 18) == data_of(18)


def test_what_others_removed_is_not_counted_twice(make: MakeStore, tmp_path: Path) -> None:
    store, other = make(10 * 2 * PAGE), make(10 * 2 * PAGE)
    for index in range(10):
        store.put(FILE if index < 4 else OTHER, VERSION, index, data_of(index))
    other.drop(FILE)
    assert store.size == 6 * 2 * PAGE
    for index in range(10, 15):
        store.put(OTHER, VERSION, index, data_of(index))
        assert store.size == bytes_in(tmp_path / "pages")
    assert store.get(OTHER, VERSION, 14) == data_of(14)


def test_what_cannot_be_removed_is_counted(
    make: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(3 * 2 * PAGE)
    for index in range(3):
        store.put(FILE, VERSION, index, data_of(index))
    with failing(monkeypatch, "unlink", errno.EPERM):
        store.put(FILE, VERSION, 3, data_of(3))
    assert store.size == bytes_in(tmp_path / "pages") == 3 * 2 * PAGE
    assert store.snapshot()["refused"] == 1
    store.put(FILE, VERSION, 3, data_of(3))
    assert store.get(FILE, VERSION, 3) == data_of(3)


def test_what_was_removed_by_hand_is_noticed_in_time(make: MakeStore, tmp_path: Path, clock: Clock) -> None:
    store = make(20 * 2 * PAGE)
    for index in range(20):
        store.put(FILE, VERSION, index, data_of(index))
    for path in blocks_in(tmp_path / "pages")[:15]:
        path.unlink()
    assert store.size == 20 * 2 * PAGE
    clock.now += 601
    store.put(FILE, VERSION, 20, data_of(20))
    assert store.size == bytes_in(tmp_path / "pages") == 6 * 2 * PAGE
    assert store.snapshot()["evicted"] == 0


def test_a_clock_that_went_back(make: MakeStore, clock: Clock) -> None:
    store = make(10 * 2 * PAGE)
    for index in range(20):
        store.put(FILE, VERSION, index, data_of(index))
        clock.now -= 10_000
        assert store.get(FILE, VERSION, index) == data_of(index)
        assert store.size <= store.limit


def test_not_too_many_files(make: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagestore, "_MOST_FILES", 20)
    store = make()
    for index in range(100):
        store.put(FILE, VERSION, index, b"data")
        assert len(blocks_in(tmp_path / "pages")) <= 20
    assert store.get(FILE, VERSION, 99) == b"data"


def test_the_lock_is_not_waited_for(make: MakeStore, tmp_path: Path) -> None:
    store, other = make(), make()
    store.put(FILE, VERSION, 0, b"data")
    store.put(FILE, VERSION, 1, b"data")
    with other._folder.locked() as held:
        assert held
        store.put(FILE, VERSION, 2, b"data")
        assert store.get(FILE, VERSION, 0) == b"data"
        store.drop(FILE)
        assert blocks_in(tmp_path / "pages") == []
        make().scan()
    assert store.snapshot()["refused"] == 1
    assert store.size == 2 * PAGE  # too much, until somebody looks
    store.scan()
    assert store.size == 0


def test_a_count_that_was_lost(make: MakeStore, tmp_path: Path) -> None:
    store = make()
    store.put(FILE, VERSION, 0, b"data")
    (tmp_path / "pages" / "lock").write_bytes(b"")
    assert store.size == PAGE
    store.put(FILE, VERSION, 1, b"data")
    (tmp_path / "pages" / "lock").write_bytes(b"")
    store.drop(FILE)
    assert store.size == 0


# --- a disk that is full ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(path)]
    subprocess.run(mounted, check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(PAGE))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def test_a_disk_that_is_full_of_ours(small_disk: Path, make: MakeStore) -> None:
    store = make(100 * MIB, small_disk / "pages")
    for index in range(40):
        store.put(FILE, VERSION, index, data_of(index, MIB // 3))
    found = [store.get(FILE, VERSION, index) for index in range(40)]
    assert all(data is None or data == data_of(index, MIB // 3) for index, data in enumerate(found))
    assert found[-1] is not None
    assert store.snapshot()["evicted"] > 0
    assert store.snapshot()["failed"] == 0
    assert not list((small_disk / "pages").glob("new-*"))
    assert store.size == bytes_in(small_disk / "pages")


def test_a_disk_that_is_full_of_others(small_disk: Path, make: MakeStore) -> None:
    store = make(100 * MIB, small_disk / "pages")
    store.put(FILE, VERSION, 0, data_of(0))
    fill(small_disk)
    for index in range(1, 10):
        store.put(FILE, VERSION, index, data_of(index, MIB))
        assert store.get(FILE, VERSION, index) is None
    assert store.snapshot()["refused"] == 9
    assert store.snapshot()["failed"] == 0
    (small_disk / "filler").unlink()
    store.put(FILE, VERSION, 10, data_of(10, MIB))
    assert store.get(FILE, VERSION, 10) == data_of(10, MIB)


def test_a_disk_that_is_full_from_the_start(small_disk: Path, make: MakeStore) -> None:
    (small_disk / "pages").mkdir(0o700)
    fill(small_disk)
    store = make(100 * MIB, small_disk / "pages")
    store.put(FILE, VERSION, 0, b"data")
    assert store.get(FILE, VERSION, 0) is None
    assert store.size == 0
    (small_disk / "filler").unlink()
    store.put(FILE, VERSION, 0, b"data")
    assert store.get(FILE, VERSION, 0) == b"data"
    make(100 * MIB, small_disk / "pages")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota(store: PageStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    for index in range(10):
        store.put(FILE, VERSION, index, b"data")
    with failing(monkeypatch, "write", number):
        store.put(FILE, VERSION, 10, b"data")
    numbers = store.snapshot()
    assert (numbers["refused"], numbers["failed"], numbers["evicted"]) == (1, 0, 2)
    assert store.size == 8 * PAGE


# --- several processes, and their deaths ------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from jupyter_wsfuse.client.pagestore import PageStore
from jupyter_wsfuse.protocol.messages import Identity

folder, limit = Path(sys.argv[1]), 20 * 8192
CALLS = ("open", "write", "utime", "rename", "pwrite", "mkdir", "unlink", "close")

def data_of(index):
    return bytes([index % 251]) * 5000

def put_some(deadly):
    count = 0
    def counted(call):
        def wrapper(*args, **more):
            nonlocal count
            count += 1
            if count == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if call == "write" and count + 1 == deadly:
                return really[call](args[0], bytes(args[1])[:1000])  # the rest never follows
            return really[call](*args, **more)
        return wrapper
    really = {call: getattr(os, call) for call in CALLS}
    store = PageStore(folder, limit)
    store.scan()
    for call in CALLS:
        setattr(os, call, counted(call))
    for index in range(deadly, deadly + 12):
        store.put(Identity(1, index % 5, 0), (1, 2, 3), index, data_of(index))
    os._exit(0)

died = 0
for deadly in range(1, 81):
    child = os.fork()
    if not child:
        put_some(deadly)
    died += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    store = PageStore(folder, limit)
    count = store.size
    taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.glob("?/?/*"))
    assert taken <= count, (deadly, taken, count)
    for index in range(deadly + 12):
        assert store.get(Identity(1, index % 5, 0), (1, 2, 3), index) in (None, data_of(index)), index
    assert store.snapshot()["corrupt"] == 0  # whole or not at all, while the machine lives
    store.put(Identity(1, 1, 1), (1, 2, 3), 0, b"data")
    assert store.get(Identity(1, 1, 1), (1, 2, 3), 0) == b"data"
    assert store.size <= limit
    assert not list(folder.glob("new-*"))
    store.close()
print(died)
"""


def test_killed_at_the_nth_call(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "pages")], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert int(done.stdout) == 80


SHARING = """
import random, sys
from pathlib import Path
from jupyter_wsfuse.client.pagestore import PageStore
from jupyter_wsfuse.protocol.messages import Identity

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
limit = 60 * 8192
chance = random.Random(seed)
store = PageStore(folder, limit)
found = 0
for step in range(1500):
    file, index = chance.randrange(4), chance.randrange(40)
    identity, version = Identity(1, file, 0), (file, 0, chance.randrange(2))
    data = random.Random(repr((identity, version, index))).randbytes(5000)
    kind = chance.random()
    if kind < 0.5:
        store.put(identity, version, index, data)
    elif kind < 0.99:
        got = store.get(identity, version, index)
        assert got is None or got == data
        found += got is not None
    else:
        store.drop(identity)
    if step % 50 == 0:
        with store._folder.locked() as held:
            if held:
                taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.glob("?/?/*"))
                assert taken <= store.size, (taken, store.size)
                assert store.size <= limit, store.size
numbers = store.snapshot()
assert numbers["corrupt"] == numbers["failed"] == 0, numbers
print(found)
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, str(tmp_path / "pages"), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    for process in processes:
        out, error = process.communicate(timeout=100)
        assert error == ""
        assert int(out) > 0
    assert bytes_in(tmp_path / "pages") <= 60 * 8192


# --- against a dict ---------------------------------------------------------------------------------------

KEYS = st.tuples(
    st.sampled_from([FILE, OTHER, Identity(7, 7, 7)]),
    st.sampled_from([VERSION, (1, 1, 1)]),
    st.integers(0, 3),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, 20_000)),
        st.tuples(st.just("get"), KEYS, st.just(0)),
        st.tuples(st.just("damage"), KEYS, st.integers(0, 30_000)),
        st.tuples(st.sampled_from(["drop", "clear", "scan", "again", "wait"]), KEYS, st.just(0)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(steps=STEPS, limit=st.sampled_from([0, 2 * PAGE, 20 * PAGE, 100 * MIB]))
def test_it_is_a_dict_that_forgets(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, tuple[Identity, tuple[int, int, int], int], int]],
    limit: int,
) -> None:
    folder = tmp_path_factory.mktemp("model") / "pages"
    clock = Clock()
    store = PageStore(folder, limit, clock)
    known: dict[tuple[Identity, tuple[int, int, int], int], bytes] = {}
    whole = limit == 100 * MIB  # nothing is ever evicted
    for number, (step, key, size) in enumerate(steps):
        if step == "put":
            data = data_of(number, size)
            store.put(*key, data)
            known[key] = data
        elif step == "get":
            data = store.get(*key)
            assert data == known.get(key) or (data is None and not whole)
        elif step == "damage":
            # Of what this is, is not asked: everything is looked at again.
            paths = blocks_in(folder)
            if paths:
                path = paths[size % len(paths)]
                content = bytearray(path.read_bytes())
                content[size % len(content)] ^= 1 + size % 255
                path.write_bytes(content)
                before = store.snapshot()["corrupt"]
                for each in list(known):
                    data = store.get(*each)
                    assert data is None or data == known[each]
                    if data is None:
                        del known[each]
                assert store.snapshot()["corrupt"] == before + 1
        elif step == "drop":
            store.drop(key[0])
            known = {each: data for each, data in known.items() if each[0] != key[0]}
        elif step == "clear":
            store.clear()
            known.clear()
        elif step == "scan":
            store.scan()
        elif step == "wait":
            clock.now += 400
        else:
            store.close()
            store = PageStore(folder, limit, clock)
        assert bytes_in(folder) == store.size <= limit
    for key, data in known.items():
        found = store.get(*key)
        assert found == data or (found is None and not whole)
    store.close()
    shutil.rmtree(folder)


# --- from an event loop -----------------------------------------------------------------------------------


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[AsyncPageStore]:
    made = AsyncPageStore(PageStore(tmp_path / "pages", 100 * MIB))
    await made.flush()
    yield made
    await made.close()


async def test_put_later_and_get(pages: AsyncPageStore) -> None:
    for index in range(10):
        pages.put(FILE, VERSION, index, data_of(index))
    await pages.flush()
    got = await asyncio.gather(*(pages.get(FILE, VERSION, index) for index in range(11)))
    assert got == [*(data_of(index) for index in range(10)), None]
    pages.drop(FILE)
    pages.put(OTHER, VERSION, 0, b"data")
    await pages.flush()
    assert await pages.get(FILE, VERSION, 0) is None
    assert await pages.get(OTHER, VERSION, 0) == b"data"
    pages.clear()
    await pages.flush()
    assert await pages.get(OTHER, VERSION, 0) is None
    numbers = pages.snapshot()
    assert (numbers["stored"], numbers["waiting"], numbers["dropped"], numbers["late"]) == (11, 0, 0, 0)


async def test_nothing_is_asked_while_it_looks_at_its_files(tmp_path: Path) -> None:
    store = PageStore(tmp_path / "pages", MIB)
    looking, on = threading.Event(), threading.Event()
    really = store.scan

    def scan() -> None:
        looking.set()
        assert on.wait(60)
        really()

    store.scan = scan  # type: ignore[method-assign]  # a slow disk
    pages = AsyncPageStore(store)
    pages.put(FILE, VERSION, 0, b"data")
    assert await pages.get(FILE, VERSION, 0) is None
    assert pages.snapshot()["late"] == 1
    on.set()
    await pages.flush()
    assert looking.is_set()
    assert await pages.get(FILE, VERSION, 0) == b"data"
    await pages.close()


async def test_what_is_too_much_is_dropped(pages: AsyncPageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def drop(identity: Identity) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert on.wait(60)

    monkeypatch.setattr(pages._store, "drop", drop)
    pages.drop(FILE)
    await begun.wait()
    block = bytes(MIB)
    for index in range(40):
        pages.put(FILE, VERSION, index, block)
    assert pages.snapshot()["waiting"] == 32
    assert pages.snapshot()["dropped"] == 8
    on.set()
    await pages.flush()
    assert pages.snapshot()["stored"] == 32


async def test_closing(tmp_path: Path) -> None:
    pages = AsyncPageStore(PageStore(tmp_path / "pages", MIB))
    await pages.flush()
    before = len(os.listdir("/proc/self/fd"))
    await pages.close()
    await pages.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert await pages.get(FILE, VERSION, 0) is None
    pages.put(FILE, VERSION, 0, b"data")
    assert pages.snapshot() == {"waiting": 0, "dropped": 1, "late": 0}


async def test_a_disk_that_does_not_answer_does_not_keep_it_open(tmp_path: Path) -> None:
    store = PageStore(tmp_path / "pages", MIB)
    on = threading.Event()
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def scan() -> None:
        loop.call_soon_threadsafe(begun.set)
        assert on.wait(60)

    store.scan = scan  # type: ignore[method-assign]  # the disk
    pages = AsyncPageStore(store)
    await begun.wait()
    await pages.close(patience=0)
    assert pages.snapshot()["limit"] == MIB
    on.set()
    await pages.close()
    assert "limit" not in pages.snapshot()
