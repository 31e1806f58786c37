"""A name never leads outside the workspace."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_wsfuse.engine import sandbox as module
from jupyter_wsfuse.engine.handles import HandleTable
from jupyter_wsfuse.engine.sandbox import Sandbox, WouldBlock, check_name, read_link, reopen
from jupyter_wsfuse.errors import SandboxError
from jupyter_wsfuse.protocol.messages import Identity, Ref
from tests.helpers.workspace import fails, needs_root

libc = ctypes.CDLL(None, use_errno=True)
RENAME_EXCHANGE = 2
NO_MOUNTS: frozenset[bytes] = frozenset()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"inside")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"outside")
    return root


@pytest.fixture
def sandbox(root: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(str(root))
    yield sandbox
    sandbox.close()


def inode(sandbox: Sandbox, path: bytes, nowait: bool = False) -> int:
    fd = sandbox.open_path(path, nowait=nowait)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def test_names_inside(sandbox: Sandbox, root: Path) -> None:
    assert inode(sandbox, b"") == root.stat().st_ino
    assert inode(sandbox, b"a/b/file") == (root / "a/b/file").stat().st_ino
    assert inode(sandbox, b"a//b/./file") == (root / "a/b/file").stat().st_ino
    with fails(errno.ENOENT):
        sandbox.open_path(b"a/none")
    with fails(errno.ENOTDIR):
        sandbox.open_path(b"a/b/file/x")


@pytest.mark.parametrize(
    "path",
    [
        b"..",
        b"../outside/file",
        b"a/../../outside/file",
        b"a/..",
        b"/",
        b"/etc/passwd",
        b"//etc",
        b"a/b/../../..",
    ],
)
def test_escapes_in_the_path(sandbox: Sandbox, path: bytes) -> None:
    with pytest.raises(SandboxError) as caught:
        sandbox.open_path(path)
    assert caught.value.errno == errno.EACCES
    assert "etc" not in str(caught.value)


@pytest.mark.parametrize("path", [b"..", b"a/../..", b"/etc/passwd"])
def test_the_kernel_alone_would_refuse_them(
    sandbox: Sandbox, path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_check_path", lambda path: None)
    with pytest.raises(SandboxError):
        sandbox.open_path(path)


def test_nul_does_not_cut_a_path_short(sandbox: Sandbox) -> None:
    with fails(errno.EINVAL):
        sandbox.open_path(b"a/b\0/none")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"", errno.ENOENT),
        (b".", errno.EINVAL),
        (b"..", errno.EACCES),
        (b"a/b", errno.EINVAL),
        (b"/", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
    ],
)
def test_names_that_are_none(sandbox: Sandbox, name: bytes, number: int) -> None:
    with fails(number):
        check_name(name)
    with fails(number):
        sandbox.open_entry(sandbox.root_fd, name)


@pytest.mark.parametrize("name", [b"x" * 255, b"...", b"\xff\xfe", b" ", b"\n", b"-", "ü".encode()])
def test_names_that_are_allowed(sandbox: Sandbox, root: Path, name: bytes) -> None:
    check_name(name)
    os.mkdir(bytes(root) + b"/" + name)
    os.close(sandbox.open_entry(sandbox.root_fd, name))
    os.close(sandbox.open_path(name))


class TestPlantedLinks:
    @pytest.mark.parametrize("target", ["../outside", "/etc", "/proc/self/root", "/proc/self/cwd", ".", "a"])
    def test_are_not_followed(self, sandbox: Sandbox, root: Path, target: str) -> None:
        (root / "link").symlink_to(target)
        fd = sandbox.open_path(b"link")
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        assert read_link(fd) == os.fsencode(target)
        with fails(errno.ELOOP):
            reopen(fd, os.fstat(fd).st_mode, os.O_RDONLY)
        os.close(fd)
        with fails(errno.ELOOP):
            sandbox.open_path(b"link/file")
        fd = sandbox.open_path(b"link")
        with fails(errno.ENOTDIR):  # what the client says is a directory
            sandbox.open_entry(fd, b"file")
        os.close(fd)

    def test_with_an_identity_the_file_is_stale(self, sandbox: Sandbox, root: Path) -> None:
        identity = sandbox.resolve(Ref(b"a/b/file"), HandleTable()).attr.identity
        shutil.move(root / "a", root.parent / "moved")
        (root / "a").symlink_to("../moved")
        with fails(errno.ESTALE):
            sandbox.resolve(Ref(b"a/b/file", identity), HandleTable())


def test_proc_is_no_way_out() -> None:
    sandbox = Sandbox("/proc")
    assert not sandbox.inline_ok
    fd = sandbox.open_path(b"self")
    assert stat.S_ISLNK(os.fstat(fd).st_mode)
    os.close(fd)
    for path in (b"self/root", b"self/cwd", b"self/exe"):
        with fails(errno.ELOOP):
            sandbox.open_path(path)
    fd = sandbox.open_path(b"%d/root" % os.getpid())
    assert stat.S_ISLNK(os.fstat(fd).st_mode)
    os.close(fd)
    with fails(errno.ELOOP):
        sandbox.open_path(b"%d/root/etc" % os.getpid())
    sandbox.close()


class TestMounts:
    def test_are_not_entered(self) -> None:
        sandbox = Sandbox("/")
        for path in (b"proc", b"proc/self", b"proc/self/root/etc"):
            with pytest.raises(SandboxError, match="mounted") as caught:
                sandbox.open_path(path)
            assert caught.value.errno == errno.EACCES
        with pytest.raises(SandboxError):
            sandbox.open_entry(sandbox.root_fd, b"proc")
        assert b"proc" in sandbox.mounted_in(sandbox.root_fd)
        assert sandbox.stat_entry(sandbox.root_fd, b"proc", frozenset({b"proc"})) is None
        assert sandbox.stat_entry(sandbox.root_fd, b"proc", NO_MOUNTS) is None  # mounted since
        assert sandbox.stat_entry(sandbox.root_fd, b"none", NO_MOUNTS) is None
        sandbox.close()

    @needs_root
    @pytest.mark.parametrize("bind", [False, True])
    def test_made_inside_later(self, sandbox: Sandbox, root: Path, bind: bool) -> None:
        place = bytes(root / "a/b")
        source, kind, flags = (bytes(root.parent / "outside"), b"none", 4096) if bind else (b"x", b"tmpfs", 0)
        assert libc.mount(source, place, kind, flags, None) == 0
        try:
            for path in (b"a/b", b"a/b/file"):
                with pytest.raises(SandboxError, match="mounted"):
                    sandbox.open_path(path)
            fd = sandbox.open_path(b"a")
            assert sandbox.mounted_in(fd) == {b"b"}
            os.close(fd)
        finally:
            assert libc.umount2(place, 2) == 0
        os.close(sandbox.open_path(b"a/b/file"))

    @needs_root
    def test_overlay_files_keep_their_identity(self, tmp_path: Path) -> None:
        for name in ("lower", "upper", "work", "merged"):
            (tmp_path / name).mkdir()
        (tmp_path / "lower/f").write_bytes(b"1")
        options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work".encode()
        merged = bytes(tmp_path / "merged")
        if libc.mount(b"overlay", merged, b"overlay", 0, options) != 0:
            pytest.skip("no overlayfs on this kernel")
        try:
            sandbox = Sandbox(merged)
            ref = Ref(b"f", sandbox.resolve(Ref(b"f"), HandleTable()).attr.identity)
            os.chmod(merged + b"/f", 0o600)  # copies it up
            with sandbox.resolve(ref, HandleTable()) as target:
                assert stat.S_IMODE(target.attr.mode) == 0o600
            entry = sandbox.stat_entry(sandbox.root_fd, b"f", NO_MOUNTS)
            assert entry is not None
            assert entry.identity == ref.identity
            sandbox.close()
        finally:
            assert libc.umount2(merged, 2) == 0


def test_no_birth_time_where_it_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(root, os.O_PATH)
    monkeypatch.setattr(module, "_NO_BIRTH_TIME", {module.syscalls.file_system_type(fd)})
    os.close(fd)
    sandbox = Sandbox(root)
    with sandbox.resolve(Ref(b"a"), HandleTable()) as target:
        assert target.attr.btime == 0
    entry = sandbox.stat_entry(sandbox.root_fd, b"a", NO_MOUNTS)
    assert entry is not None
    assert entry.identity == target.attr.identity
    sandbox.close()


class TestNowait:
    def test_answers_from_memory_or_not_at_all(self, sandbox: Sandbox, root: Path) -> None:
        if not sandbox.inline_ok:
            pytest.skip("not a local file system")
        assert inode(sandbox, b"a/b", nowait=True) == (root / "a/b").stat().st_ino
        with pytest.raises(WouldBlock):
            sandbox.open_path(b"nobody-asked-for-this-name", nowait=True)
        with sandbox.resolve(Ref(b"a/b"), HandleTable(), nowait=True) as target:
            assert target.attr.ino == (root / "a/b").stat().st_ino

    def test_a_kernel_that_cannot(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module.syscalls, "RESOLVE_CACHED", 1 << 40)
        sandbox = Sandbox(root)
        assert not sandbox.inline_ok
        sandbox.close()


def test_paths_of_any_length(sandbox: Sandbox, root: Path) -> None:
    top = os.open(root, os.O_RDONLY)
    here = os.dup(top)
    for _ in range(40):
        os.mkdir(b"d" * 255, dir_fd=here)
        deeper = os.open(b"d" * 255, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    path = b"/".join([b"d" * 255] * 40)
    assert inode(sandbox, path) == os.fstat(here).st_ino
    assert inode(sandbox, path + b"/") == os.fstat(here).st_ino
    with fails(errno.ENOENT):
        sandbox.open_path(path + b"/none")
    with fails(errno.ENAMETOOLONG):
        sandbox.open_path(b"x" * 4000)
    os.symlink(b"/etc", b"link", dir_fd=here)
    with fails(errno.ELOOP):
        sandbox.open_path(path + b"/link/" + b"x/" * 2000)
    assert sandbox.mounted_in(here) == frozenset()
    os.close(here)
    with fails(errno.ENOENT):
        sandbox.mounted_in(here)
    os.close(top)


class TestResolve:
    def test_identity(self, sandbox: Sandbox, root: Path) -> None:
        handles = HandleTable()
        with sandbox.resolve(Ref(b"a/b/file"), handles) as target:
            identity = target.attr.identity
            assert target.handle is None
        with sandbox.resolve(Ref(b"a/b/file", identity), handles) as target:
            assert target.attr.size == 6
        for other in (
            Identity(identity.dev + 1, identity.ino, identity.btime),
            Identity(identity.dev, identity.ino + 1, identity.btime),
            Identity(identity.dev, identity.ino, identity.btime + 1),
        ):
            with fails(errno.ESTALE):
                sandbox.resolve(Ref(b"a/b/file", other), handles)
        with fails(errno.ESTALE):
            sandbox.resolve(Ref(b"a/none", identity), handles)
        with fails(errno.ESTALE):
            sandbox.resolve(Ref(b"a/b/file/none", identity), handles)
        with fails(errno.ENOENT):
            sandbox.resolve(Ref(b"a/none"), handles)
        with pytest.raises(SandboxError):
            sandbox.resolve(Ref(b"..", identity), handles)

    def test_handles(self, sandbox: Sandbox, root: Path) -> None:
        handles = HandleTable()
        fd = os.open(root / "a/b/file", os.O_RDONLY)
        handle = handles.add(fd, flags=os.O_RDONLY, identity=Identity(0, 0, 0))
        (root / "a/b/file").unlink()
        with sandbox.resolve(Ref(b"somewhere/else", None, handle.id), handles) as target:
            assert target.handle is handle
            assert target.attr.nlink == 0
            handles.close(handle.id)
            assert os.fstat(target.fd).st_size == 6
        with fails(errno.EBADF):
            os.fstat(fd)
        with fails(errno.EBADF):
            sandbox.resolve(Ref(b"", None, handle.id), handles)

    def test_a_failing_stat_leaves_nothing_open(
        self, sandbox: Sandbox, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handles = HandleTable()
        handle = handles.add(os.open(root, os.O_RDONLY), flags=0, identity=Identity(0, 0, 0))

        def fail(fd: int, nowait: bool = False) -> None:
            raise OSError(errno.EIO, "")

        monkeypatch.setattr(sandbox, "stat", fail)
        before = len(os.listdir("/proc/self/fd"))
        for ref in (Ref(b"a"), Ref(b"", None, handle.id)):
            with fails(errno.EIO):
                sandbox.resolve(ref, handles)
        assert len(os.listdir("/proc/self/fd")) == before
        handles.close_all()
        assert len(os.listdir("/proc/self/fd")) == before - 1


def test_what_is_opened(sandbox: Sandbox, root: Path) -> None:
    """Neither waits for a fifo's other end, nor opens a device."""
    os.mkfifo(root / "fifo")
    fd = sandbox.open_path(b"fifo")
    with fails(errno.ENXIO):
        reopen(fd, os.fstat(fd).st_mode, os.O_RDONLY)
    with fails(errno.EINVAL):
        read_link(fd)
    os.close(fd)
    with fails(errno.EACCES):
        reopen(-1, stat.S_IFCHR | 0o666, os.O_RDWR)
    fd = sandbox.open_path(b"a/b/file")
    real = reopen(fd, os.fstat(fd).st_mode, os.O_RDONLY)
    assert os.read(real, 100) == b"inside"
    assert not os.get_inheritable(real)
    os.close(real)
    os.close(fd)


def test_no_workspace(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with fails(errno.ENOENT):
        Sandbox(tmp_path / "none")
    (tmp_path / "f").write_bytes(b"")
    with fails(errno.ENOTDIR):
        Sandbox(tmp_path, follow_roots=[str(tmp_path / "f")])
    assert len(os.listdir("/proc/self/fd")) == before


class TestFollow:
    @pytest.fixture
    def follow(self, root: Path) -> Iterator[Sandbox]:
        data = root.parent / "data"
        (data / "sub").mkdir(parents=True)
        (data / "sub/f").write_bytes(b"data")
        (data / "inner").symlink_to("sub")
        (data / "back").symlink_to(root / "a")
        (data / "out").symlink_to("/etc")
        for name, target in {
            "absolute": str(data),
            "relative": "../data/sub",
            "file": str(data / "sub/f"),
            "chain": "absolute/inner",
            "inside": "a",
            "outside": "../outside",
            "dangling": str(data / "none"),
            "loop": "loop",
            "via-outside": "../outside/../data",
        }.items():
            (root / name).symlink_to(target)
        sandbox = Sandbox(root, follow_roots=[bytes(data)])
        yield sandbox.with_links("follow")
        sandbox.close()

    @pytest.mark.parametrize(
        ("path", "end"),
        [
            (b"absolute", "data"),
            (b"relative", "data/sub"),
            (b"file", "data/sub/f"),
            (b"chain", "data/sub"),
            (b"absolute/sub/f", "data/sub/f"),
            (b"relative/f", "data/sub/f"),
            (b"absolute/inner", "data/sub"),
            (b"absolute/inner/f", "data/sub/f"),
            (b"a/b/file", "root/a/b/file"),
        ],
    )
    def test_into_allowed_folders(self, follow: Sandbox, root: Path, path: bytes, end: str) -> None:
        place = (root.parent / end).stat()
        assert inode(follow, path) == place.st_ino

    @pytest.mark.parametrize(
        "path",
        [b"inside", b"outside", b"dangling", b"loop", b"via-outside", b"absolute/back", b"absolute/out"],
    )
    def test_other_links_are_kept(self, follow: Sandbox, path: bytes) -> None:
        fd = follow.open_path(path)
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        os.close(fd)

    @pytest.mark.parametrize(
        ("path", "number"),
        [
            (b"outside/file", errno.EACCES),
            (b"absolute/out/passwd", errno.EACCES),
            (b"inside/b", errno.ELOOP),
            (b"dangling/x", errno.ENOENT),
            (b"loop/x", errno.ELOOP),
            (b"absolute/none", errno.ENOENT),
        ],
    )
    def test_ways_that_lead_nowhere(self, follow: Sandbox, path: bytes, number: int) -> None:
        with fails(number):
            follow.open_path(path)

    def test_entries(self, follow: Sandbox, root: Path) -> None:
        fd = follow.lookup(follow.root_fd, b"relative")
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
        os.close(fd)
        fd = follow.open_entry(follow.root_fd, b"relative")  # to remove or rename it: itself
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        os.close(fd)
        kinds = {}
        for name in (b"relative", b"file", b"outside", b"loop", b"a"):
            attr = follow.stat_entry(follow.root_fd, name, NO_MOUNTS)
            assert attr is not None
            kinds[name] = stat.S_IFMT(attr.mode)
        assert kinds == {
            b"relative": stat.S_IFDIR,
            b"file": stat.S_IFREG,
            b"outside": stat.S_IFLNK,
            b"loop": stat.S_IFLNK,
            b"a": stat.S_IFDIR,
        }

    def test_never_on_the_event_loop(self, follow: Sandbox) -> None:
        os.close(follow.open_path(b"a/b", nowait=True))
        before = len(os.listdir("/proc/self/fd"))
        for path in (b"relative", b"relative/f"):
            with pytest.raises(WouldBlock):
                follow.open_path(path, nowait=True)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_keeping_is_the_default(self, follow: Sandbox) -> None:
        keep = follow.with_links("keep")
        fd = keep.open_path(b"absolute")
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        os.close(fd)
        with fails(errno.ELOOP):
            keep.open_path(b"absolute/sub")
        assert follow.links == "follow"


ATTEMPTS = 20_000


@pytest.mark.parametrize("links", ["keep", "follow"])
def test_a_race_does_not_lead_outside(root: Path, links: str) -> None:
    """While a directory is exchanged for a link to the outside and back, as fast as that goes."""
    (root / "evil").symlink_to("../outside")
    (root.parent / "allowed").mkdir()
    forbidden = {(root.parent / name).stat().st_ino for name in ("outside", "outside/file")}
    sandbox = Sandbox(root, follow_roots=[str(root.parent / "allowed")]).with_links(links)
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        one, two = bytes(root / "a/b"), bytes(root / "evil")
        while not stop.is_set():
            assert libc.renameat2(-100, one, -100, two, RENAME_EXCHANGE) == 0
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[int | None] = set()
    attempts = 0
    try:
        while attempts < ATTEMPTS or swaps < 100 or len(seen) < 2:  # both states were met
            attempts += 1
            for path in (b"a/b/file", b"a/b"):
                try:
                    found = inode(sandbox, path)
                except OSError as error:
                    seen.add(error.errno)
                else:
                    assert found not in forbidden
                    seen.add(0)
    finally:
        stop.set()
        thread.join()
        sandbox.close()
    assert seen <= {0, errno.ELOOP, errno.EACCES, errno.ENOENT, errno.ENOTDIR}


def test_a_directory_moved_out_takes_nobody_along(sandbox: Sandbox, root: Path) -> None:
    """A descriptor of a directory that has left the workspace still names its entries, never its parent's."""
    fd = sandbox.open_path(b"a/b")
    shutil.move(root / "a/b", root.parent / "outside/b")
    with pytest.raises(SandboxError):
        sandbox.open_entry(fd, b"..")
    with fails(errno.ENOENT):
        sandbox.open_path(b"a/b/file")
    os.close(fd)


components = st.sampled_from(
    [b"..", b".", b"", b"a", b"b", b"file", b"l-up", b"l-abs", b"l-in", b"proc", b"\xff", b"x" * 256, b"\0"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(path=st.lists(components, max_size=7).map(b"/".join), links=st.sampled_from(["keep", "follow"]))
def test_whatever_the_path_it_ends_inside(sandbox: Sandbox, root: Path, path: bytes, links: str) -> None:
    for name, target in {"l-up": "..", "l-abs": "/", "l-in": "a/b"}.items():
        if not (root / name).is_symlink():
            (root / name).symlink_to(target)
            (root / "a" / name).symlink_to(target)
    try:
        fd = sandbox.with_links(links).open_path(path)
    except OSError:
        return
    real = os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)
    assert (real + "/").startswith(f"{root}/")
