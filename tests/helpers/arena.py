"""A workspace, and beside it what nobody may see or change through it.

Everything lies below one directory of the test's own, deep enough that the few ``..`` that attacks are made of
end there as well: an attack that succeeds reaches the canary and nothing else of this machine.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_wsfuse.protocol import messages as m
from jupyter_wsfuse.protocol.messages import Identity, Ref

Make = partial[m.Request]  # everything of a request but its number

CANARY = b"canary-7f3a91c4e5: nobody may read this"
#: The name of an entry, and of an extended attribute, that nothing else has.
ONLY_OUTSIDE = "only-outside"
#: Attacks go up at most so often.
DEPTH = 3
ROOT = Ref(b"")


def is_outside(path: bytes) -> bool:
    """Whether a path names, by itself and on any file system, something that is not below the root."""
    return path.startswith(b"/") or b".." in path.split(b"/") or b"\0" in path


class Arena:
    """``workspace`` is served, ``shared`` is where links may lead with ``links=follow``, ``outside`` is forbidden."""

    def __init__(self, base: Path) -> None:
        self.base = base
        home = base / "1/2"
        self.workspace, self.shared, self.outside = home / "workspace", home / "shared", home / "outside"
        for folder in (self.workspace, self.shared, self.outside / "dir"):
            folder.mkdir(parents=True)
        for name in ("canary", "dir/inner"):
            (self.outside / name).write_bytes(CANARY)
        (self.outside / ONLY_OUTSIDE).touch()
        self.xattrs = _try_xattr(self.outside / "canary")
        self.fds = [os.open(path, os.O_RDONLY) for path in (self.outside, self.outside / "canary")]
        self.forbidden = {
            (found.st_dev, found.st_ino)
            for path in (base, base / "1", home, *_below(self.outside))
            for found in [os.lstat(path)]
        }
        self.build()
        self.before = self.snapshot()

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    def build(self) -> None:
        """The workspace as it was at the start, planted links included; its root stays what it is."""
        for folder in (self.workspace, self.shared):
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False) and not os.path.ismount(entry.path):
                    shutil.rmtree(entry.path)
                elif not os.path.ismount(entry.path):
                    os.unlink(entry.path)
            os.chmod(folder, 0o755)
        ws = self.workspace
        (ws / "dir/sub").mkdir(parents=True)
        (ws / "empty").mkdir()
        for name in ("file", "dir/file", "dir/sub/deep"):
            (ws / name).write_bytes(b"inside")
        os.mkfifo(ws / "fifo")
        (self.shared / "file").write_bytes(b"shared")
        for name, target in self.links().items():
            os.symlink(target, bytes(ws) + b"/" + name)
        os.symlink("../outside", self.shared / "escape")
        os.symlink(self.outside / "canary", self.shared / "escape-file")

    def links(self) -> dict[bytes, bytes]:
        """The symbolic links that are planted in the workspace, by name."""
        outside = bytes(self.outside)
        own = b"/proc/%d/fd/" % os.getpid()
        return {
            b"absolute": outside,
            b"absolute-file": outside + b"/canary",
            b"relative": b"../outside",
            b"relative-file": b"../outside/canary",
            b"roundabout": b"dir/sub/../../../outside",
            b"chain": b"relative",
            b"chain-file": b"chain/canary",
            b"up": b"..",
            b"loop": b"loop",
            b"dangling": b"../outside/planted",
            b"dangling-absolute": outside + b"/planted",
            b"magic": own + b"%d" % self.fds[0],
            b"magic-file": own + b"%d" % self.fds[1],
            b"magic-root": b"/proc/%d/root" % os.getpid() + outside,
            b"to-shared": bytes(self.shared),
            b"through-shared": bytes(self.shared) + b"/escape/canary",
            b"to-inside": b"dir",
        }

    # --- what attacks are made of

    def paths(self) -> list[bytes]:
        """Paths for every ``Ref``: harmless variants, and every known form of leaving."""
        outside = bytes(self.outside)
        found = [
            b"", b".", b"./", b"dir/", b"dir/.", b"dir//sub", b"./dir/./sub", b"file/", b"file/.", b"file", b"dir",
            b"..", b"../", b"../.", b"./..", b"dir/..", b"dir/../..", b"dir/../../", b"file/..", b"none/../..",
            b"../outside", b"../outside/canary", b"../outside/dir", b"dir/../../outside/canary",
            b"dir/sub/../../../outside", b".//..//outside", b"dir/./../../outside/canary", b"../workspace/file",
            b"../workspace2", b"../outside/../outside/canary", b"...", b".../canary", b"dir/..../canary",
            outside, outside + b"/canary", b"/" + outside, b"//" + outside + b"/canary", b"dir/" + outside,
            bytes(self.workspace) + b"/file", b"\\..\\outside\\canary", b"%2e%2e/outside/canary",
            b"..%2foutside/canary", b"\xc0\xae\xc0\xae/outside/canary", b"\xef\xbc\x8e\xef\xbc\x8e/outside/canary",
            b"\0", b"file\0", b"file\0/../../outside/canary", b"../outside/canary\0.txt", b"dir\0/..", b"\0..",
            b"relative-file\0", b"proc/self/root" + outside, b"proc/self/fd/3", b"dev/fd/3", b"fifo", b"fifo/x",
            b"x" * 256, b"dir/" * 1500 + b"file", b"dir/" + b"./" * 2500 + b"../../outside/canary",
            b"relative/" + b"./" * 2500 + b"canary", b"./" * 2500 + b"relative/canary", b"a" * 5000,
            b"mounted", b"mounted/canary", b"mounted/dir", b"mounted/.", b"dir/mounted-file",
        ]  # fmt: skip
        for link in self.links():
            found += [link, link + b"/", link + b"/.", link + b"/..", link + b"/canary", link + b"/dir/inner"]
        found += [
            b"to-shared/escape",
            b"to-shared/escape/canary",
            b"to-shared/escape-file",
            b"up/outside/canary",
        ]
        return found

    def names(self) -> list[bytes]:
        """The same for every field that is one name."""
        outside = bytes(self.outside)
        return [
            b"", b".", b"..", b"/", b"//", b"./file", b"../", b"../outside", b"../outside/canary",
            b"../outside/planted", b"dir/file", b"dir/../../outside/planted", b"file/", b"planted/",
            outside + b"/canary", outside + b"/planted", b"\0", b"a\0b", b"..\0", b"../outside/canary\0", b"file\0",
            b"x" * 256, b"x" * 70000, b"relative/canary", b"absolute/planted", b"mounted", b"mounted/canary",
            b"\xc0\xae\xc0\xae", b"..;", b" ..", *self.links(),
        ]  # fmt: skip

    # --- whether it was of any use

    def snapshot(self) -> dict[str, tuple[Any, ...]]:
        """Everything that can be seen of what is outside, but access times."""
        seen: dict[str, tuple[Any, ...]] = {}
        for path in (self.base, self.base / "1", self.base / "1/2", *_below(self.outside)):
            s = os.lstat(path)
            what: Any = None
            if stat.S_ISDIR(s.st_mode):
                what = sorted(os.listdir(path))
            elif stat.S_ISLNK(s.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(s.st_mode):
                what = path.read_bytes()
            names = os.listxattr(path, follow_symlinks=False) if self.xattrs else []
            seen[str(path)] = (
                s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_mtime_ns, s.st_ctime_ns, what,
                {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
            )  # fmt: skip
        return seen

    def check_untouched(self) -> None:
        assert self.snapshot() == self.before

    def leaks(self, reply: Any, payload: bytes | bytearray | memoryview = b"") -> list[str]:
        """What in an answer comes from outside."""
        found = ["data"] if CANARY in bytes(payload) else []
        for name in ("attr", "moved"):
            attr = getattr(reply, name, None)
            if attr is not None and (attr.dev, attr.ino) in self.forbidden:
                found.append(name)
        if isinstance(reply, m.ValueReply) and CANARY in reply.value:
            found.append("value")
        if isinstance(reply, m.NamesReply) and b"user." + ONLY_OUTSIDE.encode() in reply.names:
            found.append("names of attributes")
        if isinstance(reply, m.DirReply):
            found += self._among(reply.entries)
        if isinstance(reply, m.TreeReply):
            for directory in reply.directories:
                if (directory.attr.dev, directory.attr.ino) in self.forbidden:
                    found.append(f"directory {directory.path!r}")
                found += self._among(directory.entries)
        return found

    def _among(self, entries: list[m.DirEntry]) -> list[str]:
        inodes = {ino for _, ino in self.forbidden}
        return [
            f"entry {entry.name!r}"
            for entry in entries
            # The number of ".." is no secret: it is in the directory's own data.
            if entry.name != b".." and (entry.name == ONLY_OUTSIDE.encode() or entry.ino in inodes)
        ]

    def identity(self, path: Path) -> Identity:
        """What a client would have to know of a file to ask for it. The birth time is left out."""
        found = os.lstat(path)
        return Identity(found.st_dev, found.st_ino, 0)


def by_path(path: bytes, identity: Identity | None = None) -> list[Make]:
    """Every request that names a file by a path, aimed at *path* or at an entry of it."""
    ref = Ref(path, identity)
    made: list[Make] = [
        partial(m.GetAttr, ref=ref),
        partial(m.Lookup, parent=ref, name=b"canary"),
        partial(m.SetAttr, ref=ref, mode=0o640),
        partial(m.SetAttr, ref=ref, size=0),
        partial(m.SetAttr, ref=ref, atime=1, mtime=1),
        partial(m.Access, ref=ref, mask=0),
        partial(m.ReadLink, ref=ref),
        partial(m.OpenDir, ref=ref),
        partial(m.Open, ref=ref, flags=os.O_RDONLY),
        partial(m.Open, ref=ref, flags=os.O_RDWR | os.O_TRUNC),
        partial(m.Open, ref=ref, flags=os.O_RDONLY, handle=4713, inline=4096),
        partial(m.OpenDir, ref=ref, handle=4714),
        partial(m.Fetch, ref=ref, offset=0, size=4096),
        partial(m.Fetch, ref=ref, offset=0, size=4096, background=True),
        partial(m.ListTree, refs=[ref], limit=1000, depth=8),
        partial(m.StatFs, ref=ref),
        partial(m.GetXattr, ref=ref, name=b"user.canary"),
        partial(m.ListXattr, ref=ref),
        partial(m.SetXattr, ref=ref, name=b"user.canary", value=b"planted"),
        partial(m.RemoveXattr, ref=ref, name=b"user.canary"),
        partial(m.Reopen, ref=ref, handle=4711, flags=os.O_RDWR),
        partial(m.Reopen, ref=ref, handle=4712, flags=os.O_RDONLY, directory=True),
        partial(m.TmpFile, parent=ref, mode=0o600, flags=os.O_RDWR),
        partial(m.Link, ref=ref, parent=ROOT, name=b"stolen"),
        partial(m.Link, ref=Ref(b"file"), parent=ref, name=b"planted"),
        partial(m.SymLink, parent=ref, name=b"planted", target=b"file"),
        partial(m.MkDir, parent=ref, name=b"planted", mode=0o755),
        partial(m.MkNod, parent=ref, name=b"planted", mode=0o100644),
        partial(m.Rename, parent=ref, name=b"canary", new_parent=ROOT, new_name=b"stolen"),
        partial(m.Rename, parent=ROOT, name=b"file", new_parent=ref, new_name=b"planted"),
        partial(m.Rename, parent=ROOT, name=b"file", new_parent=ref, new_name=b"canary", flags=2),
        partial(m.RmDir, parent=ref, name=b"dir"),
        partial(m.Unlink, parent=ref, name=b"canary", pin=True),
    ]
    for flags in (os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_EXCL):
        for name in (b"canary", b"planted"):
            made.append(partial(m.Create, parent=ref, name=name, mode=0o644, flags=flags))
    return made


def by_name(name: bytes) -> list[Make]:
    """Every request that has a name of an entry, with *name* in the root."""
    return [
        partial(m.Lookup, parent=ROOT, name=name),
        partial(m.Create, parent=ROOT, name=name, mode=0o644, flags=os.O_RDWR | os.O_EXCL),
        partial(m.Create, parent=ROOT, name=name, mode=0o644, flags=os.O_RDWR),
        partial(m.Create, parent=ROOT, name=name, mode=0o644, flags=os.O_RDWR | os.O_TRUNC),
        partial(m.MkDir, parent=ROOT, name=name, mode=0o755),
        partial(m.MkNod, parent=ROOT, name=name, mode=0o010644),
        partial(m.SymLink, parent=ROOT, name=name, target=b"file"),
        partial(m.Link, ref=Ref(b"file"), parent=ROOT, name=name),
        partial(m.Rename, parent=ROOT, name=name, new_parent=ROOT, new_name=b"stolen"),
        partial(m.Rename, parent=ROOT, name=b"file", new_parent=ROOT, new_name=name),
        partial(m.Rename, parent=ROOT, name=b"file", new_parent=Ref(b"dir"), new_name=name, flags=1),
        partial(m.Rename, parent=ROOT, name=b"dir", new_parent=ROOT, new_name=name, flags=2),
        partial(m.RmDir, parent=ROOT, name=name, pin=True),
        partial(m.Unlink, parent=ROOT, name=name, pin=True),
        partial(m.GetXattr, ref=Ref(b"file"), name=name),
        partial(m.SetXattr, ref=Ref(b"file"), name=name, value=b"x"),
        partial(m.RemoveXattr, ref=Ref(b"file"), name=name),
    ]


def by_handle(handle: int) -> list[Make]:
    """Every request that names a file by a handle."""
    ref = Ref(b"", None, handle)
    lock = m.Lock(1, 0, 2**63 - 1, "w", 1)
    made: list[Make] = [
        partial(m.Read, handle=handle, offset=0, size=4096),
        partial(m.Write, handle=handle, offset=0),
        partial(m.ReadDir, handle=handle, cookie=0, limit=100),
        partial(m.Fsync, handle=handle),
        partial(m.Fallocate, handle=handle, mode=0, offset=0, length=10),
        partial(m.Seek, handle=handle, offset=0, whence=3),
        partial(m.CopyRange, source=handle, source_offset=0, target=handle, target_offset=50, length=10),
        partial(m.GetLock, handle=handle, lock=lock),
        partial(m.SetLock, handle=handle, lock=lock),
    ]
    for make in by_path(b""):
        arguments = {
            name: ref if value == ROOT or value == Ref(b"") else [ref] if isinstance(value, list) else value
            for name, value in make.keywords.items()
        }
        if arguments != make.keywords and make.func is not m.Reopen:
            made.append(partial(make.func, **arguments))
    return made


def kinds_with(*fields: str) -> set[type[m.Request]]:
    """The requests that have one of *fields*."""
    return {kind for kind in m.REQUESTS if set(fields) & set(kind.__struct_fields__)}


def kinds_of(makes: Iterable[Make]) -> set[Any]:
    return {make.func for make in makes}


def _below(path: Path) -> Iterator[Path]:
    yield path
    for folder, folders, files in os.walk(path):
        for name in folders + files:
            yield Path(folder, name)


def _try_xattr(path: Path) -> bool:
    try:
        os.setxattr(path, "user.canary", CANARY)
        os.setxattr(path, f"user.{ONLY_OUTSIDE}", b"x")
    except OSError:
        return False
    return True
